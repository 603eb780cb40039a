"""One session on a hostile wire: clients, a gateway that crashes, the agent's memory, a child.

A state machine drives the real session, live, link and agent parts (no socket, no clock, no
process). Streams break after any part of what was written was seen, some of it unnoticed; the link
is lost; the gateway's process is gone and a fresh one learns from the agent. Clients do what the
SDKs do: they come back with the id of the last event they saw, or send a request again if they saw
none. Every run ends with quiet, after which each client must have everything exactly once.

HYPOTHESIS_PROFILE=nightly runs a longer, random search; the default one is the same every time.
"""

import asyncio
import json
import os
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
    run_state_machine_as_test,
)

from dyno_agent.agent import Agent
from dyno_agent.config import Config
from dyno_agent.link import Channel, CloseCode, Endpoint, Limits
from dyno_agent.link.limits import FRAGMENT_BYTES, REPLAY_HEAD_BYTES
from dyno_agent.link.resumption import GENERAL, JournalPage, label
from gateway.errors import BadMessage, DuplicateId
from gateway.jsonrpc import peek
from gateway.registry.servers import ServerDefinition
from gateway.sessions.backlog import BACKLOG_MESSAGES
from gateway.sessions.lease import Lease
from gateway.sessions.live import OwnedLive
from gateway.sessions.owned import OwnedSession
from gateway.sessions.record import SessionRecord, State
from gateway.sessions.streams import Item, Outbox

PROFILES = {
    "default": settings(max_examples=400, stateful_step_count=50, derandomize=True, database=None),
    "nightly": settings(max_examples=10_000, stateful_step_count=100, print_blob=True),
}
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "default")

LIMITS = Limits(
    message_bytes=4096,
    window_bytes=4096 + REPLAY_HEAD_BYTES + FRAGMENT_BYTES,
    window_frames=12,
    ack_bytes=1000,
    ack_frames=4,
)
"""So few frames that the window is full now and then."""

MAX_OTHERS = BACKLOG_MESSAGES - 4
"""Messages that name no call, in one run: all of them fit into the backlog."""

SERVER = ServerDefinition(name="everything", command="server")
HOURS = 1e9
counts = st.integers(0, 5)
picks = st.integers(0, 7)


def document(**keys: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **keys}, separators=(",", ":")).encode()


class Wire:
    """The socket as the session sees it; nobody listens to how it is closed."""

    async def send(self, frame: bytes) -> None:
        raise AssertionError("this machine writes frames itself")

    async def close(self, code: CloseCode) -> None:
        raise AssertionError("this machine never lets a session end")

    def abort(self) -> None:
        """Drop what cannot be heard any more."""


@dataclass(eq=False)
class Stream:
    """One HTTP response: what the gateway has written and the client has not seen yet."""

    outbox: Outbox
    primed: bool
    ordinal: int = 0
    pipe: deque[tuple[int, bytes, bool]] = field(default_factory=deque)
    in_vain: bool = False  # its client has seen no id, so it cannot ask for what was written


@dataclass(eq=False)
class Asker:
    """A client's call, or its general stream, over all the streams that it takes.

    Attributes:
        request: what to send again; None for the general stream.
        last: id of the last event seen; None before any.
        seen: numbers that the child gave to its messages, in order.
        said: numbers of the messages that name this call, in the child's order.
        said_before: the same of an answered run, when its client saw nothing and asked again.
    """

    where: str
    request: bytes | None
    last: int | None = None
    stream: Stream | None = None
    seen: list[int] = field(default_factory=list)
    said: list[int] = field(default_factory=list)
    said_before: set[int] = field(default_factory=set)
    answered: bool = False
    ran_again: bool = False
    runs: bool = False


