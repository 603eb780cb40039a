"""Agents over HTTP: the real gateway, a scripted model, played dynos."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from gateway import events as happened
from gateway.errors import SessionEnded
from gateway.fleet.fleet import LIFETIME_SLACK_S
from gateway.launchers.base import LaunchError
from gateway.sessions import catalogues, dynos
from gateway.sessions.dynos import END_SLACK_S
from gateway.sessions.record import Reason
from gateway.v1.agents import endpoint, loop
from tests.edge.eras_house import Program, Refusal, definition, heard_events
from tests.fakes import inference
from tests.fakes.house import BOUND, OTHER_KEY, eventually
from tests.fakes.inference import call, calls, says
from tests.v1.agents_house import ECHO, content, playing, program, result, wants
from tests.v1.documented import events, example, shape

if TYPE_CHECKING:
    from tests.v1.agents_house import Scene

STREAM: str = example("agent_stream")

ENOUGH = says("that is it")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynos, "LEAVE_S", 0.5)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.0)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.0)


def told(scene: Scene, number: int = -1) -> list[str]:
    """What the model was told of its calls."""
    return scene.model.asked[number].results


# The stream


async def test_events_have_the_documented_shape() -> None:
    async with playing(calls(call("py__echo", {"text": "x"}), text="let me see"), ENOUGH) as scene:
        got = await scene.asks(wants("echo"))
    documented = [json.loads(data) for _, data in events(STREAM)[:-1]]
    assert [shape(each) for each in got] == [shape(each) for each in documented]


async def test_the_frames_are_those_of_the_documentation() -> None:
    async with playing(ENOUGH) as scene, scene.asking(wants()) as response:
        raw = await response.text()
        assert response.content_type == "text/event-stream"
    assert raw.startswith('event:message\ndata:{"id":"chatcmpl-')
    assert raw.endswith("}\n\nevent:done\ndata:[DONE]\n\n")


async def test_a_run_has_one_id_and_a_call_one_name() -> None:
    async with playing(calls(call("py__echo", {"text": "x"}, "c1")), ENOUGH) as scene:
        first, returned, last = await scene.asks(wants("py.echo"))
    assert first["id"] == returned["id"] == last["id"]
    asked = first["choices"][0]["message"]["tool_calls"][0]
    answered = returned["choices"][0]["message"]
    assert (asked["id"], asked["function"]["name"]) == ("c1", "py/echo")
    assert (answered["tool_call_id"], answered["name"]) == ("c1", "py/echo")


async def test_the_result_is_what_the_child_says_in_json() -> None:
    async with playing(calls(call("py__echo", {"text": "é"})), ENOUGH) as scene:
        _, returned, _ = await scene.asks(wants("echo"))
    said = {"type": "text", "text": json.dumps({"text": "é"})}
    assert result(returned) == {"content": [said], "isError": False}


async def test_the_model_reads_the_text_of_the_result() -> None:
    async with playing(calls(call("py__echo", {"text": "x"})), ENOUGH) as scene:
        await scene.asks(wants("echo"))
    assert told(scene) == ['{"text": "x"}']


async def test_the_model_is_asked_as_the_request_says() -> None:
    body = wants(
        "echo",
        messages=[{"role": "system", "content": "be  kind"}, {"role": "user", "content": "hi"}],
        max_tokens_per_inference_request=7,
        temperature=0.5,
        top_p=0.9,
        stop=["."],
        top_k=3,
    )
    async with playing(ENOUGH) as scene:
        await scene.asks(body)
    assert scene.model.asked[0].body == {
        "model": "m",
        "messages": body["messages"],
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["."],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "py__echo",
                    "description": "says it again",
                    "parameters": ECHO["inputSchema"],
                },
            }
        ],
    }


async def test_a_request_without_tools_offers_none() -> None:
    async with playing(ENOUGH) as scene:
        await scene.asks({"model": "m", "messages": [{"role": "user", "content": "?"}]})
    assert "tools" not in scene.model.asked[0].body


async def test_a_model_that_is_not_named_is_the_default_one() -> None:
    async with playing(ENOUGH, inference_model_id="usual") as scene:
        await scene.asks({"messages": [{"role": "user", "content": "?"}]})
    assert scene.model.asked[0].body["model"] == "usual"


async def test_a_conversation_goes_on_with_the_names_that_the_client_was_shown() -> None:
    async with playing(calls(call("py__echo", {})), ENOUGH, says("again")) as scene:
        got = await scene.asks(wants("echo"))
        earlier = [each["choices"][0]["message"] for each in got]
        await scene.asks(wants("echo", messages=[*earlier, {"role": "user", "content": "and?"}]))
    said = scene.model.asked[-1].messages
    assert said[0]["tool_calls"][0]["function"]["name"] == "py__echo"
    assert said[1]["name"] == "py__echo"


# Sessions


async def test_no_dyno_is_asked_for_before_a_call() -> None:
    async with playing(ENOUGH) as scene:
        await scene.asks(wants("echo"))
        assert scene.played == []


async def test_all_calls_to_a_server_share_a_session_that_ends_with_the_run() -> None:
    twice = calls(call("py__echo", {}), call("py__echo", {}))
    async with playing(twice, calls(call("py__echo", {})), ENOUGH) as scene:
        await scene.asks(wants("echo"))
        (child,) = scene.played
        assert child.methods.count("tools/call") == 3
        await scene.gone()
        closed = [each.reason for each in heard_events(scene.house, happened.Closed)]
        assert closed[-1] == Reason.ANSWERED


async def test_calls_of_one_answer_run_at_once() -> None:
    """Neither server answers before both are called."""
    both: set[str] = set()

    async with playing(
        calls(call("a__echo", {}), call("b__echo", {})),
        ENOUGH,
        programs={name: program(silent=["tools/call"]) for name in ("a", "b")},
    ) as scene:
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(scene.asks(wants("a/echo", "b/echo")))
            await eventually(lambda: len(scene.played) == 2)
            for child in scene.played:
                asked = await child.takes("tools/call")
                both.add(child.agent.launch_id)
                child.program.answers["answer"] = asked["id"]
            for child in scene.played:
                (asked,) = [each for each in child.heard if each.get("method") == "tools/call"]
                done = {"jsonrpc": "2.0", "id": asked["id"], "result": {"content": []}}
                await child.agent.say(done)
        assert [each["object"] for each in running.result()].count("tool.completion") == 2
    assert len(both) == 2


async def test_the_session_is_the_callers_own() -> None:
    async with playing(calls(call("py__echo", {})), ENOUGH) as scene:
        url = f"{scene.house.origin}/v1/agents/heroku"
        headers = {"X-API-Key": OTHER_KEY}
        async with scene.house.http.post(url, json=wants("echo"), headers=headers) as response:
            await response.read()
    requested = heard_events(scene.house, happened.Requested)[-1]
    assert (requested.principal, requested.client) == ("other", "/v1/agents/heroku")


async def test_a_dyno_is_as_large_as_the_request_says_and_lives_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime = {"dyno_size": "standard-2x", "ttl_seconds": 60}
    tool = {"type": "heroku_tool", "name": "echo", "runtime_params": runtime}
    orders = []
    async with playing(calls(call("echo", {})), ENOUGH) as scene:
        launch = scene.house.launcher.launch

        async def noted(order: Any) -> Any:
            orders.append(order)
            return await launch(order)

        monkeypatch.setattr(scene.house.launcher, "launch", noted)
        await scene.asks(wants(tool))
    (order,) = orders
    assert order.size == "standard-2x"
    assert order.lifetime_s == 60 + END_SLACK_S + LIFETIME_SLACK_S


async def test_a_session_that_has_ended_is_followed_by_another() -> None:
    async with playing(calls(call("py__echo", {})), calls(call("py__echo", {})), ENOUGH) as scene:
        scene.model.script.insert(
            1, inference.waits(gate := asyncio.Event(), scene.model.script[1])
        )
        del scene.model.script[2]
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(scene.asks(wants("echo")))
            await eventually(lambda: len(scene.model.asked) == 2)
            (live,) = scene.house.manager.directory
            scene.house.manager.end(live, Reason.LIFETIME, SessionEnded("too old"))
            gate.set()
        assert [result(each)["isError"] for each in running.result() if "model" not in each] == [
            False,
            False,
        ]
        assert len(scene.played) == 2


async def test_a_server_without_a_catalogue_is_asked_in_the_session_of_its_calls() -> None:
    bare = (definition("bare", catalogue=False),)
    script = calls(call("bare__echo", {})), ENOUGH
    async with playing(*script, programs={"bare": program()}, servers=bare) as scene:
        got = await scene.asks(wants("bare/echo"))
        (child,) = scene.played
    assert child.methods == ["initialize", "notifications/initialized", "tools/list", "tools/call"]
    assert not result(got[1])["isError"]


async def test_a_server_without_a_handshake_is_spoken_to_in_its_own_era() -> None:
    modern = program()
    modern.speaks = frozenset({"modern"})
    servers = (definition("py", era="modern"),)
    script = calls(call("py__echo", {"text": "x"})), ENOUGH
    async with playing(*script, programs={"py": modern}, servers=servers) as scene:
        _, returned, _ = await scene.asks(wants("echo"))
        (child,) = scene.played
    assert child.methods == ["server/discover", "tools/call"]
    assert not result(returned)["isError"]


async def test_a_request_waits_for_the_first_look_at_its_server() -> None:
    async with playing(ENOUGH, settled=False) as scene:
        assert len(await scene.asks(wants("echo"))) == 1
        await scene.gone()


@pytest.mark.parametrize(("name", "status"), [("py/echo", 503), ("echo", 400)])
async def test_a_server_that_cannot_be_looked_at_is_not_waited_for_in_vain(
    monkeypatch: pytest.MonkeyPatch, name: str, status: int
) -> None:
    monkeypatch.setattr(catalogues, "PATIENCE_S", 0.01)
    hanging = program(silent=["tools/list"])
    async with playing(ENOUGH, programs={"py": hanging}, settled=False) as scene:
        assert (await scene.is_refused(wants(name)))[0] == status


async def test_a_broken_server_is_in_nobodys_way() -> None:
    broken = Program(speaks=frozenset())
    script = calls(call("py__echo", {})), ENOUGH
    async with playing(*script, programs={"broken": broken, "py": program()}) as scene:
        got = await scene.asks(wants("echo"))
    assert not result(got[1])["isError"]


# What goes wrong with a call is its result


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Refusal(-32602, "no such thing"), "no such thing"),
        ({"content": [{"type": "text", "text": "boom"}], "isError": True}, "boom"),
        ({"content": "text"}, "no result of a tool"),
        ([], "no result of a tool"),
        ({"resultType": "input_required", "content": []}, "nobody to answer"),
    ],
)
async def test_a_call_that_fails_is_a_result_and_the_run_goes_on(answer: Any, said: str) -> None:
    failing = program(tools_call=answer)
    script = calls(call("py__echo", {})), ENOUGH
    async with playing(*script, programs={"py": failing}) as scene:
        _, returned, last = await scene.asks(wants("echo"))
    assert result(returned)["isError"] is True
    assert said in result(returned)["content"][0]["text"]
    assert told(scene)[0].startswith("Error: ")
    assert content(last) == "that is it"


async def test_a_dyno_that_does_not_start_is_a_result_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    servers = (definition("py"),)
    async with playing(calls(call("py__echo", {})), ENOUGH, servers=servers) as scene:

        async def none(_order: Any) -> Any:
            raise LaunchError("the platform says no")

        monkeypatch.setattr(scene.house.launcher, "launch", none)
        _, returned, last = await scene.asks(wants("echo"))
    assert "the platform says no" in result(returned)["content"][0]["text"]
    assert content(last) == "that is it"


async def test_a_result_without_text_is_told_by_its_kind() -> None:
    image = {"type": "image", "data": "AAAA", "mimeType": "image/png"}
    async with playing(
        calls(call("py__echo", {})),
        ENOUGH,
        programs={"py": program(tools_call={"content": [image]})},
    ) as scene:
        _, returned, _ = await scene.asks(wants("echo"))
    assert result(returned)["content"] == [image]
    assert told(scene)[0].startswith("[image, ")


async def test_a_result_that_is_structured_only_is_told_as_text() -> None:
    only = {"content": [], "structuredContent": {"n": 1.50}}
    async with playing(
        calls(call("py__echo", {})), ENOUGH, programs={"py": program(tools_call=only)}
    ) as scene:
        _, returned, _ = await scene.asks(wants("echo"))
    assert json.loads(result(returned)["content"][0]["text"]) == {"n": 1.5}


async def test_a_long_result_is_whole_for_the_client_and_cut_for_the_model() -> None:
    text = "x" * (loop.RESULT_BYTES + 1)
    long = program(tools_call={"content": [{"type": "text", "text": text}]})
    script = calls(call("py__echo", {})), ENOUGH
    async with playing(*script, programs={"py": long}) as scene:
        _, returned, _ = await scene.asks(wants("echo"))
    assert result(returned)["content"][0]["text"] == text
    assert "[cut here" in told(scene)[0]


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [("nope", {}, "no tool of this name"), ("py__echo", "{bad", "one JSON object")],
)
async def test_a_model_that_calls_wrongly_is_told_and_may_mend_it(
    name: str, arguments: Any, said: str
) -> None:
    script = calls(call(name, arguments)), calls(call("py__echo", {"text": "ok"})), ENOUGH
    async with playing(*script) as scene:
        got = await scene.asks(wants("echo"))
        assert len(scene.played) == 1
    assert said in told(scene)[0]
    assert [result(each)["isError"] for each in got if "model" not in each] == [True, False]


async def test_a_tool_is_called_as_often_as_the_request_says() -> None:
    tool = {"type": "mcp", "name": "echo", "runtime_params": {"max_calls": 1}}
    script = calls(call("py__echo", {})), calls(call("py__echo", {})), ENOUGH
    async with playing(*script) as scene:
        await scene.asks(wants(tool))
        (child,) = scene.played
    assert child.methods.count("tools/call") == 1
    assert "max_calls" in told(scene)[1]


async def test_a_model_that_loops_is_stopped_with_an_error_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = [calls(call("nope", {})) for _ in range(loop.ROUNDS + 1)]
    async with playing(*script) as scene, scene.asking(wants("echo")) as response:
        *_, failed, last = events(await response.text())
        assert len(scene.model.asked) == loop.ROUNDS
    assert last == ("done", "[DONE]")
    assert failed[0] == "error"
    assert json.loads(failed[1])["error"]["code"] == "too_many_rounds"


# What goes wrong with the model


async def test_a_failure_before_anything_was_said_has_its_status() -> None:
    async with playing(inference.refuses(400, "no such model")) as scene:
        status, error = await scene.is_refused(wants())
    assert (status, error["type"], error["code"]) == (
        400,
        "invalid_request_error",
        "inference_refused",
    )


async def test_garbage_of_the_model_is_contained() -> None:
    async with playing(inference.sends("<html>")) as scene:
        status, error = await scene.is_refused(wants())
    assert (status, error["type"]) == (502, "server_error")


async def test_a_failure_after_something_was_said_is_the_last_event_but_one() -> None:
    script = calls(call("py__echo", {})), inference.sends("garbage")
    async with playing(*script) as scene, scene.asking(wants("echo")) as response:
        got = events(await response.text())
    assert [name for name, _ in got] == ["message", "message", "error", "done"]
    assert json.loads(got[2][1])["error"]["code"] == "inference_unreadable"


async def test_a_busy_model_tells_when_to_come_back() -> None:
    busy = inference.refuses(429, "too many", Retry_After="0")
    async with playing(busy, busy, busy) as scene, scene.asking(wants()) as response:
        assert (response.status, response.headers["Retry-After"]) == (429, "0")


async def test_without_a_model_the_endpoint_says_what_to_set() -> None:
    async with playing(inference_url=None) as scene:
        status, error = await scene.is_refused(wants())
    assert (status, error["code"]) == (503, "no_model")
    assert "INFERENCE_URL" in error["message"]


# Requests that are refused


async def test_a_client_without_a_key_is_told_as_openai_would() -> None:
    async with playing() as scene, aiohttp.ClientSession() as http:
        url = f"{scene.house.origin}/v1/agents/heroku"
        async with http.post(url, json=wants()) as response:
            error = (await response.json())["error"]
            assert response.status == 401
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")


async def test_a_page_of_another_origin_may_not_ask() -> None:
    async with playing() as scene, scene.asking(wants(), Origin="https://evil.test") as response:
        assert response.status == 403


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "m", "messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "model"),
        (wants("nope"), "tools[0].name"),
        (wants("echo", "py/nope"), "tools[1].name"),
    ],
)
async def test_a_wrong_request_is_told_its_part(body: Any, param: str) -> None:
    async with playing() as scene:
        status, error = await scene.is_refused(body)
        assert scene.model.asked == []
    assert (status, error["param"]) == (400, param)


PAGES = [
    {"tools": [{"name": "other"}, {"name": []}, {}, 7], "nextCursor": "2"},
    {"tools": [ECHO]},
]


async def test_all_pages_of_a_server_without_a_catalogue_are_asked_for() -> None:
    pages = iter(PAGES)
    bare = (definition("bare", catalogue=False),)
    programs = {"bare": program(tools_list=lambda _: next(pages))}
    async with playing(ENOUGH, programs=programs, servers=bare) as scene:
        assert await scene.asks(wants("bare/echo"))


@pytest.mark.parametrize("answer", [Refusal(-32601, "no such method"), {"tools": "none"}, [1]])
async def test_a_server_without_a_catalogue_that_lists_no_tools_is_refused(answer: Any) -> None:
    bare = (definition("bare", catalogue=False),)
    programs = {"bare": program(tools_list=answer)}
    async with playing(programs=programs, servers=bare) as scene:
        status, _ = await scene.is_refused(wants("bare/echo"))
        await scene.gone()
    assert status == 502


async def test_a_tool_that_a_server_without_a_catalogue_lacks_is_refused() -> None:
    bare = (definition("bare", catalogue=False),)
    async with playing(programs={"bare": program()}, servers=bare) as scene:
        status, error = await scene.is_refused(wants("bare/nope"))
        await scene.gone()
    assert (status, error["param"]) == (400, "tools[0].name")


@pytest.mark.parametrize("media", ["application/json", "text/plain", "application/octet-stream"])
async def test_any_content_type_is_taken(media: str) -> None:
    """Heroku's own examples send none, which curl takes for a form."""
    async with playing(ENOUGH) as scene:
        url = f"{scene.house.origin}/v1/agents/heroku"
        raw, headers = json.dumps(wants()).encode(), {"Content-Type": media}
        async with scene.house.http.post(url, data=raw, headers=headers) as response:
            assert response.status == 200


