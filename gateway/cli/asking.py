"""Asks a running gateway's operators' API, with bounds, and says in a sentence what went wrong."""

import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import aiohttp
import msgspec
from aiohttp.http_exceptions import LineTooLong

from gateway.cli.access import Access
from gateway.cli.failing import Failed, Unreachable
from gateway.cli.output import cut, note

BASE: Final = "/admin/v1"

CONNECT_S: Final = 10.0
ANSWER_S: Final = 40.0
"""More than the longest an answer may take, which is 30 s for a look at the apps."""

ANSWER_BYTES: Final = 32 * 1024 * 1024
"""Of one answer: lists have pages, and the longest story has 1 MiB a page."""

LINE_BYTES: Final = 256 * 1024
"""Of one line of a stream; a line of a story has 8 KiB."""

WORDS: Final = 500
"""Characters of what a gateway says that are repeated."""

Query = Mapping[str, str | int | None]

T = TypeVar("T", bound=msgspec.Struct)


class Refused(Failed):
    """The gateway answered and did not do it.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Operators:
    """The operators' API of one gateway. Use it as an async context manager.

    Every method raises `Unreachable` if no gateway answers there, and `Refused` if one does and
    says no.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._http: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        """Be ready to ask; nothing is sent yet."""
        if self._access.in_clear:
            note(f"warning: {self._access.url} is not https, so others may read the key on its way")
        self._http = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {self._access.key}"},
            timeout=aiohttp.ClientTimeout(total=ANSWER_S, sock_connect=CONNECT_S),
            read_bufsize=LINE_BYTES,
            trust_env=not self._access.here,
        )
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the connections."""
        await self._http.close()

    @property
    def url(self) -> str:
        """Where it is asked."""
        return self._access.url

    async def get(self, path: str, query: Query | None = None) -> Any:
        """Return the JSON document at a path below `/admin/v1`."""
        return await self.ask("GET", path, query)

    async def ask(
        self, method: str, path: str, query: Query | None = None, body: Any = None
    ) -> Any:
        """Make any request and return its JSON document."""
        async with self._exchange(method, path, query, body) as response:
            raw = await self._read(response)
        return self._decoded(raw, response)

    async def lines(self, path: str, query: Query | None = None) -> tuple[list[Any], int | None]:
        """Return the JSON lines at a path, and after which line to ask for more, if there is."""
        async with self._exchange("GET", path, query) as response:
            raw = await self._read(response)
            following = response.headers.get("Rendezvous-Next", "")
        lines = [self._decoded(line, response) for line in raw.split(b"\n") if line]
        return lines, int(following) if following.isdecimal() else None

    @asynccontextmanager
    async def stream(
        self, path: str, query: Query | None, quiet_s: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open an event stream: yields its lines as they come, without their ends.

        Args:
            path: below `/admin/v1`.
            query: of the request.
            quiet_s: it is taken for dead if nothing comes for so long.
        """
        bounds = aiohttp.ClientTimeout(sock_connect=CONNECT_S, sock_read=quiet_s)
        async with self._exchange("GET", path, query, bounds=bounds) as response:
            if response.content_type != "text/event-stream":
                raise self._stranger(response)
            yield self._lines(response)

    async def _lines(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        try:
            async for line in response.content:
                yield line.rstrip(b"\r\n")
        except (ValueError, LineTooLong):
            raise Unreachable(f"{self.url} sends lines without an end: it is no gateway") from None

    @asynccontextmanager
    async def _exchange(
        self,
        method: str,
        path: str,
        query: Query | None,
        body: Any = None,
        bounds: aiohttp.ClientTimeout | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        given = {name: value for name, value in (query or {}).items() if value not in (None, "")}
        more: dict[str, Any] = {} if body is None else {"json": body}
        if bounds is not None:
            more["timeout"] = bounds
        url = f"{self.url}{BASE}{path}"
        try:
            async with self._http.request(
                method, url, params=given, allow_redirects=False, **more
            ) as response:
                if response.status >= 300:
                    raise self._refusal(await self._read(response), response)
                yield response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._silence(error) from error

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        raw = bytearray()
        async for part in response.content.iter_any():
            raw += part
            if len(raw) > ANSWER_BYTES:
                raise Unreachable(f"{self.url} answers without an end: it is no gateway")
        return bytes(raw)

    def _decoded(self, raw: bytes, response: aiohttp.ClientResponse) -> Any:
        if not raw and response.status in (202, 204):
            return {}
        try:
            return json.loads(raw)
        except (ValueError, RecursionError):
            raise self._stranger(response) from None

    def _refusal(self, raw: bytes, response: aiohttp.ClientResponse) -> Failed:
        try:
            document = json.loads(raw)
        except (ValueError, RecursionError):
            document = None
        said = document.get("error") if isinstance(document, dict) else None
        if not isinstance(said, str):
            return self._stranger(response)
        sentence = cut(said, WORDS)
        if response.status == 401:
            sentence = f"it does not take this ADMIN_KEY ({sentence}): set the one it runs with"
        return Refused(f"{self.url} refused: {sentence}", response.status)

    def _stranger(self, response: aiohttp.ClientResponse) -> Failed:
        """Return what is said of an answer that no gateway gives."""
        return Unreachable(
            f"{self.url} is no gateway, or one of another version: {response.method} "
            f"{response.url.path} was answered with status {response.status} and "
            f"{cut(response.content_type)}; --url or GATEWAY_URL names another"
        )

    def _silence(self, error: Exception) -> Failed:
        match error:
            case TimeoutError():
                why = "it took too long"
            case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientSSLError():
                why = f"its certificate is not trusted: {_certificate(error)}"
            case aiohttp.ClientConnectorError():
                why = error.strerror or str(error)
            case _:
                why = str(error) or type(error).__name__
        return Unreachable(
            f"no answer from {self.url}: {cut(why, WORDS)}; start a gateway there, or name "
            "another with --url or GATEWAY_URL"
        )


def _certificate(error: Exception) -> str:
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", error)
    return cause.verify_message if isinstance(cause, ssl.SSLCertVerificationError) else str(cause)


def shaped(document: Any, shape: type[T], url: str) -> T:
    """Return a document as what it should be.

    Raises:
        Unreachable: it is something else.
    """
    try:
        return msgspec.convert(document, shape)
    except msgspec.ValidationError as error:
        raise Unreachable(
            f"{url} is no gateway, or one of another version: its answer does not fit "
            f"({cut(str(error), WORDS)})"
        ) from None
