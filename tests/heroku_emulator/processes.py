"""The processes of a dyno: how they are started, found and ended.

A dyno is all that is in its leader's session, carries the dyno's home in its environment or works
there, and all that descends from those; so a process that left its parent and its session is still
found. Linux only: it reads /proc.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import time
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

SWEEPS = 200
"""Times that the remains of a dyno are looked for and killed; each round outlives one fork."""

SWEEP_PAUSE_S = 0.01
"""Between two of them: a killed process takes a moment to go."""

_WITH_PROFILE = 'set -a; for f in .profile.d/*.sh .profile; do [ -f "$f" ] && . "./$f"; done; '


def make_home(root: Path, slug: Path | None) -> Path:
    """Make the folder of a new dyno below `root`: a copy of the slug."""
    home = Path(mkdtemp(prefix="dyno-", dir=root))
    if slug is not None:
        shutil.copytree(slug, home, symlinks=True, dirs_exist_ok=True)
    return home


def remove_home(home: Path) -> None:
    """Remove the folder of a dyno that has ended."""
    shutil.rmtree(home, ignore_errors=True)


@contextlib.asynccontextmanager
async def output() -> AsyncIterator[tuple[asyncio.StreamReader, int]]:
    """Make what a dyno writes to: its end for us, and the one for `start`.

    It is not the subprocess's own pipe, as asyncio takes a process that has exited for running
    while others hold such a pipe open.
    """
    ours, theirs = os.pipe()
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(ours, "rb")
    )
    try:
        yield reader, theirs
    finally:
        transport.close()


async def start(
    command: str, home: Path, env: Mapping[str, str], stdout: int
) -> asyncio.subprocess.Process:
    """Start a dyno's leader: bash, in its own session, with this environment and nothing else.

    `stdout` is closed.
    """
    profile = (home / ".profile").is_file() or (home / ".profile.d").is_dir()
    line = [_WITH_PROFILE + 'set +a; exec bash -c "$0"', command] if profile else [command]
    try:
        return await asyncio.create_subprocess_exec(
            "bash",
            "-c",
            *line,
            cwd=home,
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=stdout,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    finally:
        os.close(stdout)


def signal_all(leader: int, home: Path, number: signal.Signals) -> None:
    """Send a signal to every process of a dyno, once.

    The leader comes first: it must not see the others go, and exit with a status of its own.
    """
    for pid in sorted(members(leader, home), key=lambda pid: pid != leader):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def kill_remains(leader: int, home: Path) -> None:
    """SIGKILL what there is of a dyno until nothing is left.

    Raises:
        RuntimeError: something does not go.
    """
    for _ in range(SWEEPS):
        if not members(leader, home):
            return
        signal_all(leader, home, signal.SIGKILL)
        time.sleep(SWEEP_PAUSE_S)
    raise RuntimeError(f"processes of a dyno do not go: {sorted(members(leader, home))}")


def members(leader: int, home: Path) -> set[int]:
    """Return the ids of a dyno's living processes; its leader may be gone."""
    marker, inside = os.fsencode(home), set[int]()
    _, _, _, born = _stat(os.getpid())
    parents: dict[int, int] = {}
    for pid in (int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()):
        try:
            state, parent, session, start = _stat(pid)
        except OSError:  # gone meanwhile
            continue
        if state == b"Z" or start < born:  # older than the emulator: nobody's dyno
            continue
        parents[pid] = parent
        if session == leader or _carries(pid, marker):
            inside.add(pid)
    while more := {pid for pid, parent in parents.items() if parent in inside} - inside:
        inside |= more
    return inside - {os.getpid()}


def _stat(pid: int) -> tuple[bytes, int, int, int]:
    """Return state, parent, session and time of start; proc(5) counts them from behind a name."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return fields[0], int(fields[1]), int(fields[3]), int(fields[19])


def _carries(pid: int, marker: bytes) -> bool:
    with contextlib.suppress(OSError):  # gone, another user's, or made itself unreadable
        if marker in Path(f"/proc/{pid}/environ").read_bytes():
            return True
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/cwd").encode().startswith(marker)  # noqa: PTH115 - hot
    return False
