"""Three gateway processes in one, which share an engine and perform each other's requests."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from typing import Self

from gateway.exchange.carrying import Asked, Carried, NotPerformed, Performed
from gateway.exchange.exchange import Answer, Exchange, Note
from gateway.store.base import Store, Taken

WAIT_S = 10.0
NOISE = random.Random(3).randbytes(16 * 1024 * 1024)  # noqa: S311 - the same bytes in every run


def asked(target: str = "/echo", method: str = "POST", patience_s: float = 25.0) -> Asked:
    return Asked(method, target, (("Accept", "*/*"),), "alice", patience_s)


class Gateway:
    """One process: what it performs says the target; tests look at what it did."""

    def __init__(self, store: Store) -> None:
        self.name = store.gateway
        self.store = store
        self.heard: list[Taken | Note] = []
        self.news = asyncio.Event()
        self.seen: list[Carried] = []
        self.cancelled: list[str] = []
        self.written = 0  # bytes that performed answers have given out
        self.gate = asyncio.Event()
        self.exchange = Exchange(self.store, self.perform, self.hear)
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self.store)
        await self._stack.enter_async_context(self.exchange)
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._stack.aclose()

    def hear(self, news: Taken | Note) -> None:
        self.heard.append(news)
        self.news.set()

    @contextlib.asynccontextmanager
    async def perform(self, carried: Carried) -> AsyncIterator[Performed]:
        self.seen.append(carried)
        self.news.set()
        try:
            yield await self._performed(carried)
        except asyncio.CancelledError:
            self.cancelled.append(carried.asked.target)
            self.news.set()
            raise

    async def _performed(self, carried: Carried) -> Performed:
        headers = (("Content-Type", "text/plain"), ("From", self.name))
        match carried.asked.target:
            case "/echo":
                body = b"".join([piece async for piece in carried.body])
                return Performed(200, headers, self._pieces(body))
            case "/early":
                return Performed(413, headers, self._pieces(b"too big"))
            case "/never":
                await asyncio.Event().wait()
            case "/broken":
                raise NotPerformed
            case _:
                pass
        return Performed(200, headers, getattr(self, carried.asked.target.strip("/"))())

    async def _pieces(self, body: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(body), 100_000):
            yield body[start : start + 100_000]

    async def endless(self) -> AsyncIterator[bytes]:
        while True:
            yield bytes(100_000)
            self.written += 100_000
            self.news.set()

    async def flood(self) -> AsyncIterator[bytes]:
        """Endless once the test opens the gate."""
        yield b"first"
        await self.gate.wait()
        async for piece in self.endless():
            yield piece

    async def gated(self) -> AsyncIterator[bytes]:
        """Two events; the second when the test opens the gate."""
        yield b"first"
        await self.gate.wait()
        yield b"second"

    async def breaks(self) -> AsyncIterator[bytes]:
        yield b"first"
        raise NotPerformed

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something has happened here."""
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self.news.clear()
                await self.news.wait()


class Town:
    """Gateways `a`, `b` and `c` on one engine."""

    def __init__(self, open_store: Callable[[str], Store]) -> None:
        self.a, self.b, self.c = (Gateway(open_store(name)) for name in "abc")


@contextlib.asynccontextmanager
async def opened(open_store: Callable[[str], Store]) -> AsyncIterator[Town]:
    town = Town(open_store)
    async with town.a, town.b, town.c:
        yield town


async def exchange_many(town: Town) -> None:
    """Let all ask all, at once; each answer must be its own."""
    chance = random.Random(11)  # noqa: S311 - the same sizes in every run
    sizes = [chance.choice((0, 10, 5_000, 400_000)) for _ in range(120)]

    async def one(asker: Gateway, peer: str, size: int) -> None:
        begin = size % 1000 + ord(peer)
        body = NOISE[begin : begin + size]
        async with asker.exchange.ask(peer, "s1", asked(), body) as answer:
            assert await whole(answer) == body

    async with asyncio.TaskGroup() as tasks:
        for number, size in enumerate(sizes):
            asker = (town.a, town.b, town.c)[number % 3]
            tasks.create_task(one(asker, "bca"[number % 3], size))
            tasks.create_task(one(asker, "cab"[number % 3], size))


async def eventually(happened: Callable[[], object]) -> None:
    """Wait for something that nobody announces."""
    async with asyncio.timeout(WAIT_S):
        while not happened():  # noqa: ASYNC110 - both ends are on this loop, and it is soon
            await asyncio.sleep(0)


async def whole(answer: Answer) -> bytes:
    return b"".join([piece async for piece in answer.pieces()])


async def first(answer: Answer) -> tuple[bytes, AsyncIterator[bytes]]:
    pieces = answer.pieces()
    return await anext(pieces), pieces
