"""Launchers for tests in one process: no dyno is ever made, the test plays its agent."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from gateway.launchers.base import AtCapacity, Dyno, LaunchOrder, PlatformError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAX_ORDERS = 64


class RecordingLauncher:
    """Takes every order at once and hands it to the test; whether anybody dials is the test's."""

    name = "fake"
    boot_timeout_s = 30.0
    poll_s = 0.25

    def __init__(self) -> None:
        self.orders: asyncio.Queue[LaunchOrder] = asyncio.Queue(MAX_ORDERS)
        self.stopped: list[str] = []

    async def launch(self, order: LaunchOrder) -> Dyno:
        """Record the order. See `Launcher.launch`."""
        self.orders.put_nowait(order)
        return Dyno(f"fake.{order.launch_id}", order.launch_id)

    def usd_per_hour(self, size: str | None, app: str | None) -> float:
        """Nothing: this machine runs anyway. See `Launcher.usd_per_hour`."""
        return 0.0

    async def stop(self, dyno_id: str) -> float | None:
        """Record the stop. See `Launcher.stop`."""
        self.stopped.append(dyno_id)
        return 0.0

    async def list(self) -> Sequence[Dyno]:
        """Nothing ever ends by itself. See `Launcher.list`."""
        return []

    async def aclose(self) -> None:
        """Nothing is held. See `Launcher.aclose`."""


class Scripted(RecordingLauncher):
    """A platform of dynos that only stand in its list. What goes wrong is the test's.

    Attributes:
        limit: dynos that may run at once; None for no limit.
        price: of a dyno-hour, in dollars.
        running: what runs, by launch id; a test may add to it or take from it.
        tried: launches so far, those that failed too.
        refusals: raised by the next launches, one each.
        gate: launches wait for it; open at first.
        stop_failures: raised by the next stops, one each.
        list_failure: raised by every list while it is set.
        lists: how many were asked for.
        clock: when a dyno was created; None says nothing of it.
    """

    poll_s = 0.01

    def __init__(self, limit: int | None = None, price: float = 3.6) -> None:
        super().__init__()
        self.limit = limit
        self.price = price
        self.running: dict[str, Dyno] = {}
        self.tried = 0
        self.refusals: deque[Exception] = deque(maxlen=MAX_ORDERS)
        self.gate = asyncio.Event()
        self.gate.set()
        self.stop_failures: deque[Exception] = deque(maxlen=MAX_ORDERS)
        self.list_failure: PlatformError | None = None
        self.lists = 0
        self.clock: Callable[[], float] | None = None

    async def launch(self, order: LaunchOrder) -> Dyno:
        """Let one run, if it may. See `Launcher.launch`."""
        self.tried += 1
        await self.gate.wait()
        if self.refusals:
            self.orders.put_nowait(order)
            raise self.refusals.popleft()
        if self.limit is not None and len(self.running) >= self.limit:
            raise AtCapacity(f"no more than {self.limit} dynos")
        return self.runs(await super().launch(order))

    def runs(self, dyno: Dyno) -> Dyno:
        """Let a dyno run, whoever has launched it."""
        created = None if self.clock is None else self.clock()
        self.running[dyno.launch_id] = replace(dyno, created=created, usd_per_hour=self.price)
        return self.running[dyno.launch_id]

    def usd_per_hour(self, size: str | None, app: str | None) -> float:
        """The same for all. See `Launcher.usd_per_hour`."""
        return self.price

    async def stop(self, dyno_id: str) -> float | None:
        """Let one run no more. See `Launcher.stop`."""
        if self.stop_failures:
            raise self.stop_failures.popleft()
        self.stopped.append(dyno_id)
        found = [each for each in self.running.values() if each.dyno_id == dyno_id]
        for dyno in found:
            del self.running[dyno.launch_id]
        return 0.0 if any(dyno.exit_status is None for dyno in found) else None

    async def list(self) -> Sequence[Dyno]:
        """What runs. See `Launcher.list`."""
        self.lists += 1
        if self.list_failure is not None:
            raise self.list_failure
        return list(self.running.values())
