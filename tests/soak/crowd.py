"""Hundreds of agents in one process: each dials the real link and plays its child, as told.

An agent is honest as docs/link.md asks until a client calls a tool that says otherwise, so that
the client of a session decides how its session goes:

| Tool | The agent |
|---|---|
| `echo` | answers with the call's arguments |
| `chatty` | sends a notification first, so that the answer is streamed |
| `afterword` | answers, then sends a notification, which only a GET stream can carry |
| `silent` | never answers |
| `exit` | reports that its child ended, and leaves |
| `die` | is gone, and its launcher can tell |
| `vanish` | is gone, and nobody can tell |
| `breach` | breaks the link's protocol |
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from dyno_agent.link import (
    CAPSULE_HEADER,
    PATH,
    SUBPROTOCOL,
    Channel,
    CloseCode,
    Endpoint,
    Hello,
    LinkLost,
    Message,
    ProtocolViolation,
    Welcome,
)
from dyno_agent.link.closing import is_retriable

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

OPEN_S = 10.0
"""For a dial and its handshake."""

LEAVE_S = 5.0
"""For the acknowledgement of `exited`; docs/link.md, "Frames"."""

FIRST_WAIT_S, LONGEST_WAIT_S, HELD_S = 0.1, 10.0, 10.0
"""Full jitter between dials; docs/link.md, "Dialling"."""

REFUSALS = {400, 401, 403}
"""Answers after which an agent does not dial again."""

BREACHES: tuple[bytes | str, ...] = (b"", b"\x10\x01", b"\xff" * 40, "text after the handshake")

NOTE = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info"}}


class Agent:
    """One agent, from its launch to its end.

    Args:
        crowd: where it counts what it sees.
        launch_id: of the order.
        url: base URL of the gateway.
        token: join token.
    """

    def __init__(self, crowd: Crowd, launch_id: str, url: str, token: str) -> None:
        self.launch_id = launch_id
        self.socket: ClientConnection | None = None
        self._crowd = crowd
        self._url = "ws" + url.removeprefix("http") + PATH
        self._credential = token
        self._secret = secrets.token_hex(32)
        self._boot_id = secrets.token_hex(8)
        self._capsule = ""
        self._end: Endpoint | None = None
        self._wake = asyncio.Event()
        self._leave_by: float | None = None
        self._over = False
        self._seen: set[str | int] = set()

    async def live(self) -> None:
        """Dial until the session or the agent is over."""
        attempt = 0
        while not self._over:
            began = time.monotonic()
            await self._attend()
            attempt = 0 if time.monotonic() - began >= HELD_S else attempt + 1
            if not self._over:
                ceiling = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(attempt - 1, 16))
                await asyncio.sleep(self._crowd.chance.uniform(0, ceiling))

    def abort(self) -> None:
        """Cut the socket, in the middle of whatever it carries."""
        if self.socket is not None:
            self.socket.transport.abort()

    # One attachment

    async def _attend(self) -> None:
        """Hold one attachment; on return `_over` tells whether to dial again."""
        try:
            self.socket = await connect(
                self._url,
                additional_headers=self._headers(),
                subprotocols=[Subprotocol(SUBPROTOCOL)],
                compression=None,
                ping_interval=None,
                open_timeout=OPEN_S,
                close_timeout=OPEN_S,
                proxy=None,
            )
        except InvalidStatus as refused:
            self._over = refused.response.status_code in REFUSALS
            return
        except (OSError, TimeoutError, WebSocketException):
            return
        socket = self.socket
        try:
            end = await self._shake_hands(socket)
            async with asyncio.TaskGroup() as tasks:
                writer = tasks.create_task(self._write(socket, end))
                await self._read(socket, end)
                writer.cancel()
        except (ConnectionClosed, TimeoutError):
            pass
        finally:
            self.abort()
            self.socket = None
            if self._end is not None:
                self._end.detach()
        self._over |= not is_retriable(socket.close_code or 1006)

    def _headers(self) -> dict[str, str]:
        bearer = {"Authorization": f"Bearer {self._credential}"}
        return {**bearer, CAPSULE_HEADER: self._capsule} if self._capsule else bearer

    async def _shake_hands(self, socket: ClientConnection) -> Endpoint:
        proof = hashlib.sha256(self._secret.encode()).hexdigest()
        hello = Hello("join", self._boot_id, proof)
        if (end := self._end) is not None:
            hello = Hello("resume", self._boot_id, proof, end.received, end.confirmed)
        async with asyncio.timeout(OPEN_S):
            await socket.send(hello.encode())
            welcome = Welcome.decode(str(await socket.recv()))
        self._capsule = welcome.capsule
        now = time.monotonic()
        if self._end is None:
            self._end = Endpoint(welcome.limits, now=now)
            self._credential = f"rr_{self.launch_id}.{self._secret}"
            self._say(Channel.EVENT, {"event": "spawned", "pid": 1})
        self._end.attach(welcome.received, now)
        self._wake.set()
        return self._end

    async def _write(self, socket: ClientConnection, end: Endpoint) -> None:
        """Be the only writer of frames: news, heartbeats, and the close after the last report."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                dues = [due for due in (end.deadline(), self._leave_by) if due is not None]
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, min(dues) - time.monotonic())):
                        await self._wake.wait()
                self._wake.clear()
                now = time.monotonic()
                try:
                    frames = end.tick(now) + end.frames_to_send(now)
                except LinkLost:
                    socket.transport.abort()
                    return
                for frame in frames:
                    await socket.send(frame)
                if self._leave_by is not None and (end.settled or now >= self._leave_by):
                    self._over = True
                    await socket.close(CloseCode.NORMAL)
                    return

    async def _read(self, socket: ClientConnection, end: Endpoint) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for data in socket:
                if isinstance(data, str):
                    raise ProtocolViolation("text after the handshake")
                message = end.receive(data, time.monotonic())
                if message is not None:
                    await self._take(message, socket)
                    end.consumed(message)
                self._wake.set()

    # The child

    def _say(self, channel: Channel, document: Any) -> None:
        if self._end is not None:
            self._end.send(channel, json.dumps(document).encode())

    def _answer(self, request: Any, result: Any) -> None:
        self._say(Channel.RPC, {"jsonrpc": "2.0", "id": request["id"], "result": result})

    async def _take(self, message: Message, socket: ClientConnection) -> None:
        document = json.loads(message.payload)
        if message.channel is Channel.CMD:
            if document["do"] == "stop":
                self._leave(asked=True)
            return
        if "id" in document:
            self._crowd.duplicated += document["id"] in self._seen
            self._seen.add(document["id"])
        match document:
            case {"method": "initialize", "params": {"protocolVersion": revision}}:
                info = {"name": "crowd", "version": "0"}
                result = {"protocolVersion": revision, "capabilities": {}, "serverInfo": info}
                self._answer(document, result)
            case {"method": "tools/call", "params": {"name": tool, "arguments": arguments}}:
                await self._call(document, tool, arguments, socket)
            case _:
                pass

    async def _call(
        self, request: Any, tool: str, arguments: Any, socket: ClientConnection
    ) -> None:
        match tool:
            case "echo":
                self._answer(request, arguments)
            case "chatty":
                self._say(Channel.RPC, NOTE)
                self._answer(request, arguments)
            case "afterword":
                self._answer(request, arguments)
                self._say(Channel.RPC, NOTE)
            case "exit":
                self._leave(asked=False)
            case "breach":
                await socket.send(self._crowd.chance.choice(BREACHES))
            case "die" | "vanish":
                self._over = True
                self._crowd.hung.update({self.launch_id} if tool == "vanish" else ())
                self.abort()
            case _:
                pass

    def _leave(self, *, asked: bool) -> None:
        if self._leave_by is None:
            self._leave_by = time.monotonic() + LEAVE_S
            report = {"event": "exited", "code": 0, "signal": None, "asked": asked, "why": "exit"}
            self._say(Channel.EVENT, report)


