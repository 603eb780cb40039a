"""Seals: a child's own words that a client must bring back, made unreadable and unforgeable.

In the modern era a client brings back what a child gave it: a `requestState`, a list's cursor, a
task's id. It must reach the dyno that gave it, and only from the principal it was given to, for the
same request. All of that is in the seal, so no gateway has to remember it.
"""

import hashlib
from collections.abc import Mapping
from typing import Literal

import msgspec
from msgspec import Raw

from gateway.errors import StaleState
from gateway.sessions.sealing import BadSeal, Sealer

Kind = Literal["requestState", "cursor", "taskId"]

RETRY_KEYS = frozenset({"_meta", "inputResponses", "requestState"})
"""Params in which a retry differs from the request that it repeats (2026-07-28, basic/mrtr)."""


class Seal(msgspec.Struct, frozen=True, array_like=True):
    """What is sealed.

    Attributes:
        kind: which word it is; one is never taken for another.
        principal: who may bring it back.
        fingerprint: of the session whose child gave it.
        launch_id: of that session's dyno: a later one knows nothing of it.
        bound: digest of the request that it belongs to; a list's method for a cursor.
        word: as the child gave it.
    """

    kind: Kind
    principal: str
    fingerprint: str
    launch_id: str
    bound: str
    word: str


class Seals:
    """Seals words, and opens what comes back.

    Args:
        secret: the deployment's GATEWAY_SECRET.
    """

    def __init__(self, secret: bytes) -> None:
        self._sealer = Sealer(secret, "rendezvous seal v1", Seal)

    def close(self, seal: Seal) -> str:
        """Return the seal as text that is safe in JSON and in headers."""
        return self._sealer.seal(seal)

    def open(self, text: str, kind: Kind, principal: str, bound: str, ttl_s: float) -> Seal:
        """Return what a client brings back.

        Args:
            text: as the client sent it.
            kind: which word it stands for.
            principal: who brings it.
            bound: digest of the request in which it is brought.
            ttl_s: how old it may be.

        Raises:
            StaleState: it was not sealed here, or not for this; deliberately one answer for all.
        """
        try:
            seal = self._sealer.open(text, ttl_s)
        except BadSeal:
            raise _stale(kind) from None
        if (seal.kind, seal.principal, seal.bound) != (kind, principal, bound):
            raise _stale(kind)
        return seal


def _stale(kind: Kind) -> StaleState:
    return StaleState(
        f"this {kind} was not issued here to you for this request, or is too old; start over"
    )


def bound_to(method: str, params: Mapping[str, Raw]) -> str:
    """Return the digest of a request that its retry shares: hex, 128 bits.

    Members are compared as they were written: a client repeats its own serialization.
    """
    parts: list[bytes | memoryview] = [method.encode()]
    for key in sorted(params.keys() - RETRY_KEYS):
        parts += (key.encode(), memoryview(params[key]))
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(b"%d:" % len(part))  # so that none runs into the next
        digest.update(part)
    return digest.hexdigest()
