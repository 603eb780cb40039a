"""One live session: its link endpoint, its correlation table, and the rules between them. Pure.

Messages and frames come in with `now`; deliveries ("these bytes to that stream") come out, and
frames wait in `link` to be sent. Legacy era only: ids pass untouched, because one client owns the
whole child.
"""

import json
from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from msgspec import UNSET

from dyno_agent.link import Channel, Endpoint, Message
from gateway import events
from gateway.eras.correlation import Call, Correlation
from gateway.errors import (
    AnswerTooBig,
    BadMessage,
    Busy,
    CallTimeout,
    ChildExited,
    ChildNotStarted,
    GatewayError,
    MessageTooBig,
    SessionEnded,
)
from gateway.jsonrpc import (
    Envelope,
    Kind,
    Params,
    error_response,
    negotiated_revision,
    one_line,
    params_of,
    peek,
    sound,
)
from gateway.sessions.record import Reason, SessionRecord, State, Step

S = TypeVar("S")

MAX_CALLS = 256
"""Calls in flight per session. No SDK client comes near; a runaway one stops here."""

MAX_ASKS = 256
"""Requests of the child that may wait for the client."""

BACKLOG_MESSAGES = 64
BACKLOG_BYTES = 256 * 1024
"""Messages of the child that name no call and find no open stream wait for the next one."""

LOG_LINES_PER_S = 200
"""Lines of a child's stderr that become events; more are counted, or one session's chatter would
cost all others the gateway's time."""

LAST_WORDS, LAST_WORD = 10, 400
"""How many lines of stderr, of how many characters each, go into the error of a failed boot."""

MAX_REPORT = 16 * 1024
"""Characters taken of any text in which an agent tells about itself or its child."""

NOISE_SAMPLE = 200
QUIET_S = 1.0
"""A session that runs no call for so long is called idle: a burst is one line in the story."""


@dataclass(frozen=True, slots=True)
class Delivery(Generic[S]):
    """These bytes to that stream.

    Attributes:
        stream: where to.
        raw: one JSON-RPC message on one line; empty ends the stream without one, since a cancelled
            request gets no answer (MCP, utilities/cancellation).
        last: it answers the stream's call, so the stream ends after it.
        error: set when the gateway answers in the child's place.
        message: what to give back to the link once the bytes are taken over.
    """

    stream: S
    raw: bytes
    last: bool = False
    error: GatewayError | None = None
    message: Message | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """The session cannot go on: why, and what its calls are told."""

    reason: Reason
    error: GatewayError


