"""Streams of a session, and what its story in the log shows and hides.

Raw HTTP against a real gateway: which answers come as JSON and which as events, where a message
goes that belongs to no call, and that no secret and no payload stands in the log or in any
process's command line.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
import psutil
import pytest
import pytest_asyncio

from tests.system.conftest import PLAIN, GatewayProcess, is_alive, watched

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

pytestmark = pytest.mark.timeout(120)

BOUND = 30.0
"""Seconds for one exchange, a boot on a busy machine included."""

BOTH = "application/json, text/event-stream"

PRIMING = re.compile(rb"id: [0-9]+\.[A-Za-z0-9_-]*\nretry: 10000\ndata: \n\n")
"""What a stream begins with, for a client that comes back for the rest of it."""

EVENT = re.compile(rb"id: [0-9]+\.[A-Za-z0-9_-]*\nevent: message\ndata: (.*)\n\n")

TALKER = """
import json, os, sys

def say(*messages):
    lines = [json.dumps({"jsonrpc": "2.0", **message}) + "\\n" for message in messages]
    sys.stdout.write("".join(lines))
    sys.stdout.flush()

def news(arguments):
    return {"method": "notifications/news", "params": {"text": arguments["text"]}}

for line in sys.stdin:
    message = json.loads(line)
    params = message.get("params") or {}
    arguments = params.get("arguments") or {}
    answer = {"id": message.get("id"), "result": {"pid": os.getpid()}}
    if message["method"] == "initialize":
        info = {"name": "talker", "version": "1"}
        result = {"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": info}
        say({"id": message["id"], "result": result})
    elif params.get("name") == "progress":
        token = params["_meta"]["progressToken"]
        step = {"progressToken": token, "progress": 1}
        say({"method": "notifications/progress", "params": step}, answer)
    elif params.get("name") == "announce":
        say(answer, news(arguments))
    elif "id" in message:
        say(answer)
"""
"""A child that speaks up when told: before its answer, or after it, when no call runs."""


@dataclass(frozen=True)
class Talk:
    """One session and how to speak in it."""

    http: aiohttp.ClientSession
    gateway: GatewayProcess
    session: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Mcp-Session-Id": self.session, "MCP-Protocol-Version": "2025-11-25"}

    async def call(self, request_id: int, tool: str, **arguments: Any) -> aiohttp.ClientResponse:
        """Send a call; its progress token is its id."""
        params = {"name": tool, "arguments": arguments, "_meta": {"progressToken": request_id}}
        body = {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params}
        async with self.http.post(self.gateway.url(), json=body, headers=self.headers) as response:
            await response.read()
        return response

    async def pid(self, request_id: int) -> psutil.Process:
        answer = await (await self.call(request_id, "pid")).json()
        return psutil.Process(answer["result"]["pid"])

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[aiohttp.ClientResponse]:
        """Open the GET stream, so far that it is the session's."""
        headers = {**self.headers, "Accept": "text/event-stream"}
        async with self.http.get(self.gateway.url(), headers=headers) as response:
            assert response.status == 200
            async with asyncio.timeout(BOUND):
                primed = await response.content.readuntil(b"\n\n")
            assert PRIMING.fullmatch(primed), primed
            yield response

    async def delete(self) -> int:
        async with self.http.delete(self.gateway.url(), headers=self.headers) as response:
            assert await response.read() == b""
            return response.status


async def initialize(
    http: aiohttp.ClientSession, gateway: GatewayProcess
) -> aiohttp.ClientResponse:
    info = {"name": "streams", "version": "1"}
    params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": info}
    body = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
    async with http.post(gateway.url(), json=body) as response:
        await response.read()
    return response


async def open_session(http: aiohttp.ClientSession, gateway: GatewayProcess) -> Talk:
    hello = await initialize(http, gateway)
    assert hello.status == 200, await hello.text()
    return Talk(http, gateway, hello.headers["Mcp-Session-Id"])


def events(text: bytes) -> list[Any]:
    """The messages of an event stream that has ended; comments and priming are no messages."""
    parts = [part + b"\n\n" for part in text.split(b"\n\n") if part and part[:1] != b":"]
    found = [EVENT.fullmatch(part) for part in parts if not PRIMING.fullmatch(part)]
    assert all(found), text
    return [json.loads(match[1]) for match in found if match]


async def next_event(stream: aiohttp.ClientResponse) -> Any:
    async with asyncio.timeout(BOUND):
        (message,) = events(await stream.content.readuntil(b"\n\n"))
    return message


