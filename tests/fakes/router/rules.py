"""What the router demands, says and writes down. Pure.

Sources: devcenter's pages on HTTP routing, error codes and request ids; the open-sourced
predecessor of the router for what they leave out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    import h11

    Headers = list[tuple[bytes, bytes]]

VIA = b"1.1 heroku-router"

HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"te", b"upgrade"})
"""What holds for one connection only. Transfer-Encoding stays: the framing is the same on both."""

FORWARDED = frozenset(
    {
        b"x-forwarded-for",
        b"x-forwarded-proto",
        b"x-forwarded-port",
        b"x-request-start",
        b"x-request-id",
        b"via",
    }
)
"""What the router writes, whatever a client wrote there; some of it goes on in what it writes."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9+/=-]{20,200}")

_REASON = {
    400: b"Bad Request",
    405: b"Method Not Allowed",
    417: b"Expectation Failed",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
}

PAGE = b"<!DOCTYPE html>\n<title>Application Error</title>\n<h1>Application error</h1>\n"


@dataclass(frozen=True, slots=True)
class Limits:
    """The router's numbers; the defaults are the real ones. Seconds, bytes, or a count.

    Attributes:
        first_byte_s: from the end of the request to the first byte of the response (H12).
        idle_s: without a byte from either side, before and after that (H15, H28).
        connect_s: for one attempt to connect to a dyno (H19).
        connect_tries: dynos tried for one request.
        connect_total_s: for all attempts (H99).
        keep_alive_s: how long an unused connection, to a dyno or to a client, is kept.
        request_line_bytes: method, target and version.
        header_line_bytes: one header of a request, name, value and what is between.
        header_name_bytes: its name alone.
        headers: how many a request may have.
        response_header_bytes: one header of a response (H25).
        cookie_bytes: one Set-Cookie of a response (H25).
        status_line_bytes: of a response (H25).
        concurrency_per_dyno: requests under way, upgraded ones included (H11).
        buffer_bytes: of a response that its client has not read yet; then the dyno has to wait.
        orphan_s: how long a request that was given up (H12) may go on in its dyno.
        linger_s: how long a client may go on sending after it was refused.
    """

    first_byte_s: float = 30.0
    idle_s: float = 55.0
    connect_s: float = 5.0
    connect_tries: int = 10
    connect_total_s: float = 75.0
    keep_alive_s: float = 90.0
    request_line_bytes: int = 8192
    header_line_bytes: int = 8192
    header_name_bytes: int = 1000
    headers: int = 1000
    response_header_bytes: int = 512 * 1024
    cookie_bytes: int = 8192
    status_line_bytes: int = 8192
    concurrency_per_dyno: int = 200
    buffer_bytes: int = 1024 * 1024
    orphan_s: float = 3600.0
    linger_s: float = 2.0

    @property
    def request_head_bytes(self) -> int:
        """The largest head that keeps every limit."""
        return self.request_line_bytes + self.headers * (self.header_line_bytes + 2) + 4


@dataclass(frozen=True, slots=True)
class Fault:
    """What a code means.

    Attributes:
        status: of the log line and, if the client still listens and has seen nothing, its answer.
        description: `desc` of the log line.
        level: `at` of the log line.
    """

    status: int
    description: str
    level: str = "error"


FAULTS = {
    "H11": Fault(503, "Backlog too deep"),
    "H12": Fault(503, "Request timeout"),
    "H13": Fault(503, "Connection closed without response"),
    "H14": Fault(503, "No web processes running"),
    "H15": Fault(503, "Idle connection"),
    "H17": Fault(503, "Poorly formatted HTTP response"),
    "H18": Fault(503, "Server Request Interrupted"),
    "H19": Fault(503, "Backend connection timeout"),
    "H21": Fault(503, "Backend connection refused"),
    "H25": Fault(502, "HTTP restriction"),
    "H26": Fault(400, "Request Error"),
    "H27": Fault(499, "Client Request Interrupted", "info"),
    "H28": Fault(499, "Client Connection Idle"),
    "H99": Fault(503, "Platform error"),
}

CAUSED_BY_CLIENTS = frozenset({"H26", "H27", "H28"})


class Cut(Exception):
    """An exchange that the router ends.

    Attributes:
        code: of FAULTS; None for a client that went when its answer had begun, which is no error.
        status: for the client, and for the log.
        detail: what of several things it was.
    """

    def __init__(self, code: str | None, detail: str = "", status: int = 0) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail
        self.status = status or (FAULTS[code].status if code else 0)


