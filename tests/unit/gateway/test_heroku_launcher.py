"""Proves that the Heroku launcher makes one dyno a launch, finds it again, and leaves none."""

import asyncio
import dataclasses
import hashlib
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog

from gateway.launchers.base import (
    AtCapacity,
    Dyno,
    LaunchError,
    LaunchOrder,
    LaunchUnsettled,
    PlatformError,
)
from gateway.launchers.heroku.api import Bounds, PlatformApi
from gateway.launchers.heroku.documents import DynoInfo, DynoRequest
from gateway.launchers.heroku.launcher import AgentCommands, HerokuLauncher
from gateway.launchers.heroku.own import OwnApp
from gateway.launchers.heroku.platform import Patience, Platform
from tests.fakes.scripted_platform import RESET, Answer, FakePlatform, serving
from tests.heroku_emulator import AppSpec, Emulator, Options

WAIT_S = 20.0
REALM = "0123456789ab"
WAITS = "exec tail -f /dev/null #"
"""In place of the agent; what is appended is a comment to it."""
COMMANDS = AgentCommands(f"{WAITS} installed", f"{WAITS} fetched")
ENVIRONMENT = {"RENDEZVOUS_JOIN_TOKEN": "rj_a.secret"}
BOUNDS = Bounds(connect_s=10.0, read_s=10.0, answer_s=10.0)
HASTY = Bounds(connect_s=10.0, read_s=0.5, answer_s=10.0)
"""For a platform that says nothing."""

DYNO_ID = "01234567-89ab-cdef-0123-456789abcdef"
MADE = {"id": DYNO_ID, "command": f"x --launch {REALM}.a1", "state": "starting"}
UP = Answer({"id": DYNO_ID, "state": "up"})
GONE = Answer({"id": "not_found", "message": "no"}, 404)


def patience(bounds: Bounds = BOUNDS, gone_s: float = 10.0) -> Patience:
    return Patience(
        bounds=bounds, repeat_s=5.0, pause_s=0.01, look_s=0.01, settle_s=0.2, gone_s=gone_s
    )


def order(launch_id: str = "a1", **changes: Any) -> LaunchOrder:
    given = {"app": "runner", "size": None, "lifetime_s": 60.0, "environment": ENVIRONMENT}
    return LaunchOrder(launch_id=launch_id, server="s", **{**given, **changes})


@asynccontextmanager
async def on(
    url: str,
    key: str = "key",
    *,
    apps: Sequence[str] = ("runner",),
    realm: str = REALM,
    own: OwnApp | None = None,
    patience: Patience | None = None,
) -> AsyncIterator[HerokuLauncher]:
    platform = Platform(key, url, patience or globals()["patience"]())
    launcher = HerokuLauncher(platform, apps, realm, COMMANDS, "basic", own or OwnApp())
    yield launcher
    await launcher.aclose()
    await platform.aclose()


@pytest.fixture
async def heroku() -> AsyncIterator[Emulator]:
    apps = {name: AppSpec(config={"HUSH": "config"}) for name in ("runner", "other")}
    async with Emulator(apps, Options(stop_grace=0.3, hold_s=20.0)) as heroku:
        yield heroku
        assert heroku.violations == []


@pytest.fixture
async def launcher(heroku: Emulator) -> AsyncIterator[HerokuLauncher]:
    async with on(heroku.url, heroku.api_key) as launcher:
        yield launcher


def bodies(heroku: Emulator, operation: str) -> list[Any]:
    return [seen.body for seen in heroku.requests if seen.operation == operation]


def ids(dynos: Sequence[Dyno]) -> list[str]:
    return sorted(dyno.launch_id for dyno in dynos)


# A launch


async def test_a_dyno_is_all_that_was_ordered(heroku: Emulator, launcher: HerokuLauncher) -> None:
    dyno = await launcher.launch(order(size="standard-1x", agent="installed", lifetime_s=60.2))
    assert bodies(heroku, "create") == [
        {
            "command": f"{WAITS} installed --launch {REALM}.a1",
            "env": ENVIRONMENT,
            "size": "standard-1x",
            "type": "rendezvous",
            "time_to_live": 61,
            "attach": False,
        }
    ]
    [made] = heroku.ledger
    assert (dyno.dyno_id, dyno.launch_id) == (f"runner/{made.id}", "a1")
    assert dyno.exit_status is None
    assert made.name.startswith("rendezvous.")


