"""What a client is told before there is a dyno, what its child hears then, and how both compare."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import Raw

from gateway.eras.catalogue import MAX_PAGES, Chapter
from gateway.eras.legacy import Opening
from gateway.errors import SessionEnded
from gateway.jsonrpc import peek
from gateway.sessions.overture import LEVEL_BYTES, Heard, Overture

REVISION = "2025-11-25"

OPENED: dict[str, Any] = {
    "protocolVersion": REVISION,
    "capabilities": {"tools": {}, "prompts": {}, "logging": {}},
    "serverInfo": {"name": "s", "version": "1"},
    "instructions": "be kind",
}

TOOLS: list[Any] = [{"name": "a"}, {"name": "b"}]

PARAMS = '{"protocolVersion":"2025-11-25","x":1.50,"capabilities":{}}'
"""With a number that no decoding and encoding gives back."""

ALL = ["tools", "prompts", "resources"]


def raw(value: Any) -> Raw:
    return Raw(json.dumps(value).encode())


def chapter(opened: Any = None) -> Chapter:
    lists = {"tools/list": raw({"tools": TOOLS}), "prompts/list": raw({"prompts": []})}
    return Chapter("legacy", raw(opened or OPENED), lists, 0.0)


def overture(told: str = REVISION, *, params: str = PARAMS, opened: Any = None) -> Overture:
    return Overture(Opening(params, told), chapter(opened))


def bare() -> Overture:
    """Of a session that is opened once more: nobody remembers what its client was told."""
    return Overture(Opening(PARAMS, ""), None)


def ask(of: Overture, method: str, params: Any = None, number: int | str = 7) -> Any:
    """Send a client's request; return the answer, None if only the child can give one."""
    document = {"jsonrpc": "2.0", "id": number, "method": method}
    if params is not None:
        document["params"] = params
    found = of.answer(peek(json.dumps(document).encode()))
    return None if found is None else json.loads(found)


def swallows(of: Overture, method: str) -> bool:
    return of.swallows(peek(json.dumps({"jsonrpc": "2.0", "method": method}).encode()))


def take(of: Overture, number: int, *, error: Any = None, result: Any = None) -> Heard:
    """Let the child answer the gateway's own request of this number."""
    said = {"error": error} if error is not None else {"result": result}
    envelope = peek(json.dumps({"jsonrpc": "2.0", "id": f"rendezvous/{number}", **said}).encode())
    assert of.awaits(envelope)
    return of.take(envelope)


def asked(heard: Heard) -> list[Any]:
    return [json.loads(line) for line in heard.to_child]


def booted(of: Overture) -> Heard:
    """Start, and let the child say what the catalogue says."""
    of.start()
    return take(of, 1, result=OPENED)


def difference(heard: Heard) -> tuple[list[Any], list[str], bool]:
    return asked(heard), heard.changed, heard.fatal is not None


NOTHING: tuple[list[Any], list[str], bool] = ([], [], False)


# Answers without the child


def test_initialize_is_answered_with_the_catalogue_s_own_bytes() -> None:
    found = overture().answer(peek(b'{"jsonrpc":"2.0","id":"q","method":"initialize"}'))
    assert found == b'{"jsonrpc":"2.0","id":"q","result":' + json.dumps(OPENED).encode() + b"}"


@pytest.mark.parametrize(
    ("requested", "told"),
    [
        ("2024-11-05", "2024-11-05"),
        ("2025-06-18", "2025-06-18"),
        (REVISION, REVISION),
        ("2099-01-01", REVISION),
        ("", REVISION),
    ],
)
def test_revision_that_a_client_was_told_is_repeated(requested: str, told: str) -> None:
    negotiated = chapter().negotiated(requested)
    answer = ask(overture(negotiated), "initialize")
    assert (negotiated, answer["result"]) == (told, {**OPENED, "protocolVersion": told})


def test_ping_is_answered() -> None:
    assert ask(overture(), "ping") == {"jsonrpc": "2.0", "id": 7, "result": {}}


def test_ping_is_answered_without_a_catalogue() -> None:
    assert ask(bare(), "ping") == {"jsonrpc": "2.0", "id": 7, "result": {}}


