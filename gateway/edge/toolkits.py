"""One MCP URL for several servers: the gateway answers for all, each member for what is its own.

A request is either the toolkit's, and served like any server's, or a member's. Then it becomes a
request to that member's own endpoint, of the session that this client has with it, and goes the way
of every such request, to another gateway process if it must. Only marks tell the client's messages
apart on the way back: in event ids, and in the ids of what members ask.
"""

import asyncio
import base64
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
from aiohttp import web
from msgspec import UNSET, Raw, UnsetType

from dyno_agent.link.resumption import id_of
from gateway.edge import intake, sse
from gateway.edge.answering import MEMBER_HEADER, STREAM_HEADERS, refusal
from gateway.edge.door import Caller, Door, Endpoints, is_modern
from gateway.edge.intake import GIVEN, Given
from gateway.edge.relaying import UNTOLD
from gateway.edge.streamable_http import LAST_EVENT_HEADER, OPENING_BYTES, SESSION_HEADER
from gateway.eras import modern
from gateway.eras.catalogue import LISTS, Era
from gateway.eras.headers import NAME_HEADER
from gateway.errors import (
    BadMessage,
    BadParams,
    GatewayError,
    UnknownItem,
    UnknownMethod,
    UnknownServer,
)
from gateway.jsonrpc import Envelope, Kind, error_response, peek
from gateway.registry.servers import ALL, Registry, ServerDefinition
from gateway.sessions import failures
from gateway.sessions.catalogues import Catalogues
from gateway.sessions.keys import SessionKeys
from gateway.sessions.manager import Manager

PLACES = ("/toolkit", "/toolkits/{toolkit}")
"""Where toolkits are: that of all servers, and named ones."""

PATHS = [f"{place}{suffix}" for place in PLACES for suffix in ("/mcp", "/handles/{handle}/mcp")]
"""Of Streamable HTTP."""

LARGE_BODIES = 2
"""Large bodies of a principal that are here at the same time, not yet taken by a session."""

OWN = frozenset({"initialize", "ping", "server/discover", modern.LISTEN, *LISTS})
"""Methods that a toolkit answers itself."""

TOOLKIT_KEY: web.RequestKey[str] = web.RequestKey("toolkit's session key")
"""Set on requests of a toolkit's session, and on those that its members get of them."""

_IN_THE_BODY = (UnknownItem, UnknownMethod, UnknownServer, BadParams)
"""What a server says in an answer. Clients with a handshake take a 404 for their session's end."""

_OBJECT = msgspec.json.Decoder(dict[str, Raw])
_ID = msgspec.json.Decoder(str | int)


class _Paged(msgspec.Struct):
    cursor: Any = UNSET


_PAGED = msgspec.json.Decoder(_Paged)


