"""The launcher port: all that the gateway asks of a platform that runs dynos."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

AgentSource = Literal["installed", "fetched"]
"""Where a dyno has the agent from: its app's own packages, or the gateway, at the dyno's start."""


class LaunchError(Exception):
    """There is certainly no dyno; the message is for the client and holds no secret.

    Attributes:
        retry_after_s: when another launch may succeed; None if nobody knows, or never.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class AtCapacity(LaunchError):
    """The platform runs as many dynos as it may; another launch succeeds once one has ended."""


class LaunchUnsettled(Exception):
    """Nobody knows whether there is a dyno. If there is, its agent dials; never launch again."""


class PlatformError(Exception):
    """The platform did not do or tell what it was asked; the message says why."""


@dataclass(frozen=True, slots=True)
class LaunchOrder:
    """One attempt to get a dyno.

    Attributes:
        launch_id: our public name of the attempt; visible in the dyno's command.
        server: the server's name.
        environment: what the agent reads, join token included; never on the command line.
        size: dyno size, or None for the launcher's default.
        lifetime_s: the platform should end the dyno by itself after so long.
        app: whose slug and config vars the dyno has; None where there are no apps.
        agent: where the dyno has the agent from.
    """

    launch_id: str
    server: str
    environment: Mapping[str, str] = field(repr=False)
    size: str | None
    lifetime_s: float
    app: str | None = None
    agent: AgentSource = "fetched"


@dataclass(frozen=True, slots=True)
class Dyno:
    """A dyno as its launcher sees it.

    Attributes:
        dyno_id: the launcher's name.
        launch_id: which launch it belongs to.
        exit_status: None while it runs; minus the number of the signal that ended it; -1 when it
            ended and nobody can know how, as its parent was another process.
        last_words: the end of its own log, for the operator, once it has exited.
        usd_per_hour: what it costs while it runs.
        created: when the platform made it, in whole seconds since 1970; None if that is not known.
        app: whose it is; None where there are no apps.
    """

    dyno_id: str
    launch_id: str
    exit_status: int | None = None
    last_words: str = ""
    usd_per_hour: float = 0.0
    created: float | None = None
    app: str | None = None


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
            LaunchError: there is certainly no dyno; `AtCapacity` if one that ends makes room.
            LaunchUnsettled: there may be one.
        """
        ...

    def usd_per_hour(self, size: str | None, app: str | None) -> float:
        """Return what a dyno of this size costs; None is the launcher's default size."""
        ...

    async def stop(self, dyno_id: str) -> float | None:
        """Make sure the dyno is gone, whichever process of this deployment launched it.

        Called at the end of every session. Unknown ids are fine, and so are two calls at once. A
        dyno that could not be ended stays in the list.

        Returns:
            How many seconds ago it was last seen to run; None if it was gone already.

        Raises:
            PlatformError: it may still run; call again.
        """
        ...

    async def list(self) -> Sequence[Dyno]:
        """Return the dynos of this deployment that run, and those that exited and were not stopped.

        Holds all that can be found, also those that an earlier process of the same deployment
        launched; what another process made may appear some seconds late. A platform may forget a
        dyno as soon as it has ended. Called by the reconciler, every `poll_s`.

        Raises:
            PlatformError: the platform does not answer.
        """
        ...

    async def aclose(self) -> None:
        """Release what the launcher itself holds; dynos that still run go on.

        Called once, when the gateway goes, after it has stopped each dyno that must go with it.
        """
        ...
