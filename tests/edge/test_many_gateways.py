"""Three gateways of one deployment and a router that knows nothing: who serves what, and how."""

from __future__ import annotations

import asyncio
import io
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from gateway import events
from gateway.errors import SessionEnded
from gateway.sessions import catalogues, shelf, whereabouts
from gateway.sessions import manager as sessions
from gateway.sessions.keys import SessionKeys
from gateway.sessions.reconciler import News
from gateway.sessions.record import Reason
from gateway.sessions.terms import Terms
from gateway.store.memory import Engine, MemoryStore
from tests.edge.eras_house import (
    LIST,
    OPEN,
    OPENING,
    TOOLS,
    Child,
    Program,
    Stage,
    answered,
    call,
    definition,
    opens,
    stage,
)
from tests.fakes.house import (
    BOUND,
    LASTING,
    RESUMING,
    House,
    eventually,
    opened,
    refusal,
    token_of,
)
from tests.fakes.launchers import RecordingLauncher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.launchers.base import LaunchOrder

DONE = answered(9, {"content": []})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogues, "AGAIN_S", (BOUND * 60,))
    monkeypatch.setattr(catalogues, "NEWS_S", 0.02)
    monkeypatch.setattr(sessions, "TICK_S", 0.01)
    monkeypatch.setattr(whereabouts, "LOOK_S", 0.05)
    monkeypatch.setattr(whereabouts, "ALIVE_S", 0.0)


@dataclass
class Town:
    """Gateways that share an engine and a launcher, and where their children are played."""

    engine: Engine
    houses: list[House]
    stages: list[Stage]
    launcher: RecordingLauncher

    async def order(self) -> LaunchOrder:
        async with asyncio.timeout(BOUND):
            return await self.launcher.orders.get()

    def crash(self, number: int) -> None:
        """One gateway is dead from now on; nobody hears from it, and it hears nothing."""
        self.engine.crash(self.houses[number].manager.store.gateway)

    def holder(self, key: str) -> list[int]:
        """Return which gateways have a session."""
        return [
            number
            for number, house in enumerate(self.houses)
            if any(live.record.fingerprint == _fingerprint(key) for live in house.manager.directory)
        ]


def _fingerprint(key: str) -> str:
    return SessionKeys.fingerprint(key)


@asynccontextmanager
async def town(size: int = 3, **more: Any) -> AsyncIterator[Town]:
    engine, launcher = Engine(), RecordingLauncher()
    servers = (definition(**more),)
    async with (
        opened(launcher, LASTING, servers, store=MemoryStore(engine)) as first,
        stage(first) as played,
    ):
        await played.looks(Program())
        built = Town(engine, [first], [played], launcher)
        async with _more(built, size - 1, servers):
            yield built


@asynccontextmanager
async def _more(built: Town, number: int, servers: Any) -> AsyncIterator[None]:
    if not number:
        yield
        return
    async with (
        opened(built.launcher, LASTING, servers, store=MemoryStore(built.engine)) as house,
        stage(house) as played,
    ):
        built.houses.append(house)
        built.stages.append(played)
        async with _more(built, number - 1, servers):
            yield


@asynccontextmanager
async def calling(house: House, body: Any, key: str, revision: str | None = None) -> Any:
    """A client waits for an answer; it must have come by the end of the block."""
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
        yield group.create_task(house.post(body, key, revision))


async def begun(built: Town, at: int = 0, agent_at: int = 0) -> tuple[str, Child]:
    """A session that was opened at one gateway, and whose agent has dialled another."""
    key, _ = await opens(built.houses[at])
    async with calling(built.houses[at], call(9), key) as waiting:
        child = await built.stages[agent_at].child_of(await built.order(), Program())
    assert await waiting.result().json() == DONE
    return key, child


# Where a request lands


async def test_chapter_that_one_gateway_has_learned_is_told_by_all() -> None:
    async with town() as built:
        for house in built.houses:
            key, response = await opens(house)
            assert await response.json() == answered(1, OPENING)
            listed = await house.post(LIST, key)
            assert await listed.json() == answered(2, {"tools": TOOLS})
        assert built.launcher.orders.empty()


