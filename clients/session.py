"""One request to one MCP server, on the SDK's client: connect, ask, say good-bye.

Slow to import (the SDK takes most of a second), so `clients.command` imports it only once the
command is known to be well-formed. Knows nothing of argparse and writes nothing itself.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, assert_never

import httpx2
from mcp import Client, StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

from clients.failures import (
    EXPECTED,
    Refusal,
    RequestFailed,
    explain,
    first_expected,
    is_answer,
    refusal_of,
)
from clients.request import HttpTarget, StdioTarget
from clients.terminal import plain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from mcp.client import Transport
    from mcp.shared.dispatcher import ProgressFnT
    from mcp.types import (
        ListPromptsResult,
        ListResourcesResult,
        ListResourceTemplatesResult,
        ListToolsResult,
        Result,
    )

    from clients.request import Call

    Page = ListToolsResult | ListResourcesResult | ListResourceTemplatesResult | ListPromptsResult

CONNECT_BOUND = 30.0
"""Seconds for TCP and TLS: a host that has not answered by then will not."""

GOODBYE_BOUND = 5.0
"""Seconds for the DELETE that ends a session: the answer is here by then, and Ctrl-C must not
wait on a server that hangs. The server's own idle limit ends what we could not."""

MAX_PAGES = 1000
"""Pages of one list: a server whose cursors never end is stopped, and said so."""

SERVER_LOG_TAIL = 4096
"""Bytes of a stdio server's stderr looked at for its last words."""

LISTED = {
    "list_tools": "tools",
    "list_resources": "resources",
    "list_resource_templates": "resource_templates",
    "list_prompts": "prompts",
}
"""The field of the result that holds the items; the verb is the name of the SDK's method."""

ENVELOPE = frozenset({"_meta", "resultType", "ttlMs", "cacheScope", "nextCursor"})
"""Result keys about the exchange, not about what was asked for; `--raw` shows them."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """How to ask: the era of the protocol, the bound in seconds, and who hears of progress."""

    protocol: str
    timeout: float
    verbose: bool
    progress: ProgressFnT


class _Notes:
    """What the transport saw that the SDK does not hand on."""

    def __init__(self) -> None:
        self.refusal: Refusal | None = None
        self.last_words = ""

    async def request(self, request: httpx2.Request) -> None:
        """HTTP hook: bound the good-bye; every other request has the user's bound."""
        if request.method == "DELETE":
            request.extensions["timeout"] = httpx2.Timeout(GOODBYE_BOUND).as_dict()

    async def response(self, response: httpx2.Response) -> None:
        """HTTP hook: keep the last refusal of a POST, until a later POST succeeds."""
        if response.request.method != "POST":
            return  # a server without a GET stream refuses it, and that is no failure
        self.refusal = None
        if response.status_code >= 400:
            await response.aread()
            self.refusal = refusal_of(response)


def _last_line(descriptor: int) -> str:
    """The last line of a log file, fit for a sentence; empty if there is none."""
    # By pread: the server shares the file's position, and may have a child that still writes.
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, SERVER_LOG_TAIL, max(0, size - SERVER_LOG_TAIL))
    lines = tail.decode("utf-8", "replace").strip().splitlines()
    return plain(lines[-1], 500) if lines else ""


async def ask(call: Call, target: HttpTarget | StdioTarget, exchange: Exchange) -> Result:
    """Make one request and return the server's result, all pages of it.

    Raises:
        RequestFailed: No result; its text is for the user.
    """
    notes = _Notes()
    result: Result | None = None
    error: Exception
    try:
        async with (
            asyncio.timeout(exchange.timeout),
            _transport(target, exchange, notes) as transport,
            Client(transport, mode=exchange.protocol) as client,
        ):
            result = await _perform(client, call, exchange.progress)
    except EXPECTED as single:
        error = single
    except BaseExceptionGroup as group:
        found = first_expected(group)
        if found is None:
            raise
        error = found
    else:
        return result
    if result is not None:
        return result  # a good-bye that failed takes nothing from the answer
    if isinstance(error, RequestFailed):
        raise error
    sentence = explain(error, call, target, refusal=notes.refusal, timeout=exchange.timeout)
    if notes.last_words and not is_answer(error):
        sentence += f" Its last words on stderr: {notes.last_words}"
    raise RequestFailed(sentence) from error


@asynccontextmanager
async def _transport(
    target: HttpTarget | StdioTarget, exchange: Exchange, notes: _Notes
) -> AsyncIterator[Transport]:
    match target:
        case HttpTarget():
            async with _http_client(target, exchange.timeout, notes) as http:
                yield streamable_http_client(target.url, http_client=http)
        case StdioTarget():
            # A file, not a pipe: nobody would read the pipe while the server fills it.
            with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
                errlog = sys.stderr if exchange.verbose else log
                try:
                    yield stdio_client(_parameters(target), errlog=errlog)
                finally:
                    notes.last_words = _last_line(log.fileno())
        case _:
            assert_never(target)


def _http_client(target: HttpTarget, timeout: float, notes: _Notes) -> httpx2.AsyncClient:
    headers = {} if target.api_key is None else {"Authorization": f"Bearer {target.api_key}"}
    return httpx2.AsyncClient(
        headers=headers,
        timeout=httpx2.Timeout(timeout, connect=min(timeout, CONNECT_BOUND)),
        event_hooks={"request": [notes.request], "response": [notes.response]},
    )


def _parameters(target: StdioTarget) -> StdioServerParameters:
    # As from a shell, not the SDK's short list: a server in a dyno is configured by its variables.
    # The key opens the gateway and is none of the server's business.
    environment = {name: value for name, value in os.environ.items() if name != "API_KEY"}
    return StdioServerParameters(command=target.command, args=list(target.args), env=environment)


async def _perform(client: Client, call: Call, progress: ProgressFnT) -> Result:
    params = call.params
    match call.verb:
        case "call_tool":
            return await client.call_tool(
                params["name"], params.get("arguments", {}), progress_callback=progress
            )
        case "read_resource":
            return await client.read_resource(params["uri"])
        case "get_prompt":
            return await client.get_prompt(params["name"], params.get("arguments", {}))
        case verb:
            return await _all_pages(getattr(client, verb), LISTED[verb])


async def _all_pages(fetch: Callable[..., Any], items: str) -> Page:
    """The first page with the items of all later ones added."""
    first: Page = await fetch()
    cursor = first.next_cursor
    seen: set[str] = set()
    while cursor is not None:
        if cursor in seen or len(seen) >= MAX_PAGES:
            raise RequestFailed(
                f"the list does not end: the server sent {len(seen) + 1} pages and the cursor "
                f"{plain(cursor, 80)!r} for one more. That is the server's to mend."
            )
        seen.add(cursor)
        page = await fetch(cursor=cursor)
        getattr(first, items).extend(getattr(page, items))
        cursor = page.next_cursor
    first.next_cursor = None
    return first


def as_json(result: Result, *, raw: bool) -> Mapping[str, Any]:
    """The result under its names on the wire.

    Args:
        result: What `ask` returned.
        raw: Keep what is about the exchange: `_meta`, `resultType` and the cache hints.
    """
    wire = result.model_dump(mode="json", by_alias=True, exclude_none=True)
    if raw:
        return wire
    return {key: value for key, value in wire.items() if key not in ENVELOPE}


def tool_error(result: Result) -> str | None:
    """What a tool said when it failed, or None when the result is no tool's error."""
    if not getattr(result, "is_error", False):
        return None
    texts = [block.text for block in getattr(result, "content", ()) if hasattr(block, "text")]
    return plain(" ".join(texts), 500) or "no text"
