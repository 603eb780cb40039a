"""The API over HTTP: who is let in, what is answered, what goes wrong on purpose."""

from __future__ import annotations

import asyncio
import base64
import errno
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.heroku_emulator import AppSpec, Emulator, Options
from tests.heroku_emulator.server import Violation
from tests.unit.heroku_emulator.asking import ACCEPT, Answer, Api

if TYPE_CHECKING:
    from collections.abc import Awaitable

DYNOS = "/apps/runner/dynos"
SLEEP = {"command": "exec sleep 600"}

READS = (
    "/account",
    "/account/rate-limits",
    "/users/~",
    "/users/~/apps",
    "/apps",
    "/apps/runner",
    "/apps/runner/dynos",
    "/apps/runner/dynos/worker.1",
    "/apps/runner/formation",
    "/apps/runner/formation/worker",
    "/apps/runner/releases",
    "/apps/runner/releases/1",
    "/apps/runner/config-vars",
    "/apps/runner/webhooks",
    "/apps/runner/available-dyno-sizes",
    "/dyno-sizes",
    "/dyno-sizes/basic",
)


@pytest.mark.parametrize("path", READS)
async def test_what_is_read_obeys_the_schema(heroku: Emulator, api: Api, path: str) -> None:
    answer = await api("GET", path)
    assert answer.status == 200, answer.body
    assert answer.body or path.endswith("webhooks")
    assert heroku.violations == []


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer wrong", "Basic !", "Basic " + base64.b64encode(b":wrong").decode(), "Digest x"],
)
async def test_a_wrong_key_is_unauthorized(api: Api, authorization: str) -> None:
    answer = await api("GET", "/account", headers={"Authorization": authorization})
    assert answer.said == (401, "unauthorized")


async def test_the_key_may_be_a_password_without_a_user(heroku: Emulator, api: Api) -> None:
    basic = base64.b64encode(f":{heroku.api_key}".encode()).decode()
    answer = await api("GET", "/account", headers={"Authorization": f"Basic {basic}"})
    assert answer.status == 200


@pytest.mark.parametrize("version", ["3", "3.sdk", "3.cedar-acm"])
async def test_variants_of_version_3_are_served(api: Api, version: str) -> None:
    accept = f"application/vnd.heroku+json; version={version}"
    assert (await api("GET", "/account", headers={"Accept": accept})).status == 200


async def test_a_request_without_a_version_is_refused(api: Api) -> None:
    answer = await api("GET", "/account", headers={"Accept": "application/json"})
    assert answer.said == (400, "bad_version")


@pytest.mark.parametrize(
    ("path", "resource"),
    [
        ("/apps/other", "app"),
        ("/apps/other/dynos", "app"),
        ("/apps/runner/dynos/run.1", "dyno"),
        ("/apps/runner/formation/web", "formation"),
        ("/apps/runner/releases/99", "release"),
        ("/dyno-sizes/huge", "dyno size"),
    ],
)
async def test_what_is_not_there_is_named(api: Api, path: str, resource: str) -> None:
    answer = await api("GET", path)
    assert answer.said == (404, "not_found")
    assert answer.body["resource"] == resource


async def test_an_unknown_path_is_not_found(api: Api) -> None:
    assert (await api("GET", "/apps/runner/nothing")).said == (404, "not_found")


@pytest.mark.parametrize(
    "wrong",
    [{"size": None}, {"time_to_live": "60"}, {"env": {"A-B": "x"}}, {"colour": "red"}],
    ids=str,
)
async def test_a_body_that_breaks_the_schema_is_refused_and_noted(
    heroku: Emulator, api: Api, wrong: dict[str, Any]
) -> None:
    answer = await api("POST", DYNOS, {**SLEEP, **wrong})
    assert answer.said == (422, "invalid_params")
    [noted] = heroku.violations
    assert isinstance(noted, Violation)
    assert (noted.side, noted.operation) == ("request", "create")


@pytest.mark.parametrize(
    "wrong", [{"size": "huge"}, {"time_to_live": 0}, {"time_to_live": 86_401}, {"command": " "}]
)
async def test_values_beyond_the_schema_are_refused(
    heroku: Emulator, api: Api, wrong: dict[str, Any]
) -> None:
    answer = await api("POST", DYNOS, {**SLEEP, **wrong})
    assert answer.said == (422, "invalid_params")
    assert heroku.violations == []


