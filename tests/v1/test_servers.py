"""`GET /v1/mcp/servers`: the documented objects, and what is true of them."""

from __future__ import annotations

import asyncio
import json
import uuid
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from msgspec.structs import replace

from gateway.registry.servers import ServerDefinition
from gateway.sessions import catalogues, dynos
from gateway.store.memory import Engine, MemoryStore
from gateway.v1 import ages
from gateway.v1.servers import command_of
from tests.edge.eras_house import Program, Stage, definition, stage
from tests.fakes.house import BOUND, LASTING, House, eventually, opened
from tests.v1.documented import example, shape

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DOCUMENTED: Any = example("servers")[0]

MY_TOOL = {
    "name": "my_tool",
    "description": "A sample tool",
    "inputSchema": {},
    "annotations": DOCUMENTED["tools"][0]["annotations"],
}

DISCOVERED: dict[str, Any] = {
    "app": "my-app",
    "process_type": "mcp-python",
    "command": "bash",
    "args": ["-c", "python -m src.stdio_server"],
    "release": "v7",
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No look is made again, unless the server is another one."""
    monkeypatch.setattr(catalogues, "AGAIN_S", (BOUND * 60,))
    monkeypatch.setattr(dynos, "LEAVE_S", 0.5)


def offers(*tools: Any) -> Program:
    return Program(answers={"tools/list": {"tools": list(tools)}})


async def listed(house: House) -> list[Any]:
    async with asyncio.timeout(BOUND), house.http.get(f"{house.origin}/v1/mcp/servers") as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "application/json"
        found: list[Any] = await response.json()
        return found


async def one(house: House) -> Any:
    (found,) = await listed(house)
    return found


@asynccontextmanager
async def looked(
    program: Program, server: ServerDefinition | None = None, **more: Any
) -> AsyncIterator[Stage]:
    """A gateway with one server, which was looked at."""
    server = server or definition("mcp-python", **DISCOVERED)
    async with opened(None, None, (server,), **more) as house, stage(house) as played:
        await played.looks(program)
        yield played


# The documented object


async def test_a_server_has_the_documented_shape() -> None:
    async with looked(offers(MY_TOOL)) as played:
        assert shape(await one(played.house)) == shape(DOCUMENTED)


async def test_a_server_tells_what_is_documented() -> None:
    async with looked(offers(MY_TOOL)) as played:
        found = await one(played.house)
    tool = {**DOCUMENTED["tools"][0], "namespaced_name": "mcp-python/my_tool"}
    assert {key: found[key] for key in found if not key.endswith(("id", "_at"))} == {
        "process_type": "mcp-python",
        "process_command": "python -m src.stdio_server",
        "namespace": "mcp-python",
        "server_status": "registered",
        "primitives_status": "synced",
        "tools": [tool],
    }


async def test_ids_are_uuids_and_times_are_documented_ones() -> None:
    async with looked(offers(MY_TOOL)) as played:
        found = await one(played.house)
    assert str(uuid.UUID(found["id"])) == found["id"]
    assert str(uuid.UUID(found["app_id"])) == found["app_id"]
    for key in ("created_at", "updated_at"):
        assert len(found[key]) == len(DOCUMENTED[key])
        told = datetime.fromisoformat(found[key]).timestamp()
        assert abs(played.house.manager.fleet.now() - told) < 300


async def test_there_is_an_empty_list_without_servers() -> None:
    async with opened(None, None, ()) as house:
        assert await listed(house) == []


# Tools


@pytest.mark.parametrize("annotations", [None, {}, 7])
async def test_a_tool_without_annotations_has_empty_ones(annotations: Any) -> None:
    async with looked(offers({"name": "t", "annotations": annotations})) as played:
        (tool,) = (await one(played.house))["tools"]
    assert tool == {
        "name": "t",
        "namespaced_name": "mcp-python/t",
        "description": None,
        "input_schema": {},
        "annotations": {},
    }


async def test_hints_that_a_tool_leaves_out_are_what_the_specification_takes_them_for() -> None:
    """A known client wants all of them, or none."""
    some = {"name": "t", "title": "T", "annotations": {"readOnlyHint": True, "openWorldHint": "x"}}
    async with looked(offers(some)) as played:
        (tool,) = (await one(played.house))["tools"]
    assert tool["annotations"] == {
        "title": "T",
        "readOnlyHint": True,
        "destructiveHint": True,
        "idempotentHint": False,
        "openWorldHint": True,
    }


# Status


async def test_a_server_that_nobody_has_looked_at_is_syncing() -> None:
    async with opened(None, None, (definition("slow"),)) as house:
        found = await one(house)
    assert (found["primitives_status"], found["tools"]) == ("syncing", [])


async def test_a_server_that_could_not_be_looked_at_is_an_error() -> None:
    async with looked(Program(speaks=frozenset())) as played:
        await eventually_status(played.house, "error")


async def test_a_server_without_a_catalogue_has_nothing_to_sync() -> None:
    async with opened(None, None, (definition("bare", catalogue=False),)) as house:
        assert (await one(house))["primitives_status"] == "synced"


async def test_a_server_that_is_gone_is_disconnected_and_last() -> None:
    both = definition("a"), definition("b")
    async with opened(None, None, both) as house:
        await listed(house)
        house.registry.replace(both[1:])
        found = await listed(house)
    assert [(each["namespace"], each["server_status"]) for each in found] == [
        ("b", "registered"),
        ("a", "disconnected"),
    ]


async def eventually_status(house: House, status: str) -> Any:
    async with asyncio.timeout(BOUND):
        while (found := await one(house))["primitives_status"] != status:  # noqa: ASYNC110
            await asyncio.sleep(0)
    return found


# Commands


@pytest.mark.parametrize(
    ("command", "args", "shown"),
    [
        ("python", ["-m", "mcp_servers.code_exec", "ruby"], "python -m mcp_servers.code_exec …"),
        ("npx", ["-y", "server", "--token", "hunter"], "npx -y … --token …"),
        ("serve", ["--token=hunter", "sk-1234", "postgres://u:p@h/d"], "serve … … …"),
        ("serve", [], "serve"),
    ],
)
def test_a_command_shows_nothing_that_may_come_from_the_environment(
    command: str, args: list[str], shown: str
) -> None:
    server = ServerDefinition(name="s", command=command, args=args, env={"KEY": "hunter"})
    assert command_of(server) == shown


def test_a_command_of_a_procfile_is_shown_as_it_is_there() -> None:
    server = ServerDefinition(name="s", **DISCOVERED)
    assert command_of(server) == "python -m src.stdio_server"


# Ids and times


async def test_the_id_of_an_app_is_the_platforms() -> None:
    app_id = "434eb878-6bc1-4677-928d-80d27047ad5a"
    server = definition("mcp", **{**DISCOVERED, "app_id": app_id})
    async with opened(None, None, (server,)) as house:
        assert (await one(house))["app_id"] == app_id


async def test_an_app_that_is_named_by_its_id_has_that() -> None:
    app_id = "434eb878-6bc1-4677-928d-80d27047ad5a"
    server = definition("mcp", **{**DISCOVERED, "app": app_id})
    async with opened(None, None, (server,)) as house:
        assert (await one(house))["app_id"] == app_id


async def test_ids_and_times_are_the_same_at_every_process_and_after_a_restart() -> None:
    engine, server = Engine(), definition("s", catalogue=False)
    first, second = (MemoryStore(engine, name) for name in ("one", "two"))
    async with opened(None, LASTING, (server,), None, first) as one_house:
        told = await one(one_house)
        async with opened(None, LASTING, (server,), None, second) as other:
            assert await one(other) == told
    async with opened(None, LASTING, (server,), None, MemoryStore(engine, "three")) as later:
        assert await one(later) == told


async def test_servers_of_different_names_or_apps_have_different_ids() -> None:
    servers = (
        definition("a"),
        definition("b"),
        definition("c", **DISCOVERED),
        definition("d", **{**DISCOVERED, "app": "other"}),
    )
    async with opened(None, None, servers) as house:
        found = await listed(house)
    assert len({each["id"] for each in found}) == 4
    assert len({each["app_id"] for each in found}) == 3


class Clock:
    """The wall clock of a manager, which the test sets forward."""

    def __init__(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        began = house.manager.fleet.now()
        self.ahead = 0.0
        monkeypatch.setattr(house.manager.fleet, "now", lambda: began + self.ahead)


async def times(house: House) -> tuple[str, str]:
    found = await one(house)
    return found["created_at"], found["updated_at"]


async def test_a_server_that_stays_as_it_is_was_not_updated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with looked(offers(MY_TOOL)) as played:
        found = await times(played.house)
        Clock(played.house, monkeypatch).ahead = 60
        assert await times(played.house) == found


@pytest.mark.parametrize("change", [{"release": "v8"}, {"description": "another"}])
async def test_another_release_or_definition_is_an_update(
    monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    async with looked(offers(MY_TOOL)) as played:
        house = played.house
        created, updated = await times(house)
        Clock(house, monkeypatch).ahead = 60
        (server,) = house.registry.servers
        house.registry.replace([replace(server, **change)])
        now_created, now_updated = await times(house)
    assert now_created == created
    assert now_updated > updated


async def test_other_tools_are_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    async with looked(offers(MY_TOOL)) as played:
        house = played.house
        await eventually_status(house, "synced")
        (server,) = house.registry.servers
        clock = Clock(house, monkeypatch)
        house.registry.replace([replace(server, release="v8")])
        _, updated = await times(house)
        clock.ahead = 60
        await played.looks(offers({**MY_TOOL, "name": "other"}))
        found = await eventually_status(house, "synced")
        assert [tool["name"] for tool in found["tools"]] == ["other"]
        assert found["updated_at"] > updated


async def test_the_first_look_is_no_update(monkeypatch: pytest.MonkeyPatch) -> None:
    server = definition("mcp-python", **DISCOVERED)
    async with opened(None, None, (server,)) as house, stage(house) as played:
        found = await times(house)
        Clock(house, monkeypatch).ahead = 60
        await played.looks(offers(MY_TOOL))
        await eventually_status(house, "synced")
        assert await times(house) == found


async def test_a_change_is_noted_though_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    async with looked(offers(MY_TOOL)) as played:
        house = played.house
        await times(house)
        clock = Clock(house, monkeypatch)
        clock.ahead = 60
        (server,) = house.registry.servers
        house.registry.replace([replace(server, release="v8")])
        before = await house.manager.store.changes(ages.TABLE, 0)
        async with asyncio.timeout(BOUND):
            store = house.manager.store
            while (await store.changes(ages.TABLE, 0)).version == before.version:  # noqa: ASYNC110
                await asyncio.sleep(0)
        clock.ahead = 120
        created, updated = await times(house)
        age = datetime.fromisoformat(updated) - datetime.fromisoformat(created)
        assert timedelta(seconds=30) < age < timedelta(seconds=90)


async def test_tools_are_noted_though_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ages, "NOTE_S", 0.01)
    async with looked(offers(MY_TOOL)) as played, asyncio.timeout(BOUND):
        store = played.house.manager.store
        tools = None
        while tools is None:
            await asyncio.sleep(0)
            rows = (await store.changes(ages.TABLE, 0)).rows
            tools = json.loads(rows.get("mcp-python") or "{}").get("tools")


async def test_times_that_are_known_are_told_while_the_store_is_away() -> None:
    engine, server = Engine(), definition("s", catalogue=False)
    store = MemoryStore(engine, "one")
    async with opened(None, LASTING, (server,), None, store) as house:
        found = await times(house)
        engine.away = True
        assert await times(house) == found
        engine.away = False


async def test_a_listing_without_times_is_refused_while_the_store_is_away() -> None:
    engine, server = Engine(), definition("s", catalogue=False)
    store = MemoryStore(engine, "one")
    async with opened(None, LASTING, (server,), None, store) as house:
        await listed(house)
        engine.away = True
        house.registry.replace([server, definition("new", catalogue=False)])
        async with house.http.get(f"{house.origin}/v1/mcp/servers") as response:
            error = (await response.json())["error"]
            assert (response.status, error["code"]) == (503, "store_unavailable")
        engine.away = False


async def test_no_secret_is_in_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    server = definition("s", env={"TOKEN": "hunter2"}, args=["hunter2"])
    async with opened(None, None, (server,)) as house:
        await listed(house)
        rows = (await house.manager.store.changes(ages.TABLE, 0)).rows
    (raw,) = rows.values()
    assert raw is not None
    assert b"hunter2" not in raw
    assert set(json.loads(raw)) == {"created", "updated", "definition", "tools"}


# Who may ask


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Bearer key-of-the-test"}, 200),
        ({"Authorization": "Bearer key-of-the-test", "X-Forwarded-Proto": "http"}, 200),
        ({"Authorization": "Bearer key-of-the-test", "Origin": "https://evil.test"}, 403),
    ],
)
async def test_clients_come_in_with_their_key(headers: dict[str, str], status: int) -> None:
    async with (
        opened(None, None, ()) as house,
        aiohttp.ClientSession() as http,
        http.get(f"{house.origin}/v1/mcp/servers", headers=headers) as response,
    ):
        document = await response.json()
        assert response.status == status
    if status != 200:
        assert set(document["error"]) == {"message", "type", "param", "code"}


async def test_a_server_is_known_by_the_time_the_gateway_serves() -> None:
    async with opened(None, None, (definition("s", catalogue=False),)) as house:
        await eventually(lambda: house.registry.names)
        assert (await one(house))["created_at"] != "1970-01-01T00:00:00.000Z"
