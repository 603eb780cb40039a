"""A child's word comes back from the one it was given to, for what it was given for."""

import base64
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from gateway.errors import StaleState
from gateway.sessions.sealing import Sealer
from gateway.sessions.seals import RETRY_KEYS, Kind, Seal, Seals, bound_to

SECRET = b"s" * 32
SEALS = Seals(SECRET)
KINDS: tuple[Kind, ...] = get_args(Kind)
TTL_S = 60.0


def seal(kind: Kind = "requestState", **facts: str) -> Seal:
    given = {
        "principal": "me",
        "fingerprint": "f" * 64,
        "launch_id": "launch",
        "bound": "bound",
        "word": "word",
        **facts,
    }
    return Seal(kind, **given)


def refused(text: str, kind: Kind = "requestState", who: str = "me", bound: str = "bound") -> str:
    """Return what is said of something that does not open."""
    with pytest.raises(StaleState) as stale:
        SEALS.open(text, kind, who, bound, TTL_S)
    assert (stale.value.status, stale.value.code) == (400, -32602)
    return stale.value.message


@pytest.mark.parametrize("kind", KINDS)
@given(word=st.text(max_size=200))
@settings(max_examples=30, deadline=None)
def test_word_comes_back_as_the_child_gave_it(kind: Kind, word: str) -> None:
    given_out = seal(kind, word=word)
    assert SEALS.open(SEALS.close(given_out), kind, "me", "bound", TTL_S) == given_out


def test_another_process_of_the_deployment_opens_it() -> None:
    text = SEALS.close(seal())
    assert Seals(SECRET).open(text, "requestState", "me", "bound", TTL_S) == seal()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_word_of_one_kind_is_never_taken_for_another(kind: Kind, other: Kind) -> None:
    if kind != other:
        refused(SEALS.close(seal(kind)), other)


@pytest.mark.parametrize("who", ["you", "", "ME", "me "])
def test_word_is_refused_from_another_principal(who: str) -> None:
    refused(SEALS.close(seal()), who=who)


@pytest.mark.parametrize("bound", ["", "Bound", "bound0"])
def test_word_is_refused_with_another_request(bound: str) -> None:
    refused(SEALS.close(seal()), bound=bound)


def test_word_is_refused_by_another_deployment() -> None:
    refused(Seals(b"t" * 32).close(seal()))


def test_capsule_or_key_of_the_deployment_is_no_word() -> None:
    refused(Sealer(SECRET, "rendezvous capsule v1", Seal).seal(seal()))


@pytest.mark.parametrize("text", ["", "word", "é", "\ud800", "=" * 8], ids=repr)
def test_what_was_never_sealed_is_refused(text: str) -> None:
    refused(text)


@pytest.mark.parametrize("tail", ["=", "AAAA", "\n", "x"], ids=repr)
def test_what_has_grown_is_refused(tail: str) -> None:
    refused(SEALS.close(seal()) + tail)


def test_all_refusals_read_the_same() -> None:
    text = SEALS.close(seal())
    said = {refused("x"), refused(text, who="you"), refused(text, bound="b"), refused(text + "=")}
    assert len(said) == 1


def test_word_that_is_too_old_is_refused() -> None:
    with pytest.raises(StaleState):
        SEALS.open(SEALS.close(seal()), "requestState", "me", "bound", -1.0)


def test_word_is_not_readable() -> None:
    text = SEALS.close(seal(word="plain-word"))
    assert b"plain-word" not in base64.urlsafe_b64decode(text)


# What a retry shares with its request


def raws(**params: Any) -> dict[str, Raw]:
    return {key: Raw(msgspec.json.encode(value)) for key, value in params.items()}


def test_retry_is_bound_to_the_same_request() -> None:
    first = raws(name="work", arguments={"a": 1}, _meta={"progressToken": 1})
    retry = raws(
        arguments={"a": 1},
        name="work",
        _meta={"progressToken": 2},
        inputResponses={"q": {}},
        requestState="sealed",
    )
    assert bound_to("tools/call", first) == bound_to("tools/call", retry)


def test_only_what_a_retry_adds_is_left_out() -> None:
    assert {"_meta", "inputResponses", "requestState"} == RETRY_KEYS


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("prompts/get", raws(name="work", arguments={"a": 1})),
        ("tools/call", raws(name="play", arguments={"a": 1})),
        ("tools/call", raws(name="work", arguments={"a": 2})),
        ("tools/call", raws(name="work", arguments={"a": 1}, more=1)),
        ("tools/call", raws(name="work")),
        ("tools/call", raws(arguments="work", name={"a": 1})),
        ("tools/call", {}),
    ],
    ids=["method", "name", "argument", "more", "less", "swapped", "empty"],
)
def test_other_request_is_bound_otherwise(method: str, params: dict[str, Raw]) -> None:
    mine = bound_to("tools/call", raws(name="work", arguments={"a": 1}))
    assert bound_to(method, params) != mine


@pytest.mark.parametrize(
    ("method", "params"),
    [("m", {'a\0"1"\0b': Raw(b'"2"')}), ('m\0a\0"1"', {"b": Raw(b'"2"')})],
    ids=["key", "method"],
)
def test_names_cannot_run_into_one_another(method: str, params: dict[str, Raw]) -> None:
    assert bound_to(method, params) != bound_to("m", raws(a="1", b="2"))


NAMES = st.text("ab\0", min_size=1, max_size=4)
PARAMS = st.dictionaries(NAMES, st.text("ab", max_size=4) | st.integers(0, 9), max_size=4)


@given(first=PARAMS, second=PARAMS, methods=st.tuples(NAMES, NAMES))
@settings(max_examples=300, deadline=None)
def test_two_requests_are_bound_alike_only_if_they_are_equal(
    first: dict[str, Any], second: dict[str, Any], methods: tuple[str, str]
) -> None:
    alike = bound_to(methods[0], raws(**first)) == bound_to(methods[1], raws(**second))
    assert alike == (first == second and methods[0] == methods[1])
