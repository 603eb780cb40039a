"""The vendor's own command line against the emulator: an oracle that nobody here wrote.

See `heroku_cli` for when these tests run.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.heroku_emulator import AppSpec, Emulator, Options, ProcessSpec
from tests.system.heroku_cli import COMMAND_BOUND, Cli, installed, marks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.heroku_emulator import Dyno

__all__ = ["installed"]  # a fixture

pytestmark = marks


@pytest.fixture
async def heroku() -> AsyncIterator[Emulator]:
    app = AppSpec(
        processes={
            "mcp-files": "echo served; exec sleep 600",
            "worker": ProcessSpec("exec sleep 600", quantity=1, size="standard-1x"),
        },
        config={"COLOUR": "blue"},
    )
    async with Emulator({"runner": app}, Options(stop_grace=5.0)) as heroku:
        await heroku.until(lambda: heroku.ledger[0].state == "up")
        yield heroku


@pytest.fixture
def cli(installed: None, node: Path, tmp_path: Path, heroku: Emulator) -> Cli:
    return Cli(node, tmp_path, heroku)


def one_off(heroku: Emulator) -> Dyno:
    [dyno] = [dyno for dyno in heroku.ledger if dyno.one_off]
    return dyno


async def test_ps_shows_what_runs(heroku: Emulator, cli: Cli) -> None:
    said = await cli("ps", "-a", "runner")
    assert said.status == 0, said
    assert "=== worker (Standard-1X): exec sleep 600 (1)" in said.out
    assert re.search(r"^worker\.1: up \d{4}/\d\d/\d\d", said.out, re.MULTILINE)


async def test_run_detached_makes_a_dyno_that_ps_shows(heroku: Emulator, cli: Cli) -> None:
    size = ("--size", "standard-2x")
    said = await cli("run:detached", "-a", "runner", *size, "--", "sleep 600; echo over")
    dyno = one_off(heroku)
    assert said.status == 0, said
    assert f"heroku logs --app runner --dyno {dyno.name}" in said.out
    assert (dyno.command, dyno.size.name, dyno.type) == (
        "sleep 600; echo over",
        "Standard-2X",
        "run",
    )
    shown = await cli("ps", "-a", "runner")
    assert "=== run: one-off processes (1)" in shown.out
    assert re.search(rf"^{dyno.name} \(Standard-2X\): (up|starting) ", shown.out, re.MULTILINE)


async def test_run_detached_has_the_environment_it_is_given(heroku: Emulator, cli: Cli) -> None:
    words = ("--env", "SHAPE=round;LATE=1", "--type", "rendezvous", "--", "env")
    assert (await cli("run:detached", "-a", "runner", *words)).status == 0
    dyno = one_off(heroku)
    await heroku.until(lambda: dyno.ended)
    seen = {line.rpartition("]: ")[2] for line in heroku.log("runner") if " app[" in line}
    assert seen >= {"SHAPE=round", "LATE=1", "COLOUR=blue", f"DYNO={dyno.name}"}
    assert dyno.type == "rendezvous"


async def test_a_process_type_is_run_by_its_name(heroku: Emulator, cli: Cli) -> None:
    assert (await cli("run:detached", "-a", "runner", "--", "mcp-files")).status == 0
    await heroku.until(lambda: any(line.endswith("]: served") for line in heroku.log("runner")))


async def test_run_detached_is_told_that_there_is_no_room(heroku: Emulator, cli: Cli) -> None:
    heroku._platform.app("runner").dyno_limit = 0
    said = await cli("run:detached", "-a", "runner", "--", "true")
    assert said.status != 0
    assert "Cannot run more than 0 Basic size dynos." in said.err
    assert "cannot_run_above_limit" in said.err


@pytest.mark.parametrize(
    "by",
    [lambda dyno: ("--dyno-name", dyno.name), lambda dyno: ("--process-type", dyno.type)],
    ids=["name", "type"],
)
async def test_ps_stop_ends_a_dyno(
    heroku: Emulator, cli: Cli, by: Callable[[Dyno], tuple[str, str]]
) -> None:
    words = ("--type", "rendezvous", "--", "exec sleep 600")
    await cli("run:detached", "-a", "runner", *words)
    dyno = one_off(heroku)
    said = await cli("ps:stop", "-a", "runner", *by(dyno))
    assert said.status == 0, said
    await heroku.until(lambda: dyno.ended)
    assert dyno.cause == "stopped"
    assert (await cli("ps", "rendezvous", "-a", "runner")).status != 0


async def test_logs_show_what_dynos_said(heroku: Emulator, cli: Cli) -> None:
    await cli("run:detached", "-a", "runner", "--", "echo first; echo second")
    dyno = one_off(heroku)
    await heroku.until(lambda: dyno.ended)
    said = await cli("logs", "-a", "runner", "--dyno-name", dyno.name, "--source", "app")
    assert said.status == 0, said
    assert [line.rpartition("]: ")[2] for line in said.out.splitlines() if line] == [
        "first",
        "second",
    ]


async def test_logs_can_be_followed(heroku: Emulator, cli: Cli) -> None:
    process = await cli.start("logs", "--tail", "-a", "runner", "--source", "app")
    try:
        async with asyncio.timeout(COMMAND_BOUND):
            await heroku.until(
                lambda: any(seen.operation == "log-session" for seen in heroku.requests),
                within=COMMAND_BOUND,
            )
            heroku._platform.app("runner").log.write("app", "worker.1", "said later")
            assert process.stdout is not None
            line = (await process.stdout.readline()).decode()
    finally:
        process.kill()
        await process.communicate()
    assert line.endswith("app[worker.1]: said later\n")


async def test_config_is_shown_and_set(heroku: Emulator, cli: Cli) -> None:
    shown = await cli("config", "-a", "runner", "--json")
    assert json.loads(shown.out) == {"COLOUR": "blue"}
    said = await cli("config:set", "SHAPE=round", "-a", "runner")
    assert said.status == 0, said
    assert "v2" in said.err + said.out
    assert "SHAPE:  round" in re.sub(r" {2,}", "  ", (await cli("config", "-a", "runner")).out)


async def test_webhooks_are_added_and_listed(heroku: Emulator, cli: Cli) -> None:
    words = ("-i", "dyno", "-l", "notify", "-u", "http://127.0.0.1:1/hooks")
    said = await cli("webhooks:add", "-a", "runner", *words)
    assert said.status == 0, said
    assert "Webhooks Signing Secret" in said.out
    assert "http://127.0.0.1:1/hooks" in (await cli("webhooks", "-a", "runner")).out


async def test_a_wrong_key_is_told_so(heroku: Emulator, cli: Cli) -> None:
    heroku._server._api_key = "another"
    said = await cli("ps", "-a", "runner")
    assert said.status != 0
    assert "correct token" in said.err
