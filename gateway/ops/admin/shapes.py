"""What the operators' API takes and answers, as structs: the one place that says so.

The OpenAPI document is made of these and their docstrings. Moments are seconds since 1970 (UTC),
money is US dollars. Every field of an answer is always there. Texts that clients and children have
written are inert (no control or format characters), and still not to be trusted.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

LONGEST = 200
"""Characters of whatever a query looks for, and sessions on a page."""

Stage = Literal[
    "requested",
    "queued",
    "launching",
    "dialled_in",
    "ready",
    "idle",
    "parted",
    "closing",
    "closed",
]
State = Literal["unknown", Stage]
Order = Literal["newest", "idle", "calls", "errors", "cost", "age"]
Level = Literal["debug", "info", "warning", "error"]

Text = Annotated[str, Meta(max_length=LONGEST)]
Number = Annotated[int, Meta(ge=0, le=2**53 - 1)]
Limit = Annotated[int, Meta(ge=1, le=LONGEST)]


class Error(msgspec.Struct, frozen=True):
    """Why something was not done.

    Attributes:
        error: a sentence with the next step.
    """

    error: str


# Sessions


class SessionsQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which sessions are listed, and in which order.

    Attributes:
        state: in this state.
        server: of this server.
        principal: of this principal.
        q: with this text in id, client, server, principal, dyno or launch, in any case.
        live: true for those that are not closed, false for those that are.
        sort: `newest` opened first; longest `idle`, most `calls`, most `errors`, highest `cost` or
            `age` first.
        limit: of a page.
        cursor: `next` of the page before; the other parameters stay the same.
    """

    state: State | UnsetType = UNSET
    server: Text | UnsetType = UNSET
    principal: Text | UnsetType = UNSET
    q: Text = ""
    live: Literal["true", "false"] | UnsetType = UNSET
    sort: Order = "newest"
    limit: Limit = 50
    cursor: Annotated[str, Meta(max_length=400)] | UnsetType = UNSET


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A session as it is now.

    Attributes:
        session: its id.
        server: what runs in its dyno.
        principal: whose it is.
        client: what the client calls itself.
        gateway: id of the process that has it, or had it last.
        here: that is the process that answers.
        state: where it stands. One whose process is gone is `parted`, and `closed` once its agent
            can come back no more. `unknown` if its beginning is not kept.
        reason: why it ended.
        detail: what more is known of that.
        opened: when its client asked for it.
        active: when its client last sent something or was answered.
        ended: when it closed; 0 while it lives.
        age_s: from `opened` to now or to its end.
        idle_s: since `active`; 0 once it is closed.
        calls: how many it has had.
        errors: how many of them failed.
        running: how many are under way.
        bytes_in: of messages to the child.
        bytes_out: of messages to the client.
        launch: id of the attempt to get its dyno.
        dyno: its dyno, as the platform calls it.
        boot_s: how long that took; null until it has booted.
        warm: its dyno was parked before.
        parts: how often the agent's link was lost.
        dyno_s: seconds of its dyno, until now.
        usd: what they cost.
        usd_per_hour: what its dyno costs; 0 if none runs.
        failure: what went wrong last.
    """

    session: str
    server: str
    principal: str
    client: str
    gateway: str
    here: bool
    state: State
    reason: str
    detail: str
    opened: float
    active: float
    ended: float
    age_s: float
    idle_s: float
    calls: int
    errors: int
    running: int
    bytes_in: int
    bytes_out: int
    launch: str
    dyno: str
    boot_s: float | None
    warm: bool
    parts: int
    dyno_s: float
    usd: float
    usd_per_hour: float
    failure: str


class Sessions(msgspec.Struct, frozen=True, kw_only=True):
    """A page of sessions.

    Attributes:
        sessions: of this page.
        total: how many match.
        next: cursor of the next page; null on the last one.
        by_state: how many match of each state there is, whatever `state` and `live` ask for.
        at: when this was true.
    """

    sessions: list[Session]
    total: int
    next: str | None
    by_state: dict[str, int]
    at: float


class Killed(msgspec.Struct, frozen=True):
    """A session that is being ended; its story tells when it is over.

    Attributes:
        session: its id.
        state: always `closing`.
    """

    session: str
    state: Literal["closing"] = "closing"


class StoryQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which lines of a story are told.

    Attributes:
        after: those after this number.
        last: of these the last so many.
        q: of these the ones with this text, in any case.
    """

    after: Number = 0
    last: Annotated[int, Meta(ge=1, le=100_000)] | UnsetType = UNSET
    q: Text = ""


class TailQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a tail begins; the header `Last-Event-ID` of a client that comes back goes first.

    Attributes:
        after: with the line after this number.
    """

    after: Number = 0


# Failures


class FailuresQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which failures are told.

    Attributes:
        q: with this text in any field, in any case.
        server: of this server.
        limit: of single failures, the newest; groups count all there are.
    """

    q: Text = ""
    server: Text | UnsetType = UNSET
    limit: Limit = 100


class FailureGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Failures with one cause at one server.

    Attributes:
        cause: a word; docs/errors.md and docs/logs.md have them.
        server: where; empty if it was at none.
        count: how often.
        first: when for the first time.
        last: when for the last time.
        sessions: of which, at most five, the latest first.
        example: the latest detail.
        hint: what to look at.
    """

    cause: str
    server: str
    count: int
    first: float
    last: float
    sessions: list[str]
    example: str
    hint: str


class SingleFailure(msgspec.Struct, frozen=True, kw_only=True):
    """Something that went wrong.

    Attributes:
        at: when.
        cause: a word; docs/errors.md and docs/logs.md have them.
        server: where; empty if it was at none.
        principal: whose session it was.
        session: its id; empty if it was of none.
        call: id of the call.
        method: of the call.
        tool: that it called.
        detail: what is known.
    """

    at: float
    cause: str
    server: str
    principal: str
    session: str
    call: str
    method: str
    tool: str
    detail: str


class Failures(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong.

    Attributes:
        groups: by cause and server, the latest first.
        failures: the newest first.
    """

    groups: list[FailureGroup]
    failures: list[SingleFailure]


# Gateways


class GatewayProcess(msgspec.Struct, frozen=True):
    """A gateway process that is alive.

    Attributes:
        gateway: its id.
        here: it is the one that answers.
    """

    gateway: str
    here: bool


class Draining(msgspec.Struct, frozen=True):
    """A process that leaves, as after SIGTERM.

    Attributes:
        gateway: its id.
        state: always `draining`.
    """

    gateway: str
    state: Literal["draining"] = "draining"


# Servers


class ServerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A server.

    Attributes:
        name: of the server.
        status: `disconnected` ones are deployed no more; their sessions go on.
        app: in whose dynos it runs.
        process_type: whose command it is.
        size: of its dynos.
        release: of the app.
        warm: dynos to keep parked: how many, or windows of the week.
        description: one line.
        sessions: how many of clients live.
        log_level: least level that is logged of it; null if it is that of the deployment.
    """

    name: str
    status: Literal["registered", "disconnected"]
    app: str | None
    process_type: str | None
    size: str | None
    release: str
    warm: int | list[dict[str, Any]]
    description: str
    sessions: int
    log_level: Level | None


class Server(ServerFacts, frozen=True, kw_only=True):
    """A server.

    Attributes:
        tools: how many it has; null as long as nobody knows.
    """

    tools: int | None


class Tool(msgspec.Struct, frozen=True):
    """A tool, as the server tells it.

    Attributes:
        name: of the tool.
        description: cut after 2,000 characters.
    """

    name: str
    description: str


class ServerWithTools(ServerFacts, frozen=True, kw_only=True):
    """A server and its tools.

    Attributes:
        tools: the first 1,000 that it has; null as long as nobody knows.
    """

    tools: list[Tool] | None


class LogLevel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is logged of a server.

    Attributes:
        level: least level; null for that of the deployment.
    """

    level: Level | None


