"""A stdio MCP server that echoes: the cheapest child, for measuring everything else."""

from __future__ import annotations

import json
import sys

TOOLS = [{"name": "echo", "inputSchema": {"type": "object"}}]


def answer(method: str, params: dict[str, object]) -> dict[str, object] | None:
    """Return the result of a request; None for a method that there is not."""
    match method:
        case "initialize":
            info = {"name": "echo", "version": "1"}
            revision = params.get("protocolVersion", "2025-06-18")
            return {"protocolVersion": revision, "capabilities": {"tools": {}}, "serverInfo": info}
        case "tools/list":
            return {"tools": TOOLS}
        case "tools/call":
            said = json.dumps(params.get("arguments"))
            return {"content": [{"type": "text", "text": said}]}
        case "ping":
            return {}
        case _:
            return None


def main() -> None:
    """Serve on stdin and stdout until the input ends."""
    for line in sys.stdin.buffer:
        message = json.loads(line)
        if "id" not in message or "method" not in message:
            continue
        result = answer(message["method"], message.get("params") or {})
        told = {"error": {"code": -32601, "message": "no such method"}}
        if result is not None:
            told = {"result": result}
        document = {"jsonrpc": "2.0", "id": message["id"], **told}
        sys.stdout.buffer.write(json.dumps(document).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