class Session(Generic[S]):
    """The rules of one session. All methods are plain calls.

    Args:
        record: the facts; this class moves its state.
        link: our end of the link.
        emit: hears events.
        call_timeout_s: longest call.

    Attributes:
        ending: set once the session cannot go on.
        active: last activity, monotonic seconds.
        booted: the child has answered for the first time.
        last_words: the last lines of its stderr.
    """

    def __init__(
        self, record: SessionRecord, link: Endpoint, emit: events.Sink, call_timeout_s: float
    ) -> None:
        self.record = record
        self.link = link
        self.ending: Ending | None = None
        self.active = record.created
        self.booted = False
        self.last_words: deque[str] = deque(maxlen=LAST_WORDS)
        self._emit = emit
        self._call_timeout_s = call_timeout_s
        self._table: Correlation[S] = Correlation()
        self._backlog: deque[bytes] = deque()
        self._backlog_bytes = 0
        self._noise = 0
        self._second, self._said, self._unsaid = record.created, 0, 0

    @property
    def calling(self) -> bool:
        """True while a call runs."""
        return len(self._table) > 0

    # From the client

    def request(self, envelope: Envelope, raw: bytes, stream: S, now: float) -> None:
        """Take a request; its answer will be a delivery to `stream`.

        Raises:
            DuplicateId: the id is in flight.
            Busy: too many calls in flight, or the child does not read.
        """
        if len(self._table) >= MAX_CALLS:
            raise Busy(f"more than {MAX_CALLS} calls are in flight in this session")
        self._check_room()
        line = self._line(raw)
        params = params_of(envelope)
        call = Call(
            id=_id(envelope),
            method=_method(envelope),
            tool=params.name if isinstance(params.name, str) else None,
            stream=stream,
            started=now,
            bytes_in=len(raw),
            token=_token(params),
        )
        self._table.begin(call)
        self._forward(line, now)
        self.record.calls += 1
        self.record.move(Step.CALL)

    def notify(self, envelope: Envelope, raw: bytes, now: float) -> list[Delivery[S]]:
        """Take a notification. A cancellation ends its call's stream: the child will not answer."""
        self._check_room()
        self._forward(self._line(raw), now)
        if envelope.method != "notifications/cancelled":
            return []
        cancelled = params_of(envelope).requestId
        call = None if cancelled is None else self._table.forget(cancelled)
        if call is None:
            return []
        self._finished(call, "cancelled", 0, now)
        return [] if call.stream is None else [Delivery(call.stream, b"", last=True)]

    def respond(self, envelope: Envelope, raw: bytes, now: float) -> None:
        """Take the client's answer to a request of the child.

        Raises:
            BadMessage: the child asked no such thing.
            Busy: the child does not read.
        """
        self._check_room()
        line = self._line(raw)
        if envelope.id is None or envelope.id is UNSET or not self._table.answered(envelope.id):
            raise BadMessage("a response to a request that this session's server did not make")
        self._forward(line, now)

    def _check_room(self) -> None:
        if not self.link.writable:
            raise Busy("the server in the dyno does not read: its input is full; repeat later")

    def _line(self, raw: bytes) -> bytes:
        if len(raw) > self.link.limits.message_bytes:
            raise MessageTooBig(f"a message may have {self.link.limits.message_bytes} bytes")
        return one_line(raw)

    def _forward(self, line: bytes, now: float) -> None:
        self.active = now
        self.link.send(Channel.RPC, line)

    # Streams

    def open_general(self, stream: S) -> tuple[S | None, list[Delivery[S]]]:
        """The client opened a GET stream: the newest wins.

        Returns:
            The stream it replaces, to be closed, and what waited for a stream.
        """
        replaced, self._table.general = self._table.general, stream
        waiting = [Delivery(stream, raw) for raw in self._backlog]
        self._backlog.clear()
        self._backlog_bytes = 0
        return replaced, waiting

    def stream_gone(self, stream: S) -> None:
        """The client hung up on this stream; what runs goes on."""
        self._table.stream_gone(stream)

    # From the agent

    def receive(self, frame: bytes, now: float) -> list[Delivery[S]]:
        """Take one frame of the current attachment.

        Raises:
            ProtocolViolation: see `Endpoint.receive`.
        """
        message = self.link.receive(frame, now)
        if message is None:
            return []
        if message.channel is Channel.RPC:
            deliveries = self._from_child(message, now)
            if deliveries:
                return deliveries
        elif message.channel is Channel.EVENT:
            deliveries = self._agent_event(message.payload, now)
        else:
            deliveries = []
            self._child_log(message.payload, now)
        self.link.consumed(message)
        return deliveries

    def _from_child(self, message: Message, now: float) -> list[Delivery[S]]:
        raw = message.payload
        try:
            envelope = peek(raw)
            kind = envelope.kind
        except GatewayError:
            self._noise += 1
            if self._noise.bit_count() == 1:  # the 1st, 2nd, 4th, 8th …: a flood is no log flood
                sample = raw[:NOISE_SAMPLE].decode(errors="backslashreplace")
                self._tell(events.Noise, sample=sample, total=self._noise)
            return []
        if kind is Kind.RESPONSE:
            return self._child_answers(envelope, message, now)
        if kind is Kind.REQUEST:
            if self._table.asks >= MAX_ASKS:
                self._refuse_ask(envelope, f"{MAX_ASKS} requests already wait for the client")
                return []
            self._table.asked(_id(envelope))
        stream = self._stream_of(envelope, kind)
        if stream is not None:
            return [Delivery(stream, one_line(raw), message=message)]
        if envelope.method != "notifications/progress":
            self._park(envelope, one_line(raw), kind)
        return []

    def _stream_of(self, envelope: Envelope, kind: Kind) -> S | None:
        if kind is Kind.NOTIFICATION and envelope.method == "notifications/progress":
            call = self._table.by_token(params_of(envelope).progressToken)
            return None if call is None else call.stream
        return self._table.stream_for_others()

    def _child_answers(self, envelope: Envelope, message: Message, now: float) -> list[Delivery[S]]:
        request_id = envelope.id
        if request_id is None or request_id is UNSET:
            self._tell(events.Dropped, what="response", why="it has no id")
            return []
        swallow = self._table.is_forgotten(request_id)
        call = self._table.finish(request_id)
        self.booted = True
        if call is None:
            if not swallow:
                self._tell(events.Dropped, what="response", why="nobody asked for it")
            return []
        outcome = "ok" if envelope.error is UNSET else "error"
        if call.method == "initialize":
            self._initialized(envelope, outcome)
        self._finished(call, outcome, len(message.payload), now)
        if call.stream is None:
            self._tell(events.Dropped, what="response", why="its client has hung up")
            return []
        return [Delivery(call.stream, one_line(message.payload), last=True, message=message)]

    def _initialized(self, envelope: Envelope, outcome: str) -> None:
        self.record.revision = negotiated_revision(envelope)
        if outcome == "error":
            # Its client gets no session key with an error, so nobody could ever use the session.
            self.ending = Ending(
                Reason.INITIALIZE_FAILED, SessionEnded("the server refused to initialize")
            )

    def undelivered(self, delivery: Delivery[S]) -> None:
        """Take back what its stream did not write: questions wait for the next stream.

        An answer has nobody left to go to.
        """
        if delivery.message is not None:
            self.link.consumed(delivery.message)
        if delivery.last or not delivery.raw:
            self._tell(events.Dropped, what="response", why="its client has hung up")
            return
        envelope = peek(delivery.raw)
        if envelope.method != "notifications/progress":
            self._park(envelope, delivery.raw, envelope.kind)

    def _park(self, envelope: Envelope, raw: bytes, kind: Kind) -> None:
        if (
            len(self._backlog) < BACKLOG_MESSAGES
            and self._backlog_bytes + len(raw) <= BACKLOG_BYTES
        ):
            self._backlog.append(raw)
            self._backlog_bytes += len(raw)
        elif kind is Kind.REQUEST:
            self._table.answered(_id(envelope))
            self._refuse_ask(envelope, "the client has no open stream")
        else:
            self._tell(events.Dropped, what=_method(envelope)[:64], why="no open stream")

    def _refuse_ask(self, envelope: Envelope, why: str) -> None:
        self._tell(events.Dropped, what=_method(envelope)[:64], why=why)
        refusal = error_response(_id(envelope), Busy(f"not asked: {why}"))
        # To a child that does not read there is no end of refusals: it gets none.
        if self.link.writable and len(refusal) <= self.link.limits.message_bytes:
            self.link.send(Channel.RPC, refusal)

    def _child_log(self, payload: bytes, now: float) -> None:
        record = _document(payload)
        text = _text(record, "stderr")
        self.last_words.append(text[:LAST_WORD])
        self._unsaid += _number(record, "dropped")
        if now - self._second >= 1:
            self._second, self._said = now, 0
        if self._said >= LOG_LINES_PER_S:
            self._unsaid += 1
            return
        self._said += 1
        self._tell(events.ChildLog, text=text, dropped=self._unsaid)
        self._unsaid = 0

    def _agent_event(self, payload: bytes, now: float) -> list[Delivery[S]]:
        report = _document(payload)
        match report.get("event"):
            case "spawned":
                self.active = now
                self.record.move(Step.SPAWNED)
                self._tell(
                    events.Ready,
                    pid=_number(report, "pid"),
                    boot_s=round(now - self.record.created, 3),
                )
            case "spawn_failed":
                error: GatewayError = ChildNotStarted(
                    f"the server could not be started: {_text(report, 'message')}"
                )
                self.ending = Ending(Reason.BOOT_FAILED, error)
            case "exited":
                self.ending = Ending(Reason.PROCESS_EXIT, _exit_error(report))
            case "oversized":
                return self._answer_too_big(report, now)
            case _:
                self._tell(events.Dropped, what="agent event", why="of no known kind")
        return []

    def _answer_too_big(self, report: dict[str, object], now: float) -> list[Delivery[S]]:
        """The bytes are gone and with them the id, so every running call is told the truth."""
        error = AnswerTooBig(
            f"the server sent a message of {_number(report, 'bytes')} bytes; the limit is "
            f"{self.link.limits.message_bytes}. It was dropped, and with it possibly this call's "
            "answer: ask for less, or in parts."
        )
        return [d for call in self._table.calls for d in self._end_call(call, error, now)]

    # Ends

    def fail(self, error: GatewayError, now: float) -> list[Delivery[S]]:
        """Answer every running call in the child's place."""
        return [d for call in self._table.calls for d in self._end_call(call, error, now)]

    def tick(self, now: float) -> list[Delivery[S]]:
        """Do what time demands: end calls that ran too long, call a quiet session idle."""
        oldest = self._table.oldest_start
        if oldest is None:
            if self.record.state is State.READY and now - self.active >= QUIET_S:
                self.record.move(Step.QUIET)
                self._tell(events.Idle, calls=self.record.calls)
            return []
        if now - oldest < self._call_timeout_s:
            return []
        error = CallTimeout(
            f"no answer after {self._call_timeout_s:.0f} s, the longest a call of this server "
            "may take (call_timeout)"
        )
        late = [call for call in self._table.calls if now - call.started >= self._call_timeout_s]
        return [d for call in late for d in self._end_call(call, error, now)]

    def _end_call(self, call: Call[S], error: GatewayError, now: float) -> list[Delivery[S]]:
        self._table.forget(call.id)
        return self._answer_instead(call, error, now)

    def _answer_instead(self, call: Call[S], error: GatewayError, now: float) -> list[Delivery[S]]:
        raw = error_response(call.id, error)
        self._finished(call, error.reason, len(raw), now)
        if call.stream is None:
            return []
        return [Delivery(call.stream, raw, last=True, error=error)]

    def _finished(self, call: Call[S], outcome: str, bytes_out: int, now: float) -> None:
        self.active = now
        self._tell(
            events.CallFinished,
            call=str(call.id)[:64],
            method=call.method[:64],
            tool=None if call.tool is None else call.tool[:128],
            outcome=outcome,
            ms=round((now - call.started) * 1000, 3),
            bytes_in=call.bytes_in,
            bytes_out=bytes_out,
        )

    def _tell(self, event: type[events.SessionEvent], **facts: object) -> None:
        self._emit(event(session=self.record.session_id, **facts))


