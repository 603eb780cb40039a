"""Servers, costs and dynos started by hand, on the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aiohttp import web

from tests.cli.desk import EVIL, desk, gw, safe

NOBODY = {"budget_usd": None, "spent_usd": 1.25, "committed_usd": 0.0}


def server(**more: Any) -> dict[str, Any]:
    usual = {
        "name": "tools",
        "status": "registered",
        "app": "my-app",
        "process_type": "mcp-tools",
        "size": "basic",
        "release": "v12",
        "warm": 2,
        "description": "Adds numbers.",
        "sessions": 3,
        "log_level": None,
        "tools": 7,
    }
    return {**usual, **more}


def ledger(**more: Any) -> dict[str, Any]:
    some = {"dyno_s": 7200.0, "usd": 1.25}
    usual = {
        "month": "2026-09",
        "month_ends": 1_790_812_800.0,
        "budgets": {"overall": NOBODY, "by_principal": {}},
        "running": [],
        "months": [
            {
                "month": "2026-09",
                **some,
                "by_server": {"cheap": {"dyno_s": 60.0, "usd": 0.01}, "dear": some},
                "by_principal": {"alice": some},
                "by_size": {"basic": some},
            }
        ],
        "bills": [],
    }
    return {**usual, **more}


async def test_servers_are_listed_with_tools_and_sessions() -> None:
    listed = [server(), server(name="odd", tools=None, warm=[{"dynos": 1}], status="disconnected")]
    async with desk({("GET", "/servers"): listed}) as served:
        said = await gw("servers", **served.access)
    _, tools, odd = said.out.splitlines()
    assert tools.split() == [
        *("tools", "registered", "7", "3", "2", "basic", "my-app", "v12", "Adds", "numbers.")
    ]
    assert odd.split()[:6] == ["odd", "disconnected", "?", "3", "1", "windows"]


async def test_servers_as_json_are_as_the_api_has_them() -> None:
    listed = [server(description=EVIL)]
    async with desk({("GET", "/servers"): listed}) as served:
        said = await gw("servers", "--json", **served.access)
    assert said.json == listed


async def test_one_server_shows_its_tools() -> None:
    tools = [{"name": "add", "description": "Adds\nnumbers."}]
    async with desk({("GET", "/servers/to%20ols"): server(tools=tools)}) as served:
        served.answers["GET", "/servers/to ols"] = server(tools=tools)
        said = await gw("servers", "to ols", **served.access)
    assert "process type  mcp-tools" in said.out
    assert "1 tools" in said.out
    assert said.out.splitlines()[-1].split() == ["add", "Adds", "numbers."]


async def test_server_whose_tools_nobody_knows_says_how_to_learn_them() -> None:
    async with desk({("GET", "/servers/tools"): server(tools=None)}) as served:
        said = await gw("servers", "tools", **served.access)
    assert said.code == 0
    assert "gateway call tools" in said.err


async def test_unknown_server_is_a_failure() -> None:
    async with desk() as served:
        said = await gw("servers", "nobody", **served.access)
    assert (said.code, said.out) == (1, "")
    assert "`gateway servers`" in said.err


@pytest.mark.parametrize(("level", "sent"), [("debug", "debug"), ("default", None)])
async def test_log_level_is_set_before_the_server_is_shown(level: str, sent: str | None) -> None:
    answers = {
        ("GET", "/servers/tools"): server(tools=[]),
        ("PUT", "/servers/tools/log-level"): {"level": sent},
    }
    async with desk(answers) as served:
        said = await gw("servers", "tools", "--log-level", level, **served.access)
        assert [asked[0] for asked in served.asked] == ["PUT", "GET"]
        assert json.loads(served.asked[0][2]) == {"level": sent}
    assert said.code == 0


async def test_log_level_without_a_server_is_a_usage_error() -> None:
    async with desk() as served:
        said = await gw("servers", "--log-level", "debug", **served.access)
        assert (said.code, served.asked) == (2, [])


async def test_cost_shows_the_month_the_dearest_first() -> None:
    async with desk({("GET", "/ledger"): ledger()}) as served:
        said = await gw("cost", **served.access)
    lines = said.out.splitlines()
    assert lines[0] == "month        2026-09, until 2026-10-01 00:00:00Z"
    assert lines[1] == "spent        $1.25"
    assert lines[2] == "dyno time    2h 00m"
    at = lines.index("By server")
    assert [line.split()[0] for line in lines[at + 2 : at + 4]] == ["dear", "cheap"]
    assert "By principal" in lines
    assert "By size" in lines
    assert "Budgets" not in lines
    assert "Running now" not in lines


async def test_cost_shows_how_budgets_stand() -> None:
    budgets = {
        "overall": {"budget_usd": 20.0, "spent_usd": 1.25, "committed_usd": 0.5},
        "by_principal": {
            "alice": {"budget_usd": 0.0, "spent_usd": 0.0, "committed_usd": 0.0},
            "bob": NOBODY,
        },
    }
    async with desk({("GET", "/ledger"): ledger(budgets=budgets)}) as served:
        said = await gw("cost", **served.access)
    lines = said.out.splitlines()
    at = lines.index("Budgets")
    assert lines[at + 2].split() == ["(all)", "$20.00", "$1.25", "6%", "$0.5000"]
    assert lines[at + 3].split() == ["alice", "$0.00", "$0.00", "100%", "$0.00"]
    assert "bob" not in said.out


async def test_cost_shows_what_runs() -> None:
    dyno = {
        "launch": "l1",
        "principal": "alice",
        "server": "tools",
        "session": "s-1",
        "size": "basic",
        "usd_per_hour": 0.5,
        "since": 1.0,
        "dyno_s": 90.0,
        "usd": 0.0125,
        "started": 1.0,
        "latest_end": 2.0,
    }
    async with desk({("GET", "/ledger"): ledger(running=[dyno, dyno], months=[])}) as served:
        said = await gw("cost", **served.access)
    lines = said.out.splitlines()
    assert "running now  2 dynos, $1.00 an hour" in lines
    assert lines[-1].split() == [
        *("l1", "s-1", "tools", "alice", "basic", "$0.5000", "1m", "30s", "$0.0125")
    ]


async def test_cost_as_json_is_as_the_api_has_it() -> None:
    async with desk({("GET", "/ledger"): ledger()}) as served:
        said = await gw("cost", "--json", **served.access)
    assert said.json == ledger()


async def test_bootstrap_prints_the_line_and_nothing_else() -> None:
    line = "heroku run:detached --env 'A=b' -- python -m dyno_agent " + "x" * 3000
    made = {"server": "tools", "launch": "l1", "command": line}
    async with desk({("POST", "/bootstrap"): made}) as served:
        said = await gw("bootstrap", "tools", **served.access)
        assert json.loads(served.asked[0][2]) == {"server": "tools"}
    assert (said.code, said.out, said.err) == (0, f"{line}\n", "")


@pytest.mark.parametrize(
    "answer",
    ["{}", '{"command": 1}', "[]", "null", "not json", '{"command": null}', '{"error": "no"}'],
)
async def test_what_answers_and_is_no_gateway_is_named(answer: str) -> None:
    async def stranger(_request: web.Request) -> web.Response:
        return web.Response(text=answer, content_type="application/json")

    async with desk({("POST", "/bootstrap"): stranger}) as served:
        said = await gw("bootstrap", "tools", **served.access)
    assert (said.code, said.out) == (69, "")
    assert served.url in said.err


async def test_hostile_text_is_inert_in_every_field() -> None:
    tool = {"name": EVIL, "description": EVIL}
    texts = dict.fromkeys(("name", "app", "process_type", "size", "release", "description"), EVIL)
    some = {"dyno_s": 1.0, "usd": 1.0}
    month = {
        "month": "2026-09",
        **some,
        **{key: {EVIL: some} for key in ("by_server", "by_principal", "by_size")},
    }
    budget = {"budget_usd": 1.0, "spent_usd": 1.0, "committed_usd": 1.0}
    dyno = {
        **dict.fromkeys(("launch", "principal", "server", "session", "size"), EVIL),
        **dict.fromkeys(("usd_per_hour", "since", "dyno_s", "usd", "started", "latest_end"), 1e300),
    }
    answers = {
        ("GET", "/servers"): [server(**texts)],
        ("GET", "/servers/tools"): server(**texts, tools=[tool]),
        ("GET", "/ledger"): ledger(
            months=[month],
            running=[dyno],
            month_ends=1e300,
            budgets={"overall": budget, "by_principal": {EVIL: budget}},
        ),
        ("POST", "/bootstrap"): {"server": EVIL, "launch": EVIL, "command": EVIL},
    }
    async with desk(answers) as served:
        for command in (("servers",), ("servers", "tools"), ("cost",), ("bootstrap", "tools")):
            said = await gw(*command, **served.access)
            assert said.code == 0, said
            assert safe(said.out + said.err)
            assert "[bold]red" in said.out
