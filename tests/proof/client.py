"""A strict Streamable HTTP client of revision 2025-11-25 that writes down whatever arrives.

It resumes broken streams with `Last-Event-ID`, sends a POST again whose connection broke before a
first event, waits as `Retry-After` and `retry` say, and hides nothing: every event is recorded as
it came, so that losses, duplicates and changes of order can be counted by others.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

REVISION = "2025-11-25"

JSON, SSE = "application/json", "text/event-stream"


class Broken(Exception):
    """The call, or the session, cannot be continued; the message says what the gateway said."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client waits.

    Attributes:
        call_s: for a call, all resumptions included.
        silence_s: for the next byte of a stream; the gateway's keep-alive comments come sooner.
        retry_s: longest pause before a resumption. A strict client waits as long as `retry` of the
            stream says; a proof has no time for that.
        connect_s: for a connection.
    """

    call_s: float = 90.0
    silence_s: float = 40.0
    retry_s: float = 0.4
    connect_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """One message as it came.

    Attributes:
        request_id: of the call whose stream carried it.
        event_id: of its SSE event; None where it had none, or came as JSON.
        message: the JSON-RPC message; None in a priming event, which carries none.
    """

    request_id: int
    event_id: str | None
    message: dict[str, Any] | None


@dataclass(slots=True)
class Exchange:
    """One request and everything that its streams carried, in order.

    Attributes:
        arrivals: see `Arrival`.
        last_id: where to resume; None until an event with an id has come.
        primed: the first event of its first stream was a priming one.
        answered: a response has come.
        failure: why there will be none.
        retry_s: what the stream asks to wait before a resumption.
        attempts: what became of each POST and GET, for people.
    """

    request_id: int
    arrivals: list[Arrival] = field(default_factory=list)
    last_id: str | None = None
    primed: bool | None = None
    answered: bool = False
    failure: str | None = None
    retry_s: float = 0.0
    attempts: list[str] = field(default_factory=list)

    @property
    def history(self) -> str:
        """All attempts in order, the same ones in a row as one."""
        return "; ".join(
            f"{number} times {attempt}" if number > 1 else attempt
            for attempt, same in itertools.groupby(self.attempts)
            if (number := len(list(same)))
        )

    @property
    def progress(self) -> list[Any]:
        """The progress numbers that came on this call's streams, as they came."""
        return [
            message["params"]["progress"]
            for arrival in self.arrivals
            if (message := arrival.message) and message.get("method") == "notifications/progress"
        ]

    @property
    def responses(self) -> list[dict[str, Any]]:
        """The responses that came, as they came."""
        return [
            arrival.message
            for arrival in self.arrivals
            if arrival.message and ("result" in arrival.message or "error" in arrival.message)
        ]


@dataclass(slots=True)
class SseEvent:
    """One server-sent event."""

    id: str | None = None
    data: list[str] = field(default_factory=list)
    retry_ms: int | None = None
    fields: int = 0


