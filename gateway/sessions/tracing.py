"""The port of what traces calls: a call that goes to a child carries its trace along. Pure.

The context is W3C's, in `params._meta`, as `traceparent`, `tracestate` and `baggage` (SEP-414).

A request that is sent again because its connection broke is known by its bytes, at another gateway
process too. So what a call carries follows from the call alone: ids of spans are not drawn here,
they are derived from `CallBegun.seed`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

CARRIED = ("traceparent", "tracestate", "baggage")
"""Keys of `_meta` that hold a context."""

MAX_CONTEXT = 512
"""Characters of one of them; the recommendation asks for that much."""


@dataclass(frozen=True, slots=True)
class CallBegun:
    """A call that is about to go to a child.

    Attributes:
        session: public name of the session.
        server: name of the server.
        principal: whose call it is.
        call: its id, as its caller knows it.
        method: of the request.
        tool: what it names; None if nothing.
        revision: that its client speaks; empty if nobody has said.
        meta: the context that its client sent, as far as it may be one.
        seed: the same for the same request of the same session, and for no other; hex.
    """

    session: str
    server: str
    principal: str
    call: str
    method: str
    tool: str | None
    revision: str
    meta: Mapping[str, str]
    seed: str


class Tracing(Protocol):
    """Traces calls. An event `CallFinished` whose `trace` is the `traceparent` ends a call."""

    def context(self, call: CallBegun) -> Mapping[str, str]:
        """Return what the child gets, by key of `_meta`; the same each time it is asked.

        Empty to leave `_meta` as it is. Nothing has begun yet.
        """
        ...

    def begin(self, call: CallBegun) -> None:
        """The call goes to the child, with its context."""
        ...
