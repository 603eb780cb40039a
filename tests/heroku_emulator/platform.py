"""The platform's state: apps with their releases and formations, and the dynos of all of them.

It knows nothing of HTTP; what it refuses, it refuses with the API's errors.
"""

from __future__ import annotations

import asyncio
import random
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.heroku_emulator import views
from tests.heroku_emulator.errors import ApiError, invalid, not_found
from tests.heroku_emulator.logs import Log
from tests.heroku_emulator.model import (
    LONGEST_TIME_TO_LIVE,
    SIZES,
    AppSpec,
    Cause,
    Dyno,
    Moment,
    Process,
    ProcessSpec,
    Release,
    Size,
    new_id,
)
from tests.heroku_emulator.running import Run, Running, path_and_language

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tests.heroku_emulator.faults import Fault
    from tests.heroku_emulator.options import Options
    from tests.heroku_emulator.webhooks import Webhooks

ASLEEP = "exec sleep 86400"

CLOSE_S = 20.0
"""All dynos are gone so long after the platform was closed: SIGKILL needs no grace."""


@dataclass(frozen=True, slots=True)
class DynoOrder:
    """What a create call asks for; None is the platform's choice."""

    command: str
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    size: str | None = None
    type: str | None = None
    time_to_live: int | None = None


class App:
    """One app."""

    def __init__(self, name: str, spec: AppSpec) -> None:
        self.id = new_id()
        self.name = name
        self.size = size_of(spec.size)
        self.dyno_limit = spec.dyno_limit
        self.created = Moment.now()
        self.config = dict(spec.config)
        self.formation: dict[str, Process] = {}
        self.releases: list[Release] = []
        self.dynos: dict[str, Running] = {}
        self.places: dict[str, Running] = {}
        self.log = Log()

    @property
    def release(self) -> Release:
        """The current release."""
        return self.releases[-1]

    def process(self, identity: str) -> Process:
        """Return a process type by its name or id.

        Raises:
            ApiError: 404.
        """
        for process in self.formation.values():
            if identity in (process.type, process.id):
                return process
        raise not_found("formation")

    def visible(self) -> list[Running]:
        """Return the dynos that the API knows, in the order of their making."""
        return [running for running in self.dynos.values() if running.dyno.visible]

    def of_type(self, process_type: str) -> list[Running]:
        """Return the dynos of a type that the API knows."""
        return [running for running in self.visible() if running.dyno.type == process_type]

    def running(self, identity: str) -> Running:
        """Return a dyno by its id or name; of two with one name, the newer.

        Raises:
            ApiError: 404.
        """
        for running in reversed(self.visible()):
            if identity in (running.dyno.id, running.dyno.name):
                return running
        raise not_found("dyno")


