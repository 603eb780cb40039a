"""What dynos cost: who pays for which, what is spent, and whether another one may be had. Pure.

Times are wall-clock seconds since 1970 (UTC), money is US dollars; a month is a calendar month of
UTC. A dyno that runs over a month's end costs each of the two months its own part. Money is a float
and rounded where it is shown only; seconds are exact.

A budget holds because each dyno is admitted at the most it can cost: until its latest end. It is
exceeded only by a dyno that outlives its latest end, which the platform prevents.
"""

import copy
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

POOL = "(pool)"
"""Principal of parked dynos."""

GATEWAY = "(gateway)"
"""Principal of throw-away runs."""

OTHERS = "(others)"
"""Whoever finds no line of his own in a month's totals any more."""

MONTHS_KEPT = 13
"""A month and the same one of last year."""

LINES_KEPT = 200
"""Lines of one kind in a month's totals: keys and servers come and go, 13 months must not grow with
them. Whoever has a budget has a line of his own beyond these."""

BILLS_KEPT = 1000

HOUR_S = 3600.0

_TOLERANCE_USD = 1e-9
"""Far below a dyno-second of the smallest size, far above what a month's sums of floats are off."""


class BudgetSpent(Exception):
    """Another dyno could exceed a budget; the message is for the client, and for the operator.

    Attributes:
        month_ends: when the month that has no room ends; running dynos that end early make room
            before.
    """

    def __init__(self, message: str, month_ends: float) -> None:
        super().__init__(message)
        self.month_ends = month_ends


