"""Proves what process types become: names, conflicts, completed entries, and when it looks."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from gateway.launchers.heroku.formation import Process
from gateway.registry.discovery import Discovery, merge
from gateway.registry.servers import Change, Registry, ServerDefinition

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BOUND = 30.0
FOREVER = BOUND * 60


@dataclass(frozen=True)
class Found:
    processes: tuple[Process, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)


def process(app: str = "a", name: str = "mcp-x", **more: Any) -> Process:
    usual = {"command": f"run {app} {name}", "size": "basic", "release": "v1"}
    return Process(app, name, **{**usual, **more})


def entry(name: str, **more: Any) -> ServerDefinition:
    return ServerDefinition(name=name, **more)


def names(
    *processes: Process,
    entries: Sequence[ServerDefinition] = (),
    before: Sequence[ServerDefinition] = (),
    failed: Sequence[str] = (),
) -> dict[str, ServerDefinition]:
    found = Found(processes, dict.fromkeys(failed, "503"))
    merged = merge(entries, found, Registry(list(before)))
    assert len({server.name for server in merged}) == len(merged)
    return {server.name: server for server in merged}


# What they are called


def test_process_type_is_a_server_of_its_name() -> None:
    (server,) = names(process()).values()
    assert (server.name, server.app, server.process_type) == ("mcp-x", "a", "mcp-x")


def test_its_command_is_run_by_the_shell_as_the_platform_does() -> None:
    (server,) = names(process(command='echo "$HOME" | cat')).values()
    assert (server.command, server.args) == ("bash", ["-c", 'echo "$HOME" | cat'])


def test_it_has_the_formations_size_and_the_apps_release() -> None:
    (server,) = names(process(size="standard-2x", release="v7")).values()
    assert (server.size, server.release) == ("standard-2x", "v7")


def test_it_has_the_platforms_own_name_of_the_app() -> None:
    others = [entry("own", command="x", app="a")]
    found = names(process("a", app_id="id-of-a"), process("b", app_id="id-of-b"), entries=others)
    assert {server.app: server.app_id for server in found.values()} == {
        "a": "id-of-a",
        "b": "id-of-b",
    }
    assert found["own"].app_id == "id-of-a"


def test_second_app_with_the_same_process_type_is_told_apart_by_its_name() -> None:
    found = names(process("a"), process("b"))
    assert {name: server.app for name, server in found.items()} == {"mcp-x": "a", "b.mcp-x": "b"}


def test_name_of_an_entry_is_not_taken_by_what_is_discovered() -> None:
    found = names(process("a"), entries=[entry("mcp-x", command="mine", app="z")])
    assert found["mcp-x"].command == "mine"
    assert found["a.mcp-x"].app == "a"


# Entries of the servers file


def test_entry_is_completed_by_its_process_type_under_its_own_name() -> None:
    entries = [entry("py", app="a", process_type="mcp-x", idle_timeout=5.0, description="d")]
    found = names(process(release="v3"), entries=entries)
    assert list(found) == ["py"]
    server = found["py"]
    assert (server.command, server.args) == ("bash", ["-c", "run a mcp-x"])
    assert (server.release, server.idle_timeout, server.description) == ("v3", 5.0, "d")


def test_size_of_an_entry_is_kept_and_else_the_formations() -> None:
    entries = [
        entry("large", app="a", process_type="mcp-x", size="performance-m"),
        entry("usual", app="a", process_type="mcp-x"),
    ]
    found = names(process(size="eco"), entries=entries)
    assert (found["large"].size, found["usual"].size) == ("performance-m", "eco")


def test_two_entries_may_run_the_same_process_type() -> None:
    entries = [entry(name, app="a", process_type="mcp-x") for name in ("one", "two")]
    assert set(names(process(), entries=entries)) == {"one", "two"}


def test_entry_with_a_command_of_its_own_stays_and_learns_the_release() -> None:
    found = names(process("a", release="v9"), entries=[entry("own", command="x", app="a")])
    assert (found["own"].command, found["own"].release) == ("x", "v9")


def test_entry_whose_process_type_is_not_there_is_no_server() -> None:
    assert names(process(), entries=[entry("py", app="a", process_type="mcp-y")]).keys() == {
        "mcp-x"
    }


def test_process_type_of_the_same_name_in_another_app_completes_no_entry() -> None:
    found = names(process("b"), entries=[entry("py", app="a", process_type="mcp-x")])
    assert found.keys() == {"mcp-x"}


# Apps that cannot be looked at


def test_app_that_cannot_be_looked_at_keeps_its_servers() -> None:
    before = list(names(process("a"), process("a", "mcp-y")).values())
    assert names(before=before, failed=["a"]) == {server.name: server for server in before}


def test_server_keeps_its_name_though_another_app_could_take_it() -> None:
    before = list(names(process("a"), process("b")).values())
    found = names(process("b"), before=before, failed=["a"])
    assert {name: server.app for name, server in found.items()} == {"mcp-x": "a", "b.mcp-x": "b"}


def test_server_keeps_its_name_when_an_app_comes_back_that_would_have_taken_it() -> None:
    before = list(names(process("b"), failed=["a"]).values())
    found = names(process("a"), process("b"), before=before)
    assert {name: server.app for name, server in found.items()} == {"mcp-x": "b", "a.mcp-x": "a"}


def test_completed_entry_of_such_an_app_stays_completed() -> None:
    entries = [entry("py", app="a", process_type="mcp-x")]
    before = list(names(process(), entries=entries).values())
    assert names(entries=entries, before=before, failed=["a"])["py"].command == "bash"


def test_entry_that_was_never_completed_is_no_server() -> None:
    entries = [entry("py", app="a", process_type="mcp-x")]
    assert names(entries=entries, before=entries, failed=["a"]) == {}


def test_release_of_an_own_command_stays_while_its_app_cannot_be_looked_at() -> None:
    entries = [entry("own", command="x", app="a")]
    before = list(names(process("a", release="v9"), entries=entries).values())
    assert names(entries=entries, before=before, failed=["a"])["own"].release == "v9"


def test_app_without_processes_has_no_servers_any_more() -> None:
    before = list(names(process("a"), process("b", "mcp-y")).values())
    assert names(process("b", "mcp-y"), before=before).keys() == {"mcp-y"}


# The registry


def test_registry_tells_what_changed_and_what_is_gone() -> None:
    registry = Registry(list(names(process("a"), process("a", "mcp-y")).values()))
    told: list[Change] = []
    registry.subscribe(told.append)
    registry.replace(list(names(process("a", release="v2")).values()))
    assert told == [Change(frozenset({"mcp-x"}), frozenset({"mcp-y"}))]
    assert registry.disconnected == ["mcp-y"]


def test_registry_tells_nothing_when_nothing_changed() -> None:
    registry = Registry(list(names(process()).values()))
    told: list[Change] = []
    registry.subscribe(told.append)
    registry.replace(list(names(process()).values()))
    assert told == []


def test_disconnected_server_is_known_and_not_found() -> None:
    registry = Registry(list(names(process()).values()))
    registry.replace([])
    assert registry.find("mcp-x") is None
    assert (known := registry.known("mcp-x")) is not None
    assert known.app == "a"
    assert registry.default is None


def test_server_that_comes_back_is_not_disconnected_any_more() -> None:
    registry = Registry(list(names(process()).values()))
    registry.replace([])
    registry.replace(list(names(process()).values()))
    assert registry.disconnected == []
    assert registry.find("mcp-x") is not None


# When it looks


class Apps:
    def __init__(self) -> None:
        self.found, self.looks = Found(), 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def processes(self) -> Found:
        self.looks += 1
        found = self.found
        await self.gate.wait()
        return found


def discovery(
    apps: Apps, interval_s: float = FOREVER, registry: Registry | None = None
) -> tuple[Discovery, Registry, list[Mapping[str, str]]]:
    told: list[Mapping[str, str]] = []
    registry = registry or Registry([])
    return Discovery(registry, [], apps, interval_s, told.append), registry, told


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_it_looks_at_intervals() -> None:
    apps = Apps()
    looking, registry, _ = discovery(apps, interval_s=0.01)
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        keeping = tasks.create_task(looking.keep())
        while apps.looks < 3:  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0)
        apps.found = Found((process(),))
        while registry.names != ["mcp-x"]:  # noqa: ASYNC110
            await asyncio.sleep(0)
        keeping.cancel()


async def test_it_looks_when_it_is_asked_to() -> None:
    apps = Apps()
    looking, _, _ = discovery(apps)
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        keeping = tasks.create_task(looking.keep())
        await settled()
        looking.ask()
        await settled()
        assert apps.looks == 2
        keeping.cancel()


async def test_many_requests_are_one_look() -> None:
    apps = Apps()
    looking, _, _ = discovery(apps)
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        keeping = tasks.create_task(looking.keep())
        await settled()
        for _ in range(50):
            looking.ask()
        await settled()
        assert apps.looks == 2
        keeping.cancel()


async def test_refresh_waits_for_a_look_that_began_after_it() -> None:
    apps = Apps()
    looking, registry, _ = discovery(apps)
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        apps.gate.clear()
        keeping = tasks.create_task(looking.keep())
        await settled()  # a look is under way that will not see what comes now
        apps.found = Found((process(),))
        refreshing = tasks.create_task(looking.refresh(BOUND))
        await settled()
        apps.gate.set()
        assert await refreshing is True
        assert registry.names == ["mcp-x"]
        keeping.cancel()


async def test_refresh_says_when_the_apps_do_not_answer() -> None:
    apps = Apps()
    looking, _, _ = discovery(apps)
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        apps.gate.clear()
        keeping = tasks.create_task(looking.keep())
        assert await looking.refresh(0.01) is False
        keeping.cancel()


async def test_failure_is_told_once_and_again_when_it_is_another_one() -> None:
    apps = Apps()
    looking, _, told = discovery(apps)
    for failed in ({}, {"a": "503"}, {"a": "503"}, {"a": "404"}, {}, {}):
        apps.found = Found((), failed)
        await looking.look()
    assert told == [{"a": "503"}, {"a": "404"}, {}]


async def test_servers_that_cannot_be_are_told_and_change_nothing() -> None:
    apps = Apps()
    told: list[Mapping[str, str]] = []
    entries = [entry(name, command="x", default=True) for name in ("one", "two")]
    registry = Registry(entries[:1])
    looking = Discovery(registry, entries, apps, FOREVER, told.append)
    await looking.look()
    assert registry.names == ["one"]
    (problems,) = told
    assert "default" in problems["(servers file)"]


@pytest.mark.parametrize("looks", [1, 3])
async def test_looking_again_at_the_same_changes_nothing(looks: int) -> None:
    apps = Apps()
    apps.found = Found((process("a"), process("b")))
    looking, registry, _ = discovery(apps)
    changes: list[Change] = []
    registry.subscribe(changes.append)
    for _ in range(looks):
        await looking.look()
    assert changes == [Change(frozenset({"mcp-x", "b.mcp-x"}), frozenset())]
