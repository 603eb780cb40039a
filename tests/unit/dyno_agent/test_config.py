"""The agent's settings are read once, leave the environment, and an error names its variable."""

import pytest

from dyno_agent.config import Config, ConfigError, take_config

URL, TOKEN, DEADLINE = (
    "RENDEZVOUS_URL",
    "RENDEZVOUS_JOIN_TOKEN",
    "RENDEZVOUS_START_DEADLINE_S",
)
HIDE = "RENDEZVOUS_HIDE"
GOOD = {URL: "https://gw.example.com", TOKEN: "rj_launch.secret"}
WRONG: dict[str, list[str]] = {
    URL: [
        "",
        "gw.example.com",
        "ftp://gw.example.com",
        "wss://gw.example.com",
        "https://",
        "https:///agent",
        "https://[::1",
        "http://gw.example.com",
        "http://10.0.0.1",
        "http://localhost.example.com",
        "http://127.0.0.1.example.com",
        "http://127.0.0.1@gw.example.com",
    ],
    TOKEN: ["", "launch.secret", "rj_launch", "rr_launch.secret"],
    DEADLINE: ["", "soon", "1 minute", "nan"],
}


def test_configuration_is_what_the_environment_says() -> None:
    environment = {**GOOD, DEADLINE: "7.5", "DYNO": "run.4711"}
    assert take_config(environment) == Config(
        "https://gw.example.com", "rj_launch.secret", 7.5, "run.4711"
    )


def test_start_deadline_and_dyno_may_be_left_out() -> None:
    assert take_config(dict(GOOD)) == Config(
        "https://gw.example.com", "rj_launch.secret", 120.0, ""
    )


def test_launch_id_is_the_public_half_of_the_token() -> None:
    assert take_config({**GOOD, TOKEN: "rj_launch.sec.ret"}).launch_id == "launch"


def test_slashes_at_the_end_of_the_url_are_left_out() -> None:
    assert take_config({**GOOD, URL: "https://gw.example.com/base//"}).url.endswith("/base")


def test_every_variable_of_ours_leaves_the_environment_and_no_other_does() -> None:
    rest = {"PATH": "/bin", "DYNO": "run.4711", "MY_RENDEZVOUS_URL": "kept"}
    environment = {**GOOD, DEADLINE: "9", "RENDEZVOUS_LATER": "x", **rest}
    take_config(environment)
    assert environment == rest


def test_variables_to_be_hidden_leave_the_environment() -> None:
    environment = {**GOOD, HIDE: "API_KEY, GATEWAY_SECRET ,NEVER_SET", "PATH": "/bin"}
    environment.update({"API_KEY": "", "GATEWAY_SECRET": "x", "API_KEY_ID": "kept"})
    take_config(environment)
    assert environment == {"PATH": "/bin", "API_KEY_ID": "kept"}


@pytest.mark.parametrize("names", ["", ",", "JOIN_TOKEN"])
def test_names_that_stand_for_nothing_hide_nothing(names: str) -> None:
    environment = {**GOOD, HIDE: names, "PATH": "/bin"}
    assert take_config(environment).join_token == GOOD[TOKEN]
    assert environment == {"PATH": "/bin"}


def test_variables_are_hidden_even_when_one_of_ours_is_wrong() -> None:
    environment = {URL: "", HIDE: "API_KEY", "API_KEY": "x", "PATH": "/bin"}
    with pytest.raises(ConfigError):
        take_config(environment)
    assert environment == {"PATH": "/bin"}


def test_variables_leave_the_environment_even_when_one_is_wrong() -> None:
    environment = {**GOOD, URL: "ftp://gw.example.com", "PATH": "/bin"}
    with pytest.raises(ConfigError):
        take_config(environment)
    assert environment == {"PATH": "/bin"}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values]
)
def test_error_names_the_variable_that_is_wrong(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as error:
        take_config({**GOOD, name: value})
    assert [each for each in (URL, TOKEN, DEADLINE) if each in str(error.value)] == [name]


@pytest.mark.parametrize("name", [URL, TOKEN])
def test_error_names_the_variable_that_is_missing(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        take_config({key: value for key, value in GOOD.items() if key != name})


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST"])
def test_plain_http_is_taken_on_this_machine(host: str) -> None:
    assert take_config({**GOOD, URL: f"http://{host}:8000"}).url == f"http://{host}:8000"


@pytest.mark.parametrize("token", ["rj_launch.secret", "launch.secret"])
def test_neither_repr_nor_error_shows_the_secret(token: str) -> None:
    try:
        shown = repr(take_config({**GOOD, TOKEN: token}))
    except ConfigError as error:
        shown = str(error)
    assert "secret" not in shown.replace("the secret", "")
