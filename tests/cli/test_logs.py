"""A session's story on the command line, whole and as it goes on."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import pytest
from aiohttp import web

from gateway.cli import output, stories
from tests.cli.desk import EVIL, desk, gw, jsonl, safe

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ID = "s-0123456789ab"
AT = 1_790_000_000.25

MESSAGE = {
    "n": 1,
    "at": AT,
    "event": "message",
    "to": "child",
    "kind": "request",
    "method": "tools/call",
    "tool": "add",
    "call": "7",
    "bytes": 312,
}
ANSWER = {
    "n": 2,
    "at": AT + 1,
    "event": "call",
    "server": "tools",
    "call": "7",
    "method": "tools/call",
    "tool": "add",
    "outcome": "ok",
    "ms": 1503.21,
    "bytes_in": 312,
    "bytes_out": 1536,
}
STDERR = {"n": 3, "at": AT + 2, "event": "stderr", "text": "a Traceback", "dropped": 0}
CLOSED = {"n": 4, "at": AT + 3, "event": "closed", "reason": "operator", "usd": 0.0123456789}

STORY, TAIL = ("GET", f"/sessions/{ID}/story"), ("GET", f"/sessions/{ID}/tail")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stories, "PAUSES_S", (0.0, 0.0, 0.0))


def event(line: Any) -> bytes:
    return f"id: {line['n']}\ndata: {json.dumps(line)}\n\n".encode()


END = b'event: end\ndata: {"state": "closed", "reason": "operator"}\n\n'


def stream(*streams: bytes) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Answers with one stream after the other, each cut where it ends."""
    left = list(streams)

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(left.pop(0))
        return response

    return answer


async def test_story_is_told_in_order_with_direction_method_tool_id_and_size() -> None:
    async with desk({STORY: jsonl(MESSAGE, ANSWER, STDERR, CLOSED)}) as served:
        said = await gw("logs", ID, **served.access)
    assert said.code == 0
    assert [" ".join(line.split()) for line in said.out.splitlines()] == [
        "── 2026-09-21 (UTC)",
        "14:13:20.250 → request tools/call add id 7 312 B",
        "14:13:21.250 ✓ call tools/call add id 7 ok 1.50s 312 B in, 1.5 KiB out",
        "14:13:22.250 stderr a Traceback",
        "14:13:23.250 closed reason operator usd 0.0123457",
    ]


async def test_arrow_points_to_whom_a_message_goes() -> None:
    back = {**MESSAGE, "to": "client", "n": 2}
    async with desk({STORY: jsonl(MESSAGE, back)}) as served:
        said = await gw("logs", ID, **served.access)
    _, there, home = said.out.splitlines()
    assert "→" in there
    assert "←" in home


@pytest.mark.parametrize(("outcome", "mark"), [("ok", "✓"), ("catalogue", "✓"), ("error", "✗")])
async def test_call_shows_whether_it_went_well(outcome: str, mark: str) -> None:
    async with desk({STORY: jsonl({**ANSWER, "outcome": outcome, "code": -32602})}) as served:
        said = await gw("logs", ID, **served.access)
    assert mark in said.out
    assert "code -32602" in said.out


async def test_day_is_said_whenever_it_changes() -> None:
    later = {**STDERR, "at": AT + 86_400}
    async with desk({STORY: jsonl(MESSAGE, ANSWER, later, CLOSED | {"at": AT + 86_401})}) as served:
        said = await gw("logs", ID, **served.access)
    days = [line for line in said.out.splitlines() if line.startswith("──")]
    assert days == ["── 2026-09-21 (UTC)", "── 2026-09-22 (UTC)"]


async def test_story_of_several_pages_is_told_whole() -> None:
    pages = {"0": ([MESSAGE, ANSWER], 2), "2": ([STDERR], 3), "3": ([CLOSED], None)}

    async def answer(request: web.Request) -> web.StreamResponse:
        lines, following = pages[request.query["after"]]
        made: web.StreamResponse = await jsonl(*lines, following=following)(request)
        return made

    async with desk({STORY: answer}) as served:
        said = await gw("logs", ID, "--json", **served.access)
    assert [json.loads(line)["n"] for line in said.out.splitlines()] == [1, 2, 3, 4]


