"""Lists in pages: `Range` in the request, `Content-Range` and `Next-Range` in the answer.

Range: id ..; max=10, order=desc        the first ten from the end
Next-Range: id ]2d4f...; max=10, order=desc   what to ask for next; the bracket excludes
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.heroku_emulator.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Sequence

LARGEST = 1000
"""Items that a page may have at most."""

ACCEPTED = ("id", "name", "type", "version", "created_at", "updated_at")
"""Fields that lists can be ordered by, where their items have them."""

_RANGE = re.compile(r"(\w+)\s*(\]?)([^;\[\]]*?)\.\.([^;\[\]]*)(\[?)\s*(?:;(.*))?")


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list, and the headers that say which."""

    items: list[dict[str, Any]]
    headers: dict[str, str]
    complete: bool


def page(items: Sequence[dict[str, Any]], asked: str | None, page_size: int) -> Page:
    """Return the part of a list that a `Range` header asks for.

    Raises:
        ApiError: 416, the header is not one.
    """
    match = _RANGE.fullmatch((asked or "id ..").strip())
    if match is None:
        raise _unsatisfiable(asked)
    name, after, first, last, before, rest = match.groups()
    accepted = [field for field in ACCEPTED if not items or field in items[0]]
    if name not in accepted:
        raise _unsatisfiable(asked)
    options = dict(re.findall(r"(\w+)\s*=\s*(\w+)", rest or ""))
    most = int(options.get("max", page_size)) if options.get("max", "1").isdigit() else 0
    if not 1 <= most <= LARGEST or options.get("order", "asc") not in ("asc", "desc"):
        raise _unsatisfiable(asked)
    descending = options.get("order") == "desc"

    def rank(value: object) -> Any:
        return int(str(value)) if name == "version" else str(value)

    ordered = sorted(items, key=lambda item: rank(item[name]), reverse=descending)
    low, high = (last, first) if descending else (first, last)
    low_open, high_open = (before, after) if descending else (after, before)
    chosen = [
        item
        for item in ordered
        if (not low or _above(rank(item[name]), rank(low), open_end=bool(low_open)))
        and (not high or _above(rank(high), rank(item[name]), open_end=bool(high_open)))
    ]
    part = chosen[:most]
    headers = {"Accept-Ranges": ", ".join(accepted)}
    if part:
        headers["Content-Range"] = f"{name} {part[0][name]}..{part[-1][name]}; max={most}"
    complete = len(part) == len(chosen)
    if not complete:
        order = ", order=desc" if descending else ""
        headers["Next-Range"] = f"{name} ]{part[-1][name]}..{last}{before}; max={most}{order}"
    return Page(part, headers, complete)


def _above(value: Any, bound: Any, *, open_end: bool) -> bool:
    return bool(value > bound) if open_end else bool(value >= bound)


def _unsatisfiable(asked: str | None) -> ApiError:
    return ApiError(416, "requested_range_not_satisfiable", f"Invalid `Range` header: {asked}")
