"""Turns what went wrong between client and server into one sentence with the next step.

The one place that knows which exceptions of the SDK and of its HTTP library are to be expected.
Anything else is a bug in the client, and is allowed to look like one.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never
from urllib.parse import urlsplit, urlunsplit

import httpx2
from mcp import MCPError
from mcp.types import (
    CONNECTION_CLOSED,
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    UNSUPPORTED_PROTOCOL_VERSION,
)
from pydantic import ValidationError

from clients.request import HttpTarget, StdioTarget
from clients.terminal import plain

if TYPE_CHECKING:
    from clients.request import Call

LOOK_UP = {
    "call_tool": "list_tools",
    "read_resource": "list_resources",
    "get_prompt": "list_prompts",
}
"""The verb that shows what another verb accepts."""

STATUS_ADVICE = {
    400: "a server that speaks another revision answers like this: try --protocol auto or legacy",
    404: "check MCP_SERVER_URL, and --server if you named one",
    405: "there is no MCP endpoint at this URL: check MCP_SERVER_URL",
    413: "send less in --args",
    429: "wait, then try again",
    502: "the server is down or starting: try again",
    503: "the server is down or starting: try again",
    504: "the server took too long behind a proxy: try again",
}
"""Next step by HTTP status; 401 and 403 depend on the key and are made in `_about_key`."""


class RequestFailed(Exception):
    """The request was made as asked and did not succeed; its text says why and what to do."""


EXPECTED = (
    RequestFailed,
    MCPError,
    httpx2.HTTPError,
    httpx2.InvalidURL,
    ValidationError,
    OSError,
    RuntimeError,
)
"""TimeoutError is an OSError. RuntimeError is what the SDK raises for an answer that breaks the
protocol: a revision it does not speak, structured content that its own schema forbids."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An HTTP answer of 400 or above, noted because the SDK hands on neither status nor text."""

    status: int
    text: str
    json_rpc: bool = False
    retry_after: str | None = None


def refusal_of(response: httpx2.Response) -> Refusal:
    """What a refused POST says; its body must have been read."""
    try:
        body = json.loads(response.content)
    except (ValueError, RecursionError):
        body = None  # a proxy's HTML page: the status says more
    json_rpc = isinstance(body, dict) and "jsonrpc" in body
    retry_after = response.headers.get("retry-after")
    return Refusal(response.status_code, _error_text(body), json_rpc, retry_after)


def _error_text(body: object) -> str:
    """The sentence in a JSON error body: JSON-RPC's, OAuth's or a plain one; else nothing."""
    if not isinstance(body, dict):
        return ""
    error = body.get("error")
    inner = error if isinstance(error, dict) else body
    for key in ("message", "error_description", "detail", "error"):
        if isinstance(text := inner.get(key), str):
            return plain(text)
    return ""


def first_expected(group: BaseExceptionGroup[BaseException]) -> Exception | None:
    """The first failure of a task group's, or None when one of them is not to be expected."""
    expected, unexpected = group.split(EXPECTED)
    if expected is None or unexpected is not None:
        return None
    error: BaseException = expected
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, Exception) else None


def explain(
    error: Exception,
    call: Call,
    target: HttpTarget | StdioTarget,
    *,
    refusal: Refusal | None,
    timeout: float,
) -> str:
    """One sentence about a failed request, with the next step.

    Args:
        error: One of `EXPECTED`.
        call: What was asked.
        target: Who was asked.
        refusal: The HTTP refusal that the SDK turned into the error, if there was one.
        timeout: The bound of the whole request, in seconds.
    """
    match error:
        case MCPError() if refusal is not None and isinstance(target, HttpTarget):
            if refusal.json_rpc and refusal.status in {400, 404}:
                # Since 2026-07-28 an MCP error has such a status: the server answered.
                return _about_answer(error, call, target)
            return _about_refusal(refusal, target)
        case MCPError():
            return _about_answer(error, call, target)
        case httpx2.HTTPError() | httpx2.InvalidURL():
            return _about_network(error, target)
        case OSError():
            return _about_system(error, target, timeout)
        case _:
            return (
                f"the answer of {_name(target)} breaks the protocol: {_reason(error)}. "
                "That is the server's to mend; --verbose shows the exchange."
            )


