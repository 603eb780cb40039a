"""What happened, as frozen values. Domain code emits them; sinks make log lines and metrics.

No event holds a token or a session key. Payloads are in `payload` fields alone, of servers that are
told to record them; only the recorder looks at those. `name` is what a session's story shows.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something happened."""

    name: ClassVar[str]
    level: ClassVar[str] = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEvent(Event):
    """Something in the life of one session."""

    session: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Requested(SessionEvent):
    """A client asked for a session."""

    name = "requested"
    server: str
    principal: str
    client: str
    rebuilt: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Launching(SessionEvent):
    """A dyno was asked for."""

    name = "launching"
    launch: str
    launcher: str
    face: str = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued(SessionEvent):
    """The platform runs as many dynos as it may; the session waits in line for one."""

    name = "queued"
    position: int
    waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted(SessionEvent):
    """A parked dyno is the session's now, and never another's."""

    name = "adopted"
    launch: str
    dyno: str
    parked_s: float
    pool_dyno_s: float
    pool_usd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched(SessionEvent):
    """The launcher got a dyno."""

    name = "launched"
    level = "debug"
    launch: str
    dyno: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DialledIn(SessionEvent):
    """The agent joined."""

    name = "dialled_in"
    epoch: int
    agent: str
    python: str
    boot_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Parted(SessionEvent):
    """The agent's attachment was lost; it may dial again within the grace period."""

    name = "parted"
    level = "warning"
    epoch: int
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed(SessionEvent):
    """The agent dialled again."""

    name = "resumed"
    epoch: int
    parted_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Hydrated(SessionEvent):
    """An agent brought its session to this gateway process, which did not know it."""

    name = "hydrated"
    server: str
    principal: str
    launch: str
    age_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedOver(SessionEvent):
    """This gateway process leaves; the agent was told to dial the next one."""

    name = "handed_over"
    calls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready(SessionEvent):
    """The child runs."""

    name = "ready"
    pid: int
    boot_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed(SessionEvent):
    """A message went through, to the child or to the client. An answer to a call is `CallFinished`.

    `kind` is request, notification or response; a response has no method.
    """

    name = "message"
    level = "debug"
    to: str
    kind: str
    method: str
    tool: str | None
    call: str
    payload: bytes = field(default=b"", repr=False)
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFinished(SessionEvent):
    """A request of the client was answered, by the child or in its place.

    `outcome` is ok, error (of the protocol), tool_error (a result that says so itself), cancelled,
    catalogue, or the reason of the gateway's own error; `trace` names the span it belongs to.
    """

    name = "call"
    server: str
    call: str
    method: str
    tool: str | None
    outcome: str
    ms: float
    bytes_in: int
    bytes_out: int
    code: int | None = None
    trace: str = ""
    payload: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle(SessionEvent):
    """No call ran for a moment."""

    name = "idle"
    calls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildLog(SessionEvent):
    """A line of the child's stderr."""

    name = "stderr"
    text: str
    dropped: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise(SessionEvent):
    """The child wrote something to stdout that is no MCP message; it was not forwarded."""

    name = "stdout_noise"
    level = "warning"
    sample: str
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped(SessionEvent):
    """A message had nowhere to go, or came from a peer that had no right to send it."""

    name = "dropped"
    level = "warning"
    what: str
    why: str
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Contradicted(SessionEvent):
    """The child has said something else than what the catalogue tells clients."""

    name = "contradicted"
    server: str
    principal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned(SessionEvent):
    """A throw-away run has told what a server answers in one era."""

    name = "learned"
    server: str
    era: str
    lists: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NotLearned(SessionEvent):
    """A throw-away run came to nothing: the child does not speak that era, or failed."""

    name = "not_learned"
    server: str
    era: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Breach(SessionEvent):
    """The agent broke the link protocol, or somebody used its token twice."""

    name = "breach"
    level = "error"
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing(SessionEvent):
    """The session is being ended."""

    name = "closing"
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed(SessionEvent):
    """The session is over and its dyno was stopped."""

    name = "closed"
    reason: str
    seconds: float
    calls: int
    dropped: int
    peak_buffer_bytes: int
    dyno_s: float = 0.0
    usd: float = 0.0
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformSaid(SessionEvent):
    """A webhook told that a session's dyno has ended."""

    name = "platform_said"
    dyno: str
    state: str
    exit_status: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DynoParked(Event):
    """A dyno stands ready for a session of this server."""

    name = "dyno_parked"
    server: str
    launch: str
    dyno: str
    boot_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DynoUnparked(Event):
    """A dyno of the pool is gone, and no session has had it."""

    name = "dyno_unparked"
    server: str
    launch: str
    dyno_s: float
    usd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NotParked(Event):
    """The pool could not get a dyno."""

    name = "not_parked"
    level = "warning"
    server: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NotStopped(Event):
    """A dyno could not be stopped; it is tried again."""

    name = "not_stopped"
    level = "warning"
    launch: str
    dyno: str
    why: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OrphanGone(Event):
    """A dyno of this deployment without a session here is gone: stopped, or by itself."""

    name = "orphan_gone"
    level = "warning"
    launch: str
    dyno: str
    stopped: bool
    dyno_s: float
    usd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NotListed(Event):
    """The platform could not be asked which dynos run."""

    name = "not_listed"
    level = "warning"
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered(Event):
    """A server can be used from now on, or is not what it was."""

    name = "registered"
    server: str
    app: str
    release: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnected(Event):
    """A server is gone: no new session is opened with it, those that live go on."""

    name = "disconnected"
    level = "warning"
    server: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NotDiscovered(Event):
    """An app could not be looked at; its servers stay as they were."""

    name = "not_discovered"
    level = "warning"
    app: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Operated(Event):
    """An operator did something, or was not let in."""

    name = "operated"
    level = "warning"
    action: str
    subject: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreAway(Event):
    """What the gateway processes share cannot be reached: nothing is opened or launched."""

    name = "store_away"
    level = "warning"
    store: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreBack(Event):
    """It can be reached again."""

    name = "store_back"
    store: str
    seconds: float


Sink = Callable[[Event], None]
"""Hears every event. It must not block and must not raise."""
