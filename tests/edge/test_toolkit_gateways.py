"""A toolkit at three gateways of one deployment, whose members' dynos dial any of them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from gateway.sessions import catalogues, dynos, whereabouts
from gateway.sessions import manager as sessions
from gateway.store.memory import Engine, MemoryStore
from tests.edge.eras_house import OPEN, Child, Program, Stage, answered, raw_event, stage
from tests.edge.modern_house import DONE, asks, send
from tests.edge.toolkit_house import (
    ALONE,
    ECHO,
    PATH,
    SILENT,
    Client,
    calls,
    exchange,
    legacy,
    looked,
    offering,
    progress,
    reply,
    sees,
)
from tests.fakes.house import BOUND, LASTING, House, Stream, eventually, opened
from tests.fakes.launchers import RecordingLauncher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

EMPTY: dict[str, Any] = {"content": []}

QUIET = {
    "alpha": offering(ECHO, ALONE, silent=SILENT),
    "beta": offering(ECHO, silent=SILENT),
}

NEWS = "notifications/roots/list_changed"

PROMPT = {"alpha": offering(ECHO, ALONE), "beta": offering(ECHO)}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogues, "AGAIN_S", (BOUND * 60,))
    monkeypatch.setattr(catalogues, "NEWS_S", 0.02)
    monkeypatch.setattr(sessions, "TICK_S", 0.01)
    monkeypatch.setattr(sessions, "RETURN_S", 0.0)
    monkeypatch.setattr(whereabouts, "LOOK_S", 0.05)
    monkeypatch.setattr(whereabouts, "ALIVE_S", 0.0)
    monkeypatch.setattr(dynos, "LEAVE_S", 0.5)


@dataclass
class Town:
    """Gateways that share an engine and a launcher.

    Attributes:
        at: number of the gateway that the agents of a server dial.
        runs: children by server, oldest first, those of throw-away runs aside.
    """

    engine: Engine
    launcher: RecordingLauncher
    programs: dict[str, Program]
    houses: list[House] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    at: dict[str, int] = field(default_factory=dict)
    runs: defaultdict[str, list[Child]] = field(default_factory=lambda: defaultdict(list))

    async def play(self) -> None:
        while True:
            order = await self.launcher.orders.get()
            played = self.stages[self.at.get(order.server, 0)]
            program = self.programs[order.server]
            self.runs[order.server].append(await played.child_of(order, program))

    async def run(self, server: str) -> Child:
        await eventually(lambda: self.runs[server])
        return self.runs[server][-1]

    def client(self, at: int, key: str = "") -> Client:
        """The same client, with a router between that knows nothing."""
        return Client(self.houses[at], key)

    def crash(self, number: int) -> None:
        self.engine.crash(self.houses[number].manager.store.gateway)


@asynccontextmanager
async def town(
    programs: dict[str, Program] | None = None, era: str = "legacy"
) -> AsyncIterator[Town]:
    programs = programs or PROMPT
    built = Town(Engine(), RecordingLauncher(), dict(programs))
    async with AsyncExitStack() as running:
        for number in range(3):
            store = MemoryStore(built.engine)
            house = await running.enter_async_context(
                opened(built.launcher, LASTING, legacy(*programs, era=era), store=store)
            )
            built.houses.append(house)
            built.stages.append(await running.enter_async_context(stage(house)))
            if not number:
                running.callback(house.tasks.create_task(built.play()).cancel)
                await looked(house)
                built.runs.clear()
        yield built


async def test_session_of_one_gateway_is_served_by_all() -> None:
    async with town() as built:
        one = built.client(0)
        await one.opens()
        for number in range(3):
            assert len(await built.client(number, one.key).tools()) == 3
        assert not built.runs


async def test_call_reaches_the_member_wherever_its_dyno_has_dialled() -> None:
    async with town() as built:
        built.at = {"alpha": 1, "beta": 2}
        one = built.client(0)
        await one.opens()
        for number in range(3):
            client = built.client(number, one.key)
            for server in ("alpha", "beta"):
                key = f"{server}-{number}"
                told = await client.asks(calls(key, f"{server}/echo"))
                assert told == answered(key, EMPTY)
        assert {name: len(runs) for name, runs in built.runs.items()} == {"alpha": 1, "beta": 1}


async def test_answer_from_another_gateway_names_the_toolkits_session() -> None:
    async with town() as built:
        built.at = {"alpha": 1}
        one = built.client(0)
        await one.opens()
        await one.asks(calls(1, "alpha/echo"))
        for number in range(3):
            response = await built.client(number, one.key).post(calls(number + 2, "alpha/echo"))
            assert response.headers["Mcp-Session-Id"] == one.key


async def test_stream_from_another_gateway_is_marked_and_continued_at_a_third() -> None:
    async with town(QUIET) as built:
        built.at = {"beta": 1}
        one = built.client(0)
        await one.opens()
        body = calls(5, "beta/echo", token="t")
        async with one.asking(body) as stream:
            child = await built.run("beta")
            await child.takes("tools/call")
            await child.agent.say(progress("t", 1))
            assert (await sees(stream, progress("t", 1))).endswith(".i5~beta")
            assert stream.response.headers["Mcp-Session-Id"] == one.key
            stream.hang_up()
        await built.houses[1].abandoned(one.member_key("beta"), 5)
        await child.agent.say(progress("t", 2))
        async with built.client(2, one.key).listening(stream.last) as rest:
            assert await rest.message() == progress("t", 2)
            await child.agent.say(answered(5, EMPTY))
            assert await rest.rest() == [answered(5, EMPTY)]


async def test_questions_of_members_elsewhere_are_answered_by_way_of_any_gateway() -> None:
    async with town(QUIET) as built:
        built.at = {"alpha": 1, "beta": 2}
        one = built.client(0)
        await one.opens()
        async with (
            one.asking(calls(5, "alpha/echo")) as left,
            one.asking(calls(6, "beta/echo")) as right,
        ):
            for server, stream in (("alpha", left), ("beta", right)):
                child = await built.run(server)
                await child.takes("tools/call")
                question = {"jsonrpc": "2.0", "id": 0, "method": "roots/list"}
                await child.agent.say(question)
                assert (await stream.message())["id"] == f"{server}~0"
            for number, server in enumerate(("alpha", "beta")):
                said = answered(f"{server}~0", {"for": server})
                assert (await built.client(number, one.key).post(said)).status == 202
                assert await reply(await built.run(server)) == answered(0, {"for": server})


async def test_cancellation_reaches_members_at_other_gateways() -> None:
    async with town(QUIET) as built:
        built.at = {"alpha": 1, "beta": 2}
        one = built.client(0)
        await one.opens()
        async with (
            one.asking(calls(5, "alpha/echo")) as left,
            one.asking(calls(6, "beta/echo")),
        ):
            for server in ("alpha", "beta"):
                await (await built.run(server)).takes("tools/call")
            params = {"requestId": 5}
            cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}
            response = await one.post(cancel)
            assert (response.status, await response.text()) == (202, "")
            assert response.headers["Mcp-Session-Id"] == one.key
            for server in ("alpha", "beta"):
                child = await built.run(server)
                assert await child.takes("notifications/cancelled") == cancel
            assert await left.rest() == []


async def test_notification_that_several_gateways_hear_is_answered_once() -> None:
    async with town() as built:
        built.at = {"alpha": 1, "beta": 2}
        one = built.client(0)
        await one.opens()
        for server in ("alpha", "beta"):
            await one.asks(calls(server, f"{server}/echo"))
        news = b'{"jsonrpc": "2.0", "method": "notifications/roots/list_changed"}'
        said = await exchange(one.house, one.key, b"", news)
        assert said.startswith(b"HTTP/1.1 202 ")
        assert said.count(b"HTTP/1.1 ") == 1
        await eventually(lambda: all(runs[0].methods[-1] == NEWS for runs in built.runs.values()))


async def test_delete_at_any_gateway_ends_members_at_all() -> None:
    async with town() as built:
        built.at = {"alpha": 1, "beta": 2}
        one = built.client(0)
        await one.opens()
        for server in ("alpha", "beta"):
            await one.asks(calls(server, f"{server}/echo"))
        assert await built.client(1, one.key).deletes() == 204
        await eventually(lambda: all(runs[0].stopped for runs in built.runs.values()))
        for number in range(3):
            client = built.client(number, one.key)
            await eventually(lambda at=number: not built.houses[at].manager.sessions)  # type: ignore[misc]
            assert (await client.post(calls(9, "alpha/echo"))).status == 404
            assert (await client.post(answered(9, {}))).status == 404
        assert {name: len(runs) for name, runs in built.runs.items()} == {"alpha": 1, "beta": 1}


async def test_session_and_its_members_outlive_the_gateway_that_opened_it() -> None:
    async with town() as built:
        built.at = {"alpha": 1}
        one = built.client(0)
        await one.opens()
        await one.asks(calls(1, "alpha/echo"))
        built.crash(0)
        other = built.client(2, one.key)
        assert await other.asks(calls(2, "alpha/echo")) == answered(2, EMPTY)
        assert len(await other.tools()) == 3
        built.at = {"beta": 1}
        assert await other.asks(calls(3, "beta/echo")) == answered(3, EMPTY)
        assert {name: len(runs) for name, runs in built.runs.items()} == {"alpha": 1, "beta": 1}


async def test_message_of_a_streams_client_may_come_to_any_gateway() -> None:
    async with town() as built, asyncio.timeout(BOUND):
        house = built.houses[0]
        accept = {"Accept": "text/event-stream"}
        async with house.http.get(f"{house.origin}/mcp/sse", headers=accept) as response:
            stream = Stream(response)
            place = (await raw_event(stream))["data"]
            for number, body in enumerate((OPEN, calls(5, "alpha/echo"), calls(6, "beta/echo"))):
                other = built.houses[number]
                async with other.http.post(other.origin + place, json=body) as posted:
                    assert posted.status == 202
                assert (await stream.message())["id"] == body["id"]
        await eventually(lambda: all(runs[0].stopped for runs in built.runs.values()))
        assert {name: len(runs) for name, runs in built.runs.items()} == {"alpha": 1, "beta": 1}


async def test_large_call_is_carried_whole() -> None:
    async with town() as built, asyncio.timeout(BOUND):
        built.at = {"alpha": 1}
        one = built.client(0)
        await one.opens()
        await one.asks(calls(1, "alpha/echo"))
        text = "x" * 3_000_000
        assert await one.asks(calls(2, "alpha/echo", text=text)) == answered(2, EMPTY)
        assert (await built.run("alpha")).heard[-1] == calls(2, "echo", text=text)


async def test_modern_calls_of_one_handle_share_a_dyno_that_dialled_another_gateway() -> None:
    listed = {"resultType": "complete", "tools": [ECHO], "ttlMs": 0, "cacheScope": "private"}
    answers = {"tools/call": DONE, "tools/list": listed}
    speaking = Program(speaks=frozenset({"modern"}), answers=answers)
    async with town({"alpha": speaking}, era="modern") as built:
        built.at = {"alpha": 1}
        for path in (PATH, "/toolkit/handles/mine/mcp"):
            for number in range(3):
                body = asks(number, name="alpha/echo", arguments={})
                answer = await send(built.houses[number], body, path=path)
                assert answer.only["result"] == DONE
        assert [child.methods.count("tools/call") for child in built.runs["alpha"]] == [3, 3]