async def test_an_encoded_body_is_refused() -> None:
    async with (
        playing() as scene,
        scene.asking(wants(), **{"Content-Encoding": "identity"}) as response,
    ):
        assert response.status == 415


async def test_a_process_runs_so_many_agents_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "RUNS", 0)
    async with playing() as scene, scene.asking(wants()) as response:
        assert response.status == 503
        assert response.headers["Retry-After"] == "5"


async def test_a_body_that_is_too_big_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "BODY_BYTES", 100)
    async with playing() as scene:
        status, error = await scene.is_refused(wants(user="x" * 100))
    assert (status, error["code"]) == (413, "message_too_big")


async def test_a_key_runs_so_many_agents_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "RUNS_PER_KEY", 1)
    gate = asyncio.Event()
    async with playing(inference.waits(gate, ENOUGH), ENOUGH) as scene:
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
            tasks.create_task(scene.asks(wants()))
            await eventually(lambda: scene.model.asked)
            status, error = await scene.is_refused(wants())
            gate.set()
        assert (status, error["type"]) == (429, "rate_limit_error")
        assert await scene.asks(wants())


# Time


async def test_the_connection_is_kept_alive_while_the_model_thinks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(endpoint, "FIRST_S", 0.01)
    monkeypatch.setattr(endpoint, "KEEP_ALIVE_S", 0.01)
    gate = asyncio.Event()
    async with playing(inference.waits(gate, ENOUGH)) as scene, scene.asking(wants()) as response:
        for _ in range(3):
            assert await response.content.readuntil(b"\n\n") == b": keep-alive\n\n"
        gate.set()
        assert events((await response.read()).decode())[-1] == ("done", "[DONE]")


