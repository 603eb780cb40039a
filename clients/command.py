"""The command line that both clients share: options, output and exit codes.

JSON and nothing else on stdout; progress and errors on stderr. Exit code 0 when the request
succeeded, 1 when it failed or the tool reported an error, 2 when the command was not understood,
130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clients.request import VERBS, Call, UsageError, parse_call
from clients.terminal import ProgressLine, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from clients.request import HttpTarget, StdioTarget

DEFAULT_TIMEOUT = 300.0
"""Seconds for everything: a dyno may take a minute to start, and code may run for minutes."""

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

PROTOCOLS = ("auto", "legacy", "2026-07-28")


@dataclass(frozen=True, slots=True)
class Program:
    """What one client adds to the shared command line.

    `target` is called with the parsed options and returns whom to ask; it may raise UsageError.
    """

    module: str
    description: str
    environment: str
    add_options: Callable[[argparse.ArgumentParser], None]
    target: Callable[[argparse.Namespace], HttpTarget | StdioTarget]


def run(program: Program, argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; expected failures end here, as a sentence.

    Args:
        program: Which client this is.
        argv: The arguments after the program's name; None takes those of the process.
    """
    parser = _parser(program)
    options = parser.parse_args(argv)
    try:
        call = parse_call(options.verb, options.args)
        target = program.target(options)
    except UsageError as error:
        _complain(program, f"{error} See python -m {program.module} --help.")
        return USAGE
    try:
        return _answer(program, options, call, target)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # `| head` has seen enough. Point stdout away, or the interpreter's last flush complains.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _answer(
    program: Program, options: argparse.Namespace, call: Call, target: HttpTarget | StdioTarget
) -> int:
    # The SDK takes most of a second to import; --help and typing mistakes need not wait for it.
    from clients import failures, session  # noqa: PLC0415

    _set_up_logging(verbose=options.verbose)
    progress = ProgressLine(sys.stderr)
    exchange = session.Exchange(
        protocol=options.protocol,
        timeout=options.timeout,
        verbose=options.verbose,
        progress=progress.report,
    )
    try:
        result = asyncio.run(session.ask(call, target, exchange))
    except failures.RequestFailed as error:
        progress.clear()
        _complain(program, str(error))
        return FAILED
    finally:
        progress.clear()
    write_json(session.as_json(result, raw=options.raw), sys.stdout)
    if (said := session.tool_error(result)) is None:
        return OK
    tool = call.params["name"]
    _complain(program, f"the tool {tool!r} failed: {said} ({failures.advice_for(call)}).")
    return FAILED


def _set_up_logging(*, verbose: bool) -> None:
    if verbose:
        logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    else:
        # Without any handler, logging writes warnings and the SDK's tracebacks to stderr.
        logging.getLogger().addHandler(logging.NullHandler())


def _complain(program: Program, sentence: str) -> None:
    print(f"{program.module}: {sentence}", file=sys.stderr, flush=True)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (0 < seconds < math.inf):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _parser(program: Program) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {program.module}",
        description=program.description,
        epilog=_epilog(program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("protocol_name", metavar="mcp", choices=["mcp"], help="the word mcp")
    parser.add_argument("verb", metavar="VERB", choices=list(VERBS), help="what to ask, see below")
    parser.add_argument("--args", metavar="JSON", help="the arguments of the verb, a JSON object")
    program.add_options(parser)
    parser.add_argument(
        "--raw",
        action="store_true",
        help="print the whole result object, with _meta, resultType and cache hints",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=DEFAULT_TIMEOUT,
        help="give up after so long, starting the server included (default %(default)g)",
    )
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default="auto",
        help="revision to speak: auto asks the server first, legacy does the initialize "
        "handshake at once, a date takes that revision for granted (default %(default)s)",
    )
    parser.add_argument(
        "--verbose", action="store_true", help="log the exchange, and a server's own log, on stderr"
    )
    return parser


def _epilog(program: Program) -> str:
    verbs = "\n".join(f"  {name:<25}{verb.summary}" for name, verb in VERBS.items())
    examples = "\n".join(
        f"  python -m {program.module} mcp {name}"
        + (f" --args '{verb.example}'" if verb.example else "")
        for name, verb in VERBS.items()
    )
    return (
        f"verbs:\n{verbs}\n\n{program.environment}\n\n"
        f"examples:\n{examples}\n"
        f"  python -m {program.module} mcp list_tools | jq -r '.tools[].name'\n\n"
        "Lists are printed whole, all pages together. JSON is all that goes to stdout; the exit\n"
        "code is 0 for a result, 1 for a failed request or tool, 2 for a command not understood."
    )
