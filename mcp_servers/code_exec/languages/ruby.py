"""Ruby: a GEM_HOME per session, and RubyGems.

Gems of all versions lie side by side, and `require` takes the newest. So a call that asks for a
version has it activated before its code begins.

A package is what `gem install` takes as one argument, NAME or NAME:VERSION, and nothing that it
could take for an option or a file.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from mcp_servers.code_exec.languages.base import Command, Words
from mcp_servers.code_exec.languages.finding import program
from mcp_servers.code_exec.requirements import LONGEST, BadRequirementError, Requirement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

GEM_INSTALL = (
    *("-S", "gem", "install"),
    "--no-document",
    "--remote",  # a name is never a file
    *("--conservative", "--minimal-deps"),  # what the app has need not be installed again
    "--no-user-install",  # whatever a gemrc says: into GEM_HOME
)

_REQUIREMENT = re.compile(
    r"(?P<name>[A-Z0-9](?:[A-Z0-9._-]*[A-Z0-9])?)"
    r"(?:: *(?:(?:=|!=|>|<|>=|<=|~>) *)?[0-9][0-9A-Z.-]*)?",
    re.ASCII | re.IGNORECASE,
)
"""Letters, digits, '.', '_', '-' (rubygems/specification_policy.rb), and one constraint: RubyGems'
`NAME:VERSION` takes no list (rubygems/version_option.rb)."""


class RubyEnvironment:
    """A GEM_HOME; the gems of the app are seen behind it.

    Args:
        ruby: The interpreter.
        root: Where it is made; must not exist.
    """

    def __init__(self, ruby: Path, root: Path) -> None:
        root.mkdir()
        self._ruby = ruby
        self._root = root

    def distributions(self) -> frozenset[str]:
        """What is installed here, names with versions."""
        return frozenset(path.stem for path in self._root.glob("specifications/*.gemspec"))

    def install(self, requirements: Sequence[Requirement], variables: Mapping[str, str]) -> Command:
        """Run gem; what follows its options cannot begin with a dash."""
        words: list[str | Path] = [self._ruby, *GEM_INSTALL, *(one.text for one in requirements)]
        return Command(words, self._activate(variables))

    def run(
        self,
        script: Path,
        work: Path,
        requirements: Sequence[Requirement],
        variables: Mapping[str, str],
    ) -> Command:
        """Run a script that requires from the working directory, too."""
        prelude = script.with_name("prelude.rb")
        prelude.write_text(_prelude(requirements), encoding="ascii")
        path = [str(work), *filter(None, [variables.get("RUBYLIB")])]
        active = {**self._activate(variables), "RUBYLIB": os.pathsep.join(path)}
        # -E: whatever the locale, the result is JSON.
        return Command([self._ruby, "-E", "UTF-8", "-r", prelude, script], active)

    def _activate(self, variables: Mapping[str, str]) -> dict[str, str]:
        """The variables with which `ruby`, and any `gem`, mean this environment."""
        path = os.pathsep.join([str(self._root / "bin"), variables.get("PATH", os.defpath)])
        active = {**variables, "PATH": path, "GEM_HOME": str(self._root)}
        home = variables.get("GEM_HOME")
        if home:
            # An empty entry at the end stands for RubyGems' own (rubygems/path_support.rb).
            active["GEM_PATH"] = os.pathsep.join([home, variables.get("GEM_PATH", "")])
        return active


class Ruby:
    """The Ruby on the server's path.

    Args:
        program: The interpreter.
    """

    name = "ruby"
    script = "main.rb"
    beside_files = False
    words = Words(
        title="Ruby",
        show="puts",
        code='require "colorize"; puts "Success!".colorize(:green)',
        packages=(
            "Gems that the code requires and the standard library lacks, as `gem install` takes"
            " them: a name, with a version or one constraint after a colon if need be."
        ),
        requirements=[["colorize"], ["nokogiri:1.18.10", "rack:~> 3.1"]],
    )

    def __init__(self, program: Path) -> None:
        self._program = program

    @classmethod
    def found(cls, environment: Mapping[str, str]) -> Ruby:
        """Return the language.

        Raises:
            MissingLanguageError: There is no `ruby` on the path.
        """
        return cls(program("ruby", environment, "add the buildpack heroku/ruby"))

    def parse(self, text: str) -> Requirement:
        """Check one gem.

        Raises:
            BadRequirementError: It is anything but a name with an optional version.
        """
        stripped = text.strip()
        match = _REQUIREMENT.fullmatch(stripped) if len(stripped) <= LONGEST else None
        if match is None or match["name"].lower().endswith(".gem"):
            raise BadRequirementError(
                f"{text[:LONGEST]!r} is not a gem of the index. Write a name as on rubygems, with"
                ' a version or one constraint after a colon if need be, such as "rack" or'
                ' "rack:~> 3.1"; options, paths and URLs are not accepted'
            )
        return Requirement(stripped, match["name"])

    def environment(self, root: Path) -> RubyEnvironment:
        """Make a GEM_HOME."""
        return RubyEnvironment(self._program, root)


def _prelude(requirements: Sequence[Requirement]) -> str:
    """What runs before the code; the requirements were checked and hold no quote."""
    lines = ["$stdout.sync = true  # what was printed before a time-out is there"]
    for requirement in requirements:
        _, _, version = requirement.text.partition(":")
        if version:
            lines.append(f'gem "{requirement.name}", "{version.strip()}"')
    return "\n".join(lines) + "\n"
