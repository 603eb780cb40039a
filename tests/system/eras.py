"""One conversation, had by other people's clients in every way in which a client can come.

The servers are those of the conformance suite: the tools are the same in both eras, except that
what asks the client exists twice.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mcp import Client
from mcp.client.sse import sse_client
from mcp.types import (
    CreateMessageRequestParams,
    CreateMessageResult,
    ElicitRequestFormParams,
    ElicitRequestParams,
    ElicitResult,
    TextContent,
    TextResourceContents,
)

from tests.system.conftest import NODE_PROJECT
from tests.system.python_sdk import CONVERSATION_BOUND, Progress, call, connected

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from mcp.client import ClientRequestContext

    from tests.system.conftest import GatewayProcess

HANDSHAKE, NEWEST = "2025-11-25", "2026-07-28"
SCRIPT = NODE_PROJECT / "eras.mjs"


@dataclass(frozen=True)
class Way:
    """How a client comes.

    Attributes:
        sdk: whose client it is; `sse` is Python's over the transport of 2024-11-05.
        mode: the SDK's own, before the two find a revision.
        revision: that they find.
    """

    sdk: Literal["python", "typescript", "sse"]
    mode: Any
    revision: str


WAYS = {
    "python-legacy": Way("python", "legacy", HANDSHAKE),
    "python-auto": Way("python", "auto", NEWEST),
    "python-pinned": Way("python", NEWEST, NEWEST),
    "typescript-legacy": Way("typescript", "legacy", HANDSHAKE),
    "typescript-auto": Way("typescript", "auto", NEWEST),
    "typescript-pinned": Way("typescript", {"pin": NEWEST}, NEWEST),
    "sse": Way("sse", "legacy", HANDSHAKE),
}


Asks = tuple[tuple[str, dict[str, str]], tuple[str, dict[str, str]]]
"""Name and arguments of the tools that ask the person and the model."""

BY_REQUEST: Asks = ("test_elicitation", {"message": "?"}), ("test_sampling", {"prompt": "?"})
BY_RESULT: Asks = (
    ("test_input_required_result_elicitation", {}),
    ("test_input_required_result_sampling", {}),
)


@dataclass(frozen=True)
class Seen:
    """What a client saw of a server.

    Attributes:
        revision: that it speaks.
        lists: names of the tools, prompts and resources.
        text: the answer to a plain call.
        progress: of a call.
        person: the answer to a call that asked the person.
        model: the answer to one that asked the model.
        resource: the text of one.
    """

    revision: str
    lists: list[list[str]]
    text: str
    progress: list[float]
    person: str
    model: str
    resource: str


async def converse(gateway: GatewayProcess, server: str, name: str, node: Path) -> Seen:
    """Do everything once.

    Args:
        gateway: in front of the server.
        server: `legacy`, `modern` or `dual`, by the eras that it speaks.
        name: of the way. With a server from before, which cannot tell whose call asks, it is the
            client's handle in the newest era as well; the others are shared by such clients.
        node: the program.
    """
    way = WAYS[name]
    # Servers ask in the middle of the call where there is a handshake, and by their result where
    # there is none. The server that speaks both does as its client.
    by_result = server == "modern" or (server == "dual" and way.revision == NEWEST)
    asks = BY_RESULT if by_result else BY_REQUEST
    alone = server == "legacy" and way.revision == NEWEST
    place = f"{server}/handles/{name}" if alone else server
    async with asyncio.timeout(CONVERSATION_BOUND):
        if way.sdk == "typescript":
            return await _in_typescript(gateway.url(place), gateway.key, way, asks, node)
        async with python_client(gateway, place, way) as client:
            return await _in_python(client, asks)


async def fill_in(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
    """Be the person who writes Ada everywhere."""
    assert isinstance(params, ElicitRequestFormParams)
    fields = params.requested_schema["properties"]
    return ElicitResult(action="accept", content=dict.fromkeys(fields, "Ada"))


async def say_paris(
    context: ClientRequestContext, params: CreateMessageRequestParams
) -> CreateMessageResult:
    """Be the model that knows one word."""
    said = TextContent(type="text", text="Paris")
    return CreateMessageResult(role="assistant", content=said, model="geographer")


def python_client(
    gateway: GatewayProcess, place: str, way: Way
) -> AbstractAsyncContextManager[Client]:
    """The SDK's client, with a person and a model."""
    callbacks: dict[str, Any] = {"elicitation_callback": fill_in, "sampling_callback": say_paris}
    if way.sdk != "sse":
        return connected(gateway, place, mode=way.mode, **callbacks)
    url = f"{gateway.origin}/servers/{place}/sse"
    transport = sse_client(url, headers=gateway.headers, timeout=CONVERSATION_BOUND)
    return Client(transport, mode=way.mode, **callbacks)


async def _in_python(client: Client, asks: Asks) -> Seen:
    (person, to_person), (model, to_model) = asks
    progress = Progress()
    lists = [
        [tool.name for tool in (await client.list_tools()).tools],
        [prompt.name for prompt in (await client.list_prompts()).prompts],
        [str(resource.uri) for resource in (await client.list_resources()).resources],
    ]
    text = await call(client, "test_simple_text")  # the boot is over after it
    await client.call_tool("test_tool_with_progress", {}, progress_callback=progress)
    said = await call(client, person, **to_person), await call(client, model, **to_model)
    (resource,) = (await client.read_resource("test://static-text")).contents
    assert isinstance(resource, TextResourceContents)
    revision = client.protocol_version
    return Seen(revision, lists, text, progress.steps, *said, resource.text)


async def _in_typescript(url: str, key: str, way: Way, asks: Asks, node: Path) -> Seen:
    person, model = ({"name": tool, "arguments": arguments} for tool, arguments in asks)
    process = await asyncio.create_subprocess_exec(
        node,
        SCRIPT,
        json.dumps({"mode": way.mode, "person": person, "model": model}),
        env={"PATH": os.environ["PATH"], "MCP_URL": url, "MCP_KEY": key},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()
    return Seen(**json.loads(out))
