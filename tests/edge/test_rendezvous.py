"""The agents' WebSocket under attack: the offending session ends, and nobody else notices.

The real application on loopback with a launcher that makes no dynos: the test reads the join token
from the launch order and plays the agent, honest or hostile, with the link's own endpoint.
"""

from __future__ import annotations

import asyncio
import hashlib
import json

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from dyno_agent.link import (
    SUBPROTOCOL,
    Channel,
    CloseCode,
    Hello,
    Limits,
)
from dyno_agent.link.frames import MAX_FRAME_BYTES, Frame, FrameType, encode
from dyno_agent.link.limits import FRAGMENT_BYTES, HANDSHAKE_BYTES
from gateway.rendezvous import endpoint as rendezvous
from gateway.sessions.terms import Terms
from tests.fakes.house import (
    BOUND,
    INITIALIZE,
    KEY,
    SECRET,
    House,
    close_code,
    hello,
    opened,
    refusal,
    token_of,
)

TOO_BIG = 1009
"""RFC 6455, 7.4.1: the WebSocket library refuses such a frame before we see it."""

# -- before the upgrade -------------------------------------------------------------------------


async def test_dial_without_a_credential_is_refused(house: House) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await house.dial(None)
    assert refused.value.response.status_code == 401


GARBAGE = {
    "word": "garbage",
    "no-secret": "rj_0123456789abcdef01234567",
    "empty-secret": "rj_0123456789abcdef01234567.",
    "unknown-launch": "rj_0123456789abcdef01234567.secret",
    "unknown-resume": "rr_0123456789abcdef01234567.secret",
    "api-key": KEY,
}