class Toolkits:
    """The endpoints of toolkits, for Streamable HTTP of every revision.

    Args:
        door: lets clients in.
        endpoints: serve what belongs to one server, and a toolkit's own.
        registry: who is a member of what.
        manager: knows the sessions.
        catalogues: which member has what.
        message_bytes: largest body.
    """

    def __init__(
        self,
        door: Door,
        endpoints: Endpoints,
        registry: Registry,
        manager: Manager,
        catalogues: Catalogues,
        *,
        message_bytes: int,
    ) -> None:
        self._door = door
        self._endpoints = endpoints
        self._registry = registry
        self._manager = manager
        self._catalogues = catalogues
        self._message_bytes = message_bytes
        self._large: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(LARGE_BODIES)
        )

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            route
            for path in PATHS
            for route in (
                web.post(path, self.post),
                web.get(path, self.get, allow_head=False),
                web.delete(path, self.delete),
            )
        ]

    async def post(self, request: web.Request) -> web.StreamResponse:
        """Take a message of any revision; it is the toolkit's or a member's, or all members'."""
        caller = caller_of(self._door, request)
        async with self._read(request, caller) as given:
            if is_modern(request):
                return await self._post_modern(request, caller, given)
            return await self._post_legacy(request, caller, given)

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Open the toolkit's own stream, or continue any: that of a member's call is the member's.

        Raises:
            BadMessage: an event id of nobody who is a member.
        """
        caller = caller_of(self._door, request)
        key, last = _key(request), request.headers.get(LAST_EVENT_HEADER, "")
        name = sse.member(last)
        if not key or not name or is_modern(request):
            return await self._endpoints.serve(request, caller)
        server = member_named(self._registry, caller.server, name)
        headers = self._of_session(key, caller, server)
        if not await self._manager.alive(headers[SESSION_HEADER], returning=True):
            return _answer_gone(key, last)
        return await self._endpoints.serve(*_handed_on(request, caller, server, headers))

    async def delete(self, request: web.Request) -> web.StreamResponse:
        """End the session, and those with its members."""
        caller = caller_of(self._door, request)
        if (key := _key(request)) and not is_modern(request):
            await self._tell_members(request, caller, key)
        return await self._endpoints.serve(request, caller)

    @contextlib.asynccontextmanager
    async def _read(self, request: web.Request, caller: Caller) -> AsyncIterator[Given]:
        """Read a body, which says where it goes; few large ones wait here to be taken."""
        has_session = SESSION_HEADER in request.headers or is_modern(request)
        limit = self._message_bytes if has_session else OPENING_BYTES
        room = self._large[caller.principal] if intake.is_large(request) else None
        if room is not None:
            await room.acquire()
        given = Given(b"", None if room is None else room.release)
        try:
            given.body = await intake.read_body(request, limit)
            request[GIVEN] = given
            yield given
        finally:
            given.take()

    # Clients with a handshake

    async def _post_legacy(
        self, request: web.Request, caller: Caller, given: Given
    ) -> web.StreamResponse:
        intake.check_revision(request.headers)
        key = _key(request)
        if not key:  # an `initialize`, or nothing at all
            return await self._endpoints.serve(request, caller)
        envelope = peek(given.body)
        if envelope.kind is Kind.NOTIFICATION and envelope.method != "notifications/initialized":
            return await self._tell(request, caller, key, given.body)
        try:
            served = self._legacy_share(request, caller, key, envelope, given)
        except GatewayError as error:
            return _refused(error, envelope)
        del envelope  # the link has the bytes; a long call shall not hold them too
        if served[0] is request and not self._is_here(key):  # it begins with what is known now
            await self._catalogues.settled_chapter(caller.server, "legacy")
        return await self._endpoints.serve(*served)

    def _legacy_share(
        self, request: web.Request, caller: Caller, key: str, envelope: Envelope, given: Given
    ) -> tuple[web.Request, Caller]:
        """Return what is to be served, of whom; that is the request itself, or a member's.

        Raises:
            GatewayError: it is nobody's.
        """
        method = envelope.method_name
        if envelope.kind is Kind.REQUEST and method not in OWN:
            routed = self._catalogues.toolkits.route(caller.server, "legacy", envelope, given.body)
            server, given.body = routed.server, routed.raw
        elif (named := unmarked(envelope)) is not None:
            server = member_named(self._registry, caller.server, named[0])
            given.body = with_id(given.body, named[1])
        else:
            check_own(envelope)
            return request, caller
        headers = self._of_session(key, caller, server)
        return _handed_on(request, caller, server, headers, given)

    def _of_session(self, key: str, caller: Caller, server: ServerDefinition) -> dict[str, str]:
        """Return the headers that make a request one of the session with a member.

        Raises:
            UnknownSession: see `Manager.member_key`.
        """
        member_key = self._manager.member_key(key, caller.principal, caller.server, server)
        return {SESSION_HEADER: member_key, MEMBER_HEADER: server.name}

    def _is_here(self, key: str) -> bool:
        return self._manager.directory.here(SessionKeys.fingerprint(key)) is not None

    async def _tell(
        self, request: web.Request, caller: Caller, key: str, body: bytes
    ) -> web.StreamResponse:
        """Let all members hear a notification: nobody else knows whose it is."""
        responses = await self._tell_members(request, caller, key, body)
        if responses and all(response.status >= 400 for response in responses):
            return responses[0]
        return web.Response(status=202, headers={SESSION_HEADER: key})

    async def _tell_members(
        self, request: web.Request, caller: Caller, key: str, body: bytes | None = None
    ) -> Sequence[web.StreamResponse]:
        """Hand a request on to all members that this client has a session with; boot none.

        Raises:
            UnknownSession: see `Manager.member_key`.
        """
        members = [
            (server, self._of_session(key, caller, server))
            for server in self._registry.members(caller.server)
        ]
        async with asyncio.TaskGroup() as tasks:
            telling = [
                tasks.create_task(
                    self._tell_member(request, caller, server, headers, body),
                    name=f"tell {server.name}",
                )
                for server, headers in members
            ]
        return [told for task in telling if (told := task.result()) is not None]

    async def _tell_member(
        self,
        request: web.Request,
        caller: Caller,
        server: ServerDefinition,
        headers: dict[str, str],
        body: bytes | None,
    ) -> web.StreamResponse | None:
        """Hand a request on whose answer is not for the client; None if there is no session."""
        try:
            if not await self._manager.alive(headers[SESSION_HEADER]):
                return None
            given = None if body is None else Given(body)
            theirs, them = _handed_on(request, caller, server, headers, given)
            theirs[UNTOLD] = True
            return await self._endpoints.serve(theirs, them)
        except GatewayError as error:  # of one member; the others hear it all the same
            return refusal(error)

    # Clients without

    async def _post_modern(
        self, request: web.Request, caller: Caller, given: Given
    ) -> web.StreamResponse:
        envelope = peek(given.body)
        try:
            served = self._modern_share(request, caller, envelope, given)
        except GatewayError as error:
            return _refused(error, envelope, "modern")
        del envelope
        return await self._endpoints.serve(*served)

    def _modern_share(
        self, request: web.Request, caller: Caller, envelope: Envelope, given: Given
    ) -> tuple[web.Request, Caller]:
        if envelope.kind is not Kind.REQUEST or envelope.method_name in OWN:
            return request, caller
        # What the client has said twice must agree before a name is another.
        modern.admit(request.headers.items(), envelope, (modern.REVISION,))
        routed = self._catalogues.toolkits.route(caller.server, "modern", envelope, given.body)
        given.body = routed.raw
        headers = {} if routed.name is None else {NAME_HEADER: header_text(routed.name)}
        return _handed_on(request, caller, routed.server, headers, given)


async def on_prepare(request: web.Request, response: web.StreamResponse) -> None:
    """Tell clients of their own session only; for `Application.on_response_prepare`."""
    key = request.get(TOOLKIT_KEY)
    if key is not None and SESSION_HEADER in response.headers:
        response.headers[SESSION_HEADER] = key


def caller_of(door: Door, request: web.Request) -> Caller:
    """Return who wants which toolkit; see `Door.caller`."""
    return door.caller(request, toolkit=request.match_info.get("toolkit", ALL))


def member_named(registry: Registry, toolkit: ServerDefinition, name: str) -> ServerDefinition:
    """Return the member that a mark names.

    Raises:
        BadMessage: there is none.
    """
    for server in registry.members(toolkit):
        if server.name == name:
            return server
    raise BadMessage(f"this toolkit has no server {name[:64]!r} (any more)")


def unmarked(envelope: Envelope) -> tuple[str, str | int] | None:
    """Return whose question a response answers, and that one's own id for it; None if nobody's."""
    if envelope.kind is not Kind.RESPONSE or not isinstance(envelope.id, str):
        return None
    member, mark, text = envelope.id.partition(sse.MARK)
    with contextlib.suppress(msgspec.DecodeError, UnicodeEncodeError):
        return (member, _ID.decode(text)) if mark else None
    return None


def check_own(envelope: Envelope) -> None:
    """Make sure that a toolkit can answer what it answers itself.

    Raises:
        BadParams: it has no such page.
    """
    if envelope.method in LISTS and _has_cursor(envelope.params):
        raise BadParams("the lists of a toolkit have one page: send no cursor")


def with_id(raw: bytes, request_id: str | int) -> bytes:
    """Return a message with another id; its other members keep their bytes."""
    message: dict[str, Any] = {**_OBJECT.decode(raw), "id": request_id}
    return msgspec.json.encode(message)


def header_text(text: str) -> str:
    """Return what `headers.decode` reads as this text."""
    plain = text.isascii() and text.isprintable() and text == text.strip(" ")
    if plain and not text.startswith("=?base64?"):
        return text
    return f"=?base64?{base64.b64encode(text.encode()).decode()}?="


def _key(request: web.Request) -> str:
    """Return the key of the toolkit's session; whatever answers the request will name that."""
    key = request.headers.get(SESSION_HEADER, "")
    if key:
        request[TOOLKIT_KEY] = key
    return key


