"""Operations on sessions: list, look at, tell the story of, follow, end."""

import base64
import binascii
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import starmap
from typing import Any, Final

import msgspec
from aiohttp import web

from gateway.errors import Elsewhere, Moved
from gateway.ops.admin.desk import Call, Desk
from gateway.ops.admin.problems import HEADERS, Problem
from gateway.ops.admin.shapes import Killed, Order, Session, Sessions, SessionsQuery, StoryQuery
from gateway.ops.admin.standing import CLOSED
from gateway.ops.story import Summary
from gateway.store.base import Told

PAGE_BYTES = 128 * 1024
"""Of a story, read at a time."""

STORY_BYTES = 1024 * 1024
"""Of lines in one answer."""

HOUR_S = 3600

NEVER = 1e15
"""After every moment."""

LINES = "application/jsonl"

LAST_HEADER, NEXT_HEADER = "Rendezvous-Last", "Rendezvous-Next"

LOOKED_THROUGH: Final = ("session", "client", "server", "principal", "dyno", "launch")
"""Fields in which the list is searched."""


@dataclass(frozen=True, slots=True)
class Row:
    """A session and how it stands.

    Attributes:
        summary: what is recorded of it.
        state: of the session.
        reason: of its end.
        ended: when that was; 0 while it lives.
    """

    summary: Summary
    state: str
    reason: str
    ended: float

    @property
    def closed(self) -> bool:
        """True once it is over."""
        return self.state == CLOSED


class Cursor(msgspec.Struct, array_like=True, frozen=True):
    """Where a page ended: in which order, as of when, and what its last row was.

    Ages and costs grow: all pages sort by what they were when the first one was made.
    """

    sort: Order
    at: float
    key: float
    session: str

    def encode(self) -> str:
        """Return it as text for a URL."""
        return base64.urlsafe_b64encode(msgspec.json.encode(self)).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> "Cursor":
        """Read it.

        Raises:
            Problem: it is none of ours.
        """
        padded = text + "=" * (-len(text) % 4)
        try:
            raw = base64.b64decode(padded, altchars=b"-_", validate=True)
            return msgspec.json.decode(raw, type=cls)
        except (binascii.Error, ValueError, msgspec.DecodeError) as error:
            raise Problem(404, "no such page: take `next` of the one before as it is") from error


# The list


async def listed(desk: Desk, call: Call) -> Sessions:
    """Return a page of sessions."""
    query: SessionsQuery = call.query
    cursor = None if query.cursor is msgspec.UNSET else Cursor.decode(query.cursor)
    if cursor is not None and cursor.sort != query.sort:
        raise Problem(404, f"no such page: this cursor is of a list by {cursor.sort}")
    at = desk.now if cursor is None else cursor.at
    found = [row for row in await _rows(desk) if _matches(row.summary, query)]
    by_state = Counter(row.state for row in found)
    found = [row for row in found if _stands(row, query)]
    key = _key(desk, query.sort, at)
    ranked = sorted(
        ((key(row), row.summary.session, row) for row in found), key=lambda each: each[:2]
    )
    if cursor is not None:
        last = (cursor.key, cursor.session)
        ranked = [each for each in ranked if each[:2] > last]
    page, rest = ranked[: query.limit], ranked[query.limit :]
    follows = Cursor(query.sort, at, page[-1][0], page[-1][1]).encode() if page and rest else None
    now = desk.now
    return Sessions(
        sessions=[_session(desk, row, now) for *_, row in page],
        total=len(found),
        next=follows,
        by_state=dict(by_state),
        at=now,
    )


async def _rows(desk: Desk) -> list[Row]:
    summaries = (await desk.recorder.summaries()).values()
    await _look(desk, summaries)
    return [_row(desk, summary) for summary in summaries]


async def _look(desk: Desk, summaries: Iterable[Summary]) -> None:
    """Learn which processes are gone, if there can be others at all."""
    named = {summary.gateway for summary in summaries if summary.state != CLOSED}
    alive = {desk.here}
    if named - alive:
        alive.update(await desk.manager.store.gateways())
    desk.standing.look(named, alive, desk.now)


def _row(desk: Desk, summary: Summary) -> Row:
    return Row(summary, *desk.standing.of(summary, desk.now))


def _matches(summary: Summary, query: SessionsQuery) -> bool:
    if query.server is not msgspec.UNSET and summary.server != query.server:
        return False
    if query.principal is not msgspec.UNSET and summary.principal != query.principal:
        return False
    wanted = query.q.casefold()
    return not wanted or any(
        wanted in getattr(summary, field).casefold() for field in LOOKED_THROUGH
    )


def _stands(row: Row, query: SessionsQuery) -> bool:
    if query.state is not msgspec.UNSET and row.state != query.state:
        return False
    return query.live is msgspec.UNSET or row.closed == (query.live == "false")


def _key(desk: Desk, sort: Order, at: float) -> Callable[[Row], float]:
    """Return what rows are sorted by, the least first."""
    match sort:
        case "newest":
            return lambda row: -row.summary.opened
        case "idle":
            return lambda row: NEVER if row.closed else row.summary.active
        case "calls":
            return lambda row: -row.summary.calls
        case "errors":
            return lambda row: -row.summary.errors
        case "cost":
            return lambda row: -_cost(desk, row.summary, at)[1]
        case "age":
            return lambda row: -_since(row.summary.opened, row.ended or at)


