"""Proves each variable of the environment: its default, what it takes, what it refuses.

A wrong value is told by the variable's name and never shown.
"""

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import HttpUrl

from gateway.settings import MIN_SECRET, BadSettings, Settings, load

EVERYWHERE = "0.0.0.0"  # noqa: S104 - a value to be read
KEY, SECRET = "hush-a-key", "hush-" + "s" * MIN_SECRET


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower() in Settings.model_fields:
            monkeypatch.delenv(name)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Any:
    def reading(**environment: str) -> Settings:
        for name, value in {"API_KEY": KEY, **environment}.items():
            monkeypatch.setenv(name, value)
        return load()

    return reading


def complaint(read: Any, **environment: str) -> str:
    with pytest.raises(BadSettings) as caught:
        read(**environment)
    return str(caught.value)


DEFAULTS = {
    "port": 8000,
    "bind_host": "",
    "dyno": "",
    "allow_anonymous": False,
    "gateway_servers": None,
    "gateway_url": None,
    "gateway_secret": None,
    "launcher": None,
    "heroku_api_key": None,
    "heroku_apps": (),
    "heroku_api_url": HttpUrl("https://api.heroku.com"),
    "heroku_app_name": "",
    "heroku_app_id": "",
    "heroku_refresh_s": 60.0,
    "heroku_webhooks": True,
    "allow_own_app": False,
    "dyno_size": None,
    "monthly_budget_usd": None,
    "key_budgets_usd": {},
    "warm_usd_per_hour": 1.0,
    "warm_usd_per_month": 50.0,
    "queue_length": 20,
    "queue_timeout_s": 120.0,
    "redis_url": None,
    "redis_tls_verify": False,
    "allowed_origins": (),
    "toolkit_separator": "/",
    "inference_url": None,
    "inference_key": None,
    "inference_model_id": "",
    "link_grace_s": 300.0,
    "story_bytes": 262_144,
    "stories_bytes": 16_777_216,
    "story_ttl_s": 86_400.0,
    "max_sessions": 100,
    "max_sessions_per_key": None,
    "opens_per_minute": None,
    "log_level": "info",
    "log_format": "auto",
}


def test_every_variable_has_the_documented_default(read: Any) -> None:
    assert read().model_dump(exclude={"api_key", "admin_key"}) == DEFAULTS


def test_empty_variables_count_as_not_set(read: Any) -> None:
    empty = {name.upper(): "" for name in DEFAULTS}
    assert read(**empty).model_dump(exclude={"api_key", "admin_key"}) == DEFAULTS


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("PORT", "1", 1),
        ("PORT", "65535", 65535),
        ("MAX_SESSIONS", "10000", 10_000),
        ("LINK_GRACE_S", "1", 1.0),
        ("STORY_BYTES", "4096", 4096),
        ("STORIES_BYTES", "65536", 65_536),
        ("STORY_TTL_S", "60", 60.0),
        ("LINK_GRACE_S", "86400", 86_400.0),
        ("GATEWAY_SERVERS", "/etc/s.json", Path("/etc/s.json")),
        ("LOG_LEVEL", "DEBUG", "debug"),
        ("LOG_FORMAT", "json", "json"),
        ("LAUNCHER", "Local", "local"),
        ("ALLOWED_ORIGINS", " a.com, ,b.com,", ("a.com", "b.com")),
        ("ALLOW_ANONYMOUS", "1", True),
        ("TOOLKIT_SEPARATOR", "__", "__"),
    ],
)
def test_good_value_is_taken(read: Any, name: str, text: str, value: object) -> None:
    assert getattr(read(**{name: text}), name.lower()) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("PORT", "0"),
        ("PORT", "65536"),
        ("PORT", "hush"),
        ("MAX_SESSIONS", "0"),
        ("MAX_SESSIONS", "10001"),
        ("LINK_GRACE_S", "0.9"),
        ("STORY_BYTES", "4095"),
        ("STORIES_BYTES", "65535"),
        ("STORY_TTL_S", "59"),
        ("LINK_GRACE_S", "86401"),
        ("LINK_GRACE_S", "nan"),
        ("LOG_LEVEL", "hush"),
        ("LOG_FORMAT", "hush"),
        ("LAUNCHER", "hush"),
        ("TOOLKIT_SEPARATOR", "::"),
        ("INFERENCE_URL", "hush"),
        ("ALLOW_ANONYMOUS", "hush"),
        ("GATEWAY_URL", "hush"),
        ("GATEWAY_URL", "ftp://hush"),
        ("GATEWAY_SECRET", "hush"),
        ("API_KEY", "hush:"),
    ],
)
def test_bad_value_names_the_variable_and_is_not_shown(read: Any, name: str, text: str) -> None:
    said = complaint(read, **{name: text})
    assert name in said
    assert "hush" not in said


def test_every_wrong_variable_is_named_at_once(read: Any) -> None:
    lines = complaint(read, PORT="x", LOG_LEVEL="y").splitlines()
    assert sorted(line.partition(":")[0] for line in lines) == ["LOG_LEVEL", "PORT"]


def test_repr_shows_no_secret(read: Any) -> None:
    settings = read(GATEWAY_SECRET=SECRET, REDIS_URL="redis://:hush@h")
    assert "hush" not in repr(settings) + str(settings)


