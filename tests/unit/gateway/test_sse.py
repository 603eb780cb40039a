"""Proves that a message is one SSE event, byte for byte, and that a keep-alive is none."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyno_agent.link.resumption import GENERAL, MAX_ID, label
from gateway.edge.sse import (
    COMMENT,
    KEEP_ALIVE_S,
    RETRY,
    RETRY_MS,
    event,
    event_id,
    position,
    priming,
)


@pytest.mark.parametrize("raw", [b'{"a":1}', b'{"a":"\xc3\xa9\xe2\x80\xa8"}', b" {} ", b"data: x"])
def test_event_holds_the_message_unchanged(raw: bytes) -> None:
    assert event(raw) == b"event: message\ndata: " + raw + b"\n\n"


def test_event_with_a_place_on_its_stream_has_an_id() -> None:
    assert event(b"{}", 7, "i1") == b"id: 7.i1\nevent: message\ndata: {}\n\n"


def test_priming_event_has_an_id_and_no_data() -> None:
    lines = priming(7, "i1").decode().split("\n")
    assert lines == ["id: 7.i1", f"retry: {RETRY_MS}", "data: ", "", ""]


def test_retry_alone_is_no_event() -> None:
    assert RETRY.split(b"\n") == [b"retry: %d" % RETRY_MS, b"", b""]


ids = st.integers() | st.text(max_size=MAX_ID) | st.just("\U0010ffff" * MAX_ID) | st.just("\ud800")


@given(st.integers(0, 2**63 - 1), st.just(GENERAL) | ids.map(label))
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_event_id_leads_back_to_its_place_and_stream(place: int, stream: str) -> None:
    text = event_id(place, stream)
    assert text.isascii()
    assert position(text) == (place, stream)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "1",
        "-1.i1",
        "+1.i1",
        " 1.i1",
        "1.i1\n",
        "\u0661.i1",
        "1.i 1",
        "1.i1.i2",
        "9" * 99 + ".",
    ],
)
def test_text_that_is_no_event_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="event id"):
        position(text)


def test_keep_alive_is_a_comment_and_a_blank_line() -> None:
    first, *rest = COMMENT.split(b"\n")
    assert (first[:1], rest) == (b":", [b"", b""])


def test_keep_alive_comes_twice_within_the_routers_idle_limit() -> None:
    assert KEEP_ALIVE_S * 2 < 55.0
