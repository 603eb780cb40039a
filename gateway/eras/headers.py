"""What MCP 2026-07-28 says about HTTP headers that repeat the body. Pure.

Routers on the way read headers, the server reads the body; where both say different things, one of
them is being fooled. So everything that is said twice must be said the same way, and once.
Header names are compared without case, values with it; blanks and tabs around a value are no part
of it (basic/transports/streamable-http, "Request Metadata").

Values of `Mcp-Name` and `Mcp-Param-*` are a user's data and are never repeated in an error.
"""

import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from types import MappingProxyType
from typing import Any, Final

import msgspec
from msgspec import Raw

from gateway.errors import BadParams, HeaderMismatch

REVISION_HEADER: Final = "MCP-Protocol-Version"
METHOD_HEADER: Final = "Mcp-Method"
NAME_HEADER: Final = "Mcp-Name"
PARAM_PREFIX: Final = "Mcp-Param-"

NAMED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "tools/call": "name",
        "prompts/get": "name",
        "resources/read": "uri",
        "tasks/get": "taskId",
        "tasks/update": "taskId",
        "tasks/cancel": "taskId",
    }
)
"""Method → the member of its params that `Mcp-Name` repeats."""

MAX_SHOWN: Final = 64
"""Characters of a header's value that an error repeats."""
MAX_POSITIONS: Final = 10_000
"""Schemas inside one `inputSchema` that are looked at."""
MAX_DEPTH: Final = 64
"""Names in the path to a mirrored argument."""
MAX_MIRRORS: Final = 64
"""Mirrored arguments of one tool; a request's headers have no room for more."""

Headers = Iterable[tuple[str, str]]
Path = tuple[str, ...]

_WRAPPED = re.compile(r"=\?base64\?(.*)\?=", re.DOTALL)
_PLAIN = re.compile(r"[\t\x20-\x7e]*")
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_DECIMAL = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_MEMBERS = msgspec.json.Decoder(dict[str, Raw])

_ANNOTATION = "x-mcp-header"
_MIRRORABLE = frozenset({"string", "integer", "boolean"})
# Where JSON Schema 2020-12 holds further schemas, by the shape of the value. `default`, `examples`,
# `const` and `enum` hold data, and a `$ref` is not followed.
_ONE = frozenset(
    {"items", "contains", "unevaluatedItems", "additionalProperties", "propertyNames"}
    | {"unevaluatedProperties", "not", "if", "then", "else", "contentSchema"}
)
_LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_MAPS = frozenset({"patternProperties", "dependentSchemas", "$defs", "definitions"})


def decode(value: str) -> str | None:
    """Return what a value of `Mcp-Name` or `Mcp-Param-*` means, or None if it is malformed.

    A value is itself, or base64 of UTF-8 between `=?base64?` and `?=`. Malformed are other
    characters than visible ASCII, blank and tab, and base64 that an encoder would not write.
    """
    value = value.strip(" \t")
    if not _PLAIN.fullmatch(value):
        return None
    wrapped = _WRAPPED.fullmatch(value)
    if wrapped is None:
        return value
    try:
        inner = base64.b64decode(wrapped[1], validate=True)
        # Spare bits that are not zero would give one text several spellings.
        return inner.decode() if base64.b64encode(inner).decode() == wrapped[1] else None
    except ValueError:
        return None


def revision_of(headers: Headers) -> str | None:
    """Return what `MCP-Protocol-Version` says; None if it is missing or there are several."""
    found = _values(headers, REVISION_HEADER)
    return found[0] if len(found) == 1 else None


def check_routing(headers: Headers, revision: str, method: str, name: str | None) -> None:
    """Check the headers that every request has to repeat its body in.

    Args:
        headers: all lines, as they came.
        revision: what the body says.
        method: of the body.
        name: the member of params that `NAMED` tells for this method; None if the body has none.

    Raises:
        HeaderMismatch: one is missing, doubled, malformed or different. `data.header` names it.
    """
    headers = tuple(headers)
    given = _single(headers, REVISION_HEADER)
    if given != revision:
        raise _mismatch(REVISION_HEADER, f"says {_shown(given)}, but the body {_shown(revision)}")
    given = _single(headers, METHOD_HEADER)
    if given != method:
        raise _mismatch(METHOD_HEADER, f"says {_shown(given)}, but the body {_shown(method)}")
    _check_name(headers, method, name)


def _check_name(headers: Headers, method: str, name: str | None) -> None:
    found = _values(headers, NAME_HEADER)
    if len(found) > 1:
        raise _mismatch(NAME_HEADER, "appears more than once")
    if method not in NAMED:
        return
    source = f"params.{NAMED[method]}"
    if not found and name is not None:
        raise _mismatch(NAME_HEADER, f"is missing; it has to repeat {source}")
    if found and name is None:
        raise _mismatch(NAME_HEADER, f"is there, but the body has no {source}")
    if found and (said := decode(found[0])) != name:
        raise _mismatch(NAME_HEADER, f"is not {source}" if said is not None else "is malformed")


@dataclass(frozen=True, slots=True)
class _Mirror:
    header: str
    path: Path
    numeric: bool

    @property
    def argument(self) -> str:
        return _shown(".".join(self.path))


