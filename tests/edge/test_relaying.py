"""Proves that it does not matter which gateway process a request comes to."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from yarl import URL

from gateway.edge import passing
from gateway.edge import relaying as relaying_module
from gateway.edge.door import Caller
from gateway.edge.loopback import PATIENCE_HEADER, PRINCIPAL_HEADER, RELAY_HEADER
from gateway.edge.relaying import KEPT_BYTES, Relaying
from gateway.edge.sse import SOON
from gateway.errors import Elsewhere
from gateway.exchange import exchange as exchange_module
from gateway.exchange import post as post_module
from gateway.exchange.carrying import WINDOW_BYTES
from gateway.patience import FIRST_BYTE_S
from gateway.store.memory import Engine, MemoryStore
from tests.exchange.houses import MESSAGE_BYTES, WAIT_S, Street, opened
from tests.exchange.town import eventually

NOISE = random.Random(9).randbytes(MESSAGE_BYTES)  # noqa: S311 - the same bytes in every run
REVISION = "2026-07-28"
UNREAD_BYTES = 3 * WINDOW_BYTES
"""What may be under way of an answer that nobody reads: the window, and as much in the buffers of
six sockets and in the pieces that are in somebody's hands."""


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest_asyncio.fixture
async def street(engine: Engine) -> AsyncIterator[Street]:
    stores = MemoryStore(engine, "a"), MemoryStore(engine, "b")
    async with opened(*stores) as street, asyncio.timeout(3 * WAIT_S):
        yield street


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything that waits for trouble to show wait less."""
    monkeypatch.setattr(post_module, "GONE_S", 0.2)
    monkeypatch.setattr(post_module, "RETRY_S", 0.02)
    monkeypatch.setattr(post_module, "PROBE_S", 0.05)
    monkeypatch.setattr(post_module, "STALLED_S", 0.1)
    monkeypatch.setattr(exchange_module, "LONGEST_PAUSE_S", 0.05)


def impatient(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr("gateway.patience.FIRST_BYTE_S", seconds)
    monkeypatch.setattr(relaying_module, "MARGIN_S", seconds / 10)


async def reason(response: aiohttp.ClientResponse) -> str:
    error = (await response.json())["error"]
    return str(error["data"]["reason"])


# Where it is answered


@pytest.mark.parametrize("does", ["echo", "who", "empty", "nothing", "refuse"])
async def test_answer_is_the_same_wherever_a_request_comes_in(street: Street, does: str) -> None:
    told = []
    for house in (street.a, street.b):
        async with street.post(does, {"x": 1}, house=house) as response:
            headers = {k: v for k, v in response.headers.items() if k not in ("Date", "Server")}
            told.append((response.status, headers, await response.read()))
    assert told[0] == told[1]
    assert street.a.did == [does, does]


@pytest.mark.parametrize("size", [1, 100_000, WINDOW_BYTES + 1, MESSAGE_BYTES])
async def test_bodies_pass_byte_for_byte_both_ways(street: Street, size: int) -> None:
    async with street.post("echo", NOISE[:size]) as response:
        assert response.headers["Content-Length"] == str(size)
        assert await response.read() == NOISE[:size]
    assert street.b.relaying.kept_bytes == 0


async def test_body_that_the_handler_has_read_is_carried_too(street: Street) -> None:
    async with street.post("read-first", NOISE[:200_000]) as response:
        assert await response.read() == NOISE[:200_000]


async def test_body_over_the_limit_is_refused_where_it_comes_in(street: Street) -> None:
    async with street.post("echo", NOISE + b"x") as response:
        assert (response.status, await reason(response)) == (413, "message_too_big")
    assert street.a.did == []


async def test_event_stream_comes_as_it_is_written(street: Street) -> None:
    async with street.post("stream") as response:
        assert await response.content.readuntil(b"\n\n") == b"id: 1.i1\ndata: first\n\n"
        assert response.headers["Content-Type"] == "text/event-stream"
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["X-Accel-Buffering"] == "no"
        assert response.headers["Mcp-Session-Id"] == "s1"
        assert "X-Private" not in response.headers
        street.a.gate.set()
        assert await response.read() == b"data: second\n\n"


async def test_get_and_delete_are_carried_too(street: Street) -> None:
    headers = {"Mcp-Do": "stream", "Last-Event-ID": "1.i7"}
    async with street.client.get(street.b.url, headers=headers) as response:
        assert await response.content.readuntil(b"\n\n") == b"id: 1.i1\ndata: first\n\n"
    async with street.client.delete(street.b.url, headers={"Mcp-Do": "nothing"}) as response:
        assert response.status == 204
    assert street.a.seen[0]["Last-Event-ID"] == "1.i7"


async def test_path_and_query_arrive_as_they_were_written(street: Street) -> None:
    headers = {"Mcp-Do": "who", "Content-Type": "application/json"}
    query = "?a=%2Fb%20c&session_id=x+y&%61=b"
    url = URL(street.b.url + query, encoded=True)
    async with street.client.post(url, data=b"{}", headers=headers) as response:
        assert response.status == 200
    assert street.a.targets == ["/mcp" + query]


async def test_header_that_is_not_utf8_is_refused(street: Street) -> None:
    port = int(street.b.url.rpartition(":")[2].partition("/")[0])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"GET /mcp HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer alice\r\n"
        b"Mcp-Session-Id: s1\r\nMcp-Name: \xff\r\nConnection: close\r\n\r\n"
    )
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert street.a.did == []


async def test_few_large_bodies_of_a_principal_are_read_at_the_same_time(street: Street) -> None:
    sent_rest, began = asyncio.Event(), asyncio.Semaphore(0)

    async def slow() -> AsyncIterator[bytes]:
        yield NOISE[:100_000]
        began.release()
        await sent_rest.wait()
        yield NOISE[100_000:200_000]

    async def ask() -> bytes:
        headers = {"Mcp-Do": "echo", "Content-Type": "application/json"}
        async with street.client.post(street.b.url, data=slow(), headers=headers) as response:
            return await response.read()

    large = street.b.relaying._large["alice"]
    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(ask()) for _ in range(3)]
        await eventually(lambda: large.locked() and large._waiters)
        async with street.post("echo", {"x": 1}) as response:
            assert response.status == 200  # small ones pass
        sent_rest.set()
    assert [task.result() for task in asking] == [NOISE[:200_000]] * 3


async def test_client_that_hangs_up_is_known_at_once_where_its_session_is(street: Street) -> None:
    async with asyncio.TaskGroup() as tasks:

        async def ask() -> None:
            async with street.post("never"):
                pass

        asking = tasks.create_task(ask())
        await street.a.until(lambda: street.a.did == ["never"])
        asking.cancel()
        await street.a.until(lambda: street.a.cancelled == ["never"])


async def test_client_that_leaves_its_stream_is_known_where_its_session_is(street: Street) -> None:
    async with street.post("stream") as response:
        await response.content.readuntil(b"\n\n")
    await street.a.until(lambda: street.a.cancelled == ["stream"])


async def test_client_that_does_not_read_stops_its_own_stream_only(street: Street) -> None:
    async with street.post("flood") as idle:
        await idle.content.readuntil(b"\n\n")
        async with street.post("echo", NOISE[: 3 * WINDOW_BYTES]) as response:
            assert await response.read() == NOISE[: 3 * WINDOW_BYTES]
        stopped_at = -1
        while stopped_at != street.a.flooded:  # a whole round trip, and no more was written
            stopped_at = street.a.flooded
            async with street.post("echo", NOISE[: 3 * WINDOW_BYTES]) as response:
                await response.read()
        assert stopped_at < UNREAD_BYTES
        await idle.content.readexactly(stopped_at)
        await eventually(lambda: street.a.flooded > stopped_at)


# Who may


async def test_client_is_who_it_was_where_it_came_in(street: Street) -> None:
    async with street.post("who", Authorization="Bearer bob") as response:
        assert await response.json() == {"principal": "bob"}


async def test_nothing_that_proves_who_the_client_is_goes_with_a_request(street: Street) -> None:
    async with street.post(
        "who", X_API_Key="k", Cookie="c=1", Origin="http://x", Forwarded="for=1", Mcp_Param_A="1"
    ):
        pass
    (seen,) = street.a.seen
    names = {name.lower() for name in seen}
    assert not names & {"authorization", "x-api-key", "cookie", "origin", "forwarded"}
    assert seen["Mcp-Param-A"] == "1"
    assert "127.0.0.1" not in seen["Host"]


async def test_client_cannot_say_that_it_was_carried(street: Street) -> None:
    for token in ("", "guess", "\u20ac"):
        headers = {RELAY_HEADER: token, PRINCIPAL_HEADER: "root", PATIENCE_HEADER: "20"}
        async with street.client.post(street.a.url, data=b"{}", headers=headers) as response:
            assert (response.status, await reason(response)) == (401, "bad_key")
    assert street.a.did == []


async def test_carried_request_has_less_patience_than_the_one_that_waits_for_it(
    street: Street,
) -> None:
    async with street.post("who"):
        pass
    (left_s,) = street.a.patience
    assert 0 < left_s <= FIRST_BYTE_S - relaying_module.MARGIN_S


# When the session moves


async def test_request_looks_again_when_the_session_has_moved_on(street: Street) -> None:
    """The board's news is old: `a` says 421, and the session turns out to be here."""
    street.board["s1"] = "b"
    answers = iter([Elsewhere("old news", "a", "s1")])
    handle = street.b.handle

    async def stale(request: web.Request, caller: Caller) -> web.StreamResponse:
        for old in answers:
            raise old
        return await handle(request, caller)

    street.b.handle = stale  # type: ignore[method-assign]
    async with street.post("echo", {"x": 1}) as response:
        assert await response.json() == {"x": 1}
    assert (street.a.did, street.b.did) == ([], ["echo"])