async def test_a_failure_after_a_comment_is_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_S", 0.0)
    gate = asyncio.Event()
    late = inference.waits(gate, inference.refuses(400, "no"))
    async with playing(late) as scene, scene.asking(wants()) as response:
        assert response.status == 200
        gate.set()
        assert [name for name, _ in events(await response.text())] == ["error", "done"]


async def test_a_run_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "RUN_S", 0.05)
    async with playing(inference.hangs) as scene:
        status, error = await scene.is_refused(wants())
        assert (status, error["code"]) == (504, "run_timeout")


async def test_a_client_that_leaves_takes_back_what_the_model_was_asked() -> None:
    async with playing(inference.hangs) as scene:
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(scene.asks(wants()))
            await eventually(lambda: scene.model.asked)
            running.cancel()
        await eventually(lambda: scene.model.left)


async def test_a_client_that_leaves_takes_back_its_calls_and_ends_their_sessions() -> None:
    slow = program(silent=["tools/call"])
    async with playing(calls(call("py__echo", {})), programs={"py": slow}) as scene:
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(scene.asks(wants("echo")))
            await eventually(lambda: scene.played)
            await scene.played[0].takes("tools/call")
            running.cancel()
        await scene.played[0].takes("notifications/cancelled")
        await scene.gone()
        assert heard_events(scene.house, happened.Closed)[-1].reason == Reason.CLIENT_GONE


