"""The bundled PostgreSQL server: what it runs, what it refuses, and what it says, on a real one."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st
from mcp import Client

from mcp_servers.limits import BadSettingError
from mcp_servers.postgres import values
from mcp_servers.postgres.attachments import Attachments, NoSuchAttachmentError
from mcp_servers.postgres.collecting import Collector
from mcp_servers.postgres.database import Answer, Database, DatabaseError
from mcp_servers.postgres.schema import RELATIONS
from mcp_servers.postgres.server import build
from mcp_servers.postgres.settings import Settings, settings_from
from mcp_servers.postgres.statements import READING, StatementRefusedError, check, first_word
from tests.fakes.bundled import served
from tests.fakes.postgres import PostgresServer, unwanted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from mcp.types import CallToolResult

pytestmark = pytest.mark.timeout(240)

needs_postgres = pytest.mark.skipif(
    unwanted(), reason="NO_POSTGRES=1, else `make peers` installs it"
)

deterministic = settings(deadline=None, derandomize=True, database=None)

in_one_loop = pytest.mark.asyncio(loop_scope="module")
"""For tests that share the server process."""

REPOSITORY = Path(__file__).resolve().parents[2]

BOUND_S = 60.0
"""Seconds for anything that is due at once, on a machine that does much else."""

FOREVER = "SELECT pg_sleep(600)"

SHOP = (
    "CREATE TYPE mood AS ENUM ('sad', 'happy')",
    "CREATE DOMAIN positive AS int CHECK (value > 0)",
    "CREATE TABLE customer (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
    " name varchar(80) NOT NULL DEFAULT 'nobody', feels mood)",
    "ALTER TABLE customer ADD gone int",
    "ALTER TABLE customer DROP gone",
    "COMMENT ON TABLE customer IS 'Who buys'",
    "COMMENT ON COLUMN customer.name IS 'As on the letter'",
    "CREATE TABLE line (shop int, number int, customer bigint REFERENCES customer,"
    " PRIMARY KEY (number, shop))",
    "CREATE TABLE part (id int, of_shop int, of_number int,"
    " FOREIGN KEY (of_number, of_shop) REFERENCES line (number, shop))",
    "CREATE INDEX by_name ON customer (lower(name))",
    "INSERT INTO customer (name) SELECT 'c' || n FROM generate_series(1, 10) n",
    "ANALYZE customer",
    "CREATE VIEW names AS SELECT name FROM customer",
    "CREATE TABLE log (at date) PARTITION BY RANGE (at)",
    "CREATE TABLE log_1 PARTITION OF log FOR VALUES FROM ('2020-01-01') TO ('2021-01-01')",
    "CREATE SCHEMA other",
    "CREATE TABLE other.there (x int)",
    "CREATE SCHEMA hidden",
    "CREATE TABLE hidden.secret (x int)",
    "CREATE TABLE scratch (x int)",
    "CREATE SEQUENCE counter",
    "CREATE ROLE reader LOGIN PASSWORD 'r3ader-pw'",
    "GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader",
    "GRANT USAGE ON SCHEMA other TO reader",
)


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        server.run(*SHOP)
        yield server


async def nothing(_line: str) -> None:
    pass


async def ask(
    url: str,
    statement: str,
    *,
    writing: bool = False,
    tell: Any = nothing,
    share: int = 8,
    **settings: Any,
) -> tuple[Answer, Collector]:
    """Ask without the check of statements: what is behind it must hold by itself."""
    chosen = Settings(**settings)
    into = Collector(chosen, share=share)
    async with asyncio.timeout(BOUND_S):
        asked = await Database(chosen).ask(url, statement, into, writing=writing, tell=tell)
    return asked, into


async def rows(postgres: PostgresServer, statement: str, **options: Any) -> list[list[Any]]:
    return (await ask(postgres.url(), statement, **options))[1].rows


async def failure(url: str, statement: str = "SELECT 1", **options: Any) -> str:
    with pytest.raises(DatabaseError) as caught:
        await ask(url, statement, **options)
    return str(caught.value)


async def until(condition: Callable[[], object]) -> None:
    """Wait for a state of the database, which sends no events."""
    async with asyncio.timeout(BOUND_S):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# -- settings and attachments ----------------------------------------------------------------------


def test_missing_and_empty_variables_leave_the_defaults() -> None:
    assert settings_from({"POSTGRES_MAX_ROWS": ""}) == Settings()
    assert not Settings().allow_writes


def test_variables_set_the_settings() -> None:
    variables = {
        "POSTGRES_TIMEOUT_S": "2.5",
        "POSTGRES_MAX_ROWS": "10",
        "POSTGRES_MAX_OUTPUT_BYTES": "2000",
        "POSTGRES_ALLOW_WRITES": "True",
    }
    assert settings_from(variables) == Settings(2.5, 10, 2000, allow_writes=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("POSTGRES_TIMEOUT_S", "0"),
        ("POSTGRES_MAX_ROWS", "0"),
        ("POSTGRES_MAX_OUTPUT_BYTES", "10"),
        ("POSTGRES_ALLOW_WRITES", "yes"),
    ],
)
def test_unusable_value_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(BadSettingError, match=f"^{name}"):
        settings_from({name: value})


GOLD = "postgresql://gold:s3cret@gold.example/db"
ENVIRONMENT = {
    "DATABASE_URL": "postgres://main:s3cret@main.example/db",
    "HEROKU_POSTGRESQL_GOLD_URL": GOLD,
    "REDIS_URL": "redis://main.example",
    "DSN": "postgres://dsn.example/db",
}


@pytest.mark.parametrize(
    "name", ["HEROKU_POSTGRESQL_GOLD", "HEROKU_POSTGRESQL_GOLD_URL", " heroku_postgresql_gold "]
)
def test_attachment_is_found_by_its_name_or_its_variable(name: str) -> None:
    assert Attachments(ENVIRONMENT).url(name) == GOLD


def test_only_variables_with_a_url_of_postgresql_are_databases() -> None:
    assert Attachments(ENVIRONMENT).names() == ["DATABASE", "HEROKU_POSTGRESQL_GOLD"]


@pytest.mark.parametrize("name", ["REDIS", "DSN", "PATH", "", GOLD])
def test_unknown_attachment_is_told_which_there_are_but_not_where(name: str) -> None:
    with pytest.raises(NoSuchAttachmentError, match="DATABASE, HEROKU_POSTGRESQL_GOLD") as caught:
        Attachments(ENVIRONMENT).url(name)
    assert "main.example" not in str(caught.value)


# -- statements ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "select 1",
        " \t\r\n\f\v(( SELECT 1))",
        "-- a comment\nWITH x AS (SELECT 1) TABLE x",
        "/* a /* nested */ comment */ VALUES (1)",
        "/* */-- x\r\n/**/(TABLE customer)",
        "EXPLAIN ANALYZE SELECT 1",
        "SHOW server_version;",
    ],
)
def test_statement_that_reads_is_run(statement: str) -> None:
    check(statement, allow_writes=False)


@pytest.mark.parametrize(
    "statement",
    [
        "COPY customer TO PROGRAM 'id'",
        "/* SELECT */ COPY customer TO '/tmp/x'",
        "-- x\nCOPY customer TO '/tmp/x'",
        "/* /* */ SELECT 1 */ copy customer to '/tmp/x'",
        "(COPY x TO STDOUT)",
        "COMMIT",
        "SET TRANSACTION READ WRITE",
        "LOCK customer",
        "SELECT 1\0",
        "",
        "-- nothing",
        "/* never ends SELECT 1",
        "*/ SELECT 1",
        ";SELECT 1",
        "\ufeffSELECT 1",
    ],
)
@pytest.mark.parametrize("allow_writes", [False, True])
def test_harmful_or_empty_statement_is_refused_always(statement: str, allow_writes: bool) -> None:
    with pytest.raises(StatementRefusedError):
        check(statement, allow_writes=allow_writes)


@pytest.mark.parametrize(
    "statement", ["INSERT INTO x VALUES (1)", "DO $$BEGIN END$$", "CALL x()", "SELECTED", "VACUUM"]
)
def test_statement_that_may_write_is_refused_unless_allowed(statement: str) -> None:
    check(statement, allow_writes=True)
    with pytest.raises(StatementRefusedError, match="Only EXPLAIN, SELECT"):
        check(statement, allow_writes=False)


comments = st.recursive(
    st.text(alphabet="ab \n;'\"-(", max_size=5),
    lambda inner: inner.map(lambda text: f"/*{text}*/"),
).map(lambda text: f"/*{text}*/")

skipped = st.lists(
    st.one_of(st.sampled_from([" ", "(", "\n"]), comments, st.just("-- SELECT\n")), max_size=5
)


@deterministic
@given(skipped, st.sampled_from(["copy", *READING]))
def test_first_word_is_found_behind_any_comments(before: list[str], word: str) -> None:
    assert first_word("".join(before) + word + " x") == word


# -- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2026-01-02 03:04:05.678901+00", "2026-01-02T03:04:05.678901+00:00"),
        ("2026-01-02 03:04:05-03:30", "2026-01-02T03:04:05-03:30"),
        ("2026-01-02 03:04:05", "2026-01-02T03:04:05"),
        ("12026-01-02 03:04:05", "12026-01-02T03:04:05"),
        ("infinity", "infinity"),
        ("0044-03-15 00:00:00 BC", "0044-03-15 00:00:00 BC"),
    ],
)
def test_timestamp_is_iso_where_that_can_say_it(text: str, value: str) -> None:
    assert values.timestamp(text) == value


@deterministic
@given(st.integers(-(2**60), 2**60) | st.integers())
def test_integer_is_a_number_as_long_as_everybody_reads_it(number: int) -> None:
    expected = number if abs(number) < 2**53 else str(number)
    assert values.integer(str(number)) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": [1, 0.5, null, true, "x"]}', {"a": [1, 0.5, None, True, "x"]}),
        ("12345678901234567890", "12345678901234567890"),
        ("9" * 5000, "9" * 5000),
        ("0.1234567890123456789", "0.1234567890123456789"),
        ("1e999", "1e999"),
        (r'"\ud800"', r'"\ud800"'),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_json_is_itself_or_its_text(text: str, value: Any) -> None:
    assert values.document(text) == value


SAMPLES = {
    "true": True,
    "false": False,
    "NULL": None,
    "32767::smallint": 32767,
    "9007199254740991": 9007199254740991,
    "-9007199254740993": "-9007199254740993",
    "12.340::numeric(10,3)": "12.340",
    "'NaN'::numeric": "NaN",
    "0.1::float8": 0.1,
    "0.1::float4": 0.1,
    "'-Infinity'::float8": "-Infinity",
    "'ü'::text": "ü",
    "'x'::\"char\"": "x",
    "'x'::name": "x",
    "'happy'::mood": "happy",
    "7::positive": 7,
    "'\\xdeadbeef'::bytea": "\\xdeadbeef",
    "'2026-01-02'::date": "2026-01-02",
    "'2026-01-02 03:04'::timestamp": "2026-01-02T03:04:00",
    "'2026-01-02 03:04+02'::timestamptz": "2026-01-02T01:04:00+00:00",
    "'infinity'::timestamptz": "infinity",
    "'1 month 2 days 3 hours'::interval": "P1M2DT3H",
    "ARRAY[1, NULL, 3]": [1, None, 3],
    "ARRAY[[1.50], [2]]": [["1.50"], ["2"]],
    "ARRAY['a b', '{', NULL, 'NULL']": ["a b", "{", None, "NULL"],
    "'{}'::text[]": [],
    "ARRAY['2026-01-02'::timestamp]": ["2026-01-02T00:00:00"],
    "ARRAY['happy'::mood]": "{happy}",
    "'{\"a\": [1, 2.5]}'::jsonb": {"a": [1, 2.5]},
    "'10.0.0.0/8'::inet": "10.0.0.0/8",
    "'[1,5)'::int4range": "[1,5)",
    "ROW(1, 'a')": "(1,a)",
    "'00000000-0000-0000-0000-000000000001'::uuid": "00000000-0000-0000-0000-000000000001",
    "'<a/>'::xml": "<a/>",
}
"""What is selected, and what comes of it."""


@needs_postgres
async def test_values_lose_nothing(postgres: PostgresServer) -> None:
    (row,) = await rows(postgres, f"SELECT {', '.join(SAMPLES)}")
    assert dict(zip(SAMPLES, row, strict=True)) == SAMPLES
    assert [type(value) for value in row] == [type(value) for value in SAMPLES.values()]


# -- collecting ------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.integers() | st.text('a"ü', max_size=300),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@deterministic
@given(st.lists(st.lists(JSON, max_size=3), max_size=20), st.integers(1, 15))
def test_what_is_collected_never_exceeds_the_limits(given_rows: list[list[Any]], most: int) -> None:
    into = Collector(Settings(max_rows=most, max_output_bytes=1024), share=8)
    for row in given_rows:
        into.add(row)
    assert len(into.rows) <= most
    assert len(json.dumps(into.rows, ensure_ascii=False).encode()) <= 1024 + 2
    assert into.rows == given_rows or into.note


def test_row_too_many_is_dropped_and_the_variable_named() -> None:
    into = Collector(Settings(max_rows=2), share=8)
    for number in range(4):
        into.add([number])
    assert into.rows == [[0], [1]]
    assert into.full
    assert into.note == "There are more rows: the limit of 2 is set by POSTGRES_MAX_ROWS."


def test_row_too_large_ends_the_result_even_if_the_next_would_fit() -> None:
    into = Collector(Settings(max_output_bytes=1024), share=1)
    for text in ("a" * 500, "b" * 600, "c"):
        into.add([text])
    assert into.rows == [["a" * 500]]
    assert into.note
    assert "POSTGRES_MAX_OUTPUT_BYTES" in into.note


@pytest.mark.parametrize("value", ["x" * 1000, '"' * 1000, "ü" * 500, ["x" * 1000]])
def test_long_value_is_cut_and_says_so(value: Any) -> None:
    into = Collector(Settings(max_output_bytes=1024), share=8)
    into.add([value, 1])
    ((cut, one),) = into.rows
    assert one == 1
    assert cut.endswith(" bytes cut]")
    assert len(cut.encode()) < 128
    assert not into.full
    assert into.note
    assert "POSTGRES_MAX_OUTPUT_BYTES" in into.note


# -- what a query may do ---------------------------------------------------------------------------

ESCAPES = (
    "INSERT INTO scratch VALUES (1)",
    "CREATE TABLE made (x int)",
    "WITH w AS (INSERT INTO scratch VALUES (1) RETURNING x) SELECT * FROM w",
    "EXPLAIN ANALYZE INSERT INTO scratch VALUES (1)",
    "SELECT 1; INSERT INTO scratch VALUES (1)",
    "COMMIT; INSERT INTO scratch VALUES (1)",
    "SELECT set_config('transaction_read_only', 'off', false)",
    "SET TRANSACTION READ WRITE",
    "DO $$BEGIN COMMIT; INSERT INTO scratch VALUES (1); END$$",
    "SELECT nextval('counter')",
    "SELECT query_to_xml('INSERT INTO scratch VALUES (1)', true, true, '')",
)


@needs_postgres
@pytest.mark.parametrize("statement", ESCAPES)
async def test_reading_transaction_lets_nobody_out(
    postgres: PostgresServer, statement: str
) -> None:
    await failure(postgres.url(), statement)
    assert await rows(postgres, "SELECT count(*) FROM scratch") == [[0]]


@needs_postgres
async def test_refusal_to_write_names_the_variable_that_allows(postgres: PostgresServer) -> None:
    message = await failure(postgres.url(), "DELETE FROM customer")
    assert "POSTGRES_ALLOW_WRITES" in message
    assert message.endswith("[25006]")


@needs_postgres
async def test_settings_of_a_call_do_not_outlive_it(postgres: PostgresServer) -> None:
    await rows(postgres, "SELECT set_config('search_path', 'hidden', false)")
    assert await rows(postgres, "SELECT current_setting('search_path') LIKE '%public%'") == [[True]]


@needs_postgres
async def test_write_is_committed_where_it_is_allowed(postgres: PostgresServer) -> None:
    postgres.run("CREATE TABLE z_written (x int)")
    statement = "INSERT INTO z_written SELECT generate_series(1, 5)"
    asked, _ = await ask(postgres.url(), statement, writing=True)
    assert asked == Answer([], changed=5)
    assert await rows(postgres, "SELECT count(*) FROM z_written") == [[5]]


@needs_postgres
async def test_write_that_returns_too_many_rows_is_whole(postgres: PostgresServer) -> None:
    postgres.run("CREATE TABLE z_many (x int)")
    statement = "INSERT INTO z_many SELECT generate_series(1, 5000) RETURNING x"
    _, into = await ask(postgres.url(), statement, writing=True, max_rows=2)
    assert into.rows == [[1], [2]]
    assert await rows(postgres, "SELECT count(*) FROM z_many") == [[5000]]


@needs_postgres
async def test_write_of_several_statements_is_refused_whole(postgres: PostgresServer) -> None:
    statement = "INSERT INTO scratch VALUES (1); INSERT INTO scratch VALUES (2)"
    assert "[42601]" in await failure(postgres.url(), statement, writing=True)
    assert await rows(postgres, "SELECT count(*) FROM scratch") == [[0]]


@needs_postgres
async def test_error_is_told_as_postgresql_tells_it(postgres: PostgresServer) -> None:
    message = await failure(postgres.url(), "SELECT nmae FROM customer")
    assert message.startswith('column "nmae" does not exist (at character 8).')
    assert 'Perhaps you meant to reference the column "customer.name".' in message
    assert message.endswith("[42703]")


@needs_postgres
async def test_columns_have_names_and_types(postgres: PostgresServer) -> None:
    asked, _ = await ask(
        postgres.url(),
        "SELECT id, name, feels, 1.5::numeric(4,2) AS price, 1::positive AS p FROM customer",
    )
    assert asked.columns == [
        {"name": "id", "type": "bigint"},
        {"name": "name", "type": "character varying(80)"},
        {"name": "feels", "type": "mood"},
        {"name": "price", "type": "numeric(4,2)"},
        {"name": "p", "type": "integer"},
    ]


@needs_postgres
async def test_result_without_rows_has_its_columns(postgres: PostgresServer) -> None:
    asked, into = await ask(postgres.url(), "SELECT name FROM customer WHERE false")
    assert asked.columns == [{"name": "name", "type": "character varying(80)"}]
    assert into.rows == []
    assert into.note is None


# -- bounds ----------------------------------------------------------------------------------------


@needs_postgres
async def test_endless_result_is_stopped_at_the_server(postgres: PostgresServer) -> None:
    statement = "SELECT generate_series(1, 10000000000)"
    found = await rows(postgres, statement, max_rows=3)
    assert found == [[1], [2], [3]]
    await until(lambda: not postgres.pids())


@pytest.fixture
def unobservant(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that does not look whether its client is there, as before PostgreSQL 14."""
    watch = "client_connection_check_interval"
    bounds = Database._bounds
    monkeypatch.setattr(Database, "_bounds", lambda self: bounds(self) | {watch: "0"})


