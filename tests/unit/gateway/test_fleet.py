"""Proves how dynos are asked for, stopped for certain and paid for, without a gateway around."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from gateway import events
from gateway.errors import BudgetSpent, QueueFull
from gateway.fleet import fleet as fleets
from gateway.fleet.book import Book
from gateway.fleet.desk import JoinDesk, TokenRefused
from gateway.fleet.fleet import AGENT_PATIENCE_S, LIFETIME_SLACK_S, Fleet, Rules, Wanted
from gateway.fleet.ledger import Account, Budgets, Ledger
from gateway.fleet.passes import Passes
from gateway.launchers.base import Dyno, LaunchError, LaunchUnsettled, PlatformError
from gateway.registry.servers import ServerDefinition
from gateway.store.memory import MemoryStore
from tests.fakes.launchers import Scripted

if TYPE_CHECKING:
    from gateway.launchers.base import LaunchOrder

BOUND = 30.0
NOW = 1_790_000_000.0
SERVER = ServerDefinition(name="x", command="y", size="basic", app="a", agent="installed")
ACCOUNT = Account("alice", "x", "s-1")


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


class Deck:
    """A fleet and what is around it."""

    def __init__(self, launcher: Scripted | None = None, budgets: Budgets | None = None) -> None:
        self.clock = Clock()
        self.launcher = launcher or Scripted()
        self.heard: list[events.Event] = []
        drawn = iter(f"secret{number}" for number in range(1000))
        desk, store = JoinDesk(lambda _bytes: next(drawn)), MemoryStore()
        self.fleet = Fleet(
            self.launcher,
            desk,
            Passes(desk, store, self.clock),
            Book(Ledger(budgets or Budgets()), store),
            Rules("https://gw", 2, 0.05, self.clock),
            self.heard.append,
        )

    def reserve(self, launch_id: str = "l1") -> Wanted:
        self.fleet.reserve(launch_id, SERVER, ACCOUNT, 1000.0)
        return Wanted(launch_id, "key", SERVER, BOUND, 1000.0)

    async def launch(self, wanted: Wanted) -> Any:
        async with asyncio.timeout(BOUND):
            return await self.fleet.launch(wanted)

    async def stand_in_line(self) -> Any:
        line = self.fleet.line(SERVER.app)
        wanted = self.reserve()
        return await line.through(
            "s", lambda: self.fleet.launch(wanted), lambda _position, _of: None
        )

    def order(self) -> LaunchOrder:
        return self.launcher.orders.get_nowait()

    def not_stopped(self) -> list[tuple[int, str]]:
        found = [event for event in self.heard if isinstance(event, events.NotStopped)]
        return [(event.attempt, event.why) for event in found]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleets, "STOP_AGAIN_S", (0.001,))


async def test_order_says_all_that_the_launcher_must_know() -> None:
    deck = Deck()
    await deck.launch(deck.reserve())
    order = deck.order()
    facts = (order.launch_id, order.server, order.size, order.app, order.agent)
    assert facts == ("l1", "x", "basic", "a", "installed")
    assert order.lifetime_s == 1000.0 + LIFETIME_SLACK_S
    assert order.environment["RENDEZVOUS_URL"] == "https://gw"
    deadline = float(order.environment["RENDEZVOUS_START_DEADLINE_S"])
    assert deadline == BOUND + AGENT_PATIENCE_S


async def test_token_of_an_order_leads_to_its_session() -> None:
    deck = Deck()
    await deck.launch(deck.reserve())
    token = deck.order().environment["RENDEZVOUS_JOIN_TOKEN"]
    assert deck.fleet.desk.recognise(token, 0.0) == "key"


async def test_token_is_in_no_text_of_an_order() -> None:
    deck = Deck()
    await deck.launch(deck.reserve())
    assert "secret" not in repr(deck.order())


async def test_unsettled_launch_is_no_error_and_its_token_stays_good() -> None:
    deck = Deck()
    deck.launcher.refusals.append(LaunchUnsettled("lost"))
    assert await deck.launch(deck.reserve()) is None
    token = deck.order().environment["RENDEZVOUS_JOIN_TOKEN"]
    assert deck.fleet.desk.recognise(token, 0.0) == "key"
    assert deck.fleet.book.running("l1") is not None


async def test_launch_that_is_given_up_cost_nothing_and_nothing_of_it_may_join() -> None:
    deck = Deck()
    deck.launcher.refusals.append(LaunchError("no"))
    with pytest.raises(LaunchError):
        await deck.launch(deck.reserve())
    token = deck.order().environment["RENDEZVOUS_JOIN_TOKEN"]
    deck.clock.now += 100
    deck.fleet.give_up("l1")
    with pytest.raises(TokenRefused):
        deck.fleet.desk.recognise(token, 0.0)
    assert deck.fleet.disowned("l1")
    (bill,) = deck.fleet.book.report(deck.clock.now)["bills"]
    assert bill["usd"] == 0.0


async def test_platform_that_does_not_answer_in_time_is_given_up() -> None:
    deck = Deck()
    deck.launcher.gate.clear()
    deck.reserve()
    with pytest.raises(TimeoutError):
        await deck.launch(Wanted("l1", "key", SERVER, 0.01, 1000.0))


async def test_late_answer_moves_the_start_of_what_is_paid() -> None:
    deck = Deck()
    deck.launcher.clock = lambda: NOW + 3
    await deck.launch(deck.reserve())
    entry = deck.fleet.book.running("l1")
    assert entry is not None
    assert entry.since == NOW + 3


async def test_platforms_clock_that_is_behind_moves_nothing() -> None:
    deck = Deck()
    deck.launcher.clock = lambda: NOW - 3
    await deck.launch(deck.reserve())
    entry = deck.fleet.book.running("l1")
    assert entry is not None
    assert entry.since == NOW


# Stops


async def test_stop_is_repeated_until_the_dyno_is_gone() -> None:
    deck = Deck()
    dyno = await deck.launch(deck.reserve())
    deck.launcher.stop_failures.extend(PlatformError(f"no {number}") for number in range(5))
    deck.clock.now += 60
    async with asyncio.timeout(BOUND):
        bill = await deck.fleet.stop("l1", dyno.dyno_id, "a")
    assert deck.launcher.stopped == [dyno.dyno_id]
    assert deck.not_stopped() == [(number + 1, f"no {number}") for number in range(5)]
    assert bill is not None
    assert bill.dyno_s == 60.0


async def test_stop_of_a_dyno_without_a_name_finds_it_by_its_launch() -> None:
    deck = Deck()
    deck.launcher.refusals.append(LaunchUnsettled("lost"))
    await deck.launch(deck.reserve())
    deck.launcher.runs(Dyno("a/other", "l2"))
    deck.launcher.runs(Dyno("a/late", "l1"))
    await deck.fleet.stop("l1", None, "a")
    assert deck.launcher.stopped == ["a/late"]


async def test_stop_looks_again_when_the_list_fails() -> None:
    deck = Deck()
    await deck.launch(deck.reserve())
    deck.launcher.list_failure = PlatformError("503")
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        stopping = tasks.create_task(deck.fleet.stop("l1", None, "a"))
        while len(deck.not_stopped()) < 3:  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0)
        assert not stopping.done()
        deck.launcher.list_failure = None
    assert deck.launcher.running == {}


async def test_dyno_that_had_left_by_itself_is_paid_until_then() -> None:
    deck = Deck()
    dyno = await deck.launch(deck.reserve())
    deck.launcher.running.clear()
    deck.clock.now += 100
    bill = await deck.fleet.stop("l1", dyno.dyno_id, "a", left=NOW + 40)
    assert bill is not None
    assert bill.dyno_s == 40.0


async def test_dyno_that_still_ran_is_paid_until_it_was_gone() -> None:
    deck = Deck()
    dyno = await deck.launch(deck.reserve())
    deck.clock.now += 100
    bill = await deck.fleet.stop("l1", dyno.dyno_id, "a", left=NOW + 40)
    assert bill is not None
    assert bill.dyno_s == 100.0


async def test_slow_stop_is_paid_for() -> None:
    deck = Deck()
    dyno = await deck.launch(deck.reserve())

    async def slow(dyno_id: str) -> float | None:
        deck.clock.now += 30
        return await Scripted.stop(deck.launcher, dyno_id)

    deck.launcher.stop = slow  # type: ignore[method-assign]
    bill = await deck.fleet.stop("l1", dyno.dyno_id, "a")
    assert bill is not None
    assert bill.dyno_s == 30.0


async def test_dyno_is_paid_for_until_it_was_last_seen_to_run() -> None:
    deck = Deck()
    dyno = await deck.launch(deck.reserve())

    async def unanswered(dyno_id: str) -> float | None:
        assert dyno_id
        deck.clock.now += 30
        return 20.0

    deck.launcher.stop = unanswered  # type: ignore[method-assign]
    bill = await deck.fleet.stop("l1", dyno.dyno_id, "a")
    assert bill is not None
    assert bill.dyno_s == 10.0


async def test_who_leaves_pays_until_it_asked_for_the_stop() -> None:
    deck = Deck()
    dyno = await deck.launch(deck.reserve())
    deck.clock.now += 5
    hung = asyncio.Event()

    async def hangs(dyno_id: str) -> float | None:
        assert dyno_id
        hung.set()
        await asyncio.Event().wait()
        return None

    deck.launcher.stop = hangs  # type: ignore[method-assign]
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        stopping = tasks.create_task(deck.fleet.stop("l1", dyno.dyno_id, "a"))
        await hung.wait()
        deck.clock.now += 20
        stopping.cancel()
    bill = deck.fleet.settle("l1")
    assert bill is not None
    assert bill.dyno_s == 5.0


async def test_platforms_word_of_an_end_bounds_the_bill() -> None:
    deck = Deck()
    dyno = await deck.launch(deck.reserve())
    deck.clock.now += 10
    deck.fleet.note_end("l1")
    deck.clock.now += 90
    bill = await deck.fleet.stop("l1", dyno.dyno_id, "a")
    assert bill is not None
    assert bill.dyno_s == 10.0


async def test_stop_of_what_was_never_reserved_has_no_bill() -> None:
    deck = Deck()
    assert await deck.fleet.stop("nobody", None, None) is None


async def test_stop_tells_the_line_of_the_app() -> None:
    deck = Deck()
    dyno = await deck.launch(deck.reserve())
    await deck.fleet.stop("l1", dyno.dyno_id, "a")
    assert deck.fleet.line("a")._room.is_set()
    assert not deck.fleet.line("b")._room.is_set()


async def test_end_of_the_gateway_stops_what_is_left_and_survives_a_failure() -> None:
    deck = Deck()
    for launch_id in ("l1", "l2"):
        await deck.launch(deck.reserve(launch_id))
    deck.launcher.stop_failures.append(PlatformError("no"))
    await deck.fleet.aclose([f"fake.{launch_id}" for launch_id in ("l1", "l2")])
    assert len(deck.launcher.stopped) == 1
    assert len(deck.not_stopped()) == 1


async def test_end_of_the_gateway_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleets, "STOP_S", 0.01)
    deck = Deck()

    async def hangs(dyno_id: str) -> bool:
        await asyncio.Event().wait()
        return True

    monkeypatch.setattr(deck.launcher, "stop", hangs)
    async with asyncio.timeout(BOUND):
        await deck.fleet.aclose(["a/1"])


# Room


async def test_room_is_denied_while_the_line_is_full() -> None:
    deck = Deck(Scripted(limit=0))
    deck.fleet._rules = Rules("https://gw", 1, BOUND, deck.clock)
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(deck.stand_in_line())
        async with asyncio.timeout(BOUND):
            while not deck.fleet.lines:  # noqa: ASYNC110 - nobody announces it
                await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            deck.fleet.check_room(SERVER, "alice", 10.0)
        deck.fleet.check_room(SERVER, "alice", 10.0, adopting="l9")
        waiting.cancel()


def test_room_is_denied_by_a_budget_and_says_when_to_come_back() -> None:
    deck = Deck(budgets=Budgets(0.0))
    with pytest.raises(BudgetSpent) as spent:
        deck.fleet.check_room(SERVER, "alice", 10.0)
    assert spent.value.retry_after_s is not None
    assert 0 < spent.value.retry_after_s <= 31 * 86_400


def test_disowned_launches_are_remembered_in_a_bounded_number() -> None:
    deck = Deck()
    for number in range(fleets.MAX_DISOWNED + 10):
        deck.fleet.disown(str(number))
        deck.fleet.note_end(str(number))
    assert len(deck.fleet._disowned) == fleets.MAX_DISOWNED
    assert len(deck.fleet._ends) == fleets.MAX_DISOWNED
    assert deck.fleet.disowned(str(fleets.MAX_DISOWNED + 9))
    assert not deck.fleet.disowned("0")
