"""JSON of what PostgreSQL says, losing nothing.

All values come as PostgreSQL writes them. JSON gets numbers, booleans, arrays and JSON where it has
the same thing, and PostgreSQL's text otherwise: a `numeric` with all digits, ISO 8601 for times.
"""

from __future__ import annotations

import json
import math
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.adapt import AdaptersMap, Loader

if TYPE_CHECKING:
    from psycopg.abc import Buffer

LARGEST_SAFE = 2**53 - 1
"""The largest integer that everybody's JSON reads exactly, RFC 8259 section 6."""

_TIMESTAMP = re.compile(r"(\d{4,}-\d\d-\d\d) ([\d:.]+?)(?:([+-]\d\d)(:[\d:]+)?)?")


def integer(text: str) -> int | str:
    """An integer; its digits, if it is too large for some readers of JSON."""
    if len(text) > len(str(LARGEST_SAFE)) + 1:  # and int() refuses more than 4300 digits
        return text
    value = int(text)
    return value if abs(value) <= LARGEST_SAFE else text


def real(text: str) -> float | str:
    """A floating-point number; its text, if JSON or Python's float cannot say it."""
    value = float(text)
    return value if math.isfinite(value) and Decimal(repr(value)) == Decimal(text) else text


def double(text: str) -> float | str:
    """What a float4 or float8 says: shortest digits already; `NaN` and `Infinity` stay words."""
    value = float(text)
    return value if math.isfinite(value) else text


def timestamp(text: str) -> str:
    """A timestamp in ISO 8601; as it is, if that has no way to say it (`infinity`, years BC)."""
    matched = _TIMESTAMP.fullmatch(text)
    if matched is None:
        return text
    day, clock, hours, rest = matched.groups()
    return f"{day}T{clock}" + (f"{hours}{rest or ':00'}" if hours else "")


def document(text: str) -> Any:
    """A json or jsonb value; its text, if it would not come out of JSON as it went in."""
    try:
        value = json.loads(text, parse_int=integer, parse_float=real)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair would not pass
    except (ValueError, RecursionError):
        return text
    return value


class _Text(Loader):
    def load(self, data: Buffer) -> Any:
        return bytes(data).decode("utf-8", "replace")


class _Integer(_Text):
    def load(self, data: Buffer) -> Any:
        return integer(super().load(data))


class _Double(_Text):
    def load(self, data: Buffer) -> Any:
        return double(super().load(data))


class _Boolean(_Text):
    def load(self, data: Buffer) -> Any:
        return bytes(data) == b"t"


class _Timestamp(_Text):
    def load(self, data: Buffer) -> Any:
        return timestamp(super().load(data))


class _Document(_Text):
    def load(self, data: Buffer) -> Any:
        return document(super().load(data))


_LOADERS: dict[str, type[Loader]] = {
    "bool": _Boolean,
    "float4": _Double,
    "float8": _Double,
    "int2": _Integer,
    "int4": _Integer,
    "int8": _Integer,
    "json": _Document,
    "jsonb": _Document,
    "oid": _Integer,
    "timestamp": _Timestamp,
    "timestamptz": _Timestamp,
}


def adapters() -> AdaptersMap:
    """How values become Python's; arrays of known types become lists of what their elements do."""
    adapted = AdaptersMap(psycopg.adapters)
    adapted.register_loader(0, _Text)  # types that psycopg does not know
    for known in adapted.types:
        adapted.register_loader(known.oid, _LOADERS.get(known.name, _Text))
    return adapted
