"""Two endpoints and a hostile wire: every message arrives exactly once, in order, byte for byte.

A state machine drives both ends: it sends on every channel, delivers frame by frame, consumes in
any order or not at all, cuts the wire with frames in flight, lets frames that a socket had already
taken arrive late, loses a WELCOME, and moves the clock. At any moment the gateway's end crashes and
a fresh one adopts the link from what the agent tells. A second, much simpler account of what each
side holds (`Inbound`) judges the endpoints. Every run ends with a healed wire, on which all that
was sent must arrive and settle, but for what had died with a gateway.

HYPOTHESIS_PROFILE=nightly runs a longer, random search; the default one is the same every time.
"""

import os
import random
from collections import deque

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from dyno_agent.link import Channel, Endpoint, Limits, LinkLost, Message
from dyno_agent.link.frames import Frame, FrameType, decode
from dyno_agent.link.limits import FRAGMENT_BYTES, REPLAY_HEAD_BYTES

PROFILES = {
    "default": settings(max_examples=300, stateful_step_count=60, derandomize=True, database=None),
    "nightly": settings(max_examples=5000, stateful_step_count=100, print_blob=True),
}
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "default")

LIMITS = Limits(
    message_bytes=200_000,
    window_bytes=200_000 + REPLAY_HEAD_BYTES + FRAGMENT_BYTES,
    window_frames=8,
    ack_bytes=100_000,
    ack_frames=3,
)
"""The smallest window that four fragments allow, so that it is full most of the time."""

SIZES = (0, 1, 100, FRAGMENT_BYTES - 1, FRAGMENT_BYTES, FRAGMENT_BYTES + 1, 131_072, 200_000)
NOISE = random.Random(20).randbytes(1 << 20)  # noqa: S311 - the same bytes in every run
SIDES = ("agent", "gateway")

side_names = st.sampled_from(SIDES)
counts = st.integers(0, 6)


NEVER = 2**64
"""Above every sequence number."""


class Inbound:
    """What one side must have been given and may acknowledge: the plain account of a direction."""

    def __init__(self) -> None:
        self.sent: dict[Channel, list[bytes]] = {lane: [] for lane in Channel}
        self.arrived = dict.fromkeys(Channel, 0)
        self.due = 0  # messages that the living sender was handed
        self.consumed = 0  # of those
        self.floor = 0  # up to here frames are of a sender that is dead
        self.lost_before = dict.fromkeys(
            Channel, 0
        )  # what is not here yet, up to here, never comes
        self.received = 0
        self.open: dict[Channel, list[int]] = {lane: [] for lane in Channel}
        self.frames_of: dict[int, list[int]] = {}  # whole messages, by first frame
        self.outstanding: set[int] = set()  # frames of messages not yet consumed
        self.messages: list[Message] = []  # handed out, not consumed
        self.taken_over: set[int] = set()  # first frames of all that was ever consumed
        self.known: dict[int, Frame] = {}

    def send(self, lane: Channel, payload: bytes) -> None:
        self.sent[lane].append(payload)
        self.due += 1

    def expects(self, frame: Frame) -> bytes | None:
        """Book a frame; return the message that it must complete."""
        if frame.type is not FrameType.DATA or frame.seq <= self.received:
            return None
        self.received += 1
        assert frame.seq == self.received
        seqs = self.open[frame.channel]
        if not seqs and not frame.start:
            return None  # the end of what a dead receiver has taken over
        self.outstanding.add(frame.seq)
        seqs.append(frame.seq)
        if not frame.fin:
            return None
        self.frames_of[seqs[0]], self.open[frame.channel] = seqs, []
        self.arrived[frame.channel] += 1
        return self.sent[frame.channel][self.arrived[frame.channel] - 1]

    def consume(self, index: int) -> Message:
        message = self.messages.pop(index % len(self.messages))
        self.outstanding.difference_update(self.frames_of.pop(message.key))
        self.taken_over.add(message.key)
        self.consumed += message.key > self.floor
        return message

    @property
    def acknowledgeable(self) -> int:
        return min(self.outstanding) - 1 if self.outstanding else self.received

    @property
    def all_consumed(self) -> bool:
        return self.consumed == self.due

    def sees(self, frame: Frame) -> None:
        """A replayed frame is the frame that was sent before, whatever its acknowledgement."""
        if frame.type is FrameType.DATA:
            first = self.known.setdefault(frame.seq, frame)
            assert frame._replace(ack=0) == first._replace(ack=0)

    # When one end dies

    def sender_dies(self) -> None:
        """What is on its way may still come; what is sent from now on counts anew."""
        self.due = self.consumed = 0
        self.floor = NEVER
        self.lost_before = {lane: len(sent) for lane, sent in self.sent.items()}

    def hears_of_the_death(self) -> None:
        """What did not arrive as a whole never will, and its numbers are used again."""
        for lane, seqs in self.open.items():
            self.outstanding.difference_update(seqs)
            seqs.clear()
            del self.sent[lane][self.arrived[lane] : self.lost_before[lane]]
        self.lost_before = dict.fromkeys(Channel, 0)
        self.floor = self.received
        self.known = {seq: frame for seq, frame in self.known.items() if seq <= self.received}

    def receiver_is_new(self, confirmed: int) -> None:
        """Everything that the dead one has not taken over comes again, and nothing confirmed."""
        self.received = confirmed
        self.outstanding.clear()
        self.frames_of.clear()
        self.messages.clear()
        self.consumed = 0
        for lane in Channel:
            self.open[lane].clear()
            begun = [
                frame.seq
                for frame in self.known.values()
                if frame.channel is lane and frame.start and frame.seq <= confirmed
            ]
            assert self.taken_over.issuperset(begun)
            self.arrived[lane] = len(begun)
            self.consumed += len(begun)


