r"""What is not kept of text from outside: secrets, and what steers a terminal. Pure.

Secrets are known in four ways: by the name that they go by (`SECRET_NAMES`), by their shape
(`SHAPES`), as a value of the server's environment in one of the usual encodings, and by the
server's own expressions (`redact`). What is taken for one becomes `[redacted]`; too much is
redacted rather than too little.

Work is bounded: text over `MOST_BYTES` is not looked at, and every expression here takes time in
proportion to its text, whatever that is. For the operator's own, the operator answers.
"""

import base64
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import quote, quote_plus

import msgspec

from gateway.ops.inertness import inert

REDACTED: Final = "[redacted]"
"""Stands in a secret's place."""

MOST_BYTES: Final = 256 * 1024
"""Payloads that are longer are not looked at, and nothing of them is kept."""

SECRET_NAMES: Final = (
    "password",
    "passwd",
    "passphrase",
    "passcode",
    "pwd",
    "secret",
    "token",
    "api key",
    "access key",
    "account key",
    "auth key",
    "encryption key",
    "master key",
    "private key",
    "session key",
    "signing key",
    "session id",
    "authorization",
    "cookie",
    "credential",
    "signature",
    "jwt",
)
"""What has one of these in its name is secret, in any case, the words apart in any way.

In JSON all of the value is, whatever it is; in other text what follows the name and `:` or `=`.
"""

SECRET_IN_JSON: Final = frozenset({"auth", "pass", "sig", "sid"})
"""Secret as whole names of JSON members; in other text they mean too much else."""

NOT_SECRET: Final = frozenset({"progresstoken"})
"""Names of no secret, small and without what is between the words.

Neither are names that end in `tokens` with a number: those are counted, not shown to anybody.
"""

LEAST_VALUE: Final = 8
"""Characters of an environment's value; shorter ones would be found everywhere."""

MOST_DEEP: Final = 64
"""JSON that is nested deeper is not looked at, and redacted."""

MOST_NESTED: Final = 3
"""How often JSON in a string in JSON is taken apart; deeper it is text."""

KEY_LINES: Final = 200
"""Lines of a private key that comes line by line."""

_SHORT = 128
"""Characters of a text whose redacted form is remembered: methods and tools come again."""

_REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class Shape:
    """How a kind of secret looks in text.

    Attributes:
        name: of the kind.
        anchors: one of these is in every text that has one; small letters, matched in any case.
        pattern: finds it.
        instead: what takes its place; may name groups.
    """

    name: str
    anchors: tuple[str, ...]
    pattern: re.Pattern[str]
    instead: str = REDACTED


def _shape(name: str, anchors: str, pattern: str, instead: str = REDACTED) -> Shape:
    return Shape(name, tuple(anchors.split()), re.compile(pattern), instead)


# Repeats without an upper bound are possessive, and what follows them may be missing or cannot be
# in what they repeat: no start of a match is tried again, and none goes over another's ground.
_WORD = "|".join(
    name.replace(" ", "[ _.-]?").replace(
        "token",
        # counts, and what MCP calls a token
        r"(?<!progress)(?<!progress[_-])token(?!s[\"'\\]{0,9}\s{0,8}[:=]\s{0,8}\d{1,12}\b)",
    )
    for name in SECRET_NAMES
)
_QUOTED = r"(?P<quote>\\{0,8}[\"'`])(?:(?!(?<!\\)(?P=quote))[\s\S])*+"
_STRUCTURE = r"(?!\[redacted\])[\[{(][^\r\n]*+"
_IS = r"(?:\\{0,8}[\"'`])?\]?\s{0,8}(?:=>|[:=])\s{0,8}"
_SCHEME = r"(?:(?:Bearer|Basic|Digest|Negotiate|Token)\s{1,4})?"
_BARE = _SCHEME + r"[^\s\"'&;<>]++"
_HEADERS = r"(?P<name>(?:authorization|cookie)" + _IS + ")"
_NAMED = rf"(?P<name>(?:{_WORD})[\w.-]{{0,32}}+{_IS})"
_FLAG = rf"(?P<name>(?<![\w-])--(?=[\w-]{{0,32}}?(?:{_WORD}))[\w-]{{1,64}}+[ \t]{{1,4}})"
_ANCHORS = " ".join(dict.fromkeys(name.split()[-1] for name in SECRET_NAMES))

