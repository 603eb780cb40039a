"""Traces: ids that follow from the call, spans by the conventions, and where they are sent."""

from __future__ import annotations

import asyncio
import re
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from gateway import events
from gateway.ops import spans, traces
from gateway.ops.spans import Traces
from gateway.sessions.tracing import CallBegun

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from opentelemetry.sdk.trace import ReadableSpan

BOUND = 30.0
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CLIENTS = f"00-{TRACE}-{SPAN}-01"
HOSTILE = "\ud83d\x1b[2J\n" + "x" * 200


@pytest.fixture(autouse=True)
def environment_without_variables_of_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG", "OTEL_SERVICE_NAME"):
        monkeypatch.delenv(name, raising=False)


class Kept(InMemorySpanExporter):
    """Spans as they were exported."""

    def all(self, name: str | None = None, kind: SpanKind | None = None) -> list[ReadableSpan]:
        return [
            span
            for span in self.get_finished_spans()
            if name in (None, span.name) and kind in (None, span.kind)
        ]

    def one(self, name: str | None = None, kind: SpanKind | None = None) -> ReadableSpan:
        (span,) = self.all(name, kind)
        return span


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def made(kept: Kept) -> Traces:
    return spans.traces("g-1", kept)


def call(number: int = 1, meta: Mapping[str, str] | None = None, **more: Any) -> CallBegun:
    usual: dict[str, Any] = {"session": "s", "server": "srv", "principal": "p"}
    usual |= {"call": str(number), "method": "tools/call", "tool": "echo"}
    usual |= {"revision": "2025-11-25", "meta": meta or {}, "seed": f"{number:064x}"}
    return CallBegun(**{**usual, **more})


def finished(trace: str, outcome: str = "ok", **more: Any) -> events.CallFinished:
    usual: dict[str, Any] = {"session": "s", "server": "srv", "call": "1", "method": "tools/call"}
    usual |= {"tool": "echo", "ms": 1.0, "bytes_in": 11, "bytes_out": 22}
    return events.CallFinished(outcome=outcome, trace=trace, **{**usual, **more})


def run(made: Traces, begun: CallBegun, outcome: str = "ok", **more: Any) -> str:
    """Let a call begin and end; return what the child was told."""
    trace = made.context(begun)["traceparent"]
    made.begin(begun)
    made.hear(finished(trace, outcome, **more))
    return trace


def ids(span: ReadableSpan) -> tuple[str, str]:
    context = span.get_span_context()
    assert context is not None
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def event(kind: type[events.Event], **facts: Any) -> events.Event:
    return kind(**{"session": "s", **facts})


def requested(session: str = "s") -> events.Event:
    return events.Requested(session=session, server="srv", principal="p", client="c")


def launching(session: str = "s") -> events.Event:
    return events.Launching(session=session, launch="l-1", launcher="heroku")


def ready(session: str = "s") -> events.Event:
    return events.Ready(session=session, pid=1, boot_s=1.0)


def closed(reason: str, session: str = "s") -> events.Event:
    return events.Closed(
        session=session, reason=reason, seconds=1.0, calls=0, dropped=0, peak_buffer_bytes=0
    )


# What a call carries


@pytest.mark.parametrize(
    "meta", [{}, {"traceparent": CLIENTS}, {"traceparent": CLIENTS, "tracestate": "a=1,b=2"}]
)
def test_two_processes_give_the_same_call_the_same_context(meta: dict[str, str]) -> None:
    here, there = spans.traces("one", Kept()), spans.traces("two", Kept())
    assert here.context(call(meta=meta)) == there.context(call(meta=meta))


def test_context_is_the_same_though_the_call_has_begun_and_others_too(made: Traces) -> None:
    before = made.context(call())
    run(made, call(2))
    made.begin(call())
    assert made.context(call()) == before


def test_calls_that_differ_have_contexts_that_differ(made: Traces) -> None:
    found = {made.context(call(number))["traceparent"] for number in range(100)}
    assert len(found) == 100


