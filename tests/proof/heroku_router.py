"""Phase 2 of the Heroku proof: behind the platform's router, with its real limits.

Clients and agents come through it. Some are silent for long; meanwhile a morning's rush of sessions
waits for dynos that boot slowly, and for room. Nothing of it may be cut by the router.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import httpx2
from mcp.shared.exceptions import MCPError

from tests.fakes.fault_proxy import HOST
from tests.fakes.router import Router
from tests.heroku_emulator import Options
from tests.proof import router_scenarios as scenarios
from tests.proof.client import Patience
from tests.proof.heroku_findings import Findings, counted, spread, wind_up
from tests.proof.heroku_stage import APP, LIGHT, Setting, Stage, say, until_so
from tests.proof.heroku_visit import Leaving, Tally, Visit, Visitor

if TYPE_CHECKING:
    from collections.abc import Awaitable

EVERYTHING = Path(__file__).resolve().parents[1] / "fixtures" / "everything.py"

SERVERS = {
    "mcp-light": LIGHT,
    "mcp-everything": f"{sys.executable} {EVERYTHING}",
    "mcp-modern": f"{sys.executable} {EVERYTHING}",
}
"""Found by discovery, with catalogues from throw-away runs."""

COMPLETED = {"mcp-modern": {"app": APP, "process_type": "mcp-modern", "idle_timeout": 20.0}}
"""The one whose sessions no client can end, as it has none: nobody waits for its idle time-out."""

WITHOUT_WORK = 2.0
"""Boot delay while the servers are looked at for the first time."""

RUSH_S = 10.0
"""In which all of them come."""

RUSH_BOUND_S = 600.0
EMPTY_S = 90.0
KNOWN_S = 120.0

PATIENCE = Patience(call_s=500.0, silence_s=50.0)
"""For a dyno: in line, then for its boot. Nobody is silent for as long as the router cuts."""

WITH_DYNO = 3
"""Silences that need a dyno; an idle GET stream needs none."""

SHOWN = 20

FAILURES = (
    scenarios.Broken,
    MCPError,
    TimeoutError,
    OSError,
    aiohttp.ClientError,
    httpx2.HTTPError,
)
"""How a scenario breaks."""


class Behind:
    """The phase.

    Args:
        seed: of boot delays and arrivals.
        minutes: of silence.
        rush: sessions at once.
        boot_s: least and longest boot delay in the rush.
        folder: that does not exist yet.

    Attributes:
        calm: set once the servers are known and all silences have begun.
        rush_now: to be set by whoever runs this: the rush waits for it.
    """

    def __init__(
        self, seed: int, minutes: float, rush: int, boot_s: tuple[float, float], folder: Path
    ) -> None:
        self.calm, self.rush_now = asyncio.Event(), asyncio.Event()
        self._silent_s = minutes * 60
        self._rush = rush
        self._boot_s = boot_s
        self._chance = random.Random(seed)  # noqa: S311 - repeatable, not secret
        settings = {"MAX_SESSIONS": "200", "QUEUE_LENGTH": "100", "QUEUE_TIMEOUT_S": "450"}
        options = Options(boot_delay=(0.0, WITHOUT_WORK), seed=seed, stop_grace=3.0)
        self._stage = Stage(folder, Setting(SERVERS, COMPLETED, settings, options))
        self._tally = Tally()
        self._found = Findings()

    async def run(self) -> Findings:
        """Do all of it."""
        async with self._stage as stage, Router([(HOST, stage.port)]) as router:
            stage.public_url = router.url
            await stage.start()
            await stage.registered(*SERVERS)
            await self._known()
            async with asyncio.TaskGroup() as tasks:
                for name, silence in self._silences(router.url).items():
                    tasks.create_task(self._endure(name, silence))
                await self._all_silent()
                await self.rush_now.wait()
                await self._rush_in(router)
            await stage.emptied(EMPTY_S)
            self._judge(router)  # before the gateway ends, and cuts what is open
            await wind_up(stage, self._found, EMPTY_S)
        self._judge_rush()
        return self._found

    async def _known(self) -> None:
        """Wait until it was learned what the servers answer: the boots of the rush are slow."""
        if not await until_so(self._is_known, KNOWN_S):
            raise TimeoutError(f"the servers were not looked at within {KNOWN_S:.0f} s")

    async def _is_known(self) -> bool:
        learned = {r["server"] for r in self._stage.records() if r["event"] == "learned"}
        return learned == SERVERS.keys() and not await self._stage.left()

    # Silences

    def _silences(self, url: str) -> dict[str, Awaitable[scenarios.Seen]]:
        key, server, seconds = self._stage.key, "mcp-everything", self._silent_s
        return {
            "a silent call": scenarios.silent_call(url, key, server, seconds),
            "a silent call of the modern era": scenarios.silent_call(
                url, key, "mcp-modern", seconds, mode="auto"
            ),
            "an idle GET stream": scenarios.idle_stream(url, key, server, seconds),
            "an idle link": scenarios.idle_link(url, key, server, seconds),
        }

    async def _endure(self, name: str, silence: Awaitable[scenarios.Seen]) -> None:
        began = time.monotonic()
        seen, told = None, ""
        try:
            seen = await silence
        except* FAILURES as failures:
            told = "; ".join(map(repr, _leaves(failures)))
        if seen is None:
            after_s = time.monotonic() - began
            self._found.broken.append(f"{name} broke after {after_s:.0f} s: {told}")
            say(f"  phase 2: {name} broke after {after_s:.0f} s: {told}")
            return
        told = f"{seen.seconds:.0f} s"
        if seen.reads:
            told += f", {seen.reads} keep-alives, at most {seen.gap_s:.0f} s apart"
        self._found.figures.append((f"router: {name}", told))
        say(f"  phase 2: {name} lasted {told}")

    async def _all_silent(self) -> None:
        """Wait until the dynos of the silent have booted; an idle GET stream needs none."""
        if not await until_so(self._is_silent, KNOWN_S):
            raise TimeoutError(f"the silent had no dynos within {KNOWN_S:.0f} s")
        self.calm.set()

    async def _is_silent(self) -> bool:
        up = [dyno for dyno in await self._stage.left() if dyno.state == "up"]
        return len(up) >= WITH_DYNO

    # The rush

    async def _rush_in(self, router: Router) -> None:
        self._stage.heroku.options.boot_delay = self._boot_s
        began = time.monotonic()
        headers = {"Authorization": f"Bearer {self._stage.key}"}
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(headers=headers, connector=connector) as http,
            asyncio.timeout(RUSH_BOUND_S),
            asyncio.TaskGroup() as tasks,
        ):
            for _ in range(self._rush):
                tasks.create_task(self._commute(http, router.url))
        say(f"  phase 2: the rush is over after {time.monotonic() - began:.0f} s")
        self._found.figures.append(("router: rush", f"{time.monotonic() - began:.0f} s"))

    async def _commute(self, http: aiohttp.ClientSession, url: str) -> None:
        await asyncio.sleep(self._chance.uniform(0.0, min(RUSH_S, self._rush / 10)))
        visit = Visit("mcp-light", 0.0, [(0.0, 0.0), (1.0, 1.0)], Leaving.DELETE)
        await Visitor(http, url, self._tally, PATIENCE).run(visit)

    # The sum

    def _judge(self, router: Router) -> None:
        """Count what was cut. Clients of the proof hang up on nothing that is not answered."""
        self._found.cuts = sum(router.codes.values())
        for record in list(router.errors)[:SHOWN]:
            what = f"{record.method} {record.path} after {record.service_ms / 1000:.1f} s"
            self._found.broken.append(f"the router gave {record.code} {record.detail}: {what}")
        tunnels = [record for record in router.records if record.upgraded]
        longest_s = max((record.service_ms / 1000 for record in tunnels), default=0.0)
        self._found.figures += [
            ("router: requests, WebSockets, codes",
             f"{len(router.records)}, {len(tunnels)}, {counted(router.codes)}"),
            ("router: longest WebSocket", f"{longest_s:.0f} s"),
        ]  # fmt: skip
        if longest_s < self._silent_s:
            self._found.broken.append(f"no WebSocket stood for {self._silent_s:.0f} s")

    def _judge_rush(self) -> None:
        tally, records = self._tally, self._stage.records()
        boots = [record["boot_s"] for record in records if record["event"] == "dialled_in"]
        queued = [record for record in records if record["event"] == "queued"]
        sessions = {record["session"] for record in queued}
        longest = max((record["waiting"] for record in queued), default=0)
        peak = _peak(self._stage)
        self._found.lost += len(tally.lost)
        self._found.broken += [f"lost silently: {story}" for story in tally.lost[:SHOWN]]
        self._found.broken += [f"answered wrongly: {story}" for story in tally.wrong[:SHOWN]]
        if tally.failed or tally.unopened or len(tally.first_s) < self._rush:
            self._found.broken.append(
                f"of {self._rush} clients in the rush {len(tally.first_s)} were served at once; "
                f"refusals: {counted(tally.said)}"
            )
        self._found.figures += [
            ("rush: sessions, calls", f"{tally.sessions}, {tally.calls} {counted(tally.counts)}"),
            ("rush: first call p50, p95", spread(tally.first_s)),
            ("rush: boots p50, p95", spread(boots)),
            ("rush: queued sessions, longest line", f"{len(sessions)}, {longest}"),
            ("rush: most dynos at once", str(peak)),
        ]


def _peak(stage: Stage) -> int:
    """The most dynos that there were at once."""
    steps = [(dyno.created.wall, 1) for dyno in stage.heroku.ledger]
    steps += [(dyno.ended.wall, -1) for dyno in stage.heroku.ledger if dyno.ended is not None]
    return max(itertools.accumulate(step for _, step in sorted(steps)), default=0)


def _leaves(group: BaseExceptionGroup[Exception]) -> list[Exception]:
    """The exceptions at the ends of a tree of groups."""
    leaves: list[Exception] = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves
