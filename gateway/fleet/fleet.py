"""The dynos of this deployment: launched, stopped for certain, and paid for.

The only room that calls a launcher.
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from gateway import events
from gateway.errors import BudgetSpent, QueueFull
from gateway.fleet import ledger
from gateway.fleet.book import Book
from gateway.fleet.desk import JoinDesk
from gateway.fleet.ledger import Account, Bill
from gateway.fleet.line import Line, LineFull
from gateway.fleet.passes import Passes
from gateway.launchers.base import (
    Dyno,
    Launcher,
    LaunchOrder,
    LaunchUnsettled,
    PlatformError,
)
from gateway.registry.servers import ServerDefinition

AGENT_PATIENCE_S = 5.0
"""How much longer than ours the agent's start deadline is: we say first that it was missed, and
the agent leaves by itself only when nobody is there to stop it."""

LIFETIME_SLACK_S = 300.0
"""The platform's own time limit lies this far behind ours: it is the last resort."""

STOP_S = 45.0
"""How long one stop call of a launcher may take: longer than a platform's SIGTERM to SIGKILL."""

LAST_S = 3.0
"""The same for dynos that are left when the gateway goes."""

LATE = ".late"
"""Ends the name under which a dyno is paid for that came too late for its launch."""

STOP_AGAIN_S: Final = (0.5, 2.0, 5.0, 15.0)
"""How long to wait before a stop that failed is tried again."""

