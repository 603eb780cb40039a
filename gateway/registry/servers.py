"""Server definitions: the servers file, read once and checked as a whole at start.

The file has the shape that MCP clients use (`mcpServers`), with more keys per server. `${VAR}` and
`${VAR:-default}` in `command`, `args`, `env` and `cwd` are filled from the gateway's environment.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from gateway.registry.windows import MOST_WARM, Warmth


class BadServersFile(Exception):
    """The servers file is missing or wrong; the message names the file and the key."""


class ServerDefinition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One server that clients may open sessions with. Durations are in seconds.

    Attributes:
        command: program to run in the dyno, without a shell; empty if `process_type` says it.
        args: its arguments.
        env: added to the dyno's environment for the child.
        cwd: working directory in the dyno.
        default: serve it at `/mcp` too.
        size: dyno size.
        app: in whose dynos it runs, where there are apps.
        process_type: the app's process type whose command it is.
        agent: where its dynos have the agent from: the gateway (`fetched`), or the app's own
            packages (`installed`).
        release: of the app, once discovered; another one means another slug.
        warm: how many dynos to keep parked: a number, or one per window of the week.
        boot_timeout: from the request to the child's first answer; None takes the launcher's.
        idle_timeout: without activity.
        max_lifetime: whatever it does.
        call_timeout: longest call.
        description: one line for people.
        era: which revisions it speaks: `legacy` (with a handshake), `modern` (2026-07-28), `dual`,
            or `auto` to find out in a throw-away run.
        catalogue: answer opening and list requests from what a throw-away run has learned.
        translate: serve clients of the other era too, in translation.
        boot: `lazy` asks for a dyno at the first real call, `eager` when the session opens.
        isolation: who shares a dyno in the modern era: all requests of a `principal`, those with
            the same `handle`, or none (`request`).
        stale: what a client of an ended session gets: 404 (`strict`), or a new dyno (`rebuild`).
        record: what a session's story has of each message: nothing (`off`), what it is, but not
            what it says (`messages`), or that too, redacted (`payloads`).
        record_bytes: what is kept of one payload.
        redact: regular expressions of what else is not to be kept.
    """

    name: str = ""
    command: str = ""
    args: list[str] = []
    env: dict[str, str] = {}
    cwd: str | None = None
    default: bool = False
    size: str | None = None
    app: str | None = None
    process_type: str | None = None
    agent: Literal["fetched", "installed"] = "fetched"
    release: str = ""
    warm: Warmth = 0
    boot_timeout: float | None = None
    idle_timeout: float = 1800.0
    max_lifetime: float = 28800.0
    call_timeout: float = 3600.0
    description: str = ""
    era: Literal["auto", "legacy", "modern", "dual"] = "auto"
    catalogue: bool = True
    translate: bool = True
    boot: Literal["lazy", "eager"] = "lazy"
    isolation: Literal["principal", "handle", "request"] = "principal"
    stale: Literal["strict", "rebuild"] = "strict"
    record: Literal["off", "messages", "payloads"] = "messages"
    record_bytes: int = 2048
    redact: list[str] = []

    def __repr__(self) -> str:
        """Name only: env may hold secrets."""
        return f"ServerDefinition({self.name!r})"


@dataclass(frozen=True, slots=True)
class Change:
    """What became of the servers: names of those that are new or not as they were, and gone."""

    changed: frozenset[str]
    gone: frozenset[str]


class Registry:
    """The servers of this gateway by name.

    Raises:
        BadServersFile: from the constructor, when no default can be told.
    """

    def __init__(self, servers: Sequence[ServerDefinition]) -> None:
        self._servers: dict[str, ServerDefinition] = {}
        self._disconnected: dict[str, ServerDefinition] = {}
        self._listeners: list[Callable[[Change], None]] = []
        self.default: ServerDefinition | None = None
        self.replace(servers)

    def replace(self, servers: Sequence[ServerDefinition]) -> Change:
        """Take these servers for all there are, and tell those who subscribed.

        Raises:
            BadServersFile: no default can be told; nothing is replaced.
        """
        marked = [server for server in servers if server.default]
        if len(marked) > 1:
            raise BadServersFile('more than one server has "default": true')
        before, self._servers = self._servers, {server.name: server for server in servers}
        gone = before.keys() - self._servers.keys()
        self._disconnected |= {name: before[name] for name in gone}
        for name in self._servers:
            self._disconnected.pop(name, None)
        candidates = marked or list(servers)
        self.default = candidates[0] if candidates else None
        changed = {name for name, server in self._servers.items() if before.get(name) != server}
        change = Change(frozenset(changed), frozenset(gone))
        if changed or gone:
            for listener in self._listeners:
                listener(change)
        return change

    def subscribe(self, listener: Callable[[Change], None]) -> None:
        """Call this after every change from now on."""
        self._listeners.append(listener)

    def find(self, name: str) -> ServerDefinition | None:
        """Return the server of this name that new sessions may be opened with."""
        return self._servers.get(name)

    def known(self, name: str) -> ServerDefinition | None:
        """Return the server of this name, though it may be disconnected: its sessions go on."""
        return self._servers.get(name) or self._disconnected.get(name)

    @property
    def servers(self) -> list[ServerDefinition]:
        """All that new sessions may be opened with, sorted by name."""
        return [self._servers[name] for name in self.names]

    @property
    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._servers)

    @property
    def disconnected(self) -> list[str]:
        """Names of servers that were here and are not any more, sorted."""
        return sorted(self._disconnected)


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
MOST_RECORDED = 6144
"""Bytes of a payload that one line of a story has room for."""

