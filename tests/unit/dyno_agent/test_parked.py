"""An agent that its gateway lets wait: it stays as long as it is wanted, and leaves at once."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

import dyno_agent
from dyno_agent import dialer
from dyno_agent.agent import NEVER_JOINED, Agent
from dyno_agent.config import Config
from dyno_agent.dialer import Unreachable, dial
from dyno_agent.link import SUBPROTOCOL, ChildSpec, CloseCode, Hello, Welcome
from dyno_agent.link.handshake import PARKED, is_parked
from dyno_agent.link.limits import DEFAULT_LIMITS, PARKED_DEAD_S, PARKED_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PATIENCE_S = 15
TOKEN = "rj_launch.secret-of-the-launch"  # noqa: S105 - of this file alone
ROOT = Path(str(dyno_agent.__file__)).parents[1]
CHILD = ChildSpec((sys.executable, "-ISc", "import sys; sys.stdin.read()"))
HELLO = Hello("join", "boot", "0" * 64)


class Gateway:
    """Takes connections and hands each to the test, with its HELLO."""

    def __init__(self) -> None:
        self.url = ""
        self.credentials: list[str] = []
        self.hellos: list[Hello] = []
        self.connections: list[ServerConnection] = []
        self.over = False
        self._here: asyncio.Queue[ServerConnection] = asyncio.Queue(16)

    async def _attached(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        self.credentials.append(connection.request.headers["Authorization"])
        text = await connection.recv()
        assert isinstance(text, str)
        self.hellos.append(Hello.decode(text))
        self.connections.append(connection)
        if self.over:
            await connection.close(CloseCode.SESSION_ENDED)
            return
        self._here.put_nowait(connection)
        await connection.wait_closed()

    async def next(self) -> ServerConnection:
        async with asyncio.timeout(PATIENCE_S):
            return await self._here.get()

    async def turns_away(self) -> None:
        """Let no agent come any more."""
        self.over = True
        for connection in self.connections:
            await connection.close(CloseCode.SESSION_ENDED)

    async def parked(self) -> ServerConnection:
        connection = await self.next()
        await connection.send(PARKED)
        return connection


def welcome() -> str:
    return Welcome(1, 0, DEFAULT_LIMITS, orphan_s=60.0, grace_s=1.0, child=CHILD).encode()


@asynccontextmanager
async def serving() -> AsyncIterator[Gateway]:
    gateway = Gateway()
    async with serve(
        gateway._attached,
        "127.0.0.1",
        0,
        subprotocols=[Subprotocol(SUBPROTOCOL)],
        compression=None,
        ping_interval=None,
        close_timeout=1,
    ) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        gateway.url = f"http://127.0.0.1:{port}"
        yield gateway


@asynccontextmanager
async def joining(
    deadline_s: float = 60.0,
) -> AsyncIterator[tuple[Gateway, Agent, asyncio.Task[int]]]:
    async with serving() as gateway, asyncio.TaskGroup() as tasks:
        agent = Agent(Config(gateway.url, TOKEN, deadline_s, "run.1"), dict(os.environ))
        task = tasks.create_task(agent.run())
        try:
            yield gateway, agent, task
        finally:
            agent.leave("test over")
            await gateway.turns_away()
            await asyncio.wait((task,), timeout=PATIENCE_S)


async def status(task: asyncio.Task[int]) -> int:
    async with asyncio.timeout(PATIENCE_S):
        return await task


async def held(agent: Agent) -> None:
    """Wait until the agent knows that it is parked."""
    async with asyncio.timeout(PATIENCE_S):
        while agent._deadman.parted is not None:  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    taken: list[str] = []
    monkeypatch.setattr("dyno_agent.agent.harden", lambda: taken.append("harden"))
    monkeypatch.setattr(dialer, "FIRST_WAIT_S", 0.001)
    return taken


def test_gateway_speaks_often_enough_for_the_agents_patience() -> None:
    assert PARKED_S * 3 <= PARKED_DEAD_S < 55


@pytest.mark.parametrize(
    ("text", "parked"),
    [
        (PARKED, True),
        ('{"parked": true, "more": 1}', True),
        ('{"parked": 1}', False),
        ('{"parked": false}', False),
        ("{}", False),
    ],
)
def test_only_the_word_itself_lets_an_agent_wait(text: str, parked: bool) -> None:
    assert is_parked(text) is parked


async def test_parked_agent_serves_once_it_is_welcomed() -> None:
    async with joining() as (gateway, _, task):
        connection = await gateway.parked()
        for _ in range(3):
            await connection.send(PARKED)
        await connection.send(welcome())
        async with asyncio.timeout(PATIENCE_S):
            assert isinstance(await connection.recv(), bytes)  # it tells of its child
        await connection.close(CloseCode.SESSION_ENDED)
        await status(task)
    assert len(gateway.hellos) == 1


async def test_agent_says_nothing_while_it_is_parked() -> None:
    async with joining() as (gateway, agent, _):
        connection = await gateway.parked()
        await held(agent)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await connection.recv()


async def test_parked_agent_has_no_start_deadline_any_more() -> None:
    async with joining(deadline_s=0.5) as (gateway, agent, task):
        await gateway.parked()
        await held(agent)
        assert agent._deadman.remaining(1e12) == float("inf")
        assert not task.done()


async def test_agent_is_hardened_as_soon_as_it_is_parked(steps: list[str]) -> None:
    async with joining() as (gateway, agent, _):
        await gateway.parked()
        await held(agent)
        assert steps[:1] == ["harden"]


async def test_parked_agent_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "dyno_agent"):
        async with joining() as (gateway, agent, task):
            connection = await gateway.parked()
            await connection.send(PARKED)
            await connection.send(PARKED)
            await held(agent)
            await connection.close(CloseCode.SESSION_ENDED)
            await status(task)
    said = [record.getMessage() for record in caplog.records]
    assert sum(line.startswith("parked") for line in said) == 1
    assert TOKEN.partition(".")[2] not in repr(said)


async def test_parked_agent_that_lost_its_connection_joins_again_as_the_same_process() -> None:
    async with joining() as (gateway, agent, task):
        for _ in range(3):
            connection = await gateway.parked()
            await held(agent)
            connection.transport.abort()
        connection = await gateway.parked()
        await connection.send(welcome())
        async with asyncio.timeout(PATIENCE_S):
            assert isinstance(await connection.recv(), bytes)
        await connection.close(CloseCode.SESSION_ENDED)
        await status(task)
    assert set(gateway.credentials) == {f"Bearer {TOKEN}"}
    assert len(gateway.hellos) == 4
    assert len({(said.kind, said.boot_id, said.proof) for said in gateway.hellos}) == 1


async def test_parked_agent_whose_gateway_falls_silent_dials_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dialer, "PARKED_DEAD_S", 0.05)
    async with joining() as (gateway, agent, _):
        await gateway.parked()
        await held(agent)
        await gateway.parked()
    assert len(gateway.hellos) >= 2


async def test_parked_agent_that_nobody_takes_back_leaves_after_its_deadline() -> None:
    async with joining(deadline_s=0.2) as (gateway, agent, task):
        connection = await gateway.parked()
        await held(agent)
        gateway.url = ""
        connection.transport.abort()

        async def turn_away() -> None:
            while True:
                (await gateway.next()).transport.abort()

        async with asyncio.TaskGroup() as tasks:
            turning = tasks.create_task(turn_away())
            assert await status(task) == NEVER_JOINED
            turning.cancel()


@pytest.mark.parametrize(
    "code", [CloseCode.SESSION_ENDED, CloseCode.BAD_TOKEN, CloseCode.REPLAYED_TOKEN]
)
async def test_parked_agent_that_is_not_wanted_leaves_and_does_not_come_back(
    code: CloseCode,
) -> None:
    async with joining() as (gateway, agent, task):
        connection = await gateway.parked()
        await held(agent)
        await connection.close(code)
        assert await status(task) == NEVER_JOINED
    assert len(gateway.hellos) == 1


async def test_parked_agent_that_is_asked_to_leave_leaves_at_once() -> None:
    async with joining() as (gateway, agent, task):
        connection = await gateway.parked()
        await held(agent)
        agent.leave("SIGTERM")
        assert await status(task) == NEVER_JOINED
        async with asyncio.timeout(PATIENCE_S):
            await connection.wait_closed()
    assert len(gateway.hellos) == 1


async def test_parked_agent_that_is_asked_to_leave_between_two_dials_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dialer, "FIRST_WAIT_S", 1000.0)
    monkeypatch.setattr(dialer, "LONGEST_WAIT_S", 1000.0)
    monkeypatch.setattr("dyno_agent.dialer.random.uniform", lambda _low, high: high)
    async with joining(deadline_s=5000.0) as (gateway, agent, task):
        connection = await gateway.parked()
        await held(agent)
        connection.transport.abort()
        async with asyncio.timeout(PATIENCE_S):
            while agent._deadman.parted is None:  # noqa: ASYNC110 - nobody announces it
                await asyncio.sleep(0)
        agent.leave("SIGTERM")
        assert await status(task) == NEVER_JOINED


@pytest.mark.parametrize("word", ["{", "[]", b"\x00", '{"parked": "yes"}'], ids=repr)
async def test_what_is_neither_the_word_to_wait_nor_a_welcome_is_no_attachment(
    word: str | bytes,
) -> None:
    async with serving() as gateway, asyncio.TaskGroup() as tasks:
        waits = asyncio.Event()

        async def speaks() -> None:
            connection = await gateway.parked()
            await waits.wait()
            await connection.send(word)

        tasks.create_task(speaks())
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(Unreachable):
                await dial(gateway.url, TOKEN, HELLO, parked=lambda _abort: waits.set())


async def test_agent_that_has_a_session_does_not_wait_for_another() -> None:
    async with serving() as gateway, asyncio.TaskGroup() as tasks:
        tasks.create_task(gateway.parked())
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(Unreachable):
                await dial(gateway.url, TOKEN, HELLO)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_ends_a_parked_agent_at_once(number: signal.Signals) -> None:
    async with serving() as gateway:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "dyno_agent",
            cwd=ROOT,
            env={
                "PATH": os.environ["PATH"],
                "RENDEZVOUS_URL": gateway.url,
                "RENDEZVOUS_JOIN_TOKEN": TOKEN,
            },
            stderr=asyncio.subprocess.PIPE,
        )
        connection = await gateway.parked()
        assert process.stderr is not None
        async with asyncio.timeout(PATIENCE_S):
            said = await process.stderr.readuntil(b"parked")
            process.send_signal(number)
            with pytest.raises(ConnectionClosed):
                await connection.recv()
            said += await process.stderr.read()
            assert await process.wait() == NEVER_JOINED
    assert TOKEN.partition(".")[2].encode() not in said
    assert len(gateway.hellos) == 1
