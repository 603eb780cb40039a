"""Proves that secrets do not stay in text, that other text does, and that looking stays cheap."""

import base64
import importlib
import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.ops.inertness import inert
from gateway.ops.redaction import (
    KEY_LINES,
    MOST_BYTES,
    MOST_DEEP,
    NOT_SECRET,
    REDACTED,
    SECRET_IN_JSON,
    SECRET_NAMES,
    SHAPES,
    Redactor,
    Shape,
    is_secret,
)

SRE: Any = importlib.import_module("re._parser")
KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow+IBAAK\nCAQEAsecret==\n-----END RSA PRIVATE KEY-----"
EXAMPLES = {
    "header": [
        "Authorization: Digest username=M4RK, response=M4RK",
        "set-cookie: sid=M4RK; Path=/ M4RK",
    ],
    "named value": [
        "password=M4RK",
        "DB_PASSWORD='M4RK M4RK'",
        '"client_secret" : "M4RK"',
        "x-api-key: M4RK",
    ],
    "flag": ["run --token M4RK now", "--db-password 'M4RK M4RK'"],
    "private key": [KEY.replace("secret", "M4RK"), "-----BEGIN PRIVATE KEY-----\nM4RK", f"x {KEY}"],
    "user and password of a URL": [
        "postgres://joe:M4RK@db:5432/x",
        "redis://:M4RK@h",
        "https://a:M4RK@M4RK@h",
    ],
    "user of a URL": ["https://M4RK0123456789abcdef@github.example/x"],
    "bearer token": ["got bearer M4RK0123456", "Bearer: M4RK0123456"],
    "basic authentication": ["sent Basic am9lOnB3M4RK0=="],
    "JWT, or other JSON in base64": [
        "eyJhbGciOiJIUzI1NiJ9.eyJzM4RK.s1gM4RK",
        "eyJhbGciOiJIUzI1NiJ9.M4RK",
    ],
    "Heroku": ["HRKU-M4RK0123456789abcdef", "HRKU-AAM4RK-0123456789"],
    "AWS": ["AKIAIOSFODNN7EXAMPLE", "ASIAIOSFODNN7EXAMPLE"],
    "GitHub": ["ghp_0123456789abcdef0123M4RK", "github_pat_0123456789abcdef0123M4RK"],
    "GitLab": ["glpat-0123456789abcdefM4RK"],
    "Slack": ["xoxb-0123456789-M4RK", "xapp-1-M4RK01234567"],
    "Slack hook": ["https://hooks.slack.com/services/T0/B0/M4RK"],
    "OpenAI, Anthropic": ["sk-proj-0123456789abcdefM4RK", "(sk-ant-0123456789abcdefM4RK)"],
    "Stripe": ["sk_live_01234567M4RK", "rk_test_01234567M4RK", "whsec_01234567M4RK"],
    "Google": ["AIza0123456789abcdefghijM4RK", "ya29.0123456789abcdefghijM4RK"],
    "Hugging Face": ["hf_0123456789abcdefghijM4RK"],
    "npm, PyPI": [
        "npm_0123456789abcdefghij0123456789M4RK",
        "pypi-0123456789abcdefghij0123456789M4RK",
    ],
    "SendGrid": ["SG.0123456789abcdefM4RK.0123456789abcdefM4RK"],
}
"""By shape; `M4RK` is part of what must go."""

