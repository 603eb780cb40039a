"""Anything at all in requests of 2026-07-28, and in what the child that serves them says.

What a client may send and what a hostile child may answer, drawn by hypothesis. Whatever it is: the
gateway answers in time and never with an error of its own, what its child gets is one line of JSON
under an id of the gateway's own, callers get nothing that is somebody else's, a good request is
served right after, and nothing is kept. HYPOTHESIS_PROFILE=nightly draws more, and at random.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec
import pytest
import pytest_asyncio
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict
from yarl import URL

from dyno_agent.link import Channel
from gateway.registry.servers import ServerDefinition
from gateway.sessions.live import SharedLive
from gateway.sessions.terms import Terms
from tests.fakes.house import BOUND, SECRET, Agent, House, Stream, eventually, opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import aiohttp

NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE", "default") == "nightly"

FUZZ = settings(
    max_examples=5000 if NIGHTLY else 120,
    derandomize=not NIGHTLY,
    print_blob=NIGHTLY,
    database=None,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),  # the gateway of a test serves all its examples
)

pytestmark = [
    pytest.mark.timeout(3600 if NIGHTLY else 240),
    pytest.mark.no_cover,  # counting lines takes as long as the tests; others count them
    pytest.mark.filterwarnings("ignore:Generating overly large repr"),  # of what a child says
]

REVISION = "2026-07-28"
PREFIX = "io.modelcontextprotocol/"
LISTEN = "subscriptions/listen"

SERVERS = (
    ServerDefinition(name="patient", command="never-run", era="modern", catalogue=False),
    ServerDefinition(
        name="apart", command="never-run", era="modern", catalogue=False, isolation="handle"
    ),
)

Headers = list[tuple[str, str]]


class Line(msgspec.Struct):
    """What the child has to know of a message."""

    id: int | str | None = None
    method: str = ""


# -- the arena ------------------------------------------------------------------------------------


@dataclass(repr=False)
class Arena:
    """A gateway, and children that answer whatever they are asked unless a test takes over."""

    house: House
    log: list[Any]
    asked: asyncio.Queue[tuple[Agent, Line]] = field(default_factory=lambda: asyncio.Queue(1000))
    polite: bool = True
    ids: set[tuple[str, int]] = field(default_factory=set)

    async def keep_dynos(self) -> None:
        """Give every session its dyno."""
        async with asyncio.TaskGroup() as children:
            while True:
                order = await self.house.launcher.orders.get()
                agent = await self.house.join(order)
                await agent.send(Channel.EVENT, {"event": "spawned", "pid": 1})
                children.create_task(self.serve(agent))

    async def serve(self, agent: Agent) -> None:
        """Be a child. A line that is none, or an id that came before, ends the test."""
        while True:
            payload = (await agent._inbox.get()).payload
            if b'"do":"stop"' in payload:
                return
            assert b"\n" not in payload
            assert b"\r" not in payload
            payload.decode()
            line = msgspec.json.decode(payload, type=Line)
            if line.id is None or not line.method:
                continue
            assert isinstance(line.id, int)
            assert (agent.launch_id, line.id) not in self.ids
            self.ids.add((agent.launch_id, line.id))
            if self.polite:
                await answer(agent, line)
            else:
                self.asked.put_nowait((agent, line))

    @asynccontextmanager
    async def posted(
        self, body: bytes, headers: Headers, path: str = "/servers/patient/mcp"
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        url = URL(self.house.origin + path, encoded=True)
        given = CIMultiDict([("Content-Type", "application/json"), *headers])
        async with self.house.http.post(url, data=body, headers=given) as response:
            yield response

    async def exchange(
        self, body: bytes, headers: Headers, path: str = "/servers/patient/mcp"
    ) -> tuple[int, list[Any]]:
        """Post, and return the status and all messages up to the end, within the bound."""
        async with asyncio.timeout(BOUND), self.posted(body, headers, path) as response:
            if response.content_type == "text/event-stream":
                return response.status, await Stream(response).rest()
            text = await response.read()
            if response.content_type == "text/plain" and response.status == 400:
                return 400, []  # it was no HTTP: the library's own answer, to two Content-Types
            return response.status, [json.loads(text)] if text else []

    @asynccontextmanager
    async def hanging_up(
        self, body: dict[str, Any], headers: Headers
    ) -> AsyncIterator[tuple[Agent, Line]]:
        """Post a request, and hang up when the block is left; yields what the child was asked."""
        async with asyncio.TaskGroup() as tasks:
            calling = tasks.create_task(self.exchange(written(body), headers))
            yield await self.asked.get()
            calling.cancel()

    async def is_unharmed(self) -> None:
        """Show that a good request is served and that nothing failed or stayed."""
        body, headers = good("tools/call", "well")
        assert await self.exchange(written(body), headers) == (200, [answered("well")])
        assert [line for line in self.log if line["event"] == "internal_error"] == []
        await eventually(lambda: not any(map(kept, self.lives())))

    def lives(self) -> list[SharedLive]:
        found = list(self.house.manager.directory._live.values())
        assert all(isinstance(live, SharedLive) for live in found)
        return [live for live in found if isinstance(live, SharedLive)]


def kept(live: SharedLive) -> list[Any]:
    """What a session still holds of its requests."""
    session = live.session
    calls = [*session._table.calls, *session._listens.calls]
    tokens = [*session._table._tokens, *session._listens._tokens]
    return [*calls, *tokens, *session._kept, *live._outboxes]


async def answer(agent: Agent, line: Line) -> None:
    await agent.say({"jsonrpc": "2.0", "id": line.id, "result": {"resultType": "complete"}})


def answered(request: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": request, "result": {"resultType": "complete"}}


@pytest_asyncio.fixture
async def arena() -> AsyncIterator[Arena]:
    terms = Terms("http://127.0.0.1", SECRET, 1000)
    with structlog.testing.capture_logs() as log:
        async with opened(terms=terms, servers=SERVERS) as house, asyncio.TaskGroup() as tasks:
            arena = Arena(house, log)
            keeper = tasks.create_task(arena.keep_dynos())
            yield arena
            await arena.is_unharmed()
            keeper.cancel()


# -- requests -------------------------------------------------------------------------------------

META = {f"{PREFIX}protocolVersion": REVISION, f"{PREFIX}clientCapabilities": {}}


def good(method: str, request: Any, **params: Any) -> tuple[dict[str, Any], Headers]:
    """A request as it should be, and its headers."""
    named = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}.get(method)
    own = {named: "t"} if named else {}
    body = {
        "jsonrpc": "2.0",
        "id": request,
        "method": method,
        "params": {**own, **params, "_meta": {**META, **params.get("_meta", {})}},
    }
    headers = [("MCP-Protocol-Version", REVISION), ("Mcp-Method", method)]
    return body, headers + ([("Mcp-Name", "t")] if named else [])


def written(value: Any) -> bytes:
    return json.dumps(value).encode()


HUGE = (2**31, 2**53, 2**63, 2**64 - 1, 2**64, -(2**63) - 1, 10**400)
texts = st.text(max_size=6) | st.sampled_from(
    (
        "\ud800",
        "\udfff\ud800",
        "\x00",
        "\u2028",
        "\r\n",
        "x" * 129,
        "x" * 5000,
        "é" * 64,
        "\U0001f600",
    )
)
scalars = (
    st.none() | st.booleans() | st.integers(-2, 3) | st.sampled_from(HUGE) | st.floats() | texts
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
)
METHODS: tuple[str, ...] = (
    "tools/call",
    "resources/read",
    "prompts/get",
    "tools/list",
    "server/discover",
    LISTEN,
)
METHODS += ("tasks/get", "tasks/cancel", "completion/complete", "initialize", "ping", "x/y")
PARAMS = ("_meta", "name", "uri", "taskId", "cursor", "requestState", "inputResponses", "arguments")
METAS = (*META, "progressToken", f"{PREFIX}logLevel", f"{PREFIX}clientInfo", "more")
HEADER_NAMES: tuple[str, ...] = (
    "MCP-Protocol-Version",
    "Mcp-Method",
    "Mcp-Name",
    "Rendezvous-Handle",
)
HEADER_NAMES += ("mcp-protocol-version", "MCP-NAME", "Mcp-Param-A", "Mcp-Session-Id", "Accept")
HEADER_NAMES += ("Last-Event-ID", "Content-Encoding", "Origin", "Content-Type")
sentinels = st.binary(max_size=9).map(lambda raw: f"=?base64?{base64.b64encode(raw).decode()}?=")
sendable = st.characters(exclude_categories=["Cs", "Cc"])
odd_values = st.one_of(
    st.text(sendable, max_size=9),
    sentinels,
    st.sampled_from(
        ("", " ", "\t t\t", "=?base64?dA==?=", "=?base64?dB==?=", "=?base64?", "x" * 5000, REVISION)
    ),
    st.sampled_from(("2026-07-28 ", "2027-01-01", "2025-11-25", "9", "a/b", "..", "%2e", *METHODS)),
)
handles = st.sampled_from(("a", "b~", "x" * 128)) | st.text(sendable, min_size=1, max_size=4)
DEEP = [b"[" * n + b"]" * n for n in (100, 900, 5_000)] + [b'{"a":' * 700 + b"1" + b"}" * 700]
DEEP += [b"[" * 100_000]


@dataclass(frozen=True)
class Sent:
    """A request as it goes on the wire."""

    body: bytes
    headers: Headers
    path: str


@st.composite
def requests(draw: st.DrawFn) -> Sent:
    """A good request with up to four things wrong."""
    body, headers = good(draw(st.sampled_from(METHODS)), draw(st.integers(0, 9) | texts))
    for _ in range(draw(st.integers(0, 2))):
        spoil(draw, body)
    raw = json.dumps(body, ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass")
    raw = draw(st.sampled_from(SPOILERS))(draw, raw)
    for _ in range(draw(st.integers(0, 2))):
        headers = misheaded(draw, headers)
    path = draw(st.sampled_from(("/servers/patient", "", "/servers/apart")))
    if draw(st.booleans()):
        path += f"/handles/{quote(draw(handles), safe='')}"
    return Sent(raw, headers, f"{path}/mcp")


def spoil(draw: st.DrawFn, body: dict[str, Any]) -> None:
    """Put anything anywhere, or take something out."""
    places: list[tuple[Any, tuple[str, ...]]] = [(body, ("jsonrpc", "id", "method", "params"))]
    places += [(params := body.get("params"), PARAMS)]
    places += [(params.get("_meta"), METAS)] if isinstance(params, dict) else []
    holders = [(holder, keys) for holder, keys in places if isinstance(holder, dict)]
    holder, keys = draw(st.sampled_from(holders))
    key = draw(st.sampled_from(keys))
    if draw(st.integers(0, 3)):
        holder[key] = draw(anything)
    else:
        holder.pop(key, None)


def doubled(draw: st.DrawFn, raw: bytes) -> bytes:
    """Say a key twice, with something else."""
    key = draw(st.sampled_from(("id", "method", "params", "jsonrpc", "_meta", "x")))
    return b'{"%s":%s,' % (key.encode(), written(draw(anything))) + raw[1:]


def cut(draw: st.DrawFn, raw: bytes) -> bytes:
    return raw[: draw(st.integers(0, len(raw)))]


def mixed(draw: st.DrawFn, raw: bytes) -> bytes:
    """Put bytes somewhere that are no UTF-8, or end a line."""
    spot = draw(st.integers(0, len(raw)))
    wrong = (b"\xff", b"\xed\xa0\x80", b"\x00", b"\r\n", b"\\ud800", b"\xef\xbb\xbf", b"1e999")
    return raw[:spot] + draw(st.sampled_from(wrong)) + raw[spot:]


def deepened(draw: st.DrawFn, raw: bytes) -> bytes:
    deep = draw(st.sampled_from(DEEP))
    return raw.replace(b'"_meta":', b'"arguments":' + deep + b',"_meta":', 1)


def batched(draw: st.DrawFn, raw: bytes) -> bytes:
    return b"[" + b",".join([raw] * draw(st.integers(0, 3))) + b"]"


def as_it_is(_draw: st.DrawFn, raw: bytes) -> bytes:
    return raw


SPOILERS: tuple[Callable[[st.DrawFn, bytes], bytes], ...]
SPOILERS = (as_it_is, as_it_is, as_it_is, doubled, cut, mixed, deepened, batched)


def misheaded(draw: st.DrawFn, headers: Headers) -> Headers:
    """Drop, double, change or add a header."""
    kind = draw(st.sampled_from(("drop", "double", "change", "add")))
    spot = draw(st.integers(0, len(headers) - 1)) if headers else 0
    if kind == "add" or not headers:
        return [*headers, (draw(st.sampled_from(HEADER_NAMES)), draw(odd_values))]
    name, value = headers[spot]
    changed = {
        "drop": [],
        "double": [(name, value), (name.lower(), value)],
        "change": [(name, draw(odd_values | st.just(value.upper())))],
    }[kind]
    return [*headers[:spot], *changed, *headers[spot + 1 :]]


@FUZZ
@given(sent=requests())
async def test_any_request_is_answered_in_time_and_not_with_an_error_of_ours(
    arena: Arena, sent: Sent
) -> None:
    status, messages = await arena.exchange(sent.body, sent.headers, sent.path)
    assert status in {200, 202, 400, 403, 404, 405, 406, 413, 415}
    if status == 202:
        assert messages == []
    if status >= 400 and messages:
        (message,) = messages
        assert message["error"]["data"]["reason"] != "internal"
    if status == 200:
        assert messages[-1] == answered(json.loads(sent.body)["id"])
    await arena.is_unharmed()


# -- children -------------------------------------------------------------------------------------

CALL, TOPIC = "$call", "$listen"
"""Stand for the ids that the child knows the two open requests by."""

names = st.sampled_from((CALL, CALL, TOPIC, TOPIC, 0, -1, *HUGE, "x", True, None, 1.5)) | anything
NOTICES: tuple[str, ...] = (
    "progress",
    "message",
    "cancelled",
    "subscriptions/acknowledged",
    "resources/updated",
)
NOTICES += ("tools/list_changed", "initialized", "tasks/status", "x")
notices = st.sampled_from([f"notifications/{name}" for name in NOTICES])
asks = st.sampled_from(("elicitation/create", "sampling/createMessage", "ping", "roots/list", ""))
tags = st.fixed_dictionaries({}, optional={f"{PREFIX}subscriptionId": names, "x": anything})


def sometimes(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=keys)


params = sometimes(
    progressToken=names,
    progress=scalars,
    requestId=names,
    level=st.sampled_from(("debug", "error")) | anything,
    data=anything,
    uri=texts,
    _meta=tags | anything,
)
results = sometimes(
    resultType=st.sampled_from(("complete", "input_required")) | anything,
    requestState=texts | anything,
    nextCursor=texts | anything,
    taskId=texts | anything,
    inputRequests=anything,
    _meta=tags | anything,
    x=anything,
)
errors = sometimes(code=scalars, message=anything, data=anything)
documents = st.fixed_dictionaries(
    {"jsonrpc": st.just("2.0") | st.just("2.0") | anything},
    optional={
        "id": names,
        "method": notices | asks | anything,
        "params": params | anything,
        "result": results | anything,
        "error": errors | anything,
    },
)
notifications = st.fixed_dictionaries(
    {"jsonrpc": st.just("2.0"), "method": notices, "params": params}
)
replies = st.fixed_dictionaries(
    {"jsonrpc": st.just("2.0"), "id": names, "result": results | anything}
) | st.fixed_dictionaries({"jsonrpc": st.just("2.0"), "id": names, "error": errors | anything})
aimed = st.builds(
    lambda kind, own, more: {
        "jsonrpc": "2.0",
        "method": f"notifications/{kind}",
        "params": {**more, **own},
    },
    st.sampled_from(("progress", "message", "tools/list_changed", "cancelled")),
    st.sampled_from(
        (
            {"progressToken": CALL, "progress": 1},
            {"_meta": {f"{PREFIX}subscriptionId": TOPIC}},
            {"level": "error", "data": "x"},
            {"requestId": TOPIC},
        )
    ),
    st.dictionaries(texts, anything, max_size=2),
)
"""What its callers are told, if it names them rightly."""

raw_lines = st.sampled_from(
    (b"", b"[]", b"null", b"{}", b'{"jsonrpc":"2.0"', b"\xff\xfe", b'{"a":"\xed\xa0\x80"}', *DEEP)
) | st.binary(max_size=20)
deep_replies = st.builds(
    lambda name, deep: (
        b'{"jsonrpc":"2.0","id":"%s","result":{"nextCursor":"a","x":%s}}' % (name.encode(), deep)
    ),
    st.sampled_from((CALL, TOPIC)),
    st.sampled_from(DEEP),
)
said = st.lists(
    (
        aimed
        | aimed
        | documents
        | notifications
        | replies
        | st.lists(replies, max_size=2)
        | anything
    ).map(written)
    | raw_lines
    | deep_replies,
    max_size=6,
)


@FUZZ
@given(lines=said)
async def test_no_child_harms_its_callers(arena: Arena, lines: list[bytes]) -> None:
    call, call_headers = good(
        "tools/call", "c\u00e9", _meta={"progressToken": "t", f"{PREFIX}logLevel": "debug"}
    )
    listen, listen_headers = good(LISTEN, 2**53, notifications={"toolsListChanged": True})
    arena.polite = False
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        calling = tasks.create_task(arena.exchange(written(call), call_headers))
        listening = tasks.create_task(arena.exchange(written(listen), listen_headers))
        known = [await arena.asked.get(), await arena.asked.get()]
        arena.polite = True
        by_method = {line.method: str(line.id).encode() for _, line in known}
        agent = known[0][0]
        for line in lines:
            for name, method in ((CALL, "tools/call"), (TOPIC, LISTEN)):
                line = line.replace(b'"%s"' % name.encode(), by_method[method])  # noqa: PLW2901
            agent.end.send(Channel.RPC, line)
        await agent.flush()
        for _, request in known:
            await answer(agent, request)
    for outcome, own in ((calling.result(), call["id"]), (listening.result(), listen["id"])):
        status, messages = outcome
        assert status in {200, 400, 404}
        assert [each["id"] for each in messages if "method" not in each] == [own]
        assert "method" not in messages[-1]
    for message in [*calling.result()[1], *listening.result()[1]]:
        assert message["jsonrpc"] == "2.0"
    for message in calling.result()[1]:
        if message.get("method") == "notifications/progress":
            assert message["params"]["progressToken"] == "t"
    for message in listening.result()[1]:
        if "method" in message:
            assert message["params"]["_meta"][f"{PREFIX}subscriptionId"] == listen["id"]
    await arena.is_unharmed()


@FUZZ
@given(lines=said, method=st.sampled_from(("tools/call", LISTEN)))
async def test_child_that_leaves_no_answer_is_outlived_by_the_next_caller(
    arena: Arena, lines: list[bytes], method: str
) -> None:
    body, headers = good(method, 1, _meta={"progressToken": 1})
    arena.polite = False
    async with asyncio.timeout(BOUND), arena.hanging_up(body, headers) as (agent, line):
        arena.polite = True
        for each in lines:
            known = str(line.id).encode()
            each = each.replace(b'"$call"', known).replace(b'"$listen"', known)  # noqa: PLW2901
            agent.end.send(Channel.RPC, each)
        await agent.flush()
    await arena.is_unharmed()
