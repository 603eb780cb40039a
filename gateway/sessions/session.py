"""One live session: what its client may send, what its calls come to, how it ends. Pure.

Messages and frames come in with `now`; deliveries ("these bytes to that stream") come out, and
frames wait in `link` to be sent. Where the child's messages go is decided in `routing`. Legacy era
only: ids pass untouched, because one client owns the whole child.
"""

from typing import Generic, TypeVar

from msgspec import UNSET

from dyno_agent.link import Channel, Endpoint, Message
from dyno_agent.link.resumption import (
    MAX_ID,
    JournalPage,
    digest,
    id_of,
    label,
)
from gateway import events
from gateway.eras.correlation import MAX_CALLS, Call, Correlation
from gateway.errors import (
    BadMessage,
    Busy,
    GatewayError,
    MessageTooBig,
    SessionEnded,
)
from gateway.jsonrpc import (
    Envelope,
    Kind,
    error_response,
    one_line,
    params_of,
    peek,
)
from gateway.sessions import failures
from gateway.sessions.chatter import Chatter, document, number
from gateway.sessions.delivery import Delivery, Ending
from gateway.sessions.record import Reason, SessionRecord, State, Step
from gateway.sessions.routing import Routing

S = TypeVar("S")

QUIET_S = 1.0
"""A session that runs no call for so long is called idle: a burst is one line in the story."""


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
        chatter: what is told of its stderr, and of messages that went nowhere.
        routing: the streams, and what goes where.
    """

    def __init__(
        self, record: SessionRecord, link: Endpoint, emit: events.Sink, call_timeout_s: float
    ) -> None:
        self.record = record
        self.link = link
        self.ending: Ending | None = None
        self.active = record.created
        self.booted = False
        self.chatter = Chatter(record.session_id, emit, record.created)
        self._emit = emit
        self._call_timeout_s = call_timeout_s
        self._table: Correlation[S] = Correlation()
        self.routing: Routing[S] = Routing(link, self._table, self.chatter)

    @property
    def calls(self) -> int:
        """How many calls run."""
        return len(self._table)

    def hydrate(self, pages: list[JournalPage], now: float) -> None:
        """Learn from the agent's journal what was under way at an earlier gateway process."""
        self.routing.hydrate(pages, now)
        self.booted = all(call.method != "initialize" for call in self._table.calls)

    # From the client

    def label_of(self, envelope: Envelope) -> str:
        """Return the label of the stream that will answer a request.

        Raises:
            BadMessage: an id that is too long to be carried along.
        """
        return label(_short(envelope.request_id))

    def request(self, envelope: Envelope, raw: bytes, stream: S, now: float) -> tuple[int, int]:
        """Take a request; its answer will be a delivery to `stream`.

        A request that is sent again because its connection broke is not made again: the stream
        gets the answer of the first.

        Returns:
            The request's ordinal on the link, see `Endpoint.send`; and the position at which its
            stream begins.

        Raises:
            BadMessage: an id or progress token that is too long to be carried along.
            DuplicateId: the id is in flight.
            Busy: too many calls in flight, or the child does not read.
        """
        if len(self._table) >= MAX_CALLS:
            raise Busy(f"more than {MAX_CALLS} calls are in flight in this session")
        line = self._line(raw)
        params = params_of(envelope)
        call = Call(
            id=_short(envelope.request_id),
            method=envelope.method_name,
            tool=params.name if isinstance(params.name, str) else None,
            stream=stream,
            started=now,
            bytes_in=len(raw),
            token=None if params.token is None else _short(params.token),
            digest=digest(line),
        )
        repeated = self._table.repeated(call)
        if repeated is not None:
            self.routing.repeat(call)
            return repeated.ordinal, 0
        self._table.begin(call)
        self.record.calls += 1
        self.record.move(Step.CALL)
        call.ordinal = self._forward(line, now)
        return call.ordinal, self.routing.position

    def notify(self, envelope: Envelope, raw: bytes, now: float) -> tuple[int, list[Delivery[S]]]:
        """Take a notification; return its ordinal on the link, and deliveries.

        A cancellation ends its call's stream: the child will not answer.
        """
        ordinal = self._forward(self._line(raw), now)
        if envelope.method != "notifications/cancelled":
            return ordinal, []
        cancelled = params_of(envelope).requestId
        call = None if cancelled is None else self._table.forget(cancelled)
        if call is None:
            return ordinal, []
        self._finished(call, "cancelled", 0, now)
        return ordinal, [] if call.stream is None else [Delivery(call.stream, b"", last=True)]

    def respond(self, envelope: Envelope, raw: bytes, now: float) -> int:
        """Take the client's answer to a request of the child; return its ordinal on the link.

        Raises:
            BadMessage: the child asked no such thing.
            Busy: the child does not read.
        """
        line = self._line(raw)
        if envelope.id is None or envelope.id is UNSET or not self._table.answered(envelope.id):
            raise BadMessage("a response to a request that this session's server did not make")
        return self._forward(line, now)

    def _line(self, raw: bytes) -> bytes:
        """Return a message of the client as the child shall read it, if there is room for it."""
        if not self.link.writable:
            raise Busy("the server in the dyno does not read: its input is full; repeat later")
        if len(raw) > self.link.limits.message_bytes:
            raise MessageTooBig(f"a message may have {self.link.limits.message_bytes} bytes")
        return one_line(raw)

    def _forward(self, line: bytes, now: float) -> int:
        self.active = now
        return self.link.send(Channel.RPC, line)

    def stop(self) -> None:
        """Tell the agent to end its child and leave."""
        self.routing.command({"do": "stop"})

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
        elif message.channel is Channel.REPLAY:
            deliveries = self._replayed(message, now)
            if any(delivery.message is message for delivery in deliveries):
                return deliveries
        elif message.channel is Channel.EVENT:
            deliveries = self._agent_event(message.payload, now)
        else:
            deliveries = []
            self.chatter.line(message.payload, now)
        self.link.consumed(message)
        return deliveries

    def _from_child(self, message: Message, now: float) -> list[Delivery[S]]:
        envelope = self.chatter.message(message.payload)
        if envelope is None:
            return []
        self.routing.seen(message)
        if envelope.kind is Kind.RESPONSE:
            return self._child_answers(envelope, message, now)
        return self.routing.message(envelope, message)

    def _child_answers(self, envelope: Envelope, message: Message, now: float) -> list[Delivery[S]]:
        request_id = envelope.id
        if request_id is None or request_id is UNSET:
            self.chatter.drop("response", "it has no id")
            return []
        swallow = self._table.is_forgotten(request_id)
        call = self._table.finish(request_id)
        self.booted = True
        if call is None:
            if not swallow:
                self.chatter.drop("response", "nobody asked for it")
            return []
        self._answered(call, envelope, len(message.payload), now)
        return self.routing.answer(call, message)

    def _replayed(self, message: Message, now: float) -> list[Delivery[S]]:
        deliveries = self.routing.replayed(message)
        for delivery in deliveries:
            if delivery.call is not None:
                size = len(delivery.raw)
                self._answered(delivery.call, peek(delivery.raw), size, now)
        return deliveries

    def _answered(self, call: Call[S], envelope: Envelope, size: int, now: float) -> None:
        outcome = "ok" if envelope.error is UNSET else "error"
        if call.method == "initialize" and outcome == "error":
            # Its client gets no session key with an error, so nobody could ever use the session.
            error = SessionEnded("the server refused to initialize")
            self.ending = Ending(Reason.INITIALIZE_FAILED, error)
        self._finished(call, outcome, size, now)

    def _agent_event(self, payload: bytes, now: float) -> list[Delivery[S]]:
        report = document(payload)
        match report.get("event"):
            case "spawned":
                self.active = now
                self.record.move(Step.SPAWNED)
                self._tell(
                    events.Ready,
                    pid=number(report, "pid"),
                    boot_s=round(now - self.record.created, 3),
                )
            case "spawn_failed":
                error = failures.not_started(report)
                self.ending = Ending(Reason.BOOT_FAILED, error)
            case "exited":
                self.ending = Ending(Reason.PROCESS_EXIT, failures.exited(report))
            case "oversized":
                return self._answer_too_big(report, now)
            case _:
                self.chatter.drop("agent event", "of no known kind")
        return []

    def _answer_too_big(self, report: dict[str, object], now: float) -> list[Delivery[S]]:
        """The bytes are gone and with them the id, so every running call is told the truth."""
        error = failures.too_big(report, self.link.limits.message_bytes)
        return [d for call in self._table.calls for d in self._end_call(call, error, now)]

    # Ends

    def fail(self, error: GatewayError, now: float, *, all_calls: bool = True) -> list[Delivery[S]]:
        """Answer every running call in the child's place, or those that somebody listens for."""
        calls = [call for call in self._table.calls if all_calls or call.stream is not None]
        told = [d for call in calls for d in self._end_call(call, error, now)]
        return told + [
            Delivery(stream, error_response(id_of(where), error), last=True, error=error)
            for stream, where in self.routing.unanswered()
        ]

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
        error = failures.timed_out(self._call_timeout_s)
        late = [call for call in self._table.calls if now - call.started >= self._call_timeout_s]
        return [d for call in late for d in self._end_call(call, error, now)]

    def _end_call(self, call: Call[S], error: GatewayError, now: float) -> list[Delivery[S]]:
        self._table.forget(call.id)
        return self._answer_instead(call, error, now)

    def _answer_instead(self, call: Call[S], error: GatewayError, now: float) -> list[Delivery[S]]:
        raw = error_response(call.id, error)
        self._finished(call, error.reason, len(raw), now)
        self.routing.cut(call)
        return [] if call.stream is None else [Delivery(call.stream, raw, last=True, error=error)]

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


def _short(request_id: str | int) -> str | int:
    if isinstance(request_id, str) and len(request_id) > MAX_ID:
        raise BadMessage(f"an id may have {MAX_ID} characters")
    return request_id
