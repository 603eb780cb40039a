"""A browser, an operator in it, and clients beside it: for the console's tests and its proof."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect

from tests.fixtures import hostile_text
from tests.system import conftest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from playwright.async_api import ConsoleMessage, Dialog

ADMIN_KEY = "an-operators-key-for-the-tests-only-0123456789"

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)

SHOWN_MS = 20_000
"""For whatever the page is to show; it asks every two seconds."""

CALL_S = 30.0

REVISION = "2025-11-25"

FIXTURE = conftest.REPOSITORY / "tests" / "fixtures" / "hostile_text.py"

LEGACY = {"era": "legacy"}
"""Nobody need find out."""

DESKTOP, PHONE = {"width": 1360, "height": 900}, {"width": 390, "height": 844}


class NoBrowser(Exception):
    """There is none; the message says how to get one."""


def chromium() -> str:
    """Return where Chromium is.

    Raises:
        NoBrowser: nowhere.
    """
    for name in NAMES:
        if (path := shutil.which(name)) is not None:
            return path
    raise NoBrowser(
        f"none of {', '.join(NAMES)} is installed: `apt-get install chromium`, or set NO_BROWSER=1 "
        "to go without these tests"
    )


def unwanted() -> bool:
    """True if somebody has said that there need not be a browser."""
    return os.environ.get("NO_BROWSER") == "1"


@asynccontextmanager
async def running_browser() -> AsyncIterator[Browser]:
    """Run Chromium without a window.

    Raises:
        NoBrowser: there is none.
    """
    path = chromium()
    expect.set_options(timeout=SHOWN_MS)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield browser
        finally:
            await browser.close()


def deployment(folder: Path) -> conftest.GatewayProcess:
    """Return a gateway for operators, not started. Its one server, `hostile`, records payloads."""
    hostile: dict[str, Any] = {
        "command": sys.executable,
        "args": [str(FIXTURE)],
        "description": hostile_text.TOOL,
        "record": "payloads",
    }
    settings = {"ADMIN_KEY": ADMIN_KEY, "MONTHLY_BUDGET_USD": "20"}
    return conftest.GatewayProcess(folder, {"hostile": hostile}, settings, defaults=LEGACY)


# Clients


class Client:
    """A client of revision 2025-11-25 that says what it likes: names and ids are the caller's.

    Args:
        gateway: to talk to; `aclose` ends the connection, and not the session.
    """

    def __init__(self, gateway: conftest.GatewayProcess) -> None:
        timeout = aiohttp.ClientTimeout(total=CALL_S)
        self._http = aiohttp.ClientSession(headers=gateway.headers, timeout=timeout)
        self._url = gateway.url()
        self._key = ""

    async def aclose(self) -> None:
        """Hang up."""
        await self._http.close()

    @property
    def session(self) -> str:
        """The session's public id, which operators see."""
        return f"s-{hashlib.sha256(self._key.encode()).hexdigest()[:12]}"

    async def open(self, name: str) -> str:
        """Shake hands, as a client of this name. Returns the session's public id."""
        params = {
            "protocolVersion": REVISION,
            "capabilities": {},
            "clientInfo": {"name": name, "version": "1"},
        }
        answer = await self.request("initialize", params, "opening")
        assert "result" in answer, answer
        await self._post({"method": "notifications/initialized"})
        return self.session

    async def call(self, tool: str, call: str | int, **arguments: Any) -> dict[str, Any]:
        """Call a tool. Returns the answer."""
        return await self.request("tools/call", {"name": tool, "arguments": arguments}, call)

    async def request(self, method: str, params: dict[str, Any], call: str | int) -> dict[str, Any]:
        """Ask, and return the answer: the last message that comes."""
        return await self._post({"id": call, "method": method, "params": params})

    async def _post(self, message: dict[str, Any]) -> dict[str, Any]:
        headers = {
            "Accept": "application/json, text/event-stream",
            "MCP-Protocol-Version": REVISION,
        }
        if self._key:
            headers["Mcp-Session-Id"] = self._key
        body = {"jsonrpc": "2.0", **message}
        async with self._http.post(self._url, json=body, headers=headers) as response:
            self._key = self._key or response.headers.get("Mcp-Session-Id", "")
            if response.status == 202:
                return {}
            if response.content_type == "text/event-stream":
                return await _last_of(response)
            answer: dict[str, Any] = await response.json(content_type=None)
            return answer


