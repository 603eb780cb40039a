"""A session with its I/O: the pure `Session`, its current attachment, and its open outboxes.

No rule lives here; it moves bytes between the three, in order.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from dyno_agent.link import Channel, ChildSpec, CloseCode, Hello, LinkLost, Welcome
from dyno_agent.link.resumption import GENERAL, JournalPage
from gateway import events
from gateway.errors import GatewayError, Moved, Restarting
from gateway.jsonrpc import Envelope
from gateway.patience import patience
from gateway.sessions.delivery import Delivery
from gateway.sessions.lease import Lease
from gateway.sessions.owned import OwnedSession
from gateway.sessions.record import SessionRecord, State, Step
from gateway.sessions.session import Session
from gateway.sessions.shared import SharedSession
from gateway.sessions.streams import Item, Outbox

if TYPE_CHECKING:
    from gateway.eras.legacy import Opening

LADDER_S = 5.0
"""Kill ladder in the dyno, from the end of input to SIGKILL. Well inside the platform's 30 s."""

ROOM_S = 30.0
"""How long a client's message may wait for a child that does not read; see `patience` too."""

OUTBOX_BYTES = 8 * 1024 * 1024
"""What may lie behind the message that one of several callers is reading: half of what the link
lets through, so that the others go on."""

LARGE_BODIES = 2
"""Large messages of a client that are read at the same time."""


class Attachment(Protocol):
    """One WebSocket of an agent, as the session sees it."""

    async def send(self, frame: bytes) -> None:
        """Write one frame; a socket that is gone swallows it, the replay brings it back."""
        ...

    async def close(self, code: CloseCode) -> None:
        """Close with a code and its sentence."""
        ...

    def abort(self) -> None:
        """Drop the connection at once, for a peer that no longer answers."""
        ...