@pytest.mark.parametrize("credential", GARBAGE.values(), ids=list(GARBAGE))
async def test_credential_that_is_none_of_ours_is_refused(house: House, credential: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await house.dial(credential)
    assert refused.value.response.status_code == 401


@pytest.mark.parametrize("kind", ["rj", "rr"])
async def test_launch_id_without_its_secret_leads_nowhere(house: House, kind: str) -> None:
    """The launch id is public: it stands in the dyno's command line."""
    async with house.asked() as (order, call):
        with pytest.raises(InvalidStatus) as refused:
            await house.dial(f"{kind}_{order.launch_id}.guess")
        assert refused.value.response.status_code == 401
        assert not house.ear.ended(order)
        call.cancel()


async def test_join_token_is_refused_after_the_boot_deadline(house: House) -> None:
    async with house.http.post(f"{house.origin}/servers/hasty/mcp", json=INITIALIZE) as response:
        assert await refusal(response) == (504, -32603, "start_timeout", 1)
    order = house.launcher.orders.get_nowait()
    with pytest.raises(InvalidStatus) as refused:
        await house.dial(token_of(order))
    assert refused.value.response.status_code == 401


async def test_browser_is_refused_even_with_a_token(house: House) -> None:
    async with house.asked() as (order, call):
        with pytest.raises(InvalidStatus) as refused:
            await house.dial(token_of(order), origin=house.origin)
        assert refused.value.response.status_code == 403
        call.cancel()


async def test_other_subprotocol_is_refused(house: House) -> None:
    async with house.asked() as (order, call):
        with pytest.raises(InvalidStatus) as refused:
            await house.dial(token_of(order), subprotocol="rdv.v0")
        assert refused.value.response.status_code == 400
        call.cancel()


async def test_token_is_still_good_after_refused_dials(house: House) -> None:
    async with house.asked() as (order, call):
        for subprotocol, origin in (("rdv.v0", None), (SUBPROTOCOL, house.origin)):
            with pytest.raises(InvalidStatus):
                await house.dial(token_of(order), subprotocol=subprotocol, origin=origin)
        agent = await house.join(order)
        assert agent.welcome.child is not None
        call.cancel()


# -- the handshake ------------------------------------------------------------------------------

OPENINGS: dict[str, str | bytes] = {
    "not-json": "hello",
    "not-an-object": "[]",
    "unknown-kind": '{"kind": "guess"}',
    "number-as-boot-id": '{"kind": "join", "boot_id": 1}',
    "negative-count": '{"kind": "join", "received": -1}',
    "over-the-limit": json.dumps({"kind": "join", "padding": "x" * HANDSHAKE_BYTES}),
    "deeply-nested": "[" * 10_000,
    "binary": hello("first").encode().encode(),
}


@pytest.mark.parametrize("opening", OPENINGS.values(), ids=list(OPENINGS))
async def test_bad_hello_ends_its_session_as_a_breach(house: House, opening: str | bytes) -> None:
    async with house.honest() as (agent, session):
        async with house.asked() as (order, call):
            socket = await house.dial(token_of(order))
            await socket.send(opening)
            assert await close_code(socket) == CloseCode.PROTOCOL_VIOLATION
            assert await house.ear.closed(order) == "breach"
        assert await refusal(call.result()) == (502, -32603, "session_ended", 1)
        await house.works(agent, session)


async def test_hello_over_the_frame_limit_ends_its_session_as_a_breach(house: House) -> None:
    async with house.asked() as (order, call):
        socket = await house.dial(token_of(order))
        await socket.send("x" * (MAX_FRAME_BYTES + 1))
        assert await close_code(socket) == TOO_BIG
        assert await house.ear.closed(order) == "breach"
    assert await refusal(call.result()) == (502, -32603, "session_ended", 1)


async def test_agent_that_never_says_hello_is_dropped_and_its_token_stays_good(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house.asked() as (order, call):
        with monkeypatch.context() as patched:
            patched.setattr(rendezvous, "HANDSHAKE_S", 0.01)
            silent = await house.dial(token_of(order))
            assert await close_code(silent) == 1006
        agent = await house.join(order)
        assert agent.welcome.child is not None
        call.cancel()


@pytest.mark.parametrize("proof", ["", "0" * 63, "\u00e9" * 64], ids=["none", "short", "not-ascii"])
async def test_hello_with_a_proof_that_is_no_hash_is_refused(house: House, proof: str) -> None:
    async with house.honest() as (agent, session):
        async with house.asked() as (order, call):
            socket = await house.dial(token_of(order))
            await socket.send(Hello("join", "first", proof).encode())
            assert await close_code(socket) == CloseCode.BAD_TOKEN
            call.cancel()
        await house.works(agent, session)


async def test_hello_for_a_session_that_ended_meanwhile_is_refused_for_good(house: House) -> None:
    async with house.asked() as (order, call):
        socket = await house.dial(token_of(order))
        call.cancel()  # the client hangs up, which ends the session
        assert await house.ear.closed(order) == "client_gone"
        await socket.send(hello("first").encode())
        code = await close_code(socket)
    assert code in {CloseCode.BAD_TOKEN, CloseCode.SESSION_ENDED}


async def test_token_used_by_a_second_process_ends_the_session_as_a_breach(house: House) -> None:
    async with house.honest() as (bystander, session):
        async with house.asked() as (order, call):
            first = await house.join(order, "first")
            second = await house.dial(token_of(order))
            await second.send(hello("second").encode())
            assert await close_code(second) == CloseCode.REPLAYED_TOKEN
            while (message := await first.receive()).channel is not Channel.CMD:
                assert message.channel is Channel.RPC
            assert json.loads(message.payload) == {"do": "stop"}
            await first.socket.close()
            assert await house.ear.closed(order) == "breach"
        assert await refusal(call.result()) == (502, -32603, "session_ended", 1)
        await house.works(bystander, session)


async def test_second_process_learns_nothing_of_the_child(house: House) -> None:
    """Its environment may hold secrets of the operator."""
    async with house.asked() as (order, _call):
        first = await house.join(order, "first")
        second = await house.dial(token_of(order))
        await second.send(hello("second").encode())
        async with asyncio.timeout(BOUND):
            with pytest.raises(ConnectionClosed):
                await second.recv()
        await first.socket.close()


async def test_same_process_may_join_again_when_its_welcome_was_lost(house: House) -> None:
    async with house.asked() as (order, call):
        lost = await house.dial(token_of(order))
        await lost.send(hello("first").encode())
        await lost.recv()
        agent = await house.join(order, "first")
        assert (agent.welcome.epoch, agent.welcome.child is not None) == (2, True)
        await agent.send(Channel.EVENT, {"event": "spawned", "pid": 1})
        await agent.answer({})
    assert call.result().status == 200


# -- after the handshake --------------------------------------------------------------------------


def data(seq: int, ack: int = 0) -> bytes:
    return encode(Frame(FrameType.DATA, True, True, Channel.EVENT, seq, ack, b"{}"))


ATTACKS: dict[str, tuple[str | bytes, int]] = {
    "text": ("hello again", CloseCode.PROTOCOL_VIOLATION),
    "empty": (b"", CloseCode.PROTOCOL_VIOLATION),
    "short": (b"\x10\x01", CloseCode.PROTOCOL_VIOLATION),
    "garbage": (b"\xff" * 40, CloseCode.PROTOCOL_VIOLATION),
    "sequence-gap": (data(2), CloseCode.PROTOCOL_VIOLATION),
    "sequence-zero": (data(0), CloseCode.PROTOCOL_VIOLATION),
    "ack-of-the-unsent": (data(1, ack=10**6), CloseCode.PROTOCOL_VIOLATION),
    "oversized": (b"\x10" * (MAX_FRAME_BYTES + 1), TOO_BIG),
}


@pytest.mark.parametrize(("frame", "code"), ATTACKS.values(), ids=list(ATTACKS))
async def test_bad_frame_ends_its_session_as_a_breach_and_no_other(
    house: House, frame: str | bytes, code: int
) -> None:
    async with house.honest() as (bystander, session):
        async with house.asked() as (order, call):
            agent = await house.join(order)
            await agent.socket.send(frame)
            assert await close_code(agent.socket) == code
            assert await house.ear.closed(order) == "breach"
        assert await refusal(call.result()) == (502, -32603, "session_ended", 1)
        assert len(house.ear.breaches(order)) == 1
        await house.works(bystander, session)


SMALL = Limits(
    message_bytes=100_000, window_bytes=200_000, window_frames=8, ack_bytes=10_000, ack_frames=2
)


def part(seq: int, channel: Channel, size: int, *, start: bool = False) -> bytes:
    """A fragment of a message that does not end."""
    return encode(Frame(FrameType.DATA, start, False, channel, seq, 0, b"x" * size))


EXCESSES: dict[str, tuple[list[bytes], int]] = {
    "window-bytes": (
        [
            part(2 * number + half, lane, FRAGMENT_BYTES // 2, start=half == 1)
            for number, lane in enumerate((Channel.RPC, Channel.LOG, Channel.EVENT, Channel.REPLAY))
            for half in (1, 2)
        ],
        CloseCode.WINDOW_EXCEEDED,
    ),
    "window-frames": (
        [part(seq, Channel.RPC, 1, start=seq == 1) for seq in range(1, SMALL.window_frames + 2)],
        CloseCode.WINDOW_EXCEEDED,
    ),
    "message-bytes": (
        [part(seq, Channel.RPC, FRAGMENT_BYTES, start=seq == 1) for seq in (1, 2)],
        CloseCode.MESSAGE_TOO_BIG,
    ),
    "begun-twice": (
        [part(seq, Channel.RPC, 1, start=True) for seq in (1, 2)],
        CloseCode.PROTOCOL_VIOLATION,
    ),
    "never-begun": ([part(1, Channel.RPC, 1)], CloseCode.PROTOCOL_VIOLATION),
}


@pytest.mark.parametrize(("frames", "code"), EXCESSES.values(), ids=list(EXCESSES))
async def test_excess_is_closed_with_a_code_of_its_own_and_logged_as_a_breach(
    frames: list[bytes], code: int
) -> None:
    async with opened(terms=Terms("http://127.0.0.1", SECRET, 10, limits=SMALL)) as house:
        bystander, session = await house.booted()
        async with house.asked() as (order, call):
            agent = await house.join(order)
            for frame in frames:
                await agent.socket.send(frame)
            assert await close_code(agent.socket) == code
            assert await house.ear.closed(order) == "breach"
        assert await refusal(call.result()) == (502, -32603, "session_ended", 1)
        assert len(house.ear.breaches(order)) == 1
        assert house.ear.breaches(bystander) == []
        await house.works(bystander, session)


@pytest.mark.parametrize(
    "code", [CloseCode.PROTOCOL_VIOLATION, CloseCode.WINDOW_EXCEEDED, CloseCode.MESSAGE_TOO_BIG]
)
def test_agent_that_broke_the_rules_is_not_asked_back(code: CloseCode) -> None:
    assert not code.retriable


def test_agent_of_a_gateway_that_leaves_is_asked_back() -> None:
    assert CloseCode.DRAIN.retriable


async def test_claim_to_hold_what_was_never_sent_ends_the_session_as_a_breach(
    house: House,
) -> None:
    async with house.asked() as (order, call):
        socket = await house.dial(token_of(order))
        proof = hashlib.sha256(b"first").hexdigest()
        await socket.send(Hello("join", "first", proof, received=10**6).encode())
        assert await close_code(socket) == CloseCode.PROTOCOL_VIOLATION
        assert await house.ear.closed(order) == "breach"
    assert await refusal(call.result()) == (502, -32603, "session_ended", 1)


async def test_session_that_was_breached_is_unknown_to_its_client(house: House) -> None:
    async with house.honest() as (agent, session):
        await agent.socket.send("hello again")
        assert await close_code(agent.socket) == CloseCode.PROTOCOL_VIOLATION
        response = await house.post({"jsonrpc": "2.0", "id": 3, "method": "ping"}, session)
        assert await refusal(response) == (404, -32001, "unknown_session", 3)


async def test_dyno_of_a_breached_session_is_stopped(house: House) -> None:
    async with house.asked() as (order, _call):
        agent = await house.join(order)
        await agent.socket.send("hello again")
        await house.ear.closed(order)
    assert house.launcher.stopped == [f"fake.{order.launch_id}"]
