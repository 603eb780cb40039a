"""The dated revisions of MCP that this gateway serves, as a table."""

from typing import Final

SERVED: Final = ("2025-11-25", "2025-06-18", "2025-03-26")
"""Streamable HTTP with a handshake, newest first. 2024-11-05 and 2026-07-28 have other transports
and are refused here by name."""

ASSUMED: Final = "2025-03-26"
"""What a client without `MCP-Protocol-Version` speaks (2025-06-18, basic/transports)."""
