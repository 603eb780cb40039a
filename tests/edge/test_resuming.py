"""Clients that lose a connection: the rest of their streams, and requests that they send again."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from dyno_agent.link import Channel
from gateway.edge import answering, streamable_http
from tests.fakes.house import BOUND, RESUMING, Agent, House, refusal

CALL = {
    "jsonrpc": "2.0",
    "id": 5,
    "method": "tools/call",
    "params": {"name": "x", "_meta": {"progressToken": 9}},
}
ANSWER = {"jsonrpc": "2.0", "id": 5, "result": {}}
ASK = {"jsonrpc": "2.0", "id": "q", "method": "roots/list"}
GENERAL = ""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No call here is answered at once."""
    monkeypatch.setattr(streamable_http, "QUICK_S", 0.0)


def progress(number: int) -> dict[str, Any]:
    params = {"progressToken": 9, "progress": number}
    return {"jsonrpc": "2.0", "method": "notifications/progress", "params": params}


def log(number: int) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": number}}


async def heard(house: House, agent: Agent) -> None:
    """Wait until the gateway has taken over all that the agent has sent."""
    await agent.send(Channel.EVENT, {"event": "of a later version"})  # acknowledged at once
    await agent.until(lambda: agent.end.settled)


# What a stream begins with


async def test_stream_of_a_client_that_comes_back_begins_with_an_id_and_no_message(
    house: House,
) -> None:
    async with house.honest() as (agent, session):
        async with house.asking(CALL, session) as stream:
            priming = await stream.next()
            await agent.answer({})
            assert await stream.rest() == [ANSWER]
        assert priming is not None
        assert (priming.id is not None, priming.message) == (True, None)


async def test_stream_begins_only_once_the_agent_has_the_request(house: House) -> None:
    """Its first event promises that the call survives the gateway."""

    async def first_event() -> bytes:
        async with house.asking(CALL, session) as stream:
            return await stream.response.content.readuntil(b"\n\n")

    async with house.honest() as (agent, session):
        agent.eats = False
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            first = group.create_task(first_event())
            await agent.until(lambda: bool(agent._inbox.qsize()))
            async with house.http.get(f"{house.origin}/health"):
                before = first.done()
            await agent.eat()
        assert not before
        assert first.result().startswith(b"id: ")


async def test_stream_of_an_older_revision_begins_with_a_comment(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamable_http, "COMMIT_S", 0.0)
    async with house.honest() as (agent, session):
        async with house.asking(CALL, session, "2025-06-18") as stream:
            first = await stream.response.content.readuntil(b"\n\n")
            await agent.answer({})
            assert await stream.rest() == [ANSWER]
        assert first.startswith(b":")


# Streams that continue


async def test_call_goes_on_after_a_hang_up_without_repeating_or_losing_a_message(
    house: House,
) -> None:
    async with house.honest() as (agent, session):
        async with house.asking(CALL, session) as stream:
            await agent.receive()
            for number in (1, 2):
                await agent.say(progress(number))
            assert await stream.message() == progress(1)
            stream.hang_up()
        await agent.say(progress(3))
        async with house.listening(session, stream.last) as rest:
            assert [await rest.message() for _ in range(2)] == [progress(2), progress(3)]
            await agent.say(progress(4))
            await agent.say(ANSWER)
            assert await rest.rest() == [progress(4), ANSWER]


async def test_call_goes_on_over_many_hang_ups_in_order(house: House) -> None:
    async with house.honest() as (agent, session):
        async with house.asking(CALL, session) as stream:
            await agent.receive()
            await stream.next()
            stream.hang_up()
        last, seen = stream.last, []
        for number in range(1, 6):
            await agent.say(progress(number * 2 - 1))
            async with house.listening(session, last) as rest:
                seen.append(await rest.message())
                await agent.say(progress(number * 2))
                seen.append(await rest.message())
                rest.hang_up()
            last = rest.last
        assert seen == [progress(number) for number in range(1, 11)]


async def test_answer_that_came_while_the_client_was_away_is_there(house: House) -> None:
    async with house.honest() as (agent, session):
        async with house.asking(CALL, session) as stream:
            await stream.next()
            stream.hang_up()
        await house.abandoned(session, 5)
        await agent.answer({})
        await heard(house, agent)
        async with house.listening(session, stream.last) as rest:
            assert await rest.rest() == [ANSWER]


async def test_answer_can_be_fetched_again_by_a_client_that_did_not_see_it(house: House) -> None:
    async with house.honest() as (agent, session):
        async with house.asking(CALL, session) as stream:
            await stream.next()
            before = stream.last
            await agent.answer({})
            assert await stream.message() == ANSWER
        await heard(house, agent)
        for _ in range(2):
            async with house.listening(session, before) as rest:
                assert await rest.rest() == [ANSWER]


