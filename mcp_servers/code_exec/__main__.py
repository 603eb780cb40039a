"""`python -m mcp_servers.code_exec [LANGUAGE]`: serve on stdin and stdout until stdin ends.

The only place that reads the environment and that ends the process.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from typing import TYPE_CHECKING

from mcp_servers.code_exec.languages import DEFAULT, LANGUAGES
from mcp_servers.code_exec.languages.base import MissingLanguageError
from mcp_servers.code_exec.server import build
from mcp_servers.code_exec.session import Session
from mcp_servers.code_exec.settings import BadSettingError, limits_from

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mcp_servers.code_exec.languages.base import Language
    from mcp_servers.code_exec.settings import Limits

BAD_USAGE = 64
"""Exit code, EX_USAGE of sysexits.h."""

BAD_SETTING = 78
"""Exit code, EX_CONFIG of sysexits.h: restarting will not help."""

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_PR_SET_DUMPABLE = 4


def main() -> None:
    """Run the server.

    Exits with a line on stderr: with 64 if there is no such language, with 78 if a setting is
    unusable or the language is not on this machine.
    """
    environment = dict(os.environ)
    find = LANGUAGES.get(" ".join(sys.argv[1:]) or DEFAULT)
    if find is None:
        sys.stderr.write(f"usage: python -m mcp_servers.code_exec [{'|'.join(LANGUAGES)}]\n")
        raise SystemExit(BAD_USAGE)
    try:
        language = find(environment)
        limits = limits_from(environment)
    except (BadSettingError, MissingLanguageError) as error:
        sys.stderr.write(f"code_exec: {error}\n")
        raise SystemExit(BAD_SETTING) from error
    _close_proc()
    asyncio.run(_serve(language, limits, environment))


def _close_proc() -> None:
    """Deny the code this process' /proc entry: its pipes are the protocol, its environment whole.

    prctl(2): what is not dumpable belongs to root there. The code runs as the same user and could
    otherwise open our stdin by name.
    """
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


async def _serve(language: Language, limits: Limits, environment: Mapping[str, str]) -> None:
    session = Session(language, limits, environment)
    loop = asyncio.get_running_loop()
    for number in ENDING:
        loop.add_signal_handler(number, _end, session, number)
    try:
        await build(session, language, limits).run_stdio_async()
    finally:
        session.close()


def _end(session: Session, number: signal.Signals) -> None:
    """Clean up, then die of the signal.

    Not by cancelling: the SDK reads stdin in a thread that only a line or its end wakes.
    """
    session.close()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


if __name__ == "__main__":
    main()
