"""HELLO and WELCOME: what is written is read again, what is wrong is refused, never a crash."""

import json
from dataclasses import asdict, replace
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyno_agent.link import ChildSpec, Hello, Limits, ProtocolViolation, Welcome
from dyno_agent.link.limits import CAPSULE_BYTES, HANDSHAKE_BYTES, WELCOME_BYTES

HELLO = Hello("join", "b" * 32, "c" * 64, 7, 5, 300, 2, "0.1.0", "3.11.7", "run.4711")
CHILD = ChildSpec(("npx", "-y", "server"), {"KEY": "välue"}, "/app")
WELCOME = Welcome(
    3, 12, Limits(message_bytes=1000, window_bytes=1_000_000), 300.0, 10.0, CHILD, True, "sealed"
)

long_text = "x" * 65
BAD_HELLOS: dict[str, list[object]] = {
    "kind": ["", "JOIN", "adopt", None, 1, ["join"]],
    "boot_id": [None, 1, long_text, ["b"], {}],
    "proof": [None, 1, long_text, ["c"], {}],
    "received": [-1, 2**63, 1.0, True, "1", None],
    "confirmed": [-1, 2**63, 1.0, True, "1", None],
    "held_bytes": [-1, 2**63, 1.0, True, "1", None],
    "held_frames": [-1, 2**63, 1.0, True, "1", None],
    "agent": [None, 1, long_text],
    "python": [None, 3.11, long_text],
    "dyno": [None, 1, long_text],
}
BAD_WELCOMES: dict[str, list[object]] = {
    "epoch": [None, "first", [], float("inf")],
    "received": [-1, 2**63, 1.0, True, "1", None],
    "limits": [None, [], "big", {"message_bytes": 2**40}, {"window_frames": "many"}],
    "orphan_s": [None, "long", [], 10**400],
    "grace_s": [None, "long", [], 10**400],
    "capsule": [None, 1, ["sealed"], {}, "x" * (CAPSULE_BYTES + 1)],
    "child": [[], "npx", 5, {}, {"argv": ["a"]}, {"argv": ["a"], "env": []}, {"argv": 1}],
}


def pairs(table: dict[str, list[object]]) -> list[tuple[str, object]]:
    return [(key, value) for key, values in table.items() for value in values]


def short(value: object) -> str:
    return str(value)[:24]


def altered(text: str, **changes: object) -> str:
    return json.dumps({**json.loads(text), **changes})


@pytest.mark.parametrize("kind", ["join", "resume"])
def test_hello_survives_the_wire(kind: Literal["join", "resume"]) -> None:
    hello = replace(HELLO, kind=kind)
    assert Hello.decode(hello.encode()) == hello


@pytest.mark.parametrize("child", [CHILD, ChildSpec(("server",)), None])
def test_welcome_survives_the_wire(child: ChildSpec | None) -> None:
    welcome = replace(WELCOME, child=child)
    assert Welcome.decode(welcome.encode()) == welcome


def test_hello_is_this_document() -> None:
    assert json.loads(HELLO.encode()) == {
        "kind": "join",
        "boot_id": "b" * 32,
        "proof": "c" * 64,
        "received": 7,
        "confirmed": 5,
        "held_bytes": 300,
        "held_frames": 2,
        "agent": "0.1.0",
        "python": "3.11.7",
        "dyno": "run.4711",
    }


def test_welcome_is_this_document() -> None:
    assert json.loads(WELCOME.encode()) == {
        "epoch": 3,
        "received": 12,
        "limits": {
            "message_bytes": 1000,
            "window_bytes": 1_000_000,
            "window_frames": 4096,
            "heartbeat_s": 15.0,
            "dead_s": 45.0,
            "ack_bytes": 256 * 1024,
            "ack_frames": 32,
        },
        "orphan_s": 300.0,
        "grace_s": 10.0,
        "child": {
            "argv": ["npx", "-y", "server"],
            "env": {"KEY": "välue"},
            "cwd": "/app",
            "face": "plain",
        },
        "fresh": True,
        "capsule": "sealed",
    }


def test_hello_with_keys_of_a_later_version_is_read() -> None:
    assert Hello.decode(altered(HELLO.encode(), features=["parking"], later={})) == HELLO


