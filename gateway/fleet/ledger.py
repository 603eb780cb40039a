"""What dynos cost: who pays for which, what is spent, and whether another one may be had. Pure.

A ledger is also a set of rows, so that several processes can keep one together: each operation says
which rows it has touched, and each may be done again without harm (`book.py` is where that is).

Times are wall-clock seconds since 1970 (UTC), money is US dollars; a month is a calendar month of
UTC. A dyno that runs over a month's end costs each of the two months its own part. Money is a float
and rounded where it is shown only; seconds are exact.

A budget holds because each dyno is admitted at the most it can cost: until its latest end. It is
exceeded only by a dyno that outlives its latest end, which the platform prevents.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

import msgspec

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
        owner: the gateway process that has to close it; empty if none has.
    """

    launch_id: str
    account: Account
    usd_per_hour: float
    size: str
    started: float
    since: float
    latest_end: float
    owner: str = ""

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


@dataclass(frozen=True, slots=True)
class Sum:
    """What was paid on one line of a month."""

    dyno_s: float = 0.0
    usd: float = 0.0

    def shown(self) -> dict[str, float]:
        """Return it rounded."""
        return {"dyno_s": _seconds(self.dyno_s), "usd": _dollars(self.usd)}


class Line(NamedTuple):
    """Where a sum stands: of which kind ("" is all together), and under which name."""

    kind: str
    name: str


_ALL = Line("", "")

_KINDS = ("server", "principal", "size")


class Totals:
    """Sums by month and line, bounded.

    Args:
        reserved: principals that never share a line.
        months: the sums.
    """

    def __init__(
        self, reserved: frozenset[str], months: dict[Month, dict[Line, Sum]] | None = None
    ) -> None:
        self._reserved = reserved
        self.months = months or {}

    def copy(self) -> "Totals":
        """Return one that changes by itself."""
        return Totals(self._reserved, {month: dict(by) for month, by in self.months.items()})

    @property
    def dyno_s(self) -> float:
        """All seconds there are."""
        return sum(lines.get(_ALL, Sum()).dyno_s for lines in self.months.values())

    def add(self, bill: "Bill") -> list[tuple[Month, Line]]:
        """Book what a bill says, each month its part; return the sums that changed or went."""
        touched = []
        for month in months(bill.since, bill.ended):
            dyno_s = month.seconds(bill.since, bill.ended)
            usd = bill.usd_per_hour * dyno_s / HOUR_S
            lines = self.months.setdefault(month, {})
            for line in self._lines(lines, bill):
                before = lines.get(line, Sum())
                lines[line] = Sum(before.dyno_s + dyno_s, before.usd + usd)
                touched.append((month, line))
        while len(self.months) > MONTHS_KEPT:
            oldest = min(self.months)
            touched += [(oldest, line) for line in self.months.pop(oldest)]
        return touched

    def spent(self, month: Month, principal: str | None) -> float:
        """Return what was booked for a principal, or for all."""
        line = _ALL if principal is None else Line("principal", principal)
        return self.months.get(month, {}).get(line, Sum()).usd

    def _lines(self, lines: Mapping[Line, Sum], bill: "Bill") -> Iterator[Line]:
        yield _ALL
        names = (bill.account.server, bill.account.principal, bill.size)
        for kind, name in zip(_KINDS, names, strict=True):
            line = Line(kind, name)
            count = sum(each.kind == kind for each in lines)
            room = line in lines or count < LINES_KEPT or name in self._reserved
            yield line if room else Line(kind, OTHERS)

    def shown(self) -> list[dict[str, Any]]:
        """Return the months, newest first."""
        return [
            {
                "month": str(month),
                **lines.get(_ALL, Sum()).shown(),
                **{
                    f"by_{kind}": {
                        line.name: lines[line].shown()
                        for line in sorted(lines)
                        if line.kind == kind
                    }
                    for kind in _KINDS
                },
            }
            for month, lines in sorted(self.months.items(), reverse=True)
        ]