async def test_page_that_leads_nowhere_ends_the_reading() -> None:
    async with desk({STORY: jsonl(MESSAGE, following=0)}) as served:
        said = await gw("logs", ID, "--json", **served.access)
        assert len(served.asked) == 1
    assert len(said.out.splitlines()) == 1


async def test_last_lines_are_asked_for_once() -> None:
    pages = iter([([MESSAGE], 1), ([ANSWER], None)])

    async def answer(request: web.Request) -> web.StreamResponse:
        lines, following = next(pages)
        made: web.StreamResponse = await jsonl(*lines, following=following)(request)
        return made

    async with desk({STORY: answer}) as served:
        await gw("logs", ID, "-n", "2", **served.access)
        asked = [parse_qs(query) for query in served.queries(*STORY)]
    assert asked == [{"after": ["0"], "last": ["2"]}, {"after": ["1"]}]


@pytest.mark.parametrize("text", ["TRACEBACK", "STDERR", "a trace"])
async def test_search_finds_text_in_any_field_and_case(text: str) -> None:
    async with desk({STORY: jsonl(MESSAGE, ANSWER, STDERR)}) as served:
        said = await gw("logs", ID, "--grep", text, "--json", **served.access)
    assert [json.loads(line) for line in said.out.splitlines()] == [STDERR]


async def test_raw_lines_leave_nothing_out() -> None:
    async with desk({STORY: jsonl(STDERR, CLOSED)}) as served:
        said = await gw("logs", ID, "--raw", **served.access)
    assert said.out.splitlines() == [
        f'n=3 at={AT + 2} event=stderr text="a Traceback" dropped=0',
        f"n=4 at={AT + 3} event=closed reason=operator usd=0.0123456789",
    ]


async def test_json_lines_are_what_the_api_tells() -> None:
    line = {**STDERR, "text": EVIL}
    async with desk({STORY: jsonl(line, CLOSED)}) as served:
        said = await gw("logs", ID, "--json", **served.access)
    assert [json.loads(each) for each in said.out.splitlines()] == [line, CLOSED]
    assert said.out.isascii()


@pytest.mark.parametrize("option", [(), ("--raw",), ("--json",)], ids=str)
async def test_hostile_text_forges_no_line_and_steers_no_terminal(option: tuple[str, ...]) -> None:
    lines = [
        dict.fromkeys((*kind, EVIL), EVIL) | {"event": kind["event"]}
        for kind in (MESSAGE, ANSWER, STDERR, CLOSED)
    ]
    lines.append({EVIL: {EVIL: [EVIL]}, "event": EVIL})
    async with desk({STORY: jsonl(*lines)}) as served:
        said = await gw("logs", ID, *option, **served.access)
    assert said.code == 0
    assert safe(said.out)
    shown = [line for line in said.out.splitlines() if not line.startswith("──")]
    assert len(shown) == len(lines)


@pytest.mark.parametrize("at", [None, "x", 1e300, -1e300, True, [], float("inf")], ids=repr)
async def test_line_without_a_usable_time_is_shown_all_the_same(at: Any) -> None:
    async with desk({STORY: jsonl({**STDERR, "at": at})}) as served:
        said = await gw("logs", ID, **served.access)
    assert (said.code, "a Traceback" in said.out) == (0, True)


# As it goes on


async def test_following_goes_on_where_the_story_is_and_ends_with_the_session() -> None:
    tail = stream(b": keep-alive\n\n" + event(STDERR) + event(CLOSED) + END + event(MESSAGE))
    async with desk({STORY: jsonl(MESSAGE, ANSWER), TAIL: tail}) as served:
        said = await gw("logs", "-f", ID, "--json", **served.access)
        assert served.queries(*TAIL) == ["after=2"]
    assert said.code == 0
    assert [json.loads(line)["n"] for line in said.out.splitlines()] == [1, 2, 3, 4]


