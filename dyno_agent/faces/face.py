"""What every face is: messages in from both sides, messages out to both sides. Pure.

A face stands between the link and the child's stdio. The gateway speaks to it in one era; the
child speaks its own. It lives here and not in the gateway, because here is where a session lives:
what it knows survives every gateway process.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Protocol

from dyno_agent.slots import SLOTS


class Untranslatable(Exception):
    """A message that is no JSON object, or holds what cannot be written again."""


@dataclass(**SLOTS)
class Moves:
    """What to write now, in order; each is one JSON-RPC message on one line, without its newline.

    Attributes:
        to_child: lines for its stdin.
        to_gateway: lines for the link.
    """

    to_child: list[bytes] = field(default_factory=list)
    to_gateway: list[bytes] = field(default_factory=list)


class Face(Protocol):
    """One child's face.

    Attributes:
        holding: no further line of the gateway may be handed in for now: what is under way must
            come first. Only a line of the child ends it.
    """

    holding: bool

    def from_gateway(self, line: bytes) -> Moves:
        """Take a message of the gateway."""
        ...

    def from_child(self, line: bytes) -> Moves:
        """Take a message of the child."""
        ...


def read(line: bytes) -> dict[str, Any]:
    """Read one message, so that `write` gives back what it means.

    Raises:
        Untranslatable: not a JSON object, or a number beyond what a double holds.
    """
    try:
        document = json.loads(line, parse_constant=_refuse, parse_float=_float)
    except (ValueError, RecursionError) as error:
        raise Untranslatable(f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise Untranslatable("not a JSON object")
    return document


def write(document: dict[str, Any]) -> bytes:
    """Return one message on one line, in ASCII: halves of surrogate pairs have no other form."""
    return json.dumps(document, separators=(",", ":")).encode()


def _refuse(constant: str) -> Any:
    raise Untranslatable(f"{constant} is no JSON")


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise Untranslatable("a number beyond what a double holds")
    return value
