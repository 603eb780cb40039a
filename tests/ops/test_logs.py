"""Lines as a platform collects them: never cut, always parsed, of the level that was asked for."""

from __future__ import annotations

import json
import logging
import random
import shlex
import sys
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import events
from gateway.ops.inertness import inert
from gateway.ops.levels import Levels
from gateway.ops.logs import LINE_BYTES, FromLibraries, configure, log_sink, shortened
from gateway.store.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Iterator

LOGPLEX_BYTES = 10_000
FORMATS = ["pretty", "logfmt", "json"]
LONG = {
    "ascii": "x" * 50_000,
    "two bytes": "é" * 20_000,
    "three bytes": "漢" * 20_000,
    "four bytes": "🙂" * 20_000,
    "surrogates": "\ud83d" * 20_000,
    "escapes": "\x1b" * 20_000,
    "quotes": '"' * 20_000,
    "backslashes": "\\" * 20_000,
    "lines": "a\n" * 20_000,
    "spaces": " " * 20_000,
}


@pytest.fixture(autouse=True)
def structlog_as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    *whole, rest = capsys.readouterr().err.split("\n")
    assert rest == ""
    return whole


def parsed(line: str) -> dict[str, str]:
    """Read logfmt as a shell would: quotes and backslashes, keys without spaces."""
    found = {}
    for part in shlex.split(line):
        key, equals, value = part.partition("=")
        assert equals, part
        found[key] = value
    return found


def message(session: str = "s", payload: bytes = b"") -> events.Passed:
    return events.Passed(
        session=session,
        to="child",
        kind="request",
        method="tools/call",
        tool="t",
        call="1",
        bytes=7,
        payload=payload,
    )


def call(server: str = "srv", **more: Any) -> events.CallFinished:
    usual: dict[str, Any] = {"session": "s", "call": "1", "method": "tools/call", "tool": "t"}
    usual |= {"outcome": "ok", "ms": 12.5, "bytes_in": 1, "bytes_out": 2}
    return events.CallFinished(server=server, **{**usual, **more})


# Length


@pytest.mark.parametrize("log_format", FORMATS)
@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_line_is_never_so_long_that_it_would_be_cut(
    capsys: pytest.CaptureFixture[str], log_format: str, text: str
) -> None:
    configure("debug", log_format)
    log_sink()(events.ChildLog(session="s-1", text=text))
    (line,) = lines(capsys)
    assert len(line.encode()) < LOGPLEX_BYTES


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_long_line_can_be_parsed_and_says_that_it_was_shortened(
    capsys: pytest.CaptureFixture[str], text: str
) -> None:
    configure("debug", "logfmt")
    log_sink()(events.ChildLog(session="s-1", text=text, dropped=3))
    (line,) = lines(capsys)
    found = parsed(line)
    assert (found["event"], found["session"], found["dropped"]) == ("stderr", "s-1", "3")
    assert " more) …" in found["text"]


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_long_line_of_json_can_be_parsed(capsys: pytest.CaptureFixture[str], text: str) -> None:
    configure("debug", "json")
    log_sink()(events.ChildLog(session="s-1", text=text))
    (line,) = lines(capsys)
    found = json.loads(line)
    assert (found["event"], found["session"]) == ("stderr", "s-1")
    assert " more) …" in found["text"]


def test_line_of_many_long_values_keeps_a_part_of_each(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "logfmt")
    structlog.get_logger().info("many", **{f"key{n}": "é" * 5_000 for n in range(20)})
    (line,) = lines(capsys)
    assert len(line.encode()) < LOGPLEX_BYTES
    assert all(parsed(line)[f"key{n}"].startswith("ééé") for n in range(20))


