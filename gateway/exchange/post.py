"""Order and completeness over mail that may be lost: what one process has said to each other one.

What is put here for a peer arrives there once and in order, or both sides learn that it is lost:
then the conversation is over and the next one begins, under the next epoch. Pure: letters and
times in, letters and news out.

Every letter carries how far its sender has heard the addressee, so a letter of its own for that is
seldom needed. A peer that hears a gap waits until what is missing was sent again.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf

import msgspec

UNACKNOWLEDGED_BYTES = 4 * 1024 * 1024
"""What may be on its way to a peer; more waits where it comes from."""

BATCH_BYTES = 1024 * 1024
"""What is written in one go; well below what the engine takes within its time."""

ACK_LETTERS, ACK_BYTES, ACK_S = 32, 512 * 1024, 0.5
"""After so much that was heard, or so long, an acknowledgement goes out with no letter to ride on.
The sender has eight times as many bytes."""

STALLED_S = 3.0
"""Without an acknowledgement for so long everything is sent again: the engine may have lost it."""

GONE_S = 3.0
"""A peer that is not there for so long is gone. An engine that has lost its memory, and with it
who is there, is told again within 2 s."""

RETRY_S = 0.25
"""The pause before a peer that is not there is looked for again."""

PROBE_S = 1.0
"""How often a peer that somebody waits for is looked for, if there is nothing to tell it."""

PEERS = 1000
"""After so many one that was given up is forgotten."""

VERSION = 1


class Letter(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What goes through the engine.

    Attributes:
        version: of this form.
        sender: id of a process, never used twice.
        epoch: of the conversation; one that is given up is followed by a higher one.
        number: of the content, from 1 in each epoch; 0 if there is none.
        heard: the addressee's contents up to this number are here.
        age_ms: how long ago the content was put, when this was written.
        content: what is told.
    """

    version: int
    sender: str
    epoch: int
    number: int
    heard: int
    age_ms: int = 0
    content: bytes = b""


@dataclass(frozen=True, slots=True)
class Told:
    """A peer has told something.

    Attributes:
        peer: its id.
        content: what it told.
        age_s: how long that waited until it was written, for the last time.
    """

    peer: str
    content: bytes
    age_s: float


@dataclass(frozen=True, slots=True)
class Lost:
    """The conversation with a peer is over: nobody knows how much of it arrived.

    Attributes:
        peer: its id.
    """

    peer: str


@dataclass(slots=True)
class Line:
    """The conversation with one peer.

    Attributes:
        epoch: its number.
        told: number of the last content for the peer.
        queue: contents that the peer has not acknowledged, and when they were put.
        size: bytes of those.
        written: how many of them have been written.
        heard: number of the last content of the peer.
        owed: contents heard since the last letter to the peer.
        owed_bytes: bytes of those.
        owe_at: when they are acknowledged at the latest; None for nothing owed.
        missing_since: since when the peer is not there; None while it is.
        moved_at: when an acknowledgement moved something, or could not be expected yet.
        spoke_at: when a letter was written last.
        waiting: how many things need the peer to be there.
        given_up: it was gone for too long, and has not been heard since.
    """

    epoch: int
    moved_at: float
    spoke_at: float
    told: int = 0
    queue: deque[tuple[bytes, float]] = field(default_factory=deque)
    size: int = 0
    written: int = 0
    heard: int = 0
    owed: int = 0
    owed_bytes: int = 0
    owe_at: float | None = None
    missing_since: float | None = None
    waiting: int = 0
    given_up: bool = False

    def put(self, content: bytes, now: float) -> None:
        """Tell the peer something."""
        if not self.queue:
            self.moved_at = now
        self.queue.append((content, now))
        self.size += len(content)
        self.told += 1

    def confirm(self, heard: int, now: float) -> bool:
        """Drop what the peer has heard; return False if that is more than it was told."""
        if heard > self.told:
            return False
        for _ in range(heard - (self.told - len(self.queue))):
            self.size -= len(self.queue.popleft()[0])
            self.written = max(0, self.written - 1)
            self.moved_at = now
        return True

    def hear(self, letter: Letter, now: float) -> bool:
        """Take a content; return True if it is the next one."""
        if not letter.number:
            return False
        if letter.number != self.heard + 1:
            if letter.number <= self.heard:
                self.owe_at = now  # the peer missed that it was heard
            return False
        self.heard += 1
        self.owed += 1
        self.owed_bytes += len(letter.content)
        full = self.owed >= ACK_LETTERS or self.owed_bytes >= ACK_BYTES
        self.owe_at = now if full else min(self.owe_at or now + ACK_S, now + ACK_S)
        return True

    def again(self, now: float) -> None:
        """Write everything again that the peer has not acknowledged."""
        self.written = 0
        self.moved_at = now
        if self.heard:
            self.owe_at = now  # what told so may be lost too

    def over(self, epoch: int, now: float) -> None:
        """Begin anew; the peer hears of it when it writes, or is written to."""
        self.epoch = epoch
        self.queue.clear()
        self.told = self.size = self.written = self.heard = self.owed = self.owed_bytes = 0
        self.owe_at, self.missing_since, self.moved_at = None, None, now

    @property
    def due_at(self) -> float | None:
        """When there is something to write; None if nobody knows."""
        if self.missing_since is not None:
            return self.spoke_at + RETRY_S
        if self.written < len(self.queue):
            return 0.0
        times = [] if self.owe_at is None else [self.owe_at]
        if self.queue:
            times.append(self.moved_at + STALLED_S)
        if self.waiting:
            times.append(self.spoke_at + PROBE_S)
        return min(times, default=None)

    def is_due(self, now: float) -> bool:
        """Say whether there is something to write."""
        return (at := self.due_at) is not None and at <= now


