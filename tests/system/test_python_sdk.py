"""The unmodified Python SDK client through a real gateway to real stdio servers.

What a user's client does, done once each. The gateway is the only thing under test: both ends are
other people's code, so an answer that arrives whole and in order is the gateway's doing.

What is claimed of one call is asked in one conversation with each server, as a user has it: a start
of a server takes a second. What is claimed of sessions is asked in sessions of their own.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import pytest_asyncio
from mcp.shared.exceptions import MCPError
from mcp.types import (
    CreateMessageRequestParams,
    CreateMessageResult,
    ElicitRequestParams,
    ElicitResult,
    ListRootsResult,
    Root,
    SamplingMessage,
    TextContent,
    TextResourceContents,
)
from pydantic import FileUrl

from tests.system.python_sdk import Progress, call, connected, text_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from mcp import Client
    from mcp.client import ClientRequestContext
    from mcp.types import LoggingMessageNotificationParams

    from tests.system.conftest import GatewayProcess

pytestmark = [
    pytest.mark.timeout(300),  # the first test may have to wait for `npm install`
    pytest.mark.asyncio(loop_scope="module"),  # conversations go on from test to test
]

MIB = 1024 * 1024

MODES = ["legacy", "auto", "2026-07-28"]

BOUND_S = 290.0
"""For a conversation of many tests."""


async def answer_what_is_no_secret(
    context: ClientRequestContext, params: ElicitRequestParams
) -> ElicitResult:
    if params.message == "Password?":
        return ElicitResult(action="decline")
    return ElicitResult(action="accept", content={"answer": f"blue, to: {params.message}"})


async def give_a_name(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
    return ElicitResult(action="accept", content={"name": "Ada", "integer": 7})


def prompt_of(message: SamplingMessage) -> str:
    assert isinstance(message.content, TextContent)
    return message.content.text


async def model_that_shouts(
    context: ClientRequestContext, params: CreateMessageRequestParams
) -> CreateMessageResult:
    said = TextContent(type="text", text=prompt_of(params.messages[0]).upper())
    return CreateMessageResult(role="assistant", content=said, model="shouting")


async def two_roots(context: ClientRequestContext) -> ListRootsResult:
    return ListRootsResult(
        roots=[Root(uri=FileUrl("file:///one")), Root(uri=FileUrl("file:///two"))]
    )


@asynccontextmanager
async def conversation(
    gateway: GatewayProcess, server: str, **callbacks: Any
) -> AsyncIterator[Client]:
    """One session for several tests, held by one task as the SDK wants it."""
    begun: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
    over = asyncio.Event()

    async def hold() -> None:
        async with connected(gateway, server, bound=BOUND_S, **callbacks) as client:
            begun.set_result(client)
            await over.wait()

    async with asyncio.TaskGroup() as group:
        holding = group.create_task(hold())
        await asyncio.wait((begun, holding), return_when=asyncio.FIRST_COMPLETED)
        if begun.done():
            yield begun.result()
        over.set()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(gateway: GatewayProcess, logged: list[str]) -> AsyncIterator[Client]:
    """A client of our fixture server that can do all that it may be asked."""

    async def note(params: LoggingMessageNotificationParams) -> None:
        logged.append(params.data)

    async with conversation(
        gateway,
        "everything",
        elicitation_callback=answer_what_is_no_secret,
        sampling_callback=model_that_shouts,
        list_roots_callback=two_roots,
        logging_callback=note,
    ) as client:
        await call(client, "pid")  # the boot is over: all progress that comes is the server's
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reference(gateway: GatewayProcess) -> AsyncIterator[Client]:
    """A client of the reference server."""
    async with conversation(
        gateway,
        "reference",
        elicitation_callback=give_a_name,
        sampling_callback=model_that_shouts,
        list_roots_callback=two_roots,
    ) as client:
        yield client


@pytest.fixture(scope="module")
def logged() -> list[str]:
    """What our fixture server has logged to `client`."""
    return []


# -- our fixture server ------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
async def test_client_lists_and_calls_tools_in_every_mode(
    gateway: GatewayProcess, mode: str
) -> None:
    async with connected(gateway, mode=mode) as client:
        tools = {tool.name for tool in (await client.list_tools()).tools}
        assert {"echo", "add", "progress", "crash"} <= tools
        assert await call(client, "add", a=2, b=40) == "42"
        assert (
            await call(client, "echo", text="grüße, 世界 \u2028 \x00") == "grüße, 世界 \u2028 \x00"
        )


async def test_auto_mode_finds_the_newest_revision(gateway: GatewayProcess) -> None:
    async with connected(gateway, mode="auto") as client:
        assert client.protocol_version == "2026-07-28"
        assert client.server_info is not None
        assert client.server_info.name == "everything"


async def test_default_server_and_server_by_name_are_the_same(gateway: GatewayProcess) -> None:
    async with connected(gateway, "everything") as named, connected(gateway) as default:
        assert await named.list_tools() == await default.list_tools()


async def test_each_session_has_a_process_of_its_own(
    gateway: GatewayProcess, client: Client
) -> None:
    async with connected(gateway) as other:
        assert await call(client, "pid") != await call(other, "pid")
        assert await call(client, "pid") == await call(client, "pid")


async def test_progress_arrives_complete_and_in_order(client: Client) -> None:
    progress = Progress()
    result = await client.call_tool("progress", {"steps": 50}, progress_callback=progress)
    assert text_of(result) == "50 steps"
    assert progress.steps == list(range(1, 51))


async def test_log_notifications_arrive_complete_and_in_order(
    gateway: GatewayProcess, client: Client, logged: list[str]
) -> None:
    assert await call(client, "log", lines=20) == "20 lines"
    await gateway.until(lambda: len(logged) >= 20, "20 log notifications")
    assert logged == [f"line {number}" for number in range(1, 21)]


async def test_elicitation_reaches_the_person_and_the_answer_the_server(client: Client) -> None:
    answer = json.loads(await call(client, "ask", question="Colour?"))
    assert answer == {"action": "accept", "content": {"answer": "blue, to: Colour?"}}


async def test_declined_elicitation_reaches_the_server(client: Client) -> None:
    answer = json.loads(await call(client, "ask", question="Password?"))
    assert answer == {"action": "decline", "content": None}


async def test_sampling_request_is_answered_by_the_clients_model(client: Client) -> None:
    assert await call(client, "sample", prompt="say it") == "SAY IT"


async def test_roots_request_is_answered_by_the_client(client: Client) -> None:
    assert json.loads(await call(client, "roots")) == ["file:///one", "file:///two"]


async def test_cancelled_call_is_cancelled_in_the_server(
    gateway: GatewayProcess, client: Client, tmp_path: Path
) -> None:
    marker = tmp_path / "cancelled"
    progress = Progress()
    async with asyncio.TaskGroup() as group:
        arguments = {"marker": str(marker)}
        waiting = group.create_task(
            client.call_tool("wait_for_cancel", arguments, progress_callback=progress)
        )
        await progress.begun.wait()
        waiting.cancel()
        await gateway.until(marker.is_file, "the server sees the cancellation")
        assert await call(client, "echo", text="still here") == "still here"


async def test_answers_of_calls_in_flight_are_not_crossed(client: Client) -> None:
    async with asyncio.TaskGroup() as group:
        calls = {
            text: group.create_task(call(client, "echo", text=text))
            for text in (f"call {number} " + "x" * (number * 999) for number in range(40))
        }
    assert {text: task.result() for text, task in calls.items()} == {t: t for t in calls}


async def test_fast_call_overtakes_a_slow_one(client: Client) -> None:
    progress = Progress()
    async with asyncio.TaskGroup() as group:
        arguments = {"steps": 1, "hold": True}
        slow = group.create_task(
            client.call_tool("progress", arguments, progress_callback=progress)
        )
        await progress.begun.wait()
        assert await call(client, "add", a=1, b=1) == "2"
        assert not slow.done()
        slow.cancel()


@pytest.mark.parametrize("size", [MIB, 15 * MIB], ids=["1_mib", "15_mib"])
async def test_big_result_arrives_whole(client: Client, size: int) -> None:
    assert await call(client, "big", bytes=size) == "x" * size


@pytest.mark.parametrize("size", [MIB, 15 * MIB], ids=["1_mib", "15_mib"])
async def test_big_argument_comes_back_whole(client: Client, size: int) -> None:
    text = "0123456789abcdef" * (size // 16)
    assert await call(client, "echo", text=text) == text


async def test_resource_is_read(client: Client) -> None:
    (listed,) = (await client.list_resources()).resources
    (content,) = (await client.read_resource(listed.uri)).contents
    assert isinstance(content, TextResourceContents)
    assert content.text == "hello from a resource"


async def test_prompt_is_filled_in(client: Client) -> None:
    (listed,) = (await client.list_prompts()).prompts
    (message,) = (await client.get_prompt(listed.name, {"name": "Ada"})).messages
    assert message.content == TextContent(type="text", text="Greet Ada.")


async def test_junk_on_the_servers_stdout_does_not_reach_the_client(client: Client) -> None:
    assert await call(client, "noise") == "noise made"
    assert await call(client, "add", a=1, b=2) == "3"


async def test_server_that_dies_fails_the_call_and_not_the_gateway(
    gateway: GatewayProcess, client: Client
) -> None:
    async with connected(gateway) as unlucky:
        with pytest.raises(MCPError):
            await unlucky.call_tool("crash", {"code": 3})
    assert await call(client, "add", a=1, b=2) == "3"


async def test_close_ends_the_sessions_processes(gateway: GatewayProcess) -> None:
    async with connected(gateway) as client:
        pids = [int(await call(client, tool)) for tool in ("pid", "spawn_grandchild")]
        assert all(psutil.pid_exists(pid) for pid in pids)
    await gateway.until(lambda: not running(gateway, pids), f"{pids} are gone after DELETE")


def running(gateway: GatewayProcess, pids: list[int]) -> list[int]:
    return [process.pid for process in gateway.processes() if process.pid in pids]


# -- the reference server, from npm ------------------------------------------------------------


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_reference_server_lists_and_calls_tools(gateway: GatewayProcess, mode: str) -> None:
    async with connected(gateway, "reference", mode=mode) as client:
        assert client.server_info is not None
        assert client.server_info.name == "mcp-servers/everything"
        tools = {tool.name for tool in (await client.list_tools()).tools}
        assert {"echo", "get-sum", "trigger-long-running-operation"} <= tools
        assert await call(client, "echo", message="hello") == "Echo: hello"


async def test_reference_server_reports_progress_in_order(reference: Client) -> None:
    progress = Progress()
    await reference.call_tool(
        "trigger-long-running-operation",
        {"duration": 0.2, "steps": 10},
        progress_callback=progress,
    )
    assert progress.of_the_server == list(range(1, 11))


async def test_reference_server_asks_the_person(reference: Client) -> None:
    result = await reference.call_tool("trigger-elicitation-request", {})
    texts = [content.text for content in result.content if isinstance(content, TextContent)]
    assert texts[1] == "User inputs:\n- Name: Ada\n- Favorite Integer: 7"


async def test_reference_server_samples(reference: Client) -> None:
    answer = await call(reference, "trigger-sampling-request", prompt="say it")
    assert "SAY IT" in answer


async def test_reference_server_lists_the_clients_roots(reference: Client) -> None:
    answer = await call(reference, "get-roots-list")
    assert "file:///one" in answer
    assert "file:///two" in answer


async def test_reference_server_serves_resources_and_prompts(reference: Client) -> None:
    resources = (await reference.list_resources()).resources
    assert (await reference.read_resource(resources[0].uri)).contents
    prompts = {prompt.name for prompt in (await reference.list_prompts()).prompts}
    assert "simple-prompt" in prompts
    assert (await reference.get_prompt("simple-prompt")).messages
