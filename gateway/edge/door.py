"""The MCP endpoints: who may come in, which server is meant, and which era is spoken.

One URL takes every revision of Streamable HTTP. What differs between the eras is in
`streamable_http` and `modern_http`.
"""

import functools
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Protocol, TypeVar

from aiohttp import web

from gateway import patience
from gateway.edge import intake
from gateway.edge.answering import DOUBT, Doubt
from gateway.edge.auth import KeyRing
from gateway.edge.loopback import Loopback
from gateway.eras.headers import REVISION_HEADER
from gateway.eras.modern import REVISION
from gateway.errors import BadMessage, UnknownServer, WrongMethod
from gateway.registry.servers import Registry, ServerDefinition

HANDLE_HEADER = "Rendezvous-Handle"
"""Names one of several dynos of a principal and server. It is routing and no secret: another
principal's handle of the same name is another handle."""

_HANDLE = re.compile(r"[A-Za-z0-9._~-]{1,128}")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks for what, after the checks that everything shares.

    Attributes:
        principal: who the client is.
        server: what it wants.
        handle: which of its dynos; empty if it names none.
    """

    principal: str
    server: ServerDefinition
    handle: str = ""


class Door:
    """Lets clients in.

    Args:
        registry: the servers.
        keys: who may come.
        allowed_hosts: see `intake.check_origin`.
        loopback: by which requests come that another process has let in.
    """

    def __init__(
        self,
        registry: Registry,
        keys: KeyRing,
        allowed_hosts: Set[str] | None,
        loopback: Loopback | None = None,
    ) -> None:
        self._registry = registry
        self._keys = keys
        self._allowed_hosts = allowed_hosts
        self._loopback = loopback or Loopback()

    def caller(self, request: web.Request, toolkit: str | None = None) -> Caller:
        """Return who comes in.

        Args:
            request: whose path names a server, or none for the default one.
            toolkit: name of the toolkit that is wanted instead.

        Raises:
            ForeignOrigin: see `intake.check_origin`.
            BadKey: see `KeyRing.principal` and `Loopback.carried`.
            UnknownServer: the path names none that there is, or was: sessions outlive that.
            BadMessage: the handle is none.
        """
        carried = self._loopback.carried(request.headers)
        if carried is None:
            principal = self.admit(request)
        else:
            principal, patience_s = carried
            patience.begin(patience_s)
            doubt: Doubt = functools.partial(self._loopback.doubt, request.headers)
            request[DOUBT] = doubt
        named = self._server(request.match_info) if toolkit is None else self._toolkit(toolkit)
        return Caller(principal, named, _handle(request))

    def admit(self, request: web.Request) -> str:
        """Return the principal of a request that has come from outside, whatever it wants.

        Raises:
            ForeignOrigin: see `intake.check_origin`.
            BadKey: see `KeyRing.principal`.
        """
        intake.check_origin(request.headers, self._allowed_hosts)
        return self._keys.principal(request.headers)

    def _toolkit(self, name: str) -> ServerDefinition:
        toolkit = self._registry.toolkit(name)
        if toolkit is None:
            raise UnknownServer(f"no toolkit {name!r}: name one of `toolkits` in the servers file")
        return toolkit

    def _server(self, path: Mapping[str, str]) -> ServerDefinition:
        name = path.get("name")
        server = self._registry.default if name is None else self._registry.known(name)
        if server is not None and server.toolkit is None:
            return server
        known = ", ".join(self._registry.names)
        raise UnknownServer(
            f"no server {name!r}; there are: {known}"
            if name
            else f'no default server: mark one with "default": true, or use /servers/NAME/mcp '
            f"with one of: {known}"
        )


class Legacy(Protocol):
    """What an endpoint does for clients with a handshake."""

    async def post(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        """Take a message."""
        ...

    async def get(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        """Open a stream."""
        ...

    async def delete(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        """End the session."""
        ...


class Modern(Protocol):
    """What an endpoint does for clients without one."""

    async def post(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        """Take a message."""
        ...


class Guest(Protocol):
    """Whoever has been let in, by this door or another."""

    @property
    def principal(self) -> str:
        """Who that is."""
        ...


G = TypeVar("G", bound=Guest)

Handler = Callable[[web.Request, G], Awaitable[web.StreamResponse]]

Serve = Callable[[Handler[Caller], web.Request, Caller], Awaitable[web.StreamResponse]]


class Endpoints:
    """The MCP endpoints.

    Args:
        door: lets clients in.
        legacy: for revisions with a handshake.
        modern: for those without.
        serve: runs them, see `Relaying.serve`.
    """

    def __init__(self, door: Door, legacy: Legacy, modern: Modern, serve: Serve) -> None:
        self._door = door
        self._serve = serve
        self._legacy = legacy
        self._modern = modern

    def routes(self, paths: Iterable[str]) -> list[web.RouteDef]:
        """Return the routes of these paths."""
        return [
            route
            for path in paths
            for route in (
                web.post(path, self.take),
                web.get(path, self.take, allow_head=False),
                web.delete(path, self.take),
            )
        ]

    async def take(self, request: web.Request) -> web.StreamResponse:
        """Let a request in, and serve it."""
        return await self.serve(request, self._door.caller(request))

    async def serve(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        """Serve a request that was let in: a message, a stream, or the end of a session.

        Raises:
            WrongMethod: a GET or DELETE of a revision that has neither.
            GatewayError: see `Relaying.serve`.
        """
        speaks_modern = is_modern(request)
        match request.method:
            case "POST":
                handler = self._modern.post if speaks_modern else self._legacy.post
            case _ if speaks_modern:
                raise only_post()
            case "GET":
                handler = self._legacy.get
            case _:
                handler = self._legacy.delete
        return await self._serve(handler, request, caller)


def _handle(request: web.Request) -> str:
    named = request.match_info.get("handle"), request.headers.get(HANDLE_HEADER)
    given = [handle for handle in named if handle is not None]
    if any(_HANDLE.fullmatch(handle) is None for handle in given):
        raise BadMessage("a handle is 1-128 of letters, digits, '.', '_', '~' and '-'")
    if len(set(given)) > 1:
        raise BadMessage(f"the path and {HANDLE_HEADER} name different handles")
    return given[0] if given else ""


def is_modern(request: web.Request) -> bool:
    """True when the headers alone say that no revision with a handshake is spoken."""
    revision = request.headers.get(REVISION_HEADER)
    return revision is not None and revision.strip() >= REVISION


def only_post() -> WrongMethod:
    """Return what a modern client gets for GET and DELETE."""
    return WrongMethod(f"MCP {REVISION} takes POST only")


def at(*suffixes: str) -> list[str]:
    """Return the paths of an endpoint: of the default server, and of named ones."""
    return [f"{place}{suffix}" for place in ("", "/servers/{name}") for suffix in suffixes]
