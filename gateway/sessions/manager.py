"""The one registry of live sessions: create, find, end; launches; the one deadline loop.

It decides nothing about messages (session.py) or durations (lease.py): it owns the tasks.
"""

import asyncio
import contextlib
import secrets
import time
from dataclasses import dataclass, field
from typing import Self

from dyno_agent.link import DEFAULT_LIMITS, CloseCode, Endpoint, Hello, Limits
from gateway import events
from gateway.errors import (
    Busy,
    GatewayError,
    LaunchFailed,
    LinkLostError,
    SessionEnded,
    StartTimeout,
    UnknownSession,
)
from gateway.launchers.base import Dyno, Launcher, LaunchError, LaunchOrder
from gateway.registry.servers import ServerDefinition
from gateway.sessions.credentials import JoinDesk, SessionKeys, TokenRefused
from gateway.sessions.lease import Lease
from gateway.sessions.live import LADDER_S, Live
from gateway.sessions.record import Reason, SessionRecord, State, Step
from gateway.sessions.session import Session

TICK_S = 0.25
"""Period of the deadline loop: how late a limit may strike."""

AGENT_PATIENCE_S = 5.0
"""How much longer than ours the agent's start deadline is: we say first that it was missed, and
the agent leaves by itself only when nobody is there to stop it."""

LEAVE_S = LADDER_S + 3.0
"""How long an agent may take to end its child and go before its dyno is stopped from outside."""

DRAIN_S = 20.0
"""How long a shutdown waits for sessions to close; the platform kills after 30 s."""

STOP_S = 30.0
"""How long one stop call of a launcher may take."""

LIFETIME_SLACK_S = 300.0
"""The platform's own time limit lies this far behind ours: it is the last resort."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What the manager must know of the deployment.

    Attributes:
        url: base URL that agents dial.
        secret: seals session keys.
        max_sessions: live sessions at once.
        limits: of every link.
    """

    url: str
    secret: bytes = field(repr=False)
    max_sessions: int
    limits: Limits = DEFAULT_LIMITS


