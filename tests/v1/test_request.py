"""What a client may ask of an agent, and how it is told what is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from gateway.v1.agents import request
from gateway.v1.problems import Problem
from tests.v1.documented import example

REQUESTS: dict[str, Any] = example("agent_requests")

ASKED: dict[str, Any] = REQUESTS["all fields"]


def read(body: Any) -> tuple[request.AgentRequest, list[Raw], list[request.Tool]]:
    asked = request.read(json.dumps(body).encode())
    return asked, request.messages(asked), request.tools(asked)


def wrong(body: Any) -> str | None:
    """Return which part of a request is said to be wrong."""
    with pytest.raises(Problem) as raised:
        read(body)
    assert raised.value.status == 400
    return raised.value.param


def tool(**more: Any) -> dict[str, Any]:
    return {
        "model": "m",
        "messages": [{"role": "user"}],
        "tools": [{"type": "mcp", "name": "t"} | more],
    }


@pytest.mark.parametrize("name", REQUESTS)
def test_documented_requests_are_taken(name: str) -> None:
    asked, messages, tools = read(REQUESTS[name])
    assert asked.model == REQUESTS[name]["model"]
    assert [json.loads(bytes(each)) for each in messages] == REQUESTS[name]["messages"]
    assert [each.name for each in tools] == [each["name"] for each in REQUESTS[name]["tools"]]


def test_every_documented_field_is_read() -> None:
    asked, _, (found,) = read(ASKED)
    assert asked.max_tokens_per_inference_request == 1024
    assert (asked.temperature, asked.top_p, asked.stop) == (0.2, 0.95, ["foo"])
    assert found.description == "look at the tables"
    assert found.runtime == request.RuntimeParams(
        target_app_name="my-app",
        dyno_size="standard-1x",
        ttl_seconds=120,
        max_calls=3,
        tool_params={"db_attachment": Raw(b'"HEROKU_POSTGRESQL_GOLD"')},
    )


def test_a_heroku_tool_has_the_documented_limits() -> None:
    _, _, (found,) = read(tool(type="heroku_tool"))
    assert (found.ttl_s, found.max_calls) == (120, 3)


def test_an_mcp_tool_has_no_limits_of_its_own() -> None:
    _, _, (found,) = read(tool())
    assert (found.ttl_s, found.max_calls) == (None, None)


def test_limits_that_are_given_count() -> None:
    _, _, (found,) = read(tool(runtime_params={"ttl_seconds": 600, "max_calls": 9}))
    assert (found.ttl_s, found.max_calls) == (600, 9)


@pytest.mark.parametrize("nothing", [{"tools": None}, {"tools": []}, {}])
def test_tools_may_be_left_out(nothing: Any) -> None:
    _, _, tools = read({"model": "m", "messages": [{"role": "user"}], **nothing})
    assert tools == []


def test_null_is_the_same_as_absent() -> None:
    asked, _, _ = read({**ASKED, "top_p": None, "stop": None, "model": None})
    assert (asked.top_p, asked.stop, asked.model) == (None, None, None)


def test_unknown_fields_are_ignored() -> None:
    read({**ASKED, "metadata": {"a": 1}, "session_id": "s", "stream": True})


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": [{"role": "user"}] * 1025}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [{"content": "hello"}]}, "messages[0]"),
        ({"messages": [{"role": "user"}, {"role": "god"}]}, "messages[1].role"),
        ({"model": 7}, "model"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"max_tokens_per_inference_request": 0}, "max_tokens_per_inference_request"),
        ({"stop": 1}, "stop"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"type": "mcp", "name": "t"}] * 129}, "tools"),
        ({"tools": [{"type": "function", "name": "t"}]}, "tools[0].type"),
        ({"tools": [{"type": "mcp"}]}, "tools[0]"),
    ],
)
def test_what_is_wrong_is_named(part: Any, param: str) -> None:
    assert wrong({**ASKED, **part}) == param


@pytest.mark.parametrize(
    ("kind", "runtime", "param"),
    [
        ("heroku_tool", {"ttl_seconds": 121}, "ttl_seconds"),
        ("heroku_tool", {"ttl_seconds": 0}, "ttl_seconds"),
        ("mcp", {"ttl_seconds": 86_401}, "ttl_seconds"),
        ("mcp", {"max_calls": 0}, "max_calls"),
        ("mcp", {"max_calls": "3"}, "max_calls"),
        ("mcp", {"tool_params": []}, "tool_params"),
    ],
)
def test_what_is_wrong_with_runtime_params_is_named(kind: str, runtime: Any, param: str) -> None:
    assert wrong(tool(type=kind, runtime_params=runtime)) == f"tools[0].runtime_params.{param}"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b'{"model": "\xff"}', b"[" * 100_000])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(Problem) as raised:
        request.read(body)
    assert raised.value.status == 400


@given(st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_no_body_raises_anything_but_a_problem(body: bytes) -> None:
    try:
        asked = request.read(body)
        request.messages(asked)
        request.tools(asked)
    except Problem as problem:
        assert problem.status == 400  # noqa: PT017 - whatever it raises
        json.dumps(problem.document)


# Names of tools in messages


def renamed(message: str) -> bytes:
    return bytes(request.renamed(Raw(message.encode()), lambda name: name.replace("/", "__")))


def test_names_in_calls_are_those_that_the_model_knows() -> None:
    said = (
        '{"role":"assistant","tool_calls":[{"id":"1","function":{"name":"a/b","arguments":"{}"}}]}'
    )
    assert json.loads(renamed(said))["tool_calls"] == [
        {"id": "1", "function": {"name": "a__b", "arguments": "{}"}}
    ]


def test_the_name_of_a_result_is_the_one_that_the_model_knows() -> None:
    said = '{"role":"tool","tool_call_id":"1","name":"a/b","content":"x"}'
    assert json.loads(renamed(said))["name"] == "a__b"


@pytest.mark.parametrize(
    "message",
    [
        '{"role":"system",  "content": "a/b  1.50"}',
        '{"role": "user", "content": [{"type": "text", "text": "a/b"}]}',
        '{"role": "assistant", "content": null}',
        '{"role": "assistant", "tool_calls": "none"}',
        '{"role": "tool", "name": 7}',
    ],
)
def test_all_other_messages_stay_as_they_came(message: str) -> None:
    assert renamed(message) == message.encode()


def test_a_call_without_a_name_is_left_to_the_models_server() -> None:
    said = '{"role":"assistant","tool_calls":[{"id":"1"}]}'
    assert renamed(said) == said.encode()


def test_the_name_of_a_user_stays() -> None:
    assert json.loads(renamed('{"role": "user", "name": "a/b"}'))["name"] == "a/b"
