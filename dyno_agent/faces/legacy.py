"""A modern-only child that looks like a legacy server to one client. Pure.

Towards the gateway it speaks the handshake revisions, towards the child 2026-07-28:

- `initialize` becomes `server/discover`; what it said goes with every later request.
- `ping`, `logging/setLevel` and the two subscribe methods, which the child does not have, are
  answered here; one `subscriptions/listen` stands for all subscriptions, and a subscriber has its
  answer when the child has acknowledged that.
- A result that asks for input becomes requests to the client, and their answers become the retry.

It keeps the client's ids towards the gateway. Towards the child, and for the requests to the
client, it draws its own: "face/1", "face/2" and so on, each once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dyno_agent.faces.face import Moves, Untranslatable, write
from dyno_agent.faces.rewriting import (
    ASKING,
    ASKS,
    BAD_PARAMS,
    HANDSHAKES,
    INTERNAL,
    LEVELS,
    MODERN,
    NO_CAPABILITY,
    NO_METHOD,
    NO_REVISION,
    NOT_A_REQUEST,
    PREFIX,
    able,
    covers,
    glimpse,
    mapping,
    needs,
    parse,
)
from dyno_agent.slots import SLOTS

if TYPE_CHECKING:
    from typing import TypeGuard  # novermin: not at run time

Document = dict[str, Any]

MAX_CALLS = 256
"""Requests of the client under way at once."""

MAX_ASKS = 64
"""Requests to the client that wait for its answer at once."""

MAX_URIS = 1024
MAX_URI_CHARACTERS = 8192

MAX_ROUNDS = 8
"""Times that one call may ask for input: as many as the TypeScript SDK's shim allows."""

MAX_RELISTENS = 3
"""Listens that the child may end in a row, without a notification in between, until it is
believed."""

_SERVER_INFO = PREFIX + "serverInfo"
_SUBSCRIPTION = PREFIX + "subscriptionId"

_DISCOVER = "server/discover"
_SUBSCRIBE = "resources/subscribe"
_NOT_LEGACY = frozenset((_DISCOVER, "subscriptions/listen"))
_NOT_MODERN = frozenset(("notifications/roots/list_changed", "notifications/progress"))
_LISTS = ("tools", "prompts", "resources")


class _Refused(Exception):
    """What the client gets as the error of its request."""

    def __init__(self, code: int, message: str, data: Document | None = None) -> None:
        super().__init__(message)
        self.error = _error(code, message, data)


@dataclass(**SLOTS)
class _Call:
    """A request of the client, until it is answered.

    Attributes:
        key: the client's id.
        leg: the id under which the child has it now; None while the client is asked.
        rounds: how often it asked for input.
        state: what the child wants to see again with the answers.
        asks: open requests to the client, by id.
        answers: what the client answered so far, by the child's keys.
    """

    key: str | int
    method: str
    params: Document
    leg: str | None = None
    rounds: int = 0
    state: str | None = None
    asks: dict[str, _Ask] = field(default_factory=dict)
    answers: Document = field(default_factory=dict)


@dataclass(frozen=True, **SLOTS)
class _Ask:
    call: _Call
    name: str
    kind: str


