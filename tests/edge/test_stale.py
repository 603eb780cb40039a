"""`stale: rebuild`: a client of a session that has ended is served on by a new dyno.

Its key says how the session was opened, sealed, so that any process of the deployment can open it
once more. Nobody else can, and a client that has ended its session itself has ended it.
"""

from __future__ import annotations

import asyncio
import base64
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from cryptography import fernet
from msgspec import Raw
from websockets.exceptions import InvalidStatus

from dyno_agent.link import Channel
from gateway import events
from gateway.eras.catalogue import Chapter
from gateway.registry.servers import ServerDefinition
from gateway.sessions import dynos
from gateway.sessions import manager as sessions
from gateway.sessions.catalogues import Catalogues
from gateway.sessions.keys import SessionKeys
from gateway.sessions.record import Reason
from gateway.sessions.terms import Terms
from tests.fakes.house import (
    BOUND,
    KEY,
    LASTING,
    OTHER_KEY,
    RESUMING,
    SECRET,
    Agent,
    House,
    eventually,
    opened,
    refusal,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import aiohttp

PARAMS = {
    "protocolVersion": RESUMING,
    "capabilities": {"roots": {}, "x": [1.5, None]},
    "clientInfo": {"name": "é", "version": "1"},
}
OPENING = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": PARAMS}
ANSWER = {"protocolVersion": RESUMING, "capabilities": {}, "serverInfo": {"name": "played"}}
CALL = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "work"}}
FLAG = "Rendezvous-Session"


def serving(name: str = "patient", **keys: Any) -> ServerDefinition:
    given = {"era": "legacy", "catalogue": False, "stale": "rebuild", **keys}
    return ServerDefinition(name=name, command="never-run", **given)


