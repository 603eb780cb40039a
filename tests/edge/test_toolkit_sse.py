"""Several servers behind one stream, for clients of 2024-11-05."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from gateway import events
from gateway.edge import answering, sse
from gateway.errors import SessionEnded
from gateway.sessions import catalogues, dynos
from gateway.sessions import manager as sessions
from gateway.sessions.record import Reason
from tests.edge.eras_house import INITIALIZED, OPEN, answered, heard_events, raw_event
from tests.edge.toolkit_house import (
    ALONE,
    ECHO,
    SILENT,
    Troupe,
    calls,
    offering,
    progress,
    reply,
    troupe,
)
from tests.fakes.house import BOUND, OTHER_KEY, Stream, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import aiohttp
    from aiohttp import web

    from tests.edge.eras_house import Child, Program

EMPTY: dict[str, Any] = {"content": []}

LIST = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogues, "AGAIN_S", (BOUND * 60,))
    monkeypatch.setattr(sessions, "TICK_S", 0.01)
    monkeypatch.setattr(dynos, "LEAVE_S", 0.5)


@dataclass
class Client:
    """A client of a toolkit over HTTP+SSE."""

    played: Troupe
    stream: Stream
    endpoint: str

    async def post(self, body: Any, **headers: str) -> aiohttp.ClientResponse:
        house = self.played.house
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        posting = house.http.post(house.origin + self.endpoint, json=body, headers=given)
        async with asyncio.timeout(BOUND), posting as response:
            await response.read()
        return response

    async def sends(self, body: Any) -> None:
        response = await self.post(body)
        assert (response.status, await response.text()) == (202, "Accepted")

    async def asks(self, body: Any) -> Any:
        """POST a request; return the next message of the stream."""
        await self.sends(body)
        return await self.stream.message()

    async def child(self, server: str, times: int = 1) -> Child:
        """Return a member's child once it was called."""
        child = await self.played.run(server)
        await child.takes("tools/call", times)
        return child

    @property
    def key(self) -> str:
        return self.endpoint.partition("session_id=")[2]


@asynccontextmanager
async def connected(played: Troupe, path: str = "/mcp/sse") -> AsyncIterator[Client]:
    """Open a stream, up to its first event."""
    url, headers = f"{played.house.origin}{path}", {"Accept": "text/event-stream"}
    async with played.house.http.get(url, headers=headers) as response:
        assert response.status == 200, await response.text()
        stream = Stream(response)
        first = await raw_event(stream)
        assert first["event"] == "endpoint"
        yield Client(played, stream, first["data"])


@asynccontextmanager
async def working(**more: Any) -> AsyncIterator[Client]:
    """A client that has said hello, and servers that nobody has called yet."""
    programs: dict[str, Program | None] = {
        "alpha": offering(ECHO, ALONE, **more),
        "beta": offering(ECHO, **more),
    }
    async with troupe(programs) as played, connected(played) as client:
        await client.asks(OPEN)
        await client.sends(INITIALIZED)
        yield client


def question(number: int) -> Any:
    return {"jsonrpc": "2.0", "id": number, "method": "roots/list"}


@pytest.mark.parametrize("path", ["/mcp", "/toolkit", "/toolkits/all"])
async def test_stream_begins_with_its_place_for_posts(path: str) -> None:
    programs: dict[str, Program | None] = {"alpha": offering(ECHO)}
    async with troupe(programs) as played, connected(played, f"{path}/sse") as client:
        assert client.endpoint.partition("?")[0] == f"{path}/messages"
        opened = await client.asks(OPEN)
        assert opened["result"]["serverInfo"]["name"].endswith("toolkit all")


async def test_lists_are_answered_without_a_dyno() -> None:
    async with working() as client:
        told = await client.asks(LIST)
        names = [tool["name"] for tool in told["result"]["tools"]]
        assert names == ["alpha/echo", "alpha/alone", "beta/echo"]
        assert client.played.booted == {}


async def test_call_boots_its_member_which_hears_what_the_client_has_said() -> None:
    async with working() as client:
        assert await client.asks(calls(5, "beta/echo", text="ü")) == answered(5, EMPTY)
        assert client.played.booted == {"beta": 1}
        child = await client.child("beta")
        assert child.heard[0]["params"] == OPEN["params"]
        assert child.heard[-1] == calls(5, "echo", text="ü")


async def test_members_that_answer_in_any_order_share_the_stream() -> None:
    async with working(silent=SILENT) as client:
        for number, server in enumerate(("alpha", "beta", "alpha", "beta")):
            await client.sends(calls(number, f"{server}/echo"))
        alpha, beta = await client.child("alpha", 2), await client.child("beta", 2)
        for child, number in ((beta, 3), (alpha, 0), (beta, 1), (alpha, 2)):
            await child.agent.say(answered(number, EMPTY))
            assert await client.stream.message() == answered(number, EMPTY)
        assert client.played.booted == {"alpha": 1, "beta": 1}


async def test_two_members_that_ask_with_the_same_id_get_their_own_answers() -> None:
    async with working(silent=SILENT) as client:
        asked = {}
        for server in ("alpha", "beta"):
            await client.sends(calls(server, f"{server}/echo"))
            child = await client.child(server)
            await child.agent.say(question(0))
            asked[server] = await client.stream.message()
        assert [each["id"] for each in asked.values()] == ["alpha~0", "beta~0"]
        for server in ("beta", "alpha"):
            await client.sends(answered(asked[server]["id"], {"for": server}))
            child = await client.child(server)
            assert await reply(child) == answered(0, {"for": server})


