"""Go: a module per session, `go get`, and a build before each run.

Built and then run, not `go run`: that would tell every failure as exit status 1, and take the
module's directory for the working directory.

A package is an import path that begins with a domain, with an optional version; what `go get` could
take for an option, a directory or a pattern is none.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mcp_servers.code_exec.languages.base import Command, Words
from mcp_servers.code_exec.languages.finding import program
from mcp_servers.code_exec.requirements import LONGEST, BadRequirementError, Requirement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

BUILD_AND_RUN = '"$0" build -C "$1" -o "$2" "$3" && exec "$2"'
"""For a shell: the compiler, the module, the program to make, the source."""

OLDEST = "1.21"
"""What the module asks for if the toolchain does not say which it is; what it may use depends on
it, and a newer one than there is would be fetched."""

_REQUIREMENT = re.compile(
    r"(?P<name>[A-Z0-9][A-Z0-9-]*(?:\.[A-Z0-9][A-Z0-9-]*)+(?:/[A-Z0-9_~][A-Z0-9._~-]*)*)"
    r"(?:@[A-Z0-9][A-Z0-9._+-]*)?",
    re.ASCII | re.IGNORECASE,
)

_VERSION = re.compile(r"go(\d+\.\d+)")
_REQUIRED = re.compile(r"^(?:require)?\s+(\S+ v\S+)", re.MULTILINE)


class GoEnvironment:
    """A module.

    Args:
        go: The toolchain's command.
        root: Where it is made; must not exist.
    """

    def __init__(self, go: Path, root: Path) -> None:
        root.mkdir()
        self._module = root / "go.mod"
        self._module.write_text(f"module session\n\ngo {_version(go)}\n", encoding="ascii")
        self._go, self._root = go, root

    def distributions(self) -> frozenset[str]:
        """What the module requires, paths with versions."""
        return frozenset(_REQUIRED.findall(self._module.read_text(encoding="utf-8")))

    def install(self, requirements: Sequence[Requirement], variables: Mapping[str, str]) -> Command:
        """Run go get; what follows its options cannot begin with a dash."""
        texts = (requirement.text for requirement in requirements)
        return Command([self._go, "get", "-C", self._root, "--", *texts], _activate(variables))

    def run(
        self,
        script: Path,
        work: Path,
        requirements: Sequence[Requirement],
        variables: Mapping[str, str],
    ) -> Command:
        """Build a script as a part of the module and run what was built."""
        words = [self._go, self._root, script.with_name("program"), script]
        return Command(["/bin/sh", "-c", BUILD_AND_RUN, *words], _activate(variables))


class Go:
    """The Go on the server's path.

    Args:
        program: The toolchain's command.
    """

    name = "go"
    script = "main.go"
    beside_files = False
    words = Words(
        title="Go",
        show="fmt.Println()",
        code='package main\n\nimport "fmt"\n\nfunc main() {\n\tfmt.Println("Success!")\n}\n',
        packages=(
            "Modules or packages that the code imports and the standard library lacks, as `go get`"
            " takes them: an import path, with a version after an @ if need be."
        ),
        requirements=[["github.com/google/uuid"], ["golang.org/x/text@v0.30.0"]],
    )

    def __init__(self, program: Path) -> None:
        self._program = program

    @classmethod
    def found(cls, environment: Mapping[str, str]) -> Go:
        """Return the language.

        Raises:
            MissingLanguageError: There is no `go` on the path.
        """
        remedy = "add the buildpack heroku/go and set GO_INSTALL_TOOLS_IN_IMAGE=true"
        return cls(program("go", environment, remedy))

    def parse(self, text: str) -> Requirement:
        """Check one package.

        Raises:
            BadRequirementError: It is anything but an import path with an optional version.
        """
        stripped = text.strip()
        match = _REQUIREMENT.fullmatch(stripped) if len(stripped) <= LONGEST else None
        if match is None:
            raise BadRequirementError(
                f"{text[:LONGEST]!r} is not a package that `go get` fetches. Write an import path"
                " that begins with a domain, with a version after an @ if need be, such as"
                ' "github.com/google/uuid" or "golang.org/x/text@v0.30.0"; the standard library is'
                " there, and options, patterns and directories are not accepted"
            )
        return Requirement(stripped, match["name"])

    def environment(self, root: Path) -> GoEnvironment:
        """Make a module."""
        return GoEnvironment(self._program, root)


def _activate(variables: Mapping[str, str]) -> dict[str, str]:
    """Modules, and no workspace of directories further up."""
    return {**variables, "GO111MODULE": "on", "GOWORK": "off"}


def _version(go: Path) -> str:
    """The language of the toolchain, e.g. `1.25`: its root has a file that says so."""
    try:
        said = (go.resolve().parent.parent / "VERSION").read_text(encoding="utf-8")
    except OSError:
        return OLDEST
    match = _VERSION.match(said)
    return match[1] if match else OLDEST
