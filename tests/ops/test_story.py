"""Proves what a session's story says after every event: its lines, its summary, its failures."""

import json
from dataclasses import Field, fields
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import events
from gateway.ops import story
from gateway.ops.redaction import Redactor
from gateway.ops.story import (
    DETAILS,
    FINE,
    LINE_BYTES,
    MEANT,
    STATES,
    SUMMARY_CHARS,
    TEXT_CHARS,
    Failure,
    State,
    Summary,
    Tale,
)
from gateway.sessions.record import Reason
from gateway.sessions.record import State as RecordState

REDACTOR = Redactor()
SHOWN = REDACTOR.shown
REQUESTED = events.Requested(session="s1", server="web", principal="joe", client="inspector 1.0")
LAUNCHING = events.Launching(session="s1", launch="l1", launcher="local")
LAUNCHED = events.Launched(session="s1", launch="l1", dyno="run.1")
DIALLED_IN = events.DialledIn(session="s1", epoch=1, agent="1", python="3.11", boot_s=1.0)
READY = events.Ready(session="s1", pid=7, boot_s=1.5)
IDLE = events.Idle(session="s1", calls=1)
PARTED = events.Parted(session="s1", epoch=1, cause="1006")
RESUMED = events.Resumed(session="s1", epoch=2, parted_s=0.5)
CLOSING = events.Closing(session="s1", reason=Reason.IDLE)
HYDRATED = events.Hydrated(session="s1", server="web", principal="joe", launch="l1", age_s=5.0)
HANDED_OVER = events.HandedOver(session="s1", calls=1)
BOOT = [LAUNCHING, LAUNCHED, DIALLED_IN, READY]


def closed(reason: str = Reason.IDLE, **facts: Any) -> events.Closed:
    facts = {"seconds": 9.0, "calls": 1, "dropped": 0, "peak_buffer_bytes": 5} | facts
    return events.Closed(session="s1", reason=reason, **facts)


def passed(call: str = "1", **facts: Any) -> events.Passed:
    facts = {"to": "child", "kind": "request", "method": "tools/call", "tool": "echo"} | facts
    return events.Passed(session="s1", call=call, bytes=facts.pop("bytes", 100), **facts)


def finished(call: str = "1", outcome: str = "ok", **facts: Any) -> events.CallFinished:
    facts = {"server": "web", "method": "tools/call", "tool": "echo", "ms": 1.5} | facts
    facts = {"bytes_in": 100, "bytes_out": 50} | facts
    return events.CallFinished(session="s1", call=call, outcome=outcome, **facts)


def tale(*heard: events.Event, before: Summary | None = None) -> Tale:
    """Return the tale of events that happened at 1, 2, 3 and so on."""
    told = Tale("s1", "gw", before)
    for at, event in enumerate(heard, 1):
        told.hear(float(at), event, SHOWN)
    return told


def summary(*heard: events.Event, before: Summary | None = None) -> Summary:
    return tale(*heard, before=before).summary


def opened(**facts: Any) -> Summary:
    """Return what is known of a session that was asked for at 1."""
    known: dict[str, Any] = {"server": "web", "principal": "joe", "client": "inspector 1.0"}
    known |= {"gateway": "gw", "state": "requested", "opened": 1.0, "active": 1.0} | facts
    return Summary(session="s1", **known)


# Summaries


def test_a_session_that_was_asked_for_has_its_facts() -> None:
    assert summary(REQUESTED) == opened()


@pytest.mark.parametrize("kind", STATES, ids=lambda kind: kind.name)
def test_a_session_stands_where_its_last_event_says(kind: type[events.Event]) -> None:
    heard: dict[type[events.Event], events.Event] = {
        type(event): event
        for event in [
            *BOOT, IDLE, PARTED, RESUMED, CLOSING, closed(),
            events.Queued(session="s1", position=1, waiting=2),
        ]
    }  # fmt: skip
    assert summary(REQUESTED, heard[kind]).state == STATES[kind]


