"""What is logged of which server: changed by an operator, at all gateway processes within 5 s.

One document of the store has the servers whose level is another than the general one. It knows
nothing of lines; that is `logs`.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Final, Literal, get_args

import msgspec

from gateway.store.base import Store, StoreAway

Level = Literal["debug", "info", "warning", "error"]

NUMBERS: Final[Mapping[str, int]] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
"""As the standard library counts them."""

DOCUMENT: Final = "log-levels"

KEPT_S: Final = 400 * 86_400.0
"""How long the store remembers levels that nobody changes: longer than a gateway runs."""

REFRESH_S: Final = 5.0
"""How late another process may know of a change."""

_SET = msgspec.json.Decoder(dict[str, Level])


class BadLevel(ValueError):
    """No level is called so; the message names those there are."""


class Levels:
    """Least level of the lines of each server.

    Args:
        store: what the processes share.
        general: of all servers that no other was set for, and of what belongs to no server.

    Attributes:
        general: as a number.
        floor: the lowest of all that are in force: what is below it is below each of them.
    """

    def __init__(self, store: Store, general: str) -> None:
        self._store = store
        self._set: dict[str, Level] = {}
        self.general = self.floor = NUMBERS[general]

    def get(self, server: str) -> Level | None:
        """Return what was set for a server; None if nothing."""
        return self._set.get(server)

    def least(self, server: str) -> int:
        """Return the number of the level that is in force for a server."""
        level = self._set.get(server)
        return self.general if level is None else NUMBERS[level]

    async def set(self, server: str, level: str | None) -> None:
        """Set the level of a server, or (None) let it have the general one again.

        Raises:
            BadLevel: there is no such level.
            StoreAway: it may have been set or not.
        """
        if level is not None and level not in NUMBERS:
            raise BadLevel(f"a level is one of {', '.join(get_args(Level))}")
        levels: dict[str, str] = {**await self._read()}
        levels.pop(server, None)
        if level is not None:
            levels[server] = level
        document = msgspec.json.encode(levels)
        await self._store.put(DOCUMENT, document, KEPT_S)
        self._take(_SET.decode(document))

    async def refresh(self) -> None:
        """Learn what other processes have set.

        Raises:
            StoreAway: what was known stays in force.
        """
        self._take(await self._read())

    async def keep(self) -> None:
        """Refresh for ever."""
        while True:
            with contextlib.suppress(StoreAway):
                await self.refresh()
            await asyncio.sleep(REFRESH_S)

    async def _read(self) -> dict[str, Level]:
        document = await self._store.get(DOCUMENT)
        try:
            return {} if document is None else _SET.decode(document)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return {}  # of another version of this program: as if nothing were set

    def _take(self, levels: dict[str, Level]) -> None:
        self._set = levels
        self.floor = min([self.general, *(NUMBERS[level] for level in levels.values())])
