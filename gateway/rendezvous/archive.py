"""The agent as one file that any Python from 3.9 on can run, whatever else a dyno has.

A zipapp of `dyno_agent` and what it needs, made of the packages installed here, so that it always
speaks this gateway's link. Sources only: no byte code, no compiled speed-ups.
"""

import hashlib
import importlib.util
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import distribution
from pathlib import Path

PARTS = ("dyno_agent", "exceptiongroup", "taskgroup", "typing_extensions", "websockets")
"""Packages and modules by the name under which they are imported; ours is the first."""

UNUSED = (
    *("websockets/legacy/", "websockets/sync/"),
    *("websockets/asyncio/server.py", "websockets/asyncio/router.py"),
    *("websockets/server.py", "websockets/auth.py", "websockets/http.py"),
    *("websockets/cli.py", "websockets/__main__.py", "websockets/connection.py"),
)
"""A third of the bytes: servers, another API, and names that are kept for old programs."""

START = """\
import sys

if sys.version_info < (3, 9):
    sys.stderr.write(
        "The agent needs Python 3.9 or newer; python3 is %d.%d here.\\n" % sys.version_info[:2]
    )
    raise SystemExit(78)

from dyno_agent.__main__ import main

raise SystemExit(main())
"""
"""`__main__.py`, in a syntax that every Python can read; 78 is EX_CONFIG of sysexits.h."""

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The oldest time that a zip file can name. Same packages, same bytes."""


@dataclass(frozen=True, slots=True)
class Archive:
    """The file.

    Attributes:
        content: a zip file with a `__main__.py`, to be run by `python3 <file>`.
        sha256: of the content, in lower-case hex.
    """

    content: bytes = field(repr=False)
    sha256: str


def build() -> Archive:
    """Make the file: some 50 ms of work, once per process.

    Raises:
        ModuleNotFoundError: a part is not installed.
    """
    files = {"__main__.py": START.encode()}
    for part in PARTS:
        files.update(_sources(part))
    for part in PARTS[1:]:
        files.update(_licences(part))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.create_system = 3  # Unix, wherever it is made
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED, 9)
    content = buffer.getvalue()
    return Archive(content, hashlib.sha256(content).hexdigest())


def _sources(part: str) -> Iterator[tuple[str, bytes]]:
    """Yield the name in the archive and the content of each source file of a part."""
    spec = importlib.util.find_spec(part)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{part} is not installed, and the agent's archive needs it")
    origin = Path(spec.origin)
    found = [origin] if spec.submodule_search_locations is None else origin.parent.rglob("*.py")
    top = origin.parent if spec.submodule_search_locations is None else origin.parents[1]
    for path in found:
        name = path.relative_to(top).as_posix()
        if not name.startswith(UNUSED):
            yield name, path.read_bytes()


def _licences(part: str) -> Iterator[tuple[str, bytes]]:
    """Yield the terms under which others gave us a part."""
    for file in distribution(part).files or ():
        if ".dist-info" in file.parts[0] and file.name.upper().startswith(("LICEN", "COPYING")):
            yield f"licences/{part}/{file.name}", file.read_binary()
