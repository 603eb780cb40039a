"""How far a boot is, told as progress to the callers that wait for it and want progress."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from dyno_agent.link import Channel
from gateway.edge import streamable_http
from gateway.sessions import catalogues
from tests.edge.eras_house import Program, Stage, answered, call, definition, opens, stage
from tests.fakes.house import BOUND, RESUMING, Agent, Item, Stream, eventually, opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PHASES = [
    "a dyno is asked for",
    "the dyno boots",
    "the dyno has dialled in",
    "the server starts",
]

DONE: dict[str, Any] = {"content": []}


@pytest.fixture(autouse=True)
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second look comes in between, and no call is answered at once."""
    monkeypatch.setattr(catalogues, "AGAIN_S", (BOUND * 60,))
    monkeypatch.setattr(streamable_http, "QUICK_S", 0.0)


def wanting(number: int = 5, *, under: str | int = "t") -> Any:
    """A call whose client wants progress."""
    wanted = call(number)
    wanted["params"]["_meta"] = {"progressToken": under}
    return wanted


@asynccontextmanager
async def dormant() -> AsyncIterator[tuple[Stage, str]]:
    async with opened(servers=(definition(),)) as house, stage(house) as played:
        await played.looks(Program())
        key, _ = await opens(house)
        yield played, key


@asynccontextmanager
async def waking(revision: str, body: Any = None) -> AsyncIterator[tuple[Stage, str, Stream]]:
    """The stream of the call that gets a session its dyno; nobody has dialled in yet."""
    async with (
        dormant() as (played, key),
        played.house.asking(body or wanting(), key, revision) as stream,
    ):
        yield played, key, stream


async def some(stream: Stream, count: int) -> list[Item]:
    found = [await stream.next() for _ in range(count)]
    return [item for item in found if item is not None]


def messages(items: list[Item]) -> list[str]:
    return [item.message["params"]["message"] for item in items]


def figures(items: list[Item]) -> list[float]:
    return [item.message["params"]["progress"] for item in items]


async def progress(agent: Agent, figure: float) -> None:
    params = {"progressToken": "t", "progress": figure}
    await agent.say({"jsonrpc": "2.0", "method": "notifications/progress", "params": params})


@pytest.mark.parametrize("revision", ["2025-03-26", "2025-06-18", RESUMING])
async def test_phases_of_the_boot_are_told_in_order(revision: str) -> None:
    async with waking(revision) as (played, _, stream):
        told = await some(stream, 2)
        await played.child(Program(silent=frozenset({"tools/call"})))
        while len(told) < 4:
            told += [item for item in await some(stream, 1) if item.message]
        assert messages(told) == PHASES


async def test_phases_are_progress_that_rises_under_the_client_s_own_token() -> None:
    async with waking("2025-06-18", wanting(under=7)) as (played, _, stream):
        await played.child(Program(silent=frozenset({"tools/call"})))
        told = await some(stream, 4)
        assert {item.message["params"]["progressToken"] for item in told} == {7}
        assert {item.message["method"] for item in told} == {"notifications/progress"}
        assert figures(told) == sorted(set(figures(told)))
        assert figures(told)[-1] < 0.01


async def test_answer_follows_the_phases() -> None:
    async with waking("2025-06-18") as (played, _, stream):
        await played.child(Program())
        told = await stream.rest()
        assert [message["params"]["message"] for message in told[:-1]] == PHASES
        assert told[-1] == answered(5, DONE)


@pytest.mark.parametrize("revision", ["2025-06-18", RESUMING])
async def test_phases_have_no_event_ids(revision: str) -> None:
    """They are the gateway's own, so nobody could bring them back."""
    async with waking(revision) as (played, _, stream):
        told = await some(stream, 2)
        await played.child(Program())
        while (item := await stream.next()) is not None:
            told.append(item)
        phases = [item for item in told if item.message and "method" in item.message]
        assert [item.id for item in phases] == [None] * len(PHASES)


async def test_answer_is_promised_as_soon_as_the_agent_has_the_call() -> None:
    async with waking(RESUMING) as (played, _, stream):
        first = await some(stream, 2)
        assert [item.id for item in first] == [None, None]
        await played.child(Program(silent=frozenset({"tools/call"})))
        rest = await some(stream, 3)
        assert [item.message is None for item in rest].count(True) >= 1
        assert rest[0].message is not None


async def test_answer_is_promised_once() -> None:
    async with waking(RESUMING) as (played, _, stream):
        child = await played.child(Program(silent=frozenset({"tools/call"})))
        await child.takes("tools/call")
        told = await some(stream, 5)
        await child.agent.say(answered(5, DONE))
        while (item := await stream.next()) is not None:
            told.append(item)
        assert len([item for item in told if item.message is None]) == 1


