"""The parts of the bundled code execution server, with Python as the language."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp import Client

from mcp_servers.code_exec.installer import Installer
from mcp_servers.code_exec.languages import LANGUAGES
from mcp_servers.code_exec.languages.python import Python, PythonEnvironment
from mcp_servers.code_exec.requirements import (
    MOST_PACKAGES,
    BadRequirementError,
    Requirement,
    parse_all,
)
from mcp_servers.code_exec.server import build
from mcp_servers.code_exec.session import Session
from mcp_servers.code_exec.settings import Limits, limits_from
from mcp_servers.execution import Allowance, Execution
from mcp_servers.limits import BadSettingError, flag, whole
from mcp_servers.processes import Beat, Capture, Finished, Runner
from tests.fakes.bundled import is_alive, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

pytestmark = pytest.mark.timeout(150)

BOUND_S = 60.0
"""Seconds for anything that is due at once, on a machine that does much else."""

FOREVER_S = 600.0
"""Seconds: no test lasts so long; for limits that are not under test."""

OK = Finished(returncode=0, stdout="", stderr="", timed_out=False)
FAILED = Finished(returncode=1, stdout="", stderr="no such package", timed_out=False)
ALLOWANCE = Allowance(1.0, "THE_TIME", 7, "THE_MEMORY")
LARGE = Finished(returncode=137, stdout="", stderr="", out_of_memory=True)
LATE = Finished(returncode=137, stdout="", stderr="", timed_out=True)


def names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def exists(path: str) -> bool:
    return Path(path).exists()


# -- settings --------------------------------------------------------------------------------------


def test_missing_and_empty_variables_leave_the_defaults() -> None:
    assert limits_from({"CODE_EXEC_TIMEOUT_S": ""}) == Limits(60.0, 300.0, 1024 * 1024, None)


def test_variables_set_the_limits() -> None:
    variables = {
        "CODE_EXEC_TIMEOUT_S": "2.5",
        "CODE_EXEC_INSTALL_TIMEOUT_S": " 30 ",
        "CODE_EXEC_MAX_OUTPUT_BYTES": "4096",
        "CODE_EXEC_MAX_MEMORY_BYTES": "1048576",
    }
    assert limits_from(variables) == Limits(2.5, 30.0, 4096, 1048576)


@pytest.mark.parametrize("name", ["CODE_EXEC_TIMEOUT_S", "CODE_EXEC_INSTALL_TIMEOUT_S"])
@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "inf", "86401"])
def test_bad_time_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(BadSettingError, match=name):
        limits_from({name: value})


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "1M", "99999999999"])
def test_bad_output_limit_is_refused_by_name(value: str) -> None:
    with pytest.raises(BadSettingError, match="CODE_EXEC_MAX_OUTPUT_BYTES"):
        limits_from({"CODE_EXEC_MAX_OUTPUT_BYTES": value})


@pytest.mark.parametrize("value", ["512", "512M", "1048575", "1e9", "9999999999999"])
def test_bad_memory_limit_is_refused_by_name(value: str) -> None:
    with pytest.raises(BadSettingError, match="CODE_EXEC_MAX_MEMORY_BYTES"):
        limits_from({"CODE_EXEC_MAX_MEMORY_BYTES": value})


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("FALSE ", False), ("", True), (None, True)]
)
def test_flag_is_true_or_false_or_the_default(text: str | None, value: bool) -> None:
    environment = {} if text is None else {"THE_FLAG": text}
    assert flag(environment, "THE_FLAG", default=True) is value


def test_flag_that_is_neither_is_refused_by_name() -> None:
    with pytest.raises(BadSettingError, match="THE_FLAG='yes'"):
        flag({"THE_FLAG": "yes"}, "THE_FLAG")


def test_number_outside_its_range_is_refused_with_the_range_and_the_unit() -> None:
    with pytest.raises(BadSettingError, match=r"THE_ROWS='4': .* number of rows from 5 to 9"):
        whole({"THE_ROWS": "4"}, "THE_ROWS", 6, least=5, most=9, unit="rows")


# -- requirements ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("numpy", "numpy"),
        (" numpy ", "numpy"),
        ("Typing_Extensions", "typing-extensions"),
        ("zope.interface==7.*", "zope-interface"),
        ("pandas[excel, performance] >= 2, < 3", "pandas"),
        ("torch==2.9.0+cpu", "torch"),
        ("x~=1.0", "x"),
        ("a===1!2.0rc1", "a"),
    ],
)
def test_names_extras_and_versions_are_let_through(text: str, name: str) -> None:
    assert Python().parse(text) == Requirement(text.strip(), name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-r requirements.txt",
        "--index-url=https://evil.example/simple",
        "numpy --index-url=https://evil.example/simple",
        "numpy\n--pre",
        "./package",
        "../package",
        "/packages/package",
        "package/",
        ".",
        "evil-1.0-py3-none-any.whl",
        "evil.tar.gz",
        "evil==1.0.ZIP",
        "https://evil.example/p.whl",
        "git+https://evil.example/p",
        "p @ https://evil.example/p.whl",
        "p @ file:///etc",
        'p; python_version > "3"',
        "p==",
        "p==-1",
        "p[--pre]",
        "nümpy",
        "a" * 201,
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(BadRequirementError, match="is not a package of the index"):
        Python().parse(text)


@given(st.text(alphabet="ab1-_.[],=<>~! @/:;+*\n", max_size=12))
def test_what_is_let_through_can_be_neither_option_nor_path_nor_url(text: str) -> None:
    try:
        passed = Python().parse(text).text
    except BadRequirementError:
        return
    assert re.match(r"[A-Za-z0-9]", passed)
    assert not set(passed) & set("/\\:@;\n")


def test_equal_requirements_become_one() -> None:
    assert parse_all(["b", "a", "b"], Python().parse) == [
        Requirement("b", "b"),
        Requirement("a", "a"),
    ]


def test_too_many_requirements_are_refused() -> None:
    with pytest.raises(BadRequirementError, match=str(MOST_PACKAGES)):
        parse_all([f"p{number}" for number in range(MOST_PACKAGES + 1)], Python().parse)


# -- capture ---------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=20), max_size=10), st.integers(1, 60))
def test_capture_keeps_start_and_end_and_tells_what_it_cut(chunks: list[bytes], limit: int) -> None:
    capture, whole = Capture(limit, "THE_LIMIT"), b"".join(chunks)
    for chunk in chunks:
        capture.feed(chunk)

    if len(whole) <= limit:
        assert capture.text() == whole.decode(errors="replace")
    else:
        tail = limit // 2
        marker = (
            f"\n[... {len(whole) - limit} bytes cut: the limit is {limit} bytes, see THE_LIMIT "
        )
        start, end = whole[: limit - tail], whole[len(whole) - tail :]
        assert capture.text().startswith(start.decode(errors="replace") + marker)
        assert capture.text().endswith("...]\n" + end.decode(errors="replace"))


# -- runner ----------------------------------------------------------------------------------------


@pytest.fixture
async def runner() -> Runner:
    return Runner(4096, "THE_LIMIT")


async def python(
    runner: Runner, code: str, cwd: Path, *arguments: str, seconds: float = FOREVER_S
) -> Finished:
    async with asyncio.timeout(BOUND_S):
        return await runner.run(
            [sys.executable, "-c", code, *arguments],
            cwd=cwd,
            environment={"PYTHONUNBUFFERED": "1"},
            seconds=seconds,
        )


FAMILY = """
import os, pathlib, subprocess, sys, time
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("started")
told = pathlib.Path(sys.argv[1])
told.with_suffix(".new").write_text(f"{os.getpid()} {grandchild.pid}")
told.with_suffix(".new").rename(told)
"""
"""Starts a grandchild that inherits the pipes, then writes both process ids to a file."""

LASTING_FAMILY = FAMILY + "time.sleep(600)\n"


def family(told: Path) -> list[int]:
    return [int(pid) for pid in told.read_text(encoding="ascii").split()]


async def test_status_and_both_streams_are_returned(runner: Runner, tmp_path: Path) -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    assert await python(runner, code, tmp_path) == Finished(3, "out\n", "err\n", timed_out=False)


async def test_stdin_is_empty(runner: Runner, tmp_path: Path) -> None:
    finished = await python(runner, "import sys; print(repr(sys.stdin.read()))", tmp_path)
    assert finished.stdout == "''\n"


async def test_death_by_signal_is_128_and_its_number(runner: Runner, tmp_path: Path) -> None:
    """So -2, the time-out, cannot be a SIGINT."""
    finished = await python(runner, "import os; os.kill(os.getpid(), 2)", tmp_path)
    assert finished.returncode == 128 + signal.SIGINT


async def test_invalid_utf8_is_replaced(runner: Runner, tmp_path: Path) -> None:
    finished = await python(runner, r"import os; os.write(1, b'a\xffb')", tmp_path)
    assert finished.stdout == "a\N{REPLACEMENT CHARACTER}b"


async def test_output_beyond_the_limit_does_not_block_the_child(
    runner: Runner, tmp_path: Path
) -> None:
    code = "print('x' * 50000); [print('y' * 49999) for _ in range(100)]; print('end')"
    finished = await python(runner, code, tmp_path)
    assert finished.returncode == 0
    assert f"{50001 + 100 * 50000 + 4 - 4096} bytes cut" in finished.stdout
    assert "see THE_LIMIT" in finished.stdout
    assert finished.stdout.startswith("xx")
    assert finished.stdout.endswith("yy\nend\n")


async def test_time_out_kills_the_group_and_keeps_what_was_printed(
    runner: Runner, tmp_path: Path
) -> None:
    """The limit is generous to the start of an interpreter; the family would outlast it."""
    told = tmp_path / "pids"
    finished = await python(runner, LASTING_FAMILY, tmp_path, str(told), seconds=5)
    assert finished.timed_out
    assert finished.stdout == "started\n"
    await until(lambda: not any(map(is_alive, family(told))))


async def test_cancellation_kills_the_group_and_passes_through(
    runner: Runner, tmp_path: Path
) -> None:
    told = tmp_path / "pids"
    async with asyncio.TaskGroup() as group:
        task = group.create_task(python(runner, LASTING_FAMILY, tmp_path, str(told)))
        await until(told.exists)
        task.cancel()
    assert task.cancelled()
    await until(lambda: not any(map(psutil.pid_exists, family(told)[:1])))  # reaped, too
    await until(lambda: not any(map(is_alive, family(told))))


async def test_what_the_child_started_ends_with_it(runner: Runner, tmp_path: Path) -> None:
    told = tmp_path / "pids"
    finished = await python(runner, FAMILY, tmp_path, str(told))
    assert (finished.returncode, finished.stdout) == (0, "started\n")
    await until(lambda: not any(map(is_alive, family(told))))


async def test_process_that_left_the_group_does_not_hold_the_answer_back(
    runner: Runner, tmp_path: Path
) -> None:
    """A known gap: it is not killed, either. It ends with the dyno."""
    told = tmp_path / "pids"
    code = FAMILY.replace('"])', '"], start_new_session=True)')
    finished = await python(runner, code, tmp_path, str(told))
    try:
        assert (finished.returncode, finished.stdout) == (0, "started\n")
    finally:
        os.kill(family(told)[1], signal.SIGKILL)


async def test_closing_the_runner_kills_what_runs(runner: Runner, tmp_path: Path) -> None:
    told = tmp_path / "pids"
    async with asyncio.TaskGroup() as group:
        task = group.create_task(python(runner, LASTING_FAMILY, tmp_path, str(told)))
        await until(told.exists)
        runner.close()
        assert not is_alive(family(told)[0])
        async with asyncio.timeout(BOUND_S):
            finished = await task
    assert finished.returncode == 128 + signal.SIGKILL
    await until(lambda: not any(map(is_alive, family(told))))


async def test_missing_program_is_an_os_error_and_leaks_no_descriptor(
    runner: Runner, tmp_path: Path
) -> None:
    before = psutil.Process().num_fds()
    with pytest.raises(FileNotFoundError):
        await runner.run(["/no/such/program"], cwd=tmp_path, environment={}, seconds=1)
    assert psutil.Process().num_fds() == before


async def test_word_that_no_process_can_have_is_a_value_error_and_leaks_no_descriptor(
    runner: Runner, tmp_path: Path
) -> None:
    before = psutil.Process().num_fds()
    with pytest.raises(ValueError, match="null byte"):
        await runner.run([sys.executable, "\0"], cwd=tmp_path, environment={}, seconds=1)
    assert psutil.Process().num_fds() == before


async def test_runs_leave_no_descriptor_open(runner: Runner, tmp_path: Path) -> None:
    await python(runner, "", tmp_path)
    before = psutil.Process().num_fds()
    for _ in range(3):
        await python(runner, "print(1)", tmp_path)
    assert psutil.Process().num_fds() == before


# -- memory and beats ------------------------------------------------------------------------------

MIB = 1024 * 1024

GREEDY = """
import os, pathlib, subprocess, sys, time
code = "import time; held = bytearray(b'x') * (48 << 20); time.sleep(600)"
grandchild = subprocess.Popen([sys.executable, "-c", code])
told = pathlib.Path(sys.argv[1])
told.with_suffix(".new").write_text(f"{os.getpid()} {grandchild.pid}")
told.with_suffix(".new").rename(told)
held = bytearray(b"x") * (48 << 20)
time.sleep(600)
"""
"""Two processes with 48 MiB each."""

PATIENT = """
import pathlib, sys, time
print("12345", flush=True)
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.01)
"""
"""Prints six bytes, then waits for a file."""


async def test_group_that_has_more_memory_than_it_may_is_killed(
    runner: Runner, tmp_path: Path
) -> None:
    """Neither of its processes has as much alone."""
    told = tmp_path / "pids"
    async with asyncio.timeout(BOUND_S):
        finished = await runner.run(
            [sys.executable, "-c", GREEDY, str(told)],
            cwd=tmp_path,
            environment={},
            seconds=FOREVER_S,
            memory_bytes=90 * MIB,
        )
    assert (finished.out_of_memory, finished.timed_out, finished.returncode) == (True, False, 137)
    await until(lambda: not any(map(is_alive, family(told))))


async def test_group_that_has_no_more_memory_than_it_may_is_left_alone(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends by itself once it was looked at three times and found to have all that it may."""
    weights = iter([5, 29, 30])
    asked = []

    def weigh(group: int) -> int:
        asked.append(group)
        weight = next(weights, 30)
        if len(asked) == 3:
            (tmp_path / "go").touch()
        return weight

    monkeypatch.setattr("mcp_servers.processes._resident", weigh)
    async with asyncio.timeout(BOUND_S):
        finished = await runner.run(
            [sys.executable, "-c", PATIENT, "go"],
            cwd=tmp_path,
            environment={},
            seconds=FOREVER_S,
            memory_bytes=30,
        )
    assert finished == Finished(0, "12345\n", "")
    assert len(asked) >= 3


