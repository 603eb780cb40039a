"""Requests and notes between gateway processes: the shell around `post` and `carrying`.

One task reads the mail and never waits for anything else, one writes it, and each request that is
performed here has one. Requests that are asked live in the task of whoever asks.
"""

import asyncio
import contextlib
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Self

from gateway.errors import Busy
from gateway.exchange import carrying
from gateway.exchange.carrying import (
    Ask,
    Asked,
    Asking,
    Body,
    Cancel,
    Carried,
    Content,
    End,
    Failed,
    FromPerformer,
    Had,
    Head,
    Headers,
    More,
    NotPerformed,
    OutOfLine,
    PeerGone,
    Performed,
    Performing,
    Piece,
    Refused,
    Superseded,
    Word,
)
from gateway.exchange.post import Lost, Post
from gateway.patience import FIRST_BYTE_S, patience
from gateway.store.base import Store, StoreAway, Taken

MOST = 10_000
"""Requests that may be asked at the same time, and that may be performed."""

AWAY_S = 40.0
"""After so long without the engine whatever is under way is given up. A restart of the engine is
shorter; the platform's router cuts a silent stream after 55 s."""

HAD_S = 40.0
"""How long the end of an answer may take to be written to a client that reads slowly."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
"""Between attempts to reach an engine that is away."""

CLAIM = "s/"
"""Before the fingerprint of a session in the name of its claim."""


@dataclass(frozen=True, slots=True)
class Note:
    """A word of another process.

    Attributes:
        gateway: its id.
        text: for the rooms above to understand.
    """

    gateway: str
    text: bytes = field(repr=False)


Perform = Callable[[Carried], AbstractAsyncContextManager[Performed]]
"""Runs a request here; raises `NotPerformed` where that fails, before the answer or in it."""

Hear = Callable[[Taken | Note], None]
"""Takes news, in order. It must not wait."""


class Bell:
    """Wakes all who listen."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Wake whoever listens now."""
        self._event.set()
        self._event = asyncio.Event()

    async def heard(self) -> None:
        """Wait for the next ring; look first, without waiting in between."""
        await self._event.wait()


@dataclass(slots=True)
class Here:
    """A request that somebody here has asked; `told` says that the peer may know of it."""

    peer: str
    claim: str
    fence: int
    asking: Asking
    told: bool = False
    bell: Bell = field(default_factory=Bell)

    def end(self, failure: Exception) -> None:
        """Expect nothing more."""
        self.asking.end(failure)
        self.bell.ring()


@dataclass(slots=True)
class There:
    """A request of another process that is performed here."""

    peer: str
    number: int
    performing: Performing
    bell: Bell = field(default_factory=Bell)
    had: bool = False


