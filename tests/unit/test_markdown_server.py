"""The bundled Markdown server: what it fetches, from whom, and what it makes of it."""

from __future__ import annotations

import asyncio
import gzip
import io
import ipaddress
import os
import socket
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from hypothesis import given, settings
from hypothesis import strategies as st
from mcp import Client

from mcp_servers.limits import BadSettingError
from mcp_servers.markdown import convert
from mcp_servers.markdown.addresses import Allowed, is_public
from mcp_servers.markdown.fetching import Document, Fetcher, FetchError
from mcp_servers.markdown.reader import MOST_AT_ONCE, Reader, ReadError
from mcp_servers.markdown.server import build
from mcp_servers.markdown.settings import Limits, Settings, settings_from
from tests.fakes.bundled import a_pdf, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from mcp.types import CallToolResult

pytestmark = pytest.mark.timeout(240)

deterministic = settings(deadline=None, derandomize=True, database=None)

in_one_loop = pytest.mark.asyncio(loop_scope="module")
"""For tests that share the site and the server."""

REPOSITORY = Path(__file__).resolve().parents[2]

BOUND_S = 60.0
"""Seconds for anything that is due at once, on a machine that does much else."""

HERE = "127.0.0.1"
LOCAL = Allowed.parse(HERE)
NOBODY = Allowed()
MOST = 200_000
"""Bytes of a document, in tests."""

PAGE = (
    "<html><head><title>T</title><style>p {}</style></head><body><h1>Über</h1>"
    "<p>a <a href='/there'>link</a></p><script>bad()</script>"
    "<table><tr><th>k</th></tr><tr><td>v</td></tr></table></body></html>"
)


def zipped(text: str) -> tuple[bytes, dict[str, str]]:
    return gzip.compress(text.encode()), {"Content-Type": "text/html", "Content-Encoding": "gzip"}


DOCUMENTS: dict[str, tuple[bytes, dict[str, str]]] = {
    "/page": (PAGE.encode(), {"Content-Type": "text/html; charset=utf-8"}),
    "/latin": ("<p>größe</p>".encode("latin-1"), {"Content-Type": "text/html;charset=l1"}),
    "/strange": ("<p>größe</p>".encode(), {"Content-Type": "text/html; charset=no-such"}),
    "/text": (b"# *as it is*", {"Content-Type": "text/plain"}),
    "/pdf": (a_pdf("Hello", "from a PDF"), {"Content-Type": "application/pdf"}),
    "/pdf-octets": (a_pdf("Hello"), {"Content-Type": "application/octet-stream"}),
    "/big": (b"<p>" + b"x" * MOST, {"Content-Type": "text/html"}),
    "/zipped": zipped(PAGE),
    "/bomb": zipped("<p>" + "x" * 50 * MOST),
}
"""Paths, and what is there."""


class Site:
    """A real web server of this machine.

    Attributes:
        port: It listens on.
        asked: Paths that were asked for.
        headers: Of the last request.
        hanging: Set as soon as somebody asked for `/hang`.
        left: Set when whoever asked for `/hang` has gone away.
    """

    def __init__(self) -> None:
        self.port = 0
        self.asked: list[str] = []
        self.headers: Mapping[str, str] = {}
        self.hanging = asyncio.Event()
        self.left = asyncio.Event()

    def at(self, path: str, host: str = HERE) -> str:
        return f"http://{host}:{self.port}{path}"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        self.headers = request.headers
        if (document := DOCUMENTS.get(request.path)) is not None:
            return web.Response(body=document[0], headers=document[1])
        match request.path.split("/")[1:]:
            case ["typed", kind, more]:
                return web.Response(body=b"<p>x", headers={"Content-Type": f"{kind}/{more}"})
            case ["to", *target]:
                return redirect("/".join(target))
            case ["loop", number]:
                return redirect(f"/loop/{int(number) + 1}")
            case [*_, number]:
                return web.Response(status=int(number), text="<p>no")
            case _:
                raise AssertionError(request.path)

    async def endless(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/html"})
        await response.prepare(request)
        try:
            while True:
                await response.write(b"<p>more" * 1000)
        except ConnectionError:
            return response

    async def hang(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/html"})
        await response.prepare(request)
        await response.write(b"<p>begun")
        self.hanging.set()
        try:
            async with asyncio.timeout(BOUND_S):
                await asyncio.Event().wait()
        finally:
            self.left.set()
        raise AssertionError("nobody left")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site() -> AsyncIterator[Site]:
    site = Site()
    runner = web.AppRunner(
        web.Application(), handler_cancellation=True, access_log=None, shutdown_timeout=0.1
    )
    runner.app.router.add_get("/endless", site.endless)
    runner.app.router.add_get("/hang", site.hang)
    runner.app.router.add_get("/{path:.*}", site.answer)
    await runner.setup()
    port = web.TCPSite(runner, HERE, 0)
    await port.start()
    site.port = runner.addresses[0][1]
    yield site
    await runner.cleanup()


def redirect(target: str) -> web.Response:
    return web.Response(status=302, headers={"Location": target, "Set-Cookie": "a=b; Path=/"})


class Names(AbstractResolver):
    """Looks names up in a table; each question gets the next answer, the last for good."""

    def __init__(self, **answers: list[str]) -> None:
        self._answers = answers

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        answers = self._answers[host.partition(".")[0]]
        address = answers.pop(0) if len(answers) > 1 else answers[0]
        kind = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=0)
        ]

    async def close(self) -> None:
        pass


