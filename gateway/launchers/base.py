"""The launcher port: all that the gateway asks of a platform that runs dynos."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


class LaunchError(Exception):
    """No dyno could be had; the message is for the client and holds no secret."""


@dataclass(frozen=True, slots=True)
class LaunchOrder:
    """One attempt to get a dyno.

    Attributes:
        launch_id: our public name of the attempt; visible in the dyno's command.
        server: the server's name.
        environment: what the agent reads, join token included; never on the command line.
        size: dyno size, or None for the launcher's default.
        lifetime_s: the platform should end the dyno by itself after so long.
    """

    launch_id: str
    server: str
    environment: Mapping[str, str] = field(repr=False)
    size: str | None
    lifetime_s: float


@dataclass(frozen=True, slots=True)
class Dyno:
    """A dyno as its launcher sees it.

    Attributes:
        dyno_id: the launcher's name.
        launch_id: which launch it belongs to.
        exit_status: None while it runs.
        last_words: the end of its own log, for the operator, once it has exited.
    """

    dyno_id: str
    launch_id: str
    exit_status: int | None = None
    last_words: str = ""


class Launcher(Protocol):
    """Makes dynos, lists them, stops them."""

    name: str
    boot_timeout_s: float
    """Default time from the client's request to the child's first answer."""
    grace_s: float
    """How long an agent may be out of reach before its session ends."""
    poll_s: float
    """How often the reconciler may ask for the list."""

    async def launch(self, order: LaunchOrder) -> Dyno:
        """Start one dyno that runs the agent. Called once per launch id, never repeated.

        Raises:
            LaunchError: there is certainly no dyno.
        """
        ...

    async def stop(self, dyno_id: str) -> None:
        """Make sure the dyno is gone. Called at the end of every session; unknown ids are fine."""
        ...

    async def list(self) -> Sequence[Dyno]:
        """Return the dynos of this launcher that run, and those that exited and were not stopped.

        Called by the reconciler.
        """
        ...

    async def aclose(self) -> None:
        """Stop whatever is left. Called once, when the gateway goes."""
        ...
