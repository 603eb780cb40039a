"""JSON-RPC 2.0 envelopes: peek at the outer keys, leave the payload as it came.

A message is decoded once, for routing; what is forwarded are the original bytes. msgspec's `Raw`
keeps params and results unparsed, so numbers, key order and duplicate keys reach the other side
as they were written.
"""

from enum import Enum
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Raw, UnsetType

from gateway.errors import BadJson, BadMessage, GatewayError

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


_DECODER = msgspec.json.Decoder(Envelope)
_PARAMS = msgspec.json.Decoder(Params)


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
