"""Proves the line of those who wait for room: its order, its bounds, and who may try when."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from gateway.fleet import line as lines
from gateway.fleet.line import Line, LineFull, WaitedTooLong
from gateway.launchers.base import AtCapacity, LaunchError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

BOUND = 30.0
FOREVER = BOUND * 60


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody tries by himself."""
    monkeypatch.setattr(lines, "AGAIN_S", FOREVER)


class Platform:
    """Has so much room, and notes who asked and who got some."""

    def __init__(self, room: int = 0) -> None:
        self.room = room
        self.asked: list[str] = []
        self.got: list[str] = []
        self.places: dict[str, list[tuple[int, int]]] = {}

    def attempt(self, name: str) -> Callable[[], Awaitable[str]]:
        async def attempt() -> str:
            self.asked.append(name)
            await asyncio.sleep(0)
            if self.room <= 0:
                raise AtCapacity("none")
            self.room -= 1
            self.got.append(name)
            return name

        return attempt

    def place(self, name: str) -> Callable[[int, int], None]:
        return lambda position, of: self.places.setdefault(name, []).append((position, of))


async def settled() -> None:
    """Let everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


class Crowd:
    """Those who go through a line, by name."""

    def __init__(self, line: Line, platform: Platform, tasks: asyncio.TaskGroup) -> None:
        self.line, self.platform, self.tasks = line, platform, tasks

    async def comes(self, name: str) -> asyncio.Task[str]:
        through = self.line.through("s", self.platform.attempt(name), self.platform.place(name))
        task = self.tasks.create_task(through, name=name)
        await settled()
        return task

    async def frees(self, room: int = 1) -> None:
        self.platform.room += room
        self.line.freed()
        await settled()


async def test_who_comes_while_there_is_room_stands_in_no_line() -> None:
    line, platform = Line(5, FOREVER), Platform(1)
    assert await line.through("s", platform.attempt("a"), platform.place("a")) == "a"
    assert (line.waiting, platform.places) == (0, {})


async def test_attempts_run_side_by_side_while_there_is_room() -> None:
    line, begun, go = Line(5, FOREVER), [], asyncio.Event()

    async def attempt() -> None:
        begun.append(1)
        await go.wait()

    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(line.through("s", attempt, lambda _position, _of: None))
        await settled()
        assert len(begun) == 3
        go.set()


async def test_who_finds_no_room_waits_and_is_told_his_position() -> None:
    line, platform = Line(5, FOREVER), Platform()
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        crowd = Crowd(line, platform, tasks)
        await crowd.comes("a")
        await crowd.comes("b")
        assert line.waiting == 2
        assert platform.places["a"][-1] == (1, 2)
        assert platform.places["b"][-1] == (2, 2)
        await crowd.frees(2)
    assert platform.got == ["a", "b"]


async def test_freed_room_goes_to_the_first() -> None:
    line, platform = Line(5, FOREVER), Platform()
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        crowd = Crowd(line, platform, tasks)
        waiting = [await crowd.comes(name) for name in "abc"]
        await crowd.frees()
        assert [task.done() for task in waiting] == [True, False, False]
        assert platform.places["b"][-1] == (1, 2)
        assert platform.places["c"][-1] == (2, 2)
        await crowd.frees(2)
    assert platform.got == ["a", "b", "c"]


async def test_freed_room_for_several_is_taken_in_order() -> None:
    line, platform = Line(10, FOREVER), Platform()
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        crowd = Crowd(line, platform, tasks)
        for name in "abcdef":
            await crowd.comes(name)
        await crowd.frees(6)
    assert platform.got == list("abcdef")


async def test_nobody_overtakes_those_who_wait_though_there_is_room() -> None:
    line, platform = Line(5, FOREVER), Platform()
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        crowd = Crowd(line, platform, tasks)
        await crowd.comes("a")
        platform.room = 1
        late = await crowd.comes("b")
        assert not late.done()
        assert platform.asked == ["a"]
        await crowd.frees(1)
    assert platform.got == ["a", "b"]


async def test_only_the_first_asks_the_platform() -> None:
    line, platform = Line(5, FOREVER), Platform()
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        crowd = Crowd(line, platform, tasks)
        for name in "abc":
            await crowd.comes(name)
        platform.asked.clear()
        await crowd.frees(0)
        assert platform.asked == ["a"]
        await crowd.frees(3)


async def test_first_tries_again_by_itself_as_others_use_the_app_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lines, "AGAIN_S", 0.01)
    line, platform = Line(5, FOREVER), Platform()
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        crowd = Crowd(line, platform, tasks)
        task = await crowd.comes("a")
        platform.room = 1
        assert await task == "a"


async def test_room_that_is_freed_during_an_attempt_is_not_missed() -> None:
    line, platform = Line(5, FOREVER), Platform()
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        crowd = Crowd(line, platform, tasks)
        task = await crowd.comes("a")
        line.freed()
        while platform.asked != ["a", "a"]:  # noqa: ASYNC110 - both ends are on this loop
            await asyncio.sleep(0)
        line.freed()  # it is being told that there is none
        await settled()
        assert platform.asked == ["a", "a", "a"]
        await crowd.frees()
        assert task.done()


async def test_who_goes_away_leaves_the_line_to_the_others() -> None:
    line, platform = Line(5, FOREVER), Platform()
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        crowd = Crowd(line, platform, tasks)
        _, gone, _ = [await crowd.comes(name) for name in "abc"]
        gone.cancel()
        await settled()
        assert line.waiting == 2
        assert platform.places["c"][-1] == (2, 2)
        await crowd.frees(2)
    assert platform.got == ["a", "c"]


async def test_first_that_goes_away_lets_the_next_try_at_once() -> None:
    line, platform = Line(5, FOREVER), Platform()
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        crowd = Crowd(line, platform, tasks)
        first, second = [await crowd.comes(name) for name in "ab"]
        platform.room = 1
        first.cancel()
        assert await second == "b"


async def test_who_fails_for_another_reason_leaves_the_line() -> None:
    line, platform = Line(5, FOREVER), Platform()
    broken = False

    async def attempt() -> str:
        if broken:
            raise LaunchError("broken")
        raise AtCapacity("none")

    async def through() -> None:
        with pytest.raises(LaunchError, match="broken"):
            await line.through("s", attempt, platform.place("a"))

    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        tasks.create_task(through())
        await settled()
        crowd = Crowd(line, platform, tasks)
        second = await crowd.comes("b")
        broken = True
        await crowd.frees()
        assert await second == "b"
    assert line.waiting == 0


async def test_who_is_told_of_no_room_at_once_fails_when_the_line_is_full() -> None:
    line, platform = Line(1, FOREVER), Platform()
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        crowd = Crowd(line, platform, tasks)
        await crowd.comes("a")
        with pytest.raises(LineFull, match=r"1 sessions wait.*QUEUE_LENGTH is 1"):
            await line.through("s", platform.attempt("b"), platform.place("b"))
        assert "b" not in platform.asked
        await crowd.frees()


async def test_line_without_places_takes_nobody() -> None:
    line, platform = Line(0, FOREVER), Platform()
    with pytest.raises(LineFull):
        await line.through("s", platform.attempt("a"), platform.place("a"))
    assert platform.asked == ["a"]


@pytest.mark.parametrize(("length", "waiting", "full"), [(2, 1, False), (2, 2, True)])
async def test_check_says_whether_one_more_may_come(length: int, waiting: int, full: bool) -> None:
    line, platform = Line(length, FOREVER), Platform()
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        crowd = Crowd(line, platform, tasks)
        for number in range(waiting):
            await crowd.comes(str(number))
        if full:
            with pytest.raises(LineFull):
                line.check()
        else:
            line.check()
        await crowd.frees(waiting)


async def test_empty_line_lets_try_even_if_it_has_no_places() -> None:
    Line(0, FOREVER).check()


async def test_who_waited_too_long_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "AGAIN_S", 0.005)
    line, platform = Line(5, 0.03), Platform()
    async with asyncio.timeout(BOUND):
        with pytest.raises(WaitedTooLong, match="QUEUE_TIMEOUT_S"):
            await line.through("s", platform.attempt("a"), platform.place("a"))
    assert line.waiting == 0


async def test_patience_of_each_begins_with_his_own_coming() -> None:
    line, platform = Line(5, 0.05), Platform()

    async def gives_up(name: str) -> None:
        with pytest.raises(WaitedTooLong):
            await line.through("s", platform.attempt(name), platform.place(name))

    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        first = tasks.create_task(gives_up("a"))
        await settled()
        second = tasks.create_task(gives_up("b"))
        await first
        assert not second.done() or platform.places["b"][-1] == (1, 1)
    assert line.waiting == 0


async def test_line_that_has_emptied_lets_attempts_run_side_by_side_again() -> None:
    line, platform = Line(5, FOREVER), Platform()
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        crowd = Crowd(line, platform, tasks)
        first = await crowd.comes("a")
        await crowd.frees()
        await first
        platform.room = 1
        assert await (await crowd.comes("b")) == "b"
    assert "b" not in platform.places
