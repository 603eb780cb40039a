"""Start the agent: `python -m dyno_agent`. Configured by its environment alone (config.py).

What stands on the command line is for the platform's list of dynos. Only `--version` is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from pathlib import Path

from dyno_agent import __version__
from dyno_agent.agent import Agent
from dyno_agent.compat import run
from dyno_agent.config import FETCHED, Config, ConfigError, take_config

BAD_CONFIG = 78
"""EX_CONFIG of sysexits.h: a repeat with the same settings cannot work."""


async def _run(config: Config) -> int:
    agent = Agent(config, os.environ)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.leave, number.name)
    return await agent.run()


def _remove_archive() -> None:
    """Remove the file that the dyno's command has put the agent into: all of it is imported now."""
    archive = os.environ.get(FETCHED)
    if archive and archive == sys.argv[0]:
        with contextlib.suppress(OSError):
            Path(archive).unlink()


def main() -> int:
    """Run one agent and return its exit status."""
    if "--version" in sys.argv[1:]:
        sys.stdout.write(f"{__version__}\n")
        return 0
    _remove_archive()
    logging.basicConfig(format="level=%(levelname)s logger=%(name)s %(message)s")
    logging.getLogger("dyno_agent").setLevel(logging.INFO)
    try:
        config = take_config(os.environ)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return BAD_CONFIG
    return run(_run(config))


if __name__ == "__main__":
    raise SystemExit(main())
