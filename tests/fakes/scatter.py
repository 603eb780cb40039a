"""A router without stickiness: each request goes to a gateway drawn at random.

It reads the head of a request, dials a gateway, says there that this connection is for one request,
and from then on passes bytes both ways as they come: bodies, event streams and WebSockets alike.
A gateway that refuses the connection is left out for that request, as a platform's router leaves
out a dyno that is gone. A request of which bytes were sent is never sent again.

What it says itself has the header `X-Scatter`, so nobody takes it for a gateway's answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from typing import TYPE_CHECKING, Self

from tests.fakes.fault_proxy import HOST, hold_port

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence
    from types import TracebackType

MARK = "X-Scatter"
"""Header of what the router says itself: `nobody` listened, or a gateway `broke` off unheard."""

HEAD_BYTES = 64 * 1024
PIECE_BYTES = 256 * 1024
BACKLOG = 1024

HEAD_S = 30.0
"""For the head of a request."""

DIAL_S = 5.0
CLOSE_S = 5.0
"""What is written last may take so long to leave."""

_CONNECTION = re.compile(rb"\r\nconnection:[^\r]*", re.IGNORECASE)
_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)


class Scatter:
    """Listens on a port of its own. Use as an async context manager; leaving cuts what is open.

    Args:
        backends: ports of the gateways on this machine.
        chance: draws one of those in `backends` for each request.

    Attributes:
        url: where it listens, without a slash at the end.
        backends: may be changed at any time; requests that are under way go on.
        counts: what happened, by name: `to PORT` for each request that one took, `upgrade` for
            each that became a WebSocket, refused (dials), nobody, broke, cut (in an answer).
    """

    def __init__(self, backends: Sequence[int], chance: random.Random) -> None:
        self.backends = list(backends)
        self.counts: Counter[str] = Counter()
        self._chance = chance
        self._guard = hold_port()
        self._port: int = self._guard.getsockname()[1]
        self.url = f"http://{HOST}:{self._port}"
        self._tasks = asyncio.TaskGroup()
        self._running: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        """Listen."""
        await self._tasks.__aenter__()
        self._server = await asyncio.start_server(
            self._accept, HOST, self._port, limit=HEAD_BYTES, backlog=BACKLOG
        )
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop listening and cut what is open."""
        if self._server is not None:
            self._server.close()
        self._guard.close()
        for task in self._running:
            task.cancel()
        await self._tasks.__aexit__(None, None, None)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._tasks.create_task(self._serve(reader, writer), name="scatter")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(HEAD_S):
                head = await reader.readuntil(b"\r\n\r\n")
            await self._route(head, reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.transport.abort()
        finally:
            await _close(writer)

    async def _route(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        dialled = await self._dial()
        if dialled is None:
            self.counts["nobody"] += 1
            writer.write(_page("nobody"))
            return
        answer, request = dialled
        carrying = Carrying(reader, writer, answer, request)
        try:
            request.write(self._for_one(head))
            await carrying.run()
        finally:
            request.transport.abort()
        if carrying.hung_up:
            writer.transport.abort()
        elif not carrying.answered:
            self.counts["broke"] += 1
            writer.write(_page("broke"))
        elif carrying.broken:
            self.counts["cut"] += 1
            writer.transport.abort()

    def _for_one(self, head: bytes) -> bytes:
        """Return a head that says: one request, and no other after it."""
        if _UPGRADE.search(head):
            self.counts["upgrade"] += 1
            return head
        line, end, fields = _CONNECTION.sub(b"", head).partition(b"\r\n")
        return b"".join((line, end, b"Connection: close\r\n", fields))

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for port in self._chance.sample(self.backends, len(self.backends)):
            try:
                async with asyncio.timeout(DIAL_S):
                    connection = await asyncio.open_connection(HOST, port, limit=PIECE_BYTES)
            except (OSError, TimeoutError):
                self.counts["refused"] += 1
            else:
                self.counts[f"to {port}"] += 1
                return connection
        return None


class Carrying:
    """One request on its way to a gateway, and its answer on its way back.

    Attributes:
        answered: bytes of the answer went to the client.
        broken: the gateway's connection broke, rather than ended.
        hung_up: the client's connection ended or broke.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answer: asyncio.StreamReader,
        request: asyncio.StreamWriter,
    ) -> None:
        self.answered = self.broken = self.hung_up = False
        self._client = reader, writer
        self._gateway = answer, request
        self._done = asyncio.Event()

    async def run(self) -> None:
        """Pass bytes both ways until either side has gone."""
        async with asyncio.TaskGroup() as pumps:
            both = [pumps.create_task(self._up()), pumps.create_task(self._down())]
            await self._done.wait()
            for pump in both:
                pump.cancel()

    async def _up(self) -> None:
        reader, _ = self._client
        _, request = self._gateway
        try:
            await _pump(reader, request, lambda: None)
            self._hang_up()
        except OSError:
            # Whose? A gateway that broke off may still have said something, which `_down` reads.
            if reader.exception() is not None:
                self._hang_up()

    async def _down(self) -> None:
        answer, _ = self._gateway
        _, writer = self._client
        try:
            await _pump(answer, writer, self._answer)
        except OSError:
            self.broken = answer.exception() is not None
            self.hung_up = not self.broken
        self._done.set()

    def _hang_up(self) -> None:
        self.hung_up = True
        self._done.set()

    def _answer(self) -> None:
        self.answered = True


async def _pump(
    source: asyncio.StreamReader, sink: asyncio.StreamWriter, passed: Callable[[], None]
) -> None:
    while data := await source.read(PIECE_BYTES):
        sink.write(data)
        passed()
        await sink.drain()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(CLOSE_S):
            await writer.wait_closed()


def _page(why: str) -> bytes:
    return (
        f"HTTP/1.1 503 Service Unavailable\r\n{MARK}: {why}\r\nContent-Type: text/plain\r\n"
        f"Content-Length: 0\r\nConnection: close\r\n\r\n"
    ).encode()
