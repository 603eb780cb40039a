"""What servers answer without a dyno, and which eras they speak: learned in throw-away runs.

A run is a session like any other, with this process as its client. It is never the one that serves
somebody: the first message decides which era a process speaks for the rest of its life. Of a
toolkit nothing is learned: what it answers is composed from what its members do.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Literal, Self

from dyno_agent.link import Face
from gateway import events
from gateway.eras import modern
from gateway.eras.catalogue import OPENINGS, Chapter, Era, Unlearnable, wanted
from gateway.eras.versions import HANDSHAKE
from gateway.errors import (
    Busy,
    ChildExited,
    GatewayError,
    NotReady,
    SessionEnded,
    UnsupportedRevision,
)
from gateway.fleet.ledger import GATEWAY
from gateway.patience import patience
from gateway.registry.servers import Change, Registry, ServerDefinition
from gateway.sessions.live import OwnedLive
from gateway.sessions.manager import Manager
from gateway.sessions.record import Reason
from gateway.sessions.shelf import Learned, Shelf
from gateway.sessions.toolkits import Toolkits
from gateway.sessions.visit import Refused, Visit, begin
from gateway.store.base import StoreAway

PRINCIPAL: Final = GATEWAY
"""Whose throw-away runs are. No client has this name: it holds what API_KEY cannot."""

PATIENCE_S = 8.0
"""How long a request waits for the first run of its server. An SDK's probe gives up after 10 s."""

GLANCE_S = 0.4
"""How long a request to a toolkit waits for the first runs of all its members together: those that
are slow or broken must not keep the others waiting, and come later as a change."""

ANSWER_S = 60.0
"""How long a child may take for one answer in a throw-away run, its boot aside."""

AGAIN_S = (5.0, 30.0, 120.0, 600.0)
"""How long to wait before another look: longer with each one that told nothing new."""

AT_ONCE = 2
"""Servers that are looked at at the same time."""

NEWS_S = 1.0
"""How often the store is asked what other processes have learned."""

CLIENT: Final = "rendezvous gateway"
"""What a run calls itself as a client."""

Standing = Literal["syncing", "synced", "error"]
"""How far what a server answers is known."""

_ERAS: Final[Mapping[str, tuple[Era, ...]]] = {
    "auto": ("modern", "legacy"),
    "modern": ("modern",),
    "legacy": ("legacy",),
    "dual": ("modern", "legacy"),
}


class _Outcome(Enum):
    """What a throw-away run comes to that learns nothing.

    REFUSED: the child does not speak the era. BUSY: no dyno was to be had. FAILED: who knows.
    """

    REFUSED = "refused"
    BUSY = "busy"
    FAILED = "failed"


@dataclass(slots=True)
class _Known:
    """What is known of one server.

    Attributes:
        chapters: by era that a client may speak, its own or in translation.
        spoken: eras that its child speaks itself; None as long as that is not known.
        first: set once the first look has told what its child speaks, or has failed.
        whole: set once the first look is over, translations included.
        stale: asks for another look.
        released: asks for it at once: the server is not what it was.
        shared: set when another process has told what it has learned.
        why: what the last look failed of.
    """

    chapters: dict[Era, Chapter]
    spoken: frozenset[Era] | None
    first: asyncio.Event = field(default_factory=asyncio.Event)
    whole: asyncio.Event = field(default_factory=asyncio.Event)
    stale: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    shared: asyncio.Event = field(default_factory=asyncio.Event)
    why: str = ""

    def tells_of(self, era: Era) -> bool:
        """True when it is known whether the child speaks this era."""
        return self.spoken is not None or era in self.chapters


