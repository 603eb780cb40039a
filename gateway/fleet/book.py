"""The ledger that all processes of the deployment keep together.

Each has a replica, which answers at once. What is written to it is queued as operations, and one
task commits them: it brings the replica up to date, does again what is pending on top of it, and
writes the rows that this touches, unless somebody else has written meanwhile; then once more. A
commit that is not answered leaves a mark, by which one sees later whether it was done.
"""

import asyncio
import contextlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.fleet.ledger import BILLS_KEPT, Account, Bill, BudgetSpent, Entry, Ledger, Month
from gateway.fleet.table import Table
from gateway.store.base import Store, StoreAway

REFRESH_S = 1.0
"""How old the replica may be while nothing is written here, and when a commit is tried again."""

SETTLE_S = 5.0
"""How long the commit of a dyno that is to be had may take: longer than the store's own deadline of
2 s, so that one lost answer can be made up for."""

LAST_S = 3.0
"""How long the last commit may take when this process leaves."""

MAX_HOPES: Final = 1000
"""Dynos to be had of which nobody has asked yet whether they may be."""

MARKS: Final = 64
"""How many processes leave marks of their own. Of more, two share one and may repeat a commit; no
harm is done as long as the operations on a dyno come in the order of its life."""

ATTEMPTS: Final = 100
"""Commits in a row that are remembered while none is answered."""

Act = Callable[[Ledger], object]


@dataclass(eq=False, slots=True)
class _Operation:
    """Something that was done to the replica and is not committed yet.

    Attributes:
        act: does it to a ledger, again and again if need be.
        admit: raises `BudgetSpent` if a ledger has no room for it.
        undo: for one that is withdrawn, and may have been committed all the same.
        settled: set once it is committed or refused.
        refusal: why it was not done after all.
    """

    act: Act
    admit: Act | None = None
    undo: Act | None = None
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    refusal: BudgetSpent | None = None


