"""Records the stories of sessions: hears every event, tells the store, and reads from it.

What is heard is put aside; four times a second it becomes lines and summaries, and goes to the
store in few big steps. While the store is away it waits, `NEWS_BYTES` at most: beyond, the oldest
lines are dropped, and a line `gap` says how many. A step that the store did not confirm is
repeated, so lines may be there twice after that.

One process says what a session's summary is: the one at which it was asked for, or that its agent
has dialled since. Others add lines only.
"""

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import fields, replace
from sys import getsizeof
from typing import Any, Final

import msgspec

from gateway import events
from gateway.ops import story
from gateway.ops.redaction import MOST_BYTES, Redactor, too_large
from gateway.ops.story import FAILURES, Failure, Summary, Tale
from gateway.registry.servers import ServerDefinition
from gateway.store.base import STORIES, Keep, Passage, Store, StoreAway, Told

FLUSH_EVERY_S: Final = 0.25
"""How old news may get before the store is told: a person who follows sees it as live."""

SOON_S: Final = 0.05
"""The least time between two steps, however many readers wait for what is new."""

FLUSH_S: Final = 2.0
"""How long the end of the process may wait for the last news to be told."""

SETTLE_S: Final = 5.0
"""How long a reader waits for that: two steps that come to nothing."""

FRESH_S: Final = 0.5
"""What was read of other processes' sessions is not read again before."""

NEWS_BYTES: Final = 8 * 1024 * 1024
"""What may wait for the store, raw or as lines, roughly as it lies in memory."""

BATCH_BYTES: Final = 512 * 1024
"""What the store is told in one step: it answers in far less than its deadline."""

TURN: Final = 32
"""So many events become lines (some 0.5 ms) before others have their turn."""

HEAVY_BYTES: Final = 16 * 1024
"""Payloads that are longer are redacted beside the loop: 256 KiB may take 0.1 s."""

PAGE_BYTES: Final = 1024 * 1024
"""What is read of the failures in one step."""

_EVENT_BYTES = 768
"""What an event takes in memory beside its long texts, measured."""

_LINE_BYTES = 128
"""What a line takes in memory beside its own bytes, measured."""

_LONG: Final = frozenset({"payload", "text", "detail", "why", "sample", "cause", "client"})
_LONG_OF: Final = {
    kind: tuple(each.name for each in fields(kind) if each.name in _LONG) for kind in story.kinds()
}
_MESSAGES: Final = frozenset({events.Passed, events.CallFinished})
_PLACED: Final = frozenset({events.Requested, events.Hydrated, events.HandedOver})

News = tuple[float, events.Event, int, int]
"""When, what, its size in memory, and the size of a payload that was too large to be kept."""


class _Heads:
    """The summaries of all sessions, as the store has them.

    Attributes:
        rows: by session; those of this process as they were told last.
    """

    def __init__(self, store: Store) -> None:
        self.rows: dict[str, Summary] = {}
        self._store = store
        self._version = 0
        self._read_at = -FRESH_S
        self._lock = asyncio.Lock()

    async def refresh(self, old_s: float) -> tuple[set[str], bool]:
        """Read what is new, unless that was done so short a time ago.

        Returns:
            The sessions that were written since, and whether what is not there now may be lost.

        Raises:
            StoreAway: nobody knows.
        """
        async with self._lock:
            clock = asyncio.get_running_loop().time
            if clock() - self._read_at < old_s:
                return set(), False
            changes = await self._store.changes(STORIES, self._version)
            self._version, self._read_at = changes.version, clock()
            if changes.whole:
                self.rows.clear()
            written = set[str]()
            for session, raw in changes.rows.items():
                self.rows.pop(session, None)
                if raw is not None:
                    written.add(session)
                    with contextlib.suppress(msgspec.DecodeError):  # failures', another release's
                        self.rows[session] = _SUMMARY.decode(raw)
            return written, changes.whole


