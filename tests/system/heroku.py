"""The Heroku path as its users meet it: an emulated platform in this process, a real gateway on it.

A dyno is a real process tree of the emulator's, in a copy of its app's slug, and it fetches the
agent from the gateway as any dyno does. Whatever a test did, in the end the platform has had no
request that breaks its published schema, no dyno without an end of its own, and runs none.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

from tests.heroku_emulator import Emulator, Options
from tests.system.conftest import REPOSITORY, GatewayProcess, watched
from tests.system.talking import BOUND, Stream, http_for, the_message

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from tests.heroku_emulator import AppSpec, Dyno

PYTHON = Path(sys.executable).parent
PATH = f"{PYTHON}:/usr/bin:/bin"
"""Of a dyno whose stack has python, ruby and their packages."""

PUPPET = f"exec python {REPOSITORY / 'tests' / 'fixtures' / 'puppet.py'}"
SNOOP = f"exec python -I {REPOSITORY / 'tests' / 'fixtures' / 'snoop.py'}"

PATIENCE_S = 15.0
"""Seconds for what is due at once."""


class Gateway(GatewayProcess):
    """A gateway that tells its dynos where it is."""

    def variables(self, *names: str) -> dict[str, str]:
        """Return some of its environment."""
        environment = self._environment()
        return {name: environment[name] for name in names}

    def _environment(self) -> dict[str, str]:
        return {"GATEWAY_URL": self.origin, **super()._environment()}


@dataclass(slots=True)
class Site:
    """A deployment.

    Attributes:
        admin_key: of the gateway's operators.
        by_hand: how many dynos an operator has started, without a time to live.
    """

    platform: Emulator
    gateway: Gateway
    admin_key: str
    by_hand: int = 0

    async def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return what the operators' API says; POST if there is a body."""
        url = f"{self.gateway.origin}/admin/v1/{path}"
        headers = {"Authorization": f"Bearer {self.admin_key}"}
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        async with (
            aiohttp.ClientSession(headers=headers, timeout=timeout, raise_for_status=True) as http,
            http.request("GET" if body is None else "POST", url, json=body or None) as response,
        ):
            return await response.json()

    async def registered(self) -> dict[str, str]:
        """Return the status of every server that is known, by name."""
        return {server["name"]: server["status"] for server in await self.ask("servers")}

    async def until(self, condition: Callable[[], Any], what: str) -> None:
        """Wait for a plain or async condition; fail with the gateway's log."""
        await self.gateway.until(condition, what, within=PATIENCE_S)

    async def until_gone(self) -> None:
        """Wait until the platform runs no dyno."""
        await self.until(lambda: not self.platform.dynos_left(), "every dyno is gone")

    def subscriptions(self) -> int:
        """Return how many apps' webhooks the gateway has subscribed to."""
        seen = [(seen.operation, seen.status) for seen in self.platform.requests]
        return seen.count(("add-webhook", 201))

    def running(self) -> Dyno:
        """Return the only dyno that there is."""
        (dyno,) = self.platform.dynos_left()
        return dyno

    async def until_told(self, event: str, **values: Any) -> dict[str, Any]:
        """Wait for a line of the gateway's log; return the first one."""

        def found() -> list[dict[str, Any]]:
            told = self.events(event)
            return [record for record in told if values.items() <= record.items()]

        await self.until(found, f"{event} {values} is logged")
        return found()[0]

    def events(self, event: str) -> list[dict[str, Any]]:
        """Return the lines of the gateway's log about one kind of event."""
        return [record for record in self.gateway.records() if record.get("event") == event]

    def check(self) -> None:
        """Assert what holds after every test."""
        platform = self.platform
        assert platform.dynos_left() == []
        assert platform.violations == []
        asked = [seen.body for seen in platform.requests if seen.operation == "create"]
        creates = [body for body in asked if body is not None]  # others met a fault unread
        endless = [body for body in creates if not 0 < body.get("time_to_live", 0) <= 86_400]
        assert len(endless) == self.by_hand, endless


