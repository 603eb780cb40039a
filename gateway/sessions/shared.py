"""A session whose child has several callers, each request standing for itself (2026-07-28). Pure.

Every request gets an id of ours on its way to the child, and so do its progress token and its
subscription; what comes back is given its caller's own again, so equal ids of two callers never
meet. A caller that hangs up cancels. Nothing continues elsewhere: this era has no resumption.
"""

from dataclasses import dataclass
from typing import TypeVar

from msgspec import UNSET

from dyno_agent.link import Channel, Endpoint, Message
from dyno_agent.link.resumption import JournalPage
from gateway import events
from gateway.eras.catalogue import Chapter
from gateway.eras.correlation import Call, Correlation
from gateway.eras.modern import (
    ACKNOWLEDGED,
    LISTEN,
    Asked,
    ParamsHead,
    accepted,
    acknowledged,
    complete_listen,
    list_changed,
    outgoing,
    passed_on,
    peek_params,
    peek_result,
    restored,
    rewrite_params,
    rewrite_result,
)
from gateway.errors import Busy, GatewayError, UnknownMethod
from gateway.jsonrpc import (
    Envelope,
    Kind,
    error_of,
    error_response,
    notification,
    one_line,
    params_of,
    progress_of,
)
from gateway.sessions.delivery import Delivery
from gateway.sessions.record import SessionRecord, Step
from gateway.sessions.seals import Kind as SealKind
from gateway.sessions.seals import Seal, Seals, bound_to
from gateway.sessions.session import Session, short

S = TypeVar("S")


MAX_LISTENS = 64
"""Open `subscriptions/listen` of one session. They pin no dyno: an idle one ends them."""

LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
"""Least severe first (RFC 5424, 6.2.1)."""


@dataclass(slots=True)
class _Kept:
    """What is kept of a call besides where its answer goes.

    Attributes:
        bound: digest of the request, which its words are bound to.
        task: a task's id as the child knows it.
        task_text: the same as the caller knows it.
        held: a listen that the child has not heard of; None for what it has.
        kinds: whose list such a listen hears of.
        acknowledged: its caller knows that its listen has begun.
    """

    bound: str = ""
    task: str = ""
    task_text: str = ""
    held: bytes | None = None
    kinds: frozenset[str] = frozenset()
    acknowledged: bool = False


