"""Performs a request that another gateway process has carried here, as if it had come over HTTP.

It goes through a socket of this process to its own endpoints, so that nothing is different for
whoever serves it: back-pressure, cut connections and clients that hang up are what they always are.
"""

import contextlib
import functools
import hmac
import itertools
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import aiohttp
from aiohttp import web
from yarl import URL

from gateway.errors import BadKey
from gateway.exchange.carrying import Carried, NotPerformed, Performed
from gateway.patience import FIRST_BYTE_S

RELAY_HEADER = "Rendezvous-Relay"
"""Proves that a request comes from this very process."""

PRINCIPAL_HEADER = "Rendezvous-Principal"
"""Who the client is, as the process found that the client came to."""

NUMBER_HEADER = "Rendezvous-Relay-Number"
"""Tells carried requests apart."""

PATIENCE_HEADER = "Rendezvous-Patience"
"""How many seconds its answer may take to begin."""

LONGEST_FOLDER = 70
"""Of the path of a temporary folder in which a socket may lie."""

CONNECT_S = 5.0
"""How long the own socket may take to let a request in."""

Had = Callable[[], None]

_TROUBLE = (aiohttp.ClientError, OSError, TimeoutError, ValueError)
"""What a client of aiohttp raises; ValueError for what cannot be written as HTTP."""


class Loopback:
    """The way from the exchange to the own endpoints, and the proof that a request came by it.

    Use `serving` around the time in which it shall perform.
    """

    def __init__(self) -> None:
        self._token = secrets.token_urlsafe(32)
        self._client: aiohttp.ClientSession | None = None
        self._numbers = itertools.count(1)
        self._doubts: dict[str, Had] = {}

    def carried(self, headers: Mapping[str, str]) -> tuple[str, float] | None:
        """Return who asks and how much patience is left; None for a request that was not carried.

        Raises:
            BadKey: it claims to have been, and was not.
        """
        token = headers.get(RELAY_HEADER)
        if token is None:
            return None
        given = token.encode(errors="surrogateescape")
        if not hmac.compare_digest(given, self._token.encode()):
            raise BadKey(f"{RELAY_HEADER} is not for clients")
        return headers[PRINCIPAL_HEADER], float(headers[PATIENCE_HEADER])

    def doubt(self, headers: Mapping[str, str], had: Had) -> None:
        """Say what to do once the client of a carried request has its answer.

        Until then nobody knows: the process that carries it may die before it has written it.
        """
        number = headers[NUMBER_HEADER]
        if number in self._doubts:
            self._doubts[number] = had

    @contextlib.asynccontextmanager
    async def serving(self, runner: web.BaseRunner) -> AsyncIterator[None]:
        """Perform inside; the runner is set up already, and its handlers are cancelled."""
        # Mode 0700. The system allows some 100 characters for the path of a socket.
        folder = tempfile.gettempdir()
        folder = folder if len(folder) <= LONGEST_FOLDER else "/tmp"  # noqa: S108 - see the mode
        with tempfile.TemporaryDirectory(prefix="rdv-", dir=folder) as private:
            path = str(Path(private, "own"))
            site = web.UnixSite(runner, path)
            await site.start()
            # A connection is for one request: one that is kept may just be closing.
            connector = aiohttp.UnixConnector(path, limit=0, force_close=True)
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
            async with aiohttp.ClientSession(
                connector=connector,
                timeout=timeout,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            ) as client:
                self._client = client
                try:
                    yield
                finally:
                    self._client = None
                    await site.stop()

    def _had(self, number: str) -> None:
        self._doubts[number]()

    @contextlib.asynccontextmanager
    async def perform(self, carried: Carried) -> AsyncIterator[Performed]:
        """Perform a request; leaving early hangs up on it.

        Raises:
            NotPerformed: it was broken off, here or in the pieces of the answer.
        """
        if self._client is None:
            raise NotPerformed("this process does not serve")
        asked, number = carried.asked, str(next(self._numbers))
        headers = [
            *asked.headers,
            (RELAY_HEADER, self._token),
            (PRINCIPAL_HEADER, asked.principal),
            (NUMBER_HEADER, number),
            (PATIENCE_HEADER, str(min(asked.patience_s, FIRST_BYTE_S))),
        ]
        if carried.size:
            headers.append(("Content-Length", str(carried.size)))
        self._doubts[number] = _nothing
        try:
            response = await self._client.request(
                asked.method,
                URL(f"http://own{asked.target}", encoded=True),
                headers=headers,
                data=carried.body if carried.size else None,
                allow_redirects=False,
            )
        except BaseException as error:
            del self._doubts[number]
            if isinstance(error, _TROUBLE):
                raise NotPerformed(type(error).__name__) from error
            raise
        try:
            yield Performed(
                response.status,
                _plain(response.headers),
                _pieces(response),
                functools.partial(self._had, number),
            )
        finally:
            response.close()
            del self._doubts[number]


def _nothing() -> None:
    return


async def _pieces(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for piece in response.content.iter_any():
            yield piece
    except _TROUBLE as error:
        raise NotPerformed(type(error).__name__) from error


def _plain(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return headers with names that are plain text, not aiohttp's own kind."""
    return tuple((str(name), value) for name, value in headers.items())
