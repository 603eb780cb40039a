"""A gateway in this process with a scripted model behind it, and dynos that are played."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.edge.eras_house import Child, Program, Stage, definition, stage
from tests.fakes import inference
from tests.fakes.house import BOUND, House, eventually, opened
from tests.fakes.inference import KEY, Inference
from tests.v1.documented import events

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import aiohttp

    from gateway.registry.servers import ServerDefinition
    from tests.fakes.inference import Line

ECHO = {
    "name": "echo",
    "description": "says it again",
    "inputSchema": {"type": "object", "properties": {"text": {"type": "string"}}},
}


def echoes(request: Any) -> Any:
    said = json.dumps(request["params"]["arguments"], sort_keys=True)
    return {"content": [{"type": "text", "text": said}]}


def program(*tools: Any, **answers: Any) -> Program:
    """A server with these tools, `echo` without any; answers are by method, `_` for `/`."""
    listed = {"tools/list": {"tools": list(tools or (ECHO,))}, "tools/call": echoes}
    silent = frozenset(answers.pop("silent", ()))
    named = {name.replace("_", "/"): answer for name, answer in answers.items()}
    return Program(answers={**listed, **named}, silent=silent)


@dataclass
class Scene:
    """A house whose dynos play programs by themselves.

    Attributes:
        played: the children of clients' sessions, those of throw-away runs aside.
    """

    house: House
    model: Inference
    stage: Stage
    played: list[Child] = field(default_factory=list)
    looked: int = 0

    async def play(self, programs: Mapping[str, Program]) -> None:
        while True:
            order = await self.house.launcher.orders.get()
            child = await self.stage.child_of(order, programs[order.server])
            if self.looked > 0:
                self.looked -= 1
            else:
                self.played.append(child)

    @asynccontextmanager
    async def asking(self, body: Any, **headers: str) -> AsyncIterator[aiohttp.ClientResponse]:
        url = f"{self.house.origin}/v1/agents/heroku"
        async with (
            asyncio.timeout(BOUND),
            self.house.http.post(url, json=body, headers=headers) as r,
        ):
            yield r

    async def asks(self, body: Any) -> list[Any]:
        """Run an agent to its end; return the data of its events, the last one aside."""
        async with self.asking(body) as response:
            raw = await response.text()
            assert response.status == 200, raw
        *told, last = events(raw)
        assert last == ("done", "[DONE]")
        return [json.loads(data) for _, data in told]

    async def is_refused(self, body: Any) -> tuple[int, Any]:
        async with self.asking(body) as response:
            error = (await response.json())["error"]
            assert set(error) == {"message", "type", "param", "code"}
            return response.status, error

    async def gone(self) -> None:
        """Wait until no session is left."""
        await eventually(lambda: self.house.manager.sessions == 0)


@asynccontextmanager
async def playing(
    *script: Line,
    programs: Mapping[str, Program] | None = None,
    servers: Any = None,
    settled: bool = True,
    **more: Any,
) -> AsyncIterator[Scene]:
    """Serve a gateway whose servers were all looked at.

    Args:
        script: of the model.
        programs: of the servers, by name.
        servers: their definitions; usual ones without.
        settled: begin once all were looked at.
        more: settings.
    """
    programs = {"py": program()} if programs is None else programs
    defined: tuple[ServerDefinition, ...] = servers or tuple(map(definition, programs))
    async with inference.playing(*script) as model:
        known = {"inference_url": model.url, "inference_key": KEY, **more}
        async with opened(None, None, defined, **known) as house, stage(house) as staged:
            scene = Scene(house, model, staged, looked=sum(each.catalogue for each in defined))
            async with asyncio.TaskGroup() as tasks:
                playing = tasks.create_task(scene.play(programs))
                try:
                    if settled:
                        await eventually(lambda: scene.looked == 0)
                        await scene.gone()
                    yield scene
                finally:
                    playing.cancel()


def wants(*tools: Any, **more: Any) -> dict[str, Any]:
    """A request; a tool may be a name."""
    named = [{"type": "mcp", "name": each} if isinstance(each, str) else each for each in tools]
    return {"model": "m", "messages": [{"role": "user", "content": "?"}], "tools": named, **more}


def content(event: Any) -> Any:
    return event["choices"][0]["message"]["content"]


def result(event: Any) -> Any:
    """The JSON that a client finds behind the first words of a `tool.completion`."""
    assert event["object"] == "tool.completion"
    name = event["choices"][0]["message"]["name"]
    before, _, after = content(event).partition("returned result: ")
    assert before == f"Tool '{name}' "
    return json.loads(after)
