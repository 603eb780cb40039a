"""Anything at all on the agents' endpoint: it ends the session it came for, as documented.

What an agent with a valid credential may do wrong, drawn by hypothesis and judged by a second,
shorter writing of docs/link.md; then bytes that no WebSocket library would send. After each attack
an honest session of the same gateway works on, and nothing was logged as an error of ours; after
all of them nothing is left over. HYPOTHESIS_PROFILE=nightly draws more, and at random.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import io
import json
import logging
import os
import struct
import tracemalloc
from collections import Counter
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
import structlog
from aiohttp.http_exceptions import HttpProcessingError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed

from dyno_agent.link import PATH, SUBPROTOCOL, Endpoint, Limits
from dyno_agent.link.frames import MAX_FRAME_BYTES
from dyno_agent.link.limits import FRAGMENT_BYTES, HANDSHAKE_BYTES, REPLAY_HEAD_BYTES
from dyno_agent.link.resumption import Replayed
from gateway.edge import streamable_http
from gateway.errors import SessionEnded
from gateway.rendezvous import endpoint as rendezvous
from gateway.sessions import dynos
from gateway.sessions import manager as managers
from gateway.sessions.capsule import PURPOSE, Capsule
from gateway.sessions.keys import SessionKeys
from gateway.sessions.live import Live
from gateway.sessions.owned import OwnedSession
from gateway.sessions.record import Reason
from gateway.sessions.sealing import Sealer
from gateway.sessions.terms import Terms
from tests.fakes import raw_websocket as raw
from tests.fakes.house import BOUND, LASTING, SECRET, Agent, House, eventually, hello, opened
from tests.fakes.house import token_of as token

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from websockets.asyncio.client import ClientConnection

    from gateway.launchers.base import LaunchOrder

    Data = str | bytes

NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE", "default") == "nightly"

FUZZ = settings(
    max_examples=3000 if NIGHTLY else 60,
    derandomize=not NIGHTLY,
    print_blob=NIGHTLY,
    database=None,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),  # the gateway of a test serves all its examples
)

pytestmark = [
    pytest.mark.timeout(3600 if NIGHTLY else 240),
    pytest.mark.no_cover,  # counting lines takes as long as the tests; others count them
]

GOES_ON = None
DONE, WRONG, NOT_UTF8, TOO_LARGE = 1000, 1002, 1007, 1009
REFUSED, BROKEN, OVER_WINDOW, TOO_BIG = 4501, 4502, 4505, 4506

HEADER = struct.Struct("!BBHQQ")
DATA, ACK, HEARTBEAT = 0x10, 0x20, 0x21
FIN, START = 1, 2
RPC, LOG, EVENT, CMD, REPLAY = range(5)

SMALL = Limits(
    message_bytes=200_000,
    window_bytes=200_000 + REPLAY_HEAD_BYTES + FRAGMENT_BYTES,
    window_frames=8,
    ack_bytes=100_000,
    ack_frames=3,
)

# -- the arena ------------------------------------------------------------------------------------


class Troubles(logging.Handler):
    """Everything that a library or the event loop complains about."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        _, error, _ = record.exc_info or (None, None, None)
        if isinstance(error, HttpProcessingError):
            return  # what came was no HTTP
        self.told.append(f"{record.name}: {record.getMessage()} {record.exc_info}")


@dataclass
class Arena:
    """A gateway, an honest session on it, and what went wrong inside."""

    house: House
    bystander: Agent
    session: str
    troubles: Troubles
    log: list[Any]
    drawn: int = field(default=0)

    async def is_unharmed(self) -> None:
        """Show that the bystander is served and that nothing failed within the gateway."""
        await self.house.works(self.bystander, self.session)
        internal = [line for line in self.log if line["event"] == "internal_error"]
        assert (internal, self.troubles.told) == ([], [])
        assert not self.house.ear.ended(self.bystander)

    def census(self) -> Counter[str]:
        """Count what runs for the sessions of this gateway."""
        counts = Counter(
            getattr(task.get_coro(), "__qualname__", "task")
            for task in asyncio.all_tasks() - {asyncio.current_task()}
        )
        # A client's connection that is kept for its next request has a task of its own.
        connector = self.house.http.connector
        assert connector is not None
        counts["RequestHandler.start"] -= sum(map(len, connector._conns.values()))
        counts["sessions"] = self.house.manager.sessions
        counts["passes"] = len(self.house.manager.reception._desk._passes)
        return counts

    def of(self, agent: LaunchOrder | Agent) -> Live | None:
        found = self.house.manager.directory._live.values()
        return next((each for each in found if each.record.launch_id == agent.launch_id), None)

    async def clear_away(self, agent: LaunchOrder | Agent) -> str:
        """End the session of an attack if it still lives; return the reason of its end."""
        live = self.of(agent)
        if live is not None:
            self.house.manager.end(live, Reason.CLIENT_DELETE, SessionEnded("the test is over"))
        reason = await self.house.ear.closed(agent)
        begun = self.house.ear._of(self.bystander)[:2]
        self.house.ear.heard[:] = begun  # or each look would take longer than the last
        return reason

    @asynccontextmanager
    async def joined(self) -> AsyncIterator[tuple[LaunchOrder, ClientConnection]]:
        """A client waits for `initialize`; the agent has shaken hands and got that."""
        async with self.house.asked() as (order, _call):
            socket = await self.house.dial(token(order))
            await socket.send(hello("first").encode())
            async with asyncio.timeout(BOUND):
                assert isinstance(await socket.recv(), str)
                await socket.recv()
            yield order, socket

    @asynccontextmanager
    async def carried(self) -> AsyncIterator[tuple[Agent, ClientConnection, str]]:
        """An agent of a lost gateway was welcomed: this one waits for its journal."""
        self.drawn += 1
        agent = Agent(f"{self.drawn:024x}")
        key = SessionKeys(SECRET, lambda _size: agent.launch_id).mint()
        capsule = Capsule(
            launch_id=agent.launch_id,
            fingerprint=SessionKeys.fingerprint(key),
            principal="test",
            server="patient",
            created=LASTING.wall_clock(),
            proof=hashlib.sha256(b"first").hexdigest(),
            boot_id="first",
            epoch=1,
        )
        socket = await self.house.dial(
            agent.credential, capsule=Sealer(SECRET, PURPOSE, Capsule).seal(capsule)
        )
        await socket.send(hello("first").encode().replace("join", "resume"))
        async with asyncio.timeout(BOUND):
            assert json.loads(await socket.recv())["fresh"]
        yield agent, socket, key


