"""One scripted conversation, spoken to a child on its stdio or to a gateway over HTTP.

A script is a list of steps; both sides write the very bytes of the script and record the very
bytes that come back: for each step its frames in order, and apart from them the loose ones, which
belong to no request. What a recording means is its test's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from msgspec import Raw

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence

    import aiohttp

BOUND = 30.0
"""Seconds for one step, a boot on a busy machine included."""

LINE_LIMIT = 4 * 1024 * 1024
"""Bytes of one line or event."""

MODERN = "2026-07-28"

SESSION = "Mcp-Session-Id"

LOOSE = ("/list_changed", "/updated")
"""How the methods of notifications end that belong to no request."""

NAMED = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}

SEALED = ("requestState", "nextCursor")
"""Words that the gateway seals for a client of 2026-07-28."""

MIRROR = r"""
import json, sys
PREFIX = "io.modelcontextprotocol/"
REVISIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
held, cancelled, listens, uris = [], [], {}, []
def say(text):
    sys.stdout.buffer.write(text.encode() + b"\n")
    sys.stdout.buffer.flush()
def raw(line, key):
    start = line.index('"%s"' % key) + len(key) + 2
    start = line.index(":", start) + 1
    while line[start] in " \t":
        start += 1
    return line[start : json.JSONDecoder().raw_decode(line, start)[1]]
def answer(request, result):
    say('{"result":%s , "jsonrpc":"2.0","id":%s}' % (result, json.dumps(request)))
def tell(method, params):
    say(json.dumps({"jsonrpc": "2.0", "method": method, "params": params}))
def call(request, line, params, meta):
    name, token = params.get("name"), meta.get("progressToken")
    if name == "echo":
        answer(request, '{"content" : [],"structuredContent":{"echo":%s},"n":1.0E+2,"n":1e400}'
               % raw(line, "arguments"))
    elif name == "hold":
        held.append(request)
        tell("notifications/progress", {"progressToken": token, "progress": 1, "total": 1.50})
    elif name == "cancelled":
        answer(request, '{"content":[],"structuredContent":{"cancelled":%d}}' % len(cancelled))
    elif name == "touch":
        for uri in uris:
            tell("notifications/resources/updated", {"uri": uri})
        for listen in listens:
            tag = {PREFIX + "subscriptionId": listen}
            for uri in listens[listen]:
                tell("notifications/resources/updated", {"_meta": tag, "uri": uri})
        answer(request, '{"content":[]}')
    else:
        say('{"jsonrpc":"2.0","error":{"code":-32602,"message":"n\\u00f6 \\ud83d\\ude00 such",'
            '"data":{"b":1,"a":[ ]}},"id":%s}' % json.dumps(request))
def page(request, params, key, item):
    number = int(params.get("cursor", "0").partition("-")[0])
    more = ',"nextCursor":"%d-x"' % (number + 1) if number < 2 else ""
    answer(request, '{"%s":[%s]%s}' % (key, item % number, more))