class Recorder:
    """The stories of all sessions.

    Args:
        store: what the processes share; has the stories.
        keep: how much of them.
        definition: finds a server by its name, also one whose sessions only go on.
        now: seconds since 1970.
    """

    def __init__(
        self,
        store: Store,
        keep: Keep,
        definition: Callable[[str], ServerDefinition | None],
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._bounds = keep
        self._definition = definition
        self._now = now
        self._news: deque[News] = deque()
        self._lines: deque[tuple[str, bytes]] = deque()
        self._bytes = 0  # of both, and of what is being told
        self._gaps: Counter[str] = Counter()
        self._tales: dict[str, Tale] = {}
        self._leaving: set[str] = set()  # sessions whose tale ends when it is told
        self._overwritten: set[str] = set()  # others have, though their summary is ours to say
        self._servers: dict[str, str] = {}
        self._heads = _Heads(store)
        self._redactors: dict[str, tuple[ServerDefinition, Redactor]] = {}
        self._any_redactor = Redactor()
        self._followers: dict[str, set[asyncio.Event]] = {}
        self._absorbing, self._telling = asyncio.Lock(), asyncio.Lock()
        self._keeping = False
        self._asked = asyncio.Event()
        self._askers: list[asyncio.Future[None]] = []

    # Hearing

    def hear(self, event: events.Event) -> None:
        """Take an event. It never blocks and never raises."""
        kind = type(event)
        size, whole = _EVENT_BYTES, 0
        for name in _LONG_OF.get(kind, ()):
            size += getsizeof(getattr(event, name))
        if isinstance(event, events.Passed | events.CallFinished):
            if size > MOST_BYTES and len(event.payload) > MOST_BYTES:
                whole = len(event.payload)
                event, size = replace(event, payload=b""), _EVENT_BYTES
        elif isinstance(event, events.Requested | events.Hydrated):
            self._servers[event.session] = event.server
        self._news.append((self._now(), event, size, whole))
        self._bytes += size
        if self._bytes > NEWS_BYTES:
            self._shed()

    def server_of(self, session: str) -> str:
        """Return the name of a session's server; empty if it is not known here."""
        if server := self._servers.get(session):
            return server
        row = self._heads.rows.get(session)
        return "" if row is None else row.server

    def _shed(self) -> None:
        """Drop the oldest until there is room; what it says of sessions is kept."""
        while self._bytes > NEWS_BYTES and (self._lines or self._news):
            if self._lines:
                name, line = self._lines.popleft()
                self._bytes -= len(line) + _LINE_BYTES
                self._gaps[name] += 1
                continue
            at, event, size, _ = self._news.popleft()
            self._bytes -= size
            session = self._session_of(event)
            tale = self._tale(session) if session else None
            redactor = self._redactor(event, tale)[1]
            if tale is not None:
                tale.hear(at, event, redactor.shown)
                self._gaps[session] += 1
                if tale.over or not tale.ours:
                    self._leaving.add(session)
            summary = None if tale is None else tale.summary
            if story.failure(at, event, summary, redactor.shown) is not None:
                self._gaps[FAILURES] += 1

    # What was heard becomes lines

    async def _absorb(self) -> None:
        """Make lines and summaries of what was heard until now.

        Raises:
            StoreAway: there are sessions that only other processes know; nothing is lost.
        """
        async with self._absorbing:
            if self._strangers():
                await self._refresh(0.0)
            for turn in range(1, len(self._news) + 1):
                if turn % TURN == 0:
                    await asyncio.sleep(0)
                if not self._news:  # they were shed meanwhile
                    return
                await self._absorb_oldest()

    async def _absorb_oldest(self) -> None:
        news = self._news.popleft()
        at, event, size, whole = news
        session = self._session_of(event)
        tale = self._tale(session) if session else None
        definition, redactor = self._redactor(event, tale)
        about: dict[str, Any] = {}
        if isinstance(event, events.Passed | events.CallFinished) and (event.payload or whole):
            try:
                about = await self._payload(event.payload, whole, definition, redactor)
            except asyncio.CancelledError:
                self._news.appendleft(news)
                raise
        self._bytes -= size
        if tale is not None:
            tale.hear(at, event, redactor.shown)
            if isinstance(event, events.ChildLog):
                about["text"], tale.key_lines = redactor.line(event.text, tale.key_lines)
            elif type(event) in _PLACED:
                about["gateway"] = self._store.gateway
            if type(event) not in _MESSAGES or definition is None or definition.record != "off":
                self._add(session, story.line(at, event, redactor, about))
            if tale.over or not tale.ours:
                self._leaving.add(session)
        summary = None if tale is None else tale.summary
        if (failed := story.failure(at, event, summary, redactor.shown)) is not None:
            self._add(FAILURES, msgspec.json.encode(failed))

    def _session_of(self, event: events.Event) -> str:
        """Return whose story an event belongs to; empty if to none."""
        if isinstance(event, events.SessionEvent):
            return event.session
        if isinstance(event, events.Operated) and event.subject in self._tales:
            return event.subject
        return ""

    def _strangers(self) -> bool:
        """Whether there is news of sessions that were begun elsewhere."""
        begun = set[str]()
        for _, event, _, _ in self._news:
            if isinstance(event, events.Requested):
                begun.add(event.session)
            elif isinstance(event, events.SessionEvent):
                session = event.session
                if session not in self._tales and session not in begun:
                    return True
        return False

    def _tale(self, session: str) -> Tale:
        if (tale := self._tales.get(session)) is None:
            known = copy(self._heads.rows.get(session))
            tale = self._tales[session] = Tale(session, self._store.gateway, known)
        return tale

    def _redactor(
        self, event: events.Event, tale: Tale | None
    ) -> tuple[ServerDefinition | None, Redactor]:
        """Return the definition of an event's server, and what redacts for it."""
        server = getattr(event, "server", "") or (tale.summary.server if tale else "")
        definition = self._definition(server) if server else None
        if definition is None:
            return None, self._any_redactor
        made = self._redactors.get(server)
        if made is None or made[0] is not definition:
            made = definition, Redactor(definition.env.values(), definition.redact)
            self._redactors[server] = made
        return made

    async def _payload(
        self, payload: bytes, whole: int, definition: ServerDefinition | None, redactor: Redactor
    ) -> dict[str, Any]:
        if definition is None or definition.record != "payloads":
            return {}
        if whole:
            return {"payload": too_large(whole, "bytes"), "payload_bytes": whole}
        if len(payload) <= HEAVY_BYTES:
            return story.payload_facts(payload, definition.record_bytes, redactor)
        return await asyncio.to_thread(
            story.payload_facts, payload, definition.record_bytes, redactor
        )

    def _add(self, name: str, line: bytes) -> None:
        self._lines.append((name, line))
        self._bytes += len(line) + _LINE_BYTES

    # Lines go to the store

    async def keep(self) -> None:
        """Tell the store what is new, again and again."""
        self._keeping = True
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(FLUSH_EVERY_S - SOON_S):
                        await self._asked.wait()
                self._asked.clear()
                askers, self._askers = self._askers, []
                await self._answer(askers)
                await asyncio.sleep(SOON_S)
        finally:
            self._keeping = False
            _resolve(self._askers, StoreAway("the recorder stops"))
            self._askers = []

    async def _answer(self, askers: list[asyncio.Future[None]]) -> None:
        failure: StoreAway | None = StoreAway("the recorder stops")
        try:
            await self._flush()
            failure = None
        except StoreAway as away:
            failure = away
        finally:
            _resolve(askers, failure)

    async def _settle(self) -> None:
        """Wait until the store knows what was heard until now.

        Whoever gives up waiting does not break off what is being told: it would be told twice.

        Raises:
            StoreAway: it does not know.
        """
        busy = self._telling.locked() or self._absorbing.locked()
        if not (busy or self._news or self._lines or self._gaps):
            return
        if not self._keeping:
            await self._flush()
            return
        asker = asyncio.get_running_loop().create_future()
        self._askers.append(asker)
        self._asked.set()
        try:
            async with asyncio.timeout(SETTLE_S):
                await asker
        except TimeoutError as late:
            raise StoreAway("the store takes long to be told what is new") from late

    async def flush(self) -> None:
        """Tell the store what is new, as far as that is possible within `FLUSH_S`.

        Do this before `keep` is ended: what that was just telling might be told twice.
        """
        with contextlib.suppress(TimeoutError, StoreAway):
            async with asyncio.timeout(FLUSH_S):
                await self._flush()

    async def _flush(self) -> None:
        async with self._telling:
            await self._absorb()
            while self._lines or self._gaps or self._overwritten:
                await self._tell()
            for session in self._leaving:
                tale = self._tales.get(session)
                if tale is not None and (tale.over or not tale.ours):
                    del self._tales[session]
                    self._servers.pop(session, None)
            self._leaving.clear()

    async def _tell(self) -> None:
        """Tell the store the oldest lines, and the summaries of their sessions."""
        batch, size = list[tuple[str, bytes]](), 0
        while self._lines and size < BATCH_BYTES:
            batch.append(self._lines.popleft())
            size += len(batch[-1][1]) + _LINE_BYTES
        gaps, self._gaps = self._gaps, Counter()
        passages: dict[str, list[bytes]] = {session: [] for session in self._overwritten}
        for name, dropped in gaps.items():
            passages.setdefault(name, []).append(story.gap(self._now(), dropped))
        for name, line in batch:
            passages.setdefault(name, []).append(line)
        try:
            if any(self._is_guest(name) for name in passages):
                await self._refresh(0.0)
            heads = {name: self._head(name) for name in passages if name != FAILURES}
            await self._store.tell(
                [
                    Passage(name, msgspec.json.encode(heads.get(name, {})), lines)
                    for name, lines in passages.items()
                ],
                self._bounds,
            )
        except BaseException:
            self._lines.extendleft(reversed(batch))
            self._gaps.update(gaps)
            raise
        self._bytes -= size
        self._overwritten.difference_update(passages)
        self._was_told(heads, passages)

    def _is_guest(self, name: str) -> bool:
        tale = self._tales.get(name)
        return name != FAILURES and (tale is None or not tale.ours)

    def _head(self, session: str) -> Summary:
        """Return the newest summary of a session: another's, if it has that."""
        tale, row = self._tales.get(session), self._heads.rows.get(session)
        if tale is not None and (tale.ours or row is None or row.gateway == self._store.gateway):
            return copy(tale.summary)
        return row or Summary(session=session)

    def _was_told(self, heads: Mapping[str, Summary], stories: Mapping[str, object]) -> None:
        for session, head in heads.items():
            self._heads.rows[session] = head
            if (tale := self._tales.get(session)) is not None:
                tale.told = head
        for name in stories:
            for follower in self._followers.get(name, ()):
                follower.set()

    async def _refresh(self, old_s: float) -> None:
        """Learn of other processes' sessions, and whether they have overwritten ours."""
        written, lost = await self._heads.refresh(old_s)
        for session in self._tales if lost else written:
            tale, row = self._tales.get(session), self._heads.rows.get(session)
            if tale is not None and tale.ours and tale.told not in (None, row):
                self._overwritten.add(session)

    # Reading

    async def summaries(self) -> Mapping[str, Summary]:
        """Return all sessions' summaries by their names; what is new at others is 0.5 s late.

        While the store is away these are the last that it has told, and those of this process.
        They are not to be changed.
        """
        await self._look()
        return self._heads.rows | {session: self._head(session) for session in self._tales}

    async def summary(self, session: str) -> Summary | None:
        """Return a session's summary; None if there is no such session, or none any more."""
        await self._look()
        known = session in self._tales or session in self._heads.rows
        return self._head(session) if known else None

    async def _look(self) -> None:
        with contextlib.suppress(StoreAway):
            await self._absorb()
            await self._refresh(FRESH_S)

    async def told(
        self, session: str, after: int, most_bytes: int, *, settled: bool = True
    ) -> Told:
        """Return lines of a session's story; see `Store.told`.

        Args:
            session: its name.
            after: see `Store.told`.
            most_bytes: likewise.
            settled: all that was heard here until now is to be among them. Who follows has no
                need of that, and would have each line told by itself.

        Raises:
            StoreAway: nobody can know.
        """
        if settled:
            await self._settle()
        return await self._store.told(session, after, most_bytes)

    def following(self, session: str) -> AbstractContextManager[asyncio.Event]:
        """Inside, the event is set whenever something of this session was told here."""
        return self._following(session)

    @contextlib.contextmanager
    def _following(self, session: str) -> Iterator[asyncio.Event]:
        follower = asyncio.Event()
        self._followers.setdefault(session, set()).add(follower)
        try:
            yield follower
        finally:
            others = self._followers[session]
            others.discard(follower)
            if not others:
                del self._followers[session]

    async def failures(self, most: int = 2000) -> list[Failure]:
        """Return the newest failures, the newest first.

        Raises:
            StoreAway: nobody can know.
        """
        await self._settle()
        found: deque[Failure] = deque(maxlen=most)
        after, last = 0, 1
        while after < last:
            told = await self._store.told(FAILURES, after, PAGE_BYTES)
            for line in told.lines:
                with contextlib.suppress(msgspec.ValidationError):  # a gap, or of another release
                    found.append(_FAILURE.decode(line))
            after, last = told.first + len(told.lines) - 1, told.last
            if not told.lines:
                break
        return list(reversed(found))


def _resolve(askers: list[asyncio.Future[None]], failure: StoreAway | None) -> None:
    for asker in askers:
        if asker.done():  # whoever asked has left
            continue
        if failure is None:
            asker.set_result(None)
        else:
            asker.set_exception(failure)


_SUMMARY: Final = msgspec.json.Decoder(Summary)
_FAILURE: Final = msgspec.json.Decoder(Failure)
