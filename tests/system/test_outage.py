"""A gateway that is killed and comes back: clients notice a pause, and nothing else.

SIGKILL in the middle of things, then the next process of the same deployment. First unmodified SDK
clients, which know nothing of it; then raw HTTP, for what only the wire can show. The durations of
the first part are real ones: a client that was cut off waits ten seconds (`retry`) between its two
tries. The longest test comes first, so that two workers share the file evenly.
"""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from mcp.types import ElicitResult

from tests.system.python_sdk import Progress, call, connected, text_of
from tests.system.talking import (
    BOUND,
    PLAIN,
    PUPPET,
    RESUMES,
    Event,
    Stream,
    Talk,
    http_for,
    open_session,
    parent_of,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from mcp.client import ClientRequestContext
    from mcp.types import ElicitRequestParams

    from tests.system.conftest import GatewayProcess

pytestmark = pytest.mark.timeout(150)

OUTAGE_S = 12.0
"""From the kill to the start of the next process: a client's first try fails, its second one, 20 s
after the kill, does not."""

LONG_CALL_S = 60
STEP_S = 1.0

CLIENT_BOUND = 120.0
"""Seconds for a client's whole conversation, outage included."""


def numbers(count: int) -> list[float]:
    return [float(number) for number in range(1, count + 1)]


async def outage(gateway: GatewayProcess, seconds: float = 0.0) -> None:
    """Kill the gateway and start the next process so much later."""
    await gateway.kill()
    await asyncio.sleep(seconds)
    await gateway.restart()


# -- SDK clients --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What a client saw: its server's pid before and after, the slow call's steps and result."""

    before: str
    steps: list[float]
    result: str
    after: str


async def converse(gateway: GatewayProcess, mode: str, steps: int, progress: Progress) -> Seen:
    """Have one conversation by the Python SDK."""
    async with connected(gateway, mode=mode, bound=CLIENT_BOUND) as client:
        before = await call(client, "pid")
        arguments = {"steps": steps, "seconds": STEP_S}
        result = await client.call_tool("slow", arguments, progress_callback=progress)
        return Seen(before, progress.steps, text_of(result), await call(client, "pid"))


async def test_one_minute_call_survives_a_kill_in_its_middle(
    make_gateway: Callable[..., GatewayProcess], fixture_server: dict[str, Any]
) -> None:
    progress = Progress(LONG_CALL_S // 2)
    async with make_gateway({"everything": fixture_server}) as gateway:
        async with asyncio.timeout(CLIENT_BOUND), asyncio.TaskGroup() as group:
            conversation = group.create_task(converse(gateway, "legacy", LONG_CALL_S, progress))
            await progress.begun.wait()
            await outage(gateway)
        seen = conversation.result()
    assert seen == Seen(seen.before, numbers(LONG_CALL_S), f"{LONG_CALL_S} steps", seen.before)


async def test_elicitation_that_an_sdk_client_answers_after_the_outage_reaches_the_server(
    make_gateway: Callable[..., GatewayProcess], fixture_server: dict[str, Any]
) -> None:
    asked: list[str] = []
    async with make_gateway({"everything": fixture_server}) as gateway:

        async def answer_late(
            context: ClientRequestContext, params: ElicitRequestParams
        ) -> ElicitResult:
            asked.append(params.message)
            await outage(gateway)
            return ElicitResult(action="accept", content={"answer": "blue"})

        async with connected(gateway, elicitation_callback=answer_late) as client:
            answer = json.loads(await call(client, "ask", question="Colour?"))
    assert (asked, answer) == (["Colour?"], {"action": "accept", "content": {"answer": "blue"}})


async def test_unmodified_sdk_clients_survive_an_outage_in_a_call(
    make_gateway: Callable[..., GatewayProcess],
    fixture_server: dict[str, Any],
    node: Path,
    node_modules: Path,
) -> None:
    """Three at a time, as an outage takes half a minute: both kinds of Python's, and TypeScript's.

    Each has every step once and in order, its result, and the same server process afterwards. The
    era of 2026 has no way to come back for an answer, so the server is not offered in translation:
    `auto` finds the handshake.
    """
    count, early = 25, 3
    legacy, auto, typescript = Progress(early), Progress(early), Progress(early)
    script = node_modules.parent / "outage.mjs"
    server = {**fixture_server, "translate": False}
    async with make_gateway({"everything": server}) as gateway:
        async with asyncio.timeout(CLIENT_BOUND), asyncio.TaskGroup() as group:
            conversations = {
                "legacy": group.create_task(converse(gateway, "legacy", count, legacy)),
                "auto": group.create_task(converse(gateway, "auto", count, auto)),
                "typescript": group.create_task(
                    converse_in_typescript(gateway, (node, script), count, typescript)
                ),
            }
            for progress in (legacy, auto, typescript):
                await progress.begun.wait()
            await outage(gateway, OUTAGE_S)
        seen = {client: conversation.result() for client, conversation in conversations.items()}
    pids = {client: one.before for client, one in seen.items()}
    assert seen == {
        client: Seen(pid, numbers(count), f"{count} steps", pid) for client, pid in pids.items()
    }


async def test_process_that_requests_share_outlives_the_gateway(
    make_gateway: Callable[..., GatewayProcess], fixture_server: dict[str, Any]
) -> None:
    """A client without a session finds the same process again, by who it is."""
    modern = {"era": "modern", "catalogue": False}
    async with make_gateway({"everything": fixture_server}, defaults=modern) as gateway:
        async with connected(gateway, mode="2026-07-28") as client:
            before = await call(client, "pid")
        await outage(gateway)
        async with connected(gateway, mode="2026-07-28") as client:
            assert await call(client, "pid") == before


async def converse_in_typescript(
    gateway: GatewayProcess, command: tuple[Path, Path], count: int, progress: Progress
) -> Seen:
    """Have the same conversation by the TypeScript SDK."""
    plan = {
        "who": {"name": "pid", "arguments": {}},
        "slow": {"name": "slow", "arguments": {"steps": count, "seconds": STEP_S}},
    }
    last: dict[str, str] = {}
    async with running_client(gateway, command, plan) as said:
        async for document in said:
            if "step" in document:
                await progress(document["step"], None, None)
            else:
                last = document
    return Seen(steps=progress.steps, **last)


@asynccontextmanager
async def running_client(
    gateway: GatewayProcess, command: tuple[Path, Path], plan: dict[str, Any]
) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """Run outage.mjs; what it says, as it says it. It has to end well."""
    process = await asyncio.create_subprocess_exec(
        *command,
        json.dumps(plan),
        env={"PATH": os.environ["PATH"], "MCP_URL": gateway.url(), "MCP_KEY": gateway.key},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    lines = process.stdout
    try:
        async with asyncio.timeout(CLIENT_BOUND):
            yield (json.loads(line) async for line in lines)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


# -- raw HTTP: clients that come back -----------------------------------------------------------


async def test_stream_of_a_call_continues_after_the_last_event_that_was_seen(
    make_gateway: Callable[..., GatewayProcess],
) -> None:
    """Five steps were sent, the client has three: it gets the rest once, then what is new."""
    async with make_gateway({"puppet": PUPPET}) as gateway, http_for(gateway) as http:
        talk = await open_session(http, gateway)
        async with talk.calling(1, "hold") as response:
            await talk.until_held(1)
            await talk.call(2, "step", id=1, count=5)
            seen = (await Stream(response).take(5))[2]
            assert seen.message["params"]["progress"] == 3
            await outage(gateway)
        async with talk.listening(after=seen.identity) as stream:
            await talk.call(3, "step", id=1, count=2)
            await talk.call(4, "release")
            *progress, answer = await stream.rest()
        assert [message["params"]["progress"] for message in progress] == [4, 5, 6, 7]
        assert (answer["id"], answer["result"]) == (1, {"released": 1})


async def test_stream_that_had_only_begun_continues_from_its_first_message(
    make_gateway: Callable[..., GatewayProcess],
) -> None:
    async with make_gateway({"puppet": PUPPET}) as gateway, http_for(gateway) as http:
        talk = await open_session(http, gateway)
        async with talk.calling(1, "hold") as response:
            primed = await Stream(response).next()
            assert primed.message is None
            await gateway.kill()
        await gateway.restart()
        async with talk.listening(after=primed.identity) as stream:
            await talk.call(2, "step", id=1, count=1)
            await talk.call(3, "release")
            progress, answer = await stream.rest()
        assert (progress["params"]["progress"], answer["id"]) == (1, 1)


FLOOD, FLOOD_PIECE = 2000, 4096
"""Messages and their bytes: much of it is under way at a kill in the middle, in sockets, in the
gateway, in the agent and in the pipe, yet no more than the agent keeps for a client."""


async def flooded(
    gateway: GatewayProcess, talk: Talk, folder: Path, *, progress: bool
) -> tuple[list[int], list[int]]:
    """Kill the gateway in a flood; return its numbers before the kill and after the return."""
    arguments = {"count": FLOOD, "size": FLOOD_PIECE, "counter": str(folder / "counter")}
    async with talk.calling(1, "flood", progress=progress, **arguments) as response:
        stream = Stream(response)
        seen = await stream.take(FLOOD // 4)
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            group.create_task(gateway.kill())
            seen += await until_cut(stream)
    await gateway.restart()
    async with talk.listening(after=seen[-1].identity) as stream:
        *rest, answer = await stream.rest()
    assert answer["id"] == 1
    assert seen[-1].message["params"]["number"] < FLOOD
    before = [event.message["params"]["number"] for event in seen]
    return before, [message["params"]["number"] for message in rest]


async def test_progress_that_is_cut_in_a_flood_continues_without_gap_or_repetition(
    make_gateway: Callable[..., GatewayProcess], tmp_path: Path
) -> None:
    async with make_gateway({"puppet": PUPPET}) as gateway, http_for(gateway) as http:
        talk = await open_session(http, gateway)
        before, after = await flooded(gateway, talk, tmp_path, progress=True)
    assert before + after == list(range(1, FLOOD + 1))


async def test_messages_of_no_call_that_are_cut_in_a_flood_continue_without_repetition_in_order(
    make_gateway: Callable[..., GatewayProcess], tmp_path: Path
) -> None:
    """Gaps are allowed: while the client is away there is no stream, and few wait for one."""
    async with make_gateway({"puppet": PUPPET}) as gateway, http_for(gateway) as http:
        talk = await open_session(http, gateway)
        before, after = await flooded(gateway, talk, tmp_path, progress=False)
    assert before == list(range(1, len(before) + 1))
    assert [number for number in after if number <= before[-1]] == []
    assert after == sorted(set(after))


async def until_cut(stream: Stream) -> list[Event]:
    """Return the events that still come out of a connection that breaks."""
    found: list[Event] = []
    try:
        while True:
            found += await stream.take(1)
    except aiohttp.ClientError:
        return found


async def test_general_stream_continues_after_the_last_event_that_was_seen(
    make_gateway: Callable[..., GatewayProcess],
) -> None:
    async with make_gateway({"puppet": PUPPET}) as gateway, http_for(gateway) as http:
        talk = await open_session(http, gateway)
        async with talk.listening() as stream:
            await talk.call(1, "announce", count=5)
            seen = (await stream.take(5))[2]
            await outage(gateway)
        assert seen.message["params"]["number"] == 3
        async with talk.listening(after=seen.identity) as stream:
            heard = [event.message["params"]["number"] for event in await stream.take(2)]
            await talk.call(2, "announce", count=1)
            heard += [event.message["params"]["number"] for event in await stream.take(1)]
        assert heard == [4, 5, 6]


async def test_answer_that_was_due_during_the_outage_arrives(
    make_gateway: Callable[..., GatewayProcess], tmp_path: Path
) -> None:
    told = tmp_path / "told"
    async with make_gateway({"puppet": PUPPET}) as gateway, http_for(gateway) as http:
        talk = await open_session(http, gateway)
        async with talk.calling(1, "until", file=str(told)) as response:
            primed = await Stream(response).next()
            await gateway.kill()
        told.touch()
        await gateway.restart()
        async with talk.listening(after=primed.identity) as stream:
            (answer,) = await stream.rest()
        assert answer == {"jsonrpc": "2.0", "id": 1, "result": {"found": True}}


@pytest.mark.parametrize("method", ["elicitation/create", "sampling/createMessage"])
@pytest.mark.parametrize("confirmed", [True, False], ids=["confirmed", "fresh"])
async def test_answer_to_a_question_that_was_open_during_the_outage_reaches_the_child(
    make_gateway: Callable[..., GatewayProcess], method: str, confirmed: bool
) -> None:
    """Whether or not the agent knew before the kill that its client has the question."""
    async with make_gateway({"puppet": PUPPET}) as gateway, http_for(gateway) as http:
        talk = await open_session(http, gateway)
        async with talk.calling(1, "ask", method=method, params={}) as response:
            (question,) = await Stream(response).take(1)
            assert question.message["method"] == method
            if confirmed:  # the next message to the agent carries the acknowledgement
                await talk.state(2)
            await outage(gateway)
        answer = {"id": question.message["id"], "result": {"said": "blue"}}
        async with talk.post(answer) as response:
            assert response.status == 202, await response.text()
        async with talk.listening(after=question.identity) as stream:
            (result,) = await stream.rest()
        assert (result["id"], result["result"]) == (1, {"reply": {"said": "blue"}})


async def test_question_that_was_open_during_the_outage_takes_one_answer_only(
    make_gateway: Callable[..., GatewayProcess],
) -> None:
    async with make_gateway({"puppet": PUPPET}) as gateway, http_for(gateway) as http:
        talk = await open_session(http, gateway)
        async with talk.calling(1, "ask", method="elicitation/create", params={}) as response:
            (question,) = await Stream(response).take(1)
            await outage(gateway)
        answer = {"id": question.message["id"], "result": {}}
        statuses = []
        for _ in range(2):
            async with talk.post(answer) as response:
                statuses.append(response.status)
        assert statuses == [202, 400]


@pytest.mark.parametrize("revision", [RESUMES, PLAIN])
async def test_notifications_accepted_right_before_the_kill_reach_the_child_exactly_once(
    make_gateway: Callable[..., GatewayProcess], revision: str
) -> None:
    async with make_gateway({"puppet": PUPPET}) as gateway, http_for(gateway) as http:
        talk = await open_session(http, gateway, revision)
        for number in range(50):
            await talk.notify(number)
        await outage(gateway)
        assert (await talk.state(1))["heard"] == list(range(50))


async def test_notification_is_not_accepted_before_the_agent_has_it(
    make_gateway: Callable[..., GatewayProcess],
) -> None:
    async with make_gateway({"puppet": PUPPET}) as gateway, http_for(gateway) as http:
        talk = await open_session(http, gateway)
        agent = parent_of(await talk.child(1))
        agent.suspend()
        try:
            async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
                accepted = group.create_task(was_accepted(talk))
                for _ in range(5):  # what was sent before these is at the gateway
                    await gateway.health()
                await gateway.kill()
            assert accepted.result() is False
        finally:
            agent.resume()


async def was_accepted(talk: Talk) -> bool:
    """Send a notification; False when its connection breaks."""
    try:
        await talk.notify(1)
    except aiohttp.ClientError:
        return False
    return True


# -- raw HTTP: clients that do not come back ----------------------------------------------------


async def test_running_request_of_an_older_revision_fails_with_the_kill_and_its_session_goes_on(
    make_gateway: Callable[..., GatewayProcess],
) -> None:
    async with make_gateway({"puppet": PUPPET}) as gateway, http_for(gateway) as http:
        talk = await open_session(http, gateway, PLAIN)
        child = await talk.child(1)
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            running = group.create_task(failed(talk, 2))
            await talk.until_held(2)
            await gateway.kill()
            assert isinstance(await running, aiohttp.ClientError)
        await gateway.restart()
        assert await talk.child(3) == child


async def failed(talk: Talk, request: int) -> Exception | None:
    """Make a call that is held, and return how its connection ended."""
    try:
        await talk.call(request, "hold")
    except aiohttp.ClientError as error:
        return error
    return None


async def test_request_of_an_older_revision_that_is_sent_again_after_the_kill_is_made_once(
    make_gateway: Callable[..., GatewayProcess],
) -> None:
    async with make_gateway({"puppet": PUPPET}) as gateway, http_for(gateway) as http:
        talk = await open_session(http, gateway, PLAIN)
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            running = group.create_task(failed(talk, 2))
            await talk.until_held(2)
            await outage(gateway)
            await running
            again = group.create_task(talk.call(2, "hold"))
            released = await talk.call(3, "release")
        assert released["result"] == {"released": [2]}
        assert again.result() == {"jsonrpc": "2.0", "id": 2, "result": {"released": 2}}
