"""A peer that breaks the rules is refused, by ProtocolViolation alone, and costs bounded memory."""

import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyno_agent.link import Channel, Endpoint, Limits, Message, ProtocolViolation
from dyno_agent.link.frames import Frame, FrameType, encode
from dyno_agent.link.limits import FRAGMENT_BYTES

LIMITS = Limits(
    message_bytes=200_000,
    window_bytes=200_000 + FRAGMENT_BYTES,
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
    seq: int, payload: bytes = b"{}", *, lane: Channel = Channel.RPC, fin: bool = True
) -> bytes:
    return encode(Frame(FrameType.DATA, fin, lane, seq, 0, payload))


def ack(number: int) -> bytes:
    return encode(Frame(FrameType.ACK, False, Channel.RPC, 0, number, b""))


def taken(victim: Endpoint, frames: Iterator[bytes]) -> int:
    """Feed frames until one is refused; return how many were taken before."""
    for count, frame in enumerate(frames):
        try:
            victim.receive(frame, 0.0)
        except ProtocolViolation:
            return count
    raise AssertionError("the peer was never refused")


frames = st.builds(
    lambda kind, lane, seq, number, payload, fin: encode(
        Frame(kind, fin, lane, seq, number, payload)
    ),
    st.sampled_from(FrameType),
    st.sampled_from(Channel),
    st.integers(0, 6),
    st.integers(0, 4),
    st.sampled_from((b"", b"{}", FULL)),
    st.booleans(),
)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.binary(max_size=40) | frames, max_size=30))
def test_whatever_arrives_is_a_message_nothing_or_a_violation(stream: list[bytes]) -> None:
    victim = endpoint()
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
    crumbs = (data(seq, payload, fin=False) for seq in range(1, 1000))
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
    pieces = (data(seq, FULL, fin=False) for seq in range(1, 100))
    assert taken(endpoint(), pieces) == LIMITS.message_bytes // FRAGMENT_BYTES


def test_message_of_exactly_the_limit_is_taken() -> None:
    victim = endpoint()
    for seq in (1, 2, 3):
        victim.receive(data(seq, FULL, fin=False), 0.0)
    rest = bytes(LIMITS.message_bytes - 3 * FRAGMENT_BYTES)
    message = victim.receive(data(4, rest), 0.0)
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
    "empty fragments": lambda seq: data(seq, b"", fin=False),
    "tiny fragments": lambda seq: data(seq, b"x", fin=False),
    "fragments on every channel": lambda seq: data(seq, b"x", lane=Channel(seq % 4), fin=False),
}


@pytest.mark.parametrize("make", FLOODS.values(), ids=FLOODS)
def test_flood_costs_no_more_memory_than_the_window(make: Callable[[int], bytes]) -> None:
    limits = Limits(message_bytes=200_000, window_bytes=400_000, window_frames=64, ack_bytes=1000)
    assert flood(make, limits) < limits.window_bytes + 4 * FRAGMENT_BYTES
