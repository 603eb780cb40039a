"""The MCP side: two tools, their schemas, their progress and the shape of their results."""

from typing import Annotated, Any, TypedDict

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, ToolAnnotations
from pydantic import Field

from mcp_servers.postgres.attachments import DEFAULT, Attachments, NoSuchAttachmentError
from mcp_servers.postgres.collecting import Collector
from mcp_servers.postgres.database import Answer, Database, DatabaseError
from mcp_servers.postgres.schema import RELATIONS
from mcp_servers.postgres.settings import ALLOW_WRITES, LARGEST_SHARE, Settings
from mcp_servers.postgres.statements import READING, StatementRefusedError, check
from mcp_servers.tools import answer, teller


class Column(TypedDict):
    """A column of a result."""

    name: str
    type: str


class Rows(TypedDict):
    """What a query returned."""

    columns: list[Column]
    rows: list[list[Any]]
    row_count: int
    truncated: bool
    note: str | None


class Tables(TypedDict):
    """What there is in a database."""

    tables: list[dict[str, Any]]
    truncated: bool
    note: str | None


class RowsEnvelope(TypedDict):
    """The structured content: the result under one key, as Heroku's reference servers have it."""

    result: Rows


class TablesEnvelope(TypedDict):
    """Likewise."""

    result: Tables


ReturnedRows = Annotated[CallToolResult, RowsEnvelope]
ReturnedTables = Annotated[CallToolResult, TablesEnvelope]

Call = Context[Any, Any]


def build(attachments: Attachments, settings: Settings) -> MCPServer:
    """A server whose tools ask databases.

    Args:
        attachments: The databases there are.
        settings: What a statement may use and do.
    """
    database = Database(settings)
    server = MCPServer(
        "postgres",
        instructions="Shows what is in the app's PostgreSQL databases and runs queries on them.",
        log_level="WARNING",  # stderr is the operator's; a call is no news
    )

    async def ask(ctx: Call, name: str, query: str, into: Collector, *, writing: bool) -> Answer:
        try:
            url = attachments.url(name)
            return await database.ask(url, query, into, writing=writing, tell=teller(ctx))
        except (NoSuchAttachmentError, DatabaseError) as error:
            raise ToolError(str(error)) from error

    attachment = Field(
        description=(
            "Which database: the name of an attachment, such as HEROKU_POSTGRESQL_GOLD."
            f" There are: {', '.join(attachments.names()) or 'none'}."
        ),
        examples=[DEFAULT],
    )
    query_text = (
        "One statement of SQL."
        if settings.allow_writes
        else f"One statement of SQL that reads: {', '.join(sorted(READING)).upper()}."
    )

    async def postgres_get_schema(
        ctx: Call, db_attachment: Annotated[str, attachment] = DEFAULT
    ) -> ReturnedTables:
        into = Collector(settings, share=1)
        await ask(ctx, db_attachment, RELATIONS, into, writing=False)
        tables = [table for (table,) in into.rows if isinstance(table, dict)]  # no cut one
        truncated = into.note is not None
        return answer({"tables": tables, "truncated": truncated, "note": into.note})

    async def postgres_run_query(
        query: Annotated[str, Field(description=query_text, examples=["SELECT 1"])],
        ctx: Call,
        db_attachment: Annotated[str, attachment] = DEFAULT,
    ) -> ReturnedRows:
        try:
            check(query, allow_writes=settings.allow_writes)
        except StatementRefusedError as error:
            raise ToolError(str(error)) from error
        into = Collector(settings, share=LARGEST_SHARE)
        asked = await ask(ctx, db_attachment, query, into, writing=settings.allow_writes)
        return answer(
            {
                "columns": asked.columns,
                "rows": into.rows,
                "row_count": len(into.rows) if asked.columns else asked.changed,
                "truncated": into.note is not None,
                "note": into.note,
            }
        )

    server.add_tool(
        postgres_get_schema,
        description=(
            "Show what is in a PostgreSQL database: tables and views with their columns, types,"
            " keys, indexes, comments and estimated numbers of rows."
        ),
        annotations=_annotations("Show the database's schema", writes=False),
    )
    server.add_tool(
        postgres_run_query,
        description=_described(settings),
        annotations=_annotations("Query the database", writes=settings.allow_writes),
    )
    return server


def _described(settings: Settings) -> str:
    may = (
        "It may change the database; each call is a transaction, committed if it succeeds."
        if settings.allow_writes
        else f"It only reads: the transaction is read-only (see {ALLOW_WRITES})."
    )
    return (
        "Run one SQL statement on a PostgreSQL database and return columns and rows as JSON."
        f" {may} It may run for {settings.timeout_s:g} s; at most {settings.max_rows} rows and"
        f" {settings.max_output_bytes} bytes come back. Numbers that JSON cannot hold, dates and"
        " times come as text."
    )


def _annotations(title: str, *, writes: bool) -> ToolAnnotations:
    return ToolAnnotations(
        title=title,
        read_only_hint=not writes,
        destructive_hint=writes,
        idempotent_hint=not writes,
        open_world_hint=False,
    )