def objects() -> Counter[str]:
    """Count what lives of sessions in this process."""
    gc.collect()
    found = [type(each) for each in gc.get_objects()]
    return Counter(kind.__name__ for kind in found if kind in (Live, OwnedSession, Endpoint))


@asynccontextmanager
async def arena_of(terms: Terms | None = None) -> AsyncIterator[Arena]:
    troubles = Troubles()
    loggers = [logging.getLogger(name) for name in ("aiohttp", "asyncio")]
    for logger in loggers:
        logger.addHandler(troubles)
    try:
        with structlog.testing.capture_logs() as log:
            async with opened(terms=terms) as house, house.honest() as (bystander, session):
                arena = Arena(house, bystander, session, troubles, log)
                before = arena.census()
                yield arena
                with suppress(TimeoutError):
                    await eventually(lambda: not arena.census() - before)
                left = arena.census() - before
                assert not left, left
                await arena.is_unharmed()
    finally:
        for logger in loggers:
            logger.removeHandler(troubles)


@asynccontextmanager
async def leaving_nothing(arena: Arena) -> AsyncIterator[Arena]:
    """Many attacks: objects of at most the last sessions may be left, which callbacks hold."""
    before = objects()
    yield arena
    left = objects() - before
    assert max(left.values(), default=0) <= 2, left


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(managers, "TICK_S", 0.01)


@pytest_asyncio.fixture
async def arena() -> AsyncIterator[Arena]:
    async with arena_of() as arena:
        yield arena


@pytest_asyncio.fixture
async def fuzzed(arena: Arena) -> AsyncIterator[Arena]:
    async with leaving_nothing(arena):
        yield arena


@pytest_asyncio.fixture
async def lasting() -> AsyncIterator[Arena]:
    async with arena_of(LASTING) as arena, leaving_nothing(arena):
        yield arena


@pytest_asyncio.fixture
async def small() -> AsyncIterator[Arena]:
    async with arena_of(Terms("http://127.0.0.1", SECRET, 10, limits=SMALL)) as arena:
        yield arena


async def outcome(socket: ClientConnection, said: Sequence[Data]) -> int | None:
    """Say all of this; return the code that the gateway closed with, or `GOES_ON`.

    A pong says that everything before its ping was taken in.
    """
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as reading:
        reader = reading.create_task(_drained(socket))
        try:
            for each in said:
                await socket.send(each)
            await (await socket.ping())
        except ConnectionClosed:
            return socket.close_code
        finally:
            reader.cancel()
    return GOES_ON


async def _drained(socket: ClientConnection) -> None:
    with suppress(ConnectionClosed):
        while True:
            await socket.recv()


# -- what an agent may say ------------------------------------------------------------------------

HUGE = (2**31, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**400)
DEEP = ("[" * 2_000, '{"a":' * 400, "[" * 1_200 + "]" * 1_200)
texts = st.text(max_size=8) | st.sampled_from(
    ("\ud800", "\udfff\ud800", "\x00", "\u2028", "\r\n", "x" * 65, "x" * 257, "\u00e9" * 64)
)
scalars = (
    st.none() | st.booleans() | st.integers(-2, 3) | st.sampled_from(HUGE) | st.floats() | texts
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
)


def written(value: object) -> str:
    return json.dumps(value)


def sometimes(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=keys)


# -- instead of a HELLO ---------------------------------------------------------------------------

HELLO = json.loads(hello("first").encode())
TEXTS = {"boot_id": 64, "proof": 64, "agent": 64, "python": 64, "dyno": 64}
COUNTS = ("received", "confirmed", "held_bytes", "held_frames")

openings: st.SearchStrategy[Data] = st.one_of(
    st.text(max_size=50),
    st.binary(max_size=50),
    anything.map(written),
    st.sampled_from(
        (
            *DEEP,
            '{"kind": "join", "received": 1' + "0" * 5000 + "}",
            # Above, below and at the limit; white space is part of a document.
            *(written(HELLO).ljust(HANDSHAKE_BYTES + over) for over in (-1, 0, 1)),
        )
    ),
    st.builds(
        lambda key, value: written({**HELLO, key: value}), st.sampled_from(sorted(HELLO)), anything
    ),
    st.builds(lambda extra: written({**extra, **HELLO}), st.dictionaries(texts, anything)),
)


def greeted(opening: Data) -> int | None:
    """How the page on the link says that an opening ends."""
    document = None
    if isinstance(opening, str) and len(opening) <= HANDSHAKE_BYTES:
        with suppress(ValueError, RecursionError):
            document = json.loads(opening)
    if not isinstance(document, dict) or document.get("kind") not in ("join", "resume"):
        return BROKEN
    said = {key: document.get(key, "") for key in TEXTS}
    counted = [document.get(key, 0) for key in COUNTS]
    if any(not isinstance(said[key], str) or len(said[key]) > TEXTS[key] for key in TEXTS):
        return BROKEN
    if any(type(count) is not int or not 0 <= count < 2**63 for count in counted):
        return BROKEN
    proof = said["proof"]
    if len(proof) != 64 or set(proof) - set("0123456789abcdef") or not said["boot_id"].isascii():
        return REFUSED
    return BROKEN if document.get("received") else GOES_ON


