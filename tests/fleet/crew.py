"""Several gateway processes in one, as far as dynos go: one engine, one platform, no agents.

Tests play the agents: they say at whose door one stands.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Self

from gateway.errors import SessionEnded
from gateway.fleet import book, line, stock
from gateway.fleet.book import Book
from gateway.fleet.desk import JoinDesk
from gateway.fleet.fleet import Fleet, Rules
from gateway.fleet.ledger import Budgets, Ledger
from gateway.fleet.passes import Passes
from gateway.fleet.warmth import Caps
from gateway.registry.servers import Registry, ServerDefinition
from gateway.sessions import dynos, pool, reconciler
from gateway.sessions.directory import Directory
from gateway.sessions.dynos import Dynos
from gateway.sessions.making import Maker
from gateway.sessions.pool import Parked, Pool
from gateway.sessions.reconciler import Reconciler
from gateway.sessions.record import Reason, State, Step
from gateway.sessions.seals import Seals
from gateway.store.memory import Engine, MemoryStore
from tests.fakes.house import BOUND, SECRET, eventually
from tests.fakes.launchers import Scripted

if TYPE_CHECKING:
    import pytest

    from gateway import events
    from gateway.errors import GatewayError
    from gateway.launchers.base import LaunchOrder
    from gateway.sessions.live import Live

NOW = 1_790_000_000.0
"""In September 2026, far from the ends of a month."""

FOREVER = 600.0

LIFE_S = 1000.0


def definition(name: str = "code", **more: Any) -> ServerDefinition:
    return ServerDefinition(name=name, command="child", max_lifetime=LIFE_S, **more)


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let loops look all the time, and nothing be tried again by itself."""
    monkeypatch.setattr(pool, "PLAN_S", 0.005)
    monkeypatch.setattr(pool, "AGAIN_S", FOREVER)
    monkeypatch.setattr(stock, "AGAIN_S", 0.005)
    monkeypatch.setattr(book, "REFRESH_S", 0.005)
    monkeypatch.setattr(line, "AGAIN_S", FOREVER)
    monkeypatch.setattr(dynos, "LEAVE_S", 0.01)
    monkeypatch.setattr(reconciler, "YOUNG_S", 0.0)


BYE = Reason.CLIENT_DELETE, SessionEnded("the client has ended it")


