"""Toolkits by name: composed from what their members' chapters are now, and which member is meant.

A toolkit is composed once for every state of its members' chapters, however many requests want it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from gateway.eras.catalogue import Chapter, Era
from gateway.eras.toolkit import Composed, compose
from gateway.errors import UnknownServer
from gateway.jsonrpc import Envelope
from gateway.registry.servers import TOOLKIT, Registry, ServerDefinition


@dataclass(frozen=True, slots=True)
class Routed:
    """Whose a request is.

    Attributes:
        server: the member's definition.
        raw: the request as the member understands it.
        name: its own name of the tool or prompt, or the resource's URI: what `Mcp-Name` has to
            say of `raw`. None for a method that has none.
    """

    server: ServerDefinition
    raw: bytes
    name: str | None


@dataclass(frozen=True, slots=True)
class News:
    """What a toolkit tells otherwise than before.

    Attributes:
        toolkit: name of its definition.
        chapter: what it tells from now on, in the chapter's era.
        changed: kinds, of tools, prompts and resources, whose list is another.
    """

    toolkit: str
    chapter: Chapter
    changed: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Made:
    """A toolkit, and of what it was composed."""

    parts: tuple[tuple[str, Chapter | None], ...]
    composed: Composed

    def is_of(self, parts: tuple[tuple[str, Chapter | None], ...]) -> bool:
        """True when another composition would make the same. Chapters are compared by identity."""
        return len(parts) == len(self.parts) and all(
            ours[0] == theirs[0] and ours[1] is theirs[1]
            for ours, theirs in zip(self.parts, parts, strict=True)
        )


class Toolkits:
    """Composes toolkits.

    Args:
        registry: the servers, and who is a member of what.
        chapter: of a member, in an era; None as long as nobody knows it.
    """

    def __init__(
        self,
        registry: Registry,
        chapter: Callable[[ServerDefinition, Era], Chapter | None],
    ) -> None:
        self._registry = registry
        self._chapter = chapter
        self._made: dict[tuple[str, Era], _Made] = {}
        self._told: dict[tuple[str, Era], Chapter] = {}

    def chapter(self, toolkit: ServerDefinition, era: Era) -> Chapter:
        """Return what clients of this era are told of a toolkit, whatever is known of its members.

        The same object as long as no member's chapter is another.
        """
        chapter = self._composed(toolkit, era).chapter
        self._told.setdefault((toolkit.name, era), chapter)
        return chapter

    def route(self, toolkit: ServerDefinition, era: Era, envelope: Envelope, raw: bytes) -> Routed:
        """Return the member that a request is for, and what to send it.

        Args:
            toolkit: its definition.
            era: of the client.
            envelope: of the request, see `jsonrpc.peek`.
            raw: all of the request.

        Raises:
            UnknownItem, UnknownResource: no member has what it names, or several have. Their
                status is for clients with a handshake; see `modern.http_status` for the others.
            UnknownMethod: no method that is a member's: not `tools/call`, `prompts/get`,
                `resources/read` or `completion/complete`.
            UnknownServer: the member was disconnected in this moment.
        """
        route = self._composed(toolkit, era).route(envelope, raw)
        server = self._registry.find(route.member)
        if server is None:
            raise UnknownServer(f"the server {route.member!r} is disconnected")
        return Routed(server, route.raw, route.name)

    def news(self) -> list[News]:
        """Return what toolkits tell otherwise than when this was asked last."""
        found = []
        for (name, era), before in list(self._told.items()):
            toolkit = self._registry.find(name)
            if toolkit is None:
                continue
            now = self._told[name, era] = self._composed(toolkit, era).chapter
            if now is before:
                continue
            # What else it says of itself, such as instructions, no client asks for again.
            others = [each for each, told in now.lists.items() if before.diverges(each, told)]
            if others:
                changed = frozenset(method.partition("/")[0] for method in others)
                found.append(News(name, now, changed))
        return found

    def _composed(self, toolkit: ServerDefinition, era: Era) -> Composed:
        members = self._registry.members(toolkit)
        parts = tuple((member.name, self._chapter(member, era)) for member in members)
        made = self._made.get((toolkit.name, era))
        if made is None or not made.is_of(parts):
            name = toolkit.name.removeprefix(TOOLKIT)
            made = _Made(parts, compose(era, parts, toolkit.separator, name))
            self._made[toolkit.name, era] = made
        return made.composed
