"""A toolkit of played servers: each has a program of its own, and whoever boots is played."""

from __future__ import annotations

import asyncio
import io
import json
from collections import defaultdict
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dyno_agent.link import Channel
from gateway.sessions.keys import SessionKeys
from tests.edge.eras_house import OPEN, Child, Program, Stage, definition, stage
from tests.fakes.house import BOUND, KEY, RESUMING, House, Stream, eventually, opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import aiohttp

    from gateway.registry.servers import ServerDefinition
    from gateway.sessions.terms import Terms

ECHO = {"name": "echo", "inputSchema": {"type": "object"}}
ALONE = {"name": "alone", "inputSchema": {}}

PATH = "/toolkit/mcp"

SILENT = frozenset({"tools/call"})


def offering(*tools: Any, **more: Any) -> Program:
    """A server with these tools."""
    answers = {"tools/list": {"tools": list(tools)}, **more.pop("answers", {})}
    return Program(answers=answers, **more)


def calls(key: int | str, name: str, *, token: int | str | None = None, **given: Any) -> Any:
    """A call of a toolkit's tool."""
    params: dict[str, Any] = {"name": name, "arguments": given}
    if token is not None:
        params["_meta"] = {"progressToken": token}
    return {"jsonrpc": "2.0", "id": key, "method": "tools/call", "params": params}


def progress(token: int | str, value: int) -> Any:
    params = {"progressToken": token, "progress": value}
    return {"jsonrpc": "2.0", "method": "notifications/progress", "params": params}


@dataclass
class Troupe:
    """Servers whose dynos are played as soon as they are asked for.

    Attributes:
        stage: where the children are played.
        programs: by server; of None the child exits as soon as it runs.
        runs: children by server, oldest first; those of throw-away runs are not among them.
    """

    stage: Stage
    programs: dict[str, Program | None]
    runs: defaultdict[str, list[Child]] = field(default_factory=lambda: defaultdict(list))

    @property
    def house(self) -> House:
        return self.stage.house

    async def play(self) -> None:
        while True:
            order = await self.house.launcher.orders.get()
            agent = await self.house.join(order)
            program = self.programs[order.server]
            if program is None:
                await agent.send(Channel.EVENT, {"event": "exited", "code": 3})
            else:
                self.runs[order.server].append(await self.stage.play(agent, program))

    async def run(self, server: str, number: int = 1) -> Child:
        """Wait for the child of a server's latest launch of so many."""
        await eventually(lambda: len(self.runs[server]) >= number)
        return self.runs[server][number - 1]

    @property
    def booted(self) -> dict[str, int]:
        """How many children each server has had, of those that had one."""
        return {name: len(children) for name, children in self.runs.items() if children}


def legacy(*names: str, **more: Any) -> tuple[ServerDefinition, ...]:
    return tuple(definition(name, **more) for name in names)


@asynccontextmanager
async def troupe(
    programs: dict[str, Program | None],
    servers: tuple[ServerDefinition, ...] | None = None,
    terms: Terms | None = None,
    **more: Any,
) -> AsyncIterator[Troupe]:
    """A gateway that has looked at its servers; nobody runs yet."""
    servers = servers or legacy(*programs)
    async with opened(None, terms, servers, **more) as house, stage(house) as played:
        found = Troupe(played, dict(programs))
        playing = played.tasks.create_task(found.play())
        try:
            await looked(house)
            found.runs.clear()
            yield found
        finally:
            playing.cancel()


async def looked(house: House) -> None:
    """Wait until the first look at every server is over, and its dynos are gone."""
    await eventually(lambda: not house.manager.sessions and house.ear.names().count("closed"))
    names = len(house.registry.names)
    await eventually(lambda: house.ear.names().count("closed") >= names)
    await eventually(lambda: not house.manager.sessions)


async def reply(child: Child) -> Any:
    """Return the first answer that a child was given."""
    await eventually(lambda: "a response" in child.methods)
    return child.heard[child.methods.index("a response")]


async def sees(stream: Stream, message: Any) -> str:
    """Wait for a message, past what the gateway says of the boot; return its id."""
    while (told := await stream.next()) is not None and told.message != message:
        pass
    assert told is not None
    return told.id or ""


async def begun(played: Troupe, stream: Stream, server: str) -> Child:
    """Wait until a call's stream can be continued and its member has it."""
    while (first := await stream.next()) is not None and first.id is None:
        pass
    assert first is not None
    child = await played.run(server)
    await child.takes("tools/call")
    return child


