"""A peer that breaks the rules is refused, by ProtocolViolation alone, and costs bounded memory."""

import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyno_agent.link import Channel, Endpoint, Limits, Message, ProtocolViolation
from dyno_agent.link.frames import Frame, FrameType, MessageTooBig, WindowExceeded, encode
from dyno_agent.link.limits import FRAGMENT_BYTES, REPLAY_HEAD_BYTES

LIMITS = Limits(
    message_bytes=200_000,
    window_bytes=200_000 + REPLAY_HEAD_BYTES + FRAGMENT_BYTES,
    window_frames=8,
    ack_bytes=100_000,
    ack_frames=3,
)
FULL = bytes(FRAGMENT_BYTES)


def endpoint(limits: Limits = LIMITS) -> Endpoint:
    victim = Endpoint(limits, now=0.0)
    victim.attach(0, 0.0)
    return victim


def data(
    seq: int,
    payload: bytes = b"{}",
    *,
    lane: Channel = Channel.RPC,
    start: bool = True,
    fin: bool = True,
) -> bytes:
    return encode(Frame(FrameType.DATA, start, fin, lane, seq, 0, payload))


def ack(number: int) -> bytes:
    return encode(Frame(FrameType.ACK, False, False, Channel.RPC, 0, number, b""))


def taken(victim: Endpoint, frames: Iterator[bytes]) -> int:
    """Feed frames until one is refused; return how many were taken before."""
    for count, frame in enumerate(frames):
        try:
            victim.receive(frame, 0.0)
        except ProtocolViolation:
            return count
    raise AssertionError("the peer was never refused")


frames = st.builds(
    lambda kind, lane, seq, number, payload, start, fin: encode(
        Frame(kind, start, fin, lane, seq, number, payload)
    ),
    st.sampled_from(FrameType),
    st.sampled_from(Channel),
    st.integers(0, 6),
    st.integers(0, 4),
    st.sampled_from((b"", b"{}", FULL)),
    st.booleans(),
    st.booleans(),
)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.binary(max_size=40) | frames, max_size=30), st.booleans())
def test_whatever_arrives_is_a_message_nothing_or_a_violation(
    stream: list[bytes],
    adopted: bool,
) -> None:
    victim = Endpoint(LIMITS, now=0.0)
    if adopted:
        victim.adopt(sent=0, received=0)
    victim.attach(0, 0.0)
    victim.send(Channel.RPC, b"one")
    victim.send(Channel.RPC, b"two")
    victim.frames_to_send(0.0)
    for piece in stream:
        try:
            message = victim.receive(piece, 0.0)
        except ProtocolViolation:
            return
        assert message is None or isinstance(message, Message)


def test_acknowledgement_of_what_was_never_sent_is_refused() -> None:
    victim = endpoint()
    victim.send(Channel.RPC, b"one")
    with pytest.raises(ProtocolViolation):
        victim.receive(ack(1), 0.0)  # queued, but in no frame yet


def test_acknowledgement_one_past_the_last_frame_is_refused() -> None:
    victim = endpoint()
    victim.send(Channel.RPC, b"one")
    victim.frames_to_send(0.0)
    victim.receive(ack(1), 0.0)
    assert victim.settled
    with pytest.raises(ProtocolViolation):
        victim.receive(ack(2), 0.0)


def test_acknowledgement_that_goes_back_changes_nothing() -> None:
    victim = endpoint()
    for _ in range(3):
        victim.send(Channel.RPC, b"one")
    victim.frames_to_send(0.0)
    victim.receive(ack(3), 0.0)
    victim.receive(ack(1), 0.0)
    assert victim.settled


@pytest.mark.parametrize("seq", [2, 3, 2**64 - 1])
def test_skipped_number_is_refused(seq: int) -> None:
    with pytest.raises(ProtocolViolation):
        endpoint().receive(data(seq), 0.0)


def test_number_sent_again_is_dropped() -> None:
    victim = endpoint()
    first = victim.receive(data(1, b"first"), 0.0)
    again = [victim.receive(data(1, b"other"), 0.0) for _ in range(100)]
    assert first == Message(Channel.RPC, b"first", 1)
    assert again == [None] * 100
    assert victim.received == 1


