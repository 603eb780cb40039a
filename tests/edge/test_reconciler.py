"""Dynos without a session, sessions without a dyno, and what the platform tells by itself."""

from __future__ import annotations

import asyncio

import pytest

from gateway import events
from gateway.fleet import fleet
from gateway.launchers.base import Dyno, LaunchOrder, LaunchUnsettled, PlatformError
from gateway.sessions import reconciler
from tests.edge.dynos_house import (
    FOREVER,
    NOW,
    Clock,
    booted,
    definition,
    happens,
    heard,
    hurry,
    looked_again,
    opening,
    order,
    running,
    terms,
)
from tests.fakes.house import BOUND, INITIALIZE, eventually, opened, refusal
from tests.fakes.launchers import Scripted

ORPHAN = "0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    monkeypatch.setattr(reconciler, "YOUNG_S", 0.0)
    monkeypatch.setattr(fleet, "STOP_AGAIN_S", (0.01,))


# Orphans


async def test_orphan_is_stopped_after_its_grace() -> None:
    clock = Clock()
    launcher = Scripted()
    launcher.clock = lambda: NOW - 50
    launcher.runs(Dyno("app/1", ORPHAN))
    async with running(launcher, terms(clock, grace_s=0.05)) as (house, _):
        said = await happens(house, events.OrphanGone)
        assert (said.launch, said.dyno, said.dyno_s) == (ORPHAN, "app/1", 49.5)
        assert said.usd == pytest.approx(0.0495)
        assert launcher.stopped == ["app/1"]


async def test_orphan_may_wait_for_a_process_that_knows_it() -> None:
    launcher = Scripted()
    launcher.runs(Dyno("app/1", ORPHAN))
    async with running(launcher, terms(grace_s=FOREVER)) as (house, _):
        await looked_again(launcher, 5)
        assert heard(house, events.OrphanGone) == []
    assert launcher.stopped == []


async def test_orphan_is_stopped_once_though_its_stop_takes_long() -> None:
    launcher = Scripted()
    launcher.runs(Dyno("app/1", ORPHAN))
    stops, go, stop = 0, asyncio.Event(), launcher.stop

    async def slow(dyno_id: str) -> float | None:
        nonlocal stops
        stops += 1
        await go.wait()
        return await stop(dyno_id)

    launcher.stop = slow  # type: ignore[method-assign]
    async with running(launcher, terms(grace_s=0.0)) as (house, _):
        await eventually(lambda: stops)
        await looked_again(launcher, 10)
        assert stops == 1
        go.set()
        await happens(house, events.OrphanGone)
        await looked_again(launcher, 5)
        assert len(heard(house, events.OrphanGone)) == 1


async def test_orphan_whose_stop_fails_is_tried_again() -> None:
    launcher = Scripted()
    launcher.runs(Dyno("app/1", ORPHAN))
    launcher.stop_failures.extend([PlatformError("500"), PlatformError("500")])
    async with running(launcher, terms(grace_s=0.0)) as (house, _):
        await happens(house, events.OrphanGone)
        assert [each.attempt for each in heard(house, events.NotStopped)] == [1, 2]
        assert launcher.running == {}


async def test_dyno_that_has_ended_is_no_orphan() -> None:
    launcher = Scripted()
    launcher.runs(Dyno("app/1", ORPHAN, exit_status=1))
    async with running(launcher, terms(grace_s=0.0)) as (house, _):
        await looked_again(launcher, 5)
        assert heard(house, events.OrphanGone) == []


async def test_dyno_of_a_session_is_no_orphan() -> None:
    launcher = Scripted()
    async with running(launcher, terms(grace_s=0.0)) as (house, _):
        agent, session = await booted(house, launcher)
        await looked_again(launcher, 5)
        assert launcher.stopped == []
        await house.works(agent, session)


async def test_dyno_of_a_launch_that_is_over_is_stopped_at_sight() -> None:
    launcher = Scripted()
    async with running(launcher, terms(grace_s=FOREVER)) as (house, _):
        agent, session = await booted(house, launcher)
        await house.delete(session)
        await happens(house, events.Closed)
        launcher.runs(Dyno("app/again", agent.launch_id))
        said = await happens(house, events.OrphanGone)
        assert said.dyno == "app/again"


