"""Labels, places, pages of a journal, replays: read as they are written, and nothing else taken."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyno_agent.link import ProtocolViolation
from dyno_agent.link.limits import JOURNAL_PAGE_BYTES, REPLAY_HEAD_BYTES
from dyno_agent.link.resumption import (
    GENERAL,
    MAX_ID,
    JournalPage,
    Replayed,
    RunningCall,
    digest,
    id_of,
    label,
    number_of,
    pages,
    position,
)
from gateway.edge import sse

CALL = RunningCall("é", "tools/call", "add", 5, "0" * 32, 1.5)
PAGE = JournalPage(
    calls=(CALL,),
    answered=((2, "1" * 32), ("", "")),
    asks=(1, "1", ""),
    routed={7: GENERAL, 8: "i1"},
    last=True,
)

LABELS: dict[str, tuple[str | int, str]] = {
    "zero": (0, "i0"),
    "a number": (17, "i17"),
    "a negative number": (-1, "i-1"),
    "the text of a number": ("17", "sMTc"),
    "an empty text": ("", "s"),
    "a word": ("add", "sYWRk"),
    "half a surrogate pair": ("\ud800", "s7aCA"),
}
NO_LABELS = [
    *(
        "-",
        "i",
        "i01",
        "i+1",
        "i 1",
        "i1_0",
        "i\u0661",
        "x1",
        "I1",
        "s=",
        "sMTc=",
        "sM",
        "sMT",
        "sMTd",
    ),
    *("s+", "s/", "s\n", "s é", "sé", "s\ud800", "s__8", "i" + "9" * 5000),
]
BAD_CALLS: dict[str, list[object]] = {
    "id": [None, True, 1.0, [], {}],
    "method": [None, 1, []],
    "tool": [1, [], True],
    "token": [True, 1.0, [], {}],
    "digest": [None, 1],
    "age_s": [-1, True, None, "1", 2**31, float("nan"), float("inf")],
}
BAD_ROUTES: list[object] = [[1], [1, "a", 2], [1, None], [1, 1], [0, "a"], [-1, "a"], [None, "a"]]
BAD_ROUTES += [[2**63, "a"], [True, "a"], [1.0, "a"], ["1", "a"]]
BAD_PAGES: dict[str, list[object]] = {
    "calls": [None, 1, [1], [None], [[]], [{}], "calls", {"a": 1}],
    "answered": [None, 1, [1], [[1]], [[1, "a", 2]], [[None, "a"]], [[True, "a"]], [[1, None]]],
    "asks": [None, 1, [None], [True], [1.5], [[]]],
    "routed": [None, 1, [1], [None], *([[route]] for route in BAD_ROUTES)],
}


def altered(page: JournalPage, **changes: object) -> str:
    return json.dumps({**json.loads(page.encode()), **changes})


def pairs(table: dict[str, list[object]]) -> list[tuple[str, object]]:
    return [(key, value) for key, values in table.items() for value in values]


# Labels and places


@pytest.mark.parametrize(("request_id", "text"), LABELS.values(), ids=LABELS)
def test_label_is_this_text_and_names_its_request(request_id: str | int, text: str) -> None:
    assert (label(request_id), id_of(text)) == (text, request_id)


def test_general_stream_names_no_request() -> None:
    assert id_of(GENERAL) is None


@pytest.mark.parametrize("number", range(len(NO_LABELS)))
def test_what_is_no_label_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match=r"."):
        id_of(NO_LABELS[number])


@settings(deadline=None, derandomize=True)
@given(st.integers() | st.text(max_size=MAX_ID))
def test_every_id_has_a_label_of_its_own_that_fits_an_event_id(request_id: str | int) -> None:
    text = label(request_id)
    assert id_of(text) == request_id
    assert type(id_of(text)) is type(request_id)
    place = position(5)
    assert sse.position(sse.event_id(place, text)) == (place, text)


@settings(deadline=None, derandomize=True)
@given(st.text(max_size=20) | st.from_regex(r"[is][A-Za-z0-9_=-]{0,12}", fullmatch=True))
def test_any_text_is_the_label_of_one_id_or_refused(text: str) -> None:
    try:
        request_id = id_of(text)
    except ValueError:
        return
    assert text == (GENERAL if request_id is None else label(request_id))


@settings(deadline=None, derandomize=True)
@given(st.text(max_size=30) | st.from_regex(r"\d{0,21}\.[is]?[A-Za-z0-9_-]{0,8}\n?"))
def test_any_text_is_an_event_id_or_refused(text: str) -> None:
    try:
        place, where = sse.position(text)
    except ValueError:
        return
    assert place >= 0
    assert where.isascii()


def test_places_leave_room_for_late_messages_and_keep_the_order_of_numbers() -> None:
    assert position(1) > position(0) + 60_000
    assert [number_of(position(7) + late) for late in (0, 1, 65_535)] == [7, 7, 7]


def test_same_request_has_the_same_digest_and_another_has_not() -> None:
    assert digest(b"{}") == "44136fa355b3678a1146ad16f7e8649e"
    assert digest(b"{} ") != digest(b"{}")


# The journal


@pytest.mark.parametrize("page", [PAGE, JournalPage(), JournalPage(last=True)], ids=repr)
def test_page_survives_the_wire(page: JournalPage) -> None:
    assert JournalPage.decode(page.encode()) == page


def test_page_is_this_document() -> None:
    assert json.loads(PAGE.encode()) == {
        "calls": [
            {
                "id": "é",
                "method": "tools/call",
                "tool": "add",
                "token": 5,
                "digest": "0" * 32,
                "age_s": 1.5,
            }
        ],
        "answered": [[2, "1" * 32], ["", ""]],
        "asks": [1, "1", ""],
        "routed": [[7, ""], [8, "i1"]],
        "last": True,
    }


def test_page_with_keys_of_a_later_version_is_read() -> None:
    assert JournalPage.decode(altered(PAGE, later={})) == PAGE


@pytest.mark.parametrize(("key", "value"), pairs(BAD_PAGES), ids=str)
def test_page_with_a_bad_value_is_refused(key: str, value: object) -> None:
    with pytest.raises(ProtocolViolation):
        JournalPage.decode(altered(PAGE, **{key: value}))


@pytest.mark.parametrize(("key", "value"), pairs(BAD_CALLS), ids=str)
def test_page_with_a_bad_call_is_refused(key: str, value: object) -> None:
    document = json.loads(PAGE.encode())
    document["calls"][0][key] = value
    with pytest.raises(ProtocolViolation):
        JournalPage.decode(json.dumps(document))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "1", '"a"', "[" * 20_000, "1" * 5000])
def test_text_that_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(ProtocolViolation):
        JournalPage.decode(text)


def test_page_may_be_as_large_as_its_limit_and_no_larger() -> None:
    padded = PAGE.encode().ljust(JOURNAL_PAGE_BYTES)
    assert JournalPage.decode(padded) == PAGE
    with pytest.raises(ProtocolViolation):
        JournalPage.decode(padded + " ")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


def mixed(right: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects in which every key is right, wrong or absent."""
    keys = {key: st.just(value) | values for key, value in right.items()}
    return st.fixed_dictionaries({}, optional=keys)