class Side:
    """One endpoint, what is on its way to it, and the account of it."""

    def __init__(self, now: float) -> None:
        self.inbound = Inbound()
        self.late: deque[bytes] = deque()
        self.coming: deque[bytes] = deque()
        self.taken: dict[Channel, list[bytes]] = {}
        self.endpoint = self.born(now)

    def born(self, now: float) -> Endpoint:
        self.taken = {lane: [] for lane in Channel}
        return Endpoint(LIMITS, now=now, on_taken=self.was_taken)

    def was_taken(self, message: Message) -> None:
        self.taken[message.channel].append(message.payload)

    def take(self, data: bytes, now: float) -> None:
        expected = self.inbound.expects(decode(data))
        message = self.endpoint.receive(data, now)
        assert (message.payload if message else None) == expected
        if message:
            self.inbound.messages.append(message)

    def take_late(self, count: int, now: float) -> None:
        for _ in range(min(count, len(self.late))):
            self.take(self.late.popleft(), now)


class LinkMachine(RuleBasedStateMachine):
    """The hostile world. `wired` tells whether frames written now can arrive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.wired = False
        self.fresh = False  # the gateway's end knows nothing of the link yet
        self.serial = 0
        self.sides = {name: Side(self.now) for name in SIDES}

    @initialize()
    def first_attachment(self) -> None:
        self.redial(self.sides["agent"].endpoint.received)

    @property
    def ends(self) -> tuple[Side, Side]:
        return self.sides["agent"], self.sides["gateway"]

    def other(self, name: str) -> Side:
        return self.sides["gateway" if name == "agent" else "agent"]

    # Messages

    @rule(name=side_names, lane=st.sampled_from(Channel), size=st.sampled_from(SIZES))
    def send(self, name: str, lane: Channel, size: int) -> None:
        self.serial += 1
        start = self.serial * 7919 % (len(NOISE) - size)
        payload = NOISE[start : start + size]
        self.other(name).inbound.send(lane, payload)
        self.sides[name].endpoint.send(lane, payload)

    @rule(name=side_names)
    def flush(self, name: str) -> None:
        self.write(name, self.sides[name].endpoint.frames_to_send(self.now))

    def write(self, name: str, frames: list[bytes]) -> None:
        for data in frames:
            frame = decode(data)
            assert frame.ack <= self.sides[name].inbound.acknowledgeable
            self.other(name).inbound.sees(frame)
            if self.wired:
                self.other(name).coming.append(data)

    @rule(name=side_names, count=counts)
    def deliver(self, name: str, count: int) -> None:
        coming = self.sides[name].coming
        for _ in range(min(count, len(coming))):
            self.sides[name].take(coming.popleft(), self.now)

    @rule(name=side_names, index=st.integers(0, 7))
    def consume(self, name: str, index: int) -> None:
        side = self.sides[name]
        if side.inbound.messages:
            side.endpoint.consumed(side.inbound.consume(index))

    @rule(name=side_names)
    def consume_all(self, name: str) -> None:
        while self.sides[name].inbound.messages:
            self.consume(name, 0)

    @rule(name=side_names, lane=st.sampled_from(Channel), size=st.sampled_from(SIZES))
    def fill(self, name: str, lane: Channel, size: int) -> None:
        """Send more than the window takes, and let all of it arrive that may."""
        for _ in range(LIMITS.window_frames):
            self.send(name, lane, size)
        self.flush(name)
        if self.wired:
            other = self.other(name)
            while other.coming:
                other.take(other.coming.popleft(), self.now)

    # Attachments and time

    @precondition(lambda self: self.wired)
    @rule(in_agents_socket=counts, in_gateways_socket=counts)
    def cut(self, in_agents_socket: int, in_gateways_socket: int) -> None:
        """Frames in flight are lost, except those that a socket already holds."""
        self.wired = False
        for side, kept in zip(
            self.sides.values(), (in_agents_socket, in_gateways_socket), strict=True
        ):
            side.late = deque(list(side.coming)[:kept])
            side.coming.clear()

    @precondition(lambda self: not self.wired)
    @rule(name=side_names)
    def notice_the_cut(self, name: str) -> None:
        self.sides[name].take_late(len(self.sides[name].late), self.now)
        self.sides[name].endpoint.detach()

    @rule(in_agents_socket=counts)
    def crash(self, in_agents_socket: int) -> None:
        """The gateway's process is gone with all that it held, and another one starts."""
        if self.wired:
            self.cut(in_agents_socket, 0)
        agent, gateway = self.ends
        gateway.endpoint = gateway.born(self.now)
        gateway.late.clear()
        gateway.inbound.messages.clear()
        agent.inbound.sender_dies()
        self.fresh = True

    @precondition(lambda self: not self.wired and self.fresh)
    @rule(late=counts, answer=st.sampled_from(("lost", "journal lost", "heard")))
    def adopt(self, late: int, answer: str) -> None:
        """The agent dials the new process, which knows what it is told and nothing else."""
        agent, gateway = self.ends
        agent.take_late(late, self.now)
        agent.late.clear()
        agent.endpoint.detach()
        hello, confirmed = agent.endpoint.received, agent.endpoint.confirmed
        gateway.endpoint.adopt(hello, confirmed, agent.endpoint.held)
        if answer == "lost":
            return
        agent.endpoint.peer_restarted()
        agent.inbound.hears_of_the_death()
        agent.endpoint.attach(gateway.endpoint.received, self.now)
        if answer == "journal lost":
            self.flush("agent")
            return
        gateway.endpoint.attach(hello, self.now)
        gateway.inbound.receiver_is_new(confirmed)
        self.fresh, self.wired = False, True

    @precondition(lambda self: not self.wired and not self.fresh)
    @rule(before=counts, after=counts, gateways=counts, welcome_is_lost=st.booleans())
    def redial_late(self, before: int, after: int, gateways: int, *, welcome_is_lost: bool) -> None:
        """Read some late frames before the HELLO is built and some after it."""
        agent, gateway = self.sides["agent"], self.sides["gateway"]
        agent.take_late(before, self.now)
        hello = agent.endpoint.received
        agent.take_late(after, self.now)
        gateway.take_late(gateways, self.now)
        if welcome_is_lost:
            gateway.endpoint.detach()
            gateway.late.clear()
            gateway.endpoint.attach(hello, self.now)
            self.flush("gateway")
        else:
            self.redial(hello)

    def redial(self, hello: int) -> None:
        agent, gateway = self.sides["agent"], self.sides["gateway"]
        for side in (agent, gateway):
            side.endpoint.detach()
            side.late.clear()
        welcome = gateway.endpoint.received
        gateway.endpoint.attach(hello, self.now)
        agent.endpoint.attach(welcome, self.now)
        self.wired = True

    @rule(seconds=st.sampled_from((1.0, LIMITS.heartbeat_s, LIMITS.dead_s)))
    def let_time_pass(self, seconds: float) -> None:
        self.now += seconds
        for name in SIDES:
            self.tick(name)

    def tick(self, name: str) -> None:
        side = self.sides[name]
        deadline = side.endpoint.deadline()
        try:
            beats = side.endpoint.tick(self.now)
        except LinkLost:
            if self.wired:
                self.cut(0, 0)
            side.endpoint.detach()
            return
        assert bool(beats) == (deadline is not None and self.now >= deadline)
        self.write(name, beats)

    # What always holds

    @invariant()
    def sender_stays_within_its_window(self) -> None:
        for side in self.sides.values():
            assert side.endpoint._unacked_bytes <= LIMITS.window_bytes
            assert len(side.endpoint._unacked) <= LIMITS.window_frames

    @invariant()
    def receiver_holds_no_more_than_the_window(self) -> None:
        for side in self.sides.values():
            assert side.endpoint._held_bytes <= LIMITS.window_bytes
            held = sum(len(message.payload) for message in side.inbound.messages)
            assert held <= LIMITS.window_bytes

    @invariant()
    def settled_means_consumed_by_the_peer(self) -> None:
        for name, side in self.sides.items():
            if side.endpoint.settled and not (name == "gateway" and self.fresh):
                assert self.other(name).inbound.all_consumed

    @invariant()
    def received_is_what_arrived(self) -> None:
        agent, gateway = self.ends
        assert agent.endpoint.received == agent.inbound.received
        assert self.fresh or gateway.endpoint.received == gateway.inbound.received

    @invariant()
    def sender_knows_what_was_taken_over_and_what_may_not_have_been(self) -> None:
        """The agent's memory lives on this: it has the same order as what was sent."""
        agent, gateway = self.ends
        for lane in Channel:
            sent, taken = gateway.inbound.sent[lane], agent.taken[lane]
            unsure = agent.endpoint.unconfirmed(lane)
            known = taken + [message.payload for message in unsure]
            assert known == sent[: len(known)]
            assert agent.endpoint.taken(lane) == len(taken)
            assert [message.key for message in unsure] == sorted(
                frame.seq
                for frame in gateway.inbound.known.values()
                if frame.start and frame.channel is lane
            )[len(taken) :]

    @invariant()
    def confirmed_is_never_more_than_was_taken_over(self) -> None:
        agent, gateway = self.ends
        confirmed = agent.endpoint.confirmed
        for frame in gateway.inbound.known.values():
            if frame.start and frame.seq <= confirmed:
                assert frame.seq in gateway.inbound.taken_over

    def teardown(self) -> None:
        """On a wire that holds, everything arrives and settles."""
        if self.wired:
            self.cut(*(len(side.coming) for side in self.sides.values()))
        for name in SIDES:
            self.notice_the_cut(name)
        if self.fresh:
            self.adopt(0, "heard")
        else:
            self.redial_late(0, 0, 0, welcome_is_lost=False)
        before, progress = -1, self.progress()
        while progress > before:
            self.round_trip()
            before, progress = progress, self.progress()
        for side in self.sides.values():
            assert side.inbound.all_consumed
            assert side.endpoint.settled
            assert side.endpoint._held_bytes == side.endpoint._unacked_bytes == 0
            assert side.endpoint._held_frames == 0
            assert side.endpoint._inherited == (0, 0)
        agent, gateway = self.ends
        assert agent.taken == gateway.inbound.sent

    def progress(self) -> int:
        """Count frames sent, received, acknowledged, and messages consumed: it only grows."""
        return sum(
            2 * side.endpoint.sent
            - len(side.endpoint._unacked)
            + side.inbound.received
            + side.inbound.consumed
            for side in self.sides.values()
        )

    def round_trip(self) -> None:
        """Move all that can move; the heartbeat brings acknowledgements that are not yet due."""
        for name in SIDES:  # before time passes, or what lies on the wire is heard too late
            self.deliver(name, len(self.sides[name].coming))
            self.consume_all(name)
            self.flush(name)
        self.now += LIMITS.heartbeat_s
        for name in SIDES:
            self.tick(name)
        for name in SIDES:
            self.deliver(name, len(self.sides[name].coming))
            self.consume_all(name)


