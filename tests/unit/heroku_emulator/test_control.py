"""The emulator as a program of its own, and the strings to pull from outside."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import psutil
import pytest

from tests.unit.heroku_emulator.asking import ACCEPT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.heroku_emulator import Emulator
    from tests.unit.heroku_emulator.asking import Api

REPOSITORY = Path(__file__).resolve().parents[3]

BOUND = 25.0


@asynccontextmanager
async def program(
    folder: Path, config: Any
) -> AsyncIterator[tuple[Any, asyncio.subprocess.Process]]:
    """What the program says on its first line, and its process."""
    file = folder / "emulator.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.heroku_emulator", "--config", str(file)),
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(BOUND):
            yield json.loads(await process.stdout.readline()), process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def state(api: Api) -> Any:
    return (await api("GET", "/_emulator/state")).body


async def test_a_program_serves_its_configuration_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "slug").mkdir()
    config = {
        "apps": {
            "runner": {
                "slug": "slug",
                "processes": {
                    "mcp-a": "true",
                    "worker": {"command": "echo $$; exec sleep 600", "quantity": 1},
                },
            }
        },
        "options": {"boot_delay": [0.0, 0.1], "stop_grace": 600},
    }
    async with program(tmp_path, config) as (told, process), aiohttp.ClientSession() as http:
        headers = {"Authorization": f"Bearer {told['api_key']}", "Accept": ACCEPT}
        async with http.get(f"{told['url']}/apps/runner/formation", headers=headers) as answer:
            assert {each["type"] for each in await answer.json()} == {"mcp-a", "worker"}
        async with http.get(f"{told['url']}/_emulator/state") as answer:
            [dyno] = (await answer.json())["dynos_left"]
        mine = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    assert dyno["name"] == "worker.1"
    assert not any(child.is_running() for child in mine)


async def test_the_state_tells_what_was_and_is(heroku: Emulator, api: Api) -> None:
    await api.create("exit 3")
    await heroku.until(lambda: heroku.ledger[-1].ended)
    told = await state(api)
    assert [entry["name"] for entry in told["dynos_left"]] == ["worker.1"]
    assert [entry["exit_status"] for entry in told["ledger"]] == [None, 3]
    assert told["requests"] == {"create": 1}
    assert told["violations"] == []


async def test_a_deploy_and_a_config_change_from_outside(heroku: Emulator, api: Api) -> None:
    deploy = {"app": "runner", "processes": {"mcp-new": "true"}}
    assert (await api("POST", "/_emulator/deploy", deploy)).status == 200
    changes = {"app": "runner", "vars": {"COLOUR": None}}
    assert (await api("POST", "/_emulator/config", changes)).status == 200
    [process] = (await api("GET", "/apps/runner/formation")).body
    assert process["type"] == "mcp-new"
    assert (await api("GET", "/apps/runner/config-vars")).body == {"SHAPE": "round"}


async def test_faults_are_made_and_cleared_from_outside(api: Api) -> None:
    await api("POST", "/_emulator/faults", {"push": {"account": ["503", "503"]}})
    assert (await api("GET", "/account")).status == 503
    await api("DELETE", "/_emulator/faults")
    assert (await api("GET", "/account")).status == 200
    await api("POST", "/_emulator/faults", {"plan": {"seed": 1, "rates": {"account": {"500": 1}}}})
    assert (await api("GET", "/account")).status == 500
    assert (await state(api))["faults"] == {"account 503": 1, "account 500": 1}


async def test_a_dyno_is_killed_from_outside(heroku: Emulator, api: Api) -> None:
    made = await api.create("exec sleep 600")
    assert (await api("POST", "/_emulator/kill", {"dyno": made["id"]})).status == 200
    assert heroku.ledger[-1].cause == "killed"


async def test_options_and_quota_are_set_from_outside(heroku: Emulator, api: Api) -> None:
    await api("POST", "/_emulator/options", {"boot_delay": [1, 2], "webhook_loss": 0.5})
    assert (heroku.options.boot_delay, heroku.options.webhook_loss) == ((1, 2), 0.5)
    await api("POST", "/_emulator/remaining", {"requests": 7})
    assert heroku.remaining == 7


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("options", {"colour": 1}),
        ("deploy", {}),
        ("faults", {"push": {"create": ["nonsense"]}}),
        ("faults", {"plan": {}}),
    ],
)
async def test_what_cannot_be_done_is_refused_with_the_reason(
    api: Api, name: str, body: Any
) -> None:
    answer = await api("POST", f"/_emulator/{name}", body)
    assert answer.status == 422
    assert answer.body["message"]


async def test_an_unknown_dyno_is_not_found(api: Api) -> None:
    assert (await api("POST", "/_emulator/kill", {"dyno": "none"})).status == 404
