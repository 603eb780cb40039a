"""The proxy that breaks connections: each fault is seen by both sides as what it claims to be."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.fakes import fault_proxy
from tests.fakes.fault_proxy import HOST, End, FaultProxy, Tunnel, Way, hold_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BOUND = 30.0
"""Seconds for any one wait; nothing here takes one."""


class Peer:
    """One side of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def say(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def finish(self) -> None:
        self._writer.write_eof()

    def reset(self) -> None:
        linger = struct.pack("ii", 1, 0)
        self._writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, linger
        )
        self._writer.transport.abort()

    async def hear(self, size: int) -> bytes:
        async with asyncio.timeout(BOUND):
            return await self._reader.readexactly(size)

    async def rest(self) -> bytes:
        """All until FIN; raises ConnectionResetError where it ends with RST."""
        async with asyncio.timeout(BOUND):
            return await self._reader.read()

    @property
    def heard_nothing(self) -> bool:
        """Whether nothing has come that was not read, not even an end."""
        return not self._reader._buffer and not self._reader._eof  # type: ignore[attr-defined]

    async def close(self) -> None:
        self._writer.close()
        try:
            async with asyncio.timeout(BOUND):
                await self._writer.wait_closed()
        except OSError:
            return


class Target:
    """A server whose connections the test takes one by one."""

    def __init__(self) -> None:
        self._arrived: asyncio.Queue[Peer] = asyncio.Queue(16)
        self._all: list[Peer] = []
        self.port = 0

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        self._all.append(peer)
        self._arrived.put_nowait(peer)

    async def next(self) -> Peer:
        async with asyncio.timeout(BOUND):
            return await self._arrived.get()

    @asynccontextmanager
    async def listening(self, port: int = 0) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._take, HOST, port, reuse_address=True)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()
            for peer in self._all:
                await peer.close()


class Rig:
    """A target, a proxy before it, and one connection through both."""

    def __init__(self, target: Target, proxy: FaultProxy) -> None:
        self.target = target
        self.proxy = proxy
        self._diallers: list[Peer] = []

    async def dial(self) -> Peer:
        async with asyncio.timeout(BOUND):
            peer = Peer(*await asyncio.open_connection(HOST, self.proxy.port))
        self._diallers.append(peer)
        return peer

    async def connect(self) -> tuple[Peer, Peer, Tunnel]:
        """A connection that has carried bytes both ways."""
        near = await self.dial()
        far = await self.target.next()
        await near.say(b"up")
        assert await far.hear(2) == b"up"
        await far.say(b"down")
        assert await near.hear(4) == b"down"
        return near, far, self.proxy.tunnels[-1]

    async def settle(self) -> None:
        """Let everything happen that is due: an exchange past the proxy, in the same loop.

        What was written before is in the proxy's sockets by then, so it had its turns.
        """
        for _ in range(5):
            peer = Peer(*await asyncio.open_connection(HOST, self.target.port))
            self._diallers.append(peer)
            await peer.say(b"x")
            assert await (await self.target.next()).hear(1) == b"x"

    async def close(self) -> None:
        for peer in self._diallers:
            await peer.close()


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    target = Target()
    async with target.listening(), FaultProxy(target.port) as proxy:
        made = Rig(target, proxy)
        yield made
        await made.close()


async def until_closed(tunnel: Tunnel) -> None:
    async with asyncio.timeout(BOUND):
        await tunnel.closed.wait()


# -- forwarding -----------------------------------------------------------------------------------


async def test_bytes_pass_both_ways_unchanged(rig: Rig) -> None:
    near, far, _ = await rig.connect()
    up, down = bytes(range(256)) * 4096, bytes(reversed(range(256))) * 4096
    async with asyncio.TaskGroup() as group:
        group.create_task(near.say(up))
        group.create_task(far.say(down))
        heard_up = group.create_task(far.hear(len(up)))
        heard_down = group.create_task(near.hear(len(down)))
    assert (heard_up.result(), heard_down.result()) == (up, down)


async def test_fin_of_one_side_leaves_the_other_direction_open(rig: Rig) -> None:
    near, far, tunnel = await rig.connect()
    near.finish()
    assert await far.rest() == b""
    await far.say(b"still here")
    assert await near.hear(10) == b"still here"
    far.finish()
    assert await near.rest() == b""
    await until_closed(tunnel)


async def test_reset_of_one_side_reaches_the_other_as_a_reset(rig: Rig) -> None:
    near, far, tunnel = await rig.connect()
    near.reset()
    await until_closed(tunnel)
    with pytest.raises(ConnectionResetError):
        await far.rest()


