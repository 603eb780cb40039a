"""Agents that fall silent without closing, and sessions that nobody uses."""

from __future__ import annotations

import msgspec
import pytest

from dyno_agent.link import Limits
from gateway.sessions import manager as sessions
from gateway.sessions.terms import Terms
from tests.fakes.house import SECRET, SERVERS, close_code, opened

PING = {"jsonrpc": "2.0", "id": 5, "method": "ping"}
LIVELY = Terms("http://127.0.0.1", SECRET, 10, limits=Limits(heartbeat_s=0.02, dead_s=0.5))
BEATING = Terms("http://127.0.0.1", SECRET, 10, limits=Limits(heartbeat_s=0.005, dead_s=45.0))
BRIEF = (msgspec.structs.replace(SERVERS[0], idle_timeout=0.3),)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "TICK_S", 0.01)


async def test_agent_that_falls_silent_is_given_up_though_its_socket_is_open() -> None:
    async with opened(terms=LIVELY) as house:
        agent, _ = await house.booted()
        agent.beats = False
        assert await close_code(agent.socket) == 1006
        await house.ear.until("parted")


async def test_agent_that_fell_silent_may_come_back() -> None:
    async with opened(terms=LIVELY) as house:
        agent, session = await house.booted()
        agent.beats = False
        await close_code(agent.socket)
        agent.beats = True
        await house.resume(agent)
        await house.works(agent, session)


async def test_gateway_that_has_nothing_to_say_beats() -> None:
    async with opened(terms=BEATING) as house:
        agent, _ = await house.booted()
        heard: list[float] = []
        for _ in range(3):
            heard.append(agent.end._heard)
            await agent.until(lambda: agent.end._heard > heard[-1])


async def test_heartbeats_and_an_open_stream_are_no_activity() -> None:
    """A forgotten session would cost money for ever."""
    async with opened(terms=BEATING, servers=BRIEF) as house:
        agent, session = await house.booted()
        async with house.listening(session) as stream:
            assert await stream.rest() == []
        await agent.leaves()
        assert await house.ear.closed(agent) == "idle"


async def test_running_call_is_activity() -> None:
    """Seen by the deadline loop: it has ended an idle session meanwhile, and not this one."""
    async with opened(terms=BEATING, servers=BRIEF) as house:
        busy, session = await house.booted()
        async with house.asking({**PING, "params": {}}, session) as stream:
            await busy.receive()
            await stream.next()
            idle, _ = await house.booted()
            await idle.until(lambda: house.ear.ended(idle))
            assert not house.ear.ended(busy)
            await busy.say({"jsonrpc": "2.0", "id": 5, "result": {}})
            assert len(await stream.rest()) == 1
