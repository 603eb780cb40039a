"""What operators do to sessions."""

import asyncio
from collections.abc import Callable

from gateway.errors import GatewayError, SessionEnded
from gateway.fleet.fleet import Fleet
from gateway.sessions.directory import Directory
from gateway.sessions.live import Live
from gateway.sessions.record import Reason

End = Callable[[Live, Reason, GatewayError], None]
"""See `Manager.end`."""


class Supervision:
    """Ends what an operator names.

    Args:
        directory: the sessions that live here.
        fleet: all dynos.
        end: ends a session.
        tasks: for what takes a while.
    """

    def __init__(
        self, directory: Directory, fleet: Fleet, end: End, tasks: asyncio.TaskGroup
    ) -> None:
        self._directory = directory
        self._fleet = fleet
        self._end = end
        self._tasks = tasks

    def kill(self, session_id: str) -> bool:
        """End a session; return False if none of this name lives here."""
        for live in self._directory:
            if live.record.session_id == session_id:
                self._end(live, Reason.OPERATOR, SessionEnded("an operator has ended the session"))
                return True
        return False

    def stop(self, launch_id: str, dyno_id: str, app: str | None) -> None:
        """Stop the dyno of a session that no process holds, soon.

        Args:
            launch_id: of the dyno.
            dyno_id: the launcher's name of it; empty if nobody has said.
            app: in which it runs, where there are apps.
        """
        stopping = self._fleet.stop(launch_id, dyno_id or None, app)
        self._tasks.create_task(stopping, name=f"stop {launch_id}")
