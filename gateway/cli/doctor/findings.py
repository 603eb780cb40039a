"""What a check comes to."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's.

    Attributes:
        check: what was looked at.
        level: how bad it is.
        said: what was found; no secret.
        fix: what to do about it; empty if all is well.
    """

    check: str
    level: Level
    said: str
    fix: str = ""


def ok(check: str, said: str) -> Finding:
    """Return that all is well."""
    return Finding(check, Level.OK, said)


def warn(check: str, said: str, fix: str) -> Finding:
    """Return what works, and may not be meant so."""
    return Finding(check, Level.WARN, said, fix)


def fail(check: str, said: str, fix: str) -> Finding:
    """Return what does not work."""
    return Finding(check, Level.FAIL, said, fix)
