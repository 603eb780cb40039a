"""Real processes: how a child is started, what passes through its pipes, and how it is ended."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import psutil
import pytest

from dyno_agent.child import STDERR_TAIL_BYTES, Child, ExitReport, SpawnFailed
from dyno_agent.link import ChildSpec
from dyno_agent.stdio import Oversized

LIMIT = 2 * 1024 * 1024
PATIENCE_S = 10
ENVIRONMENT = {"PATH": os.environ["PATH"]}

READY = """
import signal, subprocess, sys, time
word = "ready"
say = lambda text: print(text, flush=True)
"""
ECHO = """
for line in sys.stdin.buffer:
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()
"""
LEAVES_ON_EOF = "say(word); sys.stdin.read(); sys.exit(3)"
LEAVES_ON_SIGTERM = "say(word); time.sleep(600)"
NEVER_LEAVES = "signal.signal(signal.SIGTERM, signal.SIG_IGN); say(word); time.sleep(600)"
GRANDCHILD = """
other = subprocess.Popen([sys.executable, "-ISc", "import time; time.sleep(60)"], **HOW)
word = other.pid
"""

Spawn = Callable[[str], Awaitable[Child]]


@pytest.fixture
async def spawn() -> AsyncIterator[Spawn]:
    """Start Python children; leave no process and no pipe behind."""
    children: list[Child] = []

    async def start(code: str) -> Child:
        child = await Child.spawn(ChildSpec((sys.executable, "-ISc", READY + code)), ENVIRONMENT)
        children.append(child)
        return child

    yield start
    for child in children:
        child._signal_group(signal.SIGKILL)
        await let_go(child)


async def let_go(child: Child) -> None:
    """Close the pipes whatever is still in them, and let the loop see that they are closed."""
    if not child._stdin.transport.is_closing():
        child._stdin.transport.abort()
    child.close()
    await exited(child)
    await asyncio.sleep(0)


@pytest.fixture
def stray() -> Iterator[list[int]]:
    """Process ids that left their group and must be ended by the test."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGKILL)


async def next_line(child: Child) -> bytes:
    async with asyncio.timeout(PATIENCE_S):
        lines = await anext(child.messages(LIMIT))
    assert isinstance(lines[0], bytes)
    return lines[0]


async def all_lines(child: Child) -> list[bytes | Oversized]:
    async with asyncio.timeout(PATIENCE_S):
        return [line async for lines in child.messages(LIMIT) for line in lines]


async def stderr_of(child: Child) -> list[str]:
    async with asyncio.timeout(PATIENCE_S):
        return [line async for line in child.stderr_lines()]


async def exited(child: Child) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await child.wait()


async def end(child: Child, grace_s: float) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await child.end(grace_s)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def until_dead(pid: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while alive(pid):  # noqa: ASYNC110 - the kernel tells its parent alone
            await asyncio.sleep(0.01)


def outcome(report: ExitReport) -> tuple[int | None, str | None, bool, int]:
    return report.code, report.signal, report.asked, report.status


# Start


async def test_command_that_does_not_exist_is_named() -> None:
    with pytest.raises(SpawnFailed) as failure:
        await Child.spawn(ChildSpec(("no-such-server", "-y")), ENVIRONMENT)
    assert str(failure.value) == (
        "command not found: no-such-server (is it installed in the dyno, and on its PATH?)"
    )


async def test_command_that_is_not_executable_is_named(tmp_path: Path) -> None:
    plain = tmp_path / "server"
    plain.write_text("#!/bin/sh\n", encoding="utf-8")
    with pytest.raises(SpawnFailed) as failure:
        await Child.spawn(ChildSpec((str(plain),)), ENVIRONMENT)
    assert str(failure.value) == f"command is not executable: {plain}"


async def test_working_directory_that_does_not_exist_is_named(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    with pytest.raises(SpawnFailed) as failure:
        await Child.spawn(ChildSpec((sys.executable,), cwd=gone), ENVIRONMENT)
    assert str(failure.value) == f"working directory not found: {gone}"


@pytest.mark.parametrize(
    "argv", [("bad\0name",), (sys.executable, "bad\0argument"), ("/dev/null/x",)]
)
async def test_command_that_cannot_be_started_is_a_spawn_failure(argv: tuple[str, ...]) -> None:
    with pytest.raises(SpawnFailed):
        await Child.spawn(ChildSpec(argv), ENVIRONMENT)


async def test_empty_command_is_a_spawn_failure() -> None:
    with pytest.raises(SpawnFailed):
        await Child.spawn(ChildSpec(()), ENVIRONMENT)


async def test_child_gets_its_arguments_environment_and_directory(tmp_path: Path) -> None:
    code = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]))"
    spec = ChildSpec((sys.executable, "-ISc", code, "a b", "$HOME"), {"KEY": "spec"}, str(tmp_path))
    async with asyncio.timeout(PATIENCE_S):
        child = await Child.spawn(spec, {"KEY": "dyno", "LC_ALL": "C.UTF-8", "KEPT": "x"})
        argv, environment, cwd = json.loads(await next_line(child))
        await end(child, PATIENCE_S)
        await let_go(child)
    assert argv == ["a b", "$HOME"]
    assert environment == {"KEY": "spec", "LC_ALL": "C.UTF-8", "KEPT": "x"}
    assert cwd == str(tmp_path)


async def test_child_leads_a_process_group_of_its_own(spawn: Spawn) -> None:
    child = await spawn(LEAVES_ON_EOF)
    assert os.getpgid(child.pid) == child.pid != os.getpgid(0)


# Pipes


