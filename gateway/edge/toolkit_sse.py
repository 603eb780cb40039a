"""Toolkits over HTTP+SSE of 2024-11-05: one stream for what the toolkit and all its members say.

A member's session begins with the first message for it, and ends with the stream like the
toolkit's own. What members ask has their mark in its id, as in `toolkits`.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from aiohttp import web

from gateway.edge import intake, sse
from gateway.edge.answering import STREAM_HEADERS, cut, with_mark, write, write_event
from gateway.edge.door import Caller, Door, Serve, is_modern, only_post
from gateway.edge.legacy_sse import LegacySse, endpoint
from gateway.edge.streamable_http import StreamableHttp, kept
from gateway.edge.toolkits import OWN, PLACES, caller_of, check_own, unmarked, with_id
from gateway.eras.legacy import Opening, opens_session
from gateway.errors import BadMessage, BadParams, GatewayError, SessionEnded
from gateway.jsonrpc import Envelope, Kind, peek, text_of
from gateway.registry.servers import ServerDefinition
from gateway.sessions.catalogues import Catalogues
from gateway.sessions.live import OwnedLive
from gateway.sessions.manager import Manager
from gateway.sessions.overture import Overture
from gateway.sessions.record import Reason
from gateway.sessions.streams import Outbox

SSE_PATHS = [f"{place}/sse" for place in (*PLACES, "/mcp")]
"""Of streams. The last one is the address that Heroku's toolkit has."""

POST_PATHS = [f"{place}/messages" for place in (*PLACES, "/mcp")]
"""Of what their clients send."""

LARGE_BODIES = 2
"""Large bodies of a client that are here at the same time, whichever members they are for."""


@dataclass(slots=True)
class Connection:
    """One client's stream, and who may write to it.

    Attributes:
        caller: whose it is, and of which toolkit.
        request: which asked for it.
        response: the stream.
        tasks: write what members say; they end with the stream.
        opening: what the client said in its `initialize`; all members hear it.
        members: its sessions, by server.
        writing: held while an event is written, which may take several writes.
        reading: held while a large body is read, and until its session has it.
    """

    caller: Caller
    request: web.Request
    response: web.StreamResponse
    tasks: asyncio.TaskGroup
    opening: Opening = field(default_factory=Opening)
    members: dict[str, OwnedLive] = field(default_factory=dict)
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    reading: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(LARGE_BODIES))


