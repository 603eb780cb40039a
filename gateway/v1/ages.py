"""Since when servers are there, and when they changed last, as all processes have it.

What counts as a change: another definition or release, and other tools. While a process does not
know the tools of a server, they are what they were.
"""

import asyncio
import contextlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

import msgspec

from gateway.registry.servers import Change, Registry, ServerDefinition
from gateway.sessions.manager import Manager
from gateway.store.base import Changes, StoreAway

TABLE: Final = "v1_servers"

KEPT_S: Final = 90 * 86_400.0
"""How long a server is remembered that no process has any more."""

NOTE_S: Final = 15.0
"""How late it may be noted that the tools of a server have changed: nobody announces it."""

Tools = Callable[[ServerDefinition], bytes | None]
"""What a server offers, as bytes that change with it; None if that is not known."""


@dataclass(frozen=True, slots=True)
class Age:
    """When a server came, and when it changed last, in seconds since 1970."""

    created: float
    updated: float


class _Row(msgspec.Struct, frozen=True):
    created: float
    updated: float
    definition: str
    tools: str | None = None


_ROW = msgspec.json.Decoder(_Row)


class Ages:
    """The ages of all servers. Use it as an async context manager, inside the manager.

    Args:
        manager: has the store, the secret and the clock.
        registry: the servers.
        tools: what they offer.
    """

    def __init__(self, manager: Manager, registry: Registry, tools: Tools) -> None:
        self._manager = manager
        self._registry = registry
        self._tools = tools
        self._rows: dict[str, _Row] = {}
        self._version = 0
        self._writing = asyncio.Lock()
        self._news = asyncio.Event()
        self._tasks = asyncio.TaskGroup()
        self._keeping: asyncio.Task[None] | None = None
        registry.subscribe(self._changed)

    async def __aenter__(self) -> Self:
        """Note changes from now on."""
        await self._tasks.__aenter__()
        self._news.set()
        self._keeping = self._tasks.create_task(self._keep(), name="ages of servers")
        return self

    async def __aexit__(self, *failure: object) -> None:
        """Note them no more."""
        if self._keeping is not None:
            self._keeping.cancel()
        await self._tasks.__aexit__(None, None, None)

    async def all(self) -> dict[str, Age]:
        """Return the ages of all servers there are, by name.

        Raises:
            StoreAway: they are not known.
        """
        try:
            await self._note()
        except StoreAway:
            if any(name not in self._rows for name in self._registry.names):
                raise
        return {name: Age(row.created, row.updated) for name, row in self._rows.items()}

    def _changed(self, _change: Change) -> None:
        self._news.set()

    async def _keep(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(NOTE_S):
                    await self._news.wait()
            self._news.clear()
            with contextlib.suppress(StoreAway):
                await self._note()

    async def _note(self) -> None:
        """Write down what is not as it was, unless another process has.

        Raises:
            StoreAway: nobody knows.
        """
        store = self._manager.store
        async with self._writing:
            while True:
                self._learn(await store.changes(TABLE, self._version))
                rows = {
                    server.name: row
                    for server in self._registry.servers
                    if (row := self._row(server)) != self._rows.get(server.name)
                }
                if not rows:
                    return
                raw = {name: msgspec.json.encode(row) for name, row in rows.items()}
                version = await store.commit(TABLE, self._version, raw, KEPT_S)
                if version is not None:
                    self._version = version
                    self._rows |= rows
                    return

    def _learn(self, changes: Changes) -> None:
        if changes.whole:
            self._rows.clear()
        for name, raw in changes.rows.items():
            self._rows.pop(name, None)
            with contextlib.suppress(msgspec.DecodeError):
                if raw is not None:
                    self._rows[name] = _ROW.decode(raw)
        self._version = changes.version

    def _row(self, server: ServerDefinition) -> _Row:
        """Return what is to be remembered of a server."""
        now, known = self._manager.fleet.now(), self._rows.get(server.name)
        offered = self._tools(server)
        definition = self._digest(msgspec.json.encode(server))
        tools = None if offered is None else self._digest(offered)
        if known is None:
            return _Row(now, now, definition, tools)
        if tools is None:
            tools = known.tools
        first = known.tools is None  # it was not known what it offers, which is no change
        same = known.definition == definition and (first or known.tools == tools)
        return _Row(known.created, known.updated if same else now, definition, tools)

    def _digest(self, raw: bytes) -> str:
        """Return what stands for bytes, which may hold secrets."""
        return hmac.digest(self._manager.secret, raw, "sha256").hex()[:32]
