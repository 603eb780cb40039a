"""Several gateways of one deployment, the engine that they share, and a router without stickiness.

Only port and id differ. Key, secret, servers, TMPDIR, log and run marker are one.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
from redis.asyncio import Redis

from gateway.sessions.keys import SessionKeys
from tests.fakes.scatter import Scatter
from tests.fakes.valkey import ValkeyServer
from tests.system.conftest import PLAIN, RUN_MARKER, STOP_BOUND, GatewayProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

AGENTS_BOUND = 20.0
"""Seconds until agents and their children have gone after the gateways."""

OPEN_BOUND = 45.0
"""Seconds until a gateway answers that starts beside others, with throw-away runs of each."""

ANSWER_BOUND = 40.0
"""Seconds for one answer of /health or of the operators' API, on a busy machine."""


class Door(GatewayProcess):
    """One gateway of several.

    Args:
        folder: shared by all of them.
        front: whose key, secret, servers and log they have; None for the front itself.
    """

    def __init__(
        self,
        folder: Path,
        servers: Mapping[str, Mapping[str, Any]],
        settings: Mapping[str, str] | None = None,
        *,
        front: Door | None = None,
        **more: Any,
    ) -> None:
        super().__init__(folder, servers, settings, **more)
        if front is not None:
            self.run, self.key = front.run, front.key
            self._log_file, self._servers_file = front._log_file, front._servers_file
            self._scratch.rmdir()
            self._scratch = front._scratch  # where the local launcher of each sees all dynos
        self._log_file.touch()

    async def look(self, path: str = "/health", key: str = "") -> tuple[int, Any]:
        """Return status and document of a page of this very process."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = aiohttp.ClientTimeout(total=ANSWER_BOUND)
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers) as http,
            http.get(f"{self.origin}{path}") as response,
        ):
            return response.status, await response.json()

    async def identity(self) -> str:
        """Return the id that it has among the processes."""
        _, health = await self.look()
        return str(health["gateway"])

    def begin(self) -> None:
        """Start a process; wait for `ready` next."""
        assert self._has_exited()
        self._spawn()

    async def ready(self) -> None:
        """Wait until it answers; several start at the same time."""
        await self.until(self._answers_health, "/health answers 200", within=OPEN_BOUND)

    @property
    def status(self) -> int | None:
        """What the last process ended with; None if it runs."""
        return None if self._process is None else self._process.returncode

    def gone(self) -> bool:
        """There is no process."""
        return self._has_exited()


class Town:
    """Gateways, engine and router, as they run.

    Attributes:
        front: stands for all of them: its URL is the router's, and it is no process.
        doors: the gateways.
        engine: their Valkey.
        redis: what tests ask it by.
        router: in front.
        admin_key: of operators.
    """

    def __init__(
        self,
        folder: Path,
        servers: Mapping[str, Mapping[str, Any]],
        settings: Mapping[str, str],
        router: Scatter,
        engine: ValkeyServer,
        *,
        size: int,
        defaults: Mapping[str, Any],
    ) -> None:
        self.router, self.engine = router, engine
        self.admin_key = secrets.token_urlsafe(32)
        self.front = Door(folder, servers, defaults=defaults)
        self.front.origin = router.url
        shared = {
            RUN_MARKER: self.front.run,
            "API_KEY": self.front.key,
            "ADMIN_KEY": self.admin_key,
            "GATEWAY_SECRET": secrets.token_urlsafe(32),
            "GATEWAY_URL": router.url,
            "REDIS_URL": engine.url,
            **settings,
        }
        self.doors = [Door(folder, {}, shared, front=self.front) for _ in range(size)]
        router.backends = [door.port for door in self.doors]
        self.redis: Redis = Redis.from_url(engine.url, decode_responses=True)

    async def open(self) -> None:
        """Start all gateways.

        At the same time, and yet one after the other: what `restart` fails with is no exception
        that a group could hold.
        """
        for door in self.doors:
            door.begin()
        for door in self.doors:
            await door.ready()
        # Whoever kills a gateway in a throw-away run leaves its dyno to the agent's own grace.
        await self.front.until(self._settled, "throw-away runs are over", within=OPEN_BOUND)

    def _settled(self) -> bool:
        records = self.front.records()
        begun = {
            record["session"]
            for record in records
            if record.get("event") == "requested" and record.get("principal") == "(gateway)"
        }
        return begun <= {r["session"] for r in records if r.get("event") == "closed"}

    async def close(self) -> None:
        """End all gateways as Ctrl-C does; they have to end well, and to leave nothing."""
        try:
            running = [door for door in self.doors if not door.gone()]
            for door in running:
                door.process.send_signal(signal.SIGINT)
            for door in running:
                await door.until(door.gone, "it ends after SIGINT", within=STOP_BOUND)
                assert door.status == 0, (door.port, door.status)
            await self.front.until(
                lambda: not self.front.processes(), "nothing is left", within=AGENTS_BOUND
            )
        finally:
            await self.redis.aclose()
            for door in (*self.doors, self.front):
                door._clean_up()

    async def owner(self, session: str) -> Door:
        """Return the gateway that owns the session of this key."""
        return await self._with_identity(await self._field(claim_of(session), "holder"))

    async def stands_at(self, launch: str) -> Door:
        """Return the gateway at which a parked dyno's agent waits."""
        row = json.loads(await self._field("rdv:table:pool:rows", launch))
        return await self._with_identity(row["holder"])

    async def _field(self, key: str, field: str) -> str:
        found = await self.redis.hget(key, field)
        assert found is not None, (key, field)
        return str(found)

    async def _with_identity(self, identity: str) -> Door:
        for door in self.doors:
            if not door.gone() and await door.identity() == identity:
                return door
        raise LookupError(f"{identity!r} is none of the gateways")

    async def pool(self, door: Door) -> list[dict[str, Any]]:
        """Return the parked dynos, as a gateway tells operators."""
        status, parked = await door.look("/admin/v1/pool", self.admin_key)
        assert status == 200, parked
        found: list[dict[str, Any]] = parked
        return found

    async def ledger(self, door: Door) -> dict[str, Any]:
        """Return the ledger, as a gateway tells operators."""
        status, ledger = await door.look("/admin/v1/ledger", self.admin_key)
        assert status == 200, ledger
        found: dict[str, Any] = ledger
        return found


def claim_of(session: str) -> str:
    """Return the engine's key of a session's claim."""
    return f"rdv:claim:s/{SessionKeys.fingerprint(session)}"


@asynccontextmanager
async def town(
    folder: Path,
    servers: Mapping[str, Mapping[str, Any]],
    running: list[GatewayProcess],
    *,
    size: int = 3,
    seed: int = 1,
    settings: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] = PLAIN,
) -> AsyncIterator[Town]:
    """Open a town; a test that fails inside shows its log.

    Args:
        folder: for its files.
        servers: the servers file's.
        running: see the fixture.
        size: number of gateways.
        seed: of the router.
        settings: further environment of every gateway.
        defaults: for servers that do not say otherwise.
    """
    async with Scatter((), random.Random(seed)) as router:  # noqa: S311 - where requests land
        engine = ValkeyServer()
        await asyncio.to_thread(engine.start)
        try:
            built = Town(
                folder, servers, settings or {}, router, engine, size=size, defaults=defaults
            )
            running.append(built.front)
            try:
                await built.open()
                yield built
            finally:
                await built.close()
                running.remove(built.front)
        finally:
            await asyncio.to_thread(engine.__exit__)
