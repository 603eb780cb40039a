"""A handshake child shows itself as a 2026-07-28 server: whole messages in, whole messages out."""

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from mcp_types import _v2025_11_25 as legacy
from mcp_types import _v2026_07_28 as modern
from pydantic import TypeAdapter

from dyno_agent.faces.conversations import MAX_ASKS, MAX_CALLS, MAX_PARKED, MAX_WAITING_BYTES
from dyno_agent.faces.face import Moves
from dyno_agent.faces.listeners import MAX_LISTENERS, MAX_URIS
from dyno_agent.faces.modern import ModernFace
from dyno_agent.faces.rewriting import MAX_DEPTH

P = "io.modelcontextprotocol/"
INFO = {"name": "child", "version": "2"}
SERVER = {f"{P}serverInfo": INFO}
ME = {"name": "a client", "version": "3"}
ALL: dict[str, Any] = {"elicitation": {"form": {}, "url": {}}, "sampling": {}, "roots": {}}
EVERYTHING = {
    "tools": {"listChanged": True},
    "prompts": {"listChanged": True},
    "resources": {"listChanged": True, "subscribe": True},
    "logging": {},
    "tasks": {"list": {}},
}
FORM = {"message": "Who?", "requestedSchema": {"type": "object", "properties": {}}}
ACCEPT = {"action": "accept", "content": {"name": "Ann"}}
SAMPLE = {"messages": [], "maxTokens": 5}
SAMPLED = {"role": "assistant", "model": "m", "content": {"type": "text", "text": "yes"}}
ROOTS = {"roots": [{"uri": "file:///tmp"}]}

URLS = {
    "code": -32042,
    "message": "sign in",
    "data": {
        "elicitations": [
            {"mode": "url", "elicitationId": "e", "url": "https://x.example", "message": "Go"}
        ]
    },
}

ANSWERS: dict[str, TypeAdapter[Any]] = {
    "server/discover": TypeAdapter(modern.DiscoverResult),
    "tools/list": TypeAdapter(modern.ListToolsResult),
    "prompts/list": TypeAdapter(modern.ListPromptsResult),
    "resources/list": TypeAdapter(modern.ListResourcesResult),
    "resources/templates/list": TypeAdapter(modern.ListResourceTemplatesResult),
    "tools/call": TypeAdapter(modern.AnyCallToolResult),
    "prompts/get": TypeAdapter(modern.AnyGetPromptResult),
    "resources/read": TypeAdapter(modern.AnyReadResourceResult),
}
NOTICES: TypeAdapter[Any] = TypeAdapter(modern.ServerNotification)
TO_CHILD: TypeAdapter[Any] = TypeAdapter(
    legacy.InitializeRequest
    | legacy.SetLevelRequest
    | legacy.SubscribeRequest
    | legacy.UnsubscribeRequest
)


def text(**keys: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **keys}).encode()


def meta(capabilities: dict[str, Any], **more: Any) -> dict[str, Any]:
    own = {"protocolVersion": "2026-07-28", "clientCapabilities": capabilities, "clientInfo": ME}
    return {**{P + name: value for name, value in own.items()}, **more}


class Play:
    """A face with both sides written down; what either side was told is taken once."""

    def __init__(self, capabilities: dict[str, Any] | None = None) -> None:
        self.face = ModernFace()
        self.child: list[dict[str, Any]] = []
        self.gateway: list[dict[str, Any]] = []
        self.methods: dict[Any, str] = {}
        if capabilities is not None:
            self.asks("first", "server/discover")
            self.greets(capabilities)
            self.told_child()
            self.told_gateway()

    def greets(self, capabilities: dict[str, Any], revision: str = "2025-06-18") -> None:
        welcome = {"protocolVersion": revision, "capabilities": capabilities, "serverInfo": INFO}
        self.says(id="face/1", result=welcome)

    def asks(
        self,
        name: Any,
        method: str,
        params: dict[str, Any] | None = None,
        *,
        can: dict[str, Any] | None = None,
        **more: Any,
    ) -> None:
        """The gateway sends a request."""
        self.methods[name] = method
        given = {**(params or {}), "_meta": meta(can or {}, **more)}
        self._write(self.face.from_gateway(text(id=name, method=method, params=given)))

    def calls(self, name: Any, can: dict[str, Any] | None = None, **more: Any) -> None:
        self.asks(name, "tools/call", {"name": "add"}, can=can, **more)

    def retries(
        self, name: Any, state: str, responses: Any, can: dict[str, Any] | None = None, **more: Any
    ) -> None:
        params = {"name": "add", "requestState": state, "inputResponses": responses}
        self.asks(name, "tools/call", params, can=ALL if can is None else can, **more)

    def notes(self, method: str, **params: Any) -> None:
        self._write(self.face.from_gateway(text(method=method, params=params)))

    def says(self, **keys: Any) -> None:
        """The child sends a message."""
        self._write(self.face.from_child(text(**keys)))

    def asked(self) -> tuple[str, dict[str, Any]]:
        """Take what the gateway was told, which asks for input; return its state and asks."""
        (answer,) = self.told_gateway()
        result = answer["result"]
        modern.InputRequiredResult.model_validate(result)
        assert result == {
            "resultType": "input_required",
            "inputRequests": result["inputRequests"],
            "requestState": result["requestState"],
            "_meta": SERVER,
        }
        return result["requestState"], result["inputRequests"]

    def told_child(self) -> list[dict[str, Any]]:
        told, self.child = self.child, []
        return told

    def told_gateway(self) -> list[dict[str, Any]]:
        told, self.gateway = self.gateway, []
        return told

    def _write(self, moves: Moves) -> None:
        self.child += [json.loads(line) for line in moves.to_child]
        for line in moves.to_gateway:
            if (told := _object(line)) is not None:
                self._check(told)
                self.gateway.append(told)

    def _check(self, told: dict[str, Any]) -> None:
        """Everything that goes to the gateway is what 2026-07-28 says it is."""
        if "result" in told:
            assert told["result"]["resultType"] in ("complete", "input_required")
            adapter = ANSWERS.get(self.methods[told["id"]])
            if adapter is not None and adapter.validate_python(told["result"]) is None:
                raise AssertionError
        elif "error" in told:
            modern.JSONRPCErrorResponse.model_validate(told)
        elif told.get("method", "").startswith("notifications/") and "custom" not in told["method"]:
            NOTICES.validate_python(told)


def _object(line: bytes) -> dict[str, Any] | None:
    assert b"\n" not in line
    try:
        document = json.loads(line)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def message(**keys: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", **keys}


def done(name: Any, text_: str = "5") -> dict[str, Any]:
    """The modern answer to a call that the child answered with `content(text_)`."""
    result = {**content(text_), "resultType": "complete", "_meta": SERVER}
    return message(id=name, result=result)


def content(text_: str = "5") -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text_}]}


def given(name: Any, **more: Any) -> dict[str, Any]:
    """What the child gets of a call."""
    return message(id=name, method="tools/call", params={"name": "add", **more})


def error(name: Any, code: int) -> tuple[Any, int]:
    return name, code


