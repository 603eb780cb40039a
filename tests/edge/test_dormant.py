"""Sessions that are opened from the catalogue, and have no dyno before their first real call."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from gateway import events
from gateway.edge import answering, streamable_http
from gateway.sessions import catalogues, dynos
from gateway.sessions import manager as sessions
from gateway.sessions.record import Reason, State
from gateway.sessions.terms import Terms
from tests.edge.eras_house import (
    INITIALIZED,
    LIST,
    OPEN,
    OPENING,
    SAID,
    TOOLS,
    Child,
    Program,
    Refusal,
    Stage,
    answered,
    call,
    definition,
    happens,
    heard_events,
    launches,
    opens,
    stage,
)
from tests.fakes.house import (
    BOUND,
    LASTING,
    OTHER_KEY,
    RESUMING,
    SECRET,
    House,
    Stream,
    eventually,
    opened,
    refusal,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import aiohttp

    from gateway.registry.servers import ServerDefinition
    from tests.fakes.launchers import RecordingLauncher

PING: dict[str, Any] = {"jsonrpc": "2.0", "id": 3, "method": "ping"}

LEVEL: dict[str, Any] = {
    "jsonrpc": "2.0",
    "id": 4,
    "method": "logging/setLevel",
    "params": {"level": "error"},
}

CHANGED = {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}

OTHER_TOOLS = Program(answers={"tools/list": {"tools": TOOLS[:1]}})


@pytest.fixture(autouse=True)
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second look comes in between."""
    monkeypatch.setattr(catalogues, "AGAIN_S", (BOUND * 60,))
    monkeypatch.setattr(sessions, "TICK_S", 0.01)


@asynccontextmanager
async def learned(
    terms: Terms | None = None,
    server: ServerDefinition | None = None,
    launcher: RecordingLauncher | None = None,
) -> AsyncIterator[Stage]:
    """A gateway that knows what its one server answers."""
    servers = (server or definition(),)
    async with opened(launcher, terms, servers) as house, stage(house) as played:
        await played.looks(Program())
        yield played


def small(sessions_at_once: int) -> Terms:
    return Terms("http://127.0.0.1", SECRET, sessions_at_once)


def lines(child: Child) -> list[Any]:
    """What a child heard, without the client's params."""
    return [(message.get("id"), message.get("method")) for message in child.heard]


@asynccontextmanager
async def calling(house: House, body: Any, key: str) -> AsyncIterator[asyncio.Task[Any]]:
    """A client waits for an answer; it must have come by the end of the block."""
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
        yield group.create_task(house.post(body, key))


async def works(played: Stage, key: str, program: Program | None = None) -> Child:
    """Wake a session with a call that is answered; return its child."""
    async with calling(played.house, call(9), key) as waiting:
        child = await played.child(program or Program())
    assert await waiting.result().json() == answered(9, {"content": []})
    return child


# No dyno


async def test_initialize_is_answered_without_a_dyno() -> None:
    async with learned() as played:
        _, response = await opens(played.house)
        assert await response.json() == answered(1, OPENING)
        assert launches(played.house) == 1


@pytest.mark.parametrize(
    ("asked", "told"),
    [("2024-11-05", "2024-11-05"), ("2025-06-18", "2025-06-18"), ("1999-01-01", "2025-11-25")],
)
async def test_initialize_negotiates_the_revision(asked: str, told: str) -> None:
    async with learned() as played:
        said = {**OPEN, "params": {**SAID, "protocolVersion": asked}}
        _, response = await opens(played.house, said)
        assert (await response.json())["result"] == {**OPENING, "protocolVersion": told}


@pytest.mark.parametrize("revision", [None, "2025-03-26", "2025-06-18", RESUMING])
async def test_what_the_catalogue_knows_is_answered_without_a_dyno(revision: str | None) -> None:
    async with learned() as played:
        house = played.house
        key, _ = await opens(house)
        assert (await house.post(INITIALIZED, key, revision)).status == 202
        for body, result in ((LIST, {"tools": TOOLS}), (PING, {}), (LEVEL, {})):
            response = await house.post(body, key, revision)
            assert await response.json() == answered(body["id"], result)
        assert launches(house) == 1


