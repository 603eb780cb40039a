"""The agent's archive: the same bytes every time, sources only, small, complete, with thanks."""

from __future__ import annotations

import ast
import hashlib
import io
import zipfile
from pathlib import Path

import pytest
import websockets as websockets_package

import dyno_agent
from gateway.rendezvous import archive
from gateway.rendezvous.archive import build

LIMIT = 300 * 1024
AGENT = Path(dyno_agent.__file__).parent


@pytest.fixture(scope="module")
def made() -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(build().content))


def test_same_packages_make_the_same_bytes() -> None:
    assert build() == build()


def test_hash_is_that_of_the_content() -> None:
    made = build()
    assert made.sha256 == hashlib.sha256(made.content).hexdigest()


def test_bytes_do_not_depend_on_when_a_file_was_written_or_found(made: zipfile.ZipFile) -> None:
    assert {entry.date_time for entry in made.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert {entry.external_attr >> 16 for entry in made.infolist()} == {0o100644}
    assert made.namelist() == sorted(made.namelist())


def test_archive_is_small_enough_to_be_fetched_by_every_dyno() -> None:
    assert len(build().content) < LIMIT


def test_archive_holds_sources_and_licences_and_nothing_else(made: zipfile.ZipFile) -> None:
    code = [name for name in made.namelist() if not name.startswith("licences/")]
    assert [name for name in code if not name.endswith(".py")] == []
    assert {name.partition("/")[0] for name in code} == {
        "__main__.py",
        "dyno_agent",
        "exceptiongroup",
        "taskgroup",
        "typing_extensions.py",
        "websockets",
    }


def test_all_of_the_agent_is_in_it_as_it_is(made: zipfile.ZipFile) -> None:
    for path in AGENT.rglob("*.py"):
        name = f"dyno_agent/{path.relative_to(AGENT).as_posix()}"
        assert made.read(name) == path.read_bytes()


@pytest.mark.parametrize("part", archive.PARTS[1:])
def test_work_of_others_comes_with_its_terms(made: zipfile.ZipFile, part: str) -> None:
    (terms,) = (name for name in made.namelist() if name.startswith(f"licences/{part}/"))
    assert b"Copyright" in made.read(terms) or b"License" in made.read(terms)


def test_what_is_left_out_is_there_to_be_left_out(made: zipfile.ZipFile) -> None:
    """A pattern that meets nothing is a name that has changed: what it meant is in the archive."""
    websockets = Path(websockets_package.__file__).parents[1]
    assert [name for name in archive.UNUSED if not (websockets / name).exists()] == []
    assert [name for name in made.namelist() if name.startswith(archive.UNUSED)] == []


@pytest.mark.parametrize("version", [(3, 4), (3, 8)])
def test_its_first_lines_are_readable_for_old_interpreters(version: tuple[int, int]) -> None:
    ast.parse(archive.START, feature_version=version)


def test_part_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "PARTS", ("dyno_agent", "no_such_part"))
    with pytest.raises(ModuleNotFoundError, match="no_such_part"):
        build()
