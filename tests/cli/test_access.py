"""Where a command looks for the gateway and its keys, and what it says when that is not right."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from gateway.cli.access import Access, base, of_clients, of_operators
from gateway.cli.failing import Misused, Unconfigured
from tests.cli.desk import ADMIN, EVIL, desk, gw, page, safe

if TYPE_CHECKING:
    from pathlib import Path

URL = "http://gateway.test:8000"


def kept(folder: Path, *lines: str, name: str = ".env") -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_file_of_the_quickstart_is_read_where_nothing_else_says_the_key(folder: Path) -> None:
    kept(folder, "# mine", "PORT=9000", f'ADMIN_KEY="{ADMIN}"')
    assert of_operators(None, None, None) == Access("http://127.0.0.1:9000", ADMIN)


def test_url_of_the_file_goes_before_its_port(folder: Path) -> None:
    kept(folder, "PORT=9000", f"ADMIN_KEY={ADMIN}", f"GATEWAY_URL={URL}/")
    assert of_operators(None, None, None).url == URL


def test_key_of_the_environment_never_goes_where_a_file_lying_about_says(folder: Path) -> None:
    kept(folder, "GATEWAY_URL=http://thief.test", "ADMIN_KEY=another")
    assert of_operators(None, ADMIN, None) == Access("http://127.0.0.1:8000", ADMIN)


def test_environment_goes_before_a_file_that_is_named(folder: Path) -> None:
    path = kept(folder, f"GATEWAY_URL={URL}", "ADMIN_KEY=of-the-file", name="mine")
    assert of_operators(None, None, path) == Access(URL, "of-the-file")
    assert of_operators("http://other.test", ADMIN, path) == Access("http://other.test", ADMIN)


def test_first_of_several_client_keys_is_used() -> None:
    assert of_clients(URL, "ci:one,alice:two", None).key == "one"
    assert of_clients(URL, "plain", None).key == "plain"


def test_key_is_in_no_repr() -> None:
    assert ADMIN not in repr(of_operators(URL, ADMIN, None))


@pytest.mark.parametrize("key", ["", " ", "kéy", "a b", "a\nb", "\x1b[31m", "ci:,x:y"])
def test_key_that_no_header_can_carry_is_refused_without_being_told(key: str) -> None:
    with pytest.raises(Unconfigured) as said:
        of_clients(URL, key, None)
    assert "API_KEY" in str(said.value)
    assert not key.strip() or key not in str(said.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "gateway.test",
        "ftp://x",
        "http://",
        "http://x:99999",
        "http://u:p@x",
        "http://x?y",
        "http://x#y",
        "http://x\x1b",
        "http://[::1",
    ],
)
def test_what_is_no_url_is_a_usage_error(url: str) -> None:
    with pytest.raises(Misused) as said:
        base(url)
    assert safe(str(said.value))


@pytest.mark.parametrize(
    ("url", "clear"),
    [
        ("http://x.test", True),
        ("https://x.test", False),
        ("http://localhost:1", False),
        ("http://[::1]:1", False),
    ],
)
def test_key_in_clear_over_a_network_is_warned_of(url: str, clear: bool) -> None:
    assert Access(url, "k").in_clear is clear


async def test_missing_key_says_what_to_set() -> None:
    said = await gw("sessions")
    assert (said.code, said.out) == (78, "")
    assert "ADMIN_KEY" in said.err
    assert "--env-file" in said.err


async def test_file_that_is_not_there_is_a_usage_error() -> None:
    said = await gw("sessions", "--env-file", "nowhere")
    assert said.code == 2
    assert "nowhere" in said.err


async def test_file_that_is_no_text_is_a_usage_error(folder: Path) -> None:
    (folder / "odd").write_bytes(b"ADMIN_KEY=\xff\xfe\n")
    said = await gw("sessions", "--env-file", "odd")
    assert said.code == 2


async def test_file_opens_the_gateway(folder: Path) -> None:
    async with desk({("GET", "/sessions"): page()}) as served:
        kept(folder, f"GATEWAY_URL={served.url}", f"ADMIN_KEY={ADMIN}", name="mine")
        said = await gw("sessions", "--env-file", "mine")
    assert said.code == 0


# What can go wrong on the way


async def test_gateway_that_is_not_there_is_told_from_one_that_refuses(
    unused_tcp_port: int,
) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    said = await gw("sessions", GATEWAY_URL=url, ADMIN_KEY=ADMIN)
    assert (said.code, said.out) == (69, "")
    assert url in said.err
    assert "--url" in said.err
    assert len(said.err.splitlines()) == 1


async def test_wrong_key_is_refused_by_name_and_not_repeated() -> None:
    async with desk() as served:
        said = await gw("sessions", GATEWAY_URL=served.url, ADMIN_KEY="another-key")
    assert (said.code, said.out) == (1, "")
    assert "ADMIN_KEY" in said.err
    assert "another-key" not in said.err


@pytest.mark.parametrize("status", [301, 400, 403, 409, 429, 500, 503])
async def test_refusal_is_told_in_the_gateways_own_words(status: int) -> None:
    async def refuses(_request: web.Request) -> web.Response:
        return web.json_response({"error": f"no: {EVIL}"}, status=status)

    async with desk({("GET", "/sessions"): refuses}) as served:
        said = await gw("sessions", **served.access)
    assert said.code == 1
    assert "refused: no: " in said.err
    assert safe(said.err)
    assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize("path", ["/sessions", "/servers", "/ledger"])
@pytest.mark.parametrize(
    "body", ["", "<html>", "[]", "null", "1", '"x"', "{}", '{"sessions": 1}', "[" * 100_000, "[1]"]
)
async def test_stranger_is_told_from_a_gateway(path: str, body: str) -> None:
    command = {"/sessions": "sessions", "/servers": "servers", "/ledger": "cost"}[path]

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text=body, content_type="text/html")

    async with desk({("GET", path): answer}) as served:
        said = await gw(command, **served.access)
    if (command, body) == ("servers", "[]"):
        assert said.code == 0
    else:
        assert (said.code, said.out) == (69, "")
        assert "no gateway" in said.err
        assert len(said.err) < 1000


async def test_key_follows_no_redirect() -> None:
    async with desk({("GET", "/sessions"): page()}) as elsewhere:

        async def away(_request: web.Request) -> web.Response:
            raise web.HTTPFound(f"{elsewhere.url}/admin/v1/sessions")

        async with desk({("GET", "/sessions"): away}) as served:
            said = await gw("sessions", **served.access)
        assert elsewhere.asked == []
    assert said.code == 69


async def test_proxy_hears_nothing_of_a_gateway_on_this_machine() -> None:
    async with desk() as proxy, desk({("GET", "/sessions"): page()}) as served:
        said = await gw("sessions", **served.access, HTTP_PROXY=proxy.url, http_proxy=proxy.url)
        assert proxy.asked == []
    assert said.code == 0


async def test_answer_that_breaks_off_is_no_answer() -> None:
    async def breaks(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(json.dumps(page()).encode())
        assert request.transport is not None
        request.transport.close()
        return response

    async with desk({("GET", "/sessions"): breaks}) as served:
        said = await gw("sessions", **served.access)
    assert (said.code, said.out) == (69, "")
