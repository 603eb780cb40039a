"""What the handshake revisions say about messages that the transport must know. Pure."""

import msgspec
from msgspec import UNSET

from gateway.jsonrpc import Envelope


class _ClientInfo(msgspec.Struct):
    name: str = ""
    version: str = ""


class _InitializeParams(msgspec.Struct):
    clientInfo: _ClientInfo = msgspec.field(default_factory=_ClientInfo)  # noqa: N815


_PARAMS = msgspec.json.Decoder(_InitializeParams)


def opens_session(envelope: Envelope) -> bool:
    """True for the one request that may come without a session id."""
    return envelope.method == "initialize"


def client_name(envelope: Envelope) -> str:
    """Return what the client calls itself, at most 128 characters, for the log."""
    if envelope.params is UNSET:
        return ""
    try:
        info = _PARAMS.decode(envelope.params).clientInfo
    except (msgspec.DecodeError, RecursionError):
        return ""
    return f"{info.name} {info.version}".strip()[:128]
