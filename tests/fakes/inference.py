"""A scripted OpenAI-compatible server: a real HTTP server that answers what a test wrote down.

Each request takes the next line of the script. A line is what the model says (`says`, `calls`), or
what a broken or hostile server does in its place.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.test_utils import TestServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    Line = Callable[["Asked"], Awaitable[web.StreamResponse]]

KEY = "inf-key-of-the-model"

BOUND = 30.0


@dataclass(frozen=True)
class Asked:
    """A request as it came."""

    request: web.Request
    body: Any

    @property
    def messages(self) -> list[Any]:
        return list(self.body["messages"])

    @property
    def results(self) -> list[str]:
        """What the model is told of its calls."""
        return [each["content"] for each in self.messages if each["role"] == "tool"]


@dataclass
class Inference:
    """The server.

    Attributes:
        url: as INFERENCE_URL has it.
        asked: requests so far.
        left: how many of them were taken back by their client.
    """

    url: str
    script: deque[Line]
    asked: list[Asked] = field(default_factory=list)
    left: int = 0

    async def serve(self, request: web.Request) -> web.StreamResponse:
        asked = Asked(request, await request.json())
        self.asked.append(asked)
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return web.json_response({"error": {"message": "who are you?"}}, status=401)
        if not self.script:
            return web.json_response({"error": {"message": "the script is over"}}, status=400)
        try:
            return await self.script.popleft()(asked)
        except asyncio.CancelledError:
            self.left += 1
            raise


@asynccontextmanager
async def playing(*script: Line) -> AsyncIterator[Inference]:
    """Serve a script until the block is left."""
    app = web.Application()
    server = TestServer(app, handler_cancellation=True)
    played = Inference("", deque(script))
    app.router.add_post("/v1/chat/completions", played.serve)
    async with server:
        played.url = str(server.make_url("")).rstrip("/")
        yield played


# What a model says

_numbers = itertools.count(1)


def completion(message: Mapping[str, Any], reason: str, **more: Any) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{next(_numbers)}",
        "object": "chat.completion",
        "created": 1_748_541_138,
        "model": "claude-4-sonnet",
        "choices": [
            {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason}
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
        **more,
    }


def says(text: str | Callable[[Asked], str], **more: Any) -> Line:
    """An answer: a text, or what is made of the request."""

    async def line(asked: Asked) -> web.StreamResponse:
        content = text if isinstance(text, str) else text(asked)
        return web.json_response(completion({"content": content}, "stop", **more))

    return line


def call(name: str, arguments: Any, call_id: str | None = None) -> dict[str, Any]:
    given = arguments if isinstance(arguments, str) else json.dumps(arguments)
    function = {"name": name, "arguments": given}
    number = next(_numbers)
    return {"id": call_id or f"tooluse_{number}", "type": "function", "function": function}


def calls(*wanted: dict[str, Any], text: str | None = None, **more: Any) -> Line:
    """An answer that wants calls; see `call`."""

    async def line(_asked: Asked) -> web.StreamResponse:
        message = {"content": text, "tool_calls": list(wanted)}
        return web.json_response(completion(message, "tool_calls", **more))

    return line


# What broken and hostile servers do


def sends(body: bytes | str, status: int = 200, **headers: str) -> Line:
    """Anything at all."""

    async def line(_asked: Asked) -> web.StreamResponse:
        raw = body if isinstance(body, bytes) else body.encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(body=raw, status=status, headers=named)

    return line


def refuses(status: int, message: str, **headers: str) -> Line:
    """An error of OpenAI's shape."""
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return sends(json.dumps({"error": error}), status, Content_Type="application/json", **headers)


async def never_ends(asked: Asked) -> web.StreamResponse:
    """A body without an end, as fast as it is taken."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(asked.request)
    while True:
        await response.write(b" " * 65536)


async def hangs(_asked: Asked) -> web.StreamResponse:
    """No answer at all."""
    await asyncio.Event().wait()
    raise AssertionError


def waits(gate: asyncio.Event, then: Line) -> Line:
    """An answer that comes once a gate is open."""

    async def line(asked: Asked) -> web.StreamResponse:
        async with asyncio.timeout(BOUND):
            await gate.wait()
        return await then(asked)

    return line
