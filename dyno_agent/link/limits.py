"""Sizes and periods of a link, with the relations that must hold between them."""

from __future__ import annotations

from dataclasses import dataclass, fields

from dyno_agent.slots import SLOTS

FRAGMENT_BYTES = 64 * 1024
"""Largest payload of one frame: small enough that a 16 MiB message does not delay a `stop`."""

REPLAY_HEAD_BYTES = 16
"""Ticket and number in front of a message that is sent again, see `resumption.py`."""

HANDSHAKE_BYTES = 16 * 1024
"""Largest HELLO; a WELCOME may be larger, because it carries the child's environment."""

JOURNAL_PAGE_BYTES = 64 * 1024
"""Largest page of a JOURNAL; an entry that does not fit on one is left out."""

JOURNAL_PAGES = 32
"""Most pages of one; what does not fit is left out."""

WELCOME_BYTES = 1024 * 1024

CAPSULE_BYTES = 4096
"""Largest capsule: it travels in a header, and routers take 8 KiB of those."""

PARKED_S = 15.0
"""How often a parked agent is told that it still is."""

PARKED_DEAD_S = 45.0
"""How long each side of a parked agent's connection waits for a sign of the other."""

HANDSHAKE_S = 5.0
"""How long either side waits for the other's opening document."""


@dataclass(frozen=True, **SLOTS)
class Limits:
    """What one link may use.

    Attributes:
        message_bytes: largest message on any channel.
        window_bytes: sent and not yet acknowledged payload, per direction. It must hold one whole
            message, since a message is acknowledged when it was consumed as a whole.
        window_frames: the same in frames.
        heartbeat_s: a side that sent nothing for so long sends a heartbeat.
        dead_s: a side that heard nothing for so long gives the attachment up. Under 55 s, the
            platform router's idle limit, and at least three heartbeats.
        ack_bytes: consumed payload after which an acknowledgement is sent on its own.
        ack_frames: the same in frames.
    """

    message_bytes: int = 16 * 1024 * 1024
    window_bytes: int = 18 * 1024 * 1024
    window_frames: int = 4096
    heartbeat_s: float = 15.0
    dead_s: float = 45.0
    ack_bytes: int = 256 * 1024
    ack_frames: int = 32

    def __post_init__(self) -> None:
        """Refuse limits that cannot work together.

        Raises:
            ValueError: names the relation that does not hold.
        """
        if min(getattr(self, field.name) for field in fields(self)) <= 0:
            raise ValueError("every limit must be above 0")
        if self.window_bytes < self.message_bytes + REPLAY_HEAD_BYTES + FRAGMENT_BYTES:
            raise ValueError("window_bytes must hold one message and a fragment")
        if (self.window_frames - 1) * FRAGMENT_BYTES < self.message_bytes + REPLAY_HEAD_BYTES:
            raise ValueError("window_frames must hold one message and a fragment")
        if self.ack_frames * 2 > self.window_frames or self.ack_bytes * 2 > self.window_bytes:
            raise ValueError("acknowledge at least twice per window")
        if not self.heartbeat_s * 3 <= self.dead_s < 55.0:
            raise ValueError("three heartbeats must fit into dead_s, and dead_s below 55 s")


DEFAULT_LIMITS = Limits()