def test_every_state_of_a_session_has_a_name_here() -> None:
    assert {state.value for state in RecordState} | {"", "queued"} == set(get_args(State))


def test_a_booted_session_knows_its_dyno_and_how_long_it_took() -> None:
    known = summary(REQUESTED, *BOOT)
    assert known == opened(state="ready", launch="l1", dyno="run.1", boot_s=1.5)


def test_a_dyno_that_is_known_late_does_not_put_a_session_back() -> None:
    assert summary(REQUESTED, LAUNCHING, DIALLED_IN, READY, LAUNCHED).state == "ready"


def test_an_adopted_dyno_is_a_warm_start() -> None:
    adopted = events.Adopted(
        session="s1", launch="l2", dyno="run.2", parked_s=9.0, pool_dyno_s=9.0, pool_usd=0.1
    )
    known = summary(REQUESTED, LAUNCHING, adopted)
    assert known == opened(state="launching", launch="l2", dyno="run.2", warm=True)


def test_lost_links_are_counted() -> None:
    known = summary(REQUESTED, *BOOT, PARTED, RESUMED, PARTED)
    assert (known.parts, known.state) == (2, "parted")


def test_a_closed_session_has_its_reason_and_its_cost() -> None:
    known = summary(REQUESTED, CLOSING, closed(dyno_s=60.0, usd=0.01, detail="so\nit was"))
    assert known == opened(
        state="closed", reason="idle", ended=3.0, dyno_s=60.0, usd=0.01, detail="so\\nit was"
    )


def test_a_session_that_is_being_closed_has_its_reason_already() -> None:
    known = summary(REQUESTED, events.Closing(session="s1", reason=Reason.OPERATOR))
    assert (known.state, known.reason, known.ended) == ("closing", "operator", 0.0)


@pytest.mark.parametrize("event", [*BOOT, IDLE, PARTED, RESUMED, passed()], ids=lambda e: e.name)
def test_nothing_but_its_end_moves_a_session_that_is_being_closed(event: events.Event) -> None:
    assert summary(REQUESTED, CLOSING, event).state == "closing"


@pytest.mark.parametrize(
    "event", [*BOOT, IDLE, PARTED, CLOSING, passed(), finished()], ids=lambda e: e.name
)
def test_nothing_late_moves_a_closed_session(event: events.Event) -> None:
    known = summary(REQUESTED, closed(Reason.LINK_LOST), event)
    assert (known.state, known.reason, known.ended) == ("closed", "link_lost", 2.0)
    assert known.running == 0


def test_a_session_that_is_asked_for_again_begins_anew() -> None:
    told = tale(REQUESTED, *BOOT, passed(), finished(outcome="error"), closed(), REQUESTED)
    assert told.summary == opened(opened=9.0, active=9.0)
    assert not told.over


def test_calls_of_before_do_not_end_those_of_a_session_that_begins_anew() -> None:
    before = opened(state="ready", running=3)
    assert summary(REQUESTED, passed("1"), REQUESTED, finished("1")).running == 0
    assert summary(REQUESTED, finished("1"), before=before).running == 0


def test_a_closed_session_runs_nothing() -> None:
    assert summary(REQUESTED, passed("1"), passed("2"), closed()).running == 0


def test_what_the_client_calls_itself_is_inert_and_short() -> None:
    client = "\x1b[2J" + "x" * 5000
    asked = events.Requested(session="s1", server="web", principal="joe", client=client)
    known = summary(asked)
    assert known.client.startswith("\\x1b[2Jxxx")
    assert known.client.isprintable()
    assert len(known.client) < SUMMARY_CHARS + 20


# Calls


def test_a_call_runs_until_it_is_finished() -> None:
    told = tale(REQUESTED, *BOOT, passed("1"), passed("2"))
    assert told.summary.running == 2
    told.hear(9.0, finished("1"), SHOWN)
    assert (told.summary.running, told.summary.calls, told.summary.active) == (1, 1, 9.0)


