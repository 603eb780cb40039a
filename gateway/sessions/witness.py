"""What passes through one session: every message told as an event, every call traced. Pure."""

from typing import Any

import msgspec
from msgspec import UNSET, Raw

from dyno_agent.link.resumption import digest
from gateway import events
from gateway.eras.correlation import Call
from gateway.jsonrpc import Envelope, error_of, meta_texts, with_meta
from gateway.sessions.record import SessionRecord
from gateway.sessions.tracing import CARRIED, MAX_CONTEXT, CallBegun, Tracing

ID, METHOD, TOOL = 64, 64, 128
"""Characters of each in an event."""


class _Result(msgspec.Struct):
    failed: bool = msgspec.field(name="isError", default=False)


_RESULT = msgspec.json.Decoder(_Result)


class Witness:
    """Tells what a session's messages are, and what they say if its server is recorded like that.

    Args:
        record: the facts of the session.
        emit: hears events.
        tracing: traces calls; None if nobody wants that.

    Attributes:
        tracing: likewise.
        revision: that all clients speak; empty if nobody has said.
    """

    def __init__(
        self, record: SessionRecord, emit: events.Sink, tracing: Tracing | None = None
    ) -> None:
        self.revision = ""
        self._record = record
        self._emit = emit
        self.tracing = tracing
        self._begun: CallBegun | None = None  # of the request that is being taken
        self._keeps = record.server.record == "payloads"

    def carrying(self, call: Call[Any], line: bytes, most_bytes: int) -> bytes:
        """Return a request with the trace that it carries to the child, on one line.

        The same for the same request: one that is sent again must be recognised by its bytes.

        Args:
            call: that it begins.
            line: as it would go without a trace.
            most_bytes: largest message; what would be larger carries none.
        """
        self._begun = None
        if self.tracing is None:
            return line
        seed = digest(f"{self._record.session_id}\n".encode() + line)
        begun = CallBegun(
            session=self._record.session_id,
            server=self._record.server.name,
            principal=self._record.principal,
            call=str(call.client_id)[:ID],
            method=call.method[:METHOD],
            tool=None if call.tool is None else call.tool[:TOOL],
            revision=self.revision,
            meta=meta_texts(line, CARRIED, MAX_CONTEXT),
            seed=seed,
        )
        context = self.tracing.context(begun)
        if not context:
            return line
        traced = with_meta(line, context)
        if traced is line or len(traced) > most_bytes:
            return line
        call.trace, self._begun = context.get("traceparent", ""), begun
        return traced

    def asked(self, call: Call[Any], line: bytes) -> None:
        """The request that `carrying` was asked for goes to the child."""
        begun, self._begun = self._begun, None
        if self.tracing is not None and begun is not None and call.trace:
            self.tracing.begin(begun)
        self._tell("child", "request", call.method, call.tool, call.client_id, line)

    def passed(self, to: str, envelope: Envelope, raw: bytes) -> None:
        """Another message goes through.

        Args:
            to: `child` or `client`.
            envelope: of the message.
            raw: the message.
        """
        number = "" if envelope.id is UNSET or envelope.id is None else envelope.id
        self._tell(to, envelope.kind.value, envelope.method_name, None, number, raw)

    def _tell(
        self, to: str, kind: str, method: str, tool: str | None, number: str | int, raw: bytes
    ) -> None:
        self._emit(
            events.Passed(
                session=self._record.session_id,
                to=to,
                kind=kind,
                method=method[:METHOD],
                tool=None if tool is None else tool[:TOOL],
                call=str(number)[:ID],
                bytes=len(raw),
                payload=raw if self._keeps else b"",
            )
        )

    def answered(self, call: Call[Any], envelope: Envelope, size: int, now: float) -> None:
        """The child has answered a call."""
        if envelope.error is not UNSET:
            code, _ = error_of(envelope)
            self._finished(call, "error", size, now, code, bytes(envelope.error))
            return
        result = b"" if envelope.result is UNSET else envelope.result
        outcome = "tool_error" if call.method == "tools/call" and _failed(result) else "ok"
        self._finished(call, outcome, size, now, None, bytes(result))

    def finished(
        self, call: Call[Any], outcome: str, size: int, now: float, code: int | None = None
    ) -> None:
        """A call is over without an answer of the child."""
        self._finished(call, outcome, size, now, code, b"")

    def _finished(
        self,
        call: Call[Any],
        outcome: str,
        size: int,
        now: float,
        code: int | None,
        payload: bytes,
    ) -> None:
        self._emit(
            events.CallFinished(
                session=self._record.session_id,
                server=self._record.server.name,
                call=str(call.client_id)[:ID],
                method=call.method[:METHOD],
                tool=None if call.tool is None else call.tool[:TOOL],
                outcome=outcome,
                ms=round((now - call.started) * 1000, 3),
                bytes_in=call.bytes_in,
                bytes_out=size,
                code=code,
                trace=call.trace,
                payload=payload if self._keeps else b"",
            )
        )


def _failed(result: Raw | bytes) -> bool:
    """Whether a tool's result says that it is an error (server/tools, "Error Handling")."""
    if b'"isError"' not in bytes(result):  # most do not, and looking is quicker than reading
        return False
    try:
        return _RESULT.decode(result).failed
    except (msgspec.DecodeError, RecursionError):
        return False
