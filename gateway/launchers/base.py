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
        exit_status: None while it runs; minus the number of the signal that ended it; -1 when it
            ended and nobody can know how, as its parent was another process.
        last_words: the end of its own log, for the operator, once it has exited.
    """

    dyno_id: str
    launch_id: str
    exit_status: int | None = None
    last_words: str = ""


class Launcher(Protocol):
    """Makes dynos, lists them, stops them.

    Dynos outlive the gateway process that launched them: a launcher finds those of its deployment,
    whichever process made them.
    """

    name: str
    boot_timeout_s: float
    """Default time from the client's request to the child's first answer."""
    poll_s: float
    """How often the reconciler may ask for the list."""

    async def launch(self, order: LaunchOrder) -> Dyno:
        """Start one dyno that runs the agent. Called once per launch id, never repeated.

        Raises:
            LaunchError: there is certainly no dyno.
        """
        ...

    async def stop(self, dyno_id: str) -> None:
        """Make sure the dyno is gone, whichever process of this deployment launched it.

        Called at the end of every session. Unknown ids are fine, and so are two calls at once. A
        dyno that could not be ended stays in the list.
        """
        ...

    async def list(self) -> Sequence[Dyno]:
        """Return the dynos of this deployment that run, and those that exited and were not stopped.

        Holds all that can be found, also those that an earlier process of the same deployment
        launched; what another process made may appear some seconds late. Called by the reconciler,
        every `poll_s`.
        """
        ...

    async def aclose(self) -> None:
        """Release what the launcher itself holds; dynos that still run go on.

        Called once, when the gateway goes, after it has stopped each dyno that must go with it.
        """
        ...
