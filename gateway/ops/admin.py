"""The operators' API below `/admin/v1`: what runs, what waits, what it costs. JSON, one key."""

import hmac
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from gateway.registry.discovery import Discovery
from gateway.registry.servers import Registry, ServerDefinition
from gateway.sessions.manager import Manager

BASE = "/admin/v1"
REFRESH_S = 30.0

Handler = Callable[[web.Request], Awaitable[web.Response]]

RunLine = Callable[[ServerDefinition, str, Mapping[str, str]], str]
"""The line that an operator pastes, for a server, a launch id and the agent's environment."""


class _Bootstrap(msgspec.Struct, forbid_unknown_fields=True):
    server: str


class Admin:
    """Handlers of the operators' API.

    Args:
        key: of operators; empty closes the API.
        manager: the sessions.
        registry: the servers.
        discovery: where they come from; None if from the servers file alone.
        run_line: how an operator starts a dyno by hand.
    """

    def __init__(
        self,
        key: str,
        manager: Manager,
        registry: Registry,
        discovery: Discovery | None,
        run_line: RunLine,
    ) -> None:
        self._key = key.encode()
        self._manager = manager
        self._registry = registry
        self._discovery = discovery
        self._run_line = run_line

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of this room."""
        return [
            web.get(f"{BASE}/ledger", self.guarded(self._ledger)),
            web.get(f"{BASE}/pool", self.guarded(self._pool)),
            web.get(f"{BASE}/queue", self.guarded(self._queue)),
            web.get(f"{BASE}/servers", self.guarded(self._servers)),
            web.post(f"{BASE}/servers/refresh", self.guarded(self._refresh)),
            web.post(f"{BASE}/bootstrap", self.guarded(self._bootstrap)),
        ]

    def guarded(self, handler: Handler) -> Handler:
        """Let operators through only."""

        async def guard(request: web.Request) -> web.Response:
            if not self._key:
                return _problem(403, "the operators' API is closed: ADMIN_KEY is not set")
            scheme, _, token = request.headers.get("Authorization", "").partition(" ")
            given = token.strip().encode(errors="surrogateescape")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given, self._key):
                refusal = _problem(401, "send `Authorization: Bearer ADMIN_KEY`")
                refusal.headers["WWW-Authenticate"] = 'Bearer realm="admin"'
                return refusal
            return await handler(request)

        return guard

    async def _ledger(self, _request: web.Request) -> web.Response:
        fleet = self._manager.fleet
        return _json(fleet.book.report(fleet.now()))

    async def _pool(self, _request: web.Request) -> web.Response:
        now = time.monotonic()
        return _json(
            [
                {
                    "launch": parked.launch_id,
                    "server": parked.server.name,
                    "release": parked.server.release,
                    "dyno": parked.dyno_id,
                    "state": _state(parked.ready, over=parked.over),
                    "parked_s": None if parked.ready is None else round(now - parked.ready, 3),
                    "bootstrapped": not parked.ours,
                }
                for parked in self._manager.pool
            ]
        )

    async def _queue(self, _request: web.Request) -> web.Response:
        return _json(
            [
                {
                    "session": live.record.session_id,
                    "server": live.record.server.name,
                    "app": live.record.server.app,
                    "position": position,
                }
                for live, position in self._manager.dynos.queue
            ]
        )

    async def _servers(self, _request: web.Request) -> web.Response:
        registered = [(server, "registered") for server in self._registry.servers]
        gone = [
            (server, "disconnected")
            for name in self._registry.disconnected
            if (server := self._registry.known(name))
        ]
        return _json([_server(server, status) for server, status in [*registered, *gone]])

    async def _refresh(self, request: web.Request) -> web.Response:
        if self._discovery is None:
            return _problem(409, "the servers come from the servers file: restart to read it again")
        if not await self._discovery.refresh(REFRESH_S):
            return _problem(504, f"the apps were not looked at within {REFRESH_S:.0f} s")
        return await self._servers(request)

    async def _bootstrap(self, request: web.Request) -> web.Response:
        body = await request.read()
        try:
            wanted = msgspec.json.decode(body, type=_Bootstrap)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return _problem(400, f'expected {{"server": name}}: {error}')
        server = self._registry.find(wanted.server)
        if server is None:
            known = ", ".join(self._registry.names)
            return _problem(404, f"no server {wanted.server!r}; there are: {known}")
        launch_id, environment = self._manager.pool.invite(server)
        line = self._run_line(server, launch_id, environment)
        return _json({"server": server.name, "launch": launch_id, "command": line})


def _state(ready: float | None, *, over: bool) -> str:
    if over:
        return "stopping"
    return "booting" if ready is None else "parked"


def _server(server: ServerDefinition, status: str) -> dict[str, Any]:
    return {
        "name": server.name,
        "status": status,
        "app": server.app,
        "process_type": server.process_type,
        "size": server.size,
        "release": server.release,
        "warm": msgspec.to_builtins(server.warm),
        "description": server.description,
    }


def _json(document: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(document), content_type="application/json")


def _problem(status: int, message: str) -> web.Response:
    body = msgspec.json.encode({"error": message})
    return web.Response(status=status, body=body, content_type="application/json")
