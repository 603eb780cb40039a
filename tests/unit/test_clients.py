"""The rules of the clients: arguments, URLs, keys, sentences, output. No process, no wire."""

from __future__ import annotations

import errno
import io
import json
from typing import Any

import httpx2
import pytest
from mcp import MCPError
from mcp.types import (
    CONNECTION_CLOSED,
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    UNSUPPORTED_PROTOCOL_VERSION,
    CallToolResult,
    ListToolsResult,
    TextContent,
    Tool,
)

from clients import failures, session
from clients import stdio as stdio_client
from clients import streamable_http as http_client
from clients.request import (
    VERBS,
    Call,
    HttpTarget,
    StdioTarget,
    UsageError,
    bearer_key,
    endpoint,
    parse_call,
)
from clients.terminal import ProgressLine, plain, write_json

HTTP = HttpTarget("http://user:password@host.test/mcp?token=abc", "s3cret")
STDIO = StdioTarget("server", ("--flag",))
LIST_TOOLS = Call("list_tools", {})
CALL_TOOL = Call("call_tool", {"name": "add"})


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def sentence(
    error: Exception,
    call: Call = LIST_TOOLS,
    target: HttpTarget | StdioTarget = HTTP,
    refusal: failures.Refusal | None = None,
) -> str:
    return failures.explain(error, call, target, refusal=refusal, timeout=3)


# -- arguments ---------------------------------------------------------------------------------


def test_the_call_of_the_seeds_is_understood() -> None:
    text = '{"name": "code_exec_python", "arguments": {"code": "1", "packages": ["numpy"]}}'
    assert parse_call("call_tool", text) == Call("call_tool", json.loads(text))


@pytest.mark.parametrize("verb", VERBS)
def test_the_example_of_a_verb_is_valid(verb: str) -> None:
    parse_call(verb, VERBS[verb].example or None)


