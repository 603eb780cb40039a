"""The ledger of several processes: one budget, one bill for each dyno, whatever happens between."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway import events
from gateway.errors import BudgetSpent, LaunchFailed
from gateway.fleet import book as books
from gateway.fleet import ledger as ledgers
from gateway.fleet.book import Book
from gateway.fleet.ledger import POOL, Account, Budgets, Ledger, Month
from gateway.launchers.base import LaunchError
from gateway.store.base import StoreAway
from gateway.store.memory import Engine, MemoryStore
from tests.fakes.house import BOUND, eventually
from tests.fleet.crew import BYE, LIFE_S, NOW, Crew, hurry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PRICE = 3.6 / 3600
"""Dollars a second."""

LONGEST_S = LIFE_S + 60.0

ALICE = Account("alice", "code", "s-1")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


def worth(dynos: float) -> Budgets:
    return Budgets(dynos * LONGEST_S * PRICE)


# Sessions of several processes


async def test_two_processes_do_not_both_have_the_last_dollar() -> None:
    async with Crew(budgets=worth(1.5)) as crew:
        one, other = await crew.start(2)
        first, second = one.opens(), other.opens()  # neither can know of the other
        await eventually(lambda: one.ended or other.ended)
        (error,) = [*one.ended.values(), *other.ended.values()]
        assert isinstance(error, BudgetSpent)
        assert error.retry_after_s is not None
        await eventually(lambda: crew.launcher.tried == 1)
        winner, live = (other, second) if one.ended else (one, first)
        launch_id = await winner.gets(live)
        (entry,) = (await crew.agree())["running"]
        assert entry["launch"] == launch_id


async def test_refused_session_leaves_nothing_in_the_ledger() -> None:
    async with Crew(budgets=worth(1.5)) as crew:
        one, other = await crew.start(2)
        lives = [(one, one.opens()), (other, other.opens())]
        await eventually(lambda: one.ended or other.ended)
        await eventually(lambda: one.of(events.Closed) or other.of(events.Closed))
        report = await crew.agree()
        assert (len(report["running"]), report["bills"]) == (1, [])
        assert len(lives) == 2


async def test_money_that_a_session_elsewhere_gives_back_can_be_spent_here() -> None:
    async with Crew(budgets=worth(1.5)) as crew:
        one, other = await crew.start(2)
        live = one.opens()
        await one.gets(live)
        await crew.agree()
        with pytest.raises(BudgetSpent):
            other.dynos.check_room(other.session())
        crew.now += 100
        one.end(live, *BYE)
        await one.fails(live)
        await crew.agree()
        await other.gets(other.opens())


async def test_budget_of_a_principal_binds_at_all_processes_together() -> None:
    async with Crew(budgets=Budgets(None, {"alice": 1.5 * LONGEST_S * PRICE})) as crew:
        one, other = await crew.start(2)
        lives = [one.opens(), other.opens()]
        stranger = other.opens("bob")
        await other.gets(stranger)
        await eventually(lambda: one.ended or other.ended)
        assert len({*one.ended, *other.ended}) == 1
        assert len(lives) == 2


async def test_nothing_is_asked_for_before_it_is_written_down() -> None:
    async with Crew() as crew:
        (one,) = await crew.start(1)
        written: list[bool] = []
        launch = crew.launcher.launch

        async def noting(order: Any) -> Any:
            table = crew.engine.tables.get("ledger")
            written.append(table is not None and f"run/{order.launch_id}" in table.rows)
            return await launch(order)

        crew.launcher.launch = noting  # type: ignore[method-assign]
        await one.gets(one.opens())
        assert written == [True]


async def test_session_gets_no_dyno_while_the_engine_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(books, "SETTLE_S", 0.05)
    async with Crew() as crew:
        (one,) = await crew.start(1)
        await crew.agree()
        crew.engine.away = True
        live = one.opens()
        error = await one.fails(live)
        assert isinstance(error, LaunchFailed)
        assert error.retry_after_s == 2
        assert crew.launcher.tried == 0
        crew.engine.away = False
        assert (await crew.agree())["running"] == []


async def test_dyno_that_ends_while_the_engine_is_away_is_billed_once_it_is_back() -> None:
    async with Crew() as crew:
        one, other = await crew.start(2)
        live = one.opens()
        launch_id = await one.gets(live)
        await crew.agree()
        crew.engine.away = True
        crew.now += 50
        one.end(live, *BYE)
        await one.fails(live)
        crew.now += 1000
        crew.engine.away = False
        await eventually(lambda: crew.report(other)["bills"])
        report = await crew.agree()
        assert [(bill["launch"], bill["dyno_s"]) for bill in report["bills"]] == [(launch_id, 50.0)]
        assert report["running"] == []


async def test_process_that_starts_again_knows_what_the_month_has_cost() -> None:
    async with Crew(budgets=worth(1.0)) as crew:
        one = await crew.process("old")
        live = one.opens()
        await one.gets(live)
        crew.now += 600
        one.end(live, *BYE)
        await one.fails(live)
        before = await crew.agree()
        one.crash()
        again = await crew.process("new")
        after = await crew.agree()
        assert after == before
        with pytest.raises(BudgetSpent):
            again.dynos.check_room(again.session())


async def test_process_that_starts_again_knows_what_runs() -> None:
    async with Crew() as crew:
        one = await crew.process("old")
        launch_id = await one.gets(one.opens())
        await crew.agree()
        one.crash()
        await crew.process("new")
        report = await crew.agree()
        assert [entry["launch"] for entry in report["running"]] == [launch_id]


async def test_session_that_moves_pays_on_without_a_gap_and_not_twice() -> None:
    async with Crew() as crew:
        one, other = await crew.start(2)
        live = one.opens()
        launch_id = await one.gets(live)
        crew.now += 30
        moved = one.moves_to(live, other)
        crew.now += 30
        report = await crew.agree()
        assert [entry["dyno_s"] for entry in report["running"]] == [60.0]
        assert other.book.running(launch_id).owner == other.name  # type: ignore[union-attr]
        other.end(moved, *BYE)
        await other.fails(moved)
        report = await crew.agree()
        assert [(bill["launch"], bill["dyno_s"]) for bill in report["bills"]] == [(launch_id, 60.0)]
        assert (one.ended, one.of(events.Closed)) == ({}, [])


@pytest.mark.parametrize("first", ["who lets go", "who inherits"])
async def test_owner_is_who_inherits_whichever_is_written_first(first: str) -> None:
    async with Crew() as crew:
        one, other = await crew.start(2)
        live = one.opens()
        launch_id = await one.gets(live)
        await crew.agree()
        if first == "who lets go":
            one.dynos.let_go(live)
            await crew.agree()
        other.inherits(live)
        if first == "who inherits":
            await crew.agree()
            one.dynos.let_go(live)
        await crew.agree()
        assert {each.book.running(launch_id).owner for each in (one, other)} == {other.name}  # type: ignore[union-attr]


async def test_session_that_moves_while_it_is_launched_is_not_ended_by_a_failure_to_launch() -> (
    None
):
    async with Crew() as crew:
        one, other = await crew.start(2)
        crew.launcher.gate.clear()
        live = one.opens()
        await eventually(lambda: crew.launcher.tried)
        one.moves_to(live, other)
        crew.launcher.refusals.append(LaunchError("too late to matter"))
        crew.launcher.gate.set()
        async with asyncio.timeout(BOUND):
            await live.launched.wait()
        report = await crew.agree()
        assert (one.ended, len(report["running"])) == ({}, 1)


async def test_dynos_of_all_processes_are_counted() -> None:
    async with Crew() as crew:
        one, other = await crew.start(2)
        for process, who in ((one, "alice"), (other, "alice"), (other, "bob")):
            await process.gets(process.opens(who))
        await crew.agree()
        assert (one.book.count(), one.book.count("alice"), other.book.count("bob")) == (3, 2, 1)


async def test_dynos_of_the_pool_are_not_counted_as_sessions() -> None:
    engine = Engine()
    async with MemoryStore(engine, "g") as store:
        book = Book(Ledger(Budgets()), store)
        book.open("a", Account(POOL, "code"), 1.0, "", NOW, NOW + 10)
        book.open("b", ALICE, 1.0, "", NOW, NOW + 10)
        assert book.count() == 1


async def test_engine_that_has_lost_its_memory_is_told_again_what_runs_and_what_was_paid() -> None:
    async with Crew() as crew:
        one, other = await crew.start(2)
        gone, live = one.opens(), other.opens()
        launches = [await one.gets(gone), await other.gets(live)]
        crew.now += 100
        one.end(gone, *BYE)
        await one.fails(gone)
        before = await crew.agree()
        crew.engine.forget()
        await eventually(lambda: (table := crew.engine.tables.get("ledger")) and table.rows)
        assert await crew.agree() == before
        fresh = await crew.process("fresh")
        assert await crew.agree() == before
        assert fresh.book.knows(launches[0])


async def test_what_a_new_process_has_written_after_a_loss_is_added_and_not_overwritten() -> None:
    engine = Engine()
    async with MemoryStore(engine, "old") as old, MemoryStore(engine, "new") as new:
        first, second = Book(Ledger(Budgets()), old), Book(Ledger(Budgets()), new)
        _pays(first, "a", 1000.0)
        await first.aclose()
        engine.forget()
        _pays(second, "b", 10.0)
        await second.aclose()
        await first.refresh()
        await first.aclose()
        await second.refresh()
        for book in (first, second):
            (month,) = book.report(NOW)["months"]
            assert month["dyno_s"] == 1010.0
            assert {bill["launch"] for bill in book.report(NOW)["bills"]} == {"a", "b"}


async def test_dyno_that_was_closed_after_a_loss_is_not_entered_again() -> None:
    engine = Engine()
    async with MemoryStore(engine, "one") as one, MemoryStore(engine, "two") as two:
        first, second = Book(Ledger(Budgets()), one), Book(Ledger(Budgets()), two)
        first.open("a", ALICE, 3.6, "", NOW, NOW + 100)
        await first.aclose()
        await second.refresh()
        engine.forget()
        second.close("a", NOW + 10)
        await second.aclose()
        await first.refresh()
        await first.aclose()
        report = first.report(NOW + 50)
        assert (report["running"], len(report["bills"])) == ([], 1)


async def test_ledger_that_cannot_be_written_in_time_gives_nothing_and_keeps_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(books, "SETTLE_S", 0.05)
    engine = Engine()
    async with MemoryStore(engine, "g") as store, asyncio.TaskGroup() as tasks:
        book = Book(Ledger(Budgets()), store)
        engine.away = True
        keeping = tasks.create_task(book.keep())
        book.order("a", ALICE, 3.6, "", NOW, NOW + 100)
        with pytest.raises(StoreAway):
            await book.settled("a")
        assert book.running("a") is None
        engine.away = False
        await eventually(lambda: not book._pending)
        keeping.cancel()
        assert "run/a" not in (engine.tables.get("ledger") or _Nothing()).rows


class _Nothing:
    rows: Mapping[str, bytes] = {}


async def test_reservation_whose_commit_was_not_answered_is_undone_when_it_is_withdrawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(books, "SETTLE_S", 0.05)
    engine = Engine()
    store = Faulty(engine, "g")
    async with store, asyncio.TaskGroup() as tasks:
        book = Book(Ledger(Budgets()), store)
        store.fails = lambda: True
        keeping = tasks.create_task(book.keep())
        book.order("a", ALICE, 3.6, "", NOW, NOW + 100)
        await eventually(lambda: store.done)
        store.reads_fail = True
        with pytest.raises(StoreAway):
            await book.settled("a")
        store.fails, store.reads_fail = (lambda: False), False
        await eventually(lambda: not book._pending)
        keeping.cancel()
        report = book.report(NOW + 50)
        assert (report["running"], [bill["usd"] for bill in report["bills"]]) == ([], [0.0])


async def test_commit_that_was_done_and_not_answered_is_not_done_twice() -> None:
    engine = Engine()
    store = Faulty(engine, "g")
    async with store:
        book = Book(Ledger(Budgets()), store)
        lots = iter([True, False, True, False])
        store.fails = lambda: next(lots, False)
        _pays(book, "a", 10.0)
        await book.aclose()
        book.close("a", NOW + 99)
        await book.aclose()
        await book.aclose()
        (month,) = book.report(NOW + 99)["months"]
        assert month["dyno_s"] == 10.0
        assert len(book.report(NOW + 99)["bills"]) == 1


async def test_settling_what_was_never_hoped_for_takes_no_time() -> None:
    store = MemoryStore()
    book = Book(Ledger(Budgets()), store)
    await book.settled("nothing")
    assert book.running("nothing") is None


async def test_reservations_that_nobody_asks_about_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(books, "MAX_HOPES", 5)
    async with MemoryStore() as store:
        book = Book(Ledger(Budgets()), store)
        for number in range(20):
            book.order(str(number), ALICE, 3.6, "", NOW, NOW + 100)
        assert len(book._hopes) == 5
        await book.aclose()
        assert book.count() == 20


def _pays(book: Book, launch_id: str, seconds: float) -> None:
    book.open(launch_id, ALICE, 3.6, "", NOW, NOW + 2000)
    book.close(launch_id, NOW + seconds)


# Rows


def test_rows_of_a_ledger_make_the_same_ledger() -> None:
    ledger, copy = Ledger(Budgets()), Ledger(Budgets())
    account = Account("a/b c", "se/rver", "s")
    ledger.open("x", account, 0.05, "basic", NOW, NOW + 100)
    ledger.open("y", account, 0.1, "", NOW + 0.1, NOW + 100)
    ledger.transfer("y", ALICE, NOW + 7.7, NOW + 500)
    ledger.close("x", NOW + 33.3)
    copy.pages.enter(ledger.touched())
    assert copy.report(NOW + 50) == ledger.report(NOW + 50)
    assert ledger.touched() == {}


def test_rows_that_go_are_told_as_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "BILLS_KEPT", 3)
    monkeypatch.setattr(ledgers, "MONTHS_KEPT", 2)
    ledger, copy = Ledger(Budgets()), Ledger(Budgets())
    for number in range(6):
        start = NOW + number * 40 * 86_400
        ledger.open(str(number), ALICE, 1.0, "", start, start + 10)
        ledger.close(str(number), start + 10)
        copy.pages.enter(ledger.touched())
    assert copy.report(NOW) == ledger.report(NOW)
    assert copy.pages.keys == ledger.pages.keys
    assert len(ledger.pages.bills) == 3


# Whatever happens


class Faulty(MemoryStore):
    """Commits, and then may not say so.

    Attributes:
        fails: whether the next commit is not answered.
        reads_fail: nothing new is told.
        done: the commits that were done, answered or not.
    """

    def __init__(self, engine: Engine, gateway: str) -> None:
        super().__init__(engine, gateway)
        self.fails: Callable[[], bool] = lambda: False
        self.reads_fail = False
        self.done = 0
        self.committed: Callable[[], None] = lambda: None

    async def commit(
        self, table: str, since: int, rows: Mapping[str, bytes | None], ttl_s: float
    ) -> int | None:
        version = await super().commit(table, since, rows, ttl_s)
        if version is not None:
            self.done += 1
            self.committed()
            if self.fails():
                raise StoreAway("the answer is lost")
        return version

    async def changes(self, table: str, since: int) -> Any:
        if self.reads_fail:
            raise StoreAway("no answer")
        return await super().changes(table, since)


OPERATIONS = ("order", "order", "open", "transfer", "close", "close", "correct", "own", "disown")

STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from((*OPERATIONS, "commit", "commit", "commit", "refresh", "lose answer")),
        st.integers(0, 5),
        st.integers(1, 40),
    ),
    min_size=5,
    max_size=60,
)


class Player:
    """A process that keeps its book by hand, and one ledger that sees what is committed."""

    def __init__(self, engine: Engine, name: str, truth: Truth) -> None:
        self.name, self.truth = name, truth
        self.store = Faulty(engine, name)
        self.book = Book(Ledger(truth.budgets), self.store)
        self.queue: list[Callable[[Ledger], None]] = []
        self.store.committed = self._committed

    def _committed(self) -> None:
        for act in self.queue:
            act(self.truth.ledger)
        self.queue.clear()
        self.truth.check()

    async def commits(self) -> None:
        """Commit all; an answer that is lost is asked for again."""
        for _ in range(3):
            await self.book.aclose()
        self.store.fails = lambda: False

    async def does(self, what: str, launch: int, seconds: int) -> None:
        if what == "commit":
            await self.commits()
        elif what == "refresh":
            await self.book.refresh()
        elif what == "lose answer":
            lots = iter([True])
            self.store.fails = lambda: next(lots, False)
        else:
            self.writes(what, launch, seconds)

    def writes(self, what: str, launch: int, seconds: int) -> None:
        now, launch_id = self.truth.now, str(launch)
        account = Account(("alice", "bob")[launch % 2], "code", f"s-{launch}")
        end = now + seconds
        match what:
            case "order":
                self.book.order(launch_id, account, 3600.0, "", now, end)
                self.queue.append(self.truth.ordered(launch_id, account, now, end, self.name))
            case "open":
                self.book.open(f"p{launch}", Account(POOL, "code"), 3600.0, "", now, end)
                self.queue.append(
                    self.truth.opened(f"p{launch}", Account(POOL, "code"), now, end, self.name)
                )
            case "transfer":
                self.book.transfer(f"p{launch}", account, now, end)
                self.queue.append(
                    self.truth.transferred(f"p{launch}", account, now, end, self.name)
                )
            case "close":
                for each in (launch_id, f"p{launch}")[: 1 + seconds % 2]:
                    self.book.close(each, now)
                    self.queue.append(lambda ledger, each=each: _close(ledger, each, now))  # type: ignore[misc]
            case "correct":
                self.book.correct(launch_id, now, 1800.0)
                self.queue.append(lambda ledger: ledger.correct(launch_id, now, 1800.0))
            case "own":
                self.book.own(launch_id)
                self.queue.append(lambda ledger: ledger.own(launch_id, self.name))
            case _:
                self.book.disown(launch_id)
                self.queue.append(lambda ledger: ledger.own(launch_id, "", self.name))


def _close(ledger: Ledger, launch_id: str, now: float) -> None:
    ledger.close(launch_id, now)


class Truth:
    """One ledger that sees all operations in the order in which they were committed."""

    def __init__(self, budgets: Budgets) -> None:
        self.budgets, self.now = budgets, NOW
        self.ledger = Ledger(budgets)

    def ordered(
        self, launch_id: str, account: Account, now: float, end: float, owner: str
    ) -> Callable[[Ledger], None]:
        def act(ledger: Ledger) -> None:
            if ledger.knows(launch_id):
                return
            try:
                ledger.admit(account.principal, 3600.0, end - now, now)
            except ledgers.BudgetSpent:
                return
            ledger.open(launch_id, account, 3600.0, "", now, end)
            ledger.own(launch_id, owner)

        return act

    def opened(
        self, launch_id: str, account: Account, now: float, end: float, owner: str
    ) -> Callable[[Ledger], None]:
        def act(ledger: Ledger) -> None:
            if not ledger.knows(launch_id):
                ledger.open(launch_id, account, 3600.0, "", now, end)
                ledger.own(launch_id, owner)

        return act

    def transferred(
        self, launch_id: str, account: Account, now: float, end: float, owner: str
    ) -> Callable[[Ledger], None]:
        def act(ledger: Ledger) -> None:
            entry = ledger.running(launch_id)
            if entry is not None and entry.account != account:
                try:
                    ledger.admit(account.principal, 3600.0, end - now, now, adopting=launch_id)
                except ledgers.BudgetSpent:
                    return
            ledger.transfer(launch_id, account, now, end)
            ledger.own(launch_id, owner)

        return act

    def check(self) -> None:
        """Each part of a dyno is billed once."""
        bills = [(bill.launch_id, bill.account) for bill in self.ledger.pages.bills.values()]
        assert len(bills) == len(set(bills))


def facts(ledger: Any, now: float) -> Any:
    return ledger.report(now), sorted((each.launch_id, each.owner) for each in ledger.entries)


@example(  # what was ordered already at another process is no reason to refuse the rest
    steps=[
        (0, "order", 0, 1),
        (0, "commit", 0, 1),
        (1, "order", 0, 39),
        (1, "order", 1, 5),
        (1, "order", 2, 17),
    ],
    budget=60.0,
)
@example(  # done, not answered, and done again: what came before the opening is not to close it
    steps=[(0, "close", 0, 1), (0, "lose answer", 0, 1), (0, "order", 0, 1)], budget=None
)
@given(steps=STEPS, budget=st.sampled_from([None, 60.0, 90.0]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_books_of_three_processes_are_the_one_ledger_that_saw_it_all(
    steps: list[tuple[int, str, int, int]], budget: float | None
) -> None:
    async def play() -> None:
        engine, truth = Engine(), Truth(Budgets(budget))
        players = [Player(engine, name, truth) for name in ("one", "two", "three")]
        for player in players:
            await player.store.__aenter__()
        for who, what, launch, seconds in steps:
            truth.now += 1.0
            await players[who].does(what, launch, seconds)
        for player in players:
            await player.commits()
        for player in players:
            await player.book.refresh()
        for player in players:
            assert facts(player.book, truth.now) == facts(truth.ledger, truth.now)

    asyncio.run(play())


@given(steps=STEPS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_budget_is_never_exceeded_by_what_was_ordered_at_three_processes(
    steps: list[tuple[int, str, int, int]],
) -> None:
    async def play() -> None:
        engine, truth = Engine(), Truth(Budgets(70.0))
        players = [Player(engine, name, truth) for name in ("one", "two", "three")]
        for player in players:
            await player.store.__aenter__()
        for who, what, launch, seconds in steps:
            truth.now += 1.0
            if what in {"open", "correct"}:
                continue  # what runs whatever is left, and clocks that disagree
            await players[who].does(what, launch, seconds)
            month = Month.of(truth.now)
            now = truth.now
            spent = truth.ledger.spent(month, now) + truth.ledger.committed(month, now)
            late = sum(
                max(0.0, now - max(entry.latest_end, entry.since)) for entry in truth.ledger.entries
            )
            assert spent - late <= 70.0 + 1e-6 + _overdue(truth)

    asyncio.run(play())


def _overdue(truth: Truth) -> float:
    """What dynos cost that were closed after their latest end: the platform prevents that."""
    return sum(max(0.0, bill.dyno_s - 40.0) for bill in truth.ledger.pages.bills.values())


@pytest.mark.parametrize("seed", range(20))
async def test_engine_that_forgets_again_and_again_costs_no_bill_and_no_second(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - mischief, no secret
    engine = Engine()
    stores = [MemoryStore(engine, name) for name in ("one", "two", "three")]
    seen = [Book(Ledger(Budgets()), await store.__aenter__()) for store in stores]
    paid, number, opened = 0.0, 0, list[str]()
    for _ in range(60):
        book = chance.choice(seen)
        match chance.randrange(6):
            case 0 | 1:
                number += 1
                book.open(str(number), Account("alice", "code", str(number)), 3.6, "", NOW, NOW + 9)
                opened.append(str(number))
                await book.aclose()
            case 2 | 3 if opened:
                await book.refresh()
                launch_id = opened.pop(chance.randrange(len(opened)))
                seconds = float(chance.randrange(1, 9))
                assert book.close(launch_id, NOW + seconds) is not None
                paid += seconds
                await book.aclose()
            case 4:
                engine.forget()
                for each in seen:  # all live on, and say what they know
                    await each.refresh()
                    await each.aclose()
            case _:
                await book.refresh()
        # What is committed is known to all soon, and before the engine can lose it.
        for each in seen:
            await each.refresh()
    for book in seen:
        await book.refresh()
        report = book.report(NOW)
        assert sum(month["dyno_s"] for month in report["months"]) == pytest.approx(paid)
        assert {entry["launch"] for entry in report["running"]} == set(opened)
        assert len(report["bills"]) == number - len(opened)