def errors(told: list[dict[str, Any]]) -> list[tuple[Any, int]]:
    return [(answer["id"], answer["error"]["code"]) for answer in told]


# The handshake


def test_child_hears_nothing_before_the_gateway_asks() -> None:
    play = Play()
    play.notes("notifications/cancelled", requestId=1)
    assert play.told_child() == []


def test_first_request_begins_the_handshake_in_its_clients_name() -> None:
    play = Play()
    play.calls(7)
    told = play.told_child()
    params = {"protocolVersion": "2025-11-25", "capabilities": ALL, "clientInfo": ME}
    assert told == [message(id="face/1", method="initialize", params=params)]
    TO_CHILD.validate_python(told[0])


@pytest.mark.parametrize("info", [None, "me", {"name": "no version"}, {"name": 1, "version": "1"}])
def test_a_client_that_does_not_name_itself_is_the_gateway(info: Any) -> None:
    play = Play()
    play.calls(7, **{f"{P}clientInfo": info})
    (hello,) = play.told_child()
    assert hello["params"]["clientInfo"] == {"name": "rendezvous gateway", "version": "1"}


def test_lines_are_held_until_the_child_is_initialized() -> None:
    play = Play()
    before = play.face.holding
    play.calls(7)
    during = play.face.holding
    play.greets({})
    assert (before, during, play.face.holding) == (False, True, False)


def test_first_request_follows_initialized() -> None:
    play = Play()
    play.calls(7)
    play.told_child()
    play.greets({})
    assert play.told_child() == [message(method="notifications/initialized"), given(7)]


def test_a_line_handed_in_during_the_handshake_is_refused_as_busy() -> None:
    play = Play()
    play.calls(7)
    play.calls(8)
    assert errors(play.told_gateway()) == [error(8, -32603)]


@pytest.mark.parametrize(
    "answer",
    [
        {"error": {"code": -32602, "message": "no such revision"}},
        {"error": "no"},
        {"result": {"protocolVersion": "1999-01-01"}},
        {"result": {"protocolVersion": {}}},
        {"result": None},
        {},
    ],
)
def test_a_failed_handshake_is_the_answer_to_every_request(answer: dict[str, Any]) -> None:
    play = Play()
    play.calls(7)
    play.says(id="face/1", **answer)
    play.asks(8, "server/discover")
    assert errors(play.told_gateway()) == [error(7, -32603), error(8, -32603)]
    assert not play.face.holding


def test_a_failed_handshake_tells_what_the_child_said() -> None:
    play = Play()
    play.calls(7)
    play.says(id="face/1", error={"code": 1, "message": "out of paper"})
    (answer,) = play.told_gateway()
    assert "out of paper" in answer["error"]["message"]


def test_discover_tells_what_the_child_said_of_itself_without_tasks() -> None:
    play = Play()
    play.asks("d", "server/discover")
    welcome = {
        "protocolVersion": "2024-11-05",
        "capabilities": EVERYTHING,
        "serverInfo": INFO,
        "instructions": "add",
    }
    play.says(id="face/1", result=welcome)
    capabilities = {name: value for name, value in EVERYTHING.items() if name != "tasks"}
    assert play.told_gateway() == [
        message(
            id="d",
            result={
                "supportedVersions": ["2026-07-28"],
                "capabilities": capabilities,
                "instructions": "add",
                "resultType": "complete",
                "ttlMs": 0,
                "cacheScope": "private",
                "_meta": SERVER,
            },
        )
    ]


def test_discover_leaves_out_what_the_child_says_in_a_wrong_form() -> None:
    play = Play()
    play.asks("d", "server/discover")
    welcome = {"protocolVersion": "2025-11-25", "capabilities": [], "serverInfo": {"name": 1}}
    play.says(id="face/1", result={**welcome, "instructions": 5})
    (answer,) = play.told_gateway()
    fresh = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}
    about = {"supportedVersions": ["2026-07-28"], "capabilities": {}}
    assert answer["result"] == {**about, **fresh}


# Plain requests


def test_child_gets_a_call_without_what_only_modern_servers_know() -> None:
    play = Play({})
    own = {"task": {"ttl": 1}, "inputResponses": {}, "name": "add"}
    play.asks(7, "tools/call", own, can=ALL, progressToken=3, traceparent="00-1")
    assert play.told_child() == [given(7, _meta={"progressToken": 3, "traceparent": "00-1"})]


def test_child_gets_no_meta_when_nothing_is_left_of_it() -> None:
    play = Play({})
    play.asks(7, "tools/list", {"cursor": "2"})
    assert play.told_child() == [message(id=7, method="tools/list", params={"cursor": "2"})]


def test_child_gets_a_request_without_params_as_it_is() -> None:
    play = Play({})
    play._write(play.face.from_gateway(text(id="x", method="custom/method")))
    assert play.told_child() == [message(id="x", method="custom/method")]


def test_a_result_is_complete_and_names_its_server() -> None:
    play = Play({})
    play.calls(7)
    play.says(id=7, result={**content(), "_meta": {"own": 1}, "structuredContent": {"a": 1}})
    result = {**content(), "structuredContent": {"a": 1}, "resultType": "complete"}
    assert play.told_gateway() == [message(id=7, result={**result, "_meta": {"own": 1, **SERVER}})]


@pytest.mark.parametrize(
    ("method", "result"),
    [
        ("tools/list", {"tools": []}),
        ("prompts/list", {"prompts": []}),
        ("resources/list", {"resources": []}),
        ("resources/templates/list", {"resourceTemplates": []}),
        ("resources/read", {"contents": []}),
    ],
)
def test_a_cacheable_result_is_stale_at_once_and_private(
    method: str, result: dict[str, Any]
) -> None:
    play = Play({})
    play.asks("a", method)
    play.says(id="a", result=result)
    fresh = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private", "_meta": SERVER}
    assert play.told_gateway() == [message(id="a", result={**result, **fresh})]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"code": -32002, "message": "m", "data": 1}, {"code": -32602, "message": "m", "data": 1}),
        ({"code": 7, "message": "m"}, {"code": 7, "message": "m"}),
        ({"code": -32042, "message": "m"}, {"code": -32603, "message": "m"}),
        ({"code": "x", "message": 5}, {"code": -32603, "message": ""}),
        ("broken", {"code": -32603, "message": ""}),
    ],
)
def test_an_error_keeps_its_meaning(said: Any, told: dict[str, Any]) -> None:
    play = Play({})
    play.asks(7, "resources/read", {"uri": "x:1"})
    play.says(id=7, error=said)
    assert play.told_gateway() == [message(id=7, error=told)]


@pytest.mark.parametrize("said", [{}, {"result": None}, {"result": [1]}])
def test_an_answer_that_is_none_becomes_an_error(said: dict[str, Any]) -> None:
    play = Play({})
    play.calls(7)
    play.says(id=7, **said)
    assert errors(play.told_gateway()) == [error(7, -32603)]


