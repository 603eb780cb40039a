"""The languages, one module each: how code is run, and how packages are installed.

To add one: a module with a class that fits `base.Language`, and its line in `LANGUAGES`.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from mcp_servers.code_exec.languages.go import Go
from mcp_servers.code_exec.languages.node import Node
from mcp_servers.code_exec.languages.python import Python
from mcp_servers.code_exec.languages.ruby import Ruby

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mcp_servers.code_exec.languages.base import Language

LANGUAGES: Mapping[str, Callable[[Mapping[str, str]], Language]] = MappingProxyType(
    {"python": Python.found, "ruby": Ruby.found, "node": Node.found, "go": Go.found}
)
"""By name: what finds the language on this machine, given the environment. Raises
`MissingLanguageError`."""

DEFAULT = "python"
