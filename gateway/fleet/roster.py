"""The parked dynos of the deployment, as the processes tell each other of them."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from gateway.fleet.table import Table
from gateway.store.base import Store


class Row(msgspec.Struct, frozen=True):
    """A parked dyno.

    Attributes:
        server: what it is for.
        release: of its app.
        app: whose it is.
        size: of the dyno.
        started: when it was asked for, wall clock.
        latest_end: it is not parked for longer than until then.
        patience_s: how long its agent may be at no door; 0 once it is known that it will not come.
        ours: a gateway launched it; an operator's own is not stopped before its time.
        dyno_id: the launcher's name of it, once known.
        holder: id of the gateway process at whose door its agent stands; empty while at none.
        ready: since when, wall clock.
        dialled: its agent has been here.
        over: it will not be adopted any more.
    """

    server: str
    release: str
    app: str | None
    size: str | None
    started: float
    latest_end: float
    patience_s: float
    ours: bool
    dyno_id: str | None = None
    holder: str = ""
    ready: float = 0.0
    dialled: bool = False
    over: bool = False


_ROWS: Final = msgspec.json.Decoder(Row)

Edit = Mapping[str, Row | None]


class Roster:
    """All parked dynos by launch id.

    Attributes:
        rows: as they were when this process heard of them last; at most a moment ago.

    Args:
        store: what the processes share.
        changed: called when they have changed; with True if the store had lost them all.
    """

    def __init__(self, store: Store, changed: Callable[[bool], None]) -> None:
        self.rows: dict[str, Row] = {}
        self._table = Table(store, "pool")
        self._changed = changed
        self._lock = asyncio.Lock()

    async def refresh(self) -> None:
        """Learn what others have changed until now.

        Raises:
            StoreAway: nobody knows.
        """
        async with self._lock:
            await self._learn()

    async def edit(self, change: Callable[[], Edit]) -> bool:
        """Change rows, unless somebody else was quicker; then it is decided anew what to change.

        Args:
            change: looks at `rows` and says what they shall be; None is for one that goes.

        Returns:
            False if there was nothing to change.

        Raises:
            StoreAway: nobody knows whether it was done.
        """
        async with self._lock:
            while edit := change():
                raw = {key: None if row is None else _encoded(row) for key, row in edit.items()}
                if await self._table.commit(raw):
                    self._enter(edit)
                    self._changed(False)
                    return True
                await self._learn()
        return False

    async def _learn(self) -> None:
        changes, lost = await self._table.news()
        if changes.whole:
            self.rows.clear()
        self._enter(
            {key: None if raw is None else _ROWS.decode(raw) for key, raw in changes.rows.items()}
        )
        if changes.whole or changes.rows:
            self._changed(lost)

    def _enter(self, edit: Edit) -> None:
        for launch_id, row in edit.items():
            if row is None:
                self.rows.pop(launch_id, None)
            else:
                self.rows[launch_id] = row


def _encoded(row: Row) -> bytes:
    return msgspec.json.encode(row)
