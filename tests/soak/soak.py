"""Load, then thousands of lives, and proof that nothing was lost and nothing is left.

`python -m tests.soak.soak --help` lists the options; without any it is 500 sessions for 30 seconds
and 3,000 lives.

First many sessions at full rate, while random agents' sockets are cut: every request has exactly
one answer, its own. Then many short lives, some of them ended the hard way: agents and clients
that vanish, break the protocol, never come. The gateway's process (house.py) must be as it was
after a warm-up, and as it was at its birth where counts are exact. The last line sums it up; a
broken promise is named before it, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import resource
import socket
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import aiohttp

from gateway.fleet.ledger import BILLS_KEPT
from gateway.sessions.directory import MAX_ENDED
from tests.soak.crowd import NOTE, Crowd
from tests.soak.house import ABSENT, FORGOTTEN, GRACE_S, KEY, SHORT_S, STEADY, UNAVAILABLE, Figures

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]

REVISION = "2025-11-25"

BOUND_S = 60.0
"""For any one answer: the grace period, and what a loaded machine adds to it."""

OPENING = 50
"""Sessions that open or end at once: a boot is no part of the load."""

WORKERS = 48
"""Lives at once. The warm-up has as many, so that both meet the same peak of memory."""

DROPS_PER_S = 20

SETTLE_S = 20.0
"""For the gateway to come to rest, besides the grace period of the last agent that vanished."""

POLL_S = 0.25
"""Between two looks at a gateway that is to come to rest."""

LARGE = range(100_000, 300_000)
SMALL = range(10, 2_000)
LARGE_SHARE = 0.01
"""Sizes of what is echoed; the large ones take several frames, so that drops cut messages too."""

RSS_PER_LIFE, MANY = 1024, 3_000
RSS_NOISE = 4 * 1024 * 1024
"""Bytes that resident memory may grow for every life, if there are many of them; a few move it by
what the allocator's arenas fragment, and say nothing about each life."""

