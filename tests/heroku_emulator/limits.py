"""The account's request quota: a token bucket."""

from dataclasses import dataclass


@dataclass(slots=True)
class Bucket:
    """So many requests at once, and so many a second come back. `now` is a monotonic time.

    Attributes:
        size: most that there can be.
        refill: what comes back in a second.
    """

    size: float
    refill: float
    level: float
    seen: float

    def remaining(self, now: float) -> int:
        """Return how many whole requests are left."""
        self.level = min(self.size, self.level + (now - self.seen) * self.refill)
        self.seen = now
        return int(self.level)

    def take(self, now: float) -> bool:
        """Use up one request; False if none is left."""
        if self.remaining(now) < 1:
            return False
        self.level -= 1
        return True
