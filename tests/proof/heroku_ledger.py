"""Compares what gateways have written down of each dyno with the platform's own clock. Pure.

A dyno's seconds are in one closing line: of the session that had it (`closed`), of the pool
(`dyno_unparked`), or of whoever found it (`orphan_gone`). A session that adopted a parked dyno
pays from the adoption on.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

WRITTEN_S = 45.0
"""How long a gateway may take to write the line of a dyno that has ended: two attempts to stop it
that are not answered."""

NEWS_S = 1.0
"""How long the platform takes to tell of an end."""

_KNOWN = re.compile(r"[0-9a-f]{24}")


@dataclass(frozen=True, slots=True)
class Lived:
    """What the platform knows of one dyno. Moments are wall-clock seconds.

    Attributes:
        name: the platform's.
        why: it ended, for people.
    """

    launch: str
    name: str
    created: float
    ended: float
    why: str


@dataclass(frozen=True, slots=True)
class Gateway:
    """The life of one gateway process. Moments are wall-clock seconds.

    Attributes:
        hears: from when to when it listens to the platform and to agents.
        lists: when the platform told it which dynos run.
    """

    started: float
    ended: float
    killed: bool
    hears: tuple[float, float]
    lists: tuple[float, ...]


Line = tuple[int, float, bool]


@dataclass(slots=True)
class Balance:
    """What came out.

    Attributes:
        dynos: that there were.
        error_s: the largest difference of any.
        worst: which it was.
        errors: all differences, seconds.
        twice: told alike by two processes that overlapped.
        unheard: of dynos without an owner that ended while no gateway listened, which the next
            list showed: how much was billed too much. They are not among the errors.
        unbilled: of dynos that only processes knew which were killed, or had handed the session
            over to the next: why nobody wrote a line.
        broken: promises.
    """

    dynos: int = 0
    error_s: float = 0.0
    worst: str = ""
    errors: list[float] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    unheard: list[str] = field(default_factory=list)
    unbilled: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


class Books:
    """The closing lines of all processes, by launch.

    Args:
        records: of the log, in order; `at` is the moment of each.

    Attributes:
        lines: the seconds in them, each with the number of the process that wrote it, and whether
            it took the dyno for nobody's.
        handed_over: which processes left the session of a launch to the next one, and when.
        orphans: launches that were billed as nobody's.
        adopted: when a session took a dyno from the pool.
        seen: when anything was written about a launch.
    """

    def __init__(self, records: Sequence[dict[str, Any]]) -> None:
        self.lines: defaultdict[str, list[Line]] = defaultdict(list)
        self.handed_over: dict[str, tuple[int, float]] = {}
        self.orphans: set[str] = set()
        self.adopted: dict[str, float] = {}
        self.seen: defaultdict[str, list[float]] = defaultdict(list)
        launches: dict[str, str] = {}
        for record in records:
            event, launch = record["event"], record.get("launch", "")
            if launch:
                self.seen[launch].append(record["at"])
            if launch and "session" in record:
                launches[record["session"]] = launch
            if event == "adopted":
                self.adopted[launch] = record["at"]
            elif event == "handed_over":
                owner = launches.get(record["session"], "")
                self.handed_over[owner] = (record["gateway"], record["at"])
            elif event == "closed":
                self._line(launches.get(record["session"], ""), record)
            elif event in ("dyno_unparked", "orphan_gone"):
                self._line(launch, record)
                if event == "orphan_gone":
                    self.orphans.add(launch)

    def _line(self, launch: str, record: dict[str, Any]) -> None:
        if launch:
            line = record["gateway"], float(record["dyno_s"]), record["event"] == "orphan_gone"
            self.lines[launch].append(line)


def balance(books: Books, dynos: Sequence[Lived], gateways: Sequence[Gateway]) -> Balance:
    """Compare. Every dyno has ended, and whoever could write a line has."""
    sums = Balance(dynos=len(dynos))
    launches = {dyno.launch for dyno in dynos}
    for dyno in dynos:
        if sum(other.launch == dyno.launch for other in dynos) > 1:
            sums.broken.append(f"launch {dyno.launch} made more than one dyno: {dyno.name}")
        lines = books.lines.get(dyno.launch, [])
        if not lines:
            _unbilled(sums, books, dyno, gateways)
            continue
        lines = _told_once(sums, dyno.launch, lines)
        began = books.adopted.get(dyno.launch, dyno.created)
        lived = max(0.0, dyno.ended - began)
        told = any(_heard(gateway, dyno.ended) for gateway in gateways)
        if dyno.launch in books.orphans and not told:
            sums.unheard.append(
                f"launch {dyno.launch}: {sum(seconds for _, seconds, _ in lines) - lived:+.1f} s"
            )
            continue
        _differ(sums, dyno.launch, sum(seconds for _, seconds, _ in lines), lived)
    for launch, lines in books.lines.items():
        if launch not in launches:
            _differ(sums, launch, sum(seconds for _, seconds, _ in lines), 0.0)
    return sums


def _told_once(sums: Balance, launch: str, lines: list[Line]) -> list[Line]:
    """Return the lines without what a second process wrote of what another was just closing.

    While two overlap, as at a deploy, the new one cannot know what the old one is about to write;
    the line of the owner is the one that counts (docs/logs.md).
    """
    paid = [line for line in lines if line[1] > 0]
    owners = [line for line in paid if not line[2]]
    writers = {line[0] for line in paid}
    if len(paid) == 2 and len(writers) == 2 and len(owners) <= 1:
        alike = abs(paid[0][1] - paid[1][1]) <= NEWS_S
        if owners or alike:
            sums.twice.append(f"launch {launch}: {paid}")
            return owners or paid[:1]
    if len(paid) > 1:
        sums.broken.append(f"launch {launch} was billed more than once: {paid}")
    return lines


def _heard(gateway: Gateway, ended: float) -> bool:
    """Whether it was listening when the news of an end came."""
    begins, ends = gateway.hears
    return begins <= ended < ends - NEWS_S


def _differ(sums: Balance, launch: str, billed: float, lived: float) -> None:
    error = abs(billed - lived)
    sums.errors.append(error)
    if error > sums.error_s:
        sums.error_s = error
        sums.worst = f"launch {launch}: billed {billed:.3f} s, lived {lived:.3f} s"


def _unbilled(sums: Balance, books: Books, dyno: Lived, gateways: Sequence[Gateway]) -> None:
    """Say why there is no line; without a good reason a promise is broken."""

    def knew(gateway: Gateway) -> bool:
        begins, ends = gateway.hears  # one that drains leaves what it does not own to the next
        told = [dyno.created, *books.seen.get(dyno.launch, [])]
        listed = [at for at in gateway.lists if dyno.created < at < min(dyno.ended, ends)]
        return any(begins <= at < ends for at in told) or bool(listed)

    former, left = books.handed_over.get(dyno.launch, (-1, math.inf))
    orphaned = left <= dyno.ended and not any(_heard(each, dyno.ended) for each in gateways)
    survivors = [
        number
        for number, gateway in enumerate(gateways)
        if knew(gateway) and not gateway.killed and not (orphaned and number == former)
    ]
    what = f"launch {dyno.launch} ({dyno.name}, {dyno.ended - dyno.created:.1f} s, {dyno.why})"
    if survivors or not _KNOWN.fullmatch(dyno.launch):
        sums.broken.append(f"{what} was never billed, though gateway {survivors} knew of it")
        return
    last = max((gateway.ended for gateway in gateways if knew(gateway)), default=0.0)
    there = any(gateway.started <= dyno.ended < gateway.ended for gateway in gateways)
    if orphaned:
        why = "was handed over, and ended before the next gateway listened"
        sums.unbilled.append(f"{what} {why}")
        return
    if dyno.ended <= last - WRITTEN_S:
        sums.broken.append(f"{what} had ended {last - dyno.ended:.0f} s before its gateway did")
        return
    if dyno.ended <= last:
        why = f"had ended {last - dyno.ended:.1f} s before its gateway was killed"
    elif not there:
        why = "ended while no gateway ran"
    else:
        why = "ended before the next gateway had listed the dynos"
    sums.unbilled.append(f"{what} {why}")
