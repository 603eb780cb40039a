"""The session's packages: installed once, and whole.

Knows when to install; how, the language knows.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from mcp_servers.execution import tell_beat

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from mcp_servers.code_exec.languages.base import Environment, Language
    from mcp_servers.code_exec.requirements import Requirement
    from mcp_servers.execution import Allowance
    from mcp_servers.processes import Beat, Finished, Runner


class Installer:
    """Installs packages for a session, each once.

    Args:
        language: What makes environments and installs into them.
        runner: What runs the installs.
        root: A directory of its own, existing and empty.
        allowance: What one install may use.
        variables: The environment it runs with.
    """

    def __init__(
        self,
        language: Language,
        runner: Runner,
        root: Path,
        *,
        allowance: Allowance,
        variables: Mapping[str, str],
    ) -> None:
        self._language = language
        self._runner = runner
        self._root = root
        self._allowance = allowance
        self._variables = variables
        self._made = 0
        self._lock = asyncio.Lock()
        self._installed: list[Requirement] = []
        self._suspect = False
        self._workplace = root / "work"
        self._workplace.mkdir()
        self.current = self._make()
        self._seen = self.current.distributions()

    async def ensure(
        self, wanted: Sequence[Requirement], tell: Callable[[str], Awaitable[None]]
    ) -> Finished | None:
        """Install what is not installed yet; one caller at a time, the others wait.

        Args:
            wanted: What the code needs.
            tell: Awaited with a line for people before the install begins.

        Returns:
            How the install ended, if it failed; None if all is there.
        """
        if not self._missing(wanted):
            return None
        async with self._lock:
            missing = self._missing(wanted)
            if not missing:
                return None
            await tell("installing " + ", ".join(requirement.text for requirement in missing))
            finished = await self._install(missing, partial(tell_beat, "installing", tell))
        return finished if _failed(finished) else None

    def _missing(self, wanted: Sequence[Requirement]) -> list[Requirement]:
        """What to install; the installer may still find that the app's packages suffice."""
        self._forget_if_something_left()
        return [requirement for requirement in wanted if requirement not in self._installed]

    def _forget_if_something_left(self) -> None:
        """Once a distribution was replaced or removed, an earlier answer may be wrong."""
        now = self.current.distributions()
        if self._seen - now:
            self._installed.clear()
        self._seen = now

    async def _install(
        self, missing: list[Requirement], beat: Callable[[Beat], Awaitable[None]]
    ) -> Finished:
        """Install, in a new environment if an install was killed at work in the present one.

        Half a package can look like a whole one. Calls that still run keep the old environment.
        """
        names = {requirement.name for requirement in missing}
        kept = [requirement for requirement in self._installed if requirement.name not in names]
        anew = self._suspect
        target = self._make() if anew else self.current
        self._suspect = True  # and stays so if this is cancelled
        finished = await self._run(target, [*kept, *missing] if anew else missing, beat)
        done = not _failed(finished)
        self._suspect = _killed(finished) or (anew and not done)
        if done:
            if anew:
                self.current, self._seen = target, target.distributions()
            self._installed = kept
            self._forget_if_something_left()
            self._installed += missing
        return finished

    async def _run(
        self,
        target: Environment,
        requirements: Sequence[Requirement],
        beat: Callable[[Beat], Awaitable[None]],
    ) -> Finished:
        command = target.install(requirements, self._variables)
        return await self._runner.run(
            command.words,
            cwd=self._workplace,
            # What a killed install leaves goes with the session.
            environment={**command.variables, "TMPDIR": str(self._workplace)},
            seconds=self._allowance.seconds,
            memory_bytes=self._allowance.memory_bytes,
            beat=beat,
        )

    def _make(self) -> Environment:
        self._made += 1
        return self._language.environment(self._root / f"env-{self._made}")


def _killed(finished: Finished) -> bool:
    return finished.timed_out or finished.out_of_memory


def _failed(finished: Finished) -> bool:
    return _killed(finished) or finished.returncode != 0
