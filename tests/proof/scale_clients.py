"""Three kinds of MCP clients that retry as their revisions allow, and write down what they see.

All come through the same router, so no two requests of a session need reach the same gateway. What
is tried again is what may be: a broken connection, the router's own 503, and refusals of a gateway
whose `reason` is in `AGAIN`. Everything else is an answer, and is judged as one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import aiohttp

from tests.fakes.scatter import MARK
from tests.proof.client import JSON, SSE, events_of
from tests.proof.scale_calls import Call, Diary, Document, Order, Way

if TYPE_CHECKING:
    import random

    from tests.proof.client import SseEvent

CALL_S = 60.0
"""For a call, with everything that is tried again."""

OPEN_S = 120.0
"""The same for a handshake: a hundred children start at once."""

SILENCE_S = 30.0
"""For the next byte; the comments of a stream come sooner."""

DIAL_S = 5.0
PAUSE_S = (0.05, 0.3)
"""Before a retry, unless the refusal says how long. A strict client waits as long as `retry` of a
stream says; a proof has no time for that."""

AGAIN = frozenset(
    {"restarting", "session_away", "store_unavailable", "elsewhere", "busy", "not_ready"}
)
"""Reasons of refusals after which the same request may be sent again (docs/errors.md)."""

ANEW = "answer_gone"
"""The reason after which it is sent again under a new id."""

UNKNOWN_SESSION = -32001

SESSION_HEADER = "Mcp-Session-Id"
REVISION_KEY = "io.modelcontextprotocol/protocolVersion"
CAPABILITIES_KEY = "io.modelcontextprotocol/clientCapabilities"
CLIENT_KEY = "io.modelcontextprotocol/clientInfo"
INFO = {"name": "scale-proof", "version": "1"}
SHOWN = 200


class Unknown(Exception):
    """It is said that there is no such session."""


class Refused(Exception):
    """An answer that no retry mends; the message is what was said."""


@dataclass(frozen=True, slots=True)
class Again:
    """No answer yet: try again.

    Attributes:
        why: in a word.
        after_s: how long to wait before; None if nobody said.
        anew: under a new id.
    """

    why: str
    after_s: float | None = None
    anew: bool = False


@dataclass(slots=True)
class Request:
    """A request as it was sent, and how far its answer is.

    Attributes:
        id: its JSON-RPC id, and its progress token; None for a notification.
        method, name: of it; `name` of the tool, if it calls one.
        body: its bytes; none for a stream of what belongs to no call.
        last_id: of the last event with one, if its client resumes.
        answered: a response came.
    """

    id: int | None
    method: str
    name: str
    body: bytes
    last_id: str | None = None
    answered: bool = False


class Client(ABC):
    """One session.

    Args:
        http: without credentials.
        url: of the MCP endpoint.
        key: of the principal.
        diary: to write into.
        chance: for pauses.

    Attributes:
        diary, url: see there; `url` may be changed between two calls.
        counts: what it did, by HTTP method.
        refusals: why it had to try again, outside of calls as well.
        session: what the gateway called it; empty until it did.
    """

    way: ClassVar[Way]

    def __init__(
        self, http: aiohttp.ClientSession, url: str, key: str, diary: Diary, chance: random.Random
    ) -> None:
        self.diary = diary
        self.counts: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.session = ""
        self._http = http
        self.url = url
        self._key = key
        self._chance = chance
        self._ids = itertools.count(1)
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=DIAL_S, sock_read=SILENCE_S)

    # What a client does

    @abstractmethod
    async def open(self) -> None:
        """Shake hands, where the revision has that.

        Raises:
            Refused, Unknown: there is no session.
            TimeoutError: nor in time.
        """

    @abstractmethod
    async def close(self) -> None:
        """End the session, where the revision has that; one that is gone already is no failure."""

    async def call(self, order: Order) -> Call:
        """Make a call and follow it to its answer; it is in the diary from now on."""
        call = self.diary.running[order.serial] = Call(order)
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(CALL_S):
                await self._follow(call, "tools/call", "work")
        except TimeoutError:
            after = "its answer, the stream stayed open" if call.answers else "none"
            call.failure = f"{after} within {CALL_S:.0f} s"
        except Unknown as unknown:
            call.failure = "unknown session"
            self.diary.unknown.append(f"call {order.serial}: {unknown}")
        except Refused as refused:
            call.failure = str(refused)
        call.seconds = loop.time() - began
        if call.answers and (self.way is Way.RESUMING or not call.retries):
            call.missed = order.steps - len(set(call.progress))
        if call.answers and call.failure:
            call.strange.append(call.failure)
        del self.diary.running[order.serial]
        self.diary.calls.append(call)
        return call

    async def journal(self) -> Document | None:
        """Return what the child has written down; None if it cannot be got."""
        call = Call(Order(0))
        with contextlib.suppress(TimeoutError, Unknown, Refused):
            async with asyncio.timeout(CALL_S):
                await self._follow(call, "tools/call", "journal")
        return call.answers[0] if call.answers else None

    # How it does it

    async def _follow(self, call: Call, method: str, name: str = "") -> None:
        """Send a request, and whatever it takes after that, until its answer is in `call`."""
        request = self._request(call, method, name)
        while (again := await self._attempt(request, call)) is not None:
            call.retries[again.why] += 1
            self.refusals[again.why] += 1
            if again.anew or self.way is Way.MODERN:
                call.attempt += 1
                request = self._request(call, method, name)
            if request.last_id is None:  # from its beginning, so from the first step
                call.progress.clear()
            await self._pause(again)

    def _request(self, call: Call, method: str, name: str) -> Request:
        number = next(self._ids)
        params = self._params(method)
        params["_meta"] = {**params.get("_meta", {}), "progressToken": number}
        if name:
            asks = name == "work"
            given = call.order.arguments(self.diary.owner, call.attempt) if asks else {}
            params |= {"name": name, "arguments": given}
        message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        return Request(number, method, name, json.dumps(message).encode())

    def _params(self, method: str) -> Document:
        if method != "initialize":
            return {}
        return {"protocolVersion": self.way.value, "capabilities": {}, "clientInfo": INFO}

    def _headers(self, request: Request) -> dict[str, str]:
        """Return the headers of a request's own revision."""
        return {"MCP-Protocol-Version": self.way.value}

    def _send(self, request: Request) -> Any:  # aiohttp's context manager has no public name
        """Send it; or come back for what is missing of its answer."""
        headers = {"Authorization": f"Bearer {self._key}", **self._headers(request)}
        if request.last_id is not None:
            headers["Last-Event-ID"] = request.last_id
        if request.last_id is not None or not request.body:
            method, body, headers["Accept"] = "GET", None, SSE
        else:
            method, body, headers["Accept"] = "POST", request.body, f"{JSON}, {SSE}"
            headers["Content-Type"] = JSON
        self.counts[method] += 1
        return self._http.request(
            method, self.url, data=body, headers=headers, timeout=self._timeout
        )

    async def _attempt(self, request: Request, call: Call) -> Again | None:
        try:
            async with self._send(request) as response:
                return await self._read(request, call, response)
        except (aiohttp.ClientError, OSError) as error:
            return None if request.answered else Again(type(error).__name__)

    async def _read(
        self, request: Request, call: Call, response: aiohttp.ClientResponse
    ) -> Again | None:
        """Read a response; return what to do if the answer was not in it.

        Raises:
            Unknown, Refused: nothing is to be done.
        """
        if MARK in response.headers:
            return Again(f"router: {response.headers[MARK]}")
        self.session = self.session or response.headers.get(SESSION_HEADER, "")
        if response.status == 200 and response.content_type == SSE:
            async for event in events_of(response.content):
                message = _message_of(event)
                if self.way is Way.RESUMING:
                    request.last_id = event.id or request.last_id
                again = None if message is None else self._take(request, call, message)
                if again is not None:
                    return again
            return None if request.answered else Again("stream ended")
        body = await response.read()
        if response.status == 202 and request.id is None:
            return None
        message = _json(body)
        if message is None:
            raise Refused(f"HTTP {response.status}: {body[:SHOWN]!r}")
        return self._take(request, call, message, response)

    def _take(
        self,
        request: Request,
        call: Call,
        message: Document,
        response: aiohttp.ClientResponse | None = None,
    ) -> Again | None:
        """Take a message; the response is that which it was the whole of."""
        if "method" in message:
            self._notice(request, call, message)
            return None
        if message.get("id") != request.id and not ("error" in message and response is not None):
            call.strange.append(f"answer of {message.get('id')!r} for {request.id}")
            return None
        if "result" in message:
            result = message["result"]
            call.answers.append(result.get("structuredContent", result))
            request.answered = True
            return None
        return _weigh(message, response)

    def _notice(self, request: Request, call: Call, message: Document) -> None:
        params = message.get("params") or {}
        if message["method"] == "notifications/progress":
            if params.get("progressToken") != request.id:
                call.strange.append(f"progress of {params.get('progressToken')!r}")
            else:
                call.heard(params["progress"])
        else:
            self.told(message)

    def told(self, message: Document) -> None:
        """Write down a message that belongs to no call."""
        data = (message.get("params") or {}).get("data")
        mine = isinstance(data, dict) and data.get("owner") == self.diary.owner
        if isinstance(data, dict) and mine:
            self.diary.told.append(data["told"])
        else:
            self.diary.strange.append(f"heard {str(message)[:SHOWN]}")

    async def _pause(self, again: Again) -> None:
        drawn_s = self._chance.uniform(*PAUSE_S)
        await asyncio.sleep(drawn_s if again.after_s is None else again.after_s + drawn_s)


