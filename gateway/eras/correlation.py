"""The correlation table of one session: where each message goes. Pure.

On stdio nothing but ids ties a message of the child to a call of the client. Answers go by
request id, progress goes by token; for everything else the specification wants one stream and no
broadcast, so the table picks the only running call's stream, else the GET stream, else the newest
call's stream.
"""

from dataclasses import dataclass
from typing import Generic, TypeVar

from msgspec import UnsetType

from dyno_agent.link.resumption import GENERAL, JournalPage, label
from gateway.errors import DuplicateId

S = TypeVar("S")
Id = str | int

MAX_CALLS = 256
"""Calls in flight per session. No SDK client comes near; a runaway one stops here."""

MAX_ASKS = 256
"""Requests of the child that may wait for the client."""

MAX_PARKED = 256
"""Answers whose client hung up and may come back for them; the agent holds the bytes."""

MAX_FORGOTTEN = 1024
"""Answers that may still come for calls we ended ourselves; the oldest is forgotten beyond."""


@dataclass(slots=True)
class Call(Generic[S]):
    """A request of the client until its answer.

    Attributes:
        id: as the child knows it.
        client_id: as the client wrote it.
        method: JSON-RPC method.
        tool: `params.name` where the method has one, for the log.
        stream: where the answer goes; None once the client hung up.
        started: the caller's monotonic clock, seconds.
        bytes_in: size of the request.
        token: progress token as the child knows it, if the client gave one.
        client_token: the same as the client wrote it.
        log_level: least severe log messages that a modern request wants.
        phase: progress of the boot that its client was told.
        digest: tells a repetition of the request from another one with its id.
        ordinal: of the request on the link, see `Endpoint.send`; 0 if the agent has it anyway.
        trace: what it carries; empty if nothing.
    """

    id: Id
    client_id: Id
    method: str
    tool: str | None
    stream: S | None
    started: float
    bytes_in: int
    token: Id | None = None
    client_token: Id | None = None
    log_level: str | None = None
    phase: float = 0.0
    digest: str = ""
    ordinal: int = 0
    trace: str = ""

    def is_behind(self, progress: float | None) -> bool:
        """True for progress that is none beyond the boot's: it must rise (utilities/progress)."""
        return self.phase > 0 and progress is not None and progress <= self.phase


