"""Clients that do not read and servers that do not stop: the gateway grows by neither.

Memory is that of the gateway process as the kernel has it, at its highest. What a client does not
read stays in the pipe of the child, which then stops; whoever else is there notices nothing.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.talking import (
    BOUND,
    PLAIN,
    PUPPET,
    RESUMES,
    Stream,
    Talk,
    http_for,
    open_session,
    the_message,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.system.conftest import GatewayProcess

pytestmark = pytest.mark.timeout(180)

MIB = 1024 * 1024

LIMIT = 16 * MIB
"""Bytes of the largest message."""

FLOOD, PIECE = 800, 64 * 1024
"""How many notifications of how many bytes: 50 MiB, which is thrice what the gateway may grow by
and all that sockets and pipes may hold beside it."""

FLOOD_ROOM = 16 * MIB
"""How much the gateway may grow by one flood: what the agent may send ahead is about 2 MiB."""

CROWD, CROWD_ROOM = 20, 120 * MIB
"""Requests of the largest size at a time, and how much the gateway may grow by them."""

LARGE_ROOM = 96 * MIB
"""How much it may grow by one result of the largest size that waits to be read: its copies."""

STILL = 20
"""Looks, 50 ms apart, at which a counter that stands still has not moved."""


class Memory:
    """How much the gateway process grows, at most, from now on."""

    def __init__(self, gateway: GatewayProcess) -> None:
        process = Path("/proc", str(gateway.process.pid))
        self._status = process / "status"
        (process / "clear_refs").write_text("5", encoding="ascii")  # proc(5): resets VmHWM
        self._before = self._peak()

    def _peak(self) -> int:
        lines = self._status.read_text(encoding="ascii").splitlines()
        (line,) = [line for line in lines if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024

    @property
    def grown(self) -> int:
        return self._peak() - self._before


class Counter:
    """What a flood writes down: how many of its messages somebody has taken."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "counter"
        self._last, self._still = -1, 0

    @property
    def value(self) -> int:
        return int(self.file.read_bytes() or 0) if self.file.exists() else 0

    def stands_still(self) -> bool:
        """Whether it has not moved at the last `STILL` looks, of which this is one."""
        value = self.value
        self._still = self._still + 1 if value == self._last and value else 0
        self._last = value
        return self._still >= STILL


def flood(counter: Counter, *, answer_first: bool) -> dict[str, Any]:
    return {
        "count": FLOOD,
        "size": PIECE,
        "counter": str(counter.file),
        "answer_first": answer_first,
    }


def numbers(messages: list[Any]) -> list[int]:
    return [message["params"]["number"] for message in messages]


async def stopped(gateway: GatewayProcess, counter: Counter) -> None:
    """Wait until the child of a flood is stopped, which has to be in its middle."""
    await gateway.until(counter.stands_still, "the child is stopped", within=BOUND)
    assert 0 < counter.value < FLOOD


# -- a flood -----------------------------------------------------------------------------------


async def test_flood_to_a_call_whose_client_does_not_read_stops_the_child_and_grows_nothing(
    make_gateway: Callable[..., GatewayProcess], tmp_path: Path
) -> None:
    async with make_gateway({"puppet": PUPPET}) as gateway, http_for(gateway) as http:
        talk, bystander = [await open_session(http, gateway) for _ in range(2)]
        counter, memory = Counter(tmp_path), Memory(gateway)
        async with talk.calling(1, "flood", **flood(counter, answer_first=False)) as response:
            await stopped(gateway, counter)
            assert memory.grown < FLOOD_ROOM
            assert (await bystander.call(1, "state"))["id"] == 1
            *news, answer = await Stream(response).rest()
        assert numbers(news) == list(range(1, FLOOD + 1))
        assert answer["id"] == 1
        assert memory.grown < FLOOD_ROOM


async def test_flood_to_a_general_stream_that_nobody_reads_stops_the_child_and_grows_nothing(
    make_gateway: Callable[..., GatewayProcess], tmp_path: Path
) -> None:
    async with make_gateway({"puppet": PUPPET}) as gateway, http_for(gateway) as http:
        talk, bystander = [await open_session(http, gateway) for _ in range(2)]
        counter, memory = Counter(tmp_path), Memory(gateway)
        async with talk.listening() as stream:
            await talk.call(1, "flood", **flood(counter, answer_first=True))
            await stopped(gateway, counter)
            assert memory.grown < FLOOD_ROOM
            assert (await bystander.call(1, "state"))["id"] == 1
            heard = await stream.take(FLOOD)
        assert numbers([event.message for event in heard]) == list(range(1, FLOOD + 1))
        assert memory.grown < FLOOD_ROOM


