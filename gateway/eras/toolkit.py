"""Several servers as one: what a toolkit answers itself, and which member the rest is for. Pure.

What a toolkit answers without a child is a chapter like any server's, composed from those of its
members; so whoever serves chapters serves toolkits. Names of tools and prompts get their server's
in front, and lose it on the way to the member. It takes chapters as hostile as their children are:
what cannot be read is left out, what is too much is cut, and nothing raises.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec
from msgspec import UNSET, Raw, UnsetType

from gateway.eras.catalogue import LISTS, MAX_LIST_BYTES, MAX_TOOLS, Chapter, Era
from gateway.eras.legacy import Opening
from gateway.eras.modern import SERVER_KEY
from gateway.eras.versions import HANDSHAKE, MODERN
from gateway.errors import UnknownItem, UnknownMethod, UnknownResource
from gateway.jsonrpc import Envelope, ShortArray, one_line

SEPARATORS: Final = ("/", "__", ".")
"""What may stand between the names of a server and of its tool. All are understood; a server's name
has no slash, so with that no name can be mistaken for another."""

MAX_ITEMS = MAX_TOOLS
"""Items of one list, over all members, and of one member."""

MAX_INSTRUCTIONS = 8 * 1024
"""Characters of all members' instructions together."""

MAX_URI = 8 * 1024
"""Longest URI that is held against templates, characters."""

MAX_EXPRESSIONS = 32
"""Expressions of one template; one with more stands for itself only."""

NEAR = 3
"""Names that an error suggests."""

LIKE = 0.3
"""Part of their groups of three letters that near names have in common."""

SHOWN = 64
"""Characters of a name that an error repeats, and by which near ones are found."""

_KINDS: Final = ("tools", "prompts", "resources")

_VERSION: Final = "1"
"""Of what a toolkit calls itself."""

_HINTS: Final = {"ttlMs": 0, "cacheScope": "private"}

_OBJECT = msgspec.json.Decoder(dict[str, Raw])
_TEXT = msgspec.json.Decoder(str)
_ARRAY = ShortArray(MAX_ITEMS)

_UNREADABLE = (msgspec.DecodeError, UnicodeError, RecursionError)
"""What decoding raises for another shape, nesting without end, or half a character."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes.

    Attributes:
        member: name of the server.
        raw: the request as that server understands it.
        name: what `Mcp-Name` has to say of it; None for a method without one.
    """

    member: str
    raw: bytes
    name: str | None


class Composed:
    """A toolkit as its members are now. Make one with `compose`.

    Attributes:
        chapter: what it answers itself; all four lists are there.
    """

    def __init__(
        self, chapter: Chapter, tools: "_Names", prompts: "_Names", places: "_Places"
    ) -> None:
        self.chapter = chapter
        self._tools = tools
        self._prompts = prompts
        self._places = places

    def route(self, envelope: Envelope, raw: bytes) -> Route:
        """Return the member that a request is for, and what to send it.

        Only the name of the tool or prompt is changed; every other value keeps its bytes.

        Args:
            envelope: of the request.
            raw: all of it.

        Raises:
            UnknownItem, UnknownResource: no member has what it names, or several have.
            UnknownMethod: no method that is a member's.
        """
        method = envelope.method_name
        params = _members(envelope.params)
        match method:
            case "tools/call" | "prompts/get":
                names = self._tools if method == "tools/call" else self._prompts
                member, own = names.resolve(_text(params, "name", method))
                return Route(member, _with(raw, {**params, "name": own}), own)
            case "resources/read":
                uri = _text(params, "uri", method)
                return Route(self._places.locate(uri), raw, uri)
            case "completion/complete":
                return self._complete(params, raw)
            case _:
                raise UnknownMethod(f"a toolkit has no method {method[:SHOWN]!r}")

    def _complete(self, params: Mapping[str, Raw], raw: bytes) -> Route:
        ref = _members(params.get("ref", UNSET))
        match _lenient(_TEXT, ref.get("type")):
            case "ref/prompt":
                member, own = self._prompts.resolve(_text(ref, "name", "a ref/prompt"))
                return Route(member, _with(raw, {**params, "ref": {**ref, "name": own}}), None)
            case "ref/resource":
                return Route(self._places.locate(_text(ref, "uri", "a ref/resource")), raw, None)
            case _:
                raise UnknownItem("params.ref must be a ref/prompt or a ref/resource")


