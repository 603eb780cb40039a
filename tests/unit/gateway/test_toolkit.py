"""Proves that a toolkit offers what its members have, and sends what is meant for one to that one.

Whatever names servers and tools have, what is offered leads back; whatever children have written,
the rest is offered all the same.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from gateway.eras.catalogue import LISTS, MAX_LIST_BYTES, Chapter
from gateway.eras.legacy import Opening
from gateway.eras.toolkit import (
    MAX_EXPRESSIONS,
    MAX_INSTRUCTIONS,
    MAX_ITEMS,
    MAX_URI,
    SEPARATORS,
    SHOWN,
    Composed,
    Route,
    abridged,
    compose,
)
from gateway.eras.versions import HANDSHAKE
from gateway.errors import UnknownItem, UnknownMethod, UnknownResource
from gateway.jsonrpc import peek
from gateway.registry.servers import Registry, ServerDefinition
from gateway.registry.servers import toolkit as registry_toolkit
from gateway.sessions.toolkits import Toolkits

if TYPE_CHECKING:
    from gateway.eras.catalogue import Era

DEEP = 100_000

NASTY = [
    b"1",
    b"null",
    b"[]",
    b'"text"',
    b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    b'{"\xff":1}',
    b'{"tools":1,"capabilities":3,"instructions":[],"prompts":null,"resources":{}}',
    b'{"tools":[null,1,"x",[],{}],"resources":[{"uri":5},{"uri":null}]}',
    b'{"tools":[{"name":"t","d":"\xff"}],"resources":[{"uri":"x:1","d":"\xff"}]}',
    b'{"tools":[{"name":"twice"},{"name":"twice","n":2}],"tools":[{"name":"\xff"}]}',
    b'{"tools":[{"name":"a","name":"b"},{"name":"\\ud800"},{"\\ud800":1,"name":"c"}]}',
    b'{"prompts":[{"name":{"name":"x"}}],"resourceTemplates":[{"uriTemplate":"{{{}}}"}]}',
    b'{"tools":[' + b"[" * DEEP + b"]" * DEEP + b"]}",
    b"",
    b'{"tools":[',
]
"""Results that no honest child gives."""

UGLY = b'{"n":1.50,"big":1e400,  "u":"\\u00e9\xc3\xa9","a":[ 1 ,2],"name":"t"}'
"""An item whose values no decoding and encoding gives back as they are."""


def raw(value: Any) -> Raw:
    return Raw(json.dumps(value).encode())


def chapter(
    era: Era = "legacy",
    *,
    capabilities: Any = None,
    instructions: str | None = None,
    learned: float = 0.0,
    **lists: Any,
) -> Chapter:
    """A chapter; each list is named by where its items stand, and holds names, URIs or items."""
    places = {place: method for method, place in LISTS.items()}
    keys = {"resources": "uri", "resourceTemplates": "uriTemplate"}
    told = {
        places[place]: raw(
            {
                place: [
                    {keys.get(place, "name"): item} if isinstance(item, str) else item
                    for item in items
                ]
            }
        )
        for place, items in lists.items()
    }
    declared: Any = {method.partition("/")[0]: {} for method in told}
    opening = {"capabilities": declared if capabilities is None else capabilities}
    if instructions is not None:
        opening["instructions"] = instructions
    return Chapter(era, raw(opening), told, learned)


def having(place: str, its: list[Any], era: Era = "legacy") -> Chapter:
    lists: Any = {place: its}
    return chapter(era, **lists)


def made(
    *members: tuple[str, Chapter | None], separator: str = "/", era: Era = "legacy"
) -> Composed:
    return compose(era, members, separator, "kit")


def items(composed: Composed, place: str) -> list[Any]:
    (method,) = (method for method, where in LISTS.items() if where == place)
    return list(json.loads(bytes(composed.chapter.lists[method]))[place])


def names(composed: Composed, place: str = "tools") -> list[str]:
    return [item["name"] for item in items(composed, place)]


def request(method: str, **params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()


def routed(composed: Composed, method: str, **params: Any) -> Route:
    body = request(method, **params)
    return composed.route(peek(body), body)


def calls(composed: Composed, name: str) -> tuple[str, str | None]:
    route = routed(composed, "tools/call", name=name)
    assert json.loads(route.raw)["params"]["name"] == route.name
    return route.member, route.name


def reads(composed: Composed, uri: str) -> str:
    return routed(composed, "resources/read", uri=uri).member


def refuses(composed: Composed, method: str = "tools/call", **params: Any) -> UnknownItem:
    with pytest.raises(UnknownItem) as caught:
        routed(composed, method, **params)
    return caught.value


# Names that are offered


def test_tools_and_prompts_are_offered_with_their_servers_in_front() -> None:
    kit = made(
        ("pg", chapter(tools=["query"], prompts=["ask"])), ("md", chapter(tools=["convert"]))
    )
    assert names(kit) == ["pg/query", "md/convert"]
    assert names(kit, "prompts") == ["pg/ask"]


@pytest.mark.parametrize("separator", SEPARATORS)
def test_names_are_offered_with_the_separator_of_the_toolkit(separator: str) -> None:
    assert names(made(("pg", chapter(tools=["q"])), separator=separator)) == [f"pg{separator}q"]


def test_two_names_that_would_be_the_same_are_told_apart() -> None:
    kit = made(("a", chapter(tools=["b__c"])), ("a__b", chapter(tools=["c"])), separator="__")
    assert names(kit) == ["a__b__c", "a__b/c"]
    assert [calls(kit, name) for name in names(kit)] == [("a", "b__c"), ("a__b", "c")]


def test_tool_for_which_no_name_is_left_is_not_offered() -> None:
    kit = made(
        ("s", chapter(tools=["r/x", "r.x", "r__x"])),
        ("s.r", chapter(tools=["x", "y"])),
        separator=".",
    )
    assert names(kit) == ["s.r/x", "s.r.x", "s.r__x", "s.r.y"]


def test_only_the_name_of_an_item_is_changed() -> None:
    told = Raw(b'{"tools":[' + UGLY + b"]}")
    kit = made(("s", Chapter("legacy", raw({}), {"tools/list": told}, 0.0)))
    (offered,) = msgspec.json.decode(kit.chapter.lists["tools/list"], type=dict[str, list[Raw]])[
        "tools"
    ]
    values = msgspec.json.Decoder(dict[str, Raw])
    before, after = values.decode(UGLY), values.decode(offered)
    assert list(after) == list(before)
    assert bytes(after.pop("name")) == b'"s/t"'
    del before["name"]
    assert {key: bytes(value) for key, value in after.items()} == {
        key: bytes(value) for key, value in before.items()
    }


def test_resources_and_templates_are_offered_as_they_were_written() -> None:
    written = b'{"x": 1.50,\t"uri":"file:///a" }', b'{"uriTemplate" : "file:///{p}"}'
    lists = {
        "resources/list": Raw(b'{"resources":[' + written[0] + b"]}"),
        "resources/templates/list": Raw(b'{"resourceTemplates":[' + written[1] + b"]}"),
    }
    kit = made(("s", Chapter("legacy", raw({}), lists, 0.0)))
    assert written[0] in bytes(kit.chapter.lists["resources/list"])
    assert written[1] in bytes(kit.chapter.lists["resources/templates/list"])


def test_of_equal_uris_the_first_members_counts() -> None:
    first, second = {"uri": "x:1", "name": "first"}, {"uri": "x:1", "name": "second"}
    kit = made(("a", chapter(resources=[first])), ("b", chapter(resources=[second, "x:2"])))
    assert items(kit, "resources") == [first, {"uri": "x:2"}]
    assert (reads(kit, "x:1"), reads(kit, "x:2")) == ("a", "b")


def test_of_equal_names_in_one_list_the_last_counts() -> None:
    twice = [{"name": "t", "n": 1}, {"name": "u"}, {"name": "t", "n": 2}]
    assert items(made(("s", chapter(tools=twice))), "tools") == [
        {"name": "s/t", "n": 2},
        {"name": "s/u"},
    ]


@pytest.mark.parametrize("era", ["legacy", "modern"])
@pytest.mark.parametrize(("method", "place"), LISTS.items())
def test_every_list_is_there_though_nobody_has_any(era: Era, method: str, place: str) -> None:
    answer = made(("s", chapter(era)), era=era).chapter.answer(method, 1)
    assert answer is not None
    assert json.loads(answer)["result"][place] == []


def test_lists_of_the_modern_era_are_complete_and_not_to_be_kept() -> None:
    kit = made(("s", chapter("modern", tools=["t"])), era="modern")
    assert json.loads(bytes(kit.chapter.lists["tools/list"])) == {
        "resultType": "complete",
        "ttlMs": 0,
        "cacheScope": "private",
        "tools": [{"name": "s/t"}],
    }


def test_list_of_the_handshake_revisions_holds_its_items_alone() -> None:
    kit = made(("s", chapter(tools=["t"])))
    assert json.loads(bytes(kit.chapter.lists["tools/list"])) == {"tools": [{"name": "s/t"}]}


# What it says of itself


def said(composed: Composed) -> Any:
    return json.loads(bytes(composed.chapter.opening))


def test_toolkit_introduces_itself_to_clients_with_a_handshake() -> None:
    assert said(made(("s", chapter(tools=[])))) == {
        "protocolVersion": "2025-11-25",
        "capabilities": {"tools": {"listChanged": True}},
        "serverInfo": {"name": "dyno-gateway toolkit kit", "version": "1"},
    }


def test_toolkit_introduces_itself_to_modern_clients() -> None:
    server = {"name": "dyno-gateway toolkit kit", "version": "1"}
    assert said(made(("s", chapter("modern", prompts=[])), era="modern")) == {
        "resultType": "complete",
        "supportedVersions": ["2026-07-28"],
        "capabilities": {"prompts": {"listChanged": True}},
        "ttlMs": 0,
        "cacheScope": "private",
        "_meta": {"io.modelcontextprotocol/serverInfo": server},
    }


@pytest.mark.parametrize("revision", HANDSHAKE)
def test_toolkit_speaks_every_revision_with_a_handshake(revision: str) -> None:
    assert made(("s", chapter())).chapter.negotiated(revision) == revision


@pytest.mark.parametrize(
    ("declared", "offered"),
    [
        ([{}], set()),
        ([{"tools": {}}, {"resources": {"subscribe": True}}], {"tools", "resources"}),
        ([{"logging": {}, "tasks": {}, "experimental": {}}], set()),
        ([{"completions": {}}, {"prompts": {}}], {"completions", "prompts"}),
        ([{"tools": None}], set()),
        ([[], 1, None], set()),
    ],
)
def test_capabilities_are_those_of_any_member_that_a_toolkit_can_keep(
    declared: list[Any], offered: set[str]
) -> None:
    members = [(f"s{n}", chapter(capabilities=each)) for n, each in enumerate(declared)]
    assert said(made(*members))["capabilities"].keys() == offered


def test_lists_that_a_toolkit_has_announce_their_changes() -> None:
    kit = made(("s", chapter(capabilities={"tools": {}, "resources": {}})))
    assert kit.chapter.list_changed_kinds == {"tools", "resources"}


def test_member_that_nobody_knows_yet_may_have_anything() -> None:
    """A client asks for no list whose capability it was not told, for the life of its session."""
    kit = made(("a", chapter(tools=["t"])), ("b", None))
    assert kit.chapter.list_changed_kinds == {"tools", "prompts", "resources"}


def test_instructions_stand_under_the_names_of_their_servers() -> None:
    kit = made(
        ("a", chapter(instructions=" be kind\n")),
        ("b", chapter()),
        ("c", chapter(instructions="x")),
    )
    assert said(kit)["instructions"] == "# a\n\nbe kind\n\n# c\n\nx"


def test_instructions_are_no_longer_than_their_limit() -> None:
    members = [(f"s{n}", chapter(instructions="é" * MAX_INSTRUCTIONS)) for n in range(3)]
    told = said(made(*members))["instructions"]
    assert len(told) == MAX_INSTRUCTIONS
    assert told.endswith("é…")


def test_chapter_is_as_old_as_the_newest_of_its_members() -> None:
    kit = made(("a", chapter(learned=3.0)), ("b", None), ("c", chapter(learned=2.0)))
    assert kit.chapter.learned == 3.0


# Limits


@pytest.mark.parametrize("place", LISTS.values())
def test_list_is_cut_at_its_limit_with_the_first_members_first(place: str) -> None:
    many = [f"x:{n}" for n in range(MAX_ITEMS - 1)]
    kit = made(("a", having(place, many)), ("b", having(place, ["y:1", "y:2"])))
    offered = items(kit, place)
    assert len(offered) == MAX_ITEMS
    assert "y:1" in json.dumps(offered[-1])


def test_tool_that_is_not_listed_for_want_of_room_can_be_called() -> None:
    many = [f"t{n}" for n in range(MAX_ITEMS)]
    kit = made(("a", chapter(tools=many)), ("b", chapter(tools=["late"])))
    assert "b/late" not in names(kit)
    assert calls(kit, "b/late") == ("b", "late")


def test_more_items_of_one_member_than_a_list_holds_are_cut() -> None:
    kit = made(("a", chapter(prompts=[f"p{n}" for n in range(MAX_ITEMS + 5)])))
    assert len(items(kit, "prompts")) == MAX_ITEMS


@pytest.mark.parametrize("place", ["tools", "resources"])
def test_list_has_no_more_bytes_than_a_message_may(place: str) -> None:
    key = "name" if place == "tools" else "uri"
    half = "x" * (MAX_LIST_BYTES // 2)
    members = [(name, having(place, [{key: name, "d": half}])) for name in ("a", "b", "c")]
    assert len(items(made(*members), place)) == 1


# Where calls go


@pytest.mark.parametrize("offered", SEPARATORS)
@pytest.mark.parametrize("used", SEPARATORS)
def test_every_separator_is_understood_whichever_is_offered(offered: str, used: str) -> None:
    kit = made(("a", chapter(tools=["t"])), ("b", chapter(tools=["t"])), separator=offered)
    assert calls(kit, f"b{used}t") == ("b", "t")


def test_plain_name_is_enough_where_one_member_has_it() -> None:
    kit = made(("a", chapter(tools=["t"])), ("b", chapter(tools=["u"])))
    assert calls(kit, "u") == ("b", "u")


def test_plain_name_that_several_have_is_refused_with_the_ways_to_say_it() -> None:
    kit = made(("a", chapter(tools=["t"])), ("b", chapter(tools=["t"])), separator="__")
    error = refuses(kit, name="t")
    assert (error.code, error.status) == (-32602, 200)
    assert "a__t, b__t" in error.message


def test_longest_server_name_that_fits_is_meant() -> None:
    kit = made(("a", chapter(tools=["b.c"])), ("a.b", chapter(tools=["c"])))
    assert calls(kit, "a.b.c") == ("a.b", "c")


def test_offered_name_means_what_was_offered_before_anything_else() -> None:
    kit = made(("a", chapter(tools=["b/t"])), ("c", chapter(tools=["a/b/t"])))
    assert calls(kit, "a/b/t") == ("a", "b/t")
    assert calls(kit, "c/a/b/t") == ("c", "a/b/t")


def test_member_that_nobody_knows_yet_gets_what_begins_with_its_name() -> None:
    kit = made(("a", None), ("b", chapter(tools=["t"])))
    assert calls(kit, "a/whatever") == ("a", "whatever")


def test_what_a_known_member_has_is_not_taken_for_an_unknown_ones() -> None:
    kit = made(("a.b", None), ("a", chapter(tools=["b.t"])), ("c", chapter(tools=["a.b/x"])))
    assert calls(kit, "a.b.t") == ("a", "b.t")
    assert calls(kit, "a.b/x") == ("c", "a.b/x")


def test_unknown_tool_of_a_known_member_is_refused_with_near_names() -> None:
    kit = made(("pg", chapter(tools=["query", "schema"])), ("md", chapter(tools=["convert"])))
    message = refuses(kit, name="pg/querry").message
    assert "near: pg/query" in message
    assert "convert" not in message


def test_refusal_without_near_names_says_how_names_are_made() -> None:
    message = refuses(made(("pg", chapter(tools=["query"])), separator="."), name="zzz").message
    assert "SERVER.NAME" in message


def test_refusal_names_members_that_nobody_knows_yet() -> None:
    assert "slow" in refuses(made(("slow", None), ("a", chapter())), name="zzz").message


def test_refusal_repeats_no_more_than_a_piece_of_a_name() -> None:
    message = refuses(made(("a", chapter(tools=["x" * 5000]))), name="x" * 9999).message
    assert "x" * (SHOWN + 1) not in message


@pytest.mark.parametrize("params", [{}, {"name": 1}, {"name": None}, {"name": ["a/t"]}])
@pytest.mark.parametrize("method", ["tools/call", "prompts/get"])
def test_call_without_a_name_is_refused(method: str, params: dict[str, Any]) -> None:
    assert "name" in refuses(made(("a", chapter(tools=["t"]))), method, **params).message


@pytest.mark.parametrize("params", [b"", b',"params":[1]', b',"params":null', b',"params":7'])
def test_call_whose_params_are_no_object_is_refused(params: bytes) -> None:
    body = b'{"jsonrpc":"2.0","id":1,"method":"tools/call"' + params + b"}"
    with pytest.raises(UnknownItem):
        made(("a", chapter(tools=["t"]))).route(peek(body), body)


def test_prompts_and_tools_of_one_name_are_kept_apart() -> None:
    kit = made(("a", chapter(tools=["x"])), ("b", chapter(prompts=["x"])))
    assert calls(kit, "x") == ("a", "x")
    assert routed(kit, "prompts/get", name="x").member == "b"


def test_call_keeps_every_other_value_as_it_was_written() -> None:
    body = (
        b'{"id" : 9007199254740993, "method":"tools/call","jsonrpc":"2.0",\n'
        b'"x":1.50,"params":{"_meta":{"progressToken":1e0},"name":"a/t","arguments":' + UGLY + b"}}"
    )
    route = made(("a", chapter(tools=["t"]))).route(peek(body), body)
    assert route == Route("a", body_of(b'"t"'), "t")


def body_of(name: bytes) -> bytes:
    return (
        b'{"id":9007199254740993,"method":"tools/call","jsonrpc":"2.0",'
        b'"x":1.50,"params":{"_meta":{"progressToken":1e0},"name":'
        + name
        + b',"arguments":'
        + UGLY
        + b"}}"
    )


def test_call_stays_on_one_line() -> None:
    body = (
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a/t","arguments":{\n\r}}}'
    )
    route = made(("a", chapter(tools=["t"]))).route(peek(body), body)
    assert not {b"\n", b"\r"} & {route.raw[n : n + 1] for n in range(len(route.raw))}


@pytest.mark.parametrize(
    "method", ["resources/subscribe", "logging/setLevel", "tasks/get", "tools/list", "x"]
)
def test_other_methods_are_no_members(method: str) -> None:
    with pytest.raises(UnknownMethod):
        routed(made(("a", chapter(tools=["t"]))), method, name="a/t", uri="x:1")


# Where reads go


def test_read_goes_to_the_member_that_lists_the_uri_and_is_not_changed() -> None:
    kit = made(("a", chapter(resources=["x:1"])), ("b", chapter(resources=["x:2"])))
    body = request("resources/read", uri="x:2")
    assert kit.route(peek(body), body) == Route("b", body, "x:2")


@pytest.mark.parametrize(
    ("uri", "member"),
    [
        ("file:///logs/today", "logs"),
        ("file:///other", "files"),
        ("file:///logs/a/b.txt", "texts"),
        ("db://one/rows/two", "rows"),
        ("db://one", "db"),
        ("db://one/rows/", "rows"),
    ],
)
def test_read_goes_to_the_member_whose_template_says_most(uri: str, member: str) -> None:
    kit = made(
        ("files", chapter(resourceTemplates=["file:///{+path}"])),
        ("logs", chapter(resourceTemplates=["file:///logs/{day}"])),
        ("texts", chapter(resourceTemplates=["file:///logs/{day}/{name}.txt"])),
        ("rows", chapter(resourceTemplates=["db://{db}/rows/{row}"])),
        ("db", chapter(resourceTemplates=["db://{db}"])),
    )
    assert reads(kit, uri) == member


def test_of_templates_that_say_as_much_the_first_members_counts() -> None:
    kit = made(
        ("a", chapter(resourceTemplates=["x:{a}"])), ("b", chapter(resourceTemplates=["x:{b}"]))
    )
    assert reads(kit, "x:1") == "a"


def test_listed_uri_goes_before_templates() -> None:
    kit = made(
        ("a", chapter(resourceTemplates=["x:long/{a}"])), ("b", chapter(resources=["x:long/1"]))
    )
    assert reads(kit, "x:long/1") == "b"


@pytest.mark.parametrize("uri", ["x:1", "x:12", "y:1", "x:", "x:1/2x"])
def test_template_without_all_its_own_words_does_not_fit(uri: str) -> None:
    kit = made(
        ("a", chapter(resourceTemplates=["x:{a}/12"])), ("b", chapter(resourceTemplates=["z:{a}"]))
    )
    assert "a" not in kit_members_fitting(kit, uri)


def test_words_of_a_template_share_no_letters() -> None:
    kit = made(("a", chapter(resourceTemplates=["x:ab{v}ab"])))
    assert [kit._places._fitting(uri) for uri in ("x:ab", "x:abb", "x:abab")] == [None, None, "a"]


def kit_members_fitting(kit: Composed, uri: str) -> set[str]:
    found = kit._places._fitting(uri)
    return set() if found is None else {found}


def test_read_goes_to_the_only_member_with_resources() -> None:
    kit = made(("a", chapter(resources=["x:1"])), ("b", chapter(tools=["t"])))
    assert reads(kit, "never:seen") == "a"


def test_read_goes_to_the_only_member_with_resources_of_that_scheme() -> None:
    kit = made(
        ("a", chapter(resources=["x:1"])),
        ("b", chapter(resources=[], resourceTemplates=["y:{a}/z"])),
    )
    assert (reads(kit, "x:2"), reads(kit, "y:2")) == ("a", "b")


@pytest.mark.parametrize("uri", ["x:3", "never:seen"])
def test_read_that_may_be_anybodys_is_refused_with_those_it_may_be(uri: str) -> None:
    kit = made(("one", chapter(resources=["x:1"])), ("two", chapter(resources=["x:2"])))
    error = refuses(kit, "resources/read", uri=uri)
    assert isinstance(error, UnknownResource)
    assert (error.code, error.status) == (-32002, 200)
    assert "one, two" in error.message


def test_read_in_the_modern_era_is_refused_with_the_code_of_that_era() -> None:
    kit = made(("a", chapter("modern", tools=["t"])), era="modern")
    assert refuses(kit, "resources/read", uri="x:1").code == -32602


def test_read_without_a_uri_is_refused() -> None:
    assert "uri" in refuses(made(("a", chapter(resources=["x:1"]))), "resources/read").message


def test_uri_over_its_limit_is_held_against_no_template() -> None:
    kit = made(
        ("a", chapter(resourceTemplates=["x:{a}"])), ("b", chapter(resourceTemplates=["y:{a}"]))
    )
    fits, does_not = "x:" + "1" * (MAX_URI - 2), "x:" + "1" * (MAX_URI - 1)
    assert (kit._places._fitting(fits), kit._places._fitting(does_not)) == ("a", None)


def test_template_of_too_many_parts_fits_nothing_but_itself() -> None:
    long = "x:" + "{a}" * (MAX_EXPRESSIONS + 1)
    kit = made(
        ("a", chapter(resourceTemplates=[long])), ("b", chapter(resourceTemplates=["x:{b}"]))
    )
    assert (reads(kit, "x:1"), reads(kit, long)) == ("b", "a")


# Where completions go


def test_completion_of_a_prompt_goes_to_its_member_under_its_own_name() -> None:
    kit = made(("a", chapter(prompts=["p"])), ("b", chapter(prompts=["p"])))
    argument = {"name": "x", "value": "b/p"}
    route = routed(
        kit, "completion/complete", ref={"type": "ref/prompt", "name": "b/p"}, argument=argument
    )
    assert (route.member, route.name) == ("b", None)
    assert json.loads(route.raw)["params"] == {
        "ref": {"type": "ref/prompt", "name": "p"},
        "argument": argument,
    }


@pytest.mark.parametrize("uri", ["file:///{path}", "file:///a"])
def test_completion_of_a_resource_goes_to_its_member_unchanged(uri: str) -> None:
    kit = made(
        ("a", chapter(resources=["x:1"])), ("b", chapter(resourceTemplates=["file:///{path}"]))
    )
    body = request("completion/complete", ref={"type": "ref/resource", "uri": uri})
    assert kit.route(peek(body), body) == Route("b", body, None)


@pytest.mark.parametrize(
    "ref", [None, {}, {"type": "ref/tool"}, {"type": 1}, {"type": "ref/prompt"}, "ref/prompt"]
)
def test_completion_of_something_else_is_refused(ref: Any) -> None:
    refuses(made(("a", chapter(prompts=["p"]))), "completion/complete", ref=ref)


# What has changed


class Kits:
    """The toolkit of all servers, whose members' chapters are the test's."""

    def __init__(self) -> None:
        self.told = {"a": chapter(tools=["t"]), "b": chapter(tools=["t"])}
        registry = Registry([ServerDefinition(name=name) for name in self.told])
        self.kits = Toolkits(registry, lambda server, _era: self.told.get(server.name))

    def read(self) -> list[str]:
        return [tool["name"] for tool in self.kits.chapter(registry_toolkit("all"), "legacy").tools]

    def news(self) -> list[tuple[str, frozenset[str]]]:
        return [(news.toolkit, news.changed) for news in self.kits.news()]


TOOLS_CHANGED = [("toolkit/all", frozenset({"tools"}))]


def test_change_is_news_once() -> None:
    kits = Kits()
    kits.read()
    kits.told["b"] = chapter(tools=["u"])
    assert (kits.news(), kits.news()) == (TOOLS_CHANGED, [])
    assert kits.read() == ["a/t", "b/u"]


def test_change_is_news_though_somebody_has_read_it_meanwhile() -> None:
    kits = Kits()
    kits.read()
    kits.told["b"] = chapter(tools=["u"])
    kits.read()
    assert kits.news() == TOOLS_CHANGED


def test_change_of_a_toolkit_that_nobody_has_read_is_no_news() -> None:
    kits = Kits()
    kits.told["b"] = chapter(tools=["u"])
    assert kits.news() == []


def test_other_instructions_are_no_news_of_lists() -> None:
    kits = Kits()
    kits.read()
    kits.told["b"] = chapter(tools=["t"], instructions="be kind")
    assert kits.news() == []


# Openings with little room


def test_shorter_openings_keep_what_a_child_needs() -> None:
    params = {
        "protocolVersion": "2025-06-18",
        "capabilities": {"roots": {}, "x": [1.5]},
        "clientInfo": {"name": "c", "version": "2", "icons": ["x" * 9000]},
        "_meta": {"x": 1},
    }
    told = "2025-06-18"
    client = {"name": "c", "version": "2"}
    shorter = list(abridged(Opening(json.dumps(params), told)))
    assert [(json.loads(each.params), each.told) for each in shorter] == [
        (
            {
                "protocolVersion": told,
                "capabilities": params["capabilities"],
                "clientInfo": client,
            },
            told,
        ),
        ({"protocolVersion": told, "capabilities": {}, "clientInfo": client}, told),
    ]


@pytest.mark.parametrize(
    "params", ["", "[]", "1", '{"clientInfo":[]}', '{"clientInfo":{"name":1}}']
)
def test_opening_of_another_shape_is_made_one_that_a_child_takes(params: str) -> None:
    *_, last = abridged(Opening(params))
    assert json.loads(last.params) == {
        "protocolVersion": HANDSHAKE[0],
        "capabilities": {},
        "clientInfo": {"name": "", "version": ""},
    }


def test_shortest_opening_is_short_whatever_the_client_said() -> None:
    params = {"capabilities": {"x": "y" * 9999}, "clientInfo": {"name": "n" * 9999}}
    *_, last = abridged(Opening(json.dumps(params), HANDSHAKE[0]))
    assert len(last.params) < 200


# Whatever there is

NAMES = st.text("ab._-/", min_size=1, max_size=6)
SERVERS = st.text("ab._-", min_size=1, max_size=5)
KITS = st.dictionaries(SERVERS, st.none() | st.lists(NAMES, max_size=5), max_size=4)


@settings(deadline=None, derandomize=True, database=None, max_examples=300)
@given(kit=KITS, separator=st.sampled_from(SEPARATORS), place=st.sampled_from(["tools", "prompts"]))
def test_every_name_that_is_offered_leads_back_to_where_it_is_from(
    kit: dict[str, list[str] | None], separator: str, place: str
) -> None:
    members = [(name, None if own is None else having(place, own)) for name, own in kit.items()]
    composed = made(*members, separator=separator)
    method = "tools/call" if place == "tools" else "prompts/get"
    offered = names(composed, place)
    back = [routed(composed, method, name=name) for name in offered]
    assert len(set(offered)) == len(offered)
    there = {(name, own) for name, mine in kit.items() for own in mine or ()}
    found = [(route.member, route.name) for route in back]
    assert len(set(found)) == len(found)
    for name, own in there - set(found):  # no name was left for it
        assert {f"{name}{each}{own}" for each in SEPARATORS} <= set(offered)
    assert set(found) <= there


@settings(deadline=None, derandomize=True, database=None, max_examples=200)
@given(kit=KITS, given_name=st.text("ab._-/", max_size=10))
def test_name_leads_to_a_member_that_has_it_or_is_unknown_or_nowhere(
    kit: dict[str, list[str] | None], given_name: str
) -> None:
    members = [(name, None if own is None else chapter(tools=own)) for name, own in kit.items()]
    try:
        member, own = calls(made(*members), given_name)
    except UnknownItem:
        return
    has = kit[member]
    assert has is None or own in has
    assert given_name in {own, *(f"{member}{each}{own}" for each in SEPARATORS)}


RESULTS = st.sampled_from(NASTY) | st.binary(max_size=30)


@settings(deadline=None, derandomize=True, database=None, max_examples=200)
@given(
    era=st.sampled_from(["legacy", "modern"]),
    opening=RESULTS,
    lists=st.dictionaries(st.sampled_from(list(LISTS)), RESULTS),
)
def test_hostile_member_never_keeps_the_others_from_being_offered(
    era: Era, opening: bytes, lists: dict[str, bytes]
) -> None:
    hostile = Chapter(era, Raw(opening), {method: Raw(each) for method, each in lists.items()}, 0.0)
    kit = made(
        ("bad", hostile),
        ("good", chapter(era, tools=["t"], prompts=["p"], resources=["x:good"])),
        era=era,
    )
    assert "good/t" in names(kit)
    assert "good/p" in names(kit, "prompts")
    assert {"uri": "x:good"} in items(kit, "resources")
    assert kit.chapter.list_changed_kinds >= {"tools", "prompts", "resources"}
    assert calls(kit, "good/t") == ("good", "t")
    assert reads(kit, "x:good") == "good"


@pytest.mark.parametrize("nasty", NASTY)
@pytest.mark.parametrize("method", LISTS)
def test_list_that_cannot_be_read_is_an_empty_one_or_what_can_be(method: str, nasty: bytes) -> None:
    kit = made(("bad", Chapter("legacy", Raw(nasty), {method: Raw(nasty)}, 0.0)))
    for each in LISTS:
        answer = kit.chapter.answer(each, 1)
        assert answer is not None
        json.loads(answer)


def test_items_beside_one_that_cannot_be_read_are_offered() -> None:
    told: list[Any] = [None, 1, {}, {"name": 5}, {"name": "t"}, []]
    kit = made(("s", chapter(tools=told)))
    assert names(kit) == ["s/t"]
