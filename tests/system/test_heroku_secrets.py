"""What a server in a dyno can see: its own app's config vars, and none of the gateway's secrets.

The server is tests/fixtures/snoop.py, which looks wherever it can. Dynos of the emulator share this
machine with the gateway, as no dyno does: what is found in the gateway's own process shows that the
looking works, and is no leak.
"""

from __future__ import annotations

import json
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes.valkey import ValkeyServer
from tests.heroku_emulator import AppSpec
from tests.system.conftest import PLAIN
from tests.system.heroku import OPENING, PATH, SNOOP, Gateway, Site, deployed, visiting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.system.conftest import GatewayProcess

pytestmark = pytest.mark.timeout(120)

SECRETS = ("GATEWAY_SECRET", "API_KEY", "ADMIN_KEY", "HEROKU_API_KEY", "REDIS_URL")

REFUSED = (
    "no dyno could be had for own: own is the gateway's own app, or holds its secrets: put the "
    "server into an app of its own, or set ALLOW_OWN_APP"
)


@asynccontextmanager
async def two_apps(
    folder: Path, running: list[GatewayProcess], **settings: str
) -> AsyncIterator[Site]:
    """A gateway whose own app holds a server, too, and an app that is somebody else's."""
    processes = {"mcp-snoop": SNOOP}
    apps = {
        "own": AppSpec(processes, config={"PATH": PATH, "COLOUR": "blue"}),
        "foreign": AppSpec(processes, config={"PATH": PATH, "HEROKU_API_KEY": "of the app itself"}),
    }
    servers = {app: {"app": app, "process_type": "mcp-snoop", **PLAIN} for app in apps}
    password = secrets.token_hex(16)
    with ValkeyServer(requirepass=password) as engine:
        settings["REDIS_URL"] = f"redis://:{password}@127.0.0.1:{engine.port}/0"
        async with deployed(folder, running, apps, servers=servers, settings=settings) as site:
            yield site


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start each gateway with its secrets in its environment, as a platform does."""
    monkeypatch.setattr(Gateway, "forked", False)


def confess(site: Site) -> dict[str, str]:
    """Let the gateway's app hold what a deployed one does, a copy of a key under another name too.

    Returns:
        The secrets by name.
    """
    held = site.gateway.variables(*SECRETS)
    held["OLD_KEY"] = held["HEROKU_API_KEY"]
    site.platform.set_config("own", held)
    return held


async def looked(site: Site, server: str) -> dict[str, Any]:
    """Return what a server sees from its dyno."""
    async with visiting(site, server) as visitor:
        await visitor.open()
        answer = await visitor.call(1, "look")
        await visitor.leave()
    (content,) = answer["result"]["content"]
    seen: dict[str, Any] = json.loads(content["text"])
    return seen


@pytest.mark.parametrize("known_by", ["name", "content"])
async def test_no_dyno_is_launched_into_the_gateways_own_app(
    tmp_path: Path, running: list[GatewayProcess], known_by: str
) -> None:
    settings = {"HEROKU_APP_NAME": "own"} if known_by == "name" else {}
    async with two_apps(tmp_path, running, **settings) as site:
        if known_by == "content":
            confess(site)
        async with visiting(site, "own") as visitor:
            error = (await visitor.send(OPENING))["error"]
        assert (error["message"], error["data"]["reason"]) == (REFUSED, "launch_failed")
        assert site.platform.ledger == []
        assert "create" not in {seen.operation for seen in site.platform.requests}


async def test_a_server_in_the_gateways_own_app_finds_none_of_its_secrets(
    tmp_path: Path, running: list[GatewayProcess]
) -> None:
    async with two_apps(tmp_path, running, ALLOW_OWN_APP="true") as site:
        held = confess(site)
        seen = await looked(site, "own")
        own = f"/proc/{site.gateway.process.pid}/environ"
        found = {
            (name, path)
            for name, value in held.items()
            for path, content in seen["read"].items()
            if value in content
        }
        assert {name for name, path in found if path == own} == set(held)
        assert {(name, path) for name, path in found if path != own} == set()
        assert not held.keys() & seen["environment"].keys()
        assert not [name for name in seen["environment"] if name.startswith("RENDEZVOUS")]
        assert not set(held.values()) & set(seen["environment"].values())
        assert seen["environment"]["COLOUR"] == "blue"


async def test_a_foreign_apps_own_platform_key_reaches_its_server(
    tmp_path: Path, running: list[GatewayProcess]
) -> None:
    async with two_apps(tmp_path, running, HEROKU_APP_NAME="own") as site:
        confess(site)
        seen = await looked(site, "foreign")
    assert seen["environment"]["HEROKU_API_KEY"] == "of the app itself"
