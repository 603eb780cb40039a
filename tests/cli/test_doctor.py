"""`gateway doctor`: what is wrong, all of it, and how to put it right."""

from __future__ import annotations

import json
import resource
import socket
from contextlib import asynccontextmanager, contextmanager
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gateway.cli.doctor import engine, far, here, platform
from gateway.settings import Settings
from tests.cli.desk import ADMIN, EVIL, gw, on_terminal, safe
from tests.fakes.valkey import ValkeyServer
from tests.heroku_emulator import AppSpec, Emulator, Options, ProcessSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from pathlib import Path

KEY = "a-key-of-clients-that-is-long"
SECRET = "s" * 32
NOW = 1_790_000_000.0

UNSET = (
    *("API_KEY", "ADMIN_KEY", "GATEWAY_SECRET", "GATEWAY_URL", "GATEWAY_SERVERS", "PORT"),
    *("BIND_HOST", "DYNO", "LAUNCHER", "HEROKU_API_KEY", "HEROKU_APPS", "HEROKU_API_URL"),
    *("HEROKU_APP_NAME", "HEROKU_APP_ID", "REDIS_URL", "REDIS_TLS_VERIFY", "DYNO_SIZE"),
    *("ALLOW_ANONYMOUS", "ALLOW_OWN_APP", "MAX_SESSIONS"),
    *("INFERENCE_URL", "INFERENCE_KEY", "INFERENCE_MODEL_ID"),
    *("STDIO_MODE_ONLY", "REMOTE_SERVER_TRANSPORT_MODULE", "WEB_CONCURRENCY"),
)


