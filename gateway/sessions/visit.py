"""A session whose client is this very process: it opens it, asks, and ends it.

It is a session like any other, of some principal, but tied to this process: nobody could come back
to it. Throw-away runs of the catalogue are visits, and so are the tools of an agent's run.
"""

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw

from dyno_agent.link import Face
from gateway.eras import modern
from gateway.eras.catalogue import Era, Pages
from gateway.eras.versions import HANDSHAKE
from gateway.errors import GatewayError, SessionEnded, UnknownMethod
from gateway.jsonrpc import (
    Envelope,
    Kind,
    error_of,
    error_response,
    notification,
    peek,
    request,
    result_response,
)
from gateway.registry.servers import ServerDefinition
from gateway.sessions.live import Live, OwnedLive, SharedLive
from gateway.sessions.manager import Manager
from gateway.sessions.record import Reason
from gateway.sessions.streams import Item, Outbox

Hear = Callable[[Envelope], None]
"""Takes a notification that comes before the answer of a request."""

VERSION: Final = "1"
"""Of what this process calls itself as a client."""


class Refused(Exception):
    """The child has answered with an error: its code, and its words."""

    def __init__(self, method: str, code: int, message: str) -> None:
        super().__init__(f"{method}: {message[:200]} ({code})")
        self.code = code
        self.message = message


class Visit(ABC):
    """A session from the side of its client. Make one with `begin`, and `end` it.

    Attributes:
        live: the session.
    """

    def __init__(self, manager: Manager, live: Live, client: str) -> None:
        self.live = live
        self._manager = manager
        self._client = {"name": client, "version": VERSION}
        self._asked = 0

    @property
    def session_id(self) -> str:
        """The name that logs and operators use."""
        return self.live.record.session_id

    def launch(self, face: Face) -> None:
        """Ask for the dyno.

        Raises:
            Busy, QueueFull, BudgetSpent: see `Manager.launch`.
        """
        self._manager.launch(self.live, face)

    @abstractmethod
    async def introduce(self) -> Raw:
        """Say who we are; return what the child says of itself.

        Raises:
            Refused: the child does not speak this era.
            GatewayError: it could not be asked.
        """

    async def ask(self, method: str, params: Mapping[str, Any], hear: Hear | None = None) -> Raw:
        """Return the result of a request; being cancelled cancels it.

        Several may be under way at the same time. A child that asks something itself is refused: a
        visitor declares no capabilities.

        Args:
            method: of the request.
            params: of the request.
            hear: takes its notifications; with it, progress is asked for.

        Raises:
            Refused: the child has answered with an error.
            GatewayError: it could not be asked, or the session has ended.
        """
        await self.live.room()
        if self.live.record.over:
            raise SessionEnded("the session has ended")
        self._asked += 1
        number = self._asked
        outbox = self.live.open_outbox(f"i{number}")
        answered = False
        try:
            self._send(number, method, params, outbox, progress=hear is not None)
            self.live.wake()
            while (item := await outbox.head()) is not None:
                with self.live.delivering(outbox.take()):
                    answered = item.last
                if answered:
                    return _result(item, method)
                self._hear(peek(item.raw), hear)
        finally:
            self.live.drop_outbox(outbox)
            if not answered:
                self._take_back(number)
        raise SessionEnded("the session has ended")

    async def list(self, method: str) -> Raw:
        """Return all pages of a list as one; see `Pages.merged`.

        Raises:
            Unlearnable: what the child answers is no list, or too much.
            Refused, GatewayError: see `ask`.
        """
        pages = Pages(method)
        cursor = pages.add(await self.ask(method, {}))
        while cursor is not None:
            cursor = pages.add(await self.ask(method, {"cursor": cursor}))
        return pages.merged()

    def end(self, reason: Reason, error: GatewayError) -> None:
        """Leave; the dyno goes."""
        self._manager.end(self.live, reason, error)

    def _hear(self, envelope: Envelope, hear: Hear | None) -> None:
        if envelope.kind is Kind.REQUEST:
            self._refuse(envelope)
        elif hear is not None:
            hear(envelope)

    @abstractmethod
    def _send(
        self, number: int, method: str, params: Mapping[str, Any], outbox: Outbox, *, progress: bool
    ) -> None:
        """Send a request whose answer comes to `outbox`."""

    @abstractmethod
    def _take_back(self, number: int) -> None:
        """Cancel a request."""

    @abstractmethod
    def _refuse(self, envelope: Envelope) -> None:
        """Answer what a child asks of its client."""


