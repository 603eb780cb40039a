"""A child as it is: both eras pass unread. Pure.

One rule only. A legacy server may refuse what comes before its handshake is over, and a client
behind the gateway cannot see when that is: the handshake's answer may come out of a catalogue. So
what follows an `initialize` waits for its answer.
"""

from __future__ import annotations

import json
from typing import Any

from dyno_agent.faces.face import Moves


class PlainFace:
    """Passes every line on as it came; see `Face` for the two methods.

    Only the opening is read: until an `initialize` was answered with a result, or another request
    came first, which makes the child a modern one. A `ping` says nothing about the era.

    Attributes:
        holding: an `initialize` is under way.
    """

    def __init__(self) -> None:
        self.holding = False
        self._reading = True
        self._awaited: Any = None

    def from_gateway(self, line: bytes) -> Moves:
        """Pass a message to the child."""
        if self._reading and not self.holding:
            message = _peek(line)
            method = message.get("method")
            if method is not None and message.get("id") is not None:
                self.holding = method == "initialize"
                self._reading = method in ("initialize", "ping")
                self._awaited = message["id"]
        return Moves(to_child=[line])

    def from_child(self, line: bytes) -> Moves:
        """Pass a message to the gateway."""
        if self.holding:
            message = _peek(line)
            if "method" not in message and message.get("id") == self._awaited:
                self.holding = False
                self._reading = "error" in message  # refused: there will be another handshake
        return Moves(to_gateway=[line])


def _peek(line: bytes) -> dict[str, Any]:
    # More lenient than face.read: nothing is written again, so a NaN does no harm.
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
