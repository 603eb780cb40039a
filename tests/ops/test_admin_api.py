"""The operators' API: what it lists, tells, ends and refuses."""

from __future__ import annotations

import asyncio
import io
import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from gateway.edge.answering import refusal
from gateway.errors import Restarting
from gateway.fleet.ledger import Account
from gateway.ops.admin import sessions
from gateway.ops.admin.shapes import Session
from gateway.ops.admin.table import TABLE
from gateway.ops.story import Summary
from gateway.store.base import StoreAway
from tests.edge.dynos_house import NOW
from tests.ops.admin_house import ADMIN, GRACE_S, Office, office

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp import web

HOSTILE = "\x1b[31m\u202e</script>\ud800"


@pytest_asyncio.fixture
async def at() -> AsyncIterator[Office]:
    async with office() as built:
        yield built


def ids(page: Any) -> list[str]:
    return [session["session"] for session in page["sessions"]]


def concrete(path: str) -> str:
    """Return a path of the table with what its variable parts may be."""
    for part, value in (("session", "s-1"), ("gateway", "here"), ("server", "patient")):
        path = path.replace(f"{{{part}}}", value)
    return path


# The list


async def test_session_has_all_that_its_summary_has(at: Office) -> None:
    at.records.have("s-1", client="probe", calls=3, boot_s=1.5, parts=2, failure="boom")
    (shown,) = (await at.gets("/sessions"))["sessions"]
    assert set(shown) == set(Session.__struct_fields__)
    assert set(Summary.__struct_fields__) <= set(shown)
    assert [shown[name] for name in ("client", "calls", "boot_s", "parts", "failure")] == [
        "probe",
        3,
        1.5,
        2,
        "boom",
    ]


async def test_session_tells_age_and_idleness(at: Office) -> None:
    at.records.have("s-1", opened=NOW - 100, active=NOW - 7)
    (shown,) = (await at.gets("/sessions"))["sessions"]
    assert (shown["age_s"], shown["idle_s"], shown["here"]) == (100.0, 7.0, True)


async def test_closed_session_grows_no_older(at: Office) -> None:
    at.records.have("s-1", opened=NOW - 100, active=NOW - 90, ended=NOW - 40, state="closed")
    (shown,) = (await at.gets("/sessions"))["sessions"]
    assert (shown["age_s"], shown["idle_s"]) == (60.0, 0.0)


async def test_session_that_runs_shows_what_it_has_cost_until_now(at: Office) -> None:
    at.records.have("s-1", launch="l-1")
    account = Account("test", "patient", "s-1")
    at.manager.book.open("l-1", account, 3.6, "basic", NOW - 1000, NOW + 5000)
    (shown,) = (await at.gets("/sessions"))["sessions"]
    assert (shown["usd"], shown["dyno_s"], shown["usd_per_hour"]) == (1.0, 1000.0, 3.6)


async def test_dyno_that_another_session_pays_for_is_not_its_cost(at: Office) -> None:
    at.records.have("s-1", launch="l-1", usd=0.25)
    account = Account("(pool)", "patient")
    at.manager.book.open("l-1", account, 3.6, "basic", NOW - 1000, NOW + 5000)
    (shown,) = (await at.gets("/sessions"))["sessions"]
    assert (shown["usd"], shown["usd_per_hour"]) == (0.25, 0.0)


async def test_session_that_is_over_shows_what_it_has_cost_in_the_end(at: Office) -> None:
    at.records.have("s-1", launch="l-1", state="closed", ended=NOW, usd=0.5, dyno_s=72.0)
    (shown,) = (await at.gets("/sessions"))["sessions"]
    assert (shown["usd"], shown["dyno_s"], shown["usd_per_hour"]) == (0.5, 72.0, 0.0)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"state": "idle"}, ["s-b"]),
        ({"server": "other"}, ["s-c"]),
        ({"server": "othe"}, []),
        ({"principal": "ann"}, ["s-b"]),
        ({"live": "true"}, ["s-a", "s-b"]),
        ({"live": "false"}, ["s-c"]),
        ({"live": "true", "state": "closed"}, []),
        ({"q": "S-C"}, ["s-c"]),
        ({"q": "inSPEC"}, ["s-a"]),
        ({"q": "othe"}, ["s-c"]),
        ({"q": "ANN"}, ["s-b"]),
        ({"q": "run.7"}, ["s-a"]),
        ({"q": "l-9"}, ["s-b"]),
        ({"q": "here"}, []),
    ],
    ids=repr,
)
async def test_list_is_filtered(at: Office, query: dict[str, str], found: list[str]) -> None:
    at.records.have("s-a", client="Inspector", dyno="run.7")
    at.records.have("s-b", state="idle", principal="ann", launch="l-9")
    at.records.have("s-c", state="closed", server="other", ended=NOW)
    page = await at.gets("/sessions", **query)
    assert (sorted(ids(page)), page["total"]) == (found, len(found))