@pytest.mark.parametrize(
    ("verb", "text", "said"),
    [
        ("call_tool", '{"name":}', "line 1 column 9"),
        ("call_tool", '{\n "name" "x"}', "line 2 column 9"),
        ("call_tool", "[]", "must be a JSON object"),
        ("call_tool", None, 'needs "name"'),
        ("call_tool", '{"arguments": {}}', 'needs "name"'),
        ("call_tool", '{"name": 1}', "must be a string"),
        ("call_tool", '{"name": "x", "arguments": []}', "must be an object"),
        ("call_tool", '{"name": "x", "args": {}}', 'key "args"'),
        ("call_tool", '{"name": "x", "arguments": {"n": NaN}}', "NaN"),
        ("call_tool", '{"name": "\\ud800"}', "cannot carry"),
        ("call_tool", "[" * 200_000, "nested too deeply"),
        ("read_resource", "{}", 'needs "uri"'),
        ("get_prompt", '{"name": "x", "arguments": {"n": 1}}', '"n" must be a string'),
        ("list_tools", '{"cursor": "x"}', "takes no --args"),
    ],
)
def test_wrong_arguments_are_explained(verb: str, text: str | None, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_call(verb, text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("base", "server", "expected"),
    [
        ("http://127.0.0.1:8000", None, "http://127.0.0.1:8000/mcp"),
        ("http://127.0.0.1:8000/", None, "http://127.0.0.1:8000/mcp"),
        ("https://app.test/mcp", None, "https://app.test/mcp"),
        ("https://app.test/mcp/", None, "https://app.test/mcp"),
        ("https://app.test/", "code", "https://app.test/servers/code/mcp"),
        ("https://app.test", "a/b c", "https://app.test/servers/a%2Fb%20c/mcp"),
        ("https://app.test/servers/code/mcp", None, "https://app.test/servers/code/mcp"),
        ("http://[::1]:8000", None, "http://[::1]:8000/mcp"),
    ],
)
def test_the_endpoint_is_made_from_the_base(base: str, server: str | None, expected: str) -> None:
    assert endpoint(base, server) == expected


@pytest.mark.parametrize(
    ("base", "server"),
    [
        ("127.0.0.1:8000", None),
        ("ftp://host", None),
        ("http://", None),
        ("http://host:99999", None),
        ("http://[::1", None),
        ("http://a b/", None),
        ("http://a..b", None),
        ("http://host/mcp", "code"),
    ],
)
def test_an_impossible_endpoint_is_refused(base: str, server: str | None) -> None:
    with pytest.raises(UsageError, match="MCP_SERVER_URL"):
        endpoint(base, server)


@pytest.mark.parametrize(
    ("value", "key"), [(None, None), ("", None), (" \r\n", None), ("abc\r\n", "abc")]
)
def test_the_key_is_cleaned_of_what_a_shell_leaves(value: str | None, key: str | None) -> None:
    assert bearer_key(value) == key


@pytest.mark.parametrize("value", ["a b", "a\nb", "ключ"])
def test_a_key_no_header_can_carry_is_refused_and_not_repeated(value: str) -> None:
    with pytest.raises(UsageError) as caught:
        bearer_key(value)
    assert value not in str(caught.value)


def test_the_key_is_not_in_the_repr_of_a_target() -> None:
    assert "s3cret" not in repr(HTTP)


# -- usage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("main", [http_client.main, stdio_client.main], ids=["http", "stdio"])
@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["list_tools"],
        ["mcp", "list_toolz"],
        ["mcp", "list_tools", "--timeout", "0"],
        ["mcp", "list_tools", "--timeout", "nan"],
        ["mcp", "list_tools", "--timeout", "soon"],
        ["mcp", "list_tools", "--protocol", "1999-01-01"],
    ],
)
def test_a_command_not_understood_exits_2(
    main: Any, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("command", ["", "  ", "unbalanced 'quote"])
def test_a_command_without_words_exits_2(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert stdio_client.main(["mcp", "list_tools", "--command", command]) == 2
    assert "--command" in capsys.readouterr().err


def test_the_bundled_server_is_the_default() -> None:
    assert stdio_client.BUNDLED_SERVER.args == ("-m", "mcp_servers.code_exec")


# -- sentences ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "key", "said"),
    [
        (401, None, "API_KEY is not set"),
        (401, "k", "not a key of this server"),
        (403, "k", "may not do this"),
        (404, "k", "check MCP_SERVER_URL"),
        (400, "k", "--protocol"),
        (503, "k", "try again"),
        (418, "k", "the log of the server"),
    ],
)
def test_a_refusal_names_the_status_and_the_next_step(
    status: int, key: str | None, said: str
) -> None:
    target = HttpTarget("http://host.test/mcp", key)
    text = sentence(MCPError(-32603, "x"), target=target, refusal=failures.Refusal(status, ""))
    assert f"HTTP {status}" in text
    assert said in text


def test_a_refusal_hands_on_what_the_server_said_and_how_long_to_wait() -> None:
    refusal = failures.Refusal(429, "limit of 5 sessions reached.", retry_after="7")
    text = sentence(MCPError(-32603, "x"), refusal=refusal)
    assert (
        "HTTP 429: limit of 5 sessions reached; wait, then try again (it asks to wait: 7)" in text
    )


def test_a_protocol_error_with_an_http_status_is_an_answer() -> None:
    refusal = failures.Refusal(400, "Unknown tool: add", json_rpc=True)
    text = sentence(MCPError(INVALID_PARAMS, "Unknown tool: add"), CALL_TOOL, refusal=refusal)
    assert "HTTP" not in text
    assert "mcp list_tools" in text


@pytest.mark.parametrize(
    ("error", "target", "said"),
    [
        (MCPError(CONNECTION_CLOSED, "gone"), STDIO, "closed the connection"),
        (MCPError(CONNECTION_CLOSED, "gone"), HTTP, "error -32000: gone"),
        (MCPError(METHOD_NOT_FOUND, "no"), HTTP, "does not offer 'list tools'"),
        (MCPError(UNSUPPORTED_PROTOCOL_VERSION, "no"), HTTP, "--protocol auto"),
        (MCPError(INVALID_PARAMS, ""), HTTP, "error -32602: no message"),
        (TimeoutError(), HTTP, "within 3 s: give it longer with --timeout"),
        (httpx2.ConnectError("refused"), HTTP, "check that the server runs"),
        (httpx2.ConnectTimeout(""), HTTP, "(ConnectTimeout)"),
        (httpx2.ReadTimeout(""), HTTP, "stopped answering"),
        (httpx2.ProxyError("407"), HTTP, "HTTPS_PROXY"),
        (httpx2.ReadError("reset"), HTTP, "broke (reset)"),
        (httpx2.InvalidURL("bad"), HTTP, "is not a URL"),
        (FileNotFoundError(errno.ENOENT, "No such file"), STDIO, "check --command"),
        (OSError(errno.ENETDOWN, "Network is down"), HTTP, "(Network is down)"),
        (RuntimeError("Invalid structured content"), HTTP, "breaks the protocol: Invalid"),
    ],
)
def test_each_failure_has_its_next_step(
    error: Exception, target: HttpTarget | StdioTarget, said: str
) -> None:
    text = sentence(error, target=target)
    assert said in text
    assert "password" not in text
    assert "abc" not in text


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"jsonrpc": "2.0", "error": {"code": 1, "message": "said"}}', "said"),
        (b'{"error": "invalid_token", "error_description": "said"}', "said"),
        (b'{"error": "said"}', "said"),
        (b'{"detail": "said"}', "said"),
        (b"<html>", ""),
        (b"[1]", ""),
        (b'{"error": 5}', ""),
    ],
)
def test_the_sentence_in_an_error_body_is_found(body: bytes, text: str) -> None:
    refusal = failures.refusal_of(httpx2.Response(400, content=body))
    assert (refusal.text, refusal.json_rpc) == (text, b"jsonrpc" in body)


