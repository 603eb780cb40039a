"""Servers in one-off dynos of their own app, for clients as people have them.

The platform is emulated, everything else is real: the gateway, the agent that each dyno fetches,
the bundled servers from a slug, the SDK's client, and the heredoc of Heroku's own README.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tests.heroku_emulator import AppSpec
from tests.system.conftest import PLAIN
from tests.system.heroku import PATH, Site, deployed, slug_with, visiting
from tests.system.python_sdk import connected, text_of
from tests.system.talking import refusal, the_message

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.system.conftest import GatewayProcess

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.asyncio(loop_scope="module"),  # the platform lives in the fixture's loop
]

MODES = ("legacy", "2026-07-28")

needs_ruby = pytest.mark.skipif(shutil.which("ruby") is None, reason="no `ruby` on the PATH")

SEED_SERVER = '''
"""As in Heroku's template, on the SDK of today: user code inherits the protocol's stdin."""
import subprocess, sys
from mcp.server.mcpserver import MCPServer

server = MCPServer("code-exec-python", log_level="WARNING")

@server.tool()
def code_exec_python(code: str, packages: list[str] | None = None) -> dict:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=10)
    return {"returncode": done.returncode, "stdout": done.stdout.strip(), "stderr": done.stderr}

server.run("stdio")
'''

CODE = "import time; time.sleep(0.3); print(6 * 7)"

HEREDOC = r"""
{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"0.1.0","capabilities":{},"clientInfo":{"name":"test","version":"1.0.0"}}}

{"jsonrpc":"2.0","method":"notifications/initialized","params":{}}

{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"code_exec_python","arguments":{"code":"CODE"}}}
"""
"""The direct call of the reference's README, but for its code, which installs a package there."""

INITIALIZE, INITIALIZED, CALL = HEREDOC.replace("CODE", CODE).strip().split("\n\n")


SERVERS = ("mcp-python", "seed")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(
    tmp_path_factory: pytest.TempPathFactory, running: list[GatewayProcess]
) -> AsyncIterator[Site]:
    """Two bundled servers and one as in Heroku's template, in an app that we have not touched."""
    folder = tmp_path_factory.mktemp("site")
    files = {"greeting.txt": "from the slug", "seed_server.py": SEED_SERVER}
    app = AppSpec(
        processes={
            "mcp-python": "python -m mcp_servers.code_exec",
            "mcp-ruby": "python -m mcp_servers.code_exec ruby",
            "mcp-seed": "python seed_server.py",
            "web": "false",
        },
        slug=slug_with(folder, files, "mcp_servers"),
        config={"PATH": PATH, "COLOUR": "blue"},
    )
    servers = {
        "ruby": {"app": "tools", "process_type": "mcp-ruby", "era": "dual", "catalogue": False},
        "seed": {"app": "tools", "process_type": "mcp-seed", **PLAIN},
    }
    async with deployed(folder, running, {"tools": app}, servers=servers) as site:
        yield site


async def test_every_process_type_named_mcp_is_a_server(site: Site) -> None:
    """An entry of the servers file takes the place of the process type that it completes."""
    assert await site.registered() == dict.fromkeys(("mcp-python", "ruby", "seed"), "registered")


@pytest.mark.parametrize("mode", MODES)
async def test_python_runs_with_its_apps_config_vars_and_slug(site: Site, mode: str) -> None:
    code = (
        "import json, os, pathlib\n"
        "slug = pathlib.Path(os.environ['HOME'])\n"
        "said = {name: os.environ.get(name) for name in ('COLOUR', 'PATH', 'DYNO')}\n"
        "said['file'] = (slug / 'greeting.txt').read_text()\n"
        "said['ours'] = [name for name in os.environ if name.startswith('RENDEZVOUS')]\n"
        "print(json.dumps(said))"
    )
    async with connected(site.gateway, "mcp-python", mode=mode) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["code_exec_python"]
        result = await client.call_tool("code_exec_python", {"code": code})
        said = json.loads(json.loads(text_of(result))["stdout"])
        names = {dyno.name for dyno in site.platform.dynos_left()}
    assert said.pop("PATH").endswith(PATH)  # code_exec puts its packages before it
    dyno = said.pop("DYNO")
    assert dyno in names
    assert re.fullmatch(r"rendezvous\.\d+", dyno)
    assert said == {"COLOUR": "blue", "file": "from the slug", "ours": []}


@needs_ruby
@pytest.mark.parametrize("mode", MODES)
async def test_ruby_runs_with_its_apps_config_vars_and_slug(site: Site, mode: str) -> None:
    code = "puts [ENV['COLOUR'], File.read(File.join(ENV['HOME'], 'greeting.txt'))].join(', ')"
    async with connected(site.gateway, "ruby", mode=mode) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["code_exec_ruby"]
        result = json.loads(text_of(await client.call_tool("code_exec_ruby", {"code": code})))
    assert result == {"returncode": 0, "stdout": "blue, from the slug", "stderr": ""}


# -- the heredoc -----------------------------------------------------------------------------------


def printed(answer: Any) -> str:
    """What the code of a call has printed."""
    (content,) = answer["result"]["content"]
    said: str = json.loads(content["text"])["stdout"]
    return said


@pytest.mark.parametrize("server", SERVERS)
async def test_a_heredoc_sent_in_one_go_is_answered_though_nothing_follows_it(
    site: Site, server: str
) -> None:
    """Piped into the seed's server the answer is lost: the pipe ends while the code runs."""
    async with visiting(site, server) as visitor:
        await visitor.open(INITIALIZE)
        async with asyncio.TaskGroup() as frames:
            initialized = frames.create_task(visitor.send(INITIALIZED))
            call = frames.create_task(visitor.send(CALL))
        assert initialized.result() is None
        assert printed(call.result()) == "42"
        await visitor.leave()


@pytest.mark.parametrize("server", SERVERS)
async def test_a_call_is_answered_by_the_server_though_its_client_has_hung_up(
    site: Site, server: str, tmp_path: Path
) -> None:
    """That is what the end of a pipe comes to over HTTP; a client may come back for the answer."""
    begun, gate = tmp_path / "begun", tmp_path / "gate"
    waiting = (
        "import os, pathlib, time\\n"
        f"pathlib.Path('{begun}').touch()\\n"
        f"while not os.path.exists('{gate}'): time.sleep(0.02)"
    )
    frame = CALL.replace(CODE, waiting)
    assert frame != CALL
    async with visiting(site, server) as visitor:
        await visitor.open(INITIALIZE)
        await visitor.send(INITIALIZED)
        async with asyncio.TaskGroup() as frames:
            call = frames.create_task(visitor.send(frame))
            await site.until(begun.exists, "the code runs")
            call.cancel()
    gate.touch()

    def outcomes() -> list[str]:
        calls = [
            record
            for record in site.gateway.story(visitor.session)
            if {"tool", "outcome"} <= record.keys()
        ]
        return [record["outcome"] for record in calls]

    await site.until(outcomes, "the call is over")
    assert outcomes() == ["ok"]


@pytest.mark.parametrize("server", SERVERS)
async def test_a_call_that_is_followed_by_delete_at_once_gets_an_answer_or_an_error(
    site: Site, server: str
) -> None:
    async with visiting(site, server) as visitor:
        await visitor.open(INITIALIZE)
        await visitor.send(INITIALIZED)
        async with visitor.posting(CALL) as call:
            await visitor.leave()
            answer = await the_message(call)
    assert answer["id"] == 2
    assert "result" in answer or refusal(answer) == (-32603, "session_ended", 2)
