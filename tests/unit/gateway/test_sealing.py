"""What others carry for the gateway comes back as it was written, or not at all."""

import base64
import json
from types import SimpleNamespace

import msgspec
import pytest
from cryptography import fernet
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.sessions.sealing import BadSeal, Sealer

SECRET = b"s" * 32


class Facts(msgspec.Struct, frozen=True):
    name: str
    number: int = 0


class Others(msgspec.Struct, frozen=True):
    number: str


SEALER = Sealer(SECRET, "purpose", Facts)
FACTS = Facts("é\ud7ff\U0001f642", 7)


@given(name=st.text(max_size=300), number=st.integers(-(2**62), 2**62))
@settings(max_examples=100, deadline=None)
def test_facts_come_back_as_they_were_sealed(name: str, number: int) -> None:
    facts = Facts(name, number)
    assert SEALER.open(SEALER.seal(facts)) == facts


def test_sealed_text_is_safe_in_headers_and_json() -> None:
    text = SEALER.seal(FACTS)
    assert set(text) <= set(base64.urlsafe_b64encode(bytes(range(256))).decode()) | {"-", "_", "="}
    assert json.loads(json.dumps(text)) == text


def test_sealed_text_shows_nothing_of_the_facts() -> None:
    text = SEALER.seal(Facts("plain-word"))
    assert b"plain-word" not in base64.urlsafe_b64decode(text)


def test_one_fact_is_sealed_differently_each_time() -> None:
    assert SEALER.seal(FACTS) != SEALER.seal(FACTS)


@pytest.mark.parametrize(
    "sealer",
    [
        pytest.param(Sealer(b"t" * 32, "purpose", Facts), id="another secret"),
        pytest.param(Sealer(SECRET, "other purpose", Facts), id="another purpose"),
    ],
)
def test_seal_of_somebody_else_is_refused(sealer: Sealer[Facts]) -> None:
    with pytest.raises(BadSeal):
        SEALER.open(sealer.seal(FACTS))


def test_facts_of_another_kind_are_refused() -> None:
    with pytest.raises(BadSeal):
        Sealer(SECRET, "purpose", Others).open(SEALER.seal(FACTS))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "====",
        "é",
        "\ud800",
        "\0",
        base64.urlsafe_b64encode(b"\x80" + b"0" * 80).decode(),
        "A" * 100_000,
    ],
    ids=["empty", "x", "padding", "accent", "half", "nul", "zeros", "long"],
)
def test_garbage_is_refused(text: str) -> None:
    with pytest.raises(BadSeal):
        SEALER.open(text)


@given(place=st.integers(0, 10_000), change=st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_any_changed_character_is_noticed(place: int, change: int) -> None:
    text = SEALER.seal(FACTS)
    place %= len(text)
    changed = text[:place] + chr((ord(text[place]) + change) % 256) + text[place + 1 :]
    with pytest.raises(BadSeal):
        SEALER.open(changed)


@pytest.mark.parametrize("tail", ["=", "A", "AAAA", "\n", " ", "garbage", "!", "==AAAA", "\0"])
@pytest.mark.parametrize("name", ["", "a", "ab", "abc", "abcd" * 4])
def test_anything_appended_is_noticed(name: str, tail: str) -> None:
    with pytest.raises(BadSeal):
        SEALER.open(SEALER.seal(Facts(name)) + tail)


@pytest.mark.parametrize("place", [0, 10, -4])
@pytest.mark.parametrize("junk", ["\n", " ", "!", "\r\n"])
def test_anything_inserted_is_noticed(place: int, junk: str) -> None:
    text = SEALER.seal(FACTS)
    with pytest.raises(BadSeal):
        SEALER.open(text[:place] + junk + text[place:])


def test_missing_padding_is_noticed() -> None:
    padded = [text for n in range(16) if (text := SEALER.seal(Facts("x" * n))).endswith("=")]
    assert padded
    for text in padded:
        with pytest.raises(BadSeal):
            SEALER.open(text.rstrip("="))


def test_standard_alphabet_is_noticed() -> None:
    texts = [SEALER.seal(FACTS) for _ in range(50)]
    spelled = [text.replace("-", "+").replace("_", "/") for text in texts]
    others = [text for text in spelled if text not in texts]
    assert others
    for text in others:
        with pytest.raises(BadSeal):
            SEALER.open(text)


@pytest.mark.parametrize(("age_s", "opens"), [(0, True), (60, True), (61, False), (10**6, False)])
def test_seal_opens_for_as_long_as_it_may(
    monkeypatch: pytest.MonkeyPatch, age_s: int, *, opens: bool
) -> None:
    text = SEALER.seal(FACTS)
    sealed = int.from_bytes(base64.urlsafe_b64decode(text)[1:9], "big")
    monkeypatch.setattr(fernet, "time", SimpleNamespace(time=lambda: sealed + age_s))
    if opens:
        assert SEALER.open(text, 60.0) == FACTS
    else:
        with pytest.raises(BadSeal):
            SEALER.open(text, 60.0)


def test_seal_without_a_limit_opens_at_any_age(monkeypatch: pytest.MonkeyPatch) -> None:
    text = SEALER.seal(FACTS)
    sealed = int.from_bytes(base64.urlsafe_b64decode(text)[1:9], "big")
    monkeypatch.setattr(fernet, "time", SimpleNamespace(time=lambda: sealed + 10**8))
    assert SEALER.open(text) == FACTS
