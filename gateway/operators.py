"""The operators' side of `/admin/v1`: what the command line asks a running gateway."""

from typing import Any

import aiohttp

PATIENCE_S = 30.0


class Unanswered(Exception):
    """The gateway could not be asked, or refused; the message says why and what to do."""


async def bootstrap(url: str, admin_key: str, server: str) -> str:
    """Return the line that starts a dyno of a server by hand.

    Raises:
        Unanswered: no gateway there, another key, no such server.
    """
    document = await _ask(url, admin_key, "bootstrap", {"server": server})
    command = document.get("command")
    if not isinstance(command, str):
        raise Unanswered(f"{url} is no gateway: its answer holds no command")
    return command


async def _ask(url: str, admin_key: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    address = f"{url.rstrip('/')}/admin/v1/{path}"
    headers = {"Authorization": f"Bearer {admin_key}"}
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    try:
        async with (
            aiohttp.ClientSession(headers=headers, timeout=timeout) as http,
            http.post(address, json=body) as response,
        ):
            document = await response.json()
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise Unanswered(f"no answer from {address}: {error}") from error
    if not isinstance(document, dict) or "error" in document:
        said = document.get("error") if isinstance(document, dict) else "no JSON object"
        raise Unanswered(f"{address} refused: {said}")
    return document
