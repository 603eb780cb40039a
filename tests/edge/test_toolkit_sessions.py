"""Sessions of toolkits, and those with their members that follow from their keys.

The toolkit's own never has a dyno. A member's is opened by the first request for it, at whichever
process, as often as one has ended, and by nobody else. No transport of toolkits is needed for that:
a member's session is presented at its own server's endpoint.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from dyno_agent.link import Channel
from gateway import events
from gateway.eras.legacy import Opening
from gateway.errors import Elsewhere, SessionEnded, UnknownMethod, UnknownSession
from gateway.jsonrpc import peek
from gateway.registry.servers import ServerDefinition
from gateway.sessions import catalogues, dynos, whereabouts
from gateway.sessions import manager as sessions
from gateway.sessions.catalogues import Catalogues
from gateway.sessions.record import Reason
from gateway.store.memory import Engine, MemoryStore
from tests.fakes.house import BOUND, LASTING, RESUMING, Agent, House, eventually, opened
from tests.fakes.launchers import RecordingLauncher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import aiohttp

    from gateway.sessions.live import OwnedLive

NEVER = BOUND * 60

PARAMS = {
    "protocolVersion": RESUMING,
    "capabilities": {"roots": {}},
    "clientInfo": {"name": "é", "version": "1"},
}
ANSWER = {"protocolVersion": RESUMING, "capabilities": {}, "serverInfo": {"name": "played"}}
CALL = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "work"}}
LIST = b'{"jsonrpc":"2.0","id":2,"method":"tools/list"}'
FLAG = "Rendezvous-Session"


def serving(name: str, **keys: Any) -> ServerDefinition:
    return ServerDefinition(name=name, command="never-run", era="legacy", translate=False, **keys)


PG, MD = serving("pg"), serving("md")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks at servers: what their lists hold is not asked here."""
    monkeypatch.setattr(Catalogues, "_start", lambda _self, _name: None)
    monkeypatch.setattr(catalogues, "GLANCE_S", 0.0)
    monkeypatch.setattr(sessions, "TICK_S", 0.01)
    monkeypatch.setattr(sessions, "HOLD_S", NEVER)  # who waits for it never ends
    monkeypatch.setattr(dynos, "LEAVE_S", 0.01)
    monkeypatch.setattr(whereabouts, "LOOK_S", 0.05)
    monkeypatch.setattr(whereabouts, "ALIVE_S", 0.0)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with opened(None, LASTING, (PG, MD)) as house:
        yield house


def kit_of(house: House) -> ServerDefinition:
    found = house.registry.toolkit("all")
    assert found is not None
    return found


async def opens(house: House, params: Any = PARAMS) -> str:
    """Open a toolkit's session as its endpoint does; return its key."""
    kit = kit_of(house)
    opening = Opening(json.dumps(params), RESUMING)
    chapter = house.manager.reception.chapter(kit)
    key, live = house.manager.open(kit, "test", "client", opening, chapter)
    await house.manager.publish(live)
    return key


def member(house: House, key: str, server: ServerDefinition = PG) -> str:
    return house.manager.member_key(key, "test", kit_of(house), server)


async def finds(house: House, key: str, server: ServerDefinition = PG) -> OwnedLive:
    async with asyncio.timeout(BOUND):
        return await house.manager.find(key, "test", server)


async def post(
    house: House, session: str, body: Any = CALL, server: str = "pg"
) -> aiohttp.ClientResponse:
    headers = {"MCP-Protocol-Version": "2025-06-18", "Mcp-Session-Id": session}
    url = f"{house.origin}/servers/{server}/mcp"
    async with (
        asyncio.timeout(BOUND),
        house.http.post(url, json=body, headers=headers) as response,
    ):
        await response.read()
    return response


async def next_agent(house: House) -> Agent:
    async with asyncio.timeout(BOUND):
        agent = await house.join(await house.launcher.orders.get())
    await agent.send(Channel.EVENT, {"event": "spawned", "pid": 1})
    return agent