def compose(
    era: Era, members: Sequence[tuple[str, Chapter | None]], separator: str, name: str
) -> Composed:
    """Return a toolkit made of its members.

    Args:
        era: of all the chapters.
        members: name and chapter, in order; None for one that nobody knows yet. As long as there
            is such a one it may have anything, so tools, prompts and resources are declared.
        separator: one of `SEPARATORS`.
        name: of the toolkit.
    """
    tools = _Names("tool", "tools/list", members, separator)
    prompts = _Names("prompt", "prompts/list", members, separator)
    places = _Places(members, legacy=era == "legacy")
    lists = {
        "tools/list": tools.items,
        "prompts/list": prompts.items,
        "resources/list": places.resources,
        "resources/templates/list": places.templates,
    }
    head: dict[str, Any] = {} if era == "legacy" else {"resultType": "complete", **_HINTS}
    results = {
        method: Raw(msgspec.json.encode({**head, LISTS[method]: _joined(items)}))
        for method, items in lists.items()
    }
    learned = max((chapter.learned for _, chapter in members if chapter is not None), default=0.0)
    return Composed(
        Chapter(era, _opening(era, members, name), results, learned), tools, prompts, places
    )


def abridged(opening: Opening) -> Iterator[Opening]:
    """Yield shorter and shorter forms of an opening, for where there is little room."""
    said = _lenient(_OBJECT, opening.params) or {}
    info = _lenient(_OBJECT, said.get("clientInfo")) or {}
    texts = {key: _lenient(_TEXT, info.get(key)) or "" for key in ("name", "version")}
    short = {
        "protocolVersion": opening.told or HANDSHAKE[0],
        "capabilities": {},
        "clientInfo": {key: text[:SHOWN] for key, text in texts.items()},
    }
    if "capabilities" in said:
        yield Opening(_encoded({**short, "capabilities": said["capabilities"]}), opening.told)
    yield Opening(_encoded(short), opening.told)


def _encoded(value: Any) -> str:
    return msgspec.json.encode(value).decode()


# What it says of itself


def _opening(era: Era, members: Sequence[tuple[str, Chapter | None]], name: str) -> Raw:
    told = [
        (member, None if chapter is None else _lenient(_OBJECT, chapter.opening) or {})
        for member, chapter in members
    ]
    server = {"name": f"dyno-gateway toolkit {name}", "version": _VERSION}
    common: dict[str, Any] = {"capabilities": _capabilities([said for _, said in told])}
    if instructions := _instructions([(member, said) for member, said in told if said]):
        common["instructions"] = instructions
    if era == "legacy":
        opening = {"protocolVersion": HANDSHAKE[0], **common, "serverInfo": server}
    else:
        versions = {"supportedVersions": [MODERN]}
        meta = {"_meta": {SERVER_KEY: server}}
        opening = {"resultType": "complete", **versions, **common, **_HINTS, **meta}
    return Raw(msgspec.json.encode(opening))


def _capabilities(openings: Sequence[Mapping[str, Raw] | None]) -> dict[str, Any]:
    declared: set[str] = set()
    for said in openings:
        if said is None:
            declared.update(_KINDS)
            continue
        found = _lenient(_OBJECT, said.get("capabilities")) or {}
        declared.update(key for key, value in found.items() if bytes(value) != b"null")
    capabilities: dict[str, Any] = {
        kind: {"listChanged": True} for kind in _KINDS if kind in declared
    }
    return capabilities | ({"completions": {}} if "completions" in declared else {})


def _instructions(openings: Sequence[tuple[str, Mapping[str, Raw]]]) -> str:
    """Return the members' instructions, each under its name; what is too long is cut."""
    parts = []
    for member, said in openings:
        text = (_lenient(_TEXT, said.get("instructions")) or "").strip()
        if text:
            parts.append(f"# {member}\n\n{text[:MAX_INSTRUCTIONS]}")
    whole = "\n\n".join(parts)
    return whole if len(whole) <= MAX_INSTRUCTIONS else whole[: MAX_INSTRUCTIONS - 1] + "…"


# Tools and prompts


