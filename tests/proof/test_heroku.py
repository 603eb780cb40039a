"""A small proof of the Heroku path for every change; the full one is `make proof-heroku`."""

from __future__ import annotations

import re

import pytest

from tests.proof.running import last_line

SMALL = (
    *("--seed", "2", "--quick", "--sessions", "6", "--kills", "0", "--terms", "1"),
    *("--minutes", "0.1", "--rush", "4", "--boot-s", "2", "--rounds", "1"),
    *("--ledger-s", "9"),  # a gateway that shares its cores hears of an end when it can
)
BOUND_S = 280.0
"""It takes about 70 s on two busy cores."""


@pytest.mark.timeout(BOUND_S + 10)
def test_sessions_amid_faults_leave_no_dyno_no_debt_and_no_client_without_an_answer() -> None:
    last = last_line("tests.proof.heroku", *SMALL, bound_s=BOUND_S)
    assert re.fullmatch(
        r"proof-heroku: sessions=6 faults=[1-9]\d* dynos_left=0 ledger_error_s=[0-8]\.\d{3} "
        r"calls_lost_silently=0 router_cuts=0",
        last,
    )
