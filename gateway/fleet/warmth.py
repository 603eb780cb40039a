"""How many parked dynos each server shall have now, and which ones. Pure.

A parked dyno has booted and waits for a session. How many are wanted is said per server, as a
number or by windows of the week; two caps bound what all of them together may cost:

- per hour: the prices of all that run in the pool never add up to more than the cap, so no hour,
  wherever it begins, can cost more. (A budget per hour that may be spent in a burst would be spent
  in the first minutes of a rush, and leave nothing for the rest.)
- per calendar month of UTC: what is spent and what those that run may still cost, each month its
  part.

A dyno counts against the caps from its order until it is gone or adopted, also while it stops.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.fleet.ledger import HOUR_S, months

PARK_S = 1800.0
"""Age at which a parked dyno is replaced: its secrets and its release grow old, and what nobody
adopts in half an hour need not be the same one for ever."""

OVERLAP_S = 120.0
"""How long it may then wait for its replacement to boot."""

STOP_S = 60.0
"""How long a dyno may take to be gone once it is to stop: 30 s from SIGTERM to SIGKILL, and the
platform's word of it."""

LONGEST_S = PARK_S + OVERLAP_S + STOP_S
"""The most a dyno can cost the pool, in seconds."""

_TOLERANCE_USD = 1e-9


@dataclass(frozen=True, slots=True)
class Caps:
    """The most the pool may cost, in dollars; None means no limit.

    A cap that was lowered lets nothing new in, and stops nothing that is within its park time.
    """

    usd_per_hour: float | None = None
    usd_per_month: float | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one server wants now.

    Attributes:
        release: the app's present one; parked dynos of another are of no use.
        count: parked dynos.
        usd_per_hour: price of one.
    """

    server: str
    release: str
    count: int
    usd_per_hour: float


@dataclass(frozen=True, slots=True)
class Parked:
    """A dyno of the pool, from its order until it is adopted or gone.

    Attributes:
        started: when it began to cost, wall-clock seconds.
        latest_end: it will be adopted or gone by then; at most `started + LONGEST_S`.
        ready: its agent has dialled; before that it boots.
    """

    launch_id: str
    server: str
    release: str
    usd_per_hour: float
    started: float
    latest_end: float
    ready: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now: servers to launch for, once per mention, and launch ids to stop.

    What is to stop is named again in each plan until it is gone.
    """

    launch: tuple[str, ...]
    stop: tuple[str, ...]


def plan(
    wanted: Sequence[Wanted],
    parked: Sequence[Parked],
    caps: Caps,
    *,
    spent_usd: float,
    now: float,
) -> Plan:
    """Compare what is parked with what should be.

    A dyno past its park time stays until its replacement is ready, `OVERLAP_S` at most, if the caps
    leave room for both; otherwise it goes first.

    Args:
        wanted: one for each server.
        parked: all of the pool, also those that boot or are being stopped.
        caps: for all servers together.
        spent_usd: by the pool in this month until now, with what those parked have cost.
        now: wall-clock seconds.
    """
    shelves = {want.server: _Shelf(want) for want in wanted}
    stop = [dyno for dyno in parked if not _put(shelves, dyno, now)]
    for shelf in shelves.values():
        stop += shelf.surplus()
    purse = _Purse(caps, parked, spent_usd, now)
    launch = _launches(list(shelves.values()), purse, now)
    for shelf in shelves.values():
        stop += shelf.replaced()
    return Plan(tuple(launch), tuple(dyno.launch_id for dyno in stop))


class _Shelf:
    """The parked dynos of one server's present release."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.fresh: list[Parked] = []
        self.due: list[Parked] = []
        self.launched = 0

    @property
    def present(self) -> int:
        return len(self.fresh) + self.launched

    @property
    def missing(self) -> int:
        return self.wanted.count - self.present

    def surplus(self) -> list[Parked]:
        """Take off what is too many: what boots first, then the oldest."""
        self.fresh.sort(key=lambda dyno: (not dyno.ready, -dyno.started, dyno.launch_id))
        surplus = self.fresh[self.wanted.count :]
        del self.fresh[self.wanted.count :]
        return surplus

    def replaced(self) -> list[Parked]:
        """Return what is past its park time and stands in for no replacement on its way."""
        boots = self.launched + sum(not dyno.ready for dyno in self.fresh)
        self.due.sort(key=lambda dyno: (not dyno.ready, -dyno.started, dyno.launch_id))
        return [dyno for place, dyno in enumerate(self.due) if place >= boots or not dyno.ready]


class _Purse:
    """What the caps leave, at the worst."""

    def __init__(self, caps: Caps, parked: Sequence[Parked], spent_usd: float, now: float) -> None:
        self._caps = caps
        self._now = now
        self._rate = 0.0
        self._months = dict.fromkeys(months(now, now + LONGEST_S), 0.0)
        self._months[next(iter(self._months))] = spent_usd
        for dyno in parked:
            self._take(dyno.usd_per_hour, dyno.latest_end)

    def pay(self, usd_per_hour: float) -> bool:
        """Take what a new dyno may cost; return False if there is not as much."""
        end = self._now + LONGEST_S
        hour, month = self._caps.usd_per_hour, self._caps.usd_per_month
        if hour is not None and self._rate + usd_per_hour > hour + _TOLERANCE_USD:
            return False
        if month is not None and any(
            taken + usd_per_hour * which.seconds(self._now, end) / HOUR_S > month + _TOLERANCE_USD
            for which, taken in self._months.items()
        ):
            return False
        self._take(usd_per_hour, end)
        return True

    def _take(self, usd_per_hour: float, end: float) -> None:
        self._rate += usd_per_hour
        for month in self._months:
            self._months[month] += usd_per_hour * month.seconds(self._now, end) / HOUR_S


def _put(shelves: Mapping[str, _Shelf], dyno: Parked, now: float) -> bool:
    """Put a dyno on its shelf; return False if there is no place for it any more."""
    shelf = shelves.get(dyno.server)
    age = now - dyno.started
    if shelf is None or dyno.release != shelf.wanted.release or age >= PARK_S + OVERLAP_S:
        return False
    (shelf.fresh if age < PARK_S else shelf.due).append(dyno)
    return True


def _launches(shelves: list[_Shelf], purse: _Purse, now: float) -> list[str]:
    """Fill the shelves, each time the emptiest that can be paid.

    Of equally empty ones another comes first every `PARK_S`, so that none waits for ever.
    """
    if not shelves:
        return []
    turn = int(now // PARK_S) % len(shelves)
    lacking = [shelf for shelf in shelves[turn:] + shelves[:turn] if shelf.missing > 0]
    launches = []
    while lacking:
        shelf = min(lacking, key=lambda shelf: shelf.present)
        if purse.pay(shelf.wanted.usd_per_hour):
            shelf.launched += 1
            launches.append(shelf.wanted.server)
        else:
            lacking.remove(shelf)
        if shelf.missing <= 0:
            lacking.remove(shelf)
    return launches