async def reads(agent: Agent) -> Any:
    return json.loads((await agent.receive()).payload)


async def served(
    house: House, session: str, server: str = "pg"
) -> tuple[Agent, aiohttp.ClientResponse]:
    """Call a member whose dyno boots for it; return its agent and the response."""
    waiting = house.tasks.create_task(post(house, session, server=server))
    agent = await next_agent(house)
    await agent.answer(ANSWER)
    assert (await reads(agent))["method"] == "notifications/initialized"
    assert await agent.answer({}) == CALL
    return agent, await waiting


async def ends(house: House, agent: Agent) -> None:
    await agent.send(Channel.EVENT, {"event": "exited", "code": 1})
    assert await house.ear.closed(agent) == Reason.PROCESS_EXIT


def launched(house: House) -> list[str]:
    """Return the servers that dynos were asked for, in order."""
    heard = house.ear.heard
    servers = {e.session: e.server for e in heard if isinstance(e, events.Requested)}
    return [servers[e.session] for e in heard if isinstance(e, events.Launching)]


def unknown(house: House, key: str, principal: str = "test", server: ServerDefinition = PG) -> None:
    with pytest.raises(UnknownSession):
        house.manager.member_key(key, principal, kit_of(house), server)


# A member's session


async def test_member_boots_for_the_first_call_that_is_for_it(house: House) -> None:
    key = await opens(house)
    assert house.launcher.orders.empty()
    _, response = await served(house, member(house, key))
    assert await response.json() == {"jsonrpc": "2.0", "id": 7, "result": {}}
    assert launched(house) == ["pg"]


async def test_member_hears_how_its_client_has_opened_the_toolkits_session(house: House) -> None:
    waiting = house.tasks.create_task(post(house, member(house, await opens(house))))
    agent = await next_agent(house)
    opening = await agent.answer(ANSWER)
    assert (opening["method"], opening["params"]) == ("initialize", PARAMS)
    assert (await reads(agent))["method"] == "notifications/initialized"
    await agent.answer({})
    await waiting


async def test_member_of_an_older_revision_than_the_toolkits_serves(house: House) -> None:
    waiting = house.tasks.create_task(post(house, member(house, await opens(house))))
    agent = await next_agent(house)
    await agent.answer({**ANSWER, "protocolVersion": "2024-11-05"})
    await reads(agent)
    await agent.answer({"old": True})
    assert (await (await waiting).json())["result"] == {"old": True}


async def test_member_hears_the_short_form_of_an_opening_too_long_to_be_carried(
    house: House,
) -> None:
    params = {**PARAMS, "x": "x" * sessions.CARRIED_CHARACTERS}
    waiting = house.tasks.create_task(post(house, member(house, await opens(house, params))))
    agent = await next_agent(house)
    assert (await agent.answer(ANSWER))["params"] == PARAMS
    await reads(agent)
    await agent.answer({})
    assert (await waiting).status == 200


async def test_each_member_has_a_dyno_of_its_own(house: House) -> None:
    key = await opens(house)
    await served(house, member(house, key))
    await served(house, member(house, key, MD), "md")
    assert launched(house) == ["pg", "md"]


async def test_later_calls_go_to_the_same_dyno(house: House) -> None:
    key = await opens(house)
    agent, _ = await served(house, member(house, key))
    again = house.tasks.create_task(post(house, member(house, key), {**CALL, "id": 8}))
    await agent.answer({"same": True})
    assert (await (await again).json())["result"] == {"same": True}
    assert house.launcher.orders.empty()


async def test_first_session_with_a_member_has_lost_nothing(house: House) -> None:
    _, response = await served(house, member(house, await opens(house)))
    assert FLAG not in response.headers
    requested = [e for e in house.ear.heard if isinstance(e, events.Requested)]
    assert [(e.server, e.rebuilt) for e in requested] == [("toolkit/all", False), ("pg", False)]


async def test_member_that_has_ended_boots_again_and_says_that_it_lost_its_state(
    house: House,
) -> None:
    session = member(house, await opens(house))
    agent, _ = await served(house, session)
    await ends(house, agent)
    _, response = await served(house, session)
    assert (response.status, response.headers[FLAG]) == (200, "rebuilt")


