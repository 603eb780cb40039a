"""A platform of a few lines: an HTTP server in a thread that answers what the test scripted."""

import http.server
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Got:
    """One request as the platform got it."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class Answer:
    """One answer of the platform."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None

    def bytes(self) -> bytes:
        return json.dumps(self.body).encode() if self.raw is None else self.raw


SILENCE = Answer()
"""None, until the test is over."""
RESET = Answer()
"""None: the connection breaks."""


class FakePlatform(http.server.ThreadingHTTPServer):
    """Answers from a script, keeps what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: list[Answer] = []
        self.got: list[Got] = []
        self.over = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def answers(self, *script: Answer) -> None:
        self.script = list(script)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is none."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakePlatform

    def _answer(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(size)) if size else None
        self.server.got.append(Got(self.command, self.path, dict(self.headers), body))
        answer = self.server.script.pop(0)
        if answer is SILENCE:
            self.server.over.wait()
            self.close_connection = True
            return
        if answer is RESET:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        content = answer.bytes()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_DELETE = _answer  # noqa: N815 - the library's names

    def log_message(self, *_args: Any) -> None:
        """Nobody reads it."""


@contextmanager
def serving(platform: FakePlatform) -> Iterator[FakePlatform]:
    thread = threading.Thread(target=platform.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield platform
    finally:
        platform.over.set()
        platform.shutdown()
        thread.join()
        platform.server_close()
