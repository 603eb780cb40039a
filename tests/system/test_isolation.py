"""Who shares a process in the era without sessions: real processes, told apart by their pids."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest_asyncio

from tests.system.conftest import REPOSITORY, GatewayProcess, watched
from tests.system.eras import fill_in
from tests.system.python_sdk import call, connected
from tests.system.talking import BOUND, PUPPET, refusal, the_message

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

REVISION = "2026-07-28"
CONFORMANCE_SERVER = REPOSITORY / "tests" / "fixtures" / "conformance_server.py"
ALICE, BOB = "key-of-alice", "key-of-bob"


@dataclass(frozen=True)
class House:
    """A gateway with two keys, and a client for both."""

    gateway: GatewayProcess
    http: aiohttp.ClientSession

    async def ask(
        self, server: str, key: str = ALICE, *, handle: str | None = None, request: int = 1
    ) -> Any:
        """Call `state` as a client of the newest revision; return the response message."""
        params = {
            "name": "state",
            "arguments": {},
            "_meta": {
                "io.modelcontextprotocol/protocolVersion": REVISION,
                "io.modelcontextprotocol/clientCapabilities": {},
                "io.modelcontextprotocol/clientInfo": {"name": "isolation", "version": "1"},
            },
        }
        headers = {
            "Authorization": f"Bearer {key}",
            "Accept": "application/json, text/event-stream",
            "MCP-Protocol-Version": REVISION,
            "Mcp-Method": "tools/call",
            "Mcp-Name": "state",
        }
        if handle is not None:
            headers["Rendezvous-Handle"] = handle
        body = {"jsonrpc": "2.0", "id": request, "method": "tools/call", "params": params}
        url = self.gateway.url(server)
        async with self.http.post(url, json=body, headers=headers) as response:
            return await the_message(response)

    async def pid(self, server: str, key: str = ALICE, **more: Any) -> int:
        """The process that answers a call."""
        answer = await self.ask(server, key, **more)
        return int(answer["result"]["pid"])

    async def pids(self, *calls: dict[str, Any]) -> list[int]:
        """The processes that answer calls made at the same time."""
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.pid(**each)) for each in calls]
        return [task.result() for task in tasks]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    tmp_path_factory: pytest.TempPathFactory,
    running: list[GatewayProcess],
) -> AsyncIterator[GatewayProcess]:
    """A gateway with two keys and a server for each kind of isolation."""
    servers: dict[str, dict[str, Any]] = {
        isolation: {**PUPPET, "isolation": isolation}
        for isolation in ("principal", "handle", "request")
    }
    servers["asking"] = {
        "command": sys.executable,
        "args": [str(CONFORMANCE_SERVER)],
        "isolation": "request",
    }
    process = GatewayProcess(
        tmp_path_factory.mktemp("isolation"),
        servers,
        {"API_KEY": f"alice:{ALICE},bob:{BOB}"},
        defaults={"era": "modern", "catalogue": False},  # no throw-away runs among the processes
    )
    process.key = ALICE
    async with watched(process, running):
        yield process


@pytest_asyncio.fixture
async def house(gateway: GatewayProcess) -> AsyncIterator[House]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=BOUND)) as http:
        yield House(gateway, http)


async def test_principals_with_equal_ids_and_handles_do_not_meet(house: House) -> None:
    alices, bobs = await house.pids(
        {"server": "principal", "key": ALICE, "handle": "one"},
        {"server": "principal", "key": BOB, "handle": "one"},
    )
    assert alices != bobs


async def test_principals_without_handles_do_not_meet(house: House) -> None:
    alices, bobs = await house.pids(
        {"server": "principal", "key": ALICE}, {"server": "principal", "key": BOB}
    )
    assert alices != bobs


async def test_requests_of_a_principal_share_a_process(house: House) -> None:
    first, same = await house.pids({"server": "principal"}, {"server": "principal"})
    assert first == same == await house.pid("principal", request=2)


async def test_each_handle_of_a_principal_has_a_process(house: House) -> None:
    one, two, same = await house.pids(
        {"server": "handle", "handle": "one"},
        {"server": "handle", "handle": "two"},
        {"server": "handle", "handle": "one", "request": 2},
    )
    assert one != two
    assert one == same


async def test_handle_in_the_path_is_the_one_in_the_header(house: House) -> None:
    by_header = await house.pid("handle", handle="same")
    assert by_header == await house.pid("handle/handles/same")


async def test_server_with_isolated_handles_wants_one(house: House) -> None:
    answer = await house.ask("handle")
    assert refusal(answer)[1:] == ("missing_handle", 1)


async def test_each_isolated_request_has_a_process_that_does_not_stay(house: House) -> None:
    before = set(house.gateway.processes())
    first, second = await house.pids({"server": "request"}, {"server": "request"})
    assert first != second
    await house.gateway.until(
        lambda: not set(house.gateway.processes()) - before, "no process of a request is left"
    )


async def test_isolated_request_that_asks_is_continued_in_its_process(house: House) -> None:
    """The server seals its questions with a key that dies with it: no other can take them back."""
    before = set(house.gateway.processes())
    tool = "test_input_required_result_request_state"
    async with connected(
        house.gateway, "asking", mode=REVISION, elicitation_callback=fill_in
    ) as client:
        assert await call(client, tool) == "state-ok"
    await house.gateway.until(
        lambda: not set(house.gateway.processes()) - before, "no process of a request is left"
    )
