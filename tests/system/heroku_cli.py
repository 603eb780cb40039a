"""The vendor's own command line, `heroku`, for tests that let it judge the emulator.

It is 394 MB from npm, in a project of its own (tests/heroku_emulator/node). It is installed when
HEROKU_CLI_TESTS=1 is set, and stays; without, its tests run where it is there already.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.system.npm import install, is_installed

if TYPE_CHECKING:
    from tests.heroku_emulator import Emulator

PROJECT = Path(__file__).resolve().parents[1] / "heroku_emulator" / "node"

COMMAND_BOUND = 60.0
"""Seconds for one command line: 1 s alone, more on a busy machine."""

marks = [
    pytest.mark.timeout(300),  # the first test may have to wait for `npm install`
    pytest.mark.xdist_group("heroku_cli"),  # that wait is one worker's
    pytest.mark.skipif(
        not is_installed(PROJECT) and os.environ.get("HEROKU_CLI_TESTS") != "1",
        reason="the Heroku CLI (394 MB) is not installed; `make heroku-cli` installs it",
    ),
]


@dataclass(frozen=True, slots=True)
class Said:
    """What a command line printed."""

    status: int
    out: str
    err: str


class Cli:
    """`heroku`, as an operator of the emulated account has it."""

    def __init__(self, node: Path, home: Path, heroku: Emulator) -> None:
        self._node = node
        self._heroku = heroku
        self._env = {
            "HOME": str(home),
            "PATH": f"{node.parent}:{os.environ['PATH']}",
            "HEROKU_HOST": heroku.url,
            "HEROKU_API_KEY": heroku.api_key,
            "HEROKU_SKIP_NEW_VERSION_CHECK": "true",
            "DISABLE_TELEMETRY": "true",
        }

    async def start(self, *words: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            self._node,
            PROJECT / "node_modules" / "heroku" / "bin" / "run.js",
            *words,
            env=self._env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def __call__(self, *words: str) -> Said:
        process = await self.start(*words)
        try:
            async with asyncio.timeout(COMMAND_BOUND):
                out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        said = Said(process.returncode or 0, out.decode(), err.decode())
        assert self._heroku.violations == [], said
        return said


@pytest.fixture(scope="module")
def installed(node: Path) -> None:
    """Install it, unless it is there."""
    install(node, PROJECT)
