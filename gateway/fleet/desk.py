"""Join tokens and resume credentials of agents: mint, burn, recognise. Pure but for chance.

A join token is good once; afterwards an agent proves itself with a secret it drew and never told.
What is kept here are hashes only.
"""

import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass, field

_PROOF = re.compile(r"[0-9a-f]{64}")

Draw = Callable[[int], str]
"""n random bytes as URL-safe text: `secrets.token_urlsafe`."""


def hash_of(text: str) -> str:
    """Return the hex SHA-256 of a secret: what is kept of it."""
    return hashlib.sha256(text.encode()).hexdigest()


class TokenRefused(Exception):
    """Unknown, expired or used; deliberately one answer for all."""


class TokenReplayed(Exception):
    """Two processes joined with one token. Nobody can know which one is honest."""


@dataclass(slots=True)
class _Pass:
    key: str = field(repr=False)
    secret_hash: str = field(repr=False)
    expires: float
    proof: str | None = None
    boot_id: str = ""


class JoinDesk:
    """Join tokens and resume credentials of the agents of one gateway, as hashes."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self._passes: dict[str, _Pass] = {}

    def mint(self, launch_id: str, key: str, expires: float) -> str:
        """Return a join token for this launch; good once, until `expires`.

        The key of a parked agent is its launch id, which leads to the pool, until `assign`.
        """
        secret = self._draw(32)
        self._passes[launch_id] = _Pass(key, hash_of(secret), expires)
        return f"rj_{launch_id}.{secret}"

    def adopt(self, launch_id: str, key: str, proof: str, boot_id: str) -> None:
        """Know an agent that joined at another gateway process; its capsule has vouched for it."""
        self._passes[launch_id] = _Pass(key, "", 0.0, proof, boot_id)

    def enter(self, launch_id: str, key: str, secret_hash: str) -> None:
        """Know a join token that another gateway process has minted, and that is good."""
        if launch_id not in self._passes:
            self._passes[launch_id] = _Pass(key, secret_hash, float("inf"))
        self._passes[launch_id].key = key

    def known(self, launch_id: str) -> tuple[str, str] | None:
        """Return where a launch's join token leads, and the hash of its secret."""
        found = self._passes.get(launch_id)
        return None if found is None else (found.key, found.secret_hash)

    def assign(self, launch_id: str, key: str) -> None:
        """A parked agent is a session's now: its credentials lead there."""
        self._passes[launch_id].key = key

    def forget(self, launch_id: str) -> None:
        """The session is over: nothing joins or resumes with this launch any more."""
        self._passes.pop(launch_id, None)

    def recognise(self, credential: str, now: float) -> str:
        """Return the session key that a presented credential leads to.

        Raises:
            TokenRefused: not a credential of ours, expired, or wrong.
        """
        kind, launch_id, secret = parts_of(credential)
        known = self._passes.get(launch_id)
        if known is None:
            raise TokenRefused
        expected = known.secret_hash if kind == "rj" else known.proof
        if not hmac.compare_digest(hash_of(secret), expected or ""):
            raise TokenRefused
        if kind == "rj" and known.proof is None and now >= known.expires:
            raise TokenRefused
        return known.key

    def burn(self, credential: str, proof: str, boot_id: str) -> None:
        """Tie a recognised credential to the agent process that presents it.

        The same token with the same proof is taken again, since a lost WELCOME must not kill a
        session.

        Raises:
            TokenRefused: the proof is no SHA-256, the boot id no ASCII, or the session has ended
                since the credential was recognised.
            TokenReplayed: the token was already used by another process.
        """
        kind, launch_id, _ = parts_of(credential)
        known = self._passes.get(launch_id)
        if known is None or not _PROOF.fullmatch(proof) or not boot_id.isascii():
            raise TokenRefused
        if known.proof is None and kind == "rj":
            known.proof, known.boot_id = proof, boot_id
        same = hmac.compare_digest(known.proof or "", proof)
        if not same or not hmac.compare_digest(known.boot_id, boot_id):
            raise TokenReplayed


def proof_of(credential: str) -> tuple[str, str]:
    """Return the launch id that a resume credential names and the proof that it amounts to.

    Raises:
        TokenRefused: no resume credential.
    """
    kind, launch_id, secret = parts_of(credential)
    if kind != "rr":
        raise TokenRefused
    return launch_id, hash_of(secret)


def launch_of(credential: str) -> str:
    """Return the launch id that a credential names.

    Raises:
        TokenRefused: it is none.
    """
    return parts_of(credential)[1]


def parts_of(credential: str) -> tuple[str, str, str]:
    """Return kind (`rj` or `rr`), launch id and secret of a credential.

    Raises:
        TokenRefused: it is none.
    """
    head, _, secret = credential.partition(".")
    kind, _, launch_id = head.partition("_")
    if kind not in ("rj", "rr") or not secret or not credential.isascii():
        raise TokenRefused
    return kind, launch_id, secret