class Month(NamedTuple):
    """A calendar month of UTC."""

    year: int
    number: int

    @classmethod
    def of(cls, moment: float) -> "Month":
        """Return the month that a moment lies in."""
        then = datetime.fromtimestamp(moment, UTC)
        return cls(then.year, then.month)

    @property
    def starts(self) -> float:
        """Its first moment."""
        return datetime(self.year, self.number, 1, tzinfo=UTC).timestamp()

    @property
    def ends(self) -> float:
        """The first moment after it."""
        return self.next.starts

    @property
    def next(self) -> "Month":
        """The month after it."""
        return Month(self.year + self.number // 12, self.number % 12 + 1)

    def seconds(self, start: float, end: float) -> float:
        """Return how much of a span lies in this month."""
        return max(0.0, min(end, self.ends) - max(start, self.starts))

    def __str__(self) -> str:
        return f"{self.year:04}-{self.number:02}"


def months(start: float, end: float) -> Iterator[Month]:
    """Yield the months that a span touches, at least the one it starts in."""
    month = Month.of(start)
    yield month
    while month.ends < end:
        month = month.next
        yield month


@dataclass(frozen=True, slots=True)
class Account:
    """Who pays for a dyno.

    Attributes:
        principal: whose key; `POOL` and `GATEWAY` are the gateway's own.
        server: what runs in it.
        session: public id, empty if there is none.
    """

    principal: str
    server: str
    session: str = ""


@dataclass(frozen=True, slots=True)
class Budgets:
    """The most that may be spent in a month, in dollars; None and absent mean no limit."""

    overall: float | None = None
    by_principal: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entry:
    """A dyno that runs, from when its present account pays for it.

    Attributes:
        started: when the dyno began to cost.
        since: when this account took it over; `started` if it is the first.
        latest_end: it will have ended by then, whatever happens.
    """

    launch_id: str
    account: Account
    usd_per_hour: float
    size: str
    started: float
    since: float
    latest_end: float

    def usd(self, month: Month, start: float, end: float) -> float:
        """Return what it costs its account in a month, between two moments."""
        return self.usd_per_hour * month.seconds(max(start, self.since), end) / HOUR_S


@dataclass(frozen=True, slots=True)
class Bill:
    """What an account has paid for a dyno.

    Attributes:
        dyno_s: seconds from `since` to `ended`.
    """

    launch_id: str
    account: Account
    usd_per_hour: float
    size: str
    since: float
    ended: float
    dyno_s: float
    usd: float


@dataclass(slots=True)
class _Sum:
    dyno_s: float = 0.0
    usd: float = 0.0

    def add(self, dyno_s: float, usd: float) -> None:
        self.dyno_s += dyno_s
        self.usd += usd

    def shown(self) -> dict[str, float]:
        return {"dyno_s": _seconds(self.dyno_s), "usd": _dollars(self.usd)}


@dataclass(slots=True)
class _Totals:
    """One month: all together, and by what one asks for."""

    overall: _Sum = field(default_factory=_Sum)
    by_server: dict[str, _Sum] = field(default_factory=dict)
    by_principal: dict[str, _Sum] = field(default_factory=dict)
    by_size: dict[str, _Sum] = field(default_factory=dict)

    def shown(self) -> dict[str, Any]:
        kinds = {
            "by_server": self.by_server,
            "by_principal": self.by_principal,
            "by_size": self.by_size,
        }
        lines = {
            kind: {name: line.shown() for name, line in sorted(by.items())}
            for kind, by in kinds.items()
        }
        return {**self.overall.shown(), **lines}


class _Book:
    """Totals by month, bounded.

    Args:
        reserved: principals that never share a line.
    """

    def __init__(self, reserved: frozenset[str]) -> None:
        self._reserved = reserved
        self.months: dict[Month, _Totals] = {}

    def add(self, entry: Entry, end: float) -> None:
        """Book what an entry has cost until its end, each month its part."""
        for month in months(entry.since, end):
            dyno_s = month.seconds(entry.since, end)
            usd = entry.usd_per_hour * dyno_s / HOUR_S
            totals = self.months.setdefault(month, _Totals())
            for line in self._lines(totals, entry):
                line.add(dyno_s, usd)
        while len(self.months) > MONTHS_KEPT:
            del self.months[min(self.months)]

    def spent(self, month: Month, principal: str | None) -> float:
        """Return what was booked for a principal, or for all."""
        totals = self.months.get(month, _Totals())
        line = totals.overall if principal is None else totals.by_principal.get(principal)
        return 0.0 if line is None else line.usd

    def _lines(self, totals: _Totals, entry: Entry) -> Iterator[_Sum]:
        yield totals.overall
        yield self._line(totals.by_server, entry.account.server)
        yield self._line(totals.by_principal, entry.account.principal)
        yield self._line(totals.by_size, entry.size)

    def _line(self, lines: dict[str, _Sum], name: str) -> _Sum:
        room = name in lines or len(lines) < LINES_KEPT or name in self._reserved
        return lines.setdefault(name if room else OTHERS, _Sum())


class Ledger:
    """Who pays for which dyno, from when to when.

    A dyno is admitted and opened in one step, before it is ordered, so that two orders cannot both
    have the last dollar. If it then cannot be had, it is closed at its start and costs nothing.
    """

    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets
        self._running: dict[str, Entry] = {}
        self._book = _Book(frozenset((POOL, GATEWAY, *budgets.by_principal)))
        self._bills: deque[Bill] = deque(maxlen=BILLS_KEPT)

    def admit(
        self,
        principal: str,
        usd_per_hour: float,
        longest_s: float,
        now: float,
        *,
        adopting: str | None = None,
    ) -> None:
        """Make sure that a dyno can be paid even if it and all that run live as long as they can.

        Call `open` or `transfer` next, without an await between, from `now` to `now + longest_s`.

        Args:
            principal: who will pay.
            usd_per_hour: what it costs.
            longest_s: seconds from now to its latest end.
            now: wall-clock seconds.
            adopting: launch id of the parked dyno that is to be had; what it may still cost in the
                pool then counts no more.

        Raises:
            BudgetSpent: overall, or this principal's, in this month or one that it may live into.
        """
        limits = (
            ("MONTHLY_BUDGET_USD", self._budgets.overall, None),
            ("KEY_BUDGETS_USD", self._budgets.by_principal.get(principal), principal),
        )
        for name, budget, whose in limits:
            if budget is None:
                continue
            for month in months(now, now + longest_s):
                most = usd_per_hour * month.seconds(now, now + longest_s) / HOUR_S
                spent = self.spent(month, now, whose)
                committed = self.committed(month, now, whose, without=adopting)
                if spent + committed + most > budget + _TOLERANCE_USD:
                    of = "" if whose is None else f" of this key ({whose})"
                    raise BudgetSpent(
                        f"the monthly budget{of}, {name}={budget:g}, has no room for another dyno"
                        f" in {month}: ${spent:.4f} is spent, dynos that run may still cost"
                        f" ${committed:.4f}, and this one ${most:.4f}; the month ends at"
                        f" {_iso(month.ends)}",
                        month.ends,
                    )

    def open(
        self,
        launch_id: str,
        account: Account,
        usd_per_hour: float,
        size: str,
        started: float,
        latest_end: float,
    ) -> None:
        """Let an account pay for a dyno from its start; a launch that is known stays as it is.

        Args:
            launch_id: the launch.
            account: who pays.
            usd_per_hour: what it costs.
            size: of the dyno, for the totals.
            started: when it begins to cost, wall-clock seconds.
            latest_end: when it will have ended, whatever happens.
        """
        if launch_id not in self._running and self._bill(launch_id) is None:
            self._running[launch_id] = Entry(
                launch_id, account, usd_per_hour, size, started, started, latest_end
            )

    def correct(self, launch_id: str, started: float, usd_per_hour: float) -> None:
        """Take the platform's word for a running dyno's start and price.

        A start that comes after a transfer is too late to matter; an unknown launch is none.
        """
        entry = self._running.get(launch_id)
        if entry is not None:
            since = started if entry.since == entry.started else entry.since
            self._running[launch_id] = replace(
                entry, usd_per_hour=usd_per_hour, started=started, since=since
            )

    def transfer(
        self, launch_id: str, account: Account, now: float, latest_end: float
    ) -> Bill | None:
        """Let another account pay from now on; return the bill of the one that paid till now.

        Returns:
            None if no such dyno runs; nothing has changed then.
        """
        entry = self._running.get(launch_id)
        if entry is None:
            return None
        bill = self._settle(entry, now)
        self._running[launch_id] = replace(
            entry, account=account, since=bill.ended, latest_end=latest_end
        )
        return bill

    def close(self, launch_id: str, ended: float) -> Bill | None:
        """Let nobody pay any more; return the last account's bill, the same at each further call.

        Returns:
            None if the dyno was never opened, or closed more than `BILLS_KEPT` bills ago.
        """
        entry = self._running.pop(launch_id, None)
        return self._bill(launch_id) if entry is None else self._settle(entry, ended)

    def spent(self, month: Month, now: float, principal: str | None = None) -> float:
        """Return what a month has cost until now, a principal or (None) all together.

        Of a principal without a budget, what is in `OTHERS` is missing.
        """
        running = sum(entry.usd(month, entry.since, now) for entry in self._of(principal))
        return self._book.spent(month, principal) + running

    def committed(
        self, month: Month, now: float, principal: str | None = None, *, without: str | None = None
    ) -> float:
        """Return what the running dynos may still cost in a month, from now to their latest end."""
        return sum(
            entry.usd(month, now, entry.latest_end)
            for entry in self._of(principal)
            if entry.launch_id != without
        )

    def knows(self, launch_id: str) -> bool:
        """True for a dyno that runs, or that was paid not too long ago."""
        return launch_id in self._running or self._bill(launch_id) is not None

    def running(self, launch_id: str) -> Entry | None:
        """Return the entry of a dyno that runs."""
        return self._running.get(launch_id)

    def report(self, now: float, *, bills: int = BILLS_KEPT) -> dict[str, Any]:
        """Return all there is to know as plain data: rounded, times in seconds since 1970.

        Shape: `{"month", "month_ends", "budgets": {"overall": B, "by_principal": {name: B}},
        "running": [entry], "months": [totals], "bills": [bill]}` with `B = {"budget_usd",
        "spent_usd", "committed_usd"}`; months and bills newest first, months with what runs.

        Args:
            now: wall-clock seconds.
            bills: at most so many.
        """
        month = Month.of(now)
        book = copy.deepcopy(self._book)
        for entry in self._running.values():
            book.add(entry, now)
        newest = sorted(book.months.items(), reverse=True)
        return {
            "month": str(month),
            "month_ends": month.ends,
            "budgets": {
                "overall": self._standing(month, now, None, self._budgets.overall),
                "by_principal": {
                    name: self._standing(month, now, name, budget)
                    for name, budget in sorted(self._budgets.by_principal.items())
                },
            },
            "running": [_running(entry, now) for entry in self._running.values()],
            "months": [{"month": str(which), **totals.shown()} for which, totals in newest],
            "bills": [_shown(bill) for bill in list(reversed(self._bills))[:bills]],
        }

    def _of(self, principal: str | None) -> Iterator[Entry]:
        for entry in self._running.values():
            if principal is None or entry.account.principal == principal:
                yield entry

    def _settle(self, entry: Entry, end: float) -> Bill:
        """Book an entry, and write the bill; a clock that went back costs nothing."""
        end = max(end, entry.since)
        self._book.add(entry, end)
        bill = _bill(entry, end)
        self._bills.append(bill)
        return bill

    def _bill(self, launch_id: str) -> Bill | None:
        return next((bill for bill in reversed(self._bills) if bill.launch_id == launch_id), None)

    def _standing(
        self, month: Month, now: float, principal: str | None, budget: float | None
    ) -> dict[str, float | None]:
        return {
            "budget_usd": budget,
            "spent_usd": _dollars(self.spent(month, now, principal)),
            "committed_usd": _dollars(self.committed(month, now, principal)),
        }


def _bill(entry: Entry, end: float) -> Bill:
    dyno_s = max(0.0, end - entry.since)
    return Bill(
        launch_id=entry.launch_id,
        account=entry.account,
        usd_per_hour=entry.usd_per_hour,
        size=entry.size,
        since=entry.since,
        ended=end,
        dyno_s=dyno_s,
        usd=entry.usd_per_hour * dyno_s / HOUR_S,
    )


def _shown(bill: Bill) -> dict[str, Any]:
    return {
        "launch": bill.launch_id,
        "principal": bill.account.principal,
        "server": bill.account.server,
        "session": bill.account.session,
        "size": bill.size,
        "usd_per_hour": bill.usd_per_hour,
        "since": _seconds(bill.since),
        "ended": _seconds(bill.ended),
        "dyno_s": _seconds(bill.dyno_s),
        "usd": _dollars(bill.usd),
    }


def _running(entry: Entry, now: float) -> dict[str, Any]:
    shown = _shown(_bill(entry, now))
    del shown["ended"]
    return {
        **shown,
        "started": _seconds(entry.started),
        "latest_end": _seconds(entry.latest_end),
    }


def told(bill: Bill | None) -> tuple[float, float]:
    """Return the seconds and dollars of a bill as logs show them; zeros if there is none."""
    return (0.0, 0.0) if bill is None else (_seconds(bill.dyno_s), _dollars(bill.usd))


def _seconds(value: float) -> float:
    return round(value, 3)


def _dollars(value: float) -> float:
    return round(value, 6)


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%MZ")