async def test_request_that_finds_its_session_nowhere_ends_with_a_retryable_error(
    street: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch, 0.5)
    looks = itertools.count()

    async def never_mine(_request: web.Request, _caller: Caller) -> web.StreamResponse:
        next(looks)
        raise Elsewhere("it is elsewhere", "b", "s1")

    street.a.handle = never_mine  # type: ignore[method-assign, assignment]
    async with street.post("echo", {"jsonrpc": "2.0", "id": 5, "method": "x"}) as response:
        assert (response.status, await reason(response)) == (503, "restarting")
        assert response.headers["Retry-After"] == "2"
        assert (await response.json())["id"] == 5
    assert next(looks) > 2
    assert street.b.patience == []  # nobody carried it on
    assert street.b.relaying.kept_bytes == 0


@pytest.mark.parametrize("house", ["a", "b"])
async def test_request_whose_session_left_while_it_waited_is_served_again(
    street: Street, house: str
) -> None:
    street.a.moves = 1
    body = {"jsonrpc": "2.0", "id": 5, "method": "x"}
    async with street.post("echo", body, house=getattr(street, house)) as response:
        assert await response.json() == body
    assert street.a.did == ["echo", "echo"]


@pytest.mark.parametrize("house", ["a", "b"])
async def test_modern_request_that_no_agent_had_follows_its_session(
    street: Street, house: str
) -> None:
    street.a.moves = 1
    body = {"jsonrpc": "2.0", "id": 5, "method": "x"}
    async with street.post("echo", body, getattr(street, house), REVISION) as response:
        assert await response.json() == body
    assert street.a.did == ["echo", "echo"]


