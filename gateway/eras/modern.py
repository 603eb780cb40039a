"""What MCP 2026-07-28 says about requests, answers and notifications. Pure.

There is no handshake and no session: every request carries its revision and its client's
capabilities in `params._meta`, and repeats some of it in headers (`headers.py`). Several callers
share one child, so a request gets another id, progress token and so on for its way to the child,
and everything that comes back is given its caller's own again. What is not touched keeps its bytes.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, TypeVar

import msgspec
from msgspec import UNSET, Raw, UnsetType

from gateway.eras.headers import NAMED, REVISION_HEADER, check_routing, revision_of
from gateway.eras.versions import HANDSHAKE, MODERN
from gateway.errors import (
    HEADER_MISMATCH,
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    MISSING_CAPABILITY,
    PARSE_ERROR,
    UNSUPPORTED_REVISION,
    BadMessage,
    BadParams,
    HeaderMismatch,
    UnknownMethod,
    UnsupportedRevision,
)
from gateway.jsonrpc import Envelope, Kind, notification, one_line

REVISION: Final = MODERN
REVISION_KEY: Final = "io.modelcontextprotocol/protocolVersion"
CAPABILITIES_KEY: Final = "io.modelcontextprotocol/clientCapabilities"
CLIENT_KEY: Final = "io.modelcontextprotocol/clientInfo"
LOG_LEVEL_KEY: Final = "io.modelcontextprotocol/logLevel"
SUBSCRIPTION_KEY: Final = "io.modelcontextprotocol/subscriptionId"
SERVER_KEY: Final = "io.modelcontextprotocol/serverInfo"
TASKS_EXTENSION: Final = "io.modelcontextprotocol/tasks"

LISTEN: Final = "subscriptions/listen"
ACKNOWLEDGED: Final = "notifications/subscriptions/acknowledged"

_CHANGES: Final = {
    "toolsListChanged": "tools",
    "promptsListChanged": "prompts",
    "resourcesListChanged": "resources",
}
"""What a listen may ask for that concerns a whole list, and whose."""

REMOVED: Final = frozenset(
    {
        "initialize",
        "notifications/initialized",
        "ping",
        "logging/setLevel",
        "resources/subscribe",
        "resources/unsubscribe",
        "notifications/roots/list_changed",
        "tasks/list",
        "tasks/result",
    }
)
"""Methods of the handshake revisions that are gone. `tasks/get` and `tasks/cancel` live on in the
tasks extension."""

CACHEABLE: Final = frozenset(
    {
        "server/discover",
        "tools/list",
        "prompts/list",
        "resources/list",
        "resources/templates/list",
        "resources/read",
    }
)
"""Methods whose complete results carry `ttlMs` and `cacheScope`."""

MAY_ASK: Final = ("tools/call", "prompts/get", "resources/read")
"""Methods that may be answered `input_required`."""

MAX_CLIENT_NAME: Final = 128
"""Characters of a client's name and version, for the log."""
MAX_SHOWN: Final = 64
"""Characters of a revision that an error repeats."""

_STATUS: Final[Mapping[int, int]] = MappingProxyType(
    {
        PARSE_ERROR: 400,
        INVALID_REQUEST: 400,
        INVALID_PARAMS: 400,
        HEADER_MISMATCH: 400,
        MISSING_CAPABILITY: 400,
        UNSUPPORTED_REVISION: 400,
        METHOD_NOT_FOUND: 404,
    }
)

T = TypeVar("T")


class _Claim(msgspec.Struct):
    revision: Raw | UnsetType = msgspec.field(name=REVISION_KEY, default=UNSET)


class _Claiming(msgspec.Struct):
    meta: _Claim = msgspec.field(name="_meta", default_factory=_Claim)


class _Client(msgspec.Struct):
    name: str = ""
    version: str = ""


class _Tag(msgspec.Struct, frozen=True):
    subscription_id: str | int | None = msgspec.field(name=SUBSCRIPTION_KEY, default=None)


