"""Sessions that nobody closes: after the idle time they leave nothing behind."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.system.conftest import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.system.conftest import GatewayProcess

pytestmark = pytest.mark.timeout(240)

SESSIONS = 20
AT_ONCE = 5
"""Starts at a time: each is two Python interpreters, on two cores."""

PUPPET = {"command": sys.executable, "args": ["tests/fixtures/puppet.py"], "cwd": str(REPOSITORY)}
"""A server that starts at once."""

IDLE_TIMEOUT = 2
"""Seconds; the servers file's `idle_timeout`."""

OPENING_BOUND = 120.0
"""Seconds for all the starts."""

GONE_BOUND = 30.0
"""Seconds after the last word until the last process is gone: the idle time and the kill ladder."""

REVISION = "2025-11-25"


@asynccontextmanager
async def http_client(gateway: GatewayProcess) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {**gateway.headers, "Accept": "application/json, text/event-stream"}
    timeout = aiohttp.ClientTimeout(total=60)
    connector = aiohttp.TCPConnector(limit=AT_ONCE)
    async with aiohttp.ClientSession(
        headers=headers, timeout=timeout, connector=connector, raise_for_status=True
    ) as http:
        yield http


async def post(
    http: aiohttp.ClientSession, url: str, session: str | None, message: dict[str, Any]
) -> aiohttp.ClientResponse:
    """Send a message; return the response, its body read to the end."""
    headers = {} if session is None else in_session(session)
    async with http.post(url, json={"jsonrpc": "2.0", **message}, headers=headers) as response:
        await response.read()
    return response


def in_session(session: str) -> dict[str, str]:
    return {"Mcp-Session-Id": session, "MCP-Protocol-Version": REVISION}


async def open_session(http: aiohttp.ClientSession, url: str) -> str:
    """Shake hands and make one call, as a client does that then disappears."""
    params = {
        "protocolVersion": REVISION,
        "capabilities": {},
        "clientInfo": {"name": "abandons", "version": "1"},
    }
    hello = await post(http, url, None, {"id": 0, "method": "initialize", "params": params})
    session: str = hello.headers["Mcp-Session-Id"]
    await post(http, url, session, {"method": "notifications/initialized"})
    look = {"name": "state", "arguments": {}}
    answer = await post(http, url, session, {"id": 1, "method": "tools/call", "params": look})
    assert "pid" in await answer.text()
    return session


async def open_and_leave(http: aiohttp.ClientSession, url: str) -> list[str]:
    """Open the sessions, a few at a time; close every other one and forget the rest."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> str:
        async with slots:
            session = await open_session(http, url)
            if number % 2:
                await delete(http, url, session)
            return session

    async with asyncio.timeout(OPENING_BOUND), asyncio.TaskGroup() as group:
        opened = [group.create_task(one(number)) for number in range(SESSIONS)]
    return [task.result() for task in opened]


async def delete(http: aiohttp.ClientSession, url: str, session: str) -> None:
    async with asyncio.timeout(GONE_BOUND), http.delete(url, headers=in_session(session)):
        pass


async def no_sessions(gateway: GatewayProcess) -> bool:
    health = await gateway.health()
    return bool(health["sessions"] == 0)


async def settled(gateway: GatewayProcess) -> None:
    """Wait until no session and no process of one is left."""
    await gateway.until(lambda: not gateway.processes(), "no process is left", within=GONE_BOUND)
    await gateway.until(lambda: no_sessions(gateway), '/health reports "sessions": 0')


async def test_abandoned_sessions_leave_no_process_descriptor_or_record(
    make_gateway: Callable[..., GatewayProcess],
) -> None:
    """Half of the clients send DELETE and half just disappear."""
    servers = {
        "puppet": {**PUPPET, "default": True, "idle_timeout": IDLE_TIMEOUT},
    }
    async with make_gateway(servers) as gateway:
        url = gateway.url()
        async with http_client(gateway) as http:  # what a first session opens for good is baseline
            await delete(http, url, await open_session(http, url))
        await settled(gateway)
        baseline = gateway.process.num_fds()

        async with http_client(gateway) as http:
            assert len(set(await open_and_leave(http, url))) == SESSIONS

        await settled(gateway)
        await gateway.until(
            lambda: gateway.process.num_fds() <= baseline, f"at most {baseline} open descriptors"
        )


async def test_abandoned_event_stream_does_not_keep_its_session(
    make_gateway: Callable[..., GatewayProcess],
) -> None:
    """An open GET stream is no activity: a client may hold it and never speak again."""
    servers = {
        "puppet": {**PUPPET, "default": True, "idle_timeout": IDLE_TIMEOUT},
    }
    async with make_gateway(servers) as gateway, http_client(gateway) as http:
        session = await open_session(http, gateway.url())
        headers = {**in_session(session), "Accept": "text/event-stream"}
        async with http.get(gateway.url(), headers=headers) as stream:
            assert stream.status == 200
            await settled(gateway)
