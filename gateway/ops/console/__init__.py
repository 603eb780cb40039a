"""The operators' console: pages that a browser gets as they lie in `static/`. No build step.

They hold no data: all of it comes from the operators' API, for a key that only this page has seen.
Whoever asks may have them, so there is no way in here, and nothing to steal.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from aiohttp import web

PATH = "/console"

_INDEX = "index.html"

_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    # A page and its modules belong together: each is asked for again, and mostly has not changed.
    "Cache-Control": "no-cache",
}
"""Of every answer of this room. What clients, servers and tools say is shown on these pages, so
nothing but our own files may run, no text can become markup, and no other page can frame them."""

HSTS = "max-age=31536000"
"""Only for those who came by https, as the platform's router says: others would not heed it."""


@dataclass(frozen=True, slots=True)
class File:
    """One file as it is sent.

    Attributes:
        body: its bytes.
        media: its type, without a character set; all text is UTF-8.
        etag: a strong one, of the bytes.
    """

    body: bytes
    media: str
    etag: str


def files() -> dict[str, File]:
    """Return all files of the console by name, read from the package."""
    found = {}
    for entry in resources.files(__name__).joinpath("static").iterdir():
        _, dot, ending = entry.name.rpartition(".")
        media = _TYPES.get(dot + ending)
        if media is not None:
            body = entry.read_bytes()
            found[entry.name] = File(body, media, hashlib.sha256(body).hexdigest()[:32])
    return found


class Console:
    """Handlers of the console's files. All are read at once, and none is looked for on a disk."""

    def __init__(self) -> None:
        self._files = files()

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of this room; `/console/login` and its like are the API's."""
        return [
            web.get(PATH, self._index),
            web.get(f"{PATH}/", self._index),
            web.get(f"{PATH}/{{name:[a-z-]+[.][a-z]+}}", self._file),
        ]

    async def _index(self, request: web.Request) -> web.Response:
        return _answer(request, self._files[_INDEX])

    async def _file(self, request: web.Request) -> web.Response:
        file = self._files.get(request.match_info["name"])
        if file is None:
            return web.Response(status=404, text="no such file\n", headers=_headers(request))
        return _answer(request, file)


def _answer(request: web.Request, file: File) -> web.Response:
    headers = {**_headers(request), "ETag": f'"{file.etag}"'}
    known = request.if_none_match or ()
    if any(etag.value in (file.etag, "*") for etag in known):
        return web.Response(status=304, headers=headers)
    return web.Response(body=file.body, content_type=file.media, charset="utf-8", headers=headers)


def _headers(request: web.Request) -> dict[str, str]:
    by_https = "https" in (request.scheme, request.headers.get("X-Forwarded-Proto", ""))
    return {**HEADERS, "Strict-Transport-Security": HSTS} if by_https else dict(HEADERS)
