"""Client streams that continue where an older one broke off. Pure.

The agent is the memory: it is asked to send again what went to the stream after the last message
that the client has seen. Until it says that this was all, what arrives for the stream meanwhile is
let go, because the agent sends it again as well; so order holds without a second buffer.
"""

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

S = TypeVar("S")


@dataclass(slots=True, eq=False)
class Resumption(Generic[S]):
    """One stream that continues.

    Attributes:
        where: label of the stream; None for what an earlier gateway had found no stream for.
        last: position of the last message that the client has.
        stream: where the rest goes; None once its client hung up again.
        ticket: of the request to the agent, once it was made.
        done: the agent has sent all; what is new goes to the stream directly.
        answered: the answer of the stream's call was among it.
    """

    where: str | None
    last: int
    stream: S | None
    ticket: int = 0
    done: bool = False
    answered: bool = False

    @property
    def waits(self) -> bool:
        """True while its answer may still come."""
        return not self.done and not self.answered


class Resumptions(Generic[S]):
    """The streams of one session that continue. One request to the agent at a time."""

    def __init__(self) -> None:
        self._waiting: deque[Resumption[S]] = deque()
        self._asked: Resumption[S] | None = None
        self._of: dict[S, Resumption[S]] = {}
        self._ticket = 0

    def begin_after(self, ticket: int) -> None:
        """Number the requests from here: answers to an earlier gateway process are nobody's."""
        self._ticket = ticket

    def add(self, resumption: Resumption[S]) -> None:
        """Enter a stream that continues."""
        self._waiting.append(resumption)
        if resumption.stream is not None:
            self._of[resumption.stream] = resumption

    def command(self) -> dict[str, object] | None:
        """Return what to ask the agent next, or None while it answers or nothing is wanted."""
        if self._asked is None and self._waiting:
            resumption = self._waiting.popleft()
            self._ticket += 1
            resumption.ticket = self._ticket
            self._asked = resumption
            return {
                "do": "replay",
                "ticket": resumption.ticket,
                "to": resumption.where,
                "after": resumption.last,
            }
        return None

    def answered_by(self, ticket: int) -> Resumption[S] | None:
        """Return the resumption that a message of the agent is for; None if nobody asked."""
        asked = self._asked
        return asked if asked is not None and asked.ticket == ticket else None

    def end(self, resumption: Resumption[S]) -> None:
        """The agent has sent all of this one."""
        resumption.done = True
        self._asked = None

    def pending(self, stream: S) -> bool:
        """True while the agent has not sent all that the stream has missed."""
        resumption = self._of.get(stream)
        return resumption is not None and not resumption.done

    def covers(self, stream: S, position: int) -> bool:
        """True for a message that reaches the stream, or has reached it, as a replay."""
        resumption = self._of.get(stream)
        return resumption is not None and (not resumption.done or position <= resumption.last)

    def unanswered(self) -> list[tuple[S, str]]:
        """Return the streams of calls that wait for the agent, with their labels."""
        return [
            (stream, each.where) for stream, each in self._of.items() if each.waits and each.where
        ]

    def stream_gone(self, stream: S) -> None:
        """The client hung up again."""
        resumption = self._of.pop(stream, None)
        if resumption is not None:
            resumption.stream = None
            if resumption in self._waiting:
                self._waiting.remove(resumption)
