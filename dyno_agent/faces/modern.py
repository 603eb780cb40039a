"""A child that only speaks a handshake revision (2024-11-05 … 2025-11-25), as a 2026-07-28 server.

Pure. It shakes hands with the child when the gateway first asks for something, answers for the
child what only modern servers know, and refuses what modern servers do not know any more.
`conversations` has the calls, `listeners` the listens, `rewriting` the single messages.
"""

from __future__ import annotations

from enum import Enum
from itertools import count
from typing import Any

from dyno_agent.faces.conversations import Conversations
from dyno_agent.faces.face import Moves, Untranslatable
from dyno_agent.faces.listeners import CHANGES, UPDATED, Listeners
from dyno_agent.faces.rewriting import (
    ASKING,
    ASKS,
    BAD_PARAMS,
    HANDSHAKES,
    INTERNAL,
    LEVELS,
    MODERN,
    NO_METHOD,
    NOT_A_REQUEST,
    PREFIX,
    Key,
    completed,
    failure,
    glimpse,
    key,
    legacy_params,
    mapping,
    notification,
    parse,
    request,
    response,
)

OWN = "face/"
"""Begins the ids of our own requests to the child; the gateway's never begin so."""

CLIENT = {"name": "rendezvous gateway", "version": "1"}
"""Who says hello if the first request does not say whose it is."""

CAPABILITIES: dict[str, Any] = {"elicitation": {"form": {}, "url": {}}, "sampling": {}, "roots": {}}
"""Told to the child once; what each caller really has is looked at when the child asks."""

REMOVED = frozenset(
    {
        "initialize",
        "ping",
        "logging/setLevel",
        "resources/subscribe",
        "resources/unsubscribe",
    }
)
"""Requests that 2026-07-28 has not; nor has it any of `tasks/`."""

REMOVED_NOTICES = frozenset(
    {
        "notifications/initialized",
        "notifications/roots/list_changed",
        "notifications/progress",
        "notifications/tasks/status",
    }
)
"""Notifications that a modern client does not send."""

DROPPED = frozenset({"notifications/elicitation/complete", "notifications/tasks/status"})
"""Notifications of the child that mean nothing to a modern client."""


class Phase(Enum):
    """How far the handshake is."""

    FRESH = "fresh"
    GREETING = "greeting"
    OPEN = "open"
    FAILED = "failed"


