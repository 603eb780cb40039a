"""What a client of an agent sees: events as Heroku documents them, byte for byte. Pure."""

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from gateway.v1.agents.loop import Answer, Usage

COMMENT: Final = b": keep-alive\n\n"
"""Keeps the connection alive; clients skip it."""

DONE: Final = b"event:done\ndata:[DONE]\n\n"
"""The last event, whatever came before it."""


class _Function(msgspec.Struct):
    name: str
    arguments: str


class _Call(msgspec.Struct):
    id: str
    type: Literal["function"]
    function: _Function


class _Assistant(msgspec.Struct, omit_defaults=True):
    role: str
    content: str | None
    refusal: str | None
    tool_calls: list[_Call] = []


class _Result(msgspec.Struct):
    role: str
    content: str
    refusal: None
    tool_call_id: str
    name: str


class _Choice(msgspec.Struct):
    index: int
    message: _Assistant | _Result
    finish_reason: str


class _Completion(msgspec.Struct):
    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[_Choice]
    usage: Usage


class _Returned(msgspec.Struct):
    id: str
    object: str
    created: int
    system_fingerprint: str
    choices: list[_Choice]
    usage: dict[str, int]


class Frames:
    """The events of one run.

    Args:
        run_id: of all its completions.
        model: that is asked, unless its server names another.
        fingerprint: of all events, unless that server names one.
        shown: names of tools as clients know them, by those that the model knows.
    """

    def __init__(self, run_id: str, model: str, fingerprint: str, shown: Mapping[str, str]) -> None:
        self._id = run_id
        self._model = model
        self._fingerprint = fingerprint
        self._shown = shown

    def said(self, answer: Answer, created: int) -> bytes:
        """Return the event for what the model has said, `created` in seconds since 1970.

        It tells the tokens of this answer alone, the last one too: in Heroku's example the answer
        that ends a run of 163 and 62 completion tokens tells 62.
        """
        self._fingerprint = answer.fingerprint or self._fingerprint
        calls = [
            _Call(call.id, "function", _Function(self.name(call.name), call.arguments))
            for call in answer.calls
        ]
        message = _Assistant("assistant", answer.content, answer.refusal, calls)
        return _message(
            _Completion(
                id=self._id,
                object="chat.completion",
                created=created,
                model=answer.model or self._model,
                system_fingerprint=self._fingerprint,
                choices=[_Choice(0, message, "tool_calls" if calls else answer.finish_reason)],
                usage=answer.usage,
            )
        )

    def returned(self, call_id: str, name: str, result: bytes, created: int) -> bytes:
        """Return the event for what a tool has returned.

        Args:
            call_id: of the call.
            name: of the tool, as the model knows it.
            result: a JSON object with `content` and `isError`. The official CLI finds it behind
                the first words by a regular expression, so those must stay.
            created: seconds since 1970.
        """
        shown = self.name(name)
        content = f"Tool '{shown}' returned result: {result.decode()}"
        message = _Result("tool", content, None, call_id, shown)
        return _message(
            _Returned(
                id=self._id,
                object="tool.completion",
                created=created,
                system_fingerprint=self._fingerprint,
                choices=[_Choice(0, message, "")],
                usage={},
            )
        )

    def name(self, known: str) -> str:
        """Return the name of a tool as the client knows it."""
        return self._shown.get(known, known)


def failed(document: Mapping[str, Any]) -> bytes:
    """Return the event for a run that has failed; `document` is an error object."""
    return b"event:error\ndata:" + msgspec.json.encode(document) + b"\n\n"


def _message(completion: _Completion | _Returned) -> bytes:
    return b"event:message\ndata:" + msgspec.json.encode(completion) + b"\n\n"
