"""Asks the model: any server with an OpenAI-compatible `/v1/chat/completions`.

Its answers are not trusted: they have a size and a time, and what cannot be read is a failure of
that server, told as one. Its key and its address reach no client and no log.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

import httpx2
import msgspec
import structlog
from msgspec import Raw
from openai import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AsyncOpenAI,
    OpenAIError,
)

from gateway.jsonrpc import ShortArray
from gateway.v1.agents.loop import Answer, Call, Usage
from gateway.v1.problems import Problem

ANSWER_BYTES: Final = 2 * 1024 * 1024
"""Of one response of the model's server. The longest answers have some 100 KB."""

CALLS: Final = 128
"""Calls of one answer."""

ANSWER_S: Final = 300.0
"""How long one answer may take, repeats included: models that think take minutes."""

CONNECT_S: Final = 10.0

REPEATS: Final = 2
"""How often a request is sent again that the server was too busy for, or that never reached it."""

CONNECTIONS: Final = 64
"""To the model's server, at the same time."""

TOLD_CHARACTERS: Final = 300
"""Of what the model's server says of a request that it refuses."""

_TELLS: Final = {400, 404, 413, 422}
"""Statuses that say what is wrong with a request. What is said with any other may quote the key."""


NULL: Final = Raw(b"null")


class TooMuch(OpenAIError):
    """A response over `ANSWER_BYTES`, or encoded. The class keeps it from being asked for again."""


class _Bounded(httpx2.AsyncByteStream):
    """The body of a response, up to `ANSWER_BYTES`."""

    def __init__(self, body: httpx2.AsyncByteStream) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for piece in self._body:
            size += len(piece)
            if size > ANSWER_BYTES:
                raise TooMuch(f"over {ANSWER_BYTES} bytes")
            yield piece

    async def aclose(self) -> None:
        await self._body.aclose()


