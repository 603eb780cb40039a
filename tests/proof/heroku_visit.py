"""A client of the Heroku proof: opens a session, calls, takes errors as they come, and leaves.

What it holds against the gateway is silence: a call that was neither answered nor refused in words.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

from tests.proof.client import Broken, Exchange, Patience, ProofClient

if TYPE_CHECKING:
    from collections.abc import Sequence

    import aiohttp

PATIENCE = Patience(call_s=400.0, silence_s=40.0)
"""Long enough for a call to outlive all gateways that are ended: the last one has time for it."""

TRIES = 4
"""How often a call that was refused in words is made again."""

OPENINGS = 12
"""How often a client that finds its session gone opens another one, in all."""

AGAIN_S = 0.5
"""Before a call that was refused is made again."""

STAY_S = 1.0
"""Between two calls of a client that stays."""

_REFUSAL = re.compile(r" ([45]\d\d) ")


class Outcome(Enum):
    """What became of one exchange."""

    ANSWERED = auto()
    REFUSED = auto()
    """In words: an HTTP status or a JSON-RPC error."""
    UNKNOWN = auto()
    """The same, and the words were that there is no such session."""
    SILENT = auto()
    WRONG = auto()
    """Another call's answer, or more than one."""


class Leaving(Enum):
    """How a client ends its session."""

    DELETE = auto()
    FORGET = auto()
    STAY = auto()
    """It calls until the gateway ends the session: its life is over."""


@dataclass(frozen=True, slots=True)
class Visit:
    """What one client does.

    Attributes:
        calls: pause before, and seconds that the tool takes, of each.
    """

    server: str
    begins_s: float
    calls: Sequence[tuple[float, float]]
    leaving: Leaving


@dataclass(slots=True)
class Tally:
    """What all clients saw.

    Attributes:
        sessions: opened.
        calls: that were made, repetitions not counted.
        counts: of outcomes.
        failed: calls that were refused each time.
        said: words of refusals, for people.
        lost: of each call that met silence, what happened.
        wrong: of each call with a wrong answer, what happened.
        first_s: seconds from opening to the first answer, of sessions where nothing was refused.
    """

    sessions: int = 0
    calls: int = 0
    failed: int = 0
    unopened: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    said: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)


class Visitor:
    """One client on its visit.

    Args:
        http: carries the API key.
        base: URL of the gateway.
        tally: gets what it sees.
        patience: how long it waits.
    """

    def __init__(
        self, http: aiohttp.ClientSession, base: str, tally: Tally, patience: Patience = PATIENCE
    ) -> None:
        self._http = http
        self._base = base
        self._tally = tally
        self._patience = patience
        self._openings = 0
        self.client: ProofClient | None = None

    async def run(self, visit: Visit) -> None:
        """Do all of it."""
        began = time.monotonic()
        for number, (pause_s, after_s) in enumerate(visit.calls):
            await asyncio.sleep(pause_s if number else 0.0)
            smooth = await self.ask(visit.server, after_s)
            if number == 0 and smooth and self._openings == 1:
                self._tally.first_s.append(time.monotonic() - began - after_s)
        await self.leave(visit.leaving)

    async def ask(self, server: str, after_s: float = 0.0) -> bool:
        """Make a call until it is answered, or refused too often; return whether at once."""
        self._tally.calls += 1
        for attempt in range(TRIES):
            if self.client is None and not await self._open(server):
                self._tally.unopened += 1
                return False
            outcome = await self.call(after_s)
            if outcome is Outcome.ANSWERED:
                return attempt == 0
            if outcome in (Outcome.SILENT, Outcome.WRONG):
                return False
            if outcome is Outcome.UNKNOWN:
                self.client = None
            await asyncio.sleep(AGAIN_S)
        self._tally.failed += 1
        return False

    async def call(self, after_s: float = 0.0) -> Outcome:
        """Make one call, once."""
        assert self.client is not None
        token = secrets.token_hex(8)
        exchange = await self.client.call("echo", token=token, after_s=after_s)
        outcome = judge(exchange, token)
        self._note(outcome, exchange, f"call of {self.client.session[-12:]}")
        return outcome

    async def _open(self, server: str) -> bool:
        """Open a session, another one if there was one."""
        while self._openings < OPENINGS:
            self._openings += 1
            url = f"{self._base}/servers/{server}/mcp"
            client = ProofClient(self._http, url, self._patience)
            try:
                await client.open()
            except Broken as broken:
                opening = client.exchanges[0] if client.exchanges else None
                if opening is not None:
                    self._note(judge(opening, None), opening, "initialize")
                else:
                    self._tally.said[str(broken)[:80]] += 1
                await asyncio.sleep(AGAIN_S)
                continue
            self._tally.sessions += 1
            self.client = client
            return True
        return False

    async def leave(self, how: Leaving) -> None:
        """End the visit."""
        if how is Leaving.STAY:
            while self.client is not None:
                outcome = await self.call()
                if outcome in (Outcome.SILENT, Outcome.WRONG, Outcome.UNKNOWN):
                    return
                await asyncio.sleep(STAY_S)
        elif how is Leaving.DELETE and self.client is not None:
            try:
                await self.client.close()
            except (Broken, TimeoutError) as error:
                self._tally.lost.append(f"DELETE: {error!r}")

    def _note(self, outcome: Outcome, exchange: Exchange, what: str) -> None:
        self._tally.counts[outcome.name.lower()] += 1
        story = f"{what}: {exchange.failure or exchange.responses}; it went {exchange.history}"
        match outcome:
            case Outcome.SILENT:
                self._tally.lost.append(story)
            case Outcome.WRONG:
                self._tally.wrong.append(story)
            case Outcome.REFUSED | Outcome.UNKNOWN:
                self._tally.said[_words(exchange)] += 1
            case Outcome.ANSWERED:
                pass


def judge(exchange: Exchange, token: str | None) -> Outcome:
    """Return what became of a call; without a token, of another request."""
    responses = exchange.responses
    if len(responses) > 1:
        return Outcome.WRONG
    refusal = _REFUSAL.search(f"{exchange.attempts[-1]} ") if exchange.attempts else None
    if not responses:
        if refusal is None:
            return Outcome.SILENT
        return Outcome.UNKNOWN if refusal[1] == "404" else Outcome.REFUSED
    (response,) = responses
    if "error" in response:
        return Outcome.UNKNOWN if refusal and refusal[1] == "404" else Outcome.REFUSED
    told = (response["result"].get("structuredContent") or {}) if token else {}
    return Outcome.ANSWERED if told.get("token") == token else Outcome.WRONG


def _words(exchange: Exchange) -> str:
    """The reason that a refusal gives, as machines see it."""
    for response in exchange.responses:
        error = response.get("error") or {}
        reason = (error.get("data") or {}).get("reason")
        return str(reason or error.get("message", "error")[:60])
    return (exchange.failure or "")[:60]
