"""The emulator of Heroku's router keeps the router's rules, with the router's own numbers.

Time is the loop's and jumps: when nothing can be read, it is the next timer's turn at once. So a
dyno here may be silent for 54 s, and the limits are the real ones.
"""

from __future__ import annotations

import asyncio
import functools
import re
import selectors
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import h11
import pytest

from tests.fakes.router import Limits, Record, Router
from tests.fakes.router.rules import FAULTS, PAGE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping

    Serve = Callable[["Line"], Awaitable[None]]

BOUND = 100_000.0
"""Seconds of the loop's time for any one wait; it costs nothing."""

SETTLE_S = 0.02
"""Real seconds in which the kernel hands over what one end has written, before time jumps."""

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

UPGRADE = (
    b"GET /link HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: key\r\n\r\n"
)
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


class JumpingSelector(selectors.DefaultSelector):
    """Waits for no timer.

    Attributes:
        jumped: seconds that were left out.
    """

    jumped = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout is None or timeout <= 0:
            return ready or super().select(timeout)
        if ready := super().select(min(timeout, SETTLE_S)):
            return ready
        self.jumped += timeout
        return []


class JumpingLoop(asyncio.SelectorEventLoop):
    """Its time is the selector's."""

    def __init__(self) -> None:
        self._jumping = JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return super().time() + self._jumping.jumped


def jumping(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test with time that jumps."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        with asyncio.Runner(loop_factory=JumpingLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run


class Line:
    """One end of a connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def until(self, end: bytes) -> bytes:
        async with asyncio.timeout(BOUND):
            return await self.reader.readuntil(end)

    async def head(self) -> bytes:
        return await self.until(b"\r\n\r\n")

    async def hear(self, size: int) -> bytes:
        async with asyncio.timeout(BOUND):
            return await self.reader.readexactly(size)

    async def rest(self) -> bytes:
        async with asyncio.timeout(BOUND):
            return await self.reader.read()

    async def gone(self) -> None:
        """Wait for the other end's end, however it comes."""
        try:
            await self.rest()
        except ConnectionError:
            return


class Dyno:
    """A web dyno that does what a test says, one connection after the other.

    Attributes:
        connections: that it accepted.
        told: set when a connection ended under it.
    """

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self.connections = 0
        self.address = ("127.0.0.1", 0)
        self._lines: list[Line] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        line = Line(reader, writer)
        self._lines.append(line)
        try:
            await self._serve(line)
        except (ConnectionError, asyncio.IncompleteReadError):
            return  # the router hung up
        finally:
            writer.close()


@asynccontextmanager
async def dyno(serve: Serve) -> AsyncIterator[Dyno]:
    played = Dyno(serve)
    async with asyncio.TaskGroup() as tasks:
        running: list[asyncio.Task[None]] = []

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            running.append(tasks.create_task(played.serve(reader, writer)))

        server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=1 << 20)
        played.address = server.sockets[0].getsockname()
        try:
            yield played
        finally:
            server.close()
            for task in running:
                task.cancel()
            for line in played._lines:
                line.writer.transport.abort()


@asynccontextmanager
async def routed(serve: Serve, **limits: float) -> AsyncIterator[tuple[Router, Dyno]]:
    """A router with one dyno."""
    async with (
        dyno(serve) as played,
        Router([played.address], Limits(**limits)) as router,  # type: ignore[arg-type]
    ):
        yield router, played