def test_calls_with_equal_ids_are_counted_each() -> None:
    known = summary(REQUESTED, passed("1"), passed("1"), finished("1"))
    assert known.running == 1


def test_an_answer_without_the_child_ends_no_other_call() -> None:
    known = summary(REQUESTED, passed("1"), finished("2", "catalogue"), finished("3", "busy"))
    assert (known.running, known.calls) == (1, 2)


def test_a_request_wakes_an_idle_session() -> None:
    assert summary(REQUESTED, *BOOT, IDLE, passed()).state == "ready"


def test_other_messages_do_not_wake_an_idle_session() -> None:
    heard = [passed(kind="notification"), passed(to="client", kind="notification"), finished()]
    assert summary(REQUESTED, *BOOT, IDLE, *heard).state == "idle"


def test_an_idle_session_runs_nothing() -> None:
    known = summary(REQUESTED, *BOOT, passed("1"), IDLE, finished("1"))
    assert known.running == 0


@pytest.mark.parametrize("outcome", ["error", "tool_error", "child_exited", "call_timeout"])
def test_a_call_that_failed_is_counted_and_named(outcome: str) -> None:
    known = summary(REQUESTED, finished(outcome=outcome))
    assert (known.calls, known.errors, known.failure) == (1, 1, f"echo: {outcome}")


@pytest.mark.parametrize("outcome", sorted(FINE))
def test_a_call_that_did_not_fail_is_no_error(outcome: str) -> None:
    known = summary(REQUESTED, finished(outcome=outcome))
    assert (known.calls, known.errors, known.failure) == (1, 0, "")


def test_bytes_are_those_of_all_messages_each_once() -> None:
    known = summary(
        REQUESTED,
        passed("1", bytes=1000),
        passed(to="child", kind="notification", bytes=1),
        passed(to="child", kind="response", bytes=2),
        passed(to="client", kind="request", bytes=10),
        passed(to="client", kind="notification", bytes=20),
        finished("1", bytes_in=1000, bytes_out=50),
    )
    assert (known.bytes_in, known.bytes_out) == (1003, 80)


def test_only_the_client_and_answers_to_it_are_activity() -> None:
    known = summary(REQUESTED, passed(), passed(to="client", kind="notification"), IDLE)
    assert known.active == 2.0


# From elsewhere


def test_a_session_from_elsewhere_goes_on_where_it_was() -> None:
    before = opened(state="ready", calls=7, errors=1, launch="l1", dyno="run.1", boot_s=1.5)
    before.gateway = "other"
    told = tale(HYDRATED, before=before)
    assert told.ours
    assert told.summary == opened(
        state="launching", calls=7, errors=1, launch="l1", dyno="run.1", boot_s=1.5, gateway="gw"
    )


def test_a_session_that_nobody_knows_is_as_old_as_its_agent_says() -> None:
    known = summary(HYDRATED)
    assert known == opened(client="", state="launching", launch="l1", opened=-4.0, active=1.0)


def test_a_session_without_a_dyno_is_only_asked_for_when_it_comes_from_elsewhere() -> None:
    dormant = events.Hydrated(session="s1", server="web", principal="joe", launch="", age_s=0.0)
    assert summary(dormant).state == "requested"


def test_a_session_that_was_taken_for_closed_lives_when_its_agent_comes() -> None:
    before = opened(state="closed", reason="link_lost", detail="x", ended=5.0, usd=1.0, dyno_s=9.0)
    known = summary(HYDRATED, before=before)
    assert (known.state, known.reason, known.detail) == ("launching", "", "")
    assert (known.ended, known.usd, known.dyno_s) == (0.0, 0.0, 0.0)


def test_calls_that_ran_elsewhere_are_finished_here() -> None:
    before = opened(state="ready", running=2)
    told = tale(HYDRATED, finished("7"), finished("8", "catalogue"), passed("9"), before=before)
    assert told.summary.running == 2
    told.hear(9.0, finished("9"), SHOWN)
    told.hear(9.0, finished("6"), SHOWN)
    told.hear(9.0, finished("5"), SHOWN)
    assert told.summary.running == 0


