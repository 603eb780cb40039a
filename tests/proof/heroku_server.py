"""The stdio MCP server of the Heroku proof: starts at once, answers with what it was asked.

It uses nothing that is slow to import, as up to a hundred of it run on one machine. Tool ``echo``
{token, after_s} answers {"token", "pid", "served"} after so many seconds: `served` counts how often
this process was given that token.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import Counter
from typing import Any

NO_SUCH_METHOD = -32601

ECHO = {"name": "echo", "description": "Say it again.", "inputSchema": {"type": "object"}}

_writing = threading.Lock()
_served: Counter[str] = Counter()


def say(message: dict[str, Any]) -> None:
    """Write one message."""
    with _writing:
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        sys.stdout.flush()


def take(message: dict[str, Any]) -> None:
    """Answer a request; notifications and answers are heard in silence."""
    method, request = message.get("method"), message.get("id")
    if method is None or request is None:
        return
    if method == "initialize":
        offer = {
            "protocolVersion": message["params"]["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "heroku-proof", "version": "1"},
        }
        say({"id": request, "result": offer})
    elif method == "tools/list":
        say({"id": request, "result": {"tools": [ECHO]}})
    elif method == "tools/call":
        echo(request, **message["params"]["arguments"])
    elif method == "ping":
        say({"id": request, "result": {}})
    else:
        error = {"code": NO_SUCH_METHOD, "message": f"no such method: {method}"}
        say({"id": request, "error": error})


def echo(request: Any, token: str, after_s: float = 0.0) -> None:
    """Answer now or later."""
    _served[token] += 1
    told = {"token": token, "pid": os.getpid(), "served": _served[token]}
    result = {"content": [{"type": "text", "text": token}], "structuredContent": told}
    answer = {"id": request, "result": result}
    if after_s <= 0:
        say(answer)
        return
    later = threading.Timer(after_s, say, (answer,))
    later.daemon = True
    later.start()


def main() -> None:
    """Serve until stdin ends."""
    for line in sys.stdin:
        take(json.loads(line))


if __name__ == "__main__":
    main()