class Live:
    """One live session of this gateway.

    Attributes:
        session: the rules.
        lease: the clocks.
        launched: set once the launch has an outcome, good or bad.
        gone: set once the agent has left for good.
        left: when an agent was here last, monotonic.
        fresh: the session was rebuilt and has not heard its agent's journal yet.
        handed_over: another process has the session, or will have it.
        rebuilt: it continues one that has ended, and whose state is lost.
        contradicted: it was told that the child contradicts the catalogue.
        tied: it ends with the one connection of its client.
        opening: what its client has said, if a child has heard or will hear that from us.
        told: its client was answered from the catalogue.
        moved: another process holds it by now.
        soon: other processes serve, so clients of streams that end shall come back at once.
        expected: its agent is at the door, and has not been welcomed yet.
        epoch: number of the current attachment.
        claimed: fence that its claim is held under, as far as the store has said.
        large_bodies: to hold while a large message of the client is read.
    """

    def __init__(self, session: Session[Outbox], lease: Lease, emit: events.Sink) -> None:
        self.session = session
        self.lease = lease
        self.fresh = False
        self.handed_over = False
        self.rebuilt = self.contradicted = self.tied = False
        self.opening: Opening | None = None
        self.told = self.moved = self.expected = self.soon = False
        self.epoch = self.claimed = 0
        self.launched = asyncio.Event()
        self.gone = asyncio.Event()
        self.left: float | None = None
        self.large_bodies = asyncio.Semaphore(LARGE_BODIES)
        self._emit = emit
        self._attachment: Attachment | None = None
        self._wake = asyncio.Event()
        self._heard = asyncio.Event()
        self._outboxes: set[Outbox] = set()

    @property
    def record(self) -> SessionRecord:
        """The facts of the session."""
        return self.session.record

    # Client streams

    def open_outbox(
        self,
        label: str = "",
        *,
        resumable: bool = False,
        answers: int | None = 1,
        numbered: bool = True,
    ) -> Outbox:
        """Return a new outbox that ends with the session. See `Outbox`."""
        outbox = Outbox(
            label,
            since=self.session.position,
            resumable=resumable,
            answers=answers,
            numbered=numbered,
        )
        self._outboxes.add(outbox)
        return outbox

    def drop_outbox(self, outbox: Outbox) -> None:
        """The HTTP response is over: whatever was not written is given back to the link."""
        self._outboxes.discard(outbox)
        self.session.stream_gone(outbox, time.monotonic())
        for item in outbox.rest():
            self._give_back(item)
        self.perform(self.session.flush())
        self._wake_if_news()

    @contextlib.contextmanager
    def delivering(self, item: Item) -> Iterator[None]:
        """Write one delivery inside: it is consumed if that succeeds, and given back if not."""
        try:
            yield
        except BaseException:
            self._give_back(item)
            self._wake_if_news()
            raise
        self.session.delivered(item)
        self._wake_if_news()

    def doubt(self, _answer: Item) -> Callable[[], None]:
        """An answer was written, and yet its client may not have it; return what to do once it has.

        Until then a request that is sent again is not made again.
        """
        return _nothing

    def _give_back(self, item: Item) -> None:
        if item.notice or not item.stream.continued:
            self.session.undelivered(item)
        elif item.message is not None:
            self.session.link.consumed(item.message)

    def perform(self, deliveries: list[Delivery[Outbox]]) -> None:
        """Put deliveries into their outboxes."""
        if deliveries:
            self._wake_if_news()  # the agent is told where one goes before it goes there
            self._heard.set()
        for delivery in deliveries:
            if delivery.stream in self._outboxes:
                delivery.stream.put(delivery)
            else:
                self.session.undelivered(delivery)

    @property
    def may_be_handed_over(self) -> bool:
        """True when its agent can bring it to another process, where its client can follow."""
        return self.lease.booted and not self.tied

    @property
    def carried(self) -> bool:
        """True once an agent was welcomed: it brings the session along."""
        return self.record.state not in (State.REQUESTED, State.LAUNCHING)

    @property
    def movable(self) -> bool:
        """True when another process that knows its claim could go on with it, agent or not."""
        if self.tied:
            return False
        return self.lease.booted or self.opening is not None

    def hand_over(self) -> bool:
        """End the streams whose clients come back; return whether calls of others still run."""
        for outbox in [each for each in self._outboxes if each.resumable or not each.label]:
            self._close(outbox)
        return bool(self._outboxes)

    def _close(self, outbox: Outbox) -> None:
        outbox.close()
        self._outboxes.discard(outbox)
        self.session.stream_gone(outbox, time.monotonic())

    def leave(self) -> None:
        """Another process has the session: whoever waits here follows it, if that can be.

        Where a response has begun, its client comes back by itself if it can, and is told what has
        happened if it cannot.
        """
        self.handed_over = self.moved = self.soon = True
        self.hand_over()
        for outbox in [each for each in self._outboxes if self._follows(each)]:
            self._close(outbox)
        error = Restarting("the session has moved to another gateway process; send it again")
        self.fail(error, time.monotonic(), all_calls=False)

    def _follows(self, outbox: Outbox) -> bool:
        """Whether who waits there finds out by itself, and follows the session."""
        return not outbox.begun or outbox.numbered

    def abort(self) -> None:
        """Drop the connection of its agent, which is elsewhere."""
        if self._attachment is not None:
            self._attachment.abort()

    def gone_elsewhere(self) -> GatewayError:
        """Return what ends a request whose session is not here any more, before it was answered."""
        if self.moved:
            return Moved("the session has moved to another gateway process; send the request again")
        return Restarting("this gateway process is shutting down; send the request again")

    @property
    def telling(self) -> bool:
        """True while a response has begun that its client could not continue elsewhere."""
        return any(outbox.begun for outbox in self._outboxes)

    def fail(self, error: GatewayError, now: float, *, all_calls: bool = True) -> None:
        """Answer all running calls, or those that have a stream, and end all streams."""
        self.perform(self.session.fail(error, now, all_calls=all_calls))
        for outbox in self._outboxes:
            outbox.close()
        self._heard.set()

    def tell_phase(self, message: str) -> None:
        """Tell those who wait for the boot, and want progress, how far it is."""
        self.perform(self.session.phase(message))

    # The agent

    @property
    def arriving(self) -> bool:
        """True while it is being rebuilt: messages of its client have to wait."""
        return self.fresh or self.session.hydrating

    @property
    def attached(self) -> bool:
        """True while an agent holds the session."""
        return self._attachment is not None

    def holds(self, attachment: Attachment) -> bool:
        """True while this attachment is the current one; frames of any other are not heard."""
        return self._attachment is attachment

    def fence(self, attachment: Attachment) -> None:
        """Make this attachment the current one; from here on an older one delivers nothing."""
        older, self._attachment = self._attachment, attachment
        self.session.link.detach()
        self.epoch += 1
        if older is not None:
            older.abort()

    def welcome(self, hello: Hello, capsule: str) -> Welcome:
        """Return what to answer to a HELLO."""
        if self.fresh:
            held = (hello.held_bytes, hello.held_frames)
            self.session.link.adopt(hello.received, hello.confirmed, held)
        server = self.record.server
        spec = ChildSpec(
            (server.command, *server.args), dict(server.env), server.cwd, self.record.face
        )
        return Welcome(
            epoch=self.epoch,
            received=self.session.link.received,
            limits=self.session.link.limits,
            orphan_s=self.lease.grace_s,
            grace_s=LADDER_S,
            child=spec if hello.kind == "join" else None,
            fresh=self.fresh,
            capsule=capsule,
        )

    def attach(self, hello: Hello, journal: list[JournalPage], now: float) -> None:
        """Continue the link on the current attachment, after its WELCOME was written.

        Raises:
            ProtocolViolation: the agent claims what cannot be.
        """
        self.session.link.attach(hello.received, now)
        self.expected = False
        if self.fresh:
            self.fresh = False
            self.session.hydrate(journal, now)
            self.lease.booted = self.session.booted
        self.wake()
        record = self.record
        if record.state is State.LAUNCHING:
            record.move(Step.JOIN)
            self.tell_phase("the dyno has dialled in")
            self._emit(
                events.DialledIn(
                    session=record.session_id,
                    epoch=self.epoch,
                    agent=hello.agent,
                    python=hello.python,
                    boot_s=record.boot_s(now),
                )
            )
            return
        parted_s = 0.0  # the agent was quicker to notice than we were
        if self.lease.parted is not None:
            parted_s = round(now - self.lease.parted, 3)
            self.lease.parted = None
            record.move(Step.RESUME)
        self._emit(events.Resumed(session=record.session_id, epoch=self.epoch, parted_s=parted_s))

    def part(self, attachment: Attachment, cause: str, now: float) -> None:
        """This attachment is gone. Nothing happens when a newer one took over."""
        if self._attachment is not attachment:
            return
        self._attachment, self.left = None, now
        self.session.link.detach()
        if self.handed_over:
            return
        if self.record.over or self.session.ending is not None:
            self.gone.set()
            return
        if self.record.move(Step.PART):
            self.lease.parted = now
            self._emit(events.Parted(session=self.record.session_id, epoch=self.epoch, cause=cause))

    def wake(self) -> None:
        """Something may be written: let the attachment's writer look."""
        self._wake.set()

    async def write(self, attachment: Attachment) -> None:
        """Be the only writer of an attachment: frames when credit allows them, heartbeats in time.

        Returns when the agent was silent for too long, and the connection was dropped for it.
        """
        link = self.session.link
        while True:
            deadline = link.deadline()
            patience_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self._wake.wait()
            self._wake.clear()
            if self._attachment is not attachment:
                return
            try:
                frames = link.tick(time.monotonic())
            except LinkLost:
                attachment.abort()
                return
            while self._attachment is attachment:
                frames += link.frames_to_send(time.monotonic())
                if not frames:
                    break
                try:
                    async with asyncio.timeout(link.limits.dead_s):
                        for frame in frames:
                            await attachment.send(frame)
                except TimeoutError:  # it does not read, so it would not hear a heartbeat either
                    attachment.abort()
                    return
                frames = []

    def heard(self) -> None:
        """The agent acknowledged or sent something: who waits for room may look again."""
        self._heard.set()
        self._wake_if_news()

    async def _until_heard(self) -> None:
        self._heard.clear()
        await self._heard.wait()

    def _wake_if_news(self) -> None:
        if self.session.link.has_news:
            self._wake.set()

    async def room(self) -> None:
        """Wait until the link takes another message, for a bounded time.

        The caller finds out by trying: a session that stays full refuses with `Busy`.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience(ROOM_S)):
                while not self.session.link.writable and not self.record.over:
                    await self._until_heard()

    async def confirmed(self, ordinal: int, outbox: Outbox | None, patience_s: float) -> bool:
        """Wait until the agent has a message, or there is something to tell its client.

        Args:
            ordinal: of the message on the link's rpc channel.
            outbox: where the message is answered.
            patience_s: longest wait.

        Returns:
            Whether the agent has it: from then on it survives this process.
        """
        link = self.session.link
        probed = -1
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while link.taken(Channel.RPC) < ordinal and not self._left:
                    if outbox is not None and (outbox.answered or outbox.preface or outbox.closed):
                        break
                    if probed != link.taken(Channel.RPC):
                        probed = link.taken(Channel.RPC)
                        link.probe()
                        self.wake()
                    await self._until_heard()
        return link.taken(Channel.RPC) >= ordinal

    async def noted(self, item: Item) -> bool:
        """Wait until the agent knows where a message goes that names no call.

        Returns:
            Whether it may be written: not once another process decides about it.
        """
        link = self.session.link
        while link.taken(Channel.CMD) < item.noted and not self._left:
            await self._until_heard()
        return link.taken(Channel.CMD) >= item.noted or self.record.over

    @property
    def _left(self) -> bool:
        return self.record.over or self.handed_over

    def ask_to_stop(self) -> None:
        """Tell the agent to end its child and leave."""
        self.session.stop()
        self.wake()

    async def refuse(self, code: CloseCode) -> None:
        """Close the current attachment."""
        if self._attachment is not None:
            await self._attachment.close(code)


class OwnedLive(Live):
    """A live session whose child has one client."""

    session: OwnedSession[Outbox]

    def request(self, envelope: Envelope, raw: bytes, outbox: Outbox, now: float) -> int:
        """Take a request that `outbox` will answer; see `OwnedSession.request`.

        Returns:
            Its ordinal on the link.
        """
        ordinal, since = self.session.request(envelope, raw, outbox, now)
        outbox.since = since or 0
        if since is None and outbox.numbered:
            self._supersede(outbox, continued=True)
        return ordinal

    def doubt(self, answer: Item) -> Callable[[], None]:
        """See `Live.doubt`."""
        if answer.call is None:
            return _nothing
        self.session.doubt(answer.call)
        return functools.partial(self.session.believe, answer.call)

    def listen(self, outbox: Outbox, after: int | None) -> None:
        """Attach the stream of a GET: a new general one, or the rest of any that broke off.

        Args:
            outbox: of the stream.
            after: position of the last message that the client has of the one it continues.
        """
        where = None if outbox.label == GENERAL else outbox.label
        waiting = self.session.listen(outbox, where, after)
        self._supersede(outbox, continued=after is not None)
        self.perform(waiting)
        self.wake()

    def _supersede(self, outbox: Outbox, *, continued: bool) -> None:
        """Close the stream that this one replaces, though its call may be answered already."""
        for older in self._outboxes:
            if older is not outbox and older.label == outbox.label and not older.closed:
                older.continued = continued
                older.close()


class SharedLive(Live):
    """A live session whose child has several callers."""

    session: SharedSession[Outbox]

    @property
    def movable(self) -> bool:
        """See `Live.movable`; the one request that such a session was made for is here."""
        return super().movable or (not self.tied and self.record.server.isolation != "request")

    def hand_over(self) -> bool:
        """See `Live.hand_over`: nobody comes back here, but who only listens begins anew."""
        for outbox in [each for each in self._outboxes if not each.numbered]:
            self._close(outbox)
        return bool(self._outboxes)

    def _follows(self, outbox: Outbox) -> bool:
        """See `Live`; what an agent may have taken must not be asked twice."""
        return not outbox.begun or not self.carried

    def gone_elsewhere(self) -> GatewayError:
        """See `Live.gone_elsewhere`; what an agent may have taken must not be asked twice."""
        if self.moved and self.carried:
            return Restarting("the session has moved to another gateway process; send it again")
        return super().gone_elsewhere()

    def perform(self, deliveries: list[Delivery[Outbox]]) -> None:
        """Put deliveries into their outboxes; who lets too much lie there is cut off."""
        super().perform(deliveries)
        for delivery in deliveries:
            outbox = delivery.stream
            if outbox.waiting_bytes > OUTBOX_BYTES and not outbox.closed:
                outbox.close()
                self.drop_outbox(outbox)
                if outbox.cut is not None:
                    outbox.cut()  # what it was reading is given back as well, and all others go on


def _nothing() -> None:
    return
