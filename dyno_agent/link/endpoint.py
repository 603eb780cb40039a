"""One end of the link: order, acknowledgement, replay, fragments, credit, heartbeat.

The same class serves both sides. It owns no socket and no clock: the shell feeds what it received
and the time, sends what `frames_to_send` returns, and tells what was consumed. It survives its
attachments: `attach` continues on a new WebSocket exactly where the peer stopped.

An acknowledgement means *consumed*: every message up to that number was taken over by whoever the
message was for. That makes one credit window the only buffer limit of a session: a reader that
does not read stops the writer at the far end, and nothing in between grows.
"""

from collections import deque
from typing import NamedTuple

from dyno_agent.link.frames import (
    FIN,
    HEADER,
    Channel,
    Frame,
    FrameType,
    ProtocolViolation,
    decode,
    encode,
)
from dyno_agent.link.limits import DEFAULT_LIMITS, FRAGMENT_BYTES, Limits

_URGENT_FIRST = (Channel.CMD, Channel.EVENT, Channel.RPC, Channel.LOG)
"""Between two fragments of a large message, a `stop` or an exit report goes first."""

_RESERVE_BYTES, _RESERVE_FRAMES = FRAGMENT_BYTES, 1
"""Credit that only commands and events may use: `stop` and `exited` get through a full window."""

_MESSAGE_OVERHEAD = 512
"""Bytes charged to every message on top of its payload, so that a flood of tiny messages is
bounded by memory as well as by count."""


class LinkLost(Exception):
    """Nothing was heard from the peer for `dead_s`; the attachment must be closed."""


class Message(NamedTuple):
    """A whole message. Give it back to `Endpoint.consumed` once it is taken over."""

    channel: Channel
    payload: bytes
    key: int
    """The sequence number of its first frame."""


class _Sent(NamedTuple):
    seq: int
    type_flags: tuple[bool, Channel]
    payload: memoryview


class _Held(NamedTuple):
    """What a message costs its receiver until it is consumed."""

    size: int
    frames: int


class _Open:
    """A message of which some fragments are still to come."""

    __slots__ = ("key", "parts", "size")

    def __init__(self, key: int) -> None:
        self.key = key
        self.size = 0
        self.parts: list[bytes | memoryview] = []