async def nothing(_count: int, _total: int | None) -> None:
    pass


async def fetch(
    url: str,
    allowed: Allowed = LOCAL,
    *,
    pdf: bool = False,
    most: int = MOST,
    names: Names | None = None,
    tell: Callable[[int, int | None], Awaitable[None]] = nothing,
) -> tuple[Document, bytes]:
    into = io.BytesIO()
    async with asyncio.timeout(BOUND_S):
        document = await Fetcher(allowed, most, resolver=names).fetch(
            url, pdf=pdf, into=into, tell=tell
        )
    return document, into.getvalue()


async def refusal(url: str, allowed: Allowed = LOCAL, **options: Any) -> str:
    with pytest.raises(FetchError) as caught:
        await fetch(url, allowed, **options)
    return str(caught.value)


# -- addresses -------------------------------------------------------------------------------------

NOT_PUBLIC = [
    "0.0.0.0",  # noqa: S104
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.0.1",
    "169.254.169.254",
    "168.63.129.16",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.1.1.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:0:53aa:64c::1",
    "2001:db8::1",
    "2002:7f00:1::1",
    "2002:808:808::1",
    "3fff::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "4000::1",
]

PUBLIC = (
    *("1.1.1.1", "8.8.8.8", "172.32.0.1", "192.0.1.1", "2606:4700::1111"),
    *("::ffff:8.8.8.8", "64:ff9b::808:808"),
)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_address_that_is_not_public_is_not_reached(address: str) -> None:
    assert not NOBODY.may_reach("example.com", address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_address_is_reached(address: str) -> None:
    assert NOBODY.may_reach("example.com", address)


@deterministic
@given(st.ip_addresses(v=4))
def test_every_form_of_an_ipv4_address_is_judged_like_it_or_refused(
    address: ipaddress.IPv4Address,
) -> None:
    number = int(address)
    hidden = (
        ipaddress.IPv6Address((0xFFFF << 32) | number),
        ipaddress.IPv6Address((0x64FF9B << 96) | number),
        ipaddress.IPv6Address(number),
        ipaddress.IPv6Address((0x2002 << 112) | (number << 80) | 1),
    )
    assert [is_public(form) for form in hidden] == [is_public(address)] * 2 + [False] * 2


@pytest.mark.parametrize(
    ("text", "host", "address"),
    [
        ("10.1.0.0/16", "example.com", "10.1.2.3"),
        ("10.1.0.0/16", "example.com", "::ffff:10.1.2.3"),
        ("wiki.corp", "WIKI.corp", "10.9.9.9"),
        (" a.b , fd00::/8,", "example.com", "fd00::1"),
    ],
)
def test_allowed_host_or_network_is_reached(text: str, host: str, address: str) -> None:
    assert Allowed.parse(text).may_reach(host, address)


@pytest.mark.parametrize(
    ("text", "host", "address"),
    [
        ("10.1.0.0/16", "example.com", "10.2.0.1"),
        ("wiki.corp", "evil.wiki.corp", "10.9.9.9"),
        ("wiki.corp", "wiki.corp.evil.com", "10.9.9.9"),
        ("", "", "127.0.0.1"),
    ],
)
def test_allowing_one_allows_no_other(text: str, host: str, address: str) -> None:
    assert not Allowed.parse(text).may_reach(host, address)


# -- settings --------------------------------------------------------------------------------------


def test_missing_and_empty_variables_leave_the_defaults() -> None:
    assert settings_from({"MARKDOWN_TIMEOUT_S": ""}) == Settings(Limits(), NOBODY)


def test_variables_set_the_settings() -> None:
    variables = {
        "MARKDOWN_TIMEOUT_S": "2.5",
        "MARKDOWN_MAX_BYTES": "1000",
        "MARKDOWN_MAX_OUTPUT_BYTES": "2000",
        "MARKDOWN_MAX_MEMORY_BYTES": "3000000",
        "MARKDOWN_ALLOW_PRIVATE": HERE,
    }
    assert settings_from(variables) == Settings(Limits(2.5, 1000, 2000, 3_000_000), LOCAL)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MARKDOWN_TIMEOUT_S", "0"),
        ("MARKDOWN_MAX_BYTES", "1e9"),
        ("MARKDOWN_MAX_OUTPUT_BYTES", str(2**40)),
        ("MARKDOWN_MAX_MEMORY_BYTES", "512"),
        ("MARKDOWN_ALLOW_PRIVATE", "10.0.0.0/33"),
        ("MARKDOWN_ALLOW_PRIVATE", "10.0.0.1/8"),
        ("MARKDOWN_ALLOW_PRIVATE", "10.0.0.256"),
        ("MARKDOWN_ALLOW_PRIVATE", "http://wiki"),
        ("MARKDOWN_ALLOW_PRIVATE", "*"),
    ],
)
def test_unusable_value_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(BadSettingError, match=f"^{name}"):
        settings_from({name: value})