def test_a_session_that_was_handed_over_is_not_ours() -> None:
    assert tale(REQUESTED).ours
    assert not tale(REQUESTED, HANDED_OVER).ours
    assert tale(REQUESTED, HANDED_OVER, HYDRATED).ours


def test_a_session_whose_beginning_was_missed_is_not_ours_and_is_counted_all_the_same() -> None:
    told = tale(READY, passed(), finished(outcome="error"))
    assert not told.ours
    known = Summary(session="s1", gateway="gw", state="ready", boot_s=1.5, active=3.0, calls=1)
    known.errors, known.bytes_in, known.bytes_out = 1, 100, 50
    known.failure = "echo: error"
    assert told.summary == known


# Lines


def line(event: events.Event, redactor: Redactor = REDACTOR, **about: Any) -> dict[str, Any]:
    raw = story.line(1795312345.1234, event, redactor, about)
    assert len(raw) <= LINE_BYTES
    found = json.loads(raw)
    assert isinstance(found, dict)
    return found


def test_a_line_is_compact_and_says_when_and_what() -> None:
    raw = story.line(1795312345.1234, PARTED, REDACTOR, {})
    assert raw == b'{"at":1795312345.123,"event":"parted","epoch":1,"cause":"1006"}'


def test_a_line_has_all_that_the_event_says_but_what_is_empty_and_the_payload() -> None:
    assert line(finished("7", "ok", payload=b"{}", code=None, trace="")) == {
        "at": 1795312345.123, "event": "call", "server": "web", "call": "7",
        "method": "tools/call", "tool": "echo", "outcome": "ok", "ms": 1.5,
        "bytes_in": 100, "bytes_out": 50,
    }  # fmt: skip


def test_a_line_says_what_is_known_beside() -> None:
    assert line(REQUESTED, gateway="gw")["gateway"] == "gw"
    said = line(events.ChildLog(session="s1", text="raw"), text="[redacted]")
    assert said["text"] == "[redacted]"


def test_an_empty_text_that_replaces_one_is_kept() -> None:
    assert line(events.ChildLog(session="s1", text="raw"), text="")["text"] == ""


@pytest.mark.parametrize(
    "text",
    ["x" * (TEXT_CHARS + 1), "x" * 5000, "é" * 5000, "\x1b" * 5000, '"' * 5000, "🙂" * 16384],
)
def test_a_long_text_is_cut_and_says_how_much_is_missing(text: str) -> None:
    shown = SHOWN(text)
    said = line(events.ChildLog(session="s1", text=text))["text"]
    kept, _, missing = said.rpartition("… (")
    assert len(kept) <= TEXT_CHARS
    assert shown.startswith(kept)
    assert missing == f"{len(shown) - len(kept)} more)"


def test_a_text_of_just_the_right_length_is_whole() -> None:
    text = "x" * TEXT_CHARS
    assert line(events.ChildLog(session="s1", text=text))["text"] == text


def test_many_long_texts_share_a_line() -> None:
    said = line(
        events.Requested(session="s1", server="web", principal="p" * 9000, client="🙂" * 9000)
    )
    assert said["client"].startswith("🙂")


def test_texts_from_outside_are_redacted_and_our_own_names_are_not() -> None:
    redactor = Redactor(["production"])
    asked = events.Requested(
        session="s1", server="production", principal="production", client="production"
    )
    said = line(asked, redactor)
    assert (said["server"], said["principal"]) == ("production", "production")
    assert said["client"] == "[redacted]"


def test_a_payload_is_redacted_and_then_cut() -> None:
    raw = b'{"a":"b","password":"hunter2","c":"d"}'
    cut_in_the_secret = raw.index(b"ter2")
    assert story.payload_facts(raw, cut_in_the_secret, REDACTOR) == {
        "payload": '{"a":"b","password":"[redacted]","c":"d"}'[:cut_in_the_secret],
        "payload_bytes": len(raw),
    }


