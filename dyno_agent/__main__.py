"""Start the agent: `python -m dyno_agent`. Configured by its environment alone (config.py)."""

import asyncio
import logging
import os
import signal
import sys

from dyno_agent.agent import Agent
from dyno_agent.config import Config, ConfigError, take_config

BAD_CONFIG = 78
"""EX_CONFIG of sysexits.h: a repeat with the same settings cannot work."""


async def _run(config: Config) -> int:
    agent = Agent(config, os.environ)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.leave, number.name)
    return await agent.run()


def main() -> int:
    """Run one agent and return its exit status."""
    logging.basicConfig(format="level=%(levelname)s logger=%(name)s %(message)s")
    logging.getLogger("dyno_agent").setLevel(logging.INFO)
    try:
        config = take_config(os.environ)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return BAD_CONFIG
    return asyncio.run(_run(config))


if __name__ == "__main__":
    raise SystemExit(main())
