"""The child: one stdio MCP server process, its three pipes and its end.

It knows nothing of links and sessions. The child runs in a process group of its own, so that
whatever it starts can be ended with it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dyno_agent.compat import timeout
from dyno_agent.hardening import die_with_parent
from dyno_agent.slots import SLOTS
from dyno_agent.stdio import LineSplitter, Oversized

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from dyno_agent.link import ChildSpec

CHUNK_BYTES = 256 * 1024
"""Read from a pipe at once: four pipe buffers, so that a large message takes few wake-ups."""

UNREAD_BYTES = 32 * 1024 * 1024
"""What may wait in our memory for a child that does not read: the largest message and its like."""

STDERR_LINE_BYTES = 16 * 1024
STDERR_TAIL_BYTES = 4 * 1024
"""How much of the last stderr output goes into the exit report."""

PIPE_LINGER_S = 1.0
"""How long to read on after the exit: a grandchild may hold the pipe open for ever."""


class SpawnFailed(Exception):
    """The command could not be started; the message says why, for people."""


@dataclass(frozen=True, **SLOTS)
class ExitReport:
    """How a child ended.

    Attributes:
        code: exit code, or None when a signal ended it.
        signal: name of that signal, such as SIGKILL.
        asked: True when we ended it, False when it left by itself.
        seconds: how long it ran.
        stderr_tail: its last stderr lines.
    """

    code: int | None
    signal: str | None
    asked: bool
    seconds: float
    stderr_tail: str

    @property
    def status(self) -> int:
        """The code a shell would report: 128 + n for signal n."""
        if self.code is not None:
            return self.code
        return 128 + signal.Signals[self.signal or "SIGKILL"].value


class _Protocol(asyncio.subprocess.SubprocessStreamProtocol):
    """Tells the exit when it happens.

    `Process.wait` waits for the pipes too, in some versions of Python, and a grandchild may hold
    those open for ever.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(CHUNK_BYTES, loop)
        self.exited = asyncio.Event()

    def process_exited(self) -> None:
        super().process_exited()
        self.exited.set()


class Child:
    """A running child. Make it with `Child.spawn`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        transport: asyncio.SubprocessTransport,
        exited: asyncio.Event,
    ) -> None:
        if process.stdin is None or process.stdout is None or process.stderr is None:
            raise ValueError("the child needs all three pipes")
        self._process = process
        self._transport = transport
        self._exited = exited
        self._stdin, self._stdout, self._stderr = process.stdin, process.stdout, process.stderr
        self._started = time.monotonic()
        self._tail = b""
        self._asked = False

    @classmethod
    async def spawn(cls, spec: ChildSpec, environment: Mapping[str, str]) -> Child:
        """Start the command, without a shell, in its own session and process group.

        Args:
            spec: what to run.
            environment: what the child inherits; `spec.env` is added on top.

        Raises:
            SpawnFailed: not found, not executable, bad working directory, or out of resources.
        """
        if not spec.argv:
            raise SpawnFailed("there is no command to start")
        loop = asyncio.get_running_loop()
        try:
            transport, protocol = await loop.subprocess_exec(
                lambda: _Protocol(loop),
                *spec.argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**environment, **spec.env},
                cwd=spec.cwd,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        except (OSError, ValueError) as error:
            raise SpawnFailed(_why_not(spec, error)) from error
        process = asyncio.subprocess.Process(transport, protocol, loop)
        return cls(process, transport, protocol.exited)

    @property
    def pid(self) -> int:
        """Its process id, which is also its process group."""
        return self._process.pid

    async def write(self, line: bytes) -> bool:
        """Write one message to stdin and wait until the pipe took it.

        Returns:
            False when the child no longer reads; nothing further can be written then.
        """
        try:
            self._stdin.writelines((line, b"\n"))
            await self._stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    async def slip(self, line: bytes) -> None:
        """Write a short message beside those of `write`.

        It does not wait for a child that is busy: who reads the child's stdout calls this, and must
        go on reading. Only a child that leaves far too much unread is waited for.
        """
        try:
            self._stdin.writelines((line, b"\n"))
            if self._stdin.transport.get_write_buffer_size() > UNREAD_BYTES:
                await self._stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            return  # `write` finds out as well, and says so

    async def messages(self, limit: int) -> AsyncIterator[list[bytes | Oversized]]:
        """Yield what stdout says, as lists of whole lines, until it is closed."""
        splitter = LineSplitter(limit)
        while chunk := await self._stdout.read(CHUNK_BYTES):
            if lines := splitter.feed(chunk):
                yield lines
        if lines := splitter.finish():
            yield lines

    async def stderr_lines(self) -> AsyncIterator[str]:
        """Yield stderr line by line, undecodable bytes escaped, until it is closed."""
        splitter = LineSplitter(STDERR_LINE_BYTES)
        while chunk := await self._stderr.read(CHUNK_BYTES):
            self._tail = (self._tail + chunk)[-STDERR_TAIL_BYTES:]
            for line in splitter.feed(chunk):
                yield _text(line)
        for line in splitter.finish():
            yield _text(line)

    async def wait(self) -> None:
        """Return when the process has exited, whoever still holds its pipes."""
        await self._exited.wait()

    async def end(self, grace_s: float) -> None:
        """Climb the kill ladder until the child is gone, then sweep its process group.

        Stdin EOF, SIGTERM, SIGKILL (MCP, stdio shutdown), half of `grace_s` after each of the
        first two. Returns at once when the child already left.
        """
        rungs = (
            (self._stdin.close, grace_s / 2),
            (lambda: self._signal_group(signal.SIGTERM), grace_s / 2),
            (lambda: self._signal_group(signal.SIGKILL), None),
        )
        for climb, patience_s in rungs:
            if self._exited.is_set():
                break
            self._asked = True
            climb()
            try:
                async with timeout(patience_s):
                    await self._exited.wait()
            except TimeoutError:
                continue
        self._signal_group(signal.SIGKILL)
        self._stdin.close()

    def close(self) -> None:
        """Let go of the pipes: after `end`, and after whatever is left in them was read."""
        self._transport.close()

    def report(self) -> ExitReport:
        """Return how it ended. Only after `wait` or `end`."""
        status = self._process.returncode or 0
        return ExitReport(
            code=status if status >= 0 else None,
            signal=signal.Signals(-status).name if status < 0 else None,
            asked=self._asked,
            seconds=round(time.monotonic() - self._started, 3),
            stderr_tail=self._tail.decode(errors="backslashreplace"),
        )

    def _signal_group(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return  # the whole group is gone, which is what we want


def _text(line: bytes | Oversized) -> str:
    if isinstance(line, Oversized):
        return f"[a line of {line.size} bytes was left out]"
    return line.decode(errors="backslashreplace")


def _why_not(spec: ChildSpec, error: Exception) -> str:
    command = spec.argv[0]
    if isinstance(error, FileNotFoundError):
        if spec.cwd is not None and not os.path.isdir(spec.cwd):  # noqa: PTH112 - no Path needed
            return f"working directory not found: {spec.cwd}"
        return f"command not found: {command} (is it installed in the dyno, and on its PATH?)"
    if isinstance(error, PermissionError):
        return f"command is not executable: {command}"
    return f"command could not be started: {command}: {error}"