@pytest.fixture(autouse=True)
def servers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which nothing is wrong."""
    for name in UNSET:
        monkeypatch.delenv(name, raising=False)
    path = folder / "servers.json"
    declare(path, tools={"command": "sh"})
    return path


def declare(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps({"mcpServers": entries}), encoding="utf-8")


@pytest.fixture
def good(unused_tcp_port: int) -> dict[str, Any]:
    return {
        "API_KEY": KEY,
        "ADMIN_KEY": ADMIN,
        "GATEWAY_SECRET": SECRET,
        "PORT": str(unused_tcp_port),
    }


async def examined(settings: Mapping[str, Any]) -> dict[str, tuple[str, str, str]]:
    """Return level, words and fix of each check."""
    said = await gw("doctor", "--json", **settings)
    document = said.json
    found = {
        each["check"]: (each["level"], each["said"], each["fix"]) for each in document["checks"]
    }
    levels = [each["level"] for each in document["checks"]]
    assert document["failed"] == levels.count("FAIL")
    assert document["warned"] == levels.count("warn")
    assert said.code == (1 if document["failed"] else 0)
    assert all(each["fix"] for each in document["checks"] if each["level"] != "ok")
    for secret in (KEY, ADMIN, SECRET, *(settings.get(name, "") for name in ("HEROKU_API_KEY",))):
        assert not secret or secret not in said.out
    return found


async def test_machine_on_which_nothing_is_wrong_has_no_findings(good: dict[str, Any]) -> None:
    found = await examined(good)
    assert {level for level, _, _ in found.values()} == {"ok"}
    assert {"python", "settings", "API_KEY", "ADMIN_KEY", "GATEWAY_SECRET", "open files"} <= set(
        found
    )
    assert {"servers file", "server tools", "port", "GATEWAY_URL", "valkey", "clock"} <= set(found)


async def test_each_line_says_ok_warn_or_fail_and_each_fault_its_fix(good: dict[str, Any]) -> None:
    said = await gw("doctor", **{**good, "ADMIN_KEY": "short", "GATEWAY_SECRET": ""})
    lines = said.out.splitlines()
    assert said.code == 1
    assert "ok    API_KEY: 1 of default" in lines
    assert lines[
        lines.index("warn  GATEWAY_SECRET: is not set: no session survives a restart") + 1
    ] == ("      fix: draw one with `openssl rand -hex 32`")
    assert any(line.startswith("FAIL") and "ADMIN_KEY" in line for line in lines)
    assert "1 warnings, 1 failures" in said.err


# Settings


async def test_every_wrong_variable_is_named_and_stops_no_other_check(
    good: dict[str, Any], servers: Path
) -> None:
    declare(servers)
    wrong = {"QUEUE_LENGTH": "-1", "LINK_GRACE_S": "soon", "LOG_LEVEL": "loud", "DYNO_SIZE": "x"}
    said = await gw("doctor", "--json", **{**good, **wrong})
    failed = [each["said"] for each in said.json["checks"] if each["level"] == "FAIL"]
    assert [line.partition(":")[0] for line in failed[:3]] == [
        *("QUEUE_LENGTH", "LINK_GRACE_S", "LOG_LEVEL")
    ]
    assert "servers.json: expected" in failed[3]
    assert len(failed) == 4


@pytest.mark.parametrize(
    ("settings", "check", "level"),
    [
        ({"API_KEY": ""}, "API_KEY", "FAIL"),
        ({"API_KEY": "a:b,:"}, "API_KEY", "FAIL"),
        ({"API_KEY": "short"}, "API_KEY", "warn"),
        ({"API_KEY": "", "ALLOW_ANONYMOUS": "1"}, "API_KEY", "warn"),
        ({"ADMIN_KEY": ""}, "ADMIN_KEY", "warn"),
        ({"ADMIN_KEY": "short"}, "ADMIN_KEY", "FAIL"),
        ({"GATEWAY_SECRET": ""}, "GATEWAY_SECRET", "warn"),
        ({"GATEWAY_SECRET": "short"}, "GATEWAY_SECRET", "FAIL"),
    ],
    ids=str,
)
async def test_keys_are_judged(
    good: dict[str, Any], settings: dict[str, str], check: str, level: str
) -> None:
    said = await gw("doctor", "--json", **{**good, **settings})
    about = [
        (each["level"], each["check"])
        for each in said.json["checks"]
        if each["check"] == check or each["said"].startswith(check)
    ]
    assert [found for found, _ in about] == [level]


async def test_several_wrong_keys_are_all_named(good: dict[str, Any]) -> None:
    """A gateway itself names the first only."""
    said = await gw(
        "doctor", **{**good, "ADMIN_KEY": "x", "GATEWAY_SECRET": "y", "API_KEY": "a:b,:"}
    )
    failed = [line for line in said.out.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 3
    for name in ("ADMIN_KEY", "GATEWAY_SECRET", "API_KEY"):
        assert sum(name in line for line in failed) == 1


async def test_file_of_the_quickstart_counts(good: dict[str, Any], folder: Path) -> None:
    lines = "".join(f"{name}={value}\n" for name, value in good.items())
    (folder / ".env").write_text(lines, encoding="utf-8")
    found = await examined({})
    assert found["settings"][:2] == ("ok", "the environment and .env; launcher local")
    assert found["API_KEY"][0] == "ok"


async def test_file_that_is_not_there_is_a_usage_error() -> None:
    said = await gw("doctor", "--env-file", "nowhere")
    assert (said.code, said.out) == (2, "")


# Servers


async def test_program_that_is_nowhere_is_a_failure(good: dict[str, Any], servers: Path) -> None:
    declare(
        servers,
        gone={"command": "no-such-program", "default": True},
        homeless={"command": "sh", "cwd": "/no/such/folder"},
        relative={"command": "./run"},
        whole={"command": "/bin/sh"},
        elsewhere={"command": "sh", "env": {"PATH": "/no/such/folder"}},
    )
    found = await examined(good)
    levels = {
        name: found[f"server {name}"][0] for name in ("gone", "homeless", "relative", "whole")
    }
    assert levels == {"gone": "FAIL", "homeless": "FAIL", "relative": "warn", "whole": "ok"}
    assert found["server elsewhere"][0] == "FAIL"


async def test_variable_of_the_servers_file_is_looked_for(
    good: dict[str, Any], servers: Path
) -> None:
    declare(servers, tools={"command": "sh", "env": {"TOKEN": "${A_TOKEN}"}})
    without = await gw("doctor", "--json", **good)
    with_it = await gw("doctor", "--json", obj={"A_TOKEN": "x", "PATH": "/bin:/usr/bin"}, **good)
    assert "A_TOKEN is not set" in without.out
    assert (without.code, with_it.code) == (1, 0)


async def test_server_that_cannot_run_here_is_a_failure(
    good: dict[str, Any], servers: Path
) -> None:
    declare(servers, tools={"process_type": "mcp-tools", "app": "my-app"})
    found = await examined(good)
    assert found["servers file"][0] == "FAIL"
    assert "process_type" in found["servers file"][1]


def test_few_open_files_are_warned_of() -> None:
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    settings = Settings.model_validate({"api_key": KEY, "max_sessions": 10_000})
    needed = here.FILES_PER_SESSION * 10_000 + here.FILES_BESIDE
    enough = most == resource.RLIM_INFINITY or most >= needed
    assert here.open_files(settings).level == ("ok" if enough else "warn")
    few = Settings.model_validate({"api_key": KEY, "max_sessions": 1})
    assert here.open_files(few).level == "ok"


# The port and the public URL


@contextmanager
def taken() -> Iterator[int]:
    """A port on which somebody hangs up at once."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port: int = listening.getsockname()[1]
        yield port


