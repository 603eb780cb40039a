"""JSON-RPC 2.0 envelopes: peek at the outer keys, leave the payload as it came.

A message is decoded once, for routing; what is forwarded are the original bytes. msgspec's `Raw`
keeps params and results unparsed, so numbers, key order and duplicate keys reach the other side
as they were written.
"""

import contextlib
from collections.abc import Collection, Mapping
from enum import Enum
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Raw, UnsetType

from gateway.errors import INTERNAL_ERROR, BadJson, BadMessage, GatewayError

T = TypeVar("T")


class Kind(Enum):
    """What a message is."""

    REQUEST = "request"
    NOTIFICATION = "notification"
    RESPONSE = "response"


class _Meta(msgspec.Struct):
    progressToken: str | int | UnsetType = UNSET  # noqa: N815 - the specification's spelling


class Params(msgspec.Struct):
    """The few params that routing and the log need."""

    meta: _Meta | UnsetType = msgspec.field(name="_meta", default=UNSET)
    name: Any = None
    requestId: str | int | None = None  # noqa: N815
    progressToken: str | int | None = None  # noqa: N815
    progress: Any = None
    level: Any = None

    @property
    def token(self) -> str | int | None:
        """The progress token of a request, if its sender wants progress."""
        given = UNSET if self.meta is UNSET else self.meta.progressToken
        return None if given is UNSET else given


class Envelope(msgspec.Struct):
    """The outer keys of one message. `id` is as sent: 1 and "1" are different ids."""

    jsonrpc: str
    id: str | int | UnsetType | None = UNSET
    method: str | UnsetType = UNSET
    params: Raw | UnsetType = UNSET
    result: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET

    @property
    def kind(self) -> Kind:
        """Request, notification or response.

        Raises:
            BadMessage: none of the three.
        """
        answered = (self.result is not UNSET) + (self.error is not UNSET)
        if self.method is not UNSET and not answered:
            if self.id is UNSET:
                return Kind.NOTIFICATION
            if self.id is not None:
                return Kind.REQUEST
        elif self.method is UNSET and answered == 1 and self.id is not UNSET:
            return Kind.RESPONSE
        raise BadMessage("not a JSON-RPC 2.0 message: send a request, a notification or a response")

    @property
    def request_id(self) -> str | int:
        """The id of a request.

        Raises:
            BadMessage: there is none.
        """
        if self.id is None or self.id is UNSET:
            raise BadMessage("a request without an id")
        return self.id

    @property
    def method_name(self) -> str:
        """The method, or nothing for a response."""
        return "" if self.method is UNSET else self.method


class ShortArray:
    """Takes JSON arrays of few members apart.

    A plain list has no limit while it is decoded: 16 MiB of `1,1,1` take 590 MiB as one. What comes
    beyond the limit is parsed here and not kept.

    Args:
        limit: most members.
    """

    def __init__(self, limit: int) -> None:
        fields = [(f"member_{n}", Raw | UnsetType, UNSET) for n in range(limit + 1)]
        self._decoder = msgspec.json.Decoder(msgspec.defstruct("Array", fields, array_like=True))

    def members(self, raw: bytes | Raw) -> list[Raw]:
        """Return the members; one more than the limit if there are more.

        Raises:
            msgspec.DecodeError: no JSON, or no array.
            RecursionError: nested too deeply.
        """
        slots = msgspec.structs.astuple(self._decoder.decode(raw))
        return [member for member in slots if member is not UNSET]


MAX_BATCH = 64
"""Messages in one batch. No SDK sends any; a hand-written client sends a few."""

_DECODER = msgspec.json.Decoder(Envelope)
_PARAMS = msgspec.json.Decoder(Params)
_BATCH = ShortArray(MAX_BATCH)


def peek(raw: bytes) -> Envelope:
    """Decode the outer keys of one message.

    Raises:
        BadJson: not UTF-8 or not JSON.
        BadMessage: a batch, another value, or no JSON-RPC 2.0 message.
    """
    try:
        raw.decode()  # msgspec lets invalid UTF-8 pass inside Raw
        envelope = _DECODER.decode(raw)
    except UnicodeDecodeError as error:
        raise BadJson(f"the body is not UTF-8 (byte {error.start})") from error
    except msgspec.ValidationError as error:
        if raw.lstrip()[:1] == b"[":
            raise BadMessage(
                "batches are not supported here: send one JSON-RPC message per POST"
            ) from error
        raise BadMessage(f"not a JSON-RPC 2.0 message: {error}") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadJson(f"the body is not JSON: {error}") from error
    if envelope.jsonrpc != "2.0":
        raise BadMessage('not a JSON-RPC 2.0 message: "jsonrpc" must be "2.0"')
    return envelope


def split(raw: bytes) -> list[bytes] | None:
    """Return the members of a batch (2025-03-26), each as it was written; None for anything else.

    Raises:
        BadJson: an array, but not UTF-8 or not JSON.
        BadMessage: no members, or more than `MAX_BATCH`.
    """
    if raw.lstrip(b" \t\r\n")[:1] != b"[":
        return None
    try:
        raw.decode()  # msgspec lets invalid UTF-8 pass inside Raw
        members = _BATCH.members(raw)
    except UnicodeDecodeError as error:
        raise BadJson(f"the body is not UTF-8 (byte {error.start})") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadJson(f"the body is not JSON: {error}") from error
    if not 0 < len(members) <= MAX_BATCH:
        raise BadMessage(f"a batch has 1 to {MAX_BATCH} messages", limit=MAX_BATCH)
    return [bytes(member) for member in members]


