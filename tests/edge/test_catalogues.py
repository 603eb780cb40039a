"""What throw-away runs learn, when they are made again, and what clients get meanwhile."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from dyno_agent.link import Channel
from gateway import events
from gateway.errors import SessionEnded
from gateway.sessions import catalogues, dynos
from gateway.sessions import manager as sessions
from gateway.sessions.catalogues import Catalogues
from gateway.sessions.record import Reason
from gateway.sessions.terms import Terms
from tests.edge.eras_house import (
    DISCOVERED,
    LIST,
    OPEN,
    OPENING,
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
from tests.edge.modern_house import asks, send
from tests.fakes.house import BOUND, LASTING, SECRET, House, eventually, opened, refusal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.registry.servers import ServerDefinition

NEVER = BOUND * 60

PAUSES = catalogues.AGAIN_S

LEGACY = Program()
MODERN = Program(speaks=frozenset({"modern"}))
DUAL = Program(speaks=frozenset({"legacy", "modern"}))
DEAD = Program(speaks=frozenset())

AUTO: dict[str, Any] = {"era": "auto", "translate": True}

LISTS = asks(2, "tools/list")
DISCOVER = asks(1, "server/discover")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No look is made again, unless a test wants it; nobody is waited for in vain."""
    monkeypatch.setattr(catalogues, "AGAIN_S", (NEVER,))
    monkeypatch.setattr(sessions, "TICK_S", 0.01)
    monkeypatch.setattr(sessions, "RETURN_S", 0.0)
    monkeypatch.setattr(dynos, "LEAVE_S", 0.5)


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set once a client's request wants to know of a server what is not known yet."""
    asks_for = asyncio.Event()
    for name in ("settled_chapter", "ready"):
        method = getattr(Catalogues, name)

        async def noted(*given: Any, of: Any = method) -> Any:
            asks_for.set()
            return await of(*given)

        monkeypatch.setattr(Catalogues, name, noted)
    return asks_for


@asynccontextmanager
async def serving(server: ServerDefinition, terms: Terms | None = None) -> AsyncIterator[Stage]:
    async with opened(None, terms, (server,)) as house, stage(house) as played:
        yield played


