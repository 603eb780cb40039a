"""Streamable HTTP of 2026-07-28: no handshake, no session, each POST for itself.

What can be told without a dyno comes out of the catalogue. Everything else goes to the dyno that
the requests of one principal share, or that a handle names; what a dyno has given a client to
bring back goes to that dyno. A client that hangs up cancels.
"""

import asyncio
import time
from collections import defaultdict
from contextlib import nullcontext

from aiohttp import web

from gateway.edge import intake, sse
from gateway.edge.answering import Reply, refusal
from gateway.edge.door import HANDLE_HEADER, Caller
from gateway.eras import modern
from gateway.eras.catalogue import LISTS
from gateway.eras.headers import Mirrors
from gateway.eras.modern import Asked
from gateway.errors import Elsewhere, GatewayError, MissingHandle, Moved, SessionEnded
from gateway.jsonrpc import Kind, peek
from gateway.patience import patience
from gateway.sessions.catalogues import Catalogues
from gateway.sessions.live import SharedLive
from gateway.sessions.manager import Manager
from gateway.sessions.record import Reason
from gateway.sessions.seals import Seal, bound_to
from gateway.sessions.streams import Item, Outbox

COMMIT_S = 15.0
"""A request that takes longer is answered as a stream: an error that comes sooner still gets a
status code of its own, and the platform's router wants a first byte within 30 s."""

LARGE_BODIES = 2
"""Large requests of a principal that are read at the same time."""

SUPPORTED = (modern.REVISION,)

HELD_BYTES = 4096
"""Largest `subscriptions/listen` that waits in our memory for a child to start."""

TASKS = "tasks/"


