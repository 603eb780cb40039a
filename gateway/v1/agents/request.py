"""What a client asks of an agent: the documented request, read and checked. Pure.

Messages stay as they came, but for the names of tools in them: a client that goes on with a
conversation sends back names as it was shown them, and models take fewer characters.
"""

import re
from collections.abc import Callable
from typing import Any, Final, Literal, TypeVar

import msgspec
from msgspec import Raw

from gateway.jsonrpc import ShortArray
from gateway.v1.problems import Problem

MAX_MESSAGES: Final = 1024
"""Messages of a request."""

MAX_TOOLS: Final = 128
"""Tools of a request, and calls of one message: what OpenAI takes."""

TTL_S: Final = 120
"""How long a dyno of a `heroku_tool` may live, in seconds, as Heroku has it: default and most."""

CALLS: Final = 3
"""How often a `heroku_tool` may be called in a run, unless the request says otherwise."""

MAX_TTL_S: Final = 86_400
"""A day, the longest that the platform lets a dyno live."""

_ROLES: Final = ("system", "user", "assistant", "tool")

_WHERE: Final = re.compile(r" - at `\$(?:\.)?(.*)`$")
"""How msgspec says what an error is about."""

NULL: Final = Raw(b"null")

T = TypeVar("T")


class RuntimeParams(msgspec.Struct):
    """How a tool is run.

    Attributes:
        target_app_name: in whose dynos.
        dyno_size: of them.
        ttl_seconds: how long one may live.
        max_calls: how often the tool may be called in this run.
        tool_params: for the tool itself, see `toolbox`.
    """

    target_app_name: str | None = None
    dyno_size: str | None = None
    ttl_seconds: int | None = None
    max_calls: int | None = None
    tool_params: dict[str, Raw] | None = None


class Tool(msgspec.Struct):
    """A tool that the model may use."""

    type: Literal["heroku_tool", "mcp"]
    name: str
    description: str | None = None
    runtime_params: RuntimeParams | None = None

    @property
    def runtime(self) -> RuntimeParams:
        """How it is run."""
        return self.runtime_params or RuntimeParams()

    @property
    def ttl_s(self) -> int | None:
        """How long a dyno of it may live, in seconds; None for as long as its server says."""
        given = self.runtime.ttl_seconds
        return TTL_S if given is None and self.type == "heroku_tool" else given

    @property
    def max_calls(self) -> int | None:
        """How often it may be called in a run; None for no limit of its own."""
        given = self.runtime.max_calls
        return CALLS if given is None and self.type == "heroku_tool" else given


class AgentRequest(msgspec.Struct):
    """The body of a request; what it has beside these is ignored.

    Attributes:
        model: the model's name; empty takes the default.
        messages: the conversation so far.
        tools: that the model may use.
        max_tokens_per_inference_request: of each answer of the model.
        temperature: passed on, if given.
        top_p: likewise.
        stop: likewise.
    """

    model: str | None = None
    messages: Raw = NULL
    tools: Raw = NULL
    max_tokens_per_inference_request: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None


class _Role(msgspec.Struct):
    role: str


_REQUEST = msgspec.json.Decoder(AgentRequest)
_TOOL = msgspec.json.Decoder(Tool)
_ROLE = msgspec.json.Decoder(_Role)
_OBJECT = msgspec.json.Decoder(dict[str, Raw])
_TEXT = msgspec.json.Decoder(str)
_MESSAGE_ARRAY = ShortArray(MAX_MESSAGES)
_TOOL_ARRAY = ShortArray(MAX_TOOLS)

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def read(body: bytes) -> AgentRequest:
    """Read a body.

    Raises:
        Problem: 400, names the part that is wrong.
    """
    try:
        body.decode()  # msgspec lets invalid UTF-8 pass inside Raw
    except UnicodeDecodeError as error:
        raise _wrong("the body is not UTF-8", None) from error
    request = _decoded(_REQUEST, body, "")
    tokens = request.max_tokens_per_inference_request
    _check(tokens is None or tokens >= 1, "max_tokens_per_inference_request", "at least 1")
    _check(_within(request.temperature, 2), "temperature", "0 to 2")
    _check(_within(request.top_p, 1), "top_p", "0 to 1")
    return request