@pytest.mark.parametrize(
    "message",
    [b"{}", b'{"a": "\xe2\x80\xa8"}', bytes(range(33, 256)), b"x" * 1024 * 1024],
    ids=["small", "line separator", "every byte", "1 MiB"],
)
async def test_message_passes_byte_for_byte(spawn: Spawn, message: bytes) -> None:
    child = await spawn(ECHO)
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(next_line(child))
        assert await child.write(message)
    assert answer.result() == message


async def test_messages_keep_their_order_and_their_borders(spawn: Spawn) -> None:
    child = await spawn(ECHO)
    messages: list[bytes | Oversized] = [b"%d" % number * 50 for number in range(500)]

    async def write() -> None:
        for message in messages:
            assert isinstance(message, bytes)
            await child.write(message)
        await end(child, PATIENCE_S)

    async with asyncio.TaskGroup() as tasks:
        lines = tasks.create_task(all_lines(child))
        tasks.create_task(write())
    assert lines.result() == messages


async def test_write_tells_when_the_child_no_longer_reads(spawn: Spawn) -> None:
    child = await spawn("import os; os.close(0); say('closed'); time.sleep(600)")
    await next_line(child)
    async with asyncio.timeout(PATIENCE_S):
        while await child.write(bytes(100_000)):
            pass
        assert not await child.write(b"{}")


async def test_oversized_line_is_told_and_the_next_one_passes(spawn: Spawn) -> None:
    child = await spawn(f"say('x' * {LIMIT + 1}); say('next')")
    assert await all_lines(child) == [Oversized(LIMIT + 1), b"next"]


async def test_stderr_comes_line_by_line_with_bad_bytes_escaped(spawn: Spawn) -> None:
    child = await spawn(r"sys.stderr.buffer.write(b'one\n\xff two\n' + b'x' * 20000 + b'\nend')")
    assert await stderr_of(child) == [
        "one",
        "\\xff two",
        "[a line of 20000 bytes was left out]",
        "end",
    ]


async def test_report_holds_the_tail_of_stderr(spawn: Spawn) -> None:
    child = await spawn("[print(i, file=sys.stderr) for i in range(5000)]")
    await stderr_of(child)
    await exited(child)
    everything = "".join(f"{number}\n" for number in range(5000))
    assert child.report().stderr_tail == everything[-STDERR_TAIL_BYTES:]


# End


@pytest.mark.parametrize("code", [0, 7, 255])
async def test_child_that_leaves_by_itself_is_reported_by_its_code(spawn: Spawn, code: int) -> None:
    child = await spawn(f"sys.exit({code})")
    await exited(child)
    assert outcome(child.report()) == (code, None, False, code)


async def test_child_that_dies_by_itself_is_reported_by_its_signal(spawn: Spawn) -> None:
    child = await spawn("import os; os.kill(os.getpid(), signal.SIGSEGV)")
    await exited(child)
    assert outcome(child.report()) == (None, "SIGSEGV", False, 139)


async def test_ending_a_child_that_already_left_asks_nothing_of_it(spawn: Spawn) -> None:
    child = await spawn("sys.exit(5)")
    await exited(child)
    await end(child, PATIENCE_S)
    assert outcome(child.report()) == (5, None, False, 5)


LADDER = {
    "end of input": (LEAVES_ON_EOF, 20.0, (3, None, True, 3)),
    "SIGTERM": (LEAVES_ON_SIGTERM, 1.0, (None, "SIGTERM", True, 143)),
    "SIGKILL": (NEVER_LEAVES, 0.2, (None, "SIGKILL", True, 137)),
}


@pytest.mark.parametrize(("code", "grace_s", "expected"), LADDER.values(), ids=LADDER)
async def test_child_is_ended_by_the_mildest_means_that_works(
    spawn: Spawn, code: str, grace_s: float, expected: tuple[int | None, str | None, bool, int]
) -> None:
    child = await spawn(code)
    assert await next_line(child) == b"ready"
    await end(child, grace_s)
    assert outcome(child.report()) == expected


@pytest.mark.parametrize("code", [LEAVES_ON_EOF, NEVER_LEAVES], ids=["mild", "stubborn"])
async def test_grandchild_in_the_group_is_ended_with_the_child(spawn: Spawn, code: str) -> None:
    how = "dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)"
    child = await spawn(GRANDCHILD.replace("**HOW", f"**{how}") + code)
    pid = int(await next_line(child))
    await end(child, 0.2)
    await until_dead(pid)
    await until_dead(child.pid)


DETACHED = GRANDCHILD.replace("**HOW", "start_new_session=True")


@pytest.mark.parametrize("code", [LEAVES_ON_EOF, NEVER_LEAVES], ids=["mild", "stubborn"])
async def test_grandchild_that_holds_stdout_does_not_block_the_end(
    spawn: Spawn, stray: list[int], code: str
) -> None:
    child = await spawn(DETACHED + code)
    stray.append(int(await next_line(child)))
    await end(child, 0.2)
    await until_dead(child.pid)


async def test_grandchild_that_holds_stdout_does_not_hide_the_exit(
    spawn: Spawn, stray: list[int]
) -> None:
    child = await spawn(DETACHED + "say(word); sys.exit(4)")
    stray.append(int(await next_line(child)))
    await exited(child)
    assert outcome(child.report()) == (4, None, False, 4)


async def test_stdout_that_nobody_reads_does_not_block_the_end(spawn: Spawn) -> None:
    child = await spawn("say('ready')\nwhile True: say('x' * 65536)")
    assert await next_line(child) == b"ready"
    await end(child, 0.2)
    await until_dead(child.pid)
