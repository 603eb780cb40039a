"""The proof that what the official conformance suite asks of a server survives the gateway.

`python -m tests.proof.conformance` starts a gateway with stdio servers behind it, and runs all
scenarios of the suite against them: `dual` speaks every revision; `legacy` knows nothing of
2026-07-28, so that this revision has to be translated for it. Before that it runs the suite against
the first one's own HTTP side: what fails there is not the gateway's.

The checks are read from the suite's files. A failed check that is not excused here, an excuse that
was not needed, and fewer passed checks than promised make the exit code 1. The last line holds
passed/failed of the promised runs, without what is excused.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import inspect
import itertools
import json
import os
import re
import signal
import socket
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.system import conftest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

FIXTURE = conftest.REPOSITORY / "tests" / "fixtures" / "conformance_server.py"
LEGACY_FIXTURE = conftest.NODE_PROJECT / "conformance_legacy.mjs"

DUAL, LEGACY, DIRECT = "dual", "legacy", "direct"
"""Where a run goes: to a server behind the gateway, by its name, or past the gateway."""

MODERN = "2026-07-28"

SCENARIO_S = 30
"""The suite gives each scenario so long."""

RUN_S = 300.0
"""For a run of some forty scenarios, one after the other; 30 s on two free cores."""

AT_ONCE = 2
"""Runs with a handshake, which wait for booting servers most of the time."""

STOP_S = 10.0
"""From SIGTERM to the end of the server that stands beside the gateway."""

BACKLOG = 64

FOLDER = re.compile(r"server-(?P<scenario>.+)-\d{4}-\d\d-\d\dT[\d-]+Z")
"""The suite writes the checks of a scenario into a folder of this name."""

UNFINISHED = "no-results"
"""Stands for the checks of a scenario that wrote none."""

EXCUSES_OF_TRANSLATED: Mapping[str, str] = {
    "input-required-result-basic-elicitation:sep-2322-elicitation-incomplete": (
        "the question has to be called `user_name`; what a server with a handshake asks has no name"
    ),
    "input-required-result-multiple-input-requests:sep-2322-multiple-inputs-incomplete": (
        "three questions have to come in one result; a server with a handshake sends three "
        "requests, and nothing says how many more will follow the first"
    ),
}
"""`scenario:check` to the reason why no server of an earlier revision can pass it."""


@dataclass(frozen=True)
class Run:
    """One run of the suite.

    Attributes:
        name: for people, and in the last line.
        server: whom it asks.
        revision: that it speaks.
        least: checks that have to pass.
        excuses: reason by `scenario:check`, of checks that fail.
        promised: whether the last line tells of it.
    """

    name: str
    server: str
    revision: str
    least: int
    excuses: Mapping[str, str] = field(default_factory=dict)
    promised: bool = False


RUNS = (
    Run("direct 2025-06-18", DIRECT, "2025-06-18", 56),
    Run("direct 2025-11-25", DIRECT, "2025-11-25", 84),
    Run("direct 2026-07-28", DIRECT, MODERN, 152),
    Run("2025-06-18", DUAL, "2025-06-18", 56, promised=True),
    # One fewer than direct: only a server that closes its HTTP stream itself gets the last check.
    Run("2025-11-25", DUAL, "2025-11-25", 83, promised=True),
    Run("legacy 2025-11-25", LEGACY, "2025-11-25", 83),
    Run("2026-07-28", DUAL, MODERN, 152, promised=True),
    # What is excused ends its scenario: the check that would have come next is missing for each.
    Run("translated", LEGACY, MODERN, 147, EXCUSES_OF_TRANSLATED, promised=True),
)


@dataclass(frozen=True)
class Check:
    """What the suite found out about one thing; `name` is `scenario:check`."""

    name: str
    status: str
    message: str


@dataclass(frozen=True)
class Verdict:
    """What a run came to."""

    run: Run
    seconds: float
    checks: tuple[Check, ...]

    @property
    def passed(self) -> int:
        """Number of checks that passed."""
        return sum(check.status == "SUCCESS" for check in self.checks)

    @property
    def failed(self) -> tuple[Check, ...]:
        """Checks that failed and are not excused."""
        return tuple(c for c in self._with("FAILURE") if c.name not in self.run.excuses)

    @property
    def unneeded(self) -> frozenset[str]:
        """Excuses of what did not fail."""
        return frozenset(self.run.excuses) - {check.name for check in self._with("FAILURE")}

    @property
    def holds(self) -> bool:
        """Whether all is as promised."""
        return self.passed >= self.run.least and not self.failed and not self.unneeded

    def _with(self, status: str) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.status == status)

    def lines(self) -> list[str]:
        """What a person wants to know, the sum first."""
        excused = len(self._with("FAILURE")) - len(self.failed)
        warnings = self._with("WARNING")
        told = [
            f"{self.run.name}: {self.passed} passed, {len(self.failed)} failed, "
            f"{excused} excused, {len(warnings)} warnings, {self.seconds:.0f} s"
        ]
        told += [f"  failed: {check.name}: {check.message}" for check in self.failed]
        told += [f"  warning: {check.name}: {check.message}" for check in warnings]
        told += [f"  excused, but does not fail: {name}" for name in sorted(self.unneeded)]
        if self.passed < self.run.least:
            told.append(f"  promised: {self.run.least} passed")
        return told


def read(results: Path) -> tuple[Check, ...]:
    """Read what a run of the suite left in its folder."""
    checks: list[Check] = []
    for folder in sorted(path for path in results.iterdir() if path.is_dir()):
        match = FOLDER.fullmatch(folder.name)
        scenario = match["scenario"] if match else folder.name
        written = folder / "checks.json"
        if not written.is_file():
            checks.append(Check(f"{scenario}:{UNFINISHED}", "FAILURE", "it did not finish"))
            continue
        for check in json.loads(written.read_text(encoding="utf-8")):
            message = " ".join(str(check.get("errorMessage") or "").split())
            checks.append(Check(f"{scenario}:{check['id']}", check["status"], message))
    return tuple(checks)


class Suite:
    """The suite: a program of the node project.

    Args:
        folder: exists; gets what the runs say and find.
        node: the program.
        modules: where its packages are.
    """

    def __init__(self, folder: Path, node: Path, modules: Path) -> None:
        self._folder = folder
        self._command = (
            str(node),
            str(modules / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"),
            "server",
        )
        self._numbers = itertools.count(1)

    async def run(self, run: Run, url: str) -> Verdict:
        """Run all scenarios of a revision, one after the other.

        Raises:
            RuntimeError: the suite broke, and says why.
            TimeoutError: it did not end.
        """
        results = self._folder / f"{next(self._numbers)}"
        results.mkdir()
        began = time.monotonic()
        said = results.with_suffix(".log")
        with said.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                *("--url", url, "--suite", "all", "--spec-version", run.revision),
                *("--timeout", str(SCENARIO_S * 1000), "--output-dir", str(results)),
                cwd=self._folder,
                env={"PATH": os.environ["PATH"], "HOME": str(self._folder)},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            await _ended(process, RUN_S)
        checks = read(results)
        # 1 says that a check failed, or that the suite did.
        if process.returncode not in {0, 1} or not checks:
            raise RuntimeError(f"{run.name}: {said.read_text(encoding='utf-8', errors='replace')}")
        return Verdict(run, time.monotonic() - began, checks)


async def _ended(process: asyncio.subprocess.Process, within_s: float) -> None:
    """Wait for a process to end, and kill it if it does not."""
    try:
        async with asyncio.timeout(within_s):
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def fixture_over_http() -> AsyncIterator[str]:
    """Serve the fixture without a gateway; yields the URL of its endpoint."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(BACKLOG)
        descriptor = listening.fileno()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(FIXTURE), "--http", str(descriptor)),
            pass_fds=[descriptor],
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/mcp"
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await _ended(process, STOP_S)