class World(RuleBasedStateMachine):
    """Everything around one session. `wired` tells whether frames written now can arrive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.wired = self.fresh = False
        self.number = 0
        self.agent = Agent(Config("http://127.0.0.1:1", "rj_launch.secret", 60.0, ""), {})
        self.agent_end = Endpoint(LIMITS, now=0.0, on_taken=self.agent._gateway_took)
        self.agent._endpoint = self.agent_end
        self.agent._inbox = asyncio.Queue(LIMITS.window_frames)
        self.agent._send(Channel.EVENT, {"event": "spawned", "pid": 1})
        self.to_agent: deque[bytes] = deque()
        self.to_gateway: deque[bytes] = deque()
        self.calls: list[Asker] = []
        self.general = Asker(GENERAL, None)
        self.unnoticed: list[Stream] = []
        self.others: Counter[int] = Counter()  # how often a client saw what names no call
        self.excused: set[int] = set()
        self.taken_back: set[int] = set()  # from streams of which nothing was seen
        self.asked: dict[int, int] = {}  # asks seen and not surely answered: ordinal of the answer
        self.open_asks: set[int] = set()
        self.answers: Counter[int] = Counter()  # as the child got them
        self.live = self.process(State.LAUNCHING)
        self.attachment = Wire()
        self.dial()

    # Processes

    @staticmethod
    def ignore(event: object) -> None:
        """Nobody reads the log here."""

    def process(self, state: State) -> OwnedLive:
        record = SessionRecord("s-1", "fingerprint", "me", SERVER, 0.0, state=state)
        lease = Lease(0.0, HOURS, HOURS, HOURS, HOURS, active=0.0)
        link = Endpoint(LIMITS, now=self.now)
        session: OwnedSession[Outbox] = OwnedSession(record, link, self.ignore, HOURS)
        return OwnedLive(session, lease, self.ignore)

    @property
    def link(self) -> Endpoint:
        return self.live.session.link

    def dial(self, *, journal_is_lost: bool = False, welcome_is_lost: bool = False) -> None:
        """Shake hands as the rendezvous and the agent do."""
        self.agent_end.detach()
        kind = "join" if self.live.record.state is State.LAUNCHING else "resume"
        hello = self.agent._hello(kind)
        self.live.part(self.attachment, "cut", self.now)
        self.attachment = Wire()
        self.live.fence(self.attachment)
        welcome = self.live.welcome(hello, "capsule")
        if welcome_is_lost:
            return
        pages = []
        if welcome.fresh:
            self.agent_end.peer_restarted()
            unconfirmed = self.agent_end.unconfirmed(Channel.RPC)
            pages = self.agent._retained.journal(unconfirmed, time.monotonic())
        self.agent_end.attach(welcome.received, self.now)
        if welcome.fresh and journal_is_lost:
            return
        self.live.attach(hello, [JournalPage.decode(page) for page in pages], self.now)
        self.fresh, self.wired = False, True

    # The wire

    @rule()
    def agent_writes(self) -> None:
        frames = self.agent_end.frames_to_send(self.now)
        self.to_gateway.extend(frames if self.wired else [])

    @rule()
    def gateway_writes(self) -> None:
        frames = self.link.frames_to_send(self.now)
        self.to_agent.extend(frames if self.wired else [])

    @rule(count=counts)
    def agent_reads(self, count: int) -> None:
        for _ in range(min(count, len(self.to_agent))):
            message = self.agent_end.receive(self.to_agent.popleft(), self.now)
            if message is not None:
                self.agent._take(message)

    @rule(count=counts)
    def gateway_reads(self, count: int) -> None:
        for _ in range(min(count, len(self.to_gateway))):
            frame = self.to_gateway.popleft()
            self.live.perform(self.live.session.receive(frame, self.now))

    @precondition(lambda self: not self.fresh)
    @rule()
    def everything_moves(self) -> None:
        for _ in range(2):
            self.agent_writes()
            self.gateway_writes()
            self.agent_reads(len(self.to_agent))
            self.gateway_reads(len(self.to_gateway))

    @precondition(lambda self: self.wired)
    @rule(agents=counts, gateways=counts)
    def lose_the_link(self, agents: int, gateways: int) -> None:
        """What a socket already holds is still read before the next dial."""
        self.wired = False
        self.to_agent = deque(list(self.to_agent)[:agents])
        self.to_gateway = deque(list(self.to_gateway)[:gateways])

    @precondition(lambda self: not self.wired)
    @rule(welcome_is_lost=st.booleans(), journal_is_lost=st.booleans())
    def redial(self, *, welcome_is_lost: bool, journal_is_lost: bool) -> None:
        self.agent_reads(len(self.to_agent))
        self.gateway_reads(len(self.to_gateway))
        self.dial(welcome_is_lost=welcome_is_lost, journal_is_lost=journal_is_lost)

    @rule(agents=counts, seen=counts)
    def crash(self, agents: int, seen: int) -> None:
        """The gateway's process is gone, with every stream and all that it held."""
        if self.wired:
            self.lose_the_link(agents, 0)
        self.to_gateway.clear()
        for asker in [*self.calls, self.general]:
            if asker.stream is not None:
                self.see(asker, seen)
            if (stream := self.part(asker)) is not None:
                self.unnoticed.append(stream)
        for stream in self.unnoticed:
            self.excuse(stream, others_in(stream.outbox.rest()))
        self.unnoticed.clear()
        self.excused |= self.taken_back
        for ask, ordinal in list(self.asked.items()):
            if ordinal > self.link.taken(Channel.RPC):
                self.asked[ask] = 0  # no 202 came: it will be sent again
            elif ordinal:
                del self.asked[ask]
        self.live = self.process(State.PARTED)
        self.live.lease.parted = self.now
        self.live.fresh = self.fresh = True

    # The child

    @rule(count=counts)
    def child_reads(self, count: int) -> None:
        for _ in range(min(count, self.agent._inbox.qsize())):
            message = self.agent._inbox.get_nowait()
            self.child_gets(json.loads(message.payload))
            self.agent_end.consumed(message)

    def child_gets(self, found: dict[str, int]) -> None:
        if "method" in found:
            call = self.calls[found["id"]]
            assert not call.runs, "the same request runs twice"
            call.runs = True
            call.ran_again |= bool(call.said)
            call.said_before.update(call.said)
            call.said.clear()
        else:
            assert found["id"] in self.open_asks, "an answer to what was not asked, or a second one"
            self.answers[found["id"]] += 1
            self.open_asks.discard(found["id"])

    @property
    def running(self) -> list[Asker]:
        return [call for call in self.calls if call.runs]

    def say(self, **keys: object) -> int:
        self.number += 1
        self.agent_end.send(Channel.RPC, document(**keys, n=self.number))
        return self.number

    @precondition(lambda self: self.running)
    @rule(pick=picks)
    def child_reports_progress(self, pick: int) -> None:
        call = self.running[pick % len(self.running)]
        token = self.calls.index(call)
        params = {"progressToken": token}
        call.said.append(self.say(method="notifications/progress", params=params))

    @precondition(lambda self: self.running)
    @rule(pick=picks)
    def child_answers(self, pick: int) -> None:
        call = self.running[pick % len(self.running)]
        call.said.append(self.say(id=self.calls.index(call), result={}))
        call.runs = False

    @precondition(lambda self: len(self.others) < MAX_OTHERS)
    @rule()
    def child_notifies(self) -> None:
        self.others[self.say(method="notifications/message")] = 0

    @precondition(lambda self: len(self.others) < MAX_OTHERS)
    @rule()
    def child_asks(self) -> None:
        number = self.say(id=self.number + 1, method="sampling/createMessage")
        self.others[number] = 0
        self.open_asks.add(number)

    # The clients

    @precondition(lambda self: not self.fresh and len(self.calls) < 6)
    @rule()
    def client_calls(self) -> None:
        number = len(self.calls)
        params = {"_meta": {"progressToken": number}}
        request = document(id=number, method="tools/call", params=params)
        self.calls.append(Asker(label(number), request))
        self.come_back(self.calls[-1])

    @precondition(lambda self: self.wired and len(self.calls) < 6)
    @rule(seen=counts)
    def client_calls_what_reports_progress(self, seen: int) -> None:
        """The way to the middle of a call, in one step."""
        self.client_calls()
        self.everything_moves()
        self.child_reads(self.agent._inbox.qsize())
        self.everything_moves()
        for _ in range(2):
            if self.calls[-1].runs:
                self.child_reports_progress(len(self.running) - 1)
        self.everything_moves()
        if self.calls[-1].stream is not None:
            self.write(self.calls[-1].stream, 5)
        self.see(self.calls[-1], seen)

    @precondition(lambda self: not self.fresh and self.calls)
    @rule(pick=picks)
    def client_comes_back(self, pick: int) -> None:
        self.come_back(self.calls[pick % len(self.calls)])

    @precondition(lambda self: not self.fresh)
    @rule()
    def client_listens(self) -> None:
        self.come_back(self.general)

    def come_back(self, asker: Asker) -> None:
        """Continue after the last event that was seen, or begin (again) if there was none."""
        if asker.stream is not None or asker.answered:
            return
        outbox = self.live.open_outbox(asker.where, resumable=True)
        stream = Stream(outbox, primed=asker.last is not None)
        try:
            self.attach_stream(asker, stream)
        except DuplicateId:  # the gateway has not noticed yet that its first stream is gone
            self.live.drop_outbox(outbox)
            return
        asker.stream = stream

    def attach_stream(self, asker: Asker, stream: Stream) -> None:
        if asker.request is not None and asker.last is None:
            stream.ordinal = self.live.request(
                peek(asker.request), asker.request, stream.outbox, self.now
            )
            return
        self.live.listen(stream.outbox, asker.last)
        if asker.request is None:
            stream.primed = stream.primed or self.prime(stream)

    def prime(self, stream: Stream) -> bool:
        stream.pipe.append((stream.outbox.since, b"", False))
        return True

    def open_streams(self) -> list[Asker]:
        return [asker for asker in [*self.calls, self.general] if asker.stream is not None]

    @precondition(lambda self: self.open_streams())
    @rule(pick=picks, count=counts)
    def gateway_answers(self, pick: int, count: int) -> None:
        """Write to one response, as the edge does: the first event promises that the call lives."""
        asker = self.open_streams()[pick % len(self.open_streams())]
        if asker.stream is not None:
            self.write(asker.stream, count)

    @precondition(lambda self: self.unnoticed)
    @rule(pick=picks, count=counts)
    def gateway_answers_nobody(self, pick: int, count: int) -> None:
        self.write(self.unnoticed[pick % len(self.unnoticed)], count)

    def write(self, stream: Stream, count: int) -> None:
        outbox = stream.outbox
        if not stream.primed:
            answered = outbox.ready and outbox._items[0].last
            if not answered and self.link.taken(Channel.RPC) < stream.ordinal:
                return
            stream.primed = self.prime(stream)
        for _ in range(count):
            if not outbox.ready:
                return
            if self.link.taken(Channel.CMD) < outbox._items[0].noted:
                return  # the agent shall know where it goes before it goes there
            item = outbox.take()
            with self.live.delivering(item):
                assert item.error is None, item.error
                if item.raw:
                    stream.pipe.append((item.position, item.raw, item.last))
                    self.excuse(stream)
            if item.last:
                self.live.drop_outbox(outbox)
                return

    @precondition(lambda self: self.open_streams())
    @rule(pick=picks, count=counts)
    def client_sees(self, pick: int, count: int) -> None:
        self.see(self.open_streams()[pick % len(self.open_streams())], count)

    def see(self, asker: Asker, count: int) -> None:
        stream = asker.stream
        while stream is not None and count and stream.pipe:
            count -= 1
            place, raw, last = stream.pipe.popleft()
            if raw and not place:
                continue  # the gateway's own word about the boot
            assert asker.last is None or place > asker.last, "positions only rise"
            asker.last = place
            if raw:
                self.look_at(asker, raw)
            if last:
                asker.answered, asker.stream = True, None
                return

    def look_at(self, asker: Asker, raw: bytes) -> None:
        number = number_in(raw)
        if names_no_call(raw):
            self.others[number] += 1
            assert self.others[number] == 1, "told twice"
            if number in self.open_asks:
                self.asked.setdefault(number, 0)
            return
        assert number in asker.said or number in asker.said_before, "somebody else's"
        assert number > max(asker.seen, default=0), "twice, or out of order"
        asker.seen.append(number)

    def part(self, asker: Asker) -> Stream | None:
        stream, asker.stream = asker.stream, None
        if stream is not None:
            stream.in_vain = asker.last is None
            self.excuse(stream)
        return stream

    def excuse(self, stream: Stream, waiting: Iterable[bytes] = ()) -> None:
        """What was meant for a client that has seen nothing of the stream: it begins another."""
        if stream.in_vain:
            meant = [*waiting, *(raw for _, raw, _ in stream.pipe if raw and names_no_call(raw))]
            self.excused.update(map(number_in, meant))

    @precondition(lambda self: self.open_streams())
    @rule(pick=picks, count=counts, noticed=st.booleans())
    def stream_breaks(self, pick: int, count: int, *, noticed: bool) -> None:
        asker = self.open_streams()[pick % len(self.open_streams())]
        self.see(asker, count)
        stream = self.part(asker)
        if stream is None:
            return
        self.unnoticed.append(stream)
        if noticed:
            self.gateway_notices(len(self.unnoticed) - 1)

    @precondition(lambda self: self.unnoticed)
    @rule(pick=picks)
    def gateway_notices(self, pick: int) -> None:
        stream = self.unnoticed.pop(pick % len(self.unnoticed))
        if stream.in_vain:
            self.taken_back.update(map(number_in, others_in(stream.outbox._items)))
        self.live.drop_outbox(stream.outbox)
        session = self.live.session
        heir = session._table.stream_for_others()
        if heir is not None and not session.routing._resumptions.pending(heir):
            assert not session.routing._backlog._waiting, (
                "what was given back waits beside an open stream"
            )

    @precondition(lambda self: not self.fresh and 0 in self.asked.values())
    @rule()
    def client_answers_an_ask(self) -> None:
        ask = next(ask for ask, ordinal in self.asked.items() if not ordinal)
        raw = document(id=ask, result={})
        try:
            self.asked[ask] = self.live.session.respond(peek(raw), raw, self.now)
        except BadMessage:
            assert ask not in self.open_asks or self.is_on_its_way(ask)
            del self.asked[ask]

    def is_on_its_way(self, ask: int) -> bool:
        """The agent has it, and the child has not read it yet."""
        waiting = list(self.agent._inbox._queue)  # type: ignore[attr-defined]
        return any(json.loads(message.payload).get("id") == ask for message in waiting)

    # Quiet

    def teardown(self) -> None:
        """With no more faults, everybody gets what they lack, once."""
        self.wired = False
        if self.fresh:
            self.to_gateway.clear()
        self.redial(welcome_is_lost=False, journal_is_lost=False)
        while self.unnoticed:
            self.gateway_notices(0)
        for _ in range(40):
            self.settle_a_little()
        self.judge()

    def settle_a_little(self) -> None:
        self.everything_moves()
        self.child_reads(self.agent._inbox.qsize())
        while self.running:
            self.child_answers(0)
        self.everything_moves()
        for asker in [*self.calls, self.general]:
            self.come_back(asker)
            if asker.stream is not None:
                self.write(asker.stream, 100)
                self.see(asker, 100)
        while 0 in self.asked.values():
            self.client_answers_an_ask()
        self.now += LIMITS.heartbeat_s
        self.to_agent.extend(self.link.tick(self.now))
        self.to_gateway.extend(self.agent_end.tick(self.now))

    def judge(self) -> None:
        for call in self.calls:
            assert call.answered
            if not call.ran_again:
                assert call.seen == call.said
        lost = {number for number, times in self.others.items() if not times}
        assert lost - self.excused == set()
        assert self.open_asks - self.excused == set()
        assert all(times == 1 for times in self.answers.values())
        assert self.link.settled
        assert self.agent_end.settled
        assert self.live.session.calls == 0
        assert self.live.session.routing._backlog.take_all() == []
        assert len(self.live.session.routing._resumptions._of) <= 1


def number_in(raw: bytes) -> int:
    """The number that the child gave to this message."""
    found = json.loads(raw)["n"]
    assert isinstance(found, int)
    return found


def others_in(items: Iterable[Item]) -> list[bytes]:
    return [item.raw for item in items if item.unnamed]


def names_no_call(raw: bytes) -> bool:
    return json.loads(raw).get("method") in ("notifications/message", "sampling/createMessage")


@pytest.mark.no_cover  # counting lines takes longer than the test; others count them
@pytest.mark.timeout(3600 if PROFILE == "nightly" else 300)
def test_session_survives_its_streams_its_link_and_its_gateway() -> None:
    quiet = settings(
        PROFILES[PROFILE],
        deadline=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    run_state_machine_as_test(World, settings=quiet)


def test_question_of_an_answered_call_is_told_once_though_its_old_stream_is_still_open() -> None:
    world = World()
    world.client_calls_what_reports_progress(seen=0)
    world.child_asks()
    world.child_answers(pick=0)
    world.everything_moves()
    world.stream_breaks(count=0, noticed=False, pick=0)
    world.client_comes_back(pick=0)
    world.teardown()
