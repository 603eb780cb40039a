"""Proves how platforms differ: names of a deployment, tags, and the line that operators paste."""

from __future__ import annotations

import hashlib
import shlex

import pytest

from gateway import deployment
from gateway.registry.servers import ServerDefinition
from gateway.rendezvous.archive import Archive
from gateway.settings import Settings

SECRET, OTHER = b"s" * 32, b"t" * 32
LAUNCH = "0123456789abcdef01234567"
ARCHIVE = Archive(b"", hashlib.sha256(b"").hexdigest())
AGENT = {
    "RENDEZVOUS_URL": "https://gw.example.com",
    "RENDEZVOUS_JOIN_TOKEN": f"rj_{LAUNCH}.a-secret",
    "RENDEZVOUS_START_DEADLINE_S": "905.0",
}


def settings(**more: object) -> Settings:
    usual = {
        "api_key": "k" * 40,
        "heroku_api_key": "HRKU-secret",
        "heroku_apps": "one,two",
        "gateway_url": "https://gw.example.com/",
        "gateway_secret": SECRET.decode(),
    }
    return Settings.model_validate({**usual, **more})


async def heroku(**more: object) -> deployment.Deployment:
    return deployment.heroku(settings(**more), "HRKU-secret", SECRET, ARCHIVE)


def server(**more: object) -> ServerDefinition:
    return ServerDefinition(name="x", command="y", **more)  # type: ignore[arg-type]


def local() -> deployment.Deployment:
    return deployment.local({}, SECRET, ARCHIVE)


def test_realm_is_public_and_the_same_for_the_same_secret() -> None:
    realm = deployment.realm_of(SECRET)
    assert len(realm) == 12
    assert int(realm, 16) >= 0
    assert realm == deployment.realm_of(SECRET)
    assert realm != deployment.realm_of(OTHER)
    assert SECRET.hex()[:12] != realm


@pytest.mark.parametrize(
    "command",
    [
        "",
        f"--launch {deployment.realm_of(SECRET)}.{LAUNCH}",
        f"run --launch {deployment.realm_of(OTHER)}.{LAUNCH}",
        f"run --launch {deployment.realm_of(SECRET)}{LAUNCH}",
        f"run --launch {deployment.realm_of(SECRET)}.{LAUNCH} and more",
        f"run --launch {deployment.realm_of(SECRET)}.{LAUNCH.upper()}",
        f"run --launch {deployment.realm_of(SECRET)}.",
        f"run --launch x{deployment.realm_of(SECRET)}.{LAUNCH}",
    ],
)
def test_command_of_another_deployment_names_no_launch(command: str) -> None:
    assert local().launch_of(command) is None


def test_command_of_this_deployment_names_its_launch() -> None:
    made = local()
    assert made.launch_of(f"sh -c x --launch {made.realm}.{LAUNCH}") == LAUNCH


def test_local_line_starts_the_agent_with_its_environment() -> None:
    words = shlex.split(local().run_line(server(), LAUNCH, AGENT))
    assert words[:3] == [f"{name}={value}" for name, value in AGENT.items()]
    assert words[4:6] == ["-m", "dyno_agent"]
    assert words[-1] == f"{deployment.realm_of(SECRET)}.{LAUNCH}"


def test_local_platform_discovers_nothing_and_has_no_hooks() -> None:
    made = local()
    assert made.formation is None
    assert made.hook_secret == ""


async def test_line_for_heroku_can_be_pasted() -> None:
    made = await heroku()
    words = shlex.split(made.run_line(server(app="two", size="standard-2x"), LAUNCH, AGENT))
    assert words[:4] == ["heroku", "run:detached", "--app", "two"]
    assert words[words.index("--size") + 1] == "standard-2x"
    environment = dict(pair.split("=", 1) for pair in words[words.index("--env") + 1].split(";"))
    assert environment == AGENT
    assert made.launch_of(words[-1]) == LAUNCH
    assert words[-2] == "--"
    await made.aclose()


async def test_what_the_platform_lists_of_a_pasted_line_holds_no_secret() -> None:
    made = await heroku()
    command = shlex.split(made.run_line(server(), LAUNCH, AGENT))[-1]
    assert "a-secret" not in command
    assert "HRKU-secret" not in command
    await made.aclose()


async def test_line_for_heroku_starts_the_agent_as_the_server_says() -> None:
    made = await heroku()
    fetched = shlex.split(made.run_line(server(agent="fetched"), LAUNCH, AGENT))[-1]
    installed = shlex.split(made.run_line(server(agent="installed"), LAUNCH, AGENT))[-1]
    assert ARCHIVE.sha256 in fetched
    assert ARCHIVE.sha256 not in installed
    assert "dyno_agent" in installed
    await made.aclose()


async def test_line_names_the_usual_size_and_app_where_the_server_does_not() -> None:
    for chosen, size in ((None, "basic"), ("eco", "eco")):
        made = await heroku(dyno_size=chosen)
        words = shlex.split(made.run_line(server(), LAUNCH, AGENT))
        assert words[words.index("--size") + 1] == size
        assert words[words.index("--app") + 1] == "one"
        await made.aclose()


async def test_hooks_have_a_secret_of_their_own() -> None:
    made = await heroku()
    assert len(made.hook_secret) == 64
    assert SECRET.decode() not in made.hook_secret
    other = deployment.heroku(settings(), "HRKU-secret", OTHER, ARCHIVE)
    assert other.hook_secret != made.hook_secret
    assert other.realm != made.realm
    for each in (made, other):
        await each.aclose()


async def test_no_hooks_are_asked_for_where_they_are_not_wanted() -> None:
    made = await heroku(heroku_webhooks=False)
    assert list(await made.subscribe()) == []
    await made.aclose()