async def test_beats_tell_the_time_and_the_output_until_the_end(tmp_path: Path) -> None:
    beats: list[Beat] = []

    async def beat(one: Beat) -> None:
        beats.append(one)
        if one.output_bytes and len(beats) > 2:
            (tmp_path / "go").touch()

    async with asyncio.timeout(BOUND_S):
        finished = await Runner(4096, "THE_LIMIT", beat_s=0.01).run(
            [sys.executable, "-c", PATIENT, "go"],
            cwd=tmp_path,
            environment={},
            seconds=FOREVER_S,
            beat=beat,
        )
    assert finished.returncode == 0
    assert beats[-1].output_bytes == 6
    assert 0 < beats[0].seconds < beats[1].seconds < beats[2].seconds


async def test_beat_that_nobody_takes_holds_nothing_up(tmp_path: Path) -> None:
    started = asyncio.Event()

    async def beat(_one: Beat) -> None:
        (tmp_path / "go").touch()
        started.set()
        await asyncio.Event().wait()

    async with asyncio.timeout(BOUND_S):
        finished = await Runner(4096, "THE_LIMIT", beat_s=0.01).run(
            [sys.executable, "-c", PATIENT, "go"],
            cwd=tmp_path,
            environment={},
            seconds=FOREVER_S,
            beat=beat,
        )
    assert started.is_set()
    assert finished.returncode == 0