class Process:
    """One gateway process. Use it as an async context manager.

    Attributes:
        ended: sessions that have ended here, and what their clients were told.
        called: parked agents that were called from another process's door.
        heard: all events.
    """

    def __init__(self, crew: Crew, name: str, store: MemoryStore) -> None:
        self.crew, self.name, self.store = crew, name, store
        self.heard: list[events.Event] = []
        self.ended: dict[str, GatewayError] = {}
        self.called: list[Parked] = []
        self.call_failure: Exception | None = None
        self.tasks = asyncio.TaskGroup()
        self.registry = Registry(list(crew.servers))
        desk = JoinDesk(secrets.token_urlsafe)
        self.book = Book(Ledger(crew.budgets), store)
        self.fleet = Fleet(
            crew.launcher,
            desk,
            Passes(desk, store, crew.clock),
            self.book,
            Rules("https://gw", 20, 0.0, crew.clock),
            self.heard.append,
        )
        self.directory = Directory()
        self.maker = Maker(self.registry, self.fleet, Seals(SECRET), crew.grace_s)
        self.pool = Pool(self.fleet, self.registry, Caps(), store)
        self.dynos = Dynos(self.fleet, self.pool, self.end, self._called_elsewhere)
        self.reconciler = Reconciler(
            self.fleet, self.directory, self.dynos, self.pool, crew.grace_s, self.end
        )
        self.runs = False

    async def __aenter__(self) -> Self:
        await self.store.__aenter__()
        await self.tasks.__aenter__()
        self.loops = [
            self.tasks.create_task(self.book.keep()),
            self.tasks.create_task(self.pool.keep()),
            self.tasks.create_task(self.reconciler.keep()),
        ]
        self.runs = True
        return self

    async def __aexit__(self, *failure: object) -> None:
        self._stop()
        await self.tasks.__aexit__(None, None, None)
        await self.fleet.aclose(self.pool.left if self.name in self.crew.engine.inboxes else [])
        await self.store.__aexit__(None, None, None)

    def _stop(self) -> None:
        self.runs = False
        self.dynos.cancel()
        for task in self.loops:
            task.cancel()

    def crash(self) -> None:
        """Be dead without a word."""
        self.crew.engine.crash(self.name)
        self._stop()

    async def _called_elsewhere(self, live: Live, parked: Parked) -> None:
        del live
        if self.call_failure is not None:
            raise self.call_failure
        self.called.append(parked)

    def session(self, principal: str = "alice", server: str = "code") -> Live:
        """A session that is about to get its dyno."""
        definition = self.registry.find(server)
        assert definition is not None
        live = self.maker.owned(secrets.token_hex(8), definition, principal)
        self.directory.add(live)
        live.record.move(Step.LAUNCH)
        live.session.start(0.0)
        return live

    def opens(self, principal: str = "alice", server: str = "code") -> Live:
        """A session that was admitted as far as this process knows, and asks for its dyno."""
        live = self.session(principal, server)
        self.dynos.check_room(live)
        self.dynos.launch(live, self.tasks)
        return live

    async def gets(self, live: Live) -> str:
        """Wait until a session has its dyno; return the launch."""
        async with asyncio.timeout(BOUND):
            await live.launched.wait()
        assert live.record.state is State.LAUNCHING, self.ended
        return live.record.launch_id

    async def fails(self, live: Live) -> GatewayError:
        """Wait until a session has ended; return what its client was told."""
        await eventually(lambda: live.record.state is State.CLOSED)
        return self.ended[live.record.session_id]

    def end(self, live: Live, reason: Reason, error: GatewayError) -> None:
        if live.record.over:
            return
        live.record.move(Step.END)
        self.ended[live.record.session_id] = error
        self.directory.remove(live, reason)
        live.fail(error, 0.0)
        self.dynos.close(live, reason, error, self.tasks)

    def moves_to(self, live: Live, other: Process) -> Live:
        """Its agent has dialled another process, which rebuilds the session."""
        moved = other.inherits(live)
        self.directory.remove(live, None)
        live.handed_over = True
        self.dynos.let_go(live)
        return moved

    def inherits(self, live: Live) -> Live:
        old = live.record
        moved = self.maker.owned(old.fingerprint, old.server, old.principal, old.session_id)
        moved.record.state, moved.record.launch_id = State.PARTED, old.launch_id
        moved.record.launched, moved.record.dyno_id = old.launched, old.dyno_id
        moved.record.billed = old.billed
        moved.launched.set()
        self.directory.add(moved)
        self.dynos.inherit(moved)
        return moved

    async def parks(self, order: LaunchOrder) -> Parked:
        """The agent of a dyno of the pool comes to the door of this process."""
        parked = await self.pool.restore(order.launch_id)
        assert parked is not None
        self.pool.arrived(parked, self)
        return parked

    def of(self, kind: type[events.Event]) -> list[Any]:
        return [event for event in self.heard if isinstance(event, kind)]

    def has(self, launch_id: str) -> bool:
        """Whether this process knows that a parked dyno can be had."""
        found = self.pool.find(launch_id)
        return found is not None and found.ready is not None and not found.over


class Crew:
    """All processes of a deployment, their engine and their platform."""

    def __init__(self, *servers: ServerDefinition, **facts: Any) -> None:
        self.servers = servers or (definition(),)
        self.engine = Engine()
        self.launcher = facts.get("launcher") or Scripted()
        self.budgets: Budgets = facts.get("budgets", Budgets())
        self.grace_s: float = facts.get("grace_s", FOREVER)
        self.now = NOW
        self.processes: list[Process] = []
        self._stack = AsyncExitStack()

    def clock(self) -> float:
        return self.now

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *failure: object) -> None:
        self.engine.away = False
        await self._stack.aclose()

    async def process(self, name: str) -> Process:
        """Start a process."""
        process = Process(self, name, MemoryStore(self.engine, name))
        self.processes.append(process)
        return await self._stack.enter_async_context(process)

    async def start(self, number: int) -> list[Process]:
        return [await self.process(f"g{each}") for each in range(number)]

    async def order(self) -> LaunchOrder:
        async with asyncio.timeout(BOUND):
            return await self.launcher.orders.get()

    async def looked(self, times: int = 4) -> None:
        """Wait until somebody has compared the platform's list some times more."""
        lists = self.launcher.lists
        await eventually(lambda: self.launcher.lists >= lists + times)

    def report(self, process: Process) -> Any:
        return process.book.report(self.now)

    async def agree(self) -> Any:
        """Wait until all books of the living say the same; return it."""
        alive = [process for process in self.processes if process.runs]
        await eventually(lambda: all(not process.book._pending for process in alive))
        for process in alive:
            await process.book.refresh()
        reports = [self.report(process) for process in alive]
        assert all(report == reports[0] for report in reports)
        return reports[0]
