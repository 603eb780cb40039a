"""A request that another process performs: what the one that asks and the one that performs say.

Both ends are pure. Bodies travel in pieces, each way as far as the other end has given credit, so
that a slow client stops its own stream and nothing else, and neither end holds more than a window.
"""

from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import msgspec

PIECE_BYTES = 256 * 1024
"""Larger pieces are cut; one is a letter."""

WINDOW_BYTES = 1024 * 1024
"""What may be under way or lie unread, per direction of a request."""

Headers = tuple[tuple[str, str], ...]


class PeerGone(Exception):
    """The other process is dead, has given us up, or broke off: nobody knows what it did."""


class Superseded(Exception):
    """Another process has taken the session from the one that was asked."""


class Refused(Exception):
    """The other process performs as many requests as it may; it did nothing."""


class NotPerformed(Exception):
    """This process could not perform a request, or not to its end."""


class OutOfLine(Exception):
    """The peer said what it must not say now."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request to perform, but for its body.

    Attributes:
        method: of HTTP.
        target: path and query, as in the request line.
        headers: that matter; none that proves who the client is.
        principal: who the client is.
        patience_s: how long its answer may take to begin.
    """

    method: str
    target: str
    headers: Headers = field(repr=False)
    principal: str
    patience_s: float


@dataclass(frozen=True, slots=True)
class Carried:
    """A request that has come to be performed here.

    Attributes:
        asked: all but its body.
        size: bytes of its body.
        body: its body as it comes.
    """

    asked: Asked
    size: int
    body: AsyncIterator[bytes] = field(repr=False)


def _nobody_asks() -> None:
    return


@dataclass(frozen=True, slots=True)
class Performed:
    """What a request came to.

    Attributes:
        status: of HTTP.
        headers: all of them.
        pieces: the body as it comes.
        had: called once all of it was written to the client.
    """

    status: int
    headers: Headers = field(repr=False)
    pieces: AsyncIterator[bytes] = field(repr=False)
    had: Callable[[], None] = field(repr=False, default=_nobody_asks)


class Ask(msgspec.Struct, array_like=True, frozen=True, tag="ask"):
    """Asker: perform this. `size` is that of the whole body, which begins with `body`."""

    id: int
    method: str
    target: str
    headers: Headers
    principal: str
    patience_s: float
    size: int
    body: bytes


class Body(msgspec.Struct, array_like=True, frozen=True, tag="body"):
    """Asker: more of the body."""

    id: int
    data: bytes


class More(msgspec.Struct, array_like=True, frozen=True, tag="more"):
    """Asker: so much more of the answer may come."""

    id: int
    size: int


class Cancel(msgspec.Struct, array_like=True, frozen=True, tag="cancel"):
    """Asker: nobody waits for the answer any more."""

    id: int


class Had(msgspec.Struct, array_like=True, frozen=True, tag="had"):
    """Asker: the whole answer was written to the client."""

    id: int


class Head(msgspec.Struct, array_like=True, frozen=True, tag="head"):
    """Performer: the answer begins."""

    id: int
    status: int
    headers: Headers


class Piece(msgspec.Struct, array_like=True, frozen=True, tag="piece"):
    """Performer: more of the answer."""

    id: int
    data: bytes


class MoreBody(msgspec.Struct, array_like=True, frozen=True, tag="more-body"):
    """Performer: so much more of the body may come."""

    id: int
    size: int


class End(msgspec.Struct, array_like=True, frozen=True, tag="end"):
    """Performer: the answer is complete."""

    id: int


class Failed(msgspec.Struct, array_like=True, frozen=True, tag="failed"):
    """Performer: there is no answer, or no more of it. `busy` means that nothing was begun."""

    id: int
    busy: bool = False


class Word(msgspec.Struct, array_like=True, frozen=True, tag="word"):
    """A word between processes that belongs to no request."""

    text: bytes


FromAsker = Body | More | Cancel | Had
FromPerformer = Head | Piece | MoreBody | End | Failed
Content = Ask | FromAsker | FromPerformer | Word

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Content] = msgspec.msgpack.Decoder(Content)


def encode(content: Content) -> bytes:
    """Return what `decode` takes."""
    return _encoder.encode(content)


def decode(raw: bytes) -> Content:
    """Return what a peer told.

    Raises:
        OutOfLine: nothing that we know.
    """
    try:
        return _decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise OutOfLine("not one of our contents") from error


class Incoming:
    """Pieces that have come and lie here until they are read.

    Attributes:
        total: bytes that have come.
    """

    def __init__(self) -> None:
        self.total = 0
        self._pieces: deque[bytes] = deque()
        self._room = WINDOW_BYTES
        self._read = 0

    def put(self, data: bytes) -> None:
        """Take a piece that came.

        Raises:
            OutOfLine: there was no credit for it.
        """
        if len(data) > self._room:
            raise OutOfLine("more than there was credit for")
        self._room -= len(data)
        self.total += len(data)
        self._pieces.append(data)

    def take(self) -> bytes | None:
        """Return the next piece; None if there is none yet."""
        if not self._pieces:
            return None
        piece = self._pieces.popleft()
        self._read += len(piece)
        return piece

    def credit(self) -> int:
        """Return what the other end may send more, for all that was read; 0 for not yet."""
        if self._read < WINDOW_BYTES // 2:
            return 0
        credit, self._read = self._read, 0
        self._room += credit
        return credit


