"""What the platform's documents hold for us. Whatever else it tells, now or later, is ignored."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

ONE_OFF = "rendezvous"
"""Process type of our dynos: their names start with it."""

HOURS_PER_MONTH = 730
"""What the platform divides a month's price by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DynoRequest:
    """What a new one-off dyno shall be.

    Attributes:
        command: what its shell runs; everybody who may list the dynos reads it.
        env: added to the app's config vars for this dyno alone.
        time_to_live: seconds until the platform kills it, at most 86400.
        size: None for the platform's default.
        type: process type that it goes by.
        attach: whether the platform shall hold a terminal for it.
    """

    command: str
    env: Mapping[str, str] = field(repr=False)
    time_to_live: int
    size: str | None = None
    type: str = ONE_OFF
    attach: bool = False

    def document(self) -> dict[str, Any]:
        """Return the request's body; a size of None must not be sent."""
        return {name: getattr(self, name) for name in self.__slots__} | {"env": dict(self.env)}


class DynoInfo(msgspec.Struct, frozen=True):
    """A dyno. Its state is one of starting, up, idle, crashed, down."""

    id: str
    name: str = ""
    command: str = ""
    state: str = ""
    type: str = ""
    size: str = ""
    created_at: str = ""

    @property
    def created(self) -> float | None:
        """Seconds since 1970; None if the platform's date cannot be read."""
        try:
            return datetime.fromisoformat(self.created_at).timestamp()
        except ValueError:
            return None

    @property
    def ended(self) -> bool:
        """Whether nothing runs in it any more."""
        return self.state in ("crashed", "down")


class AppInfo(msgspec.Struct, frozen=True):
    """An app, as other documents name it."""

    id: str = ""


class FormationInfo(msgspec.Struct, frozen=True):
    """One process type of an app, as its Procfile says."""

    type: str
    command: str = ""
    size: str | None = None
    app: AppInfo = AppInfo()


class ReleaseInfo(msgspec.Struct, frozen=True):
    """One release of an app."""

    version: int
    status: str = ""
    current: bool = False


class Cost(msgspec.Struct, frozen=True):
    """A price: US cents per `hour` or `month`."""

    cents: float = 0.0
    unit: str = ""


class SizeInfo(msgspec.Struct, frozen=True):
    """A size of dynos; those that are not sold by time have no cost."""

    name: str
    cost: Cost | None = None

    @property
    def usd_per_hour(self) -> float | None:
        """What one hour costs; None if that is not told."""
        if self.cost is None:
            return None
        hours = {"hour": 1, "month": HOURS_PER_MONTH}.get(self.cost.unit)
        return None if hours is None else self.cost.cents / 100 / hours


class RateLimit(msgspec.Struct, frozen=True):
    """How many requests are left to the account."""

    remaining: int


class WebhookInfo(msgspec.Struct, frozen=True):
    """A subscription. Its secret is never told again."""

    id: str
    url: str = ""
    include: tuple[str, ...] = ()
    level: str = ""


class LogSession(msgspec.Struct, frozen=True):
    """Where the lines of a log can be read for some minutes, by whoever knows the address."""

    logplex_url: str