class Endpoint:
    """One end of a reliable link.

    Args:
        limits: sizes and periods; both sides must use the same.
        now: the shell's monotonic clock, in seconds.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS, *, now: float) -> None:
        self.limits = limits
        self._queued: dict[Channel, deque[memoryview]] = {lane: deque() for lane in _URGENT_FIRST}
        self._queued_bytes = dict.fromkeys(_URGENT_FIRST, 0)
        self._unacked: deque[_Sent] = deque()
        self._unacked_bytes = 0
        self._owed: dict[Channel, _Held] = {}  # what the rest of a begun message will take
        self._to_replay: deque[_Sent] = deque()
        self._seq = 0
        self._received = 0
        self._open: dict[Channel, _Open] = {}
        self._unconsumed: dict[int, _Held] = {}  # by first sequence number, hence oldest first
        self._last_ack = 0
        self._held_bytes = 0
        self._held_frames = 0
        self._consumed_bytes = 0
        self._ack_now = False
        self._heard = self._spoke = now
        self._attached = False

    # What the shell asks

    @property
    def received(self) -> int:
        """The highest sequence number held from the peer: what a new attachment continues after."""
        return self._received

    @property
    def sent(self) -> int:
        """The highest sequence number given to a frame so far."""
        return self._seq

    @property
    def settled(self) -> bool:
        """True when everything handed to `send` was acknowledged by the peer."""
        return not self._unacked and not any(self._queued.values())

    def backlog(self, channel: Channel) -> int:
        """Return the bytes of `channel` that wait for credit or for an attachment."""
        return self._queued_bytes[channel]

    @property
    def writable(self) -> bool:
        """False when a source should stop until the peer has consumed more."""
        waiting = sum(self._queued_bytes.values())
        return waiting + self._unacked_bytes < self.limits.window_bytes - self.limits.message_bytes

    @property
    def has_news(self) -> bool:
        """True when `frames_to_send` would return something on an open attachment."""
        return (
            bool(self._to_replay) or self._next_lane() is not None or self._ack_due(self._floor())
        )

    # Sending

    def send(self, channel: Channel, payload: bytes) -> None:
        """Queue one message.

        Raises:
            ValueError: larger than `limits.message_bytes`; the caller must refuse it earlier, with
                an error that names the limit.
        """
        if len(payload) > self.limits.message_bytes:
            raise ValueError(f"a message of {len(payload)} bytes")
        self._queued[channel].append(memoryview(payload))
        self._queued_bytes[channel] += len(payload) + _MESSAGE_OVERHEAD

    def frames_to_send(self, now: float) -> list[bytes]:
        """Return the frames that may go out now, in the order in which they must be written.

        Nothing is returned without an attachment. The shell must write all of them before it asks
        again, and must not let two tasks write at once.
        """
        frames: list[bytes] = []
        if not self._attached:
            return frames
        acknowledged = self._floor()
        while self._to_replay:
            frames.append(self._data(self._to_replay.popleft(), acknowledged))
        while (lane := self._next_lane()) is not None:
            frames.append(self._data(self._cut(lane), acknowledged))
        if not frames and self._ack_due(acknowledged):
            frames.append(self._bare(FrameType.ACK, acknowledged))
        if frames:
            self._acknowledged(acknowledged)
            self._spoke = now
        return frames

    def _next_lane(self) -> Channel | None:
        """Return the lane whose next fragment goes out now.

        A message begins only when the window has room for all of it: its receiver acknowledges it
        as a whole, so one that could not end would block every acknowledgement for ever. A lane
        that waits for room holds back the less urgent ones.
        """
        waits = False
        for lane in _URGENT_FIRST:
            if lane in self._owed:
                return lane
            if self._queued[lane] and not waits:
                if self._fits(lane):
                    return lane
                waits = True
        return None

    def _fits(self, lane: Channel) -> bool:
        size, frames = _cost(self._queued[lane][0])
        spoken_for = self._owed.values()
        size += self._unacked_bytes + sum(owed.size for owed in spoken_for)
        frames += len(self._unacked) + sum(owed.frames for owed in spoken_for)
        if lane in (Channel.RPC, Channel.LOG):
            size, frames = size + _RESERVE_BYTES, frames + _RESERVE_FRAMES
        return size <= self.limits.window_bytes and frames <= self.limits.window_frames

    def _cut(self, lane: Channel) -> _Sent:
        """Take the next fragment of a lane into the unacknowledged window."""
        queue = self._queued[lane]
        part, rest = queue[0][:FRAGMENT_BYTES], queue[0][FRAGMENT_BYTES:]
        fin = not len(rest)
        if fin:
            queue.popleft()
            self._owed.pop(lane, None)
        else:
            queue[0] = rest
            self._owed[lane] = _cost(rest)
        self._queued_bytes[lane] -= len(part) + (_MESSAGE_OVERHEAD if fin else 0)
        self._seq += 1
        sent = _Sent(self._seq, (fin, lane), part)
        self._unacked.append(sent)
        self._unacked_bytes += len(part)
        return sent

    @staticmethod
    def _data(sent: _Sent, acknowledged: int) -> bytes:
        fin, lane = sent.type_flags
        head = HEADER.pack(FrameType.DATA, FIN if fin else 0, lane, sent.seq, acknowledged)
        return b"".join((head, sent.payload))

    @staticmethod
    def _bare(kind: FrameType, acknowledged: int) -> bytes:
        return encode(Frame(kind, False, Channel.RPC, 0, acknowledged, b""))

    # Receiving

    def receive(self, data: bytes, now: float) -> Message | None:
        """Take one frame from the current attachment.

        Returns:
            The message that this frame completed, if any.

        Raises:
            ProtocolViolation: malformed, out of order, out of window, or acknowledging what was
                never sent. The attachment must be closed with 4502.
        """
        frame = decode(data)
        self._heard = now
        self._take_ack(frame.ack)
        if frame.type is not FrameType.DATA or frame.seq <= self._received:
            return None
        if frame.seq != self._received + 1:
            raise ProtocolViolation(f"frame {frame.seq} after {self._received}")
        self._held_bytes += len(frame.payload)
        self._held_frames += 1
        if (
            self._held_frames > self.limits.window_frames
            or self._held_bytes > self.limits.window_bytes
        ):
            raise ProtocolViolation("more frames or bytes than the window allows")
        self._received = frame.seq
        return self._assemble(frame)

    def _assemble(self, frame: Frame) -> Message | None:
        message = self._open.get(frame.channel)
        if message is None:
            message = self._open[frame.channel] = _Open(frame.seq)
            self._unconsumed[frame.seq] = _Held(0, 0)
        message.size += len(frame.payload)
        if message.size > self.limits.message_bytes:
            raise ProtocolViolation(f"a message over {self.limits.message_bytes} bytes")
        message.parts.append(frame.payload)
        if not frame.fin:
            return None
        del self._open[frame.channel]
        self._unconsumed[message.key] = _Held(message.size, len(message.parts))
        payload = bytes(message.parts[0]) if len(message.parts) == 1 else b"".join(message.parts)
        return Message(frame.channel, payload, message.key)

    def consumed(self, message: Message) -> None:
        """Tell that a message was taken over; its frames may now be acknowledged."""
        held = self._unconsumed.pop(message.key, None)
        if held is not None:
            self._held_bytes -= held.size
            self._held_frames -= held.frames
            self._consumed_bytes += held.size
            self._ack_now |= message.channel is Channel.EVENT

    def _floor(self) -> int:
        """The highest number below which everything was consumed."""
        oldest = next(iter(self._unconsumed), None)
        return self._received if oldest is None else oldest - 1

    def _ack_due(self, acknowledged: int) -> bool:
        """Acknowledge in batches, but an event at once: after `exit` the agent waits for it."""
        news = acknowledged - self._last_ack
        return news >= self.limits.ack_frames or (
            news > 0 and (self._ack_now or self._consumed_bytes >= self.limits.ack_bytes)
        )

    def _acknowledged(self, acknowledged: int) -> None:
        if acknowledged > self._last_ack:
            self._last_ack = acknowledged
            self._consumed_bytes = 0
            self._ack_now = False

    def _take_ack(self, acknowledged: int) -> None:
        if acknowledged > self._seq:
            raise ProtocolViolation(f"acknowledges {acknowledged} of {self._seq} sent")
        while self._unacked and self._unacked[0].seq <= acknowledged:
            self._unacked_bytes -= len(self._unacked.popleft().payload)

    # Attachments and time

    def attach(self, peer_received: int, now: float) -> None:
        """Continue on a new attachment, after the handshake told what the peer already holds.

        Raises:
            ProtocolViolation: the peer claims more than was sent, or lacks what was acknowledged.
        """
        if not self._first_held() - 1 <= peer_received <= self._seq:
            raise ProtocolViolation(
                f"peer holds up to {peer_received}; frames {self._first_held()} to {self._seq} "
                "are here"
            )
        # What the peer holds is not yet consumed: keep it, but do not send it again.
        self._to_replay = deque(sent for sent in self._unacked if sent.seq > peer_received)
        self._attached = True
        self._heard = self._spoke = now
        # The last acknowledgement may have been lost with its socket.
        self._last_ack, self._ack_now = 0, True

    def _first_held(self) -> int:
        return self._unacked[0].seq if self._unacked else self._seq + 1

    def detach(self) -> None:
        """The attachment is gone: send nothing until the next `attach`."""
        self._attached = False
        self._to_replay.clear()

    def deadline(self) -> float | None:
        """Return when `tick` has something to do, on the shell's clock."""
        if not self._attached:
            return None
        return min(self._spoke + self.limits.heartbeat_s, self._heard + self.limits.dead_s)

    def tick(self, now: float) -> list[bytes]:
        """Return the heartbeat to send, if one is due.

        Raises:
            LinkLost: the peer was silent for `dead_s`.
        """
        if not self._attached:
            return []
        if now - self._heard >= self.limits.dead_s:
            raise LinkLost(f"nothing heard for {now - self._heard:.0f} s")
        if now - self._spoke < self.limits.heartbeat_s:
            return []
        acknowledged = self._floor()
        self._acknowledged(acknowledged)
        self._spoke = now
        return [self._bare(FrameType.HEARTBEAT, acknowledged)]


def _cost(payload: memoryview) -> _Held:
    """What a message, or the rest of one, takes of the window; an empty one still takes a frame."""
    return _Held(len(payload), max(1, -(-len(payload) // FRAGMENT_BYTES)))