class _Names:
    """The tools, or the prompts, of all members by the names that clients know them by.

    Args:
        kind: for errors.
        method: of the list.
        members: see `compose`.
        separator: of the names that are told.

    Attributes:
        items: as they are listed.
    """

    def __init__(
        self,
        kind: str,
        method: str,
        members: Sequence[tuple[str, Chapter | None]],
        separator: str,
    ) -> None:
        self._kind = kind
        self._separators = (separator, *(each for each in SEPARATORS if each != separator))
        self._listed: dict[str, tuple[str, str]] = {}
        items = {
            member: None if chapter is None else _named(chapter, method)
            for member, chapter in members
        }
        self.items = list(self._compose(items))
        self._own = {
            member: None if named is None else frozenset(named) for member, named in items.items()
        }
        self._longest_first = sorted(items, key=len, reverse=True)

    def _compose(self, items: Mapping[str, Mapping[str, dict[str, Raw]] | None]) -> Iterator[bytes]:
        size = 0
        for member, named in items.items():
            for own, item in (named or {}).items():
                name = self._free(member, own)
                if name is None:
                    continue
                raw = msgspec.json.encode({**item, "name": name})
                size += len(raw) + 1
                if len(self._listed) == MAX_ITEMS or size > MAX_LIST_BYTES:
                    return
                self._listed[name] = member, own
                yield raw

    def _free(self, member: str, own: str) -> str | None:
        """Return a name that nothing else has; None if there is none."""
        names = (f"{member}{separator}{own}" for separator in self._separators)
        return next((name for name in names if name not in self._listed), None)

    def resolve(self, name: str) -> tuple[str, str]:
        """Return the member that a client means, and its own name for it.

        A member that nobody knows yet may have anything of its name.

        Raises:
            UnknownItem: nobody has it, or several have.
        """
        if (listed := self._listed.get(name)) is not None:
            return listed
        apart = list(self._apart(name))
        for member, own in apart:
            if own in (self._own[member] or ()):
                return member, own
        holders = [member for member, items in self._own.items() if name in (items or ())]
        if len(holders) == 1:
            return holders[0], name
        for member, own in apart:
            if self._own[member] is None:
                return member, own
        raise self._unknown(name, holders)

    def _apart(self, name: str) -> Iterator[tuple[str, str]]:
        for member in self._longest_first:
            for separator in self._separators:
                if name.startswith(member + separator):
                    yield member, name[len(member + separator) :]

    def _unknown(self, name: str, holders: Sequence[str]) -> UnknownItem:
        shown, separator = name[:SHOWN], self._separators[0]
        if holders:
            ways = ", ".join(f"{member}{separator}{shown}" for member in holders[:NEAR])
            return UnknownItem(f"several servers have a {self._kind} {shown!r}: name one of {ways}")
        near = _near(shown, self._listed)
        hint = f"near: {', '.join(near)}" if near else f"names are SERVER{separator}NAME"
        unknown = [member for member, items in self._own.items() if items is None]
        later = f"; nothing is known yet of {', '.join(unknown[:NEAR])}" if unknown else ""
        return UnknownItem(f"no {self._kind} {shown!r} in this toolkit; {hint}{later}")


def _near(name: str, names: Iterable[str]) -> list[str]:
    """Return the names that are most like one; `difflib` takes 0.2 s for a thousand."""
    wanted = _trigrams(name)
    found = []
    for each in names:
        if len(each) <= 2 * SHOWN:
            theirs = _trigrams(each)
            found.append((len(wanted & theirs) / (len(wanted | theirs) or 1), each))
    return [each for like, each in sorted(found, reverse=True)[:NEAR] if like >= LIKE]


def _trigrams(name: str) -> set[str]:
    return {name[at : at + 3].lower() for at in range(len(name) - 2)}


def _named(chapter: Chapter, method: str) -> dict[str, dict[str, Raw]]:
    """Return the items of a list by name: the last of a name counts."""
    found = {}
    for raw in _items(chapter, method):
        item = _lenient(_OBJECT, raw) or {}
        name = _lenient(_TEXT, item.get("name"))
        if name is not None:
            found[name] = item
    return found


# Resources