async def exchange(house: House, key: str, headers: bytes, body: bytes, size: int = 0) -> bytes:
    """POST to a toolkit, byte for byte; return all that comes.

    Args:
        house: the gateway.
        key: of the session; empty for none.
        headers: further lines.
        body: what is sent of it.
        size: what it is said to be, if that is another; then the status line alone is returned.
    """
    session = f"Mcp-Session-Id: {key}\r\n" if key else ""
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {KEY}\r\nAccept: */*\r\n"
        f"Content-Type: application/json\r\nConnection: close\r\n{session}"
        f"Content-Length: {size or len(body)}\r\n"
    )
    host, _, port = house.origin.removeprefix("http://").partition(":")
    async with asyncio.timeout(BOUND):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(head.encode() + headers + b"\r\n" + body)
        said = await (reader.readline() if size else reader.read())
        writer.close()
        await writer.wait_closed()
    return said


@dataclass
class Client:
    """A client of a toolkit with a handshake.

    Attributes:
        house: its gateway.
        key: what it presents; empty before `initialize`.
        path: of the toolkit.
    """

    house: House
    key: str = ""
    path: str = PATH

    def _headers(self, more: dict[str, str]) -> dict[str, str]:
        given = {"MCP-Protocol-Version": RESUMING}
        if self.key:
            given["Mcp-Session-Id"] = self.key
        return given | {name.replace("_", "-"): value for name, value in more.items()}

    async def post(self, body: Any, **headers: str) -> aiohttp.ClientResponse:
        """POST a message; the body of the answer can be read any time."""
        url = self.house.origin + self.path
        posting = self.house.http.post(url, json=body, headers=self._headers(headers))
        async with asyncio.timeout(BOUND), posting as response:
            await response.read()
        return response

    async def opens(self, body: Any = OPEN) -> Any:
        """Send an `initialize`, keep the key, return the result."""
        response = await self.post(body)
        assert response.status == 200, await response.text()
        self.key = response.headers["Mcp-Session-Id"]
        return (await response.json())["result"]

    async def asks(self, body: Any, **headers: str) -> Any:
        """POST a request; return its answer, however it comes."""
        url = self.house.origin + self.path
        given = {"Content-Type": "application/json", **self._headers(headers)}
        data = io.BytesIO(json.dumps(body).encode())
        posting = self.house.http.post(url, data=data, headers=given)
        async with asyncio.timeout(BOUND), posting as response:
            assert response.headers.get("Mcp-Session-Id", self.key) == self.key
            if response.content_type == "text/event-stream":
                return (await Stream(response).rest())[-1]
            return await response.json()

    @asynccontextmanager
    async def asking(self, body: Any) -> AsyncIterator[Stream]:
        """POST a request whose answer shall be a stream."""
        url = self.house.origin + self.path
        async with self.house.http.post(url, json=body, headers=self._headers({})) as response:
            assert response.content_type == "text/event-stream", await response.text()
            yield Stream(response)

    @asynccontextmanager
    async def listening(self, last: str | None = None) -> AsyncIterator[Stream]:
        """Open the toolkit's own stream, or continue the one of a last event id."""
        headers = self._headers({} if last is None else {"Last-Event-ID": last})
        async with self.house.http.get(self.house.origin + self.path, headers=headers) as response:
            assert response.status == 200, await response.text()
            assert response.headers["Mcp-Session-Id"] == self.key
            yield Stream(response)

    async def deletes(self) -> int:
        url = self.house.origin + self.path
        async with self.house.http.delete(url, headers=self._headers({})) as response:
            return response.status

    async def tools(self) -> list[str]:
        """Return the names of the tools that it is told of."""
        told = await self.asks({"jsonrpc": "2.0", "id": "list", "method": "tools/list"})
        return [tool["name"] for tool in told["result"]["tools"]]

    def member_key(self, server: str) -> str:
        """Return the key of its session with a member."""
        toolkit, member = self.house.registry.toolkit("all"), self.house.registry.find(server)
        assert toolkit is not None
        assert member is not None
        return self.house.manager.member_key(self.key, "test", toolkit, member)

    def holds(self, server: str) -> bool:
        """Whether its session with a member lives at its gateway."""
        fingerprint = SessionKeys.fingerprint(self.member_key(server))
        return self.house.manager.directory.get(fingerprint) is not None


@asynccontextmanager
async def client(
    programs: dict[str, Program | None] | None = None, **more: Any
) -> AsyncIterator[tuple[Client, Troupe]]:
    """A client whose session with the toolkit of all servers is open."""
    programs = programs or {"alpha": offering(ECHO, ALONE), "beta": offering(ECHO)}
    async with troupe(programs, **more) as played:
        connected = Client(played.house)
        await connected.opens()
        yield connected, played
