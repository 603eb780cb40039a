"""One session: its scratch directory, its packages, and how a call runs in it.

Knows what a result looks like; knows nothing of MCP.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mcp_servers.code_exec.installer import Installer
from mcp_servers.code_exec.requirements import BadRequirementError, parse_all
from mcp_servers.code_exec.settings import MAX_OUTPUT
from mcp_servers.execution import Execution, executed, tell_beat
from mcp_servers.processes import Runner, inheritable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from mcp_servers.code_exec.languages.base import Language
    from mcp_servers.code_exec.requirements import Requirement
    from mcp_servers.code_exec.settings import Limits
    from mcp_servers.processes import Beat, Finished

REFUSED = 1
"""The return code for packages that are not even given to the installer; pip's own for bad ones."""


class Session:
    """The files, packages and processes of one client.

    Args:
        language: What the code is written in.
        limits: What a call may use.
        environment: The server's environment, which the code inherits but for internal names.
    """

    def __init__(self, language: Language, limits: Limits, environment: Mapping[str, str]) -> None:
        self._language = language
        self._limits = limits
        self._variables = inheritable(environment)
        self._root = Path(tempfile.mkdtemp(prefix="code-exec-"))
        self._scratch, self._calls = self._root / "scratch", self._root / "calls"
        for directory in (self._scratch, self._calls, packages := self._root / "packages"):
            directory.mkdir()
        self._runner = Runner(limits.max_output_bytes, MAX_OUTPUT)
        self._installer = Installer(
            language,
            self._runner,
            packages,
            allowance=limits.of_install,
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
            How the code ended; or why it was not run: the installer's status or `REFUSED`, and
            the installer's or our own words in `stderr`.

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
            work = self._work(Path(call), use_temp_dir=use_temp_dir)
            script = self._script(Path(call), work)
            try:
                # A file: no limit on its size, source lines in tracebacks, and worker processes
                # can import it.
                script.write_bytes(code.encode("utf-8", "surrogatepass"))
                finished = await self._run(
                    script, work, requirements, partial(tell_beat, "running", tell)
                )
            finally:
                script.unlink(missing_ok=True)
        return executed(finished, "Execution", self._limits.of_code)

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
        execution = executed(failed, "Installing the packages", self._limits.of_install)
        said = execution.stderr or execution.stdout
        if failed.timed_out or failed.out_of_memory:
            said += " The code was not run."
        return replace(execution, stdout="", stderr=said)

    def _work(self, call: Path, *, use_temp_dir: bool) -> Path:
        work = call / "work" if use_temp_dir else self._scratch
        work.mkdir(exist_ok=True)
        return work

    def _script(self, call: Path, work: Path) -> Path:
        """Where the code goes: out of the user's way, if its language lets it."""
        name = self._language.script
        return work / f".{call.name}-{name}" if self._language.beside_files else call / name

    async def _run(
        self,
        script: Path,
        work: Path,
        requirements: Sequence[Requirement],
        beat: Callable[[Beat], Awaitable[None]],
    ) -> Finished:
        command = self._installer.current.run(script, work, requirements, self._variables)
        return await self._runner.run(
            command.words,
            cwd=work,
            environment=command.variables,
            seconds=self._limits.timeout_s,
            memory_bytes=self._limits.max_memory_bytes,
            beat=beat,
        )
