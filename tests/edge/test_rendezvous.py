"""The agents' WebSocket under attack: the offending session ends, and nobody else notices.

The real application on loopback with a launcher that makes no dynos: the test reads the join token
from the launch order and plays the agent, honest or hostile, with the link's own endpoint.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp.test_utils import TestServer
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from dyno_agent.link import (
    PATH,
    SUBPROTOCOL,
    Channel,
    CloseCode,
    Endpoint,
    Hello,
    Message,
    Welcome,
)
from dyno_agent.link.frames import MAX_FRAME_BYTES, Frame, FrameType, encode
from dyno_agent.link.limits import HANDSHAKE_BYTES
from gateway import events
from gateway.app import build
from gateway.registry.servers import Registry, ServerDefinition
from gateway.rendezvous import endpoint as rendezvous
from gateway.sessions.manager import Manager, Terms
from gateway.settings import Settings
from tests.fakes.launchers import RecordingLauncher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.launchers.base import LaunchOrder

BOUND = 10.0
"""Seconds for any one wait; nothing here takes one."""

TOO_BIG = 1009
"""RFC 6455, 7.4.1: the WebSocket library refuses such a frame before we see it."""

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

    def ended(self, order: LaunchOrder) -> bool:
        return any(isinstance(event, events.Closing) for event in self._of(order))


@dataclass
class Agent:
    """An agent played by the test, after its handshake."""

    socket: ClientConnection
    welcome: Welcome
    link: Endpoint = field(init=False)

    def __post_init__(self) -> None:
        self.link = Endpoint(self.welcome.limits, now=time.monotonic())
        self.link.attach(self.welcome.received, time.monotonic())

    async def send(self, channel: Channel, document: Any) -> None:
        self.link.send(channel, json.dumps(document).encode())
        for frame in self.link.frames_to_send(time.monotonic()):
            await self.socket.send(frame)

    async def receive(self) -> Message:
        async with asyncio.timeout(BOUND):
            while True:
                data = await self.socket.recv()
                assert isinstance(data, bytes)
                message = self.link.receive(data, time.monotonic())
                if message is not None:
                    self.link.consumed(message)
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


@pytest_asyncio.fixture
async def house() -> AsyncIterator[House]:
    launcher, ear = RecordingLauncher(), Ear()
    patient = ServerDefinition(name="patient", command="never-run")
    hasty = ServerDefinition(name="hasty", command="never-run", boot_timeout=0.01)
    settings = Settings.model_validate({"api_key": KEY, "host": "127.0.0.1"})
    manager = Manager(launcher, Terms("http://127.0.0.1", b"s" * 32, 10), ear)
    app = build(settings, Registry([patient, hasty]), manager)
    headers = {"X-API-Key": KEY, "Accept": "application/json, text/event-stream"}
    async with TestServer(app) as server, aiohttp.ClientSession(headers=headers) as http:
        yield House(str(server.make_url("")).rstrip("/"), http, launcher, ear)


# -- before the upgrade -------------------------------------------------------------------------


async def test_dial_without_a_credential_is_refused(house: House) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await house.dial(None)
    assert refused.value.response.status_code == 401


GARBAGE = {
    "word": "garbage",
    "no-secret": "rj_0123456789abcdef01234567",
    "empty-secret": "rj_0123456789abcdef01234567.",
    "unknown-launch": "rj_0123456789abcdef01234567.secret",
    "unknown-resume": "rr_0123456789abcdef01234567.secret",
    "api-key": KEY,
}


@pytest.mark.parametrize("credential", GARBAGE.values(), ids=list(GARBAGE))
async def test_credential_that_is_none_of_ours_is_refused(house: House, credential: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await house.dial(credential)
    assert refused.value.response.status_code == 401


@pytest.mark.parametrize("kind", ["rj", "rr"])
async def test_launch_id_without_its_secret_leads_nowhere(house: House, kind: str) -> None:
    """The launch id is public: it stands in the dyno's command line."""
    async with house.asked() as (order, call):
        with pytest.raises(InvalidStatus) as refused:
            await house.dial(f"{kind}_{order.launch_id}.guess")
        assert refused.value.response.status_code == 401
        assert not house.ear.ended(order)
        call.cancel()