def test_peer_that_sends_more_bytes_than_the_window_is_refused() -> None:
    whole = (data(seq, FULL) for seq in range(1, 100))
    assert taken(endpoint(), whole) == LIMITS.window_bytes // FRAGMENT_BYTES


def test_peer_that_sends_more_messages_than_the_window_is_refused() -> None:
    tiny = (data(seq) for seq in range(1, 100))
    assert taken(endpoint(), tiny) == LIMITS.window_frames


@pytest.mark.parametrize("payload", [b"", b"x"], ids=["empty", "tiny"])
def test_peer_that_sends_more_fragments_than_the_window_is_refused(payload: bytes) -> None:
    """The window counts frames, not messages: a message in crumbs must not grow for ever."""
    crumbs = (data(seq, payload, start=seq == 1, fin=False) for seq in range(1, 1000))
    assert taken(endpoint(), crumbs) == LIMITS.window_frames


def test_consumed_messages_give_their_room_back() -> None:
    victim = endpoint()
    for seq in range(1, 10 * LIMITS.window_frames):
        message = victim.receive(data(seq, FULL), 0.0)
        assert message is not None
        victim.consumed(message)
    assert victim.received == 10 * LIMITS.window_frames - 1


def test_message_consumed_twice_gives_its_room_back_once() -> None:
    victim = endpoint()
    message = victim.receive(data(1, FULL), 0.0)
    assert message is not None
    victim.consumed(message)
    victim.consumed(message)
    rest = (data(seq, FULL) for seq in range(2, 100))
    assert taken(victim, rest) == LIMITS.window_bytes // FRAGMENT_BYTES


def test_message_over_the_limit_is_refused_before_it_is_whole() -> None:
    pieces = (data(seq, FULL, start=seq == 1, fin=False) for seq in range(1, 100))
    assert taken(endpoint(), pieces) == LIMITS.message_bytes // FRAGMENT_BYTES


def test_message_of_exactly_the_limit_is_taken() -> None:
    victim = endpoint()
    for seq in (1, 2, 3):
        victim.receive(data(seq, FULL, start=seq == 1, fin=False), 0.0)
    rest = bytes(LIMITS.message_bytes - 3 * FRAGMENT_BYTES)
    message = victim.receive(data(4, rest, start=False), 0.0)
    assert message == Message(Channel.RPC, bytes(LIMITS.message_bytes), 1)


def test_message_over_the_limit_cannot_be_sent() -> None:
    victim = endpoint()
    with pytest.raises(ValueError, match="200001"):
        victim.send(Channel.RPC, bytes(LIMITS.message_bytes + 1))
    assert victim.settled


def sent(count: int, acknowledged: int) -> Endpoint:
    victim = endpoint()
    for _ in range(count):
        victim.send(Channel.RPC, b"{}")
    victim.frames_to_send(0.0)
    victim.receive(ack(acknowledged), 0.0)
    victim.detach()
    return victim


@pytest.mark.parametrize("claimed", [-1, 0, 1, 6, 2**63], ids=str)
def test_peer_that_claims_an_impossible_position_is_not_attached(claimed: int) -> None:
    """Of five sent frames two were acknowledged: it can hold two to five."""
    victim = sent(5, acknowledged=2)
    with pytest.raises(ProtocolViolation):
        victim.attach(claimed, 1.0)
    assert victim.frames_to_send(1.0) == []


@pytest.mark.parametrize("claimed", [2, 3, 4, 5])
def test_peer_is_sent_exactly_what_it_lacks(claimed: int) -> None:
    victim = sent(5, acknowledged=2)
    victim.attach(claimed, 1.0)
    assert victim.frames_to_send(1.0) == [data(seq) for seq in range(claimed + 1, 6)]