class Catalogues:
    """The catalogue of every server. Use it as an async context manager, inside its manager.

    Args:
        manager: makes the sessions of throw-away runs.
        registry: the servers.

    Attributes:
        toolkits: say which member of a toolkit a request is for.
    """

    def __init__(self, manager: Manager, registry: Registry) -> None:
        self._manager = manager
        manager.subscribe(self._hear)
        self._registry = registry
        registry.subscribe(self._changed)
        self._known: dict[str, _Known] = {}
        self.toolkits = Toolkits(registry, self.chapter)
        self._loops: dict[str, asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._room = asyncio.Semaphore(AT_ONCE)
        self._shelf = Shelf(manager.store, manager.secret)
        self._news: asyncio.Task[None] | None = None
        manager.reception.chapter = functools.partial(self.chapter, era="legacy")
        self._changed(Change(frozenset(registry.names), frozenset()))

    def chapter(self, server: ServerDefinition, era: Era) -> Chapter | None:
        """Return what clients of this era are told without a dyno; None if only a child can say.

        A toolkit always has a chapter, of those of its members that are known.
        """
        if server.toolkit is not None:
            return self.toolkits.chapter(server, era)
        return self._known[server.name].chapters.get(era) if server.catalogue else None

    def tools(self, server: ServerDefinition) -> list[dict[str, str]] | None:
        """Return name and description of a server's tools; None if nobody has looked."""
        if server.toolkit is not None:
            return max((self.toolkits.chapter(server, era).tools for era in OPENINGS), key=len)
        known = self._known.get(server.name)
        chapters = [] if known is None else [*known.chapters.values()]
        return chapters[0].tools if chapters else None

    def standing(self, server: ServerDefinition) -> tuple[Standing, str]:
        """Return how far the catalogue of a server is, and why the last look at it failed."""
        known = self._known.get(server.name)
        if known is None or not server.catalogue:  # nothing is to be known of it
            return "synced", ""
        if known.stale.is_set() or not known.whole.is_set():
            return "syncing", ""
        return ("synced", "") if known.chapters else ("error", known.why)

    def face(self, server: ServerDefinition, era: Era) -> Face:
        """Return the face that a child needs for clients of this era.

        Raises:
            UnsupportedRevision: it does not speak it, and nobody translates; names what it speaks.
        """
        spoken = None if server.toolkit is not None else self._known[server.name].spoken
        if spoken is None or era in spoken:
            return "plain"
        if server.translate:
            return era
        supported = [modern.REVISION] if "modern" in spoken else list(HANDSHAKE)
        raise UnsupportedRevision(
            f"{server.name} speaks {', '.join(supported)} and is not translated (translate)",
            supported=supported,
            requested=modern.REVISION if era == "modern" else "",
        )

    async def settled_chapter(self, server: ServerDefinition, era: Era) -> Chapter | None:
        """Return the chapter, once the first look at its server is over or takes too long.

        Of a toolkit that is the first look at each of its members.
        """
        members = self._registry.members(server) if server.toolkit is not None else [server]
        limit_s = PATIENCE_S if server.toolkit is None else GLANCE_S
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience(limit_s)):
                for member in members:
                    await self._looked_at(member, era)
        return self.chapter(server, era)

    async def _looked_at(self, server: ServerDefinition, era: Era) -> None:
        known = self._known[server.name]
        if known.spoken is None:
            await known.first.wait()
        if server.catalogue and era not in known.chapters:
            await known.whole.wait()

    async def ready(self, server: ServerDefinition, era: Era) -> None:
        """Wait until it is known whether a server speaks an era, for a bounded time.

        Raises:
            GatewayError: the era of its child is not known, and cannot be guessed.
        """
        if server.toolkit is not None:
            return
        known = self._known[server.name]
        if known.tells_of(era):
            return
        try:
            async with asyncio.timeout(patience(PATIENCE_S)):
                await known.first.wait()
        except TimeoutError:
            raise NotReady(f"{server.name} is being looked at for the first time") from None
        if not known.tells_of(era):
            raise SessionEnded(f"{server.name} could not be started: {known.why}")

    def _hear(self, event: events.Event) -> None:
        """Be a sink: a child that contradicts its catalogue asks for another look."""
        if isinstance(event, events.Contradicted) and event.principal != PRINCIPAL:
            self._known[event.server].stale.set()

    async def __aenter__(self) -> Self:
        """Look at every server now, and again when a child contradicts what is known."""
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        if not self._shelf.alone:
            with contextlib.suppress(StoreAway):
                self._learn_from(await self._shelf.news())
            self._news = self._tasks.create_task(self._hear_news(), name="catalogue news")
        for name in self._registry.names:
            self._start(name)
        return self

    async def __aexit__(self, *failure: object) -> None:
        """Look no more."""
        tasks, self._tasks = self._tasks, None
        for loop in self._loops.values():
            loop.cancel()
        if self._news is not None:
            self._news.cancel()
        if tasks is not None:
            await tasks.__aexit__(None, None, None)

    def _changed(self, change: Change) -> None:
        """Look at servers that are new, or released anew; the others are gone."""
        for name in change.changed:
            server = self._registry.find(name)
            if server is not None:
                known = self._known.setdefault(name, _empty(server))
                known.stale.set()
                known.released.set()
                self._start(name)
        for name in change.gone:
            if (loop := self._loops.pop(name, None)) is not None:
                loop.cancel()
        self._tell_toolkits()

    def _start(self, name: str) -> None:
        server = self._registry.find(name)
        if self._tasks is None or server is None or name in self._loops:
            return
        if server.catalogue or server.era == "auto":
            self._loops[name] = self._tasks.create_task(self._keep(name), name=f"catalogue {name}")

    async def _keep(self, name: str) -> None:
        """Look at one server; the more often in vain, the more rarely."""
        known, in_vain = self._known[name], 0
        if known.shared.is_set():  # before this process asked anybody
            await known.stale.wait()
        while (server := self._registry.find(name)) is not None:
            known.stale.clear()
            known.released.clear()
            before = known.chapters
            async with self._room:
                good = await self._look_for_all(server, known)
            known.first.set()
            known.whole.set()
            news = good and not _same(before, known.chapters)
            self._tell(server, before)
            in_vain = 0 if news else in_vain
            if good:
                await known.stale.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_S[min(in_vain, len(AGAIN_S) - 1)]):
                    await known.released.wait()
                    in_vain = -1
            in_vain += 1

    async def _look_for_all(self, server: ServerDefinition, known: _Known) -> bool:
        """Learn what a server answers, or let the process that looks at it tell.

        Returns:
            Whether all of it was learned.
        """
        known.shared.clear()
        try:
            while not await self._shelf.may_look(server):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(NEWS_S):
                        await known.shared.wait()
                if known.shared.is_set():
                    return True
            if not self._shelf.alone:  # somebody may have looked a moment ago
                self._learn_from(await self._shelf.news())
            good = known.shared.is_set() or await self._look(server, known)
            if good and not known.shared.is_set():
                self._learn_from(await self._shelf.put(server, known.spoken, known.chapters))
            await self._shelf.looked(server)
        except StoreAway as error:
            known.why = f"what the processes share cannot be reached: {error}"
            return False
        return good

    async def _hear_news(self) -> None:
        while True:
            await asyncio.sleep(NEWS_S)
            with contextlib.suppress(StoreAway):
                self._learn_from(await self._shelf.news())

    def _learn_from(self, told: Mapping[str, Learned]) -> None:
        """Believe what other processes have learned of servers that are the same here."""
        for name, learned in told.items():
            server, known = self._registry.find(name), self._known.get(name)
            if server is None or known is None or learned.definition != self._shelf.digest(server):
                continue
            before = known.chapters
            if server.era == "auto":
                known.spoken = learned.spoken
            known.chapters = learned.chapters
            for event in (known.first, known.whole, known.shared):
                event.set()
            known.stale.clear()
            self._tell(server, before)

    def _tell(self, server: ServerDefinition, before: Mapping[Era, Chapter]) -> None:
        """Tell sessions without a dyno what is not as they were told."""
        for era, earlier in before.items():
            chapter = self.chapter(server, era)
            if chapter is not None and (changed := earlier.changed(chapter)):
                self._relearn(server.name, chapter, changed)
        self._tell_toolkits()

    def _tell_toolkits(self) -> None:
        for news in self.toolkits.news():
            self._relearn(news.toolkit, news.chapter, news.changed)

    def _relearn(self, name: str, chapter: Chapter, changed: frozenset[str]) -> None:
        for live in self._manager.directory.dormant:
            era: Era = "legacy" if isinstance(live, OwnedLive) else "modern"
            if live.record.server.name == name and chapter.era == era:
                live.perform(live.session.relearned(chapter, changed))

    async def _look(self, server: ServerDefinition, known: _Known) -> bool:
        """Learn what a server answers; return whether all of it was learned."""
        runs: dict[Era, Face] = dict.fromkeys(_ERAS[server.era], "plain")
        found, sure = await self._learn_all(server, runs)
        if found and sure and server.era == "auto":
            known.spoken = frozenset(found)
        known.chapters = {**known.chapters, **found}
        if not found or not sure:
            return False
        known.first.set()
        if server.translate and server.catalogue:
            translated: dict[Era, Face] = {era: era for era in OPENINGS if era not in found}
            more, sure = await self._learn_all(server, translated)
            found |= more
        known.chapters = found if sure else {**known.chapters, **found}
        return sure

    async def _learn_all(
        self, server: ServerDefinition, runs: Mapping[Era, Face]
    ) -> tuple[dict[Era, Chapter], bool]:
        """Return what several runs have learned, and whether none has failed."""
        async with asyncio.TaskGroup() as tasks:
            learning = {
                era: tasks.create_task(self._learn(server, era, face), name=f"{era} {server.name}")
                for era, face in runs.items()
            }
        told = {era: task.result() for era, task in learning.items()}
        for era, face in runs.items():
            if told[era] is _Outcome.BUSY:  # there was room for one at a time
                await self._manager.closed()
                told[era] = await self._learn(server, era, face)
        chapters = {era: got for era, got in told.items() if isinstance(got, Chapter)}
        doubtful = (_Outcome.BUSY, _Outcome.FAILED)
        return chapters, not any(got in doubtful for got in told.values())

    async def _learn(self, server: ServerDefinition, era: Era, face: Face) -> "Chapter | _Outcome":
        known, outcome = self._known[server.name], _Outcome.FAILED
        try:
            visit = await begin(self._manager, server, era, PRINCIPAL, CLIENT)
        except GatewayError as error:
            known.why = error.message
            return outcome
        try:
            visit.launch(face)
            async with asyncio.timeout(visit.live.lease.boot_s + ANSWER_S):
                chapter = await _chapter(visit, era)
        except Refused as error:
            why, outcome = str(error), _Outcome.REFUSED
        except ChildExited as error:  # some leave when they do not understand
            why, outcome = error.message, _Outcome.REFUSED
        except Busy as error:
            why, outcome = error.message, _Outcome.BUSY
        except GatewayError as error:
            why = error.message
        except TimeoutError:
            why = f"no answer within {ANSWER_S:.0f} s"
        else:
            self._manager.emit(
                events.Learned(
                    session=visit.session_id, server=server.name, era=era, lists=len(chapter.lists)
                )
            )
            return chapter
        finally:
            visit.end(Reason.ANSWERED, SessionEnded("the look is over"))
        known.why = why
        self._manager.emit(
            events.NotLearned(session=visit.session_id, server=server.name, era=era, why=why)
        )
        return outcome


def _empty(server: ServerDefinition) -> _Known:
    spoken = None if server.era == "auto" else frozenset(_ERAS[server.era])
    return _Known({}, spoken)


async def _chapter(visit: Visit, era: Era) -> Chapter:
    """Ask for everything that a chapter holds; a list that cannot be had is left to children.

    Raises:
        Refused: the child does not speak this era.
        GatewayError: it could not be asked.
    """
    opening = await visit.introduce()
    chapter = Chapter(era, opening, {}, time.monotonic())
    for method in wanted(opening):
        with contextlib.suppress(Refused, Unlearnable):
            lists = {**chapter.lists, method: await visit.list(method)}
            chapter = Chapter(era, opening, lists, chapter.learned)
    return chapter


def _same(before: Mapping[Era, Chapter], after: Mapping[Era, Chapter]) -> bool:
    """True when another look has found what was known."""
    if before.keys() != after.keys():
        return False
    return not any(before[era].changed(chapter) for era, chapter in after.items())
