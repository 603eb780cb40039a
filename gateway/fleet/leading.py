"""One process of the deployment does what only one may do; when it dies, another one does."""

from typing import Final

from gateway.store.base import Held, Store, StoreAway

LEAD_TTL_S: Final = 60.0
"""How long a claim lasts that nobody renews. Its holder's death is noticed long before."""


class Leading:
    """A claim to lead. Whoever holds it keeps it as long as it lives.

    A process that was cut off may take itself for the leader for some seconds after another one has
    become it: what both must not do is guarded by the store's versions.

    Args:
        store: has the claim.
        what: there is to lead.
    """

    def __init__(self, store: Store, what: str) -> None:
        self._store = store
        self._name = f"lead/{what}"
        self._fence = 0

    async def leads(self) -> bool:
        """Return whether this process leads now: never while the store is away."""
        store, name = self._store, self._name
        try:
            if self._fence:
                (held,) = await store.hold([Held(name, self._fence, b"", LEAD_TTL_S)])
                if held:
                    return True
                self._fence = 0
            claim = await store.claim(name, b"", LEAD_TTL_S)
            if claim.holder != store.gateway and not claim.alive:
                claim = await store.claim(name, b"", LEAD_TTL_S, over=claim.fence)
        except StoreAway:
            return False
        self._fence = claim.fence if claim.holder == store.gateway else 0
        return self._fence > 0

    async def resign(self) -> None:
        """Let another process lead.

        Raises:
            StoreAway: it will, once this one is gone.
        """
        if self._fence:
            await self._store.release(self._name, self._fence)
            self._fence = 0