async def test_session_without_a_dyno_answers_at_any_gateway() -> None:
    async with town() as built:
        key, _ = await opens(built.houses[0])
        for house in built.houses:
            listed = await house.post(LIST, key)
            assert await listed.json() == answered(2, {"tools": TOOLS})
        assert built.holder(key) == [0]


async def test_call_at_any_gateway_reaches_the_one_child() -> None:
    async with town() as built:
        key, child = await begun(built)
        for number, house in enumerate(built.houses):
            response = await house.post(call(20 + number), key)
            assert await response.json() == answered(20 + number, {"content": []})
        assert child.methods.count("tools/call") == 4


async def test_stream_of_messages_that_name_no_call_is_held_at_any_gateway() -> None:
    async with town() as built:
        key, child = await begun(built)
        async with built.houses[2].listening(key) as stream:
            note = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": 1}}
            await child.agent.say(note)
            assert await stream.message() == note


async def test_broken_stream_is_continued_at_another_gateway() -> None:
    silent = Program(silent=frozenset({"tools/call"}))
    async with town() as built:
        key, _ = await opens(built.houses[0])
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            asking = built.houses[0].asking(call(9), key)
            entered = group.create_task(asking.__aenter__())
            child = await built.stages[0].child_of(await built.order(), silent)
            stream = await entered
        first = await stream.next()
        assert first is not None
        stream.hang_up()
        await built.houses[0].abandoned(key, 9)
        async with built.houses[1].listening(key, first.id) as rest:
            await child.agent.say(DONE)
            assert await rest.message() == DONE


async def test_session_is_ended_at_any_gateway() -> None:
    async with town() as built:
        key, _ = await begun(built)
        assert await built.houses[1].delete(key) == 204
        await built.houses[0].ear.until("closed")
        for house in built.houses:
            await eventually(lambda: built.holder(key) == [])
            response = await house.post(LIST, key)
            assert (await refusal(response))[:3] == (404, -32001, "unknown_session")


async def test_somebody_elses_session_is_unknown_at_any_gateway() -> None:
    async with town() as built:
        key, _ = await begun(built)
        for house in built.houses:
            headers = {"X-API-Key": "key-of-somebody-else", "Mcp-Session-Id": key}
            async with house.http.post(house.url, json=LIST, headers=headers) as response:
                assert response.status == 404


async def test_large_answer_comes_whole_from_another_gateway() -> None:
    text = "x" * (15 * 1024 * 1024)
    big = Program(answers={"tools/call": {"content": [{"type": "text", "text": text}]}})
    async with town(2) as built:
        key, _ = await opens(built.houses[0])
        body = io.BytesIO(json.dumps(call(9, text=text)).encode())
        headers = {"Mcp-Session-Id": key, "Content-Type": "application/json"}
        house = built.houses[1]
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            playing = group.create_task(built.order())
            playing.add_done_callback(
                lambda order: group.create_task(built.stages[0].child_of(order.result(), big))
            )
            async with house.http.post(house.url, data=body, headers=headers) as response:
                answer = await response.json()
        assert answer["result"]["content"][0]["text"] == text
        assert built.stages[0].children[-1].heard[-1] == call(9, text=text)


# Where an agent dials


async def test_session_moves_to_the_gateway_that_its_agent_dials_and_the_call_is_answered() -> None:
    async with town() as built:
        key, child = await begun(built, at=0, agent_at=1)
        assert built.holder(key) == [1]
        assert child.methods[:3] == ["initialize", "notifications/initialized", "tools/call"]
        for number, house in enumerate(built.houses):
            response = await house.post(call(20 + number), key)
            assert await response.json() == answered(20 + number, {"content": []})
        assert child.methods.count("tools/call") == 4


async def test_agent_that_dials_another_gateway_takes_its_session_there() -> None:
    async with town() as built:
        key, child = await begun(built)
        child.agent.cut()
        await built.houses[2].resume(child.agent)
        await eventually(lambda: built.holder(key) == [2])
        for number, house in enumerate(built.houses):
            response = await house.post(call(20 + number), key)
            assert await response.json() == answered(20 + number, {"content": []})


