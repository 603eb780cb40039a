"""A small proof of the link for every change; the full one is `make proof-link`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--frames", "2000", "--drops", "12", "--kills", "5", "--drop-sessions", "4", "--seed", "1")
BOUND_S = 170.0
"""It takes about 30 s on two free cores."""


@pytest.mark.timeout(BOUND_S + 10)
def test_drops_and_kills_under_load_lose_repeat_and_reorder_nothing() -> None:
    proof = subprocess.run(
        [sys.executable, "-m", "tests.proof.link", *SMALL],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BOUND_S,
        check=False,
    )
    last = proof.stdout.rstrip().rpartition("\n")[2]
    assert proof.returncode == 0, proof.stdout
    assert re.fullmatch(
        r"proof-link: frames=\d{4,} drops=\d{2,} lost=0 duplicated=0 reordered=0 "
        r"kills=5 calls_lost=0 peak_buffer_mib=\d+\.\d",
        last,
    )
