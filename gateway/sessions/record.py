"""What a session is and which states it goes through. Pure; all transitions in one table."""

from dataclasses import dataclass
from enum import StrEnum

from dyno_agent.link import Face
from gateway.registry.servers import ServerDefinition


class State(StrEnum):
    """Where a session stands."""

    REQUESTED = "requested"
    LAUNCHING = "launching"
    DIALLED_IN = "dialled_in"
    READY = "ready"
    IDLE = "idle"
    PARTED = "parted"
    CLOSING = "closing"
    CLOSED = "closed"


class Step(StrEnum):
    """What moves a session."""

    LAUNCH = "launch"
    JOIN = "join"
    SPAWNED = "spawned"
    CALL = "call"
    QUIET = "quiet"
    PART = "part"
    RESUME = "resume"
    END = "end"
    GONE = "gone"


class Reason(StrEnum):
    """Why a session ended."""

    CLIENT_DELETE = "client_delete"
    CLIENT_GONE = "client_gone"
    INITIALIZE_FAILED = "initialize_failed"
    IDLE = "idle"
    LIFETIME = "lifetime"
    PROCESS_EXIT = "process_exit"
    BOOT_TIMEOUT = "boot_timeout"
    BOOT_FAILED = "boot_failed"
    NO_ROOM = "no_room"
    LINK_LOST = "link_lost"
    BREACH = "breach"
    DRAINED = "drained"
    EVICTED = "evicted"
    ANSWERED = "answered"
    OPERATOR = "operator"


class ImpossibleStep(Exception):
    """A step that the state does not allow: a bug of ours, named by state and step."""


_UP = (State.READY, State.IDLE)
_HELD = (State.DIALLED_IN, *_UP)
_OPEN = (State.REQUESTED, State.LAUNCHING, *_HELD, State.PARTED)

TRANSITIONS: dict[tuple[State, Step], State] = {
    (State.REQUESTED, Step.LAUNCH): State.LAUNCHING,
    (State.LAUNCHING, Step.JOIN): State.DIALLED_IN,
    (State.DIALLED_IN, Step.SPAWNED): State.READY,
    (State.IDLE, Step.CALL): State.READY,
    (State.READY, Step.QUIET): State.IDLE,
    (State.PARTED, Step.RESUME): State.READY,
    **{(state, Step.PART): State.PARTED for state in _HELD},
    # An attachment that was lost between its upgrade and its WELCOME.
    **{(state, Step.PART): state for state in (State.LAUNCHING, State.PARTED)},
    **{(state, Step.END): State.CLOSING for state in _OPEN},
    (State.CLOSING, Step.GONE): State.CLOSED,
    # A call changes nothing while the dyno boots, works or is out of reach: it waits.
    **{(state, Step.CALL): state for state in _OPEN if state is not State.IDLE},
    # The report of a spawn may arrive after the link was lost and resumed.
    **{(state, Step.SPAWNED): state for state in _UP},
    # What was under way when the end began.
    **{
        (State.CLOSING, step): State.CLOSING
        for step in (Step.JOIN, Step.SPAWNED, Step.PART, Step.RESUME, Step.END)
    },
}


@dataclass(slots=True)
class SessionRecord:
    """The facts of one session.

    Attributes:
        session_id: public name, for logs and operators; derived from the key, useless without it.
        fingerprint: of the key that the client presents (`Mcp-Session-Id`).
        principal: who may present it.
        server: what runs in the dyno.
        created: monotonic seconds.
        launched: when its dyno was asked for, monotonic seconds; None as long as it has none.
        face: the era that the child is to show, see `dyno_agent.faces`.
        launch_id: public name of the attempt to get a dyno.
        dyno_id: the launcher's name of the dyno, once known.
        billed: from when on the dyno is paid for by this session, seconds since 1970.
    """

    session_id: str
    fingerprint: str
    principal: str
    server: ServerDefinition
    created: float
    state: State = State.REQUESTED
    launched: float | None = None
    face: Face = "plain"
    launch_id: str = ""
    dyno_id: str | None = None
    billed: float = 0.0
    calls: int = 0

    def boot_s(self, now: float) -> float:
        """Return how long the boot has taken, for the log."""
        return round(now - (self.created if self.launched is None else self.launched), 3)

    def move(self, step: Step) -> bool:
        """Take a step; return whether the state changed.

        Raises:
            ImpossibleStep: the table has no such transition.
        """
        target = TRANSITIONS.get((self.state, step))
        if target is None:
            raise ImpossibleStep(f"{step} in state {self.state} of {self.session_id}")
        changed, self.state = target is not self.state, target
        return changed

    @property
    def over(self) -> bool:
        """True once nothing new is taken."""
        return self.state in (State.CLOSING, State.CLOSED)
