"""HELLO and WELCOME: the two text frames that open every attachment.

Both are JSON objects. A reader ignores keys it does not know, so that minor versions may add some;
the major version is the name of the WebSocket subprotocol.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from dyno_agent.link.frames import ProtocolViolation
from dyno_agent.link.limits import CAPSULE_BYTES, HANDSHAKE_BYTES, WELCOME_BYTES, Limits
from dyno_agent.slots import SLOTS

Face = Literal["plain", "modern", "legacy"]
"""The era that a child shows: its own, or the other one in translation."""


@dataclass(frozen=True, **SLOTS)
class ChildSpec:
    """What the agent shall spawn: told over the link, never through the dyno's command line.

    Attributes:
        argv: the program and its arguments; no shell is involved.
        env: variables added to the scrubbed environment of the dyno.
        cwd: working directory; None keeps the agent's.
        face: the era that the child is to show to the gateway, see `dyno_agent.faces`.
    """

    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict, repr=False)
    cwd: str | None = None
    face: Face = "plain"


@dataclass(frozen=True, **SLOTS)
class Hello:
    """What the agent says first.

    Attributes:
        kind: `join` with the join token, once; `resume` with the resume credential afterwards.
        boot_id: drawn at process start; another value under the same credential is an impostor.
        proof: hex SHA-256 of the resume secret, which itself never crosses before it is used.
        received: highest sequence number held from the gateway.
        confirmed: highest sequence number that a gateway has acknowledged.
        held_bytes: payload received and not yet consumed.
        held_frames: the same in frames.
        agent: version of the agent.
        python: version of its interpreter.
        dyno: the platform's name of the dyno, for the operator.
    """

    kind: Literal["join", "resume"]
    boot_id: str
    proof: str
    received: int = 0
    confirmed: int = 0
    held_bytes: int = 0
    held_frames: int = 0
    agent: str = ""
    python: str = ""
    dyno: str = ""

    def encode(self) -> str:
        """Return the document."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> Hello:
        """Read the document.

        Raises:
            ProtocolViolation: not a HELLO; the message names the key.
        """
        document = _object(text, HANDSHAKE_BYTES, "HELLO")
        kind = _text(document, "kind", 16)
        if kind not in ("join", "resume"):
            raise ProtocolViolation("HELLO: kind is neither join nor resume")
        return cls(
            kind="join" if kind == "join" else "resume",
            boot_id=_text(document, "boot_id", 64),
            proof=_text(document, "proof", 64),
            received=_count(document, "received"),
            confirmed=_count(document, "confirmed"),
            held_bytes=_count(document, "held_bytes"),
            held_frames=_count(document, "held_frames"),
            agent=_text(document, "agent", 64),
            python=_text(document, "python", 64),
            dyno=_text(document, "dyno", 64),
        )


@dataclass(frozen=True, **SLOTS)
class Welcome:
    """What the gateway answers.

    Attributes:
        epoch: number of this attachment, for the logs of both sides.
        received: highest sequence number held from the agent.
        limits: what this link may use, on both sides.
        orphan_s: without an attachment for so long the agent kills its child and leaves.
        grace_s: how long the kill ladder takes from the end of input to SIGKILL.
        child: what to spawn; only in the answer to `join`.
        fresh: the gateway knows nothing of the session but its capsule: it wants the journal.
        capsule: sealed facts to present at every resume.
    """

    epoch: int
    received: int
    limits: Limits
    orphan_s: float
    grace_s: float
    child: ChildSpec | None = None
    fresh: bool = False
    capsule: str = field(default="", repr=False)

    def encode(self) -> str:
        """Return the document."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> Welcome:
        """Read the document.

        Raises:
            ProtocolViolation: not a WELCOME; the message names the key.
        """
        document = _object(text, WELCOME_BYTES, "WELCOME")
        try:
            child = document.get("child")
            return cls(
                epoch=int(document["epoch"]),
                received=_count(document, "received"),
                limits=_limits(document["limits"]),
                orphan_s=float(document["orphan_s"]),
                grace_s=float(document["grace_s"]),
                child=None if child is None else _child(child),
                fresh=bool(document.get("fresh", False)),
                capsule=_text(document, "capsule", CAPSULE_BYTES),
            )
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise ProtocolViolation(f"WELCOME: {error}") from error


PARKED = json.dumps({"parked": True})
"""What the gateway says, again and again, before the WELCOME of an agent that is to wait for its
session."""


def is_parked(text: str) -> bool:
    """True when a gateway's answer says that the WELCOME comes later.

    Raises:
        ProtocolViolation: no document of the handshake.
    """
    return _object(text, WELCOME_BYTES, "WELCOME").get("parked") is True


def _limits(document: dict[str, Any]) -> Limits:
    return Limits(**{key.name: document[key.name] for key in fields(Limits)})


def _child(document: dict[str, Any]) -> ChildSpec:
    cwd, face = document.get("cwd"), document.get("face", "plain")
    if face not in get_args(Face):
        raise ValueError("a later gateway wants a face that this agent does not have")
    if not isinstance(document["argv"], list):
        raise TypeError("argv is not a list")
    return ChildSpec(
        argv=tuple(str(part) for part in document["argv"]),
        env={str(name): str(value) for name, value in document["env"].items()},
        cwd=None if cwd is None else str(cwd),
        face=face,
    )


def _object(text: str, limit: int, name: str) -> dict[str, Any]:
    if len(text) > limit:
        raise ProtocolViolation(f"{name} over {limit} bytes")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolViolation(f"{name} is not JSON") from error
    if not isinstance(document, dict):
        raise ProtocolViolation(f"{name} is not an object")
    return document


def _text(document: dict[str, Any], key: str, limit: int) -> str:
    value = document.get(key, "")
    if not isinstance(value, str) or len(value) > limit:
        raise ProtocolViolation(f"{key} is not a text of up to {limit} characters")
    return value


def _count(document: dict[str, Any], key: str) -> int:
    value = document.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ProtocolViolation(f"{key} is not a count")
    return value
