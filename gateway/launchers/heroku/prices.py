"""What a dyno costs: the platform's own list, and until it is known a table."""

import asyncio

from gateway.launchers.heroku.documents import HOURS_PER_MONTH
from gateway.launchers.heroku.failures import Failure
from gateway.launchers.heroku.platform import Platform

USD_PER_MONTH = {
    "eco": 5.0,
    "basic": 7.0,
    "standard-1x": 25.0,
    "standard-2x": 50.0,
    "performance-m": 250.0,
    "performance-l": 500.0,
}
"""As of 2026-10."""

AGAIN_S = 600.0
"""When to ask once more for a list that could not be had."""


class Prices:
    """US dollars an hour, by size, in any spelling."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._by_size = {name: usd / HOURS_PER_MONTH for name, usd in USD_PER_MONTH.items()}
        self._next: float | None = 0.0  # when the list is to be asked for; None: it was had

    def due(self) -> bool:
        """Whether `learn` is to be called; says so once."""
        now = asyncio.get_running_loop().time()
        if self._next is None or now < self._next:
            return False
        self._next = now + AGAIN_S
        return True

    async def learn(self) -> None:
        """Take over the platform's list; what it does not tell stays as it was."""
        try:
            sizes = await self._platform.dyno_sizes()
        except Failure:
            return
        told = {size.name.lower(): size.usd_per_hour for size in sizes}
        self._by_size |= {name: usd for name, usd in told.items() if usd is not None}
        self._next = None

    def usd_per_hour(self, size: str) -> float:
        """Return what a size costs; an unknown one as much as the dearest, so budgets hold."""
        return self._by_size.get(size.lower(), max(self._by_size.values()))
