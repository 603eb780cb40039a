"""The limits of the server and the environment variables that set them.

Pure: takes the environment as a mapping, reads none itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mcp_servers import limits
from mcp_servers.execution import Allowance

if TYPE_CHECKING:
    from collections.abc import Mapping

TIMEOUT = "CODE_EXEC_TIMEOUT_S"
INSTALL_TIMEOUT = "CODE_EXEC_INSTALL_TIMEOUT_S"
MAX_OUTPUT = "CODE_EXEC_MAX_OUTPUT_BYTES"
MAX_MEMORY = "CODE_EXEC_MAX_MEMORY_BYTES"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call may use.

    Attributes:
        timeout_s: Seconds that the code may run; packages are not counted in.
        install_timeout_s: Seconds that one install may take.
        max_output_bytes: Bytes kept of stdout, and as many of stderr.
        max_memory_bytes: Bytes that the code, or an install, may have resident with all it starts;
            None leaves it to the platform.
    """

    timeout_s: float = 60.0
    install_timeout_s: float = 300.0
    max_output_bytes: int = 1024 * 1024
    max_memory_bytes: int | None = None

    @property
    def of_code(self) -> Allowance:
        """What the code may use."""
        return Allowance(self.timeout_s, TIMEOUT, self.max_memory_bytes, MAX_MEMORY)

    @property
    def of_install(self) -> Allowance:
        """What an install may use."""
        return Allowance(self.install_timeout_s, INSTALL_TIMEOUT, self.max_memory_bytes, MAX_MEMORY)


def limits_from(environment: Mapping[str, str]) -> Limits:
    """Read the limits; a variable that is missing or empty leaves the default.

    Raises:
        BadSettingError: A value is no number, or out of range.
    """
    default = Limits()
    return Limits(
        timeout_s=limits.seconds(environment, TIMEOUT, default.timeout_s),
        install_timeout_s=limits.seconds(environment, INSTALL_TIMEOUT, default.install_timeout_s),
        max_output_bytes=limits.whole(
            environment, MAX_OUTPUT, default.max_output_bytes, most=limits.MOST_OUTPUT
        ),
        max_memory_bytes=limits.memory(environment, MAX_MEMORY),
    )
