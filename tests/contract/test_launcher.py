"""What every launcher promises (`gateway/launchers/base.py`), asked of each of them.

The dynos run the real agent, which dials where nobody listens until it is stopped.
"""

import asyncio
import hashlib
import math
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Protocol

import psutil
import pytest

import gateway
from gateway.launchers.base import Dyno, Launcher, LaunchOrder
from gateway.launchers.heroku.launcher import AgentCommands, HerokuLauncher
from gateway.launchers.heroku.own import OwnApp
from gateway.launchers.heroku.platform import Patience, Platform
from gateway.launchers.local import LocalLauncher
from tests.heroku_emulator import AppSpec, Emulator, Options

WAIT_S = 25.0
SECRET = "rj_launch.a-secret"  # noqa: S105 - of a test
ENVIRONMENT = {
    "RENDEZVOUS_URL": "http://127.0.0.1:9",
    "RENDEZVOUS_START_DEADLINE_S": "600",
}
ROOT = Path(str(gateway.__file__)).parents[1]
INSTALLED = AgentCommands(f"exec {sys.executable} -m dyno_agent", "exit 1; :")


class Deployment(Protocol):
    """One launcher's platform, with a realm of its own for each test."""

    def launcher(self, realm: str | None = None) -> Launcher:
        """Return a launcher as one gateway process of the deployment has it."""
        ...


class LocalDeployment:
    def __init__(self, realm: str) -> None:
        self._realm = realm

    def launcher(self, realm: str | None = None) -> Launcher:
        return LocalLauncher({"PATH": "/usr/bin:/bin"}, realm or self._realm)


class HerokuDeployment:
    def __init__(self, realm: str, heroku: Emulator, stack: AsyncExitStack) -> None:
        self._realm = realm
        self._heroku = heroku
        self._stack = stack

    def launcher(self, realm: str | None = None) -> Launcher:
        platform = Platform(
            self._heroku.api_key, self._heroku.url, Patience(look_s=0.02, pause_s=0.02)
        )
        self._stack.push_async_callback(platform.aclose)
        return HerokuLauncher(
            platform, ("runner",), realm or self._realm, INSTALLED, "basic", OwnApp()
        )


@pytest.fixture(params=["local", "heroku"])
async def deployment(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Deployment]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    realm = hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]
    async with AsyncExitStack() as stack:
        made: Deployment = LocalDeployment(realm)
        if request.param == "heroku":
            apps = {"runner": AppSpec(config={"PYTHONPATH": str(ROOT)})}
            heroku = await stack.enter_async_context(Emulator(apps, Options(stop_grace=10.0)))
            made = HerokuDeployment(realm, heroku, stack)
        yield made
        last = made.launcher()
        for dyno in await last.list():
            await last.stop(dyno.dyno_id)
        await last.aclose()
        assert agents() == []


def token() -> str:
    """The join token of this test."""
    return SECRET + str(tempfile.tempdir)


def agents() -> list[psutil.Process]:
    """The agents of this test that run."""
    return [
        process
        for process in psutil.process_iter(["environ"])
        if (process.info["environ"] or {}).get("RENDEZVOUS_JOIN_TOKEN") == token()
    ]


def order(launch_id: str = "launch-1") -> LaunchOrder:
    environment = {**ENVIRONMENT, "RENDEZVOUS_JOIN_TOKEN": token()}
    return LaunchOrder(launch_id, "everything", environment, None, 600.0, None, "installed")


async def listed(launcher: Launcher, condition: Callable[[list[Dyno]], Any]) -> list[Dyno]:
    """Return the list as soon as it is as wanted: it may be some seconds behind."""
    async with asyncio.timeout(WAIT_S):
        while not condition(dynos := list(await launcher.list())):  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.05)
    return dynos


async def agent_runs() -> psutil.Process:
    async with asyncio.timeout(WAIT_S):
        while not (running := agents()):  # noqa: ASYNC110 - processes tell their parent alone
            await asyncio.sleep(0.02)
    return running[0]


