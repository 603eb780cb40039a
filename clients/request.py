"""What was asked for, as values: a verb with its checked arguments, and the server to ask.

Pure and quick to import, so that `--help` and usage errors do not wait for the SDK. Knows the
shape of each verb's `--args`; does not know how a request is sent or what comes back.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit, urlunsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_SERVER_URL = "http://127.0.0.1:8000"
"""Where a gateway or an SDK server listens when nobody says otherwise."""


class UsageError(Exception):
    """The command cannot be run as typed; its text says what to type instead."""


@dataclass(frozen=True, slots=True)
class Verb:
    """One thing a client can ask a server.

    `required` and `optional` map a key of `--args` to the JSON type its value must have.
    """

    summary: str
    required: Mapping[str, type] = field(default_factory=dict)
    optional: Mapping[str, type] = field(default_factory=dict)
    example: str = ""


VERBS: Mapping[str, Verb] = {
    "list_tools": Verb("the tools, with their input schemas"),
    "call_tool": Verb(
        "run a tool and print its result",
        required={"name": str},
        optional={"arguments": dict},
        example='{"name": "TOOL", "arguments": {"KEY": "VALUE"}}',
    ),
    "list_resources": Verb("the resources that can be read"),
    "list_resource_templates": Verb("the URI templates of resources made on demand"),
    "read_resource": Verb(
        "print a resource", required={"uri": str}, example='{"uri": "SCHEME://PATH"}'
    ),
    "list_prompts": Verb("the prompts, with their arguments"),
    "get_prompt": Verb(
        "print a prompt filled in",
        required={"name": str},
        optional={"arguments": dict},
        example='{"name": "PROMPT", "arguments": {"KEY": "TEXT"}}',
    ),
}
"""Every verb, in the order in which the help shows them."""

JSON_NAMES: Mapping[type, str] = {str: "a string", dict: "an object"}


@dataclass(frozen=True, slots=True)
class Call:
    """A verb and its checked parameters."""

    verb: str
    params: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class HttpTarget:
    """A Streamable HTTP endpoint. The key stays out of `repr`, and so out of logs and traces."""

    url: str
    api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class StdioTarget:
    """A server to start as a child process and to talk to over its stdin and stdout."""

    command: str
    args: tuple[str, ...] = ()


def parse_call(verb: str, text: str | None) -> Call:
    """Check the text of `--args` against what the verb takes.

    Args:
        verb: A key of `VERBS`.
        text: The JSON text as typed, or None when `--args` was not given.

    Raises:
        UsageError: Not JSON, not an object, a key missing, unknown or of the wrong type.
    """
    params = {} if text is None else _parse_object(text)
    shape = VERBS[verb]
    known = {**shape.required, **shape.optional}
    hint = f"for example --args '{shape.example}'" if shape.example else f"{verb} takes no --args"
    for key in shape.required:
        if key not in params:
            raise UsageError(f'{verb} needs "{key}" in --args: {hint}.')
    for key, value in params.items():
        if key not in known:
            raise UsageError(f'--args has the key "{key}", which {verb} does not take: {hint}.')
        if not isinstance(value, known[key]):
            raise UsageError(f'"{key}" in --args must be {JSON_NAMES[known[key]]}: {hint}.')
    if verb == "get_prompt":
        _check_prompt_arguments(params.get("arguments", {}))
    return Call(verb, params)


def _parse_object(text: str) -> dict[str, Any]:
    try:
        params = json.loads(text, parse_constant=_no_constant)
        json.dumps(params, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        position = f"line {error.lineno} column {error.colno}"
        raise UsageError(
            f"--args is not valid JSON at {position}: {error.msg}. "
            "Put the whole text in single quotes, with double quotes inside."
        ) from None
    except ValueError as error:
        # NaN, half of a surrogate pair, a number of thousands of digits: no server could read it.
        raise UsageError(f"--args holds what JSON cannot carry: {error}.") from None
    except RecursionError:
        raise UsageError("--args is nested too deeply to be read as JSON.") from None
    if not isinstance(params, dict):
        raise UsageError('--args must be a JSON object such as {"name": "TOOL"}.')
    return params


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _check_prompt_arguments(arguments: Mapping[str, Any]) -> None:
    for key, value in arguments.items():
        if not isinstance(value, str):
            raise UsageError(
                f'the prompt argument "{key}" must be a string: the protocol has no other kind.'
            )


def endpoint(base: str, server: str | None) -> str:
    """The URL to POST to, made from a base URL or a full endpoint.

    A base without a path gets `/mcp`, or `/servers/NAME/mcp` when a server is named; a path that
    is there is kept as it is, so that a full endpoint can be pasted in.

    Args:
        base: `http://host:port`, with or without trailing slash, or a full `…/mcp` URL.
        server: The name of a server behind a gateway, or None for its default.

    Raises:
        UsageError: Not an http(s) URL, or a server is named next to a URL that has a path.
    """
    problem = f"MCP_SERVER_URL is {base!r}, which is not a URL"
    try:
        parts = urlsplit(base.strip())
        _ = parts.port  # parsed only when asked for; raises ValueError when out of range
    except ValueError:
        raise UsageError(f"{problem}: set it to something like {DEFAULT_SERVER_URL}.") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise UsageError(
            f"{problem} with http:// or https://: set it to something like {DEFAULT_SERVER_URL}."
        )
    labels = parts.hostname.removesuffix(".").split(".")
    if not parts.netloc.isprintable() or " " in parts.netloc:
        raise UsageError(f"{problem}: the host holds spaces or control characters.")
    if not all(0 < len(label) < 64 for label in labels):
        raise UsageError(f"{problem}: a part of the host is empty or too long.")
    path = parts.path.rstrip("/")
    if path and server is not None:
        raise UsageError(
            f"--server needs a MCP_SERVER_URL without a path, and it is {base!r}: "
            "leave out either the path or --server."
        )
    if not path:
        path = "/mcp" if server is None else f"/servers/{quote(server, safe='')}/mcp"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def bearer_key(value: str | None) -> str | None:
    """The API key as it can go into a header, or None when there is none.

    Raises:
        UsageError: It holds characters that no header may carry. The key is not repeated.
    """
    key = (value or "").strip()  # `export API_KEY=$(…)` from a file with CRLF leaves a "\r"
    if not key:
        return None
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UsageError(
            "API_KEY holds spaces, control characters or letters outside ASCII, which no HTTP "
            "header may carry: set it again, without quotes or line breaks."
        )
    return key
