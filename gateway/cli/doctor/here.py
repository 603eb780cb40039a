"""This machine: Python, open files, the programs of servers, the port."""

import errno
import importlib.util
import os
import platform
import resource
import shutil
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from gateway.cli.doctor import far
from gateway.cli.doctor.findings import Finding, fail, ok, warn
from gateway.registry.servers import Registry, ServerDefinition
from gateway.settings import Settings

FILES_PER_SESSION: Final = 4
"""A client's connections, the agent's link, and for the local launcher the child's process."""

FILES_BESIDE: Final = 128


def python() -> Finding:
    """Look at the interpreter."""
    said = f"{platform.python_version()} on {platform.system()}"
    if importlib.util.find_spec("uvloop") is None:
        return warn("python", f"{said}, no uvloop", "`pip install uvloop`: a quarter less latency")
    return ok("python", f"{said}, uvloop")


def open_files(read: Settings) -> Finding:
    """Look at how many files the process may have open."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FILES_PER_SESSION * read.max_sessions + FILES_BESIDE
    if most != resource.RLIM_INFINITY and most < needed:
        said = f"{most} may be open; MAX_SESSIONS={read.max_sessions} takes about {needed}"
        return warn("open files", said, f"`ulimit -n {needed}`, or fewer MAX_SESSIONS")
    return ok("open files", "no limit" if most == resource.RLIM_INFINITY else f"up to {most}")


def commands(read: Settings, registry: Registry, environment: Mapping[str, str]) -> list[Finding]:
    """Look for the programs of servers, where this machine runs them."""
    if read.launcher_name != "local":
        return []
    path = os.pathsep.join((str(Path(sys.executable).parent), environment.get("PATH", os.defpath)))
    return [_command(server, path) for server in registry.servers]


def _command(server: ServerDefinition, path: str) -> Finding:
    check = f"server {server.name}"
    folder = Path(server.cwd) if server.cwd else None
    if folder is not None and folder.is_absolute() and not folder.is_dir():
        return fail(check, f"its cwd {folder} is no directory", "make it, or correct `cwd`")
    if os.sep in server.command and not Path(server.command).is_absolute():
        if folder is None:
            said = f"{server.command} is looked for in a dyno's own, empty directory"
            return warn(check, said, "give the whole path, or a `cwd`")
        found = shutil.which(str(folder / server.command))
    else:
        found = shutil.which(server.command, path=server.env.get("PATH", path))
    if found is None:
        fix = "install it, or give its whole path as `command`"
        return fail(check, f"no program {server.command} on the PATH of dynos", fix)
    return ok(check, found)


async def port(read: Settings) -> Finding:
    """Look whether the port is free, or a gateway's."""
    where = f"{read.address}:{read.port}"
    try:
        _bind(read.address, read.port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            fix = "another PORT, or another BIND_HOST"
            return fail("port", f"{where} cannot be opened: {error.strerror}", fix)
    else:
        return ok("port", f"{where} is free")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(read.address, read.address)  # noqa: S104
    health = await far.health(f"http://{f'[{host}]' if ':' in host else host}:{read.port}")
    if isinstance(health, str):
        fix = "end what has it, or take another PORT"
        return fail("port", f"{where} is taken, by no gateway ({health})", fix)
    return ok("port", f"{where} is a gateway's: {health.about}")


def _bind(address: str, number: int) -> None:
    family, kind, protocol, _, place = socket.getaddrinfo(
        address, number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(place)
        probe.listen(1)  # with that option two may bind, and only one may listen