@needs_postgres
@pytest.mark.usefixtures("unobservant")
async def test_query_that_has_enough_rows_is_cancelled(postgres: PostgresServer) -> None:
    """One that goes on without sending any: it would not notice that nobody reads."""
    statement = (
        "SELECT repeat('x', 10000), CASE WHEN n > 5 THEN pg_sleep(600) END"
        " FROM generate_series(1, 10) n"
    )
    assert len(await rows(postgres, statement, max_rows=1, timeout_s=600)) == 1
    await until(lambda: not postgres.pids())


@needs_postgres
async def test_slow_query_is_stopped_and_the_limit_named(postgres: PostgresServer) -> None:
    message = await failure(postgres.url(), FOREVER, timeout_s=0.2)
    assert "0.2 s" in message
    assert "POSTGRES_TIMEOUT_S" in message


@needs_postgres
async def test_database_sees_to_the_limits_itself(postgres: PostgresServer) -> None:
    names = ("statement_timeout", "lock_timeout", "client_connection_check_interval")
    query = f"SELECT {', '.join(f'current_setting({name!r})' for name in names)}"
    assert await rows(postgres, query, timeout_s=7) == [["7s", "5s", "2s"]]


@needs_postgres
async def test_query_cannot_lift_its_own_time_limit(postgres: PostgresServer) -> None:
    lifted = "SELECT set_config('statement_timeout', '0', true), pg_sleep(600)"
    assert "POSTGRES_TIMEOUT_S" in await failure(postgres.url(), lifted, timeout_s=0.2)


