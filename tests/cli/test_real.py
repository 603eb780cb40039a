"""The commands and a real gateway: what one says, the other understands."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from dyno_agent.link import Channel
from gateway.cli import sessions as room
from tests.cli.desk import ADMIN, EVIL, gw, piped, safe
from tests.edge.dynos_house import booted, definition, hurry, platform, running
from tests.fakes.house import BOUND
from tests.fakes.launchers import Scripted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.fakes.house import Agent, House


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    monkeypatch.setattr(room, "LOOK_S", 0.01)


@asynccontextmanager
async def served() -> AsyncIterator[tuple[House, Agent, str, dict[str, Any]]]:
    """A gateway with one session: its agent, its id and the way in for operators."""
    launcher = Scripted()
    with capture_logs():  # its lines would be the command's, in the same process
        async with _gateway(launcher) as house:
            agent, key = await booted(house, launcher)
            access = {"GATEWAY_URL": house.origin, "ADMIN_KEY": ADMIN}
            yield house, agent, house.live(key).record.session_id, access


@asynccontextmanager
async def _gateway(launcher: Scripted) -> AsyncIterator[House]:
    async with running(
        launcher,
        None,
        definition(description=f"about {EVIL[:20]}"),
        platform=platform(launcher),
        admin_key=ADMIN,
        heroku_refresh_s=86_400,
    ) as (house, _):
        yield house


async def test_session_is_listed_inspected_and_told() -> None:
    async with served() as (house, agent, session, access):
        await agent.send(Channel.LOG, {"text": EVIL[:20]})
        await house.ear.until("stderr")
        listed = await gw("sessions", "--json", **access)
        assert [each["session"] for each in listed.json["sessions"]] == [session]
        inspected = await gw("inspect", session, **access)
        told = await gw("logs", session, **access)
    assert (inspected.code, told.code) == (0, 0)
    assert session in inspected.out
    assert "requested" in told.out
    assert "ready" in told.out
    assert "stderr" in told.out
    assert safe(told.out)


async def test_session_is_followed_until_it_is_killed() -> None:
    async with served() as (_, agent, session, access):
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
            following = tasks.create_task(piped("logs", "-f", session, "--json", **access))
            killing = tasks.create_task(gw("kill", session, **access))
            await agent.leaves()
        followed, killed = following.result(), killing.result()
    assert (killed.code, followed.code) == (0, 0), (killed, followed)
    assert "closed: operator" in killed.out
    events = [json.loads(line) for line in followed.out.splitlines()]
    assert events[-1]["event"] == "closed"
    assert [each["n"] for each in events] == list(range(1, len(events) + 1))


async def test_servers_and_costs_are_shown() -> None:
    async with served() as (_, _agent, session, access):
        servers = await gw("servers", **access)
        server = await gw("servers", "patient", "--log-level", "debug", **access)
        cost = await gw("cost", **access)
    assert (servers.code, server.code, cost.code) == (0, 0, 0), (servers, server, cost)
    assert safe(servers.out + server.out)
    assert "log level  debug" in server.out
    assert session in cost.out


async def test_line_that_starts_a_dyno_is_printed() -> None:
    async with served() as (house, _, _session, access):
        said = await gw("bootstrap", "patient", **access)
        (invitation,) = list(house.manager.pool)
        refused = await gw("bootstrap", "nobody", **access)
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"run patient {invitation.launch_id} RENDEZVOUS_URL=")
    assert len(said.out.splitlines()) == 1
    assert refused.code == 1
    assert "there are: patient" in refused.err


async def test_every_command_says_that_the_key_is_another() -> None:
    commands = (("sessions",), ("servers",), ("cost",), ("bootstrap", "patient"), ("logs", "s-1"))
    async with served() as (house, _, _session, _access):
        for command in (*commands, ("inspect", "s-1"), ("kill", "s-1")):
            said = await gw(*command, GATEWAY_URL=house.origin, ADMIN_KEY="another" * 6)
            assert (said.code, said.out) == (1, "")
            assert "ADMIN_KEY" in said.err
