"""Clients of 2026-07-28 on top of `tests.fakes.house`: bodies, headers, and what comes back."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dyno_agent.link import Channel
from gateway.eras.headers import METHOD_HEADER, NAME_HEADER, NAMED, REVISION_HEADER
from gateway.eras.modern import (
    CAPABILITIES_KEY,
    LOG_LEVEL_KEY,
    REVISION,
    REVISION_KEY,
    SUBSCRIPTION_KEY,
)
from gateway.registry.servers import ServerDefinition
from gateway.sessions.keys import SessionKeys
from gateway.sessions.live import SharedLive
from tests.fakes.house import BOUND, Agent, House, Stream, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.launchers.base import LaunchOrder

LISTEN = "subscriptions/listen"

DONE = {"resultType": "complete", "content": []}


def serving(name: str = "patient", **keys: Any) -> ServerDefinition:
    """A modern server whose child the test plays; no throw-away run disturbs."""
    given = {"era": "modern", "catalogue": False, **keys}
    return ServerDefinition(name=name, command="never-run", **given)


MODERN = (serving(), serving("other"))


def asks(
    request_id: int | str,
    method: str = "tools/call",
    *,
    token: int | str | None = None,
    level: str | None = None,
    **params: Any,
) -> dict[str, Any]:
    """A request's body; a `tools/call` without a name is one of `work`."""
    meta: dict[str, Any] = {REVISION_KEY: REVISION, CAPABILITIES_KEY: {}}
    if token is not None:
        meta["progressToken"] = token
    if level is not None:
        meta[LOG_LEVEL_KEY] = level
    named = {"name": "work", **params} if method == "tools/call" else params
    return {
        "jsonrpc": "2.0",
        "id": request_id,
        "method": method,
        "params": {**named, "_meta": meta},
    }


def headers_of(body: Any, **others: str) -> dict[str, str]:
    """What has to repeat a body, and others; an underscore stands for a dash."""
    given = {REVISION_HEADER: REVISION}
    if isinstance(body, dict) and isinstance(body.get("method"), str):
        given[METHOD_HEADER] = body["method"]
        name = body.get("params", {}).get(NAMED.get(body["method"], ""))
        if name is not None:
            given[NAME_HEADER] = name
    return given | {name.replace("_", "-"): value for name, value in others.items()}


@dataclass(frozen=True)
class Answer:
    """A whole response: its status, its headers, and its messages in order."""

    status: int
    headers: Any
    messages: list[Any]

    @property
    def only(self) -> Any:
        (message,) = self.messages
        return message

    @property
    def refused(self) -> tuple[int, int, str, Any]:
        """Status, code, reason and id of an error of the gateway's own."""
        error = self.only["error"]
        return self.status, error["code"], error["data"]["reason"], self.only["id"]


async def send(
    house: House, body: Any, *, path: str = "/servers/patient/mcp", **headers: str
) -> Answer:
    """POST a body and read its response to the end."""
    given = headers_of(body, **headers)
    async with (
        asyncio.timeout(BOUND),
        house.http.post(house.origin + path, json=body, headers=given) as response,
    ):
        if response.content_type == "text/event-stream":
            return Answer(response.status, response.headers, await Stream(response).rest())
        raw = await response.read()
        return Answer(response.status, response.headers, [json.loads(raw)] if raw else [])


def sending(
    house: House, body: Any, *, path: str = "/servers/patient/mcp", **headers: str
) -> asyncio.Task[Answer]:
    """POST a body meanwhile; cancelling the task hangs up."""
    return house.tasks.create_task(send(house, body, path=path, **headers))


async def answer_of(call: asyncio.Task[Answer]) -> Answer:
    async with asyncio.timeout(BOUND):
        return await call


@asynccontextmanager
async def streaming(
    house: House, body: Any, *, path: str = "/servers/patient/mcp", **headers: str
) -> AsyncIterator[Stream]:
    """POST a request whose answer shall be a stream; its head comes with the first event."""
    given = headers_of(body, **headers)
    async with house.http.post(house.origin + path, json=body, headers=given) as response:
        assert response.content_type == "text/event-stream", await response.text()
        yield Stream(response)


class Child:
    """The child of a played agent."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    async def reads(self) -> Any:
        """Return the next message that it is given."""
        return json.loads((await self.agent.receive()).payload)

    async def asked(self) -> Any:
        """Return the next request that it is given."""
        while "id" not in (read := await self.reads()):
            pass
        return read

    async def reads_many(self, count: int) -> list[Any]:
        return [await self.reads() for _ in range(count)]

    async def answers(self, request: Any, result: Any = DONE) -> None:
        await self.agent.say({"jsonrpc": "2.0", "id": request["id"], "result": result})

    async def fails(self, request: Any, code: int) -> None:
        error = {"code": code, "message": "no"}
        await self.agent.say({"jsonrpc": "2.0", "id": request["id"], "error": error})

    async def notifies(self, method: str, **params: Any) -> None:
        message = {"jsonrpc": "2.0", "method": f"notifications/{method}", "params": params}
        await self.agent.say(message)

    async def progresses(self, request: Any, progress: float) -> None:
        token = request["params"]["_meta"]["progressToken"]
        await self.notifies("progress", progressToken=token, progress=progress)

    async def tells(self, listen: Any, method: str = "tools/list_changed") -> None:
        """Send a notification of a subscription."""
        await self.notifies(method, _meta={SUBSCRIPTION_KEY: listen["id"]})

    async def spawned(self) -> None:
        await self.agent.send(Channel.EVENT, {"event": "spawned", "pid": 1})

    async def exits(self, code: int = 1) -> None:
        await self.agent.send(Channel.EVENT, {"event": "exited", "code": code})


async def next_order(house: House) -> LaunchOrder:
    async with asyncio.timeout(BOUND):
        return await house.launcher.orders.get()


async def next_child(house: House) -> Child:
    """Let the agent of the next launch join, and its child run."""
    child = Child(await house.join(await next_order(house)))
    await child.spawned()
    return child


async def warm(house: House, *, path: str = "/servers/patient/mcp", **headers: str) -> Child:
    """Return the child of a session that has answered one request."""
    call = sending(house, asks("warm"), path=path, **headers)
    child = await next_child(house)
    await child.answers(await child.reads())
    assert (await answer_of(call)).status == 200
    return child


def shared(
    house: House, server: str = "patient", principal: str = "test", handle: str = ""
) -> SharedLive:
    """What the gateway holds of a session."""
    live = house.manager.directory.get(SessionKeys.lease(server, principal, handle))
    assert isinstance(live, SharedLive)
    return live


async def quiet(live: SharedLive) -> None:
    """Wait until no request of a session is under way."""
    await eventually(lambda: not live.session._running())
