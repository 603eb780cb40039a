"""What the command line offers: help that teaches, exit codes, a quick start."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import typer

from gateway.cli import output
from gateway.cli.program import program
from gateway.ops.inertness import inert
from tests.cli.desk import ADMIN, DANGEROUS, EVIL, ROOT, desk, gw, page, session

if TYPE_CHECKING:
    from pathlib import Path

COMMANDS = [
    *("serve", "quickstart", "sessions", "logs", "inspect", "kill"),
    *("servers", "call", "bootstrap", "cost", "doctor"),
]
HEAVY = ("aiohttp", "heroku3", "mcp", "pydantic_settings", "requests", "rich", "structlog")
BOUND = 25.0


def python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH",) if name in os.environ}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**kept, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
    )


async def test_help_lists_every_command() -> None:
    said = await gw("--help")
    assert said.code == 0
    assert re.findall(r"^  ([a-z]+)  ", said.out, re.MULTILINE) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
async def test_every_command_has_help_with_an_example(command: str) -> None:
    said = await gw(command, "--help")
    assert said.code == 0
    assert re.search(rf"Examples?:\n +(\S+ )*gateway {command}", said.out)


@pytest.mark.parametrize("command", COMMANDS)
async def test_no_example_puts_a_key_where_others_see_it(command: str) -> None:
    said = await gw(command, "--help")
    examples = said.out[said.out.index("Example") :].partition("\n\n")[0]
    assert "-key" not in examples


async def test_unknown_command_is_a_usage_error() -> None:
    said = await gw("reboot")
    assert said.code == 2


async def test_keys_are_in_no_help(folder: Path) -> None:
    said = await gw("sessions", "--help", ADMIN_KEY=ADMIN)
    assert ADMIN not in said.out


def test_help_waits_for_no_heavy_import(folder: Path) -> None:
    """Half a second each, for somebody who only wants to know what to type."""
    code = (
        "import sys; sys.argv = ['gateway', 'sessions', '--help']\n"
        "from gateway.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"print('heavy:', *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = python("-c", code, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip() == "heavy:"


def test_output_that_knows_few_characters_is_no_reason_to_fail(folder: Path) -> None:
    done = python("-m", "gateway", "logs", "--help", cwd=folder, PYTHONIOENCODING="latin-1:strict")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u2192 goes to the server" in done.stdout


async def test_reader_that_goes_away_is_no_reason_for_a_traceback(folder: Path) -> None:
    rows = page(*(session(session=f"s-{number}") for number in range(5000)))
    kept = {name: os.environ[name] for name in ("PATH",) if name in os.environ}
    async with desk({("GET", "/sessions"): rows}) as served:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", "sessions", "--limit", "10000"),
            cwd=folder,
            env={**kept, "PYTHONPATH": str(ROOT), **served.access},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        async with asyncio.timeout(BOUND):
            await process.stdout.readline()
            transport = process._transport.get_pipe_transport(1)  # type: ignore[attr-defined]
            transport.close()
            said = await process.stderr.read()
            await process.wait()
    assert b"Traceback" not in said


@pytest.mark.parametrize("command", ["serve", "quickstart"])
def test_wrong_settings_are_named_all_with_the_exit_code_of_sysexits(
    command: str, folder: Path
) -> None:
    done = python(*("-m", "gateway", command), cwd=folder, API_KEY="x", PORT="0", QUEUE_LENGTH="-1")
    assert (done.returncode, done.stdout) == (78, "")
    assert "PORT" in done.stderr
    assert "QUEUE_LENGTH" in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_servers_file_is_named(folder: Path) -> None:
    done = python("-m", "gateway", "serve", cwd=folder, API_KEY="x")
    assert done.returncode == 78
    assert "servers.json" in done.stderr


def test_port_that_is_taken_is_a_failure(folder: Path) -> None:
    servers = {"mcpServers": {"a": {"command": "true"}}}
    (folder / "servers.json").write_text(json.dumps(servers), encoding="utf-8")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = python("-m", "gateway", "serve", cwd=folder, API_KEY="x", PORT=port)
    assert done.returncode == 1
    assert "cannot start" in done.stderr
    assert "Traceback" not in done.stderr


def test_shell_completion_is_offered() -> None:
    names = {name for option in typer.main.get_command(program).params for name in option.opts}
    assert "--install-completion" in names


# How figures look


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0ms"),
        (0.0123, "12ms"),
        (1, "1s"),
        (59.9, "59s"),
        (60, "1m 00s"),
        (3599, "59m 59s"),
        (3600, "1h 00m"),
        (86_399, "23h 59m"),
        (86_400, "1d 00h"),
        (-1, "?"),
        (float("nan"), "?"),
        (float("inf"), "?"),
    ],
)
def test_span_has_two_units_at_most(seconds: float, shown: str) -> None:
    assert output.span(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1024**2, "1.0 MiB"), (5e9, "4.7 GiB")],
)
def test_amount_has_the_largest_unit_that_fits(count: float, shown: str) -> None:
    assert output.amount(count) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(None, ""), (0, "$0.00"), (0.00012, "$0.0001"), (1.005, "$1.00")]
)
def test_money_shows_fractions_of_a_cent_where_they_count(value: float | None, shown: str) -> None:
    assert output.usd(value) == shown


def test_inert_text_holds_nothing_that_steers() -> None:
    assert not set(inert(EVIL)) & set(DANGEROUS)
    assert inert("plain é 漢 text") == "plain é 漢 text"


def test_cut_text_says_that_there_was_more() -> None:
    assert output.cut("x" * 61) == "x" * 59 + "…"
    assert output.cut("x" * 60) == "x" * 60
    assert len(output.cut("\x1b" * 1000)) == 60


def test_page_has_a_row_and_an_example_of_every_command() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| \[`([a-z]+)`\]", text, re.MULTILINE) == COMMANDS
    for command in COMMANDS:
        assert re.search(rf"^(\$ )?(eval \"\$\()?gateway {command}\b", text, re.MULTILINE), command
