"""API keys to principals."""

import hashlib
import hmac
from collections.abc import Mapping

from gateway.errors import BadKey

ANONYMOUS = "anonymous"


class KeyRing:
    """The API keys of this gateway, as hashes.

    Args:
        keys: principal by key; empty lets everybody in as one anonymous principal, which the
            settings allow on loopback only.
    """

    def __init__(self, keys: Mapping[str, str]) -> None:
        self._principals = [(self._digest(key), name) for key, name in keys.items()]

    def principal(self, headers: Mapping[str, str]) -> str:
        """Return who sends these headers: `Authorization: Bearer KEY` or `X-API-Key: KEY`.

        Every key is compared, in constant time each, so that timing tells nothing.

        Raises:
            BadKey: none given, or unknown.
        """
        if not self._principals:
            return ANONYMOUS
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else headers.get("X-API-Key", "")
        if not key:
            raise BadKey("no API key: send `Authorization: Bearer KEY` or `X-API-Key: KEY`")
        presented, found = self._digest(key), None
        for digest, name in self._principals:
            if hmac.compare_digest(digest, presented):
                found = name
        if found is None:
            raise BadKey("unknown API key")
        return found

    @staticmethod
    def _digest(key: str) -> bytes:
        return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