async def test_request_follows_its_session_to_the_process_it_came_to(
    street: Street, engine: Engine
) -> None:
    async with asyncio.TaskGroup() as tasks:

        async def ask() -> bytes:
            async with street.post("stream", {}) as response:
                return await response.content.readuntil(b"\n\n")

        async def holds(request: web.Request, caller: Caller) -> web.StreamResponse:
            await street.a._tell(lambda: street.a.did.append("held"))
            return await street.a._do("never", request, caller, b"")

        street.a.handle = holds  # type: ignore[method-assign]
        asking = tasks.create_task(ask())
        await street.a.until(lambda: street.a.did == ["held"])
        street.board["s1"] = "b"
        await taken_by_another(engine)
    assert asking.result() == b"id: 1.i1\ndata: first\n\n"
    assert street.b.did == ["stream"]


async def taken_by_another(engine: Engine) -> None:
    """Let a third process take the session."""
    async with MemoryStore(engine, "c") as third:
        await third.take("s/s1", 2, b"", 60.0)


async def test_stream_ends_cleanly_when_the_session_is_taken_by_another_process(
    street: Street, engine: Engine
) -> None:
    async with street.post("stream", {}) as response:
        await response.content.readuntil(b"\n\n")
        await taken_by_another(engine)
        assert await response.read() == SOON


