"""Runs the tools of one run: a session for each server, opened at its first call.

It ends with the run. A call is made once. What goes wrong with it (no room, no boot, no answer, the
tool's own error) is its result, for the model to read.
"""

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from msgspec import Raw

from dyno_agent.link import Face
from gateway import patience
from gateway.eras.catalogue import Era, Unlearnable
from gateway.errors import GatewayError, SessionEnded, UnsupportedRevision
from gateway.registry.servers import ServerDefinition
from gateway.sessions.catalogues import Catalogues
from gateway.sessions.manager import Manager
from gateway.sessions.record import Reason
from gateway.sessions.visit import Refused, Visit, begin
from gateway.store.base import StoreAway

CLIENT: Final = "/v1/agents/heroku"
"""What a run calls itself as a client."""

_Where = tuple[str, str | None, float]
"""What tells sessions of a run apart: server, size, lifetime."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a call.

    Attributes:
        shown: a JSON object with `content` and `isError`, for the client.
        text: for the model.
    """

    shown: bytes = field(repr=False)
    text: str = field(repr=False)


NULL: Final = Raw(b"null")


class _Returned(msgspec.Struct):
    content: list[Raw] = []
    isError: bool = False  # noqa: N815 - the specification's spelling
    structuredContent: Raw = NULL  # noqa: N815
    resultType: str = "complete"  # noqa: N815


class _Block(msgspec.Struct):
    type: str = ""
    text: str | None = None


_RETURNED = msgspec.json.Decoder(_Returned)
_BLOCK = msgspec.json.Decoder(_Block)
_LISTED = msgspec.json.Decoder(dict[str, Any])

_UNREADABLE = (msgspec.DecodeError, RecursionError)


class Errands:
    """The sessions of one run. Whoever made it ends it.

    Args:
        manager: makes them.
        catalogues: say which era their children speak.
        principal: whose they are.
    """

    def __init__(self, manager: Manager, catalogues: Catalogues, principal: str) -> None:
        self._manager = manager
        self._catalogues = catalogues
        self._principal = principal
        self._visits: dict[_Where, Visit] = {}
        self._doors: defaultdict[_Where, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def call(
        self, server: ServerDefinition, tool: str, arguments: Mapping[str, Any]
    ) -> Result:
        """Run a tool; being cancelled takes it back. Raises nothing else."""
        patience.begin()  # that of the request is over by now
        try:
            visit = await self._visit(server)
            raw = await visit.ask("tools/call", {"name": tool, "arguments": arguments})
        except (Refused, GatewayError) as error:
            return failed(f"{server.name} did not run {tool}: {error}")
        except StoreAway:
            away = "what the gateway processes share is away just now"
            return failed(f"{server.name} did not run {tool}: {away}")
        return _read(raw, tool)

    async def tools(self, server: ServerDefinition) -> dict[str, Mapping[str, Any]]:
        """Return the tools of a server without a catalogue, by name.

        Raises:
            Refused: it has answered with an error.
            GatewayError: it could not be asked.
        """
        patience.begin()
        visit = await self._visit(server)
        try:
            listed = _LISTED.decode(await visit.list("tools/list")).get("tools")
        except (Unlearnable, *_UNREADABLE) as error:
            raise SessionEnded(f"the tools of {server.name} cannot be read: {error}") from error
        found = [each for each in listed if isinstance(each, dict)] if listed else []
        return {each["name"]: each for each in found if isinstance(each.get("name"), str)}

    def end(self, reason: Reason) -> None:
        """End all sessions; their dynos go."""
        for visit in self._visits.values():
            visit.end(reason, SessionEnded("the run is over"))
        self._visits.clear()

    async def _visit(self, server: ServerDefinition) -> Visit:
        """Return the session with a server, which may have to be opened."""
        where = (server.name, server.size, server.max_lifetime)
        async with self._doors[where]:
            visit = self._visits.get(where)
            if visit is not None and not visit.live.record.over:
                return visit
            await self._catalogues.ready(server, "legacy")
            era, face = self._era(server)
            visit = await begin(self._manager, server, era, self._principal, CLIENT)
            self._visits[where] = visit
            try:
                visit.launch(face)
                await visit.introduce()
            except BaseException:
                visit.end(Reason.INITIALIZE_FAILED, SessionEnded("it was not opened"))
                raise
            return visit

    def _era(self, server: ServerDefinition) -> tuple[Era, Face]:
        """Return the era to speak, and what the child is to show: its own, if it may be."""
        try:
            if self._catalogues.face(server, "legacy") == "plain":
                return "legacy", "plain"
        except UnsupportedRevision:
            pass  # it is not translated, so it speaks the other one itself
        return "modern", self._catalogues.face(server, "modern")


def failed(message: str) -> Result:
    """Return the result of a call that was not run, or has failed."""
    blocks = [{"type": "text", "text": message}]
    return Result(msgspec.json.encode({"content": blocks, "isError": True}), f"Error: {message}")


def _read(raw: Raw, tool: str) -> Result:
    try:
        returned = _RETURNED.decode(raw)
        blocks = [_BLOCK.decode(block) for block in returned.content]
    except _UNREADABLE as error:
        return failed(f"what {tool} has returned is no result of a tool: {error}")
    if returned.resultType != "complete":
        return failed(f"{tool} wants to ask its client something, and here is nobody to answer")
    content = returned.content
    if not content and returned.structuredContent != NULL:
        said = bytes(returned.structuredContent).decode()
        content = [Raw(msgspec.json.encode({"type": "text", "text": said}))]
        blocks = [_Block("text", said)]
    shown = msgspec.json.encode({"content": content, "isError": returned.isError})
    texts = [_shown(block, len(part)) for block, part in zip(blocks, content, strict=True)]
    text = "\n".join(texts) or "(nothing)"
    return Result(shown, f"Error: {text}" if returned.isError else text)


def _shown(block: _Block, size: int) -> str:
    """Return a block as the model reads it, which may not see pictures."""
    return block.text if block.text is not None else f"[{block.type[:32]}, {size} bytes]"
