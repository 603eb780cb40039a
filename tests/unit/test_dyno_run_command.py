"""The bundled server that runs commands: its parts, the tool in this process, and the process.

The client is the SDK's, whichever way it is connected.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp import Client, StdioServerParameters

from mcp_servers.dyno_run_command.parameters import BadParameterError, variables_from
from mcp_servers.dyno_run_command.server import build
from mcp_servers.dyno_run_command.settings import settings_from
from mcp_servers.limits import BadSettingError
from mcp_servers.processes import Runner
from tests.fakes.bundled import is_alive, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mcp.types import CallToolResult

pytestmark = pytest.mark.timeout(150)

REPOSITORY = Path(__file__).resolve().parents[2]

BOUND_S = 60.0
"""Seconds for anything that is due at once, on a machine that does much else."""

LASTING = 'sleep 600 & echo "$$ $!" > "$told.new"; mv "$told.new" "$told"; wait'
"""Starts a grandchild, then writes the ids of both to a file."""


async def family(told: Path) -> list[int]:
    """Process ids of the command and of what it started, once they run."""
    await until(told.exists)
    return pids_in(told)


def pids_in(told: Path) -> list[int]:
    return [int(pid) for pid in told.read_bytes().split()]


# -- settings --------------------------------------------------------------------------------------


def test_missing_and_empty_variables_leave_the_defaults() -> None:
    settings = settings_from({"DYNO_RUN_TIMEOUT_S": "", "DYNO_RUN_COMMANDS": " "})
    assert settings.allowance.seconds == 110.0
    assert settings.allowance.memory_bytes is None
    assert settings.max_output_bytes == 1024 * 1024
    assert settings.commands is None


def test_variables_set_the_limits_and_the_commands() -> None:
    settings = settings_from(
        {
            "DYNO_RUN_TIMEOUT_S": "2.5",
            "DYNO_RUN_MAX_OUTPUT_BYTES": "4096",
            "DYNO_RUN_MAX_MEMORY_BYTES": "33554432",
            "DYNO_RUN_COMMANDS": '{"when": "date"}',
        }
    )
    assert (settings.allowance.seconds, settings.allowance.memory_bytes) == (2.5, 33554432)
    assert (settings.max_output_bytes, settings.commands) == (4096, {"when": "date"})


@pytest.mark.parametrize(
    "name", ["DYNO_RUN_TIMEOUT_S", "DYNO_RUN_MAX_OUTPUT_BYTES", "DYNO_RUN_MAX_MEMORY_BYTES"]
)
def test_bad_limit_is_refused_by_name(name: str) -> None:
    with pytest.raises(BadSettingError, match=name):
        settings_from({name: "lots"})


@pytest.mark.parametrize(
    "value", ["date", "[]", "{}", '["date"]', '{"when": 1}', '{"when": ""}', '{"": "date"}']
)
def test_commands_that_are_no_lines_by_name_are_refused_without_being_repeated(value: str) -> None:
    with pytest.raises(BadSettingError) as refused:
        settings_from({"DYNO_RUN_COMMANDS": value})
    assert str(refused.value).startswith("DYNO_RUN_COMMANDS: must be JSON")
    assert "date" not in str(refused.value)


# -- parameters ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("", ""),
        ('a "b" $(c) `d`\n', 'a "b" $(c) `d`\n'),
        ("ünï", "ünï"),
        (7, "7"),
        (-1.5, "-1.5"),
        (True, "true"),
        (False, "false"),
        ({"a": [1, None, "ü"]}, '{"a": [1, null, "ü"]}'),
        ([], "[]"),
    ],
)
def test_value_becomes_text(value: object, text: str) -> None:
    assert variables_from({"x": value}, ()) == {"x": text}


def test_null_is_left_out() -> None:
    assert variables_from({"x": None, "y": 1}, ()) == {"y": "1"}


@pytest.mark.parametrize("name", ["x", "_x1", "Since", "LIMIT", "path", "env", "goal", "port"])
def test_name_of_a_variable_that_programs_do_not_obey_is_let_through(name: str) -> None:
    assert variables_from({name: "1"}, ()) == {name: "1"}


@pytest.mark.parametrize(
    "name", ["", "1x", "a-b", "a b", "a=b", "x\n", "BASH_FUNC_x%%", "ä", "x" * 101]
)
def test_what_is_no_name_of_a_variable_is_refused(name: str) -> None:
    with pytest.raises(BadParameterError, match="is no name of a parameter"):
        variables_from({name: "1"}, ())


@pytest.mark.parametrize(
    "name",
    [
        *("PATH", "IFS", "ENV", "BASH_ENV", "SHELLOPTS", "PS4", "HOME", "TMPDIR"),
        *("LD_PRELOAD", "LD_LIBRARY_PATH", "GLIBC_TUNABLES", "GCONV_PATH", "HOSTALIASES"),
        *("PYTHONPATH", "PYTHONSTARTUP", "PIP_INDEX_URL", "RUBYOPT", "RUBYLIB", "GEM_HOME"),
        *("NODE_OPTIONS", "NODE_PATH", "npm_config_registry", "PERL5OPT", "PHPRC", "GOFLAGS"),
        *("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "BUNDLE_GEMFILE", "GIT_SSH_COMMAND", "PAGER"),
        *("https_proxy", "HTTP_PROXY", "SSL_CERT_FILE", "PGHOST", "RENDEZVOUS_X", "DYNO", "PORT"),
    ],
)
def test_name_that_programs_obey_is_refused(name: str) -> None:
    with pytest.raises(BadParameterError, match="cannot be a parameter"):
        variables_from({name: "1"}, ())


def test_variable_of_the_app_cannot_be_replaced() -> None:
    with pytest.raises(BadParameterError, match="'DATABASE_URL' cannot be a parameter"):
        variables_from({"DATABASE_URL": "1"}, {"DATABASE_URL": "2"})


@pytest.mark.parametrize("value", ["a\0b", "\ud800", ["\udfff"]])
def test_value_that_no_variable_can_have_is_refused_by_name(value: object) -> None:
    with pytest.raises(BadParameterError, match="the value of 'x'"):
        variables_from({"x": value}, ())


@given(st.text(max_size=20))
def test_text_that_is_let_through_is_unchanged(text: str) -> None:
    try:
        made = variables_from({"x": text}, ())
    except BadParameterError:
        assert "\0" in text
    else:
        assert made == {"x": text}


# -- the tool --------------------------------------------------------------------------------------


@asynccontextmanager
async def tool(runner: Runner | None = None, **environment: str) -> AsyncIterator[Client]:
    """A client of a server in this process."""
    settings = settings_from(environment)
    runner = runner or Runner(settings.max_output_bytes, "DYNO_RUN_MAX_OUTPUT_BYTES")
    server = build(runner, settings, {"PATH": os.environ["PATH"], "KEPT": "yes"})
    async with asyncio.timeout(BOUND_S), Client(server) as client:
        yield client
    runner.close()


async def run(client: Client, cmd: str, **parameters: Any) -> dict[str, Any]:
    """Call the tool; return its result."""
    return result_of(
        await client.call_tool("dyno_run_command", {"cmd": cmd, "parameters": parameters})
    )


def result_of(answer: CallToolResult) -> dict[str, Any]:
    """The result, the same in text and in structured content."""
    (block,) = answer.content
    assert block.type == "text"
    assert not answer.is_error, block.text
    result: dict[str, Any] = json.loads(block.text)
    assert answer.structured_content == {"result": result}
    return result


async def refusal(client: Client, cmd: str, **parameters: Any) -> str:
    """Call the tool, which must refuse; return why."""
    answer = await client.call_tool("dyno_run_command", {"cmd": cmd, "parameters": parameters})
    (block,) = answer.content
    assert block.type == "text"
    assert answer.is_error
    return block.text


async def test_arguments_are_the_command_and_its_parameters() -> None:
    async with tool() as client:
        (listed,) = (await client.list_tools()).tools
    assert listed.name == "dyno_run_command"
    assert list(listed.input_schema["properties"]) == ["cmd", "parameters"]
    assert listed.input_schema["required"] == ["cmd"]
    assert "enum" not in listed.input_schema["properties"]["cmd"]


async def test_documented_command_runs_in_a_shell() -> None:
    """The command of Heroku's own example, which gives the tool no parameters."""
    async with tool() as client:
        answer = await client.call_tool("dyno_run_command", {"cmd": "echo hello && date -u +%Z"})
    assert result_of(answer) == {"returncode": 0, "stdout": "hello\nUTC", "stderr": ""}


