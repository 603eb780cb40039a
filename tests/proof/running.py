"""Run one of the long proofs in small, as a person would, and read its last line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def last_line(module: str, *arguments: str, bound_s: float) -> str:
    """Return what `python -m module` says last; fail with all it said unless it exits with 0."""
    proof = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=bound_s,
        check=False,
    )
    assert proof.returncode == 0, proof.stdout
    return proof.stdout.rstrip().rpartition("\n")[2]
