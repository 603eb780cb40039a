"""Settings and the servers file: everything that is wrong with them, not the first thing only."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self

from pydantic import ValidationError, model_validator

from gateway import app
from gateway import settings as configuration
from gateway.cli.doctor.findings import Finding, Level, fail, ok, warn
from gateway.registry.servers import BadServersFile, Registry
from gateway.registry.servers import load as load_servers
from gateway.settings import LOOPBACK, MIN_SECRET, Settings

SHORT_KEY: Final = 16
"""Characters of a client's key below which it could be guessed."""

DRAW: Final = "draw one with `openssl rand -hex 32`"

WHERE: Final = "docs/configuration.md says what it may hold"

_NAME = re.compile(r"[A-Z][A-Z0-9_]+")


class _Lenient(Settings):
    """The settings one by one; whether they go together is looked at here."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        return self


def settings(env_file: Path | None) -> tuple[Settings, list[Finding]]:
    """Return the settings, with the defaults of those that are wrong, and what was found.

    Args:
        env_file: below the environment; None for none.
    """
    read, wrong = _readable(env_file), _refused(env_file)
    named = {name[0] for line in wrong if (name := _NAME.match(line))}
    found = [fail("settings", line, WHERE) for line in wrong]
    if not wrong:
        source = "the environment" if env_file is None else f"the environment and {env_file}"
        found.append(ok("settings", f"{source}; launcher {read.launcher_name}"))
    secrets = (*_clients(read), *_admin(read), *_secret(read))
    said_once = (
        each for each in secrets if each.level is not Level.FAIL or each.check not in named
    )
    return read, [*found, *said_once]


def _refused(env_file: Path | None) -> list[str]:
    """Return why a gateway would not start with these settings, a line each."""
    try:
        configuration.load(env_file)
    except configuration.BadSettings as error:
        return str(error).splitlines()
    return []


def _readable(env_file: Path | None) -> Settings:
    defaults: dict[str, Any] = {"_env_file": env_file}
    try:
        return _Lenient(**defaults)
    except ValidationError as error:
        for problem in error.errors():
            name = str(problem["loc"][0])
            defaults[name] = Settings.model_fields[name].get_default(call_default_factory=True)
    return _Lenient(**defaults)


def _clients(read: Settings) -> Iterator[Finding]:
    try:
        keys = read.keys()
    except ValueError as error:
        yield fail("API_KEY", str(error).removeprefix("API_KEY "), f"one key, or several; {WHERE}")
        return
    short = sorted(name for key, name in keys.items() if len(key) < SHORT_KEY)
    if not keys and not read.allow_anonymous:
        yield fail("API_KEY", "is not set: nobody could come in", DRAW)
    elif not keys and read.address not in LOOPBACK:
        yield fail("API_KEY", "is not set, and ALLOW_ANONYMOUS is for a loopback address", DRAW)
    elif not keys:
        yield warn("API_KEY", "is not set: whoever reaches the port is a client", DRAW)
    elif short:
        said = f"fewer than {SHORT_KEY} characters: {', '.join(short)}"
        yield warn("API_KEY", said, f"a key that short can be guessed: {DRAW}")
    else:
        yield ok("API_KEY", f"{len(keys)} of {', '.join(sorted(set(keys.values())))}")


def _admin(read: Settings) -> Iterator[Finding]:
    admin = read.admin_key.get_secret_value()
    if not admin:
        said = "is not set: /admin/v1, /console and /metrics are closed"
        yield warn("ADMIN_KEY", said, f"{DRAW}, if operators are to see anything")
    elif len(admin) < MIN_SECRET:
        yield fail("ADMIN_KEY", f"has fewer than {MIN_SECRET} characters", DRAW)
    elif admin in read.api_key.get_secret_value():
        yield fail("ADMIN_KEY", "is one of API_KEY: clients are no operators", DRAW)
    else:
        yield ok("ADMIN_KEY", f"{len(admin)} characters")


def _secret(read: Settings) -> Iterator[Finding]:
    secret = None if read.gateway_secret is None else read.gateway_secret.get_secret_value()
    if secret is None and (read.launcher_name != "local" or read.redis_url is not None):
        said = "is not set, and dynos outlive a process, or processes share REDIS_URL"
        yield fail("GATEWAY_SECRET", said, DRAW)
    elif secret is None:
        yield warn("GATEWAY_SECRET", "is not set: no session survives a restart", DRAW)
    elif len(secret) < MIN_SECRET:
        yield fail("GATEWAY_SECRET", f"has fewer than {MIN_SECRET} characters", DRAW)
    else:
        yield ok("GATEWAY_SECRET", f"{len(secret)} characters")


def servers(read: Settings, environment: Mapping[str, str]) -> tuple[Registry, list[Finding]]:
    """Return the servers, none if the file is wrong, and what was found.

    Args:
        read: the settings.
        environment: that the file's variables are taken from.
    """
    path = read.servers_file
    if path is None:
        said = "none: they are discovered in HEROKU_APPS"
        return Registry([]), [ok("servers file", said)]
    try:
        registry = load_servers(
            path,
            environment,
            separator=read.toolkit_separator,
            discovers=bool(read.heroku_apps),
        )
        app.check(registry, read)
    except BadServersFile as error:
        return Registry([]), [fail("servers file", str(error), "docs/servers.md has every key")]
    return registry, [ok("servers file", f"{path}: {', '.join(registry.names)}")]