async def test_stream_whose_answer_the_client_has_ends_without_a_message(house: House) -> None:
    async with house.honest() as (agent, session):
        async with house.asking(CALL, session) as stream:
            await agent.answer({})
            assert await stream.message() == ANSWER
        await heard(house, agent)
        async with house.listening(session, stream.last) as rest:
            assert await rest.rest() == []


async def test_call_that_nobody_knows_is_answered_as_gone(house: House) -> None:
    async with house.honest() as (agent, session):
        async with house.listening(session, "0.i99") as stream:
            (gone,) = await stream.rest()
        assert (gone["id"], gone["error"]["data"]["reason"]) == (99, "answer_gone")
        assert agent.received() == []


BAD_IDS = ["", "word", ".", "1", ".i1", "x.i1", "-1.i1", "1.x9", "1.i", "1.i01", "1.s!", "1.i1.i2"]


@pytest.mark.parametrize("last", BAD_IDS)
async def test_event_id_that_is_none_of_ours_is_refused(house: House, last: str) -> None:
    async with house.honest() as (agent, session):
        headers = {"Mcp-Session-Id": session, "Last-Event-ID": last}
        async with asyncio.timeout(BOUND), house.http.get(house.url, headers=headers) as response:
            await response.read()
        assert await refusal(response) == (400, -32600, "bad_message", None)
        await house.works(agent, session)


async def test_general_stream_continues_without_repeating_or_losing_a_message(
    house: House,
) -> None:
    async with house.honest() as (agent, session):
        async with house.listening(session) as stream:
            for number in (1, 2):
                await agent.say(log(number))
            assert await stream.message() == log(1)
            stream.hang_up()
        await agent.say(log(3))
        await heard(house, agent)
        async with house.listening(session, stream.last) as rest:
            assert [await rest.message() for _ in range(2)] == [log(2), log(3)]
            await agent.say(log(4))
            assert await rest.message() == log(4)


async def test_newer_general_stream_ends_the_older_one(house: House) -> None:
    async with (
        house.honest() as (agent, session),
        house.listening(session) as older,
        house.listening(session) as newer,
    ):
        assert await older.rest() == []
        await agent.say(log(1))
        assert await newer.message() == log(1)


async def test_newer_stream_of_a_call_ends_the_older_one(house: House) -> None:
    async with house.honest() as (agent, session), house.asking(CALL, session) as older:
        await older.next()
        async with house.listening(session, older.last) as newer:
            assert await older.rest() == []
            await agent.answer({})
            assert await newer.rest() == [ANSWER]


# Messages that name no call


async def test_question_that_was_written_is_not_asked_again_on_another_stream(
    house: House,
) -> None:
    async with house.honest() as (agent, session):
        async with house.listening(session) as stream:
            await agent.say(ASK)
            assert await stream.message() == ASK
        async with house.listening(session) as another:
            await agent.say(log(1))
            assert await another.message() == log(1)


@pytest.mark.parametrize(("in_a_call", "label"), [(False, GENERAL), (True, "i5")])
async def test_agent_is_told_where_a_message_went_that_names_no_call(
    house: House, in_a_call: bool, label: str
) -> None:
    async with house.honest() as (agent, session):
        opening = house.asking(CALL, session) if in_a_call else house.listening(session)
        async with opening as stream:
            await stream.next()
            await agent.say(ASK)
            assert await stream.message() == ASK
            await agent.until(lambda: bool(agent.routed))
            if in_a_call:
                await agent.say(ANSWER)
        assert [where for _, where in agent.routed] == [label]


async def test_question_on_a_calls_stream_comes_again_there_and_nowhere_else(
    house: House,
) -> None:
    async with house.honest() as (agent, session), house.listening(session) as general:
        await general.next()
        async with house.asking(CALL, session) as stream:
            await stream.next()
            before = stream.last
            await agent.say(ASK)
            assert await stream.message() == ASK
            await agent.until(lambda: bool(agent.routed))
            stream.hang_up()
        async with house.listening(session, before) as rest:
            assert await rest.message() == ASK
            await agent.say(ANSWER)
            assert await rest.rest() == [ANSWER]
        await agent.say(log(1))
        assert await general.message() == log(1)


