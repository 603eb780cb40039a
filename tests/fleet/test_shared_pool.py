"""One pool of several processes: each dyno launched by one, adopted once, and stopped by one."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from gateway import events
from gateway.errors import BudgetSpent, LaunchFailed
from gateway.fleet import stock
from gateway.fleet.leading import Leading
from gateway.fleet.ledger import POOL, Budgets
from gateway.fleet.warmth import LONGEST_S
from gateway.launchers.base import LaunchError
from gateway.sessions import pool
from gateway.store.base import StoreAway
from gateway.store.memory import Engine, MemoryStore
from tests.fakes.house import BOUND, eventually
from tests.fleet.crew import BYE, FOREVER, LIFE_S, Crew, Process, definition, hurry

PRICE = 3.6 / 3600


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


def warm(count: int, **more: Any) -> Crew:
    return Crew(definition(warm=count), **more)


def no_more(crew: Crew) -> None:
    """Nothing is launched to replace what is adopted."""
    for process in crew.processes:
        process.pool._not_before["code"] = float("inf")


async def known(launch_id: str, *processes: Process) -> None:
    await eventually(lambda: all(process.has(launch_id) for process in processes))


# How many


async def test_pool_of_two_with_three_processes_launches_two() -> None:
    async with warm(2) as crew:
        processes = await crew.start(3)
        orders = [await crew.order() for _ in range(2)]
        await eventually(lambda: all(len(list(each.pool)) == 2 for each in processes))
        await crew.looked(10)
        assert crew.launcher.tried == 2
        assert {each.launch_id for each in processes[1].pool} == {each.launch_id for each in orders}


async def test_leader_that_was_cut_off_does_not_launch_what_another_one_has() -> None:
    """Two that take themselves for the leader decide on what the other has written."""
    async with warm(2) as crew:
        one, other = Process(crew, "a", _store(crew, "a")), Process(crew, "b", _store(crew, "b"))
        for each in (one, other):
            await each.store.__aenter__()
        async with asyncio.TaskGroup() as tasks:
            for each in (one, other):
                await each.pool.refresh()
            async with asyncio.TaskGroup() as both:
                both.create_task(one.pool._lead(tasks))
                both.create_task(other.pool._lead(tasks))
            for each in (one, other):
                await each.book.aclose()
            await eventually(lambda: crew.launcher.tried == 2)
        await one.pool.refresh()
        assert len(list(one.pool)) == 2
        assert crew.launcher.tried == 2


def _store(crew: Crew, name: str) -> MemoryStore:
    return MemoryStore(crew.engine, name)


async def test_next_leader_goes_on_from_what_the_dead_one_has_parked() -> None:
    async with warm(2) as crew:
        one = await crew.process("one")
        for _ in range(2):
            await crew.order()
        other = await crew.process("other")
        await eventually(lambda: len(list(other.pool)) == 2)
        one.crash()
        await eventually(lambda: other.pool._leading._fence)
        await crew.looked(5)
        assert crew.launcher.tried == 2
        assert len(list(other.pool)) == 2


async def test_next_leader_replaces_what_is_adopted() -> None:
    async with warm(1) as crew:
        one = await crew.process("one")
        parked = await one.parks(await crew.order())
        other = await crew.process("other")
        await known(parked.launch_id, other)
        one.crash()
        await eventually(lambda: not other.has(parked.launch_id))
        again = await other.parks(await _same(other, parked.launch_id))
        assert again.launch_id == parked.launch_id
        live = other.opens()
        assert await other.gets(live) == parked.launch_id
        assert (await crew.order()).launch_id != parked.launch_id


async def _same(process: Process, launch_id: str) -> Any:
    await eventually(lambda: process.pool.find(launch_id))

    class Order:
        pass

    order = Order()
    order.launch_id = launch_id  # type: ignore[attr-defined]
    return order


async def test_leader_stops_what_is_too_much_wherever_it_stands() -> None:
    async with warm(1) as crew:
        one, other = await crew.start(2)
        parked = await other.parks(await crew.order())
        await known(parked.launch_id, one)
        for process in (one, other):
            process.registry.replace([definition(warm=0)])
        await eventually(lambda: one.of(events.DynoUnparked))
        assert crew.launcher.running == {}
        await eventually(lambda: not list(other.pool))
        assert (one.of(events.DynoUnparked)[0].launch, other.of(events.DynoUnparked)) == (
            parked.launch_id,
            [],
        )


async def test_stop_that_a_dying_leader_began_is_finished_by_the_next() -> None:
    async with warm(1) as crew:
        one = await crew.process("one")
        order = await crew.order()
        other = await crew.process("other")
        await eventually(lambda: other.pool.find(order.launch_id))
        stop, hangs = crew.launcher.stop, asyncio.Event()

        async def never(dyno_id: str) -> float | None:
            del dyno_id
            await hangs.wait()
            return None

        crew.launcher.stop = never  # type: ignore[method-assign]
        parked = one.pool.find(order.launch_id)
        assert parked is not None
        one.pool.lost(parked)
        await eventually(lambda: (found := other.pool.find(order.launch_id)) and found.over)
        crew.launcher.stop = stop  # type: ignore[method-assign]
        one.crash()
        await other.parks(order)  # it was not lost; but nobody may have it any more
        await eventually(lambda: other.of(events.DynoUnparked))
        assert order.launch_id not in crew.launcher.running
        bills = [bill["launch"] for bill in (await crew.agree())["bills"]]
        assert bills == [order.launch_id]


async def test_dyno_that_could_not_be_had_is_in_nobodys_pool() -> None:
    async with warm(1) as crew:
        crew.launcher.refusals.append(LaunchError("no"))
        one, other = await crew.start(2)
        await eventually(lambda: one.of(events.NotParked))
        await eventually(lambda: not list(one.pool) and not list(other.pool))
        assert (await crew.agree())["running"] == []


async def test_launch_that_fails_after_its_agent_has_dialled_elsewhere_changes_nothing() -> None:
    async with warm(1) as crew:
        crew.launcher.gate.clear()
        one, other = await crew.start(2)
        await eventually(lambda: crew.launcher.tried)
        (ordered,) = list(one.pool)
        parked = await other.parks(await _same(other, ordered.launch_id))
        await known(parked.launch_id, one)
        ordered.dialled = False  # as if this had not been heard of yet
        crew.launcher.refusals.append(LaunchError("or so the platform says"))
        crew.launcher.gate.set()
        async with asyncio.timeout(BOUND):
            await ordered.launched.wait()
        assert one.of(events.NotParked) == []
        assert await other.gets(other.opens()) == parked.launch_id


async def test_pool_takes_no_money_that_another_process_has_just_spent() -> None:
    money = Budgets((LONGEST_S + LIFE_S / 2) * PRICE)
    async with warm(1, budgets=money) as crew:
        one = Process(crew, "one", _store(crew, "one"))
        await one.store.__aenter__()
        other = await crew.process("other")
        other.registry.replace([definition(warm=0)])
        await eventually(lambda: not list(other.pool))
        for bill in (await crew.agree())["bills"]:
            assert bill["principal"] == POOL
        await other.gets(other.opens())
        other.loops[1].cancel()  # the leader, which wants none, would stop what the other one parks
        async with asyncio.TaskGroup() as tasks:
            await one.pool.refresh()
            await one.pool._lead(tasks)  # its ledger is empty as yet
            keeping = tasks.create_task(one.book.keep())
            await eventually(lambda: one.of(events.NotParked))
            keeping.cancel()
        assert "MONTHLY_BUDGET_USD" in one.of(events.NotParked)[0].why


async def test_nothing_is_parked_while_the_engine_is_away() -> None:
    async with warm(1) as crew:
        crew.engine.away = True
        (one,) = await crew.start(1)
        lists = crew.launcher.lists
        for _ in range(50):
            await asyncio.sleep(0)
        crew.engine.away = False
        await crew.order()
        assert (crew.launcher.tried, len(list(one.pool)), lists) == (1, 1, 0)


# Who adopts


async def test_session_adopts_the_dyno_at_its_own_door_before_one_that_waits_longer() -> None:
    async with warm(2) as crew:
        one, other = await crew.start(2)
        far = await other.parks(await crew.order())
        await known(far.launch_id, one)
        near = await one.parks(await crew.order())
        await known(near.launch_id, other)
        assert await one.gets(one.opens()) == near.launch_id
        assert one.called == []


async def test_session_adopts_a_dyno_at_another_process_s_door_and_has_it_called() -> None:
    async with warm(1) as crew:
        one, other = await crew.start(2)
        parked = await other.parks(await crew.order())
        await known(parked.launch_id, one)
        no_more(crew)
        live = one.opens()
        assert await one.gets(live) == parked.launch_id
        (called,) = one.called
        assert (called.launch_id, called.holder_gateway) == (parked.launch_id, other.name)
        await eventually(lambda: parked.launch_id not in other.pool)
        assert other.pool.at_door(parked.launch_id) is parked
        report = await crew.agree()
        assert [entry["principal"] for entry in report["running"]] == ["alice"]
        assert {each.book.running(parked.launch_id).owner for each in (one, other)} == {one.name}  # type: ignore[union-attr]


async def test_session_whose_agent_cannot_be_called_ends_and_its_dyno_is_stopped() -> None:
    async with warm(1) as crew:
        one, other = await crew.start(2)
        parked = await other.parks(await crew.order())
        await known(parked.launch_id, one)
        no_more(crew)
        one.call_failure = StoreAway("not now")
        error = await one.fails(one.opens())
        assert (type(error), error.retry_after_s) == (LaunchFailed, 2)
        assert parked.launch_id not in crew.launcher.running
        assert len((await crew.agree())["bills"]) == 2


@pytest.mark.parametrize("seed", range(5))
async def test_of_twenty_sessions_at_three_processes_each_parked_dyno_is_adopted_by_one(
    seed: int,
) -> None:
    chance = random.Random(seed)  # noqa: S311 - mischief, no secret
    async with warm(5) as crew:
        processes = await crew.start(3)
        orders = [await crew.order() for _ in range(5)]
        for order in orders:
            await chance.choice(processes).parks(order)
        for order in orders:
            await known(order.launch_id, *processes)
        no_more(crew)
        lives = [(process, process.opens()) for process in chance.choices(processes, k=20)]
        launches = [await process.gets(live) for process, live in lives]
        adopted = [each.launch for process in processes for each in process.of(events.Adopted)]
        assert len(set(launches)) == 20
        assert sorted(adopted) == sorted(order.launch_id for order in orders)
        assert crew.launcher.tried == 20
        report = await crew.agree()
        assert len(report["running"]) == 20
        assert {entry["principal"] for entry in report["running"]} == {"alice"}
        assert [bill["principal"] for bill in report["bills"]] == [POOL] * 5


async def test_dyno_that_is_gone_meanwhile_is_replaced_by_a_new_one_for_its_session() -> None:
    async with warm(1) as crew:
        one, other = await crew.start(2)
        parked = await other.parks(await crew.order())
        await known(parked.launch_id, one)
        no_more(crew)
        first, second = one.opens(), other.opens()
        launches = {await one.gets(first), await other.gets(second)}
        assert parked.launch_id in launches
        assert len(launches) == 2
        assert (await crew.order()).launch_id in launches


async def test_session_without_money_leaves_the_parked_dyno_to_others() -> None:
    money = Budgets(None, {"alice": (LIFE_S + 100) * PRICE})
    async with warm(2, budgets=money) as crew:
        one, other = await crew.start(2)
        near = await one.parks(await crew.order())
        far = await other.parks(await crew.order())
        await known(near.launch_id, other)
        await known(far.launch_id, one)
        no_more(crew)
        lives = [(one, one.opens()), (other, other.opens())]  # the first is the last she can pay
        await eventually(lambda: one.ended or other.ended)
        (error,) = [*one.ended.values(), *other.ended.values()]
        assert isinstance(error, BudgetSpent)
        loser, left = (one, near) if one.ended else (other, far)
        await eventually(lambda: loser.has(left.launch_id))
        report = await crew.agree()
        assert sorted(entry["principal"] for entry in report["running"]) == [POOL, "alice"]
        assert await loser.gets(loser.opens("bob")) == left.launch_id
        assert len(lives) == 2


async def test_dyno_that_is_put_back_stands_at_the_door_where_it_stood() -> None:
    async with warm(1) as crew:
        one, other = await crew.start(2)
        parked = await other.parks(await crew.order())
        await known(parked.launch_id, one)
        no_more(crew)
        taken = await one.pool.take(one.registry.servers[0])
        assert taken is not None
        await eventually(lambda: parked.launch_id not in other.pool)
        one.pool.put_back(taken)
        await eventually(lambda: other.has(parked.launch_id))
        assert other.pool.find(parked.launch_id) is parked
        assert await other.gets(other.opens()) == parked.launch_id
        assert parked.live is not None


async def test_session_that_ends_while_it_adopts_leaves_the_dyno_in_the_pool() -> None:
    async with warm(1) as crew:
        (one,) = await crew.start(1)
        parked = await one.parks(await crew.order())
        no_more(crew)
        live = one.opens()
        one.end(live, *BYE)
        await one.fails(live)
        await eventually(lambda: one.has(parked.launch_id))
        assert parked.live is None
        assert crew.launcher.tried == 1
        assert [entry["principal"] for entry in (await crew.agree())["running"]] == [POOL]


async def test_session_that_ends_while_its_adoption_is_written_gives_the_dyno_back() -> None:
    async with warm(1) as crew:
        (one,) = await crew.start(1)
        parked = await one.parks(await crew.order())
        no_more(crew)
        settled = one.book.settled

        async def ends_meanwhile(launch_id: str) -> None:
            one.end(live, *BYE)
            await settled(launch_id)

        one.book.settled = ends_meanwhile  # type: ignore[method-assign]
        live = one.opens()
        await one.fails(live)
        assert (parked.live, parked.called.is_set()) == (None, True)
        assert crew.launcher.running == {}
        assert one.fleet.disowned(parked.launch_id)
        report = await crew.agree()
        assert [bill["principal"] for bill in report["bills"]] == ["alice", POOL]
        assert report["running"] == []


async def test_session_whose_agent_is_at_its_own_door_goes_on_though_nobody_else_can_be_told() -> (
    None
):
    async with warm(1) as crew:
        (one,) = await crew.start(1)
        parked = await one.parks(await crew.order())

        async def away(launch_id: str, key: str) -> None:
            raise StoreAway(f"{launch_id} {key}")

        one.fleet.assign = away  # type: ignore[method-assign]
        live = one.opens()
        assert await one.gets(live) == parked.launch_id
        assert parked.live is live


async def test_taken_dyno_is_known_until_its_session_has_it() -> None:
    """Its agent may lose the connection and dial again in this very moment."""
    async with warm(1) as crew:
        (one,) = await crew.start(1)
        parked = await one.parks(await crew.order())
        taken = await one.pool.take(one.registry.servers[0])
        assert taken is parked
        assert one.pool.find(parked.launch_id) is parked
        assert parked.launch_id in one.pool
        assert one.pool.next(one.registry.servers[0]) is None
        one.pool.adopted(parked)
        assert one.pool.find(parked.launch_id) is None


# Agents that move


async def test_agent_whose_gateway_died_is_known_at_the_next_door() -> None:
    async with warm(1) as crew:
        one = await crew.process("one")
        order = await crew.order()
        parked = await one.parks(order)
        other = await crew.process("other")
        await known(parked.launch_id, other)
        one.crash()
        await eventually(lambda: not other.has(parked.launch_id))
        again = await other.parks(order)
        assert again.server == parked.server
        assert await other.gets(other.opens()) == order.launch_id
        assert other.called == []


async def test_agent_is_known_at_a_door_that_has_not_heard_of_its_dyno_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with warm(1) as crew:
        other = await crew.process("other")
        other.registry.replace([definition(warm=0)])
        monkeypatch.setattr(pool, "PLAN_S", FOREVER)
        launch_id, _ = other.pool.invite(definition())
        await eventually(lambda: crew.engine.tables.get("pool"))
        late = Process(crew, "late", _store(crew, "late"))
        await late.store.__aenter__()
        assert late.pool.find(launch_id) is None
        found = await late.pool.restore(launch_id)
        assert found is not None
        assert (found.launch_id, found.ours) == (launch_id, False)
        assert await late.pool.restore("another") is None


async def test_agents_are_sent_to_other_processes_and_none_is_stopped_when_one_leaves() -> None:
    async with warm(1) as crew:
        one, other = await crew.start(2)
        parked = await one.parks(await crew.order())
        await known(parked.launch_id, other)
        one.pool.drain()
        assert parked.called.is_set()
        assert (parked.over, parked.live) == (False, None)
        one.pool.departed(parked, one)
        async with asyncio.timeout(BOUND):
            await one.pool.drained(BOUND)
        assert one.pool.left == []
        await other.parks(await _same(other, parked.launch_id))
        assert await other.gets(other.opens()) == parked.launch_id
        await eventually(lambda: crew.launcher.tried == 2)  # the other one leads at once
        assert crew.launcher.stopped == []


async def test_process_that_leaves_in_the_middle_of_its_turn_to_lead_stops_nothing() -> None:
    async with warm(1) as crew:
        one, other = await crew.start(2)
        parked = await other.parks(await crew.order())
        await known(parked.launch_id, one)
        one.pool.drain()
        await one.pool._lead(one.tasks)
        await other.pool.refresh()
        assert (parked.over, one.of(events.DynoUnparked)) == (False, [])


async def test_process_that_leaves_alone_stops_what_is_parked() -> None:
    async with warm(1) as crew:
        one = Process(crew, "alone", MemoryStore())
        async with one:
            await one.parks(await crew.order())
            one.pool.drain()
            async with asyncio.timeout(BOUND):
                await one.pool.drained(BOUND)
            assert crew.launcher.running == {}


async def test_agent_that_is_taken_by_a_process_that_dies_is_let_go_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stock, "REDIAL_S", 0.02)
    async with warm(1) as crew:
        one, other = await crew.start(2)
        parked = await one.parks(await crew.order())
        await known(parked.launch_id, other)
        no_more(crew)
        assert await other.pool.take(other.registry.servers[0]) is not None
        other.crash()
        await eventually(parked.called.is_set)
        assert parked.live is None


async def test_lost_dyno_is_stopped_by_the_leader_wherever_that_is_noticed() -> None:
    async with warm(1) as crew:
        one, other = await crew.start(2)
        parked = await other.parks(await crew.order())
        await known(parked.launch_id, one)
        no_more(crew)
        other.pool.lost(parked)
        await eventually(lambda: one.of(events.DynoUnparked))
        assert parked.launch_id not in crew.launcher.running


async def test_name_of_a_dyno_that_the_leader_learns_takes_nothing_from_who_holds_it() -> None:
    async with warm(1) as crew:
        one, other = await crew.start(2)
        order = await crew.order()
        parked = await other.parks(order)
        found = one.pool.find(order.launch_id)
        assert found is not None
        one.pool.name(found, "app/late")
        await eventually(lambda: crew.engine.tables.get("pool").rows)  # type: ignore[union-attr]
        await known(order.launch_id, one, other)
        await eventually(lambda: found.holder_gateway == other.name)
        assert other.pool.find(order.launch_id) is parked


async def test_engine_that_has_lost_its_memory_learns_the_pool_again_from_who_has_it() -> None:
    async with warm(2) as crew:
        one, other = await crew.start(2)
        parked = await other.parks(await crew.order())
        boots = await crew.order()
        await known(parked.launch_id, one)
        crew.engine.forget()
        await eventually(
            lambda: (table := crew.engine.tables.get("pool")) is not None and len(table.rows) >= 2
        )
        await known(parked.launch_id, one, other)
        await eventually(lambda: boots.launch_id in other.pool)
        assert await one.gets(one.opens()) == parked.launch_id


# Leading


async def test_one_of_three_leads_and_another_one_only_once_that_one_is_dead() -> None:
    engine = Engine()
    stores = {name: MemoryStore(engine, name) for name in ("one", "two", "three")}
    leading = {name: Leading(store, "it") for name, store in stores.items()}
    for store in stores.values():
        await store.__aenter__()
    assert [await each.leads() for each in leading.values()] == [True, False, False]
    assert [await each.leads() for each in leading.values()] == [True, False, False]
    engine.crash("one")
    assert [await leading[name].leads() for name in ("two", "three")] == [True, False]
    assert await leading["one"].leads() is False


async def test_nobody_leads_while_the_engine_is_away_and_then_who_did() -> None:
    engine = Engine()
    stores = [MemoryStore(engine, name) for name in ("one", "two")]
    one, two = [Leading(await store.__aenter__(), "it") for store in stores]
    assert (await one.leads(), await two.leads()) == (True, False)
    engine.away = True
    assert (await one.leads(), await two.leads()) == (False, False)
    engine.away = False
    assert (await two.leads(), await one.leads()) == (False, True)


async def test_who_resigns_is_followed_at_once() -> None:
    engine = Engine()
    stores = [MemoryStore(engine, name) for name in ("one", "two")]
    one, two = [Leading(await store.__aenter__(), "it") for store in stores]
    assert await one.leads()
    await one.resign()
    assert (await two.leads(), await one.leads()) == (True, False)


async def test_who_led_when_the_engine_lost_its_memory_leads_again_unless_another_one_does() -> (
    None
):
    engine = Engine()
    stores = [MemoryStore(engine, name) for name in ("one", "two")]
    one, two = [Leading(await store.__aenter__(), "it") for store in stores]
    assert await one.leads()
    engine.forget()
    assert await two.leads()
    assert (await one.leads(), await two.leads()) == (False, True)
