"""Proves that what is heard is told, once and in bounds, and that all gateways see the same."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import quote

import pytest

from gateway import events
from gateway.ops import recorder as recorder_module
from gateway.ops.recorder import Recorder
from gateway.ops.redaction import MOST_BYTES
from gateway.ops.story import FAILURES, Failure, Summary
from gateway.registry.servers import ServerDefinition
from gateway.sessions.record import Reason
from gateway.store.base import STORIES, Keep, Passage, StoreAway
from gateway.store.memory import Engine, MemoryStore
from gateway.store.valkey import ValkeyStore
from tests.fakes.valkey import ValkeyServer

WAIT_S = 20.0
KEEP = Keep(story_bytes=256 * 1024, all_bytes=16 * 1024 * 1024, stories=4000, ttl_s=86_400.0)
PLANTED = "Zx9/pl+an:ted 'sécret' \"7\""


class WatchedStore(MemoryStore):
    """Notes what is told, and can be held up while it is."""

    def __init__(self, engine: Engine | None = None) -> None:
        super().__init__(engine)
        self.tells: list[list[Passage]] = []
        self.reads = 0
        self.going_on = asyncio.Event()
        self.going_on.set()
        self.held_up = asyncio.Event()

    async def tell(self, passages: Sequence[Passage], keep: Keep) -> None:
        self.held_up.set()
        await self.going_on.wait()
        await super().tell(passages, keep)
        self.tells.append(list(passages))

    async def changes(self, table: str, since: int) -> Any:
        self.reads += table == STORIES
        return await super().changes(table, since)


class House:
    """A gateway process as far as its recorder can tell."""

    def __init__(self, store: Any, servers: Mapping[str, ServerDefinition] | None = None) -> None:
        self.servers = dict(servers or {"web": ServerDefinition(name="web", command="x")})
        self.now = 1000.0
        self.store = store
        self.recorder = Recorder(store, KEEP, self.servers.get, lambda: self.now)

    def hear(self, *heard: events.Event) -> None:
        for event in heard:
            self.now += 1.0
            self.recorder.hear(event)

    async def lines(self, session: str = "s1", after: int = 0) -> list[dict[str, Any]]:
        told = await self.recorder.told(session, after, 10_000_000)
        return [json.loads(line) for line in told.lines]

    async def said(self, session: str = "s1") -> list[str]:
        return [line["event"] for line in await self.lines(session)]

    async def summary(self, session: str = "s1") -> Summary:
        summary = await self.recorder.summary(session)
        assert summary is not None
        assert (await self.recorder.summaries())[session] == summary
        return summary


@asynccontextmanager
async def kept(house: House) -> AsyncIterator[None]:
    """Let a recorder tell the store by itself."""
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as tasks:
        keeping = tasks.create_task(house.recorder.keep(), name="recorder")
        while not house.recorder._keeping:  # noqa: ASYNC110 - it begins with the next turn
            await asyncio.sleep(0)
        yield
        keeping.cancel()


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with WatchedStore() as store:
        yield House(store)


@pytest.fixture
async def engine() -> Engine:
    return Engine()


@pytest.fixture
async def two(engine: Engine) -> AsyncIterator[tuple[House, House]]:
    async with WatchedStore(engine) as one, WatchedStore(engine) as other:
        yield House(one), House(other)


@pytest.fixture
def no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """What others do is seen at once."""
    monkeypatch.setattr(recorder_module, "FRESH_S", 0.0)


@contextmanager
def room_for(monkeypatch: pytest.MonkeyPatch, size: int) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(recorder_module, "NEWS_BYTES", size)
        yield


def requested(session: str = "s1", server: str = "web", client: str = "c") -> events.Requested:
    return events.Requested(session=session, server=server, principal="joe", client=client)


def hydrated(session: str = "s1") -> events.Hydrated:
    return events.Hydrated(session=session, server="web", principal="joe", launch="l1", age_s=1.0)


def closed(session: str = "s1", reason: str = Reason.IDLE, detail: str = "") -> events.Closed:
    return events.Closed(
        session=session, reason=reason, seconds=1.0, calls=0, dropped=0, peak_buffer_bytes=0,
        detail=detail,
    )  # fmt: skip


def passed(session: str = "s1", call: str = "1", payload: bytes = b"") -> events.Passed:
    return events.Passed(
        session=session, to="child", kind="request", method="tools/call", tool="echo", call=call,
        bytes=len(payload), payload=payload,
    )  # fmt: skip


def finished(
    session: str = "s1", call: str = "1", outcome: str = "ok", payload: bytes = b""
) -> events.CallFinished:
    return events.CallFinished(
        session=session, server="web", call=call, method="tools/call", tool="echo",
        outcome=outcome, ms=1.0, bytes_in=10, bytes_out=20, payload=payload,
    )  # fmt: skip


def stderr(text: str, session: str = "s1") -> events.ChildLog:
    return events.ChildLog(session=session, text=text)


# Telling


async def test_what_was_heard_is_told_in_order_with_its_time(house: House) -> None:
    house.hear(requested(), stderr("one"), stderr("two"))
    lines = await house.lines()
    assert lines[0] == {
        "at": 1001.0, "event": "requested", "server": "web", "principal": "joe", "client": "c",
        "rebuilt": False, "gateway": house.store.gateway,
    }  # fmt: skip
    assert [(line["at"], line.get("text")) for line in lines[1:]] == [
        (1002.0, "one"), (1003.0, "two"),
    ]  # fmt: skip


async def test_news_of_many_sessions_is_told_in_one_step(house: House) -> None:
    assert isinstance(house.store, WatchedStore)
    house.hear(*[requested(f"s{n}") for n in range(50)], *[stderr("x", f"s{n}") for n in range(50)])
    await house.recorder.flush()
    assert [len(passages) for passages in house.store.tells] == [50]
    assert all(len(passage.lines) == 2 for passage in house.store.tells[0])


async def test_reader_who_follows_does_not_make_every_line_a_step_of_its_own(house: House) -> None:
    assert isinstance(house.store, WatchedStore)
    house.hear(requested(), stderr("one"))
    told = await house.recorder.told("s1", 0, 1000, settled=False)
    assert (told.lines, house.store.tells) == ([], [])
    assert await house.said() == ["requested", "stderr"]


async def test_nothing_is_told_twice(house: House) -> None:
    house.hear(requested(), stderr("one"))
    await house.recorder.flush()
    await house.recorder.flush()
    house.hear(stderr("two"))
    assert await house.said() == ["requested", "stderr", "stderr"]


async def test_a_long_backlog_is_told_in_steps(house: House) -> None:
    assert isinstance(house.store, WatchedStore)
    house.hear(requested(), *[stderr(f"{n} " + "x" * 1900) for n in range(600)])
    await house.recorder.flush()
    assert len(house.store.tells) == 3
    told = [line for [passage] in house.store.tells for line in passage.lines]
    assert len(told) == 601


async def test_it_keeps_telling_by_itself(house: House) -> None:
    async with kept(house):
        with house.recorder.following("s1") as news:
            house.hear(requested())
            await news.wait()
            news.clear()
            house.hear(stderr("one"))
            await news.wait()
        assert [line["event"] for line in map(json.loads, await raw(house))] == [
            "requested",
            "stderr",
        ]


async def raw(house: House, session: str = "s1") -> Sequence[bytes]:
    """Return the lines that the store has, without telling it anything."""
    told = await house.store.told(session, 0, 10_000_000)
    return list(told.lines)


async def test_a_reader_does_not_wait_for_the_next_round(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "FLUSH_EVERY_S", 3600.0)
    async with kept(house):
        house.hear(requested())
        assert await house.said() == ["requested"]


async def test_a_reader_who_leaves_does_not_let_lines_be_told_twice(house: House) -> None:
    assert isinstance(house.store, WatchedStore)
    house.store.going_on.clear()
    async with kept(house):
        house.hear(requested())
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(house.lines())
            await house.store.held_up.wait()
            reading.cancel()
        house.store.going_on.set()
        assert await house.said() == ["requested"]


async def test_readers_are_told_when_the_recorder_stops(house: House) -> None:
    assert isinstance(house.store, WatchedStore)
    house.store.going_on.clear()
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as tasks:
        keeping = tasks.create_task(house.recorder.keep())
        house.hear(requested())
        await house.store.held_up.wait()
        reading = [tasks.create_task(away(house, "stops")) for _ in range(2)]
        while not house.recorder._askers:  # noqa: ASYNC110 - they begin with the next turn
            await asyncio.sleep(0)
        keeping.cancel()
    assert [task.result() for task in reading] == [True, True]


async def away(house: House, why: str | None = None) -> bool:
    with pytest.raises(StoreAway, match=why):
        await house.recorder.told("s1", 0, 1)
    return True


async def test_the_end_waits_for_a_silent_store_only_so_long(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(house.store, WatchedStore)
    monkeypatch.setattr(recorder_module, "FLUSH_S", 0.01)
    house.store.going_on.clear()
    house.hear(requested())
    async with asyncio.timeout(WAIT_S):
        await house.recorder.flush()
    house.store.going_on.set()
    assert await house.said() == ["requested"]


async def test_others_have_their_turn_while_much_becomes_lines(house: House) -> None:
    house.hear(requested(), *[stderr("x") for _ in range(1000)])
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        counting = tasks.create_task(count())
        await house.recorder.flush()
        counting.cancel()
    assert turns >= 1000 // recorder_module.TURN


async def test_only_followers_of_a_session_hear_of_it(house: House) -> None:
    with (
        house.recorder.following("s1") as one,
        house.recorder.following("s1") as same,
        house.recorder.following("s2") as other,
    ):
        house.hear(requested())
        await house.recorder.flush()
        assert (one.is_set(), same.is_set(), other.is_set()) == (True, True, False)
    assert house.recorder._followers == {}


# What a server wants recorded


def recorded(how: Any, **facts: Any) -> dict[str, ServerDefinition]:
    return {"web": ServerDefinition(name="web", command="x", record=how, **facts)}


async def test_messages_are_not_told_of_a_server_that_is_not_recorded(house: House) -> None:
    house.servers |= recorded("off")
    house.hear(requested(), passed(), finished(outcome="error"), stderr("x"), closed())
    assert await house.said() == ["requested", "stderr", "closed"]
    assert (await house.summary()).calls == 1
    assert [failure.cause for failure in await house.recorder.failures()] == ["error"]


async def test_payloads_are_told_only_of_a_server_that_wants_it(house: House) -> None:
    house.hear(requested(), passed(payload=b'{"a":1}'), finished(payload=b'{"b":2}'))
    assert not any("payload" in line for line in await house.lines())


async def test_payloads_are_told_redacted_and_cut_with_their_size(house: House) -> None:
    house.servers |= recorded("payloads", record_bytes=20, redact=["joe"])
    house.hear(requested(), passed(payload=b'{"password":"x","u":"joe"}'))
    house.hear(finished(payload=b'{"b":"joe"}'))
    _, first, second = await house.lines()
    assert (first["payload"], first["payload_bytes"]) == ('{"password":"[redact', 26)
    assert (second["payload"], second["payload_bytes"]) == ('{"b":"[redacted]"}', 11)


@pytest.mark.parametrize("size", [recorder_module.HEAVY_BYTES * 2, MOST_BYTES, MOST_BYTES + 1])
async def test_large_payloads_are_told_in_their_place(house: House, size: int) -> None:
    house.servers |= recorded("payloads", record_bytes=4)
    payload = b'"' + b"x" * (size - 2) + b'"'
    house.hear(requested(), stderr("a"), passed(payload=payload), stderr("b"))
    lines = await house.lines()
    assert [line["event"] for line in lines] == ["requested", "stderr", "message", "stderr"]
    assert lines[2]["payload_bytes"] == size
    kept = '"xxx' if size <= MOST_BYTES else f"({size} bytes: too large to redact)"
    assert lines[2]["payload"] == kept


async def test_a_payload_that_is_too_large_is_not_held_in_memory(house: House) -> None:
    house.servers |= recorded("payloads")
    house.hear(requested(), passed(payload=b"x" * (2 * MOST_BYTES)))
    assert house.recorder._bytes < 10_000
    assert not any(getattr(event, "payload", b"") for _, event, _, _ in house.recorder._news)


async def test_a_reader_who_leaves_takes_no_news_along(house: House) -> None:
    house.servers |= recorded("payloads")
    house.hear(requested(), passed(payload=b'"' + b"x" * 100_000 + b'"'), stderr("b"))
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(house.recorder.summaries())
        while len(house.recorder._news) > 1:  # noqa: ASYNC110 - the payload is being redacted
            await asyncio.sleep(0)
        reading.cancel()
    assert await house.said() == ["requested", "message", "stderr"]


async def test_a_definition_that_has_changed_is_the_one_that_counts(house: House) -> None:
    house.servers |= recorded("messages", env={"A": "first-value"})
    house.hear(requested(), stderr("first-value second-value"))
    await house.recorder.flush()
    house.servers |= recorded("messages", env={"A": "second-value"})
    house.hear(stderr("first-value second-value"))
    _, before, after = await house.lines()
    assert (before["text"], after["text"]) == (
        "[redacted] second-value",
        "first-value [redacted]",
    )


async def test_a_private_key_on_stderr_is_not_told(house: House) -> None:
    key = ["-----BEGIN PRIVATE KEY-----", "MIIEvQIBADAN", "Bgkqhki", "-----END PRIVATE KEY-----"]
    house.hear(requested(), *map(stderr, key), stderr("after"))
    texts = [line["text"] for line in (await house.lines())[1:]]
    assert texts == ["[redacted]"] * 4 + ["after"]


SPELLED: dict[str, Callable[[str], str]] = {
    "raw": str,
    "base64": lambda v: base64.b64encode(v.encode()).decode(),
    "base64 after 1": lambda v: base64.b64encode(b"j" + v.encode() + b"!").decode(),
    "base64 after 2": lambda v: base64.b64encode(b"j:" + v.encode() + b"!!").decode(),
    "base64 for URLs": lambda v: base64.urlsafe_b64encode(v.encode()).decode(),
    "hexadecimal": lambda v: v.encode().hex(),
    "URL": quote,
    "URL, whole": lambda v: quote(v, safe=""),
    "JSON": json.dumps,
    "JSON, not ASCII": lambda v: json.dumps(v, ensure_ascii=False),
    "JSON in JSON": lambda v: json.dumps(json.dumps(v)),
    "tail": lambda v: v + "x" * 3000,
    "late": lambda v: "x" * 1990 + v,
}


@pytest.mark.parametrize("how", SPELLED)
async def test_a_planted_secret_is_nowhere_in_what_is_told(house: House, how: str) -> None:
    house.servers |= recorded("payloads", env={"KEY": PLANTED})
    planted = SPELLED[how](PLANTED)
    for at in range(3):
        house.hear(
            requested(client=planted),
            passed(call=planted, payload=json.dumps({"a": [planted], planted: planted}).encode()),
            events.Passed(
                session="s1", to="client", kind="request", method=planted, tool=planted, call="7",
                bytes=1, payload=planted.encode(),
            ),
            finished(call=planted, outcome="error", payload=json.dumps(planted).encode()),
            stderr(f"{'.' * at}{planted}"),
            events.Noise(session="s1", sample=planted, total=1),
            events.Dropped(session="s1", what=planted, why=planted, total=1),
            events.Parted(session="s1", epoch=1, cause=planted),
            events.Breach(session="s1", cause=planted),
            events.NotLearned(session="s1", server="web", era="modern", why=planted),
            events.NotParked(server="web", why=planted),
            events.Launched(session="s1", launch="l1", dyno=planted),
            closed(reason=Reason.PROCESS_EXIT, detail=planted),
        )  # fmt: skip
    await house.recorder.flush()
    heads = (await house.store.changes(STORIES, 0)).rows["s1"]
    everything = b"\n".join([*await raw(house), *await raw(house, FAILURES), heads or b""])
    for encode in SPELLED.values():
        form = encode(PLANTED).strip("x").strip("\\\"'")
        for written in (form, json.dumps(form)[1:-1], json.dumps(form, ensure_ascii=False)[1:-1]):
            assert written.encode() not in everything
    for part in ("pl+an", "pl%2Ban", "sécret", "s\\u00e9cret", "s%C3%A9cret"):
        assert part.encode() not in everything
    assert everything.count(b"[redacted]") >= 3 * 12


# Summaries


async def test_a_summary_has_what_is_not_told_yet(house: House) -> None:
    house.hear(requested(), finished())
    summary = await house.summary()
    assert (summary.state, summary.calls, summary.gateway) == ("requested", 1, house.store.gateway)


async def test_a_session_that_nobody_knows_has_no_summary(house: House) -> None:
    assert await house.recorder.summary("s1") is None
    assert await house.recorder.summaries() == {}


async def test_a_summary_that_was_read_does_not_change(house: House) -> None:
    house.hear(requested())
    before = await house.summary()
    house.hear(finished())
    assert (await house.summary()).calls == 1
    assert before.calls == 0


async def test_a_closed_session_is_still_listed_and_takes_no_memory(house: House) -> None:
    house.hear(requested(), passed(), closed())
    await house.recorder.flush()
    assert (await house.summary()).state == "closed"
    assert house.recorder._tales == {}
    assert house.recorder._servers == {}
    assert house.recorder._bytes == 0


async def test_what_comes_after_the_end_is_told_and_does_not_reopen_it(house: House) -> None:
    house.hear(requested(), closed())
    await house.recorder.flush()
    house.hear(finished(outcome="child_exited"))
    assert await house.said() == ["requested", "closed", "call"]
    summary = await house.summary()
    assert (summary.state, summary.calls, summary.errors) == ("closed", 1, 1)


async def test_a_session_that_is_asked_for_again_begins_anew_in_the_same_story(
    house: House,
) -> None:
    house.hear(requested(), finished(), closed())
    await house.recorder.flush()
    house.hear(requested())
    assert (await house.summary()).calls == 0
    assert await house.said() == ["requested", "call", "closed", "requested"]
    assert (await house.summary()).state == "requested"


async def test_a_session_whose_beginning_was_missed_is_told_all_the_same(house: House) -> None:
    house.hear(stderr("x"), passed())
    assert await house.said() == ["stderr", "message"]
    house.hear(finished())
    summary = await house.summary()
    assert (summary.server, summary.calls, summary.running) == ("", 1, 0)


async def test_the_server_of_a_session_is_known_at_once_and_until_the_end(house: House) -> None:
    assert house.recorder.server_of("s1") == ""
    house.hear(requested(), requested("s2", server="db"))
    assert (house.recorder.server_of("s1"), house.recorder.server_of("s2")) == ("web", "db")
    house.hear(closed())
    assert house.recorder.server_of("s1") == "web"


async def test_the_table_is_read_at_most_every_half_second_and_by_one(house: House) -> None:
    assert isinstance(house.store, WatchedStore)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(20):
            tasks.create_task(house.recorder.summaries())
    assert house.store.reads == 1


async def test_an_operators_act_is_in_the_story_of_its_session(house: House) -> None:
    house.hear(requested())
    await house.recorder.flush()
    house.hear(events.Operated(action="kill", subject="s1", source="10.0.0.1"))
    house.hear(events.Operated(action="kill", subject="s2", source="10.0.0.1"))
    assert await house.said() == ["requested", "operated"]
    assert await house.said("s2") == []


# Failures


async def test_failures_are_read_newest_first(house: House) -> None:
    house.hear(requested(), finished(outcome="error"), closed(reason=Reason.PROCESS_EXIT))
    house.hear(events.NotListed(why="403"), finished(outcome="ok"))
    found = await house.recorder.failures()
    assert [(failure.at, failure.cause) for failure in found] == [
        (1004.0, "not_listed"), (1003.0, "process_exit"), (1002.0, "error"),
    ]  # fmt: skip
    assert found[2] == Failure(
        at=1002.0, cause="error", server="web", principal="joe", session="s1", call="1",
        method="tools/call", tool="echo",
    )  # fmt: skip


async def test_only_the_newest_failures_are_read(house: House) -> None:
    house.hear(*[events.NotListed(why=str(n)) for n in range(10)])
    assert [failure.detail for failure in await house.recorder.failures(3)] == ["9", "8", "7"]
    assert await house.recorder.failures(0) == []


async def test_failures_are_read_to_the_end(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "PAGE_BYTES", 200)
    house.hear(*[events.NotListed(why=str(n)) for n in range(50)])
    assert len(await house.recorder.failures()) == 50


async def test_the_story_of_failures_is_no_session(house: House) -> None:
    house.hear(events.NotListed(why="403"))
    await house.recorder.flush()
    assert (await house.store.changes(STORIES, 0)).rows == {FAILURES: b"{}"}
    assert await House(house.store).recorder.summaries() == {}


async def test_failures_of_another_release_are_passed_over(house: House) -> None:
    await house.store.tell([Passage(FAILURES, b"{}", [b'{"odd":1}'])], KEEP)
    house.hear(events.NotListed(why="403"))
    assert [failure.cause for failure in await house.recorder.failures()] == ["not_listed"]


async def test_summaries_of_another_release_are_passed_over(house: House) -> None:
    await house.store.tell([Passage("s9", b'{"session":7}', [b"{}"])], KEEP)
    house.hear(requested())
    assert (await house.recorder.summaries()).keys() == {"s1"}


# The store is away, or memory is short


async def test_nothing_is_lost_while_the_store_is_away(
    two: tuple[House, House], engine: Engine
) -> None:
    house, _ = two
    house.hear(requested())
    engine.away = True
    await house.recorder.flush()
    house.hear(stderr("one"), finished(outcome="error"))
    await house.recorder.flush()
    with pytest.raises(StoreAway):
        await house.lines()
    with pytest.raises(StoreAway):
        await house.recorder.failures()
    assert (await house.recorder.summaries())["s1"].calls == 1
    engine.away = False
    assert await house.said() == ["requested", "stderr", "call"]
    assert len(await house.recorder.failures()) == 1


async def test_it_keeps_on_after_the_store_was_away(
    two: tuple[House, House], engine: Engine
) -> None:
    house, _ = two
    engine.away = True
    async with kept(house):
        house.hear(requested())
        assert await away(house)
        engine.away = False
        assert await house.said() == ["requested"]


@pytest.mark.parametrize("absorbed", [False, True])
async def test_what_has_no_room_is_dropped_oldest_first_and_said(
    two: tuple[House, House], engine: Engine, monkeypatch: pytest.MonkeyPatch, absorbed: bool
) -> None:
    house, _ = two
    engine.away = True
    with room_for(monkeypatch, 20_000):
        house.hear(requested(), finished(outcome="error"))
        for n in range(200):
            house.hear(stderr(f"{n} " + "x" * 200))
            if absorbed and n % 10 == 0:
                await house.recorder.flush()
            assert house.recorder._bytes <= 20_000
        house.hear(finished())
        engine.away = False
        gap, *lines = await house.lines()
    assert gap["event"] == "gap"
    assert gap["dropped"] + len(lines) == 203
    assert [line["text"].split()[0] for line in lines[:-1]] == [
        str(n) for n in range(201 - len(lines), 200)
    ]
    assert lines[-1]["event"] == "call"
    summary = await house.summary()
    assert (summary.server, summary.calls, summary.errors) == ("web", 2, 1)
    failures = [json.loads(line) for line in await raw(house, FAILURES)]
    assert failures == [{"at": gap["at"], "event": "gap", "dropped": 1}]
    assert await house.recorder.failures() == []
    assert house.recorder._bytes == 0


async def test_a_session_that_ended_while_there_was_no_room_is_closed_and_forgotten(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with room_for(monkeypatch, 3000):
        house.hear(requested(), stderr("x"), closed())
        house.hear(*[stderr("x", "s2") for _ in range(10)])
        assert (await house.lines())[0]["dropped"] == 3
    assert (await house.summary()).state == "closed"
    assert house.recorder._tales == {}


async def test_what_is_being_told_when_it_fails_is_told_before_newer_news(
    two: tuple[House, House], engine: Engine
) -> None:
    house, _ = two
    assert isinstance(house.store, WatchedStore)
    house.store.going_on.clear()
    house.hear(requested(), stderr("one"))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(house.recorder.flush())
        await house.store.held_up.wait()
        house.hear(stderr("two"))
        await house.recorder.summaries()
        engine.away = True
        house.store.going_on.set()
    engine.away = False
    assert [line.get("text") for line in await house.lines()] == [None, "one", "two"]


# Several gateways


@pytest.mark.usefixtures("no_delay")
async def test_a_gateway_sees_the_sessions_of_another(two: tuple[House, House]) -> None:
    one, other = two
    one.hear(requested(), finished())
    await one.recorder.flush()
    assert await other.summary() == await one.summary()
    one.hear(finished(), closed())
    await one.recorder.flush()
    assert await other.summary() == await one.summary()
    assert await other.said() == ["requested", "call", "call", "closed"]
    assert other.recorder.server_of("s1") == "web"


@pytest.mark.usefixtures("no_delay")
@pytest.mark.parametrize("told_first", [True, False])
async def test_a_session_that_moves_keeps_its_numbers(
    two: tuple[House, House], told_first: bool
) -> None:
    one, other = two
    one.hear(requested(client="inspector"), passed(), finished())
    one.hear(passed(call="2"), events.HandedOver(session="s1", calls=1))
    if told_first:
        await one.recorder.flush()
    other.hear(hydrated(), finished(call="2"), passed(call="3"))
    await other.recorder.flush()
    await one.recorder.flush()
    for house in two:
        summary = await house.summary()
        assert (summary.gateway, summary.state) == (other.store.gateway, "launching")
        if told_first:
            assert (summary.client, summary.opened) == ("inspector", 1001.0)
            assert (summary.calls, summary.running) == (2, 1)
    said = await one.lines()
    [handed] = [line for line in said if line["event"] == "handed_over"]
    [came] = [line for line in said if line["event"] == "hydrated"]
    assert (handed["gateway"], came["gateway"]) == (one.store.gateway, other.store.gateway)
    assert one.recorder._tales == {}


@pytest.mark.usefixtures("no_delay")
async def test_a_line_from_elsewhere_does_not_change_a_summary(two: tuple[House, House]) -> None:
    one, other = two
    one.hear(requested())
    await one.recorder.flush()
    await other.recorder.summaries()
    one.hear(finished())
    await one.recorder.flush()
    other.hear(events.PlatformSaid(session="s1", dyno="run.1", state="crashed", exit_status=1))
    await other.recorder.flush()
    assert (await other.summary()).calls == 1
    assert (await one.summary()).calls == 1
    assert await one.said() == ["requested", "call", "platform_said"]
    assert other.recorder._tales == {}


@pytest.mark.usefixtures("no_delay")
async def test_a_summary_of_ours_that_another_wrote_over_is_told_again(
    two: tuple[House, House],
) -> None:
    one, other = two
    one.hear(requested())
    await one.recorder.flush()
    stale = Passage("s1", b'{"session":"s1","state":"closed"}', [])
    await other.store.tell([stale], KEEP)
    assert (await other.summary()).state == "closed"
    await one.recorder.summaries()
    await one.recorder.flush()
    assert (await other.summary()).state == "requested"
    assert isinstance(one.store, WatchedStore)
    assert len(one.store.tells) == 2


@pytest.mark.usefixtures("no_delay")
async def test_summaries_are_told_again_once_the_store_has_lost_them(
    two: tuple[House, House], engine: Engine
) -> None:
    one, other = two
    one.hear(requested(), requested("s2"))
    await one.recorder.flush()
    engine.forget()
    assert await other.recorder.summaries() == {}
    other.hear(requested("s3"))
    await other.recorder.flush()
    await one.recorder.summaries()
    await one.recorder.flush()
    assert (await other.recorder.summaries()).keys() == {"s1", "s2", "s3"}


@pytest.mark.usefixtures("no_delay")
async def test_failures_of_all_gateways_are_read_together(two: tuple[House, House]) -> None:
    one, other = two
    one.hear(events.NotListed(why="one"))
    await one.recorder.flush()
    other.hear(events.NotListed(why="other"))
    assert [failure.detail for failure in await other.recorder.failures()] == ["other", "one"]


@pytest.mark.timeout(120)
async def test_two_gateways_on_a_real_engine_see_the_same(no_delay: None) -> None:
    with ValkeyServer() as server:
        async with (
            asyncio.timeout(WAIT_S),
            ValkeyStore(server.url) as here,
            ValkeyStore(server.url) as there,
        ):
            one, other = House(here), House(there)
            async with kept(one):
                one.hear(requested(client="\ud800\x1b"), passed(), finished(outcome="error"))
                assert await one.said() == ["requested", "message", "call"]
                one.hear(events.HandedOver(session="s1", calls=0))
                assert (await one.said())[-1] == "handed_over"
            other.hear(hydrated(), finished(), closed())
            assert (await other.said())[3:] == ["handed_over", "hydrated", "call", "closed"]
            summary = await one.summary()
            assert (summary.state, summary.calls, summary.errors) == ("closed", 2, 1)
            assert summary == await other.summary()
            assert [failure.cause for failure in await one.recorder.failures()] == ["error"]
