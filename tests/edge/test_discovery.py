"""Servers that come, change and go while the gateway serves."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from gateway import events
from gateway.launchers.heroku.formation import Process
from gateway.registry.servers import ServerDefinition
from gateway.sessions import catalogues
from tests.edge.dynos_house import (
    FOREVER,
    Apps,
    happens,
    heard,
    hurry,
    looked_again,
    opening,
    order,
    platform,
    running,
    terms,
)
from tests.edge.eras_house import LIST, OPEN, TOOLS, Program, stage
from tests.edge.eras_house import opens as opens_dormant
from tests.fakes.house import INITIALIZE, RESUMING, Agent, House, eventually, refusal
from tests.fakes.launchers import Scripted

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

ENTRY = ServerDefinition(
    name="patient",
    app="a",
    process_type="mcp-x",
    era="legacy",
    translate=False,
    catalogue=False,
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    monkeypatch.setattr(catalogues, "AGAIN_S", (FOREVER,))


def process(release: str = "v1", name: str = "mcp-x", app: str = "a") -> Process:
    return Process(app, name, "run it", "basic", release)


async def asked(house: House) -> None:
    async with house.http.post(
        f"{house.origin}/admin/v1/servers/refresh", headers={"Authorization": f"Bearer {ADMIN}"}
    ) as response:
        assert response.status == 200


ADMIN = "a" * 32


def adminned(
    launcher: Scripted, apps: Apps, *entries: ServerDefinition, **more: Any
) -> AbstractAsyncContextManager[tuple[House, Scripted]]:
    return running(
        launcher,
        terms(**more),
        *(entries or (ENTRY,)),
        platform=platform(launcher, apps),
        heroku_refresh_s=86_400,
        admin_key=ADMIN,
    )


async def boots(house: House, launcher: Scripted) -> tuple[Agent, str]:
    async with opening(house) as call:
        agent = await house.join(await order(launcher))
        await agent.boots()
    assert call.result().status == 200
    return agent, call.result().headers["Mcp-Session-Id"]


async def test_servers_are_known_before_the_first_request() -> None:
    launcher, apps = Scripted(), Apps()
    apps.have(process())
    async with adminned(launcher, apps) as (house, _):
        agent, _ = await boots(house, launcher)
        child = agent.welcome.child
        assert child is not None
        assert child.argv == ("bash", "-c", "run it")
        said = heard(house, events.Registered)
        assert [(each.server, each.app, each.release) for each in said] == [("patient", "a", "v1")]


async def test_dyno_is_ordered_from_the_servers_app() -> None:
    launcher, apps = Scripted(), Apps()
    apps.have(process())
    async with adminned(launcher, apps) as (house, _):
        async with opening(house) as call:
            made = await order(launcher)
            assert (made.app, made.size) == ("a", "basic")
            await (await house.join(made)).boots()
        assert call.result().status == 200


async def test_process_type_that_is_gone_is_refused_to_new_sessions() -> None:
    launcher, apps = Scripted(), Apps()
    apps.have(process())
    async with adminned(launcher, apps) as (house, _):
        apps.have()
        await asked(house)
        refused = await house.post(INITIALIZE)
        assert (await refusal(refused))[::2] == (404, "unknown_server")
        assert [each.server for each in heard(house, events.Disconnected)] == ["patient"]


async def test_session_of_a_server_that_is_gone_goes_on() -> None:
    launcher, apps = Scripted(), Apps()
    apps.have(process())
    async with adminned(launcher, apps) as (house, _):
        agent, session = await boots(house, launcher)
        apps.have()
        await asked(house)
        await house.works(agent, session)
        async with house.listening(session, revision=RESUMING):
            pass
        assert await house.delete(session) in (200, 204)
        assert (await happens(house, events.Closed)).reason == "client_delete"


async def test_unknown_session_of_a_server_that_is_gone_is_unknown() -> None:
    launcher, apps = Scripted(), Apps()
    apps.have(process())
    async with adminned(launcher, apps) as (house, _):
        apps.have()
        await asked(house)
        refused = await house.post({"jsonrpc": "2.0", "id": 1, "method": "ping"}, "no-such-key")
        assert refused.status == 404


async def test_modern_client_of_a_server_that_is_gone_gets_no_new_dyno() -> None:
    launcher, apps = Scripted(), Apps()
    entry = ServerDefinition(
        name="patient", app="a", process_type="mcp-x", era="modern", catalogue=False
    )
    apps.have(process())
    async with adminned(launcher, apps, entry) as (house, _):
        apps.have()
        await asked(house)
        body = {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "tools/list",
            "params": {
                "_meta": {
                    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                    "io.modelcontextprotocol/clientCapabilities": {},
                }
            },
        }
        headers = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/list"}
        async with house.http.post(house.url, json=body, headers=headers) as response:
            assert response.status == 404, await response.text()
        assert launcher.tried == 0


async def test_client_of_the_old_transport_opens_no_session_of_a_server_that_is_gone() -> None:
    launcher, apps = Scripted(), Apps()
    apps.have(process())
    async with adminned(launcher, apps) as (house, _):
        apps.have()
        await asked(house)
        async with house.http.get(f"{house.origin}/servers/patient/sse") as response:
            assert response.status == 404
        assert len(house.manager.directory) == 0


async def test_agent_of_a_server_that_is_gone_may_come_back_after_its_link_broke() -> None:
    launcher, apps = Scripted(), Apps()
    apps.have(process())
    async with adminned(launcher, apps) as (house, _):
        agent, session = await boots(house, launcher)
        apps.have()
        await asked(house)
        agent.cut()
        await house.resume(agent)
        await house.works(agent, session)


async def test_agent_of_a_server_that_is_gone_may_come_to_a_process_that_knew_it() -> None:
    launcher, apps, others = Scripted(), Apps(), Apps()
    apps.have(process())
    others.have(process())
    async with (
        adminned(launcher, apps, hand_over=True) as (old, _),
        adminned(launcher, others, hand_over=True) as (new, _),
    ):
        agent, session = await boots(old, launcher)
        others.have()
        await asked(new)
        agent.cut()
        await new.resume(agent)
        await new.works(agent, session)


async def test_server_that_comes_back_takes_sessions_again() -> None:
    launcher, apps = Scripted(), Apps()
    apps.have(process())
    async with adminned(launcher, apps) as (house, _):
        apps.have()
        await asked(house)
        apps.have(process("v2"))
        await asked(house)
        await boots(house, launcher)


async def test_app_that_cannot_be_looked_at_keeps_its_servers_and_is_told_once() -> None:
    launcher, apps = Scripted(), Apps()
    apps.have(process())
    async with adminned(launcher, apps) as (house, _):
        for _ in range(3):
            apps.have(a="503")
            await asked(house)
        await boots(house, launcher)
        said = heard(house, events.NotDiscovered)
        assert [(each.app, each.why) for each in said] == [("a", "503")]


async def test_release_makes_the_catalogue_look_again_at_once_and_tells_dormant_sessions() -> None:
    launcher, apps = Scripted(), Apps()
    entry = ServerDefinition(
        name="patient", app="a", process_type="mcp-x", era="legacy", translate=False
    )
    apps.have(process())
    async with adminned(launcher, apps, entry) as (house, _), stage(house) as played:
        await played.looks(Program())
        session, _ = await opens_dormant(house, OPEN, RESUMING)
        await house.post(LIST, session, RESUMING)  # who was told is told again
        async with house.listening(session) as stream:
            apps.have(process("v2"))
            await asked(house)
            await played.looks(Program(answers={"tools/list": {"tools": TOOLS[:1]}}))
            told = await stream.message()
        assert told == {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}
        listing = await house.post(LIST, session, RESUMING)
        assert (await listing.json())["result"]["tools"] == TOOLS[:1]


async def test_release_during_a_look_makes_another_one() -> None:
    launcher, apps = Scripted(), Apps()
    entry = ServerDefinition(
        name="patient", app="a", process_type="mcp-x", era="legacy", translate=False
    )
    apps.have(process())
    async with adminned(launcher, apps, entry) as (house, _), stage(house) as played:
        first = await played.order()
        apps.have(process("v2"))
        await asked(house)
        child = await played.child_of(first, Program())
        await house.ear.closed(child.agent)
        await played.looks(Program())


async def test_server_that_comes_later_is_looked_at() -> None:
    launcher, apps = Scripted(), Apps()
    async with adminned(launcher, apps) as (house, _), stage(house) as played:
        apps.have(Process("a", "mcp-y", "run", None, "v1"))
        await asked(house)
        async with asyncio.TaskGroup() as group:
            run = group.create_task(played.order())
            made = await run
        assert made.server == "mcp-y"


async def test_server_that_is_gone_is_not_looked_at_any_more() -> None:
    launcher, apps = Scripted(), Apps()
    entry = ServerDefinition(
        name="patient", app="a", process_type="mcp-x", era="legacy", translate=False
    )
    apps.have(process())
    async with adminned(launcher, apps, entry) as (house, _), stage(house) as played:
        made = await played.order()
        apps.have()
        await asked(house)
        await eventually(lambda: len(house.manager.directory) == 0)
        await eventually(lambda: made.launch_id not in launcher.running)
        await looked_again(launcher, 5)
        assert launcher.tried == 1
