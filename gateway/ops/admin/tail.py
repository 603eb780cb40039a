"""Follows a session's story live, as server-sent events (WHATWG HTML, 9.2)."""

import asyncio
import contextlib
import re
from collections.abc import Iterator

import msgspec
from aiohttp import web

from gateway.ops.admin.desk import Call, Desk
from gateway.ops.admin.problems import HEADERS, Problem
from gateway.ops.admin.sessions import elsewhere, found, numbered, reached
from gateway.store.base import StoreAway

MOST_TAILS = 64
"""Tails per process: each reads the store when its session has news."""

CHUNK_BYTES = 64 * 1024
"""Of a story, written at a time."""

WRITE_S = 30.0
"""How long one write may be blocked by a follower that does not read; then it is cut off."""

LOOK_S = 1.0
"""How soon it is seen what another process has told, or that this one leaves."""

KEEP_ALIVE_S = 15.0
"""A comment after so long without an event."""

COMMENT, AGAIN = b": keep-alive\n\n", b"retry: 500\n\n"

EVENTS = "text/event-stream"

_ID = re.compile(r"[0-9]{1,15}")


async def tail(desk: Desk, call: Call) -> web.StreamResponse:
    """Tell the lines of a session's story as they come, until it is over.

    Raises:
        Problem: 400, 404, or 503 if as many are followed as may be.
        Elsewhere: another process has the session, and knows first.
    """
    row = await found(desk, call)
    after = _after(call)
    if (where := elsewhere(desk, row.summary)) is not None:
        raise where
    response = web.StreamResponse(
        headers={**HEADERS, "Content-Type": EVENTS, "X-Accel-Buffering": "no"}
    )
    with _place(desk):
        try:
            await response.prepare(call.request)
            await _follow(desk, call, Follower(response), after)
            await response.write_eof()
        except ConnectionResetError:
            pass  # it hung up
        except TimeoutError:
            if call.request.transport is not None:
                call.request.transport.abort()
    return response


def _after(call: Call) -> int:
    given = call.request.headers.get("Last-Event-ID")
    if given is None:
        after: int = call.query.after
        return after
    if _ID.fullmatch(given) is None:
        raise Problem(400, "Last-Event-ID: the number of a line")
    return int(given)


@contextlib.contextmanager
def _place(desk: Desk) -> Iterator[None]:
    if desk.tails >= MOST_TAILS:
        raise Problem(
            503,
            f"{MOST_TAILS} tails are open at this gateway process: close one, or read the story",
            {"Retry-After": "15"},
        )
    desk.tails += 1
    try:
        yield
    finally:
        desk.tails -= 1


class Follower:
    """Whoever reads.

    Args:
        response: to whom; it has begun.
    """

    def __init__(self, response: web.StreamResponse) -> None:
        self._response = response
        self._clock = asyncio.get_running_loop().time
        self._wrote = self._clock()

    async def write(self, data: bytes) -> None:
        """Write something.

        Raises:
            TimeoutError: it does not read.
            ConnectionResetError: it is gone.
        """
        async with asyncio.timeout(WRITE_S):
            await self._response.write(data)
        self._wrote = self._clock()

    async def keep_alive(self) -> None:
        """Write a comment if nothing was written for long."""
        if self._clock() - self._wrote >= KEEP_ALIVE_S:
            await self.write(COMMENT)


async def _follow(desk: Desk, call: Call, follower: Follower, after: int) -> None:
    session = call.path["session"]
    with desk.recorder.following(session) as news:
        settled = True
        while True:
            news.clear()
            try:
                # In this order: what is closed before it is read has no line to come.
                ending = await _ending(desk, call)
                told = await desk.recorder.told(
                    session, after, CHUNK_BYTES, settled=settled or bool(ending)
                )
                settled = False  # what comes from now on is news
            except StoreAway:
                told, ending = None, b""
            if told is not None and told.lines:
                await follower.write(_events(numbered(told, after)))
                after = reached(told, after)
                continue
            if told is not None and told.last < after:
                after = 0  # the store has lost the story, and it began anew
                continue
            if ending or desk.manager.draining:
                await follower.write(ending or AGAIN)
                return
            await follower.keep_alive()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await news.wait()


async def _ending(desk: Desk, call: Call) -> bytes:
    """Return the last event once the session is closed or forgotten; empty until then."""
    try:
        row = await found(desk, call)
    except Problem:
        return _event("end", {"state": "unknown", "reason": ""})
    if not row.closed:
        return b""
    return _event("end", {"state": row.state, "reason": row.reason})


def _event(name: str, data: dict[str, str]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(data))


def _events(lines: list[tuple[int, bytes]]) -> bytes:
    return b"".join(b"id: %d\ndata: %b\n\n" % numbered for numbered in lines)
