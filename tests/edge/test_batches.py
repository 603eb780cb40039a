"""Batches of 2025-03-26, the one revision that has them.

A batch with a member that is no message is refused as a whole, before any other is taken. JSON-RPC
2.0 (6) would answer each such member with an error of its own, whose id is null; an MCP client of
this revision knows no such id (its `RequestId` is a string or an integer), and the transport lets
a server refuse what it cannot accept with 400.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from gateway.edge import answering, streamable_http
from gateway.jsonrpc import MAX_BATCH
from gateway.sessions import catalogues
from gateway.sessions.live import OwnedLive
from tests.edge.eras_house import (
    INITIALIZED,
    LIST,
    OPEN,
    TOOLS,
    Child,
    Program,
    Stage,
    answered,
    call,
    definition,
    launches,
    opens,
    stage,
)
from tests.fakes.house import BOUND, OTHER_KEY, House, Stream, eventually, opened, refusal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BATCHES = "2025-03-26"

PING = {"jsonrpc": "2.0", "id": 3, "method": "ping"}

NOTE = {"jsonrpc": "2.0", "method": "notifications/of-its-own"}


@pytest.fixture(autouse=True)
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second look comes in between."""
    monkeypatch.setattr(catalogues, "AGAIN_S", (BOUND * 60,))


@asynccontextmanager
async def dormant() -> AsyncIterator[tuple[Stage, str]]:
    """A session that was opened from the catalogue."""
    async with opened(servers=(definition(),)) as house, stage(house) as played:
        await played.looks(Program())
        key, _ = await opens(house)
        yield played, key


@asynccontextmanager
async def running() -> AsyncIterator[tuple[House, str, Child]]:
    """A session with a dyno whose child tells in each answer what it was asked."""
    async with dormant() as (played, key):
        program = Program(answers={"tools/call": lambda asked: {"for": asked["id"]}})
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            group.create_task(played.house.post(call(0), key))
            child = await played.child(program)
        yield played.house, key, child


async def send(
    house: House, key: str | None, members: Any, revision: str | None = BATCHES
) -> aiohttp.ClientResponse:
    async with asyncio.timeout(BOUND):
        return await house.post(members, key, revision)


async def by_id(response: aiohttp.ClientResponse) -> dict[Any, Any]:
    """Return the answers of a batch by their ids."""
    assert (response.status, response.content_type) == (200, "application/json")
    answers = await response.json()
    assert isinstance(answers, list)
    found = {answer["id"]: answer for answer in answers}
    assert len(found) == len(answers)
    return found


def echoed(*numbers: int) -> dict[Any, Any]:
    return {number: answered(number, {"for": number}) for number in numbers}


async def untouched(house: House, key: str, child: Child) -> bool:
    """Return whether the child heard nothing but what this asks it."""
    before = list(child.heard)
    response = await send(house, key, call("after"))
    assert (await response.json())["result"] == {"for": "after"}
    return child.heard == [*before, call("after")]


# Answers


@pytest.mark.parametrize("revision", [BATCHES, None])
async def test_every_request_of_a_batch_is_answered_in_one_array(revision: str | None) -> None:
    async with running() as (house, key, _):
        response = await send(house, key, [call(1), call(2), call(3)], revision)
        assert await by_id(response) == echoed(1, 2, 3)


async def test_batch_of_one_is_answered_with_an_array_of_one() -> None:
    async with running() as (house, key, _):
        assert await (await send(house, key, [call(1)])).json() == [echoed(1)[1]]


async def test_child_hears_the_members_one_by_one_and_in_order() -> None:
    async with running() as (house, key, child):
        before = len(child.heard)
        members = [call(1), NOTE, call(2), NOTE, call(3)]
        await send(house, key, members)
        assert child.heard[before:] == members


async def test_notifications_get_no_answer() -> None:
    async with running() as (house, key, _):
        assert await by_id(await send(house, key, [NOTE, call(1), NOTE])) == echoed(1)


async def test_batch_of_notifications_is_accepted() -> None:
    async with running() as (house, key, child):
        response = await send(house, key, [NOTE, NOTE])
        assert (response.status, response.headers["Content-Length"]) == (202, "0")
        await eventually(lambda: child.heard[-2:] == [NOTE, NOTE])


