"""Dynos that die, never come, or may not be had: the client and the operator are told why.

The platform is emulated; the gateway, the agents and the servers are real processes.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tests.heroku_emulator import AppSpec
from tests.system.conftest import PLAIN
from tests.system.heroku import OPENING, PATH, PUPPET, Site, Visitor, calling, deployed, visiting
from tests.system.talking import BOUND, Stream, refusal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.system.conftest import GatewayProcess

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.asyncio(loop_scope="module"),  # the platform lives in the fixture's loop
]

PROMPT_S = 10.0
"""Seconds within which a client has to be told; a webhook comes at once, a list seconds later."""

BOOT_S = 2.0

REFUSALS = {
    "401": "the platform refused the gateway's key: Invalid credentials provided.",
    "402": "the platform wants the account's bill settled first: "
    "You need to clear a past due balance before you can do this.",
    "403": "the platform does not let the gateway's key do this: "
    "You do not have access to the app.",
    "404": "the platform knows no such thing: The requested API endpoint was not found.",
    "422": "the platform refused the request: Parameters invalid, validate usage and try again.",
}
"""What a client is told, by the status of the platform's answer to a create."""

ADVICE = {
    "401": "HEROKU_API_KEY was refused",
    "402": "is delinquent or not verified",
    "403": "make its user a collaborator of the app",
    "422": "Check the server's size and environment",
}
"""What an operator reads beside it."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(
    tmp_path_factory: pytest.TempPathFactory, running: list[GatewayProcess]
) -> AsyncIterator[Site]:
    """A server that does what it is told, once as it is and once in a hurry."""
    app = AppSpec({"mcp-puppet": PUPPET}, config={"PATH": PATH})
    entry = {"app": "tools", "process_type": "mcp-puppet", **PLAIN}
    servers = {"puppet": entry, "hasty": {**entry, "boot_timeout": BOOT_S}}
    folder = tmp_path_factory.mktemp("site")
    async with deployed(folder, running, {"tools": app}, servers=servers) as site:
        yield site


@pytest_asyncio.fixture(loop_scope="module")
async def quiet(site: Site) -> AsyncIterator[Site]:
    """The site without a dyno, before and after."""
    assert site.platform.dynos_left() == []
    yield site
    site.platform.faults.clear()
    await site.until_gone()
    assert site.platform.violations == []


async def refused(site: Site, server: str = "puppet", within: float = PROMPT_S) -> tuple[str, str]:
    """Ask for a session that cannot be; return what the client is told, and the reason."""
    async with asyncio.timeout(within), visiting(site, server) as visitor:
        error = (await visitor.send(OPENING))["error"]
    return error["message"], error["data"]["reason"]


async def until_held(visitor: Visitor, call: int) -> None:
    """Wait until the server has a call that it does not answer."""
    for request in range(1000, 2000):
        if call in (await visitor.call(request, "state"))["result"]["held"]:
            return
    pytest.fail(f"the server never had call {call}")


# -- deaths ----------------------------------------------------------------------------------------


async def test_a_dyno_that_is_killed_in_mid_call_is_told_with_its_exit_status(quiet: Site) -> None:
    async with visiting(quiet, "puppet") as visitor:
        await visitor.open()
        dyno = quiet.running()
        async with asyncio.timeout(PROMPT_S), asyncio.TaskGroup() as calls:
            call = calls.create_task(visitor.call(1, "hold"))
            await until_held(visitor, 1)
            await quiet.platform.kill(dyno.id)
        code, reason, request = refusal(call.result())
        assert (code, reason, request) == (-32603, "link_lost", 1)
        assert "with status 137" in call.result()["error"]["message"]
    assert dyno.cause == "killed"
    told = await quiet.until_told("platform_said", dyno=f"tools/{dyno.id}")
    assert (told["state"], told["exit_status"]) == ("crashed", 137)


async def test_a_dyno_that_dies_while_it_boots_is_told_at_once(quiet: Site) -> None:
    quiet.platform.faults.push("create", "dies:0")
    message, reason = await refused(quiet)
    assert reason == "launch_failed"
    assert message == "the dyno ended without a word on the link, with status 137"


async def test_a_dyno_that_never_dials_is_stopped_and_told_as_such(quiet: Site) -> None:
    quiet.platform.faults.push("create", "never-dials")
    message, reason = await refused(quiet, "hasty")
    assert reason == "start_timeout"
    assert message == (
        "no agent dialled back within 2 s (boot_timeout of hasty); the dyno was stopped. "
        "Can it reach GATEWAY_URL?"
    )
    await quiet.until_gone()
    assert quiet.platform.ledger[-1].cause == "stopped"


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", REFUSALS)
async def test_what_the_platform_refuses_is_told_in_words(quiet: Site, status: str) -> None:
    before = len(quiet.platform.ledger)
    quiet.platform.faults.push("create", status)
    told = f"no dyno could be had for puppet: {REFUSALS[status]}"
    assert await refused(quiet) == (told, "launch_failed")
    assert len(quiet.platform.ledger) == before
    closed = await quiet.until_told("closed", detail=told)
    assert (closed["dyno_s"], closed["usd"]) == (0.0, 0.0)
    if status in ADVICE:
        failure = await quiet.until_told("platform_failure", problem=REFUSALS[status])
        assert ADVICE[status] in failure["advice"]


@pytest.mark.parametrize("fault", ["429", "409", "500-after", "reset-after"])
async def test_what_passes_is_not_seen_by_the_client_and_launches_once(
    quiet: Site, fault: str
) -> None:
    before = len(quiet.platform.ledger)
    quiet.platform.faults.push("create", fault)
    async with visiting(quiet, "puppet") as visitor:
        await visitor.open()
        await visitor.leave()
    assert quiet.platform.faults.injected["create", fault] == 1
    assert len(quiet.platform.ledger) == before + 1


async def test_without_requests_left_no_dyno_is_made_that_could_not_be_stopped(quiet: Site) -> None:
    quiet.platform.set_remaining(0)
    try:
        message, reason = await refused(quiet)
    finally:
        quiet.platform.set_remaining(4500)
        await quiet.ask("servers/refresh", {})
    assert reason == "launch_failed"
    assert "the account's allowance of requests to the platform is used up" in message
    used_up = [
        record["advice"]
        for record in quiet.events("platform_failure")
        if record["what"] == "create a dyno of tools" and "allowance" in record["problem"]
    ]
    assert used_up[-1].startswith("Requests come back at 75 a minute")


async def test_a_platform_that_fails_is_told_once_it_is_sure_that_there_is_no_dyno(
    tmp_path: Path, running: list[GatewayProcess]
) -> None:
    """It takes the launcher 20 s to be sure: a create may be carried out behind an error."""
    app = AppSpec({"mcp-puppet": PUPPET}, config={"PATH": PATH})
    entry = {"app": "tools", "process_type": "mcp-puppet", **PLAIN}
    async with deployed(tmp_path, running, {"tools": app}, servers={"puppet": entry}) as site:
        site.platform.faults.push("create", "503")
        message, reason = await refused(site, within=BOUND)
        failure = await site.until_told("platform_failure", what="create a dyno of tools")
    assert reason == "launch_failed"
    assert "puppet: the platform does not answer: API is unavailable" in message
    assert message.endswith("; no dyno came of it")
    assert failure["advice"].startswith("See the platform's status page")
    assert site.platform.ledger == []


# -- no room ---------------------------------------------------------------------------------------

WAITING = "waiting for a dyno, number 1 of 1 in line"


async def test_at_the_dyno_limit_calls_wait_in_a_line_that_is_seen_and_bounded(
    tmp_path: Path, running: list[GatewayProcess]
) -> None:
    app = AppSpec({"mcp-puppet": PUPPET}, config={"PATH": PATH}, dyno_limit=1)
    entry: dict[str, Any] = {"app": "tight", "process_type": "mcp-puppet", "era": "legacy"}
    entry |= {"translate": False}  # one throw-away run: it needs the room, too
    settings = {"QUEUE_LENGTH": "1"}
    async with (
        deployed(
            tmp_path, running, {"tight": app}, servers={"puppet": entry}, settings=settings
        ) as site,
        visiting(site, "puppet") as first,
        visiting(site, "puppet") as second,
        visiting(site, "puppet") as third,
    ):
        await site.until_told("learned", server="puppet")
        await site.until_gone()
        for visitor in (first, second, third):
            await visitor.open()
        assert "result" in await first.call(1, "state")
        wanting = calling(1, "state")
        wanting["params"]["_meta"] = {"progressToken": "p"}
        async with second.posting(wanting) as response:
            stream = Stream(response)
            told = [(await stream.next()).message]
            while told[-1]["params"]["message"] != WAITING:
                told.append((await stream.next()).message)

            async def in_line() -> bool:
                return [place["position"] for place in await site.ask("queue")] == [1]

            await site.until(in_line, "operators see the line")
            async with third.posting(calling(1, "state")) as refused:
                assert refused.status == 503
                assert refused.headers["Retry-After"] == "30"
                assert refusal(await refused.json())[1] == "queue_full"
            assert len(site.platform.dynos_left()) == 1
            await first.leave()
            *_, answer = await stream.rest()
        assert "result" in answer
        assert await site.ask("queue") == []