class Bootstrap(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a dyno that an operator starts shall run.

    Attributes:
        server: name of the server.
    """

    server: str


class BootstrapLine(msgspec.Struct, frozen=True):
    """How an operator starts a dyno by hand.

    Attributes:
        server: that it runs.
        launch: id of the launch.
        command: the line to paste; it holds a token that is good once, for 15 minutes.
    """

    server: str
    launch: str
    command: str


# Dynos


class ParkedDyno(msgspec.Struct, frozen=True, kw_only=True):
    """A dyno of the pool.

    Attributes:
        launch: id of the launch.
        server: that it is for.
        release: of the app.
        dyno: as the platform calls it; null until that is known.
        state: of the dyno.
        parked_s: for how long it has stood ready; null until it does.
        bootstrapped: an operator has started it by hand.
    """

    launch: str
    server: str
    release: str
    dyno: str | None
    state: Literal["booting", "parked", "stopping"]
    parked_s: float | None
    bootstrapped: bool


class QueuedSession(msgspec.Struct, frozen=True):
    """A session that waits in line for a dyno.

    Attributes:
        session: its id.
        server: of the session.
        app: whose dyno limit is reached.
        position: in the line, from 1.
    """

    session: str
    server: str
    app: str | None
    position: int


# The ledger


class Sum(msgspec.Struct, frozen=True):
    """What dynos come to.

    Attributes:
        dyno_s: their seconds.
        usd: what these cost.
    """

    dyno_s: float
    usd: float


class Month(msgspec.Struct, frozen=True, kw_only=True):
    """A calendar month (UTC).

    Attributes:
        month: such as `2026-09`.
        dyno_s: seconds of all dynos.
        usd: what they cost.
        by_server: the same by server.
        by_principal: the same by principal.
        by_size: the same by dyno size.
    """

    month: str
    dyno_s: float
    usd: float
    by_server: dict[str, Sum]
    by_principal: dict[str, Sum]
    by_size: dict[str, Sum]


class Budget(msgspec.Struct, frozen=True):
    """How a budget of this month stands.

    Attributes:
        budget_usd: the budget; null for none.
        spent_usd: spent.
        committed_usd: what the dynos that run may still cost.
    """

    budget_usd: float | None
    spent_usd: float
    committed_usd: float


class Budgets(msgspec.Struct, frozen=True):
    """The budgets of this month.

    Attributes:
        overall: of the deployment.
        by_principal: of principals that have one.
    """

    overall: Budget
    by_principal: dict[str, Budget]


class Paid(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a dyno's life that one principal pays.

    Attributes:
        launch: id of the launch.
        principal: who pays.
        server: that it runs.
        session: that has it; empty if none.
        size: of the dyno.
        usd_per_hour: what it costs.
        since: from when on this principal pays.
        dyno_s: seconds since then.
        usd: what they cost.
    """

    launch: str
    principal: str
    server: str
    session: str
    size: str
    usd_per_hour: float
    since: float
    dyno_s: float
    usd: float


class RunningDyno(Paid, frozen=True, kw_only=True):
    """A dyno that runs and is paid for.

    Attributes:
        started: when it began to cost.
        latest_end: it will have ended by then.
    """

    started: float
    latest_end: float


class Bill(Paid, frozen=True, kw_only=True):
    """What a dyno has cost one principal.

    Attributes:
        ended: until when.
    """

    ended: float


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """What dynos cost.

    Attributes:
        month: the present one.
        month_ends: when it ends.
        budgets: of this month.
        running: the oldest first.
        months: up to 13, the newest first, with what runs.
        bills: the last 1,000, the newest first.
    """

    month: str
    month_ends: float
    budgets: Budgets
    running: list[RunningDyno]
    months: list[Month]
    bills: list[Bill]


# Signing in


class SignIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What opens the console.

    Attributes:
        key: of operators.
    """

    key: str

    def __repr__(self) -> str:
        """Without the key."""
        return "SignIn()"


class SignedIn(msgspec.Struct, frozen=True):
    """Whether the console may ask.

    Attributes:
        authenticated: the cookie is good.
    """

    authenticated: bool
