"""Serve on stdin and stdout until stdin ends or a signal comes: what every server's entry does.

The only place that reads the environment and that ends the process.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from mcp_servers.limits import CannotServeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mcp.server.mcpserver import MCPServer

BAD_USAGE = 64
"""Exit code, EX_USAGE of sysexits.h."""

BAD_SETTING = 78
"""Exit code, EX_CONFIG of sysexits.h: restarting will not help."""

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_PR_SET_DUMPABLE = 4


@dataclass(frozen=True, slots=True)
class Service:
    """What is served.

    Attributes:
        server: The MCP side.
        close: Kills what runs and removes what is left, and may block for it. Called at the end,
            in the loop or, on a signal, in one of its callbacks.
    """

    server: MCPServer
    close: Callable[[], None] = lambda: None


def run(name: str, prepare: Callable[[Mapping[str, str]], Service]) -> None:
    """Run a server; returns when stdin has ended.

    Args:
        name: The server's, for what it says on stderr.
        prepare: Makes it, given the environment. Called before there is a loop.

    Exits with 78 and a line on stderr if `prepare` raises `CannotServeError`.
    """
    try:
        service = prepare(dict(os.environ))
    except CannotServeError as error:
        sys.stderr.write(f"{name}: {error}\n")
        raise SystemExit(BAD_SETTING) from error
    _close_proc()
    asyncio.run(_serve(service))


def refuse_usage(usage: str) -> NoReturn:
    """Exit with 64 and the usage on stderr: the command line is none of the server's."""
    sys.stderr.write(f"usage: {usage}\n")
    raise SystemExit(BAD_USAGE)


def _close_proc() -> None:
    """Deny children this process' /proc entry: its pipes are the protocol, its environment whole.

    prctl(2): what is not dumpable belongs to root there. A child runs as the same user and could
    otherwise open our stdin by name.
    """
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


async def _serve(service: Service) -> None:
    loop = asyncio.get_running_loop()
    for number in ENDING:
        loop.add_signal_handler(number, _end, service, number)
    try:
        await service.server.run_stdio_async()
    finally:
        service.close()


def _end(service: Service, number: signal.Signals) -> None:
    """Clean up, then die of the signal.

    Not by cancelling: the SDK reads stdin in a thread that only a line or its end wakes.
    """
    service.close()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
