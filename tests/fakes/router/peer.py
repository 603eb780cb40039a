"""One HTTP/1.1 connection of the router, to a client or to a dyno: h11 over asyncio's streams."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import h11

if TYPE_CHECKING:
    from collections.abc import Callable

    Event = h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]

READ_BYTES = 64 * 1024


class Peer:
    """A connection and the state of HTTP on it.

    Attributes:
        http: h11's side of it.
        name: of the dyno; of a client, its address.
        spoke: a byte of the present exchange came from it.
        ended: it will send nothing more.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        http: h11.Connection,
        name: str,
    ) -> None:
        self.http = http
        self.name = name
        self.spoke = False
        self.ended = False
        self._reader = reader
        self._writer = writer

    def buffer(self, most: int) -> None:
        """Let so many bytes wait to be sent before `write` waits."""
        # Asyncio's own low mark would let a slow reader drain three quarters without a sign.
        self._writer.transport.set_write_buffer_limits(high=most, low=most - most // 8)

    @property
    def unsent(self) -> int:
        """Bytes that the other side has not taken yet."""
        return self._writer.transport.get_write_buffer_size()

    @property
    def is_idle(self) -> bool:
        """Whether another exchange could begin, as far as can be seen."""
        return not (self._reader.at_eof() or self._writer.is_closing())

    async def read(self, heard: Callable[[Peer], None] | None = None) -> bytes:
        """Return what it sent, or nothing if that was all; a broken connection has ended, too.

        The caller bounds the wait.
        """
        try:
            data = await self._reader.read(READ_BYTES)
        except OSError:
            data = b""
        if data:
            self.spoke = True
            if heard is not None:
                heard(self)
        else:
            self.ended = True
        return data

    async def event(self, heard: Callable[[Peer], None] | None = None) -> Event:
        """Return the next event of h11 but NEED_DATA; the caller bounds the wait.

        Raises:
            h11.RemoteProtocolError: it does not speak HTTP, or ended too soon (`ended`).
        """
        while (event := self.http.next_event()) is h11.NEED_DATA:
            self.http.receive_data(await self.read(heard))
        return event

    async def send(self, event: h11.Event) -> None:
        """Send an event; waits while too much is unsent.

        Raises:
            OSError: the connection is broken.
        """
        await self.write(self.http.send(event) or b"")

    async def write(self, data: bytes) -> None:
        """Send bytes; see `send`."""
        if data:
            self._writer.write(data)
            await self._writer.drain()

    def renew(self) -> bool:
        """Begin the next exchange, if this one left the connection in a state for it."""
        self.spoke = False
        if self.http.our_state is h11.DONE and self.http.their_state is h11.DONE and self.is_idle:
            self.http.start_next_cycle()
            return True
        return False

    async def linger(self, bound_s: float) -> None:
        """Send FIN and throw away what still comes: a reset would take the answer away."""
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(bound_s):
                self._writer.write_eof()
                while await self.read():
                    pass

    def close(self) -> None:
        """Close once what was written is sent."""
        self._writer.close()

    def abort(self) -> None:
        """Close at once."""
        self._writer.transport.abort()
