"""A TCP proxy that breaks connections on purpose: what lies between an agent and its gateway.

It forwards bytes and knows nothing of what they mean, except that it remembers how the dialler
opened, so that a test can tell connections apart. Faults are methods of a connection (`Tunnel`);
`FaultProxy.tunnels` are all that are open.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

HOST = "127.0.0.1"

CHUNK_BYTES = 64 * 1024

OPENING_BYTES = 4096
"""How much of the dialler's first bytes is remembered: an HTTP request head."""

LINGER_S = 5.0
"""How long a connection that was ended with FIN waits for both sides' own FIN."""

DIAL_PAUSE_S = 0.02
"""Between two attempts to reach a target that does not listen yet."""

BACKLOG = 128

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Way(Enum):
    """A direction of travel."""

    UP = "up"
    """From the dialler to the target."""

    DOWN = "down"
    """From the target to the dialler."""


class End(Enum):
    """How a connection is broken off."""

    RESET = "reset"
    """RST to both sides; what was on its way is lost."""

    FIN = "fin"
    """FIN to both sides; what they still say is thrown away."""


@dataclass
class Pace:
    """How fast a proxy forwards: at most `slice_bytes` at a time, `pause_s` before each slice."""

    slice_bytes: int = CHUNK_BYTES
    pause_s: float = 0.0


class Tunnel:
    """One connection through the proxy.

    Attributes:
        opening: the first bytes the dialler sent, at most OPENING_BYTES.
        forwarded: bytes handed on, by direction.
        closed: set once both sockets are closed.
    """

    def __init__(
        self, near: socket.socket, far: socket.socket, pace: Pace, counts: Counter[str]
    ) -> None:
        self.opening = b""
        self.forwarded: Counter[Way] = Counter()
        self.closed = asyncio.Event()
        self._sockets = (near, far)
        self._pace = pace
        self._counts = counts
        self._pumps: list[asyncio.Task[None]] = []
        self._deadline = asyncio.timeout(None)
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._silenced: set[Way] = set()
        self._cuts: dict[Way, tuple[int, End]] = {}

    async def run(self) -> None:
        """Forward both ways until both sides have said FIN, or a fault ends it."""
        near, far = self._sockets
        try:
            async with self._deadline, asyncio.TaskGroup() as pumps:
                self._pumps = [
                    pumps.create_task(self._pump(near, far, Way.UP), name="pump up"),
                    pumps.create_task(self._pump(far, near, Way.DOWN), name="pump down"),
                ]
        except TimeoutError:
            self._counts["lingered"] += 1
        finally:
            near.close()
            far.close()
            self.closed.set()

    # Faults

    def reset(self) -> None:
        """Send RST to both sides at once."""
        self._counts["reset"] += 1
        self._abort()

    def finish(self) -> None:
        """Send FIN to both sides and forward nothing more; close when both have answered it."""
        self._counts["fin"] += 1
        self._silenced.update(Way)
        self._flowing.set()
        for end in self._sockets:
            _shut(end)
        self._deadline.reschedule(asyncio.get_running_loop().time() + LINGER_S)

    def half_close(self, way: Way) -> None:
        """Send FIN in one direction and throw away what travels there; the other one goes on."""
        self._counts["half_close"] += 1
        self._silenced.add(way)
        _shut(self._sockets[1 if way is Way.UP else 0])

    def cut(self, way: Way, after: int, end: End) -> None:
        """Break off once `after` further bytes went in that direction, and not one more."""
        self._counts["cut"] += 1
        self._cuts[way] = (after, end)

    def black_hole(self) -> None:
        """Forward nothing more, either way, and keep both sockets open."""
        self._counts["black_hole"] += 1
        self._flowing.clear()

    # Forwarding

    async def _pump(self, source: socket.socket, sink: socket.socket, way: Way) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(source, self._pace.slice_bytes):
                await self._flowing.wait()
                if self._pace.pause_s:
                    await asyncio.sleep(self._pace.pause_s)
                if way in self._silenced:
                    continue
                data, end = self._before_cut(way, data)
                if way is Way.UP:
                    self.opening += data[: OPENING_BYTES - len(self.opening)]
                await loop.sock_sendall(sink, data)
                self.forwarded[way] += len(data)
                if end is not None:
                    self._break(end)
            await self._flowing.wait()
            _shut(sink)
        except OSError:  # one side broke the connection: so it is broken for the other
            self._counts["broken"] += 1
            self._abort()

    def _before_cut(self, way: Way, data: bytes) -> tuple[bytes, End | None]:
        """Return what of it may pass, and how to break off after it, if that is now."""
        if way not in self._cuts:
            return data, None
        after, end = self._cuts[way]
        if len(data) < after:
            self._cuts[way] = (after - len(data), end)
            return data, None
        del self._cuts[way]
        return data[:after], end

    def _break(self, end: End) -> None:
        if end is End.RESET:
            self.reset()
        else:
            self.finish()

    def _abort(self) -> None:
        # Cancelling strikes at the next suspension, and sockets with data ready never suspend.
        self._silenced.update(Way)
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        for pump in self._pumps:
            pump.cancel()


