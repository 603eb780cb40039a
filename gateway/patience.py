"""How long a request may still wait before its answer begins: one deadline that its waits share.

The platform's router gives up after 30 s without a first byte (H12) and lets the application work
on in vain. Each wait has a limit of its own; together they must stay below that.
"""

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar

FIRST_BYTE_S = 25.0

_deadline: ContextVar[float] = ContextVar("deadline of the first byte", default=float("inf"))


def begin(limit_s: float = FIRST_BYTE_S) -> None:
    """Start the clock of the request that this task serves."""
    _deadline.set(time.monotonic() + min(limit_s, FIRST_BYTE_S))


@contextlib.contextmanager
def arriving() -> Iterator[None]:
    """Stop the clock while the request still arrives, as the router does."""
    began = time.monotonic()
    try:
        yield
    finally:
        _deadline.set(_deadline.get() + time.monotonic() - began)


def patience(limit_s: float) -> float:
    """Return how long a wait of at most `limit_s` seconds may take for this task's request."""
    return max(0.0, min(limit_s, _deadline.get() - time.monotonic()))