class Manager:
    """All live sessions of this gateway. Use it as an async context manager."""

    def __init__(self, launcher: Launcher, terms: Terms, emit: events.Sink) -> None:
        self._launcher = launcher
        self._terms = terms
        self._emit = emit
        self._keys = SessionKeys(terms.secret, secrets.token_urlsafe)
        self._desk = JoinDesk(secrets.token_urlsafe)
        self._live: dict[str, Live] = {}
        self._launching: dict[Live, asyncio.Task[None]] = {}
        self._closing: dict[Live, asyncio.Task[None]] = {}
        self._tasks = asyncio.TaskGroup()
        self._draining = False

    async def __aenter__(self) -> Self:
        """Start the loops."""
        await self._tasks.__aenter__()
        self._loops = [
            self._tasks.create_task(self._watch_deadlines(), name="deadlines"),
            self._tasks.create_task(self._reconcile(), name="reconciler"),
        ]
        return self

    async def __aexit__(self, *failure: object) -> None:
        """End every session, then the loops, then the launcher."""
        await self.drain()
        for task in (*self._loops, *self._launching.values(), *self._closing.values()):
            task.cancel()
        await self._tasks.__aexit__(None, None, None)
        await self._launcher.aclose()

    @property
    def sessions(self) -> int:
        """How many sessions live or are being closed."""
        return len(self._live) + len(self._closing)

    # For clients

    def create(self, server: ServerDefinition, principal: str, client: str) -> Live:
        """Make a session and start its launch; calls may be made at once and wait for the boot.

        Args:
            server: what to run.
            principal: whose it is.
            client: what the client calls itself, for the log.

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
        live = self._new(server, principal)
        record = live.record
        self._live[record.key] = live
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
        return live

    def _new(self, server: ServerDefinition, principal: str) -> Live:
        now = time.monotonic()
        key = self._keys.mint()
        record = SessionRecord(SessionKeys.public_id(key), key, principal, server, now)
        link = Endpoint(self._terms.limits, now=now)
        lease = Lease(
            created=now,
            boot_s=server.boot_timeout or self._launcher.boot_timeout_s,
            idle_s=server.idle_timeout,
            lifetime_s=server.max_lifetime,
            grace_s=self._launcher.grace_s,
            active=now,
        )
        return Live(Session(record, link, self._emit, server.call_timeout), lease, self._emit)

    def find(self, key: str, principal: str, server: str) -> Live:
        """Return the live session that a client presents.

        Raises:
            UnknownSession: no such session, or not of this principal and server.
        """
        live = self._live.get(key)
        if live is None or live.record.principal != principal or live.record.server.name != server:
            raise UnknownSession(
                "unknown session: it has ended or never existed; send `initialize` again"
            )
        return live

    def end(self, live: Live, reason: Reason, error: GatewayError) -> None:
        """End a session: its calls are answered with `error`, its dyno is stopped."""
        record = live.record
        if record.over:
            return
        now = time.monotonic()
        record.move(Step.END)
        self._emit(events.Closing(session=record.session_id, reason=reason))
        del self._live[record.key]
        live.fail(error, now)
        self._closing[live] = self._tasks.create_task(
            self._close(live, reason, error), name=f"close {record.session_id}"
        )

    # For agents

    def recognise(self, credential: str) -> Live:
        """Return the session that an agent's credential leads to.

        Raises:
            TokenRefused: none.
        """
        key = self._desk.recognise(credential, time.monotonic())
        live = self._live.get(key)
        if live is None:
            raise TokenRefused
        return live

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
        """End the session if what it just received says so."""
        if live.session.ending is not None:
            self.end(live, live.session.ending.reason, live.session.ending.error)
        elif live.session.booted:
            live.lease.booted = True

    # Launching and closing

    async def _launch(self, live: Live) -> None:
        record, server = live.record, live.record.server
        deadline = record.created + live.lease.boot_s
        token = self._desk.mint(record.launch_id, record.key, deadline)
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
            self.end(live, Reason.BOOT_TIMEOUT, _boot_timeout(live))
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
        if record.dyno_id is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_S):
                    await self._launcher.stop(record.dyno_id)
        record.move(Step.GONE)
        self._closing.pop(live, None)
        seconds = time.monotonic() - record.created
        self._emit(
            events.Closed(
                session=record.session_id,
                reason=reason,
                seconds=round(seconds, 3),
                calls=record.calls,
                detail=error.message if reason in _UNEXPECTED else "",
            )
        )

    @property
    def draining(self) -> bool:
        """True once nothing new is taken."""
        return self._draining

    async def drain(self) -> None:
        """Take nothing new, end every session, and wait for their dynos, for a bounded time."""
        self._draining = True
        for live in list(self._live.values()):
            self.end(
                live,
                Reason.DRAINED,
                SessionEnded("the gateway is shutting down; send `initialize` again in a moment"),
            )
        if self._closing:
            await asyncio.wait(self._closing.values(), timeout=DRAIN_S)

    # Loops

    async def _watch_deadlines(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            for live in list(self._live.values()):
                self._tick(live, time.monotonic())

    def _tick(self, live: Live, now: float) -> None:
        live.perform(live.session.tick(now))
        live.lease.active = live.session.active
        reason = live.lease.verdict(now, calling=live.session.calling)
        if reason is not None:
            self.end(live, reason, _overdue(live, reason))

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


_UNEXPECTED = {
    Reason.PROCESS_EXIT,
    Reason.BOOT_FAILED,
    Reason.BOOT_TIMEOUT,
    Reason.LINK_LOST,
    Reason.BREACH,
}


def _boot_timeout(live: Live) -> StartTimeout:
    server, limit_s = live.record.server.name, live.lease.boot_s
    if live.record.state is State.LAUNCHING:
        return StartTimeout(
            f"no agent dialled back within {limit_s:.0f} s (boot_timeout of {server}); the dyno "
            "was stopped. Can it reach GATEWAY_URL?"
        )
    said = "\n".join(live.session.last_words)
    return StartTimeout(
        f"{server} did not answer within {limit_s:.0f} s (its boot_timeout); the dyno was stopped. "
        + (f"Its last words on stderr:\n{said}" if said else "It wrote nothing on stderr.")
    )


def _overdue(live: Live, reason: Reason) -> GatewayError:
    server, lease = live.record.server.name, live.lease
    match reason:
        case Reason.BOOT_TIMEOUT:
            return _boot_timeout(live)
        case Reason.LINK_LOST:
            return LinkLostError(
                f"the dyno was out of reach for more than {lease.grace_s:.0f} s; "
                "send `initialize` again"
            )
        case Reason.LIFETIME:
            return SessionEnded(
                f"the session reached the longest life of {server}: {lease.lifetime_s:.0f} s "
                "(max_lifetime); send `initialize` again"
            )
        case _:
            return SessionEnded(f"the session was ended: {reason}; send `initialize` again")
