"""The vendor's own programs on the Heroku path: its MCP server in a dyno, its command line by hand.

Both are what npm has, unmodified. The server (54 MB) needs the command line (394 MB): these tests
run where that is installed, or with `make heroku-cli`, which installs it.
"""

from __future__ import annotations

import secrets
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.heroku_emulator import AppSpec
from tests.system.conftest import PLAIN, is_alive
from tests.system.heroku import PATH, PUPPET, Site, deployed
from tests.system.heroku_cli import COMMAND_BOUND, PROJECT, Cli, installed, marks
from tests.system.npm import install
from tests.system.python_sdk import connected, text_of
from tests.system.test_heroku_path import adopted, printed_line

if TYPE_CHECKING:
    from tests.system.conftest import GatewayProcess

__all__ = ["installed"]  # a fixture

pytestmark = marks

VENDOR = Path(__file__).resolve().parent / "node_heroku"
SERVER = VENDOR / "node_modules" / "@heroku" / "mcp-server" / "bin" / "heroku-mcp-server.mjs"

TOOLS = 33
"""Of @heroku/mcp-server 1.2.0."""

TIMEOUT_MS = str(int(COMMAND_BOUND * 1000))
"""What the server gives its command line; its own default is 15 s."""

HEROKU = """\
#!/bin/sh
if [ "$1" = --repl ]; then shift; set -- repl "$@"; fi
exec node {run} "$@"
"""
"""The command line, told in its own words: what 1.2.0 of the server calls `--repl` is a command of
its present versions. Without that the server starts it again and again, and answers nothing."""


@pytest.fixture(scope="module")
def server(node: Path) -> None:
    """Install the vendor's server."""
    install(node, VENDOR)


@pytest.fixture
def stack(node: Path, installed: None, tmp_path: Path) -> Path:
    """The programs of a dyno's stack: with `heroku`, and without `npx`, which would be preferred.

    With it the server would fetch the command line anew from npm at each start.
    """
    folder = tmp_path / "stack"
    folder.mkdir()
    programs = {"node": str(node), "python3": sys.executable}
    programs |= {name: shutil.which(name) or name for name in ("bash", "sh", "env")}
    for name, program in programs.items():
        (folder / name).symlink_to(program)
    cli = folder / "heroku"
    run = PROJECT / "node_modules" / "heroku" / "bin" / "run.js"
    cli.write_text(HEROKU.format(run=run), encoding="utf-8")
    cli.chmod(0o755)
    return folder


def of_the_dyno(site: Site) -> list[psutil.Process]:
    """The processes of the one dyno there is: all that its agent has started, and the agent."""
    launch = site.running().command.rpartition(" ")[2]
    agents = [
        process
        for process in psutil.process_iter(["cmdline"])
        if launch in (process.info["cmdline"] or [])
    ]
    return [each for agent in agents for each in (agent, *agent.children(recursive=True))]


async def test_the_vendors_mcp_server_answers_from_the_platform_and_leaves_nothing(
    tmp_path: Path, running: list[GatewayProcess], server: None, stack: Path
) -> None:
    """It ignores the end of its stdin, and has a command line of its own running beside it."""
    app = AppSpec({"mcp-heroku": f"exec node {SERVER}"}, config={"PATH": str(stack)})
    key = f"HRKU-{secrets.token_hex(16)}"
    entry = {
        "app": "tools",
        "process_type": "mcp-heroku",
        # An operator's deliberate gift: a config var with the gateway's own key is no server's.
        "env": {"HEROKU_API_KEY": key, "MCP_SERVER_REQUEST_TIMEOUT": TIMEOUT_MS},
        **PLAIN,
    }
    async with deployed(
        tmp_path, running, {"tools": app}, servers={"heroku": entry}, api_key=key
    ) as site:
        quiet = {"HEROKU_SKIP_NEW_VERSION_CHECK": "true", "DISABLE_TELEMETRY": "true"}
        site.platform.set_config("tools", {"HEROKU_HOST": site.platform.url, **quiet})
        await site.until_told("registered", server="heroku", release="v2")
        async with connected(site.gateway, "heroku") as client:
            assert len((await client.list_tools()).tools) == TOOLS
            assert "tools" in text_of(await client.call_tool("list_apps", {"all": True}))
            shown = text_of(await client.call_tool("ps_list", {"app": "tools"}))
            dyno = site.running()
            assert dyno.name in shown
            processes = of_the_dyno(site)
            lines = [" ".join(process.cmdline()) for process in processes]
            assert [line for line in lines if line.endswith(SERVER.name)], lines
            assert [line for line in lines if line.endswith("run.js repl")], lines
        await site.until_gone()
        assert [process for process in processes if is_alive(process)] == []


async def test_the_vendors_command_line_runs_the_line_that_bootstrap_prints(
    tmp_path: Path, running: list[GatewayProcess], node: Path, installed: None
) -> None:
    app = AppSpec({"mcp-puppet": PUPPET}, config={"PATH": PATH})
    entry = {"app": "tools", "process_type": "mcp-puppet", **PLAIN}
    async with deployed(tmp_path, running, {"tools": app}, servers={"puppet": entry}) as site:
        heroku, *words = await printed_line(site, "puppet")
        assert heroku == "heroku"
        said = await Cli(node, tmp_path, site.platform)(*words)
        assert said.status == 0, said
        site.by_hand += 1
        await adopted(site)