def gateway(folder: Path, node: Path) -> conftest.GatewayProcess:
    """Return a gateway that lets in whoever comes, as the suite has no keys; enter it."""
    servers: dict[str, dict[str, Any]] = {
        DUAL: {"command": sys.executable, "args": [str(FIXTURE)]},
        LEGACY: {"command": str(node), "args": [str(LEGACY_FIXTURE)]},
    }
    settings = {"API_KEY": "", "ALLOW_ANONYMOUS": "1", "BIND_HOST": "127.0.0.1"}
    return conftest.GatewayProcess(folder, servers, settings)


async def prove(runs: Sequence[Run], folder: Path, node: Path, modules: Path) -> int:
    """Do the runs and say what came out.

    Args:
        runs: which.
        folder: empty; gets what the suite found and what the gateway logged.
        node: the program.
        modules: where its packages are.

    Returns:
        The exit code.
    """
    if (task := asyncio.current_task()) is not None:  # SIGTERM ends all that was started, too
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    verdicts: list[Verdict] = []
    suite = Suite(folder, node, modules)
    if direct := [run for run in runs if run.server == DIRECT]:
        async with fixture_over_http() as url:
            verdicts += [_told(await suite.run(run, url)) for run in direct]
    if behind := [run for run in runs if run.server != DIRECT]:
        async with gateway(folder, node) as process:
            verdicts += await _through(process, suite, behind)
    for verdict in verdicts:
        if not verdict.holds:
            say(f"broken: {verdict.lines()[0]}; --keep DIR keeps what was found and logged")
    verdicts.sort(key=lambda verdict: RUNS.index(verdict.run))
    sums = [f"{v.run.name}={v.passed}/{len(v.failed)}" for v in verdicts if v.run.promised]
    say(" ".join(["conformance:", *(sums or ["nothing promised was run"])]))
    return 0 if all(verdict.holds for verdict in verdicts) else 1


