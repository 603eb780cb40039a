"""`GET /health`: is this process able to serve."""

from typing import Final

from aiohttp import web

from dyno_agent import __version__
from gateway.sessions.manager import Manager

AWAY_S: Final = 3.0
"""How long the store may be away before this process is not ready; a reconnect takes less."""


def routes(manager: Manager) -> list[web.RouteDef]:
    """Return the route; needs no key.

    200 while serving; 503 while shutting down, and while what the processes share is out of reach
    (`store_away`: sessions whose client and agent are both here go on, nothing new is opened).
    """

    async def health(_request: web.Request) -> web.Response:
        status, away_s = "ok", manager.store.away_s
        if away_s >= AWAY_S:
            status = "store_away"
        if manager.draining:
            status = "draining"
        return web.json_response(
            {
                "status": status,
                "sessions": manager.sessions,
                "store": manager.store.name,
                "store_away_s": round(away_s, 1),
                "gateway": manager.store.gateway,
                "version": __version__,
            },
            status=200 if status == "ok" else 503,
        )

    return [web.get("/health", health)]
