"""What the console's files are and how they are sent; no browser needed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from gateway.ops.console import Console, files
from tests.console.driving import NoBrowser, chromium

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    Browser = TestClient[web.Request, web.Application]

FILES = {name: file.body.decode() for name, file in files().items()}

SCRIPTS = {name: text for name, text in FILES.items() if name.endswith(".js")}

SINKS = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser"
    r"|\bsrcdoc\b|\beval\b|new Function|setTimeout\(\s*[\"'`]|setInterval\(\s*[\"'`]"
    r"|import\(|importScripts|javascript:|setAttribute\(\s*[\"'](?:on|style|href|src)"
    r"|\.style\b|\bstyle:|\.cssText|localStorage|sessionStorage|indexedDB|document\.cookie|postMessage"
)
"""Ways of a text to become markup or code, and of the key to be kept."""

ELSEWHERE = re.compile(r"""https?:|["'(]//|\bwss?:""")


@pytest_asyncio.fixture
async def browser() -> AsyncIterator[Browser]:
    app = web.Application()
    app.add_routes(Console().routes())
    async with TestClient(TestServer(app)) as client:
        yield client


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_script_has_no_way_to_turn_text_into_markup_or_code(name: str) -> None:
    found = [line for line in SCRIPTS[name].splitlines() if SINKS.search(line)]
    assert found == []


@pytest.mark.parametrize("name", sorted(FILES))
def test_file_asks_no_other_host_for_anything(name: str) -> None:
    namespace = "http://www.w3.org/2000/svg"
    found = [line for line in FILES[name].splitlines() if ELSEWHERE.search(line)]
    assert [line for line in found if namespace not in line] == []


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_script_imports_nothing_in_vain(name: str) -> None:
    named = ",".join(re.findall(r"import \{([^}]*)\} from", SCRIPTS[name]))
    names = [each.split()[-1] for each in named.split(",") if each.split()]
    assert [each for each in names if len(re.findall(rf"\b{each}\b", SCRIPTS[name])) == 1] == []


def test_page_has_no_script_style_or_handler_in_itself() -> None:
    page = FILES["index.html"]
    assert re.findall(r"<style|\sstyle=|\son[a-z]+=|<base|<iframe|<object", page) == []
    assert re.findall(r"<script(?![^>]* src=)[^>]*>", page) == []


def test_everything_that_is_imported_or_linked_is_there() -> None:
    imported = {
        name for text in SCRIPTS.values() for name in re.findall(r'from "\./([^"]+)"', text)
    }
    linked = set(re.findall(r'(?:src|href)="/console/([^"]+)"', FILES["index.html"]))
    assert imported | linked == FILES.keys() - {"index.html"}


@pytest.mark.parametrize("path", ["/console", "/console/"])
async def test_page_is_at_the_address_that_people_type(browser: Browser, path: str) -> None:
    response = await browser.get(path)
    assert (response.status, await response.text()) == (200, FILES["index.html"])


@pytest.mark.parametrize("name", sorted(FILES))
async def test_every_file_is_sent_with_the_strict_headers(browser: Browser, name: str) -> None:
    response = await browser.get(f"/console/{name}")
    sent = response.headers
    assert response.status == 200
    assert sent["Content-Security-Policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
    assert sent["X-Content-Type-Options"] == "nosniff"
    assert sent["Referrer-Policy"] == "no-referrer"
    assert sent["Cross-Origin-Opener-Policy"] == "same-origin"
    assert sent["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "camera=()" in sent["Permissions-Policy"]
    assert sent["Cache-Control"] == "no-cache"


async def test_missing_file_is_a_404_with_the_strict_headers(browser: Browser) -> None:
    response = await browser.get("/console/nothing.js")
    assert response.status == 404
    assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")


@pytest.mark.parametrize("path", ["..%2f__init__.py", "%2e%2e/__init__.py", "__init__.py"])
async def test_no_file_beside_the_console_can_be_had(browser: Browser, path: str) -> None:
    response = await browser.get(f"/console/{path}")
    assert response.status == 404


async def test_file_that_the_browser_has_is_not_sent_again(browser: Browser) -> None:
    first = await browser.get("/console/main.js")
    again = await browser.get("/console/main.js", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status, await again.read()) == (304, b"")


async def test_file_that_has_changed_is_sent_again(browser: Browser) -> None:
    response = await browser.get("/console/main.js", headers={"If-None-Match": '"of-yesterday"'})
    assert (response.status, await response.text()) == (200, FILES["main.js"])


async def test_each_file_has_a_strong_tag_of_its_own(browser: Browser) -> None:
    tags = [(await browser.get(f"/console/{name}")).headers["ETag"] for name in FILES]
    assert len(set(tags)) == len(FILES)
    assert all(re.fullmatch(r'"[0-9a-f]{32}"', tag) for tag in tags)


@pytest.mark.parametrize(("proto", "strict"), [("https", True), ("http", False), (None, False)])
async def test_browser_is_bound_to_https_only_where_it_came_by_it(
    browser: Browser, proto: str | None, strict: bool
) -> None:
    headers = {} if proto is None else {"X-Forwarded-Proto": proto}
    response = await browser.get("/console", headers=headers)
    assert ("Strict-Transport-Security" in response.headers) is strict


def test_missing_browser_is_an_error_that_says_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NoBrowser, match="apt-get install chromium"):
        chromium()
