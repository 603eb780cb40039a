"""Proves that a gateway process can let another one perform a request, whatever happens."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from gateway.errors import Busy
from gateway.exchange import carrying
from gateway.exchange import exchange as exchange_module
from gateway.exchange import post as post_module
from gateway.exchange.carrying import PIECE_BYTES, WINDOW_BYTES, PeerGone, Superseded
from gateway.exchange.exchange import Note
from gateway.exchange.post import UNACKNOWLEDGED_BYTES
from gateway.store.base import StoreAway, Taken
from gateway.store.memory import Engine, MemoryStore
from tests.exchange.town import (
    NOISE,
    WAIT_S,
    Gateway,
    Town,
    asked,
    eventually,
    exchange_many,
    first,
    opened,
    whole,
)

UNREAD_BYTES = WINDOW_BYTES + 2 * PIECE_BYTES
"""What may be under way of an answer that nobody reads: the window, and a piece in each hand."""


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest_asyncio.fixture
async def town(engine: Engine) -> AsyncIterator[Town]:
    def open_store(name: str) -> MemoryStore:
        return MemoryStore(engine, name)

    async with opened(open_store) as town, asyncio.timeout(3 * WAIT_S):
        yield town


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything that waits for trouble to show wait less."""
    monkeypatch.setattr(post_module, "GONE_S", 0.2)
    monkeypatch.setattr(post_module, "RETRY_S", 0.02)
    monkeypatch.setattr(post_module, "PROBE_S", 0.05)
    monkeypatch.setattr(post_module, "STALLED_S", 0.1)
    monkeypatch.setattr(exchange_module, "LONGEST_PAUSE_S", 0.05)


async def test_answer_comes_from_the_process_that_was_asked(town: Town) -> None:
    async with town.a.exchange.ask("b", "s1", asked(), b"hello") as answer:
        assert answer.status == 200
        assert answer.headers == (("Content-Type", "text/plain"), ("From", "b"))
        assert await whole(answer) == b"hello"
    (seen,) = town.b.seen
    assert (seen.asked.method, seen.asked.target, seen.asked.principal) == (
        "POST",
        "/echo",
        "alice",
    )
    assert seen.size == 5


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES + 1, WINDOW_BYTES + 1, len(NOISE)])
async def test_bodies_of_any_size_pass_both_ways(town: Town, size: int) -> None:
    async with town.a.exchange.ask("b", "s1", asked(), NOISE[:size]) as answer:
        assert await whole(answer) == NOISE[:size]
    assert town.a.exchange.under_way == (0, 0)


async def test_many_requests_of_all_processes_do_not_mix(town: Town) -> None:
    await exchange_many(town)


async def test_answer_that_is_not_read_stops_its_own_stream_only(town: Town) -> None:
    async with town.a.exchange.ask("b", "s1", asked("/endless")) as idle:
        _, pieces = await first(idle)
        async with town.a.exchange.ask("b", "s1", asked(), NOISE[: 4 * WINDOW_BYTES]) as answer:
            assert len(await whole(answer)) == 4 * WINDOW_BYTES
        stopped_at = town.b.written
        assert WINDOW_BYTES / 2 <= stopped_at <= UNREAD_BYTES
        for _ in range(30):
            await anext(pieces)
        await town.b.until(lambda: town.b.written > stopped_at + WINDOW_BYTES)


async def test_answer_may_begin_before_the_body_was_read(town: Town) -> None:
    async with town.a.exchange.ask("b", "s1", asked("/early"), NOISE) as answer:
        assert (answer.status, await whole(answer)) == (413, b"too big")
    assert await town.a.exchange.flush(WAIT_S)


@pytest.mark.parametrize("target", ["/never", "/gated"])
async def test_asker_that_leaves_cancels_the_performer(town: Town, target: str) -> None:
    async def ask() -> None:
        async with town.a.exchange.ask("b", "s1", asked(target)) as answer:
            await whole(answer)

    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(ask())
        await town.b.until(lambda: bool(town.b.seen))
        asking.cancel()
        await town.b.until(lambda: town.b.cancelled == [target])
    assert await town.a.exchange.flush(WAIT_S)
    assert (town.a.exchange.under_way, town.b.exchange.under_way) == ((0, 0), (0, 0))


