"""The two questions of Heroku's templates, with the real code execution server in a real dyno."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import socket
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web

import gateway
from gateway.app import SHUTDOWN_S, build
from gateway.deployment import realm_of
from gateway.launchers.local import LocalLauncher
from gateway.registry.servers import Registry, ServerDefinition
from gateway.sessions.manager import Manager
from gateway.sessions.terms import Terms
from gateway.settings import Settings
from tests.fakes import inference
from tests.fakes.inference import Asked, call, calls, says
from tests.v1.agents_house import content, result
from tests.v1.documented import events, example

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.timeout(120)

KEY = "key-of-the-test"

BOUND = 60.0
"""Seconds for a run with two boots, on a machine that does much else."""

ROOT = str(Path(gateway.__file__).parents[1])

SERVER = ServerDefinition(
    name="mcp-python",
    command=sys.executable,
    args=["-m", "mcp_servers.code_exec"],
    env={"PYTHONPATH": ROOT},
    era="legacy",
    translate=False,
)

CODE = "import hashlib\nprint(hashlib.sha256('Purple Python'.encode()).hexdigest())"

QUESTIONS: dict[str, Any] = example("agent_requests")


def schema(asked: Asked) -> str:
    """What a model says that was asked for the input schema."""
    (tool,) = asked.body["tools"]
    return json.dumps(tool["function"]["parameters"])


def digest(asked: Asked) -> str:
    """What a model says that has read what the tool has printed."""
    return f"It is {json.loads(asked.results[0])['stdout']}."


@asynccontextmanager
async def serving(inference_url: str) -> AsyncIterator[tuple[str, Manager]]:
    """Serve a gateway whose dynos are processes of this machine, on a port of its own."""
    port = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{port.getsockname()[1]}"
    secret = secrets.token_bytes(32)
    settings = Settings.model_validate(
        {
            "api_key": KEY,
            "bind_host": "127.0.0.1",
            "inference_url": inference_url,
            "inference_key": inference.KEY,
        }
    )
    registry = Registry([SERVER])
    launcher = LocalLauncher(os.environ, realm_of(secret))
    manager = Manager(launcher, registry, Terms(url, secret, 10))
    runner = web.AppRunner(
        build(settings, registry, manager), handler_cancellation=True, shutdown_timeout=SHUTDOWN_S
    )
    await runner.setup()
    try:
        await web.SockSite(runner, port).start()
        yield url, manager
    finally:
        await runner.cleanup()


async def test_both_questions_end_with_what_the_tool_really_says() -> None:
    wanted = calls(call("mcp-python__code_exec_python", {"code": CODE}), text="let me see")
    async with (
        inference.playing(says(schema), wanted, says(digest)) as model,
        serving(model.url) as (url, manager),
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http,
        asyncio.timeout(BOUND),
    ):

        async def asks(body: Any) -> list[Any]:
            async with http.post(f"{url}/v1/agents/heroku", json=body) as response:
                raw = await response.text()
                assert response.status == 200, raw
            return [json.loads(data) for _, data in events(raw)[:-1]]

        (told,) = await asks(QUESTIONS["input schema"])
        async with http.get(f"{url}/v1/mcp/servers") as response:
            ((tool,),) = [each["tools"] for each in await response.json()]
        assert json.loads(content(told)) == tool["input_schema"]
        assert set(tool["input_schema"]["properties"]) >= {"code", "packages"}
        assert tool["namespaced_name"] == "mcp-python/code_exec_python"

        _, returned, last = await asks(QUESTIONS["sha256"])
        printed = hashlib.sha256(b"Purple Python").hexdigest()
        (block,) = result(returned)["content"]
        assert json.loads(block["text"])["stdout"] == printed
        assert content(last) == f"It is {printed}."
        while manager.sessions:  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.01)
