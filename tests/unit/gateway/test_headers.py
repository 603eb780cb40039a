"""Proves that headers which repeat the body must repeat it truly (T31, T32).

The Python SDK's server side is the oracle wherever the specification leaves no choice.
"""

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcp.shared import inbound
from msgspec import Raw
from starlette.datastructures import Headers as SdkHeaders

from gateway.eras.headers import (
    MAX_DEPTH,
    MAX_MIRRORS,
    MAX_POSITIONS,
    MAX_SHOWN,
    NAMED,
    Mirrors,
    check_routing,
    decode,
    revision_of,
)
from gateway.errors import BadParams, HeaderMismatch

NOW = "2026-07-28"
GOOD = [("MCP-Protocol-Version", NOW), ("Mcp-Method", "tools/call"), ("Mcp-Name", "add")]
SECRET = "s3cret" * 30

Lines = list[tuple[str, str]]


def without(name: str) -> Lines:
    return [line for line in GOOD if line[0] != name]


def replaced(name: str, value: str) -> Lines:
    return [*without(name), (name, value)]


def refusal(headers: Lines, method: str = "tools/call", name: str | None = "add") -> HeaderMismatch:
    with pytest.raises(HeaderMismatch) as caught:
        check_routing(headers, NOW, method, name)
    return caught.value


# --- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "meaning"),
    [
        ("plain", "plain"),
        ("", ""),
        ("two words", "two words"),
        ("a\tb", "a\tb"),
        (" \t padded \t", "padded"),
        ("=?base64?SGVsbG8=?=", "Hello"),
        ("=?base64??=", ""),
        ("=?base64?5LiW55WM?=", "世界"),
        ("=?base64?IHBhZGRlZCA=?=", " padded "),
        ("  =?base64?SGVsbG8=?= ", "Hello"),
        ("SGVsbG8=", "SGVsbG8="),
        ("=?base64?SGVsbG8=", "=?base64?SGVsbG8="),
        ("=?base64?=", "=?base64?="),
        ("=?BASE64?SGVsbG8=?=", "=?BASE64?SGVsbG8=?="),
        ("x=?base64?SGVsbG8=?=", "x=?base64?SGVsbG8=?="),
        ("=?base64?SGVsbG8=?=x", "=?base64?SGVsbG8=?=x"),
    ],
)
def test_value_means_what_its_form_says(value: str, meaning: str) -> None:
    assert decode(value) == meaning


@pytest.mark.parametrize(
    "value",
    [
        "=?base64?SGVsbG8?=",
        "=?base64?SGVs!!!bG8=?=",
        "=?base64?SGVsbG9=?=",
        "=?base64?SGVs bG8=?=",
        "=?base64?/w==?=",
        "=?base64?é?=",
        "=?base64?7aCA?=",
        "café",
        "\udcff",
        "a\x00b",
        "a\x7fb",
        "a\nb",
    ],
)
def test_malformed_value_means_nothing(value: str) -> None:
    assert decode(value) is None


@given(st.text())
def test_every_text_survives_the_encoding_of_the_sdk(text: str) -> None:
    assert decode(inbound.encode_header_value(text)) == text


@given(st.text(alphabet="aQ+/=", max_size=9))
def test_sentinel_is_read_as_the_sdk_reads_it(payload: str) -> None:
    value = f"=?base64?{payload}?="
    assert decode(value) == inbound.decode_header_value(value)


@given(st.binary(max_size=6))
def test_canonical_base64_is_read_as_the_sdk_reads_it(payload: bytes) -> None:
    value = f"=?base64?{base64.b64encode(payload).decode()}?="
    assert decode(value) == inbound.decode_header_value(value)


# --- routing headers ----------------------------------------------------------------------------


def test_headers_that_repeat_the_body_pass() -> None:
    check_routing(GOOD, NOW, "tools/call", "add")


def test_header_names_are_compared_without_case() -> None:
    check_routing([(name.upper(), value) for name, value in GOOD], NOW, "tools/call", "add")