class LegacyFace:
    """Makes a modern child a legacy server; see `Face` for the two methods.

    Nothing that comes in makes it raise. What it cannot translate it answers with an error; what
    has no id that could be answered, it drops.

    Attributes:
        holding: the child has not answered the discovery yet that `initialize` led to.
    """

    def __init__(self) -> None:
        self.holding = False
        self._ready = False
        self._stamp: Document = {}
        self._level: str | None = None
        self._requested: Any = None
        self._calls: dict[str | int, _Call] = {}
        self._legs: dict[str, _Call] = {}
        self._asks: dict[str, _Ask] = {}
        self._drawn = 0
        self._kinds: list[str] = []
        self._uris: dict[str, None] = {}  # a set that keeps the order
        self._listen: str | None = None
        self._ended = 0

    def from_gateway(self, line: bytes) -> Moves:
        """Take a message of the client."""
        moves = Moves()
        message = _understood(line) or _envelope(line)
        method, key = message.get("method"), message.get("id")
        if isinstance(method, str):
            if _is_id(key):
                self._request(key, method, message.get("params"), moves)
            elif "id" not in message:
                self._notice(method, mapping(message.get("params")), line, moves)
        elif isinstance(key, str) and (ask := self._asks.pop(key, None)):
            del ask.call.asks[key]
            self._heard(ask, message, moves)
        return moves

    def from_child(self, line: bytes) -> Moves:
        """Take a message of the child."""
        moves = Moves()
        message = _understood(line) or _envelope(line)
        method, key = message.get("method"), message.get("id")
        if isinstance(method, str) and "id" in message:
            if _is_id(key):
                _send(moves, id=key, error=_error(NO_METHOD, "clients take no requests now"))
        elif isinstance(method, str):
            self._told(method, message, line, moves)
        elif "id" in message and "method" not in message:
            if isinstance(key, str):
                self._answered(key, message, moves)
        else:
            moves.to_gateway.append(line)
        return moves

    # The client's side.

    def _request(self, key: str | int, method: str, params: Any, moves: Moves) -> None:
        if key in self._calls:
            return  # an answer would end the first one; the gateway lets no id in twice
        try:
            self._serve(key, method, _checked(params), moves)
        except _Refused as refused:
            _tell(moves, id=key, error=refused.error)

    def _serve(self, key: str | int, method: str, params: Document, moves: Moves) -> None:
        if method == "initialize":
            self._initialize(key, params, moves)
            return
        if method != "ping" and not self._ready:
            raise _Refused(NOT_A_REQUEST, "initialize comes first")
        if method == "logging/setLevel":
            self._set_level(params)
        elif method == "resources/unsubscribe":
            self._unsubscribe(_uri(params), moves)
        elif method != "ping":
            if method in _NOT_LEGACY or method.startswith("tasks/"):
                raise _Refused(NO_METHOD, f"Method not found: {method}")
            self._begin(_Call(key, method, params), moves)
            return
        _tell(moves, id=key, result={})

    def _initialize(self, key: str | int, params: Document, moves: Moves) -> None:
        if self._ready or self.holding:
            raise _Refused(NOT_A_REQUEST, "this session is initialized already")
        self._stamp = {
            PREFIX + "protocolVersion": MODERN,
            PREFIX + "clientCapabilities": mapping(params.get("capabilities")),
        }
        info = mapping(params.get("clientInfo"))
        if isinstance(info.get("name"), str) and isinstance(info.get("version"), str):
            self._stamp[PREFIX + "clientInfo"] = info
        self._requested = params.get("protocolVersion")
        self.holding = True
        self._begin(_Call(key, _DISCOVER, {}), moves)

    def _begin(self, call: _Call, moves: Moves) -> None:
        if len(self._calls) >= MAX_CALLS:
            raise _Refused(INTERNAL, f"{MAX_CALLS} requests are under way; wait for one of them")
        if call.method == _SUBSCRIBE:
            self._subscribe(_uri(call.params), moves)
        else:
            self._hand_over(call, call.params, moves)
        self._calls[call.key] = call

    def _set_level(self, params: Document) -> None:
        level = params.get("level")
        if level not in LEVELS:
            raise _Refused(BAD_PARAMS, f"level must be one of {', '.join(LEVELS)}")
        self._level = level

    def _subscribe(self, uri: str, moves: Moves) -> None:
        """Listen for it too. The answer waits for the child: what follows it may be the change."""
        if uri not in self._uris and len(self._uris) >= MAX_URIS:
            raise _Refused(INTERNAL, f"{MAX_URIS} resources are subscribed to; that is the limit")
        self._uris[uri] = None
        self._ended = 0
        self._renew_listen(moves)

    def _unsubscribe(self, uri: str, moves: Moves) -> None:
        if uri in self._uris:
            del self._uris[uri]
            self._ended = 0
            self._renew_listen(moves)

    def _notice(self, method: str, params: Document, line: bytes, moves: Moves) -> None:
        if method == "notifications/cancelled":
            self._cancel(params, moves)
        elif method == "notifications/initialized":
            if self._listen is None:
                self._renew_listen(moves)
        elif self._ready and method not in _NOT_MODERN:
            moves.to_child.append(line)

    def _cancel(self, params: Document, moves: Moves) -> None:
        key = params.get("requestId")
        call = self._calls.get(key) if _is_id(key) else None
        if call is None or call.method == _DISCOVER:  # initialize must not be cancelled
            return
        del self._calls[call.key]
        if call.leg is not None:
            del self._legs[call.leg]
            cancelled = {**params, "requestId": call.leg}
            _send(moves, method="notifications/cancelled", params=cancelled)
        self._withdraw(call, moves)

    def _heard(self, ask: _Ask, message: Document, moves: Moves) -> None:
        """The client answered one ask: go on when it was the last."""
        call, result = ask.call, message.get("result")
        if isinstance(result, dict) and "error" not in message:
            call.answers[ask.name] = result
        elif ask.kind == "elicitation/create":
            call.answers[ask.name] = {"action": "cancel"}
        else:
            self._finish(call, moves, error=_error_in(message, "the client"))
            return
        if not call.asks:
            self._retry(call, moves)

    # The child's side.

    def _hand_over(self, call: _Call, params: Document, moves: Moves) -> None:
        call.leg = self._draw()
        self._legs[call.leg] = call
        _send(moves, id=call.leg, method=call.method, params=self._stamped(params))

    def _retry(self, call: _Call, moves: Moves) -> None:
        params = dict(call.params)
        if call.answers:
            params["inputResponses"] = call.answers
        if call.state is not None:
            params["requestState"] = call.state
        call.answers = {}
        self._hand_over(call, params, moves)

    def _stamped(self, params: Document) -> Document:
        level = {} if self._level is None else {PREFIX + "logLevel": self._level}
        return {**params, "_meta": {**params.get("_meta", {}), **self._stamp, **level}}

    def _answered(self, leg: str, message: Document, moves: Moves) -> None:
        if leg == self._listen:
            self._listen_ended(message, moves)
            return
        call = self._legs.pop(leg, None)
        if call is None:
            return
        call.leg = None
        try:
            self._take(call, message, moves)
        except _Refused as refused:
            self._finish(call, moves, error=refused.error)

    def _take(self, call: _Call, message: Document, moves: Moves) -> None:
        result = message.get("result")
        if not isinstance(result, dict) or "error" in message:
            self._finish(call, moves, error=_error_in(message, "the server"))
        elif call.method == _DISCOVER:
            self._finish(call, moves, result=self._welcome(result))
        elif (kind := result.get("resultType", "complete")) == "input_required":
            self._park(call, result, moves)
        elif kind == "complete":
            self._finish(call, moves, result=_older(call.method, result))
        else:
            raise _Refused(INTERNAL, "the server's result is of a kind that is too new for you")

    def _welcome(self, found: Document) -> Document:
        """Turn the discovery into an InitializeResult."""
        versions = found.get("supportedVersions")
        if not isinstance(versions, list) or MODERN not in versions:
            supported = versions if isinstance(versions, list) else []
            raise _Refused(
                NO_REVISION,
                f"the server speaks {', '.join(map(str, supported)) or 'nothing'}, not {MODERN}",
                {"supported": supported, "requested": self._requested},
            )
        self._ready = True
        # Tasks have other methods now.
        able = _without(mapping(found.get("capabilities")), "tasks")
        changing = (name for name in _LISTS if mapping(able.get(name)).get("listChanged") is True)
        self._kinds = [f"{name}ListChanged" for name in changing]
        info = mapping(mapping(found.get("_meta")).get(_SERVER_INFO))
        welcome = {
            "protocolVersion": self._requested if self._requested in HANDSHAKES else HANDSHAKES[-1],
            "capabilities": able,
            "serverInfo": {"name": "unknown", "version": "unknown", **info},
        }
        if isinstance(instructions := found.get("instructions"), str):
            welcome["instructions"] = instructions
        return welcome

    def _park(self, call: _Call, result: Document, moves: Moves) -> None:
        """Ask the client for what the child needs."""
        wanted, state = result.get("inputRequests") or {}, result.get("requestState")
        call.rounds += 1
        if call.rounds > MAX_ROUNDS:
            raise _Refused(INTERNAL, f"the server asked for input more than {MAX_ROUNDS} times")
        if call.method not in ASKING or not isinstance(wanted, dict):
            raise _Refused(INTERNAL, "the server asked for input where it must not")
        if not isinstance(state, (str, type(None))) or (state is None and not wanted):
            raise _Refused(INTERNAL, "the server asked for input and did not say for which")
        if len(self._asks) + len(wanted) > MAX_ASKS:
            raise _Refused(INTERNAL, f"the server asked for input {MAX_ASKS} times at once")
        for request in wanted.values():
            self._may_ask(request)
        call.state = state
        for name, request in wanted.items():
            self._ask(_Ask(call, name, request["method"]), request, moves)
        if not wanted:
            self._retry(call, moves)

    def _may_ask(self, request: Any) -> None:
        kind, params = mapping(request).get("method"), mapping(request).get("params", {})
        if not isinstance(kind, str) or kind not in ASKS or not isinstance(params, dict):
            raise _Refused(INTERNAL, "the server asked for input of an unknown kind")
        needed = needs(kind, params)
        if not covers(able(self._stamp[PREFIX + "clientCapabilities"]), needed):
            raise _Refused(
                NO_CAPABILITY,
                f"the server asks for {kind}, of a kind that the client did not declare",
                {"requiredCapabilities": needed},
            )

    def _ask(self, ask: _Ask, request: Document, moves: Moves) -> None:
        key = self._draw()
        self._asks[key] = ask.call.asks[key] = ask
        body = {"params": request["params"]} if "params" in request else {}
        if body and ask.kind == "elicitation/create" and body["params"].get("mode") == "url":
            # Required in 2025-11-25, gone in 2026-07-28.
            body = {"params": {"elicitationId": key, **body["params"]}}
        _tell(moves, id=key, method=ask.kind, **body)

    def _finish(self, call: _Call, moves: Moves, **outcome: Document) -> None:
        del self._calls[call.key]
        if call.method == _DISCOVER:
            self.holding = False
        self._withdraw(call, moves)
        _tell(moves, id=call.key, **outcome)

    def _withdraw(self, call: _Call, moves: Moves) -> None:
        for key in call.asks:
            del self._asks[key]
            over = {"requestId": key, "reason": "the call that needed it is over"}
            _tell(moves, method="notifications/cancelled", params=over)
        call.asks.clear()

    def _told(self, method: str, message: Document, line: bytes, moves: Moves) -> None:
        params = mapping(message.get("params"))
        meta = mapping(params.get("_meta"))
        if method == "notifications/cancelled":
            if self._listen is not None and params.get("requestId") == self._listen:
                self._listen_ended({}, moves)
        elif method == "notifications/subscriptions/acknowledged":
            if meta.get(_SUBSCRIPTION) == self._listen:
                self._subscribed(moves, result={})
        elif _SUBSCRIPTION in meta:
            self._ended = 0
            moves.to_gateway.append(write({**message, "params": _unmarked(params, _SUBSCRIPTION)}))
        else:
            moves.to_gateway.append(line)

    # The one listen.

    def _renew_listen(self, moves: Moves) -> None:
        """Listen for what is wanted now, and no longer for what was.

        The new one comes first: so an update between the two may come twice, but is not lost.
        """
        before, self._listen = self._listen, None
        wanted: Document = dict.fromkeys(self._kinds, True)
        if self._uris:
            wanted["resourceSubscriptions"] = list(self._uris)
        if wanted:
            self._listen = self._draw()
            params = self._stamped({"notifications": wanted})
            _send(moves, id=self._listen, method="subscriptions/listen", params=params)
        else:
            self._subscribed(moves, result={})
        if before is not None:
            _send(moves, method="notifications/cancelled", params={"requestId": before})

    def _subscribed(self, moves: Moves, **outcome: Document) -> None:
        for call in [call for call in self._calls.values() if call.method == _SUBSCRIBE]:
            if "error" in outcome:
                self._uris.pop(call.params["uri"], None)
            self._finish(call, moves, **outcome)

    def _listen_ended(self, message: Document, moves: Moves) -> None:
        self._listen = None
        self._ended += 1
        if "error" in message or self._ended > MAX_RELISTENS:
            self._subscribed(moves, error=_error_in(message, "the server"))
        else:
            self._renew_listen(moves)

    def _draw(self) -> str:
        self._drawn += 1
        return f"face/{self._drawn}"


