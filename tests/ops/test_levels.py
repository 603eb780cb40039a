"""Levels of servers: set at one process, in force at all, whatever the store does meanwhile."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from gateway.ops import levels as module
from gateway.ops.levels import DOCUMENT, NUMBERS, BadLevel, Levels
from gateway.store.base import StoreAway
from gateway.store.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BOUND = 30.0


class Flaky(MemoryStore):
    """A store that is away when a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.asked = 0
        self.heard = asyncio.Event()

    async def get(self, name: str) -> bytes | None:
        self.asked += 1
        self.heard.set()
        if self.away:
            raise StoreAway
        return await super().get(name)

    async def put(self, name: str, value: bytes, ttl_s: float) -> None:
        if self.away:
            raise StoreAway
        await super().put(name, value, ttl_s)


@pytest.fixture
async def store() -> AsyncIterator[Flaky]:
    async with Flaky() as made:
        yield made


@pytest.fixture
def here(store: Flaky) -> Levels:
    """Levels of one process."""
    return Levels(store, "info")


@pytest.fixture
def there(store: Flaky) -> Levels:
    """Levels of another process that shares the store."""
    return Levels(store, "info")


@pytest.mark.parametrize("general", list(NUMBERS))
def test_server_has_the_general_level_until_another_is_set(general: str) -> None:
    levels = Levels(MemoryStore(), general)
    assert (levels.get("srv"), levels.least("srv")) == (None, NUMBERS[general])
    assert levels.floor == levels.general == NUMBERS[general]


@pytest.mark.parametrize("level", list(NUMBERS))
async def test_level_that_is_set_is_in_force_here_at_once_and_for_that_server_alone(
    level: str, here: Levels
) -> None:
    await here.set("srv", level)
    assert (here.get("srv"), here.least("srv")) == (level, NUMBERS[level])
    assert here.least("other") == NUMBERS["info"]


async def test_level_that_is_set_is_in_force_elsewhere_after_a_refresh(
    here: Levels, there: Levels
) -> None:
    await here.set("srv", "debug")
    assert there.least("srv") == NUMBERS["info"]
    await there.refresh()
    assert there.least("srv") == NUMBERS["debug"]


async def test_level_that_is_taken_back_is_the_general_one_everywhere(
    here: Levels, there: Levels
) -> None:
    await here.set("srv", "debug")
    await there.refresh()
    await there.set("srv", None)
    await here.refresh()
    assert (here.get("srv"), there.get("srv")) == (None, None)
    assert here.floor == there.floor == NUMBERS["info"]


async def test_process_does_not_undo_what_another_has_set_meanwhile(
    here: Levels, there: Levels
) -> None:
    await here.set("one", "debug")
    await there.set("two", "error")
    await here.refresh()
    assert (here.get("one"), here.get("two")) == ("debug", "error")


async def test_level_outlives_the_process(here: Levels, store: Flaky) -> None:
    await here.set("srv", "warning")
    later = Levels(store, "info")
    await later.refresh()
    assert later.get("srv") == "warning"


@pytest.mark.parametrize(
    ("set_", "floor"),
    [({"a": "debug", "b": "error"}, "debug"), ({"a": "error"}, "info"), ({}, "info")],
)
async def test_floor_is_the_lowest_level_that_is_in_force(
    set_: dict[str, str], floor: str, here: Levels
) -> None:
    for server, level in set_.items():
        await here.set(server, level)
    assert here.floor == NUMBERS[floor]


@pytest.mark.parametrize("level", ["", "DEBUG", "trace", "10", "notset"])
async def test_level_that_there_is_not_is_refused_and_changes_nothing(
    level: str, here: Levels, store: Flaky
) -> None:
    await here.set("srv", "debug")
    with pytest.raises(BadLevel, match="debug, info, warning, error"):
        await here.set("srv", level)
    assert here.get("srv") == "debug"
    assert await store.get(DOCUMENT) == b'{"srv":"debug"}'


async def test_setting_says_so_when_the_store_is_away_and_nothing_changes_here(
    here: Levels, store: Flaky
) -> None:
    store.away = True
    with pytest.raises(StoreAway):
        await here.set("srv", "debug")
    assert here.get("srv") is None


@pytest.mark.parametrize(
    "document", [b"", b"[]", b"\xff", b'{"srv":"loud"}', b'{"srv":1}', b'{"\xff":"debug"}']
)
async def test_document_of_another_program_counts_as_none(
    document: bytes, here: Levels, store: Flaky
) -> None:
    await store.put(DOCUMENT, document, 60.0)
    await here.refresh()
    assert here.get("srv") is None
    await here.set("srv", "debug")
    assert here.get("srv") == "debug"


async def test_loop_learns_what_is_set_elsewhere_though_the_store_was_away(
    monkeypatch: pytest.MonkeyPatch, here: Levels, there: Levels, store: Flaky
) -> None:
    monkeypatch.setattr(module, "REFRESH_S", 0.001)
    await here.set("srv", "debug")
    store.away = True
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        loop = tasks.create_task(there.keep())
        store.asked = 0
        while store.asked < 3:
            store.heard.clear()
            await store.heard.wait()
        assert there.get("srv") is None
        store.away = False
        asked = store.asked
        while store.asked < asked + 2:
            store.heard.clear()
            await store.heard.wait()
        assert there.get("srv") == "debug"
        loop.cancel()


async def test_loop_ends_only_when_it_is_cancelled(
    monkeypatch: pytest.MonkeyPatch, here: Levels, store: Flaky
) -> None:
    monkeypatch.setattr(module, "REFRESH_S", 0.001)
    ended: list[Any] = []

    async def keeps() -> None:
        try:
            await here.keep()
        finally:
            ended.append(None)

    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        loop = tasks.create_task(keeps())
        await store.heard.wait()
        assert ended == []
        loop.cancel()
        with suppress(asyncio.CancelledError):
            await loop
    assert loop.cancelled()


def test_other_processes_know_of_a_change_within_five_seconds() -> None:
    assert module.REFRESH_S <= 5.0