@needs_postgres
async def test_locked_table_is_told_early(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcp_servers.postgres.database.LOCK_S", 0.1)
    async with await psycopg.AsyncConnection.connect(postgres.url()) as locking:
        await locking.execute("LOCK TABLE customer")
        message = await failure(postgres.url(), "SELECT * FROM customer", timeout_s=600)
    assert "lock timeout" in message
    assert message.endswith("[55P03]")


@needs_postgres
@pytest.mark.usefixtures("unobservant")
async def test_cancelling_cancels_the_statement_at_the_server(postgres: PostgresServer) -> None:
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(ask(postgres.url(), FOREVER, timeout_s=600))
        await until(postgres.pids)
        asking.cancel()
    await until(lambda: not postgres.pids())


@needs_postgres
async def test_connection_that_breaks_off_is_told(postgres: PostgresServer) -> None:
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(failure(postgres.url(), FOREVER, timeout_s=600))
        await until(postgres.pids)
        for pid in postgres.pids():
            postgres.run(f"SELECT pg_terminate_backend({pid})")
    assert "[57P01]" in asking.result()


@needs_postgres
async def test_progress_is_connecting_running_and_for_how_long(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcp_servers.postgres.database.BEAT_S", 0.01)
    told = list[str]()

    async def tell(line: str) -> None:
        told.append(line)

    await ask(postgres.url(), "SELECT pg_sleep(0.2)", tell=tell)
    assert told[0] == "connecting"
    assert "running" in told
    assert told[-1] == "running for 0 s"


# -- no connection ---------------------------------------------------------------------------------


@needs_postgres
@pytest.mark.parametrize(
    ("user", "database", "reason"),
    [
        ("somebody", "postgres", "password authentication failed"),
        ("reader", "nothere", "does not exist"),
    ],
)
async def test_refused_connection_is_told_without_the_url(
    postgres: PostgresServer, user: str, database: str, reason: str
) -> None:
    url = postgres.url(database, user, "r3ader-pw")
    message = await failure(url)
    assert reason in message
    assert not [part for part in (user, "r3ader-pw", "127.0.0.1", database) if part in message]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgres://u5er:p4ss@nowhere.invalid/db0", "resolve"),
        ("postgres://u5er:p4ss@host/db0?pool=5", "cannot be read"),
        ("postgres://u5er:p4ss@host:port/db0", "resolve"),
    ],
)
async def test_unusable_url_is_told_without_it(url: str, reason: str) -> None:
    message = await failure(url)
    assert reason in message
    assert not [part for part in ("u5er", "p4ss", "nowhere", "db0") if part in message]


