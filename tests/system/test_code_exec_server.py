"""The bundled code execution server as a process, driven by the SDK's client and by raw lines."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from mcp import Client, StdioServerParameters

from tests.fakes.bundled import is_alive, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mcp.types import CallToolResult

pytestmark = pytest.mark.timeout(240)

REPOSITORY = Path(__file__).resolve().parents[2]

BOUND_S = 60.0
"""Seconds for anything that is due at once, on a machine that does much else."""

INSTALL_BOUND_S = 180.0
"""Seconds for a test that installs from the index."""

needs_ruby = pytest.mark.skipif(shutil.which("ruby") is None, reason="no `ruby` on the PATH")

MODES = ("legacy", "auto")
"""How the client agrees on a revision: by `initialize`, or by `server/discover` if it is there."""

HEREDOC = r"""
{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"0.1.0","capabilities":{},"clientInfo":{"name":"test","version":"1.0.0"}}}

{"jsonrpc":"2.0","method":"notifications/initialized","params":{}}

{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"code_exec_python","arguments":{"code":"import numpy as np; print(np.random.rand(50).tolist())","packages":["numpy"]}}}
"""  # noqa: E501 - word for word what README and Heroku's reference have
"""The direct call of the reference's README."""

FAMILY = """
import os, pathlib, subprocess, sys, time
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
told = pathlib.Path({told!r})
told.with_suffix(".new").write_text(f"{{os.getpid()}} {{os.getppid()}} {{grandchild.pid}}")
told.with_suffix(".new").rename(told)
time.sleep(600)
"""
"""Starts a grandchild, then writes the ids of itself, the server and the grandchild to a file."""


def environment(tmp_path: Path, **settings: str) -> dict[str, str]:
    """Ours, for pip's configuration; the sessions' files are made below `tmp_path`."""
    scratch = tmp_path / "sessions"
    scratch.mkdir(parents=True, exist_ok=True)
    return {**os.environ, "TMPDIR": str(scratch), **settings}


def sessions(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "sessions").glob("code-exec-*"))


@asynccontextmanager
async def connected(
    tmp_path: Path,
    mode: str = "legacy",
    within: float = BOUND_S,
    language: str | None = None,
    **settings: str,
) -> AsyncIterator[Client]:
    """A client and its own server; afterwards nothing of the session is left on disk."""
    parameters = StdioServerParameters(
        command=sys.executable,
        args=["-m", "mcp_servers.code_exec", *([language] if language else [])],
        cwd=REPOSITORY,
        env=environment(tmp_path, **settings),
    )
    async with asyncio.timeout(within), Client(parameters, mode=mode) as client:
        yield client
    assert sessions(tmp_path) == []


async def run(client: Client, code: str, **arguments: Any) -> dict[str, Any]:
    """Call the tool; return its result, the same in text and in structured content."""
    return result_of(await client.call_tool("code_exec_python", {"code": code, **arguments}))


def result_of(answer: CallToolResult) -> dict[str, Any]:
    (block,) = answer.content
    assert block.type == "text"
    result: dict[str, Any] = json.loads(block.text)
    assert answer.structured_content == {"result": result}
    assert set(result) == {"returncode", "stdout", "stderr"}
    assert not answer.is_error
    return result


async def family(told: Path) -> tuple[int, int, int]:
    """Process ids of the code, the server and the grandchild, once they run."""
    await until(told.exists)
    code, server, grandchild = pids(told)
    return code, server, grandchild


def pids(told: Path) -> list[int]:
    return [int(pid) for pid in told.read_bytes().split()]


def exists(path: str) -> bool:
    return Path(path).exists()


# -- the tool --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
async def test_tool_is_listed_as_in_the_reference(tmp_path: Path, mode: str) -> None:
    async with connected(tmp_path, mode) as client:
        (tool,) = (await client.list_tools()).tools
    assert tool.name == "code_exec_python"
    assert tool.input_schema["title"] == "code_exec_pythonArguments"
    assert tool.input_schema["required"] == ["code"]
    assert list(tool.input_schema["properties"]) == ["code", "packages", "use_temp_dir"]
    assert all(argument["description"] for argument in tool.input_schema["properties"].values())
    assert tool.output_schema is not None
    assert tool.output_schema["required"] == ["result"]


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("mode", MODES)
async def test_code_runs(tmp_path: Path, mode: str) -> None:
    async with connected(tmp_path, mode) as client:
        assert await run(client, "print('ünïcode')", packages=None) == {
            "returncode": 0,
            "stdout": "ünïcode",
            "stderr": "",
        }


