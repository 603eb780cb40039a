"""Python: a virtual environment per session, and pip.

A virtual environment and not `pip install --target`: pip resolves against what is there, upgrades
in place, and code that calls pip itself ends up in it, too. It costs milliseconds because pip is
not copied into it: it sees the packages of the server's own interpreter, pip among them, behind its
own.

A package is the dependency specifier of PEP 508 without direct references and markers: an option, a
path or a URL is no package of the index, whoever asks. `packaging` would parse more, but it is not
among the things that `mcp` brings along.
"""

from __future__ import annotations

import os
import re
import sys
import sysconfig
import venv
from pathlib import Path
from typing import TYPE_CHECKING

from mcp_servers.code_exec.languages.base import Command, Words
from mcp_servers.code_exec.requirements import LONGEST, BadRequirementError, Requirement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PIP_INSTALL = (
    *("-m", "pip", "install"),
    *("--no-input", "--disable-pip-version-check", "--progress-bar=off"),
    # A venv of root's is still a venv, and most modules of a big package are never imported.
    *("--root-user-action=ignore", "--no-compile"),
    "--",  # whatever follows is a requirement
)

_NAME = r"[A-Z0-9](?:[A-Z0-9._-]*[A-Z0-9])?"
_VERSION = r"(?:===|~=|==|!=|<=|>=|<|>) *[A-Z0-9][A-Z0-9.*+!_-]*"
_REQUIREMENT = re.compile(
    rf"(?P<name>{_NAME})"
    rf"(?: *\[ *{_NAME}(?: *, *{_NAME})* *\])?"
    rf"(?: *{_VERSION}(?: *, *{_VERSION})*)?",
    re.ASCII | re.IGNORECASE,
)

_ARCHIVES = (
    *(".whl", ".zip"),
    *(".tar", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.lz", ".tar.lzma"),
    *(".tgz", ".tbz", ".txz", ".tlz"),
)
"""pip takes an argument that ends like this for a local file, even where it could be a name
(pip/_internal/utils/filetypes.py)."""


class PythonEnvironment:
    """A virtual environment with the server's interpreter and, behind its own, its packages.

    Args:
        root: Where it is made; must not exist.
    """

    def __init__(self, root: Path) -> None:
        venv.create(root, symlinks=True)
        where = {"base": str(root), "platbase": str(root)}
        self._site = Path(sysconfig.get_path("purelib", scheme="venv", vars=where))
        shared = (p for p in sys.path if Path(p).name in {"site-packages", "dist-packages"})
        (self._site / "shared.pth").write_text("\n".join(shared) + "\n", encoding="utf-8")
        self._root = root
        self.bin = root / "bin"
        self.python = self.bin / "python"

    def distributions(self) -> frozenset[str]:
        """What is installed here, names with versions; the server's packages do not count."""
        return frozenset(path.name for path in self._site.glob("*.dist-info"))

    def install(self, requirements: Sequence[Requirement], variables: Mapping[str, str]) -> Command:
        """Run pip; without PIP_PYTHON: it is that Python already, and would start itself again."""
        active = self._activate(variables)
        del active["PIP_PYTHON"]
        return Command([self.python, *PIP_INSTALL, *(one.text for one in requirements)], active)

    def run(
        self,
        script: Path,
        work: Path,
        requirements: Sequence[Requirement],
        variables: Mapping[str, str],
    ) -> Command:
        """Run a script that imports from the working directory, too."""
        path = [str(work), *filter(None, [variables.get("PYTHONPATH")])]
        active = {
            **self._activate(variables),
            "PYTHONPATH": os.pathsep.join(path),
            "PYTHONUNBUFFERED": "1",  # what was printed before a time-out is there
            "PYTHONUTF8": "1",  # whatever the locale: the result is JSON
        }
        return Command([self.python, script], active)

    def _activate(self, variables: Mapping[str, str]) -> dict[str, str]:
        """The variables with which `python`, and any `pip`, mean this environment."""
        path = os.pathsep.join([str(self.bin), variables.get("PATH", os.defpath)])
        return {
            **{name: value for name, value in variables.items() if name != "PYTHONHOME"},
            "PATH": path,
            "VIRTUAL_ENV": str(self._root),
            "PIP_PYTHON": str(self.python),  # for a pip that is run from elsewhere on the path
        }


class Python:
    """The Python that runs this server."""

    name = "python"
    script = "main.py"
    beside_files = False
    words = Words(
        title="Python",
        show="print()",
        code="import numpy as np; print(np.random.rand(50).tolist())",
        packages=(
            "PyPI packages that the code imports and the standard library lacks, as pip"
            " requirements: a name, with extras and versions if need be."
        ),
        requirements=[["numpy"], ["pandas>=2,<3", "httpx[http2]"]],
    )

    @classmethod
    def found(cls, environment: Mapping[str, str]) -> Python:
        """Return the language: it is always here."""
        return cls()

    def parse(self, text: str) -> Requirement:
        """Check one requirement.

        Raises:
            BadRequirementError: It is anything but a name with optional extras and versions.
        """
        stripped = text.strip()
        match = _REQUIREMENT.fullmatch(stripped) if len(stripped) <= LONGEST else None
        if match is None or stripped.lower().endswith(_ARCHIVES):
            raise BadRequirementError(
                f"{text[:LONGEST]!r} is not a package of the index. Write a name as on PyPI, with"
                ' extras and versions if need be, such as "numpy" or "pandas[excel]>=2,<3";'
                " options, paths, URLs and markers are not accepted"
            )
        return Requirement(stripped, re.sub(r"[-_.]+", "-", match["name"]).lower())

    def environment(self, root: Path) -> PythonEnvironment:
        """Make a virtual environment."""
        return PythonEnvironment(root)
