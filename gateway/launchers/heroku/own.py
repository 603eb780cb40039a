"""The gateway's own app: its config vars are the gateway's secrets, and every dyno of it has them.

So a dyno is launched into it only with a switch set, and then with those variables blanked twice:
by the platform when it starts the dyno, and by the agent before it starts the server.
"""

import asyncio
import re
from dataclasses import dataclass, field

import structlog

from gateway.launchers.base import LaunchError
from gateway.launchers.heroku.failures import Failure, Forbidden
from gateway.launchers.heroku.platform import Platform

LOOK_S = 300.0
"""How long what an app's config vars said is believed."""

_NAME = re.compile(r"\w+", re.ASCII)
"""What the platform takes for the name of a variable."""


@dataclass(frozen=True, slots=True)
class OwnApp:
    """What is known of the gateway's own app.

    Attributes:
        names: names and ids it goes by.
        secret_names: variables that hold the gateway's secrets.
        secret_digests: SHA-256 of their values, in hex: an app that holds one of them is the
            gateway's own too, or as good as.
        allowed: ALLOW_OWN_APP: dynos may be launched into it.
    """

    names: frozenset[str] = frozenset()
    secret_names: tuple[str, ...] = ()
    secret_digests: frozenset[str] = field(default=frozenset(), repr=False)
    allowed: bool = False


class Blanks:
    """Says which variables must be blanked in an app's dynos, if any may be launched."""

    def __init__(self, platform: Platform, own: OwnApp) -> None:
        self._platform = platform
        self._own = own
        self._found: dict[str, tuple[float, frozenset[str]]] = {}
        self._unreadable: set[str] = set()

    async def environment(self, app: str) -> dict[str, str]:
        """Return what the create call must add to a dyno's environment.

        Raises:
            LaunchError: it is the gateway's own app and that is not allowed, or nobody knows.
        """
        found = await self._secrets_in(app)
        if not found and app not in self._own.names:
            return {}
        if not self._own.allowed:
            raise LaunchError(
                f"{app} is the gateway's own app, or holds its secrets: put the server into an "
                "app of its own, or set ALLOW_OWN_APP"
            )
        names = sorted(found | {name for name in self._own.secret_names if _NAME.fullmatch(name)})
        return {**dict.fromkeys(names, ""), "RENDEZVOUS_HIDE": ",".join(names)}

    async def _secrets_in(self, app: str) -> frozenset[str]:
        """Return the config vars of an app that hold the gateway's secrets."""
        now = asyncio.get_running_loop().time()
        until, found = self._found.get(app, (0.0, frozenset()))
        if now < until or not self._own.secret_digests:
            return found
        try:
            digests = await self._platform.config_digests(app)
        except Forbidden:
            self._tell_unreadable(app)
            found = frozenset()
        except Failure as failure:
            if until:
                return found  # an older answer is better than no dyno
            raise LaunchError(
                f"whether {app} holds the gateway's secrets could not be seen: {failure}",
                failure.retry_after_s,
            ) from failure
        else:
            secret = self._own.secret_digests
            found = frozenset(name for name, digest in digests.items() if digest in secret)
        self._found[app] = now + LOOK_S, found
        return found

    def _tell_unreadable(self, app: str) -> None:
        if app in self._unreadable:
            return
        self._unreadable.add(app)
        structlog.get_logger().warning(
            "config_vars_unreadable",
            app=app,
            advice="The key may not read this app's config vars, so nobody sees whether it holds "
            "the gateway's secrets: see to it that it does not.",
        )