RIGHT = json.loads(PAGE.encode())
near_pages = st.builds(
    lambda page, call: json.dumps({**page, "calls": [call]}), mixed(RIGHT), mixed(RIGHT["calls"][0])
)


@settings(deadline=None, derandomize=True)
@given(st.text() | mixed(RIGHT).map(json.dumps) | near_pages)
def test_any_text_is_a_page_or_refused(text: str) -> None:
    try:
        assert isinstance(JournalPage.decode(text), JournalPage)
    except ProtocolViolation:
        return


ids = st.integers() | st.text(max_size=40)
calls = st.lists(
    st.builds(
        RunningCall,
        ids,
        st.text(max_size=300),
        st.none() | st.text(max_size=300),
        st.none() | ids,
        st.text(max_size=40),
        st.floats(0, 2**30),
    ),
    max_size=5,
)


@settings(deadline=None, derandomize=True, max_examples=50)
@given(calls, st.lists(ids), st.integers(0, 3000))
def test_journal_is_told_whole_and_in_order_on_pages_of_bounded_size(
    running: list[RunningCall], asks: list[str | int], routes: int
) -> None:
    answered = [(ask, "0" * 32) for ask in asks]
    routed = ((number, "i1") for number in range(1, routes + 1))
    texts = pages(running * 40, answered, asks, routed)
    read = [JournalPage.decode(text) for text in texts]
    assert [call for page in read for call in page.calls] == running * 40
    assert [ask for page in read for ask in page.asks] == asks
    assert [entry for page in read for entry in page.answered] == answered
    assert [number for page in read for number in page.routed] == list(range(1, routes + 1))
    assert [page.last for page in read] == [False] * (len(read) - 1) + [True]


def test_entry_that_fits_on_no_page_is_left_out_alone() -> None:
    texts = pages([], [], ["x" * JOURNAL_PAGE_BYTES, "y"], [])
    assert [JournalPage.decode(text) for text in texts] == [JournalPage(asks=("y",), last=True)]


# Replays


@pytest.mark.parametrize("raw", [b"", b"{}", b"\x00\xff"])
def test_replay_survives_the_wire(raw: bytes) -> None:
    replayed = Replayed(2**64 - 1, 2**63, raw)
    assert Replayed.decode(replayed.encode()) == replayed


def test_replay_is_these_bytes() -> None:
    encoded = Replayed(1, 2, b"{}").encode()
    assert encoded.hex() == "000000000000000100000000000000027b7d"
    assert len(encoded) == REPLAY_HEAD_BYTES + 2


@pytest.mark.parametrize("size", [0, 1, REPLAY_HEAD_BYTES - 1])
def test_replay_without_its_head_is_refused(size: int) -> None:
    with pytest.raises(ProtocolViolation):
        Replayed.decode(bytes(size))


@settings(deadline=None, derandomize=True)
@given(st.binary(max_size=40))
def test_any_bytes_are_one_replay_or_refused(payload: bytes) -> None:
    try:
        replayed = Replayed.decode(payload)
    except ProtocolViolation:
        return
    assert replayed.encode() == payload
