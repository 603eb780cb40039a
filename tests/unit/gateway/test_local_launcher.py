"""Proves that a local dyno starts with nothing of the gateway's, and leaves nothing behind."""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.launchers.base import Dyno, LaunchError, LaunchOrder
from gateway.launchers.local import LocalLauncher

WAIT_S = 20.0
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


@pytest.fixture(scope="module", autouse=True)
def no_loop_but_the_tests() -> None:
    """Otherwise pytest-asyncio's first look for a loop makes one, and never closes it."""
    asyncio.set_event_loop(None)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the launcher makes its directories."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
async def launcher(scratch: Path) -> AsyncIterator[LocalLauncher]:
    made = LocalLauncher({**HARMLESS, **SECRETS})
    yield made
    async with asyncio.timeout(WAIT_S):
        await made.aclose()


def left(scratch: Path) -> list[Path]:
    return list(scratch.iterdir())


def order(launch_id: str = "launch", **environment: str) -> LaunchOrder:
    return LaunchOrder(launch_id, "everything", environment, None, 60.0)


async def start(launcher: LocalLauncher, order: LaunchOrder) -> Dyno:
    async with asyncio.timeout(WAIT_S):
        return await launcher.launch(order)


async def stop(launcher: LocalLauncher, dyno_id: str) -> None:
    async with asyncio.timeout(WAIT_S):
        await launcher.stop(dyno_id)


async def ended(launcher: LocalLauncher, dyno: Dyno) -> Dyno:
    async with asyncio.timeout(WAIT_S):
        await launcher._running[dyno.dyno_id].process.wait()
        (listed,) = await launcher.list()
    return listed


def exists(dyno: Dyno) -> bool:
    try:
        os.kill(int(dyno.dyno_id.removeprefix("local.")), 0)
    except ProcessLookupError:
        return False
    return True


async def test_agent_without_a_gateway_is_listed_with_its_status_and_last_words(
    launcher: LocalLauncher,
) -> None:
    dyno = await start(launcher, order())
    listed = await ended(launcher, dyno)
    assert (listed.dyno_id, listed.launch_id, listed.exit_status) == (dyno.dyno_id, "launch", 78)
    assert "RENDEZVOUS_URL" in listed.last_words


async def test_running_dyno_is_listed_without_a_status(launcher: LocalLauncher) -> None:
    dyno = await start(launcher, order(**WAITS))
    assert list(await launcher.list()) == [Dyno(dyno.dyno_id, "launch", None, "")]


async def test_each_dyno_has_its_own_name_and_scratch_directory(
    launcher: LocalLauncher, scratch: Path
) -> None:
    first, second = await start(launcher, order("one")), await start(launcher, order("two"))
    assert first.dyno_id != second.dyno_id
    assert [dyno.launch_id for dyno in await launcher.list()] == ["one", "two"]
    assert len(left(scratch)) == 2


async def test_stopped_dyno_leaves_no_process_no_directory_and_no_entry(
    launcher: LocalLauncher, scratch: Path
) -> None:
    dyno = await start(launcher, order(**WAITS))
    before = exists(dyno)
    await stop(launcher, dyno.dyno_id)
    assert (before, exists(dyno)) == (True, False)
    assert (left(scratch), list(await launcher.list())) == ([], [])


async def test_dyno_that_exited_by_itself_is_gone_after_its_stop(
    launcher: LocalLauncher, scratch: Path
) -> None:
    dyno = await start(launcher, order())
    await ended(launcher, dyno)
    await stop(launcher, dyno.dyno_id)
    assert (left(scratch), list(await launcher.list())) == ([], [])


async def test_unknown_dyno_can_be_stopped(launcher: LocalLauncher) -> None:
    dyno = await start(launcher, order(**WAITS))
    await stop(launcher, "local.0")
    assert [listed.exit_status for listed in await launcher.list()] == [None]
    assert exists(dyno)


async def test_dyno_can_be_stopped_twice_at_once(launcher: LocalLauncher, scratch: Path) -> None:
    dyno = await start(launcher, order(**WAITS))
    async with asyncio.TaskGroup() as tasks:
        for _ in range(2):
            tasks.create_task(stop(launcher, dyno.dyno_id))
    assert (exists(dyno), left(scratch)) == (False, [])


async def test_close_leaves_nothing(launcher: LocalLauncher, scratch: Path) -> None:
    dynos = [await start(launcher, order(name, **WAITS)) for name in ("one", "two")]
    async with asyncio.timeout(WAIT_S):
        await launcher.aclose()
    assert [exists(dyno) for dyno in dynos] == [False, False]
    assert (left(scratch), list(await launcher.list())) == ([], [])


@pytest.fixture
def printer(scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in for the interpreter that prints how it was started."""
    script = tmp_path_factory.mktemp("bin") / "python"
    script.write_text('#!/bin/sh\nenv\nprintf "ARG=%s\\n" "$@"\nprintf "CWD=%s\\n" "$PWD"\n')
    script.chmod(0o755)
    return script


async def test_no_secret_of_the_gateway_reaches_a_dyno(
    launcher: LocalLauncher, printer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(printer))
    listed = await ended(launcher, await start(launcher, order(MINE="mine")))
    words = listed.last_words.splitlines()
    assert "MINE=mine" in words
    assert [line for line in words if "hush" in line or line.partition("=")[0] in SECRETS] == []


async def test_order_is_in_the_environment_and_never_on_the_command_line(
    launcher: LocalLauncher, printer: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(printer))
    listed = await ended(launcher, await start(launcher, order(**WAITS)))
    words = listed.last_words.splitlines()
    (home,) = left(scratch)
    arguments = [line.removeprefix("ARG=") for line in words if line.startswith("ARG=")]
    assert arguments == ["-m", "dyno_agent", "--launch", "launch"]
    assert {f"HOME={home}", f"TMPDIR={home}", f"CWD={home}"} <= set(words)
    assert f"RENDEZVOUS_JOIN_TOKEN={WAITS['RENDEZVOUS_JOIN_TOKEN']}" in words


async def test_launch_that_failed_is_told_and_leaves_nothing(
    launcher: LocalLauncher, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(scratch / "no-such-python"))
    with pytest.raises(LaunchError):
        await start(launcher, order())
    assert (left(scratch), list(await launcher.list())) == ([], [])


def test_repr_of_an_order_hides_its_environment() -> None:
    assert "hush" not in repr(order(TOKEN="hush"))
