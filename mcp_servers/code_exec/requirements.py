"""Which strings may reach pip's command line: a name, extras, version specifiers, nothing else.

Pure. The grammar is the dependency specifier of PEP 508 without direct references and markers:
an option, a path or a URL is no package of the index, whoever asks. `packaging` would parse more,
but it is not among the things that `mcp` brings along.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_PACKAGES = 50
"""Requirements in one call; keeps pip's command line and its resolver's work small."""

LONGEST = 200
"""Characters of one requirement; names on PyPI end at about 100."""

_NAME = r"[A-Z0-9](?:[A-Z0-9._-]*[A-Z0-9])?"
_VERSION = r"(?:===|~=|==|!=|<=|>=|<|>) *[A-Z0-9][A-Z0-9.*+!_-]*"
_REQUIREMENT = re.compile(
    rf"(?P<name>{_NAME})"
    rf"(?: *\[ *{_NAME}(?: *, *{_NAME})* *\])?"
    rf"(?: *{_VERSION}(?: *, *{_VERSION})*)?",
    re.ASCII | re.IGNORECASE,
)

_ARCHIVES = (
    *(".whl", ".zip"),
    *(".tar", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.lz", ".tar.lzma"),
    *(".tgz", ".tbz", ".txz", ".tlz"),
)
"""pip takes an argument that ends like this for a local file, even where it could be a name
(pip/_internal/utils/filetypes.py)."""


class BadRequirementError(ValueError):
    """A string is no requirement that this server installs; the message says what would be."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """A package of the index, as it was asked for.

    Attributes:
        text: What pip gets as one argument, e.g. `"Pandas[excel] >= 2, < 3"`.
        name: The project's normalized name (PEP 503), e.g. `"pandas"`.
    """

    text: str
    name: str


def parse(text: str) -> Requirement:
    """Check one requirement.

    Raises:
        BadRequirementError: It is anything but a name with optional extras and versions.
    """
    stripped = text.strip()
    match = _REQUIREMENT.fullmatch(stripped) if len(stripped) <= LONGEST else None
    if match is None or stripped.lower().endswith(_ARCHIVES):
        raise BadRequirementError(
            f"{text[:LONGEST]!r} is not a package of the index. Write a name as on PyPI, with"
            ' extras and versions if need be, such as "numpy" or "pandas[excel]>=2,<3"; options,'
            " paths, URLs and markers are not accepted"
        )
    return Requirement(stripped, re.sub(r"[-_.]+", "-", match["name"]).lower())


def parse_all(texts: Iterable[str]) -> list[Requirement]:
    """Check the requirements of a call; equal ones become one, the order stays.

    Raises:
        BadRequirementError: One of them is bad, or there are more than `MOST_PACKAGES`.
    """
    found = list(dict.fromkeys(parse(text) for text in texts))
    if len(found) > MOST_PACKAGES:
        raise BadRequirementError(f"{len(found)} packages; at most {MOST_PACKAGES} in one call")
    return found