class LegacyClient(Client):
    """A session with a handshake."""

    async def open(self) -> None:
        """See `Client.open`."""
        call = Call(Order(0))
        async with asyncio.timeout(OPEN_S):
            await self._follow(call, "initialize")
            agreed = call.answers[0].get("protocolVersion")
            if agreed != self.way.value or not self.session:
                raise Refused(f"initialize: {agreed}, session {self.session!r}")
            said = {"jsonrpc": "2.0", "method": "notifications/initialized"}
            heard = Request(None, said["method"], "", json.dumps(said).encode())
            while (again := await self._attempt(heard, call)) is not None:
                self.refusals[again.why] += 1
                await self._pause(again)

    async def close(self) -> None:
        """See `Client.close`."""
        headers = {"Authorization": f"Bearer {self._key}", SESSION_HEADER: self.session}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CALL_S):
                while True:
                    again = Again("broken")
                    with contextlib.suppress(aiohttp.ClientError, OSError):
                        async with self._http.delete(self.url, headers=headers) as response:
                            if response.status in (204, 404):
                                return
                            again = Again("refused", _after_s(response))
                    await self._pause(again)

    async def trespass(self, other: LegacyClient) -> None:
        """Ask as this principal in another's session, which must not be there for this one."""
        intruding = LegacyPlain(self._http, self.url, self._key, self.diary, self._chance)
        intruding.session = other.session
        call = Call(Order(0))
        said = "was answered"
        try:
            async with asyncio.timeout(CALL_S):
                await intruding._follow(call, "tools/call", "work")
        except Unknown:
            return
        except (Refused, TimeoutError) as refused:
            said = f"was not told that it is unknown: {refused!r}"
        self.diary.strange.append(f"in the session of {other.diary.owner} it {said}")

    def _headers(self, request: Request) -> dict[str, str]:
        headers = super()._headers(request)
        if request.method == "initialize":
            return headers
        return {**headers, SESSION_HEADER: self.session}


