"""The limits of the server and the environment variables that set them.

Pure: takes the environment as a mapping, reads none itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

TIMEOUT = "CODE_EXEC_TIMEOUT_S"
INSTALL_TIMEOUT = "CODE_EXEC_INSTALL_TIMEOUT_S"
MAX_OUTPUT = "CODE_EXEC_MAX_OUTPUT_BYTES"

LONGEST_S = 24 * 60 * 60.0
"""Seconds: a one-off dyno is cycled after a day at the latest, so a longer limit is a mistake."""

MOST_OUTPUT = 16 * 1024 * 1024
"""Bytes per stream. JSON writes a control character as six bytes, and the result goes out as text
and as structured content: a frame can grow to about thirteen times this, for each stream."""


class BadSettingError(ValueError):
    """A variable's value is unusable; the message names the variable and what it may be."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call may use.

    Attributes:
        timeout_s: Seconds that the code may run; packages are not counted in.
        install_timeout_s: Seconds that one install may take.
        max_output_bytes: Bytes kept of stdout, and as many of stderr.
    """

    timeout_s: float = 60.0
    install_timeout_s: float = 300.0
    max_output_bytes: int = 1024 * 1024


def limits_from(environment: Mapping[str, str]) -> Limits:
    """Read the limits; a variable that is missing or empty leaves the default.

    Raises:
        BadSettingError: A value is no number, or out of range.
    """
    default = Limits()
    return Limits(
        timeout_s=_seconds(environment, TIMEOUT, default.timeout_s),
        install_timeout_s=_seconds(environment, INSTALL_TIMEOUT, default.install_timeout_s),
        max_output_bytes=_bytes(environment, MAX_OUTPUT, default.max_output_bytes),
    )


def _seconds(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name, "").strip()
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= LONGEST_S:  # false for nan, too
        raise BadSettingError(
            f"{name}={text!r}: must be a number of seconds above 0, at most {LONGEST_S:g}"
        )
    return value


def _bytes(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "").strip()
    if not text:
        return default
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value <= MOST_OUTPUT:
        raise BadSettingError(
            f"{name}={text!r}: must be a whole number of bytes from 1 to {MOST_OUTPUT}"
        )
    return value