async def test_the_agent_is_fetched_and_the_size_is_the_default_if_nobody_says_otherwise(
    heroku: Emulator, launcher: HerokuLauncher
) -> None:
    await launcher.launch(order())
    [body] = bodies(heroku, "create")
    assert body["command"] == f"{WAITS} fetched --launch {REALM}.a1"
    assert body["size"] == "basic"


@pytest.mark.parametrize(("lifetime_s", "told"), [(1e9, 86_400), (0.2, 1), (59.0, 59)])
async def test_every_dyno_has_a_time_to_live_that_the_platform_takes(
    heroku: Emulator, launcher: HerokuLauncher, lifetime_s: float, told: int
) -> None:
    await launcher.launch(order(lifetime_s=lifetime_s))
    assert bodies(heroku, "create")[0]["time_to_live"] == told


async def test_nothing_of_the_environment_is_in_the_command(
    heroku: Emulator, launcher: HerokuLauncher
) -> None:
    await launcher.launch(order())
    assert "secret" not in heroku.ledger[0].command
    assert "secret" not in repr(order())


@pytest.mark.parametrize("word", ["", "a b", "$(x)", "a;b", "x" * 65, "a.b", "é"])
async def test_what_cannot_be_part_of_a_command_is_refused(
    heroku: Emulator, launcher: HerokuLauncher, word: str
) -> None:
    with pytest.raises(ValueError, match="characters"):
        await launcher.launch(order(word))
    with pytest.raises(ValueError, match="characters"):
        async with on(heroku.url, realm=word):
            pass
    assert heroku.ledger == []


async def test_an_app_that_is_not_configured_gets_no_dyno(
    heroku: Emulator, launcher: HerokuLauncher
) -> None:
    with pytest.raises(LaunchError, match="other is not among"):
        await launcher.launch(order(app="other"))
    assert heroku.ledger == []


async def test_the_only_app_is_meant_if_none_is_named_and_one_of_two_is_not(
    heroku: Emulator, launcher: HerokuLauncher
) -> None:
    dyno = await launcher.launch(order(app=None))
    assert dyno.dyno_id.startswith("runner/")
    async with on(heroku.url, heroku.api_key, apps=("runner", "other")) as both:
        with pytest.raises(LaunchError, match="which app"):
            await both.launch(order(app=None))


# When the platform fails


@pytest.mark.parametrize("word", ["500-after", "reset-after"])
async def test_a_dyno_whose_creation_was_not_answered_is_found(
    heroku: Emulator, launcher: HerokuLauncher, word: str
) -> None:
    heroku.faults.push("create", word)
    dyno = await launcher.launch(order())
    assert [dyno.dyno_id] == [f"runner/{made.id}" for made in heroku.ledger]
    assert len(bodies(heroku, "create")) == 1


@pytest.mark.parametrize("word", ["500", "reset-before"])
async def test_a_create_that_came_to_nothing_is_told_and_not_repeated(
    heroku: Emulator, launcher: HerokuLauncher, word: str
) -> None:
    heroku.faults.push("create", word)
    with pytest.raises(LaunchError, match="no dyno came of it"):
        await launcher.launch(order())
    assert heroku.ledger == []
    assert len(bodies(heroku, "create")) == 1


@pytest.mark.parametrize(("word", "made"), [("timeout-after", 1), ("timeout-before", 0)])
async def test_a_silent_platform_is_asked_what_became_of_the_create(
    heroku: Emulator, word: str, made: int
) -> None:
    heroku.faults.push("create", word)
    async with on(heroku.url, heroku.api_key, patience=patience(HASTY)) as launcher:
        try:
            found = [await launcher.launch(order())]
        except LaunchError:
            found = []
    assert len(found) == len(heroku.ledger) == made
    await heroku.until(lambda: bodies(heroku, "create"))  # noted when the client has hung up
    assert len(bodies(heroku, "create")) == 1


