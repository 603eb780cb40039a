"""Streamable HTTP for the handshake revisions 2025-03-26, 2025-06-18 and 2025-11-25.

HTTP in, (envelope, outbox) to the session, deliveries out as JSON or server-sent events. It knows
status codes and streams; what a message means is the session's business.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Set
from dataclasses import dataclass

from aiohttp import web

from dyno_agent.link.resumption import GENERAL, id_of
from gateway.edge import intake, sse
from gateway.edge.auth import KeyRing
from gateway.eras.legacy import client_name, opens_session, resumes
from gateway.eras.versions import ASSUMED, resumable
from gateway.errors import (
    BadMessage,
    GatewayError,
    MissingSession,
    Restarting,
    SessionEnded,
    UnknownServer,
)
from gateway.jsonrpc import Envelope, Kind, error_response, peek
from gateway.registry.servers import Registry, ServerDefinition
from gateway.sessions.live import Live, OwnedLive
from gateway.sessions.manager import Manager
from gateway.sessions.record import Reason
from gateway.sessions.streams import Item, Outbox

SESSION_HEADER = "Mcp-Session-Id"

LAST_EVENT_HEADER = "Last-Event-ID"

COMMIT_S = 20.0
"""A call that takes longer is answered as a stream: the platform's router wants a first byte
within 30 s. A quicker one is plain JSON, with a status code of its own."""

QUICK_S = 0.1
"""The same for a client that can resume a stream: a call that is caught in a crash of this process
survives once its stream has begun."""

CONFIRM_S = 5.0
"""How long a 202 waits for the agent to have the message. After that it stands in our memory only,
as long as the agent is out of reach."""

SMALL_BYTES = 64 * 1024
"""Bodies up to here are read at once, whatever else their session is sending."""

OPENING_BYTES = 1024 * 1024
"""Largest body without a session: an `initialize`."""

WRITE_S = 30.0
"""How long one write may be blocked by a client that does not read; then its stream is cut."""

PIECE_BYTES = 256 * 1024
"""Larger events are written in pieces of this size."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks for what, after the checks that all methods share."""

    principal: str
    server: ServerDefinition


@dataclass(frozen=True, slots=True)
class _Taken:
    """A message that its session has taken.

    Attributes:
        live: the session.
        key: what its client presents.
        ordinal: of the message on the link.
        outbox: where a request is answered.
        opened: the message opened the session.
    """

    live: OwnedLive
    key: str
    ordinal: int
    outbox: Outbox | None
    opened: bool


