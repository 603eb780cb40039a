"""Heroku's published schema as a judge of what goes over the wire, both ways.

The schema is a draft-04 hyper-schema. `strictProperties: true` in it is a word of Heroku's own
tools, which validators pass over: all properties listed are required, and no others may be there.
Here it is enforced. It says nothing of the errors' shape; those are not judged.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from jsonschema import Draft4Validator, FormatChecker

SCHEMA_FILE = Path(__file__).with_name("schema.json")

UNDOCUMENTED = {("log-session", "Create"): {"dyno"}}
"""Parameters that the vendor's own client sends, and its schema lacks, by resource and title."""

_PLACE = re.compile(r"\{\(#/definitions/([\w-]+)/definitions/([\w-]+)\)\}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def _is_uuid(value: object) -> bool:
    return not isinstance(value, str) or _UUID.fullmatch(value) is not None


def _is_date_time(value: object) -> bool:
    return not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None


def _is_uri(value: object) -> bool:
    return not isinstance(value, str) or bool(urlsplit(value).scheme)


_FORMATS = FormatChecker(formats=())
_FORMATS.checks("uuid")(_is_uuid)
_FORMATS.checks("date-time", raises=ValueError)(_is_date_time)
_FORMATS.checks("uri", raises=ValueError)(_is_uri)


class Link:
    """One operation of the published API.

    Attributes:
        method: HTTP method.
        path: with a name in braces where an identity belongs, `/apps/{app}/dynos`.
    """

    def __init__(self, resource: str, link: dict[str, Any], definitions: dict[str, Any]) -> None:
        self.method: str = link["method"]
        self.path = _PLACE.sub(_name_of_place, unquote(link["href"]))
        self._request = link.get("schema")
        self._known = self._known_parameters() | UNDOCUMENTED.get((resource, link["title"]), set())
        self._requests = _validator(self._request or {}, definitions)
        self._responses = _validator(link["targetSchema"], definitions)

    def _known_parameters(self) -> set[str]:
        if self._request is None or "patternProperties" in self._request:
            return set()
        return set(self._request["properties"])

    @property
    def has_body(self) -> bool:
        """Whether a request has parameters in its body."""
        return self._request is not None

    def fault_of_request(self, body: object) -> str | None:
        """Say what is wrong with a request's body; None if nothing is."""
        if not self.has_body:
            return None if body in (None, {}) else "no parameters are taken"
        unknown = set(body) - self._known if self._known and isinstance(body, dict) else set()
        if unknown:
            return f"Unknown params: {', '.join(sorted(unknown))}."
        return _first_fault(self._requests, body)

    def fault_of_response(self, body: object) -> str | None:
        """Say what is wrong with a response's body; None if nothing is."""
        return _first_fault(self._responses, body)


@cache
def links() -> dict[tuple[str, str], Link]:
    """Return the operations of the schema file, by resource and title."""
    definitions = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))["definitions"]
    strict = _strict(definitions)
    return {
        (resource, link["title"]): Link(resource, link, strict)
        for resource, definition in strict.items()
        for link in definition.get("links", ())
    }


def _name_of_place(match: re.Match[str]) -> str:
    resource, name = match.groups()
    place = resource if name == "identity" else name
    return "{" + place.replace("-", "_") + "}"


def _strict(schema: Any) -> Any:
    """Say `strictProperties` in words that a validator knows."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    if schema.get("strictProperties") is True and "properties" in schema:
        strict["required"] = sorted(schema["properties"])
        strict["additionalProperties"] = False
    return strict


def _validator(schema: dict[str, Any], definitions: dict[str, Any]) -> Any:
    rooted = {**schema, "definitions": definitions}  # its references start at the root
    return Draft4Validator(rooted, format_checker=_FORMATS)


def _first_fault(validator: Any, body: object) -> str | None:
    for fault in validator.iter_errors(body):
        where = "".join(f"[{part!r}]" for part in fault.absolute_path)
        return f"{where} {fault.message}".strip()[:500]
    return None
