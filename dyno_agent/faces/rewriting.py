"""What a message of a handshake revision is in 2026-07-28 and the other way round. Pure functions.

They know single messages only: who asked what is in `conversations`, who listens in `listeners`.
"""

from __future__ import annotations

import json
from typing import Any, Union

from dyno_agent.faces.face import Untranslatable, read, write

Key = Union[str, int]
"""What names a request or its progress: JSON-RPC ids and progress tokens."""

PREFIX = "io.modelcontextprotocol/"
MODERN = "2026-07-28"
HANDSHAKES = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")

ASKING = frozenset({"tools/call", "prompts/get", "resources/read"})
"""The methods that may be answered with `input_required`; no other call may ask."""

CACHEABLE = frozenset(
    {
        "tools/list",
        "prompts/list",
        "resources/list",
        "resources/templates/list",
        "resources/read",
    }
)

NOT_A_REQUEST = -32600
NO_METHOD = -32601
BAD_PARAMS = -32602
INTERNAL = -32603
NO_RESOURCE = -32002
"""Not found, up to 2025-11-25; 2026-07-28 says `BAD_PARAMS`."""
NO_CAPABILITY = -32021
NO_REVISION = -32022
URL_FIRST = -32042
"""2025-11-25: the caller must visit URLs first; 2026-07-28 asks that with `input_required`."""

LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
"""Of log messages, most verbose first (RFC 5424, 6.2.1)."""

ASKS = frozenset({"elicitation/create", "sampling/createMessage", "roots/list"})
"""What a server may ask of a client's user, model and roots."""

MAX_DEPTH = 200
"""Deepest message; far below what `json` can write from any stack, and beyond what anyone sends."""


def key(value: Any) -> Key | None:
    """Return what names a request, or None if this cannot."""
    return value if isinstance(value, (str, int)) and not isinstance(value, bool) else None


def mapping(value: Any) -> dict[str, Any]:
    """Return an object; an empty one for whatever else stands in its place."""
    return value if isinstance(value, dict) else {}


def parse(line: bytes) -> dict[str, Any]:
    """Read a message that can be written again, also inside another one.

    Raises:
        Untranslatable: as `read`, or deeper than `MAX_DEPTH`.
    """
    document = read(line)
    # Counting costs microseconds; few messages have so many brackets that they must be walked.
    if line.count(b"{") + line.count(b"[") > MAX_DEPTH and _too_deep(document):
        raise Untranslatable(f"nested deeper than {MAX_DEPTH}")
    return document


def _too_deep(document: dict[str, Any]) -> bool:
    level: list[Any] = [document]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
    return bool(level)


def glimpse(line: bytes) -> dict[str, Any]:
    """Return what `parse` refused as far as it is a message: it says whom to tell. Else {}."""
    try:
        return mapping(json.loads(line))
    except (ValueError, RecursionError):
        return {}


def request(name: Key, method: str, params: dict[str, Any] | None) -> bytes:
    """Return a request's line."""
    return _line({"id": name, "method": method}, params)


def notification(method: str, params: dict[str, Any] | None = None) -> bytes:
    """Return a notification's line."""
    return _line({"method": method}, params)


def _line(head: dict[str, Any], params: dict[str, Any] | None) -> bytes:
    tail = {} if params is None else {"params": params}
    return write({"jsonrpc": "2.0", **head, **tail})


def response(name: Key, body: dict[str, Any]) -> bytes:
    """Return a response's line; `body` is {"result": …} or {"error": …}."""
    return write({"jsonrpc": "2.0", "id": name, **body})


def failure(code: int, message: str, **data: Any) -> dict[str, Any]:
    """Return the body of an error response."""
    return {"error": {"code": code, "message": message, **({"data": data} if data else {})}}


def legacy_params(method: str, params: dict[str, Any]) -> dict[str, Any]:
    """Return what a handshake server gets of a modern request's parameters.

    `task` goes too: the child would start one of 2025-11-25, which the caller could not follow.
    """
    modern = {"inputResponses", "requestState", "task"} if method in ASKING else set()
    kept = {name: value for name, value in params.items() if name not in {*modern, "_meta"}}
    meta = {n: v for n, v in mapping(params.get("_meta")).items() if not n.startswith(PREFIX)}
    return {**kept, "_meta": meta} if meta else kept


