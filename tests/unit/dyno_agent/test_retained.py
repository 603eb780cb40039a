"""The agent's memory: what is under way, what went where, and how little it may cost."""

import json
from typing import Any

import pytest

from dyno_agent import retained
from dyno_agent.link import Channel, Message
from dyno_agent.link.limits import JOURNAL_PAGE_BYTES
from dyno_agent.link.resumption import GENERAL, MAX_ID, JournalPage, digest, position
from dyno_agent.retained import (
    MAX_CALLS,
    RETAIN_BYTES,
    RETAIN_MESSAGES,
    RETAIN_S,
    TOOL_CHARACTERS,
    Retained,
)

NOTICE = b'{"jsonrpc":"2.0","method":"notifications/message"}'


def text(**keys: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **keys}).encode()


def call(key: str | int, token: str | int | None = None, name: str = "add") -> bytes:
    meta = {} if token is None else {"_meta": {"progressToken": token}}
    return text(id=key, method="tools/call", params={"name": name, **meta})


def progress(token: str | int) -> bytes:
    return text(method="notifications/progress", params={"progressToken": token})


def answer(key: str | int) -> bytes:
    return text(id=key, result={})


def ask(key: str | int) -> bytes:
    return text(id=key, method="sampling/createMessage")


class Memory:
    """A `Retained` that numbers what the child says as the link does."""

    def __init__(self) -> None:
        self.retained = Retained()
        self.seq = 0
        self.unconfirmed: list[Message] = []

    def given(self, payload: bytes, now: float = 0.0) -> None:
        self.retained.given(payload, now)

    def said(self, payload: bytes) -> int:
        """The child says something that is not confirmed yet; return its number."""
        self.seq += 1
        self.unconfirmed.append(Message(Channel.RPC, payload, self.seq))
        return self.seq

    def taken(self, payload: bytes, now: float = 0.0) -> int:
        """The child says something that a gateway takes over at once."""
        self.said(payload)
        self.confirm(now)
        return self.seq

    def confirm(self, now: float = 0.0) -> None:
        for message in self.unconfirmed:
            self.retained.taken(message, now)
        self.unconfirmed = []

    def replay(
        self, where: str | None, after: int = 0, now: float = 0.0
    ) -> tuple[list[tuple[int, bytes]], bool]:
        return self.retained.replay(where, after, self.unconfirmed, now)

    def numbers(self, where: str | None, after: int = 0, now: float = 0.0) -> list[int]:
        """Return the numbers of what is replayed of messages that kept their place."""
        return [place >> 16 for place, _ in self.replay(where, after, now)[0]]

    def journal(self, now: float = 0.0) -> JournalPage:
        (page,) = map(JournalPage.decode, self.retained.journal(self.unconfirmed, now))
        return page


@pytest.fixture
def memory() -> Memory:
    return Memory()


# Calls


def test_request_is_under_way_until_its_answer_is_taken_over(memory: Memory) -> None:
    raw = call(7, "t")
    memory.given(raw, now=10.0)
    memory.said(answer(7))
    (known,) = memory.journal(now=12.5).calls
    facts = (known.id, known.method, known.tool, known.token, known.digest, known.age_s)
    assert facts == (7, "tools/call", "add", "t", digest(raw), 2.5)
    memory.confirm()
    assert memory.journal().calls == ()


def test_one_and_the_text_one_are_different_calls(memory: Memory) -> None:
    memory.given(call(1))
    memory.given(call("1"))
    memory.taken(answer("1"))
    assert [known.id for known in memory.journal().calls] == [1]


def test_cancelled_call_is_not_under_way(memory: Memory) -> None:
    memory.given(call(1, "t"))
    memory.given(text(method="notifications/cancelled", params={"requestId": 1}))
    number = memory.taken(progress("t"))
    assert (memory.journal().calls, number in memory.numbers("i1")) == ((), False)