@pytest.mark.parametrize(
    "method",
    [
        "initialize",
        "ping",
        "logging/setLevel",
        "resources/subscribe",
        "resources/unsubscribe",
        "tasks/get",
        "tasks/list",
    ],
)
def test_a_removed_method_is_unknown_and_does_not_reach_the_child(method: str) -> None:
    play = Play(EVERYTHING)
    play.asks(7, method)
    assert errors(play.told_gateway()) == [error(7, -32601)]
    assert play.told_child() == []


def test_answers_find_their_calls_in_any_order() -> None:
    play = Play({})
    play.calls(1)
    play.calls("1")
    play.says(id="1", result=content("b"))
    play.says(id=1, result=content("a"))
    assert play.told_gateway() == [done("1", "b"), done(1, "a")]


@pytest.mark.parametrize("name", [9, "face/2", None, True, [1], 1.5])
def test_an_answer_to_nothing_is_dropped(name: Any) -> None:
    play = Play({})
    play.calls(1)
    play.says(id=name, result=content())
    assert play.told_gateway() == []


def test_a_second_answer_to_a_call_is_dropped() -> None:
    play = Play({})
    play.calls(1)
    play.says(id=1, result=content())
    play.says(id=1, result=content())
    assert play.told_gateway() == [done(1)]


def test_calls_beyond_the_bound_are_refused() -> None:
    play = Play({})
    for name in range(MAX_CALLS + 1):
        play.calls(name)
    assert errors(play.told_gateway()) == [error(MAX_CALLS, -32603)]


# Hostile and broken lines


@pytest.mark.parametrize("noise", [b"Listening on 80", b"[]", b'"x"', b'{"level":"info"}', b"\xff"])
def test_what_is_no_message_of_the_child_goes_on_unchanged(noise: bytes) -> None:
    assert ModernFace().from_child(noise) == Moves(to_gateway=[noise])


@pytest.mark.parametrize(
    "tail", [b'"result":{"a":NaN}', b'"result":1e999', b'"result":' + b"[" * 300 + b"]" * 300]
)
def test_an_answer_that_cannot_be_translated_ends_its_call(tail: bytes) -> None:
    play = Play({})
    play.calls(7)
    play._write(play.face.from_child(b'{"jsonrpc":"2.0","id":7,' + tail + b"}"))
    assert errors(play.told_gateway()) == [error(7, -32603)]


def test_an_ask_that_cannot_be_translated_is_refused() -> None:
    play = Play({})
    play.calls(7, ALL)
    play.told_child()
    line = b'{"jsonrpc":"2.0","id":7,"method":"elicitation/create","params":{"a":NaN}}'
    play._write(play.face.from_child(line))
    assert errors(play.told_child()) == [error(7, -32601)]
    assert play.told_gateway() == []


@pytest.mark.parametrize(
    "line",
    [
        b'{"method":"notifications/message","params":{"data":NaN}}',
        b'{"id":[],"method":"roots/list"}',
        b'{"method":"notifications/cancelled","params":{"requestId":[]}}',
        b'{"method":"notifications/progress","params":[]}',
        b'{"method":"notifications/resources/updated"}',
    ],
)
def test_a_broken_message_of_the_child_is_dropped(line: bytes) -> None:
    play = Play(EVERYTHING)
    play.calls(1, ALL, progressToken=1)
    assert play.face.from_child(line) == Moves()


def test_a_request_that_cannot_be_translated_is_refused() -> None:
    line = b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"a":NaN}}'
    (answer,) = ModernFace().from_gateway(line).to_gateway
    assert json.loads(answer)["error"]["code"] == -32600


@pytest.mark.parametrize(
    "line",
    [
        b"noise",
        b"[]",
        b'{"id":1,"result":{}}',
        b'{"id":1,"result":{"a":NaN}}',
        b'{"id":null,"method":"tools/call"}',
        b'{"id":true,"method":"tools/call"}',
        b'{"method":5}',
    ],
)
def test_a_line_of_the_gateway_that_has_no_answer_is_dropped(line: bytes) -> None:
    play = Play({})
    assert play.face.from_gateway(line) == Moves()


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"method": 5}, -32600),
        ({"method": "tools/call", "params": []}, -32602),
        ({"method": "tools/call", "id": "face/9"}, -32600),
        ({"method": "tools/call", "id": 1}, -32600),
        ({"method": "tools/call", "id": 2}, -32600),
    ],
)
def test_a_request_out_of_form_is_refused(keys: dict[str, Any], code: int) -> None:
    play = Play({})
    play.calls(1)
    play.asks(2, "subscriptions/listen", {"notifications": {}})
    play.told_gateway()
    play._write(play.face.from_gateway(text(**{"id": 7, **keys})))
    assert errors(play.told_gateway()) == [error(keys.get("id", 7), code)]


def test_a_message_may_be_nested_as_deep_as_the_bound() -> None:
    play = Play({})
    play.calls(1)
    deep: Any = []
    for _ in range(MAX_DEPTH - 4):
        deep = [deep]
    play.says(id=1, result={**content(), "structuredContent": {"a": deep}})
    play.calls(2)
    play.says(id=2, result={**content(), "structuredContent": {"a": [deep]}})
    first, second = play.told_gateway()
    assert "result" in first
    assert second["error"]["code"] == -32603


def test_ping_of_the_child_is_answered_even_before_it_is_initialized() -> None:
    play = Play()
    play.says(id="p", method="ping")
    assert play.told_child() == [message(id="p", result={})]


@pytest.mark.parametrize("method", ["tasks/get", "custom/ask", {}, [], None])
def test_a_request_of_the_child_that_no_client_knows_is_refused(method: Any) -> None:
    play = Play({})
    play.says(id=0, method=method)
    assert errors(play.told_child()) == [error(0, -32601)]


# Asks


def test_an_ask_is_put_to_the_call_and_its_answer_to_the_child() -> None:
    play = Play({})
    play.calls(1, ALL)
    play.told_child()
    play.says(id=0, method="elicitation/create", params=FORM)
    state, asked = play.asked()
    (label,) = asked
    assert asked == {label: {"method": "elicitation/create", "params": FORM}}
    play.retries("2", state, {label: ACCEPT})
    assert play.told_child() == [message(id=0, result=ACCEPT)]
    play.says(id=1, result=content())
    assert play.told_gateway() == [done("2")]


@pytest.mark.parametrize(
    ("method", "params", "answer", "can"),
    [
        ("sampling/createMessage", SAMPLE, SAMPLED, {"sampling": {}}),
        ("roots/list", None, ROOTS, {"roots": {}}),
        ("elicitation/create", FORM, {"action": "decline"}, {"elicitation": {}}),
        (
            "elicitation/create",
            {"mode": "url", "message": "Go", "url": "https://x.example"},
            {"action": "accept"},
            {"elicitation": {"url": {}}},
        ),
    ],
)
def test_every_kind_of_ask_goes_there_and_back(
    method: str, params: Any, answer: dict[str, Any], can: dict[str, Any]
) -> None:
    play = Play({})
    play.calls(1, can)
    play.told_child()
    tail = {} if params is None else {"params": params}
    play.says(id="ask", method=method, **tail)
    state, asked = play.asked()
    assert list(asked.values()) == [{"method": method, **tail}]
    play.retries(2, state, dict.fromkeys(asked, answer), can)
    assert play.told_child() == [message(id="ask", result=answer)]


