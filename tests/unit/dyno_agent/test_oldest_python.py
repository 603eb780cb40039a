"""The agent's sources name nothing that is newer than the oldest Python that may run them.

Ruff knows the syntax (`per-file-target-version`); this knows the standard library.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import dyno_agent

AGENT = Path(dyno_agent.__file__).parent
OLDEST = "3.9"
VERMIN = "import sys, vermin; sys.argv[0] = 'vermin'; sys.exit(vermin.main())"
BOUND = 60


def complaint(*paths: Path) -> str:
    """Return what needs a newer Python, with its place; nothing if nothing does."""
    flags = ["--no-tips", "--no-config-file", "--violations", "--lint", "--format", "parsable"]
    checked = subprocess.run(
        [sys.executable, "-c", VERMIN, f"-t={OLDEST}-", *flags, *paths],
        check=False,
        capture_output=True,
        text=True,
        timeout=BOUND,
    )
    assert checked.stderr == ""
    return checked.stdout if checked.returncode else ""


def test_agent_uses_nothing_newer() -> None:
    assert complaint(AGENT) == ""


@pytest.mark.parametrize(
    "code",
    [
        "import asyncio\nasyncio.timeout(1)\n",
        "from asyncio import TaskGroup\n",
        "from typing import Self\n",
        "match 1:\n    case _:\n        pass\n",
        "zip((), (), strict=True)\n",
        "from dataclasses import dataclass\n@dataclass(slots=True)\nclass A:\n    pass\n",
    ],
)
def test_what_is_newer_would_be_seen(tmp_path: Path, code: str) -> None:
    module = tmp_path / "module.py"
    module.write_text(code, encoding="utf-8")
    assert str(module) in complaint(module)
