"""Proves that requests are repeated only where that cannot launch twice, and bounded always."""

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import structlog

from gateway.launchers.heroku import failures
from gateway.launchers.heroku.api import REFILL_S, Bounds, PlatformApi
from gateway.launchers.heroku.documents import DynoRequest
from gateway.launchers.heroku.failures import Failure
from gateway.launchers.heroku.platform import CREATES, RESERVED, THREADS, Patience, Platform
from tests.fakes.scripted_platform import RESET, SILENCE, Answer, FakePlatform, serving

WAIT_S = 15.0
DYNO = {"id": "d1", "name": "rendezvous.1", "command": "x", "state": "starting"}
REQUEST = DynoRequest(command="x", env={}, time_to_live=60)
BUSY = Answer({"id": "rate_limit", "message": "later"}, 429)
BROKEN = Answer({"id": "internal_server_error", "message": "oops"}, 500)
CONFLICT = Answer({"id": "conflict", "message": "releasing"}, 409)
CALM = Bounds(connect_s=10.0, read_s=10.0, answer_s=10.0)
HASTY = Bounds(connect_s=10.0, read_s=0.05, answer_s=10.0)
"""For a platform that says nothing."""


@pytest.fixture
def heroku() -> Iterator[FakePlatform]:
    with serving(FakePlatform()) as heroku:
        yield heroku


def patience(bounds: Bounds = CALM, queue_s: float = 10.0) -> Patience:
    return Patience(bounds=bounds, queue_s=queue_s, repeat_s=10.0, pause_s=0.001, close_s=0.05)


@pytest.fixture
async def platform(heroku: FakePlatform) -> AsyncIterator[Platform]:
    platform = Platform("key", heroku.url, patience())
    yield platform
    heroku.over.set()
    await platform.aclose()


@pytest.fixture
async def hasty(heroku: FakePlatform) -> AsyncIterator[Platform]:
    hasty = Platform("key", heroku.url, patience(HASTY))
    yield hasty
    heroku.over.set()
    await hasty.aclose()


@pytest.mark.parametrize("answer", [BUSY, BROKEN, RESET], ids=["429", "500", "reset"])
async def test_a_list_is_asked_for_again(
    heroku: FakePlatform, platform: Platform, answer: Answer
) -> None:
    heroku.answers(answer, answer, Answer([DYNO]))
    assert [dyno.id for dyno in await platform.dynos("app")] == ["d1"]


@pytest.mark.parametrize("answer", [BUSY, BROKEN, RESET], ids=["429", "500", "reset"])
async def test_a_stop_is_repeated(heroku: FakePlatform, platform: Platform, answer: Answer) -> None:
    heroku.answers(answer, Answer({}))
    await platform.stop_dyno("app", "d1")
    assert [got.path for got in heroku.got] == ["/apps/app/dynos/d1/actions/stop"] * 2


@pytest.mark.parametrize("status", [401, 402, 403, 404, 422])
async def test_what_was_refused_is_not_asked_again(
    heroku: FakePlatform, platform: Platform, status: int
) -> None:
    heroku.answers(Answer({}, status))
    with pytest.raises(Failure):
        await platform.dynos("app")
    assert len(heroku.got) == 1


async def test_what_fails_for_good_is_given_up(heroku: FakePlatform, platform: Platform) -> None:
    heroku.answers(*[BROKEN] * 20)
    with pytest.raises(failures.Unavailable):
        await platform.dynos("app")
    assert 1 < len(heroku.got) < 20


async def test_the_platforms_own_time_to_wait_is_not_outwaited(
    heroku: FakePlatform, platform: Platform
) -> None:
    heroku.answers(Answer({}, 429, {"Retry-After": "3600"}))
    with pytest.raises(failures.RateLimited) as limited:
        await platform.dynos("app")
    assert (limited.value.retry_after_s, len(heroku.got)) == (3600.0, 1)


@pytest.mark.parametrize("answers", [[BUSY] * 3, [CONFLICT] * 2], ids=["429", "409"])
async def test_a_create_that_was_not_done_is_repeated(
    heroku: FakePlatform, platform: Platform, answers: list[Answer]
) -> None:
    heroku.answers(*answers, Answer(DYNO, 201))
    assert (await platform.create_dyno("app", REQUEST)).id == "d1"
    assert len(heroku.got) == len(answers) + 1


