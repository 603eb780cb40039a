"""The proof that the link delivers every frame exactly once and in order.

`python -m tests.proof.link` runs real processes under load in two phases. First the connections
between agents and gateway are dropped, again and again, at random bytes; then the gateway itself is
killed and started again. Both ends number everything, so whatever is lost, comes twice, or comes in
another order is counted. The last line holds the counts; the exit code is 0 if every promise held.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import random
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

from tests.fakes.fault_proxy import End, Tunnel, Way
from tests.proof.client import Broken, Exchange, ProofClient
from tests.proof.outfit import Outfit, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

AT_ONCE = 16
"""Calls in flight in every session."""

STEPS = (4, 16)
PAUSE_MS = (20, 250)
TEXT_BYTES = (0, 50, 500, 5_000, 50_000)
"""Of one progress message; the last spans two frames of the link with the envelope of a batch."""

NOTIFY_PAUSE_S = 0.02
"""Between two numbered notifications; what one costs is the way to the agent and back."""

ATTACHED_BYTES = 1024
"""The gateway's answer to the upgrade and its WELCOME are shorter: when so many bytes came down a
connection, the link has gone on over it."""

DROPS_PER_BLACK_HOLE = 100
"""Few: each takes the 45 s after which a silent connection is given up."""

DROP_AFTER_S = (0.0, 0.2)
CUT_AFTER = (0, 20_000)
BREAK_S = 10.0
"""A cut waits so long for its byte, a FIN for its answer; then the connection is reset."""

REATTACH_S = 75.0
"""For the agent's redial: 45 s until it notices a black hole, 10 s of back-off, the dialling."""

KILLS_PER_WAVE = 5
"""Kills that one set of sessions lives through. An agent's back-off starts over only after 10 s on
one connection, so a longer series would mostly measure back-off."""

LOAD_S = (1.5, 3.0)
HASTY_S = (0.0, 1.0)
HASTY = 0.25
"""This share of the kills does not wait until the agents are back from the one before."""

ROUTER_S = 5.0
"""How long the proxy holds an agent's connection while the gateway starts."""

PACES = ((97, 0.0005), (1460, 0.0), (65_536, 0.0), (65_536, 0.002))
"""Bytes and seconds, for all connections, until the next drop picks another."""

REFUSING, REFUSING_S = 0.02, 0.2
"""This share of the drops is followed by so long a time in which no agent can connect."""

PHASE_S = 300.0
CLOSED_S = 15.0
WEIGH_S = 0.25

COMPLAINTS = 60
"""Lines of them that are shown."""


@dataclass(frozen=True)
class Orders:
    """What was asked for on the command line."""

    seed: int
    frames: int
    drops: int
    kills: int
    drop_sessions: int
    kill_sessions: int
    verbose: bool