def _id(envelope: Envelope) -> str | int:
    """The id of a request; `Envelope.kind` has checked that there is one."""
    if envelope.id is None or envelope.id is UNSET:
        raise BadMessage("a request without an id")
    return envelope.id


def _method(envelope: Envelope) -> str:
    return "" if envelope.method is UNSET else envelope.method


def _token(params: Params) -> str | int | None:
    if params.meta is UNSET or params.meta.progressToken is UNSET:
        return None
    return params.meta.progressToken


def _document(payload: bytes) -> dict[str, object]:
    """Read what an agent says about itself; nonsense reads as nothing."""
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _text(report: dict[str, object], key: str) -> str:
    value = report.get(key)
    return sound(value[:MAX_REPORT]) if isinstance(value, str) else ""


def _number(report: dict[str, object], key: str) -> int:
    value = report.get(key)
    return value if isinstance(value, int) and 0 <= value < 2**53 else 0


def _exit_error(report: dict[str, object]) -> ChildExited:
    signal = _text(report, "signal")
    code = None if signal else _number(report, "code")
    how = f"by {signal}" if signal else f"with exit code {code}"
    tail = _text(report, "stderr_tail").strip()
    last = f" Its last words on stderr:\n{tail}" if tail else " It wrote nothing on stderr."
    return ChildExited(
        f"the server process ended {how}.{last}", exit_code=code, signal=signal or None
    )
