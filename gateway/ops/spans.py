"""Spans of calls and boots, by OpenTelemetry's conventions for MCP. Needs the extra `traces`.

A call has two: towards its client (SERVER), child of the span that the client has named in `_meta`,
and below it towards the child (CLIENT), which the child is told in turn. Their ids follow from the
call alone, see `gateway.sessions.tracing`. Spans hold what a call is, never what it says.

https://github.com/open-telemetry/semantic-conventions-genai, docs/gen-ai/mcp.md. One thing differs:
`error.type` of the gateway's own errors is their reason, as the code is -32603 for all of them.
"""

import asyncio
import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import (
    Span,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    format_span_id,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from dyno_agent import __version__
from gateway import events
from gateway.ops.inertness import inert
from gateway.sessions.tracing import CallBegun

MAX_OPEN: Final = 10_000
"""Calls whose spans are open; beyond, the oldest is ended as `unknown`."""

MAX_BOOTS: Final = 10_000
"""Sessions whose boot is watched; beyond, the oldest is forgotten."""

MAX_PHASES: Final = 16
"""Phases that are told of one boot; places in line are most of them."""

RANDOM: Final = 0x02
"""Flag of a trace whose id was drawn (Trace Context, level 2): the client says so, not we."""

SHUTDOWN_S: Final = 3.0
"""How long the end of the process waits for the last spans to be sent."""

ID_CHARACTERS: Final = 64
"""Of an id or a name in an attribute."""

FINE: Final = frozenset({"ok", "cancelled", "catalogue", "handed_over", "unknown"})
"""Outcomes that are no error."""

EXPECTED: Final = frozenset({"client_delete", "client_gone", "drained", "operator", "evicted"})
"""Reasons for which a session may end while it boots, without anything being wrong."""

Attributes = dict[str, str | int | float | bool]


class Ids(RandomIdGenerator):
    """Hands out the ids that were laid ready, else random ones."""

    def __init__(self) -> None:
        self._trace: int | None = None
        self._span: int | None = None

    @contextlib.contextmanager
    def laid_ready(self, trace: int, span: int) -> Iterator[None]:
        """Give the span that begins inside this id; and its trace that one, if it is a new one."""
        self._trace, self._span = trace, span
        try:
            yield
        finally:
            self._trace = self._span = None

    def generate_trace_id(self) -> int:
        """Return the id of a new trace; called by the SDK."""
        return super().generate_trace_id() if self._trace is None else self._trace

    def generate_span_id(self) -> int:
        """Return the id of a new span; called by the SDK."""
        return super().generate_span_id() if self._span is None else self._span

    def is_trace_id_random(self) -> bool:
        """Claim nothing: a derived one is drawn again for the same call."""
        return False


def traces(gateway: str = "", exporter: SpanExporter | None = None) -> "Traces":
    """Return traces that are sent in batches, as the environment of the process says.

    Args:
        gateway: id of this process.
        exporter: to which each span goes at once, instead.
    """
    resource = Resource.create({SERVICE_VERSION: __version__})
    if gateway:
        resource = resource.merge(Resource({SERVICE_INSTANCE_ID: gateway}))
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "dyno-gateway"}))
    ids = Ids()
    provider = TracerProvider(resource=resource, id_generator=ids, shutdown_on_exit=False)
    if exporter is None:
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    else:
        provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Traces(provider, ids)


@dataclass(frozen=True, slots=True)
class _Plan:
    """The spans of a call before they begin.

    Attributes:
        parent: what the client has named, or an empty context.
        name: of both spans.
        attributes: of both.
        trace: id of the trace.
        server: id of the span towards the client.
        client: id of the span towards the child.
    """

    parent: Context
    name: str
    attributes: Attributes
    trace: int
    server: int
    client: int


@dataclass(frozen=True, slots=True)
class _Open:
    """The spans of a call that runs."""

    session: str
    server: Span
    client: Span


@dataclass(slots=True)
class _Boot:
    """A boot, until it is over: its span is made then, below the call that has waited for it.

    Attributes:
        server: name of the server; empty if nobody has said.
        began: nanoseconds since 1970; None before a dyno was asked for.
        attributes: of the span.
        phases: when what happened, and what there is to know of it.
    """

    server: str
    began: int | None = None
    attributes: Attributes = field(default_factory=dict)
    phases: list[tuple[str, int, Attributes]] = field(default_factory=list)


