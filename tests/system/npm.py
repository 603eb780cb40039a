"""The npm projects of the tests: each installed once per content of its package.json."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

INSTALL_BOUND = 240.0
"""Seconds for `npm install` of some hundred packages from an empty cache."""

FLAGS = ("--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts")


def is_installed(project: Path) -> bool:
    """Whether the packages that its package.json names now are there."""
    stamp = _stamp(project)
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == _wanted(project)


def install(node: Path, project: Path) -> Path:
    """Install a project unless that was done; return its node_modules. Never two at once."""
    npm = node.parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    with (project / "package.json").open("rb") as lock:  # on the open file: workers wait in turn
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_installed(project):
            done = subprocess.run(
                [node, npm, "install", *FLAGS],
                cwd=project,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=INSTALL_BOUND,
                check=False,
            )
            assert done.returncode == 0, f"npm install failed:\n{done.stdout}"
            _stamp(project).write_text(_wanted(project), encoding="utf-8")
    return project / "node_modules"


def _stamp(project: Path) -> Path:
    return project / "node_modules" / ".installed-from"


def _wanted(project: Path) -> str:
    return hashlib.sha256((project / "package.json").read_bytes()).hexdigest()
