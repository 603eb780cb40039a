"""What watching costs: a gateway's throughput with and without a console that looks at it.

`python -m bench.console` starts one gateway, as `serve` does, with the local launcher and an echo
server, and opens 1,000 sessions. Some have a dyno and make calls at a steady pace of 200 messages a
second; the others were opened and wait. Then the throughput of still other sessions is measured,
many calls in flight, while

- nobody watches;
- a console is open: the list of sessions every two seconds, the live tail of a session that makes
  calls, the failures every ten seconds, which is what its pages ask for;
- nobody watches, and messages are not recorded (`record: off`), to see what the recorder costs.

Every answer is checked to belong to its call. Settings alternate from round to round; the table
shows medians. The gateway's own CPU time per call stands beside the throughput, as load, children
and gateway share the machine. Raw figures go to `bench/results/console.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import platform
import secrets
import socket
import statistics
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import psutil

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "console.json"

NOBODY, CONSOLE, UNRECORDED = "nobody watches", "a console is open", "messages are not recorded"
SETTINGS = (NOBODY, CONSOLE, UNRECORDED)

IN_FLIGHT = 16
PACED, LOADED = 10, 8
"""Sessions that make calls at a steady pace, and those (of each server) that are measured."""

MESSAGES_PER_CALL = 2
LIST_S, FAILURES_S = 2.0, 10.0
SERVING_S, CALL_S = 30.0, 30.0

Figures = dict[str, Any]


@dataclass(frozen=True)
class Orders:
    """What was asked for on the command line."""

    rounds: int
    seconds: float
    sessions: int
    messages: float


@dataclass
class Tally:
    """What was counted so far.

    Attributes:
        right: answers that were their call's.
        errors: all others, and calls without one.
        looks: seconds that each look of the console took.
        lines: of the tail.
    """

    right: int = 0
    errors: int = 0
    looks: list[float] = field(default_factory=list)
    lines: int = 0


class Gateway:
    """One gateway process and the way in."""

    def __init__(self, folder: Path, sessions: int) -> None:
        self._folder = folder
        self._sessions = sessions
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self.key, self.admin_key = secrets.token_urlsafe(32), secrets.token_urlsafe(32)

    @asynccontextmanager
    async def serving(self, http: aiohttp.ClientSession) -> AsyncIterator[psutil.Process]:
        """Run it; the process is there once it answers."""
        child: dict[str, Any] = {
            "command": sys.executable,
            "args": ["-m", "bench.echo"],
            "cwd": str(ROOT),
        }
        child |= {"era": "legacy", "idle_timeout": 3600}  # longer than this takes
        servers = {"echo": {**child, "default": True}, "mute": {**child, "record": "off"}}
        path = self._folder / "servers.json"
        path.write_text(json.dumps({"mcpServers": servers}), encoding="utf-8")
        environment = {
            **os.environ,
            "PORT": str(self._port),
            "API_KEY": self.key,
            "ADMIN_KEY": self.admin_key,
            "GATEWAY_SERVERS": str(path),
            "MAX_SESSIONS": str(self._sessions),
            "LOG_LEVEL": "warning",
        }
        log = (self._folder / "gateway.log").open("wb")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway", "serve", env=environment, stderr=log, cwd=ROOT
        )
        try:
            async with asyncio.timeout(SERVING_S):
                while not await self._answers(http):  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.1)
            yield psutil.Process(process.pid)
        finally:
            process.terminate()
            await process.wait()
            log.close()

    async def _answers(self, http: aiohttp.ClientSession) -> bool:
        with contextlib.suppress(aiohttp.ClientError):
            async with http.get(f"{self.url}/health") as response:
                return response.status == 200
        return False


class Client:
    """One session and its calls."""

    def __init__(self, http: aiohttp.ClientSession, gateway: Gateway, server: str) -> None:
        self._http = http
        self._url = f"{gateway.url}/servers/{server}/mcp"
        self._headers = {
            "Authorization": f"Bearer {gateway.key}",
            "Accept": "application/json, text/event-stream",
        }
        self._ids = itertools.count(1)

    async def open(self) -> None:
        """Open the session."""
        client = {"name": "bench", "version": "1"}
        params = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client}
        message = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
        async with self._http.post(self._url, json=message, headers=self._headers) as response:
            response.raise_for_status()
            self._headers["Mcp-Session-Id"] = response.headers["Mcp-Session-Id"]
        ready = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        async with self._http.post(self._url, json=ready, headers=self._headers) as response:
            response.raise_for_status()

    async def call(self, tally: Tally) -> None:
        """Make a call, and count it."""
        number = next(self._ids)
        params = {"name": "echo", "arguments": {"n": number}}
        message = {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}
        try:
            async with (
                asyncio.timeout(CALL_S),
                self._http.post(self._url, json=message, headers=self._headers) as response,
            ):
                answer = await response.json()
            said = json.loads(answer["result"]["content"][0]["text"])
            right = (answer["id"], said) == (number, {"n": number})
        except (aiohttp.ClientError, TimeoutError, KeyError, ValueError):
            right = False
        tally.right += right
        tally.errors += not right


class Watcher:
    """Asks for what the console's pages ask for."""

    def __init__(self, http: aiohttp.ClientSession, gateway: Gateway) -> None:
        self._http = http
        self._base = f"{gateway.url}/admin/v1"
        self._headers = {"Authorization": f"Bearer {gateway.admin_key}"}

    async def sessions(self, **query: str) -> dict[str, Any]:
        """Return a page of the list of sessions."""
        return await self._get("/sessions", query)

    async def _get(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        address = self._base + path
        async with self._http.get(address, params=query, headers=self._headers) as response:
            response.raise_for_status()
            document: dict[str, Any] = await response.json()
            return document

    async def watch(self, session: str, tally: Tally) -> None:
        """Look until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._list(tally))
            tasks.create_task(self._failures())
            tasks.create_task(self._tail(session, tally))

    async def _list(self, tally: Tally) -> None:
        while True:
            began = time.perf_counter()
            await self.sessions(live="true", sort="calls")
            tally.looks.append(time.perf_counter() - began)
            await asyncio.sleep(LIST_S)

    async def _failures(self) -> None:
        while True:
            await self._get("/failures", {})
            await asyncio.sleep(FAILURES_S)

    async def _tail(self, session: str, tally: Tally) -> None:
        address = f"{self._base}/sessions/{session}/tail"
        async with self._http.get(address, headers=self._headers) as response:
            response.raise_for_status()
            async for line in response.content:
                tally.lines += line.startswith(b"data:")


class Bench:
    """A gateway full of sessions, and what is measured of it."""

    def __init__(self, http: aiohttp.ClientSession, gateway: Gateway, orders: Orders) -> None:
        self._http, self._gateway, self._orders = http, gateway, orders
        self._watcher = Watcher(http, gateway)
        self._paced = [Client(http, gateway, "echo") for _ in range(PACED)]
        self._loaded = {
            server: [Client(http, gateway, server) for _ in range(LOADED)]
            for server in ("echo", "mute")
        }
        self._followed = ""

    async def fill(self) -> int:
        """Open all sessions; return how many the gateway says there are."""
        active = [*self._paced, *itertools.chain(*self._loaded.values())]
        idle = self._orders.sessions - len(active)
        waiting = [Client(self._http, self._gateway, "echo") for _ in range(idle)]
        room = asyncio.Semaphore(4)

        async def opened(client: Client, *, boots: bool) -> None:
            async with room:
                await client.open()
                if boots:
                    await client.call(Tally())

        async with asyncio.TaskGroup() as tasks:
            for client in active:
                tasks.create_task(opened(client, boots=True))
        async with asyncio.TaskGroup() as tasks:
            for client in waiting:
                tasks.create_task(opened(client, boots=False))
        tally = Tally()
        for _ in range(2):
            for client in self._paced:
                await client.call(tally)
        page = await self._watcher.sessions(live="true", sort="calls", server="echo")
        self._followed = page["sessions"][0]["session"]
        return sum((await self._watcher.sessions(live="true"))["by_state"].values())

    async def measure(self, setting: str, process: psutil.Process) -> Figures:
        """Measure one setting for a while."""
        tally, paced = Tally(), Tally()
        server = "mute" if setting == UNRECORDED else "echo"
        async with asyncio.TaskGroup() as beside:
            others = [beside.create_task(self._pace(paced))]
            if setting == CONSOLE:
                others.append(beside.create_task(self._watcher.watch(self._followed, tally)))
            await asyncio.sleep(0.5)
            before, paced_before, began = _cpu_s(process), paced.right, time.perf_counter()
            await self._load(server, tally)
            seconds = time.perf_counter() - began
            calls = tally.right + paced.right - paced_before
            cpu_s = _cpu_s(process) - before
            for task in others:
                task.cancel()
        return {
            "setting": setting,
            "per_s": round(tally.right / seconds, 1),
            "cpu_us_per_call": round(cpu_s / max(1, calls) * 1e6, 1),
            "paced_per_s": round((paced.right - paced_before) / seconds * MESSAGES_PER_CALL, 1),
            "look_ms": [round(look * 1000, 2) for look in tally.looks],
            "tail_lines": tally.lines,
            "errors": tally.errors + paced.errors,
        }

    async def _load(self, server: str, tally: Tally) -> None:
        end = time.perf_counter() + self._orders.seconds
        clients = itertools.cycle(self._loaded[server])

        async def lane(client: Client) -> None:
            while time.perf_counter() < end:
                await client.call(tally)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(IN_FLIGHT):
                tasks.create_task(lane(next(clients)))

    async def _pace(self, tally: Tally) -> None:
        """Make calls at the pace that was ordered, whatever the answers take."""
        every_s = MESSAGES_PER_CALL / self._orders.messages
        due = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for client in itertools.cycle(self._paced):
                due += every_s
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                tasks.create_task(client.call(tally))


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def measure_all(orders: Orders) -> Figures:
    """Do all rounds; return raw figures."""
    with tempfile.TemporaryDirectory(prefix="bench-console-") as folder:
        gateway = Gateway(Path(folder), orders.sessions)
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(connector=connector) as http,
            gateway.serving(http) as process,
        ):
            bench = Bench(http, gateway, orders)
            live = await bench.fill()
            say(f"{live} sessions live")
            await bench.measure(NOBODY, process)  # to warm up
            rounds = []
            for number in range(1, orders.rounds + 1):
                say(f"round {number} of {orders.rounds}")
                turn = SETTINGS if number % 2 else SETTINGS[::-1]
                rounds += [await bench.measure(setting, process) for setting in turn]
    machine = {"cpus": os.cpu_count(), "python": platform.python_version()}
    return {"machine": machine, "sessions": live, "rounds": rounds}


def table(figures: Figures) -> str:
    """Return the medians over the rounds as Markdown."""
    by = {
        setting: [each for each in figures["rounds"] if each["setting"] == setting]
        for setting in SETTINGS
    }
    speed = {
        name: statistics.median(each["per_s"] for each in rounds) for name, rounds in by.items()
    }
    cost = {
        name: statistics.median(each["cpu_us_per_call"] for each in rounds)
        for name, rounds in by.items()
    }
    lines = [
        "| | calls/s | ratio | gateway's CPU µs/call | ratio | errors |",
        "|---|---|---|---|---|---|",
    ]
    for name, rounds in by.items():
        errors = sum(each["errors"] for each in rounds)
        lines.append(
            f"| {name} | {speed[name]:.0f} | {speed[name] / speed[NOBODY]:.3f} "
            f"| {cost[name]:.0f} | {cost[name] / cost[NOBODY]:.3f} | {errors} |"
        )
    looks = [look for each in by[CONSOLE] for look in each["look_ms"]]
    usual, longest = statistics.median(looks), max(looks)
    lines += ["", f"a look at the list: median {usual:.1f} ms, longest {longest:.1f} ms"]
    return "\n".join(lines)


def say(line: str) -> None:
    """Print a line now."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """Run the command line. Returns the exit code: 0 if there was no error."""
    parser = argparse.ArgumentParser(prog="python -m bench.console", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each setting")
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--messages", type=float, default=200.0, help="a second, beside")
    figures = asyncio.run(measure_all(Orders(**vars(parser.parse_args()))))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(figures) + "\n", encoding="utf-8")
    say(table(figures))
    return 1 if any(each["errors"] for each in figures["rounds"]) else 0


if __name__ == "__main__":
    raise SystemExit(main())
