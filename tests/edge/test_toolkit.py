"""Several servers behind one URL, for clients with a handshake."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from dyno_agent.link.resumption import label
from gateway import events
from gateway.edge import sse
from gateway.errors import SessionEnded
from gateway.registry.servers import toolkit
from gateway.sessions import catalogues, dynos
from gateway.sessions import manager as sessions
from gateway.sessions.record import Reason
from tests.edge.eras_house import INITIALIZED, OPEN, answered, heard_events, launches
from tests.edge.toolkit_house import (
    ALONE,
    ECHO,
    PATH,
    SILENT,
    Client,
    begun,
    calls,
    client,
    exchange,
    offering,
    progress,
    reply,
    sees,
    troupe,
)
from tests.fakes.house import BOUND, OTHER_KEY, eventually

if TYPE_CHECKING:
    from tests.edge.eras_house import Program

EMPTY: dict[str, Any] = {"content": []}

QUIET: dict[str, Program | None] = {
    "alpha": offering(ECHO, ALONE, silent=SILENT),
    "beta": offering(ECHO, silent=SILENT),
}
"""Servers whose tools are answered by the test."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second look comes in between, and nobody is waited for in vain."""
    monkeypatch.setattr(catalogues, "AGAIN_S", (BOUND * 60,))
    monkeypatch.setattr(sessions, "TICK_S", 0.01)
    monkeypatch.setattr(dynos, "LEAVE_S", 0.5)


def question(number: int | str, method: str = "elicitation/create") -> Any:
    """What a child asks of its client."""
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": {"message": "?"}}


# Without a dyno


async def test_initialize_and_lists_are_answered_without_a_dyno() -> None:
    async with client() as (one, played):
        before = launches(played.house)
        said = await Client(one.house).opens()
        assert said["protocolVersion"] == OPEN["params"]["protocolVersion"]
        assert said["serverInfo"]["name"].endswith("toolkit all")
        assert await one.tools() == ["alpha/echo", "alpha/alone", "beta/echo"]
        assert (await one.asks(question(3, "ping"))) == answered(3, {})
        assert launches(played.house) == before


async def test_every_list_is_there_though_no_member_has_one() -> None:
    async with client() as (one, _):
        for method, kind in (
            ("prompts/list", "prompts"),
            ("resources/list", "resources"),
            ("resources/templates/list", "resourceTemplates"),
        ):
            assert await one.asks(question(4, method)) == answered(4, {kind: []})


async def test_notification_of_the_handshake_boots_nobody() -> None:
    async with client() as (one, played):
        assert (await one.post(INITIALIZED)).status == 202
        assert played.booted == {}


@pytest.mark.parametrize("path", ["/toolkits/all/mcp", "/toolkit/handles/h/mcp"])
async def test_toolkit_has_several_addresses(path: str) -> None:
    async with client() as (one, played):
        one.path = path
        assert await one.tools() == ["alpha/echo", "alpha/alone", "beta/echo"]
        assert await one.asks(calls(5, "beta/echo")) == answered(5, EMPTY)
        assert played.booted == {"beta": 1}


async def test_named_toolkit_has_its_members_only() -> None:
    async with client() as (one, played):
        few = toolkit("few", ["beta"], "__")
        played.house.registry._toolkits[few.name] = few
        other = Client(one.house, path="/toolkits/few/mcp")
        await other.opens()
        assert await other.tools() == ["beta__echo"]
        refused = await other.asks(calls(5, "alpha/echo"))
        assert refused["error"]["code"] == -32602


@pytest.mark.parametrize("path", ["/toolkits/none/mcp", "/servers/toolkit%2Fall/mcp"])
async def test_address_of_no_toolkit_is_unknown(path: str) -> None:
    async with client() as (one, _):
        response = await Client(one.house, path=path).post(OPEN)
        assert response.status == 404
        assert (await response.json())["error"]["data"]["reason"] == "unknown_server"


# Calls


async def test_call_boots_its_member_and_no_other() -> None:
    async with client() as (one, played):
        assert await one.asks(calls(5, "beta/echo")) == answered(5, EMPTY)
        assert played.booted == {"beta": 1}


async def test_member_reads_the_call_as_it_was_written_but_for_its_name() -> None:
    async with client() as (one, played):
        await one.asks(calls("é", "alpha/echo", token=7, text="ü", half=1.50))
        child = await played.run("alpha")
        assert child.heard[-1] == calls("é", "echo", token=7, text="ü", half=1.50)
        assert child.heard[0]["params"] == OPEN["params"]


