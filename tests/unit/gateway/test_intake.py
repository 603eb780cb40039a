"""Proves what every HTTP request must pass: origin and host, accepted types, revision, body."""

import asyncio
from collections.abc import Iterator

import pytest
from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.edge import intake
from gateway.edge.intake import check_accept, check_origin, check_revision, read_body
from gateway.eras.versions import HANDSHAKE, SERVED
from gateway.errors import ForeignOrigin, GatewayError, NotAcceptable, UnsupportedRevision

HOSTS = frozenset({"gw.example.com", "localhost", "127.0.0.1", "::1"})


def origin_refused(hosts: frozenset[str] | None = HOSTS, **headers: str) -> bool:
    try:
        check_origin(headers, hosts)
    except ForeignOrigin:
        return True
    return False


EVERYWHERE = "0.0.0.0"  # noqa: S104 - a value to be refused
GOOD_HOSTS = ["gw.example.com", "gw.example.com:443", "GW.Example.COM", "localhost:8000"]
GOOD_HOSTS += ["127.0.0.1", "[::1]", "[::1]:8000"]
BAD_HOSTS = ["evil.com", "gw.example.com.evil.com", "evilgw.example.com", "example.com", ""]
BAD_HOSTS += ["gw.example.com@evil.com", "localhost.evil.com:8000", "127.0.0.1.evil.com", "[::2]"]
BAD_HOSTS += [EVERYWHERE, "127.0.0.2", "gw.example.com,evil.com"]
BROKEN_HOSTS = ["[", "[::1", "]", "a[b", "gw.example.com\u2100", "\udcff"]


@pytest.mark.parametrize("host", GOOD_HOSTS)
def test_request_for_a_host_of_ours_passes(host: str) -> None:
    assert not origin_refused(Host=host)


@pytest.mark.parametrize("host", BAD_HOSTS)
def test_request_for_another_host_is_refused(host: str) -> None:
    assert origin_refused(Host=host)


@pytest.mark.parametrize("host", BROKEN_HOSTS)
def test_host_that_is_no_host_is_refused_and_crashes_nothing(host: str) -> None:
    assert origin_refused(Host=host)


def test_request_without_a_host_is_refused() -> None:
    assert origin_refused()


@pytest.mark.parametrize("host", GOOD_HOSTS)
def test_page_of_an_origin_of_ours_passes(host: str) -> None:
    assert not origin_refused(Host="localhost", Origin=f"https://{host}")


@pytest.mark.parametrize("host", BAD_HOSTS)
def test_page_of_another_origin_is_refused(host: str) -> None:
    assert origin_refused(Host="localhost", Origin=f"https://{host}")


@pytest.mark.parametrize("origin", ["null", "", "file://", "localhost", "localhost:8000", "about:"])
def test_origin_without_a_host_is_refused(origin: str) -> None:
    assert origin_refused(Host="localhost", Origin=origin)


@pytest.mark.parametrize("host", BROKEN_HOSTS)
def test_origin_that_is_no_url_is_refused_and_crashes_nothing(host: str) -> None:
    assert origin_refused(Host="localhost", Origin=f"http://{host}")


@pytest.mark.parametrize("origin", ["null", "https://evil.com", "https://any.host.evil.com"])
def test_foreign_page_is_refused_even_where_any_host_is_taken(origin: str) -> None:
    assert origin_refused(None, Host="any.host", Origin=origin)


def test_any_host_and_its_own_pages_pass_where_any_host_is_taken() -> None:
    assert not origin_refused(None, Host="any.host:1")
    assert not origin_refused(None, Host="any.host:1", Origin="https://any.host:2")


@given(st.text(max_size=30), st.none() | st.text(max_size=30), st.booleans())
@settings(deadline=None, derandomize=True, database=None)
def test_no_header_text_raises_anything_but_a_refusal(
    host: str, origin: str | None, listed: bool
) -> None:
    headers = {"Host": host} | ({} if origin is None else {"Origin": origin})
    origin_refused(HOSTS if listed else None, **headers)


# Accept


def accepted(accept: str | None, *needed: str) -> bool:
    try:
        check_accept({} if accept is None else {"Accept": accept}, *needed)
    except NotAcceptable:
        return False
    return True


