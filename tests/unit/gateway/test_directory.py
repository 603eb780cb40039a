"""Which sessions live here, which have ended here, and who waits for one that is on its way."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from gateway.registry.servers import ServerDefinition
from gateway.sessions import directory as directories
from gateway.sessions.directory import Directory
from gateway.sessions.record import Reason, SessionRecord, Step

if TYPE_CHECKING:
    import pytest

    from gateway.sessions.live import Live

BOUND = 30.0


def live(fingerprint: str, *, arriving: bool = False) -> Live:
    """A session, as far as the directory looks at one."""
    server = ServerDefinition(name="s", command="never-run")
    record = SessionRecord(f"s-{fingerprint}", fingerprint, "p", server, 0.0)
    return cast("Live", SimpleNamespace(record=record, arriving=arriving))


async def waiting(tasks: asyncio.TaskGroup, directory: Directory) -> asyncio.Task[Live | None]:
    """Somebody who waits for the session `a`, and is known to wait."""
    task = tasks.create_task(directory.arrival("a", BOUND))
    async with asyncio.timeout(BOUND):
        while not directory.awaited:  # noqa: ASYNC110 - nobody announces it, and it is soon
            await asyncio.sleep(0)
    return task


def test_session_is_found_by_its_fingerprint() -> None:
    directory, a, b = Directory(), live("a"), live("b")
    directory.add(a)
    directory.add(b)
    assert (directory.get("a"), directory.get("b"), directory.get("c")) == (a, b, None)


def test_sessions_are_counted_and_listed() -> None:
    directory, a, b = Directory(), live("a"), live("b")
    directory.add(a)
    directory.add(b)
    assert (len(directory), list(directory)) == (2, [a, b])


def test_session_may_be_removed_while_all_are_walked_through() -> None:
    directory = Directory()
    for name in "abc":
        directory.add(live(name))
    for each in directory:
        directory.remove(each, Reason.IDLE)
    assert len(directory) == 0


def test_removed_session_is_not_found() -> None:
    directory, a = Directory(), live("a")
    directory.add(a)
    directory.remove(a, Reason.IDLE)
    assert directory.get("a") is None


def test_reason_of_an_end_is_remembered() -> None:
    directory, a = Directory(), live("a")
    directory.add(a)
    directory.remove(a, Reason.CLIENT_DELETE)
    assert directory.ended("a") is Reason.CLIENT_DELETE


def test_session_that_lives_on_elsewhere_has_not_ended() -> None:
    directory, a = Directory(), live("a")
    directory.add(a)
    directory.remove(a, None)
    assert directory.ended("a") is None


def test_session_that_is_opened_again_has_not_ended() -> None:
    directory, a = Directory(), live("a")
    directory.add(a)
    directory.remove(a, Reason.IDLE)
    directory.add(live("a"))
    assert directory.ended("a") is None


def test_oldest_end_is_forgotten_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directories, "MAX_ENDED", 2)
    directory = Directory()
    for name in "abc":
        each = live(name)
        directory.add(each)
        directory.remove(each, Reason.IDLE)
    assert [directory.ended(name) for name in "abc"] == [None, Reason.IDLE, Reason.IDLE]


def test_session_is_dormant_until_a_dyno_is_asked_for() -> None:
    directory, a, b = Directory(), live("a"), live("b")
    directory.add(a)
    directory.add(b)
    b.record.move(Step.LAUNCH)
    assert directory.dormant == [a]


async def test_session_that_is_here_is_not_waited_for() -> None:
    directory, a = Directory(), live("a")
    directory.add(a)
    assert await directory.arrival("a", 0.0) is a


async def test_nobody_arrives_within_the_patience() -> None:
    assert await Directory().arrival("a", 0.001) is None


async def test_waiting_ends_with_the_arrival() -> None:
    directory, a = Directory(), live("a")
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        task = await waiting(tasks, directory)
        directory.add(a)
        directory.arrived()
    assert task.result() is a


async def test_session_that_is_being_rebuilt_is_waited_for() -> None:
    directory = Directory()
    half = live("a", arriving=True)
    directory.add(half)
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        task = await waiting(tasks, directory)
        directory.arrived()
        for _ in range(3):
            await asyncio.sleep(0)
        assert not task.done()
        cast("SimpleNamespace", half).arriving = False
        directory.arrived()
    assert task.result() is half


async def test_arrival_of_another_session_ends_no_waiting() -> None:
    directory, a = Directory(), live("a")
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        task = await waiting(tasks, directory)
        directory.add(live("b"))
        directory.arrived()
        for _ in range(3):
            await asyncio.sleep(0)
        assert not task.done()
        directory.add(a)
        directory.arrived()
    assert task.result() is a


async def test_all_who_wait_hear_of_the_arrival() -> None:
    directory, a = Directory(), live("a")
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        first = await waiting(tasks, directory)
        second = tasks.create_task(directory.arrival("a", BOUND))
        await asyncio.sleep(0)
        directory.add(a)
        directory.arrived()
    assert (first.result(), second.result()) == (a, a)


async def test_shutdown_ends_all_waiting_with_nothing() -> None:
    directory = Directory()
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        task = await waiting(tasks, directory)
        directory.drain()
    assert (task.result(), directory.draining) == (None, True)


async def test_nobody_waits_once_the_process_leaves() -> None:
    directory = Directory()
    directory.drain()
    async with asyncio.timeout(BOUND):
        assert await directory.arrival("a", 2 * BOUND) is None
