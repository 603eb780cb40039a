"""Ruby in the bundled code execution server: what may be asked for, and what real Ruby makes of it.

Gems come from an index in a directory, so no network is asked. What needs Ruby is skipped without.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_servers.code_exec.languages import LANGUAGES
from mcp_servers.code_exec.languages.base import MissingLanguageError
from mcp_servers.code_exec.languages.ruby import Ruby, RubyEnvironment
from mcp_servers.code_exec.requirements import BadRequirementError, Requirement
from mcp_servers.code_exec.session import Session
from mcp_servers.code_exec.settings import Limits
from mcp_servers.execution import Execution

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

pytestmark = pytest.mark.timeout(150)

BOUND_S = 60.0
"""Seconds for anything that is due at once, on a machine that does much else."""

PROGRAM = Path("/opt/ruby/bin/ruby")

RUBY = Ruby(PROGRAM)
"""For what starts no process."""

needs_ruby = pytest.mark.skipif(shutil.which("ruby") is None, reason="no `ruby` on the PATH")

INDEX = r"""
require "rubygems/package"
require "zlib"
require "fileutils"
FileUtils.mkdir_p(%w[gems quick/Marshal.4.8 lib])
specs = %w[1.0 2.0].map do |version|
  File.write("lib/parrot.rb", "PARROT = '#{version}'")
  spec = Gem::Specification.new("parrot", version) do |s|
    s.summary, s.authors, s.files = "repeats", ["nobody"], ["lib/parrot.rb"]
    s.homepage, s.license = "http://127.0.0.1/", "MIT"
  end
  FileUtils.mv(Gem::Package.build(spec), "gems")
  deflated = Zlib::Deflate.deflate(Marshal.dump(spec))
  File.binwrite("quick/Marshal.4.8/#{spec.full_name}.gemspec.rz", deflated)
  [spec.name, spec.version, "ruby"]
end
{ "specs" => specs, "latest_specs" => specs.last(1), "prerelease_specs" => [] }.each do |name, list|
  Zlib::GzipWriter.open("#{name}.4.8.gz") { |file| file.write(Marshal.dump(list)) }