async def test_a_body_that_is_no_json_is_a_bad_request(heroku: Emulator) -> None:
    headers = {"Authorization": f"Bearer {heroku.api_key}", "Accept": ACCEPT}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(heroku.url + DYNOS, data=b"{") as response,
    ):
        assert response.status == 400


async def test_every_answer_tells_an_id_and_the_quota_left(api: Api) -> None:
    answers = [await api("GET", path) for path in ("/account", "/apps/other", "/nothing")]
    assert len({answer.headers["Request-Id"] for answer in answers}) == 3
    assert all(int(answer.headers["RateLimit-Remaining"]) > 4_000 for answer in answers)


async def test_without_quota_nothing_is_done(heroku: Emulator, api: Api) -> None:
    heroku.set_remaining(0)
    before = len(heroku.ledger)
    answer = await api("POST", DYNOS, SLEEP)
    assert answer.said == (429, "rate_limit")
    assert answer.headers["RateLimit-Remaining"] == "0"
    assert len(heroku.ledger) == before


async def test_each_request_uses_up_quota_but_asking_for_it_does_not(
    heroku: Emulator, api: Api
) -> None:
    heroku.set_remaining(100)
    for _ in range(10):
        await api("GET", "/account")
    asked = [(await api("GET", "/account/rate-limits")).body["remaining"] for _ in range(10)]
    assert asked == [90] * 10


async def test_a_long_list_comes_in_pages(heroku: Emulator, api: Api) -> None:
    heroku.options.page_size = 2
    for _ in range(4):
        await api.create("exec sleep 600")
    seen, asked, statuses = [], "id ..", []
    while asked:
        answer = await api("GET", DYNOS, headers={"Range": asked})
        seen += [dyno["name"] for dyno in answer.body]
        statuses.append(answer.status)
        asked = answer.headers.get("Next-Range", "")
    assert statuses == [206, 206, 200]
    assert sorted(seen) == sorted(dyno.name for dyno in heroku.ledger)


async def test_a_new_dyno_may_be_unknown_for_a_moment(heroku: Emulator, api: Api) -> None:
    heroku.options.invisible_s = 600.0
    made = await api.create("exec sleep 600")
    path = f"{DYNOS}/{made['id']}"
    assert (await api("GET", path)).said == (404, "not_found")
    heroku.options.invisible_s = 0.0
    assert (await api("GET", path)).status == 200


# -- DELETE ----------------------------------------------------------------------------------------


async def test_delete_ends_a_dyno_of_type_run(heroku: Emulator, api: Api) -> None:
    made = await api.create("exec sleep 600")
    await api("DELETE", f"{DYNOS}/{made['id']}")
    await heroku.until(lambda: heroku.ledger[-1].ended)


async def test_delete_leaves_a_dyno_of_another_type_alone(heroku: Emulator, api: Api) -> None:
    made = await api.create("exec sleep 600", type="rendezvous")
    answer = await api("DELETE", f"{DYNOS}/{made['id']}")
    assert (answer.status, answer.body) == (202, {})
    running = heroku._platform.dyno(made["id"])
    assert not running._asked.is_set()


async def test_one_call_stops_all_dynos_of_a_type(heroku: Emulator, api: Api) -> None:
    for kind in ("rendezvous", "rendezvous", "other"):
        await api.create("exec sleep 600", type=kind)
    answer = await api("POST", "/apps/runner/formations/rendezvous/actions/stop")
    assert (answer.status, answer.body) == (202, {})
    await heroku.until(lambda: len(heroku.dynos_left()) == 2)
    assert [dyno.type for dyno in heroku.dynos_left()] == ["worker", "other"]


# -- faults ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("401", (401, "unauthorized")),
        ("402", (402, "delinquent")),
        ("403", (403, "forbidden")),
        ("409", (409, "conflict")),
        ("429", (429, "rate_limit")),
        ("500", (500, "internal_server_error")),
        ("503", (503, "service_unavailable")),
    ],
)
async def test_an_error_on_purpose_does_nothing(
    heroku: Emulator, api: Api, word: str, said: tuple[int, str]
) -> None:
    before = len(heroku.ledger)
    heroku.faults.push("create", word)
    assert (await api("POST", DYNOS, SLEEP)).said == said
    assert len(heroku.ledger) == before
    assert (await api("POST", DYNOS, SLEEP)).status == 201