async def test_answers_of_the_catalogue_are_told_as_calls() -> None:
    async with learned() as played:
        key, _ = await opens(played.house)
        await played.house.post(LIST, key)
        told = [
            (event.method, event.outcome)
            for event in heard_events(played.house, events.CallFinished)
            if event.outcome == "catalogue"
        ]
        assert told == [("initialize", "catalogue"), ("tools/list", "catalogue")]


async def test_id_that_is_too_long_is_refused_though_the_catalogue_knows_the_answer() -> None:
    async with learned() as played:
        key, _ = await opens(played.house)
        response = await played.house.post({**LIST, "id": "x" * 2000}, key)
        assert response.status == 400


@pytest.mark.parametrize("name", ["initialized", "cancelled", "roots/list_changed"])
async def test_notification_that_means_nothing_yet_gets_no_dyno(name: str) -> None:
    async with learned() as played:
        key, _ = await opens(played.house)
        note = {"jsonrpc": "2.0", "method": f"notifications/{name}", "params": {"requestId": 7}}
        assert (await played.house.post(note, key)).status == 202
        assert launches(played.house) == 1


async def test_response_that_nobody_asked_for_gets_no_dyno() -> None:
    async with learned() as played:
        key, _ = await opens(played.house)
        response = await played.house.post(answered(1, {}), key)
        assert (response.status, launches(played.house)) == (400, 1)


async def test_stream_of_a_session_without_a_dyno_opens() -> None:
    async with learned() as played:
        key, _ = await opens(played.house)
        async with played.house.listening(key) as stream:
            first = await stream.next()
        assert first is not None
        assert (first.message, launches(played.house)) == (None, 1)


async def test_continued_stream_of_a_session_without_a_dyno_gets_what_its_child_says() -> None:
    async with learned() as played:
        house = played.house
        key, _ = await opens(house)
        async with house.listening(key) as stream:
            await stream.next()
            last = stream.last
        async with house.listening(key, last) as stream:
            assert launches(house) == 1
            child = await works(played, key)
            ask = {"jsonrpc": "2.0", "id": "q", "method": "roots/list"}
            await child.agent.say(ask)
            assert await stream.message() == ask


async def test_deleted_session_never_had_a_dyno() -> None:
    async with learned() as played:
        key, _ = await opens(played.house)
        assert await played.house.delete(key) == 204
        await happens(played.house, events.Closed, 2)
        assert (launches(played.house), len(played.house.launcher.stopped)) == (1, 1)


async def test_deleted_session_is_unknown() -> None:
    async with learned() as played:
        key, _ = await opens(played.house)
        await played.house.delete(key)
        assert (await played.house.post(PING, key)).status == 404


async def test_session_of_somebody_else_is_unknown() -> None:
    async with learned() as played:
        key, _ = await opens(played.house)
        headers = {"X-API-Key": OTHER_KEY, "Mcp-Session-Id": key}
        async with played.house.http.post(played.house.url, json=LIST, headers=headers) as told:
            assert told.status == 404


# The first real call


async def test_first_call_gets_a_dyno_and_the_right_answer() -> None:
    async with learned() as played:
        key, _ = await opens(played.house)
        await works(played, key)
        assert launches(played.house) == 2


async def test_several_first_calls_get_one_dyno() -> None:
    async with learned() as played:
        house = played.house
        key, _ = await opens(house)
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            waiting = {
                number: group.create_task(house.post(call(number), key)) for number in range(10, 15)
            }
            await played.child(Program(answers={"tools/call": lambda asked: {"for": asked["id"]}}))
        for number, task in waiting.items():
            assert await task.result().json() == answered(number, {"for": number})
        assert launches(house) == 2


async def test_child_hears_the_handshake_of_its_client_before_the_call() -> None:
    async with learned() as played:
        key, _ = await opens(played.house)
        await played.house.post(INITIALIZED, key)
        await played.house.post(LEVEL, key)
        child = await works(played, key)
        assert lines(child) == [
            ("rendezvous/1", "initialize"),
            (None, "notifications/initialized"),
            ("rendezvous/2", "logging/setLevel"),
            (9, "tools/call"),
        ]
        assert child.heard[0]["params"] == SAID
        assert child.heard[2]["params"] == {"level": "error"}


