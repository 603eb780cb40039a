"""Go in the bundled code execution server: what may be asked for, and what the toolchain is told.

The toolchain is a fake that writes down what it is told: the real one is on few machines.
"""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_servers.code_exec.languages import LANGUAGES
from mcp_servers.code_exec.languages.base import MissingLanguageError
from mcp_servers.code_exec.languages.go import Go
from mcp_servers.code_exec.requirements import BadRequirementError, Requirement
from mcp_servers.code_exec.session import Session
from mcp_servers.code_exec.settings import Limits
from mcp_servers.execution import Execution

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.timeout(150)

BOUND_S = 60.0
"""Seconds for anything that is due at once, on a machine that does much else."""

FAKE = """#!/bin/sh
exec 3>> "$(dirname "$0")/told"
echo "$GO111MODULE $GOWORK" >&3
for word; do echo "$word" >&3; done
echo === >&3
case "$1" in
get)
  module=$3; shift 4
  for package; do
    [ "$package" = example.com/missing ] && { echo "no such module" >&2; exit 1; }
    echo "require ${package%@*} v1.0.0" >> "$module/go.mod"
  done ;;
build)
  grep -q 'does not compile' "$6" && { echo "syntax error" >&2; exit 1; }
  { echo "#!/bin/sh"; cat "$6"; } > "$5"; chmod +x "$5" ;;
esac
"""
"""Writes down what it is told. A "program" is a shell script."""