async def test_a_dyno_that_appears_late_is_found(scripted: FakePlatform) -> None:
    unreadable = Answer({"id": "forbidden", "message": "no"}, 403)
    scripted.answers(RESET, Answer([]), unreadable, Answer([MADE]))
    async with on(scripted.url) as launcher:
        assert (await launcher.launch(order())).dyno_id == f"runner/{DYNO_ID}"


@pytest.mark.parametrize("looks", [0, 1], ids=["no answer", "an early answer"])
async def test_if_nobody_can_tell_in_the_end_the_launch_is_unsettled(
    scripted: FakePlatform, looks: int
) -> None:
    forbidden = Answer({"id": "forbidden", "message": "no"}, 403)
    scripted.answers(RESET, *[Answer([])] * looks, *[forbidden] * 99)
    async with on(scripted.url) as launcher:
        with pytest.raises(LaunchUnsettled):
            await launcher.launch(order())
    assert [got.method for got in scripted.got].count("POST") == 1


async def test_a_full_app_is_told_apart(heroku: Emulator) -> None:
    async with (
        Emulator({"runner": AppSpec(dyno_limit=1)}, Options(stop_grace=0.3)) as full,
        on(full.url, full.api_key) as launcher,
    ):
        dyno = await launcher.launch(order("a1"))
        with pytest.raises(AtCapacity, match="as many one-off dynos as"):
            await launcher.launch(order("a2"))
        await launcher.stop(dyno.dyno_id)
        assert (await launcher.launch(order("a3"))).launch_id == "a3"


async def test_a_refused_key_is_a_sentence_without_it(heroku: Emulator) -> None:
    async with on(heroku.url, "HRKU-wrong") as launcher:
        with pytest.raises(LaunchError, match="refused the gateway's key") as refused:
            await launcher.launch(order())
        with pytest.raises(PlatformError, match="runner: the platform refused the gateway's key"):
            await launcher.list()
    assert "HRKU-wrong" not in str(refused.value)


async def test_a_spent_allowance_says_when_it_is_worth_another_try(
    heroku: Emulator, launcher: HerokuLauncher
) -> None:
    heroku.set_remaining(150)
    await launcher.list()
    with pytest.raises(LaunchError) as refused:
        await launcher.launch(order())
    assert refused.value.retry_after_s is not None
    assert 0 < refused.value.retry_after_s <= 60
    assert heroku.ledger == []


# A launch that nobody waits for


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Keeps creates from being sent; `cancelled` opens it."""
    gate = threading.Event()
    create = PlatformApi.create_dyno

    def gated(api: PlatformApi, app: str, request: DynoRequest) -> DynoInfo:
        assert gate.wait(WAIT_S)
        return create(api, app, request)

    monkeypatch.setattr(PlatformApi, "create_dyno", gated)
    yield gate
    gate.set()


async def cancelled(launcher: HerokuLauncher, gate: threading.Event) -> None:
    """Launch, and cancel that when its request is a thread's that cannot be called back."""
    launching = asyncio.get_running_loop().create_task(launcher.launch(order()))
    async with asyncio.timeout(WAIT_S):
        while not launcher._platform._running:  # noqa: ASYNC110 - sets no event
            await asyncio.sleep(0)
    launching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await launching
    gate.set()


@pytest.mark.parametrize("word", [None, "reset-after", "500-after", "timeout-after"])
async def test_a_cancelled_launch_leaves_no_dyno(
    heroku: Emulator, gate: threading.Event, word: str | None
) -> None:
    if word is not None:
        heroku.faults.push("create", word)
    async with on(heroku.url, heroku.api_key, patience=patience(HASTY)) as launcher:
        await cancelled(launcher, gate)
        await launcher.aclose()
    assert [made.cause for made in heroku.ledger] == ["stopped"]
    assert heroku.dynos_left() == []


