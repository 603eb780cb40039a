"""Clients of 2026-07-28 at the HTTP edge, and a dyno that the test plays.

Each POST stands for itself: what one caller reads is never another's, who hangs up takes back its
own request, and what a child gave to be brought back reaches that child or nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from msgspec import Raw
from websockets.exceptions import InvalidStatus

from dyno_agent.link import Channel, Limits
from gateway.edge import answering, modern_http
from gateway.eras.catalogue import Chapter
from gateway.eras.modern import REVISION, SUBSCRIPTION_KEY
from gateway.sessions import dynos, farewell
from gateway.sessions import live as lives
from gateway.sessions import manager as sessions
from gateway.sessions import shared as sharing
from gateway.sessions.catalogues import Catalogues
from gateway.sessions.record import Reason
from gateway.sessions.session import PHASE_STEP
from gateway.sessions.terms import Terms
from tests.edge.modern_house import (
    DONE,
    LISTEN,
    MODERN,
    Answer,
    Child,
    answer_of,
    asks,
    headers_of,
    next_child,
    next_order,
    send,
    sending,
    serving,
    shared,
    streaming,
    warm,
)
from tests.fakes.house import (
    BOUND,
    KEY,
    LASTING,
    OTHER_KEY,
    SECRET,
    House,
    Stream,
    eventually,
    opened,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.registry.servers import ServerDefinition


IDS: list[int | str] = [1, "1", 0, ""]
OTHER = "/servers/other/mcp"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "TICK_S", 0.01)
    monkeypatch.setattr(sessions, "RETURN_S", 0.0)
    monkeypatch.setattr(dynos, "LEAVE_S", 0.01)  # a played agent does not leave


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with opened(servers=MODERN) as house:
        yield house


@asynccontextmanager
async def isolated(isolation: str) -> AsyncIterator[House]:
    async with opened(servers=(serving(isolation=isolation),)) as house:
        yield house


def result(request_id: Any, body: Any = DONE) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": request_id, "result": body}


def complete(request_id: int | str) -> dict[str, Any]:
    return result(request_id, {"resultType": "complete", "_meta": {SUBSCRIPTION_KEY: request_id}})


def cancelled(request: Any, read: Any) -> bool:
    """True if what the child has read takes this request back."""
    return bool(
        read["method"] == "notifications/cancelled" and read["params"]["requestId"] == request["id"]
    )


# One caller


@pytest.mark.parametrize("request_id", IDS, ids=repr)
async def test_answer_is_one_json_body_under_its_callers_own_id(
    house: House, request_id: int | str
) -> None:
    call = sending(house, asks(request_id))
    child = await next_child(house)
    await child.answers(await child.reads())
    answer = await answer_of(call)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.messages == [result(request_id)]


async def test_child_reads_what_its_caller_wrote(house: House) -> None:
    body = asks(1, arguments={"é": [1.5, None]})
    call = sending(house, body)
    child = await next_child(house)
    read = await child.reads()
    assert (read["method"], read["params"]) == (body["method"], body["params"])
    await child.answers(read)
    await answer_of(call)


async def test_second_request_reaches_the_same_dyno(house: House) -> None:
    child = await warm(house)
    call = sending(house, asks(1))
    await child.answers(await child.reads())
    assert (await answer_of(call)).only == result(1)
    assert house.launcher.orders.empty()


async def test_first_requests_that_come_at_once_share_one_dyno(house: House) -> None:
    calls = [sending(house, asks(1, n=n)) for n in range(5)]
    child = await next_child(house)
    for request in await child.reads_many(5):
        await child.answers(request, {"n": request["params"]["n"]})
    got = [(await answer_of(call)).only for call in calls]
    assert got == [result(1, {"n": n}) for n in range(5)]
    assert house.launcher.orders.empty()


async def test_first_requests_after_a_restart_share_one_dyno() -> None:
    async with opened(servers=MODERN, terms=LASTING) as house:
        calls = [sending(house, asks(1, n=n)) for n in range(5)]
        child = await next_child(house)
        for request in await child.reads_many(5):
            await child.answers(request)
        assert [(await answer_of(call)).status for call in calls] == [200] * 5
        assert house.launcher.orders.empty()


async def test_large_answer_passes_whole(house: House) -> None:
    child = await warm(house)
    call = sending(house, asks(1))
    text = "é" * answering.PIECE_BYTES
    await child.answers(await child.reads(), {"text": text})
    assert (await answer_of(call)).only == result(1, {"text": text})


async def test_progress_before_the_answer_makes_a_stream(house: House) -> None:
    child = await warm(house)
    call = sending(house, asks(1, token="t"))
    request = await child.reads()
    await child.progresses(request, 0.5)
    await child.answers(request)
    answer = await answer_of(call)
    assert answer.headers["Content-Type"] == "text/event-stream"
    progress = {"progressToken": "t", "progress": 0.5}
    assert answer.messages == [
        {"jsonrpc": "2.0", "method": "notifications/progress", "params": progress},
        result(1),
    ]


async def test_events_of_a_stream_have_no_ids_since_nobody_can_come_back(house: House) -> None:
    child = await warm(house)
    call = house.tasks.create_task(_ids(house, asks(1, token="t")))
    request = await child.reads()
    await child.progresses(request, 0.5)
    await child.answers(request)
    assert await call == [None, None]


async def _ids(house: House, body: Any) -> list[str | None]:
    async with streaming(house, body) as stream:
        found = []
        while (item := await stream.next()) is not None:
            found.append(item.id)
        return found


async def test_slow_request_becomes_a_stream(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    child = await warm(house)
    monkeypatch.setattr(modern_http, "COMMIT_S", 0.0)
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(_answered(house, asks("x")))
        await child.answers(await child.reads())
    assert reading.result() == [result("x")]


async def _answered(house: House, body: Any) -> list[Any]:
    async with streaming(house, body) as stream:
        return await stream.rest()


# Several callers


async def test_equal_ids_and_tokens_of_one_principal_never_meet(house: House) -> None:
    child = await warm(house)
    calls = [sending(house, asks(1, token=0, who=who)) for who in "abc"]
    requests = await child.reads_many(3)
    for request in reversed(requests):
        await child.progresses(request, 0.5)
    for request in requests:
        await child.answers(request, {"who": request["params"]["who"]})
    for who, call in zip("abc", calls, strict=True):
        progress, answer = (await answer_of(call)).messages
        assert progress["params"] == {"progressToken": 0, "progress": 0.5}
        assert answer == result(1, {"who": who})


async def test_two_principals_have_two_dynos(house: House) -> None:
    mine, theirs = sending(house, asks(1)), sending(house, asks(1), X_API_Key=OTHER_KEY)
    children = [await next_child(house) for _ in range(2)]
    for child in children:
        launch = child.agent.launch_id
        await child.answers(await child.reads(), {"launch": launch})
    got = {(await answer_of(call)).only["result"]["launch"] for call in (mine, theirs)}
    assert got == {child.agent.launch_id for child in children}


async def test_two_servers_of_one_principal_have_two_dynos(house: House) -> None:
    child = await warm(house)
    other = await warm(house, path=OTHER)
    assert child.agent.launch_id != other.agent.launch_id


@pytest.mark.parametrize("seed", range(6))
async def test_each_of_many_callers_reads_its_own_and_only_once(house: House, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - repeatable, not secret
    children = {KEY: await warm(house), OTHER_KEY: await warm(house, X_API_Key=OTHER_KEY)}
    calls: dict[str, tuple[Any, asyncio.Task[Answer]]] = {}
    running: list[tuple[Child, Any, list[Any]]] = []
    for n in range(24):
        key = chance.choice([KEY, OTHER_KEY])
        body = asks(chance.choice(IDS), token=chance.choice(IDS), who=str(n))
        calls[str(n)] = body, sending(house, body, X_API_Key=key)
        running.append((children[key], await children[key].reads(), []))
    expected: dict[str, list[Any]] = {}
    while running:
        child, request, told = chance.choice(running)
        who = request["params"]["who"]
        body, call = calls[who]
        match chance.choice(["progress", "answer", "leave", "lie"]):
            case "progress":
                await child.progresses(request, len(told) + 1)
                token = body["params"]["_meta"]["progressToken"]
                told.append({"progressToken": token, "progress": len(told) + 1})
            case "answer":
                await child.answers(request, {"who": who})
                expected[who] = [*told, {"who": who}]
                running.remove((child, request, told))
            case "leave":
                call.cancel()
                assert cancelled(request, await child.reads())
                await child.answers(request, {"who": "late"})
                running.remove((child, request, told))
            case _:
                await child.answers({"id": chance.choice([*IDS[1:], 10**6])}, {"who": "liar"})
    got = {
        who: [each.get("params") or each["result"] for each in (await answer_of(call)).messages]
        for who, (_, call) in calls.items()
        if who in expected
    }
    assert got == expected


# Hanging up


async def test_caller_that_hangs_up_takes_back_its_own_request_only(house: House) -> None:
    child = await warm(house)
    stays = sending(house, asks(1))
    kept = await child.reads()
    goes = sending(house, asks(1))
    dropped = await child.reads()
    goes.cancel()
    assert cancelled(dropped, await child.reads())
    await child.answers(dropped, {"late": True})
    await child.answers(kept)
    assert (await answer_of(stays)).only == result(1)
    assert child.agent.received() == []


async def test_caller_that_hangs_up_in_a_stream_takes_back_its_request(house: House) -> None:
    child = await warm(house)
    async with asyncio.TaskGroup() as group:
        begun: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        group.create_task(_first_then_hang_up(house, asks(1, token=1), begun))
        request = await child.reads()
        await child.progresses(request, 0.5)
        await begun
    assert cancelled(request, await child.reads())


async def _first_then_hang_up(house: House, body: Any, begun: asyncio.Future[Any]) -> None:
    async with streaming(house, body) as stream:
        begun.set_result(await stream.message())
        stream.hang_up()


async def test_id_may_be_used_again_after_hanging_up(house: House) -> None:
    child = await warm(house)
    goes = sending(house, asks(1))
    first = await child.reads()
    goes.cancel()
    assert cancelled(first, await child.reads())
    again = sending(house, asks(1))
    second = await child.reads()
    await child.answers(first, {"late": True})
    await child.answers(second)
    assert (await answer_of(again)).only == result(1)


async def test_hanging_up_during_the_boot_leaves_the_boot_to_others(house: House) -> None:
    goes = sending(house, asks(1, who="goes"))
    order = await next_order(house)
    stays = sending(house, asks(1, who="stays"))
    await eventually(lambda: shared(house).session.calls == 2)
    goes.cancel()
    await eventually(lambda: shared(house).session.calls == 1)
    child = Child(await house.join(order))
    read = {each["method"]: each for each in await child.reads_many(3)}
    assert set(read) == {"tools/call", "notifications/cancelled"}
    kept = read["tools/call"]
    assert kept["params"]["who"] == "stays"
    await child.answers(kept)
    assert (await answer_of(stays)).only == result(1)


async def test_late_answer_is_told_as_nothing(house: House) -> None:
    child = await warm(house)
    goes = sending(house, asks(1))
    request = await child.reads()
    goes.cancel()
    assert cancelled(request, await child.reads())
    await child.answers(request)
    await _works(house, child)
    assert "dropped" not in house.ear.names()


async def _works(house: House, child: Child, **headers: str) -> None:
    call = sending(house, asks("works"), **headers)
    await child.answers(await child.reads())
    assert (await answer_of(call)).only == result("works")


# Log messages


async def test_log_messages_come_with_the_only_call_that_wants_any(house: House) -> None:
    child = await warm(house)
    silent = sending(house, asks(1))
    first = await child.reads()
    wants = sending(house, asks(1, level="warning"))
    second = await child.reads()
    await child.notifies("message", level="info", data="left out")
    await child.notifies("message", level="error", data="comes")
    await child.answers(first)
    await child.answers(second)
    assert (await answer_of(silent)).messages == [result(1)]
    log, answer = (await answer_of(wants)).messages
    assert (log["params"]["data"], answer) == ("comes", result(1))


async def test_log_messages_come_with_no_call_if_two_want_any(house: House) -> None:
    child = await warm(house)
    calls = [sending(house, asks(1, level="debug")) for _ in range(2)]
    requests = await child.reads_many(2)
    await child.notifies("message", level="error", data="whose?")
    for request in requests:
        await child.answers(request)
    assert [(await answer_of(call)).messages for call in calls] == [[result(1)]] * 2


# Listening


@asynccontextmanager
async def listening(
    house: House, child: Child, request_id: int | str = "mine", **headers: str
) -> AsyncIterator[tuple[Stream, Any]]:
    """An acknowledged subscription: yields its stream, and the request as the child read it."""
    body = asks(request_id, LISTEN, notifications={"toolsListChanged": True})
    async with asyncio.TaskGroup() as group:
        opening = group.create_task(_acknowledging(child))
        async with streaming(house, body, **headers) as stream:
            got = await stream.message()
            assert got["method"] == "notifications/subscriptions/acknowledged"
            assert got["params"]["_meta"] == {SUBSCRIPTION_KEY: request_id}
            yield stream, await opening


async def _acknowledging(child: Child) -> Any:
    request = await child.reads()
    await child.tells(request, "subscriptions/acknowledged")
    return request


@pytest.mark.parametrize("request_id", IDS, ids=repr)
async def test_subscription_is_tagged_with_its_callers_own_id(
    house: House, request_id: int | str
) -> None:
    child = await warm(house)
    async with listening(house, child, request_id) as (stream, listen):
        await child.tells(listen)
        got = await stream.message()
    assert got["method"] == "notifications/tools/list_changed"
    assert got["params"]["_meta"] == {SUBSCRIPTION_KEY: request_id}


async def test_notification_reaches_the_one_subscription_that_it_names(house: House) -> None:
    child = await warm(house)
    async with (
        listening(house, child, 1) as (first, of_first),
        listening(house, child, 1) as (second, of_second),
    ):
        await child.tells(of_second, "prompts/list_changed")
        await child.tells(of_first, "tools/list_changed")
        got = [(await stream.message())["method"] for stream in (first, second)]
    assert got == ["notifications/tools/list_changed", "notifications/prompts/list_changed"]


async def test_caller_ends_its_subscription_by_hanging_up(house: House) -> None:
    child = await warm(house)
    async with listening(house, child) as (stream, listen):
        stream.hang_up()
        assert cancelled(listen, await child.reads())


async def test_child_ends_a_subscription_with_its_answer(house: House) -> None:
    child = await warm(house)
    async with listening(house, child) as (stream, listen):
        meta = {SUBSCRIPTION_KEY: listen["id"]}
        await child.answers(listen, {"resultType": "complete", "_meta": meta})
        assert await stream.rest() == [complete("mine")]


async def test_child_ends_a_subscription_by_cancelling_it(house: House) -> None:
    child = await warm(house)
    async with listening(house, child) as (stream, listen):
        await child.notifies("cancelled", requestId=listen["id"])
        assert await stream.rest() == [complete("mine")]


async def test_subscription_ends_in_good_order_with_an_idle_session(house: House) -> None:
    child = await warm(house)
    async with listening(house, child) as (stream, _):
        shared(house).lease.idle_s = 0.0
        assert await stream.rest() == [complete("mine")]
    assert await house.ear.closed(child.agent) == Reason.IDLE


async def test_news_for_a_subscription_are_no_activity(house: House) -> None:
    child = await warm(house)
    async with listening(house, child) as (stream, listen):
        before = shared(house).session.active
        await child.tells(listen)
        await stream.message()
        assert (shared(house).session.active, shared(house).session.calls) == (before, 0)


async def test_one_subscription_too_many_is_refused(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "MAX_LISTENS", 1)
    child = await warm(house)
    async with listening(house, child):
        answer = await send(house, asks("more", LISTEN, notifications={}))
        assert answer.refused == (503, -32603, "busy", "more")
        assert child.agent.received() == []


async def test_boot_that_fails_is_an_error_for_who_wants_to_listen() -> None:
    async with opened(servers=(serving(boot_timeout=0.05),)) as house:
        answer = await send(house, asks("mine", LISTEN, notifications={}))
        assert answer.refused[1:] == (-32603, "start_timeout", "mine")


# What the answer's status says


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (-32601, 404),
        (-32602, 400),
        (-32603, 200),
        (-32021, 400),
        (-32022, 400),
        (-1, 200),
        (7, 200),
    ],
)
async def test_status_tells_what_the_childs_error_is(house: House, code: int, status: int) -> None:
    child = await warm(house)
    call = sending(house, asks("x"))
    await child.fails(await child.reads(), code)
    answer = await answer_of(call)
    assert (answer.status, answer.only["id"], answer.only["error"]["code"]) == (status, "x", code)


async def test_error_after_the_stream_has_begun_keeps_its_status(house: House) -> None:
    child = await warm(house)
    call = sending(house, asks("x", token=1))
    request = await child.reads()
    await child.progresses(request, 1)
    await child.fails(request, -32601)
    answer = await answer_of(call)
    assert (answer.status, answer.messages[-1]["error"]["code"]) == (200, -32601)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Mcp_Method": "tools/list"}, asks(1)),
        ({"Mcp_Name": "play"}, asks(1)),
        ({"MCP_Protocol_Version": "2027-01-01"}, asks(1)),
        ({"Mcp_Name": "=?base64?!!?="}, asks(1)),
    ],
    ids=["method", "name", "revision", "malformed"],
)
async def test_header_that_contradicts_the_body_is_refused(
    house: House, headers: dict[str, str], body: Any
) -> None:
    answer = await send(house, body, **headers)
    assert answer.refused == (400, -32020, "header_mismatch", 1)
    assert house.launcher.orders.empty()


@pytest.mark.parametrize("missing", ["Mcp-Method", "Mcp-Name"])
async def test_header_that_is_missing_is_refused(house: House, missing: str) -> None:
    headers = headers_of(asks(1))
    del headers[missing]
    async with house.http.post(house.url, json=asks(1), headers=headers) as response:
        error = (await response.json())["error"]
    assert (response.status, error["code"]) == (400, -32020)


async def test_modern_body_without_its_header_is_refused(house: House) -> None:
    async with house.http.post(house.url, json=asks(1)) as response:
        error = (await response.json())["error"]
    assert (response.status, error["code"]) == (400, -32020)


async def test_unknown_later_revision_is_refused_with_those_that_are_served(house: House) -> None:
    body = asks(1)
    body["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"] = "2099-01-01"
    answer = await send(house, body, MCP_Protocol_Version="2099-01-01")
    assert answer.refused == (400, -32022, "unsupported_revision", 1)
    data = answer.only["error"]["data"]
    assert (data["supported"], data["requested"]) == ([REVISION], "2099-01-01")


@pytest.mark.parametrize(
    "method", ["ping", "initialize", "logging/setLevel", "resources/subscribe"]
)
async def test_method_that_this_era_has_not_is_refused(house: House, method: str) -> None:
    answer = await send(house, asks(1, method))
    assert answer.refused == (404, -32601, "unknown_method", 1)


@pytest.mark.parametrize(
    "params",
    [None, {}, {"_meta": {}}, {"_meta": {"io.modelcontextprotocol/protocolVersion": REVISION}}],
    ids=["none", "no meta", "empty", "no capabilities"],
)
async def test_request_that_does_not_introduce_itself_is_refused(house: House, params: Any) -> None:
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    if params is not None:
        body["params"] = params
    answer = await send(house, body)
    assert answer.refused == (400, -32602, "bad_params", 1)


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("path", ["/mcp", "/servers/patient/mcp", "/handles/h/mcp"])
async def test_only_post_is_taken(house: House, method: str, path: str) -> None:
    headers = {"MCP-Protocol-Version": REVISION, "Mcp-Session-Id": "x"}
    async with house.http.request(method, house.origin + path, headers=headers) as response:
        error = (await response.json())["error"]
    got = response.status, response.headers["Allow"], error["data"]["reason"]
    assert got == (405, "POST", "wrong_method")


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("application/json", 406),
        ("text/event-stream", 406),
        ("text/html", 406),
        ("text/event-stream, application/json", 202),
        ("*/*", 202),
    ],
)
async def test_caller_must_accept_both_forms_of_an_answer(
    house: House, accept: str, status: int
) -> None:
    notification = {"jsonrpc": "2.0", "method": "notifications/x"}
    assert (await send(house, notification, Accept=accept)).status == status


@pytest.mark.parametrize(
    "headers",
    [{"Content_Type": "text/plain"}, {"Content_Encoding": "gzip"}],
    ids=["type", "encoding"],
)
async def test_body_that_is_no_plain_json_is_refused(house: House, headers: dict[str, str]) -> None:
    given = headers_of(asks(1), **{"Content_Type": "application/json", **headers})
    raw = json.dumps(asks(1)).encode()
    async with house.http.post(house.url, data=_parts(raw), headers=given) as response:
        assert response.status == 415


async def _parts(raw: bytes) -> AsyncIterator[bytes]:
    yield raw  # in parts, the client does not meddle with its encoding


async def test_body_over_the_limit_is_refused(house: House) -> None:
    headers = headers_of(asks(1)) | {"Content-Type": "application/json"}
    headers["Content-Length"] = str(16 * 2**20 + 1)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    host, port = house.origin.removeprefix("http://").split(":")
    given = f"Host: {host}\r\nX-API-Key: {KEY}\r\nAccept: */*\r\n{lines}"
    async with asyncio.timeout(BOUND):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"POST /servers/patient/mcp HTTP/1.1\r\n{given}\r\n".encode())
        status = await reader.readline()
    writer.close()
    assert status.split()[1] == b"413"


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (b"[]", 400, -32600),
        (b'[{"jsonrpc":"2.0","method":"x"}]', 400, -32600),
        (b'{"jsonrpc":"2.0","id":1,"result":{}}', 400, -32600),
        (b'{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":""}}', 400, -32600),
        (b'{"jsonrpc":"1.0","id":1,"method":"x"}', 400, -32600),
        (b'{"jsonrpc":"2.0","id":null,"method":"x"}', 400, -32600),
        (b"1", 400, -32600),
        (b"{", 400, -32700),
        (b"\xff", 400, -32700),
        (b"", 400, -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"x","params":' + b"[" * 10**5, 400, -32700),
    ],
    ids=[
        *("empty batch", "batch", "result", "error", "1.0", "null id"),
        *("number", "half", "no UTF-8", "nothing", "deep"),
    ],
)
async def test_body_that_is_no_message_of_a_client_is_refused(
    house: House, raw: bytes, status: int, code: int
) -> None:
    headers = {"MCP-Protocol-Version": REVISION, "Content-Type": "application/json"}
    async with house.http.post(house.url, data=raw, headers=headers) as response:
        error = (await response.json())["error"]
    assert (response.status, error["code"]) == (status, code)


async def test_notification_is_taken_and_goes_nowhere(house: House) -> None:
    child = await warm(house)
    call = sending(house, asks(1))
    request = await child.reads()
    body = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
    answer = await send(house, body)
    assert (answer.status, answer.messages) == (202, [])
    await child.answers(request)
    assert (await answer_of(call)).only == result(1)
    assert child.agent.received() == []


async def test_notification_gets_no_dyno(house: House) -> None:
    assert (await send(house, {"jsonrpc": "2.0", "method": "notifications/x"})).status == 202
    assert house.manager.sessions == 0


async def test_session_id_is_neither_read_nor_given(house: House) -> None:
    child = await warm(house)
    call = sending(house, asks(1, token=1), Mcp_Session_Id="made-up")
    request = await child.reads()
    await child.progresses(request, 1)
    await child.answers(request)
    streamed = await answer_of(call)
    call = sending(house, asks(1), Mcp_Session_Id="made-up")
    await child.answers(await child.reads())
    plain = await answer_of(call)
    refused = await send(house, asks(1, "ping"), Mcp_Session_Id="made-up")
    notified = await send(
        house, {"jsonrpc": "2.0", "method": "notifications/x"}, Mcp_Session_Id="made-up"
    )
    answers = [streamed, plain, refused, notified]
    assert [answer.status for answer in answers] == [200, 200, 404, 202]
    assert not any("Mcp-Session-Id" in answer.headers for answer in answers)


async def test_unknown_server_and_key_are_refused_as_in_any_era(house: House) -> None:
    nowhere = await send(house, asks(1), path="/servers/none/mcp")
    nobody = await send(house, asks(1), X_API_Key="wrong")
    assert (nowhere.status, nobody.status) == (404, 401)


# What is brought back


async def given(
    house: House,
    child: Child,
    body: Any,
    result: dict[str, Any],
    path: str = "/servers/patient/mcp",
    **headers: str,
) -> Any:
    """Let a child answer a request; return what its caller reads."""
    call = sending(house, body, path=path, **headers)
    await child.answers(await child.reads(), result)
    return (await answer_of(call)).only["result"]


def asked_back(word: str = "state") -> dict[str, Any]:
    return {"resultType": "input_required", "requestState": word, "inputRequests": {"q": {}}}


@pytest.fixture
async def child(house: House) -> Child:
    return await warm(house)


async def test_retry_brings_the_child_its_own_state(house: House, child: Child) -> None:
    state = (await given(house, child, asks(1, a=1), asked_back()))["requestState"]
    responses: dict[str, Any] = {"q": {"result": {}}}
    retry = sending(house, asks(2, a=1, requestState=state, inputResponses=responses))
    request = await child.reads()
    assert request["params"]["requestState"] == "state"
    assert request["params"]["inputResponses"] == responses
    await child.answers(request)
    assert (await answer_of(retry)).only == result(2)


async def test_next_page_brings_the_child_its_own_cursor(house: House, child: Child) -> None:
    page = await given(house, child, asks(1, "tools/list"), {"tools": [], "nextCursor": "two"})
    more = sending(house, asks(1, "tools/list", cursor=page["nextCursor"]))
    request = await child.reads()
    assert request["params"]["cursor"] == "two"
    await child.answers(request)
    await answer_of(more)


@pytest.mark.parametrize("method", ["tasks/get", "tasks/update", "tasks/cancel"])
async def test_request_about_a_task_brings_the_child_its_own_id(
    house: House, child: Child, method: str
) -> None:
    task = await given(house, child, asks(1), {"resultType": "task", "taskId": "t-1"})
    about = sending(house, asks(1, method, taskId=task["taskId"]))
    request = await child.reads()
    assert request["params"]["taskId"] == "t-1"
    await child.answers(request)
    await answer_of(about)


async def test_state_of_a_handles_dyno_comes_back_there_without_the_handle(house: House) -> None:
    child = await warm(house, Rendezvous_Handle="h")
    headers = {"Rendezvous_Handle": "h"}
    answer = await given(house, child, asks(1), asked_back(), **headers)
    retry = sending(house, asks(1, requestState=answer["requestState"]))
    await child.answers(await child.reads())
    assert (await answer_of(retry)).status == 200
    assert house.launcher.orders.empty()


STALE = (400, -32602, "stale_state", "retry")


@pytest.mark.parametrize("tail", ["=", "A", "AAAA", "garbage", " "], ids=repr)
async def test_state_that_has_grown_is_stale(house: House, child: Child, tail: str) -> None:
    state = (await given(house, child, asks(1), asked_back()))["requestState"]
    assert (await send(house, asks("retry", requestState=state + tail))).refused == STALE


@pytest.mark.parametrize("state", ["", "state", "é", "A" * 200], ids=["empty", "own", "é", "A"])
async def test_state_that_was_never_given_is_stale(house: House, state: str) -> None:
    assert (await send(house, asks("retry", requestState=state))).refused == STALE
    assert house.manager.sessions == 0


async def test_changed_state_is_stale(house: House, child: Child) -> None:
    state = (await given(house, child, asks(1), asked_back()))["requestState"]
    middle = len(state) // 2
    other = "A" if state[middle] != "A" else "B"
    changed = state[:middle] + other + state[middle + 1 :]
    assert (await send(house, asks("retry", requestState=changed))).refused == STALE


async def test_state_is_stale_for_another_principal(house: House, child: Child) -> None:
    state = (await given(house, child, asks(1), asked_back()))["requestState"]
    answer = await send(house, asks("retry", requestState=state), X_API_Key=OTHER_KEY)
    assert answer.refused == STALE


@pytest.mark.parametrize(
    "retry",
    [
        asks("retry", arguments={"a": 2}),
        asks("retry", name="play", arguments={"a": 1}),
        asks("retry", "prompts/get", name="work", arguments={"a": 1}),
        asks("retry", arguments={"a": 1}, more=1),
        asks("retry"),
    ],
    ids=["argument", "name", "method", "more", "less"],
)
async def test_state_is_stale_with_another_request(
    house: House, child: Child, retry: dict[str, Any]
) -> None:
    answer = await given(house, child, asks(1, arguments={"a": 1}), asked_back())
    params = {**retry["params"], "requestState": answer["requestState"]}
    assert (await send(house, {**retry, "params": params})).refused == STALE
    assert child.agent.received() == []


async def test_state_is_stale_at_another_server(house: House, child: Child) -> None:
    state = (await given(house, child, asks(1), asked_back()))["requestState"]
    answer = await send(house, asks("retry", requestState=state), path=OTHER)
    assert answer.refused == STALE
    assert child.agent.received() == []


async def test_words_of_one_kind_are_stale_as_another(house: House, child: Child) -> None:
    words = await given(
        house,
        child,
        asks(1, "tools/list"),
        {"requestState": "s", "nextCursor": "c", "taskId": "t"},
    )
    wrong = [
        asks("retry", "tools/list", requestState=words["nextCursor"]),
        asks("retry", "tools/list", cursor=words["requestState"]),
        asks("retry", "tasks/get", taskId=words["nextCursor"]),
    ]
    assert [(await send(house, body)).refused for body in wrong] == [STALE] * 3


async def test_cursor_of_one_list_is_stale_for_another(house: House, child: Child) -> None:
    page = await given(house, child, asks(1, "tools/list"), {"tools": [], "nextCursor": "two"})
    answer = await send(house, asks("retry", "prompts/list", cursor=page["nextCursor"]))
    assert answer.refused == STALE


async def test_state_is_stale_once_its_dyno_has_ended(house: House, child: Child) -> None:
    state = (await given(house, child, asks(1), asked_back()))["requestState"]
    await child.exits()
    assert await house.ear.closed(child.agent) == Reason.PROCESS_EXIT
    assert (await send(house, asks("retry", requestState=state))).refused == STALE
    assert house.launcher.orders.empty()


async def test_state_of_an_ended_dyno_never_reaches_the_next_one(
    house: House, child: Child
) -> None:
    state = (await given(house, child, asks(1), asked_back()))["requestState"]
    await child.exits()
    await house.ear.closed(child.agent)
    other = await warm(house)
    assert (await send(house, asks("retry", requestState=state))).refused == STALE
    assert other.agent.received() == []


async def test_child_never_reads_a_sealed_word_of_somebody_else(house: House, child: Child) -> None:
    task = await given(house, child, asks(1), {"resultType": "task", "taskId": "t-1"})
    theirs = await warm(house, X_API_Key=OTHER_KEY)
    body = asks("retry", "tasks/get", taskId=task["taskId"])
    assert (await send(house, body, X_API_Key=OTHER_KEY)).refused == STALE
    assert theirs.agent.received() == []


# Who shares a dyno


async def test_handle_makes_a_dyno_of_its_own(house: House) -> None:
    plain = await warm(house)
    named = await warm(house, Rendezvous_Handle="h")
    other = await warm(house, Rendezvous_Handle="i")
    assert len({each.agent.launch_id for each in (plain, named, other)}) == 3


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/servers/patient/handles/h.1~-_/mcp", {}),
        ("/handles/h.1~-_/mcp", {}),
        ("/servers/patient/handles/h.1~-_/mcp", {"Rendezvous_Handle": "h.1~-_"}),
    ],
    ids=["server", "default", "both"],
)
async def test_handle_in_the_path_is_the_handle_in_the_header(
    house: House, path: str, headers: dict[str, str]
) -> None:
    child = await warm(house, Rendezvous_Handle="h.1~-_")
    call = sending(house, asks(1), path=path, **headers)
    await child.answers(await child.reads())
    assert (await answer_of(call)).status == 200


async def test_handle_of_one_principal_is_another_of_the_next(house: House) -> None:
    mine = await warm(house, Rendezvous_Handle="h")
    theirs = await warm(house, Rendezvous_Handle="h", X_API_Key=OTHER_KEY)
    assert mine.agent.launch_id != theirs.agent.launch_id


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/servers/patient/mcp", {"Rendezvous_Handle": ""}),
        ("/servers/patient/mcp", {"Rendezvous_Handle": "a b"}),
        ("/servers/patient/mcp", {"Rendezvous_Handle": "a/b"}),
        ("/servers/patient/mcp", {"Rendezvous_Handle": "x" * 129}),
        ("/servers/patient/handles/%C3%A9/mcp", {}),
        ("/servers/patient/handles/a%2Fb/mcp", {}),
        ("/servers/patient/handles/a/mcp", {"Rendezvous_Handle": "b"}),
    ],
    ids=["empty", "blank", "slash", "long", "accent", "escaped slash", "two"],
)
async def test_bad_handle_is_refused(house: House, path: str, headers: dict[str, str]) -> None:
    answer = await send(house, asks(1), path=path, **headers)
    assert (answer.status, answer.only["error"]["data"]["reason"]) == (400, "bad_message")
    assert house.manager.sessions == 0


async def test_server_of_handles_serves_nobody_without_one() -> None:
    async with isolated("handle") as house:
        assert (await send(house, asks(1))).refused == (400, -32600, "missing_handle", 1)
        assert house.manager.sessions == 0
        child = await warm(house, Rendezvous_Handle="h")
        await _works(house, child, Rendezvous_Handle="h")


async def test_server_of_single_requests_has_a_dyno_for_each() -> None:
    async with isolated("request") as house:
        calls = [sending(house, asks(1)) for _ in range(2)]
        children = [await next_child(house) for _ in range(2)]
        for child in children:
            await child.answers(await child.reads())
        assert [(await answer_of(call)).status for call in calls] == [200, 200]
        ends = [await house.ear.closed(child.agent) for child in children]
        assert ends == [Reason.ANSWERED] * 2


async def test_dyno_of_a_single_request_waits_for_the_retry_and_then_ends() -> None:
    async with isolated("request") as house:
        call = sending(house, asks(1))
        child = await next_child(house)
        await child.answers(await child.reads(), asked_back())
        state = (await answer_of(call)).only["result"]["requestState"]
        assert not house.ear.ended(child.agent)
        retry = sending(house, asks(2, requestState=state))
        await child.answers(await child.reads())
        assert (await answer_of(retry)).only == result(2)
        assert await house.ear.closed(child.agent) == Reason.ANSWERED
        assert house.launcher.orders.empty()


async def test_dyno_of_a_single_request_waits_through_several_rounds() -> None:
    async with isolated("request") as house:
        call = sending(house, asks(1))
        child = await next_child(house)
        for word in ("one", "two", "three"):
            await child.answers(await child.reads(), asked_back(word))
            state = (await answer_of(call)).only["result"]["requestState"]
            call = sending(house, asks(1, requestState=state))
        last = await child.reads()
        assert last["params"]["requestState"] == "three"
        await child.answers(last)
        await answer_of(call)
        assert await house.ear.closed(child.agent) == Reason.ANSWERED


@pytest.mark.parametrize("hangs_up", [False, True], ids=["update", "hang up"])
async def test_dyno_of_a_single_request_lives_on_while_its_task_runs(*, hangs_up: bool) -> None:
    async with isolated("request") as house:
        call = sending(house, asks(1))
        child = await next_child(house)
        await child.answers(await child.reads(), {"resultType": "task", "taskId": "t-1"})
        task = (await answer_of(call)).only["result"]["taskId"]
        about = sending(house, asks(1, "tasks/update", taskId=task))
        request = await child.reads()
        if hangs_up:
            about.cancel()
            assert cancelled(request, await child.reads())
        else:
            await child.answers(request)
            await answer_of(about)
        again = sending(house, asks(1, "tasks/get", taskId=task))
        await child.answers(await child.reads(), {"resultType": "complete", "taskId": "t-1"})
        assert (await answer_of(again)).status == 200


async def test_dyno_of_a_single_request_ends_when_its_caller_hangs_up() -> None:
    async with isolated("request") as house:
        call = sending(house, asks(1))
        child = await next_child(house)
        await child.reads()
        call.cancel()
        assert await house.ear.closed(child.agent) == Reason.ANSWERED


# Ends


async def several(house: House, child: Child) -> list[asyncio.Task[Answer]]:
    """Callers that wait, each with an id of its own."""
    calls = [sending(house, asks(request_id)) for request_id in IDS]
    await child.reads_many(len(calls))
    return calls


async def refusals(calls: list[asyncio.Task[Answer]]) -> list[tuple[int, int, str, Any]]:
    return [(await answer_of(call)).refused for call in calls]


async def test_each_caller_is_told_under_its_own_id_that_the_child_has_exited(
    house: House, child: Child
) -> None:
    calls = await several(house, child)
    await child.exits()
    told = [(502, -32603, "child_exited", request_id) for request_id in IDS]
    assert await refusals(calls) == told


async def test_each_caller_is_told_under_its_own_id_that_the_boot_failed() -> None:
    async with opened(servers=(serving(boot_timeout=0.2),)) as house:
        calls = [sending(house, asks(request_id)) for request_id in IDS]
        told = [(504, -32603, "start_timeout", request_id) for request_id in IDS]
        assert await refusals(calls) == told


async def test_each_caller_is_told_under_its_own_id_that_the_child_did_not_start(
    house: House,
) -> None:
    calls = [sending(house, asks(request_id)) for request_id in IDS]
    child = Child(await house.join(await next_order(house)))
    await child.reads_many(len(IDS))
    failed = {"event": "spawn_failed", "message": "no such file"}
    await child.agent.send(Channel.EVENT, failed)
    told = [(502, -32603, "child_not_started", request_id) for request_id in IDS]
    assert await refusals(calls) == told


async def test_each_caller_is_told_under_its_own_id_that_the_agent_broke_the_rules(
    house: House, child: Child
) -> None:
    calls = await several(house, child)
    await child.agent.socket.send(b"\xff" * 40)
    told = [(502, -32603, "session_ended", request_id) for request_id in IDS]
    assert await refusals(calls) == told


async def test_stream_ends_with_the_error(house: House, child: Child) -> None:
    call = sending(house, asks("x", token=1))
    await child.progresses(await child.reads(), 0.5)
    await child.exits()
    answer = await answer_of(call)
    assert answer.messages[-1]["id"] == "x"
    assert answer.messages[-1]["error"]["data"]["reason"] == "child_exited"


async def test_request_after_the_end_gets_a_new_dyno(house: House, child: Child) -> None:
    await child.exits()
    await house.ear.closed(child.agent)
    other = await warm(house)
    assert other.agent.launch_id != child.agent.launch_id


async def test_end_of_one_principals_dyno_is_nothing_to_another(house: House, child: Child) -> None:
    theirs = await warm(house, X_API_Key=OTHER_KEY)
    call = sending(house, asks(1), X_API_Key=OTHER_KEY)
    request = await theirs.reads()
    await child.exits()
    await house.ear.closed(child.agent)
    await theirs.answers(request)
    assert (await answer_of(call)).only == result(1)


async def test_one_session_too_many_is_refused_and_leaves_nothing_behind() -> None:
    terms = Terms("http://127.0.0.1", SECRET, 1)
    async with opened(servers=MODERN, terms=terms) as house:
        child = await warm(house)
        answer = await send(house, asks("x", who="refused"), path=OTHER)
        assert answer.refused == (503, -32603, "busy", "x")
        assert answer.headers["Retry-After"] == "5"
        await _works(house, child)
        await child.exits()
        await house.ear.closed(child.agent)
        call = sending(house, asks(1, who="later"), path=OTHER)
        other = await next_child(house)
        request = await other.reads()
        assert request["params"]["who"] == "later"
        await other.answers(request)
        await answer_of(call)
        assert other.agent.received() == []


async def test_refused_single_request_is_not_remembered() -> None:
    terms = Terms("http://127.0.0.1", SECRET, 1)
    servers = (serving(isolation="request"), serving("other"))
    async with opened(servers=servers, terms=terms) as house:
        await warm(house, path=OTHER)
        assert [(await send(house, asks(1))).status for _ in range(3)] == [503] * 3
        await eventually(lambda: house.manager.sessions == 1)


# The boot


def phases(messages: list[Any]) -> list[float]:
    return [each["params"]["progress"] for each in messages if "method" in each]


async def test_boot_is_progress_that_increases_below_the_childs_own(house: House) -> None:
    call = sending(house, asks(1, token="t"))
    child = await next_child(house)
    request = await child.reads()
    await child.progresses(request, 0)
    await child.progresses(request, 0.5)
    await child.answers(request)
    answer = await answer_of(call)
    seen = phases(answer.messages)
    assert seen == sorted(set(seen))
    assert (seen[0] >= PHASE_STEP, seen[-2] < 0.1, seen[-1]) == (True, True, 0.5)
    assert len(seen) >= 3
    tokens = {each["params"]["progressToken"] for each in answer.messages if "method" in each}
    assert (tokens, answer.messages[-1]) == ({"t"}, result(1))


async def test_boot_is_no_progress_for_who_wants_none(house: House) -> None:
    call = sending(house, asks(1))
    child = await next_child(house)
    await child.answers(await child.reads())
    assert (await answer_of(call)).messages == [result(1)]


async def test_childs_progress_of_nothing_comes_through_without_a_boot(
    house: House, child: Child
) -> None:
    call = sending(house, asks(1, token=1))
    request = await child.reads()
    await child.progresses(request, 0)
    await child.answers(request)
    assert phases((await answer_of(call)).messages) == [0]


# A caller that does not read


@asynccontextmanager
async def stuck(house: House, child: Child) -> AsyncIterator[tuple[Any, asyncio.StreamReader]]:
    """A caller that does not read its stream: yields its request as the child has read it."""
    host, port = house.origin.removeprefix("http://").split(":")
    body = json.dumps(asks("slow", token=1)).encode()
    lines = {"Host": f"{host}:{port}", "X-API-Key": KEY, "Content-Length": str(len(body))}
    lines |= {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
    lines |= headers_of(json.loads(body))
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    reader, writer = await asyncio.open_connection(host, int(port), limit=1)
    try:
        raw = f"POST /servers/patient/mcp HTTP/1.1\r\n{head}\r\n".encode() + body
        writer.write(raw)
        await writer.drain()
        yield await child.reads(), reader
    finally:
        writer.close()


async def flood(child: Child, request: Any, live: Any) -> None:
    """Send progress of about 100 KB each until its caller is given up."""
    token = request["params"]["_meta"]["progressToken"]
    text = "x" * 100_000
    async with asyncio.timeout(BOUND):
        for n in range(1, 2000):
            await child.notifies("progress", progressToken=token, progress=n, message=text)
            if live.session.calls == 0:
                return
            await asyncio.sleep(0)
    raise AssertionError("nothing was too much")


async def test_caller_that_does_not_read_is_cut_off_and_its_request_taken_back(
    house: House, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lives, "OUTBOX_BYTES", 200_000)
    async with stuck(house, child) as (request, _):
        await flood(child, request, shared(house))
        assert cancelled(request, await child.reads())
    await _works(house, child)


async def test_caller_that_does_not_read_does_not_stop_the_others(
    house: House, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link lets 32 MiB lie; far more comes for the slow one."""
    monkeypatch.setattr(lives, "OUTBOX_BYTES", 200_000)
    async with stuck(house, child) as (request, reader):
        token = request["params"]["_meta"]["progressToken"]
        text = "x" * 1_000_000
        for n in range(1, 100):
            await child.notifies("progress", progressToken=token, progress=n, message=text)
        await _serves_on(house, child)
        assert not (await _all_of(reader)).endswith(b"0\r\n\r\n")