@dataclass
class Crowd:
    """All agents.

    Attributes:
        tasks: who owns the agents' tasks.
        chance: for jitter and drops.
        exited: called with the launch id of an agent whose end its launcher can see.
        agents: those that have not ended, by launch id.
        hung: launches whose dyno no longer does anything and still runs.
        drops: sockets cut so far.
        duplicated: requests that reached their child more than once.
    """

    tasks: asyncio.TaskGroup
    chance: random.Random
    exited: Callable[[str], None]
    agents: dict[str, tuple[Agent, asyncio.Task[None]]] = field(default_factory=dict)
    hung: set[str] = field(default_factory=set)
    drops: int = 0
    duplicated: int = 0

    def launch(self, launch_id: str, url: str, token: str) -> None:
        """Start an agent."""
        agent = Agent(self, launch_id, url, token)
        self.agents[launch_id] = agent, self.tasks.create_task(self._run(agent))

    async def _run(self, agent: Agent) -> None:
        try:
            await agent.live()
        finally:
            del self.agents[agent.launch_id]
        if agent.launch_id not in self.hung:
            self.exited(agent.launch_id)

    def stop(self, launch_id: str) -> None:
        """End an agent at once; a launch that has none any more is fine."""
        self.hung.discard(launch_id)
        _, task = self.agents.get(launch_id, (None, None))
        if task is not None:
            task.cancel()

    def disperse(self) -> None:
        """End all agents that are left."""
        for _, task in self.agents.values():
            task.cancel()

    def drop(self) -> bool:
        """Cut the socket of a random agent, in its handshake too; False when there is none."""
        held = [agent for agent, _ in self.agents.values() if agent.socket is not None]
        if held:
            self.chance.choice(held).abort()
            self.drops += 1
        return bool(held)
