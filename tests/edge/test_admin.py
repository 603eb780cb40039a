"""The operators' API, the metrics, and dynos that an operator starts by hand."""

from __future__ import annotations

import asyncio
import io
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs
from websockets.exceptions import InvalidStatus

from dyno_agent.link import CloseCode
from gateway import events
from gateway.launchers.base import Dyno, LaunchError
from gateway.launchers.heroku.formation import Process
from gateway.sessions import pool
from gateway.sessions.record import Reason
from tests.edge.dynos_house import (
    HOOK_SECRET,
    NOW,
    Apps,
    Clock,
    booted,
    definition,
    ends_parked,
    happens,
    heard,
    hurry,
    looked_again,
    opening,
    opens,
    order,
    parked,
    platform,
    ready,
    running,
    terms,
)
from tests.fakes.house import (
    BOUND,
    INITIALIZE,
    KEY,
    SECRET,
    House,
    close_code,
    eventually,
    hello,
    token_of,
)
from tests.fakes.launchers import Scripted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from gateway.registry.servers import ServerDefinition
    from gateway.sessions.terms import Terms

ADMIN = "an-operators-key-of-32-characters"

READ = ["/admin/v1/ledger", "/admin/v1/pool", "/admin/v1/queue", "/admin/v1/servers", "/metrics"]
WRITE = ["/admin/v1/servers/refresh", "/admin/v1/bootstrap"]
ROUTES = [*(("GET", path) for path in READ), *(("POST", path) for path in WRITE)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


@asynccontextmanager
async def administered(
    launcher: Scripted | None = None,
    agreed: Terms | None = None,
    *servers: ServerDefinition,
    apps: Apps | None = None,
    admin_key: str = ADMIN,
) -> AsyncIterator[tuple[House, Scripted]]:
    launcher, apps = launcher or Scripted(), apps or Apps()
    async with running(
        launcher,
        agreed,
        *servers,
        platform=platform(launcher, apps),
        admin_key=admin_key,
        heroku_refresh_s=86_400,
    ) as served:
        yield served


async def asks(
    house: House, path: str, method: str = "GET", key: str | None = ADMIN, **more: Any
) -> tuple[int, Any, Mapping[str, str]]:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    if "data" in more:
        headers["Content-Type"] = "application/json"
    url = f"{house.origin}{path}"
    async with house.http.request(method, url, headers=headers, **more) as response:
        plain = response.content_type != "application/json"
        document = await response.text() if plain else await response.json()
        return response.status, document, response.headers


async def invited(house: House, server: str = "patient") -> tuple[str, str]:
    """Return the launch id and the join token of a pasted line."""
    status, document, _ = await asks(house, "/admin/v1/bootstrap", "POST", json={"server": server})
    assert status == 200, document
    token = next(
        part.partition("=")[2]
        for part in document["command"].split()
        if part.startswith("RENDEZVOUS_JOIN_TOKEN=")
    )
    return document["launch"], token


async def count(house: House, name: str, **labels: str) -> float:
    """Return one figure of /metrics."""
    status, text, headers = await asks(house, "/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain")
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    raise AssertionError(f"no {name} {labels}")


async def waits(house: House, number: int) -> None:
    """Wait until so many stand in line."""
    await eventually(lambda: len(house.manager.dynos.queue) == number)


# Who may ask


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("key", [None, "", "x", ADMIN[:-1], ADMIN + "x", KEY, ADMIN.upper()])
async def test_nobody_but_an_operator_is_answered(method: str, path: str, key: str | None) -> None:
    async with administered() as (house, _):
        status, document, headers = await asks(house, path, method, key)
        assert (status, list(document)) == (401, ["error"])
        assert headers["WWW-Authenticate"].startswith("Bearer")
        assert ADMIN not in repr(document)


@pytest.mark.parametrize("value", ["Basic " + ADMIN, ADMIN, "Bearer", f"Bearer é{ADMIN}"])
async def test_key_is_taken_as_a_bearer_only(value: str) -> None:
    async with administered() as (house, _):
        url = f"{house.origin}/admin/v1/queue"
        async with house.http.get(url, headers={"Authorization": value}) as response:
            assert response.status == 401


async def test_refusals_are_all_the_same() -> None:
    async with administered() as (house, _):
        answers = [await asks(house, "/admin/v1/ledger", key=key) for key in ("", "x", ADMIN[:-1])]
        assert len({repr(document) for _, document, _ in answers}) == 1


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("key", [None, "", "x"])
async def test_without_an_admin_key_the_api_is_closed(
    method: str, path: str, key: str | None
) -> None:
    async with administered(admin_key="") as (house, _):
        status, document, _ = await asks(house, path, method, key)
        assert status == 403
        assert "ADMIN_KEY" in document["error"]


async def test_clients_key_opens_no_operators_door_nor_the_other_way_round() -> None:
    async with administered() as (house, _):
        headers = {"X-API-Key": ADMIN}
        async with house.http.post(house.url, json=INITIALIZE, headers=headers) as response:
            assert response.status == 401
        async with house.http.get(f"{house.origin}/admin/v1/queue") as response:
            assert response.status == 401


# What it tells


async def test_ledger_tells_what_runs_and_what_it_cost() -> None:
    clock = Clock()
    async with administered(None, terms(clock)) as (house, launcher):
        agent, session = await booted(house, launcher)
        clock.now += 10
        _, report, _ = await asks(house, "/admin/v1/ledger")
        (entry,) = report["running"]
        assert (entry["launch"], entry["dyno_s"], entry["usd"]) == (agent.launch_id, 10.0, 0.01)
        assert report["month"] == "2026-09"
        await house.delete(session)
        await happens(house, events.Closed)
        _, report, _ = await asks(house, "/admin/v1/ledger")
        assert report["running"] == []
        assert [bill["launch"] for bill in report["bills"]] == [agent.launch_id]


async def test_pool_tells_each_dyno_and_its_state() -> None:
    async with administered(None, None, definition(warm=1, release="v4")) as (house, launcher):
        made = await order(launcher)
        await eventually(lambda: house.manager.pool.left)
        _, (one,), _ = await asks(house, "/admin/v1/pool")
        assert one == {
            "launch": made.launch_id,
            "server": "patient",
            "release": "v4",
            "dyno": f"fake.{made.launch_id}",
            "state": "booting",
            "parked_s": None,
            "bootstrapped": False,
        }
        await house.park(token_of(made))
        await eventually(lambda: ready(house, made.launch_id))
        _, (one,), _ = await asks(house, "/admin/v1/pool")
        assert one["state"] == "parked"
        assert one["parked_s"] >= 0


async def test_queue_tells_positions() -> None:
    launcher = Scripted(limit=0)
    async with (
        administered(launcher) as (house, _),
        asyncio.timeout(BOUND),
        asyncio.TaskGroup() as group,
    ):
        calls = []
        for number in (1, 2):
            calls.append(group.create_task(house.post(INITIALIZE)))
            await waits(house, number)
        _, told, _ = await asks(house, "/admin/v1/queue")
        assert [each["position"] for each in told] == [1, 2]
        sessions = [live.record.session_id for live in house.manager.directory]
        assert [each["session"] for each in told] == sessions
        assert {each["server"] for each in told} == {"patient"}
        assert await count(house, "rendezvous_queue_length") == 2
        for call in calls:
            call.cancel()


async def test_servers_tells_which_are_there_and_which_are_gone() -> None:
    apps = Apps()
    apps.have(
        Process("a", "mcp-x", "run secret-command", "basic", "v1"),
        Process("a", "mcp-y", "run", None, "v1"),
    )
    async with administered(apps=apps) as (house, _):
        apps.have(Process("a", "mcp-x", "run secret-command", "basic", "v2"))
        status, told, _ = await asks(house, "/admin/v1/servers/refresh", "POST")
        assert status == 200
        facts = {each["name"]: (each["status"], each["app"], each["release"]) for each in told}
        assert facts["mcp-x"] == ("registered", "a", "v2")
        assert facts["mcp-y"] == ("disconnected", "a", "v1")
        _, again, _ = await asks(house, "/admin/v1/servers")
        assert again == told
        assert "secret-command" not in repr(told)


async def test_servers_tell_no_environment() -> None:
    server = definition(env={"TOKEN": "very-secret"})
    async with administered(None, None, server) as (house, _):
        _, told, _ = await asks(house, "/admin/v1/servers")
        assert "very-secret" not in repr(told)


async def test_refresh_says_when_the_apps_do_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.ops.admin.estate.REFRESH_S", 0.02)
    apps = Apps()
    async with administered(apps=apps) as (house, _):
        await eventually(lambda: apps.looks == 2)
        apps.gate.clear()
        status, document, _ = await asks(house, "/admin/v1/servers/refresh", "POST")
        assert status == 504
        assert "error" in document
        apps.gate.set()


# Metrics


async def test_every_reason_has_a_counter_from_the_start() -> None:
    async with administered() as (house, _):
        for reason in Reason:
            name = "rendezvous_sessions_ended_total"
            assert await count(house, name, reason=reason.value) == 0


async def test_metrics_count_how_sessions_end() -> None:
    clock = Clock()
    async with administered(None, terms(clock)) as (house, launcher):
        _, session = await booted(house, launcher)
        assert await count(house, "rendezvous_sessions_live") == 1
        clock.now += 20
        await house.delete(session)
        await happens(house, events.Closed)
        launcher.refusals.append(LaunchError("no"))
        await house.post(INITIALIZE)
        await happens(house, events.Closed, 2)
        ended = "rendezvous_sessions_ended_total"
        assert await count(house, ended, reason="client_delete") == 1
        assert await count(house, ended, reason="boot_failed") == 1
        assert await count(house, "rendezvous_sessions_opened_total") == 2
        assert await count(house, "rendezvous_dynos_ended_total", was="session") == 1
        assert await count(house, "rendezvous_dyno_seconds_total", was="session") == 20
        assert await count(house, "rendezvous_dyno_usd_total", was="session") == 0.02
        assert await count(house, "rendezvous_sessions_live") == 0


async def test_metrics_count_dynos_of_the_pool_and_orphans() -> None:
    clock, launcher = Clock(), Scripted()
    launcher.clock = lambda: NOW
    async with administered(launcher, terms(clock, grace_s=0.0), definition(warm=1)) as (house, _):
        await parked(house, launcher)
        assert await count(house, "rendezvous_pool_dynos") == 1
        clock.now += 5
        house.registry.replace([])
        await happens(house, events.DynoUnparked)
        launcher.runs(Dyno("app/1", "0123456789abcdef01234567"))
        await happens(house, events.OrphanGone)
        seconds = "rendezvous_dyno_seconds_total"
        assert await count(house, seconds, was="parked") == 5
        assert await count(house, seconds, was="orphan") == 4.5


async def test_metrics_lose_nothing_of_what_the_pool_paid_for_a_dyno_that_was_adopted() -> None:
    clock = Clock()
    async with administered(None, terms(clock), definition(warm=1)) as (house, launcher):
        agent = await parked(house, launcher)
        clock.now += 50
        house.manager.pool._not_before["patient"] = float("inf")
        session = await opens(house, agent)
        clock.now += 7
        await house.delete(session)
        await happens(house, events.Closed)
        seconds = "rendezvous_dyno_seconds_total"
        assert await count(house, seconds, was="session") == 7
        assert await count(house, seconds, was="parked") == 50


# A dyno that an operator starts


async def test_invited_agent_is_adopted_by_the_next_session() -> None:
    async with administered() as (house, launcher):
        launch_id, token = await invited(house)
        agent = await house.park(token)
        await eventually(lambda: ready(house, launch_id))
        _, (one,), _ = await asks(house, "/admin/v1/pool")
        assert (one["bootstrapped"], one["state"]) == (True, "parked")
        session = await opens(house, agent)
        await house.works(agent, session)
        assert launcher.tried == 0


async def test_dyno_that_an_operator_started_is_stopped_with_its_session_and_paid_for() -> None:
    clock = Clock()
    async with administered(None, terms(clock)) as (house, launcher):
        launch_id, token = await invited(house)
        launcher.runs(Dyno("app/by-hand", launch_id))
        agent = await house.park(token)
        await eventually(lambda: ready(house, launch_id))
        clock.now += 5
        session = await opens(house, agent)
        clock.now += 9
        await house.delete(session)
        closed = await happens(house, events.Closed)
        assert launcher.stopped == ["app/by-hand"]
        assert closed.dyno_s == 9.0
        lines = house.manager.fleet.book.report(clock.now)["months"][0]["by_principal"]
        assert lines["(pool)"]["dyno_s"] == 5.0


async def test_dyno_that_an_operator_started_does_not_stand_for_one_of_the_pool() -> None:
    async with administered(None, None, definition(warm=1)) as (house, launcher):
        _, token = await invited(house)
        await house.park(token)
        await parked(house, launcher, "second")
        await looked_again(launcher, 5)
        assert launcher.tried == 1
        assert len(list(house.manager.pool)) == 2


async def test_invitation_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "INVITATION_S", 0.05)
    async with administered() as (house, launcher):
        launch_id, token = await invited(house)
        assert (await happens(house, events.DynoUnparked)).launch == launch_id
        with pytest.raises(InvalidStatus) as refused:
            await house.dial(token)
        assert refused.value.response.status_code == 401
        _, left, _ = await asks(house, "/admin/v1/pool")
        assert left == []
        launcher.runs(Dyno("app/late", launch_id))
        assert (await happens(house, events.OrphanGone)).dyno == "app/late"


