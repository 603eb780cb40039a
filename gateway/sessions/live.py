"""A session with its I/O: the pure `Session`, its current attachment, and its open outboxes.

No rule lives here; it moves bytes between the three, in order.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from typing import Protocol

from dyno_agent.link import Channel, ChildSpec, CloseCode, Hello, LinkLost, Welcome
from gateway import events
from gateway.errors import GatewayError
from gateway.sessions.lease import Lease
from gateway.sessions.record import SessionRecord, State, Step
from gateway.sessions.session import Delivery, Session
from gateway.sessions.streams import Item, Outbox

LADDER_S = 5.0
"""Kill ladder in the dyno, from the end of input to SIGKILL. Well inside the platform's 30 s."""

ROOM_S = 30.0
"""How long a client's message may wait for a child that does not read."""


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
    """

    def __init__(self, session: Session[Outbox], lease: Lease, emit: events.Sink) -> None:
        self.session = session
        self.lease = lease
        self.launched = asyncio.Event()
        self.gone = asyncio.Event()
        self._emit = emit
        self._attachment: Attachment | None = None
        self._epoch = 0
        self._wake = asyncio.Event()
        self._heard = asyncio.Event()
        self._outboxes: set[Outbox] = set()

    @property
    def record(self) -> SessionRecord:
        """The facts of the session."""
        return self.session.record

    # Client streams

    def open_outbox(self) -> Outbox:
        """Return a new outbox that ends with the session."""
        outbox = Outbox()
        self._outboxes.add(outbox)
        return outbox

    def drop_outbox(self, outbox: Outbox) -> None:
        """The HTTP response is over: whatever was not written is given back to the link."""
        self._outboxes.discard(outbox)
        self.session.stream_gone(outbox)
        for item in outbox.rest():
            self.session.undelivered(item)
        self._wake_if_news()

    @contextlib.contextmanager
    def delivering(self, item: Item) -> Iterator[None]:
        """Write one delivery inside: it is consumed if that succeeds, and given back if not."""
        try:
            yield
        except BaseException:
            self.session.undelivered(item)
            self._wake_if_news()
            raise
        if item.message is not None:
            self.session.link.consumed(item.message)
            self._wake_if_news()

    def perform(self, deliveries: list[Delivery[Outbox]]) -> None:
        """Put deliveries into their outboxes."""
        for delivery in deliveries:
            if delivery.stream in self._outboxes:
                delivery.stream.put(delivery)
            else:
                self.session.undelivered(delivery)

    def fail(self, error: GatewayError, now: float) -> None:
        """Answer all running calls with the error and end all streams."""
        self.perform(self.session.fail(error, now))
        for outbox in self._outboxes:
            outbox.close()
        self._heard.set()

    # The agent

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
        self._epoch += 1
        if older is not None:
            older.abort()

    def welcome(self, hello: Hello) -> Welcome:
        """Return what to answer to a HELLO."""
        server = self.record.server
        spec = ChildSpec((server.command, *server.args), dict(server.env), server.cwd)
        return Welcome(
            epoch=self._epoch,
            received=self.session.link.received,
            limits=self.session.link.limits,
            orphan_s=self.lease.grace_s,
            grace_s=LADDER_S,
            child=spec if hello.kind == "join" else None,
        )

    def attach(self, hello: Hello, now: float) -> None:
        """Continue the link on the current attachment, after its WELCOME was written.

        Raises:
            ProtocolViolation: the agent claims what cannot be.
        """
        self.session.link.attach(hello.received, now)
        self.wake()
        record = self.record
        if record.state is State.LAUNCHING:
            record.move(Step.JOIN)
            self._emit(
                events.DialledIn(
                    session=record.session_id,
                    epoch=self._epoch,
                    agent=hello.agent,
                    python=hello.python,
                    boot_s=round(now - record.created, 3),
                )
            )
        elif self.lease.parted is not None:
            parted_s = round(now - self.lease.parted, 3)
            self.lease.parted = None
            record.move(Step.RESUME)
            self._emit(
                events.Resumed(session=record.session_id, epoch=self._epoch, parted_s=parted_s)
            )

    def part(self, attachment: Attachment, cause: str, now: float) -> None:
        """This attachment is gone. Nothing happens when a newer one took over."""
        if self._attachment is not attachment:
            return
        self._attachment = None
        self.session.link.detach()
        if self.record.over or self.session.ending is not None:
            self.gone.set()
            return
        if self.record.move(Step.PART):
            self.lease.parted = now
            self._emit(
                events.Parted(session=self.record.session_id, epoch=self._epoch, cause=cause)
            )

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
                frames = link.tick(time.monotonic()) + link.frames_to_send(time.monotonic())
            except LinkLost:
                attachment.abort()
                return
            for frame in frames:
                await attachment.send(frame)

    def heard(self) -> None:
        """The agent acknowledged or sent something: who waits for room may look again."""
        self._heard.set()
        self._wake_if_news()

    def _wake_if_news(self) -> None:
        if self.session.link.has_news:
            self._wake.set()

    async def room(self) -> None:
        """Wait until the link takes another message, for a bounded time.

        The caller finds out by trying: a session that stays full refuses with `Busy`.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ROOM_S):
                while not self.session.link.writable and not self.record.over:
                    self._heard.clear()
                    await self._heard.wait()

    def ask_to_stop(self) -> None:
        """Tell the agent to end its child and leave."""
        self.session.link.send(Channel.CMD, json.dumps({"do": "stop"}).encode())
        self.wake()

    async def refuse(self, code: CloseCode) -> None:
        """Close the current attachment for good."""
        if self._attachment is not None:
            await self._attachment.close(code)