_LEARNED = {"name", "release"}
_DURATIONS = ("boot_timeout", "idle_timeout", "max_lifetime", "call_timeout")


def load(path: Path | None, environment: Mapping[str, str]) -> Registry:
    """Read, fill and check the servers file; without one there is no server yet.

    Raises:
        BadServersFile: unreadable, not JSON, an unknown or wrong key, a bad name, or a variable
            that is not set.
    """
    if path is None:
        return Registry([])
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadServersFile(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise BadServersFile(f"{path}: not JSON: {error}") from error
    entries = document.get("mcpServers") if isinstance(document, dict) else None
    if not isinstance(entries, dict) or not entries:
        raise BadServersFile(f'{path}: expected {{"mcpServers": {{"name": {{"command": …}}}}}}')
    try:
        return Registry([_define(name, entry, environment) for name, entry in entries.items()])
    except BadServersFile as error:
        raise BadServersFile(f"{path}: {error}") from error


def _define(name: str, entry: Any, environment: Mapping[str, str]) -> ServerDefinition:
    where = f"mcpServers.{name}"
    if not _NAME.fullmatch(name):
        raise BadServersFile(f"{where}: a name is 1-64 of letters, digits, '.', '_' and '-'")
    if not isinstance(entry, dict) or entry.keys() & _LEARNED:
        raise BadServersFile(f"{where}: expected an object, without `name` and `release`")
    try:
        server = msgspec.convert({**entry, "name": name}, ServerDefinition)
    except msgspec.ValidationError as error:
        raise BadServersFile(f"{where}: {error}") from error
    for key in _DURATIONS:
        value = getattr(server, key)
        if value is not None and not 0 < value <= 86_400:
            raise BadServersFile(f"{where}.{key}: more than 0 and at most 86400 seconds")
    _check_recorded(server, where)
    if isinstance(server.warm, int) and not 0 <= server.warm <= MOST_WARM:
        raise BadServersFile(f"{where}.warm: 0 to {MOST_WARM} dynos")
    if not server.command.strip() and not server.process_type:
        raise BadServersFile(f"{where}.command: empty, and no process_type in its place")
    if server.process_type and (server.command or not server.app):
        raise BadServersFile(f"{where}.process_type: goes with `app` and without `command`")
    return _filled(server, where, environment)


def _check_recorded(server: ServerDefinition, where: str) -> None:
    if not 0 < server.record_bytes <= MOST_RECORDED:
        raise BadServersFile(f"{where}.record_bytes: 1 to {MOST_RECORDED}")
    for pattern in server.redact:
        try:
            re.compile(pattern)
        except re.error as error:
            raise BadServersFile(f"{where}.redact: {pattern!r}: {error}") from error


def _filled(
    server: ServerDefinition, where: str, environment: Mapping[str, str]
) -> ServerDefinition:
    def fill(key: str, text: str) -> str:
        def value(match: re.Match[str]) -> str:
            found = environment.get(match[1], match[2])
            if found is None:
                raise BadServersFile(f"{where}.{key}: the variable {match[1]} is not set")
            return found

        return _VARIABLE.sub(value, text)

    return msgspec.structs.replace(
        server,
        command=fill("command", server.command),
        args=[fill(f"args[{n}]", text) for n, text in enumerate(server.args)],
        env={name: fill(f"env.{name}", text) for name, text in server.env.items()},
        cwd=None if server.cwd is None else fill("cwd", server.cwd),
    )
