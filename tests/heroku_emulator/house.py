"""`make run-heroku-emulated`: an emulated platform, an app with servers, and a gateway on it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from tests.heroku_emulator import AppSpec, Emulator, Options

ROOT = Path(__file__).resolve().parents[2]
PORT = 8000
APP = "my-tools"
BOOT_S = (2.0, 6.0)
"""What a small slug takes on the real platform, about."""


def slug_in(folder: Path) -> Path:
    """Make what a deploy of this repository's bundled servers would leave in a dyno."""
    slug = folder / "slug"
    shutil.copytree(
        ROOT / "mcp_servers", slug / "mcp_servers", ignore=shutil.ignore_patterns("__pycache__")
    )
    return slug


def app(slug: Path) -> AppSpec:
    """Return the app whose process types become servers."""
    processes = {"mcp-python": "python -m mcp_servers.code_exec"}
    if shutil.which("ruby"):
        processes["mcp-ruby"] = "python -m mcp_servers.code_exec ruby"
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    return AppSpec(processes=processes, slug=slug, config={"PATH": path, "GREETING": "hello"})


def environment(heroku: Emulator, key: str, admin_key: str) -> dict[str, str]:
    """Return the settings of a gateway on it."""
    return {
        **{name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
        "PORT": str(PORT),
        "GATEWAY_URL": f"http://127.0.0.1:{PORT}",
        "GATEWAY_SECRET": secrets.token_hex(32),
        "API_KEY": key,
        "ADMIN_KEY": admin_key,
        "HEROKU_API_KEY": heroku.api_key,
        "HEROKU_API_URL": heroku.url,
        "HEROKU_APPS": APP,
        "MONTHLY_BUDGET_USD": "20",
    }


async def run() -> int:
    """Serve until Ctrl-C; return the gateway's exit status."""
    key, admin_key = secrets.token_urlsafe(16), secrets.token_urlsafe(32)
    with tempfile.TemporaryDirectory() as scratch:
        apps = {APP: app(slug_in(Path(scratch)))}
        async with Emulator(apps, Options(boot_delay=BOOT_S)) as heroku:
            gateway = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "gateway", "serve"),
                cwd=ROOT,
                env=environment(heroku, key, admin_key),
                start_new_session=True,  # Ctrl-C is ours to pass on
            )
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, _end, gateway)
            sys.stderr.write(greeting(heroku.url, heroku.api_key, key, admin_key))
            return await gateway.wait()


def _end(gateway: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        gateway.send_signal(signal.SIGINT)


def greeting(platform: str, platform_key: str, key: str, admin_key: str) -> str:
    """Return what to try."""
    url = f"http://127.0.0.1:{PORT}"
    client = f"API_KEY={key} MCP_SERVER_URL={url}"
    return f"""
The platform    {platform}  (key {platform_key})
The gateway     {url}/servers/mcp-python/mcp  (key {key})

A call, in a dyno of its own:
  {client} .venv/bin/python -m clients.streamable_http --server mcp-python \\
    mcp call_tool --args '{{"name": "code_exec_python", "arguments": {{"code": "print(2**100)"}}}}'
The dynos, with the real command line (npm package heroku):
  HEROKU_HOST={platform} HEROKU_API_KEY={platform_key} heroku ps --app {APP}
What they cost:
  curl -H 'Authorization: Bearer {admin_key}' {url}/admin/v1/ledger

"""


if __name__ == "__main__":
    raise SystemExit(asyncio.run(run()))
