"""The proof that several gateways are one service.

`python -m tests.proof.scale` runs real processes: an engine, three gateways that share it, a router
that draws one of them for every request, a hundred sessions of three kinds of clients. In the first
phase all is well; in the second gateways are killed and told to leave, and come back, and the
engine is started again without its memory. Every answer says whose it is, and every child keeps a
journal, so what a client should never see is counted: a session that lives and is unknown, an
answer that is another's, anything twice, anything lost. The last line holds the counts of the
second phase and of what was seen in both; the exit code is 0 if every promise held.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import secrets
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

from tests.proof.outfit import until
from tests.proof.scale_calls import MIB, Call, Diary, Order, Verdict, Way, judge, order_for, sizes
from tests.proof.scale_clients import (
    Client,
    LegacyClient,
    LegacyPlain,
    LegacyResuming,
    ModernClient,
    Unknown,
)
from tests.proof.scale_house import PRINCIPALS, House

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from tests.proof.scale_house import Gateway

WAYS = (
    *(Way.RESUMING, Way.PLAIN, Way.MODERN, Way.MODERN, Way.RESUMING),
    *(Way.RESUMING, Way.PLAIN, Way.MODERN, Way.RESUMING, Way.RESUMING),
)
"""Of ten sessions in a row; the modern ones are of three principals and their handles have the
same name."""

IN_FLIGHT = 48
"""Everyday calls at once, of all sessions; the long ones come on top."""

LANES, BUSY_LANES, BUSY = 1, 4, 4
"""Calls at once in a session; in every `BUSY`th one."""

LISTENING = 5
"""Every so manieth session of those that resume keeps a GET stream open."""

OPENING = 8
"""Sessions that are opened at once: each starts two processes."""

LARGE_PER = 1000
"""One call of so many is of 1 MiB; with so many calls one is as large as a message may be."""

TRESPASSES_PER = 10
"""Of so many sessions one principal tries to use that of another."""

TERM = 0.3
"""This share of the gateways is told to leave (SIGTERM); the others are killed."""

DOWN_S = (0.0, 1.0)
"""How long a gateway is away before it is started again."""

UP_S = 90.0
"""Until there is a gateway that may be killed, as another one is up."""

PHASE_S = 300.0
TOLD_S = 10.0
"""Until what the children said last has come."""

COMPLAINTS = 40
"""Lines of them that are shown."""


@dataclass(frozen=True)
class Orders:
    """What was asked for on the command line."""

    seed: int
    gateways: int
    calls: int
    sessions: int
    kills: int
    every_s: float
    folder: Path | None
    verbose: bool


@dataclass
class Phase:
    """What was seen of one phase.

    Attributes:
        answered: calls with an answer.
        seconds: that everyday calls took.
        retries: reasons to try again, with how often.
        began: on the loop's clock.
    """

    answered: int = 0
    seconds: list[float] = field(default_factory=list)
    retries: Counter[str] = field(default_factory=Counter)
    began: float = field(default_factory=time.monotonic)

    def note(self, call: Call) -> None:
        """Add a call that has ended."""
        self.answered += bool(call.answers)
        self.retries.update(call.retries)
        if not call.order.steps and call.order.text_bytes < MIB:
            self.seconds.append(call.seconds)

    def told(self, name: str) -> str:
        """Return the figures of the phase, for people."""
        took_s = time.monotonic() - self.began
        cuts = statistics.quantiles(self.seconds, n=10) if len(self.seconds) > 1 else [0.0] * 9
        most = max(self.seconds, default=0.0)
        again = ", ".join(f"{number} {why}" for why, number in self.retries.most_common())
        return (
            f"{name}, {took_s:.0f} s: {self.answered} calls answered, "
            f"{self.answered / took_s:.0f} a second, "
            f"p50 {cuts[4] * 1000:.0f} ms, p90 {cuts[8] * 1000:.0f} ms, longest {most:.1f} s; "
            f"tried again: {again or 'none'}"
        )


class Pacer:
    """Lets callers through evenly, so that a phase does not end before its trouble does."""

    def __init__(self, calls: int, seconds: float) -> None:
        self._step_s = seconds / calls
        self._next = 0.0

    async def turn(self) -> None:
        """Wait for the next place."""
        now = asyncio.get_running_loop().time()
        self._next = max(self._next + self._step_s, now - 1.0)
        if self._next > now:
            await asyncio.sleep(self._next - now)


class Proof:
    """One run.

    Attributes:
        kills: gateways that were ended, by signal.
        engine_restarts: of the engine, each without its memory.
        complaints: what is wrong beside what the sessions tell.
        peak_rss: largest resident memory of a gateway, bytes.
    """

    def __init__(self, orders: Orders, house: House, http: aiohttp.ClientSession) -> None:
        self.kills: Counter[str] = Counter()
        self.engine_restarts = 0
        self.complaints: list[str] = []
        self.peak_rss = 0
        self._orders = orders
        self._house = house
        self._http = http
        self._chance = random.Random(orders.seed)  # noqa: S311 - repeatable, not secret
        self._clients = [self._client(number) for number in range(orders.sessions)]
        self._serials = dict.fromkeys((client.diary.owner for client in self._clients), 0)
        self._up: set[str] = {gateway.name for gateway in house.gateways}
        self._began = time.monotonic()

    def _client(self, number: int) -> Client:
        way = WAYS[number % len(WAYS)]
        principal = PRINCIPALS[number % len(PRINCIPALS)]
        diary = Diary(f"{principal}/{way.value}/{number}", way)
        chance = random.Random(self._chance.random())  # noqa: S311
        common = self._http, self._house.url, self._house.keys[principal], diary, chance
        match way:
            case Way.RESUMING:
                return LegacyResuming(*common)
            case Way.PLAIN:
                return LegacyPlain(*common)
            case Way.MODERN:
                return ModernClient(*common, handle=f"h{number // len(WAYS)}")

    def _listens(self, client: Client) -> bool:
        number = self._clients.index(client)
        able = isinstance(client, LegacyResuming) and not client.diary.unknown
        return able and number % LISTENING == 0

    def mention(self, what: str) -> None:
        """Say what happened, if that is wanted."""
        if self._orders.verbose:
            say(f"{time.monotonic() - self._began:8.2f} {what}")

    # The run

    async def run(self) -> tuple[Phase, Verdict]:
        """Do all of it. Returns the second phase, and what was counted in both."""
        await self._open()
        async with asyncio.TaskGroup() as tasks:
            listening = [
                tasks.create_task(client.listen())
                for client in self._clients
                if isinstance(client, LegacyResuming) and self._listens(client)
            ]
            calm = await self._phase(self._orders.calls - self._orders.sessions, self._calm, None)
            calm.answered += self._orders.sessions  # each made its first call when it was opened
            say(calm.told("phase 1"))
            verdict = await self._verdict()
            if calm.retries:
                self.complaints.append(f"in calm weather something failed: {dict(calm.retries)}")
            if verdict.untold:
                self.complaints.append(f"{verdict.untold} messages were not told in calm weather")
            seconds = self._orders.kills * self._orders.every_s
            pacer = Pacer(self._orders.calls, max(seconds, 0.1))
            rough = await self._phase(self._orders.calls, self._trouble, pacer)
            say(rough.told("phase 2"))
            verdict = await self._verdict()
            for task in listening:
                task.cancel()
        await self._close()
        return rough, verdict

    async def _open(self) -> None:
        """Open every session and make its first call, which gets it its child."""
        began = time.monotonic()
        room = asyncio.Semaphore(OPENING)

        async def opened(client: Client) -> None:
            async with room:
                try:
                    await client.open()
                except Unknown as unknown:
                    client.diary.unknown.append(f"handshake: {unknown}")
                    return
                self._serials[client.diary.owner] = 1
                await client.call(Order(1))

        async with asyncio.TaskGroup() as tasks:
            for client in self._clients:
                tasks.create_task(opened(client))
        tries: Counter[str] = Counter()
        for client in self._clients:
            tries.update(client.refusals)
        say(
            f"{len(self._clients)} sessions opened in {time.monotonic() - began:.0f} s; "
            f"tried again: {dict(tries) or 'none'}"
        )

    async def _phase(
        self,
        calls: int,
        beside: Callable[[Phase], Coroutine[None, None, None]],
        pacer: Pacer | None,
    ) -> Phase:
        phase = Phase()
        room = asyncio.Semaphore(IN_FLIGHT)
        specials = self._specials(calls)
        try:
            async with asyncio.timeout(PHASE_S), asyncio.TaskGroup() as tasks:
                tasks.create_task(beside(phase))
                for number, client in enumerate(self._clients):
                    quota = calls // len(self._clients) + (number < calls % len(self._clients))
                    orders = self._orders_of(client, quota, specials.get(number, []))
                    for _ in range(LANES if number % BUSY else BUSY_LANES):
                        tasks.create_task(self._lane(client, orders, phase, room, pacer))
        except TimeoutError:
            self.complaints.append(f"a phase did not end within {PHASE_S:.0f} s")
        return phase

    def _specials(self, calls: int) -> dict[int, list[int]]:
        """Return the sizes of large texts, by session."""
        found: dict[int, list[int]] = {}
        for size in sizes(self._chance, calls // LARGE_PER) if calls >= LARGE_PER else (MIB,):
            found.setdefault(self._chance.randrange(len(self._clients)), []).append(size)
        return found

    def _orders_of(self, client: Client, quota: int, large: list[int]) -> Iterator[Order]:
        owner, heard = client.diary.owner, self._listens(client)
        for number in range(quota):
            self._serials[owner] += 1
            serial = self._serials[owner]
            if large and number >= quota // 2:
                yield Order(serial, text_bytes=large.pop())
            else:
                yield order_for(serial, self._chance, heard=heard)

    async def _lane(
        self,
        client: Client,
        orders: Iterator[Order],
        phase: Phase,
        room: asyncio.Semaphore,
        pacer: Pacer | None,
    ) -> None:
        for order in orders:
            if client.diary.unknown:
                return
            if pacer is not None:
                await pacer.turn()
            if order.steps:
                call = await client.call(order)
            else:
                async with room:
                    call = await client.call(order)
            phase.note(call)
            if call.failure:
                self.mention(f"{client.diary.owner} call {order.serial}: {call.failure}")
                return  # it may have no session: more of the same would only bury the first

    # What happens beside the calls

    async def _calm(self, _phase: Phase) -> None:
        """Let principals try to use what is another's."""
        legacy = [client for client in self._clients if isinstance(client, LegacyClient)]
        for _ in range(len(self._clients) // TRESPASSES_PER):
            intruder, victim = self._chance.sample(legacy, 2)
            if intruder.diary.owner[:3] != victim.diary.owner[:3]:
                await intruder.trespass(victim)

    async def _trouble(self, phase: Phase) -> None:
        """End gateways, and in the middle the engine, and start them again."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(self._orders.kills):
                await asyncio.sleep(self._chance.uniform(0.5, 1.5) * self._orders.every_s)
                if number == self._orders.kills // 2:
                    await self._restart_engine()
                gateway = await self._victim()
                term = self._chance.random() < TERM
                number_of = signal.SIGTERM if term else signal.SIGKILL
                self.mention(f"{number_of.name} for {gateway.name}; {phase.answered} answered")
                self.kills[number_of.name] += 1
                self.peak_rss = max(self.peak_rss, self._house.resident_bytes())
                self._up.discard(gateway.name)
                process = await gateway.end(number_of)
                if term:
                    tasks.create_task(gateway.gone(process))
                tasks.create_task(self._start_again(gateway, self._chance.uniform(*DOWN_S)))

    async def _victim(self) -> Gateway:
        """Wait until a gateway may be ended: another one must be up, if there are several."""
        least = 1 if len(self._house.gateways) == 1 else 2
        if not await until(lambda: len(self._up) >= least, UP_S):
            raise RuntimeError(f"of the gateways only {sorted(self._up)} came up again")
        return self._chance.choice([g for g in self._house.gateways if g.name in self._up])

    async def _start_again(self, gateway: Gateway, after_s: float) -> None:
        await asyncio.sleep(after_s)
        await gateway.start()
        self._up.add(gateway.name)
        self.mention(f"{gateway.name} is up again")

    async def _restart_engine(self) -> None:
        self.mention("the engine is killed and started without its memory")
        await self._house.restart_engine()
        self.engine_restarts += 1

    # The sum

    async def _verdict(self) -> Verdict:
        """Fetch the journals and judge every session, from its beginning."""
        room = asyncio.Semaphore(OPENING)

        async def judged(client: Client) -> Verdict:
            async with room:
                journal = None if client.diary.unknown else await client.journal()
                if journal is not None:
                    told: int = journal["told"]
                    await until(lambda: len(set(client.diary.told)) >= told, TOLD_S)
            return judge(client.diary, journal)

        verdict = Verdict()
        async with asyncio.TaskGroup() as tasks:
            judging = [tasks.create_task(judged(client)) for client in self._clients]
        for task in judging:
            verdict.add(task.result())
        return verdict

    async def _close(self) -> None:
        for client in self._clients:
            await client.close()


async def prove(orders: Orders) -> int:
    """Run both phases and say what was counted. Returns the exit code."""
    with contextlib.ExitStack() as open_until_the_end:
        folder = orders.folder
        if folder is None:
            temporary = tempfile.TemporaryDirectory(prefix="proof-scale-")
            folder = Path(open_until_the_end.enter_context(temporary))
        chance = random.Random(orders.seed)  # noqa: S311 - repeatable, not secret
        house = House(folder, orders.gateways, chance)
        connector = aiohttp.TCPConnector(limit=0)
        async with house, aiohttp.ClientSession(connector=connector) as http:
            proof = Proof(orders, house, http)
            phase, verdict = await proof.run()
        return _told(orders, proof, house, phase, verdict)


def _told(orders: Orders, proof: Proof, house: House, phase: Phase, verdict: Verdict) -> int:
    kills = sum(proof.kills.values())
    complaints = [*proof.complaints, *verdict.complaints]
    complaints += [end for gateway in house.gateways for end in gateway.bad_ends]
    complaints += [f"left: {process}" for process in house.left]
    shares = ", ".join(f"{number} {what}" for what, number in sorted(house.router.counts.items()))
    say(f"router: {shares}")
    say(
        f"ended: {dict(proof.kills)}; engine restarts {proof.engine_restarts}; gateway's memory "
        f"at most {proof.peak_rss / MIB:.0f} MiB; lost {verdict.lost}, untold {verdict.untold}"
    )
    for complaint in complaints[:COMPLAINTS]:
        say(f"  {complaint}")
    if len(complaints) > COMPLAINTS:
        say(f"  and {len(complaints) - COMPLAINTS} more")
    say(
        f"proof-scale: gateways={orders.gateways} calls={phase.answered} kills={kills} "
        f"engine_restarts={proof.engine_restarts} unknown_session={verdict.unknown} "
        f"wrong={verdict.wrong} duplicated={verdict.duplicated}"
    )
    kept = not (verdict.unknown or verdict.wrong or verdict.duplicated or verdict.lost)
    whole = phase.answered == orders.calls and kills == orders.kills and proof.engine_restarts == 1
    return 0 if kept and whole and not proof.complaints and not house.left else 1


def say(line: str) -> None:
    """Print a line now."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """Run the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.proof.scale", description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32))
    parser.add_argument("--gateways", type=int, default=3)
    parser.add_argument("--calls", type=int, default=10_000, help="in each phase")
    parser.add_argument("--sessions", type=int, default=100)
    parser.add_argument("--kills", type=int, default=24, help="of gateways, in phase 2")
    parser.add_argument("--every-s", type=float, default=4.0, help="seconds between two of them")
    parser.add_argument("--folder", type=Path, help="where logs are kept; must not exist")
    parser.add_argument("--verbose", action="store_true", help="say when what happens")
    orders = Orders(**vars(parser.parse_args()))
    say(f"proof-scale: seed={orders.seed}")
    try:
        with asyncio.Runner() as runner:
            return runner.run(_interruptible(orders))
    except asyncio.CancelledError:  # by SIGTERM, and everything was ended
        raise SystemExit(128 + signal.SIGTERM) from None


async def _interruptible(orders: Orders) -> int:
    """End everything that was started on SIGTERM too, as asyncio does on SIGINT."""
    if (task := asyncio.current_task()) is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await prove(orders)


if __name__ == "__main__":
    raise SystemExit(main())