@pytest.mark.no_cover  # counting lines takes longer than the test; others count them
@pytest.mark.timeout(3600 if PROFILE == "nightly" else 300)
def test_every_message_arrives_exactly_once_in_order_and_unchanged() -> None:
    quiet = settings(
        PROFILES[PROFILE],
        deadline=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    run_state_machine_as_test(LinkMachine, settings=quiet)


def pair() -> tuple[Endpoint, Endpoint]:
    ends = Endpoint(LIMITS, now=0.0), Endpoint(LIMITS, now=0.0)
    for end in ends:
        end.attach(0, 0.0)
    return ends


def carry(sender: Endpoint, receiver: Endpoint) -> list[Message]:
    """Deliver all that may go out now; return the messages that it completed."""
    arrived = [receiver.receive(data, 0.0) for data in sender.frames_to_send(0.0)]
    return [message for message in arrived if message]


def test_urgent_messages_cannot_starve_an_open_one_of_credit() -> None:
    """A message that began must be able to end, or nothing is ever acknowledged again.

    The LOG message finds a window that has room for a part of it, and RPC messages that follow.
    """
    sender, receiver = pair()
    sender.send(Channel.LOG, bytes(200_000))
    sender.send(Channel.RPC, bytes(100_000))
    first = sender.frames_to_send(0.0)
    for _ in range(4):
        sender.send(Channel.RPC, bytes(100_000))
    arrived = [receiver.receive(data, 0.0) for data in first]
    for now in range(15, 300, 15):
        for message in filter(None, arrived):
            receiver.consumed(message)
        for data in receiver.tick(now):
            sender.receive(data, now)
        going = sender.frames_to_send(now) or sender.tick(now)
        arrived = [receiver.receive(data, now) for data in going]
    assert sender.settled


def test_an_acknowledgement_lost_with_its_socket_is_told_again_at_once() -> None:
    """Otherwise a full window stays shut until the next heartbeat."""
    sender, receiver = pair()
    for _ in range(LIMITS.ack_frames):
        sender.send(Channel.RPC, b"{}")
    for message in carry(sender, receiver):
        receiver.consumed(message)
    lost = receiver.frames_to_send(0.0)
    assert [decode(data).type for data in lost] == [FrameType.ACK]
    for end in (sender, receiver):
        end.detach()
    sender.attach(receiver.received, 1.0)
    receiver.attach(sender.received, 1.0)
    assert [decode(data).ack for data in receiver.frames_to_send(1.0)] == [LIMITS.ack_frames]


def test_stop_and_exit_get_through_a_window_that_messages_have_filled() -> None:
    sender, receiver = pair()
    for _ in range(2 * LIMITS.window_frames):
        sender.send(Channel.RPC, b"{}")
    full = carry(sender, receiver)
    sender.send(Channel.CMD, b"stop")
    assert {message.channel for message in full} == {Channel.RPC}
    assert [message.payload for message in carry(sender, receiver)] == [b"stop"]


def test_urgent_lanes_go_first() -> None:
    sender, receiver = pair()
    for lane in (Channel.LOG, Channel.RPC, Channel.EVENT, Channel.CMD):
        sender.send(lane, b"{}")
    assert [message.channel for message in carry(sender, receiver)] == [
        Channel.CMD,
        Channel.EVENT,
        Channel.RPC,
        Channel.LOG,
    ]


def test_consumed_event_is_acknowledged_at_once() -> None:
    sender, receiver = pair()
    sender.send(Channel.EVENT, b"{}")
    for message in carry(sender, receiver):
        receiver.consumed(message)
    assert carry(receiver, sender) == []
    assert sender.settled


def test_what_was_not_consumed_is_never_acknowledged_even_by_heartbeats() -> None:
    sender, receiver = pair()
    sender.send(Channel.EVENT, b"{}")
    carry(sender, receiver)
    beats = receiver.frames_to_send(0.0) + receiver.tick(LIMITS.heartbeat_s)
    assert [decode(data).ack for data in beats] == [0]


def test_detached_endpoint_sends_nothing_and_has_no_deadline() -> None:
    sender, _ = pair()
    sender.send(Channel.RPC, b"{}")
    sender.detach()
    assert sender.frames_to_send(0.0) == sender.tick(1000.0) == []
    assert sender.deadline() is None


def test_silence_is_told_when_the_peer_is_dead_and_not_before() -> None:
    end, _ = pair()
    assert len(end.tick(LIMITS.dead_s - 0.1)) == 1
    with pytest.raises(LinkLost):
        end.tick(LIMITS.dead_s)


def test_source_is_told_to_stop_while_a_largest_message_would_not_fit() -> None:
    sender, receiver = pair()
    sender.send(Channel.RPC, bytes(LIMITS.window_bytes - LIMITS.message_bytes))
    before = sender.writable
    for message in carry(sender, receiver):
        receiver.consumed(message)
    for data in receiver.tick(LIMITS.heartbeat_s):
        sender.receive(data, LIMITS.heartbeat_s)
    assert (before, sender.writable) == (False, True)


def restarted(agent: Endpoint) -> Endpoint:
    """Return a fresh gateway's end that has adopted the link of this agent."""
    gateway = Endpoint(LIMITS, now=1.0)
    agent.detach()
    gateway.adopt(agent.received, agent.confirmed, agent.held)
    agent.peer_restarted()
    agent.attach(gateway.received, 1.0)
    gateway.attach(agent.received, 1.0)
    return gateway


@pytest.mark.parametrize(("size", "fits"), [(1, LIMITS.window_frames), (FRAGMENT_BYTES, 4)])
def test_fresh_end_does_not_exceed_a_window_that_the_lost_one_had_filled(
    size: int, fits: int
) -> None:
    agent, gateway = pair()
    for _ in range(fits):
        gateway.send(Channel.CMD, bytes(size))
    held = carry(gateway, agent)
    fresh = restarted(agent)
    fresh.send(Channel.CMD, bytes(size))
    before = carry(fresh, agent)
    for message in held:
        agent.consumed(message)
    carry(agent, fresh)
    assert (len(held), before, len(carry(fresh, agent))) == (fits, [], 1)


def test_credit_of_a_lost_end_is_charged_until_all_of_it_is_acknowledged() -> None:
    """An acknowledgement of a part says nothing about how large that part was."""
    agent, gateway = pair()
    for _ in range(LIMITS.window_frames):
        gateway.send(Channel.CMD, b"{}")
    held = carry(gateway, agent)
    fresh = restarted(agent)
    for message in held[:-1]:
        agent.consumed(message)
    carry(agent, fresh)
    fresh.send(Channel.CMD, b"{}")
    assert carry(fresh, agent) == []


def exchange(sender: Endpoint, receiver: Endpoint) -> None:
    """Let one message be taken over, and whatever is due come back."""
    sender.send(Channel.RPC, b"{}")
    for message in carry(sender, receiver):
        receiver.consumed(message)
    carry(receiver, sender)


def test_probe_is_answered_at_once_by_what_is_consumed() -> None:
    sender, receiver = pair()
    exchange(sender, receiver)  # a new attachment tells the first news at once anyway
    exchange(sender, receiver)
    before = sender.settled
    sender.probe()
    carry(sender, receiver)
    carry(receiver, sender)
    assert (before, sender.settled) == (False, True)


def test_probe_is_answered_as_soon_as_its_message_is_consumed() -> None:
    sender, receiver = pair()
    exchange(sender, receiver)
    sender.send(Channel.RPC, b"{}")
    sender.probe()
    (message,) = carry(sender, receiver)
    receiver.consumed(message)
    carry(receiver, sender)
    assert sender.settled


def test_probe_is_news_until_it_is_sent_once() -> None:
    sender, _ = pair()
    before = sender.has_news
    sender.probe()
    assert (before, sender.has_news) == (False, True)
    assert [decode(data).type for data in sender.frames_to_send(0.0)] == [FrameType.HEARTBEAT]
    assert not sender.has_news


def test_ordinal_tells_when_a_message_was_taken_over() -> None:
    sender, receiver = pair()
    ordinals = [sender.send(Channel.RPC, b"{}") for _ in range(2)]
    sender.send(Channel.CMD, b"{}")
    messages = carry(sender, receiver)
    for message in messages[:2]:  # the command goes first
        receiver.consumed(message)
    receiver.probe()
    carry(receiver, sender)
    assert (ordinals, sender.taken(Channel.RPC), sender.taken(Channel.CMD)) == ([1, 2], 1, 1)
    assert [message.key for message in sender.unconfirmed(Channel.RPC)] == [3]


def test_replays_go_before_what_is_new_and_after_commands_and_events() -> None:
    sender, receiver = pair()
    for lane in (Channel.RPC, Channel.REPLAY, Channel.EVENT):
        sender.send(lane, b"{}")
    order = [message.channel for message in carry(sender, receiver)]
    assert order == [Channel.EVENT, Channel.REPLAY, Channel.RPC]


def test_peak_is_the_most_that_either_direction_held() -> None:
    sender, receiver = pair()
    for _ in range(2):
        sender.send(Channel.RPC, bytes(1000))
        for message in carry(sender, receiver):
            receiver.consumed(message)
        for data in receiver.tick(LIMITS.heartbeat_s):
            sender.receive(data, 0.0)
    assert (receiver.peak_bytes, 1000 <= sender.peak_bytes < 2000) == (1000, True)


def test_link_goes_on_after_a_crash_in_the_middle_of_a_message() -> None:
    """What will never be whole holds back no acknowledgement, and takes no room."""
    agent, gateway = pair()
    gateway.send(Channel.RPC, bytes(LIMITS.message_bytes))
    for data in gateway.frames_to_send(0.0)[:-1]:
        agent.receive(data, 0.0)
    fresh = restarted(agent)
    carry(agent, fresh)  # its first frame acknowledges what will never be whole
    fresh.send(Channel.RPC, bytes(LIMITS.message_bytes))
    (message,) = carry(fresh, agent)
    agent.consumed(message)
    carry(agent, fresh)
    assert (fresh.settled, agent.held) == (True, (0, 0))
