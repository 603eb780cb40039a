"""How what comes for a client is written: one JSON body, or server-sent events as they come.

It knows connections that break and clients that do not read, and nothing of what a message means.
"""

import asyncio
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec
from aiohttp import web
from msgspec import Raw

from gateway.edge import intake, sse
from gateway.errors import GatewayError, Moved
from gateway.jsonrpc import Kind, error_response, peek
from gateway.sessions.live import Live
from gateway.sessions.streams import Item, Outbox

WRITE_S = 30.0
"""How long one write may be blocked by a client that does not read; then its stream is cut."""

PIECE_BYTES = 256 * 1024
"""Larger bodies and events are written in pieces of this size."""

_OBJECT = msgspec.json.Decoder(dict[str, Raw])

STREAM_HEADERS = {
    "Content-Type": intake.SSE,
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}


@dataclass(slots=True)
class Begun:
    """An event stream that has begun: whatever comes of its request goes there.

    Attributes:
        response: the stream.
        numbered: its client has an event's id, and so all before that.
    """

    response: web.StreamResponse
    numbered: bool = False

    async def last(self, raw: bytes) -> web.StreamResponse:
        """Write one more event, and the end."""
        before, after = sse.frame()
        await write(self.response, before)
        await write_pieces(self.response, raw)
        await write(self.response, after)
        await self.response.write_eof()
        return self.response


BEGUN: web.RequestKey[Begun] = web.RequestKey("begun")

MEMBER_HEADER = "Rendezvous-Member"
"""On requests that a toolkit hands on: what their streams tell is marked as this member's."""

Doubt = Callable[[Callable[[], None]], None]

DOUBT: web.RequestKey[Doubt] = web.RequestKey("doubt")
"""Set on requests of which nobody here knows whether their client has what is written; takes what
to do once it has."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP response to be.

    Attributes:
        request: what it answers.
        live: the session that it belongs to.
        outbox: what it writes.
        headers: what it carries beside its kind's own, asked for when it begins.
        status: of an answer that is the whole body.
    """

    request: web.Request
    live: Live
    outbox: Outbox
    headers: Callable[[], Mapping[str, str]]
    status: Callable[[Item], int]

    @property
    def member(self) -> str:
        """Whose mark it bears, as a toolkit's client tells members apart; empty for none."""
        return self.live.record.server.name if MEMBER_HEADER in self.request.headers else ""

    def priming(self) -> bytes:
        """Return the event with which the client can come back for all that follows."""
        return sse.priming(self.outbox.since, sse.marked(self.outbox.label, self.member))

    async def whole(self, answer: Item) -> web.StreamResponse:
        """Write one answer as JSON; it is delivered when this returns, or waits with its call."""
        try:
            with self.live.delivering(answer):
                response = await self._write_whole(answer)
        except (ConnectionResetError, TimeoutError):
            cut(self.request)  # nobody is there, or nobody reads
            return web.Response()
        self._doubt(answer)
        return response

    async def _write_whole(self, answer: Item) -> web.StreamResponse:
        self.outbox.begun = True
        begun: Begun | None = self.request.get(BEGUN)
        if begun is not None:
            return await begun.last(answer.raw)
        headers = dict(self.headers())
        if answer.error is not None:
            headers |= refusal(answer.error).headers
        headers["Content-Type"] = intake.JSON
        status = self.status(answer)
        if len(answer.raw) <= PIECE_BYTES:  # head and body in one segment
            response = web.Response(body=answer.raw, status=status, headers=headers)
            await response.prepare(self.request)
            async with asyncio.timeout(WRITE_S):
                await response.write_eof()
            return response
        parts = web.StreamResponse(status=status, headers=headers)
        parts.content_length = len(answer.raw)
        await parts.prepare(self.request)
        await write_pieces(parts, answer.raw)
        await parts.write_eof()
        return parts

    async def array(self) -> web.StreamResponse:
        """Write all answers as one JSON array, for a batch; the cancelled ones are left out."""
        headers = {**self.headers(), "Content-Type": intake.JSON}
        self.outbox.begun = True
        response = web.StreamResponse(headers=headers)
        try:
            with contextlib.ExitStack() as delivering:
                answers = []
                while self.outbox.ready:
                    answers.append(self.outbox.take())
                    delivering.enter_context(self.live.delivering(answers[-1]))
                body = b"[" + b",".join(answer.raw for answer in answers if answer.raw) + b"]"
                response.content_length = len(body)
                await response.prepare(self.request)
                await write_pieces(response, body)
                await response.write_eof()
        except (ConnectionResetError, TimeoutError):
            cut(self.request)
        return response

    async def stream(self, opening: bytes, promise: int | None = None) -> web.StreamResponse:
        """Write deliveries as events until the last one, or the end of the outbox.

        Args:
            opening: first bytes: a comment, or an event without data.
            promise: ordinal of a request that the agent does not have yet. Once it does, an event
                without data says that the client may come back for the rest.

        Raises:
            Moved: the session is at another process, and the client cannot come back by itself.
        """
        begun, outbox = self.request.get(BEGUN), self.outbox
        outbox.begun, outbox.promise = True, promise
        outbox.cut = functools.partial(cut, self.request)
        response = web.StreamResponse(headers={**STREAM_HEADERS, **self.headers()})
        try:
            if begun is None:
                begun = self.request[BEGUN] = Begun(response)
                await response.prepare(self.request)
            response = begun.response
            await write(response, opening)
            begun.numbered = begun.numbered or opening.startswith(b"id:")
            while (item := await self._next(begun)) is not None:
                with self.live.delivering(item):
                    if item.raw:
                        await self._event(response, item)
                begun.numbered = begun.numbered or bool(item.position and outbox.numbered)
                if item.last:
                    self._doubt(item)
                if item.last and outbox.ended():
                    break
            else:
                self._check_moved(begun)
                if self.live.soon:
                    await write(response, sse.SOON)
            await response.write_eof()
        except ConnectionResetError:
            return response  # the client hung up; what that means is the session's business
        except TimeoutError:
            cut(self.request)  # it does not read: what lies there was not delivered
        return response

    async def _event(self, response: web.StreamResponse, item: Item) -> None:
        if not self.member:
            await write_event(response, item, self.outbox)
            return
        label = sse.marked(self.outbox.label, self.member)
        await write_event(response, with_mark(item, self.member), self.outbox, label)

    def _doubt(self, answer: Item) -> None:
        doubt = self.request.get(DOUBT)
        if doubt is not None:
            doubt(self.live.doubt(answer))

    def _check_moved(self, begun: Begun) -> None:
        """Let a request follow its session whose client could not come back for the rest."""
        outbox, live = self.outbox, self.live
        if self.request.method == "POST":
            follows = outbox.numbered and not (outbox.resumable and begun.numbered)
        else:  # nothing was told on it
            follows = not live.carried and outbox.numbered
        if live.moved and follows:
            raise Moved("the session has moved to another gateway process; send the request again")

    async def _next(self, begun: Begun) -> Item | None:
        """Take the next delivery that may be written; keep the connection alive meanwhile."""
        outbox, live, response = self.outbox, self.live, begun.response
        while True:
            if outbox.promise is not None and _is_quiet(outbox):
                if await live.confirmed(outbox.promise, outbox, sse.KEEP_ALIVE_S):
                    outbox.promise, begun.numbered = None, True
                    await write(response, self.priming())
                elif _is_quiet(outbox):
                    await write(response, sse.COMMENT)
                continue
            try:
                async with asyncio.timeout(sse.KEEP_ALIVE_S):
                    item = await outbox.head()
                    if item is None or (outbox.resumable and not await live.noted(item)):
                        return None
                    if item.position:
                        outbox.promise = None  # its id is as good
                    return outbox.take()
            except TimeoutError:
                await write(response, sse.COMMENT)


