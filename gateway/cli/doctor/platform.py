"""Heroku: the key, and the apps whose process types are servers."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Final, TypeVar

from gateway.cli.doctor.findings import Finding, Level, fail, ok, warn
from gateway.launchers.heroku.api import Bounds, Meter, PlatformApi
from gateway.launchers.heroku.failures import Failure, Forbidden
from gateway.launchers.heroku.formation import PREFIX
from gateway.settings import Settings

BOUNDS: Final = Bounds(connect_s=5.0, read_s=10.0, answer_s=10.0)

FEW_LEFT: Final = 500
"""Requests; the gateway keeps 200 for stopping dynos."""

T = TypeVar("T")


class _Listener(Meter):
    """Keeps what the platform says by the way, instead of logging it."""

    def __init__(self) -> None:
        super().__init__()
        self.date = ""

    def note(self, headers: Mapping[str, str]) -> None:
        """Read the headers of an answer."""
        self.date = headers.get("Date", self.date)


class Doctor:
    """Looks at the platform, one request after the other.

    Args:
        read: the settings.
    """

    def __init__(self, read: Settings) -> None:
        self._read = read
        self._meter = _Listener()
        self._sizes: frozenset[str] = frozenset()
        self._api: PlatformApi

    @property
    def date(self) -> str:
        """The platform's clock, as HTTP has it; empty if it was not heard."""
        return self._meter.date

    async def look(self) -> list[Finding]:
        """Look at the key, and with it at every app."""
        read = self._read
        if read.launcher_name != "heroku":
            return []
        key = "" if read.heroku_api_key is None else read.heroku_api_key.get_secret_value().strip()
        if not key:
            fix = "`heroku authorizations:create` makes one"
            return [fail("heroku key", "HEROKU_API_KEY is not set", fix)]
        if not (key.isascii() and key.isprintable()):
            fix = "set HEROKU_API_KEY again, without quotes or line breaks"
            return [fail("heroku key", "it holds characters that no key has", fix)]
        url = str(read.heroku_api_url).rstrip("/")
        self._api = PlatformApi(key, url, BOUNDS, self._meter)
        try:
            return await self._all()
        finally:
            self._api.close()

    async def _all(self) -> list[Finding]:
        found = [await self._key()]
        if found[0].level is Level.FAIL:
            return found  # nothing else would be answered either
        sizes = await self._asked(lambda api: api.dyno_sizes())
        if not isinstance(sizes, Failure):
            self._sizes = frozenset(size.name.lower() for size in sizes)
        if not self._read.heroku_apps:
            fix = "name the apps whose servers are to run"
            found.append(fail("heroku apps", "HEROKU_APPS is not set", fix))
        found += self._default_size()
        for app in self._read.heroku_apps:
            found += [await self._app(app), await self._own(app)]
        return found

    async def _key(self) -> Finding:
        left = await self._asked(lambda api: api.ratelimit_remaining())
        if isinstance(left, Failure):
            return fail("heroku key", str(left), left.advice)
        if left < FEW_LEFT:
            fix = "requests come back at 75 a minute; see what else uses this account"
            return warn("heroku key", f"answers, {left} requests are left", fix)
        return ok("heroku key", f"answers, {left} requests are left")

    def _default_size(self) -> Iterator[Finding]:
        size = self._read.dyno_size
        if size is not None and self._sizes and size.lower() not in self._sizes:
            yield fail("DYNO_SIZE", f"the platform has no size {size}", self._known_sizes())

    def _known_sizes(self) -> str:
        return f"one of {', '.join(sorted(self._sizes))}"

    async def _app(self, app: str) -> Finding:
        check = f"app {app}"
        formation = await self._asked(lambda api: api.formation(app))
        if isinstance(formation, Failure):
            return fail(check, str(formation), formation.advice)
        servers = [each for each in formation if each.type.startswith(PREFIX)]
        if not servers:
            fix = f"add a line such as `{PREFIX}-tools: python server.py` to its Procfile, deploy"
            return warn(check, f"has no process type {PREFIX}*, so no server", fix)
        strange = [each for each in servers if each.size and self._strange(each.size)]
        if strange:
            said = ", ".join(f"{each.type} has {each.size}" for each in strange)
            fix = f"`heroku ps:type`; {self._known_sizes()}"
            return warn(check, f"sizes that the platform does not list: {said}", fix)
        return ok(check, f"servers {', '.join(sorted(each.type for each in servers))}")

    def _strange(self, size: str) -> bool:
        return bool(self._sizes) and size.lower() not in self._sizes

    async def _own(self, app: str) -> Finding:
        """Look whether an app is the gateway's own, or holds its secrets."""
        check, read = f"app {app} apart", self._read
        config = await self._asked(lambda api: api.config_vars(app))
        names: list[str] = []
        if not isinstance(config, Failure):
            secrets = set(filter(None, read.secrets.values()))
            names = sorted(name for name, value in config.items() if value in secrets)
        if app in read.own_apps or names:
            said = f"it is the gateway's own{', and holds ' + ', '.join(names) if names else ''}"
            fix = "put the servers into an app of their own"
            if read.allow_own_app:
                return warn(check, f"{said}; ALLOW_OWN_APP lets it", fix)
            return fail(check, said, f"{fix}, or set ALLOW_OWN_APP")
        if isinstance(config, Forbidden):
            fix = "see to it that it holds none of the gateway's secrets"
            return warn(check, "the key may not read its config vars", fix)
        if isinstance(config, Failure):
            return fail(check, str(config), config.advice)
        return ok(check, "holds no secret of the gateway's")

    async def _asked(self, request: Callable[[PlatformApi], T]) -> T | Failure:
        """Make one request in a thread; it ends within `BOUNDS`, whoever waits for it."""
        try:
            return await asyncio.to_thread(request, self._api)
        except Failure as failure:
            return failure
