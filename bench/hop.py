"""What several gateways cost and gain: the hop between two, and the throughput of one to three.

`python -m bench.hop` starts the processes of the scale proof (`tests.proof.scale_house`) on this
machine, load included, and measures

- the hop: calls of the same sessions, one at a time, in turn through the gateway that holds them
  and through another one;
- throughput: calls a second with many in flight, each through a gateway drawn at random, at one
  gateway without a store and at one, two and three with it.

Every answer is checked, and the children's journals in the end: a wrong, lost or repeated one is an
error and adds nothing to the speed. Rounds alternate, and the table shows medians over them. Raw
figures go to `bench/results/hop.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

from tests.proof.scale_calls import Diary, Order, Verdict, Way, judge
from tests.proof.scale_clients import LegacyPlain
from tests.proof.scale_house import PRINCIPALS, House

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

RESULTS = Path(__file__).resolve().parent / "results" / "hop.json"

TEXT_BYTES = 40
IN_FLIGHT = 48
SESSIONS = 24
HOP_SESSIONS = 6
WARM_CALLS = 20
"""Calls in a session that are not measured: the first ones start its child and fill caches."""

Figures = dict[str, Any]


@dataclass(frozen=True)
class Orders:
    """What was asked for on the command line."""

    rounds: int
    seconds: float
    calls: int
    gateways: int


@dataclass(frozen=True)
class Setting:
    """What a throughput is measured of."""

    name: str
    gateways: int
    shares: bool


class Load:
    """Sessions of one house, and calls in them."""

    def __init__(self, house: House, http: aiohttp.ClientSession, sessions: int) -> None:
        self._house = house
        self._chance = random.Random(1)  # noqa: S311 - repeatable, not secret
        self._clients = [self._client(number, http) for number in range(sessions)]
        self._serials = [0] * sessions

    def _client(self, number: int, http: aiohttp.ClientSession) -> LegacyPlain:
        principal = PRINCIPALS[number % len(PRINCIPALS)]
        diary = Diary(f"{principal}/{number}", Way.PLAIN)
        home = self._house.gateways[number % len(self._house.gateways)]
        return LegacyPlain(http, home.url, self._house.keys[principal], diary, self._chance)

    async def open(self) -> None:
        """Open the sessions, the gateways' in turn, and warm them."""
        room = asyncio.Semaphore(4)

        async def opened(number: int) -> None:
            async with room:
                await self._clients[number].open()
                for call in range(WARM_CALLS):
                    await self.call(number, call)

        async with asyncio.TaskGroup() as tasks:
            for number in range(len(self._clients)):
                tasks.create_task(opened(number))

    async def call(self, number: int, away: int) -> float:
        """Make a call in a session; return the seconds, or 0 after an error.

        Args:
            number: of the session.
            away: 0 goes through the gateway that holds it, 1 through the next one, and so on.
        """
        client, gateways = self._clients[number], self._house.gateways
        client.url = gateways[(number + away) % len(gateways)].url
        self._serials[number] += 1
        call = await client.call(Order(self._serials[number], text_bytes=TEXT_BYTES))
        right = len(call.answers) == 1 and not call.retries and not call.strange
        return call.seconds if right else 0.0

    async def in_turn(self, calls: int) -> tuple[list[float], list[float]]:
        """Call through the gateway that holds the session and another one, in turn.

        Returns:
            Seconds of the one and of the other way; those with an error are left out.
        """
        ways: tuple[list[float], list[float]] = ([], [])
        for number in range(calls):
            for away in (0, 1):
                ways[away].append(await self.call(number % len(self._clients), away))
        own, hop = ([taken for taken in way if taken] for way in ways)
        return own, hop

    async def throughput(self, seconds: float) -> float:
        """Return right answers a second, with IN_FLIGHT calls at once."""
        end = time.perf_counter() + seconds
        right = 0

        async def lane(number: int) -> None:
            nonlocal right
            while time.perf_counter() < end:
                away = self._chance.randrange(len(self._house.gateways))
                taken = await self.call(number % len(self._clients), away)
                right += taken > 0  # the other lanes count too while this one waits

        began = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for number in range(IN_FLIGHT):
                tasks.create_task(lane(number))
        return right / (time.perf_counter() - began)

    async def verdict(self) -> Verdict:
        """Compare what came with the children's journals, and end the sessions."""
        verdict = Verdict()
        for client in self._clients:
            verdict.add(judge(client.diary, await client.journal()))
            if any(call.retries for call in client.diary.calls):
                verdict.complaints.append(f"{client.diary.owner}: some calls were tried again")
            await client.close()
        return verdict


