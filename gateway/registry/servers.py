"""Server definitions: the servers file, read once and checked as a whole at start.

The file has the shape that MCP clients use (`mcpServers`), with more keys per server. `${VAR}` and
`${VAR:-default}` in `command`, `args`, `env` and `cwd` are filled from the gateway's environment.
Beside them it may name sets of servers (`toolkits`), each of which is one server to its clients.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from gateway.registry.windows import MOST_WARM, Warmth

TOOLKIT: Final = "toolkit/"
"""Begins the names of toolkits' definitions: no server's name has a slash."""

ALL: Final = "all"
"""The toolkit of every server. There always is one."""

EVERY: Final = "*"
"""Stands for all servers there are, in a toolkit's list of its members."""

TOOLKIT_LIFETIME_S = 86_400.0
"""How long a client may go on with its session of a toolkit, which costs nothing by itself."""

Separator = Literal["/", "__", "."]
"""What stands between the names of a server and of its tool in a toolkit."""


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
        app_id: the platform's own name of the app, once discovered.
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
        toolkit: names of its members, if it is no server but a set of them; `*` for all there are.
        separator: what stands between a member's name and its tool's, towards clients.
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
    app_id: str = ""
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
    toolkit: tuple[str, ...] | None = None
    separator: Separator = "/"

    def __repr__(self) -> str:
        """Name only: env may hold secrets."""
        return f"ServerDefinition({self.name!r})"


@dataclass(frozen=True, slots=True)
class Change:
    """What became of the servers: names of those that are new or not as they were, and gone."""

    changed: frozenset[str]
    gone: frozenset[str]


def toolkit(
    name: str,
    members: Sequence[str] = (EVERY,),
    separator: Separator = "/",
    description: str = "",
) -> ServerDefinition:
    """Return the definition of a toolkit: a server without a child of its own.

    Args:
        name: without `TOOLKIT`.
        members: names of servers, or `EVERY` alone.
        separator: between their names and those of their tools.
        description: one line for people.
    """
    return ServerDefinition(
        name=TOOLKIT + name,
        toolkit=tuple(members),
        separator=separator,
        description=description,
        era="dual",
        stale="rebuild",
        max_lifetime=TOOLKIT_LIFETIME_S,
    )


