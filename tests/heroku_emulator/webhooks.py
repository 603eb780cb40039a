"""App webhooks: what happened is posted to whoever subscribed, signed, in order.

`notify` is one try, `sync` several. A share of the deliveries can be lost on purpose.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import aiohttp

from tests.heroku_emulator.model import ACCOUNT, Moment, new_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.heroku_emulator.options import Options

Include = Literal["dyno", "api:release", "api:formation"]
Action = Literal["create", "update", "destroy"]

QUEUED = 10_000
"""Deliveries that may wait for one subscriber; more are lost, and counted so."""

TRIES = 10
"""Tries of a `sync` delivery."""

ANSWER_S = 20.0
"""A subscriber has this long to answer."""


@dataclass(slots=True)
class Subscription:
    """Who gets which events of an app."""

    app: str
    app_id: str
    include: list[str]
    level: str
    url: str
    secret: str = field(repr=False)
    authorization: str | None = field(repr=False)
    created: Moment = field(default_factory=Moment.now)
    id: str = field(default_factory=new_id)
    queue: asyncio.Queue[dict[str, Any]] = field(
        default_factory=lambda: asyncio.Queue(QUEUED), repr=False
    )

    def as_json(self) -> dict[str, Any]:
        """Return the schema's `app-webhook`; the secret is never told again."""
        return {
            "app": {"id": self.app_id, "name": self.app},
            "created_at": self.created.stamp,
            "id": self.id,
            "include": self.include,
            "level": self.level,
            "updated_at": self.created.stamp,
            "url": self.url,
        }


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one event for one subscriber.

    Attributes:
        outcome: HTTP status of the last try, `lost` on purpose, or `failed` to reach anybody.
    """

    subscription: str
    payload: Mapping[str, Any]
    outcome: int | Literal["lost", "failed"]


def signature(secret: str, body: bytes) -> str:
    """Return the value of Heroku-Webhook-Hmac-SHA256."""
    return base64.b64encode(hmac.digest(secret.encode(), body, hashlib.sha256)).decode()


class Webhooks:
    """The subscriptions of all apps; `deliveries` is what became of each event."""

    def __init__(self, options: Options, tasks: asyncio.TaskGroup) -> None:
        self._options = options
        self._tasks = tasks
        self._chance = random.Random(options.seed)  # noqa: S311 - repeatable, not secret
        self._workers: dict[str, asyncio.Task[None]] = {}
        self._subscriptions: dict[str, Subscription] = {}
        self.deliveries: list[Delivery] = []

    def of(self, app: str) -> list[Subscription]:
        """Return an app's subscriptions."""
        return [each for each in self._subscriptions.values() if each.app == app]

    def add(self, subscription: Subscription) -> None:
        """Let a subscriber have what happens from now on."""
        self._subscriptions[subscription.id] = subscription
        self._workers[subscription.id] = self._tasks.create_task(
            self._deliver(subscription), name=f"webhook {subscription.id}"
        )

    def remove(self, subscription: Subscription) -> None:
        """Let a subscriber have nothing more, not even what waits."""
        del self._subscriptions[subscription.id]
        self._workers.pop(subscription.id).cancel()

    def close(self) -> None:
        """Stop all deliveries."""
        for subscription in list(self._subscriptions.values()):
            self.remove(subscription)

    def publish(self, app: str, include: Include, action: Action, data: dict[str, Any]) -> None:
        """Tell an app's subscribers what happened."""
        for subscription in self.of(app):
            if include not in subscription.include:
                continue
            payload = _payload(subscription, include, action, data)
            lost = self._chance.random() < self._options.webhook_loss
            if lost or subscription.queue.full():
                self.deliveries.append(Delivery(subscription.id, payload, "lost"))
            else:
                subscription.queue.put_nowait(payload)

    async def _deliver(self, subscription: Subscription) -> None:
        timeout = aiohttp.ClientTimeout(total=ANSWER_S)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            while True:
                payload = await subscription.queue.get()
                tries = TRIES if subscription.level == "sync" else 1
                outcome: int | Literal["failed"] = "failed"
                for number in range(tries):
                    if number:
                        await asyncio.sleep(self._options.webhook_retry_s * 2 ** (number - 1))
                        payload["webhook_metadata"]["attempt"]["id"] = new_id()
                    outcome = await _post(http, subscription, payload)
                    if outcome != "failed" and outcome < 300:
                        break
                self.deliveries.append(Delivery(subscription.id, payload, outcome))


async def _post(
    http: aiohttp.ClientSession, subscription: Subscription, payload: dict[str, Any]
) -> int | Literal["failed"]:
    body = json.dumps(payload).encode()
    headers = {
        "Content-Type": "application/json",
        "Heroku-Webhook-Hmac-SHA256": signature(subscription.secret, body),
    }
    if subscription.authorization is not None:
        headers["Authorization"] = subscription.authorization
    try:
        async with http.post(
            subscription.url, data=body, headers=headers, allow_redirects=False
        ) as response:
            return response.status
    except (aiohttp.ClientError, TimeoutError):
        return "failed"


def _payload(
    subscription: Subscription, include: Include, action: Action, data: dict[str, Any]
) -> dict[str, Any]:
    now = Moment.now().stamp
    return {
        "id": new_id(),
        "action": action,
        "actor": ACCOUNT,
        "created_at": now,
        "updated_at": now,
        "published_at": now,
        "data": data,
        "previous_data": {},
        "resource": include.removeprefix("api:"),
        "sequence": None,
        "version": "application/vnd.heroku+json; version=3",
        "webhook_metadata": {
            "attempt": {"id": new_id()},
            "delivery": {"id": new_id()},
            "event": {"id": new_id(), "include": include},
            "webhook": {"id": subscription.id},
        },
    }
