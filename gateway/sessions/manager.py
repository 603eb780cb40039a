"""The one registry of live sessions: create, find, end; launches; the one deadline loop.

It decides nothing about messages (session.py) or durations (lease.py): it owns the tasks.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from dyno_agent.link import DEFAULT_LIMITS, CloseCode, Endpoint, Hello, Limits, Welcome
from gateway import events
from gateway.errors import (
    Busy,
    GatewayError,
    LaunchFailed,
    LinkLostError,
    Restarting,
    SessionAway,
    SessionEnded,
    UnknownSession,
)
from gateway.launchers.base import Dyno, Launcher, LaunchError, LaunchOrder
from gateway.registry.servers import Registry, ServerDefinition
from gateway.sessions.capsule import BadCapsule, Capsule, Sealer
from gateway.sessions.credentials import JoinDesk, SessionKeys, TokenRefused, proof_of
from gateway.sessions.endings import UNEXPECTED, boot_timeout, overdue
from gateway.sessions.lease import Lease
from gateway.sessions.live import LADDER_S, Live, OwnedLive
from gateway.sessions.owned import OwnedSession
from gateway.sessions.record import Reason, SessionRecord, State, Step

TICK_S = 0.25
"""Period of the deadline loop: how late a limit may strike."""

AGENT_PATIENCE_S = 5.0
"""How much longer than ours the agent's start deadline is: we say first that it was missed, and
the agent leaves by itself only when nobody is there to stop it."""

LEAVE_S = LADDER_S + 3.0
"""How long an agent may take to end its child and go before its dyno is stopped from outside."""

DRAIN_S = 20.0
"""How long a shutdown waits for sessions to close, or for calls whose clients cannot come back; the
platform kills after 30 s."""

HOLD_S = 15.0
"""How long a request waits for the agent of a session that this process has not seen yet."""

MAX_ENDED = 10_000
"""Sessions that are remembered as ended, so that no late agent brings one back."""

STOP_S = 30.0
"""How long one stop call of a launcher may take."""

LIFETIME_SLACK_S = 300.0
"""The platform's own time limit lies this far behind ours: it is the last resort."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What the manager must know of the deployment.

    Attributes:
        url: base URL that agents dial.
        secret: seals session keys and capsules.
        max_sessions: live sessions at once.
        grace_s: how long an agent may be out of reach before its session ends.
        hand_over: another process will have the same secret: a shutdown leaves sessions to it.
        limits: of every link.
        wall_clock: seconds since 1970; gateway processes compare it with one another's only.
    """

    url: str
    secret: bytes = field(repr=False)
    max_sessions: int
    grace_s: float = 300.0
    hand_over: bool = False
    limits: Limits = DEFAULT_LIMITS
    wall_clock: Callable[[], float] = time.time  # noqa: TID251 - outlives a process, see capsule.py


class Manager:
    """All live sessions of this gateway. Use it as an async context manager."""

    def __init__(
        self,
        launcher: Launcher,
        registry: Registry,
        terms: Terms,
        emit: events.Sink,
    ) -> None:
        self._launcher = launcher
        self._registry = registry
        self._terms = terms
        self._emit = emit
        self._keys = SessionKeys(terms.secret, secrets.token_urlsafe)
        self._desk = JoinDesk(secrets.token_urlsafe)
        self._sealer = Sealer(terms.secret)
        self._started = time.monotonic()
        self._live: dict[str, OwnedLive] = {}
        self._ended: dict[str, None] = {}
        self._arrivals = asyncio.Event()
        self._awaited = 0
        self._launching: dict[Live, asyncio.Task[None]] = {}
        self._closing: dict[Live, asyncio.Task[None]] = {}
        self._tasks = asyncio.TaskGroup()
        self._draining = False
        self._hands_over = terms.hand_over

    async def __aenter__(self) -> Self:
        """Start the loops."""
        await self._tasks.__aenter__()
        self._loops = [
            self._tasks.create_task(self._watch_deadlines(), name="deadlines"),
            self._tasks.create_task(self._reconcile(), name="reconciler"),
        ]
        return self

    async def __aexit__(self, *failure: object) -> None:
        """End or hand over every session, then the loops, then the launcher."""
        await self.drain()
        left = [live.record.dyno_id for live in self._closing]
        for task in (*self._loops, *self._launching.values(), *self._closing.values()):
            task.cancel()
        await self._tasks.__aexit__(None, None, None)
        async with asyncio.TaskGroup() as stops:
            for dyno_id in left:
                if dyno_id is not None:
                    stops.create_task(self._launcher.stop(dyno_id))
        await self._launcher.aclose()

    @property
    def sessions(self) -> int:
        """How many sessions live or are being closed."""
        return len(self._live) + len(self._closing)

    # For clients

    def create(
        self, server: ServerDefinition, principal: str, client: str
    ) -> tuple[str, OwnedLive]:
        """Make a session and start its launch; calls may be made at once and wait for the boot.

        Args:
            server: what to run.
            principal: whose it is.
            client: what the client calls itself, for the log.

        Returns:
            The key that its client shall present, and the session.

        Raises:
            Busy: the gateway holds as many sessions as it may, or is shutting down.
        """
        if self._draining:
            raise Busy("this gateway is shutting down; try again in a moment")
        if self.sessions >= self._terms.max_sessions:
            raise Busy(
                f"this gateway holds its limit of {self._terms.max_sessions} sessions "
                "(MAX_SESSIONS); end one or try again later"
            )
        key = self._keys.mint()
        live = self._new(SessionKeys.fingerprint(key), server, principal, age_s=0.0)
        record = live.record
        self._live[record.fingerprint] = live
        self._emit(
            events.Requested(
                session=record.session_id, server=server.name, principal=principal, client=client
            )
        )
        record.launch_id = secrets.token_hex(12)
        record.move(Step.LAUNCH)
        self._emit(
            events.Launching(
                session=record.session_id, launch=record.launch_id, launcher=self._launcher.name
            )
        )
        self._launching[live] = self._tasks.create_task(
            self._launch(live), name=f"launch {record.session_id}"
        )
        return key, live

    def _new(
        self, fingerprint: str, server: ServerDefinition, principal: str, age_s: float
    ) -> OwnedLive:
        now = time.monotonic()
        session_id = SessionKeys.public_id(fingerprint)
        record = SessionRecord(session_id, fingerprint, principal, server, now - age_s)
        link = Endpoint(self._terms.limits, now=now)
        lease = Lease(
            created=record.created,
            boot_s=server.boot_timeout or self._launcher.boot_timeout_s,
            idle_s=server.idle_timeout,
            lifetime_s=server.max_lifetime,
            grace_s=self._terms.grace_s,
            active=now,
        )
        return OwnedLive(
            OwnedSession(record, link, self._emit, server.call_timeout), lease, self._emit
        )

    async def find(self, key: str, principal: str, server: str) -> OwnedLive:
        """Return the live session that a client presents.

        One that this process never saw, though the key is ours, may be on its way: its agent
        redials until its grace period is over.

        Raises:
            Restarting: this process leaves.
            SessionAway: the agent has not come yet.
            UnknownSession: no such session, or not of this principal and server.
        """
        if self._draining:
            raise Restarting("this gateway process is shutting down; send the request again")
        fingerprint = SessionKeys.fingerprint(key)
        live = self._live.get(fingerprint)
        if self._may_come(key, fingerprint) if live is None else live.arriving:
            live = await self._arrival(fingerprint)
        if live is None or live.record.principal != principal or live.record.server.name != server:
            raise UnknownSession(
                "unknown session: it has ended or never existed; send `initialize` again"
            )
        return live

    def _may_come(self, key: str, fingerprint: str) -> bool:
        up_s = time.monotonic() - self._started
        return (
            fingerprint not in self._ended
            and up_s < self._terms.grace_s + HOLD_S
            and self._terms.hand_over
            and self._keys.issued(key)
        )

    async def _arrival(self, fingerprint: str) -> OwnedLive:
        """Wait for the agent of a session, for a bounded time."""
        self._awaited += 1
        try:
            async with asyncio.timeout(HOLD_S):
                while (live := self._live.get(fingerprint)) is None or live.arriving:
                    if self._draining:
                        break
                    await self._arrivals.wait()
                else:
                    return live
        except TimeoutError:
            pass
        finally:
            self._awaited -= 1
        raise SessionAway(
            "the session's dyno has not dialled this gateway process yet; send the request again"
        )

    def end(self, live: Live, reason: Reason, error: GatewayError) -> None:
        """End a session: its calls are answered with `error`, its dyno is stopped."""
        record = live.record
        if record.over:
            return
        now = time.monotonic()
        record.move(Step.END)
        self._emit(events.Closing(session=record.session_id, reason=reason))
        del self._live[record.fingerprint]
        self._ended[record.fingerprint] = None
        if len(self._ended) > MAX_ENDED:
            del self._ended[next(iter(self._ended))]
        live.fail(error, now)
        self._closing[live] = self._tasks.create_task(
            self._close(live, reason, error), name=f"close {record.session_id}"
        )

    # For agents

    def recognise(self, credential: str, capsule: str) -> Live:
        """Return the session that an agent's credential leads to, rebuilt if need be.

        Raises:
            Restarting: this process leaves.
            TokenRefused: none.
        """
        if self._draining:
            raise Restarting("this gateway process is shutting down; dial again")
        try:
            fingerprint = self._desk.recognise(credential, time.monotonic())
        except TokenRefused:
            return self._hydrate(credential, capsule)
        live = self._live.get(fingerprint)
        if live is None:
            raise TokenRefused
        return live

    def _hydrate(self, credential: str, text: str) -> Live:
        """Rebuild a session from what its agent carries."""
        launch_id, proof = proof_of(credential)
        try:
            capsule = self._sealer.open(text)
        except BadCapsule:
            raise TokenRefused from None
        server = self._registry.find(capsule.server)
        age_s = max(0.0, self._terms.wall_clock() - capsule.created)
        if (
            (capsule.launch_id, capsule.proof) != (launch_id, proof)
            or capsule.fingerprint in self._ended
            or capsule.fingerprint in self._live
            or server is None
            or age_s >= server.max_lifetime
        ):
            raise TokenRefused
        live = self._new(capsule.fingerprint, server, capsule.principal, age_s)
        record, now = live.record, time.monotonic()
        record.state, record.launch_id, record.dyno_id = State.PARTED, launch_id, capsule.dyno_id
        live.lease.parted = live.lease.active = live.session.active = now
        live.fresh, live.epoch = True, capsule.epoch
        live.lease.booted = True
        live.launched.set()
        self._desk.adopt(launch_id, capsule.fingerprint, proof, capsule.boot_id)
        self._live[capsule.fingerprint] = live
        self._emit(
            events.Hydrated(
                session=record.session_id,
                server=server.name,
                principal=record.principal,
                launch=launch_id,
                age_s=round(age_s, 3),
            )
        )
        return live

    def welcome(self, live: Live, hello: Hello) -> Welcome:
        """Return what to answer to a HELLO, with the capsule that the agent shall carry."""
        record = live.record
        capsule = Capsule(
            launch_id=record.launch_id,
            fingerprint=record.fingerprint,
            principal=record.principal,
            server=record.server.name,
            created=self._terms.wall_clock() - (time.monotonic() - record.created),
            proof=hello.proof,
            boot_id=hello.boot_id,
            epoch=live.epoch,
            dyno_id=record.dyno_id,
        )
        return live.welcome(hello, self._sealer.seal(capsule))

    def admit(self, credential: str, hello: Hello) -> None:
        """Burn a join token, or check a resume; see `JoinDesk.burn` for what it raises."""
        self._desk.burn(credential, hello.proof, hello.boot_id)

    def breach(self, live: Live, cause: str) -> None:
        """An agent broke the rules: its session is over, and nobody else's."""
        if live.record.over:
            return
        self._emit(events.Breach(session=live.record.session_id, cause=cause))
        self.end(
            live,
            Reason.BREACH,
            SessionEnded("the session was ended: its agent broke the link protocol"),
        )

    def settle(self, live: Live) -> None:
        """Act on what a session has just received: its end, its first answer, its arrival."""
        if self._awaited and not live.arriving:
            self._arrivals.set()
            self._arrivals.clear()
        if live.session.ending is not None:
            self.end(live, live.session.ending.reason, live.session.ending.error)
        elif live.session.booted:
            live.lease.booted = True

    # Launching and closing

    async def _launch(self, live: Live) -> None:
        record, server = live.record, live.record.server
        deadline = record.created + live.lease.boot_s
        token = self._desk.mint(record.launch_id, record.fingerprint, deadline)
        order = LaunchOrder(
            launch_id=record.launch_id,
            server=server.name,
            environment={
                "RENDEZVOUS_URL": self._terms.url,
                "RENDEZVOUS_JOIN_TOKEN": token,
                "RENDEZVOUS_START_DEADLINE_S": str(live.lease.boot_s + AGENT_PATIENCE_S),
            },
            size=server.size,
            lifetime_s=live.lease.lifetime_s + LIFETIME_SLACK_S,
        )
        try:
            async with asyncio.timeout(live.lease.boot_s):
                dyno = await self._launcher.launch(order)
        except LaunchError as failure:
            error = LaunchFailed(f"no dyno could be had for {server.name}: {failure}")
            self.end(live, Reason.BOOT_FAILED, error)
        except TimeoutError:
            self.end(live, Reason.BOOT_TIMEOUT, boot_timeout(live))
        else:
            record.dyno_id = dyno.dyno_id
            self._emit(
                events.Launched(
                    session=record.session_id, launch=record.launch_id, dyno=dyno.dyno_id
                )
            )
        finally:
            del self._launching[live]
            live.launched.set()

    async def _close(self, live: Live, reason: Reason, error: GatewayError) -> None:
        """Let the agent end its child in good order, then make sure that the dyno is gone."""
        record = live.record
        if live.attached:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LEAVE_S):
                    if live.session.ending is None:
                        live.ask_to_stop()
                    await live.gone.wait()
        self._desk.forget(record.launch_id)
        await live.refuse(CloseCode.SESSION_ENDED)
        await live.launched.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                dyno_id = record.dyno_id or await self._dyno_of(record.launch_id)
                if dyno_id is not None:
                    await self._launcher.stop(dyno_id)
        record.move(Step.GONE)
        self._closing.pop(live, None)
        seconds = time.monotonic() - record.created
        self._emit(
            events.Closed(
                session=record.session_id,
                reason=reason,
                seconds=round(seconds, 3),
                calls=record.calls,
                dropped=live.session.chatter.dropped,
                peak_buffer_bytes=live.session.link.peak_bytes,
                detail=error.message if reason in UNEXPECTED else "",
            )
        )

    @property
    def draining(self) -> bool:
        """True once nothing new is taken."""
        return self._draining

    async def _dyno_of(self, launch_id: str) -> str | None:
        """Return the launcher's name of a dyno that an earlier process has launched."""
        dynos = await self._launcher.list()
        return next((dyno.dyno_id for dyno in dynos if dyno.launch_id == launch_id), None)

    def keep_nothing(self) -> None:
        """Somebody at a terminal ends this process: `drain` shall end all sessions."""
        self._hands_over = False

    async def drain(self) -> None:
        """Take nothing new; hand every session over or end it, for a bounded time."""
        self._draining = True
        self._arrivals.set()
        if self._hands_over:
            await self._hand_over()
        for live in list(self._live.values()):
            self.end(
                live,
                Reason.DRAINED,
                SessionEnded("the gateway is shutting down; send `initialize` again in a moment"),
            )
        if self._closing:
            await asyncio.wait(self._closing.values(), timeout=DRAIN_S)

    async def _hand_over(self) -> None:
        """Leave the sessions to the next process.

        Streams whose clients come back end at once; calls of others get time to be answered, and
        then an error that they may be sent again.
        """
        deadline = time.monotonic() + DRAIN_S
        async with asyncio.TaskGroup() as farewells:
            # One that has not booted ends: nobody else knows its join token.
            while waiting := [live for live in self._live.values() if live.lease.booted]:
                for live in waiting:
                    if not live.hand_over() or time.monotonic() >= deadline:
                        self._let_go(live)
                        farewells.create_task(live.refuse(CloseCode.DRAIN))
                await asyncio.sleep(TICK_S)

    def _let_go(self, live: Live) -> None:
        del self._live[live.record.fingerprint]
        live.handed_over = True
        calls = live.session.calls
        live.fail(
            Restarting("this gateway process is shutting down; send the request again"),
            time.monotonic(),
            all_calls=False,
        )
        self._emit(events.HandedOver(session=live.record.session_id, calls=calls))

    # Loops

    async def _watch_deadlines(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            for live in list(self._live.values()):
                self._tick(live, time.monotonic())

    def _tick(self, live: Live, now: float) -> None:
        live.perform(live.session.tick(now))
        live.lease.active = live.session.active
        reason = live.lease.verdict(now, calling=live.session.calls > 0)
        if reason is not None:
            self.end(live, reason, overdue(live, reason))

    async def _reconcile(self) -> None:
        """Notice dynos that ended without a word, long before any deadline would."""
        while True:
            await asyncio.sleep(self._launcher.poll_s)
            by_launch = {live.record.launch_id: live for live in self._live.values()}
            for dyno in await self._launcher.list():
                live = by_launch.get(dyno.launch_id)
                if live is None or dyno.exit_status is None or live.attached:
                    continue
                self._dyno_gone(live, dyno)

    def _dyno_gone(self, live: Live, dyno: Dyno) -> None:
        what = (
            f"the dyno ended with status {dyno.exit_status} and without a word on the link. Its "
            f"own log ends with:\n{dyno.last_words.strip()}"
        )
        if live.record.state is State.LAUNCHING:
            self.end(live, Reason.BOOT_FAILED, LaunchFailed(what))
        else:
            self.end(live, Reason.LINK_LOST, LinkLostError(what))