@asynccontextmanager
async def answering(health: Any, date: str | None = None) -> AsyncIterator[str]:
    """Something that has a /health; the URL of it."""

    async def answer(_request: web.Request) -> web.Response:
        headers = {} if date is None else {"Date": date}
        body = health if isinstance(health, str) else json.dumps(health)
        return web.Response(text=body, headers=headers)

    app = web.Application()
    app.router.add_get("/health", answer)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


def healthy(**more: Any) -> dict[str, Any]:
    return {"status": "ok", "gateway": "g1", "version": "0.1.0", **more}


async def test_port_of_a_gateway_that_runs_is_fine(good: dict[str, Any]) -> None:
    async with answering(healthy()) as url:
        found = await examined({**good, "PORT": url.rpartition(":")[2]})
    assert found["port"][0] == "ok"
    assert "g1" in found["port"][1]


@pytest.mark.parametrize("health", ["<html>", "[]", {"status": "ok"}, {"gateway": "g"}], ids=str)
async def test_port_of_something_else_is_a_failure(good: dict[str, Any], health: Any) -> None:
    async with answering(health) as url:
        found = await examined({**good, "PORT": url.rpartition(":")[2]})
    assert found["port"][0] == "FAIL"


async def test_port_of_somebody_who_says_nothing_is_a_failure(
    good: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(far, "ANSWER_S", 0.1)
    with taken() as port:
        found = await examined({**good, "PORT": str(port)})
    assert found["port"][0] == "FAIL"


async def test_public_url_is_a_gateways(good: dict[str, Any]) -> None:
    async with answering(healthy(status=EVIL)) as url:
        found = await examined({**good, "GATEWAY_URL": url})
        assert found["GATEWAY_URL"][0] == "warn"
        assert safe(found["GATEWAY_URL"][1])
    async with answering(healthy()) as url:
        found = await examined({**good, "GATEWAY_URL": url})
        assert found["GATEWAY_URL"][0] == "ok"


async def test_gateway_that_is_not_started_yet_is_told(
    good: dict[str, Any], unused_tcp_port_factory: Any
) -> None:
    here_ = f"http://127.0.0.1:{unused_tcp_port_factory()}"
    assert (await examined({**good, "GATEWAY_URL": here_}))["GATEWAY_URL"][0] == "warn"


async def test_public_url_elsewhere_that_nobody_answers_is_a_failure(
    good: dict[str, Any],
) -> None:
    away = "http://gateway.invalid"
    assert (await examined({**good, "GATEWAY_URL": away}))["GATEWAY_URL"][0] == "FAIL"


@pytest.mark.parametrize(("apart", "level"), [(0, "ok"), (29, "ok"), (-31, "FAIL"), (3600, "FAIL")])
def test_clock_that_is_off_is_a_failure(apart: float, level: str) -> None:
    finding = far.clock(formatdate(NOW - apart, usegmt=True), "the platform", NOW)
    assert finding.level == level
    if level == "FAIL":
        assert ("ahead of" if apart > 0 else "behind") in finding.said


async def test_clock_is_compared_with_the_gateways(good: dict[str, Any]) -> None:
    async with answering(healthy(), formatdate(NOW, usegmt=True)) as url:
        found = await examined({**good, "GATEWAY_URL": url})
    assert found["clock"][0] == "FAIL"


@pytest.mark.parametrize("date", ["", "yesterday", "Mon, 99 Foo 2026 25:00:00 GMT"])
def test_clock_without_another_is_not_judged(date: str) -> None:
    assert far.clock(date, "the gateway", NOW).level == "ok"


# Valkey


MODEL_KEY = "key-of-the-model"


@asynccontextmanager
async def a_model(status: int = 200) -> AsyncIterator[str]:
    async def models(request: web.Request) -> web.Response:
        known = request.headers.get("Authorization") == f"Bearer {MODEL_KEY}"
        return web.Response(status=status if known else 401)

    app = web.Application()
    app.router.add_get("/v1/models", models)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


@pytest.mark.parametrize("status", [200, 404])
async def test_model_that_answers_is_fine(good: dict[str, Any], status: int) -> None:
    """Not every one can list its models."""
    async with a_model(status) as url:
        found = await examined({**good, "INFERENCE_URL": url, "INFERENCE_KEY": MODEL_KEY})
    assert found["INFERENCE_URL"][:2] == ("ok", f"{url}/v1 answers; model any that a request names")


async def test_model_that_refuses_the_key_is_a_failure(good: dict[str, Any]) -> None:
    async with a_model() as url:
        found = await examined({**good, "INFERENCE_URL": url, "INFERENCE_KEY": "wrong"})
    assert found["INFERENCE_URL"][0] == "FAIL"
    assert "INFERENCE_KEY" in found["INFERENCE_URL"][2]


async def test_model_that_is_out_of_order_is_warned_of(good: dict[str, Any]) -> None:
    async with a_model(503) as url:
        found = await examined({**good, "INFERENCE_URL": url, "INFERENCE_KEY": MODEL_KEY})
    assert found["INFERENCE_URL"][0] == "warn"


async def test_model_that_is_not_there_is_a_failure(
    good: dict[str, Any], unused_tcp_port: int
) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port + 1}"
    found = await examined({**good, "INFERENCE_URL": url, "INFERENCE_KEY": MODEL_KEY})
    assert found["INFERENCE_URL"][0] == "FAIL"
    assert MODEL_KEY not in str(found)


