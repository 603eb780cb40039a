"""The router: accepts clients, chooses a dyno for each request, writes the log."""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections import Counter, deque
from typing import TYPE_CHECKING, Self

import h11

from tests.fakes.router import rules
from tests.fakes.router.exchange import Exchange
from tests.fakes.router.peer import Peer
from tests.fakes.router.rules import CAUSED_BY_CLIENTS, Cut, Limits, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from types import TracebackType

    Address = tuple[str, int]

HOST = "127.0.0.1"

BACKLOG = 1024

KEPT = 10_000
"""Records and lines that are remembered; the newest."""

GONE = 499
"""Status of the log for clients that do not wait for one; nobody is sent it."""

STOP_S = 5.0
"""For the listener to close."""

ENDS = (h11.EndOfMessage, h11.ConnectionClosed)


class Router:
    """Listens on a port of its own and forwards to dynos. Use as an async context manager.

    Leaving closes whatever is open.

    Args:
        backends: where the web dynos listen; `web.1` is the first.
        limits: the router's numbers.
        scheme: that clients are said to have come with, in `X-Forwarded-Proto`.
        log: called with each line of the log.

    Attributes:
        url: where it listens, without a slash at the end.
        backends: may be changed at any time; requests that are under way go on.
        codes: how often each code was given.
        records: the latest requests that ended, oldest first; `lines` are the same as text.
        errors: those of them that have a code.
        active: requests under way.
        orphans: requests that were given up (H12) and go on in their dyno.
        opened: connections to dynos that were opened.
    """

    def __init__(
        self,
        backends: Sequence[Address] = (),
        limits: Limits | None = None,
        *,
        scheme: str = "https",
        log: Callable[[str], None] | None = None,
    ) -> None:
        self.url = ""
        self.backends = list(backends)
        self.codes: Counter[str] = Counter()
        self.records: deque[Record] = deque(maxlen=KEPT)
        self.errors: deque[Record] = deque(maxlen=KEPT)
        self.lines: deque[str] = deque(maxlen=KEPT)
        self.active = 0
        self.orphans = 0
        self.opened = 0
        self._limits = limits or Limits()
        self._scheme = scheme
        self._log = log
        self._chance = secrets.SystemRandom()
        self._pool: dict[Address, list[tuple[Peer, float]]] = {}
        self._tasks = asyncio.TaskGroup()
        self._running: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        """Listen."""
        await self._tasks.__aenter__()
        self._server = await asyncio.start_server(self._accept, HOST, 0, backlog=BACKLOG)
        port: int = self._server.sockets[0].getsockname()[1]
        self.url = f"http://{HOST}:{port}"
        self._start(self._sweep(), "router sweep")
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop listening and close what is open."""
        assert self._server is not None
        self._server.close()
        for task in self._running:
            task.cancel()
        cancelled = isinstance(exc, asyncio.CancelledError)
        try:
            # What a test raises stays what it is: all tasks are cancelled without the group's help.
            await self._tasks.__aexit__(
                *((exc_type, exc, traceback) if cancelled else (None, None, None))
            )
        finally:
            for idle in self._pool.values():
                for peer, _ in idle:
                    peer.abort()
        async with asyncio.timeout(STOP_S):
            await self._server.wait_closed()

    @property
    def cuts(self) -> int:
        """How many requests ended by a code that no client caused."""
        return sum(n for code, n in self.codes.items() if code not in CAUSED_BY_CLIENTS)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Return once that is true of what can be seen of the router; the caller bounds it."""
        while not holds():
            await self._changed.wait()

    def _news(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # Clients

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.request_head_bytes)
        address, *_ = writer.get_extra_info("peername") or (HOST,)  # None: it has gone already
        client = Peer(reader, writer, http, address)
        client.buffer(self._limits.buffer_bytes)
        self._start(self._serve(client), "router client")

    def _start(self, work: Coroutine[None, None, None], name: str) -> None:
        task = self._tasks.create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _serve(self, client: Peer) -> None:
        try:
            while await self._one(client):
                pass
            client.close()
        except BaseException:
            client.abort()
            raise

    async def _one(self, client: Peer) -> bool:
        """Take one request; return whether another may follow on this connection."""
        try:
            async with asyncio.timeout(self._limits.keep_alive_s):
                event = await client.event()
        except TimeoutError:
            return False
        except h11.RemoteProtocolError as error:
            if client.ended:
                return False
            self.active += 1  # as in `_route`: what is under way is balanced in one place
            status = error.error_status_hint
            await self._refuse(client, Record(), Cut("H26", str(error), status))
            return False
        if not isinstance(event, h11.Request):
            return False
        return await self._route(client, event)

    async def _route(self, client: Peer, request: h11.Request) -> bool:
        fresh = str(uuid.UUID(bytes=secrets.token_bytes(16), version=4))
        record = rules.record_of(request, client.name, fresh)
        self.active += 1
        exchange: Exchange | None = None
        try:
            rules.check_request(request, self._limits)
            self._admit()
            address, dyno = await self._connection(record)
            exchange = Exchange(client, dyno, self._limits, record)
            await self._carry(exchange, request, address, dyno, record)
        except Cut as cut:
            if exchange is not None and exchange.answered:
                self._done(record, cut)
                (client.abort if client.unsent else client.close)()
            else:
                await self._refuse(client, record, cut)
            return False
        except asyncio.CancelledError:
            self.active -= 1
            raise
        self._done(record, None)
        if client.renew():
            return True
        if not client.ended:
            await client.linger(self._limits.linger_s)
        return False

    def _admit(self) -> None:
        if self.active > self._limits.concurrency_per_dyno * max(1, len(self.backends)):
            raise Cut("H11")

    async def _carry(
        self,
        exchange: Exchange,
        request: h11.Request,
        address: Address,
        dyno: Peer,
        record: Record,
    ) -> None:
        head = h11.Request(
            method=request.method,
            target=request.target,
            headers=rules.request_headers(
                request, record, self._scheme, time.time_ns() // 1_000_000
            ),
        )
        began = _now()
        given_up = False
        try:
            await exchange.run(head)
        except Cut as cut:
            given_up = cut.code == "H12"
            raise
        finally:
            record.service_ms = _ms_since(began)
            if given_up:
                self._start(self._let_run(dyno), "router orphan")
            elif dyno.renew():
                self._keep(address, dyno)
            else:
                dyno.close()

    async def _refuse(self, client: Peer, record: Record, cut: Cut) -> None:
        self._done(record, cut)
        if client.ended or cut.status == GONE:
            return
        try:
            async with asyncio.timeout(self._limits.linger_s):
                await client.send(
                    h11.Response(
                        status_code=cut.status,
                        headers=rules.page_headers(),
                        reason=rules.reason_of(cut.status),
                    )
                )
                if record.method != "HEAD":
                    await client.send(h11.Data(data=rules.PAGE))
                await client.send(h11.EndOfMessage())
        except (OSError, TimeoutError):
            return
        await client.linger(self._limits.linger_s)

    def _done(self, record: Record, cut: Cut | None) -> None:
        self.active -= 1
        if cut is not None and cut.code is not None:
            record.code, record.detail = cut.code, cut.detail
            record.status = cut.status
            self.codes[cut.code] += 1
            self.errors.append(record)
        self.records.append(record)
        line = record.line(self._scheme == "https")
        self.lines.append(line)
        if self._log is not None:
            self._log(line)
        self._news()

    # Dynos

    async def _connection(self, record: Record) -> tuple[Address, Peer]:
        """Return a connection to a dyno that was drawn, or to another one if that takes none.

        Raises:
            Cut: H14, H19, H21, H99.
        """
        limits = self._limits
        numbered = list(enumerate(self.backends, start=1))
        if not numbered:
            raise Cut("H14")
        drawn = self._chance.sample(numbered, min(len(numbered), limits.connect_tries))
        began = _now()
        last = Cut("H99")
        try:
            async with asyncio.timeout(limits.connect_total_s):
                for number, address in drawn:
                    record.dyno = f"web.{number}"
                    try:
                        dyno = self._kept(address) or await self._dial(address, record.dyno)
                    except Cut as cut:
                        last = cut
                    else:
                        record.connect_ms = _ms_since(began)
                        return address, dyno
        except TimeoutError:
            raise Cut("H99") from None
        raise last

    async def _dial(self, address: Address, name: str) -> Peer:
        try:
            async with asyncio.timeout(self._limits.connect_s):
                reader, writer = await asyncio.open_connection(*address)
        except TimeoutError:
            raise Cut("H19") from None
        except ConnectionRefusedError:
            raise Cut("H21") from None
        except OSError as error:
            raise Cut("H99", type(error).__name__) from None
        self.opened += 1
        most = 2 * self._limits.response_header_bytes
        http = h11.Connection(h11.CLIENT, max_incomplete_event_size=most)
        return Peer(reader, writer, http, name)

    def _kept(self, address: Address) -> Peer | None:
        idle = self._pool.get(address, [])
        while idle:
            peer, until = idle.pop()
            if peer.is_idle and _now() < until:
                return peer
            peer.close()
        return None

    def _keep(self, address: Address, dyno: Peer) -> None:
        until = _now() + self._limits.keep_alive_s
        self._pool.setdefault(address, []).append((dyno, until))
        self._news()

    async def _sweep(self) -> None:
        """Close connections to dynos that nobody has used for long."""
        while True:
            await asyncio.sleep(self._limits.keep_alive_s / 4)
            now = _now()
            for address, idle in self._pool.items():
                for peer, until in idle:
                    if now >= until or not peer.is_idle:
                        peer.close()
                self._pool[address] = [
                    (peer, until) for peer, until in idle if now < until and peer.is_idle
                ]

    async def _let_run(self, dyno: Peer) -> None:
        """Leave a dyno in the belief that somebody waits for its answer."""
        self.orphans += 1
        try:
            async with asyncio.timeout(self._limits.orphan_s):
                while not isinstance(await dyno.event(), ENDS):
                    pass
        except (TimeoutError, h11.RemoteProtocolError):
            pass  # whatever it did, nobody waits for it
        finally:
            dyno.abort()
            self.orphans -= 1
            self._news()


def _ms_since(began: float) -> int:
    return round((_now() - began) * 1000)


def _now() -> float:
    return asyncio.get_running_loop().time()
