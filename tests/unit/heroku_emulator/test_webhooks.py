"""Webhooks: what happened is told to who asked, signed, once or until it is heard."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import TYPE_CHECKING, Any, Literal

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.heroku_emulator import Emulator
    from tests.unit.heroku_emulator.asking import Api

HOOKS = "/apps/runner/webhooks"
SECRET = "of-this-test"  # noqa: S105


class Ear:
    """A subscriber: `heard` is each payload that it took; `deaf` is how many it refuses first."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.wrong: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.deaf = 0
        application = web.Application()
        application.router.add_post("/hooks", self._hear)
        self.server = TestServer(application)

    async def _hear(self, request: web.Request) -> web.Response:
        raw = await request.read()
        self.headers.append(dict(request.headers))
        wanted = base64.b64encode(hmac.digest(SECRET.encode(), raw, hashlib.sha256)).decode()
        if request.headers["Heroku-Webhook-Hmac-SHA256"] != wanted:
            self.wrong.append(raw.decode())
        if self.deaf:
            self.deaf -= 1
            return web.Response(status=503)
        self.heard.append(json.loads(raw))
        return web.Response(status=204)

    @property
    def states(self) -> list[tuple[str, int | None]]:
        return [(p["data"]["state"], p["data"]["exit_status"]) for p in self.heard]


@pytest.fixture
async def ear() -> AsyncIterator[Ear]:
    ear = Ear()
    async with ear.server:
        yield ear


async def subscribe(
    api: Api, ear: Ear, include: list[str], level: Literal["notify", "sync"] = "notify"
) -> Any:
    url = str(ear.server.make_url("/hooks"))
    body = {"include": include, "level": level, "url": url, "secret": SECRET}
    answer = await api("POST", HOOKS, {**body, "authorization": "Bearer of-theirs"})
    assert answer.status == 201, answer.body
    return answer.body


async def test_a_dynos_life_is_told_in_order(heroku: Emulator, api: Api, ear: Ear) -> None:
    await subscribe(api, ear, ["dyno"])
    made = await api.create("exit 7", type="rendezvous")
    await heroku.until(lambda: len(ear.heard) == 3)
    assert ear.states == [("starting", None), ("up", None), ("crashed", 7)]
    data = ear.heard[-1]["data"]
    assert (data["id"], data["name"], data["app"]["name"]) == (made["id"], made["name"], "runner")
    assert data["management"] == "run:detached"
    assert ear.heard[0]["webhook_metadata"]["event"]["include"] == "dyno"


async def test_deliveries_are_signed_and_authorized(heroku: Emulator, api: Api, ear: Ear) -> None:
    await subscribe(api, ear, ["dyno"])
    await api.create("exit 0")
    await heroku.until(lambda: len(ear.heard) == 3)
    assert ear.wrong == []
    assert {headers["Authorization"] for headers in ear.headers} == {"Bearer of-theirs"}


async def test_releases_and_formation_changes_are_told(
    heroku: Emulator, api: Api, ear: Ear
) -> None:
    await subscribe(api, ear, ["api:release", "api:formation"])
    heroku.deploy("runner", {"mcp-new": "exec sleep 600"})
    await heroku.until(lambda: len(ear.heard) >= 5)
    told = [(p["resource"], p["action"], p["data"].get("type")) for p in ear.heard]
    assert told[0] == ("release", "create", None)
    assert ("formation", "create", "mcp-new") in told
    assert ("formation", "destroy", "mcp-files") in told


async def test_notify_is_one_try(heroku: Emulator, api: Api, ear: Ear) -> None:
    ear.deaf = 1
    await subscribe(api, ear, ["dyno"])
    await api.create("exit 0")
    await heroku.until(lambda: len(heroku.deliveries) == 3)
    assert [delivery.outcome for delivery in heroku.deliveries] == [503, 204, 204]
    assert [state for state, _ in ear.states] == ["up", "down"]


async def test_sync_is_tried_until_it_is_heard(heroku: Emulator, api: Api, ear: Ear) -> None:
    ear.deaf = 2
    await subscribe(api, ear, ["dyno"], "sync")
    await api.create("exit 0")
    await heroku.until(lambda: len(heroku.deliveries) == 3)
    assert ear.states == [("starting", None), ("up", None), ("down", 0)]


async def test_webhooks_can_be_lost(heroku: Emulator, api: Api, ear: Ear) -> None:
    heroku.options.webhook_loss = 1.0
    await subscribe(api, ear, ["dyno"])
    await api.create("exit 0")
    await heroku.until(lambda: len(heroku.deliveries) == 3)
    assert {delivery.outcome for delivery in heroku.deliveries} == {"lost"}
    assert ear.headers == []


async def test_nobody_at_the_url_is_a_failed_delivery(heroku: Emulator, api: Api) -> None:
    body = {"include": ["dyno"], "level": "notify", "url": "http://127.0.0.1:1/hooks"}
    await api("POST", HOOKS, body)
    await api.create("exit 0")
    await heroku.until(lambda: len(heroku.deliveries) == 3)
    assert {delivery.outcome for delivery in heroku.deliveries} == {"failed"}


async def test_a_subscription_is_listed_until_it_is_deleted(
    heroku: Emulator, api: Api, ear: Ear
) -> None:
    made = await subscribe(api, ear, ["dyno"])
    assert (await api("GET", HOOKS)).body == [made]
    assert "secret" not in made
    assert (await api("DELETE", f"{HOOKS}/{made['id']}")).body == made
    assert (await api("GET", HOOKS)).body == []
    await api.create("exit 0")
    await heroku.until(lambda: heroku.ledger[-1].ended)
    assert heroku.deliveries == []


async def test_a_secret_that_the_platform_makes_is_told_once(api: Api) -> None:
    body = {"include": ["dyno"], "level": "notify", "url": "http://127.0.0.1:1/hooks"}
    answer = await api("POST", HOOKS, body)
    assert len(answer.headers["Heroku-Webhook-Secret"]) >= 32
    shown = await api("GET", f"{HOOKS}/{answer.body['id']}")
    assert "Heroku-Webhook-Secret" not in shown.headers