class SharedSession(Session[S]):
    """The rules of a session with several callers. See `Session`.

    Args:
        seals: closes what a caller has to bring back.

    Attributes:
        waits: a caller may come back for what its request has begun: a question or a task.
        started: a dyno was asked for.
    """

    def __init__(
        self,
        record: SessionRecord,
        link: Endpoint,
        emit: events.Sink,
        call_timeout_s: float,
        seals: Seals,
    ) -> None:
        super().__init__(record, link, emit, call_timeout_s)
        self.waits = self.started = False
        self._seals = seals
        self._listens: Correlation[S] = Correlation()
        self._kept: dict[str | int, _Kept] = {}
        self._drawn = self._drawn_held = 0

    def _child_runs(self) -> None:
        """Without a handshake a child may be silent until its first call is done, and well."""
        self.booted = self.booted or self.record.face == "plain"

    def _child_spoke(self) -> None:
        """What this was is its answer to the handshake that its face makes."""
        self.booted = True

    @property
    def hydrating(self) -> bool:
        """Nothing is sent again for callers that have hung up."""
        return False

    def hydrate(self, pages: list[JournalPage], now: float) -> None:
        """Cancel what runs: its callers were cut off with the earlier gateway process."""
        self.started = self.booted = True  # only an agent that was welcomed comes back
        self._drawn = self.link.sent  # each request took a frame, so none had so high an id
        for running in (call.id for page in pages for call in page.calls):
            self._table.swallow(running)
            self._cancel(running)

    # From the callers

    def start(self, now: float) -> None:
        """See `Session.start`: the child hears of the listens that were opened without it."""
        self.started = True
        for kept in self._kept.values():
            if kept.held is not None:
                self._forward(kept.held, now)
                kept.held = None

    def request(self, asked: Asked, size: int, stream: S, now: float, word: str | None) -> None:
        """Take a request; what it comes to will be deliveries to `stream`.

        Args:
            asked: the request.
            size: its size in bytes.
            stream: where it is answered.
            now: monotonic seconds.
            word: in place of the sealed one that it brings back; None if it brings none.

        Raises:
            BadMessage: an id or progress token that is too long to be carried along.
            Busy: too many calls or listens, or the child does not read.
            MessageTooBig: with the ids that it gets it would be over the limit.
        """
        call, line = self._call(self._drawn + 1, asked, size, stream, now, word)
        self._drawn += 1
        if asked.request_state is not None:
            self.waits = False  # its question is answered; a task goes on
        kept = self._kept[call.id] = _Kept(bound_to(asked.method, asked.params))
        if word is not None and asked.name is not None and asked.method.startswith("tasks/"):
            kept.task, kept.task_text = word, asked.name
        (self._listens if call.method == LISTEN else self._table).begin(call)
        self.witness.asked(call, line)
        self._forward(line, now)

    def hold(
        self, asked: Asked, size: int, stream: S, now: float, kinds: frozenset[str]
    ) -> list[Delivery[S]]:
        """Take a `subscriptions/listen` that needs no dyno: what changes lists is a running child.

        The child hears of it when it starts.

        Args:
            asked: the request.
            size: its size in bytes.
            stream: where it is answered.
            now: monotonic seconds.
            kinds: whose list may change, see `Chapter.list_changed_kinds`.

        Raises:
            Busy: see `request`.
        """
        key = f"held/{self._drawn_held + 1}"  # those of numbers are counted by frames
        call, line = self._call(key, asked, size, stream, now, None)
        self._drawn_held += 1
        self._listens.begin(call)
        self.witness.asked(call, line)
        kinds = accepted(asked, kinds)
        self._kept[call.id] = _Kept(held=line, kinds=kinds, acknowledged=True)
        self.active = now
        return [Delivery(stream, acknowledged(asked, kinds))]

    def relearned(self, chapter: Chapter, changed: frozenset[str]) -> list[Delivery[S]]:
        """See `Session.relearned`: who listens to a list hears that it has changed."""
        return [
            Delivery(call.stream, list_changed(kind, call.client_id))
            for call in self._listens.calls
            for kind in sorted(changed & self._kept_of(call).kinds)
            if call.stream is not None and not self.started
        ]

    def _call(
        self,
        key: str | int,
        asked: Asked,
        size: int,
        stream: S,
        now: float,
        word: str | None,
    ) -> tuple[Call[S], bytes]:
        if asked.method == LISTEN and len(self._listens) >= MAX_LISTENS:
            raise Busy(f"more than {MAX_LISTENS} open {LISTEN} in this session")
        self._room_for_call()
        line = self._line(outgoing(asked, key, key, **_words(asked, word)))
        self.witness.revision = asked.revision
        call = Call(
            id=key,
            client_id=short(asked.id),
            method=asked.method,
            tool=asked.name,
            stream=stream,
            started=now,
            bytes_in=size,
            token=None if asked.token is None else key,
            client_token=None if asked.token is None else short(asked.token),
            log_level=asked.log_level,
        )
        line = self.witness.carrying(call, line, self.link.limits.message_bytes)
        self.record.calls += 1
        self.record.move(Step.CALL)
        return call, line

    def stream_gone(self, stream: S, now: float) -> None:
        """The caller hung up, which cancels (basic/transports, "Disconnection")."""
        for call in self._running():
            if call.stream is stream:
                self._drop(call, now)

    def _running(self) -> list[Call[S]]:
        return [*self._table.calls, *self._listens.calls]

    def _drop(self, call: Call[S], now: float) -> None:
        table = self._listens if call.method == LISTEN else self._table
        table.forget(call.id)
        self._cancel(call.id)
        self._finished(call, "cancelled", 0, now)

    def _kept_of(self, call: Call[S]) -> _Kept:
        return self._kept.get(call.id, _Kept())

    def _cancel(self, key: str | int) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None and kept.held is not None:
            return  # the child has never heard of it
        params = {"requestId": key, "reason": "its caller has left"}
        self.link.send(Channel.RPC, notification("notifications/cancelled", params))

    def _cut(self, call: Call[S]) -> None:
        self._cancel(call.id)

    # From the child

    def _from_child(self, envelope: Envelope, message: Message, now: float) -> list[Delivery[S]]:
        match envelope.kind:
            case Kind.RESPONSE:
                return self._answer(envelope, message, now)
            case Kind.NOTIFICATION:
                return self._notice(envelope, message, now)
            case Kind.REQUEST:
                self.chatter.drop(envelope.method_name, "a modern server asks in its answers")
                if self.link.writable:
                    error = UnknownMethod("this revision has no requests of servers")
                    self.link.send(Channel.RPC, error_response(envelope.request_id, error))
                return []

    def _replayed(self, message: Message, now: float) -> list[Delivery[S]]:
        self.chatter.drop("replay", "nobody asked for it")
        return []

    def _answer(self, envelope: Envelope, message: Message, now: float) -> list[Delivery[S]]:
        table = self._listens if self._listens.knows(envelope.id) else self._table
        call = self._answer_of_child(envelope, message, now, table)
        if call is None:
            return []
        kept = self._kept.pop(call.id, _Kept())
        if call.stream is None:
            return []
        raw = self._restored(envelope, call, kept)
        code, _ = error_of(envelope)
        return [Delivery(call.stream, raw, last=True, message=message, code=code)]

    def _restored(self, envelope: Envelope, call: Call[S], kept: _Kept) -> bytes:
        """Return an answer as its caller shall read it; a task that it asked for keeps its id."""
        if envelope.result is UNSET:
            return restored(envelope, call.client_id)
        head = peek_result(envelope.result)
        if head.is_plain:
            return restored(envelope, call.client_id)
        self.waits |= head.request_state is not None or head.task_id is not None
        same_task = head.task_id is not None and head.task_id == kept.task
        task_id = kept.task_text if same_task else self._sealed("taskId", head.task_id, "")
        result = rewrite_result(
            envelope.result,
            request_state=self._sealed("requestState", head.request_state, kept.bound),
            next_cursor=self._sealed("cursor", head.next_cursor, call.method),
            task_id=task_id,
            subscription_id=None if head.subscription_id is None else call.client_id,
        )
        return restored(envelope, call.client_id, result)

    def _sealed(self, kind: SealKind, word: str | None, bound: str) -> str | None:
        if word is None:
            return None
        record = self.record
        seal = Seal(kind, record.principal, record.fingerprint, record.launch_id, bound, word)
        return self._seals.close(seal)

    def _notice(self, envelope: Envelope, message: Message, now: float) -> list[Delivery[S]]:
        method = envelope.method_name
        if method.endswith("/list_changed"):
            self.contradicts = True
        if method == "notifications/cancelled":
            return self._ended_by_child(params_of(envelope).requestId, message, now)
        if method == "notifications/message":
            return self._logged(envelope, message)
        return self._named(envelope, message)

    def _named(self, envelope: Envelope, message: Message) -> list[Delivery[S]]:
        """Give a notification to the call or listen that it names."""
        method, params = envelope.method_name, envelope.params
        head = ParamsHead() if params is UNSET else peek_params(params)
        call = None
        if head.subscription_id is not None:
            call = self._listens.get(head.subscription_id)
        elif method == "notifications/progress":
            call = self._table.by_token(head.progress_token)
        if call is not None and head.progress_token is not None and call.client_token is None:
            call = None  # a token that nobody gave it
        if call is None or call.stream is None or params is UNSET:
            self.chatter.drop(method, "it names no running call")
            return []
        if method == ACKNOWLEDGED:
            kept = self._kept_of(call)
            if kept.acknowledged:
                return []  # its caller has it from us
            kept.acknowledged = True
        if method == "notifications/progress" and call.is_behind(progress_of(envelope)):
            return []
        told = rewrite_params(
            params,
            progress_token=None if head.progress_token is None else call.client_token,
            subscription_id=None if head.subscription_id is None else call.client_id,
        )
        return [Delivery(call.stream, passed_on(envelope, told), message=message)]

    def _ended_by_child(
        self, request_id: str | int | None, message: Message, now: float
    ) -> list[Delivery[S]]:
        """A child may end a listen this way; its caller gets what ends one in good order."""
        call = None if request_id is None else self._listens.forget(request_id)
        if call is None or call.stream is None:
            self.chatter.drop("notifications/cancelled", "it names no open listen")
            return []
        self._kept.pop(call.id, None)
        self._finished(call, "ok", 0, now)
        return [Delivery(call.stream, complete_listen(call.client_id), last=True, message=message)]

    def _logged(self, envelope: Envelope, message: Message) -> list[Delivery[S]]:
        """A log message names no call: it goes to the only one that wants any, or to nobody."""
        takers = [call for call in self._table.calls if call.log_level is not None]
        if len(takers) != 1 or takers[0].stream is None:
            self.chatter.drop("notifications/message", "not exactly one call wants log messages")
            return []
        level = params_of(envelope).level
        wanted = takers[0].log_level
        if level in LEVELS and wanted in LEVELS and LEVELS.index(level) < LEVELS.index(wanted):
            return []
        return [Delivery(takers[0].stream, one_line(message.payload), message=message)]

    # Ends

    def fail(self, error: GatewayError, now: float, *, all_calls: bool = True) -> list[Delivery[S]]:
        """See `Session.fail`; a listen that has begun ends in good order instead."""
        told = super().fail(error, now, all_calls=all_calls)
        for call in self._listens.calls:
            self._listens.forget(call.id)
            begun = self._kept.pop(call.id, _Kept()).acknowledged
            if not begun:
                told += self._answer_instead(call, error, now)
            elif call.stream is not None:
                told.append(Delivery(call.stream, complete_listen(call.client_id), last=True))
        return told

    def flush(self) -> list[Delivery[S]]:
        """Nothing waits for a stream: each message is for one call."""
        return []

    def delivered(self, delivery: Delivery[S]) -> None:
        """The bytes of a delivery were written."""
        if delivery.message is not None:
            self.link.consumed(delivery.message)

    def undelivered(self, delivery: Delivery[S]) -> None:
        """Let go what its stream did not write: its caller has hung up."""
        if delivery.message is not None:
            self.link.consumed(delivery.message)


def _words(asked: Asked, word: str | None) -> dict[str, str | None]:
    """Return which of a request's words is replaced by the child's own."""
    if asked.request_state is not None:
        return {"request_state": word}
    return {"cursor": word} if asked.cursor is not None else {"task_id": word}
