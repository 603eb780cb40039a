"""The face that leaves everything as it is, and what waits for a handshake."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyno_agent.faces import plain
from dyno_agent.faces.face import Moves
from dyno_agent.faces.plain import PlainFace

INITIALIZE = b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}'
WELCOME = b'{"jsonrpc":"2.0","id":1,"result":{}}'
REFUSAL = b'{"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"no"}}'
CALL = b'{"jsonrpc":"2.0","id":2,"method":"tools/list"}'
PING = b'{"jsonrpc":"2.0","id":3,"method":"ping"}'
INITIALIZED = b'{"jsonrpc":"2.0","method":"notifications/initialized"}'
LOG = b'{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":1}}'


def opened() -> PlainFace:
    face = PlainFace()
    face.from_gateway(INITIALIZE)
    return face


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The lines that the face has read so far."""
    seen: list[bytes] = []
    real = plain._peek

    def peek(line: bytes) -> dict[str, Any]:
        seen.append(line)
        return real(line)

    monkeypatch.setattr(plain, "_peek", peek)
    return seen


def test_nothing_is_held_before_a_handshake() -> None:
    assert not PlainFace().holding


def test_handshake_holds_what_follows() -> None:
    assert opened().holding


def test_handshake_is_over_with_its_answer() -> None:
    face = opened()
    face.from_child(WELCOME)
    assert not face.holding


@pytest.mark.parametrize(
    "line",
    [
        LOG,
        b"Server ready!",
        b'["a batch"]',
        b"[" * 100_000,
        b'{"jsonrpc":"2.0","id":2,"result":{}}',
        b'{"jsonrpc":"2.0","id":"1","result":{}}',
        b'{"jsonrpc":"2.0","id":1,"method":"ping"}',
    ],
)
def test_only_the_answer_ends_the_holding(line: bytes) -> None:
    face = opened()
    face.from_child(line)
    assert face.holding


def test_answer_ends_the_holding_whatever_numbers_are_in_it() -> None:
    face = opened()
    face.from_child(b'{"id":1,"result":{"capabilities":{"experimental":{"a":NaN,"b":1e400}}}}')
    assert not face.holding


def test_refused_handshake_may_be_tried_again() -> None:
    face = opened()
    face.from_child(REFUSAL)
    assert not face.holding
    face.from_gateway(INITIALIZE)
    assert face.holding


def test_handshake_after_a_ping_holds() -> None:
    face = PlainFace()
    face.from_gateway(PING)
    assert not face.holding
    face.from_child(b'{"jsonrpc":"2.0","id":3,"result":{}}')
    face.from_gateway(INITIALIZE)
    assert face.holding


@pytest.mark.parametrize("line", [INITIALIZED, LOG, WELCOME, b"not JSON", b"[1]", b'{"id":null}'])
def test_what_is_no_request_does_not_decide_the_era(line: bytes) -> None:
    face = PlainFace()
    face.from_gateway(line)
    face.from_gateway(INITIALIZE)
    assert face.holding


def test_modern_child_is_never_held() -> None:
    face = PlainFace()
    face.from_gateway(CALL)
    face.from_gateway(INITIALIZE)
    assert not face.holding


def test_nothing_is_read_after_the_handshake(reads: list[bytes]) -> None:
    face = opened()
    face.from_child(WELCOME)
    reads.clear()
    for line in (INITIALIZED, CALL, INITIALIZE):
        face.from_gateway(line)
        face.from_child(line)
    assert reads == []


def test_only_the_first_request_of_a_modern_child_is_read(reads: list[bytes]) -> None:
    face = PlainFace()
    for line in (CALL, INITIALIZE, CALL):
        face.from_gateway(line)
        face.from_child(line)
    assert reads == [CALL]


LINES = st.sampled_from([INITIALIZE, WELCOME, REFUSAL, CALL, PING, INITIALIZED, LOG]) | st.binary()


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.booleans(), LINES | st.builds(json.dumps, st.text()).map(str.encode))))
def test_every_line_passes_as_it_came(script: Sequence[tuple[bool, bytes]]) -> None:
    face = PlainFace()
    for to_child, line in script:
        if to_child:
            assert face.from_gateway(line) == Moves(to_child=[line])
        else:
            assert face.from_child(line) == Moves(to_gateway=[line])