@FUZZ
@given(opening=openings)
async def test_whatever_comes_first_is_a_hello_or_ends_its_session(
    fuzzed: Arena, opening: Data
) -> None:
    async with fuzzed.house.asked() as (order, _call):
        socket = await fuzzed.house.dial(token(order))
        expected = greeted(opening)
        assert await outcome(socket, [opening]) == expected
        assert bool(fuzzed.house.ear.breaches(order)) == (expected == BROKEN)
        await socket.close()
        assert await fuzzed.clear_away(order) == (
            "breach" if expected == BROKEN else "client_delete"
        )
    await fuzzed.is_unharmed()


# -- instead of a JOURNAL -------------------------------------------------------------------------

ids = texts | st.integers(-2, 3) | st.sampled_from(HUGE)
calls = st.fixed_dictionaries(
    {
        "id": ids,
        "method": texts | st.just("initialize"),
        "tool": st.none() | texts,
        "token": st.none() | ids,
        "digest": texts,
        "age_s": st.integers(0, 2**31 - 1) | st.floats(0, 2**31 - 1),
    }
)
pages = st.fixed_dictionaries(
    {
        "calls": st.lists(calls, max_size=4),
        "answered": st.lists(st.tuples(ids, texts), max_size=4),
        "asks": st.lists(ids, max_size=4),
        "routed": st.lists(st.tuples(st.integers(1, 40) | st.just(2**63 - 1), texts), max_size=4),
        "last": st.just(False),
    }
)
WRONG_IN_PAGE: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("calls", (None, 1, [1], [[]], [{}], "x", {"id": 1})),
    ("answered", (None, 1, [1], [[1]], [[1, 1]], [[None, ""]], [[1, "", 1]])),
    ("asks", (None, 1, [None], [1.5], [True], [[]])),
    ("routed", (None, 1, [1], [[0, ""]], [[2**63, ""]], [[1]], [[1, 2]], [[1, "", 3]], "x")),
)
WRONG_IN_CALL: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("id", (None, True, 1.5, [], {})),
    ("method", (None, 1, [])),
    ("tool", (1, [], False)),
    ("token", (1.5, [], False)),
    ("digest", (None, 1)),
    ("age_s", (None, -1, 2**31, float("nan"), float("inf"), "1", True, 10**400)),
)


@st.composite
def spoilt_pages(draw: st.DrawFn) -> Data:
    """A page with one thing wrong."""
    page = draw(pages)
    match draw(st.sampled_from(("key", "absent", "call", "text", "binary"))):
        case "key":
            key, values = draw(st.sampled_from(WRONG_IN_PAGE))
            page[key] = draw(st.sampled_from(values))
        case "absent":
            del page[draw(st.sampled_from(sorted(page)))]
        case "call":
            key, values = draw(st.sampled_from(WRONG_IN_CALL))
            page["calls"] = [{**draw(calls), key: draw(st.sampled_from(values))}]
        case "binary":
            return written(page).encode()
        case _:
            return draw(st.sampled_from(("", "null", "[]", "1", *DEEP)))
    return written(page)


@FUZZ
@given(good=st.lists(pages, max_size=3), spoilt=spoilt_pages())
async def test_page_that_is_none_of_a_journal_ends_its_session(
    lasting: Arena, good: list[dict[str, Any]], spoilt: Data
) -> None:
    async with lasting.carried() as (agent, socket, _key):
        assert await outcome(socket, [*map(written, good), spoilt]) == BROKEN
        assert await lasting.clear_away(agent) == "breach"
    await lasting.is_unharmed()


async def test_journal_without_an_end_ends_its_session(lasting: Arena) -> None:
    page = written({"calls": [], "answered": [], "asks": [], "routed": [], "last": False})
    async with lasting.carried() as (agent, socket, _key):
        assert await outcome(socket, [page] * 32) == BROKEN
        assert await lasting.clear_away(agent) == "breach"


# -- payloads on every channel --------------------------------------------------------------------

METHODS = (
    *("ping", "roots/list", "sampling/createMessage", "notifications/progress"),
    *("notifications/message", "notifications/cancelled", "", "\ud800", "x" * 300),
)
rpc = sometimes(
    jsonrpc=st.just("2.0") | scalars,
    id=st.just(1) | anything,
    method=st.sampled_from(METHODS) | anything,
    params=sometimes(progressToken=ids | anything, requestId=anything, _meta=anything) | anything,
    result=anything,
    error=anything,
).map(lambda document: {"jsonrpc": "2.0", **document})
ENDINGS = {"exited": "process_exit", "spawn_failed": "boot_failed"}
reports = sometimes(
    event=st.sampled_from(("spawned", "oversized", *ENDINGS)) | anything,
    pid=anything,
    message=anything,
    bytes=anything,
    limit=anything,
    code=anything,
    signal=anything,
    stderr_tail=anything,
    why=anything,
)
lines = sometimes(stderr=anything, dropped=anything)
garbage = st.binary(max_size=40) | st.sampled_from(
    (
        *(deep.encode() for deep in DEEP),
        b'{"jsonrpc":"2.0","method":"\xff"}',
        b'{"jsonrpc":"2.0","id":1,"result":"\xed\xa0\x80"}',
        b'{"jsonrpc":"2.0","id":1' + b"0" * 5000 + b',"method":"ping"}',
        b'{"jsonrpc":"2.0",\r\n"method":"x",\n"params":{}}\n',
        b'{"event":"spawned","pid":1e999}',
        '{"event": "exited"}'.encode("utf-16"),
    )
)
documents = (rpc | reports | lines | anything).map(lambda value: written(value).encode())
replays = st.builds(
    lambda ticket, place, payload: struct.pack("!QQ", ticket, place) + payload,
    st.sampled_from((0, 1, 1, 1, 2, 2**64 - 1)),
    st.sampled_from((0, 1, 65_536, 2**63, 2**64 - 1)),
    documents | garbage | st.sampled_from((b"", b"held")),
)
spoken = st.lists(
    st.one_of(
        st.tuples(st.just(RPC), rpc.map(lambda value: written(value).encode())),
        st.tuples(st.just(EVENT), reports.map(lambda value: written(value).encode())),
        st.tuples(st.just(LOG), lines.map(lambda value: written(value).encode())),
        st.tuples(st.just(REPLAY), replays),
        st.tuples(st.sampled_from((RPC, LOG, EVENT, CMD)), documents | garbage),
    ),
    min_size=1,
    max_size=8,
)


