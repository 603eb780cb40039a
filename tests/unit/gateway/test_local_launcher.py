"""Proves that a local dyno gets nothing of the gateway's, outlives it, and leaves no trace."""

import asyncio
import hashlib
import os
import stat
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import psutil
import pytest

from gateway.launchers import local
from gateway.launchers.base import Dyno, LaunchError, LaunchOrder, PlatformError
from gateway.launchers.local import LocalLauncher

WAIT_S = 20.0
POLL_S = 0.01
NEVER_S = 1e9
SECRETS = {
    "API_KEY": "hush-1",
    "GATEWAY_SECRET": "hush-2",
    "HEROKU_API_KEY": "hush-3",
    "REDIS_URL": "hush-4",
    "AWS_SECRET_ACCESS_KEY": "hush-5",
    "PYTHONSTARTUP": "hush-6",
    "LD_PRELOAD": "hush-7",
    "GATEWAY_URL": "hush-8",
}
HARMLESS = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "PIP_NO_INPUT": "1"}
WAITS = {
    "RENDEZVOUS_URL": "http://127.0.0.1:9",
    "RENDEZVOUS_JOIN_TOKEN": "rj_launch.secret",
}
"""An agent that dials where nobody listens, until it is stopped."""

ROOT = Path(local.__file__).parents[2]
GATEWAY = """
import asyncio, os, sys
from gateway.launchers.base import LaunchOrder
from gateway.launchers.local import LocalLauncher

async def serve(realm, url, token):
    launcher = LocalLauncher(os.environ, realm)
    environment = {"RENDEZVOUS_URL": url, "RENDEZVOUS_JOIN_TOKEN": token}
    await launcher.launch(LaunchOrder("launch", "everything", environment, None, 60.0))
    print("launched", flush=True)
    sys.stdin.read()
    await launcher.aclose()

asyncio.run(serve(*sys.argv[1:]))
"""
"""A gateway process in miniature: launches one dyno, looks after none, goes when stdin ends."""

LAUNCHED = Dyno("local.launch", "launch")
FOREVER = "tail -f /dev/null"
STUBBORN = f"trap '' TERM; echo ready; exec {FOREVER}"
COMPANY = f"""sh -c "trap '' TERM; echo \\$\\$; exec {FOREVER}" & wait"""
"""In place of the agent: one that ignores SIGTERM; one whose companion in its group does."""

Make = Callable[[], LocalLauncher]


@pytest.fixture(scope="module", autouse=True)
def no_loop_but_the_tests() -> None:
    """Otherwise pytest-asyncio's first look for a loop makes one, and never closes it."""
    asyncio.set_event_loop(None)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the launchers make their folders."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def realm(tmp_path: Path) -> str:
    return hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]


@pytest.fixture
async def make(scratch: Path, realm: str) -> AsyncIterator[Make]:
    """Makes launchers of one realm, as so many gateway processes would; stops what they list."""
    made = []

    def make() -> LocalLauncher:
        made.append(LocalLauncher({**HARMLESS, **SECRETS}, realm))
        return made[-1]

    yield make
    make()
    for launcher in made:
        for dyno in await launcher.list():
            await stop(launcher, dyno.dyno_id)
    left_over = [process for process in psutil.process_iter(["cwd"]) if is_in(scratch, process)]
    for process in left_over:
        process.kill()
    assert left_over == []


def is_in(scratch: Path, process: psutil.Process) -> bool:
    return (process.info["cwd"] or "").startswith(str(scratch)) and runs(process)


@pytest.fixture
def launcher(make: Make) -> LocalLauncher:
    return make()


@pytest.fixture
async def gateway(make: Make, scratch: Path, realm: str) -> AsyncIterator[Process]:
    """A gateway process that has launched one dyno."""
    environment = {**os.environ, "TMPDIR": str(scratch), "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", GATEWAY, realm, *WAITS.values()),
        stdin=PIPE,
        stdout=PIPE,
        env=environment,
    )
    assert process.stdout is not None
    async with asyncio.timeout(WAIT_S):
        assert await process.stdout.readline() == b"launched\n"
    yield process
    if process.returncode is None:
        await killed(process)


