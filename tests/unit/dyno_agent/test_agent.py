"""The whole agent against a scripted gateway: a real WebSocket on loopback and real children.

The gateway of these tests is the same link `Endpoint` behind a small server. It accepts, refuses,
cuts the wire and leaves messages unconsumed when a test says so.
"""

import asyncio
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus

import psutil
import pytest
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from dyno_agent.agent import Agent
from dyno_agent.child import CHUNK_BYTES, Child
from dyno_agent.config import Config, take_config
from dyno_agent.link import (
    CAPSULE_HEADER,
    PATH,
    SUBPROTOCOL,
    Channel,
    ChildSpec,
    CloseCode,
    Endpoint,
    Hello,
    Limits,
    Message,
    Welcome,
)
from dyno_agent.link.frames import FrameType, decode
from dyno_agent.link.resumption import GENERAL, JournalPage, Replayed, digest, position

PATIENCE_S = 15
TOKEN = "rj_launch.secret-of-the-launch"  # noqa: S105 - of this file alone
ENVIRONMENT = {"PATH": os.environ["PATH"]}
LIMITS = Limits(
    message_bytes=100_000,
    window_bytes=200_000,
    window_frames=256,
    heartbeat_s=15.0,
    dead_s=50.0,
    ack_bytes=1000,
    ack_frames=1,
)
BEATING = Limits(
    message_bytes=100_000,
    window_bytes=200_000,
    window_frames=256,
    heartbeat_s=0.05,
    dead_s=50.0,
    ack_bytes=1000,
    ack_frames=1,
)
"""An agent that has nothing more to say shows it by heartbeats."""

ECHO = "import sys\nfor line in sys.stdin.buffer: sys.stdout.buffer.write(line); sys.stdout.flush()"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
FLOOD_LINES = 400
FLOOD = f"""
import sys
for number in range({FLOOD_LINES}):
    sys.stdout.write(f"{{number}}".rjust(20_000, "x") + "\\n")
sys.stdout.flush()
sys.stdin.read()
"""
CHATTY = """
import sys
for _ in range(int(sys.argv[1])):
    print("x" * 500, file=sys.stderr)
print("written", flush=True)
for line in sys.stdin.buffer:
    print("last", file=sys.stderr, flush=True)
    sys.stdout.buffer.write(line)
    sys.stdout.flush()
"""


def python(code: str, *arguments: str, **env: str) -> ChildSpec:
    return ChildSpec((sys.executable, "-ISc", code, *arguments), env)


