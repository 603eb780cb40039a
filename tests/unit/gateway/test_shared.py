"""Playbooks of one session with several callers: who reads what, under which id.

A real link endpoint plays the agent; streams are plain names. Proves that callers who use the same
ids and tokens never meet, that a caller who leaves takes back its request and nothing else, and
that no child, however hostile, reaches a caller who has not asked it.
"""

import json
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyno_agent.link import DEFAULT_LIMITS, Channel, Endpoint, Limits, Message
from dyno_agent.link.resumption import MAX_ID, JournalPage, RunningCall
from gateway import events
from gateway.eras import modern
from gateway.eras.correlation import MAX_CALLS
from gateway.eras.modern import (
    CAPABILITIES_KEY,
    LISTEN,
    LOG_LEVEL_KEY,
    REVISION,
    REVISION_KEY,
    SUBSCRIPTION_KEY,
)
from gateway.errors import BadMessage, Busy, MessageTooBig, SessionEnded
from gateway.jsonrpc import peek
from gateway.registry.servers import ServerDefinition
from gateway.sessions.delivery import Delivery
from gateway.sessions.record import Reason, SessionRecord, State, Step
from gateway.sessions.seals import Kind, Seals, bound_to
from gateway.sessions.session import PHASE_STEP
from gateway.sessions.shared import LEVELS, MAX_LISTENS, SharedSession

TIGHT = Limits(
    message_bytes=100_000,
    window_bytes=165_552,
    window_frames=16,
    ack_bytes=10_000,
    ack_frames=4,
)
TIMEOUT_S = 60.0
SECRET = b"s" * 32
IDS: list[int | str] = [1, "1", 0, "", -1, 2**53, "é"]
"""What clients write as ids and tokens; each unlike all others."""

Deliveries = list[Delivery[str]]


def message(**keys: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **keys}, separators=(",", ":")).encode()


def asking(
    request_id: int | str,
    method: str = "tools/call",
    *,
    token: int | str | None = None,
    level: str | None = None,
    **params: Any,
) -> bytes:
    meta: dict[str, Any] = {REVISION_KEY: REVISION, CAPABILITIES_KEY: {}}
    if token is not None:
        meta["progressToken"] = token
    if level is not None:
        meta[LOG_LEVEL_KEY] = level
    return message(id=request_id, method=method, params={**params, "_meta": meta})


def notice(method: str, **params: Any) -> bytes:
    return message(method=f"notifications/{method}", params=params)


def tagged(tag: int | str, method: str = "tools/list_changed") -> bytes:
    return notice(method, _meta={SUBSCRIPTION_KEY: tag})


def progress(token: int | str, done: float = 1) -> bytes:
    return notice("progress", progressToken=token, progress=done)


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
        self.record.launch_id = "launch"
        self.link = Endpoint(limits, now=0.0)
        self.agent = Endpoint(limits, now=0.0)
        self.link.attach(0, 0.0)
        self.agent.attach(0, 0.0)
        self.told: list[events.Event] = []
        self.seals = Seals(SECRET)
        self.session: SharedSession[str] = SharedSession(
            self.record, self.link, self.told.append, TIMEOUT_S, self.seals
        )
        self._clock = 0.0

    # The callers

    def hands(self, raw: bytes, stream: str, at: float = 0.0, word: str | None = None) -> None:
        """Hand a request to the session."""
        self.session.request(modern.read(peek(raw)), len(raw), stream, at, word)

    def asks(self, request_id: int | str, stream: str, *, at: float = 0.0, **rest: Any) -> Any:
        """Hand a request to the session; return it as the child reads it."""
        self.hands(asking(request_id, **rest), stream, at)
        (read,) = self.child_reads()
        return read

    def listens(self, request_id: int | str, stream: str, *, at: float = 0.0, **rest: Any) -> Any:
        """Open a subscription; return what the child knows it by."""
        return self.asks(request_id, stream, method=LISTEN, notifications={}, at=at, **rest)["id"]

    # The agent

    def sends(self, channel: Channel, payload: bytes, at: float = 0.0) -> Deliveries:
        self.agent.send(channel, payload)
        frames = all_frames(self.agent, at)
        return [delivery for frame in frames for delivery in self.session.receive(frame, at)]

    def says(self, raw: bytes, at: float = 0.0) -> Deliveries:
        return self.sends(Channel.RPC, raw, at)

    def answers(self, request: Any, **result: Any) -> Deliveries:
        return self.says(message(id=request["id"], result=result))

    def reports(self, event: str, at: float = 0.0, **facts: Any) -> Deliveries:
        payload = json.dumps({"event": event, **facts}).encode()
        return self.sends(Channel.EVENT, payload, at)

    def child_reads(self) -> list[Any]:
        """What the child was given since the last look."""
        return [json.loads(got.payload) for got in self._read() if got.channel is Channel.RPC]

    def _read(self) -> list[Message]:
        read = []
        for frame in all_frames(self.link):
            got = self.agent.receive(frame, 0.0)
            if got is not None:
                self.agent.consumed(got)
                read.append(got)
        return read

    def cancelled(self) -> list[Any]:
        """The requests that were taken back at the child since the last look; nothing else."""
        read = self.child_reads()
        assert {each["method"] for each in read} <= {"notifications/cancelled"}
        return [each["params"]["requestId"] for each in read]

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


def told(deliveries: Deliveries) -> list[tuple[str, Any, bool]]:
    """Stream, message and whether the stream ends with it."""
    return [(d.stream, json.loads(d.raw) if d.raw else None, d.last) for d in deliveries]