async def test_server_that_is_not_there_is_told() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        message = await failure(f"postgres://me@127.0.0.1:{closed.getsockname()[1]}/db")
    assert message == "There is no connection to the database: Connection refused."


async def test_server_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcp_servers.postgres.database.CONNECT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        message = await failure(f"postgres://me@127.0.0.1:{mute.getsockname()[1]}/db")
    assert message == "The database did not answer within 0.2 s."


# -- the schema ------------------------------------------------------------------------------------


async def schema(postgres: PostgresServer, user: str, password: str) -> dict[str, Any]:
    _, into = await ask(postgres.url(user=user, password=password), RELATIONS, share=1)
    return {f"{table['schema']}.{table['name']}": table for (table,) in into.rows}


def a_column(name: str, kind: str, **more: Any) -> dict[str, Any]:
    usual = {"nullable": True, "default": None, "comment": None}
    return {"name": name, "type": kind, **usual, **more}


@needs_postgres
async def test_schema_tells_all_of_a_table(postgres: PostgresServer) -> None:
    assert (await schema(postgres, "reader", "r3ader-pw"))["public.customer"] == {
        "schema": "public",
        "name": "customer",
        "kind": "table",
        "comment": "Who buys",
        "row_estimate": 10,
        "columns": [
            a_column("id", "bigint", nullable=False, default="identity"),
            a_column(
                "name",
                "character varying(80)",
                nullable=False,
                default="'nobody'::character varying",
                comment="As on the letter",
            ),
            a_column("feels", "mood"),
        ],
        "primary_key": ["id"],
        "foreign_keys": [],
        "indexes": [
            "CREATE UNIQUE INDEX customer_pkey ON public.customer USING btree (id)",
            "CREATE INDEX by_name ON public.customer USING btree (lower((name)::text))",
        ],
    }


