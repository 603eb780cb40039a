"""What the scale proof asks of a session, what came back, and what that proves. Pure.

A client writes down every call as it goes; the child at the far end keeps a journal of what it was
given. `judge` compares the two and counts what no client should ever see.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

Document = dict[str, Any]

MIB = 1024 * 1024

HUGE_BYTES = 16 * MIB - 4096
"""Text that with its envelope is just below the limit of a message."""

TEXT_BYTES = (0, 40, 400, 4_000, 40_000)
TEXT_SHARES = (30, 40, 20, 8, 2)
STEPS = (3, 12)
PAUSE_MS = (50, 400)
LONG = 0.02
"""This share of the calls takes seconds and tells its progress."""

TELLING = 0.1
"""This share has the child say something that belongs to no call, where that is listened to."""


class Way(Enum):
    """How a client speaks."""

    RESUMING = "2025-11-25"
    """Comes back for the rest of a stream with `Last-Event-ID`."""

    PLAIN = "2025-06-18"
    """Sends a request again, byte for byte, when it got no answer."""

    MODERN = "2026-07-28"
    """Names a handle; makes a new request, with a new id, when it got no answer."""


@dataclass(frozen=True, slots=True)
class Order:
    """What one call asks for. `text_bytes` come back as they went."""

    serial: int
    steps: int = 0
    pause_ms: int = 0
    text_bytes: int = 40
    tells: bool = False

    def text(self, owner: str) -> str:
        """Return text that no other call has."""
        word = f"{owner}/{self.serial} "
        return (word * (self.text_bytes // len(word) + 1))[: self.text_bytes]

    def arguments(self, owner: str, attempt: int) -> Document:
        """Return what the child is given."""
        given = {"owner": owner, "serial": self.serial, "attempt": attempt}
        given |= {"steps": self.steps, "pause_ms": self.pause_ms, "tells": self.tells}
        return {**given, "text": self.text(owner)}


def order_for(serial: int, chance: random.Random, *, heard: bool) -> Order:
    """Draw an everyday call; `heard` if the session listens to what belongs to no call."""
    if chance.random() < LONG:
        return Order(serial, chance.randint(*STEPS), chance.randint(*PAUSE_MS))
    size = chance.choices(TEXT_BYTES, TEXT_SHARES)[0]
    return Order(serial, text_bytes=size, tells=heard and chance.random() < TELLING)


@dataclass(slots=True)
class Call:
    """One call and everything that came for it.

    Attributes:
        order: what was asked.
        attempt: grows whenever it was asked again under a new id.
        answers: results that arrived, of all attempts.
        progress: of the present attempt, as it came: over all streams of a client that resumes, of
            the present stream of any other.
        strange: messages on its streams that are none of its own, and progress out of order.
        twice: progress that came again where it must not.
        missed: progress that a client which resumes did not get.
        retries: reasons to try again, with how often.
        failure: why no answer came in the end.
        seconds: until the answer.
    """

    order: Order
    attempt: int = 1
    answers: list[Document] = field(default_factory=list)
    progress: list[int] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    twice: int = 0
    missed: int = 0
    retries: Counter[str] = field(default_factory=Counter)
    failure: str = ""
    seconds: float = 0.0

    def heard(self, step: float) -> None:
        """Write down progress; what is below 1 is the gateway's, about the boot."""
        if step < 1:
            return
        last = self.progress[-1] if self.progress else 0
        if step in self.progress:
            self.twice += 1
        elif step < last or step != int(step):
            self.strange.append(f"progress {step} after {last}")
        self.progress.append(int(step))


@dataclass(slots=True)
class Diary:
    """What the client of one session has seen.

    Attributes:
        owner: the session's name, which its child says in every answer.
        way: how its client speaks.
        calls: that ended, in the order of asking; `running` are those that did not.
        told: numbers of what the child said that belongs to no call, as they came.
        strange: what came that was another session's.
        unknown: answers that say that there is no such session, word for word.
    """

    owner: str
    way: Way
    calls: list[Call] = field(default_factory=list)
    running: dict[int, Call] = field(default_factory=dict)
    told: list[int] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Verdict:
    """What was counted.

    Attributes:
        answered: calls with an answer.
        unknown: answers that deny a session that lives.
        wrong: answers that are not for their request, or of another session's or child's state.
        duplicated: answers and messages that came again, and calls that were executed again
            though they were sent again under the same id.
        lost: calls without an answer in the end, progress that never came to who resumes.
        untold: messages that belong to no call and never came.
        complaints: the same for people.
    """

    answered: int = 0
    unknown: int = 0
    wrong: int = 0
    duplicated: int = 0
    lost: int = 0
    untold: int = 0
    complaints: list[str] = field(default_factory=list)

    def add(self, other: Verdict) -> None:
        """Add another's counts."""
        self.answered += other.answered
        self.unknown += other.unknown
        self.wrong += other.wrong
        self.duplicated += other.duplicated
        self.lost += other.lost
        self.untold += other.untold
        self.complaints += other.complaints


