"""The store of a process that is alone, and of tests that play several processes in one.

Stores on one `Engine` are to each other what processes on one Valkey are. Nothing here outlives
the process; its agents bring back what matters.
"""

import asyncio
import itertools
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Self, TypeVar

from gateway.store.base import (
    STORIES,
    Changes,
    Claim,
    Held,
    Keep,
    Letter,
    Passage,
    StoreAway,
    Taken,
    Told,
)
from gateway.store.stories import Stories

INBOX_BYTES = 32 * 1024 * 1024
"""What an inbox holds before it takes no more letters: two of the largest bodies."""

LETTER_BYTES = 256
"""What a letter costs an inbox beside its own bytes, so that empty ones are bounded too."""

NEWS = 65_536
"""After so many letters unread the oldest are forgotten: news of claims cannot be refused."""

TOMBSTONES = 10_000
"""How many deletions a table remembers; who missed more gets the whole table."""

SWEEP_S = 60.0
"""How often what has expired, and nobody asks for, is dropped."""

ROUNDING_S = 1e-6
"""A wait that is shorter is an error of the arithmetic."""

T = TypeVar("T")


class Shelf(Generic[T]):
    """Things by name, each until its time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._things: dict[str, tuple[T, float]] = {}
        self._sweep_at = 0.0

    def get(self, name: str) -> T | None:
        """Return what is there and has not expired."""
        thing, until = self._things.get(name, (None, 0.0))
        return thing if until > self._clock() else None

    def put(self, name: str, thing: T, ttl_s: float) -> None:
        """Set it down for so long."""
        now = self._clock()
        if now >= self._sweep_at:
            self._things = {n: kept for n, kept in self._things.items() if kept[1] > now}
            self._sweep_at = now + SWEEP_S
        self._things[name] = thing, now + ttl_s

    def change(self, name: str, thing: T) -> None:
        """Set another down where one is, until the same time."""
        self._things[name] = thing, self._things[name][1]

    def drop(self, name: str) -> None:
        """Take it away, if it is there."""
        self._things.pop(name, None)


@dataclass(slots=True)
class Table:
    """A table: its rows, and when each changed last.

    Attributes:
        floor: the first version, or that of the newest deletion that is forgotten.
    """

    floor: int
    version: int
    rows: dict[str, bytes] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    gone: dict[str, int] = field(default_factory=dict)

    def since(self, version: int) -> Changes:
        """Return what is new since a version."""
        if not self.floor <= version <= self.version:
            return Changes(self.version, dict(self.rows), whole=True)
        rows: dict[str, bytes | None] = {k: None for k, at in self.gone.items() if at > version}
        rows.update((k, self.rows[k]) for k, at in self.changed.items() if at > version)
        return Changes(self.version, rows, whole=False)

    def write(self, version: int, rows: Mapping[str, bytes | None]) -> None:
        """Go on to the next version."""
        self.version = version
        for key, value in rows.items():
            self.gone.pop(key, None)
            if value is not None:
                self.rows[key] = value
                self.changed[key] = version
            elif self.rows.pop(key, None) is not None:
                del self.changed[key]
                self.gone[key] = version
        while len(self.gone) > TOMBSTONES:
            self.floor = self.gone.pop(next(iter(self.gone)))


class Inbox:
    """The mail of one process that is alive."""

    def __init__(self) -> None:
        self.news = asyncio.Event()
        self._letters: deque[Letter] = deque(maxlen=NEWS)
        self._bytes = 0

    def put(self, letter: Letter) -> bool:
        """Put a letter in; return False if there is no room."""
        size = LETTER_BYTES + (len(letter) if isinstance(letter, bytes) else 0)
        if isinstance(letter, bytes) and self._bytes + size > INBOX_BYTES:
            return False
        self._bytes += size
        self._letters.append(letter)
        self.news.set()
        return True

    def empty(self) -> list[Letter]:
        """Take all letters out."""
        letters = list(self._letters)
        self._letters.clear()
        self._bytes = 0
        self.news.clear()
        return letters


class Engine:
    """What several stores of one process share; tests make it fail.

    Args:
        clock: in seconds, never back; everything expires by it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.blank_since = clock()
        self.inboxes: dict[str, Inbox] = {}
        self.versions = itertools.count(1)  # of all tables: none comes again, whatever is forgotten
        self._away_since: float | None = None
        self._empty()

    def _empty(self) -> None:
        self.claims: Shelf[Claim] = Shelf(self.clock)
        self.documents: Shelf[bytes] = Shelf(self.clock)
        self.tables: Shelf[Table] = Shelf(self.clock)
        self.stories = Stories(self.clock)
        self.buckets: Shelf[float] = Shelf(self.clock)

    @property
    def away(self) -> bool:
        """True while nobody gets an answer."""
        return self._away_since is not None

    @away.setter
    def away(self, away: bool) -> None:
        if away != self.away:
            self._away_since = self.clock() if away else None
        for inbox in self.inboxes.values():
            inbox.news.set()  # whoever waits looks again

    @property
    def away_s(self) -> float:
        """For how long there was no answer."""
        return 0.0 if self._away_since is None else self.clock() - self._away_since

    def crash(self, gateway: str) -> None:
        """Play the sudden death of a process: all take it for dead, and it can do nothing more."""
        self.inboxes.pop(gateway, None)

    def forget(self) -> None:
        """Lose all memory, letters too; the processes say at once that they are alive."""
        self._empty()
        for inbox in self.inboxes.values():
            inbox.empty()
        self.blank_since = self.clock()

    def find(self, name: str) -> Claim | None:
        """Return a claim as it is now."""
        claim = self.claims.get(name)
        return claim and replace(claim, alive=claim.holder in self.inboxes)

    def write(self, table: str, rows: Mapping[str, bytes | None], ttl_s: float) -> int:
        """Write rows into a table, which may be a new one; return its version."""
        version = next(self.versions)
        there = self.tables.get(table) or Table(version, version)
        there.write(version, rows)
        self.tables.put(table, there, ttl_s)
        return version

    def tell(self, name: str, fence: int, holder: str) -> None:
        """Tell all but the holder who holds a claim."""
        for gateway, inbox in self.inboxes.items():
            if gateway != holder:
                inbox.put(Taken(name, fence, holder))


