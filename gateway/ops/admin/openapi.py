"""The OpenAPI 3.1 document of the operators' API, made of its table and its shapes. Pure."""

import inspect
import re
import textwrap
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec

from gateway.ops.admin.shapes import Error
from gateway.ops.admin.table import BASE, Operation

PATH = "/openapi.json"

_REF = "#/components/schemas/{name}"

_JSON = "application/json"

PARTS: Final = {
    "session": "Id of a session.",
    "gateway": "Id of a gateway process.",
    "server": "Name of a server.",
}
"""Variable parts of paths."""

REFUSALS: Final = {
    400: "A parameter, the body or one of its keys is wrong; the sentence names it.",
    401: "No key, or a wrong one.",
    403: "The API is closed, or a page of another origin asks.",
    503: "Not now: ask again after the seconds in `Retry-After`.",
}
"""Statuses that every operation may be refused with."""

BODY_REFUSALS: Final = {
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not JSON.",
}

_ATTRIBUTE = re.compile(r"^(\w+): ")


def document(operations: Iterable[Operation], version: str) -> dict[str, Any]:
    """Return the document.

    Args:
        operations: all there are.
        version: of the gateway.
    """
    operations = list(operations)
    kinds = _kinds(operations)
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    for kind in kinds:
        _describe(kind, components)
    shown = dict(zip(map(repr, kinds), schemas, strict=True))
    paths: dict[str, Any] = {}
    for operation in operations:
        methods = paths.setdefault(BASE + operation.path, {})
        methods[operation.method.lower()] = _operation(operation, shown)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Operators' API of the rendezvous gateway",
            "version": version,
            "description": "What runs, what it costs and what went wrong. Errors are "
            '`{"error": "sentence"}`. A console\'s cookie needs `X-Rendezvous-Console: 1` and a '
            "page of the same origin for everything but GET.",
        },
        "security": [{"bearer": []}, {"cookie": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "ADMIN_KEY"},
                "cookie": {"type": "apiKey", "in": "cookie", "name": "__Host-rendezvous"},
            },
        },
    }


def _kinds(operations: Iterable[Operation]) -> list[Any]:
    """Return all types that the document shows, each once."""
    found: dict[str, Any] = {repr(Error): Error}
    for operation in operations:
        for kind in (operation.body, operation.answer):
            if kind is not None and not isinstance(kind, str):
                found[repr(kind)] = kind
    return list(found.values())


def _operation(operation: Operation, shown: Mapping[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": [*_parts(operation.path), *_query(operation)],
        "responses": _responses(operation, shown),
    }
    if operation.body is not None:
        told["requestBody"] = {
            "required": True,
            "content": {_JSON: {"schema": shown[repr(operation.body)]}},
        }
    return told


def _parts(path: str) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": PARTS[name],
            "schema": {"type": "string", "minLength": 1},
        }
        for name in re.findall(r"{(\w+)}", path)
    ]


def _query(operation: Operation) -> list[dict[str, Any]]:
    if operation.query is None:
        return []
    _, components = msgspec.json.schema_components([operation.query], ref_template=_REF)
    properties = components[operation.query.__name__]["properties"]
    texts = _attributes(operation.query)
    return [
        {"name": name, "in": "query", "description": texts[name], "schema": schema}
        for name, schema in properties.items()
    ]


def _responses(operation: Operation, shown: Mapping[str, Any]) -> dict[str, Any]:
    answer = operation.answer
    content = {answer: {}} if isinstance(answer, str) else {_JSON: {"schema": shown[repr(answer)]}}
    well: dict[str, Any] = {
        "description": HTTPStatus(operation.status).phrase,
        "content": content,
    }
    if operation.tells:
        well["headers"] = {
            name: {"description": text, "schema": {"type": "integer", "minimum": 0}}
            for name, text in operation.tells.items()
        }
    refusals = {**REFUSALS, **operation.refusals}
    if operation.body is not None:
        refusals |= BODY_REFUSALS
    error = {_JSON: {"schema": shown[repr(Error)]}}
    return {
        str(operation.status): well,
        **{
            str(status): {"description": text, "content": error}
            for status, text in sorted(refusals.items())
        },
    }


# Docstrings


def _describe(kind: Any, components: dict[str, Any]) -> None:
    """Put what docstrings say of a type and its fields where readers look for it."""
    for each in _structs(kind):
        shown = components.get(each.__name__)
        if shown is None:
            continue
        shown["description"] = (inspect.getdoc(each) or "").partition("\n")[0]
        for name, text in _attributes(each).items():
            held = shown["properties"][name]
            shown["properties"][name] = {**held, "description": text}


def _structs(kind: Any) -> Iterable[type]:
    """Yield a struct and those in its fields."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
        for field in msgspec.structs.fields(kind):
            yield from _structs(field.type)
    for part in getattr(kind, "__args__", ()):
        yield from _structs(part)


def _attributes(kind: type) -> dict[str, str]:
    """Return what the docstrings of a class and its bases say of its attributes."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        _, _, listed = (inspect.getdoc(base) or "").partition("\nAttributes:\n")
        name = ""
        for line in textwrap.dedent(listed).splitlines():
            if start := _ATTRIBUTE.match(line):
                name = start[1]
                found[name] = line[start.end() :]
            elif name and line.startswith(" "):
                found[name] += " " + line.strip()
    return found
