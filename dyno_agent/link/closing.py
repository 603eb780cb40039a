"""WebSocket close codes of the link: what each means and whether dialling again can help."""

from __future__ import annotations

from enum import IntEnum


class CloseCode(IntEnum):
    """Why an attachment ended. 4000-4499 are retriable: redial. 4500-4999 are terminal: leave."""

    NORMAL = 1000
    DRAIN = 4000
    HEARTBEAT_LOST = 4001
    BAD_TOKEN = 4501
    PROTOCOL_VIOLATION = 4502
    REPLAYED_TOKEN = 4503
    SESSION_ENDED = 4504
    WINDOW_EXCEEDED = 4505
    MESSAGE_TOO_BIG = 4506

    @property
    def retriable(self) -> bool:
        """True when the agent may dial again with the same credential."""
        return is_retriable(self)

    @property
    def sentence(self) -> str:
        """The reason for people, short enough for a close frame (123 bytes)."""
        return _SENTENCES[self]


_SENTENCES = {
    CloseCode.NORMAL: "done",
    CloseCode.DRAIN: "this gateway process leaves; dial again",
    CloseCode.HEARTBEAT_LOST: "nothing heard for too long; dial again",
    CloseCode.BAD_TOKEN: "token unknown, expired or used",
    CloseCode.PROTOCOL_VIOLATION: "the peer broke the link protocol",
    CloseCode.REPLAYED_TOKEN: "the join token was used by somebody else; the session is ended",
    CloseCode.SESSION_ENDED: "the session has ended",
    CloseCode.WINDOW_EXCEEDED: "more was sent than the window allows",
    CloseCode.MESSAGE_TOO_BIG: "a message over the limit",
}


def is_retriable(code: int) -> bool:
    """Tell whether an agent should dial again after this close code.

    Codes that are not ours (1006 for a cut socket, 1001, 1011, 1012 from a router) are retriable;
    1000 and our terminal range are not.
    """
    return code != CloseCode.NORMAL and not 4500 <= code < 5000