def data(seq: int, lane: int, payload: bytes, flags: int = START | FIN, ack: int = 0) -> bytes:
    return HEADER.pack(DATA, flags, lane, seq, ack) + payload


def ends(messages: list[tuple[int, bytes]]) -> set[str]:
    """The reasons for which these messages may end their session in good order."""
    found = {
        reason
        for lane, payload in messages
        for event, reason in ENDINGS.items()
        if lane == EVENT and event.encode() in payload.replace(b"\x00", b"")
    }
    refused = any(lane in (RPC, REPLAY) and b'"error"' in payload for lane, payload in messages)
    return found | ({"initialize_failed"} if refused else set())


async def speaks(
    arena: Arena,
    agent: LaunchOrder | Agent,
    socket: ClientConnection,
    messages: list[tuple[int, bytes]],
    first: int = 1,
) -> None:
    """Send whole messages, then break the link: only that, or an end in order, ends the session."""
    said = [data(seq, lane, payload) for seq, (lane, payload) in enumerate(messages, first)]
    assert await outcome(socket, said) is GOES_ON
    assert arena.house.ear.breaches(agent) == []
    assert arena.house.ear.ended(agent) <= bool(ends(messages))
    assert await outcome(socket, ["enough"]) == BROKEN
    assert await arena.clear_away(agent) in {"breach", *ends(messages)}


@FUZZ
@given(messages=spoken)
async def test_no_payload_breaks_the_link(fuzzed: Arena, messages: list[tuple[int, bytes]]) -> None:
    async with fuzzed.joined() as (order, socket):
        await speaks(fuzzed, order, socket, messages)
    await fuzzed.is_unharmed()


@FUZZ
@given(journal=st.lists(pages, min_size=1, max_size=3), messages=spoken)
async def test_no_payload_breaks_the_link_of_a_session_that_was_rebuilt(
    lasting: Arena, journal: list[dict[str, Any]], messages: list[tuple[int, bytes]]
) -> None:
    journal[-1]["last"] = True
    async with lasting.carried() as (agent, socket, key):
        nothing_more = data(1, REPLAY, Replayed(1, 0, b"").encode())
        said: list[Data] = [*(written(page) for page in journal), nothing_more]
        assert await outcome(socket, said) is GOES_ON
        async with lasting.house.listening(key):
            await speaks(lasting, agent, socket, messages, first=2)
    await lasting.is_unharmed()


