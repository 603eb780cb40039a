"""Events as Heroku documents them, byte for byte."""

from __future__ import annotations

import json

from gateway.v1.agents.frames import COMMENT, DONE, Frames, failed
from gateway.v1.agents.loop import Answer, Call, Usage
from tests.v1.documented import events, example

STREAM: str = example("agent_stream")

DOCUMENTED = [json.loads(data) for _, data in events(STREAM)[:-1]]


def test_the_documented_stream_is_made_byte_for_byte() -> None:
    first, returned, last = DOCUMENTED
    wanted = first["choices"][0]["message"]["tool_calls"][0]
    known = {"mcp-python__code_exec_python": "mcp-python/code_exec_python"}
    frames = Frames(first["id"], first["model"], first["system_fingerprint"], known)
    arguments = wanted["function"]["arguments"]
    call = Call(wanted["id"], "mcp-python__code_exec_python", arguments)
    result = returned["choices"][0]["message"]["content"].partition("returned result: ")[2]
    made = (
        frames.said(
            Answer(
                first["choices"][0]["message"]["content"],
                [call],
                "tool_calls",
                Usage(**first["usage"]),
            ),
            first["created"],
        ),
        frames.returned(call.id, call.name, result.encode(), returned["created"]),
        frames.said(
            Answer(last["choices"][0]["message"]["content"], usage=Usage(**last["usage"])),
            last["created"],
        ),
        DONE,
    )
    assert b"".join(made) == STREAM.encode()


def test_the_documented_answers_tell_their_own_tokens_each() -> None:
    """The last one tells fewer than the first, so it is no sum."""
    first, _, last = (each["usage"] for each in DOCUMENTED)
    assert last["completion_tokens"] < first["completion_tokens"]


def test_model_and_fingerprint_are_those_of_the_answer_if_it_has_any() -> None:
    frames = Frames("id", "asked", "ours", {})
    (event,) = events(frames.said(Answer("a", model="m", fingerprint="f"), 1).decode())
    document = json.loads(event[1])
    assert (document["model"], document["system_fingerprint"]) == ("m", "f")


def test_model_and_fingerprint_are_ours_if_the_answer_has_none() -> None:
    frames = Frames("id", "asked", "ours", {})
    (event,) = events(frames.said(Answer("a"), 1).decode())
    document = json.loads(event[1])
    assert (document["model"], document["system_fingerprint"]) == ("asked", "ours")


def test_an_error_is_an_event_of_its_own() -> None:
    assert failed({"error": {"code": "x"}}) == b'event:error\ndata:{"error":{"code":"x"}}\n\n'


def test_line_breaks_of_a_text_break_no_event() -> None:
    frames = Frames("id", "m", "f", {})
    event = frames.said(Answer("a\n\nevent:done\r\ndata:[DONE]\u2028"), 1)
    assert event.count(b"\n") == 3
    assert b"\r" not in event


def test_a_comment_is_no_event() -> None:
    assert events(COMMENT.decode()) == []