# -- installer -------------------------------------------------------------------------------------


class FakePip(Runner):
    """Runs nothing: records what pip was asked and ends as the test says."""

    def __init__(self) -> None:
        super().__init__(1, "THE_LIMIT")
        self.asked: list[list[str]] = []
        self.pythons: list[Path] = []
        self.environments: list[Mapping[str, str]] = []
        self.ends: list[Finished] = []
        self.allowed: list[tuple[float, int | None]] = []
        self.hold: asyncio.Event | None = None
        self.effect: Callable[[Path], object] = lambda site: None

    async def run(
        self,
        command: Sequence[str | Path],
        *,
        cwd: Path,
        environment: Mapping[str, str],
        seconds: float,
        memory_bytes: int | None = None,
        beat: Callable[[Beat], Awaitable[None]] | None = None,
    ) -> Finished:
        words = [str(word) for word in command]
        self.asked.append(words[words.index("--") + 1 :])
        self.pythons.append(Path(words[0]))
        self.environments.append(environment)
        self.allowed.append((seconds, memory_bytes))
        assert names_in(cwd) == []  # nothing that a name could be taken for
        if self.hold is not None:
            await self.hold.wait()
        self.effect(next(Path(words[0]).parent.parent.glob("lib/python*/site-packages")))
        return self.ends.pop(0) if self.ends else OK


