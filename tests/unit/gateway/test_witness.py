"""What a session's story learns of its messages, and how a trace gets to the child."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from dyno_agent.link import DEFAULT_LIMITS, Channel, Endpoint
from gateway import events
from gateway.jsonrpc import peek
from gateway.registry.servers import ServerDefinition
from gateway.sessions.owned import OwnedSession
from gateway.sessions.record import SessionRecord, State
from gateway.sessions.witness import ID, METHOD, TOOL, Witness

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.sessions.tracing import CallBegun

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OURS = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"


def message(**keys: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **keys}, separators=(",", ":")).encode()


class Spans:
    """Traces calls for a test: what it is told, and what it gives along."""

    def __init__(self, context: Mapping[str, str]) -> None:
        self.given = context
        self.asked: list[CallBegun] = []
        self.begun: list[CallBegun] = []

    def context(self, call: CallBegun) -> Mapping[str, str]:
        self.asked.append(call)
        return self.given

    def begin(self, call: CallBegun) -> None:
        self.begun.append(call)


class Play:
    """A session with one client, and an agent that hears what goes to the child."""

    def __init__(self, spans: Spans | None = None, **server: Any) -> None:
        definition = ServerDefinition(name="everything", command="server", **server)
        record = SessionRecord("s-1", "key", "me", definition, 0.0, state=State.READY)
        self.link, self.agent = (Endpoint(DEFAULT_LIMITS, now=0.0) for _ in range(2))
        self.link.attach(0, 0.0)
        self.agent.attach(0, 0.0)
        self.told: list[events.Event] = []
        self.session: OwnedSession[str] = OwnedSession(record, self.link, self.told.append, 60.0)
        self.session.witness = Witness(record, self.told.append, spans)

    def calls(self, request_id: int | str = 1, stream: str = "A", **params: Any) -> bytes:
        raw = message(id=request_id, method="tools/call", params=params)
        self.session.request(peek(raw), raw, stream, 0.0)
        return raw

    def says(self, raw: bytes) -> None:
        self.agent.send(Channel.RPC, raw)
        for frame in self.agent.frames_to_send(0.0):
            self.session.receive(frame, 1.0)

    def child_reads(self) -> list[bytes]:
        heard = []
        for frame in self.link.frames_to_send(0.0):
            got = self.agent.receive(frame, 0.0)
            if got is not None and got.channel is Channel.RPC:
                heard.append(got.payload)
        return heard

    def passed(self) -> list[tuple[str, str, str, str]]:
        return [
            (event.to, event.kind, event.method, event.call)
            for event in self.told
            if isinstance(event, events.Passed)
        ]

    def finished(self) -> events.CallFinished:
        (event,) = (event for event in self.told if isinstance(event, events.CallFinished))
        return event


def test_every_message_is_told_but_answers_which_the_end_of_their_call_tells() -> None:
    play = Play()
    play.calls(7, name="echo")
    play.says(message(id="q", method="sampling/createMessage", params={}))
    answer = message(id="q", result={})
    play.session.respond(peek(answer), answer, 0.0)
    play.says(message(method="notifications/message", params={}))
    cancel = message(method="notifications/cancelled", params={"requestId": 99})
    play.session.notify(peek(cancel), cancel, 0.0)
    play.says(message(id=7, result={}))
    assert play.passed() == [
        ("child", "request", "tools/call", "7"),
        ("client", "request", "sampling/createMessage", "q"),
        ("child", "response", "", "q"),
        ("client", "notification", "notifications/message", ""),
        ("child", "notification", "notifications/cancelled", ""),
    ]
    assert play.finished().outcome == "ok"


def test_request_is_told_with_the_tool_that_it_names_and_its_size() -> None:
    play = Play()
    raw = play.calls(1, name="echo")
    (event,) = play.told
    assert isinstance(event, events.Passed)
    assert (event.tool, event.bytes, event.payload) == ("echo", len(raw), b"")


def test_payloads_are_told_of_a_server_that_is_recorded_with_them() -> None:
    play = Play(record="payloads")
    raw = play.calls(1, name="echo")
    play.says(message(id=1, result={"text": "hi"}))
    (asked, answered) = play.told
    assert isinstance(asked, events.Passed)
    assert isinstance(answered, events.CallFinished)
    assert (asked.payload, answered.payload) == (raw, b'{"text":"hi"}')


def test_names_from_outside_are_cut() -> None:
    play = Play()
    raw = message(id="i" * 200, method="m" * 500, params={"name": "n" * 500})
    play.session.request(peek(raw), raw, "A", 0.0)
    (event,) = play.told
    assert isinstance(event, events.Passed)
    assert (len(event.call), len(event.method), len(event.tool or "")) == (ID, METHOD, TOOL)


@pytest.mark.parametrize(
    ("answer", "outcome", "code"),
    [
        (message(id=1, result={"content": [], "isError": True}), "tool_error", None),
        (b'{"jsonrpc":"2.0","id":1,"result":{"isError" : true}}', "tool_error", None),
        (message(id=1, result={"isError": False}), "ok", None),
        (message(id=1, result={"text": '"isError":true'}), "ok", None),
        (message(id=1, result={"isError": "yes"}), "ok", None),
        (message(id=1, result={"structuredContent": {"isError": True}}), "ok", None),
        (message(id=1, result=[{"isError": True}]), "ok", None),
        (message(id=1, error={"code": -32602, "message": "no"}), "error", -32602),
    ],
)
def test_outcome_says_whether_the_tool_itself_failed(
    answer: bytes, outcome: str, code: int | None
) -> None:
    play = Play()
    play.calls(1)
    play.says(answer)
    event = play.finished()
    assert (event.outcome, event.code) == (outcome, code)


def test_only_a_tools_result_can_be_a_tools_error() -> None:
    play = Play()
    raw = message(id=1, method="resources/read", params={"uri": "x:y"})
    play.session.request(peek(raw), raw, "A", 0.0)
    play.says(message(id=1, result={"isError": True}))
    assert play.finished().outcome == "ok"


# Traces


def test_child_gets_the_context_in_meta_and_all_else_as_it_came() -> None:
    play = Play(Spans({"traceparent": OURS, "tracestate": "a=b"}))
    raw = (
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"n":1.50,'
        b'"_meta":{"progressToken":3,"traceparent":"%s"}}}' % PARENT.encode()
    )
    play.session.request(peek(raw), raw, "A", 0.0)
    (heard,) = play.child_reads()
    assert b'"n":1.50' in heard
    params = json.loads(heard)["params"]
    assert params["_meta"] == {"progressToken": 3, "traceparent": OURS, "tracestate": "a=b"}


def test_context_of_the_client_is_handed_to_what_traces() -> None:
    spans = Spans({"traceparent": OURS})
    play = Play(spans)
    play.calls(1, name="echo", _meta={"traceparent": PARENT, "baggage": "k=v"})
    (call,) = spans.begun
    assert call.meta == {"traceparent": PARENT, "baggage": "k=v"}
    assert (call.session, call.server, call.principal, call.call, call.tool) == (
        "s-1",
        "everything",
        "me",
        "1",
        "echo",
    )


@pytest.mark.parametrize("context", [7, None, "", "x" * 513, "a\nb", "é", {"a": 1}])
def test_context_that_cannot_be_one_is_not_handed_on(context: Any) -> None:
    spans = Spans({"traceparent": OURS})
    Play(spans).calls(1, _meta={"traceparent": context})
    assert spans.begun[0].meta == {}


def test_end_of_a_call_names_its_trace() -> None:
    play = Play(Spans({"traceparent": OURS}))
    play.calls(1)
    play.says(message(id=1, result={}))
    assert play.finished().trace == OURS


def test_call_without_a_context_goes_as_it_came_and_begins_no_span() -> None:
    spans = Spans({})
    play = Play(spans)
    raw = play.calls(1, _meta={"traceparent": PARENT})
    assert (play.child_reads(), spans.begun) == ([raw], [])


@pytest.mark.parametrize("params", [b',"params":[1,2]', b',"params":{"_meta":7}'])
def test_request_goes_on_though_its_params_have_no_room_for_a_context(params: bytes) -> None:
    spans = Spans({"traceparent": OURS})
    play = Play(spans)
    raw = b'{"jsonrpc":"2.0","id":1,"method":"ping"%s}' % params
    play.session.request(peek(raw), raw, "A", 0.0)
    assert (play.child_reads(), spans.begun) == ([raw], [])


def test_repeated_request_is_known_again_and_begins_no_second_span() -> None:
    spans = Spans({"traceparent": OURS})
    play = Play(spans)
    raw = play.calls(1, "A", name="echo")
    play.session.request(peek(raw), raw, "B", 0.0)
    assert (len(play.child_reads()), len(spans.begun)) == (1, 1)


def test_seed_is_the_same_for_the_same_request_alone() -> None:
    seeds = []
    for request_id, text in ((1, "a"), (1, "a"), (2, "a"), (1, "b")):
        spans = Spans({"traceparent": OURS})
        Play(spans).calls(request_id, text=text)
        seeds.append(spans.begun[0].seed)
    assert seeds[0] == seeds[1]
    assert len(set(seeds)) == 3


def test_message_that_would_be_too_large_with_a_context_carries_none() -> None:
    limit = DEFAULT_LIMITS.message_bytes
    play = Play(Spans({"traceparent": OURS}))
    head = len(message(id=1, method="tools/call", params={"text": ""}))
    raw = play.calls(1, text="x" * (limit - head))
    assert len(raw) == limit
    play.says(message(id=1, result={}))
    assert play.finished().trace == ""