async def test_call_that_waits_while_its_session_moves_is_made_once_and_answered() -> None:
    async with town() as built:
        key, child = await begun(built)
        child.agent.cut()
        async with calling(built.houses[1], call(10), key, "2025-06-18") as waiting:
            await eventually(lambda: built.houses[0].live(key).session.calls == 1)
            await built.houses[2].resume(child.agent)
        assert await waiting.result().json() == answered(10, {"content": []})
        assert child.methods.count("tools/call") == 2


async def test_gateway_that_was_left_delivers_nothing() -> None:
    async with town() as built:
        key, child = await begun(built)
        old = built.houses[0].live(key)
        child.agent.cut()
        await built.houses[1].resume(child.agent)
        await eventually(lambda: old.moved)
        assert built.houses[0].manager.directory.get(old.record.fingerprint) is None
        closed = [event for event in built.houses[0].ear.heard if isinstance(event, events.Closed)]
        assert old.record.session_id not in [event.session for event in closed]


async def test_join_token_that_two_processes_use_at_two_gateways_serves_one() -> None:
    async with town() as built:
        _, _ = await begun(built)
        key, _ = await opens(built.houses[0])
        async with calling(built.houses[0], call(9), key) as waiting:
            order = await built.order()
            await built.stages[1].child_of(order, Program())
            await eventually(lambda: built.holder(key) == [1])
            with pytest.raises(Exception, match=r"4503|401"):
                await built.houses[2].join(order, "second")
        del waiting


async def test_session_that_was_opened_once_more_may_come_to_where_it_had_ended() -> None:
    async with town(stale="rebuild") as built:
        key, _ = await begun(built)
        one = built.houses[0]
        one.manager.end(one.live(key), Reason.IDLE, SessionEnded("it was idle"))
        await one.manager.ownership.settled(BOUND)
        async with calling(built.houses[1], call(9), key) as waiting:
            child = await built.stages[1].child_of(await built.order(), Program())
        assert await waiting.result().json() == DONE
        child.agent.cut()
        await one.resume(child.agent)
        response = await built.houses[2].post(call(10), key)
        assert await response.json() == answered(10, {"content": []})
        assert built.holder(key) == [0]


# When a gateway dies


async def test_session_without_a_dyno_outlives_its_gateway() -> None:
    async with town() as built:
        key, _ = await opens(built.houses[0])
        built.crash(0)
        async with calling(built.houses[1], call(9), key) as waiting:
            child = await built.stages[2].child_of(await built.order(), Program())
        assert await waiting.result().json() == DONE
        assert child.heard[0]["params"] == OPEN["params"]


async def test_session_that_boots_outlives_its_gateway() -> None:
    async with town() as built:
        key, _ = await opens(built.houses[0])
        lost = built.houses[0].tasks.create_task(built.houses[0].post(call(9), key))
        order = await built.order()
        built.crash(0)
        lost.cancel()
        async with calling(built.houses[1], call(9), key) as waiting:
            await built.stages[2].child_of(order, Program())
        assert await waiting.result().json() == DONE
        assert built.launcher.orders.empty()


async def test_request_for_a_session_of_a_dead_gateway_waits_for_its_agent() -> None:
    async with town() as built:
        key, child = await begun(built)
        built.crash(0)
        child.agent.cut()
        async with calling(built.houses[1], call(10), key) as waiting:
            await eventually(lambda: built.houses[1].manager.directory.awaited == 1)
            await built.houses[2].resume(child.agent)
        assert await waiting.result().json() == answered(10, {"content": []})


async def test_session_that_has_ended_is_not_waited_for_though_its_gateway_dies() -> None:
    async with town() as built:
        key, _ = await begun(built)
        assert await built.houses[0].delete(key) == 204
        house = built.houses[0]
        await eventually(lambda: not house.manager.sessions)
        await house.manager.ownership.settled(BOUND)
        built.crash(0)
        response = await built.houses[1].post(call(10), key)
        assert (await refusal(response))[2] == "unknown_session"


