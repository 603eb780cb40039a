"""The command line: `python -m gateway serve | quickstart`."""

import asyncio
import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from gateway import app as composition
from gateway import operators
from gateway import quickstart as first_run
from gateway import settings as configuration
from gateway.ops import logs
from gateway.registry.servers import BadServersFile
from gateway.registry.servers import load as load_servers

BAD_CONFIG = 78
"""EX_CONFIG of sysexits.h."""

cli = typer.Typer(
    help="A rendezvous gateway for MCP servers in one-off dynos.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

EnvFile = Annotated[
    Path | None, typer.Option(help="File of NAME=value lines, below the environment.")
]


@cli.command()
def serve(env_file: EnvFile = None) -> None:
    """Serve MCP clients and agents. Configured by the environment (docs/configuration.md)."""
    _serve(env_file, lambda _settings, _servers: None)


@cli.command()
def quickstart() -> None:
    """Serve on this machine: make a key at the first run, and print how to connect a client."""
    first_run.ensure_env_file()

    def greet(settings: configuration.Settings, servers: list[str]) -> None:
        key = next(iter(settings.keys()), "")
        typer.echo(first_run.greeting(settings.base_url, key, servers))

    _serve(first_run.ENV_FILE, greet)


@cli.command()
def bootstrap(
    server: Annotated[str, typer.Argument(help="Name of the server that the dyno shall run.")],
    url: Annotated[str, typer.Option(envvar="GATEWAY_URL", help="The gateway.")],
    admin_key: Annotated[str, typer.Option(envvar="ADMIN_KEY", help="Key of operators.")],
) -> None:
    """Print the line that starts a dyno by hand; the next session of the server adopts it."""
    try:
        typer.echo(asyncio.run(operators.bootstrap(url, admin_key, server)))
    except operators.Unanswered as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


def _serve(
    env_file: Path | None, greet: Callable[[configuration.Settings, list[str]], None]
) -> None:
    try:
        settings = configuration.load(env_file)
        logs.configure(settings.log_level, settings.log_format)
        registry = load_servers(settings.servers_file, os.environ)
        serving = composition.serve(
            settings, registry, lambda: greet(settings, registry.names), dict(os.environ)
        )
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(serving)
    except (configuration.BadSettings, BadServersFile) as error:
        typer.echo(f"cannot start: {error}", err=True)
        raise typer.Exit(BAD_CONFIG) from None
    except OSError as error:
        typer.echo(f"cannot start: {error}", err=True)
        raise typer.Exit(1) from None
    _leave()


def _leave() -> None:
    """Go now, though the platform still owes an answer to a thread of its launcher.

    The interpreter would wait for such threads, and be killed for it.
    """
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    if any(not thread.daemon for thread in others):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's loop where it is installed: a quarter less latency."""
    if importlib.util.find_spec("uvloop") is None:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module(
        "uvloop"
    ).new_event_loop
    return factory


def main() -> None:
    """Run the command line."""
    cli()


if __name__ == "__main__":
    main()
