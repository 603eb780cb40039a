"""All operations of the operators' API. Routes and the OpenAPI document are made of this table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from gateway.ops.admin import estate, failures, sessions, shapes, tail
from gateway.ops.admin.desk import Handler

BASE = "/admin/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """Something that an operator can ask for.

    Attributes:
        method: of HTTP.
        path: below `BASE`; parts in braces are variable.
        name: of the operation, for programs that are made of the document.
        summary: one sentence.
        handler: does it.
        answer: type of the JSON document, or a media type.
        status: of the answer.
        query: shape of its parameters; None for none.
        body: shape of its body; None for none.
        tells: headers of the answer, by name.
        refusals: statuses that it may be refused with, beside those of all: why.
        relayed: another process may have to do it.
        action: what it is called in the log; empty if it changes nothing.
    """

    method: str
    path: str
    name: str
    summary: str
    handler: Handler
    answer: Any
    status: int = 200
    query: type[msgspec.Struct] | None = None
    body: type[msgspec.Struct] | None = None
    tells: Mapping[str, str] = field(default_factory=dict)
    refusals: Mapping[int, str] = field(default_factory=dict)
    relayed: bool = False
    action: str = ""


_NO_SESSION: Final = {404: "Nobody knows this session (any more)."}
_NO_SERVER: Final = {404: "There is no such server."}
_LOST: Final = {421: "The process that has the session was lost meanwhile: ask again."}

TABLE: Final = (
    Operation(
        method="GET",
        path="/sessions",
        name="listSessions",
        summary="Sessions of all gateway processes, by page.",
        handler=sessions.listed,
        query=shapes.SessionsQuery,
        answer=shapes.Sessions,
        refusals={404: "There is no such page: the cursor is not of this list."},
    ),
    Operation(
        method="GET",
        path="/sessions/{session}",
        name="getSession",
        summary="One session.",
        handler=sessions.one,
        answer=shapes.Session,
        refusals=_NO_SESSION,
    ),
    Operation(
        method="DELETE",
        path="/sessions/{session}",
        name="killSession",
        summary="End a session at whichever process it lives, and stop its dyno.",
        handler=sessions.kill,
        answer=shapes.Killed,
        status=202,
        refusals={**_NO_SESSION, **_LOST, 409: "It has ended already."},
        relayed=True,
        action="kill",
    ),
    Operation(
        method="GET",
        path="/sessions/{session}/story",
        name="tellStory",
        summary="The lines of a session's story: JSON, one a line; up to 1 MiB at once.",
        handler=sessions.story,
        query=shapes.StoryQuery,
        answer=sessions.LINES,
        tells={
            sessions.LAST_HEADER: "Number of the newest line that there is.",
            sessions.NEXT_HEADER: "There is more: ask again with this `after`.",
        },
        refusals=_NO_SESSION,
    ),
    Operation(
        method="GET",
        path="/sessions/{session}/tail",
        name="followStory",
        summary="The same, live: server-sent events with a line and its number each; the last one "
        "is an `end` event, once the session is closed. `Last-Event-ID` continues.",
        handler=tail.tail,
        query=shapes.TailQuery,
        answer=tail.EVENTS,
        refusals={**_NO_SESSION, **_LOST},
        relayed=True,
    ),
    Operation(
        method="GET",
        path="/failures",
        name="listFailures",
        summary="What went wrong of late, grouped by cause, with what to look at.",
        handler=failures.failures,
        query=shapes.FailuresQuery,
        answer=shapes.Failures,
    ),
    Operation(
        method="GET",
        path="/gateways",
        name="listGateways",
        summary="The gateway processes that are alive.",
        handler=estate.gateways,
        answer=list[shapes.GatewayProcess],
    ),
    Operation(
        method="POST",
        path="/gateways/{gateway}/drain",
        name="drainGateway",
        summary="Let a gateway process drain and end, as SIGTERM does.",
        handler=estate.drain,
        answer=shapes.Draining,
        status=202,
        refusals={**_LOST, 404: "No such process is alive."},
        relayed=True,
        action="drain",
    ),
    Operation(
        method="GET",
        path="/servers",
        name="listServers",
        summary="All servers.",
        handler=estate.servers,
        answer=list[shapes.Server],
    ),
    Operation(
        method="POST",
        path="/servers/refresh",
        name="refreshServers",
        summary="The same, after a look at the apps that begins now.",
        handler=estate.refresh,
        answer=list[shapes.Server],
        refusals={
            409: "The servers come from the servers file.",
            504: "The apps were not looked at in time.",
        },
    ),
    Operation(
        method="GET",
        path="/servers/{server}",
        name="getServer",
        summary="One server and its tools.",
        handler=estate.server,
        answer=shapes.ServerWithTools,
        refusals=_NO_SERVER,
    ),
    Operation(
        method="PUT",
        path="/servers/{server}/log-level",
        name="setLogLevel",
        summary="Log more or less of a server, at all gateway processes within 5 s.",
        handler=estate.set_log_level,
        body=shapes.LogLevel,
        answer=shapes.LogLevel,
        refusals=_NO_SERVER,
        action="log_level",
    ),
    Operation(
        method="GET",
        path="/ledger",
        name="getLedger",
        summary="What runs and what it may still cost, totals by month, bills, budgets.",
        handler=estate.ledger,
        answer=shapes.Ledger,
    ),
    Operation(
        method="GET",
        path="/pool",
        name="listPool",
        summary="The dynos of the pool.",
        handler=estate.pool,
        answer=list[shapes.ParkedDyno],
    ),
    Operation(
        method="GET",
        path="/queue",
        name="listQueue",
        summary="Sessions that wait for a dyno.",
        handler=estate.queue,
        answer=list[shapes.QueuedSession],
    ),
    Operation(
        method="POST",
        path="/bootstrap",
        name="bootstrap",
        summary="The line that starts a dyno by hand; good for 15 minutes.",
        handler=estate.bootstrap,
        body=shapes.Bootstrap,
        answer=shapes.BootstrapLine,
        refusals=_NO_SERVER,
        action="bootstrap",
    ),
)
"""Operations with the same path stand together."""
