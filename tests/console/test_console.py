"""What an operator does in the console, in a real Chromium, against a real gateway."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp
import pytest
import pytest_asyncio
from playwright.async_api import expect

from tests.console.driving import (
    ADMIN_KEY,
    DESKTOP,
    PHONE,
    Client,
    Operator,
    deployment,
    operating,
    profile,
    running_browser,
    unwanted,
    visiting,
)
from tests.fixtures import hostile_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from playwright.async_api import Browser, BrowserContext, Route

    from tests.system.conftest import GatewayProcess

    Opened = Callable[..., AbstractAsyncContextManager[tuple[Client, str]]]

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(150),
    pytest.mark.skipif(unwanted(), reason="NO_BROWSER=1"),
]

CONSOLE_HEADER = {"X-Rendezvous-Console": "1"}

PAGES = {
    "#/sessions": "tr.opens",
    "#/failures": ".group a",
    "#/servers": "summary:has-text('8 tools')",
    "#/spend": ".gateways li",
    "#/find?q=call-4711": "tr.opens",
}
"""And what shows that a page has come."""

LOGINS = 5
"""Attempts that an address has in a minute."""

ROWS = 2000
"""Lines that the page keeps."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayProcess]:
    async with deployment(tmp_path_factory.mktemp("console")) as process:
        yield process


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with running_browser() as chromium:
        yield chromium


@asynccontextmanager
async def address(number: int) -> AsyncIterator[aiohttp.ClientSession]:
    """HTTP from an address of its own: attempts to log in are counted by address."""
    connector = aiohttp.TCPConnector(local_addr=(f"127.0.0.{number}", 0))
    jar = aiohttp.CookieJar(unsafe=True)
    timeout = aiohttp.ClientTimeout(total=20)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=jar, timeout=timeout) as http:
        yield http


async def log_in(
    http: aiohttp.ClientSession, origin: str, key: str = ADMIN_KEY
) -> tuple[int, Any, str]:
    """Return the status, the body and the cookie's header."""
    headers = {**CONSOLE_HEADER, "Origin": origin}
    async with http.post(f"{origin}/console/login", json={"key": key}, headers=headers) as response:
        body = None if response.status == 204 else await response.json()
        return response.status, body, response.headers.get("Set-Cookie", "")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cookies(gateway: GatewayProcess) -> list[dict[str, Any]]:
    """What a browser has after a log-in: most tests begin there."""
    async with address(7) as http:
        status, _, cookie = await log_in(http, gateway.origin)
    assert status == 204
    name, _, value = cookie.partition(";")[0].partition("=")
    return [{"name": name, "value": value, "url": gateway.origin, "httpOnly": True}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(browser: Browser) -> AsyncIterator[BrowserContext]:
    """The profile of all who are content with the usual; the console keeps one cookie in it."""
    async with profile(browser) as context:
        yield context


@pytest_asyncio.fixture(loop_scope="module")
async def stranger(gateway: GatewayProcess, shared: BrowserContext) -> AsyncIterator[Operator]:
    """Somebody who has not logged in."""
    async with visiting(shared, gateway.origin) as operator:
        await operator.visit()
        await operator.sees("#login-title")
        yield operator


@asynccontextmanager
async def inside(
    gateway: GatewayProcess, browser: Browser, cookies: list[Any], **options: Any
) -> AsyncIterator[Operator]:
    """A window of an operator who has logged in; in the end nothing has gone wrong in it."""
    async with operating(browser, gateway.origin, **options) as (operator, context):
        await context.add_cookies(cookies)
        yield operator
        await nothing_went_wrong(operator)


async def nothing_went_wrong(operator: Operator) -> None:
    assert await operator.foreign() == []
    assert operator.trouble == []


@pytest_asyncio.fixture(loop_scope="module")
async def operator(
    gateway: GatewayProcess, shared: BrowserContext, cookies: list[Any]
) -> AsyncIterator[Operator]:
    async with visiting(shared, gateway.origin) as somebody:
        await shared.add_cookies(cookies)
        yield somebody
        await nothing_went_wrong(somebody)


@pytest.fixture
def opened(gateway: GatewayProcess) -> Opened:
    """Opens a session for a test, and gives it with its id."""

    @asynccontextmanager
    async def open_one(name: str = "a client") -> AsyncIterator[tuple[Client, str]]:
        client = Client(gateway)
        try:
            yield client, await client.open(name)
        finally:
            await client.aclose()

    return open_one


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def told(gateway: GatewayProcess) -> AsyncIterator[str]:
    """The id of a session in which much has happened, and every word of it is hostile."""
    client = Client(gateway)
    try:
        session = await client.open(hostile_text.LINES[1])
        await client.call("echo", "went-well", text="a quick brown fox")
        await client.call("shout", hostile_text.LINES[0])
        await client.call(hostile_text.TOOL, hostile_text.LINES[3])
        await client.call("fail", "call-4711")
        await client.call("refuse", hostile_text.LINES[5])
        await client.call("refuse", "x" * 120)
        yield session
    finally:
        await client.aclose()


# In and out


async def test_wrong_key_is_refused_with_a_sentence(stranger: Operator) -> None:
    await stranger.log_in("not-the-key")
    await stranger.sees("#login-problem", "that is not the admin key")
    stranger.trouble.clear()  # Chromium tells of every 401


async def test_right_key_opens_the_list_of_sessions(stranger: Operator) -> None:
    await stranger.log_in()
    await stranger.sees("h1", "Sessions")


async def test_page_that_is_opened_again_needs_no_key(operator: Operator) -> None:
    await operator.visit()
    await operator.sees("h1", "Sessions")


async def test_key_is_kept_nowhere_in_the_browser(stranger: Operator) -> None:
    await stranger.log_in()
    await stranger.sees("h1", "Sessions")
    kept = (
        "[localStorage.length, sessionStorage.length, document.cookie, document.forms[0].key.value]"
    )
    assert await stranger.page.evaluate(kept) == [0, 0, "", ""]
    assert ADMIN_KEY not in stranger.page.url


async def test_cookie_is_for_this_site_and_no_script(gateway: GatewayProcess) -> None:
    async with address(8) as http:
        status, _, cookie = await log_in(http, gateway.origin)
    assert status == 204
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))


