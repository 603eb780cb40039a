"""How passages are cut into chunks, and chunks are read: what both stores have in common."""

from itertools import pairwise

import pytest

from gateway.store.base import Told
from gateway.store.stories import CHUNK_BYTES, CHUNK_COST, Chunk, cost, cut, read

PLENTY = 10**9
CHUNKS: list[Chunk] = [(4, b"four"), (6, b"five\nsix"), (9, b"seven\n\nnine")]


def lines_of(chunks: list[Chunk]) -> list[bytes]:
    return [line for _, text in chunks for line in text.split(b"\n")]


def test_passage_without_lines_has_no_chunk() -> None:
    assert cut([], PLENTY) == []


def test_short_passage_is_one_chunk() -> None:
    assert cut([b"a", b"", b"c"], PLENTY) == [(3, b"a\n\nc")]


def test_long_passage_is_cut_between_lines() -> None:
    lines = [b"%d" % n * (n % 97) for n in range(5000)]
    chunks = cut(lines, PLENTY)
    assert lines_of(chunks) == lines
    assert all(len(text) <= CHUNK_BYTES for _, text in chunks)
    assert all(end > before for (before, _), (end, _) in pairwise(chunks))
    assert all(lines[end - 1] == text.split(b"\n")[-1] for end, text in chunks)


def test_lines_fill_a_chunk_to_the_last_byte() -> None:
    assert [end for end, _ in cut([b"x" * (CHUNK_BYTES - 5), b"four", b""], PLENTY)] == [2, 3]


def test_line_that_is_longer_than_a_chunk_is_one_of_its_own() -> None:
    long = b"x" * (CHUNK_BYTES + 1)
    assert cut([b"a", long, b"b"], PLENTY) == [(1, b"a"), (2, long), (3, b"b")]


def test_of_a_passage_longer_than_a_story_may_be_only_its_end_is_cut() -> None:
    chunks = cut([b"x" * 1000] * 1000, 100_000)
    assert chunks[-1][0] == 1000
    assert sum(map(cost, chunks[1:])) <= 100_000 < sum(map(cost, chunks))


def test_chunk_costs_more_than_its_bytes() -> None:
    assert cost((7, b"x" * 10)) == CHUNK_COST + 10


@pytest.mark.parametrize(
    ("after", "most_bytes", "first", "lines"),
    [
        (3, PLENTY, 4, [b"four", b"five", b"six", b"seven", b"", b"nine"]),
        (4, PLENTY, 5, [b"five", b"six", b"seven", b"", b"nine"]),
        (5, PLENTY, 6, [b"six", b"seven", b"", b"nine"]),
        (8, PLENTY, 9, [b"nine"]),
        (9, PLENTY, 10, []),
        (1, PLENTY, 4, [b"four", b"five", b"six", b"seven", b"", b"nine"]),
        (4, 0, 5, [b"five"]),
        (4, 8, 5, [b"five"]),
        (4, 9, 5, [b"five", b"six"]),
        (4, 14, 5, [b"five", b"six"]),
        (4, 15, 5, [b"five", b"six", b"seven"]),
        (4, 16, 5, [b"five", b"six", b"seven", b""]),
    ],
)
def test_what_is_read_is_what_follows_as_much_as_may_be(
    after: int, most_bytes: int, first: int, lines: list[bytes]
) -> None:
    assert read(CHUNKS, 9, after, most_bytes) == Told(first, lines, 9)