class FaultProxy:
    """Listens on a port of its own and forwards to another. Use as an async context manager.

    Leaving closes whatever is open.

    Args:
        target_port: where to, on this machine.
        patience_s: how long a new connection waits for a target that does not listen, as a
            platform's router does while a dyno starts.

    Attributes:
        port: where it listens, for its whole life.
        pace: may be changed at any time.
        counts: what happened, by name: accepted, unreachable, each fault, broken (by one of the
            sides), lingered (after FIN a side kept its half open).
    """

    def __init__(self, target_port: int, *, patience_s: float = 0.0) -> None:
        self.pace = Pace()
        self.counts: Counter[str] = Counter()
        self.patience_s = patience_s
        self._target_port = target_port
        self._tunnels: list[Tunnel] = []
        self._tasks = asyncio.TaskGroup()
        self._running: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self._guard = hold_port()
        self.port: int = self._guard.getsockname()[1]

    async def __aenter__(self) -> Self:
        """Listen."""
        await self._tasks.__aenter__()
        self._listen()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop listening and close what is open."""
        self._deafen()
        self._guard.close()
        for task in self._running:
            task.cancel()
        await self._tasks.__aexit__(exc_type, exc, traceback)

    @property
    def tunnels(self) -> list[Tunnel]:
        """The open connections, oldest first."""
        return list(self._tunnels)

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Refuse new connections inside; those that are open go on."""
        self.counts["refusing"] += 1
        self._deafen()
        try:
            yield
        finally:
            self._listen()

    def _listen(self) -> None:
        if self._listener is not None:
            return
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        listener.bind((HOST, self.port))
        listener.listen(BACKLOG)
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)
        self._listener = listener

    def _deafen(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _accept(self, listener: socket.socket) -> None:
        try:
            near, _ = listener.accept()
        except OSError:  # the dialler has already gone
            return
        near.setblocking(False)
        self.counts["accepted"] += 1
        task = self._tasks.create_task(self._carry(near), name="tunnel")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _carry(self, near: socket.socket) -> None:
        with near:
            far = await self._dial()
            if far is None:
                self.counts["unreachable"] += 1
                return
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            tunnel = Tunnel(near, far, self.pace, self.counts)
            self._tunnels.append(tunnel)
            try:
                await tunnel.run()
            finally:
                self._tunnels.remove(tunnel)

    async def _dial(self) -> socket.socket | None:
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self.patience_s
        while True:
            far = socket.socket()
            far.setblocking(False)
            try:
                await loop.sock_connect(far, (HOST, self._target_port))
            except OSError:
                far.close()
            except asyncio.CancelledError:
                far.close()
                raise
            else:
                return far
            if loop.time() >= give_up:
                return None
            await asyncio.sleep(DIAL_PAUSE_S)


def hold_port() -> socket.socket:
    """Return a socket that keeps a free port from being given to others until it is closed.

    It does not listen, so a connection to the port is refused; whoever sets SO_REUSEADDR, as
    servers do, can listen on it meanwhile (Linux).
    """
    guard = socket.socket()
    guard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    guard.bind((HOST, 0))
    return guard


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_WR)
