"""How stories are cut, counted and read, in both stores the same, and kept in the memory store.

Lines go as they came, in chunks: a passage is one, or several if it is long. What is over a bound
goes in whole chunks or whole stories. Bytes are those of an engine's memory, roughly: each chunk
and each story costs something beside what was told. `engine.lua` counts by the same numbers.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from gateway.store.base import Keep, Passage, Told

CHUNK_BYTES = 16 * 1024
"""A passage that is longer is cut: so much at most is read, or let go, beyond what must be."""

CHUNK_COST = 32
"""What a chunk costs beside its lines and the breaks between them."""

STORY_COST = 1024
"""What a story costs beside its name, its head and its chunks, its deletion included.

A Valkey takes some 600 bytes for its keys; what is left is for rows that grow and shrink.
"""

Chunk = tuple[int, bytes]
"""The number of its last line; its lines, with line breaks between them."""


def cut(lines: Sequence[bytes], story_bytes: int) -> list[Chunk]:
    """Return the chunks of a passage, with numbers that begin at 1.

    The oldest, which would not stay for an instant, are left out if there are many.
    """
    all_chunks, some, size = list[Chunk](), list[bytes](), 0
    for number, line in enumerate(lines):
        if some and size + len(line) > CHUNK_BYTES:
            all_chunks.append((number, b"\n".join(some)))
            some, size = [], 0
        some.append(line)
        size += len(line) + 1
    if some:
        all_chunks.append((len(lines), b"\n".join(some)))
    kept = deque[Chunk]()
    while all_chunks and story_bytes >= 0:  # the last of them makes what is older go, and goes
        story_bytes -= cost(all_chunks[-1])
        kept.appendleft(all_chunks.pop())
    return list(kept)


def cost(chunk: Chunk) -> int:
    """Return what a chunk costs, in bytes."""
    return CHUNK_COST + len(chunk[1])


def read(chunks: Iterable[Chunk], last: int, after: int, most_bytes: int) -> Told:
    """Return what is told of a story; see `Store.told`.

    Args:
        chunks: from the one on that has the next line, or earlier ones too.
        last: number of the newest line.
        after: number of the last line that is known.
        most_bytes: of all lines together, each with its line break, if they are more than one.
    """
    first, found = after + 1, list[bytes]()
    for end, text in chunks:
        if end <= after:
            continue
        lines = text.split(b"\n")
        for number, line in enumerate(lines, end - len(lines) + 1):
            if number <= after:
                continue
            most_bytes -= len(line) + 1
            if found and most_bytes < 0:
                return Told(first, found, last)
            first = first if found else number
            found.append(line)
    return Told(first, found, last)


@dataclass(slots=True)
class Story:
    """A story in memory.

    Attributes:
        until: when it is gone if nothing is added to it.
        last: number of its newest line.
        chunks_cost: in bytes, of all its chunks.
        cost: in bytes, of the whole of it.
    """

    until: float = 0.0
    last: int = 0
    chunks_cost: int = 0
    cost: int = 0
    chunks: deque[Chunk] = field(default_factory=deque)


class Stories:
    """The stories of a memory store.

    Args:
        clock: in seconds, never back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._stories: dict[str, Story] = {}  # what was told least recently comes first
        self._cost = 0

    def tell(self, passages: Sequence[Passage], keep: Keep) -> dict[str, bytes | None]:
        """Add passages; return the new heads, with None for each story that went."""
        now = self._clock()
        rows: dict[str, bytes | None] = {}
        for passage in passages:
            self._add(passage, keep.story_bytes, now, now + keep.ttl_s)
            rows[passage.story] = passage.head
        for name, story in list(self._stories.items()):
            within = self._cost <= keep.all_bytes and len(self._stories) <= keep.stories
            if within and story.until > now:
                break
            self._let_go(name)
            rows[name] = None
        return rows

    def _let_go(self, name: str) -> None:
        self._cost -= self._stories.pop(name).cost

    def _add(self, passage: Passage, story_bytes: int, now: float, until: float) -> None:
        story = self._stories.get(passage.story)
        if story is not None:
            self._let_go(passage.story)
        if story is None or story.until <= now:
            story = Story()
        for number, text in cut(passage.lines, story_bytes):
            story.chunks.append((story.last + number, text))
            story.chunks_cost += cost(story.chunks[-1])
        while story.chunks_cost > story_bytes and len(story.chunks) > 1:
            story.chunks_cost -= cost(story.chunks.popleft())
        story.last += len(passage.lines)
        story.until = until
        named = len(passage.story.encode()) + len(passage.head)
        story.cost = STORY_COST + named + story.chunks_cost
        self._cost += story.cost
        self._stories[passage.story] = story

    def told(self, name: str, after: int, most_bytes: int) -> Told:
        """Return lines of a story; see `Store.told`."""
        story = self._stories.get(name)
        if story is None or story.until <= self._clock():
            return Told(after + 1, [], 0)
        return read(story.chunks, story.last, after, most_bytes)