async def test_opening_bytes_of_the_dialler_are_remembered_up_to_a_limit(rig: Rig) -> None:
    near, far, tunnel = await rig.connect()
    await near.say(b"x" * 10_000)
    await far.hear(10_000)
    assert tunnel.opening == b"up" + b"x" * (fault_proxy.OPENING_BYTES - 2)


async def test_forwarded_bytes_are_counted_by_direction(rig: Rig) -> None:
    near, far, tunnel = await rig.connect()
    await near.say(b"x" * 998)
    await far.hear(998)
    assert (tunnel.forwarded[Way.UP], tunnel.forwarded[Way.DOWN]) == (1000, 4)


async def test_target_that_does_not_listen_ends_the_connection() -> None:
    with hold_port() as closed:
        async with FaultProxy(closed.getsockname()[1]) as proxy:
            rig = Rig(Target(), proxy)
            near = await rig.dial()
            assert await near.rest() == b""
            await rig.close()
            assert proxy.counts["unreachable"] == 1


async def test_patient_proxy_waits_for_a_target_that_listens_later() -> None:
    target = Target()
    with hold_port() as guard:
        port = guard.getsockname()[1]
        async with FaultProxy(port, patience_s=BOUND) as proxy:
            rig = Rig(target, proxy)
            near = await rig.dial()
            await near.say(b"early")
            async with target.listening(port):
                assert await (await target.next()).hear(5) == b"early"
                await rig.close()


# -- faults ---------------------------------------------------------------------------------------


async def test_reset_is_seen_as_a_reset_by_both_sides(rig: Rig) -> None:
    near, far, tunnel = await rig.connect()
    tunnel.reset()
    await until_closed(tunnel)
    for peer in (near, far):
        with pytest.raises(ConnectionResetError):
            await peer.rest()
    assert rig.proxy.counts["reset"] == 1


async def test_fin_is_seen_as_an_orderly_end_by_both_sides(rig: Rig) -> None:
    near, far, tunnel = await rig.connect()
    tunnel.finish()
    assert (await near.rest(), await far.rest()) == (b"", b"")
    await near.close()
    await far.close()
    await until_closed(tunnel)
    assert rig.proxy.counts["fin"] == 1
    assert rig.proxy.counts["lingered"] == 0


async def test_what_is_said_after_a_fin_is_thrown_away(rig: Rig) -> None:
    near, far, tunnel = await rig.connect()
    tunnel.finish()
    assert await far.rest() == b""
    await near.say(b"too late")
    near.finish()
    far.finish()
    await until_closed(tunnel)
    assert tunnel.forwarded[Way.UP] == 2
    assert rig.proxy.counts["broken"] == 0


async def test_connection_ended_with_fin_is_closed_though_nobody_answers_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fault_proxy, "LINGER_S", 0.0)
    _, _, tunnel = await rig.connect()
    tunnel.finish()
    await until_closed(tunnel)
    assert rig.proxy.counts["lingered"] == 1


@pytest.mark.parametrize("way", Way)
async def test_half_close_ends_one_direction_only(rig: Rig, way: Way) -> None:
    near, far, tunnel = await rig.connect()
    silenced, other = (near, far) if way is Way.UP else (far, near)
    tunnel.half_close(way)
    assert await other.rest() == b""
    await silenced.say(b"into the void")
    await other.say(b"goes on")
    assert await silenced.hear(7) == b"goes on"
    assert tunnel.forwarded[way] == (2 if way is Way.UP else 4)
    assert rig.proxy.counts["half_close"] == 1


@pytest.mark.parametrize("way", Way)
async def test_cut_lets_exactly_so_many_bytes_pass(rig: Rig, way: Way) -> None:
    near, far, tunnel = await rig.connect()
    sender, receiver = (near, far) if way is Way.UP else (far, near)
    tunnel.cut(way, 1234, End.FIN)
    await sender.say(b"a" * 1000)
    assert await receiver.hear(1000) == b"a" * 1000
    await sender.say(b"b" * 1000)
    assert await receiver.rest() == b"b" * 234
    assert (rig.proxy.counts["cut"], rig.proxy.counts["fin"]) == (1, 1)


async def test_cut_after_nothing_lets_nothing_pass(rig: Rig) -> None:
    near, far, tunnel = await rig.connect()
    tunnel.cut(Way.UP, 0, End.FIN)
    await near.say(b"x")
    assert await far.rest() == b""


async def test_cut_can_end_with_a_reset(rig: Rig) -> None:
    near, _, tunnel = await rig.connect()
    tunnel.cut(Way.UP, 1, End.RESET)
    await near.say(b"xy")
    await until_closed(tunnel)
    with pytest.raises(ConnectionResetError):
        await near.rest()


