"""What the handshake revisions say about messages that the transport must know. Pure."""

import msgspec
from msgspec import UNSET

from gateway.eras.versions import resumable
from gateway.jsonrpc import Envelope


class _ClientInfo(msgspec.Struct):
    name: str = ""
    version: str = ""


class _InitializeParams(msgspec.Struct):
    protocolVersion: str = ""  # noqa: N815
    clientInfo: _ClientInfo = msgspec.field(default_factory=_ClientInfo)  # noqa: N815


_PARAMS = msgspec.json.Decoder(_InitializeParams)


def opens_session(envelope: Envelope) -> bool:
    """True for the one request that may come without a session id."""
    return envelope.method == "initialize"


def client_name(envelope: Envelope) -> str:
    """Return what the client calls itself, at most 128 characters, for the log."""
    info = _params(envelope).clientInfo
    return f"{info.name} {info.version}".strip()[:128]


def resumes(envelope: Envelope, revision: str) -> bool:
    """True when the client comes back for the rest of a stream that ended early.

    Args:
        envelope: its request; an `initialize` says what the client speaks.
        revision: what the request's header says, or what is assumed without one.
    """
    if opens_session(envelope):
        revision = _params(envelope).protocolVersion
    return resumable(revision)


def _params(envelope: Envelope) -> _InitializeParams:
    if envelope.params is UNSET:
        return _InitializeParams()
    try:
        return _PARAMS.decode(envelope.params)
    except (msgspec.DecodeError, RecursionError):
        return _InitializeParams()
