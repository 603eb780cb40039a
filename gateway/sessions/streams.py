"""A client stream's outbox: what waits to be written to one HTTP response.

It has no bound of its own: what lies in it is not yet acknowledged on the link, so the link's
credit window bounds it, and a client that does not read stops its own child and nobody else.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

from gateway.sessions.delivery import Delivery

Item = Delivery["Outbox"]

Cut = Callable[[], None]


class Outbox:
    """Deliveries for one HTTP response, in order.

    Args:
        label: names the stream in event ids, see `dyno_agent.link.resumption`.
        since: position at which the stream begins.
        resumable: its client comes back for the rest if it ends early.
        answers: how many answers end the stream; None if it outlives them all.
        numbered: its events have ids, so that a client can come back.

    Attributes:
        closed: nothing will be added any more.
        continued: another stream goes on where this one stands, and brings what lies here.
        promise: ordinal of the request that it answers, as long as its client has no event to come
            back after.
        cut: drops the connection of a client that leaves too much unread; set by its handler.
        begun: its response has begun.
    """

    def __init__(
        self,
        label: str = "",
        *,
        since: int = 0,
        resumable: bool = False,
        answers: int | None = 1,
        numbered: bool = True,
    ) -> None:
        self.label = label
        self.since = since
        self.resumable = resumable
        self.numbered = numbered
        self.answers = answers
        self.continued = self.begun = False
        self.promise: int | None = None
        self.cut: Cut | None = None
        self._items: deque[Item] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()
        self.closed = False

    def put(self, item: Item) -> None:
        """Add a delivery and wake the handler."""
        self._items.append(item)
        self._bytes += len(item.raw)
        self._wake.set()

    def close(self) -> None:
        """Nothing will be added any more; what lies here is still taken."""
        self.closed = True
        self._wake.set()

    @property
    def ready(self) -> bool:
        """True when something waits to be written."""
        return bool(self._items)

    @property
    def waiting_bytes(self) -> int:
        """What lies here behind the first delivery."""
        return self._bytes - len(self._items[0].raw) if self._items else 0

    @property
    def preface(self) -> bool:
        """True when the next delivery is the gateway's own word about a call that still runs."""
        return bool(self._items) and not self._items[0].position and not self._items[0].last

    @property
    def answered(self) -> bool:
        """True when the answer is all there is to write."""
        return bool(self._items) and self._items[0].last

    def ended(self) -> bool:
        """An answer was written; return whether it was the last one that the stream is for."""
        if self.answers is not None:
            self.answers -= 1
        return self.answers == 0

    async def until_ready(self, patience_s: float) -> None:
        """Wait until something waits to be written or the outbox is closed, for a bounded time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self.head()

    @property
    def complete(self) -> bool:
        """True when all answers are here, and nothing else."""
        last = sum(item.last for item in self._items)
        return last == self.answers == len(self._items)

    async def until_complete(self, patience_s: float) -> None:
        """Wait until all answers are here, or something that needs a stream; for a bounded time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while not self.complete and not self.closed:
                    if any(not item.last for item in self._items):
                        return
                    self._wake.clear()
                    await self._wake.wait()

    def only_answer(self) -> Item | None:
        """Take the first delivery if it is the answer; anything else needs a stream."""
        first = self._items[0] if self._items else None
        return self.take() if first is not None and first.last and first.raw else None

    async def head(self) -> Item | None:
        """Wait for the next delivery and leave it here; None once closed and empty."""
        while not self._items:
            if self.closed:
                return None
            self._wake.clear()
            await self._wake.wait()
        return self._items[0]

    def take(self) -> Item:
        """Take out the next delivery, to write it."""
        item = self._items.popleft()
        self._bytes -= len(item.raw)
        return item

    def rest(self) -> list[Item]:
        """Take out everything that was never written."""
        items = list(self._items)
        self._items.clear()
        self._bytes = 0
        return items
