"""What one session may hold of the gateway's memory, whatever its client or its child does."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from dyno_agent.link import Channel, Limits
from gateway.edge import answering, intake
from gateway.sessions.live import LARGE_BODIES
from gateway.sessions.terms import Terms
from tests.fakes.house import BOUND, RESUMING, SECRET, Agent, House, eventually, opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import pytest
    from aiohttp import web

    from gateway.sessions.streams import Item, Outbox

LIMITS = Limits(
    message_bytes=100_000, window_bytes=300_000, window_frames=128, ack_bytes=10_000, ack_frames=4
)
SMALL = Terms("http://127.0.0.1", SECRET, 10, limits=LIMITS)
FLOOD = 100


class Readers:
    """Counts the bodies that are being read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.most = self.all = 0
        self._read: Callable[[web.Request, int], Any] = intake.read_body
        monkeypatch.setattr(intake, "read_body", self.read_body)

    async def read_body(self, request: web.Request, limit: int) -> bytes:
        self.now, self.all = self.now + 1, self.all + 1
        self.most = max(self.most, self.now)
        try:
            return bytes(await self._read(request, limit))
        finally:
            self.now -= 1


class Upload:
    """A large notification that stalls in its middle."""

    def __init__(self, house: House, session: str) -> None:
        self._house, self._session = house, session
        self.go_on = asyncio.Event()

    async def _body(self) -> AsyncIterator[bytes]:
        yield b'{"jsonrpc": "2.0", "method": "notifications/x", "params": {"text": "'
        await self.go_on.wait()
        yield b"x" * 70_000 + b'"}}'

    async def run(self) -> int:
        headers = {"Mcp-Session-Id": self._session, "Content-Type": "application/json"}
        async with self._house.http.post(
            self._house.url, data=self._body(), headers=headers
        ) as response:
            return response.status


async def test_large_bodies_of_a_session_are_read_few_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with opened(terms=SMALL) as house:
        agent, session = await house.booted()
        readers = Readers(monkeypatch)
        uploads = [Upload(house, session) for _ in range(LARGE_BODIES * 3)]
        gate = house.live(session).large_bodies
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            runs = [group.create_task(upload.run()) for upload in uploads]
            await eventually(lambda: gate._waiters and len(gate._waiters) == LARGE_BODIES * 2)
            assert readers.now == LARGE_BODIES
            for upload in uploads:
                upload.go_on.set()
        assert [run.result() for run in runs] == [202] * len(uploads)
        assert readers.most == LARGE_BODIES
        assert len(agent.received()) == len(uploads)


async def test_small_messages_pass_large_ones_that_are_still_coming(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with opened(terms=SMALL) as house:
        agent, session = await house.booted()
        readers = Readers(monkeypatch)
        uploads = [Upload(house, session) for _ in range(LARGE_BODIES)]
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            for upload in uploads:
                group.create_task(upload.run())
            await eventually(lambda: readers.now == LARGE_BODIES)
            await house.works(agent, session)
            for upload in uploads:
                upload.go_on.set()


async def test_large_messages_of_one_session_do_not_hold_up_those_of_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with opened(terms=SMALL) as house:
        (_, one), (_, two) = await house.booted(), await house.booted()
        readers = Readers(monkeypatch)
        stalled, other = [Upload(house, one) for _ in range(LARGE_BODIES)], Upload(house, two)
        other.go_on.set()
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            for upload in stalled:
                group.create_task(upload.run())
            await eventually(lambda: readers.now == LARGE_BODIES)
            assert await other.run() == 202
            for upload in stalled:
                upload.go_on.set()


async def test_large_body_is_not_read_while_the_child_does_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with opened(terms=SMALL) as house:
        agent, session = await house.booted()
        agent.eats = False
        link = house.live(session).session.link
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            waiting: list[asyncio.Task[int]] = []
            while link.writable:
                filling = Upload(house, session)
                filling.go_on.set()
                waiting.append(group.create_task(filling.run()))
                await eventually(lambda: agent._inbox.qsize() == len(waiting) or not link.writable)
            readers, late = Readers(monkeypatch), Upload(house, session)
            late.go_on.set()
            waiting.append(group.create_task(late.run()))
            await eventually(lambda: house.live(session).large_bodies._value == 1)
            assert readers.all == 0
            await agent.eat()
        assert [each.result() for each in waiting] == [202] * len(waiting)


class Deaf:
    """A client that reads nothing of its streams until it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads = asyncio.Event()
        self.blocked = asyncio.Event()
        self._write = answering.write_event
        monkeypatch.setattr(answering, "write_event", self.write)

    async def write(self, response: web.StreamResponse, item: Item, outbox: Outbox) -> None:
        self.blocked.set()
        await self.reads.wait()
        await self._write(response, item, outbox)


def log(number: int) -> dict[str, Any]:
    params = {"data": f"{number}".rjust(20_000, "x")}
    return {"jsonrpc": "2.0", "method": "notifications/message", "params": params}


async def flooded(agent: Agent) -> None:
    """The child writes much more than the window takes."""
    for number in range(FLOOD):
        agent.end.send(Channel.RPC, json.dumps(log(number)).encode())
    await agent.flush()


async def test_client_that_does_not_read_stops_its_child_and_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with opened(terms=SMALL) as house:
        (agent, session), (other, another) = await house.booted(), await house.booted()
        deaf = Deaf(monkeypatch)
        async with house.listening(session, revision=RESUMING) as stream, asyncio.timeout(BOUND):
            await stream.next()
            await flooded(agent)
            await deaf.blocked.wait()
            await house.works(other, another)
            live = house.live(session)
            (outbox,) = live._outboxes
            assert not agent.end.writable
            assert sum(len(item.raw) for item in outbox._items) <= LIMITS.window_bytes
            assert live.session.link._held_bytes <= LIMITS.window_bytes
            deaf.reads.set()
            assert [await stream.message() for _ in range(FLOOD)] == [log(n) for n in range(FLOOD)]
        assert live.session.link.peak_bytes <= LIMITS.window_bytes
        await house.works(agent, session)


async def test_client_that_does_not_read_is_cut_off_and_may_come_back_for_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with opened(terms=SMALL) as house:
        agent, session = await house.booted()

        async def stuck(response: web.StreamResponse, item: Item, outbox: Outbox) -> None:
            raise TimeoutError  # as after WRITE_S

        with monkeypatch.context() as patched:
            patched.setattr(answering, "write_event", stuck)
            async with house.listening(session) as stream:
                await stream.next()
                await agent.say(log(1))
                await eventually(lambda: not house.live(session)._outboxes)
        async with house.listening(session, stream.last) as rest:
            assert await rest.message() == log(1)


async def test_messages_that_no_stream_takes_are_bounded_and_their_loss_is_told() -> None:
    async with opened(terms=SMALL) as house:
        agent, session = await house.booted()
        await flooded(agent)
        await agent.send(Channel.EVENT, {"event": "of a later version"})
        await agent.until(lambda: agent.end.settled)
        live = house.live(session)
        assert live.session.routing._backlog._bytes <= 256 * 1024
        assert "dropped" in house.ear.names()
        await house.works(agent, session)
        assert live.session.link.peak_bytes <= LIMITS.window_bytes
