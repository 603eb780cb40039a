"""Which tools a request means, what the model is told of them, and how they are called. Pure.

Names: a client says `server/tool` (or `server.tool`, `server__tool`) or `tool`, and is shown
`server/tool`; the model knows letters, digits, `_` and `-` only, as models' servers refuse others.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from msgspec import Raw

from gateway.registry.servers import ServerDefinition
from gateway.v1.agents.request import Tool
from gateway.v1.problems import Problem

SEPARATORS: Final = ("/", "__", ".")
"""What may stand between server and tool. The first is shown."""

ALIASES: Final = {"pg_psql": "postgres_run_query"}
"""Documented names of `heroku_tool`s that go by another one here."""

COMMAND: Final = "dyno_run_command"
"""The tool whose command is the client's, and whose parameters are the model's."""

LONGEST_NAME: Final = 64
"""Characters of a name that models take."""

_UNFIT: Final = re.compile(r"[^A-Za-z0-9_-]")

Tools = Callable[[ServerDefinition], Mapping[str, Mapping[str, Any]] | None]
"""The tools of a server by name, as its child lists them; None if they are not known."""


@dataclass(frozen=True, slots=True)
class Found:
    """A tool of a server.

    Attributes:
        server: whose.
        tool: its own name there.
        shown: as clients know it.
    """

    server: ServerDefinition
    tool: str
    shown: str


@dataclass(frozen=True, slots=True)
class Offer:
    """A tool as the model may use it.

    Attributes:
        name: as the model knows it.
        shown: as the client knows it.
        server: whose it is, with the size and the lifetime that the request wants.
        tool: its own name there.
        function: what the model is told: name, description, parameters.
        fixed: arguments that are the client's, whatever the model gives.
        nested: what the model gives is one argument, `parameters`.
        max_calls: how often it may be called in a run; None for no limit.
    """

    name: str
    shown: str
    server: ServerDefinition
    tool: str
    function: Mapping[str, Any] = field(repr=False)
    fixed: Mapping[str, Raw] = field(repr=False)
    nested: bool
    max_calls: int | None

    def arguments(self, given: Mapping[str, Raw]) -> dict[str, Any]:
        """Return the arguments of a call for which the model gives these."""
        if self.nested:
            return {**self.fixed, "parameters": given}
        return {**given, **self.fixed}


def find(tool: Tool, where: str, servers: Sequence[ServerDefinition], tools: Tools) -> Found:
    """Return what a tool of a request means.

    A server whose tools are not known is believed to have any, if it is named.

    Args:
        tool: of the request.
        where: stands for it in what a client is told.
        servers: all there are, sorted.
        tools: what they offer.

    Raises:
        Problem: 400, there is no such tool, or more than one.
    """
    within = _within(tool, where, servers)
    if tool.type == "heroku_tool":
        name = ALIASES.get(tool.name, tool.name)
        offering = [server for server in within if name in (tools(server) or {})]
        if not offering:
            raise _unknown(tool, where, within, tools)
        return Found(offering[0], name, tool.name)
    named = _named(tool.name, within)
    for server, own in named:
        known = tools(server)
        if known is None or own in known:
            return Found(server, own, f"{server.name}{SEPARATORS[0]}{own}")
    offering = [server for server in within if tool.name in (tools(server) or {})]
    if len(offering) == 1:
        return Found(offering[0], tool.name, f"{offering[0].name}{SEPARATORS[0]}{tool.name}")
    if offering:
        full = ", ".join(f"{server.name}{SEPARATORS[0]}{tool.name}" for server in offering)
        raise _wrong(f"{where}.name", f"several servers have this tool: name one of {full}")
    raise _unknown(tool, where, within, tools)


def _within(
    tool: Tool, where: str, servers: Sequence[ServerDefinition]
) -> Sequence[ServerDefinition]:
    """Return the servers of the app that a request names, where servers have apps at all."""
    app = tool.runtime.target_app_name
    if not app or not any(server.app for server in servers):
        return servers
    found = [server for server in servers if server.app == app]
    if not found:
        apps = ", ".join(sorted({server.app for server in servers if server.app}))
        raise _wrong(
            f"{where}.runtime_params.target_app_name",
            f"no server runs in an app of this name: there are servers in {apps}; deploy one "
            "there, and name the app in HEROKU_APPS",
        )
    return found


def _named(name: str, servers: Iterable[ServerDefinition]) -> list[tuple[ServerDefinition, str]]:
    """Return what a full name may mean, the longest name of a server first."""
    return [
        (server, name[len(server.name) + len(separator) :])
        for server in sorted(servers, key=lambda each: len(each.name), reverse=True)
        for separator in SEPARATORS
        if name.startswith(server.name + separator) and len(name) > len(server.name + separator)
    ]


def _unknown(tool: Tool, where: str, servers: Sequence[ServerDefinition], tools: Tools) -> Problem:
    offered = [
        f"{server.name}{SEPARATORS[0]}{name}" for server in servers for name in tools(server) or {}
    ]
    known = ", ".join(offered[:50]) or "none yet"
    app = tool.runtime.target_app_name
    of = f" of {app}" if app and any(server.app for server in servers) else ""
    return _wrong(
        f"{where}.name",
        f"no server{of} offers {tool.name[:128]!a}; GET /v1/mcp/servers tells what there is "
        f"({known})",
    )


class Toolbox:
    """The tools of one run, by the names that the model knows."""

    def __init__(self) -> None:
        self.offers: dict[str, Offer] = {}

    def add(self, tool: Tool, where: str, found: Found, listed: Mapping[str, Any]) -> None:
        """Add a tool.

        Args:
            tool: of the request.
            where: stands for it in what a client is told.
            found: what it means.
            listed: the tool as its child lists it.

        Raises:
            Problem: 400, a parameter of it is missing or wrong.
        """
        fixed = dict(tool.runtime.tool_params or {})
        schema = listed.get("inputSchema")
        schema = dict(schema) if isinstance(schema, dict) else {}
        description, nested = listed.get("description"), False
        if found.tool == COMMAND and "cmd" in fixed:
            schema = _object(fixed.pop("parameters", Raw(b"{}")), f"{where}.parameters")
            description, nested = _text(fixed.pop("description", Raw(b'""')), where), True
            fixed = {"cmd": fixed["cmd"]}
        elif found.tool == COMMAND and tool.type == "heroku_tool":
            raise _wrong(
                f"{where}.runtime_params.tool_params.cmd", "the command to run, which is missing"
            )
        said = [tool.description, description if isinstance(description, str) else ""]
        name = self._name(found.shown)
        self.offers[name] = Offer(
            name=name,
            shown=found.shown,
            server=_sized(found.server, tool),
            tool=found.tool,
            function={
                "name": name,
                "description": "\n\n".join(filter(None, said)),
                "parameters": _open(schema, () if nested else fixed.keys()),
            },
            fixed=fixed,
            nested=nested,
            max_calls=tool.max_calls,
        )

    def fit(self, shown: str) -> str:
        """Return the name that the model knows for one that a client was shown."""
        for offer in self.offers.values():
            if offer.shown == shown:
                return offer.name
        return fit(shown)

    @property
    def functions(self) -> list[dict[str, Any]]:
        """What the model is told of all tools."""
        return [{"type": "function", "function": each.function} for each in self.offers.values()]

    @property
    def shown(self) -> dict[str, str]:
        """Names that clients know, by those that the model knows."""
        return {name: offer.shown for name, offer in self.offers.items()}

    def _name(self, shown: str) -> str:
        name, number = fit(shown), 1
        while name in self.offers:
            number += 1
            suffix = f"_{number}"
            name = fit(shown)[: LONGEST_NAME - len(suffix)] + suffix
        return name


def fit(shown: str) -> str:
    """Return a name that models take."""
    plain = _UNFIT.sub("_", shown.replace(SEPARATORS[0], SEPARATORS[1]))
    return plain[:LONGEST_NAME] or "_"


def _sized(server: ServerDefinition, tool: Tool) -> ServerDefinition:
    """Return a server whose dynos are as a request wants them."""
    life_s = server.max_lifetime if tool.ttl_s is None else min(server.max_lifetime, tool.ttl_s)
    size = (tool.runtime.dyno_size or "").lower() or server.size
    return msgspec.structs.replace(server, size=size, max_lifetime=life_s)


def _open(schema: dict[str, Any], fixed: Iterable[str]) -> dict[str, Any]:
    """Return the schema of what is left to the model to give."""
    left = {"type": "object", "properties": {}, **schema}
    closed = set(fixed)
    if closed and isinstance(left["properties"], dict):
        left["properties"] = {k: v for k, v in left["properties"].items() if k not in closed}
        if isinstance(required := left.get("required"), list):
            left["required"] = [each for each in required if each not in closed]
    return left


def _object(raw: Raw, where: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        raise _wrong(where, "expected a JSON schema") from None


def _text(raw: Raw, where: str) -> str:
    try:
        return msgspec.json.decode(raw, type=str)
    except msgspec.DecodeError:
        raise _wrong(f"{where}.runtime_params.tool_params.description", "expected a text") from None


def _wrong(param: str, message: str) -> Problem:
    return Problem(400, f"{param}: {message}", "invalid_request", param=param)