OPENING = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "visitor", "version": "1"},
    },
}


def calling(request: int, tool: str, **arguments: Any) -> dict[str, Any]:
    """The frame of a call."""
    params = {"name": tool, "arguments": arguments}
    return {"jsonrpc": "2.0", "id": request, "method": "tools/call", "params": params}


class Visitor:
    """One session with one server over raw HTTP: nothing is retried, nothing done by itself."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self._http = http
        self._url = url
        self.session = ""

    def posting(self, frame: str | Mapping[str, Any]) -> Any:
        """The response to a frame; an async context manager."""
        body = frame if isinstance(frame, str) else json.dumps(frame)
        headers = {"Content-Type": "application/json"}
        if self.session:
            headers["Mcp-Session-Id"] = self.session
        return self._http.post(self._url, data=body, headers=headers)

    async def send(self, frame: str | Mapping[str, Any]) -> Any:
        """Return the message that a frame is answered by, whatever its status; None if by none."""
        async with self.posting(frame) as response:
            self.session = response.headers.get("Mcp-Session-Id", self.session)
            return None if response.status == 202 else await the_message(response)

    async def open(self, frame: str | Mapping[str, Any] = OPENING) -> None:
        """Send `initialize`; it has to succeed."""
        answer = await self.send(frame)
        assert "result" in answer, answer

    async def call(self, request: int, tool: str, **arguments: Any) -> Any:
        """Return the response message of a call that wants no progress."""
        return await self.send(calling(request, tool, **arguments))

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Stream]:
        """Open the GET stream."""
        headers = {"Mcp-Session-Id": self.session, "Accept": "text/event-stream"}
        async with self._http.get(self._url, headers=headers) as response:
            assert response.status == 200, await response.text()
            yield Stream(response)

    async def leave(self) -> None:
        """End the session."""
        headers = {"Mcp-Session-Id": self.session}
        async with self._http.delete(self._url, headers=headers) as response:
            assert response.status == 204, await response.text()


@asynccontextmanager
async def visiting(site: Site, server: str) -> AsyncIterator[Visitor]:
    """Connect to a server, without a word yet; what is said is bounded as a whole."""
    async with asyncio.timeout(BOUND), http_for(site.gateway) as http:
        yield Visitor(http, site.gateway.url(server))


@asynccontextmanager
async def deployed(
    folder: Path,
    running: list[GatewayProcess],
    apps: Mapping[str, AppSpec],
    *,
    servers: Mapping[str, Mapping[str, Any]] | None = None,
    settings: Mapping[str, str] | None = None,
    options: Options | None = None,
    api_key: str | None = None,
) -> AsyncIterator[Site]:
    """Set up a platform with these apps, and a gateway that discovers all of them.

    Leaving interrupts the gateway, which ends its sessions: their dynos have to be gone then.
    """
    admin_key = secrets.token_urlsafe(32)
    async with Emulator(apps, options or Options(stop_grace=5.0), api_key=api_key) as platform:
        base = {
            "LAUNCHER": "heroku",
            "HEROKU_API_KEY": platform.api_key,
            "HEROKU_API_URL": platform.url,
            "HEROKU_APPS": ",".join(apps),
            "ADMIN_KEY": admin_key,
            **({} if servers else {"GATEWAY_SERVERS": ""}),
        }
        gateway = Gateway(folder, servers or {}, {**base, **(settings or {})})
        site = Site(platform, gateway, admin_key)
        async with watched(gateway, running):
            await site.until(lambda: site.subscriptions() == len(apps), "it has subscribed")
            yield site
        site.check()


def slug_with(folder: Path, files: Mapping[str, str], *packages: str) -> Path:
    """Make a slug of these files and of packages of ours."""
    slug = folder / "slug"
    slug.mkdir()
    for name, content in files.items():
        (slug / name).write_text(content, encoding="utf-8")
    for package in packages:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / package, slug / package, ignore=ignored)
    return slug