async def test_much_that_a_client_says_of_itself_is_told_to_members_in_short() -> None:
    async with client() as (other, played):
        one, wordy = Client(other.house), {**OPEN["params"], "x-of-its-own": "x" * 100_000}
        await one.opens({**OPEN, "params": wordy})
        assert await one.asks(calls(5, "alpha/echo")) == answered(5, EMPTY)
        heard = (await played.run("alpha")).heard[0]["params"]
        assert heard == {key: each for key, each in wordy.items() if key != "x-of-its-own"}


async def test_large_body_without_a_session_is_not_even_read() -> None:
    async with client() as (one, _):
        said = await exchange(one.house, "", b"", b"{", size=1_048_577)
        assert said.startswith(b"HTTP/1.1 413 ")


async def test_members_go_on_with_their_dynos() -> None:
    async with client() as (one, played):
        for number in range(3):
            await one.asks(calls(f"a{number}", "alpha/echo"))
            await one.asks(calls(f"b{number}", "beta/echo"))
        assert played.booted == {"alpha": 1, "beta": 1}


@pytest.mark.parametrize("name", ["alone", "alpha__alone", "alpha.alone", "alpha/alone"])
async def test_tool_is_found_by_any_of_its_names(name: str) -> None:
    async with client() as (one, played):
        assert await one.asks(calls(5, name)) == answered(5, EMPTY)
        assert (await played.run("alpha")).heard[-1] == calls(5, "alone")


async def test_clients_have_dynos_of_their_own() -> None:
    async with client() as (one, played):
        two = Client(one.house)
        await two.opens()
        await one.asks(calls(5, "alpha/echo"))
        await two.asks(calls(5, "alpha/echo"))
        assert played.booted == {"alpha": 2}


async def test_whatever_is_answered_names_the_toolkits_session() -> None:
    async with client(QUIET) as (one, played):
        async with one.asking(calls(5, "alpha/echo")) as stream:
            child = await begun(played, stream, "alpha")
            assert stream.response.headers["Mcp-Session-Id"] == one.key
            await child.agent.say(answered(5, EMPTY))
            assert await stream.rest() == [answered(5, EMPTY)]
        played.programs["alpha"] = offering(ECHO)
        for body in (question(6, "ping"), progress(1, 1), calls(7, "beta/none")):
            response = await one.post(body)
            assert response.headers.get("Mcp-Session-Id", one.key) == one.key


async def test_plain_answer_names_the_toolkits_session() -> None:
    async with client() as (one, played):
        await one.asks(calls(5, "alpha/echo"))
        await played.run("alpha")
        response = await one.post(calls(6, "alpha/echo"))
        assert response.content_type == "application/json"
        assert response.headers["Mcp-Session-Id"] == one.key


@pytest.mark.parametrize("size", [200_000, 2_000_000])
async def test_large_calls_arrive_whole_several_at_a_time(size: int) -> None:
    async with client() as (one, played), asyncio.timeout(BOUND):
        await one.asks(calls(0, "alpha/echo"))
        async with asyncio.TaskGroup() as tasks:
            for number in range(1, 6):
                body = calls(number, f"{('alpha', 'beta')[number % 2]}/echo", text="x" * size)
                tasks.create_task(one.asks(body))
        heard = [
            (message["id"], len(message["params"]["arguments"]["text"]))
            for server in ("alpha", "beta")
            for message in played.runs[server][0].heard
            if message.get("method") == "tools/call" and message["id"]
        ]
        assert sorted(heard) == [(number, size) for number in range(1, 6)]


# What is nobody's


@pytest.mark.parametrize(
    ("body", "code", "reason"),
    [
        (calls(5, "alpha/none"), -32602, "unknown_item"),
        (calls(5, "echo"), -32602, "unknown_item"),
        (question(5, "tasks/list"), -32601, "unknown_method"),
        (question(5, "logging/setLevel"), -32601, "unknown_method"),
        (
            {**question(5, "tools/list"), "params": {"cursor": "next"}},
            -32602,
            "bad_params",
        ),
        (
            {**question(5, "resources/read"), "params": {"uri": "file:///none"}},
            -32002,
            "unknown_resource",
        ),
    ],
)
async def test_request_that_is_nobodys_is_refused_in_an_answer(
    body: Any, code: int, reason: str
) -> None:
    async with client() as (one, played):
        response = await one.post(body)
        error = (await response.json())["error"]
        assert (response.status, error["code"], error["data"]["reason"]) == (200, code, reason)
        assert (await response.json())["id"] == 5
        assert played.booted == {}


