"""Keys of sessions: mint and hash. Pure but for chance, which is handed in.

The client's session key is `<random>.<mac>`: it proves by itself that this deployment issued it. A
third part may carry how the session was opened, sealed. From the key of a toolkit's session those
of its members' sessions follow: every process makes the same, and none has to be remembered.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable

DORMANT = "~"
"""Begins the keys of sessions without a dyno; `draw` never does."""

MEMBER = DORMANT * 2
"""Begins the keys of sessions that belong to a toolkit's session."""

Draw = Callable[[int], str]
"""n random bytes as URL-safe text: `secrets.token_urlsafe`."""


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class SessionKeys:
    """Makes and recognises session keys.

    Args:
        secret: the deployment's GATEWAY_SECRET.
        draw: source of chance.
    """

    def __init__(self, secret: bytes, draw: Draw) -> None:
        self._secret = hmac.digest(secret, b"rendezvous session key v1", "sha256")
        self._members = hmac.digest(secret, b"rendezvous member key v1", "sha256")
        self._draw = draw

    def mint(self, carried: str = "", *, dormant: bool = False) -> str:
        """Return a new key: visible ASCII, 192 random bits, a 128-bit MAC, and what it carries.

        Args:
            carried: sealed facts.
            dormant: its session has no dyno, and may not have got one when it is presented.
        """
        nonce = (DORMANT if dormant else "") + self._draw(24)
        return f"{nonce}.{self._mac(nonce)}" + (f".{carried}" if carried else "")

    def member(self, key: str, server: str) -> str:
        """Return the key of the session that a toolkit's session has with one of its servers.

        It is the same every time, may be dormant, and carries what the toolkit's key does.

        Args:
            key: of the toolkit's session; one that was issued.
            server: name of the member.
        """
        nonce, _, carried = _three(key)
        derived = hmac.digest(self._members, json.dumps([nonce, server]).encode(), "sha256")
        nonce = MEMBER + base64.urlsafe_b64encode(derived[:24]).decode()
        return f"{nonce}.{self._mac(nonce)}" + (f".{carried}" if carried else "")

    def issued(self, key: str) -> bool:
        """True when this deployment made the key, whether or not its session still lives."""
        nonce, mac, _ = _three(key)
        return key.isascii() and hmac.compare_digest(mac, self._mac(nonce))

    def _mac(self, nonce: str) -> str:
        return hmac.digest(self._secret, nonce.encode(), "sha256")[:16].hex()

    @staticmethod
    def may_be_dormant(key: str) -> bool:
        """True for the key of a session that was opened without a dyno."""
        return key.startswith(DORMANT)

    @staticmethod
    def is_member(key: str) -> bool:
        """True for the key of a session that belongs to a toolkit's session."""
        return key.startswith(MEMBER)

    @staticmethod
    def carried(key: str) -> str:
        """Return what a key carries, still sealed; empty if nothing."""
        return _three(key)[2]

    @staticmethod
    def fingerprint(key: str) -> str:
        """Return what stands for a key wherever the key itself must not lie: hex SHA-256."""
        return _hash(key)

    @staticmethod
    def lease(server: str, principal: str, handle: str) -> str:
        """Return the fingerprint of the session that these share: there is no key to it."""
        return _hash(json.dumps(["lease", server, principal, handle]))

    @staticmethod
    def public_id(fingerprint: str) -> str:
        """Return the name that logs and operators use for the session of this key."""
        return f"s-{fingerprint[:12]}"


def _three(key: str) -> tuple[str, str, str]:
    nonce, _, rest = key.partition(".")
    mac, _, carried = rest.partition(".")
    return nonce, mac, carried
