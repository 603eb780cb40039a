"""What the rooms of sessions must know of the deployment."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from dyno_agent.link import DEFAULT_LIMITS, Limits
from gateway.fleet.ledger import Budgets
from gateway.fleet.warmth import Caps


@dataclass(frozen=True, slots=True)
class Terms:
    """What the manager must know of the deployment.

    Attributes:
        url: base URL that agents dial.
        secret: seals session keys and capsules.
        max_sessions: sessions with a dyno at once.
        grace_s: how long an agent may be out of reach before its session ends.
        budgets: what dynos may cost.
        caps: what parked dynos may cost.
        queue_length: sessions that may wait while an app's dyno limit is reached.
        queue_timeout_s: how long one may.
        max_sessions_per_key: the same for each principal; None is no limit.
        opens_per_minute: sessions that each may open in a minute; None is no limit.
        hand_over: another process will have the same secret: a shutdown leaves sessions to it.
        limits: of every link.
        wall_clock: seconds since 1970; gateway processes compare it with one another's only.
    """

    url: str
    secret: bytes = field(repr=False)
    max_sessions: int
    grace_s: float = 300.0
    budgets: Budgets = field(default_factory=Budgets)
    caps: Caps = field(default_factory=Caps)
    queue_length: int = 20
    queue_timeout_s: float = 120.0
    hand_over: bool = False
    max_sessions_per_key: int | None = None
    opens_per_minute: float | None = None
    limits: Limits = DEFAULT_LIMITS
    wall_clock: Callable[[], float] = time.time  # noqa: TID251 - outlives a process, see capsule.py