@dataclass
class Verdict:
    """What was counted.

    Attributes:
        frames: JSON-RPC messages that arrived, both ways.
        lost: of those that were sent.
        duplicated: arrivals of what had arrived before, executions of what was executed before.
        reordered: arrivals behind one that was sent later in the same sequence.
        calls_lost: calls without their result.
        complaints: the same for people, and what fits none of these.
    """

    frames: int = 0
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    calls_lost: int = 0
    complaints: list[str] = field(default_factory=list)

    def add(self, other: Verdict) -> None:
        """Add another's counts."""
        self.frames += other.frames
        self.lost += other.lost
        self.duplicated += other.duplicated
        self.reordered += other.reordered
        self.calls_lost += other.calls_lost
        self.complaints += other.complaints

    def sequence(self, what: str, arrived: Sequence[Any], sent: int) -> None:
        """Judge a sequence that should be 1 to `sent`."""
        self.frames += len(arrived)
        lost = set(range(1, sent + 1)) - set(arrived)
        first_of_each = list(dict.fromkeys(arrived))
        highest = list(itertools.accumulate(first_of_each, max))
        behind = sum(number < most for number, most in zip(first_of_each, highest, strict=True))
        invented = set(arrived) - set(range(1, sent + 1))
        twice = len(arrived) - len(first_of_each)
        self.lost += len(lost)
        self.duplicated += twice
        self.reordered += behind
        if lost or twice or behind or invented:
            self.complaints.append(
                f"{what}: of 1 to {sent} lost {sorted(lost)[:20]}, {twice} twice, {behind} late, "
                f"never sent {sorted(invented)[:20]}"
            )

    def call(self, what: str, order: dict[str, Any], exchange: Exchange) -> None:
        """Judge a call of the tool `work`."""
        complaints = len(self.complaints)
        self.sequence(f"{what} progress", exchange.progress, order["steps"])
        responses = exchange.responses
        self.frames += len(responses)
        self.duplicated += max(0, len(responses) - 1)
        if not responses:
            self.lost += 1
        results = [r["result"]["structuredContent"] for r in responses if "result" in r]
        expected = {"call": order["call"], "steps": order["steps"], "executions": 1}
        if results != [expected]:
            self.calls_lost += expected not in results
            self.complaints.append(f"{what}: {exchange.failure or responses}")
        elif exchange.failure:
            self.complaints.append(f"{what}: {exchange.failure}")
        if len(self.complaints) > complaints:
            self.complaints.append(f"{what} went through: {exchange.history}")
        for message in (arrival.message for arrival in exchange.arrivals):
            if message is not None and _addressee(message) != exchange.request_id:
                self.complaints.append(f"{what}: got what is another's: {str(message)[:200]}")


def _addressee(message: dict[str, Any]) -> Any:
    """The id of the request to which a message belongs; the progress token is the same."""
    return message.get("id", (message.get("params") or {}).get("progressToken"))


class Load:
    """The load on one session: calls, AT_ONCE at a time, and a stream of notifications."""

    def __init__(self, client: ProofClient, chance: random.Random) -> None:
        self.client = client
        self._chance = chance
        self._numbers = itertools.count(1)
        self._calls: list[tuple[dict[str, Any], Exchange]] = []
        self._running: dict[int, dict[str, Any]] = {}
        self._told = 0
        self._silenced = ""

    @property
    def delivered(self) -> int:
        """Frames that have certainly arrived at one of the ends so far."""
        arrived = sum(len(exchange.arrivals) for exchange in self.client.exchanges)
        return arrived + len(self._calls) + self._told

    async def run(self, stop: asyncio.Event) -> None:
        """Keep it up until told to stop, then see what runs to its end."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(AT_ONCE):
                tasks.create_task(self._work(stop))
            tasks.create_task(self._notify(stop))

    async def _work(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            number = next(self._numbers)
            order = {
                "call": number,
                "steps": self._chance.randint(*STEPS),
                "pause_ms": self._chance.randint(*PAUSE_MS),
                "bytes": self._chance.choices(TEXT_BYTES, (40, 30, 20, 8, 2))[0],
            }
            self._running[number] = order
            exchange = await self.client.call("work", **order)
            del self._running[number]
            self._calls.append((order, exchange))
            if not any("result" in response for response in exchange.responses):
                return  # lost already: more of the same would only bury the first

    async def _notify(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            params = {"n": self._told + 1, "text": "x" * self._chance.choice((0, 10, 1000))}
            try:
                await self.client.notify("notifications/proof", params, self._has_arrived)
            except Broken as broken:
                self._silenced = str(broken)
                return
            self._told += 1
            await asyncio.sleep(NOTIFY_PAUSE_S)

    async def _has_arrived(self) -> bool:
        return bool((await self._report(self._told))["notifications"])

    async def _report(self, since: int) -> dict[str, Any]:
        exchange = await self.client.call("report", since=since)
        if exchange.failure or "result" not in exchange.responses[0]:
            raise Broken(f"report: {exchange.failure or exchange.responses[0]}")
        report: dict[str, Any] = exchange.responses[0]["result"]["structuredContent"]
        return report

    async def judge(self) -> Verdict:
        """Compare both ends' notes. Call it once, after `run`."""
        verdict = Verdict()
        name = f"session {self.client.session[-8:]}"
        for order, exchange in self._calls:
            verdict.call(f"{name} call {order['call']}", order, exchange)
        for number in self._running:
            verdict.calls_lost += 1
            verdict.complaints.append(f"{name} call {number}: still ran when the phase was ended")
        if self._silenced:
            verdict.complaints.append(f"{name}: {self._silenced}")
        try:
            report = await self._report(0)
        except Broken as broken:
            verdict.lost += self._told
            verdict.complaints.append(f"{name}: {broken}")
            return verdict
        verdict.sequence(f"{name} notifications", report["notifications"], self._told)
        executions = dict(report["executions"])
        verdict.frames += len(executions)
        for order, _ in self._calls:
            times = executions.get(order["call"], 0)
            verdict.lost += times == 0
            verdict.duplicated += max(0, times - 1)
            if times != 1:
                verdict.complaints.append(f"{name} call {order['call']}: executed {times} times")
        return verdict


