"""Proves that the envelope is read strictly and its payload not at all.

What we write ourselves has exactly one shape.
"""

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET, Raw

from gateway.errors import BadJson, BadMessage, Busy, GatewayError
from gateway.jsonrpc import (
    MAX_BATCH,
    Envelope,
    Kind,
    Params,
    error_response,
    one_line,
    params_of,
    peek,
    split,
)

DEEP = 100_000

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def reason_of(raw: bytes) -> str:
    with pytest.raises(GatewayError) as caught:
        _ = peek(raw).kind
    return caught.value.reason


def request(inner: bytes) -> bytes:
    return b'{"jsonrpc":"2.0","id":1,"method":"a","params":' + inner + b"}"


@pytest.mark.parametrize(
    ("rest", "kind"),
    [
        (b'"id":1,"method":"a"', Kind.REQUEST),
        (b'"id":"","method":"a"', Kind.REQUEST),
        (b'"id":0,"method":""', Kind.REQUEST),
        (b'"method":"a"', Kind.NOTIFICATION),
        (b'"method":"a","params":{}', Kind.NOTIFICATION),
        (b'"id":1,"result":null', Kind.RESPONSE),
        (b'"id":1,"error":{}', Kind.RESPONSE),
        (b'"id":null,"error":{}', Kind.RESPONSE),
    ],
)
def test_kind_follows_from_the_outer_keys(rest: bytes, kind: Kind) -> None:
    assert peek(b'{"jsonrpc":"2.0",' + rest + b"}").kind is kind


@pytest.mark.parametrize(
    "rest",
    [
        b'"id":1',
        b'"id":null,"method":"a"',
        b'"result":1',
        b'"id":1,"result":1,"error":{}',
        b'"id":1,"method":"a","result":1',
        b'"method":"a","error":{}',
        b'"id":1.0,"method":"a"',
        b'"id":1e0,"method":"a"',
        b'"id":true,"method":"a"',
        b'"id":[1],"method":"a"',
        b'"id":{},"method":"a"',
        b'"id":1,"method":1',
        b'"id":1,"method":null',
    ],
)
def test_what_is_none_of_the_three_kinds_is_refused(rest: bytes) -> None:
    assert reason_of(b'{"jsonrpc":"2.0",' + rest + b"}") == "bad_message"


def test_number_and_text_of_the_same_digits_are_different_ids() -> None:
    number = peek(b'{"jsonrpc":"2.0","id":1,"method":"a"}').id
    text = peek(b'{"jsonrpc":"2.0","id":"1","method":"a"}').id
    assert (type(number), number, type(text), text) == (int, 1, str, "1")


@pytest.mark.parametrize("number", [2**53 + 1, 2**63, 2**64, 10**100, -(2**63) - 1])
def test_huge_integer_ids_are_kept_and_written_back_digit_by_digit(number: int) -> None:
    envelope = peek(b'{"jsonrpc":"2.0","id":%d,"method":"a"}' % number)
    assert isinstance(envelope.id, int)
    answer = error_response(envelope.id, Busy("later"))
    assert answer.startswith(b'{"jsonrpc":"2.0","id":%d,' % number)


def test_id_of_more_digits_than_any_machine_needs_is_refused() -> None:
    raw = b'{"jsonrpc":"2.0","id":' + b"9" * DEEP + b',"method":"a"}'
    assert reason_of(raw) == "bad_message"


@pytest.mark.parametrize(
    "jsonrpc", [b'"1.0"', b'"2"', b"2.0", b"null", b'"2.0 "', b'""', b'["2.0"]']
)
def test_any_other_jsonrpc_version_is_refused(jsonrpc: bytes) -> None:
    assert reason_of(b'{"jsonrpc":' + jsonrpc + b',"id":1,"method":"a"}') == "bad_message"


def test_missing_jsonrpc_version_is_refused() -> None:
    assert reason_of(b'{"id":1,"method":"a"}') == "bad_message"


@pytest.mark.parametrize(
    "raw",
    [b"[]", b' \n[{"jsonrpc":"2.0","id":1,"method":"a"}]', b"3", b'"text"', b"null", b"true"],
)
def test_batch_and_other_json_values_are_no_messages(raw: bytes) -> None:
    assert reason_of(raw) == "bad_message"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"{",
        b"hello",
        request(b"{}") + b"x",
        request(b"{}") * 2,
        request(b"01"),
        request(b"NaN"),
        request(b"-Infinity"),
        request(b'{"a":1,}'),
        request(b'"line\nbreak"'),
        b"\xef\xbb\xbf" + request(b"{}"),
        b'{"jsonrpc":"2.0","id":"\\ud800","method":"a"}',
        request(b"{}").decode().encode("utf-16"),
    ],
)
def test_what_is_not_json_is_refused(raw: bytes) -> None:
    assert reason_of(raw) == "bad_json"


@pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"])
def test_bad_utf8_is_refused_even_inside_params_that_nobody_reads(bad: bytes) -> None:
    assert reason_of(request(b'{"text":"' + bad + b'"}')) == "bad_json"


@pytest.mark.parametrize(
    "inner", [b"[" * DEEP, b"[" * DEEP + b"]" * DEEP, b'{"a":' * DEEP + b"1" + b"}" * DEEP]
)
def test_nesting_without_end_is_refused_and_crashes_nothing(inner: bytes) -> None:
    assert reason_of(request(inner)) == "bad_json"


def test_batch_nested_without_end_is_refused_and_crashes_nothing() -> None:
    with pytest.raises((BadJson, BadMessage)):
        peek(b"[" * DEEP + b"]" * DEEP)


def test_last_of_duplicate_outer_keys_counts() -> None:
    assert peek(b'{"jsonrpc":"2.0","id":1,"id":2,"method":"a"}').id == 2


def test_duplicate_keys_in_params_stay_as_they_were_written() -> None:
    inner = b'{"a":1, "a":2,"b":1.50,"c":1e400}'
    assert peek(request(inner)).params == Raw(inner)


def test_unknown_outer_keys_are_ignored() -> None:
    raw = b'{"jsonrpc":"2.0","id":1,"method":"a","x-trace":[1]}'
    assert peek(raw) == Envelope(jsonrpc="2.0", id=1, method="a")


@given(st.binary(max_size=200))
@settings(deadline=None, derandomize=True, database=None)
def test_any_bytes_give_an_envelope_or_one_of_our_refusals(raw: bytes) -> None:
    try:
        outcome = peek(raw).kind.value
    except GatewayError as error:
        outcome = error.reason
    assert outcome in {"request", "notification", "response", "bad_json", "bad_message"}


# one_line


@given(value=json_values, end=st.sampled_from(["\n", "\r\n", "\r"]), deep=st.integers(0, 4))
@settings(deadline=None, derandomize=True, database=None)
def test_pretty_printed_message_on_one_line_has_the_same_value(
    value: Any, end: str, deep: int
) -> None:
    text = json.dumps(value, indent=deep, ensure_ascii=False).replace("\n", end)
    line = one_line(f"{end}{text}{end}".encode())
    assert b"\r" not in line
    assert b"\n" not in line
    assert json.loads(line) == value


def test_message_that_is_on_one_line_already_is_the_same_object() -> None:
    raw = request(b'{"text":"\\n\\r \xe2\x80\xa8"}')
    assert one_line(raw) is raw


@pytest.mark.parametrize(
    ("raw", "line"),
    [(b'{\n"a":1}', b'{ "a":1}'), (b'{\r"a":1}', b'{ "a":1}'), (b"[1,\r\n2]", b"[1,  2]")],
)
def test_each_line_end_becomes_a_blank_and_nothing_else_changes(raw: bytes, line: bytes) -> None:
    assert one_line(raw) == line


# params_of


def test_params_hold_what_routing_needs() -> None:
    inner = b'{"name":"t","requestId":"r","progressToken":7,"_meta":{"progressToken":"p","x":1}}'
    params = params_of(peek(request(inner)))
    assert params.meta is not UNSET
    assert (params.name, params.requestId, params.progressToken) == ("t", "r", 7)
    assert params.meta.progressToken == "p"


@pytest.mark.parametrize(
    "inner", [b"[]", b"null", b"3", b'"x"', b'{"_meta":3}', b'{"requestId":true}']
)
def test_params_of_another_shape_read_as_empty(inner: bytes) -> None:
    assert params_of(peek(request(inner))) == Params()


def test_absent_params_read_as_empty() -> None:
    assert params_of(peek(b'{"jsonrpc":"2.0","id":1,"method":"a"}')) == Params()


def test_name_of_another_type_does_not_hide_the_token() -> None:
    params = params_of(peek(request(b'{"name":[1],"_meta":{"progressToken":0}}')))
    assert params.meta is not UNSET
    assert params.meta.progressToken == 0


