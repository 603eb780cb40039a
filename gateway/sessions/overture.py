"""The opening of a session that was answered before it had a dyno. Pure.

A client has been told what the catalogue knows; the child is told what the client said. When the
child answers, the two are compared: what no client can live with ends the session, any other
difference is told as `list_changed`, and nothing is hidden.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeGuard

import msgspec
from msgspec import UNSET, Raw, UnsetType

from gateway.eras.catalogue import LISTS, Chapter, Pages, Unlearnable
from gateway.eras.legacy import Opening
from gateway.errors import SessionEnded
from gateway.jsonrpc import Envelope, Kind, error_of, notification, request, result_response

PREFIX = "rendezvous/"
"""Begins the ids of the gateway's own requests in a session whose other ids are its client's."""

LEVEL_BYTES = 1024
"""Largest params of a `logging/setLevel` that are kept until the child starts."""

NOT_FOR_THE_CHILD = frozenset({"notifications/cancelled", "notifications/roots/list_changed"})
"""Notifications that mean nothing to a child that has not started."""

_CURSOR = msgspec.json.Decoder(dict[str, Raw])


@dataclass(slots=True)
class Heard:
    """What a child's answer to the gateway's own request comes to.

    Attributes:
        to_child: what the gateway asks next.
        changed: kinds whose list is not what the client was told.
        fatal: why the session cannot go on.
    """

    to_child: list[bytes] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    fatal: SessionEnded | None = None


class Overture:
    """One session's opening.

    Args:
        opening: what the client said, and the revision that it was told.
        chapter: what else it is told; None if only the child can say.
        again: it was opened before, and nobody here knows which lists its client was told.

    Attributes:
        started: a dyno was asked for.
    """

    def __init__(self, opening: Opening, chapter: Chapter | None, *, again: bool = False) -> None:
        self.started = False
        self._heard = False
        self._params = Raw(opening.params.encode()) if opening.params else UNSET
        self._chapter = chapter
        self._told = opening.told
        told = chapter.lists if again and chapter is not None else ()
        self._lists = {method: Pages(method) for method in told}
        self._level: Raw | None = None
        self._asked: dict[str | int, str] = {}
        self._drawn = 0

    def answer(self, envelope: Envelope) -> bytes | None:
        """Answer a request without the child; None if only the child can."""
        if self._heard:
            return None
        method, key = envelope.method_name, envelope.request_id
        if method == "ping":
            return result_response(key, {})
        if method == "logging/setLevel" and not self.started and _is_short(envelope.params):
            self._level = envelope.params
            return result_response(key, {})
        if self._chapter is None or not _without_cursor(envelope):
            return None
        answer = self._chapter.answer(method, key, requested=self._told)
        if answer is not None and method in LISTS:
            self._lists[method] = Pages(method)
        return answer

    def swallows(self, envelope: Envelope) -> bool:
        """True for a notification that the child need not hear, or has heard from us."""
        if envelope.method == "notifications/initialized":
            return True
        return not self.started and envelope.method_name in NOT_FOR_THE_CHILD

    def relearn(self, chapter: Chapter, changed: frozenset[str]) -> list[str]:
        """Tell from a later chapter; return the kinds that the client was told otherwise."""
        if self.started or self._chapter is None or chapter.negotiated(self._told) != self._told:
            return []
        self._chapter = chapter
        return sorted(changed & {method.partition("/")[0] for method in self._lists})

    def start(self) -> list[bytes]:
        """Return what the child must hear before anything else."""
        self.started = True
        said = [
            self._ask("initialize", self._params),
            notification("notifications/initialized"),
        ]
        if self._level is not None:
            said.append(self._ask("logging/setLevel", self._level))
        return said

    def _ask(self, method: str, params: Raw | UnsetType | Mapping[str, str] = UNSET) -> bytes:
        self._drawn += 1
        key = f"{PREFIX}{self._drawn}"
        self._asked[key] = method
        return request(key, method, params)

    def uses(self, request_id: str | int) -> bool:
        """True for the id of a request of the gateway's own that is not answered yet."""
        return request_id in self._asked

    def awaits(self, envelope: Envelope) -> bool:
        """True for the answer to a request of the gateway's own."""
        return envelope.kind is Kind.RESPONSE and envelope.id in self._asked

    def take(self, envelope: Envelope) -> Heard:
        """Compare an answer with what the client was told; only if it is awaited."""
        method = self._asked.pop(envelope.request_id)
        if method == "initialize":
            return self._compare_opening(envelope)
        if method == "logging/setLevel":
            return Heard()
        return self._compare_list(method, envelope)

    def _compare_opening(self, envelope: Envelope) -> Heard:
        self._heard = True  # from here on the child answers for itself
        if envelope.result is UNSET:
            code, message = error_of(envelope)
            return Heard(
                fatal=SessionEnded(f"the server refused to initialize: {message} ({code})")
            )
        own = Chapter("legacy", envelope.result, {}, 0.0).negotiated("")
        if self._told and own != self._told:
            return Heard(
                fatal=SessionEnded(
                    f"the server speaks {own[:32]!r}, not {self._told!r} as the catalogue said; "
                    "send `initialize` again"
                )
            )
        if self._chapter is None:
            return Heard()
        if self._chapter.diverges("initialize", envelope.result, told=self._told):
            return Heard(changed=["tools", "prompts", "resources"])
        return Heard(to_child=[self._ask(method) for method in self._lists])

    def _compare_list(self, method: str, envelope: Envelope) -> Heard:
        kind, pages = method.partition("/")[0], self._lists[method]
        if envelope.result is UNSET or self._chapter is None:
            return Heard(changed=[kind])
        try:
            cursor = pages.add(envelope.result)
        except Unlearnable:
            return Heard(changed=[kind])
        if cursor is not None:
            return Heard(to_child=[self._ask(method, {"cursor": cursor})])
        return Heard(changed=[kind] if self._chapter.diverges(method, pages.merged()) else [])


def _is_short(params: Raw | UnsetType) -> TypeGuard[Raw]:
    return params is not UNSET and len(params) <= LEVEL_BYTES


def _without_cursor(envelope: Envelope) -> bool:
    if envelope.params is UNSET:
        return True
    try:
        return "cursor" not in _CURSOR.decode(envelope.params)
    except (msgspec.DecodeError, RecursionError):
        return False
