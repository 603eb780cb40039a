"""Server-sent events (WHATWG HTML, 9.2): encoding, event ids, keep-alive. Pure."""

import re

KEEP_ALIVE_S = 25.0
"""A comment after so long without an event: the platform's router cuts at 55 s of silence."""

COMMENT = b": keep-alive\n\n"

RETRY_MS = 10_000
"""How long a client waits before it comes back. Both official SDKs try twice, a second apart unless
told otherwise: that must span the start of a new gateway process."""

RETRY = f"retry: {RETRY_MS}\n\n".encode()

SOON = b"retry: 500\n\n"
"""Before the end of a stream that another process goes on with at once."""

MARK = "~"
"""Stands before the name of a toolkit's member, behind the label in event ids. Neither has one."""

_ID = re.compile(r"([0-9]{1,19})\.([A-Za-z0-9_-]{0,1400})(?:~([A-Za-z0-9._-]{1,64}))?")


def event_id(place: int, label: str) -> str:
    """Return the id of an event: where its message stands on its stream, and the stream's label.

    Any gateway process can continue the stream from that alone.
    """
    return f"{place}.{label}"


def position(last_event_id: str) -> tuple[int, str]:
    """Return the place and the label that an event id holds, its mark aside.

    Raises:
        ValueError: not an id of ours.
    """
    found = _ID.fullmatch(last_event_id)
    if found is None:
        raise ValueError("not an event id of this gateway")
    return int(found[1]), found[2]


def marked(label: str, member: str) -> str:
    """Return the label of a stream as a toolkit's clients know it; see `member`."""
    return f"{label}{MARK}{member}" if member else label


def member(last_event_id: str) -> str:
    """Return whose stream it is that an event id belongs to; empty for one without a mark."""
    found = _ID.fullmatch(last_event_id)
    return (found[3] or "") if found is not None else ""


def frame(place: int = 0, label: str = "") -> tuple[bytes, bytes]:
    """Return what goes before and after the data of a `message` event.

    It has an id if it has a place on its stream.
    """
    head = f"id: {event_id(place, label)}\n".encode() if place else b""
    return head + b"event: message\ndata: ", b"\n\n"


def event(raw: bytes, place: int = 0, label: str = "") -> bytes:
    """Return one `message` event. `raw` is on one line, see `jsonrpc.one_line`."""
    return raw.join(frame(place, label))


def priming(place: int, label: str) -> bytes:
    """Return the event without data that lets a client resume a stream it has seen nothing of."""
    return f"id: {event_id(place, label)}\nretry: {RETRY_MS}\ndata: \n\n".encode()
