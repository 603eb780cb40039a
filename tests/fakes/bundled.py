"""What tests of the bundled servers share: a client of one, the processes that it starts, a PDF."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from mcp import Client, StdioServerParameters

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

REPOSITORY = Path(__file__).resolve().parents[2]

BOUND_S = 60.0
"""Seconds for anything that is due at once, on a machine that does much else."""


@asynccontextmanager
async def served(module: str, **environment: str) -> AsyncIterator[Client]:
    """A client and its server, in a task of their own: that which enters its scopes must leave."""
    parameters = StdioServerParameters(
        command=sys.executable,
        args=["-m", module],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
    )
    ready, done = asyncio.get_running_loop().create_future(), asyncio.Event()

    async def live() -> None:
        async with Client(parameters, mode="legacy") as client:
            ready.set_result(client)
            await done.wait()

    async with asyncio.TaskGroup() as group:
        group.create_task(live())
        async with asyncio.timeout(BOUND_S):
            client = await ready
        yield client
        done.set()


async def until(condition: Callable[[], object]) -> None:
    """Wait for a state of the operating system, which sends no events."""
    async with asyncio.timeout(BOUND_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does no more."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def a_pdf(*lines: str) -> bytes:
    """A PDF of one page with these lines."""
    text = "".join(
        f"BT /F 24 Tf 72 {700 - 40 * number} Td ({line}) Tj ET\n"
        for number, line in enumerate(lines)
    ).encode()
    objects = (
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R"
        b"/Resources<</Font<</F 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(text), text),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    )
    document, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(document))
        document += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    return document + (
        b"xref\n0 6\n0000000000 65535 f \n%strailer<</Size 6/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n"
        % (table, len(document))
    )
