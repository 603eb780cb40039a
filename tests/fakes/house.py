"""The real gateway in this process, and agents played by the test.

A launcher that makes no dynos records its orders; the test reads the join token from one and plays
the agent, honest or hostile. A played agent reads, acknowledges and remembers by itself, with the
link's own endpoint and the real agent's memory; what its child says is the test's.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.test_utils import TestServer
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from dyno_agent.link import (
    CAPSULE_HEADER,
    PATH,
    SUBPROTOCOL,
    Channel,
    Endpoint,
    Hello,
    Message,
    Welcome,
)
from dyno_agent.link.handshake import is_parked
from dyno_agent.link.resumption import Replayed
from dyno_agent.retained import Retained
from gateway import events
from gateway.app import build, performing
from gateway.registry.servers import Registry, ServerDefinition
from gateway.sessions.keys import SessionKeys
from gateway.sessions.live import OwnedLive
from gateway.sessions.manager import Manager
from gateway.sessions.terms import Terms
from gateway.settings import Settings
from gateway.store.memory import MemoryStore
from tests.fakes.launchers import RecordingLauncher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from gateway.deployment import Deployment
    from gateway.launchers.base import LaunchOrder
    from gateway.store.base import Store

BOUND = 30.0
"""Seconds for any one wait; nothing here takes one."""

KEY, OTHER_KEY = "key-of-the-test", "key-of-somebody-else"

SECRET = b"s" * 32

RESUMING = "2025-11-25"
"""A revision whose clients come back for the rest of a stream."""

INITIALIZE = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}}

LASTING = Terms("http://127.0.0.1", SECRET, 10, hand_over=True)
"""Of a deployment whose sessions outlive the gateway process."""

SERVERS = (
    ServerDefinition(name="patient", command="never-run", era="legacy", catalogue=False),
    ServerDefinition(
        name="hasty", command="never-run", boot_timeout=0.01, era="legacy", catalogue=False
    ),
)


async def eventually(happened: Callable[[], object]) -> None:
    """Wait for something inside the gateway that nobody announces."""
    async with asyncio.timeout(BOUND):
        while not happened():  # noqa: ASYNC110 - both ends are on this loop, and it is soon
            await asyncio.sleep(0)


class Ear:
    """Hears all events and lets tests wait for one."""

    def __init__(self) -> None:
        self.heard: list[events.Event] = []
        self._news = asyncio.Event()

    def __call__(self, event: events.Event) -> None:
        self.heard.append(event)
        self._news.set()

    def _of(self, order: LaunchOrder | Agent) -> list[events.Event]:
        begun = (events.Launching, events.Hydrated)
        begins = [event for event in self.heard if isinstance(event, begun)]
        (session,) = {event.session for event in begins if event.launch == order.launch_id}
        return [
            event
            for event in self.heard
            if isinstance(event, events.SessionEvent) and event.session == session
        ]

    async def closed(self, order: LaunchOrder | Agent) -> str:
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

    def ended(self, order: LaunchOrder | Agent) -> bool:
        return any(isinstance(event, events.Closing) for event in self._of(order))

    def breaches(self, order: LaunchOrder | Agent) -> list[str]:
        """The causes of this session's breaches."""
        return [event.cause for event in self._of(order) if isinstance(event, events.Breach)]

    def names(self) -> list[str]:
        return [event.name for event in self.heard]


