"""What there is and what it costs: servers, the ledger, and a dyno that is started by hand."""

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from gateway.cli import output
from gateway.cli.asking import Operators, Refused, shaped
from gateway.cli.failing import Failed, Unreachable
from gateway.cli.output import Cell, Column, Row
from gateway.ops.admin.shapes import (
    BootstrapLine,
    Budget,
    Ledger,
    Server,
    ServerWithTools,
    Sum,
)

SERVERS: Final = (
    Column("SERVER"),
    Column("STATUS"),
    Column("TOOLS", figures=True),
    Column("SESSIONS", figures=True),
    Column("WARM"),
    Column("SIZE"),
    Column("APP"),
    Column("RELEASE"),
    Column("LOG"),
    Column("DESCRIPTION"),
)

MOST_SPENT: Final = 0.9
"""A budget is shown in red from here on."""


async def servers(gateway: Operators, *, as_json: bool) -> None:
    """Print the servers there are."""
    async with gateway:
        document = await gateway.get("/servers")
    if not isinstance(document, list):
        raise Unreachable(f"{gateway.url} is no gateway: its answer is no list of servers")
    told = [shaped(each, Server, gateway.url) for each in document]
    if as_json:
        output.document(document)
    elif not told:
        output.note("no server yet: docs/servers.md says how they are declared")
    else:
        output.table(SERVERS, [_row(server) for server in told])


def _row(server: Server) -> Row:
    gone = server.status != "registered"
    return [
        server.name,
        Cell(server.status, "red" if gone else ""),
        "?" if server.tools is None else str(server.tools),
        str(server.sessions),
        _warm(server.warm),
        server.size or "",
        server.app or "",
        server.release,
        server.log_level or "",
        server.description,
    ]


def _warm(warm: int | list[dict[str, Any]]) -> str:
    return str(warm) if isinstance(warm, int) else f"{len(warm)} windows"


async def server(gateway: Operators, name: str, log_level: str | None, *, as_json: bool) -> None:
    """Print one server and its tools.

    Args:
        gateway: that knows it.
        name: of the server.
        log_level: to be set first; `default` for that of the deployment, None to leave it.
        as_json: print JSON.

    Raises:
        Failed: there is none of this name.
    """
    async with gateway:
        path = f"/servers/{quote(name, safe='')}"
        try:
            if log_level is not None:
                level = None if log_level == "default" else log_level
                await gateway.ask("PUT", f"{path}/log-level", body={"level": level})
            document = await gateway.get(path)
        except Refused as refused:
            if refused.status != 404:
                raise
            raise Failed(f"no server {output.cut(name)}: `gateway servers` lists them") from None
    told = shaped(document, ServerWithTools, gateway.url)
    if as_json:
        output.document(document)
        return
    output.facts(
        [
            ("server", told.name),
            ("status", told.status),
            ("about", told.description),
            ("sessions", str(told.sessions)),
            ("warm", _warm(told.warm)),
            ("size", told.size or ""),
            ("app", told.app or ""),
            ("process type", told.process_type or ""),
            ("release", told.release),
            ("log level", told.log_level or ""),
        ]
    )
    if told.tools is None:
        output.note(f"\nits tools are not known yet: `gateway call {told.name}` asks it")
        return
    output.heading(f"{len(told.tools)} tools")
    tools = [[tool.name, " ".join(tool.description.split())] for tool in told.tools]
    output.table([Column("TOOL"), Column("DESCRIPTION")], tools)


async def bootstrap(gateway: Operators, name: str, *, as_json: bool) -> None:
    """Print the line that starts a dyno of a server by hand."""
    async with gateway:
        document = await gateway.ask("POST", "/bootstrap", body={"server": name})
    told = shaped(document, BootstrapLine, gateway.url)
    if as_json:
        output.document(document)
    else:
        output.verbatim(told.command)


async def cost(gateway: Operators, *, as_json: bool) -> None:
    """Print what dynos cost this month, and what runs."""
    async with gateway:
        document = await gateway.get("/ledger")
    told = shaped(document, Ledger, gateway.url)
    if as_json:
        output.document(document)
        return
    month = next((month for month in told.months if month.month == told.month), None)
    spent = output.usd(told.budgets.overall.spent_usd)
    output.facts(
        [
            ("month", f"{told.month}, until {output.stamp(told.month_ends)}"),
            ("spent", Cell(spent, "bold")),
            ("dyno time", "" if month is None else output.span(month.dyno_s)),
            ("running now", f"{len(told.running)} dynos, {_rate(told)} an hour"),
        ]
    )
    _budgets(told)
    if month is not None:
        for kind, sums in (
            ("SERVER", month.by_server),
            ("PRINCIPAL", month.by_principal),
            ("SIZE", month.by_size),
        ):
            _sums(kind, sums)
    _running(told)


def _rate(told: Ledger) -> str:
    return output.usd(sum(dyno.usd_per_hour for dyno in told.running))


def _budgets(told: Ledger) -> None:
    budgets = {"(all)": told.budgets.overall, **told.budgets.by_principal}
    rows = [
        _budget(name, budget, budget.budget_usd)
        for name, budget in budgets.items()
        if budget.budget_usd is not None
    ]
    if not rows:
        return
    output.heading("Budgets")
    columns = [Column("FOR"), *(Column(each, figures=True) for each in ("BUDGET", "SPENT", "USED"))]
    columns.append(Column("RUNNING MAY ADD", figures=True))
    output.table(columns, rows)


def _budget(name: str, budget: Budget, most: float) -> Row:
    share = budget.spent_usd / most if most else 1.0
    used = Cell(f"{share:.0%}", "red" if share >= MOST_SPENT else "")
    return [
        name,
        output.usd(most),
        output.usd(budget.spent_usd),
        used,
        output.usd(budget.committed_usd),
    ]


def _sums(kind: str, sums: Mapping[str, Sum]) -> None:
    if not sums:
        return
    output.heading(f"By {kind.lower()}")
    dearest = sorted(sums.items(), key=lambda each: (-each[1].usd, -each[1].dyno_s, each[0]))
    rows = [[name, output.span(each.dyno_s), output.usd(each.usd)] for name, each in dearest]
    output.table([Column(kind), Column("DYNO TIME", figures=True), Column("COST", True)], rows)


def _running(told: Ledger) -> None:
    if not told.running:
        return
    output.heading("Running now")
    columns = [Column("LAUNCH"), Column("SESSION"), Column("SERVER"), Column("PRINCIPAL")]
    columns += [Column("SIZE"), Column("AN HOUR", True), Column("FOR", True), Column("COST", True)]
    rows = [
        [
            dyno.launch,
            dyno.session,
            dyno.server,
            dyno.principal,
            dyno.size,
            output.usd(dyno.usd_per_hour),
            output.span(dyno.dyno_s),
            output.usd(dyno.usd),
        ]
        for dyno in told.running
    ]
    output.table(columns, rows)
