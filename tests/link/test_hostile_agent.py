"""An agent that lies about the past harms its own session at most: a breach, or nothing at all.

The real session and live parts against every claim, journal and replay that an agent can make up.
"""

import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyno_agent.link import Channel, Endpoint, Hello, Limits, ProtocolViolation
from dyno_agent.link.frames import Frame, FrameType, encode
from dyno_agent.link.limits import (
    FRAGMENT_BYTES,
    JOURNAL_PAGE_BYTES,
    JOURNAL_PAGES,
    REPLAY_HEAD_BYTES,
)
from dyno_agent.link.resumption import GENERAL, JournalPage, Replayed, RunningCall, label
from gateway.eras.correlation import MAX_ASKS, MAX_CALLS
from gateway.jsonrpc import peek
from gateway.registry.servers import ServerDefinition
from gateway.sessions.delivery import Delivery
from gateway.sessions.lease import Lease
from gateway.sessions.live import OwnedLive
from gateway.sessions.owned import OwnedSession
from gateway.sessions.record import SessionRecord, State
from gateway.sessions.streams import Outbox

LIMITS = Limits(
    message_bytes=100_000,
    window_bytes=100_000 + REPLAY_HEAD_BYTES + FRAGMENT_BYTES,
    window_frames=64,
    ack_bytes=1000,
    ack_frames=4,
)
SERVER = ServerDefinition(name="everything", command="server")
HOURS = 1e9
LAST = JournalPage(last=True)


def rebuilt(hello: Hello, journal: list[JournalPage]) -> OwnedLive:
    """Return a session that a fresh process has taken up from what this agent tells."""
    record = SessionRecord("s-1", "fingerprint", "me", SERVER, 0.0, state=State.PARTED)
    lease = Lease(0.0, HOURS, HOURS, HOURS, HOURS, active=0.0, parted=0.0)
    told: list[object] = []
    session: OwnedSession[Outbox] = OwnedSession(
        record, Endpoint(LIMITS, now=0.0), told.append, HOURS
    )
    live = OwnedLive(session, lease, told.append)
    live.fresh = True
    live.welcome(hello, "capsule")
    live.attach(hello, journal, 0.0)
    return live


def hello(
    received: int = 0, confirmed: int = 0, held_bytes: int = 0, held_frames: int = 0
) -> Hello:
    return Hello("resume", "boot", "proof", received, confirmed, held_bytes, held_frames)


class Liar:
    """The agent's side: well-formed frames with whatever content."""

    def __init__(self, live: OwnedLive, seq: int = 0) -> None:
        self.live = live
        self.seq = seq

    def says(self, channel: Channel, payload: bytes) -> list[Delivery[Outbox]]:
        self.seq += 1
        frame = Frame(FrameType.DATA, True, True, channel, self.seq, 0, payload)
        return self.live.session.receive(encode(frame), 0.0)

    def replays(self, ticket: int, place: int, raw: bytes) -> list[Delivery[Outbox]]:
        return self.says(Channel.REPLAY, Replayed(ticket, place, raw).encode())

    def tickets(self) -> list[int]:
        """Return the tickets of what the gateway asks for."""
        commands = [frame[20:] for frame in self.live.session.link.frames_to_send(0.0)]
        found = [json.loads(raw) for raw in commands if raw[:1] == b"{"]
        return [document["ticket"] for document in found if document.get("do") == "replay"]


def answer(key: int) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": key, "result": {}}).encode()


def calls(live: OwnedLive, key: int) -> Outbox:
    outbox = live.open_outbox(label(key), resumable=True)
    raw = json.dumps({"jsonrpc": "2.0", "id": key, "method": "tools/call"}).encode()
    live.session.request(peek(raw), raw, outbox, 0.0)
    return outbox


counts = st.sampled_from([0, 1, 5, 64, 2**31, 2**62, 2**63 - 1])
ids = st.integers(0, 4) | st.sampled_from(["", "1", "x" * 300, -1, 2**70, "\ud800"])
journals = st.lists(
    st.builds(
        JournalPage,
        calls=st.lists(
            st.builds(
                RunningCall,
                ids,
                st.sampled_from(["tools/call", "initialize", ""]),
                st.none() | st.just("add"),
                st.none() | ids,
                st.text(max_size=4),
                st.floats(0, 2**30),
            ),
            max_size=4,
        ).map(tuple),
        answered=st.lists(st.tuples(ids, st.text(max_size=4)), max_size=4).map(tuple),
        asks=st.lists(ids, max_size=4).map(tuple),
        routed=st.dictionaries(
            counts.map(lambda count: count + 1), st.text(max_size=3), max_size=4
        ),
    ),
    max_size=3,
)
messages = st.sampled_from(
    [
        b"",
        b"held",
        b"{}",
        b"\xff",
        answer(0),
        answer(1),
        answer(3),
        b'{"jsonrpc":"2.0","id":null,"result":{}}',
        b'{"jsonrpc":"2.0","id":1,"method":"sampling/createMessage"}',
        b'{"jsonrpc":"2.0","method":"notifications/message"}',
        b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1}}',
        b'{"jsonrpc":"2.0","id":%d,"method":"roots/list"}' % 2**70,
    ]
)
replays = st.builds(Replayed, st.integers(0, 4) | counts, st.integers(0, 4) | counts, messages).map(
    Replayed.encode
)
said = st.lists(
    st.tuples(st.just(Channel.REPLAY), replays | st.binary(max_size=20))
    | st.tuples(st.sampled_from(Channel), messages),
    max_size=12,
)


