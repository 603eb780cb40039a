"""The parked dynos of the deployment, as one process knows them.

It knows whose agents stand at its own door and which ones its sessions have taken; the rest is what
the roster says. It decides nothing about how many there should be; that is `sessions/pool.py`.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from gateway.fleet.roster import Edit, Roster, Row
from gateway.registry.servers import Registry, ServerDefinition
from gateway.store.base import Store, StoreAway

if TYPE_CHECKING:
    from gateway.sessions.live import Live

REDIAL_S = 60.0
"""How long the agent of a parked dyno may be out of reach; nobody waits for it, so not for long."""

AGAIN_S = 2.0
"""How long what must be written waits for a store that is away."""


@dataclass(eq=False, slots=True)
class Parked:
    """A dyno without a session.

    Attributes:
        launch_id: public name of its launch.
        server: what it is for, as it was when the dyno was asked for.
        started: when it was asked for, wall clock.
        latest_end: it is not parked for longer than until then.
        absent: since when its agent is not at the door, monotonic.
        patience_s: how long it may be.
        ours: we launched it; an operator's own is not stopped before its time.
        dyno_id: the launcher's name of it, once known.
        holder: the connection that its agent stands at our door with, the newest one.
        holder_gateway: id of the process at whose door it stands; empty while at none.
        ready: since when its agent stands at a door, monotonic; None while it does not.
        live: the session that adopts it.
        dialled: its agent has been here.
        over: it will not be adopted any more.
        called: set when one of the two is decided, or when its agent shall dial another process.
        launched: set once the launch has an outcome, good or bad, or was another process's.
        local: this process has asked for it.
    """

    launch_id: str
    server: ServerDefinition
    started: float
    latest_end: float
    absent: float
    patience_s: float
    ours: bool = True
    dyno_id: str | None = None
    holder: object = None
    holder_gateway: str = ""
    ready: float | None = None
    live: "Live | None" = None
    dialled: bool = False
    over: bool = False
    called: asyncio.Event = field(default_factory=asyncio.Event)
    launched: asyncio.Event = field(default_factory=asyncio.Event)
    local: bool = False


class Stock:
    """The parked dynos by launch id.

    Attributes:
        gateway: id of this process.
        doors: those whose agents stand at our door, also when they are taken.
        stirred: set when there is something to write, or to do.
        left: set when one is gone, from the stock or from our door.

    Args:
        store: what the processes share.
        registry: knows the servers.
        now: wall clock, seconds since 1970.
        ready: called with one whose agent has come to another process's door.
    """

    def __init__(
        self,
        store: Store,
        registry: Registry,
        now: Callable[[], float],
        ready: Callable[[Parked], None],
    ) -> None:
        self.gateway = store.gateway
        self.doors: dict[str, Parked] = {}
        self.stirred = asyncio.Event()
        self.left = asyncio.Event()
        self._roster = Roster(store, self._heard)
        self._registry = registry
        self._now = now
        self._ready = ready
        self._parked: dict[str, Parked] = {}
        self._taken: dict[str, Parked] = {}  # by sessions of ours that do not have them yet
        self._strays: dict[str, float] = {}  # at our door, and taken elsewhere; since when
        self._news: set[str] = set()  # what others do not know yet
        self._unwritten: set[str] = set()  # of this, what they do not know at all

    def __iter__(self) -> Iterator[Parked]:
        return iter(list(self._parked.values()))

    def __contains__(self, launch_id: str) -> bool:
        return launch_id in self._parked or launch_id in self._taken

    def find(self, launch_id: str) -> Parked | None:
        """Return the parked dyno of a launch."""
        return self._parked.get(launch_id) or self._taken.get(launch_id)

    @property
    def rows(self) -> dict[str, Row]:
        """What the roster says of those that nobody here has taken."""
        return {key: row for key, row in self._roster.rows.items() if key not in self._taken}

    def free(self) -> list[Parked]:
        """Return those that a session can have now."""
        return [
            parked
            for launch_id, parked in self._parked.items()
            if parked.ready is not None
            and not parked.over
            and launch_id in self._roster.rows
            and launch_id not in self._taken
        ]

    # What happens here

    def keep(self, parked: Parked) -> None:
        """Have one that no other process knows yet."""
        self._parked[parked.launch_id] = parked
        self._unwritten.add(parked.launch_id)
        self.tell(parked)

    def tell(self, parked: Parked) -> None:
        """Other processes shall know what is new of one."""
        self._news.add(parked.launch_id)
        self.stirred.set()

    def arrived(self, parked: Parked, holder: object) -> bool:
        """Its agent stands at our door; return False if it did already."""
        parked.holder, parked.holder_gateway = holder, self.gateway
        if self.doors.get(parked.launch_id) is parked:
            return False
        self.doors[parked.launch_id] = parked
        parked.ready, parked.patience_s = time.monotonic(), REDIAL_S
        parked.dialled = True
        self.tell(parked)
        return True

    def departed(self, parked: Parked, holder: object) -> None:
        """A connection of its agent has ended; that matters if there is no newer one."""
        if parked.holder is holder and self.doors.get(parked.launch_id) is parked:
            del self.doors[parked.launch_id]
            self._strays.pop(parked.launch_id, None)
            parked.holder_gateway = ""
            parked.ready, parked.absent = None, time.monotonic()
            self.tell(parked)
            self.left.set()

    async def take(self, parked: Parked) -> bool:
        """Take one out, so that nobody else has it; return False if somebody else was quicker.

        Say `adopted` or `put_back` next.

        Raises:
            StoreAway: nobody knows whether it was.
        """
        launch_id, rows, taken = parked.launch_id, self._roster.rows, False

        def gone() -> Edit:
            row = rows.get(launch_id)
            return {} if row is None or row.over else {launch_id: None}

        self._taken[launch_id] = parked
        try:
            taken = await self._roster.edit(gone)
        finally:
            if taken:
                del self._parked[launch_id]
            else:
                del self._taken[launch_id]
                self._heard(lost=False)
        return taken

    def adopted(self, parked: Parked) -> None:
        """A session has the one that was taken for it."""
        self._taken.pop(parked.launch_id, None)

    def put_back(self, parked: Parked) -> None:
        """The session for which one was taken cannot have it after all."""
        self._taken.pop(parked.launch_id, None)
        self.keep(parked)

    def forget(self, launch_id: str) -> None:
        """It is gone, or a session's."""
        self._parked.pop(launch_id, None)
        if launch_id in self.doors:
            self._strays[launch_id] = time.monotonic()
        self.left.set()

    def dismiss_strays(self) -> None:
        """Let those agents go that were taken elsewhere, and that nobody has called."""
        now = time.monotonic()
        for launch_id in [each for each, since in self._strays.items() if now >= since + REDIAL_S]:
            self.doors[launch_id].called.set()

    # What other processes know

    async def refresh(self) -> None:
        """Learn what others have done until now.

        Raises:
            StoreAway: nobody knows.
        """
        await self._roster.refresh()

    async def edit(self, change: Callable[[], Edit]) -> bool:
        """Change the roster; see `Roster.edit`."""
        return await self._roster.edit(change)

    async def drop(self, launch_id: str, *, unless_dialled: bool = False) -> bool:
        """Take one out for good, however long the store is away; return False if it is not there.

        Args:
            launch_id: which.
            unless_dialled: its agent may have been at some door: then it stays.
        """
        rows = self._roster.rows

        def gone() -> Edit:
            row = rows.get(launch_id)
            return {} if row is None or (unless_dialled and row.dialled) else {launch_id: None}

        while True:
            try:
                return await self._roster.edit(gone)
            except StoreAway:
                await asyncio.sleep(AGAIN_S)

    async def write(self) -> None:
        """Let others know what is new here.

        Raises:
            StoreAway: not now; it is kept.
        """
        told, self._news = frozenset(self._news), set()
        try:
            await self._roster.edit(lambda: self._unknown(told))
        except StoreAway:
            self._news |= told
            raise
        self._unwritten -= told - self._news

    def _unknown(self, launch_ids: frozenset[str]) -> Edit:
        rows = self._roster.rows
        wanted = {
            launch_id: self.row(parked)
            for launch_id in launch_ids
            if (parked := self._parked.get(launch_id)) is not None
            and (launch_id in rows or launch_id in self._unwritten)
        }
        return {launch_id: row for launch_id, row in wanted.items() if row != rows.get(launch_id)}

    def row(self, parked: Parked) -> Row:
        """Return what there is to say of one; at whose door it stands only that process knows."""
        server, was = parked.server, self._roster.rows.get(parked.launch_id)
        ready_s = 0.0 if parked.ready is None else time.monotonic() - parked.ready
        row = Row(
            server=server.name,
            release=server.release,
            app=server.app,
            size=server.size,
            started=parked.started,
            latest_end=parked.latest_end,
            patience_s=parked.patience_s,
            ours=parked.ours,
            dyno_id=parked.dyno_id,
            holder=parked.holder_gateway,
            ready=self._now() - ready_s,
            dialled=parked.dialled,
            over=parked.over,
        )
        if was is None or parked.launch_id in self.doors:
            return row
        return msgspec.structs.replace(
            row,
            patience_s=was.patience_s if parked.patience_s else 0.0,
            holder="" if was.holder == self.gateway else was.holder,
            ready=was.ready,
            dialled=was.dialled or parked.dialled,
            over=was.over or parked.over,
        )

    def _heard(self, lost: bool) -> None:
        """Agree with what the roster says now; with `lost`, say again what only we know."""
        rows = self._roster.rows
        for launch_id, parked in list(self._parked.items()):
            if launch_id in rows or launch_id in self._taken:
                continue
            if lost and (launch_id in self.doors or parked.local):
                self.keep(parked)
            elif launch_id not in self._unwritten:
                self.forget(launch_id)
        for launch_id, row in rows.items():
            if launch_id not in self._taken:
                self._agree(launch_id, row)

    def _agree(self, launch_id: str, row: Row) -> None:
        parked = self._parked.get(launch_id)
        if parked is None and (parked := self.doors.get(launch_id)) is not None:
            self._strays.pop(launch_id, None)  # whoever had taken it has put it back
            self.keep(parked)
        if parked is None:
            parked = self._parked[launch_id] = self._restored(launch_id, row)
        parked.dyno_id = parked.dyno_id or row.dyno_id
        if row.over and not parked.over:
            parked.over = True
            parked.called.set()
        if launch_id in self.doors:
            return  # what is known here is newer
        if parked.patience_s:  # and it is not known here that nobody need wait
            parked.patience_s = row.patience_s
        parked.dialled = parked.dialled or row.dialled
        holder = "" if row.holder == self.gateway or not row.patience_s else row.holder
        if holder == parked.holder_gateway:
            return
        parked.holder_gateway = holder
        if holder:
            parked.ready = time.monotonic() - max(0.0, self._now() - row.ready)
            self._ready(parked)
        else:
            parked.ready, parked.absent = None, time.monotonic()

    def _restored(self, launch_id: str, row: Row) -> Parked:
        known = self._registry.known(row.server) or ServerDefinition(name=row.server)
        server = msgspec.structs.replace(known, release=row.release, app=row.app, size=row.size)
        now = time.monotonic()
        parked = Parked(
            launch_id, server, row.started, row.latest_end, now, row.patience_s, row.ours
        )
        parked.launched.set()
        return parked
