"""The operators' API over HTTP in this process, on sessions that a test makes up."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import aiohttp
import msgspec
from aiohttp import web
from aiohttp.test_utils import TestServer

from gateway import events
from gateway.errors import BadKey
from gateway.ops.admin.api import Admin, here
from gateway.ops.admin.desk import Desk
from gateway.ops.admin.guard import Gate, Guard
from gateway.ops.admin.standing import Standing
from gateway.ops.levels import Levels
from gateway.ops.story import Failure, Summary
from gateway.registry.servers import Registry, ServerDefinition
from gateway.sessions.manager import Manager
from gateway.store.base import StoreAway, Told
from gateway.store.memory import Inbox, MemoryStore
from tests.edge.dynos_house import NOW, Clock, terms
from tests.fakes.house import BOUND, SECRET, Ear
from tests.fakes.launchers import RecordingLauncher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from gateway.ops.admin.api import Serve
    from gateway.ops.recorder import Recorder
    from gateway.registry.discovery import Discovery

ADMIN = "an-operators-key-of-32-characters"

BASE = "/admin/v1"

GRACE_S = 300.0

PAGE = {"X-Rendezvous-Console": "1"}
"""What a page of the console sends, beside its origin."""

TOOLS = [{"name": "echo", "description": "Says it again."}]


class Records:
    """A recorder whose stories are the test's.

    Attributes:
        known: summaries by session.
        lines: of stories, by session.
        gone: how many of the oldest lines of each story are kept no more.
        failed: newest first.
        away: the store cannot be reached.
        brief: a session that somebody follows is closed at once.
    """

    def __init__(self) -> None:
        self.known: dict[str, Summary] = {}
        self.lines: defaultdict[str, list[bytes]] = defaultdict(list)
        self.gone: defaultdict[str, int] = defaultdict(int)
        self.failed: list[Failure] = []
        self.away = self.brief = False
        self.followers: list[asyncio.Event] = []

    async def summaries(self) -> Mapping[str, Summary]:
        return self.known

    async def summary(self, session: str) -> Summary | None:
        return self.known.get(session)

    async def told(
        self, session: str, after: int, most_bytes: int, *, settled: bool = True
    ) -> Told:
        if self.away:
            raise StoreAway("away")
        lines, gone = self.lines[session], self.gone[session]
        first, size = max(after, gone) + 1, 0
        found: list[bytes] = []
        for line in lines[first - 1 :]:
            if found and size + len(line) > most_bytes:
                break
            found.append(line)
            size += len(line)
        return Told(first, found, len(lines))

    @contextmanager
    def following(self, session: str) -> Iterator[asyncio.Event]:
        if self.brief and session in self.known:
            self.close(session)
        news = asyncio.Event()
        self.followers.append(news)
        try:
            yield news
        finally:
            self.followers.remove(news)

    async def failures(self, most: int = 2000) -> list[Failure]:
        return self.failed[:most]

    # What a test does

    def have(self, session: str, **facts: Any) -> Summary:
        """Let there be a session, or let it be otherwise."""
        usual: dict[str, Any] = {
            "server": "patient",
            "principal": "test",
            "gateway": "here",
            "state": "ready",
            "opened": NOW - 60,
            "active": NOW - 5,
        }
        summary = self.known[session] = Summary(session=session, **{**usual, **facts})
        self._ring()
        return summary

    def tell(self, session: str, *names: str, **facts: Any) -> None:
        """Add lines to a story."""
        for name in names:
            line = msgspec.json.encode({"at": NOW, "event": name, **facts})
            self.lines[session].append(line)
        self._ring()

    def close(self, session: str, reason: str = "idle") -> None:
        facts = msgspec.structs.asdict(self.known[session])
        facts |= {"state": "closed", "reason": reason, "ended": NOW}
        self.known[session] = Summary(**facts)
        self._ring()

    def _ring(self) -> None:
        for news in self.followers:
            news.set()


@dataclass
class Office:
    """Where operators ask.

    Attributes:
        origin: of the URLs.
        http: a client without a key.
        records: what is recorded.
        manager: the sessions that really are.
        clock: on the wall.
        ear: hears all events.
        desk: what operators see and do.
        killed: sessions that live here and were ended.
        stopped: sessions whose dynos were stopped.
        left: how often this process was told to leave.
        here: sessions that live here, for `kill`.
        tools: what every server offers.
    """

    origin: str
    http: aiohttp.ClientSession
    records: Records
    manager: Manager
    clock: Clock
    ear: Ear
    here: set[str] = field(default_factory=set)
    killed: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    left: int = 0
    tools: list[dict[str, Any]] | None = field(default_factory=lambda: list(TOOLS))
    desk: Desk = field(init=False)

    async def asks(
        self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None, **more: Any
    ) -> tuple[int, Any, Mapping[str, str]]:
        """Ask with the key, unless headers are given; return status, document and headers."""
        keyed = {"Authorization": f"Bearer {ADMIN}"} if headers is None else headers
        async with (
            asyncio.timeout(BOUND),
            self.http.request(method, self.origin + BASE + path, headers=keyed, **more) as response,
        ):
            plain = response.content_type != "application/json"
            document = await response.text() if plain else await response.json()
            return response.status, document, response.headers

    async def gets(self, path: str, **query: Any) -> Any:
        """Return the document of what is there."""
        status, document, _ = await self.asks(path, params=query)
        assert status == 200, document
        return document

    async def refused(self, path: str, method: str = "GET", **more: Any) -> tuple[int, str]:
        """Return status and sentence of a refusal, which is JSON whatever it is about."""
        status, document, headers = await self.asks(path, method, **more)
        assert status >= 400
        assert headers["Content-Type"].startswith("application/json")
        assert list(document) == ["error"]
        return status, document["error"]

    def alive(self, gateway: str) -> None:
        """Let another process be alive."""
        assert isinstance(self.manager.store, MemoryStore)
        self.manager.store._engine.inboxes[gateway] = Inbox()

    def operated(self) -> list[tuple[str, str, str]]:
        """What operators are said to have done."""
        return [
            (event.action, event.subject, event.source)
            for event in self.ear.heard
            if isinstance(event, events.Operated)
        ]

    def _kill(self, session: str) -> bool:
        if session not in self.here:
            return False
        self.killed.append(session)
        return True

    async def _stop_dyno(self, summary: Summary) -> None:
        self.stopped.append(summary.session)

    def _leave(self) -> None:
        self.left += 1


def _carried(headers: Mapping[str, str]) -> bool:
    if headers.get("Carried", "truly") != "truly":
        raise BadKey("not for clients")
    return "Carried" in headers


@asynccontextmanager
async def office(
    *servers: ServerDefinition,
    key: str = ADMIN,
    behind_router: bool = False,
    https: bool = False,
    discovery: Discovery | None = None,
    serve: Serve = here,
) -> AsyncIterator[Office]:
    """Serve the operators' API until the block is left."""
    clock, ear, records = Clock(), Ear(), Records()
    registry = Registry(list(servers) or [ServerDefinition(name="patient", command="never-run")])
    store = MemoryStore(gateway="here")
    manager = Manager(RecordingLauncher(), registry, terms(clock), ear, store)
    gate = Gate(
        key=key,
        secret=SECRET,
        behind_router=behind_router,
        https=https,
        now=clock,
        draw=manager.store.draw,
        emit=ear,
        carried=_carried,
    )
    app = web.Application()
    async with (
        manager,
        aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as http,
    ):
        built = Office("", http, records, manager, clock, ear)
        built.desk = Desk(
            manager=manager,
            registry=registry,
            discovery=discovery,
            run_line=lambda server, launch, _environment: f"run {server.name} {launch}",
            recorder=cast("Recorder", records),
            levels=Levels(manager.store, "info"),
            tools=lambda _server: built.tools,
            kill=built._kill,
            stop_dyno=built._stop_dyno,
            leave=built._leave,
            standing=Standing(GRACE_S),
        )
        app.add_routes(Admin(Guard(gate), built.desk, serve).routes())
        async with TestServer(app, handler_cancellation=True) as server:
            built.origin = str(server.make_url("")).rstrip("/")
            yield built
