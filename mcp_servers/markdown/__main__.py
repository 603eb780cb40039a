"""`python -m mcp_servers.markdown`: serve on stdin and stdout until stdin ends."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mcp_servers import stdio
from mcp_servers.markdown.reader import Reader
from mcp_servers.markdown.server import build
from mcp_servers.markdown.settings import settings_from

if TYPE_CHECKING:
    from collections.abc import Mapping


def main() -> None:
    """Run the server.

    Exits with a line on stderr: with 64 if there are arguments, with 78 if a setting is unusable.
    """
    if len(sys.argv) > 1:
        stdio.refuse_usage("python -m mcp_servers.markdown")
    stdio.run("markdown", _prepare)


def _prepare(environment: Mapping[str, str]) -> stdio.Service:
    settings = settings_from(environment)
    reader = Reader(settings, environment)
    return stdio.Service(build(reader, settings.limits), reader.close)


if __name__ == "__main__":
    main()
