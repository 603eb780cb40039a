"""Faults by queue and by chance, the quota, and the words for them."""

from __future__ import annotations

import pytest

from tests.heroku_emulator.faults import Fault, Faults
from tests.heroku_emulator.limits import Bucket

WORDS = (
    "429",
    "500",
    "503-after",
    "timeout-before",
    "timeout-after",
    "reset-before",
    "reset-after",
    "never-dials",
    "dies:0.5",
)


def faults() -> Faults:
    return Faults(frozenset({"create", "list", "stop"}))


def words(made: Faults, operation: str, count: int) -> list[str | None]:
    return [None if (met := made.next(operation)) is None else met.word for _ in range(count)]


def test_queued_faults_are_met_in_order_once_each() -> None:
    made = faults()
    made.push("create", "429", "timeout-after")
    assert words(made, "create", 3) == ["429", "timeout-after", None]


def test_faults_of_one_operation_are_not_met_by_another() -> None:
    made = faults()
    made.push("create", "429")
    assert words(made, "list", 1) == [None]


@pytest.mark.parametrize("word", WORDS)
def test_every_word_is_a_fault_of_create(word: str) -> None:
    assert Fault.read(word).word == word


@pytest.mark.parametrize("word", ["200", "600", "timeout", "dies", "dies:-1", "never", ""])
def test_other_words_are_none(word: str) -> None:
    with pytest.raises(ValueError, match="no such fault"):
        Fault.read(word)


@pytest.mark.parametrize("word", ["never-dials", "dies:1"])
def test_faults_of_a_dyno_belong_to_create_alone(word: str) -> None:
    with pytest.raises(ValueError, match="create alone"):
        faults().push("list", word)


def test_an_unknown_operation_is_refused() -> None:
    with pytest.raises(ValueError, match="no such operation"):
        faults().push("launch", "429")


def test_a_plan_is_repeatable_by_its_seed() -> None:
    plans = [faults(), faults()]
    for made in plans:
        made.plan(7, {"create": {"429": 0.2, "500": 0.2}})
    first, second = (words(made, "create", 200) for made in plans)
    assert first == second


def test_a_plan_holds_its_rates() -> None:
    made = faults()
    made.plan(7, {"create": {"429": 0.1, "500": 0.3}})
    met = words(made, "create", 2_000)
    assert 150 < met.count("429") < 250
    assert 520 < met.count("500") < 680
    assert made.injected == {
        ("create", "429"): met.count("429"),
        ("create", "500"): met.count("500"),
    }


def test_a_plan_of_more_than_everything_is_refused() -> None:
    with pytest.raises(ValueError, match="exceed 1"):
        faults().plan(7, {"create": {"429": 0.6, "500": 0.6}})


def test_after_clearing_nothing_goes_wrong() -> None:
    made = faults()
    made.plan(7, {"create": {"429": 1.0}})
    made.push("create", "500")
    made.clear()
    assert words(made, "create", 1) == [None]


def test_the_quota_is_used_up_and_comes_back() -> None:
    bucket = Bucket(size=2, refill=0.5, level=2, seen=0.0)
    assert [bucket.take(0.0) for _ in range(3)] == [True, True, False]
    assert not bucket.take(1.9)
    assert bucket.take(2.0)


def test_the_quota_does_not_grow_beyond_its_size() -> None:
    bucket = Bucket(size=2, refill=1.0, level=0, seen=0.0)
    assert bucket.remaining(1_000.0) == 2
