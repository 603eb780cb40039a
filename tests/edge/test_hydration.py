"""A session outlives its gateway process: a second one learns it from what the agent carries.

Two applications with one secret and nothing else in common; the agent moves from one to the other.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from websockets.exceptions import InvalidStatus

from dyno_agent.link import Channel, CloseCode
from gateway import events
from gateway.sessions import manager as sessions
from gateway.sessions.capsule import PURPOSE, Capsule
from gateway.sessions.directory import Directory
from gateway.sessions.keys import SessionKeys
from gateway.sessions.manager import Manager
from gateway.sessions.sealing import Sealer
from tests.fakes.house import (
    BOUND,
    LASTING,
    OTHER_KEY,
    RESUMING,
    SECRET,
    SERVERS,
    Agent,
    House,
    close_code,
    eventually,
    opened,
    refusal,
    token_of,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from gateway.sessions.live import Live

PING = {"jsonrpc": "2.0", "id": 5, "method": "ping"}
PONG = {"jsonrpc": "2.0", "id": 5, "result": {}}
LOG = {"jsonrpc": "2.0", "method": "notifications/message", "params": {}}
ASK = {"jsonrpc": "2.0", "id": "q", "method": "roots/list"}
ROOTS = {"jsonrpc": "2.0", "id": "q", "result": {"roots": []}}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "TICK_S", 0.01)


@asynccontextmanager
async def deployment() -> AsyncIterator[tuple[House, House]]:
    """Two processes of one deployment, so to say: the one that launches, and the next."""
    async with opened(terms=LASTING) as old, opened(old.launcher, LASTING) as new:
        yield old, new


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set once a request waits for a session that has not come yet."""
    waits, arrival = asyncio.Event(), Directory.arrival

    async def noted(directory: Directory, fingerprint: str, patience_s: float) -> Live | None:
        waits.set()
        return await arrival(directory, fingerprint, patience_s)

    monkeypatch.setattr(Directory, "arrival", noted)
    return waits


async def refused_dial(house: House, credential: str, capsule: str) -> int:
    with pytest.raises(InvalidStatus) as refused:
        await house.dial(credential, capsule=capsule)
    return refused.value.response.status_code


# The session goes on


async def test_session_goes_on_at_a_process_that_never_saw_it() -> None:
    async with deployment() as (old, new):
        agent, session = await old.booted()
        agent.cut()
        await new.resume(agent)
        assert agent.welcome.fresh
        assert agent.welcome.child is None
        await new.works(agent, session)
    (hydrated,) = [event for event in new.ear.heard if isinstance(event, events.Hydrated)]
    assert (hydrated.server, hydrated.principal) == ("patient", "test")


async def test_session_has_the_same_public_name_everywhere() -> None:
    async with deployment() as (old, new):
        agent, _ = await old.booted()
        agent.cut()
        await new.resume(agent)
        heard = old.ear.heard + new.ear.heard
        names = {event.session for event in heard if isinstance(event, events.SessionEvent)}
    assert len(names) == 1


async def test_attachments_are_numbered_on_at_the_next_process() -> None:
    async with deployment() as (old, new):
        agent, _ = await old.booted()
        epochs = [agent.welcome.epoch]
        for house in (new, new):
            agent.cut()
            await house.resume(agent)
            epochs.append(agent.welcome.epoch)
    assert epochs == [1, 2, 3]


async def test_process_that_knows_the_session_by_now_wants_no_journal_again() -> None:
    async with deployment() as (old, new):
        agent, session = await old.booted()
        fresh = []
        for _ in range(2):
            agent.cut()
            await new.resume(agent)
            fresh.append(agent.welcome.fresh)
        await new.works(agent, session)
    assert fresh == [True, False]


async def test_request_that_comes_before_the_agent_is_held_and_answered(
    held: asyncio.Event,
) -> None:
    async with deployment() as (old, new):
        agent, session = await old.booted()
        agent.cut()
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            call = group.create_task(new.post(PING, session))
            await held.wait()
            await new.resume(agent)
            assert await agent.answer({}) == PING
        assert await call.result().json() == PONG


async def test_call_of_the_old_process_is_answered_to_who_repeats_it_at_the_new_one() -> None:
    async with deployment() as (old, new):
        agent, session = await old.booted()
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            lost = group.create_task(old.post(PING, session))
            assert json.loads((await agent.receive()).payload) == PING
            agent.cut()
            lost.cancel()
            await new.resume(agent)
            call = group.create_task(new.post(PING, session, RESUMING))
            await new.taken_up(session, 5)
            await agent.say(PONG)
        assert await call.result().json() == PONG
        assert agent.received() == []


