"""Long silences through the platform's router, for `make proof-heroku`.

Each scenario is a client that comes through the router and waits; the router counts what it cut
(`Router.cuts`). Whoever calls them has a router in front of a gateway whose GATEWAY_URL is the
router's, so that agents come through it as well. The server has the tools of
tests/fixtures/everything.py.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import TextContent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REVISION = "2025-11-25"

SPARE_S = 60.0
"""For all of a scenario that is no waiting: a boot, an opening, a good-bye."""

SILENCE_S = 55.0
"""The router's idle limit: no client sees a longer gap."""


class Broken(Exception):
    """A scenario did not end as it should; the message says how."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a scenario saw.

    Attributes:
        seconds: that it took.
        reads: how often bytes came; 0 where nobody counts them.
        gap_s: longest time without a byte; 0 where nobody measures it.
    """

    seconds: float
    reads: int = 0
    gap_s: float = 0.0


def endpoint(router_url: str, server: str) -> str:
    """Return where clients of a server go."""
    return f"{router_url}/servers/{server}/mcp"


@asynccontextmanager
async def sdk_client(
    router_url: str, key: str, server: str, *, mode: str, bound_s: float
) -> AsyncIterator[Client]:
    """A client of the Python SDK; all of it takes at most `bound_s`.

    Args:
        router_url: without a slash at the end.
        key: an API key of the gateway.
        server: name of a registered one.
        mode: of the SDK: `legacy`, `auto`, or a revision.
        bound_s: seconds.
    """
    timeout = httpx2.Timeout(bound_s)
    headers = {"Authorization": f"Bearer {key}"}
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(asyncio.timeout(bound_s))
        http = httpx2.AsyncClient(headers=headers, timeout=timeout)
        await stack.enter_async_context(http)
        transport = streamable_http_client(
            endpoint(router_url, server), http_client=http, max_sse_event_size=None
        )
        yield await stack.enter_async_context(Client(transport, mode=mode))


async def call(client: Client, tool: str, **arguments: Any) -> str:
    """Return the text that a tool answers with.

    Raises:
        Broken: it answers with an error, or with something else.
    """
    result = await client.call_tool(tool, arguments)
    content = result.content[0] if result.content else None
    if result.is_error or not isinstance(content, TextContent):
        raise Broken(f"{tool} answered {result!r}")
    return content.text


async def silent_call(
    router_url: str, key: str, server: str, seconds: float, *, mode: str = "legacy"
) -> Seen:
    """Make one call that says nothing for so long, and then answers.

    Raises:
        Broken, MCPError, TimeoutError: it was not answered.
    """
    began = _now()
    bound_s = seconds + SPARE_S
    async with sdk_client(router_url, key, server, mode=mode, bound_s=bound_s) as client:
        await call(client, "slow", steps=1, seconds=seconds)
    if _now() - began < seconds:
        raise Broken("the call was answered before its time")
    return Seen(_now() - began)


async def idle_link(
    router_url: str, key: str, server: str, seconds: float, *, mode: str = "legacy"
) -> Seen:
    """Let a session's dyno be idle for so long; the same process has to answer afterwards.

    Raises:
        Broken, MCPError, TimeoutError: it does not.
    """
    began = _now()
    bound_s = seconds + SPARE_S
    async with sdk_client(router_url, key, server, mode=mode, bound_s=bound_s) as client:
        before = await call(client, "pid")
        await asyncio.sleep(seconds)
        if (after := await call(client, "pid")) != before:
            raise Broken(f"process {before} went, {after} answered")
    return Seen(_now() - began)


async def idle_stream(router_url: str, key: str, server: str, seconds: float) -> Seen:
    """Hold a session's GET stream for so long; nothing is said to it, and DELETE ends it.

    Raises:
        Broken: it ended before, or was silent for longer than the router stands.
        aiohttp.ClientError, TimeoutError: it broke.
    """
    url = endpoint(router_url, server)
    headers = {
        "Authorization": f"Bearer {key}",
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": REVISION,
    }
    timeout = aiohttp.ClientTimeout(total=seconds + SPARE_S)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as http:
        info = {"name": "idle-stream", "version": "1"}
        params = {"protocolVersion": REVISION, "capabilities": {}, "clientInfo": info}
        hello = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
        async with http.post(url, json=hello) as opened:
            if opened.status != 200:
                raise Broken(f"initialize: {opened.status} {await opened.text()}")
            await opened.read()
            session = {"Mcp-Session-Id": opened.headers["Mcp-Session-Id"]}
        accept = {"Accept": "text/event-stream"}
        async with http.get(url, headers={**session, **accept}) as stream:
            if stream.status != 200:
                raise Broken(f"GET: {stream.status} {await stream.text()}")
            seen = await _watch(stream, seconds)
            async with http.delete(url, headers=session) as ended:
                if ended.status != 204:
                    raise Broken(f"DELETE: {ended.status} {await ended.text()}")
            await stream.content.read()
    return seen


async def _watch(stream: aiohttp.ClientResponse, seconds: float) -> Seen:
    began = last = _now()
    reads, gap_s = 0, 0.0
    try:
        async with asyncio.timeout(seconds):
            while await stream.content.readany():
                reads += 1
                gap_s = max(gap_s, _now() - last)
                last = _now()
    except TimeoutError:
        gap_s = max(gap_s, _now() - last)
    else:
        raise Broken(f"the stream ended after {_now() - began:.0f} s")
    if gap_s >= SILENCE_S:
        raise Broken(f"the stream was silent for {gap_s:.0f} s")
    return Seen(_now() - began, reads, gap_s)


def _now() -> float:
    return asyncio.get_running_loop().time()
