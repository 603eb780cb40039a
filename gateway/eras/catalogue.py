"""What a server release answers to opening and list requests: learned once, told to many. Pure.

A chapter holds the answers of one era of one server release, from a throw-away run. Clients get
them without a dyno; the child that serves them later is held to them (`Chapter.diverges`). Results
stay as the child wrote them: what is told from here is what the child would have said.

It takes results of messages that `jsonrpc.peek` has passed, and trusts them no further.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec
from msgspec import Raw

from gateway.eras.versions import HANDSHAKE
from gateway.jsonrpc import ShortArray, result_response

Era = Literal["legacy", "modern"]

OPENINGS: Final[Mapping[Era, str]] = {"legacy": "initialize", "modern": "server/discover"}
"""The request that tells what a server is, by era."""

LISTS: Final = {
    "tools/list": "tools",
    "prompts/list": "prompts",
    "resources/list": "resources",
    "resources/templates/list": "resourceTemplates",
}
"""Where the items stand in the result of each list method. What precedes its first slash is the
capability that declares it."""

MAX_PAGES = 100
"""Pages of one list. A child that pages for ever stops here."""

MAX_LIST_BYTES = 16 * 1024 * 1024
"""All pages of one list together: what one message may have."""

MAX_TOOLS = 1024
"""Tools that are found by name, each held beside the list. No model is offered as many."""

_STRICTEST: Final = {"ttlMs": Raw(b"0"), "cacheScope": Raw(b'"private"')}
"""How long and for whom to keep a list whose pages disagree: allowed for any list (2026-07-28)."""

_HINTS: Final = frozenset({*_STRICTEST, "_meta"})
"""Keys of a result that may change while what it says stays the same."""

_KINDS: Final = ("tools", "prompts", "resources")

_INTRODUCTION: Final = ("protocolVersion", "capabilities", "serverInfo", "instructions")
"""Keys of an `initialize` result that a client builds on."""


class Unlearnable(Exception):
    """A child's answer is not what its method answers; without it there is no chapter."""


class TooMuch(Unlearnable):
    """More pages, bytes or tools than a chapter holds."""


class _Capability(msgspec.Struct):
    listChanged: Any = False  # noqa: N815 - the specification's spelling


class _Capabilities(msgspec.Struct):
    tools: _Capability | None = None
    prompts: _Capability | None = None
    resources: _Capability | None = None


class _Opening(msgspec.Struct):
    protocolVersion: str = ""  # noqa: N815
    capabilities: _Capabilities = msgspec.field(default_factory=_Capabilities)


class _Tools(msgspec.Struct):
    tools: Raw = Raw(b"[]")


class _Named(msgspec.Struct):
    name: str


