"""One live session: what every kind has in common, whoever its clients are. Pure.

Messages and frames come in with `now`; deliveries ("these bytes to that stream") come out, and
frames wait in `link` to be sent. What a message means is the business of the kinds: `owned`, a
child with one client, and `shared`, a child with several.
"""

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from msgspec import UNSET

from dyno_agent.link import Channel, Endpoint, Message
from dyno_agent.link.resumption import MAX_ID, JournalPage
from gateway import events
from gateway.eras.catalogue import Chapter
from gateway.eras.correlation import MAX_CALLS, Call, Correlation
from gateway.errors import BadMessage, Busy, GatewayError, MessageTooBig
from gateway.jsonrpc import Envelope, Kind, error_response, notification, one_line
from gateway.sessions import failures
from gateway.sessions.chatter import Chatter, document, number
from gateway.sessions.delivery import Delivery, Ending
from gateway.sessions.record import Reason, SessionRecord, State, Step
from gateway.sessions.witness import Witness

S = TypeVar("S")

PHASE_STEP = 0.001
"""Progress of one phase of the boot."""

QUIET_S = 1.0
"""A session that runs no call for so long is called idle: a burst is one line in the story."""


class Session(ABC, Generic[S]):
    """The rules that every session follows. All methods are plain calls.

    Args:
        record: the facts; this class moves its state.
        link: our end of the link.
        emit: hears events.
        call_timeout_s: longest call.

    Attributes:
        ending: set once the session cannot go on.
        active: last activity, monotonic seconds.
        booted: the child has answered for the first time; or runs, if nothing is asked at first.
        chatter: what is told of its stderr, and of messages that went nowhere.
        witness: what is told of all other messages.
        contradicts: the child has said something else than the catalogue.
    """

    def __init__(
        self, record: SessionRecord, link: Endpoint, emit: events.Sink, call_timeout_s: float
    ) -> None:
        self.record = record
        self.link = link
        self.witness: Witness = Witness(record, emit)
        self.ending: Ending | None = None
        self.active = record.created
        self.booted = False
        self.contradicts = False
        self.chatter = Chatter(record.session_id, emit, record.created)
        self._emit = emit
        self._call_timeout_s = call_timeout_s
        self._table: Correlation[S] = Correlation()
        self._phases = 0

    @property
    def calls(self) -> int:
        """How many calls run."""
        return len(self._table)

    @property
    def child_runs(self) -> bool:
        """True as long as nobody has said that the child is gone, or never was."""
        return self.ending is None or self.ending.reason is Reason.INITIALIZE_FAILED

    # What the kinds decide

    @property
    def position(self) -> int:
        """Where a stream begins that is opened now; 0 where streams do not continue."""
        return 0

    @property
    @abstractmethod
    def hydrating(self) -> bool:
        """True while what the agent sends again after a crash of the gateway is not all here."""

    @abstractmethod
    def hydrate(self, pages: list[JournalPage], now: float) -> None:
        """Learn from the agent's journal what was under way at an earlier gateway process."""

    @abstractmethod
    def _from_child(self, envelope: Envelope, message: Message, now: float) -> list[Delivery[S]]:
        """Take a message of the child."""

    @abstractmethod
    def _replayed(self, message: Message, now: float) -> list[Delivery[S]]:
        """Take what the agent sends again on request.

        Raises:
            ProtocolViolation: see `Replayed.decode`.
        """

    @abstractmethod
    def _cut(self, call: Call[S]) -> None:
        """A call was answered in the child's place: its stream waits for nothing more."""

    @abstractmethod
    def stream_gone(self, stream: S, now: float) -> None:
        """The client hung up on this stream."""

    @abstractmethod
    def relearned(self, chapter: Chapter, changed: frozenset[str]) -> list[Delivery[S]]:
        """The catalogue tells something else from now on; only before there is a dyno.

        Args:
            chapter: what it tells.
            changed: kinds, of tools, prompts and resources, whose list is another.
        """

    @abstractmethod
    def flush(self) -> list[Delivery[S]]:
        """Give what waits for a stream to one that takes it, if there is one."""

    @abstractmethod
    def delivered(self, delivery: Delivery[S]) -> None:
        """The bytes of a delivery were written."""

    @abstractmethod
    def undelivered(self, delivery: Delivery[S]) -> None:
        """Take back what its stream did not write."""

    # To the child

    def start(self, now: float) -> None:
        """A dyno was asked for: whatever the child must hear first is sent now."""

    def phase(self, message: str) -> list[Delivery[S]]:
        """Tell the callers that want progress how far the boot is.

        The figures are so small that the child's own begin above them.
        """
        self._phases += 1
        told = []
        for call in self._table.calls:
            if call.client_token is not None and call.stream is not None:
                call.phase = self._phases * PHASE_STEP
                params = {
                    "progressToken": call.client_token,
                    "progress": call.phase,
                    "message": message,
                }
                raw = notification("notifications/progress", params)
                told.append(Delivery(call.stream, raw))
        return told

    def told_elsewhere(self, phases: int) -> None:
        """Earlier processes may have told so many: the next one is above them."""
        self._phases = phases

    def _room_for_call(self) -> None:
        if len(self._table) >= MAX_CALLS:
            raise Busy(f"more than {MAX_CALLS} calls are in flight in this session")

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
        self.link.send(Channel.CMD, b'{"do":"stop"}')

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
            deliveries = self._rpc(message, now)
        elif message.channel is Channel.REPLAY:
            deliveries = self._replayed(message, now)
        elif message.channel is Channel.EVENT:
            deliveries = self._agent_event(message.payload, now)
        else:
            deliveries = []
            self.chatter.line(message.payload, now)
        if not any(delivery.message is message for delivery in deliveries):
            self.link.consumed(message)
        return deliveries

    def _rpc(self, message: Message, now: float) -> list[Delivery[S]]:
        envelope = self.chatter.message(message.payload)
        if envelope is None:
            return []
        if envelope.kind is not Kind.RESPONSE:  # what becomes of a call is told when it is over
            self.witness.passed("client", envelope, message.payload)
        return self._from_child(envelope, message, now)

    def _answer_of_child(
        self, envelope: Envelope, message: Message, now: float, table: Correlation[S]
    ) -> Call[S] | None:
        """Take an answer of the child out of a table; None when nobody waits for it."""
        request_id = envelope.id
        if request_id is None or request_id is UNSET:
            self.chatter.drop("response", "it has no id")
            return None
        swallow = table.is_forgotten(request_id)
        call = table.finish(request_id)
        self.booted = True
        if call is None:
            if not swallow:
                self.chatter.drop("response", "nobody asked for it")
            return None
        self._answered(call, envelope, len(message.payload), now)
        return call

    def _answered(self, call: Call[S], envelope: Envelope, size: int, now: float) -> None:
        self.active = now
        self.witness.answered(call, envelope, size, now)

    def _agent_event(self, payload: bytes, now: float) -> list[Delivery[S]]:
        report = document(payload)
        match report.get("event"):
            case "spawned":
                self.active = now
                self.record.move(Step.SPAWNED)
                self._child_runs()
                self._tell(
                    events.Ready,
                    pid=number(report, "pid"),
                    boot_s=self.record.boot_s(now),
                )
                return self.phase("the server starts")
            case "spoke":
                self._child_spoke()
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

    def _child_runs(self) -> None:
        """The child was started."""

    def _child_spoke(self) -> None:
        """The child has said something that its face understands."""

    def _answer_too_big(self, report: dict[str, object], now: float) -> list[Delivery[S]]:
        """The bytes are gone and with them the id, so every running call is told the truth."""
        error = failures.too_big(report, self.link.limits.message_bytes)
        return [d for call in self._table.calls for d in self._end_call(call, error, now)]

    # Ends

    def fail(self, error: GatewayError, now: float, *, all_calls: bool = True) -> list[Delivery[S]]:
        """Answer every running call in the child's place, or those that somebody listens for."""
        calls = [call for call in self._table.calls if all_calls or call.stream is not None]
        return [d for call in calls for d in self._end_call(call, error, now)]

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
        raw = error_response(call.client_id, error)
        self._finished(call, error.reason, len(raw), now, error.code)
        self._cut(call)
        return [] if call.stream is None else [Delivery(call.stream, raw, last=True, error=error)]

    def _finished(
        self, call: Call[S], outcome: str, bytes_out: int, now: float, code: int | None = None
    ) -> None:
        self.active = now
        self.witness.finished(call, outcome, bytes_out, now, code)

    def _tell(self, event: type[events.SessionEvent], **facts: object) -> None:
        self._emit(event(session=self.record.session_id, **facts))


def short(request_id: str | int) -> str | int:
    """Return an id or token that can be carried along.

    Raises:
        BadMessage: it is too long.
    """
    if isinstance(request_id, str) and len(request_id) > MAX_ID:
        raise BadMessage(f"an id may have {MAX_ID} characters")
    return request_id