@pytest.mark.parametrize("lane", range(5))
@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"jsonrpc":"2.0","params":' + b"[" * 60_000])
async def test_payload_of_sixty_thousand_levels_is_nonsense_and_no_more(
    arena: Arena, lane: int, opening: bytes
) -> None:
    deep = bytes(REPLAY_HEAD_BYTES if lane == REPLAY else 0) + opening
    fragment = deep + opening * ((60_000 - len(deep)) // len(opening))
    async with arena.joined() as (order, socket):
        await speaks(arena, order, socket, [(lane, fragment)])
    await arena.is_unharmed()


@pytest.mark.parametrize("size", range(REPLAY_HEAD_BYTES))
async def test_replay_without_its_head_ends_its_session(arena: Arena, size: int) -> None:
    async with arena.joined() as (order, socket):
        assert await outcome(socket, [data(1, REPLAY, bytes(size))]) == BROKEN
        assert await arena.clear_away(order) == "breach"


# -- frames ---------------------------------------------------------------------------------------

FAR = tuple(2**bit for bit in range(12, 64, 7))
"""Numbers that no honest side of a test has reached."""


@st.composite
def streams(draw: st.DrawFn) -> list[Data]:
    """What an honest agent might send, with up to three things wrong."""
    frames: list[Data] = []
    begun: set[int] = set()
    for seq in range(1, draw(st.integers(1, 8)) + 1):
        lane, fin = draw(st.integers(0, 4)), draw(st.booleans())
        flags = (0 if lane in begun else START) | (FIN if fin else 0)
        begun = begun - {lane} if fin else begun | {lane}
        payload = draw(st.sampled_from((bytes(16), b"{}" + bytes(15), bytes(300))))
        frames.append(data(seq, lane, payload, flags, draw(st.integers(0, 1))))
        if draw(st.booleans()):
            kind = draw(st.sampled_from((ACK, HEARTBEAT)))
            frames.append(HEADER.pack(kind, 0, 0, 0, draw(st.integers(0, 1))))
    for _ in range(draw(st.sampled_from((0, 1, 1, 1, 2, 3)))):
        spot = draw(st.integers(0, len(frames) - 1))
        frames[spot : spot + 2] = _spoilt(draw, frames[spot : spot + 2])
        if not frames:
            break
    return frames


def _spoilt(draw: st.DrawFn, pair: list[Data]) -> list[Data]:
    """Change the first of two frames, or their order."""
    frame, *rest = pair
    if isinstance(frame, str) or len(frame) < HEADER.size:
        return pair
    spoil = draw(st.sampled_from(("cut", "field", "more", "drop", "twice", "swap", "new")))
    others: dict[str, Callable[[], list[Data]]] = {
        "field": lambda: [_misheaded(draw, frame), *rest],
        "cut": lambda: [frame[: draw(st.integers(0, len(frame)))], *rest],
        "more": lambda: [frame + draw(st.binary(min_size=1, max_size=20)), *rest],
        "drop": lambda: rest,
        "twice": lambda: [frame, frame, *rest],
        "swap": lambda: [*rest, frame],
        "new": lambda: [draw(st.text(max_size=5) | st.binary(max_size=60)), *pair],
    }
    return others[spoil]()


def _misheaded(draw: st.DrawFn, frame: bytes) -> bytes:
    kind, flags, lane, seq, ack = HEADER.unpack_from(frame)
    match draw(st.sampled_from(("type", "flags", "lane", "seq", "far", "ack"))):
        case "type":
            kind = draw(st.integers(0, 255))
        case "flags":
            flags ^= 1 << draw(st.integers(0, 7))
        case "lane":
            lane ^= 1 << draw(st.integers(0, 15))
        case "seq":
            seq = max(0, seq + draw(st.integers(-2, 2)))
        case "far":
            seq = draw(st.sampled_from(FAR))
        case _:
            ack = draw(st.sampled_from(FAR))
    return HEADER.pack(kind, flags, lane, seq, ack) + frame[HEADER.size :]


class Referee:
    """The page on the link once more, for frames that arrive after the handshake."""

    def __init__(self) -> None:
        self._received = 0
        self._open: dict[int, int] = {}

    def forbids(self, frame: Data) -> bool:
        if isinstance(frame, str) or not HEADER.size <= len(frame) <= MAX_FRAME_BYTES:
            return True
        kind, flags, lane, seq, ack = HEADER.unpack_from(frame)
        if kind not in (DATA, ACK, HEARTBEAT) or lane > REPLAY or flags > (START | FIN) or ack > 1:
            return True
        if kind != DATA:
            return bool(flags or lane or seq or len(frame) > HEADER.size)
        if 0 < seq <= self._received:
            return False
        return seq != self._received + 1 or self._continues_wrongly(flags, lane, len(frame))

    def _continues_wrongly(self, flags: int, lane: int, size: int) -> bool:
        if bool(flags & START) == (lane in self._open):
            return True
        self._received += 1
        size += self._open.pop(lane, 0) - HEADER.size
        if not flags & FIN:
            self._open[lane] = size
        return bool(flags & FIN) and lane == REPLAY and size < REPLAY_HEAD_BYTES

    def forbids_any(self, frames: Sequence[Data]) -> bool:
        """Only the frames up to the first that is forbidden are looked at."""
        return any(map(self.forbids, frames))


@FUZZ
@given(stream=streams())
async def test_frames_that_the_page_on_the_link_forbids_end_their_session_and_no_others(
    fuzzed: Arena, stream: list[Data]
) -> None:
    forbidden = Referee().forbids_any(stream)
    async with fuzzed.joined() as (order, socket):
        assert await outcome(socket, stream) == (BROKEN if forbidden else GOES_ON)
        assert len(fuzzed.house.ear.breaches(order)) == forbidden
        await socket.close()
        assert await fuzzed.clear_away(order) == ("breach" if forbidden else "client_delete")
    await fuzzed.is_unharmed()


def head(kind: int, flags: int, lane: int, seq: int, ack: int) -> bytes:
    return HEADER.pack(kind, flags, lane, seq, ack) + (bytes(16) if kind == DATA else b"")


HEADS = {
    **{f"flag-{bit}": head(DATA, START | FIN | 1 << bit, LOG, 1, 0) for bit in range(2, 8)},
    **{f"channel-{lane}": head(DATA, START | FIN, lane, 1, 0) for lane in (5, 6, 256, 65_535)},
    **{f"type-{kind:x}": head(kind, START | FIN, LOG, 1, 0) for kind in (0, 1, 0x11, 0x22, 0xFF)},
    **{f"number-{seq}": head(DATA, START | FIN, LOG, seq, 0) for seq in (0, 2, 2**63, 2**64 - 1)},
    **{f"acknowledges-{ack}": head(ACK, 0, 0, 0, ack) for ack in (100, 2**63, 2**64 - 1)},
    **{f"heartbeat-flag-{flag}": head(HEARTBEAT, flag, 0, 0, 0) for flag in (1, 2, 3, 4)},
    "ack-on-a-channel": head(ACK, 0, 1, 0, 0),
    "ack-with-a-number": head(ACK, 0, 0, 1, 0),
    "ack-with-payload": head(ACK, 0, 0, 0, 0) + b"x",
    "tail-of-nothing": head(DATA, FIN, LOG, 1, 0),
}


@pytest.mark.parametrize("frame", HEADS.values(), ids=list(HEADS))
async def test_one_wrong_field_is_enough_to_end_the_session(arena: Arena, frame: bytes) -> None:
    async with arena.joined() as (order, socket):
        assert await outcome(socket, [frame]) == BROKEN
        assert await arena.clear_away(order) == "breach"


@FUZZ
@given(noise=st.lists(st.binary(max_size=80), min_size=1, max_size=4))
async def test_noise_ends_its_session(fuzzed: Arena, noise: list[bytes]) -> None:
    forbidden = Referee().forbids_any(noise)
    async with fuzzed.joined() as (order, socket):
        assert await outcome(socket, noise) == (BROKEN if forbidden else GOES_ON)
        await socket.close()
        assert await fuzzed.clear_away(order) == ("breach" if forbidden else "client_delete")
    await fuzzed.is_unharmed()


def pieces(lanes: Sequence[int], sizes: Sequence[int], last: int = 0) -> list[Data]:
    """Fragments in turn on these channels, of which none but the last may end its message."""
    count = len(sizes)
    return [
        data(
            seq,
            lanes[(seq - 1) % len(lanes)],
            bytes(size),
            (START if seq <= len(lanes) else 0) | (last if seq == count else 0),
        )
        for seq, size in enumerate(sizes, 1)
    ]


FULL = FRAGMENT_BYTES
REST = SMALL.message_bytes - 3 * FULL
OVERRUNS: dict[str, tuple[list[Data], int | None]] = {
    "message-without-end": (pieces([RPC], [FULL] * 9), TOO_BIG),
    "one-byte-too-many": (pieces([LOG], [FULL, FULL, FULL, REST + 1]), TOO_BIG),
    "largest-message": (pieces([LOG], [FULL, FULL, FULL, REST], FIN), GOES_ON),
    "replay-one-byte-too-many": (pieces([REPLAY], [FULL] * 3 + [REST + 17]), TOO_BIG),
    "largest-replay": (pieces([REPLAY], [FULL] * 3 + [REST + 16], FIN), GOES_ON),
    "bytes-on-two-channels": (pieces([RPC, LOG], [FULL] * 9), OVER_WINDOW),
    "bytes-on-all-channels": (pieces(range(5), [FULL] * 9), OVER_WINDOW),
    "empty-fragments": (pieces([EVENT], [0] * 9), OVER_WINDOW),
    "as-many-empty-fragments-as-allowed": (pieces([EVENT], [0] * 8), GOES_ON),
    "empty-fragments-on-all-channels": (pieces(range(5), [0] * 99), OVER_WINDOW),
    "crumbs": (pieces([CMD], [1] * 5_000), OVER_WINDOW),
    "consumed-at-once": ([data(seq, LOG, b"{}") for seq in range(1, 3_000)], GOES_ON),
}


@pytest.mark.parametrize(("said", "code"), OVERRUNS.values(), ids=list(OVERRUNS))
async def test_more_than_the_limits_allow_ends_its_session_with_its_own_code(
    small: Arena, said: list[Data], code: int | None
) -> None:
    async with small.joined() as (order, socket):
        assert await outcome(socket, said) == code
        await socket.close()
        reason = await small.clear_away(order)
        assert reason == ("client_delete" if code is GOES_ON else "breach")


# -- bytes ----------------------------------------------------------------------------------------

BEAT = HEADER.pack(HEARTBEAT, 0, 0, 0, 0)
GREETING = raw.frame(raw.TEXT, hello("first").encode().encode())
LARGEST = data(1, LOG, bytes(FULL))


def binary(payload: bytes = BEAT, **how: Any) -> bytes:
    return raw.frame(raw.BINARY, payload, **how)


def shut(payload: bytes) -> bytes:
    return raw.frame(raw.CLOSE, payload)


def rest(payload: bytes = b"", *, fin: bool = False) -> bytes:
    return raw.frame(raw.CONTINUATION, payload, fin=fin)


BYTES: dict[str, tuple[bytes, int | None]] = {
    **{f"rsv-{bits}": (binary(rsv=bits), WRONG) for bits in (1, 2, 4, 7)},
    **{f"opcode-{code:x}": (raw.frame(code), WRONG) for code in (*range(3, 8), *range(11, 16))},
    # RFC 6455, 5.1 wants it refused; aiohttp reads it, and it does no harm behind TLS.
    "unmasked": (binary(masked=False), GOES_ON),
    "fragmented": (binary(BEAT[:3], fin=False) + rest(BEAT[3:9]) + rest(BEAT[9:], fin=True), None),
    "ping-between-fragments": (
        binary(BEAT[:3], fin=False) + raw.frame(raw.PING, b"x") + rest(BEAT[3:], fin=True),
        GOES_ON,
    ),
    "unasked-pong": (raw.frame(raw.PONG, b"x"), GOES_ON),
    "ping-of-125": (raw.frame(raw.PING, bytes(125)), GOES_ON),
    "ping-of-126": (raw.frame(raw.PING, bytes(126)), WRONG),
    "pong-of-70000": (raw.frame(raw.PONG, bytes(70_000)), WRONG),
    "close-of-126": (shut(struct.pack("!H", DONE) + b"x" * 124), WRONG),
    "fragmented-ping": (raw.frame(raw.PING, fin=False), WRONG),
    "fragmented-close": (raw.frame(raw.CLOSE, fin=False), WRONG),
    "continuation-of-nothing": (rest(BEAT, fin=True), WRONG),
    "message-in-a-message": (binary(BEAT[:3], fin=False) + binary(), WRONG),
    "beginning-in-a-message": (binary(BEAT[:3], fin=False) + binary(BEAT, fin=False), WRONG),
    "declared-2**62": (binary(b"", declared=2**62), TOO_LARGE),
    "declared-2**63": (binary(b"", declared=2**63), TOO_LARGE),
    "declared-2**64-1": (binary(b"", declared=2**64 - 1), TOO_LARGE),
    "exactly-the-limit": (binary(LARGEST), GOES_ON),
    "one-over-the-limit": (binary(LARGEST + b"x"), TOO_LARGE),
    "one-over-in-fragments": (binary(LARGEST, fin=False) + rest(b"x", fin=True), TOO_LARGE),
    "exactly-the-limit-in-fragments": (binary(LARGEST, fin=False) + rest(fin=True), GOES_ON),
    "text-that-is-not-utf8": (raw.frame(raw.TEXT, b"\xff"), NOT_UTF8),
    "text": (raw.frame(raw.TEXT, b"x"), BROKEN),
    "empty-text": (raw.frame(raw.TEXT), BROKEN),
    "empty-binary": (binary(b""), BROKEN),
    "second-hello": (GREETING, BROKEN),
    "10000-pings": (raw.frame(raw.PING) * 10_000, GOES_ON),
    "100000-continuations": (
        binary(BEAT[:1], fin=False) + rest() * 100_000 + rest(BEAT[1:], fin=True),
        GOES_ON,
    ),
    "100000-continuations-without-end": (binary(b"", fin=False) + rest() * 100_000, GOES_ON),
    "close-of-one-byte": (shut(b"\x03"), WRONG),
    "close-with-bad-utf8": (shut(struct.pack("!H", DONE) + b"\xff"), NOT_UTF8),
    **{
        f"close-{code}": (shut(struct.pack("!H", code)), WRONG)
        for code in (0, 999, 1004, 1005, 1015, 1016, 2999)
    },
}

LEAVING = {
    "without-a-code": b"",
    **{f"close-{code}": struct.pack("!H", code) for code in (1000, 1001, 3000, 4502, 65_535)},
}


def asking(order: LaunchOrder, origin: str, **headers: str | None) -> bytes:
    said: dict[str, str | None] = {
        "Authorization": f"Bearer {token(order)}",
        "Sec-WebSocket-Protocol": SUBPROTOCOL,
    }
    said.update({name.replace("_", "-"): value for name, value in headers.items()})
    return raw.upgrade(origin, PATH, said)


@asynccontextmanager
async def greeting(arena: Arena) -> AsyncIterator[tuple[LaunchOrder, raw.RawWebSocket]]:
    """A session whose agent has shaken hands over bare bytes."""
    origin = arena.house.origin
    async with arena.house.asked() as (order, _call), raw.dialled(origin) as line:
        await line.ask(asking(order, origin) + GREETING)
        assert json.loads(await line.until(raw.TEXT))["epoch"] == 1
        yield order, line


async def pings_back(line: raw.RawWebSocket) -> None:
    await line.send(raw.frame(raw.PING, b"last"))
    while await line.until(raw.PONG) != b"last":
        pass


@pytest.mark.parametrize(("said", "code"), BYTES.values(), ids=list(BYTES))
async def test_bytes_that_websockets_forbid_end_their_session_with_the_right_code(
    arena: Arena, said: bytes, code: int | None
) -> None:
    async with greeting(arena) as (order, line):
        await line.send(said)
        if code is GOES_ON:
            await pings_back(line)
            assert not arena.house.ear.ended(order)
            line.reset()
        else:
            assert await line.ended() == code
        reason = await arena.clear_away(order)
        assert reason == ("client_delete" if code is GOES_ON else "breach")
    await arena.is_unharmed()


@pytest.mark.parametrize("payload", LEAVING.values(), ids=list(LEAVING))
async def test_agent_that_leaves_by_the_rules_is_waited_for(arena: Arena, payload: bytes) -> None:
    async with greeting(arena) as (order, line):
        await line.send(shut(payload))
        assert await line.ended() == DONE
        await arena.house.ear.until("parted")
        assert not arena.house.ear.ended(order)
        assert await arena.clear_away(order) == "client_delete"
    await arena.is_unharmed()


@pytest.mark.parametrize("size", [1, 2, 5, 9, len(binary()) - 1])
async def test_half_a_frame_and_a_reset_only_part_the_session(arena: Arena, size: int) -> None:
    async with greeting(arena) as (order, line):
        await line.send(binary()[:size])
        line.reset()
        await arena.house.ear.until("parted")
        assert arena.house.ear.breaches(order) == []
        assert await arena.clear_away(order) == "client_delete"
    await arena.is_unharmed()


UPGRADES: dict[str, tuple[dict[str, str | None], int]] = {
    "no-key": ({"Sec_WebSocket_Key": None}, 400),
    "short-key": ({"Sec_WebSocket_Key": "AAAA"}, 400),
    "key-that-is-no-base64": ({"Sec_WebSocket_Key": "A"}, 400),
    "key-that-is-no-ascii": ({"Sec_WebSocket_Key": "\u00e9"}, 400),
    "no-version": ({"Sec_WebSocket_Version": None}, 400),
    "version-12": ({"Sec_WebSocket_Version": "12"}, 400),
    "no-upgrade": ({"Upgrade": None, "Connection": None}, 400),
    "other-upgrade": ({"Upgrade": "h2c"}, 400),
    "no-connection": ({"Connection": "close"}, 400),
    "origin": ({"Origin": "http://127.0.0.1"}, 403),
    "null-origin": ({"Origin": "null"}, 403),
    "no-subprotocol": ({"Sec_WebSocket_Protocol": None}, 400),
    "later-subprotocol": ({"Sec_WebSocket_Protocol": "rdv.v10"}, 400),
    "subprotocol-within-a-word": ({"Sec_WebSocket_Protocol": "x-rdv.v1"}, 400),
    "subprotocol-among-others": ({"Sec_WebSocket_Protocol": "x,  rdv.v1"}, 101),
    "no-credential": ({"Authorization": None}, 401),
    "credential-that-is-no-ascii": ({"Authorization": "Bearer rj_\u00e9.\u00e9"}, 401),
    "unknown-resume-with-a-strange-capsule": (
        {"Authorization": "Bearer rr_x.y", "Rendezvous_Capsule": "\u00e9"},
        401,
    ),
    "deflate": ({"Sec_WebSocket_Extensions": "permessage-deflate"}, 101),
}


@pytest.mark.parametrize(("headers", "status"), UPGRADES.values(), ids=list(UPGRADES))
async def test_upgrade_is_answered_as_documented_and_costs_nobody_a_session(
    arena: Arena, headers: dict[str, str | None], status: int
) -> None:
    origin = arena.house.origin
    async with arena.house.asked() as (order, _call):
        async with raw.dialled(origin) as line:
            await line.ask(asking(order, origin, **headers))
            assert line.status == status
        assert not arena.house.ear.ended(order)
        assert await arena.clear_away(order) == "client_delete"
    await arena.is_unharmed()


async def test_compression_is_never_agreed_upon(arena: Arena) -> None:
    origin = arena.house.origin
    async with arena.house.asked() as (order, _call), raw.dialled(origin) as line:
        offer = "permessage-deflate; client_max_window_bits"
        await line.ask(asking(order, origin, Sec_WebSocket_Extensions=offer))
        assert "sec-websocket-extensions" not in line.head
        await line.send(raw.frame(raw.TEXT, b"\xaa\x56\x4a", rsv=4))
        assert await line.ended() == WRONG
        assert await arena.clear_away(order) == "breach"


async def test_frames_sent_along_with_the_upgrade_are_read(arena: Arena) -> None:
    origin = arena.house.origin
    async with arena.house.asked() as (order, _call), raw.dialled(origin) as line:
        await line.ask(asking(order, origin) + GREETING + binary() * 100 + binary(b"\xff"))
        assert await line.ended() == BROKEN
        assert await arena.clear_away(order) == "breach"


async def test_frames_sent_along_with_a_refused_upgrade_are_no_breach(arena: Arena) -> None:
    origin = arena.house.origin
    async with arena.house.asked() as (order, _call):
        async with raw.dialled(origin) as line:
            request = asking(order, origin, Sec_WebSocket_Protocol="rdv.v0")
            await line.ask(request + GREETING + binary(b"\xff") * 100)
            assert line.status == 400
        assert not arena.house.ear.ended(order)
        await arena.clear_away(order)
    await arena.is_unharmed()


@pytest.mark.parametrize("opcode", [raw.TEXT, raw.BINARY, raw.CLOSE])
async def test_broken_frame_instead_of_a_hello_ends_its_session(arena: Arena, opcode: int) -> None:
    origin = arena.house.origin
    async with arena.house.asked() as (order, _call), raw.dialled(origin) as line:
        await line.ask(asking(order, origin) + raw.frame(opcode, b"\xff", rsv=7))
        assert await line.ended() == WRONG
        assert await arena.clear_away(order) == "breach"


# -- who reads nothing ----------------------------------------------------------------------------

MIB = 2**20
SLACK = 6 * MIB
"""What is being written or read, and what the test's own client holds."""


@asynccontextmanager
async def booted(arena: Arena) -> AsyncIterator[tuple[LaunchOrder, raw.RawWebSocket, str]]:
    """A session over bare bytes whose child has answered."""
    origin = arena.house.origin
    async with raw.dialled(origin) as line:
        async with arena.house.asked() as (order, call):
            await line.ask(asking(order, origin) + GREETING)
            await line.send(binary(data(1, EVENT, b'{"event":"spawned","pid":1}')))
            await line.send(binary(data(2, RPC, b'{"jsonrpc":"2.0","id":1,"result":{}}')))
        yield order, line, call.result().headers["Mcp-Session-Id"]


async def test_flood_for_a_client_that_does_not_read_costs_no_more_than_the_window(
    arena: Arena,
) -> None:
    """docs/limits.md: 18 MiB from the dyno until the client has taken them, and one message."""
    said = b'{"jsonrpc":"2.0","method":"notifications/message","params":"' + b"x" * 60_000 + b'"}'
    async with booted(arena) as (order, line, session), arena.house.listening(session):
        tracemalloc.start()
        try:
            for seq in range(3, 64 * MIB // len(said)):
                await line.send(binary(data(seq, RPC, said)))
                if arena.house.ear.ended(order):
                    break
            assert await line.ended() == OVER_WINDOW
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert await arena.clear_away(order) == "breach"
    assert 18 * MIB < peak < 18 * MIB + SLACK


BIG = b'{"jsonrpc":"2.0","method":"notifications/x","params":"' + b"x" * 15 * MIB + b'"}'


async def stuff(house: House, session: str) -> None:
    """Let the client send more than the sockets hold, to an agent that does not read."""
    headers = {"Mcp-Session-Id": session, "Content-Type": "application/json"}
    async with house.http.post(house.url, data=io.BytesIO(BIG), headers=headers) as response:
        assert response.status == 202


async def test_agent_that_is_lost_in_the_middle_of_a_write_only_parts(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamable_http, "CONFIRM_S", 0.05)
    async with booted(arena) as (order, line, session):
        await stuff(arena.house, session)
        line.reset()
        await arena.house.ear.until("parted")
        assert await arena.clear_away(order) == "client_delete"
    await arena.is_unharmed()


async def test_session_ends_although_its_agent_does_not_read(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or its dyno would run, and its place be taken, for as long as the agent likes."""
    monkeypatch.setattr(dynos, "LEAVE_S", 0.05)
    monkeypatch.setattr(rendezvous, "CLOSE_S", 0.05)
    monkeypatch.setattr(streamable_http, "CONFIRM_S", 0.05)
    async with booted(arena) as (order, _line, session):
        await stuff(arena.house, session)
        assert await arena.house.delete(session) == 204
        assert await arena.clear_away(order) == "client_delete"
