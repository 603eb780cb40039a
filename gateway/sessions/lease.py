"""How long a session may live: times in, verdict out. Pure.

Activity is a message of the client or a running call. Heartbeats, keep-alive comments and an idle
GET stream are not, or a forgotten session would never stop costing money.
"""

from dataclasses import dataclass

from gateway.sessions.record import Reason


@dataclass(slots=True)
class Lease:
    """The clocks of one session, all monotonic seconds of one machine.

    Attributes:
        launched: when a dyno was asked for; None while the session needs none.
        boot_s: from `launched` until the child must have answered for the first time.
        idle_s: from the last activity until it ends.
        lifetime_s: from `launched` until it ends whatever it does; without a dyno, which costs
            nothing, from the last activity.
        grace_s: how long the agent may be out of reach.
        active: last activity.
        booted: it has.
        parted: since when the agent is out of reach, or None.
    """

    launched: float | None
    boot_s: float
    idle_s: float
    lifetime_s: float
    grace_s: float
    active: float
    booted: bool = False
    parted: float | None = None

    def verdict(self, now: float, *, calling: bool) -> Reason | None:
        """Return why the session must end now, or None while it may live.

        Args:
            now: monotonic seconds.
            calling: a call is running, which is activity.
        """
        if self.launched is None:
            return Reason.IDLE if now >= self.active + self.lifetime_s else None
        if now >= self.launched + self.lifetime_s:
            return Reason.LIFETIME
        if not self.booted and now >= self.launched + self.boot_s:
            return Reason.BOOT_TIMEOUT
        if self.parted is not None and now >= self.parted + self.grace_s:
            return Reason.LINK_LOST
        if self.booted and not calling and now >= self.active + self.idle_s:
            return Reason.IDLE
        return None