@pytest.mark.usefixtures("hasty")
async def test_stream_ends_cleanly_when_its_process_dies(street: Street, engine: Engine) -> None:
    async with street.post("stream", {}) as response:
        await response.content.readuntil(b"\n\n")
        engine.crash("a")
        assert await response.read() == SOON


@pytest.mark.usefixtures("hasty")
async def test_body_that_breaks_off_is_cut_and_never_taken_for_whole(
    street: Street, engine: Engine
) -> None:
    async with street.post("half", {}) as response:
        await response.content.readuntil(b"\n\n")
        engine.crash("a")
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def test_stream_that_is_cut_where_its_session_is_ends_cleanly(street: Street) -> None:
    async with street.post("stream-cut", {}) as response:
        await response.content.readuntil(b"\n\n")
        street.a.gate.set()
        assert await response.read() == SOON


async def test_body_that_is_cut_where_its_session_is_is_cut_here_too(street: Street) -> None:
    async with street.post("half-cut", {}) as response:
        await response.content.readuntil(b"\n\n")
        street.a.gate.set()
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


@pytest.mark.usefixtures("hasty")
async def test_request_is_asked_again_when_its_process_dies_before_the_answer(
    street: Street, engine: Engine
) -> None:
    async with asyncio.TaskGroup() as tasks:

        async def ask() -> object:
            async with street.post("never", {"x": 1}) as response:
                return await response.json()

        asking = tasks.create_task(ask())
        await street.a.until(lambda: street.a.did == ["never"])
        street.board["s1"] = "b"
        engine.crash("a")
        await street.b.until(lambda: street.b.did == ["never"])
        asking.cancel()


@pytest.mark.usefixtures("hasty")
async def test_modern_request_is_not_asked_again_when_its_process_dies(
    street: Street, engine: Engine
) -> None:
    async with asyncio.TaskGroup() as tasks:

        async def ask() -> tuple[int, str]:
            async with street.post("never", {}, revision=REVISION) as response:
                return response.status, await reason(response)

        asking = tasks.create_task(ask())
        await street.a.until(lambda: street.a.did == ["never"])
        street.board["s1"] = "b"
        engine.crash("a")
    assert asking.result() == (503, "restarting")
    assert street.b.did == []


# When this process leaves


@pytest.mark.parametrize("revision", ["2025-11-25", "2025-06-18"])
async def test_stream_ends_early_only_for_a_client_that_comes_back(
    street: Street, revision: str
) -> None:
    async with (
        street.post("stream", {}, revision=revision) as response,
        asyncio.TaskGroup() as tasks,
    ):
        assert await response.content.readuntil(b"\n\n") == b"id: 1.i1\ndata: first\n\n"
        draining = tasks.create_task(street.b.relaying.drain(WAIT_S))
        if revision == "2025-11-25":
            assert await response.read() == SOON
        else:
            await eventually(lambda: street.b.relaying._leaving)
            street.a.gate.set()
            assert await response.read() == b"data: second\n\n"
    assert draining.done()


async def test_stream_ends_only_after_an_event_that_its_client_can_come_back_with(
    street: Street,
) -> None:
    async with asyncio.TaskGroup() as tasks, street.post("stream-late", {}) as response:
        tasks.create_task(street.b.relaying.drain(WAIT_S))
        await eventually(lambda: street.b.relaying._leaving)
        street.a.gate.set()
        assert (await response.read()).startswith(b"id: 1.i1\ndata: first\n\n")


async def test_stream_that_begins_while_the_process_leaves_ends_after_its_first_event(
    street: Street,
) -> None:
    async with asyncio.TaskGroup() as tasks:

        async def held(request: web.Request, _caller: Caller) -> web.StreamResponse:
            await eventually(lambda: street.b.relaying._leaving)
            return await street.a._stream("stream-late", request)

        street.a.handle = held  # type: ignore[method-assign, assignment]

        async def ask() -> bytes:
            async with street.post("stream", {}) as response:
                street.a.gate.set()
                return await response.read()

        asking = tasks.create_task(ask())
        await eventually(lambda: street.a.exchange.under_way == (0, 1))
        tasks.create_task(street.b.relaying.drain(WAIT_S))
    assert asking.result().startswith(b"id: 1.i1\ndata: first\n\n")