@pytest.fixture
async def pip() -> FakePip:
    return FakePip()


@pytest.fixture
async def installer(pip: FakePip, tmp_path: Path) -> Installer:
    return Installer(Python(), pip, tmp_path, allowance=ALLOWANCE, variables={"PATH": "/usr/bin"})


async def silent(_line: str) -> None:
    """Nobody asked for progress."""


async def ensure(
    installer: Installer, *texts: str, tell: Callable[[str], Awaitable[None]] = silent
) -> Finished | None:
    async with asyncio.timeout(BOUND_S):
        return await installer.ensure(parse_all(texts, Python().parse), tell)


async def test_package_is_installed_once(installer: Installer, pip: FakePip) -> None:
    for _ in range(2):
        assert await ensure(installer, "a", "b>=1") is None
    await ensure(installer, "b>=1", "c")
    assert pip.asked == [["a", "b>=1"], ["c"]]


async def test_other_version_is_asked_for_and_so_is_the_first_again(
    installer: Installer, pip: FakePip
) -> None:
    for text in ("a==1", "a==2", "a==1"):
        await ensure(installer, text)
    assert pip.asked == [["a==1"], ["a==2"], ["a==1"]]


async def test_replaced_distribution_makes_earlier_answers_void(
    installer: Installer, pip: FakePip
) -> None:
    pip.effect = lambda site: (site / "a-1.dist-info").mkdir()
    await ensure(installer, "a==1")
    pip.effect = lambda site: (site / "a-1.dist-info").rename(site / "a-2.dist-info")
    await ensure(installer, "needs-a-2")
    pip.effect = lambda site: None
    await ensure(installer, "a==1", "needs-a-2")
    assert pip.asked[2:] == [["a==1"]]


