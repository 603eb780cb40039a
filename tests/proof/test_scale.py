"""A small proof of scale for every change; the full one is `make proof-scale`.

What the proof counts is held to what it must notice, and so is the router that it goes through.
"""

from __future__ import annotations

import asyncio
import io
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp
import pytest
from aiohttp import web

from tests.fakes.fault_proxy import HOST, hold_port
from tests.fakes.scatter import MARK, Scatter
from tests.proof.running import last_line
from tests.proof.scale_calls import Call, Diary, Document, Order, Verdict, Way, judge

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

SMALL = ("--calls", "40", "--sessions", "8", "--kills", "1", "--every-s", "2", "--seed", "1")
BOUND_S = 200.0
"""It takes about 20 s on two free cores."""

WAIT_S = 5.0
OWNER = "ada/2025-11-25/0"


@pytest.mark.timeout(BOUND_S + 10)
def test_sessions_survive_gateways_and_engine_without_a_wrong_lost_or_doubled_answer() -> None:
    last = last_line("tests.proof.scale", *SMALL, bound_s=BOUND_S)
    assert last == (
        "proof-scale: gateways=3 calls=40 kills=1 engine_restarts=1 "
        "unknown_session=0 wrong=0 duplicated=0"
    )


# What the proof counts


def answer(number: int, **other: object) -> Document:
    """Return the right answer to the call of this serial, but for what is `other`."""
    whole = {"owner": OWNER, "child": "c", "count": number, "serial": number, "attempt": 1}
    return {**whole, "times": 1, "text": Order(number).text(OWNER), **other}


def journal(*calls: tuple[int, int], told: int = 0, owner: str = OWNER) -> Document:
    return {"owner": owner, "child": "c", "told": told, "calls": [list(call) for call in calls]}


def counted(*calls: Call, written: Document, told: tuple[int, ...] = ()) -> Verdict:
    diary = Diary(OWNER, Way.RESUMING, calls=list(calls), told=list(told))
    return judge(diary, written)


def faults(verdict: Verdict) -> dict[str, int]:
    names = ("unknown", "wrong", "duplicated", "lost", "untold")
    return {name: getattr(verdict, name) for name in names if getattr(verdict, name)}


def test_answers_that_the_journal_confirms_are_no_fault() -> None:
    calls = Call(Order(1), answers=[answer(1)]), Call(Order(2), answers=[answer(2)])
    verdict = counted(*calls, written=journal((1, 1), (2, 1), told=2), told=(2, 1))
    assert (faults(verdict), verdict.answered, verdict.complaints) == ({}, 2, [])


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (Call(Order(1), answers=[answer(1, owner="bob")]), {"wrong": 1}),
        (Call(Order(1), answers=[answer(1, serial=2)]), {"wrong": 2}),
        (Call(Order(1), answers=[answer(1, text="")]), {"wrong": 1}),
        (Call(Order(1), answers=[answer(1, count=2)]), {"wrong": 1}),
        (Call(Order(1), answers=[answer(1, child="d")]), {"wrong": 1}),
        (Call(Order(1), answers=[answer(1)], strange=["progress of 9"]), {"wrong": 1}),
        (Call(Order(1), answers=[answer(1), answer(1)]), {"duplicated": 1}),
        (Call(Order(1), answers=[answer(1)], twice=3), {"duplicated": 3}),
        (Call(Order(1), answers=[answer(1)], missed=2), {"lost": 2}),
        (Call(Order(1)), {"lost": 1}),
        (Call(Order(2), answers=[answer(2, count=1)]), {"wrong": 2}),
    ],
    ids=(
        *("owner", "serial", "text", "count", "child", "strange", "answered twice"),
        *("heard twice", "missed", "no answer", "executed unasked"),
    ),
)
def test_fault_of_a_call_is_counted(call: Call, expected: dict[str, int]) -> None:
    assert faults(counted(call, written=journal((1, 1)))) == expected


@pytest.mark.parametrize(
    ("written", "told", "expected"),
    [
        (journal((1, 1), (1, 1)), (), {"duplicated": 1}),
        (journal((1, 1), (1, 2)), (), {"wrong": 1}),
        (journal((1, 1), owner="bob"), (), {"wrong": 1}),
        (journal((1, 1), told=2), (1, 1, 2), {"duplicated": 1}),
        (journal((1, 1), told=2), (2,), {"untold": 1}),
        (journal((1, 1)), (1,), {"wrong": 1}),
    ],
    ids=("twice", "attempt nobody made", "owner", "told twice", "untold", "never told"),
)
def test_fault_that_only_the_journal_shows_is_counted(
    written: Document, told: tuple[int, ...], expected: dict[str, int]
) -> None:
    call = Call(Order(1), answers=[answer(1)])
    assert faults(counted(call, written=written, told=told)) == expected


