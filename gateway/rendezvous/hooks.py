"""Where the platform tells of dynos and releases by itself: fast news, and not the only source.

Heroku's app webhooks: JSON, signed with a secret that was agreed when the app was subscribed to
(`Heroku-Webhook-Hmac-SHA256`, base64 of HMAC-SHA256 over the raw body).
"""

import asyncio
import base64
import hmac
from collections.abc import Callable
from datetime import datetime

import msgspec
from aiohttp import web

from gateway.sessions.reconciler import News

PATH = "/hooks/heroku"
MAX_BYTES = 256 * 1024
BODY_S = 10.0

ENDED = ("down", "crashed")
"""States of a dyno that does not run any more."""


class _App(msgspec.Struct):
    name: str = ""


class _Data(msgspec.Struct):
    id: str = ""
    app: _App = msgspec.field(default_factory=_App)
    state: str = ""
    command: str | None = None
    exit_status: int | None = None
    size: str | None = None
    created_at: datetime | None = None


class _Payload(msgspec.Struct):
    resource: str = ""
    action: str = ""
    data: _Data = msgspec.field(default_factory=_Data)


_PAYLOAD = msgspec.json.Decoder(_Payload)


class Hooks:
    """Handler of `POST /hooks/heroku`.

    Args:
        secret: that signs what comes.
        launch_of: the launch id in a dyno's command; None if it is not one of ours.
        heard: hears of dynos.
        released: hears that an app is not what it was.
    """

    def __init__(
        self,
        secret: str,
        launch_of: Callable[[str], str | None],
        heard: Callable[[News], None],
        released: Callable[[], None],
    ) -> None:
        self._secret = secret.encode()
        self._launch_of = launch_of
        self._heard = heard
        self._released = released

    def routes(self) -> list[web.RouteDef]:
        """Return the one route."""
        return [web.post(PATH, self.hook)]

    async def hook(self, request: web.Request) -> web.Response:
        """Take one event: 204, or 4xx for what nobody of ours has signed or sent."""
        body = await self._body(request)
        expected = base64.b64encode(hmac.digest(self._secret, body, "sha256"))
        signature = request.headers.get("Heroku-Webhook-Hmac-SHA256", "")
        if not hmac.compare_digest(expected, signature.encode(errors="replace")):
            raise web.HTTPUnauthorized(text="not signed with this gateway's secret\n")
        try:
            payload = _PAYLOAD.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise web.HTTPBadRequest(text="no event of an app\n") from None
        if payload.resource == "dyno":
            self._tell(payload.data)
        elif payload.resource in ("release", "formation"):
            self._released()
        return web.Response(status=204)

    async def _body(self, request: web.Request) -> bytes:
        if (request.content_length or 0) > MAX_BYTES:
            raise web.HTTPRequestEntityTooLarge(MAX_BYTES, request.content_length or 0)
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_S):
                async for chunk in request.content.iter_any():
                    body += chunk
                    if len(body) > MAX_BYTES:
                        raise web.HTTPRequestEntityTooLarge(MAX_BYTES, len(body))
        except TimeoutError:
            raise web.HTTPRequestTimeout from None
        return bytes(body)

    def _tell(self, dyno: _Data) -> None:
        launch_id = self._launch_of(dyno.command or "")
        if launch_id is None:
            return
        ended = dyno.state in ENDED or dyno.exit_status is not None
        dyno_id = f"{dyno.app.name}/{dyno.id}"
        self._heard(
            News(
                launch_id,
                dyno_id,
                dyno.state,
                ended,
                dyno.exit_status,
                app=dyno.app.name or None,
                size=dyno.size,
                created=None if dyno.created_at is None else dyno.created_at.timestamp(),
            )
        )