async def test_too_many_attempts_are_refused(gateway: GatewayProcess) -> None:
    async with address(9) as http:
        answers = [await log_in(http, gateway.origin, "guess") for _ in range(LOGINS + 1)]
    assert [status for status, *_ in answers] == [401] * LOGINS + [429]


async def test_log_in_page_says_why_it_was_refused(stranger: Operator) -> None:
    async def refuse(route: Route) -> None:
        await route.fulfill(status=429, json={"error": "too many attempts to log in"})

    await stranger.page.route("**/console/login", refuse)
    await stranger.log_in()
    await stranger.sees("#login-problem", "too many attempts to log in")


async def test_log_out_ends_it(operator: Operator) -> None:
    await operator.visit()
    await operator.sees("h1", "Sessions")
    await operator.page.click("#logout")
    await operator.sees("#login-title")
    await operator.page.reload()
    await operator.sees("#login-title")


async def test_cookie_that_is_not_good_any_more_leads_to_the_log_in(operator: Operator) -> None:
    await operator.visit()
    await operator.sees("h1", "Sessions")
    await operator.page.context.clear_cookies()
    await operator.sees("#login-problem", "You are logged out")
    assert await operator.page.locator("main").inner_text() == ""
    operator.trouble.clear()


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"Origin": "own"}, id="without the header"),
        pytest.param({**CONSOLE_HEADER}, id="without an origin"),
        pytest.param({**CONSOLE_HEADER, "Origin": "https://evil.example"}, id="foreign origin"),
        pytest.param(
            {**CONSOLE_HEADER, "Origin": "own", "Sec-Fetch-Site": "same-site"}, id="same site"
        ),
    ],
)
async def test_foreign_page_cannot_end_a_session(
    gateway: GatewayProcess, cookies: list[Any], opened: Opened, headers: dict[str, str]
) -> None:
    origin = gateway.origin
    sent = {name: value.replace("own", origin) for name, value in headers.items()}
    sent["Cookie"] = f"{cookies[0]['name']}={cookies[0]['value']}"
    async with opened() as (client, session), address(7) as http:
        async with http.delete(f"{origin}/admin/v1/sessions/{session}", headers=sent) as response:
            assert response.status == 403
        assert "result" in await client.call("echo", 1, text="it lives")