async def test_batch_of_notifications_that_mean_nothing_yet_gets_no_dyno() -> None:
    async with dormant() as (played, key):
        response = await send(played.house, key, [INITIALIZED, INITIALIZED])
        assert (response.status, launches(played.house)) == (202, 1)


async def test_answers_to_the_child_may_come_in_a_batch_with_a_request() -> None:
    async with running() as (house, key, child):
        ask = {"jsonrpc": "2.0", "id": "q", "method": "roots/list"}
        async with house.listening(key, revision=BATCHES) as stream:
            await child.agent.say(ask)
            assert await stream.message() == ask
        reply = answered("q", {"roots": []})
        assert await by_id(await send(house, key, [reply, call(1)])) == echoed(1)
        assert child.heard[-2:] == [reply, call(1)]


async def test_answers_of_the_catalogue_come_in_a_batch() -> None:
    async with dormant() as (played, key):
        found = await by_id(await send(played.house, key, [LIST, PING]))
        assert found == {2: answered(2, {"tools": TOOLS}), 3: answered(3, {})}
        assert launches(played.house) == 1


async def test_answers_of_catalogue_and_child_come_together() -> None:
    async with dormant() as (played, key):
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            sent = group.create_task(send(played.house, key, [LIST, call(1), PING]))
            await played.child(Program())
        assert sorted(await by_id(sent.result())) == [1, 2, 3]


async def test_batch_gets_one_dyno() -> None:
    async with dormant() as (played, key):
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            sent = group.create_task(send(played.house, key, [call(1), call(2)]))
            await played.child(Program())
        assert sorted(await by_id(sent.result())) == [1, 2]
        assert launches(played.house) == 2


async def test_two_batches_that_wait_for_one_boot_are_both_answered() -> None:
    async with dormant() as (played, key):
        house, live = played.house, played.house.live(key)
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            one = group.create_task(send(house, key, [call(1), call(2)]))
            await eventually(lambda: live.session.calls == 2)
            other = group.create_task(send(house, key, [call(3), call(4)]))
            await eventually(lambda: live.session.calls == 4)
            await played.child(Program())
        assert sorted(await by_id(one.result())) == [1, 2]
        assert sorted(await by_id(other.result())) == [3, 4]


async def test_session_key_is_told_with_the_answers() -> None:
    async with running() as (house, key, _):
        response = await send(house, key, [call(1)])
        assert response.headers["Mcp-Session-Id"] == key


# A long call


async def test_batch_with_a_long_call_becomes_a_stream_with_every_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streamable_http, "COMMIT_S", 0.01)
    async with running() as (house, key, child):
        child.program.answers["tools/call"] = {}
        child.program.silent = frozenset({"tools/call"})
        async with batching(house, key, [call(1), PING, call(2)]) as stream:
            await child.takes("tools/call", 3)
            await child.agent.say(answered(2, {}))
            await child.agent.say(answered(1, {}))
            told = [message["id"] for message in await stream.rest()]
        assert told == [3, 2, 1]


@asynccontextmanager
async def batching(house: House, key: str, members: Any) -> AsyncIterator[Stream]:
    headers = {"Mcp-Session-Id": key, "MCP-Protocol-Version": BATCHES}
    async with house.http.post(house.url, json=members, headers=headers) as response:
        assert response.content_type == "text/event-stream", await response.text()
        yield Stream(response)


async def test_message_of_the_child_makes_a_stream_of_a_batch() -> None:
    async with running() as (house, key, child):
        child.program.silent = frozenset({"tools/call"})
        log = {"jsonrpc": "2.0", "method": "notifications/message", "params": {}}
        async with asyncio.TaskGroup() as group:

            async def speak() -> None:
                await child.takes("tools/call", 2)
                await child.agent.say(log)

            group.create_task(speak())
            async with batching(house, key, [call(1)]) as stream:
                assert await stream.message() == log
                await child.agent.say(answered(1, {}))
                assert await stream.rest() == [answered(1, {})]