end
"""
"""Makes, in the working directory, an index of gems with `parrot` 1.0 and 2.0 in it."""


# -- requirements ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("rack", "rack"),
        (" rack ", "rack"),
        ("RedCloth", "RedCloth"),
        ("net-http_2.x", "net-http_2.x"),
        ("rack:3.1.0", "rack"),
        ("rack:~> 3.1", "rack"),
        ("rack: >=3", "rack"),
        ("rack:!= 3.0.0", "rack"),
        ("rails:8.0.0.beta1", "rails"),
        ("3scale-api", "3scale-api"),
    ],
)
def test_names_and_versions_are_let_through(text: str, name: str) -> None:
    assert RUBY.parse(text) == Requirement(text.strip(), name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-g",
        "--source=https://evil.example",
        "rack --source https://evil.example",
        "rack\n--pre",
        "./rack",
        "../rack",
        "/gems/rack",
        "rack/",
        ".",
        "evil-1.0.gem",
        "evil.GEM",
        "evil.gem:1.0",
        "https://evil.example/p",
        "rack:",
        "rack:latest",
        "rack:-1",
        "rack:~>",
        "rack:>= 1, < 2",
        'rack:1", "2',
        "rack:1#{exit}",
        "räck",
        "a" * 201,
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(BadRequirementError, match="is not a gem of the index"):
        RUBY.parse(text)


@given(st.text(alphabet="ab1-_.:,=<>~! @/\\;#{}$'\"\n", max_size=12))
def test_what_is_let_through_is_no_option_no_path_and_no_code(text: str) -> None:
    try:
        passed = RUBY.parse(text).text
    except BadRequirementError:
        return
    assert re.match(r"[A-Za-z0-9]", passed)
    assert not set(passed) & set("/\\@,;#{}$'\"\n")


# -- command lines ---------------------------------------------------------------------------------


def made(tmp_path: Path) -> RubyEnvironment:
    return RUBY.environment(tmp_path / "env")


def run_variables(tmp_path: Path, variables: Mapping[str, str]) -> Mapping[str, str]:
    return made(tmp_path).run(tmp_path / "main.rb", Path("/work"), [], variables).variables


def test_gems_are_installed_without_documents_and_never_from_a_file(tmp_path: Path) -> None:
    command = made(tmp_path).install([RUBY.parse("rack:~> 3.1"), RUBY.parse("rake")], {})
    assert command.words == [
        *(PROGRAM, "-S", "gem", "install", "--no-document", "--remote"),
        *("--conservative", "--minimal-deps", "--no-user-install"),
        *("rack:~> 3.1", "rake"),
    ]


def test_install_goes_to_the_session_s_own_home(tmp_path: Path) -> None:
    variables = {"PATH": "/usr/bin", "LANG": "C"}
    assert made(tmp_path).install([], variables).variables == {
        "PATH": f"{tmp_path}/env/bin:/usr/bin",
        "LANG": "C",
        "GEM_HOME": f"{tmp_path}/env",
    }


def test_script_is_run_in_utf8_after_its_prelude(tmp_path: Path) -> None:
    script = tmp_path / "main.rb"
    command = made(tmp_path).run(script, Path("/work"), [], {})
    prelude = tmp_path / "prelude.rb"
    assert command.words == [PROGRAM, "-E", "UTF-8", "-r", prelude, script]


def test_prelude_activates_the_versions_that_were_asked_for(tmp_path: Path) -> None:
    wanted = [RUBY.parse(text) for text in ("rack: ~> 3.1", "rake", "json:2.9.1")]
    made(tmp_path).run(tmp_path / "main.rb", Path("/work"), wanted, {})
    prelude = (tmp_path / "prelude.rb").read_text(encoding="ascii").splitlines()
    assert prelude[0].startswith("$stdout.sync = true")
    assert prelude[1:] == ['gem "rack", "~> 3.1"', 'gem "json", "2.9.1"']


@pytest.mark.parametrize(
    ("before", "path"),
    [
        ({}, None),
        ({"GEM_PATH": "/a:/b"}, "/a:/b"),
        ({"GEM_HOME": "/h"}, "/h:"),
        ({"GEM_HOME": "/h", "GEM_PATH": "/a"}, "/h:/a"),
    ],
)
def test_gems_of_the_app_stay_on_the_path(
    tmp_path: Path, before: dict[str, str], path: str | None
) -> None:
    assert run_variables(tmp_path, before).get("GEM_PATH") == path


def test_working_directory_is_on_the_load_path_before_the_app_s(tmp_path: Path) -> None:
    assert run_variables(tmp_path, {"RUBYLIB": "/app/lib"})["RUBYLIB"] == "/work:/app/lib"


def test_ruby_is_found_on_the_path(tmp_path: Path) -> None:
    program = tmp_path / "ruby"
    program.touch(mode=0o755)
    (tmp_path / "call").mkdir()
    environment = LANGUAGES["ruby"]({"PATH": f"/nowhere:{tmp_path}"}).environment(tmp_path / "env")
    command = environment.run(tmp_path / "call" / "main.rb", tmp_path, [], {})
    assert command.words[0] == program


def test_missing_ruby_is_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MissingLanguageError, match="add the buildpack heroku/ruby"):
        LANGUAGES["ruby"]({"PATH": str(tmp_path)})


# -- real Ruby -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gemrc that knows no source but the index beside it."""
    directory = tmp_path_factory.mktemp("gems")
    ruby = shutil.which("ruby")
    assert ruby is not None
    subprocess.run([ruby, "-e", INDEX], cwd=directory, check=True, capture_output=True, timeout=60)
    gemrc = directory / "gemrc"
    gemrc.write_text(f"---\n:sources:\n- file://{directory}/\n", encoding="utf-8")
    return gemrc


def sessions(tmp_path: Path) -> list[Path]:
    """The directories of the sessions that live."""
    return list(tmp_path.glob("code-exec-*"))


def opened(tmp_path: Path, limits: Limits, **variables: str) -> Session:
    home = tmp_path / "home"  # gem's cache of the index is below it
    home.mkdir(exist_ok=True)
    environment = {**os.environ, "HOME": str(home), **variables}
    return Session(Ruby.found(environment), limits, environment)


@pytest.fixture
async def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Session]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    session = opened(
        tmp_path, Limits(max_output_bytes=4096), RENDEZVOUS_JOIN_TOKEN="internal", LC_ALL="C"
    )
    yield session
    session.close()
    assert sessions(tmp_path) == []


@pytest.fixture
async def gems(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Session]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    session = opened(tmp_path, Limits(), GEMRC=str(index))
    yield session
    session.close()


async def silent(_line: str) -> None:
    """Nobody asked for progress."""


async def execute(
    session: Session, code: str, *packages: str, use_temp_dir: bool = False
) -> Execution:
    async with asyncio.timeout(BOUND_S):
        return await session.execute(code, packages, use_temp_dir=use_temp_dir, tell=silent)


@needs_ruby
async def test_status_and_both_streams_are_returned(session: Session) -> None:
    code = "puts 'out'; warn 'err'; exit 3"
    assert await execute(session, code) == Execution(3, "out", "err")


@needs_ruby
async def test_code_is_the_main_program_with_its_lines_in_backtraces(session: Session) -> None:
    code = "def broken\n  raise 'wrong'\nend\n\nbroken if __FILE__ == $0\n"
    execution = await execute(session, code)
    assert execution.returncode == 1
    assert re.search(r"main\.rb:2:in .*broken.*wrong", execution.stderr)


@needs_ruby
async def test_error_of_syntax_is_a_result(session: Session) -> None:
    execution = await execute(session, "puts (")
    assert (execution.returncode, execution.stdout) == (1, "")
    assert "main.rb:1" in execution.stderr