# What runs


async def test_new_session_appears_in_the_open_list(operator: Operator, opened: Opened) -> None:
    await operator.visit()
    await operator.sees("h1", "Sessions")
    async with opened("somebody new") as (_, session):
        await operator.sees(f'tr:has-text("{session}")', "somebody new")


async def test_filter_leaves_what_has_its_text(operator: Operator, opened: Opened) -> None:
    async with opened("needle") as (_, session), opened("haystack"):
        await operator.visit("#/sessions")
        await operator.page.get_by_label("Filter by id").fill("needle")
        await expect(operator.page.locator("tr.opens")).to_have_count(1)
        await operator.sees("tr.opens", session)


async def test_hidden_page_asks_for_nothing_more(
    gateway: GatewayProcess, browser: Browser, cookies: list[Any]
) -> None:
    """Neither by its clock, nor when an answer comes that it has asked for before."""
    hidden, asked = asyncio.Event(), list[str]()

    async def hold(route: Route) -> None:
        await hidden.wait()
        await route.continue_()

    async with inside(gateway, browser, cookies) as operator:  # the clock is its whole profile's
        page = operator.page
        await page.clock.install()
        await operator.visit()
        await operator.sees(".pulse[data-is=live]")
        await page.route("**/admin/v1/sessions?*", hold)
        async with page.expect_response("**/admin/v1/sessions?*"):
            async with page.expect_request("**/admin/v1/sessions?*"):
                await page.clock.run_for(2500)
            await page.evaluate(
                "Object.defineProperty(document, 'hidden', { get: () => true });"
                "document.dispatchEvent(new Event('visibilitychange'))"
            )
            hidden.set()
        page.on("request", lambda request: asked.append(request.url))
        await page.clock.run_for(120_000)
        assert asked == []


async def test_list_goes_on_after_the_gateway_was_away(operator: Operator, opened: Opened) -> None:
    await operator.visit()
    await operator.sees(".pulse[data-is=live]")

    async def cut(route: Route) -> None:
        await route.abort()

    await operator.page.route("**/admin/v1/**", cut)
    await operator.sees("#away", "The gateway is away")
    await operator.page.unroute("**/admin/v1/**")
    async with opened("after the outage") as (_, session):
        await operator.sees("tr.opens", session)
    assert await operator.page.locator("#away").is_hidden()
    operator.trouble.clear()  # Chromium tells of what was cut


# One session


async def test_call_is_followed_from_its_begin_to_its_end(
    operator: Operator, opened: Opened
) -> None:
    async with opened() as (client, session), asyncio.TaskGroup() as tasks:
        await operator.visit(f"#/sessions/{session}")
        await operator.sees(".following", "following")
        tasks.create_task(client.call("hold", "held-1"))
        await operator.sees(".call:has-text('held-1')", "running")
        await client.call("release", 2)
        await operator.sees(".call:has-text('held-1')", "ok")
        assert await operator.count(".call:has-text('held-1')") == 1
        await operator.sees(".lines li[data-event=call]", "held-1")


async def test_chosen_call_leaves_only_its_lines(operator: Operator, told: str) -> None:
    await operator.visit(f"#/sessions/{told}")
    await operator.page.locator(".call", has_text="went-well").click()
    await operator.sees(".tail .chip", "only call went-well")
    await operator.sees(".lines li", "went-well")
    assert await operator.count(".lines li:has-text('call-4711')") == 0


async def test_search_marks_what_it_finds_and_hides_the_rest(operator: Operator, told: str) -> None:
    await operator.visit(f"#/sessions/{told}")
    await operator.sees(".lines li", "call-4711")
    await operator.page.get_by_label("Search this story").fill("Brown")
    await operator.sees(".lines mark", "brown")
    assert await operator.count(".lines li:not(:has(mark))") == 0