async def test_events_of_a_batch_have_no_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """No id could say which of its answers a client has seen."""
    monkeypatch.setattr(streamable_http, "COMMIT_S", 0.0)
    async with running() as (house, key, _):
        async with batching(house, key, [call(1), call(2)]) as stream:
            items = [await stream.next(), await stream.next()]
        assert [item.id for item in items if item is not None] == [None, None]


async def test_cancelled_call_leaves_the_others_of_its_batch() -> None:
    async with running() as (house, key, child):
        child.program.silent = frozenset({"tools/call"})
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            sent = group.create_task(send(house, key, [call(1), call(2)]))
            await child.takes("tools/call", 3)
            cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled"}
            await send(house, key, {**cancel, "params": {"requestId": 1}})
            await child.agent.say(answered(2, {}))
        assert await by_id(sent.result()) == {2: answered(2, {})}


async def test_call_that_is_repeated_in_one_batch_does_not_end_another() -> None:
    async with running() as (house, key, child):
        child.program.silent = frozenset({"tools/call"})
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            lost = group.create_task(send(house, key, call(7)))
            await child.takes("tools/call", 2)
            lost.cancel()
            await house.abandoned(key, 7)
            other = group.create_task(send(house, key, [call(1)]))
            await child.takes("tools/call", 3)
            await child.agent.say(answered(7, {"kept": True}))
            again = await send(house, key, [call(7)])
            assert await by_id(again) == {7: answered(7, {"kept": True})}
            await child.agent.say(answered(1, {}))
        assert await by_id(other.result()) == {1: answered(1, {})}
        assert child.methods.count("tools/call") == 3


async def test_answers_that_could_not_be_written_are_kept_for_a_client_that_asks_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running() as (house, key, child):
        write = answering.write_pieces

        async def torn(_response: object, _raw: bytes) -> None:
            monkeypatch.setattr(answering, "write_pieces", write)
            raise ConnectionResetError

        monkeypatch.setattr(answering, "write_pieces", torn)
        with pytest.raises(aiohttp.ClientError):
            await send(house, key, [call(1)])
        response = await send(house, key, call(1))
        assert await response.json() == echoed(1)[1]
        assert child.methods.count("tools/call") == 2


# Refusals


async def test_refused_request_of_a_batch_spoils_no_other() -> None:
    async with running() as (house, key, _):
        found = await by_id(await send(house, key, [call(1), OPEN | {"id": 2}, call(3)]))
        assert (found[1], found[3]) == (echoed(1)[1], echoed(3)[3])
        assert found[2]["error"]["data"]["reason"] == "bad_message"


async def test_id_that_is_used_twice_in_a_batch_is_answered_and_refused() -> None:
    async with running() as (house, key, child):
        child.program.silent = frozenset({"tools/call"})
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            sent = group.create_task(send(house, key, [call(1), call(1, again=True)]))
            await child.takes("tools/call", 2)
            await child.agent.say(answered(1, {}))
        answers = await sent.result().json()
        told = [answer.get("error", {}).get("data", {}).get("reason") for answer in answers]
        assert sorted(told, key=str) == [None, "duplicate_id"]


@pytest.mark.parametrize(
    "bad",
    [
        1,
        "text",
        None,
        {},
        [],
        [PING],
        {"jsonrpc": "2.0"},
        {"jsonrpc": "1.0", "id": 9, "method": "ping"},
        {"jsonrpc": "2.0", "id": None, "method": "ping"},
        {"jsonrpc": "2.0", "id": [], "method": "ping"},
    ],
)
async def test_member_that_is_no_message_spoils_the_batch_before_anything_is_taken(
    bad: Any,
) -> None:
    async with running() as (house, key, child):
        response = await send(house, key, [call(1), bad, call(2)])
        assert (response.status, await untouched(house, key, child)) == (400, True)


async def test_answer_that_nobody_asked_for_does_not_cost_the_other_answers() -> None:
    async with running() as (house, key, child):
        response = await send(house, key, [call(1), answered("q", {}), call(2)])
        if response.status == 400:
            assert await untouched(house, key, child)
        else:
            assert await by_id(response) == echoed(1, 2)


