"""The local launcher: a subprocess stands in for the dyno.

It starts the agent as the platform would: detached, in a process group of its own, in an empty
working directory, with an environment that holds nothing of the gateway's. It isolates no hostile
code: that is what one-off dynos are for.

Like a dyno, the agent goes on when the gateway process ends. What the next process needs to find
it lies in a folder of the deployment: `<launch id>/` is a dyno's home, `<launch id>.pid` beside it
says which process it is.
"""

import asyncio
import contextlib
import importlib.util
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import psutil

from gateway.launchers.base import Dyno, LaunchError, LaunchOrder, PlatformError

INHERITED = (
    *("LANG", "LC_ALL", "TZ"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)
"""What a dyno's own image and network would bring along."""

INHERITED_PREFIXES = ("PIP_", "UV_", "npm_config_")
"""Settings of the package managers that servers call."""

LOG_TAIL_BYTES = 4096
TERM_S = 8.0
"""From SIGTERM to SIGKILL for an agent: longer than the kill ladder it climbs meanwhile."""

KILL_S = 5.0
"""How long SIGKILL may take: more than the kernel needs, unless the process hangs in a device."""

WATCH_S = 0.02
"""How often a stop looks whether the process is gone."""

LOOK_S = 3.0
"""How often the folder is searched for dynos of other processes; they come at hand-overs only."""

REPORT_S = 60.0
"""How long a dyno of another process that ended is listed before its remains are removed."""

CLOCK_SLACK_S = 2.0
"""How far two processes' views of a creation time may lie apart, as the kernel derives it from the
wall clock. No pid comes round again so soon."""

UNKNOWN = -1
"""Exit status of a process whose parent was somebody else."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What may become part of a path."""

_PREFIX = "local."


@dataclass(slots=True)
class _Known:
    """A dyno that this process launched (`ours`) or found; no `process` when none is left of it."""

    launch_id: str
    process: psutil.Process | None
    ours: bool
    exit_status: int | None = None
    last_words: str = ""
    ended: float | None = None

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs; reaps it if it is this process's child."""
        if self.exit_status is None:
            with contextlib.suppress(OSError, psutil.AccessDenied):  # nobody can tell just now
                if self.process is None:
                    self.exit_status = UNKNOWN
                elif self.ours:
                    self.exit_status = _status_of_child(self.process)
                else:
                    self.exit_status = _status_of_stranger(self.process)
        return self.exit_status

    async def end(self) -> bool:
        """Climb from SIGTERM to SIGKILL with its process group; return whether it is gone."""
        if self.process is None or self.poll() is not None:
            return True
        for number, patience_s in ((signal.SIGTERM, TERM_S), (signal.SIGKILL, KILL_S)):
            _signal_group(self.process, number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    while self.poll() is None:  # noqa: ASYNC110 - another's child sets no event
                        await asyncio.sleep(WATCH_S)
            if self.poll() is not None:
                # Its company may be left, which keeps the number from being used again.
                _signal_group(self.process, signal.SIGKILL)
                return True
        return False


class LocalLauncher:
    """Dynos as processes of this machine.

    Args:
        environment: the gateway's own environment, of which next to nothing is passed on.
        realm: names the deployment, in public: launchers of one realm and user share their dynos.

    Raises:
        ValueError: the realm cannot be part of a path.
    """

    name = "local"
    boot_timeout_s = 60.0
    poll_s = 0.25

    def __init__(self, environment: Mapping[str, str], realm: str) -> None:
        self._environment = self._scrubbed(environment)
        self._folder = Path(tempfile.gettempdir(), f"rendezvous-{os.getuid()}-{_valid(realm)}")
        self._known: dict[str, _Known] = {}
        self._unrecorded: set[str] = set()  # homes that had no pid file at the last look
        self._stopped: set[str] = set()  # of which the folder may still hold something
        self._next_look = 0.0

    @staticmethod
    def _scrubbed(environment: Mapping[str, str]) -> dict[str, str]:
        kept = {
            name: value
            for name, value in environment.items()
            if name in INHERITED or name.startswith(INHERITED_PREFIXES)
        }
        here = Path(sys.executable).parent
        kept["PATH"] = os.pathsep.join((str(here), environment.get("PATH", os.defpath)))
        spec = importlib.util.find_spec("dyno_agent")
        if spec is not None and spec.origin is not None:
            kept["PYTHONPATH"] = str(Path(spec.origin).parents[1])
        return kept

    async def launch(self, order: LaunchOrder) -> Dyno:
        """Start `python -m dyno_agent` in a home of its own. See `Launcher.launch`.

        Raises:
            ValueError: the launch id cannot be part of a path.
        """
        launch_id = _valid(order.launch_id)
        home = self._new_home(launch_id)
        try:
            process = self._start(order, home)
        except OSError as error:
            shutil.rmtree(home, ignore_errors=True)
            raise LaunchError(f"no process could be started: {error.strerror}") from error
        self._known[launch_id] = _Known(launch_id, process, ours=True)
        try:
            self._record(launch_id, process)
        except OSError as error:
            await self.stop(_PREFIX + launch_id)  # nobody else could find it
            raise LaunchError(f"no note of the process: {error.strerror}") from error
        return Dyno(_PREFIX + launch_id, launch_id)

    def _new_home(self, launch_id: str) -> Path:
        home = self._folder / launch_id
        try:
            with contextlib.suppress(FileExistsError):
                self._folder.mkdir(mode=0o700)
            if not self._trusted():
                raise LaunchError(f"{self._folder.name} is not a directory of this user alone")
            home.mkdir(mode=0o700)
        except OSError as error:
            raise LaunchError(f"no scratch directory: {error.strerror}") from error
        return home

    def _trusted(self) -> bool:
        """Whether the folder exists and is ours: everybody may make one of that name in /tmp."""
        try:
            found = self._folder.lstat()
        except OSError:
            return False
        private = not stat.S_IMODE(found.st_mode) & 0o077
        return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and private

    def _start(self, order: LaunchOrder, home: Path) -> psutil.Process:
        """Start the agent; plainly, as this blocks for less than a thread would take."""
        places = {"HOME": str(home), "TMPDIR": str(home)}
        with (home / "agent.log").open("wb") as log:
            child = subprocess.Popen(  # noqa: S603 - our own interpreter and a validated id
                (sys.executable, "-m", "dyno_agent", "--launch", order.launch_id),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=home,
                env={**self._environment, **places, **order.environment},
                start_new_session=True,
            )
        # psutil watches and reaps it. `Popen` must not take it for forgotten when the gateway goes,
        # and neither warn of it nor reap it.
        child.returncode = UNKNOWN
        return psutil.Process(child.pid)

    def _record(self, launch_id: str, process: psutil.Process) -> None:
        target = self._folder / f"{launch_id}.pid"
        draft = target.with_suffix(".pid.new")
        draft.write_text(f"{process.pid} {process.create_time()!r}\n", encoding="ascii")
        draft.replace(target)

    def _recorded(self, launch_id: str) -> psutil.Process | None:
        """Return the process that the pid file means, if there is still one."""
        try:
            note = (self._folder / f"{launch_id}.pid").read_text(encoding="ascii")
            pid, created = note.split()
            process = psutil.Process(int(pid))
            apart_s = abs(process.create_time() - float(created))
        except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
            return None
        return process if apart_s <= CLOCK_SLACK_S else None

    def usd_per_hour(self, size: str | None, app: str | None) -> float:
        """Nothing: this machine runs anyway. See `Launcher.usd_per_hour`."""
        return 0.0

    async def stop(self, dyno_id: str) -> float | None:
        """End the agent, which ends its child; remove the home. See `Launcher.stop`."""
        launch_id = dyno_id.removeprefix(_PREFIX)
        if _PREFIX + launch_id != dyno_id or not _NAME.fullmatch(launch_id):
            return None
        known = self._known.get(launch_id)
        if known is None:
            if not self._trusted():
                return None
            try:
                known = _Known(launch_id, self._recorded(launch_id), ours=False)
            except OSError as error:
                raise PlatformError(f"nobody can tell whether it runs: {error}") from error
        ran = known.process is not None and known.poll() is None
        if not await known.end():
            raise PlatformError(f"process {known.process} outlives SIGKILL")
        await self._forget(launch_id)
        return 0.0 if ran else None

    async def _forget(self, launch_id: str) -> None:
        self._known.pop(launch_id, None)
        self._stopped.add(launch_id)
        await asyncio.to_thread(self._remove, launch_id)

    def _remove(self, launch_id: str) -> None:
        shutil.rmtree(self._folder / launch_id, ignore_errors=True)
        for suffix in (".pid", ".pid.new"):
            with contextlib.suppress(OSError):
                (self._folder / (launch_id + suffix)).unlink()

    async def list(self) -> Sequence[Dyno]:
        """Return what runs and what exited. See `Launcher.list`.

        A dyno of another process that ended is listed until it is stopped or for a minute; then
        its remains are removed.
        """
        now = asyncio.get_running_loop().time()
        if now >= self._next_look:
            self._next_look = now + LOOK_S
            with contextlib.suppress(OSError):  # short of descriptors, say: the next look may do
                self._look()
        for known in self._known.values():
            if known.ended is None and known.poll() is not None:
                known.ended = now
                known.last_words = self._last_words(known.launch_id)
        listed = [
            Dyno(_PREFIX + known.launch_id, known.launch_id, known.exit_status, known.last_words)
            for known in self._known.values()
        ]
        await self._bury_one(now)
        return listed

    def _look(self) -> None:
        """Learn which dynos and remains of other processes there are, and which are no more."""
        names = {path.name for path in self._folder.iterdir()} if self._trusted() else set()
        present = {name.partition(".")[0] for name in names}
        self._stopped &= present
        for known in list(self._known.values()):
            if not known.ours and known.poll() is not None and known.launch_id not in present:
                del self._known[known.launch_id]  # another process has stopped it
        strangers = present - self._known.keys() - self._stopped
        recorded = {name for name in strangers if f"{name}.pid" in names}
        # A home without a pid file may be one that another process launches into right now.
        lost = (strangers - recorded) & self._unrecorded
        self._unrecorded = strangers - recorded
        for launch_id in sorted(filter(_NAME.fullmatch, recorded | lost)):
            self._known[launch_id] = _Known(launch_id, self._recorded(launch_id), ours=False)

    async def _bury_one(self, now: float) -> None:
        """Remove what is left of a dyno that was listed for long enough; one, as it takes time."""
        for known in self._known.values():
            if not known.ours and known.ended is not None and now - known.ended >= REPORT_S:
                await self._forget(known.launch_id)
                return

    def _last_words(self, launch_id: str) -> str:
        with (
            contextlib.suppress(OSError),
            (self._folder / launch_id / "agent.log").open("rb") as log,
        ):
            log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
            return log.read(LOG_TAIL_BYTES).decode(errors="replace")
        return ""

    async def aclose(self) -> None:
        """Remove what is left of dynos that ended; those that still run go on."""
        for launch_id in [known.launch_id for known in self._known.values() if known.ended]:
            await self._forget(launch_id)
        if self._trusted():
            with contextlib.suppress(OSError):
                self._folder.rmdir()


def _signal_group(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody there, nobody of ours
        os.killpg(process.pid, number)


def _status_of_child(process: psutil.Process) -> int | None:
    try:
        status = cast("int | None", process.wait(0))
    except psutil.TimeoutExpired:
        return None
    return UNKNOWN if status is None else int(status)  # None: somebody else has reaped it


def _status_of_stranger(process: psutil.Process) -> int | None:
    """Return None while it runs; one that its parent did not reap yet runs no more."""
    try:
        running = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return UNKNOWN
    return None if running else UNKNOWN


def _valid(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"not 1 to 64 characters of A-Z, a-z, 0-9, _ and -: {name!r}")
    return name
