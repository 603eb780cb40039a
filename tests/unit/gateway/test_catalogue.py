"""Proves that a chapter tells what the child told, byte by byte, and notices when that changes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from gateway.eras.catalogue import (
    LISTS,
    MAX_LIST_BYTES,
    MAX_PAGES,
    MAX_TOOLS,
    Chapter,
    Pages,
    TooMuch,
    Unlearnable,
    wanted,
)
from gateway.eras.versions import HANDSHAKE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.eras.catalogue import Era

DEEP = 100_000

UGLY = b'{"name":"t", "n":1.50,"n":2,"big":1e400,  "u":"\\u00e9\xc3\xa9","a":[ 1 ,2]}'
"""An item that no decoding and encoding gives back as it is."""

UNREADABLE = [b"1", b"null", b"[]", b'"text"', b'{"a":' * DEEP + b"1" + b"}" * DEEP, b'{"\xff":1}']


def raw(value: Any) -> Raw:
    return Raw(json.dumps(value).encode())


def opening(revision: str = "2025-11-25", **more: Any) -> Raw:
    return raw(
        {
            "protocolVersion": revision,
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "s", "version": "1"},
            **more,
        }
    )


def discovered(**more: Any) -> Raw:
    return raw(
        {
            "resultType": "complete",
            "supportedVersions": ["2026-07-28"],
            "capabilities": {"tools": {}},
            "ttlMs": 5,
            "cacheScope": "public",
            "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "s", "version": "1"}},
            **more,
        }
    )


def chapter(era: Era = "legacy", first: Raw | None = None, **lists: Raw) -> Chapter:
    """A chapter; its lists are named by capability."""
    if first is None:
        first = opening() if era == "legacy" else discovered()
    return Chapter(era, first, {f"{kind}/list": told for kind, told in lists.items()}, 0.0)


def result_of(answer: bytes | None) -> Any:
    assert answer is not None
    return json.loads(answer)["result"]


def merged(*pages: bytes, method: str = "tools/list") -> bytes:
    whole = Pages(method)
    for page in pages:
        whole.add(Raw(page))
    return bytes(whole.merged())


# wanted


@pytest.mark.parametrize(
    ("capabilities", "methods"),
    [
        ({}, []),
        ({"logging": {}, "completions": {}}, []),
        ({"tools": {}}, ["tools/list"]),
        ({"prompts": {"listChanged": True}}, ["prompts/list"]),
        ({"resources": {"subscribe": True}}, ["resources/list", "resources/templates/list"]),
        ({"resources": {}, "prompts": {}, "tools": {}}, list(LISTS)),
        ({"tools": None}, []),
    ],
)
def test_lists_to_learn_are_those_that_the_opening_declares(
    capabilities: dict[str, Any], methods: list[str]
) -> None:
    assert wanted(raw({"capabilities": capabilities})) == methods


@pytest.mark.parametrize(
    "told", [*UNREADABLE, b"{}", b'{"capabilities":[]}', b'{"capabilities":{"tools":true}}']
)
def test_opening_of_another_shape_declares_no_lists(told: bytes) -> None:
    assert wanted(Raw(told)) == []


# Pages


def test_page_gives_the_cursor_of_the_next_one() -> None:
    assert Pages("tools/list").add(Raw(b'{"tools":[],"nextCursor":"\\u00e9+/="}')) == "é+/="


@pytest.mark.parametrize("page", [b'{"tools":[]}', b'{"tools":[],"nextCursor":null}'])
def test_last_page_gives_no_cursor(page: bytes) -> None:
    assert Pages("tools/list").add(Raw(page)) is None


def test_empty_cursor_is_a_cursor() -> None:
    assert Pages("tools/list").add(Raw(b'{"tools":[],"nextCursor":""}')) == ""


@pytest.mark.parametrize(("method", "key"), LISTS.items())
def test_items_of_all_pages_are_one_list_in_their_order(method: str, key: str) -> None:
    pages = [raw({key: [1, 2], "nextCursor": "a"}), raw({key: [], "nextCursor": "b"})]
    pages += [raw({key: [3]})]
    assert json.loads(merged(*map(bytes, pages), method=method)) == {key: [1, 2, 3]}


def test_merged_items_are_byte_for_byte_what_the_child_wrote() -> None:
    first = b'{"tools":[' + UGLY + b' , {"b":1}],"nextCursor":"x"}'
    second = b'{ "tools" : [ ' + UGLY + b" ] }"
    assert merged(first, second) == b'{"tools":[' + UGLY + b' , {"b":1},' + UGLY + b"]}"


def test_merged_list_keeps_what_else_the_first_page_says() -> None:
    first = b'{"resultType":"complete","tools":[1],"ttlMs":7,"_meta":{"x":1.0},"nextCursor":"a"}'
    second = b'{"tools":[2],"ttlMs":7,"_meta":{"x":2},"y":1}'
    assert merged(first, second) == (
        b'{"resultType":"complete","tools":[1,2],"ttlMs":7,"_meta":{"x":1.0}}'
    )


@pytest.mark.parametrize(
    ("hints", "kept"),
    [
        (['"ttlMs":5', '"ttlMs":5'], {"ttlMs": 5}),
        (['"ttlMs":5', '"ttlMs":9'], {"ttlMs": 0}),
        (['"ttlMs":5', '"x":1', '"ttlMs":5'], {"ttlMs": 0}),
        (['"x":1', '"ttlMs":5'], {"x": 1, "ttlMs": 0}),
        (['"cacheScope":"public"', '"cacheScope":"public"'], {"cacheScope": "public"}),
        (['"cacheScope":"public"', '"cacheScope":"private"'], {"cacheScope": "private"}),
        (['"cacheScope":"public"', '"x":1'], {"cacheScope": "private"}),
    ],
)
def test_hints_that_pages_disagree_on_become_the_strictest(
    hints: Sequence[str], kept: dict[str, Any]
) -> None:
    whole = merged(*(b'{"tools":[],%b}' % hint.encode() for hint in hints))
    assert json.loads(whole) == {"tools": [], **kept}


def test_list_of_the_most_pages_is_learned_and_one_more_is_too_much() -> None:
    pages, page = Pages("tools/list"), Raw(b'{"tools":[1],"nextCursor":"same"}')
    for _ in range(MAX_PAGES):
        pages.add(page)
    assert json.loads(bytes(pages.merged()))["tools"] == [1] * MAX_PAGES
    with pytest.raises(TooMuch):
        pages.add(page)


def test_list_of_the_most_bytes_is_learned_and_one_more_is_too_much() -> None:
    half = MAX_LIST_BYTES // 2
    page = b'{"tools":[1],"nextCursor":"a"}'
    pages = Pages("tools/list")
    for _ in range(2):
        pages.add(Raw(page.ljust(half)))
    with pytest.raises(TooMuch):
        pages.add(Raw(page))
    pages = Pages("tools/list")
    pages.add(Raw(page.ljust(half)))
    with pytest.raises(TooMuch):
        pages.add(Raw(page.ljust(half + 1)))


@pytest.mark.parametrize(
    "page",
    [
        *UNREADABLE,
        b"{}",
        b'{"prompts":[]}',
        b'{"tools":{}}',
        b'{"tools":null}',
        b'{"tools":"[]"}',
        b'{"tools":[],"nextCursor":1}',
        b'{"tools":[],"nextCursor":["a"]}',
        b'{"tools":[],"nextCursor":"\xff"}',
    ],
)
def test_what_is_no_page_of_the_list_is_unlearnable(page: bytes) -> None:
    with pytest.raises(Unlearnable):
        Pages("tools/list").add(Raw(page))


@given(st.lists(st.lists(st.text() | st.integers() | st.none()), max_size=5), st.booleans())
@settings(deadline=None, derandomize=True, database=None)
def test_any_pages_make_the_list_that_their_items_make(pages: list[list[Any]], wide: bool) -> None:
    written = [json.dumps({"tools": page}, indent=2 if wide else None).encode() for page in pages]
    assert json.loads(merged(*written)) == {"tools": [item for page in pages for item in page]}


# Chapter.answer


@pytest.mark.parametrize(
    ("request_id", "written"), [(7, b"7"), ("7", b'"7"'), (2**64, b"18446744073709551616")]
)
def test_list_is_answered_byte_for_byte_under_the_id_of_the_request(
    request_id: str | int, written: bytes
) -> None:
    told = b'{"tools":[' + UGLY + b'], "ttlMs":3}'
    answer = chapter("modern", tools=Raw(told)).answer("tools/list", request_id)
    assert answer == b'{"jsonrpc":"2.0","id":' + written + b',"result":' + told + b"}"


def test_answer_is_one_line_whatever_the_child_wrote_between_its_tokens() -> None:
    told = Raw(b'{"tools":\r[\n{"a":"\\n"}]}')
    answer = chapter(tools=told).answer("tools/list", 1)
    assert answer == b'{"jsonrpc":"2.0","id":1,"result":{"tools": [ {"a":"\\n"}]}}'


@pytest.mark.parametrize("method", ["prompts/list", "tools/call", "server/discover", "", "tools"])
def test_what_a_legacy_chapter_does_not_hold_it_does_not_answer(method: str) -> None:
    assert chapter(tools=raw({"tools": []})).answer(method, 1) is None


def test_modern_chapter_answers_discover_as_learned_and_no_initialize() -> None:
    told = b'{"supportedVersions":[ "2026-07-28"],"capabilities":{},"protocolVersion":"2025-11-25"}'
    book = chapter("modern", Raw(told))
    answer = book.answer("server/discover", 1, requested="2025-06-18")
    assert answer == b'{"jsonrpc":"2.0","id":1,"result":' + told + b"}"
    assert book.answer("initialize", 1) is None


@pytest.mark.parametrize("hints", [b"", b',"ttlMs":0', b',"ttlMs":60000,"cacheScope":"public"'])
def test_hints_for_caches_are_told_as_the_child_gave_them(hints: bytes) -> None:
    told = b'{"tools":[]' + hints + b"}"
    answer = chapter("modern", tools=Raw(told)).answer("tools/list", 1)
    assert answer is not None
    assert answer.endswith(b'"result":' + told + b"}")


@pytest.mark.parametrize("own", HANDSHAKE)
@pytest.mark.parametrize("requested", HANDSHAKE)
def test_client_gets_its_revision_unless_the_child_only_has_an_older_one(
    requested: str, own: str
) -> None:
    answer = chapter(first=opening(own)).answer("initialize", 1, requested=requested)
    assert result_of(answer)["protocolVersion"] == min(requested, own)


@pytest.mark.parametrize("requested", ["", "0.1.0", "2025-01-01", "2024-11-5", "2026-07-28", "z"])
def test_client_of_an_unknown_revision_gets_the_childs(requested: str) -> None:
    answer = chapter().answer("initialize", 1, requested=requested)
    assert result_of(answer)["protocolVersion"] == "2025-11-25"


@pytest.mark.parametrize("own", ["2026-07-28", "DRAFT-2099", "2025-12-01", ""])
def test_revision_of_the_child_that_is_no_handshake_one_is_told_as_it_is(own: str) -> None:
    answer = chapter(first=opening(own)).answer("initialize", 1, requested="2025-06-18")
    assert result_of(answer)["protocolVersion"] == own


def test_opening_in_the_childs_own_revision_is_byte_for_byte_its_own() -> None:
    told = b'{"protocolVersion":"2025-11-25", "capabilities":{"x":1.50},"capabilities":{}}'
    answer = chapter(first=Raw(told)).answer("initialize", "a", requested="2025-11-25")
    assert answer == b'{"jsonrpc":"2.0","id":"a","result":' + told + b"}"


def test_opening_in_another_revision_differs_in_nothing_else() -> None:
    told = b'{"a":1.50,"protocolVersion":"2025-11-25","capabilities":{ "x":[1e400] },"z":"\\u00e9"}'
    answer = chapter(first=Raw(told)).answer("initialize", 1, requested="2025-03-26")
    other = told.replace(b"2025-11-25", b"2025-03-26")
    assert answer == b'{"jsonrpc":"2.0","id":1,"result":' + other + b"}"


@pytest.mark.parametrize("told", [b"5", b"{}", b'{"protocolVersion":7}'])
def test_opening_without_a_revision_is_told_as_it_is(told: bytes) -> None:
    answer = chapter(first=Raw(told)).answer("initialize", 1, requested="2025-03-26")
    assert answer == b'{"jsonrpc":"2.0","id":1,"result":' + told + b"}"


@pytest.mark.parametrize("requested", ["2025-03-26", "0.1.0", ""])
def test_negotiated_says_what_the_answer_says(requested: str) -> None:
    book = chapter(first=opening("2025-06-18"))
    answered = result_of(book.answer("initialize", 1, requested=requested))["protocolVersion"]
    assert book.negotiated(requested) == answered


# Chapter.diverges


def test_same_list_in_other_words_does_not_diverge() -> None:
    book = chapter(tools=Raw(b'{"tools":[{"name":"a","n":1}]}'))
    assert not book.diverges("tools/list", Raw(b'{ "tools":[{"n":1.0,"name":"\\u0061"}]}'))


@pytest.mark.parametrize(
    "later",
    [
        b'{"tools":[{"name":"b"}]}',
        b'{"tools":[]}',
        b'{"tools":[{"name":"a"},{"name":"b"}]}',
        b'{"tools":[{"name":"a"}],"x":1}',
        b'{"tools":[{"name":"a"}],"nextCursor":"b"}',
        b'{"tools":[{"name":"a","_meta":{}}]}',
        b'{"tools":[{"name":"a","ttlMs":1}]}',
        *UNREADABLE,
    ],
)
def test_list_that_says_something_else_diverges(later: bytes) -> None:
    assert chapter(tools=Raw(b'{"tools":[{"name":"a"}]}')).diverges("tools/list", Raw(later))


@pytest.mark.parametrize(
    "more", [{"ttlMs": 9}, {"cacheScope": "private"}, {"_meta": {"io.example/at": 9}}]
)
def test_hints_may_change_without_divergence(more: dict[str, Any]) -> None:
    book = chapter("modern", tools=raw({"tools": [], "ttlMs": 1}))
    assert not book.diverges("tools/list", raw({"tools": [], **more}))
    assert not book.diverges("server/discover", discovered(**more))


@pytest.mark.parametrize(
    "more",
    [
        {"capabilities": {}},
        {"supportedVersions": []},
        {"instructions": "new"},
        {"resultType": "task"},
    ],
)
def test_modern_opening_that_says_something_else_diverges(more: dict[str, Any]) -> None:
    assert chapter("modern").diverges("server/discover", discovered(**more))


@pytest.mark.parametrize(
    "more",
    [
        {"capabilities": {"tools": {"listChanged": True}}},
        {"serverInfo": {"name": "s", "version": "2"}},
        {"instructions": "new"},
        {"protocolVersion": "2025-06-18"},
    ],
)
def test_initialize_result_that_says_something_else_diverges(more: dict[str, Any]) -> None:
    assert chapter().diverges("initialize", opening(**more))


def test_initialize_result_is_compared_in_what_clients_build_on_only() -> None:
    assert not chapter().diverges("initialize", opening(_meta={"pid": 7}, greeting="hello"))


def test_child_that_answers_the_revision_the_client_was_told_does_not_diverge() -> None:
    assert not chapter().diverges("initialize", opening("2025-03-26"), told="2025-03-26")


def test_child_that_answers_its_own_revision_to_a_client_told_another_diverges() -> None:
    assert chapter().diverges("initialize", opening(), told="2025-03-26")


@pytest.mark.parametrize("method", ["prompts/list", "server/discover", "tools/call"])
def test_what_no_client_was_told_does_not_diverge(method: str) -> None:
    assert not chapter(tools=raw({"tools": []})).diverges(method, raw({"prompts": [1]}))


def test_initialize_of_a_modern_chapter_was_told_to_nobody() -> None:
    assert not chapter("modern").diverges("initialize", opening())


def test_unreadable_answer_diverges_unless_it_is_the_same_bytes() -> None:
    book = chapter(tools=Raw(b'{"tools":[1e400]}'))
    assert not book.diverges("tools/list", Raw(b'{"tools":[1e400]}'))
    assert book.diverges("tools/list", Raw(b'{"tools":[2e400]}'))


def test_unreadable_opening_is_compared_by_its_bytes_and_the_revision_that_was_told() -> None:
    told = Raw(b'{"protocolVersion":"2025-11-25","capabilities":{"x":1e400}}')
    book = chapter(first=told)
    assert not book.diverges("initialize", told, told="2025-11-25")
    assert book.diverges("initialize", told, told="2025-03-26")


# Chapter.tool


def test_tool_is_found_by_its_name() -> None:
    tools = [{"name": "a", "x": 1}, {"name": "é", "inputSchema": {"type": "object"}}]
    book = chapter(tools=raw({"tools": tools}))
    assert [book.tool("a"), book.tool("é"), book.tool("b")] == [*tools, None]


def test_last_of_several_tools_of_a_name_counts() -> None:
    book = chapter(tools=raw({"tools": [{"name": "a", "x": 1}, {"name": "a", "x": 2}]}))
    assert book.tool("a") == {"name": "a", "x": 2}


@pytest.mark.parametrize("bad", [b"1", b"{}", b'{"name":7}', b'{"name":null}', b'{"name":"\xff"}'])
def test_tool_without_a_name_does_not_hide_the_others(bad: bytes) -> None:
    book = chapter(tools=Raw(b'{"tools":[' + bad + b',{"name":"a"}]}'))
    assert book.tool("a") == {"name": "a"}


def test_tool_that_cannot_be_read_is_none() -> None:
    assert chapter(tools=Raw(b'{"tools":[{"name":"a","x":1e400}]}')).tool("a") is None


@pytest.mark.parametrize("told", [*UNREADABLE, b"{}", b'{"tools":{}}', b'{"tools":null}'])
def test_list_of_another_shape_has_no_tools(told: bytes) -> None:
    assert chapter(tools=Raw(told)).tool("a") is None


def test_chapter_without_a_list_of_tools_has_none() -> None:
    assert chapter(prompts=raw({"tools": [{"name": "a"}]})).tool("a") is None


def test_chapter_of_the_most_tools_finds_the_last_and_one_more_is_too_much() -> None:
    tools = [{"name": str(number)} for number in range(MAX_TOOLS + 1)]
    book = chapter(tools=raw({"tools": tools[:-1]}))
    assert book.tool(str(MAX_TOOLS - 1)) == tools[-2]
    with pytest.raises(TooMuch):
        chapter(tools=raw({"tools": tools}))


# The rest


@pytest.mark.parametrize("era", ["legacy", "modern"])
def test_kinds_that_announce_changes_are_those_the_opening_says_so_of(era: Era) -> None:
    capabilities = {
        "tools": {"listChanged": True},
        "prompts": {"listChanged": False},
        "resources": {"subscribe": True},
        "logging": {"listChanged": True},
    }
    book = chapter(era, raw({"capabilities": capabilities}))
    assert book.list_changed_kinds == {"tools"}


@pytest.mark.parametrize("value", [1, "true", None, {}])
def test_only_true_announces_changes(value: Any) -> None:
    told = raw({"capabilities": {"tools": {"listChanged": value}}})
    assert chapter(first=told).list_changed_kinds == frozenset()


def test_chapter_never_shows_what_servers_said() -> None:
    book = chapter(first=opening(instructions="hush"), tools=raw({"tools": [{"name": "hush"}]}))
    assert "hush" not in repr(book)
