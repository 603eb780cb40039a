"""The stdio MCP server of the scale proof: it says who it is, what it did and how often.

It starts in milliseconds, as a hundred of it run on one machine, and speaks whichever era it is
spoken to in. It belongs to the first `owner` that calls it and says so in every answer, so that an
answer from another session's child shows. Tools:

- ``work`` {owner, serial, attempt, steps, pause_ms, text, tells}: sends `steps` progress
  notifications, `progress` 1 to `steps`, with so many milliseconds before each; then answers
  {"owner", "child", "count", "serial", "attempt", "times", "text"}: whose this child is, a name
  drawn at its start, how many calls it has had so far, what it was given, and how often it was
  given this serial in this attempt. With `tells` it says a log message {"owner", "told"} after the
  answer, numbered from 1.
- ``journal`` {}: {"owner", "child", "told", "calls": [serial, attempt] of every ``work``, in order
  of arrival}. It does not count as a call.
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import select
from collections import Counter
from time import monotonic
from typing import Any

LEGACY = ("2025-11-25", "2025-06-18")
MODERN = "2026-07-28"
REVISION_KEY = "io.modelcontextprotocol/protocolVersion"

INFO = {"name": "scale-proof", "version": "1"}
CAPABILITIES: dict[str, Any] = {"tools": {}, "logging": {}}
TOOLS = [{"name": name, "inputSchema": {"type": "object"}} for name in ("work", "journal")]
FRESH = {"ttlMs": 0, "cacheScope": "private"}

NO_SUCH_METHOD = -32601
READ_BYTES = 1 << 20

Document = dict[str, Any]


class Server:
    """One conversation on stdin and stdout, with any number of calls at once."""

    def __init__(self) -> None:
        self._child = os.urandom(6).hex()
        self._owner: str | None = None
        self._calls: list[tuple[int, int]] = []
        self._times: Counter[tuple[int, int]] = Counter()
        self._told = 0
        self._order = itertools.count()
        self._due: list[tuple[float, int, Document]] = []

    def run(self) -> None:
        """Serve until stdin ends; what is still to be said then is not."""
        pieces: list[bytes] = []
        while True:
            wait_s = max(0.0, self._due[0][0] - monotonic()) if self._due else None
            if select.select([0], [], [], wait_s)[0]:
                data = os.read(0, READ_BYTES)
                if not data:
                    return
                first, *more = data.split(b"\n")
                pieces.append(first)
                for begun in more:
                    self._take(json.loads(b"".join(pieces)))
                    pieces = [begun]
            while self._due and self._due[0][0] <= monotonic():
                self._say(heapq.heappop(self._due)[2])

    def _take(self, message: Document) -> None:
        method, request = message.get("method"), message.get("id")
        if method is None or request is None:
            return
        params = message.get("params") or {}
        modern = (params.get("_meta") or {}).get(REVISION_KEY) == MODERN
        if method == "tools/call" and params.get("name") == "work":
            self._work(request, params, modern)
            return
        result = self._result(method, params)
        if result is None:
            error = {"code": NO_SUCH_METHOD, "message": "no such method or tool"}
            self._say({"id": request, "error": error})
        else:
            self._say({"id": request, "result": _in_era(result, modern)})

    def _result(self, method: str, params: Document) -> Document | None:
        if method == "initialize":
            asked = params.get("protocolVersion")
            agreed = asked if asked in LEGACY else LEGACY[0]
            return {"protocolVersion": agreed, "capabilities": CAPABILITIES, "serverInfo": INFO}
        if method == "server/discover":
            about = {"capabilities": CAPABILITIES, "serverInfo": INFO}
            return {"supportedVersions": [MODERN, *LEGACY], **about, **FRESH}
        if method == "tools/list":
            return {"tools": TOOLS, **FRESH}
        if method == "tools/call" and params.get("name") == "journal":
            whose = {"owner": self._owner, "child": self._child}
            return _content({**whose, "told": self._told, "calls": self._calls})
        return {} if method == "ping" else None

    def _work(self, request: Any, params: Document, modern: bool) -> None:
        given = params["arguments"]
        key = given["serial"], given["attempt"]
        self._owner = self._owner or given["owner"]
        self._calls.append(key)
        self._times[key] += 1
        done = {"owner": self._owner, "child": self._child, "count": len(self._calls)}
        done |= {"serial": key[0], "attempt": key[1], "times": self._times[key]}
        done["text"] = given["text"]
        token = (params.get("_meta") or {}).get("progressToken")
        now, pause_s = monotonic(), given["pause_ms"] / 1000
        for step in range(1, given["steps"] + 1):
            progress = {"progressToken": token, "progress": step, "total": given["steps"]}
            notice = {"method": "notifications/progress", "params": progress}
            self._later(now + step * pause_s, notice)
        end = now + given["steps"] * pause_s
        self._later(end, {"id": request, "result": _in_era(_content(done), modern)})
        if given["tells"]:
            self._told += 1
            told = {"owner": self._owner, "told": self._told}
            notice = {"method": "notifications/message", "params": {"level": "info", "data": told}}
            self._later(end, notice)

    def _later(self, when: float, message: Document) -> None:
        heapq.heappush(self._due, (when, next(self._order), message))

    def _say(self, message: Document) -> None:
        line = memoryview(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
        while line:
            line = line[os.write(1, line) :]


def _in_era(result: Document, modern: bool) -> Document:
    return {**result, "resultType": "complete"} if modern else result


def _content(document: Document) -> Document:
    return {"content": [], "structuredContent": document}


if __name__ == "__main__":
    Server().run()