async def test_progress_reaches_the_stream() -> None:
    async with working(silent=SILENT) as client:
        await client.sends(calls(5, "alpha/echo", token="t"))
        child = await client.child("alpha")
        await child.agent.say(progress("t", 1))
        while (told := await client.stream.message()) != progress("t", 1):
            assert told["method"] == "notifications/progress"


async def test_large_answers_of_members_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = answering.write

    async def slow(response: web.StreamResponse, data: bytes | memoryview) -> None:
        await asyncio.sleep(0)  # as for a client that reads slowly: others get their turn
        await plain(response, data)

    monkeypatch.setattr(answering, "write", slow)
    monkeypatch.setattr(answering, "PIECE_BYTES", 1024)
    async with working(silent=SILENT) as client:
        children = []
        for server in ("alpha", "beta"):
            await client.sends(calls(server, f"{server}/echo"))
            children.append((server, await client.child(server)))
        async with asyncio.TaskGroup() as tasks:
            for server, child in children:
                text = {"type": "text", "text": server[0] * 60_000}
                tasks.create_task(child.agent.say(answered(server, {"content": [text]})))
        for _ in children:
            message = await client.stream.message()
            text = message["result"]["content"][0]["text"]
            assert text == message["id"][0] * 60_000


async def test_cancellation_reaches_the_member_and_boots_no_other() -> None:
    async with working(silent=SILENT) as client:
        await client.sends(calls(5, "alpha/echo"))
        child = await client.child("alpha")
        params = {"requestId": 5}
        cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}
        await client.sends(cancel)
        assert await child.takes("notifications/cancelled") == cancel
        assert client.played.booted == {"alpha": 1}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (calls(5, "alpha/none"), -32602),
        ({**LIST, "id": 5, "method": "tasks/list"}, -32601),
        ({**LIST, "id": 5, "params": {"cursor": "x"}}, -32602),
    ],
)
async def test_request_that_is_nobodys_is_refused_on_the_stream(body: Any, code: int) -> None:
    async with working() as client:
        told = await client.asks(body)
        assert (told["id"], told["error"]["code"]) == (5, code)


@pytest.mark.parametrize("number", [0, "alpha~0", "none~0"])
async def test_answer_to_what_nobody_asked_is_refused(number: int | str) -> None:
    async with working() as client:
        assert (await client.post(answered(number, {}))).status == 400


async def test_failing_member_takes_neither_the_stream_nor_another_down() -> None:
    async with working() as client:
        client.played.programs["alpha"] = None
        told = await client.asks(calls(5, "alpha/echo"))
        assert told["error"]["data"]["reason"] in {"child_exited", "child_not_started"}
        assert await client.asks(calls(6, "beta/echo")) == answered(6, EMPTY)


async def test_member_that_has_failed_is_tried_again_by_the_next_call() -> None:
    async with working() as client:
        client.played.programs["alpha"] = None
        assert "error" in await client.asks(calls(5, "alpha/echo"))
        client.played.programs["alpha"] = offering(ECHO)
        await eventually(lambda: client.played.house.manager.sessions == 1)
        assert await client.asks(calls(6, "alpha/echo")) == answered(6, EMPTY)


async def test_end_of_the_stream_is_the_end_of_all_its_sessions() -> None:
    async with working() as client:
        await client.asks(calls(5, "alpha/echo"))
        await client.asks(calls(6, "beta/echo"))
        house = client.played.house
        assert house.manager.sessions == 3
        client.stream.hang_up()
        await eventually(lambda: all(child.stopped for child in client.played.stage.children))
        await eventually(lambda: not house.manager.sessions)
        told = heard_events(house, events.Closing)[-3:]
        assert {event.reason for event in told} == {"client_gone"}


async def test_end_of_the_toolkits_session_is_the_end_of_the_stream() -> None:
    async with working() as client:
        await client.asks(calls(5, "alpha/echo"))
        house = client.played.house
        live = house.live(client.key)
        house.manager.end(live, Reason.IDLE, SessionEnded("it was idle"))
        assert await client.stream.rest() == []
        await eventually(lambda: not house.manager.sessions)
        assert (await client.post(calls(6, "alpha/echo"))).status == 404


async def test_stream_that_nobody_writes_to_is_kept_open(monkeypatch: pytest.MonkeyPatch) -> None:
    async with working() as client, asyncio.timeout(BOUND):
        monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.01)
        await client.sends(calls(5, "alpha/echo"))
        await client.stream.message()
        block = await client.stream.response.content.readuntil(b"\n\n")
        assert block == sse.COMMENT


async def test_stream_of_somebody_else_is_unknown() -> None:
    async with working() as client:
        response = await client.post(calls(5, "alpha/echo"), X_API_Key=OTHER_KEY)
        assert response.status == 404
        assert client.played.booted == {}


async def test_clients_have_dynos_of_their_own() -> None:
    async with working() as client, connected(client.played) as other:
        await other.asks(OPEN)
        assert await client.asks(calls(5, "alpha/echo")) == answered(5, EMPTY)
        assert await other.asks(calls(5, "alpha/echo")) == answered(5, EMPTY)
        assert client.played.booted == {"alpha": 2}


async def test_calls_at_once_to_a_member_that_has_not_booted_share_its_dyno() -> None:
    async with working() as client:
        async with asyncio.TaskGroup() as tasks:
            for number in range(5):
                tasks.create_task(client.sends(calls(number, "alpha/echo")))
        told = [(await client.stream.message())["id"] for _ in range(5)]
        assert sorted(told) == list(range(5))
        assert client.played.booted == {"alpha": 1}