async def test_dyno_that_comes_late_is_paid_for_and_no_bill_is_told_twice() -> None:
    clock, launcher = Clock(), Scripted()
    async with running(launcher, terms(clock, grace_s=FOREVER)) as (house, _):
        agent, session = await booted(house, launcher)
        clock.now += 100
        await house.delete(session)
        closed = await happens(house, events.Closed)
        assert closed.dyno_s == 100.0
        launcher.clock = lambda: clock.now - 7
        launcher.runs(Dyno("app/again", agent.launch_id))
        said = await happens(house, events.OrphanGone)
        assert said.dyno_s == 6.5
        (month,) = house.manager.fleet.book.report(clock.now)["months"]
        assert month["dyno_s"] == 106.5


async def test_room_of_an_orphan_is_told_to_the_line_of_its_app() -> None:
    launcher = Scripted()
    launcher.runs(Dyno("one/1", ORPHAN, app="one"))
    server = definition(app="one")
    launcher.limit = 1
    async with running(launcher, terms(grace_s=0.3), server) as (house, _):
        async with opening(house) as call:
            await eventually(lambda: house.manager.dynos.queue)
            await happens(house, events.OrphanGone)
            agent = await house.join(await order(launcher))
            await agent.boots()
        assert call.result().status == 200


# Ghosts


async def test_session_whose_dyno_is_missing_from_two_lists_ends() -> None:
    launcher = Scripted()
    async with running(launcher) as (house, _):
        agent, session = await booted(house, launcher)
        agent.cut()
        await eventually(lambda: not house.live(session).attached)
        await looked_again(launcher)
        assert heard(house, events.Closing) == []
        del launcher.running[agent.launch_id]
        assert (await happens(house, events.Closed)).reason == "link_lost"


async def test_session_whose_dyno_is_missing_from_one_list_goes_on() -> None:
    launcher, answers = Scripted(), asyncio.Queue[list[Dyno]](1)
    async with running(launcher) as (house, _):
        agent, session = await booted(house, launcher)
        here = list(launcher.running.values())

        async def told_one_by_one() -> list[Dyno]:
            launcher.lists += 1
            return await answers.get()

        launcher.list = told_one_by_one  # type: ignore[method-assign]
        agent.cut()
        await eventually(lambda: not house.live(session).attached)
        for listed in ([], here, [], here, here):
            await answers.put(listed)
        await eventually(answers.empty)
        assert heard(house, events.Closing) == []
        await answers.put([])
        await answers.put([])
        assert (await happens(house, events.Closed)).reason == "link_lost"
        launcher.list = Scripted.list.__get__(launcher)  # type: ignore[method-assign]
        answers.put_nowait([])


async def test_lists_count_in_a_row_only() -> None:
    """What was missed before the agent came back is not counted with what is missed later."""
    launcher, answers = Scripted(), asyncio.Queue[list[Dyno]](1)
    async with running(launcher) as (house, _):
        agent, session = await booted(house, launcher)
        here = list(launcher.running.values())

        async def told_one_by_one() -> list[Dyno]:
            launcher.lists += 1
            return await answers.get()

        launcher.list = told_one_by_one  # type: ignore[method-assign]
        agent.cut()
        await eventually(lambda: not house.live(session).attached)
        await answers.put([])
        await eventually(lambda: house.manager.reconciler._missed)
        await house.resume(agent)
        for _ in range(3):
            await answers.put(here)
        await eventually(answers.empty)
        agent.cut()
        await eventually(lambda: not house.live(session).attached)
        for listed in ([], here, here):
            await answers.put(listed)
        await eventually(answers.empty)
        assert heard(house, events.Closing) == []
        launcher.list = Scripted.list.__get__(launcher)  # type: ignore[method-assign]
        answers.put_nowait(here)


async def test_attached_session_is_not_judged_by_lists() -> None:
    launcher = Scripted()
    async with running(launcher) as (house, _):
        agent, session = await booted(house, launcher)
        launcher.running.clear()
        await looked_again(launcher, 5)
        await house.works(agent, session)


