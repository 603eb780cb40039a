"""Get a document from the internet, and from nowhere else.

Every socket is made by `Doorkeeper`, which sees the address that is about to be connected to.
Redirects are followed here, not by the library, since each target has to pass the same checks.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import aiohttp
from yarl import URL

from mcp_servers.markdown.settings import ALLOW_PRIVATE, MAX_DOWNLOAD

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp.abc import AbstractResolver

    from mcp_servers.markdown.addresses import Allowed

MOST_REDIRECTS = 5

CHUNK = 64 * 1024
"""Bytes per read."""

HEAD = 1024
"""Bytes in which a PDF must say that it is one: what readers of them have always accepted."""

REDIRECTS = frozenset({301, 302, 303, 307, 308})

WELL_KNOWN_PORTS = frozenset({80, 443})

FIRST_FREE_PORT = 1024
"""Below it, but for the web's two, live mail, remote shells and the like: nothing that serves
documents, and nothing that should hear from us. Above it people do run web servers."""

HTML_TYPES = frozenset({"text/html", "application/xhtml+xml"})
TEXT_TYPES = frozenset({"text/plain", "text/markdown"})
PDF_TYPES = frozenset({"application/pdf", "application/x-pdf"})

HEADERS = {
    # Some sites turn away what does not look like a browser; the reference says the same.
    "User-Agent": "Mozilla/5.0 (compatible; dyno-gateway-markdown/1.0)",
    "Accept": "text/html,application/xhtml+xml,application/pdf,text/plain;q=0.8,*/*;q=0.5",
    "Accept-Encoding": "gzip, deflate",
}


class FetchError(Exception):
    """The document was not fetched; the message is a sentence for the caller."""


@dataclass(frozen=True, slots=True)
class Document:
    """What was fetched.

    Attributes:
        kind: `html`, `text` or `pdf`.
        charset: A text's encoding, if the server says one that Python knows.
    """

    kind: str
    charset: str | None


class AddressRefused(OSError):
    """The address is not one to connect to. An OSError: then the next address is tried."""


class Doorkeeper:
    """Makes sockets, for addresses that may be reached.

    Attributes:
        host: The host of the URL that is being fetched.
        refused: Whether an address of it was refused.
    """

    def __init__(self, allowed: Allowed) -> None:
        self._allowed = allowed
        self.host = ""
        self.refused = False

    def expect(self, host: str) -> None:
        """The next connections are for this host."""
        self.host, self.refused = host, False

    def __call__(self, info: aiohttp.AddrInfoType) -> socket.socket:
        """Make a socket that will be connected to this very address."""
        family, kind, protocol, _, address = info
        if not self._allowed.may_reach(self.host, str(address[0])):
            self.refused = True
            raise AddressRefused("refused")
        return socket.socket(family=family, type=kind, proto=protocol)


class Fetcher:
    """Fetches documents, each over connections of its own.

    Args:
        allowed: Who may be reached besides the public internet.
        max_bytes: How long a document may be after decompression.
        resolver: What looks names up, if not the system.
    """

    def __init__(
        self, allowed: Allowed, max_bytes: int, *, resolver: AbstractResolver | None = None
    ) -> None:
        self._allowed = allowed
        self._max_bytes = max_bytes
        self._resolver = resolver

    async def fetch(
        self,
        url: str,
        *,
        pdf: bool,
        into: IO[bytes],
        tell: Callable[[int, int | None], Awaitable[None]],
    ) -> Document:
        """Fetch a document; has no time limit of its own.

        Args:
            url: Where it is.
            pdf: Whether it has to be a PDF, or else a page or a text.
            into: What it is written to.
            tell: Awaited after each piece with how many bytes there are, and of how many.

        Raises:
            FetchError: It cannot be had.
        """
        doorkeeper = Doorkeeper(self._allowed)
        connector = aiohttp.TCPConnector(
            socket_factory=doorkeeper,
            resolver=self._resolver,
            use_dns_cache=False,
            force_close=True,  # no connection outlives the question whether it may be
        )
        async with aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=HEADERS,
            timeout=aiohttp.ClientTimeout(total=None),  # the caller's
            trust_env=False,  # a proxy would connect in our stead, and ask nobody
        ) as session:
            target = _checked(url)
            for _ in range(MOST_REDIRECTS + 1):
                doorkeeper.expect(target.host or "")
                try:
                    async with session.get(target, allow_redirects=False) as response:
                        location = response.headers.get("Location")
                        if response.status not in REDIRECTS or location is None:
                            return await self._receive(response, pdf, into, tell)
                except (aiohttp.ClientError, ValueError) as error:
                    raise FetchError(_why(target, doorkeeper, error)) from error
                target = _checked(location, target)
        raise FetchError(f"{url} leads through more than {MOST_REDIRECTS} redirects.")

    async def _receive(
        self,
        response: aiohttp.ClientResponse,
        pdf: bool,
        into: IO[bytes],
        tell: Callable[[int, int | None], Awaitable[None]],
    ) -> Document:
        if response.status != 200:
            raise FetchError(f"{response.url} answered with status {response.status}.")
        compressed = "Content-Encoding" in response.headers
        total = None if compressed else response.content_length
        self._check_length(total or 0)
        count, head = 0, b""
        while len(head) < HEAD and (chunk := await response.content.read(HEAD - len(head))):
            head += chunk
        kind = _kind(response, head, pdf)
        chunk = head
        while chunk:
            count += len(chunk)
            self._check_length(count)
            into.write(chunk)
            await tell(count, total)
            chunk = await response.content.read(CHUNK)
        return Document(kind, _known(response.charset))

    def _check_length(self, count: int) -> None:
        if count > self._max_bytes:
            raise FetchError(
                f"The document is longer than {self._max_bytes} bytes;"
                f" the limit is set by {MAX_DOWNLOAD}."
            )


def _checked(text: str, base: URL | None = None) -> URL:
    """Read a URL, or what a redirect says, and check all of it that can be without a connection.

    Raises:
        FetchError: It is none, or none that is fetched.
    """
    try:
        url = URL(text.strip()) if base is None else base.join(URL(text))
        host, port = url.host, url.port
    except ValueError as error:
        raise FetchError(f"{text!r} is not a URL.") from error
    if url.scheme not in {"http", "https"} or not host:
        raise FetchError(
            f"{text!r} is not fetched: give a URL that begins with http:// or https://."
        )
    if url.user is not None or url.password is not None:
        raise FetchError("URLs with a user name or a password are not fetched: leave them out.")
    if port not in WELL_KNOWN_PORTS and (port is None or port < FIRST_FREE_PORT):
        raise FetchError(
            f"Port {port} is not fetched from: only 80, 443, and {FIRST_FREE_PORT} and above."
        )
    return url.with_fragment(None)


def _kind(response: aiohttp.ClientResponse, head: bytes, pdf: bool) -> str:
    """What the document is, by its type and its first bytes.

    Raises:
        FetchError: Not what was asked for.
    """
    said = response.content_type.lower() if "Content-Type" in response.headers else "text/html"
    is_pdf = said in PDF_TYPES or b"%PDF-" in head
    if pdf:
        if is_pdf:
            return "pdf"
        hint = "use html_to_markdown" if said in HTML_TYPES | TEXT_TYPES else "it is not converted"
        raise FetchError(f"{response.url} is no PDF but {said}: {hint}.")
    if said in HTML_TYPES and not head.startswith(b"%PDF-"):
        return "html"
    if said in TEXT_TYPES and not head.startswith(b"%PDF-"):
        return "text"
    hint = "use pdf_to_markdown" if is_pdf else "it is not converted"
    raise FetchError(f"{response.url} is no page but {said}: {hint}.")


def _known(charset: str | None) -> str | None:
    """The charset, if there is a codec of that name that makes text."""
    try:
        b"?".decode(charset or "", "ignore")
    except (LookupError, ValueError):
        return None
    return charset


def _why(url: URL, doorkeeper: Doorkeeper, error: Exception) -> str:
    if doorkeeper.refused and isinstance(error, aiohttp.ClientConnectorError):
        return (
            f"{url.host} is not on the public internet, so it is not fetched from;"
            f" whoever runs this server can allow it in {ALLOW_PRIVATE}."
        )
    if isinstance(error, aiohttp.ClientConnectorDNSError | aiohttp.InvalidURL):
        return f"There is no host {url.host}."
    if isinstance(error, aiohttp.ClientSSLError):
        return f"The certificate of {url.host} cannot be trusted, or its TLS not be spoken."
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ServerDisconnectedError):
        return f"{url.host} cannot be reached, or hung up; try again later."
    return f"{url.host} does not speak HTTP as it should, or broke off ({type(error).__name__})."
