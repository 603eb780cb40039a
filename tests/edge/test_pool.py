"""Parked dynos: each is adopted by one session, replaced when it is lost, and never used twice."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from structlog.testing import capture_logs
from websockets.exceptions import ConnectionClosed, InvalidStatus

from dyno_agent.link import CloseCode, Welcome
from dyno_agent.link.handshake import is_parked
from gateway import events
from gateway.fleet import line, stock
from gateway.fleet.warmth import PARK_S, Caps
from gateway.launchers.base import Dyno, LaunchError, LaunchUnsettled
from gateway.sessions import catalogues, pool
from gateway.sessions.reconciler import News
from tests.edge.dynos_house import (
    FOREVER,
    NOW,
    Clock,
    booted,
    definition,
    ends_parked,
    happens,
    heard,
    hurry,
    looked_again,
    opening,
    opens,
    order,
    parked,
    ready,
    running,
    terms,
)
from tests.edge.eras_house import Program, stage
from tests.fakes.house import (
    BOUND,
    INITIALIZE,
    Agent,
    House,
    close_code,
    eventually,
    hello,
    opened,
    token_of,
)
from tests.fakes.launchers import Scripted

if TYPE_CHECKING:
    from gateway.launchers.base import LaunchOrder
    from gateway.registry.servers import ServerDefinition

WARM = definition(warm=1)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


def warm(house: House, **more: Any) -> ServerDefinition:
    """Let the registry say something else of the one server."""
    server = msgspec.structs.replace(WARM, **more)
    house.registry.replace([server])
    return server


# Adoption


async def test_parked_agent_is_welcomed_with_what_its_session_wants_it_to_run() -> None:
    server = definition(warm=1, env={"A": "b"}, cwd="/there")
    async with running(None, None, server) as (house, launcher):
        agent = await parked(house, launcher)
        await opens(house, agent)
    child = agent.welcome.child
    assert child is not None
    assert (child.argv, child.env, child.cwd) == (("child", "-x"), {"A": "b"}, "/there")


async def test_session_that_adopts_serves_its_client() -> None:
    async with running(None, None, WARM) as (house, launcher):
        agent = await parked(house, launcher)
        session = await opens(house, agent)
        await house.works(agent, session)
        adopted = await happens(house, events.Adopted)
        assert (adopted.launch, adopted.dyno) == (agent.launch_id, f"fake.{agent.launch_id}")


async def test_second_session_gets_another_dyno() -> None:
    async with running(None, None, WARM) as (house, launcher):
        first = await parked(house, launcher)
        one = await opens(house, first)
        second = await parked(house, launcher)
        two = await opens(house, second)
        assert first.launch_id != second.launch_id
        await house.works(first, one)
        await house.works(second, two)


async def test_of_two_sessions_at_once_one_adopts_and_the_other_gets_a_dyno_of_its_own() -> None:
    async with running(None, None, WARM) as (house, launcher):
        agent = await parked(house, launcher)
        house.manager.pool._not_before["patient"] = float("inf")
        async with opening(house) as one, opening(house) as two:
            await house.adopted(agent)
            await agent.boots()
            other = await house.join(await order(launcher))
            await other.boots()
        keys = {call.result().headers["Mcp-Session-Id"] for call in (one, two)}
        assert len(keys) == 2
        assert len(heard(house, events.Adopted)) == 1
        assert len(heard(house, events.Launching)) == 2


async def test_of_many_sessions_at_once_no_two_adopt_the_same_dyno() -> None:
    async with running(None, None, definition(warm=3)) as (house, launcher):
        agents = [await parked(house, launcher, f"boot{n}") for n in range(3)]
        house.manager.pool._not_before["patient"] = float("inf")

        async def adopted(agent: Agent) -> None:
            await house.adopted(agent)
            await agent.boots()

        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            calls = [group.create_task(house.post(INITIALIZE)) for _ in range(5)]
            for agent in agents:
                group.create_task(adopted(agent))
            for _ in range(2):
                await (await house.join(await order(launcher))).boots()
        keys = {call.result().headers["Mcp-Session-Id"] for call in calls}
        launches = [event.launch for event in heard(house, events.Adopted)]
    assert len(keys) == 5
    assert sorted(launches) == sorted(agent.launch_id for agent in agents)


async def test_dyno_that_waits_longest_is_adopted_first() -> None:
    async with running(None, None, definition(warm=2)) as (house, launcher):
        first = await parked(house, launcher, "one")
        await parked(house, launcher, "two")
        await opens(house, first)
        assert [each.launch for each in heard(house, events.Adopted)] == [first.launch_id]


async def test_adopted_dyno_is_replaced() -> None:
    async with running(None, None, WARM) as (house, launcher):
        await opens(house, await parked(house, launcher))
        replacement = await parked(house, launcher)
        assert [each.launch_id for each in house.manager.pool] == [replacement.launch_id]


async def test_dyno_of_an_ended_session_comes_never_back() -> None:
    async with running(None, None, WARM) as (house, launcher):
        made = await order(launcher)
        agent = await house.park(token_of(made))
        await eventually(lambda: ready(house, agent.launch_id))
        session = await opens(house, agent)
        assert await house.delete(session) in (200, 204)
        await happens(house, events.Closed)
        for credential in (token_of(made), agent.credential):
            with pytest.raises(InvalidStatus) as refused:
                await house.dial(credential, capsule=agent.welcome.capsule)
            assert refused.value.response.status_code == 401
        assert f"fake.{agent.launch_id}" in launcher.stopped


async def test_adopted_session_resumes_after_its_link_broke() -> None:
    async with running(None, None, WARM) as (house, launcher):
        agent = await parked(house, launcher)
        session = await opens(house, agent)
        agent.cut()
        await house.resume(agent)
        assert agent.welcome.epoch == 2
        await house.works(agent, session)


async def test_agent_whose_connection_breaks_at_adoption_dials_again_and_is_welcomed() -> None:
    """Its join token leads to the session from then on."""
    async with running(None, None, WARM) as (house, launcher):
        made = await order(launcher)
        agent = await house.park(token_of(made))
        await eventually(lambda: ready(house, agent.launch_id))
        async with opening(house) as call:
            await happens(house, events.Adopted)
            agent.socket.transport.abort()
            again = Agent(agent.launch_id, agent.boot_id)
            await house._attached(again, await house.dial(token_of(made)))
            assert again.welcome.child is not None
            await again.boots()
        assert call.result().status == 200


async def test_agent_that_dials_before_its_launch_is_answered_is_adopted_and_stopped_by_name() -> (
    None
):
    launcher = Scripted()
    async with running(launcher, None, WARM) as (house, _):
        answered = asyncio.Event()
        real = RecordingAnswer(launcher, answered)
        async with real:
            agent = await parked(house, launcher)
            session = await opens(house, agent)
            answered.set()
        live = house.live(session)
        await eventually(lambda: live.record.dyno_id == f"fake.{agent.launch_id}")
        await house.delete(session)
        await happens(house, events.Closed)
        assert f"fake.{agent.launch_id}" in launcher.stopped


class RecordingAnswer:
    """Launches of this block run at once, and are answered late."""

    def __init__(self, launcher: Scripted, answered: asyncio.Event) -> None:
        self.launcher = launcher
        self.answered = answered
        self.launch = launcher.launch

    async def __aenter__(self) -> None:
        async def late(order: LaunchOrder) -> Dyno:
            dyno = await self.launch(order)
            await self.answered.wait()
            return dyno

        self.launcher.launch = late  # type: ignore[method-assign]

    async def __aexit__(self, *failure: object) -> None:
        self.launcher.launch = self.launch  # type: ignore[method-assign]


# Who may not


@pytest.mark.parametrize(
    "other", [{"release": "v2"}, {"size": "standard-1x"}, {"app": "other"}], ids=str
)
async def test_session_of_what_is_not_the_same_any_more_never_adopts(other: dict[str, str]) -> None:
    async with running(None, None, WARM) as (house, launcher):
        agent = await parked(house, launcher)
        house.manager.pool._draining = True  # nothing new is parked
        warm(house, **other)
        async with opening(house) as call:
            made = await order(launcher)
            assert made.launch_id != agent.launch_id
            own = await house.join(made)
            await own.boots()
        assert call.result().status == 200
        assert heard(house, events.Adopted) == []


async def test_session_of_another_server_never_adopts() -> None:
    servers = definition("warm", warm=1), definition()
    async with running(None, None, *servers) as (house, launcher):
        await parked(house, launcher)
        await booted(house, launcher)
        assert heard(house, events.Adopted) == []


async def test_throw_away_run_never_adopts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogues, "AGAIN_S", (FOREVER,))
    server = definition(warm=1, catalogue=True, translate=False)
    async with running(None, None, server) as (house, launcher), stage(house) as played:
        first = [await order(launcher) for _ in range(2)]
        (pooled,) = [each for each in first if each.launch_id in house.manager.pool]
        (looking,) = [each for each in first if each is not pooled]
        await house.park(token_of(pooled))
        await eventually(lambda: ready(house, pooled.launch_id))
        house.registry.replace([msgspec.structs.replace(server, description="look again")])
        await played.child_of(looking, Program())
        again = await order(launcher)
        (run,) = list(house.manager.directory)
        assert (run.record.principal, run.record.launch_id) == ("(gateway)", again.launch_id)
        assert heard(house, events.Adopted) == []
        assert ready(house, pooled.launch_id)


async def test_client_of_the_old_transport_adopts_too() -> None:
    """HTTP+SSE sessions end with their connection, and are no throw-away runs for that."""
    async with running(None, None, WARM) as (house, launcher):
        agent = await parked(house, launcher)
        async with house.http.get(f"{house.origin}/servers/patient/sse") as stream:
            text = (await stream.content.readuntil(b"\n\n")).decode()
            url = text.split("data: ")[1].strip()
            await house.http.post(f"{house.origin}{url}", json=INITIALIZE)
            adopted = await happens(house, events.Adopted)
        assert adopted.launch == agent.launch_id


# At the door


async def test_parked_agent_that_lost_its_connection_dials_again_and_is_adopted_once() -> None:
    async with running(None, None, WARM) as (house, launcher):
        made = await order(launcher)
        agent = await house.park(token_of(made))
        await eventually(lambda: ready(house, agent.launch_id))
        agent.socket.transport.abort()
        await eventually(lambda: not ready(house, agent.launch_id))
        await house.park_again(agent, token_of(made))
        await eventually(lambda: ready(house, agent.launch_id))
        session = await opens(house, agent)
        await house.works(agent, session)
        assert len(heard(house, events.Adopted)) == 1


async def test_parked_agent_that_is_away_is_not_adopted() -> None:
    async with running(None, None, WARM) as (house, launcher):
        agent = await parked(house, launcher)
        agent.socket.transport.abort()
        await eventually(lambda: not ready(house, agent.launch_id))
        await booted(house, launcher)
        assert heard(house, events.Adopted) == []


async def test_of_two_connections_of_one_agent_the_newer_is_welcomed() -> None:
    async with running(None, None, WARM) as (house, launcher):
        made = await order(launcher)
        agent = await house.park(token_of(made))
        older = agent.socket
        await house.park_again(agent, token_of(made))
        await eventually(lambda: ready(house, agent.launch_id))
        async with asyncio.TaskGroup() as group:
            ended = group.create_task(ends_parked(older))
            session = await opens(house, agent)
        assert ended.result() == CloseCode.SESSION_ENDED
        await house.works(agent, session)


async def test_older_connection_that_breaks_takes_nothing_away_from_the_newer() -> None:
    async with running(None, None, WARM) as (house, launcher):
        made = await order(launcher)
        agent = await house.park(token_of(made))
        older = agent.socket
        await house.park_again(agent, token_of(made))
        holder = house.manager.pool.find(agent.launch_id)
        assert holder is not None
        older.transport.abort()
        await happens(house, events.DynoParked)
        session = await opens(house, agent)
        await house.works(agent, session)


@pytest.mark.parametrize("impostor", ["boot id", "proof"])
async def test_second_process_with_the_same_token_ends_the_parked_dyno(impostor: str) -> None:
    async with running(None, None, WARM) as (house, launcher):
        made = await order(launcher)
        agent = await house.park(token_of(made))
        await eventually(lambda: ready(house, agent.launch_id))
        other = hello("first")
        said = (
            dataclasses.replace(other, boot_id="second")
            if impostor == "boot id"
            else dataclasses.replace(other, proof=hello("second").proof)
        )
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            honest = group.create_task(ends_parked(agent.socket))
            thief = await house.dial(token_of(made))
            await thief.send(said.encode())
            assert await close_code(thief) == CloseCode.REPLAYED_TOKEN
        assert honest.result() == CloseCode.SESSION_ENDED
        unparked = await happens(house, events.DynoUnparked)
        assert unparked.launch == agent.launch_id
        assert f"fake.{agent.launch_id}" in launcher.stopped


async def test_second_process_is_never_adopted() -> None:
    async with running(None, None, WARM) as (house, launcher):
        made = await order(launcher)
        await house.park(token_of(made))
        thief = await house.dial(token_of(made))
        await thief.send(hello("second").encode())
        assert await close_code(thief) == CloseCode.REPLAYED_TOKEN
        await happens(house, events.DynoUnparked)
        await parked(house, launcher)
        async with opening(house) as call:
            adopted = await happens(house, events.Adopted)
            assert adopted.launch != made.launch_id
            call.cancel()


@pytest.mark.parametrize("word", ["{}", b"\x00\x00", '{"parked": true}'], ids=repr)
async def test_parked_agent_that_talks_is_cut_and_its_dyno_stopped(word: str | bytes) -> None:
    async with running(None, None, WARM) as (house, launcher):
        agent = await parked(house, launcher)
        await agent.socket.send(word)
        assert await ends_parked(agent.socket) == CloseCode.PROTOCOL_VIOLATION
        assert (await happens(house, events.DynoUnparked)).launch == agent.launch_id
        assert f"fake.{agent.launch_id}" in launcher.stopped


@pytest.mark.parametrize("word", ["{", b"\x00", '{"kind": "other"}'], ids=repr)
async def test_agent_of_the_pool_that_does_not_say_hello_is_cut(word: str | bytes) -> None:
    async with running(None, None, WARM) as (house, launcher):
        made = await order(launcher)
        socket = await house.dial(token_of(made))
        await socket.send(word)
        assert await ends_parked(socket) == CloseCode.PROTOCOL_VIOLATION
        assert (await happens(house, events.DynoUnparked)).launch == made.launch_id


async def test_parked_agent_that_hangs_up_in_its_hello_makes_no_noise() -> None:
    async with running(None, None, WARM) as (house, launcher):
        made = await order(launcher)
        with capture_logs() as logs:
            for _ in range(30):
                socket = await house.dial(token_of(made))
                await socket.send(hello("first").encode())
                socket.transport.abort()
            agent = await house.park(token_of(made))
            await eventually(lambda: ready(house, agent.launch_id))
            await opens(house, agent)
    assert [entry for entry in logs if entry["log_level"] == "error"] == []


async def test_parked_agent_is_told_again_and_again_that_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.rendezvous.endpoint.PARKED_S", 0.5)
    async with running(None, None, WARM) as (house, launcher):
        agent = await parked(house, launcher)
        async with asyncio.timeout(BOUND):
            assert await agent.socket.recv() == '{"parked": true}'


async def test_parked_agent_that_does_not_answer_pings_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.rendezvous.endpoint.PARKED_S", 0.02)
    async with running(None, None, WARM) as (house, launcher):
        agent = await parked(house, launcher)
        agent.socket.transport.pause_reading()
        await eventually(lambda: not ready(house, agent.launch_id))
        agent.socket.transport.resume_reading()
        await ends_parked(agent.socket)


# What becomes of them


async def test_shutdown_lets_parked_agents_go_and_stops_their_dynos() -> None:
    launcher = Scripted()
    async with running(launcher, None, definition(warm=2)) as (house, _):
        agents = [await parked(house, launcher, name) for name in ("one", "two")]
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            ends = [group.create_task(ends_parked(agent.socket)) for agent in agents]
            await house.manager.drain()
        assert {end.result() for end in ends} == {CloseCode.SESSION_ENDED}
        unparked = {each.launch for each in heard(house, events.DynoUnparked)}
    assert unparked == {agent.launch_id for agent in agents}
    assert launcher.running == {}
    assert launcher.tried == 2


async def test_shutdown_stops_a_dyno_whose_agent_has_not_dialled() -> None:
    launcher = Scripted()
    async with running(launcher, None, WARM) as (house, _):
        made = await order(launcher)
        await eventually(lambda: house.manager.pool.left)
        assert house.manager.pool.find(made.launch_id) is not None
    assert launcher.running == {}


async def test_new_release_drains_the_pool_and_parks_anew() -> None:
    async with running(None, None, WARM) as (house, launcher):
        agent = await parked(house, launcher)
        warm(house, release="v2")
        assert await ends_parked(agent.socket) == CloseCode.SESSION_ENDED
        new = await parked(house, launcher)
        await opens(house, new)
        assert agent.launch_id not in launcher.running


async def test_new_size_drains_the_pool_and_parks_anew() -> None:
    """`heroku ps:type` makes no release, and no session may have what is parked any more."""
    async with running(None, None, WARM) as (house, launcher):
        agent = await parked(house, launcher)
        warm(house, size="standard-2x")
        assert await ends_parked(agent.socket) == CloseCode.SESSION_ENDED
        assert (await order(launcher)).size == "standard-2x"


async def test_server_that_is_gone_has_no_parked_dynos() -> None:
    async with running(None, None, WARM) as (house, launcher):
        agent = await parked(house, launcher)
        house.registry.replace([])
        assert await ends_parked(agent.socket) == CloseCode.SESSION_ENDED
        await eventually(lambda: not launcher.running)


async def test_parked_dyno_that_ended_at_its_boot_is_found_in_the_list_and_stopped() -> None:
    async with running(None, None, WARM) as (house, launcher):
        made = await order(launcher)
        await eventually(lambda: made.launch_id in launcher.running)
        launcher.running[made.launch_id] = Dyno(
            f"fake.{made.launch_id}", made.launch_id, exit_status=1
        )
        assert (await happens(house, events.DynoUnparked)).launch == made.launch_id


async def test_parked_dyno_that_a_webhook_tells_dead_is_replaced() -> None:
    async with running(None, None, WARM) as (house, launcher):
        agent = await parked(house, launcher)
        house.manager.reconciler.heard(
            News(agent.launch_id, f"fake.{agent.launch_id}", "crashed", True, 137)
        )
        assert (await happens(house, events.DynoUnparked)).launch == agent.launch_id
        assert (await order(launcher)).launch_id != agent.launch_id


async def test_parked_dyno_whose_agent_stays_away_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stock, "REDIAL_S", 0.05)
    async with running(None, None, WARM) as (house, launcher):
        agent = await parked(house, launcher)
        agent.socket.transport.abort()
        assert (await happens(house, events.DynoUnparked)).launch == agent.launch_id
        assert (await order(launcher)).launch_id != agent.launch_id


async def test_parked_dyno_is_replaced_at_its_age_only_once_the_next_one_is_ready() -> None:
    clock = Clock()
    async with running(None, terms(clock), WARM) as (house, launcher):
        agent = await parked(house, launcher)
        clock.now = NOW + PARK_S
        made = await order(launcher)
        await house.manager.fleet.list()
        assert ready(house, agent.launch_id)
        await house.park(token_of(made), "second")
        assert await ends_parked(agent.socket) == CloseCode.SESSION_ENDED


async def test_dyno_that_cannot_be_had_is_not_asked_for_again_at_once() -> None:
    launcher = Scripted()
    launcher.refusals.append(LaunchError("the platform is down"))
    async with running(launcher, None, WARM) as (house, _):
        said = await happens(house, events.NotParked)
        assert "the platform is down" in said.why
        await looked_again(launcher, 10)
        assert launcher.tried == 1
        assert house.manager.fleet.book.report(NOW)["running"] == []


async def test_failure_to_park_leaves_those_that_are_parked() -> None:
    launcher = Scripted()
    async with running(launcher, None, WARM) as (house, _):
        agent = await parked(house, launcher)
        launcher.refusals.append(LaunchError("no more"))
        warm(house, warm=2)
        await happens(house, events.NotParked)
        await looked_again(launcher, 10)
        assert ready(house, agent.launch_id)
        await opens(house, agent)


async def test_after_a_failure_it_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "AGAIN_S", 0.02)
    launcher = Scripted()
    launcher.refusals.append(LaunchError("not now"))
    async with running(launcher, None, WARM) as (house, _):
        await order(launcher)
        await opens(house, await parked(house, launcher))


async def test_parked_dynos_that_die_at_boot_are_not_launched_without_end() -> None:
    async with running(None, None, WARM) as (house, launcher):
        made = await order(launcher)
        house.manager.reconciler.heard(News(made.launch_id, "fake", "crashed", True, 1))
        await happens(house, events.DynoUnparked)
        await looked_again(launcher, 10)
        assert launcher.tried == 1


async def test_parked_dynos_that_never_dial_are_not_launched_without_end() -> None:
    async with running(None, None, definition(warm=1, boot_timeout=0.02)) as (house, launcher):
        await happens(house, events.DynoUnparked)
        await looked_again(launcher, 10)
        assert launcher.tried == 1


async def test_parked_dyno_of_an_unsettled_launch_is_adopted_when_it_dials() -> None:
    launcher = Scripted()
    launcher.refusals.append(LaunchUnsettled("no answer"))
    async with running(launcher, None, WARM) as (house, _):
        made = await order(launcher)
        launcher.runs(Dyno("app/late", made.launch_id))
        agent = await house.park(token_of(made))
        found = house.manager.pool.find(made.launch_id)
        assert found is not None
        await eventually(lambda: found.dyno_id == "app/late")
        session = await opens(house, agent)
        assert house.live(session).record.dyno_id == "app/late"


async def test_pool_stands_in_no_line_before_sessions() -> None:
    """At the limit every dyno is for who waits for one."""
    launcher = Scripted(limit=1)
    async with running(launcher, None, definition(warm=0)) as (house, _):
        await booted(house, launcher)
        warm(house, warm=1)
        await happens(house, events.NotParked)
        assert house.manager.fleet.lines == {}


async def test_pool_never_costs_more_than_its_cap_in_an_hour() -> None:
    server = definition(warm=5)
    async with running(None, terms(caps=Caps(usd_per_hour=7.3)), server) as (house, launcher):
        for name in ("one", "two"):
            await parked(house, launcher, name)
        await looked_again(launcher, 10)
        assert launcher.tried == 2


async def test_pool_that_is_taken_over_by_nobody_leaves_no_session_behind() -> None:
    async with running(None, None, WARM) as (house, launcher):
        await parked(house, launcher)
        assert len(house.manager.directory) == 0
        assert house.manager.sessions == 0


async def test_parked_dyno_is_no_orphan(monkeypatch: pytest.MonkeyPatch) -> None:
    agreed = terms(grace_s=0.0)
    async with running(None, agreed, WARM) as (house, launcher):
        agent = await parked(house, launcher)
        await looked_again(launcher, 5)
        assert heard(house, events.OrphanGone) == []
        assert ready(house, agent.launch_id)


async def test_each_dyno_of_the_pool_is_stopped_once() -> None:
    async with running(None, terms(grace_s=0.0), WARM) as (house, launcher):
        agent = await parked(house, launcher)
        house.manager.pool._not_before["patient"] = float("inf")
        await agent.socket.send("talk")
        await happens(house, events.DynoUnparked)
        await looked_again(launcher, 5)
        assert launcher.stopped == [f"fake.{agent.launch_id}"]


async def test_news_of_a_dyno_that_is_adopted_is_news_of_its_session() -> None:
    async with running(None, None, WARM) as (house, launcher):
        agent = await parked(house, launcher)
        await opens(house, agent)
        house.manager.reconciler.heard(
            News(agent.launch_id, f"fake.{agent.launch_id}", "crashed", True, 137)
        )
        closed = await happens(house, events.Closed)
        assert closed.reason == "link_lost"


async def test_no_join_token_is_heard_or_logged() -> None:
    with capture_logs() as logs:
        async with running(None, None, WARM) as (house, launcher):
            made = await order(launcher)
            agent = await house.park(token_of(made))
            await eventually(lambda: ready(house, agent.launch_id))
            session = await opens(house, agent)
            await house.works(agent, session)
    secret = token_of(made).partition(".")[2]
    said = repr(logs) + repr(house.ear.heard) + repr(made)
    assert secret not in said
    assert session not in said


async def test_gateway_without_wishes_parks_nothing() -> None:
    launcher = Scripted()
    async with opened(launcher, terms(), (definition(),)):
        await looked_again(launcher, 5)
    assert launcher.tried == 0


# Whatever happens


class Mischief:
    """Agents that are lost, talk out of turn and come back; clients that come and go."""

    def __init__(self, house: House, launcher: Scripted, seed: int) -> None:
        self.house, self.launcher = house, launcher
        self.chance = random.Random(seed)  # noqa: S311 - mischief, no secret
        self.welcomed: list[str] = []

    async def agents(self, tasks: asyncio.TaskGroup) -> None:
        """Play the agent of every dyno."""
        while True:
            made = await self.launcher.orders.get()
            tasks.create_task(self.agent(made))

    async def agent(self, made: LaunchOrder) -> None:
        """Dial until there is a session, or nobody wants this one any more."""
        agent = Agent(made.launch_id)
        with suppress(InvalidStatus, OSError):
            while not await self.serves(agent, made):
                pass

    async def serves(self, agent: Agent, made: LaunchOrder) -> bool:
        """Dial once; return whether that was the last time."""
        socket = await self.house.dial(token_of(made))
        with suppress(ConnectionClosed):
            await socket.send(agent.hello().encode())
            while is_parked(text := str(await socket.recv())):
                lot = self.chance.random()
                if lot < 0.15:
                    socket.transport.abort()
                    return False
                if lot < 0.2:
                    await socket.send("a word out of turn")
            self.welcomed.append(made.launch_id)
            await agent.welcomed(socket, Welcome.decode(text))
            self.house.agents.append(agent)
            self.house.tasks.create_task(agent.read(socket))
            with suppress(AssertionError, KeyError):
                await agent.boots()
            return True
        return (socket.close_code or 0) > 4500

    async def client(self) -> None:
        """Open a session, and end it."""
        for _ in range(self.chance.randrange(200)):
            await asyncio.sleep(0)
        response = await self.house.post(INITIALIZE)
        if response.status == 200:
            await self.house.delete(response.headers["Mcp-Session-Id"])


@pytest.mark.no_cover  # counting lines takes longer than the test; others count them
@pytest.mark.parametrize("seed", range(6))
async def test_whatever_happens_each_dyno_has_one_session_at_most_and_none_is_left(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.rendezvous.endpoint.PARKED_S", 0.2)
    monkeypatch.setattr(pool, "AGAIN_S", 0.02)
    monkeypatch.setattr(stock, "REDIAL_S", 0.2)
    monkeypatch.setattr(line, "AGAIN_S", 0.05)
    launcher, clock = Scripted(limit=6), Clock()
    server = definition(warm=3, boot_timeout=2.0)
    agreed = terms(clock, queue_length=50, grace_s=1.0)
    async with running(launcher, agreed, server) as (house, _):
        play = Mischief(house, launcher, seed)
        async with asyncio.timeout(2 * BOUND), asyncio.TaskGroup() as tasks:
            playing = tasks.create_task(play.agents(tasks))
            async with asyncio.TaskGroup() as clients:
                for _ in range(25):
                    clients.create_task(play.client())
            assert len(house.manager.fleet.lines) == 0
            await house.manager.drain()
            playing.cancel()
        adopted = [each.launch for each in heard(house, events.Adopted)]
        launching = [each.launch for each in heard(house, events.Launching)]
        assert len(adopted) == len(set(adopted))
        assert len(launching) == len(set(launching))
        assert set(play.welcomed) <= {*launching, *adopted}
        assert launcher.running == {}
        report = house.manager.fleet.book.report(clock.now)
        assert report["running"] == []
        closed = [each.session for each in heard(house, events.Closed)]
        assert len(closed) == len(set(closed))
        assert len(closed) == len(heard(house, events.Requested))
