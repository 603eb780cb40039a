"""Bytes of a child's stdout into messages: newline-delimited JSON-RPC (MCP, stdio transport).

Pure. Lines are split on LF only, as the specification says: `str.splitlines` would also split on
U+2028 and other characters that are legal inside JSON.
"""

from __future__ import annotations

from typing import NamedTuple


class Oversized(NamedTuple):
    """A line over the limit was thrown away, up to its end."""

    size: int


class LineSplitter:
    """Collects stdout into whole lines.

    Args:
        limit: largest line in bytes; a longer one is dropped while it arrives, so that it never
            costs more memory than this.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[bytes | Oversized]:
        """Take a chunk and return the lines it completed, without their ends; no empty ones."""
        *ended, rest = data.split(b"\n")
        lines = [line for part in ended if (line := self._end(part))]
        self._keep(rest)
        return lines

    def finish(self) -> list[bytes | Oversized]:
        """Return what stood after the last newline when stdout was closed."""
        line = self._end(b"")
        return [line] if line else []

    def _keep(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._limit:
            self._parts.clear()
        elif part:
            self._parts.append(part)

    def _end(self, part: bytes) -> bytes | Oversized | None:
        self._keep(part)
        size, self._size = self._size, 0
        if size > self._limit:
            return Oversized(size)
        line = b"".join(self._parts)
        self._parts.clear()
        return line.strip(b" \t\r") or None
