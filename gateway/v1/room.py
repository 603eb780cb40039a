"""Composition of these endpoints."""

from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from aiohttp import web

from gateway.registry.servers import Registry
from gateway.sessions.catalogues import Catalogues
from gateway.sessions.manager import Manager
from gateway.v1.agents.endpoint import Agents
from gateway.v1.answering import Admit
from gateway.v1.servers import Servers

if TYPE_CHECKING:
    from gateway.v1.agents.model import Model


@dataclass(frozen=True, slots=True)
class Inference:
    """Where the model is.

    Attributes:
        base_url: of its server, `/v1` included; None if there is none.
        key: for it; empty if it wants none.
        model: of requests that name none.
    """

    base_url: str | None = None
    key: str = field(repr=False, default="")
    model: str = ""


class V1:
    """The endpoints below `/v1`. Use it as an async context manager, inside the catalogues.

    Args:
        manager: the sessions.
        catalogues: what servers offer.
        registry: the servers.
        admit: lets clients in.
        inference: where the model is.
    """

    def __init__(
        self,
        manager: Manager,
        catalogues: Catalogues,
        registry: Registry,
        admit: Admit,
        *,
        inference: Inference,
    ) -> None:
        self._servers = Servers(manager, catalogues, registry, admit)
        self._agents = Agents(
            manager,
            catalogues,
            registry,
            admit,
            model=_model(inference),
            default=inference.model,
        )
        self._open = AsyncExitStack()

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of this room."""
        return [*self._servers.routes(), *self._agents.routes()]

    async def __aenter__(self) -> Self:
        """Begin to note since when servers are there."""
        self._open.push_async_callback(self._agents.aclose)
        await self._open.enter_async_context(self._servers.ages)
        return self

    async def __aexit__(self, *failure: object) -> None:
        """Let go of what is open."""
        await self._open.aclose()


def _model(inference: Inference) -> "Model | None":
    if inference.base_url is None:
        return None
    from gateway.v1.agents.model import Model  # noqa: PLC0415 - its client takes a second to import

    return Model(inference.base_url, inference.key)
