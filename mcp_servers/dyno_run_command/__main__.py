"""`python -m mcp_servers.dyno_run_command`: serve on stdin and stdout until stdin ends."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mcp_servers import stdio
from mcp_servers.dyno_run_command.server import build
from mcp_servers.dyno_run_command.settings import MAX_OUTPUT, settings_from
from mcp_servers.processes import Runner, inheritable

if TYPE_CHECKING:
    from collections.abc import Mapping


def main() -> None:
    """Run the server.

    Exits with a line on stderr: with 64 if it is given an argument, with 78 if a setting is
    unusable.
    """
    if sys.argv[1:]:
        stdio.refuse_usage("python -m mcp_servers.dyno_run_command")
    stdio.run("dyno_run_command", _prepare)


def _prepare(environment: Mapping[str, str]) -> stdio.Service:
    settings = settings_from(environment)
    runner = Runner(settings.max_output_bytes, MAX_OUTPUT)
    return stdio.Service(build(runner, settings, inheritable(environment)), runner.close)


if __name__ == "__main__":
    main()
