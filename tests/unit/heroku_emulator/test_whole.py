"""Many requests in any order, many faults: what is told obeys the schema, and nothing is left."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.heroku_emulator import AppSpec, Emulator, Options, ProcessSpec
from tests.unit.heroku_emulator.asking import Api

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    Act = Callable[[Api, random.Random], Awaitable[object]]

DYNOS = "/apps/runner/dynos"

COMMANDS = (
    "exit 0",
    "exit 3",
    "exec sleep 600",
    "trap '' TERM; sleep 600; sleep 600",
    "setsid sleep 600 & exec sleep 600",
    "mcp-a",
)

MORE: tuple[dict[str, Any], ...] = (
    {},
    {"type": "rendezvous"},
    {"size": "standard-1x", "time_to_live": 60},
)

RATES = {
    "create": {"429": 0.1, "500-after": 0.1, "timeout-after": 0.1, "reset-before": 0.1},
    "stop": {"500": 0.1, "reset-after": 0.1, "timeout-before": 0.1},
    "list": {"503": 0.1},
}


async def create(api: Api, chance: random.Random) -> object:
    body = {"command": chance.choice(COMMANDS), **chance.choice(MORE)}
    return await api("POST", DYNOS, body)


async def one(api: Api, chance: random.Random) -> str:
    listed = (await api("GET", DYNOS)).body
    return str(chance.choice(listed)["id"]) if listed and isinstance(listed, list) else "run.1"


async def stop(api: Api, chance: random.Random) -> object:
    return await api("POST", f"{DYNOS}/{await one(api, chance)}/actions/stop")


async def restart(api: Api, chance: random.Random) -> object:
    return await api("DELETE", f"{DYNOS}/{await one(api, chance)}")


async def info(api: Api, chance: random.Random) -> object:
    return await api("GET", f"{DYNOS}/{await one(api, chance)}")


async def scale(api: Api, chance: random.Random) -> object:
    body = {"quantity": chance.randrange(3)}
    return await api("PATCH", "/apps/runner/formation/worker", body)


async def configure(api: Api, chance: random.Random) -> object:
    body = {"COLOUR": chance.choice(["red", "blue", None])}
    return await api("PATCH", "/apps/runner/config-vars", body)


ACTS: tuple[Act, ...] = (create, create, create, stop, stop, restart, info, scale, configure)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_whatever_is_asked_no_answer_breaks_the_schema_and_nothing_is_left(
    seed: int, tmp_path: Path
) -> None:
    app = AppSpec(
        processes={"mcp-a": "exec sleep 600", "worker": ProcessSpec("exec sleep 600", 1)},
        slug=tmp_path,
        dyno_limit=10,
    )
    options = Options(boot_delay=(0.0, 0.1), stop_grace=0.2, seed=seed, hold_s=0.1)
    async with asyncio.timeout(25), Emulator({"runner": app}, options) as heroku:
        heroku.faults.plan(seed, RATES)

        async def client(number: int) -> None:
            chance = random.Random(f"{seed}/{number}")  # noqa: S311 - repeatable, not secret
            async with aiohttp.ClientSession() as http:
                for _ in range(15):
                    try:
                        await chance.choice(ACTS)(Api(heroku, http), chance)
                    except aiohttp.ClientConnectionError:
                        continue  # on purpose

        async with asyncio.TaskGroup() as tasks:
            for number in range(4):
                tasks.create_task(client(number))
        shown = {running.dyno.id for running in heroku._platform.app("runner").visible()}
        held = {dyno.id for dyno in heroku.ledger if dyno.held and dyno.ended is not None}
        assert shown - held == {dyno.id for dyno in heroku.dynos_left()}
    assert heroku.violations == []
    assert heroku.dynos_left() == []
    assert all(dyno.cause for dyno in heroku.ledger)
    assert {seen.operation for seen in heroku.requests} >= {"create", "list", "stop"}
    assert heroku.faults.injected
