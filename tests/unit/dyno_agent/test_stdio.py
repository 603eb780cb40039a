"""A child's stdout becomes the same lines however the pipe cuts it, and no line costs too much."""

import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyno_agent.stdio import LineSplitter, Oversized

LIMIT = 20

pieces = st.sampled_from(
    (b"{}", b'"\xe2\x80\xa8"', b'"\xc2\x85"', b"\x0b\x0c\x1c", b" ", b"\t", b"\r", b"x" * 19, b"")
)
streams = st.lists(pieces | st.binary(max_size=25), max_size=12).map(b"\n".join)


def split(chunks: list[bytes], limit: int = LIMIT) -> list[bytes | Oversized]:
    splitter = LineSplitter(limit)
    lines = [line for chunk in chunks for line in splitter.feed(chunk)]
    return lines + splitter.finish()


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in pairwise(edges)]


def plainly(stream: bytes) -> list[bytes | Oversized]:
    """Say what the lines are, without any state."""
    return [
        Oversized(len(line)) if len(line) > LIMIT else line.strip(b" \t\r")
        for line in stream.split(b"\n")
        if len(line) > LIMIT or line.strip(b" \t\r")
    ]


@settings(deadline=None, derandomize=True)
@given(streams, st.lists(st.integers(0, 400), max_size=20))
def test_lines_are_the_same_however_the_stream_is_cut(stream: bytes, places: list[int]) -> None:
    assert split(cut(stream, places)) == plainly(stream)


@settings(deadline=None, derandomize=True)
@given(streams)
def test_lines_are_the_same_when_bytes_come_one_by_one(stream: bytes) -> None:
    assert split([bytes([byte]) for byte in stream]) == plainly(stream)


@pytest.mark.parametrize(
    "inside",
    ["\u2028", "\u2029", "\u0085", "\v", "\f", "\x1c", "\x1d", "\x1e", "\r"],
    ids=ascii,
)
def test_only_a_line_feed_ends_a_line(inside: str) -> None:
    line = f'"a{inside}b"'.encode()
    assert split([line + b"\n"]) == [line]


@pytest.mark.parametrize("chunks", [[b"{}\r\n[]\r\n"], [b"{}\r", b"\n[]\r", b"\n"]])
def test_carriage_return_before_the_line_feed_is_left_out(chunks: list[bytes]) -> None:
    assert split(chunks) == [b"{}", b"[]"]


def test_empty_and_blank_lines_are_left_out() -> None:
    assert split([b"\n\n{}\n\r\n \t\n[]\n\n"]) == [b"{}", b"[]"]


def test_line_comes_out_with_the_chunk_that_ends_it() -> None:
    splitter = LineSplitter(LIMIT)
    assert splitter.feed(b"[1") == []
    assert splitter.feed(b"]\n[2]\n[") == [b"[1]", b"[2]"]


def test_last_line_without_a_line_feed_comes_out_at_the_end() -> None:
    splitter = LineSplitter(LIMIT)
    assert splitter.feed(b"[1]\n[2]") == [b"[1]"]
    assert splitter.finish() == [b"[2]"]
    assert splitter.finish() == []


def test_line_of_exactly_the_limit_is_kept() -> None:
    assert split([b"x" * LIMIT + b"\n"]) == [b"x" * LIMIT]


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_oversized_line_is_told_by_its_size_and_the_next_one_is_intact(step: int) -> None:
    stream = b"{}\n" + b"x" * 50 + b"\n[]\n" + b"y" * (LIMIT + 1) + b"\n{}\n"
    chunks = [stream[at : at + step] for at in range(0, len(stream), step)]
    assert split(chunks) == [b"{}", Oversized(50), b"[]", Oversized(LIMIT + 1), b"{}"]


def test_oversized_line_at_the_end_is_told() -> None:
    assert split([b"x" * 15, b"x" * 15]) == [Oversized(30)]


def test_oversized_line_costs_no_more_memory_than_the_limit() -> None:
    limit, chunk = 1_000_000, 100_000
    splitter = LineSplitter(limit)
    tracemalloc.start()
    try:
        for _ in range(100):
            assert splitter.feed(bytes(chunk)) == []
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit + 4 * chunk
    assert splitter.feed(b"\n{}\n") == [Oversized(100 * chunk), b"{}"]
