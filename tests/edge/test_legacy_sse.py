"""HTTP+SSE of 2024-11-05: one stream per session, which is the session; POSTs go beside it."""

from __future__ import annotations

import asyncio
import io
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from dyno_agent.link import Channel
from gateway import events
from gateway.edge.streamable_http import StreamableHttp
from gateway.sessions import catalogues
from gateway.sessions import manager as sessions
from gateway.sessions.terms import Terms
from tests.edge.eras_house import (
    INITIALIZED,
    LIST,
    OPEN,
    OPENING,
    TOOLS,
    Program,
    Refusal,
    Stage,
    answered,
    call,
    definition,
    happens,
    heard_events,
    launches,
    raw_event,
    stage,
)
from tests.fakes.house import BOUND, LASTING, OTHER_KEY, SECRET, Stream, eventually, opened, refusal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import aiohttp

    from gateway.registry.servers import ServerDefinition
    from gateway.sessions.live import OwnedLive

PING = {"jsonrpc": "2.0", "id": 3, "method": "ping"}

MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second look comes in between."""
    monkeypatch.setattr(catalogues, "AGAIN_S", (BOUND * 60,))
    monkeypatch.setattr(sessions, "TICK_S", 0.01)


@dataclass
class Client:
    """A client of 2024-11-05.

    Attributes:
        played: the gateway and its dynos.
        stream: everything for the client.
        endpoint: where it is told to POST.
    """

    played: Stage
    stream: Stream
    endpoint: str

    @property
    def url(self) -> str:
        return f"{self.played.house.origin}{self.endpoint}"

    async def post(self, body: Any, **headers: str) -> aiohttp.ClientResponse:
        posting = self.played.house.http.post(self.url, json=body, headers=headers)
        async with posting as response:
            await response.read()
        return response

    async def send(self, body: Any) -> None:
        response = await self.post(body)
        assert (response.status, await response.text()) == (202, "Accepted")

    async def asks(self, body: Any) -> Any:
        """POST a request; return the next message of the stream."""
        await self.send(body)
        return await self.stream.message()

    @property
    def live(self) -> OwnedLive:
        return self.played.house.live(self.endpoint.partition("session_id=")[2])


@asynccontextmanager
async def known(
    server: ServerDefinition | None = None, terms: Terms | None = None
) -> AsyncIterator[Stage]:
    """A gateway that knows what its one server answers, if it shall."""
    server = server or definition()
    async with opened(None, terms, (server,)) as house, stage(house) as played:
        if server.catalogue:
            await played.looks(Program())
        yield played


@asynccontextmanager
async def connected(played: Stage, place: str = "/servers/patient") -> AsyncIterator[Client]:
    """Open a stream, up to its first event."""
    url, headers = f"{played.house.origin}{place}/sse", {"Accept": "text/event-stream"}
    async with played.house.http.get(url, headers=headers) as response:
        assert response.status == 200, await response.text()
        stream = Stream(response)
        first = await raw_event(stream)
        assert first["event"] == "endpoint"
        yield Client(played, stream, first["data"])


@asynccontextmanager
async def working() -> AsyncIterator[Client]:
    """A client whose session is open and has its dyno."""
    async with known() as played, connected(played) as client:
        await client.asks(OPEN)
        await client.send(INITIALIZED)
        await client.send(call(0))
        await played.child(Program())
        assert await client.stream.message() == answered(0, {"content": []})
        yield client


def reasons(client: Client) -> list[str]:
    """Why sessions of clients have ended."""
    told = heard_events(client.played.house, events.Closing)
    return [event.reason for event in told if event.reason != "answered"]


# The stream


@pytest.mark.parametrize("place", ["", "/servers/patient"])
async def test_stream_begins_with_the_path_for_posts(place: str) -> None:
    async with known() as played, connected(played, place) as client:
        path, _, key = client.endpoint.partition("?session_id=")
        assert (path, bool(key)) == (f"{place}/messages", True)
        assert await client.asks(OPEN) == answered(1, OPENING)


async def test_stream_is_an_event_stream_that_nobody_keeps() -> None:
    async with known() as played, connected(played) as client:
        headers = client.stream.response.headers
        assert (headers["Content-Type"], headers["Cache-Control"]) == (
            "text/event-stream",
            "no-store",
        )


async def test_two_streams_are_two_sessions() -> None:
    async with known() as played, connected(played) as one, connected(played) as other:
        assert one.endpoint != other.endpoint
        assert (await one.asks({**OPEN, "id": "one"}))["id"] == "one"
        assert (await other.asks({**OPEN, "id": "other"}))["id"] == "other"


async def test_open_stream_gets_no_dyno() -> None:
    async with known() as played, connected(played) as client:
        await client.asks(OPEN)
        await client.send(INITIALIZED)
        await client.asks(LIST)
        assert launches(played.house) == 1


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_stream_takes_no_other_method(method: str) -> None:
    async with known() as played:
        url = f"{played.house.origin}/servers/patient/sse"
        async with played.house.http.request(method, url) as response:
            assert response.status == 405


async def test_unknown_server_has_no_stream() -> None:
    async with (
        known() as played,
        played.house.http.get(f"{played.house.origin}/servers/none/sse") as response,
    ):
        assert response.status == 404


async def test_stream_needs_a_key() -> None:
    async with known() as played:
        url = f"{played.house.origin}/servers/patient/sse"
        async with played.house.http.get(url, headers={"X-API-Key": "wrong"}) as response:
            assert response.status == 401


async def test_stream_is_refused_to_a_client_that_takes_none() -> None:
    async with known() as played:
        url = f"{played.house.origin}/servers/patient/sse"
        async with played.house.http.get(url, headers={"Accept": "text/html"}) as response:
            assert response.status == 406


# Answers


async def test_initialize_is_answered_on_the_stream() -> None:
    async with known() as played, connected(played) as client:
        said = {**OPEN["params"], "protocolVersion": "2024-11-05"}
        await client.send({**OPEN, "params": said})
        event = await raw_event(client.stream)
        told = {**OPENING, "protocolVersion": "2024-11-05"}
        assert (event["event"], json.loads(event["data"])) == ("message", answered(1, told))


async def test_events_have_no_ids() -> None:
    async with working() as client:
        await client.send(PING)
        from_catalogue = await raw_event(client.stream)
        await client.send(call(5))
        from_child = await raw_event(client.stream)
        assert ("id" in from_catalogue, "id" in from_child) == (False, False)


async def test_child_hears_the_handshake_and_then_the_call() -> None:
    async with known() as played, connected(played) as client:
        await client.asks(OPEN)
        await client.send(INITIALIZED)
        await client.send(call(5))
        child = await played.child(Program())
        assert await client.stream.message() == answered(5, {"content": []})
        assert child.methods == ["initialize", "notifications/initialized", "tools/call"]
        assert child.heard[0]["params"] == OPEN["params"]


async def test_several_calls_at_once_are_all_answered() -> None:
    async with working() as client:
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            for number in range(10, 30):
                group.create_task(client.send(call(number)))
        told = [(await client.stream.message())["id"] for _ in range(20)]
        assert sorted(told) == list(range(10, 30))


async def test_answer_overtakes_an_earlier_call_that_takes_longer() -> None:
    async with working() as client:
        child = client.played.children[-1]
        child.program.silent = frozenset({"tools/call"})
        await client.send(call(5))
        await child.takes("tools/call", 2)
        child.program.silent = frozenset()
        assert (await client.asks(call(6)))["id"] == 6
        await child.agent.say(answered(5, {"late": True}))
        assert await client.stream.message() == answered(5, {"late": True})


async def test_messages_of_the_child_come_on_the_stream() -> None:
    async with working() as client:
        agent = client.played.children[-1].agent
        ask = {"jsonrpc": "2.0", "id": "q", "method": "roots/list"}
        await agent.say(ask)
        assert await client.stream.message() == ask
        await client.send(answered("q", {"roots": []}))
        child = client.played.children[-1]
        await eventually(lambda: answered("q", {"roots": []}) in child.heard)


async def test_changed_list_is_told_on_the_stream() -> None:
    async with known() as played, connected(played) as client:
        await client.asks(OPEN)
        await client.asks(LIST)
        await client.send(call(5))
        await played.child(Program(answers={"tools/list": {"tools": []}}))
        told = [await client.stream.message() for _ in range(2)]
        changed = {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}
        assert changed in told


async def test_answer_of_many_mebibytes_comes_whole() -> None:
    async with working() as client:
        child = client.played.children[-1]
        child.program.answers["tools/call"] = {"text": "x" * (15 * MIB)}
        await client.send(call(5))
        async with asyncio.timeout(BOUND):
            event = b""
            async for piece in client.stream.response.content.iter_any():
                event += piece
                if event.endswith(b"\n\n") and b"data: " in event:
                    break
        (data,) = [line for line in event.splitlines() if line.startswith(b"data: ")]
        assert len(json.loads(data[6:])["result"]["text"]) == 15 * MIB


async def test_request_of_many_mebibytes_reaches_the_child_whole() -> None:
    async with working() as client:
        body = io.BytesIO(json.dumps(call(5, text="x" * (15 * MIB))).encode())
        headers = {"Content-Type": "application/json"}
        http = client.played.house.http
        async with http.post(client.url, data=body, headers=headers) as response:
            assert response.status == 202
        assert (await client.stream.message())["id"] == 5
        heard = client.played.children[-1].heard[-1]
        assert len(heard["params"]["arguments"]["text"]) == 15 * MIB


async def test_server_without_a_catalogue_answers_initialize_itself() -> None:
    async with known(definition(catalogue=False)) as played, connected(played) as client:
        await client.send(OPEN)
        child = await played.child(Program())
        assert await client.stream.message() == answered(1, OPENING)
        assert child.heard[0] == OPEN


# Around the handshake


async def test_ping_before_the_handshake_does_not_spoil_it() -> None:
    """A client may ping before it initializes."""
    async with known() as played, connected(played) as client:
        await client.send(PING)
        async with asyncio.TaskGroup() as group:
            playing = group.create_task(played.child(Program()))
            assert await client.stream.message() == answered(3, {})
            await client.asks(OPEN)
            assert (await client.asks(call(5)))["id"] == 5
        assert playing.result().methods.count("initialize") == 1


async def test_second_initialize_is_answered_and_spoils_nothing() -> None:
    async with known() as played, connected(played) as client:
        await client.asks(OPEN)
        assert (await client.asks({**OPEN, "id": "again"}))["result"] == OPENING
        await client.send(call(5))
        child = await played.child(Program())
        assert (await client.stream.message())["id"] == 5
        assert child.methods == ["initialize", "notifications/initialized", "tools/call"]


async def test_second_initialize_of_a_running_child_is_the_child_s_to_answer() -> None:
    async with working() as client:
        assert (await client.asks({**OPEN, "id": "again"}))["id"] == "again"
        child = client.played.children[-1]
        cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {}}
        await client.send(cancelled)
        assert (await client.asks(call(6)))["id"] == 6
        assert cancelled in child.heard


async def test_second_initialize_during_the_boot_does_not_forget_the_first() -> None:
    async with known() as played, connected(played) as client:
        await client.asks(OPEN)
        await client.asks(LIST)
        await client.send(call(5))
        order = await played.order()
        await client.asks({**OPEN, "id": "again"})
        await played.child_of(order, Program(answers={"tools/list": {"tools": TOOLS[:1]}}))
        told = [await client.stream.message() for _ in range(2)]
        assert {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"} in told


async def test_stream_that_closes_while_its_initialize_waits_is_a_clean_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with opened(None, None, (definition(),)) as house, stage(house) as played:
        waits, heard = asyncio.Event(), StreamableHttp.open_heard

        async def noted(self: StreamableHttp, live: OwnedLive, envelope: Any) -> None:
            waits.set()
            await heard(self, live, envelope)

        monkeypatch.setattr(StreamableHttp, "open_heard", noted)
        order = await played.order()
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            async with connected(played) as client:
                posting = group.create_task(client.post(OPEN))
                await waits.wait()
            await eventually(lambda: reasons(client) == ["client_gone"])
            await played.child_of(order, Program(answers={"initialize": Refusal()}))
        assert (await refusal(posting.result()))[0:3:2] == (502, "session_ended")


@asynccontextmanager
async def waiting_initialize(
    monkeypatch: pytest.MonkeyPatch, server: ServerDefinition
) -> AsyncIterator[tuple[Stage, Client, list[None]]]:
    """A client whose `initialize` waits for the first look; also, how many do."""
    async with opened(None, None, (server,)) as house, stage(house) as played:
        waits: list[None] = []
        heard = StreamableHttp.open_heard

        async def noted(self: StreamableHttp, live: OwnedLive, envelope: Any) -> None:
            waits.append(None)
            await heard(self, live, envelope)

        monkeypatch.setattr(StreamableHttp, "open_heard", noted)
        async with (
            asyncio.timeout(BOUND),
            connected(played) as client,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(client.send(OPEN))
            await eventually(lambda: waits)
            yield played, client, waits


async def test_ping_while_initialize_waits_does_not_spoil_the_handshake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with waiting_initialize(monkeypatch, definition()) as (played, client, _):
        look = await played.order()
        await client.send(PING)
        await played.child_of(look, Program())
        await eventually(lambda: client.live.record.calls == 2)  # answered or on their way
        await client.send(call(5))
        child = await played.child(Program())
        told = {(await client.stream.message())["id"] for _ in range(3)}
        assert (told, child.methods.count("initialize")) == ({1, 3, 5}, 1)


async def test_second_initialize_while_the_first_waits_does_not_spoil_the_handshake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with waiting_initialize(monkeypatch, definition(boot="eager")) as (played, client, waits):
        async with asyncio.TaskGroup() as group:
            group.create_task(client.send({**OPEN, "id": "again"}))
            await eventually(lambda: len(waits) == 2)
            await played.child_of(await played.order(), Program())
        child = await played.child(Program())
        told = {(await client.stream.message())["id"] for _ in range(2)}
        assert told == {1, "again"}
        level = {"jsonrpc": "2.0", "id": 6, "method": "logging/setLevel", "params": {"level": "x"}}
        assert (await client.asks(level))["id"] == 6
        assert "logging/setLevel" in child.methods


# Refusals


async def test_refused_request_is_answered_on_the_stream() -> None:
    async with working() as client:
        child = client.played.children[-1]
        child.program.silent = frozenset({"tools/call"})
        await client.send(call(5))
        await child.takes("tools/call", 2)
        error = (await client.asks(call(5, text="another")))["error"]
        assert error["data"]["reason"] == "duplicate_id"


async def test_full_gateway_says_so_on_the_stream_and_the_session_goes_on() -> None:
    terms = Terms("http://127.0.0.1", SECRET, 1)
    async with known(terms=terms) as played, connected(played) as one, connected(played) as other:
        for client in (one, other):
            await client.asks(OPEN)
        await one.send(call(5))
        await played.child(Program())
        await one.stream.message()
        told = await other.asks(call(6))
        assert (told["id"], told["error"]["data"]["reason"]) == (6, "busy")
        assert (await other.asks(LIST))["result"] == {"tools": TOOLS}


async def test_full_gateway_answers_the_initialize_that_it_cannot_serve() -> None:
    terms, server = Terms("http://127.0.0.1", SECRET, 1), definition(catalogue=False)
    async with known(server, terms) as played, connected(played) as one:
        await one.send(OPEN)
        await played.child(Program())
        await one.stream.message()
        async with connected(played) as other:
            told = await other.asks(OPEN)
        assert (told["id"], told["error"]["data"]["reason"]) == (1, "busy")


@pytest.mark.parametrize("body", [b"{", b"[]", b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]', b"1"])
async def test_body_that_is_no_message_is_refused(body: bytes) -> None:
    async with working() as client:
        headers = {"Content-Type": "application/json"}
        http = client.played.house.http
        async with http.post(client.url, data=body, headers=headers) as response:
            assert response.status == 400
        assert (await client.asks(call(5)))["id"] == 5


async def test_body_that_is_not_json_is_refused() -> None:
    async with (
        known() as played,
        connected(played) as client,
        played.house.http.post(client.url, data=b"{}") as response,
    ):
        assert response.status == 415


async def test_response_that_nobody_asked_for_is_refused() -> None:
    async with working() as client:
        assert (await client.post(answered(77, {}))).status == 400


async def test_post_without_a_session_is_refused() -> None:
    async with known() as played:
        url = f"{played.house.origin}/servers/patient/messages"
        async with played.house.http.post(url, json=PING) as response:
            assert (await refusal(response))[0:3:2] == (400, "missing_session")


@pytest.mark.parametrize("key", ["", "made-up", "a.b.c", "~x.y"])
async def test_post_to_an_unknown_session_is_refused(key: str) -> None:
    async with known() as played:
        url = f"{played.house.origin}/servers/patient/messages?session_id={key}"
        async with played.house.http.post(url, json=PING) as response:
            assert (await refusal(response))[0:3:2] == (404, "unknown_session")


async def test_post_of_somebody_else_is_refused() -> None:
    async with known() as played, connected(played) as client:
        response = await client.post(PING, **{"X-API-Key": OTHER_KEY})
        assert (await refusal(response))[0:3:2] == (404, "unknown_session")
        assert (await client.asks({**OPEN, "id": "mine"}))["id"] == "mine"


async def test_post_to_another_server_is_refused() -> None:
    servers = (definition(), definition("other", catalogue=False))
    async with opened(None, None, servers) as house, stage(house) as played:
        await played.looks(Program())
        async with connected(played) as client:
            url = client.url.replace("patient", "other")
            async with house.http.post(url, json=PING) as response:
                assert response.status == 404


async def test_session_of_streamable_http_takes_no_posts_here() -> None:
    async with known() as played:
        opened_there = await played.house.post(OPEN)
        key = opened_there.headers["Mcp-Session-Id"]
        url = f"{played.house.origin}/servers/patient/messages?session_id={key}"
        async with played.house.http.post(url, json=PING) as response:
            assert (await refusal(response))[2] == "session_ended"
        assert (await played.house.post(PING, key)).status == 200


# The end


async def test_end_of_the_stream_is_the_end_of_the_session() -> None:
    async with working() as client:
        child = client.played.children[-1]
        client.stream.hang_up()
        assert await client.played.house.ear.closed(child.agent) == "client_gone"
        assert child.stopped


async def test_end_of_a_stream_without_a_dyno_is_the_end_of_its_session() -> None:
    async with known() as played:
        async with connected(played) as client:
            await client.asks(OPEN)
        await happens(played.house, events.Closed, 2)
        assert (reasons(client), launches(played.house)) == (["client_gone"], 1)


async def test_post_after_the_end_of_the_stream_is_refused() -> None:
    async with known() as played:
        async with connected(played) as client:
            await client.asks(OPEN)
        await happens(played.house, events.Closed, 2)
        assert (await client.post(PING)).status == 404


async def test_message_whose_stream_closed_while_it_came_in_is_told_so() -> None:
    async with known() as played:
        http, begun, over = played.house.http, asyncio.Event(), asyncio.Event()
        text = json.dumps(call(5)).encode()

        async def slow() -> AsyncIterator[bytes]:
            yield text[:5]
            begun.set()
            await over.wait()
            yield text[5:]

        async def posted(url: str) -> tuple[int, int, str, Any]:
            headers = {"Content-Type": "application/json"}
            async with http.post(url, data=slow(), headers=headers) as response:
                return await refusal(response)

        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            async with connected(played) as client:
                await client.asks(OPEN)
                live = client.live
                sent = group.create_task(posted(client.url))
                await begun.wait()
                await eventually(lambda: live.large_bodies._value < 2)  # it was let in
            await eventually(lambda: live.record.over)
            over.set()
        assert sent.result()[0:3:2] == (502, "session_ended")
        assert launches(played.house) == 1


async def test_end_of_one_stream_leaves_the_others() -> None:
    async with working() as client:
        async with connected(client.played):
            pass
        await eventually(lambda: reasons(client) == ["client_gone"])
        assert (await client.asks(call(5)))["id"] == 5


async def test_child_that_exits_ends_the_stream_after_its_calls_are_answered() -> None:
    async with working() as client:
        child = client.played.children[-1]
        child.program.silent = frozenset({"tools/call"})
        await client.send(call(5))
        await child.takes("tools/call", 2)
        await child.agent.send(
            Channel.EVENT, {"event": "exited", "code": 3, "signal": None, "asked": False}
        )
        (told,) = await client.stream.rest()
        assert (told["id"], told["error"]["data"]["reason"]) == (5, "child_exited")


async def test_shutdown_ends_the_session_though_others_are_handed_over() -> None:
    async with known(terms=LASTING) as played, connected(played) as client:
        await client.asks(OPEN)
        await client.send(call(5))
        child = await played.child(Program())
        await client.stream.message()
        await played.house.manager.drain()
        assert await client.stream.rest() == []
        assert await played.house.ear.closed(child.agent) == "drained"
        assert heard_events(played.house, events.HandedOver) == []


async def test_shutdown_answers_the_running_calls_of_the_session() -> None:
    async with known(terms=LASTING) as played, connected(played) as client:
        await client.asks(OPEN)
        await client.send(call(5))
        child = await played.child(Program(silent=frozenset({"tools/call"})))
        await child.takes("tools/call")
        await played.house.manager.drain()
        (told,) = await client.stream.rest()
        assert (told["id"], told["error"]["data"]["reason"]) == (5, "session_ended")


async def test_session_lives_as_long_as_its_stream_though_its_client_rests() -> None:
    async with known() as played, connected(played) as client:
        await client.asks(OPEN)
        live = client.live
        live.session.active -= live.lease.lifetime_s - BOUND
        ticked = live.lease.active
        await eventually(lambda: live.lease.active != ticked)
        assert await client.asks(PING) == answered(3, {})
