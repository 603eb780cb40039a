"""Orphans and ghosts of several processes: one asks the platform, all look after their own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from gateway import events
from gateway.errors import LinkLostError
from gateway.fleet import book as books
from gateway.fleet.ledger import POOL
from gateway.launchers.base import Dyno, LaunchOrder
from gateway.sessions import reconciler
from gateway.sessions.record import State
from tests.fakes.house import eventually
from tests.fakes.launchers import Scripted
from tests.fleet.crew import BYE, FOREVER, NOW, Crew, Process, definition, hurry

if TYPE_CHECKING:
    from collections.abc import Sequence

ORPHAN = "0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


def owner(process: Process, launch_id: str) -> str | None:
    entry = process.book.running(launch_id)
    return None if entry is None else entry.owner


def gone(*processes: Process) -> list[Any]:
    return [event for process in processes for event in process.of(events.OrphanGone)]


async def heard_of(crew: Crew, process: Process, times: int = 4) -> None:
    """Wait until a process has compared some more lists with what it knows."""
    number = process.reconciler._number
    await eventually(lambda: process.reconciler._number >= number + times)
    assert crew.launcher.lists


# One asks


async def test_one_of_three_processes_asks_the_platform_and_the_others_read_it() -> None:
    async with Crew() as crew:
        processes = await crew.start(3)
        asked = [0, 0, 0]
        for index, process in enumerate(processes):
            listing = process.fleet.list

            async def noting(index: int = index, listing: Any = listing) -> Sequence[Dyno]:
                asked[index] += 1
                return await listing()  # type: ignore[no-any-return]

            process.fleet.list = noting  # type: ignore[method-assign]
        for process in processes:
            await heard_of(crew, process, 10)
        assert sum(number > 0 for number in asked) == 1


async def test_next_process_asks_when_the_one_that_did_is_dead() -> None:
    async with Crew() as crew:
        one, other = await crew.start(2)
        await heard_of(crew, other)
        one.crash()
        await crew.looked()
        await heard_of(crew, other)


async def test_nobody_asks_while_the_engine_is_away() -> None:
    async with Crew() as crew:
        (one,) = await crew.start(1)
        await crew.looked()
        crew.engine.away = True
        lists, turns = crew.launcher.lists, 0
        while turns < 200:
            turns += 1
            await asyncio.sleep(0)
        assert crew.launcher.lists <= lists + 1
        crew.engine.away = False
        await crew.looked()
        assert one.runs


# Ghosts


async def test_process_that_does_not_ask_finds_the_ghosts_among_its_own_sessions() -> None:
    async with Crew() as crew:
        one, other = await crew.start(2)
        await heard_of(crew, one)
        live = other.opens()
        launch_id = await other.gets(live)
        await heard_of(crew, other)
        assert live.record.state is State.LAUNCHING
        live.record.state = State.PARTED
        del crew.launcher.running[launch_id]
        assert isinstance(await other.fails(live), LinkLostError)
        assert one.ended == {}


async def test_list_that_is_read_twice_is_counted_once() -> None:
    async with Crew() as crew:
        one, other = await crew.start(2)
        live = other.opens()
        launch_id = await other.gets(live)
        live.record.state = State.PARTED
        await heard_of(crew, other)
        listing, lists = crew.launcher.list, 0
        go = asyncio.Event()

        async def once_without() -> Sequence[Dyno]:
            nonlocal lists
            lists += 1
            dynos = await listing()
            if lists == 1:
                return [dyno for dyno in dynos if dyno.launch_id != launch_id]
            await go.wait()
            return dynos

        crew.launcher.list = once_without  # type: ignore[method-assign]
        await eventually(lambda: lists == 2)
        reading, reads = other.store.get, 0

        async def noting(name: str) -> bytes | None:
            nonlocal reads
            reads += name == "dynos"
            return await reading(name)

        other.store.get = noting  # type: ignore[method-assign]
        await eventually(lambda: reads > 4)
        assert (other.ended, live.record.over) == ({}, False)
        go.set()
        await heard_of(crew, other)
        assert (one.ended, live.record.over) == ({}, False)


# Orphans


async def test_dynos_of_other_living_processes_are_no_orphans() -> None:
    async with Crew(grace_s=0.0) as crew:
        one, other = await crew.start(2)
        for process in (one, other):
            await process.gets(process.opens())
        await crew.looked(10)
        assert (crew.launcher.stopped, gone(one, other)) == ([], [])


async def test_dyno_that_another_process_has_just_got_is_no_orphan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is in the ledger before it is in the list, though the leader has not read that yet."""
    monkeypatch.setattr(books, "REFRESH_S", FOREVER)
    async with Crew(grace_s=0.0) as crew:
        leader, other = await crew.start(2)
        await crew.looked()
        launch_id = await other.gets(other.opens())
        await crew.looked(10)
        assert (crew.launcher.stopped, gone(leader, other)) == ([], [])
        assert leader.book.running(launch_id) is not None