async def test_request_that_comes_between_upgrade_and_journal_waits_for_the_journal(
    held: asyncio.Event,
) -> None:
    """Otherwise a repeated request reaches the child twice: nobody knows yet that it runs."""
    async with deployment() as (old, new):
        agent, session = await old.booted()
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            lost = group.create_task(old.post(PING, session))
            assert json.loads((await agent.receive()).payload) == PING
            agent.cut()
            lost.cancel()
            first = await new.dial(agent.credential, capsule=agent.welcome.capsule)
            (live,) = new.manager.directory._live.values()
            call = group.create_task(new.post(PING, session))
            await eventually(lambda: held.is_set() or live.session.calls)
            await first.close()
            await new.resume(agent)
            await agent.say(PONG)
        assert await call.result().json() == PONG
        assert agent.received() == []


async def test_answer_that_the_child_gave_between_two_processes_is_not_lost() -> None:
    async with deployment() as (old, new):
        agent, session = await old.booted()
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            lost = group.create_task(old.post(PING, session))
            await agent.receive()
            agent.cut()
            lost.cancel()
            agent.end.send(Channel.RPC, json.dumps(PONG).encode())
            await new.resume(agent)
            await new.works(agent, session)
            async with new.listening(session, "0.i5") as stream:
                assert await stream.rest() == [PONG]


async def test_question_that_the_old_process_wrote_is_answered_at_the_new_one() -> None:
    async with deployment() as (old, new):
        agent, session = await old.booted()
        async with old.listening(session) as stream:
            await agent.say(ASK)
            assert await stream.message() == ASK
            await agent.until(lambda: bool(agent.routed))
        agent.cut()
        await new.resume(agent)
        async with asyncio.timeout(BOUND):
            assert (await new.post(ROOTS, session)).status == 202
            assert json.loads((await agent.receive()).payload) == ROOTS


async def test_question_that_the_old_process_wrote_is_not_asked_again_at_the_new_one() -> None:
    async with deployment() as (old, new):
        agent, session = await old.booted()
        async with old.listening(session) as stream:
            await agent.say(ASK)
            assert await stream.message() == ASK
            await agent.until(lambda: bool(agent.routed))
        agent.cut()
        await new.resume(agent)
        async with new.listening(session) as stream:
            await agent.say(LOG)
            assert await stream.message() == LOG


async def test_message_that_found_no_stream_at_the_old_process_is_written_at_the_new_one() -> None:
    async with deployment() as (old, new):
        agent, session = await old.booted()
        await agent.say(LOG)
        await agent.send(Channel.EVENT, {"event": "of a later version"})  # acknowledged at once
        await agent.until(lambda: agent.end.settled)
        agent.cut()
        await new.resume(agent)
        async with new.listening(session) as stream:
            assert await stream.message() == LOG