HARMLESS = [
    "",
    "listening on http://127.0.0.1:8080/mcp",
    "git clone ssh://git@example.org/x.git",
    "npm run build --workspace @scope/pkg@1.2.3",
    "a task-oriented-approach-to-everything",
    "basic understanding of the matter",
    "SyntaxError: Unexpected token < in JSON at position 0",
    "max_tokens: 4096, total_tokens=17, progressToken: 3, progress_token=a",
    '{"usage": {"prompt_tokens": 12}}',
    "the password was wrong",
    "Traceback (most recent call last):",
    "2f1c1d2e-8a53-4f4c-9d1a-0b1c2d3e4f50",
    "-----BEGIN CERTIFICATE-----",
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_every_shape_of_a_secret_is_redacted(shape: Shape) -> None:
    for text in EXAMPLES[shape.name]:
        assert shape.pattern.search(text), "the example is none"
        shown = Redactor().text(f"before {text}")
        assert REDACTED in shown
        assert shown.startswith("before ")
        assert "M4RK" not in shown
        assert "EXAMPLE" not in shown


def test_every_shape_has_an_example() -> None:
    assert EXAMPLES.keys() == {shape.name for shape in SHAPES}


@pytest.mark.parametrize("text", HARMLESS, ids=ascii)
def test_text_without_secrets_stays_as_it_is(text: str) -> None:
    assert Redactor().text(text) == text


def test_what_follows_a_secret_stays() -> None:
    text = "password=hunter2 user=joe key: 'abc' https://joe:pw123@host/path done"
    expected = f"password={REDACTED} user=joe key: 'abc' https://{REDACTED}@host/path done"
    assert Redactor().text(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        '{"password": "hun\\"ter2", "user": "joe"}',
        '{\\"password\\": \\"hun\\\\\\"ter2\\", \\"user\\": \\"joe\\"}',
        "{'password': 'hun ter2', 'user': 'joe'}",
        "password => `hun;ter2` user: joe",
        "--password 'hun ter2' --user joe",
    ],
)
def test_a_quoted_secret_is_redacted_to_its_end_and_no_further(text: str) -> None:
    shown = Redactor().text(text)
    assert "hun" not in shown
    assert "ter2" not in shown
    assert "joe" in shown


def test_redacting_twice_changes_nothing() -> None:
    once = Redactor().text("secret_api_key=abc user=joe Authorization: Bearer abcdefgh")
    assert Redactor().text(once) == once


# JSON


def spellings(name: str) -> list[str]:
    words = name.split()
    camel = words[0] + "".join(word.title() for word in words[1:])
    pascal = "".join(word.title() for word in words)
    return [
        "_".join(words),
        "-".join(words).upper(),
        "".join(words),
        camel,
        f"my{pascal}2",
        f"{'.'.join(words)}_hash",
        name,
    ]


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_a_member_with_a_secret_name_is_redacted_however_it_is_written(name: str) -> None:
    for spelling in spellings(name):
        raw = json.dumps({"a": [{spelling: "hunter2", "b": "kept"}]}).encode()
        assert Redactor().payload(raw) == json.dumps(
            {"a": [{spelling: REDACTED, "b": "kept"}]}, separators=(",", ":")
        )


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_a_named_secret_in_text_is_redacted_however_it_is_written(name: str) -> None:
    for spelling in spellings(name):
        shown = Redactor().text(f"got {spelling}: hunter2")
        assert shown == f"got {spelling}: {REDACTED}"


@pytest.mark.parametrize("name", [*sorted(SECRET_IN_JSON), "PASS", "Auth"])
def test_short_names_are_secret_as_a_whole_only(name: str) -> None:
    assert is_secret(name)
    assert not is_secret(f"{name}or")


@pytest.mark.parametrize(
    "name", [*sorted(NOT_SECRET), "progressToken", "name", "author", "keyboard", "id"]
)
def test_other_names_are_no_secrets(name: str) -> None:
    assert not is_secret(name)


@pytest.mark.parametrize(
    "value", [17, 1.5, ["hunter2"], {"a": {"b": "hunter2"}}, "x", "hunter2"], ids=ascii
)
def test_whatever_a_secret_member_holds_is_redacted(value: object) -> None:
    raw = json.dumps({"credentials": value}).encode()
    assert Redactor().payload(raw) == f'{{"credentials":"{REDACTED}"}}'