async def test_parked_dynos_are_no_orphans_wherever_they_stand() -> None:
    async with Crew(definition(warm=2), grace_s=0.0) as crew:
        processes = await crew.start(3)
        await processes[1].parks(await crew.order())
        await processes[2].parks(await crew.order())
        await crew.looked(10)
        assert crew.launcher.stopped == []


async def test_dyno_of_a_dead_process_is_stopped_and_billed_once() -> None:
    async with Crew(grace_s=0.05) as crew:
        one, *others = await crew.start(3)
        launch_id = await one.gets(one.opens())
        await crew.agree()
        crew.now += 100
        one.crash()
        await eventually(lambda: gone(*others))
        await crew.looked(10)
        (said,) = gone(*others)
        assert (said.launch, said.dyno_s, said.stopped) == (launch_id, 100.0, True)
        assert crew.launcher.stopped == [f"fake.{launch_id}"]
        (bill,) = (await crew.agree())["bills"]
        assert (bill["launch"], bill["principal"], bill["dyno_s"]) == (launch_id, "alice", 100.0)


async def test_dyno_of_a_dead_process_waits_for_who_inherits_its_session() -> None:
    async with Crew(grace_s=FOREVER) as crew:
        one, other = await crew.start(2)
        live = one.opens()
        launch_id = await one.gets(live)
        await crew.agree()
        one.crash()
        await crew.looked()
        crew.now += 10
        other.inherits(live)
        await crew.agree()
        await crew.looked(10)
        assert (crew.launcher.stopped, owner(other, launch_id)) == ([], other.name)


@pytest.mark.parametrize("asks", [True, False], ids=["by the leader", "by another one"])
async def test_dyno_of_a_session_that_was_let_go_and_that_nobody_took_is_stopped(
    asks: bool,
) -> None:
    async with Crew(grace_s=0.05) as crew:
        leader, follower = await crew.start(2)
        await heard_of(crew, follower)
        one, other = (leader, follower) if asks else (follower, leader)
        live = one.opens()
        launch_id = await one.gets(live)
        one.directory.remove(live, None)
        one.dynos.let_go(live)
        await eventually(lambda: gone(one, other))
        assert crew.launcher.stopped == [f"fake.{launch_id}"]
        assert len((await crew.agree())["bills"]) == 1


async def test_dyno_that_ended_since_the_list_was_asked_for_is_no_orphan() -> None:
    async with Crew() as crew:
        (one,) = await crew.start(1)
        live = one.opens()
        await one.gets(live)
        await crew.looked()
        listing = crew.launcher.list

        async def late() -> Sequence[Dyno]:
            dynos = await listing()
            crew.launcher.list = listing  # type: ignore[method-assign]
            one.end(live, *BYE)
            await one.fails(live)
            return dynos

        crew.launcher.list = late  # type: ignore[method-assign]
        await eventually(lambda: live.record.state is State.CLOSED)
        await crew.looked(5)
        assert (gone(one), len(crew.launcher.stopped)) == ([], 1)
        assert len((await crew.agree())["bills"]) == 1


async def test_dyno_that_nobody_ever_knew_is_stopped_by_one_process() -> None:
    async with Crew(grace_s=0.05) as crew:
        crew.launcher.clock = lambda: NOW - 50
        crew.launcher.runs(Dyno("app/1", ORPHAN))
        processes = await crew.start(3)
        await eventually(lambda: gone(*processes))
        await crew.looked(10)
        (said,) = gone(*processes)
        assert (said.launch, said.dyno_s) == (ORPHAN, 49.5)
        assert crew.launcher.stopped == ["app/1"]


async def test_new_leader_gives_orphans_their_grace_anew() -> None:
    async with Crew(grace_s=FOREVER) as crew:
        crew.launcher.runs(Dyno("app/1", ORPHAN))
        one, other = await crew.start(2)
        await eventually(lambda: ORPHAN in one.reconciler._strangers)
        assert other.reconciler._strangers == {}
        one.crash()
        await eventually(lambda: ORPHAN in other.reconciler._strangers)