async def test_end_of_a_member_leaves_the_others_and_the_toolkit_alone(house: House) -> None:
    key = await opens(house)
    agent, _ = await served(house, member(house, key))
    await served(house, member(house, key, MD), "md")
    await ends(house, agent)
    left = {live.record.server.name for live in house.manager.directory}
    assert left == {"toolkit/all", "md"}


async def test_requests_that_come_at_once_share_one_session(house: House) -> None:
    session = member(house, await opens(house))
    async with asyncio.TaskGroup() as tasks:
        found = [tasks.create_task(finds(house, session)) for _ in range(5)]
    assert len({id(task.result()) for task in found}) == 1


async def test_member_is_found_though_the_toolkits_own_session_has_ended(house: House) -> None:
    key = await opens(house)
    live = house.live(key)
    house.manager.end(live, Reason.IDLE, SessionEnded("nobody used it"))
    assert (await finds(house, member(house, key))).record.server == PG


async def test_session_of_a_toolkit_that_began_here_waits_for_no_member_to_come_back() -> None:
    """For a while after its start a process expects agents of sessions that it never saw."""
    async with opened(None, LASTING, (PG, MD)) as house:
        assert not (await finds(house, member(house, await opens(house)))).rebuilt


async def test_session_of_a_toolkit_that_began_elsewhere_waits_for_its_members() -> None:
    async with (
        opened(None, LASTING, (PG, MD)) as old,
        opened(old.launcher, LASTING, (PG, MD)) as new,
    ):
        session = member(old, await opens(old))
        agent, _ = await served(old, session)
        waiting = new.tasks.create_task(post(new, session, {**CALL, "id": 8}))
        await eventually(lambda: new.manager.directory.awaited == 1)
        agent.cut()
        await new.resume(agent)
        await agent.answer({"kept": True})
        response = await waiting
        assert (await response.json())["result"] == {"kept": True}
        assert FLAG not in response.headers


async def test_process_that_never_saw_a_member_opens_it_and_claims_no_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions, "HOLD_S", 0.05)
    async with (
        opened(None, LASTING, (PG, MD)) as old,
        opened(old.launcher, LASTING, (PG, MD)) as new,
    ):
        session = member(new, await opens(old))
        _, response = await served(new, session)
        assert (response.status, FLAG in response.headers) == (200, False)


# Nobody else's


async def test_key_of_a_member_is_the_same_at_every_process(house: House) -> None:
    key = await opens(house)
    async with opened(None, LASTING, (PG, MD)) as other:
        assert member(other, key) == member(house, key)


async def test_another_principal_gets_no_member(house: House) -> None:
    key = await opens(house)
    unknown(house, key, "other")
    with pytest.raises(UnknownSession):
        await house.manager.find(member(house, key), "other", PG)


async def test_server_that_is_no_member_any_more_has_no_key(house: House) -> None:
    key = await opens(house)
    house.registry.replace([MD])
    unknown(house, key)


@pytest.mark.parametrize("key", ["", "garbage", "~x.y.z"])
async def test_key_that_was_never_given_out_leads_to_no_member(house: House, key: str) -> None:
    unknown(house, key)


async def test_key_of_a_member_leads_to_no_member(house: House) -> None:
    unknown(house, member(house, await opens(house)))


async def test_key_of_a_member_opens_no_toolkit(house: House) -> None:
    session = member(house, await opens(house))
    with pytest.raises(UnknownSession):
        await house.manager.find(session, "test", kit_of(house))


async def test_toolkits_session_that_its_client_has_ended_leads_to_no_member(house: House) -> None:
    key = await opens(house)
    error = SessionEnded("the client ended the session")
    house.manager.end(house.live(key), Reason.CLIENT_DELETE, error)
    unknown(house, key)


