"""One end of the link: order, acknowledgement, replay, fragments, credit, heartbeat.

The same class serves both sides. It owns no socket and no clock: the shell feeds what it received
and the time, sends what `frames_to_send` returns, and tells what was consumed. It survives its
attachments: `attach` continues on a new WebSocket exactly where the peer stopped.

An acknowledgement means *consumed*: every message up to that number was taken over by whoever the
message was for. That makes one credit window the only buffer limit of a session: a reader that
does not read stops the writer at the far end, and nothing in between grows.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple, cast

from dyno_agent.link.frames import (
    FIN,
    HEADER,
    START,
    Channel,
    Frame,
    FrameType,
    MessageTooBig,
    ProtocolViolation,
    WindowExceeded,
    decode,
    encode,
)
from dyno_agent.link.limits import DEFAULT_LIMITS, FRAGMENT_BYTES, REPLAY_HEAD_BYTES, Limits

if TYPE_CHECKING:
    from collections.abc import Callable

_URGENT_FIRST = (Channel.CMD, Channel.EVENT, Channel.REPLAY, Channel.RPC, Channel.LOG)
"""Between two fragments of a large message, a `stop` or an exit report goes first. What was asked
for again goes before what is new, so that a stream which continues stays in order."""

_RESERVE_BYTES, _RESERVE_FRAMES = FRAGMENT_BYTES, 1
"""Credit that only commands and events may use: `stop` and `exited` get through a full window."""

_BATCH_FRAMES = 16

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
    flags: int
    channel: Channel
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
        on_taken: hears of every message that the peer has taken over, in order per channel.

    Attributes:
        peak_bytes: most that was held at once for either direction.
    """

    def __init__(
        self,
        limits: Limits = DEFAULT_LIMITS,
        *,
        now: float,
        on_taken: Callable[[Message], None] | None = None,
    ) -> None:
        self.limits = limits
        self.peak_bytes = 0
        self._on_taken = on_taken
        self._queued: dict[Channel, deque[memoryview]] = {lane: deque() for lane in _URGENT_FIRST}
        self._queued_bytes = dict.fromkeys(_URGENT_FIRST, 0)
        self._unacked: deque[_Sent] = deque()
        self._unacked_bytes = 0
        self._waiting_bytes = 0
        self._given = dict.fromkeys(_URGENT_FIRST, 0)
        self._taken = dict.fromkeys(_URGENT_FIRST, 0)
        self._begun: dict[Channel, deque[Message]] = {lane: deque() for lane in _URGENT_FIRST}
        self._inherited = _Held(0, 0)  # what the peer has not consumed of a lost end's sending
        self._inherited_until = 0
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
        self._asked = 0
        self._probe = False
        self._headless: set[Channel] = set()  # lanes that may continue what an older peer began
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
    def confirmed(self) -> int:
        """The highest sequence number that the peer has acknowledged."""
        return self._first_held() - 1

    @property
    def held(self) -> tuple[int, int]:
        """Bytes and frames received and not yet consumed: they take up the peer's credit."""
        return self._held_bytes, self._held_frames

    def taken(self, channel: Channel) -> int:
        """Return how many messages of a channel the peer has taken over; see `send`."""
        return self._taken[channel]

    def unconfirmed(self, channel: Channel) -> list[Message]:
        """Return the messages of a channel that have a number and may not have been taken over."""
        return list(self._begun[channel])

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
        room = self.limits.window_bytes - self.limits.message_bytes
        return self._waiting_bytes + self._unacked_bytes < room

    @property
    def has_news(self) -> bool:
        """True when `frames_to_send` would return something on an open attachment."""
        return (
            self._probe
            or bool(self._to_replay)
            or self._next_lane() is not None
            or self._ack_due(self._floor())
        )

    # Sending

    def send(self, channel: Channel, payload: bytes) -> int:
        """Queue one message.

        Returns:
            Its ordinal on this channel: the peer has it once `taken` has reached that.

        Raises:
            ValueError: larger than `limits.message_bytes`; the caller must refuse it earlier, with
                an error that names the limit.
        """
        if len(payload) > _largest(channel, self.limits):
            raise ValueError(f"a message of {len(payload)} bytes")
        self._queued[channel].append(memoryview(payload))
        self._wait(channel, len(payload) + _MESSAGE_OVERHEAD)
        self._given[channel] += 1
        return self._given[channel]

    def probe(self) -> None:
        """Ask the peer to acknowledge at once what it has consumed and will consume next."""
        self._probe = True

    def _wait(self, lane: Channel, size: int) -> None:
        self._queued_bytes[lane] += size
        self._waiting_bytes += size
        self.peak_bytes = max(self.peak_bytes, self._waiting_bytes + self._unacked_bytes)

    def frames_to_send(self, now: float) -> list[bytes]:
        """Return the next frames that may go out now, in the order in which they must be written.

        Nothing is returned without an attachment, and no more than a batch, so that something
        urgent never waits for all of a large message. The shell must write all of them, ask again
        until there are none, and must not let two tasks write at once.
        """
        frames: list[bytes] = []
        if not self._attached:
            return frames
        acknowledged = self._floor()
        while self._to_replay and len(frames) < _BATCH_FRAMES:
            frames.append(self._data(self._to_replay.popleft(), acknowledged))
        while len(frames) < _BATCH_FRAMES and (lane := self._next_lane()) is not None:
            frames.append(self._data(self._cut(lane), acknowledged))
        if self._probe:
            self._probe = False
            frames.append(self._bare(FrameType.HEARTBEAT, acknowledged))
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
        spoken_for = (self._inherited, *self._owed.values())
        size += self._unacked_bytes + sum(owed.size for owed in spoken_for)
        frames += len(self._unacked) + sum(owed.frames for owed in spoken_for)
        if lane not in (Channel.CMD, Channel.EVENT):
            size, frames = size + _RESERVE_BYTES, frames + _RESERVE_FRAMES
        return size <= self.limits.window_bytes and frames <= self.limits.window_frames

    def _cut(self, lane: Channel) -> _Sent:
        """Take the next fragment of a lane into the unacknowledged window."""
        queue = self._queued[lane]
        part, rest = queue[0][:FRAGMENT_BYTES], queue[0][FRAGMENT_BYTES:]
        self._seq += 1
        flags = 0
        if lane not in self._owed:
            flags = START
            self._begun[lane].append(Message(lane, cast("bytes", queue[0].obj), self._seq))
        if not len(rest):
            flags |= FIN
            queue.popleft()
            self._owed.pop(lane, None)
        else:
            queue[0] = rest
            self._owed[lane] = _cost(rest)
        self._wait(lane, -len(part) - (_MESSAGE_OVERHEAD if flags & FIN else 0))
        sent = _Sent(self._seq, flags, lane, part)
        self._unacked.append(sent)
        self._unacked_bytes += len(part)
        return sent

    @staticmethod
    def _data(sent: _Sent, acknowledged: int) -> bytes:
        head = HEADER.pack(FrameType.DATA, sent.flags, sent.channel, sent.seq, acknowledged)
        return b"".join((head, sent.payload))

    @staticmethod
    def _bare(kind: FrameType, acknowledged: int) -> bytes:
        return encode(Frame(kind, False, False, Channel.RPC, 0, acknowledged, b""))

    # Receiving

    def receive(self, data: bytes, now: float) -> Message | None:
        """Take one frame from the current attachment.

        Returns:
            The message that this frame completed, if any.

        Raises:
            ProtocolViolation: malformed, out of order, out of window, over a limit, or
                acknowledging what was never sent. The attachment must be closed with its code.
        """
        frame = decode(data)
        self._heard = now
        self._take_ack(frame.ack)
        if frame.type is not FrameType.DATA:
            if frame.type is FrameType.HEARTBEAT:  # whoever sends one wants to know how far we are
                self._asked = self._received
            return None
        if frame.seq <= self._received:
            return None
        if frame.seq != self._received + 1:
            raise ProtocolViolation(f"frame {frame.seq} after {self._received}")
        self._held_bytes += len(frame.payload)
        self._held_frames += 1
        if (
            self._held_frames > self.limits.window_frames
            or self._held_bytes > self.limits.window_bytes
        ):
            raise WindowExceeded("more frames or bytes than the window allows")
        self.peak_bytes = max(self.peak_bytes, self._held_bytes)
        self._received = frame.seq
        return self._assemble(frame)

    def _assemble(self, frame: Frame) -> Message | None:
        lane = frame.channel
        message = self._open.get(lane)
        if frame.start == (message is not None) and lane not in self._headless:
            raise ProtocolViolation(f"{lane.name}: a message begins in another, or in its middle")
        if frame.start:
            self._headless.discard(lane)
            message = self._open[lane] = _Open(frame.seq)
            self._unconsumed[frame.seq] = _Held(0, 0)
        elif message is None:  # the rest of what the peer's older gateway has taken over
            self._held_bytes -= len(frame.payload)
            self._held_frames -= 1
            return None
        message.size += len(frame.payload)
        if message.size > _largest(lane, self.limits):
            raise MessageTooBig(f"a message over {self.limits.message_bytes} bytes")
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
            self._ack_now |= message.channel in (Channel.EVENT, Channel.CMD)

    def _floor(self) -> int:
        """The highest number below which everything was consumed."""
        oldest = next(iter(self._unconsumed), None)
        return self._received if oldest is None else oldest - 1

    def _ack_due(self, acknowledged: int) -> bool:
        """Acknowledge in batches, but what the peer waits for at once: an event, what it probed."""
        news = acknowledged - self._last_ack
        hurry = self._ack_now or self._last_ack < self._asked
        return news >= self.limits.ack_frames or (
            news > 0 and (hurry or self._consumed_bytes >= self.limits.ack_bytes)
        )

    def _acknowledged(self, acknowledged: int) -> None:
        if acknowledged > self._last_ack:
            self._last_ack = acknowledged
            self._consumed_bytes = 0
            self._ack_now = False

    def _take_ack(self, acknowledged: int) -> None:
        if acknowledged > self._seq:
            raise ProtocolViolation(f"acknowledges {acknowledged} of {self._seq} sent")
        if acknowledged >= self._inherited_until:
            self._inherited = _Held(0, 0)
        while self._unacked and self._unacked[0].seq <= acknowledged:
            sent = self._unacked.popleft()
            self._unacked_bytes -= len(sent.payload)
            if sent.flags & FIN:
                self._taken[sent.channel] += 1
                message = self._begun[sent.channel].popleft()
                if self._on_taken is not None:
                    self._on_taken(message)

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

    def adopt(self, sent: int, received: int, held: tuple[int, int] = (0, 0)) -> None:
        """Continue a link whose other end outlived ours. Before the first `attach`.

        What the lost end had consumed beyond `received` arrives again; the caller sorts that out.

        Args:
            sent: highest sequence number the peer holds from the lost end.
            received: highest sequence number the lost end has acknowledged.
            held: bytes and frames that the peer has not consumed yet, see `held`.
        """
        self._inherited, self._inherited_until = _Held(*held), sent
        self._seq = sent
        self._received = received
        self._headless = set(_URGENT_FIRST)

    def peer_restarted(self) -> None:
        """The other end has lost its memory: what it had begun to send will not be finished."""
        for message in self._open.values():
            del self._unconsumed[message.key]
            self._held_bytes -= message.size
            self._held_frames -= len(message.parts)
        self._open.clear()

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


def _largest(lane: Channel, limits: Limits) -> int:
    """What is sent again carries its number in front."""
    return limits.message_bytes + (REPLAY_HEAD_BYTES if lane is Channel.REPLAY else 0)


def _cost(payload: memoryview) -> _Held:
    """What a message, or the rest of one, takes of the window; an empty one still takes a frame."""
    return _Held(len(payload), max(1, -(-len(payload) // FRAGMENT_BYTES)))
