"""Proves that budgets hold whatever happens, that months share fairly, and that bills add up."""

import dataclasses
import json
import math
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.fleet.ledger import (
    BILLS_KEPT,
    GATEWAY,
    LINES_KEPT,
    MONTHS_KEPT,
    OTHERS,
    POOL,
    Account,
    Bill,
    Budgets,
    BudgetSpent,
    Ledger,
    Month,
)


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


NOON = at("2026-11-21T12:00:00")
HOUR = 3600.0
ALICE = Account("alice", "code", "s-1")
BOB = Account("bob", "code", "s-2")
PARKED = Account(POOL, "code")
NOVEMBER = Month(2026, 11)


def opened(
    ledger: Ledger,
    launch_id: str = "a",
    account: Account = ALICE,
    *,
    usd_per_hour: float = 1.0,
    started: float = NOON,
    longest_s: float = HOUR,
) -> None:
    ledger.open(launch_id, account, usd_per_hour, "basic", started, started + longest_s)


def admitted(ledger: Ledger, principal: str, usd: float, now: float = NOON) -> bool:
    """Whether a dyno that can cost so much in the coming hour is let in."""
    try:
        ledger.admit(principal, usd, HOUR, now)
    except BudgetSpent:
        return False
    return True


# Months.


@pytest.mark.parametrize(
    ("moment", "month"),
    [
        (at("2026-11-30T23:59:59.999"), Month(2026, 11)),
        (at("2026-12-01T00:00:00"), Month(2026, 12)),
        (at("2027-01-01T00:00:00"), Month(2027, 1)),
        (at("2028-02-29T12:00:00"), Month(2028, 2)),
    ],
)
def test_month_begins_at_midnight_of_its_first_day(moment: float, month: Month) -> None:
    assert Month.of(moment) == month


def test_december_ends_with_the_year() -> None:
    assert Month(2026, 12).ends == at("2027-01-01T00:00:00")


# Bills.


def test_bill_is_seconds_times_price() -> None:
    ledger = Ledger(Budgets())
    opened(ledger, usd_per_hour=0.05)
    assert ledger.close("a", NOON + 90.25) == Bill(
        launch_id="a",
        account=ALICE,
        usd_per_hour=0.05,
        size="basic",
        since=NOON,
        ended=NOON + 90.25,
        dyno_s=90.25,
        usd=0.05 * 90.25 / 3600,
    )


def test_second_close_returns_the_same_bill_and_costs_nothing() -> None:
    ledger = Ledger(Budgets())
    opened(ledger)
    first = ledger.close("a", NOON + 10)
    again = ledger.close("a", NOON + 99)
    assert (again, ledger.spent(NOVEMBER, NOON + 99)) == (first, 10 / 3600)


def test_unknown_launch_has_no_bill() -> None:
    assert Ledger(Budgets()).close("never", NOON) is None


def test_dyno_that_could_not_be_had_costs_nothing() -> None:
    ledger = Ledger(Budgets())
    opened(ledger)
    bill = ledger.close("a", NOON)
    assert bill is not None
    assert (bill.dyno_s, bill.usd) == (0.0, 0.0)


def test_clock_that_went_back_costs_nothing() -> None:
    ledger = Ledger(Budgets())
    opened(ledger)
    bill = ledger.close("a", NOON - 5)
    assert bill is not None
    assert (bill.ended, bill.dyno_s, ledger.spent(NOVEMBER, NOON)) == (NOON, 0.0, 0.0)


def test_second_opening_changes_nothing() -> None:
    ledger = Ledger(Budgets())
    opened(ledger)
    opened(ledger, account=BOB, usd_per_hour=9.0, started=NOON + 1)
    bill = ledger.close("a", NOON + 10)
    assert bill is not None
    assert (bill.account, bill.usd) == (ALICE, 10 / 3600)


