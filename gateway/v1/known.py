"""What is known of servers without asking them: their tools, as the catalogue has them."""

from collections.abc import Mapping
from typing import Any

from gateway.eras.catalogue import Chapter
from gateway.registry.servers import ServerDefinition
from gateway.sessions.catalogues import Catalogues


def chapter_of(catalogues: Catalogues, server: ServerDefinition) -> Chapter | None:
    """Return what a server answers, in whichever era that is known; None if it is not."""
    legacy = catalogues.chapter(server, "legacy")
    return catalogues.chapter(server, "modern") if legacy is None else legacy


def tools_of(
    catalogues: Catalogues, server: ServerDefinition
) -> dict[str, Mapping[str, Any]] | None:
    """Return the tools of a server by name, as its child lists them; None if nobody knows them."""
    chapter = chapter_of(catalogues, server)
    if chapter is None:
        return None
    listed = ((each["name"], chapter.tool(each["name"])) for each in chapter.tools)
    return {name: tool for name, tool in listed if tool is not None}