class LegacyPlain(LegacyClient):
    """A client of 2025-06-18."""

    way = Way.PLAIN


class LegacyResuming(LegacyClient):
    """A client of 2025-11-25."""

    way = Way.RESUMING

    async def listen(self) -> None:
        """Keep a GET stream open, and continue it whenever it ends, until cancelled."""
        listening = Request(None, "", "", b"")
        call = Call(Order(0))
        try:
            while True:
                again = await self._attempt(listening, call)
                why = "stream ended" if again is None else again.why
                self.refusals[f"GET {why}"] += 1
                if again is not None and again.anew:
                    listening.last_id = None
                await self._pause(again or Again(why))
        except (Unknown, Refused) as said:
            unknown = isinstance(said, Unknown)
            notes = self.diary.unknown if unknown else self.diary.strange
            notes.append(f"GET stream: {said}")


class ModernClient(Client):
    """A handle of a principal, in 2026-07-28.

    Args:
        handle: its name.
    """

    way = Way.MODERN

    def __init__(
        self,
        http: aiohttp.ClientSession,
        url: str,
        key: str,
        diary: Diary,
        chance: random.Random,
        *,
        handle: str,
    ) -> None:
        super().__init__(http, url, key, diary, chance)
        self._handle = handle

    async def open(self) -> None:
        """There is no handshake."""

    async def close(self) -> None:
        """There is no way to say so."""

    def _params(self, method: str) -> Document:
        about: Document = {REVISION_KEY: self.way.value, CAPABILITIES_KEY: {}, CLIENT_KEY: INFO}
        return {"_meta": about}

    def _headers(self, request: Request) -> dict[str, str]:
        headers = {**super()._headers(request), "Rendezvous-Handle": self._handle}
        return {**headers, "Mcp-Method": request.method, "Mcp-Name": request.name}


def _weigh(message: Document, response: aiohttp.ClientResponse | None) -> Again:
    """Say what to do after an error.

    Raises:
        Unknown, Refused: nothing.
    """
    error = message.get("error") or {}
    reason = (error.get("data") or {}).get("reason")
    status = 200 if response is None else response.status
    if status == 404 or error.get("code") == UNKNOWN_SESSION:
        raise Unknown(f"HTTP {status}: {error}")
    if reason in AGAIN:
        return Again(reason, None if response is None else _after_s(response))
    if reason == ANEW:
        return Again(reason, anew=True)
    raise Refused(f"HTTP {status}: {str(message)[:SHOWN]}")


def _after_s(response: aiohttp.ClientResponse) -> float | None:
    after = response.headers.get("Retry-After", "")
    return float(after) if after.isdigit() else None


def _message_of(event: SseEvent) -> Document | None:
    data = "\n".join(event.data)
    return json.loads(data) if data else None


def _json(body: bytes) -> Document | None:
    try:
        message = json.loads(body)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None
