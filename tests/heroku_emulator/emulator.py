"""The emulator as one object: the platform, its API on a port, and the strings to pull."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Self

from aiohttp import web

from tests.heroku_emulator import control
from tests.heroku_emulator.faults import Faults
from tests.heroku_emulator.operations import OPERATIONS
from tests.heroku_emulator.options import Options
from tests.heroku_emulator.platform import Platform
from tests.heroku_emulator.server import Server
from tests.heroku_emulator.webhooks import Webhooks

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from tests.heroku_emulator.model import AppSpec, Dyno, ProcessSpec, Release
    from tests.heroku_emulator.server import Seen, Violation
    from tests.heroku_emulator.webhooks import Delivery

HOST = "127.0.0.1"

LEAVE_S = 0.1
"""Requests under way have this long when the emulator goes; then they are cancelled."""

POLL_S = 0.02


class Emulator:
    """A Heroku platform on this machine. Enter it to start; leaving ends every dyno.

    Attributes:
        options: how it behaves; may be changed while it runs.
        faults: what goes wrong; see `Faults.push` and `Faults.plan`.
        api_key: the key of its only account.
    """

    def __init__(
        self,
        apps: Mapping[str, AppSpec],
        options: Options | None = None,
        *,
        port: int = 0,
        api_key: str | None = None,
    ) -> None:
        self.options = options or Options()
        self.api_key = api_key or f"HRKU-{secrets.token_hex(16)}"
        self.faults = Faults(frozenset(operation.name for operation in OPERATIONS))
        self._specs = dict(apps)
        self._port = port
        self._stack = AsyncExitStack()
        self._platform: Platform
        self._server: Server

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            root = Path(mkdtemp(prefix="heroku-emulator-"))
            stack.callback(shutil.rmtree, root, ignore_errors=True)
            tasks = await asyncio.TaskGroup().__aenter__()
            # Without what went wrong in the body: the group would wrap it into one of its own.
            stack.push_async_callback(tasks.__aexit__, None, None, None)
            webhooks = Webhooks(self.options, tasks)
            stack.callback(webhooks.close)
            self._platform = Platform(self.options, tasks, webhooks, root)
            stack.push_async_callback(self._platform.close)
            for name, spec in self._specs.items():
                self._platform.add(name, spec)
            self._server = Server(self._platform, self.faults, self.api_key)
            await self._listen(stack)
            self._stack = stack.pop_all()
        return self

    async def _listen(self, stack: AsyncExitStack) -> None:
        application = web.Application()
        control.routes(application, self)
        self._server.routes(application)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=LEAVE_S)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, HOST, self._port).start()
        self._port = runner.addresses[0][1]
        self._server.origin = self.url

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return await self._stack.__aexit__(exc_type, exc, traceback)

    # -- what can be seen ----------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The base URL of the API."""
        return f"http://{HOST}:{self._port}"

    @property
    def ledger(self) -> list[Dyno]:
        """Every dyno there ever was, in the order of their making."""
        return self._platform.ledger

    def dynos_left(self) -> list[Dyno]:
        """Return the dynos that have not ended; some processes of them may still run."""
        return self._platform.left()

    @property
    def requests(self) -> deque[Seen]:
        """The requests that came in, oldest first."""
        return self._server.requests

    @property
    def violations(self) -> list[Violation]:
        """What broke the published schema; requests of a client that is right never do."""
        return self._server.violations

    @property
    def deliveries(self) -> list[Delivery]:
        """What became of each webhook."""
        return self._platform.webhooks.deliveries

    @property
    def remaining(self) -> int:
        """What is left of the account's request quota."""
        return self._server.remaining

    def log(self, app: str) -> list[str]:
        """Return the last lines of an app's log, as the API tells them."""
        return self._platform.app(app).log.lines()

    async def until(self, condition: Callable[[], object], within: float = 10.0) -> None:
        """Wait until a condition is true.

        Raises:
            TimeoutError: it is not, within so many seconds.
        """
        async with asyncio.timeout(within):
            while not condition():  # noqa: ASYNC110 - processes tell their parent alone
                await asyncio.sleep(POLL_S)

    # -- what can be done ----------------------------------------------------------------------

    def deploy(
        self,
        app: str,
        processes: Mapping[str, str | ProcessSpec] | None = None,
        slug: Path | None = None,
    ) -> Release:
        """Make a release; `processes` is the whole new Procfile, None keeps the last one."""
        return self._platform.deploy(self._platform.app(app), processes, slug)

    def set_config(self, app: str, changes: Mapping[str, str | None]) -> None:
        """Set config vars of an app; None removes one. It is a release, too."""
        self._platform.set_config(self._platform.app(app), changes)

    def set_remaining(self, requests: float) -> None:
        """Set what is left of the account's request quota."""
        self._server.set_remaining(requests)

    async def kill(self, dyno_id: str) -> None:
        """SIGKILL a dyno as a failing machine does, and wait until it has ended."""
        running = self._platform.dyno(dyno_id)
        running.end("killed", at_once=True)
        await running.ended.wait()
