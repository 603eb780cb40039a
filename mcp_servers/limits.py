"""Settings of bundled servers: values of environment variables, checked and refused by name.

Pure: takes the environment as a mapping, reads none itself.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST_S = 24 * 60 * 60.0
"""Seconds: a one-off dyno is cycled after a day at the latest, so a longer limit is a mistake."""

MOST_OUTPUT = 16 * 1024 * 1024
"""Bytes per text. JSON writes a control character as six bytes, and the result goes out as text
and as structured content: a frame can grow to about thirteen times this, for each text."""

LEAST_MEMORY = 1024 * 1024
"""Bytes: less holds no process, so somebody thought of another unit."""

MOST_MEMORY = 2**40
"""Bytes: no dyno has more than a tenth of it."""

_Default = TypeVar("_Default", int, int | None)


class CannotServeError(Exception):
    """The server cannot run here as things are; the message says what to change."""


class BadSettingError(CannotServeError, ValueError):
    """A variable's value is unusable; the message names the variable and what it may be."""


def seconds(
    environment: Mapping[str, str], name: str, default: float, *, most: float = LONGEST_S
) -> float:
    """Read a time in seconds, a number above 0; missing or empty means the default.

    Raises:
        BadSettingError: It is no number, or out of range.
    """
    text = environment.get(name, "").strip()
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= most:  # false for nan, too
        raise BadSettingError(
            f"{name}={text!r}: must be a number of seconds above 0, at most {most:g}"
        )
    return value


def whole(
    environment: Mapping[str, str],
    name: str,
    default: _Default,
    *,
    least: int = 1,
    most: int,
    unit: str = "bytes",
) -> int | _Default:
    """Read a whole number in a range, e.g. of bytes; missing or empty means the default.

    Raises:
        BadSettingError: It is no whole number, or out of range.
    """
    text = environment.get(name, "").strip()
    if not text:
        return default
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        raise BadSettingError(
            f"{name}={text!r}: must be a whole number of {unit} from {least} to {most}"
        )
    return value


def memory(environment: Mapping[str, str], name: str) -> int | None:
    """Read a limit on memory in bytes; None, no limit of ours, if it is missing or empty.

    Raises:
        BadSettingError: It is no whole number, or out of range.
    """
    return whole(environment, name, None, least=LEAST_MEMORY, most=MOST_MEMORY)


def flag(environment: Mapping[str, str], name: str, *, default: bool = False) -> bool:
    """Read `true` or `false` in any case; missing or empty means the default.

    Raises:
        BadSettingError: It is neither.
    """
    text = environment.get(name, "").strip()
    if not text:
        return default
    if text.lower() not in {"true", "false"}:
        raise BadSettingError(f"{name}={text!r}: must be true or false")
    return text.lower() == "true"