@needs_postgres
async def test_schema_tells_keys_in_their_order(postgres: PostgresServer) -> None:
    tables = await schema(postgres, "reader", "r3ader-pw")
    assert tables["public.line"]["primary_key"] == ["number", "shop"]
    assert tables["public.part"]["foreign_keys"] == [
        {
            "columns": ["of_number", "of_shop"],
            "references": {"schema": "public", "table": "line", "columns": ["number", "shop"]},
        }
    ]


@needs_postgres
async def test_schema_has_views_and_partitioned_tables_but_no_partitions(
    postgres: PostgresServer,
) -> None:
    tables = await schema(postgres, "reader", "r3ader-pw")
    assert tables["public.names"]["kind"] == "view"
    assert tables["public.names"]["row_estimate"] is None
    assert tables["public.log"]["kind"] == "partitioned table"
    assert "public.log_1" not in tables


@needs_postgres
async def test_schema_shows_what_the_role_may_use(postgres: PostgresServer) -> None:
    tables = await schema(postgres, "reader", "r3ader-pw")
    assert "other.there" in tables
    assert "hidden.secret" not in tables
    assert {table["schema"] for table in tables.values()} == {"public", "other"}


# -- the server ------------------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(postgres: PostgresServer) -> AsyncIterator[Client]:
    """A client and its server, in a task of their own: that which enters its scopes must leave."""
    async with served(
        "mcp_servers.postgres",
        DATABASE_URL=postgres.url(),
        READER_URL=postgres.url(user="reader", password="r3ader-pw"),
        POSTGRES_MAX_ROWS="4",
        POSTGRES_TIMEOUT_S="600",
    ) as client:
        yield client