def test_session_that_is_denied_is_counted_once_and_its_call_is_not_lost() -> None:
    diary = Diary(OWNER, Way.PLAIN, calls=[Call(Order(1), failure="…")], unknown=["HTTP 404"])
    assert faults(judge(diary, None)) == {"unknown": 1}


def test_missing_journal_is_a_loss() -> None:
    diary = Diary(OWNER, Way.PLAIN, calls=[Call(Order(1), answers=[answer(1)])])
    assert faults(judge(diary, None)) == {"lost": 1}


def test_progress_that_comes_again_or_too_late_is_noticed() -> None:
    call = Call(Order(1, steps=3))
    for step in (0.002, 1, 3, 2, 3):
        call.heard(step)
    assert (call.twice, call.strange) == (1, ["progress 2 after 3"])


# The router


@asynccontextmanager
async def gateway(
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> AsyncIterator[int]:
    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, 0).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def behind(*ports: int) -> AsyncIterator[tuple[Scatter, aiohttp.ClientSession]]:
    """A router before these gateways, and a client."""
    chance = random.Random(1)  # noqa: S311 - repeatable, not secret
    router = Scatter(ports, chance)
    async with asyncio.timeout(WAIT_S), router, aiohttp.ClientSession(router.url) as http:
        yield router, http


def abort(request: web.Request) -> None:
    assert request.transport is not None
    request.transport.abort()


async def agrees(_request: web.Request) -> web.Response:
    return web.Response(text="yes")


async def test_requests_of_one_client_reach_every_gateway() -> None:
    async with (
        gateway(agrees) as first,
        gateway(agrees) as second,
        behind(first, second) as (router, http),
    ):
        for _ in range(20):
            async with http.get("/") as response:
                assert response.status == 200
    taken = [router.counts[f"to {port}"] for port in (first, second)]
    assert sum(taken) == 20
    assert all(taken)


async def test_gateway_that_refuses_is_left_out() -> None:
    with hold_port() as guard:
        dead = guard.getsockname()[1]
        async with gateway(agrees) as port, behind(dead, port) as (router, http):
            for _ in range(10):
                async with http.get("/") as response:
                    assert response.status == 200
    assert router.counts["refused"] > 0


async def test_without_a_gateway_the_router_says_so() -> None:
    async with behind() as (_, http), http.get("/") as response:
        assert (response.status, response.headers[MARK]) == (503, "nobody")


async def test_request_that_a_gateway_broke_off_is_not_sent_to_another() -> None:
    asked = 0

    async def breaking(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        await request.read()
        abort(request)
        return web.Response()

    async with (
        gateway(breaking) as first,
        gateway(breaking) as second,
        behind(first, second) as (_, http),
        http.post("/", data=b"x") as response,
    ):
        assert (response.status, response.headers[MARK]) == (503, "broke")
    assert asked == 1


async def test_answer_that_a_gateway_breaks_off_is_broken_for_the_client() -> None:
    async def breaking(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"half")
        abort(request)
        return response

    async with gateway(breaking) as port, behind(port) as (_, http), http.get("/") as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def test_bytes_pass_as_they_come_and_large_ones_whole() -> None:
    seen = asyncio.Event()

    async def streaming(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        await seen.wait()
        await response.write(await request.read())
        return response

    body = random.Random(2).randbytes(2**24)  # noqa: S311 - repeatable, not secret
    async with (
        gateway(streaming) as port,
        behind(port) as (_, http),
        http.post("/", data=io.BytesIO(body)) as response,
    ):
        assert await response.content.readexactly(5) == b"first"
        seen.set()
        assert await response.read() == body


async def test_client_that_hangs_up_hangs_up_at_the_gateway() -> None:
    waiting, cancelled = asyncio.Event(), asyncio.Event()

    async def patient(_request: web.Request) -> web.Response:
        waiting.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return web.Response()

    async def ask(http: aiohttp.ClientSession) -> None:
        async with http.get("/"):
            pytest.fail("there is no answer")

    async with gateway(patient) as port, behind(port) as (_, http), asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(ask(http))
        await waiting.wait()
        asking.cancel()
        await cancelled.wait()


async def test_websocket_passes_and_is_cut_with_its_gateway() -> None:
    async def echoing(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=("rdv.v1",))
        await socket.prepare(request)
        await socket.send_bytes(await socket.receive_bytes())
        await socket.receive_bytes()
        abort(request)
        return socket

    async with (
        gateway(echoing) as port,
        behind(port) as (_, http),
        http.ws_connect("/", protocols=("rdv.v1",)) as socket,
    ):
        await socket.send_bytes(b"hello")
        assert (socket.protocol, await socket.receive_bytes()) == ("rdv.v1", b"hello")
        await socket.send_bytes(b"die")
        message = await socket.receive()
        assert message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSE)