async def test_batch_is_refused() -> None:
    async with client() as (one, _):
        response = await one.post([calls(5, "alpha/echo")])
        assert response.status == 400


async def test_request_without_a_session_is_told_to_open_one() -> None:
    async with client() as (one, _):
        response = await Client(one.house).post(calls(5, "alpha/echo"))
        assert (await response.json())["error"]["data"]["reason"] == "missing_session"
        assert (await response.json())["id"] == 5


@pytest.mark.parametrize("body", [calls(5, "alpha/echo"), progress(1, 1), question(5, "ping")])
async def test_session_of_somebody_else_is_unknown(body: Any) -> None:
    async with client() as (one, played):
        response = await one.post(body, X_API_Key=OTHER_KEY)
        assert response.status == 404
        assert played.booted == {}


async def test_session_of_a_member_is_none_of_the_toolkits() -> None:
    async with client() as (one, _):
        other = Client(one.house, one.member_key("alpha"))
        assert (await other.post(calls(5, "alpha/echo"))).status == 404


async def test_headers_that_are_no_text_are_refused() -> None:
    async with client() as (one, _):
        body = json.dumps(calls(5, "alpha/echo")).encode()
        said = await exchange(one.house, one.key, b"X-Odd: \xff\r\n", body)
        assert said.startswith(b"HTTP/1.1 400 ")


# What members say meanwhile


async def test_progress_comes_on_the_calls_stream_with_marked_ids() -> None:
    body = calls(5, "alpha/echo", token="t")
    async with client(QUIET) as (one, played), one.asking(body) as stream:
        child = await begun(played, stream, "alpha")
        assert stream.last.endswith(".i5~alpha")
        await child.agent.say(progress("t", 1))
        assert (await sees(stream, progress("t", 1))).endswith(".i5~alpha")
        await child.agent.say(answered(5, EMPTY))
        assert await stream.rest() == [answered(5, EMPTY)]


async def test_two_members_that_ask_with_the_same_id_get_their_own_answers() -> None:
    async with (
        client(QUIET) as (one, played),
        one.asking(calls(5, "alpha/echo")) as left,
        one.asking(calls(6, "beta/echo")) as right,
    ):
        asked = {}
        for server, stream in (("alpha", left), ("beta", right)):
            child = await begun(played, stream, server)
            await child.agent.say(question(0, "sampling/createMessage"))
            asked[server] = await stream.message()
        assert [asked[server]["id"] for server in ("alpha", "beta")] == ["alpha~0", "beta~0"]
        for server in ("beta", "alpha"):
            said = await one.post(answered(asked[server]["id"], {"for": server, "n": 1.50}))
            assert said.status == 202
        for server in ("alpha", "beta"):
            child = await played.run(server)
            assert await reply(child) == answered(0, {"for": server, "n": 1.50})


@pytest.mark.parametrize("number", [7, "seven", "7.", "a~b", 'quote"', "é"])
async def test_question_keeps_its_kind_of_id(number: int | str) -> None:
    async with client(QUIET) as (one, played), one.asking(calls(5, "alpha/echo")) as stream:
        child = await begun(played, stream, "alpha")
        await child.agent.say(question(number))
        asked = await stream.message()
        assert asked == {**question(number), "id": asked["id"]}
        assert (await one.post(answered(asked["id"], {}))).status == 202
        assert await reply(child) == answered(number, {})


async def test_question_that_is_taken_back_is_named_as_it_was_asked() -> None:
    async with client(QUIET) as (one, played), one.asking(calls(5, "alpha/echo")) as stream:
        child = await begun(played, stream, "alpha")
        await child.agent.say(question(3))
        asked = await stream.message()
        params = {"requestId": 3, "reason": "late"}
        back = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}
        await child.agent.say(back)
        told = await stream.message()
        assert told["params"] == {"requestId": asked["id"], "reason": "late"}


