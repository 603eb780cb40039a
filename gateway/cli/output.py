"""What commands write: tables on a terminal, aligned text in a pipe, JSON when asked for.

All text may come from outside. None of it reaches the terminal as a control sequence, forges a
line or turns the reading direction, and rich sees it as data, never as markup.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import typer

from gateway.ops.inertness import inert

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

CELL, PIPED = 60, 500
"""Characters of a cell on a terminal and in a pipe; it shows where more are missing."""


class Cell(NamedTuple):
    """Text with a colour, such as `red`."""

    text: str
    style: str = ""


class Column(NamedTuple):
    """A column of a table: its title, and whether it holds figures."""

    title: str
    figures: bool = False


Row = Sequence[str | Cell]


def cut(text: str, most: int = CELL) -> str:
    """Return inert text of at most so many characters."""
    text = inert(text[: 4 * most])
    return text if len(text) <= most else f"{text[: most - 1]}…"


def console(*, stderr: bool = False) -> "Console":
    """Return rich's console for one of the streams; it takes nothing for markup."""
    from rich.console import Console  # noqa: PLC0415 - only commands that draw need it

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def on_terminal(stream: TextIO | None = None) -> bool:
    """Whether a person looks at the stream: stdout, unless another is named."""
    return (stream or sys.stdout).isatty()


def document(value: Any) -> None:
    """Write one JSON document; whatever is not ASCII is escaped."""
    typer.echo(json.dumps(value, indent=2))


def json_line(value: Any) -> None:
    """Write one JSON document on one line."""
    typer.echo(json.dumps(value, separators=(",", ":")))
    sys.stdout.flush()


def note(sentence: str) -> None:
    """Write a sentence beside the data, to stderr."""
    typer.echo(inert(sentence, "\n"), err=True)


def complain(sentence: str) -> None:
    """Write why a command ends. What is wrong with settings may take several lines."""
    note(f"gateway: {sentence}")


def table(columns: Sequence[Column], rows: Sequence[Row]) -> None:
    """Write a table."""
    if on_terminal():
        console().print(drawn(columns, rows))
        return
    for line in aligned(columns, rows):
        typer.echo(line)


def facts(pairs: Iterable[tuple[str, str | Cell]]) -> None:
    """Write names and values, those without a value left out."""
    shown = [(name, value) for name, value in pairs if _text(value)]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        style = value.style if isinstance(value, Cell) else ""
        line(f"{name.ljust(width)}  ", cut(_text(value), 500), style)


def line(before: str, text: str, style: str = "") -> None:
    """Write a line of which the text has a colour, where there are colours."""
    if not on_terminal():
        typer.echo(inert(f"{before}{text}"))
        return
    from rich.text import Text  # noqa: PLC0415

    styled = Text(inert(before), end="").append(inert(text), style)
    console().print(styled, soft_wrap=True)


def verbatim(text: str) -> None:
    """Write text that is to be pasted elsewhere, on lines of its own."""
    typer.echo(inert(text, "\n\t"))


def heading(text: str) -> None:
    """Write the title of what follows."""
    typer.echo("")
    line("", text, "bold")


def drawn(columns: Sequence[Column], rows: Sequence[Row]) -> "RenderableType":
    """Return a table for rich, a line a row. The first column is what people copy: never cut."""
    from rich.cells import cell_len  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    made = Table(box=None, pad_edge=False, header_style="bold")
    whole = max((cell_len(cut(_text(row[0]))) for row in rows), default=0)
    for place, column in enumerate(columns):
        made.add_column(
            column.title,
            justify="right" if column.figures else "left",
            no_wrap=True,
            min_width=whole if place == 0 else None,
            overflow="ignore" if place == 0 else "ellipsis",
        )
    for row in rows:
        cells = [cell if isinstance(cell, Cell) else Cell(cell) for cell in row]
        made.add_row(*(Text(cut(cell.text), cell.style) for cell in cells))
    return made


def aligned(columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    """Return the lines of a table in plain text, as wide as it takes."""
    from rich.cells import cell_len  # noqa: PLC0415 - knows the width of 漢

    texts = [[column.title for column in columns]]
    texts += [[cut(_text(cell), PIPED) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*texts, strict=True)]
    lines = []
    for row in texts:
        padded = []
        for text, width, column in zip(row, widths, columns, strict=True):
            gap = " " * (width - cell_len(text))
            padded.append(gap + text if column.figures else text + gap)
        lines.append("  ".join(padded).rstrip())
    return lines


def _text(cell: str | Cell) -> str:
    return cell.text if isinstance(cell, Cell) else cell


def span(seconds: float) -> str:
    """Return a duration in two units at most: `850ms`, `12s`, `3m 05s`, `2h 10m`, `4d 03h`."""
    if not 0 <= seconds < 1e9:
        return "?"
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    whole = int(seconds)
    for unit, size, lesser, part in (("d", 86_400, "h", 3600), ("h", 3600, "m", 60)):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // part:02}{lesser}"
    return f"{whole // 60}m {whole % 60:02}s" if whole >= 60 else f"{whole}s"


def amount(count: float) -> str:
    """Return a number of bytes in the largest unit that fits."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def usd(value: float | None) -> str:
    """Return a sum of money; a dyno of a minute costs a fraction of a cent."""
    if value is None:
        return ""
    return f"${value:.2f}" if abs(value) >= 1 or value == 0 else f"${value:.4f}"


def moment(at: float) -> datetime | None:
    """Return a time in UTC; None for a number that is none."""
    try:
        return datetime.fromtimestamp(at, UTC)
    except (OverflowError, ValueError, OSError):
        return None


def stamp(at: float) -> str:
    """Return a time for people and machines; empty for none."""
    told = moment(at) if at else None
    return "" if told is None else told.strftime("%Y-%m-%d %H:%M:%SZ")