async def test_a_cancelled_launch_that_fails_is_no_more_news(
    heroku: Emulator, gate: threading.Event
) -> None:
    heroku.faults.push("create", "timeout-before")
    async with on(heroku.url, heroku.api_key, patience=patience(HASTY)) as launcher:
        await cancelled(launcher, gate)
    assert heroku.ledger == []


async def test_a_dyno_that_nobody_waits_for_and_that_cannot_be_stopped_is_logged(
    heroku: Emulator, launcher: HerokuLauncher, gate: threading.Event
) -> None:
    heroku.faults.push("stop", "403")
    with structlog.testing.capture_logs() as lines:
        await cancelled(launcher, gate)
        await launcher.aclose()
    left = [line["dyno"] for line in lines if line["event"] == "dyno_left"]
    assert left == [f"runner/{made.id}" for made in heroku.ledger]


# The list


async def test_a_list_has_the_realms_dynos_of_all_apps_and_no_others(heroku: Emulator) -> None:
    platform = Platform(heroku.api_key, heroku.url, patience())
    both, default, own = ("runner", "other"), "basic", OwnApp()
    ours = HerokuLauncher(platform, both, REALM, COMMANDS, default, own)
    theirs = HerokuLauncher(platform, both, "ba9876543210", COMMANDS, default, own)
    middle = AgentCommands("x", f"{WAITS} --launch {REALM}.fake #")
    odd = HerokuLauncher(platform, both, "ffffffffffff", middle, default, own)
    made = [await ours.launch(order("a1")), await ours.launch(order("a2", app="other"))]
    await theirs.launch(order("b1"))
    await odd.launch(order("c1"))
    listed = await ours.list()
    assert sorted(dyno.dyno_id for dyno in listed) == sorted(dyno.dyno_id for dyno in made)
    assert ids(listed) == ["a1", "a2"]
    assert all(dyno.created is not None for dyno in listed)
    assert {round(dyno.usd_per_hour, 4) for dyno in listed} == {0.0096}
    await platform.aclose()


async def test_a_list_of_several_pages_is_whole(heroku: Emulator, launcher: HerokuLauncher) -> None:
    heroku.options.page_size = 2
    for number in range(5):
        await launcher.launch(order(f"a{number}"))
    assert ids(await launcher.list()) == [f"a{number}" for number in range(5)]


@pytest.fixture
def scripted() -> Iterator[FakePlatform]:
    with serving(FakePlatform()) as scripted:
        yield scripted


@pytest.mark.parametrize(
    ("state", "status"), [("up", None), ("starting", None), ("crashed", -1), ("down", -1)]
)
async def test_a_dyno_that_ended_is_listed_as_such(
    scripted: FakePlatform, state: str, status: int | None
) -> None:
    scripted.answers(Answer([{**MADE, "state": state}]), *[Answer([])] * 9)
    async with on(scripted.url) as launcher:
        assert [dyno.exit_status for dyno in await launcher.list()] == [status]


async def test_there_is_no_list_while_one_app_does_not_answer(heroku: Emulator) -> None:
    async with on(heroku.url, heroku.api_key, apps=("runner", "gone")) as launcher:
        await launcher.launch(order())
        with pytest.raises(PlatformError, match=r"no list of the dynos of gone: .* no such thing"):
            await launcher.list()


async def test_lists_are_asked_for_less_often_the_more_apps_and_the_less_is_left(
    heroku: Emulator,
) -> None:
    async with on(heroku.url, heroku.api_key, apps=("runner", "other")) as launcher:
        paces = [launcher.poll_s]
        for left in (4500, 502, 12):
            heroku.set_remaining(left)
            await launcher.list()
            paces.append(launcher.poll_s)
    assert paces[:2] == [20.0, 20.0]
    assert paces[2] == pytest.approx(40.0, rel=0.1)
    assert paces[3] == 200.0


# The end


async def test_a_stopped_dyno_is_gone_when_the_stop_is_over(
    heroku: Emulator, launcher: HerokuLauncher
) -> None:
    dyno = await launcher.launch(order())
    await launcher.stop(dyno.dyno_id)
    assert heroku.dynos_left() == []
    assert await launcher.list() == []


