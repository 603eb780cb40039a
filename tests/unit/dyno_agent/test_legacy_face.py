"""A modern child in front of a legacy client: whole conversations, both sides validated."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import mcp_types._v2026_07_28 as v2026
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcp_types import methods

from dyno_agent.faces.legacy import (
    MAX_ASKS,
    MAX_CALLS,
    MAX_RELISTENS,
    MAX_ROUNDS,
    MAX_URI_CHARACTERS,
    MAX_URIS,
    LegacyFace,
)
from dyno_agent.faces.rewriting import MAX_DEPTH

Document = dict[str, Any]

OLD, NEW = "2025-11-25", "2026-07-28"
CAPABILITIES: Document = {"elicitation": {}, "sampling": {}, "roots": {"listChanged": True}}
CLIENT = {"name": "old client", "version": "1"}
SERVER = {"name": "new server", "version": "2"}
META: Document = {
    "io.modelcontextprotocol/protocolVersion": NEW,
    "io.modelcontextprotocol/clientCapabilities": CAPABILITIES,
    "io.modelcontextprotocol/clientInfo": CLIENT,
}
LEVEL = "io.modelcontextprotocol/logLevel"
SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"
SERVER_INFO = "io.modelcontextprotocol/serverInfo"
COMPLETE: Document = {"resultType": "complete", "_meta": {SERVER_INFO: SERVER}}
CACHEABLE: Document = {**COMPLETE, "ttlMs": 5, "cacheScope": "public"}
DISCOVERED: Document = {
    **CACHEABLE,
    "supportedVersions": [NEW],
    "capabilities": {"tools": {"listChanged": True}, "resources": {"subscribe": True}},
    "instructions": "Ask me.",
}
TEXT = [{"type": "text", "text": "done"}]
FORM: Document = {
    "mode": "form",
    "message": "Who?",
    "requestedSchema": {"type": "object", "properties": {"name": {"type": "string"}}},
}
SAMPLE: Document = {
    "messages": [{"role": "user", "content": {"type": "text", "text": "Hi"}}],
    "maxTokens": 10,
}
SAMPLED = {"role": "assistant", "content": {"type": "text", "text": "Hello"}, "model": "m"}
ACCEPTED = {"action": "accept", "content": {"name": "Ada"}}
ELICIT = {"method": "elicitation/create", "params": FORM}
CREATE = {"method": "sampling/createMessage", "params": SAMPLE}
ROOTS: Document = {"method": "roots/list"}
UNTOUCHED: dict[str, list[Document]] = {"child": [], "gateway": []}


def error(code: int, message: str = "no", **data: Any) -> Document:
    return {"code": code, "message": message, **({"data": data} if data else {})}


@dataclass
class Stage:
    """A face between two sides that we play; what it says to either is validated."""

    face: LegacyFace = field(default_factory=LegacyFace)
    methods: dict[Any, str] = field(default_factory=dict)
    drawn: set[Any] = field(default_factory=set)

    def client(self, **message: Any) -> dict[str, list[Document]]:
        if "method" in message and "id" in message:
            self.methods[message["id"]] = message["method"]
        return self.line(json.dumps({"jsonrpc": "2.0", **message}).encode(), child=False)

    def child(self, **message: Any) -> dict[str, list[Document]]:
        return self.line(json.dumps({"jsonrpc": "2.0", **message}).encode(), child=True)

    def line(self, line: bytes, *, child: bool) -> dict[str, list[Document]]:
        moves = self.face.from_child(line) if child else self.face.from_gateway(line)
        said = {
            "child": [json.loads(each) for each in moves.to_child],
            "gateway": [json.loads(each) for each in moves.to_gateway],
        }
        for message in said["child"]:
            self.to_child(message)
        for message in said["gateway"]:
            self.to_gateway(message)
        for message in (*said["child"], *said["gateway"]):
            assert message.pop("jsonrpc") == "2.0"
        return said

    def to_child(self, message: Document) -> None:
        if "method" not in message:
            v2026.JSONRPCErrorResponse.model_validate(message)
        elif "id" in message:
            assert message["id"] not in self.drawn
            self.drawn.add(message["id"])
            methods.validate_client_request(message["method"], NEW, message["params"])
        else:
            methods.validate_client_notification(message["method"], NEW, message.get("params"))

    def to_gateway(self, message: Document) -> None:
        if "error" in message:
            v2026.JSONRPCErrorResponse.model_validate(message)
        elif "result" in message:
            methods.validate_server_result(self.methods[message["id"]], OLD, message["result"])
        elif "id" in message:
            assert message["id"] not in self.drawn
            self.drawn.add(message["id"])
            methods.parse_server_request(message["method"], OLD, message.get("params"))
        else:
            methods.parse_server_notification(message["method"], OLD, message.get("params"))

    def initialize(self, **changes: Any) -> dict[str, list[Document]]:
        """Ask for a session; the child gets face/1."""
        params = {"protocolVersion": OLD, "capabilities": CAPABILITIES, "clientInfo": CLIENT}
        return self.client(id=0, method="initialize", params={**params, **changes})

    def call(self, key: str | int = "c", **params: Any) -> dict[str, list[Document]]:
        return self.client(id=key, method="tools/call", params={"name": "tool", **params})

    def asks(self, leg: str, state: str | None = None, **wanted: Any) -> dict[str, list[Document]]:
        """The child wants something before it goes on."""
        asked: Document = {"requestState": state} if state is not None else {}
        asked |= {"inputRequests": wanted} if wanted else {}
        return self.child(id=leg, result={"resultType": "input_required", **asked})


def opened(capabilities: Document = CAPABILITIES, **declared: Any) -> Stage:
    """A session with a server that declares this; the next id that the face draws is face/2."""
    stage = Stage()
    stage.initialize(capabilities=capabilities)
    found = {**DISCOVERED, "capabilities": declared} if declared else DISCOVERED
    said = stage.child(id="face/1", result=found)
    assert "result" in said["gateway"][0]
    return stage


def called(capabilities: Document = CAPABILITIES) -> Stage:
    """A session with call "c" under way as face/2."""
    stage = opened(capabilities)
    stage.call()
    return stage


def says(*gateway: Document) -> dict[str, list[Document]]:
    return {"child": [], "gateway": [*gateway]}


def sends(*child: Document) -> dict[str, list[Document]]:
    return {"child": [*child], "gateway": []}


def code(said: dict[str, list[Document]]) -> int:
    """The code of the one error that the client gets."""
    assert said["child"] == []
    (message,) = said["gateway"]
    assert message.keys() == {"id", "error"}
    return int(message["error"]["code"])


# Opening.


def test_initialize_becomes_a_discovery() -> None:
    discovery = {"id": "face/1", "method": "server/discover", "params": {"_meta": META}}
    assert Stage().initialize() == sends(discovery)


def test_discovery_becomes_the_answer_to_initialize() -> None:
    stage = Stage()
    stage.initialize()
    answer = {
        "protocolVersion": OLD,
        "capabilities": DISCOVERED["capabilities"],
        "serverInfo": SERVER,
        "instructions": "Ask me.",
    }
    assert stage.child(id="face/1", result=DISCOVERED) == says({"id": 0, "result": answer})


def test_everything_waits_for_the_discovery() -> None:
    stage = Stage()
    held = [stage.face.holding]
    stage.initialize()
    held.append(stage.face.holding)
    stage.child(method="notifications/message", params={"level": "info", "data": "booting"})
    held.append(stage.face.holding)
    stage.child(id="face/1", result=DISCOVERED)
    assert [*held, stage.face.holding] == [False, True, True, False]


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ("2024-11-05", "2024-11-05"),
        ("2025-03-26", "2025-03-26"),
        ("2025-06-18", "2025-06-18"),
        (OLD, OLD),
        (NEW, OLD),
        ("0.1.0", OLD),
        ({}, OLD),
    ],
)
def test_client_gets_its_own_legacy_revision_or_the_newest(asked: Any, answered: str) -> None:
    stage = Stage()
    stage.initialize(protocolVersion=asked)
    said = stage.child(id="face/1", result=DISCOVERED)
    assert said["gateway"][0]["result"]["protocolVersion"] == answered


def test_server_without_a_name_is_unknown() -> None:
    stage = Stage()
    stage.initialize()
    said = stage.child(id="face/1", result={"supportedVersions": [NEW], "capabilities": {}})
    assert said["gateway"][0]["result"] == {
        "protocolVersion": OLD,
        "capabilities": {},
        "serverInfo": {"name": "unknown", "version": "unknown"},
    }


def test_client_without_a_version_is_not_introduced() -> None:
    said = Stage().initialize(clientInfo={"name": "no version"})
    meta = said["child"][0]["params"]["_meta"]
    assert meta == {key: META[key] for key in META if not key.endswith("clientInfo")}


def test_refused_discovery_refuses_initialize() -> None:
    stage = Stage()
    stage.initialize()
    refusal = error(-32602, "bad", why="because")
    assert stage.child(id="face/1", error=refusal) == says({"id": 0, "error": refusal})
    assert not stage.face.holding


def test_server_of_no_known_revision_is_refused_with_what_it_speaks() -> None:
    stage = Stage()
    stage.initialize()
    said = stage.child(id="face/1", result={**DISCOVERED, "supportedVersions": ["2027-01-01"]})
    assert code(said) == -32022
    data = {"supported": ["2027-01-01"], "requested": OLD}
    assert said["gateway"][0]["error"]["data"] == data
    assert not stage.face.holding


@pytest.mark.parametrize(
    "answer",
    [b'{"id":"face/1","result":{"a":1e400}}', b'{"id":"face/1"}', b'{"id":"face/1","result":[]}'],
)
def test_discovery_that_cannot_be_read_refuses_initialize(answer: bytes) -> None:
    stage = Stage()
    stage.initialize()
    (said,) = stage.face.from_child(answer).to_gateway
    assert json.loads(said)["error"]["code"] == -32603
    assert not stage.face.holding


def test_refused_client_may_try_again() -> None:
    stage = Stage()
    stage.initialize()
    stage.child(id="face/1", error=error(-32603))
    assert stage.initialize()["child"][0]["id"] == "face/2"


def test_second_initialize_is_refused() -> None:
    stage = opened()
    assert code(stage.initialize()) == -32600
    assert not stage.face.holding


def test_requests_before_initialize_are_refused() -> None:
    assert code(Stage().call()) == -32600


def test_initialize_cannot_be_cancelled() -> None:
    stage = Stage()
    stage.initialize()
    assert stage.client(method="notifications/cancelled", params={"requestId": 0}) == UNTOUCHED
    assert stage.face.holding


def test_core_tasks_of_the_child_are_not_declared() -> None:
    stage = Stage()
    stage.initialize()
    said = stage.child(id="face/1", result={**DISCOVERED, "capabilities": {"tasks": {}}})
    assert said["gateway"][0]["result"]["capabilities"] == {}


# Requests and results.


def test_request_is_stamped_and_keeps_its_own_meta() -> None:
    stage = opened()
    meta = {"progressToken": 7, "traceparent": "00-1"}
    assert stage.call("c", arguments={"a": 1.5}, _meta=meta) == sends(
        {
            "id": "face/2",
            "method": "tools/call",
            "params": {"name": "tool", "arguments": {"a": 1.5}, "_meta": {**meta, **META}},
        }
    )


def test_request_without_params_is_stamped() -> None:
    said = opened().client(id=1, method="tools/list")
    assert said == sends({"id": "face/2", "method": "tools/list", "params": {"_meta": META}})


def test_results_lose_what_is_modern() -> None:
    stage = opened()
    stage.client(id=1, method="resources/list")
    modern = {**CACHEABLE, "resources": [], "nextCursor": "n"}
    older = {"id": 1, "result": {"resources": [], "nextCursor": "n"}}
    assert stage.child(id="face/2", result=modern) == says(older)


def test_other_meta_of_a_result_stays() -> None:
    stage = called()
    meta = {SERVER_INFO: SERVER, "example.org/a": 1}
    said = stage.child(id="face/2", result={**COMPLETE, "content": TEXT, "_meta": meta})
    assert said == says({"id": "c", "result": {"content": TEXT, "_meta": {"example.org/a": 1}}})


def test_structured_content_that_is_no_object_is_left_out() -> None:
    stage = called()
    said = stage.child(id="face/2", result={**COMPLETE, "content": TEXT, "structuredContent": [1]})
    assert said == says({"id": "c", "result": {"content": TEXT}})


def test_structured_content_that_is_an_object_stays() -> None:
    stage = called()
    result = {"content": TEXT, "structuredContent": {"a": 1}}
    said = stage.child(id="face/2", result={**COMPLETE, **result})
    assert said == says({"id": "c", "result": result})


def test_output_schemas_of_other_than_objects_are_left_out() -> None:
    stage = opened()
    stage.client(id=1, method="tools/list")
    schema = {"type": "object", "properties": {}}
    plain = {"name": "plain", "inputSchema": schema}
    formed = {"name": "formed", "inputSchema": schema, "outputSchema": schema}
    listing = {"name": "plain", "inputSchema": schema, "outputSchema": {"type": "array"}}
    said = stage.child(id="face/2", result={**CACHEABLE, "tools": [plain, formed, listing]})
    assert said == says({"id": 1, "result": {"tools": [plain, formed, plain]}})


def test_error_passes_with_the_id_of_the_client() -> None:
    failure = error(-32602, "no such tool", name="tool")
    said = called().child(id="face/2", error=failure)
    assert said == says({"id": "c", "error": failure})


def test_ids_that_differ_in_type_only_are_two_calls() -> None:
    stage = opened()
    stage.call(1)
    stage.call("1")
    assert stage.child(id="face/3", result={"content": TEXT})["gateway"][0]["id"] == "1"
    assert stage.child(id="face/2", result={"content": TEXT})["gateway"][0]["id"] == 1


def test_answer_comes_once() -> None:
    stage = called()
    stage.child(id="face/2", result={"content": TEXT})
    assert stage.child(id="face/2", result={"content": TEXT}) == UNTOUCHED


def test_answer_to_nothing_is_dropped() -> None:
    stage = called()
    for key in ("c", "face/9", 2, None, 1.5, True, ["face/2"], {"a": 1}):
        assert stage.child(id=key, result={"content": TEXT}) == UNTOUCHED


def test_result_of_an_unknown_kind_is_an_error() -> None:
    assert code(called().child(id="face/2", result={"resultType": "task", "task": {}})) == -32603


def test_request_with_the_id_of_one_under_way_is_dropped() -> None:
    stage = called()
    assert stage.call() == UNTOUCHED
    assert stage.line(b'{"id":"c","method":"tools/list","params":1e400}', child=False) == UNTOUCHED


@pytest.mark.parametrize("method", ["tasks/list", "tasks/get", "server/discover"])
def test_methods_of_one_era_only_are_unknown(method: str) -> None:
    assert code(opened().client(id=1, method=method, params={})) == -32601


def test_listening_is_not_for_legacy_clients() -> None:
    said = opened().client(id=1, method="subscriptions/listen", params={"notifications": {}})
    assert code(said) == -32601


@pytest.mark.parametrize("params", [[], "a", 1, {"_meta": []}, {"_meta": None}])
def test_params_that_are_no_object_are_refused(params: Any) -> None:
    assert code(opened().client(id=1, method="tools/list", params=params)) == -32602


def test_calls_are_limited() -> None:
    stage = opened()
    for key in range(MAX_CALLS):
        assert len(stage.call(key)["child"]) == 1
    assert code(stage.call("one more")) == -32603
    stage.child(id="face/2", result={"content": TEXT})
    assert len(stage.call("one more")["child"]) == 1


# What the face answers itself.


@pytest.mark.parametrize("stage", [Stage(), opened()], ids=["before", "after"])
def test_ping_is_answered_at_once(stage: Stage) -> None:
    assert stage.client(id="p", method="ping") == says({"id": "p", "result": {}})


def test_log_level_goes_with_every_later_request() -> None:
    stage = opened()
    said = stage.client(id=1, method="logging/setLevel", params={"level": "warning"})
    assert said == says({"id": 1, "result": {}})
    assert stage.call()["child"][0]["params"]["_meta"] == {**META, LEVEL: "warning"}


@pytest.mark.parametrize("params", [{}, {"level": "loud"}, {"level": 3}, {"level": ["info"]}])
def test_unknown_log_level_is_refused(params: Document) -> None:
    stage = opened()
    assert code(stage.client(id=1, method="logging/setLevel", params=params)) == -32602
    assert stage.call()["child"][0]["params"]["_meta"] == META


# Asking the client.


def test_elicitation_goes_round() -> None:
    stage = opened()
    stage.call("c", arguments={"a": 1}, _meta={"progressToken": 7})
    asked = stage.asks("face/2", "sealed", who=ELICIT)
    assert asked == says({"id": "face/3", "method": "elicitation/create", "params": FORM})
    params = {
        "name": "tool",
        "arguments": {"a": 1},
        "_meta": {"progressToken": 7, **META},
        "inputResponses": {"who": ACCEPTED},
        "requestState": "sealed",
    }
    retry = {"id": "face/4", "method": "tools/call", "params": params}
    assert stage.client(id="face/3", result=ACCEPTED) == sends(retry)
    said = stage.child(id="face/4", result={**COMPLETE, "content": TEXT})
    assert said == says({"id": "c", "result": {"content": TEXT}})


def test_retry_waits_for_all_answers() -> None:
    stage = called()
    said = stage.asks("face/2", who=ELICIT, what=CREATE, where=ROOTS)
    assert said == says(
        {"id": "face/3", "method": "elicitation/create", "params": FORM},
        {"id": "face/4", "method": "sampling/createMessage", "params": SAMPLE},
        {"id": "face/5", "method": "roots/list"},
    )
    listed = {"roots": [{"uri": "file:///a"}]}
    assert stage.client(id="face/5", result=listed) == UNTOUCHED
    assert stage.client(id="face/3", result=ACCEPTED) == UNTOUCHED
    (retry,) = stage.client(id="face/4", result=SAMPLED)["child"]
    answers = {"who": ACCEPTED, "what": SAMPLED, "where": listed}
    assert retry["params"] == {"name": "tool", "_meta": META, "inputResponses": answers}


@pytest.mark.parametrize(
    ("method", "params"), [("prompts/get", {"name": "p"}), ("resources/read", {"uri": "a:b"})]
)
def test_other_methods_may_ask_too(method: str, params: Document) -> None:
    stage = opened()
    stage.client(id=1, method=method, params=params)
    stage.asks("face/2", who=ELICIT)
    (retry,) = stage.client(id="face/3", result=ACCEPTED)["child"]
    assert (retry["method"], retry["params"]["inputResponses"]) == (method, {"who": ACCEPTED})


def test_state_alone_is_brought_back_at_once() -> None:
    params = {"name": "tool", "_meta": META, "requestState": "s"}
    retry = {"id": "face/3", "method": "tools/call", "params": params}
    assert called().asks("face/2", "s") == sends(retry)


def test_later_round_brings_its_own_state_and_answers_only() -> None:
    stage = called()
    stage.asks("face/2", "first", who=ELICIT)
    stage.client(id="face/3", result=ACCEPTED)
    stage.asks("face/4", what=CREATE)
    (retry,) = stage.client(id="face/5", result=SAMPLED)["child"]
    params = {"name": "tool", "_meta": META, "inputResponses": {"what": SAMPLED}}
    assert retry == {"id": "face/6", "method": "tools/call", "params": params}


def test_rounds_are_limited() -> None:
    stage = called()
    for leg in range(2, 2 + MAX_ROUNDS):
        assert len(stage.asks(f"face/{leg}", "again")["child"]) == 1
    assert code(stage.asks(f"face/{2 + MAX_ROUNDS}", "again")) == -32603


def test_client_that_fails_to_ask_the_person_cancels() -> None:
    stage = called()
    stage.asks("face/2", who=ELICIT)
    (retry,) = stage.client(id="face/3", error=error(-32603))["child"]
    assert retry["params"]["inputResponses"] == {"who": {"action": "cancel"}}


@pytest.mark.parametrize("request_", [CREATE, ROOTS])
def test_error_of_the_client_ends_the_call_and_its_other_asks(request_: Document) -> None:
    stage = called()
    stage.asks("face/2", it=request_, who=ELICIT)
    failure = error(-1, "user rejected")
    over = {"requestId": "face/4", "reason": "the call that needed it is over"}
    assert stage.client(id="face/3", error=failure) == says(
        {"method": "notifications/cancelled", "params": over}, {"id": "c", "error": failure}
    )
    assert stage.client(id="face/4", result=ACCEPTED) == UNTOUCHED


def test_answer_of_the_client_without_a_result_is_an_error() -> None:
    stage = called()
    stage.asks("face/2", it=CREATE)
    assert code(stage.client(id="face/3", result="hello")) == -32603


def test_answer_that_cannot_be_written_again_ends_the_call() -> None:
    stage = called()
    stage.asks("face/2", it=CREATE)
    assert code(stage.line(b'{"id":"face/3","result":{"a":1e400}}', child=False)) == -32603


URL = {
    "method": "elicitation/create",
    "params": {"mode": "url", "message": "Go", "url": "https://example.org"},
}


@pytest.mark.parametrize(
    ("capabilities", "request_", "needed"),
    [
        ({}, ELICIT, {"elicitation": {"form": {}}}),
        ({}, CREATE, {"sampling": {}}),
        ({}, ROOTS, {"roots": {}}),
        ({"elicitation": {}}, URL, {"elicitation": {"url": {}}}),
        ({"elicitation": {"form": {}}}, URL, {"elicitation": {"url": {}}}),
        ({"elicitation": {"url": {}}}, ELICIT, {"elicitation": {"form": {}}}),
    ],
)
def test_client_is_not_asked_for_what_it_did_not_declare(
    capabilities: Document, request_: Document, needed: Document
) -> None:
    said = called(capabilities).asks("face/2", it=request_)
    assert code(said) == -32021
    assert said["gateway"][0]["error"]["data"] == {"requiredCapabilities": needed}


def test_nobody_is_asked_when_one_of_the_asks_cannot_be() -> None:
    stage = called({"elicitation": {}})
    assert code(stage.asks("face/2", who=ELICIT, what=CREATE)) == -32021


def test_address_to_visit_gets_the_id_that_old_clients_need() -> None:
    said = called({"elicitation": {"url": {}}}).asks("face/2", it=URL)
    (ask,) = said["gateway"]
    assert ask["params"] == {**URL["params"], "elicitationId": "face/3"}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "result",
    [
        {},
        {"inputRequests": {}},
        {"inputRequests": [ELICIT]},
        {"inputRequests": {"a": 1}},
        {"inputRequests": {"a": {"method": "ping", "params": {}}}},
        {"inputRequests": {"a": {"method": ["roots/list"]}}},
        {"inputRequests": {"a": {"method": "elicitation/create", "params": []}}},
        {"requestState": 1},
        {"inputRequests": {str(n): ELICIT for n in range(MAX_ASKS + 1)}},
    ],
)
def test_nonsense_that_the_child_asks_for_is_an_error(result: Document) -> None:
    said = called().child(id="face/2", result={"resultType": "input_required", **result})
    assert code(said) == -32603


def test_list_must_not_ask() -> None:
    stage = opened()
    stage.client(id=1, method="tools/list")
    assert code(stage.asks("face/2", who=ELICIT)) == -32603


# Cancelling.


def test_cancel_reaches_the_child_under_its_id() -> None:
    stage = called()
    said = stage.client(
        method="notifications/cancelled", params={"requestId": "c", "reason": "enough"}
    )
    cancelled = {"requestId": "face/2", "reason": "enough"}
    assert said == sends({"method": "notifications/cancelled", "params": cancelled})
    assert stage.child(id="face/2", result={"content": TEXT}) == UNTOUCHED


def test_cancel_of_a_retry_reaches_the_child_under_the_new_id() -> None:
    stage = called()
    stage.asks("face/2", "s")
    said = stage.client(method="notifications/cancelled", params={"requestId": "c"})
    assert said["child"][0]["params"] == {"requestId": "face/3"}


def test_cancel_withdraws_what_the_client_was_asked() -> None:
    stage = called()
    stage.asks("face/2", who=ELICIT)
    over = {"requestId": "face/3", "reason": "the call that needed it is over"}
    said = stage.client(method="notifications/cancelled", params={"requestId": "c"})
    assert said == says({"method": "notifications/cancelled", "params": over})
    assert stage.client(id="face/3", result=ACCEPTED) == UNTOUCHED


@pytest.mark.parametrize("key", ["other", 1, None, 1.5, ["c"], {}])
def test_cancel_of_nothing_is_swallowed(key: Any) -> None:
    said = called().client(method="notifications/cancelled", params={"requestId": key})
    assert said == UNTOUCHED


def test_id_of_a_cancelled_call_may_be_used_again() -> None:
    stage = called()
    stage.client(method="notifications/cancelled", params={"requestId": "c"})
    assert stage.call()["child"][0]["id"] == "face/3"


# Listening.

TOOLS: Document = {"toolsListChanged": True}


def listen(number: int, **wanted: Any) -> Document:
    params = {"notifications": wanted, "_meta": META}
    return {"id": f"face/{number}", "method": "subscriptions/listen", "params": params}


def end(number: int) -> Document:
    return {"method": "notifications/cancelled", "params": {"requestId": f"face/{number}"}}


def listening() -> Stage:
    """A session that listens for tools as face/2."""
    stage = opened()
    stage.client(method="notifications/initialized")
    return stage


def ended(number: int) -> Document:
    meta = {SUBSCRIPTION: f"face/{number}"}
    return {"id": f"face/{number}", "result": {"resultType": "complete", "_meta": meta}}


def test_initialized_client_is_told_of_changes_that_the_server_declares() -> None:
    stage = opened()
    assert stage.client(method="notifications/initialized") == sends(listen(2, **TOOLS))


def test_every_kind_of_list_is_listened_to() -> None:
    change = {"listChanged": True}
    stage = opened(tools=change, prompts=change, resources=change)
    kinds = ("tools", "prompts", "resources")
    wanted = {f"{kind}ListChanged": True for kind in kinds}
    assert stage.client(method="notifications/initialized") == sends(listen(2, **wanted))


def test_nothing_is_listened_to_when_nothing_changes() -> None:
    stage = opened(tools={}, prompts={"listChanged": False}, logging={"listChanged": True})
    assert stage.client(method="notifications/initialized") == UNTOUCHED


def subscribe(stage: Stage, key: int, uri: str) -> dict[str, list[Document]]:
    return stage.client(id=key, method="resources/subscribe", params={"uri": uri})


def acknowledge(stage: Stage, number: int) -> dict[str, list[Document]]:
    params = {"notifications": TOOLS, "_meta": {SUBSCRIPTION: f"face/{number}"}}
    return stage.child(method="notifications/subscriptions/acknowledged", params=params)


def test_subscribing_renews_the_one_listen() -> None:
    stage = listening()
    said = subscribe(stage, 1, "a:1")
    assert said == sends(listen(3, **TOOLS, resourceSubscriptions=["a:1"]), end(2))
    said = subscribe(stage, 2, "a:2")
    assert said == sends(listen(4, **TOOLS, resourceSubscriptions=["a:1", "a:2"]), end(3))
    said = stage.client(id=3, method="resources/unsubscribe", params={"uri": "a:1"})
    assert said == {
        "child": [listen(5, **TOOLS, resourceSubscriptions=["a:2"]), end(4)],
        "gateway": [{"id": 3, "result": {}}],
    }


def test_subscribed_client_is_told_so_when_the_child_listens() -> None:
    """Else the very next call may make the change, before the child has begun to watch for it."""
    stage = listening()
    subscribe(stage, 1, "a:1")
    assert acknowledge(stage, 2) == UNTOUCHED
    assert acknowledge(stage, 3) == says({"id": 1, "result": {}})
    assert acknowledge(stage, 3) == UNTOUCHED


def test_last_listen_answers_all_who_subscribed_meanwhile() -> None:
    stage = listening()
    subscribe(stage, 1, "a:1")
    subscribe(stage, 2, "a:1")
    assert acknowledge(stage, 4) == says({"id": 1, "result": {}}, {"id": 2, "result": {}})


def test_refused_subscription_is_forgotten() -> None:
    stage = listening()
    subscribe(stage, 1, "a:1")
    failure = error(-32602, "not that one")
    assert stage.child(id="face/3", error=failure) == says({"id": 1, "error": failure})
    said = subscribe(stage, 2, "a:2")
    assert said == sends(listen(4, **TOOLS, resourceSubscriptions=["a:2"]))


def test_subscription_that_the_child_does_not_keep_is_refused_in_the_end() -> None:
    stage = listening()
    subscribe(stage, 1, "a:1")
    for number in range(3, 3 + MAX_RELISTENS):
        assert len(stage.child(**ended(number))["child"]) == 1
    assert code(stage.child(**ended(3 + MAX_RELISTENS))) == -32603


def test_subscription_that_is_taken_back_at_once_is_answered() -> None:
    stage = opened(resources={"subscribe": True})
    subscribe(stage, 1, "a:1")
    said = stage.client(id=2, method="resources/unsubscribe", params={"uri": "a:1"})
    assert said["child"] == [end(2)]
    assert said["gateway"] == [{"id": 1, "result": {}}, {"id": 2, "result": {}}]


def test_cancelled_subscribe_is_not_answered() -> None:
    stage = listening()
    subscribe(stage, 1, "a:1")
    assert stage.client(method="notifications/cancelled", params={"requestId": 1}) == UNTOUCHED
    assert acknowledge(stage, 3) == UNTOUCHED


def test_last_unsubscribe_ends_the_listen() -> None:
    stage = opened(resources={"subscribe": True})
    subscribe(stage, 1, "a:1")
    acknowledge(stage, 2)
    said = stage.client(id=2, method="resources/unsubscribe", params={"uri": "a:1"})
    assert said == {"child": [end(2)], "gateway": [{"id": 2, "result": {}}]}


def test_unsubscribing_from_nothing_changes_nothing() -> None:
    said = listening().client(id=1, method="resources/unsubscribe", params={"uri": "a:1"})
    assert said == says({"id": 1, "result": {}})


@pytest.mark.parametrize("params", [{}, {"uri": 1}, {"uri": "a" * (MAX_URI_CHARACTERS + 1)}])
@pytest.mark.parametrize("method", ["resources/subscribe", "resources/unsubscribe"])
def test_subscription_without_a_proper_uri_is_refused(method: str, params: Document) -> None:
    assert code(listening().client(id=1, method=method, params=params)) == -32602


def test_subscriptions_are_limited() -> None:
    face = opened().face
    line = '{"id":1,"method":"resources/subscribe","params":{"uri":"a:%d"}}'
    ack = (
        '{"method":"notifications/subscriptions/acknowledged","params":{"_meta":{"%s":"face/%d"}}}'
    )
    for number in range(MAX_URIS):
        face.from_gateway((line % number).encode())
        assert face.from_child((ack % (SUBSCRIPTION, number + 2)).encode()).to_gateway
    assert face.from_gateway((line % 0).encode().replace(b'"id":1', b'"id":2')).to_child != []
    moves = face.from_gateway((line % MAX_URIS).encode())
    assert moves.to_child == []
    assert json.loads(moves.to_gateway[0])["error"]["code"] == -32603


def test_change_is_told_without_its_tag() -> None:
    stage = listening()
    meta = {SUBSCRIPTION: "face/2"}
    method = "notifications/tools/list_changed"
    assert stage.child(method=method, params={"_meta": meta}) == says(
        {"method": method, "params": {}}
    )


def test_other_meta_of_a_change_stays() -> None:
    meta = {SUBSCRIPTION: "face/2", "a/b": 1}
    method = "notifications/resources/updated"
    said = listening().child(method=method, params={"uri": "a:1", "_meta": meta})
    assert said == says({"method": method, "params": {"uri": "a:1", "_meta": {"a/b": 1}}})


def test_acknowledgement_is_swallowed() -> None:
    assert acknowledge(listening(), 2) == UNTOUCHED


@pytest.mark.parametrize("last", [ended(2), end(2)], ids=["by a result", "by a notification"])
def test_listen_that_the_child_ended_is_renewed(last: Document) -> None:
    assert listening().child(**last) == sends(listen(3, **TOOLS))


def test_child_that_goes_on_ending_listens_is_believed() -> None:
    stage = listening()
    for number in range(2, 2 + MAX_RELISTENS):
        assert len(stage.child(**ended(number))["child"]) == 1
    assert stage.child(**ended(2 + MAX_RELISTENS)) == UNTOUCHED


def test_subscribing_gives_the_child_a_new_chance() -> None:
    stage = listening()
    for number in range(2, 2 + MAX_RELISTENS):
        stage.child(**ended(number))
    subscribe(stage, 1, "a:1")
    assert len(stage.child(**ended(3 + MAX_RELISTENS))["child"]) == 1


def test_child_that_tells_something_in_between_is_listened_to_again() -> None:
    stage = listening()
    for number in range(2, 2 + 2 * MAX_RELISTENS):
        meta = {SUBSCRIPTION: f"face/{number}"}
        stage.child(method="notifications/tools/list_changed", params={"_meta": meta})
        assert len(stage.child(**ended(number))["child"]) == 1


def test_refused_listen_is_not_repeated() -> None:
    assert listening().child(id="face/2", error=error(-32601)) == UNTOUCHED


def test_subscribing_after_a_refused_listen_tries_again() -> None:
    stage = listening()
    stage.child(id="face/2", error=error(-32603))
    said = subscribe(stage, 1, "a:1")
    assert said["child"] == [listen(3, **TOOLS, resourceSubscriptions=["a:1"])]


def test_end_of_a_listen_that_was_replaced_is_swallowed() -> None:
    stage = listening()
    subscribe(stage, 1, "a:1")
    assert stage.child(**ended(2)) == UNTOUCHED
    assert stage.child(**end(2)) == UNTOUCHED


# What passes, and what does not.


@pytest.mark.parametrize(
    "line",
    [
        b'{"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": 7, '
        b'"progress": 0.10}}',
        b'{"method":"notifications/message","jsonrpc":"2.0","params":{"data":1,"level":"info"}}',
        b"Server ready!",
        b"\xff",
        b'["a batch"]',
        b'{"level":"info","event":"a log line in JSON"}',
        b'{"method":5}',
        b'{"method":"notifications/message","params":{"level":"info","data":1e400}}',
    ],
)
def test_line_of_the_child_that_needs_no_translation_passes_as_it_is(line: bytes) -> None:
    moves = called().face.from_child(line)
    assert (moves.to_gateway, moves.to_child) == ([line], [])


@pytest.mark.parametrize("method", ["ping", "roots/list", "sampling/createMessage"])
def test_request_of_the_child_is_refused(method: str) -> None:
    (answer,) = called().child(id=5, method=method)["child"]
    assert (answer["id"], answer["error"]["code"]) == (5, -32601)


def test_request_of_the_child_without_an_id_to_answer_is_dropped() -> None:
    assert called().child(id=None, method="ping") == UNTOUCHED


@pytest.mark.parametrize("method", ["initialized", "roots/list_changed", "progress", "cancelled"])
def test_notification_that_the_child_has_no_use_for_is_swallowed(method: str) -> None:
    stage = opened()
    stage.client(method="notifications/initialized")
    assert stage.client(method=f"notifications/{method}", params={}) == UNTOUCHED


def test_notification_of_an_extension_passes() -> None:
    line = b'{"jsonrpc": "2.0", "method": "notifications/example.org/a"}'
    assert opened().face.from_gateway(line).to_child == [line]


DEEP = b'{"id":"%b","%b":{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}%b}"


@pytest.mark.parametrize(
    "line",
    [
        b'{"id":1,"method":"tools/call","params":{"name":"a","arguments":{"a":1e400}}}',
        b'{"id":1,"method":"tools/call","params":{"name":"a","arguments":{"a":NaN}}}',
        DEEP % (b"1", b"params", b',"method":"tools/call"'),
    ],
)
def test_request_that_cannot_be_written_again_is_refused(line: bytes) -> None:
    assert code(opened().line(line, child=False)) == -32602


@pytest.mark.parametrize(
    "line", [b'{"id":"face/2","result":{"a":1e400}}', DEEP % (b"face/2", b"result", b"")]
)
def test_result_that_cannot_be_written_again_is_an_error(line: bytes) -> None:
    assert code(called().line(line, child=True)) == -32603


def test_wide_message_is_not_mistaken_for_a_deep_one() -> None:
    values: list[list[int]] = [[] for _ in range(2 * MAX_DEPTH)]
    (request,) = opened().call(arguments={"values": values})["child"]
    assert request["params"]["arguments"] == {"values": values}


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"not JSON",
        b"[" * 100_000,
        b'[{"id":1,"method":"ping"}]',
        b"{}",
        b'{"id":null,"method":"ping"}',
        b'{"id":1.5,"method":"ping"}',
        b'{"id":true,"method":"ping"}',
        b'{"id":[],"method":"ping"}',
        b'{"id":1,"method":2}',
        b'{"id":1,"result":{}}',
        b'{"id":"face/1","result":{}}',
    ],
)
def test_message_of_the_client_that_nobody_can_answer_is_dropped(line: bytes) -> None:
    assert opened().line(line, child=False) == UNTOUCHED


def test_text_of_any_kind_survives() -> None:
    stage = called()
    text = "a\u2028b\ud800c\U0001f600"
    said = stage.child(id="face/2", result={"content": [], "structuredContent": {"a": text}})
    assert said["gateway"][0]["result"]["structuredContent"] == {"a": text}


# Anything in any order.

KEYS = st.sampled_from([1, 2, 3, "1", "a", "face/2"])
URIS = st.sampled_from(["a:1", "a:2"])
JUNK = st.sampled_from(
    [b"", b"{", b"[]", b"\xff", b'{"id":1}', b'{"id":"face/3","result":1e400}', b'{"method":"a"}']
) | st.binary(max_size=20)
ANY: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, "a", [], [1], {}, {"a": 1}, {"_meta": 1}, {"_meta": {}, "uri": "a:1"}]
    + [{"resultType": kind, "inputRequests": [], "_meta": []} for kind in ("input_required", 1)]
    + [{"code": "a"}, {"code": 1, "message": "a"}, {"requestId": []}, "face/2"]
)
WANTED = st.dictionaries(
    st.sampled_from("abc"), st.sampled_from([ELICIT, CREATE, ROOTS, URL, {"method": "?"}])
)


class Model:
    """Keeps count of who asked what, and holds the face to it."""

    def __init__(self) -> None:
        self.face = LegacyFace()
        self.waiting: list[str | int] = []
        self.legs: list[str] = []
        self.asked: dict[str, str] = {}
        self.listens: list[str] = []
        self.acknowledged: set[str] = set()
        self.drawn: set[str] = set()
        self.client({"id": 0, "method": "initialize", "params": {"capabilities": CAPABILITIES}})
        self.child({"id": "face/1", "result": DISCOVERED})
        assert self.waiting == []

    def client(self, message: Document) -> None:
        if "id" in message and "method" in message:
            self.waiting.append(message["id"])
        self.pump(json.dumps(message).encode(), child=False)

    def child(self, message: Document) -> None:
        if message.get("id") in self.legs:
            self.legs.remove(message["id"])
        if message.get("id") in self.listens:
            self.listens.remove(message["id"])
        self.pump(json.dumps(message).encode(), child=True)

    def pump(self, line: bytes, *, child: bool) -> None:
        moves = self.face.from_child(line) if child else self.face.from_gateway(line)
        for sent in moves.to_child:
            self.to_child(json.loads(sent))
        for said in moves.to_gateway:
            if said is not line:
                self.to_gateway(json.loads(said))

    def fresh(self, key: str) -> None:
        assert key not in self.drawn
        self.drawn.add(key)

    def to_child(self, message: Document) -> None:
        if message.get("method") == "subscriptions/listen":
            self.fresh(message["id"])
            self.listens.append(message["id"])
        elif message.get("method") == "notifications/cancelled":
            key = message["params"]["requestId"]
            (self.listens if key in self.listens else self.legs).remove(key)
        elif "id" in message and "method" in message:
            self.fresh(message["id"])
            self.legs.append(message["id"])

    def to_gateway(self, message: Document) -> None:
        if "id" in message and "method" not in message:
            self.waiting.remove(message["id"])  # raises when it was answered before
        elif "id" in message:
            self.fresh(message["id"])
            self.asked[message["id"]] = message["method"]
        elif message["method"] == "notifications/cancelled":
            del self.asked[message["params"]["requestId"]]

    def answer(self, ask: str, message: Document) -> None:
        del self.asked[ask]
        self.client({"id": ask, **message})

    def step(self, draw: st.DataObject) -> None:
        actions = ["call", "cancel", "own", "junk", "notice"]
        actions += ["done", "error", "asks", "asks", "odd"] * bool(self.legs)
        actions += ["answer"] * 3 * bool(self.asked) + ["end", "ack"] * bool(self.listens)
        match draw.draw(st.sampled_from(actions)):
            case "call" | "own" as kind:
                self.begin(kind, draw)
            case "cancel":
                if (key := draw.draw(KEYS)) in self.waiting:
                    self.waiting.remove(key)
                self.client({"method": "notifications/cancelled", "params": {"requestId": key}})
            case "answer":
                ask = draw.draw(st.sampled_from(sorted(self.asked)))
                failure: Document = {"error": error(-1)}
                self.answer(ask, draw.draw(st.sampled_from([{"result": {}}, failure, {}])))
            case "end":
                key = draw.draw(st.sampled_from(self.listens))
                self.child({"id": key, "result": {}})
            case "ack":
                self.acknowledge()
            case "junk":
                self.junk(draw.draw(JUNK), child=draw.draw(st.booleans()))
            case "notice":
                meta = {"_meta": {SUBSCRIPTION: draw.draw(ANY)}}
                self.child({"method": "notifications/tools/list_changed", "params": meta})
            case kind:
                self.reply(kind, draw.draw(st.sampled_from(self.legs)), draw)

    def acknowledge(self) -> None:
        for key in self.listens:
            self.acknowledged.add(key)
            params = {"notifications": {}, "_meta": {SUBSCRIPTION: key}}
            self.child({"method": "notifications/subscriptions/acknowledged", "params": params})

    def junk(self, line: bytes, *, child: bool) -> None:
        """Not what the parties would say; an answer may hide in it."""
        envelope = json.loads(line) if line.startswith(b'{"id"') else {}
        key = envelope.get("id")
        if child and key in self.legs:
            self.legs.remove(key)
        if child and key in self.listens:
            self.listens.remove(key)
        if not child and key in self.asked:
            del self.asked[key]
        self.pump(line, child=child)

    def begin(self, kind: str, draw: st.DataObject) -> None:
        key = draw.draw(KEYS)
        if key in self.waiting:
            return  # the gateway refuses it
        method, params = "tools/call", draw.draw(ANY)
        if kind == "own":
            owned = ("ping", "resources/subscribe", "resources/unsubscribe", "tasks/get", "a/b")
            method, params = draw.draw(st.sampled_from(owned)), {"uri": draw.draw(URIS)}
        self.client({"id": key, "method": method, "params": params})

    def reply(self, kind: str, leg: str, draw: st.DataObject) -> None:
        result: Document = {"resultType": "input_required", "inputRequests": draw.draw(WANTED)}
        match kind:
            case "done":
                self.child({"id": leg, "result": {"content": TEXT}})
            case "error":
                self.child({"id": leg, "error": draw.draw(ANY)})
            case "asks":
                state = {"requestState": "s"} if draw.draw(st.booleans()) else {}
                self.child({"id": leg, "result": result | state})
            case _:
                self.child({"id": leg, "result": draw.draw(ANY)})

    def finish(self) -> Iterator[int]:
        """Everybody answers everything, as often as it takes."""
        while self.legs or self.asked or not self.acknowledged.issuperset(self.listens):
            self.acknowledge()
            for leg in [*self.legs]:
                self.child({"id": leg, "result": {"content": TEXT}})
            for ask in [*self.asked]:
                if ask in self.asked:
                    self.answer(ask, {"result": {}})
            yield len(self.legs)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.data())
def test_every_request_is_answered_once_in_whatever_order(data: st.DataObject) -> None:
    model = Model()
    for _ in range(data.draw(st.integers(1, 40))):
        model.step(data)
        assert len(model.listens) <= 1
    for _ in model.finish():
        pass
    face = model.face
    assert model.waiting == []
    assert (face._calls, face._legs, face._asks, face.holding) == ({}, {}, {}, False)
