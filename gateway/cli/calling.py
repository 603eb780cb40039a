"""Calls a tool as any MCP client does: the SDK's client, over Streamable HTTP, with an API key.

The one module of the gateway that imports the SDK (extra `clients`), and nothing of what serves
knows it.
"""

import asyncio
import json
import logging
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import httpx2
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult, Tool
from pydantic import ValidationError

from gateway.cli import output
from gateway.cli.access import Access
from gateway.cli.failing import Failed, Misused, Unreachable
from gateway.cli.output import Column
from gateway.cli.waiting import Waiting

CONNECT_S: Final = 10.0
GOODBYE_S: Final = 5.0
"""For the DELETE that ends the session; what it cannot end, the idle limit of the server does."""

MOST_PAGES: Final = 100
"""Of a list of tools."""

EXPECTED: Final = (
    MCPError,
    httpx2.HTTPError,
    httpx2.InvalidURL,
    ValidationError,
    OSError,
    RuntimeError,
)
"""What the SDK raises for what others do: RuntimeError for an answer that breaks the protocol."""

WORDS: Final = 500

T = TypeVar("T")

# Or logging would write the SDK's warnings and tracebacks to stderr, as it does where nobody cares.
logging.getLogger("mcp").addHandler(logging.NullHandler())


@dataclass(slots=True)
class _Notes:
    """What the transport sees and the SDK does not hand on.

    Attributes:
        status: of the last POST, if it was refused; else 0.
        said: why.
    """

    status: int = 0
    said: str = ""

    async def request(self, request: httpx2.Request) -> None:
        if request.method == "DELETE":
            request.extensions["timeout"] = httpx2.Timeout(GOODBYE_S).as_dict()

    async def response(self, response: httpx2.Response) -> None:
        if response.request.method != "POST":
            return
        self.status, self.said = 0, ""
        if response.status_code >= 400:
            await response.aread()
            self.status, self.said = response.status_code, _error_text(response.content)


def _error_text(body: bytes) -> str:
    """Return the sentence in a JSON-RPC error; empty if there is none."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    error = document.get("error") if isinstance(document, dict) else None
    said = error.get("message") if isinstance(error, dict) else error
    return output.cut(said, WORDS) if isinstance(said, str) else ""


@dataclass(frozen=True, slots=True)
class Line:
    """Where a server is reached, and for how long it is waited for.

    Attributes:
        access: the gateway, and a client's key.
        server: name of the server.
        timeout_s: for everything, the boot of the dyno included.
    """

    access: Access
    server: str
    timeout_s: float

    @property
    def url(self) -> str:
        """Its endpoint."""
        return f"{self.access.url}/servers/{quote(self.server, safe='')}/mcp"


async def _ask(line: Line, request: Callable[[Client], Awaitable[T]]) -> T:
    """Make one request with a client of its own.

    Raises:
        Failed: why there is no result.
    """
    notes, done = _Notes(), list[T]()
    error: Exception
    http = httpx2.AsyncClient(
        headers={"Authorization": f"Bearer {line.access.key}"},
        timeout=httpx2.Timeout(line.timeout_s, connect=CONNECT_S),
        trust_env=not line.access.here,
        event_hooks={"request": [notes.request], "response": [notes.response]},
    )
    try:
        async with (
            asyncio.timeout(line.timeout_s),
            http,
            Client(streamable_http_client(line.url, http_client=http), mode="auto") as client,
        ):
            done.append(await request(client))
    except Failed:
        raise
    except EXPECTED as single:
        error = single
    except BaseExceptionGroup as group:
        found = _first(group)
        if found is None:
            raise
        error = found
    else:
        return done[0]
    if done:
        return done[0]  # a good-bye that failed takes nothing from the answer
    raise _failure(error, line, notes) from error


def _first(group: BaseExceptionGroup[BaseException]) -> Exception | None:
    """Return the first failure of a group; None if one of them is not to be expected."""
    expected, others = group.split((*EXPECTED, Failed))
    error: BaseException | None = None if others is not None else expected
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, Exception) else None


def _failure(error: Exception, line: Line, notes: _Notes) -> Failed:
    if isinstance(error, Failed):
        return error
    if isinstance(error, TimeoutError | httpx2.ReadTimeout):
        name = output.cut(line.server)
        return Failed(
            f"no answer from {name} within {line.timeout_s:g} s: give it longer with --timeout"
        )
    return _refusal(line, notes) if notes.status else _mishap(error, line)


def _refusal(line: Line, notes: _Notes) -> Failed:
    """Return what is said of an answer of the gateway's own."""
    said = (notes.said or f"status {notes.status}").rstrip(".")
    if notes.status in (401, 403):
        return Failed(f"{line.access.url} does not take this API_KEY ({said}): set one it knows")
    if not notes.said:
        return Unreachable(
            f"{line.access.url} is no gateway ({said}): name another with --url or GATEWAY_URL"
        )
    return Failed(f"{line.access.url} refused: {said}")


