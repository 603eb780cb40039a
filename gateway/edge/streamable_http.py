"""Streamable HTTP for the handshake revisions 2025-03-26, 2025-06-18 and 2025-11-25.

HTTP in, (envelope, outbox) to the session, deliveries out as JSON or server-sent events. It knows
status codes and streams; what a message means is the session's business.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from aiohttp import web

from dyno_agent.link.resumption import GENERAL, id_of
from gateway.edge import intake, sse
from gateway.edge.answering import STREAM_HEADERS, Reply, refusal
from gateway.edge.door import Caller
from gateway.eras import modern
from gateway.eras.catalogue import Chapter
from gateway.eras.headers import REVISION_HEADER
from gateway.eras.legacy import Opening, client_name, opens_session, requested, resumes
from gateway.eras.toolkit import abridged
from gateway.eras.versions import ASSUMED, BATCHES, resumable
from gateway.errors import (
    BadMessage,
    DuplicateId,
    Elsewhere,
    GatewayError,
    MissingSession,
    Moved,
    SessionEnded,
)
from gateway.jsonrpc import Envelope, Kind, error_response, peek, split, text_of
from gateway.patience import patience
from gateway.registry.servers import ServerDefinition
from gateway.sessions.catalogues import Catalogues
from gateway.sessions.delivery import Delivery
from gateway.sessions.live import OwnedLive
from gateway.sessions.manager import Manager
from gateway.sessions.overture import Overture
from gateway.sessions.record import Reason
from gateway.sessions.streams import Item, Outbox

SESSION_HEADER = "Mcp-Session-Id"

REBUILT_HEADER = "Rendezvous-Session"
"""Says `rebuilt` on the first answer of a session that lost its state."""

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

KEPT_CHARACTERS = 16 * 1024
"""Longest params of an `initialize` that are kept for a child that starts later; the child of a
longer one starts now."""

OPENING_BYTES = 1024 * 1024
"""Largest body without a session: an `initialize`."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A message that its session has taken.

    Attributes:
        live: the session.
        key: what its client presents.
        ordinal: of the message on the link.
        outbox: where a request is answered.
        opened: the message opened the session, and the child will answer it.
        at_once: the answer, if no child is needed for it.
    """

    live: OwnedLive
    key: str
    ordinal: int = 0
    outbox: Outbox | None = None
    opened: bool = False
    at_once: bytes = b""

    def headers(self) -> dict[str, str]:
        """Return what every response carries; nothing once the session is over."""
        headers = {} if self.live.record.over else {SESSION_HEADER: self.key}
        if self.live.rebuilt:
            headers[REBUILT_HEADER] = "rebuilt"
            self.live.rebuilt = False
        return headers


class StreamableHttp:
    """What the MCP endpoints do for clients with a handshake.

    Args:
        manager: finds and makes sessions.
        catalogues: what is known without a dyno.
        message_bytes: largest body.
    """

    def __init__(self, manager: Manager, catalogues: Catalogues, *, message_bytes: int) -> None:
        self._manager = manager
        self._catalogues = catalogues
        self._message_bytes = message_bytes

    async def _find(self, request: web.Request, caller: Caller) -> OwnedLive:
        key = request.headers.get(SESSION_HEADER)
        if key is None:
            raise MissingSession(f"{SESSION_HEADER} is missing: send `initialize` first")
        return await self._manager.find(key, caller.principal, caller.server)

    # POST

    async def post(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        """Take one message, or a batch: requests are answered, anything else gets 202."""
        intake.check_revision(request.headers)
        intake.check_accept(request.headers, intake.JSON, intake.SSE)
        try:
            target: OwnedLive | GatewayError = await self._find(request, caller)
            limit = self._message_bytes
        except Elsewhere:
            raise
        except GatewayError as error:  # told with the id of the request, once that is read
            target, limit = error, min(self._message_bytes, OPENING_BYTES)
        async with _room_to_read(request, target):
            raw = await intake.read_body(request, limit)
            members = split(raw)
            if members is not None:
                return await self._batch(request, caller, target, members)
            envelope = peek(raw)
            request_id = envelope.id if isinstance(envelope.id, str | int) else None
            try:
                taken = await self._take(request, caller, target, envelope, raw)
            except (Elsewhere, Moved):
                raise
            except GatewayError as error:
                return refusal(error, request_id)
        del raw, envelope  # the link has the bytes; a long call shall not hold them too
        try:
            return await self._respond(request, taken)
        except (Elsewhere, Moved):
            raise
        except GatewayError as error:
            return refusal(error, request_id)

    async def _take(
        self,
        request: web.Request,
        caller: Caller,
        target: OwnedLive | GatewayError,
        envelope: Envelope,
        raw: bytes,
    ) -> Taken:
        """Hand a message to its session; `initialize` makes one."""
        header = request.headers.get(REVISION_HEADER)
        if modern.is_modern(header, envelope):
            modern.admit(request.headers.items(), envelope, (modern.REVISION,))
        key, opened = request.headers.get(SESSION_HEADER, ""), False
        if isinstance(target, OwnedLive):
            live = target
            await live.room()
        elif (
            isinstance(target, MissingSession)
            and envelope.kind is Kind.REQUEST
            and opens_session(envelope)
        ):
            key, live = await self._open(caller, envelope)
            opened = True
        else:
            raise target
        if live.record.over:
            raise SessionEnded("the session ended before this request was taken")
        now = time.monotonic()
        if envelope.kind is not Kind.REQUEST:
            return Taken(live, key, self.hand_over(live, envelope, raw, now))
        at_once = live.session.at_once(envelope, len(raw), now)
        if at_once is not None:
            return Taken(live, key, at_once=at_once)
        label = live.session.label_of(envelope)
        comes_back = resumes(envelope, header or ASSUMED)
        outbox = live.open_outbox(label, resumable=comes_back)
        try:
            ordinal = self.call(live, envelope, raw, outbox)
        except GatewayError:
            live.drop_outbox(outbox)
            raise
        return Taken(live, key, ordinal, outbox, opened)

    async def _open(self, caller: Caller, envelope: Envelope) -> tuple[str, OwnedLive]:
        opening, chapter = await self._opening(caller.server, envelope)
        name = client_name(envelope)
        key, live = self._manager.open(caller.server, caller.principal, name, opening, chapter)
        await self._manager.publish(live)
        self._begin(live, chapter)
        return key, live

    async def open_unheard(self, caller: Caller) -> tuple[str, OwnedLive]:
        """Open a session whose client has not said `initialize` yet; return its key and it."""
        key, live = self._manager.open(caller.server, caller.principal, "")
        live.tied = True
        await self._manager.publish(live)
        return key, live

    async def open_heard(self, live: OwnedLive, envelope: Envelope) -> None:
        """Take the `initialize` of such a client; another one is the child's to judge."""
        opening, chapter = await self._opening(live.record.server, envelope)
        if live.record.over:
            raise SessionEnded("the session ended before this request was taken")
        if live.record.launch_id or live.session.overture is not None:
            return
        if chapter is not None:
            live.session.overture = Overture(opening, chapter)
        self._begin(live, chapter)

    async def _opening(
        self, server: ServerDefinition, envelope: Envelope
    ) -> tuple[Opening, Chapter | None]:
        chapter = await self._catalogues.settled_chapter(server, "legacy")
        params = text_of(envelope.params)
        if chapter is None:
            return Opening(params), None
        opening = Opening(params, chapter.negotiated(requested(envelope.params)))
        if server.toolkit is not None:  # there is no child that could hear all of it now
            return kept(opening), chapter
        return (opening, chapter) if len(params) <= KEPT_CHARACTERS else (Opening(params), None)

    def _begin(self, live: OwnedLive, chapter: Chapter | None) -> None:
        """Get a dyno now if the server wants that, or if its child has to answer `initialize`."""
        server = live.record.server
        if chapter is not None and server.boot == "lazy":
            return
        try:
            self._manager.launch(live, self._catalogues.face(server, "legacy"))
        except GatewayError as error:
            self._manager.end(live, Reason.NO_ROOM, SessionEnded(error.message))
            raise

    def call(self, live: OwnedLive, envelope: Envelope, raw: bytes, outbox: Outbox) -> int:
        """Let the child answer a request to an outbox; return its ordinal on the link."""
        face = self._catalogues.face(live.record.server, "legacy")
        self._manager.check_room(live)
        if live.record.launch_id:
            ordinal = live.request(envelope, raw, outbox, time.monotonic())
        else:
            self._manager.launch(live, face)  # what the child must hear first goes first
            ordinal = live.request(envelope, raw, outbox, time.monotonic())
            live.tell_phase("a dyno is asked for")
        live.wake()
        return ordinal

    def hand_over(self, live: OwnedLive, envelope: Envelope, raw: bytes, now: float) -> int:
        """Give the child a notification or an answer; return its ordinal on the link."""
        if envelope.kind is Kind.RESPONSE:
            ordinal = live.session.respond(envelope, raw, now)
        elif live.session.swallows(envelope, now):
            return 0
        else:
            self._manager.launch(live, self._catalogues.face(live.record.server, "legacy"))
            ordinal, deliveries = live.session.notify(envelope, raw, now)
            live.perform(deliveries)
        live.wake()
        return ordinal

    async def _respond(self, request: web.Request, taken: Taken) -> web.StreamResponse:
        live, outbox = taken.live, taken.outbox
        if taken.at_once:
            return _told(request, taken)
        if outbox is None:
            await self._confirm(live, taken.ordinal)
            return web.Response(status=202, headers=taken.headers())
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

    async def _confirm(self, live: OwnedLive, ordinal: int) -> None:
        """Accepted means that the agent has it: from there on it survives this process."""
        has_it = await live.confirmed(ordinal, None, patience(CONFIRM_S))
        if live.handed_over and not has_it:
            raise live.gone_elsewhere()

    async def _answer(
        self, request: web.Request, taken: Taken, outbox: Outbox
    ) -> web.StreamResponse:
        """Answer as JSON if the answer comes soon and alone, else as a stream."""
        live, has_it = taken.live, False
        # Nobody has a session's key before `initialize` is answered: it can be plain and late.
        soon = outbox.resumable and not taken.opened
        streams = soon and intake.prefers_stream(request.headers)
        await outbox.until_ready(0.0 if streams else patience(QUICK_S if soon else COMMIT_S))
        if outbox.resumable and not outbox.answered:
            # The stream's first event promises that the call survives this process.
            limit_s = patience(COMMIT_S) if soon else 0.0
            has_it = await live.confirmed(taken.ordinal, outbox, limit_s)
        if outbox.closed and not outbox.ready and not has_it:
            if outbox.continued:
                raise DuplicateId("this request was sent again, and that one is answered")
            raise live.gone_elsewhere()
        reply = Reply(request, live, outbox, taken.headers, _status)
        first = None if streams and has_it else outbox.only_answer()
        if first is not None:
            return await reply.whole(first)
        if has_it:
            return await reply.stream(reply.priming())
        return await reply.stream(sse.COMMENT, taken.ordinal if soon else None)

    async def _batch(
        self,
        request: web.Request,
        caller: Caller,
        target: OwnedLive | GatewayError,
        members: list[bytes],
    ) -> web.StreamResponse:
        """Take a batch (2025-03-26): its answers come in one body, or in one stream."""
        revision = request.headers.get(REVISION_HEADER, ASSUMED)
        if revision != BATCHES:
            raise BadMessage(f"MCP {revision} has no batches: send one message per POST")
        if not isinstance(target, OwnedLive):
            raise target
        batch = [(envelope := peek(raw), envelope.kind, raw) for raw in members]
        await target.room()
        live, key = target, request.headers[SESSION_HEADER]
        if live.record.over:
            raise SessionEnded("the session ended before this batch was taken")
        requests = sum(kind is Kind.REQUEST for _, kind, _ in batch)
        outbox = live.open_outbox("batch", answers=requests, numbered=False)
        try:
            ordinals = [self._batched(live, envelope, raw, outbox) for envelope, _, raw in batch]
            taken = Taken(live, key)
            if not requests:
                await self._confirm(live, max(ordinals))
                return web.Response(status=202, headers=taken.headers())
            await outbox.until_complete(patience(COMMIT_S))
            reply = Reply(request, live, outbox, taken.headers, _status)
            if outbox.complete:
                return await reply.array()
            return await reply.stream(sse.COMMENT)
        finally:
            live.drop_outbox(outbox)

    def _batched(self, live: OwnedLive, envelope: Envelope, raw: bytes, outbox: Outbox) -> int:
        """Take one message of a batch; one that is refused spoils no other.

        Returns:
            Its ordinal on the link; 0 for one that does not go there.
        """
        asks = envelope.kind is Kind.REQUEST
        try:
            if not asks:
                return self.hand_over(live, envelope, raw, time.monotonic())
            if opens_session(envelope):
                raise BadMessage("`initialize` may not be part of a batch")
            at_once = live.session.at_once(envelope, len(raw), time.monotonic())
            if at_once is None:
                return self.call(live, envelope, raw, outbox)
            outbox.put(Delivery(outbox, at_once, last=True))
        except GatewayError as error:
            if asks:
                refused = error_response(envelope.request_id, error)
                outbox.put(Delivery(outbox, refused, last=True, error=error))
            else:
                live.session.chatter.drop(envelope.method_name or "response", error.reason)
        return 0

    # GET and DELETE

    async def get(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        """Open the stream for messages that belong to no call, or continue any stream.

        A newer stream of the same kind replaces an older one.
        """
        intake.check_revision(request.headers)
        intake.check_accept(request.headers, intake.SSE)
        live = await self._find(request, caller)
        label, after = GENERAL, None
        if (last := request.headers.get(LAST_EVENT_HEADER)) is not None:
            try:
                after, label = sse.position(last)
                id_of(label)
            except ValueError as error:
                raise BadMessage(f"{LAST_EVENT_HEADER}: {error}") from error
        revision = request.headers.get(REVISION_HEADER, ASSUMED)
        comes_back = after is not None or resumable(revision)
        outbox = live.open_outbox(label, resumable=comes_back)
        taken = Taken(live, request.headers[SESSION_HEADER])
        reply = Reply(request, live, outbox, taken.headers, _status)
        opening = reply.priming() if comes_back else sse.COMMENT
        if after is not None:
            opening = sse.RETRY
        try:
            live.listen(outbox, after)
            return await reply.stream(opening)
        finally:
            live.drop_outbox(outbox)

    async def delete(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        """End the session."""
        intake.check_revision(request.headers)
        live = await self._find(request, caller)
        self._manager.end(live, Reason.CLIENT_DELETE, SessionEnded("the client ended the session"))
        return web.Response(status=204)


def kept(opening: Opening) -> Opening:
    """Return an opening, or as much of it as is kept."""
    forms = (opening, *abridged(opening))
    return next((form for form in forms if len(form.params) <= KEPT_CHARACTERS), Opening())


def _told(request: web.Request, taken: Taken) -> web.Response:
    """Answer from the catalogue, in the form that the client prefers."""
    if intake.prefers_stream(request.headers):
        headers = {**STREAM_HEADERS, **taken.headers()}
        return web.Response(body=sse.event(taken.at_once), headers=headers)
    headers = {**taken.headers(), "Content-Type": intake.JSON}
    return web.Response(body=taken.at_once, headers=headers)


def _status(answer: Item) -> int:
    return 200 if answer.error is None else answer.error.status


@contextlib.asynccontextmanager
async def _room_to_read(
    request: web.Request, target: OwnedLive | GatewayError
) -> AsyncIterator[None]:
    """Read few large bodies of a session at a time: each lies in memory until the link takes it."""
    if not intake.is_large(request) or not isinstance(target, OwnedLive):
        yield
        return
    async with target.large_bodies:
        await target.room()
        yield