@asynccontextmanager
async def client(router: Router) -> AsyncIterator[Line]:
    port = int(router.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Line(reader, writer)
    finally:
        writer.transport.abort()


def request(target: str = "/", body: bytes = b"", **headers: str) -> bytes:
    """A request that ends its connection; underscores in names of headers are dashes."""
    return raw_request(target, body, {n.replace("_", "-"): v for n, v in headers.items()})


def raw_request(target: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    given = {"Host": "example.org", "Connection": "close", **headers}
    if body:
        given["Content-Length"] = str(len(body))
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return f"{'POST' if body else 'GET'} {target} HTTP/1.1\r\n{lines}\r\n".encode() + body


async def ask(router: Router, data: bytes) -> bytes:
    async with client(router) as line:
        await line.say(data)
        return await line.rest()


async def logged(router: Router, count: int = 1) -> Record:
    async with asyncio.timeout(BOUND):
        await router.until(lambda: len(router.records) >= count)
    return router.records[-1]


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def headers_of(head: bytes) -> Mapping[str, str]:
    lines = head.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


async def answers(line: Line) -> None:
    """Answer each request without a body, and keep the connection."""
    while True:
        await line.head()
        await line.say(OK)


async def says_nothing(line: Line) -> None:
    await line.head()
    await line.gone()


def says(*parts: bytes | float, then_close: bool = False) -> Serve:
    """A dyno that answers in parts, with pauses in seconds between them."""

    async def serve(line: Line) -> None:
        await line.head()
        for part in parts:
            if isinstance(part, bytes):
                await line.say(part)
            else:
                await asyncio.sleep(part)
        if not then_close:
            await line.gone()

    return serve


class Heads:
    """A dyno that answers and keeps the heads of what it was asked."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    async def __call__(self, line: Line) -> None:
        while True:
            self.seen.append(await line.head())
            await line.say(OK)

    def only(self) -> Mapping[str, str]:
        (head,) = self.seen
        return headers_of(head)


# -- what passes -----------------------------------------------------------------------------------


@jumping
async def test_request_reaches_the_dyno_and_its_answer_the_client() -> None:
    async with routed(answers) as (router, _):
        answer = await ask(router, request())
        assert (status_of(answer), answer[-2:]) == (200, b"ok")
        assert not router.codes


@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
@jumping
async def test_request_body_arrives_byte_for_byte(chunked: bool) -> None:
    body = bytes(range(256)) * 2000
    got = bytearray()

    async def serve(line: Line) -> None:
        head = await line.head()
        if not chunked:
            assert headers_of(head)["content-length"] == str(len(body))
            got.extend(await line.hear(len(body)))
        while chunked and (size := int(await line.until(b"\r\n"), 16)):
            got.extend((await line.hear(size + 2))[:-2])
        await line.say(OK)

    coded = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    async with routed(serve) as (router, _):
        data = request(Transfer_Encoding="chunked") + coded if chunked else request(body=body)
        assert status_of(await ask(router, data)) == 200
    assert bytes(got) == body


@pytest.mark.parametrize("framing", ["sized", "chunked", "closing"])
@jumping
async def test_response_body_arrives_byte_for_byte(framing: str) -> None:
    body = bytes(range(256)) * 2000
    head = {"sized": b"Content-Length: %d\r\n" % len(body), "closing": b""}
    head["chunked"] = b"Transfer-Encoding: chunked\r\n"
    coded = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if framing == "chunked" else body
    serve = says(
        b"HTTP/1.1 200 OK\r\n" + head[framing] + b"\r\n" + coded, then_close=framing == "closing"
    )
    async with routed(serve) as (router, _):
        reader = h11.Connection(h11.CLIENT)
        reader.send(h11.Request(method="GET", target="/", headers=[("Host", "h")]))
        reader.send(h11.EndOfMessage())
        reader.receive_data(await ask(router, request()))
        reader.receive_data(b"")
        got = bytearray()
        while not isinstance(event := reader.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Data):
                got += event.data
        assert bytes(got) == body
        assert (await logged(router)).bytes == len(body)


@jumping
async def test_part_of_a_response_is_not_held_back_until_the_next() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with routed(says(head, b"5\r\nfirst\r\n")) as (router, _), client(router) as line:
        await line.say(request())
        await line.head()
        assert await line.hear(10) == b"5\r\nfirst\r\n"


@jumping
async def test_client_asks_again_on_the_same_connection() -> None:
    async with routed(answers) as (router, _), client(router) as line:
        for _ in range(3):
            await line.say(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            assert status_of(await line.head()) == 200
            assert await line.hear(2) == b"ok"


@jumping
async def test_requests_sent_ahead_are_answered_in_turn() -> None:
    seen = Heads()
    async with routed(seen) as (router, _), client(router) as line:
        await line.say(b"GET /1 HTTP/1.1\r\nHost: h\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\n\r\n")
        for _ in range(2):
            await line.head()
            await line.hear(2)
    assert [head.split()[1] for head in seen.seen] == [b"/1", b"/2"]


@jumping
async def test_request_sent_while_another_is_answered_comes_after_it() -> None:
    async def slow(line: Line) -> None:
        while True:
            await line.head()
            await asyncio.sleep(5)
            await line.say(OK)

    async with routed(slow) as (router, _), client(router) as line:
        for _ in range(2):
            await line.say(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            await asyncio.sleep(1)
        for _ in range(2):
            assert status_of(await line.head()) == 200
            await line.hear(2)


@jumping
async def test_answer_before_the_end_of_the_request_is_passed_on() -> None:
    refusal = b"HTTP/1.1 413 Too Big\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    async with routed(says(refusal, then_close=True)) as (router, _), client(router) as line:
        await line.say(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\nhalf")
        assert status_of(await line.rest()) == 413
        assert not router.codes


@jumping
async def test_router_answers_expect_100_continue_itself() -> None:
    seen = Heads()
    async with routed(seen) as (router, _), client(router) as line:
        await line.say(
            b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        )
        assert status_of(await line.head()) == 100
        await line.say(b"hi")
        assert status_of(await line.head()) == 200
    assert "expect" not in seen.only()


@jumping
async def test_requests_are_spread_over_the_dynos() -> None:
    async with dyno(answers) as one, dyno(answers) as two, Router() as router:
        router.backends += [one.address, two.address]
        for _ in range(64):  # one of them alone: once in 2 ** 63
            await ask(router, request())
        assert {record.dyno for record in router.records} == {"web.1", "web.2"}


# -- headers ---------------------------------------------------------------------------------------


@jumping
async def test_dyno_is_told_where_the_request_comes_from() -> None:
    seen = Heads()
    async with routed(seen) as (router, _):
        await ask(router, request(X_Forwarded_For="6.6.6.6", X_Forwarded_Proto="gopher"))
    told = seen.only()
    assert told["x-forwarded-for"] == "6.6.6.6, 127.0.0.1"
    assert (told["x-forwarded-proto"], told["x-forwarded-port"]) == ("https", "443")
    assert re.fullmatch(r"[0-9]{13}", told["x-request-start"])
    assert told["via"] == "1.1 heroku-router"
    assert "connection" not in told
    assert b"gopher" not in seen.seen[0]


@pytest.mark.parametrize(
    ("given", "accepted"),
    [
        ("a" * 20, True),
        ("a" * 200, True),
        ("a" * 201, False),
        ("a" * 19, False),
        ("a b" * 9, False),
    ],
)
@jumping
async def test_request_id_of_the_client_counts_if_it_is_a_good_one(
    given: str, accepted: bool
) -> None:
    seen = Heads()
    async with routed(seen) as (router, _):
        await ask(router, request(X_Request_Id=given))
        record = await logged(router)
    told = seen.only()["x-request-id"]
    assert (told == given) is accepted
    assert record.request_id == told
    assert 20 <= len(told) <= 200


@jumping
async def test_headers_of_one_connection_stay_there() -> None:
    seen = Heads()
    async with routed(seen) as (router, _):
        await ask(
            router, request(Connection="close, X-Mine", X_Mine="1", Keep_Alive="5", X_Own="2")
        )
    told = seen.only()
    assert told["x-own"] == "2"
    assert not {"connection", "x-mine", "keep-alive"} & set(told)


@jumping
async def test_response_keeps_its_headers_and_gets_via() -> None:
    answer = b"HTTP/1.1 201 Made Here\r\nContent-Length: 0\r\nX-Own: 1\r\nConnection: close\r\n\r\n"
    async with routed(says(answer)) as (router, _):
        got = await ask(router, request())
    assert got.startswith(b"HTTP/1.1 201 Made Here\r\n")
    assert headers_of(got)["x-own"] == "1"
    assert headers_of(got)["via"] == "1.1 heroku-router"


# -- time ------------------------------------------------------------------------------------------


@jumping
async def test_h12_when_nothing_came_for_30_seconds() -> None:
    async with routed(says_nothing) as (router, _):
        began = asyncio.get_running_loop().time()
        answer = await ask(router, request())
        assert 30 <= asyncio.get_running_loop().time() - began < 31
        assert (status_of(answer), answer.endswith(PAGE)) == (503, True)
        assert router.codes == {"H12": 1}


@jumping
async def test_no_h12_when_the_first_byte_comes_after_29_seconds() -> None:
    async with routed(says(29.0, OK)) as (router, _):
        assert status_of(await ask(router, request())) == 200
        assert not router.codes


@jumping
async def test_first_byte_of_the_head_is_enough_against_h12() -> None:
    async with routed(says(29.0, OK[:1], 50.0, OK[1:])) as (router, _):
        assert status_of(await ask(router, request())) == 200


@jumping
async def test_dyno_is_not_told_of_h12() -> None:
    finished = asyncio.Event()

    async def slow(line: Line) -> None:
        await line.head()
        await asyncio.sleep(600)
        assert not line.reader.at_eof()
        await line.say(OK)
        finished.set()

    async with routed(slow) as (router, _):
        assert status_of(await ask(router, request())) == 503
        assert router.orphans == 1
        async with asyncio.timeout(BOUND):
            await finished.wait()
            await router.until(lambda: router.orphans == 0)


@jumping
async def test_clock_of_h12_starts_at_the_end_of_the_request() -> None:
    async def serve(line: Line) -> None:
        await line.head()
        await line.hear(6)
        await asyncio.sleep(20)
        await line.say(OK)

    async with routed(serve) as (router, _), client(router) as line:
        await line.say(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\nabc")
        await asyncio.sleep(40)
        await line.say(b"def")
        assert status_of(await line.head()) == 200


@jumping
async def test_bytes_of_the_client_do_not_delay_h12() -> None:
    async with routed(says_nothing) as (router, _), client(router) as line:
        await line.say(request())
        await asyncio.sleep(20)
        await line.say(b"GET /next HTTP/1.1\r\n")
        began = asyncio.get_running_loop().time()
        assert status_of(await line.rest()) == 503
        assert asyncio.get_running_loop().time() - began < 11


EVENTS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@jumping
async def test_h15_when_the_dyno_falls_silent_in_its_answer() -> None:
    async with routed(says(EVENTS, 56.0, b"0\r\n\r\n")) as (router, _):
        began = asyncio.get_running_loop().time()
        answer = await ask(router, request())
        assert 55 <= asyncio.get_running_loop().time() - began < 56
        assert not answer.endswith(b"0\r\n\r\n")
        assert router.codes == {"H15": 1}


@jumping
async def test_each_byte_of_the_dyno_buys_55_seconds() -> None:
    beats: list[bytes | float] = [54.0, b"1\r\n:\r\n"] * 10
    async with routed(says(EVENTS, *beats, b"0\r\n\r\n")) as (router, _):
        answer = await ask(router, request())
        assert answer.endswith(b"1\r\n:\r\n0\r\n\r\n")
        assert not router.codes
        assert (await logged(router)).service_ms >= 540_000


@jumping
async def test_h28_when_the_client_stops_in_its_request() -> None:
    async with routed(says_nothing) as (router, _), client(router) as line:
        await line.say(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\nabc")
        await line.gone()
        assert router.codes == {"H28": 1}


@jumping
async def test_h28_when_the_client_does_not_read() -> None:
    async def endless(line: Line) -> None:
        await line.head()
        await line.say(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while True:
            await line.say(b"x" * 65536)

    async with routed(endless) as (router, _), client(router) as line:
        line.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await line.say(request())
        assert (await logged(router)).code == "H28"


@jumping
async def test_slow_client_slows_the_dyno() -> None:
    sent = 0

    async def endless(line: Line) -> None:
        nonlocal sent
        await line.head()
        await line.say(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while True:
            await line.say(b"x" * 65536)
            sent += 65536

    async with routed(endless) as (router, _), client(router) as line:
        line.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await line.say(request())
        await logged(router)
    assert sent < 32 * 1024 * 1024  # the router's 1 MiB, and what four sockets buffer


@jumping
async def test_response_of_which_1_mib_waits_is_still_sent_whole() -> None:
    size = 8 * 1024 * 1024
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size
    async with routed(says(head, b"x" * size)) as (router, _), client(router) as line:
        await line.say(request())
        await line.head()
        await asyncio.sleep(50)
        assert await line.hear(size) == b"x" * size


# -- broken connections ----------------------------------------------------------------------------


@jumping
async def test_h13_when_the_dyno_closes_without_a_word() -> None:
    async with routed(says(then_close=True)) as (router, _):
        assert status_of(await ask(router, request())) == 503
        assert router.codes == {"H13": 1}


@pytest.mark.parametrize(
    "said",
    [b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", EVENTS + b"5\r\nfirst"],
    ids=["in the head", "in a sized body", "in a chunk"],
)
@jumping
async def test_h18_when_the_dyno_breaks_off_its_answer(said: bytes) -> None:
    async with routed(says(said, then_close=True)) as (router, _):
        await ask(router, request())
        assert router.codes == {"H18": 1}


@jumping
async def test_h17_when_the_dyno_does_not_speak_http() -> None:
    async with routed(says(b"SSH-2.0-hello\r\n\r\n")) as (router, _):
        assert status_of(await ask(router, request())) == 503
        assert router.codes == {"H17": 1}


@jumping
async def test_h27_when_the_client_leaves_before_its_answer() -> None:
    told = asyncio.Event()

    async def serve(line: Line) -> None:
        await line.head()
        await line.gone()
        told.set()

    async with routed(serve) as (router, played):
        async with client(router) as line:
            await line.say(request())
            while not played.connections:  # noqa: ASYNC110 - time jumps
                await asyncio.sleep(0.1)
        record = await logged(router)
        assert (record.code, record.status) == ("H27", 499)
        async with asyncio.timeout(BOUND):
            await told.wait()


@jumping
async def test_client_that_leaves_in_the_middle_of_its_answer_is_no_error() -> None:
    async with routed(says(EVENTS)) as (router, _):
        async with client(router) as line:
            await line.say(request())
            await line.head()
        record = await logged(router)
        assert (record.code, record.status) == (None, 200)
        assert not router.codes


@jumping
async def test_h21_when_the_dyno_does_not_listen() -> None:
    async with dyno(answers) as played:
        address = played.address
    async with Router([address]) as router:
        assert status_of(await ask(router, request())) == 503
        assert router.codes == {"H21": 1}


@jumping
async def test_dyno_that_does_not_listen_is_passed_over() -> None:
    async with dyno(answers) as dead:
        pass
    async with dyno(answers) as alive, Router([dead.address, alive.address]) as router:
        for _ in range(32):
            assert status_of(await ask(router, request())) == 200
        assert not router.codes


@jumping
async def test_h14_without_dynos() -> None:
    async with Router() as router:
        assert status_of(await ask(router, request())) == 503
        assert router.codes == {"H14": 1}


@pytest.mark.parametrize(
    ("limits", "code"), [({}, "H19"), ({"connect_total_s": 3.0}, "H99")], ids=["H19", "H99"]
)
@jumping
async def test_dyno_that_does_not_answer_the_dial_is_given_up(
    monkeypatch: pytest.MonkeyPatch, limits: dict[str, float], code: str
) -> None:
    dial = asyncio.open_connection

    async def silent(host: str, port: int) -> Any:
        if port == 9:
            await asyncio.sleep(1000)
        return await dial(host, port)

    monkeypatch.setattr(asyncio, "open_connection", silent)
    async with Router([("127.0.0.1", 9)], Limits(**limits)) as router:  # type: ignore[arg-type]
        began = asyncio.get_running_loop().time()
        assert status_of(await ask(router, request())) == 503
        assert router.codes == {code: 1}
        waited = limits.get("connect_total_s", 5.0)
        assert waited <= asyncio.get_running_loop().time() - began < waited + 1


# -- limits ----------------------------------------------------------------------------------------


def long_target(size: int) -> bytes:
    return request("/" + "a" * (size - len("GET / HTTP/1.1")))


def long_header(size: int) -> bytes:
    return request(X_Long="a" * (size - len("X-Long: ")))


def long_name(size: int) -> bytes:
    return raw_request("/", b"", {"a" * size: "1"})


def many_headers(count: int) -> bytes:
    return raw_request("/", b"", {f"x-{number}": "1" for number in range(count - 2)})


@pytest.mark.parametrize(
    ("make", "most"),
    [(long_target, 8192), (long_header, 8192), (long_name, 1000), (many_headers, 1000)],
)
@jumping
async def test_request_at_a_limit_passes_and_one_above_is_refused(
    make: Callable[[int], bytes], most: int
) -> None:
    async with routed(answers) as (router, played):
        assert status_of(await ask(router, make(most))) == 200
        assert status_of(await ask(router, make(most + 1))) == 400
        assert (router.codes, played.connections) == ({"H26": 1}, 1)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request(Expect="a miracle"), 417),
        (request("/", b"x" * 8_000_000, Expect="a miracle"), 417),
        (b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (request(Transfer_Encoding="chunked") + b"no size\r\n", 400),
    ],
    ids=["expect", "expect, with a body", "connect", "no host", "no http", "bad chunk"],
)
@jumping
async def test_request_that_is_none_is_refused_by_the_router(data: bytes, status: int) -> None:
    async with routed(says_nothing) as (router, _):
        assert status_of(await ask(router, data)) == status
        assert router.codes == {"H26": 1}


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 " + b"a" * 8192 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nSet-Cookie: " + b"a" * 8192 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * 512 * 1024 + b"\r\n",
    ],
    ids=["status line", "cookie", "header"],
)
@jumping
async def test_h25_when_a_response_is_too_large_in_its_head(head: bytes) -> None:
    async with routed(says(head + b"Content-Length: 0\r\n\r\n")) as (router, _):
        assert status_of(await ask(router, request())) == 502
        assert router.codes == {"H25": 1}


@jumping
async def test_large_response_header_that_is_no_cookie_passes() -> None:
    head = b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * 100_000 + b"\r\nContent-Length: 0\r\n\r\n"
    async with routed(says(head)) as (router, _):
        assert status_of(await ask(router, request())) == 200


@jumping
async def test_h11_above_so_many_requests_for_each_dyno() -> None:
    async with routed(says(10.0, OK), concurrency_per_dyno=3) as (router, _):
        async with asyncio.TaskGroup() as asking:
            asked = [asking.create_task(ask(router, request())) for _ in range(5)]
        statuses = sorted(status_of(each.result()) for each in asked)
        assert statuses == [200, 200, 200, 503, 503]
        assert router.codes == {"H11": 2}
        assert router.active == 0


# -- connections to dynos --------------------------------------------------------------------------


@jumping
async def test_connection_to_a_dyno_is_used_again() -> None:
    async with routed(answers) as (router, played):
        for _ in range(5):
            await ask(router, request())
        assert (played.connections, router.opened) == (1, 1)


@pytest.mark.parametrize(("pause", "connections"), [(89.0, 1), (91.0, 2)])
@jumping
async def test_unused_connection_to_a_dyno_is_kept_for_90_seconds(
    pause: float, connections: int
) -> None:
    async with routed(answers) as (router, played):
        await ask(router, request())
        await asyncio.sleep(pause)
        await ask(router, request())
        assert played.connections == connections


@jumping
async def test_dyno_that_closes_an_unused_connection_earlier_is_dialled_again() -> None:
    async with routed(says(OK, 1.0, then_close=True)) as (router, played):
        await ask(router, request())
        await asyncio.sleep(2)
        assert status_of(await ask(router, request())) == 200
        assert played.connections == 2


@jumping
async def test_dyno_that_closes_a_connection_as_it_is_used_again_loses_the_request() -> None:
    async def once(line: Line) -> None:
        await line.head()
        await line.say(OK)
        await line.head()

    async with routed(once) as (router, _):
        assert status_of(await ask(router, request())) == 200
        assert status_of(await ask(router, request())) == 503
        assert router.codes == {"H13": 1}


@jumping
async def test_connection_that_the_dyno_wants_closed_is_not_used_again() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    async with routed(says(answer)) as (router, played):
        for _ in range(2):
            assert status_of(await ask(router, request())) == 200
        assert played.connections == 2


# -- upgrades --------------------------------------------------------------------------------------


async def echo(line: Line) -> None:
    await line.head()
    await line.say(SWITCH + b"early")
    while data := await line.reader.read(65536):
        await line.say(data)


@jumping
async def test_upgraded_connection_carries_raw_bytes_both_ways() -> None:
    noise = bytes(range(256)) * 300
    async with routed(echo) as (router, _), client(router) as line:
        await line.say(UPGRADE)
        head = await line.head()
        assert head.startswith(b"HTTP/1.1 101 ")
        assert headers_of(head)["upgrade"] == "websocket"
        assert await line.hear(5) == b"early"
        await line.say(noise)
        assert await line.hear(len(noise)) == noise


@jumping
async def test_bytes_sent_right_behind_an_upgrade_are_not_lost() -> None:
    async with routed(echo) as (router, _), client(router) as line:
        await line.say(UPGRADE + b"impatient")
        await line.head()
        assert await line.hear(14) == b"earlyimpatient"


@jumping
async def test_dyno_sees_the_upgrade_as_the_client_asked_for_it() -> None:
    seen = Heads()
    async with routed(seen) as (router, _), client(router) as line:
        await line.say(UPGRADE)
        assert status_of(await line.head()) == 200
    told = seen.only()
    assert (told["upgrade"], told["connection"].lower()) == ("websocket", "upgrade")
    assert told["sec-websocket-key"] == "key"


@jumping
async def test_h15_when_an_upgraded_connection_is_silent_both_ways() -> None:
    async with routed(echo) as (router, _), client(router) as line:
        await line.say(UPGRADE)
        await line.head()
        began = asyncio.get_running_loop().time()
        await line.gone()
        assert 55 <= asyncio.get_running_loop().time() - began < 56
        assert router.codes == {"H15": 1}


@pytest.mark.parametrize("speaker", ["client", "dyno"])
@jumping
async def test_bytes_of_one_side_keep_an_upgraded_connection_open(speaker: str) -> None:
    async def serve(line: Line) -> None:
        await line.head()
        await line.say(SWITCH)
        for _ in range(10 if speaker == "dyno" else 0):
            await asyncio.sleep(54)
            await line.say(b".")
        heard = await line.hear(10 if speaker == "client" else 1)
        await line.say(heard)

    async with routed(serve) as (router, _), client(router) as line:
        await line.say(UPGRADE)
        await line.head()
        for _ in range(10 if speaker == "client" else 0):
            await asyncio.sleep(54)
            await line.say(b".")
        assert await line.hear(10) == b"." * 10
        assert not router.codes


@pytest.mark.parametrize("leaver", ["client", "dyno"])
@jumping
async def test_upgraded_connection_that_one_side_closes_ends_without_a_code(leaver: str) -> None:
    told = asyncio.Event()

    async def serve(line: Line) -> None:
        await line.head()
        await line.say(SWITCH)
        if leaver == "client":
            await line.gone()
            told.set()

    async with routed(serve) as (router, _):
        async with client(router) as line:
            await line.say(UPGRADE)
            await line.head()
            if leaver == "dyno":
                assert await line.rest() == b""
                told.set()
        async with asyncio.timeout(BOUND):
            await told.wait()
        record = await logged(router)
        assert (record.code, record.status, record.upgraded) == (None, 101, True)


# -- the log ---------------------------------------------------------------------------------------


@jumping
async def test_log_line_of_a_request() -> None:
    lines: list[str] = []
    async with dyno(answers) as played, Router([played.address], log=lines.append) as router:
        await ask(router, request('/a?b="c"', X_Request_Id="i" * 20))
        await logged(router)
    (line,) = lines
    assert re.fullmatch(
        r'at=info method=GET path="/a\?b=\\"c\\"" host=example\.org request_id=i{20} '
        r'fwd="127\.0\.0\.1" dyno=web\.1 connect=\d+ms service=\d+ms status=200 bytes=2 '
        r"protocol=http1\.1 tls=true tls_version=tls1\.3",
        line,
    ), line


@jumping
async def test_log_line_of_an_error_names_its_code() -> None:
    async with routed(says_nothing) as (router, _):
        await ask(router, request(X_Request_Id="i" * 20))
        await logged(router)
    (line,) = router.lines
    assert line.startswith('at=error code=H12 desc="Request timeout" method=GET path="/" ')
    assert re.search(r" dyno=web\.1 connect=\d+ms service=30\d+ms ", line)
    assert " status=503 bytes=0 " in line


@jumping
async def test_cuts_are_the_codes_that_no_client_caused() -> None:
    async with Router() as router:
        router.codes.update(list(FAULTS))
        assert router.cuts == len(FAULTS) - len({"H26", "H27", "H28"})
