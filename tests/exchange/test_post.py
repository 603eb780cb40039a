"""Three processes and bad mail: what one tells another arrives once and in order, or both learn.

A state machine puts contents, writes letters, and lets the engine lose them, keep them twice, or
not answer so that nobody knows; processes seem gone while they live, and die for good. A plain
account of what was said judges. Every run ends with an engine that works, on which all that was
said and not reported lost must arrive.

HYPOTHESIS_PROFILE=nightly runs a longer, random search; the default one is the same every time.
"""

import os
from collections import defaultdict

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gateway.exchange.post import (
    ACK_LETTERS,
    ACK_S,
    BATCH_BYTES,
    GONE_S,
    PEERS,
    PROBE_S,
    RETRY_S,
    STALLED_S,
    UNACKNOWLEDGED_BYTES,
    VERSION,
    Letter,
    Lost,
    Post,
    Told,
)

PROFILES = {
    "default": settings(max_examples=200, stateful_step_count=60, derandomize=True, database=None),
    "nightly": settings(max_examples=5000, stateful_step_count=120, print_blob=True),
}
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "default")

PLACES = (0, 1, 2)
places = st.sampled_from(PLACES)
Letters = list[tuple[str, bytes]]


class Process:
    """One process, its inbox, and what it has written and not been told of."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.post = Post(name)
        self.inbox: list[bytes] = []
        self.writing: tuple[Letters, list[bool]] | None = None
        self.seems_gone = False


class Account:
    """What one process has told another, and what came of it."""

    def __init__(self) -> None:
        self.said = 0
        self.heard: list[int] = []
        self.written_off = 0  # up to here the teller has learnt that it may never arrive
        self.warned = True  # the hearer has learnt that something may be missing


class MailMachine(RuleBasedStateMachine):
    """The hostile world."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.born = 0
        self.accounts: defaultdict[tuple[str, str], Account] = defaultdict(Account)
        self.processes = [self.new() for _ in PLACES]

    def new(self) -> Process:
        self.born += 1
        return Process(f"p{self.born}")

    def named(self, name: str) -> Process | None:
        return next((p for p in self.processes if p.name == name), None)

    @rule(a=places, b=places, size=st.sampled_from((0, 10, 700_000)))
    def put(self, a: int, b: int, size: int) -> None:
        teller, hearer = self.processes[a], self.processes[b]
        if a == b or not teller.post.has_room(hearer.name, size):
            return
        account = self.accounts[teller.name, hearer.name]
        account.said += 1
        content = b"%d " % account.said + bytes(size)
        teller.post.put(hearer.name, content, self.now)

    @rule(a=places, delivered=st.integers(0, 40), answers=st.booleans())
    def write(self, a: int, delivered: int, answers: bool) -> None:
        process = self.processes[a]
        if process.writing is None:
            self.begin_writing(process, delivered if not answers else None)

    def begin_writing(self, process: Process, delivered: int | None) -> None:
        letters = process.post.due(self.now)
        there = []
        for count, (peer, letter) in enumerate(letters):
            addressee = self.named(peer)
            taken = addressee is not None and not addressee.seems_gone
            if addressee is not None and taken and (delivered is None or count < delivered):
                addressee.inbox.append(letter)
            there.append(taken)
        if delivered is None:
            process.writing = letters, there
        else:
            process.post.away(self.now)

    @rule(a=places)
    def written(self, a: int) -> None:
        process = self.processes[a]
        if process.writing is not None:
            letters, there = process.writing
            process.writing = None
            for lost in process.post.sent(letters, there, self.now):
                self.lost(process, lost.peer)

    def lost(self, process: Process, peer: str) -> None:
        account = self.accounts[process.name, peer]
        account.written_off = account.said
        self.accounts[peer, process.name].warned = True

    @rule(a=places, count=st.integers(1, 20))
    def read(self, a: int, count: int) -> None:
        process = self.processes[a]
        letters, process.inbox = process.inbox[:count], process.inbox[count:]
        for letter in letters:
            for news in process.post.receive(letter, self.now):
                if isinstance(news, Lost):
                    self.lost(process, news.peer)
                else:
                    self.hear(process, news)

    def hear(self, process: Process, told: Told) -> None:
        account = self.accounts[told.peer, process.name]
        serial = int(told.content.partition(b" ")[0])
        last = account.heard[-1] if account.heard else 0
        assert serial > last, "told twice, or out of order"
        if serial != last + 1:
            assert account.written_off >= serial - 1, "the teller was never told of a loss"
            assert account.warned, "the hearer was never told of a loss"
        account.heard.append(serial)
        account.warned = False

    @rule(seconds=st.sampled_from((0.1, RETRY_S, ACK_S, PROBE_S, STALLED_S)))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(a=places, at=st.integers(0, 30))
    def keep_a_letter_twice(self, a: int, at: int) -> None:
        inbox = self.processes[a].inbox
        if inbox:
            at %= len(inbox)
            inbox.insert(at, inbox[at])

    @rule(a=places, first=st.integers(0, 10), count=st.integers(1, 10))
    def lose_letters(self, a: int, first: int, count: int) -> None:
        del self.processes[a].inbox[first : first + count]

    @rule(a=places)
    def seem_gone_or_back(self, a: int) -> None:
        self.processes[a].seems_gone ^= True

    @rule(a=places, b=places)
    def look_after(self, a: int, b: int) -> None:
        if a != b:
            self.processes[a].post.wait_for(self.processes[b].name, self.now)

    @precondition(lambda self: self.born < 8)
    @rule(a=places)
    def die(self, a: int) -> None:
        self.processes[a] = self.new()

    def teardown(self) -> None:
        for process in self.processes:
            process.seems_gone = False
        for _ in range(200):
            for place, process in enumerate(self.processes):
                self.written(place)
                self.begin_writing(process, None)
                self.written(place)
            for place in PLACES:
                self.read(place, 1000)
            self.now += RETRY_S
        for process in self.processes:
            assert process.post.unacknowledged == 0
            for (teller, hearer), account in self.accounts.items():
                if hearer == process.name and self.named(teller) is not None:
                    missing = set(range(1, account.said + 1)).difference(account.heard)
                    assert all(serial <= account.written_off for serial in missing)


