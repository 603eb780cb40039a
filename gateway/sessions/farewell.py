"""The end of this process: sessions are handed over to others, or ended, for a bounded time."""

import asyncio
import time

from dyno_agent.link import CloseCode
from gateway import events
from gateway.errors import Restarting, SessionEnded
from gateway.sessions.directory import Directory
from gateway.sessions.dynos import Dynos, End
from gateway.sessions.live import Live, OwnedLive, SharedLive
from gateway.sessions.ownership import Ownership
from gateway.sessions.reconciler import Reconciler
from gateway.sessions.record import Reason

DRAIN_S = 20.0
"""How long a shutdown waits in all for calls whose clients cannot come back, for sessions to close
and for the pool to empty; the platform kills after 30 s."""

TICK_S = 0.25
"""How often it is looked whether a session can go."""


class Farewell:
    """Takes leave of all sessions.

    Args:
        directory: the sessions that live here.
        ownership: knows whether there are other processes, and tells them.
        dynos: of the sessions, and the pool.
        reconciler: shall act on what it was told.
        end: ends a session.
        hands_over: sessions are left to other processes, now or later; else they end.
    """

    def __init__(
        self,
        directory: Directory,
        ownership: Ownership,
        dynos: Dynos,
        reconciler: Reconciler,
        end: End,
        *,
        hands_over: bool,
    ) -> None:
        self._directory = directory
        self._ownership = ownership
        self._dynos = dynos
        self._reconciler = reconciler
        self._end = end
        self.hands_over = hands_over
        self._over_by: float | None = None

    async def drain(self) -> None:
        """Take nothing new; hand every session over or end it."""
        if self._over_by is None:
            self._over_by = time.monotonic() + DRAIN_S
        deadline = self._over_by
        self._directory.drain()
        self._dynos.pool.drain()
        await self._reconciler.hurry()
        ended = SessionEnded("the gateway is shutting down; send `initialize` again in a moment")
        for live in self._directory:
            # Alone, one that has not booted ends: nobody else knows its join token.
            movable = live.may_be_handed_over if self._ownership.alone else live.movable
            if not self.hands_over or not movable:
                error = ended if isinstance(live, OwnedLive) else _restarting()
                self._end(live, Reason.DRAINED, error)
        await self._hand_over(deadline)
        await self._dynos.closed(max(0.0, deadline - time.monotonic()))
        await self._dynos.pool.drained(max(0.0, deadline - time.monotonic()))

    async def _hand_over(self, deadline: float) -> None:
        """Leave the sessions to other processes.

        Streams whose clients come back end at once; calls of others get time to be answered, and
        then an error that they may be sent again.
        """
        async with asyncio.TaskGroup() as farewells:
            while len(self._directory):
                for live in self._directory:
                    if not self._stays(live) or time.monotonic() >= deadline:
                        self._let_go(live)
                        farewells.create_task(live.refuse(CloseCode.DRAIN))
                await asyncio.sleep(TICK_S)

    def _stays(self, live: Live) -> bool:
        """Whether a session has calls that can be answered here only; ends all other streams."""
        live.soon = not self._ownership.alone
        calls = live.hand_over()
        if self._ownership.alone or (isinstance(live, SharedLive) and live.carried):
            return calls
        return live.telling

    def _let_go(self, live: Live) -> None:
        calls = live.session.calls
        self._directory.remove(live, None)
        self._ownership.released(live)
        if self._ownership.alone:
            live.handed_over = True
            live.fail(_restarting(), time.monotonic(), all_calls=False)
        else:
            live.leave()
            self._dynos.let_go(live)
        told = events.HandedOver(session=live.record.session_id, calls=calls)
        self._dynos.fleet.emit(told)


def _restarting() -> Restarting:
    return Restarting("this gateway process is shutting down; send the request again")