async def test_session_that_nobody_brings_back_has_ended_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions, "HOLD_S", 0.1)
    async with town() as built:
        key, _ = await begun(built)
        built.crash(0)
        house = built.houses[1]
        assert (await refusal(await house.post(call(10), key)))[2] == "session_away"
        house.manager._whereabouts._absent[_fingerprint(key)] -= 2 * LASTING.grace_s
        assert (await refusal(await house.post(call(10), key)))[2] == "unknown_session"
        assert (await refusal(await built.houses[2].post(call(10), key)))[2] == "unknown_session"


# When the engine is in trouble


async def test_session_goes_on_where_all_of_it_is_while_the_engine_is_away() -> None:
    async with town() as built:
        key, _ = await begun(built)
        built.engine.away = True
        response = await built.houses[0].post(call(10), key)
        assert await response.json() == answered(10, {"content": []})
        built.engine.away = False


async def test_others_are_told_to_come_again_while_the_engine_is_away() -> None:
    async with town() as built:
        key, _ = await begun(built)
        built.engine.away = True
        response = await built.houses[1].post(call(10), key)
        assert (await refusal(response))[:3] == (503, -32603, "store_unavailable")
        assert response.headers["Retry-After"] == "2"
        fresh = await built.houses[1].post(OPEN)
        assert (await refusal(fresh))[2] == "store_unavailable"
        built.engine.away = False
        response = await built.houses[1].post(call(10), key)
        assert await response.json() == answered(10, {"content": []})


async def test_sessions_are_known_again_after_the_engine_has_lost_its_memory() -> None:
    async with town() as built:
        key, _ = await begun(built)
        built.engine.forget()
        response = await built.houses[1].post(call(10), key)
        assert await response.json() == answered(10, {"content": []})


async def test_agent_may_move_while_the_engine_is_away() -> None:
    async with town() as built:
        key, child = await begun(built)
        built.engine.away = True
        child.agent.cut()
        await built.houses[1].resume(child.agent)
        response = await built.houses[1].post(call(10), key)
        assert await response.json() == answered(10, {"content": []})
        built.engine.away = False
        await eventually(lambda: built.holder(key) == [1])
        response = await built.houses[0].post(call(11), key)
        assert await response.json() == answered(11, {"content": []})


async def test_agent_may_come_back_while_the_engine_is_away() -> None:
    async with town() as built:
        key, child = await begun(built)
        built.engine.away = True
        for number in (1, 0):
            child.agent.cut()
            await built.houses[number].resume(child.agent)
            response = await built.houses[number].post(call(20 + number), key)
            assert await response.json() == answered(20 + number, {"content": []})
        built.engine.away = False
        await eventually(lambda: built.holder(key) == [0])


async def test_readiness_says_that_the_engine_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.ops.health.AWAY_S", 0.0)
    async with town(1) as built:
        house = built.houses[0]
        built.engine.away = True
        async with house.http.get(f"{house.origin}/health") as response:
            assert (response.status, (await response.json())["status"]) == (503, "store_away")
        built.engine.away = False


# What is shared


async def test_sessions_of_a_key_are_counted_over_all_gateways() -> None:
    engine, launcher, servers = Engine(), RecordingLauncher(), (definition(),)
    terms = Terms(LASTING.url, LASTING.secret, 10, hand_over=True, opens_per_minute=2)
    async with (
        opened(launcher, terms, servers, store=MemoryStore(engine)) as one,
        stage(one) as played,
    ):
        await played.looks(Program())
        async with opened(launcher, terms, servers, store=MemoryStore(engine)) as two:
            assert (await one.post(OPEN)).status == 200
            assert (await two.post(OPEN)).status == 200
            for house in (one, two):
                response = await house.post(OPEN)
                assert (await refusal(response))[:3] == (429, -32603, "quota_reached")
                assert int(response.headers["Retry-After"]) > 0


