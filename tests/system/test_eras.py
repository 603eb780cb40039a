"""Clients of every revision with servers of either era, all of them other people's code.

The gateway is as it is shipped: it finds out what each server speaks, answers what it can without a
dyno, and translates. What the Python SDK's client is told must not depend on which of the three
servers it meets, nor on its own mode.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from mcp.shared.exceptions import MCPError

from tests.system.conftest import REPOSITORY, GatewayProcess, watched
from tests.system.eras import HANDSHAKE, NEWEST, WAYS, Seen, converse, python_client
from tests.system.python_sdk import CONVERSATION_BOUND, Progress, call, connected, text_of
from tests.system.talking import http_for, open_session, refusal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import psutil

    from tests.system.talking import Talk

pytestmark = [
    pytest.mark.timeout(300),  # the first test may have to wait for `npm install`
    pytest.mark.xdist_group("eras"),
]

FIXTURES = REPOSITORY / "tests" / "fixtures"
DUAL = FIXTURES / "conformance_server.py"
MODERN = FIXTURES / "modern_only.py"

SERVERS = ["dual", "legacy", "modern"]
"""By the eras that they speak."""

MODES = {"legacy": HANDSHAKE, "auto": NEWEST, NEWEST: NEWEST}
"""The modes of the Python SDK's client and the revision that each comes to."""

BOOT_S = 15
"""How long the slow server takes to start: longer than clients wait for a connection."""

LEARN_BOUND = 4.0 * BOOT_S
"""Seconds until a gateway has looked at its servers in both eras."""


def learned(process: GatewayProcess) -> set[tuple[str, str]]:
    """The servers and eras that a gateway's throw-away runs have come back from."""
    return {
        (record["server"], record["era"])
        for record in process.records()
        if record.get("event") == "learned"
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def slow(
    tmp_path_factory: pytest.TempPathFactory, running: list[GatewayProcess]
) -> AsyncIterator[GatewayProcess]:
    """A gateway whose only server takes its time to start."""
    script = f'sleep {BOOT_S}; exec "$0" "$1"'
    server = {"command": "/bin/sh", "args": ["-c", script, sys.executable, str(DUAL)]}
    process = GatewayProcess(tmp_path_factory.mktemp("slow"), {"slow": server})
    async with watched(process, running):
        yield process


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    tmp_path_factory: pytest.TempPathFactory,
    running: list[GatewayProcess],
    node: Path,
    node_modules: Path,
    slow: GatewayProcess,
) -> AsyncIterator[GatewayProcess]:
    """A gateway with a server for each era, and one that speaks both, the default.

    The slow one is started first, so that it has the time of all that comes before its own tests.
    """
    legacy = node_modules.parent / "conformance_legacy.mjs"
    servers: dict[str, dict[str, Any]] = {
        "dual": {"command": sys.executable, "args": [str(DUAL)], "default": True},
        "legacy": {"command": str(node), "args": [str(legacy)]},
        "modern": {"command": sys.executable, "args": [str(MODERN)]},
    }
    process = GatewayProcess(tmp_path_factory.mktemp("eras"), servers)
    async with watched(process, running):
        yield process


# -- any client with any server -----------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def conversations(
    gateway: GatewayProcess, node: Path
) -> dict[tuple[str, str], Seen | Exception]:
    """What came of each conversation; all are had at the same time."""

    async def outcome(server: str, way: str) -> Seen | Exception:
        try:
            return await converse(gateway, server, way, node)
        except (AssertionError, TimeoutError, MCPError, ExceptionGroup) as error:
            return error  # told by the tests of this conversation, and not by all

    both = {(server, era) for server in SERVERS for era in ("legacy", "modern")}
    await gateway.until(lambda: learned(gateway) == both, "all is known", within=LEARN_BOUND)
    async with asyncio.TaskGroup() as group:
        tasks = {
            (server, way): group.create_task(outcome(server, way))
            for server in SERVERS
            for way in WAYS
        }
    return {between: task.result() for between, task in tasks.items()}


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> str:
    """The eras that the server speaks."""
    return str(request.param)


@pytest.fixture(params=list(WAYS))
def way(request: pytest.FixtureRequest) -> str:
    """How the client comes."""
    return str(request.param)


@pytest.fixture
def seen(conversations: dict[tuple[str, str], Seen | Exception], server: str, way: str) -> Seen:
    """What this client saw of this server."""
    outcome = conversations[server, way]
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


async def test_client_speaks_its_own_revision_with_any_server(seen: Seen, way: str) -> None:
    assert seen.revision == WAYS[way].revision
    assert seen.text == "This is a simple text response for testing."


async def test_lists_do_not_depend_on_the_clients_era(
    conversations: dict[tuple[str, str], Seen | Exception], server: str
) -> None:
    outcomes = [conversations[server, way] for way in WAYS]
    lists = [outcome.lists for outcome in outcomes if isinstance(outcome, Seen)]
    assert lists == [lists[0]] * len(WAYS)
    assert all(lists[0])


async def test_progress_arrives_through_every_translation(seen: Seen) -> None:
    assert seen.progress == [0, 50, 100]


async def test_person_is_asked_through_every_translation(seen: Seen) -> None:
    assert "Ada" in seen.person


async def test_model_is_asked_through_every_translation(seen: Seen) -> None:
    assert seen.model == "LLM response: Paris"


async def test_resource_is_read_through_every_translation(seen: Seen) -> None:
    assert seen.resource == "This is the content of the static text resource."


