"""What all tests share."""

import asyncio
import contextlib
import importlib
import pkgutil
from collections.abc import Generator
from itertools import chain, groupby

import pytest
from coverage import Coverage
from hypothesis import HealthCheck, settings

USUAL_S = 120.0
"""The time limit of pyproject.toml."""

MEASURED = ("gateway", "dyno_agent", "clients", "mcp_servers")
"""The packages whose lines are counted, as in pyproject.toml."""

OF_PROCESSES = {"proof", "soak", "system"}
"""Folders whose tests wait for processes that they start."""


# How long an example takes, or the drawing of one, is the machine's affair.
settings.register_profile("project", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")


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


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Count the lines that importing the product takes, and none of importing all the tests.

    To count those of the tests' libraries, and to drop them, takes as long as the imports.
    """
    measurement = Coverage.current()
    if measurement is None:
        return (yield)
    for package in map(importlib.import_module, MEASURED):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            with contextlib.suppress(ImportError):  # of an extra that is not installed
                importlib.import_module(module.name)
    measurement.stop()
    try:
        return (yield)
    finally:
        measurement.start()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put those first that may take longest, so that no worker is left with one at the end.

    Tests of processes wait most of their time, and all others compute: they are dealt out evenly.

    A module goes to a worker as a whole (`--dist loadfile`), for the fixtures that its tests share:
    a gateway, what it has learned, conversations. Lines are not counted in tests of processes:
    those of the processes are, if a test is `measured`, and the others count what is behind.
    """

    def limit_s(module: list[pytest.Item]) -> float:
        markers = [item.get_closest_marker("timeout") for item in module]
        return max(USUAL_S if marker is None else float(marker.args[0]) for marker in markers)

    def dealt(modules: list[list[pytest.Item]]) -> list[tuple[float, list[pytest.Item]]]:
        longest = sorted(modules, key=lambda each: (limit_s(each), len(each)), reverse=True)
        return [(number / len(longest), module) for number, module in enumerate(longest)]

    waiting, computing = list[list[pytest.Item]](), list[list[pytest.Item]]()
    for path, module in groupby(items, key=lambda item: item.path):
        (waiting if path.parent.name in OF_PROCESSES else computing).append(list(module))
    for item in chain.from_iterable(waiting):
        item.add_marker(pytest.mark.no_cover)
    order = sorted([*dealt(waiting), *dealt(computing)], key=lambda each: each[0])
    items[:] = [item for _, module in order for item in module]
