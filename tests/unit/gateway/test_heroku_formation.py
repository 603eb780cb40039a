"""Proves what servers are found in apps, and that an app's news are subscribed to once."""

from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import UUID

import pytest

from gateway.launchers.heroku.api import Bounds
from gateway.launchers.heroku.formation import HerokuFormation, Process, Survey
from gateway.launchers.heroku.platform import Patience, Platform
from gateway.launchers.heroku.subscription import subscribe
from tests.fakes.scripted_platform import Answer, FakePlatform, serving
from tests.heroku_emulator import AppSpec, Emulator, ProcessSpec

PATIENCE = Patience(
    bounds=Bounds(connect_s=10.0, read_s=10.0, answer_s=10.0), repeat_s=5.0, pause_s=0.001
)
URL = "https://gateway.example/hooks/heroku?key=1"
INCLUDE = ["dyno", "api:release", "api:formation"]


@pytest.fixture
async def heroku() -> AsyncIterator[Emulator]:
    servers: dict[str, str | ProcessSpec] = {
        "web": ProcessSpec("serve", quantity=0),
        "mcp-python": "python -m server",
        "mcp": ProcessSpec("bin/mcp", size="standard-1x"),
        "my-mcp": "no",
    }
    apps = {"tools": AppSpec(processes=servers), "empty": AppSpec(processes={"web": "x"})}
    async with Emulator(apps) as heroku:
        yield heroku
        assert heroku.violations == []


@pytest.fixture
async def platform(heroku: Emulator) -> AsyncIterator[Platform]:
    platform = Platform(heroku.api_key, heroku.url, PATIENCE)
    yield platform
    await platform.aclose()


async def test_process_types_named_mcp_are_found_with_their_release(
    heroku: Emulator, platform: Platform
) -> None:
    survey = await HerokuFormation(platform, ("tools", "empty")).processes()
    version, app_id = survey.processes[0].release, survey.processes[0].app_id
    assert survey == Survey(
        (
            Process("tools", "mcp", "bin/mcp", "standard-1x", version, app_id),
            Process("tools", "mcp-python", "python -m server", "basic", version, app_id),
        ),
        {},
    )
    assert version.startswith("v")
    assert str(UUID(app_id)) == app_id


async def test_a_new_release_shows(heroku: Emulator, platform: Platform) -> None:
    formation = HerokuFormation(platform, ("tools",))
    before = await formation.processes()
    heroku.deploy("tools", processes={"mcp-ruby": "ruby server"})
    after = await formation.processes()
    assert [process.process_type for process in after.processes] == ["mcp-ruby"]
    assert after.processes[0].release != before.processes[0].release


async def test_an_app_that_cannot_be_asked_is_told_and_hides_no_other(
    heroku: Emulator, platform: Platform
) -> None:
    survey = await HerokuFormation(platform, ("gone", "tools")).processes()
    assert {process.app for process in survey.processes} == {"tools"}
    assert list(survey.failed) == ["gone"]
    assert "no such thing" in survey.failed["gone"]


async def test_a_formation_that_fails_is_not_taken_for_an_empty_one(
    heroku: Emulator, platform: Platform
) -> None:
    heroku.faults.push("formation", "403")
    survey = await HerokuFormation(platform, ("tools",)).processes()
    assert (survey.processes, list(survey.failed)) == ((), ["tools"])


@pytest.fixture
def scripted() -> Iterator[FakePlatform]:
    with serving(FakePlatform()) as scripted:
        yield scripted


async def test_an_app_without_a_release_has_none_and_a_size_may_be_unknown(
    scripted: FakePlatform,
) -> None:
    platform = Platform("key", scripted.url, PATIENCE)
    scripted.answers(Answer([]), Answer([{"type": "mcp-x", "command": "x", "size": None}]))
    survey = await HerokuFormation(platform, ("tools",)).processes()
    assert survey.processes == (Process("tools", "mcp-x", "x", None, ""),)
    await platform.aclose()


async def hooks(platform: Platform) -> list[tuple[str, list[str], str]]:
    found = await platform.webhooks("tools")
    return [(webhook.url, sorted(webhook.include), webhook.level) for webhook in found]


async def test_a_subscription_is_made_once(heroku: Emulator, platform: Platform) -> None:
    for _ in range(2):
        assert await subscribe(platform, "tools", URL, "s3cret") is None
    assert await hooks(platform) == [(URL, sorted(INCLUDE), "notify")]
    made: list[Any] = [seen.body for seen in heroku.requests if seen.operation == "add-webhook"]
    assert [body["secret"] for body in made] == ["s3cret"]


@pytest.mark.parametrize(
    ("url", "include"),
    [(URL, ["dyno"]), (URL.replace("key=1", "key=0"), INCLUDE)],
    ids=["of too little", "with another secret"],
)
async def test_an_outdated_subscription_of_ours_is_replaced(
    heroku: Emulator, platform: Platform, url: str, include: list[str]
) -> None:
    await platform.create_webhook("tools", url, "0ld", include)
    assert await subscribe(platform, "tools", URL, "s3cret") is None
    assert await hooks(platform) == [(URL, sorted(INCLUDE), "notify")]


async def test_a_subscription_of_somebody_else_stays(heroku: Emulator, platform: Platform) -> None:
    await platform.create_webhook("tools", "https://other.example/hooks/heroku", "x", ["dyno"])
    await subscribe(platform, "tools", URL, "s3cret")
    found = {url for url, *_ in await hooks(platform)}
    assert found == {"https://other.example/hooks/heroku", URL}


async def test_two_subscriptions_of_ours_become_one(heroku: Emulator, platform: Platform) -> None:
    for _ in range(2):
        await platform.create_webhook("tools", URL, "s3cret", INCLUDE)
    await subscribe(platform, "tools", URL, "s3cret")
    assert len(await hooks(platform)) == 1


async def test_no_subscription_is_a_sentence_with_the_next_step_and_without_the_secret(
    heroku: Emulator, platform: Platform
) -> None:
    heroku.faults.push("add-webhook", "403")
    told = await subscribe(platform, "tools", URL, "s3cret")
    assert told is not None
    assert told.startswith("no events of tools: the platform does not let the gateway's key")
    assert "HEROKU_API_KEY may not do this" in told
    assert "s3cret" not in told
