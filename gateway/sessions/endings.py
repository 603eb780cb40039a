"""How a session's end is told to those who wait for it."""

from gateway.errors import GatewayError, LinkLostError, SessionEnded, StartTimeout
from gateway.sessions.live import Live
from gateway.sessions.record import Reason, State

UNEXPECTED = {
    Reason.PROCESS_EXIT,
    Reason.BOOT_FAILED,
    Reason.BOOT_TIMEOUT,
    Reason.LINK_LOST,
    Reason.BREACH,
}
"""Reasons that an operator wants to read more about."""


def boot_timeout(live: Live) -> StartTimeout:
    """Return what callers are told when the boot took too long."""
    server, limit_s = live.record.server.name, live.lease.boot_s
    if live.record.state is State.LAUNCHING:
        return StartTimeout(
            f"no agent dialled back within {limit_s:.0f} s (boot_timeout of {server}); the dyno "
            "was stopped. Can it reach GATEWAY_URL?"
        )
    said = "\n".join(live.session.chatter.last_words)
    return StartTimeout(
        f"{server} did not answer within {limit_s:.0f} s (its boot_timeout); the dyno was stopped. "
        + (f"Its last words on stderr:\n{said}" if said else "It wrote nothing on stderr.")
    )


def overdue(live: Live, reason: Reason) -> GatewayError:
    """Return what callers are told when the lease ends a session."""
    server, lease = live.record.server.name, live.lease
    match reason:
        case Reason.BOOT_TIMEOUT:
            return boot_timeout(live)
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