def test_launch_that_was_closed_stays_closed() -> None:
    ledger = Ledger(Budgets())
    opened(ledger)
    ledger.close("a", NOON + 10)
    opened(ledger)
    assert ledger.running("a") is None


def test_platforms_word_about_start_and_price_is_taken() -> None:
    ledger = Ledger(Budgets())
    opened(ledger)
    ledger.correct("a", NOON + 4, 3.6)
    bill = ledger.close("a", NOON + 10)
    assert bill is not None
    assert (bill.since, bill.dyno_s, bill.usd) == (NOON + 4, 6.0, 0.006)


def test_platforms_word_after_a_transfer_does_not_move_the_transfer() -> None:
    ledger = Ledger(Budgets())
    opened(ledger, account=PARKED)
    ledger.transfer("a", ALICE, NOON + 100, NOON + HOUR)
    ledger.correct("a", NOON + 4, 1.0)
    bill = ledger.close("a", NOON + 110)
    assert bill is not None
    assert (bill.since, bill.dyno_s) == (NOON + 100, 10.0)


def test_platforms_word_about_an_unknown_launch_opens_nothing() -> None:
    ledger = Ledger(Budgets())
    ledger.correct("a", NOON, 1.0)
    assert ledger.running("a") is None


# Transfers.


def test_each_account_pays_for_its_own_part_of_an_adopted_dyno() -> None:
    ledger = Ledger(Budgets())
    opened(ledger, account=PARKED)
    first = ledger.transfer("a", ALICE, NOON + 100, NOON + 8 * HOUR)
    second = ledger.close("a", NOON + 130)
    assert first is not None
    assert second is not None
    assert [(b.account, b.since, b.ended, b.dyno_s) for b in (first, second)] == [
        (PARKED, NOON, NOON + 100, 100.0),
        (ALICE, NOON + 100, NOON + 130, 30.0),
    ]


def test_totals_keep_both_parts_of_an_adopted_dyno() -> None:
    ledger = Ledger(Budgets())
    opened(ledger, account=PARKED, usd_per_hour=3.6)
    ledger.transfer("a", ALICE, NOON + 100, NOON + 8 * HOUR)
    ledger.close("a", NOON + 130)
    assert ledger.report(NOON + 200)["months"] == [
        {
            "month": "2026-11",
            "dyno_s": 130.0,
            "usd": 0.13,
            "by_server": {"code": {"dyno_s": 130.0, "usd": 0.13}},
            "by_principal": {
                POOL: {"dyno_s": 100.0, "usd": 0.1},
                "alice": {"dyno_s": 30.0, "usd": 0.03},
            },
            "by_size": {"basic": {"dyno_s": 130.0, "usd": 0.13}},
        }
    ]


def test_transfer_of_an_unknown_dyno_changes_nothing() -> None:
    ledger = Ledger(Budgets())
    assert ledger.transfer("a", ALICE, NOON, NOON + HOUR) is None
    assert ledger.running("a") is None


def test_transfer_to_who_pays_already_bills_nothing_again() -> None:
    ledger = Ledger(Budgets())
    opened(ledger, account=PARKED)
    first = ledger.transfer("a", ALICE, NOON + 100, NOON + HOUR)
    again = ledger.transfer("a", ALICE, NOON + 200, NOON + 2 * HOUR)
    entry = ledger.running("a")
    assert again == first
    assert entry is not None
    assert (entry.since, entry.latest_end) == (NOON + 100, NOON + HOUR)
    assert len(ledger.report(NOON + 300)["bills"]) == 1


def test_dynos_that_run_are_listed_oldest_first() -> None:
    ledger = Ledger(Budgets())
    opened(ledger, "b", started=NOON + 1)
    opened(ledger, "a", started=NOON)
    assert [entry.launch_id for entry in ledger.entries] == ["a", "b"]


