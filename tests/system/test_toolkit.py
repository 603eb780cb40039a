"""Four real servers behind one URL: two are well, one crashes at its start, and one hangs.

The clients are the unmodified Python SDK's, of both eras, and over the transport of 2024-11-05 at
the address that Heroku's toolkit has. The gateway is as it is shipped.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from mcp import Client
from mcp.client.sse import sse_client
from mcp.shared.exceptions import MCPError
from mcp.types import TextContent, TextResourceContents

from tests.system.conftest import REPOSITORY, GatewayProcess, watched
from tests.system.eras import BY_REQUEST, BY_RESULT, fill_in, say_paris
from tests.system.python_sdk import CONVERSATION_BOUND, Progress, call, connected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("toolkit")]

FIXTURES = REPOSITORY / "tests" / "fixtures"

SERVERS: dict[str, dict[str, Any]] = {
    "crashes": {"command": "/bin/sh", "args": ["-c", "exit 3"]},
    "dual": {"command": sys.executable, "args": [str(FIXTURES / "conformance_server.py")]},
    "hangs": {"command": "/bin/sh", "args": ["-c", "exec sleep 600"]},
    "modern": {"command": sys.executable, "args": [str(FIXTURES / "modern_only.py")]},
}

WELL = ("dual", "modern")

WAYS = ("legacy", "2026-07-28", "sse")

LISTS_S = 5.0
"""For a list, on a busy machine. Who waited for a server that hangs would wait for 8 s and more."""

LEARN_BOUND = 90.0
"""Seconds until the two that are well are known in both eras; each starts twice for that."""


def learned(process: GatewayProcess) -> set[tuple[str, str]]:
    return {
        (record["server"], record["era"])
        for record in process.records()
        if record.get("event") == "learned"
    }


def launched(process: GatewayProcess) -> list[str]:
    """The servers of the dynos that clients have had so far; the gateway's own looks aside."""
    owners = {
        record["session"]: record["server"]
        for record in process.records()
        if record.get("event") == "requested" and record["principal"] == "default"
    }
    return [
        owners[record["session"]]
        for record in process.records()
        if record.get("event") == "launching" and record["session"] in owners
    ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    tmp_path_factory: pytest.TempPathFactory, running: list[GatewayProcess]
) -> AsyncIterator[GatewayProcess]:
    """A gateway that knows two of its servers, and still waits for one."""
    process = GatewayProcess(tmp_path_factory.mktemp("toolkit"), SERVERS)
    async with watched(process, running):
        known = {(name, era) for name in WELL for era in ("legacy", "modern")}
        await process.until(lambda: learned(process) == known, "two are known", within=LEARN_BOUND)
        yield process


@asynccontextmanager
async def client(gateway: GatewayProcess, way: str) -> AsyncIterator[Client]:
    """The SDK's client of a toolkit, with a person and a model."""
    callbacks: dict[str, Any] = {"elicitation_callback": fill_in, "sampling_callback": say_paris}
    if way != "sse":
        opening = connected(gateway, path="/toolkit/mcp", mode=way, **callbacks)
        async with opening as connection:
            yield connection
        return
    url = f"{gateway.origin}/mcp/sse"
    transport = sse_client(url, headers=gateway.headers, timeout=CONVERSATION_BOUND)
    async with asyncio.timeout(CONVERSATION_BOUND), Client(transport, **callbacks) as connection:
        yield connection


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.asyncio(loop_scope="module")
async def test_lists_come_at_once_and_without_a_dyno(gateway: GatewayProcess, way: str) -> None:
    before = len(launched(gateway))
    async with asyncio.timeout(LISTS_S), client(gateway, way) as one:
        tools = [tool.name for tool in (await one.list_tools()).tools]
        prompts = [prompt.name for prompt in (await one.list_prompts()).prompts]
        resources = [str(each.uri) for each in (await one.list_resources()).resources]
        templates = (await one.list_resource_templates()).resource_templates
    assert {name.partition("/")[0] for name in tools} == set(WELL)
    assert {f"{name}/test_simple_text" for name in WELL} <= set(tools)
    assert "dual/test_simple_prompt" in prompts
    assert "test://static-text" in resources
    assert templates
    assert len(launched(gateway)) == before


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.asyncio(loop_scope="module")
async def test_conversation_with_both_servers_that_are_well(
    gateway: GatewayProcess, way: str
) -> None:
    progress = Progress()
    async with client(gateway, way) as one:
        for name in WELL:
            assert "simple text" in await call(one, f"{name}/test_simple_text")
        await one.call_tool("modern/test_tool_with_progress", {}, progress_callback=progress)
        assert progress.of_the_server
        for name in WELL:
            # Servers ask in the middle of a call where there is a handshake, else by its result.
            by_result = name == "modern" or way == "2026-07-28"
            (person, to_person), (model, to_model) = BY_RESULT if by_result else BY_REQUEST
            assert "Ada" in await call(one, f"{name}/{person}", **to_person)
            assert "Paris" in await call(one, f"{name}/{model}", **to_model)
        (resource,) = (await one.read_resource("test://static-text")).contents
        assert isinstance(resource, TextResourceContents)
        prompt = await one.get_prompt("dual/test_simple_prompt")
        assert isinstance(prompt.messages[0].content, TextContent)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.asyncio(loop_scope="module")
async def test_call_that_fails_ends_nothing(gateway: GatewayProcess, way: str) -> None:
    async with client(gateway, way) as one:
        for tool, code in (("dual/none_such", -32602), ("crashes/anything", -32603)):
            with pytest.raises(MCPError) as refused:
                await one.call_tool(tool, {})
            assert refused.value.error.code == code
        assert {tool.name.partition("/")[0] for tool in (await one.list_tools()).tools} == set(WELL)