async def test_young_dyno_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciler, "YOUNG_S", FOREVER)
    launcher = Scripted()
    async with running(launcher) as (house, _):
        async with opening(house) as call:
            made = await order(launcher)
            launcher.running.clear()
            await looked_again(launcher, 5)
            agent = await house.join(made)
            await agent.boots()
        assert call.result().status == 200


async def test_dyno_that_ended_before_it_dialled_fails_its_session_with_its_last_words() -> None:
    launcher = Scripted()
    async with running(launcher) as (house, _):
        async with opening(house) as call:
            made = await order(launcher)
            launcher.running[made.launch_id] = Dyno(
                f"fake.{made.launch_id}", made.launch_id, exit_status=127, last_words="no python3\n"
            )
        status, _, reason, _ = await refusal(call.result())
        assert (status, reason) == (200, "launch_failed") or reason == "launch_failed"
        text = await call.result().text()
        assert "status 127" in text
        assert "no python3" in text
        assert (await happens(house, events.Closed)).reason == "boot_failed"


# The platform does not answer


async def test_list_that_fails_changes_nothing_and_is_told_once() -> None:
    launcher = Scripted()
    async with running(launcher, terms(grace_s=FOREVER)) as (house, _):
        agent, session = await booted(house, launcher)
        agent.cut()
        await eventually(lambda: not house.live(session).attached)
        launcher.list_failure = PlatformError("503 from the platform")
        launcher.running.clear()
        await looked_again(launcher, 10)
        assert [each.why for each in heard(house, events.NotListed)] == ["503 from the platform"]
        assert house.live(session).record.over is False


async def test_list_that_fails_for_another_reason_is_told_again() -> None:
    launcher = Scripted()
    async with running(launcher) as (house, _):
        for why in ("one", "two"):
            launcher.list_failure = PlatformError(why)
            await looked_again(launcher)
        launcher.list_failure = None
        await looked_again(launcher)
        launcher.list_failure = PlatformError("two")
        await looked_again(launcher)
        assert [each.why for each in heard(house, events.NotListed)] == ["one", "two", "two"]


# A launch that nobody knows the end of


async def test_unsettled_launch_serves_when_its_agent_dials() -> None:
    launcher = Scripted()
    launcher.refusals.append(LaunchUnsettled("lost"))
    async with running(launcher) as (house, _):
        async with opening(house) as call:
            made = await order(launcher)
            launcher.runs(Dyno("app/late", made.launch_id))
            agent = await house.join(made)
            await agent.boots()
        session = call.result().headers["Mcp-Session-Id"]
        await house.works(agent, session)
        await house.delete(session)
        await happens(house, events.Closed)
        assert launcher.stopped == ["app/late"]


async def test_unsettled_launch_that_never_dials_times_out_and_is_stopped_when_it_shows() -> None:
    launcher = Scripted()
    launcher.refusals.append(LaunchUnsettled("lost"))
    async with running(launcher, None, definition(boot_timeout=0.05)) as (house, _):
        refused = await house.post(INITIALIZE)
        assert (await refusal(refused))[2] == "start_timeout"
        made = await order(launcher)
        assert (await happens(house, events.Closed)).reason == "boot_timeout"
        launcher.runs(Dyno("app/late", made.launch_id))
        assert (await happens(house, events.OrphanGone)).dyno == "app/late"
        assert launcher.tried == 1


class Unanswering(Scripted):
    """Makes dynos, and does not say so."""

    async def launch(self, order: LaunchOrder) -> Dyno:
        await super().launch(order)
        await asyncio.Event().wait()
        raise AssertionError


@pytest.mark.parametrize("handed_over", [False, True])
async def test_create_that_is_not_answered_in_time_ends_no_session_that_works(
    handed_over: bool,
) -> None:
    launcher, patient = Unanswering(), definition(boot_timeout=0.5)
    async with running(launcher, terms(hand_over=handed_over), patient) as (house, _):
        agent, session = await booted(house, launcher)
        (live,) = house.manager.directory
        if handed_over:
            await house.manager.drain()
            assert live.handed_over
        async with asyncio.timeout(BOUND):
            await live.launched.wait()  # the platform was given up
        if not handed_over:
            await house.works(agent, session)
        assert (heard(house, events.Closing), launcher.stopped) == ([], [])


