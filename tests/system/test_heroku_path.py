"""Deploying registers a server; whatever becomes of its dyno, its client is told.

The platform is emulated; the gateway, the agents and the servers are real processes.
"""

from __future__ import annotations

import asyncio
import os
import shlex
from typing import TYPE_CHECKING

import aiohttp
import pytest

from tests.heroku_emulator import AppSpec, Options
from tests.system.conftest import PLAIN, REPOSITORY
from tests.system.heroku import (
    OPENING,
    PATH,
    PUPPET,
    PYTHON,
    Site,
    Visitor,
    deployed,
    slug_with,
    visiting,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.system.conftest import GatewayProcess

pytestmark = pytest.mark.timeout(120)

NEVER = "86400"
"""HEROKU_REFRESH_S of a gateway that looks when it is told to."""

LISTING = '''
"""Lists tools of the names it is given; speaks the era of handshakes only."""
import json, sys

for line in sys.stdin:
    message = json.loads(line)
    method, request = message.get("method"), message.get("id")
    tools = [{"name": name, "inputSchema": {"type": "object"}} for name in sys.argv[1:]]
    answers = {"tools/list": {"tools": tools}, "tools/call": {"content": []}}
    answers["initialize"] = {
        "protocolVersion": "2025-11-25",
        "capabilities": {"tools": {"listChanged": True}},
        "serverInfo": {"name": "listing", "version": "1"},
    }
    said = {"jsonrpc": "2.0", "id": request}
    if method in answers:
        said["result"] = answers[method]
    else:
        said["error"] = {"code": -32601, "message": "Method not found"}
    if request is not None:
        print(json.dumps(said), flush=True)
'''

LEGACY = {"app": "tools", "process_type": "mcp-listing", "era": "legacy"}


def listing(*names: str) -> dict[str, str]:
    """A Procfile whose server lists these tools."""
    return {"mcp-listing": f"exec python listing.py {' '.join(names)}"}


async def tools(visitor: Visitor) -> list[str]:
    answer = await visitor.send({"jsonrpc": "2.0", "id": "list", "method": "tools/list"})
    return [tool["name"] for tool in answer["result"]["tools"]]


# -- registration ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interval", "loss"), [(NEVER, 0.0), ("5", 1.0)], ids=["by webhook", "by the interval"]
)
async def test_a_process_type_that_is_deployed_is_a_server(
    tmp_path: Path, running: list[GatewayProcess], interval: str, loss: float
) -> None:
    app = AppSpec({"web": "true"}, config={"PATH": PATH})
    options = Options(stop_grace=5.0, webhook_loss=loss)
    settings = {"HEROKU_REFRESH_S": interval}
    async with deployed(
        tmp_path, running, {"tools": app}, settings=settings, options=options
    ) as site:
        assert await site.registered() == {}
        site.platform.deploy("tools", {"web": "true", "mcp-new": PUPPET})
        await site.until_told("registered", server="mcp-new", app="tools", release="v2")
        async with visiting(site, "mcp-new") as visitor:
            await visitor.open()
            assert "result" in await visitor.call(1, "state")


async def test_a_release_is_looked_at_anew_and_clients_are_told_of_other_tools(
    tmp_path: Path, running: list[GatewayProcess]
) -> None:
    slug = slug_with(tmp_path, {"listing.py": LISTING})
    app = AppSpec(listing("one"), slug, {"PATH": PATH})
    async with deployed(
        tmp_path,
        running,
        {"tools": app},
        servers={"listing": LEGACY},
        settings={"HEROKU_REFRESH_S": NEVER},
    ) as site:
        await site.until_told("learned", server="listing")
        async with visiting(site, "listing") as visitor:
            await visitor.open()
            assert await tools(visitor) == ["one"]
            async with visitor.listening() as stream:
                site.platform.deploy("tools", listing("one", "two"))
                (event,) = await stream.take(1)
            assert event.message["method"] == "notifications/tools/list_changed"
            assert await tools(visitor) == ["one", "two"]


async def test_a_process_type_that_is_removed_takes_no_new_session_and_keeps_those_that_live(
    tmp_path: Path, running: list[GatewayProcess]
) -> None:
    app = AppSpec({"mcp-gone": PUPPET}, config={"PATH": PATH})
    entry = {"app": "tools", "process_type": "mcp-gone", **PLAIN}
    async with deployed(
        tmp_path,
        running,
        {"tools": app},
        servers={"gone": entry},
        settings={"HEROKU_REFRESH_S": NEVER},
    ) as site:
        async with visiting(site, "gone") as lives, visiting(site, "gone") as late:
            await lives.open()
            site.platform.deploy("tools", {"web": "true"})
            await site.until_told("disconnected", server="gone")
            async with late.posting(OPENING) as response:
                assert response.status == 404
                assert (await response.json())["error"]["data"]["reason"] == "unknown_server"
            assert "result" in await lives.call(1, "state")
            assert await site.registered() == {"gone": "disconnected"}
            await lives.leave()
        await site.until_gone()


# -- by hand ---------------------------------------------------------------------------------------


async def printed_line(site: Site, server: str) -> list[str]:
    """Return the words of the line that `gateway bootstrap` prints."""
    process = await asyncio.create_subprocess_exec(
        PYTHON / "python",
        *("-m", "gateway", "bootstrap", server),
        cwd=REPOSITORY,
        env={
            "PATH": os.environ["PATH"],
            "GATEWAY_URL": site.gateway.origin,
            "ADMIN_KEY": site.admin_key,
        },
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    (line,) = out.decode().splitlines()
    return shlex.split(line)


async def pasted(site: Site, words: list[str]) -> None:
    """Do what the vendor's command line does with the words behind `heroku`."""
    command, app_flag, app, size_flag, size, env_flag, env, dashes, line = words
    assert (command, app_flag, size_flag, env_flag, dashes) == (
        "run:detached",
        "--app",
        "--size",
        "--env",
        "--",
    )
    body = {
        "command": line,
        "env": dict(entry.split("=", 1) for entry in env.split(";")),
        "size": size,
        "attach": False,
    }
    headers = {
        "Accept": "application/vnd.heroku+json; version=3",
        "Authorization": f"Bearer {site.platform.api_key}",
    }
    async with (
        aiohttp.ClientSession(headers=headers, raise_for_status=True) as http,
        http.post(f"{site.platform.url}/apps/{app}/dynos", json=body) as response,
    ):
        assert response.status == 201
    site.by_hand += 1


async def test_the_next_session_adopts_the_dyno_of_a_pasted_line(
    tmp_path: Path, running: list[GatewayProcess]
) -> None:
    app = AppSpec({"mcp-puppet": PUPPET}, config={"PATH": PATH})
    entry = {"app": "tools", "process_type": "mcp-puppet", **PLAIN}
    async with deployed(tmp_path, running, {"tools": app}, servers={"puppet": entry}) as site:
        heroku, *words = await printed_line(site, "puppet")
        assert heroku == "heroku"
        await pasted(site, words)
        await adopted(site)


async def adopted(site: Site) -> None:
    """Assert that the one dyno there is becomes the next session's, and leaves with it."""
    await site.until_told("dyno_parked", server="puppet")
    dyno = site.running()
    async with visiting(site, "puppet") as visitor:
        await visitor.open()
        assert "result" in await visitor.call(1, "state")
        assert site.running() is dyno
        assert "adopted" in [record["event"] for record in site.gateway.story(visitor.session)]
        await visitor.leave()
    await site.until_gone()
    assert site.platform.ledger == [dyno]
