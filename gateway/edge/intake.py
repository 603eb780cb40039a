"""What every request must pass before anybody looks at its meaning: origin, media type, size."""

import asyncio
from collections.abc import Callable, Mapping, Set
from typing import Protocol
from urllib.parse import urlsplit

from aiohttp import web

from gateway.eras.headers import REVISION_HEADER
from gateway.eras.versions import HANDSHAKE, SERVED
from gateway.errors import (
    BadJson,
    BodyTimeout,
    ForeignOrigin,
    MessageTooBig,
    NotAcceptable,
    UnsupportedMedia,
    UnsupportedRevision,
)
from gateway.patience import arriving

BODY_S = 30.0
"""How long a body may take to arrive; aiohttp alone waits for ever for a slow one."""

SMALL_BYTES = 64 * 1024
"""Bodies up to here are read at once."""

JSON, SSE = "application/json", "text/event-stream"


class Keeping(Protocol):
    """Keeps the body of a request that may have to be served again, here or elsewhere."""

    def again(self) -> bytes | None:
        """Return a body that was read before; None if it was not."""
        ...

    def keep(self, body: bytes) -> None:
        """Keep a body that was read."""
        ...


KEEPING: web.RequestKey[Keeping] = web.RequestKey("keeping")
"""Set on requests whose body shall be kept."""


class Given:
    """A body in place of the one on the wire: that was read before, and may have been rewritten.

    Args:
        body: what is to be read.
        taken: called once, when it is held here no longer.
    """

    def __init__(self, body: bytes, taken: Callable[[], None] | None = None) -> None:
        self.body = body
        self._taken = taken

    def take(self) -> bytes:
        """Return the body, and let go of it; nothing the second time."""
        body, self.body = self.body, b""
        taken, self._taken = self._taken, None
        if taken is not None:
            taken()
        return body


GIVEN: web.RequestKey[Given] = web.RequestKey("given")
"""Set on requests whose body is not to be read from the wire."""


def check_origin(headers: Mapping[str, str], allowed_hosts: Set[str] | None) -> None:
    """Refuse pages of other origins and requests for other hosts (DNS rebinding; MCP, transports).

    Args:
        headers: of the request.
        allowed_hosts: host names, without port, that this gateway goes by; None allows any `Host`
            but still no foreign `Origin`.

    Raises:
        ForeignOrigin: the `Origin` or the `Host` is none of them.
    """
    host = _host_name(f"//{headers.get('Host', '')}")
    if allowed_hosts is not None and host not in allowed_hosts:
        raise ForeignOrigin("this gateway does not go by that host name (GATEWAY_URL)")
    origin = headers.get("Origin")
    if origin is None:
        return
    name = _host_name(origin)
    if not name or name not in (allowed_hosts or {host}):
        raise ForeignOrigin("pages of that origin may not use this gateway (ALLOWED_ORIGINS)")


def _host_name(url: str) -> str:
    """Return the host of a URL in lower case, without its port; empty where there is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def check_revision(headers: Mapping[str, str]) -> None:
    """Refuse a revision that is not served.

    Raises:
        UnsupportedRevision: names those that are; dual-era clients fall back on it.
    """
    revision = headers.get(REVISION_HEADER)
    if revision is not None and revision not in HANDSHAKE:
        raise UnsupportedRevision(
            f"MCP-Protocol-Version {revision[:32]!r} is not served here; use one of "
            f"{', '.join(SERVED)}",
            supported=list(SERVED),
            requested=revision[:32],
        )


def check_accept(headers: Mapping[str, str], *needed: str) -> None:
    """Refuse a client that does not take what the transport answers.

    Raises:
        NotAcceptable: names the types that `Accept` must list.
    """
    listed = {
        part.partition(";")[0].strip().lower() for part in headers.get("Accept", "*/*").split(",")
    }
    for media in needed:
        if not listed & {media, f"{media.partition('/')[0]}/*", "*/*"}:
            raise NotAcceptable(f"Accept must list {' and '.join(needed)}")


def prefers_stream(headers: Mapping[str, str]) -> bool:
    """True for a client that names event streams first (RFC 9110, 12.5.1, weights aside).

    The SDKs name JSON first. Both are right for any answer, so the order is the client's wish.
    """
    accept = headers.get("Accept", "").lower()
    at = accept.find(SSE)
    return at >= 0 and (JSON not in accept or at < accept.find(JSON))


def is_large(request: web.Request) -> bool:
    """True for a body that is not read at once, whatever else its sender is sending."""
    return request.content_length is None or request.content_length > SMALL_BYTES


async def read_body(request: web.Request, limit: int) -> bytes:
    """Read a JSON body.

    Raises:
        UnsupportedMedia: not `application/json`, or encoded.
        MessageTooBig: over `limit` bytes.
        BodyTimeout: did not arrive in time.
        BadJson: ended before its announced length.
    """
    if request.content_type != JSON:
        raise UnsupportedMedia(f"Content-Type must be {JSON}")
    if "Content-Encoding" in request.headers:
        raise UnsupportedMedia("an encoded body is not taken: send it without Content-Encoding")
    too_big = MessageTooBig(f"a message may have {limit} bytes", limit=limit)
    if (request.content_length or 0) > limit:
        raise too_big
    keeping: Keeping | None = request.get(KEEPING)
    if keeping is not None and (kept := keeping.again()) is not None:
        if len(kept) > limit:
            raise too_big
        return kept
    given: Given | None = request.get(GIVEN)
    body = await _arriving(request, limit, too_big) if given is None else given.take()
    if len(body) > limit:
        raise too_big
    if keeping is not None:
        keeping.keep(body)
    return body


async def _arriving(request: web.Request, limit: int, too_big: MessageTooBig) -> bytes:
    # `request.read` would keep the bytes for as long as the call runs.
    body = bytearray()
    try:
        with arriving():
            async with asyncio.timeout(BODY_S):
                async for part in request.content.iter_any():
                    body += part
                    if len(body) > limit:
                        raise too_big
    except TimeoutError:
        raise BodyTimeout(f"the body did not arrive within {BODY_S:.0f} s") from None
    except web.RequestPayloadError:
        raise BadJson("the body ended before its announced length") from None
    return bytes(body)