BLOCKS_PER_LIFE = 0.5
BLOCKS_NOISE = 3_000
BLOCKS_PER_BILL = 3
"""The same for Python's memory blocks, besides one for each session that is remembered as ended and
those of the bills that are kept: one object lost in every second life is too much."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do; see the command line."""

    sessions: int
    lifecycles: int
    seconds: float
    seed: int

    @property
    def room(self) -> int:
        """MAX_SESSIONS of the gateway: lives that nobody ends stay for a while."""
        return self.sessions + 4 * WORKERS

    @property
    def warm_up(self) -> int:
        """Lives before the baseline."""
        return max(4 * WORKERS, min(500, self.lifecycles // 5))


@dataclass
class Tally:
    """What was seen, and which promises were broken, as sentences."""

    calls: int = 0
    lost: int = 0
    duplicated: int = 0
    broken: list[str] = field(default_factory=list)

    def check(self, promise: bool, otherwise: str) -> None:
        if not promise:
            self.broken.append(otherwise)


# The gateway's process


class House:
    """The driver's end of the house's control socket; see house.py."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.url = ""
        self._reader = reader
        self._writer = writer
        self._leaving = False
        self._figures: asyncio.Queue[Figures] = asyncio.Queue(1)

    async def greet(self) -> None:
        async with asyncio.timeout(BOUND_S):
            self.url = json.loads(await self._reader.readline())["serving"]

    async def listen(self, crowd: Crowd) -> None:
        """Pass launch orders on until the house has left."""
        async for line in self._reader:
            match json.loads(line):
                case {"launch": launch_id, "server": server, "url": url, "token": token}:
                    if server != ABSENT:
                        crowd.launch(launch_id, url, token)
                case {"stop": launch_id}:
                    crowd.stop(launch_id)
                case {"figures": figures}:
                    self._figures.put_nowait(Figures(**figures))
                case other:
                    raise Broken(f"the house said {other}")

    def exited(self, launch_id: str) -> None:
        """Tell that a dyno ended by itself."""
        if not self._leaving:
            self._tell(exited=launch_id)

    def _tell(self, **facts: str) -> None:
        self._writer.write(json.dumps(facts).encode() + b"\n")

    async def figures(self) -> Figures:
        async with asyncio.timeout(BOUND_S):
            self._tell(tell="figures")
            return await self._figures.get()

    def leave(self) -> None:
        """Let it drain and leave; what it still orders is heard."""
        self._leaving = True
        self._writer.write_eof()


@contextlib.asynccontextmanager
async def housed(plan: Plan, log: IO[bytes], tally: Tally) -> AsyncIterator[House]:
    """Run the gateway; on the way out it must drain and leave with status 0."""
    ours, its = socket.socketpair()
    with its:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.soak.house", str(its.fileno()), str(plan.room)),
            stdin=asyncio.subprocess.DEVNULL,
            stderr=log,
            cwd=ROOT,
            pass_fds=[its.fileno()],
        )
    reader, writer = await asyncio.open_connection(sock=ours)
    house = House(reader, writer)
    try:
        await house.greet()
        yield house
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S):
                await process.wait()
        tally.check(process.returncode == 0, f"the gateway's exit status is {process.returncode}")
    except BaseException:
        log.seek(0)
        say(b"".join(log.readlines()[-20:]).decode(errors="replace"))
        raise
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        writer.close()


# Clients


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back on one POST: its status and every JSON-RPC message of its body."""

    status: int
    session: str
    messages: list[Any]

    @property
    def reason(self) -> str:
        """The slug of the error that the last message carries, or empty."""
        last = self.messages[-1] if self.messages else {}
        return str(last.get("error", {}).get("data", {}).get("reason", ""))


class Client:
    """All clients of one phase: one pool of connections, closed at its end."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self._url = url
        self._http = http

    async def post(self, body: Any, session: str = "", server: str = STEADY) -> Answer:
        headers = {"Mcp-Session-Id": session} if session else {}
        async with (
            asyncio.timeout(BOUND_S),
            self._http.post(self._at(server), json=body, headers=headers) as response,
        ):
            text = await response.text()
            if response.content_type == "text/event-stream":
                lines = (line.partition("data: ") for line in text.split("\n"))
                data = [data for head, _, data in lines if data and not head]
            else:
                data = [text] if text else []
            key = response.headers.get("Mcp-Session-Id", "")
            return Answer(response.status, key, [json.loads(each) for each in data])

    def _at(self, server: str) -> str:
        return f"{self._url}/servers/{server}/mcp"

    async def initialize(self, server: str = STEADY) -> Answer:
        info = {"name": "soak", "version": "0"}
        params = {"protocolVersion": REVISION, "capabilities": {}, "clientInfo": info}
        body = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
        return await self.post(body, server=server)

    async def open(self, server: str = STEADY) -> str:
        """Open a session; return its key.

        Raises:
            Broken: it did not open.
        """
        answer = await self.initialize(server)
        demand(answer.status == 200 and answer.session, f"initialize: {answer}")
        done = await self.post(
            {"jsonrpc": "2.0", "method": "notifications/initialized"}, answer.session, server
        )
        demand(done.status == 202, f"initialized: {done}")
        return answer.session

    async def call(
        self, session: str, number: int, tool: str, text: str = "", server: str = STEADY
    ) -> Answer:
        params = {"name": tool, "arguments": {"text": text}}
        body = {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}
        return await self.post(body, session, server)

    async def delete(self, session: str, server: str = STEADY) -> int:
        headers = {"Mcp-Session-Id": session}
        async with (
            asyncio.timeout(BOUND_S),
            self._http.delete(self._at(server), headers=headers) as response,
        ):
            return response.status

    @contextlib.asynccontextmanager
    async def general(self, session: str) -> AsyncIterator[aiohttp.StreamReader]:
        """Hold the GET stream of a session, up to and without its first comment."""
        headers = {"Mcp-Session-Id": session}
        async with (
            asyncio.timeout(BOUND_S),
            self._http.get(self._at(STEADY), headers=headers) as response,
        ):
            demand(response.status == 200, f"GET: {response.status}")
            yield response.content


class Broken(Exception):
    """Something went otherwise than promised; the message says what."""


def demand(promise: object, otherwise: str) -> None:
    """Raise unless the promise holds."""
    if not promise:
        raise Broken(otherwise[:500])


@contextlib.asynccontextmanager
async def clients(house: House) -> AsyncIterator[Client]:
    headers = {
        "X-API-Key": KEY,
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": REVISION,
    }
    timeout, connector = aiohttp.ClientTimeout(), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=headers, connector=connector, timeout=timeout) as http:
        yield Client(house.url, http)


async def at_once(width: int, jobs: Iterator[Awaitable[None]]) -> None:
    """Work jobs off, `width` at a time."""

    async def work() -> None:
        for job in jobs:
            await job

    async with asyncio.TaskGroup() as workers:
        for _ in range(width):
            workers.create_task(work())


# The load


async def load(client: Client, crowd: Crowd, plan: Plan, tally: Tally) -> None:
    """Call on all sessions at full rate, and cut sockets."""
    keys: list[str] = []

    async def begin() -> None:
        keys.append(await client.open())

    async def end(key: str) -> None:
        status = await client.delete(key)
        tally.check(status == 204, f"DELETE after the load was answered with {status}")

    await at_once(OPENING, (begin() for _ in range(plan.sessions)))
    finish = asyncio.get_running_loop().time() + plan.seconds
    async with asyncio.TaskGroup() as tasks:
        for number, key in enumerate(keys):
            chance = random.Random(f"{plan.seed}/{number}")  # noqa: S311 - not a secret
            tasks.create_task(_caller(client, key, finish, chance, tally))
        while (now := asyncio.get_running_loop().time()) < finish:
            while crowd.drops < DROPS_PER_S * (now - finish + plan.seconds) and crowd.drop():
                pass
            await asyncio.sleep(1 / DROPS_PER_S)
    await at_once(OPENING, (end(key) for key in keys))


async def _caller(
    client: Client, key: str, finish: float, chance: random.Random, tally: Tally
) -> None:
    number = 0
    while asyncio.get_running_loop().time() < finish:
        number += 1
        size = chance.choice(LARGE if chance.random() < LARGE_SHARE else SMALL)
        text = f"{number} of {key} ".ljust(size, "x")
        tool = chance.choice(("echo", "chatty"))
        tally.calls += 1
        try:
            answer = await client.call(key, number, tool, text)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            tally.lost += 1
            tally.check(tally.lost > 5, f"call {number}: {type(error).__name__}: {error}")
            continue
        mine = {"jsonrpc": "2.0", "id": number, "result": {"text": text}}
        wanted = [NOTE, mine] if tool == "chatty" else [mine]
        tally.lost += any(message not in answer.messages for message in wanted)
        tally.duplicated += len(answer.messages) > len(wanted)
        if answer.messages != wanted:
            tally.check(tally.lost > 5, f"{tool} {number} brought {str(answer)[:300]}")


# Lives


async def _whole(client: Client) -> None:
    key = await client.open()
    answer = await client.call(key, 1, "echo", key)
    expected = [{"jsonrpc": "2.0", "id": 1, "result": {"text": key}}]
    demand(answer.messages == expected, f"echo: {answer}")
    demand(await client.delete(key) == 204, "DELETE was refused")


async def _listening(client: Client) -> None:
    """A GET stream is open, carries a notification, and ends with the session."""
    key = await client.open()
    async with client.general(key) as stream:
        await client.call(key, 1, "afterword")
        demand(b"notifications/message" in await stream.readuntil(b"}\n\n"), "not notified")
        demand(await client.delete(key) == 204, "DELETE was refused")
        await stream.read()


async def _ended_by(client: Client, tool: str, reason: str) -> None:
    key = await client.open()
    answer = await client.call(key, 1, tool)
    demand(answer.reason == reason, f"{tool}: {answer}")
    demand(await client.delete(key) == 404, "a session outlived its agent")


async def _not_opened(client: Client, server: str, reason: str) -> None:
    answer = await client.initialize(server)
    demand(answer.reason == reason, f"{server}: {answer}")


async def _hung_up(waiting: Awaitable[Answer]) -> None:
    """Close the connection while an answer is awaited."""
    try:
        async with asyncio.timeout(SHORT_S / 4):
            answer = await waiting
    except TimeoutError:
        return
    raise Broken(f"answered before the client hung up: {answer}")


async def _gone_before_the_boot(client: Client) -> None:
    await _hung_up(client.initialize(ABSENT))


async def _gone_during_a_call(client: Client) -> None:
    key = await client.open()
    await _hung_up(client.call(key, 1, "silent"))
    demand(await client.delete(key) == 204, "DELETE was refused")


async def _forgotten(client: Client) -> None:
    """Nobody ends it: its idle deadline must."""
    await client.open(FORGOTTEN)


class Kind(NamedTuple):
    """A kind of life: how many of a thousand, and how it goes."""

    weight: int
    name: str
    live: Callable[[Client], Awaitable[None]]


LIVES = [
    Kind(780, "whole", _whole),
    Kind(50, "listening", _listening),
    Kind(30, "agent exits", lambda client: _ended_by(client, "exit", "child_exited")),
    Kind(20, "agent dies", lambda client: _ended_by(client, "die", "link_lost")),
    Kind(5, "agent vanishes", lambda client: _ended_by(client, "vanish", "link_lost")),
    Kind(30, "agent breaches", lambda client: _ended_by(client, "breach", "session_ended")),
    Kind(10, "never dials", lambda client: _not_opened(client, ABSENT, "start_timeout")),
    Kind(20, "no dyno", lambda client: _not_opened(client, UNAVAILABLE, "launch_failed")),
    Kind(15, "gone before the boot", _gone_before_the_boot),
    Kind(20, "gone during a call", _gone_during_a_call),
    Kind(20, "forgotten", _forgotten),
]
"""Agents that vanish are few, since each holds a worker for `GRACE_S`."""


async def lives(client: Client, count: int, chance: random.Random, tally: Tally) -> None:
    """Live `count` lives, of every kind at least one."""
    weights = [kind.weight for kind in LIVES]
    drawn = [*LIVES, *chance.choices(LIVES, weights, k=max(0, count - len(LIVES)))]
    chance.shuffle(drawn)

    async def live(kind: Kind) -> None:
        try:
            await kind.live(client)
        except (Broken, aiohttp.ClientError, TimeoutError) as error:
            tally.broken.append(f"{kind.name}: {type(error).__name__}: {error}")

    await at_once(WORKERS, (live(kind) for kind in drawn[:count]))


# What is left


async def settled(house: House, crowd: Crowd, birth: Figures, tally: Tally, when: str) -> Figures:
    """Return the figures once they are as at birth where that is exact; give up after a while."""
    try:
        async with asyncio.timeout(GRACE_S + SETTLE_S):
            while _left(now := await house.figures(), birth, crowd):  # noqa: ASYNC110 - no event
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        now = await house.figures()
        tally.broken.append(f"left {when}: {_left(now, birth, crowd)}")
    say(f"{when}: {now}")
    return now


def _left(now: Figures, birth: Figures, crowd: Crowd) -> dict[str, int]:
    exact = ("tasks", "descriptors", "processes", "sessions", "dynos")
    left = {name: getattr(now, name) - getattr(birth, name) for name in exact}
    left["agents"] = len(crowd.agents)
    return {name: count for name, count in left.items() if count}


def check_growth(base: Figures, last: Figures, plan: Plan, tally: Tally) -> None:
    grown, blocks = last.rss - base.rss, last.blocks - base.blocks
    allowed = RSS_PER_LIFE * plan.lifecycles if plan.lifecycles >= MANY else RSS_NOISE
    tally.check(
        grown < allowed,
        f"resident memory grew by {grown / 1024:.0f} KiB in {plan.lifecycles} lives",
    )
    bills = BLOCKS_PER_BILL * min(plan.lifecycles, BILLS_KEPT)
    remembered = min(plan.lifecycles, MAX_ENDED) + bills
    tally.check(
        blocks < BLOCKS_PER_LIFE * plan.lifecycles + BLOCKS_NOISE + remembered,
        f"{blocks} memory blocks more after {plan.lifecycles} lives",
    )


def check_log(log: IO[bytes], tally: Tally) -> None:
    """The gateway must not have met an error of its own."""
    log.seek(0)
    bad = [line for line in log if b"internal_error" in line or b"Traceback" in line]
    tally.check(not bad, f"{len(bad)} errors in the gateway's log; the first: {bad[:1]!r:.500}")


async def soak(plan: Plan, log: IO[bytes]) -> int:
    """Run the plan; return the exit status."""
    tally, chance = Tally(), random.Random(plan.seed)  # noqa: S311 - not a secret
    async with housed(plan, log, tally) as house, asyncio.TaskGroup() as tasks:
        crowd = Crowd(tasks, chance, house.exited)
        listening = tasks.create_task(house.listen(crowd))
        birth = await settled(house, crowd, await house.figures(), tally, "at birth")
        async with clients(house) as client:
            await load(client, crowd, plan, tally)
        await settled(house, crowd, birth, tally, "after the load")
        async with clients(house) as client:
            await lives(client, plan.warm_up, chance, tally)
        base = await settled(house, crowd, birth, tally, "after the warm-up")
        async with clients(house) as client:
            await lives(client, plan.lifecycles, chance, tally)
        last = await settled(house, crowd, birth, tally, "at the end")
        house.leave()
        try:
            async with asyncio.timeout(BOUND_S):
                await listening
        except TimeoutError:
            tally.broken.append("the gateway did not leave")
        crowd.disperse()
    check_growth(base, last, plan, tally)
    check_log(log, tally)
    tally.duplicated += crowd.duplicated
    tally.check(crowd.drops > 0, "no socket was cut")
    tally.check(not tally.lost, f"{tally.lost} calls have no answer")
    tally.check(not tally.duplicated, f"{tally.duplicated} requests or answers came twice")
    for sentence, count in Counter(tally.broken).most_common(20):
        say(f"broken ({count} times): {sentence}")
    say(summary(plan, tally, crowd, (birth, base, last)))
    return 1 if tally.broken else 0


def summary(plan: Plan, tally: Tally, crowd: Crowd, taken: tuple[Figures, Figures, Figures]) -> str:
    """Return the last line. The figures are those of the birth, the warm-up and the end."""
    birth, base, last = taken
    grown = last.rss - base.rss
    exact = ("tasks", "descriptors", "processes")
    more = [f"{name}={getattr(last, name) - getattr(birth, name):+d}" for name in exact]
    return (
        f"soak: sessions={plan.sessions} calls={tally.calls} drops={crowd.drops} "
        f"lost={tally.lost} duplicated={tally.duplicated} lifecycles={plan.lifecycles} "
        f"rss_growth_kib={grown / 1024:.0f} rss_per_lifecycle_bytes={grown / plan.lifecycles:.0f} "
        + " ".join(more)
    )


def say(line: object) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def plan_of(arguments: list[str] | None = None) -> Plan:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.soak")
    parser.add_argument("--sessions", type=int, default=500)
    parser.add_argument("--lifecycles", type=int)
    parser.add_argument("--seconds", type=float, default=30.0, help="of load")
    parser.add_argument("--nightly", action="store_true", help="30,000 lifecycles")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    given = parser.parse_args(arguments)
    lifecycles = given.lifecycles or (30_000 if given.nightly else 3_000)
    return Plan(given.sessions, lifecycles, given.seconds, given.seed)


def allow_descriptors(sessions: int) -> None:
    """Let this process, and the gateway after it, hold two sockets a session.

    Raises:
        SystemExit: the hard limit is below that.
    """
    need = 2 * sessions + 4 * WORKERS + 100
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard not in (-1, resource.RLIM_INFINITY) and hard < need:
        sys.exit(f"{sessions} sessions need {need} descriptors; the hard limit is {hard}")
    if soft < need:
        resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))


def main() -> None:
    plan = plan_of()
    say(plan)
    allow_descriptors(plan.sessions)
    with tempfile.TemporaryFile() as log:
        sys.exit(asyncio.run(soak(plan, log)))


if __name__ == "__main__":
    main()