@pytest.mark.parametrize(
    ("method", "key", "items"), [("tools/list", "tools", TOOLS), ("prompts/list", "prompts", [])]
)
def test_list_is_answered(method: str, key: str, items: list[Any]) -> None:
    assert ask(overture(), method)["result"] == {key: items}


def test_list_is_answered_whatever_else_its_params_say() -> None:
    assert ask(overture(), "tools/list", {"_meta": {"progressToken": 1}})["result"]


@pytest.mark.parametrize("params", [{"cursor": "x"}, {"cursor": ""}, {"cursor": None}, [1], 1])
def test_list_with_a_cursor_or_params_of_another_shape_is_for_the_child(params: Any) -> None:
    assert ask(overture(), "tools/list", params) is None


@pytest.mark.parametrize("method", ["resources/list", "resources/templates/list"])
def test_list_that_was_not_learned_is_for_the_child(method: str) -> None:
    assert ask(overture(), method) is None


@pytest.mark.parametrize("method", ["tools/call", "resources/read", "completion/complete", ""])
def test_anything_else_is_for_the_child(method: str) -> None:
    assert ask(overture(), method, {"name": "a"}) is None


@pytest.mark.parametrize("method", ["initialize", "tools/list"])
def test_without_a_catalogue_only_the_child_can_tell(method: str) -> None:
    assert ask(bare(), method) is None


def test_level_is_taken_for_the_child_to_come() -> None:
    assert ask(overture(), "logging/setLevel", {"level": "debug"})["result"] == {}


def test_level_without_params_is_for_the_child_to_refuse() -> None:
    assert ask(overture(), "logging/setLevel") is None


def test_level_of_many_bytes_is_not_kept() -> None:
    level = {"level": "debug" * LEVEL_BYTES}
    assert ask(overture(), "logging/setLevel", level) is None


def test_level_is_for_the_child_once_it_was_asked_for() -> None:
    opened = overture()
    opened.start()
    assert ask(opened, "logging/setLevel", {"level": "debug"}) is None


@pytest.mark.parametrize("method", ["ping", "tools/list", "initialize"])
def test_catalogue_still_answers_while_the_child_boots(method: str) -> None:
    opened = overture()
    opened.start()
    assert ask(opened, method) is not None


@pytest.mark.parametrize("method", ["ping", "tools/list", "initialize", "logging/setLevel"])
def test_child_answers_for_itself_once_it_was_heard(method: str) -> None:
    opened = overture()
    booted(opened)
    assert ask(opened, method, {"level": "debug"}) is None


# Notifications


@pytest.mark.parametrize("name", ["initialized", "cancelled", "roots/list_changed"])
def test_notification_that_means_nothing_without_a_child_is_swallowed(name: str) -> None:
    assert swallows(overture(), f"notifications/{name}")


def test_unknown_notification_is_for_the_child() -> None:
    assert not swallows(overture(), "notifications/of-its-own")


@pytest.mark.parametrize("name", ["cancelled", "roots/list_changed", "of-its-own"])
def test_no_notification_is_swallowed_once_the_child_was_asked_for(name: str) -> None:
    opened = overture()
    opened.start()
    assert not swallows(opened, f"notifications/{name}")


# What the child hears first


def test_child_hears_the_client_s_own_params() -> None:
    line = overture().start()[0]
    assert line == (
        b'{"jsonrpc":"2.0","id":"rendezvous/1","method":"initialize","params":'
        + PARAMS.encode()
        + b"}"
    )


def test_child_hears_no_params_where_its_client_sent_none() -> None:
    opened = overture(params="")
    assert json.loads(opened.start()[0]) == {
        "jsonrpc": "2.0",
        "id": "rendezvous/1",
        "method": "initialize",
    }


def test_params_over_several_lines_reach_the_child_on_one() -> None:
    assert b"\n" not in overture(params='{\n"a":\r\n1}').start()[0]


def test_child_hears_the_end_of_the_handshake_second() -> None:
    said = [json.loads(line) for line in overture().start()]
    assert said[1:] == [{"jsonrpc": "2.0", "method": "notifications/initialized"}]


def test_child_hears_the_last_level_that_was_set() -> None:
    opened = overture()
    ask(opened, "logging/setLevel", {"level": "debug"})
    ask(opened, "logging/setLevel", {"level": "error"})
    assert [json.loads(line) for line in opened.start()][2:] == [
        {
            "jsonrpc": "2.0",
            "id": "rendezvous/2",
            "method": "logging/setLevel",
            "params": {"level": "error"},
        }
    ]


