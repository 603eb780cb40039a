"""Proves that the first run makes what is missing, keeps what is there, and shows no one else."""

import json
from pathlib import Path

import pytest

from gateway.quickstart import ensure_env_file, greeting
from gateway.settings import MIN_SECRET


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / ".env"


def values(file: Path) -> dict[str, str]:
    lines = file.read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}


def test_first_run_makes_a_key_and_a_secret_that_the_settings_take(file: Path) -> None:
    assert ensure_env_file(file)
    made = values(file)
    assert list(made) == ["API_KEY", "GATEWAY_SECRET", "ADMIN_KEY"]
    assert all(len(value) >= MIN_SECRET for value in made.values())
    assert len(set(made.values())) == 3


def test_two_machines_get_different_keys(tmp_path: Path) -> None:
    for name in ("one", "two"):
        ensure_env_file(tmp_path / name)
    assert values(tmp_path / "one")["API_KEY"] != values(tmp_path / "two")["API_KEY"]


def test_new_file_is_readable_by_its_owner_only(file: Path) -> None:
    ensure_env_file(file)
    assert file.stat().st_mode & 0o777 == 0o600


def test_file_that_gets_a_secret_is_readable_by_its_owner_only(file: Path) -> None:
    file.write_text("PORT=9000\n", encoding="utf-8")
    file.chmod(0o644)
    ensure_env_file(file)
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("end", ["", "\n"])
def test_existing_values_are_kept_and_missing_ones_added(file: Path, end: str) -> None:
    file.write_text(f"# mine\nPORT=9000\nAPI_KEY=kept{end}", encoding="utf-8")
    assert ensure_env_file(file)
    lines = file.read_text(encoding="utf-8").splitlines()
    assert lines[:3] == ["# mine", "PORT=9000", "API_KEY=kept"]
    assert [line.partition("=")[0] for line in lines[3:]] == ["GATEWAY_SECRET", "ADMIN_KEY"]


def test_complete_file_is_left_as_it_is(file: Path) -> None:
    text = "GATEWAY_SECRET = s\r\nADMIN_KEY=a\r\nAPI_KEY=k"
    file.write_bytes(text.encode())
    assert not ensure_env_file(file)
    assert file.read_bytes() == text.encode()


def test_second_run_changes_nothing(file: Path) -> None:
    ensure_env_file(file)
    before = file.read_bytes()
    assert (ensure_env_file(file), file.read_bytes()) == (False, before)


def test_commented_out_name_counts_as_missing(file: Path) -> None:
    file.write_text("#API_KEY=old\nGATEWAY_SECRET=s\n", encoding="utf-8")
    assert ensure_env_file(file)
    assert set(values(file)) == {"API_KEY", "GATEWAY_SECRET", "ADMIN_KEY"}


def test_greeting_holds_a_snippet_that_a_client_can_parse() -> None:
    text = greeting("http://127.0.0.1:8000", "the-key", ["a", "b"])
    snippet, _ = json.JSONDecoder().raw_decode(text[text.index("{") :])
    (entry,) = snippet["mcpServers"].values()
    assert entry == {
        "type": "http",
        "url": "http://127.0.0.1:8000/mcp",
        "headers": {"Authorization": "Bearer the-key"},
    }


def test_greeting_names_url_key_and_servers() -> None:
    words = set(greeting("http://h:1", "the-key", ["a", "b"]).replace(",", " ").split())
    assert {
        "http://h:1/mcp",
        "http://h:1/console",
        "the-key",
        "a",
        "b",
        "MCP_SERVER_URL=http://h:1",
    } <= words
