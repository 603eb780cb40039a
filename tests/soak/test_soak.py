"""A small soak for every change; the full one is `python -m tests.soak.soak`."""

from __future__ import annotations

import pytest

from tests.proof.running import last_line

SMALL = ("--sessions", "60", "--seconds", "5", "--lifecycles", "300", "--seed", "1")

BOUND_S = 240.0
"""It takes 25 s on two free cores; two grace periods are most of it."""


@pytest.mark.timeout(BOUND_S + 10)
def test_gateway_loses_no_call_and_keeps_nothing_of_sessions_that_ended() -> None:
    last = last_line("tests.soak.soak", *SMALL, bound_s=BOUND_S)
    name, *pairs = last.split()
    facts = dict(pair.split("=") for pair in pairs)
    exact = ("lost", "duplicated", "tasks", "descriptors", "processes")
    assert (name, {fact: int(facts[fact]) for fact in exact}) == ("soak:", dict.fromkeys(exact, 0))
    assert min(int(facts["calls"]), int(facts["drops"])) > 0
