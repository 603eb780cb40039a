"""`python -m mcp_servers.code_exec [LANGUAGE]`: serve on stdin and stdout until stdin ends."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

from mcp_servers import stdio
from mcp_servers.code_exec.languages import DEFAULT, LANGUAGES
from mcp_servers.code_exec.server import build
from mcp_servers.code_exec.session import Session
from mcp_servers.code_exec.settings import limits_from

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mcp_servers.code_exec.languages.base import Language


def main() -> None:
    """Run the server.

    Exits with a line on stderr: with 64 if there is no such language, with 78 if a setting is
    unusable or the language is not on this machine.
    """
    find = LANGUAGES.get(" ".join(sys.argv[1:]) or DEFAULT)
    if find is None:
        stdio.refuse_usage(f"python -m mcp_servers.code_exec [{'|'.join(LANGUAGES)}]")
    stdio.run("code_exec", partial(_prepare, find))


def _prepare(
    find: Callable[[Mapping[str, str]], Language], environment: Mapping[str, str]
) -> stdio.Service:
    language, limits = find(environment), limits_from(environment)
    session = Session(language, limits, environment)
    return stdio.Service(build(session, language, limits), session.close)


if __name__ == "__main__":
    main()