async def test_a_launched_dyno_is_listed_and_runs(deployment: Deployment) -> None:
    launcher = deployment.launcher()
    dyno = await launcher.launch(order())
    assert (dyno.launch_id, dyno.exit_status) == ("launch-1", None)
    await agent_runs()
    [found] = await listed(launcher, lambda dynos: dynos)
    assert (found.dyno_id, found.launch_id, found.exit_status) == (dyno.dyno_id, "launch-1", None)


async def test_a_stopped_dyno_runs_no_more_and_is_not_listed(deployment: Deployment) -> None:
    launcher = deployment.launcher()
    dyno = await launcher.launch(order())
    await agent_runs()
    assert await launcher.stop(dyno.dyno_id) is not None
    assert agents() == []
    await listed(launcher, lambda dynos: not dynos)


async def test_a_dyno_can_be_stopped_before_it_has_booted(deployment: Deployment) -> None:
    launcher = deployment.launcher()
    dyno = await launcher.launch(order())
    await launcher.stop(dyno.dyno_id)
    assert agents() == []


async def test_two_stops_at_once_are_one(deployment: Deployment) -> None:
    launcher = deployment.launcher()
    dyno = await launcher.launch(order())
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as stops:
        stops.create_task(launcher.stop(dyno.dyno_id))
        stops.create_task(launcher.stop(dyno.dyno_id))
    await launcher.stop(dyno.dyno_id)
    assert agents() == []


@pytest.mark.parametrize(
    "dyno_id", ["", "nothing", "local.unknown", "runner/01234567-89ab-cdef-0123-456789abcdef"]
)
async def test_a_dyno_that_is_not_known_is_gone(deployment: Deployment, dyno_id: str) -> None:
    async with asyncio.timeout(WAIT_S):
        assert await deployment.launcher().stop(dyno_id) is None


async def test_a_dyno_outlives_its_launcher_and_the_next_one_finds_and_stops_it(
    deployment: Deployment,
) -> None:
    first = deployment.launcher()
    dyno = await first.launch(order())
    await agent_runs()
    await first.aclose()
    second = deployment.launcher()
    [found] = await listed(second, lambda dynos: dynos)
    assert (found.dyno_id, found.launch_id) == (dyno.dyno_id, "launch-1")
    await second.stop(found.dyno_id)
    assert agents() == []


async def test_dynos_of_another_deployment_are_not_listed(deployment: Deployment) -> None:
    ours, theirs = deployment.launcher(), deployment.launcher("fedcba987654")
    dyno = await theirs.launch(order())
    await ours.launch(order("launch-2"))
    found = await listed(ours, lambda dynos: dynos)
    assert [dyno.launch_id for dyno in found] == ["launch-2"]
    await theirs.stop(dyno.dyno_id)


async def test_a_dyno_that_died_is_not_listed_as_running(deployment: Deployment) -> None:
    launcher = deployment.launcher()
    dyno = await launcher.launch(order())
    (await agent_runs()).kill()
    await listed(launcher, lambda dynos: all(dyno.exit_status is not None for dyno in dynos))
    assert await launcher.stop(dyno.dyno_id) is None
    await listed(launcher, lambda dynos: not dynos)


async def test_the_join_token_is_on_no_command_line(deployment: Deployment) -> None:
    await deployment.launcher().launch(order())
    agent = await agent_runs()  # its environment has the token
    assert SECRET not in " ".join(agent.cmdline())


async def test_an_id_that_could_be_more_than_a_word_is_refused(deployment: Deployment) -> None:
    with pytest.raises(ValueError, match="characters"):
        await deployment.launcher().launch(order("../; reboot"))


@pytest.mark.parametrize("size", [None, "basic", "what nobody sells"])
async def test_a_dyno_has_a_price(deployment: Deployment, size: str | None) -> None:
    price = deployment.launcher().usd_per_hour(size, None)
    assert math.isfinite(price)
    assert price >= 0.0
