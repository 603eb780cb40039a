"""Servers of known eras for played dynos, and clients that are answered before there is a dyno.

A `Program` says what a server's child answers; a `Child` plays one run of it at an agent of
`tests.fakes.house`, and keeps what it heard.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dyno_agent.link import Channel
from gateway import events
from gateway.registry.servers import ServerDefinition
from tests.fakes.house import BOUND, Agent, House, Stream, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import aiohttp

    from gateway.launchers.base import LaunchOrder

TOOLS = [{"name": "echo", "inputSchema": {"type": "object"}}, {"name": "add", "inputSchema": {}}]

OPENING = {
    "protocolVersion": "2025-11-25",
    "capabilities": {"tools": {"listChanged": True}, "logging": {}},
    "serverInfo": {"name": "played", "version": "1"},
    "instructions": "be kind",
}

DISCOVERED = {
    "resultType": "complete",
    "supportedVersions": ["2026-07-28"],
    "capabilities": {"tools": {}},
    "ttlMs": 0,
    "cacheScope": "private",
    "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "played", "version": "1"}},
}

NO_SUCH_METHOD = {"code": -32601, "message": "no such method"}

INITIALIZED = {"jsonrpc": "2.0", "method": "notifications/initialized"}

SAID = {
    "protocolVersion": "2025-11-25",
    "capabilities": {"roots": {}},
    "clientInfo": {"name": "client", "version": "7"},
    "x-of-its-own": [1.50, "é"],
}
"""What a client says in its `initialize`."""

OPEN: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": SAID}

LIST: dict[str, Any] = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}


def definition(name: str = "patient", **more: Any) -> ServerDefinition:
    """A legacy server with a catalogue, that is not translated unless told otherwise."""
    usual = {"name": name, "command": "never-run", "era": "legacy", "translate": False}
    return ServerDefinition(**{**usual, **more})


def call(number: int | str, **arguments: Any) -> dict[str, Any]:
    """A request that only a child can answer."""
    params = {"name": "echo", "arguments": arguments}
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}


def answered(number: int | str, result: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "result": result}


@dataclass(frozen=True)
class Refusal:
    """An error that a program answers."""

    code: int = -32601
    message: str = "no such method"


@dataclass(kw_only=True)
class Program:
    """What the children of a server answer, by method.

    Attributes:
        speaks: eras, without a face.
        answers: results or refusals; a callable gets the request.
        silent: methods that are never answered.
    """

    speaks: frozenset[str] = frozenset({"legacy"})
    answers: dict[str, Any] = field(default_factory=dict)
    silent: frozenset[str] = frozenset()

    def reply(self, request: Any, face: str) -> Any:
        """Return the response to a request; None if it gets none."""
        method = request["method"]
        if method in self.silent:
            return None
        said = self._said(method, face)
        found = said(request) if callable(said) else said
        head = {"jsonrpc": "2.0", "id": request["id"]}
        if isinstance(found, Refusal):
            return {**head, "error": {"code": found.code, "message": found.message}}
        return {**head, "result": found}

    def _said(self, method: str, face: str) -> Any:
        eras = self.speaks if face == "plain" else {face}
        defaults = {"tools/list": {"tools": TOOLS}, "tools/call": {"content": []}, "ping": {}}
        if "legacy" in eras:
            defaults |= {"initialize": OPENING, "logging/setLevel": {}}
        if "modern" in eras:
            defaults |= {"server/discover": DISCOVERED}
        if method in {"initialize", "server/discover"} and method not in defaults:
            return Refusal()
        return {**defaults, **self.answers}.get(method, Refusal())


@dataclass
class Child:
    """One run of a program.

    Attributes:
        agent: who carries its messages.
        program: what it answers.
        face: the era that it shows.
        heard: messages of the gateway, oldest first.
        stopped: it was told to stop.
    """

    agent: Agent
    program: Program
    face: str
    heard: list[Any] = field(default_factory=list)
    stopped: bool = False

    @property
    def methods(self) -> list[str]:
        return [message.get("method", "a response") for message in self.heard]

    async def serve(self) -> None:
        """Answer until the gateway says stop."""
        await self.agent.send(Channel.EVENT, {"event": "spawned", "pid": 1})
        while True:
            message = await self.agent._inbox.get()
            document = json.loads(message.payload)
            if message.channel is not Channel.RPC:
                if document == {"do": "stop"}:
                    self.stopped = True
                    await self.agent.leaves()
                    return
                continue
            self.heard.append(document)
            if "method" in document and "id" in document:
                reply = self.program.reply(document, self.face)
                if reply is not None:
                    await self.agent.say(reply)

    async def takes(self, method: str, times: int = 1) -> Any:
        """Wait until it has heard of a method that often; return the last such message."""
        await eventually(lambda: self.methods.count(method) >= times)
        return [each for each in self.heard if each.get("method") == method][times - 1]


@dataclass
class Stage:
    """Where children are played, each as long as the block lasts."""

    house: House
    tasks: asyncio.TaskGroup
    children: list[Child] = field(default_factory=list)
    _playing: list[asyncio.Task[None]] = field(default_factory=list)

    async def order(self) -> LaunchOrder:
        async with asyncio.timeout(BOUND):
            return await self.house.launcher.orders.get()

    async def child(self, program: Program) -> Child:
        """Play the child of the next launch."""
        return await self.child_of(await self.order(), program)

    async def child_of(self, order: LaunchOrder, program: Program) -> Child:
        return await self.play(await self.house.join(order), program)

    async def play(self, agent: Agent, program: Program) -> Child:
        """Play the child of an agent that was just welcomed."""
        spec = agent.welcome.child
        assert spec is not None
        played = Child(agent, program, spec.face)
        self.children.append(played)
        self._playing.append(self.tasks.create_task(played.serve()))
        return played

    async def looks(self, program: Program, runs: int = 1) -> list[Child]:
        """Play the throw-away runs of one look, to the end of their sessions."""
        played = [await self.child(program) for _ in range(runs)]
        for child in played:
            assert await self.house.ear.closed(child.agent) in {"answered", "initialize_failed"}
        return played

    def leave(self) -> None:
        for task in self._playing:
            task.cancel()


@asynccontextmanager
async def stage(house: House) -> AsyncIterator[Stage]:
    async with asyncio.TaskGroup() as tasks:
        played = Stage(house, tasks)
        try:
            yield played
        finally:
            played.leave()


async def opens(
    house: House, body: Any = OPEN, revision: str | None = None
) -> tuple[str, aiohttp.ClientResponse]:
    """Send an `initialize` that the catalogue answers; return the session's key and the answer."""
    response = await house.post(body, revision=revision)
    assert response.status == 200, await response.text()
    return response.headers["Mcp-Session-Id"], response


def launches(house: House) -> int:
    """How many dynos were asked for so far."""
    return sum(isinstance(event, events.Launching) for event in house.ear.heard)


def heard_events(house: House, kind: type[events.Event]) -> list[Any]:
    return [event for event in house.ear.heard if isinstance(event, kind)]


async def happens(house: House, kind: type[events.Event], times: int = 1) -> Any:
    """Wait until something was said that often; return the last such event."""
    await eventually(lambda: len(heard_events(house, kind)) >= times)
    return heard_events(house, kind)[times - 1]


async def raw_event(stream: Stream) -> dict[str, str]:
    """Return the fields of a stream's next event, past comments."""
    while True:
        async with asyncio.timeout(BOUND):
            block = await stream.response.content.readuntil(b"\n\n")
        if not block:
            return {}
        lines = [line for line in block.decode().split("\n") if line and line[0] != ":"]
        if lines:
            return dict(line.split(": ", 1) for line in lines)