async def test_variables_of_the_templates_are_named(good: dict[str, Any]) -> None:
    given = {"STDIO_MODE_ONLY": "true", "WEB_CONCURRENCY": ""}
    said = await gw("doctor", "--json", obj=given, **good)
    levels = {each["check"]: each["level"] for each in said.json["checks"]}
    assert levels["STDIO_MODE_ONLY"] == "warn"
    assert "WEB_CONCURRENCY" not in levels


async def test_valkey_that_answers_is_described(good: dict[str, Any]) -> None:
    with ValkeyServer() as valkey:
        found = await examined({**good, "REDIS_URL": valkey.url})
    assert found["valkey"][0] == "ok"
    assert found["valkey version"][:2][0] == "ok"
    assert found["valkey version"][1].startswith("Valkey ")
    assert found["valkey memory"][0] == "ok"
    assert "valkey TLS" not in found


async def test_valkey_that_forgets_is_warned_of(good: dict[str, Any]) -> None:
    with ValkeyServer(maxmemory="100mb", maxmemory_policy="allkeys-lru") as valkey:
        found = await examined({**good, "REDIS_URL": valkey.url})
    assert found["valkey memory"][0] == "warn"
    assert "noeviction" in found["valkey memory"][2]


async def test_valkey_that_lets_nobody_in_is_a_failure_without_the_password(
    good: dict[str, Any],
) -> None:
    with ValkeyServer(requirepass="right") as valkey:
        for url in (valkey.url, valkey.url.replace("//", "//:wrong-password@")):
            found = await examined({**good, "REDIS_URL": url})
            assert found["valkey"][0] == "FAIL"
            assert "user and password" in found["valkey"][2]
            assert "wrong-password" not in repr(found)


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
async def test_valkey_that_is_not_there_is_a_failure(
    good: dict[str, Any], scheme: str, unused_tcp_port_factory: Any
) -> None:
    url = f"{scheme}://:the-password@127.0.0.1:{unused_tcp_port_factory()}/0"
    found = await examined({**good, "REDIS_URL": url})
    assert found["valkey"][0] == "FAIL"
    assert "the-password" not in repr(found)