async def test_member_that_its_client_has_ended_stays_ended(house: House) -> None:
    session = member(house, await opens(house))
    error = SessionEnded("the client ended the session")
    house.manager.end(await finds(house, session), Reason.CLIENT_DELETE, error)
    with pytest.raises(UnknownSession):
        await finds(house, session)


# Whether there is one


async def test_member_lives_from_its_first_request_to_its_end(house: House) -> None:
    session = member(house, await opens(house))
    told = [await house.manager.alive(session)]
    live = await finds(house, session)
    told.append(await house.manager.alive(session))
    house.manager.end(live, Reason.IDLE, SessionEnded("nobody used it"))
    told.append(await house.manager.alive(session))
    assert told == [False, True, False]


@pytest.mark.parametrize("returning", [True, False])
async def test_asking_whether_a_member_lives_opens_none(house: House, *, returning: bool) -> None:
    session = member(house, await opens(house))
    async with asyncio.timeout(BOUND):
        assert not await house.manager.alive(session, returning=returning)
    assert [live.record.server.name for live in house.manager.directory] == ["toolkit/all"]


async def test_member_whose_agent_is_on_its_way_is_waited_for_if_one_wants_to() -> None:
    async with (
        opened(None, LASTING, (PG, MD)) as old,
        opened(old.launcher, LASTING, (PG, MD)) as new,
    ):
        session = member(old, await opens(old))
        agent, _ = await served(old, session)
        assert not await new.manager.alive(session)
        waiting = new.tasks.create_task(new.manager.alive(session, returning=True))
        await eventually(lambda: new.manager.directory.awaited == 1)
        agent.cut()
        await new.resume(agent)
        assert await waiting


# The toolkit's own session


async def test_toolkits_session_never_gets_a_dyno(house: House) -> None:
    live = house.live(await opens(house))
    with pytest.raises(UnknownMethod):
        house.manager.launch(live, "plain")
    with pytest.raises(UnknownMethod):
        house.manager.check_room(live)
    assert house.launcher.orders.empty()


async def test_toolkits_session_goes_on_after_its_end_as_if_nothing_was_lost(house: House) -> None:
    key = await opens(house)
    house.manager.end(house.live(key), Reason.IDLE, SessionEnded("nobody used it"))
    live = await finds(house, key, kit_of(house))
    overture = live.session.overture
    assert not live.rebuilt
    assert overture is not None
    answer = overture.answer(peek(LIST))
    assert answer is not None
    assert json.loads(answer)["result"] == {"tools": []}


async def test_toolkits_session_goes_on_at_a_process_that_never_saw_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions, "HOLD_S", 0.05)
    async with opened(None, LASTING, (PG, MD)) as old, opened(None, LASTING, (PG, MD)) as new:
        key = await opens(old)
        live = await finds(new, key, kit_of(new))
        assert (live.told, live.rebuilt) == (True, False)


# Several processes that share an engine


async def test_member_that_lives_at_another_process_is_alive_and_is_found_there() -> None:
    engine = Engine()
    async with (
        opened(None, LASTING, (PG, MD), store=MemoryStore(engine)) as one,
        opened(RecordingLauncher(), LASTING, (PG, MD), store=MemoryStore(engine)) as two,
    ):
        session = member(two, await opens(one))
        live = await finds(one, session)
        for returning in (False, True):
            assert await two.manager.alive(session, returning=returning)
        with pytest.raises(Elsewhere):
            await finds(two, session)
        one.manager.end(live, Reason.IDLE, SessionEnded("nobody used it"))
        await one.manager.ownership.settled(BOUND)
        assert not await two.manager.alive(session)


async def test_member_is_opened_at_once_by_whichever_process_is_asked_first() -> None:
    """A young process waits for agents of sessions that others may have forgotten, but not here."""
    engine = Engine()
    async with (
        opened(None, LASTING, (PG, MD), store=MemoryStore(engine)) as one,
        opened(RecordingLauncher(), LASTING, (PG, MD), store=MemoryStore(engine)) as two,
    ):
        key = await opens(one)
        assert (await finds(two, member(one, key, MD), MD)).record.server == MD
