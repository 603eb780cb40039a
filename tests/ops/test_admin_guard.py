"""Who is let in to the operators' API, with a key or with the console's cookie, and who is not."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import pytest_asyncio

from gateway.ops.admin.guard import COOKIE, COOKIE_S, LOGINS_PER_MINUTE, SECURE_COOKIE
from gateway.ops.admin.table import TABLE
from gateway.store.base import StoreAway
from tests.fakes.house import BOUND
from tests.ops.admin_house import ADMIN, BASE, PAGE, Office, office
from tests.ops.test_admin_api import concrete

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from multidict import CIMultiDictProxy

ROUTED = {"X-Forwarded-For": "10.0.0.1, 203.0.113.9", "X-Forwarded-Proto": "https"}


@pytest_asyncio.fixture
async def at() -> AsyncIterator[Office]:
    async with office() as built:
        yield built


def page(at: Office, **more: str) -> dict[str, str]:
    """What a browser and a page of the console send."""
    return {**PAGE, "Origin": at.origin, "Sec-Fetch-Site": "same-origin", **more}


async def says(
    at: Office,
    path: str,
    method: str = "POST",
    headers: Mapping[str, str] | None = None,
    **more: Any,
) -> tuple[int, Any, CIMultiDictProxy[str]]:
    sent = page(at) if headers is None else headers
    async with (
        asyncio.timeout(BOUND),
        at.http.request(method, at.origin + path, headers=sent, **more) as response,
    ):
        document = None if response.status == 204 else await response.json()
        return response.status, document, response.headers


async def logs_in(at: Office, key: str = ADMIN, **more: Any) -> int:
    status, _, _ = await says(at, "/console/login", json={"key": key}, **more)
    return status


async def authenticated(at: Office) -> bool:
    _, document, _ = await says(at, "/console/me", "GET")
    return bool(document["authenticated"])


# The key


@pytest.mark.parametrize(
    "value",
    ["", "Bearer", "Bearer x", f"Basic {ADMIN}", ADMIN, f"Bearer {ADMIN}x", f"Bearer é{ADMIN}"],
)
async def test_every_operation_wants_the_key(at: Office, value: str) -> None:
    paths = [(operation.method, concrete(operation.path)) for operation in TABLE]
    for method, path in [*paths, ("GET", "/openapi.json"), ("GET", "/nothing"), ("PATCH", "/pool")]:
        headers = {"Authorization": value} if value else {}
        status, document, told = await at.asks(path, method, headers=headers)
        assert (path, status, list(document)) == (path, 401, ["error"])
        assert told["WWW-Authenticate"].startswith("Bearer")
    assert at.left == 0


async def test_wrong_key_is_noted_and_not_told(at: Office) -> None:
    await at.asks("/pool", headers={"Authorization": "Bearer a-guess"})
    assert at.operated() == [("login_failed", f"{BASE}/pool", "127.0.0.1")]
    assert "a-guess" not in repr(at.ear.heard)


async def test_wrong_key_is_not_made_good_by_a_cookie(at: Office) -> None:
    assert await logs_in(at) == 204
    status, _, _ = await at.asks("/pool", headers={"Authorization": "Bearer x"})
    assert status == 401


async def test_without_a_key_of_its_own_everything_is_closed() -> None:
    async with office(key="") as at:
        for path, method in (("/console/login", "POST"), ("/console/me", "GET")):
            status, document, _ = await says(at, path, method, json={"key": ""})
            assert status == 403
            assert "ADMIN_KEY" in document["error"]
        for key in ("", ADMIN):
            status, _, _ = await at.asks("/pool", headers={"Authorization": f"Bearer {key}"})
            assert status == 403


# What other processes carry here


async def test_carried_request_needs_no_key_where_it_may_be_carried(at: Office) -> None:
    at.records.have("s-1")
    at.here.add("s-1")
    status, _, _ = await at.asks("/sessions/s-1", "DELETE", headers={"Carried": "truly"})
    assert (status, at.killed) == (202, ["s-1"])


async def test_carried_request_is_noted_without_an_address(at: Office) -> None:
    at.records.have("s-1")
    at.here.add("s-1")
    await at.asks("/sessions/s-1", "DELETE", headers={"Carried": "truly"})
    assert at.operated() == [("kill", "s-1", "another gateway process")]


async def test_nothing_else_is_carried(at: Office) -> None:
    for operation in TABLE:
        if not operation.relayed:
            path = concrete(operation.path)
            status, _, _ = await at.asks(path, operation.method, headers={"Carried": "truly"})
            assert (operation.name, status) == (operation.name, 401)


async def test_request_that_says_it_was_carried_and_was_not_is_refused(at: Office) -> None:
    status, _, _ = await at.asks("/gateways/here/drain", "POST", headers={"Carried": "not"})
    assert (status, at.left) == (401, 0)


# Logging in


async def test_right_key_opens_the_console(at: Office) -> None:
    assert not await authenticated(at)
    assert await logs_in(at) == 204
    assert await authenticated(at)
    status, _, _ = await at.asks("/pool", headers={})
    assert status == 200
    assert at.operated() == [("login", "/console/login", "127.0.0.1")]


async def test_wrong_key_opens_nothing(at: Office) -> None:
    status, document, headers = await says(at, "/console/login", json={"key": "a-guess"})
    assert (status, list(document)) == (401, ["error"])
    assert "Set-Cookie" not in headers
    assert not await authenticated(at)
    assert at.operated() == [("login_failed", "/console/login", "127.0.0.1")]


async def test_log_out_takes_the_cookie_back(at: Office) -> None:
    await logs_in(at)
    status, _, _ = await says(at, "/console/logout")
    assert status == 204
    assert not await authenticated(at)


async def test_log_in_lasts_twelve_hours(at: Office) -> None:
    await logs_in(at)
    at.clock.now += COOKIE_S - 1
    assert await authenticated(at)
    at.clock.now += 1
    assert not await authenticated(at)
    status, _, _ = await at.asks("/pool", headers={})
    assert status == 401


async def test_cookie_ends_with_the_key_it_was_given_for(at: Office) -> None:
    _, _, headers = await says(at, "/console/login", json={"key": ADMIN})
    cookie = headers["Set-Cookie"].partition(";")[0]
    async with office(key="another-key-of-32-characters-xxx") as other:
        status, _, _ = await other.asks("/pool", headers={"Cookie": cookie})
        assert status == 401


@pytest.mark.parametrize("value", ["", "x", "é", "gAAAAA==", "0" * 4000])
async def test_cookie_that_nobody_sealed_is_worth_nothing(at: Office, value: str) -> None:
    status, _, _ = await at.asks("/pool", headers={"Cookie": f"{COOKIE}={value}"})
    assert status == 401


async def test_cookie_is_for_this_host_and_no_script() -> None:
    async with office() as at:
        _, _, headers = await says(at, "/console/login", json={"key": ADMIN})
        name, *rest = re.split("; ?", headers["Set-Cookie"])
        assert name.startswith(f"{COOKIE}=")
        assert set(rest) == {"HttpOnly", "Max-Age=43200", "Path=/", "SameSite=Strict"}


@pytest.mark.parametrize("how", ["router", "url"])
async def test_cookie_of_https_goes_over_https_only(how: str) -> None:
    async with office(behind_router=how == "router", https=how == "url") as at:
        headers = {**page(at), **ROUTED, "Origin": at.origin.replace("http:", "https:")}
        _, _, told = await says(at, "/console/login", headers=headers, json={"key": ADMIN})
        name, *rest = re.split("; ?", told["Set-Cookie"])
        assert name.startswith(f"{SECURE_COOKIE}=")
        assert set(rest) == {"HttpOnly", "Max-Age=43200", "Path=/", "SameSite=Strict", "Secure"}


async def test_plain_cookie_opens_nothing_over_https() -> None:
    async with office(behind_router=True) as at:
        plain = {**page(at), "X-Forwarded-Proto": "http"}
        _, _, told = await says(at, "/console/login", headers=plain, json={"key": ADMIN})
        cookie = told["Set-Cookie"].partition(";")[0]
        async with aiohttp.ClientSession() as bare:
            for proto, expected in (("http", 200), ("https", 401)):
                headers = {"Cookie": cookie, "X-Forwarded-Proto": proto}
                async with bare.get(f"{at.origin}{BASE}/pool", headers=headers) as response:
                    assert (proto, response.status) == (proto, expected)


@pytest.mark.parametrize("body", [{}, {"key": 1}, {"key": ADMIN, "more": 1}, [], "x"], ids=repr)
async def test_log_in_of_another_shape_is_refused(at: Office, body: Any) -> None:
    status, document, _ = await says(at, "/console/login", json=body)
    assert status == 400
    assert ADMIN not in repr(document)


# Throttling


async def test_attempts_to_log_in_are_throttled(at: Office) -> None:
    for _ in range(LOGINS_PER_MINUTE):
        assert await logs_in(at, "a-guess") == 401
    status, _, headers = await says(at, "/console/login", json={"key": "a-guess"})
    assert status == 429
    assert 0 < int(headers["Retry-After"]) <= 60


async def test_throttled_attempt_does_not_tell_whether_its_key_was_right(at: Office) -> None:
    for _ in range(LOGINS_PER_MINUTE):
        await logs_in(at, "a-guess")
    assert await logs_in(at) == 429
    assert not await authenticated(at)


async def test_each_address_behind_the_router_is_throttled_by_itself() -> None:
    async with office(behind_router=True) as at:
        status = 0
        for number in range(LOGINS_PER_MINUTE + 1):
            # What comes first in the header is the client's own word, and may be any.
            headers = {**page(at), "X-Forwarded-For": f"10.0.0.{number}, 203.0.113.9"}
            status = await logs_in(at, "a-guess", headers=headers)
        assert status == 429
        headers = {**page(at), "X-Forwarded-For": "203.0.113.9, 203.0.113.10"}
        assert await logs_in(at, headers=headers) == 204
        assert at.operated()[-1] == ("login", "/console/login", "203.0.113.10")


async def test_without_a_router_nobody_says_where_he_comes_from(at: Office) -> None:
    headers = {**page(at), "X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}
    assert await logs_in(at, headers=headers) == 204
    assert at.operated()[-1][2] == "127.0.0.1"


async def test_operator_can_log_in_while_the_store_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def draw(*_: object) -> float:
        raise StoreAway("away")

    monkeypatch.setattr("gateway.store.memory.MemoryStore.draw", draw)
    async with office() as at:
        assert await logs_in(at) == 204
        assert await logs_in(at, "a-guess") == 401


async def test_address_is_not_put_into_the_store(at: Office) -> None:
    await logs_in(at)
    store: Any = at.manager.store
    names = list(store._engine.buckets._things)
    assert [name for name in names if name.startswith("login/")]
    assert "127.0.0.1" not in repr(names)


# Pages of others (CSRF)


FOREIGN = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1"},  # another port
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]


@asynccontextmanager
async def logged_in() -> AsyncIterator[Office]:
    async with office() as at:
        assert await logs_in(at) == 204
        at.records.have("s-1")
        at.here.add("s-1")
        yield at


async def test_page_of_the_console_may_end_a_session() -> None:
    async with logged_in() as at:
        status, _, _ = await at.asks("/sessions/s-1", "DELETE", headers=page(at))
        assert (status, at.killed) == (202, ["s-1"])


@pytest.mark.parametrize("foreign", FOREIGN, ids=repr)
async def test_page_of_others_changes_nothing(foreign: dict[str, str]) -> None:
    async with logged_in() as at:
        status, _, _ = await at.asks("/sessions/s-1", "DELETE", headers={**page(at), **foreign})
        assert (status, at.killed) == (403, [])


@pytest.mark.parametrize("foreign", FOREIGN, ids=repr)
async def test_page_of_others_reads_nothing(foreign: dict[str, str]) -> None:
    async with logged_in() as at:
        status, _, _ = await at.asks("/sessions", headers={**page(at), **foreign})
        assert status == 403


@pytest.mark.parametrize("foreign", FOREIGN, ids=repr)
@pytest.mark.parametrize("path", ["/console/login", "/console/logout"])
async def test_page_of_others_logs_nobody_in_or_out(path: str, foreign: dict[str, str]) -> None:
    async with office() as at:
        headers = {**page(at), **foreign}
        status, _, told = await says(at, path, headers=headers, json={"key": ADMIN})
        assert status == 403
        assert "Set-Cookie" not in told


@pytest.mark.parametrize("missing", ["X-Rendezvous-Console", "Origin"])
async def test_page_that_does_not_say_what_it_is_changes_nothing(missing: str) -> None:
    async with logged_in() as at:
        headers = page(at)
        del headers[missing]
        status, _, _ = await at.asks("/sessions/s-1", "DELETE", headers=headers)
        assert (status, at.killed) == (403, [])


async def test_program_with_the_key_needs_none_of_that() -> None:
    async with office() as at:
        at.records.have("s-1")
        at.here.add("s-1")
        status, _, _ = await at.asks("/sessions/s-1", "DELETE")
        assert status == 202
