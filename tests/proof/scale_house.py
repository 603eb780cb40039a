"""The processes of the scale proof: an engine, gateways that share it, a router before them.

Every gateway keeps its port for life, through all its processes. Nothing that was started outlives
a `House`: whatever works in its folder is known by that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import aiohttp
import psutil

from tests.fakes.fault_proxy import HOST, hold_port
from tests.fakes.scatter import Scatter
from tests.fakes.valkey import ValkeyServer
from tests.proof.outfit import POLL_S, REPOSITORY, until

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping
    from types import TracebackType

SERVER = Path(__file__).resolve().parent / "scale_server.py"

PRINCIPALS = ("ada", "bob", "eve")

START_S = 60.0
"""Until /health answers; the machine is busy."""

STOP_S = 35.0
"""From SIGTERM to exit: above the 25 s that a gateway may take to drain. Then comes SIGKILL."""

CLOSED_S = 5.0
"""From SIGTERM until the port is free for the next process."""

HEALTH_S = 2.0
GONE_S = 20.0
"""Until agents and their children have gone after the gateways."""

MAX_SESSIONS = 1000
"""Above what a proof opens: all of it on one gateway, when the others are dead."""


class Gateway:
    """One place where gateway processes run, one after the other.

    Args:
        name: for people and files.
        folder: for its log.
        environment: without PORT.
        direct: agents dial the gateway that has launched them, rather than the router.

    Attributes:
        port: where it listens.
        url: of its MCP endpoint, past the router.
        starts: of processes.
        bad_ends: how those ended that were to end in good order and did not.
    """

    def __init__(
        self, name: str, folder: Path, environment: Mapping[str, str], *, direct: bool = False
    ) -> None:
        self.name = name
        self.starts = 0
        self.bad_ends: list[str] = []
        self.log = folder / f"{name}.log"
        self._guard = hold_port()
        self.port: int = self._guard.getsockname()[1]
        self.url = f"http://{HOST}:{self.port}/mcp"
        own = {"GATEWAY_URL": f"http://{HOST}:{self.port}"} if direct else {}
        self._environment = {**environment, **own, "PORT": str(self.port)}
        self._process: asyncio.subprocess.Process | None = None

    @property
    def runs(self) -> bool:
        """There is a process that was not told to end."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int | None:
        """Of the process that runs."""
        return self._process.pid if self._process is not None and self.runs else None

    async def start(self) -> None:
        """Start a process and wait until it answers.

        Raises:
            RuntimeError: it ended instead.
            TimeoutError: it did not answer in time.
        """
        with self.log.open("ab") as log:
            process = self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "gateway", "serve"),
                cwd=REPOSITORY,
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.starts += 1
        async with asyncio.timeout(START_S):
            while not await self.answers():
                if process.returncode is not None:
                    raise RuntimeError(
                        f"{self.name} ended with {process.returncode}: {self.tail()}"
                    )
                await asyncio.sleep(POLL_S)

    async def end(self, number: signal.Signals) -> asyncio.subprocess.Process:
        """Send the signal; return the process once another one may have its port.

        Raises:
            RuntimeError: none runs.
        """
        process, self._process = self._process, None
        if process is None:
            raise RuntimeError(f"{self.name} does not run")
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        if number is signal.SIGKILL:
            await process.wait()
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSED_S):
                    while await _takes_connections(self.port):  # noqa: ASYNC110 - see there
                        await asyncio.sleep(POLL_S)
        return process

    async def gone(self, process: asyncio.subprocess.Process) -> None:
        """Wait for the end of a process that was told to leave; one that does not is killed."""
        try:
            async with asyncio.timeout(STOP_S):
                status = await process.wait()
            if status != 0:
                self.bad_ends.append(f"{self.name} ended with {status}")
        except TimeoutError:
            self.bad_ends.append(f"{self.name} still ran {STOP_S:.0f} s after SIGTERM")
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    async def answers(self) -> bool:
        """Whether it says that it serves."""
        timeout = aiohttp.ClientTimeout(total=HEALTH_S)
        url = f"http://{HOST}:{self.port}/health"
        try:
            async with aiohttp.ClientSession(timeout=timeout) as http, http.get(url) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    def tail(self, characters: int = 3000) -> str:
        """Return the end of its log."""
        if not self.log.exists():
            return ""
        return self.log.read_text(encoding="utf-8", errors="replace")[-characters:]

    def close(self) -> None:
        """Give the port back."""
        self._guard.close()