def test_an_ask_is_put_without_what_modern_clients_do_not_know() -> None:
    play = Play({})
    play.calls(1, ALL)
    url = {"mode": "url", "message": "Go", "url": "https://x.example"}
    own = {"elicitationId": "e", "task": {}, "_meta": {"progressToken": 5}}
    play.says(id=0, method="elicitation/create", params={**url, **own})
    _, asked = play.asked()
    assert list(asked.values()) == [{"method": "elicitation/create", "params": url}]


def test_each_round_has_its_own_state() -> None:
    play = Play({})
    play.calls(1, ALL)
    play.says(id=0, method="roots/list")
    first, asked = play.asked()
    play.retries(2, first, dict.fromkeys(asked, ROOTS))
    play.says(id=1, method="roots/list")
    second, _ = play.asked()
    assert first != second
    play.retries(3, first, {})
    assert errors(play.told_gateway()) == [error(3, -32602)]


@pytest.mark.parametrize("state", ["face/99", "", 5, None, []])
def test_an_unknown_state_is_refused(state: Any) -> None:
    play = Play({})
    play.retries(2, state, {})
    assert errors(play.told_gateway()) == [error(2, -32602)]
    assert play.told_child() == []


def test_a_state_of_another_method_is_refused_and_stays_good() -> None:
    play = Play({})
    play.calls(1, ALL)
    play.says(id=0, method="roots/list")
    state, asked = play.asked()
    responses = dict.fromkeys(asked, ROOTS)
    play.asks(2, "prompts/get", {"requestState": state, "inputResponses": responses}, can=ALL)
    assert errors(play.told_gateway()) == [error(2, -32602)]
    play.told_child()
    play.retries(3, state, responses)
    assert play.told_child() == [message(id=0, result=ROOTS)]


@pytest.mark.parametrize("wrong", [{}, None, [], {"action": "perhaps"}, {"roots": []}, "accept"])
def test_what_is_missing_is_asked_again(wrong: Any) -> None:
    play = Play({})
    play.calls(1, ALL)
    play.told_child()
    play.says(id=0, method="elicitation/create", params=FORM)
    play.says(id=1, method="roots/list")
    first, asked = play.asked()
    (label,) = asked
    play.retries(2, first, {label: ACCEPT})
    second, (rooted, *_) = play.asked()
    play.retries(3, second, {rooted: wrong} if wrong != {"roots": []} else {label: wrong})
    third, again = play.asked()
    assert list(again) == [rooted]
    assert play.told_child() == [message(id=0, result=ACCEPT)]
    play.retries(4, third, {rooted: ROOTS})
    assert play.told_child() == [message(id=1, result=ROOTS)]


@pytest.mark.parametrize("wrong", [None, [], {}, {"action": "perhaps"}, {"action": []}])
def test_a_malformed_response_does_not_reach_the_child(wrong: Any) -> None:
    play = Play({})
    play.calls(1, ALL)
    play.told_child()
    play.says(id=0, method="elicitation/create", params=FORM)
    state, asked = play.asked()
    play.retries(2, state, dict.fromkeys(asked, wrong))
    _, again = play.asked()
    assert again == asked
    assert play.told_child() == []


def test_an_answer_that_comes_while_parked_waits_for_the_next_leg() -> None:
    play = Play({})
    play.calls(1, ALL)
    play.says(id=0, method="roots/list")
    state, asked = play.asked()
    play.says(id=1, result=content())
    assert play.told_gateway() == []
    play.told_child()
    play.retries(2, state, dict.fromkeys(asked, ROOTS))
    assert play.told_gateway() == [done(2)]
    assert play.told_child() == []


def test_an_ask_that_the_child_takes_back_while_parked_is_not_answered() -> None:
    play = Play({})
    play.calls(1, ALL)
    play.says(id=0, method="roots/list")
    state, asked = play.asked()
    play.told_child()
    play.says(method="notifications/cancelled", params={"requestId": 0})
    play.retries(2, state, dict.fromkeys(asked, ROOTS))
    assert play.told_child() == []
    play.says(id=1, result=content())
    assert play.told_gateway() == [done(2)]


def test_an_ask_that_is_open_when_its_call_is_answered_is_refused() -> None:
    play = Play({})
    play.calls(1, ALL)
    play.says(id=0, method="roots/list")
    play.told_child()
    play.says(id=1, result=content())
    assert errors(play.told_child()) == [error(0, -32603)]


def test_an_ask_with_the_id_of_a_call_is_another_matter() -> None:
    play = Play({})
    play.calls(1, ALL)
    play.told_child()
    play.says(id=1, method="roots/list")
    state, asked = play.asked()
    play.retries(2, state, dict.fromkeys(asked, ROOTS))
    play.says(id=1, result=content())
    assert play.told_child() == [message(id=1, result=ROOTS)]
    assert play.told_gateway() == [done(2)]


@pytest.mark.parametrize("params", [None, [], "x"])
def test_an_ask_without_params_is_refused(params: Any) -> None:
    play = Play({})
    play.calls(1, ALL)
    play.told_child()
    play.says(id=0, method="elicitation/create", params=params)
    assert errors(play.told_child()) == [error(0, -32602)]


# Whose ask


def test_a_call_that_cannot_be_asked_is_no_candidate() -> None:
    play = Play({})
    play.asks(1, "tools/list", can=ALL)
    play.calls(2, {"sampling": {}})
    play.calls(3, ALL)
    play.says(id=0, method="elicitation/create", params=FORM)
    (answer,) = play.told_gateway()
    assert answer["id"] == 3


def test_an_ask_of_one_of_two_calls_waits_until_the_other_is_answered() -> None:
    play = Play({})
    play.calls(1, ALL)
    play.calls(2, ALL)
    play.says(id=0, method="roots/list")
    assert play.told_gateway() == []
    play.says(id=1, result=content())
    first, second = play.told_gateway()
    assert first == done(1)
    assert (second["id"], second["result"]["resultType"]) == (2, "input_required")


def test_asks_wait_for_the_calls_that_may_have_caused_them_and_no_others() -> None:
    play = Play({})
    play.calls(1, ALL)
    play.calls(2, {"sampling": {}})
    play.calls(3, {"elicitation": {}})
    play.told_child()
    play.says(id=0, method="elicitation/create", params=FORM)
    play.says(id=5, method="sampling/createMessage", params=SAMPLE)
    assert play.told_gateway() == []
    play.says(id=1, result=content())
    first, *others = play.told_gateway()
    assert first == done(1)
    put = {
        told["id"]: [ask["method"] for ask in told["result"]["inputRequests"].values()]
        for told in others
    }
    assert put == {2: ["sampling/createMessage"], 3: ["elicitation/create"]}
    assert play.told_child() == []