# Keys


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("k", {"k": "default"}),
        ("k,l", {"k,l": "default"}),
        ("a:k", {"k": "a"}),
        ("a:k,b:l", {"k": "a", "l": "b"}),
        (" a : k , a : l ", {"k": "a", "l": "a"}),
        ("a:k:l", {"k:l": "a"}),
    ],
)
def test_keys_are_read_with_their_principals(read: Any, text: str, keys: dict[str, str]) -> None:
    assert read(API_KEY=text).keys() == keys


@pytest.mark.parametrize("text", [":", "a:", ":hush", "a:hush,", "a:hush,b", "a:hush,b:hush"])
def test_bad_list_of_keys_is_refused_and_not_shown(read: Any, text: str) -> None:
    said = complaint(read, API_KEY=text)
    assert "API_KEY" in said
    assert "hush" not in said


@pytest.mark.parametrize("text", [" k ", "k\n"])
def test_white_space_around_a_single_key_does_not_count(read: Any, text: str) -> None:
    """As with several keys; a header cannot carry it."""
    assert read(API_KEY=text).keys() == {"k": "default"}


def test_gateway_without_a_key_does_not_start(read: Any) -> None:
    assert "API_KEY" in complaint(read, API_KEY="")


@pytest.mark.parametrize("host", ["", "localhost", "127.0.0.1", "::1"])
def test_anonymous_clients_are_taken_on_loopback(read: Any, host: str) -> None:
    assert read(API_KEY="", ALLOW_ANONYMOUS="1", BIND_HOST=host).keys() == {}


@pytest.mark.parametrize(
    "where", [{"BIND_HOST": EVERYWHERE}, {"BIND_HOST": "10.0.0.1"}, {"DYNO": "web.1"}]
)
def test_anonymous_clients_are_refused_elsewhere(read: Any, where: dict[str, str]) -> None:
    said = complaint(read, API_KEY="", ALLOW_ANONYMOUS="1", **where)
    assert "ALLOW_ANONYMOUS" in said


# Secret and launcher


@pytest.mark.parametrize(("length", "good"), [(MIN_SECRET - 1, False), (MIN_SECRET, True)])
def test_secret_must_be_long_enough(read: Any, length: int, good: bool) -> None:
    if good:
        assert read(GATEWAY_SECRET="s" * length).gateway_secret.get_secret_value() == "s" * length
    else:
        assert "GATEWAY_SECRET" in complaint(read, GATEWAY_SECRET="s" * length)


@pytest.mark.parametrize("asked", [{"LAUNCHER": "heroku"}, {"HEROKU_API_KEY": "hush"}])
def test_launcher_that_is_not_local_needs_a_secret(read: Any, asked: dict[str, str]) -> None:
    said = complaint(read, **asked)
    assert "GATEWAY_SECRET" in said
    assert "hush" not in said


def test_launcher_that_was_named_counts_before_the_platform_key(read: Any) -> None:
    assert read(LAUNCHER="local", HEROKU_API_KEY="hush").launcher_name == "local"


# Addresses


@pytest.mark.parametrize(
    ("environment", "address", "base_url"),
    [
        ({}, "127.0.0.1", "http://127.0.0.1:8000"),
        ({"DYNO": "web.1"}, EVERYWHERE, "http://127.0.0.1:8000"),
        ({"DYNO": "web.1", "BIND_HOST": "10.0.0.1"}, "10.0.0.1", "http://10.0.0.1:8000"),
        ({"BIND_HOST": "::1", "PORT": "9"}, "::1", "http://[::1]:9"),
        ({"GATEWAY_URL": "https://gw.com/"}, "127.0.0.1", "https://gw.com"),
        ({"GATEWAY_URL": "https://gw.com/base/"}, "127.0.0.1", "https://gw.com/base"),
    ],
)
def test_address_and_base_url_follow_from_the_environment(
    read: Any, environment: dict[str, str], address: str, base_url: str
) -> None:
    settings = read(**environment)
    assert (settings.address, settings.base_url) == (address, base_url)


@pytest.mark.parametrize(
    ("environment", "hosts"),
    [
        ({}, {"localhost", "127.0.0.1", "::1"}),
        ({"DYNO": "web.1"}, set()),
        ({"DYNO": "web.1", "GATEWAY_URL": "https://gw.com:8443"}, {"gw.com"}),
        ({"DYNO": "web.1", "GATEWAY_URL": "http://[::2]:1"}, {"::2"}),
        ({"BIND_HOST": "10.0.0.1", "ALLOWED_ORIGINS": "a.com,b.com"}, {"a.com", "b.com"}),
        ({"DYNO": "web.1", "ALLOWED_ORIGINS": "App.Example.com"}, {"app.example.com"}),
    ],
)
def test_allowed_hosts_are_the_names_that_the_gateway_goes_by(
    read: Any, environment: dict[str, str], hosts: set[str]
) -> None:
    """In lower case: that is how a request's host is compared."""
    assert read(**environment).allowed_hosts == hosts


def test_environment_counts_before_the_file(tmp_path: Path, read: Any) -> None:
    file = tmp_path / ".env"
    file.write_text("API_KEY=from-file\nPORT=9\n", encoding="utf-8")
    read()
    settings = load(file)
    assert (settings.keys(), settings.port) == ({KEY: "default"}, 9)


@pytest.mark.parametrize(
    "url",
    [
        "https://model.test",
        "https://model.test/",
        "https://model.test/v1",
        "https://model.test/v1/",
    ],
)
def test_base_of_the_model_is_the_same_with_and_without_its_version(read: Any, url: str) -> None:
    assert read(INFERENCE_URL=url).inference_base == "https://model.test/v1"


def test_without_a_model_there_is_no_base_of_one(read: Any) -> None:
    assert read().inference_base is None