async def test_invitation_is_good_once() -> None:
    async with administered() as (house, _):
        _, token = await invited(house)
        agent = await house.park(token)
        thief = await house.dial(token)
        await thief.send(hello("second").encode())
        assert await close_code(thief) == CloseCode.REPLAYED_TOKEN
        await ends_parked(agent.socket)
        assert (await happens(house, events.DynoUnparked)).server == "patient"


async def test_invited_dyno_does_not_stand_about_for_ever() -> None:
    clock = Clock()
    async with administered(None, terms(clock)) as (house, _):
        launch_id, token = await invited(house)
        agent = await house.park(token)
        await eventually(lambda: ready(house, launch_id))
        clock.now += 86_400
        await ends_parked(agent.socket)
        assert (await happens(house, events.DynoUnparked)).launch == launch_id


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b"{}", 400),
        (b'{"server": 1}', 400),
        (b'{"server": "patient", "more": 1}', 400),
        (b'{"server": "\xff"}', 400),
        (b"[" * 10_000, 400),
        (b'{"server": "nobody"}', 404),
        (b'{"server": "' + b"x" * 2_000_000 + b'"}', 413),
    ],
    ids=range(9),
)
async def test_bootstrap_of_nonsense_is_refused(body: bytes, status: int) -> None:
    async with administered() as (house, _):
        got, _, _ = await asks(house, "/admin/v1/bootstrap", "POST", data=io.BytesIO(body))
        assert got == status
        assert len(list(house.manager.pool)) == 0