@pytest.mark.parametrize("size", [0, MAX_BATCH + 1])
async def test_batch_of_none_or_of_too_many_is_refused(size: int) -> None:
    async with running() as (house, key, child):
        response = await send(house, key, [call(n) for n in range(1, size + 1)])
        assert await refusal(response) == (400, -32600, "bad_message", None)
        assert await untouched(house, key, child)


async def test_largest_batch_is_answered() -> None:
    async with running() as (house, key, _):
        numbers = range(1, MAX_BATCH + 1)
        response = await send(house, key, [call(n) for n in numbers])
        assert await by_id(response) == echoed(*numbers)


@pytest.mark.parametrize("revision", ["2024-11-05", "2025-06-18", "2025-11-25"])
async def test_revision_without_batches_refuses_one(revision: str) -> None:
    async with running() as (house, key, child):
        response = await send(house, key, [call(1)], revision)
        assert await refusal(response) == (400, -32600, "bad_message", None)
        assert await untouched(house, key, child)


@pytest.mark.parametrize("body", [b"[", b"[1,]", b'[{"jsonrpc":"2.0"', b'[{"a":"\xff"}]'])
async def test_array_that_is_not_json_is_refused(body: bytes) -> None:
    async with running() as (house, key, child):
        headers = {"Mcp-Session-Id": key, "Content-Type": "application/json"}
        async with house.http.post(house.url, data=body, headers=headers) as response:
            assert (await refusal(response))[:3] == (400, -32700, "bad_json")
        assert await untouched(house, key, child)


async def test_batch_opens_no_session() -> None:
    async with dormant() as (played, _):
        response = await send(played.house, None, [OPEN])
        assert await refusal(response) == (400, -32600, "missing_session", None)


async def test_batch_for_an_unknown_session_is_refused() -> None:
    async with dormant() as (played, key):
        response = await send(played.house, f"x{key}", [PING])
        assert (await refusal(response))[0:3:2] == (404, "unknown_session")


async def test_batch_for_the_session_of_somebody_else_is_refused() -> None:
    async with dormant() as (played, key):
        house = played.house
        headers = {"X-API-Key": OTHER_KEY, "Mcp-Session-Id": key}
        async with house.http.post(house.url, json=[PING], headers=headers) as response:
            assert response.status == 404


async def test_batch_whose_session_ended_while_it_came_in_is_told_so() -> None:
    async with running() as (house, key, _):
        begun, over = asyncio.Event(), asyncio.Event()
        text = json.dumps([call(1)]).encode()

        async def slow() -> AsyncIterator[bytes]:
            yield text[:5]
            begun.set()
            await over.wait()
            yield text[5:]

        live = house.live(key)
        headers = {"Mcp-Session-Id": key, "Content-Type": "application/json"}

        async def posted() -> tuple[int, int, str, Any]:
            async with house.http.post(house.url, data=slow(), headers=headers) as response:
                await response.read()
                return await refusal(response)

        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            sent = group.create_task(posted())
            await begun.wait()
            await eventually(lambda: live.large_bodies._value < 2)  # it was let in
            await house.delete(key)
            over.set()
        assert sent.result()[0:3:2] == (502, "session_ended")


async def test_session_that_ends_answers_what_runs_of_a_batch() -> None:
    async with running() as (house, key, child):
        child.program.silent = frozenset({"tools/call"})
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            sent = group.create_task(send(house, key, [call(1), call(2)]))
            await child.takes("tools/call", 3)
            await house.delete(key)
        found = await by_id(sent.result())
        reasons = {number: told["error"]["data"]["reason"] for number, told in found.items()}
        assert reasons == {1: "session_ended", 2: "session_ended"}


async def test_batch_that_waits_for_room_is_not_taken_by_a_session_that_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running() as (house, key, _):

        async def ended(self: OwnedLive) -> None:
            if not self.record.over:
                await house.delete(key)

        monkeypatch.setattr(OwnedLive, "room", ended)
        response = await send(house, key, [call(1)])
        assert (await refusal(response))[0:3:2] == (502, "session_ended")
