"""What a session gives out: bytes for a stream, or its own end. Pure."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from dyno_agent.link import Message
from gateway.eras.correlation import Call
from gateway.errors import GatewayError
from gateway.sessions.record import Reason

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Delivery(Generic[S]):
    """These bytes to that stream.

    Attributes:
        stream: where to.
        raw: one JSON-RPC message on one line; empty ends the stream without one, since a cancelled
            request gets no answer (MCP, utilities/cancellation).
        last: it answers the stream's call, so the stream ends after it.
        error: set when the gateway answers in the child's place.
        message: what to give back to the link once the bytes are taken over.
        position: where it stands on its stream, for the event id; 0 for one of the gateway's own.
        unnamed: number on the link of a message that names no call; 0 for any other.
        noted: ordinal of the command that tells the agent where such a message goes. Only then may
            it be written, for a client that resumes its stream: a later gateway process must know.
        call: what it answers.
        notice: it is the gateway's own, and waits for another stream if this one is gone.
        code: JSON-RPC error code of the child's answer; 0 for anything else.
    """

    stream: S
    raw: bytes
    last: bool = False
    error: GatewayError | None = None
    message: Message | None = None
    position: int = 0
    unnamed: int = 0
    noted: int = 0
    call: Call[S] | None = None
    notice: bool = False
    code: int = 0


@dataclass(frozen=True, slots=True)
class Ending:
    """The session cannot go on: why, and what its calls are told."""

    reason: Reason
    error: GatewayError