def test_a_secret_of_which_only_the_beginning_has_room_is_redacted() -> None:
    redactor = Redactor(["abcdefghijkl"])
    assert story.payload_facts(b'"abcdefghijkl"', 8, redactor)["payload"] == '"[redact'


def test_a_payload_is_cut_between_characters() -> None:
    assert story.payload_facts('"ééé"'.encode(), 4, REDACTOR)["payload"] == '"é'


def test_a_long_payload_leaves_the_line_in_bounds() -> None:
    facts = story.payload_facts(b'"' + b"\\n" * 100_000 + b'"', 200_000, REDACTOR)
    said = line(passed(), **facts)
    assert said["payload_bytes"] == 200_002
    assert len(said["payload"]) > TEXT_CHARS


def test_a_gap_says_how_much_was_dropped() -> None:
    assert json.loads(story.gap(1.0, 7)) == {"at": 1.0, "event": "gap", "dropped": 7}


# Failures


def failed(event: events.Event, known: Summary | None = None) -> Failure | None:
    return story.failure(2.0, event, known, SHOWN)


@pytest.mark.parametrize("outcome", ["error", "tool_error", "child_exited"])
def test_a_call_that_failed_is_a_failure(outcome: str) -> None:
    assert failed(finished("7\n", outcome, code=-32602), opened()) == Failure(
        at=2.0, cause=outcome, server="web", principal="joe", session="s1",
        call="7\\n", method="tools/call", tool="echo", detail="code -32602",
    )  # fmt: skip


@pytest.mark.parametrize("reason", list(Reason))
def test_a_session_that_ended_otherwise_than_it_should_is_a_failure(reason: Reason) -> None:
    found = failed(closed(reason, detail="why\n"), opened())
    if reason in MEANT or reason is Reason.BREACH:  # of which an event of its own tells
        assert found is None
    else:
        assert found == Failure(
            at=2.0, cause=reason.value, server="web", principal="joe", session="s1", detail="why\\n"
        )


def test_reasons_that_are_meant_are_reasons() -> None:
    assert set(Reason) >= MEANT