async def test_failure_is_returned_and_not_remembered(installer: Installer, pip: FakePip) -> None:
    pip.ends = [FAILED]
    assert await ensure(installer, "a") == FAILED
    assert await ensure(installer, "a") is None
    assert pip.asked == [["a"], ["a"]]
    assert len(set(pip.pythons)) == 1


async def test_killed_install_is_made_good_in_a_new_environment(
    installer: Installer, pip: FakePip
) -> None:
    await ensure(installer, "a", "b==1")
    pip.ends = [LATE]
    assert await ensure(installer, "c") == LATE
    assert await ensure(installer, "b==2", "c") is None
    assert pip.asked[2] == ["a", "b==2", "c"]
    assert pip.pythons[2] != pip.pythons[1]
    assert isinstance(installer.current, PythonEnvironment)
    assert installer.current.python == pip.pythons[2]


async def test_cancelled_install_is_made_good_in_a_new_environment(
    installer: Installer, pip: FakePip
) -> None:
    pip.hold = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(ensure(installer, "a"))
        await until(lambda: pip.asked)
        task.cancel()
    pip.hold = None
    assert await ensure(installer, "a") is None
    assert pip.pythons[1] != pip.pythons[0]


async def test_install_that_took_too_much_memory_is_made_good_in_a_new_environment(
    installer: Installer, pip: FakePip
) -> None:
    pip.ends = [LARGE]
    assert await ensure(installer, "a") == LARGE
    assert await ensure(installer, "a") is None
    assert pip.pythons[1] != pip.pythons[0]


async def test_install_may_use_what_was_allowed(installer: Installer, pip: FakePip) -> None:
    await ensure(installer, "a")
    assert pip.allowed == [(1.0, 7)]


async def test_failed_repair_is_tried_again_elsewhere(installer: Installer, pip: FakePip) -> None:
    first = installer.current
    pip.ends = [LATE, FAILED]
    for _ in range(2):
        await ensure(installer, "a")
    assert installer.current is first
    assert await ensure(installer, "a") is None
    assert len(set(pip.pythons)) == 3


