"""Whatever ends, the others notice: calls are answered or continued, no process is left behind.

Signals to a real gateway, its agents and their children. The numbers are bounds, not measurements:
each is a promise made elsewhere with room for a busy machine.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.conftest import GatewayProcess, is_alive
from tests.system.talking import (
    BOUND,
    PLAIN,
    PUPPET,
    RESUMES,
    Stream,
    http_for,
    open_session,
    parent_of,
    refusal,
    the_message,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from tests.system.conftest import GatewayProcess as _Gateway

    Way = Callable[[_Gateway], Awaitable[None]]

pytestmark = pytest.mark.timeout(120)

EXIT_BOUND = 25.0
"""Seconds from SIGTERM to the exit; the platform kills after 30."""

HAND_OVER_BOUND = 15.0
"""The same when nobody has to be waited for: below the 20 s that calls of others may take."""

DRAIN_BOUND = 28.0
"""The same when such a call is waited for to the last."""

GRACE = 2
"""Seconds that an agent looks for a gateway where a test waits for its end."""

STAYER = """
import json, os, sys, time

for line in sys.stdin:
    message = json.loads(line)
    result = {"protocolVersion": "2025-11-25", "capabilities": {}, "pid": os.getpid()}
    if "id" in message:
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)

time.sleep(600)
"""
"""A child that outlives its stdin."""

STUBBORN = {
    "command": sys.executable,
    "args": ["-c", f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{STAYER}"],
}
"""One that neither the end of its stdin nor SIGTERM ends."""

SILENT = {"command": sys.executable, "args": ["-c", "import sys; sys.stdin.read()"]}
"""A child that never answers, so that its session never boots."""


@dataclass(frozen=True)
class End:
    """A way to end a gateway after which nobody continues its sessions."""

    number: signal.Signals
    settings: Mapping[str, str]


ENDS = {
    "sigterm-without-a-secret": End(signal.SIGTERM, {"GATEWAY_SECRET": ""}),
    "sigint-with-a-secret": End(signal.SIGINT, {}),
}


@pytest.fixture(params=ENDS.values(), ids=list(ENDS))
def end(request: pytest.FixtureRequest) -> End:
    found: End = request.param
    return found


async def handed_over(gateway: GatewayProcess) -> None:
    await gateway.stop(signal.SIGTERM, within=HAND_OVER_BOUND)


async def killed(gateway: GatewayProcess) -> None:
    await gateway.kill()


WAYS = {"handed-over": handed_over, "killed": killed}


@pytest.fixture(params=WAYS.values(), ids=list(WAYS))
def leave(request: pytest.FixtureRequest) -> Way:
    """How a gateway goes whose sessions live on."""
    found: Way = request.param
    return found


# -- an end for all: SIGTERM without a secret, SIGINT ---------------------------------------------


async def test_end_with_open_sessions_exits_0_in_time_and_leaves_nothing(
    make_gateway: Callable[..., GatewayProcess], end: End
) -> None:
    async with make_gateway({"puppet": PUPPET}, end.settings) as gateway, http_for(gateway) as http:
        for _ in range(2):
            await open_session(http, gateway)
        assert len(gateway.processes()) == 4
        await gateway.stop(end.number, within=EXIT_BOUND)
        await gateway.until(lambda: not gateway.processes(), "nothing is left")


async def test_end_answers_a_running_call_with_the_advice_to_initialize_again(
    make_gateway: Callable[..., GatewayProcess], end: End
) -> None:
    async with make_gateway({"puppet": PUPPET}, end.settings) as gateway, http_for(gateway) as http:
        talk = await open_session(http, gateway, PLAIN)
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:

            async def hold() -> tuple[int, Any]:
                async with talk.calling(1, "hold") as response:
                    return response.status, await response.json()

            running = group.create_task(hold())
            await talk.until_held(1)
            await gateway.stop(end.number, within=EXIT_BOUND)
        status, message = running.result()
        assert (status, refusal(message)) == (502, (-32603, "session_ended", 1))
        assert "initialize" in message["error"]["message"]


@pytest.mark.parametrize("revision", [RESUMES, PLAIN])
async def test_end_answers_a_call_that_has_become_an_event_stream_and_ends_it(
    make_gateway: Callable[..., GatewayProcess], end: End, revision: str
) -> None:
    async with make_gateway({"puppet": PUPPET}, end.settings) as gateway, http_for(gateway) as http:
        talk = await open_session(http, gateway, revision)
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:

            async def hold() -> list[Any]:
                async with talk.calling(1, "hold") as response:
                    assert response.content_type == "text/event-stream"
                    return await Stream(response).rest()

            running = group.create_task(hold())
            await talk.until_held(1)
            await talk.call(2, "step", id=1, count=1)
            await gateway.stop(end.number, within=EXIT_BOUND)
        progress, error = running.result()
        assert progress["method"] == "notifications/progress"
        assert refusal(error) == (-32603, "session_ended", 1)


async def test_end_ends_the_get_stream_cleanly(
    make_gateway: Callable[..., GatewayProcess], end: End
) -> None:
    """A cut chunked body would raise; a clean end is an empty rest."""
    async with make_gateway({"puppet": PUPPET}, end.settings) as gateway, http_for(gateway) as http:
        talk = await open_session(http, gateway)
        async with talk.listening() as stream:
            await gateway.stop(end.number, within=EXIT_BOUND)
            assert await stream.rest() == []


async def test_end_is_not_held_up_by_a_child_that_ignores_it(
    make_gateway: Callable[..., GatewayProcess], end: End
) -> None:
    servers = {"stubborn": STUBBORN}
    async with make_gateway(servers, end.settings) as gateway, http_for(gateway) as h:
        await open_session(h, gateway)
        await gateway.stop(end.number, within=EXIT_BOUND)
        await gateway.until(lambda: not gateway.processes(), "nothing is left")


# -- a hand-over: SIGTERM with a secret ------------------------------------------------------------


async def test_hand_over_exits_0_without_waiting_and_leaves_agent_and_child_as_they_are(
    make_gateway: Callable[..., GatewayProcess],
) -> None:
    async with make_gateway({"puppet": PUPPET}) as gateway, http_for(gateway) as http:
        talk = await open_session(http, gateway)
        child = await talk.child(1)
        agent = parent_of(child)
        async with talk.calling(2, "hold"):
            await talk.until_held(2)
            await gateway.stop(signal.SIGTERM, within=HAND_OVER_BOUND)
        await gateway.restart()
        assert (await talk.child(3), parent_of(child)) == (child, agent)
        assert is_alive(agent)


@pytest.mark.usefixtures("measured")
async def test_running_call_continues_at_the_next_process_after_its_last_event(
    make_gateway: Callable[..., GatewayProcess],
) -> None:
    async with make_gateway({"puppet": PUPPET}) as gateway, http_for(gateway) as http:
        talk = await open_session(http, gateway)
        async with talk.calling(1, "hold") as response:
            stream = Stream(response)
            await talk.until_held(1)
            await talk.call(2, "step", id=1, count=1)
            (seen,) = await stream.take(1)
            await gateway.stop(signal.SIGTERM, within=HAND_OVER_BOUND)
            assert await stream.rest() == []
        await gateway.restart()
        async with talk.listening(after=seen.identity) as stream:
            await talk.call(3, "step", id=1, count=1)
            await talk.call(4, "release")
            progress, answer = await stream.rest()
        assert progress["params"]["progress"] == 2
        assert (answer["id"], answer["result"]) == (1, {"released": 1})


async def test_hand_over_ends_the_get_stream_cleanly(
    make_gateway: Callable[..., GatewayProcess],
) -> None:
    async with make_gateway({"puppet": PUPPET}) as gateway, http_for(gateway) as http:
        talk = await open_session(http, gateway)
        async with talk.listening() as stream:
            await gateway.stop(signal.SIGTERM, within=HAND_OVER_BOUND)
            assert await stream.rest() == []


async def test_call_of_an_older_revision_that_ends_during_the_drain_is_answered_normally(
    make_gateway: Callable[..., GatewayProcess], tmp_path: Path
) -> None:
    told = tmp_path / "told"
    async with make_gateway({"puppet": PUPPET}) as gateway, http_for(gateway) as http:
        talk = await open_session(http, gateway, PLAIN)
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            running = group.create_task(talk.call(1, "until", file=str(told)))
            await talk.until_held(1)
            gateway.process.send_signal(signal.SIGTERM)
            await gateway.until(lambda: draining(gateway), "the drain begins")
            told.touch()
        assert running.result() == {"jsonrpc": "2.0", "id": 1, "result": {"found": True}}
        await gateway.stop(signal.SIGTERM, within=HAND_OVER_BOUND)


async def test_request_on_an_open_connection_during_the_drain_is_told_to_come_again(
    make_gateway: Callable[..., GatewayProcess], tmp_path: Path
) -> None:
    told = tmp_path / "told"
    async with make_gateway({"puppet": PUPPET}) as gateway, http_for(gateway) as http:
        talk = await open_session(http, gateway, PLAIN)
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            group.create_task(talk.call(1, "until", file=str(told)))
            await talk.until_held(1)
            gateway.process.send_signal(signal.SIGTERM)
            await gateway.until(lambda: draining(gateway), "the drain begins")
            async with talk.calling(2, "state") as response:  # on the connection of until_held
                status, again = response.status, response.headers["Retry-After"]
                message = await response.json()
            told.touch()
        await gateway.stop(signal.SIGTERM, within=HAND_OVER_BOUND)
        assert (status, refusal(message)) == (503, (-32603, "restarting", 2))
        assert int(again) > 0


async def test_call_of_an_older_revision_that_outlasts_the_drain_is_told_to_be_sent_again(
    make_gateway: Callable[..., GatewayProcess],
) -> None:
    """Sent again, it is not made again: the child still holds the first one."""
    async with make_gateway({"puppet": PUPPET}) as gateway, http_for(gateway) as http:
        talk = await open_session(http, gateway, PLAIN)

        async def hold() -> Any:
            async with talk.calling(1, "hold") as response:
                return await the_message(response)

        async with asyncio.timeout(2 * BOUND), asyncio.TaskGroup() as group:
            running = group.create_task(hold())
            await talk.until_held(1)
            await gateway.stop(signal.SIGTERM, within=DRAIN_BOUND)
        assert refusal(running.result()) == (-32603, "restarting", 1)
        assert "again" in running.result()["error"]["message"]
        await gateway.restart()
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            again = group.create_task(hold())
            released = await talk.call(2, "release")
        assert released["result"] == {"released": [1]}
        assert again.result() == {"jsonrpc": "2.0", "id": 1, "result": {"released": 1}}


def draining(gateway: GatewayProcess) -> bool:
    return any(record["event"] == "draining" for record in gateway.records())


async def test_hand_over_ends_a_session_that_has_not_booted(
    make_gateway: Callable[..., GatewayProcess],
) -> None:
    """Nobody else knows its join token, and its client has no key for it."""
    async with make_gateway({"silent": SILENT}) as gateway, http_for(gateway) as http:
        params = {"protocolVersion": RESUMES, "capabilities": {}}
        body = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}

        async def initialize() -> Any:
            async with http.post(gateway.url(), json=body) as response:
                return await the_message(response)

        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            waiting = group.create_task(initialize())
            await gateway.until(lambda: "ready" in told_of(gateway), "the child runs")
            await gateway.stop(signal.SIGTERM, within=EXIT_BOUND)
        assert refusal(waiting.result()) == (-32603, "session_ended", 0)
        await gateway.until(lambda: not gateway.processes(), "nothing is left")


def told_of(gateway: GatewayProcess) -> list[str]:
    return [record["event"] for record in gateway.records()]


# -- after the gateway ---------------------------------------------------------------------------


async def test_agent_and_child_go_when_no_gateway_comes_back_in_time(
    make_gateway: Callable[..., GatewayProcess], leave: Way
) -> None:
    settings = {"LINK_GRACE_S": str(GRACE)}
    async with make_gateway({"puppet": PUPPET}, settings) as gateway, http_for(gateway) as http:
        await open_session(http, gateway)
        assert len(gateway.processes()) == 2
        await leave(gateway)
        await gateway.until(lambda: not gateway.processes(), "both go", within=BOUND)


async def test_delete_at_the_next_process_stops_the_dyno_it_has_taken_over(
    make_gateway: Callable[..., GatewayProcess], leave: Way
) -> None:
    async with make_gateway({"puppet": PUPPET}) as gateway, http_for(gateway) as http:
        talk = await open_session(http, gateway)
        assert len(gateway.processes()) == 2
        await leave(gateway)
        await gateway.restart()
        async with http.delete(gateway.url(), headers=talk.headers) as response:
            assert response.status == 204
        await gateway.until(lambda: not gateway.processes(), "agent and child are gone")


async def test_sigint_of_the_next_process_stops_the_dynos_it_has_taken_over(
    make_gateway: Callable[..., GatewayProcess], leave: Way
) -> None:
    async with make_gateway({"puppet": PUPPET}) as gateway, http_for(gateway) as http:
        talk = await open_session(http, gateway)
        await leave(gateway)
        await gateway.restart()
        assert is_alive(await talk.child(1))
        await gateway.stop(signal.SIGINT, within=EXIT_BOUND)
        await gateway.until(lambda: not gateway.processes(), "agent and child are gone")


# -- the end of an agent --------------------------------------------------------------------------


async def test_call_of_an_agent_that_was_killed_is_answered_with_an_error(
    make_gateway: Callable[..., GatewayProcess],
) -> None:
    async with make_gateway({"puppet": PUPPET}) as gateway, http_for(gateway) as http:
        talk = await open_session(http, gateway, PLAIN)
        agent = parent_of(await talk.child(1))
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:

            async def hold() -> tuple[int, Any]:
                async with talk.calling(2, "hold") as response:
                    return response.status, await response.json()

            running = group.create_task(hold())
            await talk.until_held(2)
            agent.kill()
        closings = [r for r in gateway.story(talk.session) if r["event"] == "closing"]
        assert [closing["reason"] for closing in closings] == ["link_lost"]
        status, message = running.result()
        assert (status, refusal(message)) == (502, (-32603, "link_lost", 2))


async def test_child_of_an_agent_that_was_killed_is_gone_too(
    make_gateway: Callable[..., GatewayProcess],
) -> None:
    """The end of its stdin would not do: only the death of its parent ends this one."""
    server = {"command": sys.executable, "args": ["-c", STAYER]}
    async with make_gateway({"stayer": server}) as gateway, http_for(gateway) as http:
        child = await (await open_session(http, gateway)).child(1)
        parent_of(child).kill()
        await gateway.until(lambda: not is_alive(child), "the child is gone")


async def test_session_of_an_agent_that_was_killed_leaves_the_others_alone(
    make_gateway: Callable[..., GatewayProcess],
) -> None:
    async with make_gateway({"puppet": PUPPET}) as gateway, http_for(gateway) as http:
        talk, bystander = [await open_session(http, gateway) for _ in range(2)]
        parent_of(await talk.child(1)).kill()

        async def closed() -> bool:
            return bool((await gateway.health())["sessions"] == 1)

        await gateway.until(closed, "one session is left")
        assert is_alive(await bystander.child(1))


# -- a child that will not go -------------------------------------------------------------------


async def test_child_that_ignores_eof_and_sigterm_is_gone_after_delete(
    make_gateway: Callable[..., GatewayProcess],
) -> None:
    async with make_gateway({"stubborn": STUBBORN}) as gateway, http_for(gateway) as http:
        talk = await open_session(http, gateway)
        before = gateway.processes()
        assert len(before) == 2
        async with http.delete(gateway.url(), headers=talk.headers) as response:
            assert response.status == 204
        await gateway.until(lambda: not gateway.processes(), "agent and child are gone")