async def test_status_and_both_streams_are_returned() -> None:
    async with tool() as client:
        result = await run(client, "echo out; echo err >&2; exit 3")
    assert result == {"returncode": 3, "stdout": "out", "stderr": "err"}


async def test_stdin_is_empty() -> None:
    async with tool() as client:
        assert (await run(client, "cat"))["returncode"] == 0


async def test_command_runs_where_the_server_does_with_its_variables() -> None:
    async with tool() as client:
        assert (await run(client, 'echo "$PWD $KEPT"'))["stdout"] == f"{Path.cwd()} yes"


async def test_no_shell_parses_a_parameter() -> None:
    hostile = "'; \"; $(echo ran) `echo ran` && echo ran # \\\n*"
    async with tool() as client:
        result = await run(
            client,
            'printf %s "<$text>" "<$number>" "<${none-unset}>"',
            text=hostile,
            number=7,
            none=None,
        )
    assert result["stdout"] == f"<{hostile}><7><unset>"


async def test_refused_parameter_is_an_error_and_nothing_runs(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    async with tool() as client:
        told = await refusal(client, f"touch {ran}", LD_PRELOAD="/evil.so")
    assert "'LD_PRELOAD' cannot be a parameter" in told
    assert not await asyncio.to_thread(ran.exists)


async def test_variable_of_the_server_cannot_be_replaced_by_a_parameter() -> None:
    async with tool() as client:
        assert "'KEPT' cannot be a parameter" in await refusal(client, "true", KEPT="no")


@pytest.mark.parametrize(
    ("cmd", "why"), [("a\0b", "null byte"), ("echo " + "x" * 200_000, "too long")]
)
async def test_command_that_cannot_be_started_is_an_error(cmd: str, why: str) -> None:
    async with tool() as client:
        told = await refusal(client, cmd)
        assert "could not be started" in told
        assert why in told
        assert (await run(client, "echo on"))["stdout"] == "on"


async def test_time_out_is_minus_two_and_names_its_limit() -> None:
    async with tool(DYNO_RUN_TIMEOUT_S="1") as client:
        result = await run(client, "echo before; sleep 600")
    assert (result["returncode"], result["stdout"]) == (-2, "before")
    assert result["stderr"] == (
        "Error: The command timed out after 1 s; the limit is set by DYNO_RUN_TIMEOUT_S."
    )


async def test_memory_beyond_the_limit_is_137_and_names_it() -> None:
    async with tool(DYNO_RUN_MAX_MEMORY_BYTES=str(64 << 20)) as client:
        code = "x = bytearray(b'x') * (128 << 20); import time; time.sleep(600)"
        result = await run(client, f'echo before; {sys.executable} -c "$code"', code=code)
    assert (result["returncode"], result["stdout"]) == (137, "before")
    assert result["stderr"].endswith("the limit is set by DYNO_RUN_MAX_MEMORY_BYTES.")


async def test_long_output_is_cut_and_the_end_kept() -> None:
    async with tool(DYNO_RUN_MAX_OUTPUT_BYTES="1000") as client:
        result = await run(client, "head -c 500000 /dev/zero | tr '\\0' x; echo the end")
    assert f"{500_008 - 1000} bytes cut" in result["stdout"]
    assert "DYNO_RUN_MAX_OUTPUT_BYTES" in result["stdout"]
    assert result["stdout"].endswith("xxthe end")


async def test_progress_tells_that_it_runs_for_how_long_and_what_was_printed(
    tmp_path: Path,
) -> None:
    told: list[tuple[float, str | None]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, message))
        if message is not None and message.endswith(", 4 bytes of output"):
            (tmp_path / "go").touch()

    arguments = {
        "cmd": 'echo one; while [ ! -e "$go" ]; do sleep 0.01; done',
        "parameters": {"go": str(tmp_path / "go")},
    }
    async with tool(Runner(4096, "THE_LIMIT", beat_s=0.05)) as client:
        await client.call_tool("dyno_run_command", arguments, progress_callback=on_progress)
    steps, lines = zip(*told, strict=True)
    assert steps == tuple(map(float, range(1, len(told) + 1)))
    assert lines[0] == "running"
    assert re.fullmatch(r"running for \d+ s, 4 bytes of output", lines[-1] or "")