class Stuck(Exception):
    """The run cannot go on; the message says what did not happen."""


class Proof:
    """One run: the processes, the sessions under load, and what was counted so far.

    Attributes:
        drops: connections that were broken and dialled again.
        kills: gateways that were killed and started again.
        kinds: of drops, how many each.
        ways: what the clients did: posts, resumptions, and so on.
        peak_rss: largest resident memory of a gateway, bytes.
        first_rss: that of a gateway without a session.
    """

    def __init__(self, orders: Orders, outfit: Outfit, http: aiohttp.ClientSession) -> None:
        self.drops = 0
        self.kills = 0
        self.kinds: Counter[str] = Counter()
        self.ways: Counter[str] = Counter()
        self.peak_rss = self.first_rss = outfit.resident_bytes()
        self._orders = orders
        self._outfit = outfit
        self._http = http
        self._chance = random.Random(orders.seed)  # noqa: S311 - repeatable, not secret
        self._opened = 0
        self._began = time.monotonic()
        self._black_holes = orders.drops // DROPS_PER_BLACK_HOLE

    # What both phases share

    async def _run(
        self, sessions: int, trouble: Callable[[list[Load]], Awaitable[None]]
    ) -> Verdict:
        """Open sessions, keep them under load while there is trouble, judge and close them."""
        clients = [ProofClient(self._http, self._outfit.url) for _ in range(sessions)]
        async with asyncio.TaskGroup() as tasks:
            for client in clients:
                tasks.create_task(client.open())
        self._opened += sessions
        loads = [Load(client, random.Random(self._chance.random())) for client in clients]  # noqa: S311
        verdict = Verdict()
        try:
            async with asyncio.timeout(PHASE_S):
                await self._under_load(loads, trouble)
        except* (Stuck, TimeoutError) as trouble_itself:
            verdict.complaints += [repr(error) for error in trouble_itself.exceptions]
        async with asyncio.TaskGroup() as tasks:
            judging = [tasks.create_task(load.judge()) for load in loads]
        for judged in judging:
            verdict.add(judged.result())
        for client in clients:
            self.ways.update(client.counts)
            await client.close()
        return verdict

    async def _under_load(
        self, loads: list[Load], trouble: Callable[[list[Load]], Awaitable[None]]
    ) -> None:
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for load in loads:
                tasks.create_task(load.run(stop))
            tasks.create_task(self._weigh(stop))
            await trouble(loads)
            stop.set()
            self._mention("no new calls")
        self._mention("all calls have ended")

    def _mention(self, what: str) -> None:
        if self._orders.verbose:
            say(f"{time.monotonic() - self._began:8.2f} {what}")

    async def _weigh(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            self.peak_rss = max(self.peak_rss, self._outfit.resident_bytes())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WEIGH_S):
                    await stop.wait()

    async def _attached(self, load: Load, besides: Tunnel | None = None) -> Tunnel:
        """Wait until a session's link goes on, over another connection than `besides`.

        Raises:
            Stuck: it does not.
        """
        session = load.client.session

        def working() -> list[Tunnel]:
            return [
                tunnel
                for tunnel in self._outfit.tunnels(session)
                if tunnel is not besides and tunnel.forwarded[Way.DOWN] >= ATTACHED_BYTES
            ]

        if not await until(lambda: bool(working()), REATTACH_S):
            raise Stuck(f"session {session[-8:]}: its agent was not back after {REATTACH_S:.0f} s")
        return working()[-1]

    # Phase 1

    async def drop_connections(self) -> Verdict:
        """Break connections until as many as ordered were dialled again and the frames are sent."""
        return await self._run(self._orders.drop_sessions, self._dropping)

    async def _dropping(self, loads: list[Load]) -> None:
        async with asyncio.TaskGroup() as tasks:
            for load in loads:
                tasks.create_task(self._drop_until_enough(load))
        self._outfit.proxy.pace = type(self._outfit.proxy.pace)()
        wanted = self._orders.frames
        if not await until(lambda: sum(load.delivered for load in loads) >= wanted, PHASE_S):
            raise Stuck(f"fewer than {wanted} frames in {PHASE_S:.0f} s")

    async def _drop_until_enough(self, load: Load) -> None:
        tunnel = await self._attached(load)
        while self.drops < self._orders.drops:
            await asyncio.sleep(self._chance.uniform(*DROP_AFTER_S))
            pace = self._outfit.proxy.pace
            pace.slice_bytes, pace.pause_s = self._chance.choice(PACES)
            kind = self._break(tunnel)
            if kind != "black_hole" and not await until(tunnel.closed.is_set, BREAK_S):
                tunnel.reset()
            if self._chance.random() < REFUSING:
                with self._outfit.proxy.refusing():
                    await asyncio.sleep(REFUSING_S)
            tunnel = await self._attached(load, besides=tunnel)
            self._mention(f"{load.client.session[-8:]} is back after {kind}")
            self.kinds[kind] += 1
            self.drops += 1

    def _break(self, tunnel: Tunnel) -> str:
        """Do something bad to a connection; return what."""
        if self._black_holes:
            self._black_holes -= 1
            tunnel.black_hole()
            return "black_hole"
        kind = self._chance.choices(("reset", "fin", "half_close", "cut"), (2, 2, 1, 5))[0]
        way = self._chance.choice(list(Way))
        match kind:
            case "reset":
                tunnel.reset()
            case "fin":
                tunnel.finish()
            case "half_close":
                tunnel.half_close(way)
            case _:
                end = self._chance.choice(list(End))
                tunnel.cut(way, self._chance.randint(*CUT_AFTER), end)
        return kind

    # Phase 2

    async def kill_gateways(self) -> Verdict:
        """Kill and restart the gateway as often as ordered, with fresh sessions now and then."""
        verdict = Verdict()
        while self.kills < self._orders.kills and len(verdict.complaints) < COMPLAINTS:
            verdict.add(await self._run(self._orders.kill_sessions, self._killing))
        return verdict

    async def _killing(self, loads: list[Load]) -> None:
        kills = min(KILLS_PER_WAVE, self._orders.kills - self.kills)
        for number in range(1, kills + 1):
            if number == 1 or self._chance.random() >= HASTY:
                await self._all_attached(loads)
                await asyncio.sleep(self._chance.uniform(*LOAD_S))
            else:
                await asyncio.sleep(self._chance.uniform(*HASTY_S))
            # A router may hold an agent's connection while the gateway starts, or refuse it; that
            # comes last, because refusals raise the back-off.
            self._outfit.proxy.patience_s = ROUTER_S if number < kills else 0.0
            self._mention("kill")
            await self._outfit.kill()
            await self._outfit.start()
            self._mention("started again")
            self.kills += 1
        await self._all_attached(loads)

    async def _all_attached(self, loads: list[Load]) -> None:
        async with asyncio.TaskGroup() as tasks:
            for load in loads:
                tasks.create_task(self._attached(load))
        self._mention("all agents are back")

    # The sum

    async def peak_buffer_bytes(self) -> int:
        """What a gateway held at most for a session; or by how much it grew, if it does not say."""

        def closed() -> list[dict[str, Any]]:
            return [record for record in self._outfit.records() if record["event"] == "closed"]

        await until(lambda: len(closed()) >= self._opened, CLOSED_S)
        said = [r["peak_buffer_bytes"] for r in closed() if "peak_buffer_bytes" in r]
        return max(said) if said else self.peak_rss - self.first_rss


