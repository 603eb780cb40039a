"""A session whose child has one client, which opened it with a handshake. Pure.

Ids pass untouched. A client's stream may break off and continue, so where the child's messages go
is decided in `routing`, and told to the agent.
"""

from typing import TypeVar

from msgspec import UNSET

from dyno_agent.link import Endpoint, Message
from dyno_agent.link.resumption import JournalPage, digest, id_of, label
from gateway import events
from gateway.eras.catalogue import Chapter
from gateway.eras.correlation import Call
from gateway.errors import BadMessage, DuplicateId, GatewayError, SessionEnded
from gateway.jsonrpc import Envelope, Kind, error_response, notification, params_of, peek
from gateway.sessions.delivery import Delivery, Ending
from gateway.sessions.overture import Heard, Overture
from gateway.sessions.record import Reason, SessionRecord, Step
from gateway.sessions.routing import Routing
from gateway.sessions.session import Session, short

S = TypeVar("S")


class OwnedSession(Session[S]):
    """The rules of a session with one client. See `Session`.

    Attributes:
        routing: the streams, and what goes where.
        overture: how it was opened, if that was before it had a dyno.
    """

    def __init__(
        self, record: SessionRecord, link: Endpoint, emit: events.Sink, call_timeout_s: float
    ) -> None:
        super().__init__(record, link, emit, call_timeout_s)
        self.routing: Routing[S] = Routing(link, self._table, self.chatter)
        self.overture: Overture | None = None
        self._notices: list[bytes] = []

    @property
    def position(self) -> int:
        """See `Routing.position`."""
        return self.routing.position

    @property
    def hydrating(self) -> bool:
        """See `Routing.hydrating`."""
        return self.routing.hydrating

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
        return label(short(envelope.request_id))

    def request(
        self, envelope: Envelope, raw: bytes, stream: S, now: float
    ) -> tuple[int, int | None]:
        """Take a request; its answer will be a delivery to `stream`.

        A request that is sent again because its connection broke is not made again: the stream
        gets the answer of the first.

        Returns:
            The request's ordinal on the link, see `Endpoint.send`; and the position at which its
            stream begins, None if it goes on with that of the first.

        Raises:
            BadMessage: an id or progress token that is too long to be carried along.
            DuplicateId: the id is in flight.
            Busy: too many calls in flight, or the child does not read.
        """
        self._room_for_call()
        line = self._line(raw)
        params = params_of(envelope)
        request_id = short(envelope.request_id)
        if self.overture is not None and self.overture.uses(request_id):
            raise DuplicateId(f"request id {request_id!r} is in use by the gateway")
        call = Call(
            id=request_id,
            client_id=request_id,
            method=envelope.method_name,
            tool=params.name if isinstance(params.name, str) else None,
            stream=stream,
            started=now,
            bytes_in=len(raw),
            token=None if params.token is None else short(params.token),
            client_token=params.token,
        )
        line = self.witness.carrying(call, line, self.link.limits.message_bytes)
        call.digest = digest(line)
        repeated = self._table.repeated(call)
        if repeated is not None:
            self.routing.repeat(call)
            return repeated.ordinal, None
        self._table.begin(call)
        self.record.calls += 1
        self.record.move(Step.CALL)
        self.witness.asked(call, raw)
        call.ordinal = self._forward(line, now)
        return call.ordinal, self.routing.position

    def doubt(self, call: Call[S]) -> None:
        """The answer to a call was written; its client may come back for it and not have it."""
        self._table.park(call)

    def believe(self, call: Call[S]) -> None:
        """It has it."""
        self._table.unpark(call)

    def at_once(self, envelope: Envelope, size: int, now: float) -> bytes | None:
        """Answer a request from the catalogue; None if only the child can.

        Args:
            envelope: of the request.
            size: its size in bytes.
            now: monotonic seconds.
        """
        raw = None if self.overture is None else self.overture.answer(envelope)
        if raw is not None:
            key = short(envelope.request_id)
            call: Call[S] = Call(key, key, envelope.method_name, None, None, now, size)
            self.record.calls += 1
            self._finished(call, "catalogue", len(raw), now)
        return raw

    def swallows(self, envelope: Envelope, now: float) -> bool:
        """True for a notification that means nothing yet, since there is no child."""
        self.active = now
        return self.overture is not None and self.overture.swallows(envelope)

    def notify(self, envelope: Envelope, raw: bytes, now: float) -> tuple[int, list[Delivery[S]]]:
        """Take a notification; return its ordinal on the link, and deliveries.

        A cancellation ends its call's stream: the child will not answer.
        """
        ordinal = self._forward(self._line(raw), now)
        self.witness.passed("child", envelope, raw)
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
        self.witness.passed("child", envelope, raw)
        return self._forward(line, now)

    # From the child

    def start(self, now: float) -> None:
        """See `Session.start`: the child hears its client's own `initialize`."""
        if self.overture is not None:
            for line in self.overture.start():
                self._forward(line, now)

    def _from_child(self, envelope: Envelope, message: Message, now: float) -> list[Delivery[S]]:
        self.routing.seen(message)
        if self.overture is not None and self.overture.awaits(envelope):
            return self._heard(self.overture.take(envelope), now)
        if envelope.method_name.endswith("/list_changed"):
            self.contradicts = True
        if envelope.kind is not Kind.RESPONSE:
            return self.routing.message(envelope, message)
        call = self._answer_of_child(envelope, message, now, self._table)
        return [] if call is None else self.routing.answer(call, message)

    def _heard(self, heard: Heard, now: float) -> list[Delivery[S]]:
        """Act on the difference between the catalogue and the child."""
        self.booted = True
        if heard.fatal is not None:
            self.contradicts = True
            self.ending = Ending(Reason.INITIALIZE_FAILED, heard.fatal)
            return []
        for line in heard.to_child:
            self._forward(line, now)
        self.contradicts |= bool(heard.changed)
        return self._tell_changed(heard.changed)

    def relearned(self, chapter: Chapter, changed: frozenset[str]) -> list[Delivery[S]]:
        """See `Session.relearned`."""
        if self.overture is None:
            return []
        return self._tell_changed(self.overture.relearn(chapter, changed))

    def _tell_changed(self, kinds: list[str]) -> list[Delivery[S]]:
        for kind in kinds:
            raw = notification(f"notifications/{kind}/list_changed")
            if raw not in self._notices:
                self._notices.append(raw)
        return self._flush_notices()

    def _flush_notices(self) -> list[Delivery[S]]:
        stream = self._table.stream_for_others()
        if stream is None:
            return []
        notices, self._notices = self._notices, []
        return [Delivery(stream, raw, notice=True) for raw in notices]

    def _replayed(self, message: Message, now: float) -> list[Delivery[S]]:
        deliveries = self.routing.replayed(message)
        for delivery in deliveries:
            if delivery.call is not None:
                size = len(delivery.raw)
                self._answered(delivery.call, peek(delivery.raw), size, now)
        return deliveries

    def _answered(self, call: Call[S], envelope: Envelope, size: int, now: float) -> None:
        if call.method == "initialize" and envelope.error is not UNSET:
            # Its client gets no session key with an error, so nobody could ever use the session.
            error = SessionEnded("the server refused to initialize")
            self.ending = Ending(Reason.INITIALIZE_FAILED, error)
        super()._answered(call, envelope, size, now)

    def fail(self, error: GatewayError, now: float, *, all_calls: bool = True) -> list[Delivery[S]]:
        """See `Session.fail`; streams that came back for an answer are told as well."""
        return super().fail(error, now, all_calls=all_calls) + [
            Delivery(stream, error_response(id_of(where), error), last=True, error=error)
            for stream, where in self.routing.unanswered()
        ]

    # Streams

    def listen(self, stream: S, where: str | None, after: int | None) -> list[Delivery[S]]:
        """Attach the stream of a GET.

        Args:
            stream: the new one.
            where: label of the call's stream that it continues; None for the general one.
            after: position of the last message that the client has of the one it continues.

        Returns:
            What waited for a stream.
        """
        if where is None:
            return self.routing.open_general(stream, after) + self._flush_notices()
        self.routing.resume(stream, where, after or 0)
        return []

    def _cut(self, call: Call[S]) -> None:
        self.routing.cut(call)

    def stream_gone(self, stream: S, now: float) -> None:
        """The client hung up on this stream; what runs goes on."""
        self.routing.stream_gone(stream)

    def flush(self) -> list[Delivery[S]]:
        """See `Routing.flush`; notices of the gateway's own wait as well."""
        return self.routing.flush() + self._flush_notices()

    def delivered(self, delivery: Delivery[S]) -> None:
        """See `Routing.delivered`."""
        self.routing.delivered(delivery)

    def undelivered(self, delivery: Delivery[S]) -> None:
        """See `Routing.undelivered`."""
        if delivery.notice:
            self._notices.append(delivery.raw)
        self.routing.undelivered(delivery)
