"""What all tests share."""

import asyncio

import pytest

USUAL_S = 30.0
"""The time limit of pyproject.toml."""


def pytest_configure() -> None:
    """Leave no event loop lying about.

    Below Python 3.14 pytest-asyncio's first look for a loop makes one and never closes it, and
    `filterwarnings = error` then fails whichever test the garbage collector finds it in.
    """
    asyncio.set_event_loop(None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with those that may take longest, so that none is left alone at the end."""

    def limit_s(item: pytest.Item) -> float:
        marker = item.get_closest_marker("timeout")
        return float(marker.args[0]) if marker is not None and marker.args else USUAL_S

    items.sort(key=limit_s, reverse=True)  # stable: modules stay together