def test_asks_are_refused_when_as_many_calls_are_left() -> None:
    play = Play({})
    for name in (1, 2, 3):
        play.calls(name, ALL)
    play.told_child()
    play.says(id=0, method="roots/list")
    play.says(id=5, method="elicitation/create", params=FORM)
    assert play.told_child() == []
    play.says(id=1, result=content())
    assert errors(play.told_child()) == [error(0, -32603), error(5, -32603)]
    assert play.told_gateway() == [done(1)]


def test_as_many_asks_as_calls_are_refused() -> None:
    play = Play({})
    play.calls(1, ALL)
    play.calls(2, ALL)
    play.told_child()
    play.says(id=0, method="roots/list")
    assert play.told_child() == []
    play.says(id=5, method="roots/list")
    assert errors(play.told_child()) == [error(0, -32603), error(5, -32603)]
    assert play.told_gateway() == []


def test_an_ask_that_a_cancelled_call_may_have_caused_is_refused() -> None:
    play = Play({})
    play.calls(1, ALL)
    play.calls(2, ALL)
    play.told_child()
    play.says(id=0, method="roots/list")
    play.notes("notifications/cancelled", requestId=1)
    cancelled, refused = play.told_child()
    assert cancelled == message(method="notifications/cancelled", params={"requestId": 1})
    assert errors([refused]) == [error(0, -32603)]
    assert play.told_gateway() == []


def test_a_held_ask_that_the_child_takes_back_is_forgotten() -> None:
    play = Play({})
    play.calls(1, ALL)
    play.calls(2, ALL)
    play.says(id=0, method="roots/list")
    play.says(method="notifications/cancelled", params={"requestId": 0})
    play.says(id=1, result=content())
    assert play.told_gateway() == [done(1)]


def test_after_the_first_ask_calls_that_can_be_asked_take_turns() -> None:
    play = Play({})
    play.calls(1, ALL)
    play.says(id=0, method="roots/list")
    state, asked = play.asked()
    play.told_child()
    play.retries(2, state, dict.fromkeys(asked, ROOTS))
    play.calls(3, ALL)
    play.calls(4, ALL)
    play.calls(5, {"sampling": {}})
    assert play.told_child() == [message(id=0, result=ROOTS), given(5)]
    play.says(id=1, result=content())
    assert play.told_child() == [given(3)]
    play.says(id=3, result=content())
    assert play.told_child() == [given(4)]


def test_a_parked_call_gives_its_turn_to_the_next() -> None:
    play = Play({})
    play.calls(1, ALL)
    play.says(id=0, method="roots/list")
    play.asked()
    play.told_child()
    play.calls(2, ALL)
    play.calls(3, ALL)
    assert play.told_child() == [given(2)]
    play.says(id=9, method="roots/list")
    (answer,) = play.told_gateway()
    assert answer["id"] == 2
    assert play.told_child() == [given(3)]


def test_calls_that_wait_for_their_turn_are_bounded() -> None:
    play = Play({})
    play.calls("a", ALL)
    play.says(id=0, method="roots/list")
    play.told_gateway()
    for name in range(MAX_CALLS + 2):
        play.calls(name, ALL)
    assert errors(play.told_gateway()) == [error(MAX_CALLS + 1, -32603)]


def test_what_waits_for_its_turn_is_bounded_in_bytes() -> None:
    play = Play({})
    play.calls("a", ALL)
    play.says(id=0, method="roots/list")
    play.told_gateway()
    play.calls("runs", ALL)
    play.asks("big", "tools/call", {"name": "x" * MAX_WAITING_BYTES}, can=ALL)
    play.calls("small", ALL)
    assert errors(play.told_gateway()) == [error("small", -32603)]


def test_a_call_whose_client_lacks_the_capability_ends_and_its_late_answer_is_dropped() -> None:
    play = Play({})
    play.calls(1, {"sampling": {}})
    play.told_child()
    play.says(id=0, method="elicitation/create", params=FORM)
    refused, cancelled = play.told_child()
    assert errors([refused]) == [error(0, -32603)]
    assert cancelled == message(method="notifications/cancelled", params={"requestId": 1})
    (answer,) = play.told_gateway()
    modern.MissingRequiredClientCapabilityError.model_validate(answer)
    assert answer["error"]["data"] == {"requiredCapabilities": {"elicitation": {"form": {}}}}
    play.says(id=1, result=content())
    assert play.told_gateway() == []


@pytest.mark.parametrize(
    ("can", "params"),
    [
        ({"elicitation": {}}, {"mode": "url", "message": "Go", "url": "https://x.example"}),
        ({"elicitation": {"url": {}}}, FORM),
        ({"elicitation": True}, FORM),
    ],
)
def test_a_mode_of_elicitation_is_a_capability_of_its_own(can: Any, params: Any) -> None:
    play = Play({})
    play.calls(1, can)
    play.says(id=0, method="elicitation/create", params=params)
    assert errors(play.told_gateway()) == [error(1, -32021)]


def test_sampling_with_tools_needs_a_client_that_has_them() -> None:
    play = Play({})
    play.calls(1, {"sampling": {}})
    play.says(id=0, method="sampling/createMessage", params={**SAMPLE, "tools": []})
    (answer,) = play.told_gateway()
    assert answer["error"]["data"] == {"requiredCapabilities": {"sampling": {"tools": {}}}}


def test_of_several_calls_that_lack_the_capability_none_is_ended() -> None:
    play = Play({})
    play.calls(1)
    play.calls(2)
    play.told_child()
    play.says(id=0, method="elicitation/create", params=FORM)
    assert errors(play.told_child()) == [error(0, -32603)]
    assert play.told_gateway() == []


def test_an_ask_without_any_call_is_refused() -> None:
    play = Play({})
    play.asks(1, "tools/list", can=ALL)
    play.told_child()
    play.says(id=0, method="sampling/createMessage", params=SAMPLE)
    assert errors(play.told_child()) == [error(0, -32603)]
    assert play.told_gateway() == []


def test_roots_that_no_caller_has_are_refused_and_end_no_call() -> None:
    """Servers ask for roots when they please: the reference file server does after initialized."""
    play = Play({})
    play.calls(1)
    play.told_child()
    play.says(id=0, method="roots/list")
    assert errors(play.told_child()) == [error(0, -32601)]
    play.says(id=1, result=content())
    assert play.told_gateway() == [done(1)]


def test_a_parked_call_that_asks_for_more_than_its_client_has_ends_on_the_next_leg() -> None:
    play = Play({})
    can: dict[str, Any] = {"elicitation": {}}
    play.calls(1, can)
    play.says(id=0, method="elicitation/create", params=FORM)
    state, asked = play.asked()
    play.says(id=5, method="sampling/createMessage", params=SAMPLE)
    assert play.told_gateway() == []
    play.retries(2, state, dict.fromkeys(asked, ACCEPT), can)
    assert errors(play.told_gateway()) == [error(2, -32021)]


def test_a_leg_is_never_asked_for_what_it_does_not_declare() -> None:
    play = Play({})
    play.calls(1, ALL)
    play.says(id=0, method="elicitation/create", params=FORM)
    state, _ = play.asked()
    play.told_child()
    play.retries(2, state, {}, {"roots": {}})
    assert errors(play.told_gateway()) == [error(2, -32021)]
    refused, cancelled = play.told_child()
    assert errors([refused]) == [error(0, -32603)]
    assert cancelled["params"] == {"requestId": 1}


