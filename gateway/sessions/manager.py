"""All sessions of this gateway: open, share, find, launch, end; the one deadline loop.

It decides nothing about messages (`owned`, `shared`) or durations (`lease`): it owns the tasks.
"""

import asyncio
import secrets
import time
from typing import Final, Self

from dyno_agent.link import Face
from gateway import events
from gateway.eras.catalogue import Chapter
from gateway.eras.legacy import Opening
from gateway.errors import (
    Busy,
    Elsewhere,
    GatewayError,
    Moved,
    Restarting,
    SessionAway,
    SessionEnded,
    StaleState,
    StoreUnavailable,
    UnknownMethod,
    UnknownServer,
    UnknownSession,
)
from gateway.fleet.book import Book
from gateway.fleet.desk import JoinDesk
from gateway.fleet.fleet import Fleet, Rules
from gateway.fleet.ledger import Ledger
from gateway.fleet.passes import Passes
from gateway.launchers.base import Launcher
from gateway.patience import patience
from gateway.registry.servers import Registry, ServerDefinition
from gateway.sessions.directory import Directory
from gateway.sessions.dynos import Dynos
from gateway.sessions.endings import overdue
from gateway.sessions.farewell import DRAIN_S, Farewell
from gateway.sessions.keys import SessionKeys
from gateway.sessions.live import Live, OwnedLive, SharedLive
from gateway.sessions.making import Maker
from gateway.sessions.neighbours import Neighbours
from gateway.sessions.overture import Overture
from gateway.sessions.ownership import Ownership
from gateway.sessions.pool import Parked, Pool
from gateway.sessions.quotas import Quotas
from gateway.sessions.reception import Reception
from gateway.sessions.reconciler import Reconciler
from gateway.sessions.record import Reason, State, Step
from gateway.sessions.reopening import Reopenings
from gateway.sessions.seals import Seal, Seals
from gateway.sessions.supervision import Supervision
from gateway.sessions.terms import Terms
from gateway.sessions.tracing import Tracing
from gateway.sessions.whereabouts import Hold, Whereabouts
from gateway.store.base import Store, StoreAway
from gateway.store.memory import MemoryStore

TICK_S = 0.25
"""Period of the deadline loop: how late a limit may strike."""

HOLD_S = 15.0
"""How long a request waits for the agent of a session that this process has not seen yet."""

RETURN_S = 5.0
"""How long after its start a process expects agents of shared sessions, before it makes new ones:
an agent that was told to dial again does so within that time."""

SETTLED_S = 30.0
"""How long after its start a process may still expect any agent that can reach it. From then on a
session that was opened without a dyno is taken for one that had none yet, and is not known here."""

STORE_S = 2.0
"""How long the end of this process may wait for the store to know it."""

MAX_DORMANT = 10_000
"""Sessions without a dyno. They cost a few KiB each; beyond, the one that was used least goes."""

UNKNOWN: Final = "unknown session: it has ended or never existed; send `initialize` again"

CARRIED_CHARACTERS = 4096
"""How long what a session key carries may be: a header has 8 KiB."""


