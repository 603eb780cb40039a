"""The limits of the server and the commands it is held to, from environment variables.

Pure: takes the environment as a mapping, reads none itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mcp_servers import limits
from mcp_servers.execution import Allowance

if TYPE_CHECKING:
    from collections.abc import Mapping

TIMEOUT = "DYNO_RUN_TIMEOUT_S"
MAX_OUTPUT = "DYNO_RUN_MAX_OUTPUT_BYTES"
MAX_MEMORY = "DYNO_RUN_MAX_MEMORY_BYTES"
COMMANDS = "DYNO_RUN_COMMANDS"


@dataclass(frozen=True, slots=True)
class Settings:
    """What may be run, and what a run may use.

    Attributes:
        allowance: Of one command with all it starts.
        max_output_bytes: Bytes kept of stdout, and as many of stderr.
        commands: By name, the only ones that may be run; None if any may.
    """

    allowance: Allowance
    max_output_bytes: int
    commands: Mapping[str, str] | None


def settings_from(environment: Mapping[str, str]) -> Settings:
    """Read the settings; a variable that is missing or empty leaves the default.

    Raises:
        BadSettingError: A value is unusable.
    """
    return Settings(
        allowance=Allowance(
            # Below the 120 s that Heroku gives its own tool, so that the result is still told.
            seconds=limits.seconds(environment, TIMEOUT, 110.0),
            seconds_by=TIMEOUT,
            memory_bytes=limits.memory(environment, MAX_MEMORY),
            memory_by=MAX_MEMORY,
        ),
        max_output_bytes=limits.whole(
            environment, MAX_OUTPUT, 1024 * 1024, most=limits.MOST_OUTPUT
        ),
        commands=_commands(environment.get(COMMANDS, "").strip()),
    )


def _commands(text: str) -> Mapping[str, str] | None:
    if not text:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    # The value is not repeated: a command line may hold what is nobody's business.
    if (
        not isinstance(found, dict)
        or not found
        or not all(isinstance(line, str) and name and line for name, line in found.items())
    ):
        raise limits.BadSettingError(
            f'{COMMANDS}: must be JSON with at least one command line by name, {{"name": "line"}}'
        )
    return found
