"""Proves what is parked, that the caps hold in any hour and month, and that servers share."""

import dataclasses
import math
import random
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from gateway.fleet.warmth import (
    LONGEST_S,
    OVERLAP_S,
    PARK_S,
    STOP_S,
    Caps,
    Parked,
    Plan,
    Wanted,
    plan,
)


def at(text: str) -> float:
    """Seconds since 1970 of a moment; without an offset it is UTC."""
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


NOW = at("2026-11-21T12:00:00")
FREE = Caps()


# The plan.


def parked(
    launch_id: str,
    server: str = "code",
    *,
    age: float = 60.0,
    release: str = "v7",
    usd_per_hour: float = 0.05,
    ready: bool = True,
) -> Parked:
    started = NOW - age
    return Parked(
        launch_id, server, release, usd_per_hour, started, started + LONGEST_S, ready=ready
    )


def wants(count: int, server: str = "code", *, usd_per_hour: float = 0.05) -> Wanted:
    return Wanted(server, "v7", count, usd_per_hour)


def planned(
    wanted: Sequence[Wanted], dynos: Sequence[Parked] = (), caps: Caps = FREE, spent: float = 0.0
) -> Plan:
    return plan(wanted, dynos, caps, spent_usd=spent, now=NOW)


def test_what_is_missing_is_launched() -> None:
    assert planned([wants(3)], [parked("a")]) == Plan(("code", "code"), ())


def test_what_boots_is_not_launched_again() -> None:
    assert planned([wants(1)], [parked("a", ready=False)]) == Plan((), ())


def test_of_too_many_the_oldest_are_stopped() -> None:
    dynos = [parked("a", age=10), parked("b", age=300), parked("c", age=200)]
    assert planned([wants(1)], dynos) == Plan((), ("c", "b"))


def test_of_too_many_those_that_boot_are_stopped_first() -> None:
    dynos = [parked("a", age=10, ready=False), parked("b", age=300)]
    assert planned([wants(1)], dynos) == Plan((), ("a",))


def test_same_plan_is_made_until_it_is_carried_out() -> None:
    dynos = [parked(name) for name in "abcd"]
    assert planned([wants(2)], dynos) == planned([wants(2)], dynos[::-1])


def test_outside_all_windows_everything_is_stopped() -> None:
    assert planned([wants(0)], [parked("a"), parked("b", age=PARK_S)]) == Plan((), ("a", "b"))


def test_dyno_of_a_server_that_is_gone_is_stopped() -> None:
    assert planned([], [parked("a")]) == Plan((), ("a",))


def test_dyno_of_an_older_release_is_replaced_at_once() -> None:
    assert planned([wants(1)], [parked("a", release="v6")]) == Plan(("code",), ("a",))


@pytest.mark.parametrize("age", [PARK_S, PARK_S + 60])
def test_dyno_past_its_park_time_stays_until_its_replacement_has_booted(age: float) -> None:
    old, young = parked("a", age=age), parked("b", age=30, ready=False)
    plans = [
        planned([wants(1)], dynos)
        for dynos in ([old], [old, young], [old, dataclasses.replace(young, ready=True)])
    ]
    assert plans == [Plan(("code",), ()), Plan((), ()), Plan((), ("a",))]


def test_dyno_within_its_park_time_is_not_replaced() -> None:
    assert planned([wants(1)], [parked("a", age=PARK_S - 1)]) == Plan((), ())


def test_dyno_past_its_park_time_goes_first_where_the_caps_leave_no_room_for_two() -> None:
    caps = Caps(usd_per_hour=0.05)
    old = parked("a", age=PARK_S)
    assert planned([wants(1)], [old], caps) == Plan((), ("a",))


def test_as_many_go_first_as_the_caps_demand() -> None:
    dynos = [parked("a", age=PARK_S), parked("b", age=PARK_S + 1)]
    assert planned([wants(2)], dynos, Caps(usd_per_hour=0.15)) == Plan(("code",), ("b",))


def test_replacement_that_never_boots_does_not_keep_the_old_one() -> None:
    dynos = [parked("a", age=PARK_S + OVERLAP_S), parked("b", ready=False)]
    assert planned([wants(1)], dynos) == Plan((), ("a",))