async def test_join_token_is_refused_after_the_boot_deadline(house: House) -> None:
    async with house.http.post(f"{house.origin}/servers/hasty/mcp", json=INITIALIZE) as response:
        assert await refusal(response) == (504, -32603, "start_timeout", 1)
    order = house.launcher.orders.get_nowait()
    with pytest.raises(InvalidStatus) as refused:
        await house.dial(token_of(order))
    assert refused.value.response.status_code == 401


async def test_browser_is_refused_even_with_a_token(house: House) -> None:
    async with house.asked() as (order, call):
        with pytest.raises(InvalidStatus) as refused:
            await house.dial(token_of(order), origin=house.origin)
        assert refused.value.response.status_code == 403
        call.cancel()


async def test_other_subprotocol_is_refused(house: House) -> None:
    async with house.asked() as (order, call):
        with pytest.raises(InvalidStatus) as refused:
            await house.dial(token_of(order), subprotocol="rdv.v0")
        assert refused.value.response.status_code == 400
        call.cancel()


async def test_token_is_still_good_after_refused_dials(house: House) -> None:
    async with house.asked() as (order, call):
        for subprotocol, origin in (("rdv.v0", None), (SUBPROTOCOL, house.origin)):
            with pytest.raises(InvalidStatus):
                await house.dial(token_of(order), subprotocol=subprotocol, origin=origin)
        agent = await house.join(order)
        assert agent.welcome.child is not None
        call.cancel()


# -- the handshake ------------------------------------------------------------------------------

OPENINGS: dict[str, str | bytes] = {
    "not-json": "hello",
    "not-an-object": "[]",
    "unknown-kind": '{"kind": "guess"}',
    "number-as-boot-id": '{"kind": "join", "boot_id": 1}',
    "negative-count": '{"kind": "join", "received": -1}',
    "over-the-limit": json.dumps({"kind": "join", "padding": "x" * HANDSHAKE_BYTES}),
    "deeply-nested": "[" * 10_000,
    "binary": hello("first").encode().encode(),
}


@pytest.mark.parametrize("opening", OPENINGS.values(), ids=list(OPENINGS))
async def test_bad_hello_ends_its_session_as_a_breach(house: House, opening: str | bytes) -> None:
    async with house.honest() as (agent, session):
        async with house.asked() as (order, call):
            socket = await house.dial(token_of(order))
            await socket.send(opening)
            assert await close_code(socket) == CloseCode.PROTOCOL_VIOLATION
            assert await house.ear.closed(order) == "breach"
        assert await refusal(call.result()) == (502, -32603, "session_ended", 1)
        await house.works(agent, session)


async def test_hello_over_the_frame_limit_ends_its_session_as_a_breach(house: House) -> None:
    async with house.asked() as (order, call):
        socket = await house.dial(token_of(order))
        await socket.send("x" * (MAX_FRAME_BYTES + 1))
        assert await close_code(socket) == TOO_BIG
        assert await house.ear.closed(order) == "breach"
    assert await refusal(call.result()) == (502, -32603, "session_ended", 1)


