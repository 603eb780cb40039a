"""The result of running something, in the shape of Heroku's reference servers."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mcp_servers.processes import Beat, Finished

TIMED_OUT = -2
"""The return code Heroku's reference servers give for a time-out; no process ends with it here."""


@dataclass(frozen=True, slots=True)
class Execution:
    """What a call returns; the shape is the reference servers'.

    Attributes:
        returncode: The exit status, 128 + n after signal n, or `TIMED_OUT`.
        stdout: What was printed, without white space around it.
        stderr: Likewise, with a last line of ours if a limit was met; or why nothing was run.
    """

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a run may use, and which environment variables say so.

    Attributes:
        seconds: How long it may run.
        seconds_by: The variable.
        memory_bytes: How much it may have resident; None if there is no limit.
        memory_by: The variable.
    """

    seconds: float
    seconds_by: str
    memory_bytes: int | None
    memory_by: str


def executed(finished: Finished, what: str, allowance: Allowance) -> Execution:
    """Tell how a run ended; `what` ran begins the sentence on a limit that was met."""
    returncode, stderr = finished.returncode, finished.stderr.strip()
    if finished.timed_out:
        returncode = TIMED_OUT
        stderr += (
            f"\nError: {what} timed out after {allowance.seconds:g} s;"
            f" the limit is set by {allowance.seconds_by}."
        )
    elif finished.out_of_memory:
        returncode = 128 + signal.SIGKILL  # also if it ended by itself at that very moment
        stderr += (
            f"\nError: {what} was killed: it had more than {allowance.memory_bytes} bytes of"
            f" memory; the limit is set by {allowance.memory_by}."
        )
    return Execution(returncode=returncode, stdout=finished.stdout.strip(), stderr=stderr.lstrip())


async def tell_beat(what: str, tell: Callable[[str], Awaitable[None]], beat: Beat) -> None:
    """Tell what goes on, since when, and what came of it so far."""
    await tell(f"{what} for {beat.seconds:.0f} s, {beat.output_bytes} bytes of output")