async def test_a_dyno_that_ignores_the_first_signal_is_waited_for(heroku: Emulator) -> None:
    stubborn = AgentCommands("", "trap '' TERM; while :; do sleep 0.1; done #")
    platform = Platform(heroku.api_key, heroku.url, patience())
    launcher = HerokuLauncher(platform, ("runner",), REALM, stubborn, "basic", OwnApp())
    dyno = await launcher.launch(order())
    await heroku.until(lambda: heroku.ledger[0].state == "up")
    async with asyncio.timeout(WAIT_S):
        await launcher.stop(dyno.dyno_id)
    assert heroku.dynos_left() == []
    await platform.aclose()


async def test_a_dyno_that_does_not_end_in_time_is_told(scripted: FakePlatform) -> None:
    scripted.answers(UP, Answer({}, 202), *[UP] * 999)
    async with on(scripted.url, patience=patience(gone_s=0.1)) as launcher:
        with pytest.raises(PlatformError, match="not seen to end"):
            await launcher.stop(f"runner/{DYNO_ID}")


@pytest.mark.parametrize("state", ["down", "crashed"])
async def test_a_dyno_that_the_platform_calls_ended_is_gone(
    scripted: FakePlatform, state: str
) -> None:
    scripted.answers(UP, Answer({}, 202), UP, Answer({"id": DYNO_ID, "state": state}))
    async with asyncio.timeout(WAIT_S), on(scripted.url) as launcher:
        assert await launcher.stop(f"runner/{DYNO_ID}") is not None
    assert [got.method for got in scripted.got] == ["GET", "POST", "GET", "GET"]


async def test_a_dyno_that_had_ended_before_is_not_told_to_stop(scripted: FakePlatform) -> None:
    scripted.answers(Answer({"id": DYNO_ID, "state": "crashed"}))
    async with asyncio.timeout(WAIT_S), on(scripted.url) as launcher:
        assert await launcher.stop(f"runner/{DYNO_ID}") is None
    assert [got.method for got in scripted.got] == ["GET"]


async def test_a_dyno_whose_stop_was_not_answered_is_known_to_have_run(
    heroku: Emulator, launcher: HerokuLauncher
) -> None:
    dyno = await launcher.launch(order())
    heroku.faults.push("stop", "reset-after")
    assert await launcher.stop(dyno.dyno_id) is not None
    assert heroku.dynos_left() == []


async def test_another_process_of_the_deployment_can_stop_it(
    heroku: Emulator, launcher: HerokuLauncher
) -> None:
    dyno = await launcher.launch(order())
    async with on(heroku.url, heroku.api_key) as next_process:
        await next_process.stop(dyno.dyno_id)
    assert heroku.dynos_left() == []


async def test_an_unknown_dyno_is_gone(heroku: Emulator, launcher: HerokuLauncher) -> None:
    assert await launcher.stop(f"runner/{DYNO_ID}") is None
    assert [seen.operation for seen in heroku.requests] == ["info"]


@pytest.mark.parametrize("dyno_id", ["", "local.a1", "runner", "runner/..", "../x/" + DYNO_ID])
async def test_a_name_of_another_launcher_means_nothing(
    heroku: Emulator, launcher: HerokuLauncher, dyno_id: str
) -> None:
    await launcher.stop(dyno_id)
    assert list(heroku.requests) == []


@pytest.mark.parametrize(
    "later",
    [
        [UP, Answer({}, 202), GONE],
        [GONE, Answer({}, 202), GONE, Answer([MADE]), GONE, Answer([])],
    ],
    ids=["appears", "takes the stop unseen"],
)
async def test_a_dyno_that_the_platform_does_not_show_yet_is_stopped_all_the_same(
    scripted: FakePlatform, later: list[Answer]
) -> None:
    scripted.answers(Answer(MADE, 201), GONE, GONE, *later)
    async with asyncio.timeout(WAIT_S), on(scripted.url) as launcher:
        launcher._prices._next = None
        dyno = await launcher.launch(order())
        assert await launcher.stop(dyno.dyno_id) is not None
    assert len(scripted.got) == 3 + len(later)


