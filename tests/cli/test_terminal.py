"""What a person sees: commands as processes, on a terminal of their own."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from tests.cli.desk import EVIL, desk, gw, jsonl, on_terminal, page, session

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("measured")

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


async def test_table_on_a_terminal_has_colours_and_in_a_pipe_none(folder: Path) -> None:
    listed = page(session(state="parted", errors=3))
    async with desk({("GET", "/sessions"): listed}) as served:
        code, shown = await on_terminal("sessions", cwd=folder, **served.access)
        piped = await gw("sessions", **served.access)
    assert code == 0
    assert "\x1b[31mparted" in shown
    assert "\x1b" not in piped.out
    assert COLOUR.sub("", shown).split()[:20] == piped.out.split()[:20]


async def test_colours_are_left_out_on_request(folder: Path) -> None:
    async with desk({("GET", "/sessions"): page(session(state="parted"))}) as served:
        _, shown = await on_terminal("sessions", cwd=folder, NO_COLOR="1", **served.access)
    assert "parted" in shown
    assert "\x1b[31m" not in shown


async def test_session_id_is_whole_however_narrow_the_terminal_is(folder: Path) -> None:
    async with desk({("GET", "/sessions"): page(session())}) as served:
        _, shown = await on_terminal("sessions", cwd=folder, COLUMNS="50", **served.access)
    assert "s-0123456789ab" in shown


async def test_hostile_text_on_a_terminal_is_text(folder: Path) -> None:
    line = {"n": 1, "at": 1_790_000_000.0, "event": "stderr", "text": EVIL}
    answers: dict[tuple[str, str], Any] = {
        ("GET", "/sessions"): page(session(client=EVIL, principal=EVIL)),
        ("GET", "/sessions/s-1/story"): jsonl(line),
    }
    async with desk(answers) as served:
        _, listed = await on_terminal("sessions", cwd=folder, COLUMNS="300", **served.access)
        _, told = await on_terminal("logs", "s-1", cwd=folder, COLUMNS="300", **served.access)
    for shown in (listed, told):
        bare = COLOUR.sub("", shown).replace("\r\n", "\n")
        assert "\x1b" not in bare
        assert "\\x1b[31m[bold]red[/bold]:smile:\\x07\\r\\nforged \\u202eevil" in bare
        assert not re.search("[\r\x07\u202e\u2066\x9b]", bare)


async def test_kill_asks_first_and_takes_no_for_an_answer(folder: Path) -> None:
    async with desk({("GET", "/sessions/s-1"): session(running=2)}) as served:
        code, shown = await on_terminal(
            "kill", "s-1", cwd=folder, typed=b"n\n", when=b"?", **served.access
        )
        assert [asked[0] for asked in served.asked] == ["GET"]
    assert code == 1
    assert "tools of alice, idle, 2 of its calls running" in shown
    assert "nothing was ended" in shown


async def test_kill_that_was_confirmed_ends_the_session(folder: Path) -> None:
    states = iter(["idle", "closed"])

    async def look(_request: web.Request) -> web.Response:
        return web.json_response(session(state=next(states), reason="operator"))

    async def end(_request: web.Request) -> web.Response:
        return web.json_response({"session": "s-1", "state": "closing"}, status=202)

    answers = {("GET", "/sessions/s-1"): look, ("DELETE", "/sessions/s-1"): end}
    async with desk(answers) as served:
        code, shown = await on_terminal(
            "kill", "s-1", cwd=folder, typed=b"y\n", when=b"?", **served.access
        )
    assert code == 0
    assert "closed: operator" in shown


async def test_watch_looks_again_and_ends_with_an_interrupt(folder: Path) -> None:
    asked = 0

    async def answer(_request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.json_response(page(session(session=f"s-look-{asked}")))

    async with desk({("GET", "/sessions"): answer}) as served:
        code, shown = await on_terminal(
            "sessions", "--watch", cwd=folder, typed=b"\x03", when=b"s-look-2", **served.access
        )
    assert code == 130
    assert "s-look-1" in shown
    assert "Traceback" not in shown


async def test_watch_survives_an_absence_of_the_gateway(folder: Path) -> None:
    answers = iter([page(session()), None, None])  # a client may try a kept connection twice

    async def answer(request: web.Request) -> web.Response:
        if (document := next(answers, page(session(session="s-back")))) is None:
            assert request.transport is not None
            request.transport.close()
        return web.json_response(document)

    async with desk({("GET", "/sessions"): answer}) as served:
        code, shown = await on_terminal(
            "sessions", "-w", cwd=folder, typed=b"\x03", when=b"s-back", **served.access
        )
    assert code == 130
    assert "no answer from" in COLOUR.sub("", shown)