# -- an operator's commands ------------------------------------------------------------------------

COMMANDS = json.dumps({"greet": 'echo "hello $name"', "when": "date"})


async def test_names_of_the_commands_are_told() -> None:
    async with tool(DYNO_RUN_COMMANDS=COMMANDS) as client:
        (listed,) = (await client.list_tools()).tools
    about = listed.input_schema["properties"]["cmd"]
    assert about["enum"] == ["greet", "when"]
    assert "greet, when" in about["description"]
    assert "hello" not in json.dumps(listed.input_schema)


async def test_command_is_run_by_its_name() -> None:
    async with tool(DYNO_RUN_COMMANDS=COMMANDS) as client:
        assert (await run(client, "greet", name="you"))["stdout"] == "hello you"


@pytest.mark.parametrize("cmd", ["date", 'echo "hello $name"', "greet; date", "greet "])
async def test_what_is_no_name_of_a_command_is_refused_and_not_run(cmd: str) -> None:
    async with tool(DYNO_RUN_COMMANDS=COMMANDS) as client:
        told = await refusal(client, cmd)
    assert f"There is no command {cmd!r}" in told
    assert "greet, when" in told


# -- the process -----------------------------------------------------------------------------------


def server(**environment: str) -> StdioServerParameters:
    return StdioServerParameters(
        command=sys.executable,
        args=["-m", "mcp_servers.dyno_run_command"],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
    )