async def killed(gateway: Process) -> None:
    gateway.kill()
    async with asyncio.timeout(WAIT_S):
        assert await gateway.wait() < 0


async def closed(gateway: Process) -> None:
    assert gateway.stdin is not None
    gateway.stdin.close()
    async with asyncio.timeout(WAIT_S):
        assert await gateway.wait() == 0


ENDS = {"killed": killed, "closed": closed}


@pytest.fixture
def bystander() -> Iterator[psutil.Process]:
    """A process of this user that is no dyno."""
    with psutil.Popen(FOREVER.split(), start_new_session=True) as process:
        yield process
        process.kill()


def folder_of(scratch: Path, realm: str) -> Path:
    return scratch / f"rendezvous-{os.getuid()}-{realm}"


@pytest.fixture
def folder(scratch: Path, realm: str) -> Path:
    """The folder of the realm, made by some earlier process."""
    made = folder_of(scratch, realm)
    made.mkdir(mode=0o700)
    return made


def plant(folder: Path, note: str | None, name: str = "launch") -> None:
    """Leave what another process would leave of a dyno."""
    (folder / name).mkdir()
    (folder / name / "agent.log").write_text("farewell", encoding="utf-8")
    if note is not None:
        (folder / f"{name}.pid").write_text(note, encoding="utf-8")


def note_of(process: psutil.Process, age_s: float = 0.0) -> str:
    return f"{process.pid} {process.create_time() - age_s!r}\n"


def left(scratch: Path) -> list[Path]:
    """What lies in the folders of all realms."""
    return [path for folder in scratch.iterdir() for path in folder.iterdir()]