class Platform:
    """All apps; `ledger` has every dyno there ever was."""

    def __init__(
        self, options: Options, tasks: asyncio.TaskGroup, webhooks: Webhooks, root: Path
    ) -> None:
        self.options = options
        self.webhooks = webhooks
        self.apps: dict[str, App] = {}
        self.ledger: list[Dyno] = []
        self._tasks = tasks
        self._root = root
        self._chance = random.Random(options.seed)  # noqa: S311 - repeatable, not secret

    # -- apps ----------------------------------------------------------------------------------

    def add(self, name: str, spec: AppSpec) -> App:
        """Make an app with its first release."""
        app = self.apps[name] = App(name, spec)
        self._release(app, "Initial release", spec.slug, new_id())
        self._shape(app, spec.processes)
        return app

    def app(self, identity: str) -> App:
        """Return an app by its name or id.

        Raises:
            ApiError: 404.
        """
        for app in self.apps.values():
            if identity in (app.name, app.id):
                return app
        raise not_found("app")

    def deploy(
        self, app: App, processes: Mapping[str, str | ProcessSpec] | None, slug: Path | None
    ) -> Release:
        """Make a release of a new slug; None keeps what there is. One-off dynos run on."""
        new_slug = app.release.slug if slug is None else slug
        release = self._release(app, f"Deploy {new_id()[:8]}", new_slug, new_id())
        if processes is not None:
            self._shape(app, processes)
        self.restart_all(app)
        return release

    def set_config(self, app: App, changes: Mapping[str, str | None]) -> None:
        """Set config vars, None removes; that is a release, and restarts the formation."""
        for name, value in changes.items():
            if value is None:
                app.config.pop(name, None)
            else:
                app.config[name] = value
        names = ", ".join(changes)
        self._release(app, f"Set {names} config vars", app.release.slug, app.release.slug_id)
        self.restart_all(app)

    def _release(self, app: App, description: str, slug: Path | None, slug_id: str) -> Release:
        version, config = len(app.releases) + 1, dict(app.config)
        release = Release(version, description, slug, slug_id, config, Moment.now())
        app.releases.append(release)
        self.webhooks.publish(app.name, "api:release", "create", views.release(app, release))
        return release

    def _shape(self, app: App, specs: Mapping[str, str | ProcessSpec]) -> None:
        """Make the formation what a Procfile says; quantities of what stays are kept."""
        for gone in app.formation.keys() - specs.keys():
            self.scale(app, app.formation[gone], 0)
            process = app.formation.pop(gone)
            self.webhooks.publish(
                app.name, "api:formation", "destroy", views.formation(app, process)
            )
        for process_type, given in specs.items():
            spec = ProcessSpec(given) if isinstance(given, str) else given
            known, now = app.formation.get(process_type), Moment.now()
            if known is None:
                size = app.size if spec.size is None else size_of(spec.size)
                process = Process(process_type, spec.command, 0, size, now, now)
                app.formation[process_type] = process
                self.webhooks.publish(
                    app.name, "api:formation", "create", views.formation(app, process)
                )
                self.scale(app, process, spec.quantity)
            elif known.command != spec.command:
                known.command, known.updated = spec.command, now
                self._formation_changed(app, known)

    # -- the formation -------------------------------------------------------------------------

    def scale(
        self, app: App, process: Process, quantity: int | None = None, size: str | None = None
    ) -> None:
        """Run so many dynos of a process type, of such a size; None leaves it.

        Raises:
            ApiError: 422.
        """
        if quantity is not None and quantity < 0:
            raise invalid("Quantity must be zero or more.")
        resized = size is not None and size_of(size) != process.size
        if size is not None:
            process.size = size_of(size)
        before = process.quantity
        process.quantity = before if quantity is None else quantity
        if not resized and process.quantity == before:
            return
        process.updated = Moment.now()
        self._formation_changed(app, process)
        for number in range(process.quantity + 1, before + 1):
            running = app.places.pop(f"{process.type}.{number}")
            running.dyno.held = False
            running.end("scaled")
        for number in range(1 if resized else before + 1, process.quantity + 1):
            self._start_place(app, process, f"{process.type}.{number}")

    def restart_all(self, app: App, process_type: str | None = None) -> None:
        """Restart the formation's dynos, all or of one type; one-off dynos run on."""
        for name, running in list(app.places.items()):
            if process_type in (None, running.dyno.type):
                self._start_place(app, app.process(running.dyno.type), name)

    def _start_place(self, app: App, process: Process, name: str) -> None:
        if (former := app.places.get(name)) is not None:
            former.dyno.held = False
            former.end("restarted")
        dyno = self._dyno(app, DynoOrder(process.command), process.type, name, process.size)
        dyno.one_off, dyno.held = False, True
        app.places[name] = self._start(app, dyno, None)

    def _formation_changed(self, app: App, process: Process) -> None:
        self.webhooks.publish(app.name, "api:formation", "update", views.formation(app, process))

    # -- dynos ---------------------------------------------------------------------------------

    def create(self, app: App, order: DynoOrder, fault: Fault | None = None) -> Dyno:
        """Make a one-off dyno.

        Raises:
            ApiError: 422, with `cannot_run_above_limit` when there are enough.
        """
        size = app.size if order.size is None else size_of(order.size)
        if not order.command.strip():
            raise invalid("Command can't be blank.")
        if order.time_to_live is not None and not 1 <= order.time_to_live <= LONGEST_TIME_TO_LIVE:
            raise invalid(f"time_to_live must be 1 to {LONGEST_TIME_TO_LIVE} seconds.")
        self._check_room(app, size)
        process_type = order.type or "run"
        dyno = self._dyno(app, order, process_type, self._free_name(app, process_type), size)
        self._start(app, dyno, fault)
        return dyno

    def restart(self, app: App, running: Running) -> None:
        """Do what DELETE of a dyno does: `run` dynos end, those of other one-off types do not."""
        dyno = running.dyno
        if not dyno.one_off:
            self._start_place(app, app.process(dyno.type), dyno.name)
        elif dyno.type == "run":
            running.end("stopped")

    def dyno(self, identity: str) -> Running:
        """Return a dyno of any app by its id, also one that has ended.

        Raises:
            ApiError: 404.
        """
        for app in self.apps.values():
            if identity in app.dynos:
                return app.dynos[identity]
        raise not_found("dyno")

    def left(self) -> list[Dyno]:
        """Return the dynos that have not ended."""
        return [dyno for dyno in self.ledger if dyno.ended is None]

    async def close(self) -> None:
        """SIGKILL every dyno and wait until nothing of them is left."""
        running = list(self._running())
        for each in running:
            each.end("shutdown", at_once=True)
        async with asyncio.timeout(CLOSE_S):
            for each in running:
                await each.ended.wait()

    def _running(self) -> Iterator[Running]:
        for app in self.apps.values():
            yield from app.dynos.values()

    def _check_room(self, app: App, size: Size) -> None:
        alive = [r.dyno for r in app.dynos.values() if r.dyno.one_off and r.dyno.ended is None]
        limit = size.limit if app.dyno_limit is None else app.dyno_limit
        if len(alive) >= limit:
            message = f"Cannot run more than {limit} {size.name} size dynos."
            raise ApiError(422, "cannot_run_above_limit", message)

    def _free_name(self, app: App, process_type: str) -> str:
        taken = {running.dyno.name for running in app.visible()}
        while (name := f"{process_type}.{self._chance.randrange(1000, 10_000)}") in taken:
            pass
        return name

    def _dyno(self, app: App, order: DynoOrder, process_type: str, name: str, size: Size) -> Dyno:
        return Dyno(
            app=app.name,
            app_id=app.id,
            name=name,
            type=process_type,
            size=size,
            command=order.command,
            env=dict(order.env),
            release=app.release,
            one_off=True,
            created=Moment.now(),
            time_to_live=order.time_to_live,
        )

    def _start(self, app: App, dyno: Dyno, fault: Fault | None) -> Running:
        running = Running(dyno, self._run(app, dyno, fault), app.log, self._changed)
        app.dynos[dyno.id] = running
        self.ledger.append(dyno)
        self._changed(dyno)
        self._tasks.create_task(running.live(), name=f"dyno {dyno.name}")
        return running

    def _run(self, app: App, dyno: Dyno, fault: Fault | None) -> Run:
        first, gap, rest = dyno.command.partition(" ")
        named = app.formation.get(first) if dyno.one_off else None
        command = dyno.command if named is None else f"{named.command}{gap}{rest}"
        port = {"PORT": str(_free_port())} if dyno.type == "web" else {}
        cycled: tuple[float, Cause] = (self.options.longest_life, "cycled")
        lifetime: tuple[float, Cause] = (float(dyno.time_to_live or cycled[0]), "time_to_live")
        return Run(
            command=ASLEEP if fault is not None and fault.asleep else command,
            env={
                **path_and_language(),
                **dyno.release.config,
                **port,
                **dyno.env,
                "DYNO": dyno.name,
            },
            slug=dyno.release.slug,
            root=self._root,
            boot_delay=self._chance.uniform(*self.options.boot_delay),
            dies_after=None if fault is None else fault.dies_after,
            lifetime=min(lifetime, cycled) if dyno.time_to_live else cycled,
            grace=lambda: self.options.stop_grace,
        )

    def _changed(self, dyno: Dyno) -> None:
        action = views.ACTION_OF_STATE[dyno.state]
        self.webhooks.publish(dyno.app, "dyno", action, views.dyno_event(dyno))


def size_of(name: str) -> Size:
    """Return a size by its name or id, in any case.

    Raises:
        ApiError: 422.
    """
    for size in SIZES.values():
        if name.lower() == size.name.lower() or name == size.id:
            return size
    raise invalid(f"No such size as {name} for dyno.")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