async def at(
    setting: Setting, sessions: int, measure: Callable[[Load], Coroutine[None, None, Figures]]
) -> Figures:
    """Measure something of a house of its own; return it with the number of errors."""
    with tempfile.TemporaryDirectory(prefix="bench-hop-") as folder:
        chance = random.Random(1)  # noqa: S311 - repeatable, not secret
        house = House(Path(folder), setting.gateways, chance, shares=setting.shares, direct=True)
        connector = aiohttp.TCPConnector(limit=0)
        async with house, aiohttp.ClientSession(connector=connector) as http:
            load = Load(house, http, sessions)
            await load.open()
            figures = await measure(load)
            verdict = await load.verdict()
    errors = len(verdict.complaints)
    for complaint in verdict.complaints[:3]:
        say(f"  {setting.name}: {complaint}")
    return {"setting": setting.name, **figures, "answered": verdict.answered, "errors": errors}


async def measure_all(orders: Orders) -> Figures:
    """Do all rounds; return raw figures."""
    most = orders.gateways
    settings = [Setting("1, no store", 1, shares=False)]
    settings += [Setting(str(number), number, shares=True) for number in range(1, most + 1)]

    async def hop(load: Load) -> Figures:
        own, hop = await load.in_turn(orders.calls)
        return {"own_ms": _ms(own), "hop_ms": _ms(hop)}

    async def throughput(load: Load) -> Figures:
        return {"per_s": round(await load.throughput(orders.seconds), 1)}

    hops, rates = [], []
    for number in range(1, orders.rounds + 1):
        say(f"round {number} of {orders.rounds}")
        if most > 1:
            hops.append(await at(settings[2], HOP_SESSIONS, hop))
        turn = settings if number % 2 else settings[::-1]
        rates += [await at(setting, SESSIONS, throughput) for setting in turn]
    machine = {"cpus": os.cpu_count(), "python": platform.python_version()}
    return {"machine": machine, "hop": hops, "throughput": rates}


def _ms(seconds: list[float]) -> list[float]:
    return [round(taken * 1000, 3) for taken in seconds]


def table(figures: Figures) -> str:
    """Return the medians over the rounds as Markdown."""
    lines = _hop_table(figures["hop"]) if figures["hop"] else []
    lines += [
        "| gateways | calls/s | of 1 with store | of 1 without | errors |",
        "|---|---|---|---|---|",
    ]
    rates: dict[str, list[Figures]] = {}
    for round_ in figures["throughput"]:
        rates.setdefault(round_["setting"], []).append(round_)
    speed = {name: statistics.median(r["per_s"] for r in rounds) for name, rounds in rates.items()}
    for name, rounds in rates.items():
        errors = sum(round_["errors"] for round_ in rounds)
        of_one, of_alone = speed[name] / speed["1"], speed[name] / speed["1, no store"]
        lines.append(f"| {name} | {speed[name]:.0f} | {of_one:.2f} | {of_alone:.2f} | {errors} |")
    return "\n".join(lines)


def _hop_table(rounds: list[Figures]) -> list[str]:
    errors = sum(round_["errors"] for round_ in rounds)
    own, hop = ([_over(rounds, way, place) for place in (4, 8)] for way in ("own_ms", "hop_ms"))
    added = [f"+{hop[n] - own[n]:.2f} ({hop[n] / own[n]:.2f} times)" for n in (0, 1)]
    return [
        "| | p50 ms | p90 ms | errors |",
        "|---|---|---|---|",
        f"| through the owner | {own[0]:.2f} | {own[1]:.2f} | {errors} |",
        f"| through another | {hop[0]:.2f} | {hop[1]:.2f} | |",
        f"| added | {added[0]} | {added[1]} | |",
        "",
    ]


def _over(rounds: list[Figures], way: str, place: int) -> float:
    """Return the median over the rounds of the decile at `place` (4 is p50, 8 is p90)."""
    cuts = [statistics.quantiles(r[way], n=10)[place] for r in rounds if len(r[way]) > 1]
    return statistics.median(cuts) if cuts else float("nan")


def say(line: str) -> None:
    """Print a line now."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """Run the command line. Returns the exit code: 0 if there was no error."""
    parser = argparse.ArgumentParser(prog="python -m bench.hop", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each throughput")
    parser.add_argument("--calls", type=int, default=400, help="each way, in each round")
    parser.add_argument("--gateways", type=int, default=3, help="the most")
    figures = asyncio.run(measure_all(Orders(**vars(parser.parse_args()))))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(figures) + "\n", encoding="utf-8")
    say(table(figures))
    return 1 if any(r["errors"] for r in (*figures["hop"], *figures["throughput"])) else 0


if __name__ == "__main__":
    raise SystemExit(main())
