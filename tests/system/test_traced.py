"""One trace from a client through the gateway into its dyno: real processes, a real collector."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from tests.system.conftest import PLAIN, GatewayProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.timeout(150)

BOUND = 60.0
TRACED = Path(__file__).resolve().parents[1] / "fixtures" / "traced.py"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALL = {"name": "echo", "arguments": {"text": "hi"}}


class Collector:
    """Takes spans as OTLP over HTTP, with the name of the service that each comes from."""

    def __init__(self) -> None:
        self.spans: dict[str, tuple[str, Any]] = {}
        self.news = asyncio.Event()

    async def take(self, request: web.Request) -> web.Response:
        told = ExportTraceServiceRequest.FromString(await request.read())
        for resource in told.resource_spans:
            facts = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans[span.span_id.hex()] = facts["service.name"], span
        self.news.set()
        body = ExportTraceServiceResponse().SerializeToString()
        return web.Response(body=body, content_type="application/x-protobuf")

    async def span(self, name: str) -> Any:
        """Wait for a span of this name."""
        while True:
            for _, span in self.spans.values():
                if span.name == name:
                    return span
            self.news.clear()
            await self.news.wait()

    def services_above(self, span: Any) -> list[str]:
        """Name the service of each span from this one up, the client's excluded."""
        found: list[str] = []
        while (here := self.spans.get(span.span_id.hex())) is not None:
            found.append(here[0])
            if (above := self.spans.get(span.parent_span_id.hex())) is None:
                assert span.parent_span_id.hex() == SPAN, "the topmost is below the client's"
                return found
            span = above[1]
        return found


@asynccontextmanager
async def collecting() -> AsyncIterator[tuple[Collector, str]]:
    collector, app = Collector(), web.Application()
    app.router.add_post("/v1/traces", collector.take)
    async with TestServer(app) as server:
        yield collector, str(server.make_url("")).rstrip("/")


async def call(gateway: GatewayProcess) -> None:
    """Open a session and make a call whose client traces."""
    headers = {**gateway.headers, "Accept": "application/json, text/event-stream"}
    opening = {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "t", "version": "1"},
    }
    context = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
    async with aiohttp.ClientSession(headers=headers, raise_for_status=True) as http:
        message = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": opening}
        async with http.post(gateway.url(), json=message) as response:
            session = {"Mcp-Session-Id": response.headers["Mcp-Session-Id"]}
            await response.read()
        ready = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        async with http.post(gateway.url(), json=ready, headers=session) as response:
            await response.read()
        params = {**CALL, "_meta": context}
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        async with http.post(gateway.url(), json=message, headers=session) as response:
            assert b'"hi"' in await response.read()


async def test_work_of_a_child_is_in_the_trace_of_the_client_below_the_gateway(
    tmp_path: Path,
) -> None:
    async with asyncio.timeout(BOUND), collecting() as (collector, endpoint):
        server = {"command": sys.executable, "args": [str(TRACED)], "env": {"COLLECTOR": endpoint}}
        settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        async with GatewayProcess(tmp_path, {"one": server}, settings, defaults=PLAIN) as gateway:
            await call(gateway)
        work = await collector.span("the work")
        services = collector.services_above(work)
    assert work.trace_id.hex() == TRACE
    assert (services[0], services[-2:]) == ("child", ["dyno-gateway", "dyno-gateway"])
