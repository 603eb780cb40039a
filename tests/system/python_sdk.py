"""The unmodified Python SDK client, connected to a gateway under test."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult, TextContent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.system.conftest import GatewayProcess

CONVERSATION_BOUND = 60.0
"""Seconds for all a test says to one server, its start included."""


@asynccontextmanager
async def connected(
    gateway: GatewayProcess,
    server: str | None = None,
    *,
    mode: str = "legacy",
    bound: float = CONVERSATION_BOUND,
    **callbacks: Any,
) -> AsyncIterator[Client]:
    """An SDK client in a session of its own, closed (DELETE) at the end; all of it bounded.

    The SDK refuses SSE events above 1 MiB unless told otherwise, whatever server sends them.
    """
    timeout = httpx2.Timeout(30, read=bound)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(asyncio.timeout(bound))
        http = httpx2.AsyncClient(headers=gateway.headers, timeout=timeout)
        await stack.enter_async_context(http)
        transport = streamable_http_client(
            gateway.url(server), http_client=http, max_sse_event_size=None
        )
        yield await stack.enter_async_context(Client(transport, mode=mode, **callbacks))


def text_of(result: CallToolResult) -> str:
    assert not result.is_error, result
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text


async def call(client: Client, tool: str, **arguments: Any) -> str:
    return text_of(await client.call_tool(tool, arguments))


class Progress:
    """Collects a call's progress notifications; `begun` is set once there are `enough`."""

    def __init__(self, enough: int = 1) -> None:
        self.steps: list[float] = []
        self.begun = asyncio.Event()
        self._enough = enough

    async def __call__(self, progress: float, total: float | None, message: str | None) -> None:
        self.steps.append(progress)
        if len(self.steps) >= self._enough:
            self.begun.set()