class _Transport(httpx2.AsyncHTTPTransport):
    """Bounds what comes."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        if response.headers.get("content-encoding", "identity") != "identity":
            await response.aclose()
            raise TooMuch("an encoded response, of which nobody knows how long it is")
        if isinstance(response.stream, httpx2.AsyncByteStream):
            response.stream = _Bounded(response.stream)
        return response


class _Function(msgspec.Struct):
    name: str
    arguments: str | dict[str, Raw] = "{}"  # some servers forget that it should be a text


class _ToolCall(msgspec.Struct):
    function: _Function
    id: str | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    tool_calls: Raw = NULL


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: Raw
    model: str | None = None
    system_fingerprint: str | None = None
    usage: Raw = NULL


class _Told(msgspec.Struct):
    message: str = ""


class _Trouble(msgspec.Struct):
    error: _Told | str = ""


_COMPLETION = msgspec.json.Decoder(_Completion)
_CHOICE = msgspec.json.Decoder(_Choice)
_TOOL_CALL = msgspec.json.Decoder(_ToolCall)
_USAGE = msgspec.json.Decoder(Usage)
_TROUBLE = msgspec.json.Decoder(_Trouble)
_ONE = ShortArray(1)
_CALLS = ShortArray(CALLS)

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Model:
    """The model's server. Whoever made it closes it.

    Args:
        base_url: of it, `/v1` included.
        key: for it; empty for a server that wants none.
    """

    def __init__(self, base_url: str, key: str) -> None:
        self._secrets = [each for each in (key, base_url, httpx2.URL(base_url).host) if each]
        self._client = AsyncOpenAI(
            base_url=base_url,
            api_key=key or "none",
            max_retries=REPEATS,
            timeout=httpx2.Timeout(ANSWER_S, connect=CONNECT_S),
            default_headers={"Accept-Encoding": "identity"},
            http_client=httpx2.AsyncClient(
                transport=_Transport(
                    verify=base_url.startswith("https:"),  # or certificates are read for nothing
                    limits=httpx2.Limits(max_connections=CONNECTIONS),
                ),
                trust_env=False,
            ),
        )

    async def aclose(self) -> None:
        """Close what is open."""
        await self._client.close()

    async def ask(self, request: Mapping[str, Any], messages: Sequence[Raw]) -> Answer:
        """Return the model's answer; being cancelled takes the question back.

        Args:
            request: all but the messages.
            messages: the conversation so far.

        Raises:
            Problem: it has none; says whether the request or the server is wrong.
        """
        body = msgspec.json.encode({**request, "messages": messages})
        try:
            async with asyncio.timeout(ANSWER_S):
                response = await self._client.post(
                    "/chat/completions", cast_to=httpx2.Response, content=body
                )
        except (OpenAIError, TimeoutError) as error:
            problem = self._problem(error)
            structlog.get_logger().warning("inference_failed", why=problem.message)
            raise problem from None  # what it came of names the address
        try:
            return _answer(response.content)
        except _UNREADABLE as error:
            structlog.get_logger().warning("inference_unreadable", status=response.status_code)
            raise _unreadable() from error

    def _problem(self, error: OpenAIError | TimeoutError) -> Problem:
        match error:
            case APIStatusError():
                return self._refused(error)
            case APITimeoutError() | TimeoutError():
                return Problem(
                    504,
                    f"the model did not answer within {ANSWER_S:.0f} s; try again, or ask for less",
                    "inference_timeout",
                )
            case APIConnectionError():
                return Problem(
                    502,
                    "the model's server could not be reached (INFERENCE_URL); try again",
                    "inference_unreachable",
                )
            case TooMuch():
                return Problem(
                    502,
                    f"the model's server has sent too much ({error}); is INFERENCE_URL right?",
                    "inference_too_big",
                )
            case _:
                return _unreadable()

    def _refused(self, error: APIStatusError) -> Problem:
        status = error.status_code
        if status in _TELLS:
            said = self._said(error.response.content)
            message = f"the model's server refuses the request ({status}){said and f': {said}'}"
            return Problem(404 if status == 404 else 400, message, "inference_refused")
        if status == 429:
            wait = error.response.headers.get("retry-after", "")
            return Problem(
                429,
                "the model's server has no room for more requests just now; try again later",
                "rate_limit_exceeded",
                retry_after_s=int(wait) if wait.isdecimal() and len(wait) < 6 else 30,
            )
        if status in (401, 403):
            why = "does not take the gateway's key (INFERENCE_KEY); its operator has to look"
            return Problem(502, f"the model's server {why}", "inference_key_refused")
        return Problem(
            502, f"the model's server has failed ({status}); try again", "inference_failed"
        )

    def _said(self, body: bytes) -> str:
        """Return what the server says is wrong, without what nobody is to know."""
        try:
            error = _TROUBLE.decode(body).error
        except _UNREADABLE:
            return ""
        said = error if isinstance(error, str) else error.message
        for secret in self._secrets:
            said = said.replace(secret, "…")
        return "".join(char if char.isprintable() else " " for char in said[:TOLD_CHARACTERS])


def _answer(body: bytes) -> Answer:
    body.decode()  # msgspec lets invalid UTF-8 pass inside Raw
    completion = _COMPLETION.decode(body)
    choices = _ONE.members(completion.choices)
    if not choices:
        raise msgspec.DecodeError("no choices")
    choice = _CHOICE.decode(choices[0])
    message = choice.message
    calls = [] if message.tool_calls == NULL else _CALLS.members(message.tool_calls)
    if len(calls) > CALLS:
        raise msgspec.DecodeError("too many calls")
    return Answer(
        content=message.content,
        calls=tuple(_call(call) for call in calls),
        finish_reason=choice.finish_reason or "stop",
        usage=_usage(completion.usage),
        refusal=message.refusal,
        model=completion.model or "",
        fingerprint=completion.system_fingerprint or "",
    )


def _call(raw: Raw) -> Call:
    call = _TOOL_CALL.decode(raw)
    given = call.function.arguments
    arguments = given if isinstance(given, str) else msgspec.json.encode(given).decode()
    return Call(call.id or "", call.function.name, arguments)


def _usage(raw: Raw) -> Usage:
    """Return what is told of tokens; none where that cannot be read: nothing depends on it."""
    try:
        return _USAGE.decode(raw)
    except _UNREADABLE:
        return Usage()


def _unreadable() -> Problem:
    return Problem(
        502,
        "the model's server has sent what is no chat completion; is INFERENCE_URL right?",
        "inference_unreadable",
    )