@pytest.mark.parametrize("said", [{"result": {}}, {"error": {"code": -32601, "message": "no"}}])
def test_answer_to_the_level_changes_nothing(said: dict[str, Any]) -> None:
    opened = overture()
    ask(opened, "logging/setLevel", {"level": "debug"})
    opened.start()
    assert difference(take(opened, 2, **said)) == NOTHING


# Whose answer it is


@pytest.mark.parametrize(
    "said",
    [
        {"id": 1, "result": {}},
        {"id": "rendezvous/2", "result": {}},
        {"id": "rendezvous/1", "method": "ping"},
        {"method": "notifications/message"},
    ],
)
def test_other_messages_of_the_child_are_not_awaited(said: dict[str, Any]) -> None:
    opened = overture()
    opened.start()
    assert not opened.awaits(peek(json.dumps({"jsonrpc": "2.0", **said}).encode()))


def test_nothing_is_awaited_before_the_start() -> None:
    envelope = peek(b'{"jsonrpc":"2.0","id":"rendezvous/1","result":{}}')
    assert not overture().awaits(envelope)


def answers(of: Overture, number: int) -> bool:
    """Return whether an answer to the gateway's own request of this number is awaited."""
    return of.awaits(peek(b'{"jsonrpc":"2.0","id":"rendezvous/%d","result":{}}' % number))


def test_second_answer_to_initialize_is_not_awaited() -> None:
    opened = overture()
    booted(opened)
    assert not answers(opened, 1)


def test_second_answer_to_a_list_is_not_awaited() -> None:
    opened = overture()
    ask(opened, "tools/list")
    booted(opened)
    before = answers(opened, 2)
    take(opened, 2, result={"tools": TOOLS})
    assert (before, answers(opened, 2)) == (True, False)


def test_id_is_the_gateway_s_own_as_long_as_its_answer_is_awaited() -> None:
    opened = overture()
    before = opened.uses("rendezvous/1")
    opened.start()
    during = opened.uses("rendezvous/1")
    take(opened, 1, result=OPENED)
    assert (before, during, opened.uses("rendezvous/1")) == (False, True, False)


def test_no_id_is_used_twice() -> None:
    opened = overture()
    ask(opened, "tools/list")
    ask(opened, "prompts/list")
    ask(opened, "logging/setLevel", {"level": "error"})
    lines = [json.loads(line) for line in opened.start()]
    lines += asked(take(opened, 1, result=OPENED))
    lines += asked(take(opened, 4, result={"prompts": [], "nextCursor": "2"}))
    ids = [line["id"] for line in lines if "id" in line]
    assert len(set(ids)) == len(ids) == 5


# The child's initialize


def test_child_that_says_the_same_is_asked_nothing_more() -> None:
    assert difference(booted(overture())) == NOTHING


def test_refused_initialize_is_fatal_and_says_why() -> None:
    opened = overture()
    opened.start()
    heard = take(opened, 1, error={"code": -32000, "message": "no licence"})
    assert isinstance(heard.fatal, SessionEnded)
    assert "no licence (-32000)" in heard.fatal.message


def test_refused_initialize_is_fatal_without_a_catalogue() -> None:
    opened = bare()
    opened.start()
    assert take(opened, 1, error={"code": 1, "message": ""}).fatal is not None


def test_another_revision_than_was_told_is_fatal() -> None:
    opened = overture()
    opened.start()
    heard = take(opened, 1, result={**OPENED, "protocolVersion": "2025-06-18"})
    assert isinstance(heard.fatal, SessionEnded)
    assert "'2025-06-18'" in heard.fatal.message


@pytest.mark.parametrize("result", [None, 1, [], {}, {"protocolVersion": 1}])
def test_answer_that_names_no_revision_is_fatal(result: Any) -> None:
    opened = overture()
    opened.start()
    assert take(opened, 1, result=result).fatal is not None


def test_revision_of_an_older_client_is_no_difference() -> None:
    opened = overture("2024-11-05")
    opened.start()
    answer = {**OPENED, "protocolVersion": "2024-11-05"}
    assert difference(take(opened, 1, result=answer)) == NOTHING