class House:
    """All of it. Use as an async context manager; leaving ends everything.

    Args:
        folder: empty.
        gateways: how many.
        chance: of the router.
        settings: further environment of the gateways.
        shares: whether they have the engine; a house without has one gateway.
        direct: see `Gateway`.

    Attributes:
        keys: of clients, by principal.
        engine, router, gateways: see there.
        left: processes that had to be killed at the end.
    """

    def __init__(
        self,
        folder: Path,
        gateways: int,
        chance: random.Random,
        settings: Mapping[str, str] | None = None,
        *,
        shares: bool = True,
        direct: bool = False,
    ) -> None:
        self.keys = {name: secrets.token_urlsafe(24) for name in PRINCIPALS}
        self.engine = ValkeyServer()
        self._engine_guard = _hold(self.engine.port)
        self.left: list[str] = []
        self._folder = folder
        self._shares = shares
        (folder / "tmp").mkdir(parents=True)
        self.router = Scatter((), chance)
        environment = {**self._environment(), **(settings or {})}
        self.gateways = [
            Gateway(f"gateway-{number}", folder, environment, direct=direct)
            for number in range(1, gateways + 1)
        ]
        self.router.backends = [gateway.port for gateway in self.gateways]

    @property
    def url(self) -> str:
        """The MCP endpoint behind the router."""
        return f"{self.router.url}/mcp"

    async def __aenter__(self) -> Self:
        """Start everything."""
        try:
            self._write_servers()
            await self.router.__aenter__()
            if self._shares:
                await asyncio.to_thread(self.engine.start)
            async with asyncio.TaskGroup() as tasks:
                for gateway in self.gateways:
                    tasks.create_task(gateway.start())
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
        """End everything; without an exception in good order, which ends the sessions."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for gateway in self.gateways:
                    if gateway.runs:
                        tasks.create_task(self._end(gateway, kill=exc is not None))
            if exc is None:
                await until(lambda: not self.company(), GONE_S)
        finally:
            self._kill_the_rest()
            await self.router.__aexit__(exc_type, exc, traceback)
            self.engine.__exit__()
            self._engine_guard.close()
            for gateway in self.gateways:
                gateway.close()

    async def _end(self, gateway: Gateway, *, kill: bool) -> None:
        process = await gateway.end(signal.SIGKILL if kill else signal.SIGINT)
        if not kill:
            await gateway.gone(process)

    def _write_servers(self) -> None:
        arguments = ["-I", "-S", str(SERVER)]
        entry: dict[str, Any] = {"command": sys.executable, "args": arguments, "era": "dual"}
        servers = {"mcpServers": {"proof": {**entry, "default": True}}}
        self._servers_file.write_text(json.dumps(servers), encoding="utf-8")

    @property
    def _servers_file(self) -> Path:
        return self._folder / "servers.json"

    def _environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
        shared = {"REDIS_URL": self.engine.url} if self._shares else {}
        return {
            **kept,
            **shared,
            "HOME": str(self._folder),
            "TMPDIR": str(self._folder / "tmp"),
            "API_KEY": ",".join(f"{name}:{key}" for name, key in self.keys.items()),
            "GATEWAY_SERVERS": str(self._servers_file),
            "GATEWAY_SECRET": secrets.token_urlsafe(32),
            "GATEWAY_URL": self.router.url,
            "LAUNCHER": "local",
            "LOG_FORMAT": "json",
            "MAX_SESSIONS": str(MAX_SESSIONS),
        }

    async def restart_engine(self) -> None:
        """Kill the engine, and start it without its memory."""
        await asyncio.to_thread(self.engine.restart)

    # Processes

    def company(self) -> list[psutil.Process]:
        """Return the agents and children of this house that live."""
        home = str(self._folder / "tmp")
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                lives = process.status() != psutil.STATUS_ZOMBIE
                if lives and process.cwd().startswith(home):
                    found.append(process)
        return found

    def _kill_the_rest(self) -> None:
        for process in self.company():
            with contextlib.suppress(psutil.Error):
                self.left.append(f"{process.pid} {' '.join(process.cmdline())}")
                process.kill()

    def resident_bytes(self) -> int:
        """The largest resident memory of a gateway now."""
        sizes = [0]
        for pid in filter(None, (gateway.pid for gateway in self.gateways)):
            with contextlib.suppress(psutil.Error):
                sizes.append(int(psutil.Process(pid).memory_info().rss))
        return max(sizes)


def _hold(port: int) -> socket.socket:
    """Keep a port from being given to a connection while its server is away; see `hold_port`."""
    guard = socket.socket()
    guard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    guard.bind((HOST, port))
    return guard


async def _takes_connections(port: int) -> bool:
    try:
        async with asyncio.timeout(HEALTH_S):
            _, writer = await asyncio.open_connection(HOST, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