# -- fetching --------------------------------------------------------------------------------------


@in_one_loop
async def test_page_is_fetched(site: Site) -> None:
    document, body = await fetch(site.at("/page"))
    assert (document, body) == (Document("html", "utf-8"), PAGE.encode())


@pytest.mark.parametrize(
    ("path", "pdf", "kind"),
    [
        ("/typed/text/html", False, "html"),
        ("/typed/application/xhtml+xml", False, "html"),
        ("/typed/TEXT/Plain", False, "text"),
        ("/pdf", True, "pdf"),
        ("/pdf-octets", True, "pdf"),
    ],
)
@in_one_loop
async def test_kind_is_told_by_type_or_first_bytes(
    site: Site, path: str, pdf: bool, kind: str
) -> None:
    assert (await fetch(site.at(path), pdf=pdf))[0].kind == kind


@pytest.mark.parametrize(
    ("path", "pdf", "hint"),
    [
        ("/pdf", False, "use pdf_to_markdown"),
        ("/pdf-octets", False, "use pdf_to_markdown"),
        ("/page", True, "use html_to_markdown"),
        ("/typed/image/png", False, "image/png"),
        ("/typed/application/zip", True, "application/zip"),
    ],
)
@in_one_loop
async def test_other_kinds_are_refused_with_a_hint(
    site: Site, path: str, pdf: bool, hint: str
) -> None:
    assert hint in await refusal(site.at(path), pdf=pdf)


@pytest.mark.parametrize("number", [204, 403, 500])
@in_one_loop
async def test_status_that_is_no_success_is_told(site: Site, number: int) -> None:
    assert str(number) in await refusal(site.at(f"/status/{number}"))


UNDERSTOOD = ("127.0.0.1", "0x7f000001", "0x7f.1", "localhost", "0.0.0.0")  # noqa: S104
SPELLINGS = (
    *UNDERSTOOD,
    *("127.1", "2130706433", "0177.0.0.1", "127.0.0.1.", "LOCALHOST", "①②⑦.⓪.⓪.①"),
    *("[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::]"),
)