async def test_error_in_the_code_is_a_result_with_the_traceback(tmp_path: Path) -> None:
    async with connected(tmp_path) as client:
        result = await run(client, "print('before')\nraise ValueError('wrong')")
    assert (result["returncode"], result["stdout"]) == (1, "before")
    assert "raise ValueError('wrong')" in result["stderr"]
    assert result["stderr"].endswith("ValueError: wrong")


async def test_missing_code_is_a_tool_error(tmp_path: Path) -> None:
    async with connected(tmp_path) as client:
        answer = await client.call_tool("code_exec_python", {})
    assert answer.is_error


async def test_time_out_is_minus_two_and_names_its_limit(tmp_path: Path) -> None:
    async with connected(tmp_path, CODE_EXEC_TIMEOUT_S="5") as client:
        result = await run(client, "print('before'); import time; time.sleep(600)")
    assert (result["returncode"], result["stdout"]) == (-2, "before")
    assert result["stderr"].startswith("Error: Execution timed out")
    assert "5 s" in result["stderr"]
    assert "CODE_EXEC_TIMEOUT_S" in result["stderr"]


async def test_long_output_is_cut_and_the_end_kept(tmp_path: Path) -> None:
    async with connected(tmp_path, CODE_EXEC_MAX_OUTPUT_BYTES="1000") as client:
        result = await run(client, "import sys; print('x' * 5_000_000); sys.exit('the end')")
    assert f"{5_000_001 - 1000} bytes cut" in result["stdout"]
    assert len(result["stdout"]) < 1200
    assert result["stderr"] == "the end"


async def test_a_mebibyte_of_code_and_of_output_pass(tmp_path: Path) -> None:
    size = 1024 * 1024
    async with connected(tmp_path) as client:
        result = await run(client, f"text = '{'x' * size}'\nprint(text, end='')")
    assert result["stdout"] == "x" * size


async def test_code_cannot_read_the_protocol_nor_write_to_it(tmp_path: Path) -> None:
    code = 'import sys; print(repr(sys.stdin.read())); print(\'{"jsonrpc":"2.0","id":1}\')'
    async with connected(tmp_path) as client:
        async with asyncio.TaskGroup() as group:
            first = group.create_task(run(client, code))
            group.create_task(client.list_tools())
        assert first.result()["stdout"] == "''\n" + '{"jsonrpc":"2.0","id":1}'


async def test_calls_run_side_by_side(tmp_path: Path) -> None:
    """Each waits for the other's file, so one after the other would be a time-out."""
    code = """
import pathlib, time
pathlib.Path("{mine}").touch()
while not pathlib.Path("{other}").exists():
    time.sleep(0.01)
"""
    async with connected(tmp_path) as client, asyncio.TaskGroup() as group:
        calls = [
            group.create_task(run(client, code.format(mine=mine, other=other)))
            for mine, other in (("a", "b"), ("b", "a"))
        ]
    assert [call.result()["returncode"] for call in calls] == [0, 0]


async def test_sessions_share_no_files(tmp_path: Path) -> None:
    async with connected(tmp_path / "one") as one, connected(tmp_path / "other") as other:
        await run(one, "open('file', 'w')")
        assert (await run(other, "import os; print(os.listdir())"))["stdout"] == "[]"


async def test_temporary_directory_is_not_the_session_s(tmp_path: Path) -> None:
    code = "import os; open('file', 'w'); print(os.getcwd())"
    async with connected(tmp_path) as client:
        kept = (await run(client, code))["stdout"]
        removed = (await run(client, code, use_temp_dir=True))["stdout"]
        assert exists(f"{kept}/file")
        assert not exists(removed)


# -- packages --------------------------------------------------------------------------------------


async def test_package_is_installed_into_its_session_only(tmp_path: Path) -> None:
    """Installs a small package from the index, in a version that this environment has not."""
    told: list[str | None] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        told.append(message)

    code = "import iniconfig; print(iniconfig.__file__)"
    arguments = {"code": code, "packages": ["iniconfig==2.0.0"]}
    async with connected(tmp_path, within=INSTALL_BOUND_S) as client:
        for _ in range(2):
            answer = await client.call_tool(
                "code_exec_python", arguments, progress_callback=on_progress
            )
            where = Path(result_of(answer)["stdout"])
            assert where.is_relative_to(tmp_path)
        async with connected(tmp_path / "other") as other:
            assert str(tmp_path) not in (await run(other, code))["stdout"]
    assert told == ["installing iniconfig==2.0.0", "running", "running"]