class Agent:
    """An agent played by the test. One object lives through all its attachments.

    Args:
        launch_id: of the launch it belongs to.
        boot_id: names its process; also what it uses as its resume secret.

    Attributes:
        socket: the current WebSocket.
        welcome: what it was answered with.
        end: its end of the link.
        eats: whether its child takes messages as they come; if not, they are not acknowledged.
        beats: whether it sends heartbeats.
        close_codes: how its attachments ended.
        routed: what the gateway told of messages that name no call.
    """

    socket: ClientConnection
    welcome: Welcome
    end: Endpoint

    def __init__(self, launch_id: str, boot_id: str = "first") -> None:
        self.launch_id = launch_id
        self.boot_id = boot_id
        self.eats = self.beats = True
        self.close_codes: list[int | None] = []
        self.routed: list[tuple[int, str | None]] = []
        self._retained = Retained()
        self._inbox: asyncio.Queue[Message] = asyncio.Queue(10_000)
        self._writing = asyncio.Lock()
        self._news = asyncio.Event()
        self._joined = False

    def hello(self) -> Hello:
        """What it says first: a join once, a resume later."""
        said = hello(self.boot_id)
        if not self._joined:
            return said
        received, confirmed = self.end.received, self.end.confirmed
        return Hello("resume", said.boot_id, said.proof, received, confirmed, *self.end.held)

    @property
    def credential(self) -> str:
        """What it resumes with."""
        return f"rr_{self.launch_id}.{self.boot_id}"

    async def welcomed(self, socket: ClientConnection, welcome: Welcome) -> None:
        """Continue the link on a new attachment, as `dyno_agent.agent.Agent` does."""
        if not self._joined:
            self.end = Endpoint(welcome.limits, now=time.monotonic(), on_taken=self._taken)
        self._joined = True
        self.socket, self.welcome = socket, welcome
        self.end.detach()
        if welcome.fresh:
            self.end.peer_restarted()
            unconfirmed = self.end.unconfirmed(Channel.RPC)
            for page in self._retained.journal(unconfirmed, time.monotonic()):
                await socket.send(page)
        self.end.attach(welcome.received, time.monotonic())
        await self.flush()

    async def read(self, socket: ClientConnection) -> None:
        """Read one attachment to its end."""
        with suppress(ConnectionClosed):
            while True:
                deadline = self.end.deadline() if self.beats else None
                try:
                    async with asyncio.timeout_at(deadline):
                        data = await socket.recv()
                except TimeoutError:
                    await self._write(socket, self.end.tick(time.monotonic()))
                    continue
                assert isinstance(data, bytes)
                self._take(self.end.receive(data, time.monotonic()))
                self._news.set()
                await self.flush()
        if self.socket is socket:
            self.end.detach()
        self.close_codes.append(socket.close_code)
        self._news.set()

    def _take(self, message: Message | None) -> None:
        if message is None:
            return
        if message.channel is Channel.RPC:
            self._retained.given(message.payload, time.monotonic())
            self._inbox.put_nowait(message)
            if self.eats:
                self.end.consumed(message)
            return
        self.end.consumed(message)
        match json.loads(message.payload):
            case {"do": "routed", "seq": int(seq), "to": where, "at": int(at)}:
                self.routed.append((seq, where))
                self._retained.routed(seq, where, at)
            case {"do": "replay", "ticket": int(ticket), "to": where, "after": int(after)}:
                unconfirmed = self.end.unconfirmed(Channel.RPC)
                wanted, held = self._retained.replay(where, after, unconfirmed, time.monotonic())
                last = (0, b"held" if held else b"")
                for seq, raw in (*wanted, last):
                    self.end.send(Channel.REPLAY, Replayed(ticket, seq, raw).encode())
            case _:
                self._inbox.put_nowait(message)

    def _taken(self, message: Message) -> None:
        if message.channel is Channel.RPC:
            self._retained.taken(message, time.monotonic())

    async def send(self, channel: Channel, document: Any) -> None:
        self.end.send(channel, json.dumps(document).encode())
        await self.flush()

    async def say(self, document: Any) -> None:
        """The child writes a message."""
        await self.send(Channel.RPC, document)

    async def flush(self) -> None:
        await self._write(self.socket, [])

    async def _write(self, socket: ClientConnection, first: list[bytes]) -> None:
        async with self._writing:  # two writers would mix up the order of frames
            with suppress(ConnectionClosed):  # what was lost is replayed
                frames = first + self.end.frames_to_send(time.monotonic())
                while frames:
                    for frame in frames:
                        await socket.send(frame)
                    frames = self.end.frames_to_send(time.monotonic())

    async def receive(self) -> Message:
        """Return the next message of the client, or command that is not about resuming."""
        async with asyncio.timeout(BOUND):
            return await self._inbox.get()

    def received(self) -> list[Any]:
        """What came and was not taken by `receive`; takes it."""
        return [json.loads(self._inbox.get_nowait().payload) for _ in range(self._inbox.qsize())]

    async def eat(self) -> None:
        """Let the child take all that it left lying."""
        self.eats = True
        for _ in range(self._inbox.qsize()):
            self.end.consumed(self._inbox.get_nowait())
        await self.flush()

    async def answer(self, result: Any) -> Any:
        """Take one request of the client and answer it; return the request."""
        request = json.loads((await self.receive()).payload)
        await self.say({"jsonrpc": "2.0", "id": request["id"], "result": result})
        return request

    async def boots(self) -> Any:
        """The child runs, and answers `initialize`; return that."""
        await self.send(Channel.EVENT, {"event": "spawned", "pid": 1})
        return await self.answer({"protocolVersion": "2025-11-25"})

    async def until(self, happened: Callable[[], bool]) -> None:
        """Wait for something that comes to pass by what the gateway sends."""
        async with asyncio.timeout(BOUND):
            while not happened():
                self._news.clear()
                await self._news.wait()

    def cut(self) -> None:
        """Lose the connection without a word."""
        self.socket.transport.abort()
        self.end.detach()

    async def leaves(self) -> None:
        await self.socket.close()