@pytest.mark.parametrize("params", [[], {}, {"requestId": None}, "x"])
async def test_odd_taking_back_breaks_nothing(params: Any) -> None:
    async with client(QUIET) as (one, played), one.asking(calls(5, "alpha/echo")) as stream:
        child = await begun(played, stream, "alpha")
        back = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}
        await child.agent.say(back)
        assert (await stream.message())["method"] == "notifications/cancelled"
        await child.agent.say(answered(5, EMPTY))
        assert await stream.rest() == [answered(5, EMPTY)]


@pytest.mark.parametrize("number", [0, "alpha~1", "none~0", "alpha~", "alpha~{}"])
async def test_answer_to_what_nobody_asked_is_refused(number: int | str) -> None:
    async with client(QUIET) as (one, played), one.asking(calls(5, "alpha/echo")) as stream:
        await begun(played, stream, "alpha")
        assert (await one.post(answered(number, {}))).status == 400


async def test_cancellation_reaches_the_member_and_boots_no_other() -> None:
    async with client(QUIET) as (one, played), one.asking(calls(5, "alpha/echo")) as stream:
        child = await begun(played, stream, "alpha")
        params = {"requestId": 5}
        cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}
        assert (await one.post(cancel)).status == 202
        assert await stream.rest() == []
        assert await child.takes("notifications/cancelled") == cancel
        assert played.booted == {"alpha": 1}
        assert not one.holds("beta")


async def test_notification_reaches_all_members_that_run() -> None:
    news = {"jsonrpc": "2.0", "method": "notifications/roots/list_changed"}
    async with (
        client({**QUIET, "gamma": offering(ECHO)}) as (one, played),
        one.asking(calls(5, "alpha/echo")) as left,
        one.asking(calls(6, "beta/echo")) as right,
    ):
        children = [await begun(played, left, "alpha"), await begun(played, right, "beta")]
        assert (await one.post(news)).status == 202
        for child in children:
            assert await child.takes("notifications/roots/list_changed") == news
        assert played.booted == {"alpha": 1, "beta": 1}


# Streams


@pytest.mark.parametrize("server", ["alpha", "a.b-c_d", "9" * 64])
@pytest.mark.parametrize("request_id", [0, -7, "", "a~b", "\U0010ffff" * 256])
def test_marked_event_id_leads_back_to_its_stream_and_member(
    request_id: int | str, server: str
) -> None:
    marked = sse.event_id(2**40, sse.marked(label(request_id), server))
    assert sse.member(marked) == server
    assert sse.position(marked) == (2**40, label(request_id))


@pytest.mark.parametrize("plain", ["5.", "5.i1", "5.i1~", "5.i1~a/b", "no id", "~alpha"])
def test_other_event_id_has_no_member(plain: str) -> None:
    assert sse.member(plain) == ""


async def test_calls_stream_is_continued_by_its_marked_id() -> None:
    async with client(QUIET) as (one, played):
        async with one.asking(calls(5, "beta/echo", token="t")) as stream:
            child = await begun(played, stream, "beta")
            await child.agent.say(progress("t", 1))
            await sees(stream, progress("t", 1))
            stream.hang_up()
        await one.house.abandoned(one.member_key("beta"), 5)
        await child.agent.say(progress("t", 2))
        async with one.listening(stream.last) as rest:
            assert await rest.message() == progress("t", 2)
            assert rest.last.endswith(".i5~beta")
            await child.agent.say(answered(5, EMPTY))
            assert await rest.rest() == [answered(5, EMPTY)]


async def test_stream_of_a_member_that_is_gone_says_so() -> None:
    async with client(QUIET) as (one, played):
        async with one.asking(calls(5, "beta/echo")) as stream:
            await begun(played, stream, "beta")
            live = one.house.live(one.member_key("beta"))
            stream.hang_up()
        one.house.manager.end(live, Reason.IDLE, SessionEnded("it was idle"))
        await eventually(lambda: not one.holds("beta"))
        await eventually(lambda: one.house.manager.sessions == 1)
        async with one.listening(stream.last) as rest:
            (told,) = await rest.rest()
        assert (told["id"], told["error"]["data"]["reason"]) == (5, "answer_gone")


@pytest.mark.parametrize("last", ["1.i5~none", "1.x~alpha"])
async def test_event_id_of_nobody_is_refused(last: str) -> None:
    async with client() as (one, _):
        headers = one._headers({"Last-Event-ID": last})
        async with one.house.http.get(one.house.origin + PATH, headers=headers) as response:
            assert response.status == 400