def messages(request: AgentRequest) -> list[Raw]:
    """Return the messages, each as it came.

    Raises:
        Problem: 400, names the message that is wrong.
    """
    found = _members(_MESSAGE_ARRAY, request.messages, "messages")
    _check(0 < len(found) <= MAX_MESSAGES, "messages", f"1 to {MAX_MESSAGES} of them")
    for number, raw in enumerate(found):
        where = f"messages[{number}]"
        role = _decoded(_ROLE, raw, where).role
        _check(role in _ROLES, f"{where}.role", f"one of {', '.join(_ROLES)}")
    return found


def tools(request: AgentRequest) -> list[Tool]:
    """Return the tools.

    Raises:
        Problem: 400, names the tool that is wrong.
    """
    if request.tools == NULL:
        return []
    found = _members(_TOOL_ARRAY, request.tools, "tools")
    _check(len(found) <= MAX_TOOLS, "tools", f"at most {MAX_TOOLS} of them")
    return [_tool(raw, f"tools[{number}]") for number, raw in enumerate(found)]


def _tool(raw: Raw, where: str) -> Tool:
    tool = _decoded(_TOOL, raw, where)
    runtime, params = tool.runtime, f"{where}.runtime_params"
    most = TTL_S if tool.type == "heroku_tool" else MAX_TTL_S
    ttl, calls = runtime.ttl_seconds, runtime.max_calls
    _check(ttl is None or 1 <= ttl <= most, f"{params}.ttl_seconds", f"1 to {most}")
    _check(calls is None or calls >= 1, f"{params}.max_calls", "at least 1")
    return tool


def renamed(message: Raw, fit: Callable[[str], str]) -> Raw:
    """Return a message with the names of tools as the model knows them; all else is untouched.

    Args:
        message: as a client sent it.
        fit: a name as the client was shown it to the one that the model knows.
    """
    try:
        fields = _OBJECT.decode(message)
        if not fields.keys() & {"tool_calls", "name"}:
            return message
        if _TEXT.decode(fields["role"]) == "tool" and "name" in fields:
            fields["name"] = _fitted(fields["name"], fit)
        if fields.get("tool_calls", NULL) != NULL:
            calls = _TOOL_ARRAY.members(fields["tool_calls"])
            fields["tool_calls"] = _encoded([_call(call, fit) for call in calls])
    except _UNREADABLE:
        return message  # the model's server says what is wrong with it
    return _encoded(fields)


def _call(raw: Raw, fit: Callable[[str], str]) -> dict[str, Raw]:
    call = _OBJECT.decode(raw)
    function = _OBJECT.decode(call.get("function", Raw(b"{}")))
    if "name" in function:
        function["name"] = _fitted(function["name"], fit)
        call["function"] = _encoded(function)
    return call


def _fitted(name: Raw, fit: Callable[[str], str]) -> Raw:
    return _encoded(fit(_TEXT.decode(name)))


def _encoded(value: Any) -> Raw:
    return Raw(msgspec.json.encode(value))


def _members(array: ShortArray, raw: Raw, where: str) -> list[Raw]:
    try:
        return array.members(raw)
    except _UNREADABLE:
        raise _wrong(f"{where}: expected an array", where) from None


def _decoded(decoder: msgspec.json.Decoder[T], raw: bytes | Raw, where: str) -> T:
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        found = _WHERE.search(str(error))
        said = str(error)[: found.start()] if found else str(error)
        param = ".".join(filter(None, (where, found[1] if found else ""))) or None
        raise _wrong(f"{param}: {said}" if param else said, param) from error
    except _UNREADABLE as error:
        raise _wrong(f"the body is not JSON: {error}", where or None) from error


def _within(value: float | None, most: float) -> bool:
    return value is None or 0 <= value <= most


def _check(good: bool, param: str, rule: str) -> None:
    if not good:
        raise _wrong(f"{param}: {rule}", param)


def _wrong(message: str, param: str | None) -> Problem:
    return Problem(400, message, "invalid_request", param=param)
