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
    path: str = "",
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
            gateway.origin + path if path else gateway.url(server),
            http_client=http,
            max_sse_event_size=None,
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
    """Collects a call's progress notifications; `begun` is set once there are `enough`.

    The first call of a session that has no dyno yet is told the phases of the boot, too. They are
    below any step that our servers report.
    """

    def __init__(self, enough: int = 1) -> None:
        self.steps: list[float] = []
        self.messages: list[str | None] = []
        self.begun = asyncio.Event()
        self._enough = enough

    async def __call__(self, progress: float, total: float | None, message: str | None) -> None:
        self.steps.append(progress)
        self.messages.append(message)
        if len(self.steps) >= self._enough:
            self.begun.set()

    @property
    def of_the_server(self) -> list[float]:
        """What is not of the boot."""
        return [step for step in self.steps if step >= 1]

    @property
    def of_the_boot(self) -> list[str | None]:
        """What the gateway said while there was no server to speak."""
        return [said for step, said in zip(self.steps, self.messages, strict=True) if 0 < step < 1]
