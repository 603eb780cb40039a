"""Limits that cannot work together are refused, and close codes say whether to dial again."""

import pytest

from dyno_agent.link import DEFAULT_LIMITS, CloseCode, Limits
from dyno_agent.link.closing import is_retriable

MIB = 1024 * 1024
FRAGMENT = 64 * 1024
HEAD = 16

# (what fits exactly, what is one step too far), by the relation between them
EDGES: dict[str, tuple[dict[str, float], dict[str, float]]] = {
    "a window holds one message that is sent again and a fragment": (
        {"message_bytes": MIB, "window_bytes": MIB + HEAD + FRAGMENT},
        {"message_bytes": MIB, "window_bytes": MIB + HEAD + FRAGMENT - 1},
    ),
    "frames hold one message that is sent again and one more": (
        {"message_bytes": 16 * MIB - HEAD, "window_frames": 257},
        {"message_bytes": 16 * MIB - HEAD, "window_frames": 256},
    ),
    "the head of what is sent again may take a frame of its own": (
        {"message_bytes": 16 * MIB, "window_frames": 258},
        {"message_bytes": 16 * MIB, "window_frames": 257},
    ),
    "two acknowledgements a window in frames": (
        {"window_frames": 4096, "ack_frames": 2048},
        {"window_frames": 4096, "ack_frames": 2049},
    ),
    "two acknowledgements a window in bytes": (
        {"window_bytes": 18 * MIB, "ack_bytes": 9 * MIB},
        {"window_bytes": 18 * MIB, "ack_bytes": 9 * MIB + 1},
    ),
    "three heartbeats fit before death": (
        {"heartbeat_s": 15.0, "dead_s": 45.0},
        {"heartbeat_s": 15.1, "dead_s": 45.0},
    ),
    "death comes before the router's idle limit": (
        {"dead_s": 54.9},
        {"dead_s": 55.0},
    ),
}


@pytest.mark.parametrize("fits", [fits for fits, _ in EDGES.values()], ids=EDGES)
def test_limits_that_just_work_together_are_taken(fits: dict[str, float]) -> None:
    limits = Limits(**fits)  # type: ignore[arg-type]
    assert {name: getattr(limits, name) for name in fits} == fits


@pytest.mark.parametrize("too_far", [too_far for _, too_far in EDGES.values()], ids=EDGES)
def test_limits_that_cannot_work_together_are_refused(too_far: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Limits(**too_far)  # type: ignore[arg-type]


def test_defaults_are_those_of_the_design() -> None:
    assert Limits() == DEFAULT_LIMITS
    assert (DEFAULT_LIMITS.message_bytes, DEFAULT_LIMITS.window_bytes) == (16 * MIB, 18 * MIB)
    assert (DEFAULT_LIMITS.heartbeat_s, DEFAULT_LIMITS.dead_s) == (15.0, 45.0)
    assert DEFAULT_LIMITS.window_frames == 4096


def test_close_codes_keep_their_numbers() -> None:
    assert {code.name: code.value for code in CloseCode} == {
        "NORMAL": 1000,
        "DRAIN": 4000,
        "HEARTBEAT_LOST": 4001,
        "BAD_TOKEN": 4501,
        "PROTOCOL_VIOLATION": 4502,
        "REPLAYED_TOKEN": 4503,
        "SESSION_ENDED": 4504,
        "WINDOW_EXCEEDED": 4505,
        "MESSAGE_TOO_BIG": 4506,
    }


@pytest.mark.parametrize("code", CloseCode)
def test_sentence_fits_into_a_close_frame(code: CloseCode) -> None:
    assert 0 < len(code.sentence.encode()) <= 123


@pytest.mark.parametrize("code", CloseCode)
def test_code_and_number_agree_on_redialling(code: CloseCode) -> None:
    again = code in (CloseCode.DRAIN, CloseCode.HEARTBEAT_LOST)
    assert code.retriable == is_retriable(int(code)) == again


@pytest.mark.parametrize("code", [1001, 1006, 1009, 1011, 1012, 1013, 4000, 4001, 4499, 5000])
def test_agent_dials_again_after(code: int) -> None:
    assert is_retriable(code)


@pytest.mark.parametrize("code", [1000, 4500, 4501, 4502, 4503, 4504, 4505, 4506, 4999])
def test_agent_leaves_after(code: int) -> None:
    assert not is_retriable(code)
