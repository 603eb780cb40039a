"""One call: a document is fetched into a file, and a process of its own makes Markdown of it.

Knows nothing of MCP.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mcp_servers.markdown.fetching import Fetcher, FetchError
from mcp_servers.markdown.settings import MAX_MEMORY, MAX_OUTPUT, TIMEOUT
from mcp_servers.processes import Runner

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from mcp_servers.markdown.fetching import Document
    from mcp_servers.markdown.settings import Settings
    from mcp_servers.processes import Beat, Finished

MOST_AT_ONCE = 2
"""Conversions at a time; others wait. They compute, and more would fill a small dyno's memory."""

TELL_S = 1.0
"""Seconds between two lines of progress of a download."""

LONGEST_REASON = 300
"""Characters of what a converter says of its failure."""

PASSED_ON = ("PATH", "LD_LIBRARY_PATH")
"""Variables that a conversion gets. Not the app's config vars: it works on other people's data."""


class ReadError(Exception):
    """There is no Markdown; the message is a sentence for the caller."""


class Reader:
    """Turns URLs into Markdown.

    Args:
        settings: What a call may use and reach.
        environment: The server's.
        fetcher: What fetches, if not what the settings make.
    """

    def __init__(
        self,
        settings: Settings,
        environment: Mapping[str, str],
        *,
        fetcher: Fetcher | None = None,
    ) -> None:
        self._limits = limits = settings.limits
        self._fetcher = fetcher or Fetcher(settings.allowed, limits.max_download_bytes)
        self._runner = Runner(limits.max_output_bytes, MAX_OUTPUT)
        self._turn = asyncio.Semaphore(MOST_AT_ONCE)
        self._root = Path(tempfile.mkdtemp(prefix="markdown-"))
        here = str(Path(__file__).resolve().parents[2])
        paths = filter(None, (here, environment.get("PYTHONPATH")))
        self._variables = {
            **{name: environment[name] for name in PASSED_ON if name in environment},
            "PYTHONPATH": os.pathsep.join(paths),
        }

    async def read(self, url: str, *, pdf: bool, tell: Callable[[str], Awaitable[None]]) -> str:
        """Fetch a document and convert it.

        Args:
            url: Where it is.
            pdf: Whether it has to be a PDF, or else a page or a text.
            tell: Awaited with a line for people at each step.

        Returns:
            Markdown, cut in the middle with a line that says so if it is longer than the limit.

        Raises:
            ReadError: It could not be fetched or converted.
        """
        with tempfile.TemporaryDirectory(dir=self._root, ignore_cleanup_errors=True) as folder:
            file = Path(folder, "document")
            try:
                async with asyncio.timeout(self._limits.timeout_s):
                    document = await self._fetch(url, file, pdf=pdf, tell=tell)
                    if self._turn.locked():
                        await tell("waiting for other conversions")
                    async with self._turn:
                        return await self._convert(document, file, tell)
            except FetchError as error:
                raise ReadError(str(error)) from error
            except TimeoutError as error:
                raise ReadError(self._late()) from error
            except OSError as error:  # no disk, no process left: the caller should know
                raise ReadError(f"The document could not be kept: {error.strerror}.") from error

    def close(self) -> None:
        """Kill what runs and remove every file; blocks, and is the end."""
        self._runner.close()
        shutil.rmtree(self._root, ignore_errors=True)

    async def _fetch(
        self, url: str, file: Path, *, pdf: bool, tell: Callable[[str], Awaitable[None]]
    ) -> Document:
        clock = asyncio.get_running_loop().time
        due = clock() + TELL_S
        await tell("fetching")

        async def count(done: int, total: int | None) -> None:
            nonlocal due
            if clock() >= due:
                await tell(f"fetching ({done} of {total or 'unknown'} bytes)")
                due = clock() + TELL_S

        with file.open("wb") as into:
            return await self._fetcher.fetch(url, pdf=pdf, into=into, tell=count)

    async def _convert(
        self, document: Document, file: Path, tell: Callable[[str], Awaitable[None]]
    ) -> str:
        await tell("converting")

        async def beat(now: Beat) -> None:
            await tell(f"converting for {now.seconds:.0f} s")

        words = [sys.executable, "-m", "mcp_servers.markdown.convert", document.kind, str(file)]
        finished = await self._runner.run(
            words if document.charset is None else [*words, document.charset],
            cwd=file.parent,
            environment=self._variables,
            seconds=self._limits.timeout_s,  # of which some is gone: the caller ends it before
            memory_bytes=self._limits.max_memory_bytes,
            beat=beat,
        )
        self._check(finished)
        markdown = finished.stdout.strip()
        if not markdown and document.kind == "pdf":
            raise ReadError(
                "There is no text in this PDF; its pages are probably pictures of text."
            )
        return markdown

    def _check(self, finished: Finished) -> None:
        if finished.out_of_memory:
            raise ReadError(
                f"Converting the document took more than {self._limits.max_memory_bytes} bytes of"
                f" memory; the limit is set by {MAX_MEMORY}."
            )
        if finished.returncode:
            reason = (finished.stderr.strip() or "it was killed").splitlines()[-1]
            raise ReadError(
                "The document could not be converted; it is broken, encrypted, or not what it says"
                f" ({reason[:LONGEST_REASON]})."
            )

    def _late(self) -> str:
        return (
            f"The document was not there within {self._limits.timeout_s:g} s;"
            f" the limit is set by {TIMEOUT}."
        )
