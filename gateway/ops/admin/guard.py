"""Lets operators in: the admin key, or the console's cookie that stands for it."""

import hashlib
import hmac
import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import msgspec
from aiohttp import web

from gateway import events
from gateway.errors import BadKey
from gateway.ops.admin.desk import CARRIED, Operator
from gateway.ops.admin.problems import Problem
from gateway.ops.inertness import inert
from gateway.sessions.sealing import BadSeal, Sealer
from gateway.store.base import StoreAway

CONSOLE_HEADER = "X-Rendezvous-Console"
"""A page sends it with whatever changes something: no form and no other origin's page can."""

COOKIE, SECURE_COOKIE = "rendezvous", "__Host-rendezvous"
"""Browsers take the second over https only, and from no other host."""

COOKIE_S: Final = 12 * 3600
"""How long a log-in lasts."""

LOGINS_PER_MINUTE: Final = 5
"""Attempts to log in from one address."""

FOREIGN = "pages of other origins may not use the operators' API: open the console at GATEWAY_URL"

SAFE: Final = frozenset({"GET", "HEAD"})

Draw = Callable[[str, float, int], Awaitable[float]]
"""See `Store.draw`."""


class _Login(msgspec.Struct, frozen=True):
    expires: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What a guard must know of the deployment.

    Attributes:
        key: of operators; empty closes the API.
        secret: of the deployment; seals cookies.
        behind_router: requests come through the platform's router, which says from where and how.
        https: the gateway's public URL is one.
        now: wall clock, seconds since 1970.
        draw: from the buckets that all processes share.
        emit: hears events.
        carried: tells whether another process has let a request in; raises `BadKey` for one that
            says so and lies.
    """

    key: str
    secret: bytes
    behind_router: bool
    https: bool
    now: Callable[[], float]
    draw: Draw
    emit: events.Sink
    carried: Callable[[Mapping[str, str]], bool]


class Guard:
    """Lets operators in.

    Args:
        gate: where it stands.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._key = _digest(gate.key.encode())
        purpose = f"rendezvous console v1 {self._key.hex()}"  # another key ends all log-ins
        self._sealer = Sealer(gate.secret, purpose, _Login)
        self._buckets = hmac.digest(gate.secret, b"rendezvous log-ins v1", "sha256")

    def check_open(self) -> None:
        """Make sure that there is a key at all.

        Raises:
            Problem: 403.
        """
        if not self._gate.key:
            raise Problem(403, "the operators' API is closed: ADMIN_KEY is not set")

    def admit(self, request: web.Request, *, relayed: bool = False) -> Operator:
        """Return who asks.

        Args:
            request: of an operator, or whoever.
            relayed: another process may have let it in.

        Raises:
            Problem: 401 without a good key, 403 for a foreign page or if the API is closed.
        """
        self.check_open()
        source = self.source(request)
        if relayed and self._carried(request):
            return Operator(CARRIED)
        if "Authorization" in request.headers:
            self._check_bearer(request, source)
        elif self.logged_in(request):
            self.check_page(request, unsafe=request.method not in SAFE)
        else:
            raise _refusal()
        return Operator(source)

    def _carried(self, request: web.Request) -> bool:
        try:
            return self._gate.carried(request.headers)
        except BadKey as error:
            raise _refusal() from error

    def _check_bearer(self, request: web.Request, source: str) -> None:
        scheme, _, token = request.headers["Authorization"].partition(" ")
        if scheme.lower() == "bearer" and self.is_key(token.strip()):
            return
        self.emit("login_failed", request.path, source)
        raise _refusal()

    def is_key(self, given: str) -> bool:
        """True for the admin key, in constant time."""
        return hmac.compare_digest(_digest(given.encode(errors="surrogateescape")), self._key)

    def emit(self, action: str, subject: str, source: str) -> None:
        """Tell what an operator did, or tried."""
        self._gate.emit(events.Operated(action=action, subject=inert(subject[:200]), source=source))

    def source(self, request: web.Request) -> str:
        """Return the address that a request comes from; the router appends it to what it got."""
        if self._gate.behind_router:
            hops = request.headers.getall("X-Forwarded-For", [])
            last = ",".join(hops).rpartition(",")[2].strip()
            if last:
                return inert(last[:64])
        return request.remote or ""

    # The console's cookie

    def check_page(self, request: web.Request, *, unsafe: bool) -> None:
        """Make sure that a page's request comes from a page of this gateway (CSRF).

        A cookie goes along with whatever a browser sends here, whoever made it send that. SameSite
        keeps other sites out; this keeps out what shares our site.

        Raises:
            Problem: 403.
        """
        origin = request.headers.get("Origin")
        if unsafe and (origin is None or request.headers.get(CONSOLE_HEADER) != "1"):
            raise Problem(403, f"a page must send Origin, and `{CONSOLE_HEADER}: 1`")
        if origin is not None and not self._is_own(origin, request):
            raise Problem(403, FOREIGN)
        if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            raise Problem(403, FOREIGN)

    def _is_own(self, origin: str, request: web.Request) -> bool:
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        scheme = "https" if self.is_https(request) else "http"
        return (parts.scheme, parts.netloc) == (scheme, request.headers.get("Host", "").lower())

    def is_https(self, request: web.Request) -> bool:
        """True if the browser has come by https."""
        if self._gate.behind_router:
            hops = request.headers.getall("X-Forwarded-Proto", [])
            return ",".join(hops).rpartition(",")[2].strip().lower() == "https"
        return self._gate.https

    def logged_in(self, request: web.Request) -> bool:
        """True for a request with a good cookie."""
        sealed = request.cookies.get(self._name(request))
        if sealed is None:
            return False
        try:
            login = self._sealer.open(sealed)
        except BadSeal:
            return False
        return self._gate.now() < login.expires

    async def throttle(self, source: str) -> None:
        """Draw an attempt to log in.

        Raises:
            Problem: 429, there were too many.
        """
        # What stands for an address in the store names nobody.
        bucket = hmac.digest(self._buckets, source.encode(errors="replace"), "sha256")[:12].hex()
        wait_s = 0.0
        # An operator must get in above all when something is down; keys cannot be guessed anyway.
        with suppress(StoreAway):
            wait_s = await self._gate.draw(f"login/{bucket}", LOGINS_PER_MINUTE, LOGINS_PER_MINUTE)
        if wait_s:
            after = {"Retry-After": str(math.ceil(wait_s))}
            raise Problem(429, "too many attempts to log in: wait a minute", after)

    def let_in(self, request: web.Request, response: web.Response) -> None:
        """Give a browser the cookie."""
        self._set(request, response, self._sealer.seal(_Login(self._gate.now() + COOKIE_S)))

    def let_out(self, request: web.Request, response: web.Response) -> None:
        """Let a browser forget it."""
        self._set(request, response, "")

    def _set(self, request: web.Request, response: web.Response, value: str) -> None:
        response.set_cookie(
            self._name(request),
            value,
            max_age=COOKIE_S if value else 0,
            path="/",
            secure=self.is_https(request),
            httponly=True,
            samesite="Strict",
        )

    def _name(self, request: web.Request) -> str:
        return SECURE_COOKIE if self.is_https(request) else COOKIE


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _refusal() -> Problem:
    return Problem(
        401,
        "send `Authorization: Bearer ADMIN_KEY`, or log in at /console",
        {"WWW-Authenticate": 'Bearer realm="admin"'},
    )