class ResultHead(msgspec.Struct, frozen=True, rename="camel"):
    """What the gateway needs of a result; None is absent or of another type."""

    result_type: str | None = None
    request_state: str | None = None
    next_cursor: str | None = None
    task_id: str | None = None
    meta: _Tag | None = msgspec.field(name="_meta", default=None)

    @property
    def subscription_id(self) -> str | int | None:
        """The tag of a result that ends a `subscriptions/listen`."""
        return None if self.meta is None else self.meta.subscription_id

    @property
    def is_plain(self) -> bool:
        """True if nothing in the result is the child's own word for something."""
        given = (self.request_state, self.next_cursor, self.task_id, self.subscription_id)
        return given == (None, None, None, None)


class ParamsHead(msgspec.Struct, frozen=True, rename="camel"):
    """What the gateway needs of a notification's params; None is absent or of another type."""

    progress_token: str | int | None = None
    request_id: str | int | None = None
    request_state: str | None = None
    task_id: str | None = None
    meta: _Tag | None = msgspec.field(name="_meta", default=None)

    @property
    def subscription_id(self) -> str | int | None:
        """The `subscriptions/listen` that the notification is for."""
        return None if self.meta is None else self.meta.subscription_id


_CLAIMING = msgspec.json.Decoder(_Claiming)
_MEMBERS = msgspec.json.Decoder(dict[str, Raw])
_OBJECT = msgspec.json.Decoder(dict[str, Any])
_CLIENT = msgspec.json.Decoder(_Client)
_STRING = msgspec.json.Decoder(str)
_TEXT = msgspec.json.Decoder(str | None)
_TOKEN = msgspec.json.Decoder(str | int | None)
_TAG = msgspec.json.Decoder(_Tag | None)
_RESULT_HEAD = msgspec.json.Decoder(ResultHead)
_PARAMS_HEAD = msgspec.json.Decoder(ParamsHead)
_FLAGS = msgspec.json.Decoder(dict[str, Any])
_NULL = Raw(b"null")
_UNREADABLE = (msgspec.DecodeError, RecursionError)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of a modern client, read.

    Attributes:
        id: as the client wrote it.
        revision: what `_meta` says.
        params: all of it, each member as it came.
        meta: `params._meta`, each member as it came.
        name: what `Mcp-Name` repeats: a tool's or prompt's name, a URI, a task id.
        token: the progress token, if the client wants progress.
        log_level: the least severe log messages it wants; None for none at all.
        capabilities: what it says it can do, for this request only.
        client: its name and version, at most 128 characters, for the log.
        input_responses: its answers to what an `input_required` asked.
        request_state: what came with that question.
        cursor: of the list's page.
    """

    id: str | int
    method: str
    revision: str
    params: dict[str, Raw]
    meta: dict[str, Raw]
    name: str | None
    token: str | int | None
    log_level: str | None
    capabilities: dict[str, Any]
    client: str
    input_responses: Raw | None
    request_state: str | None
    cursor: str | None


def is_modern(header: str | None, envelope: Envelope) -> bool:
    """Return which era one POST belongs to. Every combination is either served or refused there.

    `_meta` is that of a request; for the other kinds the header decides.

    | `MCP-Protocol-Version`    | `_meta` names no revision | names a handshake's | names another |
    |---------------------------|---------------------------|---------------------|---------------|
    | 2026-07-28 or later¹      | modern: -32602 or -32022  | modern: -32020      | modern        |
    | missing                   | legacy                    | legacy              | modern: -32020|
    | of the handshake          | legacy                    | legacy              | modern: -32020|
    | unknown and earlier¹      | legacy: refused           | legacy: refused     | modern: -32020|

    ¹ compared as text, so that whatever does not look like a date is later. Where header and body
    agree on a revision that is not served, the refusal is always -32022. An `initialize` is modern
    only by its header, since no revision without handshake has that method.

    Args:
        header: the value of `MCP-Protocol-Version`; None if it is missing.
        envelope: of the message.
    """
    if header is not None and header.strip(" \t") >= REVISION:
        return True
    if envelope.method == "initialize" or envelope.kind is not Kind.REQUEST:
        return False
    claim = _claim(envelope)
    return claim is not None and _text(claim) not in HANDSHAKE


def admit(
    headers: Iterable[tuple[str, str]], envelope: Envelope, supported: Sequence[str]
) -> Asked:
    """Read one request of a modern client and check everything that needs no server for it.

    In this order, and the first that fails is told: the revision is served (if header and body do
    not contradict each other about it: the rules below are those of a served revision); `_meta` is
    complete; the headers repeat the body; the method exists.

    Args:
        headers: all lines, as they came.
        envelope: of the message.
        supported: the revisions that `server/discover` names.

    Raises:
        BadMessage: a response, or a notification.
        UnsupportedRevision: `data.supported` and `data.requested` are what the specification asks.
        BadParams: `_meta` is incomplete, or something is of a wrong type.
        HeaderMismatch: see `headers.check_routing`.
        UnknownMethod: it is gone since 2026-07-28. Others are the child's to know.
    """
    if envelope.kind is not Kind.REQUEST:
        raise BadMessage("clients send requests and notifications, and no responses")
    headers = tuple(headers)
    header = revision_of(headers)
    if header is not None and header not in supported:
        claim = _claim(envelope)
        if claim is None or _text(claim) == header:
            raise _unsupported(header, supported)
    asked = read(envelope)
    check_routing(headers, asked.revision, asked.method, asked.name)
    if asked.revision not in supported:
        raise _unsupported(asked.revision, supported)
    if asked.method in REMOVED:
        raise UnknownMethod(f"MCP {asked.revision} has no method {asked.method}")
    return asked


def admit_notification(headers: Iterable[tuple[str, str]], supported: Sequence[str]) -> None:
    """Check a notification that belongs to the modern era; it is to be acknowledged and dropped.

    The specification defines none over HTTP, and no other header for one.

    Raises:
        HeaderMismatch: no revision, or several.
        UnsupportedRevision: it is not served.
    """
    revision = revision_of(headers)
    if revision is None:
        raise HeaderMismatch(f"send {REVISION_HEADER} once", header=REVISION_HEADER)
    if revision not in supported:
        raise _unsupported(revision, supported)


def read(envelope: Envelope) -> Asked:
    """Read a request by its body alone.

    Raises:
        BadMessage: it has no id.
        BadParams: a required key of `_meta` is missing, or something that the gateway has to
            understand is of another type. null counts as absent, except where a value is required.
    """
    params = _members_of(envelope.params, "params")
    meta = _members_of(params.get("_meta", UNSET), "params._meta")
    missing = [key for key in (REVISION_KEY, CAPABILITIES_KEY) if key not in meta]
    if missing:
        raise BadParams(f"params._meta lacks {' and '.join(missing)}", missing=missing)
    method = envelope.method_name
    return Asked(
        id=envelope.request_id,
        method=method,
        revision=_required(meta, REVISION_KEY, _STRING, "a string"),
        params=params,
        meta=meta,
        name=_typed(params, NAMED[method], _TEXT, "a string") if method in NAMED else None,
        token=_typed(meta, "progressToken", _TOKEN, "a string or an integer"),
        log_level=_typed(meta, LOG_LEVEL_KEY, _TEXT, "a string"),
        capabilities=_required(meta, CAPABILITIES_KEY, _OBJECT, "an object"),
        client=_client_name(meta.get(CLIENT_KEY)),
        input_responses=_unless_null(params.get("inputResponses")),
        request_state=_typed(params, "requestState", _TEXT, "a string"),
        cursor=_typed(params, "cursor", _TEXT, "a string"),
    )


def http_status(code: int) -> int:
    """Return the HTTP status of an answer with this error, if it is not yet a stream.

    200 where the specification assigns none, as for -32603 and a server's own codes.
    """
    return _STATUS.get(code, 200)


def outgoing(
    asked: Asked,
    request_id: str | int,
    token: str | int | None,
    *,
    request_state: str | None = None,
    cursor: str | None = None,
    task_id: str | None = None,
) -> bytes:
    """Return a request as the child shall read it, on one line.

    Args:
        asked: what the client sent.
        request_id: what the child knows it by.
        token: what the child knows its progress by; without one the client's is left out. Nothing
            is added for a client that wants no progress.
        request_state: in place of the client's; None leaves that.
        cursor: likewise.
        task_id: likewise.
    """
    meta: dict[str, Any] = dict(asked.meta)
    if asked.token is not None:
        meta["progressToken"] = token
        if token is None:
            del meta["progressToken"]
    given = {"requestState": request_state, "cursor": cursor, "taskId": task_id}
    params = {**asked.params, "_meta": meta, **_present(given)}
    message = {"jsonrpc": "2.0", "id": request_id, "method": asked.method, "params": params}
    return one_line(msgspec.json.encode(message))


def restored(envelope: Envelope, request_id: str | int, result: Raw | None = None) -> bytes:
    """Return a child's answer under its client's id, on one line; with another result if given."""
    answer = msgspec.structs.replace(envelope, id=request_id)
    if result is not None:
        answer.result = result
    return one_line(msgspec.json.encode(answer))


def passed_on(envelope: Envelope, params: Raw) -> bytes:
    """Return a child's notification with other params, on one line."""
    return one_line(msgspec.json.encode(msgspec.structs.replace(envelope, params=params)))


