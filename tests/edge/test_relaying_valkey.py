"""Proves over a real Valkey that a request may come to any gateway process."""

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from gateway.exchange import post as post_module
from gateway.store.valkey import ValkeyStore
from tests.exchange.houses import MESSAGE_BYTES, WAIT_S, Street, opened
from tests.exchange.town import eventually
from tests.fakes.valkey import ValkeyServer

NOISE = random.Random(9).randbytes(MESSAGE_BYTES)  # noqa: S311 - the same bytes in every run


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest_asyncio.fixture
async def street(server: ValkeyServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Street]:
    monkeypatch.setattr(post_module, "PROBE_S", 0.1)
    monkeypatch.setattr(post_module, "STALLED_S", 0.3)
    prefix = secrets.token_hex(4)
    a, b = (ValkeyStore(server.url, prefix=prefix, gateway=name) for name in "ab")
    async with opened(a, b) as street, asyncio.timeout(2.5 * WAIT_S):
        yield street


@pytest.mark.parametrize("size", [1, MESSAGE_BYTES])
async def test_bodies_pass_byte_for_byte_both_ways(street: Street, size: int) -> None:
    async with street.post("echo", NOISE[:size]) as response:
        assert await response.read() == NOISE[:size]
    assert street.a.did == ["echo"]


async def test_event_stream_comes_as_it_is_written(street: Street) -> None:
    async with street.post("stream") as response:
        assert await response.content.readuntil(b"\n\n") == b"id: 1.i1\ndata: first\n\n"
        street.a.gate.set()
        assert await response.read() == b"data: second\n\n"


async def test_client_that_hangs_up_is_known_where_its_session_is(street: Street) -> None:
    async with street.post("stream") as response:
        await response.content.readuntil(b"\n\n")
    await street.a.until(lambda: street.a.cancelled == ["stream"])


async def test_stream_pauses_while_the_engine_is_away(street: Street, server: ValkeyServer) -> None:
    async with street.post("stream") as response:
        await response.content.readuntil(b"\n\n")
        server.kill()
        try:
            street.a.gate.set()
            await eventually(lambda: street.a.exchange._away_since)
        finally:
            server.start()
        assert await response.read() == b"data: second\n\n"


async def test_request_waits_for_an_engine_that_comes_back(
    street: Street, server: ValkeyServer
) -> None:
    server.kill()
    async with asyncio.TaskGroup() as tasks:

        async def ask() -> object:
            async with street.post("echo", {"x": 1}) as response:
                return await response.json()

        try:
            asking = tasks.create_task(ask())
            await eventually(lambda: street.b.exchange._away_since)
        finally:
            server.start()
    assert asking.result() == {"x": 1}
    assert street.a.did == ["echo"]