def _send(moves: Moves, **message: Any) -> None:
    moves.to_child.append(write({"jsonrpc": "2.0", **message}))


def _tell(moves: Moves, **message: Any) -> None:
    moves.to_gateway.append(write({"jsonrpc": "2.0", **message}))


def _is_id(value: Any) -> TypeGuard[str | int]:
    return isinstance(value, (str, int)) and not isinstance(value, bool)


def _without(document: Document, *keys: str) -> Document:
    return {key: value for key, value in document.items() if key not in keys}


def _unmarked(document: Document, mark: str) -> Document:
    """Take a key out of `_meta`, and `_meta` if nothing else was in it."""
    meta = document.get("_meta")
    if not isinstance(meta, dict) or mark not in meta:
        return document
    rest = _without(meta, mark)
    return {**document, "_meta": rest} if rest else _without(document, "_meta")


def _error(code: int, message: str, data: Document | None = None) -> Document:
    return {"code": code, "message": message} | ({} if data is None else {"data": data})


def _error_in(message: Document, whose: str) -> Document:
    error = message.get("error")
    return error if isinstance(error, dict) else _error(INTERNAL, f"{whose} gave no proper answer")


def _checked(params: Any) -> Document:
    """Return the parameters, an absent object as an empty one."""
    params = {} if params is None else params
    if not isinstance(params, dict) or not isinstance(params.get("_meta", {}), dict):
        raise _Refused(BAD_PARAMS, "params and its _meta must be objects that JSON can hold")
    return params