class Registry:
    """The servers of this gateway by name, and its toolkits.

    Args:
        servers: all there are for now, see `replace`.
        toolkits: as `toolkit` makes them; `ALL` is added unless it is among them.
        separator: of the added one.

    Raises:
        BadServersFile: from the constructor, when no default can be told.
    """

    def __init__(
        self,
        servers: Sequence[ServerDefinition],
        toolkits: Sequence[ServerDefinition] = (),
        separator: Separator = "/",
    ) -> None:
        every = toolkit(ALL, separator=separator, description="every server")
        self._toolkits = {each.name: each for each in (every, *toolkits)}
        self._servers: dict[str, ServerDefinition] = {}
        self._disconnected: dict[str, ServerDefinition] = {}
        self._listeners: list[Callable[[Change], None]] = []
        self.default: ServerDefinition | None = None
        self.replace(servers)

    def replace(self, servers: Sequence[ServerDefinition]) -> Change:
        """Take these servers for all there are, and tell those who subscribed.

        Toolkits stay; who their members are follows.

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
        """Return the server, or `toolkit/…`, that new sessions may be opened with."""
        return self._servers.get(name) or self._toolkits.get(name)

    def known(self, name: str) -> ServerDefinition | None:
        """Return what `find` does, though it may be disconnected: its sessions go on."""
        return self.find(name) or self._disconnected.get(name)

    def toolkit(self, name: str) -> ServerDefinition | None:
        """Return the definition of a toolkit; its name is given without `toolkit/`."""
        return self._toolkits.get(TOOLKIT + name)

    @property
    def toolkits(self) -> list[ServerDefinition]:
        """All toolkits, sorted by name."""
        return [self._toolkits[name] for name in sorted(self._toolkits)]

    def members(self, toolkit: ServerDefinition) -> list[ServerDefinition]:
        """Return the servers of a toolkit that are connected now.

        They are in the file's order, or sorted by name for all there are. Servers without a
        catalogue are none of them: nobody knows what they have before they run.
        """
        named = toolkit.toolkit or ()
        names = self.names if EVERY in named else named
        found = (self._servers.get(name) for name in names)
        return [server for server in found if server is not None and server.catalogue]

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

_LEARNED = {"name", "release", "app_id", "toolkit", "separator"}
_DURATIONS = ("boot_timeout", "idle_timeout", "max_lifetime", "call_timeout")


class _Toolkit(msgspec.Struct, forbid_unknown_fields=True):
    """What the servers file may say of a toolkit."""

    servers: list[str]
    separator: Separator | None = None
    description: str = ""


def load(
    path: Path | None,
    environment: Mapping[str, str],
    *,
    separator: Separator = "/",
    discovers: bool = False,
) -> Registry:
    """Read, fill and check the servers file; without one there is no server yet.

    Args:
        path: of the file.
        environment: fills its variables.
        separator: of toolkits that name none.
        discovers: other servers than the file's may come, so toolkits may name them.

    Raises:
        BadServersFile: unreadable, not JSON, an unknown or wrong key, a bad name, a variable
            that is not set, or a toolkit with a member that cannot be.
    """
    if path is None:
        return Registry([], separator=separator)
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
        servers = [_define(name, entry, environment) for name, entry in entries.items()]
        toolkits = _toolkits(document.get("toolkits", {}), separator)
        for each in toolkits:
            _check_members(each, {server.name: server for server in servers}, discovers=discovers)
        return Registry(servers, toolkits, separator)
    except BadServersFile as error:
        raise BadServersFile(f"{path}: {error}") from error


def _toolkits(entries: Any, separator: Separator) -> list[ServerDefinition]:
    if not isinstance(entries, dict):
        raise BadServersFile('toolkits: expected {"name": ["server", …]}')
    found = []
    for name, entry in entries.items():
        where = f"toolkits.{name}"
        _check_name(name, where)
        try:
            said = msgspec.convert(
                {"servers": entry} if isinstance(entry, list) else entry, _Toolkit
            )
        except msgspec.ValidationError as error:
            raise BadServersFile(f"{where}: {error}") from error
        found.append(toolkit(name, said.servers, said.separator or separator, said.description))
    return found


def _check_members(
    toolkit: ServerDefinition, servers: Mapping[str, ServerDefinition], *, discovers: bool
) -> None:
    where, members = f"toolkits.{toolkit.name.removeprefix(TOOLKIT)}", toolkit.toolkit or ()
    if not members or len(set(members)) < len(members):
        raise BadServersFile(f"{where}: expected names of servers, each once")
    if EVERY in members and len(members) > 1:
        raise BadServersFile(f"{where}: {EVERY!r} stands alone")
    for name in members:
        server = servers.get(name)
        if server is None and name != EVERY and not discovers:
            raise BadServersFile(f"{where}: no server {name!r}")
        if server is not None and not server.catalogue:
            raise BadServersFile(f'{where}: {name!r} has "catalogue": false, so nobody can list it')


def _check_name(name: str, where: str) -> None:
    if not _NAME.fullmatch(name):
        raise BadServersFile(f"{where}: a name is 1-64 of letters, digits, '.', '_' and '-'")


def _define(name: str, entry: Any, environment: Mapping[str, str]) -> ServerDefinition:
    where = f"mcpServers.{name}"
    _check_name(name, where)
    if not isinstance(entry, dict):
        raise BadServersFile(f"{where}: expected an object")
    if wrong := sorted(entry.keys() & _LEARNED):
        raise BadServersFile(f"{where}: no key of a server: {', '.join(wrong)}")
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