def _handed_on(
    request: web.Request,
    caller: Caller,
    server: ServerDefinition,
    headers: dict[str, str],
    given: Given | None = None,
) -> tuple[web.Request, Caller]:
    """Return a request as a member's own endpoint would get it.

    Raises:
        BadMessage: its headers are not UTF-8, which HTTP does not demand.
    """
    lines = request.headers.copy()
    lines.update(headers)
    if given is not None:
        lines["Content-Length"] = str(len(given.body))
    handle = f"/handles/{caller.handle}" if caller.handle else ""
    try:
        theirs = request.clone(rel_url=f"/servers/{server.name}{handle}/mcp", headers=lines)
    except UnicodeEncodeError:
        raise BadMessage("the headers must be UTF-8") from None
    if given is not None:
        theirs[GIVEN] = given
    return theirs, Caller(caller.principal, server, caller.handle)


def _has_cursor(params: Raw | UnsetType) -> bool:
    if params is UNSET:
        return False
    try:
        return _PAGED.decode(params).cursor is not UNSET
    except (msgspec.DecodeError, RecursionError):
        return False


def _refused(error: GatewayError, envelope: Envelope, era: Era = "legacy") -> web.Response:
    """Return an error with the status that its era has for it."""
    request_id = envelope.id if isinstance(envelope.id, str | int) else None
    response = refusal(error, request_id)
    if isinstance(error, _IN_THE_BODY):
        response.set_status(200 if era == "legacy" else modern.http_status(error.code))
    return response


def _answer_gone(key: str, last_event_id: str) -> web.Response:
    """Return the rest of a stream whose session has ended: nobody has it."""
    _, label = sse.position(last_event_id)
    try:
        request_id = id_of(label)
    except ValueError as error:
        raise BadMessage(f"{LAST_EVENT_HEADER}: {error}") from error
    gone = sse.event(error_response(request_id, failures.gone()))
    return web.Response(body=gone, headers={**STREAM_HEADERS, SESSION_HEADER: key})