async def test_a_create_that_conflicts_is_repeated_twice_only(
    heroku: FakePlatform, platform: Platform
) -> None:
    heroku.answers(*[CONFLICT] * 9)
    with pytest.raises(failures.Conflict):
        await platform.create_dyno("app", REQUEST)
    assert len(heroku.got) == 3


@pytest.mark.parametrize("answer", [BROKEN, RESET, Answer(raw=b"<", status=201)])
async def test_a_create_that_may_have_been_done_is_never_repeated(
    heroku: FakePlatform, platform: Platform, answer: Answer
) -> None:
    heroku.answers(answer, *[Answer(DYNO, 201)] * 9)
    with pytest.raises(failures.Unavailable) as lost:
        await platform.create_dyno("app", REQUEST)
    assert lost.value.sent
    assert len(heroku.got) == 1


async def test_a_create_that_is_not_answered_is_never_repeated(
    heroku: FakePlatform, hasty: Platform
) -> None:
    heroku.answers(SILENCE, *[Answer(DYNO, 201)] * 9)
    with pytest.raises(failures.Unavailable) as lost:
        await hasty.create_dyno("app", REQUEST)
    assert lost.value.sent
    assert len(heroku.got) == 1


@pytest.mark.parametrize("answer", [BROKEN, RESET, BUSY])
async def test_a_subscription_whose_answer_was_lost_is_not_made_twice(
    heroku: FakePlatform, platform: Platform, answer: Answer
) -> None:
    heroku.answers(answer, Answer({"id": "w1"}, 201))
    with contextlib.suppress(failures.Unavailable):
        await platform.create_webhook("app", "https://g/h", "s3cret", ("dyno",))
    assert len(heroku.got) == (2 if answer is BUSY else 1)


async def test_the_last_requests_are_kept_for_stopping(
    heroku: FakePlatform, platform: Platform
) -> None:
    few = {"RateLimit-Remaining": str(RESERVED - 50)}
    heroku.answers(Answer([], 200, few), Answer({}, 202, few))
    await platform.dynos("app")
    with pytest.raises(failures.RateLimited) as refused:
        await platform.create_dyno("app", REQUEST)
    assert refused.value.retry_after_s is not None
    assert 0 < refused.value.retry_after_s <= 50 * REFILL_S
    assert not refused.value.sent
    await platform.stop_dyno("app", "d1")
    assert [got.method for got in heroku.got] == ["GET", "POST"]


async def test_a_create_that_nobody_wants_any_more_is_not_asked_for(
    heroku: FakePlatform, platform: Platform
) -> None:
    with pytest.raises(failures.Unavailable) as unwanted:
        await platform.create_dyno("app", REQUEST, lambda: False)
    assert not unwanted.value.sent
    assert heroku.got == []


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what threads do."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - threads set no event of the loop
            await asyncio.sleep(0.001)


