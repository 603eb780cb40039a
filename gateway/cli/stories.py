"""A session's story, line by line, as it was and as it goes on."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any, Final
from urllib.parse import quote

from gateway.cli import output
from gateway.cli.asking import Operators, Refused
from gateway.cli.failing import Failed, Misused, Unreachable
from gateway.cli.output import Cell

QUIET_S: Final = 40.0
"""A stream is taken for dead after so long: the gateway says something every 15 s."""

PAUSES_S: Final = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0)
"""Before each look for a gateway that went away while a session was followed: a restart takes less
than all of them together."""

Line = Mapping[str, Any]

STYLES: Final = {
    "stderr": "dim",
    "stdout_noise": "yellow",
    "dropped": "yellow",
    "gap": "yellow",
    "parted": "red",
    "breach": "red",
    "closing": "yellow",
    "closed": "bold",
}

PLAIN: Final = frozenset({"n", "at", "event"})
"""What each line has and none shows twice."""

WIDE: Final = 300
"""Characters of one field that are shown; --raw shows all."""


async def told(
    gateway: Operators, session: str, *, after: int = 0, last: int | None = None
) -> AsyncGenerator[Line, None]:
    """Yield what a story has, however many pages that takes.

    Raises:
        Failed: no such session.
    """
    following: int | None = after
    while following is not None:
        query = {"after": following, "last": last}
        try:
            lines, more = await gateway.lines(path_of(session, "/story"), query)
        except Refused as refused:
            raise unknown(refused, session) from None
        for line in lines:
            if isinstance(line, dict):
                yield line
        following, last = more if more is None or more > following else None, None


async def followed(gateway: Operators, session: str, after: int) -> AsyncGenerator[Line, None]:
    """Yield what is added to a story until its session is over.

    A stream that breaks is taken up where it was: no line is missed, none comes twice.

    Raises:
        Failed: no such session.
        Unreachable: the gateway stayed away.
    """
    tries = 0
    while True:
        try:
            query = {"after": after}
            async with gateway.stream(path_of(session, "/tail"), query, QUIET_S) as lines:
                async for line in _events(lines):
                    if line is None:
                        return
                    tries, after = 0, _number(line) or after
                    yield line
        except Refused as refused:
            if refused.status < 500:
                raise unknown(refused, session) from None
            failure: Failed = refused
        except Unreachable as away:
            failure = away
        else:
            failure = Unreachable(f"{gateway.url} ends the stream again and again")
        if tries == len(PAUSES_S):
            raise failure
        await asyncio.sleep(PAUSES_S[tries])
        tries += 1


async def _events(lines: AsyncIterator[bytes]) -> AsyncIterator[Line | None]:
    """Yield the data of each event; None for the one that says that there is no more.

    Enough of server-sent events (WHATWG HTML, 9.2.6) for what a gateway sends: one line of data an
    event. What it does not send is ignored.
    """
    data = b""
    kind = b"message"
    async for line in lines:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data = value
        elif name == b"event":
            kind = value
        elif not line:
            if kind == b"end":
                yield None
                return
            if data and isinstance(document := _document(data), dict):
                yield document
            data, kind = b"", b"message"


def _document(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def path_of(session: str, part: str = "") -> str:
    """Return where the API has a session, or a part of it such as `/story`.

    Raises:
        Misused: nothing that could be an id.
    """
    if not session.strip() or session in (".", ".."):
        raise Misused("the id of a session is missing: `gateway sessions` lists them")
    return f"/sessions/{quote(session, safe='')}{part}"


def unknown(refused: Refused, session: str) -> Failed:
    """Return what is said when a session was asked for and the gateway refused."""
    if refused.status != 404:
        return refused
    return Failed(
        f"no session {output.cut(session)}: `gateway sessions --all` lists those that are known"
    )


def _number(line: Any) -> int:
    number = line.get("n") if isinstance(line, dict) else None
    return number if isinstance(number, int) else 0


# How a line looks


class Printer:
    """Prints lines of a story.

    Args:
        grep: only those with this text somewhere, in any case.
        raw: every field, as it is.
        as_json: as JSON lines.
    """

    def __init__(self, grep: str = "", *, raw: bool = False, as_json: bool = False) -> None:
        self._grep = grep.casefold()
        self._raw = raw
        self._json = as_json
        self._day = ""

    def __call__(self, line: Line) -> None:
        """Print a line, unless it is not asked for."""
        if self._grep and self._grep not in _searched(line):
            return
        if self._json:
            output.json_line(line)
        elif self._raw:
            output.line("", raw(line))
        else:
            self._date(line)
            show(line)

    def _date(self, line: Line) -> None:
        at = output.moment(_figure(line, "at"))
        day = "" if at is None else at.strftime("%Y-%m-%d")
        if day != self._day:
            self._day = day
            output.line("", f"── {day or 'no date'} (UTC)", "dim")


def _searched(line: Line) -> str:
    return json.dumps(line, ensure_ascii=False).casefold()


def raw(line: Line) -> str:
    """Return a line as logs have theirs: `key=value`, all of it."""
    return " ".join(f"{name}={_value(value)}" for name, value in line.items())


def show(line: Line) -> None:
    """Print a line for people."""
    at = output.moment(_figure(line, "at"))
    clock = "--:--:--.---" if at is None else f"{at:%H:%M:%S}.{at.microsecond // 1000:03}"
    told = _told(line)
    output.line(f"{clock}  ", told.text, told.style)


def _told(line: Line) -> Cell:
    event = str(line.get("event", "?"))
    if event == "message":
        return _message(line)
    if event == "call":
        return _call(line)
    if event in ("stderr", "stdout_noise"):
        text = output.cut(str(line.get("text", line.get("sample", ""))), 2000)
        return Cell(f"  {event:<14}{text}", STYLES[event])
    rest = "  ".join(
        f"{name} {_short(value)}"
        for name, value in line.items()
        if name not in PLAIN and value is not False and value not in ("", None)
    )
    return Cell(f"  {output.cut(event):<14}{rest}", STYLES.get(event, ""))


def _message(line: Line) -> Cell:
    """Show what went through: an arrow to the right goes to the child."""
    arrow = "→" if line.get("to") == "child" else "←"
    parts = [_name(line), _id(line), output.amount(_figure(line, "bytes")), _payload(line)]
    return Cell(f"{arrow} {_short(line.get('kind')):<14}{_joined(parts)}", "cyan")


def _call(line: Line) -> Cell:
    """Show how a call has ended."""
    outcome = str(line.get("outcome", "?"))
    fine = outcome in ("ok", "catalogue")
    code = "" if line.get("code") is None else f"code {_short(line['code'])}"
    trace = "" if not line.get("trace") else f"trace {_short(line['trace'])}"
    sizes = f"{output.amount(_figure(line, 'bytes_in'))} in"
    sizes += f", {output.amount(_figure(line, 'bytes_out'))} out"
    parts = [
        _name(line),
        _id(line),
        output.cut(outcome),
        code,
        _took(line),
        sizes,
        trace,
        _payload(line),
    ]
    style = "green" if fine else "yellow" if outcome == "cancelled" else "red"
    return Cell(f"{'✓' if fine else '✗'} {'call':<14}{_joined(parts)}", style)


def _took(line: Line) -> str:
    """Return how long a call took, to the millisecond where that is of interest."""
    ms = _figure(line, "ms")
    return f"{ms / 1000:.2f}s" if 1000 <= ms < 60_000 else output.span(ms / 1000)


def _name(line: Line) -> str:
    return " ".join(_short(line[key]) for key in ("method", "tool") if line.get(key))


def _id(line: Line) -> str:
    return f"id {_short(line['call'])}" if line.get("call") not in (None, "") else ""


def _payload(line: Line) -> str:
    return output.cut(str(line["payload"]), WIDE) if line.get("payload") else ""


def _joined(parts: list[str]) -> str:
    return "  ".join(part for part in parts if part)


def _figure(line: Line, name: str) -> float:
    value = line.get(name)
    return value if isinstance(value, int | float) else 0.0


def _short(value: Any) -> str:
    rounded = f"{value:g}" if isinstance(value, float) and abs(value) < 1e6 else None
    return rounded or output.cut(_value(value), WIDE)


def _value(value: Any) -> str:
    """Return a value as `key=value` lines have it: quoted if it could be read otherwise."""
    plain = isinstance(value, str) and value and value.isprintable() and not set(value) & set(' "=')
    return str(value) if plain else json.dumps(value, ensure_ascii=False)


async def logs(
    gateway: Operators, session: str, printer: Printer, *, follow: bool, last: int | None
) -> None:
    """Print a story; follow it to its end if asked to."""
    number = 0
    async with gateway, aclosing(told(gateway, session, last=last)) as so_far:
        async for line in so_far:
            printer(line)
            number = _number(line) or number
        if follow:
            async with aclosing(followed(gateway, session, number)) as news:
                async for line in news:
                    printer(line)