def peek_result(raw: Raw) -> ResultHead:
    """Read the few members of a result that the gateway needs. Takes anything."""
    try:
        return _RESULT_HEAD.decode(raw)
    except _UNREADABLE:
        found = _loose(raw)
    return ResultHead(
        result_type=_lenient(_TEXT, found.get("resultType")),
        request_state=_lenient(_TEXT, found.get("requestState")),
        next_cursor=_lenient(_TEXT, found.get("nextCursor")),
        task_id=_lenient(_TEXT, found.get("taskId")),
        meta=_lenient(_TAG, found.get("_meta")),
    )


def peek_params(raw: Raw) -> ParamsHead:
    """Read the few members of a notification's params that the gateway needs. Takes anything."""
    try:
        return _PARAMS_HEAD.decode(raw)
    except _UNREADABLE:
        found = _loose(raw)
    return ParamsHead(
        progress_token=_lenient(_TOKEN, found.get("progressToken")),
        request_id=_lenient(_TOKEN, found.get("requestId")),
        request_state=_lenient(_TEXT, found.get("requestState")),
        task_id=_lenient(_TEXT, found.get("taskId")),
        meta=_lenient(_TAG, found.get("_meta")),
    )


def rewrite_result(
    raw: Raw,
    *,
    request_state: str | None = None,
    next_cursor: str | None = None,
    task_id: str | None = None,
    subscription_id: str | int | None = None,
) -> Raw:
    """Return a result with these members set; None leaves one, and no object stays as it is."""
    given = {"requestState": request_state, "nextCursor": next_cursor, "taskId": task_id}
    return _rewritten(raw, given, subscription_id)


