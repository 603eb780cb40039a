"""The Platform API, synchronous: heroku3's client without its traps.

One instance belongs to one thread. What heroku3 5.2.1 does otherwise, and what is done about it
here, once, for its own methods too:

- it asks the platform when it gets its key: `authenticate` only keeps the key;
- it waits for ever: every request has time-outs, and every answer a deadline and a limit;
- it sends `"size": null`, which the platform refuses: left out;
- it prints when a list has several pages, and asks with malformed ranges: `_get_data` follows
  `Next-Range`;
- it raises a bare exception for 429, and others without the platform's words: one tree
  (`failures`);
- it reads logs without checking certificates: `get_app_log` is one more checked request, and
  `stream_app_log` is gone;
- it stops dynos by DELETE, which leaves those of a type of their own alive: `stop_dyno`.

Environment variables (proxies, `.netrc`, other CA bundles) change nothing, as in heroku3; and
nothing is redirected: the key goes to the platform's address only.
"""

import io
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote

import msgspec
import requests
import structlog
import urllib3.exceptions
from heroku3.api import HEROKU_URL, Heroku

from gateway.launchers.heroku.documents import (
    DynoInfo,
    DynoRequest,
    FormationInfo,
    LogSession,
    RateLimit,
    ReleaseInfo,
    SizeInfo,
    WebhookInfo,
)
from gateway.launchers.heroku.failures import Unavailable, refusal

ACCEPT = "application/vnd.heroku+json; version=3"

ALLOWANCE = 4500
"""Requests an account may make at once."""

REFILL_S = 0.8
"""One request comes back so often."""

MAX_PAGES = 50
"""Of one list, at 200 items and more each: no app has so many of anything."""

MAX_ANSWER_BYTES = 16 * 1024 * 1024
CHUNK_BYTES = 65_536

RELEASES = 10
"""How many of the newest releases are searched for the current one: a few may have failed."""

MAX_WARNINGS = 64
"""Different warnings of the platform that are logged, each once."""

_WARNINGS = ("X-Heroku-Warning", "Warning-Message")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How long one request may take, in seconds.

    Attributes:
        connect_s: until there is a connection.
        read_s: until the next byte. Creating a dyno takes the platform some seconds, and an answer
            that comes later than this is not lost: the launcher looks for it.
        answer_s: from the first byte of the answer to its last.
    """

    connect_s: float = 5.0
    read_s: float = 20.0
    answer_s: float = 10.0


class Meter:
    """What the answers to all threads say by the way: requests left, and warnings. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._told: tuple[int, float] | None = None  # how many were left, and when
        self._warned: set[str] = set()

    def note(self, headers: Mapping[str, str]) -> None:
        """Read the headers of an answer."""
        remaining = headers.get("RateLimit-Remaining", "")
        warnings = {headers[name] for name in _WARNINGS if headers.get(name)}
        with self._lock:
            if remaining.isdecimal():
                self._told = int(remaining), self._clock()
            fresh = warnings - self._warned if len(self._warned) < MAX_WARNINGS else set()
            self._warned |= fresh
        for text in sorted(fresh):
            structlog.get_logger().warning("platform_warning", text=text)

    @property
    def remaining(self) -> int | None:
        """How many requests are left by now; None before the first answer."""
        with self._lock:
            if self._told is None:
                return None
            left, at = self._told
            return max(left, min(ALLOWANCE, left + int((self._clock() - at) / REFILL_S)))


class _Bearer:
    """Adds the key to requests that go to the platform, and to no other."""

    def __init__(self, key: str, url: str) -> None:
        self._key = key
        self._url = url

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if (request.url or "").startswith(f"{self._url}/"):
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


