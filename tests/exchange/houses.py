"""Two gateway processes in one, with real HTTP in front and between: what carries a request.

Sessions are names; which process has one is written on a board that both look at. What a request
does says its header `Mcp-Do`.
"""

import asyncio
import contextlib
import io
import json
import socket
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Self, cast

import aiohttp
from aiohttp import web

from gateway import patience
from gateway.edge import intake
from gateway.edge.answering import STREAM_HEADERS, cut, refusal, write, write_pieces
from gateway.edge.door import Caller, Handler
from gateway.edge.loopback import Loopback
from gateway.edge.relaying import Relaying
from gateway.errors import BadKey, Elsewhere, GatewayError, Moved
from gateway.exchange.exchange import Exchange, Note
from gateway.store.base import Store, Taken

if TYPE_CHECKING:
    from gateway.registry.servers import ServerDefinition

WAIT_S = 10.0
MESSAGE_BYTES = 16 * 1024 * 1024
FLOOD_BYTES = 100_000
SOCKET_BYTES = 64 * 1024


def small_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """Return a socket that buffers little, so that whoever does not read is noticed soon."""
    made = socket.socket(*address[:3])
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        made.setsockopt(socket.SOL_SOCKET, option, SOCKET_BYTES)
    return made


class House:
    """One process."""

    def __init__(self, store: Store, board: dict[str, str]) -> None:
        self.store = store
        self.board = board
        self.news = asyncio.Condition()
        self.did: list[str] = []
        self.cancelled: list[str] = []
        self.flooded = 0
        self.gate = asyncio.Event()
        self.moves = 0  # so many times a session leaves while its request waits
        self.patience: list[float] = []
        self.seen: list[dict[str, str]] = []
        self.targets: list[str] = []
        self.loopback = Loopback()
        self.exchange = Exchange(store, self.loopback.perform, self.hear)
        self.relaying = Relaying(self.exchange, message_bytes=MESSAGE_BYTES)
        self.url = ""
        self._stack = contextlib.AsyncExitStack()

    def hear(self, _news: Taken | Note) -> None:
        """Nobody here wants to know."""

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[self._errors])
        app.add_routes([web.route("*", "/mcp", self._enter)])
        app.on_response_prepare.append(self.relaying.on_prepare)
        runner = web.AppRunner(
            app, handler_cancellation=True, auto_decompress=False, shutdown_timeout=0.1
        )
        await self._stack.enter_async_context(self.store)
        await self._stack.enter_async_context(self.exchange)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        await self._stack.enter_async_context(self.loopback.serving(runner))
        listening = small_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 0)))
        listening.bind(("127.0.0.1", 0))
        await web.SockSite(runner, listening).start()
        self.url = f"http://127.0.0.1:{runner.addresses[-1][1]}/mcp"
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._stack.aclose()

    @web.middleware
    async def _errors(
        self, request: web.Request, handler: Callable[[web.Request], object]
    ) -> web.StreamResponse:
        patience.begin()
        try:
            return await cast("asyncio.Future[web.StreamResponse]", handler(request))
        except GatewayError as error:
            return refusal(error)

    async def _enter(self, request: web.Request) -> web.StreamResponse:
        carried = self.loopback.carried(request.headers)
        if carried is None:
            principal = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if not principal:
                raise BadKey("no key")
        else:
            principal, patience_s = carried
            self.patience.append(patience_s)
            patience.begin(patience_s)
        caller = Caller(principal, cast("ServerDefinition", None))
        handler: Handler[Caller] = self.handle
        return await self.relaying.serve(handler, request, caller)

    # What a session does

    async def handle(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        does = request.headers.get("Mcp-Do", "echo")
        body = b""
        if does.startswith("read-first"):
            body = await intake.read_body(request, MESSAGE_BYTES)
        holder = self.board[request.headers["Mcp-Session-Id"]]
        if holder != self.store.gateway:
            raise Elsewhere("it is elsewhere", holder, request.headers["Mcp-Session-Id"])
        if request.method == "POST" and not body:
            body = await intake.read_body(request, MESSAGE_BYTES)
        self.seen.append(dict(request.headers))
        self.targets.append(request.raw_path)
        await self._tell(lambda: self.did.append(does))
        if self.moves:
            self.moves -= 1
            raise Moved("it has left")
        try:
            return await self._do(does, request, caller, body)
        except asyncio.CancelledError:
            await self._tell(lambda: self.cancelled.append(does))
            raise

    async def _do(
        self, does: str, request: web.Request, caller: Caller, body: bytes
    ) -> web.StreamResponse:
        match does:
            case "who":
                return web.json_response({"principal": caller.principal})
            case "never":
                await asyncio.Event().wait()
            case "stream" | "flood" | "half" | "stream-cut" | "half-cut" | "stream-late":
                return await self._stream(does, request)
            case "refuse":
                raise Moved("it has left") if self.moves else BadKey("not you")
            case "empty":
                return web.Response(status=202, headers={"Mcp-Session-Id": "s1"})
            case "nothing":
                return web.Response(status=204)
            case _:
                pass
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.content_length = len(body)
        await response.prepare(request)
        await write_pieces(response, body)
        await response.write_eof()
        return response

    async def _stream(self, does: str, request: web.Request) -> web.StreamResponse:
        headers = dict(STREAM_HEADERS) | {"Mcp-Session-Id": "s1", "X-Private": "no"}
        response = web.StreamResponse(headers=headers)
        if does.startswith("half"):
            response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if does == "stream-late":
            await self.gate.wait()
        await write(response, b"id: 1.i1\ndata: first\n\n")
        if does.endswith("cut"):
            await self.gate.wait()
            cut(request)
            return response
        while does == "flood":
            await write(response, bytes(FLOOD_BYTES))
            self.flooded += FLOOD_BYTES
        await self.gate.wait()
        await write(response, b"data: second\n\n")
        await response.write_eof()
        return response

    async def _tell(self, change: Callable[[], object]) -> None:
        change()
        async with self.news:
            self.news.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a request here has done something."""
        async with asyncio.timeout(WAIT_S), self.news:
            await self.news.wait_for(condition)


class Street:
    """Both houses, a client, and the board that says who has which session."""

    def __init__(self, a: House, b: House, board: dict[str, str]) -> None:
        self.a, self.b, self.board = a, b, board
        self.client = aiohttp.ClientSession(
            headers={"Authorization": "Bearer alice", "Mcp-Session-Id": "s1"},
            timeout=aiohttp.ClientTimeout(total=WAIT_S),
            connector=aiohttp.TCPConnector(limit=0, force_close=True, socket_factory=small_socket),
        )

    def post(
        self,
        does: str,
        body: object = None,
        house: House | None = None,
        revision: str = "2025-11-25",
        **headers: str,
    ) -> "aiohttp.client._RequestContextManager":
        """Ask house `b`, which has no session unless a test gives it one."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post(
            (house or self.b).url,
            data=io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode()),
            headers={
                "Mcp-Do": does,
                "Content-Type": "application/json",
                "MCP-Protocol-Version": revision,
            }
            | named,
        )


@contextlib.asynccontextmanager
async def opened(store_a: Store, store_b: Store) -> AsyncIterator[Street]:
    board = {"s1": store_a.gateway, "s2": store_a.gateway}
    async with House(store_a, board) as a, House(store_b, board) as b:
        street = Street(a, b, board)
        async with street.client:
            yield street
