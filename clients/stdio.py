"""Ask an MCP server started on the spot over stdio: `python -m clients.stdio mcp list_tools`.

By default that is the bundled code runner, `mcp_servers.code_exec`. The server gets the whole
environment of this process but API_KEY, which belongs to the gateway.
"""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

from clients.command import Program, run
from clients.request import StdioTarget, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

BUNDLED_SERVER = StdioTarget(sys.executable, ("-m", "mcp_servers.code_exec"))
"""This very interpreter: it is the one that has the packages."""


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--command",
        metavar='"CMD ARGS"',
        help="the server to start, split as a shell would, but run without one "
        "(default: python -m mcp_servers.code_exec)",
    )


def _target(options: argparse.Namespace) -> StdioTarget:
    if options.command is None:
        return BUNDLED_SERVER
    try:
        words = shlex.split(options.command)
    except ValueError as error:
        raise UsageError(f"--command cannot be split into words: {error}.") from None
    if not words:
        raise UsageError('--command is empty: write --command "CMD ARGS".')
    return StdioTarget(words[0], tuple(words[1:]))


PROGRAM = Program(
    module="clients.stdio",
    description="Start an MCP server, ask it over stdio and print its answer as JSON.",
    environment=(
        "environment:\n"
        "  The server inherits all variables but API_KEY. Its stderr is shown with --verbose,\n"
        "  its last line also when the request fails."
    ),
    add_options=_add_options,
    target=_target,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code of the process."""
    return run(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