def result(request_id: int | str, **members: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": request_id, "result": members}


def complete(request_id: int | str) -> dict[str, Any]:
    """What ends a subscription in good order."""
    return result(request_id, resultType="complete", _meta={SUBSCRIPTION_KEY: request_id})


def errors(deliveries: Deliveries) -> list[tuple[str, Any, str]]:
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


# Ids and tokens


@pytest.mark.parametrize("request_id", IDS, ids=repr)
def test_answer_comes_back_under_its_callers_own_id(play: Play, request_id: int | str) -> None:
    request = play.asks(request_id, "A")
    assert told(play.answers(request, x=1)) == [("A", result(request_id, x=1), True)]


@pytest.mark.parametrize("request_id", IDS, ids=repr)
def test_equal_ids_in_flight_at_once_are_different_ids_to_the_child(
    play: Play, request_id: int | str
) -> None:
    first, second = play.asks(request_id, "A"), play.asks(request_id, "B")
    got = [d.stream for request in (second, first) for d in play.answers(request)]
    assert (first["id"] != second["id"], got) == (True, ["B", "A"])


def test_id_in_flight_is_not_given_out_again_after_many_answers(play: Play) -> None:
    first = play.asks(1, "A")
    later = [play.asks(1, "B") for _ in range(5)]
    for request in later:
        play.answers(request)
    assert first["id"] not in [play.asks(1, "C")["id"] for _ in range(5)]


@pytest.mark.parametrize("token", IDS, ids=repr)
def test_progress_comes_back_under_its_callers_own_token(play: Play, token: int | str) -> None:
    request = play.asks(1, "A", token=token)
    ours = request["params"]["_meta"]["progressToken"]
    got = told(play.says(progress(ours, 0.5)))
    assert got == [("A", json.loads(progress(token, 0.5)), False)]


@pytest.mark.parametrize("token", IDS, ids=repr)
def test_equal_tokens_in_flight_at_once_never_meet(play: Play, token: int | str) -> None:
    asked = [play.asks(1, stream, token=token) for stream in "AB"]
    ours = [request["params"]["_meta"]["progressToken"] for request in asked]
    got = [d.stream for token in reversed(ours) for d in play.says(progress(token))]
    assert got == ["B", "A"]


def test_caller_that_wants_no_progress_gets_no_token(play: Play) -> None:
    assert "progressToken" not in play.asks(1, "A")["params"]["_meta"]


def test_progress_for_a_caller_that_wants_none_is_dropped_and_told(play: Play) -> None:
    request = play.asks(1, "A")
    assert play.says(progress(request["id"])) == []
    assert play.dropped() == ["notifications/progress"]


def test_everything_else_in_a_request_keeps_its_bytes(play: Play) -> None:
    raw = asking(1, name="é").replace(b'"name":', b'"n" :[1.50, 1e2],"name":')
    play.hands(raw, "A")
    (got,) = [m.payload for m in play._read()]
    assert b"[1.50, 1e2]" in got


def test_everything_else_in_an_answer_keeps_its_bytes(play: Play) -> None:
    request = play.asks(1, "A")
    raw = b'{"jsonrpc":"2.0","id":%d,"result":{"b":[1.50, 1e2],"a":1,"a":2}}' % request["id"]
    (delivery,) = play.says(raw)
    assert b'{"b":[1.50, 1e2],"a":1,"a":2}' in delivery.raw


def test_line_ends_between_tokens_become_blanks_in_both_directions(play: Play) -> None:
    raw = asking(1, arguments={"a": 1}).replace(b'{"a":1}', b'{"a":\r\n1}')
    play.hands(raw, "A")
    (got,) = [m.payload for m in play._read()]
    (delivery,) = play.says(b'{"jsonrpc":"2.0","id":1,"result":{"a":\r1,"taskId":"t"}}')
    assert (b"\n" in got, b"\r" in got, b"\r" in delivery.raw) == (False, False, False)
    assert b'{"a":  1}' in got


def test_error_of_the_child_comes_back_under_its_callers_own_id(play: Play) -> None:
    request = play.asks("x", "A")
    error = {"code": -32601, "message": "no", "data": {"a": [1]}}
    (delivery,) = play.says(message(id=request["id"], error=error))
    answer = {"jsonrpc": "2.0", "id": "x", "error": error}
    assert (json.loads(delivery.raw), delivery.code, delivery.error) == (answer, -32601, None)


@pytest.mark.parametrize("where", ["id", "token"])
def test_id_or_token_too_long_to_be_carried_is_refused_and_not_forwarded(
    play: Play, where: str
) -> None:
    long = "x" * (MAX_ID + 1)
    raw = asking(long) if where == "id" else asking(1, token=long)
    with pytest.raises(BadMessage):
        play.hands(raw, "A")
    assert (play.child_reads(), play.session.calls) == ([], 0)


def test_finished_call_is_told_with_its_callers_own_id(play: Play) -> None:
    raw = asking("x", name="echo")
    play.hands(raw, "A", 1.0)
    (request,) = play.child_reads()
    answer = message(id=request["id"], result={})
    play.says(answer, 1.5)
    (told,) = (event for event in play.told if isinstance(event, events.CallFinished))
    assert told == (
        events.CallFinished(
            session="s-1",
            server="everything",
            call="x",
            method="tools/call",
            tool="echo",
            outcome="ok",
            ms=500.0,
            bytes_in=len(raw),
            bytes_out=len(answer),
        )
    )


def test_answer_is_acknowledged_only_once_its_stream_has_written_it(play: Play) -> None:
    (delivery,) = play.answers(play.asks(1, "A"))
    before = play.acknowledged()
    play.session.delivered(delivery)
    assert (before, play.acknowledged()) == (False, True)


def test_message_of_a_caller_that_has_left_is_acknowledged(play: Play) -> None:
    (delivery,) = play.answers(play.asks(1, "A"))
    play.session.undelivered(delivery)
    assert play.acknowledged()


# A child that says what it should not


def test_second_answer_is_dropped_and_told(play: Play) -> None:
    request = play.asks(1, "A")
    play.answers(request)
    assert (play.answers(request), play.dropped()) == ([], ["response"])


def test_second_answer_to_a_listen_is_dropped(play: Play) -> None:
    listen = {"id": play.listens(1, "A")}
    play.answers(listen)
    assert play.answers(listen) == []


@pytest.mark.parametrize("foreign", ["1", 2, "x", None], ids=repr)
def test_answer_nobody_asked_for_reaches_nobody(play: Play, foreign: Any) -> None:
    assert play.asks("x", "A")["id"] == 1
    assert play.says(message(id=foreign, error={})) == []
    assert (play.dropped(), play.session.calls) == (["response"], 1)


def test_request_of_the_child_is_refused_since_this_era_has_none(play: Play) -> None:
    play.asks(1, "A")
    assert play.says(message(id="q", method="roots/list")) == []
    (refused,) = play.child_reads()
    assert (refused["id"], refused["error"]["code"]) == ("q", -32601)


@pytest.mark.parametrize("params", [{}, {"_meta": {}}, {"uri": "x"}, {"_meta": 1}, [1]])
def test_notification_that_names_no_call_reaches_nobody(play: Play, params: Any) -> None:
    play.asks(1, "A", token=1, level="debug")
    play.listens(2, "B")
    assert play.says(message(method="notifications/tools/list_changed", params=params)) == []
    assert play.dropped() == ["notifications/tools/list_changed"]


def test_tag_of_another_call_than_a_listen_reaches_nobody(play: Play) -> None:
    request = play.asks(1, "A", token=1)
    assert play.says(tagged(request["id"])) == []


def test_progress_with_the_id_of_a_listen_reaches_nobody(play: Play) -> None:
    drawn = play.listens(1, "A", token=1)
    assert play.says(progress(drawn)) == []


def test_cancellation_by_the_child_of_a_call_ends_nothing(play: Play) -> None:
    request = play.asks(1, "A")
    assert play.says(notice("cancelled", requestId=request["id"])) == []
    assert told(play.answers(request)) == [("A", result(1), True)]


# Leaving


def test_caller_that_hangs_up_takes_its_request_back_at_the_child(play: Play) -> None:
    request = play.asks("x", "A", token="t")
    play.session.stream_gone("A", 0.0)
    assert (play.cancelled(), play.outcomes()) == ([request["id"]], [("x", "cancelled")])


def test_late_answer_to_a_caller_that_has_left_is_swallowed_in_silence(play: Play) -> None:
    request = play.asks(1, "A")
    play.session.stream_gone("A", 0.0)
    assert (play.answers(request), play.dropped()) == ([], [])
    assert play.acknowledged()


def test_progress_for_a_caller_that_has_left_reaches_nobody(play: Play) -> None:
    request = play.asks(1, "A", token=1)
    play.asks(1, "B", token=1)
    play.session.stream_gone("A", 0.0)
    assert play.says(progress(request["params"]["_meta"]["progressToken"])) == []


def test_callers_that_stay_are_not_disturbed_by_one_that_leaves(play: Play) -> None:
    play.asks(1, "A", token=1)
    stays = play.asks(1, "B", token=1)
    play.session.stream_gone("A", 0.0)
    play.cancelled()
    got = play.says(progress(stays["params"]["_meta"]["progressToken"])) + play.answers(stays)
    assert [d.stream for d in got] == ["B", "B"]


def test_caller_that_leaves_after_its_answer_cancels_nothing(play: Play) -> None:
    play.answers(play.asks(1, "A"))
    play.session.stream_gone("A", 0.0)
    assert (play.cancelled(), play.outcomes()) == ([], [("1", "ok")])


def test_id_can_be_used_again_after_its_caller_has_left(play: Play) -> None:
    first = play.asks(1, "A")
    play.session.stream_gone("A", 0.0)
    play.cancelled()
    second = play.asks(1, "B")
    assert play.answers(first, late=True) == []
    assert told(play.answers(second, new=True)) == [("B", result(1, new=True), True)]


def test_caller_of_a_listen_that_hangs_up_takes_it_back_at_the_child(play: Play) -> None:
    drawn = play.listens(1, "A")
    play.session.stream_gone("A", 0.0)
    assert (play.cancelled(), play.says(tagged(drawn))) == ([drawn], [])


# Log messages


LOG = notice("message", level="info", data={"a": 1.5})


def test_log_message_reaches_the_only_caller_that_wants_any(play: Play) -> None:
    play.asks(1, "A")
    play.asks(1, "B", level="debug")
    play.listens(1, "C")
    assert told(play.says(LOG)) == [("B", json.loads(LOG), False)]


def test_log_message_reaches_nobody_if_two_callers_want_any(play: Play) -> None:
    play.asks(1, "A", level="debug")
    play.asks(1, "B", level="debug")
    assert (play.says(LOG), play.dropped()) == ([], ["notifications/message"])


def test_log_message_reaches_nobody_if_no_caller_wants_any(play: Play) -> None:
    play.asks(1, "A")
    assert (play.says(LOG), play.dropped()) == ([], ["notifications/message"])


def test_log_message_reaches_the_caller_that_is_left(play: Play) -> None:
    play.asks(1, "A", level="debug")
    second = play.asks(1, "B", level="debug")
    play.answers(second)
    assert [d.stream for d in play.says(LOG)] == ["A"]


@pytest.mark.parametrize("wanted", LEVELS)
@pytest.mark.parametrize("level", LEVELS)
def test_log_message_below_the_wanted_level_is_left_out(
    play: Play, wanted: str, level: str
) -> None:
    play.asks(1, "A", level=wanted)
    passes = bool(play.says(notice("message", level=level, data="x")))
    assert passes == (LEVELS.index(level) >= LEVELS.index(wanted))


def test_left_out_log_message_is_acknowledged(play: Play) -> None:
    play.asks(1, "A", level="error")
    play.says(LOG)
    assert play.acknowledged()


@pytest.mark.parametrize(("wanted", "level"), [("loud", "info"), ("error", "loud")])
def test_log_message_of_an_unknown_level_passes(play: Play, wanted: str, level: str) -> None:
    play.asks(1, "A", level=wanted)
    assert len(play.says(notice("message", level=level, data="x"))) == 1


# Listening


@pytest.mark.parametrize("request_id", IDS, ids=repr)
def test_subscription_carries_its_callers_own_id_from_first_to_last(
    play: Play, request_id: int | str
) -> None:
    drawn = play.listens(request_id, "A")
    got = play.says(tagged(drawn, "subscriptions/acknowledged")) + play.says(tagged(drawn))
    got += play.answers({"id": drawn}, _meta={SUBSCRIPTION_KEY: drawn})
    read = [json.loads(delivery.raw) for delivery in got]
    bodies = [each["params"] for each in read[:2]] + [each["result"] for each in read[2:]]
    assert [body["_meta"] for body in bodies] == [{SUBSCRIPTION_KEY: request_id}] * 3
    assert [d.last for d in got] == [False, False, True]


def test_other_members_of_a_tagged_notification_stay(play: Play) -> None:
    drawn = play.listens("mine", "A")
    meta = {"x": 1, SUBSCRIPTION_KEY: drawn}
    ((_, got, _),) = told(play.says(notice("resources/updated", uri="a://b", _meta=meta)))
    assert got["params"] == {"uri": "a://b", "_meta": {"x": 1, SUBSCRIPTION_KEY: "mine"}}


def test_notification_reaches_the_one_subscription_that_it_names(play: Play) -> None:
    play.listens(1, "A")
    second = play.listens(1, "B")
    assert [d.stream for d in play.says(tagged(second))] == ["B"]


def test_listen_that_the_child_cancels_ends_in_good_order(play: Play) -> None:
    drawn = play.listens("mine", "A")
    got = told(play.says(notice("cancelled", requestId=drawn)))
    assert got == [("A", complete("mine"), True)]


def test_listen_that_the_child_has_ended_takes_up_no_memory(play: Play) -> None:
    for _ in range(3):
        play.says(notice("cancelled", requestId=play.listens(1, "A")))
    assert not play.session._kept


def test_answer_after_the_child_has_cancelled_its_listen_is_swallowed(play: Play) -> None:
    drawn = play.listens(1, "A")
    play.says(notice("cancelled", requestId=drawn))
    assert (play.answers({"id": drawn}), play.dropped()) == ([], [])


def test_listen_ends_in_good_order_when_the_session_ends(play: Play) -> None:
    play.says(tagged(play.listens("mine", "A"), "subscriptions/acknowledged"))
    got = told(play.session.fail(SessionEnded("over"), 0.0))
    assert got == [("A", complete("mine"), True)]


def test_listen_that_never_began_ends_with_the_error(play: Play) -> None:
    play.listens("mine", "A")
    assert errors(play.session.fail(SessionEnded("over"), 0.0)) == [("A", "mine", "session_ended")]


def test_held_listen_ends_in_good_order_when_the_boot_fails(play: Play) -> None:
    held(play, "mine", "A")
    play.session.start(0.0)
    got = told(play.session.fail(SessionEnded("over"), 0.0))
    assert got == [("A", complete("mine"), True)]


def test_listen_is_no_call_that_keeps_a_session_alive(play: Play) -> None:
    drawn = play.listens(1, "A", at=5.0)
    play.says(tagged(drawn), 900.0)
    assert (play.session.calls, play.session.active) == (0, 5.0)


def test_listen_may_take_longer_than_a_call(play: Play) -> None:
    drawn = play.listens(1, "A")
    assert play.session.tick(100 * TIMEOUT_S) == []
    assert [d.stream for d in play.says(tagged(drawn))] == ["A"]


def test_one_listen_too_many_is_refused(play: Play) -> None:
    for n in range(MAX_LISTENS):
        play.listens(1, f"{n}")
    with pytest.raises(Busy):
        play.hands(asking(1, LISTEN, notifications={}), "A")
    assert play.child_reads() == []


def test_listen_that_has_ended_makes_room_for_another(play: Play) -> None:
    play.listens(1, "first")
    for n in range(1, MAX_LISTENS):
        play.listens(1, f"{n}")
    play.session.stream_gone("first", 0.0)
    play.cancelled()
    assert play.listens(1, "A")


def test_listens_leave_calls_their_room(play: Play) -> None:
    for n in range(MAX_LISTENS):
        play.listens(1, f"{n}")
    assert play.asks(1, "A")


@pytest.mark.parametrize("kind", ["tools", "prompts", "resources"])
def test_changed_list_contradicts_the_catalogue_even_if_nobody_listens(
    play: Play, kind: str
) -> None:
    before = play.session.contradicts
    play.says(notice(f"{kind}/list_changed"))
    assert (before, play.session.contradicts) == (False, True)


# Listening before there is a child


def held(play: Play, request_id: int | str, stream: str) -> Deliveries:
    raw = asking(request_id, LISTEN, notifications={"toolsListChanged": True})
    asked = modern.read(peek(raw))
    return play.session.hold(asked, len(raw), stream, 0.0, frozenset({"tools"}))


@pytest.mark.parametrize("request_id", IDS, ids=repr)
def test_held_listen_is_acknowledged_at_once_under_its_callers_own_id(
    play: Play, request_id: int | str
) -> None:
    ((stream, got, last),) = told(held(play, request_id, "A"))
    assert (stream, got["method"], last) == ("A", "notifications/subscriptions/acknowledged", False)
    assert got["params"]["_meta"] == {SUBSCRIPTION_KEY: request_id}


def test_child_hears_of_held_listens_when_it_starts(play: Play) -> None:
    held(play, 1, "A")
    held(play, 1, "B")
    before = play.child_reads()
    play.session.start(0.0)
    read = play.child_reads()
    assert (before, [each["method"] for each in read]) == ([], [LISTEN, LISTEN])
    got = [d.stream for listen in reversed(read) for d in play.says(tagged(listen["id"]))]
    assert got == ["B", "A"]


def test_held_listen_is_acknowledged_only_once(play: Play) -> None:
    held(play, 1, "A")
    play.session.start(0.0)
    (listen,) = play.child_reads()
    assert play.says(tagged(listen["id"], "subscriptions/acknowledged")) == []
    assert play.acknowledged()


def test_child_never_hears_of_a_listen_that_ended_before_it_started(play: Play) -> None:
    held(play, 1, "A")
    play.session.stream_gone("A", 0.0)
    play.session.start(0.0)
    assert play.child_reads() == []


def test_held_listen_that_hangs_up_later_is_taken_back_at_the_child(play: Play) -> None:
    held(play, 1, "A")
    play.session.start(0.0)
    (listen,) = play.child_reads()
    play.session.stream_gone("A", 0.0)
    assert play.cancelled() == [listen["id"]]


def test_one_held_listen_too_many_is_refused(play: Play) -> None:
    for n in range(MAX_LISTENS):
        held(play, 1, f"{n}")
    with pytest.raises(Busy):
        held(play, 1, "A")


@pytest.mark.parametrize("ends", ["answer", "cancelled"])
def test_held_listen_that_the_child_has_ended_takes_up_no_memory(play: Play, ends: str) -> None:
    held(play, 1, "A")
    play.session.start(0.0)
    (listen,) = play.child_reads()
    answer = message(id=listen["id"], result={})
    play.says(answer if ends == "answer" else notice("cancelled", requestId=listen["id"]))
    assert play.session._kept == {}


# What a caller has to bring back


def opened(play: Play, text: str, kind: Kind, bound: str) -> tuple[str, str, str]:
    seal = play.seals.open(text, kind, "me", bound, 60.0)
    return seal.fingerprint, seal.launch_id, seal.word


def test_task_keeps_the_id_that_its_caller_knows_it_by(play: Play) -> None:
    play.hands(asking(1, "tasks/get", taskId="sealed"), "A", word="t-1")
    (request,) = play.child_reads()
    assert request["params"]["taskId"] == "t-1"
    ((_, answer, _),) = told(play.answers(request, taskId="t-1", status="working"))
    assert answer["result"]["taskId"] == "sealed"


def test_request_state_is_sealed_for_its_own_request(play: Play) -> None:
    raw = asking(1, name="work", arguments={"a": 1})
    play.hands(raw, "A")
    (request,) = play.child_reads()
    ((_, answer, _),) = told(play.answers(request, requestState="word", inputRequests={"a": 1}))
    text = answer["result"]["requestState"]
    bound = bound_to("tools/call", modern.read(peek(raw)).params)
    assert opened(play, text, "requestState", bound) == ("key", "launch", "word")
    assert answer["result"]["inputRequests"] == {"a": 1}


def test_cursor_is_sealed_for_its_list(play: Play) -> None:
    request = play.asks(1, "A", method="tools/list")
    ((_, answer, _),) = told(play.answers(request, nextCursor="word", tools=[]))
    text = answer["result"]["nextCursor"]
    assert opened(play, text, "cursor", "tools/list") == ("key", "launch", "word")


def test_task_id_is_sealed_for_any_request_about_the_task(play: Play) -> None:
    request = play.asks(1, "A")
    ((_, answer, _),) = told(play.answers(request, resultType="task", taskId="word"))
    assert opened(play, answer["result"]["taskId"], "taskId", "") == ("key", "launch", "word")


@pytest.mark.parametrize("key", ["requestState", "nextCursor", "taskId"])
def test_word_of_the_child_is_never_readable(play: Play, key: str) -> None:
    (delivery,) = play.answers(play.asks(1, "A"), **{key: "plain-word"})
    assert b"plain-word" not in delivery.raw


@pytest.mark.parametrize(
    ("method", "key"),
    [("tools/call", "requestState"), ("tools/list", "cursor"), ("tasks/get", "taskId")],
)
def test_child_reads_its_own_word_again(play: Play, method: str, key: str) -> None:
    play.hands(asking(1, method, **{key: "sealed"}), "A", word="own")
    (request,) = play.child_reads()
    assert request["params"][key] == "own"


def test_request_state_wins_where_a_request_brings_several_words(play: Play) -> None:
    raw = asking(1, requestState="sealed", cursor="theirs", taskId="theirs")
    play.hands(raw, "A", word="own")
    (request,) = play.child_reads()
    params = request["params"]
    assert [params[key] for key in ("requestState", "cursor", "taskId")] == [
        "own",
        "theirs",
        "theirs",
    ]


@pytest.mark.parametrize(
    ("key", "waits"), [("requestState", True), ("taskId", True), ("nextCursor", False)]
)
def test_session_waits_for_a_caller_that_has_to_come_back(
    play: Play, key: str, *, waits: bool
) -> None:
    play.answers(play.asks(1, "A"), **{key: "word"})
    assert play.session.waits is waits


# The boot


def phases(deliveries: Deliveries) -> list[float]:
    return [json.loads(delivery.raw)["params"]["progress"] for delivery in deliveries]


@pytest.mark.parametrize("token", IDS, ids=repr)
def test_phase_of_the_boot_is_progress_under_its_callers_own_token(
    play: Play, token: int | str
) -> None:
    play.asks(1, "A", token=token)
    params = {"progressToken": token, "progress": PHASE_STEP, "message": "booting"}
    assert told(play.session.phase("booting")) == [
        ("A", json.loads(notice("progress", **params)), False)
    ]


def test_phases_of_the_boot_increase_and_stay_far_below_the_childs_first_step(play: Play) -> None:
    play.asks(1, "A", token=1)
    seen = [n for _ in range(5) for n in phases(play.session.phase("booting"))]
    assert seen == sorted(set(seen))
    assert max(seen) < 0.01


def test_phase_of_the_boot_is_no_news_for_callers_that_want_no_progress(play: Play) -> None:
    play.asks(1, "A")
    play.listens(1, "B", token=1)
    assert play.session.phase("booting") == []


def test_start_of_the_server_is_the_last_phase(play: Play) -> None:
    play.asks(1, "A", token=1)
    assert phases(play.reports("spawned", pid=1)) == [PHASE_STEP]


@pytest.mark.parametrize("done", [0, 0.001, 0.002, -1])
def test_childs_progress_that_is_none_beyond_the_boots_is_left_out(play: Play, done: float) -> None:
    request = play.asks(1, "A", token=1)
    play.session.phase("one")
    play.session.phase("two")
    token = request["params"]["_meta"]["progressToken"]
    assert play.says(progress(token, done)) == []
    assert play.acknowledged()


def test_childs_progress_beyond_the_boots_passes(play: Play) -> None:
    request = play.asks(1, "A", token=1)
    play.session.phase("one")
    token = request["params"]["_meta"]["progressToken"]
    assert phases(play.says(progress(token, 0)) + play.says(progress(token, 1))) == [1]


def test_childs_progress_of_nothing_passes_for_a_caller_that_saw_no_boot(play: Play) -> None:
    play.session.phase("one")
    request = play.asks(1, "A", token=1)
    token = request["params"]["_meta"]["progressToken"]
    assert phases(play.says(progress(token, 0))) == [0]


# Limits


def test_one_call_too_many_is_refused(play: Play) -> None:
    for n in range(MAX_CALLS):
        play.asks(1, f"{n}")
    with pytest.raises(Busy):
        play.hands(asking(1), "A")
    assert (play.child_reads(), play.session.calls) == ([], MAX_CALLS)


def test_child_that_does_not_read_refuses_and_takes_nothing_in() -> None:
    play = Play(TIGHT)
    play.hands(asking(1, text="x" * 99_000), "A")
    with pytest.raises(Busy):
        play.hands(asking(1), "B")
    assert play.session.calls == 1


def test_request_that_grows_over_the_limit_with_its_new_ids_is_refused() -> None:
    play = Play(TIGHT)
    for n in range(100):  # from here on ours are longer
        for delivery in play.answers(play.asks("", f"{n}")):
            play.session.delivered(delivery)
    empty = len(asking("", token="", text=""))
    raw = asking("", token="", text="x" * (TIGHT.message_bytes - empty))
    assert len(raw) == TIGHT.message_bytes
    with pytest.raises(MessageTooBig):
        play.hands(raw, "A")
    assert (play.child_reads(), play.session.calls) == ([], 0)


# Ends


def test_call_that_takes_too_long_is_answered_and_taken_back_at_the_child(play: Play) -> None:
    late = play.asks("late", "A", at=0.0)
    play.asks("young", "B", at=1.0)
    got = errors(play.session.tick(TIMEOUT_S))
    assert (got, play.cancelled()) == ([("A", "late", "call_timeout")], [late["id"]])


def test_answer_that_was_too_big_is_told_to_all_whose_it_may_be(play: Play) -> None:
    play.asks(1, "A")
    play.asks(1, "B")
    got = errors(play.reports("oversized", bytes=10**9))
    assert got == [("A", 1, "answer_too_big"), ("B", 1, "answer_too_big")]


def test_each_caller_is_told_of_the_end_under_its_own_id(play: Play) -> None:
    for request_id in IDS:
        play.asks(request_id, f"stream of {request_id!r}")
    got = errors(play.session.fail(SessionEnded("over"), 0.0))
    assert got == [(f"stream of {each!r}", each, "session_ended") for each in IDS]


def test_end_of_the_child_ends_the_session(play: Play) -> None:
    play.asks(1, "A")
    play.reports("exited", code=3)
    assert play.session.ending is not None
    assert play.session.ending.reason is Reason.PROCESS_EXIT
    assert errors(play.session.fail(play.session.ending.error, 0.0)) == [("A", 1, "child_exited")]


def test_nobody_is_told_of_the_end_twice(play: Play) -> None:
    play.asks(1, "A")
    play.listens(1, "B")
    play.session.fail(SessionEnded("over"), 0.0)
    assert play.session.fail(SessionEnded("over"), 0.0) == []


def test_answered_session_becomes_ready_again(play: Play) -> None:
    play.reports("spawned", pid=1)
    play.record.move(Step.QUIET)
    play.asks(1, "A")
    assert play.record.state is State.READY


# After an earlier gateway process


def left_behind(request_id: int | str, method: str = "tools/call") -> RunningCall:
    return RunningCall(request_id, method, "work", request_id, "digest", 3.0)


def hydrated(play: Play, *ids: int | str, sent: int = 0, method: str = "tools/call") -> None:
    play.link = Endpoint(DEFAULT_LIMITS, now=0.0)
    play.agent = Endpoint(DEFAULT_LIMITS, now=0.0)
    play.link.adopt(sent, 0)
    play.agent.adopt(0, sent)
    play.link.attach(sent, 0.0)
    play.agent.attach(0, 0.0)
    play.session = SharedSession(play.record, play.link, play.told.append, TIMEOUT_S, play.seals)
    pages = [JournalPage(calls=(left_behind(each, method),)) for each in ids]
    play.session.hydrate([*pages, JournalPage(last=True)], 0.0)


def test_calls_of_an_earlier_process_are_taken_back_at_the_child(play: Play) -> None:
    hydrated(play, 3, 4, sent=4)
    assert (play.cancelled(), play.session.calls) == ([3, 4], 0)


def test_every_request_of_an_earlier_process_is_taken_back_however_many_ran(play: Play) -> None:
    ran = MAX_CALLS + MAX_LISTENS
    hydrated(play, *range(1, ran + 1), sent=ran)
    assert play.cancelled() == list(range(1, ran + 1))


def test_late_answer_to_an_earlier_process_reaches_nobody(play: Play) -> None:
    hydrated(play, 3, sent=4)
    play.cancelled()
    play.asks(3, "A")
    assert play.answers({"id": 3}) == []


def test_new_ids_do_not_collide_with_those_of_an_earlier_process(play: Play) -> None:
    hydrated(play, 3, sent=70)
    play.cancelled()
    assert play.asks(1, "A")["id"] > 70


def test_held_listen_uses_up_no_number_since_it_takes_no_frame(play: Play) -> None:
    held(play, 1, "A")
    play.session.start(0.0)
    play.child_reads()
    assert play.asks(1, "B")["id"] <= play.link.sent


def test_held_listens_of_an_earlier_process_are_taken_back_at_the_child(play: Play) -> None:
    held(play, 1, "A")
    play.session.start(0.0)
    (listen,) = play.child_reads()
    hydrated(play, listen["id"], 2, sent=2)
    assert play.cancelled() == [listen["id"], 2]


def test_session_of_an_earlier_process_waits_for_nothing_to_be_sent_again(play: Play) -> None:
    hydrated(play, 3, sent=4)
    assert play.session.hydrating is False


# Everything at once


@dataclass
class Caller:
    """A caller of the crowd: what it asked, and what it must come to read, in order."""

    stream: str
    request_id: int | str
    token: int | str | None
    level: str | None
    request: Any
    expects: list[tuple[Any, bool]] = field(default_factory=list)

    @property
    def listens(self) -> bool:
        return bool(self.request["method"] == LISTEN)


class Crowd:
    """Callers whose ids and tokens collide, a child that answers in any order, and the truth."""

    def __init__(self, seed: int) -> None:
        self.play = Play()
        self.chance = random.Random(seed)  # noqa: S311 - repeatable, not secret
        self.everybody: list[Caller] = []
        self.running: list[Caller] = []
        self.over: list[Any] = []
        self.heard: dict[str, list[tuple[Any, bool]]] = {}
        self.cancelled: list[Any] = []

    def step(self) -> None:
        names = ["asks", "asks", "answers", "progresses", "tells", "logs", "leaves", "ends"]
        name = self.chance.choice([*names, "lies", "repeats"])
        getattr(self, name)()
        for read in self.play.child_reads():
            assert read["method"] == "notifications/cancelled"
            self.cancelled.append(read["params"]["requestId"])

    def _child(self, raw: bytes) -> None:
        for stream, got, last in told(self.play.says(raw)):
            self.heard.setdefault(stream, []).append((got, last))

    def _some(self, *, listens: bool) -> Caller | None:
        fit = [caller for caller in self.running if caller.listens is listens]
        return self.chance.choice(fit) if fit else None

    def _finish(self, caller: Caller) -> None:
        self.running.remove(caller)
        self.over.append(caller.request)

    def asks(self) -> None:
        listens = self.chance.random() < 0.3
        request_id = self.chance.choice(IDS[:4])
        token = None if listens else self.chance.choice([None, *IDS[:4]])
        level = None if listens else self.chance.choice([None, None, "info"])
        stream = f"stream {len(self.everybody)}"
        method = LISTEN if listens else "tools/call"
        request = self.play.asks(request_id, stream, method=method, token=token, level=level)
        caller = Caller(stream, request_id, token, level, request)
        self.everybody.append(caller)
        self.running.append(caller)

    def answers(self) -> None:
        caller = self.chance.choice([self._some(listens=False), self._some(listens=True)])
        if caller is not None:
            drawn = caller.request["id"]
            meta = {"_meta": {SUBSCRIPTION_KEY: drawn}} if caller.listens else {}
            own = {"_meta": {SUBSCRIPTION_KEY: caller.request_id}} if caller.listens else {}
            caller.expects.append((result(caller.request_id, mine=drawn, **own), True))
            self._finish(caller)
            self._child(message(id=drawn, result={"mine": drawn, **meta}))

    def progresses(self) -> None:
        caller = self._some(listens=False)
        if caller is not None:
            drawn = caller.request["params"]["_meta"].get("progressToken", caller.request["id"])
            done = len(caller.expects) + 1
            if caller.token is not None:
                caller.expects.append((json.loads(progress(caller.token, done)), False))
            self._child(progress(drawn, done))

    def tells(self) -> None:
        caller = self._some(listens=True)
        if caller is not None:
            caller.expects.append((json.loads(tagged(caller.request_id)), False))
            self._child(tagged(caller.request["id"]))

    def logs(self) -> None:
        takers = [caller for caller in self.running if caller.level is not None]
        if len(takers) == 1:
            takers[0].expects.append((json.loads(LOG), False))
        self._child(LOG)

    def leaves(self) -> None:
        if self.running:
            caller = self.chance.choice(self.running)
            self._finish(caller)
            self.play.session.stream_gone(caller.stream, 0.0)
            assert [each["params"]["requestId"] for each in self.play.child_reads()] == [
                caller.request["id"]
            ]

    def ends(self) -> None:
        caller = self._some(listens=True)
        if caller is not None:
            caller.expects.append((complete(caller.request_id), True))
            self._finish(caller)
            self._child(notice("cancelled", requestId=caller.request["id"]))

    def lies(self) -> None:
        """Names that nobody was given, or that were given for something else."""
        call, listen = self._some(listens=False), self._some(listens=True)
        known = [caller.request["id"] for caller in self.everybody]
        foreign = self.chance.choice([*(str(each) for each in known), 10**6, -1, *IDS[1:4]])
        lies = [
            message(id=foreign, result={}),
            progress(foreign),
            tagged(foreign),
            notice("cancelled", requestId=foreign),
        ]
        if call is not None:
            drawn = call.request["id"]
            lies += [tagged(drawn), notice("cancelled", requestId=drawn)]
        if listen is not None:
            lies.append(progress(listen.request["id"]))
        self._child(self.chance.choice(lies))

    def repeats(self) -> None:
        """Whatever names a request that is over."""
        if self.over:
            drawn = self.chance.choice(self.over)["id"]
            again = [
                message(id=drawn, result={}),
                message(id=drawn, error={"code": 1, "message": "no"}),
                progress(drawn),
                tagged(drawn),
                notice("cancelled", requestId=drawn),
            ]
            self._child(self.chance.choice(again))


@pytest.mark.no_cover  # counting lines takes longer than the test; others count them
@given(seed=st.integers(0, 2**32), steps=st.integers(1, 120))
@settings(max_examples=150, deadline=None)
def test_each_caller_of_a_crowd_reads_its_own_and_only_once(seed: int, steps: int) -> None:
    crowd = Crowd(seed)
    for _ in range(steps):
        crowd.step()
    expected = {caller.stream: caller.expects for caller in crowd.everybody if caller.expects}
    assert crowd.heard == expected
    assert crowd.cancelled == []  # but for those who left, which `leaves` has seen
    drawn = [caller.request["id"] for caller in crowd.everybody]
    assert len(set(drawn)) == len(drawn)


@given(raw=st.binary(max_size=200) | st.text(max_size=50).map(str.encode))
@settings(max_examples=100, deadline=None)
def test_no_line_of_a_child_breaks_a_session(raw: bytes) -> None:
    play = Play()
    request = play.asks(1, "A", token=1)
    assert play.says(raw.replace(b"\n", b"")) == []
    assert told(play.answers(request)) == [("A", result(1), True)]


MEMBER = st.sampled_from([None, True, 1, 0, -1, 2.5, "", "x", [], {}, [1], {"a": 1}, 2**70])


@given(
    keys=st.dictionaries(
        st.sampled_from(
            "requestState nextCursor taskId resultType _meta progressToken requestId progress "
            f"level {SUBSCRIPTION_KEY}".split()
        ),
        MEMBER,
    ),
    nested=st.booleans(),
    method=st.sampled_from(["progress", "message", "cancelled", "x", "tools/list_changed"]),
)
@settings(max_examples=200, deadline=None)
def test_members_of_wrong_types_break_nothing(
    keys: dict[str, Any], method: str, *, nested: bool
) -> None:
    play = Play()
    request, listen = play.asks("x", "A", token="t", level="debug"), play.listens("y", "B")
    shape = {"_meta": keys, **keys} if nested else keys
    play.says(notice(method, **shape))
    got = told(play.answers(request, **shape))
    assert [(stream, answer["id"], last) for stream, answer, last in got] == [("A", "x", True)]
    assert [d.stream for d in play.says(tagged(listen))] == ["B"]
