"""HTTP+SSE of 2024-11-05: one stream for everything to the client, POSTs for everything from it.

The stream is the session: it begins with the address for the POSTs, and its end is the end.
"""

import contextlib
import time
from collections.abc import Iterator

from aiohttp import web

from gateway.edge import intake
from gateway.edge.answering import Reply
from gateway.edge.door import Caller, Door, Serve, is_modern, only_post
from gateway.edge.streamable_http import StreamableHttp
from gateway.eras.legacy import opens_session
from gateway.errors import GatewayError, MissingSession, SessionEnded
from gateway.jsonrpc import Envelope, Kind, error_response, peek
from gateway.sessions.delivery import Delivery
from gateway.sessions.live import OwnedLive
from gateway.sessions.manager import Manager
from gateway.sessions.record import Reason
from gateway.sessions.streams import Item, Outbox

SESSION_PARAMETER = "session_id"
"""Where the address for the POSTs names the session. The transport has no other place; who uses it
needs a key of the session's principal besides."""


class LegacySse:
    """The endpoints `/sse` and `/messages`, of the default server and of named ones.

    Args:
        door: lets clients in.
        manager: finds and makes sessions.
        legacy: what messages of clients with a handshake come to.
        serve: runs what takes them, see `Relaying.serve`.
        message_bytes: largest body.
    """

    def __init__(
        self,
        door: Door,
        manager: Manager,
        legacy: StreamableHttp,
        serve: Serve,
        *,
        message_bytes: int,
    ) -> None:
        self._serve = serve
        self._door = door
        self._manager = manager
        self._legacy = legacy
        self._message_bytes = message_bytes
        self._streams: dict[OwnedLive, Outbox] = {}

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            route
            for place in ("", "/servers/{name}")
            for route in (
                web.get(f"{place}/sse", self.stream, allow_head=False),
                web.post(f"{place}/messages", self.post),
            )
        ]

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Open a session and its stream; its first event says where to POST."""
        caller = self._caller(request)
        if is_modern(request):
            raise only_post()
        intake.check_accept(request.headers, intake.SSE)
        key, live = await self._legacy.open_unheard(caller)
        with self._listening(live) as outbox:
            opening = endpoint(request, key)
            return await Reply(request, live, outbox, dict, _status).stream(opening)

    @contextlib.contextmanager
    def _listening(self, live: OwnedLive) -> Iterator[Outbox]:
        """Let a session have its stream inside; the end of that is the end of the session."""
        outbox = self._attach(live)
        try:
            yield outbox
        finally:
            self._detach(live)

    def _attach(self, live: OwnedLive) -> Outbox:
        outbox = self._streams[live] = live.open_outbox(answers=None, numbered=False)
        live.listen(outbox, None)
        return outbox

    def _detach(self, live: OwnedLive) -> None:
        live.drop_outbox(self._streams.pop(live))
        self._manager.end(live, Reason.CLIENT_GONE, SessionEnded("the client closed its stream"))

    async def post(self, request: web.Request) -> web.StreamResponse:
        """Take one message; what answers it comes on the session's stream."""
        return await self._serve(self._take, request, self._caller(request))

    def _caller(self, request: web.Request) -> Caller:
        return self._door.caller(request)

    async def _take(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        live, outbox = await self._find(request, caller)
        async with live.large_bodies:
            await live.room()
            raw = await intake.read_body(request, self._message_bytes)
        await self._hand(live, outbox, peek(raw), raw)
        return web.Response(status=202, text="Accepted")

    async def _hand(self, live: OwnedLive, outbox: Outbox, envelope: Envelope, raw: bytes) -> None:
        """Hand a message to a session; what answers it comes to the outbox."""
        now = time.monotonic()
        if live.record.over:
            raise SessionEnded("the session ended before this message was taken")
        if envelope.kind is not Kind.REQUEST:
            self._legacy.hand_over(live, envelope, raw, now)
            return
        try:
            if opens_session(envelope):
                await self._legacy.open_heard(live, envelope)
            at_once = live.session.at_once(envelope, len(raw), now)
            if at_once is None:
                self._legacy.call(live, envelope, raw, outbox)
            else:
                live.perform([Delivery(outbox, at_once, last=True)])
        except GatewayError as error:
            self._refuse(live, outbox, envelope, error)

    def _refuse(
        self, live: OwnedLive, outbox: Outbox, envelope: Envelope, error: GatewayError
    ) -> None:
        if live not in self._streams:
            raise error  # there is nothing to tell it on
        refused = error_response(envelope.request_id, error)
        live.perform([Delivery(outbox, refused, last=True, error=error)])

    async def _find(self, request: web.Request, caller: Caller) -> tuple[OwnedLive, Outbox]:
        key = request.query.get(SESSION_PARAMETER)
        if key is None:
            raise MissingSession(f"{SESSION_PARAMETER} is missing: open the stream at /sse first")
        live = await self._manager.find(key, caller.principal, caller.server)
        outbox = self._streams.get(live)
        if outbox is None:
            raise SessionEnded("the stream of this session is closed: open another one at /sse")
        return live, outbox


def endpoint(request: web.Request, key: str) -> bytes:
    """Return the first event of a session's stream: where its client posts."""
    path = request.path.removesuffix("/sse")
    return f"event: endpoint\ndata: {path}/messages?{SESSION_PARAMETER}={key}\n\n".encode()


def _status(_answer: Item) -> int:
    return 200
