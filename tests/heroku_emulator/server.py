"""The Platform API over HTTP: who may ask, how often, what goes wrong, and what is answered.

Each request passes the same steps: key, version, quota, fault, schema, handler, schema, fault.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
import re
import socket
import struct
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from aiohttp import web

from tests.heroku_emulator import contract
from tests.heroku_emulator.errors import ApiError, invalid, of_status
from tests.heroku_emulator.limits import Bucket
from tests.heroku_emulator.logs import SESSION_S, LogSession
from tests.heroku_emulator.model import Moment, new_id
from tests.heroku_emulator.operations import OPERATIONS, Call, Operation
from tests.heroku_emulator.pages import page

if TYPE_CHECKING:
    from tests.heroku_emulator.faults import Fault, Faults
    from tests.heroku_emulator.platform import Platform

REMEMBERED = 100_000
"""Requests that `requests` keeps."""

POLL_S = 0.02
"""How often a held request is looked at: nobody tells that its client has gone."""

_VERSION = re.compile(r"application/vnd\.heroku\+json;\s*version=3(\.[\w-]+)?")

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that came in, and what became of it.

    Attributes:
        body: as it was sent, decoded; None without one.
        status: None if it was not answered.
        fault: the word of the fault that it met.
    """

    operation: str
    method: str
    path: str
    body: Any
    status: int | None
    fault: str | None
    at: Moment


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that went over the wire and breaks the published schema."""

    side: Literal["request", "response"]
    operation: str
    reason: str


class Server:
    """The routes of the API and of the log streams.

    Attributes:
        requests: what came in, oldest first.
        violations: what broke the schema; a client that is right leaves it empty.
        followed: log streams that were opened.
    """

    def __init__(self, platform: Platform, faults: Faults, api_key: str) -> None:
        self._platform = platform
        self._faults = faults
        self._api_key = api_key
        options, now = platform.options, Moment.now().monotonic
        size, refill = options.rate_limit, options.rate_refill
        self._bucket = Bucket(size=size, refill=refill, level=size, seen=now)
        self._sessions: dict[str, LogSession] = {}
        self.requests: deque[Seen] = deque(maxlen=REMEMBERED)
        self.violations: list[Violation] = []
        self.origin = ""
        self.followed = 0

    def routes(self, application: web.Application) -> None:
        """Enter all routes."""
        links = contract.links()
        for operation in OPERATIONS:
            link = links[operation.resource, operation.title]
            handler = partial(self._answer, operation, link)
            application.router.add_route(link.method, link.path, handler)
        application.router.add_get("/_logplex/sessions/{session}", self._stream_log)
        application.router.add_route("*", "/{rest:.*}", self._unknown)

    @property
    def remaining(self) -> int:
        """What is left of the account's request quota."""
        return self._bucket.remaining(Moment.now().monotonic)

    def set_remaining(self, requests: float) -> None:
        """Set what is left of the account's request quota."""
        self._bucket.remaining(Moment.now().monotonic)
        self._bucket.level = requests

    # -- the steps of a request ----------------------------------------------------------------

    async def _answer(
        self, operation: Operation, link: contract.Link, request: web.Request
    ) -> web.StreamResponse:
        raw, fault, body = await request.read(), None, None
        response: web.Response | None
        try:
            self._let_in(operation, request)
            fault = self._faults.next(operation.name)
            if fault is not None and fault.act is not None and not fault.late:
                response = await self._go_wrong(fault, request)
            else:
                body = self._body(operation, link, raw)
                response = self._do(operation, link, request, body, fault)
                if fault is not None and fault.late:
                    response = await self._go_wrong(fault, request)
        except ApiError as error:
            response = web.json_response(error.body, status=error.status)
        self.requests.append(
            Seen(
                operation.name,
                request.method,
                request.path,
                body,
                None if response is None else response.status,
                None if fault is None else fault.word,
                Moment.now(),
            )
        )
        return self._with_headers(response or web.Response(status=504))

    def _let_in(self, operation: Operation, request: web.Request) -> None:
        if not self._has_key(request.headers.get("Authorization", "")):
            raise of_status(401)
        if not _VERSION.match(request.headers.get("Accept", "")):
            raise ApiError(
                400,
                "bad_version",
                "Please specify a version along with Heroku's API MIME type. For example, "
                "`Accept: application/vnd.heroku+json; version=3`.",
            )
        if operation.metered and not self._bucket.take(Moment.now().monotonic):
            raise of_status(429)

    def _has_key(self, authorization: str) -> bool:
        scheme, _, credentials = authorization.partition(" ")
        if scheme.lower() == "basic":
            try:
                decoded = base64.b64decode(credentials, validate=True).decode()
            except (binascii.Error, UnicodeDecodeError):
                return False
            credentials = decoded.partition(":")[2]
        elif scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(credentials.encode(), self._api_key.encode())

    def _body(self, operation: Operation, link: contract.Link, raw: bytes) -> Any:
        try:
            body = json.loads(raw) if raw.strip() else ({} if link.has_body else None)
        except ValueError:
            message = "Unable to parse the JSON request. Please check that it is valid JSON."
            raise ApiError(400, "bad_request", message) from None
        if reason := link.fault_of_request(body):
            self.violations.append(Violation("request", operation.name, reason))
            raise invalid(reason)
        return body

    def _do(
        self,
        operation: Operation,
        link: contract.Link,
        request: web.Request,
        body: Any,
        fault: Fault | None,
    ) -> web.Response:
        call = Call(
            platform=self._platform,
            places=request.match_info,
            body=body,
            origin=self.origin,
            remaining=self.remaining,
            sessions=self._sessions,
            fault=fault,
        )
        answer, status = operation.do(call), operation.status
        if isinstance(answer, list):
            part = page(answer, request.headers.get("Range"), self._platform.options.page_size)
            answer, status = part.items, 200 if part.complete else 206
            call.headers.update(part.headers)
        if reason := link.fault_of_response(answer):
            self.violations.append(Violation("response", operation.name, reason))
            raise ApiError(500, "internal_server_error", f"breaks the schema: {reason}")
        return web.json_response(answer, status=status, headers=call.headers)

    def _with_headers(self, response: web.Response) -> web.Response:
        response.headers["Request-Id"] = new_id()
        response.headers["RateLimit-Remaining"] = str(self.remaining)
        response.headers["RateLimit-Multiplier"] = "1"
        return response

    async def _unknown(self, request: web.Request) -> web.StreamResponse:
        where = f"{request.method} {request.path}"
        self.requests.append(
            Seen("unknown", request.method, request.path, None, 404, None, Moment.now())
        )
        message = f"The requested API endpoint was not found: {where}"
        body = {"id": "not_found", "message": message}
        return self._with_headers(web.json_response(body, status=404))

    # -- faults --------------------------------------------------------------------------------

    async def _go_wrong(self, fault: Fault, request: web.Request) -> web.Response | None:
        if fault.act == "status":
            raise of_status(fault.status)
        if fault.act == "timeout":
            await self._hold(request)
        _cut(request, reset=fault.act == "reset")
        return None

    async def _hold(self, request: web.Request) -> None:
        """Wait until the client gives up, or the emulator does."""
        try:
            async with asyncio.timeout(self._platform.options.hold_s):
                while request.transport is not None:  # noqa: ASYNC110
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            pass  # the connection is cut without an answer

    # -- logs ----------------------------------------------------------------------------------

    async def _stream_log(self, request: web.Request) -> web.StreamResponse:
        session = self._sessions.get(request.match_info["session"])
        if session is None or Moment.now().monotonic - session.opened.monotonic > SESSION_S:
            return web.Response(status=404, text="No such log session.\n")
        events = "text/event-stream" in request.headers.get("Accept", "")
        response = web.StreamResponse()
        response.content_type = "text/event-stream" if events else "text/plain"
        await response.prepare(request)
        log = self._platform.app(session.app).log
        self.followed += 1
        try:
            async for line in log.follow(session):
                text = f"id: {line.number}\ndata: {line}\n\n" if events else f"{line}\n"
                await response.write(text.encode())
        except ConnectionError:
            pass  # the reader has gone
        return response


def _cut(request: web.Request, *, reset: bool) -> None:
    """End the connection without an answer."""
    if request.transport is None:
        return
    if reset:
        connection: socket.socket = request.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    request.transport.abort()