def test_welcome_with_keys_of_a_later_version_is_read() -> None:
    assert Welcome.decode(altered(WELCOME.encode(), features=[], later={})) == WELCOME


@pytest.mark.parametrize("inner", ["limits", "child"])
def test_welcome_with_later_keys_further_in_is_read(inner: str) -> None:
    document = json.loads(WELCOME.encode())
    document[inner]["later"] = 1
    assert Welcome.decode(json.dumps(document)) == WELCOME


@pytest.mark.parametrize(("key", "value"), pairs(BAD_HELLOS), ids=short)
def test_hello_with_a_bad_value_is_refused(key: str, value: object) -> None:
    with pytest.raises(ProtocolViolation):
        Hello.decode(altered(HELLO.encode(), **{key: value}))


@pytest.mark.parametrize(("key", "value"), pairs(BAD_WELCOMES), ids=short)
def test_welcome_with_a_bad_value_is_refused(key: str, value: object) -> None:
    with pytest.raises(ProtocolViolation):
        Welcome.decode(altered(WELCOME.encode(), **{key: value}))


@pytest.mark.parametrize("key", ["epoch", "limits", "orphan_s", "grace_s"])
def test_welcome_without_a_needed_key_is_refused(key: str) -> None:
    document = json.loads(WELCOME.encode())
    del document[key]
    with pytest.raises(ProtocolViolation):
        Welcome.decode(json.dumps(document))


def without(text: str, *keys: str) -> str:
    return json.dumps({key: value for key, value in json.loads(text).items() if key not in keys})


def test_hello_of_an_agent_that_confirms_nothing_is_read() -> None:
    older = without(HELLO.encode(), "confirmed", "held_bytes", "held_frames")
    assert Hello.decode(older) == replace(HELLO, confirmed=0, held_bytes=0, held_frames=0)


def test_welcome_of_a_gateway_without_capsules_is_read() -> None:
    older = without(WELCOME.encode(), "fresh", "capsule")
    assert Welcome.decode(older) == replace(WELCOME, fresh=False, capsule="")


def test_capsule_of_the_largest_size_is_carried() -> None:
    welcome = replace(WELCOME, capsule="x" * CAPSULE_BYTES)
    assert Welcome.decode(welcome.encode()) == welcome


def test_hello_without_a_kind_is_refused() -> None:
    with pytest.raises(ProtocolViolation):
        Hello.decode("{}")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"join"', "[" * 20_000, "1" * 5000])
@pytest.mark.parametrize("document", [Hello, Welcome])
def test_text_that_is_no_object_is_refused(document: type[Hello | Welcome], text: str) -> None:
    with pytest.raises(ProtocolViolation):
        document.decode(text)


@pytest.mark.parametrize(
    ("document", "text", "limit"),
    [(Hello, HELLO.encode(), HANDSHAKE_BYTES), (Welcome, WELCOME.encode(), WELCOME_BYTES)],
    ids=["HELLO", "WELCOME"],
)
def test_document_may_be_as_large_as_its_limit_and_no_larger(
    document: type[Hello | Welcome], text: str, limit: int
) -> None:
    padded = text.ljust(limit)
    assert document.decode(padded) == document.decode(text)
    with pytest.raises(ProtocolViolation):
        document.decode(padded + " ")


def test_secrets_of_the_child_are_not_in_its_repr() -> None:
    assert "välue" not in repr(WELCOME)


def test_capsule_is_not_in_the_repr() -> None:
    assert "sealed" not in repr(WELCOME)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


def documents(example: Hello | Welcome) -> st.SearchStrategy[str]:
    """Objects in which every key is right, wrong or absent."""
    right: dict[str, Any] = asdict(example)
    keys = {key: st.just(value) | values for key, value in right.items()}
    return st.fixed_dictionaries({}, optional=keys).map(json.dumps)


@settings(deadline=None, derandomize=True)
@given(st.text() | documents(HELLO))
def test_any_text_is_a_hello_or_refused(text: str) -> None:
    try:
        assert isinstance(Hello.decode(text), Hello)
    except ProtocolViolation:
        return


@settings(deadline=None, derandomize=True)
@given(st.text() | documents(WELCOME))
def test_any_text_is_a_welcome_or_refused(text: str) -> None:
    try:
        assert isinstance(Welcome.decode(text), Welcome)
    except ProtocolViolation:
        return
