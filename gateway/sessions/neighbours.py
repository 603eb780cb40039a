"""What the processes of one deployment tell each other about sessions and parked agents."""

import asyncio
import contextlib
import itertools
from typing import TYPE_CHECKING

import msgspec

from gateway import events
from gateway.errors import Busy, GatewayError
from gateway.exchange.exchange import CLAIM, Note
from gateway.fleet.desk import TokenRefused
from gateway.patience import patience
from gateway.sessions.directory import Directory
from gateway.sessions.dynos import Dynos
from gateway.sessions.live import Live
from gateway.sessions.ownership import Ownership
from gateway.sessions.pool import Parked
from gateway.sessions.reception import Reception
from gateway.sessions.reconciler import News, Reconciler
from gateway.store.base import StoreAway, Taken

if TYPE_CHECKING:
    from collections.abc import Callable


class Called(msgspec.Struct, frozen=True, tag=True):
    """A note to the process at whose door an agent stands parked.

    Attributes:
        launch_id: of the agent.
        fingerprint: of the session that wants it.
    """

    launch_id: str
    fingerprint: str


class Ended(msgspec.Struct, frozen=True, tag=True):
    """A note to all processes: what the platform has told one of them by a webhook."""

    news: News


class Sought(msgspec.Struct, frozen=True, tag=True):
    """A note to all processes: who has this session? The engine does not know it.

    Attributes:
        fingerprint: of the session.
        number: of the question.
    """

    fingerprint: str
    number: int


class Found(msgspec.Struct, frozen=True, tag=True):
    """The answer of one process; if it has the session, the engine knows it again.

    Attributes:
        number: of the question.
        here: it has the session.
    """

    number: int
    here: bool


_NOTES = msgspec.json.Decoder(Called | Ended | Sought | Found)

SEEK_S = 1.0
"""How long others may take to say whether they have a session."""


class Neighbours:
    """The other processes.

    Args:
        directory: the sessions that live here.
        ownership: who holds the others.
        reception: brings sessions here.
        dynos: of the sessions.
        reconciler: hears what the platform tells; has the pool of agents that are parked here.
        tasks: for what takes a while.

    Attributes:
        tell: sends a note to another process, given its id; raises `Busy`.
    """

    def __init__(
        self,
        directory: Directory,
        ownership: Ownership,
        reception: Reception,
        dynos: Dynos,
        reconciler: Reconciler,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._directory = directory
        self._ownership = ownership
        self._reception = reception
        self._dynos = dynos
        self._pool = dynos.pool
        self._reconciler = reconciler
        self._tasks = tasks
        self._numbers = itertools.count(1)
        self._sought: dict[int, tuple[set[str], asyncio.Event]] = {}
        self.tell: Callable[[str, bytes], None] = _nobody

    def hear(self, news: Taken | Note) -> None:
        """Take news of other processes."""
        if isinstance(news, Taken):
            self._superseded(news)
            return
        with contextlib.suppress(msgspec.DecodeError):  # of another version, or of nobody of ours
            note: Called | Ended | Sought | Found = _NOTES.decode(news.text)
            match note:
                case Ended():
                    self._reconciler.heard(note.news)
                case Called():
                    self._tasks.create_task(self._called(note), name=f"called {note.launch_id}")
                case Sought():
                    name = f"sought {note.fingerprint[:12]}"
                    self._tasks.create_task(self._say(note, news.gateway), name=name)
                case Found():
                    self._found(note, news.gateway)

    def gone(self, launch_id: str) -> bool:
        """See `Reconciler.gone`."""
        return self._reconciler.gone(launch_id)

    def heard(self, news: News) -> None:
        """Take what a webhook has told, and tell it to the others: the session may be theirs."""
        self._reconciler.heard(news)
        if not self._ownership.alone:
            self._tasks.create_task(self._tell_all(Ended(news)), name=f"ended {news.launch_id}")

    async def _tell_all(self, note: Ended | Sought) -> set[str]:
        """Tell all others, as far as they can be reached; return whom."""
        told: set[str] = set()
        with contextlib.suppress(StoreAway, Busy):
            for gateway in await self._ownership.others():
                self.tell(gateway, msgspec.json.encode(note))
                told.add(gateway)
        return told

    async def seek(self, fingerprint: str) -> None:
        """Ask the others for a session that the engine does not know: it may have forgotten it."""
        number, answered = next(self._numbers), asyncio.Event()
        asked = await self._tell_all(Sought(fingerprint, number))
        if not asked:
            return
        self._sought[number] = asked, answered
        try:
            async with asyncio.timeout(patience(SEEK_S)):
                await answered.wait()
        except TimeoutError:
            return
        finally:
            del self._sought[number]

    async def _say(self, sought: Sought, asker: str) -> None:
        live = self._directory.get(sought.fingerprint)
        with contextlib.suppress(StoreAway, Busy):  # then it will hear of it later, or not
            if live is not None:
                await self._ownership.announce(live)
            self.tell(asker, msgspec.json.encode(Found(sought.number, here=live is not None)))

    def _found(self, found: Found, gateway: str) -> None:
        asked, answered = self._sought.get(found.number, (set(), asyncio.Event()))
        asked.discard(gateway)
        if found.here or not asked:
            answered.set()

    async def call(self, live: Live, parked: Parked) -> None:
        """Make an agent that stands at another process's door serve a session of ours.

        The session goes there with its first attachment; or wherever the agent dials next, as its
        join token leads there from now on.

        Raises:
            StoreAway: nobody knows whether that process will hear of it.
        """
        fingerprint = live.record.fingerprint
        await self._ownership.announce(live)
        await self._reception.assign(parked.launch_id, fingerprint)
        if parked.holder_gateway:  # else it dials again anyway
            note = msgspec.json.encode(Called(parked.launch_id, fingerprint))
            with contextlib.suppress(Busy):
                self.tell(parked.holder_gateway, note)

    async def _called(self, called: Called) -> None:
        """A session of another process wants an agent that is parked here."""
        parked = self._pool.at_door(called.launch_id)
        if parked is None:
            return  # it dials again, and will be told where
        try:
            parked.live = await self._reception.fetch(called.fingerprint, called.launch_id)
        except (TokenRefused, GatewayError, StoreAway):
            parked.live = None  # it is let go, and dials again: its token leads to its session
        parked.called.set()

    def _superseded(self, taken: Taken) -> None:
        """A session has another holder."""
        fingerprint = taken.name.removeprefix(CLAIM)
        live = self._directory.get(fingerprint)
        if live is not None and live.epoch + 1 < taken.fence and not live.record.over:
            if live.attached or live.expected:
                self._ownership.changed(live)  # who is right is for the store to say
            else:
                self._ownership.lose(live)
        self._directory.taken(fingerprint)

    def lost(self, live: Live) -> None:
        """Another process holds a session: whoever waits for it here follows."""
        if self._directory.get(live.record.fingerprint) is not live:
            return
        calls = live.session.calls
        self._directory.remove(live, None)
        live.leave()
        live.abort()
        self._dynos.let_go(live)
        self._dynos.fleet.emit(events.HandedOver(session=live.record.session_id, calls=calls))


def _nobody(gateway: str, _note: bytes) -> None:
    raise Busy(f"there is no way to {gateway}")
