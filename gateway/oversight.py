"""Composition of what operators see: wires the rooms of `ops` to one manager."""

import asyncio
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from aiohttp import web

from gateway.deployment import Deployment
from gateway.ops import logs, traces
from gateway.ops.admin.api import Admin
from gateway.ops.admin.desk import Desk, Tools
from gateway.ops.admin.guard import Gate, Guard
from gateway.ops.admin.standing import Standing
from gateway.ops.console import Console
from gateway.ops.levels import Levels
from gateway.ops.metrics import Metrics
from gateway.ops.recorder import Recorder
from gateway.ops.story import Summary
from gateway.registry.discovery import Discovery
from gateway.registry.servers import Registry
from gateway.sessions.manager import Manager
from gateway.settings import Settings
from gateway.store.base import Keep

if TYPE_CHECKING:
    from gateway.ops.admin.api import Serve
    from gateway.ops.spans import Traces

MOST_STORIES = 4000
"""Stories that are kept, beside the bytes that they may have: each is a row of the list."""


@dataclass(frozen=True, slots=True)
class Ways:
    """What operators need of the rest of the process.

    Attributes:
        serve: runs a handler where the session is, see `Relaying.serve`.
        carried: tells whether another process has let a request in.
        tools: of a server, as far as they are known.
        leave: lets this process drain and end.
    """

    serve: "Serve"
    carried: Callable[[Mapping[str, str]], bool]
    tools: Tools
    leave: Callable[[], None]


class Oversight:
    """Hears all that happens in one manager. Use it as an async context manager, inside that.

    Args:
        settings: all of them.
        registry: the servers.
        manager: the sessions.
    """

    def __init__(self, settings: Settings, registry: Registry, manager: Manager) -> None:
        self._settings = settings
        self._registry = registry
        self._manager = manager
        keep = Keep(
            settings.story_bytes, settings.stories_bytes, MOST_STORIES, settings.story_ttl_s
        )
        self._recorder = Recorder(manager.store, keep, registry.known, manager.fleet.now)
        self._levels = Levels(manager.store, settings.log_level)
        self._metrics = Metrics(manager)
        self._traces: Traces | None = None
        self._tasks = asyncio.TaskGroup()
        self._loops: list[asyncio.Task[None]] = []
        if settings.admin_key.get_secret_value():  # else nobody could ask for what they heard
            manager.subscribe(self._recorder.hear)
            manager.subscribe(self._metrics.hear)

    def log(self) -> None:
        """Write what happens to the log of this process."""
        self._manager.subscribe(logs.log_sink(self._levels, self._recorder.server_of))

    def trace(self, environment: Mapping[str, str]) -> None:
        """Trace calls, if the environment says where to.

        Raises:
            MissingExtra: see `traces.setup`.
        """
        self._traces = traces.setup(environment, self._manager.store.gateway)
        if self._traces is not None:
            self._manager.trace(self._traces)
            self._manager.subscribe(self._traces.hear)

    async def __aenter__(self) -> Self:
        """Start the loops."""
        await self._tasks.__aenter__()
        self._loops = [
            self._tasks.create_task(self._recorder.keep(), name="recorder"),
            self._tasks.create_task(self._levels.keep(), name="log levels"),
        ]
        return self

    async def __aexit__(self, *failure: object) -> None:
        """Tell what is left to tell, and end them."""
        await self._recorder.flush()  # before its loop ends, or what that tells would be told twice
        for task in self._loops:
            task.cancel()
        await self._tasks.__aexit__(None, None, None)
        if self._traces is not None:
            await self._traces.shutdown()

    def routes(
        self, platform: Deployment, discovery: Discovery | None, ways: Ways
    ) -> list[web.RouteDef]:
        """Return the ways in for operators."""
        desk = Desk(
            manager=self._manager,
            registry=self._registry,
            discovery=discovery,
            run_line=platform.run_line,
            recorder=self._recorder,
            levels=self._levels,
            tools=ways.tools,
            kill=self._manager.supervision.kill,
            stop_dyno=functools.partial(_stop_dyno, self._registry, self._manager),
            leave=ways.leave,
            standing=Standing(self._settings.link_grace_s),
        )
        admin = Admin(self._guard(ways), desk, ways.serve)
        return [*admin.routes(), *self._metrics.routes(admin.guarded), *Console().routes()]

    def _guard(self, ways: Ways) -> Guard:
        settings, manager = self._settings, self._manager
        return Guard(
            Gate(
                key=settings.admin_key.get_secret_value(),
                secret=manager.secret,
                behind_router=bool(settings.dyno),
                https=settings.base_url.startswith("https:"),
                now=manager.fleet.now,
                draw=manager.store.draw,
                emit=manager.emit,
                carried=ways.carried,
            )
        )


async def _stop_dyno(registry: Registry, manager: Manager, summary: Summary) -> None:
    server = registry.known(summary.server)
    app = None if server is None else server.app
    manager.supervision.stop(summary.launch, summary.dyno, app)