SERVERS = (serving(), serving("other"), serving("strict", stale="strict"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "TICK_S", 0.01)
    monkeypatch.setattr(sessions, "HOLD_S", 0.05)
    monkeypatch.setattr(dynos, "LEAVE_S", 0.01)  # a played agent does not leave


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with opened(servers=SERVERS) as house:
        yield house


async def post(
    house: House, body: Any, session: str | None = None, server: str = "patient", key: str = KEY
) -> aiohttp.ClientResponse:
    """POST a message and read its response to the end; of a client that resumes no streams."""
    headers = {"X-API-Key": key, "MCP-Protocol-Version": "2025-06-18"}
    if session is not None:
        headers["Mcp-Session-Id"] = session
    url = f"{house.origin}/servers/{server}/mcp"
    async with (
        asyncio.timeout(BOUND),
        house.http.post(url, json=body, headers=headers) as response,
    ):
        await response.read()
    return response


def posting(house: House, *args: Any, **rest: Any) -> asyncio.Task[aiohttp.ClientResponse]:
    return house.tasks.create_task(post(house, *args, **rest))


async def next_agent(house: House) -> Agent:
    """Let the agent of the next launch join, and its child run."""
    async with asyncio.timeout(BOUND):
        agent = await house.join(await house.launcher.orders.get())
    await agent.send(Channel.EVENT, {"event": "spawned", "pid": 1})
    return agent


async def reads(agent: Agent) -> Any:
    """Return the next message that the child is given."""
    return json.loads((await agent.receive()).payload)


async def begun(house: House, params: Any = PARAMS, server: str = "patient") -> tuple[Agent, str]:
    """Open a session as a client does; return its agent and its key."""
    call = posting(house, {**OPENING, "params": params}, server=server)
    agent = await next_agent(house)
    await agent.answer(ANSWER)
    response = await call
    assert (response.status, FLAG in response.headers) == (200, False)
    return agent, response.headers["Mcp-Session-Id"]


async def ended(house: House, agent: Agent) -> None:
    """The session's child exits."""
    await agent.send(Channel.EVENT, {"event": "exited", "code": 1})
    assert await house.ear.closed(agent) == Reason.PROCESS_EXIT


async def over(house: House, **rest: Any) -> str:
    """Return the key of a session that has ended."""
    agent, session = await begun(house, **rest)
    await ended(house, agent)
    return session


async def served(house: House, session: str, body: Any = CALL) -> aiohttp.ClientResponse:
    """Return the response to a call that needs a new dyno."""
    call = posting(house, body, session)
    agent = await next_agent(house)
    await agent.answer(ANSWER)
    assert (await reads(agent))["method"] == "notifications/initialized"
    await agent.answer({})
    return await call


async def unknown(house: House, session: str, body: Any = CALL, **rest: Any) -> None:
    """The session is the same 404 as one that never was, and gets no dyno."""
    response = await post(house, body, session, **rest)
    assert await refusal(response) == (404, -32001, "unknown_session", body["id"])
    assert house.launcher.orders.empty()


# It goes on


async def test_ended_session_goes_on_under_its_key(house: House) -> None:
    session = await over(house)
    response = await served(house, session)
    assert await response.json() == {"jsonrpc": "2.0", "id": 7, "result": {}}
    assert response.headers["Mcp-Session-Id"] == session


async def test_new_child_hears_how_its_client_opened_the_session_before_anything_else(
    house: House,
) -> None:
    session = await over(house)
    call = posting(house, CALL, session)
    agent = await next_agent(house)
    opening = await reads(agent)
    initialized, asked = await reads(agent), await reads(agent)
    assert (opening["method"], opening["params"]) == ("initialize", PARAMS)
    assert initialized == {"jsonrpc": "2.0", "method": "notifications/initialized"}
    assert asked == CALL
    await agent.say({"jsonrpc": "2.0", "id": opening["id"], "result": ANSWER})
    await agent.say({"jsonrpc": "2.0", "id": asked["id"], "result": {"x": 1}})
    assert (await (await call).json())["result"] == {"x": 1}


async def test_opening_reaches_the_new_child_byte_for_byte(house: House) -> None:
    raw = '{"b":1.50,"protocolVersion":"2025-06-18","a":[1e2, null],"é":"\\u00e9"}'
    body = f'{{"jsonrpc":"2.0","id":1,"method":"initialize","params":{raw}}}'.encode()
    headers = {"Content-Type": "application/json"}
    call = house.tasks.create_task(_raw(house, body, headers))
    first = await next_agent(house)
    await first.answer(ANSWER)
    session = await call
    await ended(house, first)
    again = posting(house, CALL, session)
    second = await next_agent(house)
    assert f'"params":{raw}'.encode() in bytes((await second.receive()).payload)
    again.cancel()


async def _raw(house: House, body: bytes, headers: dict[str, str]) -> str:
    async with house.http.post(house.url, data=body, headers=headers) as response:
        await response.read()
    return response.headers["Mcp-Session-Id"]


async def test_client_never_reads_the_answer_to_the_repeated_opening(house: House) -> None:
    session = await over(house)
    response = await served(house, session)
    assert (await response.json())["id"] == 7


async def test_lost_state_is_told_once(house: House) -> None:
    session = await over(house)
    call = posting(house, CALL, session)
    agent = await next_agent(house)
    await agent.answer(ANSWER)
    await reads(agent)
    await agent.answer({})
    first = await call
    later = posting(house, {**CALL, "id": 8}, session)
    await agent.answer({})
    flags = [response.headers.get(FLAG) for response in (first, await later)]
    assert flags == ["rebuilt", None]


async def test_lost_state_is_told_as_an_event(house: House) -> None:
    session = await over(house)
    await served(house, session)
    requested = [e.rebuilt for e in house.ear.heard if isinstance(e, events.Requested)]
    assert requested == [False, True]


async def test_session_that_fell_asleep_goes_on() -> None:
    async with opened(servers=(serving(idle_timeout=0.05),)) as house:
        agent, session = await begun(house)
        assert await house.ear.closed(agent) == Reason.IDLE
        response = await served(house, session)
        assert (response.status, response.headers[FLAG]) == (200, "rebuilt")


async def test_session_goes_on_after_every_end(house: House) -> None:
    session = await over(house)
    for _ in range(2):
        call = posting(house, CALL, session)
        agent = await next_agent(house)
        await agent.answer(ANSWER)
        await reads(agent)
        await agent.answer({})
        assert (await call).headers[FLAG] == "rebuilt"
        await ended(house, agent)


async def test_session_that_lives_is_not_made_again(house: House) -> None:
    agent, session = await begun(house)
    call = posting(house, CALL, session)
    await agent.answer({})
    assert FLAG not in (await call).headers
    assert house.launcher.orders.empty()


async def test_calls_that_come_at_once_share_one_new_dyno(house: House) -> None:
    session = await over(house)
    calls = [posting(house, {**CALL, "id": n}, session) for n in range(5)]
    agent = await next_agent(house)
    await agent.answer(ANSWER)
    await reads(agent)
    for _ in calls:
        await agent.answer({})
    responses = [await call for call in calls]
    assert [(await response.json())["id"] for response in responses] == list(range(5))
    assert [response.headers.get(FLAG) for response in responses].count("rebuilt") == 1
    assert house.launcher.orders.empty()


async def test_notification_wakes_an_ended_session_no_more_than_one_that_just_began(
    house: House,
) -> None:
    session = await over(house)
    body = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
    assert (await post(house, body, session)).status == 202
    assert house.launcher.orders.empty()
    assert (await served(house, session)).status == 200


async def test_ping_of_an_ended_session_needs_no_dyno(house: House) -> None:
    session = await over(house)
    response = await post(house, {"jsonrpc": "2.0", "id": 7, "method": "ping"}, session)
    assert (response.status, response.headers[FLAG]) == (200, "rebuilt")
    assert house.launcher.orders.empty()


async def test_child_that_refuses_to_begin_again_ends_the_session_with_an_error(
    house: House,
) -> None:
    session = await over(house)
    call = posting(house, CALL, session)
    agent = await next_agent(house)
    opening = await reads(agent)
    refused = {"code": -32602, "message": "no"}
    await agent.say({"jsonrpc": "2.0", "id": opening["id"], "error": refused})
    response = await call
    assert (await refusal(response))[1:] == (-32603, "session_ended", 7)


async def test_client_may_use_the_ids_that_the_gateway_has_used(house: House) -> None:
    session = await over(house)
    call = posting(house, CALL, session)
    agent = await next_agent(house)
    opening = await agent.answer(ANSWER)
    await reads(agent)
    await agent.answer({})
    await call
    same = posting(house, {**CALL, "id": opening["id"]}, session)
    await agent.answer({"mine": True})
    assert (await (await same).json())["result"] == {"mine": True}


# At another process


async def test_session_goes_on_at_a_process_that_never_saw_it() -> None:
    async with (
        opened(terms=LASTING, servers=SERVERS) as old,
        opened(old.launcher, LASTING, SERVERS) as new,
    ):
        _, session = await begun(old)
        response = await served(new, session)
        assert (response.status, response.headers[FLAG]) == (200, "rebuilt")
        assert response.headers["Mcp-Session-Id"] == session


async def test_session_whose_agent_comes_in_time_keeps_its_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions, "HOLD_S", BOUND)
    async with (
        opened(terms=LASTING, servers=SERVERS) as old,
        opened(old.launcher, LASTING, SERVERS) as new,
    ):
        agent, session = await begun(old)
        call = posting(new, CALL, session)
        await eventually(lambda: new.manager.directory.awaited == 1)
        agent.cut()
        await new.resume(agent)
        assert (await agent.answer({}))["id"] == 7
        assert FLAG not in (await call).headers
        assert new.launcher.orders.empty()