class Correlation(Generic[S]):
    """Calls of the client, asks of the child, and the streams they belong to."""

    def __init__(self) -> None:
        self._calls: dict[Id, Call[S]] = {}  # in order of arrival
        self._tokens: dict[Id, Id] = {}
        self._asks: set[Id] = set()
        self._forgotten: dict[Id, None] = {}
        self._parked: dict[Id, str] = {}
        self.general: S | None = None
        """The client's GET stream, if it has one."""

    @property
    def calls(self) -> list[Call[S]]:
        """The running calls, oldest first."""
        return list(self._calls.values())

    @property
    def oldest_start(self) -> float | None:
        """When the longest-running call began."""
        first = next(iter(self._calls.values()), None)
        return None if first is None else first.started

    def __len__(self) -> int:
        return len(self._calls)

    def get(self, request_id: Id) -> Call[S] | None:
        """Return the running call with this id."""
        return self._calls.get(request_id)

    def begin(self, call: Call[S]) -> None:
        """Enter a call.

        Raises:
            DuplicateId: its id is in flight, or its answer to an ended call may still come.
        """
        if call.id in self._calls or call.id in self._forgotten:
            raise DuplicateId(f"request id {call.id!r} is already in use in this session")
        self._calls[call.id] = call
        self._parked.pop(call.id, None)
        if call.token is not None:
            self._tokens[call.token] = call.id

    def restore(self, page: JournalPage, now: float) -> None:
        """Enter what an agent knows of the session; the calls' client may come back."""
        for known in page.calls:
            if len(self) < MAX_CALLS and known.id not in self._calls:
                self.begin(
                    Call(
                        id=known.id,
                        client_id=known.id,
                        method=known.method,
                        tool=known.tool,
                        stream=None,
                        started=now - known.age_s,
                        bytes_in=0,
                        token=known.token,
                        client_token=known.token,
                        digest=known.digest,
                    )
                )
        for request_id, digest in page.answered:
            self._park(request_id, digest)
        for ask in page.asks:
            if len(self._asks) < MAX_ASKS:
                self._asks.add(ask)

    def repeated(self, call: Call[S]) -> Call[S] | None:
        """Return the call that this one repeats, since its client lost the connection.

        A running one gets the new stream, though nobody may have said yet that the old one is
        dead; an answered one is not parked any more.
        """
        running = self._calls.get(call.id)
        if running is None:
            return call if self.unpark(call) else None
        if running.digest != call.digest:
            return None
        running.stream = call.stream
        return running

    def park(self, call: Call[S]) -> None:
        """Remember a call whose answer its client may not have got."""
        self._park(call.id, call.digest)

    def _park(self, request_id: Id, digest: str) -> None:
        self._parked[request_id] = digest
        if len(self._parked) > MAX_PARKED:
            del self._parked[next(iter(self._parked))]

    def unpark(self, call: Call[S]) -> bool:
        """Forget a parked call; False when this is none."""
        if self._parked.get(call.id) != call.digest:
            return False
        del self._parked[call.id]
        return True

    def finish(self, request_id: Id) -> Call[S] | None:
        """Take out the call that this answer belongs to; None when nobody waits for it."""
        self._forgotten.pop(request_id, None)
        return self._remove(request_id)

    def forget(self, request_id: Id) -> Call[S] | None:
        """Take out a call that is answered in the child's place; its late answer is swallowed."""
        call = self._remove(request_id)
        if call is not None:
            self.swallow(request_id)
        return call

    def swallow(self, request_id: Id) -> None:
        """An answer may come for which nobody waits any more."""
        self._forgotten[request_id] = None
        if len(self._forgotten) > MAX_FORGOTTEN:
            del self._forgotten[next(iter(self._forgotten))]

    def knows(self, request_id: Id | UnsetType | None) -> bool:
        """True for the id of a call that runs, or whose late answer is swallowed."""
        return request_id in self._calls or request_id in self._forgotten

    def is_forgotten(self, request_id: Id) -> bool:
        """True for the id of a call that was answered in the child's place."""
        return request_id in self._forgotten

    def _remove(self, request_id: Id) -> Call[S] | None:
        call = self._calls.pop(request_id, None)
        if call is not None and call.token is not None and self._tokens.get(call.token) == call.id:
            del self._tokens[call.token]
        return call

    def by_token(self, token: Id | None) -> Call[S] | None:
        """Return the running call with this progress token."""
        request_id = None if token is None else self._tokens.get(token)
        return None if request_id is None else self._calls.get(request_id)

    def asked(self, request_id: Id) -> None:
        """The child sent a request; only its answer will be let through."""
        self._asks.add(request_id)

    def is_asked(self, request_id: Id) -> bool:
        """True for a request of the child that is not answered yet."""
        return request_id in self._asks

    def answered(self, request_id: Id) -> bool:
        """Take out an ask; False when the child asked no such thing."""
        if request_id not in self._asks:
            return False
        self._asks.discard(request_id)
        return True

    @property
    def asks(self) -> int:
        """How many requests of the child wait for the client."""
        return len(self._asks)

    def stream_for_others(self) -> S | None:
        """Where a message goes that names no call: one stream, never several."""
        open_streams = [call.stream for call in self._calls.values() if call.stream is not None]
        if len(open_streams) == 1:
            return open_streams[0]
        if self.general is not None:
            return self.general
        return open_streams[-1] if open_streams else None

    def label_of(self, stream: S) -> str:
        """Return the label of a stream that `stream_for_others` has chosen."""
        if stream is self.general:
            return GENERAL
        return next(label(call.id) for call in self._calls.values() if call.stream is stream)

    def stream_gone(self, stream: S) -> None:
        """The client hung up. Its calls go on: in these revisions a disconnect is no cancel."""
        if self.general is stream:
            self.general = None
        for call in self._calls.values():
            if call.stream is stream:
                call.stream = None
