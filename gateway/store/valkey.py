"""The store of several processes: one Valkey, or Redis from 7.0, that all of them reach.

What must happen in one step is in `engine.lua`; that file lists the keys, too. This module knows
how to reach the engine and what to think when it is back after it was not there.
"""

import asyncio
import contextlib
import hashlib
import random
import secrets
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Protocol, Self, cast

from redis.asyncio import connection as redis_py
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, ReadOnlyError, RedisError, ResponseError

from gateway.store import stories
from gateway.store.base import (
    ALIVE_S,
    STORIES,
    Changes,
    Claim,
    Held,
    Keep,
    Letter,
    Passage,
    StoreAway,
    Taken,
    Told,
)

DEADLINE_S = 2.0
"""How long the engine may take to answer, to be connected to, and to say where it stands."""

BEAT_S = 2.0
"""Between two signs of life: two may get lost within `ALIVE_S`."""

BLOCK_S = 2.0
"""How long the engine lets the reader wait: a new life of the inbox is noticed within that."""

WAITING = 1024
"""Commands that may wait for their turn; who comes later waits to be let in."""

BATCH, BATCH_BYTES = 64, 1024 * 1024
"""How much is written in one go: more, and the first would wait for the last to be sent."""

HELD_AT_ONCE = 128
"""Claims renewed in one step: the engine does nothing else meanwhile, about 1 ms."""

TOLD_AT_ONCE, TOLD_BYTES = 64, 256 * 1024
"""Passages added to stories in one step, for the same reason; a longer one goes alone."""

READ_AT_ONCE = 64
"""Letters read in one go."""

LONG_AWAY_S = 1.0
"""After an absence of more than this others may not have been back in time to be alive."""

PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
"""The first and the longest pause before the engine is tried again."""

DIGITS = 16
"""A chunk of a story begins with the number of its last line, in so many digits."""

LIVES = 2**40
"""Versions of one life of a table. What a table has is counted from its life's first version."""

SCRIPT = resources.files("gateway.store").joinpath("engine.lua").read_text(encoding="utf-8")
SHA = hashlib.sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()

Part = bytes | str | int
Ask = Callable[..., Awaitable[Any]]


class Connection(Protocol):
    """What is used of redis-py's connections. They never repeat anything here."""

    async def connect(self) -> None:
        """Open it, and say who we are."""
        ...

    async def disconnect(self, nowait: bool = False) -> None:
        """Close it."""
        ...

    def pack_command(self, *args: Part) -> list[bytes]:
        """Return what is to be sent."""
        ...

    async def send_packed_command(
        self, command: Iterable[bytes], check_health: bool = True
    ) -> None:
        """Send it; connects first if need be."""
        ...

    async def read_response(self) -> Any:
        """Return the next answer, or raise it if it is an error."""
        ...


