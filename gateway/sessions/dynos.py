"""Dynos of sessions: got, given back, and found dead. The only room that calls a launcher."""

import asyncio
import contextlib
import time
from collections.abc import Callable

from dyno_agent.link import CloseCode
from gateway import events
from gateway.errors import GatewayError, LaunchFailed, LinkLostError
from gateway.launchers.base import Dyno, Launcher, LaunchError, LaunchOrder
from gateway.sessions.credentials import JoinDesk
from gateway.sessions.directory import Directory
from gateway.sessions.endings import UNEXPECTED, boot_timeout
from gateway.sessions.live import LADDER_S, Live
from gateway.sessions.record import Reason, State, Step

AGENT_PATIENCE_S = 5.0
"""How much longer than ours the agent's start deadline is: we say first that it was missed, and
the agent leaves by itself only when nobody is there to stop it."""

LEAVE_S = LADDER_S + 3.0
"""How long an agent may take to end its child and go before its dyno is stopped from outside."""

STOP_S = 30.0
"""How long one stop call of a launcher may take."""

LIFETIME_SLACK_S = 300.0
"""The platform's own time limit lies this far behind ours: it is the last resort."""

End = Callable[[Live, Reason, GatewayError], None]


class Dynos:
    """Launches and stops the dynos of sessions.

    Args:
        launcher: makes dynos.
        desk: mints join tokens.
        url: base URL that agents dial.
        emit: hears events.
        end: ends a session whose dyno cannot be had or is gone.
    """

    def __init__(
        self, launcher: Launcher, desk: JoinDesk, url: str, emit: events.Sink, end: End
    ) -> None:
        self._launcher = launcher
        self._desk = desk
        self._url = url
        self._emit = emit
        self._end = end
        self._launching: dict[Live, asyncio.Task[None]] = {}
        self._closing: dict[Live, asyncio.Task[None]] = {}

    @property
    def boot_timeout_s(self) -> float:
        """How long a boot may take unless a server says otherwise."""
        return self._launcher.boot_timeout_s

    @property
    def launcher(self) -> str:
        """Name of the launcher, for the log."""
        return self._launcher.name

    @property
    def closing(self) -> int:
        """How many sessions are being closed."""
        return len(self._closing)

    def launch(self, live: Live, tasks: asyncio.TaskGroup) -> None:
        """Ask for a session's dyno."""
        name = f"launch {live.record.session_id}"
        self._launching[live] = tasks.create_task(self._launch(live), name=name)

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

    async def aclose(self, left: list[str]) -> None:
        """Stop what is left, and let go of the launcher."""
        async with asyncio.TaskGroup() as stops:
            for dyno_id in left:
                stops.create_task(self._launcher.stop(dyno_id))
        await self._launcher.aclose()

    async def _launch(self, live: Live) -> None:
        record, lease = live.record, live.lease
        token = self._desk.mint(
            record.launch_id, record.fingerprint, time.monotonic() + lease.boot_s
        )
        order = LaunchOrder(
            launch_id=record.launch_id,
            server=record.server.name,
            environment={
                "RENDEZVOUS_URL": self._url,
                "RENDEZVOUS_JOIN_TOKEN": token,
                "RENDEZVOUS_START_DEADLINE_S": str(lease.boot_s + AGENT_PATIENCE_S),
            },
            size=record.server.size,
            lifetime_s=lease.lifetime_s + LIFETIME_SLACK_S,
        )
        try:
            async with asyncio.timeout(lease.boot_s):
                dyno = await self._launcher.launch(order)
        except LaunchError as failure:
            error = LaunchFailed(f"no dyno could be had for {record.server.name}: {failure}")
            self._end(live, Reason.BOOT_FAILED, error)
        except TimeoutError:
            self._end(live, Reason.BOOT_TIMEOUT, boot_timeout(live))
        else:
            record.dyno_id = dyno.dyno_id
            self._emit(
                events.Launched(
                    session=record.session_id, launch=record.launch_id, dyno=dyno.dyno_id
                )
            )
            live.tell_phase("the dyno boots")
        finally:
            del self._launching[live]
            live.launched.set()

    async def _close(self, live: Live, reason: Reason, error: GatewayError) -> None:
        record = live.record
        if record.launch_id:
            await self._give_back(live)
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

    async def _give_back(self, live: Live) -> None:
        record = live.record
        if live.attached:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LEAVE_S):
                    if live.session.child_runs:
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

    async def _dyno_of(self, launch_id: str) -> str | None:
        """Return the launcher's name of a dyno that an earlier process has launched."""
        dynos = await self._launcher.list()
        return next((dyno.dyno_id for dyno in dynos if dyno.launch_id == launch_id), None)

    async def reconcile(self, directory: Directory) -> None:
        """Notice dynos that ended without a word, long before any deadline would."""
        while True:
            await asyncio.sleep(self._launcher.poll_s)
            by_launch = {live.record.launch_id: live for live in directory}
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
            self._end(live, Reason.BOOT_FAILED, LaunchFailed(what))
        else:
            self._end(live, Reason.LINK_LOST, LinkLostError(what))