async def test_level_hides_what_is_below_it(operator: Operator, told: str) -> None:
    await operator.visit(f"#/sessions/{told}")
    await operator.sees(".lines li[data-level=error]", "call-4711")
    await operator.page.get_by_label("Least level").select_option("error")
    lines = await operator.page.locator(".lines li").all()
    assert {await line.get_attribute("data-level") for line in lines} == {"error"}


async def test_paused_story_says_how_much_waits_and_shows_it_later(
    operator: Operator, opened: Opened
) -> None:
    async with opened() as (client, session):
        await operator.visit(f"#/sessions/{session}")
        await operator.sees(".lines li", "requested")
        await operator.page.keyboard.press("p")
        await operator.sees(".tail button[aria-pressed=true]", "Go on")
        await client.call("echo", "while-paused", text="x")
        await operator.sees(".call:has-text('while-paused')", "ok")
        await operator.page.get_by_text(re.compile("Go on · [1-9]")).wait_for()
        assert await operator.count(".lines li:has-text('while-paused')") == 0
        await operator.page.keyboard.press("p")
        assert await operator.count(".lines li[data-event=call]:has-text('while-paused')") == 1


async def test_long_story_is_cut_to_its_newest_lines(operator: Operator, opened: Opened) -> None:
    """It comes in two parts, as its first stream breaks."""
    lines = [
        f"id: {n}\ndata: {json.dumps({'at': n, 'event': 'stderr', 'text': f'line {n}'})}\n\n"
        for n in range(1, ROWS + 501)
    ]

    first, rest = "".join(lines[:-1000]), "".join(lines[-1000:])
    parts = [f"{rest}event: end\ndata: {{}}\n\n", f"retry: 10\n\n{first}"]

    async def tell(route: Route) -> None:
        await route.fulfill(content_type="text/event-stream", body=parts.pop())

    async with opened() as (_, session):
        await operator.page.route("**/tail?*", tell)
        await operator.visit(f"#/sessions/{session}")
        await operator.sees(".following", "complete")
        await operator.sees(".lines li", f"line {ROWS + 500}")
        assert await operator.count(".lines li") == ROWS


async def test_session_is_ended_once_the_operator_has_confirmed(
    operator: Operator, opened: Opened
) -> None:
    async with opened() as (_, session):
        await operator.visit(f"#/sessions/{session}")
        await operator.page.click("#kill:enabled")
        await operator.sees("dialog", f"End {session}?")
        await operator.page.click("#confirm")
        await operator.sees(".badge", "closed")
        await operator.sees("#verdict", "An operator ended it. operator")
        await operator.sees(".following", "complete")


async def test_session_lives_on_if_the_operator_thinks_again(
    operator: Operator, opened: Opened
) -> None:
    async with opened() as (client, session):
        await operator.visit(f"#/sessions/{session}")
        await operator.page.click("#kill:enabled")
        await operator.page.keyboard.press("Escape")
        await operator.page.locator("dialog").wait_for(state="detached")
        assert "result" in await client.call("echo", 1, text="it lives")


async def test_session_that_is_not_known_says_so(operator: Operator) -> None:
    await operator.visit("#/sessions/s-000000000000")
    await operator.sees(".problem", "s-000000000000")
    operator.trouble.clear()  # Chromium tells of every 404


# What went wrong


async def test_failing_call_is_found_by_its_id(operator: Operator, told: str) -> None:
    await operator.visit()
    await operator.sees("h1", "Sessions")
    await operator.page.keyboard.press("/")
    await operator.page.keyboard.type("call-4711")
    await operator.page.keyboard.press("Enter")
    await operator.page.locator(f"a:has-text('{told}')").first.click()
    await operator.sees(".call[aria-pressed=true]:has-text('call-4711')", "tool error")


async def test_call_that_went_well_is_found_by_its_id(operator: Operator, told: str) -> None:
    await operator.visit("#/find?q=went-well")
    await operator.sees(f"tr:has-text('{told}')", "ok")