async def test_calls_that_wait_for_an_agent_in_vain_share_one_new_dyno() -> None:
    async with (
        opened(terms=LASTING, servers=SERVERS) as old,
        opened(old.launcher, LASTING, SERVERS) as new,
    ):
        _, session = await begun(old)
        calls = [posting(new, {**CALL, "id": n}, session) for n in range(5)]
        agent = await next_agent(new)
        await agent.answer(ANSWER)
        await reads(agent)
        for _ in calls:
            await agent.answer({})
        assert [(await call).status for call in calls] == [200] * 5
        assert new.launcher.orders.empty()


async def test_agent_that_comes_too_late_is_turned_away() -> None:
    async with (
        opened(terms=LASTING, servers=SERVERS) as old,
        opened(old.launcher, LASTING, SERVERS) as new,
    ):
        late, session = await begun(old)
        call = posting(new, CALL, session)
        agent = await next_agent(new)
        with pytest.raises(InvalidStatus):
            await new.resume(late)
        await agent.answer(ANSWER)
        await reads(agent)
        await agent.answer({})
        assert (await call).status == 200


# What the catalogue has told


@pytest.fixture
def catalogued(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a child answers to `initialize` is known, so that sessions open without a dyno."""
    chapter = Chapter("legacy", Raw(msgspec.json.encode(ANSWER)), {}, 1.0)

    def known(_: Catalogues, server: ServerDefinition, era: str) -> Chapter | None:
        return chapter if era == "legacy" else None

    monkeypatch.setattr(Catalogues, "chapter", known)


@pytest.mark.usefixtures("catalogued")
async def test_session_that_never_had_a_dyno_goes_on_at_another_process() -> None:
    async with opened(servers=SERVERS) as old, opened(old.launcher, servers=SERVERS) as new:
        session = (await post(old, OPENING)).headers["Mcp-Session-Id"]
        assert old.launcher.orders.empty()
        assert (await served(new, session)).status == 200


@pytest.mark.usefixtures("catalogued")
async def test_child_of_another_revision_than_was_told_ends_the_session_with_an_error(
    house: House,
) -> None:
    session = (await post(house, OPENING)).headers["Mcp-Session-Id"]
    call = posting(house, CALL, session)
    await ended(house, await next_agent(house))
    await call
    again = posting(house, CALL, session)
    await (await next_agent(house)).answer({**ANSWER, "protocolVersion": "2024-11-05"})
    assert (await refusal(await again))[1:] == (-32603, "session_ended", 7)


# Nobody else


async def test_session_that_its_client_has_ended_stays_ended(house: House) -> None:
    _, session = await begun(house)
    assert await house.delete(session) == 204
    await unknown(house, session)


async def test_rebuilt_session_that_its_client_has_ended_stays_ended(house: House) -> None:
    session = await over(house)
    await served(house, session)
    assert await house.delete(session) == 204
    await unknown(house, session)


async def test_another_principal_does_not_get_it(house: House) -> None:
    await unknown(house, await over(house), key=OTHER_KEY)


async def test_its_own_client_gets_it_after_another_principal_has_tried(house: House) -> None:
    session = await over(house)
    await unknown(house, session, key=OTHER_KEY)
    assert (await served(house, session)).status == 200


async def test_another_server_does_not_get_it(house: House) -> None:
    await unknown(house, await over(house), server="other")


async def test_strict_server_does_not_get_it(house: House) -> None:
    await unknown(house, await over(house), server="strict")


async def test_session_of_a_strict_server_stays_ended(house: House) -> None:
    agent, session = await begun(house, server="strict")
    await ended(house, agent)
    await unknown(house, session, server="strict")


async def test_session_of_a_server_that_has_become_strict_stays_ended(house: House) -> None:
    """Both processes have one secret, and no session outlives either."""
    session = await over(house)
    async with opened(servers=(serving(stale="strict"),)) as later:
        await unknown(later, session)


async def test_key_of_a_strict_server_carries_nothing(house: House) -> None:
    _, session = await begun(house, server="strict")
    assert SessionKeys.carried(session) == ""


@pytest.mark.parametrize(
    "change",
    [
        lambda key: "garbage",
        lambda key: key.rpartition(".")[0],
        lambda key: key + "=",
        lambda key: key + "AAAA",
        lambda key: "x" + key,
        lambda key: key.replace(".", ".0", 1),
        lambda key: ".." + SessionKeys.carried(key),
        SessionKeys.carried,
        lambda key: key.rpartition(".")[0] + ".garbage",
    ],
    ids=[
        *("garbage", "nothing carried", "padded", "longer", "other nonce", "other mac"),
        *("no nonce", "carried alone", "other carried"),
    ],
)
async def test_key_that_was_never_given_out_stays_unknown(house: House, change: Any) -> None:
    await unknown(house, change(await over(house)))


async def test_what_another_principals_key_carries_is_worth_nothing_in_ones_own(
    house: House,
) -> None:
    mine = await over(house)
    call = posting(house, OPENING, key=OTHER_KEY)
    agent = await next_agent(house)
    await agent.answer(ANSWER)
    theirs = (await call).headers["Mcp-Session-Id"]
    await ended(house, agent)
    await unknown(house, f"{mine.rpartition('.')[0]}.{SessionKeys.carried(theirs)}")


async def test_key_of_a_foreign_deployment_stays_unknown() -> None:
    foreign = Terms("http://127.0.0.1", b"f" * len(SECRET), 10, hand_over=True)
    async with (
        opened(terms=foreign, servers=SERVERS) as other,
        opened(terms=LASTING, servers=SERVERS) as house,
    ):
        await unknown(house, await over(other))


async def test_key_shows_nothing_of_what_it_carries(house: House) -> None:
    _, session = await begun(house, {**PARAMS, "clientInfo": {"name": "plain-word"}})
    assert b"plain-word" not in base64.urlsafe_b64decode(SessionKeys.carried(session))


async def test_session_with_an_opening_too_long_to_be_carried_stays_ended(house: House) -> None:
    params = {**PARAMS, "clientInfo": {"name": "x" * sessions.CARRIED_CHARACTERS}}
    session = await over(house, params=params)
    assert len(session) < 100
    await unknown(house, session)


@pytest.mark.parametrize(("age_s", "lives"), [(3599, True), (3602, False)])
async def test_session_goes_on_no_longer_than_it_could_have_lived(
    monkeypatch: pytest.MonkeyPatch, age_s: int, *, lives: bool
) -> None:
    async with opened(servers=(serving(max_lifetime=3600.0),)) as house:
        session = await over(house)
        sealed = base64.urlsafe_b64decode(SessionKeys.carried(session))
        made = int.from_bytes(sealed[1:9], "big")
        monkeypatch.setattr(fernet, "time", SimpleNamespace(time=lambda: made + age_s))
        if not lives:
            await unknown(house, session)
            return
        call = posting(house, CALL, session)
        agent = await next_agent(house)
        monkeypatch.undo()
        await agent.answer(ANSWER)
        await reads(agent)
        await agent.answer({})
        assert (await call).status == 200
