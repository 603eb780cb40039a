"""Phase 3 of the Heroku proof: what the warm pool is worth and costs, and what a budget stops."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import TYPE_CHECKING, Any

import aiohttp

from gateway.launchers.heroku.documents import HOURS_PER_MONTH
from tests.heroku_emulator import Options
from tests.heroku_emulator.model import SIZES
from tests.proof.heroku_findings import Findings, spread, wind_up
from tests.proof.heroku_ledger import Books
from tests.proof.heroku_stage import APP, LIGHT, Setting, Stage, launch_of, say, until_so
from tests.proof.heroku_visit import Leaving, Tally, Visit, Visitor
from tests.proof.outfit import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.proof.heroku_stage import Record

USD_PER_HOUR = SIZES["basic"].cents / 100 / HOURS_PER_MONTH

WANTED, AFFORDABLE = 4, 2
"""Parked dynos that the server asks for, and that the cap leaves room for."""

THRIFTY = "thrifty"
"""The principal with a budget."""

LIFETIME_S, QUEUE_S = 600.0, 10.0

LONGEST_S = LIFETIME_S + 60.0 + QUEUE_S
"""The most that a session can cost: its life, the end of its dyno, its time in line."""

FITTING = 2
"""Sessions at their longest that the budget has room for, and a half."""

SETTING: dict[str, Any] = {"app": APP, "era": "legacy", "catalogue": False}
SERVERS = {
    "cold": {**SETTING, "process_type": "mcp-cold", "default": True},
    "warm": {**SETTING, "process_type": "mcp-warm", "warm": WANTED},
    "dear": {**SETTING, "process_type": "mcp-dear", "max_lifetime": LIFETIME_S},
}

BOOT_S = (1.5, 3.0)
PARKED_S = 60.0
CLOSED_S = 60.0
EMPTY_S = 60.0
NOTHING_S = 3.0
"""How long it is watched that nothing is launched: longer than the pool's own period."""

SHARE_ERROR_S = 1.0


