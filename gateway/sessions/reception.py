"""Agents at the door: who presents what, which session it leads to, what it is welcomed with."""

import contextlib
import time
from typing import TYPE_CHECKING

from dyno_agent.link import Hello, Welcome
from gateway import events
from gateway.errors import StoreUnavailable
from gateway.fleet.desk import TokenRefused, launch_of, proof_of
from gateway.fleet.passes import Passes
from gateway.sessions.capsule import PURPOSE, Capsule
from gateway.sessions.directory import Directory
from gateway.sessions.dynos import Dynos
from gateway.sessions.live import Live, OwnedLive, SharedLive
from gateway.sessions.making import Maker
from gateway.sessions.overture import Overture
from gateway.sessions.ownership import Ownership, elsewhere, facts_in
from gateway.sessions.pool import Parked
from gateway.sessions.record import State, Step
from gateway.sessions.sealing import BadSeal, Sealer
from gateway.store.base import Claim

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.eras.catalogue import Chapter
    from gateway.registry.servers import ServerDefinition


PHASES = 100
"""Phases of a boot that one process may tell before the next one goes on."""


class Reception:
    """Recognises agents, and rebuilds the sessions that they bring.

    Args:
        directory: the sessions that live here.
        ownership: who holds the others.
        dynos: of sessions; has the fleet and its desk, and the pool.
        passes: join tokens that other processes have minted.
        maker: makes sessions.
        secret: the deployment's GATEWAY_SECRET.

    Attributes:
        chapter: what clients with a handshake are told of a server; None if only a child can say.
    """

    def __init__(
        self,
        directory: Directory,
        ownership: Ownership,
        dynos: Dynos,
        passes: Passes,
        maker: Maker,
        secret: bytes,
    ) -> None:
        self._directory = directory
        self._ownership = ownership
        self._dynos = dynos
        self._fleet = dynos.fleet
        self._desk = dynos.fleet.desk
        self._passes = passes
        self._wall_clock = dynos.fleet.now
        self._pool = dynos.pool
        self._maker = maker
        self._sealer = Sealer(secret, PURPOSE, Capsule)
        self.chapter: Callable[[ServerDefinition], Chapter | None] = lambda _server: None

    async def recognise(self, credential: str, capsule: str) -> Live | Parked:
        """Return what an agent's credential leads to: a session, rebuilt if need be, or the pool.

        Raises:
            TokenRefused: none.
            Elsewhere: a session that can live at another process only.
            StoreAway, StoreUnavailable: nobody knows.
        """
        try:
            fingerprint = self._desk.recognise(credential, time.monotonic())
        except TokenRefused:
            pass
        else:
            found = self._directory.get(fingerprint) or self._pool.find(fingerprint)
            if found is not None and not self._outdated(found, capsule):
                if isinstance(found, Live) and found.record.launch_id != launch_of(credential):
                    raise TokenRefused  # its session has got another dyno meanwhile
                return found
        if credential.startswith("rr_"):
            return await self._hydrated(credential, capsule)
        return await self._joined(credential)

    def _outdated(self, found: Live | Parked, text: str) -> bool:
        """Whether the agent has been at another process since it was here."""
        if isinstance(found, Parked) or not text:
            return False
        try:
            return self._sealer.open(text).epoch > found.epoch
        except BadSeal:
            return False

    async def _hydrated(self, credential: str, text: str) -> Live:
        """Rebuild a session from what its agent carries."""
        launch_id, proof = proof_of(credential)
        try:
            capsule = self._sealer.open(text)
        except BadSeal:
            raise TokenRefused from None
        if (capsule.launch_id, capsule.proof) != (launch_id, proof):
            raise TokenRefused
        fingerprint = capsule.fingerprint
        claim = None
        with contextlib.suppress(StoreUnavailable):  # an agent that is here is proof enough
            claim = await self._ownership.find(fingerprint)
        self._check_movable(fingerprint, claim, launch_id)
        known = self._directory.get(fingerprint)
        if known is not None and known.epoch < capsule.epoch:
            self._ownership.lose(known)  # its agent has been elsewhere, which nobody told us
            known = None
        server = self._maker.registry.known(capsule.server)
        age_s = max(0.0, self._wall_clock() - capsule.created)
        if (
            self._fleet.disowned(launch_id)
            or (claim is None and self._directory.ended(fingerprint) is not None)
            or known is not None
            or server is None
            or age_s >= server.max_lifetime
        ):
            raise TokenRefused
        make = self._maker.shared if capsule.kind == "shared" else self._maker.owned
        live: Live = make(fingerprint, server, capsule.principal, capsule.session_id)
        record, now = live.record, time.monotonic()
        record.created = record.launched = live.lease.launched = now - age_s
        record.state, record.launch_id, record.dyno_id = State.PARTED, launch_id, capsule.dyno_id
        record.billed = capsule.billed or capsule.created
        live.lease.parted = live.lease.active = live.session.active = now
        live.fresh, live.epoch = True, capsule.epoch
        if claim is not None:
            live.epoch = max(live.epoch, claim.fence - 1)
        live.lease.booted = True
        live.launched.set()
        self._desk.adopt(launch_id, fingerprint, proof, capsule.boot_id)
        self.enter(live)
        return live

    async def _joined(self, credential: str) -> Live | Parked:
        """Return what a join token leads to that another process has minted."""
        launch_id, key = await self._passes.recognise(credential)
        if self._fleet.disowned(launch_id):
            raise TokenRefused
        if key == launch_id:
            parked = await self._pool.restore(launch_id)
            if parked is None:
                raise TokenRefused
            return parked
        return await self.fetch(key, launch_id)

    async def fetch(self, fingerprint: str, launch_id: str) -> Live:
        """Bring a session here whose agent has come for the first time.

        Raises:
            TokenRefused: it waits for no agent of this launch.
            Elsewhere: it can live at another process only.
            StoreUnavailable: nobody knows.
        """
        here = self._directory.get(fingerprint)
        if here is not None and here.record.launch_id == launch_id:
            return here
        claim = await self._ownership.find(fingerprint)
        self._check_movable(fingerprint, claim, launch_id)
        here = self._directory.get(fingerprint)
        live = None if claim is None or here is not None else self.revive(fingerprint, claim)
        if claim is None or live is None:
            raise TokenRefused
        if not live.record.launch_id:
            raise StoreUnavailable("the session's holder has not told of this launch yet")
        live.epoch, live.expected = claim.fence - 1, True
        self.enter(live)
        return live

    def _check_movable(self, fingerprint: str, claim: Claim | None, launch_id: str) -> None:
        """Make sure that the agent of a launch may have this session, and have it here."""
        facts = None if claim is None else facts_in(claim)
        if claim is None or facts is None:
            return
        if claim.ended or facts.launch_id not in ("", launch_id):
            raise TokenRefused
        if facts.tied and claim.holder != self._ownership.gateway:
            if claim.alive:
                raise elsewhere(claim, fingerprint)
            raise TokenRefused  # what it was tied to has died with that process

    def revive(self, fingerprint: str, claim: Claim) -> Live | None:
        """Rebuild a session that no agent carries from its claim; None if it cannot go on.

        It is dormant, or waits for the agent of its launch.
        """
        facts = facts_in(claim)
        server = None if facts is None else self._maker.registry.known(facts.server)
        if facts is None or server is None or facts.tied:
            return None
        make = self._maker.shared if facts.shared else self._maker.owned
        live: Live = make(fingerprint, server, facts.principal, facts.session_id)
        record, now = live.record, time.monotonic()
        record.created = now - max(0.0, self._wall_clock() - facts.created)
        if isinstance(live, OwnedLive) and facts.opening is not None:
            chapter = self.chapter(server) if facts.told else None
            live.session.overture = Overture(
                facts.opening, chapter, again=server.toolkit is not None
            )
            live.opening, live.told = facts.opening, facts.told
        if facts.launch_id:
            record.launch_id, record.face = facts.launch_id, facts.face
            record.move(Step.LAUNCH)
            record.launched = live.lease.launched = now
            record.billed = self._wall_clock()
            live.session.told_elsewhere(min(claim.fence * PHASES, 9 * PHASES))
            live.session.start(now)
            live.launched.set()
        return live

    def enter(self, live: Live) -> None:
        """Let a session go on here that was rebuilt."""
        self._directory.add(live)
        record = live.record
        if record.launch_id:
            self._dynos.inherit(live)
        self._fleet.emit(
            events.Hydrated(
                session=record.session_id,
                server=record.server.name,
                principal=record.principal,
                launch=record.launch_id,
                age_s=round(time.monotonic() - record.created, 3),
            )
        )

    async def assign(self, launch_id: str, fingerprint: str) -> None:
        """Let a parked agent's join token lead to a session, at whichever door it is presented.

        Raises:
            StoreAway: nobody knows whether it does.
        """
        await self._passes.assign(launch_id, fingerprint)

    async def admit(self, credential: str, hello: Hello) -> None:
        """Burn a join token, or check a resume; see `Passes.burn` for what it raises."""
        await self._passes.burn(credential, hello.proof, hello.boot_id)

    def welcome(self, live: Live, hello: Hello) -> Welcome:
        """Return what to answer to a HELLO, with the capsule that the agent shall carry."""
        record, lease = live.record, live.lease
        age_s = 0.0 if lease.launched is None else time.monotonic() - lease.launched
        capsule = Capsule(
            launch_id=record.launch_id,
            fingerprint=record.fingerprint,
            principal=record.principal,
            server=record.server.name,
            created=self._wall_clock() - age_s,
            proof=hello.proof,
            boot_id=hello.boot_id,
            epoch=live.epoch,
            dyno_id=record.dyno_id,
            kind="shared" if isinstance(live, SharedLive) else "owned",
            session_id=record.session_id,
            billed=record.billed,
        )
        return live.welcome(hello, self._sealer.seal(capsule))
