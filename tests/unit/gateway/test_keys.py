"""Proves that a toolkit's key leads to those of its members' sessions, the same everywhere."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.sessions.keys import SessionKeys

SECRET = b"a secret of this deployment, long enough"


def keys(secret: bytes = SECRET) -> SessionKeys:
    return SessionKeys(secret, lambda size: "n" * size)


KEY = keys().mint("sealed~facts", dormant=True)


def test_key_of_a_member_is_the_same_at_every_process_and_time() -> None:
    assert keys().member(KEY, "pg") == keys().member(KEY, "pg")


def test_key_of_a_member_is_one_that_this_deployment_has_issued() -> None:
    assert keys().issued(keys().member(KEY, "pg"))
    assert not keys(SECRET + b"x").issued(keys().member(KEY, "pg"))


@pytest.mark.parametrize(
    ("key", "server", "secret"),
    [
        (KEY, "md", SECRET),
        (keys().mint("sealed~facts"), "pg", SECRET),
        (KEY, "pg", SECRET + b"x"),
    ],
    ids=["another server", "another session", "another deployment"],
)
def test_key_of_a_member_is_nobody_elses(key: str, server: str, secret: bytes) -> None:
    assert keys(secret).member(key, server).split(".")[0] != keys().member(KEY, "pg").split(".")[0]


def test_key_of_a_member_carries_what_its_toolkits_does() -> None:
    assert SessionKeys.carried(keys().member(KEY, "pg")) == "sealed~facts"
    assert SessionKeys.carried(keys().member(keys().mint(), "pg")) == ""


def test_key_of_a_member_may_be_dormant_and_is_told_from_others() -> None:
    member = keys().member(KEY, "pg")
    assert SessionKeys.may_be_dormant(member)
    assert SessionKeys.is_member(member)
    assert not SessionKeys.is_member(KEY)


def test_key_of_a_member_is_visible_ascii() -> None:
    assert all(0x21 <= ord(char) <= 0x7E for char in keys().member(KEY, "é" * 64))


def test_key_of_a_member_does_not_show_the_toolkits() -> None:
    nonce, mac, _ = KEY.split(".")
    assert nonce not in keys().member(KEY, "pg")
    assert mac not in keys().member(KEY, "pg")


@settings(deadline=None, derandomize=True, database=None)
@given(st.text(max_size=8), st.text(max_size=8), st.text(max_size=8), st.text(max_size=8))
def test_keys_of_members_are_the_same_only_for_the_same_session_and_server(
    nonce: str, server: str, other_nonce: str, other_server: str
) -> None:
    nonce, other_nonce = nonce.replace(".", ""), other_nonce.replace(".", "")
    same = keys().member(nonce, server) == keys().member(other_nonce, other_server)
    assert same == ((nonce, server) == (other_nonce, other_server))