def test_adopted_dyno_counts_once_when_it_is_admitted() -> None:
    ledger = Ledger(Budgets(overall=1.0))
    opened(ledger, account=PARKED)
    ledger.admit("alice", 1.0, HOUR, NOON, adopting="a")
    with pytest.raises(BudgetSpent):
        ledger.admit("alice", 1.0, HOUR, NOON)


def test_what_a_parked_dyno_has_cost_counts_when_it_is_adopted() -> None:
    ledger = Ledger(Budgets(overall=1.0))
    opened(ledger, account=PARKED)
    with pytest.raises(BudgetSpent):
        ledger.admit("alice", 1.0, HOUR, NOON + 60, adopting="a")


def test_adoption_lets_the_session_live_as_long_as_was_admitted() -> None:
    ledger = Ledger(Budgets())
    opened(ledger, account=PARKED)
    ledger.transfer("a", ALICE, NOON + 100, NOON + 3 * HOUR)
    assert ledger.committed(NOVEMBER, NOON + HOUR) == 2.0


# Budgets.


def test_without_budgets_everything_is_admitted() -> None:
    assert admitted(Ledger(Budgets()), "alice", 1e9)


@pytest.mark.parametrize(("usd", "answer"), [(1.0, True), (1.01, False)])
def test_budget_can_be_used_up_and_not_exceeded(usd: float, answer: bool) -> None:
    assert admitted(Ledger(Budgets(overall=1.0)), "alice", usd) is answer


def test_what_running_dynos_may_still_cost_is_not_given_away() -> None:
    ledger = Ledger(Budgets(overall=1.5))
    opened(ledger)
    assert [admitted(ledger, "bob", usd) for usd in (0.5, 0.6)] == [True, False]


def test_end_of_a_dyno_gives_back_what_it_did_not_use() -> None:
    ledger = Ledger(Budgets(overall=1.5))
    opened(ledger)
    ledger.close("a", NOON + HOUR / 2)
    assert [admitted(ledger, "bob", usd, NOON + HOUR / 2) for usd in (1.0, 1.1)] == [True, False]


def test_budget_of_one_principal_does_not_stop_another() -> None:
    ledger = Ledger(Budgets(by_principal={"alice": 1.0}))
    opened(ledger)
    assert [admitted(ledger, who, 0.5) for who in ("alice", "bob")] == [False, True]


def test_budget_of_a_principal_is_not_touched_by_others() -> None:
    ledger = Ledger(Budgets(by_principal={"alice": 1.0}))
    opened(ledger, account=BOB)
    assert admitted(ledger, "alice", 1.0)


def test_overall_budget_stops_those_with_a_budget_of_their_own() -> None:
    assert not admitted(Ledger(Budgets(0.5, {"alice": 9.0})), "alice", 1.0)


def test_overall_budget_holds_for_parked_dynos_and_throw_away_runs() -> None:
    ledger = Ledger(Budgets(overall=1.0))
    assert [admitted(ledger, who, 1.1) for who in (POOL, GATEWAY)] == [False, False]


def test_dyno_over_the_months_end_costs_each_month_its_part() -> None:
    ledger = Ledger(Budgets())
    eve = at("2026-11-30T23:45:00")
    opened(ledger, started=eve)
    ledger.close("a", eve + HOUR)
    assert [ledger.spent(month, eve + HOUR) for month in (NOVEMBER, Month(2026, 12))] == [
        0.25,
        0.75,
    ]


def test_new_month_has_its_whole_budget() -> None:
    ledger = Ledger(Budgets(overall=1.0))
    opened(ledger, started=at("2026-11-30T12:00:00"))
    ledger.close("a", at("2026-11-30T13:00:00"))
    before, after = at("2026-11-30T22:59:00"), at("2026-12-01T00:00:00")
    assert [admitted(ledger, "bob", 1.0, now) for now in (before, after)] == [False, True]


