"""A gateway's MCP side that says what it is told to: one server, with a handshake."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.cli.desk import KEY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

PHASES = ("a dyno is asked for", "the dyno boots", "the server starts")

ADD = {
    "name": "add",
    "description": "Adds\ntwo numbers.",
    "inputSchema": {
        "type": "object",
        "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
        "required": ["a"],
    },
}


@dataclass
class Stub:
    """What it says, and what it was asked.

    Attributes:
        url: of the gateway.
        result: of every tool call; None to answer none.
        error: instead of a result.
        refusal: status and message instead of any answer.
        pages: of the list of tools.
        phases: told as progress before a result.
        heard: messages of clients.
        deleted: whether the session was ended.
    """

    url: str = ""
    result: dict[str, Any] | None = field(
        default_factory=lambda: {"content": [{"type": "text", "text": "3"}]}
    )
    error: dict[str, Any] | None = None
    refusal: tuple[int, str] | None = None
    pages: list[list[dict[str, Any]]] = field(default_factory=lambda: [[ADD]])
    phases: tuple[str, ...] = PHASES
    heard: list[dict[str, Any]] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    deleted: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def access(self) -> dict[str, Any]:
        return {"GATEWAY_URL": self.url, "API_KEY": KEY}

    def said(self, method: str) -> list[dict[str, Any]]:
        return [message for message in self.heard if message.get("method") == method]

    async def post(self, request: web.Request) -> web.StreamResponse:
        message = await request.json()
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return _problem(401, "unknown API key")
        if self.refusal is not None:
            return _problem(*self.refusal)
        self.heard.append(message)
        return await self._answer(request, message)

    async def _answer(self, request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
        if "id" not in message:
            return web.Response(status=202)
        match str(message["method"]):
            case "initialize":
                about = {
                    "protocolVersion": message["params"]["protocolVersion"],
                    "capabilities": {"tools": {}},
                    "serverInfo": {"name": "stub", "version": "1"},
                }
                return _result(message, about, {"Mcp-Session-Id": "the-key"})
            case "tools/list":
                number = int(message.get("params", {}).get("cursor", 0))
                more = {"nextCursor": str(number + 1)} if number + 1 < len(self.pages) else {}
                return _result(message, {"tools": self.pages[number], **more})
            case "tools/call":
                return await self._call(request, message)
            case _:
                pass
        error = {"code": -32601, "message": "no such method"}
        return web.json_response({"jsonrpc": "2.0", "id": message["id"], "error": error})

    async def _call(self, request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        token = message["params"]["_meta"]["progressToken"]
        for number, phase in enumerate(self.phases):
            told = {"progressToken": token, "progress": number, "message": phase}
            note = {"jsonrpc": "2.0", "method": "notifications/progress", "params": told}
            await response.write(_event(note))
        self.asked.set()
        if self.result is None and self.error is None:
            await self.deleted.wait()
            return response
        answer = {"error": self.error} if self.error else {"result": self.result}
        await response.write(_event({"jsonrpc": "2.0", "id": message["id"], **answer}))
        return response

    async def delete(self, _request: web.Request) -> web.Response:
        self.deleted.set()
        return web.Response()


def _problem(status: int, message: str) -> web.Response:
    error = {"code": -32600, "message": message}
    return web.json_response({"jsonrpc": "2.0", "id": None, "error": error}, status=status)


def _result(
    message: dict[str, Any], result: Any, headers: Mapping[str, str] | None = None
) -> web.Response:
    body = {"jsonrpc": "2.0", "id": message["id"], "result": result}
    return web.json_response(body, headers=headers)


def _event(message: Any) -> bytes:
    return f"event: message\ndata: {json.dumps(message)}\n\n".encode()


@asynccontextmanager
async def stub() -> AsyncIterator[Stub]:
    """Serve one, as the server `tools`."""
    made = Stub()

    async def get(_request: web.Request) -> web.Response:
        return web.Response(status=405)

    app = web.Application()
    app.router.add_post("/servers/tools/mcp", made.post)
    app.router.add_get("/servers/tools/mcp", get, allow_head=False)
    app.router.add_delete("/servers/tools/mcp", made.delete)
    async with TestServer(app) as server:
        made.url = str(server.make_url("")).rstrip("/")
        try:
            yield made
        finally:
            made.deleted.set()