class Mirrors:
    """The arguments of one tool that `Mcp-Param-*` headers repeat.

    Made once per tool from its `inputSchema`. An invalid annotation anywhere makes the tool one
    that clients have to leave out, so then nothing is checked; the same for a schema that is
    larger than any tool needs. False if there is nothing to check.
    """

    def __init__(self, schema: object) -> None:
        self._mirrors = _read_mirrors(schema)

    def __bool__(self) -> bool:
        return bool(self._mirrors)

    def check(self, headers: Headers, arguments: Raw | Mapping[str, Any] | None) -> None:
        """Check one call's headers; those that no argument asks for are ignored.

        Args:
            headers: all lines, as they came.
            arguments: `params.arguments`, as it came. What is no object is the child's to refuse.

        Raises:
            HeaderMismatch: a value without its header, a header without its value, or both and
                different. `data.header` names it.
            BadParams: the arguments cannot be read far enough to tell.
        """
        if not self._mirrors:
            return
        reader = _Arguments(arguments)
        if reader.broken:
            return
        lines = [line for line in headers if line[0].lower().startswith(PARAM_PREFIX.lower())]
        for mirror in self._mirrors:
            _check_mirror(mirror, _values(lines, mirror.header), reader.at(mirror.path))


class _Arguments:
    """Values by path, each object on the way decoded at most once and never deeper."""

    def __init__(self, arguments: Raw | Mapping[str, Any] | None) -> None:
        if not isinstance(arguments, Raw):
            arguments = Raw(msgspec.json.encode(arguments or {}))
        self._opened: dict[Path, dict[str, Raw] | None] = {(): _members(arguments)}
        self.broken = self._opened[()] is None and arguments != Raw(b"null")

    def at(self, path: Path) -> Raw | None:
        parent = self._open(path[:-1])
        return None if parent is None else parent.get(path[-1])

    def _open(self, path: Path) -> dict[str, Raw] | None:
        if path not in self._opened:
            raw = self.at(path)
            self._opened[path] = None if raw is None else _members(raw)
        return self._opened[path]


def _check_mirror(mirror: _Mirror, found: list[str], raw: Raw | None) -> None:
    if len(found) > 1:
        raise _mismatch(mirror.header, "appears more than once")
    text = "null" if raw is None else bytes(raw).decode(errors="replace").strip()
    expected = _rendered(text)
    if expected is None:
        if found:
            raise _mismatch(mirror.header, f"is there, but no such value of {mirror.argument}")
        return
    if not found:
        raise _mismatch(mirror.header, f"is missing; it has to repeat {mirror.argument}")
    said = decode(found[0])
    if said is None:
        raise _mismatch(mirror.header, "is malformed")
    if said != expected and not (mirror.numeric and _same_number(said, text)):
        raise _mismatch(mirror.header, f"is not {mirror.argument}")


def _rendered(text: str) -> str | None:
    """Return a JSON value as a header has it; None for null and what no header can hold."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int | float) else None


def _same_number(said: str, text: str) -> bool:
    """Compare exactly, so that 42.0 is 42 and integers beyond a double's stay different."""
    if not _DECIMAL.fullmatch(said):
        return False
    try:
        return Decimal(said) == Decimal(text)
    except InvalidOperation:
        return False


def _read_mirrors(schema: object) -> tuple[_Mirror, ...]:
    mirrors: dict[str, _Mirror] = {}
    for count, (path, position) in enumerate(_positions(schema)):
        if count >= MAX_POSITIONS or (path is not None and len(path) > MAX_DEPTH):
            return ()
        if _ANNOTATION not in position:
            continue
        token, kind = position[_ANNOTATION], position.get("type")
        if not (path and isinstance(token, str) and isinstance(kind, str)):
            return ()
        folded = token.lower()
        if folded in mirrors or kind not in _MIRRORABLE or not _TOKEN.fullmatch(token):
            return ()
        mirrors[folded] = _Mirror(PARAM_PREFIX + token, path, numeric=kind == "integer")
    return tuple(mirrors.values()) if len(mirrors) <= MAX_MIRRORS else ()


def _positions(schema: object) -> Iterator[tuple[Path | None, dict[str, Any]]]:
    """Yield every schema inside a schema, with the path to its value.

    There is a path only where each step is a name under `properties`; () is the schema itself.
    """
    waiting: list[tuple[Path | None, object]] = [((), schema)]
    while waiting:
        path, position = waiting.pop()
        if not isinstance(position, dict):
            continue
        yield path, position
        for keyword, value in position.items():
            if keyword == "properties" and isinstance(value, dict):
                for name, inner in value.items():
                    waiting.append((None if path is None else (*path, name), inner))
            elif keyword in _ONE:
                waiting.append((None, value))
            elif keyword in _LISTS and isinstance(value, list):
                waiting.extend((None, inner) for inner in value)
            elif keyword in _MAPS and isinstance(value, dict):
                waiting.extend((None, inner) for inner in value.values())


def _members(raw: Raw) -> dict[str, Raw] | None:
    try:
        return _MEMBERS.decode(raw)
    except msgspec.ValidationError:
        return None
    except (msgspec.DecodeError, RecursionError) as error:
        # Another reader may make sense of it, so what is in it must not pass unchecked.
        raise BadParams("params.arguments has a name that is no Unicode text") from error


def _values(headers: Headers, name: str) -> list[str]:
    folded = name.lower()
    return [value.strip(" \t") for key, value in headers if key.lower() == folded]


def _single(headers: Headers, name: str) -> str:
    found = _values(headers, name)
    if not found:
        raise _mismatch(name, "is missing")
    if len(found) > 1:
        raise _mismatch(name, "appears more than once")
    return found[0]


def _shown(value: str) -> str:
    return f"{value[:MAX_SHOWN]!r}"


def _mismatch(header: str, fault: str) -> HeaderMismatch:
    header = header[:MAX_SHOWN]
    return HeaderMismatch(f"the {header} header {fault}", header=header)