class Held:
    """Stands in for a request that takes as long as the test wants, and counts."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.most = 0
        self.now = 0
        self._lock = threading.Lock()

    def __call__(self, *_args: Any) -> list[Any]:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        self.go_on.wait(WAIT_S)
        with self._lock:
            self.now -= 1
        return []

    async def holds(self, number: int) -> None:
        await until(lambda: self.now >= number)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    held = Held()
    for method in ("dynos", "create_dyno"):
        monkeypatch.setattr(PlatformApi, method, held)
    yield held
    held.go_on.set()


async def test_slow_creates_leave_threads_for_stopping(
    heroku: FakePlatform, platform: Platform, held: Held
) -> None:
    heroku.answers(Answer({}))
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as creates:
        for _ in range(2 * THREADS):
            creates.create_task(platform.create_dyno("app", REQUEST))
        await held.holds(CREATES)
        await platform.stop_dyno("app", "d1")
        assert held.now == CREATES
        held.go_on.set()


async def test_requests_that_nobody_waits_for_keep_their_thread(
    platform: Platform, held: Held
) -> None:
    loop = asyncio.get_running_loop()
    lists = [loop.create_task(platform.dynos("app")) for _ in range(THREADS)]
    await held.holds(THREADS)
    for task in lists:
        task.cancel()
    async with asyncio.timeout(WAIT_S):
        await asyncio.wait(lists)
    later = [loop.create_task(platform.dynos("app")) for _ in range(THREADS)]
    await asyncio.sleep(0)
    held.go_on.set()
    async with asyncio.timeout(WAIT_S):
        await asyncio.wait(later)
    assert all(task.result() == [] for task in later)
    assert held.most == THREADS


async def test_whoever_finds_no_thread_in_time_is_told(heroku: FakePlatform, held: Held) -> None:
    platform = Platform("key", heroku.url, patience(queue_s=0.01))
    waiting = [
        asyncio.get_running_loop().create_task(platform.dynos("app")) for _ in range(THREADS)
    ]
    await held.holds(THREADS)
    with pytest.raises(failures.Unavailable, match="turn") as refused:
        await platform.create_dyno("app", REQUEST, lambda: held.now > 0 and not held.go_on.is_set())
    assert not refused.value.sent
    held.go_on.set()
    async with asyncio.timeout(WAIT_S):
        await asyncio.wait(waiting)
        await until(lambda: not held.now)
        assert await platform.dynos("app") == []
    await platform.aclose()


async def test_a_thread_that_does_not_come_back_is_not_waited_for(
    heroku: FakePlatform, held: Held
) -> None:
    bounds = Bounds(connect_s=0.01, read_s=0.01, answer_s=0.01)
    platform = Platform("key", heroku.url, patience(bounds))
    with pytest.raises(failures.Unavailable, match="in time") as lost:
        await platform.create_dyno("app", REQUEST)
    assert lost.value.sent
    held.go_on.set()
    await platform.aclose()


async def test_a_platform_that_was_closed_takes_nothing_and_holds_no_thread(
    heroku: FakePlatform,
) -> None:
    platform = Platform("key", heroku.url, patience())
    heroku.answers(Answer([]))
    await platform.dynos("app")
    await platform.aclose()
    with pytest.raises(failures.Unavailable) as refused:
        await platform.create_dyno("app", REQUEST)
    assert not refused.value.sent
    await until(lambda: not any(t.name.startswith("heroku") for t in threading.enumerate()))


async def test_the_operator_is_told_the_next_step(heroku: FakePlatform, platform: Platform) -> None:
    heroku.answers(Answer({"id": "unauthorized", "message": "no"}, 401))
    with structlog.testing.capture_logs() as lines, pytest.raises(failures.Unauthorized):
        await platform.dynos("app")
    assert [(line["event"], line["what"]) for line in lines] == [
        ("platform_failure", "list the dynos of app")
    ]
    assert lines[0]["advice"].startswith("HEROKU_API_KEY was refused")


async def test_what_happens_all_day_is_not_logged(heroku: FakePlatform, platform: Platform) -> None:
    heroku.answers(Answer({"id": "not_found", "message": "no"}, 404))
    with structlog.testing.capture_logs() as lines, pytest.raises(failures.NotFound):
        await platform.dyno("app", "d1")
    assert lines == []


async def test_of_config_vars_only_digests_are_kept(
    heroku: FakePlatform, platform: Platform
) -> None:
    heroku.answers(Answer({"A": "hush"}))
    assert await platform.config_digests("app") == {"A": hashlib.sha256(b"hush").hexdigest()}


async def test_everything_else_is_passed_on(heroku: FakePlatform, platform: Platform) -> None:
    heroku.answers(
        Answer(DYNO),
        Answer([{"type": "web"}]),
        Answer([{"version": 3, "current": True}]),
        Answer([{"name": "basic"}]),
        Answer({"remaining": 7}),
        Answer([{"id": "w1"}]),
        Answer({}),
    )
    assert (await platform.dyno("app", "d1")).id == "d1"
    assert [entry.type for entry in await platform.formation("app")] == ["web"]
    release = await platform.current_release("app")
    assert release is not None
    assert release.version == 3
    assert [size.name for size in await platform.dyno_sizes()] == ["basic"]
    assert await platform.rate_limit() == 7
    assert [webhook.id for webhook in await platform.webhooks("app")] == ["w1"]
    await platform.delete_webhook("app", "w1")
    assert len(heroku.got) == 7


async def test_a_key_is_taken_without_the_line_end_of_its_file(heroku: FakePlatform) -> None:
    heroku.answers(Answer([]))
    platform = Platform("HRKU-1\n", heroku.url, patience())
    await platform.dynos("app")
    assert heroku.got[0].headers["Authorization"] == "Bearer HRKU-1"
    await platform.aclose()


@pytest.mark.parametrize("key", ["HRKU-1\nX: y", "HRKU-\u2013"])
def test_a_key_that_cannot_be_one_is_refused_without_being_told(key: str) -> None:
    with pytest.raises(ValueError, match="HEROKU_API_KEY") as refused:
        Platform(key)
    assert "HRKU" not in str(refused.value).replace("HEROKU_API_KEY", "")
