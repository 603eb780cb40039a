"""The clients as a person runs them: a process, its stdout, its stderr and its exit code.

Each claim about an answer is made over stdio and over Streamable HTTP, against a server with all
revisions and against one from before 2026.

What a process adds is claimed of processes: its bytes, its exit codes, its signals. All else is
claimed of the same `main` within this process, for the import of the SDK takes a second of each.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import io
import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

REPOSITORY = Path(__file__).resolve().parents[2]
FIXTURE = REPOSITORY / "tests" / "fixtures" / "clients_stdio_server.py"
FIXTURE_COMMAND = shlex.join([sys.executable, str(FIXTURE)])

RUN_BOUND = 25.0
"""Seconds for one run of a client: two interpreters and their imports on a busy machine."""

STOP_BOUND = 10.0
"""Seconds from SIGTERM to the end of the HTTP fixture, which gives its streams one."""

KEY = secrets.token_urlsafe(16)


@dataclass(frozen=True)
class Ran:
    """How a client ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Client:
    """A client and the server it is pointed at."""

    module: str
    options: tuple[str, ...] = ()
    env: Mapping[str, str] | None = None

    @property
    def _environment(self) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if k not in {"API_KEY", "MCP_SERVER_URL"}}
        return {**inherited, "PYTHONIOENCODING": "utf-8", **(self.env or {})}

    async def start(
        self, *args: str, stdout: int = asyncio.subprocess.PIPE
    ) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", self.module, "mcp", *args, *self.options),
            cwd=REPOSITORY,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=stdout,
            stderr=asyncio.subprocess.PIPE,
        )

    async def run_alone(self, *args: str) -> Ran:
        """Run it as a process."""
        return await finished(await self.start(*args))

    async def run(self, *args: str) -> Ran:
        """Run it within this process, one at a time: environment and streams are everybody's."""
        return await asyncio.to_thread(self._run, args)

    def _run(self, args: tuple[str, ...]) -> Ran:
        main = importlib.import_module(self.module).main
        bound = ("--timeout", str(RUN_BOUND))
        with (
            mock.patch.dict(os.environ, self._environment, clear=True),
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as err,
        ):
            code = main(["mcp", *bound, *args, *self.options])
        return Ran(code, out.getvalue(), err.getvalue())


def calling(name: str, /, **arguments: Any) -> tuple[str, ...]:
    """The words that call a tool."""
    return ("call_tool", "--args", json.dumps({"name": name, "arguments": arguments}))


async def finished(process: asyncio.subprocess.Process) -> Ran:
    try:
        async with asyncio.timeout(RUN_BOUND):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Ran(process.returncode, (out or b"").decode(), err.decode())


def http_client(url: str, key: str | None = KEY) -> Client:
    env = {"MCP_SERVER_URL": url} | ({} if key is None else {"API_KEY": key})
    return Client("clients.streamable_http", env=env)


def stdio_client(*options: str) -> Client:
    return Client(
        "clients.stdio", ("--command", shlex.join([sys.executable, str(FIXTURE), *options]))
    )