@pytest.mark.parametrize("host", SPELLINGS)
@in_one_loop
async def test_no_spelling_of_this_machine_is_connected_to(site: Site, host: str) -> None:
    site.asked.clear()
    await refusal(site.at("/page", host), NOBODY)
    assert site.asked == []


@pytest.mark.parametrize("host", UNDERSTOOD)
@in_one_loop
async def test_spelling_is_not_what_is_refused(site: Site, host: str) -> None:
    """Or the test above would pass with spellings that nobody understands."""
    assert (await fetch(site.at("/page", host), Allowed.parse("127.0.0.0/8,0.0.0.0")))[1]


@in_one_loop
async def test_refusal_names_the_variable_that_allows(site: Site) -> None:
    assert "MARKDOWN_ALLOW_PRIVATE" in await refusal(site.at("/page"), NOBODY)


@in_one_loop
async def test_name_of_a_private_address_is_refused(site: Site) -> None:
    site.asked.clear()
    url = site.at("/page", "innocent.example")
    assert "public internet" in await refusal(url, NOBODY, names=Names(innocent=[HERE]))
    assert site.asked == []


@in_one_loop
async def test_name_that_changes_to_a_private_address_is_refused(site: Site) -> None:
    """The first look-up, which a check beforehand would believe, is harmless; the next is not."""
    names = Names(rebinding=[HERE, "127.0.0.2"])
    url = site.at(f"/to/{site.at('/page', 'rebinding.example')}", "rebinding.example")
    site.asked.clear()
    assert "public internet" in await refusal(url, LOCAL, names=names)
    assert len(site.asked) == 1


@in_one_loop
async def test_redirect_to_a_private_address_is_refused(site: Site) -> None:
    site.asked.clear()
    url = site.at(f"/to/{site.at('/page', 'localhost')}", "start.example")
    message = await refusal(
        url,
        Allowed.parse("start.example"),
        names=Names(start=[HERE], localhost=[HERE]),
    )
    assert "localhost is not on the public internet" in message
    assert len(site.asked) == 1


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://example.com/", "gopher://x:70/"])
@in_one_loop
async def test_redirect_away_from_http_is_refused(site: Site, target: str) -> None:
    assert "begins with http" in await refusal(site.at(f"/to/{target}"))


@in_one_loop
async def test_redirects_are_followed(site: Site) -> None:
    assert (await fetch(site.at("/to//to//page")))[1] == PAGE.encode()


@in_one_loop
async def test_redirects_without_end_are_given_up(site: Site) -> None:
    site.asked.clear()
    assert "more than 5 redirects" in await refusal(site.at("/loop/0"))
    assert len(site.asked) == 6


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("ftp://example.com/", "http://"),
        ("file:///etc/passwd", "http://"),
        ("example.com", "http://"),
        ("http://", "http://"),
        ("", "http://"),
        ("http://[::1", "not a URL"),
        ("http://example.com:99999/", "not a URL"),
        ("http://user:secret@example.com/", "leave them out"),
        ("http://user@example.com/", "leave them out"),
        ("http://example.com:22/", "Port 22"),
        ("https://example.com:25/", "Port 25"),
    ],
)
@in_one_loop
async def test_url_that_is_not_fetched_is_refused_with_what_would_be(url: str, hint: str) -> None:
    message = await refusal(url)
    assert hint in message
    assert "secret" not in message


