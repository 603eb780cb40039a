"""What went wrong, grouped by cause, each with a hint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from gateway import errors, events
from gateway.ops.admin.failures import HINTS, NO_HINT
from gateway.ops.story import Failure
from gateway.sessions.record import Reason
from tests.edge.dynos_house import NOW
from tests.ops.admin_house import Office, office
from tests.test_docs import subclasses

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

EVENTS = (
    events.NotParked,
    events.NotStopped,
    events.NotListed,
    events.NotDiscovered,
    events.NotLearned,
    events.OrphanGone,
    events.Breach,
    events.StoreAway,
    events.Contradicted,
)


@pytest_asyncio.fixture
async def at() -> AsyncIterator[Office]:
    async with office() as built:
        yield built


def fails(at: Office, cause: str, number: int, **facts: Any) -> None:
    """Let something go wrong; the newest comes last."""
    failure = Failure(at=NOW + number, cause=cause, **facts)
    at.records.failed.insert(0, failure)


async def test_failures_with_one_cause_at_one_server_are_one_group(at: Office) -> None:
    fails(at, "call_timeout", 1, server="a", session="s-1", detail="old")
    fails(at, "call_timeout", 2, server="a", session="s-2", detail="new")
    fails(at, "call_timeout", 3, server="a", session="s-1")
    (group,) = (await at.gets("/failures"))["groups"]
    assert group == {
        "cause": "call_timeout",
        "server": "a",
        "count": 3,
        "first": NOW + 1,
        "last": NOW + 3,
        "sessions": ["s-1", "s-2"],
        "example": "new",
        "hint": HINTS["call_timeout"],
    }


async def test_other_cause_or_other_server_is_another_group(at: Office) -> None:
    fails(at, "error", 1, server="a")
    fails(at, "error", 2, server="b")
    fails(at, "tool_error", 3, server="a")
    groups = (await at.gets("/failures"))["groups"]
    assert [(group["cause"], group["server"]) for group in groups] == [
        ("tool_error", "a"),
        ("error", "b"),
        ("error", "a"),
    ]


async def test_group_names_five_sessions_the_latest_first(at: Office) -> None:
    for number in range(8):
        fails(at, "error", number, session=f"s-{number}")
    (group,) = (await at.gets("/failures"))["groups"]
    assert group["sessions"] == ["s-7", "s-6", "s-5", "s-4", "s-3"]


async def test_failures_are_told_the_newest_first(at: Office) -> None:
    fails(at, "error", 1, call="1", method="tools/call", tool="t", session="s-1", principal="p")
    fails(at, "store_away", 2)
    told = (await at.gets("/failures"))["failures"]
    assert [failure["at"] for failure in told] == [NOW + 2, NOW + 1]
    assert told[1] == {
        "at": NOW + 1,
        "cause": "error",
        "server": "",
        "principal": "p",
        "session": "s-1",
        "call": "1",
        "method": "tools/call",
        "tool": "t",
        "detail": "",
    }


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"server": "a"}, ["1"]),
        ({"q": "BOOM"}, ["2"]),
        ({"q": "s-2"}, ["2"]),
        ({"q": "error"}, ["2", "1"]),
        ({"q": "1790000001"}, []),
        ({"q": "error", "server": "b"}, ["2"]),
    ],
    ids=repr,
)
async def test_failures_are_filtered(at: Office, query: Any, found: list[str]) -> None:
    fails(at, "error", 1, server="a", call="1")
    fails(at, "tool_error", 2, server="b", call="2", session="s-2", detail="boom")
    told = await at.gets("/failures", **query)
    assert [failure["call"] for failure in told["failures"]] == found
    assert sum(group["count"] for group in told["groups"]) == len(found)


async def test_groups_count_what_the_limit_leaves_out(at: Office) -> None:
    for number in range(9):
        fails(at, "error", number)
    told = await at.gets("/failures", limit=2)
    assert (len(told["failures"]), told["groups"][0]["count"]) == (2, 9)


async def test_cause_without_a_hint_of_its_own_has_one_all_the_same(at: Office) -> None:
    fails(at, "unheard_of", 1)
    assert (await at.gets("/failures"))["groups"][0]["hint"] == NO_HINT


def causes() -> set[str]:
    classes = [errors.GatewayError, *subclasses(errors.GatewayError)]
    reasons = {each.reason for each in classes if issubclass(each, errors.GatewayError)}
    return reasons | set(Reason) | {event.name for event in EVENTS} | {"error", "tool_error"}


def test_every_cause_there_is_has_a_hint() -> None:
    assert causes() == set(HINTS)


@pytest.mark.parametrize("cause", sorted(HINTS))
def test_hint_is_a_sentence_or_two(cause: str) -> None:
    hint = HINTS[cause]
    assert hint[:1].isupper() or hint.startswith("`")
    assert hint.endswith((".", "?"))
    assert 20 <= len(hint) <= 220
