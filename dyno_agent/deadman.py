"""When an agent that nobody holds must leave. Pure: times in, answer out."""

from __future__ import annotations

from dataclasses import dataclass

from dyno_agent.slots import SLOTS


@dataclass(**SLOTS)
class DeadMan:
    """The agent's own clock against being forgotten.

    Attributes:
        allowance_s: how long it may go without an attachment: the start deadline before the first
            one, `orphan_s` of the WELCOME afterwards.
        parted: since when nobody held it, on the caller's monotonic clock; None while attached.
    """

    allowance_s: float
    parted: float | None

    def attached(self, allowance_s: float) -> None:
        """Somebody holds the agent; the next parting may last `allowance_s`."""
        self.allowance_s = allowance_s
        self.parted = None

    def lost(self, now: float) -> None:
        """Nobody holds the agent any more."""
        if self.parted is None:
            self.parted = now

    def remaining(self, now: float) -> float:
        """Return the seconds left before the agent must leave; infinity while attached."""
        if self.parted is None:
            return float("inf")
        return max(0.0, self.parted + self.allowance_s - now)
