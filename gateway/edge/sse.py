"""Server-sent events (WHATWG HTML, 9.2): encoding and keep-alive. Pure."""

KEEP_ALIVE_S = 25.0
"""A comment after so long without an event: the platform's router cuts at 55 s of silence."""

COMMENT = b": keep-alive\n\n"


def event(raw: bytes) -> bytes:
    """Return one `message` event. `raw` is on one line, see `jsonrpc.one_line`."""
    return b"event: message\ndata: " + raw + b"\n\n"
