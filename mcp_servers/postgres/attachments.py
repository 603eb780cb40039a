"""Which databases there are: the environment's variables that hold a URL of PostgreSQL. Pure.

On Heroku an attachment of the add-on, `HEROKU_POSTGRESQL_GOLD`, is a config var of that name with
`_URL` behind it; `DATABASE_URL` is the primary one. The URLs have passwords in them: nothing here
shows one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT = "DATABASE"

SCHEMES = ("postgres://", "postgresql://")

SUFFIX = "_URL"


class NoSuchAttachmentError(LookupError):
    """There is no database of that name; the message says which there are."""


class Attachments:
    """The databases that an environment names.

    Args:
        environment: The server's.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._urls = {
            name.removesuffix(SUFFIX): value
            for name, value in environment.items()
            if name.endswith(SUFFIX) and value.startswith(SCHEMES)
        }

    def names(self) -> list[str]:
        """What the databases are called, in order."""
        return sorted(self._urls)

    def url(self, name: str) -> str:
        """Where a database is. A secret.

        Args:
            name: With or without `_URL`, in any case.

        Raises:
            NoSuchAttachmentError: There is none of that name.
        """
        wanted = name.strip().upper().removesuffix(SUFFIX)
        try:
            return self._urls[wanted]
        except KeyError:
            there = ", ".join(self.names()) or "none; attach one, so that DATABASE_URL is set"
            raise NoSuchAttachmentError(
                f"No database is attached as {name!r}. There are: {there}."
            ) from None
