"""The store port: all that the gateway processes of one deployment share.

There are two: `memory` for a process that is alone, `valkey` for several. A store is an index and a
log, never the only truth: a session lives at its agent, and who holds an agent's link may say so
again after the engine has lost everything.

Every name expires: what nobody renews is gone in the end, whoever forgot it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

ALIVE_S = 6.0
"""A process that the engine has not heard of for so long is taken for dead."""


class StoreAway(Exception):
    """The engine does not answer, or not in time; nobody knows whether it did what was asked."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Who holds something that only one process may hold.

    Attributes:
        holder: id of the gateway process; empty once it was released.
        fence: grows with each change of holder; what is done under a lower one is refused.
        facts: what the next holder must know.
        alive: the engine has heard of the holder within `ALIVE_S`.
        ended: why it is over for good; empty while it is not. Nobody holds it then.
    """

    holder: str
    fence: int
    facts: bytes = field(repr=False, default=b"")
    alive: bool = False
    ended: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """What a holder says of a claim to keep it.

    Attributes:
        name: of the claim.
        fence: that the holder holds it under.
        facts: as they are now.
        ttl_s: how long it lasts if nobody says so again.
    """

    name: str
    fence: int
    facts: bytes = field(repr=False)
    ttl_s: float


@dataclass(frozen=True, slots=True)
class Taken:
    """A claim has another holder: told to every process, in order with all letters.

    Attributes:
        name: of the claim.
        fence: that it is held under from now on.
        holder: id of the process that has it.
    """

    name: str
    fence: int
    holder: str


@dataclass(frozen=True, slots=True)
class Passage:
    """What is added to a story.

    Attributes:
        story: its name.
        head: what the list of all stories shows of it from now on.
        lines: new ones, in order; none has a line break.
    """

    story: str
    head: bytes = field(repr=False)
    lines: Sequence[bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Keep:
    """How much of the stories is kept; beyond, the oldest goes.

    Attributes:
        story_bytes: of one story, its oldest lines go.
        all_bytes: of all stories, heads included; those that nothing was added to for longest go.
        stories: how many there may be.
        ttl_s: how long one is kept that nothing is added to.
    """

    story_bytes: int
    all_bytes: int
    stories: int
    ttl_s: float


@dataclass(frozen=True, slots=True)
class Told:
    """Lines of a story, in order.

    Attributes:
        first: number of the first of these lines; the first line ever told has 1.
        lines: as they were told.
        last: number of the newest line of the whole story; 0 if there is no such story.
    """

    first: int
    lines: Sequence[bytes] = field(repr=False)
    last: int


STORIES = "stories"
"""The table that has the head of each story under its name."""

Letter = Taken | bytes
"""What comes in the mail: news of a claim, or what another process has sent."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What is new in a table.

    Attributes:
        version: of the table now.
        rows: by key; None for one that was deleted.
        whole: these are all rows there are, and whoever has others must forget them.
    """

    version: int
    rows: Mapping[str, bytes | None]
    whole: bool


class Store(Protocol):
    """What the processes share. Use it as an async context manager.

    Every method that is awaited raises `StoreAway` if the engine does not answer in time (2 s).
    None of them is repeated by itself where a repeat could do harm.

    Attributes:
        gateway: id of this process; a new one at each start.
        name: `memory` or `valkey`, for the log.
        alone: no other process can share this store.
    """

    gateway: str
    name: str
    alone: bool

    async def __aenter__(self) -> Self:
        """Begin to be alive for the others."""
        ...

    async def __aexit__(self, *failure: object) -> None:
        """Be gone for the others at once. Claims stay as they are."""
        ...

    @property
    def away_s(self) -> float:
        """For how long the engine has not answered; 0 while it does."""
        ...

    @property
    def blank_since(self) -> float:
        """Since when (monotonic) the engine may know less than was told to it.

        The start of this process, or the last time that the engine came back without its memory.
        """
        ...

    # Claims

    async def find(self, name: str) -> Claim | None:
        """Return a claim; None if there is none, or none any more."""
        ...

    async def claim(self, name: str, facts: bytes, ttl_s: float, over: int = 0) -> Claim:
        """Claim what nobody holds; return the claim as it is then, ours or another's.

        It becomes ours, under the next fence and with these facts, if there is none, if it has
        ended, or if its fence is `over` and its holder was released or is not alive. A claim that
        changes holder is told to every process as `Taken`; a new one is not.
        """
        ...

    async def take(self, name: str, fence: int, facts: bytes, ttl_s: float) -> Claim:
        """Hold a claim under this fence, whoever holds it under a lower one.

        Return the claim as it is then: another's, unchanged, if its fence is as high or if it has
        ended. Success is told to every other process as `Taken`.
        """
        ...

    async def hold(self, held: Sequence[Held]) -> list[bool]:
        """Renew claims of ours, many in one go; return for each whether it is still ours.

        One that the engine has lost is entered again. One that is not ours any more (another
        holder, a higher fence, ended) stays as it is.
        """
        ...

    async def release(self, name: str, fence: int) -> bool:
        """Let whoever comes have a claim of ours; return False if it is not ours any more."""
        ...

    async def end(self, name: str, fence: int, why: str, ttl_s: float) -> bool:
        """Say that it is over, and remember so; return False if it is not ours any more."""
        ...

    # Documents

    async def get(self, name: str) -> bytes | None:
        """Return a document."""
        ...

    async def put(self, name: str, value: bytes, ttl_s: float) -> None:
        """Write a document."""
        ...

    async def put_new(self, name: str, value: bytes, ttl_s: float) -> bytes:
        """Write a document unless there is one; return what is there then."""
        ...

    async def delete(self, name: str) -> None:
        """Remove a document."""
        ...

    # Tables

    async def changes(self, table: str, since: int) -> Changes:
        """Return what a table has that it had not at version `since`; 0 is an empty one.

        A version that the table never had, as the engine has lost it, gets the whole.
        """
        ...

    async def commit(
        self, table: str, since: int, rows: Mapping[str, bytes | None], ttl_s: float
    ) -> int | None:
        """Write rows, and delete those that are None, if nobody else has since that version.

        Without rows the table only lasts longer, at the version that it has.

        Returns:
            The new version; None if the table is not at `since` any more, and nothing was done.
        """
        ...

    # Stories

    async def tell(self, passages: Sequence[Passage], keep: Keep) -> None:
        """Add lines to stories, and write their heads as rows of the table `STORIES`.

        A story that goes takes its row along. After `StoreAway` all of it may have been done.
        """
        ...

    async def told(self, story: str, after: int, most_bytes: int) -> Told:
        """Return the lines after a number, the oldest first; at least one if there is any.

        Where the first of them is not the next number, those between are kept no more.

        Args:
            story: its name.
            after: number of the last line that is known; 0 for the whole story.
            most_bytes: of all these lines, but for the first.
        """
        ...

    # Rates

    async def draw(self, name: str, per_minute: float, burst: int) -> float:
        """Draw a token from a bucket that fills evenly; return 0, or the seconds until one comes.

        Args:
            name: of the bucket; a new one is full.
            per_minute: how many tokens come.
            burst: how many it holds.
        """
        ...

    # Mail

    async def gateways(self) -> list[str]:
        """Return the ids of the processes that are alive, this one among them."""
        ...

    async def send(self, letters: Sequence[tuple[str, bytes]]) -> list[bool]:
        """Put letters into inboxes, each with the id of its addressee, in this order.

        Returns:
            For each whether there was an addressee alive to take it, with room in its inbox (32
            MiB); one that had none takes none of the rest either. After `StoreAway` any of them
            may have been delivered.
        """
        ...

    async def receive(self) -> Sequence[Letter]:
        """Wait for mail and take it out; at least one letter. For one reader.

        Letters come in the order in which the engine got them. While the engine is away this
        waits until it is back; letters may have been lost then, and are never twice here unless
        they were sent twice.
        """
        ...