def test_blanks_around_values_are_no_part_of_them() -> None:
    check_routing([(name, f" \t{value}  ") for name, value in GOOD], NOW, "tools/call", "add")


def test_headers_may_come_as_a_generator() -> None:
    check_routing((line for line in GOOD), NOW, "tools/call", "add")


@pytest.mark.parametrize("name", [name for name, _ in GOOD])
def test_missing_header_is_refused_by_name(name: str) -> None:
    assert refusal(without(name)).data == {"header": name}


@pytest.mark.parametrize(("name", "value"), GOOD)
def test_doubled_header_is_refused_even_if_both_are_true(name: str, value: str) -> None:
    assert refusal([*GOOD, (name.lower(), value)]).data == {"header": name}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MCP-Protocol-Version", "2025-11-25"),
        ("Mcp-Method", "tools/list"),
        ("Mcp-Method", "TOOLS/CALL"),
        ("Mcp-Method", "=?base64?dG9vbHMvY2FsbA==?="),
        ("Mcp-Name", "subtract"),
        ("Mcp-Name", "ADD"),
        ("Mcp-Name", "=?base64?YWR?="),
    ],
)
def test_header_that_says_other_than_the_body_is_refused(name: str, value: str) -> None:
    assert refusal(replaced(name, value)).data == {"header": name}


def test_encoded_name_is_compared_decoded() -> None:
    check_routing(replaced("Mcp-Name", "=?base64?5LiW55WM?="), NOW, "tools/call", "世界")


@pytest.mark.parametrize("method", sorted(NAMED))
def test_every_named_method_needs_its_name(method: str) -> None:
    headers = [*without("Mcp-Name"), ("Mcp-Method", method)]
    headers.remove(("Mcp-Method", "tools/call"))
    assert refusal(headers, method).data == {"header": "Mcp-Name"}


def test_empty_name_needs_its_header_too() -> None:
    assert refusal(without("Mcp-Name"), name="").data == {"header": "Mcp-Name"}


def test_name_that_the_body_does_not_carry_is_refused() -> None:
    assert refusal(GOOD, name=None).data == {"header": "Mcp-Name"}


def test_name_missing_from_both_is_left_to_the_child() -> None:
    check_routing(without("Mcp-Name"), NOW, "tools/call", None)


def test_name_of_a_method_without_one_is_ignored() -> None:
    check_routing(replaced("Mcp-Method", "tools/list"), NOW, "tools/list", None)


def test_doubled_name_is_refused_for_every_method() -> None:
    headers = [*replaced("Mcp-Method", "tools/list"), ("mcp-name", "other")]
    assert refusal(headers, "tools/list", None).data == {"header": "Mcp-Name"}


@pytest.mark.parametrize("name", [name for name, _ in GOOD])
def test_error_repeats_little_of_a_hostile_value(name: str) -> None:
    assert SECRET[: MAX_SHOWN + 1] not in refusal(replaced(name, SECRET)).message


def test_error_never_repeats_a_name() -> None:
    assert "s3cret" not in refusal(replaced("Mcp-Name", "s3cret")).message


@pytest.mark.parametrize(
    ("headers", "revision"),
    [
        ([("mcp-protocol-version", " 2026-07-28 ")], NOW),
        ([], None),
        ([("MCP-Protocol-Version", NOW), ("mcp-protocol-version", NOW)], None),
    ],
)
def test_revision_is_known_only_from_one_header(headers: Lines, revision: str | None) -> None:
    assert revision_of(headers) == revision


# --- mirrored arguments -------------------------------------------------------------------------


def mirrored(**kinds: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {n: {"type": kind, "x-mcp-header": n} for n, kind in kinds.items()},
    }


def passes(mirrors: Mirrors, headers: Lines, arguments: object) -> bool:
    try:
        mirrors.check(headers, Raw(json.dumps(arguments).encode()))
    except HeaderMismatch:
        return False
    return True


REGION = Mirrors(mirrored(Region="string"))
COUNT = Mirrors(mirrored(Count="integer"))
FLAG = Mirrors(mirrored(Flag="boolean"))