async def test_lists_that_the_client_was_told_are_compared_in_silence() -> None:
    async with learned() as played:
        key, _ = await opens(played.house)
        await played.house.post(LIST, key)
        last = {"jsonrpc": "2.0", "method": "notifications/of-the-child"}
        async with played.house.listening(key) as stream:
            child = await works(played, key, Program(silent=frozenset({"tools/list"})))
            asked = await child.takes("tools/list")
            await child.agent.say(answered(asked["id"], {"tools": TOOLS}))
            await child.agent.say(last)
            assert await stream.message() == last
        assert "contradicted" not in played.house.ear.names()


async def test_unknown_notification_gets_a_dyno() -> None:
    async with learned() as played:
        house = played.house
        key, _ = await opens(house)
        note = {"jsonrpc": "2.0", "method": "notifications/of-its-own"}
        async with calling(house, note, key) as waiting:
            child = await played.child(Program())
        assert waiting.result().status == 202
        assert child.methods[-1] == "notifications/of-its-own"


async def test_notification_during_the_boot_reaches_the_child() -> None:
    async with learned() as played:
        house = played.house
        key, _ = await opens(house)
        note = {"jsonrpc": "2.0", "method": "notifications/roots/list_changed"}
        async with calling(house, call(5), key), calling(house, note, key) as noted:
            child = await played.child(Program())
        assert noted.result().status == 202
        assert child.methods.count("notifications/roots/list_changed") == 1


async def test_list_during_the_boot_is_still_answered_at_once() -> None:
    async with learned() as played:
        house = played.house
        key, _ = await opens(house)
        async with calling(house, call(5), key):
            order = await played.order()
            assert await (await house.post(LIST, key)).json() == answered(2, {"tools": TOOLS})
            child = await played.child_of(order, Program())
            await child.takes("tools/list")


async def test_list_is_the_child_s_own_once_it_runs() -> None:
    async with learned() as played:
        key, _ = await opens(played.house)
        await works(played, key, OTHER_TOOLS)
        response = await played.house.post(LIST, key)
        assert await response.json() == answered(2, {"tools": TOOLS[:1]})


async def test_call_whose_id_looks_like_the_gateway_s_own_is_answered() -> None:
    async with learned() as played:
        house = played.house
        key, _ = await opens(house)
        await works(played, key)
        async with calling(house, call("rendezvous/1"), key) as waiting:
            pass
        response = waiting.result()
        assert response.status == 400 or await response.json() == answered(
            "rendezvous/1", {"content": []}
        )


async def test_client_that_hangs_up_on_its_first_call_finds_its_session_again() -> None:
    async with learned() as played:
        house = played.house
        key, _ = await opens(house)
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            first = group.create_task(house.post(call(5), key))
            order = await played.order()
            first.cancel()
        child = await played.child_of(order, Program())
        await child.takes("tools/call")
        async with calling(house, call(6), key) as waiting:
            pass
        assert await waiting.result().json() == answered(6, {"content": []})


# What the child says otherwise


async def test_other_list_is_told_on_the_stream_of_the_session() -> None:
    async with learned() as played:
        key, _ = await opens(played.house)
        await played.house.post(LIST, key)
        async with played.house.listening(key, revision="2025-06-18") as stream:
            async with calling(played.house, call(5), key):
                order = await played.order()
                second = asyncio.Event()
                async with asyncio.TaskGroup() as group:
                    # With two calls it is the session's own stream that is told.
                    group.create_task(played.house.post(call(6), key))
                    await eventually(lambda: played.house.live(key).session.calls == 2)
                    await played.child_of(order, OTHER_TOOLS)
                second.set()
            assert await stream.message() == CHANGED
        await happens(played.house, events.Contradicted)


async def test_other_list_is_told_on_the_stream_of_the_only_call() -> None:
    async with learned() as played:
        house = played.house
        key, _ = await opens(house)
        await house.post(LIST, key)
        program = Program(silent=frozenset({"tools/call"}), answers=OTHER_TOOLS.answers)
        async with asyncio.TaskGroup() as group:
            playing = group.create_task(played.child(program))
            async with house.asking(call(5), key, "2025-06-18") as stream:
                assert await stream.message() == CHANGED
                child = playing.result()
                await child.agent.say(answered(5, {"content": []}))
                assert await stream.rest() == [answered(5, {"content": []})]


async def test_other_list_is_told_to_a_later_stream_when_none_was_open() -> None:
    async with learned() as played:
        key = await changed_unheard(played)
        async with played.house.listening(key) as stream:
            assert await stream.message() == CHANGED