@dataclass(frozen=True)
class Item:
    """One item of an SSE stream: its id and its message, None for a priming event."""

    id: str | None
    message: Any


class Stream:
    """A client's SSE response."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.last = ""
        """The id of the last event, as a client keeps it."""

    async def next(self) -> Item | None:
        """Return the next event with an id or data; None at a clean end of the stream."""
        while True:
            async with asyncio.timeout(BOUND):
                try:
                    block = await self.response.content.readuntil(b"\n\n")
                except ValueError as error:
                    raise AssertionError("an event over the reader's limit") from error
            if not block:
                return None
            lines = block.decode().split("\n")
            fields = dict(
                line.split(": ", 1) for line in lines if not line.startswith(":") and line
            )
            if "id" in fields or "data" in fields:
                self.last = fields.get("id", self.last)
                text = fields.get("data", "")
                return Item(fields.get("id"), json.loads(text) if text else None)

    async def message(self) -> Any:
        """Return the next message, past a priming event."""
        while (item := await self.next()) is not None:
            if item.message is not None:
                return item.message
        raise AssertionError("the stream ended")

    async def rest(self) -> list[Any]:
        """Return all messages up to the end of the stream."""
        found = []
        while (item := await self.next()) is not None:
            found.append(item.message)
        return [message for message in found if message is not None]

    def hang_up(self) -> None:
        self.response.close()


@dataclass
class House:
    """A gateway in this process, its launcher and its events."""

    origin: str
    http: aiohttp.ClientSession
    launcher: RecordingLauncher
    ear: Ear
    manager: Manager
    tasks: asyncio.TaskGroup
    registry: Registry
    agents: list[Agent] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.origin}/servers/patient/mcp"

    def age(self, seconds: float) -> None:
        """Let this process, which is alone, have been up for longer than it has."""
        store = self.manager.store
        assert isinstance(store, MemoryStore)
        store._started -= seconds
        store._engine.blank_since -= seconds

    async def post(
        self, body: Any, session: str | None = None, revision: str | None = None
    ) -> aiohttp.ClientResponse:
        headers = _headers(session, revision)
        async with self.http.post(self.url, json=body, headers=headers) as response:
            await response.read()
        return response

    @asynccontextmanager
    async def asking(
        self, body: Any, session: str, revision: str | None = RESUMING
    ) -> AsyncIterator[Stream]:
        """POST a request whose answer shall be a stream."""
        headers = _headers(session, revision)
        async with self.http.post(self.url, json=body, headers=headers) as response:
            assert response.content_type == "text/event-stream", await response.text()
            yield Stream(response)

    @asynccontextmanager
    async def listening(
        self, session: str, last: str | None = None, revision: str | None = RESUMING
    ) -> AsyncIterator[Stream]:
        """Open a GET stream, or continue the one of a last event id."""
        headers = _headers(session, revision)
        if last is not None:
            headers["Last-Event-ID"] = last
        async with self.http.get(self.url, headers=headers) as response:
            assert response.status == 200, await response.text()
            yield Stream(response)

    def live(self, session: str) -> OwnedLive:
        """What the gateway holds of a session."""
        live = self.manager.directory.get(SessionKeys.fingerprint(session))
        assert isinstance(live, OwnedLive)
        return live

    async def abandoned(self, session: str, request_id: int | str) -> None:
        """Wait until the gateway knows that the client of a call has hung up."""
        table = self.live(session).session._table
        await eventually(lambda: (call := table.get(request_id)) and call.stream is None)

    async def taken_up(self, session: str, request_id: int | str) -> None:
        """Wait until a client listens for the answer of a call."""
        table = self.live(session).session._table
        await eventually(lambda: (call := table.get(request_id)) and call.stream is not None)

    async def delete(self, session: str) -> int:
        async with self.http.delete(self.url, headers=_headers(session, None)) as response:
            return response.status

    @asynccontextmanager
    async def asked(self) -> AsyncIterator[tuple[LaunchOrder, asyncio.Task[Any]]]:
        """A client sends `initialize`: yields the launch it caused and the call that waits."""
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            call = group.create_task(self.post(INITIALIZE))
            yield await self.launcher.orders.get(), call

    async def booted(self) -> tuple[Agent, str]:
        """Return the agent of a new session whose child has answered, and the session's key."""
        async with self.asked() as (order, call):
            agent = await self.join(order)
            await agent.boots()
        response = call.result()
        assert response.status == 200
        return agent, response.headers["Mcp-Session-Id"]

    @asynccontextmanager
    async def honest(self) -> AsyncIterator[tuple[Agent, str]]:
        """A session whose agent does as it should: yields the agent and the session's key."""
        agent, session = await self.booted()
        try:
            yield agent, session
        finally:
            await agent.leaves()

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
        capsule: str = "",
    ) -> ClientConnection:
        """Open the WebSocket, up to and without the HELLO."""
        bearer = {} if credential is None else {"Authorization": f"Bearer {credential}"}
        foreign = {} if origin is None else {"Origin": origin}
        carried = {CAPSULE_HEADER: capsule} if capsule else {}
        return await connect(
            "ws" + self.origin.removeprefix("http") + PATH,
            additional_headers={**bearer, **foreign, **carried},
            subprotocols=[Subprotocol(subprotocol)],
            compression=None,
            ping_interval=None,
            open_timeout=BOUND,
            close_timeout=BOUND,
            proxy=None,
        )

    async def join(self, order: LaunchOrder, boot_id: str = "first") -> Agent:
        agent = Agent(order.launch_id, boot_id)
        return await self._attached(agent, await self.dial(token_of(order)))

    async def park(self, token: str, boot_id: str = "first") -> Agent:
        """Dial as the agent of a dyno that no session was asked for, up to the word to wait."""
        agent = Agent(token.removeprefix("rj_").partition(".")[0], boot_id)
        return await self.park_again(agent, token)

    async def park_again(self, agent: Agent, token: str) -> Agent:
        """Dial once more with the same process."""
        agent.socket = await self.dial(token)
        await agent.socket.send(agent.hello().encode())
        async with asyncio.timeout(BOUND):
            answer = await agent.socket.recv()
        assert isinstance(answer, str)
        assert is_parked(answer)
        self.agents.append(agent)
        return agent

    async def adopted(self, agent: Agent) -> Agent:
        """Wait until a session wants a parked agent, and let it serve that."""
        answer = '{"parked": true}'
        async with asyncio.timeout(BOUND):
            while is_parked(answer):
                said = await agent.socket.recv()
                assert isinstance(said, str)
                answer = said
        await agent.welcomed(agent.socket, Welcome.decode(answer))
        self.tasks.create_task(agent.read(agent.socket))
        return agent

    async def resume(self, agent: Agent) -> Agent:
        """Let an agent dial this gateway again, or for the first time with what it carries."""
        capsule = agent.welcome.capsule
        return await self._attached(agent, await self.dial(agent.credential, capsule=capsule))

    async def _attached(self, agent: Agent, socket: ClientConnection) -> Agent:
        await socket.send(agent.hello().encode())
        async with asyncio.timeout(BOUND):
            answer = await socket.recv()
        assert isinstance(answer, str)
        await agent.welcomed(socket, Welcome.decode(answer))
        self.tasks.create_task(agent.read(socket))
        self.agents.append(agent)
        return agent


