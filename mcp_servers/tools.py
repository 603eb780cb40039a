"""What the tools of the bundled servers share: how progress is told, and the shape of a result."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

from mcp.types import CallToolResult, TextContent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from mcp.server.mcpserver import Context


def teller(ctx: Context[Any, Any]) -> Callable[[str], Awaitable[None]]:
    """What tells the caller of a tool, in a line for people, how far it is; no-op unless asked."""
    steps = itertools.count(1)

    async def tell(what: str) -> None:
        await ctx.report_progress(next(steps), message=what)

    return tell


def answer(result: Mapping[str, Any]) -> CallToolResult:
    """A result as JSON in one text block and, under `result`, as structured content.

    The shape is that of Heroku's reference servers.
    """
    return CallToolResult(
        content=[TextContent(type="text", text=json.dumps(result, ensure_ascii=False))],
        structured_content={"result": dict(result)},
    )
