"""One session: its scratch directory, its packages, and how a call runs in it.

Knows what a result looks like; knows nothing of MCP.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mcp_servers.code_exec.installer import Installer
from mcp_servers.code_exec.requirements import BadRequirementError, parse_all
from mcp_servers.code_exec.runner import Runner
from mcp_servers.code_exec.settings import INSTALL_TIMEOUT, TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from mcp_servers.code_exec.languages.base import Language
    from mcp_servers.code_exec.requirements import Requirement
    from mcp_servers.code_exec.runner import Finished
    from mcp_servers.code_exec.settings import Limits

TIMED_OUT = -2
"""The return code Heroku's reference servers give for a time-out; no process ends with it here."""

REFUSED = 1
"""The return code for packages that are not even given to the installer; pip's own for bad ones."""

INTERNAL_PREFIX = "RENDEZVOUS_"
"""Names of variables that belong to the gateway's agent; user code never sees them."""


@dataclass(frozen=True, slots=True)
class Execution:
    """What a call returns; the shape is the reference servers'.

    Attributes:
        returncode: The exit status; `TIMED_OUT`, `REFUSED`, or the installer's if that failed.
        stdout: What was printed, without white space around it.
        stderr: Likewise, or why nothing was run.
    """

    returncode: int
    stdout: str
    stderr: str


class Session:
    """The files, packages and processes of one client; must be made in a running loop.

    Args:
        language: What the code is written in.
        limits: What a call may use.
        environment: The server's environment, which the code inherits but for internal names.
    """

    def __init__(self, language: Language, limits: Limits, environment: Mapping[str, str]) -> None:
        self._language = language
        self._limits = limits
        self._variables = {
            name: value
            for name, value in environment.items()
            if not name.startswith(INTERNAL_PREFIX)
        }
        self._root = Path(tempfile.mkdtemp(prefix="code-exec-"))
        self._scratch, self._calls = self._root / "scratch", self._root / "calls"
        for directory in (self._scratch, self._calls, packages := self._root / "packages"):
            directory.mkdir()
        self._runner = Runner(limits.max_output_bytes)
        self._installer = Installer(
            language,
            self._runner,
            packages,
            seconds=limits.install_timeout_s,
            variables=self._variables,
        )

    async def execute(
        self,
        code: str,
        packages: Sequence[str] = (),
        *,
        use_temp_dir: bool = False,
        tell: Callable[[str], Awaitable[None]],
    ) -> Execution:
        """Install the packages, then run the code.

        Args:
            code: The text of a program.
            packages: Requirements such as `"numpy"` or `"rack:~> 3.1"`.
            use_temp_dir: Work in a new directory that is removed afterwards.
            tell: Awaited with a line for people at each step.

        Returns:
            How the code ended; or why it was not run: the installer's or our own words in
            `stderr`.

        Raises:
            OSError: No process could be started or no file written.
        """
        try:
            requirements = parse_all(packages, self._language.parse)
        except BadRequirementError as error:
            text = f"Error: {error}. Nothing was run."
            return Execution(returncode=REFUSED, stdout="", stderr=text)
        failed = await self._install(requirements, tell)
        if failed is not None:
            return failed
        await tell("running")
        with tempfile.TemporaryDirectory(dir=self._calls, ignore_cleanup_errors=True) as call:
            finished = await self._run(code, requirements, Path(call), use_temp_dir=use_temp_dir)
        return _execution(finished, _timeout_text("Execution", self._limits.timeout_s, TIMEOUT))

    def close(self) -> None:
        """Kill what runs and remove every file; blocks, and is the session's end."""
        self._runner.close()
        shutil.rmtree(self._root, ignore_errors=True)

    async def _install(
        self, requirements: Sequence[Requirement], tell: Callable[[str], Awaitable[None]]
    ) -> Execution | None:
        failed = await self._installer.ensure(requirements, tell)
        if failed is None:
            return None
        seconds = self._limits.install_timeout_s
        late = _timeout_text("Installing the packages", seconds, INSTALL_TIMEOUT)
        execution = _execution(failed, late + " The code was not run.")
        return Execution(
            returncode=execution.returncode,
            stdout="",
            stderr=execution.stderr or execution.stdout,
        )

    async def _run(
        self, code: str, requirements: Sequence[Requirement], call: Path, *, use_temp_dir: bool
    ) -> Finished:
        # A file: no limit on its size, source lines in tracebacks, and multiprocessing can import
        # it. Beside the working directory, so that no name of ours is in the user's way.
        script = call / self._language.script
        script.write_bytes(code.encode("utf-8", "surrogatepass"))
        work = call / "work" if use_temp_dir else self._scratch
        work.mkdir(exist_ok=True)
        command = self._installer.current.run(script, work, requirements, self._variables)
        return await self._runner.run(
            command.words,
            cwd=work,
            environment=command.variables,
            seconds=self._limits.timeout_s,
        )


def _timeout_text(what: str, seconds: float, variable: str) -> str:
    return f"Error: {what} timed out after {seconds:g} s; the limit is set by {variable}."


def _execution(finished: Finished, late: str) -> Execution:
    stdout, stderr = finished.stdout.strip(), finished.stderr.strip()
    if finished.timed_out:
        stderr = f"{stderr}\n{late}".lstrip()
    return Execution(
        returncode=TIMED_OUT if finished.timed_out else finished.returncode,
        stdout=stdout,
        stderr=stderr,
    )