def test_context_has_the_form_that_the_recommendation_asks_for(made: Traces) -> None:
    trace = made.context(call())["traceparent"]
    assert re.fullmatch(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-01", trace)


def test_child_goes_on_in_the_trace_of_the_client_below_another_span(made: Traces) -> None:
    version, trace, span, flags = made.context(call(meta={"traceparent": CLIENTS}))[
        "traceparent"
    ].split("-")
    assert (version, trace, flags) == ("00", TRACE, "01")
    assert span != SPAN


@pytest.mark.parametrize("flags", ["00", "01", "02", "03"])
def test_flags_of_the_client_are_handed_on(made: Traces, flags: str) -> None:
    meta = {"traceparent": f"00-{TRACE}-{SPAN}-{flags}"}
    assert made.context(call(meta=meta))["traceparent"].endswith(f"-{flags}")


def test_trace_state_is_handed_on_as_it_is(made: Traces) -> None:
    meta = {"traceparent": CLIENTS, "tracestate": "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"}
    assert made.context(call(meta=meta))["tracestate"] == meta["tracestate"]


@pytest.mark.parametrize(
    "trace",
    [
        "",
        "x",
        f"00-{TRACE}-{SPAN}",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        "\ud83d",
    ],
    ids=ascii,
)
def test_trace_that_is_none_begins_a_new_one_and_its_state_ends(made: Traces, trace: str) -> None:
    meta = {"traceparent": trace, "tracestate": "a=1"}
    found = made.context(call(meta=meta))
    assert found == {**made.context(call()), "tracestate": ""}


def test_asking_for_a_context_begins_nothing(made: Traces, kept: Kept) -> None:
    trace = made.context(call())["traceparent"]
    made.hear(finished(trace))
    assert kept.all() == []


# Spans of calls


def test_spans_are_those_that_were_announced(made: Traces, kept: Kept) -> None:
    _, trace, span, _ = run(made, call(meta={"traceparent": CLIENTS})).split("-")
    server, client = kept.one(kind=SpanKind.SERVER), kept.one(kind=SpanKind.CLIENT)
    assert ids(client) == (trace, span)
    assert ids(server)[0] == trace == TRACE
    assert ids(server)[1] != span
    assert client.parent is not None
    assert server.parent is not None
    assert f"{client.parent.span_id:016x}" == ids(server)[1]
    assert f"{server.parent.span_id:016x}" == SPAN
    assert server.parent.is_remote


def test_call_without_a_trace_is_the_root_of_one(made: Traces, kept: Kept) -> None:
    _, trace, span, _ = run(made, call()).split("-")
    assert kept.one(kind=SpanKind.SERVER).parent is None
    assert ids(kept.one(kind=SpanKind.CLIENT)) == (trace, span)


def test_spans_of_a_call_last_from_its_begin_to_its_end(kept: Kept) -> None:
    now = iter([5, 6, 90, 91])
    timed = Traces(*provided(kept), now=lambda: next(now))
    run(timed, call())
    server, client = kept.one(kind=SpanKind.SERVER), kept.one(kind=SpanKind.CLIENT)
    assert (server.start_time, client.start_time) == (5, 6)
    assert (client.end_time, server.end_time) == (90, 91)


def provided(kept: Kept) -> tuple[Any, Any]:
    made = spans.traces("g", kept)
    return made._provider, made._ids


def test_attributes_of_a_tool_call_are_those_of_the_conventions(made: Traces, kept: Kept) -> None:
    run(made, call())
    both = {
        "mcp.method.name": "tools/call",
        "mcp.session.id": "s",
        "mcp.protocol.version": "2025-11-25",
        "jsonrpc.request.id": "1",
        "gen_ai.tool.name": "echo",
        "gen_ai.operation.name": "execute_tool",
        "rendezvous.server": "srv",
        "rendezvous.principal": "p",
        "rendezvous.outcome": "ok",
        "rendezvous.bytes_in": 11,
        "rendezvous.bytes_out": 22,
    }
    server, client = kept.one(kind=SpanKind.SERVER), kept.one(kind=SpanKind.CLIENT)
    http = {"network.transport": "tcp", "network.protocol.name": "http"}
    assert attributes(server) == {**both, **http}
    assert attributes(client) == {**both, "network.transport": "pipe"}
    assert server.name == client.name == "tools/call echo"


@pytest.mark.parametrize(
    ("method", "target", "name", "more"),
    [
        ("prompts/get", "greet", "prompts/get greet", {"gen_ai.prompt.name": "greet"}),
        ("tools/list", None, "tools/list", {}),
        ("resources/read", "secret://x", "resources/read", {}),
        ("tools/call", None, "tools/call", {"gen_ai.operation.name": "execute_tool"}),
    ],
)
def test_span_is_named_for_the_method_and_what_it_names(
    made: Traces, kept: Kept, method: str, target: str | None, name: str, more: dict[str, str]
) -> None:
    run(made, call(method=method, tool=target))
    span = kept.one(kind=SpanKind.SERVER)
    found = {key: value for key, value in attributes(span).items() if key.startswith("gen_ai")}
    assert (span.name, found) == (name, more)


def test_revision_that_nobody_has_said_is_left_out(made: Traces, kept: Kept) -> None:
    run(made, call(revision=""))
    assert "mcp.protocol.version" not in attributes(kept.one(kind=SpanKind.SERVER))


@pytest.mark.parametrize(
    ("outcome", "code", "failure"),
    [
        ("ok", None, None),
        ("cancelled", None, None),
        ("tool_error", None, "tool_error"),
        ("error", -32602, "-32602"),
        ("error", None, "error"),
        ("call_timeout", -32603, "call_timeout"),
    ],
)
def test_outcome_of_a_call_is_the_outcome_of_both_spans(
    made: Traces, kept: Kept, outcome: str, code: int | None, failure: str | None
) -> None:
    run(made, call(), outcome, code=code)
    for span in (kept.one(kind=SpanKind.SERVER), kept.one(kind=SpanKind.CLIENT)):
        found = attributes(span)
        assert found["rendezvous.outcome"] == outcome
        assert found.get("error.type") == failure
        assert found.get("rpc.response.status_code") == (None if code is None else str(code))
        assert (span.status.status_code is StatusCode.ERROR) is (failure is not None)


def test_no_span_has_a_payload(made: Traces, kept: Kept) -> None:
    run(made, call(), payload=b"very secret")
    assert not [span for span in kept.all() if "very secret" in span.to_json()]


def test_text_of_a_client_is_cut_and_can_be_sent(made: Traces, kept: Kept) -> None:
    for number, method in enumerate(["tools/call", "prompts/get", HOSTILE]):
        begun = call(number, method=method, tool=HOSTILE, revision=HOSTILE)
        run(made, CallBegun(**{**fields(begun), "call": HOSTILE, "session": HOSTILE}), session="s")
    assert len(kept.all()) == 6
    encode_spans(kept.all()).SerializeToString()
    for span in kept.all():
        texts = [value for value in attributes(span).values() if isinstance(value, str)]
        assert max(map(len, texts)) == 64
        assert all(text.isprintable() for text in [*texts, span.name])


def fields(begun: CallBegun) -> dict[str, Any]:
    return {name: getattr(begun, name) for name in CallBegun.__slots__}


# Which calls are traced


def test_call_that_its_client_has_not_sampled_has_no_spans(made: Traces, kept: Kept) -> None:
    run(made, call(meta={"traceparent": f"00-{TRACE}-{SPAN}-00"}))
    assert kept.all() == []
    assert made._open == {}


def test_sampler_of_the_environment_decides(monkeypatch: pytest.MonkeyPatch, kept: Kept) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    made = spans.traces("g", kept)
    assert run(made, call(meta={"traceparent": CLIENTS})).endswith("-00")
    assert kept.all() == []


def test_part_of_the_calls_is_traced_and_all_processes_choose_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    kept = [Kept(), Kept()]
    both = [spans.traces("g", each) for each in kept]
    told = [[run(made, call(number)) for number in range(200)] for made in both]
    assert told[0] == told[1]
    sampled = [trace for trace in told[0] if trace.endswith("-01")]
    assert 50 < len(sampled) < 150
    assert len(kept[0].all(kind=SpanKind.CLIENT)) == len(sampled)


# Calls that nobody ends


def test_oldest_call_is_ended_as_unknown_beyond_the_most(
    monkeypatch: pytest.MonkeyPatch, made: Traces, kept: Kept
) -> None:
    monkeypatch.setattr(spans, "MAX_OPEN", 2)
    for number in range(3):
        made.begin(call(number))
    assert attributes(kept.one(kind=SpanKind.SERVER))["jsonrpc.request.id"] == "0"
    assert attributes(kept.one(kind=SpanKind.SERVER))["rendezvous.outcome"] == "unknown"
    assert len(made._open) == 2


@pytest.mark.parametrize(
    ("end", "outcome", "status"),
    [
        (closed("idle"), "session_ended", StatusCode.ERROR),
        (event(events.HandedOver, calls=1), "handed_over", StatusCode.UNSET),
    ],
)
def test_calls_of_a_session_end_with_it_and_no_others(
    made: Traces, kept: Kept, end: events.Event, outcome: str, status: StatusCode
) -> None:
    made.begin(call(1))
    made.begin(call(2))
    made.begin(call(3, session="other"))
    made.hear(end)
    found = kept.all(kind=SpanKind.SERVER)
    assert [attributes(span)["jsonrpc.request.id"] for span in found] == ["1", "2"]
    assert {attributes(span)["rendezvous.outcome"] for span in found} == {outcome}
    assert {span.status.status_code for span in found} == {status}
    assert set(made._of) == {"other"}


@pytest.mark.parametrize("trace", ["", CLIENTS, "x"])
def test_end_of_a_call_without_spans_is_nothing(made: Traces, kept: Kept, trace: str) -> None:
    made.begin(call())
    made.hear(finished(trace))
    assert kept.all() == []


def test_call_that_begins_twice_ends_once(made: Traces, kept: Kept) -> None:
    made.begin(call())
    run(made, call())
    assert len(kept.all(kind=SpanKind.SERVER)) == 1
    assert (made._open, made._of) == ({}, {})


def test_nothing_is_held_of_calls_that_are_over(made: Traces) -> None:
    for number in range(10):
        run(made, call(number))
    assert (made._open, made._of) == ({}, {})


# Boots


def test_boot_is_below_the_first_call_that_waited_for_it(made: Traces, kept: Kept) -> None:
    made.hear(requested())
    first = made.context(call(1))["traceparent"]
    made.begin(call(1))
    made.begin(call(2))
    made.hear(launching())
    made.hear(ready())
    made.hear(finished(first))
    boot, server = kept.one("boot"), kept.one(kind=SpanKind.SERVER)
    assert boot.parent is not None
    assert (boot.parent.trace_id, boot.parent.span_id) == tuple(int(i, 16) for i in ids(server))
    assert attributes(boot) == {
        "mcp.session.id": "s",
        "rendezvous.server": "srv",
        "rendezvous.start": "cold",
        "rendezvous.launch": "l-1",
        "rendezvous.launcher": "heroku",
        "rendezvous.face": "plain",
    }


def test_boot_that_no_call_waits_for_is_the_root_of_a_trace_of_its_own(
    made: Traces, kept: Kept
) -> None:
    called = run(made, call(meta={"traceparent": CLIENTS}))
    for session in ("a", "b"):
        for told in (requested(session), launching(session), ready(session)):
            made.hear(told)
    boots = kept.all("boot")
    assert [boot.parent for boot in boots] == [None, None]
    known = {ids(boot)[0] for boot in boots} | {called.split("-")[1], made_trace(call())}
    assert len(known) == 4


def made_trace(begun: CallBegun) -> str:
    return spans.traces("g", Kept()).context(begun)["traceparent"].split("-")[1]


def test_boot_lasts_from_the_launch_to_the_child_with_its_phases(kept: Kept) -> None:
    now = iter(range(10, 100, 10))
    timed = Traces(*provided(kept), now=lambda: next(now))
    for told in (
        requested(),
        launching(),
        event(events.Queued, position=2, waiting=3),
        event(events.Launched, launch="l-1", dyno="run.1"),
        event(events.DialledIn, epoch=1, agent="a", python="3", boot_s=4.0),
        ready(),
    ):
        timed.hear(told)
    boot = kept.one("boot")
    assert (boot.start_time, boot.end_time) == (10, 50)
    phases = [(each.name, each.timestamp) for each in boot.events]
    assert phases == [("queued", 20), ("launched", 30), ("dialled_in", 40)]


def test_boot_of_an_adopted_dyno_is_warm(made: Traces, kept: Kept) -> None:
    adopted = event(
        events.Adopted, launch="l-9", dyno="run.9", parked_s=1.0, pool_dyno_s=1.0, pool_usd=0.0
    )
    for told in (requested(), launching(), adopted, ready()):
        made.hear(told)
    found = attributes(kept.one("boot"))
    assert (found["rendezvous.start"], found["rendezvous.launch"]) == ("warm", "l-9")


@pytest.mark.parametrize(
    ("reason", "failure"),
    [("boot_timeout", "boot_timeout"), ("no_room", "no_room"), ("client_delete", None)],
)
def test_boot_that_comes_to_nothing_says_why(
    made: Traces, kept: Kept, reason: str, failure: str | None
) -> None:
    for told in (requested(), launching(), closed(reason)):
        made.hear(told)
    boot = kept.one("boot")
    assert attributes(boot).get("error.type") == failure
    assert (boot.status.status_code is StatusCode.ERROR) is (failure is not None)


@pytest.mark.parametrize("end", [ready(), closed("idle"), event(events.HandedOver, calls=0)])
def test_session_without_a_launch_has_no_boot(made: Traces, kept: Kept, end: events.Event) -> None:
    made.hear(requested())
    made.hear(end)
    assert kept.all() == []
    assert made._boots == {}


def test_boot_that_goes_on_elsewhere_is_not_told_here(made: Traces, kept: Kept) -> None:
    for told in (requested(), launching(), event(events.HandedOver, calls=0), ready()):
        made.hear(told)
    assert kept.all() == []


def test_phases_of_a_boot_are_bounded(made: Traces, kept: Kept) -> None:
    made.hear(requested())
    made.hear(launching())
    for position in range(100):
        made.hear(event(events.Queued, position=position, waiting=100))
    made.hear(ready())
    assert len(kept.one("boot").events) == spans.MAX_PHASES


def test_boots_that_are_watched_are_bounded(monkeypatch: pytest.MonkeyPatch, made: Traces) -> None:
    monkeypatch.setattr(spans, "MAX_BOOTS", 3)
    for number in range(10):
        made.hear(requested(f"s{number}"))
    assert list(made._boots) == ["s7", "s8", "s9"]


# Where spans go


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": " "},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_nobody_traces_unless_somebody_asks_for_it(environment: dict[str, str]) -> None:
    assert traces.setup(environment) is None


@pytest.mark.parametrize("name", traces.ENDPOINTS)
def test_missing_extra_is_named_together_with_the_variable_that_needs_it(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delitem(sys.modules, "gateway.ops.spans")
    monkeypatch.delattr("gateway.ops.spans")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(traces.MissingExtra, match=rf"{name} .*extra `traces`"):
        traces.setup({name: "http://h"})


class Collector:
    """Takes spans as OTLP over HTTP, if its gate is open."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = asyncio.Event()
        self.requests: list[ExportTraceServiceRequest] = []

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.asked.set()
        await self.gate.wait()
        self.requests.append(ExportTraceServiceRequest.FromString(body))
        return web.Response(
            body=ExportTraceServiceResponse().SerializeToString(),
            content_type="application/x-protobuf",
        )


@asynccontextmanager
async def collecting(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Collector, Traces]]:
    """Run a collector, and give traces that are sent there as an operator would have it."""
    collector = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", collector.take)
    async with TestServer(app) as server:
        endpoint = str(server.make_url("/"))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        made = traces.setup({"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}, "g-1")
        assert made is not None
        try:
            yield collector, made
        finally:
            collector.gate.set()


@pytest.mark.parametrize(("named", "service"), [(None, "dyno-gateway"), ("mine", "mine")])
async def test_spans_reach_a_collector_by_the_end_of_the_process(
    monkeypatch: pytest.MonkeyPatch, named: str | None, service: str
) -> None:
    if named is not None:
        monkeypatch.setenv("OTEL_SERVICE_NAME", named)
    async with asyncio.timeout(BOUND), collecting(monkeypatch) as (collector, made):
        trace = run(made, call(meta={"traceparent": CLIENTS}))
        await made.shutdown()
        (resource,) = (each for request in collector.requests for each in request.resource_spans)
    facts = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
    assert (facts["service.name"], facts["service.instance.id"]) == (service, "g-1")
    found = [span for scope in resource.scope_spans for span in scope.spans]
    assert [span.name for span in found] == ["tools/call echo"] * 2
    assert {span.trace_id.hex() for span in found} == {TRACE}
    assert trace.split("-")[2] in {span.span_id.hex() for span in found}


async def test_calls_that_run_at_the_end_of_the_process_are_told_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with asyncio.timeout(BOUND), collecting(monkeypatch) as (collector, made):
        made.begin(call())
        await made.shutdown()
        assert len(collector.requests) == 1


async def test_end_of_the_process_does_not_wait_for_a_collector_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spans, "SHUTDOWN_S", 0.05)
    async with asyncio.timeout(BOUND), collecting(monkeypatch) as (collector, made):
        collector.gate.clear()
        run(made, call())
        await made.shutdown()
        assert collector.requests == []
        collector.gate.set()
