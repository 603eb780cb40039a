"""Sessions that wait in line for a dyno: what their clients are told, and who gets the next one."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from gateway import events
from gateway.fleet import line
from gateway.launchers.base import AtCapacity, LaunchError
from gateway.sessions import catalogues
from tests.edge.dynos_house import (
    FOREVER,
    NOW,
    Clock,
    booted,
    definition,
    happens,
    heard,
    hurry,
    looked_again,
    opening,
    order,
    running,
    terms,
)
from tests.edge.eras_house import Program, call, stage
from tests.edge.eras_house import opens as opens_dormant
from tests.fakes.house import BOUND, INITIALIZE, House, eventually, refusal, token_of
from tests.fakes.launchers import Scripted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.registry.servers import ServerDefinition


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    monkeypatch.setattr(catalogues, "AGAIN_S", (FOREVER,))


LAZY = definition(catalogue=True, translate=False)
"""Its sessions open without a dyno, so that clients have a key while they wait in line."""


@asynccontextmanager
async def dormant(
    house: House, launcher: Scripted, sessions: int
) -> AsyncIterator[tuple[Scripted, list[str]]]:
    """Sessions that have no dyno yet; the platform has no room from then on."""
    async with stage(house) as played:
        await played.looks(Program())
        await eventually(lambda: not launcher.running)
        keys = [(await opens_dormant(house))[0] for _ in range(sessions)]
        launcher.limit, launcher.tried = 0, 0
        yield launcher, keys


async def waits(house: House, number: int) -> None:
    """Wait until so many stand in line."""
    await eventually(lambda: len(house.manager.dynos.queue) == number)


async def room(house: House, launcher: Scripted) -> None:
    """One dyno more may run, and one of ours has ended."""
    assert launcher.limit is not None
    launcher.limit += 1
    house.manager.fleet.line(None).freed()


def names(house: House, keys: list[str]) -> list[str]:
    return [house.live(key).record.session_id for key in keys]


async def test_position_is_an_event() -> None:
    async with (
        running(None, None, LAZY) as (house, launcher),
        dormant(house, launcher, 2) as (_, keys),
        asyncio.TaskGroup() as group,
    ):
        tasks = []
        for number, key in enumerate(keys, 1):
            tasks.append(group.create_task(house.post(call(number), key)))
            await waits(house, number)
        told = [(each.session, each.position) for each in heard(house, events.Queued)]
        assert told == list(zip(names(house, keys), (1, 2), strict=True))
        for task in tasks:
            task.cancel()


async def test_position_is_told_as_progress() -> None:
    asks = call(7)
    asks["params"]["_meta"] = {"progressToken": "t"}
    async with (
        running(None, None, LAZY) as (house, launcher),
        dormant(house, launcher, 2) as (_, keys),
        asyncio.TaskGroup() as group,
    ):
        before = group.create_task(house.post(call(1), keys[0]))
        await waits(house, 1)
        async with house.asking(asks, keys[1]) as stream:
            said = [await stream.message(), await stream.message()]
            messages = [each["params"]["message"] for each in said]
            assert "waiting for a dyno, number 2 of 2 in line" in messages
            await house.delete(keys[0])
            moved = await stream.message()
            assert moved["params"]["message"] == "waiting for a dyno, number 1 of 1 in line"
            figures = [each["params"]["progress"] for each in (*said, moved)]
            assert figures == sorted(set(figures))
            assert {each["params"]["progressToken"] for each in said} == {"t"}
        before.cancel()


async def test_order_is_kept() -> None:
    async with (
        running(None, None, LAZY) as (house, launcher),
        dormant(house, launcher, 4) as (_, keys),
        asyncio.TaskGroup() as group,
    ):
        tasks = []
        for number, key in enumerate(keys, 1):
            tasks.append(group.create_task(house.post(call(number), key)))
            await waits(house, number)
        launches = [house.live(key).record.launch_id for key in keys]
        for launch_id in launches:
            await room(house, launcher)
            assert (await order(launcher)).launch_id == launch_id
        for task in tasks:
            task.cancel()


async def test_dyno_that_ends_lets_the_first_try_at_once() -> None:
    launcher = Scripted(limit=1)
    async with running(launcher) as (house, _):
        agent, session = await booted(house, launcher)
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            waiting = group.create_task(house.post(INITIALIZE))
            await waits(house, 1)
            await house.delete(session)
            await agent.leaves()
            other = await house.join(await order(launcher))
            await other.boots()
        assert waiting.result().status == 200
        assert house.manager.dynos.queue == []


async def test_client_that_goes_away_leaves_the_line() -> None:
    async with (
        running(None, None, LAZY) as (house, launcher),
        dormant(house, launcher, 2) as (_, keys),
        asyncio.TaskGroup() as group,
    ):
        calls = []
        for number, key in enumerate(keys, 1):
            calls.append(group.create_task(house.post(call(number), key)))
            await waits(house, number)
        name = names(house, keys)[0]
        await house.delete(keys[0])
        await waits(house, 1)
        closed = [each for each in heard(house, events.Closed) if each.session == name]
        assert [each.reason for each in closed] == ["client_delete"]
        second = house.live(keys[1]).record.launch_id
        await room(house, launcher)
        assert (await order(launcher)).launch_id == second
        for task in calls:
            task.cancel()


async def test_client_that_leaves_the_line_pays_nothing() -> None:
    clock = Clock()
    async with (
        running(None, terms(clock), LAZY) as (house, launcher),
        dormant(house, launcher, 1) as (_, keys),
        asyncio.TaskGroup() as group,
    ):
        waiting = group.create_task(house.post(call(1), keys[0]))
        await waits(house, 1)
        name = names(house, keys)[0]
        clock.now += 100
        await house.delete(keys[0])
        await eventually(lambda: any(each.session == name for each in heard(house, events.Closed)))
        (closed,) = [each for each in heard(house, events.Closed) if each.session == name]
        assert (closed.dyno_s, closed.usd) == (0.0, 0.0)
        report = house.manager.fleet.book.report(clock.now)
        assert report["running"] == []
        waiting.cancel()


async def test_client_that_leaves_during_an_attempt_in_vain_stands_in_no_line() -> None:
    clock = Clock()
    async with (
        running(None, terms(clock), LAZY) as (house, launcher),
        dormant(house, launcher, 2) as (_, keys),
        asyncio.TaskGroup() as group,
    ):
        launcher.gate.clear()
        first = group.create_task(house.post(call(1), keys[0]))
        await eventually(lambda: launcher.tried == 1)
        name = names(house, keys)[0]
        await house.delete(keys[0])
        clock.now += 100
        launcher.gate.set()
        second = group.create_task(house.post(call(2), keys[1]))
        await eventually(lambda: any(each.session == name for each in heard(house, events.Closed)))
        (closed,) = [each for each in heard(house, events.Closed) if each.session == name]
        assert closed.usd == 0.0
        await waits(house, 1)
        assert [live.record.session_id for live, _ in house.manager.dynos.queue] == names(
            house, keys[1:]
        )
        for task in (first, second):
            task.cancel()


async def test_client_that_leaves_during_an_attempt_that_succeeds_leaves_no_dyno() -> None:
    launcher = Scripted()
    async with (
        running(launcher, None, LAZY) as (house, _),
        dormant(house, launcher, 1) as (_, keys),
        asyncio.TaskGroup() as group,
    ):
        launcher.limit = None
        launcher.gate.clear()
        first = group.create_task(house.post(call(1), keys[0]))
        await eventually(lambda: launcher.tried == 1)
        await house.delete(keys[0])
        launcher.gate.set()
        made = await order(launcher)
        await eventually(lambda: f"fake.{made.launch_id}" in launcher.stopped)
        assert launcher.running == {}
        first.cancel()


async def test_full_line_refuses_with_a_time_to_come_back() -> None:
    async with (
        running(None, terms(queue_length=1), LAZY) as (house, launcher),
        dormant(house, launcher, 2) as (_, keys),
        asyncio.TaskGroup() as group,
    ):
        waiting = group.create_task(house.post(call(1), keys[0]))
        await waits(house, 1)
        refused = await house.post(call(2), keys[1])
        assert (await refusal(refused))[::2] == (503, "queue_full")
        assert int(refused.headers["Retry-After"]) > 0
        assert house.live(keys[1]).record.state == "requested"
        waiting.cancel()


async def test_opening_is_refused_too_when_the_line_is_full() -> None:
    launcher = Scripted(limit=0)
    async with (
        running(launcher, terms(queue_length=1)) as (house, _),
        asyncio.timeout(BOUND),
        asyncio.TaskGroup() as group,
    ):
        waiting = group.create_task(house.post(INITIALIZE))
        await waits(house, 1)
        refused = await house.post(INITIALIZE)
        assert (await refusal(refused))[::2] == (503, "queue_full")
        assert refused.headers["Retry-After"]
        assert len(house.manager.directory) == 1
        waiting.cancel()


async def test_who_waited_too_long_is_told_that_there_is_no_room() -> None:
    clock = Clock()
    launcher = Scripted(limit=0)
    async with running(launcher, terms(clock, queue_timeout_s=0.05)) as (house, _):
        async with asyncio.timeout(BOUND):
            refused = await house.post(INITIALIZE)
        status, _, reason, _ = await refusal(refused)
        assert reason == "no_room"
        assert status == 503
        assert int(refused.headers["Retry-After"]) > 0
        closed = await happens(house, events.Closed)
        assert (closed.reason, closed.usd) == ("no_room", 0.0)
        assert house.manager.fleet.book.report(NOW)["running"] == []


async def test_boot_timeout_does_not_strike_in_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "AGAIN_S", 0.2)
    launcher = Scripted(limit=0)
    async with (
        running(launcher, None, definition(boot_timeout=0.06)) as (house, _),
        asyncio.timeout(BOUND),
        asyncio.TaskGroup() as group,
    ):
        waiting = group.create_task(house.post(INITIALIZE))
        await eventually(lambda: launcher.tried >= 4)
        assert heard(house, events.Closing) == []
        waiting.cancel()


async def test_boot_timeout_strikes_once_the_dyno_is_there() -> None:
    launcher = Scripted(limit=0)
    async with running(launcher, None, definition(boot_timeout=0.2)) as (house, _):
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            waiting = group.create_task(house.post(INITIALIZE))
            await waits(house, 1)
            await room(house, launcher)
        assert (await refusal(waiting.result()))[2] == "start_timeout"
        await happens(house, events.Closed)
        assert launcher.running == {}


async def test_failure_while_it_waits_is_told_and_frees_the_place() -> None:
    launcher = Scripted(limit=0)
    async with running(launcher) as (house, _):
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            waiting = group.create_task(house.post(INITIALIZE))
            await waits(house, 1)
            launcher.refusals.append(LaunchError("the app is gone"))
            await room(house, launcher)
        _, _, reason, _ = await refusal(waiting.result())
        assert reason == "launch_failed"
        assert "the app is gone" in await waiting.result().text()
        assert house.manager.dynos.queue == []
        assert house.manager.fleet.lines == {}


async def test_capacity_that_is_denied_again_and_again_keeps_the_order() -> None:
    async with (
        running(None, None, LAZY) as (house, launcher),
        dormant(house, launcher, 3) as (_, keys),
        asyncio.TaskGroup() as group,
    ):
        tasks = []
        for number, key in enumerate(keys, 1):
            tasks.append(group.create_task(house.post(call(number), key)))
            await waits(house, number)
        expected = [house.live(key).record.launch_id for key in keys]
        launcher.limit = 3
        launcher.refusals.extend(AtCapacity("raced") for _ in range(5))
        got: list[str] = []
        while len(got) < 3:
            house.manager.fleet.line(None).freed()
            made = await order(launcher)
            await looked_again(launcher)
            if made.launch_id in launcher.running:
                got.append(made.launch_id)
        assert got == expected
        for task in tasks:
            task.cancel()


async def test_rush_of_many_is_served_one_after_the_other() -> None:
    launcher = Scripted(limit=2)
    served = 12
    async with running(launcher, terms(queue_length=served)) as (house, _):

        async def serve() -> None:
            for _ in range(served):
                made = await order(launcher)
                assert len(launcher.running) <= 2
                agent = await house.join(made)
                await agent.boots()
                live = next(
                    each
                    for each in house.manager.directory
                    if each.record.launch_id == made.launch_id
                )
                group.create_task(ends(live.record.session_id))

        keys: asyncio.Queue[str] = asyncio.Queue(served)

        async def ends(session: str) -> None:
            key = await keys.get()
            assert await house.delete(key) in (200, 204)

        async def client() -> None:
            response = await house.post(INITIALIZE)
            assert response.status == 200
            keys.put_nowait(response.headers["Mcp-Session-Id"])

        async with asyncio.timeout(2 * BOUND), asyncio.TaskGroup() as group:
            for _ in range(served):
                group.create_task(client())
            group.create_task(serve())
        await happens(house, events.Closed, served)
        assert house.manager.fleet.lines == {}
        assert launcher.running == {}


async def test_lines_of_two_apps_do_not_hold_each_other_up() -> None:
    servers: tuple[ServerDefinition, ...] = (definition(app="one"), definition("two", app="two"))
    launcher = Scripted(limit=0)
    async with (
        running(launcher, None, *servers) as (house, _),
        asyncio.timeout(BOUND),
        asyncio.TaskGroup() as group,
    ):
        waiting = group.create_task(house.post(INITIALIZE))
        await waits(house, 1)
        assert house.manager.fleet.lines == {"one": 1}
        launcher.limit = 1

        async def other() -> int:
            url = f"{house.origin}/servers/two/mcp"
            async with house.http.post(url, json=INITIALIZE) as response:
                return response.status

        second = group.create_task(other())
        made = await order(launcher)
        assert made.app == "two"
        agent = await house.join(made)
        await agent.boots()
        assert await second == 200
        waiting.cancel()


async def test_shutdown_ends_who_waits_in_line() -> None:
    launcher = Scripted(limit=0)
    async with running(launcher) as (house, _):
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            waiting = group.create_task(house.post(INITIALIZE))
            await waits(house, 1)
            await house.manager.drain()
        assert waiting.result().status >= 400
        assert [each.reason for each in heard(house, events.Closed)] == ["drained"]
        assert house.manager.fleet.lines == {}


async def test_body_of_a_refusal_names_no_secret() -> None:
    launcher = Scripted()
    launcher.refusals.append(LaunchError("refused"))
    async with running(launcher) as (house, _):
        refused = await house.post(INITIALIZE)
        made = await order(launcher)
        text = await refused.text()
        assert json.loads(text)["error"]
        said: Any = made.environment["RENDEZVOUS_JOIN_TOKEN"]
        assert said.partition(".")[2] not in text + repr(house.ear.heard)


async def test_session_in_line_adopts_a_parked_dyno_that_becomes_ready() -> None:
    """The pool's dyno has the only room: it is for who waits."""
    launcher = Scripted(limit=1)
    async with running(launcher, None, definition(warm=1)) as (house, _):
        made = await order(launcher)
        async with opening(house) as call:
            await waits(house, 1)
            agent = await house.park(token_of(made))
            await house.adopted(agent)
            await agent.boots()
        assert call.result().status == 200
        assert house.manager.dynos.queue == []
        assert house.manager.fleet.lines == {}
        await house.works(agent, call.result().headers["Mcp-Session-Id"])