@dataclass(slots=True)
class Record:
    """One request as the router's log has it.

    Attributes:
        method, path, host, request_id: of the request; `path` with its query.
        fwd: addresses that it came over, the right-most one is the router's own knowledge.
        dyno: `web.N`, or empty if it reached none.
        connect_ms, service_ms: for the connection, and from then to the end.
        status: that the client was sent, or would have been; 0 as long as there is none.
        bytes: of the response's body; after an upgrade, all that came from the dyno.
        code: None if all went well.
        detail: which of the things that the code stands for.
        protocol: as in `http1.1`.
        upgraded: the connection became a tunnel.
    """

    method: str = ""
    path: str = ""
    host: str = ""
    request_id: str = ""
    fwd: str = ""
    dyno: str = ""
    connect_ms: int = 0
    service_ms: int = 0
    status: int = 0
    bytes: int = 0
    code: str | None = None
    detail: str = ""
    protocol: str = "http1.1"
    upgraded: bool = False

    def line(self, tls: bool) -> str:
        """Return the line of the router's log, without its prefix."""
        parts = ["at=info"]
        if self.code is not None:
            fault = FAULTS[self.code]
            said = f"{fault.description}: {self.detail}" if self.detail else fault.description
            parts = [f"at={fault.level}", f"code={self.code}", f"desc={_quoted(said)}"]
        reached = bool(self.dyno)
        parts += [
            f"method={self.method}",
            f"path={_quoted(self.path)}",
            f"host={self.host}",
            f"request_id={self.request_id}",
            f"fwd={_quoted(self.fwd)}",
            f"dyno={self.dyno}",
            f"connect={self.connect_ms}ms" if reached else "connect=",
            f"service={self.service_ms}ms" if reached else "service=",
            f"status={self.status}",
            f"bytes={self.bytes}",
            f"protocol={self.protocol}",
            f"tls={str(tls).lower()}",
        ]
        return " ".join([*parts, "tls_version=tls1.3"] if tls else parts)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def record_of(request: h11.Request, peer: str, fresh_id: str) -> Record:
    """Return the record that a request begins with.

    Args:
        request: its head.
        peer: the address that its connection comes from.
        fresh_id: for a request that brings no good id: 20 to 200 letters, digits or `+/=-`.
    """
    given = value_of(request.headers, b"x-request-id")
    before = [v.decode("latin-1") for n, v in request.headers if n == b"x-forwarded-for"]
    return Record(
        method=request.method.decode("ascii"),
        path=request.target.decode("ascii"),
        host=value_of(request.headers, b"host"),
        request_id=given if _REQUEST_ID.fullmatch(given) else fresh_id,
        fwd=", ".join([*before, peer]),
        protocol=f"http{request.http_version.decode('ascii')}",
    )


def check_request(request: h11.Request, limits: Limits) -> None:
    """Refuse what never reaches a dyno.

    Raises:
        Cut: H26, with the status for the client.
    """
    if request.method == b"CONNECT":
        raise Cut("H26", "bad method", 405)
    if len(request.method) + len(request.target) + len(b"  HTTP/1.1") > limits.request_line_bytes:
        raise Cut("H26", "request line too long")
    raw = request.headers.raw_items()
    if len(raw) > limits.headers:
        raise Cut("H26", "too many headers")
    for name, value in raw:
        if len(name) > limits.header_name_bytes:
            raise Cut("H26", "header name too long")
        if _line_bytes(name, value) > limits.header_line_bytes:
            raise Cut("H26", "header line too long")
    if value_of(request.headers, b"expect").lower() not in {"", "100-continue"}:
        raise Cut("H26", "unsupported expect header value", 417)


def check_response(response: h11.Response | h11.InformationalResponse, limits: Limits) -> None:
    """Refuse a response that no client gets.

    Raises:
        Cut: H25.
    """
    if len(response.reason) + len(b"HTTP/1.1 200 ") > limits.status_line_bytes:
        raise Cut("H25", "oversized status line")
    for name, value in response.headers.raw_items():
        if name.lower() == b"set-cookie" and _line_bytes(name, value) > limits.cookie_bytes:
            raise Cut("H25", "oversized cookie")
        if _line_bytes(name, value) > limits.response_header_bytes:
            raise Cut("H25", "oversized header")


def _line_bytes(name: bytes, value: bytes) -> int:
    return len(name) + len(b": ") + len(value)


def request_headers(request: h11.Request, record: Record, scheme: str, start_ms: int) -> Headers:
    """Return the headers for the dyno: the client's, as it wrote them, and the router's own."""
    kept = _passing(request.headers.raw_items(), FORWARDED | {b"expect"})
    port = b"443" if scheme == "https" else b"80"
    via = [value for name, value in request.headers if name == b"via"]
    own = [
        (b"X-Request-Id", record.request_id.encode("ascii")),
        (b"X-Forwarded-For", record.fwd.encode("latin-1")),
        (b"X-Forwarded-Proto", scheme.encode("ascii")),
        (b"X-Forwarded-Port", port),
        (b"X-Request-Start", str(start_ms).encode("ascii")),
        (b"Via", b", ".join([*via, VIA])),
    ]
    upgrade = [value for name, value in request.headers if name == b"upgrade"]
    if upgrade and b"upgrade" in _nominated(request.headers):
        own += [(b"Connection", b"Upgrade"), (b"Upgrade", b", ".join(upgrade))]
    return [*kept, *own]


def response_headers(response: h11.Response) -> Headers:
    """Return the headers for the client: the dyno's, as it wrote them, and `Via`."""
    via = [value for name, value in response.headers if name == b"via"]
    kept = _passing(response.headers.raw_items(), frozenset({b"via"}))
    return [*kept, (b"Via", b", ".join([*via, VIA]))]


def _passing(raw: list[tuple[bytes, bytes]], own: frozenset[bytes]) -> Headers:
    away = HOP_BY_HOP | own | _nominated((name.lower(), value) for name, value in raw)
    return [(name, value) for name, value in raw if name.lower() not in away]


def _nominated(headers: Iterable[tuple[bytes, bytes]]) -> set[bytes]:
    values = b",".join(value for name, value in headers if name == b"connection")
    # Connection may not name what both ends need (RFC 9110, 7.6.1).
    return {part.strip().lower() for part in values.split(b",")} - {b"host", b"transfer-encoding"}


def value_of(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> str:
    """Return the first header of that name, or an empty string."""
    return next((value.decode("latin-1") for name, value in headers if name == wanted), "")


def page_headers() -> Headers:
    """Return the headers of the router's own answer, whose body is PAGE."""
    return [
        (b"Content-Type", b"text/html; charset=utf-8"),
        (b"Cache-Control", b"no-cache, no-store"),
        (b"Content-Length", str(len(PAGE)).encode("ascii")),
        (b"Connection", b"close"),
        (b"Via", VIA),
    ]


def reason_of(status: int) -> bytes:
    """Return the words for a status that the router gives itself."""
    return _REASON.get(status, b"")
