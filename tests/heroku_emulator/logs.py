"""An app's log, as Logplex keeps it: the last lines, and whoever follows them.

Lines have a source, `app` (what a dyno writes) or `heroku` (what happened to it), and a dyno.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING

from tests.heroku_emulator.model import Moment, new_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

KEPT = 1500
"""Lines that Logplex keeps of an app."""

LONGEST_BYTES = 10_000
"""A longer line is cut into several."""

SHOWN = 100
"""Lines shown when nobody says how many."""

SESSION_S = 300.0
"""How long the URL of a log session can be opened."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line; `number` counts the app's lines from 1 on."""

    number: int
    at: Moment
    source: str
    dyno: str
    text: str

    def __str__(self) -> str:
        stamp = datetime.fromtimestamp(self.at.wall, UTC).isoformat(timespec="microseconds")
        return f"{stamp} {self.source}[{self.dyno}]: {self.text}"


@dataclass(frozen=True, slots=True)
class LogSession:
    """What a log session shows.

    Attributes:
        dyno: the name or the process type of the dynos shown; None is all.
        lines: how many of the past ones.
        tail: whether it goes on with the coming ones.
    """

    app: str
    source: str | None
    dyno: str | None
    type: str | None
    lines: int
    tail: bool
    opened: Moment
    id: str = field(default_factory=new_id)

    def shows(self, line: Line) -> bool:
        """Say whether a line belongs to what is shown."""
        process_type = line.dyno.partition(".")[0]
        return (
            self.source in (None, line.source)
            and self.dyno in (None, line.dyno, process_type)
            and self.type in (None, process_type)
        )


class Log:
    """The lines of one app."""

    def __init__(self) -> None:
        self._lines: deque[Line] = deque(maxlen=KEPT)
        self._written = 0
        self._grown = asyncio.Event()

    def write(self, source: str, dyno: str, text: str) -> None:
        """Add what a dyno wrote, or what happened to it; one line of text."""
        self._written += 1
        self._lines.append(Line(self._written, Moment.now(), source, dyno, text))
        self._grown.set()
        self._grown = asyncio.Event()

    def lines(self) -> list[str]:
        """Return all lines kept, as they are shown."""
        return [str(line) for line in self._lines]

    def recent(self, session: LogSession) -> list[Line]:
        """Return the past lines that the session shows."""
        shown = [line for line in self._lines if session.shows(line)]
        return shown[-session.lines :] if session.lines > 0 else []

    async def follow(self, session: LogSession) -> AsyncIterator[Line]:
        """Yield the past lines, and if it is a tail the coming ones, for ever.

        A reader that is slower than the log misses what is no longer kept.
        """
        last = self._written
        for line in self.recent(session):
            yield line
        while session.tail:
            grown = self._grown  # before it is looked: a line written meanwhile is not waited for
            for line in self._since(last):
                last = line.number
                if session.shows(line):
                    yield line
            await grown.wait()

    def _since(self, last: int) -> list[Line]:
        new = min(self._written - last, len(self._lines))
        return list(islice(reversed(self._lines), new))[::-1]


class Cutter:
    """Makes lines of what a dyno writes, piece by piece."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """Return the lines that are complete now; b"" is the end, and gives out the rest."""
        *whole, rest = (self._rest + data).split(b"\n")
        if not data and rest:
            whole.append(rest)
            rest = b""
        while len(rest) > LONGEST_BYTES:
            whole.append(rest[:LONGEST_BYTES])
            rest = rest[LONGEST_BYTES:]
        self._rest = rest
        return [text for line in whole for text in _pieces(line)]


def _pieces(line: bytes) -> list[str]:
    starts = range(0, max(len(line), 1), LONGEST_BYTES)
    return [line[at : at + LONGEST_BYTES].decode(errors="replace") for at in starts]
