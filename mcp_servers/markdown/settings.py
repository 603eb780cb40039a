"""The limits of the server, whom it may reach, and the environment variables that say so.

Pure: takes the environment as a mapping, reads none itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mcp_servers import limits
from mcp_servers.markdown.addresses import Allowed

if TYPE_CHECKING:
    from collections.abc import Mapping

TIMEOUT = "MARKDOWN_TIMEOUT_S"
MAX_DOWNLOAD = "MARKDOWN_MAX_BYTES"
MAX_OUTPUT = "MARKDOWN_MAX_OUTPUT_BYTES"
MAX_MEMORY = "MARKDOWN_MAX_MEMORY_BYTES"
ALLOW_PRIVATE = "MARKDOWN_ALLOW_PRIVATE"

MOST_DOWNLOAD = 1024 * 1024 * 1024
"""Bytes: a dyno's disk would take more, a conversion of more would not end."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call may use.

    Attributes:
        timeout_s: Seconds for the download and the conversion together.
        max_download_bytes: Bytes of a document, counted after decompression.
        max_output_bytes: Bytes kept of the Markdown.
        max_memory_bytes: Bytes that the conversion may have resident. It begins with 85 MB; the
            default leaves room for the server in the smallest dyno's 512 MB.
    """

    timeout_s: float = 60.0
    max_download_bytes: int = 32 * 1024 * 1024
    max_output_bytes: int = 1024 * 1024
    max_memory_bytes: int = 384 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Settings:
    """All that an operator says.

    Attributes:
        limits: What one call may use.
        allowed: Who may be reached besides the public internet.
    """

    limits: Limits = field(default_factory=Limits)
    allowed: Allowed = field(default_factory=Allowed)


def settings_from(environment: Mapping[str, str]) -> Settings:
    """Read the settings; a variable that is missing or empty leaves the default.

    Raises:
        BadSettingError: A value is no number, out of range, or neither a host nor a network.
    """
    default = Limits()
    return Settings(
        Limits(
            timeout_s=limits.seconds(environment, TIMEOUT, default.timeout_s),
            max_download_bytes=limits.whole(
                environment, MAX_DOWNLOAD, default.max_download_bytes, most=MOST_DOWNLOAD
            ),
            max_output_bytes=limits.whole(
                environment, MAX_OUTPUT, default.max_output_bytes, most=limits.MOST_OUTPUT
            ),
            max_memory_bytes=limits.whole(
                environment,
                MAX_MEMORY,
                default.max_memory_bytes,
                least=limits.LEAST_MEMORY,
                most=limits.MOST_MEMORY,
            ),
        ),
        _allowed(environment.get(ALLOW_PRIVATE, "")),
    )


def _allowed(text: str) -> Allowed:
    try:
        return Allowed.parse(text)
    except ValueError as error:
        raise limits.BadSettingError(
            f"{ALLOW_PRIVATE}: {error}; must be names of hosts, addresses and networks such as"
            " 10.1.0.0/16, separated by commas"
        ) from error