def _is_quiet(outbox: Outbox) -> bool:
    return not outbox.ready and not outbox.closed


def cut(request: web.Request) -> None:
    """Drop the connection at once."""
    if request.transport is not None:
        request.transport.abort()


async def write_event(
    response: web.StreamResponse, item: Item, outbox: Outbox, label: str | None = None
) -> None:
    """Write one event, with the stream's label in its id unless another is given.

    A large one goes in pieces: it is not copied as a whole, and a client that reads slowly but does
    read is not cut off in its middle.
    """
    place = item.position if outbox.numbered else 0
    label = outbox.label if label is None else label
    if len(item.raw) <= PIECE_BYTES:
        await write(response, sse.event(item.raw, place, label))
        return
    before, after = sse.frame(place, label)
    await write(response, before)
    await write_pieces(response, item.raw)
    await write(response, after)


async def write_pieces(response: web.StreamResponse, raw: bytes) -> None:
    """Write something large, each piece with a deadline of its own."""
    whole = memoryview(raw)
    for start in range(0, len(whole), PIECE_BYTES):
        await write(response, whole[start : start + PIECE_BYTES])


async def write(response: web.StreamResponse, data: bytes | memoryview) -> None:
    """Write to a client that reads; see `WRITE_S` for one that does not."""
    async with asyncio.timeout(WRITE_S):
        await response.write(data)


def with_mark(item: Item, member: str) -> Item:
    """Return a delivery that tells its client which member of a toolkit asks it something.

    Members number their questions alike. So the id of one becomes `member~id`, where it is asked
    and where it is taken back; other members of the message keep their bytes.
    """
    if item.last:
        return item
    envelope = peek(item.raw)
    if envelope.kind is Kind.REQUEST:
        message = _OBJECT.decode(item.raw)
        message["id"] = _with_mark(message["id"], member)
    elif envelope.method == "notifications/cancelled" and isinstance(envelope.params, Raw):
        message = _OBJECT.decode(item.raw)
        message["params"] = _taken_back(envelope.params, member)
    else:
        return item
    return dataclasses.replace(item, raw=msgspec.json.encode(message))


def _taken_back(params: Raw, member: str) -> Raw:
    try:
        found = _OBJECT.decode(params)
        found["requestId"] = _with_mark(found["requestId"], member)
    except (msgspec.DecodeError, KeyError):
        return params  # it names none: the client's to judge
    return Raw(msgspec.json.encode(found))


def _with_mark(request_id: Raw, member: str) -> Raw:
    text = bytes(request_id).decode().strip()
    return Raw(msgspec.json.encode(f"{member}{sse.MARK}{text}"))


def refusal(error: GatewayError, request_id: str | int | None = None) -> web.Response:
    """Return an error as HTTP response with a JSON-RPC body."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="mcp"'
    if error.status == 405:
        headers["Allow"] = "POST"
    return web.Response(
        body=error_response(request_id, error),
        status=error.status,
        content_type=intake.JSON,
        headers=headers,
    )
