"""Proves that a session is opened once more for whom it was, and a member's for its toolkit's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.eras.legacy import Opening
from gateway.registry.servers import Registry, ServerDefinition, toolkit
from gateway.sessions.keys import SessionKeys
from gateway.sessions.reopening import Reopenings

SECRET = b"a secret of this deployment, long enough"
LONGEST = 4096
OPENING = Opening('{"protocolVersion":"2025-06-18"}', "2025-06-18")

PG, MD = ServerDefinition(name="pg"), ServerDefinition(name="md")
AGAIN = ServerDefinition(name="again", stale="rebuild")
DATA = toolkit("data", ["pg"])
ALL = toolkit("all")

KEYS = SessionKeys(SECRET, lambda size: "n" * size)


def reopenings(*, secret: bytes = SECRET, gateway: str = "here") -> Reopenings:
    registry = Registry([PG, MD, AGAIN], [DATA, ALL])
    return Reopenings(secret, KEYS, registry, LONGEST, gateway)


def key_of(
    server: ServerDefinition, opening: Opening = OPENING, made: Reopenings | None = None
) -> str:
    return KEYS.mint((made or reopenings()).sealed(server, "alice", opening), dormant=True)


def member_of(key: str, server: ServerDefinition = PG) -> str:
    member = reopenings().member_key(key, "alice", DATA, server)
    assert member is not None
    return member


# Sessions of servers


def test_session_is_opened_as_its_client_opened_it() -> None:
    assert reopenings().read(key_of(AGAIN), "alice", AGAIN) == OPENING


def test_session_of_a_strict_server_carries_nothing() -> None:
    assert reopenings().sealed(PG, "alice", OPENING) == ""


def test_opening_too_long_to_be_carried_is_not() -> None:
    assert reopenings().sealed(AGAIN, "alice", Opening("x" * LONGEST)) == ""


@pytest.mark.parametrize(("principal", "server"), [("bob", AGAIN), ("alice", PG), ("alice", ALL)])
def test_session_is_not_opened_for_others(principal: str, server: ServerDefinition) -> None:
    assert reopenings().read(key_of(AGAIN), principal, server) is None


def test_key_that_nobody_issued_opens_nothing_whatever_it_carries() -> None:
    assert reopenings().read("x" + key_of(AGAIN), "alice", AGAIN) is None
    assert reopenings().read("~x" + key_of(DATA)[2:], "alice", DATA) is None


# Sessions of toolkits


def test_opening_of_a_toolkits_session_is_carried_shortened_if_it_is_too_long() -> None:
    capabilities: Any = {"roots": {}}
    params = {"capabilities": capabilities, "x": "x" * LONGEST, "clientInfo": {"name": "c"}}
    key = key_of(DATA, Opening(json.dumps(params), "2025-06-18"))
    found = reopenings().read(key, "alice", DATA)
    assert found is not None
    assert found.told == "2025-06-18"
    assert json.loads(found.params) == {
        "protocolVersion": "2025-06-18",
        "capabilities": capabilities,
        "clientInfo": {"name": "c", "version": ""},
    }


def test_capabilities_too_long_to_be_carried_are_left_out() -> None:
    params = {"capabilities": {"x": "x" * LONGEST}}
    found = reopenings().read(key_of(DATA, Opening(json.dumps(params))), "alice", DATA)
    assert found is not None
    assert json.loads(found.params)["capabilities"] == {}


def test_key_of_a_toolkits_session_has_room_in_a_header() -> None:
    params = {"capabilities": {"x": "é" * 2000}, "clientInfo": {"name": "n" * 9999}}
    assert len(member_of(key_of(DATA, Opening(json.dumps(params))))) < LONGEST + 200


# Sessions of members


def test_member_is_opened_as_its_toolkit_was_but_bound_to_no_revision() -> None:
    """The child may be older than what the toolkit speaks."""
    member = member_of(key_of(DATA))
    assert reopenings().read(member, "alice", PG) == Opening(OPENING.params)


def test_key_of_a_member_is_the_one_that_keys_derive() -> None:
    key = key_of(DATA)
    assert member_of(key) == KEYS.member(key, "pg")


def test_another_server_than_a_member_has_no_key() -> None:
    assert reopenings().member_key(key_of(DATA), "alice", DATA, MD) is None


@pytest.mark.parametrize(
    ("principal", "kit", "key"),
    [
        ("bob", DATA, key_of(DATA)),
        ("alice", ALL, key_of(DATA)),
        ("alice", DATA, key_of(AGAIN)),
        ("alice", DATA, key_of(ALL)),
        ("alice", DATA, "x" + key_of(DATA)),
        ("alice", DATA, KEYS.mint(dormant=True)),
        ("alice", DATA, key_of(DATA, made=reopenings(secret=SECRET + b"x"))),
        ("alice", DATA, member_of(key_of(DATA))),
        ("alice", AGAIN, key_of(AGAIN)),
    ],
)
def test_other_keys_than_of_this_toolkit_and_principal_lead_to_no_member(
    principal: str, kit: ServerDefinition, key: str
) -> None:
    assert reopenings().member_key(key, principal, kit, PG) is None


@pytest.mark.parametrize(("principal", "server"), [("bob", PG), ("alice", MD), ("alice", DATA)])
def test_session_of_a_member_is_not_opened_for_others(
    principal: str, server: ServerDefinition
) -> None:
    assert reopenings().read(member_of(key_of(DATA)), principal, server) is None


def test_key_of_a_member_with_what_a_servers_key_carries_opens_nothing() -> None:
    nonce, mac, _ = member_of(key_of(DATA)).split(".")
    carried = SessionKeys.carried(key_of(AGAIN))
    assert reopenings().read(f"{nonce}.{mac}.{carried}", "alice", AGAIN) is None


# Where it began


def test_members_session_began_where_its_toolkits_did() -> None:
    member = member_of(key_of(DATA, made=reopenings(gateway="here")))
    assert reopenings(gateway="here").began_here(member)
    assert not reopenings(gateway="there").began_here(member)


@pytest.mark.parametrize("key", [key_of(DATA), key_of(AGAIN), "", "~~x.y.z"])
def test_only_members_sessions_are_said_to_have_begun_here(key: str) -> None:
    assert not reopenings().began_here(key)
