"""How a session was opened, sealed into its key, so that it can be opened once more.

Sessions of a toolkit's members are opened by the key of the toolkit's session alone, for the first
time as for any later one. Pure but for the clock of seals.
"""

import msgspec

from gateway.eras.legacy import Opening
from gateway.eras.toolkit import abridged
from gateway.registry.servers import TOOLKIT_LIFETIME_S, Registry, ServerDefinition
from gateway.sessions.keys import SessionKeys
from gateway.sessions.sealing import BadSeal, Sealer


class Reopening(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a session key carries.

    Attributes:
        principal: whose the session is.
        server: name of its server, or of its toolkit.
        opening: how its client opened it.
        gateway: the process where it began, if it is a toolkit's.
    """

    principal: str
    server: str
    opening: Opening
    gateway: str = ""


class Reopenings:
    """Seals and reads what keys carry.

    Args:
        secret: the deployment's GATEWAY_SECRET.
        keys: of sessions.
        registry: says who is a member of which toolkit.
        longest: how many characters a key may carry.
        gateway: id of this process.
    """

    def __init__(
        self,
        secret: bytes,
        keys: SessionKeys,
        registry: Registry,
        longest: int,
        gateway: str,
    ) -> None:
        self._sealer = Sealer(secret, "rendezvous reopening v1", Reopening)
        self._keys = keys
        self._registry = registry
        self._longest = longest
        self._gateway = gateway

    def sealed(self, server: ServerDefinition, principal: str, opening: Opening) -> str:
        """Return what the key of a new session carries; empty if it may not be opened again."""
        if server.stale != "rebuild":
            return ""
        candidates = [Reopening(principal, server.name, opening)]
        if server.toolkit is not None:
            # Its members have nothing else to go by, so they get what there is room for.
            candidates = [
                Reopening(principal, server.name, each, self._gateway)
                for each in (opening, *abridged(opening))
            ]
        sealed = (self._sealer.seal(each) for each in candidates)
        return next((each for each in sealed if len(each) <= self._longest), "")

    def read(self, key: str, principal: str, server: ServerDefinition) -> Opening | None:
        """Return how the session of a key was opened; None if it may not be opened once more.

        It may by the same principal, with the same server or a member of the same toolkit, as long
        as it could have lived.
        """
        member = self._keys.is_member(key)
        if not self._keys.issued(key) or (server.stale != "rebuild" and not member):
            return None
        carried = self._opened(key, TOOLKIT_LIFETIME_S if member else server.max_lifetime)
        if carried is None or carried.principal != principal:
            return None
        if not member:
            return carried.opening if carried.server == server.name else None
        toolkit = self._registry.find(carried.server)
        if toolkit is None or server not in self._registry.members(toolkit):
            return None
        return Opening(carried.opening.params)  # what its toolkit was told binds no child

    def member_key(
        self, key: str, principal: str, toolkit: ServerDefinition, server: ServerDefinition
    ) -> str | None:
        """Return the key of a toolkit's session with one of its members; None if there is none."""
        if self.read(key, principal, toolkit) is None:
            return None
        derived = self._keys.member(key, server.name)
        return None if self.read(derived, principal, server) is None else derived

    def began_here(self, key: str) -> bool:
        """True for a member of a toolkit's session that began at this process."""
        carried = self._opened(key, TOOLKIT_LIFETIME_S) if self._keys.is_member(key) else None
        return carried is not None and carried.gateway == self._gateway

    def _opened(self, key: str, ttl_s: float) -> Reopening | None:
        try:
            return self._sealer.open(SessionKeys.carried(key), ttl_s)
        except BadSeal:
            return None