async def test_question_that_no_stream_took_waits_for_one_and_is_asked_once(house: House) -> None:
    async with house.honest() as (agent, session):
        await agent.say(ASK)
        await heard(house, agent)
        async with house.listening(session) as stream:
            assert await stream.message() == ASK
        async with house.listening(session) as another:
            await agent.say(log(1))
            assert await another.message() == log(1)


# Requests that are sent again


@pytest.mark.parametrize("revision", [None, RESUMING])
async def test_request_sent_again_after_a_hang_up_reaches_the_child_once(
    house: House, revision: str | None
) -> None:
    async with house.honest() as (agent, session):
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            lost = group.create_task(house.post(CALL, session, revision))
            assert json.loads((await agent.receive()).payload) == CALL
            lost.cancel()
            await house.abandoned(session, 5)
            call = group.create_task(house.post(CALL, session, revision))
            await house.taken_up(session, 5)
            await agent.say(ANSWER)
        assert json.dumps(ANSWER) in await call.result().text()
        assert agent.received() == []


async def test_request_sent_again_after_its_unseen_answer_reaches_the_child_once(
    house: House,
) -> None:
    async with house.honest() as (agent, session):
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            lost = group.create_task(house.post(CALL, session))
            request = await agent.receive()
            lost.cancel()
            await house.abandoned(session, 5)
            await agent.say(ANSWER)
            await heard(house, agent)
            response = await house.post(CALL, session)
        assert json.loads(request.payload) == CALL
        assert await response.json() == ANSWER
        assert agent.received() == []


@pytest.mark.parametrize("failure", [ConnectionResetError, TimeoutError])
async def test_plain_answer_that_could_not_be_written_waits_for_the_request_to_be_sent_again(
    house: House, monkeypatch: pytest.MonkeyPatch, failure: type[Exception]
) -> None:
    written = answering.Reply._write_whole

    async def fails_once(*_args: Any) -> Any:
        monkeypatch.setattr(answering.Reply, "_write_whole", written)
        raise failure

    async def in_vain(session: str) -> None:
        with pytest.raises(aiohttp.ClientError):
            await house.post(CALL, session)

    async with house.honest() as (agent, session):
        monkeypatch.setattr(answering.Reply, "_write_whole", fails_once)
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            group.create_task(in_vain(session))
            await agent.answer({"n": 1})
        again = await house.post(CALL, session)
        assert (await again.json())["result"] == {"n": 1}
        assert agent.received() == []


@pytest.mark.parametrize("hung_up", [True, False])
async def test_other_request_with_an_id_in_flight_is_refused(house: House, hung_up: bool) -> None:
    async with house.honest() as (agent, session):
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            first = group.create_task(house.post(CALL, session))
            await agent.receive()
            if hung_up:
                first.cancel()
                await house.abandoned(session, 5)
            response = await house.post({**CALL, "method": "tools/list"}, session)
            await agent.say(ANSWER)
        assert await refusal(response) == (400, -32600, "duplicate_id", 5)
        assert agent.received() == []


async def test_same_request_over_a_second_connection_gets_the_one_answer(house: House) -> None:
    """The first may be dead: who carries it for its client need not know yet."""
    async with house.honest() as (agent, session):
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            first = group.create_task(house.post(CALL, session))
            await agent.receive()
            second = group.create_task(house.post(CALL, session))
            await first
            await agent.say(ANSWER)
        assert await refusal(first.result()) == (400, -32600, "duplicate_id", 5)
        assert await second.result().json() == ANSWER
        assert agent.received() == []


# Messages that are accepted


@pytest.mark.parametrize("body", [log(1), {**ASK, "id": 7}], ids=["notification", "answer"])
async def test_message_is_accepted_once_the_agent_has_it(
    house: House, monkeypatch: pytest.MonkeyPatch, body: Any
) -> None:
    monkeypatch.setattr(streamable_http, "CONFIRM_S", BOUND * 2)
    async with house.honest() as (agent, session), house.listening(session) as stream:
        if "id" in body:
            await agent.say(body)
            await stream.message()
            body = {"jsonrpc": "2.0", "id": 7, "result": {}}
        agent.eats = False
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            call = group.create_task(house.post(body, session))
            await agent.until(lambda: bool(agent._inbox.qsize()))
            async with house.http.get(f"{house.origin}/health"):
                before = call.done()
            await agent.eat()
        assert (before, call.result().status) == (False, 202)


async def test_message_is_accepted_in_time_though_the_agent_is_out_of_reach(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamable_http, "CONFIRM_S", 0.01)
    async with house.honest() as (agent, session):
        agent.cut()
        assert (await house.post(log(1), session)).status == 202
        await house.resume(agent)
        assert json.loads((await agent.receive()).payload) == log(1)