class Outgoing:
    """What may be sent now.

    Attributes:
        credit: bytes that the other end still takes.
    """

    def __init__(self) -> None:
        self.credit = WINDOW_BYTES

    def next_size(self, data: memoryview) -> int:
        """How much of this may be sent now; maybe nothing."""
        return min(len(data), PIECE_BYTES, self.credit)

    def cut(self, data: memoryview) -> tuple[bytes, memoryview]:
        """Return what may be sent now and the rest; credit is spent on it."""
        size = self.next_size(data)
        self.credit -= size
        return bytes(data[:size]), data[size:]

    def grant(self, size: int) -> None:
        """Hear that more may be sent.

        Raises:
            OutOfLine: more than was ever sent.
        """
        if size < 0 or self.credit + size > WINDOW_BYTES:
            raise OutOfLine("more credit than was spent")
        self.credit += size


class Asking:
    """The end that asks.

    Args:
        number: of the request among those of this process.
        asked: the request.
        body: its body.

    Attributes:
        head: how the answer begins, once that is known.
        answer: what has come of it.
        ended: nothing more will come.
        settled: the performer has said its last word.
        failure: why not, if that is not the end of the answer.
    """

    def __init__(self, number: int, asked: Asked, body: bytes) -> None:
        self.head: Head | None = None
        self.answer = Incoming()
        self.ended = self.settled = False
        self.failure: Exception | None = None
        self._id = number
        self._asked = asked
        self._size = len(body)
        self._rest = memoryview(body)
        self._out = Outgoing()

    def opening(self) -> Ask:
        """Return what begins it all."""
        asked = self._asked
        return Ask(
            self._id,
            asked.method,
            asked.target,
            asked.headers,
            asked.principal,
            asked.patience_s,
            self._size,
            self._cut(),
        )

    @property
    def next_size(self) -> int:
        """How many bytes of the body may go now."""
        return self._out.next_size(self._rest)

    def next_body(self) -> Body:
        """Return the next piece of the body, of `next_size` bytes."""
        return Body(self._id, self._cut())

    def _cut(self) -> bytes:
        piece, self._rest = self._out.cut(self._rest)
        return piece

    def hear(self, content: FromPerformer) -> None:
        """Take what the performer says; nothing counts after the end.

        Raises:
            OutOfLine: it said so at the wrong time.
        """
        if self.ended:
            return
        match content:
            case Head():
                if self.head is not None:
                    raise OutOfLine("a second head")
                self.head = content
                self._rest = memoryview(b"")  # it did not want the rest
            case Piece():
                if self.head is None:
                    raise OutOfLine("a body without a head")
                self.answer.put(content.data)
            case MoreBody():
                self._out.grant(content.size)
            case End():
                if self.head is None:
                    raise OutOfLine("an end without a head")
                self.settled = True
                self.end()
            case Failed():
                self.settled = True
                self.end(Refused("busy") if content.busy else PeerGone("it broke off"))

    def end(self, failure: Exception | None = None) -> None:
        """Expect nothing more."""
        if not self.ended:
            self.ended, self.failure = True, failure
            self._rest = memoryview(b"")

    def more(self) -> More | None:
        """Return credit for the answer, if there is enough to tell."""
        credit = self.answer.credit()
        return More(self._id, credit) if credit and not self.ended else None


class Performing:
    """The end that performs.

    Args:
        ask: what begins it all.
        age_s: how long that was on its way.

    Attributes:
        asked: the request.
        size: bytes of its body.
        body: what has come of it.
        out: what may be sent of the answer.

    Raises:
        OutOfLine: more body than was announced.
    """

    def __init__(self, ask: Ask, age_s: float = 0.0) -> None:
        left_s = ask.patience_s - age_s
        self.asked = Asked(ask.method, ask.target, ask.headers, ask.principal, left_s)
        self.size = ask.size
        self.body = Incoming()
        self.out = Outgoing()
        self._id = ask.id
        self._take(ask.body)

    @property
    def complete(self) -> bool:
        """True once the whole body has come."""
        return self.body.total == self.size

    def hear(self, content: Body | More) -> None:
        """Take what the asker says.

        Raises:
            OutOfLine: more body than was announced, or more credit than was spent.
        """
        match content:
            case Body():
                self._take(content.data)
            case More():
                self.out.grant(content.size)

    def _take(self, data: bytes) -> None:
        if self.body.total + len(data) > self.size:
            raise OutOfLine("more body than was announced")
        if data:
            self.body.put(data)

    def more(self) -> MoreBody | None:
        """Return credit for the body, if there is enough to tell and more to come."""
        credit = self.body.credit()
        return MoreBody(self._id, credit) if credit and not self.complete else None