@pytest.mark.parametrize(
    "raw", [b'{"password":null}', b'{"has_token":true}', b'{"max_tokens":17}', b'{"secret":""}']
)
def test_members_that_tell_nothing_secret_are_kept(raw: bytes) -> None:
    assert Redactor().payload(raw) == raw.decode()


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_json_in_a_string_in_json_is_redacted_by_name(levels: int) -> None:
    inner: object = {"credentials": {"deep": "hunter2"}, "user": "joe"}
    for _ in range(levels):
        inner = {"content": [{"type": "text", "text": json.dumps(inner)}]}
    shown = Redactor().payload(json.dumps(inner).encode())
    assert "hunter2" not in shown


@pytest.mark.parametrize("text", ['{"a":  1.0}', "[ ]", "{not JSON", " {} "])
def test_json_in_a_string_without_secrets_stays_as_it_is(text: str) -> None:
    raw = json.dumps({"text": text}, separators=(",", ":"))
    assert Redactor().payload(raw.encode()) == raw


def test_only_what_is_secret_goes_of_json_in_a_string() -> None:
    inner = json.dumps({"credentials": {"a": {"b": "hunter2"}}, "user": "joe"})
    shown = json.loads(Redactor().payload(json.dumps({"text": inner}).encode()))
    assert json.loads(shown["text"]) == {"credentials": REDACTED, "user": "joe"}


def test_the_last_and_the_first_of_equal_names_are_redacted() -> None:
    shown = Redactor().payload(b'{"t":"{\\"password\\":\\"hunter2\\",\\"password\\":null}"}')
    assert "hunter2" not in shown


def test_a_name_that_is_a_secret_is_redacted() -> None:
    assert "HRKU" not in Redactor().payload(b'{"HRKU-0123456789abcdef-xyz":1}')


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":1,"password":"hunter2',
        b"\xff\xfe password=hunter2",
        b'{"password":"hunter2","x":"\\ud800"}',
        b"",
    ],
)
def test_a_payload_that_is_no_json_is_redacted_as_text(raw: bytes) -> None:
    assert "hunter2" not in Redactor().payload(raw)


@pytest.mark.parametrize("levels", [MOST_DEEP + 1, 600, 100_000])
def test_json_that_is_nested_too_deep_is_not_kept(levels: int) -> None:
    raw = b"[" * levels + b'"hunter2"' + b"]" * levels
    assert len(raw) <= MOST_BYTES
    shown = Redactor().payload(raw)
    assert ("hunter2" in shown) is (levels == 100_000)  # no JSON reader takes that: it is text


def test_a_payload_over_the_limit_is_not_looked_at() -> None:
    raw = b'"' + b"x" * (MOST_BYTES - 1) + b'"'
    assert Redactor().payload(raw) == f"({MOST_BYTES + 1} bytes: too large to redact)"
    assert Redactor().text("x" * (MOST_BYTES + 1)).endswith("characters: too large to redact)")


def test_a_payload_at_the_limit_is_kept() -> None:
    raw = b'"' + b"x" * (MOST_BYTES - 2) + b'"'
    assert Redactor().payload(raw) == raw.decode()


# The environment's values

