"""What the tests of the Valkey store share."""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from gateway.store.base import Letter, Store
from gateway.store.valkey import Part, ValkeyStore

WAIT_S = 20.0
LONG_S = 600.0


async def until(true: Callable[[], bool]) -> None:
    """Wait until it is true."""
    async with asyncio.timeout(WAIT_S):
        while not true():  # noqa: ASYNC110 - connections tell nobody
            await asyncio.sleep(0.002)


async def back(*stores: Store) -> None:
    """Wait until the engine answers all of them again."""
    await until(lambda: all(store.away_s == 0.0 for store in stores))


async def away(*stores: Store) -> None:
    """Wait until each has known, be it for a moment, that its engine does not answer."""
    left = set(stores)

    def all_were() -> bool:
        left.difference_update([store for store in left if store.away_s > 0.0])
        return not left

    await until(all_were)


async def read(store: Store) -> Sequence[Letter]:
    """Return the next letters."""
    async with asyncio.timeout(WAIT_S):
        return await store.receive()


async def mail(store: Store) -> list[Letter]:
    """Return all that is in an inbox, which may be nothing."""
    last = secrets.token_bytes(16)
    assert await store.send([(store.gateway, last)]) == [True]
    letters = list[Letter]()
    while last not in letters:
        letters += await read(store)
    return letters[:-1]


async def command(store: ValkeyStore, *parts: Part) -> Any:
    """Return the engine's answer to any command."""
    return await store._wire.ask(*parts)