async def test_promise_is_not_given_before_the_agent_has_the_call() -> None:
    async with waking(RESUMING) as (played, _, stream):
        await some(stream, 2)
        agent = await played.house.join(await played.order())
        agent.eats = False
        item = await stream.next()
        assert item is not None
        assert (item.id, item.message["params"]["message"]) == (None, PHASES[2])
        await agent.send(Channel.EVENT, {"event": "spawned", "pid": 1})
        item = await stream.next()
        assert item is not None
        assert (item.id, item.message["params"]["message"]) == (None, PHASES[3])
        await agent.eat()
        item = await stream.next()
        assert item is not None
        assert (bool(item.id), item.message) == (True, None)


async def test_call_goes_on_from_the_promise() -> None:
    async with waking(RESUMING) as (played, key, stream):
        child = await played.child(Program(silent=frozenset({"tools/call"})))
        while not stream.last:
            await stream.next()
        stream.hang_up()
        await played.house.abandoned(key, 5)
        await progress(child.agent, 1)
        await child.agent.say(answered(5, DONE))
        async with played.house.listening(key, stream.last) as continued:
            told = await continued.rest()
        assert [message.get("method") for message in told] == ["notifications/progress", None]
        assert told[-1] == answered(5, DONE)


async def test_client_of_an_older_revision_is_promised_nothing() -> None:
    async with waking("2025-06-18") as (played, _, stream):
        await played.child(Program())
        while (item := await stream.next()) is not None:
            assert item.id is None or item.message is not None


async def test_progress_of_the_child_continues_where_the_boot_was() -> None:
    async with waking("2025-06-18") as (played, _, stream):
        child = await played.child(Program(silent=frozenset({"tools/call"})))
        await some(stream, 4)
        await progress(child.agent, 0)
        await progress(child.agent, 1)
        await child.agent.say(answered(5, DONE))
        told = await stream.rest()
        assert [message["params"]["progress"] for message in told[:-1]] == [1]


async def test_call_that_wants_no_progress_is_told_no_phases() -> None:
    async with dormant() as (played, key):
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            waiting = group.create_task(played.house.post(call(5), key))
            await played.child(Program())
        assert await waiting.result().json() == answered(5, DONE)


async def test_call_that_comes_during_the_boot_is_told_the_phases_from_there() -> None:
    async with waking("2025-06-18") as (played, key, stream):
        await some(stream, 2)
        house = played.house
        live, order = house.live(key), await played.order()
        async with asyncio.TaskGroup() as group:

            async def boot() -> None:
                await eventually(lambda: live.session.calls == 2)
                await played.child_of(order, Program())

            group.create_task(boot())
            async with house.asking(wanting(6, under="u"), key, "2025-06-18") as second:
                told = await second.rest()
        assert [message["params"]["message"] for message in told[:-1]] == PHASES[2:]
        assert {message["params"]["progressToken"] for message in told[:-1]} == {"u"}


async def test_call_after_the_boot_is_told_no_phases() -> None:
    async with dormant() as (played, key):
        house = played.house
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            group.create_task(house.post(call(5), key))
            await played.child(Program())
        response = await house.post(wanting(6), key, "2025-06-18")
        assert await response.json() == answered(6, DONE)


async def test_client_that_hangs_up_during_the_boot_does_not_stop_it() -> None:
    async with waking(RESUMING) as (played, key, stream):
        await some(stream, 2)
        stream.hang_up()
        await played.house.abandoned(key, 5)
        await played.child(Program())
        response = await played.house.post(call(6), key, "2025-06-18")
        assert await response.json() == answered(6, DONE)


async def test_boot_that_fails_ends_the_phases_with_the_reason() -> None:
    async with waking("2025-06-18") as (played, _, stream):
        agent = await played.house.join(await played.order())
        await agent.send(Channel.EVENT, {"event": "spawn_failed", "message": "no such file"})
        told = await stream.rest()
        assert [message["params"]["message"] for message in told[:-1]] == PHASES[:3]
        assert told[-1]["error"]["data"]["reason"] == "child_not_started"


async def test_phases_are_told_for_an_initialize_that_only_the_child_can_answer() -> None:
    servers = (definition(catalogue=False),)
    async with opened(servers=servers) as house, stage(house) as played:
        said = {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "initialize",
            "params": {"protocolVersion": "2025-06-18", "_meta": {"progressToken": "t"}},
        }
        async with (
            asyncio.TaskGroup() as group,
            house.http.post(house.url, json=said) as response,
        ):
            group.create_task(played.child(Program()))
            assert response.content_type == "text/event-stream"
            told = await Stream(response).rest()
        assert [message["params"]["message"] for message in told[:-1]] == PHASES[1:]
        assert told[-1]["id"] == 1


async def test_two_calls_that_wait_for_one_boot_are_told_the_same_phases() -> None:
    async with waking("2025-06-18") as (played, key, stream):
        await some(stream, 2)
        house = played.house
        live, order = house.live(key), await played.order()
        async with asyncio.TaskGroup() as group:

            async def boot() -> None:
                await eventually(lambda: live.session.calls == 2)
                await played.child_of(order, Program(silent=frozenset({"tools/call"})))

            group.create_task(boot())
            async with house.asking(wanting(6, under="u"), key, "2025-06-18") as second:
                one, other = await some(stream, 2), await some(second, 2)
        assert messages(one) == messages(other) == PHASES[2:]
