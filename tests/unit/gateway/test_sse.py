"""Proves that a message is one SSE event, byte for byte, and that a keep-alive is none."""

import pytest

from gateway.edge.sse import COMMENT, KEEP_ALIVE_S, event


@pytest.mark.parametrize("raw", [b'{"a":1}', b'{"a":"\xc3\xa9\xe2\x80\xa8"}', b" {} ", b"data: x"])
def test_event_holds_the_message_unchanged(raw: bytes) -> None:
    assert event(raw) == b"event: message\ndata: " + raw + b"\n\n"


def test_keep_alive_is_a_comment_and_a_blank_line() -> None:
    first, *rest = COMMENT.split(b"\n")
    assert (first[:1], rest) == (b":", [b"", b""])


def test_keep_alive_comes_twice_within_the_routers_idle_limit() -> None:
    assert KEEP_ALIVE_S * 2 < 55.0
