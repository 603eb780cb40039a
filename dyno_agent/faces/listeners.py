"""`subscriptions/listen` for a handshake server: who hears of which of its changes. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from dyno_agent.faces.rewriting import (
    BAD_PARAMS,
    INTERNAL,
    PREFIX,
    Key,
    failure,
    mapping,
    notification,
    request,
    response,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dyno_agent.faces.face import Moves

MAX_LISTENERS = 256
MAX_URIS = 1024
"""Subscriptions of all listeners together; a listener is told which of its own it got."""

CHANGES = {
    "notifications/tools/list_changed": ("toolsListChanged", "tools"),
    "notifications/prompts/list_changed": ("promptsListChanged", "prompts"),
    "notifications/resources/list_changed": ("resourcesListChanged", "resources"),
}
"""Notification: what a listener opts in with, and the capability that must have listChanged."""

UPDATED = "notifications/resources/updated"


class Listeners:
    """The open listens of one child.

    Args:
        names: ids of our own requests to the child; their answers are not waited for.
    """

    def __init__(self, names: Iterator[str]) -> None:
        self._names = names
        self._accepted: dict[Key, dict[str, Any]] = {}
        self._uris: Counter[str] = Counter()

    def __contains__(self, name: Key) -> bool:
        return name in self._accepted

    def open(
        self, name: Key, params: dict[str, Any], capabilities: dict[str, Any], moves: Moves
    ) -> None:
        """Begin a listen and acknowledge what the child can tell; the answer comes at its end.

        Args:
            name: the id of the listen request.
            params: its parameters.
            capabilities: the child's.
            moves: gets what to write.
        """
        wanted = params.get("notifications")
        if not isinstance(wanted, dict):
            refusal = failure(BAD_PARAMS, "notifications is missing")
        elif len(self._accepted) >= MAX_LISTENERS:
            refusal = failure(INTERNAL, f"busy: {MAX_LISTENERS} listens are open")
        else:
            accepted = self._acceptable(wanted, capabilities)
            self._accepted[name] = accepted
            moves.to_gateway.append(
                notification(
                    "notifications/subscriptions/acknowledged",
                    _tagged({"notifications": accepted}, name),
                )
            )
            for uri in accepted.get("resourceSubscriptions", ()):
                self._uris[uri] += 1
                if self._uris[uri] == 1:
                    self._tell_child("resources/subscribe", uri, moves)
            return
        moves.to_gateway.append(response(name, refusal))

    def close(self, name: Key, moves: Moves) -> None:
        """End a listen that its caller left."""
        for uri in self._accepted.pop(name).get("resourceSubscriptions", ()):
            self._uris[uri] -= 1
            if not self._uris[uri]:
                del self._uris[uri]
                self._tell_child("resources/unsubscribe", uri, moves)

    def tell(self, method: str, params: dict[str, Any], moves: Moves) -> None:
        """Pass a change of the child on to everyone who listens for it, to each under its tag."""
        for name, accepted in self._accepted.items():
            if self._concerns(accepted, method, params):
                moves.to_gateway.append(notification(method, _tagged(params, name)))

    def _acceptable(self, wanted: dict[str, Any], capabilities: dict[str, Any]) -> dict[str, Any]:
        accepted: dict[str, Any] = {
            flag: True
            for flag, kind in CHANGES.values()
            if wanted.get(flag) is True and mapping(capabilities.get(kind)).get("listChanged")
        }
        uris = wanted.get("resourceSubscriptions")
        if isinstance(uris, list) and mapping(capabilities.get("resources")).get("subscribe"):
            room = MAX_URIS - self._uris.total()
            own = list(dict.fromkeys(uri for uri in uris if isinstance(uri, str)))[:room]
            accepted |= {"resourceSubscriptions": own} if own else {}
        return accepted

    def _concerns(self, accepted: dict[str, Any], method: str, params: dict[str, Any]) -> bool:
        if method != UPDATED:
            return CHANGES[method][0] in accepted
        changed = params.get("uri")
        if not isinstance(changed, str):
            return False
        # The specification lets a server name a sub-resource of what was subscribed to.
        return any(
            changed == uri or changed.startswith(f"{uri.rstrip('/')}/")
            for uri in accepted.get("resourceSubscriptions", ())
        )

    def _tell_child(self, method: str, uri: str, moves: Moves) -> None:
        moves.to_child.append(request(next(self._names), method, {"uri": uri}))


def _tagged(params: dict[str, Any], name: Key) -> dict[str, Any]:
    meta = {**mapping(params.get("_meta")), f"{PREFIX}subscriptionId": name}
    return {**params, "_meta": meta}