async def _all_of(reader: asyncio.StreamReader) -> bytes:
    """Return the end of what a connection brings before it is cut."""
    got = b""
    async with asyncio.timeout(BOUND):
        with contextlib.suppress(ConnectionError):
            while part := await reader.read(2**20):
                got = part
    return got


# After another gateway process


@asynccontextmanager
async def deployment() -> AsyncIterator[tuple[House, House]]:
    """Two processes of one deployment, so to say: the one that launches, and the next."""
    async with (
        opened(terms=LASTING, servers=MODERN) as old,
        opened(old.launcher, LASTING, MODERN) as new,
    ):
        yield old, new


async def moved(child: Child, new: House) -> None:
    """The old process is gone without a word; the agent comes to the new one."""
    child.agent.cut()
    await new.resume(child.agent)
    assert child.agent.welcome.fresh


async def _serves_on(house: House, child: Child, **headers: str) -> None:
    """Its agent may have been told to take back what the lost process had not acknowledged."""
    call = sending(house, asks("works"), **headers)
    await child.answers(await child.asked())
    assert (await answer_of(call)).only == result("works")


async def test_requests_of_a_lost_process_are_taken_back_at_the_child() -> None:
    async with deployment() as (old, new):
        child = await warm(old)
        calls = [sending(old, asks(1)) for _ in range(2)]
        requests = await child.reads_many(2)
        await moved(child, new)
        wanted = {request["id"] for request in requests}
        while wanted:
            read = await child.reads()
            assert read["method"] == "notifications/cancelled"
            wanted.discard(read["params"]["requestId"])
        for call in calls:
            call.cancel()