# The end of a session


async def test_session_is_closed_only_once_its_dyno_is_gone() -> None:
    clock, launcher = Clock(), Scripted()
    async with running(launcher, terms(clock)) as (house, _):
        _, session = await booted(house, launcher)
        launcher.stop_failures.extend(PlatformError("not now") for _ in range(3))
        clock.now += 60
        await house.delete(session)
        await happens(house, events.NotStopped, 3)
        assert heard(house, events.Closed) == [] or launcher.running == {}
        closed = await happens(house, events.Closed)
        assert launcher.running == {}
        assert closed.dyno_s == 60.0
        assert closed.usd == pytest.approx(0.06)


async def test_nobody_is_told_closed_while_the_platform_refuses_to_stop() -> None:
    launcher = Scripted()
    async with running(launcher) as (house, _):
        _, session = await booted(house, launcher)
        failing = True

        async def stop(dyno_id: str) -> bool:
            if failing:
                raise PlatformError(f"not {dyno_id}")
            return True

        launcher.stop = stop  # type: ignore[method-assign]
        await house.delete(session)
        await happens(house, events.NotStopped, 5)
        assert heard(house, events.Closed) == []
        failing = False
        await happens(house, events.Closed)


async def test_stop_that_does_not_answer_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "STOP_S", 0.02)
    launcher, stop, calls = Scripted(), Scripted.stop, 0

    async def hangs_once(dyno_id: str) -> float | None:
        nonlocal calls
        calls += 1
        if calls == 1:
            await asyncio.sleep(FOREVER)
        return await stop(launcher, dyno_id)

    launcher.stop = hangs_once  # type: ignore[method-assign]
    async with running(launcher) as (house, _):
        _, session = await booted(house, launcher)
        await house.delete(session)
        await happens(house, events.Closed)
        (said,) = heard(house, events.NotStopped)
        assert "no answer" in said.why


# Hand over


async def test_session_that_comes_from_another_process_pays_from_when_it_did_there() -> None:
    clock, launcher = Clock(), Scripted()
    agreed = terms(clock, hand_over=True)
    server = (definition(),)
    async with opened(launcher, agreed, server) as old, opened(launcher, agreed, server) as new:
        agent, session = await booted(old, launcher)
        clock.now += 30
        agent.cut()
        await new.resume(agent)
        agent.cut()
        await new.resume(agent)  # and is counted once
        clock.now += 30
        await new.works(agent, session)
        (entry,) = new.manager.fleet.book.report(clock.now)["running"]
        assert (entry["dyno_s"], entry["since"], entry["principal"]) == (60.0, NOW, "test")
        await new.delete(session)
        closed = await happens(new, events.Closed)
        assert (closed.dyno_s, closed.usd) == (60.0, pytest.approx(0.06))
        (month,) = new.manager.fleet.book.report(clock.now)["months"]
        assert month["dyno_s"] == 60.0


async def test_adopted_session_that_moves_pays_from_its_adoption() -> None:
    clock, launcher = Clock(), Scripted()
    agreed = terms(clock, hand_over=True)
    server = (definition(warm=1),)
    async with opened(launcher, agreed, server) as old, opened(launcher, agreed, ()) as new:
        made = await order(launcher)
        agent = await old.park(made.environment["RENDEZVOUS_JOIN_TOKEN"])
        await happens(old, events.DynoParked)
        clock.now += 1000
        async with opening(old):
            await old.adopted(agent)
            await agent.boots()
        clock.now += 10
        new.registry.replace(list(server))
        agent.cut()
        await new.resume(agent)
        (entry,) = [
            each
            for each in new.manager.fleet.book.report(clock.now)["running"]
            if each["launch"] == agent.launch_id
        ]
        assert (entry["since"], entry["dyno_s"]) == (NOW + 1000, 10.0)