class Book:
    """The deployment's ledger: it answers like `Ledger`, and is the same at all processes soon.

    Args:
        ledger: an empty one.
        store: what the processes share.
    """

    def __init__(self, ledger: Ledger, store: Store) -> None:
        self._gateway = store.gateway
        self._alone = store.alone
        self._mark = f"mark/{zlib.crc32(store.gateway.encode()) % MARKS:02}"
        self._commits = 0
        self._attempts: dict[bytes, frozenset[_Operation]] = {}  # that may have been done
        self._table = Table(store, "ledger")
        self._committed = ledger
        self._replica = ledger.copy()
        self._pending: list[_Operation] = []
        self._hopes: dict[str, _Operation] = {}
        self._asked = asyncio.Event()
        self._lock = asyncio.Lock()

    # What is known

    def admit(
        self,
        principal: str,
        usd_per_hour: float,
        longest_s: float,
        now: float,
        *,
        adopting: str | None = None,
    ) -> None:
        """See `Ledger.admit`. Only `settled` knows for certain."""
        self._replica.admit(principal, usd_per_hour, longest_s, now, adopting=adopting)

    def spent(self, month: Month, now: float, principal: str | None = None) -> float:
        """See `Ledger.spent`."""
        return self._replica.spent(month, now, principal)

    def committed(
        self, month: Month, now: float, principal: str | None = None, *, without: str | None = None
    ) -> float:
        """See `Ledger.committed`."""
        return self._replica.committed(month, now, principal, without=without)

    def knows(self, launch_id: str) -> bool:
        """See `Ledger.knows`."""
        return self._replica.knows(launch_id)

    def running(self, launch_id: str) -> Entry | None:
        """See `Ledger.running`."""
        return self._replica.running(launch_id)

    @property
    def entries(self) -> list[Entry]:
        """See `Ledger.entries`."""
        return self._replica.entries

    def count(self, principal: str | None = None) -> int:
        """See `Ledger.count`."""
        return self._replica.count(principal)

    def report(self, now: float, *, bills: int = BILLS_KEPT) -> dict[str, Any]:
        """See `Ledger.report`."""
        return self._replica.report(now, bills=bills)

    # What is done

    def open(
        self,
        launch_id: str,
        account: Account,
        usd_per_hour: float,
        size: str,
        started: float,
        latest_end: float,
    ) -> None:
        """See `Ledger.open`. This process has to close it."""
        entry = Entry(launch_id, account, usd_per_hour, size, started, started, latest_end)
        self._do(_Operation(lambda ledger: self._open(ledger, entry)))

    def order(
        self,
        launch_id: str,
        account: Account,
        usd_per_hour: float,
        size: str,
        started: float,
        latest_end: float,
    ) -> None:
        """Open what was admitted, and shall be again when it is committed: call `settled` next."""
        entry = Entry(launch_id, account, usd_per_hour, size, started, started, latest_end)

        def admit(ledger: Ledger) -> None:
            if not ledger.knows(launch_id):
                ledger.admit(account.principal, usd_per_hour, latest_end - started, started)

        self._hope(
            launch_id,
            lambda ledger: self._open(ledger, entry),
            admit,
            lambda ledger: ledger.close(launch_id, 0.0),
        )

    def correct(self, launch_id: str, started: float, usd_per_hour: float) -> None:
        """See `Ledger.correct`."""
        self._do(_Operation(lambda ledger: ledger.correct(launch_id, started, usd_per_hour)))

    def transfer(
        self, launch_id: str, account: Account, now: float, latest_end: float
    ) -> Bill | None:
        """See `Ledger.transfer`. This process has to close it. Call `settled` next."""
        before = self._replica.running(launch_id)
        bill: Bill | None = None

        def act(ledger: Ledger) -> None:
            nonlocal bill
            bill = ledger.transfer(launch_id, account, now, latest_end)
            ledger.own(launch_id, self._gateway)

        def admit(ledger: Ledger) -> None:
            entry = ledger.running(launch_id)
            if entry is not None and entry.account != account:
                longest_s, price = latest_end - now, entry.usd_per_hour
                ledger.admit(account.principal, price, longest_s, now, adopting=launch_id)

        def undo(ledger: Ledger) -> None:
            if before is not None:
                ledger.transfer(launch_id, before.account, now, before.latest_end)

        self._hope(launch_id, act, admit, undo)
        return bill

    def own(self, launch_id: str) -> None:
        """From now on this process has to close a dyno, whoever had to before."""
        self._do(_Operation(lambda ledger: ledger.own(launch_id, self._gateway)))

    def disown(self, launch_id: str) -> None:
        """This process has not to close a dyno any more: another one will."""
        self._do(_Operation(lambda ledger: ledger.own(launch_id, "", self._gateway)))

    def close(self, launch_id: str, ended: float) -> Bill | None:
        """See `Ledger.close`."""
        bill: Bill | None = None

        def act(ledger: Ledger) -> None:
            nonlocal bill
            bill = ledger.close(launch_id, ended)

        self._do(_Operation(act))
        return bill

    async def settled(self, launch_id: str) -> None:
        """Wait until it is certain that a dyno may be had: for all processes, and for good.

        Raises:
            BudgetSpent: it may not, as another process was quicker; it is not in the ledger.
            StoreAway: the store does not answer in time; it will not be in the ledger.
        """
        hope = self._hopes.get(launch_id)
        if hope is None:
            return
        try:
            async with asyncio.timeout(SETTLE_S):
                await hope.settled.wait()
        except TimeoutError:
            self._withdraw(hope)
            raise StoreAway("the ledger could not be written in time") from None
        finally:
            self._hopes.pop(launch_id, None)
        if hope.refusal is not None:
            raise hope.refusal

    def _open(self, ledger: Ledger, entry: Entry) -> None:
        if not ledger.knows(entry.launch_id):
            ledger.open(
                entry.launch_id,
                entry.account,
                entry.usd_per_hour,
                entry.size,
                entry.started,
                entry.latest_end,
            )
            ledger.own(entry.launch_id, self._gateway)

    def _hope(self, launch_id: str, act: Act, admit: Act, undo: Act) -> None:
        hope = self._hopes[launch_id] = _Operation(act, admit, undo)
        if len(self._hopes) > MAX_HOPES:
            del self._hopes[next(iter(self._hopes))]
        self._do(hope)

    def _do(self, operation: _Operation) -> None:
        operation.act(self._replica)
        if self._alone:  # and nobody is to know it later
            operation.settled.set()
            return
        self._pending.append(operation)
        self._asked.set()

    def _withdraw(self, hope: _Operation) -> None:
        """Do not commit it; if that has happened without our knowing, make it undone."""
        if hope in self._pending:
            self._pending.remove(hope)
        self._rebase()
        if hope.undo is not None:
            self._do(_Operation(hope.undo))

    # Keeping it together

    async def keep(self) -> None:
        """Commit what is done here, and learn what others do."""
        while not self._alone:
            self._asked.clear()
            with contextlib.suppress(StoreAway):
                await self._commit()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_S):
                    await self._asked.wait()

    async def refresh(self) -> None:
        """Learn what others have done until now.

        Raises:
            StoreAway: nobody knows.
        """
        if not self._alone:
            async with self._lock:
                await self._learn()

    async def aclose(self) -> None:
        """Commit what is left, for a bounded time; nobody keeps the book any more."""
        if self._alone:
            return
        with contextlib.suppress(TimeoutError, StoreAway):
            async with asyncio.timeout(LAST_S):
                await self._commit()

    async def _commit(self) -> None:
        async with self._lock:
            if not self._pending:
                await self._learn()
            while self._pending:
                rows, doubtful = self._rebase()
                if doubtful:  # nobody is refused for what may be over by now
                    await self._learn()
                    rows, doubtful = self._rebase()
                    self._refuse(doubtful)
                done = frozenset(self._pending)
                # Without rows too: that there is nothing to write is true of this version only.
                if await self._table.commit({**rows, **self._marked(done)} if rows else rows):
                    self._committed.pages.enter(rows)
                    self._are_done(done)
                else:
                    await self._learn()

    def _marked(self, done: frozenset[_Operation]) -> dict[str, bytes]:
        self._commits += 1
        mark = f"{self._gateway} {self._commits}".encode()
        self._attempts[mark] = done
        if len(self._attempts) > ATTEMPTS:
            del self._attempts[next(iter(self._attempts))]
        return {self._mark: mark}

    def _are_done(self, done: frozenset[_Operation]) -> None:
        self._attempts.clear()  # one that was not answered can be done on top of its version only
        self._pending = [each for each in self._pending if each not in done]
        for operation in done:
            operation.settled.set()

    async def _learn(self) -> None:
        changes, lost = await self._table.news()
        if changes.whole:
            before, self._committed = self._committed, self._committed.blank()
            if lost:
                self._pending.insert(0, _Operation(lambda ledger: ledger.absorb(before)))
                self._asked.set()
        rows = {key: row for key, row in changes.rows.items() if not key.startswith("mark/")}
        self._committed.pages.enter(rows)
        if changes.whole or changes.rows:
            self._are_done(self._attempts.get(changes.rows.get(self._mark) or b"", frozenset()))
            self._rebase()

    def _rebase(self) -> tuple[dict[str, bytes | None], dict[_Operation, BudgetSpent]]:
        """Do again on top of what is committed what is not.

        Returns:
            The rows that it touches, and what there is no room for any more.
        """
        doubtful: dict[_Operation, BudgetSpent] = {}
        self._replica = self._committed.copy()
        for operation in self._pending:
            try:
                if operation.admit is not None:
                    operation.admit(self._replica)
            except BudgetSpent as refusal:
                doubtful[operation] = refusal
            else:
                operation.act(self._replica)
        return self._replica.touched(), doubtful

    def _refuse(self, refused: dict[_Operation, BudgetSpent]) -> None:
        for operation, refusal in refused.items():
            self._pending.remove(operation)
            operation.refusal = refusal
            operation.settled.set()