def test_child_that_does_not_speak_the_older_revision_that_was_told_is_fatal() -> None:
    opened = overture("2024-11-05")
    opened.start()
    assert take(opened, 1, result=OPENED).fatal is not None


def test_any_revision_will_do_where_nobody_was_told_one() -> None:
    opened = bare()
    opened.start()
    assert difference(take(opened, 1, result={**OPENED, "protocolVersion": "x"})) == NOTHING


@pytest.mark.parametrize(
    "other",
    [
        {"capabilities": {"tools": {}}},
        {"capabilities": {**OPENED["capabilities"], "completions": {}}},
        {"serverInfo": {"name": "s", "version": "2"}},
        {"instructions": "be quick"},
    ],
)
def test_another_introduction_changes_every_list(other: dict[str, Any]) -> None:
    opened = overture()
    opened.start()
    heard = take(opened, 1, result={**OPENED, **other})
    assert difference(heard) == ([], ALL, False)


def test_other_order_and_hints_are_no_difference() -> None:
    opened = overture()
    opened.start()
    answer = {**dict(reversed(OPENED.items())), "_meta": {"run": 2}}
    assert difference(take(opened, 1, result=answer)) == NOTHING


# The child's lists


def test_lists_that_the_client_was_told_are_asked_for_again() -> None:
    opened = overture()
    ask(opened, "prompts/list")
    ask(opened, "tools/list")
    assert asked(booted(opened)) == [
        {"jsonrpc": "2.0", "id": "rendezvous/2", "method": "prompts/list"},
        {"jsonrpc": "2.0", "id": "rendezvous/3", "method": "tools/list"},
    ]


def test_list_that_the_client_was_told_twice_is_asked_for_once() -> None:
    opened = overture()
    ask(opened, "tools/list")
    ask(opened, "tools/list")
    assert [request["method"] for request in asked(booted(opened))] == ["tools/list"]


def test_list_that_the_client_was_told_during_the_boot_is_asked_for_too() -> None:
    opened = overture()
    opened.start()
    ask(opened, "tools/list")
    heard = take(opened, 1, result=OPENED)
    assert [request["method"] for request in asked(heard)] == ["tools/list"]


def test_list_that_the_client_was_refused_is_not_asked_for() -> None:
    opened = overture()
    ask(opened, "resources/list")
    ask(opened, "tools/list", {"cursor": "x"})
    assert asked(booted(opened)) == []


def test_same_list_is_no_difference() -> None:
    opened = overture()
    ask(opened, "tools/list")
    booted(opened)
    assert difference(take(opened, 2, result={"_meta": {"run": 2}, "tools": TOOLS})) == NOTHING


@pytest.mark.parametrize("tools", [[], TOOLS[:1], TOOLS[::-1], [*TOOLS, {"name": "c"}]])
def test_another_list_is_a_change_of_its_kind(tools: list[Any]) -> None:
    opened = overture()
    ask(opened, "tools/list")
    booted(opened)
    assert difference(take(opened, 2, result={"tools": tools})) == ([], ["tools"], False)


def test_pages_are_asked_for_one_by_one() -> None:
    opened = overture()
    ask(opened, "tools/list")
    booted(opened)
    heard = take(opened, 2, result={"tools": TOOLS[:1], "nextCursor": "é+/="})
    assert asked(heard) == [
        {
            "jsonrpc": "2.0",
            "id": "rendezvous/3",
            "method": "tools/list",
            "params": {"cursor": "é+/="},
        }
    ]


def test_pages_that_come_to_the_same_list_are_no_difference() -> None:
    opened = overture()
    ask(opened, "tools/list")
    booted(opened)
    take(opened, 2, result={"tools": TOOLS[:1], "nextCursor": ""})
    assert difference(take(opened, 3, result={"tools": TOOLS[1:]})) == NOTHING


def test_pages_that_come_to_another_list_are_a_change() -> None:
    opened = overture()
    ask(opened, "tools/list")
    booted(opened)
    take(opened, 2, result={"tools": TOOLS, "nextCursor": "2"})
    assert take(opened, 3, result={"tools": TOOLS}).changed == ["tools"]


