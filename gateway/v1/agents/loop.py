"""What happens next in an agent's run: answers and results in, steps out. Pure.

A run asks the model, runs the calls that its answer holds, asks again, and ends with an answer that
holds none. Whatever the model does wrong it is told as the result of its call, so that it may mend
it; bounds end what never ends. It knows neither the model's server nor sessions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec
from msgspec import Raw

ROUNDS: Final = 25
"""How often the model is asked in a run."""

CALLS_OF_ONE_ANSWER: Final = 16
"""Calls of one answer that are looked at; the model is told of the others that there were too
many."""

CONVERSATION_BYTES: Final = 16 * 1024 * 1024
"""What the model is sent at most: no model reads as much."""

RESULT_BYTES: Final = 64 * 1024
"""What of one result the model reads."""

MAX_ID: Final = 256
"""Characters of a call's id that are believed."""

_ARGUMENTS = msgspec.json.Decoder(dict[str, Raw])


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, as the model's server counts them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """A call that the model asks for.

    Attributes:
        id: names it in the conversation; unique in the run.
        name: of the tool, as the model knows it.
        arguments: a text that should be a JSON object.
    """

    id: str
    name: str
    arguments: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model has said.

    Attributes:
        content: to the user.
        calls: of tools.
        finish_reason: as its server says.
        usage: of this answer alone.
        refusal: what it says instead, if it refuses.
        model: that has answered, as its server says.
        fingerprint: likewise.
    """

    content: str | None = field(repr=False)
    calls: Sequence[Call] = ()
    finish_reason: str = "stop"
    usage: Usage = Usage()
    refusal: str | None = field(repr=False, default=None)
    model: str = ""
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the model, with these messages."""

    messages: Sequence[Raw] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell the client what the model has said.

    Attributes:
        answer: with ids that are unique.
        last: it is the run's answer.
    """

    answer: Answer
    last: bool


@dataclass(frozen=True, slots=True)
class Perform:
    """Run a call, and say with `Loop.returned` what came of it; all that are given at once.

    Attributes:
        call: what the model wants.
        arguments: what it gives, an object.
    """

    call: Call
    arguments: Mapping[str, Raw] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Refuse:
    """Tell the client that a call was not run; the model is told as well."""

    call: Call
    why: str


@dataclass(frozen=True, slots=True)
class Stop:
    """The run ends without an answer.

    Attributes:
        code: a stable word for programs.
        message: a sentence with the limit.
    """

    code: str
    message: str


Step = Ask | Tell | Perform | Refuse | Stop


class Loop:
    """One run.

    Args:
        messages: the conversation so far.
        tools: by the name that the model knows: how often each may be called, None for no limit.
        rounds: how often the model may be asked.
    """

    def __init__(
        self, messages: Sequence[Raw], tools: Mapping[str, int | None], rounds: int = ROUNDS
    ) -> None:
        self._messages = list(messages)
        self._bytes = sum(len(message) for message in messages)
        self._left = dict(tools)
        self._limits = dict(tools)
        self._rounds = rounds
        self._asked = 0
        self._ids: set[str] = set()
        self._open: dict[str, str | None] = {}

    def begin(self) -> list[Step]:
        """Return the first steps."""
        return [self._ask()]

    def answered(self, answer: Answer) -> list[Step]:
        """Take what the model has said; return what follows from it."""
        calls = tuple(self._identified(call) for call in answer.calls)
        told = Tell(replace(answer, calls=calls), last=not calls)
        if not calls:
            return [told]
        looked = [self._looked_at(number, call) for number, call in enumerate(calls)]
        self._add(_assistant(answer.content, looked))
        self._open = {
            each.call.id: each.why if isinstance(each, Refuse) else None for each in looked
        }
        return [told, *looked, *([] if self._running else self._on())]

    def returned(self, call_id: str, result: str) -> list[Step]:
        """Take what came of a call; return what follows: nothing while others of its answer run."""
        self._open[call_id] = result
        return [] if self._running else self._on()

    @property
    def _running(self) -> bool:
        return None in self._open.values()

    def _on(self) -> list[Step]:
        """Go on: every call of the last answer has a result."""
        for call_id, result in self._open.items():
            self._add({"role": "tool", "tool_call_id": call_id, "content": cut(result or "")})
        self._open.clear()
        return [self._ask()]

    def _ask(self) -> Step:
        if self._asked >= self._rounds:
            return Stop(
                "too_many_rounds",
                f"the model was asked {self._rounds} times in this run, which is the most, and "
                "wants to go on calling tools",
            )
        if self._bytes > CONVERSATION_BYTES:
            return Stop(
                "conversation_too_long",
                f"the conversation has over {CONVERSATION_BYTES} bytes by now, which is the most",
            )
        self._asked += 1
        return Ask(tuple(self._messages))

    def _identified(self, call: Call) -> Call:
        """Return a call with an id that no other of this run has."""
        known = call.id
        if not known or len(known) > MAX_ID:
            known = f"call_{len(self._ids) + 1}"
        while known in self._ids:
            known += "_"
        self._ids.add(known)
        return Call(known, call.name, call.arguments)

    def _looked_at(self, number: int, call: Call) -> Perform | Refuse:
        if number >= CALLS_OF_ONE_ANSWER:
            return Refuse(call, f"not run: one answer may hold {CALLS_OF_ONE_ANSWER} calls")
        if call.name not in self._left:
            known = ", ".join(self._limits) or "none at all"
            return Refuse(call, f"not run: there is no tool of this name; there are: {known}")
        try:
            arguments = _ARGUMENTS.decode(call.arguments.strip() or "{}")
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            return Refuse(call, f"not run: the arguments must be one JSON object ({error})")
        left = self._left[call.name]
        if left == 0:
            return Refuse(
                call,
                f"not run: this tool may be called {self._limits[call.name]} times in a run "
                "(max_calls), and was; answer with what there is",
            )
        if left is not None:
            self._left[call.name] = left - 1
        return Perform(call, arguments)

    def _add(self, message: Mapping[str, Any]) -> None:
        raw = Raw(msgspec.json.encode(message))
        self._bytes += len(raw)
        self._messages.append(raw)


def cut(text: str) -> str:
    """Return what the model reads of a result."""
    raw = text.encode(errors="replace")
    if len(raw) <= RESULT_BYTES:
        return raw.decode()
    kept = raw[:RESULT_BYTES].decode(errors="ignore")
    return f"{kept}\n[cut here: the first {RESULT_BYTES} of {len(raw)} bytes]"


def _assistant(content: str | None, calls: Sequence[Perform | Refuse]) -> dict[str, Any]:
    """Return what the model has said, for it to read again.

    Arguments that are no object are left out: a server that reads them would refuse the whole.
    """
    return {
        "role": "assistant",
        "content": content,
        "tool_calls": [
            {
                "id": each.call.id,
                "type": "function",
                "function": {"name": each.call.name, "arguments": _arguments(each)},
            }
            for each in calls
        ],
    }


def _arguments(step: Perform | Refuse) -> str:
    return (step.call.arguments.strip() if isinstance(step, Perform) else "") or "{}"