@pytest.mark.parametrize(
    ("event", "failure"),
    [
        (
            events.NotParked(server="web", why="429"),
            Failure(at=2.0, cause="not_parked", server="web", detail="429"),
        ),
        (
            events.NotStopped(launch="l1", dyno="run.1", why="500", attempt=2),
            Failure(at=2.0, cause="not_stopped", detail="launch l1; dyno run.1; 500; attempt 2"),
        ),
        (events.NotListed(why="403"), Failure(at=2.0, cause="not_listed", detail="403")),
        (
            events.NotDiscovered(app="a", why="404"),
            Failure(at=2.0, cause="not_discovered", detail="app a; 404"),
        ),
        (
            events.OrphanGone(launch="l1", dyno="", stopped=True, dyno_s=9.0, usd=0.1),
            Failure(at=2.0, cause="orphan_gone", detail="launch l1; dyno_s 9.0"),
        ),
        (
            events.StoreAway(store="valkey", seconds=1.0),
            Failure(at=2.0, cause="store_away", detail="valkey"),
        ),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_goes_wrong_outside_of_sessions_is_a_failure(
    event: events.Event, failure: Failure
) -> None:
    assert failed(event) == failure


@pytest.mark.parametrize(
    ("event", "detail"),
    [
        (events.Breach(session="s1", cause="bad frame"), "bad frame"),
        (events.NotLearned(session="s1", server="web", era="modern", why="no"), "era modern; no"),
        (events.Contradicted(session="s1", server="web", principal="joe"), ""),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_goes_wrong_in_a_session_is_a_failure(event: events.Event, detail: str) -> None:
    assert failed(event, opened()) == Failure(
        at=2.0, cause=event.name, server="web", principal="joe", session="s1", detail=detail
    )


@pytest.mark.parametrize(
    "event", [REQUESTED, *BOOT, IDLE, PARTED, CLOSING, HYDRATED, passed(), finished()]
)
def test_what_is_as_it_should_be_is_no_failure(event: events.Event) -> None:
    assert failed(event, opened()) is None


# Whatever happens

TEXTS = st.text(max_size=40) | st.sampled_from(
    ["\x1b[2J\n", "\ud800", "\u202e\u2028", '"\\', "x" * 3000, "\x00" * 900, "🙂" * 2100]
)
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXTS,
    str | None: st.none() | TEXTS,
    int: st.integers(0, 2**53),
    int | None: st.none() | st.integers(-(2**31), 2**31),
    float: st.floats(0, 1e9),
    bool: st.booleans(),
    bytes: st.binary(max_size=50),
}
CHOICES: dict[str, st.SearchStrategy[Any]] = {
    "session": st.just("s1"),
    "server": st.sampled_from(["web", "db"]),
    "launch": st.sampled_from(["", "l1"]),
    "call": st.sampled_from(["1", "2", "\u202e"]),
    "to": st.sampled_from(["child", "client"]),
    "kind": st.sampled_from(["request", "notification", "response"]),
    "outcome": st.sampled_from(["ok", "error", "catalogue", "cancelled", "busy"]),
    "reason": st.sampled_from(list(Reason)),
}
KINDS = [kind for kind in story.kinds() if hasattr(kind, "name")]


def any_of(base: type[events.Event]) -> st.SearchStrategy[events.Event]:
    return st.one_of(
        [
            st.builds(kind, **{each.name: value(each) for each in fields(kind)})
            for kind in KINDS
            if issubclass(kind, base)
        ]
    )


def value(field: Field[Any]) -> st.SearchStrategy[Any]:
    return CHOICES[field.name] if field.name in CHOICES else VALUES[field.type]


EVENTS, SESSION_EVENTS = any_of(events.Event), any_of(events.SessionEvent)


@given(EVENTS)
def test_every_line_is_one_bounded_inert_json_object(event: events.Event) -> None:
    raw = story.line(1.0, event, REDACTOR, {})
    assert len(raw) <= LINE_BYTES
    assert raw.decode().isprintable()
    said = json.loads(raw)
    assert (said["at"], said["event"]) == (1.0, event.name)
    assert all(value.isprintable() for value in said.values() if isinstance(value, str))


@given(EVENTS)
def test_every_failure_is_bounded_and_inert(event: events.Event) -> None:
    found = story.failure(1.0, event, opened(), SHOWN)
    if found is not None:
        raw = msgspec.json.encode(found)
        assert len(raw) <= LINE_BYTES
        assert msgspec.json.decode(raw, type=Failure) == found
        for text in (found.call, found.method, found.tool, found.detail):
            assert text.isprintable()


@given(st.lists(SESSION_EVENTS, max_size=30))
def test_a_summary_is_consistent_whatever_happens(heard: list[events.Event]) -> None:
    told = Tale("s1", "gw", None)
    for at, event in enumerate(heard, 1):
        told.hear(float(at), event, SHOWN)
        known = told.summary
        assert (known.state == "closed") is (known.ended > 0) is told.over
        assert known.reason or known.state not in {"closing", "closed"}
        assert known.running >= 0
        assert known.running == 0 or not told.over
        assert 0 <= known.errors <= known.calls
        assert msgspec.json.decode(msgspec.json.encode(known), type=Summary) == known
        assert known.client.isprintable()
        assert known.detail.isprintable()
        assert known.dyno.isprintable()
        assert known.failure.isprintable()


def test_every_kind_of_event_was_tried() -> None:
    assert {kind for kind in story.kinds() if "name" in kind.__dict__} == set(KINDS)
    assert set(DETAILS) <= set(KINDS)