def test_dyno_that_still_boots_at_the_end_of_its_park_time_stands_in_for_nobody() -> None:
    assert planned([wants(1)], [parked("a", age=PARK_S, ready=False)]) == Plan(("code",), ("a",))


def test_dyno_is_gone_before_its_latest_end() -> None:
    assert LONGEST_S == PARK_S + OVERLAP_S + STOP_S


# The caps.


@pytest.mark.parametrize(("cap", "launched"), [(0.0, 0), (0.0499, 0), (0.05, 1), (0.15, 3)])
def test_prices_of_all_together_never_exceed_the_cap_per_hour(cap: float, launched: int) -> None:
    assert len(planned([wants(9)], caps=Caps(usd_per_hour=cap)).launch) == launched


def test_dyno_that_is_being_stopped_counts_until_it_is_gone() -> None:
    caps = Caps(usd_per_hour=0.05)
    assert planned([wants(1)], [parked("a", release="v6")], caps) == Plan((), ("a",))


WHOLE_USD = 0.05 * LONGEST_S / 3600
"""What one dyno can cost the pool."""


@pytest.mark.parametrize(("spent", "launched"), [(0.0, 2), (0.4 * WHOLE_USD, 2), (WHOLE_USD, 1)])
def test_month_has_room_for_what_its_dynos_can_cost(spent: float, launched: int) -> None:
    caps = Caps(usd_per_month=2.5 * WHOLE_USD)
    assert len(planned([wants(9)], caps=caps, spent=spent).launch) == launched


def test_what_parked_dynos_may_still_cost_counts_for_the_month() -> None:
    caps = Caps(usd_per_month=2.5 * WHOLE_USD)
    dynos = [parked("a", age=0.0), parked("b", age=0.0)]
    assert planned([wants(3)], dynos, caps).launch == ()


@pytest.mark.parametrize(("cap", "launched"), [(0.7, 0), (0.8, 1), (1.6, 2)])
def test_month_that_comes_must_have_room_for_its_own_part(cap: float, launched: int) -> None:
    eve = at("2026-12-01T00:00:00") - LONGEST_S / 4
    caps = Caps(usd_per_month=cap * WHOLE_USD)
    made = plan([wants(9)], [], caps, spent_usd=0.0, now=eve)
    assert len(made.launch) == launched


def test_spending_of_a_month_does_not_burden_the_next() -> None:
    caps = Caps(usd_per_month=WHOLE_USD)
    eve = at("2026-12-01T00:00:00") - 1
    full = plan([wants(1)], [], caps, spent_usd=WHOLE_USD, now=eve)
    fresh = plan([wants(1)], [], caps, spent_usd=0.0, now=eve + 1)
    assert (full.launch, fresh.launch) == ((), ("code",))


def test_servers_take_turns() -> None:
    wanted = [wants(3, "a"), wants(3, "b"), wants(1, "c")]
    launch = planned(wanted, caps=Caps(usd_per_hour=0.25)).launch
    assert sorted(launch) == ["a", "a", "b", "b", "c"]


def test_server_that_has_less_comes_first() -> None:
    wanted = [wants(3, "a"), wants(3, "b")]
    dynos = [parked("x", "a"), parked("y", "a")]
    assert planned(wanted, dynos, Caps(usd_per_hour=0.2)).launch == ("b", "b")


def test_only_place_goes_to_another_server_after_each_park_time() -> None:
    wanted, caps = [wants(1, "a"), wants(1, "b")], Caps(usd_per_hour=0.05)
    launches = [
        plan(wanted, [], caps, spent_usd=0.0, now=NOW + n * PARK_S).launch for n in range(4)
    ]
    assert launches in ([("a",), ("b",)] * 2, [("b",), ("a",)] * 2)


def test_server_that_is_too_dear_does_not_keep_out_a_cheaper_one() -> None:
    wanted = [wants(1, "dear", usd_per_hour=0.5), wants(1, "cheap")]
    assert planned(wanted, caps=Caps(usd_per_hour=0.1)).launch == ("cheap",)


# All of it, for hours.


@dataclasses.dataclass
class Thing:
    """A simulated dyno of the pool."""

    dyno: Parked
    boots: float
    ends: float = math.inf


