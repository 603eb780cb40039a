"""Gateways without their imports: each is forked from one process that has made them for all.

To start the interpreter and to import takes most of a second of a processor, a hundred times over.
What is forked is a process like any other in all that tests look at: pid, environment, folder,
output, signals, exit code. That `gateway serve` starts from nothing is claimed by the tests that
are `measured`, by the command line's, and by the proofs.

This module is imported into the fork as well: the standard library has to do.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

IMPORTED = ["gateway.__main__", "gateway.cli.serving", "gateway.deployment", "uvloop"]
"""What there is before a fork; with them come all others that a gateway needs to serve."""

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(IMPORTED)


class Forked:
    """A running `gateway serve`; has what is used of `subprocess.Popen`."""

    def __init__(self, environment: Mapping[str, str], folder: Path, log: Path) -> None:
        self._process = _CONTEXT.Process(
            target=_serve, args=(dict(environment), str(folder), str(log)), daemon=True
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """What it ended with, negative for a signal; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The same, asked of the system."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float) -> int | None:
        """Wait for its end at most so many seconds; return what it ended with."""
        self._process.join(timeout)
        return self._process.exitcode


def _serve(environment: dict[str, str], folder: str, log: str) -> None:
    """Become what `python -m gateway serve` is when all is imported."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    _lead((0,), os.open(os.devnull, os.O_RDONLY))
    _lead((1, 2), os.open(log, os.O_WRONLY | os.O_APPEND))
    sys.argv = ["gateway", "serve"]
    runpy.run_module("gateway", run_name="__main__", alter_sys=True)


def _lead(numbers: tuple[int, ...], target: int) -> None:
    """Make descriptors mean a file; close its first one."""
    for number in numbers:
        os.dup2(target, number)
    os.close(target)
