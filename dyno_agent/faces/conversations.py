"""The calls of a handshake child and what it asks in them, as multi round-trip requests. Pure.

A handshake server asks its client in the middle of a call, and goes on waiting. In 2026-07-28 the
call is answered with `input_required` instead, and comes again with the answer. So a **call** (one
request for the child) has **legs** (requests of the gateway, one after the other). Between two legs
it is **parked**: the child waits for the answer to its **ask**, and nobody waits for the child.

An ask on stdio does not say which call it is for. Therefore calls that can be asked run one at a
time as soon as the child has asked for anything, and an ask that several calls may have caused
waits until the others have been answered. What no rule can tell is an ask of a call that its caller
has left: it is put to the one call that could have caused it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dyno_agent.faces.rewriting import (
    ASKING,
    BAD_PARAMS,
    INTERNAL,
    NO_CAPABILITY,
    NO_METHOD,
    Key,
    covers,
    declared,
    failure,
    fits,
    key,
    legacy_params,
    mapping,
    modern_ask,
    modern_body,
    needs,
    notification,
    request,
    response,
    token,
    urls_first,
)
from dyno_agent.slots import SLOTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dyno_agent.faces.face import Moves

MAX_CALLS = 256
"""Calls that the child has, and as many that wait for their turn."""

MAX_PARKED = 64
"""Calls between two legs. Nobody may ever come back for one, so the oldest gives way."""

MAX_ASKS = 256

BY_URL: dict[str, Any] = {"elicitation": {"url": {}}}

MAX_WAITING_BYTES = 16 * 1024 * 1024
"""What all calls that wait for their turn may hold, unless it is a single one."""


@dataclass(**SLOTS, eq=False)
class Ask:
    """A request of the child; one without an id only stands for a URL that must be visited."""

    id: Key | None
    method: str
    params: dict[str, Any] | None
    needs: dict[str, Any]


@dataclass(**SLOTS, eq=False)
class Held:
    """An ask, and the ids of the calls that may have caused it: always two at least."""

    ask: Ask
    suspects: set[Key]


@dataclass(**SLOTS, eq=False)
class Call:
    """A request for the child, under the id of its first leg.

    Attributes:
        line: what the child gets; empty as soon as it has it.
        capabilities: what the client of the latest leg declares; none if it cannot be asked.
        token: the progress token that the child knows.
        leg: the open request of the gateway, None while parked.
        leg_token: its progress token.
        asks: what the caller must answer; none while a leg is open.
        answer: body of the response that came while no leg was open.
    """

    id: Key
    method: str
    line: bytes
    capabilities: dict[str, Any]
    token: Key | None
    leg: Key | None
    leg_token: Key | None
    asks: dict[str, Ask] = field(default_factory=dict)
    answer: dict[str, Any] | None = None


class Conversations:
    """All calls of one child.

    Args:
        names: unique strings, for `requestState` and the keys of `inputRequests`. They are no
            secrets: the gateway seals them.

    Attributes:
        server: goes into every result's `_meta`: the child's name for itself.
    """

    def __init__(self, names: Iterator[str]) -> None:
        self.server: dict[str, Any] = {}
        self._names = names
        self._calls: dict[Key, Call] = {}
        self._legs: dict[Key, Call] = {}
        self._tokens: dict[Key, Call] = {}
        self._parked: dict[str, Call] = {}
        self._waiting: deque[Call] = deque()
        self._held: list[Held] = []
        self._asked: list[dict[str, Any]] = []

    def __contains__(self, name: Key) -> bool:
        return name in self._legs or name in self._calls

    # What the gateway does

    def start(self, name: Key, method: str, params: dict[str, Any] | None, moves: Moves) -> None:
        """Take a call's first leg: give it to the child, now or when its turn comes."""
        given = params or {}
        own = None if params is None else legacy_params(method, params)
        call = Call(
            id=name,
            method=method,
            line=request(name, method, own),
            capabilities=declared(given) if method in ASKING else {},
            token=token(given),
            leg=name,
            leg_token=token(given),
        )
        waits = self._takes_turns(call)
        if not self._has_room(call) if waits else len(self._calls) >= MAX_CALLS:
            busy = failure(INTERNAL, "busy: too many calls are under way")
            moves.to_gateway.append(response(name, busy))
            return
        self._legs[name] = call
        if waits:
            self._waiting.append(call)
            self._settle(moves)
        else:
            self._send(call, moves)

    def resume(self, name: Key, method: str, params: dict[str, Any], moves: Moves) -> None:
        """Take a later leg: hand the child what it asked for, ask again for what is missing."""
        state = params.get("requestState")
        call = self._parked.get(state) if isinstance(state, str) else None
        if not isinstance(state, str) or call is None or call.method != method:
            stale = failure(BAD_PARAMS, "requestState belongs to no call that waits")
            moves.to_gateway.append(response(name, stale))
            return
        del self._parked[state]
        call.leg, call.leg_token, call.capabilities = name, token(params), declared(params)
        self._legs[name] = call
        given = mapping(params.get("inputResponses"))
        for label, ask in list(call.asks.items()):
            if fits(ask.method, given.get(label)):
                del call.asks[label]
                if ask.id is not None:
                    moves.to_child.append(response(ask.id, {"result": given[label]}))
        if call.asks:
            self._prompt(call, moves)
        elif call.answer is not None:
            self._conclude(call, call.answer, moves)
        elif call.id not in self._calls:  # its URLs have been visited
            del self._legs[name]
            self.start(name, method, params, moves)
        self._settle(moves)

    def cancel(self, name: Key, params: dict[str, Any], moves: Moves) -> None:
        """Forget a leg that its caller left, and its call."""
        call = self._legs.pop(name, None)
        if call is None:
            return
        if call in self._waiting:
            self._waiting.remove(call)
        else:
            self._withdraw(call, moves, {**params, "requestId": call.id})
        self._settle(moves)

    # What the child does

    def answered(self, name: Key, answer: dict[str, Any], moves: Moves) -> None:
        """Take the child's answer to a call; one that nobody waits for is dropped."""
        call = self._calls.get(name)
        if call is None:
            return
        self._forget(call)
        self._refuse_own(call, moves)
        for held in self._held:
            held.suspects.discard(call.id)
        urls = urls_first(answer)
        if urls and covers(call.capabilities, BY_URL):
            for url in urls[:MAX_ASKS]:
                call.asks[next(self._names)] = Ask(None, "elicitation/create", url, BY_URL)
            if call.leg is not None:
                self._prompt(call, moves)
        elif urls:
            self._conclude(call, _incapable(BY_URL), moves)
        else:
            self._conclude(call, modern_body(call.method, answer, self.server), moves)
        self._settle(moves)

    def ask(self, name: Key, method: str, params: dict[str, Any] | None, moves: Moves) -> None:
        """Take an ask of the child: put it to the caller that must have caused it."""
        ask = Ask(name, method, params, needs(method, params or {}))
        if ask.needs not in self._asked:
            self._asked.append(ask.needs)
        suspects = _likely(c for c in self._calls.values() if covers(c.capabilities, ask.needs))
        if len(self._held) + sum(len(call.asks) for call in self._calls.values()) >= MAX_ASKS:
            _refuse(ask, moves, "too many requests are open")
        elif len(suspects) > 1:
            self._held.append(Held(ask, {call.id for call in suspects}))
        elif suspects:
            self._put(ask, suspects[0], moves)
        else:
            self._unable(ask, moves)
        self._settle(moves)

    def withdrawn(self, name: Key) -> None:
        """Forget an ask that the child does not need any more."""
        self._held = [held for held in self._held if held.ask.id != name]
        for call in self._calls.values():
            call.asks = {label: ask for label, ask in call.asks.items() if ask.id != name}

    def progress(self, params: dict[str, Any], moves: Moves) -> None:
        """Pass progress on to the leg that is open, if it wants any."""
        known = key(params.get("progressToken"))
        call = None if known is None else self._tokens.get(known)
        if call is not None and call.leg is not None and call.leg_token is not None:
            moves.to_gateway.append(
                notification("notifications/progress", {**params, "progressToken": call.leg_token})
            )

    # Turns

    def _takes_turns(self, call: Call) -> bool:
        return any(covers(call.capabilities, needed) for needed in self._asked)

    def _has_room(self, call: Call) -> bool:
        held = sum(len(waiting.line) for waiting in self._waiting)
        return not self._waiting or (
            len(self._waiting) < MAX_CALLS and held + len(call.line) <= MAX_WAITING_BYTES
        )

    def _send(self, call: Call, moves: Moves) -> None:
        self._calls[call.id] = call
        if call.token is not None:
            self._tokens[call.token] = call
        moves.to_child.append(call.line)
        call.line = b""

    def _settle(self, moves: Moves) -> None:
        """Do what has become possible: attribute held asks, then begin the next call."""
        self._attribute(moves)
        while self._waiting and not any(
            call.leg is not None and self._takes_turns(call) for call in self._calls.values()
        ):
            self._send(self._waiting.popleft(), moves)

    def _attribute(self, moves: Moves) -> None:
        # One by one: to park a call may end another, and refuse what that may have asked.
        while certain := [held for held in self._held if len(held.suspects) == 1]:
            self._held.remove(certain[0])
            self._put(certain[0].ask, self._calls[certain[0].suspects.pop()], moves)
        for held in list(self._held):
            # As many asks as calls: each call may wait for one, so none would ever be answered.
            stuck = [other for other in self._held if other.suspects <= held.suspects]
            if len(stuck) >= len(held.suspects):
                self._refuse_held(stuck, moves)

    # Asks

    def _put(self, ask: Ask, call: Call, moves: Moves) -> None:
        call.asks[next(self._names)] = ask
        if call.leg is not None:
            self._prompt(call, moves)

    def _prompt(self, call: Call, moves: Moves) -> None:
        """Answer the open leg with what the caller is asked for, and park the call."""
        lacking = [a for a in call.asks.values() if not covers(call.capabilities, a.needs)]
        if lacking:
            self._conclude(call, _incapable(lacking[0].needs), moves)
            self._withdraw(call, moves)
            return
        state = next(self._names)
        asked = {label: modern_ask(ask.method, ask.params) for label, ask in call.asks.items()}
        result = {
            "resultType": "input_required",
            "inputRequests": asked,
            "requestState": state,
            **({"_meta": self.server} if self.server else {}),
        }
        self._conclude(call, {"result": result}, moves)
        self._parked[state] = call
        if len(self._parked) > MAX_PARKED:
            self._withdraw(self._parked.pop(next(iter(self._parked))), moves)

    def _unable(self, ask: Ask, moves: Moves) -> None:
        """Refuse an ask that no caller can answer, and end the call that cannot go on without.

        Servers ask for roots when they please, right after `initialized` for one, and do without:
        that ends no call.
        """
        callers = _likely(call for call in self._calls.values() if call.method in ASKING)
        if ask.method == "roots/list":
            _refuse(ask, moves, "the client has no roots", NO_METHOD)
        elif len(callers) != 1:
            _refuse(ask, moves, "no call is under way whose client can be asked")
        else:
            _refuse(ask, moves, "the client does not declare this capability")
            self._conclude(callers[0], _incapable(ask.needs), moves)
            self._withdraw(callers[0], moves)

    def _refuse_held(self, refused: list[Held], moves: Moves) -> None:
        self._held = [held for held in self._held if held not in refused]
        for held in refused:
            _refuse(held.ask, moves, "several calls are under way: it cannot be told which asks")

    def _refuse_own(self, call: Call, moves: Moves) -> None:
        for ask in call.asks.values():
            _refuse(ask, moves, "its call is over")
        call.asks.clear()

    # Ends

    def _conclude(self, call: Call, body: dict[str, Any], moves: Moves) -> None:
        """Answer the open leg, or keep the answer for the next one."""
        if call.leg is None:
            call.answer = body
        else:
            del self._legs[call.leg]
            moves.to_gateway.append(response(call.leg, body))
            call.leg = call.leg_token = None

    def _withdraw(self, call: Call, moves: Moves, params: dict[str, Any] | None = None) -> None:
        """Tell the child that nobody waits for a call; what it still answers is dropped."""
        self._refuse_own(call, moves)
        if self._calls.get(call.id) is call:
            self._forget(call)
            cancelled = params or {"requestId": call.id}
            moves.to_child.append(notification("notifications/cancelled", cancelled))
            # The ask may be this call's; put to another caller it would ask the wrong one.
            self._refuse_held([held for held in self._held if call.id in held.suspects], moves)

    def _forget(self, call: Call) -> None:
        del self._calls[call.id]
        if call.token is not None:
            self._tokens.pop(call.token, None)


def _likely(calls: Iterable[Call]) -> list[Call]:
    """Return those that run; those that are parked wait for the answer to another ask already."""
    every = list(calls)
    return [call for call in every if call.leg is not None] or every


def _refuse(ask: Ask, moves: Moves, why: str, code: int = INTERNAL) -> None:
    if ask.id is not None:
        moves.to_child.append(response(ask.id, failure(code, why)))


def _incapable(needed: dict[str, Any]) -> dict[str, Any]:
    return failure(
        NO_CAPABILITY, "the server asks for what the client lacks", requiredCapabilities=needed
    )
