"""Lists in pages."""

from __future__ import annotations

from typing import Any

import pytest

from tests.heroku_emulator.errors import ApiError
from tests.heroku_emulator.pages import page

RELEASES = [{"id": f"id-{n:02}", "version": n} for n in (3, 1, 11, 2, 10)]


def versions(items: list[dict[str, Any]]) -> list[int]:
    return [item["version"] for item in items]


def walk(asked: str | None, page_size: int = 200) -> list[int]:
    """All pages, as a client that obeys Next-Range sees them."""
    seen: list[int] = []
    while True:
        part = page(RELEASES, asked, page_size)
        seen += versions(part.items)
        if part.complete:
            assert "Next-Range" not in part.headers
            return seen
        asked = part.headers["Next-Range"]


def test_without_a_range_the_list_is_ordered_by_id() -> None:
    part = page(RELEASES, None, 200)
    assert versions(part.items) == [1, 2, 3, 10, 11]
    assert part.complete


def test_the_newest_release_is_the_first_in_descending_order() -> None:
    part = page(RELEASES, "version ..; max=1, order=desc", 200)
    assert versions(part.items) == [11]
    assert part.headers["Next-Range"] == "version ]11..; max=1, order=desc"


def test_versions_are_numbers() -> None:
    assert walk("version ..") == [1, 2, 3, 10, 11]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_together_are_the_list_once(size: int, order: str) -> None:
    expected = sorted(versions(RELEASES), reverse=order == "desc")
    assert walk(f"version ..; max={size}, order={order}") == expected


def test_the_platforms_page_size_holds_when_nobody_says() -> None:
    part = page(RELEASES, "id ..; ;", 2)
    assert not part.complete
    assert part.headers["Next-Range"] == "id ]id-02..; max=2"
    assert walk("id ..; ;", 2) == [1, 2, 3, 10, 11]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("version 2..10", [2, 3, 10]),
        ("version ]2..10", [3, 10]),
        ("version 2..10[", [2, 3]),
        ("version 10..2; order=desc", [10, 3, 2]),
        ("version ]10..; order=desc", [3, 2, 1]),
    ],
)
def test_a_range_has_bounds(asked: str, expected: list[int]) -> None:
    assert versions(page(RELEASES, asked, 200).items) == expected


@pytest.mark.parametrize(
    "asked", ["nonsense", "colour ..", "id ..; max=0", "id ..; max=1001", "id ..; order=up"]
)
def test_a_range_that_is_none_is_refused(asked: str) -> None:
    with pytest.raises(ApiError) as refused:
        page(RELEASES, asked, 200)
    assert refused.value.status == 416


def test_an_empty_list_is_a_whole_page() -> None:
    part = page([], "version ..; max=1", 200)
    assert (part.items, part.complete) == ([], True)