def params_of(envelope: Envelope) -> Params:
    """Return the params that routing needs; empty where they are absent or of another shape."""
    if envelope.params is UNSET:
        return Params()
    try:
        return _PARAMS.decode(envelope.params)
    except (msgspec.DecodeError, RecursionError):
        return Params()


def one_line(raw: bytes) -> bytes:
    """Return the message on one line, as stdio framing and SSE `data:` need it.

    Raw CR and LF can only be white space between tokens in valid JSON, so a blank in their place
    changes nothing; left alone they would split one message into two (frame injection).
    """
    if b"\n" in raw or b"\r" in raw:
        raw = raw.replace(b"\r", b" ").replace(b"\n", b" ")
    return raw


def text_of(raw: Raw | UnsetType) -> str:
    """Return a part of a message as text; empty if there is none."""
    return "" if raw is UNSET else bytes(raw).decode()


def progress_of(envelope: Envelope) -> float | None:
    """Return how far a `notifications/progress` says its call is; None where it says nothing."""
    told = params_of(envelope).progress
    return float(told) if isinstance(told, int | float) else None


class _Metas(msgspec.Struct):
    meta: dict[str, Raw] = msgspec.field(name="_meta", default_factory=dict)


class _WithMetas(msgspec.Struct):
    params: _Metas = msgspec.field(default_factory=_Metas)


_METAS = msgspec.json.Decoder(_WithMetas)
_OBJECT = msgspec.json.Decoder(dict[str, Raw])
_TEXT = msgspec.json.Decoder(str)


def meta_texts(raw: bytes, keys: Collection[str], longest: int) -> dict[str, str]:
    """Return what a message has under these keys of `params._meta`, where that is a short text."""
    try:
        meta = _METAS.decode(raw).params.meta
    except (msgspec.DecodeError, RecursionError):
        return {}
    found: dict[str, str] = {}
    for key in keys:
        with contextlib.suppress(msgspec.DecodeError):
            text = _TEXT.decode(meta.get(key, Raw(b"0")))
            if 0 < len(text) <= longest and text.isascii() and text.isprintable():
                found[key] = text
    return found


def with_meta(raw: bytes, texts: Mapping[str, str]) -> bytes:
    """Return a message with these texts in `params._meta`, on one line; itself if it has no room.

    All other members keep their bytes. Params that are no object have no room for anything.
    """
    try:
        message = _OBJECT.decode(raw)
        params = _OBJECT.decode(message.get("params", Raw(b"{}")))
        meta: dict[str, Any] = dict(_OBJECT.decode(params.get("_meta", Raw(b"{}"))))
    except (msgspec.DecodeError, RecursionError):
        return raw
    meta.update(texts)
    whole: dict[str, Any] = {**message, "params": {**params, "_meta": meta}}
    return one_line(msgspec.json.encode(whole))


def notification(method: str, params: Mapping[str, Any] | None = None) -> bytes:
    """Return a notification of ours."""
    given = {} if params is None else {"params": params}
    return msgspec.json.encode({"jsonrpc": "2.0", "method": method, **given})


def request(request_id: str | int, method: str, params: Any = UNSET) -> bytes:
    """Return a request of ours, on one line; `params` may be `Raw`."""
    given = {} if params is UNSET else {"params": params}
    return one_line(
        msgspec.json.encode({"jsonrpc": "2.0", "id": request_id, "method": method, **given})
    )


def result_response(request_id: str | int, result: Any) -> bytes:
    """Return an answer of ours, on one line; `result` may be `Raw`."""
    return one_line(msgspec.json.encode({"jsonrpc": "2.0", "id": request_id, "result": result}))


class _Error(msgspec.Struct):
    code: int = 0
    message: str = ""


_ERROR = msgspec.json.Decoder(_Error)


def error_of(envelope: Envelope) -> tuple[int, str]:
    """Return the code and the message of an error response; (0, "") of anything else."""
    if envelope.error is UNSET:
        return 0, ""
    try:
        error = _ERROR.decode(envelope.error)
    except (msgspec.DecodeError, RecursionError):
        return INTERNAL_ERROR, ""
    return error.code, error.message


def error_response(request_id: str | int | None, error: GatewayError) -> bytes:
    """Return the JSON-RPC error response for a failure of ours.

    Text that came from outside may hold halves of surrogate pairs, which no encoding of JSON takes.
    """
    data = {"reason": error.reason, **{key: sound(value) for key, value in error.data.items()}}
    return msgspec.json.encode(
        {
            "jsonrpc": "2.0",
            "id": sound(request_id),
            "error": {"code": error.code, "message": sound(error.message), "data": data},
        }
    )


def sound(value: T) -> T:
    """Return a text with everything replaced that UTF-8 cannot hold; other values as they are."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value  # type: ignore[return-value]
