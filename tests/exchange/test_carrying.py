"""One carried request between its two ends: every byte once, never more than there was credit for.

A state machine lets both ends say and read in any order over a wire that only keeps order; the
wire's own troubles are in test_post.py.
"""

import random
from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from gateway.exchange import carrying
from gateway.exchange.carrying import (
    PIECE_BYTES,
    WINDOW_BYTES,
    Ask,
    Asked,
    Asking,
    Body,
    Cancel,
    Content,
    End,
    Failed,
    Head,
    More,
    MoreBody,
    OutOfLine,
    PeerGone,
    Performing,
    Piece,
    Refused,
    Superseded,
)

NOISE = random.Random(7).randbytes(4 * WINDOW_BYTES)  # noqa: S311 - the same bytes in every run
ASKED = Asked("POST", "/mcp?a=b", (("Accept", "*/*"),), "alice", 20.0)
SIZES = (0, 1, PIECE_BYTES, PIECE_BYTES + 1, WINDOW_BYTES, WINDOW_BYTES + 1, 3 * WINDOW_BYTES)


def asking(body: bytes = b"") -> Asking:
    return Asking(7, ASKED, body)


def ask(size: int = 0, body: bytes = b"") -> Ask:
    return Ask(7, "POST", "/mcp", (), "alice", 20.0, size, body)


class RequestMachine(RuleBasedStateMachine):
    """Two ends and two queues."""

    @initialize(body=st.sampled_from(SIZES), answer=st.sampled_from(SIZES))
    def begin(self, body: int, answer: int) -> None:
        self.body, self.answer = NOISE[:body], NOISE[-answer:] if answer else b""
        self.asking = Asking(7, ASKED, self.body)
        opening = carrying.decode(carrying.encode(self.asking.opening()))
        assert isinstance(opening, Ask)
        self.performing = Performing(opening)
        self.there: deque[Content] = deque()
        self.back: deque[Content] = deque()
        self.rest = memoryview(self.answer)
        self.read_body, self.read_answer = b"", b""
        self.headed = self.over = False

    @rule()
    def send_body(self) -> None:
        if self.asking.next_size:
            self.there.append(self.asking.next_body())

    @rule()
    def take_body(self) -> None:
        piece = self.performing.body.take()
        if piece is not None:
            self.read_body += piece
            if (more := self.performing.more()) is not None:
                self.back.append(more)

    @rule()
    def begin_answer(self) -> None:
        if not self.headed and self.read_body == self.body:
            self.headed = True
            self.back.append(Head(7, 200, (("Content-Type", "text/event-stream"),)))

    @rule()
    def send_answer(self) -> None:
        if self.headed and self.rest:
            piece, self.rest = self.performing.out.cut(self.rest)
            if piece:
                self.back.append(Piece(7, piece))
        elif self.headed and not self.over:
            self.over = True
            self.back.append(End(7))

    @rule()
    def take_answer(self) -> None:
        piece = self.asking.answer.take()
        if piece is not None:
            self.read_answer += piece
            if (more := self.asking.more()) is not None:
                self.there.append(more)

    @rule()
    def deliver_there(self) -> None:
        if self.there:
            content = carrying.decode(carrying.encode(self.there.popleft()))
            assert isinstance(content, Body | More)
            self.performing.hear(content)

    @rule()
    def deliver_back(self) -> None:
        if self.back:
            content = carrying.decode(carrying.encode(self.back.popleft()))
            assert isinstance(content, Head | Piece | MoreBody | End | Failed)
            self.asking.hear(content)

    @invariant()
    def nothing_is_larger_than_a_window(self) -> None:
        if not hasattr(self, "asking"):
            return
        on_the_way = sum(len(one.data) for one in self.back if isinstance(one, Piece))
        unread = self.asking.answer.total - len(self.read_answer)
        assert on_the_way + unread <= WINDOW_BYTES
        on_the_way = sum(len(one.data) for one in self.there if isinstance(one, Body))
        assert on_the_way + self.performing.body.total - len(self.read_body) <= WINDOW_BYTES

    def teardown(self) -> None:
        if not hasattr(self, "asking"):
            return
        for _ in range(200):
            self.send_body()
            self.deliver_there()
            self.take_body()
            self.begin_answer()
            self.send_answer()
            self.deliver_back()
            self.take_answer()
        assert self.read_body == self.body
        assert self.performing.complete
        assert self.read_answer == self.answer
        assert (self.asking.ended, self.asking.failure) == (True, None)