class ModernHttp:
    """What the MCP endpoints do for clients without a handshake.

    Args:
        manager: finds and makes sessions.
        catalogues: what is known without a dyno.
        message_bytes: largest body.
    """

    def __init__(self, manager: Manager, catalogues: Catalogues, *, message_bytes: int) -> None:
        self._manager = manager
        self._catalogues = catalogues
        self._message_bytes = message_bytes
        self._mirrors: dict[tuple[str, str], tuple[float, Mirrors]] = {}
        self._large: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(LARGE_BODIES)
        )

    async def post(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        """Take one message: a request is answered, a notification gets 202."""
        intake.check_accept(request.headers, intake.JSON, intake.SSE)
        reading = self._large[caller.principal] if intake.is_large(request) else nullcontext()
        async with reading:
            raw = await intake.read_body(request, self._message_bytes)
            envelope = peek(raw)
            request_id = envelope.id if isinstance(envelope.id, str | int) else None
            try:
                if envelope.kind is Kind.NOTIFICATION:
                    modern.admit_notification(request.headers.items(), SUPPORTED)
                    return web.Response(status=202)
                asked = modern.admit(request.headers.items(), envelope, SUPPORTED)
                taken = await self._take(request, caller, asked, len(raw))
            except (Elsewhere, Moved):
                raise
            except GatewayError as error:
                return refusal(error, request_id)
        del raw, envelope, asked  # the link has the bytes; a long call shall not hold them too
        if isinstance(taken, bytes):
            return web.Response(body=taken, content_type=intake.JSON)
        try:
            return await self._respond(request, *taken)
        except (Elsewhere, Moved):
            raise
        except GatewayError as error:
            return refusal(error, request_id)

    async def _take(
        self, request: web.Request, caller: Caller, asked: Asked, size: int
    ) -> bytes | tuple[SharedLive, Outbox]:
        """Hand a request to its session; return its answer, or where that will come."""
        await self._catalogues.ready(caller.server, "modern")
        face = self._catalogues.face(caller.server, "modern")
        seal = self._brought(caller, asked)
        told = None if seal is not None else await self._told(caller, asked)
        if told is not None:
            return told
        self._check_mirrors(request, caller, asked)
        live = await self._live(caller, asked, seal)
        outbox = live.open_outbox(numbered=asked.method != modern.LISTEN)
        try:
            await live.room()
            if caller.server.toolkit is not None and self._holds(live, asked, size, outbox):
                return live, outbox  # there will be no child that needs room
            self._manager.check_room(live)
            if not self._holds(live, asked, size, outbox):
                word = None if seal is None else seal.word
                live.session.request(asked, size, outbox, time.monotonic(), word)
                self._manager.launch(live, face)
                live.wake()
        except BaseException:
            self._leave(live, outbox)
            raise
        return live, outbox

    async def _respond(
        self, request: web.Request, live: SharedLive, outbox: Outbox
    ) -> web.StreamResponse:
        try:
            await outbox.until_ready(patience(COMMIT_S))
            if outbox.closed and not outbox.ready:
                raise live.gone_elsewhere()
            reply = Reply(request, live, outbox, dict, _status)
            first = outbox.only_answer()
            if first is not None:
                return await reply.whole(first)
            return await reply.stream(sse.COMMENT)
        finally:
            self._leave(live, outbox)

    def _leave(self, live: SharedLive, outbox: Outbox) -> None:
        live.drop_outbox(outbox)
        if live.record.server.isolation == "request" and not live.session.waits:
            self._manager.end(live, Reason.ANSWERED, SessionEnded("its request was answered"))

    async def _told(self, caller: Caller, asked: Asked) -> bytes | None:
        """Return what the catalogue answers; None if it is a child's to answer."""
        if asked.cursor is not None or asked.method not in ("server/discover", *LISTS):
            return None
        self._manager.check_registered(caller.server)
        if self._manager.contradicts(caller.server, caller.principal, caller.handle):
            return None
        chapter = await self._catalogues.settled_chapter(caller.server, "modern")
        return None if chapter is None else chapter.answer(asked.method, asked.id)

    def _brought(self, caller: Caller, asked: Asked) -> Seal | None:
        """Open what a request brings back.

        Raises:
            StaleState: it was not given to this principal, for this request.
        """
        ttl_s = caller.server.max_lifetime
        seals, principal = self._manager.seals, caller.principal
        if asked.request_state is not None:
            bound = bound_to(asked.method, asked.params)
            return seals.open(asked.request_state, "requestState", principal, bound, ttl_s)
        if asked.cursor is not None:
            return seals.open(asked.cursor, "cursor", principal, asked.method, ttl_s)
        if asked.method.startswith(TASKS) and asked.name is not None:
            return seals.open(asked.name, "taskId", principal, "", ttl_s)
        return None

    async def _live(self, caller: Caller, asked: Asked, seal: Seal | None) -> SharedLive:
        """Return the session whose child answers a request."""
        if seal is not None:
            return await self._manager.issuer(seal, caller.server)
        handle = caller.handle
        match caller.server.isolation:
            case "handle" if not handle:
                raise MissingHandle(
                    f"{caller.server.name} is shared by nobody: name a handle of your choice in "
                    f"the header {HANDLE_HEADER}, or use /servers/NAME/handles/HANDLE/mcp"
                )
            case "request":
                return await self._manager.share_anew(caller.server, caller.principal, asked.client)
            case _:
                pass
        return await self._manager.share(caller.server, caller.principal, handle, asked.client)

    def _holds(self, live: SharedLive, asked: Asked, size: int, outbox: Outbox) -> bool:
        """Hold a listen to lists as long as no child runs that could change them."""
        chapter = self._catalogues.chapter(live.record.server, "modern")
        needs_child = live.session.started or size > HELD_BYTES or not modern.lists_only(asked)
        if needs_child or chapter is None:
            return False
        kinds = chapter.list_changed_kinds
        live.perform(live.session.hold(asked, size, outbox, time.monotonic(), kinds))
        return True

    def _check_mirrors(self, request: web.Request, caller: Caller, asked: Asked) -> None:
        """Hold the headers that repeat a tool's arguments to what the body says.

        Raises:
            HeaderMismatch: see `Mirrors.check`.
        """
        chapter = self._catalogues.chapter(caller.server, "modern")
        if asked.method != "tools/call" or asked.name is None or chapter is None:
            return
        key = caller.server.name, asked.name
        learned, mirrors = self._mirrors.get(key, (-1.0, None))
        if mirrors is None or learned != chapter.learned:
            tool = chapter.tool(asked.name)
            if tool is None:
                return
            mirrors = Mirrors(tool.get("inputSchema"))
            self._mirrors[key] = chapter.learned, mirrors
        mirrors.check(request.headers.items(), asked.params.get("arguments"))


def _status(answer: Item) -> int:
    return modern.http_status(answer.code) if answer.error is None else answer.error.status