def token(params: dict[str, Any]) -> Key | None:
    """Return a request's progress token."""
    return key(mapping(params.get("_meta")).get("progressToken"))


def modern_ask(method: str, params: dict[str, Any] | None) -> dict[str, Any]:
    """Return the child's request as an entry of `inputRequests`."""
    if params is None:
        return {"method": method}
    gone = ("_meta", "task", "elicitationId")
    return {"method": method, "params": {n: v for n, v in params.items() if n not in gone}}


def modern_body(method: str, answer: dict[str, Any], server: dict[str, Any]) -> dict[str, Any]:
    """Return a handshake server's answer to `method` as the body of a modern one.

    Args:
        method: what was called.
        answer: the child's response.
        server: `{"io.modelcontextprotocol/serverInfo": …}`, or empty if the child gave none.
    """
    if "error" in answer:
        return {"error": _modern_error(mapping(answer["error"]))}
    result = answer.get("result")
    if not isinstance(result, dict):
        return failure(INTERNAL, "the server's answer has no result")
    return {"result": completed(result, server, cacheable=method in CACHEABLE)}


def completed(
    result: dict[str, Any], server: dict[str, Any], *, cacheable: bool = False
) -> dict[str, Any]:
    """Return a complete modern result."""
    plain = {name: value for name, value in result.items() if name != "_meta"}
    fresh = {"ttlMs": 0, "cacheScope": "private"} if cacheable else {}
    meta = {**mapping(result.get("_meta")), **server}
    return {**plain, "resultType": "complete", **fresh, **({"_meta": meta} if meta else {})}


def _modern_error(error: dict[str, Any]) -> dict[str, Any]:
    code, message = error.get("code"), error.get("message")
    if not isinstance(code, int) or isinstance(code, bool) or code == URL_FIRST:
        code = INTERNAL
    elif code == NO_RESOURCE:
        code = BAD_PARAMS
    return {**error, "code": code, "message": message if isinstance(message, str) else ""}


def urls_first(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parameters of the URL elicitations that must come before the call, if any."""
    error = mapping(answer.get("error"))
    listed = mapping(error.get("data")).get("elicitations")
    if error.get("code") != URL_FIRST or not isinstance(listed, list):
        return []
    return [{**each, "mode": "url"} for each in listed if isinstance(each, dict)]


def declared(params: dict[str, Any]) -> dict[str, Any]:
    """Return the capabilities of a modern request's client, see `able`."""
    return able(mapping(mapping(params.get("_meta")).get(f"{PREFIX}clientCapabilities")))


def able(capabilities: dict[str, Any]) -> dict[str, Any]:
    """Return capabilities as `covers` compares them; elicitation without modes means forms."""
    elicitation = capabilities.get("elicitation")
    if isinstance(elicitation, dict) and not elicitation.keys() & {"form", "url"}:
        return {**capabilities, "elicitation": {"form": {}}}
    return capabilities


def needs(method: str, params: dict[str, Any]) -> dict[str, Any]:
    """Return the client capabilities without which the child's ask must not be put to a client."""
    if method == "roots/list":
        return {"roots": {}}
    if method == "sampling/createMessage":
        return {"sampling": {"tools": {}} if {"tools", "toolChoice"} & params.keys() else {}}
    return {"elicitation": {"url" if params.get("mode") == "url" else "form": {}}}


def covers(capabilities: dict[str, Any], needed: dict[str, Any]) -> bool:
    """Tell whether a client that declares `capabilities` may be asked for what is `needed`."""
    return all(
        isinstance(own := capabilities.get(name), dict) and covers(own, inner)
        for name, inner in needed.items()
    )


def fits(method: str, given: Any) -> bool:
    """Tell whether an input response answers an ask of `method`."""
    answer = mapping(given)
    if method == "roots/list":
        return isinstance(answer.get("roots"), list)
    if method == "sampling/createMessage":
        return {"role", "content", "model"} <= answer.keys()
    return answer.get("action") in ("accept", "decline", "cancel")
