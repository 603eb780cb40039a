"""One request through the router: two pumps and one deadline."""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from typing import TYPE_CHECKING

import h11

from tests.fakes.router import rules
from tests.fakes.router.rules import Cut, Limits, Record

if TYPE_CHECKING:
    from tests.fakes.router.peer import Peer

PIPELINED_BYTES = 64 * 1024
"""What a client may send ahead of its answer; then it is not listened to until the answer."""


class Phase(Enum):
    """What the router waits for."""

    REQUEST = auto()
    """The rest of the request; each byte of either side buys `idle_s`."""

    DYNO = auto()
    """The dyno's first byte, `first_byte_s`; nothing buys time."""

    RESPONSE = auto()
    """The rest of the response; each byte of either side buys `idle_s`."""

    TUNNEL = auto()
    """Nothing in particular: an upgraded connection; as RESPONSE."""


class Exchange:
    """One request and its response, between a client and a dyno.

    Args:
        client: has sent the request's head.
        dyno: a connection without an exchange.
        limits: the router's.
        record: written to as things happen.

    Attributes:
        answered: the head of a final response went to the client.
    """

    def __init__(self, client: Peer, dyno: Peer, limits: Limits, record: Record) -> None:
        self.answered = False
        self._client = client
        self._dyno = dyno
        self._limits = limits
        self._record = record
        self._phase = Phase.REQUEST
        self._sent_ahead = 0
        self._deadline = asyncio.timeout(None)

    async def run(self, head: h11.Request) -> None:
        """Carry the request to the dyno and the response back.

        Args:
            head: for the dyno.

        Raises:
            Cut: it did not end as it should.
        """
        cut: Cut | None = None
        try:
            async with self._deadline:
                self._allow(self._limits.idle_s)
                try:
                    async with asyncio.TaskGroup() as pumps:
                        up = pumps.create_task(self._up(head), name="router up")
                        await self._down()
                        up.cancel()
                except* Cut as cuts:
                    (cut, *_) = (each for each in cuts.exceptions if isinstance(each, Cut))
        except TimeoutError:
            raise self._overdue() from None
        if cut is not None:
            raise cut

    # Time

    def _allow(self, seconds: float) -> None:
        if not self._deadline.expired():
            self._deadline.reschedule(asyncio.get_running_loop().time() + seconds)

    def _heard(self, peer: Peer) -> None:
        if self._phase is Phase.DYNO:
            if peer is not self._dyno:
                return
            self._phase = Phase.RESPONSE
        self._allow(self._limits.idle_s)

    def _overdue(self) -> Cut:
        if self._phase is Phase.DYNO:
            return Cut("H12")
        waits_for_client = self._phase is Phase.REQUEST and not self._dyno.unsent
        return Cut("H28" if waits_for_client or self._client.unsent else "H15")

    # From the client to the dyno

    async def _up(self, head: h11.Request) -> None:
        await self._to_dyno(head)
        if self._client.http.they_are_waiting_for_100_continue:
            await self._to_client(h11.InformationalResponse(status_code=100, headers=[]))
        while True:
            event = await self._from_client()
            if isinstance(event, h11.EndOfMessage):
                break
            assert isinstance(event, h11.Data)
            await self._to_dyno(h11.Data(data=event.data))
        await self._to_dyno(event)
        if self._phase is Phase.REQUEST:
            self._phase = Phase.RESPONSE if self._dyno.spoke else Phase.DYNO
            spoke = self._phase is Phase.RESPONSE
            self._allow(self._limits.idle_s if spoke else self._limits.first_byte_s)
        await self._watch()

    async def _from_client(self) -> h11.Event:
        try:
            event = await self._client.event(self._heard)
        except h11.RemoteProtocolError:
            raise (self._left() if self._client.ended else Cut("H26", "bad chunk")) from None
        if isinstance(event, h11.ConnectionClosed):
            raise self._left()
        assert isinstance(event, h11.Data | h11.EndOfMessage)
        return event

    async def _watch(self) -> None:
        """See the client go; what it sends meanwhile is the tunnel's, or the next request."""
        while data := await self._client.read(self._heard):
            if self._phase is Phase.TUNNEL:
                await self._into_tunnel(data)
                continue
            self._client.http.receive_data(data)
            self._sent_ahead += len(data)
            if self._sent_ahead > PIPELINED_BYTES:
                return
        raise self._left()

    async def _into_tunnel(self, data: bytes) -> None:
        try:
            await self._dyno.write(data)
        except OSError:  # the other pump sees the dyno's end
            return

    def _left(self) -> Cut:
        return Cut(None) if self.answered else Cut("H27")

    async def _to_dyno(self, event: h11.Event) -> None:
        try:
            await self._dyno.send(event)
        except OSError:  # it may have answered nevertheless: what that means is the other pump's
            return

    # From the dyno to the client

    async def _down(self) -> None:
        while True:
            event = await self._from_dyno()
            if isinstance(event, h11.InformationalResponse):
                if event.status_code == 101:
                    await self._tunnel(event)
                    return
                if event.status_code != 100:  # the router has given its own
                    await self._to_client(event)
            elif isinstance(event, h11.Response):
                await self._answer(event)
            elif isinstance(event, h11.Data):
                self._record.bytes += len(event.data)
                await self._to_client(h11.Data(data=event.data))
            else:
                await self._to_client(event)
                return

    async def _from_dyno(self) -> h11.Event:
        dyno = self._dyno
        try:
            event = await dyno.event(self._heard)
        except h11.RemoteProtocolError as error:
            raise (self._broken_off() if dyno.ended else Cut("H17", str(error))) from None
        if isinstance(event, h11.ConnectionClosed):
            raise self._broken_off()
        assert isinstance(event, h11.Event)
        if isinstance(event, h11.Response | h11.InformationalResponse):
            rules.check_response(event, self._limits)
        return event

    def _broken_off(self) -> Cut:
        return Cut("H18") if self._dyno.spoke else Cut("H13")

    async def _answer(self, response: h11.Response) -> None:
        self.answered = True
        self._record.status = response.status_code
        await self._to_client(
            h11.Response(
                status_code=response.status_code,
                headers=rules.response_headers(response),
                reason=response.reason,
            )
        )

    async def _tunnel(self, accepted: h11.InformationalResponse) -> None:
        client, dyno = self._client, self._dyno
        self.answered = self._record.upgraded = True
        self._record.status = accepted.status_code
        await self._to_client(accepted)
        self._phase = Phase.TUNNEL
        ahead, _ = client.http.trailing_data
        await self._into_tunnel(ahead)
        data, _ = dyno.http.trailing_data
        while data or not dyno.ended:
            self._record.bytes += len(data)
            await self._deliver(data)
            data = await dyno.read(self._heard)

    async def _to_client(self, event: h11.Event) -> None:
        await self._deliver(self._client.http.send(event) or b"")

    async def _deliver(self, data: bytes) -> None:
        try:
            await self._client.write(data)
        except OSError:
            raise self._left() from None