@asynccontextmanager
async def warm(doors: int) -> AsyncIterator[tuple[Town, LaunchOrder]]:
    """Gateways that keep one dyno parked, and the launch of that dyno."""
    engine, launcher, servers = Engine(), RecordingLauncher(), (definition(warm=1),)
    async with (
        opened(launcher, LASTING, servers, store=MemoryStore(engine)) as first,
        stage(first) as played,
    ):
        orders: dict[bool, LaunchOrder] = {}
        async with asyncio.timeout(BOUND):
            while len(orders) < 2:
                order = await launcher.orders.get()
                orders[order.launch_id in first.manager.pool] = order
        child = await played.child_of(orders[False], Program())
        assert await first.ear.closed(child.agent) == "answered"
        built = Town(engine, [first], [played], launcher)
        async with _more(built, doors - 1, servers):
            yield built, orders[True]


@pytest.mark.parametrize("door", [0, 1])
async def test_dyno_that_is_parked_at_any_door_is_adopted(door: int) -> None:
    async with warm(2) as (built, order):
        parked = await built.houses[door].park(token_of(order))
        one = built.houses[0]
        await eventually(lambda: [each.ready is not None for each in one.manager.pool] == [True])
        key, _ = await opens(one)
        async with calling(one, call(9), key) as waiting:
            agent = await built.houses[door].adopted(parked)
            await built.stages[door].play(agent, Program())
        assert await waiting.result().json() == DONE
        assert built.holder(key) == [door]
        adopted = [event for event in one.ear.heard if isinstance(event, events.Adopted)]
        assert [event.launch for event in adopted] == [order.launch_id]


async def test_parked_dyno_whose_gateway_has_died_is_adopted_at_another_door() -> None:
    async with warm(3) as (built, order):
        token = token_of(order)
        parked = await built.houses[0].park(token)
        built.crash(0)
        parked.socket.transport.abort()
        await built.houses[1].park_again(parked, token)
        two = built.houses[2]
        await eventually(lambda: [each.ready is not None for each in two.manager.pool] == [True])
        key, _ = await opens(two)
        async with calling(two, call(9), key) as waiting:
            agent = await built.houses[1].adopted(parked)
            await built.stages[1].play(agent, Program())
        assert await waiting.result().json() == DONE


async def test_server_is_looked_at_by_one_gateway() -> None:
    engine, launcher, servers = Engine(), RecordingLauncher(), (definition(),)
    async with (
        opened(launcher, LASTING, servers, store=MemoryStore(engine)) as one,
        opened(launcher, LASTING, servers, store=MemoryStore(engine)) as two,
        stage(one) as played,
    ):
        await played.looks(Program())
        key, response = await opens(two)
        assert await response.json() == answered(1, OPENING)
        assert launcher.orders.empty()
        del key
    assert shelf.TABLE == "catalogue"
    assert [event.name for event in two.ear.heard if isinstance(event, events.Learned)] == []
    assert OPENING["protocolVersion"] == RESUMING


# Who may have an answer


async def test_request_whose_answer_died_on_its_way_is_not_made_again() -> None:
    async with town() as built:
        key, child = await begun(built)
        front = built.houses[1]
        send = front.manager.store.receive
        received = asyncio.Event()

        async def deaf() -> Any:
            received.set()
            await asyncio.Event().wait()

        lost = front.tasks.create_task(front.post(call(10), key, "2025-06-18"))
        front.manager.store.receive = deaf  # type: ignore[method-assign]
        await child.takes("tools/call", 2)
        await built.houses[0].ear.until("call")
        lost.cancel()
        front.manager.store.receive = send  # type: ignore[method-assign]
        response = await built.houses[2].post(call(10), key, "2025-06-18")
        assert await response.json() == answered(10, {"content": []})
        assert child.methods.count("tools/call") == 2


async def test_request_whose_client_has_the_answer_may_be_made_again() -> None:
    """Some clients give all their requests one id."""
    async with town() as built:
        key, child = await begun(built)
        for _ in range(3):
            response = await built.houses[1].post(call(10), key, "2025-06-18")
            assert await response.json() == answered(10, {"content": []})
        assert child.methods.count("tools/call") == 4


