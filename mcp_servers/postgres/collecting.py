"""Rows are kept until there are enough, by number or by size. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mcp_servers.postgres.settings import MAX_OUTPUT, MAX_ROWS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mcp_servers.postgres.settings import Settings

SEPARATOR = 2
"""Bytes between two values."""


class Collector:
    """Takes values in rows, and says when it is full.

    Args:
        settings: How much it may take.
        share: One value gets at most this part of it: 8 is an eighth.

    Attributes:
        rows: What it has; each value as JSON has it.
        full: Whether a row did not fit; all further ones are dropped.
    """

    def __init__(self, settings: Settings, *, share: int) -> None:
        self._settings = settings
        self._most_of_one = settings.max_output_bytes // share
        self._room = settings.max_output_bytes
        self._notes: dict[str, None] = {}
        self.rows: list[list[Any]] = []
        self.full = False

    def add(self, row: Sequence[Any]) -> None:
        """Take a row, cutting values that are too long; or become full."""
        if self.full:
            return
        if len(self.rows) >= self._settings.max_rows:
            self._fill(f"There are more rows: the limit of {self._settings.max_rows} is", MAX_ROWS)
            return
        sized = [self._cut(value) for value in row]
        size = sum(size for _, size in sized) + SEPARATOR
        if size > self._room:
            limit = self._settings.max_output_bytes
            self._fill(f"There are more rows: the limit of {limit} bytes is", MAX_OUTPUT)
            return
        self._room -= size
        self.rows.append([value for value, _ in sized])

    @property
    def note(self) -> str | None:
        """What is missing, in sentences that name the limits' variables; None if nothing."""
        return " ".join(self._notes) or None

    def _fill(self, what: str, variable: str) -> None:
        self.full = True
        self._notes[f"{what} set by {variable}."] = None

    def _cut(self, value: Any) -> tuple[Any, int]:
        """The value and its size as JSON; as a text with a mark at the end, if it is too long."""
        text = json.dumps(value, ensure_ascii=False)
        size = len(text.encode())
        limit = self._most_of_one
        if size <= limit:
            return value, size + SEPARATOR
        self._notes[
            f"Values longer than {limit} bytes are cut: the limit follows from {MAX_OUTPUT}."
        ] = None
        whole = (value if isinstance(value, str) else text).encode()
        kept = whole[: limit // 2].decode(errors="ignore")  # JSON can make twice as much of it
        cut = f"{kept}[… {len(whole) - len(kept.encode())} bytes cut]"
        return cut, len(json.dumps(cut, ensure_ascii=False).encode()) + SEPARATOR
