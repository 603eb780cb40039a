"""Where the messages of a child go: to which stream, at which position, or to wait for one. Pure.

A stream may break off and continue, on this gateway process or another. So every message has a
position on its stream, the agent is told where those went that name no call, and what a client has
missed is asked of the agent again.
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
    id_of,
    label,
    number_of,
    position,
)
from gateway.eras.correlation import MAX_ASKS, Call, Correlation
from gateway.errors import Busy
from gateway.jsonrpc import Envelope, Kind, error_response, one_line, params_of, peek, progress_of
from gateway.sessions import failures
from gateway.sessions.backlog import Backlog
from gateway.sessions.chatter import Chatter
from gateway.sessions.delivery import Delivery
from gateway.sessions.resumption import Resumption, Resumptions

S = TypeVar("S")


class Routing(Generic[S]):
    """The streams of one session, and what goes where.

    Args:
        link: our end of the link.
        table: the calls and asks under way.
        chatter: hears what is dropped.

    Attributes:
        position: where a stream begins that is opened now.
        hydrating: what the agent sends again after a crash of the gateway is not all here yet.
    """

    def __init__(self, link: Endpoint, table: Correlation[S], chatter: Chatter) -> None:
        self.position = 0
        self.hydrating = False
        self._link = link
        self._table = table
        self._chatter = chatter
        self._resumptions: Resumptions[S] = Resumptions()
        self._routed: dict[int, str] = {}  # by an earlier gateway process
        self._backlog = Backlog()
        self._adopted = 0

    def hydrate(self, pages: list[JournalPage], now: float) -> None:
        """Learn from the agent's journal what was under way at an earlier gateway process."""
        for page in pages:
            self._table.restore(page, now)
            if len(self._routed) + len(page.routed) <= self._link.limits.window_frames:
                self._routed.update(page.routed)
        self._adopted = self._link.received
        # Each request took a frame to the agent, so none had so high a ticket.
        self._resumptions.begin_after(self._link.sent)
        self.position = position(self._adopted)
        self.hydrating = True
        self._resume(Resumption(where=None, last=0, stream=None))

    # Streams

    def open_general(self, stream: S, after: int | None = None) -> list[Delivery[S]]:
        """The client opened a GET stream: the newest wins.

        Args:
            stream: the new one.
            after: position of the last message that the client has of the one it continues.

        Returns:
            What waited for a stream.
        """
        self._table.general = stream
        if after is not None:
            self._resume(Resumption(GENERAL, after, stream))
        return self.flush()

    def resume(self, stream: S, where: str, after: int) -> None:
        """The client came back for the rest of a call's stream.

        Args:
            stream: the new one.
            where: label of the one it continues.
            after: position of the last message that the client has.

        Raises:
            ValueError: not a label of a call's stream.
        """
        request_id = id_of(where)
        if request_id is None:
            raise ValueError("the label of the general stream")
        call = self._table.get(request_id)
        if call is not None:
            call.stream = stream
        self._resume(Resumption(where, after, stream))

    def _resume(self, resumption: Resumption[S]) -> None:
        self.position = max(self.position, resumption.last)
        self._resumptions.add(resumption)
        self._ask_agent()

    def _ask_agent(self) -> None:
        command = self._resumptions.command()
        if command is not None:
            self.command(command)

    def command(self, document: dict[str, object]) -> int:
        """Tell the agent what to do; return the command's ordinal, see `Endpoint.send`."""
        return self._link.send(Channel.CMD, json.dumps(document).encode())

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
        return self.command({"do": "routed", "seq": seq, "to": where, "at": place})

    def stream_gone(self, stream: S) -> None:
        """The client hung up on this stream; what runs goes on."""
        self._table.stream_gone(stream)
        self._resumptions.stream_gone(stream)

    def repeat(self, call: Call[S]) -> None:
        """Bring all of a call's messages to the stream of a request that was sent again."""
        self._resume(Resumption(label(call.id), 0, call.stream))

    # From the child

    def seen(self, message: Message) -> None:
        """A message of the child has come: a stream that is opened now begins behind it."""
        self.position = max(self.position, position(message.key))

    def message(self, envelope: Envelope, message: Message) -> list[Delivery[S]]:
        """Take a request or notification of the child."""
        if envelope.method == "notifications/progress" and envelope.kind is Kind.NOTIFICATION:
            return self._progress(envelope, message)
        if self._routed.pop(message.key, None) is not None:
            return []  # an earlier gateway process has written it, and was not heard
        if envelope.kind is Kind.REQUEST and not self._asked(envelope.request_id, envelope):
            return []
        return self._route(envelope, message, message.key, message.payload)

    def answer(self, call: Call[S], message: Message) -> list[Delivery[S]]:
        """Take the answer to a call; it is parked until it was written."""
        self._table.park(call)
        place = position(message.key)
        if call.stream is None or self._resumptions.covers(call.stream, place):
            return []
        raw = one_line(message.payload)
        return [Delivery(call.stream, raw, last=True, message=message, position=place, call=call)]

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
            self._chatter.drop("notifications/progress", "its token names no running call")
            return []
        if call.stream is None or call.is_behind(progress_of(envelope)):
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

    def replayed(self, message: Message) -> list[Delivery[S]]:
        """Take what the agent sends again, for a stream that continues.

        An answer is a delivery with its call, unless the call was finished before.

        Raises:
            ProtocolViolation: see `Replayed.decode`.
        """
        replayed = Replayed.decode(message.payload)
        self.position = max(self.position, replayed.position)
        resumption = self._resumptions.answered_by(replayed.ticket)
        if resumption is None:
            self._chatter.drop("replay", "nobody asked for it")
            return []
        if not replayed.position:
            return self._replay_ended(resumption, held=replayed.raw == b"held")
        envelope = self._chatter.message(replayed.raw)
        if envelope is not None and resumption.where is None:
            return self._stranded(envelope, message, replayed)
        stream = resumption.stream
        if envelope is None or stream is None or replayed.position <= resumption.last:
            return []
        call = None
        answers = envelope.kind is Kind.RESPONSE
        if answers:
            if _answered_label(envelope) != resumption.where:
                self._chatter.drop("replay", "it answers another call")
                return []
            call = self._table.forget(envelope.request_id)  # its first copy may be on its way
            if call is not None:
                self._table.park(call)
        place = resumption.last = replayed.position
        resumption.answered, raw = answers, one_line(replayed.raw)
        return [Delivery(stream, raw, answers, message=message, position=place, call=call)]

    def _stranded(
        self, envelope: Envelope, message: Message, replayed: Replayed
    ) -> list[Delivery[S]]:
        """Take what an earlier gateway process had found no stream for."""
        seq = number_of(replayed.position)
        over = envelope.kind is Kind.REQUEST and not self._table.is_asked(envelope.request_id)
        if over or seq > self._adopted:
            return []  # answered, or it came to this process directly
        return self._route(envelope, message, seq, replayed.raw)

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
            self._link.consumed(delivery.message)

    def undelivered(self, delivery: Delivery[S]) -> None:
        """Take back what its stream did not write.

        Questions wait for the next stream; an answer waits with the agent.
        """
        if delivery.message is not None:
            self._link.consumed(delivery.message)
        if delivery.call is not None:
            self._table.park(delivery.call)
        elif delivery.unnamed:
            self._note(delivery.unnamed, None, position(delivery.unnamed))
            self._park(peek(delivery.raw), delivery.unnamed, delivery.raw)
        elif delivery.last:
            self._chatter.drop("response", "its client has hung up")

    def _park(self, envelope: Envelope, seq: int, raw: bytes) -> None:
        if self._backlog.put(seq, raw):
            return
        if envelope.kind is Kind.REQUEST:
            self._table.answered(envelope.request_id)
            self._refuse_ask(envelope, "the client has no open stream")
        else:
            self._chatter.drop(envelope.method_name, "no open stream")

    def _refuse_ask(self, envelope: Envelope, why: str) -> None:
        self._chatter.drop(envelope.method_name, why)
        refusal = error_response(envelope.request_id, Busy(f"not asked: {why}"))
        # To a child that does not read there is no end of refusals: it gets none.
        if self._link.writable and len(refusal) <= self._link.limits.message_bytes:
            self._link.send(Channel.RPC, refusal)

    def cut(self, call: Call[S]) -> None:
        """The call was answered in the child's place: its stream waits for nothing more."""
        if call.stream is not None:
            self._resumptions.stream_gone(call.stream)

    def unanswered(self) -> list[tuple[S, str]]:
        """Return the streams, with their labels, that wait for an answer of an ended call."""
        return self._resumptions.unanswered()


def _answered_label(envelope: Envelope) -> str | None:
    """Return the label of the stream that an answer belongs to."""
    has_none = envelope.id is None or envelope.id is UNSET
    return None if has_none else label(envelope.request_id)
