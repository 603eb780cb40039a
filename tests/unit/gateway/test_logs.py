"""Proves that an event is one line whatever text it holds, and that it names no secret."""

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import events
from gateway.ops.inertness import inert
from gateway.ops.logs import configure, log_sink

FORMATS = ["pretty", "logfmt", "json"]
NASTY = [
    "two\nlines",
    "cr\r\nlf",
    "\x1b[2J\x1b]0;title\x07",
    "\u202egnp.exe\u202c \u2066x\u2069",
    "\u2028\u2029\x85\x0b\x0c",
    "\x00\x7f\x9b31m",
    "\ud800 half",
    'level=error event="forged" x=',
    "\u200b\ufeff\U000e0041",
    "\\",
    '"',
    "",
]
DANGEROUS = set("\n\r\x1b\x07\x0b\x0c\x00\x7f\x85\x9b\u2028\u2029\u202e\u202c\u2066\u2069\u200b")


@pytest.fixture(autouse=True)
def structlog_as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("text", NASTY, ids=ascii)
def test_inert_text_holds_only_what_can_be_printed(text: str) -> None:
    assert inert(text).isprintable()


@pytest.mark.parametrize("text", ["", "plain", "é 漢字 🙂", "a\\nb", '"quoted"'])
def test_harmless_text_is_left_as_it_is(text: str) -> None:
    assert inert(text) is text


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("\n", "\\n"),
        ("\x1b", "\\x1b"),
        ("\u202e", "\\u202e"),
        ("\ud800", "\\ud800"),
        ("é\0", "é\\x00"),
    ],
)
def test_dangerous_characters_are_spelled_out_and_others_kept(text: str, spelled: str) -> None:
    assert inert(text) == spelled


@given(st.text(st.characters()))
@settings(deadline=None, derandomize=True, database=None)
def test_any_text_becomes_printable(text: str) -> None:
    assert inert(text).isprintable()


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    *whole, rest = capsys.readouterr().err.split("\n")
    assert rest == ""
    return whole


@pytest.mark.parametrize("log_format", FORMATS)
@pytest.mark.parametrize("text", NASTY, ids=ascii)
def test_event_is_one_line_whatever_its_text(
    capsys: pytest.CaptureFixture[str], log_format: str, text: str
) -> None:
    configure("debug", log_format)
    log_sink()(events.ChildLog(session=f"s{text}", text=f"x{text}"))
    (line,) = lines(capsys)
    colours = {"\x1b"} if log_format == "pretty" else set()
    assert set(line) & DANGEROUS <= colours


@pytest.mark.parametrize("text", [text for text in NASTY if "\x1b" in text])
def test_escape_of_an_event_is_spelled_out_even_between_colours(
    capsys: pytest.CaptureFixture[str], text: str
) -> None:
    configure("debug", "pretty")
    log_sink()(events.ChildLog(session="s", text=text))
    (line,) = lines(capsys)
    assert text not in line
    assert "x1b[2J" in line


@pytest.mark.parametrize("log_format", FORMATS)
def test_exception_is_one_line(capsys: pytest.CaptureFixture[str], log_format: str) -> None:
    configure("info", log_format)
    structlog.get_logger().error("internal_error", exc_info=ValueError("two\nlines"))
    assert len(lines(capsys)) == 1


def test_text_cannot_forge_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "logfmt")
    log_sink()(events.ChildLog(session="s", text='x" level=error event="forged'))
    (line,) = lines(capsys)
    assert line.split(" ")[1:4] == ["level=info", "event=stderr", "session=s"]
    assert 'text="x\\" level=error event=\\"forged"' in line


def written(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in lines(capsys)]


def test_event_is_written_with_its_name_level_and_facts(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "json")
    log_sink()(events.Breach(session="s-1", cause="why"))
    (entry,) = written(capsys)
    assert str(entry.pop("timestamp")).endswith("Z")
    assert entry == {"event": "breach", "level": "error", "session": "s-1", "cause": "why"}


def test_facts_that_are_empty_are_left_out_and_zero_is_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure("info", "json")
    closed = events.Closed(
        session="s", reason="idle", seconds=0.0, calls=0, dropped=0, peak_buffer_bytes=0, detail=""
    )
    log_sink()(closed)
    (entry,) = written(capsys)
    facts = {"reason", "seconds", "calls", "dropped", "peak_buffer_bytes", "dyno_s", "usd"}
    assert set(entry) == {"timestamp", "level", "event", "session", *facts}


@pytest.mark.parametrize(
    ("level", "shown"),
    [("debug", 3), ("info", 2), ("warning", 1), ("error", 1)],
)
def test_events_below_the_level_are_not_written(
    capsys: pytest.CaptureFixture[str], level: str, shown: int
) -> None:
    configure(level, "json")
    sink = log_sink()
    sink(events.Launched(session="s", launch="l", dyno="d"))
    sink(events.Closing(session="s", reason="idle"))
    sink(events.Breach(session="s", cause="x"))
    assert len(lines(capsys)) == shown


@pytest.mark.parametrize(("terminal", "same_as"), [(True, "pretty"), (False, "logfmt")])
def test_auto_is_pretty_on_a_terminal_only(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
    same_as: str,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    configure("info", "auto")
    log_sink()(events.Closing(session="s", reason="idle"))
    (line,) = lines(capsys)
    assert ("level=info event=closing session=s" in line) is (same_as == "logfmt")


# The events themselves

KINDS = [
    kind
    for kind in vars(events).values()
    if isinstance(kind, type)
    and issubclass(kind, events.Event)
    and kind not in (events.Event, events.SessionEvent)
]
SECRET_WORDS = {"key", "token", "secret", "password", "credential", "proof", "env", "environment"}
SECRET_WORDS |= {"payload", "params", "headers", "authorization", "raw"}


def test_every_kind_of_event_has_a_name_of_its_own() -> None:
    assert KINDS
    assert [name for name, n in Counter(kind.name for kind in KINDS).items() if n > 1] == []


@pytest.mark.parametrize("kind", KINDS)
def test_event_has_no_field_named_after_a_secret(kind: type[events.Event]) -> None:
    names = {field.name for field in dataclasses.fields(kind)}
    if kind in (events.Passed, events.CallFinished):
        names.remove("payload")  # for the recorder, of servers that are recorded so
    words = {word for name in names for word in name.split("_")}
    assert words & SECRET_WORDS == set()


@pytest.mark.parametrize("kind", KINDS)
def test_event_is_frozen_and_has_a_level_that_the_log_knows(
    kind: type[events.Event],
) -> None:
    first = dataclasses.fields(kind)[0].name
    assert (first == "session") is issubclass(kind, events.SessionEvent)
    assert kind.level in {"debug", "info", "warning", "error"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(object.__new__(kind), first, "x")


@pytest.mark.parametrize("kind", KINDS)
def test_event_has_no_field_that_the_log_uses_itself(kind: type[events.Event]) -> None:
    names = {field.name for field in dataclasses.fields(kind)}
    assert names & {"event", "level", "timestamp", "exc_info", "name"} == set()