async def test_an_error_after_the_effect_has_made_a_dyno(heroku: Emulator, api: Api) -> None:
    before = len(heroku.ledger)
    heroku.faults.push("create", "500-after")
    assert (await api("POST", DYNOS, SLEEP)).status == 500
    assert len(heroku.ledger) == before + 1


@pytest.mark.parametrize(("word", "made"), [("reset-before", 0), ("reset-after", 1)])
async def test_a_connection_is_reset(heroku: Emulator, api: Api, word: str, made: int) -> None:
    before = len(heroku.ledger)
    heroku.faults.push("create", word)
    with pytest.raises(aiohttp.ClientOSError) as cut:
        await api("POST", DYNOS, SLEEP)
    assert cut.value.errno == errno.ECONNRESET
    assert len(heroku.ledger) == before + made


@pytest.mark.parametrize(("word", "made"), [("timeout-before", 0), ("timeout-after", 1)])
async def test_a_request_is_held_until_its_client_gives_up(
    heroku: Emulator, api: Api, word: str, made: int
) -> None:
    before = len(heroku.ledger)
    heroku.faults.push("create", word)
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(api("POST", DYNOS, SLEEP))
        await heroku.until(lambda: heroku.faults.injected and len(heroku.ledger) == before + made)
        assert not heroku.requests
        asking.cancel()
    await heroku.until(lambda: heroku.requests)
    seen = heroku.requests[-1]
    assert (seen.operation, seen.status, seen.fault) == ("create", None, word)
    assert len(heroku.ledger) == before + made


async def test_a_held_request_is_not_held_for_ever(heroku: Emulator, api: Api) -> None:
    heroku.options.hold_s = 0.1
    heroku.faults.push("create", "timeout-before")
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await api("POST", DYNOS, SLEEP)


@pytest.mark.parametrize("operation", ["held request", "followed log"])
async def test_leaving_the_emulator_ends_what_is_under_way(operation: str) -> None:
    async with asyncio.timeout(10), aiohttp.ClientSession() as http, asyncio.TaskGroup() as tasks:
        async with Emulator({"runner": AppSpec()}, Options(hold_s=600)) as heroku:
            api = Api(heroku, http)
            if operation == "held request":
                heroku.faults.push("create", "timeout-before")
                asking = tasks.create_task(failure_of(api("POST", DYNOS, SLEEP)))
                await heroku.until(lambda: heroku.faults.injected)
            else:
                opened = await api("POST", "/apps/runner/log-sessions", {"tail": True})
                asking = tasks.create_task(failure_of(api("GET", opened.body["logplex_url"])))
                await heroku.until(lambda: heroku._server.followed)
        assert isinstance(await asking, aiohttp.ClientError)


async def failure_of(asking: Awaitable[Answer]) -> aiohttp.ClientError | None:
    try:
        await asking
    except aiohttp.ClientError as failure:
        return failure
    return None


async def test_a_dyno_that_never_dials_only_sleeps(heroku: Emulator, api: Api) -> None:
    heroku.faults.push("create", "never-dials")
    made = await api.create("exit 1")
    assert made["command"] == "exit 1"
    dyno = heroku.ledger[-1]
    await heroku.until(lambda: dyno.state == "up")
    await heroku.kill(dyno.id)
    assert dyno.cause == "killed"


async def test_a_dyno_dies_by_itself(heroku: Emulator, api: Api) -> None:
    heroku.faults.push("create", "dies:0.1")
    await api.create("trap '' TERM; while true; do sleep 600; done")
    await heroku.until(lambda: heroku.ledger[-1].ended)
    assert (heroku.ledger[-1].cause, heroku.ledger[-1].exit_status) == ("killed", 137)


async def test_requests_are_remembered_as_they_were_sent(heroku: Emulator, api: Api) -> None:
    await api("POST", DYNOS, {**SLEEP, "time_to_live": 60})
    seen = heroku.requests[-1]
    assert (seen.operation, seen.method, seen.path, seen.status) == ("create", "POST", DYNOS, 201)
    assert seen.body == {**SLEEP, "time_to_live": 60}