async def test_end_of_the_sse_stream_ends_the_sessions_processes(gateway: GatewayProcess) -> None:
    before = set(gateway.processes())
    async with (
        asyncio.timeout(CONVERSATION_BOUND),
        python_client(gateway, "dual", WAYS["sse"]) as client,
    ):
        await call(client, "test_simple_text")
        assert set(gateway.processes()) - before
    await gateway.until(lambda: not set(gateway.processes()) - before, "its processes are gone")


# -- batches of 2025-03-26 ----------------------------------------------------------------------

NOTE = {"jsonrpc": "2.0", "method": "notifications/initialized"}
CALL = {
    "jsonrpc": "2.0",
    "id": "call",
    "method": "tools/call",
    "params": {"name": "test_simple_text", "arguments": {}},
}
READ = {
    "jsonrpc": "2.0",
    "id": 7,
    "method": "resources/read",
    "params": {"uri": "test://static-text"},
}


async def batch(talk: Talk, *messages: dict[str, Any]) -> tuple[int, Any]:
    """Post a batch; return status and body."""
    url = talk.gateway.url()
    async with talk.http.post(url, json=list(messages), headers=talk.headers) as answer:
        return answer.status, await answer.json()


async def test_batch_is_answered_in_one_body(gateway: GatewayProcess) -> None:
    async with http_for(gateway) as http:
        talk = await open_session(http, gateway, "2025-03-26")
        status, answers = await batch(talk, NOTE, CALL, READ)
    assert status == 200
    by_id = {answer["id"]: answer["result"] for answer in answers}
    assert len(answers) == 2
    assert by_id["call"]["content"][0]["text"].startswith("This is a simple text")
    assert by_id[7]["contents"][0]["uri"] == "test://static-text"


async def test_initialize_in_a_batch_is_refused_and_its_neighbour_is_not(
    gateway: GatewayProcess,
) -> None:
    async with http_for(gateway) as http:
        talk = await open_session(http, gateway, "2025-03-26")
        params = {"protocolVersion": "2025-03-26", "capabilities": {}, "clientInfo": {}}
        again = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
        status, answers = await batch(talk, again, CALL)
    by_id = {answer["id"]: answer for answer in answers}
    assert (status, len(answers)) == (200, 2)
    assert refusal(by_id[1])[:2] == (-32600, "bad_message")
    assert "result" in by_id["call"]


async def test_newer_revisions_have_no_batches(gateway: GatewayProcess) -> None:
    async with http_for(gateway) as http:
        talk = await open_session(http, gateway, "2025-06-18")
        status, answer = await batch(talk, CALL, READ)
    assert (status, *refusal(answer)) == (400, -32600, "bad_message", None)


# -- a server that is slow to boot --------------------------------------------------------------


@dataclass(frozen=True)
class Visit:
    """What a client saw of a slow server.

    Attributes:
        revision: that it speaks.
        tools: names in the list.
        early: processes there were once it had connected and had the list.
        boot: what it was told while it waited for its first call.
        answer: to that call.
    """

    revision: str
    tools: set[str]
    early: int
    boot: list[str | None]
    answer: str


@dataclass(frozen=True)
class Patience:
    """What all clients saw, and the server's processes once all had their answers."""

    visits: dict[str, Visit]
    children: list[psutil.Process]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def patience(slow: GatewayProcess) -> Patience:
    """A client in each mode with a server that takes its time; the last has a handle of its own."""
    places = {"legacy": "slow", "auto": "slow", NEWEST: "slow/handles/own"}
    everybody, over = asyncio.Barrier(len(places)), asyncio.Barrier(len(places) + 1)

    async def visit(mode: str) -> Visit:
        progress = Progress()
        async with connected(slow, places[mode], mode=mode) as client:
            tools = {tool.name for tool in (await client.list_tools()).tools}
            early = len(slow.processes())
            await everybody.wait()
            result = await client.call_tool("test_simple_text", {}, progress_callback=progress)
            await over.wait()
            await over.wait()  # the processes are counted
            told, revision = progress.of_the_boot, client.protocol_version
            return Visit(revision, tools, early, told, text_of(result))

    await slow.until(lambda: len(learned(slow)) == 2, "both eras are known", within=LEARN_BOUND)
    await slow.until(lambda: not slow.processes(), "throw-away runs leave nothing")
    async with asyncio.timeout(CONVERSATION_BOUND), asyncio.TaskGroup() as group:
        visits = {mode: group.create_task(visit(mode)) for mode in places}
        await over.wait()
        children = [one for one in slow.processes() if str(DUAL) in one.cmdline()]
        await over.wait()
    return Patience({mode: task.result() for mode, task in visits.items()}, children)


@pytest.fixture(params=list(MODES))
def mode(request: pytest.FixtureRequest) -> str:
    """The mode of the client."""
    return str(request.param)


async def test_slow_server_is_connected_with_before_it_has_a_process(
    patience: Patience, mode: str
) -> None:
    visit = patience.visits[mode]
    assert (visit.early, "test_simple_text" in visit.tools) == (0, True)


async def test_client_of_a_slow_server_stays_in_its_era(patience: Patience, mode: str) -> None:
    assert patience.visits[mode].revision == MODES[mode]


async def test_first_call_is_answered_once_the_slow_server_is_up(
    patience: Patience, mode: str
) -> None:
    assert patience.visits[mode].answer.startswith("This is a simple text")


async def test_who_waits_for_a_boot_is_told_its_phases(patience: Patience, mode: str) -> None:
    boot = patience.visits[mode].boot
    assert len(boot) >= 2
    assert len(set(boot)) == len(boot)
    assert all(boot)


async def test_each_session_and_lease_has_one_process(patience: Patience) -> None:
    assert len(patience.children) == len(patience.visits)
