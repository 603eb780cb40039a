"""Where a session is that a client presents and that is not here, or not all of it yet.

It may be on its way, as its agent dials again; another process may hold it; or a process that has
died has left it to whoever is asked for it first.
"""

import time
from dataclasses import dataclass

from gateway.patience import patience
from gateway.sessions.directory import Directory
from gateway.sessions.live import Live
from gateway.sessions.neighbours import Neighbours
from gateway.sessions.ownership import Facts, Ownership, facts_in
from gateway.sessions.reception import Reception
from gateway.sessions.reconciler import YOUNG_S
from gateway.sessions.record import Reason
from gateway.store.base import ALIVE_S, Claim

LOOK_S = 2.0
"""How often a request that waits for a session asks the store who has it: news may be lost."""

GHOST_S = 3600.0
"""How long it is remembered since when a session was waited for in vain."""


@dataclass(frozen=True, slots=True)
class Hold:
    """How long to wait for a session.

    Attributes:
        hold_s: for its agent.
        blank_s: for how long after it began anew the store may know too little.
    """

    hold_s: float
    blank_s: float


class Whereabouts:
    """Looks for sessions.

    Args:
        directory: the sessions that live here.
        ownership: who holds the others.
        reception: rebuilds what nobody holds.
        neighbours: may have what the engine has forgotten.
        hand_over: sessions may come from another process at all.
        ghost_s: when nobody has brought a session for so long, nobody will.
    """

    def __init__(
        self,
        directory: Directory,
        ownership: Ownership,
        reception: Reception,
        neighbours: Neighbours,
        *,
        hand_over: bool,
        ghost_s: float,
    ) -> None:
        self._directory = directory
        self._ownership = ownership
        self._reception = reception
        self._neighbours = neighbours
        self._hand_over = hand_over
        self._ghost_s = ghost_s
        self._absent: dict[str, float] = {}

    async def seek(self, fingerprint: str, hold: Hold) -> tuple[Live | None, bool]:
        """Wait for a session that is not here, or not all of it, as long as it may come.

        Returns:
            The session, if it is here; and whether it may still come.

        Raises:
            Elsewhere: another process holds it.
            StoreUnavailable: nobody knows who does.
        """
        directory, deadline = self._directory, time.monotonic() + patience(hold.hold_s)
        while directory.here(fingerprint) is None and not directory.draining:
            if directory.get(fingerprint) is None:
                claim = await self._ownership.look(fingerprint)
                if claim is None and not self._ownership.alone:
                    await self._neighbours.seek(fingerprint)
                    claim = await self._ownership.look(fingerprint)
                if not self._may_come(fingerprint, claim, hold.blank_s):
                    return directory.here(fingerprint), False
                if claim is not None and await self._inherit(fingerprint, claim):
                    break
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return None, not await self._is_ghost(fingerprint)
            wait_s = left_s if self._ownership.alone else min(LOOK_S, left_s)
            await directory.arrival(fingerprint, wait_s)
        live = directory.here(fingerprint)
        return live, live is None

    def _may_come(self, fingerprint: str, claim: Claim | None, blank_s: float) -> bool:
        """Whether a session that is not here may be brought here."""
        if claim is not None and claim.ended:
            self._directory.note_ended(fingerprint, Reason(claim.ended))
            return False
        if not self._hand_over:
            return False
        if claim is not None and claim.holder != self._ownership.gateway:
            return True  # what has ended here was an earlier life
        if self._directory.ended(fingerprint) is not None:
            return False
        return claim is not None or time.monotonic() - self._ownership.blank_since < blank_s

    async def _inherit(self, fingerprint: str, claim: Claim) -> bool:
        """Go on with a session that nobody holds and no agent carries; return whether it is so."""
        facts = facts_in(claim)
        if claim.holder == self._ownership.gateway or facts is None:
            return False
        if claim.holder and time.monotonic() - self._ownership.blank_since < ALIVE_S:
            return False  # it may be alive, and the engine not know it yet
        if facts.tied:  # to what has died with its process
            await self._ownership.bury(fingerprint, claim, Reason.CLIENT_GONE)
        elif facts.carried and self._is_gone(facts):
            await self._ownership.bury(fingerprint, claim, Reason.LINK_LOST)
        if facts.tied or facts.carried:
            return False
        got = await self._ownership.inherit(fingerprint, claim)
        if got is None or self._directory.get(fingerprint) is not None:
            return False
        live = self._reception.revive(fingerprint, got)
        if live is None:
            return False
        self._ownership.adopt(live, got)
        self._reception.enter(live)
        return True

    def _is_gone(self, facts: Facts) -> bool:
        """Whether a session's dyno died with its process; a young one may not be listed yet."""
        age_s = self._ownership.now() - facts.created
        return age_s >= YOUNG_S and self._neighbours.gone(facts.launch_id)

    async def _is_ghost(self, fingerprint: str) -> bool:
        """Whether nobody will bring a session any more: then it has ended."""
        now = time.monotonic()
        self._absent = {
            name: since for name, since in self._absent.items() if now - since < GHOST_S
        }
        absent_s = now - self._absent.setdefault(fingerprint, now)
        if self._ownership.alone or absent_s < self._ghost_s:
            return False
        claim = await self._ownership.look(fingerprint)
        if claim is not None and not claim.ended:
            await self._ownership.bury(fingerprint, claim, Reason.LINK_LOST)
        self._directory.note_ended(fingerprint, Reason.LINK_LOST)
        return True