class ModernFace:
    """Shows a handshake child as a modern server.

    Attributes:
        holding: the handshake is under way; hand in no line of the gateway until it is over.
    """

    def __init__(self) -> None:
        self.holding = False
        self._phase = Phase.FRESH
        self._names = (f"{OWN}{n}" for n in count(1))
        self._greeting = next(self._names)
        self._first: tuple[Key, str, dict[str, Any] | None] | None = None
        self._welcome: dict[str, Any] = {}
        self._closed = ""  # why no request can be served
        self._level = len(LEVELS)
        self._calls = Conversations(self._names)
        self._listeners = Listeners(self._names)

    def from_gateway(self, line: bytes) -> Moves:
        """Take a message of the gateway. Responses are none: modern clients send requests only."""
        moves = Moves()
        try:
            document = parse(line)
        except Untranslatable as error:
            seen = glimpse(line)
            if "method" in seen and (name := key(seen.get("id"))) is not None:
                moves.to_gateway.append(response(name, failure(NOT_A_REQUEST, str(error))))
            return moves
        name, method = key(document.get("id")), document.get("method")
        params = document.get("params")
        if isinstance(method, str) and "id" not in document:
            self._noticed(method, mapping(params), moves)
        elif name is not None and "method" in document:
            refusal = self._refusal(name, method, params)
            if refusal is not None:
                moves.to_gateway.append(response(name, refusal))
            elif self._phase is Phase.FRESH:
                self._greet(name, str(method), params, moves)
            else:
                self._serve(name, str(method), params, moves)
        return moves

    def from_child(self, line: bytes) -> Moves:
        """Take a message of the child. What is none goes on as it is: the gateway counts it."""
        moves = Moves()
        try:
            document, why = parse(line), ""
        except Untranslatable as error:
            document, why = glimpse(line), str(error)
        name, method = key(document.get("id")), document.get("method")
        if isinstance(method, str) and "id" not in document:
            if not why:
                self._told(method, document.get("params"), line, moves)
        elif "method" in document:
            if name is not None:
                known = method if isinstance(method, str) and not why else ""
                self._asked(name, known, document.get("params"), moves)
        elif "id" in document:
            self._answered(name, failure(INTERNAL, why) if why else document, moves)
        else:
            moves.to_gateway.append(line)
        return moves

    # The handshake

    def _greet(self, name: Key, method: str, params: dict[str, Any] | None, moves: Moves) -> None:
        self._phase, self.holding, self._first = Phase.GREETING, True, (name, method, params)
        self._closed = "busy: the server is being initialized"
        info = mapping(mapping(params).get("_meta")).get(f"{PREFIX}clientInfo")
        hello = {
            "protocolVersion": HANDSHAKES[-1],
            "capabilities": CAPABILITIES,
            "clientInfo": info if _names_itself(info) else CLIENT,
        }
        moves.to_child.append(request(self._greeting, "initialize", hello))

    def _greeted(self, answer: dict[str, Any], moves: Moves) -> None:
        first, self._first, self.holding = self._first, None, False
        self._welcome = mapping(answer.get("result"))
        revision = self._welcome.get("protocolVersion")
        if revision in HANDSHAKES:
            self._phase, self._closed = Phase.OPEN, ""
            info = self._welcome.get("serverInfo")
            self._calls.server = {f"{PREFIX}serverInfo": info} if _names_itself(info) else {}
            moves.to_child.append(notification("notifications/initialized"))
        else:
            self._phase = Phase.FAILED
            reason = mapping(answer.get("error")).get("message", f"its revision is {revision!r}")
            self._closed = f"the server failed to initialize: {reason!s:.200}"
        if first is not None:
            self._serve(*first, moves)

    # What the gateway wants

    def _refusal(self, name: Key, method: Any, params: Any) -> dict[str, Any] | None:
        """Return what is wrong with a request, whatever the child would say."""
        if self._closed:
            return failure(INTERNAL, self._closed)
        if not isinstance(method, str):
            return failure(NOT_A_REQUEST, "method is no string")
        if str(name).startswith(OWN) or name in self._calls or name in self._listeners:
            return failure(NOT_A_REQUEST, "the id is taken")
        if params is not None and not isinstance(params, dict):
            return failure(BAD_PARAMS, "params is no object")
        if method in REMOVED or method.startswith("tasks/"):
            return failure(NO_METHOD, f"{MODERN} has no {method}")
        return None

    def _serve(self, name: Key, method: str, params: dict[str, Any] | None, moves: Moves) -> None:
        given = params or {}
        if self._closed:
            moves.to_gateway.append(response(name, failure(INTERNAL, self._closed)))
        elif method == "server/discover":
            moves.to_gateway.append(response(name, {"result": self._discovered()}))
        elif method == "subscriptions/listen":
            self._listeners.open(name, given, self._capabilities(), moves)
        else:
            self._be_as_verbose_as(given, moves)
            if method in ASKING and "requestState" in given:
                self._calls.resume(name, method, given, moves)
            else:
                self._calls.start(name, method, params, moves)

    def _noticed(self, method: str, params: dict[str, Any], moves: Moves) -> None:
        if self._phase is not Phase.OPEN or method in REMOVED_NOTICES:
            return
        if method != "notifications/cancelled":
            moves.to_child.append(notification(method, legacy_params(method, params)))
            return
        name = key(params.get("requestId"))
        if name is None:
            return
        if name in self._listeners:
            self._listeners.close(name, moves)
        else:
            self._calls.cancel(name, legacy_params(method, params), moves)

    def _be_as_verbose_as(self, params: dict[str, Any], moves: Moves) -> None:
        level = mapping(params.get("_meta")).get(f"{PREFIX}logLevel")
        if level not in LEVELS[: self._level] or "logging" not in self._capabilities():
            return
        self._level = LEVELS.index(level)
        moves.to_child.append(request(next(self._names), "logging/setLevel", {"level": level}))

    def _discovered(self) -> dict[str, Any]:
        instructions = self._welcome.get("instructions")
        told = {"instructions": instructions} if isinstance(instructions, str) else {}
        capabilities = {n: v for n, v in self._capabilities().items() if n != "tasks"}
        return completed(
            {"supportedVersions": [MODERN], "capabilities": capabilities, **told},
            self._calls.server,
            cacheable=True,
        )

    def _capabilities(self) -> dict[str, Any]:
        told = mapping(self._welcome.get("capabilities"))
        return {name: value for name, value in told.items() if isinstance(value, dict)}

    # What the child wants

    def _answered(self, name: Key | None, answer: dict[str, Any], moves: Moves) -> None:
        if self._phase is Phase.GREETING and name == self._greeting:
            self._greeted(answer, moves)
        elif name is not None:
            self._calls.answered(name, answer, moves)

    def _asked(self, name: Key, method: str, params: Any, moves: Moves) -> None:
        if method == "ping":
            moves.to_child.append(response(name, {"result": {}}))
        elif method not in ASKS:
            refusal = failure(NO_METHOD, "the client has no such method")
            moves.to_child.append(response(name, refusal))
        elif isinstance(params, dict) or (params is None and method == "roots/list"):
            self._calls.ask(name, method, params, moves)
        else:
            moves.to_child.append(response(name, failure(BAD_PARAMS, "params is no object")))

    def _told(self, method: str, params: Any, line: bytes, moves: Moves) -> None:
        told = mapping(params)
        if method == "notifications/progress":
            self._calls.progress(told, moves)
        elif method == "notifications/cancelled":
            if (name := key(told.get("requestId"))) is not None:
                self._calls.withdrawn(name)
        elif method == UPDATED or method in CHANGES:
            self._listeners.tell(method, told, moves)
        elif method not in DROPPED:
            moves.to_gateway.append(line)


def _names_itself(info: Any) -> bool:
    """Tell whether this is an `Implementation`."""
    named = mapping(info)
    return isinstance(named.get("name"), str) and isinstance(named.get("version"), str)
