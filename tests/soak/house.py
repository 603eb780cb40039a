"""The gateway of the soak, in a process of its own: the real application, and dynos played outside.

`python -m tests.soak.house FD MAX_SESSIONS` serves on a free loopback port and talks to whoever
started it over the inherited socket FD, one JSON object a line:

| From the house | |
|---|---|
| `{"serving": url}` | once, when the port is open |
| `{"launch": id, "server": name, "url": url, "token": join token}` | an agent shall dial |
| `{"stop": id}` | the dyno of this launch shall be gone |
| `{"figures": {…}}` | see `Figures` |

| To the house | |
|---|---|
| `{"exited": id}` | the dyno of this launch ended by itself |
| `{"tell": "figures"}` | collect garbage and tell figures |

The end of that socket is the order to drain and leave.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import secrets
import socket
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import psutil
from aiohttp import web
from msgspec.structs import replace

from gateway.app import KEEP_ALIVE_S, SHUTDOWN_S, build
from gateway.cli.serving import loop_factory
from gateway.launchers.base import Dyno, LaunchError, LaunchOrder
from gateway.ops import logs
from gateway.registry.servers import Registry, ServerDefinition
from gateway.sessions.manager import Manager
from gateway.sessions.terms import Terms
from gateway.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

KEY = "key-of-the-soak"

GRACE_S = 8.0
"""How long an agent may be out of reach: many times what a redial takes under full load."""

IDLE_S = 5.0
"""Idle limit of the server that is forgotten: longer than a busy machine takes for a handshake."""

SHORT_S = 1.0
"""Deadline of what is meant to be missed."""

STEADY, FORGOTTEN, ABSENT, UNAVAILABLE = "steady", "forgotten", "absent", "unavailable"
PLAIN = ServerDefinition(command="never-run", era="legacy", catalogue=False)
SERVERS = [
    replace(PLAIN, name=STEADY, default=True, boot_timeout=60.0),
    replace(PLAIN, name=FORGOTTEN, idle_timeout=IDLE_S),
    replace(PLAIN, name=ABSENT, boot_timeout=SHORT_S),
    replace(PLAIN, name=UNAVAILABLE),
]
"""What sessions are opened with: `ABSENT` is launched and never dials, `UNAVAILABLE` is refused."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What the gateway's process holds, after a garbage collection.

    Attributes:
        rss: resident bytes.
        blocks: memory blocks that Python has allocated; one object lost a session shows here long
            before it shows in `rss`.
        tasks: asyncio tasks.
        descriptors: open files and sockets.
        processes: children, and theirs.
        sessions: live or being closed.
        dynos: launched and not stopped.
    """

    rss: int
    blocks: int
    tasks: int
    descriptors: int
    processes: int
    sessions: int
    dynos: int


class CrowdLauncher:
    """Hands each order to the crowd, which plays the agent: the launcher port and no more."""

    name = "crowd"
    boot_timeout_s = 30.0
    poll_s = 0.25

    def __init__(self, control: asyncio.StreamWriter) -> None:
        self._control = control
        self.dynos: dict[str, Dyno] = {}

    async def tell(self, **facts: Any) -> None:
        """Write one line to the soak."""
        self._control.write(json.dumps(facts).encode() + b"\n")
        await self._control.drain()

    def exited(self, launch_id: str) -> None:
        """The dyno of this launch ended by itself."""
        if launch_id in self.dynos:
            self.dynos[launch_id] = Dyno(launch_id, launch_id, 0, "played by the soak")

    async def launch(self, order: LaunchOrder) -> Dyno:
        """Let the crowd play the agent. See `Launcher.launch`."""
        if order.server == UNAVAILABLE:
            raise LaunchError("there are none today")
        dyno = self.dynos[order.launch_id] = Dyno(order.launch_id, order.launch_id)
        await self.tell(
            launch=order.launch_id,
            server=order.server,
            url=order.environment["RENDEZVOUS_URL"],
            token=order.environment["RENDEZVOUS_JOIN_TOKEN"],
        )
        return dyno

    def usd_per_hour(self, size: str | None, app: str | None) -> float:
        """Nothing. See `Launcher.usd_per_hour`."""
        return 0.0

    async def stop(self, dyno_id: str) -> float | None:
        """Let the crowd end the agent. See `Launcher.stop`."""
        if self.dynos.pop(dyno_id, None) is None:
            return None
        await self.tell(stop=dyno_id)
        return 0.0

    async def list(self) -> Sequence[Dyno]:
        """Return all that were not stopped. See `Launcher.list`."""
        return list(self.dynos.values())

    async def aclose(self) -> None:
        """Hold nothing. See `Launcher.aclose`."""


def take_figures(manager: Manager, launcher: CrowdLauncher) -> Figures:
    gc.collect()
    process = psutil.Process()
    return Figures(
        rss=process.memory_info().rss,
        blocks=sys.getallocatedblocks(),
        tasks=len(asyncio.all_tasks()),
        descriptors=process.num_fds(),
        processes=len(process.children(recursive=True)),
        sessions=manager.sessions,
        dynos=len(launcher.dynos),
    )


async def serve(control: socket.socket, max_sessions: int) -> None:
    """Serve until the other end of `control` is closed, then drain and leave."""
    reader, writer = await asyncio.open_connection(sock=control)
    port = socket.create_server(("127.0.0.1", 0), backlog=1024)
    url = f"http://127.0.0.1:{port.getsockname()[1]}"
    settings = Settings.model_validate({"api_key": KEY, "bind_host": "127.0.0.1"})
    registry, launcher = Registry(SERVERS), CrowdLauncher(writer)
    terms = Terms(url, secrets.token_bytes(32), max_sessions, grace_s=GRACE_S)
    manager = Manager(launcher, registry, terms, logs.log_sink())
    runner = web.AppRunner(  # as `gateway.app.serve` runs it
        build(settings, registry, manager),
        handler_cancellation=True,
        auto_decompress=False,
        keepalive_timeout=KEEP_ALIVE_S,
        shutdown_timeout=SHUTDOWN_S,
        access_log=None,
    )
    await runner.setup()
    try:
        await web.SockSite(runner, port, backlog=1024).start()
        await launcher.tell(serving=url)
        async for line in reader:
            match json.loads(line):
                case {"exited": str(launch_id)}:
                    launcher.exited(launch_id)
                case {"tell": "figures"}:
                    await launcher.tell(figures=asdict(take_figures(manager, launcher)))
                case other:
                    raise ValueError(f"the soak said {other}")
        # Nobody hears the launcher's last words: the soak closed its half only.
        await manager.drain()
    finally:
        await runner.cleanup()
        with contextlib.suppress(ConnectionError):
            writer.close()
            await writer.wait_closed()


def main() -> None:
    descriptor, max_sessions = (int(word) for word in sys.argv[1:])
    logs.configure("info", "logfmt")
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(serve(socket.socket(fileno=descriptor), max_sessions))


if __name__ == "__main__":
    main()
