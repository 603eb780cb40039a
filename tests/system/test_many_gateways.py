"""Three gateways behind a router without stickiness, as a user meets them.

Real processes, a real engine, unmodified clients. Those tests that take something away come last,
and put it back.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from mcp import Client
from mcp.client.sse import sse_client

from tests.fakes import inference
from tests.system.conftest import PLAIN as AT_ONCE
from tests.system.conftest import REPOSITORY, is_alive
from tests.system.eras import WAYS, converse
from tests.system.many import claim_of, town
from tests.system.python_sdk import Progress, call, connected, text_of
from tests.system.talking import (
    BOUND,
    PLAIN,
    PUPPET,
    RESUMES,
    Stream,
    Talk,
    http_for,
    open_session,
    refusal,
    the_message,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    import aiohttp

    from tests.system.conftest import GatewayProcess
    from tests.system.many import Door, Town

pytestmark = [
    pytest.mark.timeout(300),  # the first test may have to wait for `npm install`
    pytest.mark.asyncio(loop_scope="module"),  # the router runs in it
    pytest.mark.xdist_group("many_gateways"),
]

DUAL = REPOSITORY / "tests" / "fixtures" / "conformance_server.py"

CODE_EXEC = {
    "command": sys.executable,
    "args": ["-m", "mcp_servers.code_exec"],
    "env": {"PYTHONPATH": str(REPOSITORY)},
    "era": "dual",
    "catalogue": True,
}

MODES = ["legacy", "2026-07-28"]

BACK_BOUND = 40.0
"""Seconds until all is well again after something was taken away; evicted keys take up to 30."""

BOOTED_BOUND = 30.0
"""Seconds until a dyno is parked, or an agent has dialled, on a busy machine."""

LINK = "/agent/v1/link"

INITIALIZE = {
    "protocolVersion": RESUMES,
    "capabilities": {},
    "clientInfo": {"name": "adopts", "version": "1"},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def model() -> AsyncIterator[inference.Inference]:
    """The model behind all of them."""
    async with inference.playing() as played:
        yield played


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def city(
    tmp_path_factory: pytest.TempPathFactory,
    running: list[GatewayProcess],
    fixture_server: dict[str, Any],
    model: inference.Inference,
) -> AsyncIterator[Town]:
    """Three gateways; the default server is the puppet, which boots when a session opens."""
    servers = {
        "puppet": {**PUPPET, "default": True},
        "everything": {**fixture_server, "era": "dual"},
        "dual": {"command": sys.executable, "args": [str(DUAL)], "era": "dual"},
        "code": CODE_EXEC,
        "warm": {**PUPPET, "warm": 1},
    }
    folder = tmp_path_factory.mktemp("many")
    asks = {"INFERENCE_URL": model.url, "INFERENCE_KEY": inference.KEY}
    async with town(folder, servers, running, defaults=AT_ONCE, settings=asks) as built:
        yield built


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def complete(city: Town) -> AsyncIterator[None]:
    """A test that fails leaves no gateway out for the next one."""
    yield
    for door in city.doors:
        if door.gone():
            await door.restart()


@pytest_asyncio.fixture(loop_scope="module")
async def http(city: Town) -> AsyncIterator[aiohttp.ClientSession]:
    async with http_for(city.front) as session:
        yield session


def at(talk: Talk, door: Door) -> Talk:
    """The same session, asked for at one gateway rather than through the router."""
    return Talk(talk.http, door, talk.session, talk.revision)


async def opened(city: Town, http: aiohttp.ClientSession, revision: str = RESUMES) -> Talk:
    """A session whose child runs."""
    talk = await open_session(http, city.front, revision)
    await talk.state(1)
    return talk


async def owner_and_others(city: Town, talk: Talk) -> tuple[Door, list[Door]]:
    owner = await city.owner(talk.session)
    return owner, [door for door in city.doors if door is not owner]


@contextmanager
def agents_dial(city: Town, *doors: Door) -> Iterator[None]:
    """Let the router know these gateways only, as luck could have it for a while."""
    backends = city.router.backends
    city.router.backends = [door.port for door in doors]
    try:
        yield
    finally:
        city.router.backends = backends


def told(city: Town, event: str) -> list[dict[str, Any]]:
    """What the gateways have logged of a kind."""
    return [record for record in city.front.records() if record.get("event") == event]


async def outcome(talk: Talk, request: int) -> tuple[int, str | None, str]:
    """Status of a call, when to come again, and what for."""
    async with talk.calling(request, "state") as response:
        message = await the_message(response)
        reason = "" if "result" in message else refusal(message)[1]
        return response.status, response.headers.get("Retry-After"), reason


async def until_answered(city: Town, *talks: Talk) -> None:
    """Ask again and again; the session may be away for a while, and must never be denied."""
    numbers = itertools.count(10_000)

    async def answered() -> bool:
        seen = [await outcome(talk, next(numbers)) for talk in talks]
        assert not [one for one in seen if one[0] == 404], seen
        return all(status == 200 for status, _, _ in seen)

    await city.front.until(answered, "the sessions answer", within=BACK_BOUND)


# -- while all is well ---------------------------------------------------------------------------


@pytest.mark.usefixtures("node_modules")
@pytest.mark.parametrize("way", ["python-legacy", "python-auto", "typescript-legacy", "sse"])
async def test_client_does_everything_through_the_router(city: Town, node: Path, way: str) -> None:
    seen = await converse(city.front, "dual", way, node)
    assert seen.revision == WAYS[way].revision
    assert seen.text == "This is a simple text response for testing."
    assert seen.progress == [0, 50, 100]
    assert "Ada" in seen.person
    assert seen.model == "LLM response: Paris"


@pytest.mark.parametrize("mode", MODES)
async def test_first_call_hears_of_the_boot_and_follows_its_session_to_another_gateway(
    city: Town, mode: str
) -> None:
    here, there, _ = city.doors
    before, progress = len(told(city, "handed_over")), Progress()
    place = "code" if mode == "legacy" else "code/handles/first-call"
    with agents_dial(city, there):
        async with connected(here, place, mode=mode) as client:
            arguments = {"code": "print(6 * 7)"}
            result = await client.call_tool(
                "code_exec_python", arguments, progress_callback=progress
            )
    assert result.structured_content is not None
    assert result.structured_content["result"]["stdout"].strip() == "42"
    assert "the dyno boots" in progress.of_the_boot
    assert progress.steps == sorted(set(progress.steps))
    assert len(told(city, "handed_over")) > before


async def test_session_is_served_by_every_gateway(city: Town, http: aiohttp.ClientSession) -> None:
    talk = await opened(city, http)
    pids = {(await at(talk, door).state(2 + n))["pid"] for n, door in enumerate(city.doors)}
    assert len(pids) == 1


async def test_large_messages_pass_whole_through_a_gateway_that_does_not_own_the_session(
    city: Town, http: aiohttp.ClientSession
) -> None:
    talk = await opened(city, http)
    _, (other, _) = await owner_and_others(city, talk)
    padding = "0123456789abcdef" * 60_000
    heard = await at(talk, other).call(2, "size", padding=padding)
    assert len(padding) < heard["result"]["size"] < len(padding) + 1000
    answer = await at(talk, other).call(3, "big", bytes=5_000_000)
    assert answer["result"] == {"text": "x" * 5_000_000}


async def test_stream_that_broke_at_one_gateway_is_continued_at_another(
    city: Town, http: aiohttp.ClientSession
) -> None:
    talk = await opened(city, http)
    owner, (one, other) = await owner_and_others(city, talk)
    async with at(talk, one).calling(5, "hold") as response:
        await talk.until_held(5)
        await talk.call(6, "step", id=5, count=2)
        seen = await Stream(response).take(2)
    await talk.call(7, "step", id=5, count=1)
    await at(talk, owner).call(8, "release")
    async with at(talk, other).listening(after=seen[0].identity) as stream:
        messages = await stream.rest()
    assert [one["params"]["progress"] for one in messages[:-1]] == [2, 3]
    assert messages[-1]["result"] == {"released": 5}


async def test_agent_of_a_session_with_http_and_sse_finds_the_gateway_of_its_client(
    city: Town,
) -> None:
    here, *others = city.doors

    def refused() -> int:
        return sum(one["status"] == 421 for one in told(city, "refused") if one["path"] == LINK)

    before = refused()
    url = f"{here.origin}/servers/everything/sse"
    async with asyncio.timeout(2 * BOUND), asyncio.TaskGroup() as group:

        async def talks() -> str:
            transport = sse_client(url, headers=city.front.headers, timeout=2 * BOUND)
            async with Client(transport, mode="legacy") as client:
                return await call(client, "echo", text="found")

        with agents_dial(city, *others):
            talking = group.create_task(talks())
            await city.front.until(lambda: refused() > before, "refused", within=BOOTED_BOUND)
    assert talking.result() == "found"


# -- several servers, and agents -------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
async def test_toolkit_answers_at_any_gateway_wherever_its_servers_dial(
    city: Town, mode: str
) -> None:
    async with connected(city.front, path="/toolkit/mcp", mode=mode) as client:
        names = [tool.name for tool in (await client.list_tools()).tools]
        assert names == ["code/code_exec_python"]
        for number in range(6):
            result = await client.call_tool(names[0], {"code": f"print({number})"})
            assert json.loads(text_of(result))["stdout"] == str(number)


async def test_toolkit_over_sse_answers_at_any_gateway(city: Town) -> None:
    url = f"{city.front.origin}/mcp/sse"
    async with (
        asyncio.timeout(BOUND),
        Client(sse_client(url, headers=city.front.headers), mode="legacy") as client,
    ):
        await client.list_tools()
        result = await client.call_tool("code/code_exec_python", {"code": "print(7)"})
        assert json.loads(text_of(result))["stdout"] == "7"


async def test_agents_run_goes_on_wherever_its_dynos_dial(
    city: Town, http: aiohttp.ClientSession, model: inference.Inference
) -> None:
    tool = {"type": "mcp", "name": "code_exec_python"}
    question = {"messages": [{"role": "user", "content": "?"}], "model": "m", "tools": [tool]}
    for _ in city.doors:
        wants = inference.call("code__code_exec_python", {"code": "print(6 * 7)"})
        model.script.extend([inference.calls(wants), inference.says("done")])
        async with (
            asyncio.timeout(BOUND),
            http.post(f"{city.front.origin}/v1/agents/heroku", json=question) as response,
        ):
            told = await response.text()
        assert response.status == 200, told
        assert told.replace("\\", "").count('"stdout": "42"') == 1, told
        assert told.endswith("event:done\ndata:[DONE]\n\n")


# -- the pool --------------------------------------------------------------------------------------


async def the_parked(city: Town) -> str:
    """Return the launch of the one dyno that all gateways know to be parked."""
    found: list[str] = []

    async def one() -> bool:
        pools = [await city.pool(door) for door in city.doors if not door.gone()]
        assert all(len(pool) <= 1 for pool in pools), pools
        ready = [each["launch"] for pool in pools for each in pool if each["state"] == "parked"]
        found[:] = ready
        return len(ready) == len(pools) and len(set(ready)) == 1

    await city.front.until(one, "one dyno is parked", within=BOOTED_BOUND)
    return found[0]


async def adopted_by(door: Door, http: aiohttp.ClientSession, city: Town) -> list[str]:
    """Open a session with the warm server at a gateway; return the launches adopted for it."""
    body = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": INITIALIZE}
    async with http.post(door.url("warm"), json=body) as response:
        assert response.status == 200, await response.text()
        session = response.headers["Mcp-Session-Id"]
    story = city.front.story(session)
    return [one["launch"] for one in story if one.get("event") == "adopted"]


@pytest.mark.parametrize("door", [0, 1, 2])
async def test_the_one_parked_dyno_is_adopted_through_any_gateway(
    city: Town, http: aiohttp.ClientSession, door: int
) -> None:
    launch = await the_parked(city)
    assert await adopted_by(city.doors[door], http, city) == [launch]


async def test_parked_dyno_outlives_the_gateway_at_which_it_stands(
    city: Town, http: aiohttp.ClientSession
) -> None:
    launch = await the_parked(city)
    holder = await city.stands_at(launch)
    await holder.stop(signal.SIGTERM)
    assert await the_parked(city) == launch
    others = [door for door in city.doors if door is not holder]
    assert await adopted_by(others[0], http, city) == [launch]
    await holder.restart()


# -- when gateways leave ---------------------------------------------------------------------------


async def keep_calling(client: Client, begun: asyncio.Event, over: asyncio.Event) -> None:
    """Make calls of all lengths until it is over; all have to be answered."""
    made = 0
    while not over.is_set():
        progress = Progress()
        arguments = {"steps": 3, "seconds": 0.1 * (made % 3)}
        result = await client.call_tool("slow", arguments, progress_callback=progress)
        assert text_of(result) == "3 steps"
        assert progress.of_the_server == [1, 2, 3]
        made += 1
        begun.set()


async def test_rolling_restart_fails_no_call_of_a_client_that_comes_back(city: Town) -> None:
    over, begun = asyncio.Event(), [asyncio.Event(), asyncio.Event()]

    async def calls(mine: asyncio.Event) -> None:
        async with connected(city.front, "everything", bound=4 * BOUND) as client:
            await keep_calling(client, mine, over)

    async with asyncio.TaskGroup() as group:
        for mine in begun:
            group.create_task(calls(mine))
        for mine in begun:
            await mine.wait()
        for door in city.doors:
            await door.stop(signal.SIGTERM)
            await door.restart()
        over.set()


async def test_ctrl_c_ends_the_sessions_of_its_own_gateway_only(
    city: Town, http: aiohttp.ClientSession
) -> None:
    here, there, _ = city.doors
    with agents_dial(city, here):
        mine = await opened(city, http)
    with agents_dial(city, there):
        another = await opened(city, http)
    children = [await talk.child(2) for talk in (mine, another)]
    await here.stop(signal.SIGINT)
    assert [is_alive(child) for child in children] == [False, True]
    assert (await outcome(mine, 3))[::2] == (404, "unknown_session")
    assert (await outcome(another, 3))[0] == 200
    await here.restart()


async def test_sessions_and_bills_outlive_all_gateways_killed_at_once(
    city: Town, http: aiohttp.ClientSession
) -> None:
    lives, dies = await opened(city, http), await opened(city, http)
    child = await lives.child(2)
    async with http.delete(city.front.url(), headers=dies.headers) as response:
        assert response.status == 204
    name = f"s-{claim_of(dies.session).rpartition('/')[2][:12]}"

    async def billed() -> list[Any]:
        ledgers = [await city.ledger(door) for door in city.doors]
        return [one for ledger in ledgers for one in ledger["bills"] if one["session"] == name]

    async def known() -> bool:
        return len(await billed()) == len(city.doors)

    await city.front.until(known, "the bill is known everywhere", within=BOOTED_BOUND)
    before = await billed()
    for door in city.doors:
        await door.kill()
    await city.open()
    await until_answered(city, lives)
    assert await lives.child(3) == child
    assert await billed() == before


# -- when the engine is in trouble ---------------------------------------------------------------


async def test_session_that_is_all_at_one_gateway_goes_on_while_the_engine_is_paused(
    city: Town, http: aiohttp.ClientSession
) -> None:
    talk = await opened(city, http)
    owner, (other, _) = await owner_and_others(city, talk)
    numbers = itertools.count(100)
    city.engine.pause()
    try:

        async def away() -> bool:
            assert (await outcome(at(talk, owner), next(numbers)))[0] == 200
            refused = await outcome(at(talk, other), next(numbers))
            assert refused == (503, "2", "store_unavailable")
            status, health = await other.look()
            return (status, health["status"]) == (503, "store_away")

        await city.front.until(away, "/health says that it is away", within=BACK_BOUND)
        assert (await outcome(at(talk, owner), next(numbers)))[0] == 200
    finally:
        city.engine.resume()

    async def healthy() -> bool:
        return {(await door.look())[0] for door in city.doors} == {200}

    await city.front.until(healthy, "all is well again", within=BACK_BOUND)
    await until_answered(city, *(at(talk, door) for door in city.doors))


async def claim(_city: Town, talk: Talk) -> list[str]:
    return [claim_of(talk.session)]


async def presence(city: Town, talk: Talk) -> list[str]:
    return [f"rdv:gw:{await (await city.owner(talk.session)).identity()}"]


async def inboxes(city: Town, _talk: Talk) -> list[str]:
    return [str(key) for key in await city.redis.keys("rdv:in:*")]


async def leaders(city: Town, _talk: Talk) -> list[str]:
    return [str(key) for key in await city.redis.keys("rdv:claim:lead/*")]


async def everything(city: Town, _talk: Talk) -> list[str]:
    return [str(key) for key in await city.redis.keys("*")]


@pytest.mark.parametrize(
    "evicted", [claim, presence, inboxes, leaders, everything], ids=lambda keys: keys.__name__
)
async def test_session_is_served_after_the_engine_has_evicted(
    city: Town, http: aiohttp.ClientSession, evicted: Any
) -> None:
    talk = await opened(city, http, PLAIN)
    child = await talk.child(2)
    _, others = await owner_and_others(city, talk)
    assert await city.redis.delete(*await evicted(city, talk))
    await until_answered(city, *(at(talk, door) for door in others))
    assert await at(talk, others[0]).child(3) == child


async def test_ledger_is_written_again_after_the_engine_has_evicted_it(
    city: Town, http: aiohttp.ClientSession
) -> None:
    talk = await opened(city, http)
    name = f"s-{claim_of(talk.session).rpartition('/')[2][:12]}"

    async def known() -> bool:
        ledgers = [await city.ledger(door) for door in city.doors]
        return all(name in {entry["session"] for entry in each["running"]} for each in ledgers)

    await city.front.until(known, "every gateway knows what the session costs", within=BACK_BOUND)
    before = (await city.ledger(city.doors[0]))["bills"]
    keys = [key async for key in city.redis.scan_iter("rdv:table:ledger*")]
    assert await city.redis.delete(*keys)

    async def written() -> bool:
        return await city.redis.exists("rdv:table:ledger", "rdv:table:ledger:rows") == 2

    await city.front.until(written, "the ledger is written again", within=BACK_BOUND)
    await city.front.until(known, "every gateway knows it again", within=BACK_BOUND)
    for door in city.doors:
        assert (await city.ledger(door))["bills"] == before