async def test_session_is_found_again_by_the_same_principal_and_handle() -> None:
    async with deployment() as (old, new):
        child = await warm(old, Rendezvous_Handle="h")
        await moved(child, new)
        await _serves_on(new, child, Rendezvous_Handle="h")
        assert new.launcher.orders.empty()


@pytest.mark.parametrize(
    "headers", [{}, {"Rendezvous_Handle": "i"}, {"X_API_Key": OTHER_KEY, "Rendezvous_Handle": "h"}]
)
async def test_session_is_not_found_by_anybody_else(headers: dict[str, str]) -> None:
    async with deployment() as (old, new):
        child = await warm(old, Rendezvous_Handle="h")
        await moved(child, new)
        other = await warm(new, **headers)
        assert other.agent.launch_id != child.agent.launch_id


async def test_late_answers_to_a_lost_process_reach_nobody() -> None:
    async with deployment() as (old, new):
        child = await warm(old)
        lost = sending(old, asks(1))
        earlier = await child.reads()
        await moved(child, new)
        call = sending(new, asks(1))
        request = await child.asked()
        assert request["id"] != earlier["id"]
        await child.answers(earlier, {"late": True})
        await child.answers(request)
        assert (await answer_of(call)).only == result(1)
        lost.cancel()


async def test_sealed_state_is_good_at_the_next_process() -> None:
    async with deployment() as (old, new):
        child = await warm(old)
        state = (await given(old, child, asks(1), asked_back()))["requestState"]
        await moved(child, new)
        retry = sending(new, asks(1, requestState=state))
        request = await child.asked()
        assert request["params"]["requestState"] == "state"
        await child.answers(request)
        assert (await answer_of(retry)).status == 200