VALUE = "Zx9/pl+an:ted 'sécret' \"7\"\\"
ENCODINGS: dict[str, Callable[[str], str]] = {
    "raw": str,
    "base64": lambda v: base64.b64encode(v.encode()).decode(),
    "base64 after 1": lambda v: base64.b64encode(b"j" + v.encode() + b"!").decode(),
    "base64 after 2": lambda v: base64.b64encode(b"j:" + v.encode() + b"!!").decode(),
    "base64 after 3": lambda v: base64.b64encode(b"joe" + v.encode()).decode(),
    "base64 for URLs": lambda v: base64.urlsafe_b64encode(b"j:" + v.encode()).decode(),
    "base64 without padding": lambda v: base64.b64encode(v.encode()).decode().rstrip("="),
    "hexadecimal": lambda v: v.encode().hex(),
    "HEXADECIMAL": lambda v: v.encode().hex().upper(),
    "URL": quote,
    "URL, whole": lambda v: quote(v, safe=""),
    "URL, small": lambda v: re.sub("%..", lambda found: found[0].lower(), quote(v, safe="")),
    "form": quote_plus,
    "JSON": json.dumps,
    "JSON, not ASCII": lambda v: json.dumps(v, ensure_ascii=False),
    "JSON, slashes": lambda v: json.dumps(v).replace("/", "\\/"),
    "JSON in JSON": lambda v: json.dumps(json.dumps(v)),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_value_of_the_environment_is_redacted_in_every_encoding(encoding: str) -> None:
    encoded = ENCODINGS[encoding](VALUE)
    assert Redactor().text(f"x {encoded} y") == f"x {encoded} y", "found without being known"
    shown = Redactor([VALUE]).text(f"x {encoded} y")
    quotes = re.match(r"[\\\"]*", encoded)
    assert quotes is not None
    assert shown.replace('"', "").replace("\\", "") == f"x {REDACTED} y"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_value_of_the_environment_is_redacted_in_payloads(encoding: str) -> None:
    encoded = ENCODINGS[encoding](VALUE)
    raw = json.dumps({"result": {"text": f"x {encoded} y", encoded: 1}}).encode()
    shown = json.loads(Redactor([VALUE]).payload(raw))["result"]
    assert encoded.strip('"') not in json.dumps(shown)
    assert shown["text"].replace('"', "").replace("\\", "") == f"x {REDACTED} y"


@given(st.binary(max_size=9), st.binary(max_size=9), st.text("abcXYZ0189+/", min_size=8))
def test_no_part_of_base64_around_a_value_is_left(before: bytes, after: bytes, value: str) -> None:
    encoded = base64.b64encode(before + value.encode() + after).decode()
    assert Redactor([value]).text(f"<{encoded}>") == f"<{REDACTED}>"


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_both_alphabets_of_base64_are_known(encode: Callable[[bytes], bytes]) -> None:
    value = "~~~???>>>~~~"
    encoded = encode(value.encode()).decode()
    assert not encoded.isalnum()
    assert Redactor([value]).text(f"<{encoded}>") == f"<{REDACTED}>"


def test_a_number_that_is_a_value_of_the_environment_is_redacted() -> None:
    assert "12345678" not in Redactor(["12345678"]).payload(b'{"pin":12345678}')


def test_short_values_of_the_environment_are_no_secrets() -> None:
    text = f"debug 1 1234567 {b'debug'.hex()}{' ' * 20}"
    assert Redactor(["1", "debug", "1234567", " " * 20, ""]).text(text) == text


def test_each_line_of_a_value_is_redacted_alone() -> None:
    redactor = Redactor([KEY])
    for line in KEY.splitlines():
        assert redactor.text(f"> {line}") == f"> {REDACTED}"


def test_a_longer_value_is_redacted_before_one_that_is_part_of_it() -> None:
    assert Redactor(["abcdefgh", "abcdefgh-ijklmnop"]).text("abcdefgh-ijklmnop") == REDACTED


# The server's own expressions


def test_own_expressions_are_redacted_in_texts_and_in_whole_payloads() -> None:
    redactor = Redactor(own=[r"\d{3}-\d{2}", r'"plate":"[^"]*"', r"^whole$"])
    assert redactor.text("ssn 123-45") == f"ssn {REDACTED}"
    assert redactor.payload(b'{"plate": "B-XY 1"}') == f"{{{REDACTED}}}"
    assert redactor.payload(b'{"a": ["whole"]}') == f'{{"a":["{REDACTED}"]}}'


def test_an_expression_that_is_none_is_refused() -> None:
    with pytest.raises(re.error):
        Redactor(own=["("])


# Lines


def test_a_private_key_that_comes_line_by_line_is_redacted_to_its_end() -> None:
    redactor, within, shown = Redactor(), 0, list[str]()
    for text in ["before", *KEY.splitlines(), "after"]:
        line, within = redactor.line(text, within)
        shown.append(line)
    assert shown == ["before", REDACTED, REDACTED, REDACTED, REDACTED, "after"]


def test_a_private_key_without_end_hides_only_so_many_lines() -> None:
    redactor = Redactor()
    _, within = redactor.line("-----BEGIN PRIVATE KEY-----", 0)
    hidden = 0
    while within:
        line, within = redactor.line("x", within)
        hidden += line == REDACTED
    assert hidden == KEY_LINES


def test_a_whole_private_key_in_one_line_hides_no_other() -> None:
    assert Redactor().line(KEY.replace("\n", "\\n"), 0) == (REDACTED, 0)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2Jb\n", "a\\x1b[2Jb\\n"),
        ("\u202egnp", "\\u202egnp"),
        ("\ud800", "\\ud800"),
        ("é 漢字 🙂", "é 漢字 🙂"),
    ],
)
def test_what_is_shown_is_inert(text: str, shown: str) -> None:
    assert inert(text) == Redactor().shown(text) == Redactor().line(text, 0)[0] == shown
    assert Redactor().shown(text + "x" * 200) == shown + "x" * 200