class MemoryStore:
    """A store in this process; see `Store` for its methods.

    Before it is entered, after it is left, and once it has crashed, its methods raise `StoreAway`.

    Args:
        engine: what it shares with others; without one it is alone.
        gateway: id of the process that it belongs to; one of its own without.
    """

    name = "memory"

    def __init__(self, engine: Engine | None = None, gateway: str | None = None) -> None:
        self.alone = engine is None
        self.gateway = gateway or secrets.token_hex(6)
        self._engine = engine or Engine()
        self._started = self._engine.clock()

    async def __aenter__(self) -> Self:
        """See `Store`."""
        self._engine.inboxes[self.gateway] = Inbox()
        return self

    async def __aexit__(self, *failure: object) -> None:
        """See `Store`."""
        self._engine.inboxes.pop(self.gateway, None)

    @property
    def away_s(self) -> float:
        """See `Store`."""
        return self._engine.away_s

    @property
    def blank_since(self) -> float:
        """See `Store`."""
        return max(self._started, self._engine.blank_since)

    async def _reach(self) -> Engine:
        """Return the engine when it is this store's turn, as if it were elsewhere."""
        if not self.alone:
            await asyncio.sleep(0)
        if self._engine.away or self.gateway not in self._engine.inboxes:
            raise StoreAway("the engine is away, or this store is not in use")
        return self._engine

    # Claims

    async def find(self, name: str) -> Claim | None:
        """See `Store`."""
        return (await self._reach()).find(name)

    async def claim(self, name: str, facts: bytes, ttl_s: float, over: int = 0) -> Claim:
        """See `Store`."""
        engine = await self._reach()
        there = engine.find(name)
        if there and not there.ended and (there.alive or there.fence != over):
            return there
        mine = Claim(self.gateway, there.fence + 1 if there else 1, facts, alive=True)
        engine.claims.put(name, mine, ttl_s)
        if there:
            engine.tell(name, mine.fence, mine.holder)
        return mine

    async def take(self, name: str, fence: int, facts: bytes, ttl_s: float) -> Claim:
        """See `Store`."""
        engine = await self._reach()
        there = engine.find(name)
        if there and (there.ended or there.fence >= fence):
            return there
        mine = Claim(self.gateway, fence, facts, alive=True)
        engine.claims.put(name, mine, ttl_s)
        engine.tell(name, fence, mine.holder)
        return mine

    async def hold(self, held: Sequence[Held]) -> list[bool]:
        """See `Store`."""
        engine = await self._reach()
        return [self._hold(engine, one) for one in held]

    def _hold(self, engine: Engine, one: Held) -> bool:
        there = engine.claims.get(one.name)
        if there and (there.holder != self.gateway or there.fence > one.fence):
            return False
        engine.claims.put(one.name, Claim(self.gateway, one.fence, one.facts), one.ttl_s)
        return True

    async def release(self, name: str, fence: int) -> bool:
        """See `Store`."""
        engine = await self._reach()
        if mine := self._mine(engine, name, fence):
            engine.claims.change(name, replace(mine, holder=""))
        return mine is not None

    async def end(self, name: str, fence: int, why: str, ttl_s: float) -> bool:
        """See `Store`."""
        engine = await self._reach()
        if mine := self._mine(engine, name, fence):
            engine.claims.put(name, replace(mine, holder="", ended=why), ttl_s)
        return mine is not None

    def _mine(self, engine: Engine, name: str, fence: int) -> Claim | None:
        there = engine.claims.get(name)
        ours = there is not None and (there.holder, there.fence) == (self.gateway, fence)
        return there if ours else None

    # Documents

    async def get(self, name: str) -> bytes | None:
        """See `Store`."""
        return (await self._reach()).documents.get(name)

    async def put(self, name: str, value: bytes, ttl_s: float) -> None:
        """See `Store`."""
        (await self._reach()).documents.put(name, value, ttl_s)

    async def put_new(self, name: str, value: bytes, ttl_s: float) -> bytes:
        """See `Store`."""
        engine = await self._reach()
        if (there := engine.documents.get(name)) is None:
            engine.documents.put(name, value, ttl_s)
        return value if there is None else there

    async def delete(self, name: str) -> None:
        """See `Store`."""
        (await self._reach()).documents.drop(name)

    # Tables

    async def changes(self, table: str, since: int) -> Changes:
        """See `Store`."""
        there = (await self._reach()).tables.get(table)
        return there.since(since) if there else Changes(0, {}, whole=True)

    async def commit(
        self, table: str, since: int, rows: Mapping[str, bytes | None], ttl_s: float
    ) -> int | None:
        """See `Store`."""
        engine = await self._reach()
        there = engine.tables.get(table)
        if since != (there.version if there else 0):
            return None
        if rows:
            return engine.write(table, rows, ttl_s)
        if there:
            engine.tables.put(table, there, ttl_s)
        return since

    # Stories

    async def tell(self, passages: Sequence[Passage], keep: Keep) -> None:
        """See `Store`."""
        engine = await self._reach()
        if passages:
            engine.write(STORIES, engine.stories.tell(passages, keep), keep.ttl_s)

    async def told(self, story: str, after: int, most_bytes: int) -> Told:
        """See `Store`."""
        return (await self._reach()).stories.told(story, after, most_bytes)

    # Rates

    async def draw(self, name: str, per_minute: float, burst: int) -> float:
        """See `Store`."""
        engine = await self._reach()
        each_s, now = 60.0 / per_minute, engine.clock()
        full_at = min(max(now, engine.buckets.get(name) or 0.0), now + burst * each_s)
        wait_s = full_at - now - (burst - 1) * each_s
        if wait_s > ROUNDING_S:
            return wait_s
        engine.buckets.put(name, full_at + each_s, full_at + each_s - now)
        return 0.0

    # Mail

    async def gateways(self) -> list[str]:
        """See `Store`."""
        return sorted((await self._reach()).inboxes)

    async def send(self, letters: Sequence[tuple[str, bytes]]) -> list[bool]:
        """See `Store`."""
        engine = await self._reach()
        delivered, full = list[bool](), set[str]()
        for to, letter in letters:
            inbox = engine.inboxes.get(to)
            taken = inbox is not None and to not in full and inbox.put(letter)
            if not taken:
                full.add(to)
            delivered.append(taken)
        return delivered

    async def receive(self) -> Sequence[Letter]:
        """See `Store`."""
        inbox = self._engine.inboxes.get(self.gateway) or Inbox()
        while self._engine.away or not (letters := self._letters(inbox)):
            inbox.news.clear()
            await inbox.news.wait()
        return letters

    def _letters(self, inbox: Inbox) -> list[Letter]:
        alive = self._engine.inboxes.get(self.gateway) is inbox
        return inbox.empty() if alive else []
