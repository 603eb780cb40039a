"""The Heroku launcher: a dyno is a one-off dyno of the app that holds the server.

A dyno's command ends with ` --launch <realm>.<launch id>`: by that, and by nothing else, any
process of the deployment knows it again. What the platform does not tell is not assumed: a create
whose answer was lost is looked for, and a dyno is gone when the platform says so.
"""

import asyncio
import contextlib
import math
import re
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog

from gateway.launchers.base import (
    AtCapacity,
    Dyno,
    LaunchError,
    LaunchOrder,
    LaunchUnsettled,
    PlatformError,
)
from gateway.launchers.heroku.documents import DynoInfo, DynoRequest
from gateway.launchers.heroku.failures import AtLimit, Failure, NotFound
from gateway.launchers.heroku.own import Blanks, OwnApp
from gateway.launchers.heroku.platform import Platform
from gateway.launchers.heroku.prices import Prices

POLL_S = 10.0
"""Between two lists of one app: 360 of the 4500 requests an hour."""

LOW = 1000
"""With fewer requests left, lists are asked for less often."""

SLOWEST = 10.0
"""How many times less often, at most."""

LONGEST_S = 86_400
"""The platform's own limit of `time_to_live`."""

LONGEST_LOOK_S = 1.0
"""Between two looks at a dyno that ends: what it costs is known as exactly."""

CLOSE_S = 2.0
"""How long launches that nobody waits for may take to be undone when the gateway goes. What is
left has its `time_to_live`, and the next process's reconciler."""

UNKNOWN = -1
"""Exit status: lists do not tell it."""