async def test_concurrent_calls_share_one_install(installer: Installer, pip: FakePip) -> None:
    pip.hold = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ensure(installer, "a")) for _ in range(5)]
        await until(lambda: pip.asked)
        pip.hold.set()
    assert [task.result() for task in tasks] == [None] * 5
    assert pip.asked == [["a"]]


async def test_progress_names_the_packages(installer: Installer) -> None:
    lines: list[str] = []

    async def tell(line: str) -> None:
        lines.append(line)

    for _ in range(2):
        await ensure(installer, "numpy", "pandas>=2", tell=tell)
    assert lines == ["installing numpy, pandas>=2"]


async def test_pip_works_in_the_session_directory(
    installer: Installer, pip: FakePip, tmp_path: Path
) -> None:
    await ensure(installer, "a")
    assert pip.pythons[0].is_relative_to(tmp_path)
    assert Path(pip.environments[0]["TMPDIR"]).is_relative_to(tmp_path)
    assert "PIP_PYTHON" not in pip.environments[0]


# -- session ---------------------------------------------------------------------------------------


@pytest.fixture
async def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Session]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    variables = {**os.environ, "RENDEZVOUS_JOIN_TOKEN": "internal", "KEPT": "yes"}
    session = Session(Python(), Limits(max_output_bytes=4096), variables)
    yield session
    session.close()
    assert names_in(tmp_path) == []


async def execute(
    session: Session, code: str, *packages: str, use_temp_dir: bool = False
) -> Execution:
    async with asyncio.timeout(BOUND_S):
        return await session.execute(code, packages, use_temp_dir=use_temp_dir, tell=silent)


async def test_internal_variables_are_hidden_and_others_are_not(session: Session) -> None:
    code = "import os; print(sorted({'KEPT', 'RENDEZVOUS_JOIN_TOKEN'} & set(os.environ)))"
    assert (await execute(session, code)).stdout == "['KEPT']"


async def test_code_is_a_main_module_with_source_in_tracebacks(session: Session) -> None:
    code = (
        "def broken():\n    return 1 / 0  # the line\n\nif __name__ == '__main__':\n    broken()\n"
    )
    execution = await execute(session, code)
    assert execution.returncode == 1
    assert re.search(r'main\.py", line 2, in broken\n +return 1 / 0  # the line', execution.stderr)


async def test_a_megabyte_of_code_runs(session: Session) -> None:
    code = "x = 1  # padding\n" * 65536 + "print(x)"
    assert len(code) > 1024 * 1024
    assert (await execute(session, code)).stdout == "1"


async def test_code_can_use_worker_processes_that_import_it(session: Session) -> None:
    code = """
import multiprocessing
def double(x):
    return 2 * x
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(double, [1, 2]))
"""
    assert await execute(session, code) == Execution(0, "[2, 4]", "")


async def test_files_of_a_call_are_there_for_the_next_and_can_be_imported(session: Session) -> None:
    await execute(session, "open('helper.py', 'w').write('x = 7')")
    assert (await execute(session, "import helper; print(helper.x)")).stdout == "7"


async def test_temporary_directory_is_empty_and_removed(session: Session) -> None:
    await execute(session, "open('mine', 'w')")
    code = "import os; open('file', 'w'); print(os.getcwd(), os.listdir())"
    directory, names = (await execute(session, code, use_temp_dir=True)).stdout.split(" ", 1)
    assert names == "['file']"
    assert not exists(directory)
    assert (await execute(session, "import os; print(os.listdir())")).stdout == "['mine']"


async def test_bad_package_is_refused_before_anything_runs(session: Session) -> None:
    execution = await execute(session, "open('ran', 'w')", "--pre")
    assert execution.returncode == 1
    assert execution.stderr.startswith("Error: '--pre' is not a package")
    assert (await execute(session, "import os; print(os.listdir())")).stdout == "[]"


async def test_pip_that_is_too_slow_is_a_time_out_that_names_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    session = Session(Python(), Limits(install_timeout_s=0.001), dict(os.environ))
    try:
        execution = await execute(session, "print(1)", "numpy")
    finally:
        session.close()
    assert (execution.returncode, execution.stdout) == (-2, "")
    assert "CODE_EXEC_INSTALL_TIMEOUT_S" in execution.stderr
    assert "0.001 s" in execution.stderr