def _mishap(error: Exception, line: Line) -> Failed:
    name = output.cut(line.server)
    if isinstance(error, MCPError):
        words = output.cut(error.message, WORDS).rstrip(".") or "no message"
        return Failed(
            f"{name} answered with error {error.code}: {words}; `gateway call {name}` lists its "
            "tools and what they take"
        )
    why = output.cut(str(error).partition("\n")[0] or type(error).__name__, WORDS)
    if isinstance(error, httpx2.HTTPError | httpx2.InvalidURL | OSError):
        return Unreachable(
            f"no answer from {line.access.url}: {why}; start a gateway there, or name another "
            "with --url or GATEWAY_URL"
        )
    return Failed(f"the answer of {name} breaks the protocol, which is the server's to mend: {why}")


def arguments(text: str | None) -> dict[str, Any]:
    """Return a tool's arguments from what was typed: JSON, `@file`, or `-` for stdin.

    Raises:
        Misused: unreadable, or no JSON object.
    """
    if text is None:
        return {}
    try:
        if text == "-":
            text = sys.stdin.read()
        elif text.startswith("@"):
            text = Path(text[1:]).read_text(encoding="utf-8")
        document = json.loads(text, parse_constant=_no_number)
        json.dumps(document, ensure_ascii=False).encode()
    except OSError as error:
        raise Misused(f"--args: {error.filename}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        why = str(error) or "nested too deeply"
        raise Misused(
            f"--args is no JSON ({why}): put it in single quotes, as in --args '{{\"a\": 1}}'"
        ) from None
    if not isinstance(document, dict):
        raise Misused("--args must be a JSON object, as in --args '{\"a\": 1}'")
    return document


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


async def call(line: Line, tool: str, given: Mapping[str, Any], *, as_json: bool) -> None:
    """Call a tool and print what it says; Ctrl-C cancels the call.

    Raises:
        Failed: there was no result, or the tool says that it failed.
    """
    with Waiting(f"calling {output.cut(tool)}") as waiting:
        result = await _ask(
            line,
            lambda client: client.call_tool(tool, dict(given), progress_callback=waiting.report),
        )
    if as_json:
        output.document(result.model_dump(mode="json", by_alias=True, exclude_none=True))
    else:
        _show(result)
    if result.is_error:
        raise Failed(f"the tool {output.cut(tool)} failed: what it says is above")


def _show(result: CallToolResult) -> None:
    for block in result.content:
        output.verbatim(_plain(block.model_dump(mode="json", by_alias=True, exclude_none=True)))
    if not result.content and result.structured_content is not None:
        output.document(result.structured_content)


def _plain(block: Mapping[str, Any]) -> str:
    """Return a part of a result as text; what is none is named."""
    kind = block.get("type")
    if kind == "text":
        return str(block.get("text", ""))
    resource = block.get("resource") or block
    if kind == "resource" and "text" in resource:
        return str(resource["text"])
    about = [str(resource[key]) for key in ("uri", "mimeType") if key in resource]
    data = resource.get("data") or resource.get("blob")
    about += [f"{len(data) * 3 // 4} bytes"] if isinstance(data, str) else []
    return f"[{' '.join([str(kind), *about])}; --json has it]"


async def tools(line: Line, *, as_json: bool) -> None:
    """Print the tools of a server, as it tells them to a client."""
    with Waiting(f"asking {output.cut(line.server)} for its tools"):
        found = await _ask(line, _all_tools)
    if as_json:
        shown = [tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in found]
        output.document({"tools": shown})
    elif not found:
        output.note(f"{output.cut(line.server)} has no tools")
    else:
        rows = [
            [tool.name, _takes(tool), " ".join((tool.description or "").split())] for tool in found
        ]
        output.table([Column("TOOL"), Column("TAKES"), Column("DESCRIPTION")], rows)


async def _all_tools(client: Client) -> list[Tool]:
    found: list[Tool] = []
    cursor: str | None = None
    for _ in range(MOST_PAGES):
        page = await client.list_tools(cursor=cursor)
        found += page.tools
        cursor = page.next_cursor
        if cursor is None:
            return found
    raise Failed(f"the list of tools has no end: {MOST_PAGES} pages were read")


def _takes(tool: Tool) -> str:
    """Return the names of a tool's arguments; those that may be left out are in brackets."""
    needed = tool.input_schema.get("required", ())
    names = tool.input_schema.get("properties", ())
    return ", ".join(name if name in needed else f"[{name}]" for name in names)
