"""Which platform this gateway runs its dynos on: all that differs between them, in one place."""

import hashlib
import hmac
import re
import shlex
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from gateway.launchers.base import Launcher
from gateway.launchers.local import LocalLauncher
from gateway.registry.discovery import Formation
from gateway.registry.servers import ServerDefinition
from gateway.rendezvous import bootstrap, hooks
from gateway.rendezvous.archive import Archive
from gateway.settings import Settings

DEFAULT_SIZE = "basic"
"""The smallest that any app of one's own may have."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """A platform, as this gateway uses it.

    Attributes:
        realm: names the deployment, in public: whose dynos are whose.
        launcher: makes dynos.
        formation: where servers are discovered; None if they are not.
        run_line: the line that an operator pastes to start a dyno by hand.
        archive: the agent as a file.
        hook_secret: signs the platform's webhooks.
        subscribe: asks for those; returns why it could not, a sentence each.
        aclose: lets go of the platform.
    """

    realm: str
    launcher: Launcher
    formation: Formation | None
    run_line: Callable[[ServerDefinition, str, Mapping[str, str]], str]
    archive: Archive
    hook_secret: str
    subscribe: Callable[[], Awaitable[Sequence[str]]]
    aclose: Callable[[], Awaitable[None]]

    def launch_of(self, command: str) -> str | None:
        """Return the launch id in a dyno's command; None if it is not of this deployment."""
        found = re.search(rf" --launch {self.realm}\.([0-9a-f]+)$", command)
        return None if found is None else found[1]


def realm_of(secret: bytes) -> str:
    """Return the public name of a deployment."""
    return hmac.digest(secret, b"rendezvous realm v1", "sha256").hex()[:12]


def local(environment: Mapping[str, str], secret: bytes, archive: Archive) -> Deployment:
    """Return this machine as the platform."""
    realm = realm_of(secret)

    def run_line(_server: ServerDefinition, launch_id: str, agent: Mapping[str, str]) -> str:
        command = f"{shlex.quote(sys.executable)} -m dyno_agent --launch {realm}.{launch_id}"
        return " ".join(
            [*(f"{name}={shlex.quote(value)}" for name, value in agent.items()), command]
        )

    async def nothing() -> Sequence[str]:
        return ()

    async def close() -> None:
        return None

    return Deployment(
        realm, LocalLauncher(environment, realm), None, run_line, archive, "", nothing, close
    )


def heroku(settings: Settings, key: str, secret: bytes, archive: Archive) -> Deployment:
    """Return Heroku as the platform, with one-off dynos of the configured apps."""
    # Here, for heroku3 and requests are a quarter of a start, and the local launcher needs neither.
    import stamina.instrumentation  # noqa: PLC0415

    from gateway.launchers.heroku.formation import HerokuFormation  # noqa: PLC0415
    from gateway.launchers.heroku.launcher import AgentCommands, HerokuLauncher  # noqa: PLC0415
    from gateway.launchers.heroku.own import OwnApp  # noqa: PLC0415
    from gateway.launchers.heroku.platform import Platform  # noqa: PLC0415
    from gateway.launchers.heroku.subscription import subscribe  # noqa: PLC0415

    realm = realm_of(secret)
    stamina.instrumentation.set_on_retry_hooks([])  # what matters is in the launcher's own log
    platform = Platform(key, str(settings.heroku_api_url).rstrip("/"))
    commands = AgentCommands(bootstrap.INSTALLED, bootstrap.command(archive.sha256))
    values = settings.secrets
    own = OwnApp(
        settings.own_apps,
        tuple(values),
        frozenset(hashlib.sha256(value.encode()).hexdigest() for value in values.values() if value),
        settings.allow_own_app,
    )
    size = settings.dyno_size or DEFAULT_SIZE
    apps = settings.heroku_apps
    launcher = HerokuLauncher(platform, apps, realm, commands, size, own)
    hook_secret = hmac.digest(secret, b"rendezvous webhook v1", "sha256").hex()
    version = hashlib.sha256(hook_secret.encode()).hexdigest()[:12]
    url = f"{settings.base_url}{hooks.PATH}?{version}"  # another secret, another subscription

    def run_line(server: ServerDefinition, launch_id: str, agent: Mapping[str, str]) -> str:
        start = commands.installed if server.agent == "installed" else commands.fetched
        environment = ";".join(f"{name}={value}" for name, value in agent.items())
        parts = ["heroku", "run:detached", "--app", server.app or apps[0]]
        parts += ["--size", server.size or size, "--env", environment, "--"]
        return shlex.join([*parts, f"{start} --launch {realm}.{launch_id}"])

    async def subscribe_all() -> Sequence[str]:
        if not settings.heroku_webhooks:
            return ()
        told = [await subscribe(platform, app, url, hook_secret) for app in apps]
        return [problem for problem in told if problem is not None]

    formation = HerokuFormation(platform, apps)
    return Deployment(
        realm, launcher, formation, run_line, archive, hook_secret, subscribe_all, platform.aclose
    )
