"""Proves each limit of a session's life at its exact boundary, and what counts as activity."""

import math

import pytest

from gateway.sessions.lease import Lease
from gateway.sessions.record import Reason

CREATED, BOOT_S, IDLE_S, LIFETIME_S, GRACE_S = 1000.0, 60.0, 1800.0, 28800.0, 300.0


def lease(*, active: float = CREATED, booted: bool = True, parted: float | None = None) -> Lease:
    return Lease(CREATED, BOOT_S, IDLE_S, LIFETIME_S, GRACE_S, active, booted, parted)


def around(limit: float) -> tuple[float, float]:
    return math.nextafter(limit, 0.0), limit


@pytest.mark.parametrize("calling", [True, False])
def test_session_ends_when_its_child_did_not_boot_in_time(calling: bool) -> None:
    verdicts = [lease(booted=False).verdict(n, calling=calling) for n in around(CREATED + BOOT_S)]
    assert verdicts == [None, Reason.BOOT_TIMEOUT]


def test_booted_session_outlives_the_boot_limit() -> None:
    assert lease().verdict(CREATED + BOOT_S, calling=False) is None


def test_session_ends_when_nothing_happened_for_long_enough() -> None:
    quiet = lease(active=2000.0)
    verdicts = [quiet.verdict(now, calling=False) for now in around(2000.0 + IDLE_S)]
    assert verdicts == [None, Reason.IDLE]


def test_running_call_is_activity() -> None:
    assert lease().verdict(CREATED + IDLE_S * 3, calling=True) is None


def test_session_that_still_boots_is_not_idle() -> None:
    slow = Lease(CREATED, 7200.0, IDLE_S, LIFETIME_S, GRACE_S, CREATED)
    assert slow.verdict(CREATED + IDLE_S, calling=False) is None


@pytest.mark.parametrize("calling", [True, False])
def test_session_ends_at_its_lifetime_whatever_it_does(calling: bool) -> None:
    busy = lease(active=CREATED + LIFETIME_S)
    verdicts = [busy.verdict(now, calling=calling) for now in around(CREATED + LIFETIME_S)]
    assert verdicts == [None, Reason.LIFETIME]


@pytest.mark.parametrize("calling", [True, False])
def test_session_ends_when_its_agent_was_out_of_reach_for_the_grace_period(calling: bool) -> None:
    lost = lease(active=2000.0, parted=2000.0)
    verdicts = [lost.verdict(now, calling=calling) for now in around(2000.0 + GRACE_S)]
    assert verdicts == [None, Reason.LINK_LOST]


def test_agent_that_came_back_does_not_count_as_lost() -> None:
    back = lease(active=2000.0, parted=2000.0)
    back.parted = None
    assert back.verdict(2000.0 + GRACE_S, calling=False) is None


def test_agent_lost_at_the_very_start_of_the_clock_counts() -> None:
    lost = Lease(-10.0, 60.0, 1800.0, 28800.0, 5.0, -10.0, booted=True, parted=0.0)
    assert lost.verdict(5.0, calling=False) is Reason.LINK_LOST


def test_lifetime_is_named_before_every_other_reason() -> None:
    worst = lease(booted=False, parted=CREATED)
    assert worst.verdict(CREATED + LIFETIME_S, calling=False) is Reason.LIFETIME


def test_agent_that_never_booted_and_was_lost_is_named_after_the_boot() -> None:
    worst = lease(booted=False, parted=CREATED)
    assert worst.verdict(CREATED + LIFETIME_S - 1, calling=False) is Reason.BOOT_TIMEOUT