@pytest.mark.usefixtures("measured")
async def test_process_serves_hides_internal_variables_and_kills_what_is_cancelled(
    tmp_path: Path,
) -> None:
    """Several claims, as each process costs a second."""
    told = tmp_path / "pids"
    async with (
        asyncio.timeout(BOUND_S),
        Client(server(RENDEZVOUS_JOIN_TOKEN="internal", KEPT="yes")) as client,
    ):
        shown = await run(client, "env | grep -E '^(KEPT|RENDEZVOUS_)'")
        async with asyncio.TaskGroup() as group:
            call = group.create_task(run(client, LASTING, told=str(told)))
            pids = await family(told)
            call.cancel()
        await until(lambda: not any(map(is_alive, pids)))
        after = await run(client, "echo on")
    assert shown["stdout"] == "KEPT=yes"
    assert after["stdout"] == "on"


@pytest.mark.parametrize("end", [None, signal.SIGTERM])
async def test_end_of_the_server_is_the_end_of_the_command(
    tmp_path: Path, end: signal.Signals | None
) -> None:
    """The end of its stdin is what is left of a caller that has gone."""
    told = tmp_path / "pids"
    call = {
        "name": "dyno_run_command",
        "arguments": {"cmd": LASTING, "parameters": {"told": str(told)}},
    }
    opening = {"protocolVersion": "2025-11-25", "capabilities": {}}
    opening["clientInfo"] = {"name": "test", "version": "1"}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "mcp_servers.dyno_run_command"),
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    for message in (
        {"id": 1, "method": "initialize", "params": opening},
        {"method": "notifications/initialized"},
        {"id": 2, "method": "tools/call", "params": call},
    ):
        process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
    pids = await family(told)

    if end is None:
        process.stdin.close()
    else:
        process.send_signal(end)

    async with asyncio.timeout(BOUND_S):
        assert await process.wait() == (0 if end is None else -end)
    await until(lambda: not any(map(is_alive, pids)))
    process.stdin.close()


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(
    ("arguments", "setting", "status", "said"),
    [
        ((), "soon", 78, "dyno_run_command: DYNO_RUN_TIMEOUT_S='soon'"),
        (("date",), "", 64, "usage: python -m mcp_servers.dyno_run_command\n"),
    ],
)
async def test_server_that_cannot_serve_ends_at_its_start(
    arguments: tuple[str, ...], setting: str, status: int, said: str
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "mcp_servers.dyno_run_command", *arguments),
        cwd=REPOSITORY,
        env={**os.environ, "DYNO_RUN_TIMEOUT_S": setting},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    async with asyncio.timeout(BOUND_S):
        stdout, stderr = await process.communicate()
    assert (process.returncode, stdout) == (status, b"")
    assert stderr.decode().startswith(said)