async def test_flood_without_any_stream_passes_and_its_drops_are_counted(
    make_gateway: Callable[..., GatewayProcess], tmp_path: Path
) -> None:
    """A few wait for a stream to come; the others are dropped, and the log says how many."""
    async with make_gateway({"puppet": PUPPET}) as gateway, http_for(gateway) as http:
        talk = await open_session(http, gateway)
        counter, memory = Counter(tmp_path), Memory(gateway)
        await talk.call(1, "flood", **flood(counter, answer_first=True))
        await gateway.until(lambda: counter.value == FLOOD, "the flood passes", within=BOUND)
        await gateway.until(lambda: passed(talk) == FLOOD, "the gateway has it", within=BOUND)
        assert (await talk.call(2, "state"))["id"] == 2
        await talk.call(3, "announce", count=1)
        await talk.call(4, "state")
        async with talk.listening() as stream:
            waited = await kept(stream)
        async with http.delete(gateway.url(), headers=talk.headers) as response:
            assert response.status == 204
        await gateway.until(lambda: closed(talk), "the session is closed")
        (record,) = closed(talk)
        assert waited == list(range(1, len(waited) + 1))
        assert record["dropped"] == FLOOD - len(waited)
        assert memory.grown < FLOOD_ROOM


async def kept(stream: Stream) -> list[int]:
    """The numbers of the flood that waited for a stream: what comes before a later message."""
    found: list[int] = []
    while (event := (await stream.take(1))[0]).message["params"].get("padding"):
        found.append(event.message["params"]["number"])
    return found


def passed(talk: Talk) -> int:
    """How many messages the child has sent beside answers."""
    return talk.gateway.log().count('"to": "client"')


def closed(talk: Talk) -> list[dict[str, Any]]:
    return [record for record in talk.gateway.story(talk.session) if record["event"] == "closed"]


# -- the largest messages ------------------------------------------------------------------------


def of_size(request: int, size: int) -> tuple[bytes, bytes]:
    """Return what stands before and after the padding of a `size` call with so many bytes."""
    params = {"name": "size", "arguments": {"padding": ""}}
    body = {"jsonrpc": "2.0", "id": request, "method": "tools/call", "params": params}
    head, mark, tail = json.dumps(body).partition('"padding": "')
    return (head + mark).encode(), tail.encode()


async def in_pieces(request: int, size: int) -> AsyncIterator[bytes]:
    """Send a request of exactly so many bytes, of which the client holds few at a time."""
    head, tail = of_size(request, size)
    left = size - len(head) - len(tail)
    yield head
    while left:
        yield b"x" * min(left, PIECE)
        left -= min(left, PIECE)
    yield tail


async def test_many_requests_of_the_largest_size_at_a_time_do_not_add_up(
    make_gateway: Callable[..., GatewayProcess],
) -> None:
    async with make_gateway({"puppet": PUPPET}) as gateway, http_for(gateway) as http:
        talk = await open_session(http, gateway)
        headers = {**talk.headers, "Content-Type": "application/json"}
        memory = Memory(gateway)

        async def send(request: int) -> Any:
            body = in_pieces(request, LIMIT)
            async with http.post(gateway.url(), data=body, headers=headers) as response:
                assert response.status == 200, await response.text()
                return await the_message(response)

        async with asyncio.timeout(2 * BOUND), asyncio.TaskGroup() as group:
            sent = [group.create_task(send(request)) for request in range(CROWD)]
        assert [task.result() for task in sent] == [
            {"jsonrpc": "2.0", "id": request, "result": {"size": LIMIT}} for request in range(CROWD)
        ]
        assert memory.grown < CROWD_ROOM


@pytest.mark.parametrize("revision", [RESUMES, PLAIN])
async def test_large_result_to_a_client_that_does_not_read_holds_up_nobody_else(
    make_gateway: Callable[..., GatewayProcess], revision: str
) -> None:
    size = LIMIT - 1024
    async with make_gateway({"puppet": PUPPET}) as gateway, http_for(gateway) as http:
        talk = await open_session(http, gateway, revision)
        bystander = await open_session(http, gateway, revision)
        memory = Memory(gateway)
        async with talk.calling(1, "big", bytes=size) as response:
            for request in range(1, 51):
                assert (await bystander.call(request, "state"))["id"] == request
            assert memory.grown < LARGE_ROOM
            async with asyncio.timeout(BOUND):
                message = await the_message(response)
        assert message["result"] == {"text": "x" * size}
