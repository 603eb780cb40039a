"""The pause between dials is drawn from the whole span up to a ceiling that doubles and stops."""

from itertools import pairwise

import pytest

from dyno_agent.dialer import ELSEWHERE_S, Backoff

SPANS = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 4.0, 4.0, 4.0, 4.0]


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """Replace chance by the upper end, and note what was asked of it."""
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return high

    monkeypatch.setattr("dyno_agent.dialer.random.uniform", uniform)
    return asked


def test_pauses_are_drawn_from_zero_to_a_doubling_ceiling(
    spans: list[tuple[float, float]],
) -> None:
    backoff = Backoff()
    pauses = [backoff.wait_s() for _ in SPANS]
    assert pauses == pytest.approx(SPANS)
    assert [low for low, _ in spans] == [0] * len(SPANS)


def test_pause_stays_at_the_ceiling_after_any_number_of_dials(
    spans: list[tuple[float, float]],
) -> None:
    backoff = Backoff()
    pauses = [backoff.wait_s() for _ in range(5000)]
    assert all(after >= before for before, after in pairwise(pauses))
    assert max(pauses) == 4.0 == spans[-1][1]


def test_new_backoff_starts_from_the_shortest_span(spans: list[tuple[float, float]]) -> None:
    worn = Backoff()
    for _ in range(20):
        worn.wait_s()
    assert Backoff().wait_s() == pytest.approx(0.1)
    assert spans[-1] == pytest.approx((0, 0.1))


def test_real_pauses_stay_within_their_spans() -> None:
    for _ in range(200):
        backoff = Backoff()
        assert all(0 <= backoff.wait_s() <= ceiling for ceiling in SPANS)


def test_agents_that_lost_the_same_gateway_do_not_dial_together() -> None:
    assert len({Backoff(7).wait_s() for _ in range(20)}) == 20


def test_agent_of_a_gateway_that_drained_spreads_its_next_dial_over_a_second(
    spans: list[tuple[float, float]],
) -> None:
    backoff = Backoff()
    backoff.spread = True
    assert [backoff.wait_s(), backoff.wait_s()] == pytest.approx([1.0, 0.2])


def test_spread_never_shortens_a_pause(spans: list[tuple[float, float]]) -> None:
    backoff = Backoff(attempt=6, spread=True)
    assert backoff.wait_s() == pytest.approx(4.0)


def test_wrong_process_is_no_outage() -> None:
    """With several gateways an agent may have to try some before it finds the one."""
    backoff = Backoff(attempt=9)
    backoff.elsewhere = True
    assert 0 <= backoff.wait_s() <= ELSEWHERE_S
    assert backoff.attempt == 9
    assert not backoff.elsewhere
