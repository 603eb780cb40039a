"""A request whose session lives at another gateway process is carried there, and its answer back.

Handlers need not know: they say `Elsewhere` or `Moved`, and are run again if the session has moved
meanwhile. All that shares the one deadline of the request. Nothing is done twice: a process that
recognises a request it has had before is what makes asking again safe, and where there is none the
client is told to decide.
"""

import asyncio
import contextlib
import random
from collections import defaultdict
from collections.abc import Iterator

from aiohttp import web

from gateway.edge import intake
from gateway.edge.answering import BEGUN, MEMBER_HEADER, Begun, refusal, write
from gateway.edge.door import HANDLE_HEADER, G, Guest, Handler, is_modern
from gateway.edge.loopback import RELAY_HEADER
from gateway.edge.passing import MOVED, Passage
from gateway.eras.headers import REVISION_HEADER
from gateway.eras.versions import ASSUMED, resumable
from gateway.errors import (
    BadMessage,
    Busy,
    Elsewhere,
    GatewayError,
    Moved,
    Restarting,
    StoreUnavailable,
)
from gateway.exchange.carrying import Asked, PeerGone, Superseded
from gateway.exchange.exchange import Answer, Exchange
from gateway.jsonrpc import Kind, peek
from gateway.patience import FIRST_BYTE_S, begin, patience
from gateway.store.base import StoreAway

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 0.2
"""Before the session is looked for again; with jitter, as all its clients look."""

MARGIN_S = 1.0
"""By how much the other process's patience ends before ours, so that its answer still arrives."""

KEPT_BYTES = 64 * 1024 * 1024
"""Bodies that are kept to be sent again, of all requests whose answer has not begun."""

LARGE_BODIES = 2
"""Large bodies of a principal that are read at the same time to be carried."""

CARRIED = frozenset(
    {
        "accept",
        "content-type",
        "content-encoding",
        "last-event-id",
        HANDLE_HEADER.lower(),
        MEMBER_HEADER.lower(),
    }
)
"""Request headers that matter to an endpoint, beside all of MCP's own. No other is carried: none
that says who the client is or where it came from, and none of the connection."""

MCP = "mcp-"

UNTOLD: web.RequestKey[bool] = web.RequestKey("untold")
"""Set on requests whose answer is not for their client, as they are one of several made of its one:
a response says how each went, but nothing of it is written."""


class Keeping:
    """Keeps the body of one request until its answer begins; see `intake.Keeping`.

    Attributes:
        begun: the answer has begun.
        body: what is kept; None if nothing is.
    """

    def __init__(self, relaying: "Relaying") -> None:
        self.begun = False
        self.body: bytes | None = None
        self._relaying = relaying
        self._read = False

    def again(self) -> bytes | None:
        """Return a body that was read before; None if it was not.

        Raises:
            Busy: it was not kept, as too many were.
        """
        if self._read and self.body is None:
            raise Busy("too many large requests wait for other gateway processes; repeat later")
        return self.body

    def keep(self, body: bytes) -> None:
        """Keep a body that was read, if there is room."""
        self._read = True
        if self._relaying.kept_bytes + len(body) <= KEPT_BYTES:
            self._relaying.kept_bytes += len(body)
            self.body = body

    def drop(self) -> None:
        """Keep it no longer."""
        if self.body is not None:
            self._relaying.kept_bytes -= len(self.body)
            self.body = None


