"""Proves when dynos are kept parked for a server: the key `warm` of the servers file."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from gateway.registry.servers import ServerDefinition
from gateway.registry.windows import Warmth, count_at


def at(text: str) -> float:
    """Seconds since 1970 of a moment; without an offset it is UTC."""
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


NOW = at("2026-11-21T12:00:00")


def parse(value: object) -> Warmth:
    return msgspec.convert({"warm": value}, ServerDefinition).warm


def wanted_at(text: str, *windows: dict[str, Any]) -> int:
    return count_at(parse(list(windows)), at(text))


def test_number_is_wanted_always() -> None:
    assert count_at(parse(3), NOW) == 3


def test_no_window_wants_nothing() -> None:
    assert count_at(parse([]), NOW) == 0


def test_window_without_days_and_times_is_always() -> None:
    assert wanted_at("2026-11-21T00:00", {"count": 2}) == 2


OFFICE = {"count": 2, "days": "mon-fri", "from": "08:00", "to": "18:00", "zone": "Europe/Berlin"}


@pytest.mark.parametrize(
    ("moment", "count"),
    [
        ("2026-11-20T07:59:59+01:00", 0),
        ("2026-11-20T08:00:00+01:00", 2),
        ("2026-11-20T17:59:59+01:00", 2),
        ("2026-11-20T18:00:00+01:00", 0),
        ("2026-11-21T12:00:00+01:00", 0),  # a Saturday
        ("2026-11-23T12:00:00+01:00", 2),
        ("2026-07-20T08:00:00+02:00", 2),  # summer time
        ("2026-07-20T07:59:59+02:00", 0),
    ],
)
def test_window_opens_and_closes_by_the_clock_of_its_zone(moment: str, count: int) -> None:
    assert wanted_at(moment, OFFICE) == count


NIGHT = {"count": 1, "days": "fri", "from": "22:00", "to": "06:00"}


@pytest.mark.parametrize(
    ("moment", "count"),
    [
        ("2026-11-20T21:59", 0),
        ("2026-11-20T22:00", 1),
        ("2026-11-21T05:59", 1),  # Saturday morning, still Friday's
        ("2026-11-21T06:00", 0),
        ("2026-11-21T22:00", 0),
        ("2026-11-20T05:59", 0),  # Friday morning is Thursday's
    ],
)
def test_window_over_midnight_belongs_to_the_day_it_begins_on(moment: str, count: int) -> None:
    assert wanted_at(moment, NIGHT) == count


def test_sundays_window_reaches_into_monday() -> None:
    assert wanted_at("2026-11-23T01:00", {**NIGHT, "days": "sun"}) == 1


@pytest.mark.parametrize(
    ("days", "week"),
    [
        ("mon,wed-fri", "1011100"),
        ("sat-mon", "1000011"),
        ("sun", "0000001"),
        (" Tue , Thu ", "0101000"),
        ("mon-sun", "1111111"),
    ],
)
def test_days_are_single_ones_and_ranges(days: str, week: str) -> None:
    counts = [wanted_at(f"2026-11-{16 + n}T12:00", {"count": 1, "days": days}) for n in range(7)]
    assert "".join(map(str, counts)) == week


def test_of_several_windows_the_largest_says() -> None:
    rush = {"count": 5, "from": "08:00", "to": "10:00"}
    windows: list[dict[str, Any]] = [{"count": 1}, rush, {"count": 2}]
    assert [wanted_at(f"2026-11-20T{hour}:00", *windows) for hour in ("07", "09", "10")] == [
        2,
        5,
        2,
    ]


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("2", r"`\$.warm`"),
        (True, r"`\$.warm`"),
        (1.5, r"`\$.warm`"),
        (None, r"`\$.warm`"),
        ([OFFICE, 3], r"`\$.warm\[1\]`"),
        ([{"days": "mon"}], r".*`count`"),
        ([{"count": -1}], r"count: "),
        ([{"count": 1.5}], r".*count"),
        ([{**OFFICE, "hours": 2}], r".*`hours`"),
        ([{**OFFICE, "days": "mon-"}], r"days: 'mon-'"),
        ([{**OFFICE, "days": "mo-fr"}], r"days: 'mo-fr'"),
        ([{**OFFICE, "days": ""}], r"days: "),
        ([{**OFFICE, "days": "mon,"}], r"days: "),
        ([{**OFFICE, "from": "8:00"}], r"from: '8:00'"),
        ([{**OFFICE, "from": "24:00"}], r"`from`: "),
        ([{**OFFICE, "to": "08:60"}], r"to: '08:60'"),
        ([{**OFFICE, "to": "24:01"}], r"to: '24:01'"),
        ([{**OFFICE, "to": "-1:30"}], r"to: '-1:30'"),
        ([{**OFFICE, "to": "08:00"}], r"`from` and `to`"),
        ([{**OFFICE, "zone": "Berlin"}], r"zone: 'Berlin'"),
        ([{**OFFICE, "zone": "Europe"}], r"zone: "),
        ([{**OFFICE, "zone": "../etc/passwd"}], r"zone: "),
        ([{**OFFICE, "zone": ""}], r"zone: "),
    ],
)
def test_wrong_value_is_refused_by_the_name_of_its_key(value: object, named: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=named):
        parse(value)