async def test_bootstrap_is_read_to_its_end_however_it_comes() -> None:
    async def parts() -> Any:
        for byte in b'{"server": "patient"}':
            yield bytes([byte])
            await asyncio.sleep(0)

    async with administered() as (house, _):
        status, document, _ = await asks(house, "/admin/v1/bootstrap", "POST", data=parts())
        assert (status, document["server"]) == (200, "patient")


# Secrets


async def test_nothing_that_is_told_holds_a_secret() -> None:
    """Only the pasted line does: it has to."""
    with capture_logs() as logs:
        async with administered(None, None, definition(warm=1)) as (house, launcher):
            made = await order(launcher)
            agent = await house.park(token_of(made))
            await eventually(lambda: ready(house, made.launch_id))
            _, token = await invited(house)
            async with opening(house) as call:
                await house.adopted(agent)
                await agent.boots()
            session = call.result().headers["Mcp-Session-Id"]
            told = [await asks(house, path) for path in READ]
            told += [await asks(house, path, key="wrong") for path in READ]
            await house.delete(session)
            await happens(house, events.Closed)
            said = repr([logs, house.ear.heard, [each[:2] for each in told]])
            said += repr(list(house.manager.pool)) + repr(made)
    secrets = [token_of(made).partition(".")[2], token.partition(".")[2], session]
    secrets += [ADMIN, KEY, HOOK_SECRET, SECRET.decode()]
    assert [secret for secret in secrets if secret in said] == []
    assert heard(house, events.Adopted)
