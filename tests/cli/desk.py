"""The command line run in this process or on a pseudo-terminal, and a stub of what it asks.

The stub answers what a test tells it to, hostile text included, which no real gateway would let
through.
"""

from __future__ import annotations

import asyncio
import fcntl
import functools
import json
import os
import pty
import signal
import sys
import termios
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from typer.testing import CliRunner

import gateway
from gateway.cli.program import program

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

ROOT = Path(str(gateway.__file__)).parents[1]
ADMIN = "an-operators-key-of-32-characters"
KEY = "a-clients-key-of-the-tests"
BOUND = 20.0

EVIL = "\x1b[31m[bold]red[/bold]:smile:\x07\r\nforged \u202eevil\u2066 \x9b2J\ud800 <b>"
"""Steers terminals, forges lines, turns the reading direction, and would be markup."""

DANGEROUS = "\x1b\x07\r\u202e\u2066\x9b\ud800"
"""What of it must never be written."""

PASSED_ON = ("PATH", "LANG", "COVERAGE_PROCESS_START", "COVERAGE_FILE")
"""Of the environment of the tests to processes."""

OURS = ("GATEWAY_URL", "ADMIN_KEY", "API_KEY", "FORCE_COLOR", "NO_COLOR")


@dataclass(frozen=True)
class Said:
    """What a command has written, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


async def gw(
    *arguments: str, typed: str | None = None, obj: Any = None, **environment: str
) -> Said:
    """Run a command in a thread of this process."""
    given: dict[str, str | None] = {**dict.fromkeys(OURS), **environment}
    async with asyncio.timeout(BOUND):
        result = await asyncio.to_thread(
            CliRunner().invoke, program, arguments, input=typed, env=given, obj=obj
        )
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Said(result.exit_code, result.stdout, result.stderr)


async def piped(*arguments: str, **environment: str) -> Said:
    """Run a command as a process: two at a time would share this process's stdout."""
    kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", *arguments),
        env={**kept, "PYTHONPATH": str(ROOT), **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(BOUND):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Said(process.returncode or 0, out.decode(), err.decode())


async def on_terminal(
    *arguments: str, cwd: Path, typed: bytes = b"", when: bytes = b"", **environment: str
) -> tuple[int, str]:
    """Run a command as a process on a terminal of its own; return all that appeared there.

    Args:
        arguments: of the command.
        cwd: where it runs.
        typed: what a person types.
        when: that appears.
        environment: of the process, beside the usual.
    """
    ours, theirs = pty.openpty()
    kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    usual = {"TERM": "xterm-256color", "COLUMNS": "120", "PYTHONPATH": str(ROOT)}
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", *arguments),
            cwd=cwd,
            env={**kept, **usual, **environment},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=functools.partial(_sit_at, theirs),
        )
    finally:
        os.close(theirs)
    try:
        async with asyncio.timeout(BOUND):
            shown = await asyncio.to_thread(_all_of, ours, typed, when)
            return await process.wait(), shown.decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(ours)


def interruptible() -> None:
    """Let SIGINT end a child, though whoever runs the tests in the background ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _sit_at(terminal: int) -> None:
    """Make it the terminal whose Ctrl-C counts."""
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    interruptible()


def _all_of(descriptor: int, typed: bytes, when: bytes) -> bytes:
    shown = b""
    while True:
        try:
            part = os.read(descriptor, 65_536)
        except OSError:  # nobody has the other end any more
            return shown
        if not part:
            return shown
        shown += part
        if typed and when in shown:
            os.write(descriptor, typed)
            typed = b""


@dataclass
class Desk:
    """An operators' API that says what it is told to.

    Attributes:
        url: of it.
        answers: by method and path below /admin/v1: a document, or what makes a response.
        asked: each request: method, path with query, body.
    """

    url: str = ""
    answers: dict[tuple[str, str], Any] = field(default_factory=dict)
    asked: list[tuple[str, str, bytes]] = field(default_factory=list)

    @property
    def access(self) -> dict[str, Any]:
        return {"GATEWAY_URL": self.url, "ADMIN_KEY": ADMIN}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.method, request.path_qs, await request.read()))
        if request.headers.get("Authorization") != f"Bearer {ADMIN}":
            return web.json_response(
                {"error": "send `Authorization: Bearer ADMIN_KEY`"}, status=401
            )
        path = request.path.removeprefix("/admin/v1")
        answer = self.answers.get((request.method, path))
        if answer is None:
            return web.json_response({"error": f"nothing at {path}"}, status=404)
        if callable(answer):
            made: web.StreamResponse = await answer(request)
            return made
        return web.Response(text=json.dumps(answer), content_type="application/json")

    def queries(self, method: str, path: str) -> list[str]:
        """The queries of requests for a path, in order."""
        wanted = f"/admin/v1{path}"
        return [
            asked.partition("?")[2]
            for how, asked, _ in self.asked
            if how == method and asked.partition("?")[0] == wanted
        ]


@asynccontextmanager
async def desk(answers: Mapping[tuple[str, str], Any] | None = None) -> AsyncIterator[Desk]:
    """Serve a stub."""
    made = Desk(answers=dict(answers or {}))
    app = web.Application()
    app.router.add_route("*", "/admin/v1/{rest:.*}", made.handle)
    async with TestServer(app) as server:
        made.url = str(server.make_url("")).rstrip("/")
        yield made


def session(**more: Any) -> dict[str, Any]:
    """Return a session as the API shows it."""
    usual = {
        "session": "s-0123456789ab",
        "server": "tools",
        "principal": "alice",
        "client": "cursor 1.2",
        "gateway": "g1",
        "here": True,
        "state": "idle",
        "reason": "",
        "detail": "",
        "opened": 1_790_000_000.0,
        "active": 1_790_000_060.0,
        "ended": 0.0,
        "age_s": 125.0,
        "idle_s": 65.0,
        "calls": 7,
        "errors": 0,
        "running": 0,
        "bytes_in": 2048,
        "bytes_out": 100,
        "launch": "l1",
        "dyno": "app/run.1",
        "boot_s": 4.2,
        "warm": False,
        "parts": 0,
        "dyno_s": 120.0,
        "usd": 0.0012,
        "usd_per_hour": 0.036,
        "failure": "",
    }
    return {**usual, **more}


def page(*listed: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a list of sessions as the API shows it."""
    states = {each["state"]: 1 for each in listed}
    usual = {"total": len(listed), "next": None, "by_state": states, "at": 1_790_000_100.0}
    return {"sessions": list(listed), **usual, **more}


def jsonl(*lines: Mapping[str, Any], following: int | None = None) -> Any:
    """Return what answers with a story."""

    async def answer(_request: web.Request) -> web.Response:
        headers = {} if following is None else {"Rendezvous-Next": str(following)}
        body = "".join(json.dumps(line) + "\n" for line in lines)
        return web.Response(text=body, content_type="application/jsonl", headers=headers)

    return answer


def safe(text: str) -> bool:
    """Whether text holds nothing that steers a terminal, line breaks apart."""
    return not any(char in text for char in DANGEROUS)