_OPENING = msgspec.json.Decoder(_Opening)
_OBJECT = msgspec.json.Decoder(dict[str, Raw])
_MEANING = msgspec.json.Decoder(dict[str, Any])
_CURSOR = msgspec.json.Decoder(str | None)
_TOOLS = msgspec.json.Decoder(_Tools)
_TOOL_ARRAY = ShortArray(MAX_TOOLS)
_NAMED = msgspec.json.Decoder(_Named)

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises for another shape, numbers beyond a double, or nesting without end."""


def _read_opening(opening: Raw) -> _Opening:
    """Return the few keys of an opening that matter here; empty if any is of another shape."""
    try:
        return _OPENING.decode(opening)
    except _UNREADABLE:
        return _Opening()


def _declared(opening: Raw) -> dict[str, _Capability]:
    """Return the capabilities with lists that an opening declares, by kind."""
    capabilities = msgspec.structs.asdict(_read_opening(opening).capabilities)
    return {kind: found for kind, found in capabilities.items() if found is not None}


def wanted(opening: Raw) -> list[str]:
    """Return the list methods that the capabilities of an opening declare, in the order to ask.

    Args:
        opening: result of `initialize` or `server/discover`; one of another shape declares nothing.
    """
    declared = _declared(opening)
    return [method for method in LISTS if method.partition("/")[0] in declared]


class Pages:
    """The pages of one list, as they come.

    Args:
        method: one of `LISTS`.
    """

    def __init__(self, method: str) -> None:
        self._key = LISTS[method]
        self._frame: dict[str, Raw] = {}
        self._items: list[bytes] = []
        self._count = self._bytes = 0

    def add(self, result: Raw) -> str | None:
        """Take the next page; return the cursor to ask for the one after it, None after the last.

        An empty cursor is one: only its absence ends a list.

        Raises:
            TooMuch: over `MAX_PAGES` or `MAX_LIST_BYTES`.
            Unlearnable: not a page of this list.
        """
        self._count += 1
        self._bytes += len(result)
        if self._count > MAX_PAGES or self._bytes > MAX_LIST_BYTES:
            raise TooMuch(f"a list of over {MAX_PAGES} pages or {MAX_LIST_BYTES} bytes")
        try:
            page = _OBJECT.decode(result)
            cursor: str | None = _CURSOR.decode(page.pop("nextCursor", Raw(b"null")))
        except _UNREADABLE as error:
            raise Unlearnable(f"not a page of {self._key}: {error}") from error
        # Not taken apart: 16 MiB may hold millions of items, each of which would be an object.
        array = bytes(page.get(self._key, b""))
        if not array.startswith(b"["):
            raise Unlearnable(f"a page without an array of {self._key}")
        if items := array[1:-1].strip():
            self._items.append(items)
        if self._count == 1:
            self._frame = page
        for hint, strictest in _STRICTEST.items():
            if page.get(hint) != self._frame.get(hint):
                self._frame[hint] = strictest
        return cursor

    def merged(self) -> Raw:
        """Return one result with the items of all pages, their bytes untouched, and no cursor.

        Everything else is the first page's; hints for caches that not all pages share become the
        strictest ones.
        """
        items = Raw(b"[" + b",".join(self._items) + b"]")
        return Raw(msgspec.json.encode({**self._frame, self._key: items}))


@dataclass(frozen=True, slots=True)
class Chapter:
    """What one era of one server release answers.

    Attributes:
        era: of the child that was asked.
        opening: its result of `initialize` or `server/discover`.
        lists: complete result by list method, see `Pages.merged`; only what was asked for.
        learned: the caller's monotonic clock, seconds.

    Raises:
        TooMuch: over `MAX_TOOLS` tools.
    """

    era: Era
    opening: Raw
    lists: Mapping[str, Raw]
    learned: float
    _tools: Mapping[str, Raw] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_tools", _by_name(self.lists.get("tools/list", Raw(b"{}"))))

    @property
    def tools(self) -> list[dict[str, str]]:
        """Name and description of each tool, for operators."""
        shown = [_described(name, raw) for name, raw in self._tools.items()]
        return [{"name": tool.name, "description": tool.description} for tool in shown]

    @property
    def list_changed_kinds(self) -> frozenset[str]:
        """Which of tools, prompts and resources announce that their list has changed."""
        declared = _declared(self.opening)
        return frozenset(kind for kind, found in declared.items() if found.listChanged is True)

    def negotiated(self, requested: str) -> str:
        """Return the revision that `initialize` answers to a client that requests this one.

        It is the client's own if that is a handshake revision not newer than the child's, else the
        child's.
        """
        own = _read_opening(self.opening).protocolVersion
        known = requested in HANDSHAKE and own in HANDSHAKE
        return requested if known and requested <= own else own

    def answer(self, method: str, request_id: str | int, *, requested: str = "") -> bytes | None:
        """Return the response to a request, on one line; None if only a child can tell.

        A list is whole, so a request with a cursor is not for a chapter. Hints for caches are the
        child's; where it gave none, none are given, which clients read as 0.

        Args:
            method: of the request.
            request_id: of the request.
            requested: `protocolVersion` that an `initialize` names.
        """
        if method == OPENINGS[self.era]:
            result: Raw | None = self._opening_for(requested)
        else:
            result = self.lists.get(method)
        return None if result is None else result_response(request_id, result)

    def _opening_for(self, requested: str) -> Raw:
        told = self.negotiated(requested)
        if self.era == "modern" or told == self.negotiated(""):
            return self.opening
        revision = Raw(msgspec.json.encode(told))
        opening = {**_OBJECT.decode(self.opening), "protocolVersion": revision}
        return Raw(msgspec.json.encode(opening))

    def diverges(self, method: str, result: Raw, *, told: str = "") -> bool:
        """True when a child's own answer means something else than what clients were told.

        What is in doubt, since it cannot be read, diverges; what no client was told does not.

        Args:
            method: that the child has answered.
            result: its answer; of a list with pages, all of them merged.
            told: the `protocolVersion` that its client was told; the chapter's own if empty.
        """
        said = self.opening if method == OPENINGS[self.era] else self.lists.get(method)
        if said is None or (said == result and told in {"", self.negotiated("")}):
            return False
        try:
            ours, theirs = _MEANING.decode(said), _MEANING.decode(result)
            if method == "initialize":
                ours["protocolVersion"] = told or ours.get("protocolVersion")
                return any(ours.get(key) != theirs.get(key) for key in _INTRODUCTION)
            return _without_hints(ours) != _without_hints(theirs)
        except _UNREADABLE:
            return True

    def changed(self, later: "Chapter") -> frozenset[str]:
        """Return the kinds, of tools, prompts and resources, whose list a later chapter changes."""
        if self.diverges(OPENINGS[self.era], later.opening):
            return frozenset(_KINDS)
        nothing = Raw(b"{}")
        changed = (m for m in LISTS if self.diverges(m, later.lists.get(m, nothing)))
        return frozenset(method.partition("/")[0] for method in changed)

    def tool(self, name: str) -> dict[str, Any] | None:
        """Return the tool of this name, decoded; None if there is none or it cannot be read."""
        found = self._tools.get(name)
        if found is None:
            return None
        try:
            return _MEANING.decode(found)
        except _UNREADABLE:
            return None


def _by_name(result: Raw) -> dict[str, Raw]:
    """Return the tools of a list by name: the last of a name counts, those without one do not."""
    try:
        tools = _TOOL_ARRAY.members(_TOOLS.decode(result).tools)
    except _UNREADABLE:
        return {}
    if len(tools) > MAX_TOOLS:
        raise TooMuch(f"over {MAX_TOOLS} tools")
    found = {}
    for tool in tools:
        try:
            found[_NAMED.decode(tool).name] = tool
        except _UNREADABLE:
            continue
    return found


class _Described(msgspec.Struct):
    name: str
    description: str = ""


def _described(name: str, raw: Raw) -> _Described:
    try:
        return msgspec.json.decode(raw, type=_Described)
    except _UNREADABLE:
        return _Described(name)


def _without_hints(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in _HINTS}
