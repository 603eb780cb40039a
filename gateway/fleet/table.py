"""A table of the store as one process keeps up with it: what is new, and a write on top of that."""

from collections.abc import Mapping
from typing import Final

from gateway.store.base import Changes, Store

TABLE_TTL_S: Final = 400 * 86_400.0
"""How long a table lasts that nobody writes to: longer than the months that a ledger keeps."""


class Table:
    """One table, at the version that this process has seen.

    Args:
        store: has it.
        name: of the table.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name
        self._version = 0

    async def news(self) -> tuple[Changes, bool]:
        """Return what is new since the last time, and whether the engine has lost what it had.

        Raises:
            StoreAway: nobody knows.
        """
        changes = await self._store.changes(self._name, self._version)
        lost = changes.whole and self._version > 0
        self._version = changes.version
        return changes, lost

    async def commit(self, rows: Mapping[str, bytes | None]) -> bool:
        """Write rows on top of what was seen; return False if there is something newer.

        Raises:
            StoreAway: nobody knows whether it was done; what is new will tell.
        """
        version = await self._store.commit(self._name, self._version, rows, TABLE_TTL_S)
        if version is not None:
            self._version = version
        return version is not None
