"""A small proof of the link for every change; the full one is `make proof-link`."""

from __future__ import annotations

import re

import pytest

from tests.proof.running import last_line

SMALL = ("--frames", "2000", "--drops", "12", "--kills", "5", "--drop-sessions", "4", "--seed", "1")
BOUND_S = 280.0
"""It takes about 30 s on two free cores."""


@pytest.mark.timeout(BOUND_S + 10)
def test_drops_and_kills_under_load_lose_repeat_and_reorder_nothing() -> None:
    last = last_line("tests.proof.link", *SMALL, bound_s=BOUND_S)
    assert re.fullmatch(
        r"proof-link: frames=\d{4,} drops=\d{2,} lost=0 duplicated=0 reordered=0 "
        r"kills=5 calls_lost=0 peak_buffer_mib=\d+\.\d",
        last,
    )
