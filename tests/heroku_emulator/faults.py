"""Faults that are made on purpose: what goes wrong, where, and how often.

A fault is written as a word:

- `429`, `500`, `503`, any status from 400 on: answered so, and nothing was done; `500-after`: it
  was done all the same.
- `timeout-before`, `timeout-after`: no answer while the client waits; nothing was done, or it was.
- `reset-before`, `reset-after`: the connection is reset instead of an answer.
- of `create` alone, `never-dials`: the dyno's process is a `sleep`; `dies:SECONDS`: the dyno gets
  SIGKILL so long after its process was started.
"""

from __future__ import annotations

import random
import re
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

_WORD = re.compile(
    r"(?P<status>[45]\d\d)(?P<late>-after)?"
    r"|(?P<wire>timeout|reset)-(?P<when>before|after)"
    r"|(?P<asleep>never-dials)"
    r"|dies:(?P<dies>\d+(\.\d+)?)"
)

QUEUED = 10_000
"""Faults that may wait for an operation."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, as its word says it.

    Attributes:
        act: what happens instead of the answer, if anything does.
        late: after the effect rather than before it.
        asleep: the dyno does nothing.
        dies_after: seconds that the dyno's process has.
    """

    word: str
    act: Literal["status", "timeout", "reset"] | None = None
    status: int = 0
    late: bool = False
    asleep: bool = False
    dies_after: float | None = None

    @staticmethod
    def read(word: str) -> Fault:
        """Return the fault of a word.

        Raises:
            ValueError: there is no such word.
        """
        match = _WORD.fullmatch(word)
        if match is None:
            raise ValueError(f"no such fault: {word!r}")
        found = match.groupdict()
        if found["status"]:
            return Fault(word, "status", int(found["status"]), late=found["late"] is not None)
        if found["wire"]:
            act: Literal["timeout", "reset"] = "timeout" if found["wire"] == "timeout" else "reset"
            return Fault(word, act, late=found["when"] == "after")
        dies = found["dies"]
        return Fault(word, asleep=dies is None, dies_after=None if dies is None else float(dies))


class Faults:
    """What the next requests meet, by operation (`create`, `list`, `info`, `stop`, ...).

    Attributes:
        injected: how often each fault was met, by operation and word.
    """

    def __init__(self, operations: frozenset[str]) -> None:
        self._operations = operations
        self._queued: dict[str, deque[Fault]] = {}
        self._rates: dict[str, list[tuple[Fault, float]]] = {}
        self._chance = random.Random(0)  # noqa: S311 - repeatable, not secret
        self.injected: Counter[tuple[str, str]] = Counter()

    def push(self, operation: str, *words: str) -> None:
        """Let the next requests of this operation meet these faults, in order, one each.

        Raises:
            ValueError: there is no such operation or fault, or too many wait.
        """
        queue = self._queued.setdefault(self._known(operation), deque())
        queue.extend(self._of(operation, word) for word in words)
        if len(queue) > QUEUED:
            raise ValueError(f"more than {QUEUED} faults for {operation}")

    def plan(self, seed: int, rates: Mapping[str, Mapping[str, float]]) -> None:
        """From now on let requests meet faults by chance: by operation, probability of each word.

        Repeatable for a seed as far as the order of the requests is. Replaces the last plan.

        Raises:
            ValueError: there is no such operation or fault, or probabilities exceed 1.
        """
        if any(sum(words.values()) > 1 for words in rates.values()):
            raise ValueError("the probabilities of an operation's faults exceed 1")
        self._rates = {
            self._known(operation): [(self._of(operation, w), p) for w, p in words.items()]
            for operation, words in rates.items()
        }
        self._chance.seed(seed)

    def clear(self) -> None:
        """Let nothing go wrong any more; what was injected stays counted."""
        self._queued.clear()
        self._rates.clear()

    def next(self, operation: str) -> Fault | None:
        """Return what the request that just came in meets."""
        fault = self._queued_for(operation) or self._drawn(operation)
        if fault is not None:
            self.injected[operation, fault.word] += 1
        return fault

    def _queued_for(self, operation: str) -> Fault | None:
        queue = self._queued.get(operation)
        return queue.popleft() if queue else None

    def _drawn(self, operation: str) -> Fault | None:
        rates = self._rates.get(operation)
        if not rates:
            return None
        drawn = self._chance.random()
        for fault, probability in rates:
            if drawn < probability:
                return fault
            drawn -= probability
        return None

    def _known(self, operation: str) -> str:
        if operation not in self._operations:
            raise ValueError(f"no such operation: {operation!r}; {sorted(self._operations)}")
        return operation

    def _of(self, operation: str, word: str) -> Fault:
        fault = Fault.read(word)
        if fault.act is None and operation != "create":
            raise ValueError(f"{word} is a fault of create alone")
        return fault
