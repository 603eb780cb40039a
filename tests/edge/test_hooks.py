"""What the platform tells by webhooks: who is believed, and what is done."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
from typing import Any

import pytest

from gateway import events
from gateway.deployment import realm_of
from gateway.rendezvous import hooks
from gateway.sessions import reconciler
from gateway.sessions.reconciler import News
from tests.edge.dynos_house import (
    HOOK_SECRET,
    Apps,
    booted,
    definition,
    happens,
    heard,
    hurry,
    looked_again,
    platform,
    running,
    terms,
)
from tests.fakes.house import SECRET, eventually, opened
from tests.fakes.launchers import Scripted

ORPHAN = "0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


def signed(body: bytes, secret: str = HOOK_SECRET) -> dict[str, str]:
    digest = hmac.digest(secret.encode(), body, "sha256")
    return {"Heroku-Webhook-Hmac-SHA256": base64.b64encode(digest).decode()}


def told(launch_id: str, state: str = "crashed", **more: Any) -> bytes:
    realm = realm_of(SECRET)
    command = f"sh -c x --launch {realm}.{launch_id}"
    data = {"id": "1", "app": {"name": "a"}, "state": state, "command": command, **more}
    return json.dumps({"resource": "dyno", "action": "update", "data": data}).encode()


# Webhooks


async def test_webhook_ends_the_session_of_a_dead_dyno() -> None:
    launcher = Scripted()
    async with running(launcher, platform=platform(launcher)) as (house, _):
        agent, session = await booted(house, launcher)
        agent.cut()
        await eventually(lambda: not house.live(session).attached)
        body = told(agent.launch_id, exit_status=137)
        async with house.http.post(
            f"{house.origin}{hooks.PATH}", data=body, headers=signed(body)
        ) as response:
            assert response.status == 204
        said = await happens(house, events.PlatformSaid)
        assert (said.state, said.exit_status, said.dyno) == ("crashed", 137, "a/1")
        assert (await happens(house, events.Closed)).reason == "link_lost"


async def test_session_that_said_goodbye_itself_ends_with_its_own_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reconciler, "FAREWELL_S", 0.05)
    launcher = Scripted()
    async with running(launcher) as (house, _):
        agent, session = await booted(house, launcher)
        house.manager.reconciler.heard(News(agent.launch_id, "a/1", "down", True, 0))
        await happens(house, events.PlatformSaid)
        await house.delete(session)
        assert (await happens(house, events.Closed)).reason == "client_delete"
        assert len(heard(house, events.Closed)) == 1


async def test_news_that_a_dyno_starts_changes_nothing() -> None:
    launcher = Scripted()
    async with running(launcher, platform=platform(launcher)) as (house, _):
        agent, session = await booted(house, launcher)
        for state in ("starting", "up", "idle"):
            body = told(agent.launch_id, state)
            async with house.http.post(
                f"{house.origin}{hooks.PATH}", data=body, headers=signed(body)
            ) as response:
                assert response.status == 204
        await looked_again(launcher)
        assert heard(house, events.PlatformSaid) == []
        await house.works(agent, session)


@pytest.mark.parametrize(
    "body",
    [
        told(ORPHAN),
        told(ORPHAN).replace(realm_of(SECRET).encode(), b"000000000000"),
        told(ORPHAN, command=None),
        told("../../etc"),
        told(ORPHAN, command="--launch"),
        json.dumps({"resource": "build", "data": {}}).encode(),
        b"{}",
    ],
)
async def test_news_of_unknown_launches_are_taken_and_ignored(body: bytes) -> None:
    launcher = Scripted()
    async with running(launcher, platform=platform(launcher)) as (house, _):
        agent, session = await booted(house, launcher)
        async with house.http.post(
            f"{house.origin}{hooks.PATH}", data=body, headers=signed(body)
        ) as response:
            assert response.status == 204
        await looked_again(launcher)
        assert heard(house, events.PlatformSaid) == []
        assert heard(house, events.Closing) == []
        await house.works(agent, session)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Heroku-Webhook-Hmac-SHA256": ""},
        {"Heroku-Webhook-Hmac-SHA256": "é"},
        signed(told(ORPHAN), "another secret"),
        signed(b"{}"),
        signed(told(ORPHAN), ""),
    ],
)
async def test_hook_that_is_not_signed_by_our_secret_is_refused(headers: dict[str, str]) -> None:
    launcher = Scripted()
    async with (
        running(launcher, platform=platform(launcher)) as (house, _),
        house.http.post(
            f"{house.origin}{hooks.PATH}", data=told(ORPHAN), headers=headers
        ) as response,
    ):
        assert response.status == 401
        assert HOOK_SECRET not in await response.text()


async def test_hook_that_is_forged_ends_nothing() -> None:
    launcher = Scripted()
    async with running(launcher, platform=platform(launcher)) as (house, _):
        agent, session = await booted(house, launcher)
        body = told(agent.launch_id)
        headers = signed(body, "guessed")
        async with house.http.post(
            f"{house.origin}{hooks.PATH}", data=body, headers=headers
        ) as response:
            assert response.status == 401
        await looked_again(launcher)
        await house.works(agent, session)
        assert heard(house, events.PlatformSaid) == []


@pytest.mark.parametrize("chunked", [False, True])
async def test_oversized_hook_is_refused(chunked: bool) -> None:
    launcher = Scripted()
    body = b" " * (hooks.MAX_BYTES + 1)

    async def parts() -> Any:
        for start in range(0, len(body), 65536):
            yield body[start : start + 65536]

    async with (
        running(launcher, platform=platform(launcher)) as (house, _),
        house.http.post(
            f"{house.origin}{hooks.PATH}",
            data=parts() if chunked else body,
            headers=signed(body),
        ) as response,
    ):
        assert response.status == 413


async def test_slow_hook_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "BODY_S", 0.02)
    launcher, go = Scripted(), asyncio.Event()

    async def slow() -> Any:
        yield b"{"
        await go.wait()

    async with running(launcher, platform=platform(launcher)) as (house, _):
        async with house.http.post(f"{house.origin}{hooks.PATH}", data=slow()) as response:
            assert response.status == 408
        go.set()


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b"\xff", b'{"data": 1}', b'"\xff\xfe"', b'{"resource": "\xff"}']
)
async def test_signed_hook_that_is_no_event_is_refused(body: bytes) -> None:
    launcher = Scripted()
    async with (
        running(launcher, platform=platform(launcher)) as (house, _),
        house.http.post(f"{house.origin}{hooks.PATH}", data=body, headers=signed(body)) as response,
    ):
        assert response.status == 400


async def test_there_are_no_hooks_where_nothing_is_discovered() -> None:
    async with (
        opened(Scripted(), terms(), (definition(),)) as house,
        house.http.post(f"{house.origin}{hooks.PATH}", data=b"{}") as response,
    ):
        assert response.status == 404


async def test_flood_of_news_is_dropped_and_not_kept() -> None:
    launcher = Scripted()
    async with running(launcher) as (house, _):
        for number in range(5000):
            house.manager.reconciler.heard(News(f"{number:x}", "a/1", "down", True, 0))
        agent, session = await booted(house, launcher)
        await house.works(agent, session)


@pytest.mark.parametrize("resource", ["release", "formation"])
async def test_news_of_a_release_make_it_look_again(resource: str) -> None:
    launcher, apps = Scripted(), Apps()
    async with running(launcher, platform=platform(launcher, apps), heroku_refresh_s=86_400) as (
        house,
        _,
    ):
        await eventually(lambda: apps.looks == 2)  # one before it serves, one of the loop
        body = json.dumps({"resource": resource, "data": {"id": "x"}}).encode()
        async with house.http.post(
            f"{house.origin}{hooks.PATH}", data=body, headers=signed(body)
        ) as response:
            assert response.status == 204
        await eventually(lambda: apps.looks == 3)
