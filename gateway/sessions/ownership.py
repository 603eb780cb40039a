"""Which process of the deployment holds which session, as the store has it.

A session's claim carries what another process needs as long as no agent carries it. Its fence is
the number of the agent's attachment plus one, so the process that an agent dialled last holds the
session, whatever the engine knew in between.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Final

import msgspec

from dyno_agent.link import Face
from gateway import events
from gateway.eras.legacy import Opening
from gateway.errors import Elsewhere, StoreUnavailable
from gateway.exchange.exchange import CLAIM
from gateway.sessions.live import Live, SharedLive
from gateway.sessions.record import Reason
from gateway.store.base import Claim, Held, Store, StoreAway

RENEW_S = 30.0
"""How often every claim is said again: an engine that has lost its memory learns them so."""

CHECK_S = 1.0
"""How often it is looked whether the engine has."""

AWAY_S = 1.0
"""How long the store may be out of reach before that is news."""

AGAIN_S = 0.5
"""How long to wait when the engine is away."""

SLACK_S = 3600.0
"""How long a claim outlives what it is for."""

INHERITED_S = 24 * SLACK_S
"""How long a claim lasts that a dead process has left, until this one says what it knows."""

BATCH = 500
"""Claims that are renewed in one go."""


class Facts(msgspec.Struct, frozen=True):
    """What the process that takes a session over must know.

    Attributes:
        principal: whose it is.
        server: name of its server.
        session_id: its public name.
        shared: it has several callers.
        tied: it ends with something that only its holder has, and can live nowhere else.
        carried: an agent has been welcomed, and brings the rest.
        created: wall clock, seconds since 1970.
        launch_id: of its dyno; empty while it has none.
        face: the era that its child is to show.
        opening: what its client said; None if a child has to answer that.
        told: its client was answered from the catalogue.
    """

    principal: str
    server: str
    session_id: str
    shared: bool
    tied: bool
    carried: bool
    created: float
    launch_id: str = ""
    face: Face = "plain"
    opening: Opening | None = None
    told: bool = False


_FACTS: Final = msgspec.json.Decoder(Facts)


def facts_in(claim: Claim) -> Facts | None:
    """Return the facts of a claim; None if it has none that can be read."""
    try:
        return _FACTS.decode(claim.facts)
    except msgspec.DecodeError:
        return None


class Ownership:
    """The claims of this process's sessions.

    Args:
        store: what the processes share.
        now: wall clock, seconds since 1970.
        lost: called with a session that another process holds by now.
        emit: hears whether the store is away.

    Attributes:
        now: see above.
    """

    def __init__(
        self,
        store: Store,
        now: Callable[[], float],
        lost: Callable[[Live], None],
        emit: events.Sink,
    ) -> None:
        self._store = store
        self.now = now
        self._lost = lost
        self._emit = emit
        self._away_s = 0.0
        self._held: dict[str, Live] = {}
        self._dirty: dict[str, Live] = {}
        self._over: dict[str, tuple[Live, Reason | None]] = {}
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def alone(self) -> bool:
        """True when no other process can have a session."""
        return self._store.alone

    @property
    def gateway(self) -> str:
        """Id of this process."""
        return self._store.gateway

    @property
    def blank_since(self) -> float:
        """See `Store.blank_since`."""
        return self._store.blank_since

    async def others(self) -> list[str]:
        """Return the ids of the other processes.

        Raises:
            StoreAway: nobody knows.
        """
        return [each for each in await self._store.gateways() if each != self._store.gateway]

    async def look(self, fingerprint: str) -> Claim | None:
        """Return the claim of a session that is not here.

        Raises:
            Elsewhere: another living process holds it.
            StoreUnavailable: nobody knows.
        """
        claim = await self.find(fingerprint)
        if claim is not None and claim.alive and claim.holder != self._store.gateway:
            raise elsewhere(claim, fingerprint)
        return claim

    async def find(self, fingerprint: str) -> Claim | None:
        """Return the claim of a session, whoever holds it.

        Raises:
            StoreUnavailable: nobody knows.
        """
        if self.alone:
            return None
        try:
            return await self._store.find(name_of(fingerprint))
        except StoreAway as error:
            raise _unavailable(error) from error

    async def publish(self, live: Live, over: int = 0) -> None:
        """Claim a session that is new here, before anybody else can meet it.

        Args:
            live: the session.
            over: fence of the claim that it goes on from, if that is nobody's any more.

        Raises:
            Elsewhere: another process was quicker.
            StoreUnavailable: nobody knows.
        """
        if self.alone:
            return
        fingerprint = live.record.fingerprint
        try:
            claim = await self._store.claim(
                name_of(fingerprint), self._facts(live), _ttl_s(live), over
            )
        except StoreAway as error:
            raise _unavailable(error) from error
        if claim.holder != self._store.gateway:
            raise elsewhere(claim, fingerprint)
        live.epoch = max(live.epoch, claim.fence - 1)
        live.claimed = claim.fence
        self._held[fingerprint] = live

    def adopt(self, live: Live, claim: Claim) -> None:
        """Keep a claim that this process has just got, for a session rebuilt from it."""
        live.epoch, live.claimed = claim.fence - 1, claim.fence
        self._held[live.record.fingerprint] = live

    async def inherit(self, fingerprint: str, claim: Claim) -> Claim | None:
        """Claim what a dead process has left; None if somebody was quicker."""
        try:
            got = await self._store.claim(
                name_of(fingerprint), claim.facts, INHERITED_S, claim.fence
            )
        except StoreAway as error:
            raise _unavailable(error) from error
        ours = got.holder == self._store.gateway and got.fence == claim.fence + 1
        return got if ours else None

    async def bury(self, fingerprint: str, claim: Claim, reason: Reason) -> None:
        """End a session that a dead process has left, and that nobody brings back.

        Raises:
            StoreUnavailable: nobody knows.
        """
        got = await self.inherit(fingerprint, claim)
        if got is not None:
            with contextlib.suppress(StoreAway):
                await self._store.end(name_of(fingerprint), got.fence, reason, SLACK_S)

    async def announce(self, live: Live) -> None:
        """Tell the store now what there is to know of a session.

        Raises:
            StoreAway: nobody knows whether it knows.
        """
        await self._tell(live)

    def changed(self, live: Live) -> None:
        """Tell the store soon what there is to know of a session now, or that it is here."""
        if self.alone:
            return
        fingerprint = live.record.fingerprint
        self._held[fingerprint] = self._dirty[fingerprint] = live
        self._stir()

    def ended(self, live: Live, reason: Reason) -> None:
        """Tell the store soon that a session is over."""
        self._leave(live, reason)

    def released(self, live: Live) -> None:
        """Tell the store soon that this process leaves a session to whoever gets its agent."""
        self._leave(live, None)

    def _leave(self, live: Live, reason: Reason | None) -> None:
        if self._forget(live):
            self._over[live.record.fingerprint] = live, reason
            self._stir()

    def _forget(self, live: Live) -> bool:
        fingerprint = live.record.fingerprint
        if self._held.get(fingerprint) is not live:
            return False
        del self._held[fingerprint]
        self._dirty.pop(fingerprint, None)
        return True

    def _stir(self) -> None:
        self._idle.clear()
        self._wake.set()

    async def settled(self, patience_s: float) -> None:
        """Wait until the store knows everything, for a bounded time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self._idle.wait()

    # The loop

    async def keep(self) -> None:
        """Tell the store what is new at once, and everything again and again."""
        if self.alone:
            return
        renewed = time.monotonic()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHECK_S):
                    await self._wake.wait()
            self._wake.clear()
            self._watch()
            try:
                await self._tell_news()
                due = time.monotonic() - renewed >= RENEW_S
                if due or self._store.blank_since > renewed:
                    renewed = time.monotonic()
                    await self._renew()
            except StoreAway:
                await asyncio.sleep(AGAIN_S)
                self._wake.set()

    def _watch(self) -> None:
        """Tell once that the store is away, and once that it is back."""
        before, name = self._away_s, self._store.name
        self._away_s = now_s = self._store.away_s
        if now_s >= AWAY_S > before:
            self._emit(events.StoreAway(store=name, seconds=round(now_s, 3)))
        elif before >= AWAY_S > now_s:
            self._emit(events.StoreBack(store=name, seconds=round(before, 3)))

    async def _tell_news(self) -> None:
        while self._dirty or self._over:
            for fingerprint, live in list(self._dirty.items()):
                facts = self._facts(live)
                await self._tell(live)
                news = live.claimed != _fence(live) or self._facts(live) != facts
                if self._dirty.get(fingerprint) is live and not news:
                    del self._dirty[fingerprint]
            for fingerprint, (live, reason) in list(self._over.items()):
                await self._tell_over(live, reason)
                if self._over.get(fingerprint) == (live, reason):
                    del self._over[fingerprint]
        self._idle.set()

    async def _tell_over(self, live: Live, reason: Reason | None) -> None:
        name, fence = name_of(live.record.fingerprint), _fence(live)
        if live.claimed != fence:  # its end was quicker than the news of its last attachment
            await self._store.take(name, fence, self._facts(live), _ttl_s(live))
            live.claimed = fence
        if reason is None:
            await self._store.release(name, fence)
        else:
            await self._store.end(name, fence, reason, SLACK_S)

    async def _tell(self, live: Live) -> None:
        """Say what one session is; if an agent has come here with it, that it is here."""
        name, fence = name_of(live.record.fingerprint), _fence(live)
        if live.claimed == fence:
            still = (await self._store.hold([self._as_held(live)]))[0]
        else:
            claim = await self._store.take(name, fence, self._facts(live), _ttl_s(live))
            if (live.attached or live.expected) and self._is_without(claim):
                live.epoch = claim.fence  # it was inherited meanwhile, but its agent is here
                return
            still = claim.holder == self._store.gateway and claim.fence == fence
        if still:
            live.claimed = fence
        else:
            self.lose(live)

    def _is_without(self, claim: Claim) -> bool:
        """True for another process's claim to a session whose agent it does not have."""
        facts = facts_in(claim)
        theirs = claim.holder != self._store.gateway and not claim.ended
        return theirs and facts is not None and not facts.carried

    async def _renew(self) -> None:
        lives = [live for live in self._held.values() if live.claimed == _fence(live)]
        for start in range(0, len(lives), BATCH):
            some = lives[start : start + BATCH]
            still = await self._store.hold([self._as_held(live) for live in some])
            for live, ours in zip(some, still, strict=True):
                if not ours and live.claimed == _fence(live):
                    self.lose(live)

    def lose(self, live: Live) -> None:
        """Another process holds it by now."""
        self._forget(live)
        self._lost(live)

    def _as_held(self, live: Live) -> Held:
        return Held(name_of(live.record.fingerprint), _fence(live), self._facts(live), _ttl_s(live))

    def _facts(self, live: Live) -> bytes:
        record = live.record
        facts = Facts(
            principal=record.principal,
            server=record.server.name,
            session_id=record.session_id,
            shared=isinstance(live, SharedLive),
            tied=not live.movable,
            carried=live.carried,
            created=round(self.now() - (time.monotonic() - record.created), 1),
            launch_id=record.launch_id,
            face=record.face,
            opening=live.opening,
            told=live.told,
        )
        return msgspec.json.encode(facts)


def name_of(fingerprint: str) -> str:
    """Return the name of a session's claim."""
    return CLAIM + fingerprint


def elsewhere(claim: Claim, fingerprint: str) -> Elsewhere:
    """Return what says where a session lives."""
    return Elsewhere(
        "another gateway process holds this session", claim.holder, fingerprint, claim.fence
    )


def _unavailable(error: StoreAway) -> StoreUnavailable:
    return StoreUnavailable(
        f"what the gateway processes share cannot be reached ({error}); send the request again"
    )


def _fence(live: Live) -> int:
    return live.epoch + 1


def _ttl_s(live: Live) -> float:
    return live.lease.lifetime_s + SLACK_S
