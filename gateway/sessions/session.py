"""One live session: its link endpoint, its correlation table, and the rules between them. Pure.

Messages and frames come in with `now`; deliveries ("these bytes to that stream") come out, and
frames wait in `link` to be sent. Legacy era only: ids pass untouched, because one client owns the
whole child.
"""

import json
from typing import Generic, TypeVar

from msgspec import UNSET

from dyno_agent.link import Channel, Endpoint, Message
from dyno_agent.link.resumption import (
    GENERAL,
    MAX_ID,
    JournalPage,
    Replayed,
    digest,
    id_of,
    label,
    number_of,
    position,
)
from gateway import events
from gateway.eras.correlation import MAX_ASKS, MAX_CALLS, Call, Correlation
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
from gateway.sessions.backlog import Backlog
from gateway.sessions.chatter import Chatter, document, number
from gateway.sessions.delivery import Delivery, Ending
from gateway.sessions.record import Reason, SessionRecord, State, Step
from gateway.sessions.resumption import Resumption, Resumptions

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
        position: where a stream begins that is opened now.
        hydrating: what the agent sends again after a crash of the gateway is not all here yet.
    """

    def __init__(
        self, record: SessionRecord, link: Endpoint, emit: events.Sink, call_timeout_s: float
    ) -> None:
        self.record = record
        self.link = link
        self.ending: Ending | None = None
        self.active = record.created
        self.booted = self.hydrating = False
        self.position = 0
        self.chatter = Chatter(record.session_id, emit, record.created)
        self._emit = emit
        self._call_timeout_s = call_timeout_s
        self._table: Correlation[S] = Correlation()
        self._resumptions: Resumptions[S] = Resumptions()
        self._routed: dict[int, str] = {}  # by an earlier gateway process
        self._backlog = Backlog()
        self._adopted = 0

    @property
    def calls(self) -> int:
        """How many calls run."""
        return len(self._table)

    def hydrate(self, pages: list[JournalPage], now: float) -> None:
        """Learn from the agent's journal what was under way at an earlier gateway process."""
        for page in pages:
            self._table.restore(page, now)
            if len(self._routed) + len(page.routed) <= self.link.limits.window_frames:
                self._routed.update(page.routed)
        self._adopted = self.link.received
        # Each request took a frame to the agent, so none had so high a ticket.
        self._resumptions.begin_after(self.link.sent)
        self.position = position(self._adopted)
        self.hydrating = True
        self.booted = all(call.method != "initialize" for call in self._table.calls)
        self._resume(Resumption(where=None, last=0, stream=None))

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
            self._resume(Resumption(label(call.id), 0, stream))
            return repeated.ordinal, 0
        self._table.begin(call)
        self.record.calls += 1
        self.record.move(Step.CALL)
        call.ordinal = self._forward(line, now)
        return call.ordinal, self.position

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

    # Streams

    def open_general(
        self, stream: S, after: int | None = None
    ) -> tuple[S | None, list[Delivery[S]]]:
        """The client opened a GET stream: the newest wins.

        Args:
            stream: the new one.
            after: position of the last message that the client has of the one it continues.

        Returns:
            The stream it replaces, to be closed, and what waited for a stream.
        """
        replaced, self._table.general = self._table.general, stream
        if after is not None:
            self._resume(Resumption(GENERAL, after, stream))
        return replaced, self.flush()

    def resume(self, stream: S, where: str, after: int) -> S | None:
        """The client came back for the rest of a call's stream.

        Args:
            stream: the new one.
            where: label of the one it continues.
            after: position of the last message that the client has.

        Returns:
            The stream it replaces, to be closed.

        Raises:
            ValueError: not a label of a call's stream.
        """
        request_id = id_of(where)
        if request_id is None:
            raise ValueError("the label of the general stream")
        call = self._table.get(request_id)
        replaced = None
        if call is not None:
            replaced, call.stream = call.stream, stream
        self._resume(Resumption(where, after, stream))
        return replaced

    def _resume(self, resumption: Resumption[S]) -> None:
        self.position = max(self.position, resumption.last)
        self._resumptions.add(resumption)
        self._ask_agent()

    def _ask_agent(self) -> None:
        command = self._resumptions.command()
        if command is not None:
            self._command(command)

    def _command(self, document: dict[str, object]) -> int:
        return self.link.send(Channel.CMD, json.dumps(document).encode())

    def stop(self) -> None:
        """Tell the agent to end its child and leave."""
        self._command({"do": "stop"})

    def flush(self) -> list[Delivery[S]]:
        """Give what waits for a stream to one that takes it, if there is one."""
        stream = self._table.stream_for_others()
        if stream is None or self._resumptions.pending(stream):
            return []
        return [self._unnamed(stream, seq, raw, None) for seq, raw in self._backlog.take_all()]

    def _unnamed(self, stream: S, seq: int, raw: bytes, message: Message | None) -> Delivery[S]:
        """Positions on a stream only rise: a message that had to wait moves behind the newest."""
        self.position += 1
        noted = self._note(seq, self._table.label_of(stream), self.position)
        return Delivery(
            stream, raw, message=message, position=self.position, unnamed=seq, noted=noted
        )

    def _note(self, seq: int, where: str | None, place: int) -> int:
        return self._command({"do": "routed", "seq": seq, "to": where, "at": place})

    def stream_gone(self, stream: S) -> None:
        """The client hung up on this stream; what runs goes on."""
        self._table.stream_gone(stream)
        self._resumptions.stream_gone(stream)

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
        self.position = max(self.position, position(message.key))
        kind = envelope.kind
        if kind is Kind.RESPONSE:
            return self._child_answers(envelope, message, now)
        if kind is Kind.NOTIFICATION and envelope.method == "notifications/progress":
            return self._progress(envelope, message)
        if self._routed.pop(message.key, None) is not None:
            return []  # an earlier gateway process has written it, and was not heard
        if kind is Kind.REQUEST and not self._asked(envelope.request_id, envelope):
            return []
        return self._route(envelope, message, message.key, message.payload)

    def _asked(self, request_id: str | int, envelope: Envelope) -> bool:
        if self._table.asks >= MAX_ASKS:
            self._refuse_ask(envelope, f"{MAX_ASKS} requests already wait for the client")
            return False
        if isinstance(request_id, str) and len(request_id) > MAX_ID:
            self._refuse_ask(envelope, f"an id may have {MAX_ID} characters")
            return False
        self._table.asked(request_id)
        return True

    def _progress(self, envelope: Envelope, message: Message) -> list[Delivery[S]]:
        call = self._table.by_token(params_of(envelope).progressToken)
        if call is None:
            self.chatter.drop("notifications/progress", "its token names no running call")
            return []
        if call.stream is None:
            return []  # the agent keeps it for a client that comes back
        place = position(message.key)
        if self._resumptions.covers(call.stream, place):
            return []
        raw = one_line(message.payload)
        return [Delivery(call.stream, raw, message=message, position=place)]

    def _route(
        self, envelope: Envelope, message: Message, seq: int, raw: bytes
    ) -> list[Delivery[S]]:
        """Find a stream for a message that names no call, or let it wait for one."""
        stream = self._table.stream_for_others()
        line = one_line(raw)
        if stream is None or self._resumptions.pending(stream):
            self._park(envelope, seq, line)
            return []
        return [self._unnamed(stream, seq, line, message)]

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
        self._table.park(call)
        place = position(message.key)
        if call.stream is None or self._resumptions.covers(call.stream, place):
            return []
        raw = one_line(message.payload)
        return [Delivery(call.stream, raw, last=True, message=message, position=place, call=call)]

    def _answered(self, call: Call[S], envelope: Envelope, size: int, now: float) -> None:
        outcome = "ok" if envelope.error is UNSET else "error"
        if call.method == "initialize" and outcome == "error":
            # Its client gets no session key with an error, so nobody could ever use the session.
            error = SessionEnded("the server refused to initialize")
            self.ending = Ending(Reason.INITIALIZE_FAILED, error)
        self._finished(call, outcome, size, now)

    def _replayed(self, message: Message, now: float) -> list[Delivery[S]]:
        replayed = Replayed.decode(message.payload)
        self.position = max(self.position, replayed.position)
        resumption = self._resumptions.answered_by(replayed.ticket)
        if resumption is None:
            self.chatter.drop("replay", "nobody asked for it")
            return []
        if not replayed.position:
            return self._replay_ended(resumption, held=replayed.raw == b"held")
        envelope = self.chatter.message(replayed.raw)
        if envelope is not None and resumption.where is None:
            return self._stranded(envelope, message, replayed)
        stream = resumption.stream
        if envelope is None or stream is None or replayed.position <= resumption.last:
            return []
        answers = envelope.kind is Kind.RESPONSE
        if answers and not self._answers_to(resumption, envelope, len(replayed.raw), now):
            self.chatter.drop("replay", "it answers another call")
            return []
        place = resumption.last = replayed.position
        resumption.answered, raw = answers, one_line(replayed.raw)
        return [Delivery(stream, raw, answers, message=message, position=place)]

    def _stranded(
        self, envelope: Envelope, message: Message, replayed: Replayed
    ) -> list[Delivery[S]]:
        """Take what an earlier gateway process had found no stream for."""
        seq = number_of(replayed.position)
        over = envelope.kind is Kind.REQUEST and not self._table.is_asked(envelope.request_id)
        if over or seq > self._adopted:
            return []  # answered, or it came to this process directly
        return self._route(envelope, message, seq, replayed.raw)

    def _answers_to(
        self, resumption: Resumption[S], envelope: Envelope, size: int, now: float
    ) -> bool:
        """Finish the call of a stream whose answer was sent again; False for another's answer."""
        request_id = envelope.id
        if request_id is None or request_id is UNSET or label(request_id) != resumption.where:
            return False
        call = self._table.forget(request_id)  # its first copy may be on its way
        if call is not None:
            self._answered(call, envelope, size, now)
            self._table.park(call)
        return True

    def _replay_ended(self, resumption: Resumption[S], *, held: bool) -> list[Delivery[S]]:
        self._resumptions.end(resumption)
        self._ask_agent()
        stream, where = resumption.stream, resumption.where
        self.hydrating &= where is not None
        if stream is None or where is None:
            return self.flush()
        request_id = id_of(where)
        if request_id is not None and not resumption.answered and not self._table.get(request_id):
            if held:
                return [Delivery(stream, b"", last=True)]  # the client has the answer
            error = failures.gone()
            raw = error_response(request_id, error)
            return [Delivery(stream, raw, last=True, error=error)]
        return self.flush()

    def delivered(self, delivery: Delivery[S]) -> None:
        """The bytes of a delivery were written."""
        if delivery.call is not None:
            self._table.unpark(delivery.call)
        if delivery.message is not None:
            self.link.consumed(delivery.message)

    def undelivered(self, delivery: Delivery[S]) -> None:
        """Take back what its stream did not write.

        Questions wait for the next stream; an answer waits with the agent.
        """
        if delivery.message is not None:
            self.link.consumed(delivery.message)
        if delivery.call is not None:
            self._table.park(delivery.call)
        elif delivery.unnamed:
            self._note(delivery.unnamed, None, position(delivery.unnamed))
            self._park(peek(delivery.raw), delivery.unnamed, delivery.raw)
        elif delivery.last:
            self.chatter.drop("response", "its client has hung up")

    def _park(self, envelope: Envelope, seq: int, raw: bytes) -> None:
        if self._backlog.put(seq, raw):
            return
        if envelope.kind is Kind.REQUEST:
            self._table.answered(envelope.request_id)
            self._refuse_ask(envelope, "the client has no open stream")
        else:
            self.chatter.drop(envelope.method_name, "no open stream")

    def _refuse_ask(self, envelope: Envelope, why: str) -> None:
        self.chatter.drop(envelope.method_name, why)
        refusal = error_response(envelope.request_id, Busy(f"not asked: {why}"))
        # To a child that does not read there is no end of refusals: it gets none.
        if self.link.writable and len(refusal) <= self.link.limits.message_bytes:
            self.link.send(Channel.RPC, refusal)

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
            for stream, where in self._resumptions.unanswered()
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
        if call.stream is None:
            return []
        self._resumptions.stream_gone(call.stream)
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


def _short(request_id: str | int) -> str | int:
    if isinstance(request_id, str) and len(request_id) > MAX_ID:
        raise BadMessage(f"an id may have {MAX_ID} characters")
    return request_id
