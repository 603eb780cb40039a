"""The dated revisions of MCP that this gateway serves, as a table."""

from typing import Final

HANDSHAKE: Final = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
"""The revisions with a handshake, newest first."""

MODERN: Final = "2026-07-28"
"""The revision without one."""

SERVED: Final = (MODERN, *HANDSHAKE)
"""All that is served, newest first."""

RESUMES: Final = "2025-11-25"
"""From here on a stream begins with an event without data, and its client comes back for the rest
if it ends early (basic/transports, "Sending Messages to the Server", 6)."""

BATCHES: Final = "2025-03-26"
"""The one revision whose clients may send several messages in one body."""

ASSUMED: Final = "2025-03-26"
"""What a client without `MCP-Protocol-Version` speaks (2025-06-18, basic/transports)."""


def resumable(revision: str) -> bool:
    """True for a revision that is served and whose clients resume a stream."""
    return RESUMES <= revision <= HANDSHAKE[0]
