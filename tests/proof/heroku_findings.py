"""What a phase of the Heroku proof finds, and how books are compared with the platform."""

from __future__ import annotations

import signal
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.proof.heroku_ledger import Balance, Books, Gateway, Lived, balance
from tests.proof.heroku_stage import launch_of
from tests.proof.outfit import until

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence

    from tests.proof.heroku_stage import Stage

ERROR_S = 1.0
"""What the ledger may be wrong by, for any dyno."""

UNBILLED, UNBILLED_SHARE = 5, 0.1
"""Dynos that may go unbilled, as every gateway that knew of them was killed: so many, or such a
share, whichever is more."""

BILLED_S = 30.0
"""Until the closing lines of dynos that have ended are written."""

STOP_SLACK_S = 10.0
"""Until the dynos have ended that a gateway stopped when it went."""


@dataclass(slots=True)
class Findings:
    """What a phase found.

    Attributes:
        figures: measured, for the table.
        broken: promises.
        faults: that were made, of all kinds.
        left: dynos in the end.
        error_s: of the ledger, at its worst.
        worst: where that is.
        lost: calls without an answer or a word.
        cuts: of the router.
    """

    figures: list[tuple[str, str]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    faults: int = 0
    left: int = 0
    error_s: float = 0.0
    worst: str = ""
    lost: int = 0
    cuts: int = 0

    def add(self, other: Findings) -> None:
        """Add another phase's."""
        self.figures += other.figures
        self.broken += other.broken
        self.faults += other.faults
        self.left += other.left
        if other.error_s > self.error_s:
            self.error_s, self.worst = other.error_s, other.worst
        self.lost += other.lost
        self.cuts += other.cuts


async def wind_up(stage: Stage, found: Findings, within_s: float) -> None:
    """Wait until all is gone and paid, end the gateway, and compare.

    Args:
        stage: nobody uses it any more.
        found: gets what is wrong.
        within_s: from now on until nothing but the pool runs.
    """
    left = await stage.emptied(within_s)
    await until(lambda: not compare(stage).broken, BILLED_S)
    stage.heroku.faults.clear()  # no other gateway comes that could finish what this one cannot
    await stage.end(signal.SIGTERM)
    await until(lambda: not stage.heroku.dynos_left(), STOP_SLACK_S)
    left += [dyno for dyno in stage.heroku.dynos_left() if dyno not in left]
    found.left = len(left)
    for dyno in left:
        story = "\n      ".join(stage.story(launch_of(dyno)))
        found.broken.append(f"{dyno.name} ({dyno.state}) was left: \n      {story}")
    sums = compare(stage)
    found.error_s, found.worst = sums.error_s, sums.worst
    found.broken += sums.broken
    if len(sums.unbilled) > max(UNBILLED, UNBILLED_SHARE * sums.dynos):
        found.broken.append(f"{len(sums.unbilled)} of {sums.dynos} dynos were never billed")
    typical = f"{statistics.median(sums.errors or [0.0]):.3f} s"
    found.figures += [
        ("dynos, all ended", str(sums.dynos)),
        ("ledger error p50, max", f"{typical}, {sums.error_s:.3f} s"),
        ("unbilled, all gateways that knew of it killed", str(len(sums.unbilled))),
        *(("", line) for line in sums.unbilled),
        ("told by each of two gateways that overlapped", str(len(sums.twice))),
        *(("", line) for line in sums.twice),
        ("unheard, nobody's dynos that ended while no gateway listened", str(len(sums.unheard))),
        *(("", line) for line in sums.unheard),
    ]
    found.broken += [f"the gateway did not end well: {how}" for how in stage.bad_ends]
    found.broken += [f"a request is not as published: {each}" for each in stage.heroku.violations]


def compare(stage: Stage) -> Balance:
    """Compare a stage's books with its platform's clock."""
    lists = [
        seen.at.wall
        for seen in stage.heroku.requests
        if seen.operation == "list" and seen.status in (200, 206)
    ]
    gateways = [
        Gateway(
            life.started,
            life.ended or float("inf"),
            life.how == "killed",
            (life.hears_from, life.hears_until),
            tuple(at for at in lists if life.answers_for(at)),
        )
        for life in stage.gateways
    ]
    dynos = [
        Lived(launch_of(dyno), dyno.name, dyno.created.wall, dyno.ended.wall, str(dyno.cause))
        for dyno in stage.heroku.ledger
        if dyno.ended is not None
    ]
    return balance(Books(stage.records()), dynos, gateways)


def counted(counts: Counter[str]) -> str:
    """Return counts in words, the largest first."""
    return ", ".join(f"{number} {what}" for what, number in counts.most_common()) or "none"


def spread(values: Sequence[float]) -> str:
    """Return the median and the 95th percentile in words."""
    if not values:
        return "none"
    ordered = sorted(values)
    return f"{statistics.median(ordered):.2f} s, {ordered[int(0.95 * (len(ordered) - 1))]:.2f} s"