async def test_session_is_found_by_its_id(operator: Operator, told: str) -> None:
    await operator.visit(f"#/find?q={told}")
    await operator.sees(".heading h1", told)


async def test_failures_are_grouped_with_a_hint_and_their_sessions(
    operator: Operator, told: str
) -> None:
    await operator.visit("#/failures")
    group = operator.page.locator(".group", has_text="code -32000")
    await expect(group).to_have_count(1)
    await expect(group.locator("h3")).to_have_text("2errorhostile")
    await expect(group.locator(".hint")).to_contain_text("JSON-RPC error")
    await expect(group.locator("a")).to_have_text([told])


async def test_tools_of_a_server_can_be_read(operator: Operator) -> None:
    await operator.visit("#/servers")
    server = operator.page.locator(".server").first
    await server.locator("summary", has_text="8 tools").click()
    await operator.sees(".tools li", "shout")


async def test_spend_names_this_gateway_and_the_budget(operator: Operator) -> None:
    await operator.visit("#/spend")
    await operator.sees(".budgets", "$20.00")
    await operator.sees(".gateways li", "answers this page")


# The keyboard


async def test_list_is_walked_and_opened_by_keys(operator: Operator, opened: Opened) -> None:
    async with opened("keys") as (_, first), opened("keys") as (_, second):
        await operator.visit("#/sessions?q=keys")
        await expect(operator.page.locator("tr.opens")).to_have_count(2)
        for key in ("j", "ArrowDown", "k", "Enter"):
            await operator.page.keyboard.press(key)
        await operator.sees(".heading h1", second)  # the newest is the first row
        await operator.page.keyboard.press("Escape")
        await operator.sees("tr.opens", first)


async def test_question_mark_shows_the_keys(operator: Operator) -> None:
    await operator.visit()
    await operator.sees("h1", "Sessions")
    await operator.page.keyboard.press("?")
    await operator.sees("dialog", "find a session")
    await operator.page.keyboard.press("Escape")
    await operator.page.locator("dialog").wait_for(state="detached")


async def test_first_tab_leads_past_the_head_of_the_page(operator: Operator) -> None:
    await operator.visit("#/servers")
    await operator.sees("h1", "Servers")
    await operator.page.evaluate("document.activeElement.blur()")
    await operator.page.locator("#skip").focus()
    await operator.page.keyboard.press("Enter")
    assert await operator.page.evaluate("document.activeElement.id") == "main"
    assert operator.page.url.endswith("#/servers")


# How it looks


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_page_follows_the_colours_of_the_system(
    gateway: GatewayProcess, browser: Browser, cookies: list[Any], scheme: str
) -> None:
    async with inside(gateway, browser, cookies, color_scheme=scheme) as operator:
        await operator.visit()
        await operator.sees("h1", "Sessions")
        brightness = "(selector, name) => getComputedStyle(document.querySelector(selector))[name]"
        ground = await operator.page.evaluate(
            f"[({brightness})('body', 'backgroundColor'), ({brightness})('body', 'color')]"
            ".map((colour) => colour.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0))"
        )
        assert (ground[0] > ground[1]) is (scheme == "light")


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
async def test_no_page_is_wider_than_the_screen(
    gateway: GatewayProcess, browser: Browser, cookies: list[Any], told: str, size: Any
) -> None:
    async with inside(gateway, browser, cookies, viewport=size) as operator:
        wide = {}
        for page, there in (*PAGES.items(), (f"#/sessions/{told}", ".lines li")):
            await operator.visit(page)
            await operator.sees(there)
            wide[page] = await operator.wide()
    assert wide == dict.fromkeys(wide, 0)


# Attacks


async def test_policy_stops_a_script_in_the_page(operator: Operator) -> None:
    await operator.visit()
    await operator.sees("h1", "Sessions")
    stopped = await operator.page.evaluate(
        """new Promise((resolve) => {
          addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective));
          const script = document.createElement("script");
          script.append("window.ran = true");
          document.body.append(script);
          script.remove();
        })"""
    )
    assert (stopped, await operator.page.evaluate("window.ran")) == (
        "require-trusted-types-for",
        None,
    )
    await operator.trouble_is("violation require-trusted-types-for")


