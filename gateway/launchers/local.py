"""The local launcher: a subprocess stands in for the dyno.

It starts the agent as the platform would: detached, in a process group of its own, in an empty
working directory, with an environment that holds nothing of the gateway's. It isolates no hostile
code: that is what one-off dynos are for.
"""

import asyncio
import contextlib
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.launchers.base import Dyno, LaunchError, LaunchOrder

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


@dataclass(slots=True)
class _Running:
    dyno_id: str
    launch_id: str
    process: asyncio.subprocess.Process
    home: Path

    def last_words(self) -> str:
        with contextlib.suppress(OSError):
            return (self.home / "agent.log").read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
        return ""


class LocalLauncher:
    """Dynos as processes of this machine.

    Args:
        environment: the gateway's own environment, of which next to nothing is passed on.
    """

    name = "local"
    boot_timeout_s = 60.0
    grace_s = 10.0
    poll_s = 0.25

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = self._scrubbed(environment)
        self._running: dict[str, _Running] = {}

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
        """Start `python -m dyno_agent` in a scratch directory. See `Launcher.launch`."""
        try:
            home = Path(tempfile.mkdtemp(prefix="dyno-"))
        except OSError as error:
            raise LaunchError(f"no scratch directory: {error.strerror}") from error
        try:
            process = await self._start(order, home)
        except OSError as error:
            shutil.rmtree(home, ignore_errors=True)
            raise LaunchError(f"no process could be started: {error.strerror}") from error
        dyno_id = f"local.{process.pid}"
        self._running[dyno_id] = _Running(dyno_id, order.launch_id, process, home)
        return Dyno(dyno_id, order.launch_id)

    async def _start(self, order: LaunchOrder, home: Path) -> asyncio.subprocess.Process:
        places = {"HOME": str(home), "TMPDIR": str(home)}
        with (home / "agent.log").open("wb") as log:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "dyno_agent", "--launch", order.launch_id),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=home,
                env={**self._environment, **places, **order.environment},
                start_new_session=True,
            )

    async def stop(self, dyno_id: str) -> None:
        """End the agent, which ends its child; remove the scratch directory."""
        running = self._running.get(dyno_id)
        if running is None:
            return
        for number, patience_s in ((signal.SIGTERM, TERM_S), (signal.SIGKILL, None)):
            if running.process.returncode is not None:
                break
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.process.pid, number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await running.process.wait()
        self._running.pop(dyno_id, None)
        await asyncio.to_thread(shutil.rmtree, running.home, ignore_errors=True)

    async def list(self) -> Sequence[Dyno]:
        """Return what runs and what exited. See `Launcher.list`."""
        return [
            Dyno(
                running.dyno_id,
                running.launch_id,
                status := running.process.returncode,
                "" if status is None else running.last_words(),
            )
            for running in self._running.values()
        ]

    async def aclose(self) -> None:
        """Stop every dyno that is left, all at once."""
        async with asyncio.TaskGroup() as tasks:
            for dyno_id in list(self._running):
                tasks.create_task(self.stop(dyno_id))
