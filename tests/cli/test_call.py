"""`gateway call`: a tool called as any MCP client does it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from gateway.cli import calling, waiting
from gateway.cli.access import Access
from tests.cli.desk import BOUND, EVIL, KEY, ROOT, gw, interruptible, on_terminal, safe
from tests.cli.mcp_stub import ADD, PHASES, stub

if TYPE_CHECKING:
    from pathlib import Path

ARGS = ("call", "tools", "add", "--args", '{"a": 1, "b": 2}')


async def test_text_of_the_result_is_printed_as_it_is() -> None:
    async with stub() as served:
        served.result = {"content": [{"type": "text", "text": "one\n\ttwo"}]}
        said = await gw(*ARGS, **served.access)
        (call,) = served.said("tools/call")
    assert (said.code, said.out) == (0, "one\n\ttwo\n")
    assert call["params"]["name"] == "add"
    assert call["params"]["arguments"] == {"a": 1, "b": 2}


async def test_session_is_ended_with_the_call() -> None:
    async with stub() as served:
        await gw(*ARGS, **served.access)
        assert served.deleted.is_set()


async def test_phases_of_the_boot_are_told_beside_the_result() -> None:
    async with stub() as served:
        said = await gw(*ARGS, **served.access)
    assert said.err.splitlines() == [f"… {phase}" for phase in PHASES]
    assert said.out == "3\n"


async def test_result_as_json_is_whole() -> None:
    whole = {"content": [{"type": "text", "text": EVIL[:20]}], "structuredContent": {"sum": 3}}
    async with stub() as served:
        served.result = whole
        said = await gw(*ARGS, "--json", **served.access)
    assert said.json.items() >= whole.items()
    assert said.out.isascii()


@pytest.mark.parametrize(
    ("block", "shown"),
    [
        (
            {"type": "image", "mimeType": "image/png", "data": "QUJD"},
            "[image image/png 3 bytes; --json has it]",
        ),
        ({"type": "resource", "resource": {"uri": "a://b", "text": "inside"}}, "inside"),
        (
            {"type": "resource", "resource": {"uri": "a://b", "blob": "QUJD"}},
            "[resource a://b 3 bytes; --json has it]",
        ),
        (
            {"type": "resource_link", "uri": "a://b", "name": "n"},
            "[resource_link a://b; --json has it]",
        ),
    ],
    ids=["image", "text resource", "blob", "link"],
)
async def test_what_is_no_text_is_named(block: dict[str, Any], shown: str) -> None:
    async with stub() as served:
        served.result = {"content": [block]}
        said = await gw(*ARGS, **served.access)
    assert said.out == f"{shown}\n"


async def test_structured_content_alone_is_printed() -> None:
    async with stub() as served:
        served.result = {"content": [], "structuredContent": {"sum": 3}}
        said = await gw(*ARGS, **served.access)
    assert said.json == {"sum": 3}


async def test_tool_that_fails_is_a_failure() -> None:
    async with stub() as served:
        served.result = {"content": [{"type": "text", "text": "no such file"}], "isError": True}
        said = await gw(*ARGS, **served.access)
    assert (said.code, said.out) == (1, "no such file\n")
    assert "the tool add failed" in said.err


async def test_error_of_the_protocol_is_a_failure_that_says_where_to_look() -> None:
    async with stub() as served:
        served.error = {"code": -32602, "message": f"bad {EVIL[:20]}"}
        said = await gw(*ARGS, **served.access)
    assert (said.code, said.out) == (1, "")
    assert "-32602" in said.err
    assert "gateway call tools" in said.err
    assert safe(said.err)


async def test_hostile_text_steers_no_terminal() -> None:
    evil = EVIL.replace("\ud800", "")  # half a character is no JSON, so no client lets it in
    async with stub() as served:
        served.result = {"content": [{"type": "text", "text": evil}]}
        served.phases = (evil,)
        said = await gw(*ARGS, **served.access)
        served.pages = [[{**ADD, "name": evil, "description": evil}]]
        listed = await gw("call", "tools", **served.access)
    assert said.code == listed.code == 0
    assert safe(said.out + said.err + listed.out)
    assert len(listed.out.splitlines()) == 2
    assert "[bold]red" in said.out


async def test_tools_are_listed_with_what_they_take() -> None:
    async with stub() as served:
        served.pages = [[ADD], [{**ADD, "name": "sub", "description": None}]]
        said = await gw("call", "tools", **served.access)
    _, add, sub = said.out.splitlines()
    assert add.split() == ["add", "a,", "[b]", "Adds", "two", "numbers."]
    assert sub.split()[0] == "sub"


async def test_tools_as_json_have_their_schemas() -> None:
    async with stub() as served:
        said = await gw("call", "tools", "--json", **served.access)
    assert said.json == {"tools": [ADD]}


async def test_tool_without_arguments_is_listed() -> None:
    async with stub() as served:
        served.pages = [[{"name": "now", "inputSchema": {"type": "object"}}]]
        said = await gw("call", "tools", **served.access)
    assert (said.code, said.out.splitlines()[1].strip()) == (0, "now")


async def test_answer_that_breaks_the_protocol_is_the_servers_fault() -> None:
    async with stub() as served:
        served.pages = [[{"name": "odd", "inputSchema": {"type": "object", "required": 1}}]]
        said = await gw("call", "tools", **served.access)
    assert (said.code, said.out) == (1, "")
    assert "the server's to mend" in said.err
    assert len(said.err.splitlines()) == 1


async def test_arguments_come_from_a_file_or_from_stdin(folder: Path) -> None:
    (folder / "args.json").write_text('{"a": 5}', encoding="utf-8")
    async with stub() as served:
        await gw("call", "tools", "add", "--args", "@args.json", **served.access)
        await gw("call", "tools", "add", "--args", "-", typed='{"a": 6}', **served.access)
        given = [call["params"]["arguments"] for call in served.said("tools/call")]
    assert given == [{"a": 5}, {"a": 6}]


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "x",
        "[1]",
        "1",
        "null",
        '{"a": NaN}',
        '{"a": "\\ud800"}',
        "{'a': 1}",
        "@nowhere",
        "[" * 100_000,
    ],
    ids=range(10),
)
async def test_what_is_no_json_object_is_a_usage_error(typed: str) -> None:
    async with stub() as served:
        said = await gw("call", "tools", "add", "--args", typed, **served.access)
        assert served.heard == []
    assert (said.code, said.out) == (2, "")
    assert "--args" in said.err
    assert len(said.err) < 1000


async def test_arguments_without_a_tool_are_a_usage_error() -> None:
    said = await gw("call", "tools", "--args", "{}", API_KEY=KEY)
    assert said.code == 2


async def test_key_that_is_refused_is_named_and_not_repeated() -> None:
    async with stub() as served:
        said = await gw(*ARGS, GATEWAY_URL=served.url, API_KEY="a-stranger")
    assert (said.code, said.out) == (1, "")
    assert "API_KEY" in said.err
    assert "a-stranger" not in said.err


@pytest.mark.parametrize("status", [404, 429, 503])
async def test_refusal_of_the_gateway_is_told_in_its_own_words(status: int) -> None:
    async with stub() as served:
        served.refusal = status, "no server 'tools'; there are: others"
        said = await gw(*ARGS, **served.access)
    assert (said.code, said.out) == (1, "")
    assert "no server 'tools'; there are: others" in said.err


async def test_gateway_that_is_not_there_is_told_from_one_that_refuses(
    unused_tcp_port: int,
) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    said = await gw(*ARGS, GATEWAY_URL=url, API_KEY=KEY)
    assert (said.code, said.out) == (69, "")
    assert url in said.err


async def test_what_speaks_no_mcp_is_no_gateway() -> None:
    async with stub() as served:
        access = {**served.access, "GATEWAY_URL": f"{served.url}/elsewhere"}
        said = await gw(*ARGS, **access)
    assert said.code == 69
    assert "no gateway" in said.err


async def test_proxy_hears_nothing_of_a_gateway_on_this_machine(unused_tcp_port: int) -> None:
    async with stub() as served:
        said = await gw(*ARGS, **served.access, HTTP_PROXY=f"http://127.0.0.1:{unused_tcp_port}")
    assert said.code == 0


async def test_call_that_takes_too_long_says_how_to_wait_longer() -> None:
    async with stub() as served:
        served.result = None
        said = await gw(*ARGS, "--timeout", "1", **served.access)
    assert (said.code, said.out) == (1, "")
    assert "--timeout" in said.err


async def test_interrupt_cancels_the_call_and_ends_the_session() -> None:
    kept = {name: os.environ[name] for name in ("PATH",) if name in os.environ}
    async with stub() as served:
        served.result = None
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", *ARGS),
            env={**kept, "PYTHONPATH": str(ROOT), **served.access},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            preexec_fn=interruptible,
        )
        async with asyncio.timeout(BOUND):
            await served.asked.wait()
            process.send_signal(signal.SIGINT)
            out, err = await process.communicate()
        (call,) = served.said("tools/call")
        cancelled = served.said("notifications/cancelled")
        assert served.deleted.is_set()
    assert [note["params"]["requestId"] for note in cancelled] == [call["id"]]
    assert process.returncode == 130
    assert out == b""
    assert b"Traceback" not in err


@pytest.mark.usefixtures("measured")
async def test_spinner_shows_the_phases_on_a_terminal_and_leaves_no_trace(folder: Path) -> None:
    async with stub() as served:
        code, shown = await on_terminal(*ARGS, cwd=folder, **served.access)
    assert code == 0
    assert "calling add" in shown
    assert shown.endswith("\x1b[2K3\r\n")


@pytest.mark.parametrize(
    ("progress", "total", "shown"),
    [
        (5, None, ""),
        (5, 0, ""),
        (5, 20, "━━━━━╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌ 25%"),
        (99, 20, "━━━━━━━━━━━━━━━━━━━━ 100%"),
        (-1, 20, "╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌ 0%"),
        (float("nan"), 20, ""),
        (5, float("inf"), ""),
    ],
)
def test_bar_is_drawn_where_there_is_an_end(
    progress: float, total: float | None, shown: str
) -> None:
    assert waiting.drawn(progress, total) == shown


class Rude:
    """A client whose good-bye fails."""

    def __init__(self, *_transport: Any, **_options: Any) -> None:
        pass

    async def __aenter__(self) -> Rude:
        return self

    async def __aexit__(self, *_failure: object) -> None:
        raise httpx2.ReadError("gone")


async def test_good_bye_that_fails_takes_nothing_from_the_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def answer(_client: Any) -> int:
        return 5

    monkeypatch.setattr(calling, "Client", Rude)
    line = calling.Line(Access("http://127.0.0.1:9", KEY), "tools", BOUND)
    assert await calling._ask(line, answer) == 5