async def test_a_client_that_leaves_while_its_session_opens_leaves_none_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with playing(calls(call("py__echo", {}))) as scene:
        opening = asyncio.Event()

        async def publish(_live: Any) -> None:
            opening.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(scene.house.manager, "publish", publish)
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(scene.asks(wants("echo")))
            await opening.wait()
            running.cancel()
        await scene.gone()


async def test_a_client_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "WRITE_S", 0.05)
    much = program(tools_call={"content": [{"type": "text", "text": "x" * 15_000_000}]})
    script = calls(call("py__echo", {})), inference.hangs
    async with playing(*script, programs={"py": much}) as scene:
        async with scene.asking(wants("echo")) as response:
            await eventually(lambda: scene.model.left)
            with pytest.raises(aiohttp.ClientError):
                await response.read()
        await scene.gone()
        assert heard_events(scene.house, happened.Closed)[-1].reason == Reason.CLIENT_GONE


async def test_a_gateway_that_leaves_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async with playing(calls(call("nope", {})), ENOUGH) as scene:
        gate = asyncio.Event()
        scene.model.script[0] = inference.waits(gate, scene.model.script[0])
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:

            async def run() -> list[tuple[str, str]]:
                async with scene.asking(wants("echo")) as response:
                    return events(await response.text())

            running = tasks.create_task(run())
            await eventually(lambda: scene.model.asked)
            scene.house.manager.directory.draining = True
            gate.set()
        scene.house.manager.directory.draining = False
    assert json.loads(running.result()[-2][1])["error"]["code"] == "restarting"