class _Places:
    """The resources of all members.

    Attributes:
        resources: as they are listed; of equal URIs the first member's counts.
        templates: the same.
    """

    def __init__(self, members: Sequence[tuple[str, Chapter | None]], *, legacy: bool) -> None:
        self._legacy = legacy
        self._by_uri: dict[str, str] = {}
        self._by_template: dict[str, str] = {}
        self.resources = list(self._merge(members, "resources/list", "uri", self._by_uri))
        self.templates = list(
            self._merge(members, "resources/templates/list", "uriTemplate", self._by_template)
        )
        self._holders = [
            member
            for member, chapter in members
            if chapter is not None and "resources/list" in chapter.lists
        ]
        self._literals = [
            (_literals(template), member)
            for template, member in self._by_template.items()
            if template.count("{") <= MAX_EXPRESSIONS
        ]

    @staticmethod
    def _merge(
        members: Sequence[tuple[str, Chapter | None]],
        method: str,
        key: str,
        found: dict[str, str],
    ) -> Iterator[bytes]:
        size = 0
        for member, chapter in members:
            for raw in () if chapter is None else _items(chapter, method):
                uri = _lenient(_TEXT, (_lenient(_OBJECT, raw) or {}).get(key))
                if uri is None or uri in found:
                    continue
                size += len(raw) + 1
                if len(found) == MAX_ITEMS or size > MAX_LIST_BYTES:
                    return
                found[uri] = member
                yield bytes(raw)

    def locate(self, uri: str) -> str:
        """Return the member that has a resource; a template stands for itself, too.

        Raises:
            UnknownItem, UnknownResource: nobody can tell.
        """
        member = self._by_uri.get(uri) or self._by_template.get(uri) or self._fitting(uri)
        if member is not None:
            return member
        if len(self._holders) == 1:
            return self._holders[0]
        kin = self._kin(uri.partition(":")[0])
        if len(kin) == 1:
            return kin.pop()
        why = "no server of this toolkit lists this URI or has a template for it"
        if self._holders:
            why += f"; those with resources are {', '.join(self._holders[:SHOWN])}"
        raise UnknownResource(why) if self._legacy else UnknownItem(why)

    def _fitting(self, uri: str) -> str | None:
        """Return the member whose template fits; of several the one that says most itself."""
        if len(uri) > MAX_URI:
            return None
        fitting = [
            (sum(map(len, literals)), -at, member)
            for at, (literals, member) in enumerate(self._literals)
            if _fits(uri, literals)
        ]
        return max(fitting)[2] if fitting else None

    def _kin(self, scheme: str) -> set[str]:
        return {
            member
            for known in (self._by_uri, self._by_template)
            for uri, member in known.items()
            if uri.partition(":")[0] == scheme
        }


def _literals(template: str) -> tuple[str, ...]:
    """Return what a URI template (RFC 6570) says itself, around its expressions."""
    first, *rest = template.split("{")
    return (first, *(part.partition("}")[2] for part in rest))


def _fits(uri: str, literals: Sequence[str]) -> bool:
    """True when a URI has all of this in order; what is between is the server's to judge."""
    first, *rest = literals
    if not rest or not uri.startswith(first):
        return uri == first
    at = len(first)
    for literal in rest[:-1]:
        found = uri.find(literal, at)
        if found < 0:
            return False
        at = found + len(literal)
    return uri.endswith(rest[-1]) and len(uri) - len(rest[-1]) >= at


# Reading what children wrote


def _items(chapter: Chapter, method: str) -> list[Raw]:
    """Return the members of a list, as they were written."""
    result = _lenient(_OBJECT, chapter.lists.get(method)) or {}
    try:
        return _ARRAY.members(result.get(LISTS[method], Raw(b"[]")))[:MAX_ITEMS]
    except _UNREADABLE:
        return []


def _joined(items: Sequence[bytes]) -> Raw:
    return Raw(b"[" + b",".join(items) + b"]")


def _lenient(decoder: msgspec.json.Decoder[T], raw: Raw | str | None) -> T | None:
    """Return what is written there; None if it is of another shape, or no text at all."""
    if raw is None:
        return None
    try:
        if isinstance(raw, Raw):
            bytes(raw).decode()  # msgspec lets invalid UTF-8 pass inside Raw
        return decoder.decode(raw)
    except _UNREADABLE:
        return None


# Reading what clients wrote


def _members(raw: Raw | UnsetType) -> dict[str, Raw]:
    """Return the members of an object; none of anything else."""
    return {} if raw is UNSET else _lenient(_OBJECT, raw) or {}


def _text(params: Mapping[str, Raw], key: str, where: str) -> str:
    found = _lenient(_TEXT, params.get(key))
    if found is None:
        raise UnknownItem(f"{where} needs a {key}, as a string")
    return found


def _with(raw: bytes, params: Mapping[str, Any]) -> bytes:
    """Return a message with other params, on one line."""
    message = _lenient(_OBJECT, Raw(raw)) or {}
    return one_line(msgspec.json.encode({**message, "params": params}))
