"""How many sessions a principal may have and open, at all processes together."""

import math

from gateway.errors import Busy, QuotaReached, StoreUnavailable
from gateway.fleet.ledger import GATEWAY
from gateway.sessions.terms import Terms
from gateway.store.base import Store, StoreAway


class Quotas:
    """The limits of sessions.

    Args:
        terms: says what they are.
        store: counts for all processes.
    """

    def __init__(self, terms: Terms, store: Store) -> None:
        self._terms = terms
        self._store = store

    async def draw(self, principal: str) -> None:
        """Let a principal open one more session in this minute.

        Raises:
            QuotaReached: it has opened too many.
            StoreUnavailable: nobody knows.
        """
        per_minute = self._terms.opens_per_minute
        if per_minute is None or principal == GATEWAY:
            return
        try:
            wait_s = await self._store.draw(
                f"opens/{principal}", per_minute, max(1, int(per_minute))
            )
        except StoreAway as error:
            raise StoreUnavailable(f"the rate of sessions cannot be checked: {error}") from error
        if wait_s > 0:
            raise QuotaReached(
                f"this key opens more than {per_minute:g} sessions a minute (OPENS_PER_MINUTE); "
                "use those that it has, or try again later",
                retry_after_s=max(1, math.ceil(wait_s)),
            )

    def check(self, principal: str, all_dynos: int, its_dynos: int) -> None:
        """Make sure that one more session may have a dyno.

        Args:
            principal: whose session it is.
            all_dynos: how many there are.
            its_dynos: how many of them are its own.

        Raises:
            Busy: there are as many as there may be.
            QuotaReached: the principal has as many as it may.
        """
        most, most_its = self._terms.max_sessions, self._terms.max_sessions_per_key
        if all_dynos >= most:
            raise Busy(
                f"this gateway holds its limit of {most} sessions (MAX_SESSIONS); end one or try "
                "again later"
            )
        if most_its is not None and principal != GATEWAY and its_dynos >= most_its:
            raise QuotaReached(
                f"this key has its limit of {most_its} sessions (MAX_SESSIONS_PER_KEY); end one or "
                "try again later"
            )