class Pool:
    """A pool that does what the plan says, late, beside chance: boots, adoptions, deaths."""

    def __init__(self, seed: int, caps: Caps) -> None:
        self.dice = random.Random(seed)  # noqa: S311 a simulation
        self.caps = caps
        self.now = at("2026-11-30T19:00:00") + self.dice.uniform(0, 4 * 3600)
        self.things: dict[str, Thing] = {}
        self.spans: list[tuple[float, float, float]] = []
        self.made = 0

    def go(self, wanted: list[Wanted]) -> None:
        self.now += self.dice.uniform(1, 8)
        for name, thing in list(self.things.items()):
            chance = self.dice.random()
            if thing.ends <= self.now:
                self.leave(name, thing.ends)
            elif chance < 0.0005 or (chance < 0.003 and thing.boots < self.now):
                self.leave(name, self.now)
        dynos = [
            dataclasses.replace(thing.dyno, ready=thing.boots <= self.now)
            for thing in self.things.values()
        ]
        month = at("2026-11-01T00:00:00"), at("2026-12-01T00:00:00")
        start = month[0] if self.now < month[1] else month[1]
        made = plan(wanted, dynos, self.caps, spent_usd=self.cost(start, self.now), now=self.now)
        self.check(made, wanted, dynos)
        for name in made.stop:
            thing = self.things[name]
            thing.ends = min(thing.ends, self.now + self.dice.uniform(0, STOP_S - 10))
        for server in made.launch:
            self.launch(next(want for want in wanted if want.server == server))

    def check(self, made: Plan, wanted: list[Wanted], dynos: list[Parked]) -> None:
        for want in wanted:
            kept = [
                dyno
                for dyno in dynos
                if dyno.server == want.server and dyno.launch_id not in made.stop
            ]
            young = [dyno for dyno in kept if self.now - dyno.started < PARK_S]
            assert len(young) + made.launch.count(want.server) <= want.count
            assert sum(dyno.ready for dyno in kept) <= want.count
            assert all(dyno.release == want.release for dyno in kept)

    def launch(self, want: Wanted) -> None:
        self.made += 1
        dyno = Parked(
            str(self.made),
            want.server,
            want.release,
            want.usd_per_hour,
            self.now,
            self.now + LONGEST_S,
            ready=False,
        )
        self.things[dyno.launch_id] = Thing(dyno, self.now + self.dice.uniform(5, 90))

    def leave(self, name: str, end: float) -> None:
        thing = self.things.pop(name)
        assert end <= thing.dyno.latest_end
        self.spans.append((thing.dyno.started, end, thing.dyno.usd_per_hour))

    def cost(self, start: float, end: float) -> float:
        running = [(t.dyno.started, self.now, t.dyno.usd_per_hour) for t in self.things.values()]
        return math.fsum(
            rate * max(0.0, min(last, end) - max(first, start)) / 3600
            for first, last, rate in (*self.spans, *running)
        )


TIGHT = Caps(usd_per_hour=0.26, usd_per_month=0.7)
WIDE = Caps(usd_per_hour=0.26, usd_per_month=50.0)


@pytest.mark.parametrize("caps", [TIGHT, WIDE], ids=["tight", "wide"])
@pytest.mark.parametrize("seed", range(6))
def test_no_hour_and_no_month_costs_more_than_its_cap(seed: int, caps: Caps) -> None:
    pool = Pool(seed, caps)
    begin, release, counts = pool.now, 1, [2, 3]
    while pool.now < begin + 6 * 3600:
        if pool.dice.random() < 0.001:
            release += 1
        if pool.dice.random() < 0.002:
            counts = [pool.dice.randint(0, 4), pool.dice.randint(0, 4)]
        pool.go(
            [
                Wanted("code", f"v{release}", counts[0], 0.05),
                Wanted("data", f"v{release}", counts[1], 0.08),
            ]
        )
    # The cost of the hour that ends at t is linear between these t.
    turns = {t for first, last, _ in pool.spans for t in (first, last, first + 3600, last + 3600)}
    assert max(pool.cost(t - 3600, t) for t in turns) <= 0.26 + 1e-9
    midnight = at("2026-12-01T00:00:00")
    spent = [pool.cost(begin, midnight), pool.cost(midnight, pool.now)]
    assert max(spent) <= (caps.usd_per_month or 0.0) + 1e-9
    assert pool.made > 10