class Relaying:
    """Wraps handlers whose requests are about a session.

    Args:
        exchange: the way to other processes; without it there are none.
        message_bytes: largest body.

    Attributes:
        kept_bytes: of all bodies that are kept.
    """

    def __init__(self, exchange: Exchange | None, *, message_bytes: int) -> None:
        self.kept_bytes = 0
        self._message_bytes = message_bytes
        self._large: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(LARGE_BODIES)
        )
        self._exchange = exchange
        self._leaving = self._gone = False
        self._under_way = 0
        self._over = asyncio.Event()
        self._resumable: set[Answer] = set()

    async def drain(self, limit_s: float) -> None:
        """Let go of what is carried, as this process leaves; it takes `limit_s` seconds at most.

        Streams whose clients come back for the rest end at once. Others get that time; then they
        end, and who has heard nothing yet is told to ask again.
        """
        if self._exchange is None:
            return
        self._leaving = True
        for answer in self._resumable:
            answer.leave()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self._under_way:
                    self._over.clear()
                    await self._over.wait()
        self._gone = True
        self._exchange.leave()

    async def on_prepare(self, request: web.Request, _response: web.StreamResponse) -> None:
        """Note that an answer begins; for `Application.on_response_prepare`."""
        keeping = request.get(intake.KEEPING)
        if isinstance(keeping, Keeping):
            keeping.begun = True
            if BEGUN not in request or len(keeping.body or b"") > intake.SMALL_BYTES:
                keeping.drop()

    async def serve(
        self, handler: Handler[G], request: web.Request, caller: G
    ) -> web.StreamResponse:
        """Run a handler, here or where the session is.

        Raises:
            GatewayError: what the handler raises, but `Elsewhere` and `Moved` only where nothing
                can be done about it.
        """
        if self._exchange is None:
            return await handler(request, caller)
        if RELAY_HEADER in request.headers:  # the door has found it genuine
            return await _here_only(handler, request, caller)
        with self._keeping(request) as keeping:
            self._under_way += 1
            try:
                response = await self._wherever(keeping, handler, request, caller)
            except GatewayError as error:
                if keeping.begun and BEGUN not in request:
                    raise
                response = refusal(error, _id_of(keeping.body))
            finally:
                self._under_way -= 1
                self._over.set()
            return await _where_it_began(request, response)

    @contextlib.contextmanager
    def _keeping(self, request: web.Request) -> Iterator[Keeping]:
        keeping = request[intake.KEEPING] = Keeping(self)
        try:
            yield keeping
        finally:
            keeping.drop()

    async def _wherever(
        self, keeping: Keeping, handler: Handler[G], request: web.Request, caller: G
    ) -> web.StreamResponse:
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return await handler(request, caller)
            except Moved:  # no agent has had it, or its session recognises it
                if keeping.begun and not _goes_on(keeping, request):
                    raise
                if keeping.begun:
                    begin()  # its first byte is out
            except Elsewhere as where:
                answer = await self._carry(keeping, where, request, caller)
                if answer is not None:
                    return answer
            if self._gone or patience(FIRST_BYTE_S) <= pause_s:
                raise Restarting("the session is moving between gateway processes; send it again")
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _carry(
        self, keeping: Keeping, where: Elsewhere, request: web.Request, caller: Guest
    ) -> web.StreamResponse | None:
        """Let the process that has the session answer; None if it must be looked for again."""
        exchange = self._exchange
        if exchange is None:
            return None
        body = await self._read(keeping, request, caller)
        patience_s = patience(FIRST_BYTE_S) - MARGIN_S
        if patience_s <= 0:
            return None
        asked = _asked(request, caller, patience_s)
        # What must not be asked twice is given up by the process that has it, and by nobody's news;
        # and that alone knows whether a stream has told something.
        session = "" if is_modern(request) or request.method == "GET" else where.session
        try:
            async with exchange.ask(where.gateway, session, asked, body, where.fence) as answer:
                del body
                if answer.status == Elsewhere.status:
                    return None  # that process did nothing
                return await self._pass_on(keeping, request, answer)
        except (PeerGone, Superseded) as error:
            if is_modern(request):
                raise Restarting(
                    "the gateway process that had this request is gone; it may have been done"
                ) from error
            return None
        except StoreAway as error:
            raise StoreUnavailable(
                "gateway processes cannot reach one another; send the request again"
            ) from error

    async def _pass_on(
        self, keeping: Keeping, request: web.Request, answer: Answer
    ) -> web.StreamResponse | None:
        """Write an answer to the client as it comes; None if it must be asked for again.

        Raises:
            Restarting: it broke off, and cannot be asked for again.
        """
        if UNTOLD in request:
            async for _ in answer.pieces():
                pass
            answer.had = answer.complete
            return web.Response(status=answer.status)
        passage = Passage(request, answer, comes_back=_comes_back(request))
        passage.leaving = self._may_leave
        try:
            response = await passage.through()
        finally:
            self._resumable.discard(answer)
        if response is None and keeping.begun:
            if not _goes_on(keeping, request) or (is_modern(request) and not answer.complete):
                raise Restarting("the session has left its gateway process; send the request again")
            begin()  # its first byte is out
        return response

    def _may_leave(self, answer: Answer) -> None:
        """The client of a stream has an event's id now, and could come back for the rest."""
        self._resumable.add(answer)
        if self._leaving:
            answer.leave()

    async def _read(self, keeping: Keeping, request: web.Request, caller: Guest) -> bytes:
        """Return the body; few large ones of a principal are read at the same time."""
        if request.method != "POST" or not request.body_exists:
            return b""
        large = intake.is_large(request) and keeping.body is None
        async with self._large[caller.principal] if large else contextlib.nullcontext():
            await intake.read_body(request, self._message_bytes)
        return keeping.again() or b""  # what could not be kept is not carried either


