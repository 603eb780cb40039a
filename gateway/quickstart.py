"""First run on one machine: make a key and a secret, and tell how to connect a client."""

import json
import os
import secrets
from pathlib import Path

ENV_FILE = Path(".env")

_HEADER = "# Made by `make run` for this machine. Not for version control.\n"


def ensure_env_file(path: Path = ENV_FILE) -> bool:
    """Write a file with a fresh API_KEY, GATEWAY_SECRET and ADMIN_KEY unless it has all of them.

    Returns:
        Whether anything was added. The file is readable by its owner only.
    """
    known = path.read_text(encoding="utf-8") if path.exists() else ""
    names = {line.partition("=")[0].strip() for line in known.splitlines()}
    missing = [name for name in ("API_KEY", "GATEWAY_SECRET", "ADMIN_KEY") if name not in names]
    if not missing:
        return False
    lines = [f"{name}={secrets.token_urlsafe(32)}\n" for name in missing]
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.fchmod(descriptor, 0o600)
    with os.fdopen(descriptor, "a", encoding="utf-8") as file:
        if known and not known.endswith("\n"):
            file.write("\n")
        file.writelines([_HEADER, *lines] if not known else lines)
    return True


def greeting(base_url: str, key: str, servers: list[str]) -> str:
    """Return what a newcomer needs: the URL, the key, and a client snippet to paste."""
    url = f"{base_url}/mcp"
    snippet = {
        "mcpServers": {
            "dyno-gateway": {
                "type": "http",
                "url": url,
                "headers": {"Authorization": f"Bearer {key}"},
            }
        }
    }
    return f"""
  MCP URL   {url}
  API key   {key}   (kept in {ENV_FILE})
  servers   {", ".join(servers)}, each at {base_url}/servers/NAME/mcp
  toolkit   {base_url}/toolkit/mcp   (all of them at one URL)
  console   {base_url}/console   (log in with the ADMIN_KEY in {ENV_FILE})

  Paste into your client's MCP configuration (Claude Code, Cursor, VS Code: `servers`):

{json.dumps(snippet, indent=2)}

  Or from another terminal:

  export MCP_SERVER_URL={base_url} API_KEY={key}
  .venv/bin/python -m clients.streamable_http mcp list_tools | jq
"""
