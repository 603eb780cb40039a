"""The platform for coroutines: bounded threads, deadlines, and repeats that cannot launch twice.

What may be repeated: reading, stopping, and creating when the platform has certainly not created.
A create whose answer was lost is never repeated here; `Unavailable.sent` says that it was, and the
launcher settles it.
"""

import asyncio
import functools
import hashlib
import itertools
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import stamina
import structlog
from heroku3.api import HEROKU_URL

from gateway.launchers.heroku.api import REFILL_S, Bounds, Meter, PlatformApi
from gateway.launchers.heroku.documents import (
    DynoInfo,
    DynoRequest,
    FormationInfo,
    ReleaseInfo,
    SizeInfo,
    WebhookInfo,
)
from gateway.launchers.heroku.failures import (
    AtLimit,
    Conflict,
    Failure,
    NotFound,
    RateLimited,
    Unavailable,
)

THREADS = 8
CREATES = 6
"""Creates under way at once: the other threads list and stop meanwhile, however slow those are."""

RESERVED = 200
"""Requests that are left to listing and stopping: no dyno is made that could not be ended."""

CONFLICTS = 2
"""How often a create is repeated that came just after an app's first release, as Heroku's CLI
says it should."""

ATTEMPTS = 6

EXPECTED = (NotFound, AtLimit)
"""What goes on all day; the others are logged with the operator's next step."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long things may take, in seconds.

    Attributes:
        bounds: of one request.
        queue_s: until there is a thread for a request: a rush of 100 sessions takes half of it.
        repeat_s: no repeat begins later than this.
        pause_s: before the first repeat, about; it doubles up to 5 s.
        look_s: between the first looks for what should appear or disappear; it grows.
        settle_s: how long a dyno is looked for whose creation was not answered.
        appears_s: how long the platform may say that it knows nothing of a dyno just made. Heroku's
            CLI asks for 20 s; what appears later than this, the reconciler stops.
        gone_s: how long a dyno may take to end: more than the 30 s from SIGTERM to SIGKILL.
        close_s: how long requests under way may take when the gateway goes.
    """

    bounds: Bounds = field(default_factory=Bounds)
    queue_s: float = 60.0
    repeat_s: float = 20.0
    pause_s: float = 0.5
    look_s: float = 0.5
    settle_s: float = 20.0
    appears_s: float = 5.0
    gone_s: float = 40.0
    close_s: float = 1.0

    @property
    def call_s(self) -> float:
        """How long a thread may take for a request that has one page."""
        return self.bounds.connect_s + self.bounds.read_s + self.bounds.answer_s