def test_pages_of_two_lists_do_not_mix() -> None:
    opened = overture()
    ask(opened, "tools/list")
    ask(opened, "prompts/list")
    booted(opened)
    take(opened, 2, result={"tools": TOOLS[:1], "nextCursor": "2"})
    assert difference(take(opened, 3, result={"prompts": []})) == NOTHING
    assert difference(take(opened, 4, result={"tools": TOOLS[1:]})) == NOTHING


def test_list_that_pages_for_ever_is_a_change() -> None:
    opened, page = overture(), {"tools": [], "nextCursor": "next"}
    ask(opened, "tools/list")
    booted(opened)
    for number in range(2, 2 + MAX_PAGES):
        assert take(opened, number, result=page).changed == []
    assert difference(take(opened, 2 + MAX_PAGES, result=page)) == ([], ["tools"], False)


@pytest.mark.parametrize(
    "said",
    [
        {"error": {"code": -32601, "message": "no"}},
        {"result": None},
        {"result": {"tools": 1}},
        {"result": {"tools": [], "nextCursor": 1}},
    ],
)
def test_answer_that_is_no_list_is_a_change(said: dict[str, Any]) -> None:
    opened = overture()
    ask(opened, "tools/list")
    booted(opened)
    assert difference(take(opened, 2, **said)) == ([], ["tools"], False)


def test_templates_are_of_the_kind_of_the_resources() -> None:
    templates = {"resources/templates/list": raw({"resourceTemplates": []})}
    opened = Overture(
        Opening(PARAMS, REVISION), Chapter("legacy", raw(OPENED), templates, learned=0.0)
    )
    ask(opened, "resources/templates/list")
    booted(opened)
    heard = take(opened, 2, result={"resourceTemplates": [{"name": "t"}]})
    assert heard.changed == ["resources"]


def test_child_that_was_asked_for_is_known_to_be() -> None:
    opened = overture()
    before = opened.started
    opened.start()
    assert (before, opened.started) == (False, True)


def test_end_of_the_handshake_is_swallowed_since_the_child_has_heard_it_from_us() -> None:
    opened = overture()
    opened.start()
    assert swallows(opened, "notifications/initialized")


# A later chapter

LATER = Chapter(
    "legacy",
    raw(OPENED),
    {"tools/list": raw({"tools": []}), "prompts/list": raw({"prompts": [{"name": "p"}]})},
    1.0,
)


def test_later_chapter_answers_from_then_on() -> None:
    opened = overture()
    opened.relearn(LATER, frozenset({"tools"}))
    assert ask(opened, "tools/list")["result"] == {"tools": []}


def test_kinds_that_the_client_was_told_otherwise_have_changed() -> None:
    opened = overture()
    ask(opened, "tools/list")
    assert opened.relearn(LATER, frozenset({"tools", "prompts"})) == ["tools"]


def test_client_of_an_opening_that_is_taken_up_again_may_have_been_told_every_list() -> None:
    known = Chapter("legacy", raw(OPENED), LATER.lists, 0.0)
    opened = Overture(Opening(PARAMS, REVISION), known, again=True)
    assert opened.relearn(LATER, frozenset({"tools", "prompts"})) == ["prompts", "tools"]


def test_child_is_compared_with_the_later_chapter() -> None:
    opened = overture()
    ask(opened, "tools/list")
    opened.relearn(LATER, frozenset({"tools"}))
    booted(opened)
    assert difference(take(opened, 2, result={"tools": []})) == NOTHING


def test_later_chapter_is_none_for_a_session_whose_child_was_asked_for() -> None:
    opened = overture()
    ask(opened, "tools/list")
    opened.start()
    changed = opened.relearn(LATER, frozenset({"tools"}))
    assert (changed, ask(opened, "tools/list")["result"]) == ([], {"tools": TOOLS})


def test_later_chapter_is_none_for_a_session_without_one() -> None:
    opened = bare()
    changed = opened.relearn(LATER, frozenset({"tools"}))
    assert (changed, ask(opened, "tools/list")) == ([], None)


def test_later_chapter_of_another_revision_is_none_for_a_client_that_was_told_this_one() -> None:
    opened = overture()
    ask(opened, "tools/list")
    older = Chapter("legacy", raw({**OPENED, "protocolVersion": "2025-06-18"}), LATER.lists, 1.0)
    changed = opened.relearn(older, frozenset({"tools"}))
    assert (changed, ask(opened, "tools/list")["result"]) == ([], {"tools": TOOLS})