@pytest.mark.usefixtures("hasty")
async def test_peer_that_dies_before_the_answer_is_noticed(town: Town, engine: Engine) -> None:
    async with asyncio.TaskGroup() as tasks:

        async def ask() -> None:
            with pytest.raises(PeerGone):
                async with town.a.exchange.ask("b", "s1", asked("/never")):
                    pass

        tasks.create_task(ask())
        await town.b.until(lambda: bool(town.b.seen))
        engine.crash("b")


@pytest.mark.usefixtures("hasty")
async def test_peer_that_dies_in_the_answer_is_noticed_after_what_it_said(
    town: Town, engine: Engine
) -> None:
    async with town.a.exchange.ask("b", "s1", asked("/gated")) as answer:
        piece, pieces = await first(answer)
        engine.crash("b")
        assert piece == b"first"
        with pytest.raises(PeerGone):
            await anext(pieces)


@pytest.mark.usefixtures("hasty")
async def test_peer_that_was_never_there_is_gone(town: Town) -> None:
    with pytest.raises(PeerGone):
        async with town.a.exchange.ask("nobody", "s1", asked()):
            pass


@pytest.mark.usefixtures("hasty")
async def test_dead_asker_cancels_what_is_performed_for_it(town: Town, engine: Engine) -> None:
    async with town.a.exchange.ask("b", "s1", asked("/gated")) as answer:
        await first(answer)
        engine.crash("a")
        await town.b.until(lambda: town.b.cancelled == ["/gated"])


@pytest.mark.usefixtures("hasty")
async def test_performer_that_was_given_up_by_mistake_stops(town: Town, engine: Engine) -> None:
    """It seems gone for a while, as if it had been stopped; its answer is nobody's any more."""
    async with town.a.exchange.ask("b", "s1", asked("/gated")) as answer:
        _, pieces = await first(answer)
        inbox = engine.inboxes.pop("b")
        with pytest.raises(PeerGone):
            await anext(pieces)
        engine.inboxes["b"] = inbox
        await town.b.until(lambda: town.b.cancelled == ["/gated"])
    async with town.a.exchange.ask("b", "s1", asked(), b"again") as answer:
        assert await whole(answer) == b"again"


async def test_claim_taken_by_another_process_ends_a_request_before_its_answer(town: Town) -> None:
    async def ask() -> None:
        with pytest.raises(Superseded):
            async with town.a.exchange.ask("b", "s1", asked("/never")):
                pass

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(ask())
        await town.b.until(lambda: bool(town.b.seen))
        await town.c.store.take("s/s1", 2, b"", 60.0)
    await town.b.until(lambda: town.b.cancelled == ["/never"])
    assert town.a.heard == [Taken("s/s1", 2, "c")]


async def test_claim_taken_by_another_process_ends_an_answer_after_what_has_come(
    town: Town,
) -> None:
    async with town.a.exchange.ask("b", "s1", asked("/gated")) as answer:
        piece, pieces = await first(answer)
        await town.c.store.take("s/s1", 2, b"", 60.0)
        assert piece == b"first"
        with pytest.raises(Superseded):
            await anext(pieces)


async def test_claim_of_the_asked_process_or_of_another_session_ends_nothing(town: Town) -> None:
    async with town.a.exchange.ask("b", "s1", asked("/gated")) as answer:
        await town.b.store.take("s/s1", 2, b"", 60.0)
        await town.c.store.take("s/s2", 2, b"", 60.0)
        await town.a.until(lambda: len(town.a.heard) == 2)
        town.b.gate.set()
        assert await whole(answer) == b"firstsecond"


async def test_performer_that_cannot_is_told_at_once(town: Town) -> None:
    with pytest.raises(PeerGone):
        async with town.a.exchange.ask("b", "s1", asked("/broken")):
            pass


async def test_answer_that_breaks_off_is_told_after_what_has_come(town: Town) -> None:
    async with town.a.exchange.ask("b", "s1", asked("/breaks")) as answer:
        piece, pieces = await first(answer)
        assert piece == b"first"
        with pytest.raises(PeerGone):
            await anext(pieces)


