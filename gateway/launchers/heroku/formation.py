"""Which servers the apps offer: process types whose names begin with `mcp`."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.launchers.heroku.failures import Failure
from gateway.launchers.heroku.platform import Platform

PREFIX = "mcp"
"""Heroku's own convention: such a process type is a server that speaks on stdio."""


@dataclass(frozen=True, slots=True)
class Process:
    """A server as an app declares it.

    Attributes:
        app: that holds it.
        process_type: its name in the Procfile.
        command: what the Procfile runs.
        size: of dynos of this type, in lower case; None if the platform does not say.
        release: of the app, such as `v12`: another one may mean another server.
        app_id: the platform's own name of the app.
    """

    app: str
    process_type: str
    command: str
    size: str | None
    release: str
    app_id: str = ""


@dataclass(frozen=True, slots=True)
class Survey:
    """What the apps offer.

    Attributes:
        processes: of the apps that could be asked.
        failed: why others could not, by app: nothing is known of their servers, so none is gone.
    """

    processes: tuple[Process, ...]
    failed: Mapping[str, str]


class HerokuFormation:
    """Reads what apps offer.

    Args:
        platform: that runs them.
        apps: whose names are configured.
    """

    def __init__(self, platform: Platform, apps: Sequence[str]) -> None:
        self._platform = platform
        self._apps = tuple(apps)

    async def processes(self) -> Survey:
        """Ask for every app's process types; two requests an app. Raises nothing."""
        async with asyncio.TaskGroup() as surveys:
            asked = {app: surveys.create_task(self._of(app)) for app in self._apps}
        found: list[Process] = []
        failed: dict[str, str] = {}
        for app, task in asked.items():
            answer = task.result()
            if isinstance(answer, Failure):
                failed[app] = str(answer)
            else:
                found += answer
        return Survey(tuple(found), failed)

    async def _of(self, app: str) -> list[Process] | Failure:
        try:
            # In this order: a release made meanwhile shows as a new one next time, never as old.
            release = await self._platform.current_release(app)
            formation = await self._platform.formation(app)
        except Failure as failure:
            return failure
        version = "" if release is None else f"v{release.version}"
        return [
            Process(
                app,
                entry.type,
                entry.command,
                entry.size.lower() if entry.size else None,
                version,
                entry.app.id,
            )
            for entry in sorted(formation, key=lambda entry: entry.type)
            if entry.type.startswith(PREFIX)
        ]
