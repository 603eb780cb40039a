"""The agent: link, dialer and child composed. The only file that knows all three.

Tasks, all of one TaskGroup: *hold* (dial, read, redial), *tend* (the only one that writes to the
socket), *feed* (messages to the child's stdin), *listen* (its stdout), *overhear* (its stderr),
*watch* (its exit). The reader never writes and never waits for the child: whatever the far end
does, acknowledgements keep moving, so the two sides cannot block each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import platform
import secrets
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from dyno_agent import __version__
from dyno_agent.child import PIPE_LINGER_S, Child, ExitReport, SpawnFailed
from dyno_agent.compat import TaskGroup, timeout
from dyno_agent.deadman import DeadMan
from dyno_agent.dialer import Abort, Attachment, Backoff, Elsewhere, Refused, Unreachable, dial
from dyno_agent.faces import FACES, Face, Moves
from dyno_agent.hardening import harden
from dyno_agent.link import (
    Channel,
    ChildSpec,
    CloseCode,
    Endpoint,
    Hello,
    LinkLost,
    Message,
    ProtocolViolation,
)
from dyno_agent.link.resumption import Replayed
from dyno_agent.retained import Retained
from dyno_agent.stdio import Oversized

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dyno_agent.config import Config

log = logging.getLogger("dyno_agent")

LOG_BACKLOG_BYTES = 256 * 1024
"""Log lines that may wait for the link; more are dropped and counted, so that a chatty child
cannot hold up its own answers."""

STABLE_S = 10.0
"""An attachment that held for so long was good: the next redial starts without a pause again."""

LAST_WORD_S = 5.0
"""How long the exit report may take to be acknowledged."""

NOT_STARTED = 127
NEVER_JOINED = 1


class Agent:
    """One dyno's worth of agent: joins once, spawns once, leaves with the child's status.

    Args:
        config: where and as whom to join.
        environment: what the child inherits; holds nothing of ours.
    """

    def __init__(self, config: Config, environment: Mapping[str, str]) -> None:
        self._config = config
        self._environment = environment
        self._boot_id = secrets.token_hex(16)
        self._resume_secret = secrets.token_urlsafe(32)
        self._deadman = DeadMan(config.start_deadline_s, parted=time.monotonic())
        self._attachment: Attachment | None = None
        self._wake = asyncio.Event()  # something may be sent now
        self._heard = asyncio.Event()  # the peer acknowledged or sent something
        self._let_go = asyncio.Event()  # the child has said something: its face may not hold now
        self._over = asyncio.Event()
        self._why_over = ""
        self._forsaken = False  # no gateway will ever hold this agent again
        self._dropped_lines = 0
        self._capsule = ""
        self._drop: Abort = lambda: None
        self._retained = Retained()

    async def run(self) -> int:
        """Join, serve until the end, and return the exit status for the dyno."""
        try:
            first = await self._join()
        except (Refused, Unreachable) as error:
            log.warning("could not join the gateway: %s", error)
            return NEVER_JOINED
        self._drop = lambda: None
        welcome = first.welcome
        if welcome.child is None:
            log.warning("the gateway did not say what to run")
            return NEVER_JOINED
        harden()
        self._grace_s = welcome.grace_s
        self._endpoint = Endpoint(welcome.limits, now=time.monotonic(), on_taken=self._gateway_took)
        self._inbox: asyncio.Queue[Message] = asyncio.Queue(welcome.limits.window_frames)
        async with TaskGroup() as tasks:
            link = [tasks.create_task(self._hold(first)), tasks.create_task(self._tend())]
            status = await self._serve(welcome.child)
            for task in link:
                task.cancel()
        return status

    def leave(self, why: str) -> None:
        """Ask the agent to end its child and go, for instance on SIGTERM."""
        if not self._over.is_set():
            self._why_over = why
            self._over.set()
            self._drop()

    # The link

    async def _join(self) -> Attachment:
        """Dial with the join token until welcomed or the start deadline is over."""
        backoff = Backoff()
        while True:
            try:
                return await dial(
                    self._config.url,
                    self._config.join_token,
                    self._hello("join"),
                    parked=self._parked,
                )
            except Unreachable as error:  # noqa: PERF203 - between two tries it waits
                self._deadman.lost(time.monotonic())
                backoff.elsewhere = isinstance(error, Elsewhere)
                pause_s = backoff.wait_s()
                if self._deadman.remaining(time.monotonic()) <= pause_s:
                    raise
                log.info("no gateway yet: %s; again in %.1f s", error, pause_s)
                await self._pause(pause_s)

    def _parked(self, abort: Abort) -> None:
        """The gateway lets this agent wait: somebody holds it, though it has no session yet."""
        if self._deadman.parted is not None:
            log.info("parked, until a session wants this dyno")
        self._deadman.attached(self._config.start_deadline_s)
        self._drop = abort
        harden()

    def _hello(self, kind: str) -> Hello:
        hello = Hello(
            kind="join",
            boot_id=self._boot_id,
            proof=hashlib.sha256(self._resume_secret.encode()).hexdigest(),
            agent=__version__,
            python=platform.python_version(),
            dyno=self._config.dyno,
        )
        if kind == "join":
            return hello
        held_bytes, held_frames = self._endpoint.held
        return replace(
            hello,
            kind="resume",
            received=self._endpoint.received,
            confirmed=self._endpoint.confirmed,
            held_bytes=held_bytes,
            held_frames=held_frames,
        )

    async def _hold(self, attachment: Attachment) -> None:
        """Read the link, and dial again when it is lost, until somebody says it is over."""
        try:
            backoff = Backoff()
            while True:
                began = time.monotonic()
                await self._read(attachment)
                if time.monotonic() - began >= STABLE_S:
                    backoff = Backoff()
                backoff.spread = attachment.drained
                attachment = await self._redial(backoff)
        except (Refused, ProtocolViolation) as error:
            log.warning("leaving: %s", error)
            self.leave("refused")
        except Unreachable as error:
            log.warning("leaving, after up to %.0f s: %s", self._deadman.allowance_s, error)
            self.leave("orphaned")
        self._forsaken = True
        self._heard.set()

    async def _read(self, attachment: Attachment) -> None:
        welcome = attachment.welcome
        self._capsule = welcome.capsule or self._capsule
        if welcome.fresh:
            await self._tell_all(attachment)
        self._endpoint.attach(welcome.received, time.monotonic())
        self._deadman.attached(welcome.orphan_s)
        self._attachment = attachment
        self._wake.set()
        log.info("attached, epoch %d%s", welcome.epoch, ", from the capsule" * welcome.fresh)
        try:
            async for data in attachment.frames():
                message = self._endpoint.receive(data, time.monotonic())
                self._heard.set()
                self._wake.set()
                if message is not None:
                    self._take(message)
        except ProtocolViolation:
            await attachment.close(CloseCode.PROTOCOL_VIOLATION)
            raise
        finally:
            self._attachment = None
            self._endpoint.detach()
            self._deadman.lost(time.monotonic())

    async def _tell_all(self, attachment: Attachment) -> None:
        """Tell a gateway that knows nothing of this session what is under way."""
        self._endpoint.peer_restarted()
        unconfirmed = self._endpoint.unconfirmed(Channel.RPC)
        for page in self._retained.journal(unconfirmed, time.monotonic()):
            await attachment.send(page)

    async def _redial(self, backoff: Backoff) -> Attachment:
        credential = f"rr_{self._config.launch_id}.{self._resume_secret}"
        while True:
            pause_s = backoff.wait_s()
            if self._deadman.remaining(time.monotonic()) <= pause_s:
                raise Unreachable("orphaned")
            await asyncio.sleep(pause_s)
            try:
                hello = self._hello("resume")
                return await dial(self._config.url, credential, hello, self._capsule)
            except Unreachable as error:
                backoff.elsewhere = isinstance(error, Elsewhere)
                log.info("redial failed: %s", error)

    async def _pause(self, pause_s: float) -> None:
        """Sleep before the next join.

        Raises:
            Unreachable: the agent was asked to leave meanwhile.
        """
        with contextlib.suppress(TimeoutError):
            async with timeout(pause_s):
                await self._over.wait()
            raise Unreachable(self._why_over)

    def _take(self, message: Message) -> None:
        if message.channel is Channel.RPC:
            self._retained.given(message.payload, time.monotonic())
            self._inbox.put_nowait(message)  # bounded by the credit window
            return
        self._endpoint.consumed(message)
        if message.channel is not Channel.CMD:
            return
        command = _command(message.payload)
        do = command.get("do")
        if do == "stop":
            self.leave("stop")
        elif do == "routed" and _names(command, "seq", "at"):
            self._retained.routed(command["seq"], _label(command["to"]), command["at"])
        elif do == "replay" and _names(command, "ticket", "after"):
            self._replay(command["ticket"], _label(command["to"]), command["after"])
        else:
            log.info("a later gateway wants what this agent cannot do: %.80s", command)

    def _replay(self, ticket: int, where: str | None, after: int) -> None:
        """Send again what a client stream has missed, and say that this was all."""
        unconfirmed = self._endpoint.unconfirmed(Channel.RPC)
        wanted, held = self._retained.replay(where, after, unconfirmed, time.monotonic())
        for position, payload in wanted:
            self._endpoint.send(Channel.REPLAY, Replayed(ticket, position, payload).encode())
        end = Replayed(ticket, 0, b"held" if held else b"")
        self._endpoint.send(Channel.REPLAY, end.encode())
        self._wake.set()

    def _gateway_took(self, message: Message) -> None:
        if message.channel is Channel.RPC:
            self._retained.taken(message, time.monotonic())

    async def _tend(self) -> None:
        """Write whenever there is something, credit allows it, or a heartbeat is due."""
        while True:
            deadline = self._endpoint.deadline()
            patience = None if deadline is None else max(0.0, deadline - time.monotonic())
            with contextlib.suppress(TimeoutError):
                async with timeout(patience):
                    await self._wake.wait()
            self._wake.clear()
            if self._attachment is not None:
                await self._write(self._attachment)

    async def _write(self, attachment: Attachment) -> None:
        """Write all that may go out now. Frames that a lost socket swallows are replayed."""
        try:
            frames = self._endpoint.tick(time.monotonic())
        except LinkLost as lost:
            log.warning("attachment lost: %s", lost)
            await attachment.close(CloseCode.HEARTBEAT_LOST)
            return
        while self._attachment is attachment:
            frames += self._endpoint.frames_to_send(time.monotonic())
            if not frames:
                return
            try:
                async with timeout(self._endpoint.limits.dead_s):
                    for frame in frames:
                        await attachment.send(frame)
            except TimeoutError:
                log.warning("attachment lost: the gateway does not read")
                attachment.abort()
                return
            frames = []

    def _send(self, channel: Channel, document: dict[str, object]) -> None:
        self._endpoint.send(channel, json.dumps(document).encode())
        self._wake.set()

    async def _until_heard(self) -> None:
        self._heard.clear()
        await self._heard.wait()

    # The child

    async def _serve(self, spec: ChildSpec) -> int:
        """Run the child to its end and report it. Returns the dyno's exit status."""
        try:
            child = await Child.spawn(spec, self._environment)
        except SpawnFailed as failure:
            log.warning("%s", failure)
            self._send(Channel.EVENT, {"event": "spawn_failed", "message": str(failure)})
            await self._last_word()
            return NOT_STARTED
        self._send(Channel.EVENT, {"event": "spawned", "pid": child.pid})
        report = await self._relay(child, FACES[spec.face]())
        with contextlib.suppress(TimeoutError):
            # The report is urgent and would overtake answers that still wait for credit.
            async with timeout(LAST_WORD_S):
                while self._endpoint.backlog(Channel.RPC) and not self._forsaken:
                    await self._until_heard()
        self._send(Channel.EVENT, {"event": "exited", "why": self._why_over, **asdict(report)})
        await self._last_word()
        return report.status

    async def _relay(self, child: Child, face: Face) -> ExitReport:
        """Move messages both ways until the child exits or must go."""
        async with TaskGroup() as tasks:
            feed = tasks.create_task(self._feed(child, face))
            listen = tasks.create_task(self._listen(child, face))
            overhear = tasks.create_task(self._overhear(child))
            watch = tasks.create_task(self._watch(child))
            await self._over.wait()
            await child.end(self._grace_s)
            await asyncio.wait((listen, overhear), timeout=PIPE_LINGER_S)
            for task in (feed, listen, overhear, watch):
                task.cancel()
        child.close()
        return child.report()

    async def _watch(self, child: Child) -> None:
        await child.wait()
        self.leave("exit")

    async def _feed(self, child: Child, face: Face) -> None:
        reading = True
        while True:
            message = await self._inbox.get()
            while face.holding:
                self._let_go.clear()
                await self._let_go.wait()
            moves = face.from_gateway(message.payload)
            self._tell(moves)
            for line in moves.to_child:
                if reading and not await child.write(line):
                    reading = False
                    log.warning("the child closed its stdin")
            self._endpoint.consumed(message)
            self._wake.set()

    async def _listen(self, child: Child, face: Face) -> None:
        limit = self._endpoint.limits.message_bytes
        understood = False
        async for lines in child.messages(limit):
            for line in lines:
                if isinstance(line, Oversized):
                    self._send(
                        Channel.EVENT,
                        {"event": "oversized", "bytes": line.size, "limit": limit},
                    )
                    continue
                moves = face.from_child(line)
                self._tell(moves)
                if not understood and (moves.to_gateway or moves.to_child):
                    understood = True
                    self._send(Channel.EVENT, {"event": "spoke"})
                for own in moves.to_child:
                    await child.slip(own)
            self._wake.set()
            self._let_go.set()
            while not self._endpoint.writable:
                await self._until_heard()

    def _tell(self, moves: Moves) -> None:
        for line in moves.to_gateway:
            self._endpoint.send(Channel.RPC, line)

    async def _overhear(self, child: Child) -> None:
        async for line in child.stderr_lines():
            if self._endpoint.backlog(Channel.LOG) > LOG_BACKLOG_BYTES:
                self._dropped_lines += 1
                continue
            record: dict[str, object] = {"stderr": line}
            if self._dropped_lines:
                record["dropped"], self._dropped_lines = self._dropped_lines, 0
            self._send(Channel.LOG, record)

    async def _last_word(self) -> None:
        """Wait until the gateway has taken over everything, then close."""
        with contextlib.suppress(TimeoutError):
            async with timeout(LAST_WORD_S):
                while not self._endpoint.settled and not self._forsaken:
                    await self._until_heard()
        if self._attachment is not None:
            await self._attachment.close(CloseCode.NORMAL)


def _label(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _command(payload: bytes) -> dict[str, Any]:
    """Read what the gateway wants done; a later gateway may want what this agent cannot do."""
    try:
        document = json.loads(payload)
    except ValueError as error:
        raise ProtocolViolation("a command that is not JSON") from error
    return document if isinstance(document, dict) else {}


def _names(command: dict[str, Any], *numbers: str) -> bool:
    """Tell whether a command says to which stream, and holds these numbers."""
    return "to" in command and all(isinstance(command.get(name), int) for name in numbers)
