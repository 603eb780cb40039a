"""Dynos of sessions: got from the pool or the platform, and given back."""

import asyncio
import contextlib
import functools
import secrets
import time
from collections.abc import Awaitable, Callable

from dyno_agent.link import CloseCode
from gateway import events
from gateway.errors import BudgetSpent, GatewayError, LaunchFailed, NoRoom
from gateway.fleet.fleet import Fleet, Wanted
from gateway.fleet.ledger import GATEWAY, Account, Bill, told
from gateway.fleet.line import LineFull, WaitedTooLong
from gateway.launchers.base import AtCapacity, Dyno, LaunchError
from gateway.sessions.endings import UNEXPECTED, boot_timeout
from gateway.sessions.live import LADDER_S, Live
from gateway.sessions.pool import Parked, Pool
from gateway.sessions.record import Reason, State, Step
from gateway.store.base import StoreAway

LEAVE_S = LADDER_S + 3.0
"""How long an agent may take to end its child and go before its dyno is stopped from outside."""

END_SLACK_S = 60.0
"""How long after the end of its session's life a dyno may take to be gone."""

STORE_RETRY_S = 2
"""When to try again what could not be written down first."""

End = Callable[[Live, Reason, GatewayError], None]

CalledElsewhere = Callable[[Live, Parked], Awaitable[None]]
"""Makes the agent of a dyno, which stands at another process's door, serve a session of ours; may
raise `StoreAway`."""


class Dynos:
    """Launches and stops the dynos of sessions.

    Args:
        fleet: gets and stops dynos.
        pool: has some ready.
        end: ends a session whose dyno cannot be had or is gone.
        called_elsewhere: calls an agent from another process's door.

    Attributes:
        fleet: gets and stops dynos.
        pool: has some ready.
    """

    def __init__(
        self, fleet: Fleet, pool: Pool, end: End, called_elsewhere: CalledElsewhere
    ) -> None:
        self.fleet = fleet
        self.pool = pool
        self._emit = fleet.emit
        self._end = end
        self._called_elsewhere = called_elsewhere
        self._launching: dict[Live, asyncio.Task[None]] = {}
        self._adopting: set[Live] = set()
        self._let_go: set[Live] = set()
        self._queued: set[Live] = set()
        self._told: dict[Live, int] = {}
        self._closing: dict[Live, asyncio.Task[None]] = {}

    @property
    def closing(self) -> int:
        """How many sessions are being closed."""
        return len(self._closing)

    @property
    def adopting(self) -> int:
        """How many sessions are about to get a dyno that the ledger has not for them yet."""
        return len(self._adopting)

    @property
    def queue(self) -> list[tuple[Live, int]]:
        """The sessions that wait in line, with their positions."""
        return list(self._told.items())

    def stopping(self, launch_id: str) -> bool:
        """True while a session's dyno is being given back."""
        return any(live.record.launch_id == launch_id for live in self._closing)

    def check_room(self, live: Live) -> None:
        """Make sure that a session may have a dyno; see `Fleet.check_room` for what it raises."""
        record = live.record
        parked = None if record.principal == GATEWAY else self.pool.next(record.server)
        adopting = None if parked is None else parked.launch_id
        self.fleet.check_room(record.server, record.principal, _longest_s(live), adopting)

    def launch(self, live: Live, tasks: asyncio.TaskGroup) -> None:
        """Get a session's dyno: one that is parked, or a new one."""
        record = live.record
        record.launch_id = secrets.token_hex(12)
        if record.principal == GATEWAY or self.pool.next(record.server) is None:
            self._reserve(live)
        else:
            self._adopting.add(live)
        name = f"launch {record.session_id}"
        self._launching[live] = tasks.create_task(self._launch(live), name=name)

    def _reserve(self, live: Live) -> None:
        record = live.record
        self._tell_launching(live)
        self.fleet.reserve(record.launch_id, record.server, _account(live), _longest_s(live))

    def let_go(self, live: Live) -> None:
        """Another process has a session now, or will have it: its dyno is that one's to stop."""
        if live.record.launch_id:
            self.fleet.book.disown(live.record.launch_id)
        if live in self._launching:
            self._let_go.add(live)

    def close(
        self, live: Live, reason: Reason, error: GatewayError, tasks: asyncio.TaskGroup
    ) -> None:
        """Let the agent end its child in good order, then make sure that the dyno is gone."""
        name = f"close {live.record.session_id}"
        closing = self._close(live, reason, error)
        self._closing[live] = tasks.create_task(closing, name=name)

    async def closed(self, patience_s: float) -> None:
        """Wait until every session that is being closed is, for a bounded time."""
        if self._closing:
            await asyncio.wait(self._closing.values(), timeout=patience_s)

    def cancel(self) -> list[str]:
        """Stop waiting for anything; return the dynos that are still to be stopped."""
        left = [live.record.dyno_id for live in self._closing]
        for task in (*self._launching.values(), *self._closing.values()):
            task.cancel()
        return [dyno_id for dyno_id in left if dyno_id is not None]

    def inherit(self, live: Live) -> None:
        """Pay for the dyno of a session that an agent has brought here, and stop it in the end."""
        record, fleet = live.record, self.fleet
        server = record.server
        latest_end = fleet.now() + _longest_s(live)
        price, size = fleet.price(server), server.size or ""
        fleet.book.open(record.launch_id, _account(live), price, size, record.billed, latest_end)
        fleet.book.own(record.launch_id)

    async def _adopts(self, live: Live) -> bool:
        """Let a session have a parked dyno, if there is one; return whether it has one now.

        Raises:
            BudgetSpent: it could cost more than is left.
            StoreAway: none can be had.
        """
        parked = await self.pool.take(live.record.server)
        if parked is None:
            return False
        kept = False
        try:
            if not self._wants(live):
                return False
            if live not in self._adopting:  # it has stood in line, with a reservation
                self.fleet.give_up(live.record.launch_id)
            now = self.fleet.now()
            account, latest_end = _account(live), now + _longest_s(live)
            bill = self.fleet.book.transfer(parked.launch_id, account, now, latest_end)
            await self.fleet.settled(parked.launch_id)
            kept = True
        finally:
            if not kept:
                self.pool.put_back(parked)
        self._adopt(live, parked, bill)
        await self._call(live, parked)
        return True

    def _wants(self, live: Live) -> bool:
        """Whether a session still has a use for a dyno."""
        return not live.record.over and live not in self._let_go

    def _adopt(self, live: Live, parked: Parked, bill: Bill | None) -> None:
        record, fleet = live.record, self.fleet
        record.launch_id, record.dyno_id = parked.launch_id, parked.dyno_id
        if live in self._adopting:
            self._adopting.discard(live)
            self._tell_launching(live)
        self._began(live)
        entry = fleet.book.running(parked.launch_id)
        record.billed = fleet.now() if entry is None else entry.since
        if fleet.desk.known(parked.launch_id) is not None:
            fleet.desk.assign(parked.launch_id, record.fingerprint)
        waited_s = 0.0 if parked.ready is None else time.monotonic() - parked.ready
        pool_dyno_s, pool_usd = told(bill)
        self._emit(
            events.Adopted(
                session=record.session_id,
                launch=record.launch_id,
                dyno=record.dyno_id or "",
                parked_s=round(waited_s, 3),
                pool_dyno_s=pool_dyno_s,
                pool_usd=pool_usd,
            )
        )
        if not record.over:  # or it is given back at once
            parked.live = live
        parked.called.set()
        self.pool.adopted(parked)

    async def _call(self, live: Live, parked: Parked) -> None:
        """Let the agent come to its session, at whichever door it stands or dials next."""
        if self.pool.at_door(parked.launch_id) is not None:
            with contextlib.suppress(StoreAway):  # it has its WELCOME already
                await self.fleet.assign(parked.launch_id, live.record.fingerprint)
            return
        try:
            await self._called_elsewhere(live, parked)
        except StoreAway as away:
            self._end(live, Reason.BOOT_FAILED, _not_written(live, away))

    def _tell_launching(self, live: Live) -> None:
        record = live.record
        self._emit(
            events.Launching(
                session=record.session_id,
                launch=record.launch_id,
                launcher=self.fleet.launcher,
                face=record.face,
            )
        )

    def _began(self, live: Live) -> None:
        """From now on its boot takes time, and its life."""
        self._queued.discard(live)
        live.lease.launched = live.record.launched = time.monotonic()

    async def _launch(self, live: Live) -> None:
        record = live.record
        try:
            await self._get(live)
        except LaunchError as failure:
            wait_s = failure.retry_after_s
            error = LaunchFailed(
                f"no dyno could be had for {record.server.name}: {failure}",
                retry_after_s=None if wait_s is None else max(1, round(wait_s)),
            )
            self._failed(live, Reason.BOOT_FAILED, error)
        except StoreAway as away:
            self._failed(live, Reason.BOOT_FAILED, _not_written(live, away))
        except (LineFull, WaitedTooLong) as failure:
            self._failed(live, Reason.NO_ROOM, NoRoom(f"{failure}; try again later"))
        except BudgetSpent as spent:
            self._failed(live, Reason.NO_ROOM, spent)
        except TimeoutError:
            if record.state is State.LAUNCHING and live not in self._let_go:
                self._end(live, Reason.BOOT_TIMEOUT, boot_timeout(live))
        finally:
            self._queued.discard(live)
            self._adopting.discard(live)
            self._let_go.discard(live)
            self._told.pop(live, None)
            del self._launching[live]
            live.launched.set()

    async def _adopts_late(self, live: Live) -> bool:
        """Look whether a dyno was parked of which this process did not know; adopt it then."""
        server = live.record.server
        if live.record.principal == GATEWAY or not server.warm or self.pool.store.alone:
            return False
        await self.pool.refresh()
        return self.pool.next(server) is not None and await self._adopts(live)

    async def _get(self, live: Live) -> None:
        """Get a parked dyno, or a new one."""
        record, lease = live.record, live.lease
        if live in self._adopting:
            if await self._adopts(live):
                return
            self._adopting.discard(live)
            if self._wants(live):
                self._reserve(live)
        elif await self._adopts_late(live):
            return
        launch_id = record.launch_id
        await self.fleet.settled(launch_id)
        if not self._wants(live):
            self.fleet.give_up(launch_id)
            record.launch_id = ""
            return
        wanted = Wanted(
            launch_id, record.fingerprint, record.server, lease.boot_s, _longest_s(live)
        )
        dyno = await self._obtain(live, wanted)
        if record.launch_id != launch_id or live in self._let_go:
            return  # it has adopted one, or is another process's
        entry = self.fleet.book.running(launch_id)
        record.billed = self.fleet.now() if entry is None else entry.since
        if dyno is not None:
            record.dyno_id = dyno.dyno_id
            self._emit(
                events.Launched(session=record.session_id, launch=launch_id, dyno=dyno.dyno_id)
            )
        live.tell_phase("the dyno boots")

    async def _obtain(self, live: Live, wanted: Wanted) -> Dyno | None:
        """Get a dyno, in line if need be; see `Fleet.launch` and `Line.through`."""
        line = self.fleet.line(wanted.server.app)

        async def attempt() -> Dyno | None:
            self._began(live)
            return await self.fleet.launch(wanted)

        async def turn() -> Dyno | None:
            if not live.record.over and await self._adopts(live):
                return None
            return await attempt()

        if live.record.principal != GATEWAY:
            place = functools.partial(self._in_line, live)
            return await line.through(wanted.server.name, turn, place)
        if line.waiting:  # throw-away runs do not stand in the way of clients: they come again
            raise AtCapacity("sessions wait for a dyno")
        return await attempt()

    def _failed(self, live: Live, reason: Reason, error: GatewayError) -> None:
        """There is no dyno, and there will be none; unless its agent has been here, that is."""
        if live.record.state not in (State.LAUNCHING, State.CLOSING) or live in self._let_go:
            return
        self.fleet.give_up(live.record.launch_id)
        live.record.launch_id = ""
        self._end(live, reason, error)

    def _in_line(self, live: Live, position: int, waiting: int) -> None:
        if live.record.over:  # it ended during an attempt that was in vain
            self._launching[live].cancel()
            return
        self._queued.add(live)
        live.lease.launched = None  # the boot has not begun
        if self._told.get(live) == position:
            return
        self._told[live] = position
        self._emit(
            events.Queued(session=live.record.session_id, position=position, waiting=waiting)
        )
        live.tell_phase(f"waiting for a dyno, number {position} of {waiting} in line")

    async def _close(self, live: Live, reason: Reason, error: GatewayError) -> None:
        record = live.record
        bill = None
        try:
            bill = await self._give_back(live) if record.launch_id else None
        except asyncio.CancelledError:
            # This process leaves, and the platform has not said that the dyno is gone.
            bill = self.fleet.settle(record.launch_id)
            raise
        finally:
            self._closed(live, reason, error, bill)

    def _closed(self, live: Live, reason: Reason, error: GatewayError, bill: Bill | None) -> None:
        record = live.record
        record.move(Step.GONE)
        self._closing.pop(live, None)
        seconds = time.monotonic() - record.created
        dyno_s, usd = told(bill)
        self._emit(
            events.Closed(
                session=record.session_id,
                reason=reason,
                seconds=round(seconds, 3),
                calls=record.calls,
                dropped=live.session.chatter.dropped,
                peak_buffer_bytes=live.session.link.peak_bytes,
                dyno_s=dyno_s,
                usd=usd,
                detail=error.message if reason in UNEXPECTED else "",
            )
        )

    async def _give_back(self, live: Live) -> Bill | None:
        """Let the agent end its child and leave, make sure that the dyno is gone, and pay."""
        record = live.record
        if live.attached:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LEAVE_S):
                    if live.session.child_runs:
                        live.ask_to_stop()
                    await live.gone.wait()
        if live in self._queued:
            self._launching[live].cancel()
            self.fleet.give_up(record.launch_id)
            return None
        self.fleet.disown(record.launch_id)
        await live.refuse(CloseCode.SESSION_ENDED)
        await live.launched.wait()
        if not record.launch_id:
            return None  # there was none after all
        self.fleet.disown(record.launch_id)  # if it has adopted one meanwhile
        return await self.fleet.stop(
            record.launch_id, record.dyno_id, record.server.app, self._left(live)
        )

    def _left(self, live: Live) -> float | None:
        """Return when the agent was here last, wall clock: if the dyno is gone, since then."""
        if live.left is None:
            return None
        return self.fleet.now() - (time.monotonic() - live.left)


def _not_written(live: Live, away: StoreAway) -> LaunchFailed:
    name = live.record.server.name
    return LaunchFailed(
        f"no dyno could be had for {name}: what the gateway processes share cannot be reached"
        f" ({away})",
        retry_after_s=STORE_RETRY_S,
    )


def _account(live: Live) -> Account:
    record = live.record
    return Account(record.principal, record.server.name, record.session_id)


def _longest_s(live: Live) -> float:
    """Return for how long a session's dyno can cost something."""
    return live.lease.lifetime_s + END_SLACK_S