@pytest.mark.no_cover  # counting lines takes longer than the test; others count them
@settings(deadline=None, derandomize=True, max_examples=200)
@given(counts, counts, counts, counts, journals, said)
def test_whatever_an_agent_claims_is_a_breach_or_stays_in_its_session(
    received: int,
    confirmed: int,
    held_bytes: int,
    held_frames: int,
    journal: list[JournalPage],
    stream: list[tuple[Channel, bytes]],
) -> None:
    live = rebuilt(hello(received, confirmed, held_bytes, held_frames), [*journal, LAST])
    ours = [calls(live, 100), calls(live, 101)]
    general, back = (live.open_outbox(where, resumable=True) for where in (GENERAL, "i3"))
    live.session.routing.open_general(general, 3)
    live.session.routing.resume(back, "i3", 1)
    liar = Liar(live, confirmed)
    try:
        for channel, payload in stream:
            for delivery in liar.says(channel, payload):
                assert delivery.stream in (*ours, general, back)
                live.perform([delivery])
            live.session.link.frames_to_send(0.0)
        live.session.tick(2 * HOURS)  # also what the journal named can end
    except ProtocolViolation:
        return


@pytest.mark.parametrize("ticket", [0, 2, 2**64 - 1])
def test_replay_that_nobody_asked_for_is_dropped(ticket: int) -> None:
    live = rebuilt(hello(), [LAST])
    outbox = calls(live, 1)
    liar = Liar(live)
    assert liar.replays(ticket, 1, answer(1)) == []
    assert (live.session.calls, live.session.chatter.dropped, outbox.ready) == (1, 1, False)


def test_answer_of_another_call_in_a_replay_is_dropped_and_that_call_goes_on() -> None:
    live = rebuilt(hello(), [LAST])
    liar = Liar(live)
    (nowhere,) = liar.tickets()
    liar.replays(nowhere, 0, b"")
    other, back = calls(live, 2), live.open_outbox("i1", resumable=True)
    live.session.routing.resume(back, "i1", 0)
    (ticket,) = liar.tickets()
    assert liar.replays(ticket, 1 << 16, answer(2)) == []
    (delivery,) = liar.says(Channel.RPC, answer(2))
    assert (delivery.stream, delivery.last) == (other, True)


def test_replay_too_short_for_its_head_is_a_breach() -> None:
    live = rebuilt(hello(), [LAST])
    with pytest.raises(ProtocolViolation):
        Liar(live).says(Channel.REPLAY, b"x" * (REPLAY_HEAD_BYTES - 1))


def test_claim_to_hold_more_than_any_window_only_silences_the_gateway() -> None:
    live = rebuilt(hello(held_bytes=2**62, held_frames=2**62), [LAST])
    calls(live, 1)
    assert live.session.link.frames_to_send(0.0) == []


def test_forged_journal_is_taken_up_to_the_limits_of_a_session() -> None:
    running = tuple(RunningCall(key, "tools/call", None, key, "", 0.0) for key in range(500))
    pages = [JournalPage(calls=running, asks=tuple(range(500))), LAST]
    live = rebuilt(hello(), pages)
    assert live.session.calls == MAX_CALLS
    assert live.session._table.asks == MAX_ASKS


def test_call_that_the_journal_names_twice_is_one_call() -> None:
    call = RunningCall(1, "tools/call", None, 1, "", 0.0)
    live = rebuilt(hello(), [JournalPage(calls=(call, call)), JournalPage(calls=(call,)), LAST])
    assert live.session.calls == 1


def test_forged_routes_cost_bounded_memory() -> None:
    pages = [
        JournalPage(routed=dict.fromkeys(range(start, start + 4000), ""))
        for start in range(1, JOURNAL_PAGES * 4000, 4000)
    ]
    assert all(len(page.encode()) <= JOURNAL_PAGE_BYTES for page in pages)
    live = rebuilt(hello(), [*pages, LAST])
    assert len(live.session.routing._routed) <= LIMITS.window_frames


def test_flood_of_replays_that_nobody_asked_for_costs_bounded_memory() -> None:
    live = rebuilt(hello(), [LAST])
    liar = Liar(live)
    raw = answer(1).ljust(50_000)
    liar.replays(7, 1, raw)
    tracemalloc.start()
    try:
        for _ in range(2000):
            liar.replays(7, 1, raw)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