class Traces:
    """The port `gateway.sessions.tracing.Tracing`, and a sink.

    Args:
        provider: of spans, with `ids`.
        ids: generates its ids.
        now: nanoseconds since 1970.
    """

    def __init__(
        self, provider: TracerProvider, ids: Ids, now: Callable[[], int] = time.time_ns
    ) -> None:
        self._provider = provider
        self._ids = ids
        self._tracer = provider.get_tracer("dyno-gateway", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._now = now
        self._open: dict[str, _Open] = {}
        self._of: dict[str, dict[str, None]] = {}
        self._boots: dict[str, _Boot] = {}
        self._hears: dict[type[events.Event], Callable[[Any], None]] = {
            events.CallFinished: self._finished,
            events.Requested: self._requested,
            events.Launching: self._launching,
            events.Queued: self._queued,
            events.Launched: self._launched,
            events.Adopted: self._adopted,
            events.DialledIn: self._dialled_in,
            events.Ready: self._ready,
            events.HandedOver: self._handed_over,
            events.Closed: self._closed,
        }

    # Calls

    def context(self, call: CallBegun) -> Mapping[str, str]:
        """See `Tracing.context`."""
        plan = self._plan(call)
        parent = get_current_span(plan.parent).get_span_context()
        decided = self._provider.sampler.should_sample(
            plan.parent, plan.trace, plan.name, SpanKind.SERVER, plan.attributes, ()
        )
        flags = parent.trace_flags & RANDOM
        if decided.decision is Decision.RECORD_AND_SAMPLE:
            flags |= TraceFlags.SAMPLED
        context = {"traceparent": f"00-{_ids(plan.trace, plan.client)}-{flags:02x}"}
        state = decided.trace_state.to_header() if decided.trace_state else ""
        if state or "tracestate" in call.meta:  # one that belongs to no trace ends here
            context["tracestate"] = state
        return context

    def begin(self, call: CallBegun) -> None:
        """See `Tracing.begin`."""
        plan = self._plan(call)
        server = self._start(plan, plan.parent, SpanKind.SERVER, plan.server)
        server.set_attributes({"network.transport": "tcp", "network.protocol.name": "http"})
        below = set_span_in_context(server)
        client = self._start(plan, below, SpanKind.CLIENT, plan.client)
        client.set_attribute("network.transport", "pipe")
        if not client.is_recording():
            return
        while len(self._open) >= MAX_OPEN:
            self._end(next(iter(self._open)), "unknown")
        ids = _ids(plan.trace, plan.client)
        self._open[ids] = _Open(call.session, server, client)
        self._of.setdefault(call.session, {})[ids] = None

    def _plan(self, call: CallBegun) -> _Plan:
        parent = self._propagator.extract(call.meta, Context())
        known = get_current_span(parent).get_span_context()
        digest = hashlib.sha256(call.seed.encode()).digest()
        trace, server, client = (
            int.from_bytes(part) or 1 for part in (digest[:16], digest[16:24], digest[24:])
        )
        attributes = _attributes(call)
        target = attributes.get("gen_ai.tool.name", attributes.get("gen_ai.prompt.name"))
        name = _text(call.method) if target is None else f"{_text(call.method)} {target}"
        trace = known.trace_id if known.is_valid else trace
        return _Plan(parent, name, attributes, trace, server, client)

    def _start(self, plan: _Plan, parent: Context, kind: SpanKind, span: int) -> Span:
        with self._ids.laid_ready(plan.trace, span):
            return self._tracer.start_span(
                plan.name, parent, kind, plan.attributes, start_time=self._now()
            )

    def _finished(self, event: events.CallFinished) -> None:
        sizes = {"rendezvous.bytes_in": event.bytes_in, "rendezvous.bytes_out": event.bytes_out}
        ids = event.trace[3:-3]  # of `00-trace-span-flags`
        self._end(ids, event.outcome, event.code, sizes)

    def _end(
        self,
        ids: str,
        outcome: str,
        code: int | None = None,
        more: Mapping[str, int] | None = None,
    ) -> None:
        call = self._open.pop(ids, None)
        if call is None:
            return
        others = self._of[call.session]
        del others[ids]
        if not others:
            del self._of[call.session]
        for span in (call.client, call.server):
            span.set_attributes({"rendezvous.outcome": outcome, **(more or {})})
            if code is not None:
                span.set_attribute("rpc.response.status_code", str(code))
            if outcome not in FINE:
                by_child = outcome == "error" and code is not None
                span.set_attribute("error.type", str(code) if by_child else outcome)
                span.set_status(Status(StatusCode.ERROR))
            span.end(self._now())

    def _end_all(self, session: str, outcome: str) -> None:
        for ids in list(self._of.get(session, ())):
            self._end(ids, outcome)

    # Boots

    def hear(self, event: events.Event) -> None:
        """Be a sink."""
        hears = self._hears.get(type(event))
        if hears is not None:
            hears(event)

    def _watch(self, session: str, server: str) -> _Boot:
        while len(self._boots) >= MAX_BOOTS:
            del self._boots[next(iter(self._boots))]
        boot = self._boots[session] = _Boot(server)
        return boot

    def _requested(self, event: events.Requested) -> None:
        self._watch(event.session, event.server)

    def _launching(self, event: events.Launching) -> None:
        boot = self._boots.get(event.session) or self._watch(event.session, "")
        if boot.began is None:
            boot.began = self._now()
        boot.attributes["rendezvous.launch"] = _text(event.launch)
        boot.attributes["rendezvous.launcher"] = event.launcher
        boot.attributes["rendezvous.face"] = event.face

    def _phase(self, event: events.SessionEvent, **facts: str | int | float) -> _Boot | None:
        boot = self._boots.get(event.session)
        if boot is not None and len(boot.phases) < MAX_PHASES:
            boot.phases.append((event.name, self._now(), dict(facts)))
        return boot

    def _queued(self, event: events.Queued) -> None:
        self._phase(event, position=event.position)

    def _launched(self, event: events.Launched) -> None:
        self._phase(event, dyno=_text(event.dyno))

    def _adopted(self, event: events.Adopted) -> None:
        boot = self._phase(event, dyno=_text(event.dyno), parked_s=event.parked_s)
        if boot is not None:
            boot.attributes["rendezvous.start"] = "warm"
            boot.attributes["rendezvous.launch"] = _text(event.launch)
            boot.began = self._now() if boot.began is None else boot.began

    def _dialled_in(self, event: events.DialledIn) -> None:
        self._phase(event, boot_s=event.boot_s)

    def _ready(self, event: events.Ready) -> None:
        self._booted(event.session, "")

    def _booted(self, session: str, failure: str) -> None:
        """Make the span of a boot that is over, below the first call that waits for it."""
        boot = self._boots.pop(session, None)
        if boot is None or boot.began is None:
            return
        waiting = next(iter(self._of.get(session, ())), None)
        parent = Context()
        if waiting is not None:
            parent = set_span_in_context(self._open[waiting].server, parent)
        attributes = {
            "mcp.session.id": _text(session),
            "rendezvous.server": boot.server,
            "rendezvous.start": "cold",
            **boot.attributes,
        }
        span = self._tracer.start_span("boot", parent, attributes=attributes, start_time=boot.began)
        for name, at, facts in boot.phases:
            span.add_event(name, facts, at)
        if failure:
            span.set_attribute("error.type", failure)
            span.set_status(Status(StatusCode.ERROR))
        span.end(self._now())

    def _handed_over(self, event: events.HandedOver) -> None:
        self._boots.pop(event.session, None)  # it goes on elsewhere
        self._end_all(event.session, "handed_over")

    def _closed(self, event: events.Closed) -> None:
        self._booted(event.session, "" if event.reason in EXPECTED else event.reason)
        self._end_all(event.session, "session_ended")

    # The end

    async def shutdown(self) -> None:
        """End what is open, and send what has not been sent; bounded to `SHUTDOWN_S`."""
        for ids in list(self._open):
            self._end(ids, "unknown")
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def work() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop has not waited for us
                loop.call_soon_threadsafe(done.set)

        # A daemon: the end of the process does not wait for a collector that does not answer.
        threading.Thread(target=work, name="last traces", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SHUTDOWN_S):
                await done.wait()


def _ids(trace: int, span: int) -> str:
    return f"{format_trace_id(trace)}-{format_span_id(span)}"


def _text(text: str) -> str:
    """Return text that can be encoded and shown, whoever has written it."""
    return inert(text)[:ID_CHARACTERS]


def _attributes(call: CallBegun) -> Attributes:
    attributes: Attributes = {
        "mcp.method.name": _text(call.method),
        "mcp.session.id": _text(call.session),
        "jsonrpc.request.id": _text(call.call),
        "rendezvous.server": call.server,
        "rendezvous.principal": _text(call.principal),
    }
    if call.revision:
        attributes["mcp.protocol.version"] = _text(call.revision)
    if call.method == "tools/call":
        attributes["gen_ai.operation.name"] = "execute_tool"
    if call.tool is not None and call.method in _NAMES:
        attributes[_NAMES[call.method]] = _text(call.tool)
    return attributes


_NAMES: Final = {"tools/call": "gen_ai.tool.name", "prompts/get": "gen_ai.prompt.name"}
"""What a call names, by its method."""