@asynccontextmanager
async def opened(
    launcher: RecordingLauncher | None = None,
    terms: Terms | None = None,
    servers: tuple[ServerDefinition, ...] = SERVERS,
    platform: Deployment | None = None,
    store: Store | None = None,
    **more: Any,
) -> AsyncIterator[House]:
    """Serve a gateway until the block is left.

    Args:
        launcher: shared with another gateway, or None for a new one.
        terms: of the deployment; None for one whose sessions end with its process.
        servers: what it serves; clients of `House` use the one called patient.
        platform: where it runs; None for a gateway without operators and webhooks.
        store: what it shares with others; None for one that is alone.
        more: settings.
    """
    launcher, ear = launcher or RecordingLauncher(), Ear()
    settings = Settings.model_validate(
        {"api_key": f"test:{KEY},other:{OTHER_KEY}", "bind_host": "127.0.0.1", **more}
    )
    registry = Registry(list(servers))
    terms = terms or Terms("http://127.0.0.1", SECRET, 10)
    manager = Manager(launcher, registry, terms, ear, store)
    headers = {"X-API-Key": KEY, "Accept": "application/json, text/event-stream"}
    # As `gateway.app.serve` runs it.
    app = build(settings, registry, manager, platform)
    server = TestServer(app, handler_cancellation=True)
    await server.start_server()
    assert server.runner is not None
    async with (
        asyncio.TaskGroup() as tasks,
        server,
        performing(app, server.runner, manager),
        aiohttp.ClientSession(headers=headers, read_bufsize=2**20) as http,
    ):
        origin = str(server.make_url("")).rstrip("/")
        house = House(origin, http, launcher, ear, manager, tasks, registry)
        try:
            yield house
        finally:
            for agent in house.agents:
                await agent.leaves()


def _headers(session: str | None, revision: str | None) -> dict[str, str]:
    headers = {} if session is None else {"Mcp-Session-Id": session}
    if revision is not None:
        headers["MCP-Protocol-Version"] = revision
    return headers


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
