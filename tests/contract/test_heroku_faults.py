"""Proves that nothing is left, and nothing is made twice, on a platform that fails at random."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gateway.launchers.base import LaunchError, LaunchOrder, LaunchUnsettled, PlatformError
from gateway.launchers.heroku.api import Bounds
from gateway.launchers.heroku.launcher import AgentCommands, HerokuLauncher
from gateway.launchers.heroku.own import OwnApp
from gateway.launchers.heroku.platform import Patience, Platform
from tests.heroku_emulator import AppSpec, Emulator, Options

WAIT_S = 30.0
REALM = "0123456789ab"
COMMANDS = AgentCommands("", "exec tail -f /dev/null #")
HASTY = Bounds(connect_s=10.0, read_s=0.5, answer_s=10.0)
PATIENCE = Patience(
    bounds=HASTY,
    repeat_s=5.0,
    pause_s=0.01,
    look_s=0.01,
    settle_s=0.2,
    appears_s=0.1,
    gone_s=10.0,
)


def order(launch_id: str) -> LaunchOrder:
    return LaunchOrder(launch_id, "s", {"RENDEZVOUS_JOIN_TOKEN": "rj_a.b"}, None, 60.0, "runner")


FAULTS = {
    "create": {
        "429": 0.06,
        "503": 0.04,
        "500-after": 0.06,
        "reset-before": 0.04,
        "reset-after": 0.06,
        "timeout-before": 0.02,
        "timeout-after": 0.02,
        "dies:0.02": 0.04,
    },
    "list": {"429": 0.05, "500": 0.05, "reset-before": 0.03},
    "info": {"429": 0.05, "500": 0.05, "reset-after": 0.03},
    "stop": {
        "429": 0.05,
        "500": 0.05,
        "500-after": 0.05,
        "reset-before": 0.05,
        "reset-after": 0.05,
    },
}


class Rush:
    """Launches and stops as a gateway would, with some that are cancelled midway."""

    def __init__(self, launcher: HerokuLauncher, heroku: Emulator, seed: int) -> None:
        self._launcher = launcher
        self._heroku = heroku
        self._chance = random.Random(seed)  # noqa: S311 - repeatable, not secret
        self._at_once = asyncio.Semaphore(8)
        self.unsettled: list[str] = []
        self.wrong: list[str] = []

    async def one(self, launch_id: str) -> None:
        patience_s = self._chance.choice([WAIT_S, WAIT_S, WAIT_S, 0.02, 0.1])
        async with self._at_once:
            try:
                async with asyncio.timeout(patience_s):
                    dyno = await self._launcher.launch(order(launch_id))
            except LaunchError:
                self.wrong += [made.id for made in self._running(launch_id)]
            except LaunchUnsettled:
                self.unsettled.append(launch_id)
            except TimeoutError:
                pass
            else:
                await self._stop(dyno.dyno_id)
                self.wrong += [made.id for made in self._running(launch_id)]

    def _running(self, launch_id: str) -> list[Any]:
        tag = f" --launch {REALM}.{launch_id}"
        return [made for made in self._heroku.dynos_left() if made.command.endswith(tag)]

    async def _stop(self, dyno_id: str) -> None:
        try:
            await settled(lambda: self._launcher.stop(dyno_id))
        except PlatformError:
            self.wrong.append(dyno_id)


async def settled(attempt: Callable[[], Awaitable[Any]]) -> Any:
    """Do as the gateway does with what failed: again."""
    for _ in range(9):
        with contextlib.suppress(PlatformError):
            return await attempt()
    return await attempt()


@pytest.mark.no_cover  # counting lines takes longer than the test; others count them
@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", [1])
async def test_200_launches_on_a_failing_platform_leave_nothing(seed: int) -> None:
    options = Options(boot_delay=(0.0, 0.05), seed=seed, stop_grace=1.0, rate_limit=10**6)
    async with Emulator({"runner": AppSpec(dyno_limit=500)}, options) as heroku:
        heroku.faults.plan(seed, FAULTS)
        platform = Platform(heroku.api_key, heroku.url, PATIENCE)
        launcher = HerokuLauncher(platform, ("runner",), REALM, COMMANDS, "basic", OwnApp())
        rush = Rush(launcher, heroku, seed)
        async with asyncio.TaskGroup() as sessions:
            for number in range(200):
                sessions.create_task(rush.one(f"a{number}"))
        await launcher.aclose()
        heroku.faults.clear()
        left = await settled(launcher.list)
        assert rush.wrong == []
        assert {dyno.launch_id for dyno in left} <= set(rush.unsettled)
        for dyno in left:
            await launcher.stop(dyno.dyno_id)
        await platform.aclose()
        assert heroku.dynos_left() == []
        commands = [made.command for made in heroku.ledger]
        assert len(commands) == len(set(commands))
        assert heroku.violations == []
        assert sum(heroku.faults.injected.values()) > 50