@pytest.mark.parametrize("named", [2, "1", None, True, [1], {}])
def test_cancellation_of_anything_else_changes_nothing(memory: Memory, named: object) -> None:
    memory.given(call(1))
    memory.given(text(method="notifications/cancelled", params={"requestId": named}))
    assert [known.id for known in memory.journal().calls] == [1]


def test_names_are_carried_along_up_to_a_length(memory: Memory) -> None:
    memory.given(text(id=1, method="m" * 1000, params={"name": "n" * 1000}))
    (known,) = memory.journal().calls
    assert (known.method, known.tool) == ("m" * TOOL_CHARACTERS, "n" * TOOL_CHARACTERS)


def test_oldest_call_is_forgotten_beyond_the_limit(memory: Memory) -> None:
    for key in range(MAX_CALLS + 1):
        memory.given(call(key, token=key))
    known = [
        entry.id
        for page in memory.retained.journal([], 0.0)
        for entry in JournalPage.decode(page).calls
    ]
    assert known == list(range(1, MAX_CALLS + 1))


NAMELESS = {
    "nothing": b"",
    "no text": b"\xff",
    "a batch": b"[]",
    "a number": b"1",
    "null": b"null",
    "a deep one": b"[" * 100_000,
    "a number without end": b'{"id":' + b"9" * 5000 + b',"method":"x"}',
    "a true id": text(id=True, method="x"),
    "a broken id": text(id=1.5, method="x"),
    "an empty id": text(id=None, method="x"),
    "a long id": text(id="x" * (MAX_ID + 1), method="x"),
    "a method that is none": text(method=5),
    "a cancellation of nothing": text(method="notifications/cancelled", params=5),
    "progress of nothing": text(method="notifications/progress", params={"progressToken": []}),
}


@pytest.mark.parametrize("raw", NAMELESS.values(), ids=NAMELESS)
def test_message_that_names_nothing_is_remembered_as_nothing(memory: Memory, raw: bytes) -> None:
    memory.given(raw)
    memory.taken(raw)
    page = memory.journal()
    assert (page.calls, page.asks, page.routed) == ((), (), {})


# Asks


def test_ask_that_was_taken_over_is_open_until_it_is_answered(memory: Memory) -> None:
    memory.taken(ask("q"))
    before = memory.journal().asks
    memory.given(answer("q"))
    assert (before, memory.journal().asks) == (("q",), ())


def test_ask_that_was_not_taken_over_is_not_in_the_journal(memory: Memory) -> None:
    """It comes again by itself."""
    memory.said(ask("q"))
    assert memory.journal().asks == ()


def test_ask_that_is_answered_before_its_acknowledgement_is_closed(memory: Memory) -> None:
    memory.said(ask("q"))
    memory.given(answer("q"))
    memory.confirm()
    assert (memory.journal().asks, memory.numbers(None)) == ((), [])


def test_id_that_is_asked_again_after_an_early_answer_is_open(memory: Memory) -> None:
    memory.said(ask("q"))
    memory.given(answer("q"))
    memory.confirm()
    memory.taken(ask("q"))
    assert memory.journal().asks == ("q",)


def test_oldest_ask_is_forgotten_beyond_the_limit(memory: Memory) -> None:
    for key in range(MAX_CALLS + 1):
        memory.taken(ask(key))
    asks = [
        key for page in memory.retained.journal([], 0.0) for key in JournalPage.decode(page).asks
    ]
    assert asks == list(range(1, MAX_CALLS + 1))


# What went where


def test_stream_of_a_call_has_its_progress_and_its_answer_in_order(memory: Memory) -> None:
    memory.given(call(1, "a"))
    memory.given(call(2, "b"))
    for raw in (progress("a"), progress("b"), progress("a"), answer(1)):
        memory.taken(raw)
    wanted, held = memory.replay("i1")
    assert wanted == [
        (position(1), progress("a")),
        (position(3), progress("a")),
        (position(4), answer(1)),
    ]
    assert held


