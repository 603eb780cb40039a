"""Which sessions live here, which have ended here, and which are on their way here."""

import asyncio
from collections import Counter
from collections.abc import Iterator

from gateway.sessions.live import Live
from gateway.sessions.record import Reason, State

MAX_ENDED = 10_000
"""Sessions that are remembered as ended, so that no late agent brings one back."""


class Directory:
    """The live sessions of this gateway process by fingerprint.

    Attributes:
        draining: no session comes here any more.
    """

    def __init__(self) -> None:
        self.draining = False
        self._live: dict[str, Live] = {}
        self._ended: dict[str, Reason] = {}
        self._arrivals = asyncio.Event()
        self._awaited: Counter[str] = Counter()
        self._taken: set[str] = set()

    def __iter__(self) -> Iterator[Live]:
        return iter(list(self._live.values()))

    def __len__(self) -> int:
        return len(self._live)

    @property
    def awaited(self) -> int:
        """How many requests wait for a session that is not here."""
        return self._awaited.total()

    @property
    def dormant(self) -> list[Live]:
        """The sessions that no dyno was asked for."""
        return [live for live in self._live.values() if live.record.state is State.REQUESTED]

    def get(self, fingerprint: str) -> Live | None:
        """Return the live session with this fingerprint."""
        return self._live.get(fingerprint)

    def add(self, live: Live) -> None:
        """Enter a session."""
        self._live[live.record.fingerprint] = live
        self._ended.pop(live.record.fingerprint, None)
        self.arrived()

    def remove(self, live: Live, reason: Reason | None) -> None:
        """Take a session out: it has ended, or without a reason lives on elsewhere."""
        fingerprint = live.record.fingerprint
        if self._live.get(fingerprint) is live:  # one that was handed over is not here any more
            del self._live[fingerprint]
        if reason is not None:
            self._ended[fingerprint] = reason
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        if len(self._ended) > MAX_ENDED:
            del self._ended[next(iter(self._ended))]

    def ended(self, fingerprint: str) -> Reason | None:
        """Return why a session ended here; None if it did not, or too long ago."""
        return self._ended.get(fingerprint)

    def drain(self) -> None:
        """Let nobody wait for a session any more."""
        self.draining = True
        self._arrivals.set()

    def note_ended(self, fingerprint: str, reason: Reason) -> None:
        """A session has ended at another process."""
        self._ended.setdefault(fingerprint, reason)
        self._forget_oldest()

    def taken(self, fingerprint: str) -> None:
        """Another process has a session now: who waits for it here may follow."""
        if fingerprint in self._awaited:
            self._taken.add(fingerprint)
            self.arrived()

    def arrived(self) -> None:
        """Something may be here now that requests wait for."""
        if self._awaited and not self.draining:
            self._arrivals.set()
            self._arrivals.clear()

    async def arrival(self, fingerprint: str, patience_s: float) -> Live | None:
        """Wait until an agent has brought a session here; None if none does in time.

        It may have come to another process instead.
        """
        self._awaited[fingerprint] += 1
        try:
            async with asyncio.timeout(patience_s):
                while (
                    self.here(fingerprint) is None
                    and fingerprint not in self._taken
                    and not self.draining
                ):
                    await self._arrivals.wait()
        except TimeoutError:
            pass  # and yet: another request may have entered the session in this very moment
        finally:
            self._awaited[fingerprint] -= 1
            if not self._awaited[fingerprint]:
                del self._awaited[fingerprint]
                self._taken.discard(fingerprint)
        return self.here(fingerprint)

    def here(self, fingerprint: str) -> Live | None:
        """Return the live session with this fingerprint, once it is all here."""
        live = self._live.get(fingerprint)
        return None if live is None or live.arriving else live