def test_dyno_that_lives_into_the_next_month_must_have_room_there_too() -> None:
    ledger = Ledger(Budgets(overall=1.0))
    eve = at("2026-11-30T23:00:00")
    opened(ledger, started=eve, usd_per_hour=0.5, longest_s=3 * HOUR)
    with pytest.raises(BudgetSpent, match=r"in 2026-12: .* ends at 2027-01-01T00:00Z") as refusal:
        ledger.admit("bob", 0.4, 2 * HOUR, eve)
    assert refusal.value.month_ends == at("2027-01-01T00:00:00")


def test_refusal_names_the_budget_and_where_the_money_is() -> None:
    ledger = Ledger(Budgets(overall=2.0))
    opened(ledger, longest_s=2 * HOUR)
    with pytest.raises(BudgetSpent) as refusal:
        ledger.admit("bob", 0.75, HOUR, NOON + HOUR / 2)
    assert str(refusal.value) == (
        "the monthly budget, MONTHLY_BUDGET_USD=2, has no room for another dyno in 2026-11:"
        " $0.5000 is spent, dynos that run may still cost $1.5000, and this one $0.7500; the month"
        " ends at 2026-12-01T00:00Z"
    )


def test_refusal_by_a_keys_budget_names_the_key() -> None:
    ledger = Ledger(Budgets(by_principal={"alice": 0.25}))
    with pytest.raises(BudgetSpent, match=r"of this key \(alice\), KEY_BUDGETS_USD=0\.25,"):
        ledger.admit("alice", 1.0, HOUR, NOON)


def test_dyno_that_outlives_its_latest_end_goes_on_costing() -> None:
    ledger = Ledger(Budgets())
    opened(ledger)
    now = NOON + 3 * HOUR
    assert (ledger.spent(NOVEMBER, now), ledger.committed(NOVEMBER, now)) == (3.0, 0.0)


EDGES = [at(f"{month}-01T00:00:00") for month in ("2026-12", "2027-01", "2027-02", "2027-03")]
BUDGETS = Budgets(overall=2.0, by_principal={"alice": 0.7, POOL: 0.5})


@dataclasses.dataclass
class Span:
    """Oracle: one account's time with one dyno, at the worst until `end`."""

    launch_id: str
    principal: str
    usd_per_hour: float
    start: float
    end: float