async def test_a_dyno_that_never_appears_is_not_waited_for_for_long(
    scripted: FakePlatform,
) -> None:
    scripted.answers(Answer(MADE, 201), *[GONE] * 999)
    brief = dataclasses.replace(patience(), appears_s=0.1)
    async with asyncio.timeout(WAIT_S), on(scripted.url, patience=brief) as launcher:
        launcher._prices._next = None
        dyno = await launcher.launch(order())
        assert await launcher.stop(dyno.dyno_id) is None


async def test_a_dyno_that_was_listed_before_is_gone_when_the_platform_knows_it_no_more(
    scripted: FakePlatform,
) -> None:
    scripted.answers(Answer(MADE, 201), Answer([MADE]), GONE)
    async with asyncio.timeout(WAIT_S), on(scripted.url) as launcher:
        launcher._prices._next = None
        dyno = await launcher.launch(order())
        await launcher.list()
        assert await launcher.stop(dyno.dyno_id) is None
    assert len(scripted.got) == 3


async def test_a_dyno_without_a_visible_start_is_stopped(heroku: Emulator) -> None:
    heroku.options.invisible_s = 0.5
    async with on(heroku.url, heroku.api_key) as launcher:
        dyno = await launcher.launch(order())
        await launcher.stop(dyno.dyno_id)
    await heroku.until(lambda: not heroku.dynos_left())


async def test_a_stop_that_the_platform_refuses_says_so(
    heroku: Emulator, launcher: HerokuLauncher
) -> None:
    dyno = await launcher.launch(order())
    heroku.faults.push("stop", "403")
    with pytest.raises(PlatformError, match="does not let"):
        await launcher.stop(dyno.dyno_id)


# Prices


async def test_prices_are_a_tables_until_the_platform_has_told_them(scripted: FakePlatform) -> None:
    scripted.answers(Answer([{"name": "Basic", "cost": {"cents": 146_000, "unit": "month"}}]))
    async with on(scripted.url) as launcher:
        assert launcher.usd_per_hour(None, None) == pytest.approx(7 / 730)
        await launcher.aclose()
        assert launcher.usd_per_hour("BASIC", "runner") == 2.0
        assert launcher.usd_per_hour("standard-1x", "runner") == pytest.approx(25 / 730)
    assert len(scripted.got) == 1


async def test_a_size_that_nobody_knows_costs_as_much_as_the_dearest(
    launcher: HerokuLauncher,
) -> None:
    assert launcher.usd_per_hour("colossal", None) == launcher.usd_per_hour("Performance-L", None)


@pytest.mark.parametrize(
    ("first", "requests"),
    [(Answer([]), 1), (Answer({"id": "forbidden"}, 403), 2)],
    ids=["had", "not had"],
)
async def test_prices_are_asked_for_until_they_were_had(
    scripted: FakePlatform, monkeypatch: pytest.MonkeyPatch, first: Answer, requests: int
) -> None:
    monkeypatch.setattr("gateway.launchers.heroku.prices.AGAIN_S", 0.0)
    scripted.answers(first, Answer([]))
    async with on(scripted.url) as launcher:
        for _ in range(3):
            launcher.usd_per_hour(None, None)
            await launcher.aclose()
    assert len(scripted.got) == requests


async def test_prices_that_cannot_be_had_stay_as_they_are(scripted: FakePlatform) -> None:
    scripted.answers(Answer({"id": "forbidden"}, 403))
    async with on(scripted.url) as launcher:
        assert launcher.usd_per_hour("eco", None) == pytest.approx(5 / 730)
        await launcher.aclose()
        assert launcher.usd_per_hour("eco", None) == pytest.approx(5 / 730)
    assert len(scripted.got) == 1


# The gateway's own app