def test_the_oldest_parked_call_gives_way() -> None:
    play = Play({})
    states = []
    for name in range(MAX_PARKED + 1):
        play.calls(name, ALL)
        play.told_child()
        play.says(id=f"ask {name}", method="roots/list")
        states.append(play.asked())
    refused, cancelled = play.told_child()
    assert errors([refused]) == [error("ask 0", -32603)]
    assert cancelled == message(method="notifications/cancelled", params={"requestId": 0})
    play.retries("old", states[0][0], dict.fromkeys(states[0][1], ROOTS))
    play.retries("new", states[1][0], dict.fromkeys(states[1][1], ROOTS))
    assert errors(play.told_gateway()) == [error("old", -32602)]
    assert play.told_child() == [message(id="ask 1", result=ROOTS)]


def test_open_asks_are_bounded() -> None:
    play = Play({})
    play.calls(1, ALL)
    play.told_child()
    for name in range(MAX_ASKS + 1):
        play.says(id=name, method="roots/list")
    assert errors(play.told_child()) == [error(MAX_ASKS, -32603)]


def test_parking_a_call_may_end_the_one_that_the_next_ask_is_for() -> None:
    play = Play({})
    play.calls("both", {"elicitation": {}, "roots": {}})
    play.calls("forms", {"elicitation": {}})
    play.calls("roots", {"roots": {}, "sampling": {}})
    for name in range(MAX_PARKED - 1):
        play.calls(name, {"elicitation": {"url": {}}})
    play.says(id="held 1", method="elicitation/create", params=FORM)
    play.says(id="held 2", method="roots/list")
    play.says(id="parks", method="sampling/createMessage", params=SAMPLE)
    for name in range(MAX_PARKED - 1):
        play.says(id=name, error=URLS)
    play.told_child()
    play.told_gateway()
    play.says(id="both", result=content())
    first, second = play.told_gateway()
    assert (first["id"], second["id"]) == ("both", "forms")
    parks, cancelled, held = play.told_child()
    assert errors([parks, held]) == [error("parks", -32603), error("held 2", -32603)]
    assert cancelled == message(method="notifications/cancelled", params={"requestId": "roots"})


# URLs first


def test_a_call_that_needs_a_url_first_is_asked_and_then_sent_again() -> None:
    play = Play({})
    play.calls(1, ALL)
    play.says(id=1, error=URLS)
    state, asked = play.asked()
    params = {"mode": "url", "url": "https://x.example", "message": "Go"}
    assert list(asked.values()) == [{"method": "elicitation/create", "params": params}]
    play.told_child()
    play.retries(2, state, dict.fromkeys(asked, ACCEPT), progressToken=8)
    assert play.told_child() == [given(2, _meta={"progressToken": 8})]
    play.says(id=2, result=content())
    assert play.told_gateway() == [done(2)]


def test_a_url_that_was_not_visited_is_asked_again() -> None:
    play = Play({})
    play.calls(1, ALL)
    play.says(id=1, error=URLS)
    state, asked = play.asked()
    play.told_child()
    play.retries(2, state, {})
    _, again = play.asked()
    assert again == asked
    assert play.told_child() == []


def test_a_call_that_cannot_be_sent_again_for_now_leaves_nothing_behind() -> None:
    play = Play({})
    play.calls("a", ALL)
    play.says(id="a", error=URLS)
    state, asked = play.asked()
    for name in range(MAX_CALLS):
        play.calls(name, ALL)
    play.retries("b", state, dict.fromkeys(asked, ACCEPT))
    assert errors(play.told_gateway()) == [error("b", -32603)]
    play.says(id=0, result=content())
    play.told_child()
    play.calls("b", ALL)
    assert play.told_child() == [given("b")]


def test_a_url_that_is_needed_while_parked_is_asked_on_the_next_leg() -> None:
    play = Play({})
    play.calls(1, ALL)
    play.says(id=0, method="roots/list")
    state, asked = play.asked()
    play.says(id=1, error=URLS)
    assert play.told_gateway() == []
    play.told_child()
    play.retries(2, state, dict.fromkeys(asked, ROOTS))
    state, asked = play.asked()
    assert [ask["method"] for ask in asked.values()] == ["elicitation/create"]
    play.retries(3, state, dict.fromkeys(asked, ACCEPT))
    assert play.told_child() == [given(3)]


def test_a_client_without_urls_is_told_that_it_lacks_them() -> None:
    play = Play({})
    play.calls(1, {"elicitation": {}})
    play.says(id=1, error=URLS)
    (answer,) = play.told_gateway()
    assert answer["error"]["data"] == {"requiredCapabilities": {"elicitation": {"url": {}}}}


# Progress, logs, cancellation


def test_progress_goes_to_the_leg_that_is_open_under_its_token() -> None:
    play = Play({})
    play.calls(1, ALL, progressToken=0)
    step = {"progressToken": 0, "progress": 1, "message": "m"}
    play.says(method="notifications/progress", params=step)
    assert play.told_gateway() == [message(method="notifications/progress", params=step)]
    play.says(id=0, method="roots/list")
    state, asked = play.asked()
    play.says(method="notifications/progress", params=step)
    assert play.told_gateway() == []
    play.retries(2, state, dict.fromkeys(asked, ROOTS), progressToken="b")
    play.says(method="notifications/progress", params=step)
    moved = message(method="notifications/progress", params={**step, "progressToken": "b"})
    assert play.told_gateway() == [moved]


def test_progress_that_the_new_leg_does_not_want_is_dropped() -> None:
    play = Play({})
    play.calls(1, ALL, progressToken="a")
    play.says(id=0, method="roots/list")
    state, asked = play.asked()
    play.retries(2, state, dict.fromkeys(asked, ROOTS))
    play.says(method="notifications/progress", params={"progressToken": "a", "progress": 1})
    assert play.told_gateway() == []


@pytest.mark.parametrize("token", ["a", "b", None, [], 0])
def test_progress_of_no_call_is_dropped(token: Any) -> None:
    play = Play({})
    play.calls(1, progressToken="a")
    play.says(id=1, result=content())
    play.told_gateway()
    play.says(method="notifications/progress", params={"progressToken": token, "progress": 1})
    assert play.told_gateway() == []


def test_a_log_message_goes_on_byte_for_byte() -> None:
    line = b'{"method":"notifications/message", "params":{"level":"info","data":"\xc3\xa9"}}'
    assert ModernFace().from_child(line) == Moves(to_gateway=[line])


@pytest.mark.parametrize(
    "method", ["notifications/elicitation/complete", "notifications/tasks/status"]
)
def test_a_notification_that_modern_clients_do_not_know_is_dropped(method: str) -> None:
    play = Play({})
    play.says(method=method, params={})
    assert play.told_gateway() == []


