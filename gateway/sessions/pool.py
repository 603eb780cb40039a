"""The warm pool: dynos whose agents have dialled and stand parked until a session adopts them.

A parked agent has said HELLO and is not welcomed yet: what it is to run comes with the WELCOME, so
adoption is one message. It serves one session and leaves with it; none ever comes back here.

All processes of a deployment have one pool. An agent stands at the door of the process that it has
dialled; a session of any process adopts it: whoever takes its row out of the roster has it. One
process, the leader, launches and stops.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from gateway import events
from gateway.errors import GatewayError
from gateway.fleet import warmth
from gateway.fleet.fleet import Fleet, Wanted
from gateway.fleet.leading import Leading
from gateway.fleet.ledger import POOL, Account, Month, told
from gateway.fleet.roster import Edit, Row
from gateway.fleet.stock import Parked, Stock
from gateway.launchers.base import AtCapacity, LaunchError
from gateway.registry.servers import Registry, ServerDefinition
from gateway.registry.windows import count_at
from gateway.store.base import Store, StoreAway

__all__ = ["Parked", "Pool"]

PLAN_S = 2.0
"""How often the pool is compared with what is wanted, and with what other processes say of it."""

AGAIN_S = 60.0
"""How long a server whose dyno could not be had waits for the next one."""

INVITATION_S = 900.0
"""How long the line that an operator pastes is good for."""


@dataclass(slots=True)
class _Decision:
    """What the leader wants to be done.

    Attributes:
        rows: what the roster shall say of it.
        launch: what is to be asked for.
        stop: what is to go.
        useless: those of them that never were of any use.
    """

    rows: dict[str, Row | None] = field(default_factory=dict)
    launch: list[Parked] = field(default_factory=list)
    stop: list[Parked] = field(default_factory=list)
    useless: list[Parked] = field(default_factory=list)


class Pool:
    """Keeps parked dynos as many as are wanted, and hands each to one session.

    Attributes:
        store: what the processes share.

    Args:
        fleet: gets and stops dynos.
        registry: says how many each server wants.
        caps: what they may cost.
        store: what the processes share.
    """

    def __init__(self, fleet: Fleet, registry: Registry, caps: warmth.Caps, store: Store) -> None:
        self._fleet = fleet
        self._registry = registry
        self._caps = caps
        self.store = store
        self._emit = fleet.emit
        self._leading = Leading(store, "pool")
        self._stock = Stock(store, registry, fleet.now, self._freed)
        self._invited: set[str] = set()
        self._stopping: set[str] = set()
        self._not_before: dict[str, float] = {}
        self._draining = False

    def __iter__(self) -> Iterator[Parked]:
        return iter(self._stock)

    def __contains__(self, launch_id: str) -> bool:
        return launch_id in self._stock

    def find(self, launch_id: str) -> Parked | None:
        """Return the parked dyno of a launch."""
        return self._stock.find(launch_id)

    async def restore(self, launch_id: str) -> Parked | None:
        """Return the parked dyno of a launch, though this process may not have heard of it yet.

        Raises:
            StoreAway: nobody knows.
        """
        if launch_id not in self._stock:
            await self._stock.refresh()
        return self._stock.find(launch_id)

    def at_door(self, launch_id: str) -> Parked | None:
        """Return the parked dyno whose agent stands at our door, whoever has taken it."""
        return self._stock.doors.get(launch_id)

    async def refresh(self) -> None:
        """Learn what other processes have done until now.

        Raises:
            StoreAway: nobody knows.
        """
        await self._stock.refresh()

    # Sessions

    def next(self, server: ServerDefinition) -> Parked | None:
        """Return the dyno that a session of this server gets: one at our door if there is any."""

        def rank(parked: Parked) -> tuple[bool, bool, float]:
            return parked.launch_id not in self._stock.doors, not parked.ours, parked.ready or 0.0

        waiting = [parked for parked in self._stock.free() if _fits(parked.server, server)]
        return min(waiting, key=rank, default=None)

    async def take(self, server: ServerDefinition) -> Parked | None:
        """Take the `next` one out of the pool; nobody else has it then.

        Say `adopted` or `put_back` next.

        Raises:
            StoreAway: none can be had.
        """
        while (parked := self.next(server)) is not None:
            if await self._stock.take(parked):
                self._stock.stirred.set()
                return parked
        return None

    def adopted(self, parked: Parked) -> None:
        """A session has the dyno that was taken for it."""
        self._stock.adopted(parked)

    def put_back(self, parked: Parked) -> None:
        """The session for which a dyno was taken cannot have it after all."""
        self._stock.put_back(parked)

    def invite(self, server: ServerDefinition) -> tuple[str, dict[str, str]]:
        """Expect a dyno that an operator starts: return its launch id and its environment."""
        now = self._fleet.now()
        launch_id = secrets.token_hex(12)
        longest_s = INVITATION_S + warmth.PARK_S
        parked = Parked(
            launch_id, server, now, now + longest_s, time.monotonic(), INVITATION_S, ours=False
        )
        parked.local = True
        parked.launched.set()
        self._invited.add(launch_id)
        self._stock.keep(parked)
        wanted = Wanted(launch_id, launch_id, server, INVITATION_S, longest_s)
        return launch_id, self._fleet.invite(wanted)

    # Agents

    def arrived(self, parked: Parked, holder: object) -> None:
        """Its agent stands at the door."""
        if not self._stock.arrived(parked, holder):
            return
        self._freed(parked)
        if not parked.ours and self._fleet.book.running(parked.launch_id) is None:
            self._reserve(parked, runs=True)
        self._emit(
            events.DynoParked(
                server=parked.server.name,
                launch=parked.launch_id,
                dyno=parked.dyno_id or "",
                boot_s=round(self._fleet.now() - parked.started, 3),
            )
        )

    def _freed(self, parked: Parked) -> None:
        """Who waits in line may adopt it."""
        self._fleet.line(parked.server.app).freed()

    def departed(self, parked: Parked, holder: object) -> None:
        """Its agent is not at the door any more; it may dial again."""
        self._stock.departed(parked, holder)

    def lost(self, parked: Parked) -> None:
        """Its dyno has ended."""
        parked.ready, parked.absent, parked.patience_s = None, 0.0, 0.0
        self._stock.tell(parked)

    def name(self, parked: Parked, dyno_id: str) -> None:
        """The platform has told what its dyno is called."""
        parked.dyno_id = dyno_id
        self._stock.tell(parked)

    def drain(self) -> None:
        """Park nothing new, and let every parked agent go.

        If there are other processes, the agents dial those; else `keep` stops their dynos.
        """
        self._draining = True
        if not self.store.alone:
            for parked in self._stock.doors.values():
                parked.called.set()
        self._stock.stirred.set()

    async def drained(self, patience_s: float) -> None:
        """Wait until all dynos of the pool, or their agents, are gone, for a bounded time."""
        with contextlib.suppress(TimeoutError, StoreAway):
            async with asyncio.timeout(patience_s):
                while list(self._stock) if self.store.alone else self._stock.doors:
                    self._stock.left.clear()
                    await self._stock.left.wait()
                await self._leading.resign()

    @property
    def left(self) -> list[str]:
        """The dynos that are still to be stopped when the pool is not kept any more."""
        if not self.store.alone:
            return []
        return [parked.dyno_id for parked in self if parked.dyno_id is not None]

    # The loop

    async def keep(self) -> None:
        """Compare what is parked with what is wanted, again and again."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._stock.stirred.clear()
                with contextlib.suppress(StoreAway):
                    await self._turn(tasks)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PLAN_S):
                        await self._stock.stirred.wait()

    async def _turn(self, tasks: asyncio.TaskGroup) -> None:
        await self._stock.refresh()
        for launch_id in list(self._invited):
            await self._fleet.publish(launch_id, INVITATION_S)
            self._invited.discard(launch_id)
        await self._stock.write()
        self._stock.dismiss_strays()
        if not self._leaving and await self._leading.leads():
            await self._lead(tasks)

    @property
    def _leaving(self) -> bool:
        """True when what is parked here is the others' to keep."""
        return self._draining and not self.store.alone

    async def _lead(self, tasks: asyncio.TaskGroup) -> None:
        """Launch and stop, as the one process that does."""
        alive = frozenset(await self.store.gateways())
        decision = _Decision()

        def decide() -> Edit:
            nonlocal decision
            decision = self._decide(alive)
            return decision.rows

        await self._stock.edit(decide)
        for parked in decision.useless:
            self._failed(parked.server, f"no agent dialled within {parked.patience_s:.0f} s")
        for parked in decision.stop:
            parked.over = True
            self._stopping.add(parked.launch_id)
            tasks.create_task(self._unpark(parked), name=f"unpark {parked.launch_id}")
        for parked in decision.launch:
            self._stock.keep(parked)
            self._park(parked, tasks)

    def _decide(self, alive: frozenset[str]) -> _Decision:
        decision, rows, plan = _Decision(), self._stock.rows, self._plan()
        if self._leaving:
            return decision
        for launch_id, row in rows.items():
            if row.holder and row.holder not in alive:
                decision.rows[launch_id] = msgspec.structs.replace(row, holder="")
        for parked in self._overdue(frozenset(plan.stop)):
            row = rows[parked.launch_id]
            decision.rows[parked.launch_id] = msgspec.structs.replace(row, over=True)
            decision.stop.append(parked)
            if self._is_failure(parked, plan):
                decision.useless.append(parked)
        for server_name in () if self._draining else plan.launch:
            if (server := self._registry.find(server_name)) is not None:
                parked = self._new(server)
                decision.launch.append(parked)
                decision.rows[parked.launch_id] = self._stock.row(parked)
        return decision

    def _is_failure(self, parked: Parked, plan: warmth.Plan) -> bool:
        """Whether one that has to go never was of any use."""
        unwanted = self._draining or parked.launch_id in plan.stop
        return parked.ours and not parked.dialled and not unwanted

    def _overdue(self, surplus: frozenset[str]) -> list[Parked]:
        """Return those that are to go now."""
        wall, now, rows = self._fleet.now(), time.monotonic(), self._stock.rows
        return [
            parked
            for parked in self._stock
            if parked.launch_id in rows
            and parked.launch_id not in self._stopping
            and (
                self._draining
                or parked.over  # and whoever wanted to stop it did not
                or parked.launch_id in surplus
                or (parked.ready is None and now >= parked.absent + parked.patience_s)
                or (not parked.ours and wall >= parked.latest_end)
            )
        ]

    def _plan(self) -> warmth.Plan:
        now, book = self._fleet.now(), self._fleet.book
        wanted = [
            warmth.Wanted(
                server.name, _kind(server), self._wanted(server, now), self._fleet.price(server)
            )
            for server in self._registry.servers
        ]
        stock = [
            warmth.Parked(
                parked.launch_id,
                parked.server.name,
                _kind(parked.server),
                self._fleet.price(parked.server),
                parked.started,
                parked.latest_end,
                ready=parked.ready is not None,
            )
            for parked in self._stock
            if parked.ours
        ]
        spent_usd = book.spent(Month.of(now), now, POOL)
        return warmth.plan(wanted, stock, self._caps, spent_usd=spent_usd, now=now)

    def _wanted(self, server: ServerDefinition, now: float) -> int:
        count, line = count_at(server.warm, now), self._fleet.line(server.app)
        present = sum(parked.server.name == server.name for parked in self)
        if line.waiting:  # the room is for those who wait
            return min(count, present, line.waiting_for(server.name))
        if self._not_before.get(server.name, 0.0) <= time.monotonic():
            return count
        return min(count, present)

    def _new(self, server: ServerDefinition) -> Parked:
        now = self._fleet.now()
        boot_s = server.boot_timeout or self._fleet.boot_timeout_s
        parked = Parked(
            secrets.token_hex(12), server, now, now + warmth.LONGEST_S, time.monotonic(), boot_s
        )
        parked.local = True
        return parked

    def _park(self, parked: Parked, tasks: asyncio.TaskGroup) -> None:
        server, launch_id = parked.server, parked.launch_id
        error: GatewayError | None = None
        try:
            self._fleet.check_room(server, POOL, warmth.LONGEST_S)
        except GatewayError as refused:
            error = refused
        else:
            self._reserve(parked)
        wanted = Wanted(
            launch_id,
            launch_id,
            server,
            parked.patience_s,
            warmth.LONGEST_S + server.max_lifetime,
        )
        tasks.create_task(self._launch(parked, wanted, error), name=f"park {launch_id}")

    def _reserve(self, parked: Parked, *, runs: bool = False) -> None:
        server = parked.server
        longest_s = parked.latest_end - self._fleet.now()
        account = Account(POOL, server.name)
        self._fleet.reserve(parked.launch_id, server, account, longest_s, runs=runs)

    async def _launch(self, parked: Parked, wanted: Wanted, refused: GatewayError | None) -> None:
        try:
            if refused is not None:
                raise refused
            await self._fleet.settled(parked.launch_id)
            if self._fleet.line(wanted.server.app).waiting:
                raise AtCapacity("sessions wait for a dyno")
            dyno = await self._fleet.launch(wanted)
        except (LaunchError, TimeoutError, GatewayError, StoreAway) as failure:
            if not parked.dialled and await self._stock.drop(parked.launch_id, unless_dialled=True):
                self._fleet.give_up(parked.launch_id)
                self._failed(parked.server, str(failure) or "the platform does not answer")
        else:
            parked.dyno_id = None if dyno is None else dyno.dyno_id
            self._stock.tell(parked)
            if parked.live is not None:
                parked.live.record.dyno_id = parked.dyno_id
        finally:
            parked.launched.set()

    def _failed(self, server: ServerDefinition, why: str) -> None:
        self._not_before[server.name] = time.monotonic() + AGAIN_S
        self._emit(events.NotParked(server=server.name, why=why))

    async def _unpark(self, parked: Parked) -> None:
        parked.called.set()
        self._fleet.disown(parked.launch_id)
        await parked.launched.wait()
        bill = await self._fleet.stop(parked.launch_id, parked.dyno_id, parked.server.app)
        await self._stock.drop(parked.launch_id)
        self._stopping.discard(parked.launch_id)
        dyno_s, usd = told(bill)
        self._emit(
            events.DynoUnparked(
                server=parked.server.name,
                launch=parked.launch_id,
                dyno_s=dyno_s,
                usd=usd,
            )
        )


def _fits(parked: ServerDefinition, server: ServerDefinition) -> bool:
    """Whether a dyno that was made for one definition of a server may serve another."""
    return (parked.name, _kind(parked)) == (server.name, _kind(server))


def _kind(server: ServerDefinition) -> str:
    """Return what a dyno of a server is made of: another one serves it no more."""
    return f"{server.release} {server.app} {server.size}"