@pytest.mark.no_cover  # counting lines takes as long as the test; others count them
def test_what_is_told_arrives_once_and_in_order_or_both_sides_learn() -> None:
    run_state_machine_as_test(MailMachine, settings=PROFILES[PROFILE])


def told(news: list[Told | Lost]) -> list[bytes]:
    return [one.content for one in news if isinstance(one, Told)]


def carry(sender: Post, receiver: Post, now: float) -> list[Told | Lost]:
    letters = sender.due(now)
    sender.sent(letters, [True] * len(letters), now)
    return [news for _, letter in letters for news in receiver.receive(letter, now)]


def test_acknowledgement_waits_for_a_letter_to_ride_on() -> None:
    a, b = Post("a"), Post("b")
    a.put("b", b"one", 0.0)
    carry(a, b, 0.0)
    assert b.due(ACK_S / 2) == []
    b.put("a", b"answer", ACK_S / 2)
    assert told(carry(b, a, ACK_S / 2)) == [b"answer"]
    assert a.unacknowledged == 0
    assert b.next_due() == ACK_S / 2 + STALLED_S  # only its own content is on its way


def test_acknowledgement_goes_alone_after_a_while() -> None:
    a, b = Post("a"), Post("b")
    a.put("b", b"one", 0.0)
    carry(a, b, 0.0)
    assert b.next_due() == ACK_S
    carry(b, a, ACK_S)
    assert (a.unacknowledged, a.next_due(), b.next_due()) == (0, None, None)


def test_acknowledgement_goes_at_once_after_many_letters() -> None:
    a, b = Post("a"), Post("b")
    for _ in range(ACK_LETTERS):
        a.put("b", b"x", 0.0)
    carry(a, b, 0.0)
    carry(b, a, 0.0)
    assert a.unacknowledged == 0


def test_what_is_not_acknowledged_is_written_again_after_a_while() -> None:
    a, b = Post("a"), Post("b")
    a.put("b", b"one", 0.0)
    a.sent(lost := a.due(0.0), [True], 0.0)
    assert len(lost) == 1
    assert a.due(STALLED_S - 0.01) == []
    assert told(carry(a, b, STALLED_S)) == [b"one"]


def test_everything_is_written_again_once_the_engine_is_back() -> None:
    a, b = Post("a"), Post("b")
    a.put("b", b"one", 0.0)
    a.sent(a.due(0.0), [True], 0.0)
    a.put("b", b"two", 0.1)
    assert len(a.due(0.1)) == 1
    a.away(0.1)
    assert told(carry(a, b, 0.2)) == [b"one", b"two"]


def test_acknowledgement_that_was_lost_is_said_again() -> None:
    a, b = Post("a"), Post("b")
    a.put("b", b"one", 0.0)
    carry(a, b, 0.0)
    b.due(ACK_S)  # lost
    assert carry(a, b, STALLED_S) == []
    carry(b, a, STALLED_S)
    assert a.unacknowledged == 0


