"""The stdio MCP server of the proof: it numbers what it sends and writes down what it gets.

It knows nothing of gateways. Tools:

- ``work`` {call, steps, pause_ms, bytes}: sends `steps` progress notifications, `progress` 1 to
  `steps`, each with `bytes` characters of text, then {"call", "steps", "executions"}:
  how often this call number has been started so far, which is 1 unless somebody repeated it.
- ``report`` {since}: {"notifications": numbers of the client's notifications from the position
  `since` on, in order of arrival; "executions": [call, times] of every call that was started}.

The client's numbered notifications are ``notifications/proof`` {n}.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine

LINE_BYTES = 32 * 1024 * 1024
"""Longest line that is read: above what a gateway lets through."""

REVISION = "2025-11-25"

UNKNOWN_METHOD = -32601


class Server:
    """One conversation on stdin and stdout, with any number of calls at once."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._writing = asyncio.Lock()
        self._notifications: list[int] = []
        self._executions: Counter[int] = Counter()

    async def run(self) -> None:
        """Serve until stdin ends; calls that still run are given up."""
        async with asyncio.TaskGroup() as calls:
            running: set[asyncio.Task[None]] = set()
            while line := await self._reader.readline():
                answering = self._take(json.loads(line))
                if answering is not None:
                    task = calls.create_task(answering)
                    running.add(task)
                    task.add_done_callback(running.discard)
            for task in running:
                task.cancel()

    def _take(self, message: dict[str, Any]) -> Coroutine[Any, Any, None] | None:
        """Take a message in the order of arrival; return what answers it."""
        method, params = message.get("method"), message.get("params") or {}
        if method == "notifications/proof":
            self._notifications.append(params["n"])
        if "id" not in message or method is None:
            return None
        if method == "tools/call" and params["name"] == "work":
            self._executions[params["arguments"]["call"]] += 1
            token = (params.get("_meta") or {}).get("progressToken")
            return self._work(message["id"], token, params["arguments"])
        return self._answer(message["id"], self._result(method, params))

    def _result(self, method: str, params: dict[str, Any]) -> dict[str, Any] | None:
        """Return the result of what is answered at once; None for what is not known here."""
        if method == "initialize":
            about = {"capabilities": {"tools": {}}, "serverInfo": {"name": "proof", "version": "1"}}
            return {"protocolVersion": REVISION, **about}
        if method == "tools/list":
            names = ("work", "report")
            return {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in names]}
        if method == "tools/call" and params["name"] == "report":
            return _content(self._report(params["arguments"]))
        return {} if method == "ping" else None

    def _report(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return {
            "notifications": self._notifications[arguments.get("since", 0) :],
            "executions": list(self._executions.items()),
        }

    async def _work(self, request_id: Any, token: Any, arguments: dict[str, Any]) -> None:
        call, steps = arguments["call"], arguments["steps"]
        executions = self._executions[call]
        for step in range(1, steps + 1):
            await asyncio.sleep(arguments.get("pause_ms", 0) / 1000)
            params = {"progressToken": token, "progress": step, "total": steps}
            text = {"message": "x" * arguments.get("bytes", 0)}
            await self._say({"method": "notifications/progress", "params": {**params, **text}})
        done = {"call": call, "steps": steps, "executions": executions}
        await self._answer(request_id, _content(done))

    async def _answer(self, request_id: Any, result: dict[str, Any] | None) -> None:
        if result is None:
            error = {"code": UNKNOWN_METHOD, "message": "no such method or tool"}
            await self._say({"id": request_id, "error": error})
        else:
            await self._say({"id": request_id, "result": result})

    async def _say(self, message: dict[str, Any]) -> None:
        async with self._writing:
            self._writer.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
            await self._writer.drain()


def _content(document: dict[str, Any]) -> dict[str, Any]:
    text = {"type": "text", "text": json.dumps(document)}
    return {"content": [text], "structuredContent": document}


async def serve() -> None:
    """Serve on this process's stdin and stdout."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(LINE_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    transport, protocol = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, sys.stdout
    )
    writer = asyncio.StreamWriter(transport, protocol, None, loop)
    await Server(reader, writer).run()


if __name__ == "__main__":
    asyncio.run(serve())
