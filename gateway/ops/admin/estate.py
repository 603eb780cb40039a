"""Operations on all but sessions: servers, dynos, money, gateway processes."""

import time
from typing import Any

import msgspec

from gateway.errors import Elsewhere
from gateway.fleet.ledger import GATEWAY
from gateway.ops.admin.desk import Call, Desk
from gateway.ops.admin.problems import Problem
from gateway.ops.admin.shapes import (
    Bootstrap,
    BootstrapLine,
    Draining,
    GatewayProcess,
    Ledger,
    LogLevel,
    ParkedDyno,
    QueuedSession,
    Server,
    ServerWithTools,
    Tool,
)
from gateway.ops.admin.standing import CLOSED
from gateway.ops.inertness import inert
from gateway.ops.story import cut
from gateway.registry.servers import ServerDefinition

REFRESH_S = 20.0
"""How long a look at the apps may take: the platform's router waits 30 s for an answer."""

MOST_TOOLS = 1000

MOST_CHARACTERS = 2000
"""Of what a child says of itself."""


# Gateway processes


async def gateways(desk: Desk, _call: Call) -> list[GatewayProcess]:
    """Return the processes that are alive."""
    alive = await desk.manager.store.gateways()
    return [GatewayProcess(name, name == desk.here) for name in alive]


async def drain(desk: Desk, call: Call) -> Draining:
    """Let a process leave.

    Raises:
        Problem: 404.
        Elsewhere: it is another one.
    """
    name = call.path["gateway"]
    if name == desk.here:
        desk.leave()
        return Draining(name)
    if name not in await desk.manager.store.gateways():
        raise Problem(404, f"no gateway process {name[:64]!a} is alive: GET /gateways lists them")
    raise Elsewhere("that is another gateway process", name, "", 0)


# Servers


async def servers(desk: Desk, _call: Call) -> list[Server]:
    """Return all servers, those that are gone last."""
    live = await _live(desk)
    return [_server(desk, server, live) for server in _known(desk)]


async def server(desk: Desk, call: Call) -> ServerWithTools:
    """Return one with its tools."""
    definition = _find(desk, call.path["server"])
    tools = desk.tools(definition)
    listed = None
    if tools is not None:
        listed = [
            Tool(_text(tool.get("name")), _text(tool.get("description")))
            for tool in tools[:MOST_TOOLS]
        ]
    live = await _live(desk)
    return ServerWithTools(**_facts(desk, definition, live), tools=listed)


async def refresh(desk: Desk, call: Call) -> list[Server]:
    """Look at the apps now.

    Raises:
        Problem: 409 without apps, 504 if it takes too long.
    """
    if desk.discovery is None:
        raise Problem(409, "the servers come from the servers file: restart to read it again")
    if not await desk.discovery.refresh(REFRESH_S):
        raise Problem(504, f"the apps were not looked at within {REFRESH_S:.0f} s; ask again")
    return await servers(desk, call)


async def set_log_level(desk: Desk, call: Call) -> LogLevel:
    """Log more or less of a server, at all processes."""
    wanted: LogLevel = call.body
    name = _find(desk, call.path["server"]).name
    await desk.levels.set(name, wanted.level)
    return wanted


async def bootstrap(desk: Desk, call: Call) -> BootstrapLine:
    """Return the line that starts a dyno by hand."""
    wanted: Bootstrap = call.body
    definition = desk.registry.find(wanted.server)
    if definition is None:
        raise _unknown(desk, wanted.server)
    launch_id, environment = desk.manager.pool.invite(definition)
    line = desk.run_line(definition, launch_id, environment)
    return BootstrapLine(definition.name, launch_id, line)


def _known(desk: Desk) -> list[ServerDefinition]:
    gone = [desk.registry.known(name) for name in desk.registry.disconnected]
    return [*desk.registry.servers, *(server for server in gone if server is not None)]


def _find(desk: Desk, name: str) -> ServerDefinition:
    definition = desk.registry.known(name)
    if definition is None:
        raise _unknown(desk, name)
    return definition


def _unknown(desk: Desk, name: str) -> Problem:
    known = ", ".join(desk.registry.names)
    return Problem(404, f"no server {name[:64]!a}; there are: {known}")


async def _live(desk: Desk) -> dict[str, int]:
    """Return how many sessions of clients live, by server; throw-away runs are none."""
    counts: dict[str, int] = {}
    for summary in (await desk.recorder.summaries()).values():
        lives = desk.standing.of(summary, desk.now)[0] != CLOSED
        if lives and summary.principal != GATEWAY:
            counts[summary.server] = counts.get(summary.server, 0) + 1
    return counts


def _server(desk: Desk, definition: ServerDefinition, live: dict[str, int]) -> Server:
    tools = desk.tools(definition)
    return Server(**_facts(desk, definition, live), tools=None if tools is None else len(tools))


def _facts(desk: Desk, definition: ServerDefinition, live: dict[str, int]) -> dict[str, Any]:
    registered = desk.registry.find(definition.name) is not None
    return {
        "name": definition.name,
        "status": "registered" if registered else "disconnected",
        "app": definition.app,
        "process_type": definition.process_type,
        "size": definition.size,
        "release": definition.release,
        "warm": msgspec.to_builtins(definition.warm),
        "description": definition.description,
        "sessions": live.get(definition.name, 0),
        "log_level": desk.levels.get(definition.name),
    }


def _text(said: object) -> str:
    """Return what a child says, inert and not too long."""
    return inert(cut(said, MOST_CHARACTERS)) if isinstance(said, str) else ""


# Dynos


async def ledger(desk: Desk, _call: Call) -> Ledger:
    """Return what runs and what it cost."""
    return msgspec.convert(desk.manager.book.report(desk.now), Ledger)


async def pool(desk: Desk, _call: Call) -> list[ParkedDyno]:
    """Return the dynos of the pool."""
    now = time.monotonic()
    return [
        ParkedDyno(
            launch=parked.launch_id,
            server=parked.server.name,
            release=parked.server.release,
            dyno=parked.dyno_id,
            state="stopping" if parked.over else "booting" if parked.ready is None else "parked",
            parked_s=None if parked.ready is None else round(now - parked.ready, 3),
            bootstrapped=not parked.ours,
        )
        for parked in desk.manager.pool
    ]


async def queue(desk: Desk, _call: Call) -> list[QueuedSession]:
    """Return the sessions of this process that wait in line."""
    return [
        QueuedSession(
            live.record.session_id, live.record.server.name, live.record.server.app, position
        )
        for live, position in desk.manager.dynos.queue
    ]