async def test_states_are_counted_whatever_state_is_asked_for(at: Office) -> None:
    at.records.have("s-a")
    at.records.have("s-b", state="idle")
    at.records.have("s-c", state="closed", ended=NOW)
    at.records.have("s-d", state="closed", server="other", ended=NOW)
    page = await at.gets("/sessions", state="idle", server="patient", live="true")
    assert page["by_state"] == {"ready": 1, "idle": 1, "closed": 1}


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("newest", ["s-c", "s-b", "s-a"]),
        ("age", ["s-a", "s-b", "s-c"]),
        ("idle", ["s-b", "s-a", "s-c"]),
        ("calls", ["s-a", "s-c", "s-b"]),
        ("errors", ["s-b", "s-c", "s-a"]),
        ("cost", ["s-c", "s-a", "s-b"]),
    ],
)
async def test_list_is_sorted(at: Office, sort: str, order: list[str]) -> None:
    at.records.have("s-a", opened=NOW - 300, active=NOW - 20, calls=9, usd=0.2)
    at.records.have("s-b", opened=NOW - 200, active=NOW - 30, calls=1, errors=5, usd=0.1)
    at.records.have(
        "s-c", opened=NOW - 100, active=NOW - 99, ended=NOW, state="closed", calls=5, errors=1,
        usd=0.3,
    )  # fmt: skip
    assert ids(await at.gets("/sessions", sort=sort)) == order


async def test_newest_first_is_how_they_are_sorted_unless_asked_otherwise(at: Office) -> None:
    at.records.have("s-a", opened=NOW - 300)
    at.records.have("s-b", opened=NOW - 200)
    assert ids(await at.gets("/sessions")) == ["s-b", "s-a"]


async def pages(at: Office, **query: Any) -> list[list[str]]:
    found: list[list[str]] = []
    cursor: dict[str, str] = {}
    while True:
        page = await at.gets("/sessions", **query, **cursor)
        found.append(ids(page))
        if page["next"] is None:
            return found
        cursor = {"cursor": page["next"]}


@pytest.mark.parametrize("sort", ["newest", "age", "idle", "calls", "errors", "cost"])
async def test_pages_have_each_session_once(at: Office, sort: str) -> None:
    for number in range(23):
        at.records.have(
            f"s-{number:02}", opened=NOW - number % 5, active=NOW - number % 3, calls=number % 4
        )
    found = await pages(at, sort=sort, limit=5)
    assert [len(page) for page in found] == [5, 5, 5, 5, 3]
    whole = [name for page in found for name in page]
    assert sorted(whole) == sorted(at.records.known)
    assert whole == ids(await at.gets("/sessions", sort=sort, limit=200))


@pytest.mark.parametrize("sort", ["newest", "age", "cost"])
async def test_pages_stay_as_they_are_while_time_goes_by_and_sessions_come(
    at: Office, sort: str
) -> None:
    for number in range(6):
        at.records.have(f"s-{number}", opened=NOW - 100 - number, launch=f"l-{number}")
        account = Account("test", "patient", f"s-{number}")
        since = NOW - 10 * number
        at.manager.book.open(f"l-{number}", account, 1.0 + number, "basic", since, NOW + 5000)
    whole = ids(await at.gets("/sessions", sort=sort))
    first = await at.gets("/sessions", sort=sort, limit=3)
    at.clock.now += 3600
    at.records.have("s-new", opened=at.clock.now)
    second = await at.gets("/sessions", sort=sort, limit=3, cursor=first["next"])
    assert [*ids(first), *ids(second)] == whole


