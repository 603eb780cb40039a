"""What callers of the Valkey store see when its engine or the way there fails."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from gateway.store import valkey
from gateway.store.base import STORIES, Claim, Held, Keep, Passage, StoreAway, Taken, Told
from gateway.store.valkey import ValkeyStore
from tests.fakes.fault_proxy import End, FaultProxy, Way
from tests.fakes.valkey import ValkeyServer
from tests.store.house import LONG_S, WAIT_S, away, back, command, mail, read, until

KEEP = Keep(story_bytes=10_000, all_bytes=100_000, stories=10, ttl_s=LONG_S)


@asynccontextmanager
async def behind_proxy(server: ValkeyServer) -> AsyncIterator[tuple[ValkeyStore, FaultProxy]]:
    proxy = FaultProxy(server.port)
    store = ValkeyStore(f"redis://127.0.0.1:{proxy.port}")
    async with asyncio.timeout(WAIT_S), proxy, store:
        yield store, proxy


@pytest.fixture
async def a(server: ValkeyServer) -> AsyncIterator[ValkeyStore]:
    async with ValkeyStore(server.url) as store:
        yield store


@pytest.fixture
async def b(server: ValkeyServer) -> AsyncIterator[ValkeyStore]:
    async with ValkeyStore(server.url) as store:
        yield store


async def operator(server: ValkeyServer, *parts: str) -> None:
    """Let somebody else give a command."""
    connection = valkey.dialler(server.url, "operator", verify=False)()
    await connection.connect()
    await valkey.call(connection, *parts)
    await connection.disconnect()


# Once, or nobody knows


async def test_letter_whose_answer_was_lost_is_there_once(
    server: ValkeyServer, b: ValkeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(valkey, "BEAT_S", 3600.0)  # so that the answer that is cut off is ours
    async with behind_proxy(server) as (a, proxy):
        proxy.tunnels[0].cut(Way.DOWN, 0, End.RESET)
        with pytest.raises(StoreAway):
            await a.send([(b.gateway, b"first")])
        assert proxy.counts["reset"] == 1
        await back(a)
        assert await a.send([(b.gateway, b"second")]) == [True]
        assert await mail(b) == [b"first", b"second"]


async def test_passage_whose_answer_was_lost_was_told_once(
    server: ValkeyServer, b: ValkeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(valkey, "BEAT_S", 3600.0)  # so that the answer that is cut off is ours
    async with behind_proxy(server) as (a, proxy):
        proxy.tunnels[0].cut(Way.DOWN, 0, End.RESET)
        with pytest.raises(StoreAway):
            await a.tell([Passage("s", b"", [b"1", b"2"])], KEEP)
        assert proxy.counts["reset"] == 1
        await back(a)
        assert await b.told("s", 0, 100) == Told(1, [b"1", b"2"], 2)


async def test_letters_under_way_when_connections_are_killed_are_there_once_at_most(
    a: ValkeyStore, b: ValkeyStore
) -> None:
    told = dict[bytes, bool]()

    async def write(letter: bytes) -> None:
        try:
            told[letter] = await a.send([(b.gateway, letter)]) == [True]
        except StoreAway:
            told[letter] = False

    for attempt in range(5):
        await back(a)
        async with asyncio.TaskGroup() as tasks:
            for n in range(200):
                tasks.create_task(write(f"{attempt} {n}".encode()))
                if n == 100:
                    kill = ("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                    tasks.create_task(command(b, *kill))
    await back(a, b)
    letters = await mail(b)
    assert len(letters) == len(set(letters))
    assert {letter for letter, sent in told.items() if sent} <= set(letters)


async def test_letter_that_came_just_as_the_reader_was_killed_is_read_once(
    a: ValkeyStore, b: ValkeyStore
) -> None:
    async with asyncio.TaskGroup() as tasks:
        for n in range(20):
            letter = str(n).encode()
            reader = tasks.create_task(read(b))
            await until(lambda: b._reader is None)
            tasks.create_task(a.send([(b.gateway, letter)]))
            await command(a, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await back(b)
            await back(a)
            await a.send([(b.gateway, b"end")])
            letters = list(await reader)
            while b"end" not in letters:
                letters += await read(b)
            assert letters in ([letter, b"end"], [b"end"])


async def test_reader_that_gives_up_while_it_connects_leaves_no_answer_behind(
    server: ValkeyServer, a: ValkeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(valkey, "DEADLINE_S", WAIT_S)
    connections = list[Any]()

    def dial() -> valkey.Connection:
        connections.append(valkey.dialler(server.url, "reader", verify=False)())
        return cast("valkey.Connection", connections[-1])

    monkeypatch.setattr(a, "_dial", dial)
    server.pause()
    async with asyncio.TaskGroup() as tasks:
        reader = tasks.create_task(a.receive())
        await until(lambda: bool(connections) and connections[0].is_connected)
        reader.cancel()
    server.resume()
    for letter in (b"1", b"2"):
        await a.send([(a.gateway, letter)])
        assert await read(a) == [letter]


async def test_caller_that_gives_up_does_not_disturb_the_others(a: ValkeyStore) -> None:
    await a.put("x", b"value", LONG_S)
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(a.get("x")) for _ in range(200)]
        await asyncio.sleep(0)
        for one in asked[::3]:
            one.cancel()
    rest = [one.result() for one in asked if not one.cancelled()]
    assert rest == [b"value"] * (200 - 67)


async def test_what_its_caller_gave_up_is_not_done_later(
    server: ValkeyServer, a: ValkeyStore
) -> None:

    server.pause()
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(a.put("first", b"", LONG_S))
        await until(lambda: bool(a._wire._written))
        second = tasks.create_task(a.put("second", b"", LONG_S))
        await until(lambda: not a._wire._queue.empty())
        second.cancel()
        await asyncio.sleep(0)
        server.resume()
        await first
    assert second.cancelled()
    assert await a.get("first") == b""
    assert await a.get("second") is None


# Away and back


async def test_paused_engine_is_away_and_then_callers_fail_without_waiting(
    server: ValkeyServer, a: ValkeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.pause()
    with pytest.raises(StoreAway):
        await a.get("x")
    await away(a)
    with monkeypatch.context() as patience:
        patience.setattr(valkey, "DEADLINE_S", 3600.0)
        async with asyncio.timeout(5.0):
            for _ in range(1000):
                with pytest.raises(StoreAway):
                    await a.get("x")
    server.resume()
    await back(a)
    assert await a.get("x") is None


async def test_silent_connection_is_replaced(server: ValkeyServer) -> None:
    async with behind_proxy(server) as (a, proxy):
        proxy.tunnels[0].black_hole()
        with pytest.raises(StoreAway):
            await a.get("x")
        await away(a)
        await back(a)
        await a.put("x", b"1", LONG_S)
        assert proxy.counts["accepted"] == 2


async def test_process_begins_without_its_engine_and_finds_it_later(server: ValkeyServer) -> None:
    server.kill()
    async with ValkeyStore(server.url) as store:
        assert store.away_s > 0.0
        with pytest.raises(StoreAway):
            await store.gateways()
        server.start()
        await back(store)
        assert await store.gateways() == [store.gateway]


async def test_process_leaves_without_its_engine(server: ValkeyServer) -> None:
    async with asyncio.timeout(WAIT_S):
        async with ValkeyStore(server.url) as store:
            server.kill()
        with pytest.raises(StoreAway, match="left"):
            await store.get("x")


async def test_process_whose_start_is_interrupted_leaves_no_task(server: ValkeyServer) -> None:
    server.pause()
    before = asyncio.all_tasks()
    store = ValkeyStore(server.url)
    async with asyncio.TaskGroup() as tasks:
        entering = tasks.create_task(store.__aenter__())
        await until(lambda: len(asyncio.all_tasks()) > len(before) + 1)
        entering.cancel()
    assert asyncio.all_tasks() == before
    server.resume()


async def test_refused_password_is_said(server: ValkeyServer) -> None:
    url = f"redis://:wrong@127.0.0.1:{server.port}"
    async with ValkeyStore(url) as store:
        with pytest.raises(StoreAway, match="AuthenticationError"):
            await store.get("x")


async def test_replica_is_not_written_to_and_its_master_is_found_again(
    server: ValkeyServer, a: ValkeyStore
) -> None:
    await command(a, "REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(StoreAway):
        await a.put("x", b"", LONG_S)
    await away(a)
    await operator(server, "REPLICAOF", "NO", "ONE")
    await back(a)
    await a.put("x", b"", LONG_S)


async def test_engine_whose_memory_is_full_refuses_and_mail_is_still_read(
    a: ValkeyStore, b: ValkeyStore
) -> None:
    await a.send([(b.gateway, b"x" * 100_000)] * 100)
    await command(a, "CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(StoreAway, match="maxmemory"):
        await a.put("x", b"", LONG_S)
    letters = 0
    while letters < 100:
        letters += len(await read(b))
    await command(a, "CONFIG", "SET", "maxmemory", "0")
    await a.put("x", b"", LONG_S)


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_engine_that_evicts_is_a_problem(policy: str) -> None:
    with ValkeyServer(maxmemory_policy=policy) as server:
        async with ValkeyStore(server.url) as store:
            assert len(store.problems) == 1
            assert policy in store.problems[0]


async def test_engine_that_does_not_evict_is_none(a: ValkeyStore) -> None:
    assert a.problems == []


async def test_engine_that_forbids_info_and_config_will_do(server: ValkeyServer) -> None:
    rights = ("on", ">pw", "~*", "&*", "+@all", "-info", "-config", "-acl")
    await operator(server, "ACL", "SETUSER", "guest", *rights)
    async with ValkeyStore(f"redis://guest:pw@127.0.0.1:{server.port}") as store:
        assert store.problems == []
        assert await store.gateways() == [store.gateway]


# What the engine has forgotten


async def test_engine_that_forgot_the_scripts_is_told_them_again(a: ValkeyStore) -> None:
    await command(a, "SCRIPT", "FLUSH")
    async with asyncio.TaskGroup() as tasks:
        for n in range(100):
            tasks.create_task(a.claim(f"s/{n}", b"", LONG_S))
    assert (await a.find("s/99")) == Claim(a.gateway, 1, b"", alive=True)


async def test_reader_goes_on_when_the_scripts_were_forgotten(
    a: ValkeyStore, b: ValkeyStore
) -> None:
    for store in (a, b):
        store._keeping[1].cancel()  # no beat tells them to the engine again
    await a.send([(b.gateway, b"1")])
    assert await read(b) == [b"1"]
    await command(a, "SCRIPT", "FLUSH")
    await command(a, "XADD", f"rdv:in:{b.gateway}:0", "*", "letter", "2")
    assert await read(b) == [b"2"]


async def test_restart_without_memory_is_noticed_and_what_was_held_is_entered_again(
    server: ValkeyServer, a: ValkeyStore, b: ValkeyStore
) -> None:
    await a.take("s/1", 7, b"facts", LONG_S)
    before = a.blank_since
    server.restart()
    await away(a)
    await back(a)
    assert a.blank_since > before
    assert await a.find("s/1") is None
    assert await a.hold([Held("s/1", 7, b"facts", LONG_S)]) == [True]
    await until(lambda: b.away_s == 0.0 and b.blank_since > before)
    assert await b.find("s/1") == Claim(a.gateway, 7, b"facts", alive=True)
    assert await b.gateways() == sorted([a.gateway, b.gateway])


async def test_process_is_not_alive_for_an_engine_that_it_takes_for_another(
    a: ValkeyStore, b: ValkeyStore
) -> None:
    a._keeping[1].cancel()  # no beats but this one
    await command(b, "DEL", f"rdv:gw:{a.gateway}")
    _, born = await a._do("beat", "another", "candidate", 0, 6000)
    assert born == b._born
    assert await b.gateways() == [b.gateway]


async def test_mail_goes_on_after_a_restart_without_memory(
    server: ValkeyServer, a: ValkeyStore, b: ValkeyStore
) -> None:
    await a.send([(b.gateway, b"before")])
    assert await read(b) == [b"before"]
    async with asyncio.TaskGroup() as tasks:
        reader = tasks.create_task(read(b))
        server.restart()
        await away(a, b)
        await back(a, b)
        assert await a.send([(b.gateway, b"after")]) == [True]
    assert reader.result() == [b"after"]


async def test_restart_with_memory_is_noticed_and_claims_are_still_there() -> None:
    with ValkeyServer(persist=True) as server:
        async with ValkeyStore(server.url) as a:
            await a.take("s/1", 7, b"facts", LONG_S)
            before = a.blank_since
            server.restart(keep=True)
            await away(a)
            await back(a)
            assert a.blank_since > before
            assert await a.find("s/1") == Claim(a.gateway, 7, b"facts", alive=True)


async def test_letters_that_were_read_are_not_there_again_after_a_restart_with_memory() -> None:
    with ValkeyServer(persist=True) as server:
        async with ValkeyStore(server.url) as a, ValkeyStore(server.url) as b:
            await a.send([(b.gateway, b"before")])
            assert await read(b) == [b"before"]
            server.restart(keep=True)
            await away(a, b)
            await back(a, b)
            await a.send([(b.gateway, b"after")])
            assert await mail(b) == [b"after"]


async def test_letters_that_were_not_read_outlast_a_restart_with_memory() -> None:
    with ValkeyServer(persist=True) as server:
        async with ValkeyStore(server.url) as a, ValkeyStore(server.url) as b:
            await a.send([(b.gateway, str(n).encode()) for n in range(100)])
            first = await read(b)
            server.restart(keep=True)
            await away(a, b)
            await back(a, b)
            await a.send([(b.gateway, b"100")])
            assert [*first, *await mail(b)] == [str(n).encode() for n in range(101)]


async def test_letters_arrive_though_the_new_engine_has_its_clock_behind(
    a: ValkeyStore, b: ValkeyStore
) -> None:
    inbox = f"rdv:in:{b.gateway}:0"
    await command(a, "XADD", inbox, f"{2**60}-0", "letter", "of the future")
    assert await read(b) == [b"of the future"]
    before = b.blank_since
    await command(a, "FLUSHALL")
    await until(lambda: b.blank_since > before)
    while await a.send([(b.gateway, b"now")]) == [False]:
        pass  # it is not alive again yet
    assert await read(b) == [b"now"]


@pytest.mark.parametrize(
    "lost",
    [
        *("story:s1", "stories:told", "stories:kept"),
        *(f"table:stories{part}" for part in ("", ":rows", ":changed", ":gone")),
    ],
)
async def test_stories_are_told_on_and_kept_within_bounds_though_the_engine_evicts(
    a: ValkeyStore, lost: str
) -> None:
    for n in range(20):
        await a.tell([Passage(f"s{n % 12}", b"head", [b"x" * 1000] * 2)], KEEP)
    await a.tell([Passage("old", b"head", [b"line"])], KEEP)
    await command(a, "DEL", f"rdv:{lost}")
    for n in range(200):
        await a.tell([Passage(f"s{n % 12}", b"head", [b"%d" % n, b"y" * 1000])], KEEP)
        story = await a.told(f"s{n % 12}", 0, 100_000)
        assert story.last == story.first + len(story.lines) - 1
        assert story.lines[-2:] == [b"%d" % n, b"y" * 1000]
    rows = (await a.changes(STORIES, 0)).rows
    assert rows == {f"s{n % 12}": b"head" for n in range(190, 200)}
    keys = set(await command(a, "KEYS", "rdv:story:*"))
    assert keys - {b"rdv:story:old"} == {f"rdv:story:{name}".encode() for name in rows}


async def test_stories_go_in_their_order_though_the_new_engine_has_its_clock_behind(
    a: ValkeyStore,
) -> None:
    await a.tell([Passage("s0", b"", [])], KEEP)
    await command(a, "ZADD", "rdv:stories:told", 2**52, "s0")
    for n in range(1, 12):
        await a.tell([Passage(f"s{n}", b"", [])], KEEP)
    rows = (await a.changes(STORIES, 0)).rows
    assert set(rows) == {f"s{n}" for n in range(2, 12)}


async def test_stories_are_told_to_an_engine_that_forgot_the_scripts(a: ValkeyStore) -> None:
    await a.tell([Passage("s", b"", [b"1"])], KEEP)
    await command(a, "SCRIPT", "FLUSH")
    await a.tell([Passage("s", b"", [b"2"])], KEEP)
    assert await a.told("s", 0, 100) == Told(1, [b"1", b"2"], 2)


async def test_stories_outlast_a_restart_with_memory() -> None:
    with ValkeyServer(persist=True) as server:
        async with ValkeyStore(server.url) as a:
            for n in range(30):
                await a.tell([Passage(f"s{n % 3}", b"head %d" % n, [b"x" * 400] * 3)], KEEP)
            before = [await a.told(f"s{n}", 0, 100_000) for n in range(3)]
            rows = await a.changes(STORIES, 0)
            server.restart(keep=True)
            await away(a)
            await back(a)
            assert [await a.told(f"s{n}", 0, 100_000) for n in range(3)] == before
            assert await a.changes(STORIES, 0) == rows


async def test_long_absence_makes_what_the_engine_knows_doubtful(
    server: ValkeyServer, a: ValkeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(valkey, "LONG_AWAY_S", 0.1)
    before = a.blank_since
    server.pause()
    await until(lambda: a.away_s > 0.1)
    server.resume()
    await back(a)
    assert a.blank_since > before


async def test_lost_connection_is_no_lost_memory(a: ValkeyStore, b: ValkeyStore) -> None:
    await a.claim("s/1", b"facts", LONG_S)
    before = a.blank_since
    await command(b, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await away(a)
    await back(a)
    assert a.blank_since == before
    assert await a.find("s/1") == Claim(a.gateway, 1, b"facts", alive=True)


async def test_letters_outlast_a_lost_connection(a: ValkeyStore, b: ValkeyStore) -> None:
    await a.send([(b.gateway, b"letter")])
    await a.take("s/1", 1, b"", LONG_S)
    await command(a, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await away(b)
    await back(b)
    assert await mail(b) == [b"letter", Taken("s/1", 1, a.gateway)]


async def test_process_that_was_taken_for_dead_learns_so(a: ValkeyStore, b: ValkeyStore) -> None:
    before = a.blank_since
    await command(b, "DEL", f"rdv:gw:{a.gateway}")
    await until(lambda: a.blank_since > before)
    assert a.gateway in await b.gateways()
    await b.send([(a.gateway, b"hello")])
    assert await mail(a) == [b"hello"]


async def test_dead_process_is_noticed_without_anybody_saying_so(
    server: ValkeyServer, b: ValkeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(valkey, "ALIVE_S", 0.3)
    async with ValkeyStore(server.url) as a:
        await a.claim("s/1", b"", LONG_S)
        a._keeping[1].cancel()  # no beats any more
        async with asyncio.timeout(WAIT_S):
            while a.gateway in await b.gateways():
                pass
        claim = await b.find("s/1")
        assert claim is not None
        assert not claim.alive
        assert await b.send([(a.gateway, b"letter")]) == [False]