async def test_request_waits_for_an_agent_that_is_on_its_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions, "RETURN_S", BOUND)
    async with deployment() as (old, new):
        first = sending(old, asks("warm"))
        old.age(BOUND)  # it has been up for long
        child = await next_child(old)
        await child.answers(await child.reads())
        await answer_of(first)
        calls = [sending(new, asks(1)) for _ in range(2)]
        await eventually(lambda: new.manager.directory.awaited == 2)
        await moved(child, new)
        for _ in calls:
            await child.answers(await child.asked())
        assert [(await answer_of(call)).only for call in calls] == [result(1)] * 2
        assert new.launcher.orders.empty()


async def test_agent_whose_place_is_taken_is_turned_away_and_its_state_is_stale() -> None:
    async with deployment() as (old, new):
        late = await warm(old)
        state = (await given(old, late, asks(1), asked_back()))["requestState"]
        child = await warm(new)
        late.agent.cut()
        with pytest.raises(InvalidStatus):
            await new.resume(late.agent)
        assert (await send(new, asks("retry", requestState=state))).refused == STALE
        await _works(new, child)


async def test_handed_over_session_serves_on_at_the_next_process() -> None:
    async with deployment() as (old, new):
        child = await warm(old)
        state = (await given(old, child, asks(1), asked_back()))["requestState"]
        async with asyncio.timeout(BOUND):
            await old.manager.drain()
        await child.agent.until(lambda: bool(child.agent.close_codes))
        await new.resume(child.agent)
        retry = sending(new, asks(1, requestState=state))
        await child.answers(await child.asked())
        assert (await answer_of(retry)).only == result(1)
        await _serves_on(new, child)