async def _here_only(handler: Handler[G], request: web.Request, caller: G) -> web.StreamResponse:
    """Serve a carried request. It is never carried on: whoever asked looks again."""
    try:
        return await handler(request, caller)
    except Moved as error:
        begun: Begun | None = request.get(BEGUN)
        if begun is None:
            raise Elsewhere(error.message, "", "") from error
        with contextlib.suppress(ConnectionResetError, TimeoutError):
            await write(begun.response, MOVED)
            await begun.response.write_eof()
        return begun.response


def _goes_on(keeping: Keeping, request: web.Request) -> bool:
    """Whether what comes of a request served again can be written to the stream that has begun."""
    if request.method == "GET":
        return True
    begun: Begun | None = request.get(BEGUN)
    return keeping.body is not None and begun is not None and not begun.numbered


async def _where_it_began(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """Write a response that is not written yet to the stream that has begun, if one has."""
    begun: Begun | None = request.get(BEGUN)
    if begun is None or response.prepared or not isinstance(response, web.Response):
        return response
    body = response.body
    with contextlib.suppress(ConnectionResetError, TimeoutError):
        return await begun.last(body if isinstance(body, bytes) else b"")
    return begun.response


def _comes_back(request: web.Request) -> bool:
    """True if nobody misses anything when a stream ends early."""
    revision = request.headers.get(REVISION_HEADER, ASSUMED)
    return request.method == "GET" or resumable(revision)


def _asked(request: web.Request, caller: Guest, patience_s: float) -> Asked:
    """Return what is carried of a request beside its body.

    Raises:
        BadMessage: it is not UTF-8, which HTTP does not demand.
    """
    target = request.rel_url.raw_path_qs
    headers = tuple(
        (str(name), value)  # a plain one: the names of aiohttp are their own kind
        for name, value in request.headers.items()
        if name.lower() in CARRIED or name.lower().startswith(MCP)
    )
    try:
        "".join((target, *(value for _, value in headers))).encode()
    except UnicodeEncodeError:
        raise BadMessage("the path and the headers must be UTF-8") from None
    return Asked(request.method, target, headers, caller.principal, patience_s)


def _id_of(body: bytes | None) -> str | int | None:
    """Return the id that a refusal repeats; None if there is none."""
    if body is None:
        return None
    try:
        envelope = peek(body)
    except GatewayError:
        return None
    if envelope.kind is Kind.REQUEST and isinstance(envelope.id, str | int):
        return envelope.id
    return None