async def test_other_list_is_told_once() -> None:
    async with learned() as played:
        house = played.house
        key = await changed_unheard(played)
        async with house.listening(key) as stream:
            await stream.message()
        async with house.listening(key) as stream:
            await stream.next()
            agent = played.children[-1].agent
            await agent.say({"jsonrpc": "2.0", "method": "notifications/of-the-child"})
            assert (await stream.message())["method"] == "notifications/of-the-child"


async def changed_unheard(played: Stage) -> str:
    """Return the key of a session whose child has another list, when nobody listened."""
    house = played.house
    key, _ = await opens(house)
    await house.post(LIST, key)
    program = Program(answers=OTHER_TOOLS.answers, silent=frozenset({"tools/list"}))
    child = await works(played, key, program)
    asked = await child.takes("tools/list")
    await child.agent.say(answered(asked["id"], {"tools": TOOLS[:1]}))
    await happens(house, events.Contradicted)
    return key


async def test_change_that_could_not_be_written_is_told_on_the_next_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with learned() as played:
        house = played.house
        key = await changed_unheard(played)
        torn = asyncio.Event()
        write = answering.write

        async def breaking(response: Any, data: bytes) -> None:
            if b"list_changed" in bytes(data) and not torn.is_set():
                torn.set()
                raise ConnectionResetError
            await write(response, data)

        monkeypatch.setattr(answering, "write", breaking)
        async with house.listening(key) as stream:
            await stream.next()
            async with asyncio.timeout(BOUND):
                await torn.wait()
        async with house.listening(key) as stream:
            assert await stream.message() == CHANGED


async def test_change_that_lies_before_a_client_that_came_back_is_told_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The connection broke unnoticed: the client is back before the gateway knows."""
    async with learned() as played:
        house = played.house
        key = await changed_unheard(played)
        stuck, write = asyncio.Event(), answering.write

        async def blocked(response: Any, data: bytes) -> None:
            if b"list_changed" in bytes(data) and not stuck.is_set():
                stuck.set()
                await asyncio.Event().wait()
            await write(response, data)

        monkeypatch.setattr(answering, "write", blocked)
        async with house.listening(key) as broken:
            await broken.next()
            async with asyncio.timeout(BOUND):
                await stuck.wait()
            async with house.listening(key, broken.last) as stream:
                broken.hang_up()
                assert await stream.message() == CHANGED


async def test_other_introduction_changes_every_list() -> None:
    async with learned() as played:
        house = played.house
        key, _ = await opens(house)
        program = Program(answers={"initialize": {**OPENING, "instructions": "be quick"}})
        async with asyncio.TaskGroup() as group:
            group.create_task(played.child(program))
            async with house.asking(call(5), key, "2025-06-18") as stream:
                told = [(await stream.message())["method"] for _ in range(3)]
        kinds = ("tools", "prompts", "resources")
        assert told == [f"notifications/{kind}/list_changed" for kind in kinds]


async def test_child_that_speaks_another_revision_ends_the_session() -> None:
    async with learned() as played:
        house = played.house
        key, _ = await opens(house)
        program = Program(answers={"initialize": {**OPENING, "protocolVersion": "2025-03-26"}})
        async with calling(house, call(5), key) as waiting:
            await played.child(program)
        status, _, reason, request = await refusal(waiting.result())
        assert (status, reason, request) == (502, "session_ended", 5)
        assert (await house.post(PING, key)).status == 404


async def test_child_that_refuses_to_initialize_ends_the_session_and_says_why() -> None:
    async with learned() as played:
        house = played.house
        key, _ = await opens(house)
        program = Program(answers={"initialize": Refusal(-32000, "no licence")})
        async with calling(house, call(5), key) as waiting:
            await played.child(program)
        document = await waiting.result().json()
        assert "no licence" in document["error"]["message"]


async def test_agent_of_a_child_that_refuses_to_initialize_is_told_to_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or its dyno runs, and takes room, until somebody loses patience."""
    monkeypatch.setattr(dynos, "LEAVE_S", 0.5)
    async with learned() as played:
        house = played.house
        key, _ = await opens(house)
        async with calling(house, call(5), key):
            child = await played.child(Program(answers={"initialize": Refusal()}))
        assert await house.ear.closed(child.agent) == "initialize_failed"
        assert child.stopped