def _uri(params: Document) -> str:
    uri = params.get("uri")
    if not isinstance(uri, str) or len(uri) > MAX_URI_CHARACTERS:
        raise _Refused(BAD_PARAMS, f"uri must be a string of up to {MAX_URI_CHARACTERS} letters")
    return uri


def _older(method: str, result: Document) -> Document:
    """Take out of a result what no legacy revision has.

    Structured content of a tool had to be an object, and so had the schema that describes it;
    SDKs of that time refuse a whole list of tools for a single schema of another kind.
    """
    result = _unmarked(_without(result, "resultType", "ttlMs", "cacheScope"), _SERVER_INFO)
    if method == "tools/call" and not isinstance(result.get("structuredContent", {}), dict):
        return _without(result, "structuredContent")
    if method == "tools/list" and isinstance(result.get("tools"), list):
        return {**result, "tools": [_older_tool(tool) for tool in result["tools"]]}
    return result


def _older_tool(tool: Any) -> Any:
    if isinstance(tool, dict) and mapping(tool.get("outputSchema")).get("type") != "object":
        return _without(tool, "outputSchema")
    return tool


def _understood(line: bytes) -> Document | None:
    """Read a message that can be written again; None if there is no such in the line."""
    try:
        return parse(line)
    except Untranslatable:
        return None


def _envelope(line: bytes) -> Document:
    """Find out who waits because of a line that cannot be translated; empty if nobody does.

    A number beyond a double, for one, hides neither the id nor the method. What a message holds is
    replaced: parameters by some that are refused, a result by an error.
    """
    document = glimpse(line)
    kept: Document = {key: document[key] for key in ("id", "method") if key in document}
    if "method" in kept:
        kept["params"] = []
    elif "id" in kept:
        kept["error"] = _error(INTERNAL, "this answer cannot be written again")
    return kept
