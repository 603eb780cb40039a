"""The bytes of every frame are what they always were, and nothing else is taken for a frame.

The hexadecimal texts are the wire itself: a change here is a new major version of the link.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyno_agent.link import Channel, CloseCode, ProtocolViolation
from dyno_agent.link.frames import (
    MAX_FRAME_BYTES,
    Frame,
    FrameType,
    MessageTooBig,
    WindowExceeded,
    decode,
    encode,
)

GOLDEN = {
    "message on rpc": (
        Frame(FrameType.DATA, True, True, Channel.RPC, 1, 0, b"{}"),
        "10 03 0000 0000000000000001 0000000000000000 7b7d",
    ),
    "first fragment on log": (
        Frame(FrameType.DATA, True, False, Channel.LOG, 2, 1, b"\x00\xff"),
        "10 02 0001 0000000000000002 0000000000000001 00ff",
    ),
    "middle fragment on log": (
        Frame(FrameType.DATA, False, False, Channel.LOG, 2, 1, b"\x00\xff"),
        "10 00 0001 0000000000000002 0000000000000001 00ff",
    ),
    "last fragment on log": (
        Frame(FrameType.DATA, False, True, Channel.LOG, 2, 1, b"\x00\xff"),
        "10 01 0001 0000000000000002 0000000000000001 00ff",
    ),
    "empty message on event": (
        Frame(
            FrameType.DATA, True, True, Channel.EVENT, 0x0102030405060708, 0x1112131415161718, b""
        ),
        "10 03 0002 0102030405060708 1112131415161718",
    ),
    "message on cmd": (
        Frame(FrameType.DATA, True, True, Channel.CMD, 3, 2, b"stop"),
        "10 03 0003 0000000000000003 0000000000000002 73746f70",
    ),
    "message on replay": (
        Frame(FrameType.DATA, True, True, Channel.REPLAY, 4, 3, b"{}"),
        "10 03 0004 0000000000000004 0000000000000003 7b7d",
    ),
    "acknowledgement": (
        Frame(FrameType.ACK, False, False, Channel.RPC, 0, 258, b""),
        "20 00 0000 0000000000000000 0000000000000102",
    ),
    "heartbeat": (
        Frame(FrameType.HEARTBEAT, False, False, Channel.RPC, 0, 2**64 - 1, b""),
        "21 00 0000 0000000000000000 ffffffffffffffff",
    ),
}

MALFORMED = {
    "nothing": "",
    "a header cut short": "10 03 0000 0000000000000001 00000000000000",
    "type zero": "00 03 0000 0000000000000001 0000000000000000",
    "an unknown type": "22 00 0000 0000000000000000 0000000000000000",
    "an unknown channel": "10 03 0005 0000000000000001 0000000000000000",
    "a channel in the high byte": "10 03 0100 0000000000000001 0000000000000000",
    "an unknown flag": "10 04 0000 0000000000000001 0000000000000000",
    "known flags and an unknown one": "10 83 0000 0000000000000001 0000000000000000",
    "data without a number": "10 03 0000 0000000000000000 0000000000000000 7b7d",
    "an acknowledgement with a number": "20 00 0000 0000000000000001 0000000000000000",
    "an acknowledgement with a channel": "20 00 0001 0000000000000000 0000000000000000",
    "an acknowledgement that ends": "20 01 0000 0000000000000000 0000000000000000",
    "an acknowledgement that begins": "20 02 0000 0000000000000000 0000000000000000",
    "an acknowledgement with payload": "20 00 0000 0000000000000000 0000000000000000 00",
    "a heartbeat with a number": "21 00 0000 0000000000000001 0000000000000000",
    "a heartbeat with a channel": "21 00 0003 0000000000000000 0000000000000000",
    "a heartbeat that ends": "21 01 0000 0000000000000000 0000000000000000",
    "a heartbeat that begins": "21 02 0000 0000000000000000 0000000000000000",
    "a heartbeat with payload": "21 00 0000 0000000000000000 0000000000000000 00",
}

uint64 = st.integers(0, 2**64 - 1)
data_frames = st.builds(
    Frame,
    st.just(FrameType.DATA),
    st.booleans(),
    st.booleans(),
    st.sampled_from(Channel),
    st.integers(1, 2**64 - 1),
    uint64,
    st.binary(max_size=200),
)
bare_frames = st.builds(
    Frame,
    st.sampled_from((FrameType.ACK, FrameType.HEARTBEAT)),
    st.just(False),
    st.just(False),
    st.just(Channel.RPC),
    st.just(0),
    uint64,
    st.just(b""),
)


@pytest.mark.parametrize(("frame", "wire"), GOLDEN.values(), ids=GOLDEN)
def test_frame_is_these_bytes(frame: Frame, wire: str) -> None:
    assert encode(frame) == bytes.fromhex(wire)


@pytest.mark.parametrize(("frame", "wire"), GOLDEN.values(), ids=GOLDEN)
def test_these_bytes_are_the_frame(frame: Frame, wire: str) -> None:
    assert decode(bytes.fromhex(wire)) == frame


@pytest.mark.parametrize("wire", MALFORMED.values(), ids=MALFORMED)
def test_malformed_frame_is_refused(wire: str) -> None:
    with pytest.raises(ProtocolViolation):
        decode(bytes.fromhex(wire))


def test_largest_frame_carries_sixty_four_kibibytes() -> None:
    frame = Frame(FrameType.DATA, True, True, Channel.RPC, 1, 0, bytes(65_536))
    assert decode(encode(frame)) == frame
    assert MAX_FRAME_BYTES == 65_556


def test_frame_one_byte_over_the_largest_is_refused() -> None:
    frame = Frame(FrameType.DATA, True, True, Channel.RPC, 1, 0, bytes(65_537))
    with pytest.raises(ProtocolViolation):
        decode(encode(frame))


@settings(deadline=None, derandomize=True)
@given(data_frames | bare_frames)
def test_every_frame_survives_the_wire(frame: Frame) -> None:
    assert decode(encode(frame)) == frame


@settings(deadline=None, derandomize=True)
@given(st.binary(max_size=64))
def test_bytes_are_refused_or_mean_exactly_one_frame(data: bytes) -> None:
    try:
        frame = decode(data)
    except ProtocolViolation:
        return
    assert encode(frame) == data


def test_channels_and_types_keep_their_numbers() -> None:
    assert {member.name: member.value for member in Channel} == {
        "RPC": 0,
        "LOG": 1,
        "EVENT": 2,
        "CMD": 3,
        "REPLAY": 4,
    }
    assert {member.name: member.value for member in FrameType} == {
        "DATA": 0x10,
        "ACK": 0x20,
        "HEARTBEAT": 0x21,
    }


@pytest.mark.parametrize(
    ("violation", "code"),
    [
        (ProtocolViolation, CloseCode.PROTOCOL_VIOLATION),
        (WindowExceeded, CloseCode.WINDOW_EXCEEDED),
        (MessageTooBig, CloseCode.MESSAGE_TOO_BIG),
    ],
)
def test_violation_is_closed_with_its_own_code(
    violation: type[ProtocolViolation], code: CloseCode
) -> None:
    assert issubclass(violation, ProtocolViolation)
    assert violation("why").code is code