@pytest.mark.parametrize(
    ("headers", "arguments", "fine"),
    [
        ([("Mcp-Param-Region", "eu")], {"Region": "eu"}, True),
        ([("mcp-param-REGION", " eu ")], {"Region": "eu"}, True),
        ([("Mcp-Param-Region", "=?base64?5LiW55WM?=")], {"Region": "世界"}, True),
        ([("Mcp-Param-Region", "")], {"Region": ""}, True),
        ([("Mcp-Param-Region", "us")], {"Region": "eu"}, False),
        ([("Mcp-Param-Region", "=?base64?5LiW?")], {"Region": "世"}, False),
        ([], {"Region": "eu"}, False),
        ([], {"Region": ""}, False),
        ([], {}, True),
        ([], None, True),
        ([], {"Region": None}, True),
        ([("Mcp-Param-Region", "eu")], {}, False),
        ([("Mcp-Param-Region", "eu")], None, False),
        ([("Mcp-Param-Region", "null")], {"Region": None}, False),
        ([("Mcp-Param-Region", "eu"), ("mcp-param-region", "eu")], {"Region": "eu"}, False),
        ([("Mcp-Param-Region", "[]")], {"Region": []}, False),
        ([], {"Region": []}, True),
        ([("Mcp-Param-Region", "5")], {"Region": 5}, True),
        ([("Mcp-Param-Region", "5.0")], {"Region": 5}, False),
        ([("Mcp-Param-Other", "x"), ("Mcp-Param-Other", "y")], {}, True),
        ([("Mcp-Param-Region", "eu")], ["no object"], True),
    ],
)
def test_header_and_argument_come_together_or_not_at_all(
    headers: Lines, arguments: object, fine: bool
) -> None:
    assert passes(REGION, headers, arguments) is fine


@pytest.mark.parametrize(
    ("said", "text", "fine"),
    [
        ("42", "42", True),
        ("42.0", "42", True),
        ("42", "42.0", True),
        ("42", "4.2e1", True),
        ("-7", "-7", True),
        ("43", "42", False),
        ("42.5", "42", False),
        ("4_2", "42", False),
        ("+42", "42", False),
        ("", "42", False),
        ("9007199254740993", "9007199254740993", True),
        ("9007199254740992", "9007199254740993", False),
        ("5", '"5"', True),
        ("5.0", '"5"', False),
        ("1", "true", False),
    ],
)
def test_integers_are_compared_as_numbers(said: str, text: str, fine: bool) -> None:
    arguments = Raw(b'{"Count":' + text.encode() + b"}")
    if fine:
        COUNT.check([("Mcp-Param-Count", said)], arguments)
    else:
        with pytest.raises(HeaderMismatch):
            COUNT.check([("Mcp-Param-Count", said)], arguments)


@pytest.mark.parametrize(
    ("said", "value", "fine"),
    [("true", True, True), ("false", False, True), ("True", True, False), ("1", True, False)],
)
def test_booleans_are_spelled_as_in_json(said: str, value: bool, fine: bool) -> None:
    assert passes(FLAG, [("Mcp-Param-Flag", said)], {"Flag": value}) is fine


def test_number_no_header_can_hold_is_never_matched() -> None:
    huge = Raw(b'{"Count":' + b"9" * 5000 + b"}")
    COUNT.check([], huge)
    with pytest.raises(HeaderMismatch):
        COUNT.check([("Mcp-Param-Count", "9" * 5000)], huge)


def test_exponent_that_no_machine_writes_out_is_refused_at_once() -> None:
    with pytest.raises(HeaderMismatch):
        COUNT.check([("Mcp-Param-Count", "5")], Raw(b'{"Count":5e999999999}'))


def test_decoded_arguments_are_taken_too() -> None:
    with pytest.raises(HeaderMismatch):
        REGION.check([("Mcp-Param-Region", "us")], {"Region": "eu"})


def test_last_of_two_equal_keys_counts_as_for_the_child() -> None:
    REGION.check([("Mcp-Param-Region", "b")], Raw(b'{"Region":"a","Region":"b"}'))