@pytest.mark.parametrize("end", End)
async def test_cut_lets_nothing_pass_of_what_already_waits_behind_it(rig: Rig, end: End) -> None:
    rig.proxy.pace.slice_bytes = 100
    near, far, tunnel = await rig.connect()
    tunnel.cut(Way.UP, 1000, end)
    await near.say(b"x" * 20_000)
    await rig.settle()
    await near.close()
    await far.close()
    await until_closed(tunnel)
    assert tunnel.forwarded[Way.UP] == 2 + 1000


async def test_cut_in_one_direction_does_not_count_the_other(rig: Rig) -> None:
    near, far, tunnel = await rig.connect()
    tunnel.cut(Way.UP, 1, End.RESET)
    await far.say(b"x" * 1000)
    assert await near.hear(1000) == b"x" * 1000
    assert not tunnel.closed.is_set()


async def test_black_hole_forwards_nothing_and_tells_nobody(rig: Rig) -> None:
    near, far, tunnel = await rig.connect()
    tunnel.black_hole()
    await near.say(b"anybody?")
    near.finish()
    await rig.settle()
    assert far.heard_nothing
    assert near.heard_nothing
    assert not tunnel.closed.is_set()
    assert rig.proxy.counts["black_hole"] == 1


async def test_black_hole_swallows_a_fin(rig: Rig) -> None:
    near, far, tunnel = await rig.connect()
    tunnel.black_hole()
    near.finish()
    await rig.settle()
    assert far.heard_nothing


async def test_black_hole_can_still_be_reset(rig: Rig) -> None:
    near, far, tunnel = await rig.connect()
    tunnel.black_hole()
    await near.say(b"anybody?")
    tunnel.reset()
    await until_closed(tunnel)
    with pytest.raises(ConnectionResetError):
        await far.rest()


async def test_fault_of_one_connection_spares_the_others(rig: Rig) -> None:
    _, _, first = await rig.connect()
    near, far, second = await rig.connect()
    first.reset()
    await until_closed(first)
    await near.say(b"unharmed")
    assert await far.hear(8) == b"unharmed"
    assert rig.proxy.tunnels == [second]


async def test_refusing_refuses_new_connections_and_spares_open_ones(rig: Rig) -> None:
    near, far, _ = await rig.connect()
    with rig.proxy.refusing():
        with pytest.raises(ConnectionRefusedError):
            await rig.dial()
        await near.say(b"unharmed")
        assert await far.hear(8) == b"unharmed"


async def test_port_is_the_same_after_refusing(rig: Rig) -> None:
    with rig.proxy.refusing():
        pass
    await rig.connect()
    assert rig.proxy.counts["accepted"] == 1


async def test_slow_pace_loses_nothing(rig: Rig) -> None:
    near, far, _ = await rig.connect()
    rig.proxy.pace.slice_bytes, rig.proxy.pace.pause_s = 16, 0.001
    data = bytes(range(256)) * 4
    await near.say(data)
    assert await far.hear(len(data)) == data


async def test_pause_delays_every_slice(rig: Rig) -> None:
    near, far, tunnel = await rig.connect()
    rig.proxy.pace.pause_s = 3600.0
    await near.say(b"much later")
    await rig.settle()
    assert far.heard_nothing
    assert tunnel.forwarded[Way.UP] == 2


async def test_leaving_closes_what_is_open_and_stops_listening() -> None:
    target = Target()
    async with target.listening():
        async with FaultProxy(target.port) as proxy:
            rig = Rig(target, proxy)
            near, far, tunnel = await rig.connect()
        assert tunnel.closed.is_set()
        assert (await near.rest(), await far.rest()) == (b"", b"")
        with pytest.raises(ConnectionRefusedError):
            await rig.dial()
        await rig.close()


async def test_leaving_does_not_wait_for_a_black_hole(rig: Rig) -> None:
    async with asyncio.timeout(BOUND), FaultProxy(rig.target.port) as proxy:
        inner = Rig(rig.target, proxy)
        near, _, tunnel = await inner.connect()
        tunnel.black_hole()
    assert await near.rest() == b""
    await inner.close()


async def test_leaving_does_not_wait_for_a_target_that_never_listens() -> None:
    with hold_port() as closed:
        async with (
            asyncio.timeout(BOUND),
            FaultProxy(closed.getsockname()[1], patience_s=3600) as proxy,
        ):
            rig = Rig(Target(), proxy)
            near = await rig.dial()
            while not proxy.counts["accepted"]:  # noqa: ASYNC110 - the loop's own next turns
                await asyncio.sleep(0)
    assert await near.rest() == b""
    await rig.close()
