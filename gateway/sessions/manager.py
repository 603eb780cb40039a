"""All sessions of this gateway: open, share, find, launch, end; the one deadline loop.

It decides nothing about messages (`owned`, `shared`) or durations (`lease`): it owns the tasks.
"""

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

import msgspec

from dyno_agent.link import DEFAULT_LIMITS, CloseCode, Endpoint, Face, Limits
from gateway import events
from gateway.eras.catalogue import Chapter
from gateway.eras.legacy import Opening
from gateway.errors import (
    Busy,
    GatewayError,
    Restarting,
    SessionAway,
    SessionEnded,
    StaleState,
    UnknownServer,
    UnknownSession,
)
from gateway.fleet.desk import JoinDesk
from gateway.fleet.fleet import Fleet, Rules
from gateway.fleet.ledger import Budgets, Ledger
from gateway.fleet.warmth import Caps
from gateway.launchers.base import Launcher
from gateway.patience import patience
from gateway.registry.servers import Registry, ServerDefinition
from gateway.sessions.directory import Directory
from gateway.sessions.dynos import Dynos
from gateway.sessions.endings import overdue
from gateway.sessions.keys import SessionKeys
from gateway.sessions.lease import Lease
from gateway.sessions.live import Live, OwnedLive, SharedLive
from gateway.sessions.overture import Overture
from gateway.sessions.owned import OwnedSession
from gateway.sessions.pool import Parked, Pool
from gateway.sessions.reception import Reception
from gateway.sessions.reconciler import Reconciler
from gateway.sessions.record import Reason, SessionRecord, State, Step
from gateway.sessions.sealing import BadSeal, Sealer
from gateway.sessions.seals import Seal, Seals
from gateway.sessions.shared import SharedSession

TICK_S = 0.25
"""Period of the deadline loop: how late a limit may strike."""

DRAIN_S = 20.0
"""How long a shutdown waits in all for calls whose clients cannot come back, for sessions to close
and for the pool to empty; the platform kills after 30 s."""

HOLD_S = 15.0
"""How long a request waits for the agent of a session that this process has not seen yet."""

RETURN_S = 5.0
"""How long after its start a process expects agents of shared sessions, before it makes new ones:
an agent that was told to dial again does so within that time."""

SETTLED_S = 30.0
"""How long after its start a process may still expect any agent that can reach it. From then on a
session that was opened without a dyno is taken for one that had none yet, and is not known here."""

MAX_DORMANT = 10_000
"""Sessions without a dyno. They cost a few KiB each; beyond, the one that was used least goes."""

CARRIED_CHARACTERS = 4096
"""How long what a session key carries may be: a header has 8 KiB."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What the manager must know of the deployment.

    Attributes:
        url: base URL that agents dial.
        secret: seals session keys and capsules.
        max_sessions: sessions with a dyno at once.
        grace_s: how long an agent may be out of reach before its session ends.
        budgets: what dynos may cost.
        caps: what parked dynos may cost.
        queue_length: sessions that may wait while an app's dyno limit is reached.
        queue_timeout_s: how long one may.
        hand_over: another process will have the same secret: a shutdown leaves sessions to it.
        limits: of every link.
        wall_clock: seconds since 1970; gateway processes compare it with one another's only.
    """

    url: str
    secret: bytes = field(repr=False)
    max_sessions: int
    grace_s: float = 300.0
    budgets: Budgets = field(default_factory=Budgets)
    caps: Caps = field(default_factory=Caps)
    queue_length: int = 20
    queue_timeout_s: float = 120.0
    hand_over: bool = False
    limits: Limits = DEFAULT_LIMITS
    wall_clock: Callable[[], float] = time.time  # noqa: TID251 - outlives a process, see capsule.py


class Reopening(msgspec.Struct, frozen=True):
    """What a session key carries, so that its session can be opened once more."""

    principal: str
    server: str
    opening: Opening