# Room


async def test_sessions_without_a_dyno_take_no_room() -> None:
    async with learned(small(1)) as played:
        for _ in range(5):
            await opens(played.house)
        key, _ = await opens(played.house)
        await works(played, key)


async def test_full_gateway_refuses_the_first_call_with_busy() -> None:
    async with learned(small(1)) as played:
        house = played.house
        first, _ = await opens(house)
        await works(played, first)
        second, _ = await opens(house)
        response = await house.post(call(5), second)
        assert await refusal(response) == (503, -32603, "busy", 5)
        assert response.headers["Retry-After"]


async def test_full_gateway_refuses_a_notification_that_needs_a_dyno() -> None:
    async with learned(small(1)) as played:
        house = played.house
        first, _ = await opens(house)
        await works(played, first)
        second, _ = await opens(house)
        response = await house.post({"jsonrpc": "2.0", "method": "x"}, second)
        assert (await refusal(response))[:3] == (503, -32603, "busy")


async def test_session_that_found_no_room_gets_a_dyno_later() -> None:
    async with learned(small(1)) as played:
        house = played.house
        first, _ = await opens(house)
        child = await works(played, first)
        second, _ = await opens(house)
        assert (await house.post(call(9), second)).status == 503
        assert (await house.post(LIST, second)).status == 200
        await house.delete(first)
        await house.ear.closed(child.agent)
        assert lines(await works(played, second))[0] == ("rendezvous/1", "initialize")


# Ends


async def test_session_without_a_dyno_ends_after_its_longest_life_in_silence() -> None:
    async with learned() as played:
        house = played.house
        key, _ = await opens(house)
        live = house.live(key)
        live.session.active -= live.lease.lifetime_s
        await happens(house, events.Closed, 2)
        closed = heard_events(house, events.Closed)[-1]
        assert (closed.reason, launches(house)) == ("idle", 1)


async def test_session_without_a_dyno_outlives_the_idle_time_of_those_with_one() -> None:
    async with learned() as played:
        house = played.house
        key, _ = await opens(house)
        live = house.live(key)
        live.session.active -= live.lease.lifetime_s - BOUND
        assert live.lease.idle_s < live.lease.lifetime_s - BOUND
        ticked = live.lease.active
        await eventually(lambda: live.lease.active != ticked)
        assert live.record.state is State.REQUESTED


async def test_life_of_a_session_begins_anew_with_its_dyno() -> None:
    async with learned() as played:
        house = played.house
        key, _ = await opens(house)
        live = house.live(key)
        live.record.created -= 2 * live.lease.lifetime_s
        await works(played, key)
        ticked = live.lease.active = -1.0
        await eventually(lambda: live.lease.active != ticked)
        assert not live.record.over


async def test_session_that_was_used_least_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async with learned() as played:
        house = played.house
        monkeypatch.setattr(sessions, "MAX_DORMANT", 3)
        keys = [(await opens(house))[0] for _ in range(3)]
        assert (await house.post(LIST, keys[0])).status == 200
        keys.append((await opens(house))[0])
        statuses = [(await house.post(PING, key)).status for key in keys]
        assert statuses == [200, 404, 200, 200]
        assert heard_events(house, events.Closing)[-1].reason == Reason.EVICTED


async def test_session_with_a_dyno_does_not_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async with learned() as played:
        house = played.house
        monkeypatch.setattr(sessions, "MAX_DORMANT", 1)
        first, _ = await opens(house)
        await works(played, first)
        for _ in range(3):
            await opens(house)
        assert (await house.post(PING, first)).status == 200


# Another process


async def next_process(played: Stage, key: str) -> aiohttp.ClientResponse:
    """Ask the next gateway process of the deployment for a session."""
    launcher = played.house.launcher
    async with opened(launcher, LASTING, (definition(),)) as new, stage(new) as again:
        await again.looks(Program())
        return await new.post(PING, key)


async def test_session_without_a_dyno_is_held_at_a_process_that_has_just_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions, "HOLD_S", 0.01)
    async with learned(LASTING) as played:
        key, _ = await opens(played.house)
        response = await next_process(played, key)
        assert (response.status, (await response.json())["error"]["data"]["reason"]) == (
            503,
            "session_away",
        )