async def test_agent_that_never_says_hello_is_dropped_and_its_token_stays_good(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house.asked() as (order, call):
        with monkeypatch.context() as patched:
            patched.setattr(rendezvous, "HANDSHAKE_S", 0.01)
            silent = await house.dial(token_of(order))
            assert await close_code(silent) == 1006
        agent = await house.join(order)
        assert agent.welcome.child is not None
        call.cancel()


@pytest.mark.parametrize("proof", ["", "0" * 63, "\u00e9" * 64], ids=["none", "short", "not-ascii"])
async def test_hello_with_a_proof_that_is_no_hash_is_refused(house: House, proof: str) -> None:
    async with house.honest() as (agent, session):
        async with house.asked() as (order, call):
            socket = await house.dial(token_of(order))
            await socket.send(Hello("join", "first", proof).encode())
            assert await close_code(socket) == CloseCode.BAD_TOKEN
            call.cancel()
        await house.works(agent, session)


async def test_hello_for_a_session_that_ended_meanwhile_is_refused_for_good(house: House) -> None:
    async with house.asked() as (order, call):
        socket = await house.dial(token_of(order))
        call.cancel()  # the client hangs up, which ends the session
        assert await house.ear.closed(order) == "client_gone"
        await socket.send(hello("first").encode())
        code = await close_code(socket)
    assert code in {CloseCode.BAD_TOKEN, CloseCode.SESSION_ENDED}


async def test_token_used_by_a_second_process_ends_the_session_as_a_breach(house: House) -> None:
    async with house.honest() as (bystander, session):
        async with house.asked() as (order, call):
            first = await house.join(order, "first")
            second = await house.dial(token_of(order))
            await second.send(hello("second").encode())
            assert await close_code(second) == CloseCode.REPLAYED_TOKEN
            while (message := await first.receive()).channel is not Channel.CMD:
                assert message.channel is Channel.RPC
            assert json.loads(message.payload) == {"do": "stop"}
            await first.socket.close()
            assert await house.ear.closed(order) == "breach"
        assert await refusal(call.result()) == (502, -32603, "session_ended", 1)
        await house.works(bystander, session)


async def test_second_process_learns_nothing_of_the_child(house: House) -> None:
    """Its environment may hold secrets of the operator."""
    async with house.asked() as (order, _call):
        first = await house.join(order, "first")
        second = await house.dial(token_of(order))
        await second.send(hello("second").encode())
        async with asyncio.timeout(BOUND):
            with pytest.raises(ConnectionClosed):
                await second.recv()
        await first.socket.close()


async def test_same_process_may_join_again_when_its_welcome_was_lost(house: House) -> None:
    async with house.asked() as (order, call):
        await house.join(order, "first")
        agent = await house.join(order, "first")
        assert (agent.welcome.epoch, agent.welcome.child is not None) == (2, True)
        await agent.send(Channel.EVENT, {"event": "spawned", "pid": 1})
        await agent.answer({})
    assert call.result().status == 200
    await agent.socket.close()


# -- after the handshake --------------------------------------------------------------------------


def data(seq: int, ack: int = 0) -> bytes:
    return encode(Frame(FrameType.DATA, True, Channel.EVENT, seq, ack, b"{}"))


ATTACKS: dict[str, tuple[str | bytes, int]] = {
    "text": ("hello again", CloseCode.PROTOCOL_VIOLATION),
    "empty": (b"", CloseCode.PROTOCOL_VIOLATION),
    "short": (b"\x10\x01", CloseCode.PROTOCOL_VIOLATION),
    "garbage": (b"\xff" * 40, CloseCode.PROTOCOL_VIOLATION),
    "sequence-gap": (data(2), CloseCode.PROTOCOL_VIOLATION),
    "sequence-zero": (data(0), CloseCode.PROTOCOL_VIOLATION),
    "ack-of-the-unsent": (data(1, ack=10**6), CloseCode.PROTOCOL_VIOLATION),
    "oversized": (b"\x10" * (MAX_FRAME_BYTES + 1), TOO_BIG),
}


@pytest.mark.parametrize(("frame", "code"), ATTACKS.values(), ids=list(ATTACKS))
async def test_bad_frame_ends_its_session_as_a_breach_and_no_other(
    house: House, frame: str | bytes, code: int
) -> None:
    async with house.honest() as (bystander, session):
        async with house.asked() as (order, call):
            agent = await house.join(order)
            await agent.socket.send(frame)
            assert await close_code(agent.socket) == code
            assert await house.ear.closed(order) == "breach"
        assert await refusal(call.result()) == (502, -32603, "session_ended", 1)
        await house.works(bystander, session)


async def test_claim_to_hold_what_was_never_sent_ends_the_session_as_a_breach(
    house: House,
) -> None:
    async with house.asked() as (order, call):
        socket = await house.dial(token_of(order))
        proof = hashlib.sha256(b"first").hexdigest()
        await socket.send(Hello("join", "first", proof, received=10**6).encode())
        assert await close_code(socket) == CloseCode.PROTOCOL_VIOLATION
        assert await house.ear.closed(order) == "breach"
    assert await refusal(call.result()) == (502, -32603, "session_ended", 1)


async def test_session_that_was_breached_is_unknown_to_its_client(house: House) -> None:
    async with house.honest() as (agent, session):
        await agent.socket.send("hello again")
        assert await close_code(agent.socket) == CloseCode.PROTOCOL_VIOLATION
        response = await house.post({"jsonrpc": "2.0", "id": 3, "method": "ping"}, session)
        assert await refusal(response) == (404, -32001, "unknown_session", 3)


async def test_dyno_of_a_breached_session_is_stopped(house: House) -> None:
    async with house.asked() as (order, _call):
        agent = await house.join(order)
        await agent.socket.send("hello again")
        await house.ear.closed(order)
    assert house.launcher.stopped == [f"fake.{order.launch_id}"]
