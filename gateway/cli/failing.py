"""What ends a command early, as exceptions that know their exit code."""

from typing import ClassVar, Final

REFUSED: Final = 1
INTERRUPTED: Final = 130


class Failed(Exception):
    """It was not done. The message is one sentence for the operator, with the next step."""

    code: ClassVar[int] = REFUSED


class Misused(Failed):
    """The command cannot be run as typed."""

    code = 2


class Unreachable(Failed):
    """No gateway answers there. EX_UNAVAILABLE of sysexits.h."""

    code = 69


class Unconfigured(Failed):
    """A setting is missing or wrong. EX_CONFIG of sysexits.h."""

    code = 78