class Pauses:
    """Stands for the pauses between looks: tells which was asked for, and makes it none."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> float:
        self.asked.append(index)
        return 0.0


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    found = Pauses()
    monkeypatch.setattr(catalogues, "AGAIN_S", found)
    return found


async def told(house: House, era: str = "legacy") -> Any:
    """Return the tools that clients of an era are told."""
    if era == "modern":
        return (await send(house, LISTS)).only["result"]["tools"]
    key, _ = await opens(house)
    return (await (await house.post(LIST, key)).json())["result"]["tools"]


def learned(house: House) -> set[str]:
    return {event.era for event in heard_events(house, events.Learned)}


async def contradict(played: Stage) -> Child:
    """Let the child of a client's session say that a list has changed."""
    house = played.house
    key, _ = await opens(house)
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
        group.create_task(house.post(call(5), key))
        child = await played.child(LEGACY)
    before = len(heard_events(house, events.Contradicted))
    await child.agent.say({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
    await happens(house, events.Contradicted, before + 1)
    return child


# Eras


async def test_both_eras_of_an_unknown_server_are_tried_as_they_are() -> None:
    async with serving(definition(era="auto")) as played:
        runs = await played.looks(DUAL, 2)
        assert [run.face for run in runs] == ["plain", "plain"]
        assert {run.methods[0] for run in runs} == {"server/discover", "initialize"}


async def test_each_run_speaks_one_era_only() -> None:
    """The first message decides which era a process speaks for the rest of its life."""
    async with serving(definition(era="auto")) as played:
        for run in await played.looks(DUAL, 2):
            eras = {"server/discover", "initialize"} & set(run.methods)
            assert len(eras) == 1


async def test_legacy_server_is_learned_in_translation_too() -> None:
    async with serving(definition(**AUTO)) as played:
        await played.looks(LEGACY, 2)
        (run,) = await played.looks(LEGACY)
        assert (run.face, run.methods[0]) == ("modern", "server/discover")
        assert learned(played.house) == {"legacy", "modern"}


async def test_modern_server_is_learned_in_translation_too() -> None:
    async with serving(definition(**AUTO)) as played:
        await played.looks(MODERN, 2)
        (run,) = await played.looks(MODERN)
        assert (run.face, run.methods[0]) == ("legacy", "initialize")
        assert learned(played.house) == {"legacy", "modern"}


async def test_server_of_both_eras_is_not_translated() -> None:
    async with serving(definition(**AUTO)) as played:
        await played.looks(DUAL, 2)
        assert await told(played.house) == await told(played.house, "modern") == TOOLS
        assert launches(played.house) == 2


@pytest.mark.parametrize(("program", "era"), [(LEGACY, "legacy"), (MODERN, "modern")])
async def test_server_that_shall_not_be_translated_has_no_such_run(
    program: Program, era: str
) -> None:
    async with serving(definition(era="auto")) as played:
        await played.looks(program, 2)
        assert await told(played.house, era) == TOOLS
        assert launches(played.house) == 2


@pytest.mark.parametrize(("era", "method"), [("legacy", "initialize"), ("modern", DISCOVER)])
async def test_server_of_a_known_era_is_asked_in_that_era_only(era: str, method: Any) -> None:
    async with serving(definition(era=era)) as played:
        (run,) = await played.looks(DUAL)
        assert run.methods[0] == (method if isinstance(method, str) else method["method"])
        assert await told(played.house, era) == TOOLS
        assert launches(played.house) == 1


async def test_server_of_a_known_era_is_translated_as_well() -> None:
    async with serving(definition(era="legacy", translate=True)) as played:
        await played.looks(LEGACY)
        (run,) = await played.looks(LEGACY)
        assert run.face == "modern"


async def test_server_without_a_catalogue_whose_era_is_known_has_no_runs() -> None:
    async with serving(definition(catalogue=False)) as played:
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            waiting = group.create_task(played.house.post(OPEN))
            child = await played.child(LEGACY)
        assert (waiting.result().status, child.heard[0]) == (200, OPEN)
        assert launches(played.house) == 1


async def test_server_without_a_catalogue_is_looked_at_for_its_era_only() -> None:
    async with serving(definition(catalogue=False, **AUTO)) as played:
        await played.looks(MODERN, 2)
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            waiting = group.create_task(played.house.post(OPEN))
            child = await played.child(MODERN)
        assert (waiting.result().status, child.face, child.heard[0]) == (200, "legacy", OPEN)
        assert launches(played.house) == 3


async def test_legacy_client_waits_until_the_era_of_a_server_without_a_catalogue_is_known(
    waiting: asyncio.Event,
) -> None:
    async with serving(definition(catalogue=False, **AUTO)) as played:
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            orders = [await played.order() for _ in range(2)]
            posted = group.create_task(played.house.post(OPEN))
            await waiting.wait()
            for order in orders:
                await played.child_of(order, MODERN)
            child = await played.child(MODERN)
        assert (posted.result().status, child.face) == (200, "legacy")


@pytest.mark.parametrize(
    ("program", "era", "face"),
    [
        (LEGACY, "legacy", "plain"),
        (LEGACY, "modern", "modern"),
        (MODERN, "legacy", "legacy"),
        (MODERN, "modern", "plain"),
        (DUAL, "legacy", "plain"),
        (DUAL, "modern", "plain"),
    ],
)
async def test_child_of_a_client_shows_the_era_that_its_client_speaks(
    program: Program, era: str, face: str
) -> None:
    async with serving(definition(**AUTO)) as played:
        await played.looks(program, 2)
        if program is not DUAL:
            await played.looks(program)
        house = played.house
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            if era == "modern":
                group.create_task(send(house, asks(5)))
            else:
                key, _ = await opens(house)
                group.create_task(house.post(call(5), key))
            child = await played.child(program)
        assert child.face == face


async def test_modern_client_of_an_untranslated_legacy_server_is_told_what_it_speaks() -> None:
    async with serving(definition(era="auto")) as played:
        await played.looks(LEGACY, 2)
        answer = await send(played.house, LISTS)
        assert answer.refused[:3] == (400, -32022, "unsupported_revision")
        assert "2025-11-25" in answer.only["error"]["data"]["supported"]


async def test_legacy_client_of_an_untranslated_modern_server_is_told_what_it_speaks() -> None:
    async with serving(definition(era="auto")) as played:
        await played.looks(MODERN, 2)
        response = await played.house.post(OPEN)
        assert await refusal(response) == (400, -32022, "unsupported_revision", 1)
        data = (await response.json())["error"]["data"]
        assert data["supported"] == ["2026-07-28"]


# What is learned


async def test_all_pages_of_a_list_are_told_as_one() -> None:
    def paged(request: Any) -> Any:
        if request.get("params", {}).get("cursor") == "2":
            return {"tools": TOOLS[1:]}
        return {"tools": TOOLS[:1], "nextCursor": "2"}

    async with serving(definition()) as played:
        await played.looks(Program(answers={"tools/list": paged}))
        assert await told(played.house) == TOOLS


async def test_only_lists_that_are_declared_are_asked_for() -> None:
    async with serving(definition()) as played:
        (run,) = await played.looks(LEGACY)
        assert run.methods == ["initialize", "notifications/initialized", "tools/list"]


async def test_discovery_is_told_as_the_child_said_it() -> None:
    async with serving(definition(era="modern")) as played:
        await played.looks(MODERN)
        assert (await send(played.house, DISCOVER)).only == answered(1, DISCOVERED)


async def test_modern_client_gets_json_from_the_catalogue_whatever_it_names_first() -> None:
    async with serving(definition(era="modern")) as played:
        await played.looks(MODERN)
        accept = {"Accept": "text/event-stream, application/json"}
        answer = await send(played.house, LISTS, **accept)
        assert answer.headers["Content-Type"].startswith("application/json")


async def test_runs_are_ended_once_they_have_answered() -> None:
    async with serving(definition()) as played:
        (run,) = await played.looks(LEGACY)
        assert run.stopped
        await eventually(lambda: len(played.house.launcher.stopped) == 1)
        assert played.house.manager.sessions == 0


# Failures


async def test_child_that_refuses_to_open_is_not_learned_and_its_own_word_is_kept() -> None:
    async with serving(definition()) as played:
        await played.child(Program(answers={"initialize": Refusal(-32603, "no database")}))
        event = await happens(played.house, events.NotLearned)
        assert (event.era, "no database" in event.why) == ("legacy", True)


@pytest.mark.parametrize(
    "answer",
    [
        Refusal(-32603, "no database"),
        {"tools": 7},
        {"tools": [], "nextCursor": "for ever"},
    ],
)
async def test_list_that_cannot_be_had_is_left_to_the_children_of_clients(answer: Any) -> None:
    async with serving(definition()) as played:
        house = played.house
        await played.looks(Program(answers={"tools/list": answer}))
        assert (await happens(house, events.Learned)).lists == 0
        key, _ = await opens(house)
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            listed = group.create_task(house.post(LIST, key))
            await played.child(LEGACY)
        assert await listed.result().json() == answered(2, {"tools": TOOLS})


async def test_child_that_does_not_start_is_not_learned() -> None:
    async with serving(definition()) as played:
        agent = await played.house.join(await played.order())
        await agent.send(Channel.EVENT, {"event": "spawn_failed", "message": "no such file"})
        event = await happens(played.house, events.NotLearned)
        assert "no such file" in event.why


async def test_child_that_exits_is_not_learned() -> None:
    async with serving(definition()) as played:
        child = await played.child(Program(silent=frozenset({"initialize"})))
        await child.takes("initialize")
        await exits(child)
        event = await happens(played.house, events.NotLearned)
        assert "3" in event.why


async def exits(child: Child, *before: Any) -> None:
    """Say something and exit, all in one breath."""
    for message in before:
        child.agent.end.send(Channel.RPC, json.dumps(message).encode())
    exited = {"event": "exited", "code": 3, "signal": None, "asked": False, "stderr_tail": ""}
    await child.agent.send(Channel.EVENT, exited)


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_child_that_answers_once_and_exits_at_once_is_only_not_learned(era: str) -> None:
    opening, result = (
        ("initialize", OPENING) if era == "legacy" else ("server/discover", DISCOVERED)
    )
    async with serving(definition(era=era)) as played:
        child = await played.child(Program(silent=frozenset({opening})))
        asked = await child.takes(opening)
        await exits(child, answered(asked["id"], result))
        assert (await happens(played.house, events.NotLearned)).era == era
        async with played.house.http.get(f"{played.house.origin}/health") as health:
            assert health.status == 200


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_run_that_ends_between_two_answers_is_only_not_learned(era: str) -> None:
    async with serving(definition(era=era)) as played:
        manager = played.house.manager

        def end() -> None:
            (live,) = manager.directory
            manager.end(live, Reason.PROCESS_EXIT, SessionEnded("it is gone"))

        def hear(event: events.Event) -> None:
            if isinstance(event, events.CallFinished):
                asyncio.get_running_loop().call_soon(end)  # before its client can go on

        manager.subscribe(hear)
        await played.child(DUAL)
        assert (await happens(played.house, events.NotLearned)).era == era
        async with played.house.http.get(f"{played.house.origin}/health") as health:
            assert health.status == 200


async def test_child_that_does_not_answer_is_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(catalogues, "ANSWER_S", -29.9)  # with the launcher's 30 s for a boot
    async with serving(definition()) as played:
        child = await played.child(Program(silent=frozenset({"tools/list"})))
        event = await happens(played.house, events.NotLearned)
        assert event.why.startswith("no answer within")
        assert await played.house.ear.closed(child.agent) == "answered"


async def test_failed_look_is_repeated(pauses: Pauses) -> None:
    async with serving(definition()) as played:
        await played.child(DEAD)
        await played.child(DEAD)
        await played.looks(LEGACY)
        assert await told(played.house) == TOOLS
        assert len(pauses.asked) >= 2


async def test_pauses_between_failed_looks_grow_up_to_a_longest(pauses: Pauses) -> None:
    async with serving(definition()) as played:
        for _ in range(6):
            await played.child(DEAD)
        await eventually(lambda: len(pauses.asked) >= 5)
        asked = pauses.asked[:5]
        assert asked == sorted(asked)
        assert (asked[0] < asked[-1], asked[-2:]) == (True, [len(pauses) - 1] * 2)


def test_each_pause_is_longer_than_the_one_before() -> None:
    assert len(PAUSES) > 2
    assert all(before < after for before, after in pairwise(PAUSES))


async def test_one_era_that_failed_does_not_count_as_refused(pauses: Pauses) -> None:
    """A server of both eras shall not be taken for one of one, since one run broke down."""
    async with serving(definition(**AUTO)) as played:
        house = played.house
        agent = await house.join(await played.order())
        await agent.send(Channel.EVENT, {"event": "spawn_failed", "message": "no room"})
        await played.child(DUAL)
        await happens(house, events.Learned)
        (run, other) = await played.looks(DUAL, 2)
        await eventually(lambda: learned(house) == {"legacy", "modern"})
        assert (run.face, other.face, bool(pauses.asked)) == ("plain", "plain", True)


# Clients meanwhile


async def test_modern_client_of_an_unknown_server_is_asked_to_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(catalogues, "PATIENCE_S", 0.01)
    async with serving(definition(**AUTO)) as played:
        await played.order()
        answer = await send(played.house, LISTS)
        assert answer.refused == (503, -32603, "not_ready", 2)
        assert answer.headers["Retry-After"]


async def test_modern_client_of_a_server_that_cannot_be_learned_is_told_why() -> None:
    async with serving(definition(**AUTO)) as played:
        refuses = Refusal(-32000, "no licence")
        broken = Program(answers=dict.fromkeys(("initialize", "server/discover"), refuses))
        broken.speaks = DUAL.speaks
        for _ in range(2):
            await played.child(broken)
        await happens(played.house, events.NotLearned, 2)
        answer = await send(played.house, LISTS)
        assert answer.status == 502
        assert "no licence" in answer.only["error"]["message"]


async def test_modern_client_waits_for_the_first_look(waiting: asyncio.Event) -> None:
    async with serving(definition(era="auto")) as played:
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            sent = group.create_task(send(played.house, LISTS))
            await waiting.wait()
            await played.looks(MODERN, 2)
        assert sent.result().only["result"]["tools"] == TOOLS


async def test_legacy_client_waits_for_the_first_look(waiting: asyncio.Event) -> None:
    async with serving(definition()) as played:
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            posted = group.create_task(played.house.post(OPEN))
            await waiting.wait()
            await played.looks(LEGACY)
        assert (posted.result().status, launches(played.house)) == (200, 1)


async def test_legacy_client_gets_a_dyno_of_its_own_when_the_first_look_takes_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(catalogues, "PATIENCE_S", 0.01)
    async with serving(definition()) as played:
        await played.order()
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            waiting = group.create_task(played.house.post(OPEN))
            child = await played.child(LEGACY)
        assert await waiting.result().json() == answered(1, OPENING)
        assert child.heard[0] == OPEN


async def test_legacy_client_of_a_server_that_was_not_learned_is_served_by_its_child() -> None:
    async with serving(definition()) as played:
        await played.child(DEAD)
        await happens(played.house, events.NotLearned)
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            waiting = group.create_task(played.house.post(OPEN))
            await played.child(LEGACY)
        assert await waiting.result().json() == answered(1, OPENING)


# Another look


async def test_child_that_contradicts_its_catalogue_is_looked_at_again(pauses: Pauses) -> None:
    async with serving(definition()) as played:
        await played.looks(LEGACY)
        await contradict(played)
        await played.looks(Program(answers={"tools/list": {"tools": TOOLS[:1]}}))
        await eventually(lambda: len(heard_events(played.house, events.Learned)) == 2)
        assert await told(played.house) == TOOLS[:1]
        assert pauses.asked == [0]


async def test_one_child_asks_for_another_look_once(pauses: Pauses) -> None:
    async with serving(definition()) as played:
        await played.looks(LEGACY)
        child = await contradict(played)
        await played.looks(LEGACY)
        await child.agent.say({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
        await child.agent.say({"jsonrpc": "2.0", "id": "q", "method": "roots/list"})
        await eventually(lambda: len(pauses.asked) == 1)
        assert len(heard_events(played.house, events.Contradicted)) == 1


async def test_throw_away_run_asks_for_no_other_look(pauses: Pauses) -> None:
    async with serving(definition()) as played:
        child = await played.child(Program(silent=frozenset({"tools/list"})))
        asked = await child.takes("tools/list")
        await child.agent.say({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
        await child.agent.say(answered(asked["id"], {"tools": TOOLS}))
        await played.house.ear.closed(child.agent)
        assert await told(played.house) == TOOLS
        assert (pauses.asked, launches(played.house)) == ([], 1)


async def test_next_look_after_one_in_vain_comes_later(pauses: Pauses) -> None:
    async with serving(definition()) as played:
        await played.looks(LEGACY)
        for _ in range(4):
            await contradict(played)
            await played.looks(LEGACY)
        assert pauses.asked == sorted(pauses.asked)
        assert len(set(pauses.asked)) > 2


async def test_look_that_told_something_new_shortens_the_next_pause(pauses: Pauses) -> None:
    other = Program(answers={"tools/list": {"tools": TOOLS[:1]}})
    async with serving(definition()) as played:
        await played.looks(LEGACY)
        for program in (LEGACY, LEGACY, other, other):
            await contradict(played)
            await played.looks(program)
        assert pauses.asked[-1] < pauses.asked[-2]


async def test_clients_are_served_from_what_is_known_while_a_look_is_made(pauses: Pauses) -> None:
    async with serving(definition()) as played:
        await played.looks(LEGACY)
        await contradict(played)
        order = await played.order()
        key, _ = await opens(played.house)
        listed = await played.house.post(LIST, key)
        assert await listed.json() == answered(2, {"tools": TOOLS})
        await played.child_of(order, LEGACY)
        assert pauses.asked == [0]


async def test_clients_are_served_from_what_is_known_when_another_look_fails(
    pauses: Pauses,
) -> None:
    async with serving(definition()) as played:
        await played.looks(LEGACY)
        await contradict(played)
        await played.child(DEAD)
        await happens(played.house, events.NotLearned)
        assert await told(played.house) == TOOLS
        assert pauses.asked


async def test_translation_that_fails_in_another_look_is_served_from_what_is_known(
    pauses: Pauses,
) -> None:
    async with serving(definition(**AUTO)) as played:
        house = played.house
        await played.looks(LEGACY, 2)
        await played.looks(LEGACY)
        await contradict(played)
        await played.looks(LEGACY, 2)
        agent = await house.join(await played.order())
        await agent.send(Channel.EVENT, {"event": "spawn_failed", "message": "no room"})
        await eventually(lambda: len(pauses.asked) == 2)
        assert await told(house, "modern") == TOOLS


async def test_session_without_a_dyno_is_told_what_another_look_has_found(pauses: Pauses) -> None:
    async with serving(definition()) as played:
        house = played.house
        await played.looks(LEGACY)
        key, _ = await opens(house)
        assert (await house.post(LIST, key)).status == 200
        async with house.listening(key) as stream:
            await contradict(played)
            await played.looks(Program(answers={"tools/list": {"tools": TOOLS[:1]}}))
            note = await stream.message()
        assert note == {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}
        listed = await house.post(LIST, key)
        assert await listed.json() == answered(2, {"tools": TOOLS[:1]})
        assert pauses.asked == [0]


async def test_session_of_another_server_is_told_nothing_of_a_look(pauses: Pauses) -> None:
    async with (
        opened(None, None, (definition(), definition("zz"))) as house,
        stage(house) as played,
    ):
        await played.looks(LEGACY, 2)
        url = f"{house.origin}/servers/zz/mcp"
        async with house.http.post(url, json=OPEN) as response:
            headers = {"Mcp-Session-Id": response.headers["Mcp-Session-Id"]}
        async with house.http.post(url, json=LIST, headers=headers) as response:
            assert response.status == 200
        await contradict(played)
        await played.looks(Program(answers={"tools/list": {"tools": TOOLS[:1]}}))
        await eventually(lambda: len(heard_events(house, events.Learned)) == 3)
        async with house.http.post(url, json=LIST, headers=headers) as response:
            assert (await response.json())["result"]["tools"] == TOOLS
        assert pauses.asked == [0]


# Room


async def test_full_gateway_learns_once_there_is_room(pauses: Pauses) -> None:
    terms = Terms("http://127.0.0.1", SECRET, 1)
    servers = (definition("one", catalogue=False), definition())
    async with opened(None, terms, servers) as house, stage(house) as played:
        await played.looks(LEGACY)
        url = f"{house.origin}/servers/one/mcp"
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:

            async def occupy() -> str:
                async with house.http.post(url, json=OPEN) as response:
                    return response.headers["Mcp-Session-Id"]

            occupying = group.create_task(occupy())
            child = await played.child(LEGACY)
        live = house.live(occupying.result())
        house.manager.emit(events.Contradicted(session="s", server="patient", principal="somebody"))
        event = await happens(house, events.NotLearned)
        assert "MAX_SESSIONS" in event.why
        assert await told(house) == TOOLS
        house.manager.end(live, Reason.IDLE, SessionEnded("there shall be room"))
        await house.ear.closed(child.agent)
        await played.looks(LEGACY)
        assert len(heard_events(house, events.Learned)) == 2


@pytest.mark.parametrize(("program", "era"), [(LEGACY, "legacy"), (MODERN, "modern")])
async def test_gateway_with_room_for_one_learns_a_server_of_one_era(
    program: Program, era: str
) -> None:
    terms = Terms("http://127.0.0.1", SECRET, 1)
    async with serving(definition(era="auto"), terms) as played:
        await played.looks(program, 2)
        assert await told(played.house, era) == TOOLS
        assert launches(played.house) == 2


async def test_session_that_is_only_looked_at_is_not_handed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions, "DRAIN_S", 0.05)
    async with serving(definition(), LASTING) as played:
        child = await played.child(Program(silent=frozenset({"tools/list"})))
        await child.takes("tools/list")
        await played.house.manager.drain()
        assert heard_events(played.house, events.HandedOver) == []
        assert await played.house.ear.closed(child.agent) in {"drained", "answered"}


async def test_shutdown_during_a_look_ends_its_runs() -> None:
    async with serving(definition(**AUTO)) as played:
        for _ in range(2):
            await played.order()
    closed = {event.session for event in heard_events(played.house, events.Closed)}
    assert closed == {event.session for event in heard_events(played.house, events.Requested)}
    assert len(closed) == 2
