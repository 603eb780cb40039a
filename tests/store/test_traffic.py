"""What the Valkey store costs its engine: connections, keys, memory."""

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.store import valkey
from gateway.store.base import STORIES, Held, Keep, Passage, StoreAway
from gateway.store.stories import CHUNK_BYTES
from gateway.store.valkey import Part, ValkeyStore
from tests.fakes.valkey import ValkeyServer
from tests.store.house import LONG_S, WAIT_S, command, mail, read

KEEP = Keep(story_bytes=20_000, all_bytes=1_000_000, stories=300, ttl_s=LONG_S)


@pytest.fixture
async def a(server: ValkeyServer) -> AsyncIterator[ValkeyStore]:
    async with ValkeyStore(server.url) as store:
        yield store


@pytest.fixture
async def b(server: ValkeyServer) -> AsyncIterator[ValkeyStore]:
    async with ValkeyStore(server.url) as store:
        yield store


async def test_a_thousand_callers_at_once_share_two_connections(
    a: ValkeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(valkey, "DEADLINE_S", WAIT_S)
    async with asyncio.TaskGroup() as tasks:
        reader = tasks.create_task(read(a))
        asked = [tasks.create_task(a.put_new("x", b"first", LONG_S)) for _ in range(1000)]
        clients = tasks.create_task(command(a, "CLIENT", "LIST"))
        await asyncio.wait(asked)
        await a.send([(a.gateway, b"end")])
    assert [one.result() for one in asked] == [b"first"] * 1000
    assert clients.result().count(f"name=rdv-{a.gateway} ".encode()) == 2
    assert reader.result() == [b"end"]


async def test_reader_keeps_its_connection(a: ValkeyStore, b: ValkeyStore) -> None:
    async def connections() -> str:
        stats = str((await command(a, "INFO", "stats")).decode()).splitlines()
        return next(line for line in stats if line.startswith("total_connections_received"))

    await mail(b)
    before = await connections()
    for _ in range(10):
        await mail(b)
    assert await connections() == before


async def test_more_callers_than_may_wait_are_let_in_one_after_the_other(
    server: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(valkey, "DEADLINE_S", WAIT_S)
    monkeypatch.setattr(valkey, "WAITING", 2)
    async with ValkeyStore(server.url) as store, asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(store.put_new(str(n), b"", LONG_S)) for n in range(100)]
        await asyncio.wait(asked)
    assert [one.result() for one in asked] == [b""] * 100


async def test_letters_that_were_read_take_no_memory(a: ValkeyStore, b: ValkeyStore) -> None:
    inbox = f"rdv:in:{b.gateway}:0"
    for _ in range(3):
        await a.send([(b.gateway, b"x" * 100_000)] * 100)
        await a.take("s/1", 1, b"", LONG_S)
        await mail(b)
        await mail(b)  # drops what the one before has read
    assert await command(a, "XLEN", inbox) <= 1
    assert int(await command(a, "GET", f"{inbox}:bytes")) <= 256 + 16


async def test_every_key_expires(a: ValkeyStore, b: ValkeyStore) -> None:
    for name in ("held", "taken", "released", "ended"):
        await a.claim(name, b"facts", LONG_S)
    await b.take("taken", 2, b"", LONG_S)
    await a.hold([Held("held", 1, b"", LONG_S), Held("entered", 1, b"", LONG_S)])
    await a.release("released", 1)
    await a.end("ended", 1, "why", LONG_S)
    await a.put("document", b"", LONG_S)
    await a.put_new("new", b"", LONG_S)
    version = await a.commit("table", 0, {"one": b"1", "two": b"2"}, LONG_S)
    assert version is not None
    await a.commit("table", version, {"one": None, "three": b"3"}, LONG_S)
    await a.draw("bucket", 1.0, 3)
    await a.tell([Passage("story", b"head", [b"line"]), Passage("other", b"", [])], KEEP)
    await a.send([(b.gateway, b"letter")] * 3)
    assert len(await mail(a)) == 1
    assert len(await mail(b)) == 3
    keys = await command(a, "KEYS", "*")
    kinds = {key.split(b":")[1] for key in keys}
    assert kinds == {
        *(b"gws", b"gw", b"in", b"born", b"claim", b"doc", b"table", b"bucket"),
        *(b"story", b"stories"),
    }
    assert [key for key in keys if await command(a, "PTTL", key) <= 0] == []


async def of_stories(store: ValkeyStore) -> list[bytes]:
    """Return the keys of all that has to do with stories."""
    keys = [await command(store, "KEYS", f"rdv:{of}*") for of in ("stor", "table:stories")]
    return [key for some in keys for key in some]


@pytest.mark.parametrize("size", [0, 100, 3000])
async def test_stories_take_no_more_memory_than_they_may(a: ValkeyStore, size: int) -> None:
    names = [f"{n:032x}" for n in range(400)]
    for _ in range(3):  # rows come, and go, and others come
        for first in range(0, 400, 25):
            passages = [
                Passage(name, b"h" * size, [b"x" * size] * 3) for name in names[first : first + 25]
            ]
            await a.tell(passages, KEEP)
            used = [
                await command(a, "MEMORY", "USAGE", key, "SAMPLES", 0)
                for key in await of_stories(a)
            ]
            assert sum(used) <= KEEP.all_bytes
    assert len((await a.changes(STORIES, 0)).rows) > {0: 290, 100: 290, 3000: 70}[size]


async def test_story_that_went_leaves_no_key(a: ValkeyStore) -> None:
    for n in range(10):
        await a.tell([Passage(f"s{n}", b"head", [b"line"])], replace(KEEP, stories=2))
    await a.tell([Passage("none", b"head", [b"line"])], replace(KEEP, stories=0))
    assert set(await of_stories(a)) <= {b"rdv:table:stories", b"rdv:table:stories:gone"}
    assert await command(a, "HGET", "rdv:table:stories", "cost") == b"0"


async def test_engine_has_others_served_while_much_is_told(
    a: ValkeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = list[int]()
    do = a._do

    async def note(operation: str, *args: Part, **how: Any) -> Any:
        if operation == "tell":
            steps.append(sum(len(part) for part in args if isinstance(part, bytes)))
        return await do(operation, *args, **how)

    monkeypatch.setattr(a, "_do", note)
    keep = replace(KEEP, all_bytes=50_000_000)
    await a.tell([Passage(f"s{n}", b"", [b"x"]) for n in range(200)], keep)
    assert len(steps) == 4
    steps.clear()
    await a.tell([Passage(f"s{n}", b"", [b"x" * 20_000] * 3) for n in range(200)], keep)
    assert len(steps) == 16
    assert max(steps) <= 256 * 1024
    steps.clear()
    await a.tell([Passage("s", b"", [b"x" * 1000] * 10_000)], keep)
    assert len(steps) == 1
    assert max(steps) <= KEEP.story_bytes + 2 * CHUNK_BYTES
    steps.clear()
    await a.tell([Passage("s", b"", [])], replace(keep, stories=1))
    assert steps == [0] * 4  # 200 stories went


async def test_deployments_with_different_prefixes_share_nothing(server: ValkeyServer) -> None:
    stores = [ValkeyStore(server.url, prefix=prefix) for prefix in ("one", "{two}")]
    async with stores[0] as one, stores[1] as two:
        await one.claim("x", b"", LONG_S)
        await one.put("x", b"", LONG_S)
        await one.commit("x", 0, {"x": b""}, LONG_S)
        await one.tell([Passage("x", b"", [b"line"])], KEEP)
        assert await two.find("x") is None
        assert await two.get("x") is None
        assert (await two.changes("x", 0)).rows == {}
        assert (await two.changes(STORIES, 0)).rows == {}
        assert (await two.told("x", 0, 1)).lines == []
        assert await two.gateways() == [two.gateway]
        assert await one.send([(two.gateway, b"")]) == [False]
        keys = await command(one, "KEYS", "*")
        assert {key.split(b":")[0] for key in keys} == {b"one", b"{two}"}


async def test_what_is_left_by_a_process_that_left_is_only_its_claims(server: ValkeyServer) -> None:
    async with ValkeyStore(server.url) as other:
        async with ValkeyStore(server.url) as store:
            await store.claim("x", b"", LONG_S)
            await store.send([(store.gateway, b"letter")])
            gateway = store.gateway
        keys = await command(other, "KEYS", "*")
        assert not [key for key in keys if gateway.encode() in key]
        assert b"rdv:claim:x" in keys


@asynccontextmanager
async def behind_tls(server: ValkeyServer, home: Path) -> AsyncIterator[str]:
    """Yield the URL of a TLS front with a certificate that it signed itself, as Heroku's have."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(self_signed(home))

    async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
        sink.close()

    async def carry(near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        far, on = await asyncio.open_connection("127.0.0.1", server.port)
        async with asyncio.TaskGroup() as pumps:
            pumps.create_task(pass_on(near, on))
            pumps.create_task(pass_on(far, back))

    front = await asyncio.start_server(carry, "127.0.0.1", 0, ssl=context)
    async with front:
        yield f"rediss://127.0.0.1:{front.sockets[0].getsockname()[1]}"


def self_signed(home: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "engine.example")])
    now = datetime.datetime.now(datetime.UTC)  # noqa: TID251 - a real certificate's dates
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = home / "both.pem"
    path.write_bytes(key.private_bytes(pem, *plain) + certificate.public_bytes(pem))
    return path


async def test_tls_engine_with_a_self_signed_certificate_is_used(
    server: ValkeyServer, tmp_path: Path
) -> None:
    async with (
        asyncio.timeout(WAIT_S),
        behind_tls(server, tmp_path) as url,
        AsyncExitStack() as stack,
    ):
        store = await stack.enter_async_context(ValkeyStore(url))
        letter = b"x" * 300_000
        await store.send([(store.gateway, letter)])
        assert await read(store) == [letter]


async def test_tls_engine_with_a_self_signed_certificate_is_refused_if_asked_to_verify(
    server: ValkeyServer, tmp_path: Path
) -> None:
    async with (
        asyncio.timeout(WAIT_S),
        behind_tls(server, tmp_path) as url,
        AsyncExitStack() as stack,
    ):
        store = await stack.enter_async_context(ValkeyStore(url, verify=True))
        with pytest.raises(StoreAway, match="certificate"):
            await store.get("x")
