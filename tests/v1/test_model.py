"""The model's server is asked over HTTP, and nothing that it does gets further than an error."""

from __future__ import annotations

import asyncio
import gzip
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import Raw
from structlog.testing import capture_logs

from gateway.v1.agents import model
from gateway.v1.agents.loop import Answer, Usage
from gateway.v1.agents.model import Model
from gateway.v1.problems import Problem
from tests.fakes import inference
from tests.fakes.inference import BOUND, KEY, Inference, call, calls, completion, says, sends

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.fakes.inference import Line

MESSAGES = (Raw(b'{"role":"user","content":"1.50"}'),)

JSON = "application/json"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeats need not wait."""
    monkeypatch.setattr("openai._constants.INITIAL_RETRY_DELAY", 0.0)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.0)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.0)


@asynccontextmanager
async def asking(*script: Line, key: str = KEY) -> AsyncIterator[tuple[Inference, Model]]:
    async with inference.playing(*script) as served:
        asked = Model(f"{served.url}/v1", key)
        try:
            yield served, asked
        finally:
            await asked.aclose()


async def answer(*script: Line) -> Answer:
    async with asking(*script) as (_, asked), asyncio.timeout(BOUND):
        return await asked.ask({"model": "m"}, MESSAGES)


async def problem(*script: Line, key: str = KEY) -> Problem:
    with pytest.raises(Problem) as raised:
        async with asking(*script, key=key) as (_, asked), asyncio.timeout(BOUND):
            await asked.ask({"model": "m"}, MESSAGES)
    return raised.value


async def test_the_request_is_sent_as_it_is() -> None:
    async with asking(says("hello")) as (served, asked):
        await asked.ask({"model": "m", "temperature": 0.2}, MESSAGES)
    (given,) = served.asked
    assert await given.request.read() == (
        b'{"model":"m","temperature":0.2,"messages":[{"role":"user","content":"1.50"}]}'
    )
    assert given.request.headers["Authorization"] == f"Bearer {KEY}"
    assert given.request.content_type == JSON


async def test_an_answer_is_read() -> None:
    found = await answer(says("hello", system_fingerprint="f"))
    assert found == Answer("hello", (), "stop", Usage(10, 5, 15), None, "claude-4-sonnet", "f")


async def test_calls_are_read() -> None:
    found = await answer(calls(call("a", {"x": 1}, "c1"), text="see"))
    assert found.content == "see"
    assert [(each.id, each.name, each.arguments) for each in found.calls] == [
        ("c1", "a", '{"x": 1}')
    ]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({}, Answer(None)),
        ({"content": "a", "tool_calls": None}, Answer("a")),
        ({"content": "a", "tool_calls": []}, Answer("a")),
        ({"content": None, "refusal": "no"}, Answer(None, refusal="no")),
    ],
)
async def test_what_is_left_out_is_nothing(message: Any, expected: Answer) -> None:
    body = json.dumps({"choices": [{"message": message}]})
    assert await answer(sends(body)) == expected


async def test_arguments_that_are_no_text_are_made_one() -> None:
    wanted = {"function": {"name": "a", "arguments": {"x": 1.5}}}
    (found,) = (await answer(calls(wanted))).calls
    assert (found.id, found.arguments) == ("", '{"x":1.5}')


@pytest.mark.parametrize("usage", [None, {"prompt_tokens": None}, "much", []])
async def test_tokens_that_cannot_be_read_are_none(usage: Any) -> None:
    assert (await answer(says("a", usage=usage))).usage == Usage()


GARBAGE: dict[str, bytes] = {
    "nothing": b"",
    "a page": b"<!doctype html><title>Login</title>",
    "no choices": b'{"choices": []}',
    "choices of another kind": b'{"choices": {}}',
    "a choice of another kind": b'{"choices": ["x"]}',
    "no object": b"[1]",
    "no UTF-8": b'{"choices": [{"message": {"content": "\xff"}}]}',
    "without an end": b'{"choices": [{"message": {"con',
    "deep": b'{"choices": ' + b"[" * 100_000,
    "calls without a name": b'{"choices": [{"message": {"tool_calls": [{"function": {}}]}}]}',
    "too many calls": json.dumps(
        completion({"tool_calls": [call("a", {})] * 129}, "tool_calls")
    ).encode(),
    "an event stream": b'data: {"choices": []}\n\ndata: [DONE]\n\n',
}


@pytest.mark.parametrize("body", GARBAGE.values(), ids=GARBAGE)
async def test_garbage_is_a_failure_of_the_server(body: bytes) -> None:
    found = await problem(sends(body, Content_Type=JSON))
    assert (found.status, found.code) == (502, "inference_unreadable")


async def test_an_answer_is_believed_whatever_it_is_called() -> None:
    body = json.dumps(completion({"content": "a"}, "stop"))
    assert (await answer(sends(body, Content_Type="text/html"))).content == "a"


async def test_a_body_without_an_end_is_not_read_to_it() -> None:
    assert (await problem(inference.never_ends)).code == "inference_too_big"


async def test_an_error_without_an_end_is_not_read_to_it() -> None:
    huge = sends(b"x" * (model.ANSWER_BYTES + 1), 400)
    assert (await problem(huge)).code == "inference_too_big"


async def test_the_longest_body_is_read() -> None:
    frame = json.dumps(completion({"content": ""}, "stop")).encode()
    body = frame + b" " * (model.ANSWER_BYTES - len(frame))
    assert (await answer(sends(body))).content == ""


async def test_an_encoded_body_is_not_unpacked() -> None:
    bomb = sends(gzip.compress(b"x" * 10_000_000), Content_Encoding="gzip")
    assert (await problem(bomb)).code == "inference_too_big"


@pytest.mark.parametrize("line", [inference.hangs], ids=["hangs"])
async def test_a_server_that_does_not_answer_is_given_up(
    monkeypatch: pytest.MonkeyPatch, line: Line
) -> None:
    monkeypatch.setattr(model, "ANSWER_S", 0.05)
    found = await problem(line)
    assert (found.status, found.code) == (504, "inference_timeout")


async def test_a_server_that_is_not_there_cannot_be_reached() -> None:
    async with inference.playing() as served:
        url = served.url
    asked = Model(f"{url}/v1", KEY)
    with pytest.raises(Problem) as raised:
        await asked.ask({"model": "m"}, MESSAGES)
    await asked.aclose()
    assert (raised.value.status, raised.value.code) == (502, "inference_unreachable")


async def test_a_server_that_is_busy_is_asked_again() -> None:
    assert (await answer(sends("", 429), sends("", 503), says("at last"))).content == "at last"


async def test_a_server_that_stays_busy_says_when_to_come_back() -> None:
    busy = inference.refuses(429, "too many", Retry_After="0")
    found = await problem(busy, busy, inference.refuses(429, "too many", Retry_After="17"))
    assert (found.status, found.code, found.retry_after_s) == (429, "rate_limit_exceeded", 17)


@pytest.mark.parametrize("status", [500, 502, 302])
async def test_a_server_that_fails_is_a_failure_of_it(status: int) -> None:
    line = sends("oops", status, Location="/elsewhere")
    found = await problem(line, line, line)
    assert (found.status, found.code) == (502, "inference_failed")


@pytest.mark.parametrize(("status", "told"), [(400, 400), (404, 404), (422, 400)])
async def test_a_request_that_is_refused_is_told_why(status: int, told: int) -> None:
    found = await problem(inference.refuses(status, "no such model"))
    assert (found.status, found.code) == (told, "inference_refused")
    assert "no such model" in found.message


async def test_a_refusal_that_cannot_be_read_is_told_without_words() -> None:
    found = await problem(sends("<html>no</html>", 400))
    assert found.message == "the model's server refuses the request (400)"


async def test_a_key_that_is_refused_is_no_error_of_the_client() -> None:
    found = await problem(key="sk-a-wrong-one")
    assert (found.status, found.code) == (502, "inference_key_refused")
    assert "who are you" not in found.message


async def test_neither_key_nor_address_is_told() -> None:
    async with asking() as (served, asked):
        quoted = f"bad request at {served.url}/v1 with {KEY}\nand \x1b[31m more " + "x" * 1000
        served.script.append(inference.refuses(400, quoted))
        with capture_logs() as logs, pytest.raises(Problem) as raised:
            await asked.ask({"model": "m"}, MESSAGES)
        told = f"{raised.value.message} {logs}"
        assert KEY not in told
        assert served.url not in told
        assert "127.0.0.1" not in told
        assert "\x1b" not in raised.value.message
        assert len(raised.value.message) < 500
        assert raised.value.__cause__ is None


async def test_being_cancelled_takes_the_question_back() -> None:
    async with asking(inference.hangs) as (served, asked):
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
            task = tasks.create_task(asked.ask({"model": "m"}, MESSAGES))
            while not served.asked:  # noqa: ASYNC110 - both ends are on this loop, and it is soon
                await asyncio.sleep(0)
            task.cancel()
        async with asyncio.timeout(BOUND):
            while not served.left:  # noqa: ASYNC110
                await asyncio.sleep(0)


async def test_a_server_may_want_no_key() -> None:
    async with asking(key="") as (served, asked):
        with pytest.raises(Problem):
            await asked.ask({"model": "m"}, MESSAGES)
    assert served.asked[0].request.headers["Authorization"] == "Bearer none"
