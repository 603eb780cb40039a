"""The language port: all that the server asks of a language.

A language is one module here and one line in `LANGUAGES`. It makes command lines and directories;
it starts no process, and knows neither MCP nor time limits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from mcp_servers.limits import CannotServeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mcp_servers.code_exec.requirements import Requirement


class MissingLanguageError(CannotServeError):
    """This machine cannot run the language; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Command:
    """A process to start.

    Attributes:
        words: The program and its arguments.
        variables: Its whole environment.
    """

    words: Sequence[str | Path]
    variables: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Words:
    """What a language model is told about the tool, where the languages differ.

    Attributes:
        title: The language's name.
        show: How its programs print.
        code: An example of a program.
        packages: What can be installed, and how it is written.
        requirements: Examples of packages.
    """

    title: str
    show: str
    code: str
    packages: str
    requirements: list[Any]


class Environment(Protocol):
    """A place of a session's packages; what the server's own app has is seen behind it."""

    def distributions(self) -> frozenset[str]:
        """What is installed here, names with versions; the app's own packages do not count."""
        ...

    def install(self, requirements: Sequence[Requirement], variables: Mapping[str, str]) -> Command:
        """How to install packages here."""
        ...

    def run(
        self,
        script: Path,
        work: Path,
        requirements: Sequence[Requirement],
        variables: Mapping[str, str],
    ) -> Command:
        """How to run a script with the packages.

        Args:
            script: The code: in a directory of this call's own, which may take more files, or in
                the working directory if the language wants it `beside_files`.
            work: The working directory, from which the code can load what earlier code has written.
                The directory that it lies in is the session's, too, and may take more files.
            requirements: What this call asked for; all installed.
            variables: The environment to hand on.
        """
        ...


class Language(Protocol):
    """One language.

    Attributes:
        name: In the tool's name, `code_exec_<name>`, and on the server's command line.
        script: File name of a program.
        beside_files: Whether a program has to lie in the working directory, under a name of ours,
            as it finds other files by where it lies itself.
        words: For the tool's description.
    """

    name: str
    script: str
    beside_files: bool
    words: Words

    def parse(self, text: str) -> Requirement:
        """Check one package string; only a name of the index with versions is let through.

        Raises:
            BadRequirementError: It is an option, a path, a URL, or nothing at all.
        """
        ...

    def environment(self, root: Path) -> Environment:
        """Make an environment; `root` must not exist."""
        ...
