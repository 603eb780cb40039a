"""Whatever is killed, the others notice: calls are answered, streams end, no process is left.

Signals to a real gateway, its agents and their children. The numbers are bounds, not measurements:
each is a promise made elsewhere with room for a busy machine.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
import psutil
import pytest

from tests.system.conftest import GatewayProcess, is_alive

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

pytestmark = pytest.mark.timeout(120)

BOUND = 40.0
"""Seconds for one exchange, a boot on a busy machine included."""

EXIT_BOUND = 25.0
"""Seconds from SIGTERM to the exit; the platform kills after 30."""

ORPHAN_BOUND = 25.0
"""Seconds for an agent without a gateway to go: the local launcher's 10, and the kill ladder."""

HOLDER = """
import json, os, sys, time

held = 0

def say(message):
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\\n")
    sys.stdout.flush()

for line in sys.stdin:
    message = json.loads(line)
    name = (message.get("params") or {}).get("name")
    if message["method"] == "initialize":
        info = {"name": "holder", "version": "1"}
        result = {"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": info}
        say({"id": message["id"], "result": result})
    elif name == "hold":
        held += 1
    elif name == "hold_with_progress":
        held += 1
        step = {"progressToken": message["params"]["_meta"]["progressToken"], "progress": 1}
        say({"method": "notifications/progress", "params": step})
    elif "id" in message:
        say({"id": message["id"], "result": {"pid": os.getpid(), "held": held}})

while "STAY" in os.environ:
    time.sleep(600)
"""
"""A child that never answers a call it was told to hold, and with STAY outlives its stdin."""

HOLDER_SERVER = {"command": sys.executable, "args": ["-c", HOLDER]}


@dataclass(frozen=True)
class Talk:
    """One session and how to speak in it."""

    http: aiohttp.ClientSession
    gateway: GatewayProcess
    session: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Mcp-Session-Id": self.session, "MCP-Protocol-Version": "2025-11-25"}

    async def call(self, request_id: int, tool: str, **arguments: Any) -> tuple[int, bytes]:
        """Send a call, its id as progress token; return status and body."""
        params = {"name": tool, "arguments": arguments, "_meta": {"progressToken": request_id}}
        body = {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params}
        async with self.http.post(self.gateway.url(), json=body, headers=self.headers) as response:
            return response.status, await response.read()

    async def state(self, request_id: int) -> Any:
        _, body = await self.call(request_id, "state")
        return json.loads(body)["result"]

    async def child(self, request_id: int) -> psutil.Process:
        return psutil.Process((await self.state(request_id))["pid"])

    async def until_held(self, count: int) -> None:
        """Wait until the child holds so many calls."""
        numbers = iter(range(1000, 2000))

        async def enough() -> bool:
            return bool((await self.state(next(numbers)))["held"] == count)

        await self.gateway.until(enough, f"{count} calls reach the child")

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[aiohttp.ClientResponse]:
        """Open the GET stream, so far that it is the session's."""
        async with self.http.get(self.gateway.url(), headers=self.headers) as response:
            assert response.status == 200
            async with asyncio.timeout(BOUND):
                assert await response.content.readuntil(b"\n\n") == b": keep-alive\n\n"
            yield response


@asynccontextmanager
async def http_for(gateway: GatewayProcess) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {**gateway.headers, "Accept": "application/json, text/event-stream"}
    timeout = aiohttp.ClientTimeout(total=BOUND)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        yield session


async def open_session(http: aiohttp.ClientSession, gateway: GatewayProcess) -> Talk:
    info = {"name": "shutdown", "version": "1"}
    params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": info}
    body = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
    async with http.post(gateway.url(), json=body) as response:
        assert response.status == 200, await response.text()
        return Talk(http, gateway, response.headers["Mcp-Session-Id"])


def parent_of(child: psutil.Process) -> psutil.Process:
    parent = child.parent()
    assert parent is not None
    return parent


def refusal(document: Any) -> tuple[int, str, Any]:
    """Code, reason and id of an error response."""
    error = document["error"]
    return error["code"], error["data"]["reason"], document["id"]


def events(text: bytes) -> list[Any]:
    """The messages of an event stream that has ended; comments are no messages."""
    parts = [part for part in text.split(b"\n\n") if part and not part.startswith(b":")]
    assert all(part.startswith(b"event: message\ndata: ") for part in parts), text
    return [json.loads(part.removeprefix(b"event: message\ndata: ")) for part in parts]


async def terminate(gateway: GatewayProcess) -> None:
    """SIGTERM; the fixture's exit then asserts code 0 and that nothing is left."""
    process = gateway.process
    process.send_signal(signal.SIGTERM)
    await gateway.until(lambda: not is_alive(process), "exits", within=EXIT_BOUND)


# -- SIGTERM of the gateway ---------------------------------------------------------------------


async def test_sigterm_with_open_sessions_exits_0_in_time_and_leaves_nothing(
    make_gateway: Callable[..., GatewayProcess],
) -> None:
    async with make_gateway({"holder": HOLDER_SERVER}) as gateway, http_for(gateway) as http:
        for _ in range(2):
            await open_session(http, gateway)
        assert len(gateway.processes()) == 4
        await terminate(gateway)


