"""Logs: what is kept, who sees what, and how it is followed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.heroku_emulator.logs import KEPT, LONGEST_BYTES, Cutter, Log, LogSession
from tests.heroku_emulator.model import Moment

if TYPE_CHECKING:
    from tests.heroku_emulator import Emulator
    from tests.unit.heroku_emulator.asking import Api

SESSIONS = "/apps/runner/log-sessions"


def session(**given: Any) -> LogSession:
    everything = {"source": None, "dyno": None, "type": None, "lines": KEPT, "tail": False}
    return LogSession(app="runner", opened=Moment(0.0, 0.0), **{**everything, **given})


def written() -> Log:
    log = Log()
    log.write("heroku", "run.1", "Starting")
    log.write("app", "run.1", "one")
    log.write("app", "worker.1", "two")
    log.write("app", "run.2", "three")
    return log


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ({}, ["Starting", "one", "two", "three"]),
        ({"source": "app"}, ["one", "two", "three"]),
        ({"dyno": "run.1"}, ["Starting", "one"]),
        ({"dyno": "run"}, ["Starting", "one", "three"]),
        ({"type": "worker"}, ["two"]),
        ({"lines": 2}, ["two", "three"]),
        ({"lines": 0}, []),
    ],
    ids=str,
)
def test_a_session_shows_what_it_asks_for(given: dict[str, Any], texts: list[str]) -> None:
    assert [line.text for line in written().recent(session(**given))] == texts


def test_only_the_last_lines_are_kept() -> None:
    log = Log()
    for number in range(KEPT + 10):
        log.write("app", "run.1", str(number))
    texts = [line.text for line in log.recent(session())]
    assert (len(texts), texts[0]) == (KEPT, "10")


async def test_a_tail_misses_and_repeats_nothing() -> None:
    log, seen = written(), list[str]()

    async def follow() -> None:
        async for line in log.follow(session(source="app", tail=True)):
            seen.append(line.text)
            if line.text == "last":
                return

    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        tasks.create_task(follow())
        for text in ("four", "five", "last"):
            await asyncio.sleep(0)
            log.write("app", "run.1", text)
            log.write("heroku", "run.1", "not shown")
    assert seen == ["one", "two", "three", "four", "five", "last"]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_lines_do_not_depend_on_how_they_come(size: int) -> None:
    data, cutter = b"one\n\ntwo\xff\nrest", Cutter()
    texts = [t for at in range(0, len(data), size) for t in cutter.feed(data[at : at + size])]
    assert [*texts, *cutter.feed(b"")] == ["one", "", "two\ufffd", "rest"]


def test_a_long_line_is_cut() -> None:
    cutter = Cutter()
    texts = cutter.feed(b"x" * (LONGEST_BYTES + 1) + b"\n") + cutter.feed(b"")
    assert [len(text) for text in texts] == [LONGEST_BYTES, 1]


async def test_a_log_is_read_as_text(heroku: Emulator, api: Api) -> None:
    made = await api.create("echo hello")
    await heroku.until(lambda: heroku.ledger[-1].ended)
    opened = await api("POST", SESSIONS, {"dyno_name": made["name"], "source": "app"})
    assert opened.status == 201
    text = (await api("GET", opened.body["logplex_url"])).body
    assert text.endswith(f" app[{made['name']}]: hello\n")
    assert text.count("\n") == 1


async def test_a_tail_of_events_goes_on_until_its_reader_leaves(heroku: Emulator, api: Api) -> None:
    opened = await api("POST", SESSIONS, {"source": "app", "tail": True, "lines": 0})
    events = {"Accept": "text/event-stream"}
    async with (
        aiohttp.ClientSession() as http,
        http.get(opened.body["logplex_url"], headers=events) as response,
    ):
        assert response.content_type == "text/event-stream"
        await api.create("echo first; echo second")
        read = [(await response.content.readline()).decode().strip() for _ in range(6)]
    assert [line.rpartition(": ")[2] for line in read if line.startswith("data")] == [
        "first",
        "second",
    ]


async def test_an_unknown_log_session_is_not_found(heroku: Emulator, api: Api) -> None:
    assert (await api("GET", f"{heroku.url}/_logplex/sessions/none")).status == 404
