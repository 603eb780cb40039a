"""`GET /health`: is this process able to serve."""

from aiohttp import web

from dyno_agent import __version__
from gateway.sessions.manager import Manager


def routes(manager: Manager) -> list[web.RouteDef]:
    """Return the route. 200 while serving, 503 while shutting down; needs no key."""

    async def health(_request: web.Request) -> web.Response:
        return web.json_response(
            {
                "status": "draining" if manager.draining else "ok",
                "sessions": manager.sessions,
                "version": __version__,
            },
            status=503 if manager.draining else 200,
        )

    return [web.get("/health", health)]