async def test_policy_stops_markup_made_of_text(operator: Operator) -> None:
    await operator.visit()
    await operator.sees("h1", "Sessions")
    made = await operator.page.evaluate(
        "() => { try { document.body.innerHTML = '<i>x</i>'; return 'made' }"
        " catch (error) { return error.name } }"
    )
    assert made == "TypeError"
    await operator.trouble_is("violation require-trusted-types-for")


async def test_hostile_words_are_shown_as_they_are_and_do_nothing(
    operator: Operator, told: str
) -> None:
    """In stderr, stdout, tool names, results, errors, the client's name and ids of calls."""
    lines, evil = hostile_text.LINES, hostile_text.TOOL
    shown = []
    for page, selector, text in (
        ("#/sessions", f"tr:has-text('{told}')", lines[1]),
        (f"#/sessions/{told}", ".lines li[data-event=stderr]", lines[0]),
        (f"#/sessions/{told}", ".lines li[data-event=stderr]", lines[4]),
        (f"#/sessions/{told}", ".lines li[data-event=stdout_noise]", "<iframe"),
        (f"#/sessions/{told}", ".call", evil),
        (f"#/sessions/{told}", ".payload", "</script>"),
        ("#/failures", "tr", lines[5]),
        ("#/servers", ".group", evil),
        (f"#/find?q={quote(evil)}", "h1", evil),
    ):
        await operator.visit(page)
        await operator.sees(selector, text)
        assert await operator.foreign() == []
        shown.append(await operator.page.locator("main").inner_text())
    assert [each for each in "".join(shown) if each in "\x1b\u202e\u2066\u200b\x85"] == []


async def test_words_that_reach_the_page_raw_are_made_visible(operator: Operator) -> None:
    await operator.visit()
    script = "import('/console/dom.js').then((dom) => dom.inert(%s))"
    with_all = json.dumps("a\x1b\u202e\u2028\x7f\n")
    shown = await operator.page.evaluate(f"async () => {script % with_all}")
    assert shown == r"a\x1b\u202e\u2028\x7f\n"


# Its own sums


async def test_bars_keep_their_order_and_fold_silence(operator: Operator) -> None:
    await operator.visit()
    bars = await operator.page.evaluate(
        """async () => (await import("/console/timeline.js")).scale(
          [{ start: 0, end: 1 }, { start: 0.5, end: 2 }, { start: 3600, end: 3602 }], 3602)"""
    )
    (first, second, third) = bars
    assert first["x"] == 0
    assert second["x"] == pytest.approx(first["width"] / 2)
    assert third["width"] == pytest.approx(2 * first["width"])
    assert second["x"] + second["width"] < third["x"] < 60
    assert third["x"] + third["width"] <= 100


@pytest.mark.parametrize(
    ("sum_", "text"),
    [
        ("span(59.9)", "59s"),
        ("span(3599)", "59m 59s"),
        ("span(90061)", "1d 1h"),
        ("span(null)", "\u2013"),
        ("money(0)", "$0.00"),
        ("money(0.0042)", "$0.0042"),
        ("money(12.345)", "$12.35"),
        ("bytes(1536)", "1.5 KiB"),
        ("millis(12000)", "12.0 s"),
    ],
)
async def test_figures_read_well(formats: dict[str, str], sum_: str, text: str) -> None:
    assert formats[sum_] == text


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def formats(gateway: GatewayProcess, browser: Browser) -> dict[str, str]:
    """What the page makes of figures, by the call that makes it."""
    sums = (
        *("span(59.9)", "span(3599)", "span(90061)", "span(null)", "money(0)", "money(0.0042)"),
        *("money(12.345)", "bytes(1536)", "millis(12000)"),
    )
    calls = ", ".join(f"{json.dumps(sum_)}: f.{sum_}" for sum_ in sums)
    async with operating(browser, gateway.origin) as (operator, _):
        await operator.visit()
        made: dict[str, str] = await operator.page.evaluate(
            f"async () => {{ const f = await import('/console/format.js'); return {{ {calls} }} }}"
        )
    return made