async def test_general_stream_tells_that_a_members_list_has_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(catalogues, "AGAIN_S", (0.0,))
    async with client() as (one, played):
        await one.tools()
        async with one.listening() as stream:
            first = await stream.next()
            assert first is not None
            assert "~" not in (first.id or "")
            await one.asks(calls(5, "beta/echo"))
            child = await played.run("beta")
            played.programs["beta"] = offering(ECHO, {"name": "new", "inputSchema": {}})
            changed = {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}
            await child.agent.say(changed)
            assert await stream.message() == changed
        assert await one.tools() == ["alpha/echo", "alpha/alone", "beta/echo", "beta/new"]


# Ends


async def test_delete_ends_the_session_and_those_with_its_members() -> None:
    async with client() as (one, played):
        await one.asks(calls(5, "alpha/echo"))
        await one.asks(calls(6, "beta/echo"))
        assert await one.deletes() == 204
        for server in ("alpha", "beta"):
            await played.run(server)
        await eventually(lambda: all(child.stopped for child in played.stage.children))
        await eventually(lambda: not one.house.manager.sessions)
        for body in (calls(7, "alpha/echo"), question(8, "tools/list")):
            assert (await one.post(body)).status == 404
        assert played.booted == {"alpha": 1, "beta": 1}


async def test_delete_boots_nobody() -> None:
    async with client() as (one, played):
        before = len(heard_events(one.house, events.Requested))
        assert await one.deletes() == 204
        assert played.booted == {}
        assert len(heard_events(one.house, events.Requested)) == before


async def test_failing_member_takes_no_other_down() -> None:
    async with client() as (one, played):
        played.programs["alpha"] = None
        failed = await one.asks(calls(5, "alpha/echo"))
        assert failed["error"]["data"]["reason"] in {"child_exited", "child_not_started"}
        assert await one.asks(calls(6, "beta/echo")) == answered(6, EMPTY)
        assert await one.tools() == ["alpha/echo", "alpha/alone", "beta/echo"]


async def test_member_that_has_failed_is_tried_again_by_the_next_call() -> None:
    async with client() as (one, played):
        played.programs["alpha"] = None
        assert "error" in await one.asks(calls(5, "alpha/echo"))
        played.programs["alpha"] = offering(ECHO)
        assert await one.asks(calls(6, "alpha/echo")) == answered(6, EMPTY)


async def test_session_that_was_idle_for_long_goes_on() -> None:
    async with client() as (one, played):
        await one.asks(calls(5, "alpha/echo"))
        house = one.house
        for key in (one.key, one.member_key("alpha")):
            house.manager.end(house.live(key), Reason.IDLE, SessionEnded("it was idle"))
        assert await one.tools() == ["alpha/echo", "alpha/alone", "beta/echo"]
        response = await one.post(calls(6, "alpha/echo"))
        assert response.status == 200
        assert response.headers["Rendezvous-Session"] == "rebuilt"
        assert played.booted == {"alpha": 2}
        assert (await played.run("alpha", 2)).heard[0]["params"] == OPEN["params"]


async def test_toolkits_session_never_has_a_dyno() -> None:
    async with client() as (one, _):
        await one.asks(calls(5, "alpha/echo"))
        told = heard_events(one.house, events.Requested)
        ours = {each.session for each in told if each.server.startswith("toolkit/")}
        launched = {each.session for each in heard_events(one.house, events.Launching)}
        assert ours
        assert not ours & launched


async def test_page_of_an_allowed_origin_may_use_a_toolkit() -> None:
    async with troupe({"alpha": offering(ECHO)}) as played:
        origin = {"Origin": played.house.origin}
        for path in (PATH, "/toolkits/all/mcp", "/mcp/sse", "/toolkit/messages"):
            async with played.house.http.options(
                played.house.origin + path, headers=origin
            ) as response:
                assert response.status == 204
                assert response.headers["Access-Control-Allow-Origin"] == origin["Origin"]


async def test_answer_of_a_member_may_be_read_by_a_page() -> None:
    async with client() as (one, _):
        response = await one.post(calls(5, "alpha/echo"), Origin=one.house.origin)
        assert response.headers["Access-Control-Allow-Origin"] == one.house.origin


async def test_client_of_an_older_revision_gets_its_answer_as_json() -> None:
    async with client() as (one, _):
        response = await one.post(calls(5, "alpha/echo"), MCP_Protocol_Version="2025-06-18")
        assert response.content_type == "application/json"
        assert await response.json() == answered(5, EMPTY)