async def call(client: Client, tool: str, **arguments: Any) -> CallToolResult:
    async with asyncio.timeout(BOUND_S):
        return await client.call_tool(tool, arguments)


def text_of(answer: CallToolResult) -> str:
    (block,) = answer.content
    assert block.type == "text"
    return block.text


def result_of(answer: CallToolResult) -> dict[str, Any]:
    assert not answer.is_error, text_of(answer)
    result: dict[str, Any] = json.loads(text_of(answer))
    assert answer.structured_content == {"result": result}
    return result


@needs_postgres
@in_one_loop
async def test_query_returns_columns_and_rows(client: Client) -> None:
    answer = await call(client, "postgres_run_query", query="SELECT 1 AS one, 'ü' AS u")
    assert result_of(answer) == {
        "columns": [{"name": "one", "type": "integer"}, {"name": "u", "type": "text"}],
        "rows": [[1, "ü"]],
        "row_count": 1,
        "truncated": False,
        "note": None,
    }


@needs_postgres
@in_one_loop
async def test_cut_result_says_so(client: Client) -> None:
    query = "SELECT generate_series(1, 1000000)"
    result = result_of(await call(client, "postgres_run_query", query=query))
    assert (result["row_count"], result["truncated"]) == (4, True)
    assert "POSTGRES_MAX_ROWS" in result["note"]