def _since(moment: float, now: float) -> float:
    """Return the seconds since then; 0 if nobody has said when that was."""
    return round(max(0.0, now - moment), 3) if moment else 0.0


def _cost(desk: Desk, summary: Summary, now: float) -> tuple[float, float, float]:
    """Return a session's dyno seconds, what they cost until now, and what an hour costs."""
    entry = desk.manager.book.running(summary.launch)
    if entry is None or entry.account.session != summary.session:
        return summary.dyno_s, summary.usd, 0.0
    dyno_s = max(0.0, now - entry.since)
    return dyno_s, entry.usd_per_hour * dyno_s / HOUR_S, entry.usd_per_hour


def _session(desk: Desk, row: Row, now: float) -> Session:
    summary = row.summary
    dyno_s, usd, usd_per_hour = _cost(desk, summary, now)
    facts: dict[str, Any] = {
        name: getattr(summary, name)
        for name in Session.__struct_fields__
        if name in Summary.__struct_fields__
    }
    facts |= {
        "state": row.state,
        "reason": row.reason,
        "ended": row.ended,
        "here": summary.gateway == desk.here,
        "age_s": _since(summary.opened, row.ended or now),
        "idle_s": 0.0 if row.closed else _since(summary.active, now),
        "dyno_s": round(dyno_s, 3),
        "usd": round(usd, 6),
        "usd_per_hour": usd_per_hour,
    }
    return Session(**facts)


# One session


async def one(desk: Desk, call: Call) -> Session:
    """Return a session."""
    return _session(desk, await found(desk, call), desk.now)


async def found(desk: Desk, call: Call) -> Row:
    """Return the session that the path names.

    Raises:
        Problem: 404, nobody knows it.
    """
    summary = await desk.recorder.summary(call.path["session"])
    if summary is None:
        name = call.path["session"][:64]
        raise Problem(404, f"no session {name!a} is known (any more): GET /sessions lists them")
    await _look(desk, [summary])
    return _row(desk, summary)


def elsewhere(desk: Desk, summary: Summary) -> Elsewhere | None:
    """Return what makes a request go to the process that has a session; None to stay here."""
    if not summary.gateway or summary.gateway == desk.here or desk.standing.gone(summary):
        return None
    return Elsewhere("another gateway process has this session", summary.gateway, "", 0)


async def kill(desk: Desk, call: Call) -> Killed:
    """End a session, at whichever process it lives.

    Raises:
        Problem: 404, 409.
        Elsewhere: another process has it.
        Moved: it is on its way to one.
    """
    row = await found(desk, call)
    summary = row.summary
    if row.closed:
        raise Problem(409, f"session {summary.session} has ended already: {row.reason}")
    if desk.kill(summary.session) or row.state == "closing":
        return Killed(summary.session)
    if (where := elsewhere(desk, summary)) is not None:
        raise where
    if not desk.standing.gone(summary):
        raise Moved("the session is moving between gateway processes; end it again")
    await desk.stop_dyno(summary)
    return Killed(summary.session)


# Its story


async def story(desk: Desk, call: Call) -> web.StreamResponse:
    """Tell the lines of a session's story."""
    query: StoryQuery = call.query
    summary = (await found(desk, call)).summary
    after, last = query.after, 0
    if query.last is not msgspec.UNSET:
        newest = (await desk.recorder.told(summary.session, after, 0)).last
        after = max(after, newest - query.last)
    wanted, lines, size, more = query.q.casefold(), list[bytes](), 0, True
    while more and size < STORY_BYTES:
        told = await desk.recorder.told(summary.session, after, PAGE_BYTES)
        for _, line in numbered(told, after):
            if not wanted or wanted in line.decode().casefold():
                lines.append(line)
                size += len(line) + 1
        after, last = reached(told, after), told.last
        more = bool(told.lines) and after < last
    headers = {**HEADERS, LAST_HEADER: str(last)}
    if more:
        headers[NEXT_HEADER] = str(after)
    body = b"".join(line + b"\n" for line in lines)
    return web.Response(body=body, content_type=LINES, headers=headers)


def numbered(told: Told, after: int) -> list[tuple[int, bytes]]:
    """Return numbers, and lines that have them; one says so where some are kept no more."""
    if not told.lines:
        return []
    lines = list(starmap(_numbered, enumerate(told.lines, told.first)))
    if (missing := told.first - after - 1) > 0:
        at = msgspec.json.decode(told.lines[0], type=_Line).at
        gap = msgspec.json.encode({"at": at, "event": "gap", "dropped": missing})
        lines.insert(0, _numbered(told.first - 1, gap))
    return lines


def reached(told: Told, after: int) -> int:
    """Return the number of the last line that is known after these."""
    return told.first + len(told.lines) - 1 if told.lines else after


class _Line(msgspec.Struct):
    at: float = 0.0


def _numbered(number: int, line: bytes) -> tuple[int, bytes]:
    return number, b'{"n":%d,' % number + line[1:]
