"""Proves over a real Valkey what `test_exchange` proves over memory, where the engine matters."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from gateway.exchange import post as post_module
from gateway.exchange.carrying import WINDOW_BYTES, PeerGone, Superseded
from gateway.store.valkey import ValkeyStore
from tests.exchange.town import (
    NOISE,
    WAIT_S,
    Gateway,
    Town,
    asked,
    eventually,
    exchange_many,
    first,
    opened,
    whole,
)
from tests.fakes.valkey import ValkeyServer


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything that waits for trouble to show wait less."""
    monkeypatch.setattr(post_module, "PROBE_S", 0.1)
    monkeypatch.setattr(post_module, "STALLED_S", 0.3)


@pytest_asyncio.fixture
async def town(server: ValkeyServer) -> AsyncIterator[Town]:
    prefix = secrets.token_hex(4)

    def open_store(name: str) -> ValkeyStore:
        return ValkeyStore(server.url, prefix=prefix, gateway=name)

    async with opened(open_store) as town, asyncio.timeout(2.5 * WAIT_S):
        yield town


def store_of(gateway: Gateway) -> ValkeyStore:
    assert isinstance(gateway.store, ValkeyStore)
    return gateway.store


async def test_bodies_of_the_largest_size_pass_both_ways(town: Town) -> None:
    async with town.a.exchange.ask("b", "s1", asked(), NOISE) as answer:
        assert await whole(answer) == NOISE


async def test_many_requests_of_all_processes_do_not_mix(town: Town) -> None:
    await exchange_many(town)


async def test_claim_taken_by_another_process_ends_an_answer(town: Town) -> None:
    async with town.a.exchange.ask("b", "s1", asked("/gated")) as answer:
        _, pieces = await first(answer)
        await town.c.store.take("s/s1", 2, b"", 60.0)
        with pytest.raises(Superseded):
            await anext(pieces)
    await town.b.until(lambda: town.b.cancelled == ["/gated"])


@pytest.mark.usefixtures("hasty")
async def test_process_that_is_dead_to_the_engine_is_gone(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(post_module, "GONE_S", 0.3)
    async with town.a.exchange.ask("b", "s1", asked("/gated")) as answer:
        _, pieces = await first(answer)
        for task in store_of(town.b)._keeping:
            task.cancel()
        await store_of(town.a)._wire.ask("DEL", f"{store_of(town.a)._prefix}:gw:b")
        with pytest.raises(PeerGone):
            await anext(pieces)


@pytest.mark.usefixtures("hasty")
async def test_answer_goes_on_after_the_engine_was_silent(town: Town, server: ValkeyServer) -> None:
    async with town.a.exchange.ask("b", "s1", asked("/gated")) as answer:
        piece, pieces = await first(answer)
        server.pause()
        try:
            town.b.gate.set()
            await eventually(lambda: town.b.exchange._away_since)
        finally:
            server.resume()
        assert [piece, *[rest async for rest in pieces]] == [b"first", b"second"]


@pytest.mark.usefixtures("hasty")
async def test_nothing_is_lost_when_the_engine_starts_again_without_memory(
    town: Town, server: ValkeyServer
) -> None:
    body = NOISE[: 8 * WINDOW_BYTES]
    async with asyncio.TaskGroup() as tasks:

        async def ask() -> bytes:
            async with town.a.exchange.ask("b", "s1", asked(), body) as answer:
                return await whole(answer)

        asking = tasks.create_task(ask())
        await town.b.until(lambda: bool(town.b.seen))
        server.restart()
    assert asking.result() == body
    assert len(town.b.seen) == 1