async def test_call_is_answered_while_its_process_leaves() -> None:
    async with deployment() as (old, _):
        child = await warm(old)
        call = sending(old, asks("x"))
        request = await child.reads()
        async with asyncio.TaskGroup() as group:
            group.create_task(old.manager.drain())
            await eventually(lambda: old.manager.draining)
            await child.answers(request)
            assert (await answer_of(call)).only == result("x")


async def test_call_that_a_hand_over_cuts_off_is_told_to_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(farewell, "DRAIN_S", 0.02)
    async with deployment() as (old, _):
        child = await warm(old)
        call = sending(old, asks("x"))
        await child.reads()
        async with asyncio.TaskGroup() as group:
            group.create_task(old.manager.drain())
            answer = await answer_of(call)
        assert answer.refused == (503, -32603, "restarting", "x")
        assert answer.headers["Retry-After"] == "2"


async def test_call_that_a_hand_over_cuts_off_is_taken_back_at_the_child(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(farewell, "DRAIN_S", 0.02)
    async with deployment() as (old, new):
        child = await warm(old)
        call = sending(old, asks("x"))
        request = await child.reads()
        async with asyncio.timeout(BOUND):
            await old.manager.drain()
        await answer_of(call)
        await child.agent.until(lambda: bool(child.agent.close_codes))
        await new.resume(child.agent)
        async with asyncio.timeout(BOUND):
            while not cancelled(request, await child.reads()):
                pass


async def test_subscription_ends_with_its_gateway_process() -> None:
    async with deployment() as (old, _):
        child = await warm(old)
        async with listening(old, child) as (stream, _listen), asyncio.timeout(BOUND):
            await old.manager.drain()
            assert all(message == complete("mine") for message in await stream.rest())


async def test_session_that_ends_while_a_caller_waits_for_room_tells_it() -> None:
    limits = Limits(
        message_bytes=100_000,
        window_bytes=165_552,
        window_frames=16,
        ack_bytes=10_000,
        ack_frames=4,
    )
    terms = dataclasses.replace(LASTING, limits=limits)
    async with opened(servers=MODERN, terms=terms) as house:
        child = await warm(house)
        child.agent.eats = False
        first = sending(house, asks("first", text="x" * 90_000))
        await child.reads()
        live = shared(house)
        await eventually(lambda: not live.session.link.writable)
        waits = sending(house, asks("waits"))
        await eventually(lambda: len(live._outboxes) == 2)
        await child.exits()
        told = [(await answer_of(call)).refused[1:] for call in (first, waits)]
        assert told[0] == (-32603, "child_exited", "first")
        assert (told[1][0], told[1][2]) == (-32603, "waits")


# What the catalogue knows


SCHEMA = {
    "type": "object",
    "properties": {"region": {"type": "string", "x-mcp-header": "Region"}},
}


@asynccontextmanager
async def catalogued(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    """A server of which it is known that one argument of `work` is repeated in a header."""
    tools = {"resultType": "complete", "tools": [{"name": "work", "inputSchema": SCHEMA}]}
    opening = {"supportedVersions": [REVISION], "capabilities": {"tools": {}}}
    lists = {"tools/list": Raw(msgspec.json.encode(tools))}
    chapter = Chapter("modern", Raw(msgspec.json.encode(opening)), lists, 1.0)

    def known(_: Catalogues, server: ServerDefinition, era: str) -> Chapter | None:
        return chapter if era == "modern" else None

    monkeypatch.setattr(Catalogues, "chapter", known)
    async with opened(servers=(serving(),)) as house:
        yield house


@pytest.mark.parametrize("headers", [{}, {"Mcp_Param_Region": "us"}], ids=["none", "other"])
async def test_argument_that_its_header_does_not_repeat_is_refused(
    monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    async with catalogued(monkeypatch) as house:
        answer = await send(house, asks(1, arguments={"region": "eu"}), **headers)
        assert answer.refused == (400, -32020, "header_mismatch", 1)
        assert house.manager.sessions == 0


async def test_argument_that_its_header_repeats_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    async with catalogued(monkeypatch) as house:
        call = sending(house, asks(1, arguments={"region": "eu"}), Mcp_Param_Region="eu")
        child = await next_child(house)
        await child.answers(await child.reads())
        assert (await answer_of(call)).status == 200


async def test_what_the_catalogue_knows_is_told_without_a_dyno(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with catalogued(monkeypatch) as house:
        answer = await send(house, asks("x", "tools/list"))
        assert (answer.status, answer.only["id"]) == (200, "x")
        assert [tool["name"] for tool in answer.only["result"]["tools"]] == ["work"]
        assert house.manager.sessions == 0


async def test_listen_to_lists_alone_needs_no_dyno(monkeypatch: pytest.MonkeyPatch) -> None:
    async with catalogued(monkeypatch) as house:
        body = asks("mine", LISTEN, notifications={"toolsListChanged": True})
        async with streaming(house, body) as stream:
            got = await stream.message()
            assert got["method"] == "notifications/subscriptions/acknowledged"
            assert got["params"]["_meta"] == {SUBSCRIPTION_KEY: "mine"}
            assert house.launcher.orders.empty()


async def test_held_listen_hears_of_the_dyno_that_starts_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with catalogued(monkeypatch) as house:
        body = asks("mine", LISTEN, notifications={"toolsListChanged": True})
        async with streaming(house, body) as stream:
            await stream.message()
            call = sending(house, asks("mine", arguments={}))
            child = await next_child(house)
            read = {each["method"]: each for each in await child.reads_many(2)}
            await child.answers(read["tools/call"])
            await answer_of(call)
            await child.tells(read[LISTEN])
            got = await stream.message()
            assert got["method"] == "notifications/tools/list_changed"
            assert got["params"]["_meta"] == {SUBSCRIPTION_KEY: "mine"}
