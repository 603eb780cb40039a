"""An answer that another process gives is passed on to the client, as it comes."""

import asyncio
import re
from typing import TYPE_CHECKING

from aiohttp import web

from gateway.edge import intake, sse
from gateway.edge.answering import BEGUN, WRITE_S, Begun, cut, write
from gateway.exchange.carrying import PeerGone, Superseded
from gateway.exchange.exchange import Answer
from gateway.store.base import StoreAway

if TYPE_CHECKING:
    from collections.abc import Callable

KEPT = frozenset(
    {
        "allow",
        "cache-control",
        "content-type",
        "mcp-session-id",
        "rendezvous-session",
        "retry-after",
        "www-authenticate",
        "x-accel-buffering",
    }
)
"""Response headers that are passed on."""

BROKEN = (PeerGone, Superseded, StoreAway)

MOVED = b": moved\n\n"
"""Ends a stream between two processes whose session has moved on: its client is none the wiser."""

_ID = re.compile(rb"^id: ", re.MULTILINE)


class Watch:
    """Looks at an event stream as it passes.

    Attributes:
        numbered: an event with an id has passed.
        moved: it ended as its session had moved.
    """

    def __init__(self) -> None:
        self.numbered = self.moved = False
        self._held = b""
        self._last = b"\n"

    def passes(self, piece: bytes) -> bytes:
        """Take some bytes; return what may be passed on by now."""
        data = self._held + piece
        held = next((n for n in range(len(MOVED), 0, -1) if data.endswith(MOVED[:n])), 0)
        data, self._held = data[: len(data) - held], data[len(data) - held :]
        self.numbered = self.numbered or _ID.search(self._last + data) is not None
        self._last = (self._last + data)[-len(b"\nid:") :]
        return data

    def rest(self) -> bytes:
        """Return what was held back, at the end."""
        held, self._held = self._held, b""
        self.moved = held == MOVED
        return b"" if self.moved else held


class Passage:
    """One answer on its way to its client.

    Args:
        request: of the client.
        answer: of the other process.
        comes_back: the client comes back for the rest of a stream that ends early.

    Attributes:
        leaving: called with each piece; may end the answer early.
    """

    def __init__(self, request: web.Request, answer: Answer, *, comes_back: bool) -> None:
        self._request = request
        self._answer = answer
        self._comes_back = comes_back
        self.leaving: Callable[[Answer], None] = _stays

    async def through(self) -> web.StreamResponse | None:
        """Write the answer; None if it broke off before its client had any of it, or the session.

        If it breaks off later, a stream ends as if it had ended well, where its client comes back
        for the rest. Of anything else the connection is cut, so that nobody takes a part for the
        whole.
        """
        begun: Begun | None = self._request.get(BEGUN)
        head = _head(self._answer)
        streams = head.headers.get("Content-Type", "").startswith(intake.SSE)
        try:
            if streams:
                return await self._stream(begun, head)
            if begun is not None:
                return await self._last(begun)
            return await self._whole(head)
        except ConnectionResetError:
            return head if begun is None else begun.response  # the client hung up
        except (TimeoutError, *BROKEN):
            cut(self._request)
            return head if begun is None else begun.response

    async def _whole(self, response: web.StreamResponse) -> web.StreamResponse:
        await response.prepare(self._request)
        async for piece in self._answer.pieces():
            await write(response, piece)
        await self._end(response)
        return response

    async def _last(self, begun: Begun) -> web.StreamResponse | None:
        """Write a plain answer as the last event of a stream that has begun."""
        try:
            raw = b"".join([piece async for piece in self._answer.pieces()])
        except BROKEN:
            return None
        await begun.last(raw)
        self._answer.had = True
        return begun.response

    async def _stream(
        self, begun: Begun | None, response: web.StreamResponse
    ) -> web.StreamResponse | None:
        if begun is None:
            begun = self._request[BEGUN] = Begun(response)
            await response.prepare(self._request)
        watch = Watch()
        try:
            async for piece in self._answer.pieces():
                data = watch.passes(piece)
                begun.numbered = begun.numbered or watch.numbered
                if data:
                    await write(begun.response, data)
                if self._comes_back and begun.numbered:
                    self.leaving(self._answer)
        except BROKEN:
            if self._request.method != "POST" or (begun.numbered and self._comes_back):
                await write(begun.response, sse.SOON)
                await self._end(begun.response)
                return begun.response
            return None
        rest = watch.rest()
        if watch.moved:
            return None
        if rest:
            await write(begun.response, rest)
        await self._end(begun.response)
        return begun.response

    async def _end(self, response: web.StreamResponse) -> None:
        async with asyncio.timeout(WRITE_S):
            await response.write_eof()
        self._answer.had = self._answer.complete


def _head(answer: Answer) -> web.StreamResponse:
    """Return the response that an answer becomes."""
    response = web.StreamResponse(status=answer.status)
    for name, value in answer.headers:
        if name.lower() in KEPT:
            response.headers.add(name, value)
        elif name.lower() == "content-length":
            response.content_length = int(value)
    return response


def _stays(_answer: Answer) -> None:
    return
