"""What a gateway must learn or ask again when it takes up a session in the middle.

*Labels* name client streams on the link and in SSE event ids. The *journal* tells a gateway that
lost its memory what is under way; it follows the WELCOME that asked for it. A *replay* brings back
messages that were taken over once, for a client that lost its stream.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Union

from dyno_agent.link.frames import ProtocolViolation
from dyno_agent.link.limits import JOURNAL_PAGE_BYTES, JOURNAL_PAGES, REPLAY_HEAD_BYTES
from dyno_agent.slots import SLOTS

if TYPE_CHECKING:
    from collections.abc import Iterable

Id = Union[str, int]

GENERAL = ""
"""Label of the stream for messages that belong to no call."""

MAX_ID = 256
"""Characters of a request id or progress token. What is longer cannot be carried along."""

_LATE_BITS = 16

_HEAD = struct.Struct("!QQ")
assert _HEAD.size == REPLAY_HEAD_BYTES  # noqa: S101 - two files state one number


def position(seq: int) -> int:
    """Return where the message of this number stands on its client stream.

    Between two numbers there is room for messages that were written late: on a stream positions
    only ever rise, so the last one that a client has seen says all that it has seen.
    """
    return seq << _LATE_BITS


def number_of(where: int) -> int:
    """Return the number of the message at this position, or of the last one before it."""
    return where >> _LATE_BITS


def label(request_id: Id) -> str:
    """Return the label of the stream that answers a request: ASCII, and 1 and "1" differ."""
    if isinstance(request_id, int):
        return f"i{request_id}"
    text = base64.urlsafe_b64encode(request_id.encode(errors="surrogatepass")).decode()
    return f"s{text.rstrip('=')}"


def id_of(stream_label: str) -> Id | None:
    """Return the request id that a label names; None for the general stream.

    Raises:
        ValueError: not a label.
    """
    kind, text = stream_label[:1], stream_label[1:]
    if not kind:
        return None
    try:
        if kind == "i" and str(int(text)) == text:
            return int(text)
        if kind == "s":
            padded = text + "=" * (-len(text) % 4)
            found = base64.urlsafe_b64decode(padded).decode(errors="surrogatepass")
            if label(found) == stream_label:
                return found
    except (binascii.Error, UnicodeDecodeError) as error:
        raise ValueError("not a label") from error
    raise ValueError("not a label")


def digest(message: bytes) -> str:
    """Tell one request from another with the same id; both ends compute it alike."""
    return hashlib.sha256(message).hexdigest()[:32]


@dataclass(frozen=True, **SLOTS)
class RunningCall:
    """A request that the child has and did not answer yet.

    Attributes:
        id: as the client wrote it.
        method: JSON-RPC method.
        tool: `params.name` where the method has one.
        token: its progress token.
        digest: tells a repetition from another request with the same id.
        age_s: seconds since the agent took it.
    """

    id: Id
    method: str
    tool: str | None
    token: Id | None
    digest: str
    age_s: float


@dataclass(frozen=True, **SLOTS)
class JournalPage:
    """A part of the journal: one JSON text frame.

    Attributes:
        calls: requests of the client without an answer.
        answered: id and digest of calls whose answer is retained, oldest first.
        asks: ids of the child's requests that were taken over and not answered.
        routed: of unconfirmed messages that name no call, the number and where they went.
        last: no page follows.
    """

    calls: tuple[RunningCall, ...] = ()
    answered: tuple[tuple[Id, str], ...] = ()
    asks: tuple[Id, ...] = ()
    routed: dict[int, str] = field(default_factory=dict)
    last: bool = False

    def encode(self) -> str:
        """Return the document."""
        return json.dumps(
            {
                "calls": [_call_document(call) for call in self.calls],
                "answered": self.answered,
                "asks": self.asks,
                "routed": list(self.routed.items()),
                "last": self.last,
            }
        )

    @classmethod
    def decode(cls, text: str) -> JournalPage:
        """Read a page.

        Raises:
            ProtocolViolation: not a page of a journal.
        """
        if len(text) > JOURNAL_PAGE_BYTES:
            raise ProtocolViolation(f"a page of the journal over {JOURNAL_PAGE_BYTES} bytes")
        try:
            document = json.loads(text)
            return cls(
                calls=tuple(_call(entry) for entry in document["calls"]),
                answered=tuple((_id(key), _text(sha)) for key, sha in document["answered"]),
                asks=tuple(_id(entry) for entry in document["asks"]),
                routed={_number(seq): _text(where) for seq, where in document["routed"]},
                last=bool(document["last"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ProtocolViolation(f"no page of a journal: {type(error).__name__}") from error


def pages(
    calls: Iterable[RunningCall],
    answered: Iterable[tuple[Id, str]],
    asks: Iterable[Id],
    routed: Iterable[tuple[int, str]],
) -> list[str]:
    """Return the journal as 1 to `JOURNAL_PAGES` documents of up to `JOURNAL_PAGE_BYTES` each.

    What does not fit is left out: such a call is answered all the same, but not resumed.
    """
    entries: list[JournalPage] = [
        *(JournalPage(calls=(call,)) for call in calls),
        *(JournalPage(asks=(ask,)) for ask in asks),
        *(JournalPage(answered=(entry,)) for entry in answered),
        *(JournalPage(routed=dict([route])) for route in routed),
    ]
    groups: list[list[JournalPage]] = [[]]
    room = JOURNAL_PAGE_BYTES
    for entry in entries:
        size = len(entry.encode())
        if size > JOURNAL_PAGE_BYTES:
            continue
        if size > room:
            groups.append([])
            room = JOURNAL_PAGE_BYTES
        groups[-1].append(entry)
        room -= size
    groups = groups[:JOURNAL_PAGES]
    return [_merged(group, last=group is groups[-1]).encode() for group in groups]


def _merged(group: list[JournalPage], *, last: bool) -> JournalPage:
    return JournalPage(
        calls=tuple(call for page in group for call in page.calls),
        answered=tuple(entry for page in group for entry in page.answered),
        asks=tuple(ask for page in group for ask in page.asks),
        routed={seq: where for page in group for seq, where in page.routed.items()},
        last=last,
    )


def _call_document(call: RunningCall) -> dict[str, Any]:
    return {
        "id": call.id,
        "method": call.method,
        "tool": call.tool,
        "token": call.token,
        "digest": call.digest,
        "age_s": call.age_s,
    }


def _call(document: dict[str, Any]) -> RunningCall:
    token, tool, age_s = document["token"], document["tool"], document["age_s"]
    if isinstance(age_s, bool) or not isinstance(age_s, (int, float)) or not 0 <= age_s < 2**31:
        raise ValueError("age_s")
    return RunningCall(
        id=_id(document["id"]),
        method=_text(document["method"]),
        tool=None if tool is None else _text(tool),
        token=None if token is None else _id(token),
        digest=_text(document["digest"]),
        age_s=float(age_s),
    )


def _id(value: Any) -> Id:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise TypeError("an id")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a text")
    return value


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**63:
        raise ValueError("a number")
    return value


@dataclass(frozen=True, **SLOTS)
class Replayed:
    """One message of the REPLAY channel.

    Attributes:
        ticket: of the request that it answers.
        position: where the message stands on its stream; 0 ends the replay, and `raw` is then
            `held` if the answer of the call is still here, or empty.
        raw: the message.
    """

    ticket: int
    position: int
    raw: bytes

    def encode(self) -> bytes:
        """Return the payload."""
        return _HEAD.pack(self.ticket, self.position) + self.raw

    @classmethod
    def decode(cls, payload: bytes) -> Replayed:
        """Read a payload.

        Raises:
            ProtocolViolation: too short.
        """
        if len(payload) < _HEAD.size:
            raise ProtocolViolation("a replay without its head")
        ticket, where = _HEAD.unpack_from(payload)
        return cls(ticket, where, payload[_HEAD.size :])
