"""Ask a database one thing, over a connection of its own, within bounds.

Nothing that libpq says of a connection goes out as it is: it names hosts and users.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.adapt import AdaptersMap, Transformer
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.generators import fetch, send
from psycopg.pq import ExecStatus

from mcp_servers.postgres.settings import ALLOW_WRITES, TIMEOUT
from mcp_servers.postgres.values import adapters

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from psycopg import AsyncConnection
    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGresult

    from mcp_servers.postgres.collecting import Collector
    from mcp_servers.postgres.settings import Settings

    Connection = AsyncConnection[tuple[Any, ...]]
    Tell = Callable[[str], Awaitable[None]]

CONNECT_S = 10
"""Seconds for a connection, TLS and password included; a whole number, as libpq wants it."""

LOCK_S = 5.0
"""Seconds to wait for a lock: who reads waits for none but a migration's, which takes minutes."""

GRACE_S = 5.0
"""Seconds that the server has to end a statement by itself before we do."""

BEAT_S = 3.0
"""Seconds between two lines of progress."""

LONGEST_PART = 2000
"""Characters of a part of what PostgreSQL says of a failure: it may repeat the statement."""

HIDDEN = ("host", "hostaddr", "user", "password", "dbname")
"""Parts of a URL that are taken out of what is said of a connection."""

