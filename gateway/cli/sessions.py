"""Sessions at a glance, one in detail, and the end of one that should not run."""

import asyncio
import sys
from dataclasses import dataclass
from typing import Any, Final

import typer

from gateway.cli import output, stories
from gateway.cli.asking import Operators, Query, Refused, shaped
from gateway.cli.failing import Failed, Misused, Unreachable
from gateway.cli.output import Cell, Column
from gateway.ops.admin.shapes import Failures, Session, Sessions
from gateway.ops.inertness import inert

PAGE: Final = 200
"""What the API gives at once, at most."""

REFRESH_S: Final = 2.0
LOOK_S: Final = 0.5

CALLS_SHOWN: Final = 10

COLUMNS: Final = (
    Column("SESSION"),
    Column("STATE"),
    Column("SERVER"),
    Column("PRINCIPAL"),
    Column("CLIENT"),
    Column("AGE", figures=True),
    Column("IDLE", figures=True),
    Column("CALLS", figures=True),
    Column("ERRORS", figures=True),
    Column("COST", figures=True),
)

STYLES: Final = {"ready": "green", "parted": "red", "closing": "yellow", "closed": "dim"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which sessions are asked for.

    Attributes:
        filters: as the API takes them.
        limit: at most so many.
    """

    filters: Query
    limit: int


async def _fetch(gateway: Operators, wanted: Wanted) -> tuple[dict[str, Any], Sessions]:
    """Return the list, all its pages as one: as it came, and in its shape."""
    cursor: str | None = None
    whole: dict[str, Any] = {}
    while True:
        left = wanted.limit - len(whole.get("sessions", ()))
        page: Query = {**wanted.filters, "limit": min(PAGE, left), "cursor": cursor}
        document = await gateway.get("/sessions", page)
        told = shaped(document, Sessions, gateway.url)
        if whole:
            whole["sessions"] += document["sessions"]
            whole["next"] = told.next
        else:
            whole = document
        cursor = told.next
        if cursor is None or not told.sessions or len(whole["sessions"]) >= wanted.limit:
            return whole, shaped(whole, Sessions, gateway.url)


async def show(gateway: Operators, wanted: Wanted, *, as_json: bool) -> None:
    """Print the sessions there are."""
    async with gateway:
        document, told = await _fetch(gateway, wanted)
    if as_json:
        output.document(document)
        return
    if not told.sessions:
        output.note("no session (--all shows those that have ended)")
        return
    output.table(COLUMNS, _rows(told))
    output.note(_foot(told))


async def watch(gateway: Operators, wanted: Wanted) -> None:
    """Show the sessions there are until Ctrl-C."""
    if not output.on_terminal():
        raise Misused("--watch draws on a terminal: leave it out, or follow one with `logs -f`")
    from rich.console import Group  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    shown: Any = Text("")
    async with gateway:
        with Live(console=output.console(), auto_refresh=False, screen=True) as live:
            while True:
                try:
                    _, told = await _fetch(gateway, wanted)
                except Unreachable as error:
                    foot = Text(inert(str(error)), "red")
                else:
                    shown = output.drawn(COLUMNS, _rows(told))
                    foot = Text(inert(_foot(told)), "dim")
                live.update(Group(shown, Text(""), foot), refresh=True)
                await asyncio.sleep(REFRESH_S)


def _rows(told: Sessions) -> list[list[str | Cell]]:
    return [
        [
            session.session,
            _state(session),
            session.server,
            session.principal,
            session.client,
            output.span(session.age_s),
            "" if session.ended else output.span(session.idle_s),
            str(session.calls),
            Cell(str(session.errors), "red" if session.errors else ""),
            output.usd(session.usd),
        ]
        for session in told.sessions
    ]


def _state(session: Session) -> Cell:
    reason = f" ({session.reason})" if session.reason else ""
    return Cell(session.state + reason, STYLES.get(session.state, ""))


def _foot(told: Sessions) -> str:
    states = ", ".join(f"{count} {state}" for state, count in told.by_state.items() if count)
    shown = f"{len(told.sessions)} of {told.total} shown"
    more = ", more with --limit" if told.next else ""
    return f"{shown}{more}; there are {states}" if states else f"{shown}{more}"


async def _one(gateway: Operators, session: str) -> Any:
    try:
        return await gateway.get(stories.path_of(session))
    except Refused as refused:
        raise stories.unknown(refused, session) from None


async def inspect(gateway: Operators, session: str, *, as_json: bool) -> None:
    """Print what is known of a session: facts, last calls, what went wrong and what to do."""
    async with gateway:
        document = await _one(gateway, session)
        told = shaped(document, Session, gateway.url)
        lines = [line async for line in stories.told(gateway, session, last=1000)]
        wrong = await gateway.get("/failures", {"q": session, "limit": 50})
    failures = shaped(wrong, Failures, gateway.url)
    calls = [line for line in lines if line.get("event") == "call"][-CALLS_SHOWN:]
    if as_json:
        output.document({"session": document, "calls": calls, "failures": wrong})
        return
    output.facts(_facts(told))
    if calls:
        output.heading(f"Last calls ({told.calls} in all)")
        for call in calls:
            stories.show(call)
    if failures.groups:
        output.heading("What went wrong")
        for group in failures.groups:
            output.line("", f"{group.count} {group.cause}: {output.cut(group.example, 200)}")
            output.line("  look at: ", output.cut(group.hint, 300))
    output.note(f"\nthe whole story: gateway logs {output.cut(session)}")


def _facts(told: Session) -> list[tuple[str, str | Cell]]:
    boot = "" if told.boot_s is None else output.span(told.boot_s)
    warm = " (parked before)" if told.warm else ""
    here = "" if told.here else " (another than was asked)"
    return [
        ("session", told.session),
        ("state", _state(told)),
        ("why", told.detail),
        ("server", told.server),
        ("principal", told.principal),
        ("client", told.client),
        ("opened", f"{output.stamp(told.opened)}, {output.span(told.age_s)} old"),
        ("last active", f"{output.stamp(told.active)}" if told.active else ""),
        ("ended", output.stamp(told.ended)),
        ("calls", f"{told.calls}, {told.running} running, {told.errors} failed"),
        ("messages", f"{output.amount(told.bytes_in)} in, {output.amount(told.bytes_out)} out"),
        ("dyno", told.dyno),
        ("launch", told.launch),
        ("boot", f"{boot}{warm}" if boot else ""),
        ("link lost", f"{told.parts} times" if told.parts else ""),
        ("cost", f"{output.usd(told.usd)} for {output.span(told.dyno_s)} of dyno"),
        ("rate", f"{output.usd(told.usd_per_hour)} an hour" if told.usd_per_hour else ""),
        ("gateway", f"{told.gateway}{here}" if told.gateway else ""),
        ("failure", Cell(told.failure, "red")),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a session is to be ended.

    Attributes:
        sure: nobody needs to be asked; nobody is where there is no terminal.
        wait_s: how long it may take; 0 not to wait.
        as_json: print what is known of it then as JSON.
    """

    sure: bool
    wait_s: float
    as_json: bool


async def kill(gateway: Operators, session: str, end: End) -> None:
    """End a session, wait until it is over, and print how it has ended.

    Raises:
        Failed: unknown, over already, or not over in time.
    """
    async with gateway:
        told = shaped(await _one(gateway, session), Session, gateway.url)
        if not end.sure and sys.stdin.isatty():
            _confirm(told)
        try:
            document = await gateway.ask("DELETE", stories.path_of(session))
        except Refused as refused:
            raise stories.unknown(refused, session) from None
        if end.wait_s:
            document = await _ended(gateway, session, end.wait_s)
    if end.as_json:
        output.document(document)
    elif end.wait_s:
        _show_end(shaped(document, Session, gateway.url))
    else:
        output.line("", f"{told.session} is being ended")


async def _ended(gateway: Operators, session: str, wait_s: float) -> Any:
    """Return what is known of a session once it is closed."""
    state = "closing"
    try:
        async with asyncio.timeout(wait_s):
            while True:
                document = await _one(gateway, session)
                state = shaped(document, Session, gateway.url).state
                if state == "closed":
                    return document
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        raise Failed(
            f"{output.cut(session)} is still {state} after {wait_s:g} s; its dyno is stopped "
            f"however long that takes: `gateway inspect {output.cut(session)}` shows when it is"
        ) from None


def _confirm(told: Session) -> None:
    running = f", {told.running} of its calls running" if told.running else ""
    whose = f"{told.server} of {told.principal}, {told.state}{running}"
    question = inert(f"End {output.cut(told.session)} ({output.cut(whose, 200)})?")
    if not typer.confirm(question, err=True):
        raise Failed("nothing was ended")


def _show_end(told: Session) -> None:
    why = f" ({output.cut(told.detail, 200)})" if told.detail else ""
    cost = f"{output.usd(told.usd)} for {output.span(told.dyno_s)} of dyno"
    output.line("", f"{told.session} closed: {told.reason}{why}; {cost}")
