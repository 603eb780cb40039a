"""What a session's story says: events become its lines, its summary and its failures. Pure.

A line is one compact JSON object of at most `LINE_BYTES`: `at` (seconds since 1970), `event`, and
what the event says. Text in it is redacted, inert, and cut.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any, ClassVar, Final, Literal

import msgspec

from gateway import events
from gateway.ops.inertness import inert
from gateway.ops.redaction import Redactor

LINE_BYTES: Final = 8 * 1024
"""A line; its texts are cut shorter until it fits."""

TEXT_CHARS: Final = 2000
"""A text in a line, as it is shown."""

PAYLOAD_TEXTS: Final = 4
"""A payload may be so many times as long, if its server wants that much of it."""

SUMMARY_CHARS: Final = 300
"""A text in a summary or a failure: thousands of them are in memory."""

Shown = Callable[[str], str]
"""Makes text fit to be kept and shown: redacted and inert."""

_JSON: Final = msgspec.json.Encoder()

State = Literal[
    "", "requested", "queued", "launching", "dialled_in", "ready", "idle", "parted", "closing",
    "closed",
]  # fmt: skip
"""Where a session stands; empty if nobody has said."""

FAILURES: Final = "failures"
"""The story of failures: its lines are `Failure`s."""

STATES: Final[Mapping[type[events.Event], State]] = {
    events.Queued: "queued",
    events.Launching: "launching",
    events.DialledIn: "dialled_in",
    events.Ready: "ready",
    events.Idle: "idle",
    events.Parted: "parted",
    events.Resumed: "ready",
    events.Closing: "closing",
    events.Closed: "closed",
}
"""Where a session stands after an event, unless it is being closed: then it will be closed.

`Requested` and `Hydrated` begin anew, and a request wakes a session that is idle.
"""

FINE: Final = frozenset({"ok", "catalogue", "cancelled"})
"""Outcomes of calls that are no failures."""

MEANT: Final = frozenset(
    {
        "client_delete",
        "client_gone",
        "idle",
        "lifetime",
        "drained",
        "evicted",
        "answered",
        "operator",
    }
)
"""Reasons for which a session ends that are no failures."""

DETAILS: Final[Mapping[type[events.Event], tuple[str, ...]]] = {
    events.NotParked: ("why",),
    events.NotStopped: ("launch", "dyno", "why", "attempt"),
    events.NotListed: ("why",),
    events.NotDiscovered: ("app", "why"),
    events.NotLearned: ("era", "why"),
    events.OrphanGone: ("launch", "dyno", "dyno_s"),
    events.Breach: ("cause",),
    events.StoreAway: ("store",),
    events.Contradicted: (),
}
"""Other events that are failures, and what of them is the detail."""

_TOLD: Final = frozenset({"breach"})
"""Reasons of which an event of its own has told."""

_NAMED_DETAILS: Final = frozenset({"launch", "dyno", "attempt", "app", "era", "dyno_s"})

_OURS: Final = frozenset(
    {"server", "principal", "launch", "launcher", "face", "era", "reason", "outcome", "kind", "to"}
)
"""Fields that hold no text from outside, and that a value of an environment may be part of."""


class Summary(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What the list of sessions shows of one. Times are in seconds since 1970.

    Attributes:
        session: its public name.
        server: name of its server; empty if nobody has said.
        principal: whose it is.
        client: how its client calls itself; inert.
        gateway: id of the process that it lives at, or lived at last.
        state: where it stands.
        reason: why it ended or is about to; empty before.
        detail: more of that, if it was not meant to end; inert.
        opened: when it was asked for.
        active: when its client last sent something or was answered.
        ended: when it was over; 0 while it lives.
        calls: calls that are finished, whoever answered; since it was asked for last.
        errors: those of them that failed.
        running: calls that are with the child; 0 if the server's messages are not recorded.
        bytes_in: of the client's messages; a call counts when it is finished.
        bytes_out: of the messages to the client.
        launch: id of the launch of its dyno.
        dyno: the launcher's name of its dyno.
        boot_s: from the request for the dyno until the child ran; None before.
        warm: its dyno stood ready.
        parts: how often the link to its agent was lost.
        dyno_s: what its dyno ran, once that is known.
        usd: what that cost.
        failure: the last call that failed, in short; inert.
    """

    session: str
    server: str = ""
    principal: str = ""
    client: str = ""
    gateway: str = ""
    state: State = ""
    reason: str = ""
    detail: str = ""
    opened: float = 0.0
    active: float = 0.0
    ended: float = 0.0
    calls: int = 0
    errors: int = 0
    running: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    launch: str = ""
    dyno: str = ""
    boot_s: float | None = None
    warm: bool = False
    parts: int = 0
    dyno_s: float = 0.0
    usd: float = 0.0
    failure: str = ""