SHAPES: Final = (
    _shape(
        "header",
        "authorization cookie",
        rf"(?i){_HEADERS}(?:{_QUOTED}|[^\r\n]++)",
        r"\g<name>\g<quote>[redacted]",
    ),
    _shape(
        "named value",
        _ANCHORS,
        rf"(?i){_NAMED}(?:{_QUOTED}|{_STRUCTURE}|{_BARE})",
        r"\g<name>\g<quote>[redacted]",
    ),
    _shape(
        "flag",
        "--",
        rf"(?i){_FLAG}(?:{_QUOTED}|{_BARE})",
        r"\g<name>\g<quote>[redacted]",
    ),
    _shape(
        "private key",
        "-----begin",
        r"-----BEGIN [A-Z0-9 ]{0,24}PRIVATE KEY"
        r"(?:[^-]|-(?!----END))*+(?:-----END[A-Z0-9 ]{0,40}-----)?",
    ),
    _shape(
        "user and password of a URL",
        "://",
        r"(?<=://)[^\s/@:\"']{0,256}+:(?:[^\s/@\"']*+@)++",
        REDACTED + "@",
    ),
    _shape("user of a URL", "://", r"(?<=://)[^\s/@:\"']{16,}+@", REDACTED + "@"),
    _shape("bearer token", "bearer", r"(?i:bearer)[ \t:]{1,4}[\w.~+/=-]{8,}+"),
    _shape(
        "basic authentication",
        "basic",
        r"(?i:basic)[ \t]{1,4}(?=[a-z]{0,32}[A-Z0-9+/=])[\w+/=-]{8,}+",
    ),
    _shape("JWT, or other JSON in base64", "eyj", r"eyJ[\w-]{16,}+(?:\.[\w-]*+){0,4}+"),
    _shape("Heroku", "hrku-", r"(?i:HRKU)-[\w-]{16,}+"),
    _shape("AWS", "akia asia", r"A(?:KI|SI)A[A-Z0-9]{16,}+"),
    _shape("GitHub", "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_", r"(?:gh[pousr]|github_pat)_\w{20,}+"),
    _shape("GitLab", "glpat-", r"glpat-[\w-]{16,}+"),
    _shape("Slack", "xox xapp-", r"(?:xox[a-z]|xapp)-[\w-]{8,}+"),
    _shape("Slack hook", "hooks.slack", r"hooks\.slack\.com/[\w/-]{16,}+"),
    _shape("OpenAI, Anthropic", "sk-", r"(?<![A-Za-z0-9])sk-[\w-]{16,}+"),
    _shape("Stripe", "_live_ _test_ whsec_", r"(?:[prs]k_(?:live|test)|whsec)_\w{8,}+"),
    _shape("Google", "aiza ya29.", r"(?:AIza|ya29\.)[\w-]{20,}+"),
    _shape("Hugging Face", "hf_", r"hf_[A-Za-z0-9]{20,}+"),
    _shape("npm, PyPI", "npm_ pypi-", r"(?:npm_[A-Za-z0-9]{30,}+|pypi-[\w-]{30,}+)"),
    _shape("SendGrid", "sg.", r"SG\.[\w-]{16,}+(?:\.[\w-]*+)?"),
)
"""Shapes that secrets have, whatever they are called."""

_ANCHORED: Final = tuple((anchor, shape) for shape in SHAPES for anchor in shape.anchors)
_KEY_BEGINS: Final = re.compile(r"-----BEGIN [A-Z0-9 ]{0,24}PRIVATE KEY")
_KEY_ENDS: Final = "-----END"
_BETWEEN_WORDS: Final = re.compile(r"[^a-z0-9]")
_NAMES: Final = tuple(name.replace(" ", "") for name in SECRET_NAMES)
_BASE64: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/_-=")


def is_secret(name: str) -> bool:
    """Whether a JSON member of this name is not to be kept."""
    small = _BETWEEN_WORDS.sub("", name.lower())
    if small in NOT_SECRET:
        return False
    return small in SECRET_IN_JSON or any(word in small for word in _NAMES)


@lru_cache(maxsize=4096)
def _is_secret(name: str) -> bool:
    return is_secret(name)


def plain_forms(value: str) -> Iterator[str]:
    """Yield how a value looks in text: as it is, in a URL, in JSON, in JSON in JSON."""
    yield value
    for encoded in (quote(value), quote(value, safe=""), quote_plus(value)):
        yield encoded
        yield re.sub("%[0-9A-F]{2}", lambda escape: escape[0].lower(), encoded)
    for ascii_only in (True, False):
        once = json.dumps(value, ensure_ascii=ascii_only)[1:-1]
        yield once
        yield once.replace("/", "\\/")
        yield json.dumps(once)[1:-1]


def dense_forms(value: str) -> Iterator[str]:
    """Yield what is in every base64 or hexadecimal text that has this value in it.

    Base64 has three forms of it, for the three places of a group that it can begin at. Its ends
    depend on what is around it and are left out, so these are to be widened to all that is base64.
    """
    raw = value.encode(errors="surrogatepass")
    for skipped in range(3):
        whole = (len(raw) - skipped) // 3 * 3
        core = raw[skipped : skipped + whole]
        yield base64.b64encode(core).decode()
        yield base64.urlsafe_b64encode(core).decode()
    yield raw.hex()
    yield raw.hex().upper()


