"""A gateway process that leaves: what it hands over, what it ends, what it refuses meanwhile."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from dyno_agent.link import Channel, CloseCode
from gateway import events
from gateway.edge import streamable_http
from gateway.sessions import farewell
from gateway.sessions import manager as sessions
from tests.fakes.house import (
    BOUND,
    INITIALIZE,
    LASTING,
    RESUMING,
    House,
    eventually,
    opened,
    refusal,
)

CALL = {"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": {"name": "x"}}
ANSWER = {"jsonrpc": "2.0", "id": 5, "result": {}}
LOG = {"jsonrpc": "2.0", "method": "notifications/message", "params": {}}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "TICK_S", 0.01)
    monkeypatch.setattr(farewell, "TICK_S", 0.01)
    monkeypatch.setattr(streamable_http, "QUICK_S", 0.0)


async def drained(house: House) -> None:
    async with asyncio.timeout(BOUND):
        await house.manager.drain()


def handed_over(house: House) -> int:
    return sum(isinstance(event, events.HandedOver) for event in house.ear.heard)


# Sessions that outlive the process


async def test_agent_is_sent_away_and_its_dyno_is_not_stopped() -> None:
    async with opened(terms=LASTING) as house:
        agent, session = await house.booted()
        live = house.live(session)
        await drained(house)
        await agent.until(lambda: bool(agent.close_codes))
        await eventually(lambda: not live.attached)
        assert agent.close_codes == [CloseCode.DRAIN]
        assert agent.received() == []
        assert not {"closing", "parted"} & set(house.ear.names())
    assert house.launcher.stopped == []


async def test_streams_whose_clients_come_back_end_cleanly() -> None:
    async with opened(terms=LASTING) as house:
        agent, session = await house.booted()
        async with house.asking(CALL, session) as call, house.listening(session) as general:
            for stream in (call, general):
                await stream.next()
            await drained(house)
            assert [await call.rest(), await general.rest()] == [[], []]
        await agent.receive()
    assert handed_over(house) == 1


async def test_general_stream_of_an_older_revision_holds_nothing_up() -> None:
    """It has no answer to wait for."""
    async with opened(terms=LASTING) as house:
        _, session = await house.booted()
        async with house.listening(session, revision="2025-06-18") as stream:
            await drained(house)
            assert await stream.rest() == []


async def test_call_of_an_older_revision_is_given_time_for_its_answer() -> None:
    async with opened(terms=LASTING) as house:
        agent, session = await house.booted()
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            call = group.create_task(house.post(CALL, session))
            request = await agent.receive()
            drain = group.create_task(house.manager.drain())
            await eventually(lambda: house.manager.draining)
            assert not drain.done()
            await agent.say(ANSWER)
        assert json.loads(request.payload) == CALL
        assert await call.result().json() == ANSWER
        assert handed_over(house) == 1


async def test_call_of_an_older_revision_that_takes_too_long_may_be_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(farewell, "DRAIN_S", 0.02)
    async with opened(terms=LASTING) as house:
        agent, session = await house.booted()
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            call = group.create_task(house.post(CALL, session))
            await agent.receive()
            await house.manager.drain()
        assert await refusal(call.result()) == (503, -32603, "restarting", 5)
        assert call.result().headers["Retry-After"] == "2"


async def test_stream_of_an_older_revision_that_takes_too_long_ends_with_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(farewell, "DRAIN_S", 0.02)
    monkeypatch.setattr(streamable_http, "COMMIT_S", 0.0)
    async with opened(terms=LASTING) as house:
        agent, session = await house.booted()
        async with house.asking(CALL, session, "2025-06-18") as stream:
            await agent.receive()
            await drained(house)
            (error,) = await stream.rest()
        assert (error["id"], error["error"]["data"]["reason"]) == (5, "restarting")


async def test_request_that_the_agent_does_not_have_yet_may_be_sent_again() -> None:
    """Its client has seen no stream, so it cannot come back for one."""
    async with opened(terms=LASTING) as house:
        agent, session = await house.booted()
        agent.eats = False
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            call = group.create_task(house.post(CALL, session, RESUMING))
            await agent.until(lambda: bool(agent._inbox.qsize()))
            await house.manager.drain()
        assert await refusal(call.result()) == (503, -32603, "restarting", 5)


async def test_notification_that_never_reached_the_agent_is_not_accepted() -> None:
    """Accepted means that it survives this process."""
    async with opened(terms=LASTING) as house:
        agent, session = await house.booted()
        agent.cut()
        await house.ear.until("parted")
        link = house.live(session).session.link
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            call = group.create_task(house.post(LOG, session))
            await eventually(lambda: link.backlog(Channel.RPC))
            await house.manager.drain()
        assert await refusal(call.result()) == (503, -32603, "restarting", None)


async def test_session_whose_agent_is_out_of_reach_is_handed_over_too() -> None:
    async with opened(terms=LASTING) as old, opened(old.launcher, LASTING) as new:
        agent, session = await old.booted()
        agent.cut()
        await old.ear.until("parted")
        await drained(old)
        await new.resume(agent)
        await new.works(agent, session)
        assert old.launcher.stopped == []


async def test_session_that_has_just_come_is_handed_over_too() -> None:
    """Its agent is between two processes that leave: the third one shall find it alive."""
    async with opened(terms=LASTING) as old, opened(old.launcher, LASTING) as new:
        agent, _ = await old.booted()
        agent.cut()
        socket = await new.dial(agent.credential, capsule=agent.welcome.capsule)
        await drained(new)
        assert not new.ear.ended(agent)
        await socket.close()
    assert old.launcher.stopped == []


async def test_session_that_has_not_booted_is_ended() -> None:
    """Nobody else knows its join token, and its client has no key."""
    async with opened(terms=LASTING) as house:
        async with house.asked() as (order, call):
            await drained(house)
        assert await refusal(call.result()) == (502, -32603, "session_ended", 1)
        assert await house.ear.closed(order) == "drained"
    assert house.launcher.stopped == [f"fake.{order.launch_id}"]


async def test_one_session_that_takes_long_does_not_hold_up_another() -> None:
    async with opened(terms=LASTING) as house:
        (slow, session), (quick, _) = await house.booted(), await house.booted()
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            call = group.create_task(house.post(CALL, session))
            await slow.receive()
            drain = group.create_task(house.manager.drain())
            await quick.until(lambda: quick.close_codes == [CloseCode.DRAIN])
            assert (drain.done(), slow.close_codes) == (False, [])
            await slow.say(ANSWER)
        assert call.result().status == 200


# From one process to the next


async def test_call_goes_on_at_the_next_process_for_a_client_that_comes_back() -> None:
    async with opened(terms=LASTING) as old, opened(old.launcher, LASTING) as new:
        agent, session = await old.booted()
        async with old.asking(CALL, session) as stream:
            await agent.receive()
            await stream.next()
            await drained(old)
            assert await stream.rest() == []
        await agent.until(lambda: bool(agent.close_codes))
        agent.end.send(Channel.RPC, json.dumps(ANSWER).encode())
        await new.resume(agent)
        async with new.listening(session, stream.last) as rest:
            assert await rest.rest() == [ANSWER]
        assert agent.received() == []


@pytest.mark.parametrize("revision", [None, RESUMING])
async def test_refused_call_is_answered_once_when_it_is_sent_again(
    monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    monkeypatch.setattr(farewell, "DRAIN_S", 0.02)
    async with opened(terms=LASTING) as old, opened(old.launcher, LASTING) as new:
        agent, session = await old.booted()
        agent.eats = False
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            call = group.create_task(old.post(CALL, session, revision))
            await agent.until(lambda: bool(agent._inbox.qsize()))
            await old.manager.drain()
        assert call.result().status == 503
        await agent.until(lambda: bool(agent.close_codes))
        await agent.eat()
        await new.resume(agent)
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            again = group.create_task(new.post(CALL, session, revision))
            await new.taken_up(session, 5)
            await agent.say(ANSWER)
        assert json.dumps(ANSWER) in await again.result().text()
        assert agent.received() == []


# Nothing new is taken


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
async def test_leaving_gateway_sends_clients_away(method: str) -> None:
    async with opened(terms=LASTING) as house:
        _, session = await house.booted()
        await drained(house)
        headers = {"Mcp-Session-Id": session}
        body = CALL if method == "POST" else None
        async with house.http.request(method, house.url, json=body, headers=headers) as response:
            await response.read()
        status, code, reason, _ = await refusal(response)
        assert (status, code, reason) == (503, -32603, "restarting")
        assert response.headers["Retry-After"] == "2"


async def test_leaving_gateway_opens_no_session() -> None:
    async with opened(terms=LASTING) as house:
        await drained(house)
        response = await house.post(INITIALIZE)
        assert response.status == 503
        assert "Retry-After" in response.headers
        assert house.launcher.orders.empty()


async def test_leaving_gateway_sends_agents_to_the_next_one() -> None:
    """503 is a reason to dial again, 401 would be one to leave."""
    async with opened(terms=LASTING) as house:
        agent, _ = await house.booted()
        await drained(house)
        with pytest.raises(InvalidStatus) as refused:
            await house.dial(agent.credential, capsule=agent.welcome.capsule)
        assert refused.value.response.status_code == 503


async def test_leaving_gateway_lets_no_request_wait_for_an_agent() -> None:
    async with opened(terms=LASTING) as old, opened(old.launcher, LASTING) as new:
        _, session = await old.booted()
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            call = group.create_task(new.post(CALL, session))
            await eventually(lambda: new.manager.directory._arrivals._waiters)
            await new.manager.drain()
        status, _, reason, request_id = await refusal(call.result())
        assert (status, request_id) == (503, 5)
        assert reason in {"session_away", "restarting"}


async def test_leaving_gateway_says_so_when_it_is_asked_for_its_health() -> None:
    async with opened(terms=LASTING) as house:
        await drained(house)
        async with house.http.get(f"{house.origin}/health") as health:
            assert health.status == 503


# Sessions that end with their process


async def ends_everything(house: House) -> None:
    agent, session = await house.booted()
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
        call = group.create_task(house.post(CALL, session))
        await agent.receive()
        drain = group.create_task(house.manager.drain())
        assert json.loads((await agent.receive()).payload) == {"do": "stop"}
        await agent.leaves()
        await drain
    assert await refusal(call.result()) == (502, -32603, "session_ended", 5)
    assert await house.ear.closed(agent) == "drained"
    assert house.launcher.stopped == [f"fake.{agent.launch_id}"]
    assert handed_over(house) == 0


async def test_sessions_end_where_nobody_could_take_them_over() -> None:
    async with opened() as house:
        await ends_everything(house)


async def test_sessions_end_when_somebody_at_a_terminal_ends_the_process() -> None:
    async with opened(terms=LASTING) as house:
        house.manager.keep_nothing()
        await ends_everything(house)


async def test_streams_end_with_their_session() -> None:
    async with opened() as house:
        agent, session = await house.booted()
        async with house.asking(CALL, session) as call, house.listening(session) as general:
            await general.next()
            async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
                group.create_task(house.manager.drain())
                ends: list[Any] = [await call.rest(), await general.rest()]
                await agent.leaves()
        ((error,), nothing) = ends
        assert (error["error"]["data"]["reason"], nothing) == ("session_ended", [])
