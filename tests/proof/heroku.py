"""The proof that the gateway runs sessions in one-off dynos to the last second.

`python -m tests.proof.heroku` runs real gateway processes against an emulated Heroku platform, in
three phases: sessions while everything fails; long silences and a morning's rush behind the
platform's router; the warm pool and budgets. The silences begin first and go on beside the others.
The last line holds the counts; the exit code is 0 if every promise held, and each that did not is
a line above it.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.proof.heroku_findings import ERROR_S, Findings
from tests.proof.heroku_router import Behind
from tests.proof.heroku_stage import say
from tests.proof.heroku_trouble import Plan, Trouble
from tests.proof.heroku_warm import WarmAndDear

if TYPE_CHECKING:
    from collections.abc import Coroutine

LEAST_BOOT_S = 5.0
"""Of the rush, unless all its boots are quicker."""


@dataclass(frozen=True)
class Orders:
    """What was asked for on the command line."""

    seed: int
    sessions: int
    kills: int
    terms: int
    minutes: float
    rush: int
    boot_s: float
    rounds: int
    phases: str
    quick: bool
    ledger_s: float
    keep: Path | None


async def prove(orders: Orders, folder: Path) -> int:
    """Run all phases and say what came out. Returns the exit code."""
    sums = Findings()
    plan = Plan(orders.seed, orders.sessions, orders.kills, orders.terms, quick=orders.quick)
    boot_s = (min(LEAST_BOOT_S, orders.boot_s), orders.boot_s)
    behind = Behind(orders.seed, orders.minutes, orders.rush, boot_s, folder / "router")
    trouble = Trouble(plan, folder / "trouble")
    warm = WarmAndDear(orders.seed, orders.rounds, folder / "warm")
    async with asyncio.TaskGroup() as tasks:
        silence = None
        if "2" in orders.phases:
            silence = tasks.create_task(_phase("2, router", behind.run()))
            await behind.calm.wait()
        if orders.quick:
            behind.rush_now.set()
        others = []
        if "1" in orders.phases:
            others.append(_phase("1, faults", trouble.run()))
        if "3" in orders.phases:
            others.append(_phase("3, pool and budget", warm.run()))
        for found in await _in_turn(others, together=orders.quick):
            sums.add(found)
        behind.rush_now.set()
    if silence is not None:
        sums.add(silence.result())
    width = max((len(name) for name, _ in sums.figures), default=0)
    for name, value in sums.figures:
        say(f"  {name:{width}}  {value}")
    if sums.error_s > orders.ledger_s:
        sums.broken.append(f"the ledger is wrong by {sums.error_s:.3f} s: {sums.worst}")
    for promise in sums.broken:
        say(f"BROKEN: {promise}")
    say(
        f"proof-heroku: sessions={orders.sessions} faults={sums.faults} dynos_left={sums.left} "
        f"ledger_error_s={sums.error_s:.3f} calls_lost_silently={sums.lost} "
        f"router_cuts={sums.cuts}"
    )
    return 1 if sums.broken else 0


async def _in_turn(
    phases: list[Coroutine[Any, Any, Findings]], *, together: bool
) -> list[Findings]:
    """Run phases one after the other, or all at once."""
    async with asyncio.TaskGroup() as tasks:
        running = []
        for phase in phases:
            running.append(tasks.create_task(phase))
            if not together:
                await running[-1]
    return [task.result() for task in running]


async def _phase(name: str, work: Coroutine[Any, Any, Findings]) -> Findings:
    """Say when a phase begins and ends."""
    began = time.monotonic()
    say(f"phase {name}: begins")
    found = await work
    broken = len(found.broken)
    say(f"phase {name}: {time.monotonic() - began:.0f} s, {broken} broken promises")
    return found


def main() -> int:
    """Run the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.proof.heroku", description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32))
    parser.add_argument("--phases", default="123", help="any of 1 faults, 2 router, 3 pool")
    parser.add_argument("--sessions", type=int, default=200, help="clients in phase 1")
    parser.add_argument("--kills", type=int, default=3, help="SIGKILLs of the gateway")
    parser.add_argument("--terms", type=int, default=2, help="SIGTERMs of the gateway")
    parser.add_argument("--minutes", type=float, default=10.0, help="of silence in phase 2")
    parser.add_argument("--rush", type=int, default=100, help="sessions at once in phase 2")
    parser.add_argument("--boot-s", type=float, default=60.0, help="longest boot in the rush")
    parser.add_argument("--rounds", type=int, default=8, help="first calls compared in phase 3")
    parser.add_argument("--quick", action="store_true", help="all phases at once, no time-outs")
    wrong = "what the ledger may be wrong by, for any dyno"
    parser.add_argument("--ledger-s", type=float, default=ERROR_S, help=wrong)
    parser.add_argument("--keep", type=Path, help="new folder that the gateways' logs stay in")
    orders = Orders(**vars(parser.parse_args()))
    say(f"proof-heroku: seed={orders.seed}")
    try:
        with asyncio.Runner() as runner:
            return runner.run(_interruptible(orders))
    except asyncio.CancelledError:  # by SIGTERM, and everything was ended
        raise SystemExit(128 + signal.SIGTERM) from None


async def _interruptible(orders: Orders) -> int:
    """End everything that was started on SIGTERM too, as asyncio does on SIGINT."""
    if (task := asyncio.current_task()) is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with tempfile.TemporaryDirectory(prefix="proof-") as folder:
        return await prove(orders, orders.keep or Path(folder))


if __name__ == "__main__":
    raise SystemExit(main())