def test_stream_that_waits_for_its_answer_holds_none(memory: Memory) -> None:
    memory.given(call(1, "a"))
    memory.taken(progress("a"))
    assert memory.replay("i1")[1] is False


@pytest.mark.parametrize(("after", "numbers"), [(0, [1, 2]), (1, [2]), (2, [])])
def test_replay_begins_after_what_the_client_has(
    memory: Memory, after: int, numbers: list[int]
) -> None:
    memory.given(call(1, "a"))
    memory.taken(progress("a"))
    memory.taken(answer(1))
    assert memory.numbers("i1", after=position(after)) == numbers


def test_answer_that_the_client_has_is_still_told_as_held(memory: Memory) -> None:
    memory.given(call(1))
    memory.taken(answer(1))
    assert memory.replay("i1", after=position(1)) == ([], True)


def test_what_is_not_confirmed_is_part_of_the_replay_of_a_stream(memory: Memory) -> None:
    memory.given(call(1, "a"))
    memory.taken(progress("a"))
    memory.said(progress("a"))
    memory.said(answer(1))
    assert (memory.numbers("i1"), memory.replay("i1")[1]) == ([1, 2, 3], True)


def test_progress_after_the_answer_belongs_to_nobody(memory: Memory) -> None:
    memory.given(call(1, "a"))
    memory.taken(answer(1))
    memory.taken(progress("a"))
    assert (memory.numbers("i1"), memory.numbers(None)) == ([1], [])


def test_token_that_two_calls_share_names_the_later_one(memory: Memory) -> None:
    memory.given(call(1, "a"))
    memory.given(call(2, "a"))
    memory.taken(progress("a"))
    memory.taken(answer(1))  # leaves the token to its later owner
    memory.taken(progress("a"))
    assert (memory.numbers("i1"), memory.numbers("i2")) == ([2], [1, 3])


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_message_is_on_the_stream_that_it_was_told_for(memory: Memory, *, before: bool) -> None:
    """The word may come before the message is taken over, or after."""
    number = memory.said(NOTICE)
    if not before:
        memory.confirm()
    memory.retained.routed(number, "i7", position(9) + 2)
    memory.confirm()
    assert memory.replay("i7") == ([(position(9) + 2, NOTICE)], False)
    assert memory.numbers(None) == []


def test_message_that_is_not_confirmed_is_on_its_stream_already(memory: Memory) -> None:
    memory.retained.routed(memory.said(NOTICE), GENERAL, 5)
    assert memory.replay(GENERAL)[0] == [(5, NOTICE)]


def test_late_message_stands_where_it_was_written(memory: Memory) -> None:
    late = memory.taken(NOTICE)
    memory.given(call(1, "a"))
    memory.taken(progress("a"))
    memory.retained.routed(late, "i1", position(2) + 1)
    places = [place for place, _ in memory.replay("i1")[0]]
    assert places == [position(2), position(2) + 1]


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_later_word_about_a_message_is_the_one_that_counts(memory: Memory, *, before: bool) -> None:
    number = memory.said(NOTICE)
    if not before:
        memory.confirm()
    memory.retained.routed(number, "i1", 5)
    memory.retained.routed(number, "i2", 6)
    memory.confirm()
    assert (memory.replay("i1")[0], memory.replay("i2")[0]) == ([], [(6, NOTICE)])


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_message_that_was_given_back_went_nowhere(memory: Memory, *, before: bool) -> None:
    number = memory.said(NOTICE)
    if not before:
        memory.confirm()
    memory.retained.routed(number, "i1", 5)
    memory.retained.routed(number, None, position(number))
    memory.confirm()
    assert (memory.numbers("i1"), memory.numbers(None)) == ([], [number])


