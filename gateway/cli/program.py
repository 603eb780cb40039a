"""What there is to type: the commands with their options and help. What they do is elsewhere.

Whoever runs it hands in the environment as `obj`, for those commands that need all of it.
"""

from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gateway.cli import access, output
from gateway.cli.failing import INTERRUPTED, REFUSED, Failed, Misused, Unconfigured
from gateway.ops.admin.shapes import Level, Order, Stage

if TYPE_CHECKING:
    from gateway.cli.asking import Operators

program = typer.Typer(
    name="gateway",
    help="A rendezvous gateway for MCP servers in one-off dynos: serve it, and see what it does.",
    epilog="Exit codes: 0 done, 1 refused or not found, 2 not understood, 69 no gateway answers, "
    "78 a setting is wrong. Every command explains itself with --help.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Url = Annotated[
    str | None,
    typer.Option(envvar="GATEWAY_URL", help=f"The gateway.  [default: {access.DEFAULT_URL}]"),
]
AdminKey = Annotated[
    str | None,
    typer.Option(
        envvar="ADMIN_KEY",
        help="Key of operators. Set the variable: what is typed here, others can see.",
    ),
]
EnvFile = Annotated[
    Path | None,
    typer.Option(help="File of NAME=value lines, below the environment.  [default: .env]"),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
SessionId = Annotated[str, typer.Argument(help="Id of the session, such as s-0123456789ab.")]

LogLevel = Literal[Level, "default"]


@contextmanager
def _reporting() -> Iterator[None]:
    """Turn what went wrong into a sentence and an exit code: the one place that does."""
    try:
        yield
    except Failed as failed:
        output.complain(str(failed))
        raise typer.Exit(failed.code) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def _operators(url: str | None, admin_key: str | None, env_file: Path | None) -> "Operators":
    from gateway.cli.asking import Operators  # noqa: PLC0415 - aiohttp takes 0.2 s

    return Operators(access.of_operators(url, admin_key, env_file))


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    import asyncio  # noqa: PLC0415 - help does without

    return asyncio.run(work)


@program.command(short_help="Serve MCP clients and agents.")
def serve(
    context: typer.Context,
    env_file: Annotated[
        Path | None, typer.Option(help="File of NAME=value lines, below the environment.")
    ] = None,
) -> None:
    """Serve MCP clients and agents. Configured by the environment (docs/configuration.md).

    \b
    Example:
      API_KEY=… ADMIN_KEY=… gateway serve
    """
    with _reporting():
        from gateway.cli import serving  # noqa: PLC0415 - all of the gateway

        serving.serve(context.obj or {}, env_file)


@program.command(short_help="Serve on this machine, with keys of its own making.")
def quickstart(context: typer.Context) -> None:
    """Serve on this machine: make a key at the first run, and print how to connect a client.

    \b
    Example:
      gateway quickstart
    """
    with _reporting():
        from gateway.cli import serving  # noqa: PLC0415

        serving.quickstart(context.obj or {})


@program.command(short_help="List the sessions, or watch them.")
def sessions(  # noqa: PLR0913 - its options
    *,
    state: Annotated[Stage | None, typer.Option(help="Only those in this state.")] = None,
    server: Annotated[str | None, typer.Option(help="Only those of this server.")] = None,
    principal: Annotated[str | None, typer.Option(help="Only those of this principal.")] = None,
    text: Annotated[
        str | None,
        typer.Option(
            "--find", help="Only those with this in id, client, server, principal, dyno or launch."
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Those that have ended too.")] = False,
    sort: Annotated[Order, typer.Option(help="Which come first.")] = "newest",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 50,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Look again every 2 s, until Ctrl-C.")
    ] = False,
    as_json: Json = False,
    url: Url = None,
    admin_key: AdminKey = None,
    env_file: EnvFile = None,
) -> None:
    """List the sessions: who runs what, since when, and what it costs.

    \b
    Examples:
      gateway sessions --sort cost
      gateway sessions --state parted --json | jq -r '.sessions[].session'
    """
    with _reporting():
        if watch and as_json:
            raise Misused("--watch draws on a terminal: it does not go with --json")
        from gateway.cli import sessions as room  # noqa: PLC0415

        filters = {
            "state": state,
            "server": server,
            "principal": principal,
            "q": text,
            "live": None if every or state == "closed" else "true",
            "sort": sort,
        }
        gateway = _operators(url, admin_key, env_file)
        wanted = room.Wanted(filters, limit)
        _run(room.watch(gateway, wanted) if watch else room.show(gateway, wanted, as_json=as_json))


@program.command(short_help="Tell a session's story, or follow it.")
def logs(  # noqa: PLR0913 - its options
    session: SessionId,
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the session ends, or Ctrl-C.")
    ] = False,
    last: Annotated[
        int | None, typer.Option("--last", "-n", min=1, max=100_000, help="The last so many lines.")
    ] = None,
    grep: Annotated[
        str, typer.Option("--grep", "-g", help="Only lines with this text somewhere, in any case.")
    ] = "",
    raw: Annotated[bool, typer.Option("--raw", help="Every field, as key=value.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
    url: Url = None,
    admin_key: AdminKey = None,
    env_file: EnvFile = None,
) -> None:
    """Tell a session's story: what happened, each message, the server's stderr.

    → goes to the server, ← to the client; times are UTC.

    \b
    Examples:
      gateway logs -f s-0123456789ab
      gateway logs s-0123456789ab --grep tool_error
    """
    with _reporting():
        from gateway.cli import stories  # noqa: PLC0415

        gateway = _operators(url, admin_key, env_file)
        printer = stories.Printer(grep, raw=raw, as_json=as_json)
        _run(stories.logs(gateway, session, printer, follow=follow, last=last))


@program.command(short_help="Show one session.")
def inspect(
    session: SessionId,
    *,
    as_json: Json = False,
    url: Url = None,
    admin_key: AdminKey = None,
    env_file: EnvFile = None,
) -> None:
    """Show one session: its facts, its last calls, what went wrong and where to look.

    \b
    Example:
      gateway inspect s-0123456789ab
    """
    with _reporting():
        from gateway.cli import sessions as room  # noqa: PLC0415

        gateway = _operators(url, admin_key, env_file)
        _run(room.inspect(gateway, session, as_json=as_json))


@program.command(short_help="End a session and its dyno.")
def kill(  # noqa: PLR0913 - its options
    session: SessionId,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    wait: Annotated[
        float, typer.Option(min=0, max=600, help="Seconds to wait for its end; 0: do not.")
    ] = 60.0,
    as_json: Json = False,
    url: Url = None,
    admin_key: AdminKey = None,
    env_file: EnvFile = None,
) -> None:
    """End a session and its dyno; say how it ended and what it cost.

    \b
    Example:
      gateway kill s-0123456789ab
    """
    with _reporting():
        from gateway.cli import sessions as room  # noqa: PLC0415

        gateway = _operators(url, admin_key, env_file)
        _run(room.kill(gateway, session, room.End(sure=yes, wait_s=wait, as_json=as_json)))


@program.command(short_help="List the servers, or show one with its tools.")
def servers(
    name: Annotated[str | None, typer.Argument(help="One of them, with its tools.")] = None,
    *,
    log_level: Annotated[
        LogLevel | None,
        typer.Option(help="Log this much of it from now on, at all gateways, until it is changed."),
    ] = None,
    as_json: Json = False,
    url: Url = None,
    admin_key: AdminKey = None,
    env_file: EnvFile = None,
) -> None:
    """List the servers, or show one with its tools.

    \b
    Examples:
      gateway servers
      gateway servers code_exec --log-level debug
    """
    with _reporting():
        if log_level is not None and name is None:
            raise Misused("--log-level is of one server: name it")
        from gateway.cli import estate  # noqa: PLC0415

        gateway = _operators(url, admin_key, env_file)
        if name is None:
            _run(estate.servers(gateway, as_json=as_json))
        else:
            _run(estate.server(gateway, name, log_level, as_json=as_json))


@program.command(short_help="Call a tool, or list a server's tools.")
def call(  # noqa: PLR0913 - its options
    server: Annotated[str, typer.Argument(help="Name of the server.")],
    tool: Annotated[
        str | None, typer.Argument(help="Name of the tool; without, all are listed.")
    ] = None,
    *,
    arguments: Annotated[
        str | None,
        typer.Option("--args", help="Its arguments: a JSON object, @FILE, or - for stdin."),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=1, max=86_400, help="Seconds for all of it, the boot included.")
    ] = 300.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole result.")] = False,
    url: Url = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="API_KEY",
            help="Key of a client; of several the first. Set the variable: what is typed here, "
            "others can see.",
        ),
    ] = None,
    env_file: EnvFile = None,
) -> None:
    """Call a tool as an MCP client does, and show the dyno boot meanwhile.

    \b
    Examples:
      gateway call code_exec
      gateway call code_exec code_exec_python --args '{"code": "print(2**100)"}'
    """
    with _reporting():
        calling = _calling()
        if tool is None and arguments is not None:
            raise Misused("--args goes with the name of a tool: leave it out to list the tools")
        given = calling.arguments(arguments)
        line = calling.Line(access.of_clients(url, api_key, env_file), server, timeout)
        if tool is None:
            _run(calling.tools(line, as_json=as_json))
        else:
            _run(calling.call(line, tool, given, as_json=as_json))