def test_age_of_a_content_counts_until_it_was_written_last() -> None:
    a, b = Post("a"), Post("b")
    a.put("b", b"one", 0.0)
    a.due(0.0)
    a.away(0.0)
    (news,) = carry(a, b, 7.5)
    assert isinstance(news, Told)
    assert news.age_s == 7.5


def test_nothing_is_given_out_beyond_a_gap() -> None:
    a, b = Post("a"), Post("b")
    for content in (b"one", b"two", b"three"):
        a.put("b", content, 0.0)
    letters = a.due(0.0)
    a.sent(letters, [True] * 3, 0.0)
    assert told(b.receive(letters[0][1], 0.0)) == [b"one"]
    assert b.receive(letters[2][1], 0.0) == []
    carry(b, a, ACK_S)
    assert told(carry(a, b, ACK_S + STALLED_S)) == [b"two", b"three"]


def test_peer_that_is_not_there_for_a_while_is_lost() -> None:
    a, now = Post("a"), 0.0
    a.put("b", b"one", now)
    lost: list[Lost] = []
    while not lost:
        letters = a.due(now)
        lost = a.sent(letters, [False] * len(letters), now)
        now += RETRY_S
    assert GONE_S <= now - RETRY_S <= GONE_S + RETRY_S
    assert (lost, a.unacknowledged) == ([Lost("b")], 0)


def test_peer_is_not_lost_while_the_engine_is_away() -> None:
    a, now = Post("a"), 0.0
    a.put("b", b"one", now)
    for _ in range(100):
        letters = a.due(now)
        if int(now) % 3 == 0:
            a.away(now)
        else:
            assert a.sent(letters, [False] * len(letters), now) == []
        now += RETRY_S


def test_peer_that_is_needed_is_looked_for() -> None:
    a = Post("a")
    a.wait_for("b", 0.0)
    assert a.next_due() == PROBE_S
    assert len(a.due(PROBE_S)) == 1
    a.leave("b")
    assert a.next_due() is None


def test_peer_that_was_given_up_learns_it_when_it_writes() -> None:
    a, b = Post("a"), Post("b")
    a.put("b", b"one", 0.0)
    b.put("a", b"hello", 0.0)
    carry(a, b, 0.0)
    now = 1.0
    a.put("b", b"two", now)
    while a.unacknowledged:
        letters = a.due(now)
        a.sent(letters, [False] * len(letters), now)
        now += RETRY_S
    assert carry(b, a, now) == []  # of a conversation that is over
    assert carry(a, b, now) == [Lost("a")]
    a.put("b", b"three", now)
    assert told(carry(a, b, now)) == [b"three"]


def test_room_for_a_peer_is_bounded_and_comes_back() -> None:
    a, b = Post("a"), Post("b")
    piece = bytes(UNACKNOWLEDGED_BYTES // 4)
    for _ in range(4):
        assert a.has_room("b", len(piece))
        a.put("b", piece, 0.0)
    assert not a.has_room("b", 1)
    assert a.has_room("c", len(piece))
    while carry(a, b, 0.0):
        carry(b, a, 0.0)
    assert a.has_room("b", len(piece))


def test_peers_take_turns() -> None:
    a = Post("a")
    for peer in ("b", "c"):
        for _ in range(3):
            a.put(peer, bytes(BATCH_BYTES), 0.0)
    turns = []
    while letters := a.due(0.0):
        a.sent(letters, [True] * len(letters), 0.0)
        turns.append([peer for peer, _ in letters])
    assert turns == [["b"], ["c"]] * 3


@pytest.mark.parametrize(
    "letter",
    [
        b"",
        b"\xc1",
        b"\x93\x01\xa1\xff\x01",
        b"\x91" * 5000,
        msgspec.msgpack.encode(Letter(VERSION + 1, "b", 1, 1, 0)),
        msgspec.msgpack.encode(Letter(VERSION, "b", 0, 1, 0)),
        msgspec.msgpack.encode(Letter(VERSION, "b", 1, 1, 5)),
        msgspec.msgpack.encode(Letter(VERSION, "b", 1, -1, 0)),
    ],
)
def test_letter_that_makes_no_sense_is_counted_and_dropped(letter: bytes) -> None:
    a = Post("a")
    assert a.receive(letter, 0.0) == []
    assert a.errors == 1


def test_dead_peers_are_forgotten_in_the_end() -> None:
    a, now = Post("a"), 0.0
    for number in range(PEERS + 50):
        a.put(f"peer{number}", b"x", now)
    while a.unacknowledged:
        letters = a.due(now)
        a.sent(letters, [False] * len(letters), now)
        now += RETRY_S
    for number in range(100):
        a.put(f"other{number}", b"x", now)
    assert len(a._lines) == PEERS + 50