for line in sys.stdin.buffer:
    line = line.decode().rstrip("\n")
    message = json.loads(line)
    method, request = message.get("method"), message.get("id")
    params = message.get("params") or {}
    meta = params.get("_meta") or {}
    able = ('{"tools":{"listChanged":true},"resources":{"subscribe":true},"logging":{},'
            '"experimental":{"z":{},"a":{"n":18446744073709551617}}}')
    if method == "initialize":
        wanted = params["protocolVersion"]
        answer(request, '{"protocolVersion":"%s","capabilities":%s,"serverInfo":'
               '{"version":"1","name":"mirr\\u00f6r"},"instructions":"a\\/b"}'
               % (wanted if wanted in REVISIONS else REVISIONS[-1], able))
    elif method == "server/discover":
        answer(request, '{"supportedVersions":["2026-07-28"],"resultType":"complete","ttlMs":0,'
               '"cacheScope":"private","capabilities":%s}' % able)
    elif method == "tools/list":
        answer(request, '{"tools":[{"name":"echo","inputSchema":{"type":"object", "x":1.0}},'
               '{"inputSchema":{"type":"object"},"name":"hold"}],"_meta":{"q":-0.0}}')
    elif method == "resources/list":
        page(request, params, "resources", '{"uri":"mirror://%d","name":"\\u0041"}')
    elif method == "resources/templates/list":
        answer(request, '{"resourceTemplates":[]}')
    elif method == "tools/call":
        call(request, line, params, meta)
    elif method == "resources/subscribe":
        uris.append(params["uri"])
        answer(request, "{}")
    elif method == "subscriptions/listen":
        wanted = params["notifications"]
        listens[request] = wanted.get("resourceSubscriptions", [])
        tag = {PREFIX + "subscriptionId": request}
        tell("notifications/subscriptions/acknowledged", {"_meta": tag, "notifications": wanted})
    elif method == "notifications/cancelled" and params["requestId"] in held:
        cancelled.append(held.remove(params["requestId"]))
    elif method in ("ping", "logging/setLevel"):
        answer(request, "{}")
    elif request is not None and method is not None:
        say('{"jsonrpc":"2.0","id":%s,"error":{"message":"Method not found","code":-32601}}'
            % json.dumps(request))
"""
"""Source of a server of both eras that says what no SDK would, and echoes raw bytes. It is its own
witness for cancelled calls (`cancelled`) and updates what is subscribed to (`touch`)."""

MIRROR_COMMAND = (sys.executable, "-ISc", MIRROR)


@dataclass(frozen=True)
class Ask:
    """A request, until its answer. In 2026-07-28 an answer that asks for input is met.

    Attributes:
        params: as JSON text, kept as it is; of 2026-07-28 without `_meta`.
        token: progress token, None for no progress.
        parts: `_meta` beside token and revision.
        until: nothing but this many frames is awaited, then the request is cancelled.
        during: is asked before that, and has to cause a loose frame.
        follow: ask for the next pages, too.
    """

    method: str
    params: str = "{}"
    token: str | int | None = None
    parts: Mapping[str, Any] = field(default_factory=dict)
    until: int = 0
    during: Ask | None = None
    follow: bool = False


@dataclass(frozen=True)
class Tell:
    """A notification."""

    method: str
    params: str = "{}"


@dataclass(frozen=True)
class Script:
    """What one client says.

    Attributes:
        revision: that it speaks.
        capabilities: of the client.
        answers: result by method that the server may ask for.
    """

    revision: str
    steps: Sequence[Ask | Tell]
    capabilities: Mapping[str, Any] = field(default_factory=dict)
    answers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def modern(self) -> bool:
        return self.revision == MODERN

    def opening(self) -> list[Ask | Tell]:
        """The steps that a revision begins with."""
        if self.modern:
            return [Ask("server/discover")]
        facts = {
            "protocolVersion": self.revision,
            "capabilities": self.capabilities,
            "clientInfo": {"name": "transcript", "version": "1"},
        }
        return [Ask("initialize", json.dumps(facts)), Tell("notifications/initialized")]

    def request(self, number: str | int, step: Ask, more: str = "") -> bytes:
        """Write a request; odd white space is part of it."""
        meta: dict[str, Any] = dict(step.parts)
        if step.token is not None:
            meta["progressToken"] = step.token
        if self.modern:
            prefix = "io.modelcontextprotocol/"
            meta[f"{prefix}protocolVersion"] = self.revision
            meta[f"{prefix}clientCapabilities"] = self.capabilities
        own = step.params.strip()[1:-1].strip()
        said = [own] if own else []
        said += [f'"_meta":{json.dumps(meta)}'] if meta else []
        said += [more] if more else []
        head = f'{{"jsonrpc": "2.0",  "id":{json.dumps(number)},"method":"{step.method}"'
        return f'{head},"params":{{{",".join(said)}}}}}'.encode()


@dataclass
class Recording:
    """What came back.

    Attributes:
        turns: frames by step; in order, without the loose ones.
        loose: those.
        asked: how many steps were requests.
    """

    turns: list[list[bytes]] = field(default_factory=list)
    loose: list[bytes] = field(default_factory=list)
    asked: int = 0

    def keep(self, frames: list[bytes]) -> None:
        """Keep what one step has brought."""
        self.turns.append([frame for frame in frames if not is_loose(frame)])
        self.loose += [frame for frame in frames if is_loose(frame)]


class Line(Protocol):
    """A way to the child."""

    def asking(self, raw: bytes, step: Ask) -> contextlib.AbstractAsyncContextManager[Frames]:
        """Send a request; leaving early cancels it."""
        ...

    async def tell(self, raw: bytes) -> None:
        """Send a notification, or an answer."""
        ...


class Frames(Protocol):
    """What comes back for one request."""

    async def next(self) -> bytes:
        """Return the next frame."""
        ...


def members(raw: bytes) -> dict[str, bytes]:
    """Take an object apart, its members as they were written."""
    found = msgspec.json.decode(raw, type=dict[str, Raw])
    return {key: bytes(value) for key, value in found.items()}


def pairs(raw: bytes) -> Any:
    """Decode so that order, repeated keys and the spelling of numbers can be compared."""
    return json.loads(raw, object_pairs_hook=tuple, parse_int=str, parse_float=str)


def is_loose(frame: bytes) -> bool:
    method = json.loads(frame).get("method", "")
    return isinstance(method, str) and method.endswith(LOOSE)


async def play(
    script: Script, steps: Iterable[Ask | Tell], line: Line, recording: Recording
) -> None:
    """Speak some steps of a script."""
    player = _Player(script, line, recording)
    for step in steps:
        async with asyncio.timeout(BOUND):
            if isinstance(step, Ask):
                await player.ask(step)
            else:
                text = f'{{"jsonrpc":"2.0","method":"{step.method}","params":{step.params}}}'
                await line.tell(text.encode())


def _numbers(step: int) -> Iterator[str | int]:
    """The ids of one step's requests: those of later steps do not depend on how many it takes."""
    return (100 * step + n if step % 2 else f"\u00e9/{step}/{n}" for n in count())