@dataclass(slots=True)
class Pages:
    """What a ledger holds; as rows it can be kept elsewhere too.

    Attributes:
        totals: what was paid.
        running: entries by launch.
        bills: by number, which grow; the last `BILLS_KEPT`.
    """

    totals: Totals
    running: dict[str, Entry] = field(default_factory=dict)
    bills: dict[int, Bill] = field(default_factory=dict)

    def copy(self) -> "Pages":
        """Return others that change by themselves."""
        return Pages(self.totals.copy(), dict(self.running), dict(self.bills))

    @property
    def keys(self) -> set[str]:
        """The keys of all rows."""
        return {
            *(_RUN + launch_id for launch_id in self.running),
            *(_bill_key(number) for number in self.bills),
            *(_sum_key(m, line) for m, lines in self.totals.months.items() for line in lines),
        }

    def row(self, key: str) -> bytes | None:
        """Return a row; None if there is none."""
        row: Entry | Bill | Sum | None
        if key.startswith(_RUN):
            row = self.running.get(key.removeprefix(_RUN))
        elif key.startswith(_BILL):
            row = self.bills.get(int(key.removeprefix(_BILL)))
        else:
            month, line = _sum_of(key)
            row = self.totals.months.get(month, {}).get(line)
        return None if row is None else msgspec.json.encode(row)

    def enter(self, rows: Mapping[str, bytes | None]) -> None:
        """Put rows in, or take those out that are None."""
        months = self.totals.months
        for key, raw in rows.items():
            if key.startswith(_RUN):
                _put(self.running, key.removeprefix(_RUN), raw, _ENTRIES)
            elif key.startswith(_BILL):
                _put(self.bills, int(key.removeprefix(_BILL)), raw, _BILLS)
            else:
                month, line = _sum_of(key)
                _put(months.setdefault(month, {}), line, raw, _SUMS)
        self.totals.months = {month: lines for month, lines in months.items() if lines}
        self.bills = dict(sorted(self.bills.items()))

    def merged(self, other: "Pages") -> "Pages":
        """Return what is known here or there; see `Ledger.absorb`."""
        here = {_part(bill): bill for bill in self.bills.values()}
        there = {_part(bill): bill for bill in other.bills.values()}
        more, less = (self, here), (other, there)
        if other.totals.dyno_s > self.totals.dyno_s:
            more, less = less, more
        totals = more[0].totals.copy()
        for part, bill in less[1].items():
            if part not in more[1]:
                totals.add(bill)
        bills = self.bills
        if there.keys() - here.keys():
            by_end = sorted({**there, **here}.values(), key=lambda bill: bill.ended)
            bills = dict(enumerate(by_end[-BILLS_KEPT:], 1))
        running = dict[str, Entry]()
        for entry in (*self.running.values(), *other.running.values()):
            known = running.get(entry.launch_id, entry)
            if _part(entry) not in here | there and entry.since >= known.since:
                running[entry.launch_id] = known if entry.since == known.since else entry
        return Pages(totals, running, dict(bills))