@pytest.mark.usefixtures("hasty")
async def test_answer_goes_on_when_the_engine_comes_back(town: Town, engine: Engine) -> None:
    async with town.a.exchange.ask("b", "s1", asked("/gated")) as answer:
        piece, pieces = await first(answer)
        engine.away = True
        town.b.gate.set()
        await eventually(lambda: town.a.exchange._away_since and town.b.exchange._away_since)
        engine.away = False
        assert [piece, *[rest async for rest in pieces]] == [b"first", b"second"]


@pytest.mark.usefixtures("hasty")
async def test_nothing_is_lost_with_the_memory_of_the_engine(town: Town, engine: Engine) -> None:
    body = NOISE[: 6 * WINDOW_BYTES]
    chance = random.Random(5)  # noqa: S311 - the same moments in every run
    async with asyncio.TaskGroup() as tasks:

        async def ask() -> bytes:
            async with town.a.exchange.ask("b", "s1", asked(), body) as answer:
                return await whole(answer)

        asking = tasks.create_task(ask())
        for _ in range(8):
            for _ in range(chance.randint(1, 60)):
                await asyncio.sleep(0)
            engine.forget()
    assert asking.result() == body


@pytest.mark.usefixtures("hasty")
async def test_everything_is_given_up_when_the_engine_stays_away(
    town: Town, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange_module, "AWAY_S", 0.2)
    async with town.a.exchange.ask("b", "s1", asked("/gated")) as answer:
        _, pieces = await first(answer)
        engine.away = True
        with pytest.raises(StoreAway):
            await anext(pieces)
        await town.b.until(lambda: town.b.cancelled == ["/gated"])


@pytest.mark.usefixtures("hasty")
async def test_request_whose_client_was_told_of_its_failure_is_not_performed_late(
    town: Town, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange_module, "patience", lambda _limit_s: 0.1)
    engine.away = True
    with pytest.raises(StoreAway):
        async with town.a.exchange.ask("b", "s1", asked("/never", patience_s=0.1)):
            pass
    engine.away = False
    assert await town.a.exchange.flush(WAIT_S)
    assert town.b.seen == []


async def test_request_that_was_too_long_on_its_way_is_not_performed(town: Town) -> None:
    ask = carrying.Ask(1, "GET", "/never", (), "mallory", 1.0, 0, b"")
    line = post_module.Post("mallory")
    line.put("b", carrying.encode(ask), 0.0)
    await town.a.store.send(line.due(1.5))
    async with town.a.exchange.ask("b", "s1", asked(), b"x") as answer:
        assert await whole(answer) == b"x"
    assert [carried.asked.target for carried in town.b.seen] == ["/echo"]


