"""Everything that goes wrong is told to the client that must know, and to nobody else.

Raw HTTP against a real gateway with real agents and children. A failure is the HTTP status, the
JSON-RPC code, the reason and the id together; texts are searched for the one fact a person needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import secrets
import socket
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import pytest_asyncio

from tests.system.conftest import PLAIN, GatewayProcess, watched

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

pytestmark = pytest.mark.timeout(120)

BOUND = 40.0
"""Seconds for one HTTP exchange, a boot on a busy machine included."""

LIMIT = 16 * 1024 * 1024
"""Bytes of the largest message, either way."""

OPENING = 1024 * 1024
"""Bytes of the largest message without a session."""

ALICE, BOB = secrets.token_urlsafe(24), secrets.token_urlsafe(24)

CLOSED_SERVER = "no-such-server"
MISSING_COMMAND = "no-such-command-anywhere"
MISSING_FOLDER = "/no/such/folder"
LAST_WORDS = "the last words of the child"
NOISE = "not json {"

RAW_SERVER = f"""
import json, os, sys

held = []

def say(*messages):
    lines = [json.dumps({{"jsonrpc": "2.0", **message}}) + "\\n" for message in messages]
    sys.stdout.write("".join(lines))
    sys.stdout.flush()

def answer(line, message, arguments):
    match (message.get("params") or {{}}).get("name"):
        case "hold":
            held.append(message["id"])
            return None
        case "held":
            return {{"held": len(held)}}
        case "release":
            ids, held[:] = list(held), []
            say(*({{"id": one, "result": {{"released": one}}}} for one in ids))
            return {{"released": ids}}
        case "die":
            sys.stderr.write("{LAST_WORDS}\\n")
            sys.stderr.flush()
            os._exit(7)
        case "flood":
            sys.stdout.write("{NOISE}\\n" * arguments["lines"])
            say({{"method": "notifications/after_the_flood"}})
            return {{}}
        case "big":
            return {{"text": "x" * arguments["bytes"]}}
        case "size":
            return {{"size": len(line)}}
        case _:
            return {{"line": line}}

for line in sys.stdin:
    line = line.removesuffix("\\n")
    message = json.loads(line)
    if message.get("method") == "notifications/cancelled":
        held.remove(message["params"]["requestId"])
    if "id" in message and "method" in message:
        arguments = (message.get("params") or {{}}).get("arguments") or {{}}
        result = answer(line, message, arguments)
        if message["method"] == "initialize":
            info = {{"name": "raw", "version": "1"}}
            result = {{"protocolVersion": "2025-11-25", "capabilities": {{}}, "serverInfo": info}}
        if result is not None:
            say({{"id": message["id"], "result": result}})
"""
"""A child that shows the very line it got, and does what no SDK server does."""

RAW = {"command": sys.executable, "args": ["-c", RAW_SERVER]}


@dataclass(frozen=True)
class Answer:
    """A response, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        found = self.document["error"]
        assert isinstance(found, dict)
        return found

    @property
    def refusal(self) -> tuple[int, int, str, Any]:
        """Status, code, reason and id: what a program goes by."""
        error = self.error
        return self.status, error["code"], error["data"]["reason"], self.document["id"]


class Client:
    """Sends requests as they are told; knows MCP's header names and nothing else of it."""

    def __init__(self, http: aiohttp.ClientSession, gateway: GatewayProcess, key: str) -> None:
        self.http = http
        self.gateway = gateway
        self.headers = {
            "Authorization": f"Bearer {key}",
            "Accept": "application/json, text/event-stream",
            "Content-Type": "application/json",
        }

    async def send(
        self,
        body: Any,
        *,
        server: str | None = None,
        headers: Mapping[str, str | None] | None = None,
        method: str = "POST",
    ) -> Answer:
        """Send a body; bytes and generators go as they are. A header of None is left out."""
        merged = {**self.headers, **(headers or {})}
        async with self.http.request(
            method,
            self.gateway.url(server),
            data=as_payload(body),
            headers={name: value for name, value in merged.items() if value is not None},
            skip_auto_headers=("Accept", "Content-Type"),
        ) as response:
            return Answer(response.status, response.headers, await response.read())

    async def initialize(self, server: str) -> Answer:
        return await self.send(INITIALIZE, server=server)

    async def open(self, server: str) -> Talk:
        hello = await self.initialize(server)
        assert hello.status == 200, hello
        return Talk(self, server, hello.headers["Mcp-Session-Id"])


