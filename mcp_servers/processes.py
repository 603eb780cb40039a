"""Run a command as a process group of its own: bounded time, output and memory, nothing left.

Linux only: exits are seen through pidfds, memory through /proc, and the kernel is told to kill the
group when this process dies. Knows neither MCP nor what it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

CHUNK = 64 * 1024
"""Bytes per read: what a Linux pipe holds."""

KILL_BOUND_S = 5.0
"""Seconds from SIGKILL to the exit; only a process stuck in the kernel takes longer."""

DRAIN_BOUND_S = 2.0
"""Seconds from the exit to the end of its output. At most a pipe's content is left to read, unless
a process that moved to a session of its own keeps the pipe open: it is not waited for."""

WEIGH_S = 0.2
"""Seconds between two looks at a group's memory. What grows between them is not seen: a limit wants
some room above it."""

BEAT_S = 5.0
"""Seconds between two beats: often enough for people, and below every proxy's idle time-out."""

INTERNAL_PREFIX = "RENDEZVOUS_"
"""Names of variables that belong to the gateway's agent; what is run never sees them."""

_GROUP, _RSS = 2, 21
"""Positions in /proc/PID/stat, counted from the state, which follows the name: fields 5 and 24."""


def inheritable(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a command may have: all but the internal ones."""
    return {
        name: value for name, value in environment.items() if not name.startswith(INTERNAL_PREFIX)
    }


@dataclass(frozen=True, slots=True)
class Beat:
    """What can be said of a process that still runs.

    Attributes:
        seconds: Since its start.
        output_bytes: Printed so far, to stdout and stderr together.
    """

    seconds: float
    output_bytes: int


@dataclass(frozen=True, slots=True)
class Finished:
    """How a process ended.

    Attributes:
        returncode: Its exit status; 128 + n if signal n ended it, as shells have it, so that
            negative numbers stay free for the caller's own meanings.
        stdout: Decoded, invalid UTF-8 replaced, cut to the limit with a marker at the cut.
        stderr: Likewise.
        timed_out: Whether it was killed because its time was up.
        out_of_memory: Whether it was killed because its group took more memory than it may.
    """

    returncode: int
    stdout: str
    stderr: str
    timed_out: bool = False
    out_of_memory: bool = False


class Capture:
    """The start and the end of a stream of any length, in bounded memory.

    Both are kept, half the limit each: the start shows what the program does, the end has the
    traceback.

    Args:
        limit: Bytes to keep.
        variable: The environment variable that sets the limit, for the marker.
    """

    def __init__(self, limit: int, variable: str) -> None:
        self._limit = limit
        self._variable = variable
        self._tail_room = limit // 2
        self._head = bytearray()
        self._tail = bytearray()
        self.total = 0

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the stream."""
        self.total += len(chunk)
        room = self._limit - self._tail_room - len(self._head)
        self._head += chunk[:room]
        self._tail += chunk[room:]
        excess = len(self._tail) - self._tail_room
        if excess > 0:
            del self._tail[:excess]

    def text(self) -> str:
        """What was kept, with a marker where bytes were cut."""
        cut = self.total - self._limit
        marker = (
            f"\n[... {cut} bytes cut: the limit is {self._limit} bytes, see {self._variable} ...]\n"
            if cut > 0
            else ""
        )
        return (bytes(self._head) + marker.encode() + bytes(self._tail)).decode(errors="replace")


class _Child:
    """A process group with its pipes, from its start to the reaping of its leader.

    All work is done in callbacks of the loop, none of them awaits: it can be abandoned at any time
    with `close`, also inside a cancelled scope, and is still killed and reaped.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], lifeline: int, capture: Callable[[], Capture]
    ) -> None:
        self._process = process
        self._lifeline = lifeline
        self._loop = asyncio.get_running_loop()
        self._pidfd = os.pidfd_open(process.pid)
        self._open: set[int] = set()
        self.exited = asyncio.Event()
        self.drained = asyncio.Event()
        self.stdout = self._read(process.stdout, capture())
        self.stderr = self._read(process.stderr, capture())
        self._loop.add_reader(self._pidfd, self._on_exit)

    @property
    def returncode(self) -> int:
        """The exit status, or 128 + SIGKILL as long as there is none."""
        code = self._process.returncode
        if code is None:
            return 128 + signal.SIGKILL
        return code if code >= 0 else 128 - code

    def weigh(self) -> int:
        """Bytes resident in the whole group."""
        return _resident(self._process.pid)

    def kill(self) -> None:
        """Kill the whole group; no-op after the exit, when the group is dead already."""
        if not self.exited.is_set():
            # The leader is not reaped yet, so the number cannot be somebody else's.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill what is left and let go of the pipes; the reaping follows when it is due."""
        self.kill()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                self._stop_reading(pipe.fileno())
                pipe.close()
        os.close(self._lifeline)

    def reap(self) -> None:
        """Block until the leader is gone, at most `KILL_BOUND_S`; for when the loop is ending."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_BOUND_S)

    def _on_exit(self) -> None:
        self.kill()  # what the code started ends with it
        self._process.wait()  # returns at once: the pidfd said so
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.exited.set()

    def _read(self, pipe: IO[bytes] | None, capture: Capture) -> Capture:
        if pipe is not None:  # for the type's sake: `_spawn` asks for pipes
            fd = pipe.fileno()
            os.set_blocking(fd, False)
            self._open.add(fd)
            self._loop.add_reader(fd, self._on_output, fd, capture)
        return capture

    def _on_output(self, fd: int, capture: Capture) -> None:
        chunk = os.read(fd, CHUNK)
        if chunk:
            capture.feed(chunk)
        else:
            self._stop_reading(fd)

    def _stop_reading(self, fd: int) -> None:
        if fd in self._open:
            self._open.remove(fd)
            self._loop.remove_reader(fd)
        if not self._open:
            self.drained.set()


class Runner:
    """Starts processes and knows those that run.

    Args:
        output_bytes: How much of stdout, and of stderr, is kept of each.
        variable: The environment variable that sets this, named where output is cut.
        beat_s: Seconds between two beats.
    """

    def __init__(self, output_bytes: int, variable: str, *, beat_s: float = BEAT_S) -> None:
        self._output_bytes = output_bytes
        self._variable = variable
        self._beat_s = beat_s
        self._live: set[_Child] = set()

    async def run(
        self,
        command: Sequence[str | Path],
        *,
        cwd: Path,
        environment: Mapping[str, str],
        seconds: float,
        memory_bytes: int | None = None,
        beat: Callable[[Beat], Awaitable[None]] | None = None,
    ) -> Finished:
        """Run a command to its end, with nothing on stdin.

        When this returns or is cancelled, the command and everything in its process group has been
        killed.

        Args:
            command: The program and its arguments.
            cwd: Its working directory.
            environment: Its whole environment.
            seconds: How long it may run.
            memory_bytes: How much its group may have resident, if there is a limit. Pages that
                processes share count for each of them.
            beat: Awaited every `beat_s` seconds while it runs. One that takes longer than
                `WEIGH_S` is abandoned: nobody listens, and time and memory have to be watched.

        Raises:
            OSError: It could not be started.
            ValueError: A word or a variable holds a NUL or half a surrogate pair.
        """
        child = _spawn(command, cwd, environment, self._capture)
        # Children stay here until they are reaped, which can be after an abandoned call's end.
        self._live = {other for other in self._live if not other.exited.is_set()} | {child}
        timed_out = out_of_memory = False
        try:
            try:
                async with asyncio.timeout(seconds):
                    out_of_memory = await self._watch(child, memory_bytes, beat)
            except TimeoutError:
                timed_out = not child.exited.is_set()
            child.kill()
            await _happens(child.exited, within=KILL_BOUND_S)
            await _happens(child.drained, within=DRAIN_BOUND_S)
        finally:
            child.close()
        return Finished(
            child.returncode,
            child.stdout.text(),
            child.stderr.text(),
            timed_out=timed_out,
            out_of_memory=out_of_memory,
        )

    def close(self) -> None:
        """Kill everything that runs; blocks until it is gone, so only at the end of the process."""
        for child in self._live:
            child.kill()
        for child in self._live:
            child.reap()

    async def _watch(
        self,
        child: _Child,
        memory_bytes: int | None,
        beat: Callable[[Beat], Awaitable[None]] | None,
    ) -> bool:
        """Wait for the exit; True if the group has taken too much memory before it."""
        clock = asyncio.get_running_loop().time
        started = clock()
        due = started + self._beat_s
        while True:
            pauses = [] if memory_bytes is None else [WEIGH_S]
            if beat is not None:
                pauses.append(max(0.0, due - clock()))
            if await _happens(child.exited, within=min(pauses, default=None)):
                return False
            if memory_bytes is not None and child.weigh() > memory_bytes:
                return True
            if beat is not None and clock() >= due:
                printed = child.stdout.total + child.stderr.total
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(WEIGH_S):
                        await beat(Beat(clock() - started, printed))
                due = clock() + self._beat_s

    def _capture(self) -> Capture:
        return Capture(self._output_bytes, self._variable)


async def _happens(event: asyncio.Event, *, within: float | None) -> bool:
    try:
        async with asyncio.timeout(within):
            await event.wait()
    except TimeoutError:
        return False
    return True


def _resident(group: int) -> int:
    """Bytes that the processes of a group have resident, by /proc.

    Not RLIMIT_AS, which counts what is reserved: V8 reserves gigabytes that it never touches.
    """
    pages = 0
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdecimal():
                # It may be gone by now; and what hides its entry is no process of this user.
                with contextlib.suppress(OSError):
                    status = Path(entry.path, "stat").read_bytes()
                    # proc_pid_stat(5): the name, in parentheses, may hold blanks and parentheses.
                    fields = status[status.rindex(b")") + 2 :].split()
                    pages += int(fields[_RSS]) if int(fields[_GROUP]) == group else 0
    return pages * os.sysconf("SC_PAGESIZE")


def _spawn(
    command: Sequence[str | Path],
    cwd: Path,
    environment: Mapping[str, str],
    capture: Callable[[], Capture],
) -> _Child:
    """Start the process; blocks for the few milliseconds of vfork and exec."""
    guard, lifeline = os.pipe()
    try:
        process = subprocess.Popen(  # noqa: S603 - running what it is given is its purpose
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            pass_fds=(guard,),
        )
        _kill_when_we_die(guard, process.pid)
        return _Child(process, lifeline, capture)
    except (OSError, ValueError):
        os.close(lifeline)
        raise
    finally:
        os.close(guard)


def _kill_when_we_die(guard: int, group: int) -> None:
    """Have the kernel kill the group when the pipe's other end closes, as it does on our SIGKILL.

    fcntl(2), F_SETSIG: a pipe with O_ASYNC sends the signal of one's choice to its owner, here a
    group. The child holds the pipe open and need not cooperate. PR_SET_PDEATHSIG would reach the
    child only, not what it started.
    """
    fcntl.fcntl(guard, fcntl.F_SETOWN, -group)
    fcntl.fcntl(guard, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(guard, fcntl.F_SETFL, fcntl.fcntl(guard, fcntl.F_GETFL) | os.O_ASYNC)