class Post:
    """The conversations of one process with all others.

    Args:
        gateway: id of this process.

    Attributes:
        errors: letters that were none.
    """

    def __init__(self, gateway: str) -> None:
        self.errors = 0
        self._gateway = gateway
        self._lines: dict[str, Line] = {}

    def put(self, peer: str, content: bytes, now: float) -> None:
        """Tell a peer something, after all that was told before."""
        self._line(peer, now).put(content, now)

    def has_room(self, peer: str, size: int) -> bool:
        """Say whether so many bytes may be put for a peer now. What is small need not ask."""
        line = self._lines.get(peer)
        return line is None or not line.size or line.size + size <= UNACKNOWLEDGED_BYTES

    def wait_for(self, peer: str, now: float) -> None:
        """Look after a peer from now on, until `leave`: news of its end will come."""
        self._line(peer, now).waiting += 1

    def leave(self, peer: str) -> None:
        """Undo one `wait_for`."""
        self._lines[peer].waiting -= 1

    @property
    def unacknowledged(self) -> int:
        """How many contents no peer has acknowledged."""
        return sum(len(line.queue) for line in self._lines.values())

    def next_due(self) -> float | None:
        """Return when `due` will have something; None if only news can change that."""
        times = [at for line in self._lines.values() if (at := line.due_at) is not None]
        return min(times, default=None)

    def due(self, now: float) -> list[tuple[str, bytes]]:
        """Return letters to write now, each with its addressee.

        Tell what became of them: `sent` or `away`.
        """
        letters: list[tuple[str, bytes]] = []
        room = BATCH_BYTES
        due = [peer for peer, line in self._lines.items() if line.is_due(now)]
        for peer in due:
            if room <= 0:
                break
            line = self._lines[peer] = self._lines.pop(peer)  # next time others go first
            for letter in self._letters(line, room, now):
                letters.append((peer, letter))
                room -= len(letter)
        return letters

    def _letters(self, line: Line, room: int, now: float) -> Iterator[bytes]:
        if line.queue and now >= line.moved_at + STALLED_S:
            line.again(now)
        if line.missing_since is not None or line.written == len(line.queue):
            yield self._letter(line, now)
            return
        while line.written < len(line.queue) and room > 0:
            content, put_at = line.queue[line.written]
            line.written += 1
            room -= len(content)
            number = line.told - len(line.queue) + line.written
            yield self._letter(line, now, number, content, put_at)

    def _letter(
        self, line: Line, now: float, number: int = 0, content: bytes = b"", put_at: float = inf
    ) -> bytes:
        line.owed = line.owed_bytes = 0
        line.owe_at, line.spoke_at = None, now
        age_ms = int(max(0.0, now - put_at) * 1000)
        return msgspec.msgpack.encode(
            Letter(VERSION, self._gateway, line.epoch, number, line.heard, age_ms, content)
        )

    def sent(
        self, letters: Iterable[tuple[str, bytes]], there: Sequence[bool], now: float
    ) -> list[Lost]:
        """Hear which addressees were there; return what is lost as one has been gone too long."""
        everywhere: dict[str, bool] = {}
        for (peer, _), taken in zip(letters, there, strict=True):
            everywhere[peer] = everywhere.get(peer, True) and taken
        lost = []
        for peer, is_there in everywhere.items():
            line = self._line(peer, now)
            if is_there:
                if line.missing_since is not None:
                    line.again(now)
                line.missing_since = None
            elif line.missing_since is None:
                line.missing_since = now
            elif now - line.missing_since >= GONE_S:
                line.over(line.epoch + 1, now)
                line.given_up = True
                lost.append(Lost(peer))
        return lost

    def away(self, now: float) -> None:
        """Hear that the engine did not answer: nobody knows what arrived, nor who is there."""
        for line in self._lines.values():
            line.again(now)
            line.missing_since = None

    def receive(self, raw: bytes, now: float) -> list[Told | Lost]:
        """Take a letter; return what is news in it."""
        try:
            letter = msgspec.msgpack.decode(raw, type=Letter)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self.errors += 1
            return []
        if letter.version != VERSION or letter.epoch < 1 or min(letter.number, letter.heard) < 0:
            self.errors += 1
            return []
        known = letter.sender in self._lines
        line = self._line(letter.sender, now)
        news: list[Told | Lost] = []
        if letter.epoch < line.epoch:
            line.owe_at = now  # it does not know yet that we have given up
            return []
        if letter.epoch > line.epoch:
            line.over(letter.epoch, now)
            if known:
                news.append(Lost(letter.sender))
        line.missing_since, line.given_up = None, False
        if not line.confirm(letter.heard, now):
            self.errors += 1
        elif line.hear(letter, now):
            news.append(Told(letter.sender, letter.content, letter.age_ms / 1000))
        return news

    def _line(self, peer: str, now: float) -> Line:
        line = self._lines.get(peer)
        if line is None:
            if len(self._lines) >= PEERS:
                dead = (
                    peer for peer, line in self._lines.items() if line.given_up and not line.waiting
                )
                self._lines.pop(next(dead, ""), None)
            line = self._lines[peer] = Line(1, moved_at=now, spoke_at=now)
        return line
