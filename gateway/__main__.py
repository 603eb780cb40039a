"""The command line: `gateway`, or `python -m gateway`. What it offers is in `gateway.cli`."""

import os
import sys
from io import TextIOWrapper

from gateway.cli.program import program


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that has no → is no reason
    program(obj=dict(os.environ))


if __name__ == "__main__":
    main()