def rewrite_params(
    raw: Raw,
    *,
    progress_token: str | int | None = None,
    request_id: str | int | None = None,
    request_state: str | None = None,
    task_id: str | None = None,
    subscription_id: str | int | None = None,
) -> Raw:
    """Return a notification's params with these members set, as `rewrite_result` does."""
    given = {
        "progressToken": progress_token,
        "requestId": request_id,
        "requestState": request_state,
        "taskId": task_id,
    }
    return _rewritten(raw, given, subscription_id)


def lists_only(asked: Asked) -> bool:
    """True for a `subscriptions/listen` to changes of lists, and to no resource's."""
    wanted = _lenient(_MEMBERS, asked.params.get("notifications"))
    return asked.method == LISTEN and wanted is not None and wanted.keys() <= _CHANGES.keys()


def accepted(asked: Asked, kinds: Collection[str]) -> frozenset[str]:
    """Return which kinds a `subscriptions/listen` that `lists_only` will hear of.

    Args:
        asked: the request.
        kinds: of tools, prompts and resources, those whose list may change.
    """
    wanted = _lenient(_FLAGS, asked.params.get("notifications")) or {}
    return frozenset(
        kind for key, kind in _CHANGES.items() if kind in kinds and wanted.get(key) is True
    )


def acknowledged(asked: Asked, kinds: Collection[str]) -> bytes:
    """Return what opens a `subscriptions/listen` to the lists of these kinds."""
    flags = {key: True for key, kind in _CHANGES.items() if kind in kinds}
    params = {"notifications": flags, "_meta": {SUBSCRIPTION_KEY: asked.id}}
    return notification(ACKNOWLEDGED, params)