async def test_sigterm_answers_a_running_call_with_the_advice_to_initialize_again(
    make_gateway: Callable[..., GatewayProcess],
) -> None:
    async with make_gateway({"holder": HOLDER_SERVER}) as gateway, http_for(gateway) as http:
        talk = await open_session(http, gateway)
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            running = group.create_task(talk.call(1, "hold"))
            await talk.until_held(1)
            await terminate(gateway)
        status, body = running.result()
        assert status == 502
        assert refusal(json.loads(body)) == (-32603, "session_ended", 1)
        assert "initialize" in json.loads(body)["error"]["message"]


async def test_sigterm_answers_a_call_that_has_become_an_event_stream_and_ends_it(
    make_gateway: Callable[..., GatewayProcess],
) -> None:
    async with make_gateway({"holder": HOLDER_SERVER}) as gateway, http_for(gateway) as http:
        talk = await open_session(http, gateway)
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            running = group.create_task(talk.call(1, "hold_with_progress"))
            await talk.until_held(1)
            await terminate(gateway)
        status, body = running.result()
        progress, error = events(body)
        assert (status, progress["method"]) == (200, "notifications/progress")
        assert refusal(error) == (-32603, "session_ended", 1)


async def test_sigterm_ends_the_get_stream_cleanly(
    make_gateway: Callable[..., GatewayProcess],
) -> None:
    """A cut chunked body would raise; a clean end is an empty rest."""
    async with make_gateway({"holder": HOLDER_SERVER}) as gateway, http_for(gateway) as http:
        talk = await open_session(http, gateway)
        async with talk.listen() as stream:
            await terminate(gateway)
            async with asyncio.timeout(BOUND):
                assert await stream.content.read() == b""


async def test_sigterm_is_not_held_up_by_a_child_that_ignores_it(
    make_gateway: Callable[..., GatewayProcess], fixture_server: dict[str, Any]
) -> None:
    server = {**fixture_server, "env": {"EVERYTHING_IGNORE_EOF": "1"}}
    async with make_gateway({"stubborn": server}) as gateway, http_for(gateway) as http:
        await open_session(http, gateway)
        await terminate(gateway)


# -- SIGKILL ----------------------------------------------------------------------------------


async def test_agent_and_child_go_when_their_gateway_was_killed(
    make_gateway: Callable[..., GatewayProcess], tmp_path: Path
) -> None:
    scratch = {"TMPDIR": str(tmp_path)}  # nobody is left to remove the dyno's folder
    gateway = make_gateway({"holder": HOLDER_SERVER}, scratch)
    await gateway.__aenter__()
    try:
        async with http_for(gateway) as http:
            child = await (await open_session(http, gateway)).child(1)
            agent = parent_of(child)
            gateway.process.kill()
        await gateway.until(
            lambda: not is_alive(agent) and not is_alive(child), "both go", within=ORPHAN_BOUND
        )
        assert gateway.processes() == []
    finally:
        gateway._kill_everything()  # its own exit would ask for exit code 0


async def test_call_of_an_agent_that_was_killed_is_answered_with_an_error(
    make_gateway: Callable[..., GatewayProcess],
) -> None:
    async with make_gateway({"holder": HOLDER_SERVER}) as gateway, http_for(gateway) as http:
        talk = await open_session(http, gateway)
        agent = parent_of(await talk.child(1))
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            running = group.create_task(talk.call(2, "hold"))
            await talk.until_held(1)
            agent.kill()
        status, body = running.result()
        closings = [r for r in gateway.story(talk.session) if r["event"] == "closing"]
        assert [closing["reason"] for closing in closings] == ["link_lost"]
        assert (status, refusal(json.loads(body))) == (502, (-32603, "link_lost", 2))


async def test_child_of_an_agent_that_was_killed_is_gone_too(
    make_gateway: Callable[..., GatewayProcess],
) -> None:
    """The end of its stdin would not do: only the death of its parent ends this one."""
    server = {**HOLDER_SERVER, "env": {"STAY": "1"}}
    async with make_gateway({"holder": server}) as gateway, http_for(gateway) as http:
        child = await (await open_session(http, gateway)).child(1)
        parent_of(child).kill()
        await gateway.until(lambda: not is_alive(child), "the child is gone")


async def test_session_of_an_agent_that_was_killed_leaves_the_others_alone(
    make_gateway: Callable[..., GatewayProcess],
) -> None:
    async with make_gateway({"holder": HOLDER_SERVER}) as gateway, http_for(gateway) as http:
        talk, bystander = [await open_session(http, gateway) for _ in range(2)]
        parent_of(await talk.child(1)).kill()

        async def closed() -> bool:
            return bool((await gateway.health())["sessions"] == 1)

        await gateway.until(closed, "one session is left")
        status, body = await bystander.call(1, "state")
        assert (status, json.loads(body)["id"]) == (200, 1)


# -- a child that will not go -------------------------------------------------------------------


async def test_child_that_ignores_eof_and_sigterm_is_gone_after_delete(
    make_gateway: Callable[..., GatewayProcess], fixture_server: dict[str, Any]
) -> None:
    server = {**fixture_server, "env": {"EVERYTHING_IGNORE_EOF": "1"}}
    async with make_gateway({"stubborn": server}) as gateway, http_for(gateway) as http:
        talk = await open_session(http, gateway)
        before = gateway.processes()
        assert len(before) == 2
        async with http.delete(gateway.url(), headers=talk.headers) as response:
            assert response.status == 204
        await gateway.until(lambda: not gateway.processes(), "agent and child are gone")
