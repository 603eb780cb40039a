"""Which packages a call asks for. Pure; what a package string may look like is the language's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MOST_PACKAGES = 50
"""Requirements in one call; keeps the installer's command line and its resolver's work small."""

LONGEST = 200
"""Characters of one requirement; names on PyPI end at about 100, of gems at about 80."""


class BadRequirementError(ValueError):
    """A string is no requirement that this server installs; the message says what would be."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """A package of the index, as it was asked for.

    Attributes:
        text: What the installer gets as one argument, e.g. `"Pandas[excel] >= 2, < 3"`.
        name: The project's name, as the index tells them apart, e.g. `"pandas"`.
    """

    text: str
    name: str


def parse_all(texts: Iterable[str], parse: Callable[[str], Requirement]) -> list[Requirement]:
    """Check the requirements of a call; equal ones become one, the order stays.

    Raises:
        BadRequirementError: One of them is bad, or there are more than `MOST_PACKAGES`.
    """
    found = list(dict.fromkeys(parse(text) for text in texts))
    if len(found) > MOST_PACKAGES:
        raise BadRequirementError(f"{len(found)} packages; at most {MOST_PACKAGES} in one call")
    return found