def test_the_child_is_made_as_verbose_as_the_most_curious_request() -> None:
    play = Play(EVERYTHING)
    levels: list[Any] = ["error", "info", "warning", "info", "loud", 5, []]
    for name, level in enumerate(levels):
        play.asks(name, "tools/list", can={}, **{f"{P}logLevel": level})
    told = [each for each in play.told_child() if each["method"] == "logging/setLevel"]
    assert [each["params"] for each in told] == [{"level": "error"}, {"level": "info"}]
    assert all(each["id"].startswith("face/") for each in told)
    TO_CHILD.validate_python(told[0])


def test_a_child_without_logs_is_not_asked_for_any() -> None:
    play = Play({})
    level: dict[str, Any] = {f"{P}logLevel": "debug"}
    play.asks(1, "tools/list", **level)
    assert [each["method"] for each in play.told_child()] == ["tools/list"]


def test_a_cancelled_call_is_cancelled_for_the_child_and_never_answered() -> None:
    play = Play({})
    play.calls(1)
    play.told_child()
    play.notes("notifications/cancelled", requestId=1, reason="left", _meta={f"{P}x": 1})
    cancelled = {"requestId": 1, "reason": "left"}
    assert play.told_child() == [message(method="notifications/cancelled", params=cancelled)]
    play.says(id=1, result=content())
    assert play.told_gateway() == []


def test_cancelling_a_later_leg_cancels_the_childs_call() -> None:
    play = Play({})
    play.calls(1, ALL)
    play.says(id=0, method="roots/list")
    state, asked = play.asked()
    play.retries(2, state, dict.fromkeys(asked, ROOTS))
    play.told_child()
    play.notes("notifications/cancelled", requestId=2)
    assert play.told_child() == [message(method="notifications/cancelled", params={"requestId": 1})]
    play.says(id=1, result=content())
    assert play.told_gateway() == []


def test_cancelling_the_leg_before_does_nothing() -> None:
    play = Play({})
    play.calls(1, ALL)
    play.says(id=0, method="roots/list")
    state, asked = play.asked()
    play.retries(2, state, dict.fromkeys(asked, ROOTS))
    play.told_child()
    play.notes("notifications/cancelled", requestId=1)
    assert play.told_child() == []


def test_a_cancelled_call_that_waited_never_reaches_the_child() -> None:
    play = Play({})
    play.calls("a", ALL)
    play.says(id=0, method="roots/list")
    play.asked()
    play.calls(1, ALL)
    play.calls(2, ALL)
    play.told_child()
    play.notes("notifications/cancelled", requestId=2)
    play.says(id=1, result=content())
    assert play.told_child() == []


def test_cancelling_the_running_call_begins_the_next() -> None:
    play = Play({})
    play.calls("a", ALL)
    play.says(id=0, method="roots/list")
    play.asked()
    play.calls(1, ALL)
    play.calls(2, ALL)
    play.told_child()
    play.notes("notifications/cancelled", requestId=1)
    assert play.told_child()[-1] == given(2)


@pytest.mark.parametrize("name", [9, None, [], True])
def test_cancelling_what_is_not_there_does_nothing(name: Any) -> None:
    play = Play({})
    play.calls(1)
    play.told_child()
    play.notes("notifications/cancelled", requestId=name)
    assert play.told_child() == []


@pytest.mark.parametrize(
    "method", ["notifications/initialized", "notifications/roots/list_changed"]
)
def test_a_removed_notification_does_not_reach_the_child(method: str) -> None:
    play = Play({})
    play.notes(method)
    assert play.told_child() == []


def test_an_extensions_notification_reaches_the_child() -> None:
    play = Play({})
    play.notes("custom/note", a=1, _meta={f"{P}protocolVersion": "2026-07-28"})
    assert play.told_child() == [message(method="custom/note", params={"a": 1})]


# Listening

WISH = {
    "toolsListChanged": True,
    "promptsListChanged": True,
    "resourcesListChanged": True,
    "resourceSubscriptions": ["a:1", "a:1", "a:2", 5],
}


def acknowledged(name: Any, accepted: dict[str, Any]) -> dict[str, Any]:
    params = {"notifications": accepted, "_meta": {f"{P}subscriptionId": name}}
    return message(method="notifications/subscriptions/acknowledged", params=params)


def test_a_listen_is_acknowledged_first_and_its_resources_subscribed() -> None:
    play = Play(EVERYTHING)
    play.asks("L", "subscriptions/listen", {"notifications": WISH})
    accepted = {**WISH, "resourceSubscriptions": ["a:1", "a:2"]}
    assert play.told_gateway() == [acknowledged("L", accepted)]
    told = play.told_child()
    assert [(each["method"], each["params"]) for each in told] == [
        ("resources/subscribe", {"uri": "a:1"}),
        ("resources/subscribe", {"uri": "a:2"}),
    ]
    TO_CHILD.validate_python(told[0])
    play.says(id=told[0]["id"], result={})
    play.says(id=told[1]["id"], error={"code": 1, "message": "no"})
    assert play.told_gateway() == []


@pytest.mark.parametrize(
    ("capabilities", "accepted"),
    [
        ({}, {}),
        ({"tools": {}, "prompts": {"listChanged": False}, "resources": "x"}, {}),
        ({"prompts": {"listChanged": True}}, {"promptsListChanged": True}),
        ({"resources": {"subscribe": True}}, {"resourceSubscriptions": ["a:1", "a:2"]}),
    ],
)
def test_a_listen_gets_only_what_the_child_can_tell(
    capabilities: dict[str, Any], accepted: dict[str, Any]
) -> None:
    play = Play(capabilities)
    play.asks("L", "subscriptions/listen", {"notifications": WISH})
    assert play.told_gateway() == [acknowledged("L", accepted)]


def test_a_change_is_told_once_to_each_who_listens_for_it() -> None:
    play = Play(EVERYTHING)
    play.asks(1, "subscriptions/listen", {"notifications": {"toolsListChanged": True}})
    play.asks("1", "subscriptions/listen", {"notifications": {"toolsListChanged": True}})
    play.asks(3, "subscriptions/listen", {"notifications": {"promptsListChanged": True}})
    play.told_gateway()
    method = "notifications/tools/list_changed"
    play.says(method=method, params={"_meta": {"own": 1}})
    assert play.told_gateway() == [
        message(method=method, params={"_meta": {"own": 1, f"{P}subscriptionId": 1}}),
        message(method=method, params={"_meta": {"own": 1, f"{P}subscriptionId": "1"}}),
    ]


@pytest.mark.parametrize(
    ("changed", "heard"),
    [("a:1", True), ("a:1/sub", True), ("a:12", False), ("a:", False), (5, False)],
)
def test_an_update_is_told_to_those_who_subscribed_to_it_or_what_holds_it(
    changed: Any, heard: bool
) -> None:
    play = Play(EVERYTHING)
    play.asks("L", "subscriptions/listen", {"notifications": {"resourceSubscriptions": ["a:1"]}})
    play.asks("M", "subscriptions/listen", {"notifications": {"resourcesListChanged": True}})
    play.told_gateway()
    method = "notifications/resources/updated"
    play.says(method=method, params={"uri": changed})
    params = {"uri": changed, "_meta": {f"{P}subscriptionId": "L"}}
    assert play.told_gateway() == ([message(method=method, params=params)] if heard else [])


