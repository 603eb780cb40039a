"""One frame of the link: a 20-byte header and raw payload. Encode, decode, refuse.

Layout, big-endian: type u8, flags u8, channel u16, sequence u64, acknowledged u64. The payload is
never looked at: JSON-RPC bytes travel as the child wrote them.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import ClassVar, NamedTuple

from dyno_agent.link.closing import CloseCode
from dyno_agent.link.limits import FRAGMENT_BYTES

HEADER = struct.Struct("!BBHQQ")
MAX_FRAME_BYTES = HEADER.size + FRAGMENT_BYTES
FIN = 0x01
"""Flag: this fragment ends its message."""
START = 0x02
"""Flag: this fragment begins its message."""


class ProtocolViolation(Exception):
    """The peer broke the link's rules. The attachment is closed with `code`, the session fails."""

    code: ClassVar[CloseCode] = CloseCode.PROTOCOL_VIOLATION


class WindowExceeded(ProtocolViolation):
    """The peer sent more than the credit it was given."""

    code = CloseCode.WINDOW_EXCEEDED


class MessageTooBig(ProtocolViolation):
    """The peer sent a message over the limit of the link."""

    code = CloseCode.MESSAGE_TOO_BIG


class FrameType(IntEnum):
    """What a frame is for."""

    DATA = 0x10
    ACK = 0x20
    HEARTBEAT = 0x21


class Channel(IntEnum):
    """The lane of a DATA frame. Each lane keeps its own order and at most one open message."""

    RPC = 0
    """Both ways: exactly one JSON-RPC message, as bytes."""
    LOG = 1
    """Agent to gateway: the child's stderr and the agent's own remarks, JSON objects."""
    EVENT = 2
    """Agent to gateway: what happened to the child, JSON objects."""
    CMD = 3
    """Gateway to agent: what to do, JSON objects."""
    REPLAY = 4
    """Agent to gateway: messages that the gateway has asked for again, see `retained.py`."""


class Frame(NamedTuple):
    """A decoded frame. `seq` is 0 on frames that are not sequenced (ACK, HEARTBEAT)."""

    type: FrameType
    start: bool
    fin: bool
    channel: Channel
    seq: int
    ack: int
    payload: bytes | memoryview


def encode(frame: Frame) -> bytes:
    """Return the frame as the body of one binary WebSocket message."""
    flags = (FIN if frame.fin else 0) | (START if frame.start else 0)
    head = HEADER.pack(frame.type, flags, frame.channel, frame.seq, frame.ack)
    return b"".join((head, frame.payload))


_TYPES = {int(member): member for member in FrameType}
_CHANNELS = {int(member): member for member in Channel}


def decode(data: bytes) -> Frame:
    """Read one frame.

    Raises:
        ProtocolViolation: short or long frame, unknown type, channel or flag, or a field that must
            be zero and is not.
    """
    size = len(data)
    if not HEADER.size <= size <= MAX_FRAME_BYTES:
        raise ProtocolViolation(f"a frame of {size} bytes")
    kind, flags, lane, seq, ack = HEADER.unpack_from(data)
    frame_type, channel = _TYPES.get(kind), _CHANNELS.get(lane)
    if frame_type is None or channel is None or flags & ~(FIN | START):
        raise ProtocolViolation(f"unknown type {kind}, channel {lane} or flags {flags}")
    if frame_type is FrameType.DATA:
        if seq == 0:
            raise ProtocolViolation("DATA without a sequence number")
    elif seq or lane or flags or size > HEADER.size:
        raise ProtocolViolation(f"{frame_type.name} with sequence, channel, flags or payload")
    return Frame(
        frame_type,
        bool(flags & START),
        bool(flags & FIN),
        channel,
        seq,
        ack,
        data[HEADER.size :],
    )