_WORD = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What may become part of a command line."""

_DYNO_ID = re.compile(r"([a-z0-9-]{1,64})/([0-9a-f-]{36})")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AgentCommands:
    """Command lines that start the agent, by where a dyno has it from; `--launch` is appended."""

    installed: str
    fetched: str


@dataclass(slots=True)
class _Attempt:
    """One launch under way."""

    order: LaunchOrder
    app: str
    wanted: bool = True


class HerokuLauncher:
    """One-off dynos of Heroku apps.

    Args:
        platform: where they come from; stays the caller's to close.
        apps: the apps that hold servers; dynos are launched into these only, and looked for there.
        realm: names the deployment, in public: launchers of one realm share their dynos.
        commands: of the agent.
        default_size: of dynos whose order names none.
        own: what is known of the gateway's own app.

    Raises:
        ValueError: the realm cannot be part of a command line.
    """

    name = "heroku"
    boot_timeout_s = 120.0

    def __init__(
        self,
        platform: Platform,
        apps: Sequence[str],
        realm: str,
        commands: AgentCommands,
        default_size: str,
        own: OwnApp,
    ) -> None:
        self._platform = platform
        self._apps = tuple(apps)
        self._commands = commands
        self._default_size = default_size
        self._blanks = Blanks(platform, own)
        self._prices = Prices(platform)
        self._realm = _valid(realm)
        self._tag = re.compile(rf" --launch {self._realm}\.([A-Za-z0-9_-]{{1,64}})")
        self._tasks: set[asyncio.Task[Any]] = set()
        self._unseen: dict[str, float] = {}  # dynos the platform has not listed yet, until when
        self.poll_s = POLL_S * max(1, len(self._apps))

    async def launch(self, order: LaunchOrder) -> Dyno:
        """Create a one-off dyno. See `Launcher.launch`.

        If nobody waits for the answer any more, the dyno is stopped as soon as it is known.

        Raises:
            ValueError: the launch id cannot be part of a command line.
        """
        _valid(order.launch_id)
        attempt = _Attempt(order, self._app_of(order))
        obtaining = self._keep(self._obtain(attempt), f"launch {order.launch_id}")
        try:
            await asyncio.wait((obtaining,))
        except asyncio.CancelledError:
            attempt.wanted = False
            self._keep(self._undo(obtaining), f"undo {order.launch_id}")
            raise
        return obtaining.result()

    def _app_of(self, order: LaunchOrder) -> str:
        if order.app is not None:
            if order.app not in self._apps:
                raise LaunchError(f"{order.app} is not among the apps of this gateway")
            return order.app
        if len(self._apps) != 1:
            raise LaunchError(f"it is not said which app holds {order.server}")
        return self._apps[0]

    def _keep(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Start a task of the launcher's own: it goes on when its caller is cancelled.

        What it does is bounded in time, and `aclose` waits for it.
        """
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._let_go)
        return task

    def _let_go(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may be gone

    async def _obtain(self, attempt: _Attempt) -> Dyno:
        order, app = attempt.order, attempt.app
        request = DynoRequest(
            command=f"{self._command(order)} --launch {self._realm}.{order.launch_id}",
            env={**await self._blanks.environment(app), **order.environment},
            time_to_live=max(1, min(math.ceil(order.lifetime_s), LONGEST_S)),
            size=order.size or self._default_size,
        )
        try:
            info = await self._platform.create_dyno(app, request, lambda: attempt.wanted)
        except AtLimit as failure:
            raise AtCapacity(str(failure), failure.retry_after_s) from failure
        except Failure as failure:
            if failure.sent:
                return await self._settled(attempt, failure)
            raise LaunchError(str(failure), failure.retry_after_s) from failure
        dyno = self._dyno(app, info, order.launch_id)
        appears_s = self._platform.patience.appears_s
        self._unseen[dyno.dyno_id] = asyncio.get_running_loop().time() + appears_s
        return dyno

    def _command(self, order: LaunchOrder) -> str:
        installed = order.agent == "installed"
        return self._commands.installed if installed else self._commands.fetched

    async def _settled(self, attempt: _Attempt, lost: Failure) -> Dyno:
        """Find out what became of a create whose answer was lost.

        One that the platform carries out even later is no session's: its agent is refused.
        """
        loop, patience = asyncio.get_running_loop(), self._platform.patience
        end, pause_s = loop.time() + patience.settle_s, patience.look_s
        while True:
            last = loop.time() >= end
            try:
                dynos = await self._found(attempt.app)
            except Failure as failure:
                if last:
                    raise LaunchUnsettled(
                        f"{_sentence(lost)}; nor could a dyno be looked for: {failure}"
                    ) from failure
            else:
                for dyno in dynos:
                    if dyno.launch_id == attempt.order.launch_id:
                        return dyno
                if last:
                    raise LaunchError(f"{_sentence(lost)}; no dyno came of it")
            await asyncio.sleep(max(0.0, min(pause_s, end - loop.time())))
            pause_s *= 2

    async def _undo(self, obtaining: asyncio.Task[Dyno]) -> None:
        """Stop the dyno of a launch that nobody waits for."""
        await asyncio.wait((obtaining,))
        if obtaining.cancelled() or obtaining.exception() is not None:
            return
        dyno_id = obtaining.result().dyno_id
        try:
            await self.stop(dyno_id)
        except PlatformError as error:
            structlog.get_logger().warning("dyno_left", dyno=dyno_id, problem=str(error))

    def usd_per_hour(self, size: str | None, app: str | None) -> float:
        """Return the platform's price, or a table's until it is known. See the port.

        A size that nobody knows costs as much as the dearest.
        """
        if self._prices.due():
            self._keep(self._prices.learn(), "learn the prices")
        return self._prices.usd_per_hour(size or self._default_size)

    async def stop(self, dyno_id: str) -> float | None:
        """Have the dyno ended and wait until it has. See `Launcher.stop`.

        Takes up to 40 s: the platform gives a dyno 30 s between SIGTERM and SIGKILL. It is looked
        at before it is told to stop, as a stop whose answer was lost does not say whether it ran.
        """
        named = _DYNO_ID.fullmatch(dyno_id)
        if named is None:
            return None
        app, platform_id = named.groups()
        patience = self._platform.patience
        try:
            async with asyncio.timeout(patience.gone_s):
                return await self._stop(dyno_id, app, platform_id)
        except TimeoutError:
            raise PlatformError(
                f"a dyno of {app} was not seen to end within {patience.gone_s:.0f} s"
            ) from None

    async def _stop(self, dyno_id: str, app: str, platform_id: str) -> float | None:
        pause_s = self._platform.patience.look_s
        clock = asyncio.get_running_loop().time
        seen: float | None = None  # to run
        told = hidden = False
        while True:
            looked = clock()
            try:
                if (await self._platform.dyno(app, platform_id)).ended:
                    return None if seen is None else clock() - seen
                seen = looked
                self._unseen.pop(dyno_id, None)
            except NotFound:
                young = hidden or self._may_appear(dyno_id)
                hidden = young and told and await self._listed(dyno_id, app)
                if not young or (told and not hidden):
                    return None if seen is None else clock() - seen
            if not told:
                looked = clock()
                with contextlib.suppress(NotFound):  # the next look says what that means
                    await self._platform.stop_dyno(app, platform_id)
                    seen, told = looked, True
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, LONGEST_LOOK_S)

    async def _listed(self, dyno_id: str, app: str) -> bool:
        return any(dyno.dyno_id == dyno_id for dyno in await self._found(app))

    def _may_appear(self, dyno_id: str) -> bool:
        """Whether a dyno that the platform does not know may be too new for it."""
        now = asyncio.get_running_loop().time()
        self._unseen = {known: until for known, until in self._unseen.items() if now < until}
        return dyno_id in self._unseen

    async def list(self) -> Sequence[Dyno]:
        """Return this realm's dynos of all apps. See `Launcher.list`.

        All or nothing: if one app's list cannot be had, the dynos of that app are not gone, so no
        list is given at all; the error names the app.
        """
        async with asyncio.TaskGroup() as lists:
            asked = {app: lists.create_task(self._found_or_failure(app)) for app in self._apps}
        self.poll_s = self._pace()
        dynos: list[Dyno] = []
        failures: list[str] = []
        for app, task in asked.items():
            found = task.result()
            if isinstance(found, Failure):
                failures.append(f"{app}: {found}")
            else:
                dynos += found
        if failures:
            raise PlatformError("no list of the dynos of " + "; ".join(failures))
        return dynos

    async def _found_or_failure(self, app: str) -> Sequence[Dyno] | Failure:
        try:
            return await self._found(app)
        except Failure as failure:
            return failure

    async def _found(self, app: str) -> Sequence[Dyno]:
        """Return this realm's dynos of one app."""
        dynos = []
        for info in await self._platform.dynos(app):
            tag = self._tag.search(info.command)
            if tag is not None and tag.end() == len(info.command):
                dynos.append(self._dyno(app, info, tag[1]))
                self._unseen.pop(dynos[-1].dyno_id, None)
        return dynos

    def _dyno(self, app: str, info: DynoInfo, launch_id: str) -> Dyno:
        return Dyno(
            f"{app}/{info.id}",
            launch_id,
            exit_status=UNKNOWN if info.ended else None,
            usd_per_hour=self.usd_per_hour(info.size, app),
            created=info.created,
            app=app,
        )

    def _pace(self) -> float:
        """Return how often to list, by how many requests are left."""
        left = self._platform.remaining
        scarce = 1.0 if left is None else LOW / max(left, 1)
        return POLL_S * max(1, len(self._apps)) * min(max(scarce, 1.0), SLOWEST)

    async def aclose(self) -> None:
        """Wait, for a bounded time, for launches that nobody waits for. See `Launcher.aclose`."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_S)
        left = tuple(self._tasks)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=1.0)


def _valid(word: str) -> str:
    if not _WORD.fullmatch(word):
        raise ValueError(f"not 1 to 64 characters of A-Z, a-z, 0-9, _ and -: {word!r}")
    return word


def _sentence(error: Exception) -> str:
    """Return what an error says, to be gone on with."""
    return str(error).rstrip(".")