def news(text: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": "notifications/news", "params": {"text": text}}


def error_of(response: Mapping[str, Any]) -> tuple[int, str]:
    return response["error"]["code"], response["error"]["data"]["reason"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    tmp_path_factory: pytest.TempPathFactory, running: list[GatewayProcess]
) -> AsyncIterator[GatewayProcess]:
    """A gateway whose only server talks when told to."""
    servers = {"talker": {"command": sys.executable, "args": ["-c", TALKER]}}
    process = GatewayProcess(tmp_path_factory.mktemp("streams"), servers, defaults=PLAIN)
    async with watched(process, running):
        yield process


@asynccontextmanager
async def http_for(gateway: GatewayProcess) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {**gateway.headers, "Accept": BOTH}
    timeout = aiohttp.ClientTimeout(total=BOUND)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        yield session


@pytest_asyncio.fixture
async def http(gateway: GatewayProcess) -> AsyncIterator[aiohttp.ClientSession]:
    async with http_for(gateway) as session:
        yield session


@pytest_asyncio.fixture
async def talk(http: aiohttp.ClientSession, gateway: GatewayProcess) -> Talk:
    return await open_session(http, gateway)


# -- the GET stream -------------------------------------------------------------------------------


async def test_get_without_a_session_is_refused(
    http: aiohttp.ClientSession, gateway: GatewayProcess
) -> None:
    async with http.get(gateway.url()) as response:
        assert response.status == 400
        assert error_of(await response.json()) == (-32600, "missing_session")


async def test_get_that_takes_no_events_is_refused(talk: Talk) -> None:
    headers = {**talk.headers, "Accept": "application/json"}
    async with talk.http.get(talk.gateway.url(), headers=headers) as response:
        assert response.status == 406
        assert error_of(await response.json()) == (-32600, "not_acceptable")


async def test_newer_get_stream_ends_the_older_one(talk: Talk) -> None:
    async with talk.listen() as older, talk.listen() as newer:
        async with asyncio.timeout(BOUND):
            assert await older.content.read() == b""
        await talk.call(1, "announce", text="to the newer")
        assert await next_event(newer) == news("to the newer")


async def test_message_outside_a_call_arrives_on_the_get_stream(talk: Talk) -> None:
    async with talk.listen() as stream:
        answer = await talk.call(1, "announce", text="while it listens")
        assert answer.content_type == "application/json"
        assert await next_event(stream) == news("while it listens")


async def test_messages_sent_before_the_get_stream_was_opened_arrive_in_order(talk: Talk) -> None:
    await talk.call(1, "announce", text="before anybody listened")

    def told() -> bool:
        return "news" in str([record.get("method") for record in talk.gateway.story(talk.session)])

    await talk.gateway.until(told, "the gateway has it")  # or the next call's stream takes it
    async with talk.listen() as stream:
        await talk.call(2, "announce", text="afterwards")
        heard = [await next_event(stream), await next_event(stream)]
    assert heard == [news("before anybody listened"), news("afterwards")]


async def test_get_stream_ends_with_its_session(talk: Talk) -> None:
    async with talk.listen() as stream:
        assert await talk.delete() == 204
        async with asyncio.timeout(BOUND):
            assert await stream.content.read() == b""


# -- answers to POST --------------------------------------------------------------------------


async def test_answer_that_nothing_precedes_is_plain_json(talk: Talk) -> None:
    answer = await talk.call(1, "pid")
    assert (answer.status, answer.content_type) == (200, "application/json")
    assert (await answer.json())["id"] == 1


async def test_answer_that_progress_precedes_is_an_event_stream_in_order(talk: Talk) -> None:
    answer = await talk.call(1, "progress")
    assert answer.status == 200
    step = {"progressToken": 1, "progress": 1}
    progress, result = events((await answer.text()).encode())
    assert progress == {"jsonrpc": "2.0", "method": "notifications/progress", "params": step}
    assert (result["id"], list(result["result"])) == (1, ["pid"])


async def test_event_streams_say_that_nobody_may_store_or_buffer_them(talk: Talk) -> None:
    expected = {
        "Content-Type": "text/event-stream",
        "Cache-Control": "no-store",
        "X-Accel-Buffering": "no",
        "Mcp-Session-Id": talk.session,
    }
    post = await talk.call(1, "progress")
    async with talk.listen() as get:
        for response in (post, get):
            assert {name: response.headers.get(name) for name in expected} == expected


async def test_notification_is_accepted_without_a_body(talk: Talk) -> None:
    body = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    async with talk.http.post(talk.gateway.url(), json=body, headers=talk.headers) as response:
        assert (response.status, await response.read()) == (202, b"")


# -- DELETE -------------------------------------------------------------------------------------


async def test_deleted_session_is_unknown(talk: Talk) -> None:
    assert await talk.delete() == 204
    answer = await talk.call(1, "pid")
    assert answer.status == 404
    assert error_of(await answer.json()) == (-32001, "unknown_session")


async def test_second_delete_finds_nothing(talk: Talk) -> None:
    assert await talk.delete() == 204
    async with talk.http.delete(talk.gateway.url(), headers=talk.headers) as response:
        assert response.status == 404


async def test_child_and_agent_are_gone_after_delete(talk: Talk) -> None:
    child = await talk.pid(1)
    agent = child.parent()
    assert agent is not None
    await talk.delete()
    await talk.gateway.until(lambda: not is_alive(child) and not is_alive(agent), "both are gone")


# -- the story in the log -----------------------------------------------------------------------

ARGUMENT, SERVER_ENV = (f"canary-{secrets.token_hex(12)}" for _ in range(2))

UNTIMED = {"idle", "stderr", "message"}
"""Events that a slow machine may or may not show, and those of single messages."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole_life(
    tmp_path_factory: pytest.TempPathFactory, running: list[GatewayProcess]
) -> AsyncIterator[tuple[Talk, list[list[str]]]]:
    """A session from its request to its end, with every command line seen while it lived."""
    env = {"SECRET_OF_THE_SERVER": SERVER_ENV}
    servers = {"talker": {"command": sys.executable, "args": ["-c", TALKER], "env": env}}
    gateway = GatewayProcess(tmp_path_factory.mktemp("life"), servers, defaults=PLAIN)
    gateway.forked = False  # its command line is one of those
    async with watched(gateway, running), http_for(gateway) as http:
        talk = await open_session(http, gateway)
        answer = await talk.call(1, "progress", text=ARGUMENT)
        assert answer.status == 200
        await talk.call(2, "announce", text=ARGUMENT)
        alive = [gateway.process, *gateway.processes()]
        lines = [process.cmdline() for process in alive]
        await talk.delete()
        await gateway.until(lambda: story_of(talk)[-1:] == ["closed"], "the session is closed")
        yield talk, lines


def story_of(talk: Talk) -> list[str]:
    names = [record["event"] for record in talk.gateway.story(talk.session)]
    return [name for name in names if name not in UNTIMED]


async def test_story_of_a_session_is_told_in_order(
    whole_life: tuple[Talk, list[list[str]]],
) -> None:
    talk, _ = whole_life
    assert story_of(talk) == [
        "requested",
        "launching",
        "launched",
        "dialled_in",
        "ready",
        "call",
        "call",
        "call",
        "closing",
        "closed",
    ]


async def test_every_line_of_a_session_names_it(
    whole_life: tuple[Talk, list[list[str]]],
) -> None:
    talk, _ = whole_life
    of_the_gateway = {"serving", "refused", "draining", "stopped"}
    others = [r for r in talk.gateway.records() if r["event"] not in of_the_gateway]
    assert others == talk.gateway.story(talk.session)


async def test_story_names_the_calls_and_the_reason_of_the_end(
    whole_life: tuple[Talk, list[list[str]]],
) -> None:
    talk, _ = whole_life
    story = talk.gateway.story(talk.session)
    calls = [(r["method"], r.get("tool"), r["outcome"]) for r in story if r["event"] == "call"]
    assert calls == [
        ("initialize", None, "ok"),
        ("tools/call", "progress", "ok"),
        ("tools/call", "announce", "ok"),
    ]
    ends = [(r["event"], r["reason"]) for r in story if r["event"] in {"closing", "closed"}]
    assert ends == [("closing", "client_delete"), ("closed", "client_delete")]


async def test_no_secret_and_no_payload_stands_in_the_log(
    whole_life: tuple[Talk, list[list[str]]],
) -> None:
    talk, _ = whole_life
    log = talk.gateway.log()
    assert story_of(talk)  # the log that is searched is the right one
    secrets_planted = (ARGUMENT, SERVER_ENV, talk.gateway.key, talk.session, "rj_", "rr_")
    assert [planted for planted in secrets_planted if planted in log] == []


async def test_no_secret_stands_in_any_command_line(
    whole_life: tuple[Talk, list[list[str]]],
) -> None:
    talk, lines = whole_life
    assert len(lines) == 3, lines  # gateway, agent, child
    secrets_planted = (ARGUMENT, SERVER_ENV, talk.gateway.key, talk.session, "rj_", "rr_")
    words = [word for line in lines for word in line]
    assert [(s, word) for s in secrets_planted for word in words if s in word] == []
