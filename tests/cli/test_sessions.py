"""Lists, details and ends of sessions, as operators see them on the command line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import pytest
from aiohttp import web
from rich.cells import cell_len

from gateway.cli import sessions as room
from tests.cli.desk import EVIL, Desk, desk, gw, jsonl, page, safe, session

if TYPE_CHECKING:
    from collections.abc import Mapping

ID = "s-0123456789ab"
FAILURES: dict[str, Any] = {"groups": [], "failures": []}

CALL: dict[str, Any] = {
    "n": 2,
    "at": 1_790_000_001.5,
    "event": "call",
    "call": "42",
    "method": "tools/call",
    "tool": "add",
    "outcome": "tool_error",
    "ms": 312.4,
    "bytes_in": 300,
    "bytes_out": 2048,
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "LOOK_S", 0.0)


def query(served: Desk, number: int = 0) -> Mapping[str, list[str]]:
    return parse_qs(served.queries("GET", "/sessions")[number])


# Lists


async def test_list_shows_who_runs_what_since_when_and_for_how_much() -> None:
    async with desk({("GET", "/sessions"): page(session(errors=2))}) as served:
        said = await gw("sessions", **served.access)
    assert said.code == 0
    head, row = said.out.splitlines()
    assert head.split() == [
        *("SESSION", "STATE", "SERVER", "PRINCIPAL", "CLIENT"),
        *("AGE", "IDLE", "CALLS", "ERRORS", "COST"),
    ]
    assert row.split() == [
        *(ID, "idle", "tools", "alice", "cursor", "1.2"),
        *("2m", "05s", "1m", "05s", "7", "2", "$0.0012"),
    ]


async def test_columns_stand_below_their_titles_in_any_script() -> None:
    wide = session(session="s-1", principal="漢字漢字漢字漢字", client="mcp")
    async with desk({("GET", "/sessions"): page(session(), wide)}) as served:
        said = await gw("sessions", **served.access)
    head, first, second = said.out.splitlines()
    at = head.index("CLIENT")
    assert first.index("cursor") == at
    assert cell_len(second[: second.index("mcp")]) == at


async def test_list_as_json_is_one_document_as_the_api_has_it() -> None:
    listed = page(session(client=EVIL), session(session="s-2", added_later=1))
    async with desk({("GET", "/sessions"): listed}) as served:
        said = await gw("sessions", "--json", **served.access)
    assert said.json == listed
    assert said.out.isascii()
    assert said.err == ""


async def test_only_live_sessions_are_asked_for() -> None:
    async with desk({("GET", "/sessions"): page()}) as served:
        said = await gw("sessions", **served.access)
        assert query(served) == {"live": ["true"], "sort": ["newest"], "limit": ["50"]}
    assert (said.code, said.out) == (0, "")
    assert "--all" in said.err


@pytest.mark.parametrize("options", [("--all",), ("--state", "closed")])
async def test_ended_sessions_are_shown_on_request(options: tuple[str, ...]) -> None:
    ended = session(state="closed", reason="operator", ended=1_790_000_090.0)
    async with desk({("GET", "/sessions"): page(ended)}) as served:
        said = await gw("sessions", *options, **served.access)
        assert "live" not in query(served)
    assert "closed (operator)" in said.out


async def test_filters_and_order_are_the_gateways_to_apply() -> None:
    filters = ("--state", "ready", "--server", "tools", "--principal", "al ice", "--find", "a&b")
    async with desk({("GET", "/sessions"): page()}) as served:
        await gw("sessions", *filters, "--sort", "cost", **served.access)
        asked = query(served)
    assert asked["state"] == ["ready"]
    assert asked["server"] == ["tools"]
    assert asked["principal"] == ["al ice"]
    assert asked["q"] == ["a&b"]
    assert asked["sort"] == ["cost"]


async def test_limit_beyond_a_page_reads_more_pages() -> None:
    pages = {
        None: page(*(session(session=f"s-{n}") for n in range(200)), total=201, next="more"),
        "more": page(session(session="s-200"), total=201),
    }

    async def answer(request: web.Request) -> web.Response:
        return web.json_response(pages[request.query.get("cursor")])

    async with desk({("GET", "/sessions"): answer}) as served:
        said = await gw("sessions", "--limit", "250", "--json", **served.access)
        assert query(served, 1)["limit"] == ["50"]
    document = said.json
    assert [each["session"] for each in document["sessions"]] == [f"s-{n}" for n in range(201)]
    assert document["next"] is None


async def test_limit_stops_the_reading_and_says_that_there_are_more() -> None:
    listed = page(session(), total=9, next="more")
    async with desk({("GET", "/sessions"): listed}) as served:
        said = await gw("sessions", "--limit", "1", **served.access)
        assert len(served.asked) == 1
    assert "1 of 9 shown" in said.err
    assert "--limit" in said.err


@pytest.mark.parametrize(
    "options",
    [
        ("--state", "asleep"),
        ("--sort", "beauty"),
        ("--limit", "0"),
        ("--nonsense",),
        ("--watch", "--json"),
        ("--watch",),
    ],
    ids=" ".join,
)
async def test_what_cannot_be_meant_is_a_usage_error(options: tuple[str, ...]) -> None:
    async with desk({("GET", "/sessions"): page()}) as served:
        said = await gw("sessions", *options, **served.access)
    assert (said.code, said.out) == (2, "")
    assert said.err


# One of them


def inspected(**more: Any) -> dict[tuple[str, str], Any]:
    return {
        ("GET", f"/sessions/{ID}"): session(**more),
        ("GET", f"/sessions/{ID}/story"): jsonl({"n": 1, "event": "ready"}, CALL),
        ("GET", "/failures"): FAILURES,
    }


async def test_inspection_shows_the_facts_and_the_last_calls() -> None:
    async with desk(inspected(failure="add: no", warm=True)) as served:
        said = await gw("inspect", ID, **served.access)
    lines = said.out.splitlines()
    facts = dict(line.split(None, 1) for line in lines if line and line[0] != " ")
    assert facts["state"] == "idle"
    assert facts["principal"] == "alice"
    assert facts["boot"] == "4s (parked before)"
    assert facts["cost"] == "$0.0012 for 2m 00s of dyno"
    assert facts["failure"] == "add: no"
    call = next(line for line in lines if "id 42" in line)
    assert "tools/call add" in call
    assert "tool_error" in call
    assert "312ms" in call
    assert said.code == 0


async def test_inspection_tells_what_to_look_at() -> None:
    group = {
        "cause": "start_timeout",
        "server": "tools",
        "count": 3,
        "first": 1.0,
        "last": 2.0,
        "sessions": [ID],
        "example": "it did not dial",
        "hint": "look at its log",
    }
    answers = inspected()
    answers["GET", "/failures"] = {"groups": [group], "failures": []}
    async with desk(answers) as served:
        said = await gw("inspect", ID, **served.access)
        assert parse_qs(served.queries("GET", "/failures")[0])["q"] == [ID]
    assert "3 start_timeout: it did not dial" in said.out
    assert "look at its log" in said.out


async def test_inspection_as_json_is_one_document() -> None:
    async with desk(inspected()) as served:
        said = await gw("inspect", ID, "--json", **served.access)
    assert said.json == {"session": session(), "calls": [CALL], "failures": FAILURES}


@pytest.mark.parametrize("command", ["inspect", "kill", "logs"])
async def test_unknown_session_is_told_with_where_to_find_ids(command: str) -> None:
    async with desk() as served:
        said = await gw(command, "s-nobody", **served.access)
    assert (said.code, said.out) == (1, "")
    assert "s-nobody" in said.err
    assert "gateway sessions --all" in said.err


@pytest.mark.parametrize("command", ["inspect", "kill", "logs"])
@pytest.mark.parametrize("name", ["", " ", ".", ".."])
async def test_what_is_no_id_is_asked_of_nobody(command: str, name: str) -> None:
    async with desk() as served:
        said = await gw(command, name, **served.access)
        assert served.asked == []
    assert said.code == 2


@pytest.mark.parametrize("command", ["inspect", "kill", "logs"])
async def test_id_stays_one_part_of_the_path(command: str) -> None:
    async with desk() as served:
        await gw(command, "../servers/x?y#z", **served.access)
        path = served.asked[0][1]
    assert path.startswith("/admin/v1/sessions/..%2Fservers%2Fx%3Fy%23z")


# Its end


def killable(*states: str, **more: Any) -> dict[tuple[str, str], Any]:
    """Answers of a session that is in one state after the other."""
    left = list(states)

    async def look(_request: web.Request) -> web.Response:
        state = left.pop(0) if len(left) > 1 else left[0]
        ended = {"reason": "operator", "ended": 1.0} if state == "closed" else {}
        return web.json_response(session(state=state, **ended, **more))

    async def end(_request: web.Request) -> web.Response:
        return web.json_response({"session": ID, "state": "closing"}, status=202)

    return {("GET", f"/sessions/{ID}"): look, ("DELETE", f"/sessions/{ID}"): end}


async def test_kill_waits_for_the_end_and_tells_reason_and_cost() -> None:
    async with desk(killable("idle", "closing", "closing", "closed")) as served:
        said = await gw("kill", ID, **served.access)
    assert said.code == 0
    assert said.out == f"{ID} closed: operator; $0.0012 for 2m 00s of dyno\n"


async def test_kill_as_json_is_the_session_as_it_ended() -> None:
    async with desk(killable("idle", "closed")) as served:
        said = await gw("kill", ID, "-y", "--json", **served.access)
    assert said.json["reason"] == "operator"


async def test_kill_that_does_not_wait_says_that_it_goes_on() -> None:
    async with desk(killable("idle")) as served:
        said = await gw("kill", ID, "--wait", "0", **served.access)
        assert [asked[0] for asked in served.asked] == ["GET", "DELETE"]
    assert (said.code, said.out) == (0, f"{ID} is being ended\n")


async def test_end_that_takes_too_long_is_a_failure_with_the_next_step() -> None:
    async with desk(killable("idle", "closing")) as served:
        said = await gw("kill", ID, "--wait", "0.2", **served.access)
    assert (said.code, said.out) == (1, "")
    assert "closing" in said.err
    assert f"gateway inspect {ID}" in said.err


async def test_kill_of_what_is_over_says_what_the_gateway_says() -> None:
    async def over(_request: web.Request) -> web.Response:
        return web.json_response({"error": "it has ended already: idle"}, status=409)

    answers = killable("closed")
    answers["DELETE", f"/sessions/{ID}"] = over
    async with desk(answers) as served:
        said = await gw("kill", ID, **served.access)
    assert (said.code, said.out) == (1, "")
    assert "it has ended already: idle" in said.err


async def test_hostile_text_is_inert_in_every_field(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = dict.fromkeys(
        (
            "session",
            "server",
            "principal",
            "client",
            "gateway",
            "reason",
            "detail",
            "launch",
            "dyno",
            "failure",
        ),
        EVIL,
    )
    hostile = session(**texts)
    group = {
        **dict.fromkeys(("cause", "server", "example", "hint"), EVIL),
        "count": 1,
        "first": 1.0,
        "last": 2.0,
        "sessions": [EVIL],
    }
    answers = inspected()
    answers["GET", "/sessions"] = page(hostile)
    answers["GET", f"/sessions/{ID}"] = hostile
    answers["GET", f"/sessions/{ID}/story"] = jsonl(dict.fromkeys(CALL, EVIL) | {"event": "call"})
    answers["GET", "/failures"] = {"groups": [group], "failures": []}
    async with desk(answers) as served:
        listed = await gw("sessions", **served.access)
        told = await gw("inspect", ID, **served.access)
        as_json = await gw("inspect", ID, "--json", **served.access)
    assert len(listed.out.splitlines()) == 2
    for said in (listed, told, as_json):
        assert said.code == 0
        assert safe(said.out + said.err)
        assert "forged" in said.out
        assert not any(line.startswith("forged") for line in said.out.splitlines())
    assert "[bold]red" in told.out
    assert json.loads(as_json.out)["session"]["client"] == EVIL
