"""The unmodified TypeScript SDK client through a real gateway to real stdio servers.

One conversation a server (tests/system/node/acceptance.mjs), then a test for each thing it saw.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

if TYPE_CHECKING:
    from pathlib import Path

    from tests.system.conftest import GatewayProcess

pytestmark = [
    pytest.mark.timeout(300),  # the first test may have to wait for `npm install`
    pytest.mark.xdist_group("typescript_sdk"),  # one conversation serves them all
]

CONVERSATION_BOUND = 90.0
"""Seconds for all the steps of one conversation, the server's start included."""


async def converse(
    gateway: GatewayProcess, server: str, plan: dict[str, Any], *, node: Path, script: Path
) -> dict[str, Any]:
    """Run acceptance.mjs; return what it printed."""
    process = await asyncio.create_subprocess_exec(
        node,
        script,
        json.dumps(plan),
        env={"PATH": os.environ["PATH"], "MCP_URL": gateway.url(server), "MCP_KEY": gateway.key},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(CONVERSATION_BOUND):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()
    results: dict[str, Any] = json.loads(out)
    assert "connection" not in results, results["connection"]
    return results


@pytest.fixture(scope="module")
def marker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that our server writes when its call is cancelled."""
    return tmp_path_factory.mktemp("typescript") / "cancelled"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ours(
    gateway: GatewayProcess, node: Path, node_modules: Path, marker: Path
) -> dict[str, Any]:
    """What the client saw of our fixture server."""
    plan = {
        "call": {"name": "add", "arguments": {"a": 40, "b": 2}},
        "progress": {"name": "progress", "arguments": {"steps": 25}},
        "elicitation": {"name": "ask", "arguments": {"question": "Colour?"}},
        "answer": {"answer": "blue"},
        "sampling": {"name": "sample", "arguments": {"prompt": "say it"}},
        "cancel": {"name": "wait_for_cancel", "arguments": {"marker": str(marker)}},
    }
    script = node_modules.parent / "acceptance.mjs"
    return await converse(gateway, "everything", plan, node=node, script=script)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reference(gateway: GatewayProcess, node: Path, node_modules: Path) -> dict[str, Any]:
    """What the client saw of the reference server."""
    long_running = "trigger-long-running-operation"
    plan = {
        "call": {"name": "get-sum", "arguments": {"a": 40, "b": 2}},
        "progress": {"name": long_running, "arguments": {"duration": 0.2, "steps": 10}},
        "elicitation": {"name": "trigger-elicitation-request", "arguments": {}},
        "answer": {"name": "Ada", "integer": 7},
        "sampling": {"name": "trigger-sampling-request", "arguments": {"prompt": "say it"}},
        "cancel": {"name": long_running, "arguments": {"duration": 2, "steps": 20}},
    }
    script = node_modules.parent / "acceptance.mjs"
    return await converse(gateway, "reference", plan, node=node, script=script)


@pytest.fixture(params=["ours", "reference"])
def seen(
    request: pytest.FixtureRequest, ours: dict[str, Any], reference: dict[str, Any]
) -> dict[str, Any]:
    """What the client saw of either server."""
    return {"ours": ours, "reference": reference}[request.param]


async def test_client_gets_a_session_at_its_newest_revision(seen: dict[str, Any]) -> None:
    assert seen["session"]
    assert seen["revision"] == "2025-11-25"


async def test_tools_are_listed(ours: dict[str, Any], reference: dict[str, Any]) -> None:
    assert ours["server"] == "everything"
    assert {"echo", "add", "crash"} <= set(ours["tools"])
    assert reference["server"] == "mcp-servers/everything"
    assert {"echo", "get-sum"} <= set(reference["tools"])


async def test_call_is_answered(ours: dict[str, Any], reference: dict[str, Any]) -> None:
    assert ours["call"] == "42"
    assert reference["call"] == "The sum of 40 and 2 is 42."


async def test_progress_arrives_complete_and_in_order(
    ours: dict[str, Any], reference: dict[str, Any]
) -> None:
    assert ours["progress"] == {"steps": list(range(1, 26)), "result": "25 steps"}
    assert reference["progress"]["steps"] == list(range(1, 11))


async def test_elicitation_reaches_the_person_and_the_answer_the_server(
    ours: dict[str, Any], reference: dict[str, Any]
) -> None:
    assert ours["seen"]["elicited"] == ["Colour?"]
    assert json.loads(ours["elicitation"]) == {"action": "accept", "content": {"answer": "blue"}}
    assert len(reference["seen"]["elicited"]) == 1
    assert "- Name: Ada\n- Favorite Integer: 7" in reference["elicitation"]


async def test_sampling_request_is_answered_by_the_clients_model(
    ours: dict[str, Any], reference: dict[str, Any]
) -> None:
    assert ours["seen"]["sampled"] == ["say it"]
    assert ours["sampling"] == "SAY IT"
    assert "SAY IT" in reference["sampling"]


async def test_aborted_call_is_rejected_and_the_session_goes_on(seen: dict[str, Any]) -> None:
    assert seen["cancel"]["rejected"] is True
    assert "the person pressed stop" in seen["cancel"]["because"]
    assert seen["after_cancel"] == seen["call"]


async def test_aborted_call_is_cancelled_in_the_server(
    gateway: GatewayProcess, ours: dict[str, Any], marker: Path
) -> None:
    assert ours["cancel"]["rejected"] is True
    await gateway.until(marker.is_file, "the server sees the cancellation")


async def test_client_notices_no_error(seen: dict[str, Any]) -> None:
    assert seen["seen"]["errors_before_close"] == []


async def test_terminated_session_leaves_no_process(
    gateway: GatewayProcess, seen: dict[str, Any]
) -> None:
    assert seen["terminate"] == {"session": None}
    await gateway.until(lambda: not gateway.processes(), "no process of a session is left")