async def test_stream_that_breaks_is_taken_up_where_it_was() -> None:
    cut = event(STDERR) + event(CLOSED)[:30]
    tail = stream(cut, b"", event(CLOSED) + END)
    async with desk({STORY: jsonl(MESSAGE), TAIL: tail}) as served:
        said = await gw("logs", "-f", ID, "--json", **served.access)
        assert served.queries(*TAIL) == ["after=1", "after=3", "after=3"]
    assert [json.loads(line)["n"] for line in said.out.splitlines()] == [1, 3, 4]


async def test_refusal_for_the_moment_is_asked_again() -> None:
    left = [503, 502]
    good = stream(event(CLOSED) + END)

    async def answer(request: web.Request) -> web.StreamResponse:
        if left:
            return web.json_response({"error": "later"}, status=left.pop(0))
        return await good(request)

    async with desk({STORY: jsonl(), TAIL: answer}) as served:
        said = await gw("logs", "-f", ID, "--json", **served.access)
    assert (said.code, len(said.out.splitlines())) == (0, 1)


async def test_gateway_that_stays_away_is_given_up() -> None:
    async with desk({STORY: jsonl(MESSAGE), TAIL: stream(*[b""] * 4)}) as served:
        said = await gw("logs", "-f", ID, **served.access)
        assert len(served.queries(*TAIL)) == 1 + len(stories.PAUSES_S)
    assert said.code == 69
    assert served.url in said.err


async def test_gateway_that_answers_again_is_given_all_its_tries_again() -> None:
    story = [{**STDERR, "n": number} for number in range(1, 9)]
    tail = stream(*(event(line) for line in story), END)
    async with desk({STORY: jsonl(), TAIL: tail}) as served:
        said = await gw("logs", "-f", ID, "--json", **served.access)
    assert (said.code, len(said.out.splitlines())) == (0, 8)


async def test_followed_lines_are_written_as_they_come() -> None:
    """Into a pipe too: whoever reads there waits for them."""
    more = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(event(STDERR))
        await more.wait()
        await response.write(END)
        return response

    seen: list[Any] = []

    def print_line(line: Any) -> None:
        seen.append(line)
        loop.call_soon_threadsafe(more.set)

    loop = asyncio.get_running_loop()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output, "json_line", print_line)
        async with desk({STORY: jsonl(), TAIL: answer}) as served:
            said = await gw("logs", "-f", ID, "--json", **served.access)
    assert (said.code, seen) == (0, [STDERR])


@pytest.mark.parametrize(
    "noise",
    [
        b"data: not json\n\n",
        b"data: [1]\n\n",
        b"data\n\n",
        b": data: {}\n\n",
        b"\n\n\n",
        b"retry: 5\n\nid: 9\n\n",
        b"data: " + b"[" * 100_000 + b"\n\n",
        b"data: \xff\xfe\n\n",
    ],
    ids=range(8),
)
async def test_what_is_no_line_of_a_story_is_passed_over(noise: bytes) -> None:
    async with desk({STORY: jsonl(), TAIL: stream(noise + event(CLOSED) + END)}) as served:
        said = await gw("logs", "-f", ID, "--json", **served.access)
    assert [json.loads(line) for line in said.out.splitlines()] == [CLOSED]


async def test_line_without_an_end_is_not_swallowed_for_ever() -> None:
    endless = b"data: " + b"x" * 2_000_000
    async with desk({STORY: jsonl(), TAIL: stream(*[endless] * 4)}) as served:
        said = await gw("logs", "-f", ID, **served.access)
    assert (said.code, said.out) == (69, "")


async def test_answer_that_is_no_stream_is_no_gateways() -> None:
    async with desk({STORY: jsonl(), TAIL: {"hello": 1}}) as served:
        said = await gw("logs", "-f", ID, **served.access)
    assert said.code == 69
    assert "no gateway" in said.err