async def test_what_is_not_answered_in_time_is_let_go(street: Street) -> None:
    body = {"jsonrpc": "2.0", "id": 5, "method": "x"}
    async with street.post("stream", {}, revision="2025-06-18") as stream:
        await stream.content.readuntil(b"\n\n")
        async with asyncio.TaskGroup() as tasks:

            async def ask() -> tuple[int, object]:
                async with street.post("never", body) as response:
                    return response.status, await response.json()

            asking = tasks.create_task(ask())
            await street.a.until(lambda: "never" in street.a.did)
            await street.b.relaying.drain(0.0)
            assert b'"reason":"restarting"' in await stream.read()
        status, told = asking.result()
        assert isinstance(told, dict)
        assert (status, told["id"], told["error"]["data"]["reason"]) == (503, 5, "restarting")
    await street.a.until(lambda: len(street.a.cancelled) == 2)


# When the engine is away


@pytest.mark.usefixtures("hasty")
async def test_request_waits_for_an_engine_that_comes_back(street: Street, engine: Engine) -> None:
    engine.away = True
    async with asyncio.TaskGroup() as tasks:

        async def ask() -> object:
            async with street.post("echo", {"x": 1}) as response:
                return await response.json()

        asking = tasks.create_task(ask())
        await eventually(lambda: street.b.exchange._away_since)
        engine.away = False
    assert asking.result() == {"x": 1}


@pytest.mark.usefixtures("hasty")
async def test_request_fails_retryably_when_the_engine_stays_away(
    street: Street, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch, 0.4)
    engine.away = True
    async with street.post("echo", {"jsonrpc": "2.0", "id": 6, "method": "x"}) as response:
        assert (response.status, await reason(response)) == (503, "store_unavailable")
        assert (await response.json())["id"] == 6


@pytest.mark.usefixtures("hasty")
async def test_stream_pauses_while_the_engine_is_away(street: Street, engine: Engine) -> None:
    async with street.post("stream", {}) as response:
        await response.content.readuntil(b"\n\n")
        engine.away = True
        street.a.gate.set()
        await eventually(lambda: street.a.exchange._away_since)
        engine.away = False
        assert await response.read() == b"data: second\n\n"


@pytest.mark.usefixtures("hasty")
async def test_stream_ends_cleanly_when_the_engine_stays_away(
    street: Street, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange_module, "AWAY_S", 0.1)
    async with street.post("stream", {}) as response:
        await response.content.readuntil(b"\n\n")
        engine.away = True
        assert await response.read() == SOON
        await street.a.until(lambda: street.a.cancelled == ["stream"])


# What is kept


async def test_request_is_refused_when_too_many_bodies_are_kept(street: Street) -> None:
    street.b.relaying.kept_bytes = KEPT_BYTES
    async with street.post("read-first", {"jsonrpc": "2.0"}) as response:
        assert (response.status, await reason(response)) == (503, "busy")
    assert street.b.relaying.kept_bytes == KEPT_BYTES


async def test_body_is_kept_until_the_answer_begins_and_no_longer(street: Street) -> None:
    async with asyncio.TaskGroup() as tasks:

        async def ask(does: str) -> None:
            async with street.post(does, NOISE[:100_000]) as response:
                await response.content.readuntil(b"\n\n")
                assert street.b.relaying.kept_bytes == 100_000  # of the other one

        waiting = tasks.create_task(ask("never"))
        await street.a.until(lambda: street.a.did == ["never"])
        assert street.b.relaying.kept_bytes == 100_000
        await ask("stream")
        waiting.cancel()
    await eventually(lambda: not street.b.relaying.kept_bytes)


async def test_lone_process_keeps_no_bodies() -> None:
    relaying = Relaying(None, message_bytes=MESSAGE_BYTES)
    request = _Unwritable()

    async def handler(got: object, _caller: object) -> web.Response:
        assert got is request
        return web.Response(text="direct")

    response = await relaying.serve(handler, request, Nobody())  # type: ignore[arg-type]
    assert isinstance(response, web.Response)
    assert response.text == "direct"


class Nobody:
    """A guest of no name."""

    principal = ""


class _Unwritable:
    """A request that nobody may touch."""


@pytest.mark.parametrize("names", [passing.KEPT, relaying_module.CARRIED])
def test_names_of_headers_are_compared_in_lower_case(names: frozenset[str]) -> None:
    assert names == {name.lower() for name in names}
