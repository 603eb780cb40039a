"""The catalogue as the store has it: what one process has learned, all others need not ask."""

import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
from msgspec import Raw

from gateway.eras.catalogue import Chapter, Era
from gateway.registry.servers import ServerDefinition
from gateway.store.base import Store

TABLE = "catalogue"

KEPT_S = 7 * 86_400.0
"""How long what was learned outlives the last process that had it."""

LOOK_S = 600.0
"""How long a process may take to look at a server before another one may."""


class _Chapter(msgspec.Struct, frozen=True):
    opening: Raw
    lists: dict[str, Raw]


class _Row(msgspec.Struct, frozen=True):
    """What is known of one server.

    Attributes:
        definition: of the server that it is true for, see `Shelf.digest`.
        spoken: eras that its child speaks itself; None as long as that is not known.
        chapters: by era.
    """

    definition: str
    spoken: list[Era] | None
    chapters: dict[Era, _Chapter]


@dataclass(frozen=True, slots=True)
class Learned:
    """What is known of one server; see `_Row`."""

    definition: str
    spoken: frozenset[Era] | None
    chapters: dict[Era, Chapter]


_ROWS = msgspec.json.Decoder(_Row)


class Shelf:
    """Chapters of all servers, shared.

    Args:
        store: what the processes share.
        secret: the deployment's; definitions hold secrets, so their digests are keyed.
    """

    def __init__(self, store: Store, secret: bytes) -> None:
        self._store = store
        self._secret = secret
        self._version = 0

    @property
    def alone(self) -> bool:
        """True when nobody else has anything to tell."""
        return self._store.alone

    def digest(self, server: ServerDefinition) -> str:
        """Return what stands for a server as it is defined and released now."""
        return hmac.digest(self._secret, msgspec.json.encode(server), "sha256").hex()[:32]

    async def news(self) -> dict[str, Learned]:
        """Return what was learned since the last time, by server.

        Raises:
            StoreAway: nobody knows.
        """
        changes = await self._store.changes(TABLE, self._version)
        self._version = changes.version
        return {
            name: learned
            for name, raw in changes.rows.items()
            if raw is not None and (learned := _decoded(raw)) is not None
        }

    async def put(
        self,
        server: ServerDefinition,
        spoken: frozenset[Era] | None,
        chapters: Mapping[Era, Chapter],
    ) -> dict[str, Learned]:
        """Tell the others what was learned of a server; return what they have told meanwhile.

        Raises:
            StoreAway: nobody knows whether they know.
        """
        row = _Row(
            self.digest(server),
            None if spoken is None else sorted(spoken),
            {era: _Chapter(each.opening, dict(each.lists)) for era, each in chapters.items()},
        )
        raw, told = msgspec.json.encode(row), dict[str, Learned]()
        while True:
            version = await self._store.commit(TABLE, self._version, {server.name: raw}, KEPT_S)
            if version is not None:
                self._version = version
                return told
            told |= await self.news()

    async def may_look(self, server: ServerDefinition) -> bool:
        """Return whether this process is the one that looks at a server now.

        Raises:
            StoreAway: nobody knows.
        """
        if self.alone:
            return True
        claim = await self._store.claim(_look(server), b"", LOOK_S)
        if claim.holder and claim.holder != self._store.gateway and not claim.alive:
            claim = await self._store.claim(_look(server), b"", LOOK_S, claim.fence)
        return claim.holder == self._store.gateway

    async def looked(self, server: ServerDefinition) -> None:
        """Let others look at a server again.

        Raises:
            StoreAway: they may after a while.
        """
        if self.alone:
            return
        claim = await self._store.find(_look(server))
        if claim is not None and claim.holder == self._store.gateway:
            await self._store.end(_look(server), claim.fence, "looked", LOOK_S)


def _look(server: ServerDefinition) -> str:
    return f"look/{server.name}"


def _decoded(raw: bytes) -> Learned | None:
    try:
        row = _ROWS.decode(raw)
    except msgspec.DecodeError:
        return None
    now = time.monotonic()
    chapters = {
        era: Chapter(era, each.opening, each.lists, now) for era, each in row.chapters.items()
    }
    spoken = None if row.spoken is None else frozenset(row.spoken)
    return Learned(row.definition, spoken, chapters)
