"""Web pages: those of our origins may use the MCP endpoints, through whatever they answer."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from multidict import CIMultiDict

from gateway.edge.cors import METHODS, REQUEST_HEADERS, RESPONSE_HEADERS, Cors
from gateway.edge.intake import check_origin
from gateway.errors import BadKey, BadMessage, GatewayError
from gateway.jsonrpc import error_response

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Set

BOUND = 30.0
"""Seconds for any one wait; nothing here takes one."""

OURS = "https://gw.example.com"
PATHS = ("/mcp", "/servers/{name}/mcp")
ASKS = {"Access-Control-Request-Method": "POST"}
HOSTS = frozenset({"gw.example.com", "127.0.0.1"})

FOREIGN = ["https://evil.example.com", "https://gw.example.com.evil.com", "null", "", "file://"]

WHAT_IT_ANSWERS = ["json", "sse", "accepted", "refused", "bad_key", "redirected"]


async def answers(request: web.Request) -> web.StreamResponse:
    """Answer as the header says, in the ways that an MCP endpoint does."""
    check_origin(request.headers, HOSTS)
    match request.headers["What"]:
        case "sse":
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(b": first\n\n")
            await response.write_eof()
            return response
        case "accepted":
            return web.Response(status=202)
        case "refused":
            raise BadMessage("no")
        case "bad_key":
            raise BadKey("no")
        case "redirected":
            raise web.HTTPFound("/elsewhere")
        case "varying":
            return web.Response(headers={"Vary": "Accept"})
        case _:
            return web.json_response({})


@web.middleware
async def boundary(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except GatewayError as error:
        return web.Response(status=error.status, body=error_response(None, error))


class Page:
    """A browser's requests to one gateway on behalf of a web page."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self._url = url
        self._http = http

    async def sends(
        self, method: str, path: str, headers: Mapping[str, str]
    ) -> tuple[int, CIMultiDict[str]]:
        """Send a request; return status and headers, repeated ones joined."""
        async with (
            asyncio.timeout(BOUND),
            self._http.request(
                method, self._url + path, headers=headers, allow_redirects=False
            ) as response,
        ):
            await response.read()
        got = response.headers
        return response.status, CIMultiDict((name, ", ".join(got.getall(name))) for name in got)

    async def asks(self, headers: Mapping[str, str], path: str = "/mcp") -> CIMultiDict[str]:
        """Send a preflight that must be allowed; return its headers."""
        status, told = await self.sends("OPTIONS", path, {"Origin": OURS, **ASKS, **headers})
        assert status == 204
        return told

    async def posts(
        self, what: str, origin: str | None = OURS, path: str = "/mcp"
    ) -> tuple[int, CIMultiDict[str]]:
        given = {} if origin is None else {"Origin": origin}
        return await self.sends("POST", path, {"What": what, **given})


@asynccontextmanager
async def opened(hosts: Set[str] | None) -> AsyncIterator[Page]:
    cors = Cors(hosts)
    app = web.Application(middlewares=[boundary])
    app.add_routes([web.post(path, answers) for path in PATHS])
    app.add_routes([web.get("/health", answers), *cors.routes(path for path in PATHS)])
    app.on_response_prepare.append(cors.on_prepare)
    async with TestServer(app) as server, aiohttp.ClientSession() as http:
        yield Page(str(server.make_url("")).rstrip("/"), http)


@pytest_asyncio.fixture
async def page() -> AsyncIterator[Page]:
    async with opened(HOSTS) as page:
        yield page


def cors_headers(headers: Mapping[str, str]) -> set[str]:
    return {name.lower() for name in headers if name.lower().startswith("access-control-")}


@pytest.mark.parametrize("path", ["/mcp", "/servers/any/mcp"])
async def test_preflight_tells_a_page_of_ours_what_it_may_send(page: Page, path: str) -> None:
    told = await page.asks({}, path)
    assert {name: told[name] for name in (*cors_headers(told), "Vary")} == {
        "access-control-allow-origin": OURS,
        "access-control-allow-methods": METHODS,
        "access-control-allow-headers": ", ".join(REQUEST_HEADERS),
        "access-control-expose-headers": RESPONSE_HEADERS,
        "access-control-max-age": "7200",
        "Vary": "Origin",
    }


async def test_preflight_has_no_body_and_wants_no_key(page: Page) -> None:
    assert "Content-Length" not in await page.asks({})