def test_nested_argument_is_found_by_its_path() -> None:
    inner = {"type": "object", "properties": {"Zone": {"type": "string", "x-mcp-header": "Z"}}}
    mirrors = Mirrors({"properties": {"where": inner}})
    assert passes(mirrors, [("Mcp-Param-Z", "a")], {"where": {"Zone": "a"}})
    assert not passes(mirrors, [("Mcp-Param-Z", "a")], {"where": {"Zone": "b"}})
    assert not passes(mirrors, [("Mcp-Param-Z", "a")], {"where": "Zone"})
    assert passes(mirrors, [], {"where": "Zone"})


@pytest.mark.parametrize(
    "arguments", [rb'{"\udc00":1,"Region":"eu"}', rb'{"where":{"\udc00":1,"Zone":"eu"}}']
)
def test_arguments_that_cannot_be_read_do_not_pass_unchecked(arguments: bytes) -> None:
    inner = {"properties": {"Zone": {"type": "string", "x-mcp-header": "Zone"}}}
    with pytest.raises(BadParams):
        Mirrors({"properties": {"where": inner}}).check([], Raw(arguments))


def test_mismatch_names_the_header_and_never_repeats_the_value() -> None:
    with pytest.raises(HeaderMismatch) as caught:
        REGION.check([("Mcp-Param-Region", "s3cret")], {"Region": "hidden"})
    assert caught.value.data == {"header": "Mcp-Param-Region"}
    assert "s3cret" not in caught.value.message
    assert "hidden" not in caught.value.message


GOOD_PROPERTY = {"type": "string", "x-mcp-header": "Region"}
UNREACHABLE = {"type": "string", "x-mcp-header": "B"}


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": GOOD_PROPERTY, "b": {"type": "number", "x-mcp-header": "B"}}},
        {"properties": {"a": GOOD_PROPERTY, "b": {"type": "string", "x-mcp-header": "REGION"}}},
        {"properties": {"a": GOOD_PROPERTY, "b": {"type": "string", "x-mcp-header": ""}}},
        {"properties": {"a": GOOD_PROPERTY, "b": {"type": "string", "x-mcp-header": "a b"}}},
        {"properties": {"a": GOOD_PROPERTY, "b": {"type": "string", "x-mcp-header": "a\n"}}},
        {"properties": {"a": GOOD_PROPERTY, "b": {"type": "string", "x-mcp-header": 5}}},
        {"properties": {"a": GOOD_PROPERTY, "b": {"type": ["string"], "x-mcp-header": "B"}}},
        {"properties": {"a": GOOD_PROPERTY, "b": {"x-mcp-header": "B"}}},
        {"properties": {"a": GOOD_PROPERTY}, "type": "string", "x-mcp-header": "B"},
        {"properties": {"a": GOOD_PROPERTY}, "items": {"type": "string", "x-mcp-header": "B"}},
        {"properties": {"a": GOOD_PROPERTY}, "anyOf": [{"type": "string", "x-mcp-header": "B"}]},
        {"properties": {"a": GOOD_PROPERTY}, "$defs": {"d": {"properties": {"b": UNREACHABLE}}}},
        {"properties": {"a": GOOD_PROPERTY}, "items": {"properties": {"b": UNREACHABLE}}},
    ],
)
def test_one_invalid_annotation_makes_all_of_them_void(schema: dict[str, Any]) -> None:
    assert not Mirrors(schema)
    assert passes(Mirrors(schema), [], {"a": "x"})


@pytest.mark.parametrize("keyword", ["default", "const", "examples", "enum"])
def test_data_inside_a_schema_is_no_annotation(keyword: str) -> None:
    data = {"type": "number", "x-mcp-header": "B"}
    assert Mirrors({"properties": {"a": GOOD_PROPERTY}, keyword: data})


def test_property_called_like_the_annotation_is_none() -> None:
    assert not Mirrors({"properties": {"x-mcp-header": {"type": "string"}}})
    assert Mirrors({"properties": {"a": GOOD_PROPERTY, "x-mcp-header": {"type": "number"}}})