@in_one_loop
async def test_proxies_of_the_environment_are_not_asked(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert (await fetch(site.at("/page")))[1]


@in_one_loop
async def test_cookies_are_not_kept(site: Site) -> None:
    await fetch(site.at("/to//page", "shop.example"), names=Names(shop=[HERE]))
    assert site.asked[-1] == "/page"
    assert "Cookie" not in site.headers


@in_one_loop
async def test_document_over_the_limit_is_refused_by_its_length(site: Site) -> None:
    counts = list[int]()

    async def tell(count: int, _total: int | None) -> None:
        counts.append(count)

    assert "MARKDOWN_MAX_BYTES" in await refusal(site.at("/big"), tell=tell)
    assert counts == []


@pytest.mark.parametrize("path", ["/bomb", "/endless"])
@in_one_loop
async def test_document_of_unknown_length_is_stopped_at_the_limit(site: Site, path: str) -> None:
    counts = list[int]()

    async def tell(count: int, _total: int | None) -> None:
        counts.append(count)

    assert "MARKDOWN_MAX_BYTES" in await refusal(site.at(path), tell=tell)
    assert 0 < counts[-1] <= MOST


@in_one_loop
async def test_document_of_just_the_limit_is_fetched(site: Site) -> None:
    assert len((await fetch(site.at("/big"), most=MOST + 3))[1]) == MOST + 3


@in_one_loop
async def test_progress_counts_bytes_of_how_many(site: Site) -> None:
    told = list[tuple[int, int | None]]()

    async def tell(count: int, total: int | None) -> None:
        told.append((count, total))

    await fetch(site.at("/big"), most=MOST + 3, tell=tell)
    assert [total for _, total in told] == [MOST + 3] * len(told)
    assert told[-1][0] == MOST + 3
    assert told == sorted(told)


@in_one_loop
async def test_progress_of_what_is_compressed_is_of_unknown_length(site: Site) -> None:
    told = list[tuple[int, int | None]]()

    async def tell(count: int, total: int | None) -> None:
        told.append((count, total))

    assert (await fetch(site.at("/zipped"), tell=tell))[1] == PAGE.encode()
    assert told == [(len(PAGE.encode()), None)]


@pytest.mark.parametrize(
    ("path", "charset"), [("/latin", "l1"), ("/strange", None), ("/typed/text/html", None)]
)
@in_one_loop
async def test_charset_is_what_the_server_says_if_anybody_knows_it(
    site: Site, path: str, charset: str | None
) -> None:
    assert (await fetch(site.at(path)))[0].charset == charset


@in_one_loop
async def test_host_that_refuses_connections_is_told(site: Site) -> None:
    with socket.socket() as closed:
        closed.bind((HERE, 0))
        message = await refusal(f"http://{HERE}:{closed.getsockname()[1]}/")
    assert "cannot be reached" in message


@in_one_loop
async def test_host_without_tls_is_told(site: Site) -> None:
    assert "TLS" in await refusal(site.at("/page").replace("http:", "https:"))


async def test_host_that_does_not_speak_http_is_told() -> None:
    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        writer.close()

    server = await asyncio.start_server(talk, HERE, 0)
    async with server:
        message = await refusal(f"http://{HERE}:{server.sockets[0].getsockname()[1]}/")
    assert "does not speak HTTP" in message


# -- converting ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file() -> Path:
    return Path(tempfile.mkdtemp(), "document")


def test_page_becomes_markdown_without_scripts(file: Path) -> None:
    file.write_text(PAGE, encoding="utf-8")
    expected = "# Über\n\na [link](/there)\n\n| k |\n| --- |\n| v |"
    assert convert.html(file) == expected


def test_charset_of_the_page_itself_counts_if_the_server_said_none(file: Path) -> None:
    file.write_bytes("<meta charset=iso-8859-1><p>größe".encode("latin-1"))
    assert convert.html(file) == "größe"


def test_page_of_endless_depth_becomes_text(file: Path) -> None:
    file.write_text("<div>" * 5000 + "down here", encoding="utf-8")
    assert convert.html(file) == "down here"


def test_pdf_becomes_its_text(file: Path) -> None:
    file.write_bytes(a_pdf("Hello", "from a PDF"))
    assert convert.pdf(file).split() == ["Hello", "from", "a", "PDF"]


def test_text_stays_as_it_is(file: Path) -> None:
    file.write_bytes("# größe\n".encode("latin-1"))
    assert convert.text(file, "latin-1") == "# größe\n"


def test_text_that_is_not_what_it_says_is_still_read(file: Path) -> None:
    file.write_bytes("größe".encode("latin-1"))
    assert convert.text(file) == "gr��e"


def test_program_writes_utf_8_whatever_the_converter_finds(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """A font of a PDF may map a glyph to half a surrogate pair."""
    monkeypatch.setitem(convert.KINDS, "text", lambda _file: "größe \ud800")
    monkeypatch.setattr("sys.argv", ["convert", "text", "file"])
    convert.main()
    sys.stdout.flush()
    assert capfdbinary.readouterr().out == "größe ?".encode()


def test_program_refuses_what_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["convert", "exe", "file"])
    with pytest.raises(SystemExit) as ended:
        convert.main()
    assert ended.value.code == 64


# -- one call --------------------------------------------------------------------------------------


class Given(Fetcher):
    """Fetches what it is given; stands in for the internet."""

    def __init__(self, body: bytes, document: Document) -> None:
        super().__init__(NOBODY, MOST)
        self._body, self._document = body, document

    async def fetch(self, url: str, **options: Any) -> Document:
        options["into"].write(self._body)
        return self._document


async def quiet(_line: str) -> None:
    pass


@asynccontextmanager
async def reading(body: bytes, kind: str, **limits: Any) -> AsyncIterator[Reader]:
    fetcher = Given(body, Document(kind, None))
    reader = Reader(Settings(Limits(**limits)), os.environ, fetcher=fetcher)
    try:
        async with asyncio.timeout(BOUND_S):
            yield reader
    finally:
        reader.close()


async def failure(body: bytes, kind: str, **limits: Any) -> str:
    async with reading(body, kind, **limits) as reader:
        with pytest.raises(ReadError) as caught:
            await reader.read("http://x", pdf=kind == "pdf", tell=quiet)
    return str(caught.value)


@in_one_loop
async def test_long_result_is_cut_and_says_by_what() -> None:
    async with reading(b"begin" + b"x" * 5000 + b"end", "text", max_output_bytes=1000) as reader:
        markdown = await reader.read("http://x", pdf=False, tell=quiet)
    assert markdown.startswith("begin")
    assert markdown.endswith("end")
    assert len(markdown) < 1200
    assert "MARKDOWN_MAX_OUTPUT_BYTES" in markdown


@in_one_loop
async def test_conversion_that_takes_too_much_memory_is_told() -> None:
    message = await failure(b"<p>" * 2_000_000, "html", max_memory_bytes=100_000_000)
    assert "MARKDOWN_MAX_MEMORY_BYTES" in message


@in_one_loop
async def test_broken_pdf_is_told_with_the_reason() -> None:
    assert "Unexpected EOF" in await failure(a_pdf("Hello")[:200], "pdf")


@in_one_loop
async def test_pdf_without_text_is_told() -> None:
    assert "pictures" in await failure(a_pdf(), "pdf")


@in_one_loop
async def test_conversion_sees_no_secrets_of_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(Settings(), {"PATH": "/bin", "API_KEY": "secret", "RENDEZVOUS_X": "y"})
    reader.close()
    assert set(reader._variables) == {"PATH", "PYTHONPATH"}


@in_one_loop
async def test_nothing_is_left_on_disk_after_a_call() -> None:
    async with reading(b"x", "text") as reader:
        await reader.read("http://x", pdf=False, tell=quiet)
        assert list(reader._root.iterdir()) == []
    assert not reader._root.exists()


@in_one_loop
async def test_conversion_waits_for_its_turn_and_says_so() -> None:
    told = list[str]()
    async with reading(b"x", "text") as reader:
        for _ in range(MOST_AT_ONCE):
            await reader._turn.acquire()

        async def tell(line: str) -> None:
            told.append(line)
            if line.startswith("waiting"):
                reader._turn.release()

        assert await reader.read("http://x", pdf=False, tell=tell) == "x"
    assert told == ["fetching", "waiting for other conversions", "converting"]


@in_one_loop
async def test_late_document_is_told_with_the_limit(site: Site) -> None:
    reader = Reader(Settings(Limits(timeout_s=0.3), LOCAL), os.environ)
    with pytest.raises(ReadError, match=r"0\.3 s.*MARKDOWN_TIMEOUT_S"):
        await reader.read(site.at("/hang"), pdf=False, tell=quiet)
    reader.close()


# -- the server ------------------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[Client]:
    async with served("mcp_servers.markdown", MARKDOWN_ALLOW_PRIVATE=HERE) as client:
        yield client


def text_of(answer: CallToolResult) -> str:
    (block,) = answer.content
    assert block.type == "text"
    return block.text


async def call(client: Client, name: str, url: str, **options: Any) -> CallToolResult:
    async with asyncio.timeout(BOUND_S):
        return await client.call_tool(name, {"url": url}, **options)


@asynccontextmanager
async def in_process() -> AsyncIterator[Client]:
    reader = Reader(Settings(), os.environ)
    try:
        async with asyncio.timeout(BOUND_S), Client(build(reader, Limits())) as client:
            yield client
    finally:
        reader.close()


async def test_tools_are_listed_as_in_the_reference() -> None:
    async with in_process() as client:
        tools = (await client.list_tools()).tools
    assert [tool.name for tool in tools] == ["html_to_markdown", "pdf_to_markdown"]
    for tool in tools:
        assert tool.input_schema["required"] == ["url"]
        assert list(tool.input_schema["properties"]) == ["url"]
        assert tool.input_schema["properties"]["url"]["type"] == "string"
        assert tool.annotations is not None
        assert tool.annotations.read_only_hint


@pytest.mark.parametrize(
    ("tool", "path", "words"),
    [
        ("html_to_markdown", "/page", "# Über"),
        ("html_to_markdown", "/latin", "größe"),
        ("html_to_markdown", "/text", "# *as it is*"),
        ("pdf_to_markdown", "/pdf", "from a PDF"),
    ],
)
@in_one_loop
async def test_document_comes_back_as_text_and_structured(
    site: Site, client: Client, tool: str, path: str, words: str
) -> None:
    answer = await call(client, tool, site.at(path))
    assert not answer.is_error
    assert words in text_of(answer)
    assert answer.structured_content == {"result": text_of(answer)}


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://[::1]/", "not on the public internet"),
        ("ftp://example.com", "http://"),
    ],
)
async def test_refusal_is_a_tool_error_with_its_sentence(url: str, sentence: str) -> None:
    async with in_process() as client:
        answer = await call(client, "html_to_markdown", url)
    assert answer.is_error
    assert sentence in text_of(answer)