async def test_last_page_has_no_next_one(at: Office) -> None:
    for number in range(4):
        at.records.have(f"s-{number}")
    first = await at.gets("/sessions", limit=2)
    assert (await at.gets("/sessions", limit=2, cursor=first["next"]))["next"] is None


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "201"}, "limit"),
        ({"limit": "ten"}, "limit"),
        ({"limit": ""}, "limit"),
        ({"state": "asleep"}, "state"),
        ({"sort": "name"}, "sort"),
        ({"live": "yes"}, "live"),
        ({"q": "x" * 201}, "q"),
        ({"cursor": "x" * 401}, "cursor"),
        ({"colour": "red"}, "colour"),
        ([("limit", "1"), ("limit", "2")], "limit"),
    ],
    ids=repr,
)
async def test_parameter_that_is_wrong_is_named(at: Office, query: Any, named: str) -> None:
    status, sentence = await at.refused("/sessions", params=query)
    assert status == 400
    assert named in sentence


@pytest.mark.parametrize("cursor", ["!", "WyJuZXdlc3QiXQ", "x", ""])
async def test_page_that_there_is_not_is_not_found(at: Office, cursor: str) -> None:
    status, sentence = await at.refused("/sessions", params={"cursor": cursor})
    assert status == 404
    assert "no such page" in sentence


async def test_cursor_of_another_order_is_refused(at: Office) -> None:
    at.records.have("s-a")
    at.records.have("s-b")
    first = await at.gets("/sessions", limit=1)
    status, sentence = await at.refused(
        "/sessions", params={"cursor": first["next"], "sort": "calls"}
    )
    assert status == 404
    assert "newest" in sentence


# Sessions whose process is gone


async def test_session_of_another_process_that_lives_is_as_that_says(at: Office) -> None:
    at.alive("there")
    at.records.have("s-1", gateway="there", state="idle")
    shown = await at.gets("/sessions/s-1")
    assert (shown["state"], shown["here"], shown["gateway"]) == ("idle", False, "there")


async def test_session_of_a_process_that_is_gone_is_parted(at: Office) -> None:
    at.records.have("s-1", gateway="gone")
    assert (await at.gets("/sessions/s-1"))["state"] == "parted"
    assert (await at.gets("/sessions"))["by_state"] == {"parted": 1}


async def test_it_is_closed_once_its_agent_can_come_back_no_more(at: Office) -> None:
    at.records.have("s-1", gateway="gone")
    await at.gets("/sessions")
    at.clock.now += GRACE_S - 1
    assert (await at.gets("/sessions/s-1"))["state"] == "parted"
    at.clock.now += 1
    shown = await at.gets("/sessions/s-1")
    assert (shown["state"], shown["reason"]) == ("closed", "link_lost")
    assert shown["ended"] == NOW + GRACE_S


async def test_looking_at_one_session_forgets_nothing_of_the_others(at: Office) -> None:
    at.records.have("s-1", gateway="gone")
    at.records.have("s-2", gateway="here")
    await at.gets("/sessions")
    at.clock.now += GRACE_S
    await at.gets("/sessions/s-2")
    assert (await at.gets("/sessions/s-1"))["state"] == "closed"


async def test_process_that_comes_back_has_its_sessions_again(at: Office) -> None:
    at.records.have("s-1", gateway="there")
    assert (await at.gets("/sessions/s-1"))["state"] == "parted"
    at.alive("there")
    at.clock.now += GRACE_S
    assert (await at.gets("/sessions/s-1"))["state"] == "ready"


async def test_closed_session_of_a_process_that_is_gone_keeps_its_reason(at: Office) -> None:
    at.records.have("s-1", gateway="gone", state="closed", reason="idle", ended=NOW - 9)
    shown = await at.gets("/sessions/s-1")
    assert (shown["state"], shown["reason"], shown["ended"]) == ("closed", "idle", NOW - 9)


async def test_session_whose_beginning_is_not_kept_is_unknown(at: Office) -> None:
    at.records.have("s-1", state="", opened=0.0, active=0.0)
    shown = await at.gets("/sessions/s-1")
    assert (shown["state"], shown["age_s"], shown["idle_s"]) == ("unknown", 0.0, 0.0)


# One session


@pytest.mark.parametrize(
    ("method", "path"),
    [
        (operation.method, concrete(operation.path).replace("s-1", "s-none"))
        for operation in TABLE
        if "{session}" in operation.path
    ],
)
async def test_session_that_nobody_knows_is_not_found(at: Office, method: str, path: str) -> None:
    status, sentence = await at.refused(path, method)
    assert status == 404
    assert "s-none" in sentence


async def test_whatever_is_asked_for_is_inert_in_the_refusal(at: Office) -> None:
    path = "/sessions/%1b%5b31m%e2%80%ae%3cscript%3e%ff"
    status, sentence = await at.refused(path)
    assert status == 404
    assert sentence.isprintable()