async def test_failed_install_is_a_result_and_the_code_does_not_run(tmp_path: Path) -> None:
    """No index is asked: pip is told to look nowhere."""
    async with connected(
        tmp_path, PIP_NO_INDEX="1", PIP_FIND_LINKS="", PIP_CONFIG_FILE=os.devnull
    ) as client:
        result = await run(client, "print('ran')", packages=["no-such-package-here"])
    assert (result["returncode"], result["stdout"]) == (1, "")
    assert "no-such-package-here" in result["stderr"]


async def test_option_in_the_place_of_a_package_is_refused(tmp_path: Path) -> None:
    async with connected(tmp_path) as client:
        result = await run(client, "print('ran')", packages=["--index-url=http://127.0.0.1:9/"])
    assert (result["returncode"], result["stdout"]) == (1, "")
    assert "is not a package of the index" in result["stderr"]


async def test_heredoc_of_the_readme_is_answered(tmp_path: Path) -> None:
    """Installs numpy from the index. The answers only: no stray line is on stdout."""
    server = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "mcp_servers.code_exec"),
        cwd=REPOSITORY,
        env=environment(tmp_path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    async with asyncio.timeout(INSTALL_BOUND_S):
        server.stdin.write(HEREDOC.encode())
        answers = [json.loads(await server.stdout.readline()) for _ in range(2)]
        server.stdin.close()  # not before the answer: the SDK drops calls under way at the end
        assert await server.stdout.read() == b""
        assert await server.wait() == 0
    assert [answer["id"] for answer in answers] == [1, 2]
    result = answers[1]["result"]["structuredContent"]["result"]
    assert result["stderr"] == ""
    assert result["returncode"] == 0
    assert len(json.loads(result["stdout"])) == 50
    assert sessions(tmp_path) == []


# -- ends ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
async def test_cancelled_call_leaves_no_process_and_the_session_goes_on(
    tmp_path: Path, mode: str
) -> None:
    """The client sends notifications/cancelled."""
    told = tmp_path / "pids"
    async with connected(tmp_path, mode) as client:
        async with asyncio.TaskGroup() as group:
            call = group.create_task(run(client, FAMILY.format(told=str(told))))
            code, server, grandchild = await family(told)
            call.cancel()
        await until(lambda: not psutil.pid_exists(code) and not is_alive(grandchild))
        assert is_alive(server)
        assert (await run(client, "print(1)"))["stdout"] == "1"


@pytest.mark.parametrize("end", [None, signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
async def test_end_of_the_server_is_the_end_of_the_code(
    tmp_path: Path, end: signal.Signals | None
) -> None:
    """Whether its stdin ends or a signal ends it; after SIGKILL only the files are left."""
    told = tmp_path / "pids"
    call = {"name": "code_exec_python", "arguments": {"code": FAMILY.format(told=str(told))}}
    lines = [
        *HEREDOC.split()[:2],
        json.dumps({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": call}),
    ]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "mcp_servers.code_exec"),
        cwd=REPOSITORY,
        env=environment(tmp_path),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    process.stdin.write("".join(line + "\n" for line in lines).encode())
    code, server, grandchild = await family(told)
    assert server == process.pid

    if end is None:
        process.stdin.close()
    else:
        process.send_signal(end)

    async with asyncio.timeout(BOUND_S):
        assert await process.wait() == (0 if end is None else -end)
    await until(lambda: not is_alive(code) and not is_alive(grandchild))
    if end is not signal.SIGKILL:
        assert sessions(tmp_path) == []
    process.stdin.close()


async def refusal(tmp_path: Path, *arguments: str, **settings: str) -> tuple[int | None, str]:
    """Exit status and stderr of a server that does not start."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "mcp_servers.code_exec", *arguments),
        cwd=REPOSITORY,
        env=environment(tmp_path, **settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    async with asyncio.timeout(BOUND_S):
        stdout, stderr = await process.communicate()
    assert stdout == b""
    return process.returncode, stderr.decode()


@pytest.mark.usefixtures("measured")
async def test_bad_setting_is_named_and_the_server_does_not_start(tmp_path: Path) -> None:
    status, said = await refusal(tmp_path, CODE_EXEC_TIMEOUT_S="soon")
    assert status == 78
    assert "CODE_EXEC_TIMEOUT_S='soon'" in said


@pytest.mark.usefixtures("measured")
async def test_unknown_language_is_bad_usage(tmp_path: Path) -> None:
    status, said = await refusal(tmp_path, "cobol")
    assert (status, said) == (64, "usage: python -m mcp_servers.code_exec [python|ruby|node|go]\n")


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("language", ["ruby", "go"])
async def test_server_of_a_language_that_is_missing_does_not_start(
    tmp_path: Path, language: str
) -> None:
    status, said = await refusal(tmp_path, language, PATH=str(tmp_path))
    assert status == 78
    assert said.startswith(f"code_exec: there is no `{language}` on the PATH")


# -- Ruby ------------------------------------------------------------------------------------------


RUBY_HEREDOC = r"""
{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"0.1.0","capabilities":{},"clientInfo":{"name":"test","version":"1.0.0"}}}
{"jsonrpc":"2.0","method":"notifications/initialized","params":{}}
{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"code_exec_ruby","arguments":{"code":"puts Array.new(100) { rand(1..100) }.join(\", \")","packages":[]}}}
"""  # noqa: E501 - word for word what Heroku's reference has
"""The direct call of the Ruby reference's README."""

RUBY_FAMILY = """
grandchild = spawn("sleep", "600")
File.write("{told}.new", "#{{$$}} #{{Process.ppid}} #{{grandchild}}")
File.rename("{told}.new", "{told}")
sleep 600
"""


@needs_ruby
@pytest.mark.parametrize("mode", MODES)
async def test_ruby_code_runs(tmp_path: Path, mode: str) -> None:
    async with connected(tmp_path, mode, language="ruby") as client:
        arguments = {"code": "puts 'ünïcode'", "packages": None, "use_temp_dir": True}
        answer = await client.call_tool("code_exec_ruby", arguments)
    assert result_of(answer) == {"returncode": 0, "stdout": "ünïcode", "stderr": ""}


@needs_ruby
async def test_heredoc_of_the_ruby_reference_is_answered(tmp_path: Path) -> None:
    server = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "mcp_servers.code_exec", "ruby"),
        cwd=REPOSITORY,
        env=environment(tmp_path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    async with asyncio.timeout(BOUND_S):
        server.stdin.write(RUBY_HEREDOC.encode())
        answers = [json.loads(await server.stdout.readline()) for _ in range(2)]
        server.stdin.close()
        assert await server.wait() == 0
    result = answers[1]["result"]["structuredContent"]["result"]
    assert (result["returncode"], result["stderr"]) == (0, "")
    assert len(result["stdout"].split(", ")) == 100


@needs_ruby
async def test_cancelled_ruby_call_leaves_no_process(tmp_path: Path) -> None:
    told = tmp_path / "pids"
    async with connected(tmp_path, language="ruby") as client:
        arguments = {"code": RUBY_FAMILY.format(told=told)}
        async with asyncio.TaskGroup() as group:
            call = group.create_task(client.call_tool("code_exec_ruby", arguments))
            code, server, grandchild = await family(told)
            call.cancel()
        await until(lambda: not psutil.pid_exists(code) and not is_alive(grandchild))
        assert is_alive(server)


# -- Node ------------------------------------------------------------------------------------------


async def test_node_code_runs_with_a_package_of_the_index(tmp_path: Path, node: Path) -> None:
    """Installs a small package from the index; the tool is called as Heroku's reference has it."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "node").symlink_to(node)
    npm = node.parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    (binaries / "npm").symlink_to(npm)
    path = f"{binaries}:{os.environ['PATH']}"
    code = "import ms from 'ms'; console.log(await Promise.resolve(ms('1h')))"
    async with connected(tmp_path, within=INSTALL_BOUND_S, language="node", PATH=path) as client:
        arguments = {"code": code, "packages": ["ms@2.1.3"]}
        answer = await client.call_tool("code_exec_node", arguments)
    assert result_of(answer) == {"returncode": 0, "stdout": "3600000", "stderr": ""}
