"""The conformance proof for every change, and its judgement; all runs are `make conformance`."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.proof.conformance import LEGACY, MODERN, Check, Run, Verdict, read
from tests.proof.running import last_line

if TYPE_CHECKING:
    from pathlib import Path

RUNS = ("legacy 2025-11-25", "2026-07-28", "translated")
"""Each way through the gateway. The other runs take the first way again, with the fixture that
takes a second to start, once for each of their thirty sessions."""

BOUND_S = 480.0
"""It takes about 30 s on two free cores, and may have to wait for `npm install` first."""


@pytest.mark.timeout(BOUND_S + 10)
@pytest.mark.xdist_group("conformance")
def test_the_official_suite_finds_nothing_wrong_with_servers_behind_the_gateway() -> None:
    chosen = [argument for name in RUNS for argument in ("--run", name)]
    last = last_line("tests.proof.conformance", *chosen, bound_s=BOUND_S)
    assert re.fullmatch(r"conformance: 2026-07-28=\d+/0 translated=\d+/0", last)


# How it judges

FINE = Check("tools-list:named", "SUCCESS", "")
WRONG = Check("tools-list:described", "FAILURE", "no description")
NOTED = Check("tools-list:sorted", "WARNING", "should be")


def judged(*checks: Check, least: int = 1, excuses: dict[str, str] | None = None) -> Verdict:
    """The verdict on a run that found these."""
    return Verdict(Run("translated", LEGACY, MODERN, least, excuses or {}), 1.0, checks)


def test_a_run_holds_when_enough_passes_and_nothing_fails() -> None:
    assert judged(FINE, NOTED).holds


def test_a_failed_check_breaks_a_run_and_is_named() -> None:
    verdict = judged(FINE, WRONG)
    assert not verdict.holds
    assert "  failed: tools-list:described: no description" in verdict.lines()


def test_an_excused_failure_does_not_break_a_run_and_does_not_count() -> None:
    verdict = judged(FINE, WRONG, excuses={WRONG.name: "it cannot"})
    assert verdict.holds
    assert verdict.failed == ()


def test_an_excuse_for_what_does_not_fail_breaks_a_run() -> None:
    assert not judged(FINE, excuses={FINE.name: "it cannot"}).holds


def test_fewer_passed_checks_than_promised_break_a_run() -> None:
    assert not judged(FINE, least=2).holds


def test_checks_are_read_under_the_name_of_their_scenario(tmp_path: Path) -> None:
    folder = tmp_path / "server-tools-list-2026-11-21T16-55-24-257Z"
    folder.mkdir()
    found = [
        {"id": "named", "status": "SUCCESS"},
        {"id": "described", "status": "FAILURE", "errorMessage": "no\n description"},
    ]
    (folder / "checks.json").write_text(json.dumps(found), encoding="utf-8")
    assert read(tmp_path) == (FINE, WRONG)


def test_a_scenario_that_left_no_results_counts_as_failed(tmp_path: Path) -> None:
    (tmp_path / "server-ping-2026-11-21T16-55-24-257Z").mkdir()
    (check,) = read(tmp_path)
    assert (check.name, check.status) == ("ping:no-results", "FAILURE")