@dataclass(frozen=True)
class _Player:
    script: Script
    line: Line
    recording: Recording

    async def ask(self, step: Ask) -> None:
        self.recording.asked += 1
        numbers = _numbers(self.recording.asked)
        frames = await self._exchange(step, next(numbers))
        while more := _continuation(self.script, step, frames[-1]):
            frames += await self._exchange(step, next(numbers), more)
        self.recording.keep(frames)

    async def _exchange(self, step: Ask, number: str | int, more: str = "") -> list[bytes]:
        found: list[bytes] = []
        async with self.line.asking(self.script.request(number, step, more), step) as frames:
            while not step.until or len(found) < step.until:
                found.append(await frames.next())
                answer = members(found[-1])
                if "method" not in answer:
                    assert json.loads(answer["id"]) == number, found
                    break
                if "id" in answer:
                    await self.line.tell(self._answer(answer))
            if step.during is not None:
                before = len(self.recording.loose)
                await self.ask(step.during)
                if len(self.recording.loose) == before:
                    self.recording.loose.append(await frames.next())
        return found

    def _answer(self, asked: dict[str, bytes]) -> bytes:
        result = json.dumps(self.script.answers[json.loads(asked["method"])]).encode()
        return b'{"jsonrpc":"2.0","id":%s,"result":%s}' % (asked["id"], result)


def _continuation(script: Script, step: Ask, frame: bytes) -> str:
    """Return what the same request has to say more when it is sent again; empty if it is not."""
    result = json.loads(frame).get("result", {})
    if step.follow and (cursor := result.get("nextCursor")):
        return f'"cursor":{json.dumps(cursor)}'
    if result.get("resultType") != "input_required":
        return ""
    asked = result.get("inputRequests") or {}
    given = {key: script.answers[ask["method"]] for key, ask in asked.items()}
    state = {"requestState": result["requestState"]} if "requestState" in result else {}
    return json.dumps({"inputResponses": given, **state})[1:-1]


def _cancelled(raw: bytes) -> bytes:
    number = members(raw)["id"]
    return (
        b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":%s}}' % number
    )