def list_changed(kind: str, request_id: str | int) -> bytes:
    """Return what tells a `subscriptions/listen` of the list of this kind."""
    meta = {SUBSCRIPTION_KEY: request_id}
    return notification(f"notifications/{kind}/list_changed", {"_meta": meta})


def complete_listen(request_id: str | int) -> bytes:
    """Return the result that ends a `subscriptions/listen` in good order."""
    result = {"resultType": "complete", "_meta": {SUBSCRIPTION_KEY: request_id}}
    return msgspec.json.encode({"jsonrpc": "2.0", "id": request_id, "result": result})


def _claim(envelope: Envelope) -> Raw | None:
    """Return what the body names as its revision, whatever it is; None if it names nothing."""
    if envelope.params is UNSET:
        return None
    claiming = _lenient(_CLAIMING, envelope.params)
    revision = UNSET if claiming is None else claiming.meta.revision
    return None if revision is UNSET else _unless_null(revision)


def _unsupported(revision: str, supported: Sequence[str]) -> UnsupportedRevision:
    revision = revision[:MAX_SHOWN]
    served = ", ".join(supported)
    return UnsupportedRevision(
        f"MCP {revision!r} is not served here; use one of {served}",
        supported=list(supported),
        requested=revision,
    )


def _members_of(raw: Raw | UnsetType, what: str) -> dict[str, Raw]:
    try:
        return _MEMBERS.decode(_NULL if raw is UNSET else raw)
    except _UNREADABLE as error:
        raise BadParams(
            f"{what} must be an object; _meta in it names {REVISION_KEY} and {CAPABILITIES_KEY}"
        ) from error


def _typed(
    members: Mapping[str, Raw], key: str, decoder: msgspec.json.Decoder[T], what: str
) -> T | None:
    return _required(members, key, decoder, what) if key in members else None


def _required(
    members: Mapping[str, Raw], key: str, decoder: msgspec.json.Decoder[T], what: str
) -> T:
    try:
        return decoder.decode(members[key])
    except _UNREADABLE as error:
        raise BadParams(f"{key} must be {what}") from error


def _lenient(decoder: msgspec.json.Decoder[T], raw: Raw | None) -> T | None:
    if raw is None:
        return None
    try:
        return decoder.decode(raw)
    except _UNREADABLE:
        return None


def _loose(raw: Raw) -> dict[str, Raw]:
    return _lenient(_MEMBERS, raw) or {}


def _text(raw: Raw) -> str | None:
    return _lenient(_TEXT, raw)


def _client_name(raw: Raw | None) -> str:
    client = _lenient(_CLIENT, raw) or _Client()
    return f"{client.name} {client.version}".strip()[:MAX_CLIENT_NAME]


def _unless_null(raw: Raw | None) -> Raw | None:
    return None if raw == _NULL else raw


def _present(given: Mapping[str, T | None]) -> dict[str, T]:
    return {key: value for key, value in given.items() if value is not None}


def _rewritten(
    raw: Raw, given: Mapping[str, str | int | None], subscription_id: str | int | None
) -> Raw:
    found = _lenient(_MEMBERS, raw)
    if found is None:
        return raw
    members: dict[str, Any] = {**found, **_present(given)}
    if subscription_id is not None:
        meta = _lenient(_MEMBERS, found.get("_meta")) or {}
        members["_meta"] = {**meta, SUBSCRIPTION_KEY: subscription_id}
    return Raw(msgspec.json.encode(members))
