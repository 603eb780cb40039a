"""Streams that continue: one request to the agent at a time, nothing of it to a wrong stream."""

import pytest

from gateway.sessions.resumption import Resumption, Resumptions

Streams = Resumptions[str]


@pytest.fixture
def streams() -> Streams:
    return Resumptions()


def continued(streams: Streams, stream: str, where: str | None = "i1", last: int = 0) -> None:
    streams.add(Resumption(where, last, stream))


def asked(streams: Streams) -> dict[str, object]:
    command = streams.command()
    assert command is not None
    return command


def ended(streams: Streams, ticket: int) -> None:
    resumption = streams.answered_by(ticket)
    assert resumption is not None
    streams.end(resumption)


def test_agent_is_asked_for_what_went_to_the_stream_after_the_last_message(
    streams: Streams,
) -> None:
    continued(streams, "A", "i7", last=5)
    assert streams.command() == {"do": "replay", "ticket": 1, "to": "i7", "after": 5}


def test_nothing_is_asked_when_nothing_is_wanted(streams: Streams) -> None:
    assert streams.command() is None


def test_agent_is_asked_again_only_when_it_has_answered(streams: Streams) -> None:
    continued(streams, "A", "i1")
    continued(streams, "B", "i2")
    first, meanwhile = asked(streams)["to"], streams.command()
    ended(streams, 1)
    assert (first, meanwhile, asked(streams)["to"]) == ("i1", None, "i2")


def test_streams_are_asked_for_in_their_order(streams: Streams) -> None:
    for number in range(5):
        continued(streams, str(number), f"i{number}")
    order = []
    while (command := streams.command()) is not None:
        order.append((command["ticket"], command["to"]))
        ended(streams, len(order))
    assert order == [(number + 1, f"i{number}") for number in range(5)]


def test_stream_that_is_gone_before_its_turn_is_skipped(streams: Streams) -> None:
    continued(streams, "A")
    continued(streams, "B", "i2")
    streams.stream_gone("A")
    assert asked(streams)["to"] == "i2"


def test_what_went_nowhere_is_asked_for_without_a_stream(streams: Streams) -> None:
    streams.add(Resumption(where=None, last=0, stream=None))
    assert asked(streams)["to"] is None


@pytest.mark.parametrize("ticket", [0, 1, 3, 2**64 - 1])
def test_only_the_ticket_that_is_out_is_answered(streams: Streams, ticket: int) -> None:
    continued(streams, "A")
    continued(streams, "B")
    early = streams.answered_by(1)
    asked(streams)
    ended(streams, 1)
    asked(streams)
    assert (early, streams.answered_by(ticket)) == (None, None)
    assert streams.answered_by(2) is not None


def test_ticket_is_of_no_use_after_its_end(streams: Streams) -> None:
    continued(streams, "A")
    asked(streams)
    ended(streams, 1)
    assert streams.answered_by(1) is None


def test_ticket_of_an_earlier_process_is_never_given_again(streams: Streams) -> None:
    streams.begin_after(40)
    continued(streams, "A")
    assert asked(streams)["ticket"] == 41
    assert streams.answered_by(1) is None


def test_stream_is_pending_until_the_agent_has_sent_all(streams: Streams) -> None:
    pending = [streams.pending("A")]
    continued(streams, "A")
    pending.append(streams.pending("A"))
    asked(streams)
    pending.append(streams.pending("A"))
    ended(streams, 1)
    pending.append(streams.pending("A"))
    assert pending == [False, True, True, False]


@pytest.mark.parametrize(("place", "covered"), [(4, True), (5, True), (6, False)])
def test_replayed_message_is_covered_once_all_was_sent(
    streams: Streams, place: int, *, covered: bool
) -> None:
    continued(streams, "A", last=5)
    before = streams.covers("A", place)
    asked(streams)
    ended(streams, 1)
    assert (before, streams.covers("A", place)) == (True, covered)


def test_stream_that_continues_nothing_covers_nothing(streams: Streams) -> None:
    continued(streams, "A")
    assert (streams.covers("B", 1), streams.pending("B")) == (False, False)


def test_replay_for_a_stream_that_is_gone_has_no_stream(streams: Streams) -> None:
    continued(streams, "A")
    asked(streams)
    streams.stream_gone("A")
    resumption = streams.answered_by(1)
    assert resumption is not None
    assert (resumption.stream, streams.pending("A")) == (None, False)


def test_stream_that_replaces_another_is_asked_for_on_its_own(streams: Streams) -> None:
    continued(streams, "A", "i1", last=3)
    asked(streams)
    continued(streams, "B", "i1", last=9)
    streams.stream_gone("A")
    ended(streams, 1)
    assert (asked(streams)["after"], streams.pending("B")) == (9, True)


def test_streams_that_are_gone_leave_nothing_behind(streams: Streams) -> None:
    for number in range(100):
        continued(streams, str(number))
        streams.stream_gone(str(number))
    assert (streams.command(), len(streams._of), len(streams._waiting)) == (None, 0, 0)


def test_stream_that_never_continued_may_go(streams: Streams) -> None:
    streams.stream_gone("A")
    assert streams.command() is None