class Manager:
    """All live sessions of this gateway. Use it as an async context manager.

    Attributes:
        store: what the processes share.
        directory: the sessions that live here.
        ownership: who holds which session.
        reception: for agents.
        fleet: all dynos, and what they cost.
        pool: dynos without a session.
        dynos: of the sessions.
        reconciler: hears what the platform tells by itself.
        seals: for what modern clients bring back.
        neighbours: what other processes tell, and are told.
        supervision: what operators do.
    """

    def __init__(
        self,
        launcher: Launcher,
        registry: Registry,
        terms: Terms,
        emit: events.Sink | None = None,
        store: Store | None = None,
    ) -> None:
        self._terms = terms
        self._sinks = [] if emit is None else [emit]
        self._registry = registry
        self._keys = SessionKeys(terms.secret, secrets.token_urlsafe)
        self._tasks = asyncio.TaskGroup()
        desk = JoinDesk(secrets.token_urlsafe)
        rules = Rules(terms.url, terms.queue_length, terms.queue_timeout_s, terms.wall_clock)
        self.store = MemoryStore() if store is None else store
        self._openings = Reopenings(
            terms.secret, self._keys, registry, CARRIED_CHARACTERS, self.store.gateway
        )
        self._quotas = Quotas(terms, self.store)
        self.passes = Passes(desk, self.store, terms.wall_clock)
        self.book = Book(Ledger(terms.budgets), self.store)
        self.fleet = Fleet(launcher, desk, self.passes, self.book, rules, self.emit)
        self.seals = Seals(terms.secret)
        self._maker = maker = Maker(registry, self.fleet, self.seals, terms.grace_s, terms.limits)
        self.directory = Directory()
        self.ownership = Ownership(self.store, self.fleet.now, self._lost, self.emit)
        self.pool = Pool(self.fleet, registry, terms.caps, self.store)
        self.dynos = Dynos(self.fleet, self.pool, self.end, self._call_elsewhere)
        self.reception = Reception(
            self.directory, self.ownership, self.dynos, self.passes, maker, terms.secret
        )
        self.reconciler = Reconciler(
            self.fleet, self.directory, self.dynos, self.pool, terms.grace_s, self.end
        )
        self._farewell = Farewell(
            self.directory,
            self.ownership,
            self.dynos,
            self.reconciler,
            self.end,
            hands_over=terms.hand_over,
        )
        self.neighbours = Neighbours(
            self.directory,
            self.ownership,
            self.reception,
            self.dynos,
            self.reconciler,
            self._tasks,
        )
        self.supervision = Supervision(self.directory, self.fleet, self.end, self._tasks)
        self._whereabouts = Whereabouts(
            self.directory,
            self.ownership,
            self.reception,
            self.neighbours,
            hand_over=terms.hand_over,
            ghost_s=terms.grace_s + HOLD_S,
        )

    async def __aenter__(self) -> Self:
        """Start the loops."""
        await self.store.__aenter__()
        await self._tasks.__aenter__()
        self._loops = [
            self._tasks.create_task(self._watch_deadlines(), name="deadlines"),
            self._tasks.create_task(self.ownership.keep(), name="ownership"),
            self._tasks.create_task(self.book.keep(), name="ledger"),
            self._tasks.create_task(self.reconciler.keep(), name="reconciler"),
            self._tasks.create_task(self.pool.keep(), name="pool"),
        ]
        return self

    async def __aexit__(self, *failure: object) -> None:
        """End or hand over every session, then the loops, then the launcher."""
        await self.drain()
        left = self.dynos.cancel()
        await self.ownership.settled(STORE_S)
        for task in self._loops:
            task.cancel()
        await self._tasks.__aexit__(None, None, None)
        await self.fleet.aclose([*left, *self.pool.left])
        await self.store.__aexit__(None, None, None)

    def emit(self, event: events.Event) -> None:
        """Tell every sink what happened."""
        for sink in self._sinks:
            sink(event)

    def subscribe(self, sink: events.Sink) -> None:
        """Let another sink hear what happens from now on."""
        self._sinks.append(sink)

    def trace(self, tracing: Tracing) -> None:
        """Let the calls of all sessions that are made from now on be traced."""
        self._maker.tracing = tracing

    @property
    def sessions(self) -> int:
        """How many sessions live or are being closed."""
        return len(self.directory) + self.dynos.closing

    @property
    def secret(self) -> bytes:
        """The deployment's."""
        return self._terms.secret

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
        carried = "" if opening is None else self._openings.sealed(server, principal, opening)
        key = self._keys.mint(carried, dormant=chapter is not None)
        live = self._maker.owned(SessionKeys.fingerprint(key), server, principal)
        if chapter is not None and opening is not None:
            live.opening, live.told = opening, True
            live.session.overture = Overture(opening, chapter)
        self._enter(live, client)
        return key, live

    async def publish(self, live: Live) -> None:
        """Let every process know a session that `open` has made, before its client does.

        Raises:
            QuotaReached: its principal opens too many; the session is ended.
            StoreUnavailable: that cannot be; the session is ended.
        """
        try:
            await self._quotas.draw(live.record.principal)
            await self.ownership.publish(live)
        except GatewayError as error:
            self.end(live, Reason.NO_ROOM, SessionEnded(error.message))
            raise

    async def find(self, key: str, principal: str, server: ServerDefinition) -> OwnedLive:
        """Return the live session that a client presents.

        One that this process never saw, though the key is ours, may be on its way: its agent
        redials until its grace period is over.

        Raises:
            Elsewhere: another process holds it.
            StoreUnavailable: nobody knows who does.
            Restarting: this process leaves.
            SessionAway: the agent has not come yet.
            UnknownSession: no such session, or not of this principal and server.
        """
        fingerprint = SessionKeys.fingerprint(key)
        if self.draining:
            raise await self._not_here(fingerprint)
        live, away = self.directory.here(fingerprint), False
        if live is None and (self._keys.issued(key) or self.directory.get(fingerprint)):
            live, away = await self._seek(key, fingerprint)
        if live is None:
            live = await self._rebuild(key, fingerprint, principal, server)
        settled = time.monotonic() - self.store.blank_since >= SETTLED_S
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
            raise UnknownSession(UNKNOWN)
        return live

    async def _seek(self, key: str, fingerprint: str) -> tuple[Live | None, bool]:
        """Wait for a session that may be on its way; see `Whereabouts.seek`."""
        blank_s = self._terms.grace_s + HOLD_S
        if self._keys.is_member(key) and (not self.store.alone or self._openings.began_here(key)):
            blank_s = 0.0  # most likely it has not begun; if it has, somebody can be asked
        hold = Hold(HOLD_S, blank_s)
        return await self._whereabouts.seek(fingerprint, hold)

    async def _rebuild(
        self, key: str, fingerprint: str, principal: str, server: ServerDefinition
    ) -> OwnedLive | None:
        """Open an ended session once more, as its client once did; None if it may not be.

        One of a toolkit's member opens in the same way for the first time.
        """
        ended = self.directory.ended(fingerprint)
        opening = self._openings.read(key, principal, server)
        if ended is Reason.CLIENT_DELETE or opening is None:
            return None
        chapter = None if server.toolkit is None else self.reception.chapter(server)
        live = self._maker.owned(fingerprint, server, principal)
        live.opening, live.told = opening, chapter is not None
        live.session.overture = Overture(opening, chapter, again=True)
        first = self._keys.is_member(key) and ended is None
        live.rebuilt = server.toolkit is None and not first
        await self.ownership.publish(live)
        other = self.directory.get(fingerprint)
        if isinstance(other, OwnedLive):  # of a request beside this one
            self.ownership.changed(other)
            return other
        self._enter(live, "")
        return live

    # For clients of toolkits

    def member_key(
        self, key: str, principal: str, toolkit: ServerDefinition, server: ServerDefinition
    ) -> str:
        """Return the key of the session that a toolkit's session has with one of its members.

        `find` opens that session if there is none; it has no dyno before `launch`.

        Args:
            key: what the client presents: of the toolkit's session.
            principal: whose it is.
            toolkit: its definition.
            server: the member.

        Raises:
            UnknownSession: the key is not one of this principal and toolkit, or too old, its
                client has ended the session, or the server is no member (any more).
        """
        member = self._openings.member_key(key, principal, toolkit, server)
        ended = self.directory.ended(SessionKeys.fingerprint(key))
        if member is None or ended is Reason.CLIENT_DELETE:
            raise UnknownSession(UNKNOWN)
        return member

    async def alive(self, key: str, *, returning: bool = False) -> bool:
        """Return whether there is a session of this key, here or at another process.

        Args:
            key: that was issued.
            returning: wait for one whose agent may be on its way here, as `find` does.

        Raises:
            StoreUnavailable: nobody knows.
        """
        fingerprint = SessionKeys.fingerprint(key)
        if self.directory.get(fingerprint) is not None:
            return True
        if not returning:
            claim = await self.ownership.find(fingerprint)
            return claim is not None and not claim.ended
        try:
            return (await self._seek(key, fingerprint))[0] is not None
        except Elsewhere:
            return True

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
            Elsewhere: another process holds it.
            StoreUnavailable: nobody knows who does.
            Restarting: this process leaves.
            Busy: the gateway holds as many sessions as it may.
            UnknownServer: there is none yet, and the server is disconnected.
        """
        fingerprint = SessionKeys.lease(server.name, principal, handle)
        if self.draining:
            raise await self._not_here(fingerprint)
        live = await self._returned(fingerprint)
        if live is None:
            claim = await self.ownership.find(fingerprint)
            over = 0 if claim is None else claim.fence
            return await self._share_anew(fingerprint, server, principal, client, over)
        if not isinstance(live, SharedLive):
            raise UnknownSession("a session of another kind has this name")
        return live

    async def share_anew(self, server: ServerDefinition, principal: str, client: str) -> SharedLive:
        """Return a session like `share`, with a handle that nobody else knows."""
        fingerprint = SessionKeys.lease(server.name, principal, secrets.token_urlsafe(18))
        return await self._share_anew(fingerprint, server, principal, client)

    async def _share_anew(
        self,
        fingerprint: str,
        server: ServerDefinition,
        principal: str,
        client: str,
        over: int = 0,
    ) -> SharedLive:
        self._check_open()
        self.check_registered(server)
        await self._quotas.draw(principal)
        live = self._maker.shared(fingerprint, server, principal)
        await self.ownership.publish(live, over)
        other = self.directory.get(fingerprint)
        if isinstance(other, SharedLive):  # of a request beside this one
            self.ownership.changed(other)
            return other
        self._enter(live, client)
        return live

    async def _not_here(self, fingerprint: str) -> GatewayError:
        """Return what a request is told that comes while this process leaves.

        Raises:
            Elsewhere: where its session is.
        """
        if not self.store.alone:
            claim = await self.ownership.look(fingerprint)
            if claim is not None and not claim.ended:
                return Moved("this gateway process is shutting down; send the request again")
        return Restarting("this gateway process is shutting down; send the request again")

    async def _returned(self, fingerprint: str) -> Live | None:
        """Return a shared session; None if there is none, or its agent does not come back."""
        live = self.directory.here(fingerprint)
        if live is not None:
            return live
        if self.directory.get(fingerprint) is not None:
            return await self.directory.arrival(fingerprint, patience(HOLD_S))
        hold_s = HOLD_S
        if self.store.alone:
            hold_s = max(0.0, self.store.blank_since + RETURN_S - time.monotonic())
        found, away = await self._whereabouts.seek(fingerprint, Hold(hold_s, RETURN_S))
        if found is None and away and not self.store.alone:
            raise SessionAway(
                "the session's dyno has not dialled a gateway process yet; send the request again"
            )
        return found

    def contradicts(self, server: ServerDefinition, principal: str, handle: str) -> bool:
        """True when the child that these requests share has said something else than was told."""
        live = self.directory.get(SessionKeys.lease(server.name, principal, handle))
        return live is not None and live.session.contradicts

    async def issuer(self, seal: Seal, server: ServerDefinition) -> SharedLive:
        """Return the session whose child gave what a client brings back.

        Raises:
            StaleState: its dyno is gone, or another server's.
        """
        live = await self._returned(seal.fingerprint)
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
            Busy, QueueFull, BudgetSpent, UnknownMethod: see `launch`.
        """
        if live.record.over or live.handed_over:
            raise Restarting("the session has just ended; send the request again")
        if live.record.server.toolkit is not None:
            raise UnknownMethod("a toolkit has no such method: it has no child of its own")
        if live.record.state is not State.REQUESTED:
            return
        principal, adopting = live.record.principal, self.dynos.adopting
        count = self.fleet.book.count
        self._quotas.check(principal, count() + adopting, count(principal) + adopting)
        self.dynos.check_room(live)

    def launch(self, live: Live, face: Face) -> None:
        """Ask for a session's dyno, unless that was done; calls wait for the boot.

        Args:
            live: the session.
            face: the era that its child is to show.

        Raises:
            Busy: the gateway holds as many sessions with a dyno as it may.
            QueueFull, BudgetSpent: see `Fleet.check_room`.
            UnknownMethod: it is a toolkit's, which never has one.
        """
        record = live.record
        if record.state is not State.REQUESTED:
            return
        self.check_room(live)
        record.face = face
        record.move(Step.LAUNCH)
        live.session.start(time.monotonic())
        self.dynos.launch(live, self._tasks)
        self.ownership.changed(live)

    def end(self, live: Live, reason: Reason, error: GatewayError) -> None:
        """End a session: its calls are answered with `error`, its dyno is stopped."""
        record = live.record
        if record.over:
            return
        record.move(Step.END)
        self.emit(events.Closing(session=record.session_id, reason=reason))
        self.directory.remove(live, reason)
        self.ownership.ended(live, reason)
        live.fail(error, time.monotonic())
        self.dynos.close(live, reason, error, self._tasks)

    async def closed(self) -> None:
        """Wait until the sessions that are being closed have given their dynos back, or long."""
        await self.dynos.closed(DRAIN_S)

    # For agents

    async def recognise(self, credential: str, capsule: str) -> Live | Parked:
        """Return what an agent's credential leads to; see `Reception.recognise`.

        Raises:
            Restarting: this process leaves.
            TokenRefused: none.
            Elsewhere: a session that can live at another process only.
            StoreUnavailable: nobody knows.
        """
        if self.draining:
            raise Restarting("this gateway process is shutting down; dial again")
        try:
            found = await self.reception.recognise(credential, capsule)
        except StoreAway as error:
            raise StoreUnavailable(f"{error}; dial again") from error
        return found

    async def _call_elsewhere(self, live: Live, parked: Parked) -> None:
        await self.neighbours.call(live, parked)

    def _lost(self, live: Live) -> None:
        self.neighbours.lost(live)

    def attached(self, live: Live) -> None:
        """An agent has come with a session: from now on it is held here."""
        self.ownership.changed(live)

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
        elif session.booted and not live.lease.booted:
            live.lease.booted = True
            self.ownership.changed(live)  # from now on it can live elsewhere

    # The end of this process

    def keep_nothing(self) -> None:
        """Somebody at a terminal ends this process: `drain` shall end all sessions."""
        self._farewell.hands_over = False

    async def drain(self) -> None:
        """Take nothing new; hand every session over or end it, for a bounded time."""
        await self._farewell.drain()

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