@pytest.mark.parametrize("front", [0, 1, 2])
async def test_stream_that_has_begun_follows_its_session_that_boots(front: int) -> None:
    told = {**call(9), "params": {**call(9)["params"], "_meta": {"progressToken": "p"}}}
    async with town() as built:
        key, _ = await opens(built.houses[0])
        async with built.houses[front].asking(told, key) as stream:
            first = await stream.message()
            assert first["params"]["progressToken"] == "p"
            child = await built.stages[2].child_of(await built.order(), Program())
            while "result" not in (message := await stream.message()):
                assert message["method"] == "notifications/progress"
        assert message == DONE
        assert child.methods.count("tools/call") == 1


async def test_dynos_of_a_key_are_counted_over_all_gateways() -> None:
    engine, launcher, servers = Engine(), RecordingLauncher(), (definition(),)
    terms = Terms(LASTING.url, LASTING.secret, 10, hand_over=True, max_sessions_per_key=1)
    async with (
        opened(launcher, terms, servers, store=MemoryStore(engine)) as one,
        stage(one) as played,
    ):
        await played.looks(Program())
        async with opened(launcher, terms, servers, store=MemoryStore(engine)) as two:
            first, _ = await opens(one)
            async with calling(one, call(9), first) as waiting:
                await played.child(Program())
            assert await waiting.result().json() == DONE
            second, _ = await opens(two)
            await eventually(lambda: two.manager.fleet.book.count("test") == 1)
            response = await two.post(call(9), second)
            assert (await refusal(response))[:3] == (429, -32603, "quota_reached")
            assert await (await two.post(call(10), first)).json() == answered(10, {"content": []})


async def test_end_of_a_dyno_that_is_told_to_any_gateway_ends_its_session() -> None:
    async with town() as built:
        key, child = await begun(built)
        launch = built.houses[0].live(key).record.launch_id
        child.agent.cut()
        news = News(launch, f"fake.{launch}", "crashed", ended=True, exit_status=137)
        built.houses[2].manager.neighbours.heard(news)
        await eventually(lambda: built.holder(key) == [])
        response = await built.houses[1].post(LIST, key)
        assert (await refusal(response))[2] == "unknown_session"


async def test_every_session_is_served_on_while_gateways_leave_one_after_the_other() -> None:
    async with town() as built:
        key, child = await begun(built)
        for leaving in (0, 1):
            stays = built.houses[2]
            async with asyncio.timeout(BOUND):
                await built.houses[leaving].manager.drain()
            await child.agent.until(lambda: bool(child.agent.close_codes))
            child.agent.close_codes.clear()
            await built.houses[leaving + 1].resume(child.agent)
            response = await stays.post(call(30 + leaving), key)
            assert await response.json() == answered(30 + leaving, {"content": []})
        assert child.methods.count("tools/call") == 3


@pytest.mark.parametrize("front", [0, 1, 2])
async def test_stream_for_messages_of_no_call_follows_its_session_that_boots(front: int) -> None:
    async with town() as built:
        key, _ = await opens(built.houses[0])
        note = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": 1}}
        async with built.houses[front].listening(key) as stream:
            async with calling(built.houses[0], call(9), key) as waiting:
                child = await built.stages[2].child_of(await built.order(), Program())
            assert await waiting.result().json() == DONE
            await child.agent.say(note)
            assert await stream.message() == note


async def test_session_whose_claim_was_evicted_is_found_and_has_one_dyno() -> None:
    async with town() as built:
        key, _ = await begun(built)
        for house in built.houses:
            house.manager.store._started -= 2 * LASTING.grace_s  # type: ignore[attr-defined]
        built.engine.blank_since -= 2 * LASTING.grace_s
        claim = f"s/{_fingerprint(key)}"
        built.engine.claims.drop(claim)
        response = await built.houses[1].post(call(10), key)
        assert await response.json() == answered(10, {"content": []})
        assert built.launcher.orders.empty()
