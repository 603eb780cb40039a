"""What all tests share."""

import asyncio
from itertools import groupby

import pytest
from coverage import Coverage

USUAL_S = 30.0
"""The time limit of pyproject.toml."""


def pytest_configure(config: pytest.Config) -> None:
    """Leave no event loop and no second measurement lying about.

    Below Python 3.14 pytest-asyncio's first look for a loop makes one and never closes it, and
    `filterwarnings = error` then fails whichever test the garbage collector finds it in.

    In a worker pytest-cov begins to measure when it is loaded, and again, which is what counts,
    with the session. The first would take over whenever `no_cover` pauses the second.
    """
    asyncio.set_event_loop(None)
    if hasattr(config, "workerinput") and (unused := Coverage.current()) is not None:
        unused.stop()


@pytest.fixture
def measured(
    cov: Coverage | None, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Count the lines of the Python processes that this test starts, if lines are counted at all.

    For programs' entries, which no test can call. Others do without: it takes half a second of
    every process, and what is behind the entries is counted in the tests' own processes.
    """
    if cov is not None:
        monkeypatch.setenv("COVERAGE_PROCESS_START", str(pytestconfig.rootpath / "pyproject.toml"))
        monkeypatch.setenv("COVERAGE_FILE", str(pytestconfig.rootpath / ".coverage"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let each worker begin with its share of those that may take longest.

    xdist cuts the list into as many even pieces as there are workers. Modules stay together, for
    the fixtures that they share.
    """

    def limit_s(module: list[pytest.Item]) -> float:
        markers = [item.get_closest_marker("timeout") for item in module]
        return max(USUAL_S if marker is None else float(marker.args[0]) for marker in markers)

    modules = [list(module) for _, module in groupby(items, key=lambda item: item.path)]
    workers: int = getattr(config, "workerinput", {}).get("workercount", 1)
    pieces: list[list[pytest.Item]] = [[] for _ in range(workers)]
    for module in sorted(modules, key=limit_s, reverse=True):
        min(pieces, key=len).extend(module)
    items[:] = [item for piece in pieces for item in piece]
