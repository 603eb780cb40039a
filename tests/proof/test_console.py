"""The proof of the console, for every change: it is as quick as it is whole.

Its screenshots stay in `build/console/`, to be looked at where tests run for others.
"""

from __future__ import annotations

import re

import pytest

from tests.proof.running import last_line

BOUND_S = 240.0
"""It takes about 20 s on two free cores."""


@pytest.mark.timeout(BOUND_S + 10)
def test_operator_sees_ends_and_finds_what_happens_and_nothing_hostile_acts() -> None:
    last = last_line("tests.proof.console", bound_s=BOUND_S)
    assert re.fullmatch(r"proof-console: steps=1[0-9] failed=0 inert=yes", last)