class ProofClient:
    """One MCP session.

    Args:
        http: carries the API key.
        url: of the MCP endpoint.
        patience: see there.

    Attributes:
        session: what the gateway called it; empty until `open`.
        exchanges: all calls, in the order of asking.
        counts: what happened on the way: posts, reposts, resumes, refusals (503), broken
            (connections), and so on.
    """

    def __init__(
        self, http: aiohttp.ClientSession, url: str, patience: Patience | None = None
    ) -> None:
        self.session = ""
        self.exchanges: list[Exchange] = []
        self.counts: Counter[str] = Counter()
        self._http = http
        self._url = url
        self._patience = Patience() if patience is None else patience
        self._ids = itertools.count(1)
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self._patience.connect_s, sock_read=self._patience.silence_s
        )

    # What a client does

    async def open(self) -> None:
        """Shake hands.

        Raises:
            Broken: there is no session.
        """
        info = {"name": "proof", "version": "1"}
        params = {"protocolVersion": REVISION, "capabilities": {}, "clientInfo": info}
        exchange = await self.request("initialize", params)
        if exchange.failure or not self.session or "result" not in exchange.responses[0]:
            raise Broken(f"initialize: {exchange.failure or exchange.responses}")
        self.exchanges.remove(exchange)
        await self.notify("notifications/initialized", {}, self._once_more)

    async def request(self, method: str, params: dict[str, Any]) -> Exchange:
        """Ask, and follow the answer through whatever breaks. Its progress token is its id.

        Returns:
            What came; `failure` is set if no response did.
        """
        exchange = Exchange(next(self._ids))
        self.exchanges.append(exchange)
        meta = {"_meta": {"progressToken": exchange.request_id}}
        message = {"id": exchange.request_id, "method": method, "params": {**params, **meta}}
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        try:
            async with asyncio.timeout(self._patience.call_s):
                while not exchange.answered:
                    await self._attempt(exchange, body)
        except TimeoutError:
            after = "its answer, the stream stayed open" if exchange.answered else "no answer"
            exchange.failure = f"{after} after {self._patience.call_s:.0f} s"
        except Broken as broken:
            exchange.failure = str(broken)
        return exchange

    async def call(self, tool: str, **arguments: Any) -> Exchange:
        """Call a tool. See `request`."""
        return await self.request("tools/call", {"name": tool, "arguments": arguments})

    async def notify(
        self, method: str, params: dict[str, Any], arrived: Callable[[], Awaitable[bool]]
    ) -> None:
        """Send a notification until it is there.

        Args:
            method: of the notification.
            params: of the notification.
            arrived: asks the server, after a connection broke before a status code came: a
                notification has no id, so nobody else can tell a repetition.

        Raises:
            Broken: refused for good, or no 202 in time.
        """
        body = json.dumps({"jsonrpc": "2.0", "method": method, "params": params}).encode()
        try:
            async with asyncio.timeout(self._patience.call_s):
                while not await self._told(body):
                    if await arrived():
                        self.counts["notifications_found"] += 1
                        return
                    self.counts["notifications_repeated"] += 1
        except TimeoutError:
            raise Broken(f"{method}: no 202 within {self._patience.call_s:.0f} s") from None

    async def close(self) -> None:
        """End the session.

        Raises:
            Broken: the gateway neither ended nor had ended it.
        """
        async with asyncio.timeout(self._patience.call_s):
            while True:
                try:
                    async with self._send("DELETE") as response:
                        if response.status == 503:
                            await self._refused(response)
                            continue
                        if response.status not in (204, 404):
                            raise Broken(f"DELETE: HTTP {response.status}")
                        return
                except (aiohttp.ClientError, OSError):
                    await self._pause(0.0)

    # How it does it

    def _send(
        self, method: str, *, body: bytes | None = None, last_id: str | None = None
    ) -> Any:  # aiohttp's context manager has no public name
        headers = {"Accept": SSE if method == "GET" else f"{JSON}, {SSE}"}
        headers["MCP-Protocol-Version"] = REVISION
        if self.session:
            headers["Mcp-Session-Id"] = self.session
        if body is not None:
            headers["Content-Type"] = JSON
        if last_id is not None:
            headers["Last-Event-ID"] = last_id
        self.counts[method] += 1
        return self._http.request(
            method, self._url, data=body, headers=headers, timeout=self._timeout
        )

    async def _attempt(self, exchange: Exchange, body: bytes) -> None:
        """Send the request, or resume its stream, and read until that ends or breaks."""
        before = len(exchange.arrivals)
        if exchange.last_id is None:
            attempt = ["POST"]
            sending = self._send("POST", body=body)
        else:
            attempt = [f"GET after {exchange.last_id}"]
            sending = self._send("GET", last_id=exchange.last_id)
        try:
            async with sending as response:
                attempt.append(f"{response.status} {response.content_type}")
                if response.status == 503:
                    await self._refused(response)
                    return
                await self._read(exchange, response)
        except (aiohttp.ClientError, OSError) as error:
            attempt.append(type(error).__name__)
            self.counts["broken"] += 1
        finally:
            new = len(exchange.arrivals) - before
            exchange.attempts.append(" ".join([*attempt, *([f"{new} events"] if new else [])]))
        if not exchange.answered:
            self.counts["resumes" if exchange.last_id is not None else "reposts"] += 1
            await self._pause(exchange.retry_s)

    async def _read(self, exchange: Exchange, response: aiohttp.ClientResponse) -> None:
        if response.content_type == SSE and response.status == 200:
            self.session = self.session or response.headers.get("Mcp-Session-Id", "")
            async for event in events_of(response.content):
                self._record(exchange, event)
            return
        text = await response.text()
        try:
            message = json.loads(text)
        except ValueError:
            message = None
        if not isinstance(message, dict) or message.get("id") != exchange.request_id:
            raise Broken(f"{response.method}: HTTP {response.status}: {text[:300]}")
        self.session = self.session or response.headers.get("Mcp-Session-Id", "")
        exchange.arrivals.append(Arrival(exchange.request_id, None, message))
        exchange.answered = True

    def _record(self, exchange: Exchange, event: SseEvent) -> None:
        if event.retry_ms is not None:
            exchange.retry_s = event.retry_ms / 1000
        if not event.data:  # sets the pause or the position, and is no event
            exchange.last_id = event.id or exchange.last_id
            return
        data = "\n".join(event.data)
        message = json.loads(data) if data else None
        if exchange.primed is None:
            exchange.primed = message is None and event.id is not None
        if event.id is None:
            self.counts["events_without_id"] += 1
        else:
            exchange.last_id = event.id
        exchange.arrivals.append(Arrival(exchange.request_id, event.id, message))
        if message is not None and ("result" in message or "error" in message):
            exchange.answered = True

    async def _told(self, body: bytes) -> bool:
        """Send a notification. Returns False when nobody knows whether it was taken."""
        while True:
            try:
                async with self._send("POST", body=body) as response:
                    if response.status == 202:
                        return True
                    if response.status != 503:
                        text = await response.text()
                        raise Broken(f"notification: HTTP {response.status}: {text[:300]}")
                    await self._refused(response)
            except aiohttp.ClientConnectorError:  # it was never sent
                await self._pause(0.0)
            except (aiohttp.ClientError, OSError):
                self.counts["broken"] += 1
                return False

    async def _once_more(self) -> bool:
        """Whether an `initialized` arrived that nobody knows of: saying it twice harms nobody."""
        await self._pause(0.0)
        return False

    async def _refused(self, response: aiohttp.ClientResponse) -> None:
        self.counts["refusals"] += 1
        await asyncio.sleep(float(response.headers.get("Retry-After", "0")))

    async def _pause(self, asked_s: float) -> None:
        least_s = self._patience.retry_s / 4  # a gateway that is not there answers at once
        await asyncio.sleep(min(max(asked_s, least_s), self._patience.retry_s))


async def events_of(content: aiohttp.StreamReader) -> AsyncIterator[SseEvent]:
    """Yield server-sent events (WHATWG HTML, 9.2); one that its stream broke off is none."""
    event = SseEvent()
    async for line in _lines(content):
        if line:
            _take_field(event, line)
        elif event.fields:
            yield event
            event = SseEvent()


def _take_field(event: SseEvent, line: str) -> None:
    name, _, value = line.partition(":")
    if not name:
        return
    value = value.removeprefix(" ")
    event.fields += 1
    match name:
        case "data":
            event.data.append(value)
        case "id":
            event.id = value
        case "retry" if value.isdigit():
            event.retry_ms = int(value)
        case _:
            return


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[str]:
    rest = b""
    async for chunk in content.iter_any():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.removesuffix(b"\r").decode()
