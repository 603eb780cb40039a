"""The processes of the proof: a gateway that can be killed and started again, behind a proxy.

Agents dial through the proxy, clients come directly. Nothing it started outlives it: processes are
known by their parents, by the launch in their command line, and by a mark in their environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import signal
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import aiohttp
import psutil

from tests.fakes.fault_proxy import HOST, FaultProxy, Tunnel, hold_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

REPOSITORY = Path(__file__).resolve().parents[2]
SERVER = Path(__file__).resolve().parent / "server.py"

MARK = "LINK_PROOF_RUN"
"""Environment variable of the servers of a run."""

START_S = 20.0
"""Until /health answers."""

STOP_S = 35.0
"""From SIGTERM to exit: above the 25 s a gateway may take to drain."""

GONE_S = 15.0
"""Until agents and their children have gone after their session or their gateway."""

POLL_S = 0.05

HEALTH_S = 2.0

TAIL = 6000
"""Characters of a log shown with a failure."""

ALARMING = {"breach", "dropped", "closing", "stdout_noise"}
MANY = 60
"""Records shown of them."""


@dataclass(frozen=True)
class Seen:
    """A process, and which one of those that had its id."""

    pid: int
    created: float


class Outfit:
    """One gateway, its servers file, its proxy. Use as an async context manager.

    Leaving ends the gateway with SIGTERM and whatever is left with SIGKILL.

    Args:
        folder: empty; gets the files and is the TMPDIR of the gateway, so of the dynos.
        settings: further environment of the gateway.

    Attributes:
        proxy: between agents and gateway.
        key: a client's.
        url: of the MCP endpoint, past the proxy.
        starts: of gateway processes.
        left: processes that had to be killed at the end.
    """

    def __init__(self, folder: Path, settings: dict[str, str] | None = None) -> None:
        self.key = secrets.token_urlsafe(24)
        self.starts = 0
        self.left: list[str] = []
        self._run = secrets.token_hex(12)
        self._folder = folder
        self._settings = settings or {}
        self._secret = secrets.token_urlsafe(32)
        self._guard = hold_port()
        self._port: int = self._guard.getsockname()[1]
        self.url = f"http://{HOST}:{self._port}/mcp"
        self.proxy = FaultProxy(self._port)
        self._log_file = folder / "gateway.log"
        self._servers_file = folder / "servers.json"
        self._gateway: asyncio.subprocess.Process | None = None
        self._seen: set[Seen] = set()
        self._read = 0
        self._stories: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self._launches: defaultdict[str, set[str]] = defaultdict(set)

    # Life

    async def __aenter__(self) -> Self:
        """Open the proxy and start the gateway."""
        entry: dict[str, Any] = {"command": sys.executable, "args": [str(SERVER)]}
        # No throw-away runs: every process is a session's that the proof has opened.
        entry |= {"env": {MARK: self._run}, "era": "legacy", "catalogue": False}
        servers = {"mcpServers": {"proof": {**entry, "default": True}}}
        self._servers_file.write_text(json.dumps(servers), encoding="utf-8")
        (self._folder / "tmp").mkdir()
        await self.proxy.__aenter__()
        try:
            await self.start()
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End everything."""
        try:
            self.look_round()
            await self._stop()
            if exc is None:
                await until(lambda: not self.processes(), GONE_S)
        finally:
            self._kill_the_rest()
            self._guard.close()
            await self.proxy.__aexit__(exc_type, exc, traceback)

    async def start(self) -> None:
        """Start a gateway process and wait until it answers.

        Raises:
            RuntimeError: it ended instead.
        TimeoutError: it did not answer in time.
        """
        with self._log_file.open("ab") as log:
            self._gateway = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "gateway", "serve"),
                cwd=REPOSITORY,
                env=self._environment(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.starts += 1
        async with asyncio.timeout(START_S):
            while not await self._answers():
                if self._gateway.returncode is not None:
                    raise RuntimeError(f"the gateway ended with {self._gateway.returncode}")
                await asyncio.sleep(POLL_S)

    async def kill(self) -> None:
        """End the gateway with SIGKILL, and wait until it has gone."""
        if self._gateway is None:
            raise RuntimeError("no gateway runs")
        self.look_round()
        self._gateway.kill()
        async with asyncio.timeout(STOP_S):
            await self._gateway.wait()
        self._gateway = None

    async def _stop(self) -> None:
        if self._gateway is None:
            return
        with contextlib.suppress(ProcessLookupError, TimeoutError):
            self._gateway.send_signal(signal.SIGTERM)
            async with asyncio.timeout(STOP_S):
                await self._gateway.wait()

    def _environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
        return {
            **kept,
            "HOME": str(self._folder),
            "TMPDIR": str(self._folder / "tmp"),
            "PORT": str(self._port),
            "API_KEY": self.key,
            "GATEWAY_SERVERS": str(self._servers_file),
            "GATEWAY_SECRET": self._secret,
            "GATEWAY_URL": f"http://{HOST}:{self.proxy.port}",
            "LAUNCHER": "local",
            "LOG_FORMAT": "json",
            **self._settings,
        }

    async def _answers(self) -> bool:
        timeout = aiohttp.ClientTimeout(total=HEALTH_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as http,
                http.get(self.url.removesuffix("/mcp") + "/health") as response,
            ):
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    # Processes

    def look_round(self) -> None:
        """Remember whom the gateway has started: after its end, nothing says so."""
        if self._gateway is None or self._gateway.returncode is not None:
            return
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(self._gateway.pid).children(recursive=True):
                self._seen.add(Seen(process.pid, process.create_time()))

    def processes(self) -> list[psutil.Process]:
        """The living processes of this run, without the gateway."""
        self._read_on()
        launches = set().union(*self._launches.values())
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.status() != psutil.STATUS_ZOMBIE and self._is_ours(process, launches):
                    found.append(process)
        return found

    def _is_ours(self, process: psutil.Process, launches: set[str]) -> bool:
        if Seen(process.pid, process.create_time()) in self._seen:
            return True
        line = process.cmdline()
        if "--launch" in line:
            return line[-1] in launches
        return str(SERVER) in line and process.environ().get(MARK) == self._run

    def _kill_the_rest(self) -> None:
        if self._gateway is not None and self._gateway.returncode is None:
            self._gateway.kill()
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                self.left.append(f"{process.pid} {' '.join(process.cmdline())}")
                process.kill()

    def resident_bytes(self) -> int:
        """The gateway's resident memory; 0 while none runs."""
        if self._gateway is None or self._gateway.returncode is not None:
            return 0
        try:
            return int(psutil.Process(self._gateway.pid).memory_info().rss)
        except psutil.Error:
            return 0

    # What it says

    def records(self) -> list[dict[str, Any]]:
        """The records of all sessions, each session's in order."""
        self._read_on()
        return [record for story in self._stories.values() for record in story]

    def story(self, session: str) -> list[dict[str, Any]]:
        """The records of a session, by what its client holds; from all gateway processes."""
        self._read_on()
        return self._stories[_public(session)]

    def tunnels(self, session: str) -> list[Tunnel]:
        """The open connections of a session's agent, oldest first."""
        self._read_on()
        launches = self._launches[_public(session)]
        return [
            tunnel
            for tunnel in self.proxy.tunnels
            if any(f"_{launch}.".encode() in tunnel.opening for launch in launches)
        ]

    def _read_on(self) -> None:
        """Read what the log has gained, whole lines only; those that are no records are skipped."""
        if not self._log_file.exists():
            return
        with self._log_file.open("rb") as log:
            log.seek(self._read)
            whole, newline, _ = log.read().rpartition(b"\n")
        self._read += len(whole) + len(newline)
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict) and "session" in record:
                    self._stories[record["session"]].append(record)
                    if "launch" in record:
                        self._launches[record["session"]].add(record["launch"])

    def tails(self) -> str:
        """What went wrong according to the gateway, and the ends of all logs, for people."""
        bad = [
            json.dumps(record)
            for record in self.records()
            if record["event"] in ALARMING or record["level"] == "error"
        ]
        files = [self._log_file, *sorted((self._folder / "tmp").glob("dyno-*/agent.log"))]
        tails = [
            f"--- {path.relative_to(self._folder)}\n{_tail(path)}"
            for path in files
            if path.exists()
        ]
        return "\n".join(["--- alarming records", *bad[:MANY], *tails])


async def until(condition: Callable[[], bool], within_s: float) -> bool:
    """Poll until the condition is true, or for so long. Returns whether it is."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while not condition():  # noqa: ASYNC110 - processes and bytes set no Event
                await asyncio.sleep(POLL_S)
    return condition()


def _public(session: str) -> str:
    """The name by which the log calls a session."""
    return f"s-{hashlib.sha256(session.encode()).hexdigest()[:12]}"


def _tail(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")[-TAIL:]
