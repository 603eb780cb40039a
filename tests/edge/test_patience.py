"""What waits, and for how long: slow calls and bodies, clients that hang up, agents that redial."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
from websockets.exceptions import InvalidStatus

from dyno_agent.link import Channel, CloseCode
from dyno_agent.link.resumption import position
from gateway import events
from gateway.edge import answering, intake, sse, streamable_http
from tests.fakes.house import BOUND, INITIALIZE, House, refusal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PING = {"jsonrpc": "2.0", "id": 2, "method": "ping"}
PONG = {"jsonrpc": "2.0", "id": 2, "result": {}}


async def test_call_that_takes_long_becomes_a_stream_that_is_kept_alive(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house.honest() as (agent, session), asyncio.timeout(BOUND):
        monkeypatch.setattr(streamable_http, "COMMIT_S", 0.0)
        monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.01)
        url, headers = f"{house.origin}/servers/patient/mcp", {"Mcp-Session-Id": session}
        async with house.http.post(url, json=PING, headers=headers) as response:
            assert response.content_type == "text/event-stream"
            for _ in range(3):
                assert await response.content.readuntil(b"\n\n") == sse.COMMENT
            await agent.answer({})
            rest = (await response.content.read()).replace(sse.COMMENT, b"")
    assert rest == sse.event(json.dumps(PONG).encode(), position(3), "i2")


async def test_body_that_stalls_is_given_up(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "BODY_S", 0.05)
    over = asyncio.Event()

    async def stalling() -> AsyncIterator[bytes]:
        yield b'{"jsonrpc":'
        await over.wait()

    url, headers = f"{house.origin}/servers/patient/mcp", {"Content-Type": "application/json"}
    async with asyncio.timeout(BOUND):
        async with house.http.post(url, data=stalling(), headers=headers) as response:
            await response.read()
            assert await refusal(response) == (408, -32600, "body_timeout", None)
            over.set()


async def test_session_whose_client_hangs_up_before_it_knows_the_key_is_ended(
    house: House,
) -> None:
    """Nobody could ever use its dyno, so nobody should pay for it."""
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
        call = group.create_task(house.post(INITIALIZE))
        order = await house.launcher.orders.get()
        call.cancel()
    assert await house.ear.closed(order) == "client_gone"


async def test_session_goes_on_when_its_client_hangs_up_on_a_call(house: House) -> None:
    async with house.honest() as (agent, session):
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            call = group.create_task(house.post({**PING, "id": 7}, session))
            request = json.loads((await agent.receive()).payload)
            call.cancel()
        assert request["id"] == 7
        async with house.http.get(f"{house.origin}/health"):
            pass  # heard after the hang-up, so the hang-up was heard
        await agent.say({"jsonrpc": "2.0", "id": 7, "result": {}})
        await house.works(agent, session)
        finished = [e for e in house.ear.heard if isinstance(e, events.CallFinished)]
        assert [(event.call, event.outcome) for event in finished][1:] == [("7", "ok"), ("2", "ok")]


async def test_answer_sent_while_parted_arrives_once_after_the_redial(house: House) -> None:
    async with house.honest() as (agent, session):
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            call = group.create_task(house.post(PING, session))
            assert json.loads((await agent.receive()).payload) == PING
            agent.cut()
            agent.end.send(Channel.RPC, json.dumps(PONG).encode())
            await house.resume(agent)
        assert await call.result().json() == PONG
        await house.works(agent, session)
    names = house.ear.names()
    assert names.index("parted") < names.index("resumed")


async def test_message_whose_writing_failed_does_not_stop_the_link(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is neither written nor waiting: unless it is given back, nothing is acknowledged again."""

    async def torn(_response: object, data: bytes) -> None:
        if data != sse.COMMENT:
            raise ConnectionResetError

    async with house.honest() as (agent, session), asyncio.timeout(BOUND):
        monkeypatch.setattr(answering, "write", torn)
        async with asyncio.TaskGroup() as group:
            call = group.create_task(house.post(PING, session))
            await agent.receive()
            note = {"jsonrpc": "2.0", "method": "notifications/message", "params": {}}
            await agent.send(Channel.RPC, note)
            await call
        await agent.say(PONG)
        await agent.send(Channel.EVENT, {"event": "of a later version"})  # acknowledged at once
        await agent.until(lambda: agent.end.settled)


async def test_resume_with_another_secret_is_refused(house: House) -> None:
    async with house.honest() as (agent, session):
        for secret in ("", "second", "FIRST"):
            with pytest.raises(InvalidStatus, match="401"):
                await house.dial(f"rr_{agent.launch_id}.{secret}", capsule=agent.welcome.capsule)
        await house.works(agent, session)


def test_heartbeat_loss_is_retriable_and_a_replay_is_not() -> None:
    assert CloseCode.HEARTBEAT_LOST.retriable
    assert not CloseCode.REPLAYED_TOKEN.retriable