def judge(diary: Diary, journal: Document | None) -> Verdict:
    """Compare what a client has seen with what its child has done.

    Args:
        diary: of the client.
        journal: the child's, see `scale_server`; None if nobody could get it.
    """
    verdict = Verdict(unknown=len(diary.unknown), wrong=len(diary.strange))
    complain = verdict.complaints.append
    for said in (*diary.unknown, *diary.strange):
        complain(f"{diary.owner}: {said}")
    calls = [*diary.calls, *diary.running.values()]
    for call in calls:
        _judge_call(diary, call, verdict)
    if journal is None:
        if any(call.answers for call in calls):
            verdict.lost += 1
            complain(f"{diary.owner}: its journal did not come")
        return verdict
    if any(call.answers for call in calls) and journal["owner"] != diary.owner:
        verdict.wrong += 1
        complain(f"{diary.owner}: its child belongs to {journal['owner']}")
    given = [(serial, attempt) for serial, attempt in journal["calls"]]
    _judge_executions(diary, calls, given, verdict)
    _judge_state(diary, calls, journal["child"], given, verdict)
    _judge_told(diary, journal["told"], verdict)
    return verdict


def _answers(calls: list[Call]) -> Iterator[tuple[Call, Document]]:
    return ((call, answer) for call in calls for answer in call.answers)


def _at(given: list[tuple[int, int]], count: object) -> tuple[int, int] | None:
    known = isinstance(count, int) and 1 <= count <= len(given)
    return given[count - 1] if known and isinstance(count, int) else None


def _judge_state(
    diary: Diary,
    calls: list[Call],
    child: str,
    given: list[tuple[int, int]],
    verdict: Verdict,
) -> None:
    """Hold every answer to the one journal there should be. A session has one child for life."""
    others: dict[object, int] = {}
    for call, answer in _answers(calls):
        if answer.get("child") != child:
            others.setdefault(answer.get("child"), call.order.serial)
        elif (answer.get("serial"), answer.get("attempt")) != _at(given, answer.get("count")):
            verdict.wrong += 1
            verdict.complaints.append(
                f"{diary.owner} call {call.order.serial}: its journal has no such {answer}"
            )
    verdict.wrong += len(others)
    if others:
        serials = ", ".join(map(str, others.values()))
        verdict.complaints.append(f"{diary.owner}: another child answered, first call {serials}")


def _judge_call(diary: Diary, call: Call, verdict: Verdict) -> None:
    name = f"{diary.owner} call {call.order.serial}"
    expected = {"owner": diary.owner, "serial": call.order.serial, "attempt": call.attempt}
    expected["text"] = call.order.text(diary.owner)
    said = []
    for answer in call.answers:
        differing = [key for key in expected if answer.get(key) != expected[key]]
        if differing:
            verdict.wrong += 1
            told = {key: str(answer.get(key))[:60] for key in differing}
            said.append(f"wrong {told}")
    if call.answers:
        verdict.answered += 1
    elif not diary.unknown:
        verdict.lost += 1
        said.append(f"no answer: {call.failure or 'it still ran'}")
    verdict.wrong += len(call.strange)
    said += call.strange
    again = max(0, len(call.answers) - 1) + call.twice
    if again:
        verdict.duplicated += again
        said.append(f"{len(call.answers)} answers, progress {call.progress}")
    if call.missed:
        verdict.lost += call.missed
        said.append(f"of {call.order.steps} steps it heard {call.progress}")
    if said:
        tries = ", ".join(f"{n} {why}" for why, n in call.retries.items())
        verdict.complaints.append(f"{name}: {'; '.join(said)} (tries: {tries or 'one'})")


def _judge_executions(
    diary: Diary, calls: list[Call], given: list[tuple[int, int]], verdict: Verdict
) -> None:
    most = {call.order.serial: call.attempt for call in calls}
    for (serial, attempt), times in Counter(given).items():
        if times > 1:
            verdict.duplicated += times - 1
            call = f"{diary.owner} call {serial}, attempt {attempt}"
            verdict.complaints.append(f"{call}: executed {times} times")
        if not 1 <= attempt <= most.get(serial, 0):
            verdict.wrong += 1
            verdict.complaints.append(f"{diary.owner}: executed {serial}, which nobody asked")


def _judge_told(diary: Diary, told: int, verdict: Verdict) -> None:
    again = len(diary.told) - len(set(diary.told))
    missing = sorted(set(range(1, told + 1)) - set(diary.told))
    invented = sorted(set(diary.told) - set(range(1, told + 1)))
    verdict.duplicated += again
    verdict.untold += len(missing)
    verdict.wrong += len(invented)
    if again or missing or invented:
        verdict.complaints.append(
            f"{diary.owner}: of 1 to {told} told, missing {missing[:20]}, {again} twice, "
            f"never said {invented[:20]}"
        )


def sizes(chance: random.Random, large: int) -> Iterator[int]:
    """Return the texts of the large calls of a phase, one of them as large as may be."""
    return itertools.chain([HUGE_BYTES], (MIB + chance.randrange(999) for _ in range(large)))
