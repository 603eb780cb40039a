"""The warm pool: dynos whose agents have dialled and stand parked until a session adopts them.

A parked agent has said HELLO and is not welcomed yet: what it is to run comes with the WELCOME, so
adoption is one message. It serves one session and leaves with it; none ever comes back here.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from gateway import events
from gateway.errors import GatewayError
from gateway.fleet import warmth
from gateway.fleet.fleet import Fleet, Wanted
from gateway.fleet.ledger import POOL, Account, Month, told
from gateway.launchers.base import AtCapacity, LaunchError
from gateway.registry.servers import Registry, ServerDefinition
from gateway.registry.windows import count_at
from gateway.sessions.live import Live

REDIAL_S = 60.0
"""How long the agent of a parked dyno may be out of reach; nobody waits for it, so not for long."""

PLAN_S = 2.0
"""How often the pool is compared with what is wanted."""

AGAIN_S = 60.0
"""How long a server whose dyno could not be had waits for the next one."""

INVITATION_S = 900.0
"""How long the line that an operator pastes is good for."""


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
        holder: the connection that its agent stands at the door with, the newest one.
        ready: since when its agent stands at the door, monotonic; None while it does not.
        live: the session that adopts it.
        dialled: its agent has been here.
        over: it will not be adopted any more.
        called: set when one of the two is decided.
        launched: set once the launch has an outcome, good or bad.
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
    ready: float | None = None
    live: Live | None = None
    dialled: bool = False
    over: bool = False
    called: asyncio.Event = field(default_factory=asyncio.Event)
    launched: asyncio.Event = field(default_factory=asyncio.Event)


class Pool:
    """Keeps parked dynos as many as are wanted, and hands each to one session.

    Args:
        fleet: gets and stops dynos.
        registry: says how many each server wants.
        caps: what they may cost.
    """

    def __init__(self, fleet: Fleet, registry: Registry, caps: warmth.Caps) -> None:
        self._fleet = fleet
        self._registry = registry
        self._caps = caps
        self._emit = fleet.emit
        self._parked: dict[str, Parked] = {}
        self._not_before: dict[str, float] = {}
        self._asked = asyncio.Event()
        self._draining = False
        self._gone = asyncio.Event()

    def __iter__(self) -> Iterator[Parked]:
        return iter(list(self._parked.values()))

    def __contains__(self, launch_id: str) -> bool:
        return launch_id in self._parked

    def find(self, launch_id: str) -> Parked | None:
        """Return the parked dyno of a launch."""
        return self._parked.get(launch_id)

    # Sessions

    def next(self, server: ServerDefinition) -> Parked | None:
        """Return the dyno that waits for a session of this server the longest."""
        waiting = [
            parked
            for parked in self._parked.values()
            if parked.ready is not None and not parked.over and _fits(parked.server, server)
        ]
        return min(waiting, key=lambda each: (not each.ours, each.ready), default=None)

    def take(self, server: ServerDefinition) -> Parked | None:
        """Take the `next` one out of the pool."""
        parked = self.next(server)
        if parked is not None:
            del self._parked[parked.launch_id]
            self._asked.set()
        return parked

    def invite(self, server: ServerDefinition) -> tuple[str, dict[str, str]]:
        """Expect a dyno that an operator starts: return its launch id and its environment."""
        now = self._fleet.now()
        launch_id = secrets.token_hex(12)
        longest_s = INVITATION_S + warmth.PARK_S
        parked = Parked(
            launch_id, server, now, now + longest_s, time.monotonic(), INVITATION_S, ours=False
        )
        parked.launched.set()
        self._parked[launch_id] = parked
        wanted = Wanted(launch_id, launch_id, server, INVITATION_S, longest_s)
        return launch_id, self._fleet.invite(wanted)

    # Agents

    def arrived(self, parked: Parked, holder: object) -> None:
        """Its agent stands at the door."""
        parked.holder = holder
        if parked.ready is None:
            parked.ready, parked.patience_s = time.monotonic(), REDIAL_S
            parked.dialled = True
            self._fleet.line(parked.server.app).freed()  # who waits there may adopt it
            if not parked.ours and self._fleet.book.running(parked.launch_id) is None:
                self._reserve(parked)
            self._emit(
                events.DynoParked(
                    server=parked.server.name,
                    launch=parked.launch_id,
                    dyno=parked.dyno_id or "",
                    boot_s=round(self._fleet.now() - parked.started, 3),
                )
            )

    def departed(self, parked: Parked, holder: object) -> None:
        """Its agent is not at the door any more; it may dial again."""
        if parked.holder is holder:
            parked.ready, parked.absent = None, time.monotonic()

    def lost(self, parked: Parked) -> None:
        """Its dyno has ended."""
        parked.ready, parked.absent, parked.patience_s = None, 0.0, 0.0
        self._asked.set()

    def drain(self) -> None:
        """Park nothing new, and let every parked agent go; `keep` stops their dynos."""
        self._draining = True
        self._asked.set()

    async def drained(self, patience_s: float) -> None:
        """Wait until all dynos of the pool are gone, for a bounded time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while self._parked:
                    self._gone.clear()
                    await self._gone.wait()

    @property
    def left(self) -> list[str]:
        """The dynos that are still to be stopped when the pool is not kept any more."""
        return [parked.dyno_id for parked in self if parked.dyno_id is not None]

    # The loop

    async def keep(self) -> None:
        """Compare what is parked with what is wanted, again and again."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                plan = self._plan()
                for parked in self._overdue(frozenset(plan.stop)):
                    if self._is_failure(parked, plan):
                        why = f"no agent dialled within {parked.patience_s:.0f} s"
                        self._failed(parked.server, why)
                    parked.over = True
                    name = f"unpark {parked.launch_id}"
                    tasks.create_task(self._unpark(parked), name=name)
                for server_name in () if self._draining else plan.launch:
                    if (server := self._registry.find(server_name)) is not None:
                        self._park(server, tasks)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PLAN_S):
                        await self._asked.wait()
                self._asked.clear()

    def _is_failure(self, parked: Parked, plan: warmth.Plan) -> bool:
        """Whether one that has to go never was of any use."""
        unwanted = self._draining or parked.launch_id in plan.stop
        return parked.ours and not parked.dialled and not unwanted

    def _overdue(self, surplus: frozenset[str]) -> list[Parked]:
        """Return those that are to go now."""
        wall, now = self._fleet.now(), time.monotonic()
        return [
            parked
            for parked in self._parked.values()
            if not parked.over
            and (
                self._draining
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
            for parked in self._parked.values()
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

    def _park(self, server: ServerDefinition, tasks: asyncio.TaskGroup) -> None:
        now = self._fleet.now()
        launch_id = secrets.token_hex(12)
        boot_s = server.boot_timeout or self._fleet.boot_timeout_s
        parked = Parked(launch_id, server, now, now + warmth.LONGEST_S, time.monotonic(), boot_s)
        try:
            self._fleet.check_room(server, POOL, warmth.LONGEST_S)
        except GatewayError as error:
            self._failed(server, error.message)
            return
        self._parked[launch_id] = parked
        self._reserve(parked)
        wanted = Wanted(
            launch_id, launch_id, server, boot_s, warmth.LONGEST_S + server.max_lifetime
        )
        tasks.create_task(self._launch(parked, wanted), name=f"park {launch_id}")

    def _reserve(self, parked: Parked) -> None:
        server = parked.server
        longest_s = parked.latest_end - self._fleet.now()
        self._fleet.reserve(parked.launch_id, server, Account(POOL, server.name), longest_s)

    async def _launch(self, parked: Parked, wanted: Wanted) -> None:
        try:
            if self._fleet.line(wanted.server.app).waiting:
                raise AtCapacity("sessions wait for a dyno")
            dyno = await self._fleet.launch(wanted)
        except (LaunchError, TimeoutError) as failure:
            if not parked.dialled:  # or there is one after all
                self._parked.pop(parked.launch_id, None)
                self._gone.set()
                self._fleet.give_up(parked.launch_id)
                self._failed(parked.server, str(failure) or "the platform does not answer")
        else:
            parked.dyno_id = None if dyno is None else dyno.dyno_id
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
        self._parked.pop(parked.launch_id, None)
        self._gone.set()
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