class WarmAndDear:
    """The phase.

    Args:
        seed: of the platform's boot delays.
        rounds: sessions of each kind that are compared.
        folder: that does not exist yet.
    """

    def __init__(self, seed: int, rounds: int, folder: Path) -> None:
        self._rounds = rounds
        self._thrifty_key = f"thrifty-{seed}-key"
        budget = (FITTING + 0.5) * LONGEST_S / 3600 * USD_PER_HOUR
        cap = (AFFORDABLE + 0.5) * USD_PER_HOUR
        settings = {
            "KEY_BUDGETS_USD": f"{THRIFTY}:{budget:.9f}",
            "WARM_USD_PER_HOUR": f"{cap:.9f}",
            "QUEUE_TIMEOUT_S": str(QUEUE_S),
        }
        options = Options(boot_delay=BOOT_S, seed=seed, stop_grace=3.0)
        processes = {f"mcp-{name}": LIGHT for name in SERVERS}
        keys = {THRIFTY: self._thrifty_key}
        self._stage = Stage(folder, Setting(processes, SERVERS, settings, options, keys=keys))
        self._tally = Tally()
        self._found = Findings()

    async def run(self) -> Findings:
        """Do all of it."""
        async with self._stage as stage:
            await stage.start()
            await stage.registered(*SERVERS)
            async with self._http(stage.key) as http:
                await self._compare_first_calls(http)
                say("  phase 3: first calls are compared")
                await self._rush(http)
            async with self._http(self._thrifty_key) as http:
                await self._spend(http)
            say("  phase 3: the budget is spent")
            await self._check_pool()
            await wind_up(stage, self._found, EMPTY_S)
        self._found.lost = len(self._tally.lost)
        self._found.broken += [f"lost silently: {story}" for story in self._tally.lost]
        self._found.broken += [f"answered wrongly: {story}" for story in self._tally.wrong]
        return self._found

    def _http(self, key: str) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"})

    # Warm and cold

    async def _compare_first_calls(self, http: aiohttp.ClientSession) -> None:
        took: dict[str, list[float]] = {"cold": [], "warm": []}
        for _ in range(self._rounds):
            for server, seconds in took.items():
                await self._parked(1)
                seconds.append(await self._first_call(http, server))
        cold, warm = statistics.median(took["cold"]), statistics.median(took["warm"])
        self._found.figures += [
            ("first call of a session, cold p50, p95", spread(took["cold"])),
            ("first call of a session, warm p50, p95", spread(took["warm"])),
            ("cold / warm p50", f"{cold / warm:.0f}"),
        ]
        adopted = sum(record["event"] == "adopted" for record in self._stage.records())
        if adopted < self._rounds:
            self._found.broken.append(f"{adopted} of {self._rounds} warm sessions had a warm dyno")
        if warm >= cold:
            self._found.broken.append("a warm first call takes as long as a cold one")

    async def _parked(self, count: int) -> None:
        """Wait until so many are ready.

        Raises:
            TimeoutError: they are not.
        """

        async def are_parked() -> bool:
            pool = await self._stage.pool()
            return len([each for each in pool if each["state"] == "parked"]) >= count

        if not await until_so(are_parked, PARKED_S):
            raise TimeoutError(f"no {count} dynos were parked within {PARKED_S:.0f} s")

    async def _first_call(self, http: aiohttp.ClientSession, server: str) -> float:
        visitor = Visitor(http, self._stage.url, self._tally)
        began = time.monotonic()
        if not await visitor.ask(server):
            self._found.broken.append(f"a first call of {server} was not answered at once")
        took_s = time.monotonic() - began
        await visitor.leave(Leaving.DELETE)
        return took_s

    async def _rush(self, http: aiohttp.ClientSession) -> None:
        """More than the pool has, at once: the others boot, and the pool fills up again."""
        visit = Visit("warm", 0.0, [(0.0, 0.0), (0.0, 1.0)], Leaving.DELETE)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(2 * AFFORDABLE):
                tasks.create_task(Visitor(http, self._stage.url, self._tally).run(visit))
        await self._parked(AFFORDABLE)

    async def _check_pool(self) -> None:
        """Find the most that was parked at once, and what the ledger has of it."""
        stage, books = self._stage, Books(self._stage.records())
        pool = {
            record["launch"]
            for record in stage.records()
            if record["event"] in ("dyno_parked", "dyno_unparked", "adopted")
        } | {each["launch"] for each in await stage.pool()}
        steps = []
        for dyno in stage.heroku.ledger:
            if (launch := launch_of(dyno)) in pool:
                ended = float("inf") if dyno.ended is None else dyno.ended.wall
                steps += [(dyno.created.wall, 1), (books.adopted.get(launch, ended), -1)]
        parked = peak = 0
        for _, step in sorted(steps):
            parked += step
            peak = max(peak, parked)
        self._found.figures.append(
            ("pool: most dynos at once, cap, wanted", f"{peak}, {AFFORDABLE}, {WANTED}")
        )
        if peak > AFFORDABLE:
            self._found.broken.append(f"the pool had {peak} dynos; its cap pays {AFFORDABLE}")
        await self._check_shares(books)

    async def _check_shares(self, books: Books) -> None:
        """What the pool paid for adopted dynos ends where its sessions began to pay."""
        bills = (await self._stage.admin("ledger"))["bills"]
        shares = {
            bill["launch"]: bill
            for bill in bills
            if bill["launch"] in books.adopted and not bill["session"]
        }
        errors, usd = [0.0], 0.0
        for dyno in self._stage.heroku.ledger:
            if (bill := shares.get(launch_of(dyno))) is not None:
                lived = books.adopted[bill["launch"]] - dyno.created.wall
                errors.append(abs(bill["dyno_s"] - lived))
                usd += bill["usd"]
        self._found.figures.append(
            ("pool: paid for adopted dynos", f"{len(shares)}, ${usd:.6f}, ± {max(errors):.3f} s")
        )
        if len(shares) < len(books.adopted) or max(errors) > SHARE_ERROR_S:
            self._found.broken.append(
                f"the pool paid for {len(shares)} of {len(books.adopted)} adopted dynos, "
                f"wrong by {max(errors):.3f} s"
            )

    # The budget

    async def _spend(self, http: aiohttp.ClientSession) -> None:
        visitors = [Visitor(http, self._stage.url, self._tally) for _ in range(FITTING + 1)]
        first, *others, last = visitors
        for visitor in (first, *others):
            if not await visitor.ask("dear"):
                self._found.broken.append("the budget has room for a session that was refused")
        before = len(self._stage.heroku.ledger)  # the pool is full, so nobody else makes any
        status, reason = await self._refusal(http)
        await asyncio.sleep(NOTHING_S)
        launched = len(self._stage.heroku.ledger) - before
        self._found.figures.append(
            (f"budget for {FITTING}: session {FITTING + 1}", f"{status} {reason}, {launched} dynos")
        )
        if (status, reason, launched) != (503, "budget_spent", 0):
            self._found.broken.append(
                f"the budget is spent, and the next session got {status} {reason} and "
                f"{launched} dynos"
            )
        closed = self._closed()
        await first.leave(Leaving.DELETE)
        await until(lambda: self._closed() > closed, CLOSED_S)
        if not await last.ask("dear"):
            self._found.broken.append("a session of the budget has ended, and no other fits")
        for visitor in (*others, last):
            await visitor.leave(Leaving.DELETE)
        made = self._launches()
        self._found.figures.append(("budget: sessions that had a dyno", str(made)))

    async def _refusal(self, http: aiohttp.ClientSession) -> tuple[int, str]:
        """Open a session that nothing is left for; return the status and the reason."""
        info = {"name": "proof", "version": "1"}
        params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": info}
        hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
        accept = {"Accept": "application/json, text/event-stream"}
        url = f"{self._stage.url}/servers/dear/mcp"
        async with http.post(url, json=hello, headers=accept) as response:
            if response.content_type != "application/json":
                return response.status, response.content_type
            error = (await response.json()).get("error") or {}
            return response.status, (error.get("data") or {}).get("reason", "")

    def _launches(self) -> int:
        """How many launches there were for sessions of the thrifty principal."""
        told = [r["launch"] for r in self._of_thrifty() if r["event"] in ("launching", "adopted")]
        return len(set(told))

    def _closed(self) -> int:
        return sum(record["event"] == "closed" for record in self._of_thrifty())

    def _of_thrifty(self) -> list[Record]:
        records = self._stage.records()
        sessions = {r["session"] for r in records if r.get("principal") == THRIFTY}
        return [record for record in records if record.get("session") in sessions]