class Answer:
    """What came of a request; good inside `Exchange.ask`.

    Attributes:
        status: of HTTP.
        headers: all of them.
        had: to be set once the whole of it was written to the client.
    """

    def __init__(self, head: Head, here: Here, put: Callable[[str, Content], None]) -> None:
        self.status: int = head.status
        self.headers: Headers = head.headers
        self.had = False
        self._here = here
        self._put = put

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes; whoever reads slowly slows the other end down.

        Raises:
            PeerGone: the other process is gone.
            Superseded: the session is at another one.
            StoreAway: the engine was away for too long.
        """
        asking = self._here.asking
        while True:
            while (piece := asking.answer.take()) is not None:
                if (more := asking.more()) is not None:
                    self._put(self._here.peer, more)
                yield piece
            if asking.failure is not None:
                raise asking.failure
            if asking.ended:
                return
            await self._here.bell.heard()

    @property
    def complete(self) -> bool:
        """True when the whole of it has come, and well."""
        return self._here.asking.ended and self._here.asking.failure is None

    def leave(self) -> None:
        """End it, as this process leaves; what has come is still given out."""
        self._here.end(PeerGone("this process leaves"))


class Exchange:
    """Carries requests to other gateway processes, and performs theirs.

    Use it as an async context manager, inside the store's.

    Args:
        store: the mail.
        perform: see `Perform`.
        hear: see `Hear`.
    """

    def __init__(self, store: Store, perform: Perform, hear: Hear) -> None:
        self._store = store
        self._perform = perform
        self._hear = hear
        self._post = Post(store.gateway)
        self._errors = 0
        self._numbers = itertools.count(1)
        self._asked: dict[int, Here] = {}
        self._claims: defaultdict[str, set[int]] = defaultdict(set)
        self._performed: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._performing: dict[tuple[str, int], There] = {}
        self._blocked: defaultdict[str, list[Bell]] = defaultdict(list)
        self._to_write = Bell()
        self._moved = Bell()
        self._away_since: float | None = None
        self._tasks = asyncio.TaskGroup()
        self._loops: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Begin to read and to write."""
        await self._tasks.__aenter__()
        self._loops = [
            self._tasks.create_task(self._read(), name="exchange reads"),
            self._tasks.create_task(self._write(), name="exchange writes"),
        ]
        return self

    async def __aexit__(self, *failure: object) -> None:
        """Break off whatever is under way; the others see that this process is gone."""
        for task in (*self._loops, *self._performed.values()):
            task.cancel()
        self.leave()
        await self._tasks.__aexit__(None, None, None)

    @property
    def errors(self) -> int:
        """How much was thrown away because it made no sense."""
        return self._errors + self._post.errors

    @property
    def under_way(self) -> tuple[int, int]:
        """How many requests are asked, and how many are performed."""
        return len(self._asked), len(self._performing)

    # Asking

    @contextlib.asynccontextmanager
    async def ask(
        self, gateway: str, session: str, asked: Asked, body: bytes = b"", fence: int = 0
    ) -> AsyncIterator[Answer]:
        """Let another process perform a request; the answer has begun when this is entered.

        Leaving early, also by cancellation, cancels it there.

        Args:
            gateway: id of that process.
            session: fingerprint of the session that is meant; empty if only that process may say
                that it has it no more.
            asked: the request.
            body: its body.
            fence: under which that process is known to hold the session; older news is old.

        Raises:
            PeerGone: that process is gone, gave up, or did not answer in time.
            Superseded: another process has taken the session meanwhile.
            StoreAway: the engine is away.
            Busy: too much is under way, here or there; nothing was done.
        """
        if len(self._asked) >= MOST:
            raise Busy(f"{MOST} requests wait for other gateway processes; repeat later")
        number = next(self._numbers)
        here = Here(gateway, CLAIM + session, fence, Asking(number, asked, body))
        self._asked[number] = here
        self._claims[here.claim].add(number)
        self._post.wait_for(gateway, self._now())
        answer: Answer | None = None
        try:
            yield (answer := await self._begin(here))
        finally:
            del self._asked[number]
            self._claims[here.claim].discard(number)
            if not self._claims[here.claim]:
                del self._claims[here.claim]
            self._post.leave(gateway)
            if answer is not None and answer.had:
                self._put(gateway, Had(number))
            elif here.told:
                self._put(gateway, Cancel(number))

    async def _begin(self, here: Here) -> Answer:
        try:
            async with asyncio.timeout(patience(FIRST_BYTE_S)):
                head = await self._head(here)
        except TimeoutError:
            if self._away_since is not None:
                raise StoreAway("the engine is away") from None
            raise PeerGone("it did not answer in time") from None
        return Answer(head, here, self._put)

    async def _head(self, here: Here) -> Head:
        asking = here.asking
        while not asking.ended and not self._post.has_room(here.peer, asking.next_size):
            self._blocked[here.peer].append(here.bell)
            await here.bell.heard()
        if not asking.ended:
            here.told = True
            self._put(here.peer, asking.opening())
        while asking.head is None and not asking.ended:
            size = asking.next_size
            if size and self._post.has_room(here.peer, size):
                self._put(here.peer, asking.next_body())
                continue
            if size:
                self._blocked[here.peer].append(here.bell)
            await here.bell.heard()
        if isinstance(asking.failure, Refused):
            raise Busy("the gateway process that has the session is at its limit; repeat later")
        if asking.head is None:
            raise asking.failure or PeerGone("it said nothing")
        return asking.head

    def leave(self) -> None:
        """End whatever is asked, as this process leaves."""
        for here in self._asked.values():
            here.end(PeerGone("this process leaves"))

    def tell(self, gateway: str, note: bytes) -> None:
        """Tell another process something, once, unless one of the two ends before it has arrived.

        Raises:
            Busy: too much is on its way to it.
        """
        if not self._post.has_room(gateway, len(note)):
            raise Busy("too much is on its way to that gateway process")
        self._put(gateway, Word(note))

    async def flush(self, deadline_s: float) -> bool:
        """Wait until all that was told has arrived; return False if it did not in time."""
        try:
            async with asyncio.timeout(deadline_s):
                while self._post.unacknowledged:
                    await self._moved.heard()
        except TimeoutError:
            return False
        return True

    # Performing

    def _take(self, peer: str, ask: Ask, age_s: float) -> None:
        key = peer, ask.id
        if key in self._performing:
            raise OutOfLine("asked twice")
        if age_s >= ask.patience_s:
            self._put(peer, Failed(ask.id))  # its client has been told that it failed
            return
        if len(self._performing) >= MOST:
            self._put(peer, Failed(ask.id, busy=True))
            return
        there = There(peer, ask.id, Performing(ask, age_s))
        self._performing[key] = there
        self._post.wait_for(peer, self._now())
        task = self._tasks.create_task(self._run(there), name=f"performs for {peer}")
        self._performed[key] = task

        def done(_task: asyncio.Task[None]) -> None:
            del self._performed[key], self._performing[key]
            self._post.leave(peer)

        task.add_done_callback(done)

    async def _run(self, there: There) -> None:
        performing, number = there.performing, there.number
        carried = Carried(performing.asked, performing.size, self._body(there))
        try:
            async with self._perform(carried) as performed:
                self._put(there.peer, Head(number, performed.status, performed.headers))
                async for piece in performed.pieces:
                    await self._send(there, memoryview(piece))
                self._put(there.peer, End(number))
                if await self._was_had(there):
                    performed.had()
        except NotPerformed:
            self._put(there.peer, Failed(number))

    async def _was_had(self, there: There) -> bool:
        """Wait until the asker has given the whole answer out, for a bounded time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HAD_S):
                while not there.had:
                    await there.bell.heard()
        return there.had

    async def _body(self, there: There) -> AsyncIterator[bytes]:
        performing = there.performing
        while True:
            while (piece := performing.body.take()) is not None:
                if (more := performing.more()) is not None:
                    self._put(there.peer, more)
                yield piece
            if performing.complete:
                return
            await there.bell.heard()

    async def _send(self, there: There, data: memoryview) -> None:
        out = there.performing.out
        while data:
            size = out.next_size(data)
            if not size:
                await there.bell.heard()
                continue
            while not self._post.has_room(there.peer, size):
                self._blocked[there.peer].append(there.bell)
                await there.bell.heard()
            piece, data = out.cut(data)
            self._put(there.peer, Piece(there.number, piece))

    # Mail

    def _put(self, peer: str, content: Content) -> None:
        self._post.put(peer, carrying.encode(content), self._now())
        self._to_write.ring()

    async def _read(self) -> None:
        while True:
            for letter in await self._store.receive():
                if isinstance(letter, Taken):
                    self._supersede(letter)
                    self._hear(letter)
                else:
                    self._receive(letter)

    def _supersede(self, taken: Taken) -> None:
        for number in self._claims.get(taken.name, ()):
            here = self._asked[number]
            if here.peer != taken.holder and taken.fence > here.fence:
                here.end(Superseded("another gateway process has the session now"))

    def _receive(self, letter: bytes) -> None:
        for news in self._post.receive(letter, self._now()):
            if isinstance(news, Lost):
                self._lose(news.peer)
                continue
            try:
                self._understand(news.peer, carrying.decode(news.content), news.age_s)
            except OutOfLine:
                self._errors += 1
        self._acknowledged()
        self._to_write.ring()

    def _acknowledged(self) -> None:
        """Wake those that wait for room, and those that wait until all has arrived."""
        for peer in [peer for peer in self._blocked if self._post.has_room(peer, 1)]:
            for bell in self._blocked.pop(peer):
                bell.ring()
        self._moved.ring()

    def _understand(self, peer: str, content: Content, age_s: float) -> None:
        match content:
            case Ask():
                try:
                    self._take(peer, content, age_s)
                except OutOfLine:
                    self._put(peer, Failed(content.id))
                    raise
            case Body() | More():
                self._hear_asker(peer, content)
            case Cancel():
                self._stop(peer, content.id)
            case Had():
                if (there := self._performing.get((peer, content.id))) is not None:
                    there.had = True
                    there.bell.ring()
            case Word():
                self._hear(Note(peer, content.text))
            case _:
                self._hear_performer(peer, content)

    def _hear_asker(self, peer: str, content: Body | More) -> None:
        there = self._performing.get((peer, content.id))
        if there is None:
            return  # it was over when this was said
        try:
            there.performing.hear(content)
        except OutOfLine:
            self._stop(peer, content.id)
            self._put(peer, Failed(content.id))
            raise
        there.bell.ring()

    def _hear_performer(self, peer: str, content: FromPerformer) -> None:
        here = self._asked.get(content.id)
        if here is None or here.peer != peer:
            return
        try:
            here.asking.hear(content)
        except OutOfLine:
            here.end(PeerGone("it made no sense"))
            raise
        here.bell.ring()

    def _stop(self, peer: str, number: int) -> None:
        task = self._performed.get((peer, number))
        if task is not None:
            task.cancel()

    def _lose(self, peer: str | None) -> None:
        """Give up what is under way with a peer, or with all if the engine is away."""
        for here in self._asked.values():
            if peer is None:
                here.end(StoreAway("the engine is away"))
            elif peer == here.peer:
                here.told = False
                here.end(PeerGone("that gateway process is gone"))
        for (asker, _), task in self._performed.items():
            if peer in (None, asker):
                task.cancel()
        self._acknowledged()

    async def _write(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            due_at = self._post.next_due()
            if due_at is None or due_at > self._now():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(due_at):
                        await self._to_write.heard()
                continue
            letters = self._post.due(self._now())
            try:
                there = await self._store.send(letters)
            except StoreAway:
                self._away()
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                continue
            self._away_since, pause_s = None, FIRST_PAUSE_S
            for lost in self._post.sent(letters, there, self._now()):
                self._lose(lost.peer)

    def _away(self) -> None:
        now = self._now()
        self._post.away(now)
        if self._away_since is None:
            self._away_since = now
        elif now - self._away_since >= AWAY_S:
            self._lose(None)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