@pytest.mark.parametrize(
    "accept",
    [
        None,
        "*/*",
        "application/json, text/event-stream",
        "text/event-stream,application/json",
        "application/json;q=0.5 , text/event-stream; q=1.0",
        "Application/JSON, TEXT/Event-Stream",
        "application/*, text/*",
        "text/html, */*;q=0.1",
        "application/json, */*",
    ],
)
def test_client_that_takes_both_types_passes(accept: str | None) -> None:
    assert accepted(accept, intake.JSON, intake.SSE)


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "application/json",
        "text/event-stream",
        "text/html",
        "application/*",
        "text/*;q=1",
        "application/jsonx, text/event-stream",
        "application/json text/event-stream",
        "*",
    ],
)
def test_client_that_does_not_take_both_types_is_refused(accept: str) -> None:
    assert not accepted(accept, intake.JSON, intake.SSE)


@pytest.mark.parametrize(("accept", "passes"), [("text/event-stream", True), (intake.JSON, False)])
def test_only_the_needed_type_counts(accept: str, passes: bool) -> None:
    assert accepted(accept, intake.SSE) is passes


# Revision


@pytest.mark.parametrize("revision", HANDSHAKE)
def test_served_revision_passes(revision: str) -> None:
    headers = {"MCP-Protocol-Version": revision}
    check_revision(headers)  # raises otherwise
    with pytest.raises(UnsupportedRevision):
        check_revision({"MCP-Protocol-Version": f"{revision}x"})


def test_client_that_names_no_revision_passes() -> None:
    check_revision({})  # raises otherwise


@pytest.mark.parametrize("revision", ["2026-07-28", "", "latest", "x" * 40])
def test_other_revision_is_refused_with_those_that_are_served(revision: str) -> None:
    with pytest.raises(UnsupportedRevision) as caught:
        check_revision({"MCP-Protocol-Version": revision})
    assert caught.value.data == {"supported": list(SERVED), "requested": revision[:32]}


# Body

LIMIT = 10


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


def read(
    loop: asyncio.AbstractEventLoop, body: bytes | None, cut: Exception | None = None, **more: str
) -> bytes | str:
    """Return the body, or the reason why it was refused; None never arrives."""
    headers = {"Content-Type": "application/json"} | {
        k.replace("_", "-"): v for k, v in more.items()
    }

    async def reading() -> bytes | str:
        protocol = BaseProtocol(loop)
        protocol.transport = asyncio.Transport()  # connected
        payload = StreamReader(protocol, 2**16, loop=loop)
        if body is not None:
            payload.feed_data(body)
            payload.feed_eof()
        if cut is not None:
            payload.set_exception(cut)
        request = make_mocked_request(
            "POST", "/mcp", headers=headers, payload=payload, client_max_size=LIMIT
        )
        async with asyncio.timeout(5):
            try:
                return await read_body(request, LIMIT)
            except GatewayError as error:
                return error.reason

    return loop.run_until_complete(reading())


@pytest.mark.parametrize("media", ["application/json", "application/json; charset=utf-8"])
@pytest.mark.parametrize("body", [b"", b"x", b"x" * LIMIT])
def test_json_body_within_the_limit_is_read(
    loop: asyncio.AbstractEventLoop, media: str, body: bytes
) -> None:
    assert read(loop, body, Content_Type=media) == body


@pytest.mark.parametrize("media", ["", "text/plain", "application/jsonx", "multipart/form-data"])
def test_body_of_another_type_is_refused(loop: asyncio.AbstractEventLoop, media: str) -> None:
    assert read(loop, b"{}", Content_Type=media) == "unsupported_media"


def test_encoded_body_is_refused(loop: asyncio.AbstractEventLoop) -> None:
    assert read(loop, b"{}", Content_Encoding="gzip") == "unsupported_media"


def test_body_announced_over_the_limit_is_refused_unread(loop: asyncio.AbstractEventLoop) -> None:
    assert read(loop, None, Content_Length=str(LIMIT + 1)) == "message_too_big"


def test_body_that_grows_over_the_limit_is_refused(loop: asyncio.AbstractEventLoop) -> None:
    assert read(loop, b"x" * (LIMIT + 1)) == "message_too_big"


def test_body_that_does_not_arrive_is_refused(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "BODY_S", 0.0)
    assert read(loop, None) == "body_timeout"


def test_body_that_ends_too_early_is_refused(loop: asyncio.AbstractEventLoop) -> None:
    assert read(loop, None, web.RequestPayloadError()) == "bad_json"