def _needles(forms: Callable[[str], Iterable[str]], values: Iterable[str]) -> list[str]:
    """Return different forms of these values, the longest first: one may be part of another."""
    found = {form for value in values for form in forms(value) if len(form) >= LEAST_VALUE}
    return sorted(found, key=lambda form: (-len(form), form))


def _widened(text: str, core: str) -> str:
    """Redact what is base64 around each place where a text has this."""
    parts, done = list[str](), 0
    while (start := text.find(core, done)) >= 0:
        end = start + len(core)
        while start > done and text[start - 1] in _BASE64:
            start -= 1
        while end < len(text) and text[end] in _BASE64:
            end += 1
        parts += [text[done:start], REDACTED]
        done = end
    return "".join([*parts, text[done:]])


class Redactor:
    """Redacts what one server's children and clients say.

    Args:
        values: of the server's environment; short ones are no secrets.
        own: expressions of what else is not to be kept.

    Raises:
        re.error: from the constructor, if one of them is none.
    """

    def __init__(self, values: Iterable[str] = (), own: Sequence[str] = ()) -> None:
        lines = {line for value in values for line in (value, *value.splitlines())}
        known = [line for line in lines if len(line.strip()) >= LEAST_VALUE]
        self._plain = _needles(plain_forms, known)
        self._dense = _needles(dense_forms, known)
        self._own = [re.compile(expression) for expression in own]
        self._remembered = lru_cache(_REMEMBERED)(self._shown)

    def shown(self, text: str) -> str:
        """Return text as it may be kept and shown: redacted and inert."""
        return self._remembered(text) if len(text) <= _SHORT else self._shown(text)

    def _shown(self, text: str) -> str:
        return inert(self.text(text))

    def text(self, text: str) -> str:
        """Return text without secrets."""
        if len(text) > MOST_BYTES:
            return too_large(len(text), "characters")
        text = self._without_values(text)
        small = text.lower()
        for anchor, shape in _ANCHORED:
            if anchor in small:
                text = shape.pattern.sub(shape.instead, text)
        return self._without_own(text)

    def line(self, text: str, within: int) -> tuple[str, int]:
        """Return one of several lines as it may be shown, as they come: keys have many lines.

        Args:
            text: the line.
            within: how many more lines of a key may come; 0 at first, then what this returned.
        """
        if within:
            return REDACTED, 0 if _KEY_ENDS in text else within - 1
        begins = "-----BEGIN" in text and _KEY_BEGINS.search(text) and _KEY_ENDS not in text
        return self.shown(text), KEY_LINES if begins else 0

    def payload(self, raw: bytes) -> str:
        """Return a message as it may be shown: as JSON if it is some, as text otherwise."""
        if len(raw) > MOST_BYTES:
            return too_large(len(raw), "bytes")
        try:
            walked = self._walked(msgspec.json.decode(raw), MOST_DEEP, MOST_NESTED)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return inert(self.text(raw.decode(errors="replace")))
        text = msgspec.json.encode(walked).decode()
        return inert(self._without_own(self._without_values(text)))

    def _without_values(self, text: str) -> str:
        for form in self._plain:
            if form in text:
                text = text.replace(form, REDACTED)
        for core in self._dense:
            if core in text:
                text = _widened(text, core)
        return text

    def _without_own(self, text: str) -> str:
        for expression in self._own:
            text = expression.sub(REDACTED, text)
        return text

    def _walked(self, value: object, deep: int, nested: int) -> object:
        if isinstance(value, str):
            return self._string(value, deep, nested)
        if not isinstance(value, dict | list):
            return value
        if deep == 0:
            return REDACTED
        if isinstance(value, list):
            return [self._walked(each, deep - 1, nested) for each in value]
        return {
            self.shown(name) if len(name) > LEAST_VALUE else inert(name): (
                REDACTED if _hides(name, each) else self._walked(each, deep - 1, nested)
            )
            for name, each in value.items()
        }

    def _string(self, text: str, deep: int, nested: int) -> str:
        if nested and text.lstrip()[:1] in {"{", "["}:
            try:
                found = msgspec.json.decode(text)
            except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
                return self.text(text)
            walked = self._walked(found, deep, nested - 1)
            if walked != found:
                text = msgspec.json.encode(walked).decode()
        return self.text(text)


def _hides(name: str, value: object) -> bool:
    if value is None or isinstance(value, bool) or value == "":
        return False
    if isinstance(value, int | float) and name.lower().endswith("tokens"):
        return False
    return _is_secret(name) if len(name) <= _SHORT else is_secret(name)


def too_large(size: int, unit: str) -> str:
    """Say in a text's place that it was not looked at."""
    return f"({size} {unit}: too large to redact)"
