"""The proof of Heroku's documented endpoints, for every change: it is as quick as it is whole."""

from __future__ import annotations

import re

import pytest

from tests.proof.running import last_line

BOUND_S = 240.0


@pytest.mark.timeout(BOUND_S + 10)
def test_callers_of_the_documented_endpoints_can_move_over() -> None:
    last = last_line("tests.proof.api", bound_s=BOUND_S)
    assert re.fullmatch(
        r"proof-api: endpoints=5 examples=[12][0-9] failed=0 agent_digest=ok toolkit_ms=[0-9]+",
        last,
    )
