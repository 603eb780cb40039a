"""What comes from a dyno beside messages, and what is dropped: told without a flood. Pure."""

import json
from collections import Counter, deque

from gateway import events
from gateway.errors import GatewayError
from gateway.jsonrpc import Envelope, peek, sound

LOG_LINES_PER_S = 200
"""Lines of a child's stderr that become events; more are counted, or one session's chatter would
cost all others the gateway's time."""

LAST_WORDS, LAST_WORD = 10, 400
"""How many lines of stderr, of how many characters each, go into the error of a failed boot."""

MAX_REPORT = 16 * 1024
"""Characters taken of any text in which an agent tells about itself or its child."""

NOISE_SAMPLE = 200
WHAT = 64
"""Characters of a method's name in an event."""


class Chatter:
    """Everything that a session's log says about lines and messages that went nowhere.

    Args:
        session_id: whose.
        emit: hears events.
        now: monotonic seconds.

    Attributes:
        last_words: the last lines of the child's stderr.
        dropped: messages that had nowhere to go.
    """

    def __init__(self, session_id: str, emit: events.Sink, now: float) -> None:
        self.last_words: deque[str] = deque(maxlen=LAST_WORDS)
        self.dropped = 0
        self._session_id = session_id
        self._emit = emit
        self._drops: Counter[str] = Counter()
        self._noise = 0
        self._second, self._said, self._unsaid = now, 0, 0

    def line(self, payload: bytes, now: float) -> None:
        """Take a line of the child's stderr, as the agent reports it."""
        record = document(payload)
        line = text(record, "stderr")
        self.last_words.append(line[:LAST_WORD])
        self._unsaid += number(record, "dropped")
        if now - self._second >= 1:
            self._second, self._said = now, 0
        if self._said >= LOG_LINES_PER_S:
            self._unsaid += 1
            return
        self._said += 1
        self._emit(events.ChildLog(session=self._session_id, text=line, dropped=self._unsaid))
        self._unsaid = 0

    def message(self, raw: bytes) -> Envelope | None:
        """Read a line of the child's stdout; what is no message is told and not forwarded."""
        try:
            envelope = peek(raw)
            _ = envelope.kind
        except GatewayError:
            self._noise += 1
            if _worth_telling(self._noise):
                sample = raw[:NOISE_SAMPLE].decode(errors="backslashreplace")
                self._emit(events.Noise(session=self._session_id, sample=sample, total=self._noise))
            return None
        return envelope

    def drop(self, what: str, why: str) -> None:
        """Count a message that has nowhere to go."""
        self.dropped += 1
        self._drops[why] += 1
        total = self._drops[why]
        if _worth_telling(total):
            dropped = events.Dropped(
                session=self._session_id, what=what[:WHAT], why=why, total=total
            )
            self._emit(dropped)


def _worth_telling(count: int) -> bool:
    """The 1st, 2nd, 4th, 8th …: a flood of what is wrong is no flood of log lines."""
    return count.bit_count() == 1


def document(payload: bytes) -> dict[str, object]:
    """Read what an agent says about itself or its child; nonsense reads as nothing."""
    try:
        found = json.loads(payload)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def text(report: dict[str, object], key: str) -> str:
    """Return a text of a report, of bounded length; empty for anything else."""
    value = report.get(key)
    return sound(value[:MAX_REPORT]) if isinstance(value, str) else ""


def number(report: dict[str, object], key: str) -> int:
    """Return a count of a report; 0 for anything else."""
    value = report.get(key)
    return value if isinstance(value, int) and 0 <= value < 2**53 else 0
