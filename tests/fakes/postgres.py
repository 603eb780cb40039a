"""A real PostgreSQL of Debian's package for tests, in a folder of its own."""

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

import psutil
import psycopg

from tests.fakes.fault_proxy import HOST, hold_port

PATIENCE_S = 60.0
POLL_S = 0.01

SUPERUSER = "postgres"

PACKAGED = "/usr/lib/postgresql/*/bin"
"""Where Debian has the programs, not on the PATH, since there may be several versions."""

OPTIONS = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "shared_buffers": "8MB",
    "max_connections": "30",
    "autovacuum": "off",
    "max_wal_senders": "0",
    "wal_level": "minimal",
    "listen_addresses": HOST,
    "timezone": "UTC",
}


class NoPostgres(Exception):
    """There is none; the message says how to get one."""


def unwanted() -> bool:
    """True if somebody has said that there need not be a PostgreSQL."""
    return os.environ.get("NO_POSTGRES") == "1"


def programs() -> Path:
    """Where the programs are, the newest version's.

    Raises:
        NoPostgres: nowhere.
    """
    found = sorted(
        (path.parent for path in Path("/").glob(f"{PACKAGED[1:]}/initdb")),
        key=lambda path: float(path.parent.name),
    )
    if found:
        return found[-1]
    if (path := shutil.which("initdb")) is not None:
        return Path(path).resolve().parent
    raise NoPostgres(
        "there is no PostgreSQL: `make peers` installs it, or set NO_POSTGRES=1 to go without "
        "these tests"
    )


class PostgresServer:
    """A server of its own on a free port of this machine; use it as a context manager.

    Attributes:
        port: it listens on.
        password: of `SUPERUSER` over TCP.
    """

    def __init__(self) -> None:
        self._programs = programs()
        # It refuses to run as root; the package brings a user.
        self._user = "postgres" if os.geteuid() == 0 else None
        self._guard = hold_port()
        self.port: int = self._guard.getsockname()[1]
        self.password = secrets.token_hex(16)
        self._home = tempfile.TemporaryDirectory(prefix="postgres-")
        self._process: psutil.Popen | None = None

    def __enter__(self) -> Self:
        """Make a cluster and start it."""
        home = Path(self._home.name)
        if self._user is not None:
            shutil.chown(home, self._user)
        secret = home / "secret"
        secret.write_text(self.password, encoding="ascii")
        subprocess.run(
            [
                self._programs / "initdb",
                *("--pgdata", home / "data", "--username", SUPERUSER, "--pwfile", secret),
                *("--auth-local", "trust", "--auth-host", "scram-sha-256"),
                *("--encoding", "UTF8", "--no-locale", "--no-sync", "--no-instructions"),
            ],
            user=self._user,
            cwd=home,
            check=True,
            capture_output=True,
            timeout=PATIENCE_S,
        )
        self._start(home)
        return self

    def __exit__(self, *failure: object) -> None:
        """Stop it, and leave nothing behind."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)  # at once: nothing is worth saving
            self._process.wait(PATIENCE_S)
        self._guard.close()
        self._home.cleanup()

    def url(self, database: str = "postgres", user: str = SUPERUSER, password: str = "") -> str:
        """Where a database is, over TCP and with a password."""
        return f"postgres://{user}:{password or self.password}@{HOST}:{self.port}/{database}"

    def run(self, *statements: str, database: str = "postgres") -> None:
        """Run statements as the superuser, each by itself."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def pids(self) -> list[int]:
        """Its processes that serve a connection and run something."""
        with psycopg.connect(self.url()) as connection:
            rows = connection.execute(
                "SELECT pid FROM pg_stat_activity WHERE application_name = 'mcp_postgres'"
                " AND state = 'active'"
            )
            return [pid for (pid,) in rows]

    def _start(self, home: Path) -> None:
        options = OPTIONS | {"port": str(self.port), "unix_socket_directories": str(home)}
        command = [str(self._programs / "postgres"), "-D", str(home / "data")]
        command += [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        log = home / "log"
        with log.open("ab") as out:
            self._process = psutil.Popen(
                command,
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                user=self._user,
                cwd=home,
            )
        deadline = time.monotonic() + PATIENCE_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(log.read_text(encoding="utf-8", errors="replace"))
            time.sleep(POLL_S)

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url(), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True
