"""Runs a gateway in this process: `serve` and `quickstart`."""

import asyncio
import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import typer

from gateway import app as composition
from gateway import quickstart as first_run
from gateway import settings as configuration
from gateway.cli.failing import Failed, Unconfigured
from gateway.ops import logs
from gateway.ops.traces import MissingExtra
from gateway.registry.servers import BadServersFile
from gateway.registry.servers import load as load_servers

Greet = Callable[[configuration.Settings, list[str]], None]


def serve(environment: Mapping[str, str], env_file: Path | None) -> None:
    """Serve until a signal ends it.

    Args:
        environment: of this process, which the servers file and the local launcher take from.
        env_file: settings below the environment.

    Raises:
        Unconfigured: a setting or the servers file is wrong.
        Failed: the port cannot be opened.
    """
    _serve(environment, env_file, lambda _settings, _servers: None)


def quickstart(environment: Mapping[str, str]) -> None:
    """Serve on this machine, with keys that are made at the first run. Raises as `serve`."""
    first_run.ensure_env_file()

    def greet(settings: configuration.Settings, servers: list[str]) -> None:
        key = next(iter(settings.keys()), "")
        typer.echo(first_run.greeting(settings.base_url, key, servers))

    _serve(environment, first_run.ENV_FILE, greet)


def _serve(environment: Mapping[str, str], env_file: Path | None, greet: Greet) -> None:
    try:
        settings = configuration.load(env_file)
        logs.configure(settings.log_level, settings.log_format)
        registry = load_servers(
            settings.servers_file,
            environment,
            separator=settings.toolkit_separator,
            discovers=bool(settings.heroku_apps),
        )
        serving = composition.serve(
            settings, registry, lambda: greet(settings, registry.names), dict(environment)
        )
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(serving)
    except (configuration.BadSettings, BadServersFile, MissingExtra) as error:
        raise Unconfigured(f"cannot start: {error}") from None
    except OSError as error:
        raise Failed(f"cannot start: {error}") from None
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


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's loop where it is installed: a quarter less latency."""
    if importlib.util.find_spec("uvloop") is None:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module(
        "uvloop"
    ).new_event_loop
    return factory
