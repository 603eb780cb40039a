"""What the memory store has beyond what every store promises: an engine that obeys a test."""

import asyncio

import pytest

from gateway.store.base import STORIES, Held, Keep, Passage, StoreAway, Taken, Told
from gateway.store.memory import NEWS, SWEEP_S, Engine, MemoryStore
from tests.store.house import LONG_S, mail


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engine(clock: Clock) -> Engine:
    return Engine(clock)


async def test_everything_expires_by_the_clock_that_was_handed_in(
    engine: Engine, clock: Clock
) -> None:
    async with MemoryStore(engine) as store:
        await store.claim("s/1", b"", 10.0)
        await store.put("d", b"", 10.0)
        await store.commit("t", 0, {"k": b""}, 10.0)
        clock.now += 9.99
        assert await store.find("s/1") is not None
        clock.now += 0.01
        assert await store.find("s/1") is None
        assert await store.get("d") is None
        assert (await store.changes("t", 0)).version == 0


async def test_what_has_expired_takes_no_memory(engine: Engine, clock: Clock) -> None:
    async with MemoryStore(engine) as store:
        for n in range(1000):
            await store.put(str(n), b"", 1.0)
        clock.now += SWEEP_S
        await store.put("last", b"", 1.0)
        assert len(engine.documents._things) == 1


async def test_stories_expire_by_the_clock_that_was_handed_in(engine: Engine, clock: Clock) -> None:
    keep = Keep(story_bytes=10_000, all_bytes=10_000, stories=10, ttl_s=10.0)
    async with MemoryStore(engine) as store:
        await store.tell([Passage("s", b"head", [b"1"]), Passage("t", b"", [])], keep)
        clock.now += 9.99
        assert await store.told("s", 0, 1) == Told(1, [b"1"], 1)
        await store.tell([Passage("t", b"", [])], keep)
        assert set((await store.changes(STORIES, 0)).rows) == {"s", "t"}
        clock.now += 0.01
        assert await store.told("s", 0, 1) == Told(1, [], 0)
        await store.tell([Passage("t", b"", [])], keep)
        assert set((await store.changes(STORIES, 0)).rows) == {"t"}


async def test_story_that_expired_and_is_told_at_that_moment_begins_anew(
    engine: Engine, clock: Clock
) -> None:
    keep = Keep(story_bytes=10_000, all_bytes=10_000, stories=10, ttl_s=10.0)
    async with MemoryStore(engine) as store:
        await store.tell([Passage("s", b"old", [b"1", b"2"])], keep)
        clock.now += 10.0
        await store.tell([Passage("s", b"new", [b"new"])], keep)
        assert await store.told("s", 0, 1) == Told(1, [b"new"], 1)
        assert (await store.changes(STORIES, 0)).rows == {"s": b"new"}


async def test_bucket_fills_by_the_clock(engine: Engine, clock: Clock) -> None:
    async with MemoryStore(engine) as store:
        assert [await store.draw("b", 6.0, 2) for _ in range(4)] == [0.0, 0.0, 10.0, 10.0]
        clock.now += 4.0
        assert await store.draw("b", 6.0, 2) == pytest.approx(6.0)
        clock.now += 6.0
        assert await store.draw("b", 6.0, 2) == 0.0
        assert await store.draw("b", 6.0, 2) == pytest.approx(10.0)


async def test_absence_is_told_in_seconds(engine: Engine, clock: Clock) -> None:
    async with MemoryStore(engine) as store:
        engine.away = True
        clock.now += 7.0
        engine.away = True
        assert store.away_s == 7.0
        engine.away = False
        assert store.away_s == 0.0


async def test_lost_memory_is_told_by_the_clock(engine: Engine, clock: Clock) -> None:
    async with MemoryStore(engine) as store:
        assert store.blank_since == 1000.0
        clock.now += 7.0
        assert store.blank_since == 1000.0
        engine.forget()
        assert store.blank_since == 1007.0


async def test_process_that_began_later_knows_only_since_then(engine: Engine, clock: Clock) -> None:
    clock.now += 7.0
    async with MemoryStore(engine) as store:
        assert store.blank_since == 1007.0


async def test_processes_outlive_the_memory_of_their_engine(engine: Engine) -> None:
    async with MemoryStore(engine) as a, MemoryStore(engine) as b:
        await a.send([(b.gateway, b"lost")])
        engine.forget()
        assert await a.gateways() == sorted([a.gateway, b.gateway])
        assert await a.hold([Held("s/1", 7, b"", LONG_S)]) == [True]
        await b.take("s/1", 8, b"", LONG_S)
        assert await mail(a) == [Taken("s/1", 8, b.gateway)]
        assert await mail(b) == []


async def test_reader_of_a_process_that_died_hears_nothing(engine: Engine) -> None:
    async with MemoryStore(engine) as a, MemoryStore(engine) as b, asyncio.TaskGroup() as tasks:
        reader = tasks.create_task(a.receive())
        await a.send([(b.gateway, b"")])
        engine.crash(a.gateway)
        assert await b.send([(a.gateway, b"letter")]) == [False]
        assert not reader.done()
        reader.cancel()


async def test_shared_store_lets_others_go_first_and_one_that_is_alone_does_not(
    engine: Engine,
) -> None:
    order = list[str]()

    async def put(store: MemoryStore, name: str) -> None:
        order.append(f"{name} asks")
        await store.put("d", b"", LONG_S)
        order.append(f"{name} is done")

    async with MemoryStore(engine) as shared, MemoryStore() as alone:
        for store in (shared, alone):
            order.clear()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(put(store, "one"))
                tasks.create_task(put(store, "two"))
            assert (order[1] == "two asks") is (store is shared)


async def test_news_that_nobody_reads_do_not_grow_without_end(engine: Engine) -> None:
    async with MemoryStore(engine) as a, MemoryStore(engine) as b:
        for fence in range(1, NEWS + 3):
            engine.tell("s/1", fence, a.gateway)
        letters = await b.receive()
    assert len(letters) == NEWS
    assert letters[0] == Taken("s/1", 3, a.gateway)


async def test_names_of_processes_are_their_own() -> None:
    assert MemoryStore().gateway != MemoryStore().gateway
    assert MemoryStore(gateway="g1").gateway == "g1"


async def test_store_that_was_left_is_away(engine: Engine) -> None:
    async with MemoryStore(engine) as store:
        pass
    with pytest.raises(StoreAway):
        await store.get("d")