async def test_old_session_is_not_ended_as_one_that_does_not_boot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It booted long ago, though its agent has said nothing yet at this process."""
    aged = dataclasses.replace(LASTING, wall_clock=lambda: time.time() + 3600)  # noqa: TID251
    ticks = 0
    tick = Manager._tick

    def counted(manager: Manager, live: Live, now: float) -> None:
        nonlocal ticks
        tick(manager, live, now)
        ticks += manager is new.manager

    monkeypatch.setattr(Manager, "_tick", counted)
    async with opened(terms=LASTING) as old, opened(old.launcher, aged) as new:
        agent, session = await old.booted()
        agent.cut()
        socket = await new.dial(agent.credential, capsule=agent.welcome.capsule)
        await eventually(lambda: ticks)
        assert not new.ear.ended(agent)
        await socket.close()
        await new.resume(agent)
        await new.works(agent, session)


async def test_lifetime_counts_from_the_first_request_wherever_it_was_made() -> None:
    longest = SERVERS[0].max_lifetime
    late = dataclasses.replace(LASTING, wall_clock=lambda: time.time() + longest)  # noqa: TID251
    async with opened(terms=LASTING) as old, opened(old.launcher, late) as new:
        agent, _ = await old.booted()
        agent.cut()
        assert await refused_dial(new, agent.credential, agent.welcome.capsule) == 401


# Requests without their agent


async def test_request_whose_agent_does_not_come_may_be_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions, "HOLD_S", 0.01)
    async with deployment() as (old, new):
        _, session = await old.booted()
        response = await new.post(PING, session)
        assert await refusal(response) == (503, -32603, "session_away", 5)
        assert response.headers["Retry-After"] == "5"


async def test_get_and_delete_wait_for_the_agent_too(held: asyncio.Event) -> None:
    async with deployment() as (old, new):
        agent, session = await old.booted()
        agent.cut()
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            deleted = group.create_task(new.delete(session))
            await held.wait()
            await new.resume(agent)
        assert deleted.result() == 204


KEYS: dict[str, Callable[[], str]] = {
    "word": lambda: "word",
    "another-secret": lambda: SessionKeys(b"t" * 32, lambda size: "n" * size).mint(),
    "tampered": lambda: SessionKeys(SECRET, lambda size: "n" * size).mint()[:-1] + "x",
}


@pytest.mark.parametrize("key", KEYS.values(), ids=list(KEYS))
async def test_key_that_was_never_issued_is_unknown_at_once(key: Callable[[], str]) -> None:
    """At once: the time that a request may be held is longer than this test may take."""
    async with opened(terms=LASTING) as new, asyncio.timeout(BOUND):
        response = await new.post(PING, key())
        assert await refusal(response) == (404, -32001, "unknown_session", 5)


async def test_nothing_is_held_where_sessions_end_with_their_process() -> None:
    async with opened() as old, opened(old.launcher) as new, asyncio.timeout(BOUND):
        _, session = await old.booted()
        response = await new.post(PING, session)
        assert await refusal(response) == (404, -32001, "unknown_session", 5)


async def test_nothing_is_held_once_every_agent_must_have_come() -> None:
    async with deployment() as (old, new), asyncio.timeout(BOUND):
        _, session = await old.booted()
        new.age(LASTING.grace_s + sessions.HOLD_S)
        response = await new.post(PING, session)
        assert await refusal(response) == (404, -32001, "unknown_session", 5)


async def test_session_of_somebody_else_is_unknown_also_when_it_was_brought() -> None:
    async with deployment() as (old, new):
        agent, session = await old.booted()
        agent.cut()
        await new.resume(agent)
        headers = {"Mcp-Session-Id": session, "X-API-Key": OTHER_KEY}
        async with new.http.post(new.url, json=PING, headers=headers) as response:
            await response.read()
        assert await refusal(response) == (404, -32001, "unknown_session", 5)
        await new.works(agent, session)


async def test_session_is_known_at_its_own_server_only() -> None:
    async with deployment() as (old, new):
        agent, session = await old.booted()
        agent.cut()
        await new.resume(agent)
        url, headers = f"{new.origin}/servers/hasty/mcp", {"Mcp-Session-Id": session}
        async with new.http.post(url, json=PING, headers=headers) as response:
            await response.read()
        assert await refusal(response) == (404, -32001, "unknown_session", 5)


async def test_session_that_ended_here_is_unknown_at_once_and_its_agent_refused() -> None:
    async with deployment() as (old, new), asyncio.timeout(BOUND):
        agent, session = await old.booted()
        agent.cut()
        await new.resume(agent)
        assert await new.delete(session) == 204
        await agent.leaves()
        assert await new.ear.closed(agent) == "client_delete"
        assert await refused_dial(new, agent.credential, agent.welcome.capsule) == 401
        response = await new.post(PING, session)
        assert await refusal(response) == (404, -32001, "unknown_session", 5)


async def test_dyno_of_a_session_that_was_brought_is_stopped_when_it_ends() -> None:
    async with deployment() as (old, new):
        agent, session = await old.booted()
        await old.resume(agent)  # by now the launcher has said what it is called
        agent.cut()
        await new.resume(agent)
        await new.delete(session)
        await agent.leaves()
        await new.ear.closed(agent)
    assert new.launcher.stopped == [f"fake.{agent.launch_id}"]


# Capsules that are refused


def resealed(agent: Agent, secret: bytes = SECRET, **changes: Any) -> str:
    capsule = Sealer(SECRET, PURPOSE, Capsule).open(agent.welcome.capsule)
    return Sealer(secret, PURPOSE, Capsule).seal(msgspec.structs.replace(capsule, **changes))


BAD: dict[str, Callable[[Agent, Agent], tuple[str, str]]] = {
    "none": lambda one, _: (one.credential, ""),
    "garbage": lambda one, _: (one.credential, "garbage"),
    "not-ascii": lambda one, _: (one.credential, "\u00e9" * 8),
    "another-secret": lambda one, _: (one.credential, resealed(one, b"t" * 32)),
    "cut-short": lambda one, _: (one.credential, one.welcome.capsule[:-4]),
    "another-launch": lambda one, two: (one.credential, two.welcome.capsule),
    "wrong-resume-secret": lambda one, _: (f"{one.credential}x", one.welcome.capsule),
    "server-that-is-gone": lambda one, _: (one.credential, resealed(one, server="gone")),
    "too-old": lambda one, _: (one.credential, resealed(one, created=0.0)),
    "join-token": lambda one, _: (f"rj{one.credential[2:]}", one.welcome.capsule),
    "credential-of-another": lambda one, two: (two.credential, one.welcome.capsule),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=list(BAD))
async def test_agent_is_refused_without_a_capsule_of_its_own(
    bad: Callable[[Agent, Agent], tuple[str, str]],
) -> None:
    async with deployment() as (old, new):
        (one, _), (two, _) = await old.booted(), await old.booted()
        assert await refused_dial(new, *bad(one, two)) == 401
        assert new.manager.sessions == 0


async def test_capsule_that_only_its_agent_changed_is_none(house: House) -> None:
    """What the tests above seal anew is good if nothing was changed."""
    agent, _ = await house.booted()
    assert Sealer(SECRET, PURPOSE, Capsule).open(resealed(agent)) == Sealer(
        SECRET, PURPOSE, Capsule
    ).open(agent.welcome.capsule)


async def test_join_token_is_refused_after_a_restart() -> None:
    async with deployment() as (old, new), old.asked() as (order, call):
        for capsule in ("", "garbage"):
            assert await refused_dial(new, token_of(order), capsule) == 401
        call.cancel()


async def test_used_join_token_is_refused_after_a_restart_even_with_the_capsule() -> None:
    async with deployment() as (old, new):
        async with old.asked() as (order, call):
            agent = await old.join(order)
            await agent.answer({})
            assert await refused_dial(new, token_of(order), agent.welcome.capsule) == 401
        assert call.result().status == 200


async def test_capsule_shows_nothing_of_the_session(house: House) -> None:
    agent, session = await house.booted()
    secrets = (session, SessionKeys.fingerprint(session), "test", "patient", agent.launch_id)
    assert [text for text in secrets if text in agent.welcome.capsule] == []


async def test_process_keeps_no_session_key(house: House) -> None:
    _, session = await house.booted()
    (live,) = house.manager.directory._live.values()
    kept = (
        live.record,
        house.manager.directory._live,
        house.manager.reception._desk._passes,
        house.ear.heard,
    )
    assert session not in repr(kept)


# Journals that are refused

JOURNALS: dict[str, list[str | bytes]] = {
    "not-json": ["journal"],
    "not-a-page": ["[]"],
    "binary": [b"{}"],
    "over-the-limit": [json.dumps({"padding": "x" * 64 * 1024})],
    "without-an-end": ['{"calls": [], "asks": [], "routed": [], "last": false}'] * 65,
}


@pytest.mark.parametrize("journal", JOURNALS.values(), ids=list(JOURNALS))
async def test_bad_journal_ends_its_session_as_a_breach_and_no_other(
    journal: list[str | bytes],
) -> None:
    async with deployment() as (old, new):
        (agent, _), (bystander, session) = await old.booted(), await old.booted()
        bystander.cut()
        await new.resume(bystander)
        agent.cut()
        socket = await new.dial(agent.credential, capsule=agent.welcome.capsule)
        await socket.send(agent.hello().encode())
        await socket.recv()
        for page in journal:
            await socket.send(page)
        assert await close_code(socket) == CloseCode.PROTOCOL_VIOLATION
        assert await new.ear.closed(agent) == "breach"
        await new.works(bystander, session)


async def test_agent_that_is_lost_before_its_journal_ended_tells_it_again() -> None:
    async with deployment() as (old, new):
        agent, session = await old.booted()
        agent.cut()
        socket = await new.dial(agent.credential, capsule=agent.welcome.capsule)
        await socket.send(agent.hello().encode())
        await socket.recv()
        socket.transport.abort()
        await new.resume(agent)
        assert agent.welcome.fresh
        await new.works(agent, session)
