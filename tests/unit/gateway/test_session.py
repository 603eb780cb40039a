"""Playbooks of one session: what goes in, and every delivery, event and byte that comes out.

A real link endpoint plays the agent; streams are plain names. Proves that each message reaches the
one stream it is for and no other, byte for byte, that nothing is dropped without an event, and that
no agent, however hostile, can do more than break its own session.
"""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyno_agent.link import (
    DEFAULT_LIMITS,
    Channel,
    Endpoint,
    Limits,
    Message,
    ProtocolViolation,
)
from dyno_agent.link.limits import REPLAY_HEAD_BYTES
from dyno_agent.link.resumption import (
    GENERAL,
    MAX_ID,
    JournalPage,
    Replayed,
    RunningCall,
    digest,
    label,
    position,
)
from gateway import events
from gateway.eras.correlation import MAX_ASKS, MAX_CALLS, MAX_PARKED
from gateway.errors import (
    BadMessage,
    Busy,
    DuplicateId,
    MessageTooBig,
    SessionEnded,
)
from gateway.jsonrpc import error_response, peek
from gateway.registry.servers import ServerDefinition
from gateway.sessions.backlog import BACKLOG_BYTES, BACKLOG_MESSAGES
from gateway.sessions.chatter import LAST_WORD, LAST_WORDS, LOG_LINES_PER_S, NOISE_SAMPLE
from gateway.sessions.delivery import Delivery
from gateway.sessions.owned import OwnedSession
from gateway.sessions.record import Reason, SessionRecord, State, Step
from gateway.sessions.session import QUIET_S

TIGHT = Limits(
    message_bytes=100_000,
    window_bytes=165_552,
    window_frames=16,
    ack_bytes=10_000,
    ack_frames=4,
)
TIMEOUT_S = 60.0
LOG = b'{"jsonrpc":"2.0","method":"notifications/message","params":{"data" : 1.50}}'
HALF = "\ud800"
"""Half a surrogate pair: legal as a JSON escape, impossible in UTF-8."""

Deliveries = list[Delivery[str]]


def message(**keys: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **keys}, separators=(",", ":")).encode()


def progress(token: int | str) -> bytes:
    params = {"progressToken": token, "progress": 1}
    return message(method="notifications/progress", params=params)


def cancellation(request_id: int | str) -> bytes:
    return message(method="notifications/cancelled", params={"requestId": request_id})


def all_frames(end: Endpoint, at: float = 0.0) -> list[bytes]:
    """What may go out, to the end: a shell writes a part at a time."""
    found: list[bytes] = []
    while frames := end.frames_to_send(at):
        found += frames
    return found


class Play:
    """A session, the agent's end of its link, and all that was emitted."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        server = ServerDefinition(name="everything", command="server")
        self.record = SessionRecord("s-1", "key", "me", server, 0.0, state=State.DIALLED_IN)
        self.link = Endpoint(limits, now=0.0)
        self.agent = Endpoint(limits, now=0.0)
        self.link.attach(0, 0.0)
        self.agent.attach(0, 0.0)
        self.told: list[events.Event] = []
        self.session: OwnedSession[str] = OwnedSession(
            self.record, self.link, self.told.append, TIMEOUT_S
        )
        self._clock = 0.0

    # The client

    def calls(
        self,
        request_id: int | str,
        stream: str,
        *,
        method: str = "tools/call",
        at: float = 0.0,
        **params: Any,
    ) -> bytes:
        raw = message(id=request_id, method=method, params=params)
        self.session.request(peek(raw), raw, stream, at)
        return raw

    def notifies(self, raw: bytes, at: float = 0.0) -> Deliveries:
        return self.session.notify(peek(raw), raw, at)[1]

    def responds(self, raw: bytes) -> None:
        self.session.respond(peek(raw), raw, 0.0)

    def opened(self, stream: str) -> list[tuple[str, bytes, bool]]:
        """Open a general stream: what waited for it."""
        return where(self.session.routing.open_general(stream))

    def writes(self, delivery: Delivery[str]) -> None:
        """The delivery's bytes went out to its stream."""
        assert delivery.message is not None
        self.session.routing.delivered(delivery)

    # The agent

    def sends(self, channel: Channel, payload: bytes, at: float = 0.0) -> Deliveries:
        self.agent.send(channel, payload)
        frames = all_frames(self.agent, at)
        return [delivery for frame in frames for delivery in self.session.receive(frame, at)]

    def says(self, raw: bytes, at: float = 0.0) -> Deliveries:
        return self.sends(Channel.RPC, raw, at)

    def told_agent(self) -> list[dict[str, Any]]:
        """What the agent was told to do since the last look."""
        return [json.loads(got.payload) for got in self._read() if got.channel is Channel.CMD]

    def replays(self, ticket: int, seq: int, raw: bytes) -> Deliveries:
        return self.sends(Channel.REPLAY, Replayed(ticket, position(seq), raw).encode())

    def answers(self, request_id: int | str, at: float = 0.0) -> Deliveries:
        return self.says(message(id=request_id, result={}), at)

    def reports(self, event: str, at: float = 0.0, **facts: Any) -> Deliveries:
        payload = json.dumps({"event": event, **facts}).encode()
        return self.sends(Channel.EVENT, payload, at)

    def child_reads(self) -> list[bytes]:
        """What the child was given since the last look."""
        return [got.payload for got in self._read() if got.channel is Channel.RPC]

    def _read(self) -> list[Message]:
        read = []
        for frame in all_frames(self.link):
            got = self.agent.receive(frame, 0.0)
            if got is not None:
                self.agent.consumed(got)
                read.append(got)
        return read

    def acknowledged(self) -> bool:
        """True when everything the agent sent was taken over by somebody."""
        self._clock += DEFAULT_LIMITS.heartbeat_s
        for frame in all_frames(self.link) + self.link.tick(self._clock):
            self.agent.receive(frame, 0.0)
        return self.agent.settled

    # What was told

    def dropped(self) -> list[str]:
        return [event.what for event in self.told if isinstance(event, events.Dropped)]

    def outcomes(self) -> list[tuple[str, str]]:
        return [(e.call, e.outcome) for e in self.told if isinstance(e, events.CallFinished)]


def where(deliveries: Deliveries) -> list[tuple[str, bytes, bool]]:
    return [(delivery.stream, delivery.raw, delivery.last) for delivery in deliveries]