class Ledger:
    """Who pays for which dyno, from when to when.

    A dyno is admitted and opened in one step, before it is ordered, so that two orders cannot both
    have the last dollar. If it then cannot be had, it is closed at its start and costs nothing.
    """

    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets
        self.pages = Pages(Totals(frozenset((POOL, GATEWAY, *budgets.by_principal))))
        self._touched: set[str] = set()

    def blank(self) -> "Ledger":
        """Return one with the same budgets and nothing in it."""
        return Ledger(self._budgets)

    def copy(self) -> "Ledger":
        """Return one that changes by itself; nothing of it is touched yet."""
        other = self.blank()
        other.pages = self.pages.copy()
        return other

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
        if not self.knows(launch_id):
            self._enter(Entry(launch_id, account, usd_per_hour, size, started, started, latest_end))

    def correct(self, launch_id: str, started: float, usd_per_hour: float) -> None:
        """Take the platform's word for a running dyno's start and price.

        A start that comes after a transfer is too late to matter; an unknown launch is none.
        """
        entry = self.pages.running.get(launch_id)
        if entry is not None:
            since = started if entry.since == entry.started else entry.since
            self._enter(replace(entry, usd_per_hour=usd_per_hour, started=started, since=since))

    def own(self, launch_id: str, owner: str, instead_of: str | None = None) -> None:
        """Let another process close a running dyno.

        Args:
            launch_id: which.
            owner: id of the gateway process; empty for none.
            instead_of: change nothing unless this one has it.
        """
        entry = self.pages.running.get(launch_id)
        if entry is not None and instead_of in (None, entry.owner):
            self._enter(replace(entry, owner=owner))

    def transfer(
        self, launch_id: str, account: Account, now: float, latest_end: float
    ) -> Bill | None:
        """Let another account pay from now on; return the bill of the one that paid till now.

        Returns:
            None if no such dyno runs; nothing has changed then. The last bill, if the account pays
            already.
        """
        entry = self.pages.running.get(launch_id)
        if entry is None or entry.account == account:
            return None if entry is None else self._bill(launch_id)
        bill = self._settle(entry, now)
        self._enter(replace(entry, account=account, since=bill.ended, latest_end=latest_end))
        return bill

    def close(self, launch_id: str, ended: float) -> Bill | None:
        """Let nobody pay any more; return the last account's bill, the same at each further call.

        Returns:
            None if the dyno was never opened, or closed more than `BILLS_KEPT` bills ago.
        """
        entry = self.pages.running.pop(launch_id, None)
        if entry is None:
            return self._bill(launch_id)
        self._touched.add(_RUN + launch_id)
        return self._settle(entry, ended)

    def spent(self, month: Month, now: float, principal: str | None = None) -> float:
        """Return what a month has cost until now, a principal or (None) all together.

        Of a principal without a budget, what is in `OTHERS` is missing.
        """
        running = sum(entry.usd(month, entry.since, now) for entry in self._of(principal))
        return self.pages.totals.spent(month, principal) + running

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
        return launch_id in self.pages.running or self._bill(launch_id) is not None

    def running(self, launch_id: str) -> Entry | None:
        """Return the entry of a dyno that runs."""
        return self.pages.running.get(launch_id)

    @property
    def entries(self) -> list[Entry]:
        """The dynos that run, the oldest first."""
        return sorted(self.pages.running.values(), key=lambda each: (each.started, each.launch_id))

    def count(self, principal: str | None = None) -> int:
        """Return how many running dynos sessions pay for, a principal's or all together."""
        return sum(bool(entry.account.session) for entry in self._of(principal))

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
        totals = self.pages.totals.copy()
        for entry in self.pages.running.values():
            totals.add(_bill(entry, max(now, entry.since)))
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
            "running": [_running(entry, now) for entry in self.entries],
            "months": totals.shown(),
            "bills": [_shown(bill) for bill in list(reversed(self.pages.bills.values()))[:bills]],
        }

    def _of(self, principal: str | None) -> Iterator[Entry]:
        for entry in self.pages.running.values():
            if principal is None or entry.account.principal == principal:
                yield entry

    def _enter(self, entry: Entry) -> None:
        self.pages.running[entry.launch_id] = entry
        self._touched.add(_RUN + entry.launch_id)

    def _settle(self, entry: Entry, end: float) -> Bill:
        """Book an entry, and write the bill; a clock that went back costs nothing."""
        bill = _bill(entry, max(end, entry.since))
        self._write(bill)
        return bill

    def _write(self, bill: Bill) -> None:
        self._touched.update(_sum_key(*sum_) for sum_ in self.pages.totals.add(bill))
        number = next(reversed(self.pages.bills), 0) + 1
        self.pages.bills[number] = bill
        self._touched.add(_bill_key(number))
        if len(self.pages.bills) > BILLS_KEPT:
            oldest = next(iter(self.pages.bills))
            del self.pages.bills[oldest]
            self._touched.add(_bill_key(oldest))

    def _bill(self, launch_id: str) -> Bill | None:
        bills = reversed(self.pages.bills.values())
        return next((bill for bill in bills if bill.launch_id == launch_id), None)

    # Rows

    def touched(self) -> dict[str, bytes | None]:
        """Return the rows that have changed since the last time; None for those that are gone."""
        rows = {key: self.pages.row(key) for key in self._touched}
        self._touched.clear()
        return rows

    def absorb(self, other: "Ledger") -> None:
        """Enter what another ledger of the same dynos knows and this one does not; once is enough.

        Both have gone on from what was one ledger, or one of them began anew: so the sums of the
        one that has seen more hold, and the bills that it has not seen are added to them.
        """
        before, self.pages = self.pages, self.pages.merged(other.pages)
        keys = before.keys | self.pages.keys
        self._touched |= {key for key in keys if before.row(key) != self.pages.row(key)}

    def _standing(
        self, month: Month, now: float, principal: str | None, budget: float | None
    ) -> dict[str, float | None]:
        return {
            "budget_usd": budget,
            "spent_usd": _dollars(self.spent(month, now, principal)),
            "committed_usd": _dollars(self.committed(month, now, principal)),
        }


_RUN, _BILL, _SUM = "run/", "bill/", "sum/"

_ENTRIES = msgspec.json.Decoder(Entry)
_BILLS = msgspec.json.Decoder(Bill)
_SUMS = msgspec.json.Decoder(Sum)

K = TypeVar("K")
V = TypeVar("V")


def _put(by: dict[K, V], key: K, raw: bytes | None, decoder: msgspec.json.Decoder[V]) -> None:
    if raw is None:
        by.pop(key, None)
    else:
        by[key] = decoder.decode(raw)


def _bill_key(number: int) -> str:
    return f"{_BILL}{number:012}"


def _sum_key(month: Month, line: Line) -> str:
    return f"{_SUM}{month}/{line.kind}/{line.name}"


def _sum_of(key: str) -> tuple[Month, Line]:
    month, kind, name = key.removeprefix(_SUM).split("/", 2)
    year, _, number = month.partition("-")
    return Month(int(year), int(number)), Line(kind, name)


def _part(paid: Entry | Bill) -> tuple[str, Account]:
    """Return what tells one account's part of a dyno from all others."""
    return paid.launch_id, paid.account


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