# Killing


async def test_session_that_lives_here_is_ended(at: Office) -> None:
    at.records.have("s-1")
    at.here.add("s-1")
    status, document, _ = await at.asks("/sessions/s-1", "DELETE")
    assert (status, document) == (202, {"session": "s-1", "state": "closing"})
    assert at.killed == ["s-1"]
    assert at.operated() == [("kill", "s-1", "127.0.0.1")]


async def test_session_that_is_closed_cannot_be_ended(at: Office) -> None:
    at.records.have("s-1", state="closed", reason="idle")
    status, sentence = await at.refused("/sessions/s-1", "DELETE")
    assert status == 409
    assert "idle" in sentence
    assert at.operated() == []


async def test_session_that_is_closing_may_be_ended_again(at: Office) -> None:
    at.records.have("s-1", state="closing")
    status, _, _ = await at.asks("/sessions/s-1", "DELETE")
    assert status == 202


async def test_session_of_a_process_that_is_gone_loses_its_dyno(at: Office) -> None:
    at.records.have("s-1", gateway="gone")
    status, _, _ = await at.asks("/sessions/s-1", "DELETE")
    assert (status, at.stopped) == (202, ["s-1"])
    assert at.operated() == [("kill", "s-1", "127.0.0.1")]


async def test_session_of_another_process_is_not_ended_here(at: Office) -> None:
    at.alive("there")
    at.records.have("s-1", gateway="there")
    status, _ = await at.refused("/sessions/s-1", "DELETE")
    assert (status, at.stopped, at.operated()) == (421, [], [])


async def test_session_that_is_on_its_way_to_another_process_is_asked_for_again(
    at: Office,
) -> None:
    at.records.have("s-1")
    status, _, headers = await at.asks("/sessions/s-1", "DELETE")
    assert (status, at.operated()) == (503, [])
    assert int(headers["Retry-After"]) > 0


async def test_refusal_of_what_carries_requests_is_told_as_every_other() -> None:
    async def serve(*_: object) -> web.StreamResponse:
        return refusal(Restarting("the session is moving"))

    async with office(serve=serve) as at:
        status, document, headers = await at.asks("/sessions/s-1", "DELETE")
        assert (status, document) == (503, {"error": "the session is moving"})
        assert (headers["Retry-After"], at.operated()) == ("2", [])


# The story


def lines(text: str) -> list[Any]:
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


async def test_story_is_told_line_by_line_with_numbers(at: Office) -> None:
    at.records.have("s-1")
    at.records.tell("s-1", "requested", "ready", text="é")
    status, text, headers = await at.asks("/sessions/s-1/story")
    assert (status, headers["Content-Type"]) == (200, "application/jsonl")
    assert lines(text) == [
        {"n": 1, "at": NOW, "event": "requested", "text": "é"},
        {"n": 2, "at": NOW, "event": "ready", "text": "é"},
    ]
    assert headers["Rendezvous-Last"] == "2"
    assert "Rendezvous-Next" not in headers


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ({"after": 3}, [4, 5]),
        ({"after": 5}, []),
        ({"after": 9}, []),
        ({"last": 2}, [4, 5]),
        ({"last": 9}, [1, 2, 3, 4, 5]),
        ({"last": 4, "after": 3}, [4, 5]),
        ({"q": "E-B"}, [2, 4]),
        ({"q": "é"}, []),
        ({"q": "e-b", "after": 2}, [4]),
    ],
    ids=repr,
)
async def test_part_of_a_story_is_told(at: Office, query: Any, numbers: list[int]) -> None:
    at.records.have("s-1")
    at.records.tell("s-1", "e-a", "e-b", "e-c", "e-b", "e-d")
    _, text, headers = await at.asks("/sessions/s-1/story", params=query)
    assert [line["n"] for line in lines(text)] == numbers
    assert headers["Rendezvous-Last"] == "5"


async def test_lines_that_are_kept_no_more_are_counted(at: Office) -> None:
    at.records.have("s-1")
    at.records.tell("s-1", *"abcdef")
    at.records.gone["s-1"] = 4
    _, text, _ = await at.asks("/sessions/s-1/story", params={"after": 1})
    assert lines(text)[0] == {"n": 4, "at": NOW, "event": "gap", "dropped": 3}
    assert [line["n"] for line in lines(text)] == [4, 5, 6]


