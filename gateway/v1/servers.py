"""`GET /v1/mcp/servers`: all servers with their tools, as Heroku lists them."""

import re
import shlex
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec
from aiohttp import web

from gateway.registry.discovery import SHELL
from gateway.registry.servers import Registry, ServerDefinition
from gateway.sessions.catalogues import Catalogues, Standing
from gateway.sessions.manager import Manager
from gateway.v1.ages import Age, Ages
from gateway.v1.answering import Admit, answer, answered
from gateway.v1.known import chapter_of, tools_of

PATH: Final = "/v1/mcp/servers"

NAMES: Final = uuid.UUID("6f0f9c9e-5d0e-5b8e-9c55-0d8f4c1f2a60")
"""Under which ids are made of names: the same ones everywhere, and for ever."""

HIDDEN: Final = "…"
"""Stands for arguments that may have been filled from the gateway's environment."""

_OPTION: Final = re.compile(r"--?[A-Za-z][A-Za-z-]*")

_HINTS: Final = {
    "readOnlyHint": False,
    "destructiveHint": True,
    "idempotentHint": False,
    "openWorldHint": True,
}
"""What a tool is taken for that does not say so (MCP, ToolAnnotations)."""


class Annotations(msgspec.Struct):
    """What a tool says of itself. Known clients want all of them, or none."""

    title: str
    readOnlyHint: bool  # noqa: N815 - Heroku's and the specification's spelling
    destructiveHint: bool  # noqa: N815
    idempotentHint: bool  # noqa: N815
    openWorldHint: bool  # noqa: N815


class Tool(msgspec.Struct):
    """A tool of a server."""

    name: str
    namespaced_name: str
    description: str | None
    input_schema: dict[str, Any]
    annotations: Annotations | dict[str, str]


class Server(msgspec.Struct):
    """A server."""

    id: str
    app_id: str
    process_type: str
    process_command: str
    created_at: str
    updated_at: str
    namespace: str
    server_status: Literal["registered", "disconnected"]
    primitives_status: Standing
    tools: list[Tool]


class Servers:
    """The endpoint.

    Attributes:
        ages: since when servers are there; to be entered inside manager and catalogues.

    Args:
        manager: has the store.
        catalogues: what servers offer.
        registry: the servers.
        admit: lets clients in.
    """

    def __init__(
        self,
        manager: Manager,
        catalogues: Catalogues,
        registry: Registry,
        admit: Admit,
    ) -> None:
        self._catalogues = catalogues
        self._registry = registry
        self._admit = admit
        self.ages = Ages(manager, registry, self._offered)

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [web.get(PATH, answered(self.get), allow_head=False)]

    async def get(self, request: web.Request) -> web.Response:
        """Return all servers, those that are gone last.

        Raises:
            BadKey, ForeignOrigin: see `Admit`.
            StoreAway: since when they are there is not known.
        """
        self._admit(request)
        ages = await self.ages.all()
        gone = [self._registry.known(name) for name in self._registry.disconnected]
        known = [*self._registry.servers, *(server for server in gone if server is not None)]
        return answer([self._server(server, ages.get(server.name)) for server in known])

    def _server(self, server: ServerDefinition, age: Age | None) -> Server:
        registered = self._registry.find(server.name) is not None
        app = server.app or ""
        age = age or Age(0.0, 0.0)
        return Server(
            id=_id("server", app, server.name),
            app_id=server.app_id or _app_id(app),
            process_type=server.process_type or server.name,
            process_command=command_of(server),
            created_at=_time(age.created),
            updated_at=_time(age.updated),
            namespace=server.name,
            server_status="registered" if registered else "disconnected",
            primitives_status=self._catalogues.standing(server)[0],
            tools=[
                _tool(server.name, name, tool)
                for name, tool in (tools_of(self._catalogues, server) or {}).items()
            ],
        )

    def _offered(self, server: ServerDefinition) -> bytes | None:
        """See `ages.Tools`; while a look is under way, the eras that are known may vary."""
        chapter = chapter_of(self._catalogues, server)
        if chapter is None or self._catalogues.standing(server)[0] != "synced":
            return None
        return bytes(chapter.lists.get("tools/list", b""))


def command_of(server: ServerDefinition) -> str:
    """Return what runs: the Procfile's line, or the program of the servers file with its options.

    Other arguments of the servers file may hold what `${VAR}` stood for, so they are not shown;
    the module that Python runs is.
    """
    if server.process_type and server.command == SHELL and server.args[:1] == ["-c"]:
        return " ".join(server.args[1:])
    shown, before = [server.command], ""
    for argument in server.args:
        plain = _OPTION.fullmatch(argument) or (before == "-m" and "$" not in argument)
        shown.append(shlex.quote(argument) if plain else HIDDEN)
        before = argument
    return " ".join(shown)


def _tool(namespace: str, name: str, tool: Mapping[str, Any]) -> Tool:
    description, schema = tool.get("description"), tool.get("inputSchema")
    return Tool(
        name=name,
        namespaced_name=f"{namespace}/{name}",
        description=description if isinstance(description, str) else None,
        input_schema=schema if isinstance(schema, dict) else {},
        annotations=_annotations(name, tool),
    )


def _annotations(name: str, tool: Mapping[str, Any]) -> Annotations | dict[str, str]:
    said = tool.get("annotations")
    if not isinstance(said, dict) or not said:
        return {}
    titles = (said.get("title"), tool.get("title"))
    hints = {
        hint: said[hint] if isinstance(said.get(hint), bool) else usual
        for hint, usual in _HINTS.items()
    }
    title = next((title for title in titles if isinstance(title, str)), name)
    return Annotations(title=title, **hints)


def _id(*parts: str) -> str:
    return str(uuid.uuid5(NAMES, "\n".join(parts)))


def _app_id(app: str) -> str:
    """Return the id of an app: the app may be named by that in HEROKU_APPS."""
    try:
        return str(uuid.UUID(app))
    except ValueError:
        return _id("app", app)


def _time(seconds: float) -> str:
    """Return a time with milliseconds, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
