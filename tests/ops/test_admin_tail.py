"""Stories that are followed live, as server-sent events."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from gateway.ops.admin import tail
from tests.edge.dynos_house import NOW
from tests.fakes.house import BOUND, eventually
from tests.ops.admin_house import ADMIN, BASE, Office, office

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import aiohttp

    from gateway.store.base import Told


@pytest_asyncio.fixture
async def at() -> AsyncIterator[Office]:
    async with office() as built:
        built.records.have("s-1")
        yield built


@asynccontextmanager
async def followed(
    at: Office, session: str = "s-1", last: str | None = None, **query: Any
) -> AsyncIterator[aiohttp.ClientResponse]:
    headers = {"Authorization": f"Bearer {ADMIN}"}
    if last is not None:
        headers["Last-Event-ID"] = last
    url = f"{at.origin}{BASE}/sessions/{session}/tail"
    async with at.http.get(url, headers=headers, params=query) as response:
        yield response


async def block(response: aiohttp.ClientResponse) -> dict[str, str]:
    """Return the fields of the next event or comment; empty at the end."""
    async with asyncio.timeout(BOUND):
        raw = await response.content.readuntil(b"\n\n")
    return dict(line.partition(":")[::2] for line in raw.decode().splitlines() if line)


async def told(response: aiohttp.ClientResponse) -> Any:
    """Return the next line."""
    fields = await block(response)
    line = json.loads(fields["data"])
    assert fields["id"].strip() == str(line["n"])
    return line


async def test_what_was_told_comes_first_and_then_what_happens(at: Office) -> None:
    at.records.tell("s-1", "requested", "ready")
    async with followed(at) as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        assert [(await told(response))["event"] for _ in range(2)] == ["requested", "ready"]
        at.records.tell("s-1", "message", tool="echo")
        line = {"n": 3, "at": NOW, "event": "message", "tool": "echo"}
        assert await told(response) == line


@pytest.mark.parametrize(
    ("last", "query"), [(None, {"after": 1}), ("1", {}), ("1", {"after": 2})], ids=repr
)
async def test_tail_begins_where_it_is_asked_to(
    at: Office, last: str | None, query: dict[str, Any]
) -> None:
    at.records.tell("s-1", "a", "b", "c")
    async with followed(at, last=last, **query) as response:
        assert (await told(response))["n"] == 2


async def test_tail_of_a_story_that_began_anew_begins_with_it(at: Office) -> None:
    at.records.tell("s-1", "a")
    async with followed(at, last="9") as response:
        assert (await told(response))["n"] == 1


async def test_lines_that_are_kept_no_more_are_counted(at: Office) -> None:
    at.records.tell("s-1", "a", "b", "c")
    at.records.gone["s-1"] = 2
    async with followed(at) as response:
        assert await told(response) == {"n": 2, "at": NOW, "event": "gap", "dropped": 2}
        assert (await told(response))["n"] == 3


async def test_tail_ends_once_the_session_is_closed_and_all_is_told(at: Office) -> None:
    async with followed(at) as response:
        at.records.tell("s-1", "closing", "closed")
        at.records.close("s-1", "operator")
        assert (await told(response))["event"] == "closing"
        assert (await told(response))["event"] == "closed"
        end = await block(response)
        assert end["event"].strip() == "end"
        assert json.loads(end["data"]) == {"state": "closed", "reason": "operator"}
        assert "id" not in end
        assert await block(response) == {}


async def test_last_line_is_told_however_late_it_comes(
    at: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell = at.records.told

    async def told_before_the_end(
        session: str, after: int, most_bytes: int, *, settled: bool
    ) -> Told:
        found = await tell(session, after, most_bytes, settled=settled)
        if not at.records.lines[session]:
            at.records.tell(session, "closed")
            at.records.close(session)
        return found

    monkeypatch.setattr(at.records, "told", told_before_the_end)
    async with followed(at) as response:
        assert (await told(response))["event"] == "closed"
        assert (await block(response))["event"].strip() == "end"


async def test_tail_of_a_session_that_is_forgotten_ends(at: Office) -> None:
    async with followed(at) as response:
        del at.records.known["s-1"]
        at.records._ring()
        assert (await block(response))["event"].strip() == "end"


async def test_what_another_process_tells_is_seen_without_a_bell(
    at: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "LOOK_S", 0.01)
    async with followed(at) as response:
        at.records.lines["s-1"].append(b'{"at":1.0,"event":"message"}')
        assert (await told(response))["event"] == "message"


async def test_quiet_tail_is_kept_alive(at: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "LOOK_S", 0.01)
    monkeypatch.setattr(tail, "KEEP_ALIVE_S", 0.0)
    async with followed(at) as response:
        assert await block(response) == {"": " keep-alive"}


async def test_tail_survives_a_store_that_is_away_for_a_while(
    at: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "LOOK_S", 0.01)
    at.records.away = True
    async with followed(at) as response:
        at.records.tell("s-1", "message")
        at.records.away = False
        assert (await told(response))["event"] == "message"


async def test_tail_is_told_to_come_back_when_the_process_leaves(
    at: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "LOOK_S", 0.01)
    async with followed(at) as response:
        at.manager.directory.draining = True
        assert await block(response) == {"retry": " 500"}
        assert await block(response) == {}


async def test_tail_of_another_process_is_for_that_to_tell(at: Office) -> None:
    at.alive("there")
    at.records.have("s-1", gateway="there")
    status, _ = await at.refused("/sessions/s-1/tail")
    assert status == 421


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "", "9" * 16])
async def test_last_event_id_that_is_none_is_refused(at: Office, last: str) -> None:
    async with followed(at, last=last) as response:
        assert response.status == 400
        assert "Last-Event-ID" in (await response.json())["error"]


async def test_there_are_only_so_many_tails(at: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "MOST_TAILS", 1)
    at.records.tell("s-1", "a")
    async with followed(at) as response:
        await told(response)
        status, sentence = await at.refused("/sessions/s-1/tail")
        assert status == 503
        assert "close one" in sentence
    await eventually(lambda: at.desk.tails == 0)
    async with followed(at) as response:
        assert response.status == 200


async def test_tail_whose_follower_hangs_up_stops(at: Office) -> None:
    at.records.tell("s-1", "a")
    async with followed(at) as response:
        await told(response)
        assert len(at.records.followers) == 1
        response.close()
        await eventually(lambda: not at.records.followers)
    assert at.desk.tails == 0


async def test_follower_that_does_not_read_is_cut_off(
    at: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "WRITE_S", 0.05)
    at.records.tell("s-1", "stderr", text="x" * 1_000_000)
    at.records.lines["s-1"] *= 40
    reader, writer = await asyncio.open_connection("127.0.0.1", int(at.origin.rpartition(":")[2]))
    writer.write(
        f"GET {BASE}/sessions/s-1/tail HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {ADMIN}\r\n\r\n".encode()
    )
    await eventually(lambda: at.desk.tails == 1)
    await eventually(lambda: at.desk.tails == 0)
    size, last = 0, b""
    with suppress(ConnectionResetError):
        while piece := await reader.read(2**16):
            size, last = size + len(piece), piece
    assert size < 40_000_000
    assert not last.endswith(b"0\r\n\r\n")
    writer.close()
