"""A Heroku platform that is emulated, and a gateway on it that can be killed and started again.

The gateway is a process of its own, as are its dynos; the emulator runs here. What the gateway
writes to its log is read as records, those of all its processes in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import secrets
import signal
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import aiohttp
import psutil

from tests.fakes.fault_proxy import HOST, hold_port
from tests.heroku_emulator import AppSpec, Emulator, Options

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping
    from types import TracebackType

    from tests.heroku_emulator.model import Dyno

REPOSITORY = Path(__file__).resolve().parents[2]
LIGHT = f"{sys.executable} -IS {Path(__file__).resolve().parent / 'heroku_server.py'}"
"""Command of the server that starts at once."""

APP = "tools"
CLIENT = "prover"
"""Principal of the clients."""

START_S = 40.0
"""Until /health answers; the machine may be busy with a hundred dynos."""

STOP_S = 30.0
"""From SIGTERM to exit; then comes SIGKILL, as on the platform."""

CLOSED_S = 5.0
"""From SIGTERM until the port is free for the next process."""

HEALTH_S = 2.0
ADMIN_S = 10.0
POLL_S = 0.05

Record = dict[str, Any]


@dataclass(slots=True)
class Process:
    """The life of one gateway process, on the wall clock.

    Attributes:
        hears_from: it listens.
        hears_until: it was told to end.
        how: it ended; None while it runs.
    """

    started: float
    hears_from: float = math.inf
    hears_until: float = math.inf
    ended: float | None = None
    how: Literal["killed", "terminated"] | None = None

    def answers_for(self, moment: float) -> bool:
        """Whether what it was told then was its to act on: it ran, and was not to end."""
        return self.started <= moment < self.hears_until


@dataclass(frozen=True)
class Setting:
    """What a stage is set up with.

    Attributes:
        processes: Procfile of the app.
        servers: the servers file; None if all is discovered.
        gateway: further environment of the gateway.
        options: of the emulator.
        dyno_limit: of the app.
        keys: of further clients, by principal.
    """

    processes: Mapping[str, str]
    servers: Mapping[str, Any] | None
    gateway: Mapping[str, str] = field(default_factory=dict)
    options: Options = field(default_factory=Options)
    dyno_limit: int | None = None
    keys: Mapping[str, str] = field(default_factory=dict)


class Stage:
    """Emulator, gateway, log. Use as an async context manager; leaving ends everything.

    Attributes:
        heroku: the emulator.
        key: of the clients, whose principal is CLIENT.
        url: of the gateway, without a slash at the end.
        public_url: where agents dial; may be changed before `start`.
        gateways: the lives of its processes.
        bad_ends: how those ended that were to end in good order and did not.
    """

    def __init__(self, folder: Path, setting: Setting) -> None:
        self.key = secrets.token_urlsafe(24)
        self.gateways: list[Process] = []
        self.bad_ends: list[str] = []
        self._setting = setting
        self._folder = folder
        folder.mkdir(parents=True)
        self._admin_key = secrets.token_urlsafe(32)
        self._secret = secrets.token_urlsafe(32)
        self._guard = hold_port()
        self.port: int = self._guard.getsockname()[1]
        self.url = f"http://{HOST}:{self.port}"
        self.public_url = self.url
        path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        app = AppSpec(
            processes=setting.processes, config={"PATH": path}, dyno_limit=setting.dyno_limit
        )
        self.heroku = Emulator({APP: app}, setting.options)
        self._gateway: asyncio.subprocess.Process | None = None
        self._read: list[int] = []
        self._records: list[Record] = []
        self._open = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Start the emulator; the gateway is for `start`."""
        self._open.callback(self._guard.close)
        await self._open.enter_async_context(self.heroku)
        timeout = aiohttp.ClientTimeout(total=ADMIN_S)
        headers = {"Authorization": f"Bearer {self._admin_key}"}
        self._operator = await self._open.enter_async_context(
            aiohttp.ClientSession(headers=headers, timeout=timeout)
        )
        if self._setting.servers is not None:
            servers = {"mcpServers": self._setting.servers}
            (self._folder / "servers.json").write_text(json.dumps(servers), encoding="utf-8")
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End everything."""
        try:
            if self._gateway is not None and self._gateway.returncode is None:
                await self.end(signal.SIGKILL)
        finally:
            await self._open.aclose()

    # The gateway

    async def start(self) -> None:
        """Start a gateway process and wait until it answers.

        Raises:
            RuntimeError: it ended instead.
            TimeoutError: it did not answer in time.
        """
        with self._log_of(len(self.gateways)).open("ab") as log:
            life = Process(_wall())
            self._gateway = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "gateway", "serve"),
                cwd=REPOSITORY,
                env=self._environment(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.gateways.append(life)
        self._read.append(0)
        async with asyncio.timeout(START_S):
            while not await self._answers():
                if self._gateway.returncode is not None:
                    raise RuntimeError(f"the gateway ended with {self._gateway.returncode}")
                await asyncio.sleep(POLL_S)
        life.hears_from = _wall()

    async def end(self, number: signal.Signals) -> float:
        """End the gateway with a signal; return the seconds that took it."""
        assert self._gateway is not None
        gateway, life = self._gateway, self.gateways[-1]
        began = time.monotonic()
        life.how = "killed" if number is signal.SIGKILL else "terminated"
        life.hears_until = _wall()
        gateway.send_signal(number)
        try:
            async with asyncio.timeout(STOP_S):
                await gateway.wait()
        except TimeoutError:
            self.bad_ends.append(f"it needed more than {STOP_S:.0f} s from SIGTERM to its end")
            gateway.kill()
            await gateway.wait()
            life.how = "killed"
        else:
            if number is not signal.SIGKILL and gateway.returncode:
                self.bad_ends.append(f"it ended with {gateway.returncode} after {number.name}")
        life.ended = _wall()
        return time.monotonic() - began

    async def replace(self, tasks: asyncio.TaskGroup) -> asyncio.Task[float]:
        """Do what the platform does at a deploy: SIGTERM to one process, and start the next.

        Returns:
            The end of the former, which goes on in `tasks`; see `end`.
        """
        ending = tasks.create_task(self.end(signal.SIGTERM), name="end of a gateway")
        await until_so(self._is_closed, CLOSED_S)
        await self.start()
        return ending

    async def _is_closed(self) -> bool:
        return not await self._answers()

    def _environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
        keys = {CLIENT: self.key, **self._setting.keys}
        own = {
            "HOME": str(self._folder),
            "PORT": str(self.port),
            "API_KEY": ",".join(f"{name}:{key}" for name, key in keys.items()),
            "ADMIN_KEY": self._admin_key,
            "GATEWAY_SECRET": self._secret,
            "GATEWAY_URL": self.public_url,
            "LAUNCHER": "heroku",
            "HEROKU_API_KEY": self.heroku.api_key,
            "HEROKU_API_URL": self.heroku.url,
            "HEROKU_APPS": APP,
            "LOG_FORMAT": "json",
            "LOG_LEVEL": "debug",
        }
        if self._setting.servers is not None:
            own["GATEWAY_SERVERS"] = str(self._folder / "servers.json")
        return {**kept, **own, **self._setting.gateway}

    async def _answers(self) -> bool:
        timeout = aiohttp.ClientTimeout(total=HEALTH_S)
        try:
            async with self._operator.get(f"{self.url}/health", timeout=timeout) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def admin(self, path: str) -> Any:
        """Return a document of the operators' API.

        Raises:
            aiohttp.ClientError, TimeoutError, OSError: the gateway does not answer.
        """
        async with self._operator.get(f"{self.url}/admin/v1/{path}") as response:
            response.raise_for_status()
            return await response.json()

    async def registered(self, *servers: str) -> None:
        """Wait until the servers can be used.

        Raises:
            TimeoutError: they cannot.
        """
        async with asyncio.timeout(START_S):
            while True:
                with contextlib.suppress(aiohttp.ClientError, OSError):
                    known = await self.admin("servers")
                    if set(servers) <= {s["name"] for s in known if s["status"] == "registered"}:
                        return
                await asyncio.sleep(POLL_S)

    async def pool(self) -> list[Record]:
        """Return what is parked; nothing while the gateway does not answer."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            parked: list[Record] = await self.admin("pool")
            return parked
        return []

    async def left(self) -> list[Dyno]:
        """Return the dynos that have not ended and are not parked."""
        parked = {each["launch"] for each in await self.pool()}
        return [dyno for dyno in self.heroku.dynos_left() if launch_of(dyno) not in parked]

    async def emptied(self, within_s: float) -> list[Dyno]:
        """Wait until nothing runs but what is parked; return what does nevertheless."""
        await until_so(self._is_empty, within_s)
        return await self.left()

    async def _is_empty(self) -> bool:
        return not await self.left()

    # What it says

    def records(self) -> list[Record]:
        """The records of all processes so far, in order of time.

        Each has its moment as `at`, seconds since 1970, and the number of its process as `gateway`.
        """
        for number, read in enumerate(self._read):
            with self._log_of(number).open("rb") as log:
                log.seek(read)
                whole, newline, _ = log.read().rpartition(b"\n")
            self._read[number] += len(whole) + len(newline)
            self._records += _records(whole, number)
        self._records.sort(key=lambda record: float(record["at"]))
        return self._records

    def _log_of(self, number: int) -> Path:
        return self._folder / f"gateway-{number}.log"

    def story(self, launch: str) -> list[str]:
        """What the log has of a launch, and of the sessions that had it, for people."""
        records = self.records()
        sessions = {r["session"] for r in records if r.get("launch") == launch and "session" in r}
        return [
            json.dumps({k: v for k, v in record.items() if k not in ("at", "level", "gateway")})
            for record in records
            if record.get("launch") == launch or record.get("session") in sessions
        ]