# Directly


class Stdio:
    """A child's stdio."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout

    @contextlib.asynccontextmanager
    async def asking(self, raw: bytes, step: Ask) -> AsyncIterator[Frames]:
        await self.tell(raw)
        yield self
        if step.until:
            await self.tell(_cancelled(raw))

    async def next(self) -> bytes:
        line = await self._stdout.readline()
        assert line.endswith(b"\n"), "the child has left"
        return line[:-1]

    async def tell(self, raw: bytes) -> None:
        self._stdin.write(raw + b"\n")
        await self._stdin.drain()


async def direct(command: Iterable[str], script: Script) -> Recording:
    """Speak a script to a child of our own."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        limit=LINE_LIMIT,
    )
    recording = Recording()
    try:
        steps = (*script.opening(), *script.steps)
        await play(script, steps, Stdio(process), recording)
        return recording
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]


# Through a gateway


class Http:
    """An MCP endpoint of a gateway, without any help of a client library."""

    def __init__(self, http: aiohttp.ClientSession, url: str, script: Script) -> None:
        self._http, self._url, self._script = http, url, script
        self._session: dict[str, str] = {}
        self.loose: list[bytes] = []

    def _headers(self, raw: bytes) -> dict[str, str]:
        message = json.loads(raw)
        if not self._session and message.get("method") == "initialize":
            return {}
        headers = {"MCP-Protocol-Version": self._script.revision, **self._session}
        if self._script.modern:
            method = message["method"]
            headers["Mcp-Method"] = method
            if method in NAMED:
                headers["Mcp-Name"] = message["params"][NAMED[method]]
        return headers

    def _post(self, raw: bytes) -> Any:
        headers = {**self._headers(raw), "Content-Type": "application/json"}
        return self._http.post(self._url, data=raw, headers=headers)

    @contextlib.asynccontextmanager
    async def asking(self, raw: bytes, step: Ask) -> AsyncIterator[Frames]:
        async with self._post(raw) as response:
            if SESSION in response.headers:
                self._session = {SESSION: response.headers[SESSION]}
            yield Events(response)
            if step.until:
                response.close()
        if step.until and not self._script.modern:
            await self.tell(_cancelled(raw))

    async def tell(self, raw: bytes) -> None:
        async with self._post(raw) as response:
            assert response.status == 202, await response.text()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Keep what comes on the stream for messages that belong to no request."""
        headers = {"MCP-Protocol-Version": self._script.revision, **self._session}
        headers["Accept"] = "text/event-stream"
        async with (
            self._http.get(self._url, headers=headers) as response,
            asyncio.TaskGroup() as tasks,
        ):
            assert response.status == 200, await response.text()
            hearing = tasks.create_task(self._hear(Events(response)))
            yield
            hearing.cancel()

    async def _hear(self, events: Events) -> None:
        while True:
            self.loose.append(await events.next())


class Events:
    """The messages of one response, be it JSON or a stream."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def next(self) -> bytes:
        if self._response.content_type == "application/json":
            return await self._response.read()
        while line := await self._response.content.readline():
            if line.startswith(b"data: ") and (data := line[6:].rstrip(b"\n")):
                return data
        raise AssertionError("the stream has ended")


async def through(
    http: aiohttp.ClientSession, url: str, script: Script, loose: int = 0
) -> Recording:
    """Speak a script to a gateway.

    Args:
        http: lets it in.
        url: of the server's endpoint.
        script: what to say.
        loose: how many frames of no request to wait for at the end.
    """
    line, recording = Http(http, url, script), Recording()
    if script.modern:
        await play(script, (*script.opening(), *script.steps), line, recording)
        return recording
    await play(script, script.opening(), line, recording)
    async with line.listening():
        await play(script, script.steps, line, recording)
        async with asyncio.timeout(BOUND):
            while len(recording.loose) + len(line.loose) < loose:  # noqa: ASYNC110 - a test's wait
                await asyncio.sleep(0.01)
    recording.loose += line.loose
    async with http.delete(url, headers=line._session):
        return recording
