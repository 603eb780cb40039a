"""The life of one dyno: boots, runs a process, ends, leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.heroku_emulator import processes
from tests.heroku_emulator.logs import Cutter, Log
from tests.heroku_emulator.model import Cause, Dyno, Moment

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

LAST_WORDS_S = 5.0
"""For reading what an ended dyno has written; nothing of it is left that could write more."""

CHUNK_BYTES = 64 * 1024

ENDINGS: dict[Cause, str] = {
    "stopped": "Stopping all processes with SIGTERM",
    "restarted": "Restarting",
    "scaled": "Stopping all processes with SIGTERM",
    "time_to_live": "Time to live exceeded",
    "cycled": "Cycling",
    "killed": "Killed",
    "shutdown": "Killed",
}


@dataclass(frozen=True, slots=True)
class Run:
    """What a dyno runs, and how.

    Attributes:
        command: what bash gets.
        env: all of its environment but HOME.
        slug: what its folder starts as.
        root: where its folder is made.
        boot_delay: seconds until the process starts.
        dies_after: seconds until SIGKILL, or None.
        lifetime: seconds from its making until the platform ends it, and the cause.
        grace: seconds from SIGTERM to SIGKILL.
    """

    command: str
    env: Mapping[str, str]
    slug: Path | None
    root: Path
    boot_delay: float
    dies_after: float | None
    lifetime: tuple[float, Cause]
    grace: Callable[[], float]


class Running:
    """One dyno with its processes. `live` is its whole life; `end` asks for the end of it."""

    def __init__(self, dyno: Dyno, run: Run, log: Log, changed: Callable[[Dyno], None]) -> None:
        self.dyno = dyno
        self._run = run
        self._log = log
        self._changed = changed
        self._asked = asyncio.Event()
        self._cause: Cause | None = None
        self._at_once = asyncio.Event()
        self.ended = asyncio.Event()

    def end(self, cause: Cause, *, at_once: bool = False) -> None:
        """Ask for the end, with SIGTERM and the grace, or with SIGKILL at once; the first asks."""
        self._cause = self._cause or cause
        self._asked.set()
        if at_once:
            self._at_once.set()

    async def live(self) -> None:
        """Be a dyno from its making to its end."""
        home = await asyncio.to_thread(processes.make_home, self._run.root, self._run.slug)
        status: int | None = None
        try:
            if await self._booted():
                status = await self._be_up(home)
            await asyncio.to_thread(processes.remove_home, home)
        finally:
            self._finish(status)

    async def _booted(self) -> bool:
        dyno = self.dyno
        self._say(f"Starting process with command `{dyno.command}`")
        wait = min(self._run.boot_delay, self._left())
        try:
            async with asyncio.timeout(wait):
                await self._asked.wait()
        except TimeoutError:
            if self._left() > 0:
                return True
            self.end(self._run.lifetime[1])
        return False

    async def _be_up(self, home: Path) -> int:
        env = {**self._run.env, "HOME": str(home)}
        async with processes.output() as (written, stdout):
            process = await processes.start(self._run.command, home, env, stdout)
            try:
                self._enter_up()
                async with asyncio.TaskGroup() as tasks:
                    pump = tasks.create_task(self._pump(written), name=f"log of {self.dyno.name}")
                    await self._wait_for_end(process, home)
                    await asyncio.to_thread(processes.kill_remains, process.pid, home)
                    await asyncio.wait([pump], timeout=LAST_WORDS_S)
                    pump.cancel()
            except BaseException:  # cancelled, as its owner goes: there is no time to wait
                processes.kill_remains(process.pid, home)
                raise
        return _as_shell(await process.wait())

    async def _wait_for_end(self, process: asyncio.subprocess.Process, home: Path) -> None:
        async with asyncio.TaskGroup() as tasks:
            exited = tasks.create_task(process.wait())
            asked = tasks.create_task(self._asked.wait())
            dies = self._run.dies_after
            waits = [self._left()] if dies is None else [self._left(), dies]
            await asyncio.wait(
                [exited, asked], timeout=min(waits), return_when=asyncio.FIRST_COMPLETED
            )
            if not exited.done():
                if not asked.done():
                    doomed = dies is not None and dies <= min(waits)
                    self.end("killed" if doomed else self._run.lifetime[1], at_once=doomed)
                await self._end_processes(process, home)
            asked.cancel()

    async def _end_processes(self, process: asyncio.subprocess.Process, home: Path) -> None:
        assert self._cause is not None
        self._say(ENDINGS[self._cause])
        if not self._at_once.is_set():
            await asyncio.to_thread(processes.signal_all, process.pid, home, signal.SIGTERM)
            await self._wait_out_grace(process)
        if process.returncode is None:
            if not self._at_once.is_set():
                self._say("Error R12 (Exit timeout) -> At least one process failed to exit")
            await asyncio.to_thread(processes.kill_remains, process.pid, home)

    async def _wait_out_grace(self, process: asyncio.subprocess.Process) -> None:
        async with asyncio.TaskGroup() as tasks:
            exited = tasks.create_task(process.wait())
            hurried = tasks.create_task(self._at_once.wait())
            await asyncio.wait(
                [exited, hurried],
                timeout=self._run.grace(),
                return_when=asyncio.FIRST_COMPLETED,
            )
            exited.cancel()
            hurried.cancel()

    async def _pump(self, written: asyncio.StreamReader) -> None:
        cutter, data = Cutter(), b"-"
        while data:
            data = await written.read(CHUNK_BYTES)
            for text in cutter.feed(data):
                self._log.write("app", self.dyno.name, text)

    def _left(self) -> float:
        lived = Moment.now().monotonic - self.dyno.created.monotonic
        return max(0.0, self._run.lifetime[0] - lived)

    def _enter_up(self) -> None:
        self.dyno.state = "up"
        self.dyno.started = self.dyno.updated = Moment.now()
        self._say("State changed from starting to up")
        self._changed(self.dyno)

    def _finish(self, status: int | None) -> None:
        dyno, before = self.dyno, self.dyno.state
        dyno.exit_status = status
        dyno.cause = self._cause or "exited"
        if status is not None:
            self._say(f"Process exited with status {status}")
        failed = dyno.cause in ("exited", "killed") and not (dyno.one_off and status == 0)
        dyno.state = "crashed" if failed else "down"
        dyno.ended = dyno.updated = Moment.now()
        after = "complete" if dyno.one_off and status == 0 else dyno.state
        self._say(f"State changed from {before} to {after}")
        self.ended.set()
        self._changed(dyno)

    def _say(self, text: str) -> None:
        self._log.write("heroku", self.dyno.name, text)


def _as_shell(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode


def path_and_language() -> dict[str, str]:
    """Return what a dyno has of this machine: where programs are, and the language."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LANG": os.environ.get("LANG", "C.UTF-8")}