def test_answer_that_is_retained_is_in_the_journal_with_the_digest_of_its_request(
    memory: Memory,
) -> None:
    memory.given(call(1))
    memory.given(call(2))
    memory.taken(answer(1))
    assert memory.journal().answered == ((1, digest(call(1))),)


def test_nowhere_is_what_was_taken_over_and_told_for_no_stream(memory: Memory) -> None:
    memory.given(call(1, "a"))
    for raw in (NOTICE, progress("a"), ask("q"), progress("unknown"), b"noise"):
        memory.taken(raw)
    memory.said(NOTICE)  # comes again by itself
    assert memory.numbers(None) == [1, 3]


def test_journal_tells_where_unconfirmed_messages_went_and_no_others(memory: Memory) -> None:
    memory.retained.routed(memory.taken(NOTICE), "i1", 5)
    number = memory.said(NOTICE)
    memory.retained.routed(number, GENERAL, 6)
    memory.retained.routed(99, "i1", 7)
    assert memory.journal().routed == {number: GENERAL}


def test_words_about_messages_that_never_come_are_bounded(memory: Memory) -> None:
    for number in range(10, 3 * RETAIN_MESSAGES):
        memory.retained.routed(number, "i1", number)
    assert len(memory.retained._routed) == RETAIN_MESSAGES


# Bounds


def test_so_many_messages_are_kept_and_the_oldest_goes_first(memory: Memory) -> None:
    for _ in range(RETAIN_MESSAGES + 2):
        memory.taken(NOTICE)
    assert memory.numbers(None) == list(range(3, RETAIN_MESSAGES + 3))


def test_so_many_bytes_are_kept_and_the_oldest_goes_first(memory: Memory) -> None:
    size = RETAIN_BYTES // 4
    for _ in range(6):
        memory.taken(NOTICE.ljust(size))
    assert (memory.numbers(None), memory.retained._kept_bytes) == ([3, 4, 5, 6], 4 * size)


def test_message_over_the_limit_leaves_nothing_behind(memory: Memory) -> None:
    memory.taken(NOTICE.ljust(RETAIN_BYTES + 1))
    assert (memory.numbers(None), memory.retained._kept_bytes) == ([], 0)
    memory.taken(NOTICE)
    assert memory.numbers(None) == [2]


@pytest.mark.parametrize(("now", "numbers"), [(RETAIN_S - 0.1, [1, 2]), (RETAIN_S, [2])])
def test_message_is_kept_for_so_long(memory: Memory, now: float, numbers: list[int]) -> None:
    memory.taken(NOTICE, now=0.0)
    memory.taken(NOTICE, now=1.0)
    assert memory.numbers(None, now=now) == numbers


def test_time_frees_the_bytes(memory: Memory) -> None:
    memory.taken(NOTICE)
    memory.numbers(None, now=RETAIN_S)
    assert memory.retained._kept_bytes == 0


def test_journal_fits_on_pages_and_loses_nothing(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retained, "MAX_CALLS", 2000)
    calls = [f"{key}" * (MAX_ID // 4) for key in range(1000, 1500)]
    for key in calls:
        memory.given(call(key, token=key, name="n" * 200))
    for number in range(300):
        memory.taken(ask(number))
    for _ in range(500):
        memory.retained.routed(memory.said(NOTICE), "i1", 5)
    texts = memory.retained.journal(memory.unconfirmed, 0.0)
    pages = [JournalPage.decode(text) for text in texts]
    assert len(pages) > 5
    assert max(map(len, texts)) <= JOURNAL_PAGE_BYTES
    assert [page.last for page in pages] == [False] * (len(pages) - 1) + [True]
    assert [known.id for page in pages for known in page.calls] == calls
    assert [key for page in pages for key in page.asks] == list(range(300))
    assert sum(len(page.routed) for page in pages) == 500


def test_journal_of_nothing_is_one_empty_page(memory: Memory) -> None:
    assert memory.journal() == JournalPage(last=True)