@dataclass(frozen=True)
class Talk:
    """One session."""

    client: Client
    server: str
    session: str

    async def send(self, body: Any) -> Answer:
        headers = {"Mcp-Session-Id": self.session}
        return await self.client.send(body, server=self.server, headers=headers)

    async def call(self, request_id: int, tool: str, **arguments: Any) -> Answer:
        return await self.send(call(request_id, tool, **arguments))

    async def echo(self, request_id: int) -> None:
        """Show that the session works: one call there and back."""
        sent = call(request_id, "echo")
        answer = await self.send(sent)
        result = {"line": json.dumps(sent)}
        assert (answer.status, answer.document) == (200, ok(request_id, result))

    async def until_held(self, count: int) -> None:
        """Wait until that many calls have reached the child, which keeps them."""
        numbers = iter(range(1000, 2000))

        async def enough() -> bool:
            answer = await self.call(next(numbers), "held")
            return bool(answer.document["result"]["held"] == count)

        await self.client.gateway.until(enough, f"{count} calls reach the child")


def as_payload(body: Any) -> Any:
    """JSON for a document; a file for bytes, because aiohttp warns of many of them."""
    if isinstance(body, dict | list):
        return json.dumps(body)
    return io.BytesIO(body) if isinstance(body, bytes) else body


def call(request_id: int, tool: str, **arguments: Any) -> dict[str, Any]:
    params = {"name": tool, "arguments": arguments}
    return {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params}


def ok(request_id: int, result: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": request_id, "result": result}


INITIALIZE = {
    "jsonrpc": "2.0",
    "id": "hello",
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "raw client", "version": "1"},
    },
}

PING = {"jsonrpc": "2.0", "id": 7, "method": "ping"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    tmp_path_factory: pytest.TempPathFactory,
    running: list[GatewayProcess],
    fixture_server: dict[str, Any],
) -> AsyncIterator[GatewayProcess]:
    """One gateway with two keys and a server for each way to fail."""
    servers: dict[str, dict[str, Any]] = {
        "raw": {**RAW, "default": True},
        "other": RAW,
        "hurried": {**RAW, "call_timeout": 5},
        "mortal": {**RAW, "max_lifetime": 5},
        "idle": {**RAW, "idle_timeout": 1},
        "no-command": {"command": MISSING_COMMAND},
        "no-folder": {**RAW, "cwd": MISSING_FOLDER},
        "crashes": {**fixture_server, "env": {"EVERYTHING_EXIT_AT_START": "3"}},
        "everything": fixture_server,
    }
    folder = tmp_path_factory.mktemp("failures")
    settings = {"API_KEY": f"alice:{ALICE},bob:{BOB}"}
    process = GatewayProcess(folder, servers, settings, defaults=PLAIN)
    async with watched(process, running):
        yield process


@pytest_asyncio.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=BOUND)) as session:
        yield session


@pytest.fixture
def client(http: aiohttp.ClientSession, gateway: GatewayProcess) -> Client:
    return Client(http, gateway, ALICE)


# -- a child that does not start -----------------------------------------------------------------


async def test_command_that_is_not_there_is_named_to_the_client(client: Client) -> None:
    answer = await client.initialize("no-command")
    assert answer.refusal == (502, -32603, "child_not_started", "hello")
    assert MISSING_COMMAND in answer.error["message"]


async def test_working_directory_that_is_not_there_is_named_to_the_client(client: Client) -> None:
    answer = await client.initialize("no-folder")
    assert answer.refusal == (502, -32603, "child_not_started", "hello")
    assert MISSING_FOLDER in answer.error["message"]


async def test_crash_at_start_is_answered_with_exit_code_and_last_stderr_lines(
    client: Client,
) -> None:
    answer = await client.initialize("crashes")
    assert answer.refusal == (502, -32603, "child_exited", "hello")
    assert answer.error["data"] == {"reason": "child_exited", "exit_code": 3, "signal": None}
    assert "everything: told to fail by the environment" in answer.error["message"]
    assert "exit code 3" in answer.error["message"]


