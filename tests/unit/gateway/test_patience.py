"""Proves that all waits of one request share the time until its answer must begin."""

import asyncio

import pytest

from gateway import patience


async def test_wait_outside_a_request_has_its_own_limit() -> None:
    assert patience.patience(1000.0) == 1000.0


async def test_waits_of_a_request_share_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("gateway.patience.time.monotonic", lambda: now)
    patience.begin()
    assert (patience.patience(10.0), patience.patience(60.0)) == (10.0, patience.FIRST_BYTE_S)
    now += patience.FIRST_BYTE_S - 4.0
    assert (patience.patience(2.0), patience.patience(10.0)) == (2.0, 4.0)
    now += 5.0
    assert patience.patience(10.0) == 0.0


async def test_time_that_the_body_takes_to_arrive_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr("gateway.patience.time.monotonic", lambda: now)
    patience.begin()
    now += 10.0
    with patience.arriving():
        now += 20.0
    assert patience.patience(60.0) == patience.FIRST_BYTE_S - 10.0


async def test_requests_do_not_share_it_with_each_other() -> None:
    async def request() -> float:
        patience.begin()
        return patience.patience(1000.0)

    async with asyncio.TaskGroup() as tasks:
        served = tasks.create_task(request())
    assert served.result() <= patience.FIRST_BYTE_S
    assert patience.patience(1000.0) == 1000.0


def test_the_deadline_lies_below_the_routers() -> None:
    assert patience.FIRST_BYTE_S < 30.0