def digest(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


NAMED = OwnApp(frozenset({"runner"}), ("API_KEY", "no-name"), frozenset({digest("other")}))
HOLDING = OwnApp(frozenset(), ("API_KEY",), frozenset({digest("config")}))


def allowed(own: OwnApp) -> OwnApp:
    return OwnApp(own.names, own.secret_names, own.secret_digests, allowed=True)


@pytest.mark.parametrize("own", [NAMED, HOLDING], ids=["by its name", "by a secret in it"])
async def test_no_dyno_is_launched_into_the_gateways_own_app(heroku: Emulator, own: OwnApp) -> None:
    async with on(heroku.url, heroku.api_key, own=own) as launcher:
        with pytest.raises(LaunchError, match="ALLOW_OWN_APP"):
            await launcher.launch(order())
    assert heroku.ledger == []


@pytest.mark.parametrize(
    ("own", "hidden"), [(NAMED, ["API_KEY"]), (HOLDING, ["API_KEY", "HUSH"])], ids=["named", "held"]
)
async def test_a_dyno_that_may_be_launched_there_has_the_secrets_blanked(
    heroku: Emulator, own: OwnApp, hidden: list[str]
) -> None:
    async with on(heroku.url, heroku.api_key, own=allowed(own)) as launcher:
        await launcher.launch(order())
    [body] = bodies(heroku, "create")
    assert body["env"] == {
        **ENVIRONMENT,
        **dict.fromkeys(hidden, ""),
        "RENDEZVOUS_HIDE": ",".join(hidden),
    }


async def test_another_app_is_left_as_it_is_and_asked_once(heroku: Emulator) -> None:
    own = OwnApp(frozenset({"gateway"}), ("API_KEY",), frozenset({digest("x")}))
    async with on(heroku.url, heroku.api_key, own=own) as launcher:
        await launcher.launch(order("a1"))
        await launcher.launch(order("a2"))
    assert [body["env"] for body in bodies(heroku, "create")] == [ENVIRONMENT] * 2
    assert len(bodies(heroku, "config")) == 1


async def test_config_vars_that_may_not_be_read_are_mentioned_once(heroku: Emulator) -> None:
    heroku.faults.push("config", "403")
    async with on(heroku.url, heroku.api_key, own=HOLDING) as launcher:
        with structlog.testing.capture_logs() as lines:
            await launcher.launch(order("a1"))
            await launcher.launch(order("a2"))
    assert [line["event"] for line in lines].count("config_vars_unreadable") == 1


async def test_while_nobody_can_tell_whose_app_it_is_there_is_no_dyno(heroku: Emulator) -> None:
    heroku.faults.push("config", *["404"] * 2)
    async with on(heroku.url, heroku.api_key, own=HOLDING) as launcher:
        with pytest.raises(LaunchError, match="could not be seen"):
            await launcher.launch(order())
    assert heroku.ledger == []


async def test_what_was_known_of_an_app_holds_while_the_platform_does_not_tell(
    heroku: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.launchers.heroku.own.LOOK_S", 0.0)
    async with on(heroku.url, heroku.api_key, own=allowed(HOLDING)) as launcher:
        await launcher.launch(order("a1"))
        heroku.faults.push("config", "404")
        await launcher.launch(order("a2"))
    first, second = bodies(heroku, "create")
    assert first["env"] == second["env"]
    assert second["env"]["HUSH"] == ""


async def test_an_app_that_comes_to_hold_a_secret_is_noticed(
    heroku: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.launchers.heroku.own.LOOK_S", 0.0)
    own = OwnApp(frozenset(), ("API_KEY",), frozenset({digest("later")}))
    async with on(heroku.url, heroku.api_key, own=own) as launcher:
        await launcher.launch(order("a1"))
        heroku.set_config("runner", {"NEW": "later"})
        with pytest.raises(LaunchError, match="ALLOW_OWN_APP"):
            await launcher.launch(order("a2"))


async def test_a_launch_that_hangs_does_not_keep_the_gateway(
    heroku: Emulator, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.launchers.heroku.launcher.CLOSE_S", 0.01)
    async with on(heroku.url, heroku.api_key) as launcher:
        launching = asyncio.get_running_loop().create_task(launcher.launch(order()))
        await asyncio.sleep(0)
        async with asyncio.timeout(WAIT_S):
            await launcher.aclose()
        with pytest.raises(asyncio.CancelledError):
            await launching
        gate.set()
