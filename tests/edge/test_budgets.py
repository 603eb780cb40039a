"""Who pays for a dyno, and that nobody gets one that could cost more than is left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from gateway import events
from gateway.fleet import fleet
from gateway.fleet.ledger import POOL, Budgets, Month
from gateway.launchers.base import LaunchError
from gateway.sessions import dynos
from tests.edge.dynos_house import (
    NOW,
    Clock,
    booted,
    definition,
    happens,
    heard,
    hurry,
    looked_again,
    opening,
    opens,
    order,
    parked,
    running,
    terms,
)
from tests.fakes.house import INITIALIZE, OTHER_KEY, House, eventually, refusal
from tests.fakes.launchers import Scripted

if TYPE_CHECKING:
    import aiohttp

    from gateway.sessions.terms import Terms

LIFE = 1000.0
LONGEST = LIFE + dynos.END_SLACK_S + 120.0  # and what it may wait in line
PRICE = 3.6 / 3600
"""Dollars a second."""

SERVER = definition(max_lifetime=LIFE)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    monkeypatch.setattr(fleet, "STOP_AGAIN_S", (0.01,))


def budget(dynos_worth: float, **by_principal: float) -> Budgets:
    return Budgets(dynos_worth * LONGEST * PRICE, by_principal)


def agreed(clock: Clock, budgets: Budgets, **more: Any) -> Terms:
    return terms(clock, budgets=budgets, **more)


def book(house: House, clock: Clock) -> Any:
    return house.manager.fleet.book.report(clock.now)


async def asks_as(house: House, key: str) -> aiohttp.ClientResponse:
    async with house.http.post(house.url, json=INITIALIZE, headers={"X-API-Key": key}) as response:
        await response.read()
    return response


async def test_session_that_could_exceed_the_budget_is_refused_until_next_month() -> None:
    clock = Clock()
    async with running(None, agreed(clock, budget(0.99)), SERVER) as (house, launcher):
        refused = await house.post(INITIALIZE)
        assert (await refusal(refused))[::2] == (503, "budget_spent")
        ends = Month.of(NOW).ends
        assert int(refused.headers["Retry-After"]) == round(ends - NOW)
        assert launcher.tried == 0
        assert book(house, clock)["running"] == []


async def test_budget_stops_the_session_after_next() -> None:
    clock = Clock()
    async with running(None, agreed(clock, budget(2.0)), SERVER) as (house, launcher):
        await booted(house, launcher)
        await booted(house, launcher)
        refused = await house.post(INITIALIZE)
        assert (await refusal(refused))[2] == "budget_spent"
        assert launcher.tried == 2


async def test_two_sessions_at_once_do_not_both_get_the_last_dollar() -> None:
    clock = Clock()
    launcher = Scripted()
    launcher.gate.clear()
    async with running(launcher, agreed(clock, budget(1.5)), SERVER) as (house, _):
        async with opening(house) as first:
            await eventually(lambda: launcher.tried == 1)
            refused = await house.post(INITIALIZE)
            assert (await refusal(refused))[2] == "budget_spent"
            launcher.gate.set()
            await (await house.join(await order(launcher))).boots()
        assert first.result().status == 200


async def test_session_that_ends_early_gives_back_what_it_did_not_spend() -> None:
    clock = Clock()
    async with running(None, agreed(clock, budget(1.5)), SERVER) as (house, launcher):
        _, session = await booted(house, launcher)
        clock.now += 100
        await house.delete(session)
        await happens(house, events.Closed)
        await booted(house, launcher)
        assert launcher.tried == 2


async def test_budget_of_a_key_binds_that_key_only() -> None:
    clock = Clock()
    budgets = Budgets(None, {"test": 0.5 * LONGEST * PRICE})
    async with running(None, agreed(clock, budgets), SERVER) as (house, launcher):
        refused = await house.post(INITIALIZE)
        assert (await refusal(refused))[2] == "budget_spent"
        assert "KEY_BUDGETS_USD" in await refused.text()
        launcher.refusals.append(LaunchError("it was asked"))
        other = await asks_as(house, OTHER_KEY)
        assert (await refusal(other))[2] == "launch_failed"


async def test_launch_that_fails_costs_nothing() -> None:
    clock, launcher = Clock(), Scripted()
    launcher.refusals.append(LaunchError("no"))
    async with running(launcher, agreed(clock, budget(1.0)), SERVER) as (house, _):
        await house.post(INITIALIZE)
        closed = await happens(house, events.Closed)
        assert (closed.reason, closed.dyno_s, closed.usd) == ("boot_failed", 0.0, 0.0)
        clock.now += 500
        assert book(house, clock)["running"] == []
        await order(launcher)
        await booted(house, launcher)


async def test_bill_says_who_paid_for_what() -> None:
    clock = Clock()
    async with running(None, terms(clock), SERVER) as (house, launcher):
        agent, session = await booted(house, launcher)
        name = house.live(session).record.session_id
        clock.now += 36
        await house.delete(session)
        closed = await happens(house, events.Closed)
        assert (closed.dyno_s, closed.usd) == (36.0, 0.036)
        (bill,) = book(house, clock)["bills"]
        facts = (bill["principal"], bill["server"], bill["session"], bill["launch"])
        assert facts == ("test", "patient", name, agent.launch_id)
        assert (bill["dyno_s"], bill["usd"]) == (36.0, 0.036)


async def test_platforms_word_of_its_start_counts() -> None:
    clock, launcher = Clock(), Scripted()
    launcher.clock = lambda: NOW + 5
    async with running(launcher, terms(clock), SERVER) as (house, _):
        _, session = await booted(house, launcher)
        clock.now += 36
        await house.delete(session)
        assert (await happens(house, events.Closed)).dyno_s == 31.0


async def test_time_in_line_is_not_paid_for() -> None:
    clock, launcher = Clock(), Scripted(limit=0)
    async with running(launcher, terms(clock), SERVER) as (house, _):
        async with opening(house) as call:
            await eventually(lambda: house.manager.dynos.queue)
            clock.now += 500
            launcher.limit = 1
            house.manager.fleet.line(None).freed()
            await (await house.join(await order(launcher))).boots()
        clock.now += 10
        await house.delete(call.result().headers["Mcp-Session-Id"])
        assert (await happens(house, events.Closed)).dyno_s == 10.0


# Parked dynos


async def test_parked_dyno_is_paid_by_the_pool_until_its_adoption_and_then_by_the_session() -> None:
    clock = Clock()
    server = definition(warm=1, max_lifetime=LIFE)
    async with running(None, terms(clock), server) as (house, launcher):
        agent = await parked(house, launcher)
        clock.now += 50
        house.manager.pool._not_before["patient"] = float("inf")
        session = await opens(house, agent)
        (entry,) = book(house, clock)["running"]
        assert (entry["principal"], entry["since"]) == ("test", NOW + 50)
        (bill,) = book(house, clock)["bills"]
        assert (bill["principal"], bill["dyno_s"]) == (POOL, 50.0)
        clock.now += 7
        await house.delete(session)
        assert (await happens(house, events.Closed)).dyno_s == 7.0
        (month,) = book(house, clock)["months"]
        assert {who: line["dyno_s"] for who, line in month["by_principal"].items()} == {
            POOL: 50.0,
            "test": 7.0,
        }


async def test_commitment_of_the_pool_does_not_count_twice_at_an_adoption() -> None:
    clock = Clock()
    server = definition(warm=1, max_lifetime=LIFE)
    money = Budgets((1980.0 + 120.0 + 10.0) * PRICE)  # the parked one, or the session
    async with running(None, agreed(clock, money), server) as (house, launcher):
        agent = await parked(house, launcher)
        await opens(house, agent)
        assert len(heard(house, events.Adopted)) == 1


async def test_key_without_money_adopts_nothing() -> None:
    clock = Clock()
    server = definition(warm=1, max_lifetime=LIFE)
    money = Budgets(None, {"test": 1.0 * PRICE})
    async with running(None, agreed(clock, money), server) as (house, launcher):
        agent = await parked(house, launcher)
        refused = await house.post(INITIALIZE)
        assert (await refusal(refused))[2] == "budget_spent"
        assert heard(house, events.Adopted) == []
        assert agent.launch_id in house.manager.pool


async def test_full_line_does_not_keep_a_session_from_a_parked_dyno() -> None:
    clock = Clock()
    servers = definition(warm=1), definition("other")
    launcher = Scripted()
    async with running(launcher, terms(clock, queue_length=1), *servers) as (house, _):
        agent = await parked(house, launcher)
        launcher.limit = 1
        async with opening(house):
            url = f"{house.origin}/servers/other/mcp"
            waiting = house.tasks.create_task(_quiet(house, url))
            await eventually(lambda: house.manager.dynos.queue)
            await house.adopted(agent)
            await agent.boots()
        waiting.cancel()


async def _quiet(house: House, url: str) -> None:
    async with house.http.post(url, json=INITIALIZE) as response:
        await response.read()


async def test_pool_without_money_parks_nothing_and_says_so() -> None:
    clock = Clock()
    server = definition(warm=1, max_lifetime=LIFE)
    async with running(None, agreed(clock, budget(0.01)), server) as (house, launcher):
        said = await happens(house, events.NotParked)
        assert "MONTHLY_BUDGET_USD" in said.why
        await looked_again(launcher, 5)
        assert len(heard(house, events.NotParked)) == 1
        assert launcher.tried == 0


async def test_parked_dyno_that_is_not_adopted_is_the_pools_bill() -> None:
    clock = Clock()
    server = definition(warm=1)
    async with running(None, terms(clock), server) as (house, launcher):
        await parked(house, launcher)
        clock.now += 20
        house.registry.replace([definition(warm=0)])
        unparked = await happens(house, events.DynoUnparked)
        assert (unparked.dyno_s, unparked.usd) == (20.0, 0.02)
        (bill,) = book(house, clock)["bills"]
        assert (bill["principal"], bill["server"]) == (POOL, "patient")


async def test_parked_dyno_that_could_not_be_had_costs_nothing() -> None:
    clock, launcher = Clock(), Scripted()
    launcher.refusals.append(LaunchError("no"))
    async with running(launcher, terms(clock), definition(warm=1)) as (house, _):
        await happens(house, events.NotParked)
        clock.now += 100
        assert book(house, clock)["running"] == []
        assert [bill["usd"] for bill in book(house, clock)["bills"]] == [0.0]


async def test_throw_away_runs_are_the_gateways_own_account() -> None:
    clock = Clock()
    server = definition(catalogue=True, translate=False)
    async with running(None, terms(clock), server) as (house, launcher):
        await order(launcher)
        (entry,) = book(house, clock)["running"]
        assert entry["principal"] == "(gateway)"


async def test_budget_that_is_spent_is_in_no_event_as_a_secret() -> None:
    clock = Clock()
    async with running(None, agreed(clock, budget(0.5)), SERVER) as (house, _):
        refused = await house.post(INITIALIZE)
        text = await refused.text()
        assert "key-of-the-test" not in text + repr(house.ear.heard)
        assert "MONTHLY_BUDGET_USD" in text