def failures(deliveries: Deliveries) -> list[tuple[str, Any, str]]:
    """Stream, id and reason of answers that the gateway made; each must end its stream."""
    found = []
    for delivery in deliveries:
        answer = json.loads(delivery.raw)
        assert delivery.last
        assert delivery.error is not None
        assert delivery.error.reason == answer["error"]["data"]["reason"]
        found.append((delivery.stream, answer["id"], answer["error"]["data"]["reason"]))
    return found


@pytest.fixture
def play() -> Play:
    return Play()


# Bytes that pass


@pytest.mark.parametrize(
    "raw",
    [
        b'{"params":{"b":1.50,"a":1e2,"a":"\\u00e9"} , "id" : 1,"method":"x","jsonrpc":"2.0"}',
        b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"text":"\xc3\xa9\xe2\x80\xa8\x7f"}}',
    ],
)
def test_bytes_of_a_request_reach_the_child_unchanged(play: Play, raw: bytes) -> None:
    play.session.request(peek(raw), raw, "A", 0.0)
    assert play.child_reads() == [raw]


@pytest.mark.parametrize(
    "raw",
    [
        b'{ "result":{"b":1.50,"a":1e2,"a":"\\u00e9"},"id":1 ,"jsonrpc":"2.0" }',
        b'{"jsonrpc":"2.0","id":1,"result":{"text":"\xc3\xa9\xe2\x80\xa8\x7f"}}',
        b'{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"no","x":[1.0]}}',
    ],
)
def test_bytes_of_an_answer_reach_the_stream_unchanged(play: Play, raw: bytes) -> None:
    play.calls(1, "A")
    assert where(play.says(raw)) == [("A", raw, True)]


def test_line_ends_between_tokens_become_blanks_in_both_directions(play: Play) -> None:
    raw = b'{"jsonrpc":"2.0",\r\n"id":1,"method":"x"}'
    play.session.request(peek(raw), raw, "A", 0.0)
    answer = b'{"jsonrpc":"2.0",\r"id":1,\n"result":1}'
    assert play.child_reads() == [raw.replace(b"\r\n", b"  ")]
    assert [d.raw for d in play.says(answer)] == [b'{"jsonrpc":"2.0", "id":1, "result":1}']


def test_notification_of_the_client_reaches_the_child_unchanged(play: Play) -> None:
    raw = b'{"method":"notifications/initialized" ,"jsonrpc":"2.0"}'
    assert (play.notifies(raw), play.child_reads()) == ([], [raw])


def test_large_messages_pass_whole_in_both_directions(play: Play) -> None:
    raw = message(id=1, method="x", params={"text": "é" * 200_000})
    play.session.request(peek(raw), raw, "A", 0.0)
    answer = message(id=1, result={"text": "y" * 200_000})
    assert play.child_reads() == [raw]
    assert where(play.says(answer)) == [("A", answer, True)]


# Answers


def test_answer_reaches_the_stream_that_asked(play: Play) -> None:
    play.calls(1, "A")
    play.calls(2, "B")
    play.calls("1", "C")
    got = [d.stream for request_id in ("1", 2, 1) for d in play.answers(request_id)]
    assert got == ["C", "B", "A"]


def test_finished_call_is_told_with_its_facts(play: Play) -> None:
    raw = play.calls(7, "A", name="echo", at=1.0)
    play.says(message(id=7, result={}), at=1.5)
    assert play.told == [
        events.Passed(
            session="s-1",
            to="child",
            kind="request",
            method="tools/call",
            tool="echo",
            call="7",
            bytes=len(raw),
        ),
        events.CallFinished(
            session="s-1",
            server="everything",
            call="7",
            method="tools/call",
            tool="echo",
            outcome="ok",
            ms=500.0,
            bytes_in=len(raw),
            bytes_out=len(message(id=7, result={})),
        ),
    ]


def test_error_of_the_child_is_told_as_error(play: Play) -> None:
    play.calls(1, "A")
    play.says(message(id=1, error={"code": 1, "message": "no"}))
    assert play.outcomes() == [("1", "error")]


def test_answer_is_acknowledged_only_once_its_stream_took_it_over(play: Play) -> None:
    play.calls(1, "A")
    play.child_reads()
    (delivery,) = play.answers(1)
    assert delivery.message is not None
    before = play.acknowledged()
    play.link.consumed(delivery.message)
    assert (before, play.acknowledged()) == (False, True)


def test_second_answer_to_a_call_is_dropped_and_told(play: Play) -> None:
    play.calls(1, "A")
    play.answers(1)
    assert (play.answers(1), play.dropped()) == ([], ["response"])


@pytest.mark.parametrize("request_id", [2, "1", None])
def test_response_nobody_asked_for_is_dropped_and_told(play: Play, request_id: Any) -> None:
    play.calls(1, "A")
    assert play.says(message(id=request_id, error={})) == []
    assert play.dropped() == ["response"]
    assert play.session.calls == 1


def test_dropped_message_is_acknowledged(play: Play) -> None:
    play.answers(1)
    assert play.acknowledged()


def test_calls_are_counted_in_the_record(play: Play) -> None:
    play.calls(1, "A")
    play.calls(2, "A")
    assert play.record.calls == 2


# Initialize


def initialize(play: Play) -> None:
    play.calls(0, "A", method="initialize")


def test_initialize_that_succeeds_ends_nothing(play: Play) -> None:
    initialize(play)
    raw = message(id=0, result={"protocolVersion": "2025-06-18"})
    assert where(play.says(raw)) == [("A", raw, True)]
    assert play.session.ending is None


def test_refused_initialize_is_delivered_and_ends_the_session(play: Play) -> None:
    initialize(play)
    raw = message(id=0, error={"code": -32602, "message": "no"})
    assert where(play.says(raw)) == [("A", raw, True)]
    assert play.session.ending is not None
    assert play.session.ending.reason is Reason.INITIALIZE_FAILED


# Progress


def test_progress_reaches_the_call_with_its_token(play: Play) -> None:
    play.calls(1, "A", _meta={"progressToken": "a"})
    play.calls(2, "B", _meta={"progressToken": 5})
    assert where(play.says(progress("a"))) == [("A", progress("a"), False)]
    assert where(play.says(progress(5))) == [("B", progress(5), False)]


@pytest.mark.parametrize("token", ["5", 6])
def test_progress_with_an_unknown_token_reaches_nobody(play: Play, token: int | str) -> None:
    play.session.routing.open_general("GET")
    play.calls(1, "A", _meta={"progressToken": 5})
    assert play.says(progress(token)) == []
    assert play.acknowledged()