class Failure(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Something that went wrong.

    Attributes:
        at: seconds since 1970.
        cause: outcome of the call, reason of the session's end, or name of the event.
        server: name of the server; empty if it is nobody's, or not known.
        principal: whose session it was; empty without one.
        session: public name of the session; empty without one.
        call: id of the call as its client knows it; empty without one. Inert.
        method: of the call. Inert.
        tool: that it named; empty if none. Inert.
        detail: what is known beside; inert.
    """

    at: float
    cause: str
    server: str = ""
    principal: str = ""
    session: str = ""
    call: str = ""
    method: str = ""
    tool: str = ""
    detail: str = ""


class Tale:
    """One session as far as it is known: every event makes its summary newer.

    Args:
        session: public name.
        gateway: id of this process.
        before: what is known of it from elsewhere.

    Attributes:
        summary: of what was heard until now.
        ours: this process says what its summary is; nobody else does.
        told: the summary as others were told of it last; None before.
        key_lines: for `Redactor.line`, of the child's stderr.
    """

    def __init__(self, session: str, gateway: str, before: Summary | None = None) -> None:
        self.summary = Summary(session=session, gateway=gateway) if before is None else before
        self.ours = False
        self.told: Summary | None = None
        self.key_lines = 0
        self._gateway = gateway
        self._inherited = self.summary.running
        self._running: Counter[str] = Counter()

    @property
    def over(self) -> bool:
        """True once the session is closed."""
        return self.summary.state == "closed"

    def hear(self, at: float, event: events.Event, shown: Shown) -> None:
        """Take an event.

        Args:
            at: when it happened, seconds since 1970.
            event: what happened.
            shown: makes text fit to be kept.
        """
        self._move(type(event))
        if (hears := self._HEARS.get(type(event))) is not None:
            hears(self, at, event, shown)

    def _move(self, kind: type[events.Event]) -> None:
        state = self.summary.state
        if state == "closed" or (state == "closing" and kind is not events.Closed):
            return
        self.summary.state = STATES.get(kind, state)

    def _requested(self, at: float, event: events.Requested, shown: Shown) -> None:
        self.ours = True
        self._inherited = 0
        self._running.clear()
        self.summary = Summary(
            session=event.session,
            server=event.server,
            principal=inert(event.principal),
            client=cut(shown(event.client), SUMMARY_CHARS),
            gateway=self._gateway,
            state="requested",
            opened=at,
            active=at,
        )

    def _hydrated(self, at: float, event: events.Hydrated, _shown: Shown) -> None:
        self.ours = True
        summary = self.summary
        summary.server, summary.principal = event.server, inert(event.principal)
        summary.gateway = self._gateway
        summary.launch = event.launch or summary.launch
        summary.opened = summary.opened or at - event.age_s
        summary.active = summary.active or at
        summary.state = "launching" if event.launch else "requested"
        summary.reason = summary.detail = ""
        summary.ended = summary.dyno_s = summary.usd = 0.0

    def _handed_over(self, _at: float, _event: events.HandedOver, _shown: Shown) -> None:
        self.ours = False

    def _launching(self, _at: float, event: events.Launching, _shown: Shown) -> None:
        self.summary.launch = event.launch

    def _launched(self, _at: float, event: events.Launched, shown: Shown) -> None:
        self.summary.launch, self.summary.dyno = event.launch, shown(event.dyno)

    def _adopted(self, _at: float, event: events.Adopted, shown: Shown) -> None:
        self.summary.launch, self.summary.dyno = event.launch, shown(event.dyno)
        self.summary.warm = True

    def _ready(self, _at: float, event: events.Ready, _shown: Shown) -> None:
        self.summary.boot_s = event.boot_s

    def _parted(self, _at: float, _event: events.Parted, _shown: Shown) -> None:
        self.summary.parts += 1

    def _idle(self, _at: float, _event: events.Idle, _shown: Shown) -> None:
        self._runs_none()

    def _passed(self, at: float, event: events.Passed, _shown: Shown) -> None:
        summary = self.summary
        if event.to != "child":
            summary.bytes_out += event.bytes
            return
        summary.active = at
        if event.kind != "request":
            summary.bytes_in += event.bytes
        elif not self.over:
            if summary.state == "idle":
                summary.state = "ready"
            self._running[event.call] += 1
            summary.running += 1

    def _finished(self, at: float, event: events.CallFinished, shown: Shown) -> None:
        summary = self.summary
        summary.active = at
        summary.calls += 1
        summary.bytes_in += event.bytes_in
        summary.bytes_out += event.bytes_out
        if event.outcome not in FINE:
            summary.errors += 1
            about = shown(event.tool or event.method)
            summary.failure = cut(f"{about}: {event.outcome}", SUMMARY_CHARS)
        if self._running[event.call] > 0:
            self._running[event.call] -= 1
            summary.running -= 1
        elif event.outcome != "catalogue" and self._inherited > 0:
            self._inherited -= 1
            summary.running -= 1
        if not self._running[event.call]:
            del self._running[event.call]

    def _closing(self, _at: float, event: events.Closing, _shown: Shown) -> None:
        if not self.over:
            self.summary.reason = str(event.reason)

    def _closed(self, at: float, event: events.Closed, shown: Shown) -> None:
        summary = self.summary
        summary.reason, summary.ended = str(event.reason), at
        summary.dyno_s, summary.usd = event.dyno_s, event.usd
        summary.detail = cut(shown(event.detail), SUMMARY_CHARS)
        if event.reason not in MEANT:
            summary.failure = str(event.reason)
        self._runs_none()

    def _runs_none(self) -> None:
        self._running.clear()
        self._inherited = self.summary.running = 0

    _HEARS: ClassVar[Mapping[type[events.Event], Callable[["Tale", float, Any, Shown], None]]] = {
        events.Requested: _requested,
        events.Hydrated: _hydrated,
        events.HandedOver: _handed_over,
        events.Launching: _launching,
        events.Launched: _launched,
        events.Adopted: _adopted,
        events.Ready: _ready,
        events.Parted: _parted,
        events.Idle: _idle,
        events.Passed: _passed,
        events.CallFinished: _finished,
        events.Closing: _closing,
        events.Closed: _closed,
    }


# Lines


def kinds(kind: type[events.Event] = events.Event) -> Iterator[type[events.Event]]:
    """Yield all classes of events."""
    yield kind
    for more in kind.__subclasses__():
        yield from kinds(more)


_SAYS: Final = {
    kind: tuple(each.name for each in fields(kind) if each.name not in {"session", "payload"})
    for kind in kinds()
}
"""What the events of each class say in a line; looking it up each time would take longest."""


def line(at: float, event: events.Event, redactor: Redactor, about: dict[str, Any]) -> bytes:
    """Return an event as a line of a story.

    Args:
        at: when it happened, seconds since 1970.
        event: what happened.
        redactor: of the session's server.
        about: what the line says beside; in place of what the event says, where both do.
    """
    facts: dict[str, Any] = {"at": round(at, 3), "event": event.name}
    shown = redactor.shown
    for name in _SAYS.get(type(event), ()):
        value = getattr(event, name)
        if value is None or value == "":
            continue
        if isinstance(value, str) and name not in about:
            value = shown(value) if name not in _OURS else inert(value)
        facts[name] = value
    return _encoded(facts | about)


def payload_facts(payload: bytes, most_bytes: int, redactor: Redactor) -> dict[str, Any]:
    """Return what a line says of a payload: its text, redacted and then cut, and its whole size."""
    text = redactor.payload(payload).encode()
    return {
        "payload": text[:most_bytes].decode(errors="ignore"),
        "payload_bytes": len(payload),
    }


def gap(at: float, dropped: int) -> bytes:
    """Return the line that stands where so many were dropped."""
    return _JSON.encode({"at": round(at, 3), "event": "gap", "dropped": dropped})


def _encoded(facts: dict[str, Any]) -> bytes:
    encoded = _JSON.encode(facts)
    if len(encoded) <= TEXT_CHARS:
        return encoded  # as nearly all are: nothing in it can be too long
    most = TEXT_CHARS
    while True:
        limits = dict.fromkeys(facts, most) | {"payload": PAYLOAD_TEXTS * most}
        shorter = {
            name: cut(value, limits[name]) if isinstance(value, str) else value
            for name, value in facts.items()
        }
        encoded = _JSON.encode(shorter)
        if len(encoded) <= LINE_BYTES:
            return encoded
        most //= 2


def cut(text: str, most: int) -> str:
    """Return a text of at most so many characters, and how many more there were."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text) - most} more)"


# Failures


def failure(
    at: float, event: events.Event, summary: Summary | None, shown: Shown
) -> Failure | None:
    """Return what went wrong, if this event says that something did.

    Args:
        at: when it happened, seconds since 1970.
        event: what happened.
        summary: of the session it happened to; None if it was none.
        shown: makes text fit to be kept.
    """
    match event:
        case events.CallFinished() if event.outcome not in FINE:
            told = "" if event.code is None else f"code {event.code}"
            found = Failure(at=at, cause=event.outcome, detail=told)
            found.call, found.method = shown(event.call), shown(event.method)
            found.tool, found.server = shown(event.tool or ""), event.server
        case events.Closed() if event.reason not in MEANT | _TOLD:
            found = Failure(at=at, cause=str(event.reason), detail=shown(event.detail))
        case _ if type(event) in DETAILS:
            told = "; ".join(
                f"{name} {value}" if name in _NAMED_DETAILS else str(value)
                for name in DETAILS[type(event)]
                if (value := getattr(event, name)) not in ("", None)
            )
            found = Failure(at=at, cause=event.name, detail=shown(told))
            found.server = getattr(event, "server", "")
        case _:
            return None
    found.at = round(at, 3)
    for name in ("detail", "call", "method", "tool"):
        setattr(found, name, cut(getattr(found, name), SUMMARY_CHARS))
    if summary is not None:
        found.session, found.principal = summary.session, summary.principal
        found.server = found.server or summary.server
    return found
