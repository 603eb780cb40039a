"""What every store promises (`gateway/store/base.py`), asked of each of them."""

import asyncio
import random
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import pytest

from gateway.store import stories, valkey
from gateway.store.base import (
    STORIES,
    Changes,
    Claim,
    Held,
    Keep,
    Letter,
    Passage,
    Store,
    StoreAway,
    Taken,
    Told,
)
from gateway.store.memory import Engine, MemoryStore
from gateway.store.valkey import ValkeyStore
from tests.fakes.valkey import ValkeyServer

WAIT_S = 20.0
LONG_S = 600.0
SHORT_S = 0.05


class Deployment(Protocol):
    """Several processes with one store."""

    def store(self) -> Store:
        """Return the store of one more process, not entered yet."""
        ...

    async def crash(self, store: Store) -> None:
        """End a process without goodbye, as late as its death is known."""
        ...

    async def forget(self) -> None:
        """Let the engine lose its memory."""
        ...

    def away(self, away: bool) -> None:
        """Let the engine be silent, or answer again."""
        ...


class MemoryDeployment:
    def __init__(self) -> None:
        self._engine = Engine()

    def store(self) -> Store:
        return MemoryStore(self._engine)

    async def crash(self, store: Store) -> None:
        self._engine.crash(store.gateway)

    async def forget(self) -> None:
        self._engine.forget()

    def away(self, away: bool) -> None:
        self._engine.away = away


class ValkeyDeployment:
    def __init__(self, server: ValkeyServer) -> None:
        self._server = server
        self._prefix = secrets.token_hex(4)
        self._stores = dict[str, ValkeyStore]()

    def store(self) -> Store:
        store = ValkeyStore(self._server.url, prefix=self._prefix)
        self._stores[store.gateway] = store
        return store

    async def crash(self, store: Store) -> None:
        for task in self._stores.pop(store.gateway)._keeping:
            task.cancel()
        other = next(iter(self._stores.values()))
        await other._wire.ask("DEL", f"{self._prefix}:gw:{store.gateway}")

    async def forget(self) -> None:
        await next(iter(self._stores.values()))._wire.ask("FLUSHALL")

    def away(self, away: bool) -> None:
        if away:
            self._server.pause()
        else:
            self._server.resume()


