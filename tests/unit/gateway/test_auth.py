"""Proves who comes in with which key, and that nobody else does."""

import pytest
from multidict import CIMultiDict

from gateway.edge.auth import ANONYMOUS, KeyRing
from gateway.errors import BadKey

RING = KeyRing({"key-a": "alice", "key-b": "bob", "schlüssel": "eve"})


def who(ring: KeyRing = RING, **headers: str) -> str:
    given = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})
    return ring.principal(given)


@pytest.mark.parametrize(("key", "principal"), [("key-a", "alice"), ("key-b", "bob")])
@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER  "])
def test_bearer_key_leads_to_its_principal(key: str, principal: str, scheme: str) -> None:
    assert who(Authorization=f"{scheme}{key}") == principal


def test_api_key_header_leads_to_its_principal() -> None:
    assert who(X_API_Key="key-b") == "bob"


def test_api_key_header_counts_beside_another_authorization_scheme() -> None:
    assert who(Authorization="Basic eDp5", X_API_Key="key-b") == "bob"


def test_key_outside_ascii_leads_to_its_principal() -> None:
    assert who(X_API_Key="schlüssel") == "eve"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "key-a"},
        {"Authorization": "Basic key-a"},
        {"Authorization": "Bearer key-"},
        {"Authorization": "Bearer key-aa"},
        {"Authorization": "Bearer KEY-A"},
        {"Authorization": "Bearer key-a key-b"},
        {"Authorization": "Bearer \udcff"},
        {"Authorization": "Bearer alice"},
        {"X_API_Key": ""},
        {"X_API_Key": "Bearer key-a"},
        {"X_API_Key": "é\udcff"},
    ],
)
def test_anything_else_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(BadKey):
        who(RING, **headers)


def test_unknown_bearer_key_is_refused_even_beside_a_good_header() -> None:
    with pytest.raises(BadKey):
        who(Authorization="Bearer wrong", X_API_Key="key-a")


def test_refusal_does_not_repeat_the_key() -> None:
    with pytest.raises(BadKey) as caught:
        who(Authorization="Bearer almost-right")
    assert "almost-right" not in caught.value.message


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer whatever"}])
def test_ring_without_keys_takes_everybody_as_anonymous(headers: dict[str, str]) -> None:
    assert who(KeyRing({}), **headers) == ANONYMOUS


def test_ring_keeps_no_key_in_the_clear() -> None:
    assert "key-a" not in repr(vars(RING))