@in_one_loop
async def test_progress_is_reported_to_who_asks(site: Site, client: Client) -> None:
    told = list[str | None]()

    async def on_progress(_progress: float, _total: float | None, message: str | None) -> None:
        told.append(message)

    await call(client, "html_to_markdown", site.at("/text"), progress_callback=on_progress)
    assert told[0] == "fetching"
    assert told[-1] == "converting"


@in_one_loop
async def test_cancelling_stops_the_transfer(site: Site, client: Client) -> None:
    site.hanging.clear()
    site.left.clear()
    async with asyncio.timeout(BOUND_S):
        async with asyncio.TaskGroup() as group:
            calling = group.create_task(
                client.call_tool("html_to_markdown", {"url": site.at("/hang")})
            )
            await site.hanging.wait()
            calling.cancel()
        await site.left.wait()


@pytest.mark.usefixtures("measured")
async def test_unusable_setting_ends_the_server_with_its_name() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "mcp_servers.markdown",
        cwd=REPOSITORY,
        env={**os.environ, "MARKDOWN_TIMEOUT_S": "soon"},
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(BOUND_S):
        _, said = await process.communicate()
    assert process.returncode == 78
    assert b"MARKDOWN_TIMEOUT_S" in said


# -- cancelling a conversion -----------------------------------------------------------------------


def converting() -> bool:
    return any(map(converts, psutil.Process().children(recursive=True)))


def converts(process: psutil.Process) -> bool:
    try:
        return "mcp_servers.markdown.convert" in process.cmdline()
    except psutil.NoSuchProcess:  # or a zombie, which is one
        return False


@in_one_loop
async def test_cancelling_kills_the_conversion() -> None:
    begun = asyncio.Event()

    async def tell(line: str) -> None:
        if line == "converting":
            begun.set()

    async with reading(b"<p>" * 2_000_000, "html", max_memory_bytes=2**40) as reader:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(reader.read("http://x", pdf=False, tell=tell))
            await begun.wait()
            while not converting():  # noqa: ASYNC110 - a process sends no events
                await asyncio.sleep(0.01)
            task.cancel()
        while converting():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
