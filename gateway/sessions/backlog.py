"""Messages of a child that name no call and wait for a stream. Pure."""

from collections import deque

BACKLOG_MESSAGES = 64
BACKLOG_BYTES = 256 * 1024


class Backlog:
    """A bounded line of messages, each with its number on the link."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._bytes = 0

    def put(self, seq: int, raw: bytes) -> bool:
        """Add a message; False when there is no room for it."""
        full = len(self._waiting) >= BACKLOG_MESSAGES
        if full or self._bytes + len(raw) > BACKLOG_BYTES:
            return False
        self._waiting.append((seq, raw))
        self._bytes += len(raw)
        return True

    def take_all(self) -> list[tuple[int, bytes]]:
        """Take out everything, oldest first."""
        waiting = list(self._waiting)
        self._waiting.clear()
        self._bytes = 0
        return waiting