class Platform:
    """Requests to the platform, each bounded in time. Whoever made it closes it.

    Every method raises `failures.Failure`; `NotFound` and the other classes where it matters.

    Args:
        key: of the platform.
        url: base of its API.
        patience: how long things may take.

    Raises:
        ValueError: the key cannot be one.
    """

    def __init__(self, key: str, url: str = HEROKU_URL, patience: Patience | None = None) -> None:
        self.patience = patience or Patience()
        self._key = key.strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise ValueError("HEROKU_API_KEY holds characters that no key has")
        self._url = url
        self._meter = Meter()
        self._threads = ThreadPoolExecutor(THREADS, "heroku")
        self._here = threading.local()
        self._clients: list[PlatformApi] = []
        self._running: set[asyncio.Future[Any]] = set()
        self._any = asyncio.Semaphore(THREADS)
        self._creates = asyncio.Semaphore(CREATES)

    @property
    def remaining(self) -> int | None:
        """How many requests the account has left, about; None before the first answer."""
        return self._meter.remaining

    async def create_dyno(
        self, app: str, request: DynoRequest, wanted: Callable[[], bool] = lambda: True
    ) -> DynoInfo:
        """Start a one-off dyno, once at most.

        Args:
            app: whose.
            request: what it shall be.
            wanted: asked before each attempt; none is made when it says no.

        Raises:
            Failure: there is none; but if `sent`, there may be one.
        """
        conflicts = itertools.count(1)

        def again(error: Exception) -> bool | float:
            if not isinstance(error, Failure) or error.sent or not wanted():
                return False
            if isinstance(error, Conflict):
                return next(conflicts) <= CONFLICTS
            return self._passes(error)

        def check() -> None:
            if not wanted():
                raise Unavailable("nobody waits for the dyno any more")
            missing = RESERVED - (RESERVED if self.remaining is None else self.remaining)
            if missing > 0:
                raise RateLimited(
                    "what is left of it is for stopping dynos", retry_after_s=missing * REFILL_S
                )

        async def create() -> DynoInfo:
            return await self._once(
                lambda api: api.create_dyno(app, request), (self._creates,), check
            )

        return await self._repeated(f"create a dyno of {app}", create, again)

    async def dyno(self, app: str, dyno_id: str) -> DynoInfo:
        """Return a dyno."""
        return await self._safe(f"look at a dyno of {app}", lambda api: api.dyno(app, dyno_id))

    async def dynos(self, app: str) -> Sequence[DynoInfo]:
        """Return all dynos of an app, whoever made them."""
        return await self._safe(f"list the dynos of {app}", lambda api: api.dynos(app))

    async def stop_dyno(self, app: str, dyno_id: str) -> None:
        """Have a dyno ended; that takes it up to 30 s."""
        await self._safe(f"stop a dyno of {app}", lambda api: api.stop_dyno(app, dyno_id))

    async def formation(self, app: str) -> Sequence[FormationInfo]:
        """Return the process types of an app."""
        return await self._safe(f"read the formation of {app}", lambda api: api.formation(app))

    async def current_release(self, app: str) -> ReleaseInfo | None:
        """Return the release that new dynos run; None for an app that has none."""
        return await self._safe(f"read the releases of {app}", lambda api: api.current_release(app))

    async def config_digests(self, app: str) -> Mapping[str, str]:
        """Return the SHA-256 of each config var of an app, in hex; the values are not kept."""

        def digests(api: PlatformApi) -> dict[str, str]:
            return {
                name: hashlib.sha256(value.encode()).hexdigest()
                for name, value in api.config_vars(app).items()
            }

        return await self._safe(f"read the config vars of {app}", digests)

    async def dyno_sizes(self) -> Sequence[SizeInfo]:
        """Return what sizes there are, with prices."""
        return await self._safe("read the dyno sizes", lambda api: api.dyno_sizes())

    async def rate_limit(self) -> int:
        """Ask how many requests are left; that costs none."""
        return await self._safe("read the rate limit", lambda api: api.ratelimit_remaining())

    async def webhooks(self, app: str) -> Sequence[WebhookInfo]:
        """Return the subscriptions of an app."""
        return await self._safe(f"list the webhooks of {app}", lambda api: api.webhooks(app))

    async def create_webhook(
        self, app: str, url: str, secret: str, include: Sequence[str]
    ) -> WebhookInfo:
        """Subscribe to an app's events. Not repeated when its answer was lost."""
        return await self._repeated(
            f"subscribe to {app}",
            lambda: self._once(lambda api: api.create_webhook(app, url, secret, include)),
            lambda error: not getattr(error, "sent", True) and self._passes(error),
        )

    async def delete_webhook(self, app: str, webhook_id: str) -> None:
        """End a subscription."""
        await self._safe(
            f"end a subscription to {app}", lambda api: api.delete_webhook(app, webhook_id)
        )

    async def aclose(self) -> None:
        """Take no more requests; wait for those under way, for a bounded time."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._running:
            await asyncio.wait(self._running, timeout=self.patience.close_s)
        for client in self._clients:
            client.close()

    async def _safe(self, what: str, call: Callable[[PlatformApi], T]) -> T:
        """Do what may be done any number of times."""
        return await self._repeated(what, lambda: self._once(call), self._passes)

    def _passes(self, error: Exception) -> bool | float:
        """Whether, or in how many seconds, it is worth to ask once more."""
        if not isinstance(error, RateLimited | Unavailable):
            return False
        wait_s = error.retry_after_s
        return True if wait_s is None else wait_s <= self.patience.repeat_s and wait_s

    async def _repeated(
        self,
        what: str,
        attempt: Callable[[], Awaitable[T]],
        again: Callable[[Exception], bool | float],
    ) -> T:
        tries = stamina.AsyncRetryingCaller(
            attempts=ATTEMPTS,
            timeout=self.patience.repeat_s,
            wait_initial=self.patience.pause_s,
            wait_jitter=self.patience.pause_s,
        )
        try:
            return await tries(again, attempt)
        except EXPECTED:
            raise
        except Failure as failure:
            structlog.get_logger().warning(
                "platform_failure", what=what, problem=str(failure), advice=failure.advice
            )
            raise

    async def _once(
        self,
        call: Callable[[PlatformApi], T],
        gates: Sequence[asyncio.Semaphore] = (),
        check: Callable[[], None] = lambda: None,
    ) -> T:
        """Make one request in a thread.

        A thread cannot be cancelled: its gates open when it is done, not when nobody waits for it
        any more, so that there are never more requests than gates.
        """
        taken: list[asyncio.Semaphore] = []
        try:
            async with asyncio.timeout(self.patience.queue_s):
                for gate in (*gates, self._any):
                    await gate.acquire()
                    taken.append(gate)
            check()
            running = asyncio.get_running_loop().run_in_executor(self._threads, self._do, call)
        except TimeoutError:
            _open(taken)
            raise Unavailable("too many requests wait for their turn") from None
        except RuntimeError:  # the pool's way to say so
            _open(taken)
            raise Unavailable("no thread for it: the gateway goes, or is out of them") from None
        except (Failure, asyncio.CancelledError):
            _open(taken)
            raise
        self._running.add(running)
        running.add_done_callback(functools.partial(self._done, taken))
        await asyncio.wait((running,), timeout=self.patience.call_s)
        if not running.done():
            raise Unavailable("no answer in time", sent=True)
        return running.result()

    def _done(self, taken: list[asyncio.Semaphore], running: asyncio.Future[Any]) -> None:
        self._running.discard(running)
        _open(taken)
        if not running.cancelled():
            running.exception()  # somebody may have stopped waiting for it

    def _do(self, call: Callable[[PlatformApi], T]) -> T:
        """Make a request with this thread's own client."""
        client: PlatformApi | None = getattr(self._here, "client", None)
        if client is None:
            client = PlatformApi(self._key, self._url, self.patience.bounds, self._meter)
            self._here.client = client
            self._clients.append(client)
        return call(client)


def _open(gates: list[asyncio.Semaphore]) -> None:
    for gate in gates:
        gate.release()
