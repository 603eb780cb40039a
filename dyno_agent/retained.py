"""What the agent remembers of the traffic it has passed on. Pure: times in, answers out.

The gateway may forget everything at any moment, and a client may lose its stream after the gateway
has let go of a message. The agent outlives both: it knows which requests the child has not
answered, and it keeps what the gateway has taken over for a while longer.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from dyno_agent.link.resumption import MAX_ID, Id, RunningCall, digest, label, pages, position
from dyno_agent.slots import SLOTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dyno_agent.link import Message

K = TypeVar("K")
V = TypeVar("V")

RETAIN_S = 300.0
RETAIN_BYTES = 20 * 1024 * 1024
"""Holds at least one message of the largest size."""
RETAIN_MESSAGES = 2000

MAX_CALLS = 1024
"""More than a gateway lets a client have; the oldest is forgotten beyond."""

TOOL_CHARACTERS = 128

NOBODY = "-"
"""In place of a label: the message names a call that is not running, or nothing that could be."""


class _Envelope(NamedTuple):
    id: Id | None
    method: str | None
    params: dict[str, object]


class _Kept(NamedTuple):
    seq: int
    position: int
    label: str | None
    answers: tuple[Id | None, str] | None
    asks: Id | None
    payload: bytes
    until: float


@dataclass(**SLOTS)
class _Call:
    method: str
    tool: str | None
    token: Id | None
    digest: str
    since: float


class Retained:
    """The agent's memory of one session's messages."""

    def __init__(self) -> None:
        self._calls: dict[Id, _Call] = {}
        self._labels: dict[Id, str] = {}  # of running calls, by progress token
        self._asks: dict[Id, None] = {}
        self._answered_early: dict[Id, None] = {}  # asks, by a client quicker than the acks
        self._routed: dict[int, tuple[str, int]] = {}  # of messages that name no call
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._kept_bytes = 0

    # What passes

    def given(self, payload: bytes, now: float) -> None:
        """The client's message will reach the child."""
        envelope = _peek(payload)
        if envelope is None:
            return
        if envelope.method is None:
            if envelope.id is not None:
                self._answer(envelope.id)
        elif envelope.id is not None:
            self._begin(envelope.id, envelope.method, envelope.params, payload, now)
        elif envelope.method == "notifications/cancelled":
            self._end(_id_of(envelope.params.get("requestId")))

    def taken(self, message: Message, now: float) -> None:
        """The gateway has taken over this message of the child."""
        envelope = _peek(message.payload)
        self._keep(self._entry(envelope, message, now + RETAIN_S), now)
        self._routed.pop(message.key, None)
        if envelope is None or envelope.id is None:
            return
        if envelope.method is None:
            self._end(envelope.id)
        elif envelope.id in self._answered_early:
            del self._answered_early[envelope.id]
        else:
            _remember(self._asks, envelope.id, None)

    def routed(self, seq: int, where: str | None, at: int) -> None:
        """The gateway writes a message that names no call to this stream, at this position.

        None takes that back: the stream is gone, and the message waits for another one.
        """
        kept = self._kept.get(seq)
        if kept is not None:
            self._kept[seq] = kept._replace(label=where, position=at)
        elif where is None:
            self._routed.pop(seq, None)
        else:
            _remember(self._routed, seq, (where, at), RETAIN_MESSAGES)

    # What is asked

    def replay(
        self, where: str | None, after: int, unconfirmed: list[Message], now: float
    ) -> tuple[list[tuple[int, bytes]], bool]:
        """Return what went to a stream, or to none, and whether the stream's answer is here.

        Args:
            where: the stream's label; None for messages that name no call and went nowhere yet.
            after: the position of the last message that is not wanted.
            unconfirmed: what was sent and may not have been taken over; not part of "nowhere".
            now: monotonic seconds.
        """
        self._forget_old(now)
        if where is None:
            found = [kept for kept in self._kept.values() if self._waits(kept)]
        else:
            found = [kept for kept in self._all(unconfirmed, now) if kept.label == where]
        found.sort(key=lambda kept: kept.position)
        wanted = [(kept.position, kept.payload) for kept in found if kept.position > after]
        return wanted, any(kept.answers is not None for kept in found)

    def journal(self, unconfirmed: list[Message], now: float) -> list[str]:
        """Return the documents that tell a new gateway what is under way."""
        calls = (
            RunningCall(key, call.method, call.tool, call.token, call.digest, now - call.since)
            for key, call in self._calls.items()
        )
        answers = (kept.answers for kept in self._kept.values() if kept.answers is not None)
        answered = ((key, sha) for key, sha in answers if key is not None and sha)
        pending = {message.key for message in unconfirmed}
        asks = [*self._asks, *self._asked_in(unconfirmed)]
        return pages(
            calls,
            answered,
            asks,
            ((s, to) for s, (to, _) in self._routed.items() if s in pending),
        )

    def _waits(self, kept: _Kept) -> bool:
        """True for what went nowhere yet; a question only as long as nobody has answered it."""
        return kept.label is None and (kept.asks is None or kept.asks in self._asks)

    def _asked_in(self, unconfirmed: list[Message]) -> Iterator[Id]:
        """The open questions that a client may have seen although no gateway has said so."""
        for message in unconfirmed:
            envelope = _peek(message.payload) if message.key in self._routed else None
            if envelope is None or envelope.method is None or envelope.id is None:
                continue
            if envelope.id not in self._answered_early:
                yield envelope.id

    def _all(self, unconfirmed: list[Message], now: float) -> Iterator[_Kept]:
        yield from self._kept.values()
        for message in unconfirmed:
            yield self._entry(_peek(message.payload), message, now)

    def _entry(self, envelope: _Envelope | None, message: Message, until: float) -> _Kept:
        answers = asks = None
        if envelope is not None and envelope.method is None:
            call = None if envelope.id is None else self._calls.get(envelope.id)
            answers = (envelope.id, "" if call is None else call.digest)
        elif envelope is not None:
            asks = envelope.id
        return _Kept(
            message.key,
            self._routed.get(message.key, ("", position(message.key)))[1],
            self._where(envelope, message.key),
            answers,
            asks,
            message.payload,
            until,
        )

    def _where(self, envelope: _Envelope | None, seq: int) -> str | None:
        """Where a message of the child went: a label, or None while it went nowhere."""
        if envelope is None:
            return NOBODY
        if envelope.method is None:
            return NOBODY if envelope.id is None else label(envelope.id)
        if envelope.method == "notifications/progress":
            token = _id_of(envelope.params.get("progressToken"))
            return NOBODY if token is None else self._labels.get(token, NOBODY)
        return self._routed[seq][0] if seq in self._routed else None

    # Keeping

    def _answer(self, ask: Id) -> None:
        if ask in self._asks:
            del self._asks[ask]
        else:
            _remember(self._answered_early, ask, None)

    def _begin(
        self, key: Id, method: str, params: dict[str, object], payload: bytes, now: float
    ) -> None:
        tool, meta = params.get("name"), params.get("_meta")
        token = _id_of(meta.get("progressToken")) if isinstance(meta, dict) else None
        self._end(key)
        self._calls[key] = _Call(
            method[:TOOL_CHARACTERS],
            tool[:TOOL_CHARACTERS] if isinstance(tool, str) else None,
            token,
            digest(payload),
            now,
        )
        if token is not None:
            self._labels[token] = label(key)
        if len(self._calls) > MAX_CALLS:
            self._end(next(iter(self._calls)))

    def _end(self, key: Id | None) -> None:
        call = None if key is None else self._calls.pop(key, None)
        if call is None or call.token is None or key is None:
            return
        if self._labels.get(call.token) == label(key):
            del self._labels[call.token]

    def _keep(self, kept: _Kept, now: float) -> None:
        self._kept[kept.seq] = kept
        self._kept_bytes += len(kept.payload)
        self._forget_old(now)

    def _forget_old(self, now: float) -> None:
        while self._kept and (
            self._kept_bytes > RETAIN_BYTES
            or len(self._kept) > RETAIN_MESSAGES
            or next(iter(self._kept.values())).until <= now
        ):
            _, forgotten = self._kept.popitem(last=False)
            self._kept_bytes -= len(forgotten.payload)


def _remember(table: dict[K, V], key: K, value: V, most: int = MAX_CALLS) -> None:
    """Enter something into a table that forgets its oldest entries."""
    table[key] = value
    if len(table) > most:
        del table[next(iter(table))]


def _id_of(value: object) -> Id | None:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return None
    return value if isinstance(value, int) or len(value) <= MAX_ID else None


def _peek(payload: bytes) -> _Envelope | None:
    """Read the outer keys; None for what is no JSON-RPC message that can be named."""
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    method, params = document.get("method"), document.get("params")
    return _Envelope(
        _id_of(document.get("id")),
        method if isinstance(method, str) else None,
        params if isinstance(params, dict) else {},
    )