async def test_long_story_is_told_in_several_answers(
    at: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "STORY_BYTES", 4000)
    monkeypatch.setattr(sessions, "PAGE_BYTES", 900)
    at.records.have("s-1")
    at.records.tell("s-1", *(f"e-{number:03}" for number in range(300)))
    found, after = [], "0"
    while after:
        _, text, headers = await at.asks("/sessions/s-1/story", params={"after": after})
        assert len(text) < 4000 + 900 * 2
        found += [line["n"] for line in lines(text)]
        after = headers.get("Rendezvous-Next", "")
    assert found == list(range(1, 301))


async def test_story_is_not_told_while_the_store_is_away(at: Office) -> None:
    at.records.have("s-1")
    at.records.away = True
    status, _, headers = await at.asks("/sessions/s-1/story")
    assert status == 503
    assert int(headers["Retry-After"]) > 0


# Gateway processes


async def test_gateways_are_those_that_live(at: Office) -> None:
    at.alive("there")
    assert await at.gets("/gateways") == [
        {"gateway": "here", "here": True},
        {"gateway": "there", "here": False},
    ]


async def test_this_process_drains(at: Office) -> None:
    status, document, _ = await at.asks("/gateways/here/drain", "POST")
    assert (status, document) == (202, {"gateway": "here", "state": "draining"})
    assert (at.left, at.operated()) == (1, [("drain", "here", "127.0.0.1")])


async def test_process_that_is_gone_does_not_drain(at: Office) -> None:
    status, sentence = await at.refused("/gateways/gone/drain", "POST")
    assert (status, at.left) == (404, 0)
    assert "gone" in sentence


async def test_another_process_does_not_drain_here(at: Office) -> None:
    at.alive("there")
    status, _ = await at.refused("/gateways/there/drain", "POST")
    assert (status, at.left, at.operated()) == (421, 0, [])


# Servers


async def test_server_tells_its_tools_and_sessions(at: Office) -> None:
    at.records.have("s-1")
    at.records.have("s-2", state="closed", ended=NOW)
    at.records.have("s-3", principal="(gateway)")
    (shown,) = await at.gets("/servers")
    assert (shown["tools"], shown["sessions"], shown["log_level"]) == (1, 1, None)
    shown = await at.gets("/servers/patient")
    assert shown["tools"] == [{"name": "echo", "description": "Says it again."}]


async def test_server_whose_tools_nobody_knows_has_null(at: Office) -> None:
    at.tools = None
    (shown,) = await at.gets("/servers")
    assert shown["tools"] is None
    assert (await at.gets("/servers/patient"))["tools"] is None


async def test_what_a_child_says_of_its_tools_is_inert_and_cut(at: Office) -> None:
    at.tools = [{"name": HOSTILE, "description": "x" * 5000}, {"name": 7}]
    first, second = (await at.gets("/servers/patient"))["tools"]
    assert first["name"].isprintable()
    assert len(first["description"]) < 2050
    assert first["description"].endswith("(3000 more)")
    assert second == {"name": "", "description": ""}


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/servers/nobody"), ("PUT", "/servers/nobody/log-level")]
)
async def test_server_that_there_is_not_is_not_found(at: Office, method: str, path: str) -> None:
    more = {"json": {"level": "info"}} if method == "PUT" else {}
    status, sentence = await at.refused(path, method, **more)
    assert status == 404
    assert "patient" in sentence


async def test_log_level_is_set_and_taken_back(at: Office) -> None:
    status, document, _ = await at.asks(
        "/servers/patient/log-level", "PUT", json={"level": "debug"}
    )
    assert (status, document) == (200, {"level": "debug"})
    assert (await at.gets("/servers/patient"))["log_level"] == "debug"
    await at.asks("/servers/patient/log-level", "PUT", json={"level": None})
    assert (await at.gets("/servers/patient"))["log_level"] is None
    assert [operated[:2] for operated in at.operated()] == [
        ("log_level", "patient debug"),
        ("log_level", "patient None"),
    ]


async def test_refresh_without_apps_says_what_to_do(at: Office) -> None:
    status, sentence = await at.refused("/servers/refresh", "POST")
    assert status == 409
    assert "restart" in sentence


async def test_bootstrap_line_is_noted(at: Office) -> None:
    status, _, _ = await at.asks("/bootstrap", "POST", json={"server": "patient"})
    assert (status, at.operated()) == (200, [("bootstrap", "patient", "127.0.0.1")])