@pytest.mark.parametrize("url", ["http://x", "nonsense", "redis://x:port"])
async def test_what_is_no_url_of_valkey_stops_no_other_check(
    good: dict[str, Any], url: str
) -> None:
    found = await examined({**good, "REDIS_URL": url})
    assert "FAIL" in {found["settings"][0], found["valkey"][0]}
    assert found["clock"][0] == "ok"


# Heroku


@asynccontextmanager
async def heroku(
    good: dict[str, Any], options: Options | None = None, **apps: AppSpec
) -> AsyncIterator[dict[str, Any]]:
    """A platform, and the settings of a gateway on it."""
    async with Emulator(apps, options) as emulator:
        yield {
            **good,
            "HEROKU_API_KEY": emulator.api_key,
            "HEROKU_API_URL": emulator.url,
            "HEROKU_APPS": ",".join(apps),
            "GATEWAY_URL": "http://127.0.0.1:9",
        }


TOOLS = AppSpec(processes={"mcp-tools": ProcessSpec("run", size="standard-1x")})


async def test_app_with_servers_is_fine(good: dict[str, Any]) -> None:
    async with heroku(good, tools=TOOLS) as settings:
        found = await examined(settings)
    assert found["heroku key"][0] == "ok"
    assert "requests are left" in found["heroku key"][1]
    assert found["app tools"][:2] == ("ok", "servers mcp-tools")
    assert found["app tools apart"][0] == "ok"
    assert found["clock"][:2] == ("ok", "within 30 s of that of the platform")


async def test_key_that_is_refused_is_one_failure(good: dict[str, Any]) -> None:
    async with heroku(good, tools=TOOLS) as settings:
        found = await examined({**settings, "HEROKU_API_KEY": "HRKU-another-key-of-nobody"})
    assert found["heroku key"][0] == "FAIL"
    assert "heroku authorizations:create" in found["heroku key"][2]
    assert "app tools" not in found
    assert found["clock"][0] == "ok"


async def test_each_app_is_looked_at(good: dict[str, Any]) -> None:
    async with heroku(good, tools=TOOLS, plain=AppSpec(processes={"web": "run"})) as settings:
        found = await examined({**settings, "HEROKU_APPS": "plain,nowhere,tools"})
    levels = {name: found[f"app {name}"][0] for name in ("plain", "nowhere", "tools")}
    assert levels == {"plain": "warn", "nowhere": "FAIL", "tools": "ok"}
    assert "Procfile" in found["app plain"][2]


@pytest.mark.parametrize(("allowed", "level"), [("", "FAIL"), ("1", "warn")])
async def test_app_that_holds_the_gateways_secrets_is_its_own(
    good: dict[str, Any], allowed: str, level: str
) -> None:
    app = AppSpec(processes={"mcp-a": "run"}, config={"COPIED": SECRET, "PLAIN": "x"})
    async with heroku(good, own=app) as settings:
        found = await examined({**settings, "ALLOW_OWN_APP": allowed})
    assert found["app own apart"][0] == level
    assert "COPIED" in found["app own apart"][1]


async def test_app_of_the_gateways_own_name_is_its_own(good: dict[str, Any]) -> None:
    async with heroku(good, tools=TOOLS) as settings:
        found = await examined({**settings, "HEROKU_APP_NAME": "tools"})
    assert found["app tools apart"][0] == "FAIL"