@pytest.mark.parametrize(
    ("asked", "allowed"),
    [
        ("Mcp-Param-Region", ["mcp-param-region"]),
        ("mcp-param-a,mcp-param-b , x-mine", ["mcp-param-a", "mcp-param-b", "x-mine"]),
        ("a!#$%&'*+.^_`|~-9", ["a!#$%&'*+.^_`|~-9"]),
        ("x-twice,X-Twice", ["x-twice"]),
        ("Content-Type, authorization", []),
        ("a" * 128, ["a" * 128]),
        ("a" * 129, []),
        ("*", []),
        ("", []),
        (",, ,", []),
        ('two words, semi;colon, quo"te, (x), a:b, \u00e9, a\u00e9, ok', ["ok"]),
    ],
)
async def test_preflight_allows_what_else_is_asked_for_if_it_is_the_name_of_a_header(
    page: Page, asked: str, allowed: list[str]
) -> None:
    told = await page.asks({"Access-Control-Request-Headers": asked})
    assert told["Access-Control-Allow-Headers"].split(", ") == [*REQUEST_HEADERS, *allowed]


@pytest.mark.parametrize("origin", FOREIGN)
async def test_foreign_page_gets_403_from_a_preflight_and_no_permission(
    page: Page, origin: str
) -> None:
    status, told = await page.sends("OPTIONS", "/mcp", {**ASKS, "Origin": origin})
    assert (status, cors_headers(told)) == (403, set())


@pytest.mark.parametrize("path", ["/mcp", "/servers/any/mcp"])
@pytest.mark.parametrize("what", WHAT_IT_ANSWERS)
async def test_page_of_ours_may_read_whatever_an_endpoint_answers(
    page: Page, what: str, path: str
) -> None:
    _, told = await page.posts(what, path=path)
    assert {name: told[name] for name in (*cors_headers(told), "Vary")} == {
        "access-control-allow-origin": OURS,
        "access-control-expose-headers": RESPONSE_HEADERS,
        "Vary": "Origin",
    }


@pytest.mark.parametrize(
    ("what", "status"), [("json", 200), ("sse", 200), ("accepted", 202), ("bad_key", 401)]
)
async def test_status_of_an_answer_stays_what_it_was(page: Page, what: str, status: int) -> None:
    assert (await page.posts(what))[0] == status


@pytest.mark.parametrize("origin", FOREIGN)
async def test_foreign_page_gets_403_and_may_not_even_read_that(page: Page, origin: str) -> None:
    status, told = await page.posts("json", origin)
    assert (status, cors_headers(told)) == (403, set())


@pytest.mark.parametrize("what", WHAT_IT_ANSWERS)
async def test_client_that_is_no_page_gets_no_such_headers(page: Page, what: str) -> None:
    _, told = await page.posts(what, origin=None)
    assert (cors_headers(told), told.get("Vary")) == (set(), None)


async def test_page_may_not_read_what_is_no_mcp_endpoint(page: Page) -> None:
    status, told = await page.sends("GET", "/health", {"What": "json", "Origin": OURS})
    assert (status, cors_headers(told)) == (200, set())


async def test_path_that_is_not_served_is_404_without_permission(page: Page) -> None:
    status, told = await page.sends("OPTIONS", "/elsewhere", {**ASKS, "Origin": OURS})
    assert (status, cors_headers(told)) == (404, set())


async def test_other_reasons_to_vary_are_kept(page: Page) -> None:
    _, told = await page.posts("varying")
    assert told["Vary"] == "Accept, Origin"


@pytest.mark.parametrize("origin", ["https://GW.example.com", f"{OURS}:8443", "http://127.0.0.1:3"])
async def test_origin_is_given_back_as_it_was_written(page: Page, origin: str) -> None:
    _, told = await page.posts("json", origin)
    assert told["Access-Control-Allow-Origin"] == origin


@pytest.mark.parametrize(
    "origin", [f"{OURS}/", f"{OURS}/\udcff", f"{OURS}/a b", "https://me@gw.example.com", f"{OURS}?"]
)
async def test_what_no_browser_writes_is_not_given_back(page: Page, origin: str) -> None:
    status, told = await page.posts("json", origin)
    assert (status, cors_headers(told)) == (200, set())


async def test_request_for_another_host_gets_no_permission(page: Page) -> None:
    headers = {**ASKS, "Origin": OURS, "Host": "evil.example.com"}
    status, told = await page.sends("OPTIONS", "/mcp", headers)
    assert (status, cors_headers(told)) == (403, set())


async def test_gateway_of_any_host_lets_only_pages_of_that_host_in() -> None:
    async with opened(None) as page:
        same = {**ASKS, "Origin": "http://here.example.com", "Host": "here.example.com:80"}
        other = {**same, "Origin": OURS}
        status, told = await page.sends("OPTIONS", "/mcp", same)
        assert (status, told["Access-Control-Allow-Origin"]) == (204, "http://here.example.com")
        status, told = await page.sends("OPTIONS", "/mcp", other)
        assert (status, cors_headers(told)) == (403, set())
