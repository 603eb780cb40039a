"""A Valkey for each test here: they break it."""

from collections.abc import Iterator

import pytest

from gateway.store import valkey
from tests.fakes.valkey import ValkeyServer


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here waits for the real deadlines; their proportions are the real ones."""
    monkeypatch.setattr(valkey, "BEAT_S", 0.05)
    monkeypatch.setattr(valkey, "BLOCK_S", 0.1)
    monkeypatch.setattr(valkey, "DEADLINE_S", 0.5)
