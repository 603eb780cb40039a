"""Ask an MCP server over Streamable HTTP: `python -m clients.streamable_http mcp list_tools`.

The server is named by MCP_SERVER_URL, the key sent as `Authorization: Bearer` by API_KEY.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from clients.command import Program, run
from clients.request import DEFAULT_SERVER_URL, HttpTarget, bearer_key, endpoint

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--server", metavar="NAME", help="a server of the gateway, instead of its default one"
    )


def _target(options: argparse.Namespace) -> HttpTarget:
    base = os.environ.get("MCP_SERVER_URL") or DEFAULT_SERVER_URL
    return HttpTarget(endpoint(base, options.server), bearer_key(os.environ.get("API_KEY")))


PROGRAM = Program(
    module="clients.streamable_http",
    description="Ask an MCP server over Streamable HTTP and print its answer as JSON.",
    environment=(
        "environment:\n"
        f"  MCP_SERVER_URL  the server, such as {DEFAULT_SERVER_URL} (the default); /mcp is\n"
        "                  added, or /servers/NAME/mcp with --server; a full …/mcp URL works too\n"
        "  API_KEY         sent as `Authorization: Bearer API_KEY`"
    ),
    add_options=_add_options,
    target=_target,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code of the process."""
    return run(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