def fragments(size: int, lane: Channel, *, first: int = 1, whole: bool = True) -> Iterator[bytes]:
    """Yield the frames of one message, and leave its end out if it shall not be whole."""
    for offset in range(0, size, FRAGMENT_BYTES):
        part = bytes(min(FRAGMENT_BYTES, size - offset))
        fin = whole and offset + FRAGMENT_BYTES >= size
        yield data(first + offset // FRAGMENT_BYTES, part, lane=lane, start=offset == 0, fin=fin)


def test_message_that_begins_inside_another_is_refused() -> None:
    victim = endpoint()
    victim.receive(data(1, fin=False), 0.0)
    with pytest.raises(ProtocolViolation):
        victim.receive(data(2), 0.0)


@pytest.mark.parametrize("fin", [False, True])
def test_message_without_a_beginning_is_refused(fin: bool) -> None:
    with pytest.raises(ProtocolViolation):
        endpoint().receive(data(1, start=False, fin=fin), 0.0)


def test_second_end_of_a_message_is_refused() -> None:
    victim = endpoint()
    victim.receive(data(1, fin=False), 0.0)
    victim.receive(data(2, start=False), 0.0)
    with pytest.raises(ProtocolViolation):
        victim.receive(data(3, start=False), 0.0)


def test_messages_that_are_open_on_different_channels_do_not_disturb_each_other() -> None:
    victim = endpoint()
    for seq, lane in enumerate(Channel, 1):
        assert victim.receive(data(seq, b"[", lane=lane, fin=False), 0.0) is None
    seqs = range(len(Channel) + 1, 9)
    ends = [
        victim.receive(data(seq, b"]", lane=lane, start=False), 0.0)
        for seq, lane in zip(seqs, Channel, strict=False)
    ]
    assert ends == [Message(lane, b"[]", lane + 1) for lane in list(Channel)[: len(seqs)]]


def feed(victim: Endpoint, frames: Iterator[bytes]) -> None:
    for frame in frames:
        victim.receive(frame, 0.0)


def test_message_over_the_limit_is_told_as_too_big() -> None:
    with pytest.raises(MessageTooBig):
        feed(endpoint(), fragments(LIMITS.message_bytes + 1, Channel.RPC))


def test_more_than_the_window_is_told_as_that() -> None:
    with pytest.raises(WindowExceeded):
        feed(endpoint(), (data(seq) for seq in range(1, 100)))


def test_replay_of_a_largest_message_is_taken_with_its_head() -> None:
    size = LIMITS.message_bytes + REPLAY_HEAD_BYTES
    victim = endpoint()
    arrived = [victim.receive(piece, 0.0) for piece in fragments(size, Channel.REPLAY)]
    assert arrived[-1] == Message(Channel.REPLAY, bytes(size), 1)


@pytest.mark.parametrize(
    ("lane", "over"), [(Channel.REPLAY, REPLAY_HEAD_BYTES + 1), (Channel.RPC, 1), (Channel.CMD, 1)]
)
def test_no_channel_but_replay_may_exceed_the_largest_message(lane: Channel, over: int) -> None:
    pieces = fragments(LIMITS.message_bytes + over, lane)
    assert taken(endpoint(), pieces) == LIMITS.message_bytes // FRAGMENT_BYTES


def test_replay_of_a_largest_message_can_be_sent() -> None:
    victim = endpoint()
    victim.send(Channel.REPLAY, bytes(LIMITS.message_bytes + REPLAY_HEAD_BYTES))
    assert len(victim.frames_to_send(0.0)) == 4
    with pytest.raises(ValueError, match="200017"):
        victim.send(Channel.REPLAY, bytes(LIMITS.message_bytes + REPLAY_HEAD_BYTES + 1))


# A peer whose older gateway is gone


def adopted(sent: int = 0, received: int = 0) -> Endpoint:
    victim = Endpoint(LIMITS, now=0.0)
    victim.adopt(sent, received)
    victim.attach(sent, 0.0)
    return victim


def test_tail_of_what_the_lost_end_had_taken_is_swallowed_and_acknowledged() -> None:
    victim = adopted(received=6)
    tail = [data(7, start=False, fin=False), data(8, start=False)]
    assert [victim.receive(piece, 0.0) for piece in tail] == [None, None]
    assert victim.receive(data(9, b"whole"), 0.0) == Message(Channel.RPC, b"whole", 9)
    (beat,) = victim.tick(LIMITS.heartbeat_s)
    assert beat[12:20] == (8).to_bytes(8, "big")


def test_lane_that_began_a_message_has_no_tail_any_more() -> None:
    victim = adopted()
    victim.receive(data(1), 0.0)
    with pytest.raises(ProtocolViolation):
        victim.receive(data(2, start=False), 0.0)


def test_tail_on_one_lane_is_independent_of_messages_on_another() -> None:
    victim = adopted()
    victim.receive(data(1, lane=Channel.EVENT), 0.0)
    assert victim.receive(data(2, start=False), 0.0) is None


def test_endless_tail_costs_no_memory_and_ends_nothing() -> None:
    victim = adopted()
    for seq in range(1, 10 * LIMITS.window_frames):
        assert victim.receive(data(seq, FULL, start=False, fin=False), 0.0) is None
    assert victim.received == 10 * LIMITS.window_frames - 1
    assert victim._held_bytes == victim._held_frames == 0


def test_flood_after_an_adoption_is_refused_as_before() -> None:
    victim = adopted(received=100)
    whole = (data(seq, FULL) for seq in range(101, 1000))
    assert taken(victim, whole) == LIMITS.window_bytes // FRAGMENT_BYTES


@pytest.mark.parametrize("claimed", [0, 1, 2**62, 2**63 - 1])
def test_adopted_link_goes_on_from_any_claim(claimed: int) -> None:
    """A lie about what it holds harms the liar's own session only: numbers go on from there."""
    victim = adopted(sent=claimed, received=claimed)
    assert victim.receive(data(claimed + 1, b"first"), 0.0) is not None
    victim.send(Channel.RPC, b"answer")
    frames_out = victim.frames_to_send(0.0)
    assert [int.from_bytes(frame[4:12], "big") for frame in frames_out] == [claimed + 1]


def test_liar_that_changes_its_claim_after_the_adoption_is_refused() -> None:
    victim = Endpoint(LIMITS, now=0.0)
    victim.adopt(sent=5, received=0)
    for claimed in (4, 6):
        with pytest.raises(ProtocolViolation):
            victim.attach(claimed, 0.0)


def test_acknowledgement_above_the_adopted_number_is_refused() -> None:
    victim = adopted(sent=5)
    victim.receive(ack(5), 0.0)
    with pytest.raises(ProtocolViolation):
        victim.receive(ack(6), 0.0)


def test_peer_that_restarts_in_the_middle_of_messages_gives_their_room_back() -> None:
    victim = endpoint()
    for _ in range(3):
        seq = victim.received
        for lane in (Channel.RPC, Channel.REPLAY):
            seq += 1
            victim.receive(data(seq, FULL, lane=lane, fin=False), 0.0)
        victim.detach()
        victim.peer_restarted()
        victim.attach(0, 0.0)
    start = victim.received + 1
    rest = (data(seq, FULL) for seq in range(start, start + 100))
    assert taken(victim, rest) == LIMITS.window_bytes // FRAGMENT_BYTES


def flood(make: Callable[[int], bytes], limits: Limits) -> int:
    """Return the peak memory that a peer costs which sends until it is refused."""
    victim = endpoint(limits)
    tracemalloc.start()
    try:
        taken(victim, (make(seq) for seq in range(1, 50_000)))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


FLOODS: dict[str, Callable[[int], bytes]] = {
    "whole messages": lambda seq: data(seq, FULL),
    "tiny messages": data,
    "empty messages": lambda seq: data(seq, b""),
    "empty fragments": lambda seq: data(seq, b"", start=seq == 1, fin=False),
    "tiny fragments": lambda seq: data(seq, b"x", start=seq == 1, fin=False),
    "fragments on every channel": lambda seq: data(
        seq, b"x", lane=Channel(seq % 5), start=seq <= 5, fin=False
    ),
}


@pytest.mark.parametrize("make", FLOODS.values(), ids=FLOODS)
def test_flood_costs_no_more_memory_than_the_window(make: Callable[[int], bytes]) -> None:
    limits = Limits(message_bytes=200_000, window_bytes=400_000, window_frames=64, ack_bytes=1000)
    assert flood(make, limits) < limits.window_bytes + 4 * FRAGMENT_BYTES
