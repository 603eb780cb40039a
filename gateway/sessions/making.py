"""Sessions from their facts: new ones, and those that are rebuilt."""

import secrets
import time
from typing import TYPE_CHECKING

from dyno_agent.link import DEFAULT_LIMITS, Endpoint, Limits
from gateway.fleet.fleet import Fleet
from gateway.registry.servers import Registry, ServerDefinition
from gateway.sessions.keys import SessionKeys
from gateway.sessions.lease import Lease
from gateway.sessions.live import OwnedLive, SharedLive
from gateway.sessions.owned import OwnedSession
from gateway.sessions.record import SessionRecord
from gateway.sessions.seals import Seals
from gateway.sessions.shared import SharedSession

if TYPE_CHECKING:
    from gateway.sessions.streams import Outbox
    from gateway.sessions.tracing import Tracing


class Maker:
    """Makes sessions that nobody knows yet.

    Args:
        registry: the servers.
        fleet: says how long a boot may take, and hears events.
        seals: closes what callers of shared sessions bring back.
        grace_s: how long an agent may be out of reach.
        limits: of every link.

    Attributes:
        tracing: traces the calls of all sessions made from now on; None for none.
    """

    def __init__(
        self,
        registry: Registry,
        fleet: Fleet,
        seals: Seals,
        grace_s: float,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.registry = registry
        self._fleet = fleet
        self._emit = fleet.emit
        self._seals = seals
        self._grace_s = grace_s
        self._limits = limits
        self.tracing: Tracing | None = None

    def shared(
        self, fingerprint: str, server: ServerDefinition, principal: str, session_id: str = ""
    ) -> SharedLive:
        """Return a session with several callers.

        Args:
            fingerprint: of what its callers share.
            server: what runs.
            principal: whose it is.
            session_id: its public name; a new one if it is new.
        """
        # Its fingerprint is the same in each of its lives; its name tells them apart.
        session_id = session_id or f"s-{secrets.token_hex(6)}"
        record, link, lease = self._facts(fingerprint, server, principal, session_id)
        session: SharedSession[Outbox] = SharedSession(
            record, link, self._emit, server.call_timeout, self._seals
        )
        session.witness.tracing = self.tracing
        return SharedLive(session, lease, self._emit)

    def owned(
        self, fingerprint: str, server: ServerDefinition, principal: str, session_id: str = ""
    ) -> OwnedLive:
        """Return a session with one client. See `shared`."""
        session_id = session_id or SessionKeys.public_id(fingerprint)
        record, link, lease = self._facts(fingerprint, server, principal, session_id)
        session: OwnedSession[Outbox] = OwnedSession(record, link, self._emit, server.call_timeout)
        session.witness.tracing = self.tracing
        return OwnedLive(session, lease, self._emit)

    def _facts(
        self, fingerprint: str, server: ServerDefinition, principal: str, session_id: str
    ) -> tuple[SessionRecord, Endpoint, Lease]:
        now = time.monotonic()
        lease = Lease(
            launched=None,
            boot_s=server.boot_timeout or self._fleet.boot_timeout_s,
            idle_s=server.idle_timeout,
            lifetime_s=server.max_lifetime,
            grace_s=self._grace_s,
            active=now,
        )
        record = SessionRecord(session_id, fingerprint, principal, server, now)
        return record, Endpoint(self._limits, now=now), lease