@pytest.mark.no_cover  # counting lines takes longer than the test; others count them
def test_both_bodies_arrive_whole_within_their_windows() -> None:
    profile = settings(
        max_examples=80, stateful_step_count=60, derandomize=True, database=None, deadline=None
    )
    run_state_machine_as_test(RequestMachine, settings=profile)


def test_small_request_is_one_content() -> None:
    one = asking(b"x" * 1000)
    assert one.opening() == Ask(
        7, "POST", "/mcp?a=b", (("Accept", "*/*"),), "alice", 20.0, 1000, b"x" * 1000
    )
    assert one.next_size == 0


def test_body_stops_once_the_answer_has_begun() -> None:
    one = asking(NOISE)
    one.opening()
    assert one.next_size == PIECE_BYTES
    one.hear(Head(7, 413, ()))
    assert one.next_size == 0


def test_patience_of_the_performer_is_less_by_the_time_on_the_way() -> None:
    assert Performing(ask(), 1.5).asked.patience_s == 18.5


@pytest.mark.parametrize("before_head", [True, False])
def test_failure_of_the_performer_ends_the_answer(before_head: bool) -> None:
    one = asking()
    if not before_head:
        one.hear(Head(7, 200, ()))
    one.hear(Failed(7))
    assert one.ended
    assert isinstance(one.failure, PeerGone)


def test_busy_performer_is_told_apart() -> None:
    one = asking()
    one.hear(Failed(7, busy=True))
    assert isinstance(one.failure, Refused)


def test_first_end_counts() -> None:
    one = asking()
    one.end(superseded := Superseded())
    one.hear(Head(7, 200, ()))
    one.end(PeerGone())
    assert (one.head, one.failure) == (None, superseded)


@pytest.mark.parametrize(
    "contents",
    [
        [Piece(7, b"x")],
        [End(7)],
        [Head(7, 200, ()), Head(7, 200, ())],
        [Head(7, 200, ()), Piece(7, bytes(WINDOW_BYTES)), Piece(7, b"x")],
        [MoreBody(7, 1)],
        [MoreBody(7, -1)],
    ],
    ids=["piece first", "end first", "two heads", "no credit", "too much credit", "negative"],
)
def test_performer_out_of_line_is_noticed(contents: list[Head | Piece | End | MoreBody]) -> None:
    one = asking()
    for content in contents[:-1]:
        one.hear(content)
    with pytest.raises(OutOfLine):
        one.hear(contents[-1])


def test_asker_out_of_line_is_noticed() -> None:
    with pytest.raises(OutOfLine):
        Performing(ask(size=1, body=b"xx"))
    performing = Performing(ask(size=2 * WINDOW_BYTES))
    performing.hear(Body(7, bytes(WINDOW_BYTES)))
    with pytest.raises(OutOfLine):
        performing.hear(Body(7, b"x"))
    with pytest.raises(OutOfLine):
        performing.hear(More(7, 1))


@pytest.mark.parametrize(
    "raw",
    [b"", b"\xc1", b"\x91\xa7unknown", b"\x92\xa3ask\x01", b"\x92\xa4word\xa1\xff", b"\x91" * 5000],
)
def test_content_that_makes_no_sense_is_noticed(raw: bytes) -> None:
    with pytest.raises(OutOfLine):
        carrying.decode(raw)


def test_content_of_a_newer_form_is_understood_as_far_as_it_is_known() -> None:
    assert carrying.decode(b"\x93\xa6cancel\x05\xa3new") == Cancel(5)


def test_what_carries_payload_or_headers_does_not_show_it() -> None:
    headers = (("Mcp-Session-Id", "secret"),)
    assert "secret" not in repr(Asked("GET", "/mcp", headers, "alice", 1.0))
