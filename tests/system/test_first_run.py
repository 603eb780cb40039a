"""What a newcomer runs: the demo, and `quickstart` in an empty directory."""

import asyncio
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import aiohttp
import pytest

ROOT = Path(__file__).resolve().parents[2]
DEMO_S, START_S, STOP_S = 240, 30, 30
OURS = {"API_KEY", "GATEWAY_SECRET", "GATEWAY_SERVERS", "GATEWAY_URL", "LAUNCHER", "REDIS_URL"}


def environment(**settings: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in OURS}
    return {**kept, "PYTHONPATH": str(ROOT), **settings}


@pytest.mark.timeout(DEMO_S + 10)  # it installs a package, beside tests that load the machine
async def test_demo_runs_the_seeds_request_and_ends_with_its_figures() -> None:
    demo = await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "scripts" / "demo.py"),
        env=environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(DEMO_S):
        said, complained = await demo.communicate()
    assert demo.returncode == 0, complained.decode()[-4000:]
    last = said.decode().rstrip().splitlines()[-1]
    assert re.fullmatch(r"demo: ok session_seconds=[\d.]+ call_ms=[\d.]+", last)


@pytest.mark.usefixtures("measured")
async def test_quickstart_makes_a_key_and_prints_a_snippet_that_works(
    tmp_path: Path, unused_tcp_port: int
) -> None:
    shutil.copy(ROOT / "servers.json", tmp_path)
    gateway = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway",
        "quickstart",
        cwd=tmp_path,
        env=environment(PORT=str(unused_tcp_port), PYTHONUNBUFFERED="1"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert gateway.stdout is not None
    try:
        async with asyncio.timeout(START_S):
            greeting = (await gateway.stdout.readuntil(b"\n}\n")).decode()
            snippet = json.loads(greeting[greeting.index("{\n") :])
            await assert_lists_tools(snippet["mcpServers"]["dyno-gateway"])
    finally:
        gateway.send_signal(signal.SIGINT)  # Ctrl-C; SIGTERM would hand the session over
        async with asyncio.timeout(STOP_S):
            assert await gateway.wait() == 0
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600


async def assert_lists_tools(server: dict[str, object]) -> None:
    """Open a session as the snippet says and find the bundled tool."""
    url, headers = str(server["url"]), server["headers"]
    assert isinstance(headers, dict)
    headers |= {"Accept": "application/json, text/event-stream"}
    initialize = {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    }
    async with aiohttp.ClientSession(headers=headers) as http:
        body = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": initialize}
        async with http.post(url, json=body) as answer:
            assert answer.status == 200
            key = answer.headers["Mcp-Session-Id"]
        session = {"Mcp-Session-Id": key}
        note = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        async with http.post(url, json=note, headers=session) as answer:
            assert answer.status == 202
        ask = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
        async with http.post(url, json=ask, headers=session) as answer:
            names = [tool["name"] for tool in (await answer.json())["result"]["tools"]]
    assert names == ["code_exec_python"]
