"""What the handshake revisions say about messages that the transport must know. Pure."""

import msgspec
from msgspec import UNSET, Raw, UnsetType

from gateway.eras.versions import resumable
from gateway.jsonrpc import Envelope


class _ClientInfo(msgspec.Struct):
    name: str = ""
    version: str = ""


class _InitializeParams(msgspec.Struct):
    protocolVersion: str = ""  # noqa: N815
    clientInfo: _ClientInfo = msgspec.field(default_factory=_ClientInfo)  # noqa: N815


_PARAMS = msgspec.json.Decoder(_InitializeParams)


class Opening(msgspec.Struct, frozen=True):
    """How a client opened its session: what a child must hear that starts later.

    Attributes:
        params: of its `initialize`, as it wrote them; empty if there are none.
        told: the revision that it was told; empty as long as the child decides.
    """

    params: str = ""
    told: str = ""


def opens_session(envelope: Envelope) -> bool:
    """True for the one request that may come without a session id."""
    return envelope.method == "initialize"


def client_name(envelope: Envelope) -> str:
    """Return what the client calls itself, at most 128 characters, for the log."""
    info = _params(envelope.params).clientInfo
    return f"{info.name} {info.version}".strip()[:128]


def requested(params: Raw | UnsetType) -> str:
    """Return the revision that an `initialize` asks for; empty if it names none."""
    return _params(params).protocolVersion


def resumes(envelope: Envelope, revision: str) -> bool:
    """True when the client comes back for the rest of a stream that ended early.

    Args:
        envelope: its request; an `initialize` says what the client speaks.
        revision: what the request's header says, or what is assumed without one.
    """
    if opens_session(envelope):
        revision = requested(envelope.params)
    return resumable(revision)


def _params(params: Raw | UnsetType) -> _InitializeParams:
    if params is UNSET:
        return _InitializeParams()
    try:
        return _PARAMS.decode(params)
    except (msgspec.DecodeError, RecursionError):
        return _InitializeParams()
