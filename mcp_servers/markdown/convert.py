"""`python -m mcp_servers.markdown.convert KIND FILE [CHARSET]`: Markdown on stdout.

A process of its own, because a hostile document can make a converter run for ever, take all memory
or worse. One converter is called by name: nothing guesses, unpacks or follows what it finds.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

USAGE = "usage: python -m mcp_servers.markdown.convert html|text|pdf FILE [CHARSET]\n"


def html(file: Path, charset: str | None = None) -> str:
    """Convert a page; without a charset, what the page itself says, else UTF-8."""
    from markitdown import StreamInfo  # noqa: PLC0415 - half a second, for this kind only
    from markitdown.converters import HtmlConverter  # noqa: PLC0415

    with file.open("rb") as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is wrong with the page is no news
        converted = HtmlConverter().convert(stream, StreamInfo(charset=charset))
    return converted.markdown


def pdf(file: Path, _charset: str | None = None) -> str:
    """Convert a PDF: its text, and what looks like a table as one."""
    from markitdown import StreamInfo  # noqa: PLC0415
    from markitdown.converters import PdfConverter  # noqa: PLC0415

    with file.open("rb") as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = PdfConverter().convert(stream, StreamInfo(extension=".pdf"))
    return converted.markdown


def text(file: Path, charset: str = "utf-8") -> str:
    """Take a text as it is."""
    return file.read_text(charset, errors="replace")


KINDS: dict[str, Callable[..., str]] = {"html": html, "text": text, "pdf": pdf}


def main() -> None:
    """Convert a file; exits with 64 for a wrong command line, with 1 and a traceback on failure."""
    match sys.argv[1:]:
        case [kind, file, *charset] if kind in KINDS and len(charset) < 2:
            markdown = KINDS[kind](Path(file), *charset)
        case _:
            sys.stderr.write(USAGE)
            raise SystemExit(64)
    # A PDF's font may map a glyph to half a character.
    sys.stdout.buffer.write(markdown.encode("utf-8", "replace"))


if __name__ == "__main__":
    main()