class StreamableHttp:
    """Handlers of the MCP endpoints.

    Args:
        manager: finds and makes sessions.
        registry: the servers.
        keys: who may come.
        allowed_hosts: see `intake.check_origin`.
        message_bytes: largest body.
    """

    def __init__(
        self,
        manager: Manager,
        registry: Registry,
        keys: KeyRing,
        *,
        allowed_hosts: Set[str] | None,
        message_bytes: int,
    ) -> None:
        self._manager = manager
        self._registry = registry
        self._keys = keys
        self._allowed_hosts = allowed_hosts
        self._message_bytes = message_bytes

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of the default server and of the named ones."""
        return [
            route
            for path in ("/mcp", "/servers/{name}/mcp")
            for route in (
                web.post(path, self.post),
                web.get(path, self.get, allow_head=False),
                web.delete(path, self.delete),
            )
        ]

    def _check(self, request: web.Request) -> Caller:
        intake.check_origin(request.headers, self._allowed_hosts)
        principal = self._keys.principal(request.headers)
        intake.check_revision(request.headers)
        name = request.match_info.get("name")
        server = self._registry.default if name is None else self._registry.find(name)
        if server is None:
            known = ", ".join(self._registry.names)
            raise UnknownServer(
                f"no server {name!r}; there are: {known}"
                if name
                else f'no default server: mark one with "default": true, or use /servers/NAME/mcp '
                f"with one of: {known}"
            )
        return Caller(principal, server)

    async def _find(self, request: web.Request, caller: Caller) -> OwnedLive:
        key = request.headers.get(SESSION_HEADER)
        if key is None:
            raise MissingSession(f"{SESSION_HEADER} is missing: send `initialize` first")
        return await self._manager.find(key, caller.principal, caller.server.name)

    # POST

    async def post(self, request: web.Request) -> web.StreamResponse:
        """Take one message: a request is answered, anything else gets 202."""
        caller = self._check(request)
        intake.check_accept(request.headers, intake.JSON, intake.SSE)
        try:
            target: OwnedLive | GatewayError = await self._find(request, caller)
            limit = self._message_bytes
        except GatewayError as error:  # told with the id of the request, once that is read
            target, limit = error, min(self._message_bytes, OPENING_BYTES)
        async with _room_to_read(request, target):
            raw = await intake.read_body(request, limit)
            envelope = peek(raw)
            request_id = envelope.id if isinstance(envelope.id, str | int) else None
            try:
                taken = await self._take(request, caller, target, envelope, raw)
            except GatewayError as error:
                return refusal(error, request_id)
        del raw, envelope  # the link has the bytes; a long call shall not hold them too
        try:
            return await self._respond(request, taken)
        except GatewayError as error:
            return refusal(error, request_id)

    async def _take(
        self,
        request: web.Request,
        caller: Caller,
        target: OwnedLive | GatewayError,
        envelope: Envelope,
        raw: bytes,
    ) -> _Taken:
        """Hand a message to its session; `initialize` makes one."""
        opens = envelope.kind is Kind.REQUEST and opens_session(envelope)
        if isinstance(target, OwnedLive):
            key, live = request.headers[SESSION_HEADER], target
            await live.room()
        elif isinstance(target, MissingSession) and opens:
            name = client_name(envelope)
            key, live = self._manager.create(caller.server, caller.principal, name)
        else:
            raise target
        if live.record.over:
            raise SessionEnded("the session ended before this request was taken")
        now = time.monotonic()
        outbox: Outbox | None = None
        if envelope.kind is Kind.RESPONSE:
            ordinal = live.session.respond(envelope, raw, now)
        elif envelope.kind is Kind.NOTIFICATION:
            ordinal, deliveries = live.session.notify(envelope, raw, now)
            live.perform(deliveries)
        else:
            revision = request.headers.get(intake.REVISION_HEADER, ASSUMED)
            label = live.session.label_of(envelope)
            outbox = live.open_outbox(label, resumable=resumes(envelope, revision))
            try:
                ordinal = live.request(envelope, raw, outbox, now)
            except GatewayError:
                live.drop_outbox(outbox)
                raise
        live.wake()
        return _Taken(live, key, ordinal, outbox, opened=not isinstance(target, OwnedLive))

    async def _respond(self, request: web.Request, taken: _Taken) -> web.StreamResponse:
        live, outbox = taken.live, taken.outbox
        if outbox is None:
            # Accepted means that the agent has it: from there on it survives this process.
            has_it = await live.confirmed(taken.ordinal, None, CONFIRM_S)
            if live.handed_over and not has_it:
                raise _restarting()
            return web.Response(status=202)
        try:
            return await self._answer(request, taken, outbox)
        except asyncio.CancelledError:
            if taken.opened:
                # Hung up before it could use the session: nobody will ever use this dyno.
                error = SessionEnded("the client hung up before the session was initialized")
                self._manager.end(live, Reason.CLIENT_GONE, error)
            raise
        finally:
            live.drop_outbox(outbox)

    async def _answer(
        self, request: web.Request, taken: _Taken, outbox: Outbox
    ) -> web.StreamResponse:
        """Answer as JSON if the answer comes soon and alone, else as a stream."""
        live, has_it = taken.live, False
        # Nobody has a session's key before `initialize` is answered: it can be plain and late.
        soon = outbox.resumable and not taken.opened
        await outbox.until_ready(QUICK_S if soon else COMMIT_S)
        if outbox.resumable and not outbox.answered:
            # The stream's first event promises that the call survives this process.
            has_it = await live.confirmed(taken.ordinal, outbox, COMMIT_S if soon else 0.0)
        if outbox.closed and not outbox.ready and not has_it:
            raise _restarting()
        first = outbox.only_answer()
        if first is not None:
            try:
                with live.delivering(first):
                    return await _write_plain(request, first, taken)
            except (ConnectionResetError, TimeoutError):
                _cut(request)  # nobody is there, or nobody reads; the answer waits for a repetition
                return web.Response()
        opening = sse.priming(outbox.since, outbox.label) if has_it else sse.COMMENT
        return await self._stream(request, live, outbox, opening, taken.key)

    # GET and DELETE

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Open the stream for messages that belong to no call, or continue any stream.

        A newer stream of the same kind replaces an older one.
        """
        caller = self._check(request)
        intake.check_accept(request.headers, intake.SSE)
        live = await self._find(request, caller)
        label, after = GENERAL, None
        if (last := request.headers.get(LAST_EVENT_HEADER)) is not None:
            try:
                after, label = sse.position(last)
                id_of(label)
            except ValueError as error:
                raise BadMessage(f"{LAST_EVENT_HEADER}: {error}") from error
        revision = request.headers.get(intake.REVISION_HEADER, ASSUMED)
        comes_back = after is not None or resumable(revision)
        outbox = live.open_outbox(label, resumable=comes_back)
        if after is not None:
            opening = sse.RETRY
        else:
            opening = sse.priming(outbox.since, label) if comes_back else sse.COMMENT
        try:
            live.listen(outbox, after)
            key = request.headers[SESSION_HEADER]
            return await self._stream(request, live, outbox, opening, key)
        finally:
            live.drop_outbox(outbox)

    async def delete(self, request: web.Request) -> web.StreamResponse:
        """End the session."""
        caller = self._check(request)
        live = await self._find(request, caller)
        self._manager.end(live, Reason.CLIENT_DELETE, SessionEnded("the client ended the session"))
        return web.Response(status=204)

    # Streams

    async def _stream(
        self, request: web.Request, live: Live, outbox: Outbox, opening: bytes, key: str
    ) -> web.StreamResponse:
        """Write deliveries as server-sent events until the call's answer or the stream's end."""
        response = web.StreamResponse(
            headers={
                "Content-Type": intake.SSE,
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
                SESSION_HEADER: key,
            }
        )
        try:
            await response.prepare(request)
            await _write(response, opening)
            while (item := await self._next(response, live, outbox)) is not None:
                with live.delivering(item):
                    if item.raw:
                        await _write_event(response, item, outbox.label)
                if item.last:
                    break
            await response.write_eof()
        except ConnectionResetError:
            return response  # the client hung up; what runs goes on
        except TimeoutError:
            _cut(request)  # it does not read: what lies there was not delivered
        return response

    async def _next(self, response: web.StreamResponse, live: Live, outbox: Outbox) -> Item | None:
        """Take the next delivery that may be written; keep the connection alive meanwhile."""
        while True:
            try:
                async with asyncio.timeout(sse.KEEP_ALIVE_S):
                    item = await outbox.head()
                    if item is None or (outbox.resumable and not await live.noted(item)):
                        return None
                    return outbox.take()
            except TimeoutError:
                await _write(response, sse.COMMENT)


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _restarting() -> Restarting:
    return Restarting("this gateway process is shutting down; send the request again")


