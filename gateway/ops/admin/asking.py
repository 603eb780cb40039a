"""Reads what operators ask: queries and bodies, and refuses whatever is not in their shape."""

import asyncio
import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from gateway.ops.admin.problems import JSON, Problem

BODY_BYTES = 64 * 1024
"""Largest body."""

BODY_S = 10.0
"""How long one may take to arrive."""

T = TypeVar("T", bound=msgspec.Struct)

_WHERE = re.compile(r" - at `\$\.?([^`]*)`$")


def query(request: web.Request, shape: type[T] | None) -> T | None:
    """Return the parameters of a request.

    Raises:
        Problem: 400, names the parameter that is unknown, doubled, or wrong.
    """
    given: dict[str, str] = {}
    known = () if shape is None else shape.__struct_fields__
    for name, value in request.query.items():
        if name not in known:
            these = f"known are {', '.join(known)}" if known else "there are none here"
            raise Problem(400, f"unknown parameter {name[:64]!a}: {these}")
        if name in given:
            raise Problem(400, f"{name}: given more than once")
        given[name] = value
    if shape is None:
        return None
    try:
        return msgspec.convert(given, shape, strict=False)
    except msgspec.ValidationError as error:
        raise Problem(400, _named(error)) from error


async def body(request: web.Request, shape: type[T]) -> T:
    """Return the body of a request.

    Raises:
        Problem: 400, 408, 413 or 415; names the key that is unknown, doubled, missing or wrong.
    """
    if request.content_type != JSON or "Content-Encoding" in request.headers:
        raise Problem(415, f"send a body with Content-Type: {JSON}, and not encoded")
    raw = await _read(request)
    try:
        document = msgspec.json.decode(raw, type=shape)
        json.loads(raw, object_pairs_hook=_once)
    except msgspec.ValidationError as error:
        raise Problem(400, _named(error)) from error
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Problem(400, f"the body is not JSON: {_first_line(error)}") from error
    return document


async def no_body(request: web.Request) -> None:
    """Make sure that a request without a body has none.

    Raises:
        Problem: 400, or 408 and 413 as for any body.
    """
    if request.body_exists and await _read(request):
        raise Problem(400, "this takes no body")


async def _read(request: web.Request) -> bytes:
    too_big = Problem(413, f"a body may have {BODY_BYTES} bytes")
    if (request.content_length or 0) > BODY_BYTES:
        raise too_big
    raw = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.content.iter_any():
                raw += part
                if len(raw) > BODY_BYTES:
                    raise too_big
    except TimeoutError:
        raise Problem(408, f"the body did not arrive within {BODY_S:.0f} s") from None
    except web.RequestPayloadError:
        raise Problem(400, "the body ended before its announced length") from None
    return bytes(raw)


def _once(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given more than once")
    return found


def _named(error: msgspec.ValidationError) -> str:
    """Return what is wrong, after the name of what it is wrong with."""
    text = str(error)
    where = _WHERE.search(text)
    if where is None:
        return text[:1].lower() + text[1:]
    what = text[: where.start()]
    return f"{where[1]}: {what[:1].lower()}{what[1:]}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