def is_answer(error: Exception) -> bool:
    """Whether the server answered: with an error, but alive and heard."""
    return isinstance(error, MCPError) and error.code != CONNECTION_CLOSED


def _about_system(error: OSError, target: HttpTarget | StdioTarget, timeout: float) -> str:
    if isinstance(error, TimeoutError):
        return (
            f"no answer from {_name(target)} within {timeout:g} s: "
            "give it longer with --timeout SECONDS."
        )
    if isinstance(target, StdioTarget):
        return f"cannot start {target.command!r} ({_reason(error)}): check --command."
    return f"cannot reach {_name(target)} ({_reason(error)}): check MCP_SERVER_URL."


def _about_refusal(refusal: Refusal, target: HttpTarget) -> str:
    said = f": {refusal.text.rstrip('.')}" if refusal.text else ""
    if refusal.status in {401, 403}:
        advice = _about_key(refusal.status, target)
    else:
        advice = STATUS_ADVICE.get(refusal.status, "the log of the server says more")
    if refusal.retry_after is not None:
        advice += f" (it asks to wait: {plain(refusal.retry_after, 40)})"
    return f"{_name(target)} answered HTTP {refusal.status}{said}; {advice}."


def _about_key(status: int, target: HttpTarget) -> str:
    if target.api_key is None:
        return "API_KEY is not set: export API_KEY=… with a key of this server"
    if status == 401:
        return "API_KEY is not a key of this server: export the right one"
    return "API_KEY is known but may not do this: use another key or another server"


def _about_answer(error: MCPError, call: Call, target: HttpTarget | StdioTarget) -> str:
    said = plain(error.message).rstrip(".") or "no message"
    method = call.verb.replace("_", " ")
    match error.code:
        case code if code == CONNECTION_CLOSED and isinstance(target, StdioTarget):
            return f"{_name(target)} closed the connection before it answered ({said})."
        case code if code == METHOD_NOT_FOUND:
            return f"{_name(target)} does not offer {method!r} ({said})."
        case code if code == UNSUPPORTED_PROTOCOL_VERSION:
            return f"{_name(target)} speaks another revision ({said}): try --protocol auto."
        case code if code == INVALID_PARAMS and call.verb in LOOK_UP:
            return f"{_name(target)} refused the request: {said}; {advice_for(call)}."
        case code:
            return f"{_name(target)} answered with error {code}: {said}."


def advice_for(call: Call) -> str:
    """Where to look up what the verb accepts."""
    return f"`mcp {LOOK_UP[call.verb]}` shows what there is and what it takes"


def _about_network(
    error: httpx2.HTTPError | httpx2.InvalidURL, target: HttpTarget | StdioTarget
) -> str:
    where = _name(target)
    match error:
        case httpx2.ConnectError() | httpx2.ConnectTimeout():
            return (
                f"cannot connect to {where} ({_reason(error)}): "
                "check that the server runs and that MCP_SERVER_URL names it."
            )
        case httpx2.InvalidURL():
            return f"{where} is not a URL ({_reason(error)}): check MCP_SERVER_URL."
        case httpx2.TimeoutException():
            return f"{where} stopped answering: give it longer with --timeout SECONDS."
        case httpx2.ProxyError():
            return f"the proxy on the way to {where} refused ({_reason(error)}): check HTTPS_PROXY."
        case _:
            return f"the connection to {where} broke ({_reason(error)}): try again."


def _name(target: HttpTarget | StdioTarget) -> str:
    match target:
        case HttpTarget():
            # A password in the URL, or a token in its query, must not reach a terminal or a log.
            parts = urlsplit(target.url)
            host = parts.netloc.rpartition("@")[2]
            return urlunsplit((parts.scheme, host, parts.path, "", ""))
        case StdioTarget():
            return f"the server {plain(shlex.join([target.command, *target.args]), 80)!r}"
        case _:
            assert_never(target)


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return plain(str(error), 300).rstrip(".") or type(error).__name__
