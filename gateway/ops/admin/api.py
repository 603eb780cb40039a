"""Routes of the operators' API: who asks is let in, what is asked is read, then done or refused."""

import functools
from collections.abc import Awaitable, Callable
from itertools import groupby

import msgspec
from aiohttp import web

import dyno_agent
from gateway.errors import Elsewhere, GatewayError, Moved, StoreUnavailable
from gateway.ops.admin import asking, openapi
from gateway.ops.admin.desk import Call, Desk, Operator
from gateway.ops.admin.guard import Guard
from gateway.ops.admin.problems import JSON, Problem, answer
from gateway.ops.admin.shapes import Error
from gateway.ops.admin.signin import SigningIn
from gateway.ops.admin.table import BASE, TABLE, Operation
from gateway.store.base import StoreAway

SUBJECT: web.RequestKey[str] = web.RequestKey("subject")
"""What a request is about, for the log."""

TROUBLE = (Problem, GatewayError, StoreAway)
"""What an operator is told of."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

GuestHandler = Callable[[web.Request, Operator], Awaitable[web.StreamResponse]]

Serve = Callable[[GuestHandler, web.Request, Operator], Awaitable[web.StreamResponse]]
"""Runs a handler, here or at another process: see `Relaying.serve`."""


async def here(
    handler: GuestHandler, request: web.Request, operator: Operator
) -> web.StreamResponse:
    """Run a handler; there is no other process."""
    return await handler(request, operator)


class Admin:
    """The operators' API.

    Args:
        guard: lets operators in.
        desk: what they see and do.
        serve: for what another process may have to do.
    """

    def __init__(self, guard: Guard, desk: Desk, serve: Serve = here) -> None:
        self._guard = guard
        self._desk = desk
        self._serve = serve

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of this room."""
        signing = SigningIn(self._guard)
        document = msgspec.json.encode(openapi.document(TABLE, dyno_agent.__version__))

        async def described(_request: web.Request) -> web.Response:
            return web.Response(body=document, content_type=JSON)

        routes = [
            web.post("/console/login", _answered(signing.login)),
            web.post("/console/logout", _answered(signing.logout)),
            web.get("/console/me", _answered(signing.me), allow_head=False),
            *self._at(openapi.PATH, {"GET": self.guarded(described)}),
        ]
        for path, operations in groupby(TABLE, lambda operation: operation.path):
            handlers = {each.method: _answered(self._run(each)) for each in operations}
            routes += self._at(path, handlers)
        unknown = self.guarded(_unknown)
        routes += [web.route("*", path, unknown) for path in (BASE, BASE + "/{rest:.*}")]
        return routes

    def guarded(self, handler: Handler) -> Handler:
        """Let operators through only."""

        async def guard(request: web.Request) -> web.StreamResponse:
            self._guard.admit(request)
            return await handler(request)

        return _answered(guard)

    def _at(self, path: str, handlers: dict[str, Handler]) -> list[web.RouteDef]:
        """Return the routes of a path, and one that refuses all other methods."""
        allowed = {"Allow": ", ".join(handlers)}

        async def wrong(request: web.Request) -> web.StreamResponse:
            raise Problem(405, f"{request.method[:16]!a} is not for this path", allowed)

        routes = [web.route(method, BASE + path, handler) for method, handler in handlers.items()]
        return [*routes, web.route("*", BASE + path, self.guarded(wrong))]

    def _run(self, operation: Operation) -> Handler:
        perform = functools.partial(self._perform, operation)

        async def run(request: web.Request) -> web.StreamResponse:
            operator = self._guard.admit(request, relayed=operation.relayed)
            if operation.relayed:
                response = _plain(await self._serve(perform, request, operator))
            else:
                response = await perform(request, operator)
            if operation.action and response.status == operation.status:
                self._guard.emit(operation.action, request[SUBJECT], operator.source)
            return response

        return run

    async def _perform(
        self, operation: Operation, request: web.Request, _operator: Operator
    ) -> web.StreamResponse:
        """Do it, here.

        Raises:
            Elsewhere, Moved: another process has to.
        """
        try:
            call = await _read(operation, request)
            request[SUBJECT] = call.subject
            done = await operation.handler(self._desk, call)
        except (Elsewhere, Moved):
            raise
        except TROUBLE as error:
            return _refusal(error)
        if isinstance(done, web.StreamResponse):
            return done
        return answer(done, operation.status)


async def _read(operation: Operation, request: web.Request) -> Call:
    query, body = asking.query(request, operation.query), None
    if operation.body is None:
        await asking.no_body(request)
    else:
        body = await asking.body(request, operation.body)
    return Call(request, query, body)


async def _unknown(_request: web.Request) -> web.StreamResponse:
    raise Problem(404, f"there is no such path: {BASE}{openapi.PATH} has all there are")


def _answered(handler: Handler) -> Handler:
    """Turn errors into answers: the boundary between exceptions and operators."""

    async def boundary(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except TROUBLE as error:
            return _refusal(error)

    return boundary


def _refusal(error: Problem | GatewayError | StoreAway) -> web.Response:
    match error:
        case Problem():
            return error.response()
        case GatewayError():
            wait = error.retry_after_s
            headers = {} if wait is None else {"Retry-After": str(wait)}
            return answer(Error(error.message), error.status, headers)
        case StoreAway():
            message = "what the gateway processes share cannot be reached just now; ask again"
            return answer(Error(message), StoreUnavailable.status, {"Retry-After": "2"})


class _RpcError(msgspec.Struct):
    message: str


class _Rpc(msgspec.Struct):
    jsonrpc: str
    error: _RpcError


def _plain(response: web.StreamResponse) -> web.StreamResponse:
    """Return what an operator is told where `Relaying` has refused as it does to MCP clients."""
    if response.status < 400 or response.prepared or not isinstance(response, web.Response):
        return response
    body = response.body
    try:
        told = msgspec.json.decode(body if isinstance(body, bytes) else b"", type=_Rpc)
    except msgspec.DecodeError:
        return response
    wait = response.headers.get("Retry-After")
    headers = {} if wait is None else {"Retry-After": wait}
    return answer(Error(told.error.message), response.status, headers)
