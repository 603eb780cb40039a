"""Proves that an outbox gives out what was put in, in order, once, and ends when it is closed."""

import asyncio

import pytest

from gateway.sessions.session import Delivery
from gateway.sessions.streams import Item, Outbox

WAIT_S = 5.0


@pytest.fixture(scope="module", autouse=True)
def no_loop_but_the_tests() -> None:
    """Otherwise pytest-asyncio's first look for a loop makes one, and never closes it."""
    asyncio.set_event_loop(None)


def items(outbox: Outbox, count: int) -> list[Item]:
    return [Delivery(outbox, b"%d" % number) for number in range(count)]


async def test_deliveries_are_taken_in_order() -> None:
    outbox = Outbox()
    put = items(outbox, 3)
    for item in put:
        outbox.put(item)
    async with asyncio.timeout(WAIT_S):
        taken = [await outbox.take() for _ in put]
    assert [a is b for a, b in zip(taken, put, strict=True)] == [True] * 3


async def test_waiting_handler_is_woken_by_a_delivery() -> None:
    outbox = Outbox()
    (item,) = items(outbox, 1)
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as tasks:
        taking = tasks.create_task(outbox.take())
        await asyncio.sleep(0)
        waited = not taking.done()
        outbox.put(item)
    assert (waited, taking.result() is item) == (True, True)


async def test_waiting_handler_is_woken_by_the_end() -> None:
    outbox = Outbox()
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as tasks:
        taking = tasks.create_task(outbox.take())
        await asyncio.sleep(0)
        outbox.close()
    assert taking.result() is None


async def test_closed_outbox_still_gives_out_what_lies_in_it() -> None:
    outbox = Outbox()
    (item,) = items(outbox, 1)
    outbox.put(item)
    outbox.close()
    async with asyncio.timeout(WAIT_S):
        assert [await outbox.take(), await outbox.take(), await outbox.take()] == [item, None, None]


async def test_take_that_was_cancelled_loses_nothing() -> None:
    outbox = Outbox()
    (item,) = items(outbox, 1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await outbox.take()
    outbox.put(item)
    async with asyncio.timeout(WAIT_S):
        assert await outbox.take() is item


async def test_rest_is_everything_not_taken_and_leaves_nothing() -> None:
    outbox = Outbox()
    put = items(outbox, 3)
    for item in put:
        outbox.put(item)
    async with asyncio.timeout(WAIT_S):
        await outbox.take()
    assert (outbox.rest(), outbox.rest()) == (put[1:], [])


def test_outbox_is_open_until_it_is_closed() -> None:
    outbox = Outbox()
    before = outbox.closed
    outbox.close()
    assert (before, outbox.closed) == (False, True)
