"""How a session stands whose gateway process may be gone. Pure."""

from collections.abc import Set

from gateway.ops.story import Summary

CLOSED = "closed"

MOST_MISSED = 1000
"""Processes that are gone and still named."""


class Standing:
    """What is told of sessions that nobody tells about any more.

    A process that dies leaves its sessions as they were. Their agents dial the other processes, and
    are given up after the grace period: so they are parted until then, and closed afterwards.

    Args:
        grace_s: how long an agent may be out of reach.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._missed: dict[str, float] = {}

    def look(self, named: Set[str], alive: Set[str], now: float) -> None:
        """Note which processes are gone.

        Args:
            named: ids of some that sessions say they are at.
            alive: ids of those that live.
            now: wall-clock seconds.
        """
        for name in named & alive:
            self._missed.pop(name, None)
        for name in named - alive - {""}:
            self._missed.setdefault(name, now)
        while len(self._missed) > MOST_MISSED:
            del self._missed[next(iter(self._missed))]

    def of(self, summary: Summary, now: float) -> tuple[str, str, float]:
        """Return a session's state, the reason of its end, and when that was (0: not yet)."""
        missed = self._missed.get(summary.gateway)
        if missed is None or summary.state == CLOSED:
            return summary.state or "unknown", summary.reason, summary.ended
        end = missed + self._grace_s
        if now < end:
            return "parted", summary.reason, 0.0
        return CLOSED, summary.reason or "link_lost", end

    def gone(self, summary: Summary) -> bool:
        """True if the process that had a session is not alive."""
        return summary.gateway in self._missed
