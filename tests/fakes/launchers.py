"""Launchers for tests in one process: no dyno is ever made, the test plays its agent."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.launchers.base import Dyno, LaunchOrder

if TYPE_CHECKING:
    from collections.abc import Sequence

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

    async def stop(self, dyno_id: str) -> bool:
        """Record the stop. See `Launcher.stop`."""
        self.stopped.append(dyno_id)
        return True

    async def list(self) -> Sequence[Dyno]:
        """Nothing ever ends by itself. See `Launcher.list`."""
        return []

    async def aclose(self) -> None:
        """Nothing is held. See `Launcher.aclose`."""
