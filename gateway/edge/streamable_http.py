"""Streamable HTTP for the handshake revisions 2025-03-26, 2025-06-18 and 2025-11-25.

HTTP in, (envelope, outbox) to the session, deliveries out as JSON or server-sent events. It knows
status codes and streams; what a message means is the session's business.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Set
from dataclasses import dataclass

from aiohttp import web

from gateway.edge import intake, sse
from gateway.edge.auth import KeyRing
from gateway.eras.legacy import client_name, opens_session
from gateway.errors import GatewayError, MissingSession, SessionEnded, UnknownServer
from gateway.jsonrpc import Envelope, Kind, error_response, peek
from gateway.registry.servers import Registry, ServerDefinition
from gateway.sessions.live import Live
from gateway.sessions.manager import Manager
from gateway.sessions.record import Reason
from gateway.sessions.streams import Item, Outbox

SESSION_HEADER = "Mcp-Session-Id"

COMMIT_S = 20.0
"""A call that takes longer is answered as a stream: the platform's router wants a first byte
within 30 s. A quicker one is plain JSON, with a status code of its own."""

WRITE_S = 30.0
"""How long one write may be blocked by a client that does not read; then its stream is cut."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks for what, after the checks that all methods share."""

    principal: str
    server: ServerDefinition


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

    def _session(self, request: web.Request, caller: Caller) -> Live:
        key = request.headers.get(SESSION_HEADER)
        if key is None:
            raise MissingSession(f"{SESSION_HEADER} is missing: send `initialize` first")
        return self._manager.find(key, caller.principal, caller.server.name)

    # POST

    async def post(self, request: web.Request) -> web.StreamResponse:
        """Take one message: a request is answered, anything else gets 202."""
        caller = self._check(request)
        intake.check_accept(request.headers, intake.JSON, intake.SSE)
        raw = await intake.read_body(request, self._message_bytes)
        envelope = peek(raw)
        kind = envelope.kind
        try:
            if kind is not Kind.REQUEST:
                return await self._tell(self._session(request, caller), envelope, raw)
            if opens_session(envelope) and SESSION_HEADER not in request.headers:
                return await self._open(request, caller, envelope, raw)
            return await self._ask(request, self._session(request, caller), envelope, raw)
        except GatewayError as error:
            return _refusal(error, envelope)

    async def _open(
        self, request: web.Request, caller: Caller, envelope: Envelope, raw: bytes
    ) -> web.StreamResponse:
        """Make a session and ask it to initialize."""
        live = self._manager.create(caller.server, caller.principal, client_name(envelope))
        try:
            return await self._ask(request, live, envelope, raw)
        except asyncio.CancelledError:
            # Hung up before it could learn the session's key: nobody will ever use this dyno.
            error = SessionEnded("the client hung up before the session was initialized")
            self._manager.end(live, Reason.CLIENT_GONE, error)
            raise

    async def _tell(self, live: Live, envelope: Envelope, raw: bytes) -> web.Response:
        await live.room()
        now = time.monotonic()
        if envelope.kind is Kind.RESPONSE:
            live.session.respond(envelope, raw, now)
        else:
            live.perform(live.session.notify(envelope, raw, now))
        live.wake()
        return web.Response(status=202)

    async def _ask(
        self, request: web.Request, live: Live, envelope: Envelope, raw: bytes
    ) -> web.StreamResponse:
        await live.room()
        if live.record.over:
            raise SessionEnded("the session ended before this request was taken")
        outbox = live.open_outbox()
        try:
            live.session.request(envelope, raw, outbox, time.monotonic())
            live.wake()
            first = await _first(outbox)
            if first is not None and first.last and first.raw:
                with live.delivering(first):
                    return _plain(first, live)
            if first is not None:
                outbox.put_back(first)
            return await self._stream(request, live, outbox)
        finally:
            live.drop_outbox(outbox)

    # GET and DELETE

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Open the stream for messages that belong to no call; a newer one replaces it."""
        caller = self._check(request)
        intake.check_accept(request.headers, intake.SSE)
        live = self._session(request, caller)
        outbox = live.open_outbox()
        try:
            replaced, waiting = live.session.open_general(outbox)
            if replaced is not None:
                replaced.close()
            live.perform(waiting)
            return await self._stream(request, live, outbox)
        finally:
            live.drop_outbox(outbox)

    async def delete(self, request: web.Request) -> web.StreamResponse:
        """End the session."""
        caller = self._check(request)
        live = self._session(request, caller)
        self._manager.end(live, Reason.CLIENT_DELETE, SessionEnded("the client ended the session"))
        return web.Response(status=204)

    # Streams

    async def _stream(self, request: web.Request, live: Live, outbox: Outbox) -> web.StreamResponse:
        """Write deliveries as server-sent events until the call's answer or the stream's end."""
        response = web.StreamResponse(
            headers={
                "Content-Type": intake.SSE,
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
                SESSION_HEADER: live.record.key,
            }
        )
        await response.prepare(request)
        try:
            await _write(response, sse.COMMENT)
            while (item := await self._next(response, outbox)) is not None:
                with live.delivering(item):
                    if item.raw:
                        await _write(response, sse.event(item.raw))
                if item.last:
                    break
            await response.write_eof()
        except (ConnectionResetError, TimeoutError):
            return response  # the client hung up or does not read; what runs goes on
        return response

    async def _next(self, response: web.StreamResponse, outbox: Outbox) -> Item | None:
        """Wait for the next delivery and keep the connection alive meanwhile."""
        while True:
            try:
                async with asyncio.timeout(sse.KEEP_ALIVE_S):
                    return await outbox.take()
            except TimeoutError:
                await _write(response, sse.COMMENT)


async def _first(outbox: Outbox) -> Item | None:
    """Wait a moment for the first delivery: if it is the answer, no stream is needed."""
    try:
        async with asyncio.timeout(COMMIT_S):
            return await outbox.take()
    except TimeoutError:
        return None


async def _write(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(WRITE_S):
        await response.write(data)


def _plain(item: Item, live: Live) -> web.Response:
    status = 200 if item.error is None else item.error.status
    headers = {} if live.record.over else {SESSION_HEADER: live.record.key}
    return web.Response(body=item.raw, status=status, content_type=intake.JSON, headers=headers)


def _refusal(error: GatewayError, envelope: Envelope) -> web.Response:
    request_id = envelope.id if isinstance(envelope.id, str | int) else None
    return refusal(error, request_id)


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
