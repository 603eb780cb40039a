"""The proof that an operator sees what runs, what it costs and what went wrong, in a browser.

`python -m tests.proof.console` starts a real gateway with two real servers, one of which is an
attacker, lets clients of the real MCP SDK talk to them, and drives Chromium through what an
operator does. Screenshots go into build/console/. Each step is a line; the last line holds the
counts, and the exit code is 0 if every step held and nothing hostile was ever more than text.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcp.shared.exceptions import MCPError
from playwright.async_api import Error as BrowserError
from playwright.async_api import expect

from tests.console.driving import ADMIN_KEY, FIXTURE, PHONE, Client, Operator, operating
from tests.console.driving import running_browser as chromium
from tests.fixtures import hostile_text
from tests.system import conftest
from tests.system.python_sdk import Progress, connected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from mcp import Client as SdkClient
    from playwright.async_api import Browser

BUILD = conftest.REPOSITORY / "build" / "console"

FOUND_S = 60.0
"""In this time an operator has to have found a failing call by its id."""

CROWD = 12
"""Sessions in the list beside those that the steps are about."""

CALLS = 5
"""Of each of them."""

STEPS, STEP_S = 40, 0.5
"""Of the call that is followed: longer than anybody looks at it."""


class Stuck(Exception):
    """A step did not hold that all others need."""


@dataclass
class Findings:
    """What came of it.

    Attributes:
        steps: how many were taken.
        failed: those that did not hold.
        inert: nothing hostile has become more than text.
    """

    steps: int = 0
    failed: list[str] = field(default_factory=list)
    inert: bool = True


@dataclass
class Proof:
    """What is done.

    Attributes:
        gateway: under test.
        browser: to look at it with.
        operator: whose window it is.
        found: what came of it.
        answer: what the client was told whose session was ended.
    """

    gateway: conftest.GatewayProcess
    browser: Browser
    operator: Operator
    found: Findings
    answer: str = ""

    @asynccontextmanager
    async def step(self, name: str, shot: str = "") -> AsyncIterator[list[str]]:
        """Take a step. What is put into the list is said with it."""
        self.found.steps += 1
        began, said = time.monotonic(), list[str]()
        try:
            yield said
            await self._look(self.operator)
            if shot:
                await self.picture(self.operator, shot)
        except (AssertionError, BrowserError, TimeoutError) as error:
            self.found.failed.append(name)
            said.append(f"FAILED: {str(error).splitlines()[0] if str(error) else error!r}")
            await self.picture(self.operator, f"failed-{self.found.steps}")
        took = time.monotonic() - began
        say(f"  {self.found.steps:2}  {name:58} {took:5.1f} s  {', '.join(said)}".rstrip())

    async def _look(self, operator: Operator) -> None:
        """Make sure that no text has become markup, code or a dialog."""
        foreign = await operator.foreign()
        trouble, operator.trouble[:] = list(operator.trouble), []
        self.found.inert = self.found.inert and not foreign and not trouble
        assert not foreign, f"elements that the console has not made: {foreign}"
        assert not trouble, f"the browser complains: {trouble}"

    async def picture(self, operator: Operator, name: str) -> None:
        """Keep what the window shows."""
        await operator.page.screenshot(path=BUILD / f"{name}.png")

    # What an operator does

    async def log_in(self) -> None:
        operator = self.operator
        async with self.step("logs in with the admin key", "1-log-in"):
            await operator.visit()
            await operator.sees("#login-title")
            await self.picture(operator, "0-closed")
            await operator.log_in()
            await operator.sees("h1", "Sessions")

    async def watch(self, stack: AsyncExitStack) -> tuple[SdkClient, str]:
        """See a session appear that an SDK client opens."""
        operator = self.operator
        async with self.step("watches a session appear", "2-sessions"):
            await operator.sees(".pulse[data-is=live]")
            client = await stack.enter_async_context(connected(self.gateway, "everything"))
            await client.call_tool("echo", {"text": "good morning"})
            # The gateway's own throw-away runs are in the list too, for a moment.
            row = operator.page.locator("tr.opens", has_text="everything").filter(
                has_text="default"
            )
            await expect(row).to_have_count(1)
            return client, await row.locator("a").inner_text()
        raise Stuck

    async def crowd(self, stack: AsyncExitStack) -> None:
        """Let others work, and fail, and be rude."""
        async with self.step(f"sees {CROWD} clients of a hostile server", "3-crowd"):
            async with asyncio.TaskGroup() as tasks:
                for number in range(CROWD):
                    tasks.create_task(self._visit(stack, number))
            rows = self.operator.page.locator("tr.opens", has_text="default")
            await expect(rows).to_have_count(CROWD + 1)

    async def _visit(self, stack: AsyncExitStack, number: int) -> None:
        client = Client(self.gateway)
        stack.push_async_callback(client.aclose)
        await client.open(hostile_text.LINES[number % len(hostile_text.LINES)])
        for turn in range(CALLS):
            tool = ("shout", "echo", hostile_text.TOOL, "fail", "refuse")[(number + turn) % CALLS]
            name = f"{hostile_text.LINES[turn]} req-{number}-{turn}"
            await client.call(tool, name, text=hostile_text.SENTENCE)

    async def follow(self, client: SdkClient, session: str, tasks: asyncio.TaskGroup) -> None:
        """Follow a call that is under way, and what its server says meanwhile."""
        operator, progress = self.operator, Progress(3)

        async def work() -> None:
            arguments = {"steps": STEPS, "seconds": STEP_S}
            try:
                await client.call_tool("slow", arguments, progress_callback=progress)
            except MCPError as error:
                self.answer = error.error.message

        async with self.step("follows a call live", "4-live") as said:
            await operator.page.locator("tr.opens a", has_text=session).click()
            await operator.sees(".following", "following")
            tasks.create_task(work())
            await operator.sees(".call:has-text('slow')", "running")
            await progress.begun.wait()
            lines = operator.page.locator(".lines li", has_text="notifications/progress")
            await expect(lines.nth(2)).to_be_attached()
            said.append(f"{await lines.count()} progress notifications seen")
        async with self.step("pauses the story, and goes on", "5-paused"):
            await operator.page.keyboard.press("p")
            await operator.page.get_by_text("Go on ·").wait_for()
            before = await lines.count()
            enough = len(progress.steps) + 3
            await until(lambda: len(progress.steps) >= enough)
            assert await lines.count() == before, "lines came while it was paused"
            await self.picture(operator, "5-paused")
            await operator.page.keyboard.press("p")
            await expect(lines.nth(before)).to_be_attached()
        async with self.step("searches the story", "6-search") as said:
            await operator.page.get_by_label("Search this story").fill("step 2 of")
            await operator.sees(".lines mark", "step 2 of")
            said.append(f"{await operator.count('.lines mark')} marked")

    async def kill(self, session: str) -> None:
        """End what should not run."""
        operator = self.operator
        async with self.step("ends the session, and sees the reason", "8-ended"):
            await operator.visit(f"#/sessions/{session}")
            await operator.page.click("#kill:enabled")
            await operator.sees("dialog", f"End {session}?")
            await self.picture(operator, "7-confirm")
            await operator.page.click("#confirm")
            await operator.sees(".badge", "closed")
            await operator.sees("#verdict", "An operator ended it.")
            await operator.sees(".following", "complete")
        async with self.step("the client is told, as its call was under way") as said:
            await until(lambda: bool(self.answer))
            said.append(self.answer)

    async def find(self) -> None:
        """Find a failing call, of whose client an operator knows nothing but the id."""
        operator, wanted = self.operator, "req-0-3"
        async with self.step("finds a failing call by its id", "9-found") as said:
            await operator.visit("#/sessions")
            await operator.sees("tr.opens")
            began = time.monotonic()
            await operator.page.keyboard.press("/")
            await operator.page.locator("#find-text").fill(wanted)
            await operator.page.keyboard.press("Enter")
            await operator.page.locator("#main tr.opens a").first.click()
            await operator.sees(f".call[aria-pressed=true]:has-text('{wanted}')", "tool error")
            took = time.monotonic() - began
            said.append(f"found in {took:.1f} s")
            assert took < FOUND_S, f"{took:.0f} s to find {wanted!r}"

    async def look_around(self) -> None:
        """See what went wrong, what it costs, and what there is."""
        operator = self.operator
        async with self.step("reads the failures by cause", "10-failures") as said:
            await operator.visit("#/failures")
            await operator.sees(".group .hint")
            said.append(f"{await operator.count('.group')} causes")
            for cause in ("tool error", "error"):
                await operator.sees(".group h3", cause)
        async with self.step("reads the tools of the hostile server", "11-servers"):
            await operator.visit("#/servers")
            await operator.page.locator(".server", has_text="hostile").locator("summary").click()
            await operator.sees(".tools li", hostile_text.TOOL)
        async with self.step("reads pool and spend", "12-spend"):
            await operator.visit("#/spend")
            await operator.sees(".budgets", "$20.00")
            await operator.sees(".gateways li", "answers this page")
        async with self.step("reads a hostile story from its first line", "13-hostile"):
            await operator.visit("#/sessions")
            await operator.page.locator("tr.opens", has_text="hostile").locator("a").last.click()
            await operator.sees(".lines li[data-event=stderr]", hostile_text.LINES[0])
            await operator.sees(".lines li[data-event=stdout_noise]", "<iframe")

    async def other_windows(self, session: str) -> None:
        """Look from a phone, and in the dark."""
        state: Any = await self.operator.page.context.storage_state()
        pages = {"sessions": "#/sessions", "session": f"#/sessions/{session}"}
        pages |= {name: f"#/{name}" for name in ("failures", "servers", "spend")}
        windows: dict[str, dict[str, Any]] = {
            "phone": {"viewport": PHONE, "has_touch": True, "is_mobile": True},
            "phone-dark": {"viewport": PHONE, "color_scheme": "dark"},
            "dark": {"color_scheme": "dark"},
        }
        for name, window in windows.items():
            async with (
                self.step(f"sees every page, {name}") as said,
                operating(self.browser, self.gateway.origin, storage_state=state, **window) as (
                    operator,
                    _,
                ),
            ):
                for page, fragment in pages.items():
                    await operator.visit(fragment)
                    await operator.sees(".pulse[data-is=live]")
                    await operator.sees({"session": ".lines li"}.get(page, "#main .num"))
                    await self.picture(operator, f"{name}-{page}")
                    assert await operator.wide() == 0, f"{page} is wider than the window"
                    await self._look(operator)
                said.append(f"{len(pages)} pages")


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that the SDK sets no event for."""
    async with asyncio.timeout(STEPS * STEP_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(STEP_S / 10)


def deployment(folder: Path) -> conftest.GatewayProcess:
    """Return the gateway under test, not started."""
    servers: dict[str, dict[str, Any]] = {
        "hostile": {"args": [str(FIXTURE)], "description": hostile_text.SENTENCE, "default": True},
        "everything": {"args": [str(conftest.FIXTURE_SERVER)], "description": "All that crosses."},
    }
    common = {"command": sys.executable, "record": "payloads", "era": "legacy"}
    settings = {"ADMIN_KEY": ADMIN_KEY, "MONTHLY_BUDGET_USD": "20"}
    return conftest.GatewayProcess(folder, servers, settings, defaults=common)


async def prove(folder: Path) -> int:
    """Take all steps, and say what came of them. Returns the exit code."""
    BUILD.mkdir(parents=True, exist_ok=True)
    for old in BUILD.glob("*.png"):
        old.unlink()
    found = Findings()
    try:
        await _take_steps(folder, found)
    except* Stuck:
        say("  the other steps need this one")
    for name in found.failed:
        say(f"BROKEN: {name}")
    inert = "yes" if found.inert else "no"
    say(f"proof-console: steps={found.steps} failed={len(found.failed)} inert={inert}")
    return 1 if found.failed or not found.inert else 0


async def _take_steps(folder: Path, found: Findings) -> None:
    async with (
        deployment(folder) as gateway,
        chromium() as browser,
        operating(browser, gateway.origin) as (operator, _),
        AsyncExitStack() as stack,
    ):
        proof = Proof(gateway, browser, operator, found)
        await proof.log_in()
        client, session = await proof.watch(stack)
        await proof.crowd(stack)
        async with asyncio.TaskGroup() as tasks:
            await proof.follow(client, session, tasks)
            await proof.kill(session)
        await proof.find()
        await proof.look_around()
        await proof.other_windows(session)


def say(line: str) -> None:
    """Print a line now."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """Run the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.proof.console", description=__doc__)
    parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="proof-console-") as folder:
        return asyncio.run(prove(Path(folder)))


if __name__ == "__main__":
    raise SystemExit(main())
