"""Strangers at the agents' door of a real gateway: refused, while real agents work on.

What an agent with a token can do wrong is shown in tests/edge/test_rendezvous.py, in one process.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import aiohttp
import pytest
import pytest_asyncio

from tests.system.conftest import PLAIN, GatewayProcess, watched

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

pytestmark = pytest.mark.timeout(120)

BOUND = 30.0
"""Seconds for one exchange, a boot on a busy machine included."""

LINK = "/agent/v1/link"

ECHO = """
import json, sys

for line in sys.stdin:
    message = json.loads(line)
    if "id" in message:
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": {}}), flush=True)
"""

UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Protocol": "rdv.v1",
}
"""The example of RFC 6455, 1.2, with our subprotocol."""


@dataclass(frozen=True)
class Stranger:
    """What a stranger sends besides a proper upgrade, and the status it gets."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)


STRANGERS = {
    "no-token": Stranger(401),
    "garbage": Stranger(401, {"Authorization": "Bearer garbage"}),
    "unknown-token": Stranger(401, {"Authorization": "Bearer rj_0123456789abcdef.secret"}),
    "unknown-resume": Stranger(401, {"Authorization": "Bearer rr_0123456789abcdef.secret"}),
    "not-ascii": Stranger(401, {"Authorization": "Bearer rj_\u00e9.\u00e9"}),
    "browser": Stranger(403, {"Origin": "https://evil.example"}),
    "other-subprotocol": Stranger(400, {"Sec-WebSocket-Protocol": "rdv.v0"}),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    tmp_path_factory: pytest.TempPathFactory, running: list[GatewayProcess]
) -> AsyncIterator[GatewayProcess]:
    """A gateway whose only server answers everything."""
    servers = {"echo": {"command": sys.executable, "args": ["-c", ECHO]}}
    process = GatewayProcess(tmp_path_factory.mktemp("link"), servers, defaults=PLAIN)
    async with watched(process, running):
        yield process


@pytest_asyncio.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=BOUND)) as session:
        yield session


async def knock(
    http: aiohttp.ClientSession, gateway: GatewayProcess, headers: Mapping[str, str]
) -> int:
    async with http.get(gateway.origin + LINK, headers={**UPGRADE, **headers}) as response:
        return response.status


async def ask(
    http: aiohttp.ClientSession, gateway: GatewayProcess, method: str, session: str | None
) -> aiohttp.ClientResponse:
    body = {"jsonrpc": "2.0", "id": 1, "method": method}
    accept = {"Accept": "application/json, text/event-stream"}
    known = {} if session is None else {"Mcp-Session-Id": session}
    headers = {**gateway.headers, **accept, **known}
    async with http.post(gateway.url(), json=body, headers=headers) as response:
        await response.read()
    return response


@pytest.mark.parametrize("stranger", STRANGERS.values(), ids=list(STRANGERS))
async def test_stranger_is_refused_before_the_upgrade(
    http: aiohttp.ClientSession, gateway: GatewayProcess, stranger: Stranger
) -> None:
    assert await knock(http, gateway, stranger.headers) == stranger.status


async def test_api_key_of_a_client_opens_no_link(
    http: aiohttp.ClientSession, gateway: GatewayProcess
) -> None:
    assert await knock(http, gateway, gateway.headers) == 401


async def test_session_and_gateway_work_on_while_strangers_knock(
    http: aiohttp.ClientSession, gateway: GatewayProcess
) -> None:
    hello = await ask(http, gateway, "initialize", None)
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
        for stranger in list(STRANGERS.values()) * 10:
            group.create_task(knock(http, gateway, stranger.headers))
    answer = await ask(http, gateway, "ping", hello.headers["Mcp-Session-Id"])
    assert await answer.json() == {"jsonrpc": "2.0", "id": 1, "result": {}}
    assert (await gateway.health())["status"] == "ok"
