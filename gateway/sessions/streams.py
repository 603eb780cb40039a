"""A client stream's outbox: what waits to be written to one HTTP response.

It has no bound of its own: what lies in it is not yet acknowledged on the link, so the link's
credit window bounds it, and a client that does not read stops its own child and nobody else.
"""

import asyncio
from collections import deque

from gateway.sessions.session import Delivery

Item = Delivery["Outbox"]


class Outbox:
    """Deliveries for one HTTP response, in order."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._wake = asyncio.Event()
        self.closed = False

    def put(self, item: Item) -> None:
        """Add a delivery and wake the handler."""
        self._items.append(item)
        self._wake.set()

    def put_back(self, item: Item) -> None:
        """Return a delivery that was taken and not written, as the next one."""
        self._items.appendleft(item)

    def close(self) -> None:
        """Nothing will be added any more; what lies here is still taken."""
        self.closed = True
        self._wake.set()

    async def take(self) -> Item | None:
        """Return the next delivery, or None once the outbox is closed and empty."""
        while not self._items:
            if self.closed:
                return None
            self._wake.clear()
            await self._wake.wait()
        return self._items.popleft()

    def rest(self) -> list[Item]:
        """Take out everything that was never written."""
        items = list(self._items)
        self._items.clear()
        return items
