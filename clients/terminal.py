"""What the clients write: JSON on stdout, progress and one-sentence errors on stderr.

Text that came from a server is never written raw to a terminal: it could move the cursor or
re-colour the window. Knows nothing of the protocol.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping

SENTENCE_LIMIT = 2000
"""Characters of a server's own text repeated on stderr; the rest adds nothing to a sentence."""

ERASE_LINE = "\r\x1b[K"


def plain(text: str, limit: int = SENTENCE_LIMIT) -> str:
    """The text on one line, without control characters, cut at `limit` characters."""
    line = " ".join(text[: 4 * limit].split())
    line = "".join(character for character in line if character.isprintable())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def write_json(value: Mapping[str, Any], stream: TextIO) -> None:
    """Write the value as indented JSON that any encoding of the stream can carry."""
    # Under LANG=C an é would raise; escaped it is the same JSON.
    unicode_stream = (stream.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(value, indent=2, ensure_ascii=not unicode_stream), file=stream, flush=True)


class ProgressLine:
    """Shows how far a call is: one line updated in place on a terminal, else a line per report."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._in_place = stream.isatty()
        self._drawn = False

    async def report(self, progress: float, total: float | None, message: str | None) -> None:
        """Called by the SDK for each progress notification of the running call.

        Args:
            progress: How much is done, in a unit of the server's choice; it only grows.
            total: How much there is, in the same unit, or None when unknown.
            message: What the server says about it.
        """
        amount = f"{progress:g}" if total is None else f"{progress:g}/{total:g}"
        line = f"progress {amount} {plain(message or '')}".rstrip()
        if not self._in_place:
            print(line, file=self._stream, flush=True)
            return
        columns = shutil.get_terminal_size().columns
        print(ERASE_LINE + line[: columns - 1], end="", file=self._stream, flush=True)
        self._drawn = True

    def clear(self) -> None:
        """Take the line away, so that the next thing written starts on an empty one."""
        if self._drawn:
            print(ERASE_LINE, end="", file=self._stream, flush=True)
            self._drawn = False
