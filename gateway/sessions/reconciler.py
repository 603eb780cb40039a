"""Compares the platform's dynos with those that are known here: the last to notice, and for sure.

A *ghost* is a session whose dyno is gone; an *orphan* is a dyno whose session is. What webhooks
tell comes here too: it is news of the same kind, only sooner, and may be lost.

Of all processes one asks the platform, and lets the others read what it was told. Each looks for
ghosts among its own sessions; that one looks for orphans, which are what nobody alive knows.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Mapping, Set
from dataclasses import dataclass

import msgspec

from gateway import events
from gateway.errors import LaunchFailed, LinkLostError
from gateway.fleet.fleet import LATE, Fleet
from gateway.fleet.leading import Leading
from gateway.fleet.ledger import Account, Bill, Entry, told
from gateway.launchers.base import Dyno, PlatformError
from gateway.sessions.directory import Directory
from gateway.sessions.dynos import Dynos, End
from gateway.sessions.live import Live
from gateway.sessions.pool import Pool
from gateway.sessions.record import Reason, State
from gateway.store.base import StoreAway

YOUNG_S = 10.0
"""A platform may not list a dyno yet that it has just made."""

MISSED = 2
"""Lists in a row that a dyno must be missing from before it is taken for gone."""

FAREWELL_S = 2.0
"""How long the link of a dyno that has ended may take to say more than the platform does."""

FRESH_S = 5.0
"""How much older than its period a list may be that anything is concluded from."""

STOPS_AT_ONCE = 4

ORPHANS = "(orphans)"
"""Principal of dynos that nobody here knows."""

LISTED = "dynos"
"""Name of the document that holds the last list."""

LISTED_TTL_S = 3600.0
"""How long it is kept: a process that starts reads there what ran when the last one died."""


class Listed(msgspec.Struct, frozen=True):
    """What the platform has told to the process that asks.

    Attributes:
        number: grows with each.
        at: when, seconds since 1970.
        dynos: all there were.
    """

    number: int
    at: float
    dynos: tuple[Dyno, ...]


_LISTED = msgspec.json.Decoder(Listed)


@dataclass(frozen=True, slots=True)
class News:
    """What the platform tells of one dyno by itself.

    Attributes:
        launch_id: which launch it belongs to.
        dyno_id: the launcher's name of it.
        state: the platform's word.
        ended: it does not run any more.
        exit_status: if it was told.
        app: whose it is.
        size: of the dyno.
        created: when the platform made it, seconds since 1970, if it was told.
    """

    launch_id: str
    dyno_id: str
    state: str
    ended: bool
    exit_status: int | None
    app: str | None = None
    size: str | None = None
    created: float | None = None


class Reconciler:
    """Finds ghosts and orphans.

    Args:
        fleet: lists and stops dynos.
        directory: the sessions that live here.
        dynos: of sessions that end here.
        pool: dynos without a session.
        grace_s: how long an orphan may wait for a gateway process that knows it.
        end: ends a session.
    """

    def __init__(
        self,
        fleet: Fleet,
        directory: Directory,
        dynos: Dynos,
        pool: Pool,
        grace_s: float,
        end: End,
    ) -> None:
        self._fleet = fleet
        self._directory = directory
        self._dynos = dynos
        self._pool = pool
        self._grace_s = grace_s
        self._emit = fleet.emit
        self._end = end
        self._store = pool.store
        self._leading = Leading(pool.store, "reconciler")
        self._number = 0  # of the last list
        self._lists: deque[Listed] = deque(maxlen=MISSED)
        self._trouble = ""
        self._alive: Set[str] = frozenset()  # gateways
        self._seen: dict[str, float] = {}  # when a dyno was listed last, wall clock
        self._unlisted: dict[str, int] = {}  # lists in a row that an entry was missing from
        self._missed: dict[str, int] = {}
        self._strangers: dict[str, tuple[Dyno, float]] = {}  # since when, monotonic
        self._hurried = asyncio.Event()
        self._news: asyncio.Queue[News] = asyncio.Queue(1000)
        self._stopping: set[str] = set()  # orphans
        self._stops = asyncio.Semaphore(STOPS_AT_ONCE)

    def gone(self, launch_id: str) -> bool:
        """Whether the platform, asked of late and more than once, knows no such dyno."""
        fresh_s = MISSED * self._fleet.poll_s + FRESH_S
        return (
            len(self._lists) == MISSED
            and self._fleet.now() - self._lists[-1].at < fresh_s
            and not any(_runs(listed, launch_id) for listed in self._lists)
        )

    def heard(self, news: News) -> None:
        """Take what a webhook told; lost if it comes faster than it can be looked at."""
        if news.ended and not self._news.full():
            self._fleet.note_end(news.launch_id)
            self._fleet.line(news.app).freed()
            self._news.put_nowait(news)

    async def hurry(self) -> None:
        """Act at once on all that was told: this process leaves."""
        self._hurried.set()
        await asyncio.sleep(0)  # those who waited for a farewell run before this goes on

    async def keep(self) -> None:
        """Compare at once, and again and again."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen(tasks), name="webhook news")
            while True:
                if await self._leading.leads():
                    await self._lead(tasks)
                else:
                    self._strangers.clear()
                    await self._follow()
                await asyncio.sleep(self._fleet.poll_s)

    async def _lead(self, tasks: asyncio.TaskGroup) -> None:
        """Ask the platform, and do what only one process may do."""
        owned = self._owned()
        try:
            dynos = tuple(await self._fleet.list())
        except (PlatformError, TimeoutError) as error:
            why = str(error) or "no answer in time"
            if why != self._trouble:
                self._emit(events.NotListed(why=why))
            self._trouble = why
            return
        self._trouble = ""
        at = self._fleet.now()
        with contextlib.suppress(StoreAway):
            if not self._number:  # before it is overwritten
                self._see(await self._read())
        listed = Listed(self._number + 1, at, dynos)
        with contextlib.suppress(StoreAway):
            await self._store.put(LISTED, msgspec.json.encode(listed), LISTED_TTL_S)
        by_launch = self._compare(listed)
        self._look_at_pool(by_launch)
        if self._directory.draining:
            return  # they are the next process's
        with contextlib.suppress(StoreAway):
            # What the platform runs was written down before it was asked for.
            await self._fleet.book.refresh()
            await self._pool.refresh()
            self._alive = frozenset(await self._store.gateways())
            # What has lost its owner since the list was asked for may have ended since, too.
            self._look_for_orphans(by_launch, owned, tasks)
            self._close_what_is_gone(by_launch)

    def _owned(self) -> frozenset[str]:
        """Return what is no orphan now."""
        entries = (entry.launch_id for entry in self._fleet.book.entries)
        return frozenset(
            {launch_id for launch_id in entries if self._has_owner(launch_id)}
            | {parked.launch_id for parked in self._pool}
            | self._stopping
        )

    async def _follow(self) -> None:
        """Read what the platform told to the process that asks it."""
        with contextlib.suppress(StoreAway):
            listed = await self._read()
            if listed is not None and listed.number != self._number:
                self._compare(listed)

    async def _read(self) -> Listed | None:
        raw = await self._store.get(LISTED)
        return None if raw is None else _LISTED.decode(raw)

    def _see(self, listed: Listed | None) -> None:
        if listed is not None:
            running = {dyno.launch_id for dyno in listed.dynos if dyno.exit_status is None}
            known = {entry.launch_id.removesuffix(LATE) for entry in self._fleet.book.entries}
            self._seen = {each: at for each, at in self._seen.items() if each in known}
            self._seen |= dict.fromkeys(running, listed.at)
            self._number = listed.number

    def _compare(self, listed: Listed) -> Mapping[str, Dyno]:
        """Compare our sessions with a list; return it by launch."""
        self._see(listed)
        self._lists.append(listed)
        by_launch = {dyno.launch_id: dyno for dyno in listed.dynos}
        lives = {live.record.launch_id: live for live in self._directory}
        for launch_id, live in lives.items():
            dyno = by_launch.get(launch_id)
            if dyno is not None and live.record.dyno_id is None:
                live.record.dyno_id = dyno.dyno_id  # whoever started it
            if live.attached or live.record.launched is None:
                self._missed.pop(launch_id, None)
            else:
                self._look_at(live, dyno)
        self._missed = {launch: n for launch, n in self._missed.items() if launch in lives}
        return by_launch

    def _look_at_pool(self, by_launch: Mapping[str, Dyno]) -> None:
        for parked in self._pool:
            dyno = by_launch.get(parked.launch_id)
            if dyno is not None and parked.dyno_id is None:
                self._pool.name(parked, dyno.dyno_id)
            if dyno is not None and dyno.exit_status is not None and parked.ready is None:
                self._pool.lost(parked)

    def _look_at(self, live: Live, dyno: Dyno | None) -> None:
        launch_id, launched = live.record.launch_id, live.record.launched
        if dyno is not None and dyno.exit_status is None:
            self._missed.pop(launch_id, None)
        elif dyno is not None:
            self._ghost(live, dyno.exit_status, dyno.last_words)
        elif live.record.dyno_id is not None and time.monotonic() - (launched or 0.0) >= YOUNG_S:
            self._missed[launch_id] = self._missed.get(launch_id, 0) + 1
            if self._missed[launch_id] >= MISSED:
                self._ghost(live, None, "")

    def _ghost(self, live: Live, status: int | None, last_words: str) -> None:
        """A dyno ended without a word on the link."""
        what = "the dyno ended without a word on the link"
        if status is not None:
            what += f", with status {status}"
        if last_words.strip():
            what += f". Its own log ends with:\n{last_words.strip()}"
        if live.record.state is State.LAUNCHING:
            self._end(live, Reason.BOOT_FAILED, LaunchFailed(what))
        else:
            self._end(live, Reason.LINK_LOST, LinkLostError(what))

    def _look_for_orphans(
        self, by_launch: Mapping[str, Dyno], owned: Set[str], tasks: asyncio.TaskGroup
    ) -> None:
        running = {
            launch_id: dyno
            for launch_id, dyno in by_launch.items()
            if dyno.exit_status is None
            and launch_id not in owned
            and not self._has_owner(launch_id)
            and launch_id not in self._stopping
        }
        for launch_id in self._strangers.keys() - by_launch.keys():
            dyno, _ = self._strangers[launch_id]
            if not self._has_owner(launch_id) and not self._known(launch_id):
                self._left(dyno)
        now = time.monotonic()
        before = self._strangers
        self._strangers = {
            launch_id: before.get(launch_id, (dyno, now)) for launch_id, dyno in running.items()
        }
        for launch_id, (dyno, since) in list(self._strangers.items()):
            if self._fleet.disowned(launch_id) or now - since >= self._grace_s:
                self._stopping.add(launch_id)
                self._fleet.disown(launch_id)
                del self._strangers[launch_id]
                tasks.create_task(self._stop(dyno), name=f"orphan {launch_id}")

    def _close_what_is_gone(self, by_launch: Mapping[str, Dyno]) -> None:
        """Close what nobody alive will: a process died, and then its dynos did."""
        book, now = self._fleet.book, self._fleet.now()
        gone = {
            entry.launch_id: entry
            for entry in book.entries
            if entry.launch_id.removesuffix(LATE) not in by_launch
            and entry.launch_id.removesuffix(LATE) not in self._stopping
            and now - entry.started >= YOUNG_S
            and not self._has_owner(entry.launch_id)
        }
        self._unlisted = {launch: self._unlisted.get(launch, 0) + 1 for launch in gone}
        for launch_id, missed in list(self._unlisted.items()):
            if missed >= MISSED:
                self._close(gone[launch_id])

    def _close(self, entry: Entry) -> None:
        """Close an entry at the last time that its dyno was known to run."""
        fleet, launch_id = self._fleet, entry.launch_id.removesuffix(LATE)
        seen = self._seen.get(launch_id, entry.since)
        ended = fleet.ended(launch_id)
        bill = fleet.book.close(entry.launch_id, seen if ended is None else ended)
        self._tell_gone(Dyno("", launch_id), bill, stopped=False)

    def _has_owner(self, launch_id: str) -> bool:
        """Whether somebody alive pays for a dyno: the pool, or a session, here or elsewhere."""
        if self._here(launch_id):
            return True
        entry = self._fleet.book.running(launch_id)
        if entry is None or not entry.account.session:
            return False
        return entry.owner in self._alive and entry.owner != self._store.gateway

    def _here(self, launch_id: str) -> bool:
        """Whether a dyno is the pool's, or of a session here, though that is being closed."""
        return (
            launch_id in self._pool
            or self._dynos.stopping(launch_id)
            or any(live.record.launch_id == launch_id for live in self._directory)
        )

    async def _stop(self, dyno: Dyno) -> None:
        launch_id = self._opened(dyno)
        async with self._stops:
            bill = await self._fleet.stop(launch_id, dyno.dyno_id, dyno.app)
        self._stopping.discard(dyno.launch_id)
        self._tell_gone(dyno, bill, stopped=True)

    def _left(self, dyno: Dyno) -> None:
        """A stranger has gone by itself."""
        launch_id, fleet = self._opened(dyno), self._fleet
        ended = fleet.ended(dyno.launch_id)
        bill = fleet.book.close(launch_id, fleet.now() if ended is None else ended)
        self._tell_gone(dyno, bill, stopped=False)

    def _opened(self, dyno: Dyno) -> str:
        """Return for which launch a stranger is paid: its own, unless that is over and paid."""
        late, fleet = dyno.launch_id + LATE, self._fleet
        if fleet.book.running(dyno.launch_id) is not None:
            return dyno.launch_id
        # The platform tells in whole seconds; the middle of the second is the best guess.
        started = fleet.now() if dyno.created is None else dyno.created + 0.5
        account = Account(ORPHANS, "")
        fleet.book.open(late, account, dyno.usd_per_hour, "", started, started)
        return late

    def _tell_gone(self, dyno: Dyno, bill: Bill | None, *, stopped: bool) -> None:
        dyno_s, usd = told(bill)
        self._emit(
            events.OrphanGone(
                launch=dyno.launch_id,
                dyno=dyno.dyno_id,
                stopped=stopped,
                dyno_s=dyno_s,
                usd=usd,
            )
        )

    # Webhooks

    async def _listen(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            news = await self._news.get()
            live = next(
                (each for each in self._directory if each.record.launch_id == news.launch_id), None
            )
            if live is not None:
                tasks.create_task(self._told(live, news), name=f"told {news.launch_id}")
            elif (parked := self._pool.find(news.launch_id)) is not None:
                self._pool.lost(parked)
            elif self._known(news.launch_id) or self._directory.draining:
                continue
            elif (stranger := self._strangers.pop(news.launch_id, None)) is not None:
                self._left(stranger[0])
            elif news.created is not None:
                price = self._fleet.usd_per_hour(news.size, news.app)
                self._left(
                    Dyno(
                        news.dyno_id,
                        news.launch_id,
                        usd_per_hour=price,
                        created=news.created,
                        app=news.app,
                    )
                )

    def _known(self, launch_id: str) -> bool:
        """Whether somebody here pays for a dyno, or has paid."""
        return (
            self._here(launch_id)
            or launch_id in self._stopping
            or self._fleet.book.knows(launch_id)
            or self._fleet.book.knows(launch_id + LATE)
        )

    async def _told(self, live: Live, news: News) -> None:
        record = live.record
        self._emit(
            events.PlatformSaid(
                session=record.session_id,
                dyno=news.dyno_id,
                state=news.state,
                exit_status=news.exit_status,
            )
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                await self._hurried.wait()
        if not record.over and record.launch_id == news.launch_id:
            self._ghost(live, news.exit_status, "")


def _runs(listed: Listed, launch_id: str) -> bool:
    return any(dyno.launch_id == launch_id and dyno.exit_status is None for dyno in listed.dynos)