class _Session(requests.Session):
    """Bounds and checks every request, also those that heroku3 makes by itself."""

    def __init__(self, bounds: Bounds) -> None:
        super().__init__()
        self._bounds = bounds
        self.trust_env = False
        self.headers["User-Agent"] = "rendezvous-gateway"

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Send within the bounds; the answer is read when this returns."""
        kwargs |= {
            "timeout": (self._bounds.connect_s, self._bounds.read_s),
            "verify": True,
            "allow_redirects": False,
            "stream": True,
        }
        response = super().send(request, **kwargs)
        body = io.BytesIO()
        latest = time.monotonic() + self._bounds.answer_s
        for chunk in response.raw.stream(CHUNK_BYTES, decode_content=True):
            body.write(chunk)
            if time.monotonic() > latest or body.tell() > MAX_ANSWER_BYTES:
                response.close()
                raise requests.ReadTimeout("an answer without an end")
        body.seek(0)
        response.raw = body
        return response


class PlatformApi(Heroku):  # type: ignore[misc]  # heroku3 is not annotated
    """One thread's client of the platform.

    Every method raises `failures.Failure`, and no other exception for what the platform does.

    Args:
        key: of the platform; told to it only.
        url: base of the platform's API.
        bounds: of every request.
        meter: hears what the answers say by the way.
    """

    def __init__(
        self,
        key: str,
        url: str = HEROKU_URL,
        bounds: Bounds | None = None,
        meter: Meter | None = None,
    ) -> None:
        super().__init__(session=_Session(bounds or Bounds()))
        self._session.headers["Accept"] = ACCEPT
        # As requests spells addresses, for the key is given to this one only.
        self._heroku_url = (requests.Request("GET", url).prepare().url or url).rstrip("/")
        self._meter = meter or Meter()
        self._secret = key
        self.authenticate(key)

    def authenticate(self, api_key: str) -> bool:
        """Keep the key; whether it is good shows with the first request."""
        self._secret = api_key
        self._session.auth = _Bearer(api_key, self._heroku_url)
        return True

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    # What dynos need

    def create_dyno(self, app: str, request: DynoRequest) -> DynoInfo:
        """Start a one-off dyno."""
        body = self._resource_serialize(request.document())
        hidden = tuple(request.env.values())
        response = self._exchange("POST", ("apps", app, "dynos"), body=body, hidden=hidden)
        return _decoded(response, DynoInfo)

    def dyno(self, app: str, dyno: str) -> DynoInfo:
        """Return a dyno by its id or name; one just made may be unknown for some seconds."""
        return self._one(("apps", app, "dynos", dyno), DynoInfo)

    def dynos(self, app: str) -> list[DynoInfo]:
        """Return all dynos of an app, whoever made them."""
        return self._all(("apps", app, "dynos"), DynoInfo)

    def stop_dyno(self, app: str, dyno: str) -> None:
        """Have a dyno ended: SIGTERM, and 30 s later SIGKILL."""
        self._exchange("POST", ("apps", app, "dynos", dyno, "actions", "stop"))

    # What servers are found by

    def formation(self, app: str) -> list[FormationInfo]:
        """Return the process types of an app."""
        return self._all(("apps", app, "formation"), FormationInfo)

    def current_release(self, app: str) -> ReleaseInfo | None:
        """Return the release that new dynos run; None for an app that has none."""
        releases = self._all(
            ("apps", app, "releases"), ReleaseInfo, order_by="version", sort="desc", limit=RELEASES
        )
        done = [release for release in releases if release.status in ("", "succeeded")]
        return next((release for release in releases if release.current), next(iter(done), None))

    def config_vars(self, app: str) -> dict[str, str]:
        """Return an app's config vars: secrets, most of them."""
        return self._one(("apps", app, "config-vars"), dict[str, str])

    def dyno_sizes(self) -> list[SizeInfo]:
        """Return what sizes there are, with prices."""
        return self._all(("dyno-sizes",), SizeInfo)

    def ratelimit_remaining(self) -> int:
        """Return how many requests are left; asking is free."""
        return self._one(("account", "rate-limits"), RateLimit).remaining

    # What news come by

    def webhooks(self, app: str) -> list[WebhookInfo]:
        """Return the subscriptions of an app."""
        return self._all(("apps", app, "webhooks"), WebhookInfo)

    def create_webhook(
        self, app: str, url: str, secret: str, include: Sequence[str], level: str = "notify"
    ) -> WebhookInfo:
        """Subscribe an address to an app's events, signed with the secret."""
        wanted = {"include": list(include), "level": level, "secret": secret, "url": url}
        body = self._resource_serialize(wanted)
        response = self._exchange("POST", ("apps", app, "webhooks"), body=body, hidden=(secret,))
        return _decoded(response, WebhookInfo)

    def delete_webhook(self, app: str, webhook: str) -> None:
        """End a subscription."""
        self._exchange("DELETE", ("apps", app, "webhooks", webhook))

    def get_app_log(
        self,
        app_id_or_name: str,
        dyno: str | None = None,
        lines: int = 100,
        source: str | None = None,
        timeout: float | None = None,
    ) -> str:
        """Return the last lines of an app's log, of one dyno if named."""
        wanted = {"dyno_name": dyno, "lines": lines, "source": source, "tail": False}
        body = json.dumps({name: value for name, value in wanted.items() if value is not None})
        made = self._exchange("POST", ("apps", app_id_or_name, "log-sessions"), body=body)
        address = _decoded(made, LogSession).logplex_url
        return self._within(self._session.get, address).content.decode(errors="replace")

    def stream_app_log(self, *_args: Any, **_options: Any) -> NoReturn:
        """Nothing needs it, and heroku3's checks no certificate."""
        raise NotImplementedError("read the log with get_app_log")

    # heroku3's own ways to the wire

    @staticmethod
    def _resource_serialize(o: Any) -> str:
        if isinstance(o, dict) and o.get("size", "") is None:
            o = {name: value for name, value in o.items() if name != "size"}
        return json.dumps(o)

    def _get_headers_for_request(
        self,
        legacy: bool = False,
        **ranging: Any,
    ) -> dict[str, str]:
        """Return the `Range` header that a list needs; none for its first page as it comes."""
        if ranging.get("valrange"):
            return {"Range": ranging["valrange"]}
        options = [f"max={ranging['limit']}"] if ranging.get("limit") else []
        options += [f"order={ranging['sort']}"] if ranging.get("sort") else []
        if not options:
            return {}
        return {"Range": f"{ranging.get('order_by') or 'id'} ..; {', '.join(options)}"}

    def _http_resource(
        self,
        method: str,
        resource: str | Sequence[str],
        params: Mapping[str, str] | None = None,
        data: str | None = None,
        **ranging: Any,
    ) -> requests.Response:
        parts = resource.split("/") if isinstance(resource, str) else resource
        ranges = self._get_headers_for_request(**ranging)
        return self._exchange(method, parts, body=data, params=params, headers=ranges)

    def _get_data(
        self,
        resource: str | Sequence[str],
        params: Mapping[str, str] | None = None,
        **ranging: Any,
    ) -> list[Any]:
        items: list[Any] = []
        seen: set[str] = set()
        once = ranging.get("limit") is not None
        while len(seen) < MAX_PAGES:
            response = self._http_resource("GET", resource, params=params, **ranging)
            items += _decoded(response, list[Any])
            following = response.headers.get("Next-Range") if response.status_code == 206 else None
            if following is None or once:
                return items
            if following in seen:
                break
            seen.add(following)
            ranging = {"valrange": following}
        raise Unavailable("a list without an end")

    # Ours

    def _one(self, parts: Sequence[str], kind: type[T]) -> T:
        return _decoded(self._exchange("GET", parts), kind)

    def _all(self, parts: Sequence[str], kind: type[T], **ranging: Any) -> list[T]:
        items = self._get_data(parts, **ranging)
        try:
            return [msgspec.convert(item, kind) for item in items]
        except msgspec.ValidationError as error:
            raise Unavailable(f"an answer of another shape: {error}", sent=True) from None

    def _exchange(
        self,
        method: str,
        parts: Sequence[str],
        *,
        body: str | None = None,
        hidden: tuple[str, ...] = (),
        **options: Any,
    ) -> requests.Response:
        """Make one request and return its answer, if that is a success."""
        url = self._url_for(*(quote(str(part), safe="") for part in parts))
        send = self._session.request
        response = self._within(send, method, url, data=body, **options)
        self._meter.note(response.headers)
        self._last_request_id = response.headers.get("Request-Id")
        if 200 <= response.status_code < 300:
            return response
        wait = response.headers.get("Retry-After")
        secrets = (self._secret, *hidden)
        raise refusal(response.status_code, response.content, wait, secrets)

    def _within(
        self, send: Callable[..., requests.Response], *args: Any, **options: Any
    ) -> requests.Response:
        try:
            return send(*args, **options)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            # From nothing: those exceptions hold the request, and it the key.
            raise Unavailable(_cause(error), sent=not _never_sent(error)) from None


def _decoded(response: requests.Response, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(response.content, type=kind)
    except msgspec.DecodeError as error:
        raise Unavailable(f"an answer of another shape: {error}", sent=True) from None


def _reason(error: Exception) -> object:
    """Return what urllib3 gave up for, if it says so."""
    return getattr(error.args[0], "reason", None) if error.args else None


def _never_sent(error: Exception) -> bool:
    """Whether the platform has certainly not got the request."""
    if isinstance(error, requests.ConnectTimeout):
        return True
    return isinstance(_reason(error), urllib3.exceptions.NewConnectionError) or (
        isinstance(error, requests.exceptions.SSLError)
        and "CERTIFICATE_VERIFY_FAILED" in str(error)
    )


def _cause(error: Exception) -> str:
    """Name what happened; the exception's own text holds addresses."""
    return type(_reason(error) or error).__name__
