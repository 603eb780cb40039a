"""Several servers behind one URL, for clients of 2026-07-28."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Any

import pytest

from gateway.sessions import catalogues, dynos
from gateway.sessions import manager as sessions
from tests.edge.eras_house import DISCOVERED, definition
from tests.edge.modern_house import DONE, answer_of, asks, send, sending, shared, streaming
from tests.edge.toolkit_house import ECHO, PATH, SILENT, Troupe, offering, troupe
from tests.fakes.house import BOUND

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from tests.edge.eras_house import Child, Program

NAMES = ("alpha", "beta")

SERVERS = tuple(definition(name, era="modern") for name in NAMES)

MIRRORING = {
    "name": "mirroring",
    "inputSchema": {
        "type": "object",
        "properties": {"place": {"type": "string", "x-mcp-header": "Place"}},
    },
}

ODD = {"name": "größe 1", "inputSchema": {}}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogues, "AGAIN_S", (BOUND * 60,))
    monkeypatch.setattr(sessions, "TICK_S", 0.01)
    monkeypatch.setattr(sessions, "RETURN_S", 0.0)
    monkeypatch.setattr(dynos, "LEAVE_S", 0.5)


def speaking(*tools: Any, **more: Any) -> Program:
    """A server of this era."""
    listed = {"resultType": "complete", "tools": list(tools), "ttlMs": 0, "cacheScope": "private"}
    answers = {
        "tools/list": listed,
        "tools/call": DONE,
        "server/discover": DISCOVERED,
        **more.pop("answers", {}),
    }
    return offering(*tools, speaks=frozenset({"modern"}), answers=answers, **more)


def both(**more: Any) -> AbstractAsyncContextManager[Troupe]:
    programs: dict[str, Program | None] = {
        "alpha": speaking(ECHO, ODD, MIRRORING, **more),
        "beta": speaking(ECHO, **more),
    }
    return troupe(programs, SERVERS)


def calling(key: int | str, name: str, **params: Any) -> Any:
    return asks(key, name=name, arguments={}, **params)


async def asked(child: Child, times: int = 1) -> Any:
    """Return a call that a child was given."""
    return await child.takes("tools/call", times)


async def test_discovery_and_lists_are_answered_without_a_dyno() -> None:
    async with both() as played:
        told = await send(played.house, asks(1, "server/discover"), path=PATH)
        assert told.only["result"]["supportedVersions"] == ["2026-07-28"]
        listed = await send(played.house, asks(2, "tools/list"), path=PATH)
        names = [tool["name"] for tool in listed.only["result"]["tools"]]
        assert names == ["alpha/echo", "alpha/größe 1", "alpha/mirroring", "beta/echo"]
        assert played.booted == {}


async def test_call_boots_its_member_and_no_other() -> None:
    async with both() as played:
        answer = await send(played.house, calling(3, "beta/echo", extra=[1.50]), path=PATH)
        assert (answer.status, answer.only) == (200, {"jsonrpc": "2.0", "id": 3, "result": DONE})
        assert played.booted == {"beta": 1}
        params = (await asked(await played.run("beta")))["params"]
        assert (params["name"], params["extra"]) == ("echo", [1.50])


async def test_answer_names_no_session() -> None:
    async with both() as played:
        answer = await send(played.house, calling(3, "beta/echo"), path=PATH)
        assert "Mcp-Session-Id" not in answer.headers


async def test_name_that_no_header_can_hold_arrives() -> None:
    async with both() as played:
        wrapped = base64.b64encode("alpha/größe 1".encode()).decode()
        given = f"=?base64?{wrapped}?="
        answer = await send(played.house, calling(3, "alpha/größe 1"), path=PATH, Mcp_Name=given)
        assert answer.status == 200
        assert (await asked(await played.run("alpha")))["params"]["name"] == "größe 1"


@pytest.mark.parametrize("name", ["echo", "beta/echo", "alpha/other"])
async def test_header_that_names_another_tool_is_refused(name: str) -> None:
    async with both() as played:
        answer = await send(played.house, calling(3, "alpha/echo"), path=PATH, Mcp_Name=name)
        assert answer.refused == (400, -32020, "header_mismatch", 3)
        assert played.booted == {}


@pytest.mark.parametrize(
    ("body", "refused"),
    [
        (calling(3, "alpha/none"), (400, -32602, "unknown_item", 3)),
        (asks(3, "resources/read", uri="file:///x"), (400, -32602, "unknown_item", 3)),
        (asks(3, "logging/setLevel"), (404, -32601, "unknown_method", 3)),
        (asks(3, "tasks/get", taskId="x"), (404, -32601, "unknown_method", 3)),
        (asks(3, "tools/list", cursor="x"), (400, -32602, "stale_state", 3)),
    ],
)
async def test_request_that_is_nobodys_is_refused(body: Any, refused: Any) -> None:
    async with both() as played:
        assert (await send(played.house, body, path=PATH)).refused == refused
        assert played.booted == {}


async def test_mirrored_argument_is_checked_for_the_members_own_tool() -> None:
    async with both() as played:
        body = asks(3, name="alpha/mirroring", arguments={"place": "here"})
        wrong = await send(played.house, body, path=PATH, Mcp_Param_Place="there")
        assert wrong.refused[1] == -32020
        right = await send(played.house, body, path=PATH, Mcp_Param_Place="here")
        assert right.status == 200


async def test_handles_of_path_and_header_lead_to_dynos_of_their_own() -> None:
    async with both() as played:
        for number in range(2):
            for path, headers in (
                ("/toolkits/all/handles/one/mcp", {}),
                ("/toolkit/handles/two/mcp", {}),
                (PATH, {"Rendezvous_Handle": "two"}),
                (PATH, {}),
            ):
                answer = await send(
                    played.house, calling(number, "alpha/echo"), path=path, **headers
                )
                assert answer.status == 200
        assert played.booted == {"alpha": 3}
        assert shared(played.house, "alpha", handle="two").record.calls == 4


async def test_state_of_a_question_is_brought_back_to_the_member_that_asked() -> None:
    def state(of: str) -> Any:
        def reply(request: Any) -> Any:
            given = request["params"].get("requestState")
            if given is None:
                return {"resultType": "input_required", "requestState": of, "inputRequests": {}}
            return {"resultType": "complete", "content": [], "given": given}

        return reply

    programs: dict[str, Program | None] = {
        name: speaking(ECHO, answers={"tools/call": state(name)}) for name in NAMES
    }
    async with troupe(programs, SERVERS) as played:
        states = {}
        for name in NAMES:
            answer = await send(played.house, calling(1, f"{name}/echo"), path=PATH)
            states[name] = answer.only["result"]["requestState"]
        for name in reversed(NAMES):
            body = calling(2, f"{name}/echo", requestState=states[name], inputResponses={})
            answer = await send(played.house, body, path=PATH)
            assert answer.only["result"]["given"] == name
        assert played.booted == {"alpha": 1, "beta": 1}


async def test_state_of_one_member_is_refused_by_another() -> None:
    asking = {"resultType": "input_required", "requestState": "s", "inputRequests": {}}
    programs: dict[str, Program | None] = {
        name: speaking(ECHO, answers={"tools/call": asking}) for name in NAMES
    }
    async with troupe(programs, SERVERS) as played:
        answer = await send(played.house, calling(1, "alpha/echo"), path=PATH)
        given = answer.only["result"]["requestState"]
        body = calling(2, "beta/echo", requestState=given, inputResponses={})
        assert (await send(played.house, body, path=PATH)).refused[2] == "stale_state"


async def test_progress_comes_on_the_calls_stream_as_the_client_knows_it() -> None:
    async with both(silent=SILENT) as played:
        body = calling(5, "alpha/echo", token="t")
        asking = sending(played.house, body, path=PATH)
        child = await played.run("alpha")
        request = await asked(child)
        token = request["params"]["_meta"]["progressToken"]
        params = {"progressToken": token, "progress": 1}
        note = {"jsonrpc": "2.0", "method": "notifications/progress", "params": params}
        await child.agent.say(note)
        await child.agent.say({"jsonrpc": "2.0", "id": request["id"], "result": DONE})
        told = (await answer_of(asking)).messages
        assert {**note, "params": {"progressToken": "t", "progress": 1}} in told
        assert told[-1] == {"jsonrpc": "2.0", "id": 5, "result": DONE}


async def test_hanging_up_cancels_at_the_member() -> None:
    async with both(silent=SILENT) as played:
        asking = sending(played.house, calling(5, "alpha/echo"), path=PATH)
        child = await played.run("alpha")
        request = await asked(child)
        asking.cancel()
        cancelled = await child.takes("notifications/cancelled")
        assert cancelled["params"]["requestId"] == request["id"]


async def test_listening_client_hears_that_a_members_list_has_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(catalogues, "AGAIN_S", (0.0,))
    async with both() as played, asyncio.timeout(BOUND):
        body = asks("listen", "subscriptions/listen", notifications={"toolsListChanged": True})
        async with streaming(played.house, body, path=PATH) as stream:
            assert "acknowledged" in (await stream.message())["method"]
            assert played.booted == {}
            played.programs["beta"] = speaking(ECHO, ODD)
            known = played.house.registry.servers
            changed = definition("beta", era="modern", description="another")
            played.house.registry.replace([known[0], changed])
            assert (await stream.message())["method"] == "notifications/tools/list_changed"
        listed = await send(played.house, asks(2, "tools/list"), path=PATH)
        names = [tool["name"] for tool in listed.only["result"]["tools"]]
        assert names[-2:] == ["beta/echo", "beta/größe 1"]


async def test_failing_member_takes_no_other_down() -> None:
    async with both() as played:
        played.programs["alpha"] = None
        failed = await send(played.house, calling(5, "alpha/echo"), path=PATH)
        assert failed.only["error"]["data"]["reason"] in {"child_exited", "child_not_started"}
        works = await send(played.house, calling(6, "beta/echo"), path=PATH)
        assert works.only["result"] == DONE


async def test_notification_is_acknowledged_and_boots_nobody() -> None:
    async with both() as played:
        note = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {}}
        assert (await send(played.house, note, path=PATH)).status == 202
        assert played.booted == {}


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_only_posts_are_taken(method: str) -> None:
    async with both() as played:
        headers = {"MCP-Protocol-Version": "2026-07-28"}
        url = played.house.origin + PATH
        async with played.house.http.request(method, url, headers=headers) as response:
            assert response.status == 405


async def test_client_without_its_revisions_header_is_told() -> None:
    async with both() as played:
        url = played.house.origin + PATH
        async with played.house.http.post(url, json=calling(3, "alpha/echo")) as response:
            assert (await response.json())["error"]["code"] == -32020
        assert played.booted == {}