async def _last_of(response: aiohttp.ClientResponse) -> dict[str, Any]:
    last: dict[str, Any] = {}
    async for raw in response.content:
        line = raw.decode().strip()
        if line.startswith("data:") and (text := line.removeprefix("data:").strip()):
            last = json.loads(text)
    return last


# The operator


@dataclass
class Operator:
    """Somebody with the console open.

    Attributes:
        page: of the console.
        origin: of the gateway.
        trouble: whatever should not have happened in the browser: errors, what the policy has
            stopped, dialogs. A test that provokes some clears it.
    """

    page: Page
    origin: str
    trouble: list[str] = field(default_factory=list)

    async def watch(self) -> None:
        """Note all that goes wrong from now on."""

        def said(message: ConsoleMessage) -> None:
            if message.type in {"error", "warning"}:
                self.trouble.append(f"{message.type}: {message.text}")

        async def asked(dialog: Dialog) -> None:
            self.trouble.append(f"dialog: {dialog.message}")
            await dialog.dismiss()

        self.page.on("console", said)
        self.page.on("pageerror", lambda error: self.trouble.append(f"thrown: {error}"))
        self.page.on("dialog", asked)
        self.page.set_default_timeout(SHOWN_MS)
        await self.page.add_init_script(
            "addEventListener('securitypolicyviolation', (event) => console.error("
            "'violation', event.violatedDirective, event.blockedURI))"
        )

    async def visit(self, fragment: str = "") -> None:
        """Open a page of the console."""
        await self.page.goto(f"{self.origin}/console{fragment}")

    async def log_in(self, key: str = ADMIN_KEY) -> None:
        """Fill in the key, and press the button."""
        await self.page.fill("#key", key)
        await self.page.click("#login-submit")

    async def sees(self, selector: str, text: str = "") -> None:
        """Wait until an element is there that has this text."""
        await self.page.locator(selector, has_text=text).first.wait_for()

    async def trouble_is(self, text: str) -> None:
        """Wait until there is trouble with this text, and forget all of it: it was provoked."""
        async with asyncio.timeout(SHOWN_MS / 1000):
            while not any(text in each for each in self.trouble):
                await self.page.wait_for_event("console")
        self.trouble.clear()

    async def count(self, selector: str) -> int:
        """Return how many there are now."""
        return await self.page.locator(selector).count()

    async def wide(self) -> int:
        """Return by how many pixels the page is wider than the window."""
        script = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        wide: int = await self.page.evaluate(script)
        return wide

    async def foreign(self) -> list[str]:
        """Return the elements that the console has not made itself."""
        found: list[str] = await self.page.evaluate(_FOREIGN, hostile_text.MARK)
        return found


_FOREIGN = """(mark) => [...document.querySelectorAll(
  `script:not([src^="/console/"]), img:not([src="/console/icon.svg"]), iframe, object, embed, style,
   [style]:not([style=""]), [onerror], [onload], [onclick], [onmouseover], #${mark},
   a[href^="javascript:" i], a:not([href^="#"]):not(.skip)`
)].map((node) => node.outerHTML.slice(0, 200))"""


@asynccontextmanager
async def operating(
    browser: Browser, origin: str, **options: Any
) -> AsyncIterator[tuple[Operator, BrowserContext]]:
    """Open a window with nothing in it, as Playwright's `new_context` takes it."""
    async with profile(browser, **options) as context:
        operator = Operator(await context.new_page(), origin)
        await operator.watch()
        yield operator, context


@asynccontextmanager
async def profile(browser: Browser, **options: Any) -> AsyncIterator[BrowserContext]:
    """Make a profile of its own, which takes Chromium a second; in its pages nothing moves."""
    usual = {"viewport": DESKTOP, "locale": "en-GB", "reduced_motion": "reduce"}
    context = await browser.new_context(**{**usual, **options})
    try:
        yield context
    finally:
        async with asyncio.timeout(SHOWN_MS / 1000):
            await context.close()


@asynccontextmanager
async def visiting(context: BrowserContext, origin: str) -> AsyncIterator[Operator]:
    """Open a page in a profile that others come to later, and leave no cookie there."""
    operator = Operator(await context.new_page(), origin)
    try:
        await operator.watch()
        yield operator
    finally:
        async with asyncio.timeout(SHOWN_MS / 1000):
            await operator.page.close()
            await context.clear_cookies()
