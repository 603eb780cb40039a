"""A hurried gateway whose dynos only stand in a launcher's list, with a clock that stands still."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from websockets.exceptions import ConnectionClosed

from dyno_agent.link.handshake import is_parked
from gateway.deployment import Deployment, realm_of
from gateway.fleet import line
from gateway.registry.servers import ServerDefinition
from gateway.rendezvous.archive import Archive
from gateway.sessions import dynos, pool, reconciler
from gateway.sessions import manager as sessions
from gateway.sessions.terms import Terms
from tests.fakes.house import BOUND, INITIALIZE, SECRET, Agent, House, eventually, opened, token_of
from tests.fakes.launchers import Scripted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import pytest
    from websockets.asyncio.client import ClientConnection

    from gateway import events
    from gateway.launchers.base import LaunchOrder
    from gateway.launchers.heroku.formation import Process

FOREVER = 600.0
"""Longer than any test."""

NOW = 1_790_000_000.0
"""In September 2026, far from the ends of a month."""

PING: dict[str, Any] = {"jsonrpc": "2.0", "id": 5, "method": "ping"}


class Clock:
    """A wall clock that a test moves."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let loops look all the time, and nothing be tried again by itself."""
    monkeypatch.setattr(sessions, "TICK_S", 0.01)
    monkeypatch.setattr(pool, "PLAN_S", 0.01)
    monkeypatch.setattr(pool, "AGAIN_S", FOREVER)
    monkeypatch.setattr(line, "AGAIN_S", FOREVER)
    monkeypatch.setattr(dynos, "LEAVE_S", 0.05)
    monkeypatch.setattr(reconciler, "FAREWELL_S", 0.01)


def definition(name: str = "patient", **more: Any) -> ServerDefinition:
    usual = {"name": name, "command": "child", "args": ["-x"], "era": "legacy", "catalogue": False}
    return ServerDefinition(**{**usual, **more})


def terms(clock: Clock | None = None, **more: Any) -> Terms:
    return Terms("http://127.0.0.1", SECRET, 100, wall_clock=clock or Clock(), **more)


@asynccontextmanager
async def running(
    launcher: Scripted | None = None,
    agreed: Terms | None = None,
    *servers: ServerDefinition,
    platform: Deployment | None = None,
    **settings: Any,
) -> AsyncIterator[tuple[House, Scripted]]:
    launcher = launcher or Scripted()
    served = servers or (definition(),)
    async with opened(launcher, agreed or terms(), served, platform, **settings) as house:
        yield house, launcher


async def order(launcher: Scripted) -> LaunchOrder:
    async with asyncio.timeout(BOUND):
        return await launcher.orders.get()


async def parked(house: House, launcher: Scripted, boot_id: str = "first") -> Agent:
    """Play the agent of the next dyno, which is the pool's."""
    made = await order(launcher)
    agent = await house.park(token_of(made), boot_id)
    await eventually(lambda: ready(house, agent.launch_id))
    return agent


def ready(house: House, launch_id: str) -> bool:
    found = house.manager.pool.find(launch_id)
    return found is not None and found.ready is not None


@asynccontextmanager
async def opening(house: House) -> AsyncIterator[asyncio.Task[Any]]:
    """A client sends `initialize`, and is answered by the end of the block."""
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
        yield group.create_task(house.post(INITIALIZE))


async def opens(house: House, agent: Agent) -> str:
    """Open a session that adopts a parked agent; return the session's key."""
    async with opening(house) as call:
        await house.adopted(agent)
        await agent.boots()
    response = call.result()
    assert response.status == 200, await response.text()
    return str(response.headers["Mcp-Session-Id"])


async def booted(house: House, launcher: Scripted) -> tuple[Agent, str]:
    """Open a session that gets a dyno of its own."""
    async with opening(house) as call:
        agent = await house.join(await order(launcher))
        await agent.boots()
    response = call.result()
    assert response.status == 200, await response.text()
    return agent, response.headers["Mcp-Session-Id"]


async def ends_parked(socket: ClientConnection) -> int | None:
    """Wait until a parked connection is closed; it was told nothing but to wait."""
    async with asyncio.timeout(BOUND):
        with suppress(ConnectionClosed):
            async for said in socket:
                assert isinstance(said, str)
                assert is_parked(said), "no WELCOME for this one"
        await socket.wait_closed()
    return socket.close_code


def heard(house: House, kind: type[events.Event]) -> list[Any]:
    return [event for event in house.ear.heard if isinstance(event, kind)]


async def happens(house: House, kind: type[events.Event], times: int = 1) -> Any:
    """Wait until something was said that often; return the last such event."""
    async with asyncio.timeout(BOUND):
        while len(heard(house, kind)) < times:
            house.ear._news.clear()
            await house.ear._news.wait()
    return heard(house, kind)[times - 1]


async def looked_again(launcher: Scripted, times: int = 3) -> None:
    """Wait until the reconciler has compared what it was told at least once more."""
    lists = launcher.lists
    await eventually(lambda: launcher.lists >= lists + times)


@dataclass(frozen=True)
class Looked:
    """What one look at the apps has found."""

    processes: tuple[Process, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Apps:
    """Apps that a test changes.

    Attributes:
        found: what the next look finds.
        looks: how many there were.
        gate: looks wait for it; open at first.
    """

    found: Looked = field(default_factory=Looked)
    looks: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    async def processes(self) -> Looked:
        self.looks += 1
        found = self.found
        await self.gate.wait()
        return found

    def have(self, *processes: Process, **failed: str) -> None:
        self.found = Looked(processes, failed)


HOOK_SECRET = "the-secret-of-the-hooks"  # noqa: S105 - of the tests


def platform(launcher: Scripted, apps: Apps | None = None) -> Deployment:
    """What `opened` needs to let operators and webhooks in."""

    async def nothing() -> tuple[str, ...]:
        return ()

    async def close() -> None:
        return None

    def line_of(server: ServerDefinition, launch_id: str, environment: Mapping[str, str]) -> str:
        pairs = " ".join(f"{name}={value}" for name, value in environment.items())
        return f"run {server.name} {launch_id} {pairs}"

    archive = Archive(b"", hashlib.sha256(b"").hexdigest())
    return Deployment(
        realm_of(SECRET), launcher, apps or Apps(), line_of, archive, HOOK_SECRET, nothing, close
    )