@needs_postgres
@in_one_loop
async def test_attachment_is_the_one_that_is_named(client: Client) -> None:
    query = "SELECT current_user"
    default = await call(client, "postgres_run_query", query=query)
    named = await call(client, "postgres_run_query", query=query, db_attachment="READER")
    assert [result_of(answer)["rows"] for answer in (default, named)] == [
        [["postgres"]],
        [["reader"]],
    ]


@needs_postgres
@in_one_loop
async def test_schema_is_returned_with_a_note_if_it_is_cut(client: Client) -> None:
    result = result_of(await call(client, "postgres_get_schema", db_attachment="READER"))
    assert [table["name"] for table in result["tables"]] == ["customer", "line", "log", "names"]
    assert result["truncated"]
    assert "POSTGRES_MAX_ROWS" in result["note"]


@needs_postgres
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"query": "SELECT 1", "db_attachment": "PINK"}, "There are: DATABASE, READER."),
        ({"query": "DROP TABLE customer"}, "DROP is not run here."),
        ({"query": "SELECT 1; SELECT 2"}, "cannot insert multiple commands"),
    ],
)
@in_one_loop
async def test_failure_is_a_tool_error_with_its_sentence(
    client: Client, arguments: dict[str, str], sentence: str
) -> None:
    answer = await call(client, "postgres_run_query", **arguments)
    assert answer.is_error
    assert sentence in text_of(answer)


