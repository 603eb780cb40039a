"""The real gateway in this process, and agents played by the test.

A launcher that makes no dynos records its orders; the test reads the join token from one and plays
the agent, honest or hostile, with the link's own endpoint.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from dyno_agent.link import PATH, SUBPROTOCOL, Channel, Endpoint, Hello, Message, Welcome
from gateway import events

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import aiohttp

    from gateway.launchers.base import LaunchOrder
    from tests.fakes.launchers import RecordingLauncher

BOUND = 10.0
"""Seconds for any one wait; nothing here takes one."""

KEY = "key-of-the-test"

INITIALIZE = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}}


class Ear:
    """Hears all events and lets tests wait for one."""

    def __init__(self) -> None:
        self.heard: list[events.SessionEvent] = []
        self._news = asyncio.Event()

    def __call__(self, event: events.SessionEvent) -> None:
        self.heard.append(event)
        self._news.set()

    def _of(self, order: LaunchOrder) -> list[events.SessionEvent]:
        launches = [event for event in self.heard if isinstance(event, events.Launching)]
        (session,) = {event.session for event in launches if event.launch == order.launch_id}
        return [event for event in self.heard if event.session == session]

    async def closed(self, order: LaunchOrder) -> str:
        """Wait until this launch's session is closed; return the reason."""
        async with asyncio.timeout(BOUND):
            while True:
                for event in self._of(order):
                    if isinstance(event, events.Closed):
                        return event.reason
                self._news.clear()
                await self._news.wait()

    async def until(self, name: str) -> None:
        """Wait until an event of this name was heard."""
        async with asyncio.timeout(BOUND):
            while not any(event.name == name for event in self.heard):
                self._news.clear()
                await self._news.wait()

    def ended(self, order: LaunchOrder) -> bool:
        return any(isinstance(event, events.Closing) for event in self._of(order))


@dataclass
class Agent:
    """An agent played by the test, after its handshake."""

    socket: ClientConnection
    welcome: Welcome
    link: Endpoint | None = None

    def __post_init__(self) -> None:
        self.end = self.link or Endpoint(self.welcome.limits, now=time.monotonic())
        self.end.attach(self.welcome.received, time.monotonic())

    async def send(self, channel: Channel, document: Any) -> None:
        self.end.send(channel, json.dumps(document).encode())
        await self.flush()

    async def flush(self) -> None:
        for frame in self.end.frames_to_send(time.monotonic()):
            await self.socket.send(frame)

    async def receive(self) -> Message:
        async with asyncio.timeout(BOUND):
            while True:
                data = await self.socket.recv()
                assert isinstance(data, bytes)
                message = self.end.receive(data, time.monotonic())
                if message is not None:
                    self.end.consumed(message)
                    return message

    async def answer(self, result: Any) -> Any:
        """Take one request of the client and answer it; return the request."""
        request = json.loads((await self.receive()).payload)
        await self.send(Channel.RPC, {"jsonrpc": "2.0", "id": request["id"], "result": result})
        return request


@dataclass
class House:
    """A gateway in this process, its launcher and its events."""

    origin: str
    http: aiohttp.ClientSession
    launcher: RecordingLauncher
    ear: Ear

    async def post(self, body: Any, session: str | None = None) -> aiohttp.ClientResponse:
        headers = {} if session is None else {"Mcp-Session-Id": session}
        url = f"{self.origin}/servers/patient/mcp"
        async with self.http.post(url, json=body, headers=headers) as response:
            await response.read()
        return response

    @asynccontextmanager
    async def asked(self) -> AsyncIterator[tuple[LaunchOrder, asyncio.Task[Any]]]:
        """A client sends `initialize`: yields the launch it caused and the call that waits."""
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            call = group.create_task(self.post(INITIALIZE))
            yield await self.launcher.orders.get(), call

    @asynccontextmanager
    async def honest(self) -> AsyncIterator[tuple[Agent, str]]:
        """A session whose agent does as it should: yields the agent and the session's key."""
        async with self.asked() as (order, call):
            agent = await self.join(order)
            await agent.send(Channel.EVENT, {"event": "spawned", "pid": 1})
            await agent.answer({"protocolVersion": "2025-11-25"})
        response = call.result()
        assert response.status == 200
        try:
            yield agent, response.headers["Mcp-Session-Id"]
        finally:
            await agent.socket.close()

    async def works(self, agent: Agent, session: str) -> None:
        """Show that a session and the gateway serve on."""
        body = {"jsonrpc": "2.0", "id": 2, "method": "ping"}
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            call = group.create_task(self.post(body, session))
            assert await agent.answer({}) == body
        assert await call.result().json() == {"jsonrpc": "2.0", "id": 2, "result": {}}
        async with self.http.get(f"{self.origin}/health") as health:
            assert (await health.json())["status"] == "ok"

    async def dial(
        self,
        credential: str | None,
        *,
        subprotocol: str = SUBPROTOCOL,
        origin: str | None = None,
    ) -> ClientConnection:
        """Open the WebSocket, up to and without the HELLO."""
        bearer = {} if credential is None else {"Authorization": f"Bearer {credential}"}
        foreign = {} if origin is None else {"Origin": origin}
        return await connect(
            "ws" + self.origin.removeprefix("http") + PATH,
            additional_headers={**bearer, **foreign},
            subprotocols=[Subprotocol(subprotocol)],
            compression=None,
            ping_interval=None,
            open_timeout=BOUND,
            close_timeout=BOUND,
            proxy=None,
        )

    async def join(self, order: LaunchOrder, boot_id: str = "first") -> Agent:
        socket = await self.dial(token_of(order))
        await socket.send(hello(boot_id).encode())
        async with asyncio.timeout(BOUND):
            answer = await socket.recv()
        assert isinstance(answer, str)
        return Agent(socket, Welcome.decode(answer))


def token_of(order: LaunchOrder) -> str:
    return order.environment["RENDEZVOUS_JOIN_TOKEN"]


def hello(boot_id: str) -> Hello:
    return Hello("join", boot_id, hashlib.sha256(boot_id.encode()).hexdigest())


async def close_code(socket: ClientConnection) -> int | None:
    async with asyncio.timeout(BOUND):
        await socket.wait_closed()
    return socket.close_code


async def refusal(response: aiohttp.ClientResponse) -> tuple[int, int, str, Any]:
    document = await response.json()
    error = document["error"]
    return response.status, error["code"], error["data"]["reason"], document["id"]
