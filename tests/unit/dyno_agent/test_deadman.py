"""The agent knows from times alone how long it may stay without anybody who holds it."""

from math import inf

from dyno_agent.deadman import DeadMan


def test_start_deadline_counts_from_the_start() -> None:
    assert DeadMan(120.0, parted=1000.0).remaining(1030.0) == 90.0


def test_time_does_not_run_while_attached() -> None:
    deadman = DeadMan(120.0, parted=1000.0)
    deadman.attached(300.0)
    assert deadman.remaining(9000.0) == inf


def test_allowance_of_the_last_welcome_counts_from_the_parting() -> None:
    deadman = DeadMan(120.0, parted=1000.0)
    deadman.attached(300.0)
    deadman.lost(2000.0)
    assert deadman.remaining(2100.0) == 200.0


def test_parting_told_twice_counts_from_the_first_time() -> None:
    deadman = DeadMan(120.0, parted=1000.0)
    deadman.attached(300.0)
    deadman.lost(2000.0)
    deadman.lost(2100.0)
    assert deadman.remaining(2100.0) == 200.0


def test_every_attachment_starts_the_count_anew() -> None:
    deadman = DeadMan(120.0, parted=1000.0)
    deadman.attached(300.0)
    deadman.lost(2000.0)
    deadman.attached(60.0)
    deadman.lost(3000.0)
    assert deadman.remaining(3000.0) == 60.0


def test_nothing_remains_at_the_deadline_and_after_it() -> None:
    deadman = DeadMan(120.0, parted=1000.0)
    assert [deadman.remaining(now) for now in (1119.0, 1120.0, 5000.0)] == [1.0, 0.0, 0.0]


def test_parting_at_time_zero_is_a_parting() -> None:
    deadman = DeadMan(120.0, parted=None)
    deadman.lost(0.0)
    deadman.lost(50.0)
    assert deadman.remaining(100.0) == 20.0