async def test_nothing_is_called_an_orphan_while_the_engine_is_away() -> None:
    async with Crew(grace_s=0.0) as crew:
        one, other = await crew.start(2)
        launch_id = await one.gets(one.opens())
        await crew.agree()
        listing, listed = crew.launcher.list, 0

        async def then_away() -> Sequence[Dyno]:
            nonlocal listed
            listed += 1
            dynos = await listing()
            crew.engine.away = True
            return [*dynos, Dyno("app/1", ORPHAN)]

        crew.launcher.list = then_away  # type: ignore[method-assign]
        await eventually(lambda: listed)
        for _ in range(100):
            await asyncio.sleep(0)
        assert (crew.launcher.stopped, gone(one, other)) == ([], [])
        assert launch_id in crew.launcher.running
        crew.launcher.list = listing  # type: ignore[method-assign]


# What is gone


async def test_dyno_that_died_with_its_process_is_billed_until_it_was_listed_last() -> None:
    async with Crew() as crew:
        one, other = await crew.start(2)
        launch_id = await one.gets(one.opens())
        await crew.agree()
        crew.now += 60
        await heard_of(crew, other)
        one.crash()
        del crew.launcher.running[launch_id]
        await eventually(lambda: gone(other))
        crew.now += 1000
        (bill,) = (await crew.agree())["bills"]
        assert (bill["launch"], bill["principal"], bill["dyno_s"]) == (launch_id, "alice", 60.0)
        assert (gone(other)[0].stopped, crew.launcher.stopped) == (False, [])


async def test_process_that_starts_again_knows_until_when_a_dyno_was_listed() -> None:
    async with Crew() as crew:
        one = await crew.process("old")
        launch_id = await one.gets(one.opens())
        await crew.agree()
        crew.now += 60
        await crew.looked()
        one.crash()
        crew.launcher.running.clear()
        crew.now += 1000
        again = await crew.process("new")
        await eventually(lambda: gone(again))
        (bill,) = (await crew.agree())["bills"]
        assert (bill["launch"], bill["dyno_s"]) == (launch_id, 60.0)


async def test_young_entry_is_not_closed_though_no_list_has_its_dyno(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reconciler, "YOUNG_S", 30.0)
    async with Crew() as crew:
        one, other = await crew.start(2)
        launch_id = await one.gets(one.opens())
        await crew.agree()
        crew.launcher.running.clear()
        one.crash()
        await heard_of(crew, other, 10)
        assert other.book.running(launch_id) is not None
        crew.now += 31
        await eventually(lambda: other.book.running(launch_id) is None)


async def test_entry_of_another_living_process_is_that_process_s_to_close() -> None:
    async with Crew() as crew:
        leader, one = await crew.start(2)
        live = one.opens()
        launch_id = await one.gets(live)
        one.directory.remove(live, None)  # so that it looks for no ghost
        await crew.agree()
        crew.launcher.running.clear()
        await crew.looked(10)
        assert leader.book.running(launch_id) is not None


async def test_dyno_that_is_gone_from_one_list_only_is_not_closed() -> None:
    async with Crew() as crew:
        one, other = await crew.start(2)
        launch_id = await one.gets(one.opens())
        await crew.agree()
        one.crash()
        await eventually(lambda: other.reconciler._leading._fence)
        listing, lists = crew.launcher.list, 0

        async def every_other() -> Sequence[Dyno]:
            nonlocal lists
            lists += 1
            crew.launcher.lists += 1
            return [] if lists % 2 else await listing()

        crew.launcher.list = every_other  # type: ignore[method-assign]
        await crew.looked(20)
        assert other.book.running(launch_id) is not None
        crew.launcher.list = listing  # type: ignore[method-assign]


async def test_parked_dyno_whose_leader_died_before_it_launched_is_given_up() -> None:
    launcher = Silent()
    async with Crew(definition(warm=1, boot_timeout=0.2), launcher=launcher) as crew:
        one = await crew.process("one")
        await eventually(lambda: launcher.tried)
        other = await crew.process("other")
        await eventually(lambda: list(other.pool))
        one.crash()
        await eventually(lambda: other.of(events.DynoUnparked))
        report = await crew.agree()
        assert {bill["principal"] for bill in report["bills"]} == {POOL}
        assert [entry for entry in report["running"] if entry["principal"] != POOL] == []


class Silent(Scripted):
    """Never answers, and makes nothing."""

    async def launch(self, order: LaunchOrder) -> Dyno:
        self.tried += 1
        await asyncio.Event().wait()
        raise AssertionError(order)
