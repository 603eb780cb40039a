"""Discovery: process types named `mcp*` in the configured apps become servers. Deploying registers.

The servers file may add to what is discovered: an entry with `app` and `process_type` is completed
by it, and one with a command of its own stands for itself.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from gateway.registry.servers import BadServersFile, Registry, ServerDefinition

SHELL = "bash"
"""What runs a process type's command in a dyno, as the platform itself does."""


class Process(Protocol):
    """One process type of an app's formation."""

    @property
    def app(self) -> str:
        """Name of the app."""
        ...

    @property
    def process_type(self) -> str:
        """Such as `mcp-python`."""
        ...

    @property
    def command(self) -> str:
        """A line for the shell."""
        ...

    @property
    def size(self) -> str | None:
        """Dyno size of the formation."""
        ...

    @property
    def release(self) -> str:
        """The app's current release."""
        ...

    @property
    def app_id(self) -> str:
        """The platform's own name of the app; empty if it does not say."""
        ...


class Survey(Protocol):
    """What one look at all apps has found."""

    @property
    def processes(self) -> Sequence[Process]:
        """The process types of the apps that could be looked at."""
        ...

    @property
    def failed(self) -> Mapping[str, str]:
        """Why the others could not, by app."""
        ...


class Formation(Protocol):
    """Where process types can be looked up."""

    async def processes(self) -> Survey:
        """Look at every configured app."""
        ...


def merge(
    entries: Sequence[ServerDefinition], survey: Survey, before: Registry
) -> list[ServerDefinition]:
    """Return the servers there are now.

    Args:
        entries: of the servers file, in its order; they come first.
        survey: what was found.
        before: what an app that could not be looked at had goes on as it was.
    """
    found = {(process.app, process.process_type): process for process in survey.processes}
    of_app = {process.app: process for process in survey.processes}
    servers: dict[str, ServerDefinition] = {}
    for entry in entries:
        process = found.get((entry.app or "", entry.process_type or ""))
        known = before.find(entry.name)
        if process is not None:
            servers[entry.name] = _filled(entry, process)
        elif not entry.process_type:
            told: Process | ServerDefinition = of_app.get(entry.app or "") or known or entry
            servers[entry.name] = msgspec.structs.replace(
                entry, release=told.release, app_id=told.app_id
            )
        elif entry.app in survey.failed and known is not None and known.command:
            servers[entry.name] = known
    for known in before.servers:
        if known.app in survey.failed and known.command:
            servers.setdefault(known.name, known)
    claimed = {(entry.app, entry.process_type) for entry in entries}
    unclaimed = [found[which] for which in found if which not in claimed]
    names = {(known.app, known.process_type): known.name for known in before.servers}

    def settled(process: Process) -> bool:
        return (process.app, process.process_type) in names

    for process in sorted(unclaimed, key=settled, reverse=True):  # who has a name keeps it
        which = process.app, process.process_type
        name = names.get(which, process.process_type)
        if name in servers:  # unique among all apps only by its app's name
            name = f"{process.app}.{process.process_type}"[:64]
        entry = ServerDefinition(name=name, app=process.app, process_type=process.process_type)
        servers[name] = _filled(entry, process)
    return list(servers.values())


def _filled(entry: ServerDefinition, process: Process) -> ServerDefinition:
    return msgspec.structs.replace(
        entry,
        command=SHELL,
        args=["-c", process.command],
        size=entry.size or process.size,
        release=process.release,
        app_id=process.app_id,
    )


class Discovery:
    """Keeps a registry as the apps are.

    Args:
        registry: what is kept.
        entries: of the servers file.
        formation: where process types are looked up.
        interval_s: how often, without being asked.
        failed: hears what could not be looked up, by app; empty when all is well again.
    """

    def __init__(
        self,
        registry: Registry,
        entries: Sequence[ServerDefinition],
        formation: Formation,
        interval_s: float,
        failed: Callable[[Mapping[str, str]], None],
    ) -> None:
        self._registry = registry
        self._entries = entries
        self._formation = formation
        self._interval_s = interval_s
        self._failed = failed
        self._told: Mapping[str, str] = {}
        self._asked = asyncio.Event()
        self._looked = asyncio.Condition()
        self._begun = self._ended = 0

    def ask(self) -> None:
        """Look soon: something was released."""
        self._asked.set()

    async def refresh(self, patience_s: float) -> bool:
        """Look now; return whether a look that began after this call is over in time."""
        wanted = self._begun + 1
        self._asked.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s), self._looked:
                await self._looked.wait_for(lambda: self._ended >= wanted)
                return True
        return False

    async def look(self) -> None:
        """Look once, and make the registry say what was found."""
        survey = await self._formation.processes()
        problems = dict(survey.failed)
        try:
            self._registry.replace(merge(self._entries, survey, self._registry))
        except BadServersFile as error:
            problems["(servers file)"] = str(error)
        if problems != self._told:
            self._told = problems
            self._failed(problems)

    async def keep(self) -> None:
        """Look again and again."""
        while True:
            self._asked.clear()
            self._begun += 1
            await self.look()
            async with self._looked:
                self._ended = self._begun
                self._looked.notify_all()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._asked.wait()