async def test_session_without_a_dyno_is_unknown_at_a_process_where_all_have_arrived(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions, "HOLD_S", 0.01)
    monkeypatch.setattr(sessions, "SETTLED_S", 0.0)
    async with learned(LASTING) as played:
        key, _ = await opens(played.house)
        response = await next_process(played, key)
        assert response.status == 404


async def test_session_that_got_its_dyno_after_all_goes_on_at_the_next_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions, "SETTLED_S", 0.0)
    async with learned(LASTING) as played:
        key, _ = await opens(played.house)
        child = await works(played, key)
        child.agent.cut()
        launcher = played.house.launcher
        async with opened(launcher, LASTING, (definition(),)) as new, stage(new) as again:
            await again.looks(Program())
            async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
                waiting = group.create_task(new.post(call(6), key))
                await new.resume(child.agent)
            assert await waiting.result().json() == answered(6, {"content": []})


async def test_shutdown_ends_a_session_without_a_dyno() -> None:
    async with learned(LASTING) as played:
        await opens(played.house)
        await played.house.manager.drain()
        assert heard_events(played.house, events.Closing)[-1].reason == "drained"


# Eager


async def test_eager_server_boots_when_the_session_opens() -> None:
    async with learned(server=definition(boot="eager")) as played:
        house = played.house
        _, response = await opens(house)
        assert await response.json() == answered(1, OPENING)
        child = await played.child(Program())
        await child.takes("notifications/initialized")
        assert lines(child)[0] == ("rendezvous/1", "initialize")


async def test_child_that_boots_eagerly_hears_the_end_of_the_handshake_once() -> None:
    async with learned(server=definition(boot="eager")) as played:
        house = played.house
        key, _ = await opens(house)
        child = await played.child(Program())
        assert (await house.post(INITIALIZED, key)).status == 202
        await works_on(house, key)
        assert child.methods.count("notifications/initialized") == 1


async def works_on(house: House, key: str) -> None:
    response = await house.post(call(9), key)
    assert await response.json() == answered(9, {"content": []})


async def test_full_gateway_refuses_to_open_an_eager_session() -> None:
    async with learned(small(1), definition(boot="eager")) as played:
        house = played.house
        await opens(house)
        response = await house.post(OPEN)
        assert await refusal(response) == (503, -32603, "busy", 1)
        assert len(house.manager.directory) == 1


# The form of an answer


@pytest.mark.parametrize("body", [OPEN, LIST, PING])
async def test_client_that_names_event_streams_first_gets_one_from_the_catalogue(
    body: dict[str, Any],
) -> None:
    async with learned() as played:
        house = played.house
        key, _ = await opens(house)
        headers = {"Accept": "text/event-stream, application/json"}
        headers |= {} if body is OPEN else {"Mcp-Session-Id": key}
        async with house.http.post(house.url, json=body, headers=headers) as response:
            assert response.content_type == "text/event-stream"
            assert response.headers["Mcp-Session-Id"]
            messages = await Stream(response).rest()
        assert [message["id"] for message in messages] == [body["id"]]


@pytest.mark.parametrize(
    "accept",
    ["application/json, text/event-stream", "*/*", "application/json;q=0.1,text/event-stream"],
)
async def test_any_other_client_gets_json_from_the_catalogue(accept: str) -> None:
    async with learned() as played:
        house = played.house
        key, _ = await opens(house)
        headers = {"Accept": accept, "Mcp-Session-Id": key}
        async with house.http.post(house.url, json=LIST, headers=headers) as response:
            assert response.content_type == "application/json"
            assert await response.json() == answered(2, {"tools": TOOLS})


async def test_client_that_names_event_streams_first_gets_one_from_the_child() -> None:
    async with learned() as played:
        house = played.house
        key, _ = await opens(house)
        await works(played, key)
        headers = {"Accept": "text/event-stream, application/json", "Mcp-Session-Id": key}
        headers["MCP-Protocol-Version"] = RESUMING
        async with house.http.post(house.url, json=call(6), headers=headers) as response:
            assert response.content_type == "text/event-stream"
            assert await Stream(response).rest() == [answered(6, {"content": []})]


def test_quick_is_quicker_than_the_router() -> None:
    assert streamable_http.QUICK_S < streamable_http.COMMIT_S < 30
