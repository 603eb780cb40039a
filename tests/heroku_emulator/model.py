"""What the platform knows: apps, releases, formations, dynos. Values and their JSON; no I/O.

Sizes, states, ids and messages are Heroku's. Times are moments of an injected clock.
"""

from __future__ import annotations

import secrets
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

State = Literal["starting", "up", "crashed", "down"]

Cause = Literal[
    "exited", "stopped", "restarted", "scaled", "killed", "time_to_live", "cycled", "shutdown"
]
"""Why a dyno ended: by itself, or by what was done to it."""

ACCOUNT = {"id": "9c2f3f2e-0d4d-4a6e-8f6b-3f2a1b0c9d8e", "email": "operator@example.com"}

LONGEST_TIME_TO_LIVE = 86_400


def new_id() -> str:
    """Return an id as Heroku gives them out: a random UUID."""
    return str(uuid.UUID(bytes=secrets.token_bytes(16), version=4))


@dataclass(frozen=True, slots=True)
class Moment:
    """An instant on both clocks: seconds of the monotonic one, and since 1970."""

    monotonic: float
    wall: float

    @staticmethod
    def now() -> Moment:
        """Return this instant."""
        return Moment(time.monotonic(), time.time())  # noqa: TID251 - this is the clock

    @property
    def stamp(self) -> str:
        """Return it as the API writes times: UTC, whole seconds."""
        return datetime.fromtimestamp(int(self.wall), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True)
class Size:
    """A dyno size.

    Attributes:
        memory: GB.
        cents: price of a month.
        limit: one-off dynos that one app may run at once when it asks for one of this size.
    """

    name: str
    memory: float
    cents: int
    compute: int = 1
    units: float = 1.0
    limit: int = 50
    dedicated: bool = False
    id: str = field(default_factory=new_id)

    def as_json(self) -> dict[str, Any]:
        """Return the schema's `dyno-size`."""
        return {
            "architecture": "amd64",
            "compute": self.compute,
            "cost": {"cents": self.cents, "unit": "month"},
            "dedicated": self.dedicated,
            "precise_dyno_units": self.units,
            "generation": CEDAR,
            "id": self.id,
            "memory": self.memory,
            "name": self.name,
            "private_space_only": False,
        }


CEDAR = {"id": "46cb8ea2-6ee3-4b1c-a4d8-7a4bd7d9f6a1", "name": "cedar"}

SIZES = {
    size.name.lower(): size
    for size in (
        Size("Eco", 0.5, 500, units=0.28),
        Size("Basic", 0.5, 700, units=0.28),
        Size("Standard-1X", 0.5, 2_500),
        Size("Standard-2X", 1.0, 5_000, compute=2, units=2.0),
        Size("Performance-M", 2.5, 25_000, compute=11, units=10.0, limit=5, dedicated=True),
        Size("Performance-L", 14.0, 50_000, compute=46, units=20.0, limit=5, dedicated=True),
    )
}


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """A line of a Procfile, and how many dynos of it run."""

    command: str
    quantity: int = 0
    size: str | None = None


@dataclass(frozen=True, slots=True)
class AppSpec:
    """An app as it is set up.

    Attributes:
        processes: Procfile: command, or `ProcessSpec`, by process type.
        slug: folder that each dyno gets a copy of; None is an empty one.
        config: config vars.
        size: of dynos that do not say.
        dyno_limit: one-off dynos that may run at once; None is what its sizes allow.
    """

    processes: Mapping[str, str | ProcessSpec] = field(default_factory=dict)
    slug: Path | None = None
    config: Mapping[str, str] = field(default_factory=dict, repr=False)
    size: str = "basic"
    dyno_limit: int | None = None


@dataclass(frozen=True, slots=True)
class Release:
    """What runs from some moment on: a slug and config vars."""

    version: int
    description: str
    slug: Path | None
    slug_id: str
    config: Mapping[str, str] = field(repr=False)
    created: Moment
    id: str = field(default_factory=new_id)


@dataclass(slots=True)
class Process:
    """A process type of an app's formation."""

    type: str
    command: str
    quantity: int
    size: Size
    created: Moment
    updated: Moment
    id: str = field(default_factory=new_id)


@dataclass(slots=True)
class Dyno:
    """One dyno, from its making on, and for ever in the ledger.

    Attributes:
        command: as the API shows it; what runs may be the process type's that it names.
        one_off: made by the API, not by the formation.
        time_to_live: seconds from `created`, or None.
        started: when its process was; None until then.
        ended: when no process of it was left; None until then.
        exit_status: as a shell tells it: 128 + n after signal n; None if no process was started.
        held: the last one of its place in the formation; shown though it has ended.
    """

    app: str
    app_id: str
    name: str
    type: str
    size: Size
    command: str
    env: Mapping[str, str] = field(repr=False)
    release: Release
    one_off: bool
    created: Moment
    time_to_live: int | None = None
    id: str = field(default_factory=new_id)
    state: State = "starting"
    updated: Moment = field(init=False)
    started: Moment | None = None
    ended: Moment | None = None
    exit_status: int | None = None
    cause: Cause | None = None
    held: bool = False

    def __post_init__(self) -> None:
        self.updated = self.created

    @property
    def visible(self) -> bool:
        """Whether the API still knows it."""
        return self.ended is None or self.held

    @property
    def seconds(self) -> float:
        """Return how long it was, or has been, there: from its making to its end."""
        return (self.ended or Moment.now()).monotonic - self.created.monotonic

    @property
    def seconds_up(self) -> float:
        """Return how long its process has run."""
        if self.started is None:
            return 0.0
        return (self.ended or Moment.now()).monotonic - self.started.monotonic

    def entry(self) -> dict[str, Any]:
        """Return the ledger's line as JSON; without `env`, which holds secrets."""

        def wall(moment: Moment | None) -> float | None:
            return None if moment is None else moment.wall

        return {
            "id": self.id,
            "name": self.name,
            "app": self.app,
            "type": self.type,
            "size": self.size.name,
            "command": self.command,
            "one_off": self.one_off,
            "release": self.release.version,
            "state": self.state,
            "created": wall(self.created),
            "started": wall(self.started),
            "ended": wall(self.ended),
            "exit_status": self.exit_status,
            "cause": self.cause,
            "seconds": self.seconds,
            "seconds_up": self.seconds_up,
        }