@contextlib.asynccontextmanager
async def _room_to_read(
    request: web.Request, target: OwnedLive | GatewayError
) -> AsyncIterator[None]:
    """Read few large bodies of a session at a time: each lies in memory until the link takes it."""
    large = request.content_length is None or request.content_length > SMALL_BYTES
    if not large or not isinstance(target, OwnedLive):
        yield
        return
    async with target.large_bodies:
        await target.room()
        yield


async def _write_event(response: web.StreamResponse, item: Item, label: str) -> None:
    """Write one event.

    A large one goes in pieces: it is not copied as a whole, and a client that reads slowly but does
    read is not cut off in its middle.
    """
    if len(item.raw) <= PIECE_BYTES:
        await _write(response, sse.event(item.raw, item.position, label))
        return
    before, after = sse.frame(item.position, label)
    await _write(response, before)
    await _write_pieces(response, item.raw)
    await _write(response, after)


async def _write_pieces(response: web.StreamResponse, raw: bytes) -> None:
    whole = memoryview(raw)
    for start in range(0, len(whole), PIECE_BYTES):
        await _write(response, whole[start : start + PIECE_BYTES])


async def _write(response: web.StreamResponse, data: bytes | memoryview) -> None:
    async with asyncio.timeout(WRITE_S):
        await response.write(data)


async def _write_plain(request: web.Request, item: Item, taken: _Taken) -> web.StreamResponse:
    """Write an answer as JSON; it counts as delivered when this returns."""
    refused = None if item.error is None else refusal(item.error)
    status = 200 if refused is None else refused.status
    headers = {} if refused is None else dict(refused.headers)
    headers["Content-Type"] = intake.JSON
    if not taken.live.record.over:
        headers[SESSION_HEADER] = taken.key
    if len(item.raw) <= PIECE_BYTES:  # head and body in one segment
        whole = web.Response(body=item.raw, status=status, headers=headers)
        await whole.prepare(request)
        async with asyncio.timeout(WRITE_S):
            await whole.write_eof()
        return whole
    response = web.StreamResponse(status=status, headers=headers)
    response.content_length = len(item.raw)
    await response.prepare(request)
    await _write_pieces(response, item.raw)
    await response.write_eof()
    return response


def refusal(error: GatewayError, request_id: str | int | None = None) -> web.Response:
    """Return an error as HTTP response with a JSON-RPC body."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="mcp"'
    return web.Response(
        body=error_response(request_id, error),
        status=error.status,
        content_type=intake.JSON,
        headers=headers,
    )
