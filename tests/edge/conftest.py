"""A gateway in this process for every test of this folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
import pytest_asyncio
from aiohttp.test_utils import TestServer

from gateway.app import build
from gateway.registry.servers import Registry, ServerDefinition
from gateway.sessions.manager import Manager, Terms
from gateway.settings import Settings
from tests.fakes.house import KEY, Ear, House
from tests.fakes.launchers import RecordingLauncher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest_asyncio.fixture
async def house() -> AsyncIterator[House]:
    launcher, ear = RecordingLauncher(), Ear()
    patient = ServerDefinition(name="patient", command="never-run")
    hasty = ServerDefinition(name="hasty", command="never-run", boot_timeout=0.01)
    settings = Settings.model_validate({"api_key": KEY, "bind_host": "127.0.0.1"})
    manager = Manager(launcher, Terms("http://127.0.0.1", b"s" * 32, 10), ear)
    app = build(settings, Registry([patient, hasty]), manager)
    headers = {"X-API-Key": KEY, "Accept": "application/json, text/event-stream"}
    server = TestServer(app, handler_cancellation=True)  # as `gateway.app.serve` runs it
    async with server, aiohttp.ClientSession(headers=headers) as http:
        yield House(str(server.make_url("")).rstrip("/"), http, launcher, ear)
