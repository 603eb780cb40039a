"""What throw-away runs learn, when they are made again, and what clients get meanwhile."""

from __future__ import annotations

import asyncio
import functools
import json
from contextlib import asynccontextmanager
from itertools import pairwise
from types import MethodType
from typing import TYPE_CHECKING, Any

import pytest

from dyno_agent.link import Channel
from gateway import events
from gateway.eras import modern
from gateway.errors import SessionEnded, UnknownServer
from gateway.jsonrpc import peek
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
from tests.fakes.house import (
    BOUND,
    LASTING,
    SECRET,
    House,
    Stream,
    eventually,
    opened,
    refusal,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.eras.catalogue import Chapter, Era
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


# Toolkits: the chapters of several servers as one

TWO = (definition("one"), definition("two"))

HANGS = Program(silent=frozenset({"initialize", "server/discover"}))

CRASHES = "exits when it is asked"


@asynccontextmanager
async def several(*servers: ServerDefinition, **more: Any) -> AsyncIterator[Stage]:
    async with opened(None, None, servers or TWO, **more) as house, stage(house) as played:
        yield played


async def first_looks(played: Stage, **programs: Program | str) -> dict[str, Child]:
    """Play the first throw-away run of each server; wait for the end of those that have one."""
    found = {}
    for _ in programs:
        order = await played.order()
        program = programs[order.server]
        child = await played.child_of(order, HANGS if isinstance(program, str) else program)
        found[order.server] = child
        if isinstance(program, str):
            await child.takes("initialize")
            await exits(child)
        if program is not HANGS:
            await played.house.ear.closed(child.agent)
    return found


def known_to(house: House) -> Catalogues:
    chapter = house.manager.reception.chapter
    assert isinstance(chapter, functools.partial)
    assert isinstance(chapter.func, MethodType)
    owner = chapter.func.__self__
    assert isinstance(owner, Catalogues)
    return owner


def kit_of(house: House) -> ServerDefinition:
    found = house.registry.toolkit("all")
    assert found is not None
    return found


def kit_tools(house: House, era: Era = "legacy") -> list[str]:
    return _tools_of(known_to(house).chapter(kit_of(house), era))


def _tools_of(chapter: Chapter | None) -> list[str]:
    assert chapter is not None
    return [tool["name"] for tool in chapter.tools]


async def settled_tools(house: House, era: Era = "legacy") -> list[str]:
    """Return what a client is told whose request waits for the first looks."""
    async with asyncio.timeout(BOUND):
        return _tools_of(await known_to(house).settled_chapter(kit_of(house), era))


BOTH = ["one/echo", "one/add", "two/echo", "two/add"]


async def test_toolkit_tells_what_all_its_members_do() -> None:
    async with several() as played:
        await first_looks(played, one=LEGACY, two=LEGACY)
        assert kit_tools(played.house) == BOTH
        assert launches(played.house) == 2


async def test_toolkit_tells_each_era_what_its_members_tell_that_era() -> None:
    servers = definition("one", era="dual"), definition("two", era="modern")
    async with several(*servers) as played:
        for _ in range(3):
            order = await played.order()
            child = await played.child_of(order, DUAL if order.server == "one" else MODERN)
            await played.house.ear.closed(child.agent)
        assert kit_tools(played.house, "modern") == BOTH
        assert kit_tools(played.house, "legacy") == BOTH[:2]


async def test_toolkit_is_composed_once_for_all_requests() -> None:
    async with several() as played:
        await first_looks(played, one=LEGACY, two=LEGACY)
        known, kit = known_to(played.house), kit_of(played.house)
        assert known.chapter(kit, "legacy") is await known.settled_chapter(kit, "legacy")


async def test_client_of_a_toolkit_waits_for_the_first_looks_at_its_members(
    monkeypatch: pytest.MonkeyPatch, waiting: asyncio.Event
) -> None:
    monkeypatch.setattr(catalogues, "GLANCE_S", NEVER)
    async with several() as played, asyncio.TaskGroup() as tasks:
        asks_for = tasks.create_task(settled_tools(played.house))
        await waiting.wait()
        await first_looks(played, one=LEGACY, two=LEGACY)
        assert await asks_for == BOTH


async def test_client_of_a_toolkit_does_not_wait_for_members_that_were_looked_at_in_vain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(catalogues, "GLANCE_S", NEVER)
    async with several() as played:
        await first_looks(played, one=CRASHES, two=LEGACY)
        assert await settled_tools(played.house) == BOTH[2:]


async def test_client_of_a_toolkit_waits_a_moment_for_a_member_that_never_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(catalogues, "PATIENCE_S", NEVER)
    monkeypatch.setattr(catalogues, "GLANCE_S", 0.01)
    async with several() as played:
        await first_looks(played, one=HANGS, two=LEGACY)
        assert await settled_tools(played.house) == BOTH[2:]


async def test_all_members_that_never_answer_are_waited_for_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[float] = []

    def noted(limit_s: float) -> float:
        asked.append(limit_s)
        return 0.0

    async with several(*(definition(name) for name in "abcd")) as played:
        monkeypatch.setattr(catalogues, "patience", noted)
        assert await settled_tools(played.house) == []
        assert asked == [catalogues.GLANCE_S]
    assert catalogues.GLANCE_S < 1


async def test_toolkit_with_a_member_that_crashes_and_one_that_hangs_tells_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(catalogues, "GLANCE_S", 0.01)
    servers = [definition(name) for name in ("crashes", "hangs", "one", "two")]
    async with several(*servers) as played:
        await first_looks(played, crashes=CRASHES, hangs=HANGS, one=LEGACY, two=LEGACY)
        assert await settled_tools(played.house) == BOTH


async def test_toolkit_is_ready_for_every_era_before_anything_is_known() -> None:
    async with several() as played:
        known, kit = known_to(played.house), kit_of(played.house)
        for era in ("legacy", "modern"):
            async with asyncio.timeout(BOUND):
                await known.ready(kit, era)
            assert known.face(kit, era) == "plain"
            assert kit_tools(played.house, era) == []


async def test_operators_see_the_tools_of_a_toolkit_whatever_era_they_are_of() -> None:
    async with several(definition("one", era="modern")) as played:
        await first_looks(played, one=MODERN)
        tools = known_to(played.house).tools(kit_of(played.house))
        assert tools is not None
        assert [tool["name"] for tool in tools] == BOTH[:2]


@asynccontextmanager
async def kit_session(house: House) -> AsyncIterator[tuple[dict[str, str], Stream]]:
    """A session of the toolkit without a dyno, that was told its tools, and its stream."""
    url = f"{house.origin}/toolkit/mcp"
    async with house.http.post(url, json=OPEN) as response:
        assert response.status == 200
        headers = {"Mcp-Session-Id": response.headers["Mcp-Session-Id"]}
    async with house.http.post(url, json=LIST, headers=headers) as response:
        assert response.status == 200
    async with house.http.get(url, headers=headers) as response:
        assert response.status == 200
        yield headers, Stream(response)


async def kit_list(house: House, headers: dict[str, str]) -> list[str]:
    async with house.http.post(f"{house.origin}/toolkit/mcp", json=LIST, headers=headers) as said:
        return [tool["name"] for tool in (await said.json())["result"]["tools"]]


FEWER = Program(answers={"tools/list": {"tools": TOOLS[:1]}})

CHANGED = {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}


async def test_session_of_a_toolkit_is_told_what_another_look_at_a_member_has_found(
    pauses: Pauses,
) -> None:
    async with several() as played:
        house = played.house
        await first_looks(played, one=LEGACY, two=LEGACY)
        async with kit_session(house) as (headers, stream):
            house.manager.emit(events.Contradicted(session="s", server="two", principal="test"))
            await first_looks(played, two=FEWER)
            assert await stream.message() == CHANGED
            assert await kit_list(house, headers) == BOTH[:3]
        assert pauses.asked == [0]


async def test_session_of_a_toolkit_is_told_of_a_member_that_becomes_known_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(catalogues, "GLANCE_S", 0.01)
    async with several() as played:
        house = played.house
        order = {(found := await played.order()).server: found for _ in TWO}
        await played.child_of(order["one"], LEGACY)
        await happens(house, events.Learned)
        async with kit_session(house) as (headers, stream):
            assert await kit_list(house, headers) == BOTH[:2]
            await played.child_of(order["two"], LEGACY)
            assert await stream.message() == CHANGED
            assert await kit_list(house, headers) == BOTH


async def test_session_of_a_toolkit_is_told_of_a_member_that_is_gone() -> None:
    async with several() as played:
        house = played.house
        await first_looks(played, one=LEGACY, two=LEGACY)
        async with kit_session(house) as (headers, stream):
            house.registry.replace(TWO[:1])
            assert await stream.message() == CHANGED
            assert await kit_list(house, headers) == BOTH[:2]


async def test_session_of_a_toolkit_that_goes_on_after_its_end_is_told_of_a_change() -> None:
    async with several() as played:
        house = played.house
        await first_looks(played, one=LEGACY, two=LEGACY)
        async with kit_session(house) as (headers, stream):
            assert await stream_is_silent(house, stream)
        async with house.http.get(f"{house.origin}/toolkit/mcp", headers=headers) as response:
            house.registry.replace(TWO[:1])
            assert await Stream(response).message() == CHANGED


async def test_session_of_a_toolkit_is_told_nothing_of_a_look_that_found_the_same(
    pauses: Pauses,
) -> None:
    async with several() as played:
        house = played.house
        await first_looks(played, one=LEGACY, two=LEGACY)
        async with kit_session(house) as (_, stream):
            house.manager.emit(events.Contradicted(session="s", server="two", principal="test"))
            await first_looks(played, two=LEGACY)
            await happens(house, events.Learned, 3)
            house.manager.emit(events.Contradicted(session="s", server="one", principal="test"))
            await first_looks(played, one=FEWER)
            assert await stream.message() == CHANGED
            assert await stream_is_silent(house, stream)


async def stream_is_silent(house: House, stream: Stream) -> bool:
    """End all sessions; whether a stream had nothing more to tell."""
    for live in house.manager.directory:
        house.manager.end(live, Reason.OPERATOR, SessionEnded("the test is over"))
    return await stream.rest() == []


async def test_those_who_listen_to_a_toolkit_are_told_of_a_change(pauses: Pauses) -> None:
    servers = definition("one", era="modern"), definition("two", era="modern")
    async with several(*servers) as played:
        house = played.house
        await first_looks(played, one=MODERN, two=MODERN)
        kit = kit_of(house)
        live = await house.manager.share(kit, "test", "", "client")
        asked = modern.read(
            peek(
                json.dumps(
                    asks(1, modern.LISTEN, notifications={"toolsListChanged": True})
                ).encode()
            )
        )
        outbox = live.open_outbox(numbered=False)
        chapter = known_to(house).chapter(kit, "modern")
        assert chapter is not None
        live.perform(live.session.hold(asked, 100, outbox, 0.0, chapter.list_changed_kinds))
        await outbox.head()
        outbox.take()
        fewer = Program(speaks=frozenset({"modern"}), answers=FEWER.answers)
        house.manager.emit(events.Contradicted(session="s", server="two", principal="test"))
        await first_looks(played, two=fewer)
        async with asyncio.timeout(BOUND):
            told_now = await outbox.head()
        assert told_now is not None
        assert b"notifications/tools/list_changed" in told_now.raw
        live.drop_outbox(outbox)


async def test_toolkit_routes_a_call_to_its_member() -> None:
    async with several() as played:
        await first_looks(played, one=LEGACY, two=LEGACY)
        body = json.dumps({**call(1), "params": {"name": "two/echo", "x": 1}}).encode()
        kits = known_to(played.house).toolkits
        routed = kits.route(kit_of(played.house), "legacy", peek(body), body)
        assert (routed.server, routed.name) == (TWO[1], "echo")
        assert json.loads(routed.raw)["params"] == {"name": "echo", "x": 1}


async def test_call_of_a_member_that_has_just_gone_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with several() as played:
        await first_looks(played, one=LEGACY, two=LEGACY)
        body = json.dumps({**call(1), "params": {"name": "two/echo"}}).encode()
        kits, kit = known_to(played.house).toolkits, kit_of(played.house)
        monkeypatch.setattr(played.house.registry, "members", lambda _kit: list(TWO))
        played.house.registry.replace(TWO[:1])
        with pytest.raises(UnknownServer, match="two"):
            kits.route(kit, "legacy", peek(body), body)