class _LegacyVisit(Visit):
    live: OwnedLive

    async def introduce(self) -> Raw:
        params = {
            "protocolVersion": HANDSHAKE[0],
            "capabilities": {},
            "clientInfo": self._client,
        }
        opening = await self.ask("initialize", params)
        self._notify("notifications/initialized", None)
        return opening

    def _send(
        self, number: int, method: str, params: Mapping[str, Any], outbox: Outbox, *, progress: bool
    ) -> None:
        meta = {"_meta": {"progressToken": number}} if progress else {}
        raw = request(number, method, {**params, **meta})
        self.live.request(peek(raw), raw, outbox, time.monotonic())

    def _take_back(self, number: int) -> None:
        if not self.live.record.over:
            with contextlib.suppress(GatewayError):  # it does not read: it hears nothing anyway
                self._notify("notifications/cancelled", {"requestId": number})

    def _refuse(self, envelope: Envelope) -> None:
        asked = envelope.request_id
        if envelope.method == "ping":
            raw = result_response(asked, {})
        else:
            raw = error_response(asked, UnknownMethod("this client has no such method"))
        self.live.session.respond(peek(raw), raw, time.monotonic())
        self.live.wake()

    def _notify(self, method: str, params: Mapping[str, Any] | None) -> None:
        raw = notification(method, params)
        _, deliveries = self.live.session.notify(peek(raw), raw, time.monotonic())
        self.live.perform(deliveries)
        self.live.wake()


class _ModernVisit(Visit):
    live: SharedLive

    async def introduce(self) -> Raw:
        opening = await self.ask("server/discover", {})
        if not _names_modern(opening):
            raise Refused("server/discover", 0, f"does not name {modern.REVISION}")
        return opening

    def _send(
        self, number: int, method: str, params: Mapping[str, Any], outbox: Outbox, *, progress: bool
    ) -> None:
        meta: dict[str, Any] = {
            modern.REVISION_KEY: modern.REVISION,
            modern.CAPABILITIES_KEY: {},
            modern.CLIENT_KEY: self._client,
        }
        if progress:
            meta["progressToken"] = number
        raw = request(number, method, {**params, "_meta": meta})
        asked = modern.read(peek(raw))
        self.live.session.request(asked, len(raw), outbox, time.monotonic(), None)

    def _take_back(self, number: int) -> None:
        """Nothing is left to do: dropping the outbox has cancelled it."""

    def _refuse(self, envelope: Envelope) -> None:
        """Children of this era ask in results only; what comes all the same is nobody's."""


async def begin(
    manager: Manager, server: ServerDefinition, era: Era, principal: str, client: str
) -> Visit:
    """Open a session of a principal with a server; `launch` and `introduce` come next.

    Args:
        manager: makes it.
        server: what to run.
        era: to be spoken.
        principal: whose it is.
        client: what the visitor calls itself.

    Raises:
        GatewayError: there can be none, see `Manager.open` and `Manager.share_anew`.
    """
    if era == "legacy":
        _, owned = manager.open(server, principal, client)
        owned.tied = True
        try:
            await manager.publish(owned)
        except asyncio.CancelledError:  # nobody else would end it
            manager.end(owned, Reason.CLIENT_GONE, SessionEnded("the visitor has left"))
            raise
        return _LegacyVisit(manager, owned, client)
    shared = await manager.share_anew(server, principal, client)
    shared.tied = True
    manager.ownership.changed(shared)
    return _ModernVisit(manager, shared, client)


class _Supported(msgspec.Struct):
    supportedVersions: list[str] = []  # noqa: N815 - the specification's spelling


_SUPPORTED = msgspec.json.Decoder(_Supported)


def _names_modern(opening: Raw) -> bool:
    try:
        return modern.REVISION in _SUPPORTED.decode(opening).supportedVersions
    except (msgspec.DecodeError, RecursionError):
        return False


def _result(item: Item, method: str) -> Raw:
    if item.error is not None:
        raise item.error
    envelope = peek(item.raw)
    if envelope.result is UNSET:
        code, message = error_of(envelope)
        raise Refused(method, code, message)
    return envelope.result