def test_the_failure_inside_nested_groups_is_found() -> None:
    inner = MCPError(1, "x")
    group = BaseExceptionGroup("", [BaseExceptionGroup("", [inner])])
    assert failures.first_expected(group) is inner


def test_a_group_with_a_bug_in_it_is_not_explained_away() -> None:
    assert failures.first_expected(BaseExceptionGroup("", [OSError(), KeyError()])) is None
    assert failures.first_expected(BaseExceptionGroup("", [KeyError()])) is None


# -- lists and output --------------------------------------------------------------------------


class Pages:
    """A list of tools in pages; `cursors[n]` is what page n sends along."""

    def __init__(self, *cursors: str | None) -> None:
        self._cursors = iter(cursors)
        self.asked: list[str | None] = []

    async def __call__(self, cursor: str | None = None) -> ListToolsResult:
        self.asked.append(cursor)
        tool = Tool(name=f"t{len(self.asked)}", input_schema={})
        return ListToolsResult(tools=[tool], next_cursor=next(self._cursors))


async def test_all_pages_are_followed() -> None:
    pages = Pages("a", "b", None)
    result = await session._all_pages(pages, "tools")
    assert isinstance(result, ListToolsResult)
    assert [tool.name for tool in result.tools] == ["t1", "t2", "t3"]
    assert pages.asked == [None, "a", "b"]
    assert result.next_cursor is None


async def test_a_cursor_sent_twice_ends_the_list_with_a_failure() -> None:
    with pytest.raises(failures.RequestFailed, match="does not end"):
        await session._all_pages(Pages("a", "a"), "tools")


async def test_pages_without_end_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MAX_PAGES", 3)
    pages = Pages(*(str(n) for n in range(10)))
    with pytest.raises(failures.RequestFailed, match="does not end"):
        await session._all_pages(pages, "tools")
    assert len(pages.asked) == 4


def test_only_raw_output_has_the_envelope() -> None:
    result = ListToolsResult(tools=[])
    assert session.as_json(result, raw=False) == {"tools": []}
    assert session.as_json(result, raw=True)["resultType"] == "complete"


def test_nulls_inside_structured_content_survive() -> None:
    result = CallToolResult(content=[], structured_content={"a": None})
    assert session.as_json(result, raw=False)["structuredContent"] == {"a": None}


def test_what_a_tool_said_when_it_failed_is_one_clean_line() -> None:
    block = TextContent(type="text", text="line 1\n\x1b[31mline 2")
    assert session.tool_error(CallToolResult(content=[block], is_error=True)) == (
        "line 1 [31mline 2"
    )
    assert session.tool_error(CallToolResult(content=[], is_error=True)) == "no text"
    assert session.tool_error(CallToolResult(content=[block])) is None


def test_json_is_escaped_for_a_stream_that_is_not_unicode() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    write_json({"a": "é😀"}, stream)
    assert json.loads(raw.getvalue()) == {"a": "é😀"}


def test_a_long_text_is_cut() -> None:
    assert plain("x" * 50, 10) == "x" * 9 + "…"


async def test_progress_is_one_line_in_place_on_a_terminal() -> None:
    terminal = Terminal()
    line = ProgressLine(terminal)
    await line.report(1, 2, "half\x1b[2J\nway")
    await line.report(2, None, None)
    line.clear()
    line.clear()
    assert terminal.getvalue() == ("\r\x1b[Kprogress 1/2 half[2J way\r\x1b[Kprogress 2\r\x1b[K")


async def test_progress_is_plain_lines_in_a_file() -> None:
    file = io.StringIO()
    line = ProgressLine(file)
    await line.report(0.5, 1, "half")
    line.clear()
    assert file.getvalue() == "progress 0.5/1 half\n"
