"""Run the emulator by itself: `python -m tests.heroku_emulator [--port P] [--config FILE]`.

FILE is JSON:

    {"apps": {"runner": {"processes": {"mcp-python": "python -m server"}, "slug": "path/to/folder",
                         "config": {"NAME": "value"}, "size": "basic", "dyno_limit": 50}},
     "options": {"boot_delay": [3, 15], "seed": 7},
     "faults": {"seed": 7, "rates": {"create": {"429": 0.05}}}}

A process may also be `{"command", "quantity", "size"}`. Folders are relative to FILE. The first
line of stdout is JSON with `url` and `api_key`. SIGINT and SIGTERM end it and every dyno.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
from pathlib import Path
from typing import Any

from tests.heroku_emulator.emulator import Emulator
from tests.heroku_emulator.model import AppSpec, ProcessSpec
from tests.heroku_emulator.options import Options

DEFAULT_APP: dict[str, Any] = {"apps": {"runner": {}}}


def app_spec(folder: Path, given: dict[str, Any]) -> AppSpec:
    """Return an app of the configuration file."""
    processes = {
        name: ProcessSpec(**process) if isinstance(process, dict) else process
        for name, process in given.get("processes", {}).items()
    }
    slug = folder / given["slug"] if given.get("slug") else None
    return AppSpec(**{**given, "processes": processes, "slug": slug})


def emulator_of(folder: Path, config: dict[str, Any], port: int, api_key: str | None) -> Emulator:
    """Return the emulator that a configuration describes."""
    options: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in config.get("options", {}).items()
    }
    apps = {name: app_spec(folder, given) for name, given in config["apps"].items()}
    emulator = Emulator(apps, Options(**options), port=port, api_key=api_key)
    if "faults" in config:
        emulator.faults.plan(config["faults"]["seed"], config["faults"]["rates"])
    return emulator


async def serve(emulator: Emulator) -> None:
    """Serve until a signal asks to leave."""
    asked, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked.set)
    async with emulator:
        print(json.dumps({"url": emulator.url, "api_key": emulator.api_key}), flush=True)  # noqa: T201
        await asked.wait()


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.heroku_emulator", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 is a free one")
    parser.add_argument("--config", type=Path, help="JSON; without, one empty app `runner`")
    parser.add_argument("--api-key", help="a random one is made without")
    given = parser.parse_args()
    config, folder = DEFAULT_APP, Path.cwd()
    if given.config is not None:
        config = json.loads(given.config.read_text(encoding="utf-8"))
        folder = given.config.resolve().parent
    asyncio.run(serve(emulator_of(folder, config, given.port, given.api_key)))


if __name__ == "__main__":
    main()
