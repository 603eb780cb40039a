"""Proves the correlation table: answers by id, progress by token, all else to one stream."""

import pytest

from gateway.eras.correlation import MAX_FORGOTTEN, Call, Correlation, Id
from gateway.errors import DuplicateId


def call(
    request_id: Id, stream: str | None = "stream", *, token: Id | None = None, at: float = 0.0
) -> Call[str]:
    return Call(request_id, request_id, "tools/call", None, stream, at, 0, token)


def table(*calls: Call[str]) -> Correlation[str]:
    made: Correlation[str] = Correlation()
    for each in calls:
        made.begin(each)
    return made


def test_answer_belongs_to_the_call_with_its_id() -> None:
    first, second = call(1), call(2)
    assert table(first, second).finish(2) is second


def test_number_and_text_of_the_same_digits_are_different_calls() -> None:
    number, text = call(1), call("1")
    both = table(number, text)
    assert (both.finish("1"), both.finish(1)) == (text, number)


def test_call_is_answered_once() -> None:
    one = table(call(1))
    one.finish(1)
    assert one.finish(1) is None


def test_running_calls_are_listed_oldest_first() -> None:
    three = table(call(3, at=1.0), call(1, at=2.0), call(2, at=3.0))
    three.finish(3)
    assert ([c.id for c in three.calls], len(three), three.oldest_start) == ([1, 2], 2, 2.0)


def test_empty_table_has_no_oldest_call() -> None:
    assert table().oldest_start is None


def test_id_in_flight_is_refused_and_the_first_call_stays() -> None:
    first = call(1)
    one = table(first)
    with pytest.raises(DuplicateId):
        one.begin(call(1, "other"))
    assert one.calls == [first]


def test_id_may_be_used_again_after_its_answer() -> None:
    one, again = table(call(1)), call(1)
    one.finish(1)
    one.begin(again)
    assert one.calls == [again]


def test_forgotten_id_is_refused_until_its_late_answer_came() -> None:
    one = table(call(1))
    one.forget(1)
    with pytest.raises(DuplicateId):
        one.begin(call(1))
    assert one.finish(1) is None
    one.begin(call(1))
    assert len(one) == 1


def test_only_a_running_call_can_be_forgotten() -> None:
    empty = table()
    assert (empty.forget(1), empty.is_forgotten(1)) == (None, False)


def test_forgotten_call_is_known_as_such_until_its_late_answer_came() -> None:
    one = table(call(1))
    one.forget(1)
    before = one.is_forgotten(1)
    one.finish(1)
    assert (before, one.is_forgotten(1)) == (True, False)


def test_oldest_forgotten_id_goes_beyond_the_bound() -> None:
    full = table()
    for number in range(MAX_FORGOTTEN + 1):
        full.begin(call(number))
        full.forget(number)
    known = [n for n in range(MAX_FORGOTTEN + 1) if full.is_forgotten(n)]
    assert known == list(range(1, MAX_FORGOTTEN + 1))


@pytest.mark.parametrize("token", [0, 1, "", "t"])
def test_token_leads_to_its_running_call(token: Id) -> None:
    mine = call(5, token=token)
    assert table(call(4, token="other"), mine).by_token(token) is mine


@pytest.mark.parametrize("token", [None, 1, "unknown"])
def test_unknown_token_leads_nowhere(token: Id | None) -> None:
    assert table(call(5, token="1")).by_token(token) is None


@pytest.mark.parametrize("end", ["finish", "forget"])
def test_token_leads_nowhere_once_its_call_ended(end: str) -> None:
    one = table(call(5, token="t"))
    getattr(one, end)(5)
    assert one.by_token("t") is None


def test_token_given_twice_means_the_newer_call() -> None:
    newer = call(2, token="t")
    assert table(call(1, token="t"), newer).by_token("t") is newer


def test_end_of_the_older_call_does_not_take_the_token_from_the_newer_one() -> None:
    newer = call(2, token="t")
    both = table(call(1, token="t"), newer)
    both.finish(1)
    assert both.by_token("t") is newer


def test_ask_is_answered_once() -> None:
    one = table()
    one.asked("a")
    assert (one.asks, one.answered("a"), one.answered("a"), one.asks) == (1, True, False, 0)


def test_answer_to_no_ask_is_told() -> None:
    one = table()
    one.asked("1")
    assert (one.answered(1), one.asks) == (False, 1)


@pytest.mark.parametrize(
    ("streams", "general", "chosen"),
    [
        ([], None, None),
        ([], "GET", "GET"),
        (["A"], None, "A"),
        (["A"], "GET", "A"),
        (["A", "B"], "GET", "GET"),
        (["A", "B"], None, "B"),
        ([None, "B"], "GET", "B"),
        ([None], "GET", "GET"),
        ([None], None, None),
        (["A", None], None, "A"),
    ],
)
def test_message_that_names_no_call_has_one_stream(
    streams: list[str | None], general: str | None, chosen: str | None
) -> None:
    some = table(*(call(number, stream) for number, stream in enumerate(streams)))
    some.general = general
    assert some.stream_for_others() == chosen


def test_stream_that_is_gone_is_taken_from_all_its_calls_and_they_run_on() -> None:
    some = table(call(1, "A"), call(2, "B"))
    some.general = "A"
    some.stream_gone("A")
    assert [(c.id, c.stream) for c in some.calls] == [(1, None), (2, "B")]
    assert some.general is None


def test_another_streams_end_leaves_the_general_one() -> None:
    some = table()
    some.general = "GET"
    some.stream_gone("A")
    assert some.general == "GET"