class Gateway:
    """A scripted gateway for one session."""

    def __init__(self, child: ChildSpec | None, limits: Limits = LIMITS) -> None:
        self.child = child
        self.limits = limits
        self.orphan_s = 60.0
        self.grace_s = 10.0
        self.consuming = True
        self.refusals: list[HTTPStatus] = []
        self.refuse_from_now: HTTPStatus | None = None
        self.close_instead_of_welcome: int | None = None
        self.requests: list[Request] = []
        self.hellos: list[Hello] = []
        self.close_codes: list[int | None] = []
        self.messages: list[Message] = []
        self.unconsumed: list[Message] = []
        self.beats_in_a_row = 0
        self.capsule = ""
        self.forgetful = False
        self.pages: list[JournalPage] = []
        self.endpoint = Endpoint(limits, now=time.monotonic())
        self.connection: ServerConnection | None = None
        self._changed = asyncio.Event()
        self._server: Server | None = None

    @property
    def url(self) -> str:
        assert self._server is not None
        (listening,) = self._server.sockets
        return f"http://127.0.0.1:{listening.getsockname()[1]}"

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        async with serve(
            self._attached,
            "127.0.0.1",
            0,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            compression=None,
            process_request=self._admit,
            close_timeout=1,
        ) as self._server:
            yield

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        self.requests.append(request)
        self._changed.set()
        status = self.refusals.pop(0) if self.refusals else self.refuse_from_now
        return None if status is None else connection.respond(status, "")

    async def _attached(self, connection: ServerConnection) -> None:
        text = await connection.recv()
        assert isinstance(text, str)
        hello = Hello.decode(text)
        self.hellos.append(hello)
        if self.close_instead_of_welcome is not None:
            await connection.close(self.close_instead_of_welcome)
            return
        if self.forgetful:
            self.endpoint = Endpoint(self.limits, now=time.monotonic())
            held = (hello.held_bytes, hello.held_frames)
            self.endpoint.adopt(hello.received, hello.confirmed, held)
        await connection.send(self._welcome(hello).encode())
        while self.forgetful:
            page = await connection.recv()
            assert isinstance(page, str)
            self.pages.append(JournalPage.decode(page))
            self.forgetful = not self.pages[-1].last
        self.endpoint.detach()
        self.endpoint.attach(hello.received, time.monotonic())
        self.connection = connection
        self._changed.set()
        with suppress(ConnectionClosed):
            await self.flush()
            async for data in connection:
                assert isinstance(data, bytes)
                await self._take(data)
        self.close_codes.append(connection.close_code)
        self._changed.set()

    def _welcome(self, hello: Hello) -> Welcome:
        return Welcome(
            epoch=len(self.hellos),
            received=self.endpoint.received,
            limits=self.limits,
            orphan_s=self.orphan_s,
            grace_s=self.grace_s,
            child=self.child if hello.kind == "join" else None,
            fresh=self.forgetful,
            capsule=self.capsule,
        )

    async def _take(self, data: bytes) -> None:
        beat = decode(data).type is FrameType.HEARTBEAT
        self.beats_in_a_row = self.beats_in_a_row + 1 if beat else 0
        message = self.endpoint.receive(data, time.monotonic())
        if message is not None:
            self.messages.append(message)
            self.unconsumed.append(message)
        if self.consuming:
            await self.consume()
        self._changed.set()

    async def consume(self) -> None:
        self.consuming = True
        for message in self.unconsumed:
            self.endpoint.consumed(message)
        self.unconsumed.clear()
        await self.flush()

    async def flush(self) -> None:
        assert self.connection is not None
        while frames := self.endpoint.frames_to_send(time.monotonic()):
            for frame in frames:
                await self.connection.send(frame)

    async def send(self, channel: Channel, payload: bytes) -> None:
        self.endpoint.send(channel, payload)
        with suppress(ConnectionClosed):  # it will be replayed
            await self.flush()

    def cut(self) -> None:
        assert self.connection is not None
        self.connection.transport.abort()

    async def cut_and_taken_back(self) -> None:
        before = self.connection
        self.cut()
        await self.until(lambda: self.connection is not before)

    async def replaced(self) -> None:
        """Another process takes the agent over: it knows nothing that the agent does not tell."""
        self.messages.clear()
        self.unconsumed.clear()
        self.forgetful = True
        await self.cut_and_taken_back()

    async def tell(self, **command: object) -> None:
        await self.send(Channel.CMD, json.dumps(command).encode())

    def replayed(self) -> list[Replayed]:
        return [
            Replayed.decode(each.payload)
            for each in self.messages
            if each.channel is Channel.REPLAY
        ]

    async def until(self, happened: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not happened():
                self._changed.clear()
                await self._changed.wait()

    def rpc(self) -> list[bytes]:
        return [message.payload for message in self.messages if message.channel is Channel.RPC]

    def documents(self, channel: Channel) -> list[dict[str, object]]:
        return [json.loads(each.payload) for each in self.messages if each.channel is channel]

    def event(self, name: str) -> dict[str, object]:
        """Return the only event of that name."""
        (event,) = [each for each in self.documents(Channel.EVENT) if each["event"] == name]
        return event

    async def until_spawned(self) -> None:
        await self.until(lambda: bool(self.documents(Channel.EVENT)))


class Running:
    """An agent and the task that runs it."""

    def __init__(self, agent: Agent, task: asyncio.Task[int]) -> None:
        self.agent = agent
        self._task = task

    async def status(self) -> int:
        async with asyncio.timeout(PATIENCE_S):
            return await self._task

    async def stop(self) -> int:
        self.agent.leave("test over")
        return await self.status()


@asynccontextmanager
async def joined(
    gateway: Gateway, environment: dict[str, str] | None = None
) -> AsyncIterator[Running]:
    """Serve and run an agent; kill its children when the test fails."""
    async with gateway.serving(), asyncio.TaskGroup() as tasks:
        config = Config(gateway.url, TOKEN, 10.0, "run.4711")
        agent = Agent(config, ENVIRONMENT if environment is None else environment)
        task = tasks.create_task(agent.run())
        try:
            yield Running(agent, task)
        finally:
            if not task.done():
                for process in psutil.Process().children(recursive=True):
                    process.kill()
                task.cancel()


@pytest.fixture(autouse=True)
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keep the process of the tests as it is, and note the order of the steps."""
    taken: list[str] = []
    spawn = Child.spawn

    async def noted(spec: ChildSpec, environment: dict[str, str]) -> Child:
        taken.append("spawn")
        return await spawn(spec, environment)

    monkeypatch.setattr("dyno_agent.agent.harden", lambda: taken.append("harden"))
    monkeypatch.setattr("dyno_agent.agent.Child.spawn", noted)
    return taken


# Joining


async def test_join_token_travels_in_the_header_and_in_nothing_else() -> None:
    gateway = Gateway(python(ECHO))
    async with joined(gateway) as running:
        await gateway.until_spawned()
        await running.stop()
    (request,) = gateway.requests
    assert request.path == PATH
    assert request.headers["Authorization"] == f"Bearer {TOKEN}"
    assert [name for name, value in request.headers.raw_items() if TOKEN in value] == [
        "Authorization"
    ]
    assert TOKEN not in gateway.hellos[0].encode()


async def test_hello_of_a_join_says_who_and_proves_a_secret() -> None:
    gateway = Gateway(python(ECHO))
    async with joined(gateway) as running:
        await gateway.until_spawned()
        await running.stop()
    (hello,) = gateway.hellos
    assert (hello.kind, hello.received, hello.dyno) == ("join", 0, "run.4711")
    assert len(bytes.fromhex(hello.proof)) == 32
    assert len(hello.boot_id) == 32


async def test_agent_dials_again_when_the_gateway_is_not_there_yet() -> None:
    gateway = Gateway(python(ECHO))
    gateway.refusals = [HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.NOT_FOUND]
    async with joined(gateway) as running:
        await gateway.until_spawned()
        assert await running.stop() == 0
    assert len(gateway.requests) == 3


@pytest.mark.parametrize("status", [HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN])
async def test_agent_leaves_when_its_token_is_refused(status: HTTPStatus) -> None:
    gateway = Gateway(python(ECHO))
    gateway.refuse_from_now = status
    async with joined(gateway) as running:
        assert await running.status() == 1
    assert len(gateway.requests) == 1


@pytest.mark.parametrize("code", [CloseCode.BAD_TOKEN, CloseCode.SESSION_ENDED])
async def test_agent_leaves_when_closed_for_good_instead_of_welcomed(code: CloseCode) -> None:
    gateway = Gateway(python(ECHO))
    gateway.close_instead_of_welcome = code
    async with joined(gateway) as running:
        assert await running.status() == 1
    assert len(gateway.requests) == 1


async def test_agent_that_is_told_nothing_to_run_leaves(steps: list[str]) -> None:
    async with joined(Gateway(None)) as running:
        assert await running.status() == 1
    assert steps == []


async def test_agent_leaves_when_asked_to_before_it_has_joined() -> None:
    gateway = Gateway(python(ECHO))
    gateway.refuse_from_now = HTTPStatus.SERVICE_UNAVAILABLE
    async with joined(gateway) as running:
        await gateway.until(lambda: len(gateway.requests) > 1)
        assert await running.stop() == 1


# The child


async def test_agent_hardens_itself_before_the_child_exists(steps: list[str]) -> None:
    gateway = Gateway(python(ECHO))
    async with joined(gateway) as running:
        await gateway.until_spawned()
        await running.stop()
    assert steps == ["harden", "spawn"]


async def test_child_is_what_the_welcome_says() -> None:
    code = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ['KEY']]))"
    gateway = Gateway(python(code, "a b", "$HOME", KEY="välue"))
    async with joined(gateway) as running:
        assert await running.status() == 0
    assert [json.loads(message) for message in gateway.rpc()] == [[["a b", "$HOME"], "välue"]]


async def test_child_sees_nothing_of_the_agents_settings() -> None:
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    gateway = Gateway(python(code))
    environment = {
        **ENVIRONMENT,
        "RENDEZVOUS_URL": "https://gw.example.com",
        "RENDEZVOUS_JOIN_TOKEN": TOKEN,
        "RENDEZVOUS_START_DEADLINE_S": "10",
        "DYNO": "run.4711",
    }
    take_config(environment)
    async with joined(gateway, environment) as running:
        assert await running.status() == 0
    (seen,) = [json.loads(message) for message in gateway.rpc()]
    assert seen["DYNO"] == "run.4711"
    assert [name for name, value in seen.items() if "RENDEZVOUS" in name or TOKEN in value] == []


async def test_messages_pass_byte_for_byte_in_both_directions() -> None:
    gateway = Gateway(python(ECHO))
    messages = [b"{}", bytes(range(33, 256)), b'"\xe2\x80\xa8"', b"x" * 99_999, b"[1]"]
    async with joined(gateway) as running:
        await gateway.until_spawned()
        for message in messages:
            await gateway.send(Channel.RPC, message)
        await gateway.until(lambda: len(gateway.rpc()) == len(messages))
        await running.stop()
    assert gateway.rpc() == messages


async def test_oversized_line_is_told_and_the_next_one_passes() -> None:
    gateway = Gateway(python(f"print('x' * {LIMITS.message_bytes + 1}); print('[1]')"))
    async with joined(gateway) as running:
        assert await running.status() == 0
    assert gateway.event("oversized") == {
        "event": "oversized",
        "bytes": LIMITS.message_bytes + 1,
        "limit": LIMITS.message_bytes,
    }
    assert gateway.rpc() == [b"[1]"]


async def test_exit_is_reported_with_the_tail_of_stderr_and_is_the_agents_own() -> None:
    gateway = Gateway(python("import sys; sys.stderr.write('one\\nboom'); sys.exit(7)"))
    async with joined(gateway) as running:
        assert await running.status() == 7
    exited = gateway.event("exited")
    seconds = exited.pop("seconds")
    assert isinstance(seconds, float)
    assert exited == {
        "event": "exited",
        "why": "exit",
        "code": 7,
        "signal": None,
        "asked": False,
        "stderr_tail": "one\nboom",
    }
    assert gateway.documents(Channel.LOG) == [{"stderr": "one"}, {"stderr": "boom"}]
    assert gateway.close_codes == [CloseCode.NORMAL]


async def test_death_by_signal_is_reported_and_becomes_a_shells_status() -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    gateway = Gateway(python(code))
    async with joined(gateway) as running:
        assert await running.status() == 128 + signal.SIGKILL
    exited = gateway.event("exited")
    assert (exited["code"], exited["signal"], exited["asked"]) == (None, "SIGKILL", False)


async def test_command_that_cannot_be_started_is_reported() -> None:
    gateway = Gateway(ChildSpec(("no-such-server",)))
    async with joined(gateway) as running:
        assert await running.status() == 127
    assert gateway.documents(Channel.EVENT) == [
        {
            "event": "spawn_failed",
            "message": "command not found: no-such-server "
            "(is it installed in the dyno, and on its PATH?)",
        }
    ]


async def test_stop_ends_the_child() -> None:
    gateway = Gateway(python(ECHO))
    async with joined(gateway) as running:
        await gateway.until_spawned()
        await gateway.send(Channel.CMD, b'{"do": "stop"}')
        assert await running.status() == 0
    exited = gateway.event("exited")
    assert (exited["why"], exited["code"], exited["asked"]) == ("stop", 0, True)


async def test_leaving_on_a_signal_ends_the_child_and_says_so() -> None:
    gateway = Gateway(python(ECHO))
    async with joined(gateway) as running:
        await gateway.until_spawned()
        running.agent.leave("SIGTERM")
        assert await running.status() == 0
    exited = gateway.event("exited")
    assert (exited["why"], exited["code"], exited["asked"]) == ("SIGTERM", 0, True)


# A link that breaks


async def test_agent_resumes_with_the_secret_it_proved_when_it_joined() -> None:
    gateway = Gateway(python(ECHO))
    async with joined(gateway) as running:
        await gateway.until_spawned()
        await gateway.cut_and_taken_back()
        await running.stop()
    join, resume = gateway.hellos
    scheme, _, credential = gateway.requests[1].headers["Authorization"].partition(" ")
    name, _, secret = credential.partition(".")
    assert (scheme, name) == ("Bearer", "rr_launch")
    assert hashlib.sha256(secret.encode()).hexdigest() == join.proof == resume.proof
    assert (resume.kind, resume.boot_id) == ("resume", join.boot_id)
    assert secret not in resume.encode()


async def test_resume_tells_what_the_agent_holds() -> None:
    gateway = Gateway(python(ECHO))
    async with joined(gateway) as running:
        await gateway.until_spawned()
        for message in (b"1", b"2", b"3"):
            await gateway.send(Channel.RPC, message)
        await gateway.until(lambda: gateway.rpc() == [b"1", b"2", b"3"])
        await gateway.cut_and_taken_back()
        await running.stop()
    assert [hello.received for hello in gateway.hellos] == [0, 3]


async def test_nothing_is_lost_when_the_socket_is_cut_again_and_again() -> None:
    gateway = Gateway(python(ECHO))
    messages = [b"%d" % number + b"x" * (number * 37 % 9000) for number in range(120)]
    async with joined(gateway) as running:
        await gateway.until_spawned()
        for number, message in enumerate(messages):
            await gateway.send(Channel.RPC, message)
            if number % 40 == 39:
                await gateway.until(lambda: len(gateway.rpc()) > gateway.endpoint.sent - 30)
                await gateway.cut_and_taken_back()
        await gateway.until(lambda: len(gateway.rpc()) == len(messages))
        assert await running.stop() == 0
    assert gateway.rpc() == messages
    assert len(gateway.hellos) == 4


async def test_child_outlives_the_cut_and_is_not_spawned_again(steps: list[str]) -> None:
    gateway = Gateway(python(ECHO))
    async with joined(gateway) as running:
        await gateway.until_spawned()
        await gateway.cut_and_taken_back()
        await gateway.send(Channel.RPC, b"still there")
        await gateway.until(lambda: gateway.rpc() == [b"still there"])
        await running.stop()
    assert steps.count("spawn") == 1


async def test_session_that_ended_takes_the_agent_and_its_child_with_it() -> None:
    gateway = Gateway(python(ECHO + "\nsys.exit(3)"))
    async with joined(gateway) as running:
        await gateway.until_spawned()
        pid = gateway.event("spawned")["pid"]
        assert gateway.connection is not None
        await gateway.connection.close(CloseCode.SESSION_ENDED)
        assert await running.status() == 3
        assert isinstance(pid, int)
        assert not psutil.pid_exists(pid)
    assert len(gateway.requests) == 1


async def test_resume_credential_that_is_refused_ends_the_agent() -> None:
    gateway = Gateway(python(ECHO + "\nsys.exit(3)"))
    async with joined(gateway) as running:
        await gateway.until_spawned()
        gateway.refuse_from_now = HTTPStatus.UNAUTHORIZED
        gateway.cut()
        assert await running.status() == 3
    assert len(gateway.requests) == 2


async def test_agent_that_nobody_takes_back_ends_its_child_and_leaves() -> None:
    gateway = Gateway(python(ECHO + "\nsys.exit(3)"))
    gateway.orphan_s = 0.5
    async with joined(gateway) as running:
        await gateway.until_spawned()
        gateway.refuse_from_now = HTTPStatus.SERVICE_UNAVAILABLE
        gateway.cut()
        assert await running.status() == 3


async def test_peer_that_breaks_the_protocol_is_closed_and_left() -> None:
    gateway = Gateway(python(ECHO + "\nsys.exit(3)"))
    async with joined(gateway) as running:
        await gateway.until_spawned()
        assert gateway.connection is not None
        await gateway.connection.send(b"not a frame")
        assert await running.status() == 3
    assert gateway.close_codes == [CloseCode.PROTOCOL_VIOLATION]
    assert len(gateway.requests) == 1


async def test_gateway_that_leaves_is_dialled_again_and_the_child_lives(steps: list[str]) -> None:
    gateway = Gateway(python(ECHO))
    async with joined(gateway) as running:
        await gateway.until_spawned()
        before = gateway.connection
        assert before is not None
        await before.close(CloseCode.DRAIN)
        await gateway.until(lambda: gateway.connection is not before)
        await gateway.send(Channel.RPC, b"still there")
        await gateway.until(lambda: gateway.rpc() == [b"still there"])
        await running.stop()
    assert steps.count("spawn") == 1


async def test_gateway_that_is_leaving_is_tried_again_until_one_takes_the_agent_back() -> None:
    gateway = Gateway(python(ECHO))
    async with joined(gateway) as running:
        await gateway.until_spawned()
        gateway.refusals = [HTTPStatus.SERVICE_UNAVAILABLE] * 2
        await gateway.cut_and_taken_back()
        assert await running.stop() == 0
    assert len(gateway.requests) == 4


# A gateway that knows nothing

DEAF = "import sys; sys.stdin.read()"
ASK = b'{"jsonrpc":"2.0","id":"q","method":"roots/list","params":{}}'
LOG = b'{"jsonrpc":"2.0","method":"notifications/message"}'


async def test_agent_presents_the_capsule_that_it_was_given_last() -> None:
    gateway = Gateway(python(ECHO))
    gateway.capsule = "first"
    async with joined(gateway) as running:
        await gateway.until_spawned()
        for capsule in ("second", ""):
            gateway.capsule = capsule
            await gateway.cut_and_taken_back()
        await gateway.cut_and_taken_back()
        await running.stop()
    presented = [request.headers.get(CAPSULE_HEADER) for request in gateway.requests]
    assert presented == [None, "first", "second", "second"]


async def test_gateway_that_knows_the_session_is_told_no_journal() -> None:
    gateway = Gateway(python(ECHO))
    async with joined(gateway) as running:
        await gateway.until_spawned()
        await gateway.cut_and_taken_back()
        await gateway.send(Channel.RPC, b"{}")
        await gateway.until(lambda: gateway.rpc() == [b"{}"])
        await running.stop()
    assert gateway.pages == []


async def test_request_without_an_answer_is_in_the_journal() -> None:
    gateway = Gateway(python(DEAF))
    async with joined(gateway) as running:
        await gateway.until_spawned()
        await gateway.send(Channel.RPC, ASK)
        await gateway.until(lambda: gateway.endpoint.settled)
        await gateway.replaced()
        await running.stop()
    (page,) = gateway.pages
    ((call,), asks) = (page.calls, page.asks)
    assert (call.id, call.method, call.digest, asks) == ("q", "roots/list", digest(ASK), ())
    assert call.age_s >= 0


async def test_question_of_the_child_without_an_answer_is_in_the_journal() -> None:
    gateway = Gateway(
        python(f"import sys; print({ASK.decode()!r}, flush=True); sys.stdin.read()"), BEATING
    )
    async with joined(gateway) as running:
        await gateway.until(lambda: gateway.rpc() == [ASK])
        await gateway.until(lambda: running.agent._endpoint.settled)
        await gateway.replaced()
        await gateway.send(Channel.RPC, b'{"jsonrpc":"2.0","id":"q","result":{}}')
        await gateway.until(lambda: gateway.endpoint.settled)
        await gateway.replaced()
        await running.stop()
    assert [page.asks for page in gateway.pages] == [("q",), ()]


async def test_what_no_gateway_has_taken_over_reaches_the_next_one_in_order() -> None:
    gateway = Gateway(
        python("import sys\nfor n in range(9): print(n, flush=True)\nsys.stdin.read()")
    )
    gateway.consuming = False
    async with joined(gateway) as running:
        await gateway.until(lambda: len(gateway.rpc()) == 9)
        await gateway.replaced()
        gateway.consuming = True
        await gateway.until(lambda: len(gateway.rpc()) == 9)
        assert gateway.rpc() == [b"%d" % number for number in range(9)]
        await running.stop()


async def test_message_that_went_nowhere_is_sent_again_when_asked_for() -> None:
    gateway = Gateway(python(ECHO), BEATING)
    async with joined(gateway) as running:
        await gateway.until_spawned()
        await gateway.send(Channel.RPC, LOG)
        await gateway.until(lambda: gateway.rpc() == [LOG])
        await gateway.until(lambda: running.agent._endpoint.settled)
        await gateway.tell(do="replay", ticket=7, to=None, after=0)
        await gateway.until(lambda: len(gateway.replayed()) == 2)
        await running.stop()
    (seq,) = [each.key for each in gateway.messages if each.channel is Channel.RPC]
    assert gateway.replayed() == [Replayed(7, position(seq), LOG), Replayed(7, 0, b"")]


async def test_message_is_sent_again_to_the_stream_that_the_gateway_has_named() -> None:
    gateway = Gateway(python(ECHO))
    async with joined(gateway) as running:
        await gateway.until_spawned()
        await gateway.send(Channel.RPC, LOG)
        await gateway.until(lambda: gateway.rpc() == [LOG])
        (seq,) = [each.key for each in gateway.messages if each.channel is Channel.RPC]
        await gateway.tell(do="routed", seq=seq, to=GENERAL, at=99)
        for ticket, where, after in ((1, None, 0), (2, GENERAL, 0), (3, GENERAL, 99)):
            await gateway.tell(do="replay", ticket=ticket, to=where, after=after)
        await gateway.until(lambda: len(gateway.replayed()) == 4)
        await running.stop()
    assert gateway.replayed() == [
        Replayed(1, 0, b""),
        Replayed(2, 99, LOG),
        Replayed(2, 0, b""),
        Replayed(3, 0, b""),
    ]


COMMANDS = [b"[]", b"{}", b'{"do":"dance"}', b'{"do":"routed","seq":"x","to":"","at":1}']


@pytest.mark.parametrize("command", COMMANDS)
async def test_command_of_a_later_gateway_breaks_nothing(command: bytes) -> None:
    gateway = Gateway(python(ECHO))
    async with joined(gateway) as running:
        await gateway.until_spawned()
        await gateway.send(Channel.CMD, command)
        await gateway.send(Channel.RPC, b"{}")
        await gateway.until(lambda: gateway.rpc() == [b"{}"])
        assert await running.stop() == 0
    assert len(gateway.requests) == 1


async def test_command_that_is_no_json_breaks_the_protocol() -> None:
    gateway = Gateway(python(ECHO + "\nsys.exit(3)"))
    async with joined(gateway) as running:
        await gateway.until_spawned()
        await gateway.send(Channel.CMD, b"\xff")
        assert await running.status() == 3
    assert gateway.close_codes == [CloseCode.PROTOCOL_VIOLATION]


# A gateway that does not consume


async def test_message_is_acknowledged_only_when_the_child_took_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gateway = Gateway(python(ECHO), BEATING)
    takes = asyncio.Event()
    write = Child.write

    async def waiting(child: Child, line: bytes) -> bool:
        await takes.wait()
        return await write(child, line)

    monkeypatch.setattr("dyno_agent.agent.Child.write", waiting)
    async with joined(gateway) as running:
        await gateway.until_spawned()
        await gateway.send(Channel.RPC, b"{}")
        await gateway.until(lambda: gateway.beats_in_a_row >= 5)
        before = gateway.endpoint.settled
        takes.set()
        await gateway.until(lambda: gateway.endpoint.settled)
        await running.stop()
    assert not before


def held(agent: Agent) -> int:
    """Bytes of the child's output that the agent keeps."""
    return agent._endpoint.backlog(Channel.RPC) + agent._endpoint._unacked_bytes


async def test_flooding_child_is_held_up_until_the_gateway_consumes() -> None:
    gateway = Gateway(python(FLOOD), BEATING)
    gateway.consuming = False
    async with joined(gateway) as running:
        await gateway.until(lambda: bool(gateway.rpc()) and gateway.beats_in_a_row >= 5)
        assert held(running.agent) <= BEATING.window_bytes + CHUNK_BYTES
        assert 0 < len(gateway.rpc()) < FLOOD_LINES
        await gateway.consume()
        await gateway.until(lambda: len(gateway.rpc()) == FLOOD_LINES)
        assert await running.stop() == 0
    assert gateway.rpc() == [str(number).rjust(20_000, "x").encode() for number in range(400)]


@pytest.mark.parametrize(("code", "last_rung"), [(FLOOD, 15), (STUBBORN + FLOOD, 9)])
async def test_orphaned_agent_leaves_although_its_child_floods(code: str, last_rung: int) -> None:
    gateway = Gateway(python(code), BEATING)
    gateway.consuming = False
    gateway.orphan_s = gateway.grace_s = 0.5
    async with joined(gateway) as running:
        await gateway.until(lambda: bool(gateway.rpc()) and gateway.beats_in_a_row >= 5)
        gateway.refuse_from_now = HTTPStatus.SERVICE_UNAVAILABLE
        gateway.cut()
        assert await running.status() == 128 + last_rung


async def test_chatty_stderr_does_not_hold_up_answers_and_its_gaps_are_counted() -> None:
    lines = 5000
    gateway = Gateway(python(CHATTY, str(lines)), BEATING)
    gateway.consuming = False
    async with joined(gateway) as running:
        await gateway.until(lambda: running.agent._dropped_lines > 0)
        await gateway.consume()
        await gateway.until(lambda: gateway.rpc() == [b"written"])
        await gateway.until(lambda: running.agent._endpoint.backlog(Channel.LOG) == 0)
        await gateway.send(Channel.RPC, b"{}")
        await gateway.until(lambda: gateway.rpc() == [b"written", b"{}"])
        await running.stop()
    told = gateway.documents(Channel.LOG)
    dropped = [each["dropped"] for each in told if "dropped" in each]
    assert told[-1]["stderr"] == "last"
    assert dropped != []
    assert len(told) + sum(count for count in dropped if isinstance(count, int)) == lines + 1
