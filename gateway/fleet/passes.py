"""Join tokens that every process of the deployment knows: an agent dials whichever it reaches.

The desk of the process that minted a token has it as before; what lies in the store is its hash, to
what it leads, and, once it is used, by whom.
"""

import hmac
from collections.abc import Callable

import msgspec

from gateway.fleet.desk import JoinDesk, TokenRefused, TokenReplayed, hash_of, parts_of
from gateway.store.base import Store

KEPT_S = 3600.0
"""How long a used token is remembered: longer than any boot."""


class _Pass(msgspec.Struct, frozen=True):
    """A join token as the store has it.

    Attributes:
        key: fingerprint of the session that it leads to; of a parked agent the launch id.
        secret_hash: SHA-256 of its secret part.
        until: it is good until then, seconds since 1970.
    """

    key: str
    secret_hash: str
    until: float


class _Burnt(msgspec.Struct, frozen=True):
    """Which agent process has used a token."""

    proof: str
    boot_id: str


_PASSES = msgspec.json.Decoder(_Pass)
_BURNT = msgspec.json.Decoder(_Burnt)


class Passes:
    """The join tokens of all processes.

    Args:
        desk: this process's own.
        store: what the processes share.
        now: wall clock, seconds since 1970.
    """

    def __init__(self, desk: JoinDesk, store: Store, now: Callable[[], float]) -> None:
        self._desk = desk
        self._store = store
        self._now = now

    async def publish(self, launch_id: str, longest_s: float) -> None:
        """Let every process know a token that this one has minted.

        Args:
            launch_id: whose it is.
            longest_s: how long it is good for.

        Raises:
            StoreAway: nobody knows whether they do.
        """
        known = self._desk.known(launch_id)
        if known is None or self._store.alone:
            return
        key, secret_hash = known
        entry = _Pass(key, secret_hash, self._now() + longest_s)
        await self._store.put(_name(launch_id), msgspec.json.encode(entry), longest_s + KEPT_S)

    async def assign(self, launch_id: str, key: str) -> None:
        """Let a parked agent's token lead to a session, at whichever door it is presented.

        Raises:
            StoreAway: nobody knows whether it does.
        """
        entry = await self._entry(launch_id)
        if entry is not None:
            entry = msgspec.structs.replace(entry, key=key)
            await self._store.put(_name(launch_id), msgspec.json.encode(entry), KEPT_S)

    async def recognise(self, credential: str) -> tuple[str, str]:
        """Return the launch id of a token that another process minted, and where it leads.

        The desk knows it from then on.

        Raises:
            TokenRefused: unknown, expired or wrong.
            StoreAway: nobody knows.
        """
        kind, launch_id, secret = parts_of(credential)
        entry = await self._entry(launch_id) if kind == "rj" else None
        if (
            entry is None
            or not hmac.compare_digest(entry.secret_hash, hash_of(secret))
            or (self._now() >= entry.until and await self._burnt(launch_id) is None)
        ):
            raise TokenRefused
        self._desk.enter(launch_id, entry.key, entry.secret_hash)
        return launch_id, entry.key

    async def burn(self, credential: str, proof: str, boot_id: str) -> None:
        """Tie a recognised credential to one agent process; see `JoinDesk.burn` for what it raises.

        Raises:
            StoreAway: nobody knows whether another process has taken it.
        """
        self._desk.burn(credential, proof, boot_id)
        kind, launch_id, _ = parts_of(credential)
        if kind != "rj" or self._store.alone:
            return
        ours = msgspec.json.encode(_Burnt(proof, boot_id))
        theirs = await self._store.put_new(f"burnt/{launch_id}", ours, KEPT_S)
        if not hmac.compare_digest(ours, theirs):
            raise TokenReplayed

    async def _entry(self, launch_id: str) -> _Pass | None:
        raw = await self._store.get(_name(launch_id))
        return None if raw is None else _PASSES.decode(raw)

    async def _burnt(self, launch_id: str) -> _Burnt | None:
        raw = await self._store.get(f"burnt/{launch_id}")
        return None if raw is None else _BURNT.decode(raw)


def _name(launch_id: str) -> str:
    return f"pass/{launch_id}"
