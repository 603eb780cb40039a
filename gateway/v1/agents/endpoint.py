"""`POST /v1/agents/heroku`: takes a request, runs it, and writes what happens as events.

Until something has happened, or for `FIRST_S`, a failure has its HTTP status; afterwards it is the
last event but one. The run ends with its client: nobody could come back to it.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from aiohttp import web

from gateway.errors import GatewayError
from gateway.registry.servers import Registry
from gateway.sessions.catalogues import Catalogues
from gateway.sessions.manager import Manager
from gateway.sessions.record import Reason
from gateway.store.base import StoreAway
from gateway.v1.agents import frames, request
from gateway.v1.agents.errands import Errands
from gateway.v1.agents.lookup import Lookup
from gateway.v1.agents.run import Asked, Run
from gateway.v1.answering import Admit, answered
from gateway.v1.problems import Problem, problem_of

if TYPE_CHECKING:
    from gateway.v1.agents.model import Model

PATH: Final = "/v1/agents/heroku"

BODY_BYTES: Final = 4 * 1024 * 1024
"""Of a request: a long conversation, or some pictures."""

BODY_S: Final = 30.0
"""How long a body may take to arrive."""

RUN_S: Final = 900.0
"""How long a run may take."""

FIRST_S: Final = 20.0
"""How long a failure may still get its HTTP status: the platform's router wants a byte in 30 s."""

KEEP_ALIVE_S: Final = 25.0
"""A comment after so long without an event: the platform's router cuts at 55 s of silence."""

WRITE_S: Final = 30.0
"""How long one write may be blocked by a client that does not read; then its run ends."""

WAITING: Final = 4
"""Events that may wait to be written; then the run waits."""

RUNS: Final = 64
"""Runs of this process, at the same time."""

RUNS_PER_KEY: Final = 16
"""The same of one principal."""

HEADERS: Final = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}


class Agents:
    """The endpoint.

    Args:
        manager: makes the sessions that tools run in.
        catalogues: what servers offer.
        registry: the servers.
        admit: lets clients in.
        model: asks the model; None closes the endpoint.
        default: the model of requests that name none.
    """

    def __init__(
        self,
        manager: Manager,
        catalogues: Catalogues,
        registry: Registry,
        admit: Admit,
        *,
        model: "Model | None",
        default: str,
    ) -> None:
        self._manager = manager
        self._catalogues = catalogues
        self._lookup = Lookup(catalogues, registry)
        self._admit = admit
        self._model = model
        self._default = default
        self._runs: Counter[str] = Counter()

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [web.post(PATH, answered(self.post))]

    async def aclose(self) -> None:
        """Let go of the model's server."""
        if self._model is not None:
            await self._model.aclose()

    async def post(self, incoming: web.Request) -> web.StreamResponse:
        """Run an agent.

        Raises:
            Problem: nothing has happened yet, and nothing will.
            BadKey, ForeignOrigin: see `Admit`.
        """
        principal = self._admit(incoming)
        if self._model is None:
            raise Problem(
                503,
                "there is no model behind this endpoint: its operator has to set INFERENCE_URL",
                "no_model",
            )
        async with self._room(principal):
            asked = self._read(await _body(incoming), principal)
            events: asyncio.Queue[bytes | Problem] = asyncio.Queue(WAITING)
            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(self._run(self._model, asked, events), name="agent run")
                try:
                    written = await _write(incoming, events)
                finally:
                    running.cancel()
        if isinstance(written, Problem):
            raise written
        return written

    @asynccontextmanager
    async def _room(self, principal: str) -> AsyncIterator[None]:
        if self._runs[principal] >= RUNS_PER_KEY:
            raise Problem(
                429,
                f"this key has {RUNS_PER_KEY} agents running, which is the most; wait for one",
                "rate_limit_exceeded",
                retry_after_s=5,
            )
        if self._runs.total() >= RUNS:
            raise Problem(503, f"{RUNS} agents run, which is the most", "busy", retry_after_s=5)
        self._runs[principal] += 1
        try:
            yield
        finally:
            self._runs[principal] -= 1
            self._runs += Counter()  # drops those that are 0

    def _read(self, body: bytes, principal: str) -> Asked:
        read = request.read(body)
        model = read.model or self._default
        if not model:
            raise Problem(
                400, "model: missing, and there is no default", "invalid_request", param="model"
            )
        given = {
            "max_tokens": read.max_tokens_per_inference_request,
            "temperature": read.temperature,
            "top_p": read.top_p,
            "stop": read.stop,
        }
        options = {name: value for name, value in given.items() if value is not None}
        return Asked(principal, model, request.messages(read), request.tools(read), options)

    async def _run(
        self, model: "Model", asked: Asked, events: "asyncio.Queue[bytes | Problem]"
    ) -> None:
        """Run, to the end: the last thing put is `DONE`, or why there is none."""
        errands = Errands(self._manager, self._catalogues, asked.principal)
        reason = Reason.ANSWERED
        try:
            async with asyncio.timeout(RUN_S):
                tools = await self._lookup.toolbox(asked.tools, errands)
                run = Run(asked, tools, errands, model=model, manager=self._manager, put=events.put)
                await run.perform()
            await events.put(frames.DONE)
        except asyncio.CancelledError:
            reason = Reason.CLIENT_GONE
            raise
        except TimeoutError:
            limit = f"the run took over {RUN_S:.0f} s, which is the most"
            await events.put(Problem(504, limit, "run_timeout"))
        except Problem as problem:
            await events.put(problem)
        except (GatewayError, StoreAway) as error:
            await events.put(problem_of(error))
        finally:
            errands.end(reason)


async def _body(incoming: web.Request) -> bytes:
    """Read a body, whatever its `Content-Type` says: Heroku's own examples send none.

    Raises:
        Problem: it is encoded, too big, or does not come.
    """
    if "Content-Encoding" in incoming.headers:
        raise Problem(415, "an encoded body is not taken", "unsupported_media")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for piece in incoming.content.iter_any():
                body += piece
                if len(body) > BODY_BYTES:
                    raise Problem(413, f"a request may have {BODY_BYTES} bytes", "message_too_big")
    except TimeoutError:
        raise Problem(408, f"the body did not come within {BODY_S:.0f} s", "body_timeout") from None
    except web.RequestPayloadError:
        raise Problem(400, "the body ended too early", "invalid_request") from None
    return bytes(body)


async def _write(
    incoming: web.Request, events: "asyncio.Queue[bytes | Problem]"
) -> web.StreamResponse | Problem:
    """Write events to the last; return what failed if nothing was written before."""
    event = await _next(events, FIRST_S)
    if isinstance(event, Problem):
        return event
    response = web.StreamResponse(headers=HEADERS)
    try:
        await response.prepare(incoming)
        while True:
            if isinstance(event, Problem):
                event = frames.failed(event.document) + frames.DONE
            async with asyncio.timeout(WRITE_S):
                await response.write(frames.COMMENT if event is None else event)
            if event is not None and event.endswith(frames.DONE):
                break
            event = await _next(events, KEEP_ALIVE_S)
        await response.write_eof()
    except ConnectionResetError:
        pass  # nobody is there; the run ends with its client
    except TimeoutError:
        if incoming.transport is not None:
            incoming.transport.abort()  # it does not read
    return response


async def _next(
    events: "asyncio.Queue[bytes | Problem]", patience_s: float
) -> bytes | Problem | None:
    """Return the next event; None if none has come in time."""
    try:
        async with asyncio.timeout(patience_s):
            return await events.get()
    except TimeoutError:
        return None