CONNECTION: dict[str, Any] = {
    "application_name": "mcp_postgres",
    "client_encoding": "utf8",
    "connect_timeout": CONNECT_S,
    # A network that swallows packets is noticed by the kernel within half a minute.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}

CONFIGURE = """
SELECT set_config(wanted.name, wanted.setting, true)
FROM unnest(%s::text[], %s::text[]) AS wanted(name, setting) JOIN pg_settings USING (name)
"""
"""Only what this server's version knows. In the transaction, not in the connection's options: a
pooler in between refuses those. It also takes the transaction's snapshot, after which PostgreSQL
lets none that began read-only become another."""

TYPES = """
SELECT format_type(type, modifier)
FROM unnest(%s::oid[], %s::int[]) WITH ORDINALITY AS wanted(type, modifier, place) ORDER BY place
"""


class DatabaseError(Exception):
    """The database did not answer the question; the message is a sentence for the caller."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a statement did, beside the rows that were collected.

    Attributes:
        columns: Names and types; empty if the statement returns no rows.
        changed: Rows that it changed, if it returns none.
    """

    columns: list[dict[str, str]]
    changed: int


@dataclass(frozen=True, slots=True)
class _Context:
    adapters: AdaptersMap
    connection: None = None


class Database:
    """Runs statements, each in a transaction and a connection of its own.

    Args:
        settings: How long a statement may take.
    """

    def __init__(self, settings: Settings) -> None:
        self._seconds = settings.timeout_s
        self._context = _Context(adapters())

    async def ask(
        self,
        url: str,
        statement: str,
        into: Collector,
        *,
        writing: bool,
        tell: Tell,
    ) -> Answer:
        """Run one statement; cancelling this cancels it at the server, too.

        Args:
            url: Of the database. A secret.
            statement: What to run. The protocol refuses several in one.
            into: What takes the rows. If it is full, a statement that only reads is stopped.
            writing: Whether it may change the database; if it succeeds, that is committed.
            tell: Awaited with a line for people at each step, and while it runs.

        Raises:
            DatabaseError: It failed, or took too long.
        """
        await tell("connecting")
        clock = asyncio.get_running_loop().time
        # A task of its own: the SDK cancels without end, so that nothing awaits after it, and the
        # statement has to be cancelled at the server. A TaskGroup cancels once, and waits.
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(self._ask(url, statement, into, tell, writing=writing))
            started = clock()
            while not asking.done():
                await asyncio.wait({asking}, timeout=BEAT_S)
                if not asking.done():
                    await tell(f"running for {clock() - started:.0f} s")
        outcome = asking.result()
        if isinstance(outcome, DatabaseError):
            raise outcome
        return outcome

    async def _ask(
        self, url: str, statement: str, into: Collector, tell: Tell, *, writing: bool
    ) -> Answer | DatabaseError:
        """Ask; failures are returned, since a TaskGroup would wrap them."""
        try:
            connection = await self._connect(url)
        except DatabaseError as error:
            return error
        try:
            async with asyncio.timeout(self._seconds + GRACE_S):
                await tell("running")
                return await self._run(connection, statement, into, writing=writing)
        except (TimeoutError, psycopg.errors.QueryCanceled):
            return DatabaseError(
                f"The query was stopped after {self._seconds:g} s: make it cheaper;"
                f" the limit is set by {TIMEOUT}."
            )
        except psycopg.Error as error:
            return DatabaseError(_explained(error))
        finally:
            await connection.close()  # sends a goodbye and waits for nothing

    async def _connect(self, url: str) -> Connection:
        parts: dict[str, Any] = {}
        try:
            parts = conninfo_to_dict(url)
            async with asyncio.timeout(CONNECT_S):
                return await psycopg.AsyncConnection.connect(
                    make_conninfo("", **(CONNECTION | parts)), context=self._context
                )
        except TimeoutError as error:
            raise DatabaseError(f"The database did not answer within {CONNECT_S} s.") from error
        except psycopg.Error as error:
            said = _scrubbed(str(error), parts) if parts else "its URL cannot be read"
            raise DatabaseError(f"There is no connection to the database: {said}.") from error

    async def _run(
        self, connection: Connection, statement: str, into: Collector, *, writing: bool
    ) -> Answer:
        await connection.set_read_only(None if writing else True)
        bounds = self._bounds()
        await connection.execute(CONFIGURE, (list(bounds), list(bounds.values())))
        columns = await self._describe(connection, statement)
        changed = await _stream(connection, statement, into, drain=writing)
        if writing:
            await connection.commit()
        elif not into.full:
            await connection.rollback()  # a pooler keeps its connection then
        return Answer(columns, changed)

    def _bounds(self) -> dict[str, str]:
        """What PostgreSQL itself is to see to, and how it is to write."""
        late = str(round((self._seconds + 2 * GRACE_S) * 1000))
        return {
            "statement_timeout": str(max(1, round(self._seconds * 1000))),
            "lock_timeout": str(max(1, round(min(self._seconds, LOCK_S) * 1000))),
            "idle_in_transaction_session_timeout": late,
            "transaction_timeout": late,
            "client_connection_check_interval": "2000",  # if we are killed, it stops
            "DateStyle": "ISO, YMD",
            "IntervalStyle": "iso_8601",
            "bytea_output": "hex",
            "extra_float_digits": "1",  # all that it takes to read the same number again
        }

    async def _describe(self, connection: Connection, statement: str) -> list[dict[str, str]]:
        """The columns, before there are rows: afterwards the connection may be of no more use."""
        pgconn = connection.pgconn
        pgconn.send_prepare(b"", statement.encode())
        await _result(connection)
        pgconn.send_describe_prepared(b"")
        result = await _result(connection)
        names = [(result.fname(at) or b"").decode(errors="replace") for at in range(result.nfields)]
        types = [result.ftype(at) for at in range(result.nfields)]
        modifiers = [result.fmod(at) for at in range(result.nfields)]
        rows = await (await connection.execute(TYPES, (types, modifiers))).fetchall()
        return [{"name": name, "type": kind} for name, (kind,) in zip(names, rows, strict=True)]


async def _stream(connection: Connection, statement: str, into: Collector, *, drain: bool) -> int:
    """Run the statement and collect its rows one by one, however many there are.

    Without `drain` it is cancelled when there are enough, and the connection is of no more use.
    """
    pgconn = connection.pgconn
    pgconn.send_query_params(statement.encode(), None)
    pgconn.set_single_row_mode()
    await connection.wait(send(pgconn))
    transformer = Transformer(connection)
    changed, first = 0, True
    while (result := await connection.wait(fetch(pgconn))) is not None:
        _check(result, connection)
        if first:
            transformer.set_pgresult(result)
            first = False
        else:
            transformer.set_pgresult(result, set_loaders=False)
        for row in range(result.ntuples):
            into.add(transformer.load_row(row, list) or ())
        if into.full and not drain:
            await connection.cancel_safe(timeout=GRACE_S)
            break
        changed = result.command_tuples or changed
    return changed


async def _result(connection: Connection) -> PGresult:
    """The one result of what was sent."""

    def exchange() -> PQGen[list[PGresult]]:
        yield from send(connection.pgconn)
        results = []
        while (result := (yield from fetch(connection.pgconn))) is not None:
            results.append(result)
        return results

    (result,) = await connection.wait(exchange())
    _check(result, connection)
    return result


def _check(result: PGresult, connection: Connection) -> None:
    if result.status == ExecStatus.FATAL_ERROR:
        raise psycopg.errors.error_from_result(result, connection.info.encoding)
    if result.status in {ExecStatus.COPY_IN, ExecStatus.COPY_OUT, ExecStatus.COPY_BOTH}:
        raise psycopg.NotSupportedError("COPY")  # its results would have no end


def _explained(error: psycopg.Error) -> str:
    """What PostgreSQL says of a failure, and what it advises."""
    said = error.diag
    if not error.sqlstate or not said.message_primary:
        return "The connection to the database broke off; try again."
    at = f" (at character {said.statement_position})" if said.statement_position else ""
    parts = [f"{said.message_primary}{at}", said.message_detail, said.message_hint]
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        parts.append(f"This server only reads; whoever runs it can change that with {ALLOW_WRITES}")
    return " ".join(f"{part[:LONGEST_PART].rstrip('.')}." for part in parts if part) + (
        f" [{error.sqlstate}]"
    )


def _scrubbed(said: str, parts: Mapping[str, Any]) -> str:
    """Why there is no connection, without the parts of the URL."""
    reason = said.rpartition("failed: ")[2].strip().partition("\n")[0]
    for value in sorted((str(parts.get(part) or "") for part in HIDDEN), key=len, reverse=True):
        if value:
            reason = reason.replace(value, "…")
    return reason.removeprefix("FATAL:").strip().rstrip(".")
