"""Shows on stderr that something goes on: a spinner with the phase, or a bar where there is an end.

Where nobody looks, each phase is a line of text instead.
"""

import math
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

from gateway.cli import output

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

BAR = 20
"""Characters of a bar."""

PHASE = 120
"""Characters of a phase; it is the server's own text."""


class Waiting:
    """Use it as a context manager around what takes long.

    Args:
        phase: what happens first.
    """

    def __init__(self, phase: str) -> None:
        self._phase = phase
        self._drawn: tuple[Progress, TaskID] | None = None

    def __enter__(self) -> Self:
        """Begin to show."""
        if not output.on_terminal(sys.stderr):
            return self
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        shown = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TextColumn("{task.fields[bar]}", markup=False),
            TimeElapsedColumn(),
            console=output.console(stderr=True),
            transient=True,
        )
        self._drawn = shown, shown.add_task(self._phase, total=None, bar="")
        shown.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take it away, so that what is printed next begins on an empty line."""
        if self._drawn is not None:
            self._drawn[0].stop()

    async def report(self, progress: float, total: float | None, message: str | None) -> None:
        """Show how far it is; the SDK calls this for each progress notification.

        Args:
            progress: how much is done, in a unit of the server's choice.
            total: how much there is; None if nobody knows.
            message: what happens.
        """
        phase = output.cut(message, PHASE) if message else self._phase
        if self._drawn is not None:
            shown, task = self._drawn
            shown.update(task, description=phase, bar=drawn(progress, total))
        elif phase != self._phase:
            output.note(f"… {phase}")
        self._phase = phase


def drawn(progress: float, total: float | None) -> str:
    """Return how far it is, drawn; empty where there is no end in sight."""
    if not total or not math.isfinite(total) or not math.isfinite(progress):
        return ""
    share = min(1.0, max(0.0, progress / total))
    done = round(share * BAR)
    return f"{'━' * done}{'╌' * (BAR - done)} {share:.0%}"