def test_a_control_character_does_not_hide_a_secret() -> None:
    assert "hunter2" not in Redactor().shown("\x1b[1mpassword=hunter2")


# Cost

IN_PROPORTION = {"user and password of a URL", "user of a URL"}
"""Their repeats are followed by what must be there; but none goes over the `/` of the next `://`,
so all attempts together look at each character twice at most."""


def costs(parsed: Any, follows: int, forgiven: bool) -> list[str]:
    """Return what may cost more than time in proportion to the text.

    Args:
        parsed: an expression, or part of one.
        follows: the least width of what must come after it.
        forgiven: what must come after an unbounded repeat does no harm.
    """
    found = list[str]()
    items = list(parsed)
    for index, (kind, of) in enumerate(items):
        rest = sum(
            SRE.SubPattern(parsed.state, [item]).getwidth()[0] for item in items[index + 1 :]
        )
        needed = rest + follows
        name = str(kind)
        if name in {"MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"}:
            _, most, body = of
            if most > MOST_BOUNDED and name != "POSSESSIVE_REPEAT":
                found.append("an unbounded repeat gives back what it has taken")
            if most > MOST_BOUNDED and needed and not forgiven:
                found.append("an unbounded repeat is in vain if something else does not follow")
            found += costs(body, needed, forgiven)
        elif name == "SUBPATTERN":
            found += costs(of[3], needed, forgiven)
        elif name == "BRANCH":
            for branch in of[1]:
                found += costs(branch, needed, forgiven)
        elif name in {"ASSERT", "ASSERT_NOT"} and of[1].getwidth()[1] > MOST_BOUNDED:
            found.append("looks far ahead")
    return found


MOST_BOUNDED = 64


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_no_expression_takes_more_time_than_in_proportion_to_the_text(shape: Shape) -> None:
    pattern = shape.pattern.pattern
    forgiven = shape.name in IN_PROPORTION
    if forgiven:
        assert pattern.startswith("(?<=://)")
        assert all(body.startswith(r"\s/@") for body in re.findall(r"\[\^(.*?)\]", pattern))
    assert costs(SRE.parse(pattern, shape.pattern.flags), 0, forgiven) == []


@pytest.mark.parametrize(
    "pattern", ["a.*b", "(?:a+)+", "x[a-z]*+y", "(?:a|b)*", "(?=a.*)", "(a*+)b", "a*?"]
)
def test_expressions_that_can_take_long_are_noticed(pattern: str) -> None:
    assert costs(SRE.parse(pattern), 0, forgiven=False)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_a_shape_is_looked_for_only_where_its_anchor_is(shape: Shape) -> None:
    for example in EXAMPLES[shape.name]:
        assert any(anchor in example.lower() for anchor in shape.anchors)
    assert all(anchor == anchor.lower() for anchor in shape.anchors)