@needs_ruby
async def test_text_is_utf8_whatever_the_locale(session: Session) -> None:
    code = "File.write('f', 'ünïcode'); puts File.read('f').upcase"
    assert await execute(session, code) == Execution(0, "ÜNÏCODE", "")


@needs_ruby
async def test_stdin_is_empty(session: Session) -> None:
    assert (await execute(session, "p $stdin.read")).stdout == '""'


@needs_ruby
async def test_internal_variables_are_hidden(session: Session) -> None:
    assert (await execute(session, "p ENV.key?('RENDEZVOUS_JOIN_TOKEN')")).stdout == "false"


@needs_ruby
async def test_files_of_a_call_are_there_for_the_next_and_can_be_required(session: Session) -> None:
    await execute(session, "File.write('helper.rb', 'X = 7')")
    assert (await execute(session, "require 'helper'; p X")).stdout == "7"


@needs_ruby
async def test_temporary_directory_is_empty_and_removed(session: Session) -> None:
    await execute(session, "File.write('mine', '')")
    code = "File.write('file', ''); puts Dir.pwd, Dir.children('.').inspect"
    directory, names = (await execute(session, code, use_temp_dir=True)).stdout.splitlines()
    assert names == '["file"]'
    assert not await asyncio.to_thread(Path(directory).exists)
    assert (await execute(session, "p Dir.children('.')")).stdout == '["mine"]'


@needs_ruby
async def test_what_was_printed_before_a_time_out_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    session = opened(tmp_path, Limits(timeout_s=5))
    try:
        execution = await execute(session, "puts 'before'; sleep 600")
    finally:
        session.close()
    assert (execution.returncode, execution.stdout) == (-2, "before")
    assert "CODE_EXEC_TIMEOUT_S" in execution.stderr


@needs_ruby
async def test_gem_is_installed_into_the_session(gems: Session, tmp_path: Path) -> None:
    code = "require 'parrot'; puts PARROT, Gem.loaded_specs['parrot'].gem_dir"
    execution = await execute(gems, code, "parrot")
    version, where = execution.stdout.splitlines()
    assert (execution.returncode, execution.stderr, version) == (0, "", "2.0")
    assert Path(where).is_relative_to(sessions(tmp_path)[0] / "packages")


@needs_ruby
async def test_version_that_is_asked_for_is_loaded_beside_a_newer_one(gems: Session) -> None:
    code = "require 'parrot'; puts PARROT"
    asked = ["parrot", "parrot:1.0", "parrot:< 2", "parrot:>= 1"]
    versions = [(await execute(gems, code, text)).stdout for text in asked]
    assert versions == ["2.0", "1.0", "1.0", "2.0"]


@needs_ruby
async def test_gem_of_another_session_is_not_there(gems: Session, tmp_path: Path) -> None:
    await execute(gems, "", "parrot")
    other = opened(tmp_path, Limits())
    try:
        assert (await execute(other, "require 'parrot'")).returncode == 1
    finally:
        other.close()


@needs_ruby
async def test_gem_that_the_app_has_is_not_installed_again(gems: Session, tmp_path: Path) -> None:
    """The app's home is that of a first session; the second knows no source at all."""
    await execute(gems, "", "parrot")
    home = sessions(tmp_path)[0] / "packages" / "env-1"
    other = tmp_path / "other"
    other.mkdir()
    empty = other / "gemrc"
    empty.write_text(f"---\n:sources:\n- file://{other}/\n", encoding="utf-8")
    session = opened(other, Limits(), GEMRC=str(empty), GEM_HOME=str(home))
    try:
        execution = await execute(session, "require 'parrot'; puts PARROT", "parrot")
    finally:
        session.close()
    assert execution == Execution(0, "2.0", "")


@needs_ruby
async def test_failed_install_is_a_result_and_the_code_does_not_run(gems: Session) -> None:
    execution = await execute(gems, "puts 'ran'", "no-such-gem-here")
    assert (execution.returncode, execution.stdout) == (2, "")
    assert "no-such-gem-here" in execution.stderr


@needs_ruby
async def test_option_in_the_place_of_a_gem_is_refused_before_anything_runs(
    session: Session,
) -> None:
    execution = await execute(session, "File.write('ran', '')", "--source=http://127.0.0.1:9/")
    assert execution.returncode == 1
    assert execution.stderr.startswith("Error: '--source=http://127.0.0.1:9/' is not a gem")
    assert (await execute(session, "p Dir.children('.')")).stdout == "[]"


@needs_ruby
async def test_gem_that_is_too_slow_is_a_time_out_that_names_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    session = opened(tmp_path, Limits(install_timeout_s=0.001))
    try:
        execution = await execute(session, "puts 1", "parrot")
    finally:
        session.close()
    assert (execution.returncode, execution.stdout) == (-2, "")
    assert "CODE_EXEC_INSTALL_TIMEOUT_S" in execution.stderr