async def test_what_waits_for_the_engine_is_bounded_over_all_requests(
    town: Town, engine: Engine
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(12):
            ask = town.a.exchange.ask("b", "s1", asked("/flood"))
            await first(await stack.enter_async_context(ask))
        engine.away = True
        town.b.gate.set()
        await eventually(lambda: len(town.b.exchange._blocked["a"]) >= 8)
        assert town.b.exchange._post._lines["a"].size <= UNACKNOWLEDGED_BYTES
        engine.away = False


async def test_peer_that_does_not_answer_in_time_counts_as_gone(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange_module, "patience", lambda _limit_s: 0.05)
    with pytest.raises(PeerGone):
        async with town.a.exchange.ask("b", "s1", asked("/never")):
            pass
    await town.b.until(lambda: town.b.cancelled == ["/never"])


@pytest.mark.parametrize("limited", ["a", "b"])
async def test_more_requests_than_may_be_under_way_are_refused(
    town: Town, monkeypatch: pytest.MonkeyPatch, limited: str
) -> None:
    async with contextlib.AsyncExitStack() as held:
        asker = town.a if limited == "a" else town.c
        await held.enter_async_context(asker.exchange.ask("b", "s1", asked("/gated")))
        monkeypatch.setattr(exchange_module, "MOST", 1)
        with pytest.raises(Busy):
            async with town.a.exchange.ask("b", "s1", asked()):
                pass
    assert len(town.b.seen) == 1


async def test_notes_arrive_in_order(town: Town) -> None:
    for number in range(100):
        town.a.exchange.tell("b", b"%d" % number)
    await town.b.until(lambda: len(town.b.heard) == 100)
    assert town.b.heard == [Note("a", b"%d" % number) for number in range(100)]


async def test_notes_beyond_what_may_be_on_its_way_are_refused(town: Town) -> None:
    note = bytes(UNACKNOWLEDGED_BYTES // 4)
    for _ in range(3):
        town.a.exchange.tell("b", note)
    with pytest.raises(Busy):
        town.a.exchange.tell("b", note)
    assert await town.a.exchange.flush(WAIT_S)
    town.a.exchange.tell("b", note)


async def test_flush_says_whether_everything_has_arrived(town: Town, engine: Engine) -> None:
    town.a.exchange.tell("b", b"note")
    assert await town.a.exchange.flush(WAIT_S)
    engine.away = True
    town.a.exchange.tell("b", b"note")
    assert not await town.a.exchange.flush(0.05)
    engine.away = False


async def test_letters_that_make_no_sense_harm_nobody(town: Town) -> None:
    line = post_module.Post("mallory")
    for content in (
        b"\xc1",
        b"\x93\xa3ask\x01\x02",
        b"\x92\xa3end\x01",
        b"\x93\xa4body\x01\xc4\x00",
    ):
        line.put("a", content, 0.0)
    letters = [letter for _, letter in line.due(0.0)]
    sent = await town.b.store.send([("a", letter) for letter in [b"", b"\xc1", *letters]])
    assert sent == [True] * 6
    async with town.a.exchange.ask("b", "s1", asked(), b"fine") as answer:
        assert await whole(answer) == b"fine"
    assert town.a.exchange.errors == 4


async def test_request_that_is_asked_twice_under_one_number_is_broken_off(town: Town) -> None:
    ask = carrying.encode(carrying.Ask(1, "GET", "/never", (), "mallory", 20.0, 0, b""))
    line = post_module.Post("mallory")
    line.put("b", ask, 0.0)
    line.put("b", ask, 0.0)
    await town.a.store.send(line.due(0.0))
    await town.b.until(lambda: town.b.exchange.errors == 1 and bool(town.b.seen))
    assert len(town.b.seen) == 1


async def test_process_that_leaves_breaks_off_what_it_asked(town: Town, engine: Engine) -> None:
    asker = Gateway(MemoryStore(engine, "d"))

    async def ask() -> None:
        with pytest.raises(PeerGone):
            async with asker.exchange.ask("b", "s1", asked("/never")):
                pass

    async with asyncio.TaskGroup() as tasks, asker:
        asking = tasks.create_task(ask())
        await town.b.until(lambda: bool(town.b.seen))
    assert asking.done()


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("seed", range(6))
async def test_whatever_the_engine_does_an_answer_is_right_or_an_error(
    town: Town, engine: Engine, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311 - parametrised
    outcomes: list[str] = []

    async def one(number: int, asker: Gateway, peer: str, size: int) -> None:
        request = replace(asked(), principal=f"number {number}")
        try:
            async with asker.exchange.ask(peer, "s1", request, NOISE[:size]) as answer:
                assert await whole(answer) == NOISE[:size]
                outcomes.append("answer")
        except (PeerGone, StoreAway):
            outcomes.append("error")

    async with asyncio.TaskGroup() as tasks:
        for number in range(40):
            asker, peer = chance.sample([town.a, town.b, town.c], 2)
            size = chance.choice((0, 1000, 300_000, 2_000_000))
            tasks.create_task(one(number, asker, peer.name, size))
            for _ in range(chance.randint(0, 20)):
                await asyncio.sleep(0)
            match chance.randint(0, 5):
                case 0:
                    engine.forget()
                case 1:
                    engine.away = not engine.away
                case _:
                    pass
        engine.away = False
    assert outcomes.count("answer") + outcomes.count("error") == 40
    assert outcomes.count("answer") >= 30  # nobody died
    exchanges = [gateway.exchange for gateway in (town.a, town.b, town.c)]
    for exchange in exchanges:
        assert await exchange.flush(WAIT_S)
    # Only now has each been told by the others that what it performs for them is over.
    await eventually(lambda: [each.under_way for each in exchanges] == [(0, 0)] * 3)
    performed = [one.asked.principal for gate in (town.a, town.b, town.c) for one in gate.seen]
    assert len(set(performed)) == len(performed), "performed twice"