async def test_size_that_the_platform_does_not_have_is_a_failure(good: dict[str, Any]) -> None:
    async with heroku(good, tools=TOOLS) as settings:
        found = await examined({**settings, "DYNO_SIZE": "huge"})
        assert found["DYNO_SIZE"][0] == "FAIL"
        found = await examined({**settings, "DYNO_SIZE": "Standard-2X"})
        assert "DYNO_SIZE" not in found


async def test_platform_that_is_not_there_is_a_failure(
    good: dict[str, Any], unused_tcp_port_factory: Any
) -> None:
    async with heroku(good, tools=TOOLS) as settings:
        away = f"http://127.0.0.1:{unused_tcp_port_factory()}"
        found = await examined({**settings, "HEROKU_API_URL": away})
    assert found["heroku key"][0] == "FAIL"


@pytest.mark.parametrize("key", ["", "kéy", "a\tb"])
async def test_key_that_cannot_be_one_is_told_before_it_is_sent(
    good: dict[str, Any], key: str
) -> None:
    async with heroku(good, tools=TOOLS) as settings:
        said = await gw(
            "doctor", "--json", **{**settings, "HEROKU_API_KEY": key, "LAUNCHER": "heroku"}
        )
    failed = {each["check"] for each in said.json["checks"] if each["level"] == "FAIL"}
    assert "heroku key" in failed


async def test_faults_are_in_colour_on_a_terminal(folder: Path, good: dict[str, Any]) -> None:
    code, shown = await on_terminal(
        "doctor", cwd=folder, **{**good, "API_KEY": "short", "GATEWAY_SECRET": "short"}
    )
    assert code == 1
    assert "\x1b[33mwarn" in shown
    assert "\x1b[1;31mFAIL" in shown


@pytest.mark.parametrize(
    ("url", "verified", "levels"),
    [
        ("rediss://engine.test", False, ["ok"]),
        ("rediss://engine.test", True, ["ok"]),
        ("redis://engine.test", False, ["warn"]),
        ("redis://127.0.0.1", False, []),
        ("unix:///run/engine", False, []),
    ],
)
def test_password_in_clear_over_a_network_is_warned_of(
    url: str, verified: bool, levels: list[str]
) -> None:
    settings = Settings.model_validate({"api_key": KEY, "redis_tls_verify": verified})
    findings = list(engine._tls(url, settings))
    assert [finding.level for finding in findings] == levels
    assert all(("not checked" not in each.said) is verified for each in findings if not each.fix)


@pytest.mark.parametrize(
    ("info", "level"),
    [
        ({"redis_version": "6.2.7"}, "FAIL"),
        ({"redis_version": "7.0.0"}, "ok"),
        ({"redis_version": "7.2.4", "valkey_version": "9.0.1"}, "ok"),
        ({}, "FAIL"),
        ({"redis_version": "\x1b[31m"}, "FAIL"),
    ],
    ids=str,
)
def test_engine_that_is_too_old_is_a_failure(info: dict[str, Any], level: str) -> None:
    assert engine._version(info).level == level


def test_engine_that_is_far_away_is_warned_of() -> None:
    assert [engine._speed(ms).level for ms in (0.3, 20.0, 20.1)] == ["ok", "ok", "warn"]


async def test_few_requests_that_are_left_are_warned_of(good: dict[str, Any]) -> None:
    async with heroku(good, Options(rate_limit=100, rate_refill=0.0), tools=TOOLS) as settings:
        found = await examined(settings)
    assert found["heroku key"][0] == "warn"


async def test_sizes_are_compared_in_any_case(good: dict[str, Any]) -> None:
    odd = AppSpec(processes={"mcp-odd": ProcessSpec("run", size="basic")})
    async with heroku(good, odd=odd) as settings:
        doctor = platform.Doctor(
            Settings.model_validate({name.lower(): value for name, value in settings.items()})
        )
        await doctor.look()
        assert not doctor._strange("Basic")
        assert doctor._strange("enormous")


async def test_heroku_without_apps_is_a_failure(good: dict[str, Any]) -> None:
    async with heroku(good) as settings:
        said = await gw("doctor", "--json", **settings)
    failed = {each["check"] for each in said.json["checks"] if each["level"] == "FAIL"}
    assert failed >= {"heroku apps"}