async def test_code_that_takes_too_much_memory_is_killed_and_told_by_whose_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    session = Session(Python(), Limits(max_memory_bytes=64 * MIB), dict(os.environ))
    code = "print('before', flush=True); x = bytearray(b'x') * (128 << 20)"
    try:
        execution = await execute(session, code + "\nimport time; time.sleep(600)")
    finally:
        session.close()
    assert (execution.returncode, execution.stdout) == (137, "before")
    last = execution.stderr.splitlines()[-1]
    assert last.startswith("Error: Execution was killed: it had more than 67108864 bytes of memory")
    assert last.endswith("CODE_EXEC_MAX_MEMORY_BYTES.")


async def test_progress_tells_for_how_long_and_what_was_printed(session: Session) -> None:
    lines: list[str] = []
    work = session._scratch

    async def tell(line: str) -> None:
        lines.append(line)
        if line.endswith(", 4 bytes of output"):
            (work / "go").touch()

    code = """
import pathlib, time
print("one")
while not pathlib.Path("go").exists():
    time.sleep(0.01)
"""
    session._runner._beat_s = 0.01
    async with asyncio.timeout(BOUND_S):
        await session.execute(code, tell=tell)
    assert lines[0] == "running"
    assert re.fullmatch(r"running for \d+ s, 4 bytes of output", lines[-1])


# -- the tool --------------------------------------------------------------------------------------


@asynccontextmanager
async def tool(tmp_path: Path, name: str) -> AsyncIterator[Client]:
    """A client of a server in this process; any programs of the right names will do."""
    for program in ("ruby", "node", "npm", "go"):
        (tmp_path / program).touch(mode=0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    language, limits = LANGUAGES[name](environment), Limits()
    session = Session(language, limits, environment)
    try:
        async with asyncio.timeout(BOUND_S), Client(build(session, language, limits)) as client:
            yield client
    finally:
        session.close()


def bare(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without what is for people."""
    told = {"description", "examples", "title"}
    return {
        name: {
            argument: {key: value for key, value in about.items() if key not in told}
            for argument, about in part.items()
        }
        if name == "properties"
        else part
        for name, part in schema.items()
        if name not in told
    }


@pytest.mark.parametrize("name", LANGUAGES)
async def test_tool_of_every_language_has_the_arguments_and_the_result_of_python_s(
    tmp_path: Path, name: str
) -> None:
    async with tool(tmp_path, "python") as client:
        (python,) = (await client.list_tools()).tools
    async with tool(tmp_path, name) as client:
        (other,) = (await client.list_tools()).tools
    assert other.name == f"code_exec_{name}"
    assert other.input_schema["title"] == f"code_exec_{name}Arguments"
    assert bare(other.input_schema) == bare(python.input_schema)
    assert list(other.input_schema["properties"]) == ["code", "packages", "use_temp_dir"]
    assert other.output_schema == python.output_schema


@pytest.mark.parametrize("name", LANGUAGES)
async def test_examples_of_packages_are_packages(tmp_path: Path, name: str) -> None:
    """What the model is shown is let through."""
    (tmp_path / name).touch(mode=0o755)
    (tmp_path / "npm").touch(mode=0o755)
    language = LANGUAGES[name]({"PATH": str(tmp_path)})
    for example in language.words.requirements:
        assert len(parse_all(example, language.parse)) == len(example)


async def test_progress_reaches_the_caller_over_mcp(tmp_path: Path) -> None:
    told: list[tuple[float, str | None]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, message))

    async with tool(tmp_path, "python") as client:
        answer = await client.call_tool(
            "code_exec_python", {"code": "print(1)"}, progress_callback=on_progress
        )
    assert answer.structured_content == {
        "result": {"returncode": 0, "stdout": "1", "stderr": ""},
    }
    assert told == [(1.0, "running")]


async def test_code_that_cannot_be_started_is_an_error_of_the_tool(tmp_path: Path) -> None:
    """The fake interpreter is an empty file without a format."""
    async with tool(tmp_path, "ruby") as client:
        answer = await client.call_tool("code_exec_ruby", {"code": ""})
    (block,) = answer.content
    assert block.type == "text"
    assert answer.is_error
    assert "The code could not be started: Exec format error" in block.text
