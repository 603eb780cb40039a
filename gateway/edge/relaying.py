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
from collections.abc import Awaitable, Callable, Iterator

from aiohttp import web

from gateway.edge import intake
from gateway.edge.answering import WRITE_S, cut, refusal, write
from gateway.edge.door import HANDLE_HEADER, Caller, is_modern
from gateway.edge.loopback import RELAY_HEADER
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
from gateway.patience import FIRST_BYTE_S, patience
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
    {"accept", "content-type", "content-encoding", "last-event-id", HANDLE_HEADER.lower()}
)
"""Request headers that matter to an endpoint, beside all of MCP's own. No other is carried: none
that says who the client is or where it came from, and none of the connection."""

MCP = "mcp-"

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

Handler = Callable[[web.Request, Caller], Awaitable[web.StreamResponse]]


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
    """Wraps the handlers of the MCP endpoints.

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
            keeping.drop()

    async def serve(
        self, handler: Handler, request: web.Request, caller: Caller
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
                return await self._wherever(keeping, handler, request, caller)
            except GatewayError as error:
                if keeping.begun:
                    raise
                return refusal(error, _id_of(keeping.body))
            finally:
                self._under_way -= 1
                self._over.set()

    @contextlib.contextmanager
    def _keeping(self, request: web.Request) -> Iterator[Keeping]:
        keeping = request[intake.KEEPING] = Keeping(self)
        try:
            yield keeping
        finally:
            keeping.drop()

    async def _wherever(
        self, keeping: Keeping, handler: Handler, request: web.Request, caller: Caller
    ) -> web.StreamResponse:
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return await handler(request, caller)
            except Moved:  # no agent has had it, or its session recognises it
                if keeping.begun:
                    raise
            except Elsewhere as where:
                answer = await self._carry(keeping, where, request, caller)
                if answer is not None:
                    return answer
            if self._gone or patience(FIRST_BYTE_S) <= pause_s:
                raise Restarting("the session is moving between gateway processes; send it again")
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _carry(
        self, keeping: Keeping, where: Elsewhere, request: web.Request, caller: Caller
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
        # What must not be asked twice is given up by the process that has it, and by nobody's news.
        session = "" if is_modern(request) else where.session
        try:
            async with exchange.ask(where.gateway, session, asked, body, where.fence) as answer:
                del body
                if answer.status == Elsewhere.status:
                    return None  # that process did nothing
                return await self._write(request, answer)
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

    async def _write(self, request: web.Request, answer: Answer) -> web.StreamResponse:
        """Write an answer to the client as it comes.

        If it breaks off, a stream ends as if it had ended well, since its client comes back for the
        rest; of anything else the connection is cut, so that nobody takes a part for the whole.
        """
        response = _begun(answer)
        streams = response.headers.get("Content-Type", "").startswith(intake.SSE)
        comes_back = streams and _comes_back(request)
        try:
            await response.prepare(request)
            try:
                async for piece in answer.pieces():
                    await write(response, piece)
                    if comes_back:  # for it has an event's id now
                        self._resumable.add(answer)
                    if comes_back and self._leaving:
                        answer.leave()
            except BROKEN:
                if not streams:
                    raise
            async with asyncio.timeout(WRITE_S):
                await response.write_eof()
        except ConnectionResetError:
            return response  # the client hung up
        except (TimeoutError, *BROKEN):
            cut(request)
        finally:
            self._resumable.discard(answer)
        return response

    async def _read(self, keeping: Keeping, request: web.Request, caller: Caller) -> bytes:
        """Return the body; few large ones of a principal are read at the same time."""
        if request.method != "POST":
            return b""
        large = intake.is_large(request) and keeping.body is None
        async with self._large[caller.principal] if large else contextlib.nullcontext():
            await intake.read_body(request, self._message_bytes)
        return keeping.again() or b""  # what could not be kept is not carried either


async def _here_only(handler: Handler, request: web.Request, caller: Caller) -> web.StreamResponse:
    """Serve a carried request. It is never carried on: whoever asked looks again."""
    try:
        return await handler(request, caller)
    except Moved as error:
        raise Elsewhere(error.message, "", "") from error


def _begun(answer: Answer) -> web.StreamResponse:
    """Return the response that an answer becomes."""
    response = web.StreamResponse(status=answer.status)
    for name, value in answer.headers:
        if name.lower() in KEPT:
            response.headers.add(name, value)
        elif name.lower() == "content-length":
            response.content_length = int(value)
    return response


def _comes_back(request: web.Request) -> bool:
    """True if nobody misses anything when a stream ends early."""
    revision = request.headers.get(REVISION_HEADER, ASSUMED)
    return request.method == "GET" or resumable(revision)


def _asked(request: web.Request, caller: Caller, patience_s: float) -> Asked:
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
