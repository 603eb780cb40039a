"""A WebSocket client of bare bytes: it upgrades by hand and then writes whatever the test likes.

No library refuses to send what must not be sent. What comes back is read by the rules of RFC 6455
as far as a test needs them: whole frames of a server, never masked, never over 64 KiB.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

CUT = 1006
"""RFC 6455, 7.1.5: how a connection without a closing frame is told."""

BOUND = 30.0
"""Seconds for any one wait; nothing here takes one."""

KEY = "MDEyMzQ1Njc4OWFiY2RlZg=="
MASK = b"\x11\x22\x33\x44"
_LINGER_NOT = struct.pack("ii", 1, 0)


class ServerFrame(NamedTuple):
    """What the server wrote."""

    opcode: int
    payload: bytes


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    masked: bool = True,
    declared: int | None = None,
) -> bytes:
    """Return one frame, as wrong as asked.

    Args:
        opcode: the lower four bits of the first byte.
        payload: before masking.
        fin: the last frame of its message.
        rsv: the three reserved bits, 0 to 7.
        masked: as a client must.
        declared: length in the header, if it shall not be the payload's.
    """
    size = len(payload) if declared is None else declared
    bit = 0x80 if masked else 0
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    if size < 126:
        head += bytes([bit | size])
    elif size < 2**16:
        head += struct.pack("!BH", bit | 126, size)
    else:
        head += struct.pack("!BQ", bit | 127, size)
    return head + (MASK + mask(payload) if masked else payload)


def mask(payload: bytes) -> bytes:
    """Return the payload under `MASK`; the same again takes it off."""
    size = len(payload)
    key = int.from_bytes((MASK * (size // 4 + 1))[:size], "big")
    return (int.from_bytes(payload, "big") ^ key).to_bytes(size, "big")


def upgrade(origin: str, path: str, headers: dict[str, str | None]) -> bytes:
    """Return the request that asks for a WebSocket; a header that is None is left out."""
    everything: dict[str, str | None] = {
        "Host": urlsplit(origin).netloc,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": KEY,
        **headers,
    }
    lines = [f"{name}: {value}" for name, value in everything.items() if value is not None]
    return "\r\n".join([f"GET {path} HTTP/1.1", *lines, "", ""]).encode()


class RawWebSocket:
    """One connection. Make it with `dialled`.

    Attributes:
        status: of the answer to the upgrade.
        head: that answer, in lower case.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.status = 0
        self.head = ""
        self._reader = reader
        self._writer = writer

    async def ask(self, request: bytes) -> None:
        """Send the upgrade request, and what else is in it; read the head of the answer."""
        await self.send(request)
        async with asyncio.timeout(BOUND):
            head = await self._reader.readuntil(b"\r\n\r\n")
        self.head = head.decode().lower()
        self.status = int(self.head.split()[1])

    async def send(self, data: bytes) -> None:
        """Write bytes; the server may have hung up in their midst, which `ended` tells."""
        self._writer.write(data)
        with suppress(ConnectionError):
            async with asyncio.timeout(BOUND):
                await self._writer.drain()

    async def next(self) -> ServerFrame | None:
        """Return the server's next frame, or None if the connection ended."""
        try:
            async with asyncio.timeout(BOUND):
                first, size = await self._reader.readexactly(2)
                if size == 126:
                    (size,) = struct.unpack("!H", await self._reader.readexactly(2))
                elif size == 127:
                    (size,) = struct.unpack("!Q", await self._reader.readexactly(8))
                return ServerFrame(first & 0xF, await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def until(self, opcode: int) -> bytes:
        """Return the payload of the server's next frame of this kind."""
        while (found := await self.next()) is not None:
            if found.opcode == opcode:
                return found.payload
        raise AssertionError("the server hung up")

    async def ended(self) -> int:
        """Read to the end; return the code of the server's closing frame, or `CUT`.

        The closing handshake is finished as a client should, so that nobody waits for it.
        """
        code = CUT
        while (found := await self.next()) is not None:
            if found.opcode == CLOSE:
                code = struct.unpack("!H", found.payload[:2])[0] if found.payload else 1005
                await self.send(frame(CLOSE, found.payload[:2]))
        return code

    def reset(self) -> None:
        """End the connection with an RST, as a crash or a firewall does."""
        connection = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        self._writer.transport.abort()


@asynccontextmanager
async def dialled(origin: str) -> AsyncIterator[RawWebSocket]:
    """Connect to a server, without a word; drop the connection in the end."""
    where = urlsplit(origin)
    async with asyncio.timeout(BOUND):
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        yield RawWebSocket(reader, writer)
    finally:
        writer.transport.abort()
        with suppress(ConnectionError):
            async with asyncio.timeout(BOUND):
                await writer.wait_closed()