def dialler(url: str, name: str, verify: bool) -> Callable[[], Connection]:
    """Return what makes connections; they are not open yet.

    Every wait for them has a deadline of its own, so redis-py's are off: its default would end a
    blocking read and repeat it, and what it repeats may have been done.
    """
    known = dict(redis_py.parse_url(url))
    kind = known.pop("connection_class", redis_py.Connection)
    if kind is redis_py.SSLConnection and not verify:
        known |= {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
    known |= {
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": None,
        "socket_connect_timeout": DEADLINE_S,
        "client_name": name,
    }
    return lambda: cast("Connection", cast("Any", kind)(**known))


def pause_s(failures: int) -> float:
    """Return how long to wait before the next attempt."""
    longest = min(LONGEST_PAUSE_S, PAUSE_S * 2.0 ** min(failures, 10))
    return random.uniform(longest / 2, longest)  # noqa: S311 - no secret


async def call(connection: Connection, *command: Part) -> Any:
    """Send a command on a connection that nobody else uses, and return the answer."""
    await connection.send_packed_command(connection.pack_command(*command), check_health=False)
    return await connection.read_response()


@dataclass(slots=True, eq=False)
class Job:
    """A command that waits for its answer."""

    command: list[bytes | int]
    answer: asyncio.Future[Any]
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = sum(len(part) for part in self.command if isinstance(part, bytes))

    def fail(self, why: str) -> None:
        """Say that nobody knows whether it was done."""
        if not self.answer.done():
            self.answer.set_exception(StoreAway(why))


class Wire:
    """One connection that many callers share; what has gathered is written in one go.

    Args:
        dial: makes the connections.
        greet: is called with each new one before anybody else uses it.
    """

    def __init__(self, dial: Callable[[], Connection], greet: Callable[[Ask], Awaitable[None]]):
        self.here = asyncio.Event()
        self._dial = dial
        self._greet = greet
        self._queue: asyncio.Queue[Job] = asyncio.Queue(WAITING)
        self._written: list[Job] = []
        self._away_since: float | None = None
        self._why = "not connected yet"

    @property
    def away_s(self) -> float:
        """For how long there was no answer."""
        return 0.0 if self._away_since is None else time.monotonic() - self._away_since

    async def ask(self, *command: Part) -> Any:
        """Return the answer to a command.

        Raises:
            StoreAway: at once if that is known, else after 2 s; or the engine refused it.
        """
        parts = [part.encode() if isinstance(part, str) else part for part in command]
        job = Job(parts, asyncio.get_running_loop().create_future())
        try:
            async with asyncio.timeout(DEADLINE_S):
                if self.here.is_set():
                    await self._queue.put(job)
                if not self.here.is_set():  # or it went while this one waited to be let in
                    raise StoreAway(self._why)
                return await job.answer
        except TimeoutError as late:
            raise StoreAway(f"no answer within {DEADLINE_S:.0f} s") from late
        finally:
            job.answer.cancel()  # who has gone asks for nothing: it is not written any more

    async def keep(self) -> None:
        """Connect, serve, and connect again, until cancelled."""
        failures = 0
        self._away_since = time.monotonic()
        try:
            while True:
                try:
                    async with self._connected() as connection:
                        failures = 0
                        await self._serve(connection)
                except (RedisError, OSError, TimeoutError) as failure:
                    self._lost(f"{type(failure).__name__}: {failure}")
                await asyncio.sleep(pause_s(failures))
                failures += 1
        finally:
            self._lost("this process has left the store")

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[Connection]:
        connection = self._dial()
        try:
            async with asyncio.timeout(DEADLINE_S):
                await connection.connect()
                await call(connection, "SCRIPT", "LOAD", SCRIPT)
                await self._greet(lambda *command: call(connection, *command))
            self._away_since = None
            self.here.set()
            yield connection
        finally:
            await connection.disconnect(nowait=True)

    def _lost(self, why: str) -> None:
        if self._away_since is None:
            self._away_since = time.monotonic()
        self._why = why
        self.here.clear()
        while not self._queue.empty():
            self._written.append(self._queue.get_nowait())
        for job in self._written:
            job.fail(why)
        self._written = []

    async def _serve(self, connection: Connection) -> None:
        while True:
            jobs = [await self._queue.get()]
            while (
                len(jobs) < BATCH
                and sum(job.size for job in jobs) < BATCH_BYTES
                and not self._queue.empty()
            ):
                jobs.append(self._queue.get_nowait())
            self._written = [job for job in jobs if not job.answer.done()]
            async with asyncio.timeout(DEADLINE_S):
                while self._written:
                    self._written = await self._exchange(connection, self._written)

    async def _exchange(self, connection: Connection, jobs: list[Job]) -> list[Job]:
        """Write commands and hand out the answers; return those to be written again."""
        again = list[Job]()
        pieces = [piece for job in jobs for piece in connection.pack_command(*job.command)]
        await connection.send_packed_command(pieces, check_health=False)
        for job in jobs:
            try:
                answer = await connection.read_response()
            except NoScriptError:  # the engine has forgotten it, and so has done nothing
                again += [] if job.answer.done() else [job]
            except ReadOnlyError:  # the one to talk to is another now
                raise
            except ResponseError as refusal:
                job.fail(f"the engine refused: {refusal}")
            else:
                if not job.answer.done():
                    job.answer.set_result(answer)
        if again:
            await call(connection, "SCRIPT", "LOAD", SCRIPT)
        return again


class ValkeyStore:
    """A store on an engine that all processes share; see `Store` for its methods.

    It has two connections: one that all callers share, and one that waits for mail. Entering it
    waits for the engine up to 2 s and goes on without: methods raise `StoreAway` until it is there.

    `blank_since` moves when the engine has lost its memory, when it is another one or was started
    again (the last that was written may be lost), when it was away for long and when it has taken
    this process for dead (others may still be taken for dead, too).

    Args:
        url: `redis://`, `rediss://` or `unix://`.
        prefix: of all keys; deployments that share an engine have one each.
        gateway: id of this process; one of its own without.
        verify: check the certificate of a `rediss://` engine. Heroku's are self-signed; its Dev
            Center ("Connecting to Heroku Key-Value Store") has every client turn the check off.

    Attributes:
        problems: what an operator should change about the engine, as sentences.
    """

    name = "valkey"
    alone = False

    def __init__(
        self, url: str, *, prefix: str = "rdv", gateway: str | None = None, verify: bool = False
    ) -> None:
        self.gateway = gateway or secrets.token_hex(6)
        self.problems: list[str] = []
        self.blank_since = time.monotonic()
        self._prefix = prefix
        self._dial = dialler(url, f"{prefix}-{self.gateway}", verify)
        self._wire = Wire(self._dial, self._greet)
        self._tasks = asyncio.TaskGroup()
        self._keeping: list[asyncio.Task[None]] = []
        self._run_id = ""
        self._born = b""
        self._life = self._announced = 0
        self._reader: Connection | None = None
        self._read = (0, b"0-0", 0, 0)

    async def __aenter__(self) -> Self:
        """See `Store`."""
        await self._tasks.__aenter__()
        self._keeping = [
            self._tasks.create_task(self._wire.keep(), name="store"),
            self._tasks.create_task(self._beats(), name="store beats"),
        ]
        try:
            async with asyncio.timeout(DEADLINE_S):
                await self._wire.here.wait()
        except TimeoutError:
            pass  # it goes on without the engine
        except asyncio.CancelledError:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(self, *failure: Any) -> None:
        """See `Store`."""
        wire, beats = self._keeping
        beats.cancel()  # or it would come to life again
        try:
            with contextlib.suppress(StoreAway):
                await self._do("leave", self._life)
        finally:
            wire.cancel()
            if self._reader is not None:
                await self._reader.disconnect(nowait=True)
            ours = failure[0] is asyncio.CancelledError  # a task of ours may have failed
            await self._tasks.__aexit__(*(failure if ours else (None, None, None)))

    @property
    def away_s(self) -> float:
        """See `Store`."""
        return self._wire.away_s

    async def _do(self, operation: str, *args: Part, ask: Ask | None = None) -> Any:
        """Run an operation of `engine.lua`."""
        ask = ask or self._wire.ask
        return await ask("EVALSHA", SHA, 1, self._prefix, operation, self.gateway, *args)

    def _key(self, kind: str, name: str) -> str:
        return f"{self._prefix}:{kind}:{name}"

    # Presence

    async def _greet(self, ask: Ask) -> None:
        """Find out which engine this is, and be alive there."""
        facts = dict[str, str]()
        with contextlib.suppress(ResponseError):  # a provider may forbid it
            lines = (await ask("INFO")).decode(errors="replace").splitlines()
            facts = {key: value for key, _, value in (line.partition(":") for line in lines)}
        run_id, policy = facts.get("run_id", ""), facts.get("maxmemory_policy", "noeviction")
        if self._run_id and run_id != self._run_id:
            self._begin_again()
        elif self._born and self._wire.away_s > LONG_AWAY_S:
            self.blank_since = time.monotonic()
        self._run_id = run_id
        self.problems = []
        if policy != "noeviction":
            self.problems.append(
                f"the engine's maxmemory-policy is {policy}: when its memory is full it will "
                "forget who holds which session; set it to noeviction"
            )
        await self._beat(ask)

    async def _beats(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            with contextlib.suppress(StoreAway):
                await self._beat(self._wire.ask)

    async def _beat(self, ask: Ask) -> None:
        """Say that this process is alive, and see whether the engine still knows what it knew."""
        known = self._born
        before, self._born = await self._sign_of_life(ask)
        if known and self._born != known:
            self._begin_again()
            await self._sign_of_life(ask)
        elif known and not before:
            self.blank_since = time.monotonic()
        self._announced = self._life

    async def _sign_of_life(self, ask: Ask) -> tuple[int, bytes]:
        before, born = await self._do(
            "beat", self._born, secrets.token_hex(8), self._life, _ms(ALIVE_S), ask=ask
        )
        return before, born

    def _begin_again(self) -> None:
        """Believe nothing that the engine may have lost.

        The inbox gets another life: in the old one ids may come that are below those that were
        read, as clocks differ. What is left there is read first.
        """
        self.blank_since = time.monotonic()
        self._life += 1

    # Claims

    async def find(self, name: str) -> Claim | None:
        """See `Store`."""
        found = await self._do("find", name)
        return _claim(found) if found else None

    async def claim(self, name: str, facts: bytes, ttl_s: float, over: int = 0) -> Claim:
        """See `Store`."""
        return _claim(await self._do("claim", name, facts, _ms(ttl_s), over))

    async def take(self, name: str, fence: int, facts: bytes, ttl_s: float) -> Claim:
        """See `Store`."""
        return _claim(await self._do("take", name, fence, facts, _ms(ttl_s)))

    async def hold(self, held: Sequence[Held]) -> list[bool]:
        """See `Store`."""
        still = list[bool]()
        for i in range(0, len(held), HELD_AT_ONCE):
            some = list[Part]()
            for one in held[i : i + HELD_AT_ONCE]:
                some += one.name, one.fence, one.facts, _ms(one.ttl_s)
            still += map(bool, await self._do("hold", *some))
        return still

    async def release(self, name: str, fence: int) -> bool:
        """See `Store`."""
        return bool(await self._do("release", name, fence))

    async def end(self, name: str, fence: int, why: str, ttl_s: float) -> bool:
        """See `Store`."""
        return bool(await self._do("finish", name, fence, why, _ms(ttl_s)))

    # Documents

    async def get(self, name: str) -> bytes | None:
        """See `Store`."""
        return cast("bytes | None", await self._wire.ask("GET", self._key("doc", name)))

    async def put(self, name: str, value: bytes, ttl_s: float) -> None:
        """See `Store`."""
        await self._wire.ask("SET", self._key("doc", name), value, "PX", _ms(ttl_s))

    async def put_new(self, name: str, value: bytes, ttl_s: float) -> bytes:
        """See `Store`."""
        key = self._key("doc", name)
        there = await self._wire.ask("SET", key, value, "NX", "GET", "PX", _ms(ttl_s))
        return value if there is None else cast("bytes", there)

    async def delete(self, name: str) -> None:
        """See `Store`."""
        await self._wire.ask("DEL", self._key("doc", name))

    # Tables

    async def changes(self, table: str, since: int) -> Changes:
        """See `Store`."""
        life, number, whole, flat, gone = await self._do("changes", table, *divmod(since, LIVES))
        rows: dict[str, bytes | None] = {key.decode(): None for key in gone}
        rows |= {key.decode(): row for key, row in zip(flat[::2], flat[1::2], strict=True)}
        return Changes(int(life) * LIVES + int(number), rows, bool(whole))

    async def commit(
        self, table: str, since: int, rows: Mapping[str, bytes | None], ttl_s: float
    ) -> int | None:
        """See `Store`."""
        written = [(key, row) for key, row in rows.items() if row is not None]
        flat = [part for pair in written for part in pair]
        gone = [key for key, row in rows.items() if row is None]
        head = (*divmod(since, LIVES), _new_life(), _ms(ttl_s), len(written))
        done = await self._do("commit", table, *head, *flat, *gone)
        return int(done[0]) * LIVES + int(done[1]) if done else None

    # Stories

    async def tell(self, passages: Sequence[Passage], keep: Keep) -> None:
        """See `Store`."""
        bounds = (_ms(keep.ttl_s), keep.story_bytes, keep.all_bytes, keep.stories)
        for step in _steps(passages, keep.story_bytes):
            more = await self._do("tell", STORIES, _new_life(), *bounds, *step)
            while more:  # to let go
                more = await self._do("tell", STORIES, _new_life(), *bounds)

    async def told(self, story: str, after: int, most_bytes: int) -> Told:
        """See `Store`."""
        last, *found = await self._do("told", story, after, most_bytes)
        chunks = [(int(chunk[:DIGITS]), chunk[DIGITS:]) for chunk in found]
        return stories.read(chunks, int(last), after, most_bytes)

    # Rates

    async def draw(self, name: str, per_minute: float, burst: int) -> float:
        """See `Store`."""
        return int(await self._do("draw", name, repr(60e6 / per_minute), burst)) / 1e6

    # Mail

    async def gateways(self) -> list[str]:
        """See `Store`."""
        return sorted({self.gateway, *(one.decode() for one in await self._do("gateways"))})

    async def send(self, letters: Sequence[tuple[str, bytes]]) -> list[bool]:
        """See `Store`."""
        if not letters:
            return []
        flat = [part for letter in letters for part in letter]
        return list(map(bool, await self._do("send", *flat)))

    async def receive(self) -> Sequence[Letter]:
        """See `Store`."""
        failures = 0
        while True:
            await self._wire.here.wait()
            try:
                if letters := await self._fetch():
                    return letters
                failures = 0
            except (RedisError, OSError, TimeoutError):
                await asyncio.sleep(pause_s(failures))
                failures += 1

    async def _fetch(self) -> list[Letter]:
        """Drop what was read before, and return what has come since, or comes within 2 s.

        The connection is put back only if all went well: whoever is interrupted leaves it in the
        middle of an answer.
        """
        connection, self._reader = self._reader, None
        healthy = False
        try:
            async with asyncio.timeout(BLOCK_S + DEADLINE_S):
                if connection is None:
                    connection = self._dial()
                    await connection.connect()
                letters = await self._read_on(connection)
            healthy = True
            return letters
        finally:
            if healthy:
                self._reader = connection
            elif connection is not None:
                await connection.disconnect(nowait=True)

    async def _read_on(self, connection: Connection) -> list[Letter]:
        life, last, many, size = self._read
        over = life != self._announced  # nobody puts anything there any more
        inbox = self._key("in", f"{self.gateway}:{life}")
        trim = ("trim", self.gateway, inbox, last, many, size)
        block = () if over else ("BLOCK", int(BLOCK_S * 1000))
        commands = (
            ("EVALSHA", SHA, 1, self._prefix, *trim),
            ("XREAD", "COUNT", READ_AT_ONCE, *block, "STREAMS", inbox, last),
        )
        pieces = [piece for command in commands for piece in connection.pack_command(*command)]
        await connection.send_packed_command(pieces, check_health=False)
        with contextlib.suppress(ResponseError):  # next time then, with what is read now
            await connection.read_response()
            many, size = 0, 0
        self._read = life, last, many, size
        found = await connection.read_response()
        entries = found[0][1] if found else []
        letters = [_letter(fields) for _, fields in entries]
        if letters:
            size += sum(len(letter) for letter in letters if isinstance(letter, bytes))
            self._read = life, entries[-1][0], many + len(letters), size
        elif over:
            self._read = self._announced, b"0-0", 0, 0
        return letters


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _new_life() -> int:
    return secrets.randbits(40) + 1


def _steps(passages: Sequence[Passage], story_bytes: int) -> Iterator[list[Part]]:
    """Yield what the engine is to add to stories in one step each."""
    step, many, size = list[Part](), 0, 0
    for passage in passages:
        chunks = stories.cut(passage.lines, story_bytes)
        more = len(passage.head) + sum(map(stories.cost, chunks))
        if many == TOLD_AT_ONCE or (many and size + more > TOLD_BYTES):
            yield step
            step, many, size = [], 0, 0
        step += passage.story, passage.head, len(chunks)
        step += (part for chunk in chunks for part in chunk)
        many, size = many + 1, size + more
    if many:
        yield step


def _claim(told: list[Any]) -> Claim:
    holder, fence, facts, alive, ended = told
    return Claim(holder.decode(), int(fence), facts, bool(alive), ended.decode())


def _letter(fields: list[bytes]) -> Letter:
    if fields[0] == b"letter":
        return fields[1]
    _, name, _, fence, _, holder = fields
    return Taken(name.decode(), int(fence), holder.decode())
