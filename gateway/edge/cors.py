"""CORS (Fetch standard, 3.2): web pages of our own origins may use the MCP endpoints.

Which origins those are says `intake.check_origin`, as for every request. Keys travel in headers
that the page sets itself, so there is no credentials mode and no cookie to steal.
"""

import re
from collections.abc import Iterable, Set

from aiohttp import web

from gateway.edge import intake
from gateway.errors import ForeignOrigin

METHODS = "GET, POST, DELETE"

REQUEST_HEADERS = (
    "content-type",
    "authorization",
    "x-api-key",
    "mcp-protocol-version",
    "mcp-session-id",
    "mcp-method",
    "mcp-name",
    "last-event-id",
    "rendezvous-handle",
)
"""What a page may always send. Each tool may name further ones, `Mcp-Param-*`, so whatever else a
preflight asks for is allowed too."""

RESPONSE_HEADERS = (
    "mcp-session-id, mcp-protocol-version, retry-after, www-authenticate, rendezvous-session"
)
"""What a page may read, beside what every page may."""

MAX_AGE_S = 7200
"""How long a browser need not ask again; Chromium keeps an answer no longer."""

_HEADER_NAME = re.compile(r"[a-z0-9][a-z0-9!#$%&'*+.^_`|~-]{0,127}")
"""A token (RFC 9110, 5.6.2) in lower case that cannot be the wildcard."""

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9.:\[\]-]+", re.IGNORECASE)
"""An origin as browsers write it: no user, no path, nothing that a header could not hold."""


class Cors:
    """Preflights, and what all answers of the MCP endpoints carry for pages of our origins.

    Args:
        allowed_hosts: see `intake.check_origin`.
    """

    def __init__(self, allowed_hosts: Set[str] | None) -> None:
        self._allowed_hosts = allowed_hosts
        self._paths: set[str] = set()

    def routes(self, paths: Iterable[str]) -> list[web.RouteDef]:
        """Return the routes of preflights for these paths, written as for `web.get`.

        From now on `on_prepare` acts on every response of these paths, and on no other's.
        """
        paths = list(paths)
        self._paths.update(paths)
        return [web.options(path, self.preflight) for path in paths]

    async def preflight(self, request: web.Request) -> web.Response:
        """Tell a browser what a page may send. It comes without a key.

        Raises:
            ForeignOrigin: not to this page.
        """
        intake.check_origin(request.headers, self._allowed_hosts)
        asked = request.headers.get("Access-Control-Request-Headers", "").lower().split(",")
        names = [name for part in asked if _HEADER_NAME.fullmatch(name := part.strip())]
        return web.Response(
            status=204,
            headers={
                "Access-Control-Allow-Methods": METHODS,
                "Access-Control-Allow-Headers": ", ".join(
                    dict.fromkeys((*REQUEST_HEADERS, *names))
                ),
                "Access-Control-Max-Age": str(MAX_AGE_S),
            },
        )

    async def on_prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """Let a page of our origins read a response; for `Application.on_response_prepare`.

        Streams get their headers in this way only: once a handler returns, theirs are sent.
        """
        resource = request.match_info.route.resource
        origin = request.headers.get("Origin")
        if resource is None or resource.canonical not in self._paths or origin is None:
            return
        try:
            intake.check_origin(request.headers, self._allowed_hosts)
        except ForeignOrigin:
            return
        if _ORIGIN.fullmatch(origin):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = RESPONSE_HEADERS
            response.headers.add("Vary", "Origin")
