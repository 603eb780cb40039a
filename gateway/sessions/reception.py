"""Agents at the door: who presents what, which session it leads to, what it is welcomed with."""

import time
from typing import Protocol

from dyno_agent.link import Hello, Welcome
from gateway import events
from gateway.fleet.desk import TokenRefused, proof_of
from gateway.fleet.fleet import Fleet
from gateway.registry.servers import Registry, ServerDefinition
from gateway.sessions.capsule import PURPOSE, Capsule
from gateway.sessions.directory import Directory
from gateway.sessions.live import Live, SharedLive
from gateway.sessions.pool import Parked, Pool
from gateway.sessions.record import State
from gateway.sessions.sealing import BadSeal, Sealer


class Make(Protocol):
    """Makes a session from its facts."""

    def __call__(
        self,
        fingerprint: str,
        server: ServerDefinition,
        principal: str,
        session_id: str,
        *,
        shared: bool,
    ) -> Live:
        """Return one that nobody knows yet."""
        ...


class Reception:
    """Recognises agents, and rebuilds the sessions that they bring.

    Args:
        directory: the sessions that live here.
        fleet: has the desk of join tokens and resume credentials, and the time.
        pool: dynos without a session.
        registry: the servers.
        make: makes a session.
        secret: the deployment's GATEWAY_SECRET.
    """

    def __init__(
        self,
        directory: Directory,
        fleet: Fleet,
        pool: Pool,
        registry: Registry,
        make: Make,
        secret: bytes,
    ) -> None:
        self._directory = directory
        self._fleet = fleet
        self._desk = fleet.desk
        self._wall_clock = fleet.now
        self._pool = pool
        self._registry = registry
        self._make = make
        self._sealer = Sealer(secret, PURPOSE, Capsule)

    def recognise(self, credential: str, capsule: str, emit: events.Sink) -> Live | Parked:
        """Return what an agent's credential leads to: a session, rebuilt if need be, or the pool.

        Raises:
            TokenRefused: none.
        """
        try:
            fingerprint = self._desk.recognise(credential, time.monotonic())
        except TokenRefused:
            live = self._hydrated(credential, capsule)
            record = live.record
            emit(
                events.Hydrated(
                    session=record.session_id,
                    server=record.server.name,
                    principal=record.principal,
                    launch=record.launch_id,
                    age_s=round(time.monotonic() - record.created, 3),
                )
            )
            return live
        found = self._directory.get(fingerprint) or self._pool.find(fingerprint)
        if found is None:
            raise TokenRefused
        return found

    def _hydrated(self, credential: str, text: str) -> Live:
        """Rebuild a session from what its agent carries."""
        launch_id, proof = proof_of(credential)
        try:
            capsule = self._sealer.open(text)
        except BadSeal:
            raise TokenRefused from None
        server = self._registry.known(capsule.server)
        age_s = max(0.0, self._wall_clock() - capsule.created)
        if (
            (capsule.launch_id, capsule.proof) != (launch_id, proof)
            or self._fleet.disowned(launch_id)
            or self._directory.ended(capsule.fingerprint) is not None
            or self._directory.get(capsule.fingerprint) is not None
            or server is None
            or age_s >= server.max_lifetime
        ):
            raise TokenRefused
        live = self._make(
            capsule.fingerprint,
            server,
            capsule.principal,
            capsule.session_id,
            shared=capsule.kind == "shared",
        )
        record, now = live.record, time.monotonic()
        record.created = record.launched = live.lease.launched = now - age_s
        record.state, record.launch_id, record.dyno_id = State.PARTED, launch_id, capsule.dyno_id
        record.billed = capsule.billed or capsule.created
        live.lease.parted = live.lease.active = live.session.active = now
        live.fresh, live.epoch = True, capsule.epoch
        live.lease.booted = True
        live.launched.set()
        self._desk.adopt(launch_id, capsule.fingerprint, proof, capsule.boot_id)
        self._directory.add(live)
        return live

    def admit(self, credential: str, hello: Hello) -> None:
        """Burn a join token, or check a resume; see `JoinDesk.burn` for what it raises."""
        self._desk.burn(credential, hello.proof, hello.boot_id)

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