async def prove(orders: Orders) -> int:
    """Run both phases and say what came out. Returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="proof-") as folder:
        outfit = Outfit(Path(folder))
        async with outfit:
            headers = {"Authorization": f"Bearer {outfit.key}"}
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(headers=headers, connector=connector) as http:
                proof = Proof(orders, outfit, http)
                sums = await _both_phases(orders, proof)
                peak = await proof.peak_buffer_bytes()
            if sums.complaints:
                say(outfit.tails())
        for line in sums.complaints[:COMPLAINTS]:
            say(f"  {line}")
        for line in outfit.left:
            say(f"  had to be killed: {line}")
    say(
        f"proof-link: frames={sums.frames} drops={proof.drops} lost={sums.lost} "
        f"duplicated={sums.duplicated} reordered={sums.reordered} kills={proof.kills} "
        f"calls_lost={sums.calls_lost} peak_buffer_mib={peak / 2**20:.1f}"
    )
    enough = (
        sums.frames >= orders.frames and proof.drops >= orders.drops and proof.kills >= orders.kills
    )
    return 0 if enough and not sums.complaints and not outfit.left else 1


async def _both_phases(orders: Orders, proof: Proof) -> Verdict:
    """Return the sum of both phases; its frames are those of the first."""
    began = time.monotonic()
    sums = await proof.drop_connections() if orders.drops else Verdict()
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(proof.kinds.items()))
    say(
        f"phase 1, {time.monotonic() - began:.0f} s: {sums.frames} frames over "
        f"{orders.drop_sessions} sessions, {proof.drops} drops ({kinds}), {_told(sums, proof)}"
    )
    began = time.monotonic()
    proof.ways.clear()
    second = await proof.kill_gateways()
    say(
        f"phase 2, {time.monotonic() - began:.0f} s: {second.frames} frames, "
        f"{proof.kills} kills of the gateway, {_told(second, proof)}"
    )
    frames = sums.frames
    sums.add(second)
    sums.frames = frames
    return sums


def _told(verdict: Verdict, proof: Proof) -> str:
    ways = ", ".join(f"{number} {way}" for way, number in sorted(proof.ways.items()))
    return (
        f"lost {verdict.lost}, duplicated {verdict.duplicated}, reordered {verdict.reordered}, "
        f"calls lost {verdict.calls_lost}, {len(verdict.complaints)} complaints; clients: {ways}"
    )


def say(line: str) -> None:
    """Print a line now."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """Run the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.proof.link", description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32))
    parser.add_argument("--frames", type=int, default=10_000, help="least number in phase 1")
    parser.add_argument("--drops", type=int, default=200, help="0 leaves phase 1 out")
    parser.add_argument("--kills", type=int, default=20, help="0 leaves phase 2 out")
    parser.add_argument("--drop-sessions", type=int, default=16, help="at once, in phase 1")
    parser.add_argument("--kill-sessions", type=int, default=4, help="at once, in phase 2")
    parser.add_argument("--verbose", action="store_true", help="say when what happens")
    orders = Orders(**vars(parser.parse_args()))
    say(f"proof-link: seed={orders.seed}")
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
