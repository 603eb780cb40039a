"""An emulator with one app, and a client of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import aiohttp
import pytest

from tests.heroku_emulator import AppSpec, Emulator, Options, ProcessSpec
from tests.unit.heroku_emulator.asking import Api

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

BOUND = 20.0


@pytest.fixture
def slug(tmp_path: Path) -> Path:
    folder = tmp_path / "slug"
    folder.mkdir()
    (folder / "greeting.txt").write_text("hello from the slug", encoding="utf-8")
    return folder


@pytest.fixture
def options() -> Options:
    return Options(stop_grace=5.0, webhook_retry_s=0.01, rate_refill=0.0)


@pytest.fixture
async def heroku(slug: Path, options: Options) -> AsyncIterator[Emulator]:
    app = AppSpec(
        processes={
            "mcp-files": "cat greeting.txt; echo; exec sleep 600",
            "worker": ProcessSpec("exec sleep 600", quantity=1, size="standard-1x"),
        },
        slug=slug,
        config={"COLOUR": "blue", "SHAPE": "round"},
        dyno_limit=5,
    )
    async with Emulator({"runner": app}, options) as heroku:
        await heroku.until(lambda: heroku.ledger[0].state == "up")
        yield heroku
    assert heroku.dynos_left() == []


@pytest.fixture
async def api(heroku: Emulator) -> AsyncIterator[Api]:
    async with asyncio.timeout(BOUND), aiohttp.ClientSession() as http:
        yield Api(heroku, http)