def serve(*options: str) -> Iterator[str]:
    """The base URL of the fixture over HTTP; its port is open before it starts, so no wait."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        descriptor = listening.fileno()
        process = subprocess.Popen(
            [sys.executable, FIXTURE, "--http", str(descriptor), *options],
            pass_fds=[descriptor],
            env={**os.environ, "FIXTURE_KEY": KEY},
            stderr=subprocess.DEVNULL,
        )
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        yield url
        process.terminate()
        process.wait(STOP_BOUND)
    finally:
        process.kill()
        process.wait(STOP_BOUND)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    yield from serve()


@pytest.fixture(scope="module")
def legacy_url() -> Iterator[str]:
    yield from serve("--legacy")


@pytest.fixture(params=["stdio", "http", "http-legacy"])
def client(request: pytest.FixtureRequest) -> Client:
    """A client of a server that answers."""
    if request.param == "stdio":
        return stdio_client()
    return http_client(request.getfixturevalue("url" if request.param == "http" else "legacy_url"))


@pytest.fixture(params=["stdio", "http"])
def program(request: pytest.FixtureRequest) -> Client:
    """Each of the two programs, for what is claimed of processes."""
    return (
        stdio_client() if request.param == "stdio" else http_client(request.getfixturevalue("url"))
    )


# -- answers -----------------------------------------------------------------------------------


async def test_tools_are_listed_as_one_json_object(client: Client) -> None:
    ran = await client.run("list_tools")
    assert (ran.code, ran.err) == (0, "")
    assert list(ran.json) == ["tools"]
    assert {"add", "echo", "count"} <= {tool["name"] for tool in ran.json["tools"]}
    assert ran.json["tools"][0]["inputSchema"]["type"] == "object"


async def test_a_tool_is_called(client: Client) -> None:
    ran = await client.run(*calling("add", a=1, b=2))
    assert (ran.code, ran.err) == (0, "")
    assert ran.json == {
        "content": [{"type": "text", "text": "3"}],
        "structuredContent": {"result": 3},
        "isError": False,
    }


async def test_text_of_any_kind_survives(program: Client) -> None:
    text = 'ünï "quoted"\n\u2028 😀 \x00'
    ran = await program.run_alone(*calling("echo", text=text))
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["content"] == [{"type": "text", "text": text}]


async def test_a_tool_that_fails_prints_its_result_and_exits_1(program: Client) -> None:
    ran = await program.run_alone(*calling("fail", text="it broke"))
    assert ran.code == 1
    assert ran.json["isError"] is True
    assert "the tool 'fail' failed" in ran.err


async def test_an_unknown_tool_names_the_verb_that_lists_them(client: Client) -> None:
    ran = await client.run(*calling("nope"))
    assert ran.code == 1
    assert "nope" in ran.err
    assert "mcp list_tools" in ran.err
    assert "Traceback" not in ran.err


async def test_progress_goes_to_stderr_line_by_line(client: Client) -> None:
    ran = await client.run(*calling("count", to=3))
    assert ran.json["content"][0]["text"] == "counted"
    assert ran.err.splitlines() == [f"progress {n}/3 step {n}" for n in (1, 2, 3)]


async def test_resources_and_prompts_are_read(url: str) -> None:
    """The remaining verbs, in one test and of one server: none has anything of its own."""
    client = http_client(url)
    listed = await client.run("list_resources")
    templates = await client.run("list_resource_templates")
    read = await client.run("read_resource", "--args", '{"uri": "fixture://greeting"}')
    prompts = await client.run("list_prompts")
    prompt = await client.run(
        "get_prompt", "--args", '{"name": "ask", "arguments": {"topic": "dynos"}}'
    )
    assert listed.json["resources"][0]["uri"] == "fixture://greeting"
    assert templates.json["resourceTemplates"][0]["uriTemplate"].endswith("/{name}")
    assert read.json["contents"][0]["text"] == "grüezi"
    assert prompts.json["prompts"][0]["name"] == "ask"
    assert prompt.json["messages"][0]["content"]["text"] == "Tell me about dynos."


async def test_an_unknown_resource_names_the_verb_that_lists_them(client: Client) -> None:
    ran = await client.run("read_resource", "--args", '{"uri": "fixture://nope"}')
    assert (ran.code, ran.out) == (1, "")
    assert "mcp list_resources" in ran.err


@pytest.mark.parametrize("protocol", ["auto", "legacy", "2026-07-28"])
async def test_each_protocol_is_spoken(url: str, protocol: str) -> None:
    for client in (stdio_client(), http_client(url)):
        ran = await client.run(*calling("add", a=1, b=1), "--protocol", protocol)
        assert (ran.code, ran.json["structuredContent"]) == (0, {"result": 2})


async def test_raw_prints_the_envelope_too(url: str) -> None:
    ran = await http_client(url).run("list_tools", "--raw")
    assert {"tools", "resultType", "ttlMs", "cacheScope"} <= set(ran.json)


async def test_a_full_endpoint_and_a_trailing_slash_are_accepted(url: str) -> None:
    for form in (f"{url}/", f"{url}/mcp"):
        assert (await http_client(form).run("list_prompts")).code == 0


async def test_all_pages_of_a_list_are_printed() -> None:
    ran = await stdio_client("--pages", "3").run("list_tools")
    assert [tool["name"] for tool in ran.json["tools"]] == ["tool-1", "tool-2", "tool-3"]


async def test_a_list_without_end_is_a_failure_without_output() -> None:
    ran = await stdio_client("--pages", "0").run("list_tools")
    assert (ran.code, ran.out) == (1, "")
    assert "does not end" in ran.err
    assert "Traceback" not in ran.err


async def test_the_server_does_not_get_the_key_but_gets_the_rest() -> None:
    client = stdio_client()
    client = Client(client.module, client.options, {"API_KEY": "secret", "FLAVOUR": "sweet"})
    for name, value in (("API_KEY", "-"), ("FLAVOUR", "sweet")):
        ran = await client.run(*calling("environment", name=name))
        assert ran.json["content"][0]["text"] == value


# -- failures ----------------------------------------------------------------------------------


def assert_one_sentence(ran: Ran, *said: str) -> None:
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.count("\n") == 1
    assert "Traceback" not in ran.err
    for words in said:
        assert words in ran.err


@pytest.mark.parametrize("protocol", ["auto", "legacy", "2026-07-28"])
async def test_a_wrong_key_is_explained_and_not_printed(url: str, protocol: str) -> None:
    ran = await http_client(url, "wr0ng").run("list_tools", "--protocol", protocol)
    assert_one_sentence(ran, "HTTP 401", "API_KEY is not a key of this server")
    assert "wr0ng" not in ran.err


async def test_a_missing_key_is_explained(url: str) -> None:
    ran = await http_client(url, None).run("list_tools")
    assert_one_sentence(ran, "HTTP 401", "API_KEY is not set")


async def test_a_wrong_path_is_explained(url: str) -> None:
    ran = await http_client(url).run("list_tools", "--server", "nope")
    assert_one_sentence(ran, "HTTP 404", "/servers/nope/mcp", "--server")


async def test_a_refused_connection_is_explained() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: refused, and nobody takes it
        ran = await http_client(f"http://127.0.0.1:{unused.getsockname()[1]}").run("list_tools")
    assert_one_sentence(ran, "cannot connect", "MCP_SERVER_URL")


async def test_a_revision_the_server_does_not_speak_is_explained(legacy_url: str) -> None:
    ran = await http_client(legacy_url).run("list_tools", "--protocol", "2026-07-28")
    assert_one_sentence(ran, "HTTP 400", "--protocol auto")


async def test_a_server_that_cannot_be_started_is_explained() -> None:
    ran = await Client("clients.stdio", ("--command", "/nonexistent/server")).run("list_tools")
    assert_one_sentence(ran, "cannot start '/nonexistent/server'", "--command")


async def test_a_server_that_dies_leaves_its_last_words() -> None:
    ran = await stdio_client().run(*calling("die"))
    assert_one_sentence(ran, "closed the connection", "fixture: I was told to die")


async def test_a_server_that_says_nothing_is_given_up() -> None:
    silent = shlex.join([sys.executable, "-c", "import sys; sys.stdin.read()"])
    ran = await Client("clients.stdio", ("--command", silent)).run("list_tools", "--timeout", "1")
    assert_one_sentence(ran, "within 1 s", "--timeout")


async def test_bad_json_is_a_usage_error_with_its_position(url: str) -> None:
    ran = await http_client(url).run_alone("call_tool", "--args", '{"name":}')
    assert (ran.code, ran.out) == (2, "")
    assert "line 1 column 9" in ran.err


async def test_ctrl_c_exits_130_quietly(program: Client) -> None:
    process = await program.start("call_tool", "--args", '{"name": "hang"}')
    assert process.stderr is not None
    async with asyncio.timeout(RUN_BOUND):
        first = await process.stderr.readline()
    assert first == b"progress 1 hanging\n"
    process.send_signal(signal.SIGINT)
    assert await finished(process) == Ran(130, "", "")


async def test_a_reader_that_leaves_causes_no_trace() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        process = await stdio_client().start("list_tools", stdout=writing)
    finally:
        os.close(writing)
    ran = await finished(process)
    assert (ran.code, ran.err) == (1, "")


@pytest.mark.parametrize("module", ["clients.streamable_http", "clients.stdio"])
async def test_help_does_not_import_the_sdk(module: str) -> None:
    """Half a second of imports before a help text is what makes people stop asking for it."""
    code = f"import sys, {module} as m\ntry: m.main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert 'mcp' not in sys.modules"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code),
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    ran = await finished(process)
    assert (ran.code, ran.err) == (0, "")
    assert "call_tool --args '{" in ran.out
