"""How these endpoints answer: JSON, and errors turned into it."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from gateway.errors import GatewayError
from gateway.store.base import StoreAway
from gateway.v1.problems import Problem, problem_of

JSON = "application/json"

HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
"""Of every answer."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

Admit = Callable[[web.Request], str]
"""Returns the principal of a request, or raises a `GatewayError`."""


def answered(handler: Handler) -> Handler:
    """Turn errors into answers: the boundary between exceptions and clients."""

    async def boundary(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except Problem as problem:
            return refusal(problem)
        except (GatewayError, StoreAway) as error:
            return refusal(problem_of(error))

    return boundary


def answer(
    document: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return a document as JSON."""
    return web.Response(
        body=msgspec.json.encode(document),
        status=status,
        content_type=JSON,
        headers={**HEADERS, **(headers or {})},
    )


def refusal(problem: Problem) -> web.Response:
    """Return a problem as a response."""
    headers = {}
    if problem.retry_after_s is not None:
        headers["Retry-After"] = str(problem.retry_after_s)
    if problem.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="v1"'
    return answer(problem.document, problem.status, headers)