def test_progress_after_the_answer_reaches_nobody_now_or_later(play: Play) -> None:
    play.calls(1, "A", _meta={"progressToken": 5})
    play.answers(1)
    assert play.says(progress(5)) == []
    assert play.session.routing.open_general("GET") == []


def test_progress_for_two_calls_with_one_token_reaches_one_stream(play: Play) -> None:
    play.calls(1, "A", _meta={"progressToken": "t"})
    play.calls(2, "B", _meta={"progressToken": "t"})
    assert [d.stream for d in play.says(progress("t"))] == ["B"]
    play.answers(1)
    assert [d.stream for d in play.says(progress("t"))] == ["B"]


# Messages that name no call


@pytest.mark.parametrize(
    ("calls", "general", "chosen"),
    [("A", None, "A"), ("A", "GET", "A"), ("AB", "GET", "GET"), ("AB", None, "B"), ("", "G", "G")],
)
def test_log_goes_to_exactly_one_stream(
    play: Play, calls: str, general: str | None, chosen: str
) -> None:
    if general is not None:
        play.session.routing.open_general(general)
    for number, stream in enumerate(calls):
        play.calls(number, stream)
    assert where(play.says(LOG)) == [(chosen, LOG, False)]


def test_log_after_the_only_call_ended_waits_for_a_stream(play: Play) -> None:
    play.calls(1, "A")
    play.answers(1)
    assert play.says(LOG) == []
    assert play.opened("GET") == [("GET", LOG, False)]


def test_what_waited_is_delivered_once_and_in_order(play: Play) -> None:
    waiting = [LOG, message(id="q", method="ping"), message(method="notifications/x")]
    assert [play.says(raw) for raw in waiting] == [[], [], []]
    assert play.opened("GET") == [("GET", raw, False) for raw in waiting]
    assert play.opened("NEW") == []


def test_backlog_holds_so_many_messages_and_tells_what_it_dropped(play: Play) -> None:
    for number in range(BACKLOG_MESSAGES + 2):
        play.says(message(method=f"n{number}"))
    kept = play.session.routing.open_general("GET")
    assert [d.raw for d in kept] == [message(method=f"n{n}") for n in range(BACKLOG_MESSAGES)]
    assert play.dropped() == [f"n{BACKLOG_MESSAGES}", f"n{BACKLOG_MESSAGES + 1}"]


def of_size(size: int, method: str) -> bytes:
    empty = message(method=method, params={"x": ""})
    return message(method=method, params={"x": "x" * (size - len(empty))})