class ToolkitSse(LegacySse):
    """The endpoints `/sse` and `/messages` of toolkits.

    Args:
        door: lets clients in.
        manager: finds and makes sessions.
        catalogues: which member has what.
        legacy: what messages of clients with a handshake come to.
        serve: runs what takes them, see `Relaying.serve`.
        message_bytes: largest body.
    """

    def __init__(
        self,
        door: Door,
        manager: Manager,
        catalogues: Catalogues,
        legacy: StreamableHttp,
        serve: Serve,
        *,
        message_bytes: int,
    ) -> None:
        super().__init__(door, manager, legacy, serve, message_bytes=message_bytes)
        self._toolkits = catalogues.toolkits
        self._connections: dict[OwnedLive, Connection] = {}

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            *(web.get(path, self.stream, allow_head=False) for path in SSE_PATHS),
            *(web.post(path, self.post) for path in POST_PATHS),
        ]

    def _caller(self, request: web.Request) -> Caller:
        return caller_of(self._door, request)

    # The stream

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Open a session and its stream; its first event says where to POST."""
        caller = self._caller(request)
        if is_modern(request):
            raise only_post()
        intake.check_accept(request.headers, intake.SSE)
        key, live = await self._legacy.open_unheard(caller)
        response = web.StreamResponse(headers=STREAM_HEADERS)
        with self._listening(live):
            async with asyncio.TaskGroup() as tasks:
                with self._connected(live, Connection(caller, request, response, tasks)) as own:
                    try:
                        await response.prepare(request)
                        await write(response, endpoint(request, key))
                        await self._pump(own, live)
                    except (ConnectionResetError, TimeoutError):
                        cut(request)  # nobody is there, or nobody reads
        return response

    @contextlib.contextmanager
    def _connected(self, live: OwnedLive, connection: Connection) -> Iterator[Connection]:
        """Let members say something inside; with that their sessions end."""
        self._connections[live] = connection
        try:
            yield connection
        finally:
            del self._connections[live]
            for member in connection.members.values():
                self._manager.end(
                    member, Reason.CLIENT_GONE, SessionEnded("the client closed its stream")
                )

    async def _pump(self, connection: Connection, live: OwnedLive, member: str = "") -> None:
        """Write what comes of a session as events, until its end."""
        outbox, response = self._streams[live], connection.response
        outbox.begun, outbox.cut = True, functools.partial(cut, connection.request)
        while True:
            try:
                async with asyncio.timeout(sse.KEEP_ALIVE_S):
                    item = await outbox.head()
            except TimeoutError:
                async with connection.writing:
                    await write(response, sse.COMMENT)
                continue
            if item is None:
                return
            async with connection.writing:
                with live.delivering(outbox.take()):
                    if item.raw:
                        marked = with_mark(item, member) if member else item
                        await write_event(response, marked, outbox)

    async def _follow(self, connection: Connection, live: OwnedLive) -> None:
        """Write what a member says, until its session or the stream ends."""
        try:
            await self._pump(connection, live, live.record.server.name)
        except (ConnectionResetError, TimeoutError):
            cut(connection.request)  # which ends the stream

    def _left(self, connection: Connection, live: OwnedLive, _task: asyncio.Task[None]) -> None:
        """Nobody writes any more what a member says."""
        name = live.record.server.name
        if connection.members.get(name) is live:
            del connection.members[name]
        self._detach(live)

    # Messages

    async def _take(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        live, _ = await self._find(request, caller)
        connection = self._connections.get(live)
        if connection is None or not intake.is_large(request):
            return await super()._take(request, caller)
        async with connection.reading:
            return await super()._take(request, caller)

    async def _hand(self, live: OwnedLive, outbox: Outbox, envelope: Envelope, raw: bytes) -> None:
        """Hand a message to the toolkit's session, or a member's, or all members'."""
        connection = self._connections.get(live)
        if connection is None:
            raise SessionEnded("the stream of this session is closed: open another one")
        method = envelope.method_name
        match envelope.kind:
            case Kind.NOTIFICATION if method != "notifications/initialized":
                self._tell_members(connection, envelope, raw)
            case Kind.REQUEST if method not in OWN:
                try:
                    await self._ask(connection, envelope, raw)
                except GatewayError as error:
                    self._refuse(live, outbox, envelope, error)
            case Kind.RESPONSE if (named := unmarked(envelope)) is not None:
                asker = connection.members.get(named[0])
                if asker is None:
                    raise BadMessage("a response to a request that no server of this session made")
                await self._hand_on(asker, with_id(raw, named[1]))
            case _:
                if opens_session(envelope):
                    connection.opening = kept(Opening(text_of(envelope.params)))
                await self._hand_own(live, outbox, envelope, raw)

    async def _hand_own(
        self, live: OwnedLive, outbox: Outbox, envelope: Envelope, raw: bytes
    ) -> None:
        try:
            check_own(envelope)
        except BadParams as error:
            self._refuse(live, outbox, envelope, error)
        else:
            await super()._hand(live, outbox, envelope, raw)

    async def _ask(self, connection: Connection, envelope: Envelope, raw: bytes) -> None:
        """Hand a request to the member that it is for."""
        routed = self._toolkits.route(connection.caller.server, "legacy", envelope, raw)
        member = await self._member(connection, routed.server)
        await self._hand_on(member, routed.raw)

    async def _hand_on(self, member: OwnedLive, raw: bytes) -> None:
        await member.room()
        outbox = self._streams.get(member)
        if outbox is None:
            raise SessionEnded("the session ended before this message was taken")
        await super()._hand(member, outbox, peek(raw), raw)

    def _tell_members(self, connection: Connection, envelope: Envelope, raw: bytes) -> None:
        """Let all members hear a notification: nobody else knows whose it is."""
        for member in connection.members.values():
            if member.record.launch_id and not member.record.over:
                with contextlib.suppress(GatewayError):  # of one member, that does not read
                    self._legacy.hand_over(member, envelope, raw, time.monotonic())

    async def _member(self, connection: Connection, server: ServerDefinition) -> OwnedLive:
        """Return the session with a member; it begins as the client has begun the toolkit's.

        Raises:
            GatewayError: there can be none, see `Manager.open` and `Manager.publish`.
        """
        known = connection.members.get(server.name)
        if known is not None and not known.record.over:
            return known
        _, live = self._manager.open(server, connection.caller.principal, "")
        live.tied = True
        live.session.overture = Overture(connection.opening, None)
        self._attach(live)
        connection.members[server.name] = live
        hearing = self._follow(connection, live)
        task = connection.tasks.create_task(hearing, name=f"hear {server.name}")
        task.add_done_callback(functools.partial(self._left, connection, live))
        await self._manager.publish(live)
        return live
