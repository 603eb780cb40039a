"""What the operators' API works on, and one request to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from gateway.registry.servers import Registry, ServerDefinition

if TYPE_CHECKING:
    from gateway.ops.admin.standing import Standing
    from gateway.ops.levels import Levels
    from gateway.ops.recorder import Recorder
    from gateway.ops.story import Summary
    from gateway.registry.discovery import Discovery
    from gateway.sessions.manager import Manager

RunLine = Callable[[ServerDefinition, str, Mapping[str, str]], str]
"""The line that an operator pastes, for a server, a launch id and the agent's environment."""

Tools = Callable[[ServerDefinition], Sequence[Mapping[str, Any]] | None]
"""The tools of a server as its child lists them (`name`, `description`); None if unknown."""


CARRIED = "another gateway process"
"""Where carried requests come from: addresses are not told to the engine."""


@dataclass(slots=True, kw_only=True)
class Desk:
    """All that operators see and do.

    Attributes:
        manager: the sessions of this process, the dynos, the store.
        registry: the servers.
        discovery: where they come from; None if from the servers file alone.
        run_line: how an operator starts a dyno by hand.
        recorder: the sessions of all processes and their stories.
        levels: what is logged.
        tools: what servers offer.
        kill: ends a session that lives here, given its id; False if it does not.
        stop_dyno: stops the dyno of a session whose process is gone.
        leave: lets this process drain and end, as SIGTERM does.
        standing: how sessions of processes that are gone stand.
        tails: how many are followed just now.
    """

    manager: Manager
    registry: Registry
    discovery: Discovery | None
    run_line: RunLine
    recorder: Recorder
    levels: Levels
    tools: Tools
    kill: Callable[[str], bool]
    stop_dyno: Callable[[Summary], Awaitable[None]]
    leave: Callable[[], None]
    standing: Standing
    tails: int = field(default=0, init=False)

    @property
    def here(self) -> str:
        """Id of this process."""
        return self.manager.store.gateway

    @property
    def now(self) -> float:
        """Wall clock, seconds since 1970."""
        return self.manager.fleet.now()


@dataclass(frozen=True, slots=True)
class Operator:
    """Who asks.

    Attributes:
        source: address that the request came from; `CARRIED` if another process has let it in.
        principal: for `Relaying`, which asks every guest.
    """

    source: str
    principal: str = "(operator)"


@dataclass(frozen=True, slots=True)
class Call:
    """A request of an operator, read and found well.

    Attributes:
        request: as it came.
        query: in the shape that the operation says; None if it says none.
        body: likewise.
    """

    request: web.Request = field(repr=False)
    query: Any
    body: Any = field(repr=False)

    @property
    def path(self) -> Mapping[str, str]:
        """Values of the variable parts of its path."""
        return self.request.match_info

    @property
    def subject(self) -> str:
        """What it is about, for the log."""
        said = msgspec.structs.astuple(self.body) if self.body is not None else ()
        return " ".join(str(part) for part in (*self.path.values(), *said))


Answered = msgspec.Struct | Sequence[msgspec.Struct] | web.StreamResponse
"""What a handler returns: what its operation says, or a response of its own."""

Handler = Callable[[Desk, Call], Awaitable[Answered]]
