"""A gateway in this process for every test of this folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest_asyncio

from tests.fakes.house import House, opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest_asyncio.fixture
async def house() -> AsyncIterator[House]:
    async with opened() as house:
        yield house