@pytest.mark.parametrize("log_format", ["logfmt", "json"])
def test_line_of_too_many_values_still_says_which_event_it_was(
    capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    configure("info", log_format)
    structlog.get_logger().info("many", session="s-1", **{f"k{n}": "🙂" * 40 for n in range(500)})
    (line,) = lines(capsys)
    assert len(line.encode()) < LOGPLEX_BYTES
    found = parsed(line) if log_format == "logfmt" else json.loads(line)
    assert set(found) == {"timestamp", "level", "event", "session", "shortened"}
    assert (found["event"], found["session"]) == ("many", "s-1")


@pytest.mark.parametrize("spare", range(-30, 30, 3))
def test_line_that_just_fits_is_left_alone_and_one_that_does_not_is_shortened(
    capsys: pytest.CaptureFixture[str], spare: int
) -> None:
    configure("info", "logfmt")
    structlog.get_logger().info("e", text="x")
    (probe,) = lines(capsys)
    structlog.get_logger().info("e", text="x" * (LINE_BYTES - len(probe) + 1 + spare))
    (line,) = lines(capsys)
    assert ("more)" in line) is (spare > 0)
    assert len(line) <= LINE_BYTES < LOGPLEX_BYTES


@pytest.mark.parametrize("seed", range(10))
def test_no_mixture_of_texts_makes_a_line_too_long(
    capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311 - no secret
    configure("debug", chance.choice(["logfmt", "json"]))
    pieces = [text[:1] for text in LONG.values()]
    for _ in range(20):
        text = "".join(chance.choices(pieces, k=chance.randrange(8_000)))
        log_sink()(events.NotStopped(launch=text[:99], dyno=text[:500], why=text, attempt=1))
    found = lines(capsys)
    assert len(found) == 20
    assert max(len(line.encode()) for line in found) < LOGPLEX_BYTES


@given(st.text(st.characters()), st.integers(0, 50))
@settings(deadline=None, derandomize=True, database=None)
def test_shortened_text_has_its_beginning_its_end_and_how_much_is_left_out(
    text: str, most: int
) -> None:
    found = shortened(text, most)
    if len(text) <= most:
        assert found == text
    else:
        head, tail = text[: most // 2], text[len(text) - (most - most // 2) :]
        assert found == f"{head}… ({len(text) - most} more) …{tail}"


def test_end_of_a_traceback_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "logfmt")
    structlog.get_logger().error("internal_error", exc_info=ValueError("x" * 20_000 + " the end"))
    (line,) = lines(capsys)
    assert line.endswith('the end"')


# Texts


@given(st.text(st.characters(categories=["Cs", "Cc", "Cf", "Lo"])))
@settings(deadline=None, derandomize=True, database=None)
def test_inert_text_can_be_encoded(text: str) -> None:
    inert(text).encode()


@pytest.mark.parametrize("log_format", FORMATS)
@pytest.mark.parametrize(
    "event", [message(payload=b"secret"), call(payload=b"secret")], ids=lambda event: event.name
)
def test_payload_is_not_logged(
    capsys: pytest.CaptureFixture[str], log_format: str, event: events.Event
) -> None:
    configure("debug", log_format)
    log_sink()(event)
    (line,) = lines(capsys)
    assert "secret" not in line
    assert "payload" not in line


def test_size_of_a_message_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    configure("debug", "logfmt")
    log_sink()(message())
    (line,) = lines(capsys)
    assert parsed(line)["bytes"] == "7"


@pytest.mark.parametrize("log_format", FORMATS)
def test_bytes_that_somebody_logs_are_told_by_their_number(
    capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    configure("info", log_format)
    structlog.get_logger().info("e", body=b"secret")
    (line,) = lines(capsys)
    assert "secret" not in line
    assert "(6 bytes)" in line


# Figures in lines


@pytest.mark.parametrize(
    ("event", "figure"),
    [
        (call(ms=12.5), {"measure#rendezvous.call": "12.5ms"}),
        (events.Ready(session="s", pid=1, boot_s=5.25), {"measure#rendezvous.ready": "5.25s"}),
        (
            events.Resumed(session="s", epoch=2, parted_s=1.5),
            {"measure#rendezvous.resumed": "1.5s"},
        ),
        (events.Idle(session="s", calls=1), {}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_line_tells_its_figure_as_addons_find_it(
    capsys: pytest.CaptureFixture[str], event: events.Event, figure: dict[str, str]
) -> None:
    configure("info", "logfmt")
    log_sink()(event)
    (line,) = lines(capsys)
    found = {key: value for key, value in parsed(line).items() if "#" in key}
    assert found == figure


def test_json_has_no_figure_twice(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "json")
    log_sink()(call())
    (line,) = lines(capsys)
    assert not [key for key in json.loads(line) if "#" in key]


# Levels


def sink_of(general: str, set_: dict[str, str], **servers: str) -> Any:
    configure(general, "logfmt")
    levels = Levels(MemoryStore(), general)
    levels._take(set_)  # type: ignore[arg-type]
    return log_sink(levels, lambda session: servers.get(session, ""))


def test_server_at_debug_shows_its_messages_though_the_general_level_is_info(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sink = sink_of("info", {"loud": "debug"}, a="loud", b="quiet")
    sink(message("a"))
    sink(message("b"))
    (line,) = lines(capsys)
    found = parsed(line)
    assert (found["session"], found["level"], found["event"]) == ("a", "debug", "message")


@pytest.mark.parametrize("set_", ["warning", "error"])
def test_server_at_a_higher_level_tells_less_than_the_others(
    capsys: pytest.CaptureFixture[str], set_: str
) -> None:
    sink = sink_of("info", {"calm": set_}, a="calm", b="other")
    sink(events.Idle(session="a", calls=1))
    sink(events.Idle(session="b", calls=1))
    sink(events.Breach(session="a", cause="x"))
    assert [parsed(line)["session"] for line in lines(capsys)] == ["b", "a"]


def test_event_that_names_its_server_needs_no_session_to_be_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sink = sink_of("info", {"calm": "error"})
    sink(call("calm"))
    sink(call("other"))
    assert [parsed(line)["server"] for line in lines(capsys)] == ["other"]


def test_event_of_no_server_has_the_general_level(capsys: pytest.CaptureFixture[str]) -> None:
    sink = sink_of("info", {"loud": "debug", "calm": "error"})
    sink(events.StoreBack(store="valkey", seconds=1.0))
    sink(message("of nobody"))
    assert [parsed(line)["event"] for line in lines(capsys)] == ["store_back"]


@pytest.mark.parametrize("general", ["debug", "info", "warning", "error"])
def test_without_levels_of_servers_all_have_the_general_one(
    capsys: pytest.CaptureFixture[str], general: str
) -> None:
    every = [
        message(),
        events.Idle(session="s", calls=1),
        events.Parted(session="s", epoch=1, cause="x"),
        events.Breach(session="s", cause="x"),
    ]
    sink = sink_of(general, {})
    for event in every:
        sink(event)
    at = ["debug", "info", "warning", "error"].index(general)
    assert [parsed(line)["event"] for line in lines(capsys)] == [event.name for event in every[at:]]


async def test_level_that_is_set_holds_for_the_next_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure("info", "logfmt")
    async with MemoryStore() as store:
        levels = Levels(store, "info")
        sink = log_sink(levels, lambda _session: "srv")
        for level in (None, "debug", None):
            await levels.set("srv", level)
            sink(message(str(level)))
    assert [parsed(line)["session"] for line in lines(capsys)] == ["debug"]


def test_event_below_its_level_is_not_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    asked = []

    def server_of(session: str) -> str:
        asked.append(session)
        return ""

    configure("info", "logfmt")
    log_sink(Levels(MemoryStore(), "info"), server_of)(message())
    assert (asked, lines(capsys)) == ([], [])


# Libraries


def library(level: int, text: str, *arguments: object, **more: Any) -> logging.LogRecord:
    return logging.LogRecord("some.library", level, "f", 1, text, arguments, more.get("exc_info"))


@pytest.mark.parametrize(
    ("level", "name"),
    [
        (logging.CRITICAL, "error"),
        (logging.ERROR, "error"),
        (logging.WARNING, "warning"),
        (35, "warning"),
    ],
)
def test_what_a_library_says_is_one_line_like_ours(
    capsys: pytest.CaptureFixture[str], level: int, name: str
) -> None:
    configure("info", "logfmt")
    FromLibraries().emit(library(level, "two\nlines of %s", "it"))
    (line,) = lines(capsys)
    found = parsed(line)
    assert (found["level"], found["event"], found["source"]) == (name, "library", "some.library")
    assert "two\\nlines of it" in line.replace("\\\\", "\\")


def test_traceback_of_a_library_is_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "logfmt")
    try:
        int("the cause")
    except ValueError:
        FromLibraries().emit(library(logging.ERROR, "x", exc_info=sys.exc_info()))
    (line,) = lines(capsys)
    assert "the cause" in parsed(line)["trace"]


@pytest.mark.parametrize("arguments", [("a", "b"), ({"k": 1},)])
def test_record_whose_arguments_do_not_fit_is_told_as_it_is(
    capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...]
) -> None:
    configure("info", "logfmt")
    FromLibraries().emit(library(logging.WARNING, "about %(what)s", *arguments))
    (line,) = lines(capsys)
    assert parsed(line)["text"] == "about %(what)s"