MAX_DISOWNED = 1000
"""Launches that are remembered as over, so that a dyno which comes late is stopped at sight."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the fleet must know of the deployment.

    Attributes:
        url: base URL that agents dial.
        queue_length: sessions that may wait while an app's dyno limit is reached.
        queue_timeout_s: how long one may.
        wall_clock: seconds since 1970.
    """

    url: str
    queue_length: int
    queue_timeout_s: float
    wall_clock: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A dyno to be.

    Attributes:
        launch_id: public name of the attempt.
        key: fingerprint of the session that its agent joins; of a parked one the launch id.
        server: what it will run.
        boot_s: until its agent must have dialled.
        longest_s: from its launch until it has ended, whatever happens.
    """

    launch_id: str
    key: str
    server: ServerDefinition
    boot_s: float
    longest_s: float


class Fleet:
    """Launches, stops and lists dynos, and keeps their ledger.

    Attributes:
        book: the ledger.
        desk: the join tokens.
        emit: hears events.

    Args:
        launcher: makes dynos.
        desk: mints join tokens.
        passes: tells other processes of them.
        book: what dynos cost.
        rules: of this deployment.
        emit: hears events.
    """

    def __init__(
        self,
        launcher: Launcher,
        desk: JoinDesk,
        passes: Passes,
        book: Book,
        rules: Rules,
        emit: events.Sink,
    ) -> None:
        self._launcher = launcher
        self.desk = desk
        self._passes = passes
        self._rules = rules
        self.emit = emit
        self._lines: dict[str | None, Line] = {}
        self._disowned: dict[str, None] = {}
        self._ends: dict[str, float] = {}
        self._asked: dict[str, float] = {}
        self.book = book

    @property
    def launcher(self) -> str:
        """Name of the launcher, for the log."""
        return self._launcher.name

    @property
    def boot_timeout_s(self) -> float:
        """How long a boot may take unless a server says otherwise."""
        return self._launcher.boot_timeout_s

    @property
    def poll_s(self) -> float:
        """How often the platform may be asked for its dynos."""
        return self._launcher.poll_s

    def now(self) -> float:
        """Return the wall clock's seconds since 1970."""
        return self._rules.wall_clock()

    def line(self, app: str | None) -> Line:
        """Return the line of those who wait for a dyno of an app."""
        rules = self._rules
        return self._lines.setdefault(app, Line(rules.queue_length, rules.queue_timeout_s))

    @property
    def lines(self) -> dict[str | None, int]:
        """How many stand in each app's line."""
        return {app: line.waiting for app, line in self._lines.items() if line.waiting}

    def price(self, server: ServerDefinition) -> float:
        """Return what a dyno of this server costs, in dollars an hour."""
        return self.usd_per_hour(server.size, server.app)

    def usd_per_hour(self, size: str | None, app: str | None) -> float:
        """Return what a dyno of a size costs."""
        return self._launcher.usd_per_hour(size, app)

    def check_room(
        self,
        server: ServerDefinition,
        principal: str,
        longest_s: float,
        adopting: str | None = None,
    ) -> None:
        """Make sure that a dyno may be asked for, or a parked one be had.

        Args:
            server: what it is for.
            principal: who pays.
            longest_s: for how long, at most, from its launch on.
            adopting: launch id of the parked one.

        Raises:
            QueueFull: too many wait for one.
            BudgetSpent: it could cost more than is left.
        """
        try:
            if adopting is None:
                self.line(server.app).check()
                longest_s += self._rules.queue_timeout_s
            price, now = self.price(server), self.now()
            self.book.admit(principal, price, longest_s, now, adopting=adopting)
        except LineFull as full:
            raise QueueFull(f"{full}; try again later") from None
        except ledger.BudgetSpent as spent:
            raise self._refused(spent) from None

    def _refused(self, spent: ledger.BudgetSpent) -> BudgetSpent:
        wait_s = spent.month_ends - self.now()
        return BudgetSpent(str(spent), retry_after_s=max(1, round(wait_s)))

    def reserve(
        self,
        launch_id: str,
        server: ServerDefinition,
        account: Account,
        longest_s: float,
        *,
        runs: bool = False,
    ) -> None:
        """Count a dyno as had, before anything is awaited: the next one finds less left.

        Call `settled` before the platform is asked.

        Args:
            launch_id: which.
            server: what it runs.
            account: who pays.
            longest_s: for how long, at most, once its turn has come.
            runs: it does already, and must be paid for whatever is left.
        """
        now, size = self.now(), server.size or ""
        latest_end = now + self._rules.queue_timeout_s + longest_s
        enter = self.book.open if runs else self.book.order
        enter(launch_id, account, self.price(server), size, now, latest_end)

    async def settled(self, launch_id: str) -> None:
        """Wait until a reservation, or a transfer, holds for all processes.

        Raises:
            BudgetSpent: another process was quicker; the reservation is gone.
            StoreAway: nobody can know; it will be gone.
        """
        try:
            await self.book.settled(launch_id)
        except ledger.BudgetSpent as spent:
            raise self._refused(spent) from None

    def invite(self, wanted: Wanted) -> dict[str, str]:
        """Return the environment that brings an agent here."""
        token = self.desk.mint(wanted.launch_id, wanted.key, time.monotonic() + wanted.boot_s)
        return {
            "RENDEZVOUS_URL": self._rules.url,
            "RENDEZVOUS_JOIN_TOKEN": token,
            "RENDEZVOUS_START_DEADLINE_S": str(wanted.boot_s + AGENT_PATIENCE_S),
        }

    async def publish(self, launch_id: str, longest_s: float) -> None:
        """Let an agent that was invited here dial any process; see `Passes.publish`."""
        await self._passes.publish(launch_id, longest_s)

    async def assign(self, launch_id: str, key: str) -> None:
        """Let an agent's token lead to a session at all processes; see `Passes.assign`."""
        await self._passes.assign(launch_id, key)

    async def launch(self, wanted: Wanted) -> Dyno | None:
        """Ask the platform for the dyno of a reservation, once.

        Returns:
            The dyno; None if nobody knows whether there is one: its agent may dial.

        Raises:
            LaunchError: there is none; `AtCapacity` if there is no room.
            TimeoutError: the platform did not answer within the boot timeout.
            StoreAway: it was not asked, as other processes cannot be told.
        """
        server, started = wanted.server, self.now()
        price = self.price(server)
        self.book.correct(wanted.launch_id, started, price)
        order = LaunchOrder(
            launch_id=wanted.launch_id,
            server=server.name,
            environment=self.invite(wanted),
            size=server.size,
            lifetime_s=wanted.longest_s + LIFETIME_SLACK_S,
            app=server.app,
            agent=server.agent,
        )
        await self.publish(wanted.launch_id, wanted.boot_s)
        try:
            async with asyncio.timeout(wanted.boot_s):
                dyno = await self._launcher.launch(order)
        except LaunchUnsettled:
            return None
        if dyno.created is not None and dyno.created > started:  # its answer was late
            self.book.correct(wanted.launch_id, dyno.created, price)
        return dyno

    def give_up(self, launch_id: str) -> None:
        """There is no dyno after all: nothing was spent, and one that comes late is not ours."""
        self.disown(launch_id)
        self.book.close(launch_id, ended=0.0)  # at its start, as that comes later

    def disown(self, launch_id: str) -> None:
        """Nothing of this launch may join or go on any more."""
        self.desk.forget(launch_id)
        self._disowned[launch_id] = None
        if len(self._disowned) > MAX_DISOWNED:
            del self._disowned[next(iter(self._disowned))]

    def note_end(self, launch_id: str) -> None:
        """The platform has just told that a dyno ended: nobody will know better when."""
        self._ends.setdefault(launch_id, self.now())
        if len(self._ends) > MAX_DISOWNED:
            del self._ends[next(iter(self._ends))]

    def ended(self, launch_id: str) -> float | None:
        """Return when the platform told that a dyno had ended, wall clock, if it did."""
        return self._ends.get(launch_id)

    def disowned(self, launch_id: str) -> bool:
        """True when a launch is known to be over."""
        return launch_id in self._disowned

    async def stop(
        self, launch_id: str, dyno_id: str | None, app: str | None, left: float | None = None
    ) -> Bill | None:
        """Make sure that a dyno is gone, as often as that has to be tried.

        Args:
            launch_id: which.
            dyno_id: the launcher's name of it; None if it is not known.
            app: whose line moves on.
            left: when its agent was here last, wall clock; a dyno that is gone has ended then.

        Returns:
            What it has cost its last account; None if nothing was ever reserved for it.
        """
        found, age_s = dyno_id, None
        asked = self._asked.setdefault(launch_id, self.now())
        for attempt in itertools.count():
            try:
                async with asyncio.timeout(STOP_S):
                    found = found or await self._dyno_of(launch_id)
                    if found is not None:
                        age_s = await self._launcher.stop(found)
                break
            except (PlatformError, TimeoutError) as error:
                why = str(error) or f"no answer within {STOP_S:.0f} s"
                self.emit(
                    events.NotStopped(
                        launch=launch_id, dyno=dyno_id or "", why=why, attempt=attempt + 1
                    )
                )
            await asyncio.sleep(STOP_AGAIN_S[min(attempt, len(STOP_AGAIN_S) - 1)])
        self.line(app).freed()
        self._asked.pop(launch_id, None)
        now, ended = self.now(), 0.0  # there was none
        if age_s is not None:
            ended = now - age_s
        elif left is not None:
            ended = left
        elif found is not None:
            ended = (asked + now) / 2  # for all that anybody knows
        told = self._ends.get(launch_id.removesuffix(LATE), ended)
        return self.book.close(launch_id, min(ended, told))

    def settle(self, launch_id: str) -> Bill | None:
        """Pay for a dyno whose end the platform did not tell: until it was asked to stop it."""
        asked = self._asked.pop(launch_id, self.now())
        return self.book.close(launch_id, self._ends.get(launch_id, asked))

    async def _dyno_of(self, launch_id: str) -> str | None:
        """Return the launcher's name of a dyno whose launch was answered to nobody here."""
        dynos = await self._launcher.list()
        return next((dyno.dyno_id for dyno in dynos if dyno.launch_id == launch_id), None)

    async def list(self) -> Sequence[Dyno]:
        """Return the dynos of this deployment; see `Launcher.list`."""
        async with asyncio.timeout(STOP_S):
            return await self._launcher.list()

    async def aclose(self, left: Sequence[str]) -> None:
        """Stop what must not stay, once and for a bounded time, and let go of launcher and book."""
        async with asyncio.TaskGroup() as stops:
            for dyno_id in left:
                stops.create_task(self._stop_once(dyno_id))
        await self._launcher.aclose()
        await self.book.aclose()

    async def _stop_once(self, dyno_id: str) -> None:
        with contextlib.suppress(TimeoutError):
            try:
                async with asyncio.timeout(LAST_S):
                    await self._launcher.stop(dyno_id)
            except PlatformError as error:
                self.emit(events.NotStopped(launch="", dyno=dyno_id, why=str(error), attempt=1))