def test_backlog_holds_so_many_bytes_and_tells_what_it_dropped(play: Play) -> None:
    half, one_more = of_size(BACKLOG_BYTES // 2, "half"), message(method="more")
    for raw in (half, half, one_more):
        play.says(raw)
    assert [d.raw for d in play.session.routing.open_general("GET")] == [half, half]
    assert play.dropped() == ["more"]


def test_backlog_has_its_whole_room_again_after_it_was_delivered(play: Play) -> None:
    full = of_size(BACKLOG_BYTES, "full")
    play.says(full)
    play.session.routing.open_general("GET")
    play.session.routing.stream_gone("GET")
    play.says(full)
    assert [d.raw for d in play.session.routing.open_general("NEW")] == [full]


def test_what_a_stream_did_not_write_waits_for_the_next_one(play: Play) -> None:
    play.session.routing.open_general("GET")
    (delivery,) = play.says(LOG)
    play.session.routing.stream_gone("GET")
    play.session.routing.undelivered(delivery)
    assert play.opened("NEW") == [("NEW", LOG, False)]
    assert play.acknowledged()


def test_answer_that_a_stream_did_not_write_stays_with_the_agent_alone(play: Play) -> None:
    play.calls(1, "A")
    (delivery,) = play.answers(1)
    play.child_reads()
    play.session.routing.undelivered(delivery)
    assert (play.dropped(), play.opened("GET")) == ([], [])
    assert play.acknowledged()


def test_progress_that_a_stream_did_not_write_does_not_wait(play: Play) -> None:
    play.calls(1, "A", _meta={"progressToken": 5})
    (delivery,) = play.says(progress(5))
    play.session.routing.undelivered(delivery)
    assert play.session.routing.open_general("GET") == []


# Requests of the child


def test_answer_of_the_client_reaches_the_child_unchanged(play: Play) -> None:
    play.session.routing.open_general("GET")
    play.says(message(id="q", method="roots/list"))
    raw = b'{"result" :{"roots":[]},"id":"q","jsonrpc":"2.0"}'
    play.responds(raw)
    assert play.child_reads() == [raw]


def test_request_of_the_child_is_answered_only_once(play: Play) -> None:
    play.session.routing.open_general("GET")
    play.says(message(id="q", method="roots/list"))
    play.responds(message(id="q", result={}))
    play.child_reads()
    with pytest.raises(BadMessage):
        play.responds(message(id="q", result={}))
    assert play.child_reads() == []


@pytest.mark.parametrize("request_id", [1, "2", None])
def test_answer_to_what_the_child_did_not_ask_reaches_nobody(play: Play, request_id: Any) -> None:
    play.session.routing.open_general("GET")
    play.says(message(id="1", method="roots/list"))
    with pytest.raises(BadMessage):
        play.responds(message(id=request_id, error={}))
    assert play.child_reads() == []


def test_request_that_waited_for_a_stream_can_be_answered(play: Play) -> None:
    play.says(message(id=3, method="roots/list"))
    play.session.routing.open_general("GET")
    play.responds(message(id=3, result={}))
    assert play.child_reads() == [message(id=3, result={})]


def refusals(read: list[bytes]) -> list[tuple[Any, int, str]]:
    answers = [json.loads(raw) for raw in read]
    return [(a["id"], a["error"]["code"], a["error"]["data"]["reason"]) for a in answers]


def test_child_is_told_when_nobody_can_be_asked(play: Play) -> None:
    for _ in range(BACKLOG_MESSAGES):
        play.says(LOG)
    play.says(message(id="q", method="roots/list"))
    assert refusals(play.child_reads()) == [("q", -32603, "busy")]
    assert play.dropped() == ["roots/list"]


def test_refused_request_of_the_child_takes_no_answer(play: Play) -> None:
    for _ in range(BACKLOG_MESSAGES):
        play.says(LOG)
    play.says(message(id="q", method="roots/list"))
    with pytest.raises(BadMessage):
        play.responds(message(id="q", result={}))


def test_child_is_told_when_too_many_of_its_requests_wait(play: Play) -> None:
    play.session.routing.open_general("GET")
    asked = [play.says(message(id=n, method="ping")) for n in range(MAX_ASKS + 1)]
    assert [len(deliveries) for deliveries in asked] == [1] * MAX_ASKS + [0]
    assert refusals(play.child_reads()) == [(MAX_ASKS, -32603, "busy")]


# Cancellation


def test_cancellation_ends_the_stream_without_a_message(play: Play) -> None:
    play.calls(1, "A")
    assert play.notifies(cancellation(1)) == [Delivery("A", b"", last=True)]
    assert (play.outcomes(), play.session.calls) == ([("1", "cancelled")], 0)


def test_bytes_of_a_cancellation_reach_the_child_unchanged(play: Play) -> None:
    asked = play.calls(1, "A")
    raw = b'{"params": {"reason":"x","requestId":1},"method":"notifications/cancelled",'
    raw += b'"jsonrpc":"2.0"}'
    play.notifies(raw)
    assert play.child_reads() == [asked, raw]


def test_late_answer_to_a_cancelled_call_is_swallowed(play: Play) -> None:
    play.calls(1, "A")
    play.notifies(cancellation(1))
    play.child_reads()
    assert (play.answers(1), play.dropped(), play.acknowledged()) == ([], [], True)


def test_id_of_a_cancelled_call_is_refused_while_its_answer_may_come(play: Play) -> None:
    play.calls(1, "A")
    play.notifies(cancellation(1))
    with pytest.raises(DuplicateId):
        play.calls(1, "B")
    play.answers(1)
    play.calls(1, "B")
    assert [d.stream for d in play.answers(1)] == ["B"]


@pytest.mark.parametrize("request_id", ["1", 2])
def test_cancellation_of_no_call_is_passed_on_and_ends_nothing(
    play: Play, request_id: int | str
) -> None:
    asked = play.calls(1, "A")
    assert play.notifies(cancellation(request_id)) == []
    assert play.child_reads() == [asked, cancellation(request_id)]
    assert play.session.calls == 1


def test_other_notification_with_the_id_of_a_call_ends_nothing(play: Play) -> None:
    play.calls(1, "A")
    play.notifies(message(method="notifications/x", params={"requestId": 1}))
    assert play.session.calls == 1


def test_cancellation_of_a_call_whose_client_hung_up_delivers_nothing(play: Play) -> None:
    play.calls(1, "A")
    play.session.routing.stream_gone("A")
    assert (play.notifies(cancellation(1)), play.session.calls) == ([], 0)


# Disconnects


def test_call_goes_on_when_its_client_hangs_up(play: Play) -> None:
    asked = play.calls(1, "A")
    play.session.routing.stream_gone("A")
    assert (play.session.calls, play.child_reads()) == (1, [asked])


def test_answer_to_a_client_that_hung_up_stays_with_the_agent_alone(play: Play) -> None:
    play.calls(1, "A")
    play.session.routing.stream_gone("A")
    play.child_reads()
    assert (play.answers(1), play.dropped(), play.outcomes()) == ([], [], [("1", "ok")])
    assert play.acknowledged()


def test_log_while_the_only_client_hung_up_goes_to_the_general_stream(play: Play) -> None:
    play.session.routing.open_general("GET")
    play.calls(1, "A")
    play.session.routing.stream_gone("A")
    assert [d.stream for d in play.says(LOG)] == ["GET"]


def test_nothing_is_delivered_to_a_general_stream_that_is_gone(play: Play) -> None:
    play.session.routing.open_general("GET")
    play.session.routing.stream_gone("GET")
    assert play.says(LOG) == []


# Requests that are sent again


def test_request_whose_connection_broke_is_made_once_and_answered_to_the_new_stream(
    play: Play,
) -> None:
    asked = play.calls(1, "A")
    play.session.routing.stream_gone("A")
    play.calls(1, "B")
    assert play.child_reads() == [asked]
    play.replays(1, 0, b"")
    assert [d.stream for d in play.answers(1)] == ["B"]


def test_repeated_request_has_the_ordinal_of_the_first_and_a_stream_from_the_start(
    play: Play,
) -> None:
    play.says(LOG)
    raw = message(id=1, method="x")
    first, since = play.session.request(peek(raw), raw, "A", 0.0)
    play.session.routing.stream_gone("A")
    assert (first, since) == (1, play.session.routing.position)
    assert play.session.request(peek(raw), raw, "B", 0.0) == (1, None)


def test_another_request_with_the_id_of_an_abandoned_one_is_refused(play: Play) -> None:
    asked = play.calls(1, "A")
    play.session.routing.stream_gone("A")
    with pytest.raises(DuplicateId):
        play.calls(1, "B", name="another")
    assert play.child_reads() == [asked]


def test_request_repeated_after_its_answer_asks_the_agent_for_it(play: Play) -> None:
    play.calls(1, "A")
    play.child_reads()
    play.session.routing.stream_gone("A")
    play.answers(1)
    play.calls(1, "B")
    assert play.told_agent() == [{"do": "replay", "ticket": 1, "to": "i1", "after": 0}]
    answer = message(id=1, result={})
    assert where(play.replays(1, 1, answer)) == [("B", answer, True)]


def test_request_repeated_after_its_written_answer_is_a_new_one(play: Play) -> None:
    asked = play.calls(1, "A")
    (delivery,) = play.answers(1)
    play.writes(delivery)
    play.calls(1, "B")
    assert play.child_reads() == [asked, asked]


def test_so_many_answers_are_remembered_for_clients_that_hung_up(play: Play) -> None:
    for number in range(MAX_PARKED + 1):
        play.calls(number, "A")
        play.session.routing.stream_gone("A")
        play.answers(number)
    play.child_reads()
    forgotten, kept = play.calls(0, "B"), play.calls(1, "B")
    read = play.child_reads()
    assert forgotten in read
    assert kept not in read


# Streams that continue


def test_message_that_names_no_call_is_told_to_the_agent_with_its_stream(play: Play) -> None:
    play.session.routing.open_general("GET")
    (delivery,) = play.says(LOG)
    play.writes(delivery)
    assert play.told_agent() == [{"do": "routed", "seq": 1, "to": GENERAL, "at": delivery.position}]


@pytest.mark.parametrize("raw", [progress(5), message(id=1, result={})])
def test_message_that_names_its_call_is_not_told_to_the_agent(play: Play, raw: bytes) -> None:
    play.calls(1, "A", _meta={"progressToken": 5})
    (delivery,) = play.says(raw)
    play.writes(delivery)
    assert play.told_agent() == []


def test_stream_that_continues_a_call_gets_what_it_missed_then_what_is_new(play: Play) -> None:
    play.calls(1, "A", _meta={"progressToken": 5})
    play.session.routing.stream_gone("A")
    play.session.routing.resume("B", "i1", 0)
    assert play.told_agent() == [{"do": "replay", "ticket": 1, "to": "i1", "after": 0}]
    assert play.says(progress(5)) == []  # the agent sends it again as well
    again = play.replays(1, 1, progress(5))
    assert [(d.stream, d.position) for d in again] == [("B", position(1))]
    assert play.replays(1, 0, b"") == []
    assert where(play.says(progress(5))) == [("B", progress(5), False)]
    assert where(play.answers(1)) == [("B", message(id=1, result={}), True)]


def test_stream_that_continues_is_not_given_what_its_client_has(play: Play) -> None:
    play.calls(1, "A", _meta={"progressToken": 5})
    play.session.routing.stream_gone("A")
    play.session.routing.resume("B", "i1", position(3))
    assert play.replays(1, 3, progress(5)) == []
    assert play.acknowledged()


def test_first_copy_of_a_replayed_answer_is_swallowed(play: Play) -> None:
    play.calls(1, "A")
    play.session.routing.stream_gone("A")
    play.session.routing.resume("B", "i1", 0)
    answer = message(id=1, result={})
    assert where(play.replays(1, 1, answer)) == [("B", answer, True)]
    play.replays(1, 0, b"held")
    assert (play.says(answer), play.dropped()) == ([], [])


def test_stream_of_an_unknown_call_ends_with_answer_gone(play: Play) -> None:
    play.session.routing.resume("B", "i9", 0)
    assert failures(play.replays(1, 0, b"")) == [("B", 9, "answer_gone")]


def test_stream_whose_client_has_the_answer_ends_without_a_message(play: Play) -> None:
    play.session.routing.resume("B", "i9", 7)
    assert where(play.replays(1, 0, b"held")) == [("B", b"", True)]


def test_streams_that_continue_are_asked_for_one_at_a_time(play: Play) -> None:
    play.session.routing.resume("A", "i1", 0)
    play.session.routing.resume("B", "i2", 0)
    first = [command["to"] for command in play.told_agent()]
    play.replays(1, 0, b"")
    assert (first, [command["to"] for command in play.told_agent()]) == (["i1"], ["i2"])


def test_stream_that_is_gone_before_its_turn_is_not_asked_for(play: Play) -> None:
    play.session.routing.resume("A", "i1", 0)
    play.session.routing.resume("B", "i2", 0)
    play.session.routing.stream_gone("B")
    play.replays(1, 0, b"")
    assert [command["to"] for command in play.told_agent()] == ["i1"]


def test_replayed_answer_to_another_call_ends_nobodys_stream(play: Play) -> None:
    play.calls(1, "A")
    play.session.routing.resume("B", "i2", 0)
    assert play.replays(1, 9, message(id=1, result={})) == []
    assert [d.stream for d in play.answers(1)] == ["A"]


@pytest.mark.parametrize("ticket", [0, 2])
def test_replay_that_nobody_asked_for_is_dropped_and_told(play: Play, ticket: int) -> None:
    play.calls(1, "A")
    play.session.routing.stream_gone("A")
    play.session.routing.resume("B", "i1", 0)
    assert play.replays(ticket, 1, message(id=1, result={})) == []
    assert (play.dropped(), play.acknowledged()) == (["replay"], True)


def test_general_stream_that_continues_lets_what_is_new_wait_for_what_it_missed(
    play: Play,
) -> None:
    assert play.session.routing.open_general("GET", 3) == []
    assert play.says(LOG) == []
    missed = message(method="missed")
    assert where(play.replays(1, 4, missed)) == [("GET", missed, False)]
    assert where(play.replays(1, 0, b"")) == [("GET", LOG, False)]


# A session that another process began


def hydrate(play: Play, **journal: Any) -> None:
    """Start in the middle: one message of the child went to an earlier process."""
    play.says(b"noise")
    play.session.hydrate([JournalPage(**journal, last=True)], 0.0)


def running(request_id: int | str, raw: bytes, *, method: str = "tools/call") -> RunningCall:
    return RunningCall(request_id, method, None, 5, digest(raw), 2.0)


def test_call_of_an_earlier_process_is_answered_to_the_client_that_repeats_it(play: Play) -> None:
    raw = message(id=1, method="tools/call", params={})
    play.session.hydrate([JournalPage(calls=(running(1, raw),), last=True)], 10.0)
    play.calls(1, "B")
    assert raw not in play.child_reads()
    for ticket in (1, 2):
        play.replays(ticket, 0, b"")
    assert where(play.says(progress(5))) == [("B", progress(5), False)]
    assert [d.stream for d in play.answers(1)] == ["B"]


def test_call_of_an_earlier_process_is_as_old_as_its_agent_says(play: Play) -> None:
    raw = message(id=1, method="x")
    play.session.hydrate([JournalPage(calls=(running(1, raw),), last=True)], 10.0)
    play.session.tick(8.0 + TIMEOUT_S - 0.001)
    before = play.session.calls
    play.session.tick(8.0 + TIMEOUT_S)
    assert (before, play.session.calls) == (1, 0)


def test_ask_of_an_earlier_process_can_be_answered(play: Play) -> None:
    play.session.hydrate([JournalPage(asks=("q",), last=True)], 0.0)
    play.child_reads()
    play.responds(message(id="q", result={}))
    assert play.child_reads() == [message(id="q", result={})]


def test_ask_that_an_earlier_process_has_written_is_not_delivered_again(play: Play) -> None:
    play.session.routing.open_general("GET")
    play.session.hydrate([JournalPage(asks=("q",), routed={1: GENERAL}, last=True)], 0.0)
    assert play.says(message(id="q", method="roots/list")) == []
    play.responds(message(id="q", result={}))
    assert play.acknowledged()


def test_what_an_earlier_process_found_no_stream_for_waits_for_one(play: Play) -> None:
    hydrate(play)
    assert play.told_agent() == [{"do": "replay", "ticket": 1, "to": None, "after": 0}]
    assert play.replays(1, 1, LOG) == []
    play.replays(1, 0, b"")
    assert play.opened("GET") == [("GET", LOG, False)]


def test_what_came_to_this_process_itself_is_not_taken_a_second_time(play: Play) -> None:
    hydrate(play)
    play.says(LOG)
    assert play.replays(1, 2, LOG) == []
    play.replays(1, 0, b"")
    assert play.opened("GET") == [("GET", LOG, False)]


def test_question_of_an_earlier_process_waits_for_a_stream_only_while_it_is_open(
    play: Play,
) -> None:
    hydrate(play, asks=("open",))
    still, answered = (message(id=which, method="roots/list") for which in ("open", "answered"))
    play.replays(1, 1, answered)
    play.replays(1, 1, still)
    play.replays(1, 0, b"")
    assert play.opened("GET") == [("GET", still, False)]


@pytest.mark.parametrize(("method", "booted"), [("initialize", False), ("tools/call", True)])
def test_session_counts_as_booted_unless_its_initialize_still_runs(
    play: Play, method: str, booted: bool
) -> None:
    page = JournalPage(calls=(running(1, b"", method=method),), last=True)
    play.session.hydrate([page], 0.0)
    assert play.session.booted is booted


def test_journal_enters_no_more_calls_than_a_client_may_have(play: Play) -> None:
    calls = tuple(running(number, b"") for number in range(MAX_CALLS + 5))
    play.session.hydrate([JournalPage(calls=calls, last=True)], 0.0)
    assert play.session.calls == MAX_CALLS


# Refusals


@pytest.mark.parametrize(
    "raw",
    [
        message(id="x" * (MAX_ID + 1), method="x"),
        message(id=1, method="x", params={"_meta": {"progressToken": "x" * (MAX_ID + 1)}}),
    ],
    ids=["id", "token"],
)
def test_request_with_an_id_too_long_to_be_carried_along_is_refused(play: Play, raw: bytes) -> None:
    with pytest.raises(BadMessage):
        play.session.request(peek(raw), raw, "A", 0.0)
    assert (play.child_reads(), play.session.calls) == ([], 0)


def test_request_of_the_child_with_an_id_too_long_is_refused(play: Play) -> None:
    play.session.routing.open_general("GET")
    request_id = "x" * (MAX_ID + 1)
    assert play.says(message(id=request_id, method="ping")) == []
    assert refusals(play.child_reads()) == [(request_id, -32603, "busy")]


def test_duplicate_id_is_refused_and_the_first_call_is_answered(play: Play) -> None:
    asked = play.calls(1, "A")
    with pytest.raises(DuplicateId):
        play.calls(1, "B", method="another/method")
    assert play.child_reads() == [asked]
    assert [d.stream for d in play.answers(1)] == ["A"]


def test_session_that_runs_its_limit_of_calls_is_busy_until_one_ends(play: Play) -> None:
    for number in range(MAX_CALLS):
        play.calls(number, "A")
    with pytest.raises(Busy):
        play.calls("more", "A")
    play.answers(0)
    play.calls("more", "A")
    assert play.record.calls == MAX_CALLS + 1


def fill(play: Play) -> None:
    play.notifies(message(method="x", params={"x": "x" * 70_000}))
    assert not play.link.writable


def test_session_whose_child_does_not_read_takes_no_request() -> None:
    play = Play(TIGHT)
    fill(play)
    with pytest.raises(Busy):
        play.calls(1, "A")
    assert play.session.calls == 0


def test_session_whose_child_does_not_read_takes_no_notification() -> None:
    play = Play(TIGHT)
    fill(play)
    with pytest.raises(Busy):
        play.notifies(LOG)
    assert len(play.child_reads()) == 1


def test_session_takes_requests_again_once_its_child_has_read() -> None:
    play = Play(TIGHT)
    fill(play)
    play.child_reads()
    for frame in all_frames(play.agent):
        play.session.receive(frame, 0.0)
    asked = play.calls(1, "A")
    assert play.child_reads() == [asked]


def request_of(size: int) -> bytes:
    empty = message(id=1, method="x", params={"x": ""})
    return message(id=1, method="x", params={"x": "x" * (size - len(empty))})


def test_request_of_exactly_the_limit_passes() -> None:
    play, raw = Play(TIGHT), request_of(TIGHT.message_bytes)
    play.session.request(peek(raw), raw, "A", 0.0)
    assert play.child_reads() == [raw]


def test_request_over_the_limit_is_refused() -> None:
    play, raw = Play(TIGHT), request_of(TIGHT.message_bytes + 1)
    with pytest.raises(MessageTooBig):
        play.session.request(peek(raw), raw, "A", 0.0)
    assert play.child_reads() == []


def test_request_that_was_refused_for_its_size_is_no_running_call() -> None:
    play, raw = Play(TIGHT), request_of(TIGHT.message_bytes + 1)
    with pytest.raises(MessageTooBig):
        play.session.request(peek(raw), raw, "A", 0.0)
    assert play.session.calls == 0


# What the agent tells of the child


def test_spawned_child_makes_the_session_ready(play: Play) -> None:
    play.reports("spawned", at=2.5, pid=42)
    assert play.record.state is State.READY
    assert play.told == [events.Ready(session="s-1", pid=42, boot_s=2.5)]


def test_child_counts_as_booted_once_it_has_answered(play: Play) -> None:
    play.reports("spawned", pid=1)
    play.calls(1, "A")
    before = play.session.booted
    play.answers(1)
    assert (before, play.session.booted) == (False, True)


def test_child_that_could_not_start_ends_the_session_with_the_message(play: Play) -> None:
    play.reports("spawn_failed", message="no such program: serber")
    assert play.session.ending is not None
    assert play.session.ending.reason is Reason.BOOT_FAILED
    assert play.session.ending.error.reason == "child_not_started"
    assert "no such program: serber" in play.session.ending.error.message


def test_exit_of_the_child_ends_the_session_with_its_code_and_last_words(play: Play) -> None:
    play.reports("exited", code=3, signal=None, seconds=1.5, stderr_tail="Traceback: no disk\n")
    assert play.session.ending is not None
    assert play.session.ending.reason is Reason.PROCESS_EXIT
    error = play.session.ending.error
    assert (error.reason, error.data) == ("child_exited", {"exit_code": 3, "signal": None})
    assert "Traceback: no disk" in error.message


def test_child_that_was_killed_ends_the_session_with_the_signal(play: Play) -> None:
    play.reports("exited", code=None, signal="SIGKILL", seconds=1.5, stderr_tail="")
    assert play.session.ending is not None
    assert play.session.ending.error.data == {"exit_code": None, "signal": "SIGKILL"}


def test_report_is_acknowledged_at_once(play: Play) -> None:
    play.reports("exited", code=0)
    assert play.link.has_news


def test_failing_session_answers_all_calls_in_the_childs_place(play: Play) -> None:
    play.calls(1, "A")
    play.calls("1", "B")
    play.calls(2, "C")
    play.session.routing.stream_gone("C")
    answered = play.session.fail(SessionEnded("over"), 1.0)
    assert failures(answered) == [("A", 1, "session_ended"), ("B", "1", "session_ended")]
    assert [d.raw for d in answered] == [error_response(i, SessionEnded("over")) for i in (1, "1")]
    assert play.outcomes() == [(c, "session_ended") for c in ("1", "1", "2")]
    assert play.session.calls == 0


def test_dropped_oversized_message_fails_every_running_call(play: Play) -> None:
    play.calls(1, "A")
    play.calls(2, "B")
    failed = play.reports("oversized", bytes=20_000_000, limit=16_777_216)
    assert failures(failed) == [("A", 1, "answer_too_big"), ("B", 2, "answer_too_big")]
    assert (play.answers(1), play.dropped()) == ([], [])


def test_unknown_report_is_dropped_and_told(play: Play) -> None:
    assert (play.reports("party"), play.dropped()) == ([], ["agent event"])


def test_stderr_of_the_child_is_told(play: Play) -> None:
    payload = json.dumps({"stderr": "hello\x1b[0m", "dropped": 2}).encode()
    assert play.sends(Channel.LOG, payload) == []
    assert play.told == [events.ChildLog(session="s-1", text="hello\x1b[0m", dropped=2)]


def log_line(text: str) -> bytes:
    return json.dumps({"stderr": text}).encode()


def test_stderr_beyond_so_many_lines_in_a_second_is_counted_not_told(play: Play) -> None:
    for number in range(LOG_LINES_PER_S + 3):
        play.sends(Channel.LOG, log_line(str(number)), at=0.5)
    play.sends(Channel.LOG, log_line("later"), at=1.5)
    told = [(e.text, e.dropped) for e in play.told if isinstance(e, events.ChildLog)]
    assert told == [(str(n), 0) for n in range(LOG_LINES_PER_S)] + [("later", 3)]


def test_last_words_are_the_last_lines_each_cut_to_a_bound(play: Play) -> None:
    for number in range(LAST_WORDS + 1):
        play.sends(Channel.LOG, log_line(f"{number} " + "x" * LAST_WORD))
    words = [f"{n} {'x' * LAST_WORD}"[:LAST_WORD] for n in range(1, LAST_WORDS + 1)]
    assert list(play.session.chatter.last_words) == words


def test_noise_is_counted_and_sampled_and_reaches_nobody(play: Play) -> None:
    play.calls(1, "A")
    assert play.says(b"Listening on \xff" + b"x" * 1000) == []
    assert play.says(b"[1]") == []
    sample = ("Listening on \\xff" + "x" * 1000)[: NOISE_SAMPLE + 3]
    assert play.told[1:] == [
        events.Noise(session="s-1", sample=sample, total=1),
        events.Noise(session="s-1", sample="[1]", total=2),
    ]


def test_noise_is_acknowledged(play: Play) -> None:
    play.says(b"noise")
    assert play.acknowledged()


# Time


def test_call_that_runs_too_long_is_answered_in_the_childs_place(play: Play) -> None:
    play.calls(1, "A", at=0.0)
    play.calls(2, "B", at=1.0)
    assert play.session.tick(TIMEOUT_S - 0.001) == []
    assert failures(play.session.tick(TIMEOUT_S)) == [("A", 1, "call_timeout")]
    assert failures(play.session.tick(TIMEOUT_S + 1.0)) == [("B", 2, "call_timeout")]


def test_late_answer_to_a_call_that_ran_too_long_is_swallowed(play: Play) -> None:
    play.calls(1, "A")
    play.session.tick(TIMEOUT_S)
    assert (play.answers(1), play.dropped()) == ([], [])


def test_quiet_session_is_called_idle_once(play: Play) -> None:
    play.reports("spawned", at=5.0, pid=1)
    play.session.tick(5.0 + QUIET_S - 0.001)
    before = play.record.state
    play.session.tick(5.0 + QUIET_S)
    play.session.tick(5.0 + 2 * QUIET_S)
    assert (before, play.record.state) == (State.READY, State.IDLE)
    assert play.told[1:] == [events.Idle(session="s-1", calls=0)]


def test_session_that_runs_a_call_is_never_idle(play: Play) -> None:
    play.reports("spawned", pid=1)
    play.calls(1, "A")
    play.session.tick(QUIET_S * 10)
    assert play.record.state is State.READY


def test_call_wakes_an_idle_session(play: Play) -> None:
    play.reports("spawned", pid=1)
    play.session.tick(QUIET_S)
    play.calls(1, "A", at=QUIET_S + 1)
    assert play.record.state is State.READY


def test_client_messages_and_ends_of_calls_are_activity(play: Play) -> None:
    seen = []
    play.calls(1, "A", at=1.0)
    seen.append(play.session.active)
    play.notifies(LOG, at=2.0)
    seen.append(play.session.active)
    play.answers(1, at=3.0)
    seen.append(play.session.active)
    assert seen == [1.0, 2.0, 3.0]


def test_chatter_of_the_child_and_heartbeats_are_no_activity(play: Play) -> None:
    play.says(LOG, at=5.0)
    play.says(b"noise", at=5.0)
    play.sends(Channel.LOG, b'{"stderr":"x"}', at=5.0)
    for beat in play.agent.tick(30.0):
        play.session.receive(beat, 30.0)
    assert play.session.active == 0.0


# Hostile agents

BAD_REPORTS = [
    {"event": "oversized", "bytes": HALF, "limit": HALF},
    {"event": "oversized", "bytes": [[]], "limit": None},
    {"event": "oversized", "bytes": "x" * 200_000},
    {"event": "spawn_failed", "message": HALF},
    {"event": "spawn_failed", "message": {"a": [None]}},
    {"event": "exited", "code": HALF},
    {"event": "exited", "code": 10**400, "signal": [HALF]},
    {"event": "exited", "code": float("nan"), "stderr_tail": HALF},
    {"event": "exited", "code": {"a": 1}, "stderr_tail": 7},
]


@pytest.mark.parametrize("report", BAD_REPORTS, ids=range(len(BAD_REPORTS)))
def test_calls_are_answered_whatever_the_agent_reports(play: Play, report: dict[str, Any]) -> None:
    play.calls(1, "A")
    answered = play.sends(Channel.EVENT, json.dumps(report).encode())
    if play.session.ending is not None:
        answered += play.session.fail(play.session.ending.error, 0.0)
    assert [(d.stream, json.loads(d.raw)["id"], d.last) for d in answered] == [("A", 1, True)]


def test_request_of_the_child_with_an_id_near_the_message_limit_harms_nobody() -> None:
    """The refusal that echoes such an id would itself be over the limit."""
    play = Play(TIGHT)
    for _ in range(BACKLOG_MESSAGES):
        play.says(LOG)
        play.child_reads()
    empty = message(id="", method="a")
    assert play.says(message(id="x" * (TIGHT.message_bytes - len(empty)), method="a")) == []


def test_refusals_for_a_child_that_asks_and_never_reads_are_bounded() -> None:
    play = Play(TIGHT)
    for number in range(3000):
        assert play.says(message(id=number, method="ping")) == []
        for frame in all_frames(play.link):  # acknowledgements arrive, nothing is read
            play.agent.receive(frame, 0.0)
    assert play.link.backlog(Channel.RPC) <= TIGHT.window_bytes


texts = st.sampled_from(["", "1", "a", HALF, "\n", "é", "x" * 300])
small_ids = st.sampled_from([1, 2, 3, 0, -1, 2**70, "1", "2", "", HALF, None, True, 1.0])
json_bits = st.none() | st.integers() | texts | st.lists(texts, max_size=2)
near_messages = st.dictionaries(
    st.sampled_from(["id", "method", "params", "result", "error", "x"]),
    small_ids
    | st.sampled_from(["notifications/progress", "notifications/message", "ping", "initialize"])
    | st.fixed_dictionaries({"progressToken": small_ids, "requestId": small_ids}),
    max_size=4,
).map(lambda keys: json.dumps({"jsonrpc": "2.0", **keys}).encode())
near_reports = st.fixed_dictionaries(
    {"event": st.sampled_from(["spawned", "spawn_failed", "exited", "oversized", "", "x"])},
    optional=dict.fromkeys(
        ("pid", "message", "code", "signal", "stderr_tail", "bytes", "limit", "seconds"), json_bits
    ),
).map(lambda report: json.dumps(report).encode())
near_replays = st.builds(
    Replayed, st.integers(0, 3), st.sampled_from([0, 1, 2, 9, 2**64 - 1]), near_messages
).map(Replayed.encode)
hostile = st.lists(
    st.tuples(st.just(Channel.REPLAY), near_replays)
    | st.tuples(
        st.sampled_from(list(Channel)), st.binary(max_size=40) | near_messages | near_reports
    )
    | st.tuples(st.just(Channel.RPC), near_messages)
    | st.tuples(st.just(Channel.EVENT), near_reports),
    max_size=20,
)


def stage() -> Play:
    """Calls that run, one that ended, one whose client came back, a GET stream that is gone."""
    play = Play()
    play.session.routing.open_general("GET")
    play.session.routing.stream_gone("GET")
    for request_id, stream in ((1, "A"), ("1", "B"), (2, "ended"), (3, "gone")):
        play.calls(request_id, stream, _meta={"progressToken": request_id})
    play.answers(2)
    play.session.routing.stream_gone("gone")
    play.session.routing.resume("back", label(3), 1)
    return play


@pytest.mark.no_cover  # counting lines takes longer than the test; others count them
@given(hostile)
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
def test_agent_can_say_nothing_that_raises_or_reaches_a_stranger(
    said: list[tuple[Channel, bytes]],
) -> None:
    play = stage()
    ended: list[str] = []
    owners = {"A": 1, "B": "1", "back": 3}
    for channel, payload in said:
        try:
            deliveries = play.sends(channel, payload)
        except ProtocolViolation:
            assert channel is Channel.REPLAY
            assert len(payload) < REPLAY_HEAD_BYTES
            return
        for delivery in deliveries:
            assert delivery.stream in owners
            assert delivery.stream not in ended
            if delivery.last:
                answered = json.loads(delivery.raw)["id"]
                assert (type(answered), answered) == (
                    type(owners[delivery.stream]),
                    owners[delivery.stream],
                )
                ended.append(delivery.stream)
    if play.session.ending is not None:
        ended += [d.stream for d in play.session.fail(play.session.ending.error, 0.0)]
        assert sorted(ended) == ["A", "B", "back"]


headers = st.tuples(
    st.sampled_from([0, 0x10, 0x20, 0x21, 0xFF]),
    st.integers(0, 4),
    st.integers(0, 5),
    st.sampled_from([0, 1, 2, 3, 2**63, 2**64 - 1]),
    st.sampled_from([0, 1, 2, 2**64 - 1]),
)
near_frames = st.tuples(headers, st.binary(max_size=30)).map(
    lambda both: (
        bytes([both[0][0], both[0][1]])
        + both[0][2].to_bytes(2, "big")
        + both[0][3].to_bytes(8, "big")
        + both[0][4].to_bytes(8, "big")
        + both[1]
    )
)


@pytest.mark.no_cover  # counting lines takes longer than the test; others count them
@given(st.lists(st.binary(max_size=60) | near_frames, max_size=12))
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
def test_frames_of_a_hostile_agent_raise_nothing_but_a_violation(frames: list[bytes]) -> None:
    play = Play()
    play.calls(1, "A")
    for frame in frames:
        try:
            assert play.session.receive(frame, 0.0) == []
        except ProtocolViolation:
            return


def test_closing_session_still_takes_what_was_under_way(play: Play) -> None:
    play.calls(1, "A")
    play.record.move(Step.END)
    play.reports("spawned", pid=1)
    assert [d.stream for d in play.answers(1)] == ["A"]
    assert play.record.state is State.CLOSING