async def until_so(condition: Callable[[], Awaitable[bool]], within_s: float) -> bool:
    """Ask until the answer is yes, or for so long. Returns the last answer."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while not await condition():  # noqa: ASYNC110 - other processes set no Event
                await asyncio.sleep(4 * POLL_S)
            return True
    return False


def launch_of(dyno: Dyno) -> str:
    """The launch id at the end of a dyno's command; empty if it is none of ours."""
    _, mark, tag = dyno.command.rpartition(" --launch ")
    return tag.partition(".")[2] if mark else ""


def agent_of(dyno: Dyno) -> psutil.Process | None:
    """The agent's process, or what is about to become it; None if there is none."""
    tag = dyno.command.rpartition(" ")[2]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            line = process.cmdline()
            if line and line[-1] == tag and process.status() != psutil.STATUS_ZOMBIE:
                return process
    return None


def _records(lines: bytes, gateway: int) -> Iterator[Record]:
    """Yield the records; lines that are none are skipped."""
    for line in lines.splitlines():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and "event" in record:
                at = datetime.fromisoformat(record["timestamp"]).timestamp()
                yield {**record, "at": at, "gateway": gateway}


def _wall() -> float:
    return time.time()  # noqa: TID251 - compared with what other processes wrote


def say(line: str) -> None:
    """Print a line now."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
