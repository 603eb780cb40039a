"""Where the programs of a language are."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from mcp_servers.code_exec.languages.base import MissingLanguageError

if TYPE_CHECKING:
    from collections.abc import Mapping


def program(name: str, environment: Mapping[str, str], remedy: str) -> Path:
    """Return where a program is.

    Args:
        name: Of the program.
        environment: Whose PATH is looked at.
        remedy: What to do on Heroku if it is not there.

    Raises:
        MissingLanguageError: It is not on the PATH.
    """
    found = shutil.which(name, path=environment.get("PATH", os.defpath))
    if found is None:
        raise MissingLanguageError(f"there is no `{name}` on the PATH; on Heroku, {remedy}")
    return Path(found).absolute()
