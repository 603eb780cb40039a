"""The limits of the server and the environment variables that set them.

Pure: takes the environment as a mapping, reads none itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mcp_servers import limits

if TYPE_CHECKING:
    from collections.abc import Mapping

TIMEOUT = "POSTGRES_TIMEOUT_S"
MAX_ROWS = "POSTGRES_MAX_ROWS"
MAX_OUTPUT = "POSTGRES_MAX_OUTPUT_BYTES"
ALLOW_WRITES = "POSTGRES_ALLOW_WRITES"

MOST_ROWS = 1_000_000
"""Rows: nobody reads them, and the output's limit is met before."""

LEAST_OUTPUT = 1024
"""Bytes: less holds no row."""

LARGEST_SHARE = 8
"""One value gets at most this part of the output, so that it does not crowd out all others."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What one call may use and do.

    Attributes:
        timeout_s: Seconds that the statement may run; connecting is not counted in.
        max_rows: Rows of a result.
        max_output_bytes: Bytes of a result as JSON.
        allow_writes: Whether statements may change the database.
    """

    timeout_s: float = 30.0
    max_rows: int = 1000
    max_output_bytes: int = 1024 * 1024
    allow_writes: bool = False


def settings_from(environment: Mapping[str, str]) -> Settings:
    """Read the settings; a variable that is missing or empty leaves the default.

    Raises:
        BadSettingError: A value is no number, out of range, or neither true nor false.
    """
    default = Settings()
    return Settings(
        timeout_s=limits.seconds(environment, TIMEOUT, default.timeout_s),
        max_rows=limits.whole(environment, MAX_ROWS, default.max_rows, most=MOST_ROWS, unit="rows"),
        max_output_bytes=limits.whole(
            environment,
            MAX_OUTPUT,
            default.max_output_bytes,
            least=LEAST_OUTPUT,
            most=limits.MOST_OUTPUT,
        ),
        allow_writes=limits.flag(environment, ALLOW_WRITES),
    )