# Whatever is not in its shape


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        (b"", 400, "JSON"),
        (b"{", 400, "JSON"),
        (b"[]", 400, "object"),
        (b"{}", 400, "level"),
        (b'{"level": "loud"}', 400, "level"),
        (b'{"level": 1}', 400, "level"),
        (b'{"level": "info", "more": 1}', 400, "more"),
        (b'{"level": "info", "level": "debug"}', 400, "more than once"),
        (b'{"level": "\\ud800"}', 400, "JSON"),
        (b'{"level": "\xff"}', 400, "JSON"),
        (b"[" * 60_000, 400, ""),
        (b'"' + b"x" * 64 * 1024 + b'"', 413, "65536"),
    ],
    ids=range(12),
)
async def test_body_that_is_wrong_is_refused(
    at: Office, body: bytes, status: int, named: str
) -> None:
    got, sentence = await at.refused(
        "/servers/patient/log-level",
        "PUT",
        data=io.BytesIO(body),
        headers={"Authorization": f"Bearer {ADMIN}", "Content-Type": "application/json"},
    )
    assert got == status
    assert named in sentence
    assert at.desk.levels.get("patient") is None


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
    ids=repr,
)
async def test_body_that_is_not_json_is_refused(at: Office, headers: dict[str, str]) -> None:
    status, _ = await at.refused(
        "/bootstrap",
        "POST",
        data=b'{"server": "patient"}',
        headers={"Authorization": f"Bearer {ADMIN}", **headers},
    )
    assert status == 415


async def test_body_that_does_not_say_how_long_it_is_has_the_same_bound(at: Office) -> None:
    async def parts() -> Any:
        yield b'{"server": "patient"}'
        for _ in range(65):
            yield b" " * 1024

    headers = {"Authorization": f"Bearer {ADMIN}", "Content-Type": "application/json"}
    status, _ = await at.refused("/bootstrap", "POST", data=parts(), headers=headers)
    assert status == 413


async def test_body_that_never_ends_is_given_up(
    at: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.ops.admin.asking.BODY_S", 0.02)
    over = asyncio.Event()

    async def parts() -> Any:
        yield b"{"
        await over.wait()

    headers = {"Authorization": f"Bearer {ADMIN}", "Content-Type": "application/json"}
    try:
        status, _ = await at.refused("/bootstrap", "POST", data=parts(), headers=headers)
    finally:
        over.set()
    assert status == 408


async def test_body_where_none_belongs_is_refused(at: Office) -> None:
    status, _ = await at.refused("/gateways/here/drain", "POST", json={})
    assert (status, at.left) == (400, 0)


async def test_unknown_parameter_is_refused_everywhere(at: Office) -> None:
    for operation in TABLE:
        query = {"colour": "red"}
        status, sentence = await at.refused(
            concrete(operation.path), operation.method, params=query
        )
        assert (operation.name, status) == (operation.name, 400)
        assert "colour" in sentence


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
async def test_wrong_method_says_which_are_right(at: Office, method: str) -> None:
    rights: dict[str, list[str]] = {"/openapi.json": ["GET"]}
    for operation in TABLE:
        rights.setdefault(operation.path, []).append(operation.method)
    for path in [path for path, right in rights.items() if method not in right]:
        status, document, headers = await at.asks(concrete(path), method)
        assert (path, status, headers["Allow"]) == (path, 405, ", ".join(rights[path]))
        assert list(document) == ["error"]


@pytest.mark.parametrize("path", ["", "/", "/session", "/sessions/s-1/storey", "/sessions/a/b/c"])
async def test_unknown_path_is_not_found(at: Office, path: str) -> None:
    status, sentence = await at.refused(path)
    assert status == 404
    assert "openapi" in sentence


async def test_no_answer_is_for_a_cache(at: Office) -> None:
    for path in ("/sessions", "/nothing"):
        _, _, headers = await at.asks(path)
        assert headers["Cache-Control"] == "no-store"


async def test_store_that_is_away_is_said_to_be(
    at: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gateways() -> list[str]:
        raise StoreAway("away")

    monkeypatch.setattr(at.manager.store, "gateways", gateways)
    status, _, headers = await at.asks("/gateways")
    assert status == 503
    assert "Retry-After" in headers


def test_operations_of_a_path_stand_together() -> None:
    paths = [operation.path for operation in TABLE]
    runs = [path for path, before in pairwise([*paths, ""]) if path != before]
    assert len(runs) == len(set(runs))
