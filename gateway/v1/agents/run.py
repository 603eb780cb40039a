"""One run: does what the loop says next, and tells what happens as events."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from msgspec import Raw

import dyno_agent
from gateway.sessions.manager import Manager
from gateway.v1.agents import request
from gateway.v1.agents.errands import Errands, Result, failed
from gateway.v1.agents.frames import Frames
from gateway.v1.agents.loop import Answer, Ask, Loop, Perform, Refuse, Step, Stop, Tell
from gateway.v1.agents.toolbox import Toolbox
from gateway.v1.problems import Problem

if TYPE_CHECKING:
    from gateway.v1.agents.model import Model

AT_ONCE: Final = 8
"""Calls of one run that are under way at the same time."""

FINGERPRINT: Final = f"rendezvous-{dyno_agent.__version__}"

Put = Callable[[bytes], Awaitable[None]]
"""Takes an event for the client; waits while too many do."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was read and found well.

    Attributes:
        principal: whose it is.
        model: that is to be asked.
        messages: the conversation so far.
        tools: that the model may use.
        options: for the model's server.
    """

    principal: str
    model: str
    messages: Sequence[Raw] = field(repr=False)
    tools: Sequence[request.Tool]
    options: Mapping[str, Any]


class Run:
    """One run.

    Args:
        asked: what for.
        tools: that the model may use.
        errands: runs them.
        model: asks the model.
        manager: has the clock, and says when this process leaves.
        put: see `Put`.
    """

    def __init__(
        self,
        asked: Asked,
        tools: Toolbox,
        errands: Errands,
        *,
        model: "Model",
        manager: Manager,
        put: Put,
    ) -> None:
        self._tools = tools
        self._errands = errands
        self._model = model
        self._manager = manager
        self._put = put
        self._options: dict[str, Any] = {"model": asked.model, **asked.options}
        if tools.offers:
            self._options["tools"] = tools.functions
        self._loop = Loop(
            [request.renamed(message, tools.fit) for message in asked.messages],
            {name: offer.max_calls for name, offer in tools.offers.items()},
        )
        run_id = f"chatcmpl-{secrets.token_hex(11)[:21]}"  # as long as Heroku's
        self._frames = Frames(run_id, asked.model, FINGERPRINT, tools.shown)

    async def perform(self) -> None:
        """Run, to the model's answer; being cancelled takes back whatever is under way.

        Raises:
            Problem: there is no answer.
        """
        steps = self._loop.begin()
        while steps:
            calls = [step for step in steps if isinstance(step, Perform)]
            following: list[Step] = []
            for step in steps:
                following += await self._take(step)
            steps = following + await self._call_all(calls)

    async def _take(self, step: Step) -> list[Step]:
        match step:
            case Ask():
                return self._loop.answered(await self._ask(step))
            case Tell():
                await self._put(self._frames.said(step.answer, self._now))
            case Refuse():
                await self._tell(step, failed(step.why))
            case Stop():
                raise Problem(500, step.message, step.code)
            case Perform():
                pass  # all of an answer at once, after this
        return []

    async def _ask(self, step: Ask) -> Answer:
        if self._manager.draining:
            raise Problem(
                503, "this gateway process is shutting down; send the request again", "restarting"
            )
        return await self._model.ask(self._options, step.messages)

    async def _call_all(self, calls: Sequence[Perform]) -> list[Step]:
        """Run the calls of one answer, some at once; return what follows from the last result."""
        following: list[Step] = []
        room = asyncio.Semaphore(AT_ONCE)

        async def call(step: Perform) -> None:
            offer = self._tools.offers[step.call.name]
            async with room:
                arguments = offer.arguments(step.arguments)
                result = await self._errands.call(offer.server, offer.tool, arguments)
            await self._tell(step, result)
            following.extend(self._loop.returned(step.call.id, result.text))

        async with asyncio.TaskGroup() as tasks:
            for step in calls:
                tasks.create_task(call(step), name=f"call {step.call.name}")
        return following

    async def _tell(self, step: Perform | Refuse, result: Result) -> None:
        """Tell the client what came of a call."""
        call = step.call
        await self._put(self._frames.returned(call.id, call.name, result.shown, self._now))

    @property
    def _now(self) -> int:
        return int(self._manager.fleet.now())