# error_response


@pytest.mark.parametrize(
    ("request_id", "written"), [(1, b"1"), ("1", b'"1"'), (None, b"null"), (0, b"0"), ("", b'""')]
)
def test_error_response_has_exactly_one_shape(request_id: str | int | None, written: bytes) -> None:
    raw = error_response(request_id, Busy("try again", limit=3))
    assert raw == (
        b'{"jsonrpc":"2.0","id":' + written + b',"error":{"code":-32603,"message":"try again",'
        b'"data":{"reason":"busy","limit":3}}}'
    )


def test_error_response_is_one_line_whatever_the_message_says() -> None:
    raw = error_response(1, Busy("two\r\nlines\x00\x1b"))
    assert one_line(raw) is raw
    assert json.loads(raw)["error"]["message"] == "two\r\nlines\x00\x1b"


def test_error_response_holds_even_text_that_is_not_unicode() -> None:
    """A child's last words may hold half a surrogate pair (JSON escapes in the agent's report)."""
    raw = error_response(1, Busy("\ud800", path="\udcff"))
    assert json.loads(raw)["error"]["data"]["reason"] == "busy"


# split


@pytest.mark.parametrize(
    "raw", [b"", b" ", b"{}", b' {"a":[1]}', b"3", b'"[]"', b"null", b"hello", b"\xef\xbb\xbf[1]"]
)
def test_what_is_no_array_is_not_split(raw: bytes) -> None:
    assert split(raw) is None


def test_members_of_a_batch_are_byte_for_byte_what_the_client_wrote() -> None:
    members = [
        request(b'{"a":1, "a":1.50,"b":"\\u00e9\xc3\xa9"}'),
        b'{ "x" : [1e400 ] }',
        b"[ [] ]",
    ]
    assert split(b" \r\n\t[ " + b" ,\n".join(members) + b" ] ") == members


def test_members_need_not_be_messages() -> None:
    assert split(b'[1,"a",null,[],{}]') == [b"1", b'"a"', b"null", b"[]", b"{}"]


def test_batch_of_the_most_members_is_split_and_one_more_is_refused() -> None:
    assert split(b"[" + b",".join([b"1"] * MAX_BATCH) + b"]") == [b"1"] * MAX_BATCH
    with pytest.raises(BadMessage) as caught:
        split(b"[" + b",".join([b"1"] * (MAX_BATCH + 1)) + b"]")
    assert caught.value.data == {"limit": 64}


@pytest.mark.parametrize("raw", [b"[]", b" [ \n] "])
def test_empty_batch_is_refused(raw: bytes) -> None:
    with pytest.raises(BadMessage):
        split(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"[",
        b"[1",
        b"[1,]",
        b"[1]x",
        b"[1][2]",
        b"[NaN]",
        b"[01]",
        b"[" + b"1," * (2 * MAX_BATCH) + b"x]",
        b'["\xff"]',
        b'[{"jsonrpc":"2.0","method":"a","params":{"x":"\xed\xa0\x80"}}]',
        b"[" + b"1," * (2 * MAX_BATCH) + b'"\xff"]',
        b"[" * DEEP,
        b"[" * DEEP + b"]" * DEEP,
    ],
)
def test_batch_that_is_not_json_is_refused(raw: bytes) -> None:
    with pytest.raises(BadJson):
        split(raw)


def test_batch_of_millions_of_members_is_not_kept_in_memory() -> None:
    raw = b"[" + b"1," * 1_000_000 + b"1]"
    tracemalloc.start()
    try:
        with pytest.raises(BadMessage):
            split(raw)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(raw)


finite = json_values.filter(lambda value: "Infinity" not in json.dumps(value))


@given(st.lists(finite, min_size=1, max_size=MAX_BATCH))
@settings(deadline=None, derandomize=True, database=None)
def test_members_of_any_batch_are_its_values(values: list[Any]) -> None:
    written = [json.dumps(value).encode() for value in values]
    assert split(b"[" + b",".join(written) + b"]") == written


@given(st.binary(max_size=200).map(lambda raw: b"[" + raw))
@settings(deadline=None, derandomize=True, database=None)
def test_any_bytes_after_a_bracket_give_members_or_one_of_our_refusals(raw: bytes) -> None:
    try:
        outcome = "members" if split(raw) else "nothing"
    except GatewayError as error:
        outcome = error.reason
    assert outcome in {"members", "bad_json", "bad_message"}