def test_a_resource_is_subscribed_while_anyone_listens_for_it() -> None:
    play = Play(EVERYTHING)
    wish = {"notifications": {"resourceSubscriptions": ["a:1"]}}
    play.asks("L", "subscriptions/listen", wish)
    play.asks("M", "subscriptions/listen", wish)
    play.notes("notifications/cancelled", requestId="L")
    assert [each["method"] for each in play.told_child()] == ["resources/subscribe"]
    play.notes("notifications/cancelled", requestId="M")
    (told,) = play.told_child()
    assert (told["method"], told["params"]) == ("resources/unsubscribe", {"uri": "a:1"})
    TO_CHILD.validate_python(told)
    play.asks("N", "subscriptions/listen", wish)
    assert [each["method"] for each in play.told_child()] == ["resources/subscribe"]


def test_a_closed_listen_hears_nothing_more() -> None:
    play = Play(EVERYTHING)
    play.asks("L", "subscriptions/listen", {"notifications": WISH})
    play.notes("notifications/cancelled", requestId="L")
    play.told_gateway()
    play.says(method="notifications/tools/list_changed")
    assert play.told_gateway() == []


@pytest.mark.parametrize("wish", [None, [], "all"])
def test_a_listen_for_nothing_that_can_be_read_is_refused(wish: Any) -> None:
    play = Play(EVERYTHING)
    play.asks("L", "subscriptions/listen", {"notifications": wish})
    assert errors(play.told_gateway()) == [error("L", -32602)]


def test_listens_are_bounded() -> None:
    play = Play(EVERYTHING)
    for name in range(MAX_LISTENERS + 1):
        play.asks(name, "subscriptions/listen", {"notifications": {}})
    told = play.told_gateway()
    assert errors(told[-1:]) == [error(MAX_LISTENERS, -32603)]
    assert len(told) == MAX_LISTENERS + 1


def test_subscriptions_are_bounded_and_the_listener_is_told_which_it_got() -> None:
    play = Play(EVERYTHING)
    uris = [f"a:{n}" for n in range(MAX_URIS)]
    wish = {"notifications": {"resourceSubscriptions": uris[1:]}}
    play.asks("L", "subscriptions/listen", wish)
    play.told_gateway()
    play.asks("M", "subscriptions/listen", {"notifications": {"resourceSubscriptions": uris[:2]}})
    assert play.told_gateway() == [acknowledged("M", {"resourceSubscriptions": ["a:0"]})]


# Everything at once


class Interleavings(RuleBasedStateMachine):
    """A gateway and a child that do what they like, in any order.

    The child's answers carry the id of the call they are for, and its asks the same, where it says
    so: no leg may get another call's answer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.play = Play(EVERYTHING)
        self.names = iter(range(10_000))
        self.roots: dict[Any, Any] = {}  # leg: the first leg of its call
        self.open: set[Any] = set()
        self.states: dict[str, tuple[Any, list[str]]] = {}  # state: first leg, keys
        self.answers: Counter[Any] = Counter()
        self.at_child: set[Any] = set()
        self.open_asks: set[Any] = set()

    def look(self) -> None:
        for told in self.play.told_child():
            if told.get("method") == "tools/call":
                assert told["id"] in self.open
                self.at_child.add(told["id"])
            elif told.get("method") == "notifications/cancelled":
                self.at_child.discard(told["params"]["requestId"])
            elif "method" not in told:
                assert told["id"] in self.open_asks, "an ask is answered once"
                self.open_asks.discard(told["id"])
        for told in self.play.told_gateway():
            name = told["id"]
            self.answers[name] += 1
            assert name in self.open, "only what is open is answered"
            self.open.discard(name)
            result = told.get("result", {})
            if result.get("resultType") == "input_required":
                keys = list(result["inputRequests"])
                self.states[result["requestState"]] = (self.roots[name], keys)
            elif result:
                assert result["content"][0]["text"] == str(self.roots[name])

    @rule(can=st.sampled_from([{}, ALL, {"roots": {}}, {"elicitation": {}}]))
    def call(self, can: dict[str, Any]) -> None:
        name = next(self.names)
        self.roots[name] = name
        self.open.add(name)
        self.play.calls(name, can, progressToken=name)
        self.look()

    @precondition(lambda self: self.states)
    @rule(data=st.data(), whole=st.booleans(), can=st.sampled_from([ALL, {"roots": {}}]))
    def retry(self, data: st.DataObject, whole: bool, can: dict[str, Any]) -> None:
        state = data.draw(st.sampled_from(sorted(self.states)))
        root, keys = self.states.pop(state)
        name = next(self.names)
        self.roots[name] = root
        self.open.add(name)
        both = {**ACCEPT, **SAMPLED, **ROOTS}
        self.play.retries(name, state, dict.fromkeys(keys if whole else keys[1:], both), can)
        self.look()

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.open)))
        self.open.discard(name)
        self.answers[name] += 1  # it must not get one any more
        self.play.notes("notifications/cancelled", requestId=name)
        self.look()

    @rule(method=st.sampled_from(["roots/list", "elicitation/create", "sampling/createMessage"]))
    def ask(self, method: str) -> None:
        name = next(self.names)
        self.open_asks.add(name)
        self.play.says(id=name, method=method, params={**FORM, **SAMPLE})
        self.look()

    @precondition(lambda self: self.open_asks)
    @rule(data=st.data())
    def take_back(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.open_asks)))
        self.open_asks.discard(name)
        self.play.says(method="notifications/cancelled", params={"requestId": name})
        self.look()

    @precondition(lambda self: self.at_child)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.at_child)))
        self.at_child.discard(name)
        self.play.says(id=name, result=content(str(name)))
        self.look()

    @rule(name=st.integers(0, 200))
    def answer_late(self, name: int) -> None:
        if name not in self.at_child:
            self.play.says(id=name, result=content("wrong"))
            self.look()

    @invariant()
    def no_leg_has_two_answers(self) -> None:
        assert all(times == 1 for times in self.answers.values())

    def teardown(self) -> None:
        """Once the child has answered all and every state has come back, every leg is answered."""
        while self.at_child or self.states:
            while self.at_child:
                name = min(self.at_child)
                self.at_child.discard(name)
                self.play.says(id=name, result=content(str(name)))
                self.look()
            for state, (root, _) in sorted(self.states.items()):
                del self.states[state]
                name = next(self.names)
                self.roots[name] = root
                self.open.add(name)
                self.play.retries(name, state, {})
                self.look()
        assert not self.open
        assert not self.open_asks, "the child is owed no answer"
        assert set(self.answers) == set(self.roots)
        calls = self.play.face._calls
        left = (
            calls._calls,
            calls._legs,
            calls._tokens,
            calls._parked,
            calls._waiting,
            calls._held,
        )
        assert not any(left), "what is over costs nothing"


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(
    deadline=None, derandomize=True, max_examples=80, stateful_step_count=40
)