async def test_failed_initialize_hands_out_no_session_key(client: Client) -> None:
    answer = await client.initialize("crashes")
    assert "Mcp-Session-Id" not in answer.headers


async def test_agent_that_never_dials_back_is_told_as_start_timeout_and_leaves_nothing(
    make_gateway: Callable[..., GatewayProcess], http: aiohttp.ClientSession
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # taken and not listening: every dial is refused
        settings = {"GATEWAY_URL": f"http://127.0.0.1:{closed.getsockname()[1]}"}
        servers = {"raw": {**RAW, "boot_timeout": 1}}
        async with make_gateway(servers, settings) as gateway:
            answer = await Client(http, gateway, gateway.key).initialize("raw")
            assert answer.refusal == (504, -32603, "start_timeout", "hello")
            assert "GATEWAY_URL" in answer.error["message"]
            await gateway.until(lambda: not gateway.processes(), "the agent is stopped")


# -- a child that dies or misbehaves ------------------------------------------------------------


async def test_all_calls_in_flight_are_answered_when_the_child_exits(client: Client) -> None:
    talk = await client.open("raw")
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
        held = [group.create_task(talk.call(number, "hold")) for number in (1, 2)]
        await talk.until_held(2)
        killer = await talk.call(3, "die")
    answers = [*(task.result() for task in held), killer]
    assert [answer.refusal for answer in answers] == [
        (502, -32603, "child_exited", number) for number in (1, 2, 3)
    ]
    assert [answer.error["data"]["exit_code"] for answer in answers] == [7, 7, 7]
    assert all(LAST_WORDS in answer.error["message"] for answer in answers)


async def test_session_of_a_child_that_exited_is_unknown(client: Client) -> None:
    talk = await client.open("raw")
    await talk.call(1, "die")
    answer = await talk.call(2, "echo")
    assert answer.refusal == (404, -32001, "unknown_session", 2)


async def test_exit_of_a_child_leaves_other_sessions_of_its_server_alone(client: Client) -> None:
    talk, bystander = await client.open("raw"), await client.open("raw")
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
        held = group.create_task(bystander.call(1, "hold"))
        await bystander.until_held(1)
        await talk.call(1, "die")
        await bystander.call(2, "release")
    assert held.result().document == ok(1, {"released": 1})
    await bystander.echo(3)


async def test_crash_of_an_sdk_server_in_a_call_is_answered_with_its_exit_code(
    client: Client,
) -> None:
    talk = await client.open("everything")
    await talk.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
    answer = await talk.call(1, "crash", code=9)
    assert answer.refusal == (502, -32603, "child_exited", 1)
    assert answer.error["data"]["exit_code"] == 9


async def test_flood_of_text_on_stdout_reaches_no_client(client: Client) -> None:
    talk = await client.open("raw")
    answer = await talk.call(1, "flood", lines=5000)
    after = {"jsonrpc": "2.0", "method": "notifications/after_the_flood"}
    assert messages(answer) == [after, ok(1, {})]
    await talk.echo(2)
    noise = [r for r in client.gateway.story(talk.session) if r["event"] == "stdout_noise"]
    assert [record["total"] for record in noise] == [2**n for n in range(13)]  # up to 4096


def messages(answer: Answer) -> list[Any]:
    """The messages of an event stream; anything else but comments fails."""
    assert answer.headers["Content-Type"] == "text/event-stream"
    events = [part for part in answer.body.split(b"\n\n") if part and not part.startswith(b":")]
    ids, heads, datas = zip(*(event.split(b"\n") for event in events), strict=True)
    assert all(identity.startswith(b"id: ") for identity in ids)
    assert set(heads) == {b"event: message"}
    return [json.loads(data.removeprefix(b"data: ")) for data in datas]


async def test_message_of_a_child_over_the_limit_ends_the_call_and_not_the_session(
    client: Client,
) -> None:
    talk = await client.open("raw")
    answer = await talk.call(1, "big", bytes=LIMIT)
    assert answer.refusal == (502, -32603, "answer_too_big", 1)
    assert str(LIMIT) in answer.error["message"]
    await talk.echo(2)


# -- a body that is too big ---------------------------------------------------------------------


def padded(request_id: int, size: int) -> bytes:
    """A request of exactly so many bytes."""
    bare = json.dumps(call(request_id, "size", padding="")).encode()
    padding = b"x" * (size - len(bare))
    return bare.replace(b'"padding": ""', b'"padding": "%b"' % padding)


async def in_chunks(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 1024 * 1024):
        yield body[start : start + 1024 * 1024]


async def test_body_of_exactly_the_limit_reaches_the_child(client: Client) -> None:
    talk = await client.open("raw")
    answer = await talk.send(padded(1, LIMIT))
    assert answer.document == ok(1, {"size": LIMIT})


@pytest.mark.parametrize("chunked", [False, True], ids=["with-length", "chunked"])
@pytest.mark.parametrize(
    ("opened", "limit"), [(True, LIMIT), (False, OPENING)], ids=["in-a-session", "opening-one"]
)
async def test_body_over_the_limit_is_refused_with_the_limit(
    client: Client, chunked: bool, opened: bool, limit: int
) -> None:
    sender = await client.open("raw") if opened else client
    body = padded(1, limit + 1)
    answer = await sender.send(in_chunks(body) if chunked else body)
    assert answer.refusal == (413, -32600, "message_too_big", None)
    assert answer.error["data"] == {"reason": "message_too_big", "limit": limit}
    assert str(limit) in answer.error["message"]


async def test_body_over_the_limit_leaves_its_session_alone(client: Client) -> None:
    talk = await client.open("raw")
    assert (await talk.send(padded(1, LIMIT + 1))).status == 413
    await talk.echo(1)


# -- sessions -------------------------------------------------------------------------------------


async def test_unknown_session_is_404(client: Client) -> None:
    answer = await client.send(PING, headers={"Mcp-Session-Id": "nobody"})
    assert answer.refusal == (404, -32001, "unknown_session", 7)


@pytest.mark.parametrize(
    ("server", "key"), [("raw", BOB), ("other", ALICE)], ids=["other-principal", "other-server"]
)
@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
async def test_foreign_session_looks_like_an_unknown_one(
    client: Client, server: str, key: str, method: str
) -> None:
    talk = await client.open("raw")
    stranger = Client(client.http, client.gateway, key)
    foreign, unknown = [
        await stranger.send(PING, server=server, headers={"Mcp-Session-Id": name}, method=method)
        for name in (talk.session, "nobody")
    ]
    assert foreign.status == 404
    assert (foreign.status, foreign.body) == (unknown.status, unknown.body)
    assert undated(foreign) == undated(unknown)
    await talk.echo(1)


def undated(answer: Answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name != "Date"}


async def test_request_without_a_session_is_told_to_initialize(client: Client) -> None:
    answer = await client.send(PING)
    assert answer.refusal == (400, -32600, "missing_session", 7)
    assert "initialize" in answer.error["message"]


async def test_session_beyond_the_limit_is_refused_until_later(
    make_gateway: Callable[..., GatewayProcess], http: aiohttp.ClientSession
) -> None:
    async with make_gateway({"raw": RAW}, {"MAX_SESSIONS": "1"}) as gateway:
        client = Client(http, gateway, gateway.key)
        talk = await client.open("raw")
        answer = await client.initialize("raw")
        assert answer.refusal == (503, -32603, "busy", "hello")
        assert int(answer.headers["Retry-After"]) > 0
        assert "MAX_SESSIONS" in answer.error["message"]
        await talk.echo(1)


async def test_id_in_flight_is_refused_and_its_call_goes_on(client: Client) -> None:
    talk = await client.open("raw")
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
        held = group.create_task(talk.call(5, "hold"))
        await talk.until_held(1)
        answer = await talk.call(5, "echo")
        await talk.call(6, "release")
    assert answer.refusal == (400, -32600, "duplicate_id", 5)
    assert held.result().document == ok(5, {"released": 5})


async def test_response_to_a_request_that_nobody_made_is_refused(client: Client) -> None:
    talk = await client.open("raw")
    answer = await talk.send({"jsonrpc": "2.0", "id": 99, "result": {}})
    assert answer.refusal == (400, -32600, "bad_message", 99)


async def test_pretty_printed_body_reaches_the_child_as_one_message(client: Client) -> None:
    talk = await client.open("raw")
    sent = call(1, "echo", text="a\nb")
    answer = await talk.send(json.dumps(sent, indent=2).replace("\n", "\r\n").encode())
    assert json.loads(answer.document["result"]["line"]) == sent


async def test_call_beyond_its_time_is_ended_and_its_session_goes_on(client: Client) -> None:
    talk = await client.open("hurried")
    answer = await talk.call(1, "hold")
    assert answer.refusal == (504, -32603, "call_timeout", 1)
    assert "call_timeout" in answer.error["message"]
    await talk.echo(2)


async def test_session_at_the_end_of_its_life_answers_its_call_and_is_gone(client: Client) -> None:
    talk = await client.open("mortal")
    answer = await talk.call(1, "hold")
    assert answer.refusal == (502, -32603, "session_ended", 1)
    assert "max_lifetime" in answer.error["message"]
    assert (await talk.call(2, "echo")).refusal == (404, -32001, "unknown_session", 2)
    assert closing(client.gateway, talk) == ["lifetime"]


async def test_idle_session_ends_with_that_reason(client: Client) -> None:
    talk = await client.open("idle")
    await client.gateway.until(lambda: closing(client.gateway, talk), "the session ends")
    assert closing(client.gateway, talk) == ["idle"]
    assert (await talk.call(2, "echo")).refusal == (404, -32001, "unknown_session", 2)


def closing(gateway: GatewayProcess, talk: Talk) -> list[str]:
    return [r["reason"] for r in gateway.story(talk.session) if r["event"] == "closing"]


async def test_client_that_hangs_up_stops_neither_its_call_nor_any_other(client: Client) -> None:
    talk = await client.open("raw")
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
        leaver = group.create_task(talk.call(1, "hold"))
        other = group.create_task(talk.call(2, "hold"))
        await talk.until_held(2)
        leaver.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await leaver
        released = await talk.call(3, "release")
    assert sorted(released.document["result"]["released"]) == [1, 2]
    assert other.result().document == ok(2, {"released": 2})
    await talk.echo(4)


# -- requests that are refused at the door --------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """What is sent, and the answer: status, code, reason, and the id once the body is read."""

    expected: tuple[int, int, str]
    request_id: int | None = None
    headers: Mapping[str, str | None] = field(default_factory=dict)
    body: Any = field(default_factory=lambda: PING)
    server: str | None = None


BAD_JSON, BAD_MESSAGE = (400, -32700, "bad_json"), (400, -32600, "bad_message")
FOREIGN = (403, -32600, "foreign_origin")
UNSUPPORTED_MEDIA = (415, -32600, "unsupported_media")

REFUSED = {
    "bad-key": Case((401, -32600, "bad_key"), headers={"Authorization": "Bearer wrong"}),
    "bad-x-api-key": Case(
        (401, -32600, "bad_key"), headers={"Authorization": None, "X-API-Key": "wrong"}
    ),
    "no-key": Case((401, -32600, "bad_key"), headers={"Authorization": None}),
    "other-scheme": Case((401, -32600, "bad_key"), headers={"Authorization": f"Basic {ALICE}"}),
    "accept-json-alone": Case(
        (406, -32600, "not_acceptable"), headers={"Accept": "application/json"}
    ),
    "accept-sse-alone": Case(
        (406, -32600, "not_acceptable"), headers={"Accept": "text/event-stream"}
    ),
    "accept-html": Case((406, -32600, "not_acceptable"), headers={"Accept": "text/html"}),
    "text-body": Case(UNSUPPORTED_MEDIA, headers={"Content-Type": "text/plain"}),
    "untyped-body": Case(UNSUPPORTED_MEDIA, headers={"Content-Type": None}),
    "encoded-body": Case(
        UNSUPPORTED_MEDIA, headers={"Content-Encoding": "gzip"}, body=gzip.compress(b"{}")
    ),
    "half-a-document": Case(BAD_JSON, body=b'{"jsonrpc": "2.0", "id": 7'),
    "empty-body": Case(BAD_JSON, body=b""),
    "not-utf-8": Case(
        BAD_JSON, body=b'{"jsonrpc": "2.0", "id": 7, "method": "x", "params": {"a": "\xff"}}'
    ),
    "deep-nesting": Case(BAD_JSON, body=b'{"params": %b}' % (b"[" * 100_000 + b"]" * 100_000)),
    "batch": Case(BAD_MESSAGE, headers={"MCP-Protocol-Version": "2025-06-18"}, body=[PING, PING]),
    "empty-batch": Case(BAD_MESSAGE, body=[]),
    "string": Case(BAD_MESSAGE, body=b'"ping"'),
    "empty-object": Case(BAD_MESSAGE, body={}),
    "json-rpc-1.0": Case(BAD_MESSAGE, body={**PING, "jsonrpc": "1.0"}),
    "id-null": Case(BAD_MESSAGE, body={**PING, "id": None}),
    "id-fraction": Case(BAD_MESSAGE, body={**PING, "id": 1.5}),
    "request-and-response": Case(BAD_MESSAGE, 7, body={**PING, "result": {}}),
    "result-and-error": Case(
        BAD_MESSAGE, 7, body={"jsonrpc": "2.0", "id": 7, "result": 1, "error": 1}
    ),
    "revision-not-served": Case(
        (400, -32022, "unsupported_revision"), headers={"MCP-Protocol-Version": "1999-12-31"}
    ),
    "foreign-origin": Case(FOREIGN, headers={"Origin": "https://evil.example"}),
    "opaque-origin": Case(FOREIGN, headers={"Origin": "null"}),
    "malformed-origin": Case(FOREIGN, headers={"Origin": "http://["}),
    "foreign-host": Case(FOREIGN, headers={"Host": "evil.example"}),
    "malformed-host": Case(FOREIGN, headers={"Host": "["}),
    "unknown-server": Case((404, -32600, "unknown_server"), server=CLOSED_SERVER),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=list(REFUSED))
async def test_request_is_refused_with_status_code_and_reason(client: Client, case: Case) -> None:
    answer = await client.send(case.body, headers=case.headers, server=case.server)
    assert answer.refusal == (*case.expected, case.request_id)
    assert answer.headers["Content-Type"].split(";")[0] == "application/json"


@pytest.mark.parametrize("key", ["Bearer wrong", None], ids=["bad-key", "no-key"])
async def test_401_says_how_to_authenticate(client: Client, key: str | None) -> None:
    answer = await client.send(PING, headers={"Authorization": key})
    assert answer.headers["WWW-Authenticate"].split(" ")[0] == "Bearer"


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_key_is_asked_for_by_every_method(client: Client, method: str) -> None:
    answer = await client.send(None, headers={"Authorization": None}, method=method)
    assert answer.refusal == (401, -32600, "bad_key", None)


async def test_x_api_key_lets_in(client: Client) -> None:
    answer = await client.send(PING, headers={"Authorization": None, "X-API-Key": ALICE})
    assert answer.refusal == (400, -32600, "missing_session", 7)


async def test_origin_of_the_gateway_itself_is_let_in(client: Client) -> None:
    answer = await client.send(PING, headers={"Origin": client.gateway.origin})
    assert answer.refusal == (400, -32600, "missing_session", 7)


async def test_revision_not_served_is_answered_with_those_that_are(client: Client) -> None:
    answer = await client.send(PING, headers={"MCP-Protocol-Version": "1999-12-31"})
    assert answer.error["data"] == {
        "reason": "unsupported_revision",
        "supported": ["2026-07-28", "2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"],
        "requested": "1999-12-31",
    }


async def test_unknown_server_is_answered_with_those_that_exist(client: Client) -> None:
    answer = await client.send(PING, server=CLOSED_SERVER)
    known = "crashes, everything, hurried, idle, mortal, no-command, no-folder, other, raw"
    assert known in answer.error["message"]
    assert CLOSED_SERVER in answer.error["message"]


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
async def test_other_methods_are_not_allowed(client: Client, method: str) -> None:
    answer = await client.send(PING, method=method)
    assert answer.status == 405
    assert answer.headers["Allow"] == "DELETE,GET,OPTIONS,POST"
