"""The session's virtual environment and what pip put into it.

A virtual environment and not `pip install --target`: pip resolves against what is there, upgrades
in place, and code that calls pip itself ends up in it, too. It costs milliseconds because pip is
not copied into it: it sees the packages of the server's own interpreter, pip among them, behind its
own.
"""

from __future__ import annotations

import asyncio
import os
import sys
import sysconfig
import venv
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from mcp_servers.code_exec.requirements import Requirement
    from mcp_servers.code_exec.runner import Finished, Runner

PIP_INSTALL = (
    *("-m", "pip", "install"),
    *("--no-input", "--disable-pip-version-check", "--progress-bar=off"),
    # A venv of root's is still a venv, and most modules of a big package are never imported.
    *("--root-user-action=ignore", "--no-compile"),
    "--",  # whatever follows is a requirement
)


class Environment:
    """A virtual environment with the server's interpreter and, behind its own, its packages.

    Args:
        root: Where it is made; must not exist.
    """

    def __init__(self, root: Path) -> None:
        venv.create(root, symlinks=True)
        where = {"base": str(root), "platbase": str(root)}
        self._site = Path(sysconfig.get_path("purelib", scheme="venv", vars=where))
        shared = (p for p in sys.path if Path(p).name in {"site-packages", "dist-packages"})
        (self._site / "shared.pth").write_text("\n".join(shared) + "\n", encoding="utf-8")
        self._root = root
        self.bin = root / "bin"
        self.python = self.bin / "python"

    def activate(self, environment: Mapping[str, str]) -> dict[str, str]:
        """The variables with which `python`, and any `pip`, mean this environment."""
        path = os.pathsep.join([str(self.bin), environment.get("PATH", os.defpath)])
        return {
            **{name: value for name, value in environment.items() if name != "PYTHONHOME"},
            "PATH": path,
            "VIRTUAL_ENV": str(self._root),
            "PIP_PYTHON": str(self.python),  # for a pip that is run from elsewhere on the path
        }

    def distributions(self) -> frozenset[str]:
        """What is installed here, names with versions; the server's packages do not count."""
        return frozenset(path.name for path in self._site.glob("*.dist-info"))


class Installer:
    """Installs packages for a session, each once.

    Args:
        runner: What runs pip.
        root: A directory of its own, existing and empty.
        seconds: How long one run of pip may take.
        variables: The environment pip runs with.
    """

    def __init__(
        self, runner: Runner, root: Path, *, seconds: float, variables: Mapping[str, str]
    ) -> None:
        self._runner = runner
        self._root = root
        self._seconds = seconds
        self._variables = variables
        self._made = 0
        self._lock = asyncio.Lock()
        self._installed: list[Requirement] = []
        self._suspect = False
        self._workplace = root / "pip"
        self._workplace.mkdir()
        self.current = self._make()
        self._seen = self.current.distributions()

    async def ensure(
        self, wanted: Sequence[Requirement], tell: Callable[[str], Awaitable[None]]
    ) -> Finished | None:
        """Install what is not installed yet; one caller at a time, the others wait.

        Args:
            wanted: What the code needs.
            tell: Awaited with a line for people before pip runs.

        Returns:
            How pip ended, if it failed; None if all is there.
        """
        if not self._missing(wanted):
            return None
        async with self._lock:
            missing = self._missing(wanted)
            if not missing:
                return None
            await tell("installing " + ", ".join(requirement.text for requirement in missing))
            finished = await self._install(missing)
        return finished if finished.timed_out or finished.returncode else None

    def _missing(self, wanted: Sequence[Requirement]) -> list[Requirement]:
        """What to ask pip for; it may still find that the server's packages suffice."""
        self._forget_if_something_left()
        return [requirement for requirement in wanted if requirement not in self._installed]

    def _forget_if_something_left(self) -> None:
        """Once a distribution was replaced or removed, an earlier answer of pip may be wrong."""
        now = self.current.distributions()
        if self._seen - now:
            self._installed.clear()
        self._seen = now

    async def _install(self, missing: list[Requirement]) -> Finished:
        """Run pip, in a new environment if it was killed at work in the present one.

        Half a package can look like a whole one. Calls that still run keep the old environment.
        """
        names = {requirement.name for requirement in missing}
        kept = [requirement for requirement in self._installed if requirement.name not in names]
        anew = self._suspect
        target = self._make() if anew else self.current
        self._suspect = True  # and stays so if this is cancelled
        finished = await self._pip(target, [*kept, *missing] if anew else missing)
        done = finished.returncode == 0 and not finished.timed_out
        self._suspect = finished.timed_out or (anew and not done)
        if done:
            if anew:
                self.current, self._seen = target, target.distributions()
            self._installed = kept
            self._forget_if_something_left()
            self._installed += missing
        return finished

    async def _pip(self, target: Environment, requirements: Sequence[Requirement]) -> Finished:
        variables = {
            name: value
            for name, value in target.activate(self._variables).items()
            if name != "PIP_PYTHON"  # it is that Python already, and would start itself once more
        }
        variables["TMPDIR"] = str(self._workplace)  # what a killed pip leaves goes with the session
        return await self._runner.run(
            [target.python, *PIP_INSTALL, *(requirement.text for requirement in requirements)],
            cwd=self._workplace,
            environment=variables,
            seconds=self._seconds,
        )

    def _make(self) -> Environment:
        self._made += 1
        return Environment(self._root / f"env-{self._made}")
