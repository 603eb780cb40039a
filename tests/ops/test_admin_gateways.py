"""Two gateway processes: an operator asks either of them, about the sessions of both."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from gateway import app, events
from gateway.ops import recorder
from gateway.sessions import whereabouts
from gateway.store.memory import Engine, MemoryStore
from tests.edge.dynos_house import definition, happens, heard, hurry, platform, terms
from tests.fakes.house import BOUND, Agent, House, eventually, opened
from tests.fakes.launchers import Scripted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import aiohttp

ADMIN = "an-operators-key-of-32-characters"
KEYED = {"Authorization": f"Bearer {ADMIN}"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    monkeypatch.setattr(app, "FLUSH_S", 0.05)
    monkeypatch.setattr(whereabouts, "LOOK_S", 0.05)
    monkeypatch.setattr(recorder, "FLUSH_EVERY_S", 0.06)
    monkeypatch.setattr(recorder, "FRESH_S", 0.0)


@dataclass
class Pair:
    """Two gateways that share an engine; sessions are opened at the second, asked about at both."""

    engine: Engine
    first: House
    second: House
    launcher: Scripted

    async def booted(self) -> tuple[Agent, str]:
        """Open a session at the second; return its agent and its id."""
        agent, key = await self.second.booted()
        return agent, self.second.live(key).record.session_id

    async def asks(self, house: House, path: str, method: str = "GET") -> tuple[int, Any]:
        url = f"{house.origin}/admin/v1{path}"
        async with (
            asyncio.timeout(BOUND),
            house.http.request(method, url, headers=KEYED) as response,
        ):
            return response.status, await response.json()

    async def until(self, house: House, session: str, right: Callable[[Any], bool]) -> Any:
        """Ask about a session until what is told is right."""
        async with asyncio.timeout(BOUND):
            while True:
                status, shown = await self.asks(house, f"/sessions/{session}")
                if status == 200 and right(shown):
                    return shown

    def crash(self, house: House) -> None:
        self.engine.crash(house.manager.store.gateway)


@asynccontextmanager
async def pair() -> AsyncIterator[Pair]:
    engine, launcher = Engine(), Scripted()
    more: dict[str, Any] = {"admin_key": ADMIN, "heroku_refresh_s": 86_400}
    agreed, servers = terms(hand_over=True), (definition(),)
    async with (
        opened(
            launcher, agreed, servers, platform(launcher), MemoryStore(engine, "one"), **more
        ) as first,
        opened(
            launcher, agreed, servers, platform(launcher), MemoryStore(engine, "two"), **more
        ) as second,
    ):
        yield Pair(engine, first, second, launcher)


async def test_session_of_one_gateway_is_listed_by_the_other() -> None:
    async with pair() as built:
        _, session = await built.booted()
        shown = await built.until(built.first, session, lambda shown: shown["state"] == "ready")
        assert (shown["gateway"], shown["here"], shown["server"]) == ("two", False, "patient")
        _, page = await built.asks(built.first, "/sessions")
        assert [each["session"] for each in page["sessions"]] == [session]
        _, mine = await built.asks(built.second, f"/sessions/{session}")
        assert mine["here"]


async def test_session_is_ended_where_it_lives_whoever_is_asked() -> None:
    async with pair() as built:
        _, session = await built.booted()
        await built.until(built.first, session, lambda shown: shown["state"] == "ready")
        status, document = await built.asks(built.first, f"/sessions/{session}", "DELETE")
        assert (status, document) == (202, {"session": session, "state": "closing"})
        closed = await happens(built.second, events.Closed)
        assert (closed.session, closed.reason) == (session, "operator")
        await built.until(
            built.first,
            session,
            lambda shown: (shown["state"], shown["reason"]) == ("closed", "operator"),
        )


async def test_both_gateways_note_who_has_ended_it() -> None:
    async with pair() as built:
        _, session = await built.booted()
        await built.until(built.first, session, lambda shown: shown["state"] == "ready")
        await built.asks(built.first, f"/sessions/{session}", "DELETE")
        operated = [heard(house, events.Operated) for house in (built.first, built.second)]
        assert [[(each.subject, each.source) for each in noted] for noted in operated] == [
            [(session, "127.0.0.1")],
            [(session, "another gateway process")],
        ]


async def test_session_that_has_ended_cannot_be_ended_again_at_either() -> None:
    async with pair() as built:
        _, session = await built.booted()
        await built.asks(built.second, f"/sessions/{session}", "DELETE")
        for house in (built.second, built.first):
            await built.until(house, session, lambda shown: shown["state"] == "closed")
            status, document = await built.asks(house, f"/sessions/{session}", "DELETE")
            assert (status, list(document)) == (409, ["error"])


@asynccontextmanager
async def following(house: House, session: str) -> AsyncIterator[aiohttp.ClientResponse]:
    url = f"{house.origin}/admin/v1/sessions/{session}/tail"
    async with asyncio.timeout(BOUND), house.http.get(url, headers=KEYED) as response:
        assert response.status == 200
        yield response


async def until_event(response: aiohttp.ClientResponse, name: str) -> list[int]:
    """Read lines until one of this name; return their numbers."""
    numbers = []
    while raw := await response.content.readuntil(b"\n\n"):
        fields = dict(line.split(": ", 1) for line in raw.decode().splitlines() if ": " in line)
        if "id" in fields:
            numbers.append(int(fields["id"]))
            if json.loads(fields["data"])["event"] == name:
                return numbers
    raise AssertionError(f"the tail ended before {name}: {numbers}")


@pytest.mark.parametrize("at", ["first", "second"])
async def test_session_is_followed_from_either_gateway(at: str) -> None:
    async with pair() as built:
        agent, session = await built.booted()
        house: House = getattr(built, at)
        await built.until(house, session, lambda shown: shown["state"] == "ready")
        async with following(house, session) as response:
            numbers = await until_event(response, "ready")
            agent.cut()
            numbers += await until_event(response, "parted")
            await built.asks(house, f"/sessions/{session}", "DELETE")
            numbers += await until_event(response, "closed")
            assert numbers == list(range(1, len(numbers) + 1))
            rest = (await response.content.read()).decode()
            assert rest.endswith('event: end\ndata: {"state":"closed","reason":"operator"}\n\n')


async def test_tail_goes_on_with_a_session_that_moves() -> None:
    async with pair() as built:
        agent, session = await built.booted()
        async with following(built.second, session) as response:
            await until_event(response, "ready")
            agent.cut()
            await built.first.resume(agent)
            await until_event(response, "hydrated")
        await built.until(built.second, session, lambda shown: shown["gateway"] == "one")
        status, _ = await built.asks(built.second, f"/sessions/{session}", "DELETE")
        assert status == 202
        assert (await happens(built.first, events.Closed)).session == session


async def test_session_of_a_gateway_that_died_is_parted_and_its_dyno_can_be_stopped() -> None:
    async with pair() as built:
        agent, session = await built.booted()
        await built.until(built.first, session, lambda shown: shown["state"] == "ready")
        agent.cut()
        built.crash(built.second)
        await built.until(built.first, session, lambda shown: shown["state"] == "parted")
        status, document = await built.asks(built.first, f"/sessions/{session}", "DELETE")
        assert (status, document["state"]) == (202, "closing")
        await eventually(lambda: f"fake.{agent.launch_id}" in built.launcher.stopped)


async def test_gateway_is_told_to_leave_by_the_other() -> None:
    async with pair() as built:
        status, document = await built.asks(built.first, "/gateways/two/drain", "POST")
        assert (status, document) == (202, {"gateway": "two", "state": "draining"})
        (there,) = heard(built.second, events.Operated)
        assert (there.action, there.subject) == ("drain", "two")


async def test_refusal_is_an_operators_though_the_way_to_the_other_is_cut() -> None:
    async with pair() as built:
        _, session = await built.booted()
        await built.until(built.first, session, lambda shown: shown["state"] == "ready")
        built.engine.away = True
        status, document = await built.asks(built.first, f"/sessions/{session}", "DELETE")
        built.engine.away = False
        assert (status, list(document)) == (503, ["error"])
