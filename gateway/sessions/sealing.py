"""Facts that others carry for the gateway: encrypted, since a dyno is hostile and a client curious.

Whoever brings one back proves that this deployment wrote it (Fernet). Pure but for the chance and
the clock of Fernet.
"""

import base64
import hmac
from typing import Generic, TypeVar

import msgspec
from cryptography.fernet import Fernet, InvalidToken

T = TypeVar("T")


class BadSeal(Exception):
    """Not sealed by this deployment, for another purpose, too old, or of another version."""


class Sealer(Generic[T]):
    """Seals and opens facts of one kind.

    Args:
        secret: the deployment's GATEWAY_SECRET.
        purpose: what is sealed with one purpose opens with no other.
        kind: a msgspec struct.
    """

    def __init__(self, secret: bytes, purpose: str, kind: type[T]) -> None:
        key = hmac.digest(secret, purpose.encode(), "sha256")
        self._fernet = Fernet(base64.urlsafe_b64encode(key))
        self._decoder = msgspec.json.Decoder(kind)

    def seal(self, facts: T) -> str:
        """Return the facts as ASCII text that is safe in JSON and in headers."""
        return self._fernet.encrypt(msgspec.json.encode(facts)).decode()

    def open(self, text: str, ttl_s: float | None = None) -> T:
        """Read what was sealed, at most `ttl_s` seconds ago.

        Raises:
            BadSeal: see there.
        """
        ttl = None if ttl_s is None else int(ttl_s)
        try:
            token = text.encode("ascii")
            # Base64 is read leniently: what stands behind its end would go unnoticed.
            if base64.urlsafe_b64encode(base64.urlsafe_b64decode(token)) != token:
                raise BadSeal
            return self._decoder.decode(self._fernet.decrypt(token, ttl))
        except (InvalidToken, msgspec.DecodeError, ValueError) as error:
            raise BadSeal from error
