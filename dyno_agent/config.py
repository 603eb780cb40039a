"""The agent's environment: read once, then removed so that no child inherits it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from dyno_agent.slots import SLOTS

if TYPE_CHECKING:
    from collections.abc import MutableMapping

PREFIX = "RENDEZVOUS_"
URL = "RENDEZVOUS_URL"
JOIN_TOKEN = "RENDEZVOUS_JOIN_TOKEN"  # noqa: S105 - the variable's name
START_DEADLINE = "RENDEZVOUS_START_DEADLINE_S"
HIDE = "RENDEZVOUS_HIDE"
"""Names of further variables that no child may see, separated by commas."""
FETCHED = "RENDEZVOUS_FETCHED"
"""The file that holds the agent, when the dyno's command has fetched it from the gateway."""
LONGEST_DEADLINE_S = 86_400
LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class ConfigError(Exception):
    """A variable is missing or wrong; the message names it and says what it should hold."""


@dataclass(frozen=True, **SLOTS)
class Config:
    """What an agent must know before it has spoken to a gateway.

    Attributes:
        url: the gateway's public base URL, http(s); the link's path is added by the dialer.
        join_token: `rj_<launch id>.<secret>`, good once.
        start_deadline_s: how long to try before the first WELCOME.
        dyno: the platform's name of this dyno.
    """

    url: str
    join_token: str = field(repr=False)
    start_deadline_s: float
    dyno: str

    @property
    def launch_id(self) -> str:
        """The public half of the join token."""
        return self.join_token.removeprefix("rj_").partition(".")[0]


def take_config(environment: MutableMapping[str, str]) -> Config:
    """Read the configuration and remove it from the environment, and with it what it hides.

    Raises:
        ConfigError: names the variable.
    """
    taken = {name: environment.pop(name) for name in list(environment) if name.startswith(PREFIX)}
    for name in taken.get(HIDE, "").split(","):
        environment.pop(name.strip(), None)
    url, token = taken.get(URL, ""), taken.get(JOIN_TOKEN, "")
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{URL} must be the gateway's base URL, such as https://gw.example.com")
    if parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise ConfigError(f"{URL} must be https unless the gateway is on this machine")
    if not token.startswith("rj_") or "." not in token:
        raise ConfigError(f"{JOIN_TOKEN} must hold the token that the gateway made for this launch")
    try:
        deadline = float(taken.get(START_DEADLINE, "120"))
    except ValueError:
        deadline = 0.0
    if not 0 < deadline <= LONGEST_DEADLINE_S:
        raise ConfigError(f"{START_DEADLINE} must be a number of seconds up to a day")
    return Config(parts.geturl().rstrip("/"), token, deadline, environment.get("DYNO", ""))
