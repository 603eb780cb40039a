"""Which tools a request means, what the model is told of them, and how they are called."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from gateway.registry.servers import ServerDefinition
from gateway.v1.agents.request import RuntimeParams, Tool
from gateway.v1.agents.toolbox import Found, Toolbox, find, fit
from gateway.v1.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA = {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]}

LISTED = {"name": "run", "description": "runs it", "inputSchema": SCHEMA}


def server(name: str, app: str | None = None, **more: Any) -> ServerDefinition:
    return ServerDefinition(name=name, command="c", app=app, **more)


def tool(name: str, kind: Any = "mcp", **runtime: Any) -> Tool:
    params = runtime.pop("tool_params", None)
    raw = None if params is None else {k: Raw(msgspec.json.encode(v)) for k, v in params.items()}
    return Tool(kind, name, runtime_params=RuntimeParams(**runtime, tool_params=raw))


def found(
    wanted: Tool,
    offers: Mapping[str, tuple[str, ...] | None],
    apps: Mapping[str, str] | None = None,
) -> tuple[str, str, str]:
    """Return server, tool and shown name; `offers` has the tools by server, None if unknown."""
    servers = [server(name, (apps or {}).get(name)) for name in sorted(offers)]

    def tools(each: ServerDefinition) -> dict[str, dict[str, Any]] | None:
        listed = offers[each.name]
        return None if listed is None else {name: {} for name in listed}

    meant = find(wanted, "tools[0]", servers, tools)
    return meant.server.name, meant.tool, meant.shown


def refused(*given: Any) -> Problem:
    with pytest.raises(Problem) as raised:
        found(*given)
    assert raised.value.status == 400
    return raised.value


def added(wanted: Tool, shown: str = "py/run", listed: Any = LISTED, own: str = "run") -> Any:
    box = Toolbox()
    box.add(wanted, "tools[0]", Found(server("py", max_lifetime=500), own, shown), listed)
    (offer,) = box.offers.values()
    return offer


BOTH = {"mcp-python": ("code_exec_python",), "mcp-ruby": ("code_exec_ruby",)}


@pytest.mark.parametrize("separator", ["/", ".", "__"])
def test_a_full_name_is_taken_in_every_form_and_shown_with_a_slash(separator: str) -> None:
    wanted = tool(f"mcp-python{separator}code_exec_python")
    shown = "mcp-python/code_exec_python"
    assert found(wanted, BOTH) == ("mcp-python", "code_exec_python", shown)


def test_a_plain_name_is_taken_if_one_server_has_it() -> None:
    assert found(tool("code_exec_ruby"), BOTH)[2] == "mcp-ruby/code_exec_ruby"


def test_a_plain_name_of_several_servers_is_refused_and_their_names_told() -> None:
    problem = refused(tool("run"), {"a": ("run",), "b": ("run",)})
    assert problem.param == "tools[0].name"
    assert "a/run, b/run" in problem.message


def test_the_longest_name_of_a_server_counts() -> None:
    offers: dict[str, tuple[str, ...] | None] = {"a": ("b.c",), "a.b": ("c",)}
    assert found(tool("a.b.c"), offers)[:2] == ("a.b", "c")


def test_a_shorter_name_counts_where_the_longer_has_no_such_tool() -> None:
    offers: dict[str, tuple[str, ...] | None] = {"a": ("b.c",), "a.b": ("d",)}
    assert found(tool("a.b.c"), offers)[:2] == ("a", "b.c")


def test_a_plain_name_may_look_like_a_full_one() -> None:
    assert found(tool("a.b"), {"a": ("c",), "z": ("a.b",)})[:2] == ("z", "a.b")


def test_a_server_whose_tools_are_not_known_is_believed() -> None:
    assert found(tool("a/any"), {"a": None})[:2] == ("a", "any")


def test_an_unknown_tool_is_refused_and_told_what_there_is() -> None:
    problem = refused(tool("nope"), BOTH)
    assert problem.param == "tools[0].name"
    assert "mcp-python/code_exec_python" in problem.message


def test_a_heroku_tool_is_shown_by_its_plain_name() -> None:
    assert found(tool("code_exec_ruby", "heroku_tool"), BOTH)[2] == "code_exec_ruby"


def test_a_heroku_tool_by_another_documented_name_is_found() -> None:
    wanted = tool("pg_psql", "heroku_tool")
    assert found(wanted, {"pg": ("postgres_run_query",)}) == ("pg", "postgres_run_query", "pg_psql")


def test_the_app_that_is_named_runs_the_tool() -> None:
    offers: dict[str, tuple[str, ...] | None] = {"a": ("run",), "b": ("run",)}
    wanted = tool("run", "heroku_tool", target_app_name="two")
    assert found(wanted, offers, {"a": "one", "b": "two"})[0] == "b"


def test_an_app_without_servers_is_refused_and_told_which_have_some() -> None:
    problem = refused(tool("run", target_app_name="three"), {"a": ("run",)}, {"a": "one"})
    assert problem.param == "tools[0].runtime_params.target_app_name"
    assert "HEROKU_APPS" in problem.message


def test_an_app_without_the_tool_is_refused_by_its_name() -> None:
    offers: dict[str, tuple[str, ...] | None] = {"a": ("run",), "b": ("other",)}
    problem = refused(tool("run", "heroku_tool", target_app_name="two"), offers, {"b": "two"})
    assert "no server of two offers 'run'" in problem.message


def test_an_app_means_nothing_where_there_are_no_apps() -> None:
    assert found(tool("code_exec_ruby", target_app_name="my-app"), BOTH)[0] == "mcp-ruby"


# What the model is told, and the call


def test_the_model_is_told_what_the_child_says() -> None:
    offer = added(tool("run"))
    assert offer.function == {"name": "py__run", "description": "runs it", "parameters": SCHEMA}


def test_the_hint_of_the_request_comes_first() -> None:
    wanted = Tool("mcp", "run", description="only on Mondays")
    assert added(wanted).function["description"] == "only on Mondays\n\nruns it"


def test_what_the_request_fixes_the_model_neither_sees_nor_overrides() -> None:
    offer = added(tool("run", tool_params={"code": "1"}))
    parameters = offer.function["parameters"]
    assert (parameters["properties"], parameters["required"]) == ({}, [])
    assert offer.arguments({"code": Raw(b'"2"'), "x": Raw(b"3")}) == {
        "code": Raw(b'"1"'),
        "x": Raw(b"3"),
    }


COMMAND = {"cmd": "date", "description": "the time", "parameters": {"properties": {"tz": {}}}}


def test_a_command_is_the_clients_and_its_parameters_are_the_models() -> None:
    wanted = tool("dyno_run_command", "heroku_tool", tool_params=COMMAND)
    offer = added(wanted, "dyno_run_command", own="dyno_run_command")
    assert offer.function == {
        "name": "dyno_run_command",
        "description": "the time",
        "parameters": {"type": "object", "properties": {"tz": {}}},
    }
    given = {"tz": Raw(b'"UTC"'), "cmd": Raw(b'"rm"')}
    assert json.loads(msgspec.json.encode(offer.arguments(given))) == {
        "cmd": "date",
        "parameters": {"tz": "UTC", "cmd": "rm"},
    }


@pytest.mark.parametrize(
    ("params", "part"),
    [
        ({}, "tool_params.cmd"),
        ({**COMMAND, "parameters": 7}, "parameters"),
        ({**COMMAND, "description": 7}, "description"),
    ],
)
def test_a_command_that_is_wrong_is_refused(params: Any, part: str) -> None:
    wanted = tool("dyno_run_command", "heroku_tool", tool_params=params)
    with pytest.raises(Problem) as raised:
        added(wanted, own="dyno_run_command")
    assert part in str(raised.value.param)


def test_two_commands_have_different_names_for_the_model_and_one_for_the_client() -> None:
    box, wanted = Toolbox(), tool("dyno_run_command", "heroku_tool", tool_params=COMMAND)
    meant = Found(server("py"), "dyno_run_command", "dyno_run_command")
    for _ in range(2):
        box.add(wanted, "tools[0]", meant, LISTED)
    assert box.shown == {
        "dyno_run_command": "dyno_run_command",
        "dyno_run_command_2": "dyno_run_command",
    }


@pytest.mark.parametrize("schema", [None, 7, {}, {"properties": {}}])
def test_a_schema_is_always_one_of_an_object(schema: Any) -> None:
    offer = added(tool("run"), listed={"name": "run", "inputSchema": schema})
    assert offer.function["parameters"] == {"type": "object", "properties": {}}


def test_dynos_are_as_the_request_wants_them() -> None:
    offer = added(tool("run", dyno_size="Standard-2X", ttl_seconds=60))
    assert (offer.server.size, offer.server.max_lifetime) == ("standard-2x", 60)


def test_a_dyno_lives_no_longer_than_its_server_lets_it() -> None:
    assert added(tool("run", ttl_seconds=5000)).server.max_lifetime == 500


def test_a_server_is_as_it_is_defined_if_the_request_wants_nothing() -> None:
    offer = added(tool("run"))
    assert (offer.server.size, offer.server.max_lifetime) == (None, 500)


def test_a_name_that_was_shown_is_found_again() -> None:
    box = Toolbox()
    box.add(tool("run"), "tools[0]", Found(server("py"), "run", "p.y/run"), LISTED)
    assert box.fit("p.y/run") == "p_y__run"


def test_a_name_that_was_not_shown_is_made_fit() -> None:
    assert Toolbox().fit("mcp-ruby/code.exec") == "mcp-ruby__code_exec"


@pytest.mark.parametrize("schema", [{"properties": 7}, {"required": 7}])
def test_a_schema_that_is_none_is_left_to_the_models_server(schema: Any) -> None:
    wanted = tool("run", tool_params={"code": "1"})
    offer = added(wanted, listed={"name": "run", "inputSchema": schema})
    assert offer.function["parameters"] == {"type": "object", "properties": {}, **schema}


@given(st.lists(st.text(), max_size=8))
def test_models_take_every_name_and_no_two_are_the_same(shown: list[str]) -> None:
    box = Toolbox()
    for each in shown:
        box.add(tool("run"), "tools[0]", Found(server("py"), "run", each), LISTED)
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", fit(each))
    assert len(box.offers) == len(shown)
    assert list(box.shown.values()) == shown
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in box.offers)