async def _through(
    process: conftest.GatewayProcess, suite: Suite, runs: Iterable[Run]
) -> list[Verdict]:
    """Do the runs through a gateway; those of 2026-07-28 alone, for their scenarios count on time.

    They wait 0.5 to 1.5 s for what a stream carries, while servers of other runs boot.
    """
    seats = asyncio.Semaphore(AT_ONCE)

    async def one(run: Run) -> Verdict:
        async with seats:
            return _told(await suite.run(run, process.url(run.server)))

    ordered = sorted(runs, key=lambda run: run.revision == MODERN)
    async with asyncio.TaskGroup() as tasks:
        shaken = [tasks.create_task(one(run)) for run in ordered if run.revision != MODERN]
    verdicts = [task.result() for task in shaken]
    return verdicts + [await one(run) for run in ordered if run.revision == MODERN]


def _told(verdict: Verdict) -> Verdict:
    for line in verdict.lines():
        say(line)
    return verdict


def say(line: str) -> None:
    """Print a line now."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """Run the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.proof.conformance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = {run.name: run for run in RUNS}
    parser.add_argument("--run", action="append", choices=names, help="only this one; repeatable")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="for what was found and logged")
    options = parser.parse_args()
    chosen = [names[name] for name in options.run or names]
    # They are fixtures of the system tests, and functions without pytest.
    node: Path = inspect.unwrap(conftest.node)()
    modules: Path = inspect.unwrap(conftest.node_modules)(node)
    with contextlib.ExitStack() as stack:
        folder = options.keep
        if folder is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="conformance-"))
        else:
            folder.mkdir(parents=True)
        try:
            return asyncio.run(prove(chosen, Path(folder).resolve(), node, modules))
        except asyncio.CancelledError:  # by SIGTERM, and everything was ended
            raise SystemExit(128 + signal.SIGTERM) from None


if __name__ == "__main__":
    raise SystemExit(main())
