"""Looks up the tools of a request: in the catalogues, or at servers that have none."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.registry.servers import Registry, ServerDefinition
from gateway.sessions.catalogues import Catalogues
from gateway.sessions.visit import Refused
from gateway.v1.agents.errands import Errands
from gateway.v1.agents.request import Tool
from gateway.v1.agents.toolbox import Found, Toolbox, find
from gateway.v1.known import tools_of
from gateway.v1.problems import Problem

Listed = Mapping[str, Mapping[str, Any]]
"""Tools by name, as a child lists them."""


class Lookup:
    """Finds tools.

    Args:
        catalogues: what servers offer.
        registry: the servers.
    """

    def __init__(self, catalogues: Catalogues, registry: Registry) -> None:
        self._catalogues = catalogues
        self._registry = registry

    async def toolbox(self, wanted: Sequence[Tool], errands: Errands) -> Toolbox:
        """Return the tools of a request.

        Args:
            wanted: as the request has them.
            errands: to ask servers without a catalogue.

        Raises:
            Problem: one is missing, or cannot be looked up.
            GatewayError: a server could not be asked.
        """
        box = Toolbox()
        for number, (tool, found) in enumerate(zip(wanted, await self._all(wanted), strict=True)):
            where = f"tools[{number}]"
            listed = (await self._tools(found.server, errands)).get(found.tool)
            if listed is None:
                raise Problem(
                    400,
                    f"{where}.name: {found.server.name} offers no {found.tool[:128]!a}",
                    "invalid_request",
                    param=f"{where}.name",
                )
            box.add(tool, where, found, listed)
        return box

    async def _all(self, wanted: Sequence[Tool]) -> list[Found]:
        """Return what the tools of a request mean; wait for catalogues where that may help."""
        servers = self._registry.servers
        known = {server.name: tools_of(self._catalogues, server) for server in servers}
        unknown = [each for each in servers if each.catalogue and known[each.name] is None]
        try:
            return _find(wanted, servers, known)
        except Problem:
            if not unknown:
                raise
        async with asyncio.TaskGroup() as looks:
            for server in unknown:
                looks.create_task(self._settled(server), name=f"look at {server.name}")
        return _find(wanted, servers, known | {each.name: self._known(each) for each in unknown})

    async def _tools(self, server: ServerDefinition, errands: Errands) -> Listed:
        """Return the tools of a server; it is asked itself if it has no catalogue."""
        if not server.catalogue:
            try:
                return await errands.tools(server)
            except Refused as refused:
                raise Problem(502, f"{server.name}: {refused}", "server_failed") from refused
        if (known := self._known(server)) is None:
            await self._settled(server)
            known = self._known(server)
        if known is None:
            why = self._catalogues.standing(server)[1] or "it is being looked at"
            message = f"the tools of {server.name} are not known: {why}; try again"
            raise Problem(503, message, "not_ready", retry_after_s=5)
        return known

    def _known(self, server: ServerDefinition) -> Listed | None:
        return tools_of(self._catalogues, server)

    async def _settled(self, server: ServerDefinition) -> None:
        await self._catalogues.settled_chapter(server, "legacy")


def _find(
    wanted: Sequence[Tool], servers: Sequence[ServerDefinition], known: Mapping[str, Listed | None]
) -> list[Found]:
    def tools(server: ServerDefinition) -> Listed | None:
        return known[server.name]

    return [find(tool, f"tools[{number}]", servers, tools) for number, tool in enumerate(wanted)]
