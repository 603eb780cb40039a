"""Which statements are sent to the database at all, by their first word. Pure.

What keeps a database from being changed is the transaction, which is read-only, and the extended
protocol, which takes one statement; both are PostgreSQL's. Some statements are harmful in spite of
both: `COPY … TO PROGRAM` runs a command on the database's machine, and transaction control or a
session's settings have no meaning where every call has a connection of its own.
"""

from __future__ import annotations

import re

READING = frozenset({"explain", "select", "show", "table", "values", "with"})
"""All that a read-only call may begin with."""

REFUSED = frozenset(
    {
        *("abort", "begin", "commit", "end", "prepare", "release", "rollback", "savepoint"),
        *("start", "copy", "deallocate", "declare", "discard", "execute", "fetch", "listen"),
        *("load", "lock", "move", "close", "reset", "set", "unlisten"),
    }
)
"""What no call may begin with, even one that may write."""

_SKIPPED = re.compile(r"[\s(]+|--[^\r\n]*")
_WORD = re.compile(r"[A-Za-z]+")
_COMMENT_EDGE = re.compile(r"/\*|\*/")


class StatementRefusedError(ValueError):
    """The statement is not sent; the message says which would be."""


def first_word(statement: str) -> str:
    """The first word of a statement in lower case, behind comments and parentheses; or `""`."""
    position = 0
    while True:
        if skipped := _SKIPPED.match(statement, position):
            position = skipped.end()
        elif statement.startswith("/*", position):
            position = _comment_end(statement, position)
        else:
            word = _WORD.match(statement, position)
            return word[0].lower() if word else ""


def check(statement: str, *, allow_writes: bool) -> None:
    """Look whether the statement may be sent.

    Raises:
        StatementRefusedError: It may not.
    """
    if "\0" in statement:
        raise StatementRefusedError("The query has a NUL character in it: take it out.")
    word = first_word(statement)
    if allow_writes and word and word not in REFUSED:
        return
    if not allow_writes and word in READING:
        return
    which = "" if allow_writes else f" Only {', '.join(sorted(READING)).upper()} are, to read."
    raise StatementRefusedError(f"{word.upper() or 'An empty query'} is not run here.{which}")


def _comment_end(statement: str, position: int) -> int:
    """Where a comment ends; PostgreSQL's can lie in each other."""
    depth = 0
    for edge in _COMMENT_EDGE.finditer(statement, position):
        depth += 1 if edge[0] == "/*" else -1
        if not depth:
            return edge.end()
    return len(statement)