@pytest.fixture(scope="session")
def server() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.fixture(params=["memory", "valkey"])
def house(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    monkeypatch.setattr(valkey, "BEAT_S", 0.05)
    if request.param == "memory":
        return MemoryDeployment()
    return ValkeyDeployment(request.getfixturevalue("server"))


@pytest.fixture
async def a(house: Deployment) -> AsyncIterator[Store]:
    async with house.store() as store:
        yield store


@pytest.fixture
async def b(house: Deployment) -> AsyncIterator[Store]:
    async with house.store() as store:
        yield store


@pytest.fixture
async def c(house: Deployment) -> AsyncIterator[Store]:
    async with house.store() as store:
        yield store


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not await true():  # noqa: ASYNC110 - the engine tells nobody what has expired
            await asyncio.sleep(0.005)


async def read(store: Store) -> Sequence[Letter]:
    async with asyncio.timeout(WAIT_S):
        return await store.receive()


async def mail(store: Store) -> list[Letter]:
    """Return all that is in an inbox, which may be nothing."""
    last = secrets.token_bytes(16)
    assert await store.send([(store.gateway, last)]) == [True]
    letters = list[Letter]()
    while last not in letters:
        letters += await read(store)
    assert letters[-1] == last
    return letters[:-1]


async def expire(store: Store, ttl_s: float = SHORT_S) -> None:
    """Wait until what was written before this for so long has expired."""
    name = secrets.token_hex(8)
    await store.put(name, b"", ttl_s + 0.01)

    async def gone() -> bool:
        return await store.get(name) is None

    await until(gone)


# Claims


async def test_claim_of_what_nobody_holds_is_ours_under_the_first_fence(a: Store) -> None:
    claim = await a.claim("s/1", b"\x00\xfffacts", LONG_S)
    assert claim == Claim(a.gateway, 1, b"\x00\xfffacts", alive=True)


async def test_what_nobody_has_claimed_is_not_found(a: Store) -> None:
    assert await a.find("s/1") is None


async def test_other_processes_find_a_claim_as_its_holder_made_it(a: Store, b: Store) -> None:
    claim = await a.claim("s/1", b"facts", LONG_S)
    assert await b.find("s/1") == claim


@pytest.mark.parametrize("over", [0, 1, 2])
async def test_claim_leaves_a_living_holder_alone(a: Store, b: Store, over: int) -> None:
    theirs = await a.claim("s/1", b"theirs", LONG_S)
    assert await b.claim("s/1", b"ours", LONG_S, over) == theirs
    assert await b.find("s/1") == theirs


async def test_claim_of_our_own_changes_nothing(a: Store) -> None:
    first = await a.claim("s/1", b"first", LONG_S)
    assert await a.claim("s/1", b"second", LONG_S, over=1) == first


async def test_claim_over_a_dead_holder_has_the_next_fence(
    house: Deployment, a: Store, b: Store
) -> None:
    await a.take("s/1", 7, b"theirs", LONG_S)
    await house.crash(a)
    assert await b.claim("s/1", b"ours", LONG_S, over=7) == Claim(b.gateway, 8, b"ours", alive=True)


async def test_claim_over_another_fence_leaves_a_dead_holder_alone(
    house: Deployment, a: Store, b: Store
) -> None:
    await a.take("s/1", 7, b"theirs", LONG_S)
    await house.crash(a)
    assert await b.claim("s/1", b"ours", LONG_S, over=6) == Claim(a.gateway, 7, b"theirs")


async def test_claim_over_a_released_one_has_the_next_fence(a: Store, b: Store) -> None:
    await a.claim("s/1", b"theirs", LONG_S)
    await a.release("s/1", 1)
    assert await b.claim("s/1", b"ours", LONG_S, over=1) == Claim(b.gateway, 2, b"ours", alive=True)


async def test_claim_without_its_fence_leaves_a_released_one_alone(a: Store, b: Store) -> None:
    await a.claim("s/1", b"theirs", LONG_S)
    await a.release("s/1", 1)
    assert await b.claim("s/1", b"ours", LONG_S) == Claim("", 1, b"theirs")


async def test_ended_claim_is_anybodys_under_the_next_fence(a: Store, b: Store) -> None:
    await a.claim("s/1", b"theirs", LONG_S)
    await a.end("s/1", 1, "lifetime", LONG_S)
    assert await b.claim("s/1", b"ours", LONG_S) == Claim(b.gateway, 2, b"ours", alive=True)


async def test_claim_has_one_winner_however_many_want_it(a: Store, b: Store, c: Store) -> None:
    async with asyncio.TaskGroup() as tasks:
        claims = [
            tasks.create_task(store.claim(f"s/{n}", store.gateway.encode(), LONG_S))
            for n in range(20)
            for store in (a, b, c)
        ]
    for n in range(20):
        told = {claim.result() for claim in claims[3 * n : 3 * n + 3]}
        assert told == {await a.find(f"s/{n}")}


async def test_claim_expires(a: Store, b: Store) -> None:
    await a.claim("s/1", b"facts", SHORT_S)
    await expire(a)
    assert await b.claim("s/1", b"", LONG_S) == Claim(b.gateway, 1, b"", alive=True)


async def test_claim_that_changes_holder_is_told_to_the_others(
    a: Store, b: Store, c: Store
) -> None:
    await a.claim("s/1", b"", LONG_S)
    await a.release("s/1", 1)
    await b.claim("s/1", b"", LONG_S, over=1)
    news = [Taken("s/1", 2, b.gateway)]
    assert [await mail(store) for store in (a, b, c)] == [news, [], news]


async def test_new_claim_is_told_to_nobody(a: Store, b: Store) -> None:
    await a.claim("s/1", b"", LONG_S)
    assert [await mail(store) for store in (a, b)] == [[], []]


async def test_claim_in_vain_is_told_to_nobody(a: Store, b: Store) -> None:
    await a.claim("s/1", b"", LONG_S)
    await b.claim("s/1", b"", LONG_S, over=1)
    assert [await mail(store) for store in (a, b)] == [[], []]


async def test_take_wins_over_a_living_holder_of_a_lower_fence(a: Store, b: Store) -> None:
    await a.claim("s/1", b"theirs", LONG_S)
    ours = Claim(b.gateway, 5, b"ours", alive=True)
    assert await b.take("s/1", 5, b"ours", LONG_S) == ours
    assert await a.find("s/1") == ours


@pytest.mark.parametrize("fence", [4, 5])
async def test_take_under_no_higher_fence_changes_nothing(a: Store, b: Store, fence: int) -> None:
    theirs = await a.take("s/1", 5, b"theirs", LONG_S)
    assert await b.take("s/1", fence, b"ours", LONG_S) == theirs
    assert await b.find("s/1") == theirs


async def test_take_compares_fences_as_numbers(a: Store, b: Store) -> None:
    await a.take("s/1", 9, b"theirs", LONG_S)
    assert (await b.take("s/1", 10, b"ours", LONG_S)).holder == b.gateway


async def test_fences_are_exact_up_to_2_to_the_53rd(a: Store) -> None:
    assert (await a.take("s/1", 2**53 - 1, b"", LONG_S)).fence == 2**53 - 1


async def test_take_of_what_has_ended_changes_nothing(a: Store, b: Store) -> None:
    await a.claim("s/1", b"facts", LONG_S)
    await a.end("s/1", 1, "lifetime", LONG_S)
    over = Claim("", 1, b"facts", ended="lifetime")
    assert await b.take("s/1", 2, b"ours", LONG_S) == over
    assert await b.find("s/1") == over


async def test_take_is_told_to_the_others(a: Store, b: Store, c: Store) -> None:
    await a.claim("s/1", b"", LONG_S)
    await b.take("s/1", 2, b"", LONG_S)
    news = [Taken("s/1", 2, b.gateway)]
    assert [await mail(store) for store in (a, b, c)] == [news, [], news]


async def test_take_of_what_nobody_held_is_told_to_the_others(a: Store, b: Store) -> None:
    await a.take("s/1", 3, b"", LONG_S)
    assert await mail(b) == [Taken("s/1", 3, a.gateway)]


async def test_take_in_vain_is_told_to_nobody(a: Store, b: Store) -> None:
    await a.take("s/1", 3, b"", LONG_S)
    await b.take("s/1", 3, b"", LONG_S)
    assert await mail(a) == []


async def test_take_expires(a: Store) -> None:
    await a.take("s/1", 3, b"", SHORT_S)
    await expire(a)
    assert await a.find("s/1") is None


async def test_hold_writes_the_facts_as_they_are_now(a: Store) -> None:
    await a.claim("s/1", b"old", LONG_S)
    assert await a.hold([Held("s/1", 1, b"new", LONG_S)]) == [True]
    assert await a.find("s/1") == Claim(a.gateway, 1, b"new", alive=True)


async def test_hold_lets_a_claim_last_longer(a: Store) -> None:
    await a.claim("s/1", b"", SHORT_S)
    await a.hold([Held("s/1", 1, b"", LONG_S)])
    await expire(a)
    assert await a.find("s/1") is not None


async def test_hold_enters_what_the_engine_has_lost(a: Store) -> None:
    assert await a.hold([Held("s/1", 7, b"facts", LONG_S)]) == [True]
    assert await a.find("s/1") == Claim(a.gateway, 7, b"facts", alive=True)


async def test_hold_under_a_higher_fence_of_ours_goes_up_to_it(a: Store) -> None:
    await a.claim("s/1", b"", LONG_S)
    assert await a.hold([Held("s/1", 3, b"", LONG_S)]) == [True]
    assert await a.find("s/1") == Claim(a.gateway, 3, b"", alive=True)


async def test_hold_leaves_alone_what_is_not_ours_any_more(a: Store, b: Store) -> None:
    await a.claim("theirs", b"", LONG_S)
    await b.take("theirs", 2, b"facts", LONG_S)
    await a.take("higher", 6, b"facts", LONG_S)
    await a.claim("released", b"facts", LONG_S)
    await a.release("released", 1)
    await a.claim("ended", b"facts", LONG_S)
    await a.end("ended", 1, "why", LONG_S)
    names = ["theirs", "higher", "released", "ended"]
    before = [await b.find(name) for name in names]
    held = [Held(name, 1, b"ours", LONG_S) for name in names]
    assert await a.hold(held) == [False] * 4
    assert [await b.find(name) for name in names] == before


async def test_hold_does_not_steal_from_a_lower_fence_of_another(a: Store, b: Store) -> None:
    theirs = await a.claim("s/1", b"", LONG_S)
    assert await b.hold([Held("s/1", 9, b"", LONG_S)]) == [False]
    assert await b.find("s/1") == theirs


async def test_hold_of_many_answers_for_each_in_order(a: Store, b: Store) -> None:
    for n in range(0, 300, 7):
        await b.claim(f"s/{n}", b"", LONG_S)
    held = [Held(f"s/{n}", 1, str(n).encode(), LONG_S) for n in range(300)]
    assert await a.hold(held) == [n % 7 != 0 for n in range(300)]
    assert await a.find("s/299") == Claim(a.gateway, 1, b"299", alive=True)


async def test_hold_of_nothing_answers_nothing(a: Store) -> None:
    assert await a.hold([]) == []


async def test_released_claim_keeps_its_fence_and_facts(a: Store, b: Store) -> None:
    await a.claim("s/1", b"facts", LONG_S)
    assert await a.release("s/1", 1)
    assert await b.find("s/1") == Claim("", 1, b"facts")


async def test_released_claim_lasts_no_longer(a: Store) -> None:
    await a.claim("s/1", b"facts", SHORT_S)
    await a.release("s/1", 1)
    await expire(a)
    assert await a.find("s/1") is None


async def test_release_and_end_refuse_what_is_not_ours(a: Store, b: Store) -> None:
    theirs = await a.take("s/1", 2, b"", LONG_S)
    assert not await b.release("s/1", 2)
    assert not await b.end("s/1", 2, "why", LONG_S)
    assert not await a.release("s/1", 1)
    assert not await a.end("s/1", 3, "why", LONG_S)
    assert not await a.release("s/2", 1)
    assert not await a.end("s/2", 1, "why", LONG_S)
    assert await a.find("s/1") == theirs
    assert await a.find("s/2") is None


async def test_end_is_remembered_with_its_reason_and_without_a_holder(a: Store, b: Store) -> None:
    await a.claim("s/1", b"facts", LONG_S)
    assert await a.end("s/1", 1, "lifetime", LONG_S)
    assert await b.find("s/1") == Claim("", 1, b"facts", ended="lifetime")


async def test_end_is_remembered_as_long_as_asked(a: Store) -> None:
    await a.claim("s/1", b"", LONG_S)
    await a.end("s/1", 1, "lifetime", SHORT_S)
    await expire(a)
    assert await a.find("s/1") is None


async def test_ended_claim_cannot_be_ended_or_released_again(a: Store) -> None:
    await a.claim("s/1", b"", LONG_S)
    await a.end("s/1", 1, "first", LONG_S)
    assert not await a.end("s/1", 1, "second", LONG_S)
    assert not await a.release("s/1", 1)
    assert await a.find("s/1") == Claim("", 1, b"", ended="first")


# Presence


async def test_processes_see_one_another(a: Store, b: Store) -> None:
    assert await a.gateways() == sorted([a.gateway, b.gateway]) == await b.gateways()


async def test_claim_of_a_process_that_died_is_not_alive(
    house: Deployment, a: Store, b: Store
) -> None:
    await a.claim("s/1", b"facts", LONG_S)
    await house.crash(a)
    assert await b.find("s/1") == Claim(a.gateway, 1, b"facts")
    assert await b.gateways() == [b.gateway]


async def test_process_that_leaves_is_gone_at_once_and_its_claims_stay(
    house: Deployment, b: Store
) -> None:
    async with house.store() as a:
        await a.claim("s/1", b"facts", LONG_S)
    assert await b.gateways() == [b.gateway]
    assert await b.find("s/1") == Claim(a.gateway, 1, b"facts")


async def test_process_that_died_can_do_nothing_more(house: Deployment, a: Store, b: Store) -> None:
    await a.claim("s/1", b"", LONG_S)
    await house.crash(a)
    with pytest.raises(StoreAway):
        await a.hold([Held("s/1", 1, b"", LONG_S)])


# Documents


async def test_document_is_read_as_it_was_written(a: Store, b: Store) -> None:
    await a.put("pass/1", b"\x00\r\n\xff", LONG_S)
    assert await b.get("pass/1") == b"\x00\r\n\xff"


async def test_document_that_nobody_wrote_is_none(a: Store) -> None:
    assert await a.get("pass/1") is None


async def test_document_is_overwritten(a: Store) -> None:
    await a.put("pass/1", b"old", LONG_S)
    await a.put("pass/1", b"", LONG_S)
    assert await a.get("pass/1") == b""


async def test_document_expires(a: Store) -> None:
    await a.put("pass/1", b"", SHORT_S)
    await a.put_new("pass/2", b"", SHORT_S)
    await expire(a)
    assert await a.get("pass/1") is None
    assert await a.get("pass/2") is None


async def test_deleted_document_is_gone(a: Store) -> None:
    await a.put("pass/1", b"", LONG_S)
    await a.delete("pass/1")
    await a.delete("pass/1")
    assert await a.get("pass/1") is None


async def test_first_of_two_new_documents_stays(a: Store, b: Store) -> None:
    assert await a.put_new("burnt/1", b"first", LONG_S) == b"first"
    assert await b.put_new("burnt/1", b"second", LONG_S) == b"first"
    assert await b.get("burnt/1") == b"first"


async def test_new_document_in_vain_does_not_prolong_the_first(a: Store, b: Store) -> None:
    await a.put_new("burnt/1", b"first", SHORT_S)
    await b.put_new("burnt/1", b"second", LONG_S)
    await expire(a)
    assert await a.get("burnt/1") is None


async def test_names_of_claims_documents_tables_stories_and_buckets_do_not_meet(
    a: Store,
) -> None:
    await a.claim("x", b"claim", LONG_S)
    await a.put("x", b"document", LONG_S)
    await a.commit("x", 0, {"x": b"row"}, LONG_S)
    await a.draw("x", 1, 1)
    await tell(a, "x", b"line", head=b"head")
    assert (await a.claim("x", b"", LONG_S)).facts == b"claim"
    assert await a.get("x") == b"document"
    assert (await a.changes("x", 0)).rows == {"x": b"row"}
    assert await told(a, "x") == Told(1, [b"line"], 1)
    assert await heads(a) == {"x": b"head"}


# Tables


async def commit(store: Store, since: int, rows: dict[str, bytes | None]) -> int:
    version = await store.commit("ledger", since, rows, LONG_S)
    assert version is not None
    return version


async def test_table_that_nobody_wrote_is_empty_at_version_0(a: Store) -> None:
    assert await a.changes("ledger", 0) == Changes(0, {}, whole=True)


async def test_whole_table_is_what_one_gets_who_has_nothing(a: Store, b: Store) -> None:
    rows: dict[str, bytes | None] = {"one": b"\x00\xff", "two": b""}
    version = await commit(a, 0, rows)
    assert await b.changes("ledger", 0) == Changes(version, rows, whole=True)


async def test_changes_are_only_what_is_new(a: Store, b: Store) -> None:
    first = await commit(a, 0, {"one": b"1", "two": b"2"})
    second = await commit(a, first, {"two": b"3", "three": b"4"})
    new = {"two": b"3", "three": b"4"}
    assert await b.changes("ledger", first) == Changes(second, new, whole=False)
    assert await b.changes("ledger", second) == Changes(second, {}, whole=False)


async def test_deletions_are_told(a: Store, b: Store) -> None:
    first = await commit(a, 0, {"one": b"1", "two": b"2"})
    second = await commit(a, first, {"one": None})
    assert await b.changes("ledger", first) == Changes(second, {"one": None}, whole=False)
    assert await b.changes("ledger", 0) == Changes(second, {"two": b"2"}, whole=True)


async def test_row_that_was_deleted_and_written_again_is_there(a: Store, b: Store) -> None:
    first = await commit(a, 0, {"one": b"1", "two": b"2"})
    second = await commit(a, first, {"one": None})
    third = await commit(a, second, {"one": b"3"})
    assert await b.changes("ledger", first) == Changes(third, {"one": b"3"}, whole=False)


async def test_deletion_of_a_row_that_is_not_there_is_no_news(a: Store, b: Store) -> None:
    first = await commit(a, 0, {"one": b"1"})
    second = await commit(a, first, {"none": None})
    assert await b.changes("ledger", first) == Changes(second, {}, whole=False)


async def test_table_without_rows_left_is_not_a_new_one(a: Store, b: Store) -> None:
    first = await commit(a, 0, {"one": b"1"})
    second = await commit(a, first, {"one": None})
    assert await b.commit("ledger", 0, {"one": b"2"}, LONG_S) is None
    assert await b.changes("ledger", second) == Changes(second, {}, whole=False)


async def test_commit_at_another_version_does_nothing(a: Store, b: Store) -> None:
    first = await commit(a, 0, {"one": b"1"})
    second = await commit(a, first, {"one": b"2"})
    for stale in (0, first, second + 1):
        assert await b.commit("ledger", stale, {"one": b"3"}, LONG_S) is None
    assert await b.changes("ledger", 0) == Changes(second, {"one": b"2"}, whole=True)


async def test_nothing_is_lost_when_all_commit_at_once(a: Store, b: Store, c: Store) -> None:
    async def count(store: Store) -> None:
        for _ in range(10):
            done = None
            while done is None:
                now = await store.changes("ledger", 0)
                number = int(now.rows.get("n") or b"0") + 1
                rows: dict[str, bytes | None] = {"n": str(number).encode()}
                done = await store.commit("ledger", now.version, rows, LONG_S)

    async with asyncio.TaskGroup() as tasks:
        for store in (a, b, c):
            tasks.create_task(count(store))
    assert (await a.changes("ledger", 0)).rows == {"n": b"30"}


async def test_commit_without_rows_only_lets_the_table_last(a: Store) -> None:
    first = await a.commit("ledger", 0, {"one": b"1"}, SHORT_S)
    assert first is not None
    assert await a.commit("ledger", first, {}, LONG_S) == first
    await expire(a)
    assert await a.changes("ledger", 0) == Changes(first, {"one": b"1"}, whole=True)


async def test_commit_without_rows_makes_no_table(a: Store) -> None:
    assert await a.commit("ledger", 0, {}, LONG_S) == 0
    assert await a.changes("ledger", 0) == Changes(0, {}, whole=True)


async def test_table_expires_as_a_whole(a: Store) -> None:
    first = await commit(a, 0, {"one": b"1"})
    await a.commit("ledger", first, {"two": b"2"}, SHORT_S)
    await expire(a)
    assert await a.changes("ledger", first) == Changes(0, {}, whole=True)


async def test_who_had_what_the_engine_lost_gets_the_whole(
    house: Deployment, a: Store, b: Store
) -> None:
    old = await commit(a, 0, {"one": b"1"})
    await house.forget()
    new = await commit(b, 0, {"two": b"2"})
    assert await a.changes("ledger", old) == Changes(new, {"two": b"2"}, whole=True)
    assert await a.commit("ledger", old, {"one": b"2"}, LONG_S) is None
    newer = await commit(b, new, {"three": b"3"})
    whole = Changes(newer, {"two": b"2", "three": b"3"}, whole=True)
    assert await a.changes("ledger", old) == whole
    assert await a.commit("ledger", old, {"one": b"2"}, LONG_S) is None


async def test_who_missed_more_deletions_than_are_remembered_gets_the_whole(a: Store) -> None:
    many: dict[str, bytes | None] = {str(n): b"" for n in range(10_001)}
    first = await commit(a, 0, {**many, "last": b""})
    second = await commit(a, first, {"0": None})
    third = await commit(a, second, dict.fromkeys(list(many)[1:]))
    assert await a.changes("ledger", first) == Changes(third, {"last": b""}, whole=True)
    rest = await a.changes("ledger", second)
    assert (rest.whole, len(rest.rows)) == (False, 10_000)


# Stories

KEEP = Keep(story_bytes=64 * 1024, all_bytes=4 * 1024 * 1024, stories=1000, ttl_s=LONG_S)
PLENTY = 64 * 1024 * 1024


async def tell(
    store: Store, story: str, *lines: bytes, head: bytes = b"", keep: Keep = KEEP
) -> None:
    await store.tell([Passage(story, head, lines)], keep)


async def told(store: Store, story: str, after: int = 0, most_bytes: int = PLENTY) -> Told:
    return await store.told(story, after, most_bytes)


async def heads(store: Store) -> dict[str, bytes | None]:
    return dict((await store.changes(STORIES, 0)).rows)


def numbered(first: int, last: int) -> list[bytes]:
    return [b"%d" % number for number in range(first, last + 1)]


async def test_lines_are_read_as_they_were_told(a: Store, b: Store) -> None:
    lines = [b"\x00\xff", b"", b"a\rb", b'{"event":"x"}', b""]
    await tell(a, "s", *lines)
    assert await told(b, "s") == Told(1, lines, 5)


async def test_one_empty_line_is_a_line(a: Store) -> None:
    await tell(a, "s", b"")
    assert await told(a, "s") == Told(1, [b""], 1)


@pytest.mark.parametrize("after", [0, 7])
async def test_story_that_nobody_told_has_no_lines(a: Store, after: int) -> None:
    assert await told(a, "s", after) == Told(after + 1, [], 0)


async def test_lines_of_all_processes_are_numbered_as_they_came(a: Store, b: Store) -> None:
    await tell(a, "s", b"1", b"2")
    await tell(b, "s", b"3")
    await tell(a, "s", b"4", b"5")
    assert await told(b, "s") == Told(1, numbered(1, 5), 5)


async def test_passages_of_several_processes_do_not_mix(a: Store, b: Store, c: Store) -> None:
    async def write(store: Store) -> None:
        for n in range(20):
            await tell(store, "s", *(f"{store.gateway} {n} {part}".encode() for part in "xy"))

    async with asyncio.TaskGroup() as tasks:
        for store in (a, b, c):
            tasks.create_task(write(store))
    lines = [line.decode() for line in (await told(a, "s")).lines]
    assert len(lines) == 120
    assert [line.replace(" x", " y") for line in lines[::2]] == lines[1::2]
    for store in (a, b, c):
        ours = [line for line in lines[::2] if line.startswith(store.gateway)]
        assert ours == [f"{store.gateway} {n} x" for n in range(20)]


async def test_stories_are_apart(a: Store) -> None:
    await a.tell([Passage("s", b"", [b"s1"]), Passage("t", b"", [b"t1", b"t2"])], KEEP)
    await tell(a, "s", b"s2")
    assert await told(a, "s") == Told(1, [b"s1", b"s2"], 2)
    assert await told(a, "t") == Told(1, [b"t1", b"t2"], 2)


async def test_one_story_may_have_several_passages_at_once(a: Store) -> None:
    passages = [Passage("s", b"old", [b"1", b"2"]), Passage("s", b"new", [b"3"])]
    await a.tell(passages, KEEP)
    assert await told(a, "s") == Told(1, numbered(1, 3), 3)
    assert await heads(a) == {"s": b"new"}


async def test_reader_gets_what_is_after_the_line_it_knows(a: Store) -> None:
    for first, last in ((1, 1), (2, 9), (10, 10), (11, 40), (41, 42)):
        await tell(a, "s", *numbered(first, last))
    for after in range(43):
        assert await told(a, "s", after) == Told(after + 1, numbered(after + 1, 42), 42)


async def test_reader_that_knows_more_than_there_is_gets_nothing(a: Store) -> None:
    await tell(a, "s", b"1")
    assert await told(a, "s", 1) == Told(2, [], 1)
    assert await told(a, "s", 9) == Told(10, [], 1)


@pytest.mark.parametrize("most_bytes", [0, 1, 99, 1000, 20_000])
async def test_reader_gets_a_long_story_bit_by_bit_and_whole(a: Store, most_bytes: int) -> None:
    keep = replace(KEEP, story_bytes=PLENTY)
    lines = [b"%d" % n * (n % 30) for n in range(500)]
    await tell(a, "s", *lines[:450], keep=keep)
    for line in lines[450:]:
        await tell(a, "s", line, keep=keep)
    read_so_far = list[bytes]()
    while len(read_so_far) < 500:
        now = await told(a, "s", len(read_so_far), most_bytes)
        assert (now.first, now.last) == (len(read_so_far) + 1, 500)
        assert len(now.lines) == 1 or sum(map(len, now.lines)) <= most_bytes
        assert len(now.lines) >= 1
        read_so_far += now.lines
    assert read_so_far == lines


async def test_reader_gets_as_much_as_it_may(a: Store) -> None:
    for n in range(100):
        await tell(a, "s", *[b"%02d" % n * 25] * 2)  # 50 bytes each
    assert len((await told(a, "s", 11, 5100)).lines) == 100


async def test_passage_that_is_long_is_told_whole(a: Store, b: Store) -> None:
    keep = replace(KEEP, story_bytes=PLENTY, all_bytes=PLENTY)
    lines = [b"%d" % n * 200 for n in range(2000)]
    await tell(a, "s", b"first", keep=keep)
    await tell(a, "s", *lines, keep=keep)
    await tell(a, "s", b"last", keep=keep)
    assert await told(b, "s") == Told(1, [b"first", *lines, b"last"], 2002)


async def test_line_that_is_long_is_told_whole(a: Store) -> None:
    line = b"x" * 3 * stories.CHUNK_BYTES
    await tell(a, "s", b"1", line, b"3", keep=replace(KEEP, story_bytes=PLENTY))
    assert await told(a, "s") == Told(1, [b"1", line, b"3"], 3)


async def test_many_stories_are_told_at_once(a: Store, b: Store) -> None:
    passages = [Passage(f"s{n}", b"head %d" % n, numbered(n, n + 2)) for n in range(300)]
    await a.tell(passages, KEEP)
    assert await heads(b) == {passage.story: passage.head for passage in passages}
    for n in range(0, 300, 23):
        assert await told(b, f"s{n}") == Told(1, numbered(n, n + 2), 3)


async def test_head_of_a_story_is_its_row(a: Store, b: Store) -> None:
    await tell(a, "s", b"1", head=b"\x00\xff")
    await tell(b, "t", b"1", head=b"")
    assert await heads(b) == {"s": b"\x00\xff", "t": b""}


async def test_new_heads_are_changes_of_their_table(a: Store, b: Store) -> None:
    await a.tell([Passage("s", b"s1", []), Passage("t", b"t1", [])], KEEP)
    first = (await b.changes(STORIES, 0)).version
    await tell(a, "t", head=b"t2")
    await tell(b, "u", head=b"u1")
    now = await b.changes(STORIES, first)
    assert (now.rows, now.whole) == ({"t": b"t2", "u": b"u1"}, False)
    assert await a.changes(STORIES, now.version) == Changes(now.version, {}, whole=False)


async def test_head_alone_changes_no_lines(a: Store) -> None:
    await tell(a, "s", b"1", head=b"old")
    await tell(a, "s", head=b"new")
    await tell(a, "s", b"2", head=b"newer")
    assert await told(a, "s") == Told(1, [b"1", b"2"], 2)


async def test_story_may_begin_with_its_head_alone(a: Store) -> None:
    await tell(a, "s", head=b"head")
    assert await told(a, "s") == Told(1, [], 0)
    assert await heads(a) == {"s": b"head"}


async def test_tell_of_nothing_is_no_change(a: Store) -> None:
    await tell(a, "s", b"1")
    before = await a.changes(STORIES, 0)
    await a.tell([], KEEP)
    assert await a.changes(STORIES, 0) == before


def cost(read: Told) -> int:
    """Return what the lines of a story take at least: themselves and their line breaks."""
    return sum(len(line) + 1 for line in read.lines)


async def test_oldest_lines_of_a_long_story_go_and_the_others_keep_their_numbers(a: Store) -> None:
    keep = replace(KEEP, story_bytes=2000)
    for n in range(1, 1001):
        await tell(a, "s", b"%d" % n, keep=keep)
        assert cost(await told(a, "s")) <= 2000
    now = await told(a, "s")
    assert now == Told(now.first, numbered(now.first, 1000), 1000)
    assert 900 < now.first < 1000


async def test_reader_that_missed_lines_that_went_gets_the_next_that_is_kept(a: Store) -> None:
    keep = replace(KEEP, story_bytes=2000)
    for n in range(1, 1001):
        await tell(a, "s", b"%d" % n, keep=keep)
    whole = await told(a, "s")
    assert await told(a, "s", 500) == whole
    assert await told(a, "s", whole.first - 1) == whole
    assert (await told(a, "s", whole.first)).lines == whole.lines[1:]


@pytest.mark.parametrize("story_bytes", [0, 1000, 40_000, 400_000])
async def test_passage_that_is_too_long_leaves_its_newest_lines(a: Store, story_bytes: int) -> None:
    keep = replace(KEEP, story_bytes=story_bytes)
    await tell(a, "s", b"1", b"2", b"3", keep=keep)
    lines = [b"%d" % n * 100 for n in range(4, 2001)]
    await tell(a, "s", *lines, keep=keep)
    now = await told(a, "s")
    assert now == Told(now.first, lines[now.first - 4 :], 2000)
    bounds = story_bytes - stories.CHUNK_BYTES, max(story_bytes, stories.CHUNK_BYTES)
    assert bounds[0] * 0.99 < cost(now) <= bounds[1]
    await tell(a, "s", b"x", keep=keep)
    assert (await told(a, "s", 2000)) == Told(2001, [b"x"], 2001)


async def test_line_over_the_bound_of_a_story_is_kept_alone(a: Store) -> None:
    keep = replace(KEEP, story_bytes=1000)
    await tell(a, "s", b"1", b"x" * 5000, keep=replace(KEEP, story_bytes=10_000))
    await tell(a, "s", b"y" * 5000, keep=keep)
    assert await told(a, "s") == Told(3, [b"y" * 5000], 3)


async def test_story_that_was_told_least_recently_goes_when_they_are_too_many(a: Store) -> None:
    keep = replace(KEEP, stories=3)
    for story in ("s", "t", "u", "s", "v"):
        await tell(a, story, b"1", keep=keep)
    assert await heads(a) == {"u": b"", "s": b"", "v": b""}
    assert await told(a, "t") == Told(1, [], 0)
    assert (await told(a, "s")).last == 2


async def test_story_that_is_told_with_others_goes_by_its_place_among_them(a: Store) -> None:
    keep = replace(KEEP, stories=3)
    names = ["z", "y", "x", "w", "z", "v"]
    await a.tell([Passage(name, b"", []) for name in names], keep)
    assert set(await heads(a)) == {"w", "z", "v"}


async def test_story_that_goes_takes_its_row_along_at_once(a: Store, b: Store) -> None:
    keep = replace(KEEP, stories=1)
    await tell(a, "s", b"1", keep=keep)
    before = (await b.changes(STORIES, 0)).version
    await tell(a, "t", b"1", head=b"head", keep=keep)
    now = await b.changes(STORIES, before)
    assert (now.rows, now.whole) == ({"s": None, "t": b"head"}, False)


async def test_story_that_went_begins_anew(a: Store) -> None:
    keep = replace(KEEP, stories=1)
    await tell(a, "s", b"1", b"2", keep=keep)
    await tell(a, "t", b"1", keep=keep)
    await tell(a, "s", b"new", keep=keep)
    assert await told(a, "s") == Told(1, [b"new"], 1)


async def test_stories_that_were_told_least_recently_go_when_they_take_too_much(a: Store) -> None:
    keep = replace(KEEP, all_bytes=100_000)
    for n in range(40):
        await tell(a, f"s{n}", b"x" * 5000, keep=keep)
        kept = [await told(a, name) for name in await heads(a)]
        assert sum(map(cost, kept)) <= 100_000
    assert await heads(a) == {f"s{n}": b"" for n in range(24, 40)}


async def test_heads_count_among_what_stories_take(a: Store) -> None:
    keep = replace(KEEP, all_bytes=100_000)
    for n in range(40):
        await tell(a, f"s{n}", head=b"x" * 10_000, keep=keep)
        assert len(await heads(a)) <= 10
    for n in range(31, 40):
        await tell(a, f"s{n}", head=b"", keep=keep)
    await tell(a, "last", head=b"x" * 80_000, keep=keep)
    assert await heads(a) == {**{f"s{n}": b"" for n in range(31, 40)}, "last": b"x" * 80_000}


async def test_stories_without_anything_in_them_take_something_too(a: Store) -> None:
    keep = replace(KEEP, all_bytes=50_000)
    await a.tell([Passage(str(n), b"", []) for n in range(500)], keep)
    assert 20 < len(await heads(a)) <= 50


async def test_story_that_alone_takes_too_much_goes(a: Store) -> None:
    keep = replace(KEEP, all_bytes=10_000)
    await tell(a, "small", b"1", keep=keep)
    await tell(a, "big", b"x" * 10_000, keep=keep)
    assert await heads(a) == {}
    assert await told(a, "big") == Told(1, [], 0)


@pytest.mark.parametrize("short_of", [0, 1])
async def test_stories_are_counted_with_all_that_they_cost(a: Store, short_of: int) -> None:
    line = b"x" * 100
    each = stories.STORY_COST + len("s1") + len(b"head") + 2 * (stories.CHUNK_COST + len(line))
    keep = replace(KEEP, all_bytes=2 * each - short_of)
    for story in ("s1", "s2", "s1", "s2"):
        await tell(a, story, line, head=b"head", keep=keep)
    assert len(await heads(a)) == 2 - short_of


@pytest.mark.parametrize("short_of", [0, 1])
async def test_lines_are_counted_with_all_that_they_cost(a: Store, short_of: int) -> None:
    line = b"x" * 100
    keep = replace(KEEP, story_bytes=5 * (stories.CHUNK_COST + len(line)) - short_of)
    for _ in range(20):
        await tell(a, "s", line, keep=keep)
    assert await told(a, "s") == Told(16 + short_of, [line] * (5 - short_of), 20)


async def test_bounds_that_have_become_narrow_hold_at_once(a: Store) -> None:
    await a.tell([Passage(f"s{n}", b"", [b"1"]) for n in range(400)], KEEP)
    await tell(a, "last", keep=replace(KEEP, stories=10))
    assert set(await heads(a)) == {"last", *(f"s{n}" for n in range(391, 400))}


@pytest.mark.parametrize("seed", range(4))
async def test_bounds_hold_whatever_is_told(a: Store, b: Store, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - no secret
    keep = Keep(story_bytes=40_000, all_bytes=150_000, stories=12, ttl_s=LONG_S)
    rows, version = dict[str, bytes | None](), 0
    for _ in range(60):
        passages = [
            Passage(
                f"s{chance.randrange(20)}",
                b"h" * chance.randrange(2000),
                [b"x" * chance.randrange(4000) for _ in range(chance.randrange(20))],
            )
            for _ in range(chance.randrange(1, 4))
        ]
        await chance.choice([a, b]).tell(passages, keep)
        news = await a.changes(STORIES, version)
        assert news.whole is (version == 0)
        version = news.version
        rows = {name: row for name, row in (rows | dict(news.rows)).items() if row is not None}
        assert rows == await heads(b)
        kept = [await told(b, name) for name in rows]
        assert len(rows) <= 12
        assert max(map(cost, kept)) <= 40_000
        assert sum(map(cost, kept)) + sum(len(row or b"") for row in rows.values()) <= 150_000
        for n in range(20):
            assert f"s{n}" in rows or await told(b, f"s{n}") == Told(1, [], 0)


async def test_story_that_nothing_is_added_to_expires(a: Store) -> None:
    await tell(a, "s", b"1", keep=replace(KEEP, ttl_s=SHORT_S))
    await expire(a)
    assert await told(a, "s") == Told(1, [], 0)


async def test_story_that_expired_begins_anew(a: Store) -> None:
    await tell(a, "s", b"1", b"2", keep=replace(KEEP, ttl_s=SHORT_S))
    await expire(a)
    await tell(a, "s", b"new")
    assert await told(a, "s") == Told(1, [b"new"], 1)


async def test_story_that_expired_while_another_lasts_begins_anew(a: Store) -> None:
    await tell(a, "s", b"1", b"2", keep=replace(KEEP, ttl_s=SHORT_S))
    await tell(a, "t", b"1")
    await expire(a)
    await tell(a, "s", b"new")
    assert await told(a, "s") == Told(1, [b"new"], 1)
    assert await told(a, "t") == Told(1, [b"1"], 1)


async def test_row_of_a_story_that_expired_goes_when_another_is_told(a: Store, b: Store) -> None:
    keep = replace(KEEP, ttl_s=10 * SHORT_S)
    await tell(a, "s", b"1", keep=keep)

    async def gone() -> bool:
        await tell(a, "t", keep=keep)
        rows = await heads(b)
        return "t" in rows and "s" not in rows

    await until(gone)


async def test_story_that_is_told_again_lasts_longer(a: Store) -> None:
    await tell(a, "s", b"1", keep=replace(KEEP, ttl_s=10 * SHORT_S))
    await tell(a, "s")
    await expire(a, 10 * SHORT_S)
    assert await told(a, "s") == Told(1, [b"1"], 1)
    assert await heads(a) == {"s": b""}


async def test_table_of_stories_lasts_as_long_as_the_last_that_was_told(a: Store) -> None:
    await tell(a, "s", b"1", keep=replace(KEEP, ttl_s=SHORT_S))
    await expire(a)
    assert await a.changes(STORIES, 0) == Changes(0, {}, whole=True)


async def test_story_that_the_engine_lost_begins_anew(house: Deployment, a: Store) -> None:
    await tell(a, "s", b"1", b"2", head=b"old")
    await tell(a, "t", b"1")
    version = (await a.changes(STORIES, 0)).version
    await house.forget()
    assert await told(a, "s") == Told(1, [], 0)
    await tell(a, "s", b"new", head=b"new")
    assert await told(a, "s") == Told(1, [b"new"], 1)
    now = await a.changes(STORIES, version)
    assert (now.rows, now.whole) == ({"s": b"new"}, True)


async def test_process_that_died_tells_and_reads_no_story(
    house: Deployment, a: Store, b: Store
) -> None:
    await tell(b, "s", b"1")
    await house.crash(a)
    with pytest.raises(StoreAway):
        await tell(a, "s", b"2")
    with pytest.raises(StoreAway):
        await told(a, "s")
    assert (await told(b, "s")).last == 1


# Rates


async def test_new_bucket_is_full_and_then_tells_how_long_to_wait(a: Store, b: Store) -> None:
    drawn = [await store.draw("opens/alice", 1.0, 3) for store in (a, b, a)]
    assert drawn == [0.0, 0.0, 0.0]
    assert 50.0 < await b.draw("opens/alice", 1.0, 3) <= 60.0


async def test_bucket_fills_at_its_rate(a: Store) -> None:
    await a.draw("opens/alice", 1200.0, 1)  # one each 50 ms

    async def one() -> bool:
        return await a.draw("opens/alice", 1200.0, 1) == 0.0

    await until(one)


async def test_bucket_that_is_asked_in_vain_fills_all_the_same(a: Store) -> None:
    await a.draw("opens/alice", 1.0, 1)
    first = await a.draw("opens/alice", 1.0, 1)
    second = await a.draw("opens/alice", 1.0, 1)
    assert second <= first


async def test_bucket_holds_no_more_than_its_burst(a: Store) -> None:
    await a.draw("opens/alice", 6000.0, 2)
    await expire(a)  # enough for five
    rate = 0.001  # none comes from now on
    drawn = [await a.draw("opens/alice", rate, 2) == 0.0 for _ in range(3)]
    assert drawn == [True, True, False]


async def test_buckets_are_apart(a: Store) -> None:
    assert await a.draw("opens/alice", 1.0, 1) == 0.0
    assert await a.draw("opens/bob", 1.0, 1) == 0.0


# Mail


async def test_letters_arrive_in_order_as_they_were_sent(a: Store, b: Store) -> None:
    letters = [b"", b"\x00\r\n\xff", b"x" * 300_000, *(str(n).encode() for n in range(200))]
    assert await a.send([(b.gateway, letter) for letter in letters]) == [True] * len(letters)
    assert await mail(b) == letters


async def test_letters_go_to_whom_they_are_addressed(a: Store, b: Store, c: Store) -> None:
    letters = [(b.gateway, b"b1"), (c.gateway, b"c1"), (b.gateway, b"b2"), (a.gateway, b"a1")]
    assert await a.send(letters) == [True] * 4
    assert [await mail(store) for store in (a, b, c)] == [[b"a1"], [b"b1", b"b2"], [b"c1"]]


async def test_letter_to_nobody_alive_is_refused(house: Deployment, a: Store, b: Store) -> None:
    await house.crash(b)
    letters = [("nobody", b"1"), (a.gateway, b"2"), (b.gateway, b"3")]
    assert await a.send(letters) == [False, True, False]


async def test_no_letters_are_no_letters(a: Store) -> None:
    assert await a.send([]) == []


async def test_receive_waits_for_the_first_letter(a: Store, b: Store) -> None:
    async with asyncio.TaskGroup() as tasks:
        letters = tasks.create_task(read(b))
        await a.send([(a.gateway, b"other")])
        assert await read(a) == [b"other"]
        assert not letters.done()
        await a.send([(b.gateway, b"hello")])
    assert letters.result() == [b"hello"]


async def test_letter_is_received_once(a: Store, b: Store) -> None:
    await a.send([(b.gateway, b"1")])
    assert await read(b) == [b"1"]
    await a.send([(b.gateway, b"2")])
    assert await read(b) == [b"2"]


async def test_reader_that_gives_up_loses_nothing(a: Store, b: Store) -> None:
    for n in range(20):
        letter = str(n).encode()
        async with asyncio.TaskGroup() as tasks:
            reader = tasks.create_task(read(b))
            for _ in range(n):
                await asyncio.sleep(0)
            reader.cancel()
        await a.send([(b.gateway, letter)])
        assert await read(b) == [letter]


async def test_news_of_a_claim_stands_between_the_letters_around_it(a: Store, b: Store) -> None:
    await a.send([(b.gateway, b"before")])
    await a.take("s/1", 1, b"", LONG_S)
    await a.send([(b.gateway, b"after")])
    assert await mail(b) == [b"before", Taken("s/1", 1, a.gateway), b"after"]


async def test_letters_of_all_senders_arrive_each_in_its_own_order(
    a: Store, b: Store, c: Store
) -> None:
    async def write(store: Store) -> None:
        for n in range(100):
            await store.send([(c.gateway, f"{store.gateway} {n}".encode())])

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(write(a))
        tasks.create_task(write(b))
    letters = [letter.decode() for letter in await mail(c) if isinstance(letter, bytes)]
    for store in (a, b):
        ours = [letter for letter in letters if letter.startswith(store.gateway)]
        assert ours == [f"{store.gateway} {n}" for n in range(100)]


async def test_full_inbox_refuses_letters_until_it_was_read(a: Store, b: Store) -> None:
    chunk = b"x" * 1_000_000
    letters = [(b.gateway, chunk)] * 40 + [(b.gateway, b"small")]
    taken = Counter(await a.send(letters))
    assert taken == {True: 33, False: 8}  # 32 MiB; nothing overtakes what was refused
    letters_read = 0
    while letters_read < 33:
        letters_read += len(await read(b))
    assert await mail(b) == []
    assert await a.send([(b.gateway, chunk)]) == [True]


async def test_claims_are_told_even_to_a_full_inbox(a: Store, b: Store) -> None:
    await a.send([(b.gateway, b"x" * 1_000_000)] * 40)
    await a.take("s/1", 1, b"", LONG_S)
    letters = list[Letter]()
    while len(letters) < 34:
        letters += await read(b)
    assert letters[-1] == Taken("s/1", 1, a.gateway)


# Trouble


async def test_engine_that_lost_its_memory_is_noticed(house: Deployment, a: Store) -> None:
    await a.claim("s/1", b"", LONG_S)
    before = a.blank_since
    await house.forget()

    async def noticed() -> bool:
        return a.blank_since > before

    await until(noticed)
    assert await a.find("s/1") is None
    assert await a.hold([Held("s/1", 1, b"facts", LONG_S)]) == [True]


async def test_mail_goes_on_after_the_engine_lost_its_memory(
    house: Deployment, a: Store, b: Store
) -> None:
    await a.send([(b.gateway, b"lost")])
    await house.forget()

    async def sent() -> bool:
        return await a.send([(b.gateway, b"after")]) == [True]

    await until(sent)
    assert b"after" in await read(b)


async def test_calls_fail_while_the_engine_is_away_and_work_again(
    house: Deployment, a: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(valkey, "DEADLINE_S", 0.3)
    assert a.away_s == 0.0
    house.away(True)
    try:
        with pytest.raises(StoreAway):
            await a.claim("s/1", b"", LONG_S)

        async def away() -> bool:
            return a.away_s > 0.0

        await until(away)
        with pytest.raises(StoreAway):
            await a.gateways()
    finally:
        house.away(False)

    async def back() -> bool:
        return a.away_s == 0.0

    await until(back)
    assert (await a.claim("s/2", b"", LONG_S)).holder == a.gateway


async def test_receive_outlasts_an_engine_that_is_away(
    house: Deployment, a: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(valkey, "DEADLINE_S", 0.3)
    monkeypatch.setattr(valkey, "BLOCK_S", 0.1)
    async with asyncio.TaskGroup() as tasks:
        letters = tasks.create_task(read(a))
        house.away(True)
        try:
            with pytest.raises(StoreAway):
                await a.get("x")
        finally:
            house.away(False)

        async def sent() -> bool:
            try:
                return await a.send([(a.gateway, b"hello")]) == [True]
            except StoreAway:
                return False

        await until(sent)
    assert b"hello" in letters.result()


async def test_store_that_is_not_entered_is_away(house: Deployment) -> None:
    store: Store
    for store in (MemoryStore(), ValkeyStore("redis://127.0.0.1:9")):
        with pytest.raises(StoreAway):
            await store.find("s/1")


def test_only_a_memory_store_without_an_engine_to_share_is_alone() -> None:
    assert MemoryStore().alone
    assert not MemoryStore(Engine()).alone
    assert not ValkeyStore("redis://127.0.0.1:9").alone