class World:
    """A ledger and, next to it, what really happened, in the plainest arithmetic."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.ledger = Ledger(BUDGETS)
        self.running: dict[str, Span] = {}
        self.over: list[Span] = []

    def worst(self, principal: str | None, *extra: Span) -> list[float]:
        """Cost of each month if every dyno lives as long as it can."""
        spans = [
            span
            for span in (*self.over, *self.running.values(), *extra)
            if principal in (None, span.principal)
        ]
        return [
            math.fsum(
                span.usd_per_hour * max(0.0, min(span.end, end) - max(span.start, start)) / 3600
                for span in spans
            )
            for start, end in pairwise(EDGES)
        ]

    def exceeds(self, *extra: Span, by: float) -> bool:
        limits: dict[str | None, float] = {None: 2.0}
        limits.update(BUDGETS.by_principal)
        return any(
            cost > limit + by for who, limit in limits.items() for cost in self.worst(who, *extra)
        )

    def wait(self, seconds: float) -> None:
        """Let time pass; who reaches its latest end ends there."""
        self.now += seconds
        for span in sorted(self.running.values(), key=lambda span: span.end):
            if span.end <= self.now:
                self.end(span.launch_id, span.end)

    def launch(self, principal: str, usd_per_hour: float, longest_s: float) -> None:
        name = f"{len(self.over) + len(self.running)}"
        span = Span(name, principal, usd_per_hour, self.now, self.now + longest_s)
        try:
            self.ledger.admit(principal, usd_per_hour, longest_s, self.now)
        except BudgetSpent:
            assert self.exceeds(span, by=1e-10), "refused without need"
            return
        account = Account(principal, "code")
        self.ledger.open(name, account, usd_per_hour, "basic", self.now, span.end)
        self.running[name] = span

    def adopt(self, launch_id: str, longest_s: float) -> None:
        parked = self.running[launch_id]
        ours = Span(launch_id, "alice", parked.usd_per_hour, self.now, self.now + longest_s)
        try:
            self.ledger.admit("alice", ours.usd_per_hour, longest_s, self.now, adopting=launch_id)
        except BudgetSpent:
            return
        self.ledger.transfer(launch_id, Account("alice", "code"), self.now, ours.end)
        self.over.append(dataclasses.replace(parked, end=self.now))
        self.running[launch_id] = ours

    def end(self, launch_id: str, ended: float) -> None:
        self.ledger.close(launch_id, ended)
        self.over.append(dataclasses.replace(self.running.pop(launch_id), end=ended))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["launch", "launch", "adopt", "end"]),
        st.one_of(st.just(0.0), st.floats(0, 4000), st.floats(0, 400_000)),
        st.sampled_from(["alice", "bob", POOL, GATEWAY]),
        st.sampled_from([0.01, 0.05, 0.5, 1.0]),
        st.floats(0, 20_000),
        st.integers(0, 99),
    ),
    max_size=40,
)


def played(start: float, steps: list[tuple[str, float, str, float, float, int]]) -> World:
    world = World(start)
    for what, pause, principal, rate, longest_s, choice in steps:
        world.wait(pause)
        parked = [name for name, span in world.running.items() if span.principal == POOL]
        names = list(world.running)
        if what == "launch":
            world.launch(principal, rate, longest_s)
        elif what == "adopt" and parked:
            world.adopt(parked[choice % len(parked)], longest_s)
        elif what == "end" and names:
            world.end(names[choice % len(names)], world.now)
        assert not world.exceeds(by=1e-8), f"over budget after {what}"
    return world


@given(start=st.floats(EDGES[1] - 30_000, EDGES[1] + 10_000), steps=STEPS)
def test_no_budget_is_exceeded_or_kept_back_whatever_happens(
    start: float, steps: list[tuple[str, float, str, float, float, int]]
) -> None:
    played(start, steps)


@given(start=st.floats(EDGES[1] - 30_000, EDGES[1] + 10_000), steps=STEPS)
def test_ledger_agrees_with_what_really_ran(
    start: float, steps: list[tuple[str, float, str, float, float, int]]
) -> None:
    world = played(start, steps)
    for span in [*world.running.values()]:
        world.end(span.launch_id, world.now)
    months = [Month(2026, 12), Month(2027, 1), Month(2027, 2)]
    for who in (None, "alice", "bob", POOL, GATEWAY):
        said = [world.ledger.spent(month, world.now, who) for month in months]
        assert said == pytest.approx(world.worst(who), abs=1e-9)


@given(start=st.floats(EDGES[1] - 30_000, EDGES[1] + 10_000), steps=STEPS)
def test_bills_add_up_to_the_totals(
    start: float, steps: list[tuple[str, float, str, float, float, int]]
) -> None:
    world = played(start, steps)
    for span in [*world.running.values()]:
        world.end(span.launch_id, world.now)
    report = world.ledger.report(world.now)
    billed = math.fsum(bill["usd"] for bill in report["bills"])
    assert billed == pytest.approx(math.fsum(m["usd"] for m in report["months"]), abs=1e-4)


# Reports.


def test_report_shows_what_runs_with_its_cost_until_now() -> None:
    ledger = Ledger(Budgets())
    opened(ledger, usd_per_hour=0.5)
    assert ledger.report(NOON + HOUR / 4)["running"] == [
        {
            "launch": "a",
            "principal": "alice",
            "server": "code",
            "session": "s-1",
            "size": "basic",
            "usd_per_hour": 0.5,
            "started": NOON,
            "since": NOON,
            "latest_end": NOON + HOUR,
            "dyno_s": 900.0,
            "usd": 0.125,
        }
    ]


def test_report_shows_where_the_budgets_stand() -> None:
    ledger = Ledger(Budgets(10.0, {"alice": 2.0, "carol": 1.0}))
    opened(ledger)
    opened(ledger, "b", BOB)
    report = ledger.report(NOON + HOUR / 4)
    assert (report["month"], report["month_ends"]) == ("2026-11", at("2026-12-01T00:00:00"))
    assert report["budgets"] == {
        "overall": {"budget_usd": 10.0, "spent_usd": 0.5, "committed_usd": 1.5},
        "by_principal": {
            "alice": {"budget_usd": 2.0, "spent_usd": 0.25, "committed_usd": 0.75},
            "carol": {"budget_usd": 1.0, "spent_usd": 0.0, "committed_usd": 0.0},
        },
    }


def test_months_of_the_report_hold_what_runs() -> None:
    ledger = Ledger(Budgets())
    opened(ledger)
    assert ledger.report(NOON + HOUR / 2)["months"][0]["usd"] == 0.5


def test_report_changes_nothing() -> None:
    ledger = Ledger(Budgets())
    opened(ledger)
    assert ledger.report(NOON + 60) == ledger.report(NOON + 60)


def test_report_is_plain_data() -> None:
    ledger = Ledger(Budgets(1.0, {"alice": 1.0}))
    opened(ledger)
    opened(ledger, "b", BOB)
    ledger.close("b", NOON + 1)
    report = ledger.report(NOON + 60)
    assert json.loads(json.dumps(report)) == report


def test_bills_are_listed_newest_first_and_as_many_as_asked_for() -> None:
    ledger = Ledger(Budgets())
    for name in "abc":
        opened(ledger, name)
        ledger.close(name, NOON + 1)
    assert [bill["launch"] for bill in ledger.report(NOON + 1, bills=2)["bills"]] == ["c", "b"]


def test_last_bills_are_kept() -> None:
    ledger = Ledger(Budgets())
    for n in range(BILLS_KEPT + 5):
        opened(ledger, str(n))
        ledger.close(str(n), NOON + 1)
    bills = ledger.report(NOON + 1)["bills"]
    assert (len(bills), bills[-1]["launch"]) == (BILLS_KEPT, "5")


def test_last_months_are_kept() -> None:
    ledger = Ledger(Budgets())
    moment = NOON
    for n in range(MONTHS_KEPT + 2):
        opened(ledger, str(n), started=moment)
        ledger.close(str(n), moment + 1)
        moment = Month.of(moment).ends
    months = [month["month"] for month in ledger.report(moment)["months"]]
    assert (len(months), months[0], months[-1]) == (MONTHS_KEPT, "2028-01", "2027-01")


def crowded(ledger: Ledger) -> None:
    for n in range(LINES_KEPT):
        opened(ledger, str(n), Account(f"guest{n}", f"server{n}"))
        ledger.close(str(n), NOON + HOUR)


def test_principals_and_servers_beyond_the_limit_share_a_line() -> None:
    ledger = Ledger(Budgets())
    crowded(ledger)
    for n, account in enumerate([Account("late", "new"), Account("later", "newer")]):
        opened(ledger, f"x{n}", account)
        ledger.close(f"x{n}", NOON + HOUR)
    (month,) = ledger.report(NOON + HOUR)["months"]
    lines = [month[kind][OTHERS]["usd"] for kind in ("by_principal", "by_server")]
    assert lines == [2.0, 2.0]
    assert len(month["by_principal"]) == LINES_KEPT + 1


def test_whoever_has_a_budget_never_shares_a_line() -> None:
    ledger = Ledger(Budgets(by_principal={"alice": 1.5}))
    crowded(ledger)
    opened(ledger)
    ledger.close("a", NOON + HOUR)
    assert not admitted(ledger, "alice", 1.0, NOON + HOUR)
