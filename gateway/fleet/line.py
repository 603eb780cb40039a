"""Sessions that wait for room, first come first served: the platform runs as many dynos as it may.

While there is room nobody stands in line and launches run side by side. Once the platform has said
that there is none, they go one at a time, in order, until the line is empty.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

from gateway.launchers.base import AtCapacity

AGAIN_S = 5.0
"""How often the first in line tries though no dyno of ours has ended: others use the app too."""

Place = Callable[[int, int], None]
"""Told of the position in line, from 1, and of how many stand there."""

T = TypeVar("T")


class LineFull(Exception):
    """As many wait as may; the message says how many."""


class WaitedTooLong(Exception):
    """No room in time; the message says how long the wait was."""


class Line:
    """The line of one app.

    Args:
        length: how many may stand in it.
        patience_s: how long one stands in it.
    """

    def __init__(self, length: int, patience_s: float) -> None:
        self._length = length
        self._patience_s = patience_s
        self._waiting: list[tuple[str, Place]] = []
        self._moved = asyncio.Event()
        self._room = asyncio.Event()

    @property
    def waiting(self) -> int:
        """How many stand in line."""
        return len(self._waiting)

    def waiting_for(self, server: str) -> int:
        """How many of them stand there for a server."""
        return sum(name == server for name, _ in self._waiting)

    def check(self) -> None:
        """Make sure that one more may come.

        Raises:
            LineFull: not now.
        """
        if self._waiting and len(self._waiting) >= self._length:
            raise self._full()

    def _full(self) -> LineFull:
        return LineFull(
            f"the platform runs as many dynos as it may, and {len(self._waiting)} sessions wait "
            f"for one (QUEUE_LENGTH is {self._length})"
        )

    def freed(self) -> None:
        """A dyno has ended: there may be room."""
        self._room.set()

    async def through(self, server: str, attempt: Callable[[], Awaitable[T]], place: Place) -> T:
        """Return what an attempt comes to once there is room for it.

        Args:
            server: what it is for.
            attempt: raises `AtCapacity` if there is no room; is called again then.
            place: told whenever the position changes, and after each attempt in vain.

        Raises:
            LineFull: there is no room in line either.
            WaitedTooLong: see `patience_s`.
        """
        if not self._waiting:
            with contextlib.suppress(AtCapacity):
                return await attempt()
        if len(self._waiting) >= self._length:
            raise self._full()
        self._waiting.append((server, place))
        self._tell()
        deadline = asyncio.get_running_loop().time() + self._patience_s
        try:
            while True:
                await self._turn(place, deadline)
                with contextlib.suppress(AtCapacity):
                    return await attempt()
                self._tell()
        finally:
            self._waiting.remove((server, place))
            self._room.set()  # whoever is next may try at once
            self._tell()

    async def _turn(self, place: Place, deadline: float) -> None:
        """Wait until this one is the first, and there may be room."""
        try:
            async with asyncio.timeout_at(deadline):
                while self._waiting[0][1] is not place:
                    self._moved.clear()
                    await self._moved.wait()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(AGAIN_S):
                        await self._room.wait()
                self._room.clear()
        except TimeoutError:
            raise WaitedTooLong(
                f"the platform runs as many dynos as it may, and none has ended within "
                f"{self._patience_s:.0f} s (QUEUE_TIMEOUT_S)"
            ) from None

    def _tell(self) -> None:
        self._moved.set()
        for position, (_, place) in enumerate(self._waiting, 1):
            place(position, len(self._waiting))
