"""Proves that the servers file is read as written and filled from the environment.

Each mistake in it is told with the file and the key.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.registry.servers import (
    BadServersFile,
    Change,
    Registry,
    ServerDefinition,
    load,
    toolkit,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "servers.json"


def read(file: Path, servers: Any, **environment: str) -> Registry:
    file.write_text(json.dumps({"mcpServers": servers}), encoding="utf-8")
    return load(file, environment)


def only(file: Path, entry: dict[str, Any], **environment: str) -> ServerDefinition:
    server = read(file, {"one": entry}, **environment).find("one")
    assert server is not None
    return server


def complaint(file: Path, servers: Any, **environment: str) -> str:
    with pytest.raises(BadServersFile) as caught:
        read(file, servers, **environment)
    return str(caught.value)


def test_server_with_a_command_alone_has_the_documented_defaults(file: Path) -> None:
    assert only(file, {"command": "uvx"}) == ServerDefinition(
        name="one",
        command="uvx",
        args=[],
        env={},
        cwd=None,
        default=False,
        size=None,
        boot_timeout=None,
        idle_timeout=1800.0,
        max_lifetime=28800.0,
        call_timeout=3600.0,
        description="",
    )


def test_every_key_is_read(file: Path) -> None:
    entry = {
        "command": "npx",
        "args": ["-y", "x"],
        "env": {"A": "1"},
        "cwd": "/srv",
        "default": True,
        "size": "standard-1x",
        "boot_timeout": 1,
        "idle_timeout": 2.5,
        "max_lifetime": 86400,
        "call_timeout": 0.1,
        "description": "x",
        "record": "payloads",
        "record_bytes": 6144,
        "redact": ["cust-[0-9]+"],
    }
    assert only(file, entry) == ServerDefinition(name="one", **entry)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("command", 1),
        ("command", ""),
        ("command", "  "),
        ("args", "x"),
        ("env", []),
        ("cwd", 1),
        ("default", "yes"),
        ("size", 1),
        ("description", None),
        ("idle_timeout", "30m"),
        ("comand", "typo"),
        ("timeout", 3),
        ("record", "everything"),
        ("record_bytes", 0),
        ("record_bytes", 6145),
        ("redact", ["("]),
    ],
)
def test_wrong_or_unknown_key_is_named_with_its_server_and_file(
    file: Path, key: str, value: Any
) -> None:
    said = complaint(file, {"one": {"command": "x", key: value}})
    assert said.startswith(f"{file}: mcpServers.one")
    assert key in said


@pytest.mark.parametrize("key", ["args", "env"])
def test_item_of_another_type_is_named_by_its_key(file: Path, key: str) -> None:
    items: Any = [1] if key == "args" else {"A": 1}
    said = complaint(file, {"one": {"command": "x", key: items}})
    assert said.startswith(f"{file}: mcpServers.one")
    assert key in said


def test_missing_command_is_named(file: Path) -> None:
    said = complaint(file, {"one": {"args": []}})
    assert said.startswith(f"{file}: mcpServers.one")
    assert "command" in said


DURATIONS = ["boot_timeout", "idle_timeout", "max_lifetime", "call_timeout"]


@pytest.mark.parametrize("key", DURATIONS)
@pytest.mark.parametrize("value", [0, -1, 86_400.001, float("nan"), float("inf")])
def test_duration_out_of_range_is_named(file: Path, key: str, value: float) -> None:
    assert complaint(file, {"one": {"command": "x", key: value}}).startswith(
        f"{file}: mcpServers.one.{key}: "
    )


@pytest.mark.parametrize("key", DURATIONS)
@pytest.mark.parametrize("value", [0.001, 86_400])
def test_duration_at_the_edge_of_the_range_is_taken(file: Path, key: str, value: float) -> None:
    assert getattr(only(file, {"command": "x", key: value}), key) == value


@pytest.mark.parametrize("name", ["", "-a", ".a", "a b", "a/b", "é", "a\n", "a" * 65, "../x"])
def test_name_that_does_not_fit_a_path_is_refused(file: Path, name: str) -> None:
    assert complaint(file, {name: {"command": "x"}}).startswith(f"{file}: mcpServers.{name}: ")


@pytest.mark.parametrize("name", ["a", "A.b_c-1", "0", "a" * 64])
def test_good_name_is_taken(file: Path, name: str) -> None:
    assert read(file, {name: {"command": "x"}}).names == [name]


@pytest.mark.parametrize("entry", ["uvx", ["uvx"], None, {"command": "x", "name": "other"}])
def test_entry_that_is_no_object_or_names_itself_is_refused(file: Path, entry: Any) -> None:
    assert complaint(file, {"one": entry}).startswith(f"{file}: mcpServers.one: ")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"{}", b'{"mcpServers":[]}'])
def test_file_without_servers_is_named(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(BadServersFile) as caught:
        load(file, {})
    assert str(caught.value).startswith(f"{file}: ")


def test_file_that_lists_no_server_is_refused(file: Path) -> None:
    assert complaint(file, {}).startswith(f"{file}: ")


def test_missing_file_is_named(file: Path) -> None:
    with pytest.raises(BadServersFile) as caught:
        load(file, {})
    assert str(caught.value).startswith(f"{file}: ")


# Variables


def test_variables_are_filled_from_the_environment(file: Path) -> None:
    entry = {
        "command": "${BIN}/x",
        "args": ["--key=${KEY}", "${A}${B:-b}"],
        "env": {"TOKEN": "${KEY}"},
        "cwd": "${HOME_DIR:-/srv}",
    }
    server = only(file, entry, BIN="/opt", KEY="k", A="a", HOME_DIR="/home")
    filled = (server.command, server.args, server.env, server.cwd)
    assert filled == ("/opt/x", ["--key=k", "ab"], {"TOKEN": "k"}, "/home")


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("${V:-}", ""),
        ("${V:-a b}", "a b"),
        ("${V:-a:-b}", "a:-b"),
        ("$V", "$V"),
        ("${1V}", "${1V}"),
        ("${}", "${}"),
        ("$${X}", "$x"),
        ("${REF}", "${X}"),
    ],
)
def test_only_whole_references_are_filled_and_only_once(file: Path, text: str, filled: str) -> None:
    server = only(file, {"command": "x", "args": [text]}, X="x", REF="${X}")
    assert server.args == [filled]


@pytest.mark.parametrize(
    ("entry", "key"),
    [
        ({"command": "${NO_SUCH}"}, "command"),
        ({"command": "x", "args": ["a", "${NO_SUCH}"]}, "args[1]"),
        ({"command": "x", "env": {"T": "${NO_SUCH}"}}, "env.T"),
        ({"command": "x", "cwd": "${NO_SUCH}"}, "cwd"),
    ],
)
def test_variable_that_is_not_set_is_named_with_its_key(
    file: Path, entry: dict[str, Any], key: str
) -> None:
    said = complaint(file, {"one": entry})
    assert said.startswith(f"{file}: mcpServers.one.{key}: ")
    assert "NO_SUCH" in said


def test_description_is_not_filled(file: Path) -> None:
    assert only(file, {"command": "x", "description": "${X}"}).description == "${X}"


# The registry


def default_of(file: Path, *marked: bool) -> str | None:
    servers = {f"s{n}": {"command": "x", "default": mark} for n, mark in enumerate(marked)}
    default = read(file, servers).default
    return None if default is None else default.name


@pytest.mark.parametrize(
    ("marked", "default"),
    [((False,), "s0"), ((True,), "s0"), ((False, True), "s1"), ((False, False), "s0")],
)
def test_default_is_the_marked_server_or_else_the_first(
    file: Path, marked: tuple[bool, ...], default: str
) -> None:
    assert default_of(file, *marked) == default


def test_two_defaults_are_refused(file: Path) -> None:
    servers = {name: {"command": "x", "default": True} for name in ("a", "b")}
    said = complaint(file, servers)
    assert said.startswith(f"{file}: ")
    assert "default" in said


def test_registry_without_servers_has_no_default() -> None:
    empty = Registry([])
    assert (empty.default, empty.names, empty.find("a")) == (None, [], None)


def test_servers_are_found_by_exact_name_and_listed_sorted(file: Path) -> None:
    registry = read(file, {"b": {"command": "x"}, "a": {"command": "y"}})
    assert (registry.names, registry.find("A")) == (["a", "b"], None)


def test_repr_of_a_server_hides_its_environment() -> None:
    server = ServerDefinition(name="one", command="x", args=["--k=hush"], env={"T": "hush"})
    assert "hush" not in repr(server)


# Toolkits

TWO = {"b": {"command": "x"}, "a": {"command": "y"}}


def with_toolkits(file: Path, toolkits: Any, servers: Any = TWO, **more: Any) -> Registry:
    document = {"mcpServers": servers, "toolkits": toolkits}
    file.write_text(json.dumps(document), encoding="utf-8")
    return load(file, {}, **more)


def members(registry: Registry, name: str) -> list[str]:
    found = registry.toolkit(name)
    assert found is not None
    return [server.name for server in registry.members(found)]


def test_there_always_is_a_toolkit_of_all_servers_sorted_by_name(file: Path) -> None:
    assert members(read(file, TWO), "all") == ["a", "b"]
    assert members(Registry([]), "all") == []
    assert members(load(None, {}), "all") == []


def test_toolkit_has_its_members_in_the_order_of_the_file(file: Path) -> None:
    assert members(with_toolkits(file, {"data": ["b", "a"]}), "data") == ["b", "a"]


def test_toolkit_of_the_file_takes_the_place_of_the_one_of_all(file: Path) -> None:
    registry = with_toolkits(file, {"all": ["a"]})
    assert members(registry, "all") == ["a"]
    assert [each.name for each in registry.toolkits] == ["toolkit/all"]


def test_toolkit_is_read_with_its_keys(file: Path) -> None:
    entry = {"servers": ["*"], "separator": "__", "description": "for all"}
    assert with_toolkits(file, {"web": entry}).toolkit("web") == ServerDefinition(
        name="toolkit/web",
        toolkit=("*",),
        separator="__",
        description="for all",
        era="dual",
        stale="rebuild",
        boot="lazy",
        catalogue=True,
        max_lifetime=86400.0,
    )


def test_separator_of_the_gateway_is_for_toolkits_that_name_none(file: Path) -> None:
    toolkits = {"plain": ["a"], "own": {"servers": ["a"], "separator": "."}}
    registry = with_toolkits(file, toolkits, separator="__")
    assert [each.separator for each in registry.toolkits] == ["__", ".", "__"]
    all_of_none = load(None, {}, separator=".").toolkit("all")
    assert all_of_none is not None
    assert all_of_none.separator == "."


def test_toolkit_is_found_by_the_name_of_its_definition_and_is_no_server(file: Path) -> None:
    registry = with_toolkits(file, {"data": ["a"]})
    definition = registry.toolkit("data")
    assert definition is not None
    assert registry.find("toolkit/data") is registry.known("toolkit/data") is definition
    assert (registry.find("data"), registry.toolkit("toolkit/data")) == (None, None)
    assert (registry.names, [server.name for server in registry.servers]) == (["a", "b"],) * 2


def test_toolkit_is_never_the_default() -> None:
    assert Registry([], [toolkit("data", ["a"])]).default is None


def test_toolkits_outlive_the_servers_that_are_replaced() -> None:
    registry = Registry([ServerDefinition(name="a")], [toolkit("data", ["a", "late"])])
    registry.replace([ServerDefinition(name="late"), ServerDefinition(name="other")])
    assert (members(registry, "data"), members(registry, "all")) == (["late"], ["late", "other"])


def test_change_of_servers_names_no_toolkits() -> None:
    registry = Registry([ServerDefinition(name="a")], [toolkit("data", ["a"])])
    heard: list[Change] = []
    registry.subscribe(heard.append)
    registry.replace([ServerDefinition(name="b")])
    assert heard == [Change(frozenset({"b"}), frozenset({"a"}))]


def test_server_without_a_catalogue_is_no_member() -> None:
    servers = [ServerDefinition(name="a", catalogue=False), ServerDefinition(name="b")]
    registry = Registry(servers, [toolkit("data", ["a", "b"])])
    assert (members(registry, "data"), members(registry, "all")) == (["b"], ["b"])


def test_member_that_is_not_there_yet_is_allowed_where_servers_are_discovered(file: Path) -> None:
    registry = with_toolkits(file, {"data": ["a", "late"]}, discovers=True)
    assert members(registry, "data") == ["a"]


@pytest.mark.parametrize(
    ("toolkits", "culprit"),
    [
        ({"data": ["a", "late"]}, "toolkits.data: no server 'late'"),
        ({"data": ["all"]}, "toolkits.data"),
        ({"data": ["toolkit/all"]}, "toolkits.data"),
        ({"data": []}, "toolkits.data"),
        ({"data": ["a", "a"]}, "toolkits.data"),
        ({"data": ["*", "a"]}, "toolkits.data"),
        ({"data": ["silent"]}, "toolkits.data: 'silent' has \"catalogue\": false"),
        ({"data": "a"}, "toolkits.data"),
        ({"data": {"servers": ["a"], "separator": "-"}}, "toolkits.data"),
        ({"data": {"servers": ["a"], "size": "x"}}, "size"),
        ({"data": {"separator": "/"}}, "servers"),
        ({"da/ta": ["a"]}, "toolkits.da/ta: a name is"),
        (["data"], "toolkits: expected"),
        (None, "toolkits: expected"),
    ],
)
def test_wrong_toolkit_is_named(file: Path, toolkits: Any, culprit: str) -> None:
    servers = {**TWO, "silent": {"command": "x", "catalogue": False}}
    with pytest.raises(BadServersFile) as caught:
        with_toolkits(file, toolkits, servers)
    assert str(caught.value).startswith(f"{file}: toolkits")
    assert culprit in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"), [("toolkit", ["a"]), ("separator", "."), ("name", "x"), ("release", "v1")]
)
def test_entry_cannot_say_what_is_no_key_of_a_server(file: Path, key: str, value: Any) -> None:
    said = complaint(file, {"one": {"command": "x", key: value}})
    assert said.startswith(f"{file}: mcpServers.one: no key of a server: {key}")