def _calling() -> Any:
    try:
        from gateway.cli import calling  # noqa: PLC0415 - the SDK takes most of a second
    except ModuleNotFoundError as missing:
        raise Unconfigured(
            f"`call` needs the MCP SDK ({missing.name} is missing): "
            "pip install 'dyno-gateway[gateway,clients]'"
        ) from None
    return calling


@program.command(short_help="Print the line that starts a dyno by hand.")
def bootstrap(
    server: Annotated[str, typer.Argument(help="Name of the server that the dyno shall run.")],
    *,
    as_json: Json = False,
    url: Url = None,
    admin_key: AdminKey = None,
    env_file: EnvFile = None,
) -> None:
    """Print the line that starts a dyno by hand; the next session of the server adopts it.

    \b
    Example:
      gateway bootstrap code_exec
    """
    with _reporting():
        from gateway.cli import estate  # noqa: PLC0415

        gateway = _operators(url, admin_key, env_file)
        _run(estate.bootstrap(gateway, server, as_json=as_json))


@program.command(short_help="Show what dynos cost.")
def cost(
    *,
    as_json: Json = False,
    url: Url = None,
    admin_key: AdminKey = None,
    env_file: EnvFile = None,
) -> None:
    """Show what dynos cost this month, the budgets, and what runs now.

    \b
    Example:
      gateway cost
    """
    with _reporting():
        from gateway.cli import estate  # noqa: PLC0415

        gateway = _operators(url, admin_key, env_file)
        _run(estate.cost(gateway, as_json=as_json))


@program.command(short_help="Check what a gateway needs; each failure has its fix.")
def doctor(
    context: typer.Context,
    *,
    env_file: EnvFile = None,
    as_json: Json = False,
) -> None:
    """Check settings, keys, servers, port, clock, Valkey and platform; each failure has its fix.

    Needs no gateway that runs. Exit code 1 if anything fails.

    \b
    Example:
      gateway doctor --env-file .env
    """
    with _reporting():
        from gateway.cli import doctor as room  # noqa: PLC0415

        surroundings = room.Surroundings(context.obj or {}, env_file)
        if not _run(room.examine(surroundings, as_json=as_json)):
            raise typer.Exit(REFUSED)