@pytest.mark.parametrize("schema", [None, True, [], "x", {}, {"properties": []}, {"properties": 1}])
def test_schema_without_annotations_checks_nothing(schema: object) -> None:
    assert not Mirrors(schema)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = GOOD_PROPERTY
    for _ in range(depth):
        schema = {"properties": {"p": schema}}
    return schema


@pytest.mark.parametrize(("depth", "checked"), [(MAX_DEPTH, True), (MAX_DEPTH + 1, False)])
def test_deepest_path_is_bounded(depth: int, checked: bool) -> None:
    assert bool(Mirrors(nested(depth))) is checked


def test_schema_deeper_than_the_stack_is_no_danger() -> None:
    assert not Mirrors(nested(100_000))


@pytest.mark.parametrize(("spare", "checked"), [(0, True), (1, False)])
def test_number_of_schemas_is_bounded(spare: int, checked: bool) -> None:
    # The root and the annotated property are two of them.
    schema = {"properties": {"a": GOOD_PROPERTY}, "allOf": [{}] * (MAX_POSITIONS - 2 + spare)}
    assert bool(Mirrors(schema)) is checked


@pytest.mark.parametrize(("count", "checked"), [(MAX_MIRRORS, True), (MAX_MIRRORS + 1, False)])
def test_number_of_mirrors_is_bounded(count: int, checked: bool) -> None:
    assert bool(Mirrors(mirrored(**{f"p{n}": "string" for n in range(count)}))) is checked


# --- against the SDK ----------------------------------------------------------------------------

NAMES = ("a", "b")
leaves = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["string", "integer", "boolean", "number", "object"]),
        "x-mcp-header": st.sampled_from(["a", "B", "A", "c d", 5]),
    },
)
mirrored_leaves = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["string", "integer", "boolean"]),
        "x-mcp-header": st.sampled_from(["a", "b", "c"]),
    }
)
schemas: st.SearchStrategy[dict[str, Any]] = st.recursive(
    leaves | mirrored_leaves,
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "properties": st.dictionaries(st.sampled_from(NAMES), inner, max_size=2),
            "items": inner,
            "anyOf": st.lists(inner, max_size=1),
            "default": inner,
        },
    ),
    max_leaves=5,
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.integers(-3, 3).map(float)
    | st.sampled_from(["", "a", "1", "true", " x", "é", "=?base64?x?="])
)
values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.dictionaries(st.sampled_from(NAMES), inner, max_size=2) | st.just([]),
    max_leaves=4,
)
said = st.sampled_from(["", "a", "1", "1.0", "-2", "0", "true", "false", "é", " x", "=?base64?x?="])
sent = said.map(inbound.encode_header_value) | st.just("=?base64?x?=")
header_lines = st.lists(
    st.tuples(st.sampled_from(["Mcp-Param-a", "mcp-param-B", "MCP-PARAM-C", "Other"]), sent),
    max_size=3,
)


def sdk_passes(schema: object, headers: Lines, arguments: dict[str, Any]) -> bool:
    raw = [(name.lower().encode(), value.encode()) for name, value in headers]
    return inbound.validate_mcp_param_headers(schema, arguments, SdkHeaders(raw=raw)) is None


@pytest.mark.no_cover  # counting lines takes longer than the test; others count them
@settings(max_examples=400)
@given(schemas, header_lines, st.dictionaries(st.sampled_from(NAMES), values))
def test_mirrors_agree_with_the_sdk(
    schema: dict[str, Any], headers: Lines, arguments: dict[str, Any]
) -> None:
    mirrors = Mirrors(schema)
    assert passes(mirrors, headers, arguments) == sdk_passes(schema, headers, arguments)


@settings(max_examples=300)
@given(
    st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["string", "integer", "boolean"])),
    st.dictionaries(st.sampled_from(NAMES), scalars),
)
def test_headers_that_the_sdk_sends_pass(kinds: dict[str, str], arguments: dict[str, Any]) -> None:
    schema = mirrored(**kinds)
    sent = inbound.mcp_param_headers(inbound.x_mcp_header_map(schema), arguments)
    assert passes(Mirrors(schema), list(sent.items()), arguments)