def inside(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def expose(folder: Path) -> None:
    folder.chmod(0o755)


def order(launch_id: str = "launch", **environment: str) -> LaunchOrder:
    return LaunchOrder(launch_id, "everything", environment, None, 60.0)


async def start(launcher: LocalLauncher, order: LaunchOrder) -> Dyno:
    async with asyncio.timeout(WAIT_S):
        return await launcher.launch(order)


async def stop(launcher: LocalLauncher, dyno_id: str) -> None:
    async with asyncio.timeout(WAIT_S):
        await launcher.stop(dyno_id)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not await condition():  # noqa: ASYNC110 - the OS sets no Event
            await asyncio.sleep(POLL_S)


async def ended(launcher: LocalLauncher, dyno: Dyno) -> Dyno:
    found: list[Dyno] = []

    async def over() -> bool:
        found[:] = [d for d in await launcher.list() if d.dyno_id == dyno.dyno_id]
        return [d.exit_status for d in found] != [None]

    await until(over)
    (listed,) = found
    return listed


async def said(scratch: Path, dyno: Dyno) -> str:
    """Wait for the first line of the dyno's own log and return it."""

    async def spoke() -> bool:
        return "\n" in log_of(scratch, dyno)

    await until(spoke)
    return log_of(scratch, dyno).splitlines()[0]


def log_of(scratch: Path, dyno: Dyno) -> str:
    (log,) = scratch.glob(f"*/{dyno.launch_id}/agent.log")
    return log.read_text(encoding="utf-8")


def process_of(scratch: Path, dyno: Dyno) -> psutil.Process:
    (note,) = scratch.glob(f"*/{dyno.launch_id}.pid")
    return psutil.Process(int(note.read_text(encoding="utf-8").split()[0]))


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def gone(process: psutil.Process) -> None:
    async def over() -> bool:
        return not runs(process)

    await until(over)


def act(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a shell script stand in for the interpreter, and so for the agent."""
    stand_in = folder / "python"
    stand_in.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))


@pytest.fixture
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bin")


# -- A dyno of this process ---------------------------------------------------------------------


async def test_agent_without_a_gateway_is_listed_with_its_status_and_last_words(
    launcher: LocalLauncher,
) -> None:
    dyno = await start(launcher, order())
    listed = await ended(launcher, dyno)
    assert (listed.dyno_id, listed.launch_id, listed.exit_status) == (dyno.dyno_id, "launch", 78)
    assert "RENDEZVOUS_URL" in listed.last_words


async def test_dyno_that_was_killed_is_listed_with_its_signal(
    launcher: LocalLauncher, scratch: Path
) -> None:
    dyno = await start(launcher, order(**WAITS))
    process_of(scratch, dyno).kill()
    assert (await ended(launcher, dyno)).exit_status == -9


async def test_dyno_that_ended_is_no_zombie_once_it_is_listed(
    launcher: LocalLauncher, scratch: Path
) -> None:
    dyno = await start(launcher, order(**WAITS))
    process = process_of(scratch, dyno)
    process.kill()
    await ended(launcher, dyno)
    assert not psutil.pid_exists(process.pid)


async def test_dyno_of_this_process_that_ended_is_listed_until_it_is_stopped(
    launcher: LocalLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "REPORT_S", 0.0)
    listed = await ended(launcher, await start(launcher, order()))
    assert [list(await launcher.list()) for _ in range(2)] == [[listed]] * 2


async def test_dyno_of_this_process_that_another_stopped_is_listed_as_ended(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "LOOK_S", 0.0)
    first, second = make(), make()
    dyno = await start(first, order(**WAITS))
    await stop(second, dyno.dyno_id)
    listed = await ended(first, dyno)
    assert list(await first.list()) == [listed]


async def test_last_words_are_the_end_of_a_long_log(
    launcher: LocalLauncher, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    act("seq 100000", elsewhere, monkeypatch)
    words = (await ended(launcher, await start(launcher, order()))).last_words
    assert (len(words), words[-7:]) == (local.LOG_TAIL_BYTES, "100000\n")


async def test_running_dyno_is_listed_without_a_status(launcher: LocalLauncher) -> None:
    dyno = await start(launcher, order(**WAITS))
    assert list(await launcher.list()) == [dyno] == [LAUNCHED]


async def test_each_dyno_has_its_own_name_and_home(launcher: LocalLauncher, scratch: Path) -> None:
    first, second = await start(launcher, order("one")), await start(launcher, order("two"))
    assert first.dyno_id != second.dyno_id
    assert [dyno.launch_id for dyno in await launcher.list()] == ["one", "two"]
    assert sorted(path.name for path in left(scratch) if path.is_dir()) == ["one", "two"]


async def test_stopped_dyno_leaves_no_process_no_file_and_no_entry(
    launcher: LocalLauncher, scratch: Path
) -> None:
    dyno = await start(launcher, order(**WAITS))
    process = process_of(scratch, dyno)
    before = runs(process)
    await stop(launcher, dyno.dyno_id)
    assert (before, psutil.pid_exists(process.pid)) == (True, False)
    assert (left(scratch), list(await launcher.list())) == ([], [])


async def test_dyno_that_exited_by_itself_is_gone_after_its_stop(
    launcher: LocalLauncher, scratch: Path
) -> None:
    dyno = await start(launcher, order())
    await ended(launcher, dyno)
    await stop(launcher, dyno.dyno_id)
    assert (left(scratch), list(await launcher.list())) == ([], [])


async def test_stop_ends_the_whole_process_group(
    launcher: LocalLauncher, scratch: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    act(COMPANY, elsewhere, monkeypatch)
    dyno = await start(launcher, order())
    companion = psutil.Process(int(await said(scratch, dyno)))
    await stop(launcher, dyno.dyno_id)
    await gone(companion)


async def test_dyno_is_asked_to_leave_before_it_is_killed(
    launcher: LocalLauncher, scratch: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last_will = elsewhere / "asked"
    act(f"trap ': > {last_will}; exit' TERM; {COMPANY}", elsewhere, monkeypatch)
    dyno = await start(launcher, order())
    companion = psutil.Process(int(await said(scratch, dyno)))
    await stop(launcher, dyno.dyno_id)
    await gone(companion)
    assert last_will.exists()


async def test_dyno_that_ignores_sigterm_is_killed(
    launcher: LocalLauncher, scratch: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    act(STUBBORN, elsewhere, monkeypatch)
    monkeypatch.setattr(local, "TERM_S", 0.1)
    dyno = await start(launcher, order())
    process, _ = process_of(scratch, dyno), await said(scratch, dyno)
    await stop(launcher, dyno.dyno_id)
    assert (runs(process), left(scratch)) == (False, [])


async def test_dyno_that_cannot_be_ended_stays_listed_with_its_files(
    launcher: LocalLauncher, scratch: Path
) -> None:
    dyno = await start(launcher, order(**WAITS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "killpg", lambda *_: None)
        patch.setattr(local, "TERM_S", 0.0)
        patch.setattr(local, "KILL_S", 0.0)
        with pytest.raises(PlatformError, match="outlives SIGKILL"):
            await stop(launcher, dyno.dyno_id)
    assert (list(await launcher.list()), len(left(scratch))) == ([dyno], 2)


@pytest.mark.parametrize("dyno_id", ["local.0", "launch", "fake.launch", "local.", "local.../x"])
async def test_stop_of_an_unknown_dyno_touches_nothing(
    launcher: LocalLauncher, scratch: Path, dyno_id: str
) -> None:
    dyno = await start(launcher, order(**WAITS))
    (scratch / "x").mkdir()
    await stop(launcher, dyno_id)
    assert list(await launcher.list()) == [dyno]
    assert (runs(process_of(scratch, dyno)), (scratch / "x").exists()) == (True, True)


async def test_unknown_dyno_can_be_stopped_before_any_launch(
    launcher: LocalLauncher, scratch: Path
) -> None:
    await stop(launcher, "local.0")
    assert (list(await launcher.list()), inside(scratch)) == ([], [])


async def test_dyno_can_be_stopped_twice_at_once(launcher: LocalLauncher, scratch: Path) -> None:
    dyno = await start(launcher, order(**WAITS))
    process = process_of(scratch, dyno)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(2):
            tasks.create_task(stop(launcher, dyno.dyno_id))
    assert (runs(process), left(scratch)) == (False, [])


# -- A dyno of another process ------------------------------------------------------------------


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
async def test_dyno_outlives_the_process_that_launched_it(
    gateway: Process, launcher: LocalLauncher, scratch: Path, end: Callable[..., Awaitable[None]]
) -> None:
    agent = process_of(scratch, LAUNCHED)
    await end(gateway)
    assert (runs(agent), list(await launcher.list())) == (True, [LAUNCHED])


@pytest.mark.parametrize("listed_first", [True, False])
async def test_next_process_stops_the_dyno_of_a_killed_one(
    gateway: Process, launcher: LocalLauncher, scratch: Path, listed_first: bool
) -> None:
    agent = process_of(scratch, LAUNCHED)
    await killed(gateway)
    if listed_first:
        await launcher.list()
    await stop(launcher, LAUNCHED.dyno_id)
    assert (runs(agent), left(scratch), list(await launcher.list())) == (False, [], [])


async def test_dyno_of_another_process_can_be_stopped_twice_at_once(
    gateway: Process, make: Make, scratch: Path
) -> None:
    agent = process_of(scratch, LAUNCHED)
    first, second = make(), make()
    await first.list()
    async with asyncio.TaskGroup() as tasks:
        for launcher in (first, first, second):
            tasks.create_task(stop(launcher, LAUNCHED.dyno_id))
    assert (runs(agent), left(scratch)) == (False, [])


async def test_dyno_of_another_process_that_ignores_sigterm_is_killed(
    folder: Path, launcher: LocalLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "TERM_S", 0.1)
    command = ("/bin/sh", "-c", STUBBORN)
    with psutil.Popen(command, start_new_session=True, stdout=-1) as process:
        assert process.stdout.readline() == b"ready\n"
        plant(folder, note_of(process))
        await stop(launcher, LAUNCHED.dyno_id)
        assert (process.wait(WAIT_S), inside(folder)) == (-9, [])


async def test_dyno_that_another_process_has_not_reaped_counts_as_ended(
    gateway: Process, launcher: LocalLauncher, scratch: Path
) -> None:
    agent = process_of(scratch, LAUNCHED)
    assert list(await launcher.list()) == [LAUNCHED]
    agent.kill()
    listed = await ended(launcher, LAUNCHED)
    assert (listed.exit_status, agent.status()) == (-1, psutil.STATUS_ZOMBIE)


async def test_dyno_goes_on_when_its_launcher_is_closed(make: Make, scratch: Path) -> None:
    first, second = make(), make()
    dyno = await start(first, order(**WAITS))
    await first.aclose()
    assert (runs(process_of(scratch, dyno)), list(await second.list())) == (True, [dyno])


async def test_last_launcher_leaves_no_folder(launcher: LocalLauncher, scratch: Path) -> None:
    dyno = await start(launcher, order(**WAITS))
    await stop(launcher, dyno.dyno_id)
    await launcher.aclose()
    assert inside(scratch) == []


async def test_other_realm_neither_lists_nor_stops_a_dyno(
    launcher: LocalLauncher, scratch: Path, realm: str
) -> None:
    dyno = await start(launcher, order(**WAITS))
    stranger = LocalLauncher(HARMLESS, f"{realm}-2")
    assert list(await stranger.list()) == []
    await stop(stranger, dyno.dyno_id)
    assert runs(process_of(scratch, dyno))


async def test_dyno_that_another_process_launches_later_is_found(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "LOOK_S", 0.0)
    first, second = make(), make()
    before = list(await second.list())
    dyno = await start(first, order(**WAITS))
    assert (before, list(await second.list())) == ([], [dyno])


async def test_folder_is_not_searched_for_every_list(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "LOOK_S", NEVER_S)
    first, second = make(), make()
    await second.list()
    await start(first, order(**WAITS))
    assert list(await second.list()) == []


async def test_dyno_that_another_process_stopped_is_forgotten(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "LOOK_S", 0.0)
    first, second = make(), make()
    dyno = await start(first, order(**WAITS))
    before = list(await second.list())
    await stop(first, dyno.dyno_id)
    assert (before, list(await second.list())) == ([dyno], [])


@pytest.mark.parametrize("error", [OSError(24, "too many open files"), psutil.AccessDenied()])
async def test_dyno_that_cannot_be_looked_at_just_now_counts_as_running(
    folder: Path,
    launcher: LocalLauncher,
    bystander: psutil.Process,
    error: Exception,
) -> None:
    def fail(_: psutil.Process) -> bool:
        raise error

    plant(folder, note_of(bystander))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psutil.Process, "is_running", fail)
        assert list(await launcher.list()) == [LAUNCHED]


async def test_dyno_whose_pid_file_cannot_be_read_just_now_keeps_its_home(
    folder: Path, launcher: LocalLauncher, bystander: psutil.Process
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise OSError(24, "too many open files")

    plant(folder, note_of(bystander))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "LOOK_S", 0.0)
        patch.setattr(Path, "read_text", fail)
        with pytest.raises(PlatformError, match="too many open files"):
            await stop(launcher, "local.launch")
        assert list(await launcher.list()) == []
    launcher._next_look = 0.0
    assert list(await launcher.list()) == [LAUNCHED]
    assert (folder / "launch" / "agent.log").exists()


# -- Remains ------------------------------------------------------------------------------------


@pytest.mark.parametrize("note", ["", "no numbers", "-1 0.0", f"{10**30} 0.0", "1", "\N{SNOWMAN}"])
async def test_dyno_whose_process_is_gone_is_listed_as_ended_with_its_last_words(
    folder: Path, launcher: LocalLauncher, note: str
) -> None:
    plant(folder, note)
    assert list(await launcher.list()) == [Dyno("local.launch", "launch", -1, "farewell")]


async def test_remains_are_listed_until_they_are_stopped(
    folder: Path, launcher: LocalLauncher
) -> None:
    plant(folder, "")
    before = [await launcher.list() for _ in range(3)]
    await stop(launcher, "local.launch")
    assert ([len(listed) for listed in before], list(await launcher.list())) == ([1, 1, 1], [])
    assert inside(folder) == []


async def test_remains_are_removed_when_they_were_listed_for_long_enough(
    folder: Path, launcher: LocalLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "REPORT_S", 0.0)
    monkeypatch.setattr(local, "LOOK_S", 0.0)
    for name in ("one", "two"):
        plant(folder, "", name)
    listed = [[dyno.launch_id for dyno in await launcher.list()] for _ in range(3)]
    assert (listed, inside(folder)) == ([["one", "two"], ["two"], []], [])


async def test_home_without_a_pid_file_is_given_time_until_the_next_look(
    folder: Path, launcher: LocalLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "LOOK_S", 0.0)
    plant(folder, None)
    listed = [[dyno.exit_status for dyno in await launcher.list()] for _ in range(2)]
    assert listed == [[], [-1]]


async def test_remains_that_cannot_be_removed_are_not_listed_again(
    folder: Path, launcher: LocalLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "LOOK_S", 0.0)
    plant(folder, "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalLauncher, "_remove", lambda *_: None)
        await stop(launcher, "local.launch")
    assert [list(await launcher.list()) for _ in range(3)] == [[], [], []]


async def test_process_that_got_the_pid_of_a_dyno_is_left_alone(
    folder: Path, launcher: LocalLauncher, bystander: psutil.Process
) -> None:
    plant(folder, note_of(bystander, age_s=60.0))
    assert [dyno.exit_status for dyno in await launcher.list()] == [-1]
    await stop(launcher, "local.launch")
    assert (runs(bystander), inside(folder)) == (True, [])


async def test_process_that_got_the_pid_of_a_dyno_that_had_been_found_is_left_alone(
    folder: Path, launcher: LocalLauncher, bystander: psutil.Process
) -> None:
    plant(folder, note_of(bystander))
    before = [dyno.exit_status for dyno in await launcher.list()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psutil.Process, "is_running", lambda _: False)  # what psutil says of reuse
        after = [dyno.exit_status for dyno in await launcher.list()]
        await stop(launcher, "local.launch")
    assert (before, after, runs(bystander)) == ([None], [-1], True)


async def test_view_of_the_clock_that_moved_a_little_hides_no_dyno(
    folder: Path, launcher: LocalLauncher, bystander: psutil.Process
) -> None:
    plant(folder, note_of(bystander, age_s=1.0))
    assert list(await launcher.list()) == [LAUNCHED]


# -- The folder ---------------------------------------------------------------------------------


async def test_folder_and_home_are_for_their_user_alone(
    launcher: LocalLauncher, scratch: Path, realm: str
) -> None:
    await start(launcher, order())
    folder = folder_of(scratch, realm)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / "launch")]
    assert modes == [0o700, 0o700]


def readable(folder: Path, _: Path) -> None:
    folder.mkdir(mode=0o755)


def writable_by_the_group(folder: Path, _: Path) -> None:
    folder.mkdir()
    folder.chmod(0o720)


def readable_by_some(folder: Path, _: Path) -> None:
    folder.mkdir()
    folder.chmod(0o704)


def link(folder: Path, elsewhere: Path) -> None:
    target = elsewhere / "target"
    target.mkdir(mode=0o700)
    folder.symlink_to(target)


def file(folder: Path, _: Path) -> None:
    folder.touch(mode=0o700)


@pytest.mark.parametrize("bad", [readable, writable_by_the_group, readable_by_some, link, file])
async def test_folder_that_others_may_have_made_is_refused(
    launcher: LocalLauncher,
    scratch: Path,
    realm: str,
    elsewhere: Path,
    bad: Callable[[Path, Path], None],
) -> None:
    bad(folder_of(scratch, realm), elsewhere)
    with pytest.raises(LaunchError):
        await start(launcher, order())
    assert not (folder_of(scratch, realm) / "launch").exists()


async def test_folder_of_another_user_is_refused(scratch: Path, realm: str) -> None:
    user = os.getuid() + 1
    (scratch / f"rendezvous-{user}-{realm}").mkdir(mode=0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getuid", lambda: user)
        with pytest.raises(LaunchError):
            await start(LocalLauncher(HARMLESS, realm), order())
    assert left(scratch) == []


async def test_dynos_in_a_folder_that_others_may_have_made_are_none(
    folder: Path, launcher: LocalLauncher, bystander: psutil.Process
) -> None:
    plant(folder, note_of(bystander))
    expose(folder)
    assert list(await launcher.list()) == []
    await stop(launcher, "local.launch")
    assert (runs(bystander), len(inside(folder))) == (True, 2)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".", "a.pid", "a\n", "\N{SNOWMAN}", "a" * 65])
async def test_name_that_cannot_be_a_path_is_refused(
    launcher: LocalLauncher, scratch: Path, name: str
) -> None:
    with pytest.raises(ValueError, match="64"):
        await start(launcher, order(name))
    with pytest.raises(ValueError, match="64"):
        LocalLauncher(HARMLESS, name)
    assert inside(scratch) == []


async def test_second_launch_of_one_name_is_refused_and_the_first_goes_on(
    launcher: LocalLauncher, scratch: Path
) -> None:
    dyno = await start(launcher, order(**WAITS))
    with pytest.raises(LaunchError):
        await start(launcher, order(**WAITS))
    assert (list(await launcher.list()), len(left(scratch))) == ([dyno], 2)
    assert runs(process_of(scratch, dyno))


async def test_launch_that_cannot_be_noted_leaves_no_process(
    launcher: LocalLauncher, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "launch.pid").mkdir()
    started = []
    start_agent = launcher._start

    def spy(order: LaunchOrder, home: Path) -> psutil.Process:
        started.append(start_agent(order, home))
        return started[-1]

    monkeypatch.setattr(launcher, "_start", spy)
    with pytest.raises(LaunchError):
        await start(launcher, order(**WAITS))
    assert ([runs(process) for process in started], list(await launcher.list())) == ([False], [])
    assert not (folder / "launch").exists()


# -- What the agent gets ------------------------------------------------------------------------


@pytest.fixture
def printer(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the interpreter that prints how it was started."""
    script = 'env\nprintf "ARG=%s\\n" "$@"\nprintf "CWD=%s\\n" "$PWD"\nprintf "LS=%s\\n" $(ls -A)'
    act(script, elsewhere, monkeypatch)


@pytest.mark.usefixtures("printer")
async def test_no_secret_of_the_gateway_reaches_a_dyno(
    launcher: LocalLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEY", SECRETS["API_KEY"])
    listed = await ended(launcher, await start(launcher, order(MINE="mine")))
    words = listed.last_words.splitlines()
    assert "MINE=mine" in words
    assert [line for line in words if "hush" in line or line.partition("=")[0] in SECRETS] == []


@pytest.mark.usefixtures("printer")
async def test_order_is_in_the_environment_and_never_on_the_command_line(
    launcher: LocalLauncher, scratch: Path, realm: str
) -> None:
    listed = await ended(launcher, await start(launcher, order(**WAITS)))
    words = listed.last_words.splitlines()
    home = folder_of(scratch, realm) / "launch"
    arguments = [line.removeprefix("ARG=") for line in words if line.startswith("ARG=")]
    assert arguments == ["-m", "dyno_agent", "--launch", "launch"]
    assert {f"HOME={home}", f"TMPDIR={home}", f"CWD={home}"} <= set(words)
    assert f"RENDEZVOUS_JOIN_TOKEN={WAITS['RENDEZVOUS_JOIN_TOKEN']}" in words


@pytest.mark.usefixtures("printer")
async def test_home_holds_nothing_but_the_log(launcher: LocalLauncher) -> None:
    listed = await ended(launcher, await start(launcher, order()))
    words = listed.last_words.splitlines()
    assert [line for line in words if line.startswith("LS=")] == ["LS=agent.log"]


async def test_launch_that_failed_is_told_and_leaves_nothing(
    launcher: LocalLauncher, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(scratch / "no-such-python"))
    with pytest.raises(LaunchError):
        await start(launcher, order())
    assert (left(scratch), list(await launcher.list())) == ([], [])


def test_repr_of_an_order_hides_its_environment() -> None:
    assert "hush" not in repr(order(TOKEN="hush"))
