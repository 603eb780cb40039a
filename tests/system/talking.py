"""One session over raw HTTP, for tests that look at statuses, event ids and broken connections.

The other end is tests/fixtures/puppet.py. Nothing here retries: what a test does not ask for does
not happen.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import psutil

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.system.conftest import GatewayProcess

BOUND = 40.0
"""Seconds for one exchange, a boot on a busy machine included."""

RESUMES, PLAIN = "2025-11-25", "2025-06-18"
"""A revision whose clients come back for the rest of a stream, and the one before it."""

PUPPET = {
    "command": sys.executable,
    "args": [str(Path(__file__).resolve().parents[1] / "fixtures" / "puppet.py")],
}


@dataclass(frozen=True)
class Event:
    """One server-sent event; `message` is None when it holds no data."""

    identity: str | None
    message: Any


class Stream:
    """The events of one response, one at a time."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self._events = self._parse()

    async def next(self) -> Event:
        """Return the next event; there has to be one."""
        async with asyncio.timeout(BOUND):
            return await anext(self._events)

    async def take(self, count: int) -> list[Event]:
        """Return the next events that hold a message."""
        found: list[Event] = []
        while len(found) < count:
            event = await self.next()
            if event.message is not None:
                found.append(event)
        return found

    async def rest(self) -> list[Any]:
        """Return the messages until the clean end of the stream; a broken one raises."""
        async with asyncio.timeout(BOUND):
            return [event.message async for event in self._events if event.message is not None]

    async def _parse(self) -> AsyncIterator[Event]:
        lines: list[bytes] = []
        pieces: list[bytes] = []  # of a line that has not ended yet
        async for chunk in self.response.content.iter_any():
            first, *others = chunk.split(b"\n")
            pieces.append(first)
            for other in others:
                line = b"".join(pieces)
                pieces = [other]
                if line:
                    lines.append(line)
                    continue
                if event := _event(lines):
                    yield event
                lines = []
        assert not lines, lines
        assert not any(pieces), pieces


def _event(lines: list[bytes]) -> Event | None:
    """Return what a block of lines says; None for a comment and for a lone `retry`."""
    fields = dict(line.split(b": ", 1) for line in lines if not line.startswith(b":"))
    assert set(fields) <= {b"id", b"retry", b"event", b"data"}, lines
    identity = fields.get(b"id")
    data = fields.get(b"data")
    if identity is None and data is None:
        return None
    return Event(
        None if identity is None else identity.decode(), json.loads(data) if data else None
    )


@dataclass(frozen=True)
class Talk:
    """One session and how to speak in it."""

    http: aiohttp.ClientSession
    gateway: GatewayProcess
    session: str
    revision: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Mcp-Session-Id": self.session, "MCP-Protocol-Version": self.revision}

    @asynccontextmanager
    async def post(self, message: dict[str, Any]) -> AsyncIterator[aiohttp.ClientResponse]:
        body = {"jsonrpc": "2.0", **message}
        async with self.http.post(self.gateway.url(), json=body, headers=self.headers) as response:
            yield response

    def calling(self, request: int, tool: str, **arguments: Any) -> Any:
        """The response to a call, its id being its progress token; an async context manager."""
        params = {"name": tool, "arguments": arguments, "_meta": {"progressToken": request}}
        return self.post({"id": request, "method": "tools/call", "params": params})

    async def call(self, request: int, tool: str, **arguments: Any) -> Any:
        """Return the response message of a call that nothing precedes, in whatever form it came."""
        async with self.calling(request, tool, **arguments) as response:
            assert response.status == 200, await response.text()
            return await the_message(response)

    async def state(self, request: int) -> Any:
        return (await self.call(request, "state"))["result"]

    async def child(self, request: int) -> psutil.Process:
        return psutil.Process((await self.state(request))["pid"])

    async def until_held(self, *requests: int) -> None:
        """Wait until the child holds these calls."""
        numbers = iter(range(1000, 2000))

        async def held() -> bool:
            return set(requests) <= set((await self.state(next(numbers)))["held"])

        await self.gateway.until(held, f"{requests} reach the child")

    async def notify(self, number: int) -> None:
        """Send a numbered notification; it has to be accepted."""
        message = {"method": "notifications/numbered", "params": {"number": number}}
        async with self.post(message) as response:
            assert (response.status, await response.read()) == (202, b"")

    @asynccontextmanager
    async def listening(self, after: str | None = None) -> AsyncIterator[Stream]:
        """Open the GET stream, or continue any stream after an event."""
        resume = {} if after is None else {"Last-Event-ID": after}
        headers = {**self.headers, **resume, "Accept": "text/event-stream"}
        async with self.http.get(self.gateway.url(), headers=headers) as response:
            assert response.status == 200, await response.text()
            yield Stream(response)


async def the_message(response: aiohttp.ClientResponse) -> Any:
    """Return the only message of a response, be it JSON or a stream."""
    if response.content_type == "application/json":
        return await response.json()
    (message,) = await Stream(response).rest()
    return message


@asynccontextmanager
async def http_for(gateway: GatewayProcess) -> AsyncIterator[aiohttp.ClientSession]:
    """A client with as many connections as it likes: streams hold theirs."""
    headers = {**gateway.headers, "Accept": "application/json, text/event-stream"}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=BOUND, sock_read=BOUND)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        headers=headers, timeout=timeout, connector=connector
    ) as session:
        yield session


async def open_session(
    http: aiohttp.ClientSession, gateway: GatewayProcess, revision: str = RESUMES
) -> Talk:
    """Initialize a session with the default server."""
    info = {"name": "talking", "version": "1"}
    params = {"protocolVersion": revision, "capabilities": {}, "clientInfo": info}
    body = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
    async with http.post(gateway.url(), json=body) as response:
        assert response.status == 200, await response.text()
        await response.read()
        return Talk(http, gateway, response.headers["Mcp-Session-Id"], revision)


def refusal(message: Any) -> tuple[int, str, Any]:
    """Code, reason and id of an error response."""
    error = message["error"]
    return error["code"], error["data"]["reason"], message["id"]


def parent_of(child: psutil.Process) -> psutil.Process:
    parent = child.parent()
    assert parent is not None
    return parent
