"""Proves that an outbox gives out what was put in, in order, once, and ends when it is closed."""

import asyncio

import pytest

from gateway.sessions.delivery import Delivery
from gateway.sessions.streams import Item, Outbox

WAIT_S = 5.0


@pytest.fixture(scope="module", autouse=True)
def no_loop_but_the_tests() -> None:
    """Otherwise pytest-asyncio's first look for a loop makes one, and never closes it."""
    asyncio.set_event_loop(None)


def items(outbox: Outbox, count: int) -> list[Item]:
    return [Delivery(outbox, b"%d" % number) for number in range(count)]


def test_deliveries_are_taken_in_order() -> None:
    outbox = Outbox()
    put = items(outbox, 3)
    for item in put:
        outbox.put(item)
    taken = [outbox.take() for _ in put]
    assert [a is b for a, b in zip(taken, put, strict=True)] == [True] * 3


@pytest.mark.parametrize("closes", [False, True])
async def test_waiting_handler_is_woken_by_a_delivery_and_by_the_end(closes: bool) -> None:
    outbox = Outbox()
    (item,) = items(outbox, 1)
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(outbox.until_ready(WAIT_S * 2))
        await asyncio.sleep(0)
        waited = not waiting.done()
        if closes:
            outbox.close()
        else:
            outbox.put(item)
    assert (waited, outbox.ready) == (True, not closes)


def test_closed_outbox_still_gives_out_what_lies_in_it() -> None:
    outbox = Outbox()
    (item,) = items(outbox, 1)
    outbox.put(item)
    outbox.close()
    assert (outbox.take() is item, outbox.ready) == (True, False)


async def test_wait_that_was_cancelled_loses_nothing() -> None:
    outbox = Outbox()
    (item,) = items(outbox, 1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await outbox.until_ready(WAIT_S)
    outbox.put(item)
    assert outbox.take() is item


def test_rest_is_everything_not_taken_and_leaves_nothing() -> None:
    outbox = Outbox()
    put = items(outbox, 3)
    for item in put:
        outbox.put(item)
    outbox.take()
    assert (outbox.rest(), outbox.rest()) == (put[1:], [])


async def test_looking_whether_something_waits_takes_nothing() -> None:
    outbox = Outbox()
    (item,) = items(outbox, 1)
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(outbox.until_ready(WAIT_S))
        await asyncio.sleep(0)
        before = (waiting.done(), outbox.ready)
        outbox.put(item)
    assert (before, outbox.ready, outbox.rest()) == ((False, False), True, [item])


async def test_looking_ends_with_its_patience_or_with_the_outbox() -> None:
    outbox = Outbox()
    async with asyncio.timeout(WAIT_S):
        await outbox.until_ready(0)
        outbox.close()
        await outbox.until_ready(WAIT_S * 2)
    assert not outbox.ready


def test_answer_that_comes_first_is_taken_alone() -> None:
    outbox = Outbox()
    answer = Delivery(outbox, b"{}", last=True)
    outbox.put(answer)
    assert (outbox.only_answer() is answer, outbox.ready) == (True, False)


def test_anything_but_an_answer_is_left_for_a_stream() -> None:
    outbox = Outbox()
    put = [Delivery(outbox, b"note"), Delivery(outbox, b"{}", last=True)]
    for item in put:
        outbox.put(item)
    assert (outbox.only_answer(), outbox.rest()) == (None, put)


def test_end_without_a_message_is_left_for_a_stream() -> None:
    outbox = Outbox()
    outbox.put(Delivery(outbox, b"", last=True))
    assert (outbox.only_answer(), outbox.ready) == (None, True)


def test_empty_outbox_has_no_answer() -> None:
    assert Outbox().only_answer() is None


def test_outbox_is_open_until_it_is_closed() -> None:
    outbox = Outbox()
    before = outbox.closed
    outbox.close()
    assert (before, outbox.closed) == (False, True)