@needs_postgres
@pytest.mark.usefixtures("unobservant")
async def test_cancelled_call_is_cancelled_at_the_server(postgres: PostgresServer) -> None:
    """The SDK cancels whatever a call awaits, again and again."""
    attachments = Attachments({"DATABASE_URL": postgres.url()})
    async with Client(build(attachments, Settings(timeout_s=600))) as client:
        async with asyncio.TaskGroup() as group:
            calling = group.create_task(call(client, "postgres_run_query", query=FOREVER))
            await until(postgres.pids)
            calling.cancel()
        await until(lambda: not postgres.pids())


async def tools(**settings: Any) -> dict[str, Any]:
    async with Client(build(Attachments(ENVIRONMENT), Settings(**settings))) as client:
        return {tool.name: tool for tool in (await client.list_tools()).tools}


@pytest.mark.parametrize("allow_writes", [False, True])
async def test_tools_say_whether_they_write(allow_writes: bool) -> None:
    listed = await tools(allow_writes=allow_writes)
    hints = listed["postgres_run_query"].annotations
    assert hints.read_only_hint is not allow_writes
    assert hints.destructive_hint is allow_writes
    assert ("only reads" in listed["postgres_run_query"].description) is not allow_writes
    assert listed["postgres_get_schema"].annotations.read_only_hint


async def test_tools_have_the_documented_arguments() -> None:
    listed = {name: tool.input_schema for name, tool in (await tools()).items()}
    assert set(listed) == {"postgres_get_schema", "postgres_run_query"}
    assert set(listed["postgres_get_schema"]["properties"]) == {"db_attachment"}
    assert "required" not in listed["postgres_get_schema"]
    assert set(listed["postgres_run_query"]["properties"]) == {"query", "db_attachment"}
    assert listed["postgres_run_query"]["required"] == ["query"]


async def test_tools_show_names_of_databases_but_no_urls() -> None:
    shown = str(await tools())
    assert "HEROKU_POSTGRESQL_GOLD" in shown
    assert "s3cret" not in shown
    assert "gold.example" not in shown


@needs_postgres
async def test_copy_to_a_program_is_not_run_even_where_writes_are(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    settings = Settings(allow_writes=True)
    attachments = Attachments({"DATABASE_URL": postgres.url()})
    made = tmp_path / "made"
    await asyncio.to_thread(tmp_path.chmod, 0o777)
    async with Client(build(attachments, settings)) as client:
        query = f"COPY (SELECT 1) TO PROGRAM 'touch {made}'"
        answer = await call(client, "postgres_run_query", query=query)
        changed = await call(client, "postgres_run_query", query="CREATE TABLE z_by_tool (x int)")
    assert answer.is_error
    assert "COPY is not run here." in text_of(answer)
    assert not made.exists()
    assert result_of(changed)["row_count"] == 0
    assert await rows(postgres, "SELECT count(*) FROM z_by_tool") == [[0]]


@pytest.mark.usefixtures("measured")
async def test_unusable_setting_ends_the_server_with_its_name() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mcp_servers.postgres"),
        cwd=REPOSITORY,
        env={**os.environ, "POSTGRES_MAX_ROWS": "many"},
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(BOUND_S):
        _, said = await process.communicate()
    assert process.returncode == 78
    assert b"POSTGRES_MAX_ROWS" in said
