"""Node: an npm project per session, whose `node_modules` lies in the working directory.

Node looks for packages and for `./files` from where a program lies, and `import` looks nowhere
else, so the program lies in the working directory. It is CommonJS or a module, as Node finds out by
its syntax (from 20.19 and 22.7 on), and a module may `require`, too: much code does both.

The project has a package.json of its own, into which npm saves what it installs: with `--no-save`
it would remove what an earlier call has installed. Install scripts run: they may do no more than
the code may, and packages with native parts need them.

A package is `NAME`, `@SCOPE/NAME` or either with `@` and a version, range or tag: nothing that npm
could take for a file, a repository or a URL (npm-package-arg/lib/npa.js).
"""

from __future__ import annotations

import json
import os
import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from mcp_servers.code_exec.languages.base import Command, Words
from mcp_servers.code_exec.languages.finding import program
from mcp_servers.code_exec.requirements import LONGEST, BadRequirementError, Requirement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NPM_INSTALL = (
    *("install", "--save", "--no-audit", "--no-fund", "--no-update-notifier", "--no-progress"),
    # Whatever an npmrc says: into this project, as dependencies that are not left out.
    *("--no-global", "--no-dry-run", "--package-lock=true"),
)

PRELUDE = """\
// In a module `require` is no variable of its own, so the global one is found.
globalThis.require ??= require("node:module").createRequire(process.cwd() + "/");
"""

_PART = r"[A-Z0-9][A-Z0-9._-]*"
_REQUIREMENT = re.compile(
    rf"(?P<name>(?:@{_PART}/)?{_PART})(?:@(?P<version>[A-Z0-9^~<>=*][A-Z0-9.*^~<>=|+ -]*))?",
    re.ASCII | re.IGNORECASE,
)

_ARCHIVES = (".tgz", ".tar.gz", ".tar")
"""npm takes a name or a version that ends like this for a local file."""


class NodeEnvironment:
    """An npm project; the packages of the app are seen behind its own.

    Args:
        node: The interpreter.
        npm: Its package manager.
        app: The app's `node_modules`, which need not exist.
        root: Where it is made; must not exist.
    """

    def __init__(self, node: Path, npm: Path, app: Path, root: Path) -> None:
        root.mkdir()
        (root / "package.json").write_text('{"private": true}\n', encoding="ascii")
        self._prelude = root / "prelude.cjs"
        self._prelude.write_text(PRELUDE, encoding="ascii")
        self.modules = root / "node_modules"
        self.modules.mkdir()
        self._node, self._npm, self._app, self._root = node, npm, app, root

    def distributions(self) -> frozenset[str]:
        """What is installed here, paths with versions; nothing while or after npm was killed."""
        try:
            lock = json.loads((self.modules / ".package-lock.json").read_bytes())
        except (OSError, ValueError):
            return frozenset()
        return frozenset(
            f"{path}@{about.get('version')}" for path, about in lock.get("packages", {}).items()
        )

    def install(self, requirements: Sequence[Requirement], variables: Mapping[str, str]) -> Command:
        """Run npm; what follows its options cannot begin with a dash."""
        texts = (requirement.text for requirement in requirements)
        words: list[str | Path] = [self._npm, *NPM_INSTALL, "--prefix", self._root, "--", *texts]
        return Command(words, self._activate(variables))

    def run(
        self,
        script: Path,
        work: Path,
        requirements: Sequence[Requirement],
        variables: Mapping[str, str],
    ) -> Command:
        """Run a script that lies in the working directory."""
        _link(work / "node_modules", self.modules)
        if self._app.is_dir():
            _link(work.parent / "node_modules", self._app)  # where `import` looks next
        return Command([self._node, "--require", self._prelude, script], self._activate(variables))

    def _activate(self, variables: Mapping[str, str]) -> dict[str, str]:
        """The variables with which any `node` finds what is installed here."""
        binaries = [str(self.modules / ".bin"), variables.get("PATH", os.defpath)]
        places = [str(self.modules), str(self._app), variables.get("NODE_PATH", "")]
        return {
            **variables,
            "PATH": os.pathsep.join(binaries),
            "NODE_PATH": os.pathsep.join(filter(None, places)),
        }


class Node:
    """The Node on the server's path.

    Args:
        program: The interpreter.
        npm: Its package manager.
        app: The app's `node_modules`.
    """

    name = "node"
    script = "main.js"
    beside_files = True
    words = Words(
        title="Node.js",
        show="console.log()",
        code='import _ from "lodash"; console.log(_.chunk([1, 2, 3, 4], 2));',
        packages=(
            "npm packages that the code imports or requires and Node lacks: a name, with a version"
            " after an @ if need be."
        ),
        requirements=[["lodash"], ["zod@^4", "@octokit/rest@22.0.0"]],
    )

    def __init__(self, program: Path, npm: Path, app: Path) -> None:
        self._program = program
        self._npm = npm
        self._app = app

    @classmethod
    def found(cls, environment: Mapping[str, str]) -> Node:
        """Return the language; the app is the directory that the server was started in.

        Raises:
            MissingLanguageError: There is no `node`, or no `npm`, on the path.
        """
        remedy = "add the buildpack heroku/nodejs"
        node, npm = (program(name, environment, remedy) for name in ("node", "npm"))
        return cls(node, npm, Path.cwd() / "node_modules")

    def parse(self, text: str) -> Requirement:
        """Check one package.

        Raises:
            BadRequirementError: It is anything but a name with an optional version, range or tag.
        """
        stripped = text.strip()
        match = _REQUIREMENT.fullmatch(stripped) if len(stripped) <= LONGEST else None
        if match is None or any(
            part.lower().endswith(_ARCHIVES) for part in match.groups() if part
        ):
            raise BadRequirementError(
                f"{text[:LONGEST]!r} is not a package of the index. Write a name as on npm, with a"
                ' version or range after an @ if need be, such as "lodash" or "zod@^4"; options,'
                " paths, repositories and URLs are not accepted"
            )
        return Requirement(stripped, match["name"])

    def environment(self, root: Path) -> NodeEnvironment:
        """Make an npm project."""
        return NodeEnvironment(self._program, self._npm, self._app, root)


def _link(place: Path, target: Path) -> None:
    """Have a link there, in one step: other calls may use it. A directory is the user's own."""
    if place.is_symlink():
        if place.readlink() == target:
            return
    elif place.is_dir():
        return
    new = place.with_name(f".{place.name}-{secrets.token_hex(8)}")
    new.symlink_to(target)
    new.replace(place)