# -- requirements ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("github.com/google/uuid", "github.com/google/uuid"),
        (" golang.org/x/text@v0.30.0 ", "golang.org/x/text"),
        ("gopkg.in/yaml.v3", "gopkg.in/yaml.v3"),
        ("k8s.io/api@latest", "k8s.io/api"),
        ("example.com/a_b/~c/v2@v2.0.0-rc.1+incompatible", "example.com/a_b/~c/v2"),
        ("rsc.io", "rsc.io"),
    ],
)
def test_import_paths_and_versions_are_let_through(text: str, name: str) -> None:
    assert Go(Path("go")).parse(text) == Requirement(text.strip(), name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fmt",
        "net/http",
        "-u",
        "-modfile=/etc/x",
        "github.com/a/b -u",
        "github.com/a/b\n-u",
        ".",
        "./...",
        "../a.b/c",
        "/a.b/c",
        "all",
        "example.com/...",
        "example.com/../x",
        "example.com/.git",
        "example.com//x",
        "example.com/x/",
        "https://example.com/x",
        "example.com:443/x",
        "example.com/x@",
        "example.com/x@-u",
        "example.com/x@v1/y",
        "exämple.com/x",
        "example.com/" + "a" * 200,
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(BadRequirementError, match="is not a package that `go get` fetches"):
        Go(Path("go")).parse(text)


@given(st.text(alphabet="ab1-_.:,=~@ /\\;$'\"\n", max_size=12))
def test_what_is_let_through_begins_with_a_domain_and_leaves_it_for_no_other(text: str) -> None:
    try:
        passed = Go(Path("go")).parse(text).text
    except BadRequirementError:
        return
    assert re.match(r"[A-Za-z0-9-]+\.[A-Za-z0-9]", passed)
    assert not set(passed) & set("\\:,;$'\"\n ")
    assert not [part for part in passed.split("/") if part.startswith((".", "-"))]


# -- the toolchain ---------------------------------------------------------------------------------


@pytest.fixture
def toolchain(tmp_path: Path) -> Path:
    """Its root, with a `go` in its `bin`."""
    root = tmp_path / "toolchain"
    (root / "bin").mkdir(parents=True)
    (root / "VERSION").write_text("go1.25.4\ntime 2026-01-01\n", encoding="ascii")
    program = root / "bin" / "go"
    program.write_text(FAKE, encoding="ascii")
    program.chmod(0o755)
    return root


@pytest.fixture
async def session(
    tmp_path: Path, toolchain: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Session]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = f"{toolchain / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "GOWORK": "/elsewhere/go.work"}
    session = Session(LANGUAGES["go"](environment), Limits(), environment)
    yield session
    session.close()


def told(toolchain: Path) -> list[list[str]]:
    """The calls of `go`: with which variables, and the words."""
    lines = (toolchain / "bin" / "told").read_text(encoding="ascii")
    return [call.splitlines() for call in lines.split("===\n")[:-1]]


async def execute(session: Session, code: str, *packages: str) -> Execution:
    async def silent(_line: str) -> None:
        """Nobody asked for progress."""

    async with asyncio.timeout(BOUND_S):
        return await session.execute(code, packages, tell=silent)


async def test_program_is_built_in_the_module_and_run_in_the_working_directory(
    session: Session, toolchain: Path
) -> None:
    assert await execute(session, "pwd; echo err >&2; exit 3") == Execution(
        3, str(session._scratch), "err"
    )
    ((variables, *words),) = told(toolchain)
    module = session._root / "packages" / "env-1"
    assert variables == "on off"
    assert words[:4] == ["build", "-C", str(module), "-o"]
    assert Path(words[5]).name == "main.go"
    assert Path(words[5]).parent == Path(words[4]).parent
    assert Path(words[5]).is_relative_to(session._root / "calls")


async def test_program_that_does_not_compile_is_not_run(session: Session) -> None:
    execution = await execute(session, "echo ran # does not compile")
    assert execution == Execution(1, "", "syntax error")


async def test_packages_are_fetched_into_the_module_once(session: Session, toolchain: Path) -> None:
    for _ in range(2):
        await execute(session, "", "example.com/a", "example.com/b@v1.2.0")
    first, *rest = [words for _, *words in told(toolchain)]
    module = session._root / "packages" / "env-1"
    assert first == ["get", "-C", str(module), "--", "example.com/a", "example.com/b@v1.2.0"]
    assert [words[0] for words in rest] == ["build", "build"]


async def test_failed_fetch_is_a_result_and_nothing_is_built(
    session: Session, toolchain: Path
) -> None:
    execution = await execute(session, "", "example.com/missing")
    assert execution == Execution(1, "", "no such module")
    assert [words[0] for _, *words in told(toolchain)] == ["get"]


def test_module_is_of_the_toolchain_s_own_version(tmp_path: Path, toolchain: Path) -> None:
    Go(toolchain / "bin" / "go").environment(tmp_path / "env")
    assert (tmp_path / "env" / "go.mod").read_text() == "module session\n\ngo 1.25\n"


@pytest.mark.parametrize("said", [None, "devel +abc"])
def test_toolchain_that_does_not_say_its_version_gets_an_old_one(
    tmp_path: Path, toolchain: Path, said: str | None
) -> None:
    (toolchain / "VERSION").unlink()
    if said is not None:
        (toolchain / "VERSION").write_text(said)
    Go(toolchain / "bin" / "go").environment(tmp_path / "env")
    assert (tmp_path / "env" / "go.mod").read_text() == "module session\n\ngo 1.21\n"


def test_requirements_of_the_module_are_what_is_installed(tmp_path: Path, toolchain: Path) -> None:
    """As `go get` writes them: one alone on a line, several in a block."""
    environment = Go(toolchain / "bin" / "go").environment(tmp_path / "env")
    (tmp_path / "env" / "go.mod").write_text(
        "module session\n\ngo 1.25\n\nrequire example.com/a v1.0.0\n\n"
        "require (\n\texample.com/b/v2 v2.1.0\n\texample.com/c v0.1.0 // indirect\n)\n"
    )
    assert environment.distributions() == {
        "example.com/a v1.0.0",
        "example.com/b/v2 v2.1.0",
        "example.com/c v0.1.0",
    }


def test_missing_go_is_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MissingLanguageError, match="heroku/go and set GO_INSTALL_TOOLS_IN_IMAGE"):
        LANGUAGES["go"]({"PATH": str(tmp_path)})
