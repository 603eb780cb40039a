"""Three processes do the same at random on the memory store and on Valkey, and hear the same."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.store import stories, valkey
from gateway.store.base import STORIES, Held, Keep, Passage, Store
from gateway.store.memory import Engine, MemoryStore
from gateway.store.valkey import ValkeyStore
from tests.fakes.valkey import ValkeyServer
from tests.store.house import LONG_S, command, mail

GATEWAYS = ("g1", "g2", "g3")
KEEPS = (
    Keep(story_bytes=300, all_bytes=10_000, stories=3, ttl_s=LONG_S),
    Keep(story_bytes=60, all_bytes=3_300, stories=9, ttl_s=LONG_S),
    Keep(story_bytes=0, all_bytes=1_090, stories=2, ttl_s=LONG_S),
)
Step = tuple[Any, ...]

names = st.sampled_from(["s/1", "s/2"])
fences = st.integers(0, 5)
facts = st.binary(max_size=3)
keys = st.sampled_from(["k1", "k2", "k3"])
rows = st.dictionaries(keys, st.none() | facts, max_size=3)
lines = st.lists(st.integers(0, 60).map(lambda size: b"x" * size), max_size=8)
passages = st.lists(st.tuples(st.sampled_from("stuv"), facts, lines), max_size=4)
steps = st.one_of(
    st.tuples(st.just("find"), names),
    st.tuples(st.just("claim"), names, facts, fences),
    st.tuples(st.just("take"), names, fences, facts),
    st.tuples(st.just("hold"), st.lists(st.tuples(names, fences, facts), max_size=3)),
    st.tuples(st.just("release"), names, fences),
    st.tuples(st.just("end"), names, fences),
    st.tuples(st.just("get"), names),
    st.tuples(st.just("put"), names, facts),
    st.tuples(st.just("put_new"), names, facts),
    st.tuples(st.just("delete"), names),
    st.tuples(st.just("changes"), st.integers(0, 9)),
    st.tuples(st.just("commit"), st.sampled_from([1, 1, 1, 2, 9]), rows),
    st.tuples(st.just("tell"), st.sampled_from([0, 0, 1, 2]), passages),
    st.tuples(st.just("told"), st.sampled_from("stuv"), st.integers(0, 20), st.integers(0, 200)),
    st.tuples(st.just("heads"), st.integers(0, 9)),
    st.tuples(st.just("draw"), names),
    st.tuples(st.just("gateways")),
    st.tuples(st.just("send"), st.lists(st.tuples(st.sampled_from(GATEWAYS), facts), max_size=3)),
    st.tuples(st.just("mail")),
    st.tuples(st.just("crash")),
)
play = st.lists(st.tuples(st.sampled_from(GATEWAYS), steps), max_size=60)


async def hold(store: Store, held: list[tuple[str, int, bytes]]) -> list[bool]:
    return await store.hold([Held(name, fence, said, LONG_S) for name, fence, said in held])


async def tell(store: Store, keep: int, told: list[tuple[str, bytes, list[bytes]]]) -> None:
    await store.tell([Passage(*one) for one in told], KEEPS[keep])


async def draw(store: Store, name: str) -> bool:
    return await store.draw(name, 0.001, 2) == 0.0


ACTS: dict[str, Callable[..., Awaitable[Any]]] = {
    "find": lambda store, name: store.find(name),
    "claim": lambda store, name, said, over: store.claim(name, said, LONG_S, over),
    "take": lambda store, name, fence, said: store.take(name, fence, said, LONG_S),
    "hold": hold,
    "release": lambda store, name, fence: store.release(name, fence),
    "end": lambda store, name, fence: store.end(name, fence, "why", LONG_S),
    "get": lambda store, name: store.get(name),
    "put": lambda store, name, said: store.put(name, said, LONG_S),
    "put_new": lambda store, name, said: store.put_new(name, said, LONG_S),
    "delete": lambda store, name: store.delete(name),
    "tell": tell,
    "told": lambda store, story, after, most_bytes: store.told(story, after, most_bytes),
    "draw": draw,
    "gateways": lambda store: store.gateways(),
    "send": lambda store, letters: store.send(letters),
    "mail": mail,
}


class Side:
    """The processes of one of the two stores; versions are told by their order."""

    def __init__(self, stores: Mapping[str, Store]) -> None:
        self.stores = stores
        self.versions = {"t": [0], STORIES: [0]}

    def _nth(self, table: str, version: int) -> int:
        versions = self.versions[table]
        if version not in versions:
            versions.append(version)
        return versions.index(version)

    async def act(self, gateway: str, step: Step) -> Any:
        """Return what a step came to."""
        store, (what, *args) = self.stores[gateway], step
        if what in ("changes", "heads"):
            table = "t" if what == "changes" else STORIES
            versions = self.versions[table]
            changes = await store.changes(table, versions[args[0] % len(versions)])
            return replace(changes, version=self._nth(table, changes.version))
        if what == "commit":
            versions = self.versions["t"]
            since = versions[max(0, len(versions) - args[0])]
            version = await store.commit("t", since, args[1], LONG_S)
            return None if version is None else self._nth("t", version)
        return await ACTS[what](store, *args)


async def compare(url: str, script: list[tuple[str, Step]]) -> None:
    engine, prefix = Engine(), secrets.token_hex(4)
    memories = {gateway: MemoryStore(engine, gateway) for gateway in GATEWAYS}
    valkeys = {gateway: ValkeyStore(url, prefix=prefix, gateway=gateway) for gateway in GATEWAYS}
    living = list(GATEWAYS)
    async with asyncio.timeout(20.0), AsyncExitStack() as stack:
        for gateway in GATEWAYS:
            await stack.enter_async_context(memories[gateway])
            await stack.enter_async_context(valkeys[gateway])
        sides = Side(memories), Side(valkeys)
        for gateway, step in script:
            if gateway not in living:
                continue
            if step != ("crash",):
                memory, valkey = [await side.act(gateway, step) for side in sides]
                assert memory == valkey, (gateway, step)
            elif len(living) > 1:
                living.remove(gateway)
                await crash(engine, valkeys[gateway], valkeys[living[0]])
        for gateway in living:
            assert await mail(memories[gateway]) == await mail(valkeys[gateway])


async def crash(engine: Engine, store: ValkeyStore, other: ValkeyStore) -> None:
    engine.crash(store.gateway)
    for task in store._keeping:
        task.cancel()
    await asyncio.wait(store._keeping)
    await command(other, "DEL", f"{store._prefix}:gw:{store.gateway}")


@pytest.fixture(scope="module")
def shared() -> Iterator[str]:
    with ValkeyServer() as server:
        yield server.url


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is broken here, however slow the machine; and passages need not be long."""
    monkeypatch.setattr(valkey, "DEADLINE_S", 20.0)
    monkeypatch.setattr(stories, "CHUNK_BYTES", 100)


@pytest.mark.no_cover  # counting lines takes as long as the test; others count them
@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(script=play)
def test_both_stores_tell_three_processes_the_same(
    shared: str, script: list[tuple[str, Step]]
) -> None:
    asyncio.run(compare(shared, script))
