"""Phase 1 of the Heroku proof: sessions while the platform, dynos and gateways fail.

The platform's answers fail by chance (`RATES`); dynos, agents and children are killed; the gateway
is killed and ended in good order and started again. In the end nothing may be left, everything must
be paid, and nobody may have been left without a word.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp
import psutil

from tests.heroku_emulator import Options
from tests.proof.heroku_findings import Findings, counted, spread, wind_up
from tests.proof.heroku_stage import APP, LIGHT, Setting, Stage, agent_of, say
from tests.proof.heroku_visit import Leaving, Tally, Visit, Visitor

if TYPE_CHECKING:
    from pathlib import Path

    from tests.heroku_emulator.model import Dyno

RATES = {
    "create": {
        "429": 0.03,
        "500": 0.03,
        "500-after": 0.03,
        "timeout-before": 0.015,
        "timeout-after": 0.015,
        "reset-before": 0.02,
        "reset-after": 0.02,
        "never-dials": 0.03,
        "dies:0.3": 0.02,
        "dies:4": 0.03,
    },
    "list": {"429": 0.05, "500": 0.05, "reset-before": 0.03, "timeout-before": 0.02},
    "stop": {
        "429": 0.03,
        "500": 0.05,
        "500-after": 0.05,
        "timeout-before": 0.02,
        "timeout-after": 0.02,
        "reset-before": 0.04,
        "reset-after": 0.04,
    },
}

SERVERS = {
    "steady": {
        "app": APP,
        "process_type": "mcp-steady",
        "era": "legacy",
        "catalogue": False,
        "idle_timeout": 8,
        "max_lifetime": 120,
        "boot_timeout": 15,
        "warm": 2,
        "default": True,
    },
    "brief": {
        "app": APP,
        "process_type": "mcp-brief",
        "era": "legacy",
        "catalogue": False,
        "idle_timeout": 8,
        "max_lifetime": 15,
        "boot_timeout": 12,
    },
    "known": {
        "app": APP,
        "process_type": "mcp-known",
        "idle_timeout": 8,
        "max_lifetime": 120,
        "boot_timeout": 15,
    },
}
"""The last one with a catalogue, learned in throw-away runs, and without a dyno until a call."""

ARRIVAL_S = 0.9
"""Between two sessions, about: some 20 live at once."""

TROUBLE_S = (1.5, 6.0)
"""Between two dynos that something happens to."""

LEFT_S = 150.0
"""Until all is gone once the last client has left: a boot that is not answered, grace, a few
attempts to stop with 20 s each."""

VISIT_S = 900.0

SHOWN = 12
"""Lines of one kind."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of what.

    Attributes:
        sessions: clients that come.
        kills: of the gateway, with SIGKILL.
        terms: of the gateway, with SIGTERM.
        quick: the platform answers whatever it is asked: each time that it does not takes 20 s.
    """

    seed: int
    sessions: int
    kills: int
    terms: int
    quick: bool = False

    @property
    def rates(self) -> dict[str, dict[str, float]]:
        """Probability of each fault of the platform, by operation."""
        return {
            operation: {
                word: rate
                for word, rate in words.items()
                if not (self.quick and word.startswith("timeout"))
            }
            for operation, words in RATES.items()
        }


class Trouble:
    """The phase.

    Args:
        plan: how much of what.
        folder: that does not exist yet.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan = plan
        self._chance = random.Random(plan.seed)  # noqa: S311 - repeatable, not secret
        self._harm: Counter[str] = Counter()
        self._tally = Tally()
        self._done = 0
        settings = {
            "LINK_GRACE_S": "12",
            "MAX_SESSIONS": "150",
            "HEROKU_REFRESH_S": "10",
            "QUEUE_LENGTH": "100",
        }
        options = Options(boot_delay=(0.2, 2.0), seed=plan.seed, stop_grace=3.0)
        processes = {f"mcp-{name}": LIGHT for name in SERVERS}
        self._stage = Stage(folder, Setting(processes, SERVERS, settings, options))

    async def run(self) -> Findings:
        """Do all of it."""
        found = Findings()
        async with self._stage as stage:
            await stage.start()
            await stage.registered(*SERVERS)
            stage.heroku.faults.plan(self._plan.seed, self._plan.rates)
            await self._under_trouble()
            say("  phase 1: the last client has left")
            await wind_up(stage, found, LEFT_S)
            injected = stage.heroku.faults.injected
            found.faults = sum(injected.values()) + sum(self._harm.values())
            self._tell(found)
        return found

    # Clients

    def _visits(self) -> list[Visit]:
        chance, begins, visits = self._chance, 0.0, []
        for _ in range(self._plan.sessions):
            begins += chance.uniform(0.0, 2 * ARRIVAL_S)
            server = chance.choices(list(SERVERS), (5, 2, 3))[0]
            calls = [
                (chance.uniform(0.0, 2.0), chance.choice((0.0, 0.0, 0.3, 2.0)))
                for _ in range(chance.randint(2, 6))
            ]
            leaving = Leaving.STAY if server == "brief" else Leaving.FORGET
            if chance.random() < 0.5:
                leaving = Leaving.DELETE
            visits.append(Visit(server, begins, calls, leaving))
        return visits

    async def _under_trouble(self) -> None:
        headers = {"Authorization": f"Bearer {self._stage.key}"}
        connector = aiohttp.TCPConnector(limit=0)
        visits = self._visits()
        async with (
            aiohttp.ClientSession(headers=headers, connector=connector) as http,
            asyncio.timeout(VISIT_S),
            asyncio.TaskGroup() as tasks,
        ):
            harming = tasks.create_task(self._harm_dynos())
            async with asyncio.TaskGroup() as clients:
                for visit in visits:
                    clients.create_task(self._visit(http, visit))
                clients.create_task(self._restart_gateways(visits[-1].begins_s))
            harming.cancel()

    async def _visit(self, http: aiohttp.ClientSession, visit: Visit) -> None:
        await asyncio.sleep(visit.begins_s)
        await Visitor(http, self._stage.url, self._tally).run(visit)
        self._done += 1
        if self._done % 50 == 0:
            alive = len(self._stage.heroku.dynos_left())
            say(f"  phase 1: {self._done} clients have left, {alive} dynos run")

    # Harm

    async def _restart_gateways(self, spread_s: float) -> None:
        ends = [signal.SIGKILL] * self._plan.kills + [signal.SIGTERM] * self._plan.terms
        self._chance.shuffle(ends)
        pause_s = spread_s / (len(ends) + 1)
        async with asyncio.TaskGroup() as tasks:
            for number in ends:
                await asyncio.sleep(self._chance.uniform(0.8, 1.2) * pause_s)
                began = time.monotonic()
                if number is signal.SIGTERM:
                    await self._stage.replace(tasks)
                else:
                    await self._stage.end(number)
                    await asyncio.sleep(self._chance.choice((0.0, 0.0, 2.0)))
                    await self._stage.start()
                self._harm[f"gateway {number.name}"] += 1
                away_s = time.monotonic() - began
                say(f"  phase 1: a gateway got {number.name}, {away_s:.1f} s later runs the next")

    async def _harm_dynos(self) -> None:
        while True:
            await asyncio.sleep(self._chance.uniform(*TROUBLE_S))
            up = [dyno for dyno in self._stage.heroku.dynos_left() if dyno.state == "up"]
            if up:
                await self._harm_one(self._chance.choice(up), self._chance.randrange(3))

    async def _harm_one(self, dyno: Dyno, kind: int) -> None:
        if kind == 0:
            self._harm["dyno SIGKILL"] += 1
            await self._stage.heroku.kill(dyno.id)
            return
        agent = await asyncio.to_thread(agent_of, dyno)
        if agent is None:
            return
        with contextlib.suppress(psutil.Error):
            if kind == 1:
                agent.kill()
                self._harm["agent SIGKILL"] += 1
            elif children := agent.children():
                children[0].kill()
                self._harm["child SIGKILL"] += 1

    # The end

    def _tell(self, found: Findings) -> None:
        tally, faults = self._tally, self._stage.heroku.faults.injected
        found.lost = len(tally.lost)
        found.broken += [f"lost silently: {story}" for story in tally.lost[:SHOWN]]
        found.broken += [f"answered wrongly: {story}" for story in tally.wrong[:SHOWN]]
        by_operation: Counter[str] = Counter()
        for (operation, _), number in faults.items():
            by_operation[operation] += number
        endings = Counter(r["reason"] for r in self._stage.records() if r["event"] == "closed")
        found.figures += [
            ("faults of the platform", counted(by_operation)),
            ("faults of dynos and gateways", counted(self._harm)),
            ("sessions opened", f"{tally.sessions} by {self._plan.sessions} clients"),
            ("calls", f"{tally.calls}, {tally.failed} refused each time, {counted(tally.counts)}"),
            ("refusals", counted(tally.said)),
            ("sessions ended", counted(endings)),
            ("first call under trouble p50, p95", spread(tally.first_s)),
        ]