class Manager:
    """All live sessions of this gateway. Use it as an async context manager.

    Attributes:
        directory: the sessions that live here.
        reception: for agents.
        fleet: all dynos, and what they cost.
        pool: dynos without a session.
        dynos: of the sessions.
        reconciler: hears what the platform tells by itself.
        seals: for what modern clients bring back.
    """

    def __init__(
        self,
        launcher: Launcher,
        registry: Registry,
        terms: Terms,
        emit: events.Sink,
    ) -> None:
        self._terms = terms
        self._sinks = [emit]
        self._registry = registry
        self._keys = SessionKeys(terms.secret, secrets.token_urlsafe)
        self._openings = Sealer(terms.secret, "rendezvous reopening v1", Reopening)
        self._started = time.monotonic()
        self._tasks = asyncio.TaskGroup()
        self._hands_over = terms.hand_over
        self._drained_by: float | None = None
        desk = JoinDesk(secrets.token_urlsafe)
        rules = Rules(terms.url, terms.queue_length, terms.queue_timeout_s, terms.wall_clock)
        self.fleet = Fleet(launcher, desk, Ledger(terms.budgets), rules, self.emit)
        self.seals = Seals(terms.secret)
        self.directory = Directory()
        self.pool = Pool(self.fleet, registry, terms.caps)
        self.reception = Reception(
            self.directory,
            self.fleet,
            self.pool,
            registry,
            self._make,
            terms.secret,
        )
        self.dynos = Dynos(self.fleet, self.pool, self.end)
        self.reconciler = Reconciler(
            self.fleet,
            self.directory,
            self.dynos,
            self.pool,
            terms.grace_s,
            self.end,
        )

    async def __aenter__(self) -> Self:
        """Start the loops."""
        await self._tasks.__aenter__()
        self._loops = [
            self._tasks.create_task(self._watch_deadlines(), name="deadlines"),
            self._tasks.create_task(self.reconciler.keep(), name="reconciler"),
            self._tasks.create_task(self.pool.keep(), name="pool"),
        ]
        return self

    async def __aexit__(self, *failure: object) -> None:
        """End or hand over every session, then the loops, then the launcher."""
        await self.drain()
        left = self.dynos.cancel()
        for task in self._loops:
            task.cancel()
        await self._tasks.__aexit__(None, None, None)
        await self.fleet.aclose([*left, *self.pool.left])

    def emit(self, event: events.Event) -> None:
        """Tell every sink what happened."""
        for sink in self._sinks:
            sink(event)

    def subscribe(self, sink: events.Sink) -> None:
        """Let another sink hear what happens from now on."""
        self._sinks.append(sink)

    @property
    def sessions(self) -> int:
        """How many sessions live or are being closed."""
        return len(self.directory) + self.dynos.closing

    @property
    def draining(self) -> bool:
        """True once nothing new is taken."""
        return self.directory.draining

    # For clients with a handshake

    def open(
        self,
        server: ServerDefinition,
        principal: str,
        client: str,
        opening: Opening | None = None,
        chapter: Chapter | None = None,
    ) -> tuple[str, OwnedLive]:
        """Make a session. It has no dyno before `launch`.

        Args:
            server: what to run.
            principal: whose it is.
            client: what the client calls itself, for the log.
            opening: what it said; None if it may not come back to a session that has ended.
            chapter: what it was told instead of by the child; None if the child will answer it.

        Returns:
            The key that its client shall present, and the session.

        Raises:
            Busy: the gateway is shutting down.
            UnknownServer: the server is disconnected.
        """
        self._check_open()
        self.check_registered(server)
        carried = ""
        if server.stale == "rebuild" and opening is not None:
            facts = Reopening(principal, server.name, opening)
            carried = self._openings.seal(facts)
        if len(carried) > CARRIED_CHARACTERS:
            carried = ""
        key = self._keys.mint(carried, dormant=chapter is not None)
        live = self._make_owned(SessionKeys.fingerprint(key), server, principal)
        if chapter is not None and opening is not None:
            live.session.overture = Overture(opening, chapter)
        self._enter(live, client)
        return key, live

    async def find(self, key: str, principal: str, server: ServerDefinition) -> OwnedLive:
        """Return the live session that a client presents.

        One that this process never saw, though the key is ours, may be on its way: its agent
        redials until its grace period is over.

        Raises:
            Restarting: this process leaves.
            SessionAway: the agent has not come yet.
            UnknownSession: no such session, or not of this principal and server.
        """
        if self.draining:
            raise Restarting("this gateway process is shutting down; send the request again")
        fingerprint = SessionKeys.fingerprint(key)
        live = self.directory.get(fingerprint)
        away = self._may_come(key, fingerprint) if live is None else live.arriving
        if away:
            live = await self.directory.arrival(fingerprint, patience(HOLD_S))
        if live is None and server.stale == "rebuild" and self._keys.issued(key):
            live = self._rebuild(key, fingerprint, principal, server)
        settled = time.monotonic() - self._started >= SETTLED_S
        if live is None and away and not (settled and self._keys.may_be_dormant(key)):
            raise SessionAway(
                "the session's dyno has not dialled this gateway process yet; send the request "
                "again"
            )
        if (
            not isinstance(live, OwnedLive)
            or live.record.principal != principal
            or live.record.server.name != server.name
        ):
            raise UnknownSession(
                "unknown session: it has ended or never existed; send `initialize` again"
            )
        return live

    def _may_come(self, key: str, fingerprint: str) -> bool:
        up_s = time.monotonic() - self._started
        return (
            self.directory.ended(fingerprint) is None
            and up_s < self._terms.grace_s + HOLD_S
            and self._terms.hand_over
            and self._keys.issued(key)
        )

    def _rebuild(
        self, key: str, fingerprint: str, principal: str, server: ServerDefinition
    ) -> OwnedLive | None:
        """Open an ended session once more, as its client once did; None if it may not be."""
        if self.directory.ended(fingerprint) is Reason.CLIENT_DELETE:
            return None
        try:
            carried = self._openings.open(SessionKeys.carried(key), server.max_lifetime)
        except BadSeal:
            return None
        if (carried.principal, carried.server) != (principal, server.name):
            return None
        live = self._make_owned(fingerprint, server, principal)
        live.session.overture = Overture(carried.opening, None)
        live.rebuilt = True
        self._enter(live, "")
        return live

    # For clients without

    async def share(
        self, server: ServerDefinition, principal: str, handle: str, client: str
    ) -> SharedLive:
        """Return the session that this principal's requests share. Made if there is none.

        Args:
            server: what runs.
            principal: whose it is.
            handle: which of several; empty if the client names none.
            client: what the client calls itself, for the log.

        Raises:
            Restarting: this process leaves.
            Busy: the gateway holds as many sessions as it may.
            UnknownServer: there is none yet, and the server is disconnected.
        """
        if self.draining:
            raise Restarting("this gateway process is shutting down; send the request again")
        fingerprint = SessionKeys.lease(server.name, principal, handle)
        live = self.directory.get(fingerprint)
        if live is None or live.arriving:
            live = await self.directory.arrival(fingerprint, patience(self._return_s(live)))
        if live is None:
            return self._share_anew(fingerprint, server, principal, client)
        if not isinstance(live, SharedLive):
            raise UnknownSession("a session of another kind has this name")
        return live

    def share_anew(self, server: ServerDefinition, principal: str, client: str) -> SharedLive:
        """Return a session like `share`, with a handle that nobody else knows."""
        fingerprint = SessionKeys.lease(server.name, principal, secrets.token_urlsafe(18))
        return self._share_anew(fingerprint, server, principal, client)

    def _share_anew(
        self, fingerprint: str, server: ServerDefinition, principal: str, client: str
    ) -> SharedLive:
        self._check_open()
        self.check_registered(server)
        live = self._make_shared(fingerprint, server, principal)
        self._enter(live, client)
        return live

    def _return_s(self, live: Live | None) -> float:
        if live is not None:
            return HOLD_S
        up_s = time.monotonic() - self._started
        return max(0.0, RETURN_S - up_s) if self._terms.hand_over else 0.0

    def contradicts(self, server: ServerDefinition, principal: str, handle: str) -> bool:
        """True when the child that these requests share has said something else than was told."""
        live = self.directory.get(SessionKeys.lease(server.name, principal, handle))
        return live is not None and live.session.contradicts

    async def issuer(self, seal: Seal, server: ServerDefinition) -> SharedLive:
        """Return the session whose child gave what a client brings back.

        Raises:
            StaleState: its dyno is gone, or another server's.
        """
        live = self.directory.get(seal.fingerprint)
        if live is None or live.arriving:
            live = await self.directory.arrival(seal.fingerprint, patience(self._return_s(live)))
        if (
            not isinstance(live, SharedLive)
            or live.record.launch_id != seal.launch_id
            or live.record.server.name != server.name
        ):
            raise StaleState(f"the dyno that issued this {seal.kind} is gone; start over")
        return live

    # Sessions

    def check_registered(self, server: ServerDefinition) -> None:
        """Make sure that sessions may be opened with a server.

        Raises:
            UnknownServer: it is disconnected.
        """
        if self._registry.find(server.name) is None:
            raise UnknownServer(
                f"the server {server.name!r} is disconnected: it is deployed no more"
            )

    def _check_open(self) -> None:
        if self.draining:
            raise Busy("this gateway is shutting down; try again in a moment")

    def _make(
        self,
        fingerprint: str,
        server: ServerDefinition,
        principal: str,
        session_id: str,
        *,
        shared: bool,
    ) -> Live:
        make = self._make_shared if shared else self._make_owned
        return make(fingerprint, server, principal, session_id)

    def _make_shared(
        self, fingerprint: str, server: ServerDefinition, principal: str, session_id: str = ""
    ) -> SharedLive:
        # Its fingerprint is the same in each of its lives; its name tells them apart.
        session_id = session_id or f"s-{secrets.token_hex(6)}"
        record, link, lease = self._facts(fingerprint, server, principal, session_id)
        timeout_s = server.call_timeout
        return SharedLive(
            SharedSession(record, link, self.emit, timeout_s, self.seals), lease, self.emit
        )

    def _make_owned(
        self, fingerprint: str, server: ServerDefinition, principal: str, session_id: str = ""
    ) -> OwnedLive:
        session_id = session_id or SessionKeys.public_id(fingerprint)
        record, link, lease = self._facts(fingerprint, server, principal, session_id)
        return OwnedLive(
            OwnedSession(record, link, self.emit, server.call_timeout), lease, self.emit
        )

    def _facts(
        self, fingerprint: str, server: ServerDefinition, principal: str, session_id: str
    ) -> tuple[SessionRecord, Endpoint, Lease]:
        now = time.monotonic()
        lease = Lease(
            launched=None,
            boot_s=server.boot_timeout or self.fleet.boot_timeout_s,
            idle_s=server.idle_timeout,
            lifetime_s=server.max_lifetime,
            grace_s=self._terms.grace_s,
            active=now,
        )
        record = SessionRecord(session_id, fingerprint, principal, server, now)
        return record, Endpoint(self._terms.limits, now=now), lease

    def _enter(self, live: Live, client: str) -> None:
        record = live.record
        dormant = self.directory.dormant
        if len(dormant) >= MAX_DORMANT:
            oldest = min(dormant, key=lambda each: each.session.active)
            self.end(oldest, Reason.EVICTED, SessionEnded("the session was not used for long"))
        self.directory.add(live)
        self.emit(
            events.Requested(
                session=record.session_id,
                server=record.server.name,
                principal=record.principal,
                client=client,
                rebuilt=live.rebuilt,
            )
        )

    def check_room(self, live: Live) -> None:
        """Make sure that a session has a dyno or may get one.

        Raises:
            Restarting: it has ended, or is handed over; the next request finds another one.
            Busy, QueueFull, BudgetSpent: see `launch`.
        """
        if live.record.over or live.handed_over:
            raise Restarting("the session has just ended; send the request again")
        if live.record.state is not State.REQUESTED:
            return
        dynos = self.sessions - len(self.directory.dormant)
        if dynos >= self._terms.max_sessions:
            raise Busy(
                f"this gateway holds its limit of {self._terms.max_sessions} sessions "
                "(MAX_SESSIONS); end one or try again later"
            )
        self.dynos.check_room(live)

    def launch(self, live: Live, face: Face) -> None:
        """Ask for a session's dyno, unless that was done; calls wait for the boot.

        Args:
            live: the session.
            face: the era that its child is to show.

        Raises:
            Busy: the gateway holds as many sessions with a dyno as it may.
            QueueFull, BudgetSpent: see `Fleet.check_room`.
        """
        record = live.record
        if record.state is not State.REQUESTED:
            return
        self.check_room(live)
        record.face = face
        record.move(Step.LAUNCH)
        live.session.start(time.monotonic())
        self.dynos.launch(live, self._tasks)

    def end(self, live: Live, reason: Reason, error: GatewayError) -> None:
        """End a session: its calls are answered with `error`, its dyno is stopped."""
        record = live.record
        if record.over:
            return
        record.move(Step.END)
        self.emit(events.Closing(session=record.session_id, reason=reason))
        self.directory.remove(live, reason)
        live.fail(error, time.monotonic())
        self.dynos.close(live, reason, error, self._tasks)

    async def closed(self) -> None:
        """Wait until the sessions that are being closed have given their dynos back, or long."""
        await self.dynos.closed(DRAIN_S)

    # For agents

    def recognise(self, credential: str, capsule: str) -> Live | Parked:
        """Return what an agent's credential leads to; see `Reception.recognise`.

        Raises:
            Restarting: this process leaves.
            TokenRefused: none.
        """
        if self.draining:
            raise Restarting("this gateway process is shutting down; dial again")
        found = self.reception.recognise(credential, capsule, self.emit)
        if isinstance(found, Live) and found.fresh:
            self.dynos.inherit(found)
        return found

    def breach(self, live: Live, cause: str) -> None:
        """An agent broke the rules: its session is over, and nobody else's."""
        if live.record.over:
            return
        self.emit(events.Breach(session=live.record.session_id, cause=cause))
        self.end(
            live,
            Reason.BREACH,
            SessionEnded("the session was ended: its agent broke the link protocol"),
        )

    def settle(self, live: Live) -> None:
        """Act on what a session has just received: its end, its first answer, its arrival."""
        if not live.arriving:
            self.directory.arrived()
        session = live.session
        if session.contradicts and not live.contradicted:
            live.contradicted = True
            record = live.record
            self.emit(
                events.Contradicted(
                    session=record.session_id,
                    server=record.server.name,
                    principal=record.principal,
                )
            )
        if session.ending is not None:
            self.end(live, session.ending.reason, session.ending.error)
        elif session.booted:
            live.lease.booted = True

    # The end of this process

    def keep_nothing(self) -> None:
        """Somebody at a terminal ends this process: `drain` shall end all sessions."""
        self._hands_over = False

    async def drain(self) -> None:
        """Take nothing new; hand every session over or end it, for a bounded time."""
        if self._drained_by is None:
            self._drained_by = time.monotonic() + DRAIN_S
        deadline = self._drained_by
        self.directory.drain()
        self.pool.drain()
        await self.reconciler.hurry()
        error = SessionEnded("the gateway is shutting down; send `initialize` again in a moment")
        for live in self.directory:
            # One that has not booted ends: nobody else knows its join token.
            if not self._hands_over or not live.may_be_handed_over:
                self.end(live, Reason.DRAINED, error)
        await self._hand_over(deadline)
        await self.dynos.closed(max(0.0, deadline - time.monotonic()))
        await self.pool.drained(max(0.0, deadline - time.monotonic()))

    async def _hand_over(self, deadline: float) -> None:
        """Leave the sessions to the next process.

        Streams whose clients come back end at once; calls of others get time to be answered, and
        then an error that they may be sent again.
        """
        async with asyncio.TaskGroup() as farewells:
            while len(self.directory):
                for live in self.directory:
                    if not live.hand_over() or time.monotonic() >= deadline:
                        self._let_go(live)
                        farewells.create_task(live.refuse(CloseCode.DRAIN))
                await asyncio.sleep(TICK_S)

    def _let_go(self, live: Live) -> None:
        self.directory.remove(live, None)
        live.handed_over = True
        calls = live.session.calls
        live.fail(
            Restarting("this gateway process is shutting down; send the request again"),
            time.monotonic(),
            all_calls=False,
        )
        self.emit(events.HandedOver(session=live.record.session_id, calls=calls))

    # The loop

    async def _watch_deadlines(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            for live in self.directory:
                self._tick(live, time.monotonic())

    def _tick(self, live: Live, now: float) -> None:
        live.perform(live.session.tick(now))
        live.lease.active = live.session.active
        reason = live.lease.verdict(now, calling=live.session.calls > 0)
        if reason is not None:
            self.end(live, reason, overdue(live, reason))
